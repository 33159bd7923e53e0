"""MCP: search and rerank as tools that any agent can call, by the official SDK.

`rerank-lab mcp` speaks the Model Context Protocol over standard input and output, the way desktop assistants and code
editors start their tools. https://modelcontextprotocol.io
"""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from rerank_lab import __version__
from rerank_lab.core import Ranking, Reranker, RerankLabError, candidates_from
from rerank_lab.integrations.common import Stage, lock_of

__all__ = ["Cost", "Found", "FoundPassage", "Ranked", "RankedPassage", "create_server"]

Query = Annotated[str, Field(description="the question, as the user asked it")]


class Cost(BaseModel):
    """What the reranking took."""

    pairs: int = Field(description="query-passage pairs scored")
    truncated: int = Field(description="pairs whose passage was cut to fit the model")
    seconds: float = Field(description="wall time")


class FoundPassage(BaseModel):
    """A passage of the collection."""

    pid: str = Field(description="the passage's identifier")
    text: str
    score: float = Field(description="the reranker's; higher is better, and only comparable within this answer")
    rank: int = Field(description="place after reranking, from 1")
    first_rank: int = Field(description="place in the first stage, from 1")


class Found(BaseModel):
    """The answer of `search`, best passage first."""

    passages: list[FoundPassage]
    cost: Cost


class RankedPassage(BaseModel):
    """A passage of the request."""

    index: int = Field(description="its place in the request, from 0")
    score: float = Field(description="higher is better, and only comparable within this answer")


class Ranked(BaseModel):
    """The answer of `rerank`, best passage first."""

    passages: list[RankedPassage]
    cost: Cost


def create_server(stage: Stage, reranker: Reranker, *, about: str = "a collection") -> MCPServer:
    """A server with the tools `search` and `rerank`; `.run()` serves it over standard input and output.

    What the lab refuses comes back as a tool error with the lab's message; calls wait for each other.

    Args:
        stage: finds the candidates of `search`.
        reranker: orders them, and the passages of `rerank`.
        about: what the collection holds, for the agent that chooses among tools.
    """
    told = f"Finds and reranks passages of {about}."
    server = MCPServer("rerank-lab", instructions=told, version=__version__, log_level="WARNING")
    reading = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    def ranked(query: str, candidates, top_k: int | None) -> Ranking:
        try:
            with lock_of(reranker):
                return reranker.rerank(query, candidates(), top_k=top_k)
        except RerankLabError as error:
            raise ToolError(str(error)) from error

    @server.tool(description=f"Search {about} and rerank what was found.", annotations=reading)
    def search(
        query: Query,
        k: Annotated[int, Field(ge=1, le=100, description="passages to return")] = 5,
        depth: Annotated[int, Field(ge=1, le=1000, description="candidates to rerank")] = 20,
    ) -> Found:
        ranking = ranked(query, lambda: stage.search(query, depth), k)
        passages = [
            FoundPassage(pid=c.pid, text=c.text, score=c.score, rank=c.rank, first_rank=c.first_rank) for c in ranking
        ]
        return Found(passages=passages, cost=_cost(ranking))

    @server.tool(description="Order passages by how well they answer a query.", annotations=reading)
    def rerank(
        query: Query,
        passages: Annotated[list[str], Field(description="texts, in any order")],
        top_k: Annotated[int | None, Field(ge=1, description="how many to return; all without it")] = None,
    ) -> Ranked:
        ranking = ranked(query, lambda: candidates_from(passages), top_k)
        return Ranked(passages=[RankedPassage(index=int(c.pid), score=c.score) for c in ranking], cost=_cost(ranking))

    return server


def _cost(ranking: Ranking) -> Cost:
    usage = ranking.usage
    return Cost(pairs=usage.pairs, truncated=usage.truncated, seconds=usage.seconds)
