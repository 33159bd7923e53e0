"""The classifier reading against sentence-transformers' CrossEncoder, and what `from_pretrained` refuses."""

import pytest
import torch
from conftest import LONG, QUERY, TEXTS

from rerank_lab import CrossEncoder, Passage, ScoreCache, candidates_from
from rerank_lab.core import CheckpointError, InputError

BACKBONES = ["bert", "xlm-roberta", "modernbert"]


def reference_scores(folder, query, texts, max_length):
    from sentence_transformers import CrossEncoder as Reference

    reference = Reference(folder, max_length=max_length, device="cpu", activation_fn=torch.nn.Identity())
    return reference.predict([(query, t) for t in texts], show_progress_bar=False, convert_to_tensor=True).flatten()


def scores(folder, query, texts, **options):
    return torch.tensor(CrossEncoder.from_pretrained(folder, **options).score(query, [Passage("", t) for t in texts]))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("max_length", [64, 40])
def test_raw_logits_equal_sentence_transformers_also_where_passages_are_cut(tiny_classifiers, backbone, max_length):
    folder, texts, query = tiny_classifiers[backbone], [*TEXTS, LONG], "the ferry"
    ours = scores(folder, query, texts, max_length=max_length)
    assert ours.std() > 1e-2, "random weights too small to tell the passages apart"
    torch.testing.assert_close(ours, reference_scores(folder, query, texts, max_length), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_a_max_length_pairs_are_cut_at_what_the_checkpoint_takes(tiny_classifiers, backbone):
    reranker = CrossEncoder.from_pretrained(tiny_classifiers[backbone])
    usage = reranker.rerank("the ferry", candidates_from([LONG, "tram"])).usage
    (pair,) = reranker.encode("the ferry", ["tram"])
    assert usage.truncated == 1
    assert usage.input_tokens == 64 + len(pair)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_token_types_are_passed_only_where_the_tokenizer_knows_them(tiny_classifiers, backbone):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_classifiers[backbone]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(QUERY, TEXTS[0], truncation="only_second", max_length=64, return_tensors="pt")
    assert ("token_type_ids" in inputs) == (backbone == "bert")
    with torch.inference_mode():
        expected = model.eval()(**inputs).logits[0, 0]
        inputs.pop("token_type_ids", None)
        without = model(**inputs).logits[0, 0]
    torch.testing.assert_close(scores(folder, QUERY, TEXTS[:1])[0], expected, atol=1e-5, rtol=0)
    assert (abs(without - expected) > 1e-3) == (backbone == "bert"), "token types should matter to BERT alone"


def test_a_classifier_with_two_labels_is_refused(two_labels):
    with pytest.raises(CheckpointError, match=r"has 2 output labels.*with one"):
        CrossEncoder.from_pretrained(two_labels)


def test_a_model_without_a_classification_head_is_refused(tiny_encoder):
    with pytest.raises(CheckpointError, match="sequence classifier"):
        CrossEncoder.from_pretrained(tiny_encoder)


def test_a_query_that_leaves_no_room_is_refused_with_both_numbers(tiny_bert):
    reranker = CrossEncoder.from_pretrained(tiny_bert, max_length=16)
    with pytest.raises(InputError, match=r"query takes 32 of the model's 16 tokens.*shorten the query"):
        reranker.rerank("ferry " * 30, candidates_from(["the tram is late"]))


def test_a_query_that_leaves_no_room_is_refused_by_the_bundled_model_too(lab_cross_encoder):
    with pytest.raises(InputError, match=r"query takes 102 of the model's 48 tokens.*shorten the query"):
        lab_cross_encoder.rerank("ferry " * 100, candidates_from(["the tram is late"]))


@pytest.mark.parametrize("max_length", [0, 7, 65, -1])
def test_a_max_length_that_the_model_cannot_take_is_refused(tiny_bert, max_length):
    with pytest.raises(InputError, match=rf"max_length is {max_length}: the model takes 8 to 64"):
        CrossEncoder.from_pretrained(tiny_bert, max_length=max_length)


@pytest.mark.parametrize("dtype", ["float64", "fp16", "int8", ""])
def test_an_unknown_dtype_is_refused_with_the_known_ones(tiny_bert, dtype):
    with pytest.raises(InputError, match=rf"dtype is '{dtype}': give .*'bfloat16'"):
        CrossEncoder.from_pretrained(tiny_bert, dtype=dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible")
def test_a_device_that_the_machine_lacks_is_refused(tiny_bert):
    with pytest.raises(InputError, match="device is 'cuda' but no GPU is visible"):
        CrossEncoder.from_pretrained(tiny_bert, device="cuda")


def test_bfloat16_scores_are_near_the_float32_ones_but_not_the_same(tiny_bert):
    full, half = (scores(tiny_bert, QUERY, TEXTS, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    torch.testing.assert_close(half, full, atol=0.1, rtol=0.1)
    assert not torch.equal(half, full)


def test_scores_of_another_precision_or_length_are_not_taken_from_the_cache(tiny_bert, tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    asked = candidates_from(TEXTS)
    cached = []
    for options in ({}, {}, {"max_length": 48}, {"dtype": "bfloat16"}):
        usage = CrossEncoder.from_pretrained(tiny_bert, cache=cache, **options).rerank(QUERY, asked).usage
        cached.append(usage.cached)
    cache.close()
    assert cached == [0, len(TEXTS), 0, 0]


def test_positions_that_start_behind_the_padding_are_not_counted_as_room(tiny_xlm_roberta, tmp_path):
    """RoBERTa's position table has `pad_token_id + 1` rows that no token can use."""
    import json
    import shutil

    folder = tmp_path / "without-a-stated-length"
    shutil.copytree(tiny_xlm_roberta, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    usage = CrossEncoder.from_pretrained(str(folder)).rerank("the ferry", candidates_from([LONG])).usage
    assert usage.input_tokens == 64
