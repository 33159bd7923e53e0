"""ColBERT: query and passage are read apart, but every token keeps a vector of its own, and they meet late.

    score(q, p) = sum over query tokens i of  max over passage tokens j of  q_i . p_j

Khattab and Zaharia, ColBERT, SIGIR 2020, eq. 3. https://arxiv.org/abs/2004.12832. The query is padded with [MASK]
to 32 tokens, which take part in the sum but are not attended to; a marker token tells queries from passages;
punctuation does not count on the passage's side.

`ColBERT.from_pretrained` reads checkpoints of the ColBERT authors (`artifact.metadata`), of PyLate and
sentence-transformers (`modules.json`), and the lab's own adapter.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank_lab.batching import Encoded, encode_texts, pad, score_in_batches, token_budget_batches
from rerank_lab.cache import ScoreCache, cached_scores
from rerank_lab.checkpoints import Checkpoint, load_model, load_tokenizer, merge_lora, resolve
from rerank_lab.core import CheckpointError, InputError, Passage, PointwiseReranker, Usage

__all__ = ["ColBERT", "Format", "maxsim"]


def maxsim(query: Tensor, passages: Tensor, mask: Tensor) -> Tensor:
    """Score each passage against one query.

    Args:
        query: unit token vectors, shape (Lq, d).
        passages: unit token vectors, shape (B, Lp, d), padded to the longest passage.
        mask: True where a passage token counts, shape (B, Lp).

    Returns:
        Scores, shape (B,). A passage with no token that counts scores -inf.

    >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> passages = torch.tensor([[[0.0, 1.0], [0.8, 0.6]], [[0.0, -1.0], [0.0, 0.0]]])
    >>> maxsim(query, passages, torch.tensor([[True, True], [True, False]]))
    tensor([ 1.8000, -1.0000])
    """
    similarity = torch.einsum("qd,bpd->bqp", query, passages)  # (B, Lq, Lp)
    # -inf, not 0: a padded token at 0 would beat every real token that disagrees
    similarity = similarity.masked_fill(~mask[:, None, :], float("-inf"))
    return similarity.amax(dim=-1).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Format:
    """How texts are laid out for a checkpoint.

    Attributes:
        query_marker: token id after the query's first special token.
        passage_marker: the same for passages.
        expansion: token id that pads the query, or None for queries that are not padded.
        query_length: tokens a query is padded to, special tokens included; a longer query is kept whole.
        passage_length: tokens after which a passage is cut, special tokens included.
        skipped: token ids that do not count on the passage's side.
        attend_to_expansion: whether the other tokens see the padding.
    """

    query_marker: int
    passage_marker: int
    expansion: int | None
    query_length: int = 32
    passage_length: int = 220
    skipped: frozenset[int] = frozenset()
    attend_to_expansion: bool = False


class ColBERT(PointwiseReranker):
    """Encodes texts to one unit vector a token; scores by MaxSim.

    Args:
        model: a transformers encoder.
        projection: from token states (..., hidden) to vectors (..., d).
        tokenizer: its fast tokenizer.
        layout: markers, lengths, masks.
        name: what tables call it.
        cache: where scores are kept; None switches it off.
        model_key: what identifies the weights in the cache.
    """

    def __init__(
        self,
        model,
        projection: nn.Module,
        tokenizer,
        layout: Format,
        *,
        name: str = "colbert",
        cache: ScoreCache | None = None,
        model_key: str = "",
    ):
        self.model, self.projection, self.tokenizer, self.layout = model.eval(), projection.eval(), tokenizer, layout
        self.name, self.cache = name, cache
        self.cache_key = f"colbert maxsim|{model_key}|{model.dtype}|{layout}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "lab-colbert",
        *,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        cache: ScoreCache | None = None,
    ) -> ColBERT:
        """Load by short name, hub id or folder; `dtype` and `device` as in `checkpoints.load_model`.

        Args:
            name: `lab-colbert`, `colbert-ir/colbertv2.0`, `./my-model` ...
            max_length: tokens a passage may have; without it, what the checkpoint says.

        Raises:
            CheckpointError: not found, or not a ColBERT of one of the three layouts.
        """
        checkpoint = resolve(name)
        if (checkpoint.path / "adapter_config.json").is_file():
            parts = _lab(checkpoint, dtype, device)
        elif (checkpoint.path / "artifact.metadata").is_file():
            parts = _stanford(checkpoint, dtype, device)
        elif (checkpoint.path / "modules.json").is_file():
            parts = _pylate(checkpoint, dtype, device)
        else:
            raise CheckpointError(
                f"{name} is not a ColBERT: {checkpoint.path} has neither artifact.metadata nor modules.json"
            )
        model, projection, tokenizer, layout = parts
        if max_length is not None:
            takes = model.config.max_position_embeddings
            if not 8 <= max_length <= takes:
                raise InputError(f"max_length is {max_length}: the model takes 8 to {takes} tokens")
            layout = _replace(layout, passage_length=max_length)
        return cls(
            model,
            projection.to(model.device, model.dtype),
            tokenizer,
            layout,
            cache=cache,
            model_key=f"{checkpoint.name}@{checkpoint.revision}",
        )

    def query_row(self, query: str) -> Encoded:
        """The query as the model reads it; segments are 1 for padding that is not attended to."""
        return query_row(self.tokenizer, self.layout, query, self.model.config.max_position_embeddings)

    def passage_rows(self, texts: Sequence[str]) -> list[Encoded]:
        """Passages as the model reads them; segments are 1 for tokens that do not count."""
        return passage_rows(self.tokenizer, self.layout, texts)

    @torch.inference_mode()
    def encode_query(self, query: str, usage: Usage | None = None) -> Tensor:
        """Unit vectors of the query's tokens, padding included, shape (Lq, d), float32, on the CPU."""
        row = self.query_row(query)
        if usage is not None:
            usage.calls += 1
            usage.input_tokens += len(row)
        return self._vectors([row], attend=[self._attended(row)])[0][0].cpu()

    @torch.inference_mode()
    def encode_passages(self, texts: Sequence[str], usage: Usage | None = None) -> list[Tensor]:
        """Unit vectors of the tokens that count, one tensor (Lp, d) a passage, float32, on the CPU."""
        usage = usage if usage is not None else Usage()
        rows = self.passage_rows(texts)
        made: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in token_budget_batches([len(r) for r in rows]):
            vectors, counted = self._vectors([rows[i] for i in batch])
            for i, v, c in zip(batch, vectors.cpu(), counted.cpu(), strict=True):
                made[i] = v[c]
            usage.calls += 1
        usage.input_tokens += sum(len(r) for r in rows)
        usage.truncated += sum(r.truncated for r in rows)
        return made

    def tokens(self, query: str, text: str) -> tuple[list[str], list[str]]:
        """The tokens behind the rows and columns of the MaxSim map: the query's, and those of the passage that count."""
        (passage,) = self.passage_rows([text])
        counted = [t for t, skipped in zip(passage.ids, passage.segments, strict=True) if not skipped]
        name = self.tokenizer.convert_ids_to_tokens
        return name(self.query_row(query).ids), name(counted)

    def _attended(self, row: Encoded) -> list[int]:
        return [1 if self.layout.attend_to_expansion else 1 - s for s in row.segments]

    def _vectors(self, rows: list[Encoded], attend: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, L, d) and where a token counts (B, L)."""
        device = self.model.device
        ids, real = pad([r.ids for r in rows], self.tokenizer.pad_token_id or 0, device)
        seen = pad(attend, 0, device)[0] if attend else real
        states = self.model(input_ids=ids, attention_mask=seen).last_hidden_state  # (B, L, hidden)
        vectors = F.normalize(self.projection(states).float(), dim=-1)
        skipped = pad([r.segments for r in rows], 1, device)[0]
        return vectors, (real == 1) & (skipped == 0)

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str]) -> list[float]:
            tokens = self.encode_query(query, usage).to(self.model.device)  # (Lq, d)
            return score_in_batches(self.passage_rows(texts), lambda rows: maxsim(tokens, *self._vectors(rows)), usage)

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)


def query_row(tokenizer, layout: Format, query: str, limit: int) -> Encoded:
    """`[CLS] marker query [SEP]`, padded with the expansion token; segments are 1 for that padding.

    Raises:
        InputError: the query alone is longer than the model takes.
    """
    (row,) = encode_texts(tokenizer, [query], 10**9)
    ids = [row.ids[0], layout.query_marker, *row.ids[1:]]
    if len(ids) > limit:
        raise InputError(f"the query takes {len(ids)} tokens, the model {limit}: shorten the query")
    padding = max(0, layout.query_length - len(ids)) if layout.expansion is not None else 0
    return Encoded(ids + [layout.expansion] * padding, [0] * len(ids) + [1] * padding, False)


def passage_rows(tokenizer, layout: Format, texts: Sequence[str]) -> list[Encoded]:
    """`[CLS] marker passage [SEP]`, cut to length; segments are 1 for tokens that do not count."""
    made = []
    for row in encode_texts(tokenizer, texts, layout.passage_length - 1):
        ids = [row.ids[0], layout.passage_marker, *row.ids[1:]]
        made.append(Encoded(ids, [int(i in layout.skipped) for i in ids], row.truncated))
    return made


def _replace(layout: Format, **changes) -> Format:
    from dataclasses import replace

    return replace(layout, **changes)


def punctuation_ids(tokenizer) -> frozenset[int]:
    """Token ids of the 32 ASCII punctuation signs."""
    return _ids_of(tokenizer, string.punctuation)


def _ids_of(tokenizer, words) -> frozenset[int]:
    known = tokenizer.get_vocab()
    return frozenset(known[w] for w in words if w in known)


def _linear(file: Path, key: str = "linear.weight") -> nn.Linear:
    from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the projection must be stored as safetensors, never pickled")
    tensors = load_file(file)
    if key not in tensors:
        raise CheckpointError(f"{file} holds no {key!r}: this is not a ColBERT projection")
    weight = tensors[key]  # (d, hidden)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=key.replace("weight", "bias") in tensors)
    layer.load_state_dict({k.removeprefix("linear."): tensors[k].float() for k in tensors if k.startswith("linear.")})
    return layer.requires_grad_(False)


def lab_format(tokenizer) -> Format:
    """The lab's layout over a BERT tokenizer: the markers of the ColBERT authors, [MASK] as padding."""
    query, passage = tokenizer.convert_tokens_to_ids(["[unused0]", "[unused1]"])
    return Format(query, passage, tokenizer.mask_token_id, skipped=punctuation_ids(tokenizer))


def _lab(checkpoint: Checkpoint, dtype: str, device: str):
    base = json.loads((checkpoint.path / "adapter_config.json").read_text())["base_model_name_or_path"]
    backbone = resolve(base)
    tokenizer = load_tokenizer(backbone)
    model = load_model("AutoModel", backbone, dtype=dtype, device=device, add_pooling_layer=False)
    merge_lora(model, checkpoint.path)
    return model, _linear(checkpoint.path / "projection.safetensors"), tokenizer, lab_format(tokenizer)


def _stanford(checkpoint: Checkpoint, dtype: str, device: str):
    meta = json.loads((checkpoint.path / "artifact.metadata").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(checkpoint)
    model = load_model("AutoModel", checkpoint, dtype=dtype, device=device)
    markers = [meta.get("query_token_id", "[unused0]"), meta.get("doc_token_id", "[unused1]")]
    query, passage = tokenizer.convert_tokens_to_ids(markers)
    layout = Format(
        query,
        passage,
        tokenizer.mask_token_id,
        meta.get("query_maxlen", 32),
        meta.get("doc_maxlen", 220),
        punctuation_ids(tokenizer) if meta.get("mask_punctuation", True) else frozenset(),
        meta.get("attend_to_mask_tokens", False),
    )
    return model, _linear(checkpoint.path / "model.safetensors"), tokenizer, layout


def _pylate(checkpoint: Checkpoint, dtype: str, device: str):
    config = json.loads((checkpoint.path / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    modules = json.loads((checkpoint.path / "modules.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(checkpoint)
    model = load_model("AutoModel", checkpoint, dtype=dtype, device=device)
    dense = [m["path"] for m in modules if m["type"].endswith("Dense")]
    if not dense:
        raise CheckpointError(f"{checkpoint.name} has no Dense module in modules.json: this is not a ColBERT")
    query, passage = tokenizer.convert_tokens_to_ids(
        [config.get("query_prefix", "[Q] "), config.get("document_prefix", "[D] ")]
    )
    layout = Format(
        query,
        passage,
        tokenizer.mask_token_id if config.get("do_query_expansion", True) else None,
        config.get("query_length", 32),
        config.get("document_length", 180),
        _ids_of(tokenizer, config.get("skiplist_words", [])),
        config.get("attend_to_expansion_tokens", False),
    )
    layers = [_linear(checkpoint.path / path / "model.safetensors") for path in dense]
    return model, nn.Sequential(*layers), tokenizer, layout
