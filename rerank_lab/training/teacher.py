"""What the untrained backbone thinks of a pair: the mean of its cosine and its MaxSim.

    t(q, p) = (cos(mean of q's token states, mean of p's) + mean over q's tokens of max over p's tokens of cos) / 2

It orders the passages that no label tells apart, and keeps a student from forgetting what the backbone knew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_lab.batching import encode_texts, pad, progress_bar, token_budget_batches
from rerank_lab.first_stage.bi_encoder import BiEncoder

__all__ = ["Teacher"]


class Teacher:
    """Scores pairs by both readings of one encoder; texts that occur twice are read once.

    Args:
        encoder: gives the model, the tokenizer and the length at which texts are cut.
    """

    def __init__(self, encoder: BiEncoder):
        self.encoder = encoder

    @torch.inference_mode()
    def states(self, texts: Sequence[str]) -> list[Tensor]:
        """Unit token states (L, d) of texts, special tokens included, in half precision."""
        model, tokenizer = self.encoder.model, self.encoder.tokenizer
        rows = encode_texts(tokenizer, texts, self.encoder.max_length)
        made: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch in progress_bar(token_budget_batches([len(r) for r in rows]), "teacher", len(rows) > 1000):
            ids, mask = pad([rows[i].ids for i in batch], tokenizer.pad_token_id, model.device)
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, d)
            for i, one in zip(batch, states, strict=True):
                made[i] = one[: len(rows[i])].half().cpu()
        return made

    def scores(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """One score in -1..1 for each passage of each query."""
        texts = list(dict.fromkeys(t for q, found in zip(queries, passages, strict=True) for t in (q, *found)))
        states = dict(zip(texts, self.states(texts), strict=True))
        means = {t: F.normalize(s.float().mean(0), dim=0) for t, s in states.items()}
        units = {t: F.normalize(s.float(), dim=-1).half() for t, s in states.items()}
        return [
            [
                (float(means[q] @ means[p]) + float((units[q].float() @ units[p].float().T).amax(1).mean())) / 2
                for p in found
            ]
            for q, found in zip(queries, passages, strict=True)
        ]
