"""Throughput side by side in one run: ratios, for seconds depend on the machine. Run: make bench."""

from time import perf_counter

import pytest
import torch
from sentence_transformers import CrossEncoder as ReferenceCrossEncoder
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rerank_lab import BiEncoder, CrossEncoder, Passage, read_collection, resolve

QUERY = "which tickets are refused after dark?"


@pytest.fixture(scope="module")
def texts():
    """Lab passages of very different lengths: one to three in a row."""
    passages = [p.text for p in read_collection("lab").passages.values()]
    return [" ".join(passages[i : i + 1 + i % 3]) for i in range(400)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A one-logit classifier of MiniLM's size with random weights: speed does not depend on them."""
    folder = tmp_path_factory.mktemp("classifier")
    path = resolve("all-MiniLM-L6-v2").path
    config = BertConfig.from_pretrained(path, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return folder


def pairs_per_second(score, texts):
    score(texts[:40])
    start = perf_counter()
    score(texts)
    return len(texts) / (perf_counter() - start)


def test_cross_encoder_against_sentence_transformers(classifier, texts):
    ours = CrossEncoder.from_pretrained(str(classifier))
    theirs = ReferenceCrossEncoder(str(classifier), max_length=512, device="cpu")
    a = pairs_per_second(lambda t: ours.score(QUERY, [Passage(str(i), x) for i, x in enumerate(t)]), texts)
    b = pairs_per_second(lambda t: theirs.predict([(QUERY, x) for x in t], show_progress_bar=False), texts)
    print(f"cross-encoder fp32: {a:.0f} pairs/s, sentence-transformers {b:.0f}, ratio {a / b:.2f}")


@pytest.mark.parametrize("make", [CrossEncoder, BiEncoder])
def test_bfloat16_against_float32(make, texts):
    passages = [Passage(str(i), x) for i, x in enumerate(texts)]
    scores, speeds = [], []
    for dtype in ("float32", "bfloat16"):
        model = make.from_pretrained(dtype=dtype)
        speeds.append(pairs_per_second(lambda t, m=model: m.score(QUERY, passages[: len(t)]), texts))
        scores.append(model.score(QUERY, passages))
    correlation = torch.corrcoef(torch.tensor(scores))[0, 1].item()
    print(f"{make.__name__} bf16 / fp32: {speeds[1] / speeds[0]:.2f} times as fast, correlation {correlation:.5f}")
    assert correlation > 0.999
