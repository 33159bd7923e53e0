"""Hosted rerankers: the vendor's model reads query and passage, we send text and get one score for each passage.

    POST /v2/rerank   Cohere      https://docs.cohere.com/reference/rerank
    POST /v1/rerank   Jina AI     https://api.jina.ai/redoc
    POST /v1/rerank   Voyage AI   https://docs.voyageai.com/reference/reranker-api
    POST /rerank      TEI         https://huggingface.github.io/text-embeddings-inference

How they batch, keep, count and fail is in `api_hosted.py`, how a request is sent and repeated in `transport.py`.
"""

from __future__ import annotations

from abc import abstractmethod

import httpx

from rerank_lab.rerankers.api_hosted import HostedReranker
from rerank_lab.transport import (
    APIError,
    Vendor,
    bare,
    http_client,
    key_of,
    no_answer,
    post,
    refusal,
    url_of,
)

__all__ = ["APIError", "CohereReranker", "JinaReranker", "TEIReranker", "VoyageReranker"]

COHERE = Vendor("Cohere", "CO_API_KEY", "CO_API_URL", "https://api.cohere.com")
JINA = Vendor("Jina", "JINA_API_KEY", "JINA_API_URL", "https://api.jina.ai")
VOYAGE = Vendor("Voyage", "VOYAGE_API_KEY", "VOYAGE_API_URL", "https://api.voyageai.com")
TEI = Vendor("TEI", "TEI_API_KEY", "TEI_API_URL", "http://127.0.0.1:8080", needs_key=False)


class _OverHTTP(HostedReranker):
    path: str
    score_field = "relevance_score"

    def __init__(self, client: httpx.Client, model: str, **options):
        super().__init__(client, model, **options)
        self.cache_key += f"|{bare(client.base_url)}"  # another server may run another model under the same name

    def close(self) -> None:
        self.client.close()

    def _send(self, query: str, texts: list[str]):
        return post(self.client, self.vendor, self.path, self._body(query, texts), self.timeout)

    @abstractmethod
    def _body(self, query: str, texts: list[str]) -> dict:
        """The request in the vendor's dialect."""

    def _billed(self, answer) -> tuple[float, int]:
        return 0, (answer.get("usage") or {}).get("total_tokens") or 0

    def _rows(self, answer) -> list[tuple]:
        return [(row["index"], row[self.score_field]) for row in self._list(answer)]

    def _list(self, answer) -> list[dict]:
        return answer["results"]


class JinaReranker(_OverHTTP):
    """Jina AI's rerankers. `jina-reranker-v3` reads the passages of a request together: its scores depend on the batch,
    so keep all candidates of a query in one request and leave the cache out.

    Arguments and errors as in `HostedReranker`; `client` is an `httpx.Client` with address and key.
    """

    vendor, path, most = JINA, "/v1/rerank", 2048
    lowest = -1.0  # the scale of v2 is 0 to 1, that of v3 a cosine

    @classmethod
    def from_environment(
        cls, model: str = "jina-reranker-v2-base-multilingual", *, base_url: str | None = None, **options
    ) -> JinaReranker:
        """With the key in `JINA_API_KEY` and the address in `base_url` or `JINA_API_URL`; options as above."""
        return cls(http_client(JINA, base_url), model, **options)

    def _body(self, query: str, texts: list[str]) -> dict:
        passages = {"documents": texts, "top_n": len(texts), "return_documents": False}
        return {"model": self.model, "query": query, **passages}


class VoyageReranker(_OverHTTP):
    """Voyage AI's rerankers. A request may have 600,000 tokens, the query's counted once for each passage: for long
    passages give a smaller `batch_size` than the 1,000 that are allowed.

    Arguments and errors as in `HostedReranker`; `client` is an `httpx.Client` with address and key.
    """

    vendor, path, most = VOYAGE, "/v1/rerank", 1000

    @classmethod
    def from_environment(cls, model: str = "rerank-2.5", *, base_url: str | None = None, **options) -> VoyageReranker:
        """With the key in `VOYAGE_API_KEY` and the address in `base_url` or `VOYAGE_API_URL`; options as above."""
        return cls(http_client(VOYAGE, base_url), model, **options)

    def _body(self, query: str, texts: list[str]) -> dict:
        return {"model": self.model, "query": query, "documents": texts, "top_k": len(texts), "truncation": True}

    def _list(self, answer) -> list[dict]:
        return answer["data"]


class TEIReranker(_OverHTTP):
    """A model of your own behind Hugging Face's text-embeddings-inference; the score is the sigmoid of its logit.

    Arguments and errors as in `HostedReranker`; `client` is an `httpx.Client` with the address. `model` is the one that
    the server was started with: the dialect sends no name, but tables and the cache need one. `batch_size` must not
    exceed the server's `--max-client-batch-size`.
    """

    vendor, path, most = TEI, "/rerank", 32
    score_field = "score"

    @classmethod
    def from_environment(cls, model: str, *, base_url: str | None = None, **options) -> TEIReranker:
        """With the address in `base_url` or `TEI_API_URL`, a key in `TEI_API_KEY` if it has one; options as above."""
        return cls(http_client(TEI, base_url), model, **options)

    def _body(self, query: str, texts: list[str]) -> dict:
        return {"query": query, "texts": texts, "raw_scores": False, "return_text": False, "truncate": True}

    def _billed(self, answer) -> tuple[float, int]:
        return 0, 0

    def _list(self, answer) -> list[dict]:
        return answer


class CohereReranker(HostedReranker):
    """Cohere's rerankers through its own SDK. The SDK would repeat 408, 409, 429, 5xx and refused connections twice on
    its own; that is switched off for each request, and the lab repeats them, and time-outs and cut connections too.

    Other arguments and errors as in `HostedReranker`; `timeout` bounds every request, also with a client of your own.

    Args:
        client: a `cohere.ClientV2`; `from_environment` makes one.
        max_tokens_per_doc: at which the vendor cuts a passage.
    """

    vendor, most = COHERE, 1000

    def __init__(self, client, model: str = "rerank-v3.5", *, max_tokens_per_doc: int = 4096, **options):
        super().__init__(client, model, **options)
        self.max_tokens_per_doc = max_tokens_per_doc
        self.cache_key += f"|{max_tokens_per_doc}"

    @classmethod
    def from_environment(cls, model: str = "rerank-v3.5", *, base_url: str | None = None, **options) -> CohereReranker:
        """With the key in `CO_API_KEY` and the address in `base_url` or `CO_API_URL`; options as above."""
        import cohere

        url = url_of(COHERE, base_url)
        made = cls(cohere.ClientV2(api_key=key_of(COHERE), base_url=url), model, **options)
        made.cache_key += f"|{bare(url)}"
        return made

    def close(self) -> None:
        self.client.__exit__(None, None, None)

    def _send(self, query: str, texts: list[str]):
        from cohere.core.api_error import ApiError

        try:
            return self.client.rerank(
                model=self.model,
                query=query,
                documents=texts,
                top_n=len(texts),
                max_tokens_per_doc=self.max_tokens_per_doc,
                request_options={"timeout": self.timeout, "max_retries": 0},
            )
        except ApiError as error:
            headers = {name.lower(): value for name, value in (error.headers or {}).items()}
            raise refusal(COHERE, error.status_code, error.body, headers.get("retry-after")) from None
        except httpx.HTTPError as error:
            raise no_answer(COHERE, error) from None
        except (AttributeError, TypeError, ValueError) as error:  # what the SDK makes of an answer of another shape
            problem = f"answered 200 with what its SDK cannot read ({type(error).__name__}: {error})"
            raise APIError(COHERE, problem[:200], status=200) from error

    def _billed(self, answer) -> tuple[float, int]:
        units = answer.meta and answer.meta.billed_units
        return (units.search_units or 0, int(units.input_tokens or 0)) if units else (0, 0)

    def _rows(self, answer) -> list[tuple]:
        return [(row.index, row.relevance_score) for row in answer.results]
