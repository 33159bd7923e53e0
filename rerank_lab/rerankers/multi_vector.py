"""Late interaction over stored vectors: passages are encoded once, and a query costs one forward pass.

    rerank    MaxSim of the query's vectors with those that are stored
    search    centroids near the query's tokens -> their passages -> MaxSim by centroids alone, first without those
              that no query token is near to, then with all -> exact MaxSim of the few that remain

Santhanam et al., PLAID, CIKM 2022, section 4. https://arxiv.org/abs/2205.09707
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from rerank_lab.core import Candidate, InputError, Passage, PointwiseReranker, Usage, candidates_from, check_request
from rerank_lab.rerankers.colbert import ColBERT
from rerank_lab.rerankers.vector_store import VectorStore

__all__ = ["MultiVectorIndex", "Plaid", "StoredColBERT"]

STRIDE = 1 << 16  # vectors that are scored at a time


@dataclass(frozen=True, slots=True)
class Plaid:
    """How wide a search looks.

    Attributes:
        cells: nearest centroids of each query token, whose passages become candidates.
        threshold: a centroid that is less similar than this to every query token is left out at the first look.
        passages: candidates kept after the first look; a quarter of them is kept after the second.
    """

    cells: int
    threshold: float
    passages: int

    @classmethod
    def for_top(cls, k: int) -> Plaid:
        """The authors' choice for k results (ColBERT `searcher.py`).

        >>> Plaid.for_top(10)
        Plaid(cells=1, threshold=0.5, passages=256)
        >>> Plaid.for_top(2000)
        Plaid(cells=4, threshold=0.4, passages=8000)
        """
        if k <= 10:
            return cls(1, 0.5, 256)
        return cls(2, 0.45, 1024) if k <= 100 else cls(4, 0.4, max(4 * k, 4096))


class MultiVectorIndex:
    """The token vectors of a collection; made by `build`, read by `open`.

    Args:
        encoder: encodes the queries; the one that encoded the passages.
        store: the vectors.
    """

    def __init__(self, encoder: ColBERT, store: VectorStore):
        self.encoder, self.store = encoder, store

    @classmethod
    def build(
        cls,
        encoder: ColBERT,
        passages: Sequence[Passage],
        folder: str | Path,
        bits: int | None = 2,
        progress: bool = False,
    ) -> MultiVectorIndex:
        """Encode a collection and write it to a folder, in place of the index that is there.

        Args:
            encoder: encodes the passages now and the queries later.
            passages: the collection; pids unique.
            folder: new, empty, or with an index.
            bits: 1, 2 or 4 a dimension beside the centroid's code; None keeps vectors in half precision.

        Raises:
            DataError: no passages.
            InputError: other bits, the same pid twice, or a folder with something else in it.
        """
        VectorStore.write(Path(folder), list(passages), encoder.encode_passages, bits, _digest(encoder), progress)
        return cls.open(folder, encoder)

    @classmethod
    def open(cls, folder: str | Path, encoder: ColBERT) -> MultiVectorIndex:
        """Open what `build` wrote; vectors and texts are read from the disk when they are needed.

        Args:
            encoder: the one that the index was built with; its device and precision may differ.

        Raises:
            DataError: no index, or a damaged one.
            InputError: another encoder, or another length of passages.
        """
        return cls(encoder, VectorStore.open(Path(folder), _digest(encoder)))

    def __len__(self) -> int:
        """How many passages there are."""
        return len(self.store)

    @property
    def vectors(self) -> int:
        """How many token vectors there are."""
        return int(self.store.starts[-1])

    @property
    def bytes(self) -> int:
        """What the index takes on disk, texts included."""
        return self.store.size

    @property
    def bytes_per_vector(self) -> int:
        """What one token vector takes: its code and residual, or its half-precision numbers."""
        return self.store.bytes_per_vector

    def search(self, query: str, k: int = 100, plaid: Plaid | None = None) -> list[Candidate]:
        """The k best passages, best first; ties by place in the collection.

        An index in half precision has no centroids: every passage is scored.

        Args:
            plaid: how wide to look; without it, the authors' choice for k.

        Raises:
            InputError: blank query, or k below 1.
        """
        check_request(query, [], None)
        if k < 1:
            raise InputError(f"k is {k}: give at least 1")
        tokens = self.encoder.encode_query(query).numpy()  # (Lq, d)
        places = np.arange(len(self))
        if self.store.codec is not None:
            places = self._candidates(tokens, plaid or Plaid.for_top(k))
        scores = self.maxsim(tokens, places)
        best = np.argsort(-scores, kind="stable")[:k]
        return candidates_from([self.store.passage(i) for i in places[best]], scores[best].tolist())

    def maxsim(self, tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Scores (n,), float32, of the passages at n places for query vectors (Lq, d); equal texts get equal scores."""
        places, again = np.unique(self.store.first[places], return_inverse=True)
        scores = np.empty(len(places), dtype=np.float32)
        for part in _parts(self.store.starts[places + 1] - self.store.starts[places]):
            rows, owner = self.store.rows(places[part])
            scores[part] = _best_per_passage(self.store.vectors(rows) @ tokens.T, owner, len(places[part]))
        return scores[again]

    def _candidates(self, tokens: np.ndarray, plaid: Plaid) -> np.ndarray:
        """Places of the passages that are worth an exact score, ascending."""
        similarity = self.store.codec.centroids.numpy() @ tokens.T  # (C, Lq)
        similarity[~self.store.filled()] = -np.inf
        nearest = np.argsort(-similarity, axis=0, kind="stable")[: plaid.cells]
        places = self.store.near(nearest)
        near = similarity.max(axis=1) >= plaid.threshold  # (C,)
        for keep, looked_at in ((plaid.passages, near), (plaid.passages // 4, np.ones_like(near))):
            if len(places) > keep:
                rows, owner = self.store.rows(places)
                codes = self.store.codes(rows)  # (T,)
                counts = looked_at[codes]
                scores = _best_per_passage(similarity[codes[counts]], owner[counts], len(places))
                places = np.sort(places[np.argsort(-scores, kind="stable")[:keep]])
        return places


class StoredColBERT(PointwiseReranker):
    """ColBERT over stored vectors: only the query is read.

    Args:
        index: has to hold every candidate, with the same text.
    """

    name = "colbert-index"

    def __init__(self, index: MultiVectorIndex):
        self.index = index

    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        usage.pairs += len(passages)
        places = self.index.store.places(passages)
        return self.index.maxsim(self.index.encoder.encode_query(query, usage).numpy(), places).tolist()


def _best_per_passage(similarity: np.ndarray, owner: np.ndarray, passages: int) -> np.ndarray:
    """MaxSim from similarities (T, Lq) of passage tokens, whose owners (T,) ascend; -inf for a passage without any."""
    scores = np.full(passages, -np.inf, dtype=np.float32)
    if len(owner):
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        scores[owner[first]] = np.maximum.reduceat(similarity, first, axis=0).sum(axis=1)
    return scores


def _parts(lengths: np.ndarray) -> list[slice]:
    """Slices of passages with about `STRIDE` vectors each."""
    part = (np.cumsum(lengths) - lengths) // STRIDE
    bounds = [*np.flatnonzero(np.diff(part, prepend=-1)).tolist(), len(lengths)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _digest(encoder: ColBERT) -> str:
    return hashlib.sha256(encoder.key.encode()).hexdigest()[:16]
