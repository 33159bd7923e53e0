"""A benchmark of first stages and rerankers on one's own queries: everything that the choice depends on, as plain data.

Each reranker scores the candidates of each first stage once; all figures come from that pass, through
`experiment.evaluate`. What is found wrong on the way is noted, the query or the system is left out, and the rest goes
on. `report.render` makes a page of the result, `verdict.verdict` sentences.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from datetime import date
from time import perf_counter

import numpy as np

from rerank_lab import __version__
from rerank_lab.batching import progress_bar
from rerank_lab.cache import ScoreCache
from rerank_lab.collections.collection import Collection
from rerank_lab.core import Candidate, DataError, InputError, Ranking, Reranker, RerankLabError, Usage
from rerank_lab.evaluation.bench_details import FirstStage
from rerank_lab.evaluation.bench_rows import Made, facts
from rerank_lab.evaluation.experiment import candidates_of_run, evaluate
from rerank_lab.evaluation.soundness import Note, sound_collection, sound_run
from rerank_lab.evaluation.verdict import verdict

__all__ = ["benchmark"]

PATIENCE = 5  # failures in a row, from the first query on, after which a reranker is not asked any more
TOLERATED = 0.25  # the share of queries that a reranker may fail on before it is left out instead of the queries


@dataclass
class Outcome:
    """What came of asking one reranker for all queries over the candidates of one first stage."""

    rankings: dict[str, Ranking] = field(default_factory=dict)
    usages: dict[str, Usage] = field(default_factory=dict)  # of what was computed, now or when it was cached
    failures: dict[str, str] = field(default_factory=dict)


def benchmark(
    collection: Collection,
    stages: Mapping[str, object],
    rerankers: Sequence[Reranker],
    *,
    depth: int = 50,
    queries: int | None = None,
    baseline: str | None = None,
    prices: Mapping[str, dict] | None = None,
    cache: ScoreCache | None = None,
    progress: bool = False,
) -> dict:
    """Measure every reranker over the candidates of every first stage.

    Args:
        collection: passages, queries, judgments.
        stages: by name, objects with `search(query, k)` or runs.
        rerankers: names must differ.
        depth: candidates to rerank.
        queries: how many to draw, always the same; all that can be measured without it.
        baseline: a system that all others are tested against too.
        prices: one's own, as `prices.read_prices` gives them.
        cache: remembers what rankings took when their scores were computed; the rerankers' own, or None.
        progress: show bars on standard error.

    Returns:
        Plain data; its parts are described in `bench_rows`.

    Raises:
        DataError: no query can be measured, or no reranker could be run.
        InputError: two systems of one name, an unknown baseline, or depth or queries below 1.
    """
    if depth < 1 or (queries is not None and queries < 1):
        raise InputError(f"depth is {depth} and queries {queries}: give at least 1 of each")
    _check(list(stages), rerankers, baseline)
    sound, notes = sound_collection(collection)
    drawn = _drawn(sound, queries)
    searchers, of_runs, left_out = _usable(stages, sound)
    notes += of_runs
    found = {name: _search(name, stage, drawn, depth, progress) for name, stage in searchers.items()}
    outcomes: dict[str, dict[str, tuple[Reranker, Outcome]]] = {name: {} for name in found}
    for reranker in rerankers:
        for stage in found.values():
            outcome, label = _rerank_all(reranker, drawn, stage, cache, progress), _label(stage.name, reranker, found)
            if len(outcome.failures) > TOLERATED * len(drawn.queries):
                left_out[label] = next(iter(outcome.failures.values()))
            else:
                outcomes[stage.name][label] = (reranker, outcome)
    run = [outcome for by_label in outcomes.values() for _, outcome in by_label.values()]
    if not run:
        raise DataError(f"no reranker could be run; {next(iter(left_out))}: {next(iter(left_out.values()))}")
    failed = {qid: why for outcome in run for qid, why in outcome.failures.items()}
    kept = _without(drawn, failed)
    made = [_measured(kept, stage, outcomes[stage.name], depth) for stage in found.values()]
    result = {
        "made": _made_by(),
        "collection": collection.name,
        "passages": len(collection.passages),
        "queries": len(kept.queries),
        "queries_of": len(sound.queries),
        "depth": depth,
        "relevant_from": kept.relevant_from,
        "notes": [note.to_json() for note in notes],
        "left_out": {"systems": left_out, "queries": failed},
        **facts(kept, made, baseline=baseline, prices=prices or {}),
    }
    return {**result, "verdict": verdict(result)}


def _check(stages: list[str], rerankers: Sequence[Reranker], baseline: str | None) -> None:
    """Refuse before the work what would be refused after it."""
    names = [r.name for r in rerankers]
    if not names or len(set(names)) < len(names):
        raise InputError(f"the rerankers are called {', '.join(names) or 'nothing'}: give some, each by its own name")
    systems = [name for stage in stages for name in (stage, *(_label(stage, r, stages) for r in rerankers))]
    if baseline is not None and baseline not in systems:
        raise InputError(f"baseline {baseline!r} is not among the systems: {', '.join(systems)}")


def _usable(stages: Mapping[str, object], collection: Collection) -> tuple[dict, list[Note], dict[str, str]]:
    """First stages without what cannot be measured, notes about it, and the runs of which nothing can."""
    usable, notes, left_out = {}, [], {}
    for name, stage in stages.items():
        if hasattr(stage, "search"):
            usable[name] = stage
            continue
        run, more = sound_run(stage, name, collection)
        notes += more
        if any(run.values()):
            usable[name] = run
        else:
            left_out[name] = "no query of this run can be measured: check that its ids are those of the queries"
    if not usable:
        raise DataError(f"no first stage is left; {next(iter(left_out))}: {next(iter(left_out.values()))}")
    return usable, notes, left_out


def _measured(
    collection: Collection, stage: FirstStage, outcomes: Mapping[str, tuple[Reranker, Outcome]], depth: int
) -> Made:
    rankings = {label: outcome.rankings for label, (_, outcome) in outcomes.items()}
    experiment = evaluate(collection, stage.candidates, rankings, first_stage=stage.name, depth=depth)
    rerankers = {label: reranker for label, (reranker, _) in outcomes.items()}
    return Made(stage, experiment, rerankers, {label: outcome.usages for label, (_, outcome) in outcomes.items()})


def _drawn(collection: Collection, queries: int | None) -> Collection:
    if queries is None or queries >= len(collection.queries):
        return collection
    qids = list(collection.queries)
    chosen = set(np.random.default_rng(0).choice(len(qids), queries, replace=False).tolist())
    return _without(collection, {qid: "" for i, qid in enumerate(qids) if i not in chosen})


def _without(collection: Collection, qids: Mapping[str, str]) -> Collection:
    texts = {qid: text for qid, text in collection.queries.items() if qid not in qids}
    return replace(collection, queries=texts, qrels={qid: collection.qrels[qid] for qid in texts})


def _search(name: str, stage, collection: Collection, depth: int, progress: bool) -> FirstStage:
    if not hasattr(stage, "search"):
        of_drawn = {qid: stage.get(qid, {}) for qid in collection.queries}
        return FirstStage(name, candidates_of_run(of_drawn, collection, depth), None)
    candidates, seconds = {}, {}
    for qid in progress_bar(list(collection.queries), f"searching by {name}", progress):
        start = perf_counter()
        candidates[qid] = stage.search(collection.queries[qid], depth)
        seconds[qid] = perf_counter() - start
    return FirstStage(name, candidates, seconds)


def _rerank_all(reranker: Reranker, collection: Collection, stage: FirstStage, cache, progress: bool) -> Outcome:
    outcome = Outcome()
    label = f"{reranker.name} over {stage.name}"
    for qid in progress_bar(list(collection.queries), label, progress):
        if len(outcome.failures) >= PATIENCE and not outcome.rankings:
            outcome.failures[qid] = "not asked after the failures before"
            continue
        query, candidates = collection.queries[qid], stage.candidates[qid]
        try:
            ranking = reranker.rerank(query, candidates)
        except RerankLabError as error:
            outcome.failures[qid] = f"{reranker.name}: {' '.join(str(error).split())}"
            continue
        outcome.rankings[qid] = ranking
        if (usage := _computed(reranker, query, candidates, ranking.usage, cache)) is not None and candidates:
            outcome.usages[qid] = usage
    return outcome


def _computed(
    reranker: Reranker, query: str, candidates: Sequence[Candidate], usage: Usage, cache: ScoreCache | None
) -> Usage | None:
    """What the ranking takes where nothing of it is cached: now, or when it was computed; None where not known."""
    if not hasattr(reranker, "cache_key") or cache is None:
        return None if usage.cached else usage
    model = f"usage|{reranker.name}|{reranker.cache_key}|{getattr(reranker, 'depth', '')}"
    key = cache.key(model, query, "\n".join(f"{c.pid} {c.text}" for c in candidates))
    if usage.cached:
        return cache.usage(key)
    cache.keep_usage(key, usage)
    return usage


def _label(stage: str, reranker: Reranker, stages: Sized) -> str:
    if len(stages) > 1:
        return f"{stage} → {reranker.name}"
    return reranker.name if reranker.name != stage else f"{reranker.name} reranker"


def _made_by() -> dict:
    import torch

    return {
        "version": __version__,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
