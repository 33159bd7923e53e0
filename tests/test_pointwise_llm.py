"""Qwen3-Reranker's reading against plain transformers: the template, the last token, softmax over yes and no."""

import pytest
import torch
from conftest import LONG, QUERY, TEXTS, byte_pair_tokenizer

from rerank_lab.core import InputError, Passage, candidates_from
from rerank_lab.llm import prompts
from rerank_lab.rerankers.pointwise_llm import Qwen3Reranker


@pytest.fixture(scope="module")
def reranker(tiny_qwen3):
    return Qwen3Reranker.from_pretrained(tiny_qwen3, max_length=1024)


def plain(reranker, query, text):
    """One prompt, unpadded, by the model card's own formula."""
    say = prompts("qwen3")
    prompt = say["template"].replace("{instruction}", say["instruction"]).replace("{query}", query).replace("{}", text)
    ids = reranker.tokenizer(prompt, return_tensors="pt").input_ids
    logits = reranker.model(input_ids=ids).logits[0, -1]
    vocabulary = reranker.tokenizer.get_vocab()
    return torch.log_softmax(logits[[vocabulary["no"], vocabulary["yes"]]], dim=0)[1].exp().item()


@torch.inference_mode()
def test_scores_equal_the_plain_reading_whatever_the_padding(reranker):
    scores = reranker.score(QUERY, [Passage(str(i), text) for i, text in enumerate(TEXTS)])
    expected = [plain(reranker, QUERY, text) for text in TEXTS]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), atol=1e-5, rtol=0)
    assert max(scores) - min(scores) > 1e-3


def test_the_prompt_is_the_model_cards():
    template = prompts("qwen3")["template"]
    assert template.startswith("<|im_start|>system\nJudge whether the Document meets the requirements")
    assert "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {}<|im_end|>\n" in template
    assert template.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_only_the_passage_is_cut_so_that_the_question_survives(reranker):
    usage = reranker.rerank(QUERY, candidates_from([LONG, "tram"])).usage
    assert usage.truncated == 1
    assert usage.input_tokens < 2 * 1024


def test_an_instruction_of_ones_own_changes_the_prompt(tiny_qwen3):
    own = Qwen3Reranker.from_pretrained(tiny_qwen3, instruction="Find the {odd} timetable")
    assert "<Instruct>: Find the {odd} timetable" in own.template


def test_a_vocabulary_without_yes_and_no_is_refused(reranker):
    with pytest.raises(InputError, match="no single tokens for 'yes' and 'no'"):
        Qwen3Reranker(reranker.model, byte_pair_tokenizer())
