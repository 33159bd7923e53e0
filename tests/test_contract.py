"""What every reranker promises, whatever its family."""

import math
import re
from copy import deepcopy

import pytest
import torch
from conftest import LONG, QUERY, TEXTS
from fake_vendors import KEY, fake_vendors, overlap

from rerank_lab import BiEncoder, CrossEncoder, Identity, Passage, ScoreCache, candidates_from
from rerank_lab.batching import Encoded
from rerank_lab.core import InputError, PointwiseReranker
from rerank_lab.llm import Reply
from rerank_lab.rerankers.api import CohereReranker, JinaReranker, TEIReranker, VoyageReranker
from rerank_lab.rerankers.cascade import Cascade, Stage
from rerank_lab.rerankers.colbert import ColBERT
from rerank_lab.rerankers.fused import Fused
from rerank_lab.rerankers.listwise import ListwiseReranker
from rerank_lab.rerankers.monot5 import DuoT5, MonoT5, TrueOrFalse
from rerank_lab.rerankers.pairwise import PairwiseReranker
from rerank_lab.rerankers.pointwise_llm import Qwen3Reranker, YesNoReranker
from rerank_lab.rerankers.setwise import SetwiseReranker

LOCAL = [  # a model of this machine scores each passage by itself
    "bi-encoder",
    "cross-encoder-bert",
    "cross-encoder-xlm-roberta",
    "cross-encoder-modernbert",
    "lab-cross-encoder",
    "colbert",
    "monot5",
    "qwen3",
]
ASKED = ["pointwise-llm", "cohere", "jina", "voyage", "tei"]  # another does
POINTWISE = [*LOCAL, *ASKED]
NAMES = ["identity", *POINTWISE, "duot5", "fused", "listwise", "pairwise", "setwise", "cascade", "cascade-early"]


class Overlap:
    """A chat that reads each kind of prompt and answers by the words that query and passage share."""

    model, concurrency = "overlap", 2

    def ask(self, messages, *, max_tokens):
        said = messages[-1]["content"]
        query = re.search(r"Query: (.*?)\n", said)[1]

        def worth(text):
            return overlap(query, text) if text.strip() else 0.0, len(text), text

        if len(messages) > 1:
            shown = [m["content"].partition("] ")[2] for m in messages[3:-1:2]]
            order = sorted(range(len(shown)), key=lambda i: worth(shown[i]), reverse=True)
            return Reply(" > ".join(f"[{i + 1}]" for i in order), 9, 3)
        head, _, last = said.rpartition("\n\n")
        shown = re.split(r"\n\nPassage ?[A-Z]?: ", head)[1:]
        if last.startswith("Does"):
            return Reply("yes" if worth(shown[0])[0] > 0 else "no", 9, 3)
        return Reply("Passage " + "ABCD"[max(range(len(shown)), key=lambda i: worth(shown[i]))], 9, 3)


@pytest.fixture(scope="session")
def hosted():
    """Rerankers of the four vendors, at a local server that speaks for all of them."""
    with fake_vendors() as server, pytest.MonkeyPatch.context() as environment:
        for variable in ("CO_API_KEY", "JINA_API_KEY", "VOYAGE_API_KEY", "TEI_API_KEY"):
            environment.setenv(variable, KEY)
        kinds = {"cohere": CohereReranker, "jina": JinaReranker, "voyage": VoyageReranker}
        made = {name: kind.from_environment(base_url=server.url) for name, kind in kinds.items()}
        made["tei"] = TEIReranker.from_environment("tiny", base_url=server.url)
        yield made
        for reranker in made.values():
            reranker.close()


@pytest.fixture(scope="session")
def rerankers(tiny_encoder, tiny_classifiers, lab_cross_encoder, tiny_colbert, tiny_t5, tiny_qwen3, hosted):
    made = {"identity": Identity(), "bi-encoder": BiEncoder.from_pretrained(tiny_encoder)}
    for backbone, folder in tiny_classifiers.items():
        made[f"cross-encoder-{backbone}"] = CrossEncoder.from_pretrained(folder)
    made["colbert"] = ColBERT.from_pretrained(tiny_colbert)
    answers, chat = TrueOrFalse.from_pretrained(tiny_t5), Overlap()
    cheap, dear = made["bi-encoder"], made["cross-encoder-bert"]
    return {
        **made,
        "cascade": Cascade([Stage(cheap, 5), Stage(dear, 3)]),
        "cascade-early": Cascade([Stage(cheap, 5, margin=0.0), Stage(dear, 3)]),
        **hosted,
        "lab-cross-encoder": lab_cross_encoder,
        "fused": Fused([made["bi-encoder"], made["colbert"], made["cross-encoder-bert"]]),
        "monot5": MonoT5(answers),
        "duot5": DuoT5(answers),
        "qwen3": Qwen3Reranker.from_pretrained(tiny_qwen3, max_length=1024),
        "pointwise-llm": YesNoReranker(chat),
        "listwise": ListwiseReranker(chat),
        "pairwise": PairwiseReranker(chat),
        "setwise": SetwiseReranker(chat),
    }


@pytest.fixture(params=NAMES)
def reranker(request, rerankers):
    return rerankers[request.param]


@pytest.fixture(params=POINTWISE)
def pointwise(request, rerankers):
    return rerankers[request.param]


@pytest.fixture(params=LOCAL)
def local(request, rerankers):
    return rerankers[request.param]


def test_the_same_pids_come_out_and_the_inputs_stay_as_they_were(reranker, candidates):
    before = deepcopy(candidates)
    ranking = reranker.rerank(QUERY, candidates)
    assert candidates == before
    assert sorted(c.pid for c in ranking) == sorted(c.pid for c in candidates)
    assert {c.pid: c.passage for c in ranking} == {c.pid: c.passage for c in candidates}
    assert ranking.query == QUERY


def test_scores_fall_ranks_count_up_and_the_first_rank_is_kept(reranker, candidates):
    ranking = reranker.rerank(QUERY, candidates)
    found = [c.score for c in ranking]
    assert found == sorted(found, reverse=True)
    assert all(isinstance(score, float) and math.isfinite(score) for score in found)
    assert [c.rank for c in ranking] == list(range(1, len(candidates) + 1))
    assert {c.pid: c.first_rank for c in ranking} == {c.pid: c.rank for c in candidates}


def test_first_rank_is_the_rank_that_the_candidate_came_with(reranker, candidates):
    ranking = reranker.rerank(QUERY, candidates[3:5])
    assert {c.pid: c.first_rank for c in ranking} == {"p3": 4, "p4": 5}
    assert sorted(c.rank for c in ranking) == [1, 2]


def test_the_order_is_that_of_the_scores(pointwise, candidates):
    ranking = pointwise.rerank(QUERY, candidates)
    scores = pointwise.score(QUERY, [c.passage for c in candidates])
    best = sorted(range(len(scores)), key=lambda i: -scores[i])
    assert [c.pid for c in ranking] == [candidates[i].pid for i in best]
    assert ranking.to_run() == pytest.approx({c.pid: s for c, s in zip(candidates, scores, strict=True)}, abs=1e-6)


def test_texts_that_occur_twice_keep_the_first_stages_order(reranker):
    doubled = candidates_from([Passage(f"{name}{i}", text) for i, text in enumerate(TEXTS[:3]) for name in "zya"])
    ranking = reranker.rerank(QUERY, doubled)
    for i in range(3):
        assert [c.pid for c in ranking if c.pid.endswith(str(i))] == [f"z{i}", f"y{i}", f"a{i}"]


def test_no_candidates_give_an_empty_ranking(reranker):
    ranking = reranker.rerank(QUERY, [])
    assert len(ranking) == 0
    assert list(ranking) == []
    assert ranking.to_run() == {}
    assert (ranking.usage.pairs, ranking.usage.calls, ranking.usage.input_tokens) == (0, 0, 0)


def test_a_single_candidate_stays_alone(reranker):
    (only,) = reranker.rerank(QUERY, candidates_from(["the tram is late"]))
    assert (only.pid, only.rank, only.first_rank) == ("0", 1, 1)


SCRIPTS = {
    "emoji": "🐈‍⬛🚢 ferry 🏝️",
    "arabic": "متى تغادر العبارة الليلية؟",
    "combining": "e\u0301a\u0308o\u0327 \u0301\u0301\u0301",
    "invisible": "\u200b\u202e\ufeff\x00\x07",
    "japanese": "夜のフェリーは何時に出ますか",
    "astral": "𝒻𝑒𝓇𝓇𝓎",
    "white": "\n\t ",
}


def test_passages_of_any_script_can_be_ranked(reranker):
    ranking = reranker.rerank(QUERY, candidates_from(Passage(name, text) for name, text in SCRIPTS.items()))
    assert sorted(c.pid for c in ranking) == sorted(SCRIPTS)
    assert all(math.isfinite(c.score) for c in ranking)


@pytest.mark.parametrize("script", ["emoji", "arabic", "combining", "invisible"])
def test_queries_of_any_script_can_be_asked(reranker, script):
    ranking = reranker.rerank(SCRIPTS[script], candidates_from(["tram", SCRIPTS["japanese"]]))
    assert sorted(c.pid for c in ranking) == ["0", "1"]
    assert all(math.isfinite(c.score) for c in ranking)


def test_a_passage_of_ten_thousand_characters_is_cut_and_counted(local):
    ranking = local.rerank("the ferry", candidates_from(["tram", LONG, "bus", LONG + "museum"]))
    assert len(ranking) == 4
    assert ranking.usage.truncated == 2


def test_identity_cuts_nothing(candidates):
    ranking = Identity().rerank(QUERY, [*candidates, *candidates_from([LONG])])
    assert ranking.usage.truncated == 0
    assert [c.pid for c in ranking] == [*(c.pid for c in candidates), "0"]


@pytest.mark.parametrize("query", ["", " ", "\n\t", "\u3000", None, 7])
def test_a_blank_query_or_one_that_is_no_string_is_refused(reranker, candidates, query):
    with pytest.raises(InputError, match=r"the query is .* at least one visible character"):
        reranker.rerank(query, candidates)


def test_a_pid_that_occurs_twice_is_refused_by_name(reranker):
    twice = candidates_from([Passage("p7", "a ferry"), Passage("p8", "a bus"), Passage("p7", "a tram")])
    with pytest.raises(InputError, match="pid 'p7' occurs twice"):
        reranker.rerank(QUERY, twice)


@pytest.mark.parametrize("top_k", [1, 3, 99])
def test_top_k_gives_the_best_of_the_whole_order(reranker, candidates, top_k):
    whole = reranker.rerank(QUERY, candidates)
    few = reranker.rerank(QUERY, candidates, top_k=top_k)
    assert [c.pid for c in few] == [c.pid for c in whole][:top_k]
    assert [c.rank for c in few] == list(range(1, min(top_k, len(candidates)) + 1))
    assert few.usage.pairs == whole.usage.pairs


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_one_is_refused(reranker, candidates, top_k):
    with pytest.raises(InputError, match=rf"top_k is {top_k}: give at least 1"):
        reranker.rerank(QUERY, candidates, top_k=top_k)


def test_usage_says_what_the_ranking_cost(local):
    usage = local.rerank("ferry", candidates_from(["tram", "bus bus", "a dog"])).usage
    assert usage.pairs == 3
    assert usage.calls >= 1
    assert usage.input_tokens >= 3 * 3
    assert usage.seconds > 0
    assert (usage.output_tokens, usage.cached, usage.truncated, usage.dollars) == (0, 0, 0, 0.0)


def test_what_will_be_cut_is_what_is_cut(local):
    passages = [Passage("a", "a tram"), Passage("b", LONG), Passage("c", "the ferry"), Passage("d", LONG + " dog")]
    usage = local.rerank("ferry", candidates_from(passages)).usage
    assert local.cuts("ferry", passages) == [False, True, False, True]
    assert usage.truncated == 2


@pytest.mark.parametrize("name", ["identity", "duot5", "cohere", "pairwise"])
def test_what_cannot_know_what_is_cut_says_so(rerankers, name):
    assert rerankers[name].cuts("ferry", [Passage("a", LONG)]) is None


@pytest.mark.parametrize(
    ("name", "pairs", "calls"),
    [("pointwise-llm", 3, 3), ("listwise", 3, 1), ("cohere", 3, 1), ("jina", 3, 1), ("voyage", 3, 1), ("tei", 3, 1)],
)
def test_usage_of_a_model_that_is_asked_counts_its_requests(rerankers, name, pairs, calls):
    usage = rerankers[name].rerank("ferry", candidates_from(["tram", "bus bus", "a dog"])).usage
    assert (usage.pairs, usage.calls) == (pairs, calls)
    assert usage.seconds > 0


def test_usage_of_a_fusion_is_that_of_all_its_rerankers(rerankers):
    candidates = candidates_from(["tram", "bus bus", "a dog", LONG])
    parts = [
        rerankers[name].rerank("ferry", candidates).usage for name in ("bi-encoder", "colbert", "cross-encoder-bert")
    ]
    usage = rerankers["fused"].rerank("ferry", candidates).usage
    for count in ("pairs", "calls", "input_tokens", "truncated"):
        assert getattr(usage, count) == sum(getattr(part, count) for part in parts) > 0
    assert usage.seconds > 0


@pytest.mark.parametrize("name", ["duot5", "pairwise", "setwise"])
def test_usage_of_comparisons_counts_them(rerankers, name):
    usage = rerankers[name].rerank("ferry", candidates_from(["tram", "bus bus", "a dog"])).usage
    assert usage.pairs >= 3 and usage.calls >= 1 and usage.input_tokens > 0 and usage.seconds > 0


def test_a_cross_encoder_counts_the_query_once_a_pair(rerankers):
    reranker = rerankers["cross-encoder-bert"]
    usage = reranker.rerank("ferry", candidates_from(["tram", "bus bus"])).usage
    assert usage.input_tokens == (1 + 1 + 1 + 1 + 1) + (1 + 1 + 1 + 2 + 1)  # [CLS] q [SEP] p [SEP]


def test_a_bi_encoder_counts_the_query_once_a_ranking(rerankers):
    usage = rerankers["bi-encoder"].rerank("ferry", candidates_from(["tram", "bus bus"])).usage
    assert usage.input_tokens == 3 + 3 + 4


def test_scores_of_a_set_equal_the_scores_one_by_one(pointwise, passages):
    passages = [*passages, Passage("long", LONG)]
    together = pointwise.score(QUERY, passages)
    alone = [pointwise.score(QUERY, [p])[0] for p in passages]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=0)


def test_scores_do_not_depend_on_the_order_of_the_candidates(pointwise, passages):
    forward = pointwise.score(QUERY, passages)
    backward = pointwise.score(QUERY, passages[::-1])
    torch.testing.assert_close(torch.tensor(forward), torch.tensor(backward[::-1]), atol=1e-5, rtol=0)


def test_pretrained_models_put_the_answer_first(lab_cross_encoder):
    texts = ["The museum opens at ten.", "Trams are red.", "The last ferry to the island leaves at 23:40."]
    best = lab_cross_encoder.rerank("when does the night ferry leave", candidates_from(texts))[0]
    assert best.first_rank == 3


class Dice(PointwiseReranker):
    """Gives the scores that it was made with."""

    name = "dice"

    def __init__(self, scores):
        self.scores = scores

    def _score(self, query, passages, usage):
        return self.scores


def test_a_score_that_is_not_a_number_is_refused_by_pid(candidates):
    with pytest.raises(InputError, match="passage 'p1' got the score nan"):
        Dice([0.5, math.nan, 0.1]).rerank(QUERY, candidates[:3])


def test_infinite_scores_are_an_order_too(candidates):
    ranking = Dice([-math.inf, math.inf, 0.0]).rerank(QUERY, candidates[:3])
    assert [c.pid for c in ranking] == ["p1", "p2", "p0"]


def broken(cache):
    def encode(query, texts):
        return [Encoded([1, 2], [0, 1], False) for _ in texts]

    return CrossEncoder(encode, lambda rows: torch.full((len(rows),), math.nan), cache=cache)


def test_a_model_that_answers_nan_is_refused(candidates):
    with pytest.raises(InputError, match="passage 'p0' got the score nan"):
        broken(None).rerank(QUERY, candidates)


def test_a_model_that_answers_nan_is_refused_the_second_time_as_the_first(candidates, tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    try:
        for _ in range(2):
            with pytest.raises(InputError, match="passage 'p0' got the score nan"):
                broken(cache).rerank(QUERY, candidates)
    finally:
        cache.close()


def test_bare_strings_become_candidates_with_their_place_as_pid():
    made = candidates_from(["a ferry", Passage("x", "a tram")], scores=[2, 1])
    assert [(c.pid, c.text, c.score, c.rank, c.first_rank) for c in made] == [
        ("0", "a ferry", 2.0, 1, 1),
        ("x", "a tram", 1.0, 2, 2),
    ]


def test_candidates_need_one_score_each():
    with pytest.raises(InputError, match="2 passages but 1 scores"):
        candidates_from(["a", "b"], scores=[1.0])


def test_in_langchain_and_in_llama_index_it_gives_the_order_that_it_gives_alone(reranker):
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from rerank_lab.integrations.langchain import RerankCompressor
    from rerank_lab.integrations.llama_index import RerankPostprocessor

    texts = [text for text in TEXTS if text]
    alone = reranker.rerank(QUERY, candidates_from(texts), top_k=4)
    documents = RerankCompressor(reranker=reranker, top_n=4).compress_documents([Document(t) for t in texts], QUERY)
    nodes = RerankPostprocessor(reranker=reranker, top_n=4).postprocess_nodes(
        [NodeWithScore(node=TextNode(text=text)) for text in texts], query_str=QUERY
    )
    assert [d.page_content for d in documents] == [n.text for n in nodes] == [c.text for c in alone]
    scores = [c.score for c in alone]
    assert [d.metadata["relevance_score"] for d in documents] == pytest.approx(scores, abs=1e-5)
    assert [n.score for n in nodes] == pytest.approx(scores, abs=1e-5)
