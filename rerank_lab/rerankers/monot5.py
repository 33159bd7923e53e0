"""MonoT5 and DuoT5: relevance as the next word of a sequence-to-sequence model.

    mono:  "Query: q Document: p Relevant:"                  s(p)  = log P(true)
    duo:   "Query: q Document0: a Document1: b Relevant:"    p_ab  = P(true), the chance that a beats b

P(true) is the chance of the word `true` against `false` at the first decoder step (`rerankers/true_or_false.py`).
Nogueira et al., Document Ranking with a Pretrained Sequence-to-Sequence Model, 2020. https://arxiv.org/abs/2003.06713
Pradeep, Nogueira and Lin, The Expando-Mono-Duo Design Pattern, 2021. https://arxiv.org/abs/2101.05667
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from math import fsum, log
from time import perf_counter

import torch
from torch.nn.functional import logsigmoid

from rerank_lab.batching import score_in_batches
from rerank_lab.cache import Keep, ScoreCache, cached_scores
from rerank_lab.core import (
    Candidate,
    InputError,
    Passage,
    PointwiseReranker,
    Ranking,
    Reranker,
    Usage,
    check_request,
    order,
)
from rerank_lab.rerankers.true_or_false import TrueOrFalse

__all__ = ["AGGREGATIONS", "DuoT5", "MonoT5", "TrueOrFalse", "aggregate"]

MONO = "Query: {query} Document: {} Relevant:"
DUO = "Query: {query} Document0: {} Document1: {} Relevant:"


class MonoT5(PointwiseReranker):
    """Scores a passage by log P(true).

    Args:
        answers: the model.
        cache: where scores are kept; None switches it off.
    """

    name = "monot5"

    def __init__(self, answers: TrueOrFalse, *, cache: ScoreCache | None = None):
        self.answers, self.cache, self.cache_key = answers, cache, f"monot5|{answers.key}"

    @classmethod
    def from_pretrained(cls, name: str = "lab-t5", *, cache: ScoreCache | None = None, **options) -> MonoT5:
        """Load by short name, hub id or folder; options as in `TrueOrFalse.from_pretrained`."""
        return cls(TrueOrFalse.from_pretrained(name, **options), cache=cache)

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str], keep: Keep) -> list[float]:
            rows = self.answers.encode(MONO, query, [(text,) for text in texts])
            return score_in_batches(rows, lambda batch: logsigmoid(self.answers.log_odds(batch)), usage, keep)

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool]:
        return [row.truncated for row in self.answers.encode(MONO, query, [(p.text,) for p in passages])]


# How the chances p[i][j] that passage i beats passage j add up to a score of i (Pradeep et al., 2021, section 3.3)
AGGREGATIONS = {
    "sum": lambda p_ij, p_ji: p_ij,
    "log-sum": lambda p_ij, p_ji: _log(p_ij),
    "sym-sum": lambda p_ij, p_ji: p_ij + 1 - p_ji,
    "sym-log-sum": lambda p_ij, p_ji: _log(p_ij) + _log(1 - p_ji),
}


def _log(p: float) -> float:
    return log(max(p, 1e-12))


def aggregate(p: Sequence[Sequence[float]], how: str = "sym-sum") -> list[float]:
    """Scores from the chances that one passage beats another.

    Args:
        p: p[i][j] is the chance that i beats j, shape (n, n); the diagonal is not read.
        how: sum, log-sum, sym-sum or sym-log-sum.

    >>> p = [[0.5, 0.9, 0.8], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5]]
    >>> [round(s, 2) for s in aggregate(p, "sum")]
    [1.7, 0.8, 0.5]
    >>> [round(s, 2) for s in aggregate(p)]
    [3.4, 1.5, 1.1]
    """
    if how not in AGGREGATIONS:
        raise InputError(f"aggregation {how!r} is unknown: give {', '.join(AGGREGATIONS)}")
    term, n = AGGREGATIONS[how], len(p)
    # fsum is exact, so that two copies of a passage get the same score whatever the order of the sum
    return [fsum(term(p[i][j], p[j][i]) for j in range(n) if j != i) for i in range(n)]


class DuoT5(Reranker):
    """Compares the first candidates two by two, in both orders; the others keep their order behind them.

    Args:
        answers: the model.
        mono: orders the candidates first, as in the paper; without it they are taken as they come.
        depth: how many candidates are compared: `passes(n)` forward passes; the paper takes 50.
        how: the aggregation.
        cache: where the comparisons are kept; None switches it off.
    """

    name = "duot5"

    def __init__(
        self,
        answers: TrueOrFalse,
        *,
        mono: MonoT5 | None = None,
        depth: int = 50,
        how: str = "sym-sum",
        cache: ScoreCache | None = None,
    ):
        if depth < 2:
            raise InputError(f"depth is {depth}: a comparison needs at least 2 candidates")
        aggregate([], how)
        self.answers, self.mono, self.depth, self.how = answers, mono, depth, how
        self.cache, self.cache_key = cache, f"duot5|{answers.key}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "lab-t5",
        *,
        mono: MonoT5 | None = None,
        depth: int = 50,
        how: str = "sym-sum",
        cache: ScoreCache | None = None,
        **options,
    ) -> DuoT5:
        """Load by short name, hub id or folder; options as in `TrueOrFalse.from_pretrained`."""
        return cls(TrueOrFalse.from_pretrained(name, **options), mono=mono, depth=depth, how=how, cache=cache)

    def passes(self, n: int) -> int:
        """Comparisons that n candidates will take: every ordered pair of those within the depth."""
        compared = min(n, self.depth)
        return compared * (compared - 1)

    @torch.inference_mode()
    def matrix(self, query: str, passages: Sequence[Passage], usage: Usage | None = None) -> list[list[float]]:
        """p[i][j], the chance that passage i beats passage j, shape (n, n); 0.5 on the diagonal."""
        usage = usage if usage is not None else Usage()
        pairs = list(permutations(range(len(passages)), 2))
        both = [(passages[i].text, passages[j].text) for i, j in pairs]
        keys = [f"{len(a)} {a}{b}" for a, b in both]  # the length keeps ("ab", "c") and ("a", "bc") apart
        texts = dict(zip(keys, both, strict=True))

        def compute(missing: list[str], keep: Keep) -> list[float]:
            rows = self.answers.encode(DUO, query, [texts[key] for key in missing])
            return score_in_batches(rows, lambda batch: torch.sigmoid(self.answers.log_odds(batch)), usage, keep)

        asked = [Passage("", key) for key in keys]
        chances = cached_scores(self.cache, self.cache_key, query, asked, compute, usage)
        p = [[0.5] * len(passages) for _ in passages]
        for (i, j), chance in zip(pairs, chances, strict=True):
            p[i][j] = chance
        return p

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start, usage = perf_counter(), Usage()
        first = {c.pid: c.rank for c in candidates}
        if self.mono is not None:
            ranking = self.mono.rerank(query, candidates)
            candidates, usage = list(ranking), ranking.usage
        compared = [c.passage for c in candidates[: self.depth]]
        scores = aggregate(self.matrix(query, compared, usage), self.how)
        behind = min(scores, default=0.0)
        scores += [behind - place for place in range(1, len(candidates) - len(scores) + 1)]
        ranking = order(query, [replace(c, rank=first[c.pid]) for c in candidates], scores, top_k, usage)
        usage.seconds = perf_counter() - start
        return ranking
