"""The bundled record: complete for what it says it holds, honest about who answered, and replayed without a network."""

import json

import pytest

from rerank_lab import BM25, Recorder, candidates_from, read_collection
from rerank_lab.catalogue import RECORDED_DEPTH, recorded_replies
from rerank_lab.core import Repairs, Usage
from rerank_lab.rerankers.listwise import ListwiseReranker
from rerank_lab.rerankers.pairwise import PairwiseReranker
from rerank_lab.rerankers.pointwise_llm import YesNoReranker
from rerank_lab.rerankers.setwise import SetwiseReranker


@pytest.fixture(scope="module")
def lab():
    return read_collection("lab")


@pytest.fixture(scope="module")
def found(lab):
    stage = BM25(list(lab.passages.values()))
    return {qid: stage.search(text, 100) for qid, text in lab.judged().items()}


@pytest.fixture(scope="module")
def record():
    return Recorder(recorded_replies())


def test_every_line_names_model_and_date_once_for_each_prompt(record):
    rows = [json.loads(line) for line in recorded_replies().read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == len(record)
    assert {row["model"] for row in rows} == {record.model}
    assert all(row["date"] and row["reply"] and row["input_tokens"] > 0 for row in rows)
    assert all(row["dollars"] == 0 for row in rows)


def test_every_query_has_its_listwise_reply(lab, found, record):
    reranker = ListwiseReranker(record, depth=RECORDED_DEPTH)
    usage = sum((reranker.rerank(lab.queries[qid], found[qid]).usage for qid in found), Usage())
    assert usage.calls == len(found) == 144
    assert usage.dollars == 0
    assert usage.repairs == Repairs()


def test_every_seventh_query_has_the_other_ways_of_asking_too(lab, found, record):
    for qid in list(found)[::7][:20]:
        query, top = lab.queries[qid], found[qid]
        assert ListwiseReranker(record).rerank(query, top).usage.calls == 9
        pairs = PairwiseReranker(record, k=1)
        assert pairs.rerank(query, top).usage.calls == pairs.most_calls(100) == 198
        assert pairs.rerank(query, candidates_from([c.passage for c in top[:10]])).usage.calls == 18
        assert SetwiseReranker(record, depth=20).rerank(query, top).usage.calls < 60
        assert YesNoReranker(record).rerank(query, top[:20]).usage.calls == 20
        listwise = ListwiseReranker(record).rerank(query, candidates_from([c.passage for c in top[:20]][::-1]))
        assert listwise.usage.calls == 1
