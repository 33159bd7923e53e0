"""The MCP server, asked by the official client: over standard input and output of a process, and in memory."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import QUERY, TEXTS
from mcp import Client, StdioServerParameters

import rerank_lab
from rerank_lab import BM25, CrossEncoder, Passage, candidates_from, read_collection
from rerank_lab.integrations.mcp import create_server

TEXTS = [text for text in TEXTS if text]
PASSAGES = [Passage(f"p{i}", text) for i, text in enumerate(TEXTS)]


def command(*arguments, **environment):
    root = str(Path(rerank_lab.__file__).parents[1])
    kept = {name: os.environ[name] for name in ("RERANK_LAB_CACHE", "HF_HUB_OFFLINE") if name in os.environ}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "rerank_lab.cli", "mcp", *arguments],
        env={"PYTHONPATH": root, "OMP_NUM_THREADS": "1", **kept, **environment},
    )


def conversation(server, *calls):
    """The tools of a server by name, and its answers to calls of (tool, arguments), within one connection."""

    async def talk():
        async with Client(server, read_timeout_seconds=120) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            return tools, [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(talk())


def said(answer):
    (content,) = answer.content
    return content.text


def test_a_client_finds_reranks_and_is_refused_over_standard_input_and_output(tiny_bert):
    question = read_collection("lab").queries["transit-02"]
    tools, (found, ranked, blank, wrong, unknown) = conversation(
        command("--reranker", tiny_bert),
        ("search", {"query": question, "k": 2, "depth": 4}),
        ("rerank", {"query": QUERY, "passages": ["tram", "the ferry", "tram"], "top_k": 2}),
        ("search", {"query": " "}),
        ("rerank", {"query": QUERY, "passages": "the ferry"}),
        ("fetch", {}),
    )
    assert set(tools) == {"search", "rerank"}
    cross = CrossEncoder.from_pretrained(tiny_bert)
    candidates = BM25(list(read_collection("lab").passages.values())).search(question, 4)
    expected = cross.rerank(question, candidates, top_k=2)
    rows = found.structured_content["passages"]
    assert [(r["pid"], r["text"], r["rank"], r["first_rank"]) for r in rows] == [
        (c.pid, c.text, c.rank, c.first_rank) for c in expected
    ]
    assert [r["score"] for r in rows] == pytest.approx([c.score for c in expected], abs=1e-5)
    assert found.structured_content["cost"]["pairs"] == 4
    assert json.loads(said(found)) == found.structured_content  # for clients that read text alone
    order = cross.rerank(QUERY, candidates_from(["tram", "the ferry", "tram"]), top_k=2)
    assert [r["index"] for r in ranked.structured_content["passages"]] == [int(c.pid) for c in order]
    assert [answer.is_error for answer in (found, ranked, blank, wrong, unknown)] == [False, False, True, True, True]
    assert said(blank).endswith("the query is ' ': give a string with at least one visible character")
    assert "valid list" in said(wrong)
    assert "fetch" in said(unknown)


@pytest.mark.parametrize("name", ["search", "rerank"])
def test_results_have_the_type_that_the_tool_declares(name, tiny_bert):
    import jsonschema

    server = create_server(BM25(PASSAGES), CrossEncoder.from_pretrained(tiny_bert), about="toy passages")
    arguments = {"query": QUERY} if name == "search" else {"query": QUERY, "passages": TEXTS}
    tools, (answer,) = conversation(server, (name, arguments))
    schema = tools[name].output_schema
    jsonschema.validate(answer.structured_content, schema)
    assert answer.structured_content["passages"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"passages": [{"score": "high"}], "cost": {}}, schema)
    assert tools[name].annotations.read_only_hint
    assert "toy passages" in tools["search"].description


def test_nothing_found_is_nothing_and_no_error(tiny_bert):
    server = create_server(BM25(PASSAGES), CrossEncoder.from_pretrained(tiny_bert))
    _, answers = conversation(server, ("search", {"query": "zebra"}), ("rerank", {"query": QUERY, "passages": []}))
    assert [(a.is_error, a.structured_content["passages"]) for a in answers] == [(False, [])] * 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("search", {"query": QUERY, "k": 0}, "greater than or equal to 1"),
        ("search", {"query": QUERY, "depth": 1001}, "less than or equal to 1000"),
        ("search", {}, "Field required"),
        ("rerank", {"query": 7, "passages": []}, "valid string"),
        ("rerank", {"query": "ferry " * 80, "passages": ["tram"]}, "leaves none for a passage: shorten the query"),
    ],
)
def test_what_is_refused_comes_back_as_a_tool_error_with_the_mend(name, arguments, message, tiny_bert):
    server = create_server(BM25(PASSAGES), CrossEncoder.from_pretrained(tiny_bert))
    _, (answer,) = conversation(server, (name, arguments))
    assert answer.is_error
    assert message in said(answer)


def test_calls_at_the_same_time_all_get_their_own_answer(tiny_bert):
    server = create_server(BM25(PASSAGES), CrossEncoder.from_pretrained(tiny_bert))
    queries = [QUERY, "tram", "museum ticket", "the bus to the island"]

    async def at_once():
        async with Client(server) as client:
            return await asyncio.gather(*(client.call_tool("search", {"query": q, "k": 2}) for q in queries))

    alone = [conversation(server, ("search", {"query": q, "k": 2}))[1][0] for q in queries]
    together = asyncio.run(at_once())
    found = [[[p["pid"] for p in a.structured_content["passages"]] for a in answers] for answers in (alone, together)]
    assert found[0] == found[1]


def test_a_collection_that_is_not_there_ends_the_command_with_one_line():
    import subprocess

    server = command("--collection", "nowhere")
    ended = subprocess.run(
        [server.command, *server.args], env={**os.environ, **server.env}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith("error: ")


def test_without_the_sdk_the_command_names_the_extra(monkeypatch):
    from rerank_lab import cli
    from rerank_lab.core import InputError

    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    monkeypatch.delitem(sys.modules, "rerank_lab.integrations.mcp")
    with pytest.raises(InputError, match=r"pip install rerank-lab\[mcp\]"):
        cli.mcp()
