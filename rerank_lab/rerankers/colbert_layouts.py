"""How the ColBERT checkpoints of four schools lay out a text, and how each is read.

    query      [CLS] [Q] q1 q2 ... [SEP] [MASK] ... [MASK]      32 tokens in all
    passage    [CLS] [D] p1 p2 ... [SEP]                        cut at 180 to 300 tokens

| made by | told by | markers | projection |
|---|---|---|---|
| the ColBERT authors | `artifact.metadata` | `query_token_id`, `doc_token_id` | `linear.weight` beside the encoder's |
| PyLate 3 | `config_sentence_transformers.json` | `query_prefix`, `document_prefix` | `1_Dense` |
| sentence-transformers 6 | the same, `sentence_bert_config.json`, the modules' | `prompts` | `1_Dense` |
| the lab | `adapter_config.json` | `[unused0]`, `[unused1]` | `projection.safetensors` |

The markers are put in as token ids, behind the first special token; lengths count every token. The authors cut a
query that is too long; here it is kept whole, as their `full_length_search` does.
ColBERT `colbert/modeling/tokenization/`, PyLate `models/colbert.py`, sentence-transformers `multi_vector_encoder/`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rerank_lab.batching import Encoded, encode_texts
from rerank_lab.checkpoints import Checkpoint, adapted, load_model, load_tokenizer, merge_lora
from rerank_lab.core import CheckpointError, InputError

__all__ = ["Format", "lab_format", "passage_rows", "positions", "query_row", "read"]


@dataclass(frozen=True, slots=True)
class Format:
    """How texts are laid out for a checkpoint.

    Attributes:
        query_marker: token id after the query's first special token; None for no marker.
        passage_marker: the same for passages.
        expansion: token id that pads the query, or None for queries that are not padded.
        query_length: tokens a query is padded to, special tokens included; a longer query is kept whole.
        passage_length: tokens after which a passage is cut, special tokens included.
        skipped: token ids that do not count on the passage's side.
        attend_to_expansion: whether the other tokens see the padding.
    """

    query_marker: int | None
    passage_marker: int | None
    expansion: int | None
    query_length: int = 32
    passage_length: int = 220
    skipped: frozenset[int] = frozenset()
    attend_to_expansion: bool = False


def query_row(tokenizer, layout: Format, query: str, limit: int) -> Encoded:
    """`[CLS] marker query [SEP]`, padded with the expansion token; segments are 1 for that padding.

    Raises:
        InputError: the query alone is longer than the `limit` of tokens that the model takes.
    """
    (row,) = encode_texts(tokenizer, [query], 10**9)
    ids = _marked(row.ids, layout.query_marker)
    if len(ids) > limit:
        raise InputError(f"the query takes {len(ids)} tokens, the model {limit}: shorten the query")
    padding = max(0, layout.query_length - len(ids)) if layout.expansion is not None else 0
    return Encoded(ids + [layout.expansion] * padding, [0] * len(ids) + [1] * padding, False)


def passage_rows(tokenizer, layout: Format, texts: Sequence[str]) -> list[Encoded]:
    """`[CLS] marker passage [SEP]`, cut to length; segments are 1 for tokens that do not count."""
    made = []
    for row in encode_texts(tokenizer, texts, layout.passage_length - (layout.passage_marker is not None)):
        ids = _marked(row.ids, layout.passage_marker)
        made.append(Encoded(ids, [int(i in layout.skipped) for i in ids], row.truncated))
    return made


def _marked(ids: list[int], marker: int | None) -> list[int]:
    return ids if marker is None else [*ids[:1], marker, *ids[1:]]


def positions(config) -> int:
    """How many tokens a model takes; RoBERTa keeps its first positions for padding.

    The tokenizer is not asked: sentence-transformers leaves in it the length of the last text that it saw.
    """
    offset = config.pad_token_id + 1 if config.model_type in {"roberta", "xlm-roberta"} else 0
    return config.max_position_embeddings - offset


def lab_format(tokenizer) -> Format:
    """The lab's layout over a BERT tokenizer: the markers of the ColBERT authors, passages as long as the bi-encoder's.

    Queries are not padded: an hour of training on two cores does not teach a model to use the padding.
    """
    query, passage = _marker(tokenizer, "[unused0]"), _marker(tokenizer, "[unused1]")
    return Format(query, passage, None, passage_length=256, skipped=_ids_of(tokenizer, string.punctuation))


def read(checkpoint: Checkpoint, dtype: str, device: str):
    """The encoder, the projection (token states to vectors), the tokenizer and the layout of a checkpoint.

    Raises:
        CheckpointError: not a ColBERT of one of the four schools, or one with a part that is not read here.
    """
    # a repository may hold the last two; PyLate and sentence-transformers ask for modules.json first, too
    readers = {"adapter_config.json": _lab, "modules.json": _sentence_transformers, "artifact.metadata": _stanford}
    for file, reader in readers.items():
        if (checkpoint.path / file).is_file():
            return reader(checkpoint, dtype, device)
    raise CheckpointError(
        f"{checkpoint.name} is not a ColBERT: {checkpoint.path} has neither artifact.metadata nor modules.json"
    )


def _lab(checkpoint: Checkpoint, dtype: str, device: str):
    backbone = adapted(checkpoint)
    tokenizer = load_tokenizer(backbone)
    model = load_model("AutoModel", backbone, dtype=dtype, device=device, add_pooling_layer=False)
    merge_lora(model, checkpoint.path)
    return model, _linear(checkpoint.path / "projection.safetensors"), tokenizer, lab_format(tokenizer)


def _stanford(checkpoint: Checkpoint, dtype: str, device: str):
    meta = _json(checkpoint.path / "artifact.metadata")
    tokenizer = load_tokenizer(checkpoint)
    model = load_model("AutoModel", checkpoint, dtype=dtype, device=device)
    layout = Format(
        _marker(tokenizer, meta.get("query_token_id") or "[unused0]"),
        _marker(tokenizer, meta.get("doc_token_id") or "[unused1]"),
        _expansion(tokenizer),
        meta.get("query_maxlen") or 32,
        min(meta.get("doc_maxlen") or 220, positions(model.config)),
        _ids_of(tokenizer, string.punctuation if meta.get("mask_punctuation", True) else ()),
        bool(meta.get("attend_to_mask_tokens")),
    )
    return model, _linear(checkpoint.path / "model.safetensors"), tokenizer, layout


def _sentence_transformers(checkpoint: Checkpoint, dtype: str, device: str):
    modules = _modules(checkpoint)
    projection = nn.Sequential(*(_dense(path) for path in modules["Dense"]))
    tokenizer = load_tokenizer(checkpoint)
    model = load_model("AutoModel", checkpoint, dtype=dtype, device=device)
    config = _json(checkpoint.path / "config_sentence_transformers.json")
    native = config.get("model_type") == "MultiVectorEncoder"
    read = _native_settings if native else _pylate_settings
    return model, projection, tokenizer, read(checkpoint, config, modules, tokenizer, positions(model.config))


def _pylate_settings(checkpoint: Checkpoint, config: dict, modules: dict, tokenizer, limit: int) -> Format:
    prompts = config.get("prompts") or {}
    marks = {}
    for side, default in (("query", "[Q] "), ("document", "[D] ")):
        prefix = config.get(f"{side}_prefix", default)
        prefix = default if prefix is None else prefix
        if (prompts.get(side) or "").removeprefix(prefix):
            raise CheckpointError(f"{checkpoint.name} sets the prompt {prompts[side]!r}, which is not read here")
        marks[side] = _marker(tokenizer, prefix)
    skipped = config.get("skiplist_words")
    return Format(
        marks["query"],
        marks["document"],
        None if config.get("do_query_expansion") is False else _expansion(tokenizer),
        config.get("query_length") or 32,
        min(config.get("document_length") or 180, limit),
        _ids_of(tokenizer, string.punctuation if skipped is None else skipped),
        bool(config.get("attend_to_expansion_tokens")),
    )


def _native_settings(checkpoint: Checkpoint, config: dict, modules: dict, tokenizer, limit: int) -> Format:
    lengths = _json(checkpoint.path / "sentence_bert_config.json")
    expansion = lengths.get("query_expansion") or {}
    prompts = config.get("prompts") or {}
    masks = [_json(path / "config.json") for path in modules["MultiVectorMask"]]
    sides = [mask.get("skiplist_tasks", ["document"]) for mask in masks]
    if not modules["Normalize"] or sides != [["document"]] or masks[0].get("keep_only_token_ids"):
        raise CheckpointError(f"{checkpoint.name} is not one mask over passages and unit vectors: not read here")
    return Format(
        _marker(tokenizer, prompts.get("query") or ""),
        _marker(tokenizer, prompts.get("document") or ""),
        _expansion(tokenizer, expansion.get("token")) if expansion else None,
        expansion.get("length", 32),
        min(lengths.get("document_length") or limit, limit),
        _ids_of(tokenizer, masks[0].get("skiplist_words") or ()),
        bool(expansion.get("attend")),
    )


def _modules(checkpoint: Checkpoint) -> dict[str, list[Path]]:
    """Folders of the modules by kind; the kinds are those of a ColBERT and no other."""
    found: dict[str, list[Path]] = {kind: [] for kind in ("Transformer", "Dense", "MultiVectorMask", "Normalize")}
    for module in _json(checkpoint.path / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in found:
            raise CheckpointError(
                f"{checkpoint.name} has a {kind} module, which is not read here: this is not a ColBERT"
            )
        found[kind].append(checkpoint.path / module["path"])
    if not found["Dense"]:
        raise CheckpointError(f"{checkpoint.name} has no Dense module in modules.json: this is not a ColBERT")
    return found


def _dense(folder: Path) -> nn.Linear:
    config = _json(folder / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if activation != "Identity" or config.get("use_residual"):
        raise CheckpointError(f"{folder} is a Dense module with more than a linear map, which is not read here")
    return _linear(folder / "model.safetensors")


def _linear(file: Path) -> nn.Linear:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the projection must be stored as safetensors, never pickled")
    try:
        tensors = {k.removeprefix("linear."): t.float() for k, t in load_file(file).items() if k.startswith("linear.")}
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from error
    if "weight" not in tensors:
        raise CheckpointError(f"{file} holds no 'linear.weight': this is not a ColBERT projection")
    dimensions, hidden = tensors["weight"].shape
    layer = nn.Linear(hidden, dimensions, bias="bias" in tensors)
    layer.load_state_dict(tensors)
    return layer.requires_grad_(False)


def _json(file: Path):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is missing or damaged ({error}); fetch it again") from error


def _marker(tokenizer, text: str) -> int | None:
    """The one token that a marker is in the vocabulary, with or without the blank behind it; "" is no marker."""
    if text == "":
        return None
    known = tokenizer.get_vocab()
    for name in (text, text.strip()):
        if name in known:
            return known[name]
    raise CheckpointError(f"the marker {text!r} is no single token of the vocabulary: this is not a ColBERT read here")


def _expansion(tokenizer, name: str | None = None) -> int:
    if name is not None:
        return _marker(tokenizer, name)
    ids = [i for i in (tokenizer.mask_token_id, tokenizer.eos_token_id) if i is not None]
    if not ids:
        raise CheckpointError("queries are padded with [MASK], but the vocabulary has neither [MASK] nor an end token")
    return ids[0]


def _ids_of(tokenizer, words: Iterable[str]) -> frozenset[int]:
    known = tokenizer.get_vocab()
    return frozenset(known[w] for w in words if w in known)
