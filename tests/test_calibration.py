"""Scores to probabilities: against scikit-learn and against worlds whose probabilities are known."""

import itertools
import json
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab.core import DataError, InputError, candidates_from
from rerank_lab.evaluation.abstaining import Abstainer, fit_abstainer, threshold_for
from rerank_lab.evaluation.calibration import (
    Calibration,
    Judged,
    expected_calibration_error,
    fit,
    folds,
    held_out,
    reliability,
)


def world(queries=60, candidates=10, slope=2.0, intercept=-1.0, seed=0):
    """Queries whose scores are normal and whose relevance is drawn with the logistic chance of the score."""
    random = np.random.default_rng(seed)
    made = {}
    for i in range(queries):
        scores = sorted(random.normal(0, 1.5, candidates), reverse=True)
        relevant = random.random(candidates) < 1 / (1 + np.exp(-(slope * np.array(scores) + intercept)))
        made[f"q{i}"] = Judged(tuple(map(float, scores)), tuple(map(bool, relevant)))
    return made


def flat(data):
    return [s for j in data.values() for s in j.scores], [r for j in data.values() for r in j.relevant]


def test_platt_finds_the_line_that_made_the_world():
    found = fit(*flat(world(queries=1000)))
    assert found.x[0] == pytest.approx(2.0, abs=0.15)
    assert found.y[0] == pytest.approx(-1.0, abs=0.1)
    assert found.probability(0.5) == pytest.approx(1 / (1 + exp(-(found.x[0] * 0.5 + found.y[0]))))


def test_scores_that_mislead_promise_everyone_the_share_of_all_pairs():
    found = fit([4.0, 3.0, 2.0, 1.0], [False, False, False, True])
    assert [found.probability(s) for s in (-9, 1, 4, 9)] == pytest.approx([0.25] * 4)


def test_platt_equals_scikit_learn_without_a_penalty():
    from sklearn.linear_model import LogisticRegression

    scores, relevant = flat(world())
    theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(np.array(scores)[:, None], relevant)
    ours = fit(scores, relevant)
    asked = np.linspace(-4, 4, 9)
    expected = theirs.predict_proba(asked[:, None])[:, 1]
    assert [ours.probability(s) for s in asked] == pytest.approx(list(expected), abs=1e-3)


def test_the_isotonic_function_equals_scikit_learns_between_and_beyond_its_corners():
    from sklearn.isotonic import IsotonicRegression

    scores, relevant = flat(world())
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, np.array(relevant, float))
    ours = fit(scores, relevant, "isotonic")
    asked = np.linspace(-9, 9, 50)
    assert [ours.probability(s) for s in asked] == pytest.approx(list(theirs.predict(asked)))


@pytest.mark.parametrize("how", ["platt", "isotonic"])
@settings(max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: len({r for _, r in pairs}) == 2
    )
)
def test_a_higher_score_never_has_a_lower_probability(how, pairs):
    scores, relevant = zip(*pairs, strict=True)
    chances = [fit(scores, relevant, how).probability(s) for s in sorted(scores)]
    assert all(0 <= c <= 1 for c in chances)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(chances))


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(InputError, match="calibration 'beta' is unknown: give platt or isotonic"):
        fit([1.0, 2.0], [True, False], "beta")
    with pytest.raises(InputError, match="all 2 pairs are not relevant"):
        fit([1.0, 2.0], [False, False])
    with pytest.raises(InputError, match="all 2 pairs are relevant"):
        fit([1.0, 2.0], [True, True])
    with pytest.raises(InputError, match="a score is nan or infinite"):
        fit([1.0, float("nan")], [True, False])
    with pytest.raises(InputError, match="9 queries are too few for 5 folds: give at least 10"):
        held_out(world(queries=9))


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 8))
def test_folds_deal_out_every_query_once(n, k):
    qids = [f"q{i}" for i in range(n)]
    dealt = folds(qids, k)
    assert sorted(q for fold in dealt for q in fold) == sorted(qids)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_query_is_judged_by_a_fit_that_has_not_seen_it():
    """One query alone is relevant at low scores: no fit that is asked about it may know."""
    data = {f"q{i}": Judged((3.0, 0.0), (True, False)) for i in range(9)}
    data["odd"] = Judged((-9.0, -10.0), (True, True))
    chances, relevant = held_out(data, "isotonic")
    of_odd = [c for c, r in zip(chances, relevant, strict=True) if r and c < 0.5]
    assert of_odd == [0.0, 0.0]


def test_the_error_is_small_where_the_world_is_logistic_and_large_for_a_liar():
    chances, relevant = held_out(world(queries=300), "platt")
    assert expected_calibration_error(chances, relevant) < 0.04
    assert expected_calibration_error([0.99] * len(relevant), relevant) > 0.5


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12))
def test_bins_hold_every_pair_once_and_the_error_is_their_weighted_distance(pairs, bins):
    chances, relevant = zip(*pairs, strict=True)
    found = reliability(chances, relevant, bins)
    assert sum(b.pairs for b in found) == len(pairs)
    assert sum(b.pairs * b.promised for b in found) == pytest.approx(sum(chances))
    assert sum(b.pairs * b.came_true for b in found) == pytest.approx(sum(relevant))
    error = expected_calibration_error(chances, relevant, bins)
    assert error == pytest.approx(sum(b.pairs * abs(b.promised - b.came_true) for b in found) / len(pairs))


# nothing here answers


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=20),
    st.floats(0.1, 1),
)
def test_the_threshold_is_the_lowest_that_is_precise_enough(pairs, precision):
    top, relevant = zip(*pairs, strict=True)

    def precise(threshold):
        given_ = [r for c, r in pairs if c >= threshold]
        return bool(given_) and sum(given_) / len(given_) >= precision

    able = [c for c in set(top) if precise(c)]
    assert threshold_for(top, relevant, precision) == min(able, default=2.0)


def test_precision_and_coverage_are_those_of_fresh_queries():
    fitted = fit_abstainer(world(queries=500, seed=1), precision=0.8)
    fresh = world(queries=3000, seed=2)
    given_ = [j for j in fresh.values() if fitted.probability(j.scores[0]) >= fitted.threshold]
    assert fitted.coverage == pytest.approx(len(given_) / 3000, abs=0.06)
    assert fitted.precision == pytest.approx(sum(j.relevant[0] for j in given_) / len(given_), abs=0.06)
    assert fitted.precision > 0.7
    assert fitted.queries == 500


def test_more_precision_costs_coverage():
    data = world(queries=300)
    loose, strict = (fit_abstainer(data, precision=p) for p in (0.75, 0.95))
    assert strict.threshold > loose.threshold
    assert strict.coverage < loose.coverage


def test_where_nothing_can_be_told_nothing_is_answered():
    random = np.random.default_rng(3)
    noise = {
        f"q{i}": Judged(tuple(random.normal(0, 1, 5)), tuple(bool(r) for r in random.random(5) < 0.1))
        for i in range(40)
    }
    fitted = fit_abstainer(noise, precision=0.95)
    assert fitted.threshold == 2.0 and fitted.coverage < 0.2
    assert fitted.answers(candidates_from(["a"], [9.0])) == []


def test_an_agent_is_told_which_candidates_answer():
    abstainer = Abstainer(Calibration("platt", (1.0,), (0.0,)), threshold=0.6)
    candidates = candidates_from(["sure", "perhaps", "no"], [2.0, 0.5, -1.0])
    assert [c.text for c in abstainer.answers(candidates)] == ["sure", "perhaps"]
    assert abstainer.answers(candidates[2:]) == []
    assert abstainer.answers([]) == []
    assert abstainer.probability(0.0) == 0.5


@pytest.mark.parametrize("precision", [0.0, 1.1])
def test_a_precision_out_of_range_is_refused(precision):
    with pytest.raises(InputError, match="give more than 0 and at most 1"):
        fit_abstainer(world(), precision=precision)


@pytest.mark.parametrize("how", ["platt", "isotonic"])
def test_a_saved_abstainer_comes_back_whole(how, tmp_path):
    fitted = fit_abstainer(world(), how, precision=0.7)
    fitted.save(tmp_path / "t.json")
    assert Abstainer.load(tmp_path / "t.json") == fitted
    assert Abstainer.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


@pytest.mark.parametrize(
    "row",
    [
        {},
        [],
        {"calibration": {"how": "platt", "x": [1], "y": [1, 2]}, "threshold": 0.5},
        {"calibration": {"how": "beta", "x": [1], "y": [1]}, "threshold": 0.5},
        {"calibration": {"how": "isotonic", "x": [], "y": []}, "threshold": 0.5},
        {"calibration": {"how": "platt", "x": [1], "y": [1]}, "threshold": "high"},
        {"calibration": {"how": "platt", "x": [1], "y": [1]}, "threshold": 0.5, "more": 1},
    ],
)
def test_what_is_no_saved_abstainer_is_refused(row, tmp_path):
    with pytest.raises(DataError, match=r"not a saved abstainer.*Abstainer\.save"):
        Abstainer.from_json(row)
    for written in (b"{", b"\xff"):
        (tmp_path / "t.json").write_bytes(written)
        with pytest.raises(DataError, match="cannot be read as JSON"):
            Abstainer.load(tmp_path / "t.json")
