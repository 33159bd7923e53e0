"""LlamaIndex: every reranker as a node postprocessor, every first stage as a retriever.

    RetrieverQueryEngine.from_args(
        StageRetriever(BM25(passages), k=20),  # or any retriever that you have
        node_postprocessors=[RerankPostprocessor(reranker=CrossEncoder.from_pretrained(), top_n=3)],
    )

Built on `BaseNodePostprocessor` and `BaseRetriever` of llama-index-core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from rerank_lab.core import InputError, Reranker
from rerank_lab.integrations.common import Stage, rerank_texts

__all__ = ["RerankPostprocessor", "StageRetriever"]

dispatcher = get_dispatcher(__name__)


class StageRetriever(BaseRetriever):
    """A first stage of the lab as a retriever: a node for each candidate, its pid as `node_id`, with its score.

    Args:
        stage: an object with `search(query, k)`: `BM25`, `DenseIndex`, `Fusion`.
        k: how many candidates to fetch.

    Raises:
        InputError: something that cannot search, or a k below 1.
    """

    def __init__(self, stage: Stage, k: int = 20):
        if not isinstance(stage, Stage):
            raise InputError(f"stage is a {type(stage).__name__}: give something with search(query, k), like BM25")
        if k < 1:
            raise InputError(f"k is {k}: give at least 1")
        self.stage, self.k = stage, k
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self.stage.search(query_bundle.query_str, self.k)
        return [NodeWithScore(node=TextNode(text=c.text, id_=c.pid), score=c.score) for c in found]


class RerankPostprocessor(BaseNodePostprocessor):
    """A reranker of the lab as a node postprocessor: the best `top_n` nodes, best first, with the reranker's scores.

    The nodes themselves are kept and the list that came in is not changed. They are matched by place, so that equal
    texts stay apart. The reranker reads a node's text without its metadata. Rerank events are sent to the callback
    manager (with the `usage`) and to the dispatcher. Calls of one reranker wait for each other.

    Args:
        reranker: any of the lab's.
        top_n: how many nodes to keep; None for all.

    Raises:
        ValidationError: (pydantic's) no reranker, or a top_n below 1.
        InputError: when called without a query, or with something that is no node, or a node without text.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    reranker: Reranker = Field(exclude=True)
    top_n: int | None = Field(default=3, ge=1)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores components under."""
        return "RerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("no query was given: call postprocess_nodes with query_str or query_bundle")
        texts = [_text(place, node) for place, node in enumerate(nodes)]
        query, name, most = query_bundle.query_str, self.reranker.name, self.top_n or len(nodes)
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=most, model_name=name))
        payload = {EventPayload.NODES: nodes, EventPayload.MODEL_NAME: name, EventPayload.QUERY_STR: query}
        with self.callback_manager.event(CBEventType.RERANKING, {**payload, EventPayload.TOP_K: most}) as event:
            ranking = rerank_texts(self.reranker, query, texts, _scores(nodes), top_n=self.top_n)
            best = [NodeWithScore(node=nodes[int(c.pid)].node, score=c.score) for c in ranking]
            usage = {"usage": asdict(ranking.usage)}
            event.on_end({EventPayload.NODES: best, EventPayload.ADDITIONAL_KWARGS: usage})
        dispatcher.event(ReRankEndEvent(nodes=best))
        return best


def _scores(nodes: Sequence[NodeWithScore]) -> list[float] | None:
    scores = [node.score for node in nodes]
    return None if None in scores else scores


def _text(place: int, node: NodeWithScore) -> str:
    if not isinstance(node, NodeWithScore):
        raise InputError(f"node {place} is a {type(node).__name__}: give NodeWithScore (llama_index.core.schema)")
    text = node.node.get_content(metadata_mode=MetadataMode.NONE)
    if not text.strip():
        raise InputError(f"node {place} (id {node.node_id!r}) has no text: leave it out or give it text")
    return text
