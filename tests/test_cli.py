"""The command line: what it prints and writes, and that bad input ends with one line and exit code 2."""

import io
import json
import subprocess
import sys

import pytest
from conftest import LONG

from rerank_lab import BM25, known_models, read_collection, read_run
from rerank_lab.cli import main

COMMAND = [sys.executable, "-m", "rerank_lab.cli"]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Calls the console command as the shell would; gives exit code, standard output and standard error."""

    def call(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["rerank-lab", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return call


@pytest.fixture
def good(cli):
    """As `cli`, for calls that must succeed; gives standard output."""

    def call(*arguments, stdin=None):
        code, out, err = cli(*arguments, stdin=stdin)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(cli):
    """As `cli`, for calls that must be refused; gives the error's line."""

    def call(*arguments, stdin=None):
        code, _, err = cli(*arguments, stdin=stdin)
        assert code == 2, err
        assert "Traceback" not in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err.rstrip("\n")

    return call


def request(query="when does the ferry leave", passages=("the tram is late", "the ferry leaves at nine", "a museum")):
    return json.dumps({"query": query, "passages": list(passages)}, ensure_ascii=False) + "\n"


# through a real shell


def test_a_refusal_is_one_line_on_standard_error_and_exit_code_two(tmp_path):
    result = subprocess.run([*COMMAND, "compare", "--collection", str(tmp_path / "no")], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"error: collection '{tmp_path / 'no'}' is not a folder: give a folder, `lab`, or `ir_datasets:ID`\n"
    )


def test_each_line_is_answered_before_the_next_is_read():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, "rerank", "--reranker", "identity", "--no-cache"], **pipes) as process:
        for query in ("first", "second"):
            process.stdin.write(request(query))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["query"] == query
        process.stdin.write("not json\n")
        process.stdin.close()
        assert process.wait(60) == 2
        assert process.stdout.read() == ""
        assert process.stderr.read().startswith("error: standard input:3: not JSON")


def test_a_reader_that_goes_away_ends_the_command_in_silence(tmp_path):
    (tmp_path / "asked.jsonl").write_text(request() * 5000)
    command = [*COMMAND, "rerank", str(tmp_path / "asked.jsonl"), "--reranker", "identity", "--no-cache"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["query"]
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in {0, 1}


# rerank


def test_rerank_answers_with_the_order_of_the_model(good, tiny_bert):
    from rerank_lab import CrossEncoder, candidates_from

    texts = ["the tram is late", "the ferry leaves at nine", LONG]
    answer = json.loads(good("rerank", "--reranker", tiny_bert, stdin=request(passages=texts)))
    expected = CrossEncoder.from_pretrained(tiny_bert).rerank("when does the ferry leave", candidates_from(texts))
    assert answer["query"] == "when does the ferry leave"
    assert [(r["pid"], r["rank"], r["first_rank"]) for r in answer["ranking"]] == [
        (c.pid, c.rank, c.first_rank) for c in expected
    ]
    assert [r["score"] for r in answer["ranking"]] == pytest.approx([c.score for c in expected], abs=1e-6)
    assert (answer["usage"]["pairs"], answer["usage"]["truncated"], answer["usage"]["cached"]) == (3, 1, 0)


def test_rerank_takes_objects_keeps_their_pids_and_any_script(good):
    passages = [
        {"pid": "x", "text": "夜のフェリー 🚢"},
        "قطة",
        {"text": "e\u0301"},
        {"pid": "y", "text": "", "title": "?"},
    ]
    out = good("rerank", "--reranker", "identity", stdin=request("ночной паром", passages))
    assert "ночной паром" in out
    assert [r["pid"] for r in json.loads(out)["ranking"]] == ["x", "1", "2", "y"]


def test_rerank_keeps_the_top_k(good):
    out = good("rerank", "--reranker", "identity", "--top-k", 2, stdin=request())
    assert [r["pid"] for r in json.loads(out)["ranking"]] == ["0", "1"]


def test_rerank_of_no_passages_and_of_blank_lines(good):
    out = good("rerank", "--reranker", "identity", stdin="\n" + request(passages=[]) + "\n  \n" + request())
    first, second = map(json.loads, out.splitlines())
    assert first["ranking"] == []
    assert len(second["ranking"]) == 3


@pytest.mark.parametrize("name", ["asked.jsonl", "asked.jsonl.gz"])
def test_rerank_reads_a_file_plain_or_gzipped(good, tmp_path, name):
    import gzip

    packed = gzip.compress(request().encode()) if name.endswith("gz") else request().encode()
    (tmp_path / name).write_bytes(packed)
    assert len(json.loads(good("rerank", tmp_path / name, "--reranker", "identity"))["ranking"]) == 3


def test_a_second_run_is_answered_from_the_cache_and_no_cache_switches_that_off(good, tiny_bert):
    cached = []
    for options in ((), (), ("--no-cache",)):
        answer = json.loads(good("rerank", "--reranker", tiny_bert, *options, stdin=request()))
        cached.append((answer["usage"]["cached"], answer["usage"]["calls"] > 0))
    assert cached == [(0, True), (3, False), (0, True)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not JSON"),
        ('{"query": "q", "passages": ["a"', "not JSON"),
        ("[1, 2]", "expected {"),
        ('{"query": "q"}', "expected {"),
        ('{"query": "q", "passages": "a"}', "expected {"),
        ('{"query": "q", "passages": ["a", 7]}', "passage 1 is neither a text nor"),
        ('{"query": "q", "passages": [{"pid": "x"}]}', "passage 0 is neither"),
        ('{"query": "q", "passages": [{"pid": 1, "text": "a"}]}', "passage 0 is neither"),
        ('{"query": " ", "passages": ["a"]}', "the query is ' '"),
        ('{"passages": ["a"]}', "the query is None"),
        ('{"query": 7, "passages": ["a"]}', "the query is 7"),
        ('{"query": "q", "passages": [{"pid": "x", "text": "a"}, {"pid": "x", "text": "b"}]}', "pid 'x' occurs twice"),
        ('{"query": "q", "passages": [{"pid": "1", "text": "a"}, "b"]}', "pid '1' occurs twice"),
    ],
)
def test_a_malformed_line_is_refused_by_number_and_those_before_it_are_answered(cli, line, message):
    code, out, err = cli("rerank", "--reranker", "identity", stdin=request() + "\n" + line + "\n" + request())
    assert code == 2
    assert len(out.splitlines()) == 1
    assert err.startswith("error: standard input:3: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_malformed_line_of_a_file_is_refused_by_file_and_number(refused, tmp_path):
    (tmp_path / "asked.jsonl").write_text(request() + "{}\n")
    error = refused("rerank", tmp_path / "asked.jsonl", "--reranker", "identity")
    assert error.startswith(f"error: {tmp_path / 'asked.jsonl'}:2: expected")


def test_a_missing_file_is_refused(refused, tmp_path):
    assert refused("rerank", tmp_path / "no.jsonl") == f"error: {tmp_path / 'no.jsonl'} does not exist"
    assert "cannot be opened" in refused("rerank", tmp_path)


@pytest.mark.parametrize("name", ["latin.jsonl", "cut.jsonl.gz"])
def test_a_file_that_is_no_text_is_refused(refused, tmp_path, name):
    import gzip

    (tmp_path / "latin.jsonl").write_bytes('{"query": "caf\u00e9", "passages": []}\n'.encode("latin-1"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(request().encode() * 50)[:-9])
    assert f"{tmp_path / name}" in refused("rerank", tmp_path / name, "--reranker", "identity")


def test_half_a_surrogate_pair_is_refused(refused, tiny_bert):
    line = '{"query": "ferry \\ud83d", "passages": ["a", "b"]}\n'
    assert "standard input:1" in refused("rerank", "--reranker", tiny_bert, stdin=line)


def test_a_query_too_long_for_the_model_is_refused_by_line(refused, tiny_bert):
    error = refused("rerank", "--reranker", tiny_bert, stdin=request() + request(query=LONG))
    assert error.startswith("error: standard input:2: the query takes")


# models


def test_an_unknown_model_is_refused_with_the_places_where_it_was_sought(refused, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = refused("rerank", "--reranker", "no-such-model", stdin=request())
    assert error.startswith("error: model 'no-such-model' was not found; tried: local folder no-such-model")


@pytest.mark.parametrize("name", ["monot5-base-msmarco", "colbertv2.0", "Qwen3-Reranker-0.6B", "bge-reranker-v2-m3"])
def test_a_model_of_the_hub_that_is_not_here_is_refused_with_the_command_that_fetches_it(refused, name):
    error = refused("rerank", "--reranker", name, stdin=request())
    assert f"model '{name}' was not found" in error
    assert f"hf download {known_models()[name]['hub']}" in error


def test_a_vendor_without_a_key_is_refused_by_its_variable(refused, monkeypatch):
    monkeypatch.delenv("CO_API_KEY", raising=False)
    assert "CO_API_KEY" in refused("rerank", "--reranker", "cohere", stdin=request())


def test_a_prompt_without_a_recorded_reply_is_refused_with_the_mend(refused, monkeypatch):
    monkeypatch.delenv("RERANK_LAB_LLM_URL", raising=False)
    assert "RERANK_LAB_LLM_URL" in refused("rerank", "--reranker", "listwise", stdin=request())


def test_a_wrong_dtype_is_refused(refused, tiny_bert):
    assert "dtype is 'fp8'" in refused("rerank", "--reranker", tiny_bert, "--dtype", "fp8", stdin=request())


def test_a_device_that_does_not_exist_is_refused(refused, tiny_bert):
    assert "'gpu'" in refused("rerank", "--reranker", tiny_bert, "--device", "gpu", stdin=request())


def test_a_damaged_cache_is_refused(refused, tmp_path, monkeypatch):
    (tmp_path / "broken").write_text("no database" * 100)
    monkeypatch.setenv("RERANK_LAB_CACHE", str(tmp_path / "broken"))
    assert "--no-cache" in refused("rerank", "--reranker", "identity", stdin=request())


def test_models_lists_all_that_are_known(good):
    assert json.loads(good("models", "--json")) == json.loads(json.dumps(known_models()))
    table = good("models")
    for name in known_models():
        assert name in table


def test_help_names_the_commands(good):
    out = good("--help")
    for command in ("search", "rerank", "compare", "serve", "models"):
        assert command in out


@pytest.mark.parametrize(
    "arguments", [("search",), ("search", "x", "--depth", "0"), ("rerank", "--top-k", "0"), ("fly",)]
)
def test_wrong_usage_has_exit_code_two_and_no_traceback(cli, arguments):
    code, _, err = cli(*arguments)
    assert code == 2
    assert "Traceback" not in err
    assert "Usage" in err


# search


def test_search_shows_the_k_best_with_both_ranks_and_what_it_cost(good, beir_folder, tiny_bert):
    out = good("search", "when does the ferry leave", "--collection", beir_folder, "--reranker", tiny_bert, "--k", 1)
    found = BM25(list(read_collection(beir_folder).passages.values())).search("when does the ferry leave")
    assert {c.pid for c in found} == {"d1", "d4"}
    assert ("d1" in out) != ("d4" in out)
    assert "2 pairs, 0 from the cache" in out


def test_search_without_a_reranker_shows_the_first_stage(good, beir_folder):
    out = good("search", "ticket museum", "--collection", beir_folder, "--reranker", "identity")
    assert "d3" in out
    assert "d2" not in out


def test_search_shows_what_looks_like_markup_as_it_stands(good, beir_folder):
    out = good("search", "[/b] ticket :boat:", "--collection", beir_folder, "--reranker", "identity")
    assert out.lstrip().startswith("[/b] ticket :boat:")


@pytest.mark.parametrize("stage", ["bi-encoder", "fusion"])
def test_search_with_the_other_first_stages_finds_meaning_too(good, beir_folder, stage):
    options = ("--collection", beir_folder, "--first-stage", stage, "--reranker", "identity", "--k", 1)
    assert "d3" in good("search", "entry fee for the gallery", *options)


def test_a_search_that_finds_nothing_says_so(good, beir_folder):
    out = good("search", "zeppelin", "--collection", beir_folder, "--reranker", "identity")
    assert out.startswith("nothing found")


def test_search_refuses_a_blank_query_and_an_unknown_first_stage(refused, beir_folder):
    assert "the query is ' '" in refused("search", " ", "--collection", beir_folder, "--reranker", "identity")
    error = refused("search", "ferry", "--collection", beir_folder, "--first-stage", "google")
    assert error == "error: first stage 'google' is unknown: give bm25, bi-encoder or fusion"


# compare


@pytest.fixture
def compared(good, beir_folder, tiny_bert, tmp_path):
    """Compares the tiny model with the run that came with the folder, as JSON."""

    def call(*options):
        path = tmp_path / "out" / "result.json"
        collection = ("--collection", beir_folder, "--depth", 3, "--json", path)
        call.printed = good("compare", *collection, "--rerankers", tiny_bert, *options)
        return json.loads(path.read_text())

    return call


def test_compare_writes_the_measures_of_a_run_by_name_and_prints_them(compared, tiny_bert):
    result = compared("--run", "words")
    assert {k: result[k] for k in ("collection", "queries", "passages", "first_stage", "depth", "baseline")} == {
        "collection": "small",
        "queries": 2,
        "passages": 4,
        "first_stage": "words",
        "depth": 3,
        "baseline": "words",
    }
    first, model, oracle = result["systems"]
    assert [first["name"], model["name"], oracle["name"]] == ["words", tiny_bert, "oracle"]
    # q1: d4 (1), d1 (3); q2: nothing relevant found
    from math import log2

    expected = (1 + 3 / log2(3)) / (3 + 1 / log2(3)) / 2
    assert first["measures"]["nDCG@10"]["value"] == pytest.approx(expected)
    assert oracle["measures"]["nDCG@10"]["value"] == pytest.approx(0.5)
    assert {s["measures"]["R@3"]["value"] for s in result["systems"]} == {0.5}
    assert (model["usage"]["pairs"], model["usage"]["cached"]) == (5, 0)
    assert f"{expected:.4f}" in compared.printed
    assert "time" in compared.printed
    assert "price" in compared.printed


def test_compare_takes_a_run_file_and_the_second_time_the_scores_from_the_cache(compared, beir_folder):
    run = beir_folder / "run.words.top3.trec"
    first, second = compared("--run", run), compared("--run", run)
    assert first["first_stage"] == run.name
    assert [r["systems"][1]["usage"]["cached"] for r in (first, second)] == [0, 5]
    assert second["systems"][1]["usage"]["calls"] == 0
    for before, after in zip(first["systems"], second["systems"], strict=True):
        assert before["measures"] == after["measures"]


def test_compare_starts_from_bm25_unless_told(compared):
    result = compared()
    assert result["first_stage"] == "bm25"
    assert result["systems"][1]["usage"]["pairs"] == 2 + 1  # d1 and d4 share a word with q1, d3 with q2


def test_compare_writes_a_run_of_each_system(compared, tmp_path, tiny_bert):
    result = compared("--run", "words", "--runs", tmp_path / "runs")
    runs = {p.name: read_run(p) for p in (tmp_path / "runs").iterdir()}
    assert set(runs) == {f"run.{name.replace('/', '--')}.trec" for name in ("words", tiny_bert, "oracle")}
    assert list(runs["run.words.trec"]["q1"]) == ["d4", "d1", "d2"]
    assert list(runs["run.oracle.trec"]["q1"]) == ["d1", "d4", "d2"]
    for run in runs.values():
        assert {q: set(found) for q, found in run.items()} == {"q1": {"d1", "d2", "d4"}, "q2": {"d1", "d2"}}
    assert len(result["systems"]) == 3


def test_the_runs_that_compare_writes_give_other_tools_the_same_values(compared, tmp_path):
    """Also where a system left ties, which trec_eval would break by pid."""
    import ir_measures

    tied = tmp_path / "tied.trec"
    tied.write_text("q1 Q0 d1 1 1.0 t\nq1 Q0 d4 2 1.0 t\nq1 Q0 d2 3 1.0 t\nq2 Q0 d2 1 1.0 t\nq2 Q0 d3 2 1.0 t\n")
    result = compared("--run", tied, "--runs", tmp_path / "runs")
    qrels = read_collection(tmp_path / "small").qrels
    for system in result["systems"]:
        run = read_run(tmp_path / "runs" / f"run.{system['name'].replace('/', '--')}.trec")
        value = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]
        assert value == pytest.approx(system["measures"]["nDCG@10"]["value"]), system["name"]


def test_compare_tests_against_the_baseline_that_is_asked_for(compared, tiny_bert):
    result = compared("--run", "words", "--baseline", tiny_bert)
    assert result["baseline"] == tiny_bert
    assert ["test" in system for system in result["systems"]] == [True, False, False]


def test_compare_calls_a_reranker_that_is_also_the_first_stage_by_another_name(good, beir_folder, tmp_path):
    path = tmp_path / "result.json"
    options = ("--collection", beir_folder, "--first-stage", "bi-encoder", "--rerankers", "bi-encoder,identity")
    good("compare", *options, "--json", path)
    result = json.loads(path.read_text())
    assert [s["name"] for s in result["systems"]] == ["bi-encoder", "bi-encoder reranker", "identity", "oracle"]
    assert len({s["measures"]["nDCG@10"]["value"] for s in result["systems"][:3]}) == 1


def test_compare_refuses_what_does_not_fit_together(refused, beir_folder, tmp_path):
    compare = ("compare", "--collection", beir_folder, "--rerankers", "identity")
    run = tmp_path / "run.trec"

    run.write_text("q1 Q0 d1 1 1.0 t\nq7 Q0 d1 1 1.0 t\n")
    assert refused(*compare, "--run", run) == "error: the run has query 'q7', which has no qrels in small"
    run.write_text("q1 Q0 d9 1 1.0 t\n")
    assert "passage 'd9' for query 'q1', which small lacks" in refused(*compare, "--run", run)
    run.write_text("q1 Q0 d1 1 1.0\n")
    assert refused(*compare, "--run", run).startswith(f"error: {run}:1: expected `qid Q0 pid rank score tag`")
    assert "(it has: words)" in refused(*compare, "--run", "splade")
    assert "baseline 'best' is not among" in refused(*compare, "--baseline", "best")
    assert "two systems are called 'identity'" in refused(*compare[:-1], "identity,identity")
    assert "--rerankers is empty" in refused(*compare[:-1], " , ")
    assert "cannot be written" in refused(*compare, "--json", tmp_path)
    (beir_folder / "qrels" / "test.tsv").write_text("q9 0 d1 1\n")
    assert "qrels of small name query 'q9'" in refused(*compare)


def test_compare_all_runs_every_family_that_can_and_says_why_the_others_cannot(cli, beir_folder, tmp_path, monkeypatch):
    for variable in ("RERANK_LAB_LLM_URL", "CO_API_KEY", "JINA_API_KEY", "VOYAGE_API_KEY", "TEI_API_URL"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "all.json"
    code, out, err = cli("compare", "--collection", beir_folder, "--rerankers", "all", "--depth", 2, "--json", path)
    assert code == 0, err
    families = ["bi-encoder", "cross-encoder", "colbert", "monot5", "duot5"]
    systems = {s["name"]: s["usage"] for s in json.loads(path.read_text())["systems"]}
    assert list(systems) == ["bm25", *families, "oracle"]
    pairs = {name: systems[name]["pairs"] for name in families}  # BM25 finds two passages and one
    assert pairs == {**dict.fromkeys(families, 3), "duot5": 3 + 2}
    assert all(systems[name]["calls"] >= 1 for name in families)
    for column in ("pairs", "calls", "tokens", "cut", "seconds"):
        assert column in out
    assert err.count("left out: ") == 8
    assert "left out: cohere (CO_API_KEY is not set)" in err


# ---------------------------------------------------------------- serve


def test_serve_answers_the_cohere_sdk_until_it_is_stopped(tiny_bert, tmp_path):
    import signal
    import socket
    import time

    import cohere
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*COMMAND, "serve", "--reranker", tiny_bert, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    assert server.poll() is None, server.stderr.read()
                    time.sleep(0.1)
            with cohere.ClientV2(api_key="none", base_url=f"http://127.0.0.1:{port}") as client:
                for _ in range(2):  # the second time out of the score cache
                    answer = client.rerank(model=tiny_bert, query="ferry", documents=["a tram", "a ferry"])
                    assert sorted(row.index for row in answer.results) == [0, 1]
        finally:
            server.send_signal(signal.SIGINT)
            out, err = server.communicate(timeout=60)
    assert (out, err) == ("", "")


def test_serve_refuses_an_address_that_others_reach_without_a_key(refused, monkeypatch):
    monkeypatch.delenv("RERANK_LAB_API_KEY", raising=False)
    assert "RERANK_LAB_API_KEY" in refused("serve", "--reranker", "identity", "--host", "0.0.0.0", "--port", "0")
