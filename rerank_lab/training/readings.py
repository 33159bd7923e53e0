"""What is trained, one class a reading: how a batch of groups becomes scores, and what is written at the end."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rerank_lab.batching import Encoded, encode_texts, pad, token_budget_batches
from rerank_lab.checkpoints import load_model, load_tokenizer, resolve
from rerank_lab.core import DataError
from rerank_lab.rerankers import colbert, monot5
from rerank_lab.rerankers.gated import GatedCrossEncoder, collate, side_by_side
from rerank_lab.training.data import Group
from rerank_lab.training.losses import listwise_kl, pairwise_bce

__all__ = ["ColBERTReading", "GatedReading", "Reading", "T5Reading", "make_reading"]

BATCH_TOKENS = 2048


class Reading(nn.Module, ABC):
    """A model in training. Its trained parameters are those that ask for gradients.

    Args:
        config: the parsed toml file.
        device: cpu, cuda ...

    Attributes:
        tokenizer: the backbone's.
        random: where a loss draws from; its state is kept with the weights, so that a resumed run draws what an
            unbroken one would.
    """

    def __init__(self, config: dict, device: str):
        super().__init__()
        self.config, self.device = config, device
        self.tokenizer = load_tokenizer(resolve(config["base"]))
        self.random = random.Random(config["seed"])

    @abstractmethod
    def parameter_groups(self) -> list[dict]:
        """For the optimizer: what is trained, and how fast."""

    @abstractmethod
    def scores(self, groups: list[Group]) -> Tensor:
        """Scores of a batch of groups, shape (groups, G)."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the checkpoint that `from_pretrained` of this family reads."""

    def loss(self, groups: list[Group], target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and scores of a batch; `target` holds a distribution over each group, shape (groups, G)."""
        scores = self.scores(groups)
        return listwise_kl(scores, target), scores

    def start(self, groups: list[Group]) -> None:
        """Prepare a new run with a few groups of its data."""

    def notes(self) -> dict[str, float]:
        """What the log says of the model beside its losses."""
        return {}

    def in_batches(self, rows: list[Encoded], forward: Callable[[list[Encoded]], Tensor]) -> Tensor:
        """Rows by length through the model; the results in the rows' order, along the first axis."""
        batches = token_budget_batches([len(r) for r in rows], BATCH_TOKENS)
        parts = [forward([rows[i] for i in batch]) for batch in batches]
        back = torch.tensor([i for batch in batches for i in batch], device=self.device).argsort()
        return torch.cat(parts)[back]


def _backbone_with_lora(config: dict, device: str):
    bert = load_model(
        "AutoModel",
        resolve(config["base"]),
        dtype="float32",
        device=device,
        add_pooling_layer=False,
        hidden_dropout_prob=0.0,  # one pass over the data with a low-rank update hardly overfits,
        attention_probs_dropout_prob=0.0,  # and dropout took 40 % of a step on 2 cores
    )
    lora = LoraConfig(
        r=config["lora"]["r"],
        lora_alpha=config["lora"]["alpha"],
        target_modules="all-linear",
        base_model_name_or_path=config["base"],
    )
    return bert, get_peft_model(bert, lora)  # the linear layers of `bert` are wrapped in place


def _export_lora(adapter, base: str, folder: Path) -> None:
    adapter.peft_config["default"].base_model_name_or_path = base
    adapter.save_pretrained(folder)
    _save_half(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors")


def _save_half(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}, path)


class GatedReading(Reading):
    """The cross-encoder: LoRA on every linear layer, the gates, and the reading of the score."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        bert, adapter = _backbone_with_lora(config, device)
        self.model = GatedCrossEncoder(bert).to(device)
        self._adapter = [adapter]  # in a list, so that its weights are not registered twice

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
        _export_lora(self._adapter[0], self.config["base"], folder)
        _save_half(self.model.head_state(), folder / "head.safetensors")


class ColBERTReading(Reading):
    """ColBERT: LoRA on every linear layer, and a projection that starts as the principal components."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        self.layout = colbert.lab_format(self.tokenizer)
        self.bert, adapter = _backbone_with_lora(config, device)
        self._adapter = [adapter]
        self.projection = nn.Linear(self.bert.config.hidden_size, config["dimensions"], bias=False).to(device)
        self.scale = nn.Parameter(torch.tensor(config["scale"], device=device))  # of training only: order needs none

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
        _export_lora(self._adapter[0], self.config["base"], folder)
        _save_half({"linear.weight": self.projection.weight}, folder / "projection.safetensors")


class T5Reading(Reading):
    """A small T5 for mono and duo prompts, with the word vectors of the backbone, which stay as they are."""

    def __init__(self, config: dict, device: str):
        super().__init__(config, device)
        from transformers import T5Config, T5ForConditionalGeneration

        backbone = load_model("AutoModel", resolve(config["base"]), dtype="float32", device="cpu")
        words = backbone.get_input_embeddings().weight  # (V, d)
        shape = T5Config(
            vocab_size=words.shape[0],
            d_model=words.shape[1],
            d_kv=words.shape[1] // config["heads"],
            num_heads=config["heads"],
            d_ff=config["feed_forward"],
            num_layers=config["encoder_layers"],
            num_decoder_layers=config["decoder_layers"],
            dropout_rate=0.0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.sep_token_id,
            decoder_start_token_id=self.tokenizer.cls_token_id,
            embeddings_from=config["base"],
        )
        self.model = T5ForConditionalGeneration(shape).to(device)
        with torch.no_grad():
            self.model.shared.weight.copy_(words)
            for block in self.model.encoder.block:  # attend to like words from the first step on
                attention = block.layer[0].SelfAttention
                attention.k.weight.copy_(attention.q.weight * shape.d_kv**0.5)
        self.model.shared.requires_grad_(False)
        self.answers = monot5.TrueOrFalse(self.model, self.tokenizer, max_length=config["max_length"])

    def parameter_groups(self) -> list[dict]:
        return [{"params": [p for p in self.model.parameters() if p.requires_grad], "lr": self.config["learning_rate"]}]

    def scores(self, groups: list[Group]) -> Tensor:
        rows = [r for g in groups for r in self.answers.encode(monot5.MONO, g.query, [(p,) for p in g.passages])]
        return self.in_batches(rows, self.answers.log_odds).view(len(groups), -1)

    def loss(self, groups: list[Group], target: Tensor) -> tuple[Tensor, Tensor]:
        """Mono prompts by the distribution over the group, some duo prompts by the chance that it gives each pair."""
        mono, scores = super().loss(groups, target)
        rows, chances = [], []
        for group, t in zip(groups, target.tolist(), strict=True):
            for _ in range(self.config["duo_per_group"]):
                i, j = self.random.sample(range(len(t)), 2)
                i = self.random.choice([i, max(range(len(t)), key=t.__getitem__)])
                if i != j:
                    rows += self.answers.encode(monot5.DUO, group.query, [(group.passages[i], group.passages[j])])
                    chances.append(t[i] / (t[i] + t[j]))
        if not rows:
            return mono, scores
        duo = pairwise_bce(self.in_batches(rows, self.answers.log_odds), torch.tensor(chances, device=self.device))
        return mono + duo, scores

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        state = self.model.state_dict()
        _save_half(
            {k: v for k, v in state.items() if v.data_ptr() != self.model.shared.weight.data_ptr()},
            folder / "model.safetensors",
        )


READINGS = {"gated": GatedReading, "colbert": ColBERTReading, "t5": T5Reading}


def make_reading(config: dict, device: str) -> Reading:
    """The reading that a config names.

    Raises:
        DataError: an unknown reading.
    """
    name = config.get("reading")
    if name not in READINGS:
        raise DataError(f"reading {name!r} is unknown: give {', '.join(READINGS)}")
    return READINGS[name](config, device)
