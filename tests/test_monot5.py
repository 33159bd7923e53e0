"""True or false at the first decoder step, against `generate`; comparisons two by two, against naive loops."""

import math
import random
import shutil
from itertools import pairwise

import pytest
import torch
from conftest import QUERY, T5_SHAPE, TEXTS, _save, t5_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import Passage, ScoreCache, candidates_from
from rerank_lab.core import CheckpointError, InputError, Usage
from rerank_lab.rerankers.monot5 import AGGREGATIONS, DUO, MONO, DuoT5, MonoT5, TrueOrFalse, aggregate


@pytest.fixture(scope="module")
def tiny_mt5(tmp_path_factory):
    """A folder with a random mT5, which has a head of its own."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    torch.manual_seed(6)
    tokenizer = t5_tokenizer()
    config = MT5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, tie_word_embeddings=False, **T5_SHAPE)
    return _save(tmp_path_factory.mktemp("models") / "tiny-mt5", MT5ForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="module")
def answers(tiny_t5):
    return TrueOrFalse.from_pretrained(tiny_t5)


@pytest.fixture(scope="module")
def mono(answers):
    return MonoT5(answers)


@pytest.fixture(scope="module")
def duo(answers):
    return DuoT5(answers)


class Counting(TrueOrFalse):
    """Keeps the rows that it was asked."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def log_odds(self, rows):
        self.asked += [tuple(row.ids) for row in rows]
        return super().log_odds(rows)


@pytest.fixture
def counting(answers):
    return Counting(answers.model, answers.tokenizer)


def reference_chances(folder, prompts, words=("▁false", "▁true")):
    """P(true) of each prompt by transformers alone: one prompt at a time, one generated token."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    made = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        assert inputs["input_ids"][0, -1] == tokenizer.eos_token_id
        written = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        logits = written.scores[0][0, tokenizer.convert_tokens_to_ids(list(words))]
        made.append(logits.softmax(-1)[1].item())
    return made


def mono_prompts(texts):
    return [f"Query: {QUERY} Document: {text} Relevant:" for text in texts]


def passages_of(texts):
    return [Passage(f"p{i}", text) for i, text in enumerate(texts)]


# against transformers


def test_the_score_is_the_log_chance_of_true_that_generate_gives(mono, tiny_t5):
    expected = reference_chances(tiny_t5, mono_prompts(TEXTS))
    assert torch.tensor(expected).std() > 1e-2, "random weights too small to tell the passages apart"
    assert mono.score(QUERY, passages_of(TEXTS)) == pytest.approx([math.log(p) for p in expected], abs=1e-5)


def test_the_chances_of_all_ordered_pairs_are_those_that_generate_gives(duo, tiny_t5):
    texts = ["ab", "c", "a", "bc", TEXTS[0], ""]  # ab + c and a + bc are the same characters
    p = duo.matrix(QUERY, passages_of(texts))
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    prompts = [f"Query: {QUERY} Document0: {texts[i]} Document1: {texts[j]} Relevant:" for i, j in pairs]
    assert [p[i][j] for i, j in pairs] == pytest.approx(reference_chances(tiny_t5, prompts), abs=1e-5)
    assert [p[i][i] for i in range(6)] == [0.5] * 6
    assert abs(p[0][1] - p[2][3]) > 1e-3


def test_padding_is_not_attended_to(answers):
    rows = answers.encode(MONO, QUERY, [(text,) for text in TEXTS])
    with torch.inference_mode():
        together = answers.log_odds(rows)
        alone = torch.cat([answers.log_odds([row]) for row in rows])
        shortest = min(rows, key=len)
        padded = type(shortest)(shortest.ids + [0] * 40, shortest.segments + [0] * 40, False)
        unmasked = answers.log_odds([padded])[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert abs(unmasked - alone[rows.index(shortest)]) > 1e-3, "pads that are attended to should change the score"


# the two words


def copied(folder, tmp_path, name):
    return str(shutil.copytree(folder, tmp_path / name))


@pytest.mark.parametrize(
    ("kind", "name", "pieces"),
    [
        ("t5", "monot5-base-msmarco", ("▁false", "▁true")),
        ("t5", "ptt5-base-pt-msmarco-100k-v2", ("▁não", "▁sim")),
        ("mt5", "mt5-base-mmarco-v2", ("▁no", "▁yes")),
        ("mt5", "mt5-13b-mmarco-100k", ("▁false", "▁true")),
        ("mt5", "mt5-3B-mmarco-en-pt", ("▁", "▁true")),
    ],
)
def test_the_answers_are_the_words_that_the_checkpoint_was_trained_with(
    tiny_t5, tiny_mt5, tmp_path, kind, name, pieces
):
    folder = copied(tiny_t5 if kind == "t5" else tiny_mt5, tmp_path, name)
    reranker = MonoT5.from_pretrained(folder)
    known = reranker.answers.tokenizer.get_vocab()
    assert (reranker.answers.false, reranker.answers.true) == tuple(known[p] for p in pieces)
    (expected,) = reference_chances(folder, mono_prompts(TEXTS[:1]), pieces)
    assert reranker.score(QUERY, passages_of(TEXTS[:1])) == pytest.approx([math.log(expected)], abs=1e-5)


def test_a_vocabulary_without_the_words_is_refused(tiny_t5, tmp_path):
    folder = copied(tiny_t5, tmp_path, "no-answers")
    t5_tokenizer(answers=["falsehood", "truth"]).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="no single token for the answer 'false'"):
        MonoT5.from_pretrained(folder)


@pytest.mark.parametrize("family", [MonoT5, DuoT5])
def test_a_model_of_another_kind_is_refused(family, tiny_bert):
    for name in (tiny_bert, "lab-cross-encoder"):
        with pytest.raises(CheckpointError, match=r"is not a T5: .* type t5 or mt5"):
            family.from_pretrained(name)


# only passages are cut


def words_of(answers, text):
    return answers.tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=80)
@given(
    texts=st.lists(st.text(st.sampled_from("ab :.  \n🐈"), max_size=40), min_size=1, max_size=2),
    limit=st.integers(40, 120),
)
def test_the_prompts_own_words_and_the_end_survive_whatever_the_passages_are(answers, texts, limit):
    template = MONO if len(texts) == 1 else DUO
    (row,) = TrueOrFalse(answers.model, answers.tokenizer, max_length=limit).encode(template, "the ferry", [texts])
    whole = answers.tokenizer(template.replace("{query}", "the ferry").replace("{}", "%s") % tuple(texts))["input_ids"]
    assert len(row) == min(len(whole), limit)
    assert row.truncated == (len(whole) > limit)
    assert row.ids == whole or row.truncated
    *before, last = template.replace("{query}", "the ferry").split("{}")
    assert row.ids[: len(words_of(answers, before[0].strip()))] == words_of(answers, before[0].strip())
    assert row.ids[-len(words_of(answers, last)) - 1 :] == [*words_of(answers, last.strip()), 1]
    if len(texts) == 2:
        assert words_of(answers, "Document1")[0] in row.ids


@settings(max_examples=60)
@given(first=st.integers(0, 60), second=st.integers(0, 60), limit=st.integers(17, 90))
def test_two_passages_share_the_room_and_what_one_leaves_goes_to_the_other(answers, first, second, limit):
    tram, bus = words_of(answers, "tram"), words_of(answers, "bus")
    asked = TrueOrFalse(answers.model, answers.tokenizer, max_length=limit)
    (row,) = asked.encode(DUO, "ferry", [("tram " * first, "bus " * second)])
    fixed = len(words_of(answers, "Query: ferry Document0: Document1: Relevant:")) + 1
    room = limit - fixed
    kept = [row.ids.count(tram[0]), row.ids.count(bus[0])]
    assert sum(kept) == min(room, first + second)
    assert kept[0] == first or kept[0] >= room // 2
    assert kept[1] == second or kept[1] >= room // 2
    expected = [
        *words_of(answers, "Query: ferry Document0:"), *tram * kept[0], *words_of(answers, "Document1:"),
        *bus * kept[1], *words_of(answers, "Relevant:"), 1,
    ]  # fmt: skip
    assert row.ids == expected


def test_cuts_and_tokens_are_counted(answers):
    short = TrueOrFalse(answers.model, answers.tokenizer, max_length=24)
    usage = MonoT5(short).rerank("the ferry", candidates_from(["tram", "tram " * 99, "bus " * 99])).usage
    (whole,) = short.encode(MONO, "the ferry", [("tram",)])
    assert (usage.pairs, usage.calls, usage.truncated, usage.input_tokens) == (3, 1, 2, len(whole) + 48)


@pytest.mark.parametrize("family", [MonoT5, DuoT5])
def test_a_query_that_leaves_no_room_is_refused_with_both_numbers(family, answers):
    reranker = family(TrueOrFalse(answers.model, answers.tokenizer, max_length=24))
    with pytest.raises(InputError, match=r"the prompt take \d\d of the model's 24 tokens.*shorten the query"):
        reranker.rerank("ferry " * 30, candidates_from(["the tram", "the bus"]))


@pytest.mark.parametrize("max_length", [7, 513])
def test_a_max_length_that_the_models_are_not_made_for_is_refused(tiny_t5, max_length):
    with pytest.raises(InputError, match=rf"max_length is {max_length}: give 8 to 512"):
        MonoT5.from_pretrained(tiny_t5, max_length=max_length)


# aggregation

chances = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.floats(0.001, 0.999), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(p=chances)
def test_the_four_aggregations_are_their_formulas(p):
    n = len(p)
    for how in AGGREGATIONS:
        expected = [0.0] * n
        for i in range(n):
            for j in range(n):
                if i != j and how == "sum":
                    expected[i] += p[i][j]
                if i != j and how == "log-sum":
                    expected[i] += math.log(p[i][j])
                if i != j and how == "sym-sum":
                    expected[i] += p[i][j] + (1 - p[j][i])
                if i != j and how == "sym-log-sum":
                    expected[i] += math.log(p[i][j]) + math.log(1 - p[j][i])
        assert aggregate(p, how) == pytest.approx(expected, abs=1e-9)


@given(p=chances, seed=st.integers(0, 99))
def test_an_aggregate_does_not_depend_on_the_order_of_the_passages_at_all(p, seed):
    order = random.Random(seed).sample(range(len(p)), len(p))
    shuffled = [[p[i][j] for j in order] for i in order]
    for how in AGGREGATIONS:
        scores = aggregate(p, how)
        assert aggregate(shuffled, how) == [scores[i] for i in order]


def test_chances_of_nought_and_one_have_finite_scores():
    for how in AGGREGATIONS:
        assert all(math.isfinite(score) for score in aggregate([[0.5, 0.0], [1.0, 0.5]], how))


def test_a_wrong_aggregation_or_depth_is_refused(answers):
    with pytest.raises(InputError, match="aggregation 'max' is unknown: give sum, log-sum, sym-sum, sym-log-sum"):
        DuoT5(answers, how="max")
    with pytest.raises(InputError, match=r"depth is 1: .* at least 2"):
        DuoT5(answers, depth=1)


# two by two


def test_the_order_of_the_candidates_does_not_change_the_scores_of_a_duel_of_all(duo, candidates):
    shuffled = random.Random(3).sample(candidates, len(candidates))
    expected = duo.rerank(QUERY, candidates)
    assert duo.rerank(QUERY, shuffled).to_run() == pytest.approx(expected.to_run(), abs=1e-5)
    assert sorted(c.first_rank for c in expected) == list(range(1, len(candidates) + 1))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_the_passes_foretold_are_the_pairs_asked_and_the_prompts_read(counting, n):
    usage = Usage()
    duo = DuoT5(counting, depth=5)
    duo.matrix(QUERY, passages_of(TEXTS[:n]), usage)
    assert duo.passes(n) == n * (n - 1) == usage.pairs == len(counting.asked) == len(set(counting.asked))


def test_only_candidates_within_the_depth_are_compared_and_the_rest_stay_behind_in_order(counting, candidates):
    duo = DuoT5(counting, depth=3)
    ranking = duo.rerank(QUERY, candidates)
    assert duo.passes(len(candidates)) == 6 == ranking.usage.pairs == len(counting.asked)
    assert {c.pid for c in ranking[:3]} == {"p0", "p1", "p2"}
    assert [c.pid for c in ranking[3:]] == ["p3", "p4", "p5", "p6"]
    scores = [c.score for c in ranking]
    assert all(better > worse for better, worse in pairwise(scores[2:]))
    assert scores[0] >= scores[1] >= scores[2]
    assert duo.passes(50) == 6
    assert DuoT5(counting).passes(50) == DuoT5(counting).passes(1000) == 2450


def test_mono_chooses_whom_duo_compares(mono, answers, candidates):
    chosen = mono.rerank(QUERY, candidates)
    ranking = DuoT5(answers, mono=mono, depth=3).rerank(QUERY, candidates)
    assert {c.pid for c in ranking[:3]} == {c.pid for c in chosen[:3]} != {"p0", "p1", "p2"}
    assert [c.pid for c in ranking[3:]] == [c.pid for c in chosen[3:]]
    compared = [c.passage for c in chosen[:3]]
    expected = dict(zip([p.pid for p in compared], aggregate(DuoT5(answers).matrix(QUERY, compared)), strict=True))
    assert {c.pid: c.score for c in ranking[:3]} == pytest.approx(expected, abs=1e-5)
    assert {c.pid: c.first_rank for c in ranking} == {c.pid: c.rank for c in candidates}
    assert ranking.usage.pairs == len(candidates) + 6
    assert ranking.usage.input_tokens > chosen.usage.input_tokens


@pytest.mark.parametrize("family", [MonoT5, DuoT5])
def test_copies_of_a_text_keep_the_first_stages_order_and_are_read_once(family, counting):
    doubled = candidates_from([Passage(f"{name}{i}", text) for i, text in enumerate(TEXTS[:3]) for name in "zya"])
    ranking = family(counting).rerank(QUERY, doubled)
    for i in range(3):
        same = [c for c in ranking if c.pid.endswith(str(i))]
        assert [c.pid for c in same] == [f"z{i}", f"y{i}", f"a{i}"]
        assert len({c.score for c in same}) == 1
    assert len(counting.asked) == len(set(counting.asked)) == (3 if family is MonoT5 else 9)


@pytest.mark.parametrize("family", [MonoT5, DuoT5])
def test_top_k_gives_the_best_of_the_whole_order_also_of_few_candidates(family, answers, candidates):
    reranker = family(answers)
    whole = reranker.rerank(QUERY, candidates)
    for top_k in (1, 4, 99):
        assert [c.pid for c in reranker.rerank(QUERY, candidates, top_k=top_k)] == [c.pid for c in whole][:top_k]
    assert list(reranker.rerank(QUERY, [])) == []
    (only,) = reranker.rerank(QUERY, candidates[4:5])
    assert (only.pid, only.rank, only.first_rank) == ("p4", 1, 5)


def test_a_second_run_asks_nothing_and_mono_and_duo_keep_apart(counting, candidates, tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    found = []
    for _ in range(2):
        counting.asked.clear()
        mono = MonoT5(counting, cache=cache)
        ranking = DuoT5(counting, mono=mono, cache=cache).rerank(QUERY, candidates)
        found.append((ranking.to_run(), ranking.usage.cached, len(counting.asked)))
    other = DuoT5(TrueOrFalse(counting.model, counting.tokenizer, max_length=200), cache=cache)
    assert other.rerank(QUERY, candidates).usage.cached == 0
    cache.close()
    n = len(candidates)
    assert [(cached, asked) for _, cached, asked in found] == [(0, n * n), (n * n, 0)]
    assert found[0][0] == found[1][0]
