"""The one abstraction of the lab: a reranker takes a query and candidates and gives them back in a better order.

Candidate  = a passage with the score and the rank that the stage before gave it
Ranking    = candidates, best first, and what it cost to order them so (Usage)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import isnan
from time import perf_counter

__all__ = [
    "Candidate",
    "CheckpointError",
    "DataError",
    "Identity",
    "InputError",
    "Passage",
    "PointwiseReranker",
    "Ranking",
    "Repairs",
    "RerankLabError",
    "Reranker",
    "Usage",
    "candidates_from",
]


class RerankLabError(Exception):
    """Anything the lab refuses; the message names the value and the mend."""


class InputError(RerankLabError, ValueError):
    """A query, passage or argument that cannot be used."""


class DataError(RerankLabError, ValueError):
    """A file or collection that cannot be read as what it claims to be."""


class CheckpointError(RerankLabError):
    """A model that cannot be found, is not what its digest says, or is not safe to load."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with the identifier that runs and qrels know it by."""

    pid: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage on its way through the pipeline.

    Attributes:
        passage: the text and its pid.
        score: what the last stage gave it; higher is better.
        rank: its place after the last stage, from 1.
        first_rank: its place before reranking, from 1.
    """

    passage: Passage
    score: float
    rank: int
    first_rank: int

    @property
    def pid(self) -> str:
        return self.passage.pid

    @property
    def text(self) -> str:
        return self.passage.text


@dataclass(frozen=True, slots=True)
class Repairs:
    """What had to be mended in the answers of a language model, by kind. Repairs add up.

    >>> Repairs(duplicate=1) + Repairs(duplicate=2, refused=1)
    Repairs(duplicate=3, out_of_range=0, missing=0, refused=1)
    """

    duplicate: int = 0  # identifiers named again
    out_of_range: int = 0  # identifiers of no passage
    missing: int = 0  # passages not named, put behind in the order that they had
    refused: int = 0  # answers without a usable identifier

    def __add__(self, other: Repairs) -> Repairs:
        return Repairs(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(slots=True)
class Usage:
    """What a ranking cost. Usages add up.

    >>> total = Usage(pairs=20, calls=1, seconds=0.5) + Usage(pairs=10, calls=1, truncated=2)
    >>> total.pairs, total.calls, total.truncated, total.seconds
    (30, 2, 2, 0.5)
    """

    pairs: int = 0  # query-passage pairs asked for
    calls: int = 0  # forward passes or requests made
    input_tokens: int = 0  # tokens read by the model, special tokens included, padding not
    output_tokens: int = 0  # tokens written by the model
    cached: int = 0  # pairs answered from the score cache
    replayed: int = 0  # calls answered from a record of replies
    truncated: int = 0  # pairs whose passage was cut to fit the model
    seconds: float = 0.0  # wall time
    dollars: float = 0.0  # US dollars billed
    repairs: Repairs = field(default_factory=Repairs)  # of a language model's answers

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Candidate]):
    """Candidates, best first, with the usage that it took to order them."""

    query: str
    candidates: tuple[Candidate, ...]
    usage: Usage = field(default_factory=Usage)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index):
        return self.candidates[index]

    def to_run(self) -> dict[str, float]:
        """The ranking as a run line of one query, `{pid: score}`."""
        return {c.pid: c.score for c in self.candidates}


def candidates_from(passages: Iterable[Passage | str], scores: Sequence[float] | None = None) -> list[Candidate]:
    """Make first-stage candidates of passages in their order; bare strings get their position as pid.

    Args:
        passages: best first.
        scores: the first stage's scores; without them, 1/rank.

    >>> [(c.pid, c.rank, c.score) for c in candidates_from(["a ferry", "a tram"])]
    [('0', 1, 1.0), ('1', 2, 0.5)]
    """
    made = [Passage(str(i), p) if isinstance(p, str) else p for i, p in enumerate(passages)]
    scores = [1 / (i + 1) for i in range(len(made))] if scores is None else list(scores)
    if len(scores) != len(made):
        raise InputError(f"{len(made)} passages but {len(scores)} scores: give one score for each passage")
    return [Candidate(p, float(s), i, i) for i, (p, s) in enumerate(zip(made, scores, strict=True), start=1)]


def check_request(query: str, candidates: Sequence[Candidate], top_k: int | None) -> None:
    """Refuse what no reranker can order: a blank query, a top_k below 1, the same pid twice."""
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"the query is {query!r}: give a string with at least one visible character")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}: give at least 1, or None for all candidates")
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.pid in seen:
            raise InputError(f"pid {candidate.pid!r} occurs twice among the candidates: pids must be unique")
        seen.add(candidate.pid)


class Reranker(ABC):
    """Orders candidates for a query. Inputs are never changed; the same pids come out; higher scores are better."""

    name: str

    @abstractmethod
    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        """Order the candidates.

        Args:
            query: the user's question.
            candidates: first-stage candidates, best first; pids unique.
            top_k: how many to return; all of them without it.

        Raises:
            InputError: blank query, duplicate pid, top_k below 1, or a score that is not a number.
        """

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool] | None:
        """Whether each passage is too long to be read whole; None where the reranker cannot know."""
        return None


def cut_by_any(rerankers: Iterable[Reranker], query: str, passages: Sequence[Passage]) -> list[bool] | None:
    """Whether any of the rerankers that know would cut each passage; None where none knows."""
    known = [cut for reranker in rerankers if (cut := reranker.cuts(query, passages)) is not None]
    return [any(each) for each in zip(*known, strict=True)] if known else None


class PointwiseReranker(Reranker):
    """A reranker whose score for a passage does not depend on the other passages."""

    @abstractmethod
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        """One score for each passage, in their order; what it costs is added to `usage`."""

    def score(self, query: str, passages: Sequence[Passage]) -> list[float]:
        """One score for each passage, in their order; higher is better."""
        return self._score(query, passages, Usage())

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start = perf_counter()
        usage = Usage()
        scores = self._score(query, [c.passage for c in candidates], usage) if candidates else []
        ranking = order(query, candidates, scores, top_k, usage)
        usage.seconds = perf_counter() - start
        return ranking


def order(
    query: str, candidates: Sequence[Candidate], scores: Sequence[float], top_k: int | None, usage: Usage
) -> Ranking:
    """Sort candidates by score, best first; ties keep the order in which they came."""
    for candidate, score in zip(candidates, scores, strict=True):
        if isnan(score):
            raise InputError(f"passage {candidate.pid!r} got the score nan: the model or its precision is at fault")
    places = sorted(range(len(candidates)), key=lambda i: -scores[i])[:top_k]
    return Ranking(
        query,
        tuple(
            Candidate(candidates[i].passage, float(scores[i]), rank, candidates[i].rank)
            for rank, i in enumerate(places, start=1)
        ),
        usage,
    )


def in_places(
    query: str, candidates: Sequence[Candidate], places: Sequence[int], top_k: int | None, usage: Usage
) -> Ranking:
    """A ranking from an order without scores: `places` holds indices of candidates, best first; the score is 1/rank."""
    best = enumerate(places[:top_k], start=1)
    kept = (Candidate(candidates[i].passage, 1 / rank, rank, candidates[i].rank) for rank, i in best)
    return Ranking(query, tuple(kept), usage)


class Identity(Reranker):
    """The baseline that every reranker has to beat: leave the first stage's order as it is."""

    name = "identity"

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        kept = (Candidate(c.passage, c.score, rank, c.rank) for rank, c in enumerate(candidates[:top_k], start=1))
        return Ranking(query, tuple(kept))
