"""Figures of others: complete, in range, each with its candidates; and the file of the lab's own."""

import json
import re

import pytest

from rerank_lab.core import DataError
from rerank_lab.plots import COLOURS
from rerank_lab.published import by_candidates, measured, published

MEASURES = {"RR@10", "nDCG@10"}


@pytest.mark.parametrize("row", published(), ids=lambda p: f"{p.collection} {p.system} {p.first_stage}")
def test_every_figure_has_its_source_and_its_candidates_and_is_in_range(row):
    assert 0 < row.value < 1
    assert row.measure in MEASURES
    assert re.fullmatch(r"https://[^\s]+", row.source)
    assert all((row.collection, row.system, row.first_stage, row.cited))
    assert row.family in COLOURS
    assert row.depth >= 0 and (f"top {row.depth:,}" in row.first_stage or row.depth == 0)
    assert (row.speed > 0) == bool(row.on)


def test_no_figure_is_there_twice():
    keys = [(p.collection, p.measure, p.system, p.first_stage, p.cited) for p in published()]
    assert len(keys) == len(set(keys))


def test_groups_hold_every_figure_once_and_never_mix_first_stages():
    groups = by_candidates(published())
    assert sorted((p for rows in groups.values() for p in rows), key=str) == sorted(published(), key=str)
    for rows in groups.values():
        assert len({(p.collection, p.measure, p.first_stage) for p in rows}) == 1
        assert sum(p.depth == 0 for p in rows) <= 1
        assert len({p.depth for p in rows if p.depth}) <= 1


def test_the_paper_of_beir_gives_a_before_and_an_after_for_eighteen_collections():
    paired = [rows for key, rows in by_candidates(published()).items() if "BEIR paper" in key[2]]
    assert len(paired) == 18
    assert all([p.system for p in rows] == ["BM25", "MiniLM cross-encoder"] for rows in paired)


def a_file(**changed):
    system = {"name": "bm25", "nDCG@10": {"value": 0.5, "low": 0.4, "high": 0.6}, "usage": {}}
    collection = {"collection": "tiny", "command": "rerank-lab compare", "first_stage": "bm25", "depth": 100}
    whole = {"machine": "m", "versions": {}, "date": "2026-11-01"}
    return {**whole, "collections": [{**collection, "queries": 2, "systems": [system]}], **changed}


def test_measured_figures_are_read_as_they_stand(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(a_file()))
    assert measured(file) == a_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as measured figures"),
        ("[]", "cannot be read as measured figures"),
        ('{"machine": ""}', "lacks a field"),
        (json.dumps(a_file(collections=[{"collection": "tiny"}])), "lacks a field"),
        (json.dumps(a_file(collections=[7])), "cannot be read as measured figures"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"other\.json {message}"):
        measured(file)


def test_a_file_that_is_not_there_is_an_error_only_where_it_was_asked_for(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        measured(tmp_path / "nothing.json")


def test_the_packages_own_file_is_whole_or_absent():
    found = measured()
    if found is not None:
        for collection in found["collections"]:
            assert collection["command"].startswith(("rerank-lab", "make "))
            assert all(
                0 <= s["nDCG@10"]["low"] <= s["nDCG@10"]["value"] <= s["nDCG@10"]["high"] <= 1
                for s in collection["systems"]
            )
