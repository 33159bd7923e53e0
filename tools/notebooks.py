"""Write notebooks/*.ipynb from book/chapters/*.md: no outputs, and the same bytes on every run.

python tools/notebooks.py [--check]

A cell's id comes from its source and from how many cells with that source stand before it, so it survives edits of
other cells.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "book" / "chapters"
NOTEBOOKS = ROOT / "notebooks"
HEADER = "---\njupytext:\n  text_representation:\n    format_name: myst\n---\n"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cell_id(kind: str, source: str, seen: Counter) -> str:
    """A cell's id: 12 hexadecimal digits."""
    place = seen[kind, source]
    seen[kind, source] += 1
    return hashlib.sha256(f"{kind}\n{place}\n{source}".encode()).hexdigest()[:12]


def notebook(chapter: Path) -> str:
    """The text of the notebook for one chapter."""
    header, _, body = chapter.read_text(encoding="utf-8").partition("\n---\n")
    if not header.startswith("---\n") or "format_name: myst" not in header:
        name = chapter.relative_to(ROOT)
        sys.exit(f"{name} has no jupytext header with `format_name: myst`: the book would not run it")
    source = jupytext.reads(HEADER + body, fmt="md:myst")
    seen: Counter = Counter()
    cells = []
    for cell in source.cells:
        fresh = {"id": cell_id(cell.cell_type, cell.source, seen), "cell_type": cell.cell_type, "source": cell.source}
        fresh["metadata"] = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            fresh |= {"execution_count": None, "outputs": []}
        cells.append(fresh)
    made = nbformat.from_dict({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})
    nbformat.validate(made)
    return nbformat.writes(made).rstrip("\n") + "\n"


def main() -> None:
    """Write the notebooks, or with --check end with 1 and name those that are stale."""
    parser = argparse.ArgumentParser(description="Write notebooks/*.ipynb from book/chapters/*.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a notebook is stale")
    check = parser.parse_args().check
    made = {NOTEBOOKS / f"{chapter.stem}.ipynb": notebook(chapter) for chapter in sorted(CHAPTERS.glob("*.md"))}
    orphans = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path not in made]
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and (stale or orphans):
        names = ", ".join(str(path.relative_to(ROOT)) for path in sorted([*stale, *orphans]))
        sys.exit(f"stale: {names}. Edit book/chapters, run `make notebooks` and commit the result")
    if check:
        return
    NOTEBOOKS.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(made[path], encoding="utf-8", newline="\n")
    for path in orphans:
        path.unlink()
    print(f"{len(made)} notebooks, {len(stale)} written, {len(orphans)} without a chapter removed")


if __name__ == "__main__":
    main()
