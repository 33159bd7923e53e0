"""The server over real sockets: the Cohere SDK and plain HTTP against a uvicorn in a thread."""

import json
import logging
import math
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from uuid import UUID

import cohere
import httpx
import pytest
import uvicorn
from conftest import QUERY, TEXTS
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from rerank_lab import CrossEncoder, Identity, Ranking, ScoreCache, candidates_from
from rerank_lab.core import InputError, PointwiseReranker, Reranker
from rerank_lab.server import Limits, create_app, is_loopback, serve
from rerank_lab.server_batching import Asked, rank_together
from rerank_lab.server_dialects import DIALECTS, RefusedError, parse, relevance

NAMES = ["cohere", "jina", "tei"]
PATHS = {"cohere": "/v2/rerank", "jina": "/v1/rerank", "tei": "/rerank"}
KEY = "a-key-that-nobody-else-has"


class WordOverlap(PointwiseReranker):
    """The number of query words in the passage, minus 1; it remembers the calls and may be held at a gate."""

    name = "words"

    def __init__(self):
        self.calls = []
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def _score(self, query, passages, usage):
        self.calls.append((query, [p.text for p in passages]))
        self.entered.release()
        assert self.gate.wait(60)
        if any("poison" in p.text for p in passages):
            raise RuntimeError("secret path /home/somebody")
        usage.pairs += len(passages)
        usage.input_tokens += sum(len(p.text.split()) for p in passages)
        return [len(words(query) & words(p.text)) - 1.0 for p in passages]


def words(text):
    return set(re.findall(r"\w+", text.lower()))


class Backwards(Reranker):
    """A listwise reranker: turns the list around, and remembers what it was asked."""

    name = "backwards"

    def __init__(self):
        self.calls = []

    def rerank(self, query, candidates, *, top_k=None):
        self.calls.append((len(candidates), top_k))
        return Identity().rerank(query, list(reversed(candidates)), top_k=top_k)


@contextmanager
def running(app):
    """Serve on a free port; gives the server, whose `url` is where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened within a minute"
        time.sleep(0.005)


@contextmanager
def client_of(rerankers, **options):
    with running(create_app(rerankers, **options)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@contextmanager
def cohere_client(url, key="any"):
    with httpx.Client(timeout=60) as transport:
        yield cohere.ClientV2(api_key=key, base_url=url, httpx_client=transport)


@pytest.fixture
def reranker():
    return WordOverlap()


@pytest.fixture
def client(reranker):
    with client_of({"words": reranker, "backwards": Backwards()}, limits=Limits(documents=50)) as client:
        yield client


def request(dialect, query=QUERY, texts=TEXTS, **more):
    if dialect == "tei":
        return {"query": query, "texts": texts, **more}
    return {"model": "words", "query": query, "documents": texts, **more}


def ask(client, dialect, *args, **more):
    return client.post(PATHS[dialect], json=request(dialect, *args, **more))


def pairs(dialect, answer):
    """(index, score) of an answer, in its order."""
    results = answer if dialect == "tei" else answer["results"]
    return [(r["index"], r["score" if dialect == "tei" else "relevance_score"]) for r in results]


def expected(query=QUERY, texts=TEXTS, top_n=None):
    ranking = WordOverlap().rerank(query, candidates_from(texts), top_k=top_n)
    return [(int(c.pid), relevance(c.score)) for c in ranking]


def complaint(dialect, response):
    """The message of a refusal, whose structure must be the dialect's."""
    content = response.json()
    field = {"cohere": "message", "jina": "detail", "tei": "error"}[dialect]
    assert set(content) == {field, "error_type"} if dialect == "tei" else {field}
    return content[field]


# What the dialects answer


def test_the_cohere_sdk_gets_the_ranking(client):
    with cohere_client(str(client.base_url)) as co:
        answer = co.rerank(model="words", query=QUERY, documents=TEXTS, max_tokens_per_doc=4096, priority=1)
        best = co.rerank(model="words", query=QUERY, documents=TEXTS, top_n=2)
    assert [(r.index, r.relevance_score) for r in answer.results] == expected()
    assert [(r.index, r.relevance_score) for r in best.results] == expected(top_n=2)
    assert UUID(answer.id) != UUID(best.id)
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units.search_units == 1


def test_cohere_bills_a_search_unit_for_every_hundred_documents_begun(reranker):
    with client_of({"words": reranker}) as client:
        units = [
            ask(client, "cohere", "ferry", ["tram"] * n).json()["meta"]["billed_units"]["search_units"]
            for n in (1, 100, 101)
        ]
    assert units == [1, 1, 2]


def test_jina_gets_texts_unless_it_wants_none_and_the_tokens_read(client):
    answer = ask(client, "jina", top_n=3).json()
    assert pairs("jina", answer) == expected(top_n=3)
    assert [r["document"]["text"] for r in answer["results"]] == [TEXTS[i] for i, _ in expected(top_n=3)]
    assert answer["model"] == "words"
    assert answer["usage"] == {"total_tokens": sum(len(t.split()) for t in TEXTS)}
    bare = ask(client, "jina", return_documents=False).json()
    assert pairs("jina", bare) == expected()
    assert not any("document" in r for r in bare["results"])


def test_tei_gets_a_bare_list_raw_scores_and_texts_if_asked(client):
    assert ask(client, "tei").json() == [{"index": i, "score": s} for i, s in expected()]
    raw = ask(client, "tei", raw_scores=True, return_text=True, truncate=True, truncation_direction="right").json()
    ranking = WordOverlap().rerank(QUERY, candidates_from(TEXTS))
    assert raw == [{"index": int(c.pid), "score": c.score, "text": c.text} for c in ranking]


def test_tei_names_no_model_and_gets_the_first_one(client):
    info = client.get("/info").json()
    assert info["model_id"] == "words"
    assert info["max_client_batch_size"] == 50
    assert list(info["model_type"]) == ["reranker"]


@pytest.mark.parametrize("dialect", NAMES)
def test_ties_and_duplicates_keep_the_order_of_the_request(client, dialect):
    answer = ask(client, dialect, "ferry", ["tram", "ferry", "tram", "ferry"]).json()
    assert [i for i, _ in pairs(dialect, answer)] == [1, 3, 0, 2]


@pytest.mark.parametrize("dialect", NAMES)
def test_texts_of_all_scripts_come_back_as_they_went(client, dialect):
    texts = ["Café naïve", "кот", "猫 🐈‍⬛", "e\u0301", "\x00 \u2028 </script>"]
    more = {"return_text": True} if dialect == "tei" else {}
    answer = ask(client, dialect, "кот 猫", texts, **more).json()
    assert pairs(dialect, answer) == expected("кот 猫", texts)
    if dialect == "tei":
        assert [r["text"] for r in answer] == [texts[i] for i, _ in pairs(dialect, answer)]


def test_a_listwise_reranker_gets_every_request_alone_and_how_many_are_wanted():
    listwise = Backwards()
    with client_of({"backwards": listwise}) as client:
        answer = client.post("/v2/rerank", json={**request("cohere"), "model": "backwards", "top_n": 2}).json()
    assert [i for i, _ in pairs("cohere", answer)] == [len(TEXTS) - 1, len(TEXTS) - 2]
    assert listwise.calls == [(len(TEXTS), 2)]


class Infinite(PointwiseReranker):
    name = "infinite"

    def _score(self, query, passages, usage):
        return [-math.inf, math.inf, -1e4, 0.0]


@pytest.mark.parametrize("dialect", NAMES)
def test_infinite_scores_are_sent_as_numbers(dialect):
    with client_of({"words": Infinite()}) as client:
        answer = ask(client, dialect, "ferry", ["a", "b", "c", "d"]).json()
        raw = ask(client, "tei", "ferry", ["a", "b", "c", "d"], raw_scores=True).json()
    assert pairs(dialect, answer) == [(1, 1.0), (3, 0.5), (2, 0.0), (0, 0.0)]
    assert [r["index"] for r in raw] == [1, 3, 2, 0]
    assert all(math.isfinite(r["score"]) for r in raw)


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=2))
def test_relevance_keeps_the_order_between_0_and_1(scores):
    low, high = (relevance(s) for s in sorted(scores))
    assert 0 <= low <= high <= 1


def test_the_schema_of_every_dialect_is_published(client):
    paths = client.get("/openapi.json").json()["paths"]
    for name in NAMES:
        schema = paths[PATHS[name]]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) >= {"query"}


# What they refuse

GOOD = {"query": "ferry", "documents": ["a"], "texts": ["a"], "model": "words"}
REFUSED = {  # what is sent, and the statuses of Cohere, Jina and TEI
    "no json": (b'{"query": "ferry"', "body: Invalid JSON", (400, 422, 400)),
    "nothing": (b"", "body: Invalid JSON", (400, 422, 400)),
    "no utf-8": (b'{"query": "\xff"}', "body: Invalid JSON", (400, 422, 400)),
    "half a surrogate": (b'{"query": "\\ud800", "model": "words"}', "body: Invalid JSON", (400, 422, 400)),
    "a list": (b"[]", "body: ", (400, 422, 422)),
    "no query": ({**GOOD, "query": None}, "query: ", (400, 422, 422)),
    "a number as query": ({**GOOD, "query": 1}, "query: ", (400, 422, 422)),
    "no list": ({**GOOD, "documents": "a", "texts": "a"}, "valid array", (400, 422, 422)),
    "no strings": ({**GOOD, "documents": [{"text": "a"}], "texts": [1]}, ".0: ", (400, 422, 422)),
    "no top": ({**GOOD, "top_n": 0}, "top_n: ", (400, 422, 422)),
    "no passages": ({**GOOD, "documents": [], "texts": []}, "list of passages is empty", (400, 422, 400)),
    "blank query": ({**GOOD, "query": " \n"}, "query is blank", (400, 422, 400)),
    "many": ({**GOOD, "documents": ["a"] * 51, "texts": ["a"] * 51}, "51 > maximum .* 50", (422, 422, 413)),
    "unknown model": ({**GOOD, "model": "x" * 500}, "model 'x{100}' is .* words or backwards", (404, 404, 404)),
}


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("what", REFUSED)
def test_bad_requests_are_refused_in_the_dialect_and_never_ranked(client, reranker, dialect, what):
    content, message, statuses = REFUSED[what]
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = client.post(PATHS[dialect], content=raw)
    assert response.status_code == statuses[NAMES.index(dialect)]
    assert re.search(message, complaint(dialect, response))
    assert reranker.calls == []


@pytest.mark.parametrize(
    ("what", "kind"), [("no passages", "Empty"), ("many", "Validation"), ("no query", "Validation")]
)
def test_tei_tells_the_kind_of_error(client, what, kind):
    assert client.post("/rerank", json=REFUSED[what][0]).json()["error_type"] == kind


def test_tei_is_not_given_scores_of_the_other_end_of_the_text(client):
    response = ask(client, "tei", truncation_direction="left")
    assert response.status_code == 422
    assert "truncation_direction" in complaint("tei", response)


def test_the_cohere_sdk_raises_what_it_raises_for_cohere(client):
    with cohere_client(str(client.base_url)) as co:
        with pytest.raises(cohere.BadRequestError, match="list of passages is empty"):
            co.rerank(model="words", query=QUERY, documents=[])
        with pytest.raises(cohere.NotFoundError, match="words or backwards"):
            co.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)


def in_chunks(content, size=1000):
    return (content[i : i + size] for i in range(0, len(content), size))


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("send", [bytes, in_chunks], ids=["declared", "chunked"])
def test_a_long_body_is_refused_whether_or_not_its_length_is_declared(reranker, dialect, send):
    fits = json.dumps(request(dialect, "ferry", ["x" * 4000])).encode()
    with client_of({"words": reranker}, limits=Limits(body=len(fits))) as client:
        for content, status in ((fits, 200), (fits + b" ", 413), (fits + b" " * 500_000, 413), (fits, 200)):
            response = client.post(PATHS[dialect], content=send(content))
            assert response.status_code == status
            if status == 413:
                assert f"more than {len(fits)} bytes" in complaint(dialect, response)


def test_a_body_without_end_is_given_up_at_the_limit(reranker):
    """A client that never stops sending is answered all the same."""
    with client_of({"words": reranker}, limits=Limits(body=1000)) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")


@given(raw=st.binary(max_size=200), dialect=st.sampled_from(DIALECTS))
def test_whatever_bytes_come_they_are_read_or_refused(raw, dialect):
    with pytest.raises(RefusedError):
        parse(dialect, raw, 10)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["model", "query", "documents", "texts", "top_n", "return_documents", "raw_scores", "truncate"]


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values | st.lists(st.text(), max_size=12)), st.sampled_from(DIALECTS)
)
def test_whatever_fields_come_they_make_a_request_or_are_refused_with_a_known_problem(fields, dialect):
    try:
        body = parse(dialect, json.dumps(fields).encode(), 10)
    except RefusedError as refused:
        assert refused.problem in dialect.status
    else:
        assert body.query.strip()
        assert 1 <= len(body.documents) <= 10


# The key


@pytest.mark.parametrize("dialect", NAMES)
def test_without_the_key_there_is_no_answer_and_the_key_is_never_told(reranker, dialect, caplog):
    caplog.set_level(logging.DEBUG)
    with client_of({"words": reranker}, api_key=KEY) as client:
        wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY}]
        wrong += [{"Authorization": "Bearer"}, {b"Authorization": b"Bearer \xff\xfe"}]
        for headers in wrong:
            response = client.post(PATHS[dialect], json=request(dialect), headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert KEY not in complaint(dialect, response)
        assert reranker.calls == []
        right = client.post(PATHS[dialect], json=request(dialect), headers={"Authorization": f"bearer {KEY}"})
        assert pairs(dialect, right.json()) == expected()
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("http", "asyncio"))]
    assert not any(KEY in message for message in ours)


def test_only_health_is_told_to_everybody(reranker):
    with client_of({"words": reranker}, api_key=KEY) as client:
        statuses = {path: client.get(path).status_code for path in ("/health", "/info", "/metrics")}
        told = client.get("/info", headers={"Authorization": f"Bearer {KEY}"})
    assert statuses == {"/health": 200, "/info": 401, "/metrics": 401}
    assert told.json()["model_id"] == "words"


def test_the_cohere_sdk_sends_the_key(reranker):
    with client_of({"words": reranker}, api_key=KEY) as client:
        with cohere_client(str(client.base_url), "wrong") as co, pytest.raises(cohere.UnauthorizedError):
            co.rerank(model="words", query=QUERY, documents=TEXTS)
        with cohere_client(str(client.base_url), KEY) as co:
            assert len(co.rerank(model="words", query=QUERY, documents=TEXTS).results) == len(TEXTS)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_without_a_key_only_this_machine_is_served(reranker, host):
    with pytest.raises(InputError, match="set RERANK_LAB_API_KEY"):
        serve(create_app({"words": reranker}), host, 0)
    assert not is_loopback(host)


def test_senseless_settings_are_refused(reranker):
    with pytest.raises(InputError, match="no reranker"):
        create_app({})
    with pytest.raises(InputError, match="key is blank"):
        create_app({"words": reranker}, api_key=" ")
    for limits in ({"body": 0}, {"documents": 0}, {"queue": 0}, {"pairs": -1}, {"wait": -0.1}):
        ((name, value),) = limits.items()
        with pytest.raises(InputError, match=f"limit {name} is {value}: give at least"):
            Limits(**limits)


# Many at once


def ask_all(client, requests):
    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(lambda r: client.post(PATHS[r[0]], json=request(*r)), requests))


def many(n):
    texts = [f"{word} {i}" for i in range(8) for word in ("ferry", "night ferry", "tram")]
    return [
        (NAMES[i % 3], ["night ferry", "ferry", "tram at night"][i % 4 % 3], texts[i % 7 : i % 7 + 12])
        for i in range(n)
    ]


def test_64_requests_at_once_are_answered_as_one_by_one(reranker):
    requests = many(64)
    with client_of({"words": reranker}) as client:
        answers = ask_all(client, requests)
    for (dialect, query, texts), answer in zip(requests, answers, strict=True):
        assert pairs(dialect, answer.json()) == expected(query, texts)


def test_64_requests_at_once_to_a_transformer_are_answered_as_one_by_one(tiny_bert):
    requests = many(64)
    with client_of({"words": CrossEncoder.from_pretrained(tiny_bert)}) as client:
        together = ask_all(client, requests)
        alone = [client.post(PATHS[r[0]], json=request(*r)) for r in requests]
    for (dialect, *_), one, other in zip(requests, together, alone, strict=True):
        assert dict(pairs(dialect, one.json())) == pytest.approx(dict(pairs(dialect, other.json())), abs=1e-5)


def test_requests_that_wait_with_the_same_query_share_one_call(reranker):
    reranker.gate.clear()
    with client_of({"words": reranker}) as client, ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, client, "tei", "tram", ["a"])
        reranker.entered.acquire(timeout=60)
        waiting = [threads.submit(ask, client, "jina", "ferry", [f"ferry {i}", "the tram"]) for i in range(4)]
        other = threads.submit(ask, client, "cohere", "bus", ["the bus"])
        wait_until(lambda: queue_length(client) == 5)
        reranker.gate.set()
        answers = [w.result().json() for w in waiting]
        assert first.result().status_code == other.result().status_code == 200
    for i, answer in enumerate(answers):
        assert [r["document"]["text"] for r in answer["results"]] == [f"ferry {i}", "the tram"]
        assert answer["usage"]["total_tokens"] == 4
    calls = {query: sorted(texts) for query, texts in reranker.calls}
    assert len(reranker.calls) == 3, "one call each for tram, ferry and bus"
    assert calls["ferry"] == ["ferry 0", "ferry 1", "ferry 2", "ferry 3", "the tram"], "a shared text is scored once"


def queue_length(client):
    return samples(client)["rerank_lab_queue", ()]


def test_a_call_is_not_shared_beyond_the_limit_of_pairs(reranker):
    reranker.gate.clear()
    with client_of({"words": reranker}, limits=Limits(pairs=5)) as client, ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, client, "tei", "tram", ["a"])
        reranker.entered.acquire(timeout=60)
        waiting = [threads.submit(ask, client, "tei", "ferry", [f"{i}", "ferry"]) for i in range(4)]
        wait_until(lambda: queue_length(client) == 4)
        reranker.gate.set()
        assert all(w.result().status_code == 200 for w in [first, *waiting])
    assert [len(texts) for _, texts in reranker.calls] == [1, 3, 3]


texts_of = st.lists(st.sampled_from(["ferry", "tram", "night ferry", "", "bus at night"]), min_size=1, max_size=6)


@given(st.lists(texts_of, min_size=1, max_size=5), st.none() | st.integers(1, 4))
def test_rankings_made_together_are_those_made_alone(lists, top_k):
    together = rank_together([Asked(words_only, "night ferry", texts, top_k) for texts in lists])
    for texts, ranking in zip(lists, together, strict=True):
        alone = words_only.rerank("night ferry", candidates_from(texts), top_k=top_k)
        assert ranking.candidates == alone.candidates


words_only = WordOverlap()


def test_one_request_that_breaks_the_model_does_not_break_those_beside_it(reranker):
    asked = [Asked(reranker, "ferry", texts) for texts in (["ferry"], ["poison"], ["tram"])]
    one, broken, other = rank_together(asked)
    assert isinstance(one, Ranking) and isinstance(other, Ranking)
    assert isinstance(broken, RuntimeError)


@pytest.mark.parametrize("dialect", NAMES)
def test_a_full_queue_is_an_overload_that_passes(reranker, dialect):
    reranker.gate.clear()
    with client_of({"words": reranker}, limits=Limits(queue=1)) as client, ThreadPoolExecutor(2) as threads:
        under_way = threads.submit(ask, client, dialect)
        reranker.entered.acquire(timeout=60)
        waiting = threads.submit(ask, client, dialect)
        wait_until(lambda: queue_length(client) == 1)
        refused = ask(client, dialect)
        reranker.gate.set()
        assert under_way.result().status_code == waiting.result().status_code == 200
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "overloaded" in complaint(dialect, refused)
        if dialect == "tei":
            assert refused.json()["error_type"] == "Overloaded"
        assert ask(client, dialect).status_code == 200


def test_a_client_that_leaves_before_its_turn_costs_nothing(reranker):
    reranker.gate.clear()
    with client_of({"words": reranker}) as client, ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(ask, client, "tei", "tram")
        reranker.entered.acquire(timeout=60)
        raw = json.dumps(request("tei", "ferry")).encode()
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
            head = f"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
            connection.sendall(head + raw)
            wait_until(lambda: queue_length(client) == 1)
        wait_until(lambda: queue_length(client) == 0)
        reranker.gate.set()
        assert under_way.result().status_code == 200
        assert ask(client, "tei", "bus").status_code == 200
        assert samples(client)["rerank_lab_requests_total", ("tei", "499")] == 1
    assert [query for query, _ in reranker.calls] == ["tram", "bus"]


def test_a_client_that_leaves_in_the_middle_of_its_body_is_only_counted(reranker, caplog):
    with client_of({"words": reranker}) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
            connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        wait_until(lambda: samples(client).get(("rerank_lab_requests_total", ("tei", "499"))) == 1)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# When the model fails


@pytest.mark.parametrize("dialect", NAMES)
def test_a_failing_model_is_the_servers_fault_and_its_reason_stays_in_the_log(reranker, dialect, caplog):
    with client_of({"words": reranker}) as client:
        response = ask(client, dialect, "ferry", ["poison"])
        assert response.status_code == (424 if dialect == "tei" else 500)
        assert complaint(dialect, response) == "the model failed: the server's log tells why"
        assert ask(client, dialect).status_code == 200
    assert "secret path" in caplog.text


@pytest.mark.parametrize("dialect", NAMES)
def test_what_the_model_cannot_take_is_the_clients_fault(tiny_bert, dialect):
    with client_of({"words": CrossEncoder.from_pretrained(tiny_bert)}) as client:
        response = ask(client, dialect, "ferry " * 100, ["tram"])
    assert response.status_code == {"cohere": 400, "jina": 422, "tei": 413}[dialect]
    assert "shorten the query" in complaint(dialect, response)


class BrokenCache(PointwiseReranker):
    name = "broken-cache"

    def __init__(self, folder):
        self.folder = folder

    def _score(self, query, passages, usage):
        ScoreCache(self.folder)


def test_a_broken_score_cache_is_not_the_clients_fault_and_its_path_stays_here(tmp_path):
    with client_of({"words": BrokenCache(tmp_path)}) as client:
        response = ask(client, "cohere")
    assert response.status_code == 500
    assert str(tmp_path) not in response.text


# Health, metrics and the end


def samples(client):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_metrics_count_requests_pairs_times_and_calls(client):
    for dialect in NAMES:
        ask(client, dialect)
    ask(client, "tei", "ferry", [])
    counted = samples(client)
    assert counted["rerank_lab_requests_total", ("cohere", "200")] == 1
    assert counted["rerank_lab_requests_total", ("tei", "200")] == 1
    assert counted["rerank_lab_requests_total", ("tei", "400")] == 1
    assert counted["rerank_lab_pairs_total", ("jina",)] == len(TEXTS)
    assert counted["rerank_lab_request_seconds_count", ("tei",)] == 2
    assert counted["rerank_lab_call_passages_count", ()] == 3
    assert counted["rerank_lab_call_passages_sum", ()] == 3 * len(TEXTS)
    assert counted["rerank_lab_queue", ()] == 0


def test_two_apps_in_one_process_count_for_themselves(reranker):
    with ExitStack() as stack:
        one, other = (stack.enter_context(client_of({"words": reranker})) for _ in range(2))
        ask(one, "tei")
        assert ("rerank_lab_requests_total", ("tei", "200")) in samples(one)
        assert ("rerank_lab_requests_total", ("tei", "200")) not in samples(other)


def test_health_answers_and_unknown_places_do_not(client):
    assert client.get("/health").status_code == 200
    assert client.get("/rerank").status_code == 405
    assert client.get("/v3/rerank").status_code == 404


def test_requests_under_way_are_answered_before_the_server_stops(reranker):
    reranker.gate.clear()
    with (
        running(create_app({"words": reranker})) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        under_way = threads.submit(ask, client, "tei", "tram")
        reranker.entered.acquire(timeout=60)
        waiting = threads.submit(ask, client, "tei", "ferry")
        wait_until(lambda: queue_length(client) == 1)
        server.should_exit = True
        reranker.gate.set()
        assert under_way.result().status_code == waiting.result().status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    assert not [t for t in threading.enumerate() if t.name.startswith("rerank-lab")]
