"""The lab's own cross-encoder: the gate, the adapter, the head, and the checkpoint that is bundled."""

import json

import pytest
import torch
from conftest import QUERY, TEXTS

from rerank_lab import BiEncoder, CrossEncoder, Passage, known_models
from rerank_lab.batching import encode_texts
from rerank_lab.checkpoints import WEIGHTS, load_model, load_tokenizer, merge_lora, resolve
from rerank_lab.rerankers.gated import GATE_AT_START, GatedCrossEncoder, collate, side_by_side

BUNDLED = WEIGHTS / "lab-cross-encoder"


@pytest.fixture
def gated(tiny_encoder):
    torch.manual_seed(5)
    model = GatedCrossEncoder(load_model("AutoModel", resolve(tiny_encoder), add_pooling_layer=False, device="cpu"))
    with torch.no_grad():
        model.gate.normal_()
        model.cls.weight.normal_()
    return model.eval()


@pytest.fixture
def rows(tiny_encoder):
    tokenizer = load_tokenizer(resolve(tiny_encoder))
    (query,) = encode_texts(tokenizer, [QUERY], 64)
    return [side_by_side(query, p) for p in encode_texts(tokenizer, TEXTS, 64)]


@torch.inference_mode()
def test_with_the_gate_shut_it_is_the_bi_encoder(gated, rows, tiny_encoder):
    gated.gate.fill_(-1e4)
    gated.weights.copy_(torch.tensor([1.0, 0.0]))
    gated.cls.weight.zero_()
    expected = BiEncoder.from_pretrained(tiny_encoder).score(QUERY, [Passage("", t) for t in TEXTS])
    torch.testing.assert_close(gated(**collate(rows)), torch.tensor(expected), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_with_the_gate_open_the_sides_see_each_other(gated, rows):
    states = []
    for gate in (-1e4, 0.0):
        gated.gate.fill_(gate)
        states.append([gated.states(**collate([row]))[0, : row.segments.index(1)] for row in rows[:2]])
    shut, open_ = states
    torch.testing.assert_close(shut[0], shut[1], atol=1e-5, rtol=0)  # the query's states, whatever the passage
    assert (open_[0] - open_[1]).abs().max() > 1e-2


@torch.inference_mode()
def test_padding_does_not_change_scores(gated, rows):
    together = gated(**collate(rows))
    alone = torch.cat([gated(**collate([row])) for row in rows])
    assert together.std() > 1e-2
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_reading_is_its_equation(gated, rows):
    """score = a cos(mean, mean) + b mean over query tokens of MaxSim + w . [CLS] + c, written as loops."""
    batch = collate(rows)
    states = gated.states(**batch)
    expected = []
    for row, of_row in zip(rows, states, strict=True):
        start = row.segments.index(1)
        query, passage = of_row[:start], of_row[start : len(row)]
        cosine = torch.cosine_similarity(query.mean(0), passage.mean(0), dim=0)
        maxsim = sum(max(torch.cosine_similarity(q, p, dim=0) for p in passage) for q in query) / len(query)
        linear = gated.cls.weight[0] @ of_row[0] + gated.cls.bias[0]
        expected.append(gated.weights[0] * cosine + gated.weights[1] * maxsim + linear)
    torch.testing.assert_close(gated.read(states, batch["segments"]), torch.stack(expected), atol=1e-4, rtol=1e-5)


def test_side_by_side_and_collate_tell_the_sides_from_the_padding(rows):
    short, long = rows[2], rows[0]
    batch = collate([short, long])
    assert batch["ids"].shape == batch["segments"].shape == (2, len(long))
    assert batch["segments"][0].tolist() == short.segments + [-1] * (len(long) - len(short))
    assert batch["segments"][1].tolist() == long.segments
    assert set(long.segments) == {0, 1}


def test_training_starts_with_the_gate_half_shut(tiny_encoder):
    model = GatedCrossEncoder(load_model("AutoModel", resolve(tiny_encoder), add_pooling_layer=False, device="cpu"))
    assert model.gate.shape == (2, 2)
    assert torch.all(model.gate == GATE_AT_START)
    assert not model.cls.weight.any()


def test_merging_the_adapter_equals_pefts_merge_and_unload(tiny_encoder, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def backbone():
        return load_model("AutoModel", resolve(tiny_encoder), add_pooling_layer=False, device="cpu")

    torch.manual_seed(6)
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules="all-linear",
        init_lora_weights=False,
        base_model_name_or_path=tiny_encoder,
    )
    get_peft_model(backbone(), config).save_pretrained(tmp_path)
    expected = PeftModel.from_pretrained(backbone(), tmp_path).merge_and_unload().state_dict()

    before, merged = backbone().state_dict(), backbone()
    merge_lora(merged, tmp_path)

    changed = [k for k, v in merged.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == 2 * 6  # query, key, value and three dense layers in each of two layers
    assert merged.state_dict().keys() == expected.keys()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0, msg=name)


def test_the_head_survives_saving_and_loading(gated, tiny_encoder, tmp_path):
    from safetensors.torch import save_file

    head = {k: v.detach().clone() for k, v in gated.head_state().items()}
    assert set(head) == {"gate", "weights", "cls.weight", "cls.bias"}
    save_file(head, tmp_path / "head.safetensors")
    fresh = GatedCrossEncoder(load_model("AutoModel", resolve(tiny_encoder), add_pooling_layer=False, device="cpu"))
    fresh.load_head(tmp_path)
    assert fresh.head_state().keys() == head.keys()
    for name, value in fresh.head_state().items():
        assert torch.equal(value, head[name]), name


def test_the_bundled_checkpoint_is_small_and_safetensors_only():
    files = {p.name for p in BUNDLED.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"} <= files
    assert {p.suffix for p in BUNDLED.iterdir()} <= {".json", ".safetensors", ".md"}
    assert sum(p.stat().st_size for p in BUNDLED.glob("*.safetensors")) < 3_000_000


def test_the_bundled_checkpoint_names_its_backbone_as_a_known_model():
    base = json.loads((BUNDLED / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base in known_models(), "a path of the machine that trained it is of no use elsewhere"


def test_the_bundled_checkpoint_has_a_trained_head(lab_cross_encoder):
    from safetensors.torch import load_file

    head = load_file(BUNDLED / "head.safetensors")
    assert head["gate"].shape == (6, 12)
    assert head["cls.weight"].any()
    assert not torch.all(head["gate"] == GATE_AT_START)
    assert isinstance(lab_cross_encoder, CrossEncoder)
    assert lab_cross_encoder.name == "lab-cross-encoder"


def test_the_bundled_models_scores_keep_the_sides_apart(lab_cross_encoder):
    """A query that asks who did what to whom is not the same bag of words the other way round."""
    passages = [Passage("", "The dog bit the man."), Passage("", "The man bit the dog.")]
    scores = lab_cross_encoder.score("who was bitten by the dog?", passages)
    assert abs(scores[0] - scores[1]) > 1e-3
