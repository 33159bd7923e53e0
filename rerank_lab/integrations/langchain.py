"""LangChain: every reranker as a document compressor, every first stage as a retriever.

    ContextualCompressionRetriever(                                 # of langchain_classic.retrievers
        base_retriever=StageRetriever(stage=BM25(passages), k=20),  # or any retriever that you have
        base_compressor=RerankCompressor(reranker=CrossEncoder.from_pretrained(), top_n=3),
    )

Built on `BaseDocumentCompressor` and `BaseRetriever` of langchain-core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from pydantic import ConfigDict, Field

from rerank_lab.core import InputError, Reranker
from rerank_lab.integrations.common import Stage, rerank_texts

__all__ = ["RerankCompressor", "StageRetriever"]


class StageRetriever(BaseRetriever):
    """A first stage of the lab as a retriever: documents carry their pid as `id`, and `first_stage_score`.

    Args:
        stage: an object with `search(query, k)`.
        k: how many candidates to fetch.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    stage: Stage
    k: int = Field(default=20, ge=1)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = self.stage.search(query, self.k)
        return [Document(c.text, id=c.pid, metadata={"pid": c.pid, "first_stage_score": c.score}) for c in found]


class RerankCompressor(BaseDocumentCompressor):
    """A reranker of the lab as a document compressor: the best `top_n` documents, best first.

    Documents that come out are copies; `metadata["relevance_score"]`, the key of LangChain's own rerankers, holds the
    score. They are matched by place, so that equal texts stay apart. Each call shows up to callback handlers as a
    chain run named `rerank`, whose output has the documents and what they cost (`usage`). Calls of one reranker wait
    for each other; the async call waits in a thread and leaves the event loop free.

    Args:
        reranker: any of the lab's.
        top_n: how many documents to keep; None for all.

    Raises:
        ValidationError: (pydantic's) no reranker, or a top_n below 1.
        InputError: when called with something that is no document, a document without text, or a blank query.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    reranker: Reranker
    top_n: int | None = Field(default=3, ge=1)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents for the query, best first; none for none."""
        asked = {"query": query, "documents": list(documents)}
        return RunnableLambda(self._rerank, name="rerank").invoke(asked, {"callbacks": callbacks})["documents"]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`, in a thread."""
        asked = {"query": query, "documents": list(documents)}
        done = await RunnableLambda(self._rerank, name="rerank").ainvoke(asked, {"callbacks": callbacks})
        return done["documents"]

    def _rerank(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, documents = asked["query"], asked["documents"]
        texts = [_text(place, document) for place, document in enumerate(documents)]
        ranking = rerank_texts(self.reranker, query, texts, top_n=self.top_n)
        best = [_scored(documents[int(c.pid)], c.score) for c in ranking]
        return {"documents": best, "usage": asdict(ranking.usage)}


def _text(place: int, document: Document) -> str:
    if not isinstance(document, Document):
        raise InputError(
            f"document {place} is a {type(document).__name__}: give LangChain documents (langchain_core.documents)"
        )
    if not document.page_content.strip():
        raise InputError(f"document {place} (id {document.id!r}) has no text: leave it out or give it page_content")
    return document.page_content


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
