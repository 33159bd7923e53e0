"""An experiment: one first stage, several rerankers over the same candidates, measured side by side.

Only what the first stage found is reranked; a relevant passage that it missed stays missed (no positive is ever
injected). The recall of the candidates is therefore a ceiling, and the oracle, the same candidates ordered by
grade, shows how high it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from rerank_lab.batching import progress_bar
from rerank_lab.collections.collection import Collection
from rerank_lab.core import Candidate, DataError, InputError, Ranking, Reranker, Usage, candidates_from
from rerank_lab.evaluation.metrics import QUALITY, measure, measures_for, oracle
from rerank_lab.evaluation.significance import bootstrap_interval, holm, randomisation_test

__all__ = ["Experiment", "System", "candidates_of_run", "compare", "evaluate"]


@dataclass
class System:
    """One row of the table.

    Attributes:
        name: of the reranker; the first stage itself is the first row, the oracle the last.
        rankings: by qid.
        values: by measure and qid.
        usage: summed over queries.
        p, p_holm: of the paired test on nDCG@10 against the baseline; None for the baseline and the oracle.
    """

    name: str
    rankings: dict[str, Ranking]
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    p: float | None = None
    p_holm: float | None = None

    def places(self) -> dict[str, dict[str, float]]:
        """A run of places instead of scores: what a reranker left tied stays in its order, in every tool."""
        return {qid: {c.pid: -float(c.rank) for c in r} for qid, r in self.rankings.items()}

    def mean(self, measure_name: str = QUALITY) -> float:
        return float(np.mean(list(self.values[measure_name].values())))

    def interval(self, measure_name: str = QUALITY) -> tuple[float, float]:
        """95 % bootstrap interval over queries."""
        return bootstrap_interval(list(self.values[measure_name].values()))

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and 95 % interval (`value`, `low`, `high`) by measure."""
        intervals = {name: self.interval(name) for name in self.values}
        return {name: {"value": self.mean(name), "low": low, "high": high} for name, (low, high) in intervals.items()}

    def by_group(self, groups: Mapping[str, str]) -> dict[str, float]:
        """Mean nDCG@10 by group label, for example by phenomenon."""
        sums: dict[str, list[float]] = {}
        for qid, value in self.values[QUALITY].items():
            if qid in groups:
                sums.setdefault(groups[qid], []).append(value)
        return {label: float(np.mean(found)) for label, found in sorted(sums.items())}


@dataclass
class Experiment:
    """What `compare` gives back."""

    collection: Collection
    first_stage: str
    depth: int
    baseline: str
    systems: list[System]

    def __getitem__(self, name: str) -> System:
        for system in self.systems:
            if system.name == name:
                return system
        raise KeyError(f"{name!r}; systems are {', '.join(s.name for s in self.systems)}")

    def to_json(self) -> dict:
        """The experiment as plain data: values with 95 % intervals, tests, usage, breakdown by group."""
        return {
            "collection": self.collection.name,
            "queries": len(self.systems[0].rankings),
            "passages": len(self.collection.passages),
            "first_stage": self.first_stage,
            "depth": self.depth,
            "relevant_from": self.collection.relevant_from,
            "baseline": self.baseline,
            "interval": "95 % bootstrap over queries",
            "test": f"paired randomisation on {QUALITY} against the baseline, Holm-corrected",
            "systems": [self._row(s) for s in self.systems],
        }

    def _row(self, system: System) -> dict:
        row = {"name": system.name, "measures": system.summary(), "usage": asdict(system.usage)}
        if system.p is not None:
            difference = system.mean() - self[self.baseline].mean()
            row["test"] = {"difference": difference, "p": system.p, "p_holm": system.p_holm}
        if self.collection.groups:
            row["groups"] = system.by_group(self.collection.groups)
        return row


def candidates_of_run(
    run: Mapping[str, Mapping[str, float]], collection: Collection, depth: int
) -> dict[str, list[Candidate]]:
    """First-stage candidates from a run, best first (ties in the run's order), for every judged query.

    Raises:
        DataError: the run names a query without judgments or a passage that the collection lacks.
    """
    queries = collection.judged()
    unjudged = [qid for qid in run if qid not in queries]
    if unjudged:
        raise DataError(f"the run has query {unjudged[0]!r}, which has no qrels in {collection.name}")
    found = {}
    for qid in queries:
        best = sorted(run.get(qid, {}).items(), key=lambda item: -item[1])[:depth]
        absent = [pid for pid, _ in best if pid not in collection.passages]
        if absent:
            raise DataError(f"the run lists passage {absent[0]!r} for query {qid!r}, which {collection.name} lacks")
        found[qid] = candidates_from([collection.passages[pid] for pid, _ in best], [score for _, score in best])
    return found


def compare(
    collection: Collection,
    candidates: Mapping[str, Sequence[Candidate]],
    rerankers: Sequence[Reranker],
    *,
    first_stage: str = "first stage",
    depth: int = 100,
    baseline: str | None = None,
    progress: bool = False,
) -> Experiment:
    """Rerank the candidates with each reranker and measure all of them.

    Args:
        collection: gives queries and judgments.
        candidates: by qid, best first, as the first stage found them; cut to `depth`.
        rerankers: names must differ.
        first_stage: what the table calls the candidates' own order.
        depth: how many candidates are reranked.
        baseline: the system that others are tested against; the first stage without it.

    Raises:
        InputError: two systems of one name, an unknown baseline, or a depth below 1.
    """
    baseline = _check([r.name for r in rerankers], first_stage, depth, baseline)
    queries = collection.judged()
    cut = {qid: list(candidates.get(qid, ()))[:depth] for qid in queries}
    rankings = {
        reranker.name: {
            qid: reranker.rerank(queries[qid], cut[qid])
            for qid in progress_bar(list(queries), f"{reranker.name}, depth {depth}", progress)
        }
        for reranker in rerankers
    }
    return evaluate(collection, cut, rankings, first_stage=first_stage, depth=depth, baseline=baseline)


def evaluate(
    collection: Collection,
    candidates: Mapping[str, Sequence[Candidate]],
    rankings: Mapping[str, Mapping[str, Ranking]],
    *,
    first_stage: str = "first stage",
    depth: int = 100,
    baseline: str | None = None,
) -> Experiment:
    """Measure rankings that were made before, beside the candidates' own order and the oracle.

    Args:
        rankings: by the name of the system and qid, of the candidates cut to `depth`.

    The other arguments and the errors are those of `compare`.
    """
    baseline = _check(list(rankings), first_stage, depth, baseline)
    queries = collection.judged()
    cut = {qid: list(candidates.get(qid, ()))[:depth] for qid in queries}
    systems = [System(first_stage, {qid: Ranking(queries[qid], tuple(found)) for qid, found in cut.items()})]
    for name, made in rankings.items():
        usage = sum((made[qid].usage for qid in queries), Usage())
        systems.append(System(name, {qid: made[qid] for qid in queries}, usage=usage))

    first = {qid: r.to_run() for qid, r in systems[0].rankings.items()}
    best = {}
    for qid, ordered in oracle(first, collection.qrels).items():
        by_pid = {c.pid: c for c in cut[qid]}
        places = enumerate(ordered.items(), start=1)
        best[qid] = Ranking(
            queries[qid], tuple(replace(by_pid[p], score=s, rank=i, first_rank=by_pid[p].rank) for i, (p, s) in places)
        )
    systems.append(System("oracle", best))

    measures = measures_for(depth, collection.relevant_from)
    qrels = {qid: collection.qrels[qid] for qid in queries}
    for system in systems:
        system.values = measure(system.places(), qrels, measures)
    _test(systems, baseline, list(queries))
    return Experiment(collection, first_stage, depth, baseline, systems)


def _check(rerankers: list[str], first_stage: str, depth: int, baseline: str | None) -> str:
    if depth < 1:
        raise InputError(f"depth is {depth}: give at least 1")
    names = [first_stage, *rerankers, "oracle"]
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice:
        raise InputError(f"two systems are called {twice!r}: give each a name of its own")
    baseline = baseline or first_stage
    if baseline not in names[:-1]:
        raise InputError(f"baseline {baseline!r} is not among the systems: {', '.join(names[:-1])}")
    return baseline


def _test(systems: list[System], baseline: str, qids: list[str]) -> None:
    reference = next(s for s in systems if s.name == baseline).values[QUALITY]
    tested = [s for s in systems[:-1] if s.name != baseline]
    for system in tested:
        values = system.values[QUALITY]
        system.p = randomisation_test([values[q] for q in qids], [reference[q] for q in qids])
    for system, corrected in zip(tested, holm([s.p for s in tested]), strict=True):
        system.p_holm = corrected
