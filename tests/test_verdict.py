"""The verdict: no sentence says more than the figures, whatever they are."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab.evaluation.facts import FEWEST, cheaper, is_proven, recommended
from rerank_lab.evaluation.verdict import verdict
from rerank_lab.evaluation.wording import interval, points, signed

UNIT = st.floats(0, 1)


@st.composite
def differences(draw):
    low, value, high = sorted(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    needed = draw(st.none() | st.integers(2, 10**6))
    return {"difference": value, "low": low, "high": high, "needed": needed, "wins": 1, "losses": 1, "ties": 0}


@st.composite
def types(draw):
    rows = []
    for label in draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4)):
        row = draw(differences()) | {"type": label, "queries": draw(st.integers(1, 40))}
        sign = "gains" if row["low"] > 0 else "loses" if row["high"] < 0 else None
        rows.append(row | {"proven": sign if row["queries"] >= FEWEST else None})
    return rows


@st.composite
def results(draw):
    """Figures as a benchmark gives them, of one or two first stages and up to three rerankers over each."""
    stages = draw(st.sampled_from([["bm25"], ["bm25", "fusion"]]))
    rows, curves = [], {}
    for stage in stages:
        curves[stage] = {"grid": [1, 5, 50], "systems": {}}
        for reranker in [None, *(f"r{i}" for i in range(draw(st.integers(1, 3))))]:
            name = stage if reranker is None else f"{stage} → {reranker}"
            value = draw(UNIT)
            took = draw(st.none() | st.floats(0.001, 9))
            cost = {"seconds": took, "dollars": draw(st.none() | st.sampled_from([0.0, 0.001, 0.2])), "replayed": 0}
            cost["rerank"] = took and {"p50": took}
            row = {"name": name, "first_stage": stage, "reranker": reranker, "unjudged": draw(UNIT), "cost": cost}
            row["measures"] = {"nDCG@10": {"value": value}}
            row["against_best"] = draw(differences())
            if reranker:
                test = draw(differences()) | {"p_holm": draw(st.sampled_from([0.001, 0.04, 0.3]))}
                cut = st.fixed_dictionaries({"relevant": st.just(9), "relevant_cut": st.integers(0, 9)})
                row |= {"against_first": test, "types": draw(types()), "truncation": draw(st.none() | cut)}
                if draw(st.booleans()):
                    curves[stage]["systems"][name] = [draw(UNIT), draw(UNIT), value]
            rows.append(row)
    oracle = {"nDCG@10": {"value": 1.0}, "R@50": {"value": draw(UNIT)}}
    best = recommended([{**row, "mean": row["measures"]["nDCG@10"]["value"]} for row in rows])
    return {
        "systems": rows,
        "recommended": best,
        "queries": draw(st.integers(1, 500)),
        "depth": 50,
        "oracles": dict.fromkeys(stages, oracle),
        "depths": curves,
    }


def best_of(result):
    return next(row for row in result["systems"] if row["name"] == result["recommended"])


def texts(result, kind):
    return [point["text"] for point in verdict(result)["points"] if point["kind"] == kind]


@settings(max_examples=40)
@given(results())
def test_reranking_is_advised_only_where_it_is_proven_and_its_figures_are_the_right_ones(result):
    told, best = verdict(result), best_of(result)
    advised = told["headline"].startswith("Rerank ")
    assert advised == (best["reranker"] is not None)
    if advised:
        assert is_proven(best["against_first"])
        assert f"the top 50 of {best['first_stage']} with {best['reranker']}" in told["headline"]
        assert told["because"].startswith(signed(best["against_first"]["difference"]))
        assert interval(best["against_first"]) in told["because"]
    else:
        proven = [row for row in result["systems"] if row["reranker"] and is_proven(row["against_first"])]
        value = best["measures"]["nDCG@10"]["value"]
        assert all(row["measures"]["nDCG@10"]["value"] <= value for row in proven)


@settings(max_examples=40)
@given(results())
def test_a_type_is_advised_against_only_where_it_is_proven_to_lose(result):
    losing = {row["type"] for row in best_of(result).get("types", []) if row["proven"] == "loses"}
    said = [re.search("“(.*)”", text)[1] for text in texts(result, "types") if text.startswith("Do not rerank queries")]
    assert sorted(said) == sorted(losing)


@settings(max_examples=40)
@given(results())
def test_what_is_called_as_good_is_cheaper_and_within_the_noise(result):
    best = best_of(result)
    rows = {row["name"]: row for row in result["systems"]}
    for text in texts(result, "as_good"):
        row = rows[text.partition(" is within")[0]]
        assert row["against_best"]["low"] <= 0 <= row["against_best"]["high"]
        assert cheaper(row["cost"], best["cost"])


@settings(max_examples=40)
@given(results())
def test_what_is_called_no_better_helps_too_and_costs_more(result):
    best = best_of(result)
    rows = {row["name"]: row for row in result["systems"]}
    told = [text.partition(" costs more")[0] for text in texts(result, "no_better")]
    dearer = [n for n, row in rows.items() if row["reranker"] and cheaper(best["cost"], row["cost"])]
    able = [n for n in dearer if is_proven(rows[n]["against_first"]) and rows[n]["against_best"]["low"] <= 0]
    assert told == (able if best["reranker"] else [])


@settings(max_examples=40)
@given(results())
def test_every_reranker_is_recommended_proven_harmful_or_called_open(result):
    told = verdict(result)
    harmful = {text.partition(" hurts")[0] for text in texts(result, "harmful")}
    undecided = {text.partition(" is not proven")[0] for text in texts(result, "open")}
    assert not harmful & undecided
    for row in result["systems"]:
        if row["reranker"]:
            gain = row["against_first"]
            assert (row["name"] in harmful) == (gain["high"] < 0 and gain["p_holm"] < 0.05)
            in_because = row["first_stage"] == result["recommended"] and row["reranker"] in told["because"]
            assert is_proven(gain) or row["name"] in harmful | undecided or in_because


@settings(max_examples=40)
@given(results())
def test_sentences_are_whole_and_say_nothing_that_is_no_figure(result):
    told = verdict(result)
    for text in [told["headline"], told["because"], *(point["text"] for point in told["points"])]:
        assert text.endswith(".")
        assert not re.search(r"\b(nan|inf|None)\b", text), text


@settings(max_examples=40)
@given(results())
def test_what_was_not_timed_is_named(result):
    (*said,) = texts(result, "untimed")
    for row in result["systems"]:
        if row["reranker"] and row["cost"]["rerank"] is None:
            assert any(row["name"] in text for text in said)


def a_result(**best):
    """One first stage and one reranker that is proven, with what the test says otherwise."""
    cost = {"seconds": 0.3, "dollars": 0.0, "rerank": {"p50": 0.31}, "replayed": 0}
    gain = {
        "difference": 0.07,
        "low": 0.03,
        "high": 0.11,
        "p_holm": 0.01,
        "needed": 60,
        "wins": 9,
        "losses": 1,
        "ties": 0,
    }
    first = {
        "name": "bm25",
        "first_stage": "bm25",
        "reranker": None,
        "unjudged": 0.0,
        "cost": cost | {"seconds": 0.001},
    }
    row = first | {"name": "x", "reranker": "x", "cost": cost, "against_first": gain, "types": [], "truncation": None}
    for value, system in ((0.30, first), (0.37, row)):
        system["measures"] = {"nDCG@10": {"value": value}}
        system["against_best"] = {"difference": -0.07, "low": -0.11, "high": -0.03, "needed": 60}
    row |= best
    return {
        "systems": [first, row],
        "recommended": "x" if is_proven(row["against_first"]) else "bm25",
        "queries": 144,
        "depth": 50,
        "oracles": {"bm25": {"nDCG@10": {"value": 0.58}, "R@50": {"value": 0.8}}},
        "depths": {"bm25": {"grid": [1, 10, 20, 50], "systems": {"x": [0.30, 0.33, 0.369, 0.37]}}},
    }


def test_the_verdict_reads_as_one_would_say_it():
    told = verdict(a_result())
    assert told["headline"] == "Rerank the top 50 of bm25 with x."
    assert told["because"] == "+.070 nDCG@10 [+.030, +.110] over bm25 alone, for 310 ms a query."
    assert texts(a_result(), "depth") == ["The first 20 candidates give 99 % of that gain already."]
    assert texts(a_result(), "ceiling") == [
        "The best order of the same candidates would reach .580; x takes 25 % of what there is to gain. The candidates "
        "hold 80 % of the relevant passages; the rest is beyond any reranker."
    ]


def test_a_price_is_told_beside_the_time():
    cost = {"seconds": 0.3, "dollars": 0.002, "rerank": {"p50": 0.31}, "replayed": 0}
    assert verdict(a_result(cost=cost))["because"].endswith("for 310 ms a query and $2.00 for 1,000 queries.")


def test_a_gain_that_may_be_noise_is_told_with_the_queries_that_would_decide():
    gain = {"difference": 0.01, "low": -0.01, "high": 0.03, "p_holm": 0.4, "needed": 900}
    told = verdict(a_result(against_first=gain))
    assert told["headline"] == "Do not rerank."
    assert told["because"] == (
        "Nothing is proven better than bm25 on 144 queries. The closest is x: +.010 nDCG@10 [−.010, +.030]; about 900 "
        "queries would decide at this spread."
    )


def test_a_type_that_loses_is_named_and_one_that_may_is_not():
    row = {"difference": -0.08, "low": -0.12, "high": -0.02, "needed": 15, "queries": 20, "type": "negation"}
    open_ = row | {"high": 0.02, "type": "number", "needed": 70}
    told = texts(a_result(types=[row | {"proven": "loses"}, open_ | {"proven": None}]), "types")
    assert told == ["Do not rerank queries of type “negation”: −.080 [−.120, −.020] over 20 queries."]
    assert texts(a_result(types=[open_ | {"proven": None}]), "types") == [
        "No type of query is proven to lose; 0 of 1 are proven to gain. Weakest is “number”, −.080 [−.120, +.020] over "
        "20 queries; about 70 of its kind would decide at this spread."
    ]


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([0.30, 0.40, 0.39, 0.37], "Fewer candidates do as well: .400 at 10, .370 at 50."),
        ([0.30, 0.32, 0.34, 0.37], "Depth pays up to the end: .340 at 20, .370 at 50."),
    ],
)
def test_what_depth_is_worth_is_told(curve, said):
    result = a_result()
    result["depths"]["bm25"]["systems"]["x"] = curve
    assert texts(result, "depth") == [said]
    assert points(curve[-1]) in said
