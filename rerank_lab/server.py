"""Any reranker of the lab as a service that clients of Cohere, Jina and text-embeddings-inference use unchanged.

    POST /v2/rerank, /v1/rerank, /rerank    a ranking, in the dialects of `server_dialects.py`
    GET  /health                            200 while the server runs
    GET  /info                              which model answers TEI, as TEI tells it
    GET  /metrics                           counts and times for Prometheus

A request is refused before it costs anything: first for its key, then for its bytes, its form, its size, its model,
and at last because too many wait already (429). Those that pass are ranked by one worker (`server_batching.py`).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from ipaddress import ip_address
from time import perf_counter
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from rerank_lab import __version__
from rerank_lab.core import InputError, Ranking, Reranker
from rerank_lab.server_batching import Asked, Batcher, OverloadedError
from rerank_lab.server_dialects import DIALECTS, Dialect, RefusedError, parse

__all__ = ["Limits", "create_app", "serve"]

CLIENT_LEFT = 499  # what the metrics call it; nobody is there to read the answer
HEADERS = {"key": {"WWW-Authenticate": "Bearer"}, "busy": {"Retry-After": "1"}}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes before it refuses.

    Attributes:
        body: bytes of a request.
        documents: passages of a request.
        queue: requests that may wait for their turn.
        pairs: query-passage pairs that requests with the same query may fill one call of a model with.
        wait: seconds that an idle server waits for company of a request.

    Raises:
        InputError: a limit below 1, or a negative wait.
    """

    body: int = 4 * 2**20
    documents: int = 1000
    queue: int = 64
    pairs: int = 1000
    wait: float = 0.002

    def __post_init__(self):
        for limit in fields(self):
            value, least = getattr(self, limit.name), 0 if limit.name == "wait" else 1
            if value < least:
                raise InputError(f"the limit {limit.name} is {value}: give at least {least}")


class Metrics:
    """What one app has done, in a registry of its own."""

    def __init__(self, waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        here: dict[str, Any] = {"namespace": "rerank_lab", "registry": self.registry}
        self.requests = Counter("requests", "Requests by dialect and HTTP status.", ["dialect", "status"], **here)
        self.pairs = Counter("pairs", "Query-passage pairs of answered requests.", ["dialect"], **here)
        self.seconds = Histogram("request_seconds", "From a request's head to its answer.", ["dialect"], **here)
        self.call_passages = Histogram(
            "call_passages", "Different passages in one call of a model.", buckets=[2**i for i in range(11)], **here
        )
        Gauge("queue", "Requests that wait for their turn.", **here).set_function(waiting)


def create_app(
    rerankers: Mapping[str, Reranker], *, api_key: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """The application that answers for some rerankers.

    Args:
        rerankers: by the name that requests give as `model`; one thread, not the caller's, calls them all.
        api_key: what clients send as `Authorization: Bearer KEY` for everything but /health; None asks for none.
        limits: what is refused; without them, the defaults of `Limits`.

    Raises:
        InputError: no reranker, or a blank key.
    """
    if not rerankers:
        raise InputError("there is no reranker to serve: give at least one, by name")
    if api_key is not None and not api_key.strip():
        raise InputError("the API key is blank: give one with visible characters, or None to ask for no key")
    limits = limits or Limits()
    first = next(iter(rerankers))

    metrics = Metrics(lambda: len(batcher))
    batcher = Batcher(limits.queue, limits.pairs, limits.wait, metrics.call_passages.observe)

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        async with batcher:
            yield

    app = FastAPI(title="The Rerank Lab", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.asks_for_a_key = api_key is not None

    def holds_the_key(request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return api_key is None or (
            scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1"), api_key.encode())
        )

    async def answer(dialect: Dialect, request: Request) -> JSONResponse:
        if not holds_the_key(request):
            raise RefusedError("key", "the API key is missing or wrong: send it as `Authorization: Bearer KEY`")
        body = parse(dialect, await read(request, limits.body), limits.documents)
        name = first if body.model is None else body.model
        if name not in rerankers:
            raise RefusedError("model", f"model {name[:100]!r} is not served here: give {' or '.join(rerankers)}")
        asked = Asked(rerankers[name], body.query, body.documents, body.top_n)
        ranking = await unless_the_client_leaves(request, batcher.rank(asked))
        metrics.pairs.labels(dialect.name).inc(len(body.documents))
        return JSONResponse(dialect.answer(body, name, ranking))

    def endpoint(dialect: Dialect) -> Callable:
        async def rerank(request: Request) -> Response:
            start = perf_counter()
            try:
                response: Response = await answer(dialect, request)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_LEFT)
            except Exception as error:
                refused = refusal_for(error)
                response = JSONResponse(
                    dialect.refusal(refused.problem, refused.message),
                    status_code=dialect.status[refused.problem],
                    headers=HEADERS.get(refused.problem),
                )
            metrics.requests.labels(dialect.name, response.status_code).inc()
            metrics.seconds.labels(dialect.name).observe(perf_counter() - start)
            return response

        return rerank

    for dialect in DIALECTS:
        content = {"application/json": {"schema": dialect.body.model_json_schema()}}
        body_schema = {"requestBody": {"required": True, "content": content}}
        app.add_api_route(
            dialect.path, endpoint(dialect), methods=["POST"], name=dialect.name, openapi_extra=body_schema
        )

    def need_key(request: Request) -> None:
        if not holds_the_key(request):
            raise HTTPException(401, headers=HEADERS["key"])

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/info", dependencies=[Depends(need_key)])
    async def info() -> dict[str, Any]:
        return {
            "model_id": first,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_client_batch_size": limits.documents,
            "max_concurrent_requests": limits.queue,
            "version": __version__,
        }

    @app.get("/metrics", dependencies=[Depends(need_key)])
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return app


async def read(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it is too long, whatever length the client declared."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RefusedError("body", f"the body has more than {limit} bytes: send fewer or shorter passages")
    return bytes(body)


async def unless_the_client_leaves(request: Request, work: Coroutine[Any, Any, Ranking]) -> Ranking:
    """The ranking; the work is cancelled when the client goes first."""
    ranking, left = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({ranking, left}, return_when=asyncio.FIRST_COMPLETED)
        if not ranking.done():
            raise ClientDisconnect
        return ranking.result()
    finally:
        ranking.cancel()
        left.cancel()


def refusal_for(error: Exception) -> RefusedError:
    """What the client is told about an error: its own faults in full, the server's not at all."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, OverloadedError):
        return RefusedError("busy", "the server is overloaded: try again in a second")
    if isinstance(error, InputError) and error.__cause__ is None:  # one with a cause is a broken cache, not an input
        return RefusedError("input", f"invalid request: {error}")
    logger.error("the model failed", exc_info=error)
    return RefusedError("fault", "the model failed: the server's log tells why")


def serve(app: FastAPI, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Run the application until it is stopped; requests under way are answered first.

    Raises:
        InputError: an address that other machines reach, and no key.
    """
    if not app.state.asks_for_a_key and not is_loopback(host):
        raise InputError(f"host is {host!r}, which other machines may reach: set RERANK_LAB_API_KEY, or use 127.0.0.1")
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=30)


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", "example.org")]
    [True, True, True, False, False, False]
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
