"""What is trained, one class a reading: how a batch of groups becomes scores, and what is written at the end."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerank_lab.batching import Encoded, encode_texts, pad
from rerank_lab.core import DataError
from rerank_lab.first_stage.bi_encoder import mean_pool
from rerank_lab.rerankers import colbert
from rerank_lab.rerankers.gated import GatedCrossEncoder, collate, side_by_side
from rerank_lab.training.data import Group
from rerank_lab.training.reading import Reading, save_half
from rerank_lab.training.t5_reading import T5Reading

__all__ = ["BiEncoderReading", "ColBERTReading", "GatedReading", "make_reading"]


class BiEncoderReading(Reading):
    """The bi-encoder: LoRA on every linear layer; the cosine's scale is of training only."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        self.bert = self.backbone_with_lora()
        self.scale = nn.Parameter(torch.tensor(config["scale"], device=device))

    def compile_model(self) -> None:
        self.bert.compile(dynamic=True)

    def parameter_groups(self) -> list[dict]:
        low_rank = [p for n, p in self.named_parameters() if "lora_" in n]
        return [{"params": low_rank, "lr": self.config["learning_rate"]}, {"params": [self.scale], "lr": 1e-1}]

    def scores(self, groups: list[Group]) -> Tensor:
        def forward(batch: list[Encoded]) -> Tensor:
            ids, mask = pad([r.ids for r in batch], self.tokenizer.pad_token_id, self.device)
            return mean_pool(self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask)

        texts = [t for g in groups for t in (g.query, *g.passages)]
        vectors = self.in_batches(encode_texts(self.tokenizer, texts, self.config["max_length"]), forward)
        vectors = vectors.view(len(groups), -1, vectors.shape[-1])  # (groups, 1 + G, d), the query first
        return self.scale * (vectors[:, 1:] @ vectors[:, 0, :, None]).squeeze(-1)

    def notes(self) -> dict[str, float]:
        return {"scale": round(self.scale.item(), 3)}

    def export(self, folder: Path) -> None:
        self.export_lora(folder)


class GatedReading(Reading):
    """The cross-encoder: LoRA on every linear layer, the gates, and the reading of the score."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        self.model = GatedCrossEncoder(self.backbone_with_lora()).to(device)

    def compile_model(self) -> None:
        self.model.states = torch.compile(self.model.states, dynamic=True)

    def parameter_groups(self) -> list[dict]:
        head = [p for n, p in self.model.named_parameters() if not n.startswith("bert.") and n != "cls.weight"]
        low_rank = [p for n, p in self.model.named_parameters() if "lora_" in n] + [self.model.cls.weight]
        return [
            {"params": low_rank, "lr": self.config["learning_rate"]},
            {"params": head, "lr": self.config["gate_learning_rate"]},
        ]

    def _rows(self, group: Group) -> list[Encoded]:
        """The pairs of a group, of at most `max_length` tokens each."""
        (query,) = encode_texts(self.tokenizer, [group.query], self.config["max_length"] - 16)
        passages = encode_texts(self.tokenizer, group.passages, self.config["max_length"] - len(query))
        return [side_by_side(query, passage) for passage in passages]

    def scores(self, groups: list[Group]) -> Tensor:
        rows = [row for group in groups for row in self._rows(group)]
        scores = self.in_batches(rows, lambda batch: self.model(**collate(batch, self.device)))
        return scores.view(len(groups), -1)

    def notes(self) -> dict[str, float]:
        return {"gate_mean": round(self.model.gate.mean().item(), 3)}

    def export(self, folder: Path) -> None:
        self.export_lora(folder)
        save_half(self.model.head_state(), folder / "head.safetensors")


class ColBERTReading(Reading):
    """ColBERT: LoRA on every linear layer, and a projection that starts as the principal components."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        self.layout = colbert.lab_format(self.tokenizer)
        self.bert = self.backbone_with_lora()
        self.projection = nn.Linear(self.bert.config.hidden_size, config["dimensions"], bias=False).to(device)
        self.scale = nn.Parameter(torch.tensor(config["scale"], device=device))  # of training only: order needs none

    def compile_model(self) -> None:
        self.bert.compile(dynamic=True)

    def parameter_groups(self) -> list[dict]:
        low_rank = [p for n, p in self.named_parameters() if "lora_" in n]
        return [
            {"params": low_rank, "lr": self.config["learning_rate"]},
            {"params": self.projection.parameters(), "lr": self.config["projection_learning_rate"]},
            {"params": [self.scale], "lr": 1e-2},
        ]

    def _states(self, rows: list[Encoded], attend: list[list[int]] | None = None) -> tuple[Tensor, Tensor]:
        ids, real = pad([r.ids for r in rows], self.tokenizer.pad_token_id, self.device)
        seen = pad(attend, 0, self.device)[0] if attend else real
        counted = (real == 1) & (pad([r.segments for r in rows], 1, self.device)[0] == 0)
        return self.bert(input_ids=ids, attention_mask=seen).last_hidden_state, counted

    @torch.no_grad()
    def start(self, groups: list[Group]) -> None:
        """Point the projection at the directions in which token states differ most, so that little is lost at first."""
        rows = colbert.passage_rows(self.tokenizer, self.layout, [p for g in groups for p in g.passages])
        parts = [rows[i : i + 16] for i in range(0, len(rows), 16)]
        states = torch.cat([s[c] for s, c in (self._states(part) for part in parts)]).float()  # (tokens, hidden)
        self.projection.weight.copy_(torch.linalg.svd(states, full_matrices=False).Vh[: self.config["dimensions"]])

    def scores(self, groups: list[Group]) -> Tensor:
        limit = self.config["max_length"]
        asked = [colbert.query_row(self.tokenizer, self.layout, g.query, limit) for g in groups]
        states, _ = self._states(asked, [[1 - s for s in r.segments] for r in asked])
        queries = F.normalize(self.projection(states).float(), dim=-1)  # (groups, Lq, d)
        there = pad([r.ids for r in asked], 0, self.device)[1]  # 0 where a longer query of the batch goes on
        size = len(groups[0].passages)
        rows = colbert.passage_rows(self.tokenizer, self.layout, [p for g in groups for p in g.passages])
        owners = {id(row): i // size for i, row in enumerate(rows)}

        def forward(batch: list[Encoded]) -> Tensor:
            states, counted = self._states(batch)
            passages = F.normalize(self.projection(states).float(), dim=-1)
            own = torch.tensor([owners[id(row)] for row in batch], device=self.device)
            best = (queries[own] @ passages.transpose(1, 2)).masked_fill(~counted[:, None, :], float("-inf")).amax(-1)
            return (best * there[own]).sum(-1)

        return self.scale * self.in_batches(rows, forward).view(len(groups), -1)

    def notes(self) -> dict[str, float]:
        return {"scale": round(self.scale.item(), 3)}

    def export(self, folder: Path) -> None:
        self.export_lora(folder)
        save_half({"linear.weight": self.projection.weight}, folder / "projection.safetensors")


READINGS = {"bi-encoder": BiEncoderReading, "gated": GatedReading, "colbert": ColBERTReading, "t5": T5Reading}


def make_reading(config: dict, device: str) -> Reading:
    """The reading that a config names.

    Raises:
        DataError: an unknown reading.
    """
    name = config.get("reading")
    if name not in READINGS:
        raise DataError(f"reading {name!r} is unknown: give {', '.join(READINGS)}")
    return READINGS[name](config, device)
