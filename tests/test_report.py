"""The report: one file, nothing fetched, nothing run, and every figure of the data on it."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import BM25, Collection, Identity, Passage
from rerank_lab.cli import main
from rerank_lab.core import PointwiseReranker
from rerank_lab.evaluation.bench import benchmark
from rerank_lab.evaluation.charts import curves, scatter, ticks
from rerank_lab.evaluation.report import render
from rerank_lab.evaluation.wording import points, signed

EVIL = '<script>alert(1)</script> & "quotes" </svg>'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that what opens closes, and collects texts and attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.words, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class ByLength(PointwiseReranker):
    """The shorter the text the better; takes the time that it is told to."""

    name, seconds = "cross-encoder", 0.25

    def _score(self, query, passages, usage):
        usage.pairs += len(passages)
        return [-float(len(p.text)) for p in passages]

    def rerank(self, query, candidates, *, top_k=None):
        ranking = super().rerank(query, candidates, top_k=top_k)
        ranking.usage.seconds = self.seconds
        return ranking

    def cuts(self, query, passages):
        return [len(p.text) > 60 for p in passages]


@pytest.fixture(scope="module")
def data():
    texts = [f"ferry {'boat ' * (i % 9)}{EVIL if i == 3 else i}" for i in range(30)]
    passages = {f"p{i}": Passage(f"p{i}", text) for i, text in enumerate(texts)}
    queries = {f"q{i}": f"ferry {EVIL if i == 0 else i}" for i in range(20)}
    qrels = {qid: {f"p{(i * 7 + j) % 30}": j % 3 for j in range(6)} for i, qid in enumerate(queries)}
    return Collection(EVIL, passages, queries, qrels, groups={q: f"type {EVIL}" for q in queries})


@pytest.fixture(scope="module")
def result(data):
    prices = {"machine": {"hour": 1.5}}
    return benchmark(
        data, {"bm25": BM25(list(data.passages.values()))}, [ByLength(), Identity()], depth=10, prices=prices
    )


@pytest.fixture(scope="module")
def page(result):
    return render(result)


def test_the_page_is_whole_and_nothing_of_it_is_fetched_or_run(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed.tags)
    assert not [v for k, v in parsed.attributes if k in {"src", "href", "action", "data"} or k.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", page)
    assert page.startswith("<!doctype html>")


def test_what_collections_say_is_shown_and_not_obeyed(page):
    assert EVIL in Page(page).text
    assert "<script" not in page


def test_the_verdict_comes_first_and_figures_are_those_of_the_data(result, page):
    text = Page(page).text
    assert text.index(result["verdict"]["headline"]) < text.index("Quality")
    assert result["verdict"]["because"] in text
    for point in result["verdict"]["points"]:
        assert point["text"].replace("`", "") in text  # what is quoted so becomes code
    for row in result["systems"]:
        for measured in row["measures"].values():
            assert points(measured["value"]) in text
        if row["reranker"]:
            assert signed(row["against_first"]["difference"]) in text
            assert f"{row['against_first']['wins']} gain, {row['against_first']['losses']} lose" in text
    assert "250 ms" in text and "$0.10" in text  # .25 s of an hour of $1.50, 1,000 times
    cut = result["systems"][1]["truncation"]
    assert f"{cut['cut']} of {cut['pairs']}" in text


def test_every_example_is_told_with_its_moves(result, page):
    text = Page(page).text
    for row in result["systems"][1:]:
        for example in row["examples"]["wins"] + row["examples"]["losses"]:
            assert " ".join(example["query"].split()) in text
            for move in example["moved"]:
                assert f"{move['before']} → {move['after']}" in text


def test_the_page_is_made_of_what_the_json_holds(result, page):
    assert render(json.loads(json.dumps(result))) == page


def test_a_page_without_times_prices_scores_and_labels_is_whole_too(data):
    class Untimed(Identity):
        def rerank(self, query, candidates, *, top_k=None):
            ranking = super().rerank(query, candidates, top_k=top_k)
            ranking.usage.cached = 1
            return ranking

    plain = Collection("plain", data.passages, data.queries, {**data.qrels, "q3": {"p1": 0}})
    run = {qid: {f"p{i}": -float(i) for i in range(10)} for qid in data.queries}
    result = benchmark(plain, {"run": run}, [Untimed()], depth=10)
    text = Page(render(result)).text
    assert "Nothing here has a price" in text
    assert "Left out 1 query with judgments but without a relevant passage" in text
    assert "Not timed, for the scores came from the cache: identity" in text


def test_several_first_stages_each_have_a_curve(data):
    run = {qid: {f"p{i}": -float(i) for i in range(10)} for qid in data.queries}
    stages = {"bm25": BM25(list(data.passages.values())), "mine": run}
    page = render(benchmark(data, stages, [ByLength()], depth=10, baseline="mine"))
    assert "against mine" in Page(page).text
    assert page.count("candidates reranked</text>") == 2


# charts


@settings(max_examples=60)
@given(st.floats(0, 1), st.floats(0, 1))
def test_ticks_hold_the_values_between_them_and_are_few(a, b):
    low, high = sorted((a, b))
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9
    assert found == sorted(set(found)) and len(found) <= 8


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(1e-5, 1e4) | st.just(0.0), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_scatter_has_a_dot_and_a_name_for_every_system_inside_its_frame(pairs):
    rows = [
        {"name": f"s{i}", "x": x, "y": y, "family": "other", "front": True, "chosen": False}
        for i, (x, y) in enumerate(pairs)
    ]
    if not any(x > 0 for x, _ in pairs):
        rows[0]["x"] = 1.0
    drawn = str(scatter(rows, x_name="cost", spell=str, says="a chart"))
    Page(drawn)
    assert drawn.count("<circle") == len(rows)
    assert all(f">s{i}</text>" in drawn for i in range(len(rows)))
    assert all(-0.01 <= float(x) <= 100.01 for x in re.findall(r'cx="([-0-9.e]+)%"', drawn))
    assert all(-0.01 <= float(y) <= 260.01 for y in re.findall(r'cy="([-0-9.e]+)"', drawn))


@pytest.mark.parametrize("grid", [[1], [1, 2], [1, 2, 5, 10, 20, 50, 73]])
def test_curves_take_any_depth(grid):
    line = {"name": "x", "values": [0.5] * len(grid), "family": "other", "style": ""}
    drawn = str(curves(grid, [line], x_name="depth", says="a chart"))
    Page(drawn)
    assert drawn.count("<circle") == len(grid)
    assert f">{grid[-1]}</text>" in drawn


# the command


def test_bench_writes_one_page_and_its_figures_and_says_the_verdict(beir_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "prices.toml").write_text("[machine]\nhour = 2.0\n")
    words = ["bench", beir_folder, "--first-stages", "bm25,words", "--rerankers", "identity", "--depth", 3]
    words += ["--out", tmp_path / "out", "--prices", tmp_path / "prices.toml", "--queries", 2]
    monkeypatch.setattr(sys, "argv", ["rerank-lab", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert not stopped.value.code, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bench.json", "report.html"]
    result = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [s["name"] for s in result["systems"]] == ["bm25", "bm25 → identity", "words", "words → identity"]
    assert out.startswith(result["verdict"]["headline"])
    assert (tmp_path / "out" / "report.html").read_text() == render(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rerankers", " , "], "--rerankers is empty"),
        (["--first-stages", ","], "--first-stages is empty"),
        (["--first-stages", "google"], "run 'google' is neither a file nor a run of small (it has: words)"),
        (["--first-stages", "a/run.trec,b/run.trec"], "reports would call a/run.trec and b/run.trec both run.trec"),
        (["--baseline", "best"], "baseline 'best' is not among the systems: bm25, identity"),
        (["--prices", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["--out", "/dev/null/x"], "cannot be made"),
    ],
)
def test_bench_refuses_what_it_cannot_do_in_one_line(beir_folder, monkeypatch, capsys, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    words = ["bench", str(beir_folder), "--rerankers", "identity", *options]
    monkeypatch.setattr(sys, "argv", ["rerank-lab", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("machine = {", "is not TOML"),
        ("[machine]\nday = 3", "has no price: give dollars for searches, input, output or hour"),
        ('[x]\ninput = "cheap"', "input is 'cheap', expected a number of dollars"),
        ("[x]\ninput = -1", "input is -1, expected a number of dollars"),
        ("[x]\nhour = nan", "hour is nan, expected a number of dollars"),
    ],
)
def test_prices_that_are_none_are_refused(tmp_path, text, message):
    from rerank_lab.core import DataError
    from rerank_lab.prices import read_prices

    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_prices(tmp_path / "prices.toml")
