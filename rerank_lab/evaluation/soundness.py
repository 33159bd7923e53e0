"""What is wrong with a collection or a run, one plain line each, and what of it can be measured.

Reading a file is strict: a line that is no judgment is refused. What is readable and yet cannot be measured, such as a
query without a relevant passage, is left out here, counted and named, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from rerank_lab.collections.collection import Collection
from rerank_lab.core import DataError
from rerank_lab.evaluation.wording import counted

__all__ = ["Note", "sound_collection", "sound_run"]


@dataclass(frozen=True)
class Note:
    """One thing that a reader of the figures has to know.

    Attributes:
        kind: a short name of the fault.
        count: how often it occurs.
        message: what it is, what was done about it, and the mend.
        ids: of the first twenty queries or passages.
    """

    kind: str
    count: int
    message: str
    ids: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """It as plain data."""
        return asdict(self) | {"ids": list(self.ids)}


def _note(kind: str, ids: Iterable[str], message: str, things: tuple[str, str] = ("query", "queries")) -> list[Note]:
    named = list(ids)
    message = message.replace("{n}", counted(len(named), *things), 1)
    return [Note(kind, len(named), message, tuple(named[:20]))] if named else []


def sound_collection(collection: Collection) -> tuple[Collection, list[Note]]:
    """The collection with the queries that can tell rankings apart, and what was left out or has to be known.

    Raises:
        DataError: no query is left.

    >>> from rerank_lab.core import Passage
    >>> passages = {"a": Passage("a", "a ferry")}
    >>> found, notes = sound_collection(
    ...     Collection("tiny", passages, {"q1": "boat", "q2": "tram"}, {"q1": {"a": 1}, "q2": {"a": 0}})
    ... )
    >>> list(found.queries), [(n.kind, n.count) for n in notes]
    (['q1'], [('no relevant passage', 1)])
    """
    qrels = {qid: judged for qid, judged in collection.qrels.items() if judged}
    known = {qid: judged for qid, judged in qrels.items() if qid in collection.queries}
    useful = {qid: judged for qid, judged in known.items() if any(grade > 0 for grade in judged.values())}
    if not useful:
        raise DataError(
            f"no query of {collection.name} has a relevant passage in the qrels: check that the ids of queries and "
            "qrels agree, or judge some with `rerank-lab judge`"
        )
    top = max(max(judged.values()) for judged in useful.values())
    weak = [qid for qid, judged in useful.items() if max(judged.values()) < collection.relevant_from]
    absent = {
        pid for judged in useful.values() for pid, g in judged.items() if g > 0 and pid not in collection.passages
    }
    notes = [
        *_note(
            "unknown query",
            (qid for qid in qrels if qid not in collection.queries),
            "left out {n} that the qrels name and the queries lack; check the ids",
        ),
        *_note(
            "no judgments",
            (qid for qid in collection.queries if qid not in qrels),
            "left out {n} without judgments; `rerank-lab judge` asks for them",
        ),
        *_note(
            "no relevant passage",
            (qid for qid in known if qid not in useful),
            "left out {n} with judgments but without a relevant passage, where every order is worth 0",
        ),
        *_note(
            "negative grade",
            (qid for qid, judged in useful.items() if any(grade < 0 for grade in judged.values())),
            "counted grades below 0 as 0, not relevant, in {n}",
        ),
        *_note(
            "mixed grades",
            weak,
            f"found no grade of {collection.relevant_from} or more in {{n}}, while others reach {top}: nDCG counts what"
            f" is there, RR, AP and recall are 0; where the judge only said yes or no, raise 1 to {top}",
        ),
        *_note(
            "relevant passage not in the corpus",
            sorted(absent),
            "lack {n} in the corpus, which no system can find; check the ids",
            ("relevant passage", "relevant passages"),
        ),
    ]
    raised = {qid: {pid: max(0, grade) for pid, grade in judged.items()} for qid, judged in useful.items()}
    queries = {qid: text for qid, text in collection.queries.items() if qid in useful}
    return replace(collection, queries=queries, qrels={qid: raised[qid] for qid in queries}), notes


def sound_run(
    run: Mapping[str, Mapping[str, float]], name: str, collection: Collection
) -> tuple[dict[str, dict[str, float]], list[Note]]:
    """The part of a run whose queries are measured and whose passages the collection has, and what was left out.

    Args:
        collection: as `sound_collection` gives it.
    """
    kept = {qid: found for qid, found in run.items() if qid in collection.queries}
    absent = {pid for found in kept.values() for pid in found if pid not in collection.passages}
    notes = [
        *_note(
            "run without judgments",
            (qid for qid in run if qid not in kept),
            f"left out {{n}} of the run {name}, for want of usable judgments",
        ),
        *_note(
            "query not in the run",
            (qid for qid in collection.queries if not run.get(qid)),
            f"counted as nothing found: {{n}} without a line in the run {name}",
        ),
        *_note(
            "passage not in the corpus",
            sorted(absent),
            f"left out {{n}} of the run {name} that the corpus lacks; check the ids",
            ("passage", "passages"),
        ),
    ]
    found = {qid: {pid: s for pid, s in best.items() if pid not in absent} for qid, best in kept.items()}
    return found, notes
