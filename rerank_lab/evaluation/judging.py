"""Judgments for a collection that has none: pool what several systems put first, ask, and keep every answer at once.

A passage that no system puts among its first ten is taken to be not relevant without being read, which is why the pool
needs systems of different kinds (Zobel, SIGIR 1998, https://doi.org/10.1145/290941.291014). Where two judges graded the
same pairs, Cohen's kappa says how far they agree beyond chance:

    kappa = 1 - sum(w_ij observed_ij) / sum(w_ij expected_ij),   w_ij = 1 for i != j, or (i - j)^2
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from rerank_lab.batching import progress_bar
from rerank_lab.collections.collection import Collection
from rerank_lab.core import Candidate, DataError, Usage
from rerank_lab.llm import Chat, ask_all, prompts, spoken, whole_lines

__all__ = ["Judgments", "cohen_kappa", "judge_by_chat", "parse_grade", "pool"]

USER = "user"  # by whom a judgment at the terminal is
Pair = tuple[str, str]  # qid and pid


def pool(rankings: Iterable[Mapping[str, Sequence[Candidate]]], depth: int) -> dict[str, list[str]]:
    """The pids among the first `depth` of any ranking, by qid, in random order so that places do not sway the judge.

    Args:
        rankings: one mapping a system, by qid, best first.
    """
    pooled: dict[str, list[str]] = {}
    for by_query in rankings:
        for qid, found in by_query.items():
            pooled.setdefault(qid, []).extend(c.pid for c in found[:depth])
    random = np.random.default_rng(0)
    return {
        qid: [pids[i] for i in random.permutation(len(pids))] for qid, p in pooled.items() for pids in [sorted({*p})]
    }


def parse_grade(answer: str) -> int | None:
    """The grade that an answer names; None where it names none from 0 to 3, or several.

    >>> parse_grade("Grade: 2"), parse_grade("<think>3? No.</think>0"), parse_grade("1 or 2"), parse_grade("12")
    (2, 0, None, None)
    """
    named = set(re.findall(r"\d+", spoken(answer)))
    return int(named.pop()) if len(named) == 1 and named <= {"0", "1", "2", "3"} else None


def cohen_kappa(pairs: Sequence[tuple[int, int]], *, squared: bool = False) -> float:
    """Agreement of two judges beyond chance: 1 is full, 0 is chance.

    Args:
        pairs: the grades that both gave; at least one pair.
        squared: weigh a disagreement by the square of its size.

    >>> round(cohen_kappa([(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15), 3)
    0.4
    """
    n = len(pairs)
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)

    def weight(a: int, b: int) -> int:
        return (a - b) ** 2 if squared else int(a != b)

    observed = sum(weight(a, b) for a, b in pairs) / n
    expected = sum(weight(a, b) * left[a] * right[b] for a in left for b in right) / n**2
    return 1 - observed / expected if expected else 1.0


class Judgments:
    """A file of judgments, JSON lines that are only added to: qid, pid, grade, by, date. The last line of a judge about
    a pair counts; a grade of null takes the judgment back.

    Args:
        path: the file; made when missing.

    Raises:
        DataError: a line that is no judgment.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._by: dict[str, dict[Pair, int]] = {}
        for number, line in enumerate(whole_lines(self.path), start=1):
            try:
                row = json.loads(line)
                self._set((str(row["qid"]), str(row["pid"])), row["grade"], str(row["by"]))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{self.path}:{number}: not a judgment; delete the line to judge anew") from error

    def _set(self, pair: Pair, grade: int | None, by: str) -> None:
        if grade is None:
            self._by.get(by, {}).pop(pair, None)
        elif type(grade) is int and 0 <= grade <= 3:
            self._by.setdefault(by, {})[pair] = grade
        else:
            raise ValueError(grade)

    def add(self, qid: str, pid: str, grade: int | None, by: str) -> None:
        """Keep a judgment, on disk before anything else happens."""
        self._set((qid, pid), grade, by)
        row = {"qid": qid, "pid": pid, "grade": grade, "by": by, "date": date.today().isoformat()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error

    def by(self, judge: str) -> dict[Pair, int]:
        """The grades that a judge gave, by pair."""
        return dict(self._by.get(judge, {}))

    @property
    def judges(self) -> list[str]:
        return [judge for judge, grades in self._by.items() if grades]

    def qrels(self, given: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        """One grade a pair: a user's before a model's, a model's before one that was given.

        Args:
            given: judgments that the collection had before.
        """
        merged = {qid: dict(judged) for qid, judged in given.items()}
        for judge in sorted(self._by, key=lambda judge: judge == USER):
            for (qid, pid), grade in self._by[judge].items():
                merged.setdefault(qid, {})[pid] = grade
        return merged

    def agreement(self, judge: str, other: str) -> dict | None:
        """How far two judges agree where both judged: pairs, share, kappa, squared kappa; None without common pairs."""
        left, right = self.by(judge), self.by(other)
        common = [(left[pair], right[pair]) for pair in left if pair in right]
        if not common:
            return None
        return {
            "pairs": len(common),
            "share": sum(a == b for a, b in common) / len(common),
            "kappa": cohen_kappa(common),
            "squared_kappa": cohen_kappa(common, squared=True),
        }


def judge_by_chat(
    chat: Chat, collection: Collection, pairs: Sequence[Pair], judgments: Judgments, *, progress: bool = False
) -> tuple[Usage, int]:
    """Ask a language model about pairs and keep each grade as soon as it is given.

    Returns:
        What it took, and how many answers named no grade; such a pair stays open.
    """
    say, usage, refused = prompts("judge"), Usage(), 0
    size = max(1, chat.concurrency)
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    for part in progress_bar(parts, f"judging by {chat.model}", progress):
        asked = [
            say["ask"].format(grades=say["grades"], query=collection.queries[q], text=collection.passages[p].text)
            for q, p in part
        ]
        answers = ask_all(chat, [[{"role": "user", "content": text}] for text in asked], usage, max_tokens=16)
        for (qid, pid), answer in zip(part, answers, strict=True):
            grade = parse_grade(answer)
            refused += grade is None
            if grade is not None:
                judgments.add(qid, pid, grade, chat.model)
    return usage, refused
