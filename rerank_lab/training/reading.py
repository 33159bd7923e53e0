"""What every model in training offers, whatever its family."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rerank_lab.batching import Encoded, token_budget_batches
from rerank_lab.checkpoints import load_tokenizer, resolve
from rerank_lab.training.data import Group
from rerank_lab.training.losses import listwise_kl

__all__ = ["BATCH_TOKENS", "Reading", "save_half"]

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


def save_half(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors in half precision."""
    save_file({k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}, path)
