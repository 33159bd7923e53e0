"""Three vendors' wire formats as one table: how a request reads, what is answered, how a problem is told.

    Cohere  POST /v2/rerank  https://docs.cohere.com/reference/rerank, https://docs.cohere.com/reference/errors
    Jina    POST /v1/rerank  https://api.jina.ai/redoc
    TEI     POST /rerank     text-embeddings-inference, `router/src/http/server.rs` and `types.rs`

Clients expect a relevance between 0 and 1; the lab's scores are logits, cosines, log-probabilities or ranks. Sent is

    relevance = 1 / (1 + exp(-score))

for every reranker: it keeps the order, but is a probability only where the score is a logit. Results are sorted by
the score itself. TEI's `raw_scores` sends that.

Accepted without effect: Cohere's `max_tokens_per_doc` and `priority`, TEI's `truncate`; passages are cut at the
model's own limit. TEI knows one model and no `top_n`; here its requests may give both, and get the first model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, exp
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rerank_lab.core import Ranking

__all__ = ["DIALECTS", "Dialect", "RefusedError", "parse", "relevance"]

FLOAT32_MAX = 3.4028234663852886e38  # stands for infinity, which JSON has no word for


def relevance(score: float) -> float:
    """The logistic function, without overflow at either end.

    >>> [round(relevance(score), 4) for score in (-1e4, -8.1875, 0.0, 5.26171875, float("inf"))]
    [0.0, 0.0003, 0.5, 0.9948, 1.0]
    """
    return 1 / (1 + exp(-score)) if score >= 0 else exp(score) / (1 + exp(score))


class Body(BaseModel):
    """What requests of all dialects have; fields that nobody knows are ignored, as by the vendors."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    query: str
    documents: list[str]
    top_n: Annotated[int, Field(ge=1)] | None = None


class CohereBody(Body):
    model: str
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    priority: int | None = None


class JinaBody(Body):
    model: str
    return_documents: bool = True


class TEIBody(Body):
    documents: list[str] = Field(alias="texts")
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] = "right"  # left gives other scores: refused, not ignored


def _cohere_answer(body: CohereBody, name: str, ranking: Ranking) -> dict[str, Any]:
    return {
        "id": str(uuid4()),
        "results": [{"index": int(c.pid), "relevance_score": relevance(c.score)} for c in ranking],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": ceil(len(body.documents) / 100)}},
    }


def _jina_answer(body: JinaBody, name: str, ranking: Ranking) -> dict[str, Any]:
    results: list[dict[str, Any]] = [{"index": int(c.pid), "relevance_score": relevance(c.score)} for c in ranking]
    if body.return_documents:
        for result, candidate in zip(results, ranking, strict=True):
            result["document"] = {"text": candidate.text}
    return {"model": name, "usage": {"total_tokens": ranking.usage.input_tokens}, "results": results}


def _tei_answer(body: TEIBody, name: str, ranking: Ranking) -> list[dict[str, Any]]:
    score = _finite if body.raw_scores else relevance
    results: list[dict[str, Any]] = [{"index": int(c.pid), "score": score(c.score)} for c in ranking]
    if body.return_text:
        for result, candidate in zip(results, ranking, strict=True):
            result["text"] = candidate.text
    return results


def _finite(score: float) -> float:
    return max(-FLOAT32_MAX, min(FLOAT32_MAX, score))


def _tei_refusal(problem: str, message: str) -> dict[str, str]:
    kinds = {"empty": "Empty", "busy": "Overloaded", "fault": "Backend"}
    return {"error": message, "error_type": kinds.get(problem, "Validation")}


@dataclass(frozen=True, slots=True)
class Dialect:
    """A vendor's wire format.

    Attributes:
        name: what metrics call it.
        path: where it is spoken.
        body: how a request reads.
        answer: gives what is sent for a body, the model's name and the ranking, whose pids are places from "0".
        refusal: gives what is sent for a problem and the message for the client.
        status: the HTTP status of each problem: key (missing or wrong), body (too many bytes), json, fields, empty
            (no query or passage), batch (too many passages), model (unknown), input (the model cannot take it), busy,
            fault (of the server).
    """

    name: str
    path: str
    body: type[Body]
    answer: Callable[[Any, str, Ranking], Any]
    refusal: Callable[[str, str], dict[str, str]]
    status: Mapping[str, int]


COMMON = {"key": 401, "model": 404, "body": 413, "batch": 422, "busy": 429}

DIALECTS = (
    Dialect(
        name="cohere",
        path="/v2/rerank",
        body=CohereBody,
        answer=_cohere_answer,
        refusal=lambda problem, message: {"message": message},
        status=COMMON | {"json": 400, "fields": 400, "empty": 400, "input": 400, "fault": 500},
    ),
    Dialect(
        name="jina",
        path="/v1/rerank",
        body=JinaBody,
        answer=_jina_answer,
        refusal=lambda problem, message: {"detail": message},
        status=COMMON | {"json": 422, "fields": 422, "empty": 422, "input": 422, "fault": 500},
    ),
    Dialect(
        name="tei",
        path="/rerank",
        body=TEIBody,
        answer=_tei_answer,
        refusal=_tei_refusal,
        status=COMMON | {"json": 400, "fields": 422, "empty": 400, "batch": 413, "input": 413, "fault": 424},
    ),
)


class RefusedError(Exception):
    """A request that gets no ranking: a problem of `Dialect.status`, and what the client is told."""

    def __init__(self, problem: str, message: str):
        super().__init__(message)
        self.problem, self.message = problem, message


def parse(dialect: Dialect, raw: bytes, most: int) -> Body:
    """A request that can be ranked; messages tell where it is wrong, never what it holds."""
    try:
        body = dialect.body.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problem, where = ("json", "body") if first["type"] == "json_invalid" else ("fields", where or "body")
        raise RefusedError(problem, f"invalid request: {where}: {first['msg']}") from error
    if not body.documents:
        raise RefusedError("empty", "invalid request: the list of passages is empty: give at least one")
    if not body.query.strip():
        raise RefusedError("empty", "invalid request: the query is blank: give at least one visible character")
    if len(body.documents) > most:
        raise RefusedError(
            "batch", f"batch size {len(body.documents)} > maximum allowed batch size {most}: send fewer passages"
        )
    return body
