"""What the integrations share: the shape of a first stage, and a reranker that several threads may call.

A model and its score cache are not thread-safe, while a framework calls from as many threads as it likes. So each
reranker has one lock, whichever adapters hold it, and calls wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from rerank_lab.core import Candidate, Ranking, Reranker, candidates_from

__all__ = ["Stage", "lock_of", "rerank_texts"]

_locks: WeakKeyDictionary[Reranker, Lock] = WeakKeyDictionary()
_making = Lock()


@runtime_checkable
class Stage(Protocol):
    """A first stage: `BM25`, `DenseIndex`, `Fusion`."""

    def search(self, query: str, k: int) -> list[Candidate]:
        """The k best candidates, best first."""


def lock_of(reranker: Reranker) -> Lock:
    """The lock of a reranker, to be held while it works."""
    with _making:
        return _locks.setdefault(reranker, Lock())


def rerank_texts(
    reranker: Reranker,
    query: str,
    texts: Sequence[str],
    scores: Sequence[float] | None = None,
    top_n: int | None = None,
) -> Ranking:
    """Rerank texts by their places, one call at a time for each reranker.

    Args:
        texts: equal ones stay apart.
        scores: the first stage's; without them, 1/rank.
        top_n: how many to keep; None for all.

    Returns:
        A ranking whose pids are places in `texts`, from "0".

    >>> from rerank_lab.core import Identity
    >>> [int(c.pid) for c in rerank_texts(Identity(), "ferry", ["a ferry", "a tram", "a ferry"], top_n=2)]
    [0, 1]
    """
    with lock_of(reranker):
        return reranker.rerank(query, candidates_from(texts, scores), top_k=top_n)
