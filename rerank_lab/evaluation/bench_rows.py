"""The facts of a benchmark, system by system.

systems      a row each: `name`, `first_stage`, `reranker` (None: the first stage alone), `measures` with 95 %
             intervals, `values` (nDCG@10 by qid), `unjudged` (share of the top ten), `cost`, `against_best` and
             `against_baseline` (not of those themselves), and where it reranks `against_first`, `against_cheaper`,
             `types`, `truncation`, `calibration`, `examples`
oracles      by first stage: the same candidates in the best order
depths       by first stage: nDCG@10 of rerankers and oracle, and recall, at each depth
fronts       the Pareto fronts of nDCG@10 against seconds and against dollars
recommended  the name of the best system that is proven
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerank_lab.collections.collection import Collection
from rerank_lab.core import Reranker, Usage
from rerank_lab.evaluation.bench_details import FirstStage, calibration, depths, examples, truncation
from rerank_lab.evaluation.costs import billed_as, costs, latency, with_search
from rerank_lab.evaluation.experiment import Experiment
from rerank_lab.evaluation.facts import cheaper, differences_by_type, paired, pareto, quality, query_types, recommended
from rerank_lab.evaluation.metrics import QUALITY
from rerank_lab.evaluation.significance import holm, randomisation_test
from rerank_lab.evaluation.traces import unjudged_share

__all__ = ["Made", "facts"]


@dataclass(frozen=True)
class Made:
    """What was measured over one first stage.

    Attributes:
        stage: the first stage.
        experiment: its own order, the rerankers, the oracle.
        rerankers: by the system's name.
        usages: by the system's name and qid, of what was computed.
    """

    stage: FirstStage
    experiment: Experiment
    rerankers: Mapping[str, Reranker]
    usages: Mapping[str, Mapping[str, Usage]]


def facts(collection: Collection, made: Sequence[Made], *, baseline: str | None, prices: Mapping[str, dict]) -> dict:
    """Everything that is told about the systems, as plain data; a baseline that was left out is none."""
    types = query_types(collection.queries, collection.groups)
    labelled = collection.groups.keys() & collection.queries.keys()
    rows = [row for one in made for row in _rows(collection, one, types, prices)]
    _borrow_latency(rows)
    for row in rows:
        if row["reranker"] is not None:
            row["cost"] = with_search(row["cost"], prices)
    baseline = baseline if baseline in [row["name"] for row in rows] else None
    _compare(rows, baseline)
    best = recommended(rows)
    chosen = next(row for row in rows if row["name"] == best)
    for row in rows:
        if row is not chosen:
            row["against_best"] = _paired(row, chosen)
    fronts = {
        unit: pareto({r["name"]: (r["cost"][unit], quality(r)) for r in rows if r["cost"][unit] is not None})
        for unit in ("seconds", "dollars")
    }
    return {
        "baseline": baseline,
        "recommended": best,
        "types_by": "the collection's groups" if labelled else "length and form of the query",
        "systems": rows,
        "oracles": {one.stage.name: one.experiment["oracle"].summary() for one in made},
        "depths": {one.stage.name: depths(collection, one.stage, one.experiment, one.rerankers) for one in made},
        "fronts": fronts,
    }


def _rows(collection: Collection, made: Made, types: Mapping, prices: Mapping[str, dict]) -> list[dict]:
    stage, experiment = made.stage, made.experiment
    first = experiment.systems[0]
    search = latency([stage.seconds[qid] for qid in collection.queries]) if stage.seconds else None
    hour = prices.get("machine", {}).get("hour", 0.0)
    rows = []
    for system in experiment.systems[:-1]:
        reranker = made.rerankers.get(system.name)
        row = {
            "name": system.name,
            "first_stage": stage.name,
            "reranker": reranker and reranker.name,
            "measures": system.summary(),
            "values": dict(system.values[QUALITY]),
            "unjudged": unjudged_share(system.rankings, collection.qrels),
        }
        if reranker is None:
            seconds = search and search["p50"]
            priced = search["mean"] * hour / 3600 if search else None if hour else 0.0
            row["cost"] = {"search": search, "rerank": None, "seconds": seconds, "dollars": priced}
        else:
            used = [usage for qid, usage in made.usages[system.name].items() if qid in collection.queries]
            row["cost"] = {"search": search, **costs(used, len(collection.queries), billed_as(reranker), prices)}
            row["against_first"] = {**_paired(row, rows[0]), "p": system.p}
            row["types"] = differences_by_type(system.values[QUALITY], first.values[QUALITY], types)
            row["truncation"] = truncation(collection, stage, reranker)
            row["calibration"] = calibration(collection, system, reranker)
            row["examples"] = examples(collection, system, first)
        rows.append(row)
    return rows


def _values(a: Mapping, b: Mapping) -> tuple[list[float], list[float]]:
    return list(a["values"].values()), [b["values"][qid] for qid in a["values"]]


def _paired(a: Mapping, b: Mapping) -> dict:
    return {"system": b["name"], **paired(*_values(a, b))}


def _borrow_latency(rows: list[dict]) -> None:
    """A reranker that was timed over too few queries of one first stage, for the cache knew the pairs from another,
    takes the time that it took there: its work depends on how many passages it reads, not on who found them."""
    for row in rows:
        cost = row["cost"]
        others = [r for r in rows if r["reranker"] == row["reranker"] and r is not row and r["cost"]["rerank"]]
        if not others:
            continue
        best = max(others, key=lambda r: r["cost"]["rerank"]["queries"])
        if cost["rerank"] is None or cost["rerank"]["queries"] < min(10, best["cost"]["rerank"]["queries"]):
            lent = {key: value for key, value in best["cost"].items() if key not in {"search", "not_timed"}}
            cost |= lent | {"borrowed_from": best["name"]}


def _compare(rows: list[dict], baseline: str | None) -> None:
    """Tests against the first stage, the best cheaper system and the baseline, corrected together by Holm's rule."""
    tests = []
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        if row["reranker"] is not None:
            tests.append(row["against_first"])
            first = by_name[row["first_stage"]]
            below = [first, *(r for r in rows if r is not row and cheaper(r["cost"], row["cost"]))]
            row["against_cheaper"] = _tested(row, max(below, key=quality), tests)
        if baseline is not None and row["name"] != baseline:
            row["against_baseline"] = _tested(row, by_name[baseline], tests)
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected


def _tested(row: dict, other: dict, tests: list[dict]) -> dict:
    """The test of a row against another, which is one test for however many questions it answers."""
    for had in (row.get("against_first"), row.get("against_cheaper")):
        if had and had["system"] == other["name"]:
            return had
    tests.append(_paired(row, other) | {"p": randomisation_test(*_values(row, other))})
    return tests[-1]
