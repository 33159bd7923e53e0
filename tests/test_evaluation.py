"""Measures, intervals, tests and experiments against numbers worked out by hand."""

import json
from itertools import product
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG

from rerank_lab import (
    BM25,
    Collection,
    Identity,
    Passage,
    bootstrap_interval,
    candidates_from,
    compare,
    measure,
    randomisation_test,
    read_run,
)
from rerank_lab.core import DataError, InputError, PointwiseReranker
from rerank_lab.evaluation import holm, oracle
from rerank_lab.evaluation.experiment import candidates_of_run
from rerank_lab.evaluation.metrics import measures_for

NDCG = {"nDCG@10": nDCG @ 10}


def ndcg(gains, ideal, k=10):
    def dcg(values):
        return sum(g / log2(place + 1) for place, g in enumerate(values[:k], start=1))

    return dcg(gains) / dcg(sorted(ideal, reverse=True))


# measures


def test_ndcg_equals_the_hand_computed_one():
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    qrels = {"q": {"a": 1, "c": 3, "missed": 2}}
    expected = (1 / log2(2) + 0 + 3 / log2(4)) / (3 / log2(2) + 2 / log2(3) + 1 / log2(4))
    assert measure(run, qrels, NDCG)["nDCG@10"]["q"] == pytest.approx(expected)
    assert ndcg([1, 0, 3], [1, 3, 2]) == pytest.approx(expected)


@settings(max_examples=50)
@given(gains=st.lists(st.integers(0, 3), min_size=1, max_size=15).filter(any))
def test_ndcg_equals_the_definition_on_any_list(gains):
    pids = [f"p{i}" for i in range(len(gains))]
    run = {"q": {pid: -float(i) for i, pid in enumerate(pids)}}
    found = measure(run, {"q": dict(zip(pids, gains, strict=True))}, NDCG)["nDCG@10"]["q"]
    assert found == pytest.approx(ndcg(gains, gains))


def test_the_cutoff_the_first_relevant_rank_and_recall_are_the_usual_ones():
    run = {"q": {f"p{i:02}": -float(i) for i in range(12)}}
    qrels = {"q": {"p03": 2, "p11": 2, "p01": 1}}
    values = measure(run, qrels, {"RR": RR(rel=2) @ 10, "R@10": R(rel=2) @ 10, "R@12": R(rel=2) @ 12})
    assert {name: by_query["q"] for name, by_query in values.items()} == {"RR": 1 / 4, "R@10": 1 / 2, "R@12": 1.0}


def test_ties_are_broken_by_the_order_of_the_run_and_not_by_pid():
    qrels = {"q": {"z": 1}}
    first, last = {"q": {"z": 1.0, "a": 1.0}}, {"q": {"a": 1.0, "z": 1.0}}
    assert measure(first, qrels, NDCG)["nDCG@10"]["q"] == 1.0
    assert measure(last, qrels, NDCG)["nDCG@10"]["q"] == pytest.approx(1 / log2(3))


def test_a_query_without_results_counts_as_zero_and_one_without_judgments_not_at_all():
    values = measure({"q1": {"a": 1.0}, "extra": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"b": 1}}, NDCG)
    assert values == {"nDCG@10": {"q1": 1.0, "q2": 0.0}}


@pytest.mark.parametrize(("relevant_from", "rr", "recall"), [(1, 1.0, 1.0), (2, 0.5, 0.5)])
def test_binary_measures_count_grades_from_relevant_from_on(relevant_from, rr, recall):
    measures = measures_for(2, relevant_from)
    assert list(measures) == ["nDCG@10", "RR@10", "AP", "R@2"]
    qrels = {"q": {"a": 1, "b": 2} if relevant_from == 1 else {"a": 1, "b": 2, "c": 3}}
    values = measure({"q": {"a": 2.0, "b": 1.0}}, qrels, measures)
    assert (values["RR@10"]["q"], values["R@2"]["q"]) == (rr, recall)


def test_the_oracle_is_the_best_order_of_the_same_candidates():
    run = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}, "unjudged": {"a": 1.0}}
    best = oracle(run, {"q": {"b": 1, "c": 3, "missed": 3}})
    assert list(best["q"].items()) == [("c", 3.0), ("b", 1.0), ("a", 0.0)]
    assert best["unjudged"] == {"a": 0.0}


@settings(max_examples=30)
@given(gains=st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(any), data=st.data())
def test_no_order_of_the_candidates_beats_the_oracle(gains, data):
    pids = [f"p{i}" for i in range(len(gains))]
    qrels = {"q": dict(zip(pids, gains, strict=True))}
    order = data.draw(st.permutations(pids))
    run = {"q": {pid: -float(i) for i, pid in enumerate(order)}}
    best = measure(oracle(run, qrels), qrels, NDCG)["nDCG@10"]["q"]
    assert best == pytest.approx(1.0)
    assert measure(run, qrels, NDCG)["nDCG@10"]["q"] <= best + 1e-12


# significance


def test_the_bootstrap_gives_the_same_interval_each_time_and_another_for_another_seed():
    values = np.random.default_rng(3).random(40)
    assert bootstrap_interval(values) == bootstrap_interval(list(values))
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_the_interval_holds_the_mean_widens_with_the_level_and_is_a_point_for_equal_values():
    values = list(np.random.default_rng(4).random(30))
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < np.mean(values) < narrow[1] < wide[1]
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)


def test_the_interval_has_the_width_of_the_normal_one_on_many_queries():
    values = np.random.default_rng(5).normal(0.5, 0.2, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / 400**0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(6)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(random.random(50), samples=1000)
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_randomisation_test_nears_the_exact_p_of_all_swaps():
    a = [0.61, 0.52, 0.93, 0.24, 0.75, 0.46, 0.87, 0.38]
    b = [0.41, 0.55, 0.63, 0.21, 0.65, 0.49, 0.57, 0.33]
    difference = np.subtract(a, b)
    means = [abs(np.mean(np.multiply(signs, difference))) for signs in product([1, -1], repeat=8)]
    exact = np.mean([m >= abs(difference.mean()) - 1e-12 for m in means])
    assert 0.01 < exact < 0.2
    assert randomisation_test(a, b) == pytest.approx(exact, abs=0.003)
    assert randomisation_test(b, a) == randomisation_test(a, b)


def test_no_difference_has_p_one_and_a_great_one_a_small_p_that_is_never_zero():
    assert randomisation_test([0.3, 0.9, 0.1], [0.3, 0.9, 0.1]) == 1.0
    assert 0 < randomisation_test([1.0] * 50, [0.0] * 50) < 1e-4


def test_holm_equals_the_case_worked_out_by_hand():
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04 raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    ranked = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [corrected[i] for i in ranked] == sorted(corrected)


# experiments

PASSAGES = {p: Passage(p, t) for p, t in {"a": "ferry", "b": "ferry boat", "c": "tram", "d": "night ferry"}.items()}
QRELS = {"q1": {"d": 3, "b": 1, "c": 2}, "q2": {"c": 3, "a": 0}, "q3": {"b": 2}}
QUERIES = {"q1": "night boat", "q2": "tram", "q3": "boat", "unjudged": "bus"}
DATA = Collection("small", PASSAGES, QUERIES, QRELS, groups={"q1": "boats", "q2": "rails", "q3": "boats"})
FOUND = {
    "q1": candidates_from([PASSAGES[p] for p in "abd"], [3, 2, 1]),  # the relevant c is missed
    "q2": candidates_from([PASSAGES[p] for p in "ac"], [2, 1]),
    # nothing was found for q3
}


class ByLength(PointwiseReranker):
    """The longer the text the better."""

    def __init__(self, name="by length", sign=1):
        self.name, self.sign = name, sign

    def _score(self, query, passages, usage):
        usage.pairs += len(passages)
        usage.input_tokens += 7
        return [self.sign * float(len(p.text)) for p in passages]


@pytest.fixture
def experiment():
    return compare(DATA, FOUND, [ByLength(), Identity()], first_stage="words", depth=3)


def test_the_values_are_those_of_the_orders(experiment):
    # by length: q1 d b a, q2 a c; as found: q1 a b d, q2 a c
    ideal, second = [3, 2, 1], 1 / log2(3)
    assert experiment["words"].values["nDCG@10"] == pytest.approx({"q1": ndcg([0, 1, 3], ideal), "q2": second, "q3": 0})
    assert experiment["by length"].values["nDCG@10"] == pytest.approx(
        {"q1": ndcg([3, 1, 0], ideal), "q2": second, "q3": 0}
    )
    assert experiment["identity"].values == experiment["words"].values
    assert experiment["oracle"].values["nDCG@10"] == pytest.approx({"q1": ndcg([3, 1, 0], ideal), "q2": 1, "q3": 0})
    assert experiment["by length"].mean() == pytest.approx((ndcg([3, 1, 0], ideal) + second) / 3)


def test_no_positive_is_injected_and_recall_is_the_same_ceiling_for_all(experiment):
    for system in experiment.systems:
        assert {q: sorted(c.pid for c in r) for q, r in system.rankings.items()} == {
            "q1": ["a", "b", "d"],
            "q2": ["a", "c"],
            "q3": [],
        }
        assert system.values["R@3"] == {"q1": 0.5, "q2": 1.0, "q3": 0.0}, system.name
        assert "R@3" in system.values


def test_candidates_are_cut_to_the_depth():
    experiment = compare(DATA, FOUND, [ByLength()], depth=1)
    assert [len(r) for r in experiment["by length"].rankings.values()] == [1, 1, 0]
    assert experiment["oracle"].values["R@1"] == {"q1": 0.0, "q2": 0.0, "q3": 0.0}


def test_the_tests_are_against_the_baseline_and_corrected(experiment):
    assert (experiment["words"].p, experiment["oracle"].p) == (None, None)
    assert experiment["identity"].p == 1.0
    assert experiment["by length"].p_holm >= experiment["by length"].p
    other = compare(DATA, FOUND, [ByLength(), Identity()], first_stage="words", depth=3, baseline="by length")
    assert other["by length"].p is None
    assert other["words"].p == experiment["by length"].p


def test_usage_is_the_sum_over_queries(experiment):
    usage = experiment["by length"].usage
    assert (usage.pairs, usage.input_tokens) == (5, 14)
    assert experiment["words"].usage.pairs == 0


def test_the_json_has_its_shape(experiment):
    result = json.loads(json.dumps(experiment.to_json()))
    assert {k: v for k, v in result.items() if k != "systems"} == {
        "collection": "small",
        "queries": 3,
        "passages": 4,
        "first_stage": "words",
        "depth": 3,
        "relevant_from": 2,
        "baseline": "words",
        "interval": "95 % bootstrap over queries",
        "test": "paired randomisation on nDCG@10 against the baseline, Holm-corrected",
    }
    assert [s["name"] for s in result["systems"]] == ["words", "by length", "identity", "oracle"]
    for row in result["systems"]:
        assert list(row["measures"]) == ["nDCG@10", "RR@10", "AP", "R@3"]
        for value in row["measures"].values():
            assert value.keys() == {"value", "low", "high"}
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        assert set(row["usage"]) >= {"pairs", "calls", "input_tokens", "cached", "truncated", "seconds", "dollars"}
        assert row["groups"].keys() == {"boats", "rails"}
        assert ("test" in row) == (row["name"] in {"by length", "identity"})
    test = result["systems"][1]["test"]
    assert test.keys() == {"difference", "p", "p_holm"}
    assert test["difference"] == pytest.approx(experiment["by length"].mean() - experiment["words"].mean())


def test_groups_are_averaged_over_their_queries(experiment):
    values = experiment["by length"].values["nDCG@10"]
    groups = experiment["by length"].by_group(DATA.groups)
    assert groups == pytest.approx({"boats": (values["q1"] + values["q3"]) / 2, "rails": values["q2"]})


def test_scores_that_a_reranker_left_tied_stay_in_their_order():
    class Flat(ByLength):
        def _score(self, query, passages, usage):
            return [0.0] * len(passages)

    experiment = compare(DATA, FOUND, [Flat("flat")], depth=3)
    assert experiment["flat"].values == experiment["first stage"].values


def test_an_unknown_baseline_two_systems_of_one_name_and_a_depth_below_one_are_refused():
    with pytest.raises(InputError, match="baseline 'best' is not among the systems: words, by length"):
        compare(DATA, FOUND, [ByLength()], first_stage="words", baseline="best")
    with pytest.raises(InputError, match="two systems are called 'by length'"):
        compare(DATA, FOUND, [ByLength(), ByLength()])
    with pytest.raises(InputError, match="two systems are called 'words'"):
        compare(DATA, FOUND, [ByLength("words")], first_stage="words")
    with pytest.raises(InputError, match="two systems are called 'oracle'"):
        compare(DATA, FOUND, [ByLength("oracle")])
    with pytest.raises(InputError, match="depth is 0: give at least 1"):
        compare(DATA, FOUND, [ByLength()], depth=0)


def test_a_system_that_is_not_there_is_asked_for_in_vain(experiment):
    with pytest.raises(KeyError, match="systems are words, by length, identity, oracle"):
        experiment["bm25"]


def test_a_run_becomes_candidates_best_first_and_cut(tmp_path):
    (tmp_path / "run").write_text("q1 Q0 a 2 1.0 t\nq1 Q0 b 1 2.0 t\nq1 Q0 c 3 0.5 t\n")
    found = candidates_of_run(read_run(tmp_path / "run"), DATA, depth=2)
    assert [(c.pid, c.rank, c.score) for c in found["q1"]] == [("b", 1, 2.0), ("a", 2, 1.0)]
    assert (found["q2"], found["q3"]) == ([], [])


def test_a_run_from_memory_needs_no_order():
    found = candidates_of_run({"q1": {"a": 1.0, "b": 2.0, "c": 1.0}}, DATA, depth=2)
    assert [c.pid for c in found["q1"]] == ["b", "a"]


def test_a_run_with_an_unjudged_query_or_an_unknown_passage_is_refused():
    with pytest.raises(DataError, match="run has query 'unjudged', which has no qrels in small"):
        candidates_of_run({"q1": {"a": 1.0}, "unjudged": {"a": 1.0}}, DATA, 10)
    with pytest.raises(DataError, match="lists passage 'zz' for query 'q2', which small lacks"):
        candidates_of_run({"q2": {"a": 1.0, "zz": 0.5}}, DATA, 10)


def test_a_first_stage_of_the_package_fits_in():
    index = BM25(list(PASSAGES.values()))
    found = {qid: index.search(text, 3) for qid, text in DATA.judged().items()}
    experiment = compare(DATA, found, [ByLength(sign=-1)], first_stage=index.name, depth=3)
    assert experiment["oracle"].mean() >= experiment["bm25"].mean() > 0
