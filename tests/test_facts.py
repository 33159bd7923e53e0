"""What a benchmark decides by, against its definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab.core import Ranking, candidates_from
from rerank_lab.evaluation.facts import (
    FEWEST,
    cheaper,
    differences_by_type,
    paired,
    pareto,
    queries_needed,
    query_types,
)
from rerank_lab.evaluation.traces import moved
from rerank_lab.evaluation.wording import seconds

POINTS = st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(POINTS)
def test_the_front_is_what_no_other_beats_in_both(points):
    front = pareto(points)

    def beaten(name):
        cost, quality = points[name]
        return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points.values())

    assert all(not beaten(name) for name in front)
    kept = {points[name] for name in front}
    assert kept == {points[name] for name in points if not beaten(name)}  # of equals, one stands for all
    assert [points[name] for name in front] == sorted(kept)


COST = st.fixed_dictionaries({"seconds": st.none() | st.integers(0, 3), "dollars": st.none() | st.integers(0, 3)})


@settings(max_examples=60)
@given(COST, COST)
def test_never_are_two_systems_each_cheaper_than_the_other(a, b):
    assert not (cheaper(a, b) and cheaper(b, a))
    assert not cheaper(a, a)


def test_so_many_queries_decide_in_four_of_five_experiments():
    random = np.random.default_rng(0)
    pilot = random.normal(0.05, 0.2, 4000)
    n = queries_needed(pilot)
    assert n == pytest.approx((2.802 * 0.2 / 0.05) ** 2, rel=0.15)
    draws = random.normal(pilot.mean(), pilot.std(), (3000, n))
    decided = np.abs(draws.mean(axis=1)) > 1.96 * draws.std(axis=1, ddof=1) / n**0.5
    assert decided.mean() == pytest.approx(0.8, abs=0.04)


def test_wins_losses_and_ties_are_counted_and_the_interval_holds_the_difference():
    random = np.random.default_rng(1)
    a, b = random.random(40), random.random(40)
    b[:5] = a[:5]
    row = paired(a, b)
    assert (row["wins"], row["losses"], row["ties"]) == ((a > b).sum(), (a < b).sum(), 5)
    assert row["low"] < row["difference"] < row["high"]
    assert paired(b, a)["difference"] == -row["difference"]


def test_types_are_told_by_wider_intervals_and_only_with_enough_queries():
    random = np.random.default_rng(2)
    a = {f"q{i}": float(v) for i, v in enumerate(random.normal(0.3, 0.1, 40))}
    b = dict.fromkeys(a, 0.0)
    qids = list(a)
    types = {"many": qids[:25], "few": qids[25 : 25 + FEWEST - 1], "rest": qids[34:]}
    rows = {row["type"]: row for row in differences_by_type(a, b, types)}
    assert {label: row["proven"] for label, row in rows.items()} == {"many": "gains", "few": None, "rest": None}
    alone = paired([a[q] for q in qids[:25]], [0.0] * 25)
    assert rows["many"]["low"] < alone["low"] < alone["high"] < rows["many"]["high"]
    turned = differences_by_type(b, a, {"many": qids[:25]})
    assert turned[0]["proven"] == "loses"


@settings(max_examples=40)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_every_query_has_one_length_and_one_form(texts):
    queries = {str(i): text for i, text in enumerate(texts)}
    types = query_types(queries, {})
    for names in (("up to 3 words", "4 to 7 words", "8 words or more"), ("questions", "keywords")):
        assert sorted(q for name in names for q in types.get(name, ())) == sorted(queries)


def test_labels_of_a_collection_go_before_length_and_form():
    queries = {"a": "ferry", "b": "when?", "c": "tram"}
    assert query_types(queries, {"b": "x", "a": "y"}) == {"x": ["b"], "y": ["a"]}


@pytest.mark.parametrize(
    ("text", "kind"),
    [("When does it leave", "questions"), ("ferry at nine?", "questions"), ("whichever ferry", "keywords")],
)
def test_a_question_is_known_by_its_word_or_its_mark(text, kind):
    assert kind in query_types({"q": text}, {})


def test_moves_are_those_that_changed_the_measure_and_who_stands_first_undeserved():
    before = candidates_from(["a", "b", "c", "d"])
    places = [3, 0, 2, 1]
    after = [before[i] for i in places]
    from dataclasses import replace

    ranking = Ranking("q", tuple(replace(c, rank=i) for i, c in enumerate(after, start=1)))
    told = moved(ranking, {"0": 3, "1": 1, "3": 0})
    assert [(m["pid"], m["grade"], m["before"], m["after"]) for m in told] == [
        ("0", 3, 1, 2),
        ("1", 1, 2, 4),
        ("3", 0, 4, 1),
    ]
    assert moved(Ranking("q", ()), {}) == []


def test_a_long_passage_is_told_by_its_beginning():
    text = "word " * 200
    (told,) = moved(Ranking("q", tuple(candidates_from([text]))), {})
    assert told["text"].endswith("word …") and len(told["text"]) <= 242


@settings(max_examples=60)
@given(st.floats(1e-6, 1e5), st.floats(1.2, 50))
def test_a_longer_time_never_reads_shorter(value, factor):
    def read(text):
        number, unit = text.replace(",", "").split()
        return float(number) * {"ms": 0.001, "s": 1.0}[unit]

    assert read(seconds(value)) <= read(seconds(value * factor))
    assert read(seconds(value)) == pytest.approx(value, rel=0.06, abs=1e-4)
