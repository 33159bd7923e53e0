"""Explanations: each family's account agrees with what its reranker does, and a notebook can show it."""

import re

import matplotlib
import numpy as np
import pytest
from conftest import QUERY, TEXTS
from fake_vendors import KEY, fake_vendors

from rerank_lab.core import Identity, InputError, Passage, PointwiseReranker, candidates_from
from rerank_lab.explain import explain
from rerank_lab.first_stage.bi_encoder import BiEncoder
from rerank_lab.llm import Reply
from rerank_lab.rerankers.api import JinaReranker
from rerank_lab.rerankers.cascade import Cascade, Stage
from rerank_lab.rerankers.colbert import ColBERT
from rerank_lab.rerankers.cross_encoder import CrossEncoder
from rerank_lab.rerankers.listwise import ListwiseReranker
from rerank_lab.rerankers.monot5 import DuoT5, MonoT5, TrueOrFalse
from rerank_lab.rerankers.multi_vector import MultiVectorIndex, StoredColBERT
from rerank_lab.rerankers.pairwise import PairwiseReranker
from rerank_lab.rerankers.setwise import SetwiseReranker

matplotlib.use("Agg")

TEXT = TEXTS[0]  # The night ferry leaves the harbour at nine.
NUMBERS = candidates_from([Passage(f"p{n}", f"{n} boats") for n in (3, 1, 4, 2, 5)])


class ByNumber:
    """A chat that prefers the passage with the higher number, whatever the kind of prompt."""

    model, concurrency = "by-number", 2

    def ask(self, messages, *, max_tokens):
        if len(messages) > 1:
            found = [re.match(r"\[(\d+)\] (\d+)", m["content"]) for m in messages]
            shown = {int(m[1]): int(m[2]) for m in found if m}
            return Reply(" > ".join(f"[{i}]" for i in sorted(shown, key=lambda i: -shown[i])), 10, 5)
        shown = re.findall(r"^Passage ([A-Z]): (\d+) boats$", messages[0]["content"], flags=re.MULTILINE)
        return Reply("Passage " + max(shown, key=lambda pair: int(pair[1]))[0], 20, 2)


class Counter(PointwiseReranker):
    """Scores a passage by the words that it shares with the query, a double one twice."""

    name = "counter"

    def _score(self, query, passages, usage):
        usage.pairs += len(passages)
        return [float(sum(word in query.split() for word in p.text.split())) for p in passages]


def test_occlusion_gives_each_word_what_the_score_loses_without_it():
    found = explain(Counter(), "night ferry", "the night ferry is a ferry")
    assert found.words == ("the", "night", "ferry", "is", "a", "ferry")
    assert found.effects == (0.0, 1.0, 1.0, 0.0, 0.0, 1.0)
    assert (found.score, found.usage.pairs) == (3.0, 7)
    assert "night" in found._repr_html_() and "+1.000" in found._repr_html_()


@pytest.mark.parametrize("text", ["", " \n", "ferry"])
def test_a_passage_of_one_word_or_none_can_be_explained(text):
    found = explain(Counter(), "ferry", Passage("p", text))
    assert found.effects == (1.0,) * len(text.split())
    assert found.passage.pid == "p"


@pytest.fixture(scope="session")
def t5(tiny_t5):
    return TrueOrFalse.from_pretrained(tiny_t5)


@pytest.fixture(params=["bi-encoder", "cross-encoder", "monot5"])
def scorer(request, tiny_encoder, tiny_bert, t5):
    made = {"bi-encoder": lambda: BiEncoder.from_pretrained(tiny_encoder), "monot5": lambda: MonoT5(t5)}
    return made.get(request.param, lambda: CrossEncoder.from_pretrained(tiny_bert))()


def test_every_family_that_scores_passages_is_explained_by_occlusion(scorer):
    found = explain(scorer, QUERY, TEXT)
    (whole, shorter) = scorer.score(QUERY, [Passage("", TEXT), Passage("", TEXT.removeprefix("The "))])
    assert found.score == pytest.approx(whole, abs=1e-5)
    assert found.effects[0] == pytest.approx(whole - shorter, abs=1e-5)
    assert found.usage.pairs == len(TEXT.split()) + 1


def test_a_hosted_model_is_explained_through_its_scores(monkeypatch):
    monkeypatch.setenv("JINA_API_KEY", KEY)
    with fake_vendors() as server, JinaReranker.from_environment(base_url=server.url) as jina:
        found = explain(jina, "night ferry", "the night ferry is late")
    assert found.words[np.argmax(found.effects)] in ("night", "ferry")
    assert found.usage.calls == 1


def test_the_maxsim_map_adds_up_to_the_score_and_names_its_tokens(tiny_colbert):
    colbert = ColBERT.from_pretrained(tiny_colbert)
    found = explain(colbert, QUERY, candidates_from([Passage("p", TEXT)])[0])
    assert found.similarity.shape == (len(found.rows), len(found.columns))
    assert found.score == pytest.approx(colbert.score(QUERY, [Passage("", TEXT)])[0], abs=1e-4)
    assert found.earned.sum() == pytest.approx(found.score, abs=1e-4)
    assert "ferry" in found.rows and "ferry" in found.columns and "." not in found.columns
    assert [t.get_text() for t in found.draw().get_yticklabels()] == list(found.rows)
    assert "harbour" in found._repr_html_()


def test_stored_vectors_are_explained_by_the_encoder_that_made_them(tiny_colbert, tmp_path):
    colbert = ColBERT.from_pretrained(tiny_colbert)
    index = MultiVectorIndex.build(colbert, [Passage("p", TEXT)], tmp_path / "index", bits=None)
    found = explain(StoredColBERT(index), QUERY, Passage("p", TEXT))
    assert found.score == pytest.approx(explain(colbert, QUERY, TEXT).score)


def test_the_win_matrix_of_duot5_is_its_matrix_in_the_order_of_its_ranking(t5):
    passages = [Passage(f"p{i}", text) for i, text in enumerate(TEXTS[:4])]
    duo = DuoT5(t5, mono=MonoT5(t5), depth=3)
    found = explain(duo, QUERY, passages)
    assert found.pids == tuple(c.pid for c in duo.rerank(QUERY, candidates_from(passages))[:3])
    by_pid = {p.pid: p for p in passages}
    np.testing.assert_allclose(found.chances, duo.matrix(QUERY, [by_pid[pid] for pid in found.pids]), atol=1e-5)
    assert found.usage.pairs == 4 + 3 * 2


def test_the_win_matrix_of_pairwise_prompting_is_a_staircase_for_a_judge_without_doubts():
    found = explain(PairwiseReranker(ByNumber(), depth=4), "how many boats?", NUMBERS)
    assert found.pids == ("p4", "p3", "p2", "p1")
    assert found.chances.tolist() == [[0.5, 1, 1, 1], [0, 0.5, 1, 1], [0, 0, 0.5, 1], [0, 0, 0, 0.5]]
    assert found.usage.calls == 12
    assert [t.get_text() for t in found.draw().get_yticklabels()] == list(found.pids)


def test_the_trace_of_listwise_prompting_shows_each_window_and_ends_with_the_ranking():
    listwise = ListwiseReranker(ByNumber(), window=3, step=2)
    found = explain(listwise, "how many boats?", NUMBERS)
    assert [(s.label, s.read) for s in found.steps] == [("window 1", (2, 5)), ("window 2", (0, 3))]
    assert found.steps[0].pids == ("p3", "p1", "p5", "p4", "p2")
    assert found.steps[-1].pids == tuple(c.pid for c in listwise.rerank("how many boats?", NUMBERS))
    assert found.places("p5") == [5, 3, 1]
    assert (found.usage.calls, found.usage.pairs) == (2, 6)


def test_the_trace_of_a_cascade_shows_its_stages_and_stops_where_it_stops():
    stages = [Stage(Counter(), 4, margin=1.5), Stage(ListwiseReranker(ByNumber()), 2)]
    found = explain(Cascade(stages), "4 boats", NUMBERS)
    assert [(s.label, s.read) for s in found.steps] == [("counter", (0, 4)), ("listwise", (0, 2))]
    assert found.steps[0].pids == ("p4", "p3", "p1", "p2", "p5")
    settled = explain(Cascade([Stage(Counter(), 5, margin=0.5), stages[1]]), "4 boats", NUMBERS)
    assert [s.label for s in settled.steps] == ["counter"]


def test_a_trace_is_drawn_with_the_marked_passages_named():
    axes = explain(ListwiseReranker(ByNumber(), window=3, step=2), "boats?", NUMBERS).draw(marked=["p5", "p3"])
    assert {t.get_text() for t in axes.texts} == {"p5", "p3"}
    assert [t.get_text() for t in axes.get_xticklabels()] == ["as it came", "window 1", "window 2"]
    assert len(axes.lines) == 5


@pytest.mark.parametrize(
    ("reranker", "given", "message"),
    [
        (Counter(), NUMBERS, "counter scores each passage by itself: give one passage instead of 5"),
        (ListwiseReranker(ByNumber()), TEXT, "listwise sets passages against each other: give a list"),
        (PairwiseReranker(ByNumber()), Passage("p", TEXT), "pairwise sets passages against each other"),
        (PairwiseReranker(ByNumber()), [Passage("p", "a"), Passage("p", "b")], "pid 'p' occurs twice"),
        (Identity(), NUMBERS, "identity gives no score, comparison or window"),
        (SetwiseReranker(ByNumber()), NUMBERS, "setwise gives no score, comparison or window"),
    ],
)
def test_what_cannot_be_explained_so_is_refused_with_the_mend(reranker, given, message):
    with pytest.raises(InputError, match=message):
        explain(reranker, QUERY, given)


@pytest.mark.parametrize("name", ["counter", "colbert", "pairwise"])
def test_a_blank_query_is_refused_as_by_the_reranker(name, tiny_colbert):
    made = {"counter": Counter(), "pairwise": PairwiseReranker(ByNumber())}.get(name) or ColBERT.from_pretrained(
        tiny_colbert
    )
    with pytest.raises(InputError, match="the query is ' '"):
        explain(made, " ", NUMBERS if name == "pairwise" else TEXT)


def test_no_candidates_give_an_empty_account():
    assert explain(ListwiseReranker(ByNumber()), QUERY, []).steps == ()
    assert explain(PairwiseReranker(ByNumber()), QUERY, []).chances.shape == (0, 0)
