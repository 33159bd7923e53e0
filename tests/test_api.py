"""Hosted rerankers against a local server that speaks their dialects and fails on demand; Cohere's through its SDK."""

import json
import logging
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from datetime import datetime, timezone

import httpx
import pytest
from fake_vendors import KEY, WRONG_ROWS, fake_vendors, overlap
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import Passage, RerankLabError, ScoreCache, candidates_from
from rerank_lab.core import InputError
from rerank_lab.prices import cost, price
from rerank_lab.rerankers.api import APIError, CohereReranker, JinaReranker, TEIReranker, VoyageReranker
from rerank_lab.rerankers.api_hosted import scores_by_index
from rerank_lab.transport import Vendor, retry_pause

QUERY = "when does the night ferry leave"
TEXTS = ["the night ferry", "a museum", "when does the tram leave", "Café 猫 🐈‍⬛ ferry", "the night ferry does leave"]
FAST = {"timeout": 5.0, "backoff": 0.001}
CLASSES = {"Cohere": CohereReranker, "Jina": JinaReranker, "Voyage": VoyageReranker, "TEI": TEIReranker}
VARIABLES = {"Cohere": "CO", "Jina": "JINA", "Voyage": "VOYAGE", "TEI": "TEI"}
every_vendor = pytest.mark.parametrize("vendor", CLASSES)


def passages(texts):
    return [Passage(f"p{i}", text) for i, text in enumerate(texts)]


def many(n):
    """Distinct texts that share from none to all words with the query."""
    words = QUERY.split()
    return [" ".join([*words[: i % 7], f"passage-{i}"]) for i in range(n)]


@pytest.fixture
def server():
    with fake_vendors() as running:
        yield running


@pytest.fixture
def make(server, monkeypatch, tmp_path):
    """Makes rerankers that ask the local server, and closes them."""
    made = []
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))  # no certificates to read for each client: plain http is spoken
    for name in VARIABLES.values():
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
        monkeypatch.delenv(f"{name}_API_URL", raising=False)
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)

    def build(vendor, *, base_url=server.url, **options):
        named = {"model": "bge-reranker-base", **options} if vendor == "TEI" else options
        made.append(CLASSES[vendor].from_environment(base_url=base_url, **{**FAST, **named}))
        return made[-1]

    yield build
    for reranker in made:
        reranker.close()


# The dialects


@every_vendor
def test_scores_come_in_the_order_of_the_passages_though_answers_come_best_first(make, vendor):
    scores = make(vendor).score(QUERY, passages(TEXTS))
    assert scores == [overlap(QUERY, text) for text in TEXTS]
    assert scores != sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("vendor", "path", "body"),
    [
        ("Cohere", "/v2/rerank", {"model": "rerank-v3.5", "documents": TEXTS, "top_n": 5, "max_tokens_per_doc": 4096}),
        (
            "Jina",
            "/v1/rerank",
            {
                "model": "jina-reranker-v2-base-multilingual",
                "documents": TEXTS,
                "top_n": 5,
                "return_documents": False,
            },
        ),
        ("Voyage", "/v1/rerank", {"model": "rerank-2.5", "documents": TEXTS, "top_k": 5, "truncation": True}),
        ("TEI", "/rerank", {"texts": TEXTS, "raw_scores": False, "return_text": False, "truncate": True}),
    ],
)
def test_a_request_is_in_the_vendors_dialect(make, server, vendor, path, body):
    make(vendor).score(QUERY, passages(TEXTS))
    ((asked_path, headers, asked),) = server.asked
    assert (asked_path, asked) == (path, {"query": QUERY, **body})
    assert headers["Authorization"] == f"Bearer {KEY}"


@every_vendor
def test_a_ranking_keeps_the_promises_of_every_reranker(make, vendor):
    reranker = make(vendor)
    candidates = candidates_from(passages([*TEXTS, *TEXTS]))
    ranking = reranker.rerank(QUERY, candidates)
    assert sorted(c.pid for c in ranking) == sorted(c.pid for c in candidates)
    assert [c.pid for c in ranking][:4] == ["p4", "p9", "p2", "p7"]
    assert [c.pid for c in reranker.rerank(QUERY, candidates, top_k=3)] == ["p4", "p9", "p2"]
    assert len(reranker.rerank(QUERY, [])) == 0
    assert reranker.name == reranker.model


@every_vendor
def test_batches_are_split_and_merged(make, server, vendor):
    texts = many(65)
    assert make(vendor, batch_size=20).score(QUERY, passages(texts)) == [overlap(QUERY, t) for t in texts]
    assert [len(body.get("documents") or body["texts"]) for _, _, body in server.asked] == [20, 20, 20, 5]


def test_without_a_batch_size_a_request_has_the_most_that_the_vendor_takes(make):
    assert {vendor: make(vendor).batch_size for vendor in CLASSES} == {
        "Cohere": 1000,
        "Jina": 2048,
        "Voyage": 1000,
        "TEI": 32,
    }


@every_vendor
@pytest.mark.parametrize("options", [{"batch_size": 0}, {"attempts": 0}])
def test_less_than_one_passage_or_attempt_is_refused(make, vendor, options):
    with pytest.raises(InputError, match="give at least 1 of each"):
        make(vendor, **options)


@every_vendor
@pytest.mark.parametrize("cached", [False, True])
def test_a_text_that_occurs_twice_is_sent_once_also_across_batches(make, server, tmp_path, vendor, cached):
    cache = ScoreCache(tmp_path / "scores.sqlite") if cached else None
    texts = many(10) * 3
    ranking = make(vendor, batch_size=4, cache=cache).rerank(QUERY, candidates_from(passages(texts)))
    assert [ranking.to_run()[f"p{i}"] for i in range(30)] == [overlap(QUERY, t) for t in texts]
    assert server.delivered == dict.fromkeys(many(10), 1)
    assert (ranking.usage.pairs, ranking.usage.calls, ranking.usage.cached) == (30, 3, 0)
    if cached:
        cache.close()


@every_vendor
def test_a_passage_without_a_visible_character_is_not_sent_and_gets_the_lowest_score(make, server, vendor):
    reranker = make(vendor)
    ranking = reranker.rerank(QUERY, candidates_from(passages(["", "the ferry", " \n\t", "a museum"])))
    assert ranking[0].pid == "p1"
    assert server.delivered == {"the ferry": 1, "a museum": 1}
    assert ranking.to_run()["p0"] == ranking.to_run()["p2"] == (-1.0 if vendor == "Jina" else 0.0)
    assert ranking.usage.pairs == 4
    assert reranker.score(QUERY, passages(["", " "])) == [reranker.lowest] * 2
    assert len(server.asked) == 1


@every_vendor
def test_half_a_surrogate_pair_does_not_stop_the_rest(make, server, vendor):
    assert make(vendor).score(QUERY, passages(["the \ud83d ferry", "ferry"])) == pytest.approx([2 / 7, 1 / 6])
    assert "the ? ferry" in server.delivered


# Usage


@pytest.mark.parametrize(
    ("vendor", "tokens", "dollars"),
    [
        ("Cohere", 0, (3 + 1) * 0.002),  # 1 unit for each 100 passages begun: 250 and 50 passages
        ("Jina", 2997, 2997 * 0.05e-6),
        ("Voyage", 2997, 2997 * 0.05e-6),
        ("TEI", 0, 0.0),
    ],
)
def test_usage_says_what_the_vendor_bills(make, vendor, tokens, dollars):
    texts = many(300)
    assert sum(len(f"{QUERY} {t}".split()) for t in texts) == 2997
    usage = make(vendor, batch_size=250).rerank(QUERY, candidates_from(texts)).usage
    assert (usage.pairs, usage.calls, usage.cached) == (300, 2, 0)
    assert usage.input_tokens == tokens
    assert usage.dollars == pytest.approx(dollars)
    assert usage.seconds > 0


def test_the_dollars_of_a_model_without_a_known_price_stay_zero_and_it_says_so(make):
    reranker = make("Jina", model="jina-reranker-v99")
    usage = reranker.rerank(QUERY, candidates_from(TEXTS)).usage
    assert (reranker.priced, usage.dollars) == (False, 0.0)
    assert usage.input_tokens > 0
    assert make("Jina").priced


# Failures that pass


@every_vendor
@pytest.mark.parametrize("fault", ["408", "409", "425", "429 after 0", "500", "503", "cut", "reset"])
def test_a_failure_that_may_pass_is_tried_again(make, server, vendor, fault):
    server.faults = [fault]
    reranker = make(vendor)
    ranking = reranker.rerank(QUERY, candidates_from(TEXTS))
    assert [ranking.to_run()[str(i)] for i in range(5)] == [overlap(QUERY, text) for text in TEXTS]
    assert (reranker.retries, ranking.usage.calls, len(server.asked)) == (1, 1, 2)


@every_vendor
def test_a_request_is_tried_only_so_often(make, server, vendor):
    server.faults = ["500"] * 9
    reranker = make(vendor, attempts=3)
    with pytest.raises(APIError, match=rf"^{vendor} answered 500 \(the server says 500.*try again later") as caught:
        reranker.score(QUERY, passages(TEXTS))
    assert (len(server.asked), reranker.retries) == (3, 2)
    assert (caught.value.provider, caught.value.status, caught.value.passing) == (vendor, 500, True)
    assert isinstance(caught.value, RerankLabError)


@every_vendor
def test_the_pause_that_the_server_asks_for_is_known(make, server, vendor):
    server.faults = ["429 after 7", "503 after Wed, 21 Oct 2015 07:28:00 GMT", "429"]
    reranker = make(vendor, attempts=1)
    pauses = []
    for _ in range(3):
        with pytest.raises(APIError) as caught:
            reranker.score(QUERY, passages(TEXTS))
        pauses.append(caught.value.retry_after)
    assert pauses == [7.0, 0.0, None]


@pytest.mark.parametrize("vendor", ["Cohere", "Jina"])
def test_the_pause_that_the_server_asks_for_is_kept(make, server, vendor):
    server.faults = ["429 after 1"]
    start = time.monotonic()
    make(vendor, backoff=0.0).score(QUERY, passages(TEXTS))
    assert time.monotonic() - start >= 1.0


@given(header=st.text() | st.integers().map(str), year=st.integers(1970, 9999))
def test_a_pause_is_seconds_or_nothing_whatever_the_header(header, year):
    pause = retry_pause(header, datetime(year, 1, 1, tzinfo=timezone.utc))
    assert pause is None or pause >= 0


@every_vendor
def test_where_nothing_listens_the_error_names_the_variable_with_the_address(make, vendor):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        APIError, match=rf"{vendor} did not answer \(ConnectError.*{VARIABLES[vendor]}_API_URL"
    ) as caught:
        make(vendor, base_url=address, attempts=2).score(QUERY, passages(TEXTS))
    assert (caught.value.status, caught.value.passing) == (None, True)


# Failures that stay


@every_vendor
@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (400, "smaller batch_size or shorter passages"),
        (401, "check the key in {}_API_KEY"),
        (403, "check the key in {}_API_KEY"),
        (404, "the model's name and the address in {}_API_URL"),
        (413, "smaller batch_size or shorter passages"),
        (422, "smaller batch_size or shorter passages"),
    ],
)
def test_a_refusal_is_not_tried_again_and_names_the_mend(make, server, vendor, status, mend):
    server.faults = [str(status)]
    with pytest.raises(APIError) as caught:
        make(vendor).score(QUERY, passages(TEXTS))
    error = str(caught.value)
    assert error.startswith(f"{vendor} answered {status} (the server says {status} to Bearer ***")
    assert mend.format(VARIABLES[vendor]) in error
    assert len(error) < 400, "the server's message should be cut"
    assert (len(server.asked), caught.value.passing, caught.value.usage.calls) == (1, False, 0)


@every_vendor
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("not json", "200"),
        ("no results", "200 with"),
        ("null", "200 with"),
        ("list of lists", "200 with"),
        ("out of range", "index 5, which is none of the 5 passages"),
        ("negative", "index -1, which is none of the 5 passages"),
        ("twice", "index 4 twice"),
        ("missing", "without a score for index 4 of 5 passages"),
        ("nan", "the score nan for index 4"),
        ("null score", "the score None for index 4"),
        ("text score", "the score 'high' for index 4"),
        ("index of another type", "index 'first', which is none"),
    ],
)
def test_an_answer_that_cannot_be_used_is_named_and_counted_and_not_asked_for_again(
    make, server, vendor, fault, problem
):
    server.faults = [fault]
    with pytest.raises(APIError, match=rf"^{vendor} answered .*{VARIABLES[vendor]}_API_URL") as caught:
        make(vendor).rerank(QUERY, candidates_from(TEXTS))
    assert problem in str(caught.value)
    assert (len(server.asked), caught.value.status) == (1, 200)
    assert caught.value.usage.calls == 1
    if vendor in {"Jina", "Voyage"} and fault in WRONG_ROWS:
        assert caught.value.usage.dollars > 0, "it was paid"


A = Vendor("A", "A_API_KEY", "A_API_URL", "http://a")
ROWS = st.tuples(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=2),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2),
)


@given(scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=9), seed=st.integers())
def test_scores_are_read_by_index_from_rows_in_any_order(scores, seed):
    rows = list(enumerate(scores))
    random.Random(seed).shuffle(rows)
    assert scores_by_index(rows, len(scores), A) == scores


@given(rows=st.lists(ROWS, max_size=9), n=st.integers(0, 8))
def test_rows_that_do_not_name_each_passage_once_are_refused(rows, n):
    try:
        scores = scores_by_index(rows, n, A)
    except APIError:
        return
    assert sorted(index for index, _ in rows) == list(range(n))
    assert all(type(score) is float and math.isfinite(score) for score in scores)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["results", "data", "usage", "total_tokens", "index", "score", "relevance_score"]), inner
        )
    ),
    max_leaves=12,
)


@given(answer=JSON, vendor=st.sampled_from(["Jina", "Voyage", "TEI"]))
@settings(max_examples=50)
def test_any_json_gives_scores_or_an_api_error(answer, vendor):
    raw = json.dumps(answer).encode()
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=raw))
    with httpx.Client(base_url="http://a", transport=transport) as client:
        try:
            (score,) = CLASSES[vendor](client, "m").score(QUERY, passages(["a ferry"]))
        except APIError as error:
            assert error.status == 200
        else:
            assert math.isfinite(score)


# None lost, none paid twice


@every_vendor
def test_usage_is_right_when_a_batch_fails_after_others_were_paid(make, server, vendor):
    server.faults = ["", "", "401"]
    with pytest.raises(APIError) as caught:
        make(vendor, batch_size=20).rerank(QUERY, candidates_from(many(100)))
    usage = caught.value.usage
    assert (usage.pairs, usage.calls, usage.cached) == (100, 2, 0)
    assert usage.seconds > 0
    if vendor in {"Jina", "Voyage"}:
        assert usage.input_tokens == sum(len(f"{QUERY} {text}".split()) for text in many(40))
    assert usage.dollars == pytest.approx(
        {"Cohere": 2 * 0.002, "TEI": 0.0}.get(vendor, usage.input_tokens * 0.05e-6), abs=1e-12
    )


def drill_faults(seed):
    """30 % of requests fail; only one of them hangs, because that costs the whole time-out."""
    generator = random.Random(seed)
    kinds = ["429 after 0", "429", "500", "503", "cut", "cut", "reset", "reset"]
    faults = [generator.choice(kinds) if generator.random() < 0.3 else "" for _ in range(400)]
    faults[generator.choice([i for i, fault in enumerate(faults[:80]) if fault])] = "hang"
    return faults


@every_vendor
def test_of_2000_passages_none_is_lost_and_none_paid_twice_while_30_percent_of_requests_fail(make, server, vendor):
    texts = many(1990) + many(10)
    server.faults = faults = drill_faults(seed=7)
    happened = faults.copy()
    reranker = make(vendor, batch_size=25, attempts=12, timeout=1.5)
    ranking = reranker.rerank(QUERY, candidates_from(texts))
    assert [ranking.to_run()[str(i)] for i in range(2000)] == [overlap(QUERY, text) for text in texts]
    assert server.delivered == dict.fromkeys(many(1990), 1)
    failed = sum(bool(fault) for fault in happened[: len(server.asked)])
    assert failed > 20
    assert happened[: len(server.asked)].count("hang") == 1
    assert (ranking.usage.pairs, ranking.usage.calls, reranker.retries) == (2000, 80, failed)


@every_vendor
def test_a_run_that_fails_at_batch_7_goes_on_where_it_was(make, server, tmp_path, vendor):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    server.faults = [""] * 6 + ["403"]
    candidates = candidates_from(many(100))
    with pytest.raises(APIError):
        make(vendor, batch_size=10, cache=cache).rerank(QUERY, candidates)
    usage = make(vendor, batch_size=10, cache=cache).rerank(QUERY, candidates).usage
    assert (usage.pairs, usage.cached, usage.calls) == (100, 60, 4)
    assert server.delivered == dict.fromkeys(many(100), 1)
    again = make(vendor, batch_size=10, cache=cache).rerank(QUERY, candidates)
    assert (again.usage.cached, again.usage.calls, again.usage.dollars) == (100, 0, 0.0)
    assert [again.to_run()[str(i)] for i in range(100)] == [overlap(QUERY, text) for text in many(100)]
    cache.close()


RUN = """
import sys
from rerank_lab import ScoreCache, candidates_from
from rerank_lab.rerankers.api import JinaReranker
reranker = JinaReranker.from_environment(base_url=sys.argv[1], batch_size=10, cache=ScoreCache(sys.argv[2]))
reranker.rerank(sys.argv[3], candidates_from(sys.argv[4:]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system knows no SIGKILL")
def test_a_run_that_is_killed_at_batch_7_goes_on_where_it_was(make, server, tmp_path):
    server.faults = [""] * 6 + ["hang"]
    path = tmp_path / "scores.sqlite"
    command = [sys.executable, "-c", RUN, server.url, str(path), QUERY, *many(100)]
    with subprocess.Popen(command, env={**os.environ, "JINA_API_KEY": KEY}) as run:
        assert server.hanging.wait(60)
        run.kill()
    server.released.set()
    cache = ScoreCache(path)
    usage = make("Jina", batch_size=10, cache=cache).rerank(QUERY, candidates_from(many(100))).usage
    cache.close()
    assert (usage.cached, usage.calls) == (60, 4)
    assert server.delivered == dict.fromkeys(many(100), 1)


def test_scores_of_another_model_address_or_length_are_not_taken_from_the_cache(make, server, tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    rerankers = [
        *(make(vendor, cache=cache) for vendor in CLASSES),
        *(make(vendor, cache=cache, model="another") for vendor in CLASSES),
        *(make(vendor, cache=cache, base_url=server.url.replace("127.0.0.1", "localhost")) for vendor in CLASSES),
        make("Cohere", cache=cache, max_tokens_per_doc=512),
    ]
    for reranker in rerankers:
        assert reranker.rerank(QUERY, candidates_from(TEXTS)).usage.cached == 0
    assert make("Jina", cache=cache).rerank(QUERY, candidates_from(TEXTS)).usage.cached == 5
    cache.close()


# Keys and addresses


@every_vendor
def test_the_key_is_nowhere_to_be_read(make, server, vendor, caplog):
    caplog.set_level(logging.DEBUG)
    server.faults = ["401", "500", "500", "cut", "cut", "not json", "no results", ""]
    reranker = make(vendor, attempts=2)
    seen = [repr(reranker), str(reranker), repr(reranker.client), reranker.cache_key]
    for _ in range(5):
        with pytest.raises(APIError) as caught:
            reranker.score(QUERY, passages(TEXTS))
        seen += ["".join(traceback.format_exception(caught.value)), repr(vars(caught.value))]
    reranker.score(QUERY, passages(TEXTS))
    assert caplog.text, "the HTTP client should have logged something to be searched"
    assert all(any(KEY in v for v in headers.values()) for _, headers, _ in server.asked), "the key should be sent"
    for text in [*seen, caplog.text]:
        assert KEY not in text


@pytest.mark.parametrize("vendor", ["Cohere", "Jina", "Voyage"])
def test_without_a_key_the_variable_is_named(make, monkeypatch, vendor):
    for value in ("", "  \n"):
        monkeypatch.setenv(f"{VARIABLES[vendor]}_API_KEY", value)
        with pytest.raises(InputError, match=f"set the environment variable {VARIABLES[vendor]}_API_KEY"):
            make(vendor)


def test_tei_needs_no_key(make, server, monkeypatch):
    monkeypatch.delenv("TEI_API_KEY")
    assert make("TEI").score(QUERY, passages(TEXTS)) == [overlap(QUERY, text) for text in TEXTS]
    assert "Authorization" not in server.asked[0][1]


@every_vendor
@pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY} {KEY}", f"{KEY}é"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(make, monkeypatch, vendor, key):
    monkeypatch.setenv(f"{VARIABLES[vendor]}_API_KEY", key)
    with pytest.raises(InputError, match=f"{VARIABLES[vendor]}_API_KEY holds more than a key") as caught:
        make(vendor)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_an_error_does_not_quote_the_header_of_a_client_of_ones_own(server):
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}\nX: y"}) as client:
        with pytest.raises(APIError, match=r"Jina did not answer \(LocalProtocolError\)") as caught:
            JinaReranker(client, "jina-reranker-m0", **FAST).score(QUERY, passages(TEXTS))
        assert KEY not in "".join(traceback.format_exception(caught.value))


@every_vendor
def test_a_key_with_a_line_break_behind_it_is_taken(make, monkeypatch, vendor):
    monkeypatch.setenv(f"{VARIABLES[vendor]}_API_KEY", f"{KEY}\n")
    assert make(vendor).score(QUERY, passages(["ferry"])) == [overlap(QUERY, "ferry")]


@every_vendor
def test_the_address_comes_from_the_environment_too_and_the_argument_goes_first(make, server, monkeypatch, vendor):
    monkeypatch.setenv(f"{VARIABLES[vendor]}_API_URL", server.url)
    make(vendor, base_url=None).score(QUERY, passages(TEXTS))
    monkeypatch.setenv(f"{VARIABLES[vendor]}_API_URL", "http://127.0.0.1:9")
    make(vendor).score(QUERY, passages(TEXTS))
    assert len(server.asked) == 2


@every_vendor
@pytest.mark.parametrize("address", ["api.example.com", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused(make, vendor, address):
    with pytest.raises(InputError, match=rf"{vendor}'s address.*mend base_url or {VARIABLES[vendor]}_API_URL"):
        make(vendor, base_url=address)


@every_vendor
def test_a_reranker_closes_its_client(make, vendor):
    with make(vendor) as reranker:
        reranker.score(QUERY, passages(TEXTS))
    with pytest.raises((RuntimeError, APIError), match="closed"):
        reranker.score(QUERY, passages(TEXTS))


def test_the_module_waits_neither_for_torch_nor_for_the_sdk():
    code = "import sys, rerank_lab.rerankers.api; print(sorted({'torch', 'transformers', 'cohere'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Prices


def test_every_price_has_a_source_and_a_date():
    from rerank_lab.prices import _prices

    for name, entry in _prices().items():
        assert entry["source"].startswith("https://"), name
        assert "2024" < entry["as_of"] < "2027", name
        billed = {unit: entry[unit] for unit in ("searches", "input", "output") if unit in entry}
        assert billed, name
        assert all(0 < dollars < 100 for dollars in billed.values()), name
        assert set(entry) - set(billed) <= {"vendor", "source", "as_of", "note"}, name


def test_a_price_without_an_entry_is_refused_with_the_known_names():
    for ask in (price, cost):
        with pytest.raises(InputError, match=r"no price of 'gpt-99' is known: give one of .*gpt-4o-mini.*rerank-2\.5"):
            ask("gpt-99")


def test_an_entry_that_was_changed_by_its_reader_stays_as_it_was():
    price("gpt-4o")["input"] = 0.0
    assert price("gpt-4o")["input"] == 2.5


def test_costs_add_up():
    assert cost("gpt-4o", input_tokens=1000, output_tokens=100) == pytest.approx(0.0035)
    assert cost("rerank-v3.5", searches=1500, input_tokens=10**9) == pytest.approx(3.0)
