"""The bi-encoder against SentenceTransformer, and exact search."""

import json

import pytest
import torch
from conftest import LONG, QUERY, TEXTS, lora_folder

from rerank_lab import BiEncoder, DenseIndex, Passage, Usage, mean_pool
from rerank_lab.checkpoints import adapted, resolve
from rerank_lab.core import CheckpointError, InputError


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return BiEncoder.from_pretrained(tiny_encoder)


def reference(folder, texts, max_length):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")  # a bare encoder gets mean pooling
    model.max_seq_length = max_length
    return model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)


def test_vectors_equal_sentence_transformers_also_where_texts_are_cut(encoder, tiny_encoder):
    texts = [*TEXTS, LONG]
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 32)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, reference(tiny_encoder, texts, 256), atol=1e-5, rtol=0)


def test_vectors_have_length_one_and_differ(encoder):
    vectors = encoder.encode(TEXTS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))
    assert (vectors @ vectors.T).fill_diagonal_(0).max() < 0.999


def test_texts_are_cut_at_256_tokens_and_counted(encoder):
    usage = Usage()
    (long, short), (head,) = encoder.encode([LONG, "tram"], usage), encoder.encode([" ".join(LONG.split()[:254])])
    assert (usage.truncated, usage.input_tokens) == (1, 256 + 3)
    torch.testing.assert_close(long, head, atol=1e-5, rtol=0)
    assert not torch.allclose(long, short)


@pytest.mark.parametrize("max_length", [301, 2, 0])
def test_a_max_length_that_the_model_cannot_take_is_refused(tiny_encoder, max_length):
    with pytest.raises(InputError, match=rf"max_length is {max_length}"):
        BiEncoder.from_pretrained(tiny_encoder, max_length=max_length)


def test_a_model_that_takes_less_than_256_tokens_cuts_at_what_it_takes(tiny_bert):
    usage = Usage()
    BiEncoder.from_pretrained(tiny_bert).encode([LONG], usage)
    assert (usage.input_tokens, usage.truncated) == (64, 1)


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 32)


def test_scores_are_cosines(encoder):
    query, *vectors = encoder.encode([QUERY, *TEXTS])
    expected = torch.stack([torch.cosine_similarity(query, v, dim=0) for v in vectors])
    scores = encoder.score(QUERY, [Passage("", t) for t in TEXTS])
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


def test_the_mean_ignores_padding_whatever_it_holds():
    states = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    pooled = mean_pool(states, mask)
    states[0, 2] = 1e6
    assert torch.equal(mean_pool(states, mask), pooled)
    expected = torch.nn.functional.normalize(states[0, :2].mean(0), dim=0)
    torch.testing.assert_close(pooled[0], expected)


def test_search_finds_what_sorting_all_cosines_finds(encoder):
    index = DenseIndex(encoder, [Passage(f"p{i}", t) for i, t in enumerate(TEXTS)])
    scores = encoder.score(QUERY, index.passages)
    expected = sorted(range(len(TEXTS)), key=lambda i: -scores[i])
    found = index.search(QUERY, 4)
    assert [c.pid for c in found] == [f"p{i}" for i in expected[:4]]
    assert [c.score for c in found] == pytest.approx([scores[i] for i in expected[:4]], abs=1e-5)
    assert [c.rank for c in found] == [1, 2, 3, 4]


def test_search_breaks_ties_by_place_and_gives_no_more_than_there_is(encoder):
    index = DenseIndex(encoder, [Passage(pid, "the tram is late") for pid in "cab"])
    assert [c.pid for c in index.search(QUERY, 10)] == ["c", "a", "b"]
    assert [c.pid for c in index.search(QUERY, 2)] == ["c", "a"]


def test_a_text_finds_itself(encoder):
    index = DenseIndex(encoder, [Passage(str(i), t) for i, t in enumerate(TEXTS)])
    for i, text in enumerate(TEXTS):
        (best,) = index.search(text, 1)
        assert best.pid == str(i)
        assert best.score == pytest.approx(1, abs=1e-5)


def test_the_pretrained_model_knows_what_words_mean():
    encoder = BiEncoder.from_pretrained()
    passages = [Passage("far", "A recipe for onion soup."), Passage("near", "The boat departs at midnight.")]
    far, near = encoder.score("when does the ship leave?", passages)
    assert near > far + 0.2
    assert encoder.max_length == 256


@pytest.fixture
def adapter(tiny_encoder, tmp_path):
    """A folder with a random LoRA adapter for `tiny_encoder`."""
    lora_folder(tmp_path / "adapter", tiny_encoder)
    return tmp_path / "adapter"


def test_an_adapters_vectors_are_those_of_peft(adapter, tiny_encoder, encoder):
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    reference = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_encoder), adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = mean_pool(reference(**batch).last_hidden_state, batch["attention_mask"])
    adapted_encoder = BiEncoder.from_pretrained(str(adapter))
    vectors = adapted_encoder.encode(TEXTS)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert (vectors - encoder.encode(TEXTS)).abs().max() > 0.05
    assert adapted_encoder.max_length == 256
    assert adapted_encoder.cache_key != encoder.cache_key


def test_the_backbone_of_an_adapter_is_the_one_that_it_names(adapter, tiny_encoder, tmp_path):
    assert adapted(resolve(tiny_encoder)) is None
    assert adapted(resolve(str(adapter))) == resolve(tiny_encoder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"adapter_config\.json is damaged"),
        ("[]", r"adapter_config\.json is damaged"),
        ("{}", r"adapter_config\.json is damaged .*base_model_name_or_path"),
        (json.dumps({"base_model_name_or_path": "no-such-model"}), "model 'no-such-model' was not found"),
    ],
)
def test_an_adapter_that_names_no_backbone_is_refused(adapter, content, message):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        BiEncoder.from_pretrained(str(adapter))
