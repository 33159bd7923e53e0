"""Several readings of the same candidates as one: standardise each one's scores within the query, and add them up.

    s(p) = sum over rerankers r of  w_r * (s_r(p) - mean of s_r) / (standard deviation of s_r)

Scores of different models live on different scales; within one query's candidates they become comparable (the sum of
standardised scores: Fox and Shaw, Combination of Multiple Searches, TREC-2, 1994, with z-scores for the scaling).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from time import perf_counter

from rerank_lab.core import (
    Candidate,
    InputError,
    Passage,
    Ranking,
    Reranker,
    Usage,
    check_request,
    cut_by_any,
    order,
)

__all__ = ["Fused", "standardised"]


def standardised(scores: Sequence[float]) -> list[float]:
    """Scores less their mean, in standard deviations; zeros where all are equal.

    >>> standardised([3.0, 1.0, 2.0, 2.0])
    [1.414213562373095, -1.414213562373095, 0.0, 0.0]
    """
    mean, spread = fmean(scores), pstdev(scores)
    return [(s - mean) / spread if spread > 0 else 0.0 for s in scores]


class Fused(Reranker):
    """Orders candidates by the sum of other rerankers' standardised scores.

    Args:
        rerankers: each is asked for all candidates.
        weights: one a reranker; 1 each without them.
        name: what tables call it.

    Raises:
        InputError: no reranker, or not one weight for each.
    """

    def __init__(self, rerankers: Sequence[Reranker], *, weights: Sequence[float] | None = None, name: str = "fused"):
        if not rerankers:
            raise InputError("a fusion of no rerankers was asked for: give at least one")
        self.rerankers, self.name = list(rerankers), name
        self.weights = [1.0] * len(self.rerankers) if weights is None else list(weights)
        if len(self.weights) != len(self.rerankers):
            raise InputError(f"{len(self.rerankers)} rerankers but {len(self.weights)} weights: give one for each")

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start, usage = perf_counter(), Usage()
        total = dict.fromkeys((c.pid for c in candidates), 0.0)
        for reranker, weight in zip(self.rerankers, self.weights, strict=True):
            ranking = reranker.rerank(query, candidates)
            usage += ranking.usage
            if len(ranking):
                for c, score in zip(ranking, standardised([c.score for c in ranking]), strict=True):
                    total[c.pid] += weight * score
        ranking = order(query, candidates, list(total.values()), top_k, usage)
        usage.seconds = perf_counter() - start
        return ranking

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool] | None:
        """Whether any of the rerankers that know would cut a passage."""
        return cut_by_any(self.rerankers, query, passages)
