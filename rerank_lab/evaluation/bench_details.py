"""Details of a benchmark's systems: what was cut, what scores promise, which passages moved, what depth is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rerank_lab.collections.collection import Collection
from rerank_lab.core import Candidate, InputError, PointwiseReranker, Reranker
from rerank_lab.evaluation.abstaining import fit_abstainer
from rerank_lab.evaluation.calibration import Judged, expected_calibration_error, held_out, reliability
from rerank_lab.evaluation.experiment import Experiment, System
from rerank_lab.evaluation.metrics import QUALITY, measures_for
from rerank_lab.evaluation.traces import depth_grid, depth_values, moved

__all__ = ["FirstStage", "calibration", "depths", "examples", "truncation"]

SHOWN = 5  # wins and losses of each system that are told in full


@dataclass(frozen=True)
class FirstStage:
    """A first stage: its candidates by qid, and the seconds that each search took (None for a run)."""

    name: str
    candidates: Mapping[str, Sequence[Candidate]]
    seconds: Mapping[str, float] | None


def truncation(collection: Collection, stage: FirstStage, reranker: Reranker) -> dict | None:
    """Pairs whose passage was cut, and how many of them are relevant; None where the reranker cannot know."""
    pairs = cut = gold = 0
    lost: list[dict] = []
    for qid, query in collection.queries.items():
        passages = [c.passage for c in stage.candidates[qid]]
        cuts = reranker.cuts(query, passages)
        if cuts is None:
            return None
        relevant = [collection.qrels[qid].get(p.pid, 0) >= collection.relevant_from for p in passages]
        pairs, cut, gold = pairs + len(cuts), cut + sum(cuts), gold + sum(relevant)
        lost += [{"qid": qid, "pid": p.pid} for p, c, r in zip(passages, cuts, relevant, strict=True) if c and r]
    return {"pairs": pairs, "cut": cut, "relevant": gold, "relevant_cut": len(lost), "cut_pairs": lost[:50]}


def calibration(collection: Collection, system: System, reranker: Reranker) -> dict | None:
    """How far scores become probabilities on held-out queries; None without scores or with too few queries."""
    if not isinstance(reranker, PointwiseReranker):
        return None
    grades, from_grade = collection.qrels, collection.relevant_from
    data = {
        qid: Judged(tuple(c.score for c in r), tuple(grades[qid].get(c.pid, 0) >= from_grade for c in r))
        for qid, r in system.rankings.items()
    }
    try:
        chances = {how: held_out(data, how) for how in ("platt", "isotonic")}
        errors = {how: expected_calibration_error(*found) for how, found in chances.items()}
        how = min(errors, key=errors.__getitem__)
        abstainer = fit_abstainer(data, how).to_json()
    except InputError:
        return None
    bins = [asdict(b) for b in reliability(*chances[how])]
    return {"how": how, "error": errors, "bins": bins, "abstainer": abstainer}


def examples(collection: Collection, system: System, first: System) -> dict:
    """The queries that gained and lost most, each with the passages that moved."""
    before, after = first.values[QUALITY], system.values[QUALITY]
    change = {qid: after[qid] - before[qid] for qid in after}
    ordered = sorted(change, key=lambda qid: -change[qid])
    wins = [qid for qid in ordered[:SHOWN] if change[qid] > 1e-9]
    losses = [qid for qid in ordered[::-1][:SHOWN] if change[qid] < -1e-9]

    def told(qid: str) -> dict:
        return {
            "qid": qid,
            "query": collection.queries[qid],
            "before": before[qid],
            "after": after[qid],
            "moved": moved(system.rankings[qid], collection.qrels[qid]),
        }

    return {"wins": [told(q) for q in wins], "losses": [told(q) for q in losses]}


def depths(
    collection: Collection, stage: FirstStage, experiment: Experiment, rerankers: Mapping[str, Reranker]
) -> dict:
    """nDCG@10 at each depth of the rerankers that score each passage by itself, of the oracle, and recall."""
    from ir_measures import R

    grid, qrels = depth_grid(experiment.depth), {qid: collection.qrels[qid] for qid in collection.queries}
    found = {qid: stage.candidates[qid] for qid in qrels}
    quality = {QUALITY: measures_for(experiment.depth, collection.relevant_from)[QUALITY]}
    pointwise = [name for name, reranker in rerankers.items() if isinstance(reranker, PointwiseReranker)]
    scores = {name: {q: r.to_run() for q, r in experiment[name].rankings.items()} for name in pointwise}
    grades = {q: {c.pid: float(qrels[q].get(c.pid, 0)) for c in found[q]} for q in qrels}
    unmoved = {q: {c.pid: -float(c.rank) for c in found[q]} for q in qrels}
    recall = [depth_values(found, unmoved, qrels, [d], {"R": R(rel=collection.relevant_from) @ d})[0] for d in grid]
    return {
        "grid": grid,
        "recall": recall,
        "oracle": depth_values(found, grades, qrels, grid, quality),
        "systems": {name: depth_values(found, scores[name], qrels, grid, quality) for name in pointwise},
    }
