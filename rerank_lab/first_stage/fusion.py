"""Reciprocal rank fusion: add the places, for the scores of two systems live on different scales.

    score(p) = sum over rankings of 1 / (k + place of p)

Cormack, Clarke and Buettcher, SIGIR 2009. https://doi.org/10.1145/1571941.1572114
"""

from __future__ import annotations

from collections.abc import Sequence

from rerank_lab.core import Candidate, candidates_from

__all__ = ["Fusion", "fuse", "rrf"]


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


def fuse(rankings: Sequence[Sequence[Candidate]], k: int = 60) -> list[Candidate]:
    """What several searches found, each passage once, best first by reciprocal rank fusion.

    Args:
        rankings: candidates, best first.
        k: as in `rrf`.

    >>> by_words, by_sense = candidates_from(["a ferry", "a tram"]), candidates_from(["a ferry"])
    >>> [(c.text, round(c.score, 4)) for c in fuse([by_words, by_sense])]
    [('a ferry', 0.0328), ('a tram', 0.0161)]
    """
    passages = {c.pid: c.passage for ranking in rankings for c in ranking}
    points = rrf([[c.pid for c in ranking] for ranking in rankings], k)
    return candidates_from([passages[pid] for pid in points], list(points.values()))


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
        return fuse([stage.search(query, k) for stage in self.stages], self.k)[:k]
