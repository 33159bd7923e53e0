"""Reciprocal rank fusion: properties of the points, and a first stage made of two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab import BM25, Fusion, Passage, candidates_from, rrf

pids = st.lists(st.sampled_from("abcdefgh"), unique=True)
rankings = st.lists(pids, max_size=4)


@given(rankings=rankings, k=st.integers(1, 100))
def test_points_equal_the_definition_and_come_best_first(rankings, k):
    points = rrf(rankings, k)
    for pid in {p for ranking in rankings for p in ranking}:
        assert points[pid] == pytest.approx(sum(1 / (k + r.index(pid) + 1) for r in rankings if pid in r))
    assert points.keys() == {p for ranking in rankings for p in ranking}
    assert list(points.values()) == sorted(points.values(), reverse=True)


@given(ranking=pids, times=st.integers(1, 4))
def test_rankings_that_agree_are_left_as_they_are(ranking, times):
    assert list(rrf([ranking] * times)) == ranking


@given(rankings=rankings)
def test_the_order_of_the_systems_does_not_change_the_points(rankings):
    assert rrf(rankings) == pytest.approx(rrf(rankings[::-1]))


@given(rankings=st.lists(pids.filter(bool), min_size=1, max_size=4))
def test_a_passage_that_is_first_everywhere_is_first(rankings):
    champion = [["z", *r] for r in rankings]
    assert next(iter(rrf(champion))) == "z"


@given(rankings=rankings)
def test_moving_up_one_place_never_loses_points(rankings):
    before = rrf(rankings)
    for ranking in rankings:
        for place in range(1, len(ranking)):
            better = ranking.copy()
            better[place - 1 : place + 1] = better[place - 1 : place + 1][::-1]
            after = rrf([better if r is ranking else r for r in rankings])
            assert after[ranking[place]] > before[ranking[place]]


class Fixed:
    """A stage that always finds the same."""

    def __init__(self, order):
        self.order = order

    def search(self, query, k=100):
        return candidates_from([Passage(p, f"text of {p}") for p in self.order][:k])


def test_a_fused_stage_gives_the_k_best_with_their_passages_and_points():
    found = Fusion([Fixed("abcd"), Fixed("dbea")]).search("anything", 3)
    assert [c.pid for c in found] == ["a", "d", "b"] or [c.pid for c in found] == ["b", "a", "d"]
    points = rrf([["a", "b", "c"], ["d", "b", "e"]])
    assert [(c.pid, c.score) for c in found] == list(points.items())[:3]
    assert [c.text for c in found] == [f"text of {c.pid}" for c in found]
    assert [c.rank for c in found] == [1, 2, 3]


def test_one_stage_that_finds_nothing_leaves_the_others():
    passages = [Passage("x", "the ferry"), Passage("y", "the tram"), Passage("z", "the bus")]
    found = Fusion([BM25(passages), Fixed("")]).search("ferry")
    assert [c.pid for c in found] == ["x"]
