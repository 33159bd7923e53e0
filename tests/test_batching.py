"""Batches keep the budget and lose nothing; only passages are cut, and exactly as transformers cuts them."""

from itertools import pairwise

import pytest
import torch
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab.batching import (
    TOKEN_BUDGET,
    Encoded,
    encode_pairs,
    encode_template,
    encode_texts,
    pad,
    progress_bar,
    score_in_batches,
    token_budget_batches,
)
from rerank_lab.checkpoints import load_tokenizer, resolve
from rerank_lab.core import InputError, Usage

lengths = st.lists(st.integers(1, 600), max_size=80)
texts = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def tokenizers(tiny_classifiers):
    return [load_tokenizer(resolve(folder)) for folder in tiny_classifiers.values()]


@given(lengths=lengths, budget=st.integers(1, 5000))
def test_every_index_is_in_one_batch_and_every_batch_keeps_the_budget(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths=lengths, budget=st.integers(1, 5000))
def test_batches_are_sorted_and_no_batch_had_room_for_the_next_text(lengths, budget):
    batches = token_budget_batches(lengths, budget)
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch, after in pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > budget
        assert lengths[after[0]] <= lengths[batch[-1]]


@settings(max_examples=40)
@given(
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), text=texts, limit=st.integers(8, 64)
)
def test_pairs_are_cut_as_transformers_cuts_only_the_second(tokenizers, query, text, limit):
    for tokenizer in tokenizers:
        # as batches of one, for a single empty text_pair is taken for none
        (whole,) = tokenizer([query], [text], verbose=False)["input_ids"]
        reserved = len(tokenizer([query], [""], verbose=False)["input_ids"][0])  # the query and all special tokens
        if len(whole) > limit and reserved >= limit:
            with pytest.raises(InputError, match=rf"of the model's {limit} tokens"):
                encode_pairs(tokenizer, query, [text], limit)
            continue
        (pair,) = encode_pairs(tokenizer, query, [text], limit)
        expected = tokenizer([query], [text], truncation="only_second", max_length=limit)
        assert pair.ids == expected["input_ids"][0]
        assert pair.truncated == (len(whole) > limit)
        assert len(pair) == len(pair.segments) == min(len(whole), limit)
        if "token_type_ids" in expected:
            assert pair.segments == expected["token_type_ids"][0]


def test_cutting_keeps_the_query_and_the_special_tokens(tokenizers):
    for tokenizer in tokenizers:
        query_ids = tokenizer("the ferry", add_special_tokens=False)["input_ids"]
        whole, cut = (encode_pairs(tokenizer, "the ferry", ["tram " * 40], n)[0] for n in (1000, 24))
        special = [i for i in whole.ids if i in tokenizer.all_special_ids]
        assert (whole.truncated, cut.truncated, len(cut)) == (False, True, 24)
        assert cut.ids[1 : 1 + len(query_ids)] == query_ids
        assert [i for i in cut.ids if i in tokenizer.all_special_ids] == special
        assert cut.ids[-1] == whole.ids[-1]
        assert cut.ids[:20] == whole.ids[:20]


def test_a_pair_that_just_fits_is_not_cut(tokenizers):
    for tokenizer in tokenizers:
        (whole,) = encode_pairs(tokenizer, "the ferry", ["tram is late"], 1000)
        (fits,), (cut,) = (encode_pairs(tokenizer, "the ferry", ["tram is late"], len(whole) - n) for n in (0, 1))
        assert (fits, cut.truncated) == (whole, True)


@settings(max_examples=40)
@given(some=st.lists(texts, max_size=5), limit=st.integers(3, 40))
def test_single_texts_are_cut_as_transformers_cuts_them(tokenizers, some, limit):
    for tokenizer in tokenizers:
        encoded = encode_texts(tokenizer, some, limit)
        assert [e.ids for e in encoded] == [tokenizer(t, truncation=True, max_length=limit)["input_ids"] for t in some]
        assert [e.truncated for e in encoded] == [len(tokenizer(t, verbose=False)["input_ids"]) > limit for t in some]
        assert all(set(e.segments) == {0} for e in encoded)


PROMPT = "the query: {query} passage {} ticket:"


def end_of_prompt(tokenizer):
    """How many tokens follow the passage of PROMPT, and the words among them."""
    (words,) = tokenizer([" ticket:"], add_special_tokens=False)["input_ids"]
    return len(words) + len(tokenizer("")["input_ids"]) // 2, words


@settings(max_examples=30)
@given(prompts=st.lists(texts.filter(bool), max_size=3), limit=st.integers(60, 120))
def test_prompts_are_cut_only_at_the_end_of_their_passages(tokenizers, prompts, limit):
    for tokenizer in tokenizers:
        rows = encode_template(tokenizer, PROMPT, "dog {} {query}", [(text,) for text in prompts], limit)
        assert len(rows) == len(prompts)
        end, _ = end_of_prompt(tokenizer)
        for row, text in zip(rows, prompts, strict=True):
            (whole,) = tokenizer([f"the query: dog {{}} {{query}} passage {text} ticket:"], verbose=False)["input_ids"]
            assert row.truncated == (len(whole) > limit)
            assert row.ids == (whole[: limit - end] + whole[-end:] if row.truncated else whole)
            assert len(row.segments) == len(row)
            passage = sum(row.segments)
            assert passage > 0
            assert row.segments == [0] * (len(row) - end - passage) + [1] * passage + [0] * end


@pytest.mark.parametrize("text", ["tram " * 30, "tram tram \n ", " ", ""])
def test_spaces_at_the_end_of_a_passage_do_not_give_the_next_word_to_it(tokenizers, text):
    for tokenizer in tokenizers:
        (row,) = encode_template(tokenizer, PROMPT, "dog", [(text,)], 34)
        end, words = end_of_prompt(tokenizer)
        assert row.ids[-end:][: len(words)] == words
        assert not any(row.segments[-end:])


def test_a_prompt_that_just_fits_is_not_cut_and_an_empty_passage_needs_no_room(tokenizers):
    for tokenizer in tokenizers:
        for passages in (("tram is late",), ("",)):
            (whole,) = encode_template(tokenizer, PROMPT, "dog", [passages], 1000)
            assert encode_template(tokenizer, PROMPT, "dog", [passages], len(whole)) == [whole]
        with pytest.raises(InputError, match=rf"take {len(whole)} of the model's {len(whole) - 1} tokens"):
            encode_template(tokenizer, PROMPT, "dog", [("",)], len(whole) - 1)
        (row,) = encode_template(tokenizer, PROMPT, "dog", [("tram",)], 1000)
        with pytest.raises(InputError, match=r"leave none for a passage: shorten the query or raise max_length"):
            encode_template(tokenizer, PROMPT, "dog", [("tram",)], row.segments.count(0))


@given(sizes=st.lists(st.integers(1, 900), max_size=40))
def test_scores_come_back_in_the_rows_order_and_their_cost_is_counted(sizes):
    rows = [Encoded([i] * size, [0] * size, truncated=i % 3 == 0) for i, size in enumerate(sizes)]
    usage, batches = Usage(calls=2), []

    def forward(batch):
        batches.append(batch)
        return torch.tensor([row.ids[0] + 0.5 for row in batch], dtype=torch.float64)

    assert score_in_batches(rows, forward, usage) == [i + 0.5 for i in range(len(rows))]
    assert usage == Usage(
        calls=2 + len(batches), input_tokens=sum(sizes), truncated=sum(i % 3 == 0 for i in range(len(rows)))
    )
    assert all(len(b) == 1 or len(b) * max(map(len, b)) <= TOKEN_BUDGET for b in batches)


@given(rows=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6))
def test_the_mask_gives_the_rows_back(rows):
    ids, mask = pad(rows, value=0)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == rows
    assert torch.all(ids[mask == 0] == 0)


def test_progress_goes_to_standard_error_or_nowhere(capsys):
    assert list(progress_bar([1, 2], "working", show=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(progress_bar([1, 2], "working", show=True)) == [1, 2]
    assert capsys.readouterr().out == ""
