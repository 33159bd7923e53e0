"""The book: every page is reachable, every local link leads somewhere, every chapter has the shape and runs."""

import re
from pathlib import Path
from time import perf_counter

import jupytext
import nbformat
import pytest
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
PAGES = sorted([*(BOOK / "chapters").glob("*.md"), *(BOOK / "solutions").glob("*.md"), BOOK / "stack.md"])
CHAPTERS = [p for p in PAGES if p.parent.name == "chapters"]


def cells_of(path):
    """The page's cells, read as the notebook tools read them; a page without code cells is no notebook."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    assert any(c.cell_type == "code" for c in notebook.cells), path
    return notebook


def page_id(path):
    return f"{path.parent.name}/{path.stem}"


def test_every_page_is_in_the_table_of_contents_once():
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text())
    listed = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    on_disk = {str(p.relative_to(BOOK).with_suffix("")) for p in BOOK.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == on_disk


@pytest.mark.parametrize("path", sorted(BOOK.rglob("*.md")), ids=lambda p: str(p.relative_to(BOOK)))
def test_local_links_and_images_lead_to_a_file(path):
    text = re.sub(r"```\{code-cell\}.*?```", "", path.read_text(), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"```\{image\} (\S+)", text)
    local = [t.split("#")[0] for t in targets if not t.startswith(("http://", "https://", "#", "mailto:"))]
    missing = [t for t in local if not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("path", CHAPTERS, ids=page_id)
def test_a_chapter_has_the_shape_of_the_book(path):
    text = path.read_text()
    badge = f"colab.research.google.com/github/rerank-lab/rerank-lab/blob/main/notebooks/{path.stem}.ipynb"
    headings = re.findall(r"^#{1,2} (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    assert badge in text
    assert 'importlib.util.find_spec("rerank_lab")' in text
    assert {"Summary", "Exercises", "Further reading"} <= set(headings)
    assert f"../solutions/{path.name}" in text
    assert (BOOK / "solutions" / path.name).exists()
    assert "source(" in text and "assert " in text
    assert (ROOT / "notebooks" / f"{path.stem}.ipynb").exists()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_a_figure_carries_alternative_text(path):
    for cell in cells_of(path).cells:
        if cell.cell_type == "code" and re.search(r"plt\.show\(\)", cell.source):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), cell.source[:200]


@pytest.mark.chapter
@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_a_page_runs_without_warnings(path, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # ipykernel reads it and leaves out standard error's file number
    notebook = cells_of(path)
    notebook.cells = [c for c in notebook.cells if "skip-execution" not in c.metadata.get("tags", [])]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    start = perf_counter()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    print(f"{page_id(path)}: {perf_counter() - start:.1f} s")
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []


def test_notebooks_hold_no_outputs():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert all(not c.outputs and c.execution_count is None for c in cells), path.name
