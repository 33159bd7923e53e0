"""What an explanation holds and how a notebook shows it; `explain.py` makes them.

Each is plain data with the query, the usage that it took, and a drawing from `plots.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rerank_lab import plots
from rerank_lab.core import Passage, Usage

__all__ = ["MaxSimMap", "Occlusion", "Step", "Trace", "WinMatrix"]


@dataclass(frozen=True)
class Occlusion:
    """What each word of a passage does for its score.

    Attributes:
        words: the passage's, in reading order.
        effects: by how much the score falls without the word; below 0 where it rises.
        score: of the whole passage.
        usage: what asking took: a pair for each word, and one.
    """

    query: str
    passage: Passage
    words: tuple[str, ...]
    effects: tuple[float, ...]
    score: float
    usage: Usage

    def _repr_html_(self) -> str:
        return plots.shade_tokens(self.words, self.effects).data


@dataclass(frozen=True)
class MaxSimMap:
    """How a ColBERT score comes about, token by token.

    Attributes:
        rows: the query's tokens.
        columns: the passage's tokens that count.
        similarity: of each row to each column, shape (Lq, Lp).
    """

    query: str
    passage: Passage
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    similarity: np.ndarray
    usage: Usage

    @property
    def score(self) -> float:
        """The sum of each row's maximum: what the reranker says."""
        return float(self.similarity.max(axis=1).sum())

    @property
    def earned(self) -> np.ndarray:
        """What each passage token gave to the score, shape (Lp,)."""
        return np.bincount(self.similarity.argmax(axis=1), self.similarity.max(axis=1), minlength=len(self.columns))

    def draw(self, axes=None):
        """The map as a heat map; gives the axes."""
        return plots.attention_map(self.similarity, self.rows, self.columns, label="similarity", axes=axes)

    def _repr_html_(self) -> str:
        return plots.shade_tokens(self.columns, self.earned.tolist()).data


@dataclass(frozen=True)
class WinMatrix:
    """Who beats whom.

    Attributes:
        pids: best first, as the reranker adds up their comparisons.
        chances: that the passage of the row beats that of the column, shape (n, n); .5 on the diagonal.
    """

    query: str
    pids: tuple[str, ...]
    chances: np.ndarray
    usage: Usage

    def draw(self, axes=None):
        """The matrix as a heat map; gives the axes."""
        return plots.win_matrix(self.chances, self.pids, axes=axes)


@dataclass(frozen=True)
class Step:
    """One step of a trace.

    Attributes:
        label: what was done.
        read: the places that were read, from the first to before the last, counted from 0.
        pids: the whole order after it.
    """

    label: str
    read: tuple[int, int]
    pids: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The way of the candidates to their places.

    Attributes:
        pids: the order that came in.
        steps: one a window or stage.
    """

    query: str
    pids: tuple[str, ...]
    steps: tuple[Step, ...]
    usage: Usage

    def places(self, pid: str) -> list[int]:
        """The place of a passage, counted from 1: as it came, and after each step."""
        return [order.index(pid) + 1 for order in (self.pids, *(s.pids for s in self.steps))]

    def draw(self, marked: Sequence[str] = (), axes=None):
        """A line for each passage, the marked ones in colour; gives the axes."""
        lines = {pid: self.places(pid) for pid in self.pids}
        read = [(s.label, s.read[0] + 1, s.read[1]) for s in self.steps]
        return plots.places_chart(lines, read, marked, axes=axes)
