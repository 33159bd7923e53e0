"""Chats: a real client against a real server that speaks the protocol, well and badly; the record; a local model."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import QUERY, wordpiece_tokenizer

from rerank_lab.core import DataError, InputError, Usage, candidates_from
from rerank_lab.endpoint import Budget, BudgetSpentError, Endpoint
from rerank_lab.llm import LocalModel, MissingReplyError, Recorder, Reply, ask_all, estimated_tokens
from rerank_lab.rerankers.listwise import ListwiseReranker
from rerank_lab.rerankers.setwise import SetwiseReranker
from rerank_lab.transport import APIError

KEY = "sk-not-to-be-seen"
QUESTION = [{"role": "user", "content": "Which ferry?"}]


class Model(ThreadingHTTPServer):
    """Speaks POST /v1/chat/completions; `faults` are done first, one a request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.bodies, self.keys, self.under_way, self.most = [], [], [], 0, 0
        self.lock = threading.Lock()
        self.stop = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.under_way += 1
            server.most = max(server.most, server.under_way)
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            fault = server.faults.pop(0) if server.faults else None
        if fault == "late":
            time.sleep(0.05)
        with server.lock:
            server.under_way -= 1  # before the answer goes out, or the client's next question may come first
        self._answer(body, fault)

    def _answer(self, body, fault):
        assert self.path == "/v1/chat/completions"
        said = "answer to " + body["messages"][-1]["content"]
        answer = {
            "choices": [{"message": {"role": "assistant", "content": said}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }
        status, headers = 200, {}
        if isinstance(fault, dict):
            answer = fault
        elif isinstance(fault, tuple):
            status, headers, answer = fault
        elif fault == "slow":
            self.server.stop.wait(5)
        raw = b"<html>not JSON" if fault == "malformed" else json.dumps(answer).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2] if fault == "cut" else raw)
        except OSError:  # the client gave up
            pass
        if fault == "cut":
            self.close_connection = True


@pytest.fixture
def server():
    model = Model()
    thread = threading.Thread(target=model.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield model
    model.stop.set()
    model.shutdown()
    thread.join()
    model.server_close()


@pytest.fixture
def endpoint(server, monkeypatch):
    """Makes endpoints at the server, and closes their clients."""
    monkeypatch.setenv("RERANK_LAB_LLM_KEY", KEY)
    monkeypatch.setenv("RERANK_LAB_LLM_URL", server.url)
    made = []

    def make(model="tiny", **options):
        made.append(Endpoint.from_environment(model=model, **{"backoff": 0.001, **options}))
        return made[-1]

    yield make
    for one in made:
        one.client.close()


def test_a_question_is_asked_as_the_protocol_says(server, endpoint):
    reply = endpoint().ask(QUESTION, max_tokens=9)
    assert reply == Reply("answer to Which ferry?", 7, 3, 0.0)
    assert server.bodies == [{"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 9}]
    assert server.keys == [f"Bearer {KEY}"]


def test_fields_can_be_added_and_left_out(server, endpoint):
    endpoint(body={"max_tokens": None, "max_completion_tokens": 50}).ask(QUESTION, max_tokens=9)
    assert "max_tokens" not in server.bodies[0]
    assert server.bodies[0]["max_completion_tokens"] == 50


@pytest.mark.parametrize(
    "fault", [(429, {"Retry-After": "0"}, {}), (500, {}, {"error": "x"}), (503, {}, {}), "cut", "slow"]
)
def test_a_fault_that_passes_is_asked_again(server, endpoint, fault):
    server.faults = [fault, fault]
    chat = endpoint(timeout=0.2)
    assert chat.ask(QUESTION, max_tokens=9).text == "answer to Which ferry?"
    assert (len(server.bodies), chat.retries) == (3, 2)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((401, {}, {"error": {"message": "bad key " + KEY}}), "answered 401 .*RERANK_LAB_LLM_KEY"),
        ((404, {}, {"error": {"message": "no such model"}}), "answered 404 .*no such model"),
        ((400, {}, {"error": {"message": "context too long"}}), "answered 400 .*context too long"),
        ("malformed", "not JSON"),
        ({"choices": []}, r"choices\[0\]"),
        ({"choices": None}, r"choices\[0\]"),
        (["a list"], r"choices\[0\]"),
        ({"choices": [{"message": "?"}]}, r"choices\[0\]"),
    ],
)
def test_a_fault_that_stays_is_an_error_at_once_without_the_key(server, endpoint, fault, said):
    server.faults = [fault if not isinstance(fault, list) else (200, {}, fault)]
    with pytest.raises(APIError, match=said) as error:
        endpoint().ask(QUESTION, max_tokens=9)
    assert len(server.bodies) == 1
    assert KEY not in str(error.value)


def test_after_all_attempts_the_fault_is_an_error(server, endpoint):
    server.faults = [(500, {}, {})] * 9
    with pytest.raises(APIError, match="answered 500"):
        endpoint(attempts=3).ask(QUESTION, max_tokens=9)
    assert len(server.bodies) == 3


def test_an_answer_without_words_or_counts_is_empty_and_its_tokens_are_estimated(server, endpoint):
    server.faults = [{"choices": [{"message": {"content": None}}]}]
    assert endpoint().ask(QUESTION, max_tokens=9) == Reply("", estimated_tokens("Which ferry?"), 0)


def test_several_questions_are_under_way_at_once_and_answers_keep_their_order(server, endpoint):
    server.faults = ["late"] * 12
    usage = Usage()
    asked = [[{"role": "user", "content": str(i)}] for i in range(12)]
    assert ask_all(endpoint(concurrency=4), asked, usage, max_tokens=9) == [f"answer to {i}" for i in range(12)]
    assert 1 < server.most <= 4
    assert (usage.calls, usage.input_tokens, usage.output_tokens) == (12, 84, 36)


def test_tokens_and_dollars_are_counted_by_the_price_list(endpoint):
    chat = endpoint("gpt-4o-mini")
    reply = chat.ask(QUESTION, max_tokens=9)
    assert reply.dollars == pytest.approx(7 * 0.15e-6 + 3 * 0.6e-6)
    assert (chat.tokens, chat.dollars) == (10, pytest.approx(reply.dollars))


def test_a_budget_of_tokens_stops_before_the_question_that_could_exceed_it(server, endpoint):
    chat = endpoint(budget=Budget(tokens=35))  # a question may take 3 + 9 tokens and takes 10
    for _ in range(3):
        chat.ask(QUESTION, max_tokens=9)
    with pytest.raises(BudgetSpentError, match=r"budget of 35 tokens .* 30 are spent .* may take 12"):
        chat.ask(QUESTION, max_tokens=9)
    assert len(server.bodies) == 3


def test_a_budget_of_dollars_needs_a_price(endpoint):
    with pytest.raises(InputError, match="no price of 'tiny'"):
        endpoint("tiny", budget=Budget(dollars=1.0))
    with pytest.raises(BudgetSpentError, match="dollars"):
        endpoint("gpt-4o-mini", budget=Budget(dollars=1e-9)).ask(QUESTION, max_tokens=9)


def test_what_failed_is_not_counted_as_spent(server, endpoint):
    server.faults = [(400, {}, {})]
    chat = endpoint(budget=Budget(tokens=12))
    with pytest.raises(APIError):
        chat.ask(QUESTION, max_tokens=9)
    assert chat.tokens == 0
    assert chat.ask(QUESTION, max_tokens=9).text


def test_an_endpoint_without_a_model_or_an_address_is_refused(monkeypatch):
    monkeypatch.delenv("RERANK_LAB_LLM_MODEL", raising=False)
    monkeypatch.delenv("RERANK_LAB_LLM_URL", raising=False)
    with pytest.raises(InputError, match="RERANK_LAB_LLM_MODEL"):
        Endpoint.from_environment()
    with pytest.raises(InputError, match="RERANK_LAB_LLM_URL"):
        Endpoint.from_environment(model="tiny")


def test_the_key_is_in_no_representation(endpoint):
    chat = endpoint()
    assert KEY not in f"{chat!r} {chat.client!r} {vars(chat)!r}"


# ---------------------------------------------------------------- the record


class Once:
    """Answers anything, and breaks at the question that it is told to."""

    model, concurrency = "once", 1

    def __init__(self, breaks_at=None):
        self.asked, self.breaks_at = [], breaks_at

    def ask(self, messages, *, max_tokens):
        if len(self.asked) == self.breaks_at:
            raise ConnectionError("gone")
        self.asked.append(messages[-1]["content"])
        return Reply("[1]", 5, 1, 0.5)


def questions(n):
    return [[{"role": "user", "content": f"question {i}"}] for i in range(n)]


def test_a_reply_is_bought_once_and_a_replay_costs_no_dollars(tmp_path):
    chat = Once()
    first, second = Usage(), Usage()
    ask_all(Recorder(tmp_path / "r.jsonl", chat), questions(3), first, max_tokens=9)
    said = ask_all(Recorder(tmp_path / "r.jsonl", chat), questions(3), second, max_tokens=9)
    assert said == ["[1]"] * 3 and len(chat.asked) == 3
    assert (first.dollars, second.dollars) == (1.5, 0.0)
    assert (second.calls, second.input_tokens, second.output_tokens) == (3, 15, 3)
    assert (first.replayed, second.replayed) == (0, 3)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    candidates = candidates_from([f"{i} boats" for i in range(60)])
    broken, whole = Once(breaks_at=3), Once()
    with pytest.raises(ConnectionError):
        ListwiseReranker(Recorder(tmp_path / "r.jsonl", broken)).rerank(QUERY, candidates)
    ranking = ListwiseReranker(Recorder(tmp_path / "r.jsonl", whole)).rerank(QUERY, candidates)
    assert len(broken.asked) == 3
    assert ranking.usage.calls == 5 and len(whole.asked) == 2


def test_a_line_of_the_record_says_who_answered_what_and_when(tmp_path):
    Recorder(tmp_path / "r.jsonl", Once()).ask(QUESTION, max_tokens=9)
    (row,) = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert set(row) == {"prompt", "model", "date", "reply", "input_tokens", "output_tokens", "dollars"}
    assert (row["model"], row["reply"], len(row["prompt"])) == ("once", "[1]", 16)
    assert Recorder(tmp_path / "r.jsonl").dates == [row["date"]]


def test_half_a_last_line_is_asked_anew_and_a_broken_line_before_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    ask_all(Recorder(path, Once()), questions(3), Usage(), max_tokens=9)
    path.write_text(path.read_text()[:-20])
    chat = Once()
    ask_all(Recorder(path, chat), questions(3), Usage(), max_tokens=9)
    assert chat.asked == ["question 2"]
    assert len(Recorder(path)) == 3
    path.write_text("half a line\n" + path.read_text())
    with pytest.raises(DataError, match=r"r\.jsonl:1: not a recorded reply"):
        Recorder(path)


def test_a_reply_that_is_missing_is_an_error_that_names_the_mend(tmp_path):
    Recorder(tmp_path / "r.jsonl", Once()).ask(QUESTION, max_tokens=9)
    with pytest.raises(MissingReplyError, match=r"no reply of once to this prompt .*RERANK_LAB_LLM_URL"):
        Recorder(tmp_path / "r.jsonl").ask(questions(1)[0], max_tokens=9)


def test_replies_of_several_models_are_kept_apart(tmp_path):
    other = Once()
    other.model = "other"
    for chat in (Once(), other):
        Recorder(tmp_path / "r.jsonl", chat).ask(QUESTION, max_tokens=9)
    assert other.asked
    with pytest.raises(DataError, match="holds replies of once, other: say which"):
        Recorder(tmp_path / "r.jsonl")
    assert len(Recorder(tmp_path / "r.jsonl", model="other")) == 1


def test_an_empty_record_has_no_model(tmp_path):
    with pytest.raises(DataError, match="no model"):
        Recorder(tmp_path / "none.jsonl")


# ---------------------------------------------------------------- a local model


@pytest.fixture(scope="module")
def local():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    tokenizer = wordpiece_tokenizer(max_length=512)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512, initializer_range=0.2, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return LocalModel(LlamaForCausalLM(config), tokenizer, name="tiny-llama")


def test_a_local_model_answers_greedily_and_counts_its_tokens(local):
    import torch

    reply = local.ask(QUESTION, max_tokens=5)
    text = local.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = local.tokenizer(text, add_special_tokens=False).input_ids
    made = []
    for _ in range(5):  # by hand: the likeliest token, again and again
        made.append(int(local.causal(torch.tensor([ids + made])).logits[0, -1].argmax()))
        if made[-1] == 3:
            break
    assert (reply.text, reply.input_tokens) == (local.tokenizer.decode(made, skip_special_tokens=True), len(ids))
    assert reply.output_tokens == len(made)
    assert reply == local.ask(QUESTION, max_tokens=5)


def test_setwise_reads_the_likeliest_label_off_the_logits(local):
    ranking = SetwiseReranker(local, k=3, by_logits=True).rerank(QUERY, candidates_from(["a ferry", "a tram", "a bus"]))
    assert sorted(c.pid for c in ranking) == ["0", "1", "2"]
    assert (ranking.usage.output_tokens, ranking.usage.repairs.refused) == (0, 0)
    assert ranking.usage.calls >= 1 and ranking.usage.input_tokens > 0
