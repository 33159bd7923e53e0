"""Why is this passage there? One call for every family, and for each the account that its own mechanism gives.

    a score for each passage     leave a word out: effect = score(q, p) - score(q, p without the word)
    ColBERT                      the MaxSim map: each query token's similarity to each passage token, shape (Lq, Lp)
    comparisons of two           the win matrix: the chance that the passage of the row beats that of the column
    windows, cascades            the trace: what was read at each step, and the order after it

The map, the matrix and the trace are the computation itself. Leaving words out only probes it from outside: words that
stand in for each other each seem not to matter (Li, Monroe and Jurafsky, 2016. https://arxiv.org/abs/1612.08220).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import numpy as np

from rerank_lab.core import (
    Candidate,
    InputError,
    Passage,
    PointwiseReranker,
    Reranker,
    Usage,
    candidates_from,
    check_request,
)
from rerank_lab.explanations import MaxSimMap, Occlusion, Step, Trace, WinMatrix
from rerank_lab.rerankers.cascade import Cascade
from rerank_lab.rerankers.colbert import ColBERT
from rerank_lab.rerankers.listwise import ListwiseReranker
from rerank_lab.rerankers.monot5 import DuoT5, aggregate
from rerank_lab.rerankers.multi_vector import StoredColBERT
from rerank_lab.rerankers.pairwise import PairwiseReranker

__all__ = ["explain"]

Given = str | Passage | Candidate | Sequence[str | Passage] | Sequence[Candidate]


@singledispatch
def explain(reranker: Reranker, query: str, passage: Given) -> Occlusion | MaxSimMap | WinMatrix | Trace:
    """The account of a ranking that a family's own mechanism gives.

    Args:
        reranker: of any family. A hosted model bills the passage once for each word left out.
        query: the user's question.
        passage: one passage; for rerankers that compare passages or read them together, the candidates.

    Returns:
        Occlusion for rerankers that score each passage, MaxSimMap for ColBERT, WinMatrix for DuoT5 and pairwise
        prompting, Trace for listwise prompting and cascades.

    Raises:
        InputError: one passage where candidates are needed, or the other way round; a reranker without an account.
    """
    raise InputError(
        f"{reranker.name} gives no score, comparison or window to explain it by: explain a reranker that scores "
        "passages, DuoT5, pairwise, listwise or a cascade"
    )


@explain.register
def _(reranker: PointwiseReranker, query: str, passage: Given) -> Occlusion:
    explained = _one(reranker, passage)
    words = explained.text.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    ranking = reranker.rerank(query, candidates_from([explained.text, *without]))
    scores = {int(c.pid): c.score for c in ranking}
    effects = tuple(scores[0] - scores[i] for i in range(1, len(scores)))
    return Occlusion(query, explained, tuple(words), effects, scores[0], ranking.usage)


@explain.register
def _(reranker: ColBERT, query: str, passage: Given) -> MaxSimMap:
    check_request(query, [], None)
    explained, usage = _one(reranker, passage), Usage(pairs=1)
    tokens = reranker.encode_query(query, usage)  # (Lq, d)
    (found,) = reranker.encode_passages([explained.text], usage)  # (Lp, d)
    rows, columns = reranker.tokens(query, explained.text)
    return MaxSimMap(query, explained, tuple(rows), tuple(columns), (tokens @ found.T).numpy(), usage)


@explain.register
def _(reranker: StoredColBERT, query: str, passage: Given) -> MaxSimMap:
    return explain(reranker.index.encoder, query, passage)


@explain.register
def _(reranker: DuoT5, query: str, passage: Given) -> WinMatrix:
    candidates, usage = _several(reranker, query, passage), Usage()
    if reranker.mono is not None:
        ranking = reranker.mono.rerank(query, candidates)
        candidates, usage = list(ranking), ranking.usage
    compared = [c.passage for c in candidates[: reranker.depth]]
    chances = reranker.matrix(query, compared, usage)
    return _best_first(query, compared, chances, aggregate(chances, reranker.how), usage)


@explain.register
def _(reranker: PairwiseReranker, query: str, passage: Given) -> WinMatrix:
    usage = Usage()
    compared = [c.passage for c in _several(reranker, query, passage)[: reranker.depth]]
    chances = reranker.matrix(query, compared, usage)
    return _best_first(query, compared, chances, [sum(row) for row in chances], usage)


@explain.register
def _(reranker: ListwiseReranker, query: str, passage: Given) -> Trace:
    candidates, usage = _several(reranker, query, passage), Usage()
    pids = [c.pid for c in candidates]
    steps = [
        Step(f"window {number}", read, tuple(pids[i] for i in places))
        for number, (read, places) in enumerate(reranker.moves(query, candidates, usage), start=1)
    ]
    return Trace(query, tuple(pids), tuple(steps), usage)


@explain.register
def _(reranker: Cascade, query: str, passage: Given) -> Trace:
    candidates = _several(reranker, query, passage)
    rankings = reranker.trace(query, candidates)
    steps = [
        Step(stage.reranker.name, (0, min(stage.depth, len(candidates))), tuple(c.pid for c in ranking))
        for stage, ranking in zip(reranker.stages, rankings, strict=False)  # an early exit leaves stages out
    ]
    return Trace(query, tuple(c.pid for c in candidates), tuple(steps), sum((r.usage for r in rankings), Usage()))


def _best_first(query: str, passages: list[Passage], chances: list[list[float]], scores: list[float], usage: Usage):
    best = sorted(range(len(passages)), key=lambda i: -scores[i])
    ordered = np.array(chances, dtype=float).reshape(len(best), len(best))[np.ix_(best, best)]
    return WinMatrix(query, tuple(passages[i].pid for i in best), ordered, usage)


def _one(reranker: Reranker, given: Given) -> Passage:
    if isinstance(given, Candidate):
        return given.passage
    if isinstance(given, str):
        return Passage("passage", given)
    if not isinstance(given, Passage):
        raise InputError(f"{reranker.name} scores each passage by itself: give one passage instead of {len(given)}")
    return given


def _several(reranker: Reranker, query: str, given: Given) -> list[Candidate]:
    if isinstance(given, str | Passage | Candidate):
        raise InputError(
            f"{reranker.name} sets passages against each other: give a list of candidates instead of one passage"
        )
    candidates = list(given) if all(isinstance(c, Candidate) for c in given) else candidates_from(given)
    check_request(query, candidates, None)
    return candidates
