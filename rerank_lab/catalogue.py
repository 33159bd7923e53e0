"""A name becomes a reranker: a family's own default, a known model, a hub id, a folder, a vendor, or a cascade.

The one place that knows all families; the command line and the server read it, nothing below does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from rerank_lab.cache import ScoreCache, default_cache_path
from rerank_lab.checkpoints import known_models, resolve
from rerank_lab.core import Identity, Reranker

__all__ = ["FAMILIES", "VENDORS", "chat_from_environment", "make", "recorded_replies", "runnable"]

FAMILIES = {  # the short name of each family's default, and the checkpoint behind it
    "bi-encoder": "all-MiniLM-L6-v2",
    "cross-encoder": "lab-cross-encoder",
    "colbert": "lab-colbert",
    "monot5": "lab-t5",
    "duot5": "lab-t5",
}
FUSED = ("lab-bi-encoder", "lab-colbert", "lab-cross-encoder")
ASKING = ("listwise", "pairwise", "setwise", "pointwise-llm")  # by a language model that is asked
VENDORS = {"cohere": "CO_API_KEY", "jina": "JINA_API_KEY", "voyage": "VOYAGE_API_KEY", "tei": "TEI_API_URL"}
CASCADE = re.compile(r"[^+]+:[0-9]+(\+[^+]+:[0-9]+)+")
RECORDED_DEPTH = 20  # candidates of each lab query over which a model's order was recorded


def make(name: str, *, dtype: str = "auto", device: str = "auto", cache: ScoreCache | None = None) -> Reranker:
    """The reranker of a name.

    Args:
        name: `identity`, a family (`colbert`), a known model (`bge-reranker-v2-m3`), a hub id, a folder, a vendor, or a
            cascade: in `colbert:100+cross-encoder:20` the one reads 100 candidates and the other the best 20 of them.
        dtype, device: as in `checkpoints.load_model`.
        cache: where scores are kept; None switches it off.

    Raises:
        InputError: a vendor whose key or address is not in the environment.
        CheckpointError: a model that is nowhere found.
    """
    options = {"dtype": dtype, "device": device}
    if name == "identity":
        made: Reranker = Identity()
    elif CASCADE.fullmatch(name):
        made = _cascade(name, options, cache)
    elif name in ASKING:
        made = _asking(name)
    elif name in VENDORS or known_models().get(name, {}).get("family") == "hosted":
        made = _hosted(name, cache)
    elif name == "lab-fused":
        made = _fused(options, cache)
    elif name == "duot5":
        made = _duot5("lab-t5", options, cache)
    else:
        made = _LOADERS[_family(name)](FAMILIES.get(name, name), options, cache)
    made.name = name
    return made


def _cascade(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    from rerank_lab.rerankers.cascade import Cascade, Stage

    stages = [part.rpartition(":") for part in name.split("+")]
    return Cascade([Stage(make(stage, **options, cache=cache), int(depth)) for stage, _, depth in stages])


def _family(name: str) -> str:
    """The family of a family's name, a known model, or whatever files a hub id or folder holds."""
    if name in FAMILIES:
        return {"colbert": "late-interaction", "monot5": "sequence-to-sequence"}.get(name, name)
    known = known_models().get(name) or next((m for m in known_models().values() if name and m["hub"] == name), None)
    if known:
        return known["family"]
    path = resolve(name).path
    if (path / "artifact.metadata").is_file() or (path / "projection.safetensors").is_file():
        return "late-interaction"
    if (path / "modules.json").is_file():
        dense = "Dense" in (path / "modules.json").read_text(encoding="utf-8")
        return "late-interaction" if dense else "bi-encoder"
    config = path / "config.json"
    if (path / "adapter_config.json").is_file() and not config.is_file():
        return "cross-encoder" if (path / "head.safetensors").is_file() else "bi-encoder"
    built_as = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""] if config.is_file() else [""]
    if built_as[0].endswith("ForConditionalGeneration"):
        return "sequence-to-sequence"
    return "llm" if built_as[0].endswith("ForCausalLM") else "cross-encoder"


def _bi_encoder(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    from rerank_lab.first_stage.bi_encoder import BiEncoder

    return BiEncoder.from_pretrained(name, cache=cache, **options)


def _cross_encoder(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    from rerank_lab.rerankers.cross_encoder import CrossEncoder

    return CrossEncoder.from_pretrained(name, cache=cache, **options)


def _colbert(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    from rerank_lab.rerankers.colbert import ColBERT

    return ColBERT.from_pretrained(name, cache=cache, **options)


def _t5(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    from rerank_lab.rerankers.monot5 import MonoT5

    if "duot5" in Path(name).name:
        return _duot5(name, options, cache)
    return MonoT5.from_pretrained(name, cache=cache, **options)


def _duot5(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    """DuoT5 over the ten best of a MonoT5: 90 comparisons a query."""
    from rerank_lab.rerankers.monot5 import DuoT5, MonoT5, TrueOrFalse

    answers = TrueOrFalse.from_pretrained(name, **options)
    before = name.replace("duot5", "monot5")
    first = answers if before == name else TrueOrFalse.from_pretrained(before, **options)
    return DuoT5(answers, mono=MonoT5(first, cache=cache), depth=10, cache=cache)


def _fused(options: dict, cache: ScoreCache | None) -> Reranker:
    """The three readings of the backbone that score a pair by its similarity, as one."""
    from rerank_lab.rerankers.fused import Fused

    return Fused([_LOADERS[_family(name)](name, options, cache) for name in FUSED])


def _llm(name: str, options: dict, cache: ScoreCache | None) -> Reranker:
    """A Qwen3-Reranker reads yes or no off its logits; another language model is asked for an order."""
    if "qwen3-reranker" in name.lower():
        from rerank_lab.rerankers.pointwise_llm import Qwen3Reranker

        return Qwen3Reranker.from_pretrained(name, cache=cache, **options)
    from rerank_lab.llm import LocalModel
    from rerank_lab.rerankers.listwise import ListwiseReranker

    return ListwiseReranker(LocalModel.from_pretrained(name, **options))


_LOADERS: dict[str, Callable[[str, dict, ScoreCache | None], Reranker]] = {
    "bi-encoder": _bi_encoder,
    "cross-encoder": _cross_encoder,
    "late-interaction": _colbert,
    "sequence-to-sequence": _t5,
    "llm": _llm,
}


def recorded_replies(name: str = "lab") -> Path:
    """A record that comes with the package: a language model's answers for the lab collection.

    Args:
        name: `lab`, the answers to rerankers; `agent`, those to the search agent.
    """
    return Path(str(files("rerank_lab"))) / "data" / "recorded" / f"{name}.jsonl"


def chat_from_environment():
    """The endpoint that RERANK_LAB_LLM_URL names, each reply recorded; without it the bundled record."""
    from rerank_lab.llm import Recorder

    if not os.environ.get("RERANK_LAB_LLM_URL"):
        return Recorder(recorded_replies())
    from rerank_lab.endpoint import Endpoint

    return Recorder(default_cache_path().with_name("replies.jsonl"), Endpoint.from_environment())


def _asking(name: str) -> Reranker:
    chat = chat_from_environment()
    if name == "listwise":
        from rerank_lab.rerankers.listwise import ListwiseReranker

        return ListwiseReranker(chat, depth=RECORDED_DEPTH)
    if name == "pairwise":
        from rerank_lab.rerankers.pairwise import PairwiseReranker

        return PairwiseReranker(chat, k=1)
    if name == "setwise":
        from rerank_lab.rerankers.setwise import SetwiseReranker

        return SetwiseReranker(chat, depth=RECORDED_DEPTH)
    from rerank_lab.rerankers.pointwise_llm import YesNoReranker

    return YesNoReranker(chat)


def _hosted(name: str, cache: ScoreCache | None) -> Reranker:
    from rerank_lab.rerankers import api

    vendor = name if name in VENDORS else known_models()[name]["vendor"]
    kind = {
        "cohere": api.CohereReranker,
        "jina": api.JinaReranker,
        "voyage": api.VoyageReranker,
        "tei": api.TEIReranker,
    }[vendor]
    chosen = {"model": name} if name == "tei" or name not in VENDORS else {}
    return kind.from_environment(cache=cache, **chosen)


def runnable(collection: str, first_stage: str, depth: int) -> tuple[list[str], dict[str, str]]:
    """What `--rerankers all` stands for: the names that can run here, and why each other cannot.

    Args:
        collection: its name; replies are recorded for `lab`.
        first_stage: its name; replies are recorded over `bm25`.
        depth: candidates reranked.
    """
    names, left_out = list(FAMILIES), {}
    if os.environ.get("RERANK_LAB_LLM_URL"):
        names += ASKING
    else:
        why = "RERANK_LAB_LLM_URL is not set"
        if (collection, first_stage) == ("lab", "bm25") and depth >= RECORDED_DEPTH:
            names.append("listwise")
        else:
            left_out["listwise"] = f"{why}, and replies were recorded for --collection lab over bm25 from depth 20 only"
        left_out |= {name: f"{why}, and replies were recorded for 20 queries only" for name in ASKING[1:]}
    for vendor, variable in VENDORS.items():
        if os.environ.get(variable):
            names.append(vendor)
        else:
            left_out[vendor] = f"{variable} is not set"
    return names, left_out
