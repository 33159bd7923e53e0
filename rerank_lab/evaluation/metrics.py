"""Ranking measures, computed by ir_measures (trec_eval underneath), so that they mean what papers mean by them.

MacAvaney, Macdonald and Ounis, ECIR 2022. https://ir-measur.es
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["QUALITY", "measure", "measures_for", "oracle"]

QUALITY = "nDCG@10"  # of the measures, the one by which tests, verdicts and reports compare systems

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]


def measures_for(depth: int, relevant_from: int) -> dict[str, object]:
    """The lab's measures by the name that tables show.

    nDCG uses all grades; RR, AP and recall count grades from `relevant_from` on.
    """
    from ir_measures import AP, RR, R, nDCG

    return {
        "nDCG@10": nDCG @ 10,
        "RR@10": RR(rel=relevant_from) @ 10,
        "AP": AP(rel=relevant_from) @ depth,
        f"R@{depth}": R(rel=relevant_from) @ depth,
    }


def measure(run: Run, qrels: Qrels, measures: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """Values by measure and query, for every query of `qrels`; a query without results has 0.

    trec_eval orders equal scores by pid; here the order of the run decides, so that ties cannot flatter a system.

    >>> from ir_measures import nDCG
    >>> measure({"q": {"a": 1.0, "b": 0.5}}, {"q": {"b": 1}}, {"nDCG@10": nDCG @ 10})["nDCG@10"]["q"]
    0.6309297535714575
    """
    import ir_measures

    strict = {
        qid: {pid: float(-place) for place, pid in enumerate(sorted(found, key=lambda p: -found[p]))}
        for qid, found in run.items()
        if qid in qrels
    }
    values = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    names = {m: name for name, m in measures.items()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, strict):
        values[names[metric.measure]][metric.query_id] = metric.value
    return values


def oracle(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """The best order of the same candidates: by grade. What no reranker of this run can beat.

    >>> oracle({"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 3}})
    {'q': {'b': 3.0, 'a': 0.0}}
    """
    best = {}
    for qid, found in run.items():
        grades = qrels.get(qid, {})
        best[qid] = {p: float(grades.get(p, 0)) for p in sorted(found, key=lambda p: -grades.get(p, 0))}
    return best
