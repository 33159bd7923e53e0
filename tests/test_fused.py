"""A fusion of rerankers: standardised scores, summed by weight."""

from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab import Fused, candidates_from
from rerank_lab.core import InputError, PointwiseReranker
from rerank_lab.rerankers.fused import standardised


class Dice(PointwiseReranker):
    """Gives each passage the score that it was made with."""

    def __init__(self, scores, name="dice"):
        self.scores, self.name = scores, name

    def _score(self, query, passages, usage):
        usage.calls += 1
        return [self.scores[p.text] for p in passages]


TEXTS = ["a", "b", "c", "d"]
FIRST = Dice({"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2})
SECOND = Dice({"a": -300.0, "b": 500.0, "c": 400.0, "d": 0.0})


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_standardised_scores_have_mean_nought_and_deviation_one_and_keep_their_order(scores):
    made = standardised(scores)
    if pstdev(scores) > 1e-6:
        assert fmean(made) == pytest.approx(0, abs=1e-6)
        assert pstdev(made) == pytest.approx(1)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    assert all(made[a] <= made[b] for a, b in pairwise(order))


@pytest.mark.parametrize("weights", [None, [2.0, 0.5], [1.0, 0.0]])
def test_a_score_is_the_weighted_sum_of_standardised_scores(weights):
    ranking = Fused([FIRST, SECOND], weights=weights).rerank("q", candidates_from(TEXTS))
    first, second = weights or [1.0, 1.0]
    columns = []
    for dice in (FIRST, SECOND):
        scores = [dice.scores[t] for t in TEXTS]
        columns.append([(s - fmean(scores)) / pstdev(scores) for s in scores])
    expected = {t: first * x + second * y for t, x, y in zip(TEXTS, *columns, strict=True)}
    assert {c.text: c.score for c in ranking} == pytest.approx(expected)
    assert [c.text for c in ranking] == sorted(TEXTS, key=expected.get, reverse=True)


def test_the_scale_and_level_of_a_rerankers_scores_do_not_matter():
    other = Dice({t: 1000 * s - 7 for t, s in FIRST.scores.items()})
    rankings = [Fused([dice, SECOND]).rerank("q", candidates_from(TEXTS)) for dice in (FIRST, other)]
    assert rankings[0].to_run() == pytest.approx(rankings[1].to_run())


def test_one_reranker_alone_orders_as_by_itself_and_one_that_knows_no_difference_has_no_say():
    flat = Dice(dict.fromkeys(TEXTS, 5.0))
    alone = [c.text for c in FIRST.rerank("q", candidates_from(TEXTS))]
    for rerankers in ([FIRST], [FIRST, flat], [flat, FIRST]):
        assert [c.text for c in Fused(rerankers).rerank("q", candidates_from(TEXTS))] == alone
    assert [c.text for c in Fused([flat]).rerank("q", candidates_from(TEXTS))] == TEXTS


def test_a_passage_is_cut_where_any_reranker_that_knows_cuts_it():
    class Short(Dice):
        def cuts(self, query, passages):
            return [p.text == "c" for p in passages]

    class Shorter(Dice):
        def cuts(self, query, passages):
            return [p.text in "bc" for p in passages]

    passages = [c.passage for c in candidates_from(TEXTS)]
    assert Fused([FIRST, SECOND]).cuts("q", passages) is None
    assert Fused([FIRST, Short({}), Shorter({})]).cuts("q", passages) == [False, True, True, False]


def test_no_reranker_or_not_one_weight_for_each_is_refused():
    with pytest.raises(InputError, match="a fusion of no rerankers was asked for"):
        Fused([])
    with pytest.raises(InputError, match="2 rerankers but 1 weights"):
        Fused([FIRST, SECOND], weights=[1.0])
