"""Cascades: who reads what, what it costs, when it ends early, and how a margin is fitted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab.core import Identity, InputError, PointwiseReranker, Usage, candidates_from
from rerank_lab.rerankers.cascade import Cascade, Stage, fit_margin, gap


class ByNumber(PointwiseReranker):
    """Scores `7 boats` by 7 x weight, and keeps what it was shown."""

    def __init__(self, name="by-number", weight=1.0, dollars=0.0):
        self.name, self.weight, self.dollars, self.shown = name, weight, dollars, []

    def _score(self, query, passages, usage):
        self.shown.append([p.text for p in passages])
        usage.pairs += len(passages)
        usage.calls += 1
        usage.dollars += self.dollars * len(passages)
        return [self.weight * int(p.text.split()[0]) for p in passages]


def numbered(numbers):
    return candidates_from([f"{n} boats" for n in numbers])


def texts(ranking):
    return [int(c.text.split()[0]) for c in ranking]


def test_each_stage_reads_the_best_of_the_one_before_and_the_rest_stays_behind():
    cheap, dear = ByNumber("cheap"), ByNumber("dear", weight=-1)
    ranking = Cascade([Stage(cheap, 5), Stage(dear, 2)]).rerank("boats", numbered([3, 5, 1, 4, 2, 9, 8]))
    assert cheap.shown == [["3 boats", "5 boats", "1 boats", "4 boats", "2 boats"]]
    assert dear.shown == [["5 boats", "4 boats"]]
    assert texts(ranking) == [4, 5, 3, 2, 1, 9, 8]  # dear's two, cheap's other three, never read
    assert [c.first_rank for c in ranking] == [4, 2, 1, 5, 3, 6, 7]
    assert [c.score for c in ranking] == [-4, -5, -6, -7, -8, -9, -10]


def test_the_usage_is_the_sum_over_stages():
    stages = [Stage(ByNumber("cheap", dollars=0.25), 4), Stage(ByNumber("dear", dollars=2), 2)]
    usage = Cascade(stages).rerank("boats", numbered([1, 2, 3, 4, 5])).usage
    assert (usage.pairs, usage.calls, usage.dollars) == (6, 2, 5.0)
    assert usage.seconds > 0
    trace = Cascade(stages).trace("boats", numbered([1, 2, 3, 4, 5]))
    assert [r.usage.pairs for r in trace] == [4, 2]
    assert sum((r.usage for r in trace), Usage()).dollars == usage.dollars


def test_trace_shows_all_candidates_after_each_stage():
    rankings = Cascade([Stage(ByNumber(), 3), Stage(ByNumber(weight=-1), 2)]).trace("boats", numbered([1, 2, 3, 4]))
    assert [texts(r) for r in rankings] == [[3, 2, 1, 4], [2, 3, 1, 4]]
    assert all([c.rank for c in r] == [1, 2, 3, 4] for r in rankings)
    assert [[c.first_rank for c in r] for r in rankings] == [[3, 2, 1, 4], [2, 3, 1, 4]]


@pytest.mark.parametrize(("numbers", "asked"), [([1, 5, 2], 0), ([1, 5, 3], 1), ([5, 5, 1], 1), ([4], 0)])
def test_a_stage_that_settles_the_first_place_spares_the_next(numbers, asked):
    dear = ByNumber(weight=-1)
    cascade = Cascade([Stage(ByNumber(), 3, margin=2), Stage(dear, 2)])
    ranking = cascade.rerank("boats", numbered(numbers))
    assert len(dear.shown) == asked
    if not asked:
        assert texts(ranking) == sorted(numbers, reverse=True)


def test_with_k_the_gap_is_looked_for_behind_place_k():
    dear = ByNumber()
    cascade = Cascade([Stage(ByNumber(), 4, margin=2), Stage(dear, 3)], k=2)
    cascade.rerank("boats", numbered([9, 5, 4, 3]))
    assert len(dear.shown) == 1
    cascade.rerank("boats", numbered([6, 5, 2, 1]))
    assert len(dear.shown) == 1


def test_identity_lets_the_first_stages_own_scores_end_the_cascade():
    dear = ByNumber(weight=-1)
    cascade = Cascade([Stage(Identity(), 10, margin=0.5), Stage(dear, 10)])
    assert texts(cascade.rerank("boats", candidates_from(["1 boat", "2 boats"], [3.0, 2.0]))) == [1, 2]
    assert dear.shown == []


class Short(ByNumber):
    """Reads so many characters of a passage."""

    def __init__(self, characters):
        super().__init__()
        self.characters = characters

    def cuts(self, query, passages):
        return [len(p.text) > self.characters for p in passages]


def test_a_passage_is_cut_where_any_stage_that_knows_cuts_it():
    passages = [c.passage for c in numbered([1, 10, 100])]  # of 7, 8 and 9 characters
    cascade = Cascade([Stage(Short(8), 5), Stage(ByNumber(), 4), Stage(Short(7), 3)])
    assert cascade.cuts("boats", passages) == [False, True, True]
    assert Cascade([Stage(ByNumber(), 5)]).cuts("boats", passages) is None


def test_a_cascade_is_called_after_its_stages_or_as_one_likes():
    stages = [Stage(ByNumber("cheap"), 50), Stage(ByNumber("dear"), 10)]
    assert Cascade(stages).name == "cheap:50+dear:10"
    assert Cascade(stages, name="both").name == "both"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(ByNumber(), 0), "depth of by-number is 0: give at least 1"),
        (lambda: Stage(ByNumber(), 5, margin=-1), "margin of by-number is -1"),
        (lambda: Stage(ByNumber(), 5, margin=math.nan), "margin of by-number is nan"),
        (lambda: Cascade([]), "0 stages and k 1"),
        (lambda: Cascade([Stage(ByNumber(), 5)], k=0), "1 stages and k 0"),
        (lambda: Cascade([Stage(ByNumber(), 5, margin=1)]), "the last stage, by-number, has a margin"),
        (lambda: Cascade([Stage(ByNumber(), 2, margin=1), Stage(ByNumber(), 1)], k=2), "no gap behind place 2"),
        (lambda: fit_margin([], [], 0.1), "0 gaps and 0 losses"),
        (lambda: fit_margin([1.0], [1.0, 2.0], 0.1), "1 gaps and 2 losses"),
    ],
)
def test_what_cannot_work_is_refused_with_the_value(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_equal_scores_leave_no_gap_even_where_they_are_infinite():
    assert gap(candidates_from(["a", "b"], [-math.inf, -math.inf])) == 0.0
    assert gap(candidates_from(["a", "b"], [1.0, -math.inf])) == math.inf
    assert gap(candidates_from(["a", "b"], [1.0, 0.5]), k=2) == math.inf


held_out = st.lists(st.tuples(st.integers(0, 9), st.integers(-4, 4)), min_size=1, max_size=12)


@given(held_out, st.integers(0, 2))
def test_no_margin_from_the_fitted_one_upwards_costs_more_than_the_tolerance(queries, tolerance):
    gaps, losses = zip(*queries, strict=True)
    fitted = fit_margin(gaps, losses, tolerance)
    for margin in (fitted, *(g for g in gaps if g >= fitted)):
        assert sum(loss for g, loss in queries if g > margin) / len(queries) <= tolerance + 1e-12
    assert fitted == math.inf or any(g > fitted for g in gaps)


def test_queries_of_one_gap_leave_together():
    assert fit_margin([0.5, 0.3, 0.3], [0.0, -0.2, 0.3], tolerance=0.01) == 0.3
    assert fit_margin([0.5, 0.3, 0.3], [0.0, -0.2, 0.2], tolerance=0.01) == 0.0
