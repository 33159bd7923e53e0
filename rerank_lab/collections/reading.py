"""Read and write what the field exchanges: BEIR folders, TREC runs and qrels, plain or gzipped.

A malformed line is refused with its file, its number and what was expected; nothing is skipped in silence.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from math import isfinite
from pathlib import Path

from rerank_lab.collections.collection import Collection
from rerank_lab.core import DataError, Passage

__all__ = ["MissingFileError", "read_collection", "read_qrels", "read_run", "write_qrels", "write_run"]


class MissingFileError(DataError):
    """A folder lacks a file of its layout."""


def read_collection(spec: str | Path, *, judged: bool = True) -> Collection:
    """Read a collection.

    Args:
        spec: `lab`; a folder with corpus.jsonl, queries.jsonl and qrels.trec or qrels/test.tsv, each plain or .gz; or
            `ir_datasets:ID`, which needs the package ir-datasets and the web.
        judged: whether a folder must have qrels.

    Raises:
        DataError: a file is missing or malformed.
    """
    spec = str(spec)
    if spec == "lab":
        return _read_folder(Path(str(files("rerank_lab") / "data" / "lab")), "lab", judged)
    if spec.startswith("ir_datasets:"):
        return _read_ir_datasets(spec.removeprefix("ir_datasets:"))
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise DataError(f"collection {spec!r} is not a folder: give a folder, `lab`, or `ir_datasets:ID`")
    return _read_folder(folder, folder.resolve().name, judged)


def _read_folder(folder: Path, name: str, judged: bool) -> Collection:
    passages: dict[str, Passage] = {}
    corpus = _find(folder, "corpus.jsonl")
    for number, row in _json_lines(corpus):
        pid = _text(corpus, number, row, "_id")
        if pid in passages:
            raise DataError(f"{corpus}:{number}: pid {pid!r} occurs twice")
        text = _text(corpus, number, row, "text", empty=True)
        passages[pid] = Passage(pid, f"{row.get('title') or ''} {text}".strip())
    queries: dict[str, str] = {}
    groups: dict[str, str] = {}
    asked = _find(folder, "queries.jsonl")
    for number, row in _json_lines(asked):
        qid = _text(asked, number, row, "_id")
        if qid in queries:
            raise DataError(f"{asked}:{number}: qid {qid!r} occurs twice")
        queries[qid] = _text(asked, number, row, "text")
        if group := (row.get("metadata") or {}).get("phenomenon"):
            groups[qid] = group
    try:
        qrels = read_qrels(_find(folder, "qrels.trec", "qrels/test.tsv"))
    except MissingFileError as error:
        if judged:
            raise DataError(f"{error}; `rerank-lab judge {folder}` makes them") from None
        qrels = {}
    runs: dict[str, Path] = {}
    for path in sorted(folder.glob("run.*.trec*")):
        short = path.name.split(".")[1]
        if short in runs:  # run.bm25.top100.trec beside run.bm25.top1000.trec: both by their full names
            short = path.name
        runs[short] = path
    return Collection(name, passages, queries, qrels, groups, runs)


def _read_ir_datasets(identifier: str) -> Collection:
    try:
        import ir_datasets
    except ImportError as error:
        raise DataError("ir_datasets:ID needs `pip install rerank-lab[bench]`") from error
    try:
        dataset = ir_datasets.load(identifier)
        passages = {d.doc_id: Passage(d.doc_id, d.default_text()) for d in dataset.docs_iter()}
        queries = {q.query_id: q.default_text() for q in dataset.queries_iter()}
        qrels: dict[str, dict[str, int]] = {}
        for line in dataset.qrels_iter():
            qrels.setdefault(line.query_id, {})[line.doc_id] = line.relevance
    except KeyError as error:
        raise DataError(f"ir_datasets does not know {identifier!r}: see `ir_datasets list`") from error
    except (OSError, RuntimeError) as error:
        raise DataError(f"ir_datasets could not fetch {identifier!r}: {error}") from error
    return Collection(identifier, passages, queries, qrels)


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise MissingFileError(f"{folder} has no {' or '.join(names)} (plain or .gz)")


def open_text(path: Path, mode: str = "r"):
    """Open a text file, gzipped or not by its name."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        return opener(path, mode + "t", encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror or error}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    with open_text(path) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
        except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{path}: not readable as UTF-8 text ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _text(path: Path, number: int, row: dict, key: str, empty: bool = False) -> str:
    value = row.get(key)
    if isinstance(value, int) and key == "_id":
        value = str(value)
    if not isinstance(value, str) or not (value.strip() or empty):
        raise DataError(f"{path}:{number}: {key!r} is {value!r}, expected a string that is not blank")
    return value


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read judgments: TREC (`qid 0 pid grade`) or BEIR (`query-id corpus-id score`, tab-separated, with a header)."""
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    for number, line in numbered_lines(path):
        fields = line.split()
        if number == 1 and fields[0] in {"query-id", "qid"}:
            continue
        if len(fields) not in (3, 4):
            raise DataError(f"{path}:{number}: expected `qid 0 pid grade` or `qid pid grade`, got {line.strip()!r}")
        qid, pid, grade = fields[0], fields[-2], fields[-1]
        try:
            value = int(grade)
        except ValueError as error:
            raise DataError(f"{path}:{number}: grade {grade!r} is not a whole number") from error
        if pid in qrels.setdefault(qid, {}):
            raise DataError(f"{path}:{number}: query {qid!r} judges passage {pid!r} twice")
        qrels[qid][pid] = value
    if not qrels:
        raise DataError(f"{path} holds no judgment")
    return qrels


def write_qrels(qrels: Mapping[str, Mapping[str, int]], path: str | Path) -> None:
    """Write judgments: in BEIR's layout to a `.tsv`, in TREC's to any other file."""
    path = Path(path)
    beir = path.name.removesuffix(".gz").endswith(".tsv")
    with open_text(path, "w") as stream:
        stream.write("query-id\tcorpus-id\tscore\n" if beir else "")
        for qid, judged in qrels.items():
            stream.writelines(f"{qid}\t{pid}\t{g}\n" if beir else f"{qid} 0 {pid} {g}\n" for pid, g in judged.items())


def run_lines(path: str | Path) -> Iterator[tuple[int, str, str, float]]:
    """The lines of a TREC run, `qid Q0 pid rank score tag`, one after the other: number, qid, pid and score."""
    path = Path(path)
    for number, line in numbered_lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise DataError(f"{path}:{number}: expected `qid Q0 pid rank score tag`, got {line.strip()!r}")
        try:
            score = float(fields[4])
        except ValueError as error:
            raise DataError(f"{path}:{number}: score {fields[4]!r} is not a number") from error
        if not isfinite(score):
            raise DataError(f"{path}:{number}: score {fields[4]!r} is not a finite number")
        yield number, fields[0], fields[2], score


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a TREC run, `qid Q0 pid rank score tag`; passages of a query come best first, ties in file order."""
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    for number, qid, pid, score in run_lines(path):
        if pid in run.setdefault(qid, {}):
            raise DataError(f"{path}:{number}: query {qid!r} lists passage {pid!r} twice")
        run[qid][pid] = score
    if not run:
        raise DataError(f"{path} holds no run line")
    return {qid: dict(sorted(found.items(), key=lambda item: -item[1])) for qid, found in run.items()}


def write_run(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str) -> None:
    """Write a run in TREC's format, best first, scores in full precision."""
    tag = "-".join(tag.split())
    with open_text(Path(path), "w") as stream:
        for qid, found in run.items():
            ordered = sorted(found.items(), key=lambda item: -item[1])
            stream.writelines(
                f"{qid} Q0 {pid} {i} {score!r} {tag}\n" for i, (pid, score) in enumerate(ordered, start=1)
            )
