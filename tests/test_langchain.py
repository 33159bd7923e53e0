"""The LangChain adapters in real chains of langchain-core and langchain-classic."""

import asyncio
import threading

import pytest
from conftest import QUERY, TEXTS
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from pydantic import ValidationError

from rerank_lab import BM25, CrossEncoder, DenseIndex, Fusion, Identity, Passage
from rerank_lab.core import InputError, Reranker, Usage, in_places
from rerank_lab.integrations.langchain import RerankCompressor, StageRetriever

TEXTS = [text for text in TEXTS if text]
PASSAGES = [Passage(f"p{i}", text) for i, text in enumerate(TEXTS)]


class Waiting(Reranker):
    """Turns the order round once it is allowed to; notes how many callers were inside at once."""

    name = "waiting"

    def __init__(self):
        self.allowed, self.inside, self.most = threading.Event(), 0, 0

    def rerank(self, query, candidates, *, top_k=None):
        self.inside += 1
        self.most = max(self.most, self.inside)
        assert self.allowed.wait(timeout=30), "nobody could allow it: the event loop was held"
        self.inside -= 1
        return in_places(query, candidates, range(len(candidates))[::-1], top_k, Usage())


@pytest.fixture(scope="module")
def cross(tiny_bert):
    return CrossEncoder.from_pretrained(tiny_bert)


@pytest.fixture
def documents():
    return [Document(text, id=f"d{i}", metadata={"source": f"page {i}"}) for i, text in enumerate(TEXTS)]


def chain(reranker, stage=None, **options):
    return ContextualCompressionRetriever(
        base_retriever=StageRetriever(stage=stage or BM25(PASSAGES), k=5),
        base_compressor=RerankCompressor(reranker=reranker, **options),
    )


def test_a_chain_gives_the_rerankers_own_order_and_scores(cross):
    expected = cross.rerank(QUERY, BM25(PASSAGES).search(QUERY, 5), top_k=2)
    found = chain(cross, top_n=2).invoke(QUERY)
    assert [d.id for d in found] == [d.metadata["pid"] for d in found] == [c.pid for c in expected]
    assert [d.metadata["relevance_score"] for d in found] == [c.score for c in expected]
    assert [d.page_content for d in found] == [c.text for c in expected]


def test_a_chain_runs_asynchronously_and_in_batches(cross):
    made = chain(cross, top_n=2)
    once = made.invoke(QUERY)
    assert asyncio.run(made.ainvoke(QUERY)) == once
    assert made.batch([QUERY, "tram"]) == [once, made.invoke("tram")]
    assert asyncio.run(made.abatch([QUERY, "tram"])) == made.batch([QUERY, "tram"])


def test_a_question_answering_chain_reads_the_best_passages(cross):
    prompt = ChatPromptTemplate.from_template("{passages}\n\n{question}")
    together = {
        "passages": chain(cross, top_n=2) | (lambda found: "\n".join(d.page_content for d in found)),
        "question": RunnablePassthrough(),
    }
    said = (together | prompt | (lambda value: value.to_string()) | StrOutputParser()).invoke(QUERY)
    best = cross.rerank(QUERY, BM25(PASSAGES).search(QUERY, 5), top_k=2)
    assert said == f"Human: {best[0].text}\n{best[1].text}\n\n{QUERY}"


def test_every_first_stage_is_a_retriever(tiny_encoder):
    from rerank_lab import BiEncoder

    dense = DenseIndex(BiEncoder.from_pretrained(tiny_encoder), PASSAGES)
    for stage in (BM25(PASSAGES), dense, Fusion([BM25(PASSAGES), dense])):
        expected = stage.search(QUERY, 3)
        found = StageRetriever(stage=stage, k=3).invoke(QUERY)
        assert [(d.id, d.metadata["first_stage_score"]) for d in found] == [(c.pid, c.score) for c in expected]


def test_metadata_is_kept_and_the_documents_that_came_are_not_changed(documents, cross):
    before = [d.model_copy(deep=True) for d in documents]
    found = RerankCompressor(reranker=cross).compress_documents(documents, QUERY)
    assert documents == before
    assert len(found) == 3
    for document in found:
        (origin,) = [d for d in documents if d.id == document.id]
        assert document.metadata == {**origin.metadata, "relevance_score": document.metadata["relevance_score"]}
    scores = [d.metadata["relevance_score"] for d in found]
    assert scores == sorted(scores, reverse=True)


def test_equal_texts_stay_apart(cross):
    twins = [Document("tram", metadata={"at": 0}), Document("the ferry", metadata={"at": 1}), Document("tram")]
    found = RerankCompressor(reranker=cross, top_n=None).compress_documents(twins, QUERY)
    places = [d.metadata.get("at") for d in found]
    assert sorted(places, key=str) == [0, 1, None]
    assert places.index(0) < places.index(None)  # of equals the first stays ahead


@pytest.mark.parametrize(("top_n", "kept"), [(1, 1), (3, 3), (50, len(TEXTS)), (None, len(TEXTS))])
def test_top_n_says_how_many_are_kept(documents, top_n, kept):
    assert len(RerankCompressor(reranker=Identity(), top_n=top_n).compress_documents(documents, QUERY)) == kept


def test_nothing_found_is_nothing_and_no_error(cross):
    assert RerankCompressor(reranker=cross).compress_documents([], QUERY) == []
    assert chain(cross).invoke("zebra") == []
    assert asyncio.run(RerankCompressor(reranker=cross).acompress_documents([], QUERY)) == []


def test_the_event_loop_is_free_while_a_model_works_and_calls_of_a_model_wait_for_each_other(documents):
    waiting = Waiting()
    compressors = [RerankCompressor(reranker=waiting, top_n=1) for _ in range(2)]

    async def two_and_a_permit():
        both = asyncio.gather(*(c.acompress_documents(documents, QUERY) for c in compressors))
        while not waiting.inside:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # for the second to come in, if nothing keeps it out
        waiting.allowed.set()
        return await both

    found = asyncio.run(two_and_a_permit())
    assert [[d.id for d in f] for f in found] == [[documents[-1].id]] * 2
    assert waiting.most == 1


class Noting(BaseCallbackHandler):
    """Writes down the runs of a chain."""

    def __init__(self):
        self.started, self.ended, self.failed, self.parents = [], [], [], []

    def on_chain_start(self, serialized, inputs, *, name=None, parent_run_id=None, **rest):
        self.started.append((name, inputs))
        self.parents.append(parent_run_id)

    def on_chain_end(self, outputs, **rest):
        self.ended.append(outputs)

    def on_chain_error(self, error, **rest):
        self.failed.append(error)


class NotingAsync(AsyncCallbackHandler):
    """As `Noting`, with coroutines."""

    def __init__(self):
        self.ended = []

    async def on_chain_end(self, outputs, **rest):
        self.ended.append(outputs)


def test_callbacks_hear_of_the_reranking_and_of_what_it_cost(documents, cross):
    noting = Noting()
    found = RerankCompressor(reranker=cross).compress_documents(documents, QUERY, callbacks=[noting])
    assert noting.started == [("rerank", {"query": QUERY, "documents": documents})]
    (outputs,) = noting.ended
    assert outputs["documents"] == found
    assert outputs["usage"]["pairs"] == len(documents)
    assert outputs["usage"]["input_tokens"] > 0


def test_in_a_chain_the_reranking_is_a_child_of_the_retrieval(cross):
    noting, other = Noting(), NotingAsync()
    chain(cross).invoke(QUERY, {"callbacks": [noting]})
    asyncio.run(chain(cross).ainvoke(QUERY, {"callbacks": [other]}))
    assert [name for name, _ in noting.started] == ["rerank"]
    assert noting.parents[0] is not None
    assert [o["documents"] for o in other.ended] == [o["documents"] for o in noting.ended]


def test_callbacks_hear_of_an_error(documents):
    noting = Noting()
    with pytest.raises(InputError):
        RerankCompressor(reranker=Identity()).compress_documents(documents, " ", callbacks=[noting])
    assert [type(error) for error in noting.failed] == [InputError]


@pytest.mark.parametrize(
    ("found", "query", "message"),
    [
        (["a ferry"], QUERY, r"document 0 is a str: give LangChain documents"),
        ([Document("a ferry"), None], QUERY, r"document 1 is a NoneType"),
        ([Document("a ferry"), Document(" \n", id="d7")], QUERY, r"document 1 \(id 'd7'\) has no text: leave it out"),
        ([Document("a ferry")], "", r"the query is ''"),
        ([Document("a ferry")], None, r"the query is None"),
        ([], "  ", r"the query is '  '"),
    ],
)
def test_what_cannot_be_reranked_is_refused_with_the_mend(found, query, message):
    compressor = RerankCompressor(reranker=Identity())
    with pytest.raises(InputError, match=message):
        compressor.compress_documents(found, query)
    with pytest.raises(InputError, match=message):
        asyncio.run(compressor.acompress_documents(found, query))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reranker": "cross-encoder"}, "instance of Reranker"),
        ({"reranker": Identity(), "top_n": 0}, "greater than or equal to 1"),
        ({"reranker": Identity(), "top_k": 3}, "Extra inputs"),
        ({}, "Field required"),
    ],
)
def test_a_compressor_of_something_else_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        RerankCompressor(**options)


def test_a_retriever_of_something_that_cannot_search_is_refused():
    with pytest.raises(ValidationError, match="instance of Stage"):
        StageRetriever(stage=PASSAGES)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        StageRetriever(stage=BM25(PASSAGES), k=0)
