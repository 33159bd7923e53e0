"""The lab collection keeps what its chapters rely on."""

import json
from collections import Counter
from importlib.resources import files
from statistics import mean

import pytest
from ir_measures import nDCG

from rerank_lab import BM25, measure, read_collection

ROWS = [
    json.loads(line)
    for line in (files("rerank_lab") / "data" / "lab" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def lab():
    return read_collection("lab")


def test_it_is_large_enough(lab):
    assert lab.name == "lab"
    assert len(lab.judged()) == len(lab.queries) >= 120
    assert len(lab.passages) >= 720
    assert lab.relevant_from == 2


def test_passages_have_forty_to_ninety_words_and_none_occurs_twice(lab):
    odd = {pid: n for pid, p in lab.passages.items() if not 40 <= (n := len(p.text.split())) <= 90}
    assert odd == {}
    assert len({" ".join(p.text.lower().split()) for p in lab.passages.values()}) == len(lab.passages)


def test_no_query_is_asked_twice(lab):
    assert len({" ".join(text.lower().split()) for text in lab.queries.values()}) == len(lab.queries)


def test_ten_phenomena_have_ten_queries_each_or_more(lab):
    counts = Counter(lab.groups.values())
    assert lab.groups.keys() == lab.queries.keys()
    assert len(counts) == 10
    assert min(counts.values()) >= 10, counts


def test_every_id_resolves(lab):
    judged = {pid for grades in lab.qrels.values() for pid in grades}
    assert judged <= lab.passages.keys()
    assert lab.qrels.keys() == lab.queries.keys()


def test_every_query_has_an_answer_and_nearly_every_one_all_three_grades(lab):
    grades = {qid: Counter(judged.values()) for qid, judged in lab.qrels.items()}
    assert {g for found in grades.values() for g in found} == {0, 1, 2, 3}
    assert [qid for qid, found in grades.items() if not found[3]] == []
    complete = [qid for qid, found in grades.items() if found[3] and found[2] and found[1]]
    assert len(complete) >= 0.95 * len(grades)
    assert [qid for qid, found in grades.items() if not (found[2] or found[1])] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["_id"])
def test_decoys_are_judged_and_worth_nothing(row, lab):
    decoys = row["metadata"]["decoys"]
    assert len(set(decoys)) == len(decoys) >= 2
    assert {lab.qrels[row["_id"]].get(pid) for pid in decoys} == {0}
    assert row["metadata"]["why"].strip()


def test_counting_words_is_not_enough(lab):
    index = BM25(list(lab.passages.values()))
    run = {qid: {c.pid: c.score for c in index.search(text, 10)} for qid, text in lab.queries.items()}
    values = measure(run, lab.qrels, {"nDCG@10": nDCG @ 10})["nDCG@10"]
    assert 0.2 < mean(values.values()) < 0.60
