"""Training groups: a query, eight passages, a gain for each, and what the untrained backbone thinks of them.

Negatives are hard on purpose: what BM25 and the bi-encoder rank high among the other crops of the same article, the
other answers about the same disease, graded near misses. What contains the answer's own words, or is nearly the
positive itself, is left out (a false negative teaches the opposite).
"""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from rerank_lab.core import DataError
from rerank_lab.first_stage.bi_encoder import BiEncoder
from rerank_lab.training.negatives import NEAR_COPY, SIZE, Negatives
from rerank_lab.training.own import collection_drafts
from rerank_lab.training.teacher import Teacher
from rerank_lab.training.text import crop, subject_of, tiles

__all__ = ["Group", "GroupMaker", "load_groups", "save_groups"]


@dataclass(frozen=True, slots=True)
class Group:
    """A query with its passages; `gains` are in 0..1, `teacher` holds the backbone's scores in -1..1."""

    source: str
    query: str
    passages: list[str]
    gains: list[float]
    teacher: list[float]


class GroupMaker:
    """Makes groups from a folder of training text.

    Args:
        folder: holds squad-dev, selqa, medquad, wikiqa-train and trec-dl-2021 as `.jsonl.gz`, those that are asked for;
            or, for the source `collection`, a folder in BEIR's layout, with judgments to train on in qrels/train.tsv.
        encoder: the bi-encoder that mines negatives and teaches.
        seed: of every random choice.
        negatives: which rankings negatives come from: bm25, bi-encoder, both, or random.
    """

    def __init__(self, folder: Path, encoder: BiEncoder, seed: int, negatives: str = "both"):
        self.folder, self.encoder, self.random = folder, encoder, random.Random(seed)
        self.negatives = Negatives(encoder, self.random, negatives)

    def make(self, counts: dict[str, int]) -> Iterator[Group]:
        """Groups of each source, at most `counts[source]` of them; sources without a count are skipped."""
        makers = {
            "squad": self._squad,
            "selqa": lambda: self._sentences("selqa"),
            "wikiqa": lambda: self._sentences("wikiqa-train"),
            "medquad": self._medquad,
            "keywords": self._keywords,
            "dl21": self._dl21,
            "written": lambda: self._written(over_dl21=False),
            "written_dl21": lambda: self._written(over_dl21=True),
            "near_misses": self._near_misses,
            "collection": lambda: collection_drafts(self.folder, counts["collection"], self.negatives),
        }
        teacher = Teacher(self.encoder)
        for source, count in counts.items():
            if source not in makers:
                raise DataError(f"unknown training source {source!r}: known are {', '.join(makers)}")
            drafts = list(makers[source]())
            self.random.shuffle(drafts)
            queries, passages, gains = zip(*drafts[:count], strict=True) if drafts and count else ((), (), ())
            for query, found, gain, scores in zip(
                queries, passages, gains, teacher.scores(queries, passages), strict=True
            ):
                yield Group(source, query, found, gain, [round(s, 4) for s in scores])

    def _read(self, name: str) -> list[dict]:
        path = self.folder / f"{name}.jsonl.gz"
        if not path.is_file():
            raise DataError(f"training text {path} is missing: point `data` in the config at the folder that holds it")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _squad(self):
        """Questions against crops of the same article that do not hold the answer's words."""
        articles = defaultdict(list)
        for row in self._read("squad-dev"):
            articles[row["article"]].append(row)
        for rows in articles.values():
            crops = [crop(r["context"], s, e) for r in rows for s, e in tiles(r["context"])]
            questions = [(q, r["context"]) for r in rows for q in self.random.sample(r["questions"], 1)]
            order = self.negatives.ranked([q["query"] for q, _ in questions], crops)
            for (question, context), ranked in zip(questions, order, strict=True):
                answers = [a.lower() for a in question["answers"]]
                clean = [i for i in ranked if not any(a in crops[i].lower() for a in answers)]
                before = len(context[: question["answer_start"]].split())
                width = self.random.randint(45, 75)
                start = max(0, min(before - self.random.randint(0, width - 12), len(context.split()) - width))
                negatives = [crops[i] for i in self.negatives.pick(clean)]
                positive = crop(context, start, start + width)
                if len(negatives) == SIZE - 1 and question["answer"].lower() in positive.lower():
                    yield question["query"], [positive, *negatives], [1.0] + [0.0] * (SIZE - 1)

    def _sentences(self, name: str):
        """Answer sentences against neighbouring sentences of their section, two at a time."""
        for row in self._read(name):
            pairs = [" ".join(row["neg"][i : i + 2]) for i in range(len(row["neg"]))]
            self.random.shuffle(pairs)
            if len(pairs) >= SIZE - 1:
                positive = self.random.choice(row["pos"])
                yield row["query"], [positive, *pairs[: SIZE - 1]], [1.0] + [0.0] * (SIZE - 1)

    def _openings(self) -> tuple[list[dict], list[str]]:
        """4,000 of MedQuAD's rows, and the first 45 to 80 words of their answers."""
        rows = self._read("medquad")
        self.random.shuffle(rows)
        return rows[:4000], [crop(r["pos"], 0, self.random.randint(45, 80)) for r in rows[:4000]]

    def _medquad(self):
        """Questions against the openings of other answers."""
        rows, openings = self._openings()
        asked = range(min(1500, len(rows)))
        vectors = self.encoder.encode(openings)
        queries = [rows[i]["query"] for i in asked]
        for i, ranked in zip(asked, self.negatives.ranked(queries, openings, vectors), strict=True):
            same = (vectors[ranked] @ vectors[i] > NEAR_COPY).tolist()
            clean = [
                j
                for j, copy in zip(ranked, same, strict=True)
                if not copy and rows[j]["query"].lower() != rows[i]["query"].lower()
            ]
            negatives = [openings[j] for j in self.negatives.pick(clean)]
            if len(negatives) == SIZE - 1:
                yield rows[i]["query"], [openings[i], *negatives], [1.0] + [0.0] * (SIZE - 1)

    def _keywords(self):
        """Queries of a few words, as people type them: what a MedQuAD question is about, and all answers about it."""
        rows, openings = self._openings()
        about = [subject_of(r["query"]) for r in rows]
        of_subject = defaultdict(list)
        for i, subject in enumerate(about):
            if subject:
                of_subject[subject].append(i)
        subjects = [s for s, places in of_subject.items() if len(places) > 1]
        for subject, ranked in zip(subjects, self.negatives.ranked(subjects, openings), strict=True):
            good = self.random.sample(of_subject[subject], min(3, len(of_subject[subject])))
            clean = [j for j in ranked if subject not in openings[j].lower() and subject not in (about[j] or "")]
            negatives = self.negatives.pick(clean)[: SIZE - len(good)]
            if len(good) + len(negatives) == SIZE:
                yield subject, [openings[i] for i in good + negatives], [1.0] * len(good) + [0.0] * len(negatives)

    def _dl21(self):
        """Graded candidates, twenty groups a query: one to three good ones among the lesser."""
        queries = defaultdict(dict)
        for row in self._read("trec-dl-2021"):
            queries[row["query"]].update({c["id"]: c for c in row["candidates"] if c["grade"] is not None})
        for query, judged in queries.items():
            good = [c for c in judged.values() if c["grade"] >= 2]
            lesser = [c for c in judged.values() if c["grade"] < 2]
            for _ in range(20):
                few = self.random.sample(good, min(len(good), self.random.randint(1, 3)))
                rest = self.random.sample(lesser, min(len(lesser), SIZE - len(few)))
                if few and len(few) + len(rest) == SIZE:
                    yield query, [crop(c["text"], 0, 100) for c in few + rest], [c["grade"] / 3 for c in few + rest]

    def _written(self, over_dl21: bool):
        """Queries and grades written for this project over clusters of like passages of the other sources."""
        rows = [row for row in _bundled("written") if any(k.startswith("dl21:") for k in row["passages"]) is over_dl21]
        squad = {(r["article"], str(r["paragraph"])): r["context"] for r in self._read("squad-dev")}
        medquad = [r["pos"] for r in self._read("medquad")]
        dl21 = {c["id"]: c["text"] for r in self._read("trec-dl-2021") for c in r["candidates"]} if over_dl21 else {}

        def text(key: str) -> str:
            source, _, rest = key.partition(":")
            if source == "dl21":
                return crop(dl21[rest], 0, 100)
            *where, start, end = rest.split(":")
            return crop(squad[tuple(where)] if source == "squad" else medquad[int(where[0])], int(start), int(end))

        for row in rows:
            yield row["query"], [text(k) for k in row["passages"]], [g / 3 for g in row["grades"]]

    def _near_misses(self):
        """Groups written for this project: wrong passages look right; passages of other groups fill them up."""
        rows = [*_bundled("near_misses"), *_bundled("near_misses_more")]
        for row in rows:
            others = self.random.sample([r for r in rows if r is not row], SIZE - len(row["passages"]))
            passages = row["passages"] + [{**self.random.choice(r["passages"]), "grade": 0} for r in others]
            yield row["query"], [p["text"] for p in passages], [p["grade"] / 3 for p in passages]


def _bundled(name: str) -> list[dict]:
    lines = (files("rerank_lab.training") / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def save_groups(groups: list[Group], path: Path) -> None:
    """Write groups as JSON lines; whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(g), ensure_ascii=False) + "\n" for g in groups), encoding="utf-8")
    part.replace(path)


def load_groups(path: Path) -> list[Group]:
    """Read groups written by `save_groups`."""
    return [Group(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
