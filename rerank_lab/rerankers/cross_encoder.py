"""The cross-encoder: query and passage are read together, so every token of one can attend to every token of the other.

    score(q, p) = w . BERT([CLS] q [SEP] p [SEP])_[CLS] + b

Nogueira and Cho, Passage Re-ranking with BERT, 2019. https://arxiv.org/abs/1901.04085

`CrossEncoder.from_pretrained` reads two kinds of checkpoint: any sequence classifier of the hub with one logit,
by the equation above; and the lab's own adapter, by the reading in `rerankers/gated.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rerank_lab.batching import Encoded, encode_pairs, encode_texts, length_limit, pad, score_in_batches
from rerank_lab.cache import Keep, ScoreCache, cached_scores
from rerank_lab.checkpoints import Checkpoint, adapted, load, load_model, load_tokenizer, merge_lora, resolve
from rerank_lab.core import CheckpointError, InputError, Passage, PointwiseReranker, Usage
from rerank_lab.rerankers.gated import GatedCrossEncoder, collate, side_by_side

__all__ = ["CrossEncoder"]


class CrossEncoder(PointwiseReranker):
    """Scores query-passage pairs with a transformer.

    Args:
        encode: gives each pair of a query and texts as the model reads it.
        forward: gives scores (B,) of a batch of encoded pairs.
        name: what tables call it.
        cache: where scores are kept; None switches it off.
        model_key: what identifies weights, template and precision in the cache.
    """

    def __init__(
        self,
        encode: Callable[[str, Sequence[str]], list[Encoded]],
        forward: Callable[[list[Encoded]], Tensor],
        *,
        name: str = "cross-encoder",
        cache: ScoreCache | None = None,
        model_key: str = "",
    ):
        self.encode, self.forward = encode, forward
        self.name, self.cache, self.cache_key = name, cache, f"cross-encoder|{model_key}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "lab-cross-encoder",
        *,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        cache: ScoreCache | None = None,
    ) -> CrossEncoder:
        """Load by short name, hub id or folder.

        Args:
            name: `lab-cross-encoder`, `BAAI/bge-reranker-v2-m3`, `./my-model` ...
            max_length: tokens a pair may have; without it, what the checkpoint takes, at most 512.
            dtype: float32, bfloat16, float16; auto is float32 on a CPU.
            device: cpu, cuda ...; auto takes a GPU where there is one.
            cache: where scores are kept; None switches it off.

        Raises:
            CheckpointError: not found, or not a sequence classifier with one logit.
        """
        checkpoint = resolve(name)
        build = _gated if adapted(checkpoint) else _classifier
        encode, forward, limit = build(checkpoint, max_length, dtype, device)
        key = f"{checkpoint.name}@{checkpoint.revision}|{build.__name__}|{dtype} on {device}|{limit}"
        return cls(encode, forward, name=checkpoint.path.name if build is _gated else name, cache=cache, model_key=key)

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str], keep: Keep) -> list[float]:
            return score_in_batches(self.encode(query, texts), self.forward, usage, keep)

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool]:
        return [row.truncated for row in self.encode(query, [p.text for p in passages])]


def _classifier(checkpoint: Checkpoint, max_length: int | None, dtype: str, device: str):
    """The reading of hub checkpoints: the tokenizer's pair template and the single logit."""
    config = load("AutoConfig", checkpoint)
    if config.num_labels != 1:
        raise CheckpointError(
            f"{checkpoint.name} has {config.num_labels} output labels: a cross-encoder needs a sequence classifier "
            "with one (a bi-encoder or language model is loaded by its own class)"
        )
    tokenizer = load_tokenizer(checkpoint)
    model = load_model("AutoModelForSequenceClassification", checkpoint, dtype=dtype, device=device)
    limit = length_limit(max_length, 512, config, tokenizer)
    with_types = "token_type_ids" in tokenizer.model_input_names

    def forward(rows: list[Encoded]) -> Tensor:
        ids, mask = pad([r.ids for r in rows], tokenizer.pad_token_id, model.device)
        types = {"token_type_ids": pad([r.segments for r in rows], 0, model.device)[0]} if with_types else {}
        return model(input_ids=ids, attention_mask=mask, **types).logits[:, 0]

    return lambda query, texts: encode_pairs(tokenizer, query, texts, limit), forward, limit


def _gated(checkpoint: Checkpoint, max_length: int | None, dtype: str, device: str):
    """The reading of the lab's adapters: LoRA merged into the backbone, both sides under one gated attention."""
    backbone = adapted(checkpoint)
    tokenizer = load_tokenizer(backbone)
    bert = load_model("AutoModel", backbone, dtype=dtype, device=device, add_pooling_layer=False)
    merge_lora(bert, checkpoint.path)
    model = GatedCrossEncoder(bert)
    model.load_head(checkpoint.path)
    model = model.eval().to(bert.device)
    limit = length_limit(max_length, 512, bert.config, tokenizer)

    def encode(query: str, texts: Sequence[str]) -> list[Encoded]:
        (left,) = encode_texts(tokenizer, [query], 10**9)
        room = limit - len(left)
        if room < 3:
            raise InputError(
                f"the query takes {len(left)} of the model's {limit} tokens and leaves none for a passage: "
                "shorten the query"
            )
        return [side_by_side(left, right) for right in encode_texts(tokenizer, texts, room)]

    return encode, lambda rows: model(**collate(rows, bert.device)), limit
