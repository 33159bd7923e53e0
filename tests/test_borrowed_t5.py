"""The lab's own T5: the backbone below, a T5 layer and a decoder above, and a checkpoint that holds only the latter."""

import json
import logging
import shutil

import pytest
import torch
from conftest import QUERY, TEXTS, lora_folder
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab import Passage, checkpoints
from rerank_lab.core import CheckpointError
from rerank_lab.rerankers.borrowed_t5 import assemble, of_its_own, sides
from rerank_lab.rerankers.monot5 import DUO, MONO, MonoT5, TrueOrFalse


@pytest.fixture(scope="module")
def made(backbone, tmp_path_factory):
    """A folder in the lab's layout, and the T5 that it was made of, its backbone moved by an adapter."""
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer, T5Config

    folder = tmp_path_factory.mktemp("weights") / "lab-t5"
    moved = lora_folder(folder, backbone)
    bert, tokenizer = AutoModel.from_pretrained(backbone).eval(), AutoTokenizer.from_pretrained(backbone)
    with torch.no_grad():
        for name, delta in moved.items():
            bert.get_submodule(name).weight += delta
    torch.manual_seed(8)
    config = T5Config(
        architectures=["T5ForConditionalGeneration"],
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        num_heads=2,
        d_ff=64,
        num_layers=1,
        num_decoder_layers=1,
        decoder_start_token_id=tokenizer.cls_token_id,
        embeddings_scale=2.0,
    )
    model = assemble(config, bert, tokenizer).eval()
    with torch.no_grad():
        for weight in of_its_own(model).values():
            weight.normal_(std=0.3)
    config.save_pretrained(folder)
    save_file({k: v.half().contiguous() for k, v in of_its_own(model).items()}, folder / "model.safetensors")
    return folder, TrueOrFalse(model, tokenizer)


@pytest.fixture
def lab_t5(made, tmp_path):
    """A copy of the folder, to be broken."""
    return shutil.copytree(made[0], tmp_path / "lab-t5")


def passages_of(texts):
    return [Passage(f"p{i}", text) for i, text in enumerate(texts)]


# the sides of a prompt


@given(st.lists(st.lists(st.sampled_from([5, 6, 9, 1, 2]), min_size=12, max_size=12), min_size=1, max_size=3))
def test_a_side_begins_where_the_mark_is_followed_by_one_of_its_ends(rows):
    rows = [[*row, 5] for row in rows]  # what stands last is [SEP] or padding, never the mark
    expected = []
    for row in rows:
        side, found = 1, []
        for place, token in enumerate(row):
            if place + 1 < len(row) and token == 9 and row[place + 1] in (1, 2):
                side = min(side + 1, 3)
            found.append(0 if place == 0 else side)
        expected.append(found)
    assert sides(torch.tensor(rows), 9, torch.tensor([1, 2])).tolist() == expected


@pytest.mark.parametrize(("template", "texts"), [(MONO, ("the document is late",)), (DUO, ("a tram", "a bus leaves"))])
def test_query_and_passages_of_a_prompt_are_on_sides_of_their_own(made, template, texts):
    answers = made[1]
    (row,) = answers.encode(template, "when does it leave", [texts])
    encoder = answers.model.encoder
    side = sides(torch.tensor([row.ids]), encoder.mark, encoder.follows)[0].tolist()
    words = [[], [], [], []]
    for token, where in zip(row.ids, side, strict=True):
        words[where].append(token)
    spoken = [answers.tokenizer.decode(part).replace(" ##", "") for part in words]
    assert spoken[0] == "[CLS]"
    assert spoken[1].endswith("when does it leave")
    for text, said in zip(texts, spoken[2:], strict=False):
        assert said.startswith("document") and text in said


def test_the_encoder_is_the_backbones_states_scaled_their_sides_added_and_t5_layers_above(made):
    answers = made[1]
    (row,) = answers.encode(DUO, QUERY, [("a tram", "a bus leaves")])
    ids, mask = torch.tensor([row.ids]), torch.ones(1, len(row), dtype=torch.long)
    encoder = answers.model.encoder
    with torch.no_grad():
        states = encoder.bert(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        side = sides(ids, encoder.mark, encoder.follows)[0].tolist()
        below = torch.stack(
            [x / x.square().mean().sqrt() + encoder.side.weight[s] for x, s in zip(states, side, strict=True)]
        )
        expected = encoder.layers(inputs_embeds=below[None], attention_mask=mask).last_hidden_state
        got = answers.forward([row])[1]
    assert {1, 2, 3} <= set(side)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_padding_is_not_attended_to(made):
    answers = made[1]
    rows = answers.encode(MONO, QUERY, [(text,) for text in TEXTS])
    with torch.no_grad():
        together = answers.log_odds(rows)
        alone = torch.cat([answers.log_odds([row]) for row in rows])
    assert together.std() > 1e-3  # ten times what is tolerated below
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


# the checkpoint


def test_a_checkpoint_stores_neither_the_backbone_nor_the_word_vectors(made):
    model = made[1].model
    own = of_its_own(model)
    parts = {tuple(name.split(".")[:2]) for name in own}
    assert parts == {("encoder", "side"), ("encoder", "layers"), ("decoder", "block"), ("decoder", "final_layer_norm")}
    lent = {p.data_ptr() for p in (*model.encoder.bert.parameters(), model.shared.weight)}
    assert lent.isdisjoint(weight.data_ptr() for weight in own.values())
    rest = set(model.state_dict()) - set(own)
    assert all(n.startswith(("encoder.bert.", "shared.", "lm_head.")) or "embed_tokens" in n for n in rest)


@pytest.fixture
def log_of_transformers():
    """What transformers logs while it is not told to be quiet."""
    from transformers.utils import logging as theirs

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    before = theirs.get_verbosity()
    theirs.set_verbosity_warning()
    theirs.add_handler(handler)
    yield records
    theirs.remove_handler(handler)
    theirs.set_verbosity(before)


def test_the_labs_own_t5_borrows_its_words_quietly_and_scores_as_the_model_that_it_was_made_of(
    made, backbone, log_of_transformers, capfd
):
    from transformers import AutoModel

    folder, made_of = made
    log_of_transformers.clear()
    loaded = MonoT5.from_pretrained(str(folder))
    assert [r.getMessage() for r in log_of_transformers] == []
    assert capfd.readouterr() == ("", "")

    words = AutoModel.from_pretrained(backbone).get_input_embeddings().weight
    t5 = loaded.answers.model
    for layer in (t5.shared, t5.encoder.layers.embed_tokens, t5.decoder.embed_tokens, t5.lm_head):
        assert torch.equal(layer.weight, 2 * words)  # by embeddings_scale
    assert t5.lm_head.weight.data_ptr() == t5.shared.weight.data_ptr()
    expected = MonoT5(made_of).score(QUERY, passages_of(TEXTS))
    assert torch.tensor(expected).std() > 1e-3
    assert loaded.score(QUERY, passages_of(TEXTS)) == pytest.approx(expected, abs=5e-4)  # stored in float16


def test_without_the_adapter_the_scores_would_be_others(made, lab_t5):
    from safetensors.torch import load_file, save_file

    adapter = load_file(lab_t5 / "adapter_model.safetensors")
    save_file({k: torch.zeros_like(v) for k, v in adapter.items()}, lab_t5 / "adapter_model.safetensors")
    scores = [MonoT5.from_pretrained(str(f)).score(QUERY, passages_of(TEXTS)) for f in (made[0], lab_t5)]
    assert max(abs(a - b) for a, b in zip(*scores, strict=True)) > 1e-3


def test_a_bundled_t5_is_found_by_its_short_name(lab_t5, monkeypatch):
    monkeypatch.setattr(checkpoints, "WEIGHTS", lab_t5.parent)
    found = checkpoints.resolve("lab-t5")
    assert (found.path, found.source) == (lab_t5, "bundled with rerank_lab")


def without_a_norm(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "decoder.final_layer_norm.weight"}, folder / "model.safetensors"
    )


def of_another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_model": 16}))


def cut_short(folder):
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (without_a_norm, r"lacks the weights \['decoder\.final_layer_norm\.weight'\]"),
        (of_another_width, "damaged, missing or does not fit its backbone"),
        (cut_short, "damaged, missing or does not fit its backbone"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "damaged, missing or does not fit"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), r"adapter_config\.json is damaged"),
    ],
)
def test_a_t5_that_lacks_weights_or_does_not_fit_its_backbone_is_refused(lab_t5, broken, message):
    broken(lab_t5)
    with pytest.raises(CheckpointError, match=message):
        MonoT5.from_pretrained(str(lab_t5))
