"""A language model asked about one passage at a time: does it answer the query, yes or no?

    by logits:      s(p) = P(yes) = softmax over the next tokens `yes` and `no`
    by generation:  s(p) = 1 for a written "yes", 0 for "no"

By logits follows Qwen3-Reranker and its prompt (model card of Qwen/Qwen3-Reranker-0.6B; Zhang et al., 2025,
https://arxiv.org/abs/2506.05176). By generation works with every chat; its scores are few, so ties are many, and
tied passages keep the first stage's order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rerank_lab.batching import Encoded, encode_template, pad, score_in_batches
from rerank_lab.cache import Keep, ScoreCache, cached_scores
from rerank_lab.checkpoints import load_model, load_tokenizer, resolve
from rerank_lab.core import InputError, Passage, PointwiseReranker, Repairs, Usage
from rerank_lab.llm import Chat, ask_all, prompts, spoken

__all__ = ["Qwen3Reranker", "YesNoReranker", "parse_yes_no"]


def parse_yes_no(answer: str) -> bool | None:
    """Whether an answer says yes; None where it says neither or both.

    >>> parse_yes_no("Yes."), parse_yes_no("<think>yes?</think> no"), parse_yes_no("perhaps")
    (True, False, None)
    """
    words = {word.lower() for word in re.findall(r"\b(yes|no)\b", spoken(answer), flags=re.IGNORECASE)}
    return words.pop() == "yes" if len(words) == 1 else None


class YesNoReranker(PointwiseReranker):
    """Scores 1 for yes and 0 for no; an answer that is neither scores 0 and is counted as refused.

    Args:
        chat: who is asked, once a passage.
    """

    name = "pointwise-llm"

    def __init__(self, chat: Chat):
        self.chat = chat

    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        say = prompts("pointwise")["ask"]
        texts = list(dict.fromkeys(p.text for p in passages))
        asked = [[{"role": "user", "content": say.format(query=query, text=text)}] for text in texts]
        said = [parse_yes_no(answer) for answer in ask_all(self.chat, asked, usage, max_tokens=16)]
        usage.pairs += len(passages)
        usage.repairs += Repairs(refused=said.count(None))
        scores = {text: float(yes is True) for text, yes in zip(texts, said, strict=True)}
        return [scores[p.text] for p in passages]


class Qwen3Reranker(PointwiseReranker):
    """Scores a passage by P(yes); only the passage is cut where a prompt is too long.

    Args:
        model: a causal language model of transformers.
        tokenizer: its fast tokenizer; `yes` and `no` must be single tokens.
        instruction: what relevance means here; its authors advise to write one for the task.
        max_length: tokens a prompt may have.
        cache: where scores are kept; None switches it off.
        model_key: what identifies weights and precision in the cache.
    """

    name = "qwen3-reranker"

    def __init__(
        self,
        model,
        tokenizer,
        *,
        instruction: str | None = None,
        max_length: int = 8192,
        cache: ScoreCache | None = None,
        model_key: str = "",
    ):
        self.model, self.tokenizer, self.max_length, self.cache = model.eval(), tokenizer, max_length, cache
        say = prompts("qwen3")
        self.template = say["template"].replace("{instruction}", instruction or say["instruction"])
        vocabulary = tokenizer.get_vocab()
        if not {"yes", "no"} <= vocabulary.keys():
            raise InputError("the vocabulary has no single tokens for 'yes' and 'no': this is not a Qwen3-Reranker")
        self.yes, self.no = vocabulary["yes"], vocabulary["no"]
        self.cache_key = f"qwen3|{model_key}|{self.template}|{max_length}"

    @classmethod
    def from_pretrained(
        cls,
        name: str = "Qwen3-Reranker-0.6B",
        *,
        instruction: str | None = None,
        max_length: int = 8192,
        dtype: str = "auto",
        device: str = "auto",
        cache: ScoreCache | None = None,
    ) -> Qwen3Reranker:
        """Load by short name, hub id or folder; `dtype` and `device` as in `checkpoints.load_model`."""
        checkpoint = resolve(name)
        model = load_model("AutoModelForCausalLM", checkpoint, dtype=dtype, device=device)
        key = f"{checkpoint.name}@{checkpoint.revision}|{dtype} on {device}"
        tokenizer = load_tokenizer(checkpoint)
        return cls(model, tokenizer, instruction=instruction, max_length=max_length, cache=cache, model_key=key)

    @torch.inference_mode()
    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        def compute(texts: list[str], keep: Keep) -> list[float]:
            return score_in_batches(self._rows(query, texts), self.chance_of_yes, usage, keep)

        return cached_scores(self.cache, self.cache_key, query, passages, compute, usage)

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool]:
        return [row.truncated for row in self._rows(query, [p.text for p in passages])]

    def _rows(self, query: str, texts: Sequence[str]) -> list[Encoded]:
        return encode_template(self.tokenizer, self.template, query, [(t,) for t in texts], self.max_length)

    def chance_of_yes(self, rows: Sequence[Encoded]) -> Tensor:
        """P(yes) as the next token of prompts, shape (B,)."""
        ids, mask = pad([r.ids for r in rows], self.tokenizer.pad_token_id or 0, self.model.device)
        states = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, d)
        # padding stands on the right, where causal attention cannot see it, so the last real token is read
        last = states[torch.arange(len(rows)), mask.sum(1) - 1]  # (B, d)
        logits = self.model.lm_head(last)[:, [self.no, self.yes]].float()
        return logits.softmax(-1)[:, 1]
