"""What a distributed run reads: one row a query with its candidates, and each machine's one copy of the passages.

    queries + run  ->  requests/part-00000.parquet, ...   (qid, query, pid[], score[])
    passages       ->  an Arrow table sorted by pid       (pid, text)

A run is read as a stream, so its size does not matter; queries and passages have to fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_lab.collections.reading import run_lines
from rerank_lab.core import DataError, InputError, Passage, check_request

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["passage_table", "prepare", "text_of", "write_requests"]

QUERIES_A_FILE = 10_000


def prepare(
    folder: Path,
    queries: Mapping[str, str] | Path,
    run: Mapping[str, Mapping[str, float]] | Path,
    depth: int | None,
    what: dict[str, object],
) -> None:
    """Write the requests to `folder/requests` and, beside them, what the folder is for.

    Args:
        folder: of one run, one reranker and one set of passages.
        queries, run, depth: as in `write_requests`.
        what: all else that has to stay the same for a folder with scores.

    Raises:
        InputError: the folder holds scores of something else.
    """
    fresh, kept = folder / "requests.new", folder / "run.json"
    shutil.rmtree(fresh, ignore_errors=True)
    digest, count = write_requests(queries, run, fresh, depth)
    what = {**what, "queries": count, "requests": digest}
    before = json.loads(kept.read_text(encoding="utf-8")) if (folder / "scores").is_dir() else what
    differs = next((key for key in what if before.get(key) != what[key]), None)
    if differs:
        shutil.rmtree(fresh)
        raise InputError(
            f"{folder} holds scores of something else ({differs} was {before.get(differs)!r} and is "
            f"{what[differs]!r}): give another folder"
        )
    kept.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "requests", ignore_errors=True)
    fresh.rename(folder / "requests")


def write_requests(
    queries: Mapping[str, str] | Path, run: Mapping[str, Mapping[str, float]] | Path, folder: Path, depth: int | None
) -> tuple[str, int]:
    """Write one row a query, best candidates first, to `folder/part-*.parquet`.

    Args:
        queries: text by qid, or a file or folder with the columns qid (or _id) and text.
        run: scores by qid and pid, a TREC file, or a file or folder with the columns qid, pid and score. In a file the
            lines of a query stand together, as every tool writes them.
        folder: made when missing.
        depth: candidates to keep for each query; None for all.

    Returns:
        The digest of all rows, and how many there are.

    Raises:
        DataError: a file cannot be read, the run names a query that is missing, or a query's lines are scattered.
        InputError: a blank query.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    schema = pa.schema({"qid": pa.string(), "query": pa.string(), "pid": listed, "score": numbers})
    folder.mkdir(parents=True)
    digest, count = hashlib.blake2b(digest_size=16), 0
    rows = _requests(_texts(queries), run, depth)
    while some := list(islice(rows, QUERIES_A_FILE)):
        for row in some:
            with _unicode(f"query {row['qid']!r}"):
                digest.update("\0".join([row["qid"], row["query"], *row["pid"], ""]).encode())
        pq.write_table(pa.Table.from_pylist(some, schema), folder / f"part-{count // QUERIES_A_FILE:05}.parquet")
        count += len(some)
    if not count:
        raise DataError("the run is empty: there is nothing to score")
    return digest.hexdigest(), count


def _requests(queries: Mapping[str, str], run, depth: int | None) -> Iterator[dict]:
    seen: set[str] = set()
    for qid, found in _by_query(run):
        if qid not in queries:
            raise DataError(f"the run has query {qid!r}, which is not among the queries")
        if qid in seen:
            raise DataError(f"the run's lines of query {qid!r} are not together: sort the run by its first column")
        seen.add(qid)
        check_request(queries[qid], [], None)
        best = sorted(found, key=lambda pair: -pair[1])[:depth]
        yield {"qid": qid, "query": queries[qid], "pid": [p for p, _ in best], "score": [float(s) for _, s in best]}


def _by_query(run) -> Iterator[tuple[str, Iterable[tuple[str, float]]]]:
    if isinstance(run, Mapping):
        yield from ((qid, found.items()) for qid, found in run.items())
        return
    if _is_table(run):
        lines = ((row["qid"], row["pid"], row["score"]) for row in _rows(run, "qid", "pid", "score"))
    else:
        lines = (line[1:] for line in run_lines(run))
    for qid, group in groupby(lines, key=itemgetter(0)):
        yield qid, (line[1:] for line in group)


def _texts(queries: Mapping[str, str] | Path) -> Mapping[str, str]:
    if isinstance(queries, Mapping):
        return queries
    return {row["qid"]: row["text"] for row in _rows(queries, "qid", "text")}


def passage_table(passages: Mapping[str, Passage] | Path) -> pa.Table:
    """The passages as an Arrow table with the columns pid and text, sorted by pid.

    Args:
        passages: by pid, or a file or folder with the columns pid (or _id), text and, if there is one, title, which
            goes before the text.

    Raises:
        DataError: a file cannot be read, or a pid occurs twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(passages, Mapping):
        with _unicode("a passage"):
            table = pa.table({"pid": list(passages), "text": [p.text for p in passages.values()]}, _passage_schema())
    else:
        with _refusing(passages):
            table = _scanner(passages, "pid", "text", optional="title").to_table()
            if "title" in table.column_names:
                joined = pc.binary_join_element_wise(pc.coalesce(table["title"], ""), table["text"], " ")
                table = table.set_column(table.column_names.index("text"), "text", pc.utf8_trim_whitespace(joined))
            table = table.select(["pid", "text"]).cast(_passage_schema())
    table = table.sort_by("pid").combine_chunks()
    pids = table["pid"]
    same = pc.index(pc.equal(pids[1:], pids[:-1]), True).as_py() if len(pids) > 1 else -1
    if same >= 0:
        raise DataError(f"pid {pids[same].as_py()!r} occurs twice among the passages")
    return table


def _passage_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema({"pid": pa.large_string(), "text": pa.large_string()})


def text_of(table: pa.Table, pid: str) -> str:
    """The text of a passage, found by bisection.

    Raises:
        DataError: the table has no such pid.

    >>> text_of(passage_table({p: Passage(p, p.upper()) for p in ("b", "é", "a")}), "é")
    'É'
    """
    column = table.column("pid")
    place = bisect_left(range(len(column)), pid, key=lambda i: column[i].as_py())
    if place == len(column) or column[place].as_py() != pid:
        raise DataError(f"the run lists passage {pid!r}, which is not among the passages")
    return table.column("text")[place].as_py()


def _is_table(path: Path) -> bool:
    return path.is_dir() or path.name.endswith((".parquet", ".jsonl", ".jsonl.gz"))


def _rows(path: Path, *columns: str) -> Iterator[dict]:
    with _refusing(path):
        for batch in _scanner(path, *columns).to_batches():
            yield from batch.to_pylist()


def _scanner(path: Path, *columns: str, optional: str = ""):
    """Reads columns of parquet (a file or a folder of them) or JSONL; BEIR's _id stands for the first of them."""
    import pyarrow.dataset as ds

    data = ds.dataset(path, format=_format(path))
    there = data.schema.names
    names = {name: name for name in (*columns, optional) if name in there}
    if "_id" in there:
        names.setdefault(columns[0], "_id")
    missing = next((name for name in columns if name not in names), None)
    if missing:
        raise DataError(f"{path} has no column {missing!r}; it has {', '.join(there)}")
    return data.scanner(columns={new: ds.field(old) for new, old in names.items()})


def _format(path: Path) -> str:
    return "json" if path.name.endswith((".jsonl", ".jsonl.gz")) else "parquet"


@contextmanager
def _unicode(where: str):
    try:
        yield
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half of a surrogate pair: the text is not valid Unicode") from error


@contextmanager
def _refusing(path: Path):
    from pyarrow.lib import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as {_format(path)}: {error}") from error
