"""Names become rerankers: families, known models, folders of each architecture, vendors, and `all`."""

import pytest
import torch
from conftest import lora_folder
from fake_vendors import KEY, fake_vendors
from safetensors.torch import save_file

from rerank_lab import BiEncoder, candidates_from, catalogue, checkpoints
from rerank_lab.core import CheckpointError, InputError
from rerank_lab.llm import MissingReplyError
from rerank_lab.rerankers.api import CohereReranker, TEIReranker, VoyageReranker
from rerank_lab.rerankers.colbert import ColBERT
from rerank_lab.rerankers.cross_encoder import CrossEncoder
from rerank_lab.rerankers.listwise import ListwiseReranker
from rerank_lab.rerankers.monot5 import DuoT5, MonoT5
from rerank_lab.rerankers.pointwise_llm import Qwen3Reranker


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for variable in (*catalogue.VENDORS.values(), "RERANK_LAB_LLM_URL", "RERANK_LAB_LLM_MODEL"):
        monkeypatch.delenv(variable, raising=False)


def test_a_folder_is_read_as_what_it_holds(tiny_bert, tiny_colbert, tiny_t5, tmp_path, tiny_qwen3):
    assert isinstance(catalogue.make(tiny_bert), CrossEncoder)
    assert isinstance(catalogue.make(tiny_colbert), ColBERT)
    assert isinstance(catalogue.make(tiny_t5), MonoT5)
    assert isinstance(catalogue.make(tiny_qwen3), Qwen3Reranker)


def test_an_adapters_folder_is_read_as_what_lies_beside_the_adapter(backbone, tmp_path):
    lora_folder(tmp_path / "plain", backbone)
    lora_folder(tmp_path / "colbert", backbone)
    save_file({"linear.weight": torch.randn(16, 32)}, tmp_path / "colbert" / "projection.safetensors")
    lora_folder(tmp_path / "cross-encoder", backbone)
    head = {"gate": torch.zeros(2, 2), "weights": torch.ones(2), "cls.weight": torch.zeros(1, 32)}
    save_file({**head, "cls.bias": torch.zeros(1)}, tmp_path / "cross-encoder" / "head.safetensors")
    for name, family in (("plain", BiEncoder), ("colbert", ColBERT), ("cross-encoder", CrossEncoder)):
        made = catalogue.make(str(tmp_path / name))
        assert type(made) is family
        ranking = made.rerank("when does the ferry leave?", candidates_from(["a tram", "the ferry leaves at nine"]))
        assert sorted(c.pid for c in ranking) == ["0", "1"]


def test_the_bundled_bi_encoder_is_made_by_its_name(backbone, tmp_path, monkeypatch):
    lora_folder(tmp_path / "lab-bi-encoder", backbone)
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path)
    made = catalogue.make("lab-bi-encoder")
    assert isinstance(made, BiEncoder)
    assert made.name == "lab-bi-encoder"
    assert catalogue.FAMILIES["bi-encoder"] == "all-MiniLM-L6-v2"  # the family's name alone stays the untrained one


@pytest.mark.parametrize("name", ["identity", *catalogue.FAMILIES, "listwise", "pairwise", "setwise", "pointwise-llm"])
def test_every_family_runs_by_its_name_alone(name):
    made = catalogue.make(name)
    assert made.name == name
    try:
        ranking = made.rerank("when does the ferry leave?", candidates_from(["a tram", "the ferry leaves at nine"]))
    except MissingReplyError as error:
        assert name in catalogue.ASKING and "RERANK_LAB_LLM_URL" in str(error)
    else:
        assert name not in catalogue.ASKING
        assert sorted(c.pid for c in ranking) == ["0", "1"]


def test_duot5_compares_the_ten_best_of_monot5():
    made = catalogue.make("duot5")
    assert isinstance(made, DuoT5)
    usage = made.rerank("ferry", candidates_from([f"ferry {i}" for i in range(14)])).usage
    assert usage.pairs == 14 + made.passes(14) == 14 + 90


def test_a_cascade_is_named_by_its_stages_and_their_depths():
    made = catalogue.make("bi-encoder:4+cross-encoder:2")
    assert [(type(s.reranker), s.reranker.name, s.depth) for s in made.stages] == [
        (BiEncoder, "bi-encoder", 4),
        (CrossEncoder, "cross-encoder", 2),
    ]
    assert made.name == "bi-encoder:4+cross-encoder:2"
    assert made.rerank("ferry", candidates_from([f"ferry {i}" for i in range(5)])).usage.pairs == 4 + 2


@pytest.mark.parametrize("name", ["cross-encoder:20", "bi-encoder:4+cross-encoder", "+bi-encoder:4", "a+b"])
def test_what_only_looks_like_a_cascade_is_looked_up_as_a_name(name):
    with pytest.raises(CheckpointError, match="was not found"):
        catalogue.make(name)


def test_a_cascade_with_a_stage_that_reads_nothing_is_refused():
    with pytest.raises(InputError, match="depth of bi-encoder is 0"):
        catalogue.make("bi-encoder:0+cross-encoder:2")


def test_vendors_are_made_with_the_key_of_the_environment(monkeypatch):
    with fake_vendors() as server:
        for name, kind in (("cohere", CohereReranker), ("rerank-v3.5", CohereReranker), ("rerank-2.5", VoyageReranker)):
            variable = "CO" if kind is CohereReranker else "VOYAGE"
            monkeypatch.setenv(f"{variable}_API_KEY", KEY)
            monkeypatch.setenv(f"{variable}_API_URL", server.url)
            made = catalogue.make(name)
            assert isinstance(made, kind)
            assert made.rerank("a ferry", candidates_from(["a tram", "a ferry"]))[0].text == "a ferry"
            made.close()
        monkeypatch.setenv("TEI_API_URL", server.url)
        made = catalogue.make("tei")
        assert isinstance(made, TEIReranker)
        made.close()


def test_a_vendor_without_a_key_is_refused_by_its_variable():
    with pytest.raises(InputError, match="VOYAGE_API_KEY"):
        catalogue.make("voyage")


def test_an_endpoint_of_the_environment_is_asked_and_recorded(monkeypatch, tmp_path):
    monkeypatch.setenv("RERANK_LAB_LLM_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("RERANK_LAB_LLM_MODEL", "tiny")
    made = catalogue.make("listwise")
    assert isinstance(made, ListwiseReranker)
    assert (made.chat.model, made.chat.path.name) == ("tiny", "replies.jsonl")
    made.chat.chat.client.close()


def test_an_unknown_name_is_an_error_that_names_the_places_tried():
    with pytest.raises(CheckpointError, match="'no-such-model' was not found"):
        catalogue.make("no-such-model")


def test_all_stands_for_what_can_run_and_says_why_the_rest_cannot(monkeypatch):
    names, left_out = catalogue.runnable("lab", "bm25", 50)
    assert names == ["bi-encoder", "cross-encoder", "colbert", "monot5", "duot5", "listwise"]
    assert set(left_out) == {"pairwise", "setwise", "pointwise-llm", "cohere", "jina", "voyage", "tei"}
    assert "CO_API_KEY" in left_out["cohere"]
    for other in (("my-data", "bm25", 50), ("lab", "fusion", 50), ("lab", "bm25", 10)):
        assert "listwise" in catalogue.runnable(*other)[1]
    monkeypatch.setenv("RERANK_LAB_LLM_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("CO_API_KEY", KEY)
    names, left_out = catalogue.runnable("my-data", "bm25", 50)
    assert {"listwise", "pairwise", "setwise", "pointwise-llm", "cohere"} <= set(names)
    assert set(left_out) == {"jina", "voyage", "tei"}
