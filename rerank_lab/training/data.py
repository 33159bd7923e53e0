"""Training groups: a query, eight passages, a gain for each. Five sources of text, and queries written for them.

Negatives are hard on purpose: other crops of the same article, other answers about the same disease, graded
near misses. What contains the answer's own words, or is nearly the positive itself, is left out (a false
negative teaches the opposite).
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

__all__ = ["Group", "GroupMaker"]

SIZE = 8  # passages a group
NEAR_COPY = 0.95  # cosine above which a negative may be the positive in other words


@dataclass(frozen=True, slots=True)
class Group:
    """A query with its passages; `gains` are in 0..1, `cosines` are the bi-encoder's."""

    source: str
    query: str
    passages: list[str]
    gains: list[float]
    cosines: list[float]


def crop(text: str, start: int, end: int) -> str:
    """Words `start` to `end` of a text.

    >>> crop("the ferry leaves at nine", 1, 3)
    'ferry leaves'
    """
    return " ".join(text.split()[start:end])


def tiles(text: str, words: int = 60) -> list[tuple[int, int]]:
    """Cut a text into crops of equal size; a tail shorter than a third is left off.

    >>> tiles("w " * 130)
    [(0, 60), (60, 120)]
    """
    n = len(text.split())
    return [(s, min(n, s + words)) for s in range(0, max(1, n - words // 3), words)]


class GroupMaker:
    """Makes groups from a folder of training text.

    Args:
        folder: holds squad-dev, selqa, wikiqa-train, medquad and trec-dl-2021 as `.jsonl.gz`.
        encoder: the bi-encoder that mines negatives and gives the teacher's cosines.
        seed: of every random choice.
    """

    def __init__(self, folder: Path, encoder: BiEncoder, seed: int):
        self.folder, self.encoder, self.random = folder, encoder, random.Random(seed)

    def make(self, counts: dict[str, int]) -> Iterator[Group]:
        """Groups of each source, at most `counts[source]` of them; sources without a count are skipped."""
        makers = {
            "squad": self._squad,
            "selqa": lambda: self._sentences("selqa"),
            "wikiqa": lambda: self._sentences("wikiqa-train"),
            "medquad": self._medquad,
            "dl21": self._dl21,
            "written": self._written,
            "near_misses": lambda: self._near_misses("near_misses"),
            "near_misses_more": lambda: self._near_misses("near_misses_more"),
        }
        for source, count in counts.items():
            if source not in makers:
                raise DataError(f"unknown training source {source!r}: known are {', '.join(makers)}")
            drafts = list(makers[source]())
            self.random.shuffle(drafts)
            yield from self._with_cosines(source, drafts[:count])

    def _read(self, name: str) -> list[dict]:
        path = self.folder / f"{name}.jsonl.gz"
        if not path.is_file():
            raise DataError(f"training text {path} is missing: point `data` in the config at the folder that holds it")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _with_cosines(self, source: str, drafts: list[tuple[str, list[str], list[float]]]) -> Iterator[Group]:
        texts = list(dict.fromkeys(t for query, passages, _ in drafts for t in (query, *passages)))
        place = {t: i for i, t in enumerate(texts)}
        vectors = self.encoder.encode(texts, progress=True)
        for query, passages, gains in drafts:
            cosines = vectors[[place[p] for p in passages]] @ vectors[place[query]]
            yield Group(source, query, passages, gains, [round(c, 4) for c in cosines.tolist()])

    def _pick(self, ranked: list[int], hard: int = 4) -> list[int]:
        """Four of the ten hardest and the rest from the next thirty."""
        rest = ranked[10:40]
        picked = self.random.sample(ranked[:10], min(hard, len(ranked[:10])))
        return picked + self.random.sample(rest, min(SIZE - 1 - len(picked), len(rest)))

    def _squad(self):
        articles = defaultdict(list)
        for row in self._read("squad-dev"):
            articles[row["article"]].append(row)
        for rows in articles.values():
            crops = [crop(r["context"], s, e) for r in rows for s, e in tiles(r["context"])]
            questions = [(q, r["context"]) for r in rows for q in r["questions"]]
            vectors = self.encoder.encode(crops)
            asked = self.encoder.encode([q["query"] for q, _ in questions])
            order = (asked @ vectors.T).argsort(dim=1, descending=True).tolist()
            for (question, context), ranked in zip(questions, order, strict=True):
                answers = [a.lower() for a in question["answers"]]
                clean = [i for i in ranked if not any(a in crops[i].lower() for a in answers)]
                before = len(context[: question["answer_start"]].split())
                width = self.random.randint(45, 75)
                start = max(0, min(before - self.random.randint(0, width - 12), len(context.split()) - width))
                negatives = [crops[i] for i in self._pick(clean)]
                if (
                    len(negatives) == SIZE - 1
                    and question["answer"].lower() in crop(context, start, start + width).lower()
                ):
                    positive = crop(context, start, start + width)
                    yield question["query"], [positive, *negatives], [1.0] + [0.0] * (SIZE - 1)

    def _sentences(self, name: str):
        """Answer sentences against neighbouring sentences of their section, two at a time."""
        for row in self._read(name):
            pairs = [" ".join(row["neg"][i : i + 2]) for i in range(len(row["neg"]))]
            self.random.shuffle(pairs)
            if len(pairs) >= SIZE - 1:
                positive = self.random.choice(row["pos"])
                yield row["query"], [positive, *pairs[: SIZE - 1]], [1.0] + [0.0] * (SIZE - 1)

    def _medquad(self):
        rows = self._read("medquad")
        self.random.shuffle(rows)
        rows = rows[:6000]
        openings = [crop(r["pos"], 0, self.random.randint(45, 80)) for r in rows]
        vectors = self.encoder.encode(openings, progress=True)
        asked = self.encoder.encode([r["query"] for r in rows], progress=True)
        for i, row in enumerate(rows):
            ranked = (vectors @ asked[i]).argsort(descending=True)[:60].tolist()
            same = (vectors[ranked] @ vectors[i] > NEAR_COPY).tolist()
            clean = [
                j
                for j, copy in zip(ranked, same, strict=True)
                if not copy and rows[j]["query"].lower() != row["query"].lower()
            ]
            negatives = [openings[j] for j in self._pick(clean)]
            if len(negatives) == SIZE - 1:
                yield row["query"], [openings[i], *negatives], [1.0] + [0.0] * (SIZE - 1)

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

    def _written(self):
        """Queries and grades written for this project over clusters of like passages of the other sources."""
        squad = {(r["article"], str(r["paragraph"])): r["context"] for r in self._read("squad-dev")}
        medquad = [r["pos"] for r in self._read("medquad")]
        dl21 = {c["id"]: c["text"] for r in self._read("trec-dl-2021") for c in r["candidates"]}

        def text(key: str) -> str:
            source, _, rest = key.partition(":")
            if source == "dl21":
                return crop(dl21[rest], 0, 100)
            *where, start, end = rest.split(":")
            return crop(squad[tuple(where)] if source == "squad" else medquad[int(where[0])], int(start), int(end))

        lines = (files("rerank_lab.training") / "written.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines):
            yield row["query"], [text(k) for k in row["passages"]], [g / 3 for g in row["grades"]]

    def _near_misses(self, name: str):
        """Groups written for this project: wrong passages look right; passages of other groups fill them up."""
        lines = (files("rerank_lab.training") / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            others = self.random.sample([r for r in rows if r is not row], SIZE - len(row["passages"]))
            passages = row["passages"] + [{**self.random.choice(r["passages"]), "grade": 0} for r in others]
            yield row["query"], [p["text"] for p in passages], [p["grade"] / 3 for p in passages]


def save_groups(groups: list[Group], path: Path) -> None:
    """Write groups as JSON lines; whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(g), ensure_ascii=False) + "\n" for g in groups), encoding="utf-8")
    part.replace(path)


def load_groups(path: Path) -> list[Group]:
    """Read groups written by `save_groups`."""
    return [Group(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
