"""What every model in training offers, whatever its family."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rerank_lab.batching import Encoded, token_budget_batches
from rerank_lab.checkpoints import load_model, load_tokenizer, resolve
from rerank_lab.training.data import Group
from rerank_lab.training.losses import loss_of

__all__ = ["Reading", "save_half"]

BATCH_TOKENS = 4096


class Reading(nn.Module, ABC):
    """A model in training. Its trained parameters are those that ask for gradients.

    Args:
        config: the parsed toml file.
        device: cpu, cuda ...

    Attributes:
        tokenizer: the backbone's.
        group_loss: of scores and target, both of shape (groups, G); the config's `loss`, without it `listwise_kl`.
        random: where a loss draws from; its state is kept with the weights, so that a resumed run draws what an
            unbroken one would.
    """

    def __init__(self, config: dict, device: str):
        super().__init__()
        self.config, self.device = config, device
        self.group_loss = loss_of(config.get("loss", "listwise_kl"))
        self.tokenizer = load_tokenizer(resolve(config["base"]))
        self.random = random.Random(config["seed"])

    @abstractmethod
    def parameter_groups(self) -> list[dict]:
        """For the optimizer: what is trained, and how fast."""

    @abstractmethod
    def compile_model(self) -> None:
        """Have torch.compile fuse the model's passes, for texts of any length."""

    @abstractmethod
    def scores(self, groups: list[Group]) -> Tensor:
        """Scores of a batch of groups, shape (groups, G)."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the checkpoint that `from_pretrained` of this family reads."""

    def loss(self, groups: list[Group], target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and scores of a batch; `target` holds a distribution over each group, shape (groups, G)."""
        scores = self.scores(groups)
        return self.group_loss(scores, target), scores

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

    def backbone_with_lora(self) -> nn.Module:
        """The config's backbone with a LoRA on every linear layer."""
        bert = load_model(
            "AutoModel",
            resolve(self.config["base"]),
            dtype="float32",
            device=self.device,
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,  # one pass over the data with a low-rank update hardly overfits,
            attention_probs_dropout_prob=0.0,  # and dropout took 40 % of a step on 2 cores
        )
        shape = self.config["lora"]
        lora = LoraConfig(r=shape["r"], lora_alpha=shape["alpha"], target_modules="all-linear")
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5 for a property by its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapter = get_peft_model(bert, lora)  # wraps the linear layers of `bert` in place
        self._adapter = [adapter]  # in a list, so that its weights are not registered twice
        return bert

    def export_lora(self, folder: Path) -> None:
        """Write the adapter in peft's format, in half precision, with the backbone's short name."""
        (adapter,) = self._adapter
        adapter.peft_config["default"].base_model_name_or_path = self.config["base"]
        adapter.save_pretrained(folder, save_embedding_layers=False)
        save_half(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors")


def save_half(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors in half precision."""
    save_file({k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}, path)
