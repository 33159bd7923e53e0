"""A model's name becomes a folder on disk: local, bundled, from a package, from the hub's cache, from the hub.

Only safetensors are loaded, never pickled weights; code from a checkpoint is never run. Files whose digest the lab
knows (`data/models.toml`) are checked before use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from rerank_lab.core import CheckpointError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Checkpoint", "adapted", "known_models", "load", "load_model", "load_tokenizer", "merge_lora", "resolve"]

WEIGHTS = Path(str(files("rerank_lab"))) / "weights"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "artifact.metadata"]  # what is ever fetched from the hub


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        name: what the user called it.
        path: the folder with config.json, a tokenizer and *.safetensors.
        revision: first 12 hex digits of the digest of its weights; part of every cache key.
        source: where it was found, in words.
    """

    name: str
    path: Path
    revision: str
    source: str


@cache
def known_models() -> dict[str, dict]:
    """The models described in `data/models.toml`, by short name."""
    return tomllib.loads((files("rerank_lab") / "data" / "models.toml").read_text(encoding="utf-8"))


def offline() -> bool:
    """Whether the hub must not be asked (the variable that huggingface_hub itself reads)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@cache
def resolve(name: str) -> Checkpoint:
    """Find a checkpoint by short name, hub id or folder.

    Args:
        name: `lab-cross-encoder`, `all-MiniLM-L6-v2`, `cross-encoder/ms-marco-MiniLM-L6-v2`, `./my-model` ...

    Raises:
        CheckpointError: nowhere found (every place tried is named), weights that are not safetensors, remote code
            needed, or a digest that differs from the known one.
    """
    known = known_models().get(name, {})
    hub_id = known.get("hub", name)
    if not known:
        known = next((m for m in known_models().values() if name and m["hub"] == name), {})
    if known.get("remote_code"):
        raise CheckpointError(f"{name} runs code of its own, which the lab never does: {known['remote_code']}")
    tried: list[str] = []
    for find in (_local, _bundled, _packaged, _cached, _hub):
        found = find(name, hub_id, known, tried)
        if found is not None:
            path, source = found
            return Checkpoint(name, path, _verified(name, path, known), source)
    mend = known.get("install") or f"on a machine with web access run `hf download {hub_id}`"
    raise CheckpointError(
        f"model {name!r} was not found; tried: {'; '.join(tried)}. "
        f"Mend: {mend}, or give a folder that holds it; `rerank-lab models` lists the known names"
    )


def _local(name, hub_id, known, tried):
    path = Path(name).expanduser()
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return path.resolve(), "local folder"
    tried.append(f"local folder {path}" + (" (has no config.json)" if path.is_dir() else " (does not exist)"))
    return None


def _bundled(name, hub_id, known, tried):
    path = WEIGHTS / Path(name).name
    if "/" not in name and any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
        return path, "bundled with rerank_lab"
    tried.append("weights bundled with rerank_lab")
    return None


def _packaged(name, hub_id, known, tried):
    package = known.get("package")
    if package is None:
        return None
    spec = importlib.util.find_spec(package)
    if spec is not None:
        return Path(spec.origin).parent / "model", f"package {package}"
    tried.append(f"package {package} (not installed)")
    return None


def _cached(name, hub_id, known, tried):
    if hub_id.count("/") != 1:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import HFValidationError

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=PATTERNS, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        tried.append(f"the hub's cache for {hub_id}")
        return None
    if not any(path.glob("*.safetensors")):
        tried.append(f"the hub's cache for {hub_id} (incomplete: no *.safetensors)")
        return None
    return path, "hub cache"


def _hub(name, hub_id, known, tried):
    if hub_id.count("/") != 1:
        return None
    if offline():
        tried.append(f"the hub for {hub_id} (not asked: HF_HUB_OFFLINE is set)")
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS)), "hub"
    except Exception as error:  # whatever the client or its transport raises: one more place that failed
        tried.append(f"the hub for {hub_id} ({type(error).__name__}: {str(error).splitlines()[0][:120]})")
        return None


def _verified(name: str, path: Path, known: dict) -> str:
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{name}: {path} holds no *.safetensors. Pickled weights (*.bin, *.pt) are never loaded; convert them with "
            "`model.save_pretrained(folder)` of transformers."
        )
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            of_file = hashlib.sha256(stream.read())
        expected = known.get("sha256", {}).get(file.name)
        if expected and of_file.hexdigest() != expected:
            raise CheckpointError(
                f"{name}: {file} has SHA-256 {of_file.hexdigest()}, known is {expected}: the download is "
                "damaged or the file was changed; delete it and fetch it again"
            )
        digest.update(of_file.digest())
    return digest.hexdigest()[:12]


def load_tokenizer(checkpoint: Checkpoint):
    """The checkpoint's fast tokenizer."""
    return load("AutoTokenizer", checkpoint)


def load(auto_class: str, checkpoint: Checkpoint, **options):
    """A part of a checkpoint by one of transformers' classes; code of the checkpoint is never run.

    Raises:
        CheckpointError: the checkpoint needs code of its own, or one of its files is damaged.
    """
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(checkpoint.path, trust_remote_code=False, **options)
    except Exception as error:  # transformers, tokenizers, safetensors and json each raise their own
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise CheckpointError(f"{checkpoint.name} needs code of its own, which the lab never runs") from error
        raise CheckpointError(
            f"{checkpoint.name}: a file in {checkpoint.path} is damaged or missing ({reason[:160]}); fetch it again"
        ) from error


def load_model(auto_class: str, checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "auto", **options):
    """Load a transformers model from safetensors, in evaluation mode.

    Args:
        auto_class: name of the class in transformers, for example `AutoModel`.
        checkpoint: where it lies.
        dtype: float32, bfloat16, float16; auto is float32 on a CPU and bfloat16 on a GPU.
        device: cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.

    Raises:
        InputError: unknown dtype, or a device that this machine lacks.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device is {device!r}: give 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device is {device!r} but no GPU is visible: give 'cpu' or 'auto'")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if dtype not in {"float32", "bfloat16", "float16"}:
        raise InputError(f"dtype is {dtype!r}: give 'auto', 'float32', 'bfloat16' or 'float16'")
    model = load(auto_class, checkpoint, dtype=getattr(torch, dtype), use_safetensors=True, **options)
    return model.eval().to(device)


def adapted(checkpoint: Checkpoint) -> Checkpoint | None:
    """The backbone that an adapter in peft's format is for; None for a checkpoint that is no adapter.

    Raises:
        CheckpointError: a damaged adapter_config.json, or a backbone that is nowhere found.
    """
    path = checkpoint.path / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); fetch it again") from error
    return resolve(base)


def merge_lora(model, folder: Path) -> None:
    """Add a LoRA adapter in peft's format to the model's weights, in place: W += (alpha / r) B A.

    Hu et al., LoRA, ICLR 2022, section 4.1. https://arxiv.org/abs/2106.09685
    """
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    with torch.no_grad():
        for key, down in tensors.items():
            if not key.endswith(".lora_A.weight"):
                continue
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = tensors[key.replace(".lora_A.", ".lora_B.")]  # (out, r); down is (r, in)
            weight = model.get_submodule(module).weight
            weight += scale * (up.float() @ down.float()).to(weight)
