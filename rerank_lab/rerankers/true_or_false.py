"""A T5 that answers a prompt with `true` or `false`: what MonoT5 and DuoT5 share.

    P(true) = softmax(logit(false), logit(true))_true = sigmoid(l)      l = logit(true) - logit(false)

The logits are those of two words of the vocabulary at the first decoder step.
Nogueira et al., Document Ranking with a Pretrained Sequence-to-Sequence Model, 2020. https://arxiv.org/abs/2003.06713
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rerank_lab.batching import Encoded, encode_template, pad
from rerank_lab.checkpoints import Checkpoint, adapted, load, load_model, load_tokenizer, merge_lora, resolve
from rerank_lab.core import CheckpointError, InputError
from rerank_lab.rerankers.borrowed_t5 import assemble, of_its_own

__all__ = ["TrueOrFalse"]


class TrueOrFalse:
    """A T5 that answers a prompt with the log-odds of `true` against `false` at the first decoder step.

    Args:
        model: a T5 of transformers with a language-model head.
        tokenizer: its fast tokenizer.
        words: the vocabulary's words for false and true.
        max_length: tokens a prompt may have.
        key: what identifies weights and precision in the score cache.

    Raises:
        CheckpointError: a word is no single token of the vocabulary.
    """

    def __init__(
        self, model, tokenizer, words: Sequence[str] = ("false", "true"), max_length: int = 512, key: str = ""
    ):
        self.model, self.tokenizer, self.max_length = model.eval(), tokenizer, max_length
        self.false, self.true = (_word_id(tokenizer, word) for word in words)
        self.key = f"{key}|{self.false} {self.true}|{max_length}"

    @classmethod
    def from_pretrained(
        cls, name: str = "lab-t5", *, max_length: int | None = None, dtype: str = "auto", device: str = "auto"
    ) -> TrueOrFalse:
        """Load by short name, hub id or folder; `dtype` and `device` as in `checkpoints.load_model`.

        Args:
            name: `lab-t5`, `castorini/monot5-base-msmarco`, `./my-model` ...
            max_length: tokens a prompt may have, at most 512, the length that these models are trained at.

        Raises:
            InputError: a max_length below 8 or above 512, an unknown dtype, or a device that this machine lacks.
            CheckpointError: not found, not a T5, or without the words for true and false.
        """
        limit = 512 if max_length is None else max_length
        if not 8 <= limit <= 512:
            raise InputError(f"max_length is {max_length}: give 8 to 512 tokens")
        checkpoint = resolve(name)
        model, tokenizer = _load_t5(checkpoint, dtype, device)
        words = _words(Path(name).name, model.config.model_type)
        return cls(model, tokenizer, words, limit, f"{checkpoint.name}@{checkpoint.revision}|{dtype} on {device}")

    def encode(self, template: str, query: str, passages: Sequence[Sequence[str]]) -> list[Encoded]:
        """The filled-in prompts, one for each tuple of passages; only those are cut, so that `Relevant:` survives."""
        return encode_template(self.tokenizer, template, query, passages, self.max_length)

    def log_odds(self, rows: Sequence[Encoded]) -> Tensor:
        """log P(true) - log P(false) of a batch of prompts, shape (B,)."""
        return self.forward(rows)[0]

    def forward(self, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """The log-odds of a batch of prompts, shape (B,), and the encoder's states, shape (B, L, d)."""
        ids, mask = pad([r.ids for r in rows], self.tokenizer.pad_token_id, self.model.device)
        start = torch.full((len(rows), 1), self.model.config.decoder_start_token_id, device=self.model.device)
        out = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=start)
        logits = out.logits[:, 0]  # (B, V)
        return logits[:, self.true].float() - logits[:, self.false].float(), out.encoder_last_hidden_state


def _load_t5(checkpoint: Checkpoint, dtype: str, device: str):
    """Model and tokenizer; the lab's own T5 borrows its encoder, word vectors and vocabulary from the backbone.

    Raises:
        CheckpointError: not a T5, or its weights are damaged or do not fit the backbone's.
    """
    config = load("AutoConfig", checkpoint) if (checkpoint.path / "config.json").is_file() else None
    if getattr(config, "model_type", None) not in {"t5", "mt5"}:
        raise CheckpointError(f"{checkpoint.name} is not a T5: MonoT5 and DuoT5 need a model of the type t5 or mt5")
    backbone = adapted(checkpoint)
    if backbone is None:
        return load_model("AutoModelForSeq2SeqLM", checkpoint, dtype=dtype, device=device), load_tokenizer(checkpoint)
    bert = load_model("AutoModel", backbone, dtype=dtype, device=device)
    tokenizer = load_tokenizer(backbone)
    return _with_backbone(checkpoint, config, bert, tokenizer), tokenizer


def _with_backbone(checkpoint: Checkpoint, config, bert, tokenizer):
    """The lab's T5: the stored layers on the backbone, to whose weights the stored adapter is added."""
    from safetensors.torch import load_file

    try:
        stored = load_file(checkpoint.path / "model.safetensors")
        merge_lora(bert, checkpoint.path)
        model = assemble(config, bert, tokenizer)
        model.load_state_dict(stored, strict=False)
    except Exception as error:  # safetensors, json and torch each raise their own
        raise CheckpointError(
            f"{checkpoint.name}: a file in {checkpoint.path} is damaged, missing or does not fit its backbone; "
            "fetch it again"
        ) from error
    missing = of_its_own(model).keys() - stored.keys()
    if missing:
        raise CheckpointError(f"{checkpoint.name} lacks the weights {sorted(missing)}; fetch it again")
    return model.eval()


def _word_id(tokenizer, word: str) -> int:
    vocabulary = tokenizer.get_vocab()
    for piece in ("▁" + word, word):  # SentencePiece marks the start of a word, WordPiece its continuations
        if piece in vocabulary:
            return vocabulary[piece]
    raise CheckpointError(f"the vocabulary has no single token for the answer {word!r}: this is not a MonoT5 or DuoT5")


def _words(name: str, model_type: str) -> Sequence[str]:
    """The words for false and true, in this order (pygaggle `rerank/transformer.py`)."""
    if "ptt5" in name:
        return ("não", "sim")
    if "mt5-3B-mmarco" in name:
        return ("", "true")  # SentencePiece's bare mark of a word's start stands for false
    if model_type == "mt5" and "mt5-13b-mmarco" not in name:
        return ("no", "yes")
    return ("false", "true")
