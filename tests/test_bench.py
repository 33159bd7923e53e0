"""The benchmark: every figure against another way to it, and what is wrong is counted while the rest goes on."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import LONG

from rerank_lab import BM25, Collection, CrossEncoder, Identity, Passage, ScoreCache, compare, measure, read_collection
from rerank_lab.core import DataError, InputError, PointwiseReranker, Reranker, order
from rerank_lab.evaluation import holm
from rerank_lab.evaluation.bench import benchmark
from rerank_lab.evaluation.metrics import measures_for
from rerank_lab.evaluation.soundness import sound_collection, sound_run

WORDS = ["ferry", "tram", "bus", "harbour", "island", "museum", "ticket", "price", "night", "boat", "river", "bridge"]
PASSAGES = {
    f"p{i:02}": Passage(f"p{i:02}", " ".join(WORDS[(i * k) % 12] for k in range(1, 3 + i % 5))) for i in range(1, 41)
}
QUERIES = {f"q{i:02}": f"{WORDS[i % 12]} {WORDS[(i * 5 + 3) % 12]} {i}" for i in range(24)}
QRELS = {qid: {f"p{(3 * i + j) % 40 + 1:02}": (i + j) % 4 for j in range(12)} for i, qid in enumerate(QUERIES)}
DATA = Collection("small", PASSAGES, QUERIES, QRELS)
SOUND, _ = sound_collection(DATA)


class ByLength(PointwiseReranker):
    """The longer the text the better; fails on what it is told to."""

    def __init__(self, name="by length", sign=1, fails_on=(), nan_on=()):
        self.name, self.sign, self.fails_on, self.nan_on = name, sign, fails_on, nan_on

    def _score(self, query, passages, usage):
        if query in self.fails_on:
            raise InputError(f"the query {query!r}\nis too long")
        usage.pairs += len(passages)
        usage.calls += 1
        return [float("nan") if query in self.nan_on else self.sign * float(len(p.text)) for p in passages]


class Backwards(Reranker):
    """Turns the order around, without a score for each passage."""

    name = "backwards"

    def rerank(self, query, candidates, *, top_k=None):
        from rerank_lab import Usage

        return order(query, candidates, [float(c.rank) for c in candidates], top_k, Usage(pairs=len(candidates)))


@pytest.fixture(scope="module")
def stages():
    return {"bm25": BM25(list(PASSAGES.values()))}


@pytest.fixture(scope="module")
def result(stages):
    return benchmark(DATA, stages, [ByLength(), ByLength("short", -1), Backwards()], depth=12)


def row(result, name):
    return next(r for r in result["systems"] if r["name"] == name)


def test_the_result_is_plain_data_that_json_keeps(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    assert (result["collection"], result["queries"], result["queries_of"], result["depth"]) == ("small", 24, 24, 12)
    assert [r["name"] for r in result["systems"]] == ["bm25", "by length", "short", "backwards"]


def test_quality_is_that_of_compare(result, stages):
    found = {qid: stages["bm25"].search(text, 12) for qid, text in SOUND.judged().items()}
    experiment = compare(SOUND, found, [ByLength(), ByLength("short", -1), Backwards()], first_stage="bm25", depth=12)
    for expected in experiment.to_json()["systems"][:-1]:
        assert row(result, expected["name"])["measures"] == expected["measures"]
    assert result["oracles"]["bm25"] == experiment.to_json()["systems"][-1]["measures"]
    assert row(result, "short")["values"] == experiment["short"].values["nDCG@10"]
    assert row(result, "short")["against_first"]["p"] == experiment["short"].p


def test_all_tests_are_corrected_together(result):
    tests = {id(t): t for r in result["systems"][1:] for t in (r["against_first"], r["against_cheaper"])}
    corrected = holm([t["p"] for t in tests.values()])
    assert [t["p_holm"] for t in tests.values()] == corrected


def test_a_baseline_that_is_the_best_cheaper_system_too_is_tested_against_once(stages):
    class Knowing(ByLength):
        def _score(self, query, passages, usage):
            (grades,) = (QRELS[qid] for qid, text in QUERIES.items() if text == query)
            return [float(grades.get(p.pid, 0)) for p in passages]

    class Slow(ByLength):
        def rerank(self, query, candidates, *, top_k=None):
            ranking = super().rerank(query, candidates, top_k=top_k)
            ranking.usage.seconds = 9.0
            return ranking

    result = benchmark(DATA, stages, [Knowing("knowing"), Slow("slow")], depth=12, baseline="knowing")
    slow = row(result, "slow")
    assert slow["against_cheaper"]["system"] == "knowing"
    assert slow["against_baseline"] is slow["against_cheaper"]


def test_a_baseline_is_tested_against_too_and_an_unknown_one_is_refused(stages):
    result = benchmark(DATA, stages, [ByLength(), Identity()], depth=5, baseline="by length")
    assert row(result, "identity")["against_baseline"]["system"] == "by length"
    assert "against_baseline" not in row(result, "by length")
    assert row(result, "bm25")["against_baseline"]["p_holm"] >= row(result, "bm25")["against_baseline"]["p"]
    with pytest.raises(InputError, match="baseline 'best' is not among the systems: bm25, identity"):
        benchmark(DATA, stages, [Identity()], depth=5, baseline="best")


def test_the_depth_curve_is_what_reranking_only_so_many_gives(result, stages):
    """Reranks the first d anew and leaves the others behind them, which the curve must not need."""
    curves = result["depths"]["bm25"]
    assert curves["grid"] == [1, 2, 5, 10, 12]
    assert set(curves["systems"]) == {"by length", "short"}  # backwards has no score for each passage
    quality = {"nDCG@10": measures_for(12, SOUND.relevant_from)["nDCG@10"]}
    for depth, value in zip(curves["grid"], curves["systems"]["short"], strict=True):
        run = {}
        for qid, text in SOUND.queries.items():
            found = stages["bm25"].search(text, 12)
            first = ByLength("short", -1).rerank(text, found[:depth])
            pids = [c.pid for c in first] + [c.pid for c in found[depth:]]
            run[qid] = {pid: -float(i) for i, pid in enumerate(pids)}
        values = measure(run, SOUND.qrels, quality)["nDCG@10"].values()
        assert value == pytest.approx(sum(values) / 24)
    assert curves["systems"]["short"][-1] == pytest.approx(row(result, "short")["measures"]["nDCG@10"]["value"])
    assert curves["oracle"][-1] == pytest.approx(result["oracles"]["bm25"]["nDCG@10"]["value"])
    assert curves["recall"][-1] == pytest.approx(result["oracles"]["bm25"]["R@12"]["value"])
    assert all(o >= s - 1e-9 for o, s in zip(curves["oracle"], curves["systems"]["short"], strict=True))


def test_wins_and_losses_are_the_largest_and_their_moves_those_of_the_ranking(result, stages):
    found = row(result, "short")
    first, gain = row(result, "bm25")["values"], found["against_first"]
    changes = {qid: value - first[qid] for qid, value in found["values"].items()}
    assert gain["wins"] == sum(c > 0 for c in changes.values()) and gain["losses"] == sum(
        c < 0 for c in changes.values()
    )
    assert [e["qid"] for e in found["examples"]["wins"]] == [
        q for q in sorted(changes, key=lambda q: -changes[q])[:5] if changes[q] > 0
    ]
    for example in found["examples"]["wins"] + found["examples"]["losses"]:
        qid = example["qid"]
        assert example["after"] - example["before"] == pytest.approx(changes[qid])
        ranking = ByLength("short", -1).rerank(QUERIES[qid], stages["bm25"].search(QUERIES[qid], 12))
        places = {c.pid: (c.first_rank, c.rank) for c in ranking}
        assert example["moved"]
        for move in example["moved"]:
            assert (move["before"], move["after"]) == places[move["pid"]]
            assert move["grade"] == SOUND.qrels[qid].get(move["pid"])


def test_the_types_are_the_collections_groups_or_length_and_form(result, stages):
    labels = {t["type"]: t["queries"] for t in row(result, "short")["types"]}
    assert labels == {"up to 3 words": 24, "keywords": 24}
    grouped = replace(DATA, groups={qid: "even" if i % 2 == 0 else "odd" for i, qid in enumerate(QUERIES)})
    found = row(benchmark(grouped, stages, [ByLength("short", -1)], depth=12), "short")
    assert {t["type"]: t["queries"] for t in found["types"]} == {"even": 12, "odd": 12}
    whole = found["against_first"]["difference"]
    assert sum(t["difference"] for t in found["types"]) / 2 == pytest.approx(whole)


def test_a_draw_of_queries_is_the_same_each_time(stages):
    first, second = (benchmark(DATA, stages, [Identity()], depth=5, queries=7) for _ in range(2))
    assert list(first["systems"][0]["values"]) == list(second["systems"][0]["values"])
    assert (first["queries"], first["queries_of"]) == (7, 24)
    assert benchmark(DATA, stages, [Identity()], depth=5, queries=99)["queries"] == 24


def test_several_first_stages_give_systems_of_both_names(stages):
    run = {qid: {f"p{i:02}": float(i) for i in range(1, 9)} for qid in QUERIES}
    result = benchmark(DATA, {**stages, "mine": run}, [ByLength()], depth=8)
    names = ["bm25", "bm25 → by length", "mine", "mine → by length"]
    assert [r["name"] for r in result["systems"]] == names
    assert row(result, "mine")["cost"]["search"] is None and row(result, "bm25")["cost"]["search"]["queries"] == 24
    assert set(result["depths"]) == set(result["oracles"]) == {"bm25", "mine"}
    assert row(result, "mine")["measures"]["R@8"] == row(result, "mine → by length")["measures"]["R@8"]


def test_a_reranker_that_is_also_the_first_stage_gets_another_name(stages):
    result = benchmark(DATA, stages, [ByLength("bm25")], depth=5)
    assert [r["name"] for r in result["systems"]] == ["bm25", "bm25 reranker"]
    with pytest.raises(InputError, match="by its own name"):
        benchmark(DATA, stages, [Identity(), Identity()], depth=5)


# cost


def test_times_are_of_computed_scores_only_and_are_remembered(stages, tiny_bert, tmp_path):
    cache = ScoreCache(tmp_path / "s.sqlite")
    model = CrossEncoder.from_pretrained(tiny_bert, cache=cache)
    first = row(benchmark(DATA, stages, [model], depth=6, cache=cache), model.name)
    assert first["cost"]["rerank"]["queries"] == 24 and first["cost"]["not_timed"] == 0
    again = row(benchmark(DATA, stages, [model], depth=6, cache=cache), model.name)
    assert again["cost"]["rerank"] == first["cost"]["rerank"]
    assert [again["cost"][k] for k in ("pairs", "calls", "input_tokens")] == [
        first["cost"][k] for k in ("pairs", "calls", "input_tokens")
    ]
    # without what was remembered, scores out of the cache have no time
    unknown = row(benchmark(DATA, stages, [model], depth=6, cache=None), model.name)
    assert unknown["cost"]["rerank"] is None and unknown["cost"]["seconds"] is None
    assert unknown["cost"]["not_timed"] == 24
    cache.close()


def test_the_median_and_the_95th_percentile_are_those_of_the_queries(stages):
    class Taking(ByLength):
        def rerank(self, query, candidates, *, top_k=None):
            ranking = super().rerank(query, candidates, top_k=top_k)
            ranking.usage.seconds = 0.1 * (1 + list(QUERIES.values()).index(query))
            return ranking

    cost = row(benchmark(DATA, stages, [Taking()], depth=5), "by length")["cost"]
    assert cost["rerank"]["p50"] == pytest.approx(1.25)
    assert cost["rerank"]["p95"] == pytest.approx(2.285)
    assert cost["seconds"] == pytest.approx(1.25 + cost["search"]["p50"])
    assert cost["per_second"] == pytest.approx(1 / (1.25 + cost["search"]["mean"]))


def test_scores_known_from_another_first_stage_borrow_the_time_that_they_took_there(stages, tiny_bert, tmp_path):
    cache = ScoreCache(tmp_path / "s.sqlite")
    model = CrossEncoder.from_pretrained(tiny_bert, cache=cache)
    found = {qid: stages["bm25"].search(text, 6)[::-1] for qid, text in QUERIES.items()}
    run = {qid: {c.pid: -c.score for c in candidates} for qid, candidates in found.items()}
    prices = {"machine": {"hour": 1.0}}
    result = benchmark(DATA, {**stages, "same": run}, [model], depth=6, cache=cache, prices=prices)
    cache.close()
    own, lent = (row(result, f"{name} → {model.name}")["cost"] for name in ("bm25", "same"))
    assert lent["borrowed_from"] == f"bm25 → {model.name}"
    assert lent["rerank"] == own["rerank"]
    assert lent["seconds"] == pytest.approx(own["rerank"]["p50"])  # a run was searched nobody knows when
    assert lent["per_second"] == pytest.approx(1 / own["rerank"]["mean"])
    assert own["per_second"] < lent["per_second"] and own["dollars"] > lent["dollars"]


@pytest.mark.parametrize(
    ("prices", "expected", "how"),
    [
        ({}, 0.0, "whose hour is counted as $0"),
        ({"machine": {"hour": 3.6}}, "by the second", "this machine at $3.6 an hour"),
    ],
)
def test_a_model_of_this_machine_costs_its_share_of_an_hour(stages, prices, expected, how):
    cost = row(benchmark(DATA, stages, [ByLength()], depth=5, prices=prices), "by length")["cost"]
    per_query = (cost["rerank"]["mean"] + cost["search"]["mean"]) * 3.6 / 3600
    assert cost["dollars"] == pytest.approx(per_query if expected else 0.0)
    assert how in cost["priced"]


def test_a_model_of_others_is_billed_by_its_tokens_or_searches(stages):
    class Hosted(ByLength):
        model = "rerank-2.5-lite"

        def _score(self, query, passages, usage):
            usage.input_tokens += 1000
            return super()._score(query, passages, usage)

    listed = row(benchmark(DATA, stages, [Hosted()], depth=5), "by length")["cost"]
    assert listed["dollars"] == pytest.approx(1000 * 0.02 / 1e6)
    own = row(benchmark(DATA, stages, [Hosted()], depth=5, prices={"rerank-2.5-lite": {"searches": 2.0}}), "by length")
    assert own["cost"]["dollars"] == pytest.approx(0.002)
    Hosted.model = "nobody-knows"
    unknown = row(benchmark(DATA, stages, [Hosted()], depth=5), "by length")["cost"]
    assert unknown["dollars"] is None and "no price of nobody-knows is known" in unknown["priced"]


def test_answers_out_of_a_record_have_tokens_and_no_time():
    from rerank_lab import read_collection
    from rerank_lab.catalogue import make

    lab = read_collection("lab")
    four = list(lab.queries)[:4]
    few = replace(lab, queries={q: lab.queries[q] for q in four}, qrels={q: lab.qrels[q] for q in four})
    result = benchmark(few, {"bm25": BM25(list(lab.passages.values()))}, [make("listwise")], depth=20)
    cost = row(result, "listwise")["cost"]
    assert cost["rerank"] is None and cost["replayed"] == 4 and cost["not_timed"] == 4
    assert cost["input_tokens"] > 500 and cost["calls"] == 1
    assert "listwise" not in result["fronts"]["seconds"]


def test_what_was_cut_is_counted_whether_or_not_it_is_cached(tiny_bert, tmp_path):
    texts = {"a": "the ferry", "b": f"ferry {LONG}", "c": f"late ferry {LONG}", "d": "ferry tram"}
    passages = {pid: Passage(pid, text) for pid, text in texts.items()}
    data = Collection("long", passages, {"q": "ferry"}, {"q": {"b": 1, "d": 1}})
    cache = ScoreCache(tmp_path / "s.sqlite")
    model = CrossEncoder.from_pretrained(tiny_bert, cache=cache)
    for _ in range(2):
        found = row(benchmark(data, {"bm25": BM25(list(passages.values()))}, [model], depth=4, cache=cache), model.name)
        assert found["truncation"] == {
            "pairs": 4,
            "cut": 2,
            "relevant": 2,
            "relevant_cut": 1,
            "cut_pairs": [{"qid": "q", "pid": "b"}],
        }
    cache.close()


# what is wrong


def test_a_query_that_a_reranker_fails_on_is_left_out_for_all_and_named(stages):
    broken = ByLength(fails_on={QUERIES["q03"]}, nan_on={QUERIES["q05"]})
    result = benchmark(DATA, stages, [broken, Identity()], depth=5)
    left = result["left_out"]["queries"]
    assert left["q03"] == f"by length: the query {QUERIES['q03']!r} is too long"
    assert "got the score nan" in left["q05"]
    assert result["queries"] == 24 - len(left)
    assert all(not set(left) & set(r["values"]) for r in result["systems"])


def test_a_reranker_that_fails_often_is_left_out_instead_and_soon_not_asked_any_more(stages):
    asked = []

    class Down(ByLength):
        def _score(self, query, passages, usage):
            asked.append(query)
            raise InputError("the server is down")

    result = benchmark(DATA, stages, [Down("down"), Identity()], depth=5)
    assert result["left_out"]["systems"] == {"down": "down: the server is down"}
    assert (result["queries"], len(asked)) == (24, 5)
    with pytest.raises(DataError, match="no reranker could be run; down: down: the server is down"):
        benchmark(DATA, stages, [Down("down")], depth=5)


def test_what_is_wrong_with_the_judgments_is_counted_and_the_rest_goes_on(stages):
    qrels = {**QRELS, "q00": {"p01": 0}, "gone": {"p01": 1}, "q02": {"p05": 1, "p06": -2, "px": 1}}
    data = replace(DATA, qrels={qid: judged for qid, judged in qrels.items() if qid != "q01"})
    result = benchmark(data, stages, [Identity()], depth=5)
    notes = {note["kind"]: (note["count"], note["ids"]) for note in result["notes"]}
    assert notes == {
        "unknown query": (1, ["gone"]),
        "no judgments": (1, ["q01"]),
        "no relevant passage": (1, ["q00"]),
        "negative grade": (1, ["q02"]),
        "mixed grades": (1, ["q02"]),
        "relevant passage not in the corpus": (1, ["px"]),
    }
    assert result["queries"] == 22
    messages = [note["message"] for note in result["notes"]]
    assert all(("\n" not in message and "query" in message) or "passage" in message for message in messages)


def test_a_collection_without_a_usable_query_is_refused_with_the_mend():
    with pytest.raises(DataError, match="rerank-lab judge"):
        sound_collection(replace(DATA, qrels={"q00": {"p01": 0}}))
    with pytest.raises(DataError, match="no query of small has a relevant passage"):
        sound_collection(replace(DATA, qrels={}))


def test_what_is_wrong_with_a_run_is_counted_and_the_rest_goes_on():
    run = {"q00": {"p01": 2.0, "px": 1.0}, "zz": {"p01": 1.0}}
    found, notes = sound_run(run, "mine {n}", SOUND)
    assert found == {"q00": {"p01": 2.0}}
    assert {note.kind: note.count for note in notes} == {
        "run without judgments": 1,
        "query not in the run": 23,
        "passage not in the corpus": 1,
    }
    assert all("of the run mine {n}" in n.message or "in the run mine {n}" in n.message for n in notes)


def test_a_run_of_other_queries_is_left_out_and_the_rest_goes_on(stages):
    other = {"x1": {"p01": 1.0}}
    result = benchmark(DATA, {**stages, "other": other}, [Identity()], depth=5)
    assert result["left_out"]["systems"] == {
        "other": "no query of this run can be measured: check that its ids are those of the queries"
    }
    assert [r["name"] for r in result["systems"]] == ["bm25", "identity"]
    with pytest.raises(DataError, match="no first stage is left; other: no query of this run"):
        benchmark(DATA, {"other": other}, [Identity()], depth=5)


def test_a_draw_is_no_fault_of_a_run(stages):
    run = {qid: {"p01": 1.0} for qid in [*list(SOUND.queries)[:20], "gone"]}
    result = benchmark(DATA, {"mine": run}, [Identity()], depth=5, queries=6)
    assert [(note["kind"], note["count"]) for note in result["notes"] if "run" in note["kind"]] == [
        ("run without judgments", 1),
        ("query not in the run", 4),
    ]
    assert result["queries"] == 6


def test_nothing_wrong_is_noted_about_a_sound_collection():
    again, notes = sound_collection(SOUND)
    assert (again, notes) == (SOUND, [])


@pytest.mark.parametrize("options", [{"depth": 0}, {"queries": 0}])
def test_a_depth_or_a_draw_below_one_is_refused(stages, options):
    with pytest.raises(InputError, match="give at least 1 of each"):
        benchmark(DATA, stages, [Identity()], **options)


# killed in the middle

KILLED = """
import sys, time
from rerank_lab import BM25, CrossEncoder, ScoreCache, read_collection
from rerank_lab.evaluation.bench import benchmark

folder, model, stop_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
data, cache = read_collection(folder), ScoreCache()
reranker = CrossEncoder.from_pretrained(model, cache=cache)
forward, done = reranker.forward, []

def slowly(rows):
    if len(done) == stop_at:
        print(sum(done), flush=True)
        time.sleep(600)
    scores = forward(rows)
    done.append(len(rows))
    return scores

reranker.forward = slowly
benchmark(data, {"bm25": BM25(list(data.passages.values()))}, [reranker], depth=100, cache=cache)
"""


@pytest.fixture
def hundred(tmp_path):
    """A folder with 100 passages that all share a word with both queries: two batches of the tiny model a query."""
    folder = tmp_path / "hundred"
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(WORDS[(i * k) % 12] for k in range(1, 40)) + f" ferry tram {i}" for i in range(100)]
    rows = {
        "corpus": [{"_id": f"p{i}", "text": text} for i, text in enumerate(texts)],
        "queries": [{"_id": "q1", "text": "ferry"}, {"_id": "q2", "text": "tram"}],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels" / "test.tsv").write_text("q1\tp1\t1\nq2\tp2\t1\n")
    return folder


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill -9")
def test_after_a_kill_the_next_run_repeats_at_most_the_batch_under_way(hundred, tiny_bert):
    command = [sys.executable, "-c", KILLED, str(hundred), tiny_bert, "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        scored = int(process.stdout.readline())
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert scored % 100  # it was killed in the middle of a query

    cache = ScoreCache()
    data, model = read_collection(hundred), CrossEncoder.from_pretrained(tiny_bert, cache=cache)
    cached = []
    reranked = model.rerank

    def counting(query, candidates, **options):
        ranking = reranked(query, candidates, **options)
        cached.append(ranking.usage.cached)
        return ranking

    model.rerank = counting
    result = benchmark(data, {"bm25": BM25(list(data.passages.values()))}, [model], depth=100, cache=cache)
    cache.close()
    assert sum(cached) == scored
    # the query that was cut in two has no time of its own; the ones before keep theirs
    assert row(result, model.name)["cost"]["not_timed"] == 1

    fresh = CrossEncoder.from_pretrained(tiny_bert)
    found = {q: BM25(list(data.passages.values())).search(t, 100) for q, t in data.queries.items()}
    expected = compare(data, found, [fresh], first_stage="bm25", depth=100)
    assert row(result, model.name)["values"] == pytest.approx(expected[fresh.name].values["nDCG@10"])
