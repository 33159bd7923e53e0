"""What the commands share: options, and how a name on the command line becomes a model, a first stage or a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from rerank_lab.core import DataError, InputError, Passage, Reranker

__all__ = [
    "CollectionName",
    "Device",
    "Dtype",
    "NoCache",
    "RerankerName",
    "RerankerNames",
    "Stage",
    "cache_unless",
    "load_first_stage",
    "load_first_stages",
    "load_reranker",
    "load_rerankers",
    "make_folder",
    "names_in",
    "read_named_run",
    "write_text",
]

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="compute every score anew, keep none")]
Stage = Annotated[str, typer.Option(help="bm25, bi-encoder or fusion")]
RerankerName = Annotated[
    str,
    typer.Option(
        help="a family (bi-encoder, cross-encoder, colbert, monot5, listwise ...), a model, a folder or a vendor"
    ),
]
RerankerNames = Annotated[
    str,
    typer.Option(help="names as for --reranker of `search`, separated by commas; all: every family that can run"),
]
CollectionName = Annotated[str, typer.Option(help="lab, a folder, or ir_datasets:ID")]


def cache_unless(off: bool):
    """The score cache, or None where it is switched off."""
    from rerank_lab.cache import ScoreCache

    return None if off else ScoreCache()


def load_reranker(name: str, dtype: str, device: str, scores) -> Reranker:
    """The reranker of a name, as `catalogue.make`; `scores` is its cache."""
    from rerank_lab.catalogue import make
    from rerank_lab.notebook import quiet

    quiet()
    return make(name, dtype=dtype, device=device, cache=scores)


def names_in(option: str, names: str) -> list[str]:
    """The names in a list with commas; raises InputError where it is empty."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise InputError(f"{option} is empty: name at least one, for example bi-encoder,cross-encoder")
    return found


def load_rerankers(
    names: str, collection: str, first_stage: str, depth: int, dtype: str, device: str, scores
) -> list[Reranker]:
    """The rerankers of a list with commas; `all` stands for those that can run, and tells why the others cannot."""
    found = names_in("--rerankers", names)
    if found == ["all"]:
        from rerank_lab.catalogue import runnable

        found, left_out = runnable(collection, first_stage, depth)
        for name, why in left_out.items():
            typer.echo(f"left out: {name} ({why})", err=True)
    return [load_reranker(name, dtype, device, scores) for name in found]


def load_first_stage(name: str, passages: Sequence[Passage], dtype: str, device: str, progress: bool = False):
    """The first stage of a name over a collection's passages; raises InputError where there is none."""
    return load_first_stages([name], passages, dtype, device, progress)[name]


def load_first_stages(
    names: Sequence[str], passages: Sequence[Passage], dtype: str, device: str, progress: bool = False
) -> dict[str, object]:
    """First stages by name over a collection's passages; fusion shares the indices of the others.

    Raises:
        InputError: no such first stage.
    """
    from rerank_lab.first_stage.bm25 import BM25
    from rerank_lab.first_stage.fusion import Fusion

    @cache
    def words():
        return BM25(passages)

    @cache
    def dense():
        from rerank_lab.first_stage.bi_encoder import BiEncoder, DenseIndex
        from rerank_lab.notebook import quiet

        quiet()
        return DenseIndex(BiEncoder.from_pretrained(dtype=dtype, device=device), passages, progress=progress)

    makers = {"bm25": words, "bi-encoder": dense, "fusion": lambda: Fusion([words(), dense()])}
    for name in names:
        if name not in makers:
            raise InputError(f"first stage {name!r} is unknown: give bm25, bi-encoder or fusion")
    return {name: makers[name]() for name in names}


def read_named_run(run: str, data) -> dict[str, dict[str, float]]:
    """A run of the collection by its short name, or a TREC file."""
    from rerank_lab.collections import read_run

    path = data.runs.get(run, Path(run))
    if not path.is_file():
        known = ", ".join(data.runs) or "none"
        raise DataError(f"run {run!r} is neither a file nor a run of {data.name} (it has: {known})")
    return read_run(path)


def make_folder(path: Path) -> None:
    """Make a folder that is missing.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be made: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file, its folder made when missing.

    Raises:
        DataError: it cannot be written.
    """
    make_folder(path.parent)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
