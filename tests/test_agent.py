"""The search agent: its loop with a scripted model, and the bundled record of a real one's replies."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab import (
    BM25,
    Identity,
    ListwiseReranker,
    Passage,
    Recorder,
    YesNoReranker,
    read_collection,
)
from rerank_lab.agent import SearchAgent, parse_searches
from rerank_lab.catalogue import recorded_replies
from rerank_lab.core import InputError, Repairs, Usage, in_places
from rerank_lab.llm import Reply

PASSAGES = [
    Passage("boat", "The late boat casts off at ten."),
    Passage("tram", "The night tram is the last of the day."),
    Passage("soup", "The ferry serves soup at night."),
]


class Script:
    """A model that says its lines one after the other, and keeps what it was asked."""

    model, concurrency = "script", 1

    def __init__(self, *lines):
        self.lines, self.asked = list(lines), []

    def ask(self, messages, *, max_tokens):
        self.asked.append(messages[0]["content"])
        return Reply(self.lines.pop(0), 10, 4, 0.25)


class ByWord:
    """A reranker that puts passages with a word first."""

    name = "by word"

    def __init__(self, word):
        self.word, self.seen = word, []

    def rerank(self, query, candidates, *, top_k=None):
        self.seen.append((query, [c.pid for c in candidates]))
        places = sorted(range(len(candidates)), key=lambda i: self.word not in candidates[i].text)
        return in_places(query, candidates, places, top_k, Usage(pairs=len(candidates), calls=1))


def sure_of(pid):
    return lambda ranking: float(ranking[0].pid == pid)


def agent(chat, reranker=None, judge=None, **options):
    return SearchAgent(chat, BM25(PASSAGES).search, reranker or ByWord("casts"), judge or sure_of("boat"), **options)


def test_it_plans_searches_reranks_judges_and_reformulates_until_it_has_enough():
    chat, reranker = Script("night tram\nserves soup", "late boat\nlast tram"), ByWord("casts")
    hunt = agent(chat, reranker).run("when is the last ferry at night")
    assert hunt.stopped == "enough"
    assert [turn.searches for turn in hunt.rounds] == [
        ("when is the last ferry at night", "night tram", "serves soup"),
        ("late boat", "last tram"),
    ]
    assert [turn.probability for turn in hunt.rounds] == [0.0, 1.0]
    assert hunt.ranking[0].pid == "boat"
    assert {query for query, _ in reranker.seen} == {"when is the last ferry at night"}
    assert [set(pids) for _, pids in reranker.seen] == [{"tram", "soup"}, {"tram", "soup", "boat"}]
    assert (hunt.asked.calls, hunt.asked.input_tokens, hunt.asked.output_tokens, hunt.asked.dollars) == (2, 20, 8, 0.5)
    assert (hunt.ranked.pairs, hunt.ranked.calls) == (5, 2)


def test_the_model_is_shown_the_question_and_the_searches_and_no_passage():
    chat = Script("night tram\nserves soup", "late boat")
    agent(chat).run("last ferry")
    plan, reformulate = chat.asked
    assert "Question: last ferry" in plan
    assert "Question: last ferry" in reformulate
    assert re.findall(r"^- (.*)$", reformulate, flags=re.M) == ["last ferry", "night tram", "serves soup"]
    assert not any(p.text in prompt for p in PASSAGES for prompt in chat.asked)


def test_a_model_that_repeats_the_question_adds_no_search():
    assert agent(Script("ferry\nnight"), judge=lambda ranking: 1.0).run("ferry").searches == ["ferry", "night"]


def test_it_stops_when_no_round_is_left():
    chat = Script("night", "tram", "soup")
    hunt = agent(chat, judge=lambda ranking: 0.49).run("ferry")
    assert (hunt.stopped, len(hunt.rounds), hunt.searches) == ("rounds", 3, ["ferry", "night", "tram", "soup"])
    assert chat.lines == []


def test_it_stops_when_the_model_writes_nothing_new():
    hunt = agent(Script("night", "ferry\nnight\n"), judge=lambda ranking: 0.0).run("ferry")
    assert (hunt.stopped, hunt.searches, hunt.asked.calls) == ("nothing new", ["ferry", "night"], 2)


def test_an_answer_without_a_search_string_leaves_the_question_itself():
    hunt = agent(Script("", "..."), judge=lambda ranking: 0.0).run("ferry")
    assert (hunt.stopped, hunt.searches) == ("nothing new", ["ferry"])


def test_a_pool_without_a_passage_is_not_judged():
    def judge(ranking):
        raise AssertionError("there is nothing to judge")

    hunt = agent(Script("zebra", "giraffe"), judge=judge, rounds=2).run("okapi")
    assert (hunt.stopped, [len(turn.ranking) for turn in hunt.rounds]) == ("rounds", [0, 0])
    assert [turn.probability for turn in hunt.rounds] == [0.0, 0.0]


def test_a_threshold_of_zero_stops_after_the_plan_and_one_is_reached_only_by_certainty():
    assert agent(Script("night"), judge=lambda ranking: 0.0, threshold=0.0).run("ferry").stopped == "enough"
    assert agent(Script("night"), judge=lambda ranking: 1.0, threshold=1.0).run("ferry").stopped == "enough"
    assert agent(Script("night"), judge=lambda ranking: 0.999, threshold=1.0, rounds=1).run("ferry").stopped == "rounds"


def test_only_so_many_strings_and_candidates_are_taken():
    chat = Script("boat\ntram\nsoup")
    hunt = agent(chat, judge=lambda ranking: 1.0, strings=1, depth=1).run("night")
    assert hunt.searches == ["night", "boat"]
    assert "Write 1 search strings" in chat.asked[0]
    assert len(hunt.ranking) == 2


def test_only_the_best_of_the_pool_are_reranked():
    reranker = ByWord("casts")
    loop = agent(Script("night tram\nnight", "late boat"), reranker, lambda ranking: 0.0, pool=1, rounds=2)
    assert [c.pid for c in loop.run("soup").ranking] == ["soup"]
    assert [pids for _, pids in reranker.seen] == [["soup"], ["soup"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold is 1\.5: give a probability"),
        ({"threshold": float("nan")}, r"threshold is nan"),
        ({"rounds": 0}, r"rounds is 0: give at least 1"),
        ({"strings": 0}, r"strings is 0"),
        ({"depth": -1}, r"depth is -1"),
        ({"pool": 0}, r"pool is 0"),
    ],
)
def test_an_agent_that_could_do_nothing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        agent(Script(), **options)


@pytest.mark.parametrize("query", ["", "  \n", None, 7])
def test_a_blank_question_is_refused_before_anybody_is_asked(query):
    chat = Script()
    with pytest.raises(InputError, match="give a string"):
        agent(chat).run(query)
    assert chat.asked == []


@pytest.mark.parametrize(
    ("answer", "searches"),
    [
        ("night ferry\nlate boat", ["night ferry", "late boat"]),
        ("1. night ferry\n2) late boat", ["night ferry", "late boat"]),
        ('- "night ferry"\n* late boat.', ["night ferry", "late boat"]),
        ("24 hour car park\n30 skaters", ["24 hour car park", "30 skaters"]),
        ("<think>ferry?\nboat?</think>\nnight ferry", ["night ferry"]),
        ("night ferry\n\nnight ferry\n", ["night ferry"]),
        ("", []),
    ],
)
def test_search_strings_are_read_as_models_write_them(answer, searches):
    assert parse_searches(answer, 2) == searches


@given(answer=st.text(max_size=200), n=st.integers(1, 4))
def test_search_strings_of_any_answer_are_few_different_and_not_blank(answer, n):
    searches = parse_searches(answer, n)
    assert len(searches) == len(set(searches)) <= n
    assert all(re.search(r"\w", s) and s == s.strip() and "\n" not in s for s in searches)


# The record


@pytest.fixture(scope="module")
def lab():
    return read_collection("lab")


@pytest.fixture(scope="module")
def search(lab):
    return BM25(list(lab.passages.values())).search


@pytest.fixture(scope="module")
def asked(lab):
    return [qid for qid in lab.queries if lab.groups[qid] in ("conjunction", "number")]


def test_the_record_names_model_and_date_once_for_each_prompt():
    rows = [json.loads(line) for line in recorded_replies("agent").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == len(Recorder(recorded_replies("agent")))
    assert {row["model"] for row in rows} == {Recorder(recorded_replies()).model}
    assert all(row["date"] and row["reply"] and row["input_tokens"] > 0 and row["dollars"] == 0 for row in rows)


def test_the_loop_runs_from_the_record_alone_whatever_the_reranker_says(lab, search, asked):
    replies = Recorder(recorded_replies("agent"))
    loop = SearchAgent(replies, search, Identity(), lambda ranking: 0.0)
    backwards = SearchAgent(replies, search, Backwards(), lambda ranking: 0.0)
    for qid in asked:
        hunt = loop.run(lab.queries[qid])
        assert (hunt.stopped, hunt.asked.calls, len(hunt.searches)) == ("rounds", 3, 7)
        assert backwards.run(lab.queries[qid]).searches == hunt.searches


class Backwards(Identity):
    """The worst first."""

    def rerank(self, query, candidates, *, top_k=None):
        return in_places(query, candidates, range(len(candidates))[::-1], top_k, Usage())


def test_the_model_as_reranker_and_as_judge_is_in_the_record_too(lab, search, asked):
    replies = Recorder(recorded_replies("agent"))
    reads = YesNoReranker(replies)
    judge = lambda ranking: reads.score(ranking.query, [ranking[0].passage])[0]  # noqa: E731
    loop = SearchAgent(replies, search, ListwiseReranker(replies, depth=20), judge)
    hunts = [loop.run(lab.queries[qid]) for qid in asked]
    assert {hunt.stopped for hunt in hunts} == {"enough"}
    assert sum((hunt.ranked for hunt in hunts), Usage()).repairs == Repairs()
