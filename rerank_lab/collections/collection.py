"""A test collection in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rerank_lab.core import DataError, Passage

__all__ = ["Collection"]


@dataclass(frozen=True)
class Collection:
    """Passages, queries and graded judgments.

    Attributes:
        name: what reports call it.
        passages: by pid.
        queries: text by qid.
        qrels: grade by qid and pid; higher is better, 0 is judged not relevant.
        groups: a label by qid for breakdowns, for example the lab's phenomena; may be empty.
        runs: files of first-stage runs that came with the collection, by short name.
        relevant_from: the grade from which AP, RR and recall count a passage. Without it, 2 where grades reach 3 (TREC
            DL's rule), else 1; a part of a collection, made by `replace`, keeps that of the whole.
    """

    name: str
    passages: Mapping[str, Passage]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, Path] = field(default_factory=dict)
    relevant_from: int = 0

    def __post_init__(self) -> None:
        if not self.relevant_from:
            highest = max((g for judged in self.qrels.values() for g in judged.values()), default=0)
            object.__setattr__(self, "relevant_from", 2 if highest >= 3 else 1)

    def judged(self) -> dict[str, str]:
        """The queries that have judgments.

        Raises:
            DataError: no query has any, or judgments exist for a query that is missing.
        """
        unknown = [qid for qid in self.qrels if qid not in self.queries]
        if unknown:
            raise DataError(f"qrels of {self.name} name query {unknown[0]!r}, which is not among its queries")
        found = {qid: text for qid, text in self.queries.items() if self.qrels.get(qid)}
        if not found:
            raise DataError(f"no query of {self.name} has judgments: check that the ids of queries and qrels agree")
        return found
