"""Reciprocal rank fusion: add the places, for the scores of two systems live on different scales.

    score(p) = sum over rankings of 1 / (k + place of p)

Cormack, Clarke and Buettcher, SIGIR 2009. https://doi.org/10.1145/1571941.1572114
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank_lab.core import Candidate, candidates_from

__all__ = ["Fusion", "rrf"]


def rrf(rankings: Sequence[Sequence[str]], k: int = 60) -> dict[str, float]:
    """Fuse rankings of pids.

    Args:
        rankings: pids, best first.
        k: how little the first places count; 60 in the paper.

    Returns:
        Points of each pid, best first; ties in the order of first sight.

    >>> {pid: round(points, 4) for pid, points in rrf([["a", "b"], ["b", "c"]]).items()}
    {'b': 0.0325, 'a': 0.0164, 'c': 0.0161}
    """
    points: dict[str, float] = {}
    for ranking in rankings:
        for place, pid in enumerate(ranking, start=1):
            points[pid] = points.get(pid, 0.0) + 1 / (k + place)
    return dict(sorted(points.items(), key=lambda item: -item[1]))


class Fusion:
    """A first stage made of others.

    Args:
        stages: objects with `search(query, k) -> list[Candidate]`.
    """

    name = "fusion"

    def __init__(self, stages: Sequence, k: int = 60):
        self.stages, self.k = list(stages), k

    def search(self, query: str, k: int = 100) -> list[Candidate]:
        """The k best passages by reciprocal rank fusion of the stages' top k."""
        found = [stage.search(query, k) for stage in self.stages]
        passages = {c.pid: c.passage for ranking in found for c in ranking}
        points = rrf([[c.pid for c in ranking] for ranking in found], self.k)
        best = list(points.items())[:k]
        return candidates_from([passages[pid] for pid, _ in best], [score for _, score in best])
