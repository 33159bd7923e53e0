"""The lab's own cross-encoder: a bi-encoder that learned how far to look across.

Query and passage are laid side by side and read by one BERT in one pass. In each attention head h of each layer
l a learned gate g[l, h] is added to the attention logits between the two sides:

    attention(i, j) = softmax_j( k_j . q_i / sqrt(d)  +  g[l, h] * [i and j on different sides] )

With g = -inf no token sees the other side, and the pass is exactly the bi-encoder's two passes; with g = 0 it
is an ordinary cross-encoder. Training starts at g = -2, half blindfold, so that what the pretrained bi-encoder
knows is not lost on the way (the idea of a gate that starts shut: Alayrac et al., Flamingo, 2022, section 3.1.
https://arxiv.org/abs/2204.14198).

The score reads the token states after the last layer in three ways, weighted by learned numbers:

    score = a * cos(mean query state, mean passage state) + b * mean over query tokens of MaxSim + w . [CLS] + c
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank_lab.batching import Encoded, pad
from rerank_lab.core import CheckpointError
from rerank_lab.first_stage.bi_encoder import mean_pool

__all__ = ["GATE_AT_START", "GatedCrossEncoder", "collate", "side_by_side"]

GATE_AT_START = -2.0


def side_by_side(query: Encoded, passage: Encoded) -> Encoded:
    """`[CLS] query [SEP]` and `[CLS] passage [SEP]` in one row; the segment tells the sides apart."""
    segments = [0] * len(query) + [1] * len(passage)
    return Encoded(query.ids + passage.ids, segments, passage.truncated)


def collate(rows: list[Encoded], device="cpu") -> dict[str, Tensor]:
    """Pad rows of `side_by_side` to one batch: ids (B, L), and segments (B, L) with -1 for padding."""
    ids, _ = pad([r.ids for r in rows], 0, device)
    segments, mask = pad([r.segments for r in rows], 0, device)
    return {"ids": ids, "segments": segments.masked_fill(mask == 0, -1)}


class GatedCrossEncoder(nn.Module):
    """BERT over both sides with a gate between them.

    Args:
        bert: a transformers `BertModel` without pooler.
    """

    def __init__(self, bert):
        super().__init__()
        self.bert = bert
        shape = (bert.config.num_hidden_layers, bert.config.num_attention_heads)
        self.gate = nn.Parameter(torch.full(shape, GATE_AT_START))
        self.weights = nn.Parameter(torch.tensor([6.0, 12.0]))  # of cosine and MaxSim
        self.cls = nn.Linear(bert.config.hidden_size, 1)
        nn.init.zeros_(self.cls.weight)
        nn.init.zeros_(self.cls.bias)

    def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Score pairs.

        Args:
            ids: token ids, shape (B, L).
            segments: 0 on the query's side, 1 on the passage's, -1 for padding, shape (B, L).

        Returns:
            Scores, shape (B,), float32.
        """
        return self.read(self.states(ids, segments), segments)

    def states(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Token states after the last layer, shape (B, L, d)."""
        passage_start = (segments == 0).sum(1, keepdim=True)  # (B, 1)
        place = torch.arange(ids.shape[1], device=ids.device)[None, :]  # (1, L)
        positions = torch.where(segments == 1, place - passage_start, place)  # each side counts from 0
        positions = positions.clamp(max=self.bert.config.max_position_embeddings - 1)  # padding only
        states = self.bert.embeddings(input_ids=ids, position_ids=positions)
        kind = ids.device.type
        bias_type = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        real = (segments >= 0)[:, None, None, :]
        across = (segments[:, None, :, None] != segments[:, None, None, :]).to(bias_type)  # (B, 1, L, L)
        padding = torch.zeros(real.shape, dtype=bias_type, device=ids.device).masked_fill(~real, -1e4)
        for layer, gate in zip(self.bert.encoder.layer, self.gate.to(bias_type), strict=True):
            states = layer(states, attention_mask=padding + across * gate[None, :, None, None])
        return states

    def read(self, states: Tensor, segments: Tensor) -> Tensor:
        """From token states (B, L, d) to scores (B,)."""
        states = states.float()
        query, passage = segments == 0, segments == 1
        cosine = (mean_pool(states, query) * mean_pool(states, passage)).sum(-1)  # (B,)
        unit = F.normalize(states, dim=-1)
        longest = int(query.sum(1).max())
        similarity = unit[:, :longest] @ unit.transpose(1, 2)  # (B, Lq, L)
        best = similarity.masked_fill(~passage[:, None, :], float("-inf")).amax(-1)  # (B, Lq)
        counted = query[:, :longest]
        maxsim = best.masked_fill(~counted, 0).sum(1) / counted.sum(1)
        return self.weights[0] * cosine + self.weights[1] * maxsim + self.cls(states[:, 0]).squeeze(-1)

    def head_state(self) -> dict[str, Tensor]:
        """What training changes beside the adapter: gates and the reading."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("bert.")}

    def load_head(self, folder: Path) -> None:
        """Read gates and reading from `head.safetensors`."""
        from safetensors.torch import load_file

        head = {k: v.float() for k, v in load_file(folder / "head.safetensors").items()}
        if head.keys() != self.head_state().keys():
            raise CheckpointError(f"{folder / 'head.safetensors'} holds {sorted(head)}, not a head of this model")
        self.load_state_dict(head, strict=False)
