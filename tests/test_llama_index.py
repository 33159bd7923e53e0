"""The LlamaIndex adapters in real query engines of llama-index-core."""

import asyncio

import pytest
from conftest import QUERY, TEXTS
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from rerank_lab import BM25, BiEncoder, CrossEncoder, DenseIndex, Fusion, Identity, Passage, candidates_from
from rerank_lab.core import InputError
from rerank_lab.integrations.llama_index import RerankPostprocessor, StageRetriever

TEXTS = [text for text in TEXTS if text]
PASSAGES = [Passage(f"p{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def cross(tiny_bert):
    return CrossEncoder.from_pretrained(tiny_bert)


@pytest.fixture
def nodes():
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"n{i}", metadata={"page": i}), score=1 / (i + 1))
        for i, text in enumerate(TEXTS)
    ]


def engine(*postprocessors, stage=None, synthesizer=None):
    return RetrieverQueryEngine(
        StageRetriever(stage or BM25(PASSAGES), k=5),
        response_synthesizer=synthesizer or NoText(llm=MockLLM()),
        node_postprocessors=list(postprocessors),
    )


def test_a_query_engine_gives_the_rerankers_own_order_and_scores(cross):
    expected = cross.rerank(QUERY, BM25(PASSAGES).search(QUERY, 5), top_k=2)
    found = engine(RerankPostprocessor(reranker=cross, top_n=2)).query(QUERY).source_nodes
    assert [(n.node_id, n.score, n.text) for n in found] == [(c.pid, c.score, c.text) for c in expected]


def test_a_query_engine_runs_asynchronously(cross):
    made = engine(RerankPostprocessor(reranker=cross, top_n=2))
    assert asyncio.run(made.aquery(QUERY)).source_nodes == made.query(QUERY).source_nodes


def test_the_synthesizer_reads_the_best_nodes(cross):
    best = cross.rerank(QUERY, BM25(PASSAGES).search(QUERY, 5), top_k=2)
    compact = get_response_synthesizer(llm=MockLLM(), response_mode="compact")  # MockLLM says back what it is shown
    said = engine(RerankPostprocessor(reranker=cross, top_n=2), synthesizer=compact).query(QUERY).response
    assert best[0].text in said
    assert said.index(best[0].text) < said.index(best[1].text)
    left_out = [p.text for p in PASSAGES if len(p.text) > 8 and p.pid not in {c.pid for c in best}]
    assert left_out
    assert not any(text in said for text in left_out)


def test_every_first_stage_is_a_retriever(tiny_encoder):
    dense = DenseIndex(BiEncoder.from_pretrained(tiny_encoder), PASSAGES)
    for stage in (BM25(PASSAGES), dense, Fusion([BM25(PASSAGES), dense])):
        expected = stage.search(QUERY, 3)
        found = StageRetriever(stage, k=3).retrieve(QUERY)
        assert [(n.node_id, n.score) for n in found] == [(c.pid, c.score) for c in expected]


def test_it_works_behind_any_retriever(nodes, cross):
    class Fixed(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle):
            return nodes

    found = RetrieverQueryEngine(
        Fixed(), response_synthesizer=NoText(llm=MockLLM()), node_postprocessors=[RerankPostprocessor(reranker=cross)]
    ).query(QUERY)
    expected = cross.rerank(QUERY, candidates_from(PASSAGES), top_k=3)
    assert [n.node_id for n in found.source_nodes] == [c.pid.replace("p", "n") for c in expected]


def test_nodes_are_kept_and_the_list_that_came_is_not_changed(nodes, cross):
    before = [(n.node, n.score) for n in nodes]
    found = RerankPostprocessor(reranker=cross, top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    assert [(n.node, n.score) for n in nodes] == before
    assert len(found) == len(nodes)
    assert {id(n.node) for n in found} == {id(n.node) for n in nodes}
    assert [n.score for n in found] == sorted((n.score for n in found), reverse=True)


def test_metadata_is_not_read_by_the_model(nodes, cross):
    plain = [NodeWithScore(node=TextNode(text=n.text, id_=n.node_id), score=n.score) for n in nodes]
    post = RerankPostprocessor(reranker=cross, top_n=None)
    of = [[(n.node_id, n.score) for n in post.postprocess_nodes(given, query_str=QUERY)] for given in (nodes, plain)]
    assert of[0] == of[1]


def test_equal_texts_stay_apart(cross):
    twins = [
        NodeWithScore(node=TextNode(text=text, id_=id_)) for text, id_ in (("tram", "a"), ("x", "b"), ("tram", "c"))
    ]
    found = RerankPostprocessor(reranker=cross, top_n=None).postprocess_nodes(twins, query_str=QUERY)
    ids = [n.node_id for n in found]
    assert sorted(ids) == ["a", "b", "c"]
    assert ids.index("a") < ids.index("c")


@pytest.mark.parametrize(("top_n", "kept"), [(1, 1), (3, 3), (50, len(TEXTS)), (None, len(TEXTS))])
def test_top_n_says_how_many_are_kept(nodes, top_n, kept):
    found = RerankPostprocessor(reranker=Identity(), top_n=top_n).postprocess_nodes(nodes, query_str=QUERY)
    assert [n.node_id for n in found] == [n.node_id for n in nodes][:kept]


def test_the_first_stages_scores_are_handed_on_where_every_node_has_one(nodes):
    nodes = [NodeWithScore(node=n.node, score=100 - i) for i, n in enumerate(nodes)]
    post = RerankPostprocessor(reranker=Identity(), top_n=2)
    assert [n.score for n in post.postprocess_nodes(nodes, query_str=QUERY)] == [100, 99]
    nodes[3].score = None
    assert [n.score for n in post.postprocess_nodes(nodes, query_str=QUERY)] == [1.0, 0.5]


def test_nothing_found_is_nothing_and_no_error(cross):
    post = RerankPostprocessor(reranker=cross)
    assert post.postprocess_nodes([], query_str=QUERY) == []
    assert engine(post).query("zebra").source_nodes == []
    assert asyncio.run(post.apostprocess_nodes([], query_str=QUERY)) == []


class Noting(BaseEventHandler):
    """Writes down the dispatcher's events."""

    events: list = []  # noqa: RUF012 (a field of pydantic's, copied for each instance)

    def handle(self, event, **kwargs):
        self.events.append(event)


def test_rerank_events_reach_the_dispatcher_and_the_callback_manager(nodes, cross):
    noting, debug = Noting(), LlamaDebugHandler(print_trace_on_end=False)
    dispatcher = get_dispatcher("rerank_lab.integrations.llama_index")
    dispatcher.add_event_handler(noting)
    try:
        post = RerankPostprocessor(reranker=cross, top_n=2, callback_manager=CallbackManager([debug]))
        found = post.postprocess_nodes(nodes, query_str=QUERY)
    finally:
        dispatcher.event_handlers.remove(noting)
    start, end = noting.events
    assert (start.class_name(), end.class_name()) == ("ReRankStartEvent", "ReRankEndEvent")
    assert (start.query.query_str, start.nodes, start.top_n, start.model_name) == (QUERY, nodes, 2, cross.name)
    assert end.nodes == found
    ((_, ended),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert ended.payload[EventPayload.NODES] == found
    assert ended.payload[EventPayload.ADDITIONAL_KWARGS]["usage"]["pairs"] == len(nodes)


@pytest.mark.parametrize(
    ("found", "query", "message"),
    [
        ([TextNode(text="a ferry")], QUERY, r"node 0 is a TextNode: give NodeWithScore"),
        ([NodeWithScore(node=TextNode(text=" ", id_="n7"))], QUERY, r"node 0 \(id 'n7'\) has no text: leave it out"),
        ([NodeWithScore(node=ImageNode(id_="n8"))], QUERY, r"node 0 \(id 'n8'\) has no text"),
        ([NodeWithScore(node=TextNode(text="a ferry"))], " ", r"the query is ' '"),
        ([NodeWithScore(node=TextNode(text="a ferry"))], None, r"no query was given: call postprocess_nodes with"),
        ([], None, r"no query was given"),
    ],
)
def test_what_cannot_be_reranked_is_refused_with_the_mend(found, query, message):
    post = RerankPostprocessor(reranker=Identity())
    with pytest.raises(InputError, match=message):
        post.postprocess_nodes(found, query_str=query)
    with pytest.raises(InputError, match=message):
        asyncio.run(post.apostprocess_nodes(found, query_str=query))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reranker": "cross-encoder"}, "instance of Reranker"),
        ({"reranker": Identity(), "top_n": 0}, "greater than or equal to 1"),
        ({"reranker": Identity(), "top_k": 3}, "Extra inputs"),
        ({}, "Field required"),
    ],
)
def test_a_postprocessor_of_something_else_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        RerankPostprocessor(**options)


def test_a_retriever_of_something_that_cannot_search_is_refused():
    with pytest.raises(InputError, match=r"stage is a list: give something with search"):
        StageRetriever(PASSAGES)
    with pytest.raises(InputError, match=r"k is 0: give at least 1"):
        StageRetriever(BM25(PASSAGES), k=0)
