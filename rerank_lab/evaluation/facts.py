"""What a benchmark decides by: paired differences, who is cheaper, the Pareto front, types of queries.

Pure functions over one number a query and one cost a system. A difference is proven where its 95 % bootstrap interval
excludes 0 and, against the first stage, the Holm-corrected p is below .05 as well (Smucker et al., 2007; Holm, 1979).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np

from rerank_lab.evaluation.metrics import QUALITY
from rerank_lab.evaluation.significance import bootstrap_interval

__all__ = [
    "cheaper",
    "differences_by_type",
    "is_proven",
    "paired",
    "pareto",
    "quality",
    "queries_needed",
    "query_types",
    "recommended",
]

FEWEST = 10  # queries of a type, below which nothing is claimed about it


def queries_needed(differences: Sequence[float]) -> int | None:
    """Queries that would show the observed mean difference at 5 % in four of five experiments, at the observed spread.

        n = ((1.960 + 0.842) s / mean)^2

    Args:
        differences: one a query, at least two.

    Returns:
        None where the mean difference is 0.

    >>> queries_needed([0.3, -0.1, 0.2, 0.0])
    27
    >>> queries_needed([0.1, -0.1]) is None
    True
    """
    data = np.asarray(differences, dtype=float)
    mean = float(data.mean())
    if len(data) < 2 or abs(mean) < 1e-9:
        return None
    return max(2, ceil((2.802 * float(data.std(ddof=1)) / mean) ** 2))


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> dict:
    """How much a is better than b, query by query.

    Args:
        a, b: one number a query, in the same order.
        level: of the bootstrap interval of the mean difference.

    >>> paired([1.0, 0.5, 0.5, 0.0], [0.5, 0.5, 0.0, 0.5])
    {'difference': 0.125, 'low': -0.25, 'high': 0.5, 'wins': 2, 'losses': 1, 'ties': 1, 'needed': 116}
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    low, high = bootstrap_interval(differences, level=level)
    wins, losses = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    return {
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "wins": wins,
        "losses": losses,
        "ties": len(differences) - wins - losses,
        "needed": queries_needed(differences),
    }


def cheaper(a: Mapping, b: Mapping) -> bool:
    """Whether one cost is below another: less in seconds or dollars and more in neither; the unknown decides nothing.

    Args:
        a, b: `seconds` and `dollars` a query; None where not known.

    >>> cheaper({"seconds": 0.1, "dollars": 0.0}, {"seconds": 0.3, "dollars": 0.0})
    True
    >>> cheaper({"seconds": 0.1, "dollars": 0.2}, {"seconds": 0.3, "dollars": 0.0})
    False
    >>> cheaper({"seconds": None, "dollars": 0.0}, {"seconds": 0.3, "dollars": 0.0})
    False
    """
    known = [(a[unit], b[unit]) for unit in ("seconds", "dollars") if a[unit] is not None and b[unit] is not None]
    return all(x <= y for x, y in known) and any(x < y for x, y in known)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The systems that no other beats in both cost and quality, cheapest first.

    Args:
        points: cost and quality by name.

    >>> pareto({"bm25": (1, 0.3), "slow": (90, 0.5), "good": (10, 0.5), "bad": (20, 0.4)})
    ['bm25', 'good']
    """
    front: list[str] = []
    best = float("-inf")
    for name, (_, quality) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if quality > best:
            front.append(name)
            best = quality
    return front


def quality(system: Mapping) -> float:
    """The mean nDCG@10 of a system's row."""
    return system["measures"][QUALITY]["value"]


def recommended(systems: Sequence[Mapping]) -> str:
    """The best of the first stages alone and the rerankers that are proven better than their first stage.

    Args:
        systems: rows with `name`, `measures`, and `against_first` (`low`, `p_holm`) where they rerank.

    >>> gain = {"low": 0.01, "p_holm": 0.01}
    >>> rows = [
    ...     {"name": "bm25", "measures": {"nDCG@10": {"value": 0.3}}},
    ...     {"name": "x", "measures": {"nDCG@10": {"value": 0.4}}, "against_first": gain},
    ... ]
    >>> recommended(rows)
    'x'
    >>> gain["low"] = -0.01
    >>> recommended(rows)
    'bm25'
    """
    able = [s for s in systems if "against_first" not in s or is_proven(s["against_first"])]
    return max(able, key=quality)["name"]


def is_proven(against_first: Mapping) -> bool:
    """Whether a reranker is better than its first stage beyond the noise."""
    return against_first["low"] > 0 and against_first["p_holm"] < 0.05


def query_types(queries: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Query ids by type: the collection's own labels, else the number of words and whether it is a question.

    Args:
        queries: text by qid.
        groups: label by qid; may be empty.

    >>> query_types({"1": "ferry price", "2": "When does the last ferry leave?"}, {})
    {'up to 3 words': ['1'], '4 to 7 words': ['2'], 'questions': ['2'], 'keywords': ['1']}
    """
    types: dict[str, list[str]] = {}
    if labelled := [qid for qid in queries if qid in groups]:
        for qid in sorted(labelled, key=lambda qid: groups[qid]):
            types.setdefault(groups[qid], []).append(qid)
        return types
    types = {label: [] for label in ("up to 3 words", "4 to 7 words", "8 words or more", "questions", "keywords")}
    for qid, text in queries.items():
        words = len(text.split())
        types["up to 3 words" if words <= 3 else "4 to 7 words" if words <= 7 else "8 words or more"].append(qid)
        types["questions" if _is_question(text) else "keywords"].append(qid)
    return {label: qids for label, qids in types.items() if qids}


def _is_question(text: str) -> bool:
    asking = r"(who|what|when|where|which|why|how|whose|whom|is|are|was|were|do|does|did|can|could|should|will|would)\b"
    return text.rstrip().endswith(("?", "？", "؟")) or re.match(asking, text.strip(), re.IGNORECASE) is not None


def differences_by_type(
    a: Mapping[str, float], b: Mapping[str, float], types: Mapping[str, Sequence[str]]
) -> list[dict]:
    """`paired` for each type of query. The intervals are as wide as it takes for all of them to hold at 95 % together
    (Bonferroni); `proven` says `gains` or `loses` where an interval of at least ten queries excludes 0.

    Args:
        a, b: one number a query, by qid.
        types: query ids by label.
    """
    rows = []
    for label, qids in types.items():
        row = paired([a[q] for q in qids], [b[q] for q in qids], level=1 - 0.05 / len(types))
        row["proven"] = None
        if len(qids) >= FEWEST:
            row["proven"] = "gains" if row["low"] > 0 else "loses" if row["high"] < 0 else None
        rows.append({"type": label, "queries": len(qids), **row})
    return rows
