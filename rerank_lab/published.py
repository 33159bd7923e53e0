"""Figures of others, each with its source and its candidates (`data/published.toml`), and the lab's own.

A reranker's figure depends on the candidates that it was given, so rows compare within one first stage only.
Nothing here averages them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from rerank_lab.checkpoints import tomllib
from rerank_lab.core import DataError

__all__ = ["Published", "by_candidates", "measured", "published"]


@dataclass(frozen=True, slots=True)
class Published:
    """One figure of somebody else's.

    Attributes:
        collection, measure, system: what was measured on what, of whom.
        value: between 0 and 1.
        family: the key of its colour in `plots.COLOURS`.
        first_stage: whose candidates were reordered.
        depth: how many of them; 0 where the row is the first stage's own order.
        cited: the source as the text names it.
        source: its address.
        speed: passages a second, where the source says; 0 where not.
        on: the machine that it is for.
    """

    collection: str
    measure: str
    system: str
    value: float
    family: str
    first_stage: str
    cited: str
    source: str
    depth: int = 0
    speed: int = 0
    on: str = ""


@cache
def published() -> tuple[Published, ...]:
    """All published figures, in the order of the file.

    >>> [(p.system, p.value) for p in published() if p.first_stage.startswith("monoT5-3B")]
    [('monoT5-3B', 0.3984), ('duoT5-3B', 0.4091)]
    """
    text = (files("rerank_lab") / "data" / "published.toml").read_text(encoding="utf-8")
    groups = tomllib.loads(text)["group"]
    shared = [({k: v for k, v in group.items() if k != "rows"}, group["rows"]) for group in groups]
    return tuple(Published(**common | row) for common, rows in shared for row in rows)


def by_candidates(rows: Iterable[Published]) -> dict[tuple[str, str, str], list[Published]]:
    """What may be compared: rows by collection, measure and first stage, in their order."""
    found: dict[tuple[str, str, str], list[Published]] = {}
    for row in rows:
        found.setdefault((row.collection, row.measure, row.first_stage), []).append(row)
    return found


def measured(file: str | Path | None = None) -> dict | None:
    """The lab's own figures: `machine`, `versions`, `date`, and `collections` with their command and systems.

    Args:
        file: another one than the package's `data/measured.json`.

    Returns:
        None where the package has no such file.

    Raises:
        DataError: the file is not there, or not of this kind.
    """
    path = Path(str(files("rerank_lab"))) / "data" / "measured.json" if file is None else Path(file)
    if file is None and not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        complete = {"machine", "versions", "date", "collections"} <= found.keys() and all(
            {"collection", "command", "first_stage", "depth", "queries", "systems"} <= c.keys()
            and all("name" in system for system in c["systems"])
            for c in found["collections"]
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} cannot be read as measured figures ({error})") from error
    if not complete:
        raise DataError(f"{path} lacks a field of measured figures: compare with `measured` in rerank_lab/published.py")
    return found
