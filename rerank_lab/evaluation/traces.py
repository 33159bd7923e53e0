"""Where a ranking's value comes from: the depth that is reranked, and the passages that moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2

import numpy as np

from rerank_lab.core import Candidate, Ranking
from rerank_lab.evaluation.metrics import measure

__all__ = ["depth_grid", "depth_values", "moved", "reordered", "unjudged_share"]

MOVES = 3  # passages of a query that are told beside the first
OPENING = 240  # characters of a passage that are told


def depth_grid(depth: int) -> list[int]:
    """Depths to show, up to and with the whole.

    >>> depth_grid(50)
    [1, 2, 5, 10, 20, 30, 40, 50]
    >>> depth_grid(7)
    [1, 2, 5, 7]
    """
    marks = [1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000]
    return [*(mark for mark in marks if mark < depth), depth]


def reordered(pids: Sequence[str], scores: Mapping[str, float], depth: int) -> dict[str, float]:
    """A run of one query: the first `depth` candidates by score, the others behind them in their order.

    Args:
        pids: candidates, best first.
        scores: of a reranker that scores each passage by itself, so that a smaller depth needs no new scores.

    >>> reordered(["a", "b", "c"], {"a": 0.1, "b": 0.2, "c": 0.9}, depth=2)
    {'b': 0.0, 'a': -1.0, 'c': -2.0}
    """
    order = [*sorted(pids[:depth], key=lambda pid: -scores[pid]), *pids[depth:]]
    return {pid: float(-place) for place, pid in enumerate(order)}


def depth_values(
    candidates: Mapping[str, Sequence[Candidate]],
    scores: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    grid: Sequence[int],
    measures: Mapping[str, object],
) -> list[float]:
    """The mean of one measure at each depth, all from one scoring pass.

    Args:
        candidates: by qid, best first.
        scores: by qid and pid; the grades, for the oracle.
        measures: one, by name.
    """
    (name,) = measures
    pids = {qid: [c.pid for c in found] for qid, found in candidates.items()}
    values = []
    for depth in grid:
        run = {qid: reordered(pids[qid], scores[qid], depth) for qid in pids}
        values.append(float(np.mean(list(measure(run, qrels, measures)[name].values()))))
    return values


def moved(ranking: Ranking, grades: Mapping[str, int]) -> list[dict]:
    """The passages whose moves changed nDCG@10 most, and what stands first though it is not relevant.

    Args:
        ranking: knows each passage's place before and after.
        grades: by pid; a passage without one was never judged.

    Returns:
        pid, grade (None: not judged), places before and after, and how the text begins.
    """

    def change(c: Candidate) -> float:
        gain = max(0, grades.get(c.pid, 0))
        return abs(gain * (_discount(c.rank) - _discount(c.first_rank)))

    shown = [c for c in sorted(ranking, key=lambda c: (-change(c), c.rank)) if change(c) > 0][:MOVES]
    if len(ranking) and grades.get(ranking[0].pid, 0) <= 0:
        shown.append(ranking[0])
    return [
        {"pid": c.pid, "grade": grades.get(c.pid), "before": c.first_rank, "after": c.rank, "text": _first(c.text)}
        for c in shown
    ]


def _discount(rank: int) -> float:
    return 1 / log2(rank + 1) if rank <= 10 else 0.0


def _first(text: str) -> str:
    if len(text) <= OPENING:
        return text
    space = text.rfind(" ", OPENING // 2, OPENING)
    return text[: space if space > 0 else OPENING] + " …"


def unjudged_share(rankings: Mapping[str, Ranking], qrels: Mapping[str, Mapping[str, int]]) -> float:
    """The share of the ten best that nobody judged; they count as not relevant.

    >>> from rerank_lab.core import candidates_from
    >>> unjudged_share({"q": Ranking("a", tuple(candidates_from(["x", "y"])))}, {"q": {"0": 1}})
    0.5
    """
    shown = [c.pid not in qrels[qid] for qid, ranking in rankings.items() for c in ranking[:10]]
    return float(np.mean(shown)) if shown else 0.0
