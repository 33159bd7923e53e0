"""A cascade: a cheap reranker reads many candidates, a dearer one only the best of them.

    stage 1 reads the first depth_1 candidates, stage 2 the first depth_2 of the order that stage 1 left, and so on

Who is not read keeps its place behind those who are. A stage with a margin ends the cascade early where it has
settled the first k places, that is where its score falls by more than the margin behind them:

    s_k - s_(k+1) > margin

A margin is in the units of its stage's scores and means nothing for another model, so it is fitted on held-out queries.
Wang, Lin and Metzler, A Cascade Ranking Model for Efficient Ranked Retrieval, SIGIR 2011.
https://doi.org/10.1145/2009916.2009934
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter

from rerank_lab.core import Candidate, InputError, Passage, Ranking, Reranker, Usage, check_request, cut_by_any

__all__ = ["Cascade", "Stage", "fit_margin", "gap"]


def gap(ranking: Sequence[Candidate], k: int = 1) -> float:
    """How far the score falls behind place k; infinite where nothing stands behind it.

    Rerankers that give places for scores (1/rank) show the same gap for every query: no sign for an early exit.

    >>> from rerank_lab.core import candidates_from
    >>> gap(candidates_from(["a ferry", "a tram", "a bus"], [0.75, 0.5, 0.0]), k=2)
    0.5
    """
    if len(ranking) <= k:
        return inf
    last, next_one = ranking[k - 1].score, ranking[k].score
    return 0.0 if last == next_one else last - next_one


def fit_margin(gaps: Sequence[float], losses: Sequence[float], tolerance: float) -> float:
    """The smallest margin whose early exits cost at most `tolerance` on held-out queries.

    The cost of a margin is the sum of the losses of the queries with a larger gap, divided by the number of all
    queries. Margins are tried downwards from the largest gap up to the first that costs too much, so that a lucky
    query further down cannot pay for an unlucky one.

    Args:
        gaps: one a query, of the stage that may end the cascade.
        losses: the quality of the whole cascade less that of its early exit, one a query.
        tolerance: mean quality that may be given up, for example .005 nDCG@10.

    Returns:
        The margin; infinite, which is no exit at all, where even the widest gap is no safe sign.

    Raises:
        InputError: no queries, or not one loss for each gap.

    >>> fit_margin([0.5, 0.3, 0.2, 0.1], [0.0, 0.02, -0.1, 0.9], tolerance=0.01)
    0.1
    >>> fit_margin([0.5, 0.1], [0.4, 0.0], tolerance=0.01)
    inf
    """
    if not gaps or len(gaps) != len(losses):
        raise InputError(f"{len(gaps)} gaps and {len(losses)} losses: give one of each for every held-out query")
    fitted = inf
    for margin in sorted({*gaps, 0.0}, reverse=True):
        exits = [loss for g, loss in zip(gaps, losses, strict=True) if g > margin]
        if exits and sum(exits) / len(gaps) > tolerance:
            break
        fitted = margin if exits else inf
    return fitted


@dataclass(frozen=True, slots=True)
class Stage:
    """One reranker of a cascade with its budget.

    Attributes:
        reranker: any.
        depth: how many candidates it reads, the best of the stage before.
        margin: end here where the gap behind place k is larger; None never does.
    """

    reranker: Reranker
    depth: int
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError(f"depth of {self.reranker.name} is {self.depth}: give at least 1")
        if self.margin is not None and not self.margin >= 0:
            raise InputError(
                f"margin of {self.reranker.name} is {self.margin}: give 0 or more, or None for no early exit"
            )


class Cascade(Reranker):
    """Stages one after the other, each over the best of the one before; usages add up.

    The candidates that the last stage read have its scores; those behind them count down from the lowest one, so
    scores of a cascade order passages and compare nothing else.

    Args:
        stages: cheapest first.
        k: the places that an early exit has to have settled.
        name: what tables call it; without it, the stages with their depths.

    Raises:
        InputError: no stages, k below 1, a margin at the last stage, or one at a stage that reads no place behind k.
    """

    def __init__(self, stages: Sequence[Stage], *, k: int = 1, name: str | None = None):
        if not stages or k < 1:
            raise InputError(f"{len(stages)} stages and k {k}: give at least 1 of each")
        if stages[-1].margin is not None:
            raise InputError(
                f"the last stage, {stages[-1].reranker.name}, has a margin: there is nothing behind it to spare"
            )
        short = next((s for s in stages if s.margin is not None and s.depth <= k), None)
        if short:
            raise InputError(f"{short.reranker.name} reads {short.depth} candidates and shows no gap behind place {k}")
        self.stages, self.k = tuple(stages), k
        self.name = name or "+".join(f"{s.reranker.name}:{s.depth}" for s in stages)

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start = perf_counter()
        rankings = self.trace(query, candidates)
        usage = sum((r.usage for r in rankings), Usage())
        usage.seconds = perf_counter() - start
        return Ranking(query, rankings[-1].candidates[:top_k], usage)

    def trace(self, query: str, candidates: Sequence[Candidate]) -> list[Ranking]:
        """All candidates after each stage that ran, each ranking with the usage of its stage."""
        first = {c.pid: c.rank for c in candidates}
        places, rankings = list(candidates), []
        for stage in self.stages:
            read = stage.reranker.rerank(query, places[: stage.depth])
            lowest = min((c.score for c in read), default=0.0)
            behind = [replace(c, score=lowest - i) for i, c in enumerate(places[stage.depth :], start=1)]
            placed = enumerate([*read, *behind], start=1)
            places = [replace(c, rank=rank, first_rank=first[c.pid]) for rank, c in placed]
            rankings.append(Ranking(query, tuple(places), read.usage))
            if stage.margin is not None and gap(read, self.k) > stage.margin:
                break
        return rankings

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool] | None:
        """Whether any stage that knows would cut a passage that reaches it."""
        return cut_by_any([stage.reranker for stage in self.stages], query, passages)
