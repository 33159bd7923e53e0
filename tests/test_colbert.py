"""ColBERT against sentence-transformers' MultiVectorEncoder in three layouts of checkpoints, and the traps."""

import json
import shutil
import string
from pathlib import Path

import pytest
import torch
from conftest import LONG, QUERY, SMALL, TEXTS, wordpiece_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rerank_lab import Passage, ScoreCache, candidates_from
from rerank_lab.core import CheckpointError, InputError
from rerank_lab.rerankers.colbert import ColBERT, Format, maxsim, passage_rows, query_row
from rerank_lab.rerankers.colbert_layouts import positions

DIMENSIONS = 16
DENSE = {
    "in_features": 32,
    "out_features": DIMENSIONS,
    "bias": False,
    "activation_function": "torch.nn.modules.linear.Identity",
}
PYLATE = {
    "model_type": "ColBERT",
    "query_prefix": "[unused0]",
    "document_prefix": "[unused1]",
    "query_length": 20,
    "document_length": 40,
    "attend_to_expansion_tokens": False,
    "do_query_expansion": True,
    "skiplist_words": list(string.punctuation),
    "prompts": {},
}
STANFORD = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 20,
    "doc_maxlen": 40,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A random BERT whose vocabulary has two markers, and a random projection."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    tokenizer = wordpiece_tokenizer(max_length=64)
    tokenizer.add_tokens(["[unused0]", "[unused1]"])
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **SMALL))
    folder = tmp_path_factory.mktemp("backbone")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, torch.randn(DIMENSIONS, 32)


@pytest.fixture
def stanford(backbone, tmp_path_factory):
    """Makes a folder as the ColBERT authors write it, with some settings changed."""

    def make(**changes):
        source, weight = backbone
        folder = shutil.copytree(source, tmp_path_factory.mktemp("stanford"), dirs_exist_ok=True)
        weights = {f"bert.{k}": v for k, v in load_file(source / "model.safetensors").items()}
        save_file(weights | {"linear.weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})
        edit(folder / "config.json", architectures=["HF_ColBERT"])
        (folder / "artifact.metadata").write_text(json.dumps(STANFORD | changes))
        return str(folder)

    return make


@pytest.fixture
def pylate(backbone, tmp_path_factory):
    """Makes a folder as PyLate 3 writes it, with some settings changed."""

    def make(dense=(), **changes):
        source, weight = backbone
        folder = shutil.copytree(source, tmp_path_factory.mktemp("pylate"), dirs_exist_ok=True)
        (folder / "1_Dense").mkdir()
        (folder / "1_Dense" / "config.json").write_text(json.dumps(DENSE | dict(dense)))
        save_file({"linear.weight": weight}, folder / "1_Dense" / "model.safetensors")
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 39, "do_lower_case": False}))
        config = {k: v for k, v in (PYLATE | changes).items() if v != "absent"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
        return str(folder)

    return make


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def reference(folder):
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(folder, device="cpu", local_files_only=True)


def assert_as_the_reference(folder, model=None):
    ours, theirs = ColBERT.from_pretrained(folder), model or reference(folder)
    passages = [*TEXTS, LONG]
    query, expected = ours.encode_query(QUERY), theirs.encode_query([QUERY])
    torch.testing.assert_close(query, expected[0], atol=1e-5, rtol=0)
    made, wanted = ours.encode_passages(passages), theirs.encode_document(passages)
    for vectors, there in zip(made, wanted, strict=True):
        torch.testing.assert_close(vectors, there, atol=1e-5, rtol=0)
    scores = torch.tensor(ours.score(QUERY, [Passage("", t) for t in passages]))
    assert scores.std() > 1e-2, "random weights too small to tell the passages apart"
    torch.testing.assert_close(scores, theirs.similarity(expected, wanted)[0], atol=1e-5, rtol=0)
    return ours


@pytest.mark.parametrize(
    "changes",
    [{}, {"attend_to_mask_tokens": True}, {"mask_punctuation": False}, {"query_maxlen": None, "doc_maxlen": 12}],
    ids=["plain", "attended", "punctuation", "lengths"],
)
def test_checkpoints_of_the_authors_are_read_as_sentence_transformers_reads_them(stanford, changes):
    assert_as_the_reference(stanford(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attend_to_expansion_tokens": True},
        {"do_query_expansion": False},
        {"skiplist_words": ["the", "."]},
        {"skiplist_words": None},
        {"query_prefix": "", "document_prefix": ""},
        {"query_length": None},
    ],
    ids=["plain", "attended", "unexpanded", "words", "no-list", "no-markers", "no-length"],
)
def test_checkpoints_of_pylate_are_read_as_sentence_transformers_reads_them(pylate, changes):
    assert_as_the_reference(pylate(**changes))


@pytest.mark.parametrize("attend", [False, True])
def test_checkpoints_that_sentence_transformers_saved_are_read_as_it_reads_them(pylate, tmp_path, attend):
    model = reference(pylate(attend_to_expansion_tokens=attend, skiplist_words=["the", "?"]))
    model.save(str(tmp_path / "native"))
    assert json.loads((tmp_path / "native" / "config_sentence_transformers.json").read_text())["model_type"] == (
        "MultiVectorEncoder"
    )
    ours = assert_as_the_reference(str(tmp_path / "native"), model)
    assert ours.layout.attend_to_expansion == attend
    assert (ours.layout.query_length, ours.layout.passage_length, len(ours.layout.skipped)) == (20, 40, 2)


def test_the_same_weights_score_the_same_in_every_layout(stanford, pylate):
    asked = [Passage("", t) for t in TEXTS]
    assert ColBERT.from_pretrained(stanford()).score(QUERY, asked) == ColBERT.from_pretrained(pylate()).score(
        QUERY, asked
    )


@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_maxsim_equals_the_definition_whatever_the_padding(seed, lengths):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(lengths), max(lengths), 8, generator=generator)
    query = torch.randn(4, 8, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    scores = maxsim(query, vectors, mask)
    for score, passage, n in zip(scores.tolist(), vectors, lengths, strict=True):
        assert score == pytest.approx(sum(max(float(q @ p) for p in passage[:n]) for q in query), abs=1e-4)


def test_a_passage_that_disagrees_everywhere_is_not_saved_by_its_padding():
    query = torch.tensor([[1.0, 0.0]])
    passages = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]], [[-0.6, 0.8], [-0.8, 0.6]]])
    scores = maxsim(query, passages, torch.tensor([[True, False], [True, True]]))
    torch.testing.assert_close(scores, torch.tensor([-1.0, -0.6]))


def test_a_passage_without_any_token_that_counts_comes_last():
    score = maxsim(torch.ones(2, 3), torch.ones(1, 2, 3), torch.tensor([[False, False]]))
    assert score.tolist() == [float("-inf")]


def test_the_score_is_a_sum_and_not_a_mean_over_the_query():
    query, passages = torch.eye(2), torch.eye(2)[None]
    assert maxsim(query, passages, torch.tensor([[True, True]])).tolist() == [2.0]
    assert maxsim(query.repeat(3, 1), passages, torch.tensor([[True, True]])).tolist() == [6.0]


def test_markers_stand_behind_the_first_token_and_queries_are_padded_with_masks(stanford):
    model = ColBERT.from_pretrained(stanford())
    name = model.tokenizer.convert_ids_to_tokens
    query = model.query_row("the ferry")
    assert name(query.ids) == ["[CLS]", "[unused0]", "the", "ferry", "[SEP]", *["[MASK]"] * 15]
    assert query.segments == [0] * 5 + [1] * 15
    (passage,) = model.passage_rows(["the ferry."])
    assert name(passage.ids) == ["[CLS]", "[unused1]", "the", "ferry", ".", "[SEP]"]
    assert passage.segments == [0, 0, 0, 0, 1, 0]
    assert model.tokens("the ferry", "the ferry.") == (name(query.ids), ["[CLS]", "[unused1]", "the", "ferry", "[SEP]"])


def test_masks_count_in_the_score_and_are_seen_by_others_only_if_the_checkpoint_says_so(stanford):
    unseen = ColBERT.from_pretrained(stanford())
    seen = ColBERT.from_pretrained(stanford(attend_to_mask_tokens=True))
    short = ColBERT.from_pretrained(stanford(query_maxlen=5))
    vectors = unseen.encode_query("the ferry")
    assert vectors.shape == (20, DIMENSIONS)
    torch.testing.assert_close(vectors[:5], short.encode_query("the ferry"), atol=1e-5, rtol=0)
    assert (seen.encode_query("the ferry")[:5] - vectors[:5]).abs().max() > 1e-3
    asked = [Passage("", t) for t in TEXTS]
    gained = torch.tensor(unseen.score("the ferry", asked)) - torch.tensor(short.score("the ferry", asked))
    assert gained.abs().min() > 1e-2


def test_punctuation_is_skipped_on_the_passages_side_only(stanford):
    model = ColBERT.from_pretrained(stanford())
    assert len(model.encode_passages(["tram, bus."])[0]) == 5
    assert len(ColBERT.from_pretrained(stanford(mask_punctuation=False)).encode_passages(["tram, bus."])[0]) == 7
    row = model.query_row("tram, bus.")
    assert row.segments[:7] == [0] * 7
    assert len(model.encode_query("tram, bus.")) == 20


def test_a_long_query_is_kept_whole_and_one_beyond_the_model_refused(stanford):
    model = ColBERT.from_pretrained(stanford())
    assert len(model.encode_query("ferry " * 40)) == 43
    with pytest.raises(InputError, match=r"the query takes 103 tokens, the model 64: shorten"):
        model.rerank("ferry " * 100, candidates_from(["tram"]))


def test_a_long_passage_is_cut_with_its_last_token_kept_and_counted(stanford):
    model = ColBERT.from_pretrained(stanford())
    usage = model.rerank("ferry", candidates_from(["tram", LONG])).usage
    (row,) = model.passage_rows([LONG])
    assert (len(row), row.ids[-1]) == (40, model.tokenizer.sep_token_id)
    assert (usage.truncated, usage.input_tokens, usage.pairs) == (1, 20 + 4 + 40, 2)
    assert len(ColBERT.from_pretrained(stanford(), max_length=10).passage_rows([LONG])[0]) == 10


@pytest.mark.parametrize("max_length", [0, 7, 65])
def test_a_max_length_that_the_model_cannot_take_is_refused(stanford, max_length):
    with pytest.raises(InputError, match=rf"max_length is {max_length}: the model takes 8 to 64"):
        ColBERT.from_pretrained(stanford(), max_length=max_length)


def test_a_checkpoint_that_asks_for_more_than_the_model_takes_gets_what_it_takes(stanford):
    model = ColBERT.from_pretrained(stanford(doc_maxlen=300))
    assert len(model.encode_passages([LONG])[0]) == 64


def test_pylates_own_lengths_stand_in_where_a_checkpoint_has_none(pylate):
    layout = ColBERT.from_pretrained(pylate(query_length=None, document_length="absent")).layout
    assert (layout.query_length, layout.passage_length) == (32, 64)  # 180, but for the model's own limit


def test_scores_of_a_batch_equal_the_scores_one_by_one(stanford):
    model = ColBERT.from_pretrained(stanford())
    asked = [Passage("", t) for t in [*TEXTS, LONG]]
    alone = [model.score(QUERY, [p])[0] for p in asked]
    torch.testing.assert_close(torch.tensor(model.score(QUERY, asked)), torch.tensor(alone), atol=1e-5, rtol=0)
    vectors = model.encode_passages([p.text for p in asked])
    by_hand = [float((model.encode_query(QUERY) @ v.T).amax(1).sum()) for v in vectors]
    torch.testing.assert_close(torch.tensor(by_hand), torch.tensor(alone), atol=1e-5, rtol=0)


def test_the_query_is_read_once_a_ranking(stanford):
    usage = ColBERT.from_pretrained(stanford()).rerank("ferry", candidates_from(["tram", "bus bus"])).usage
    assert (usage.input_tokens, usage.calls, usage.pairs) == (20 + 4 + 5, 2, 2)


def test_scores_of_other_lengths_or_of_another_projection_are_not_taken_from_the_cache(stanford, pylate, backbone):
    cache, cached = ScoreCache(), []
    folder = pylate()
    for options in ({}, {}, {"max_length": 30}, {"dtype": "bfloat16"}):
        ranking = ColBERT.from_pretrained(folder, cache=cache, **options).rerank(QUERY, candidates_from(TEXTS))
        cached.append(ranking.usage.cached)
    save_file({"linear.weight": -backbone[1] * torch.arange(32)}, f"{folder}/1_Dense/model.safetensors")
    other = ColBERT.from_pretrained(folder, cache=cache).rerank(QUERY, candidates_from(TEXTS))
    cache.close()
    assert [*cached, other.usage.cached] == [0, len(TEXTS), 0, 0, 0]


def test_a_projection_that_is_only_there_as_a_pickle_is_refused(pylate):
    folder = pylate()
    shutil.move(f"{folder}/1_Dense/model.safetensors", f"{folder}/1_Dense/pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing: .*never pickled"):
        ColBERT.from_pretrained(folder)


def test_an_encoder_of_the_authors_without_a_projection_is_refused(stanford, backbone):
    folder = stanford()
    shutil.copy(backbone[0] / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match=r"holds no 'linear\.weight'"):
        ColBERT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"query_prefix": "[query]"}, r"marker '\[query\]' is no single token"),
        ({"prompts": {"query": "find: "}}, "sets the prompt 'find: '"),
        ({"dense": {"activation_function": "torch.nn.modules.activation.Tanh"}}, "more than a linear map"),
        ({"dense": {"use_residual": True}}, "more than a linear map"),
    ],
)
def test_what_is_not_read_is_refused_by_name(pylate, changes, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        ColBERT.from_pretrained(pylate(**changes))


def test_an_unknown_marker_of_the_authors_is_refused_and_not_read_as_unknown_word(stanford):
    with pytest.raises(CheckpointError, match=r"marker '\[Q\]' is no single token"):
        ColBERT.from_pretrained(stanford(query_token_id="[Q]"))


def test_a_bi_encoder_is_refused(pylate):
    modules = Path(pylate()) / "modules.json"
    transformer, _ = json.loads(modules.read_text())
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    for listed, complaint in (([transformer, pooling], "has a Pooling module"), ([transformer], "has no Dense module")):
        modules.write_text(json.dumps(listed))
        with pytest.raises(CheckpointError, match=complaint):
            ColBERT.from_pretrained(str(modules.parent))


def test_a_plain_encoder_is_refused(tiny_encoder):
    with pytest.raises(CheckpointError, match=r"not a ColBERT: .* neither artifact\.metadata nor modules\.json"):
        ColBERT.from_pretrained(tiny_encoder)


@pytest.mark.parametrize("file", ["artifact.metadata", "model.safetensors"])
def test_a_damaged_file_is_named(stanford, file):
    folder = stanford()
    with open(f"{folder}/{file}", "r+b") as stream:
        stream.truncate(7)
    with pytest.raises(CheckpointError, match="damaged"):
        ColBERT.from_pretrained(folder)


def test_roberta_keeps_its_first_positions_for_padding(tiny_xlm_roberta):
    from transformers import AutoConfig

    assert positions(AutoConfig.from_pretrained(tiny_xlm_roberta)) == 64


def test_a_tokenizer_without_special_tokens_gets_the_marker_at_its_second_place():
    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    layout = Format(query_marker=7, passage_marker=8, expansion=None)
    assert query_row(tokenizer, layout, "ferry tram", 64).ids[1] == 7
    assert [row.ids for row in passage_rows(tokenizer, layout, [""])] == [[8]]
