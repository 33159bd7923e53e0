"""Train a bundled model by its config file. Run: `make train`.

A run lives in a folder: `state.pt` (the last checkpoint), `log.jsonl` (the curve), `export/` (the best so far). Started
again, it goes on from there. The pairs lie beside it, made once for all models that train on the same ones.
Hu et al., LoRA, ICLR 2022. https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import sys
from pathlib import Path
from time import perf_counter

import torch

from rerank_lab.checkpoints import tomllib
from rerank_lab.core import DataError, RerankLabError
from rerank_lab.first_stage.bi_encoder import BiEncoder
from rerank_lab.training.data import Group, GroupMaker, load_groups, save_groups
from rerank_lab.training.losses import teacher_target
from rerank_lab.training.readings import make_reading

__all__ = ["Trainer", "main"]


class Trainer:
    """One run of one configuration.

    Args:
        config: the parsed toml file.
        run: the run's folder; made when missing.
    """

    def __init__(self, config: dict, run: Path):
        self.config, self.run = config, run
        run.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config["seed"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.reading = make_reading(config, self.device)
        if config["compile"] and compiler_available():
            self.reading.compile_model()
        self.optimizer = torch.optim.AdamW(self.reading.parameter_groups(), weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._warm_up_then_cosine)
        self.step = 0
        self.best, self.worse = math.inf, 0  # the lowest validation loss, and how many validations ago it was

    def _warm_up_then_cosine(self, step: int) -> float:
        warm = max(1, int(self.config["warmup"] * self.config["steps"]))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.config["steps"] - warm)))

    def groups(self) -> tuple[list[Group], list[Group]]:
        """Groups for training and for validation; no query is in both."""
        groups = self._pairs()
        queries = sorted({g.query for g in groups})
        random.Random(self.config["seed"]).shuffle(queries)
        held_out = set(queries[: self.config["validation_groups"]])
        validation = list({g.query: g for g in reversed(groups) if g.query in held_out}.values())
        training = [g for g in groups if g.query not in held_out]
        if not training or not validation:
            raise DataError(
                f"{len(training)} groups to train on and {len(validation)} to validate are too few: raise the counts "
                "of the mix or lower validation_groups"
            )
        return training, validation

    def _pairs(self) -> list[Group]:
        pairs, base = self.config["pairs"], self.config["base"]
        digest = hashlib.sha256(json.dumps([pairs, base], sort_keys=True).encode()).hexdigest()[:8]
        path = self.run.parent / f"pairs-{digest}.jsonl"
        if not path.exists():
            encoder = BiEncoder.from_pretrained(base, max_length=128, dtype="bfloat16")
            if self.config["compile"] and compiler_available():
                encoder.model.compile(dynamic=True)
            maker = GroupMaker(Path(pairs["data"]), encoder, pairs["seed"], pairs["negatives"])
            save_groups(list(maker.make(pairs["mix"])), path)
        return load_groups(path)

    def schedule(self, training: list[Group]) -> list[list[Group]]:
        """The groups of each step: passes over the pairs, each in an order of its own."""
        shuffle = random.Random(self.config["seed"]).shuffle
        size, steps = self.config["groups_per_step"], self.config["steps"]
        queue: list[Group] = []
        training = list(training)
        while len(queue) < steps * size:
            shuffle(training)
            queue += training
        return [queue[i * size : (i + 1) * size] for i in range(steps)]

    def loss(self, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a batch, and its scores, shape (groups, G)."""
        teacher = torch.tensor([g.teacher for g in groups], device=self.device)
        gain = torch.tensor([g.gains for g in groups], device=self.device)
        target = teacher_target(teacher, gain, self.config["temperature"], self.config["boost"])
        with torch.autocast(self.device, torch.bfloat16):
            return self.reading.loss(groups, target)

    @torch.no_grad()
    def validate(self, groups: list[Group]) -> dict[str, float]:
        """Mean loss, and the share of groups whose highest score, ties included, has the group's highest gain."""
        self.reading.eval()
        total, right = 0.0, 0
        for start in range(0, len(groups), 8):
            batch = groups[start : start + 8]
            loss, scores = self.loss(batch)
            total += loss.item() * len(batch)
            for group, row in zip(batch, scores, strict=True):
                highest = (row == row.max()).nonzero().flatten().tolist()  # of several, each has to be right
                right += all(group.gains[i] == max(group.gains) for i in highest)
        self.reading.train()
        return {"loss": round(total / len(groups), 4), "first_is_best": round(right / len(groups), 4)}

    def train(self) -> None:
        """Run to the last step, validating, logging and saving on the way."""
        training, validation = self.groups()
        plan = self.schedule(training)
        self.resume(training)
        self.reading.train()
        started, first = perf_counter(), self.step
        running = 0.0
        while self.step < self.config["steps"] and self.worse < self.config["patience"]:
            loss, _ = self.loss(plan[self.step])
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.reading.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
            if self.step % self.config["validate_every"] == 0 or self.step == self.config["steps"]:
                entry = {"step": self.step, "training_loss": round(running, 4), **self.validate(validation)}
                entry |= self.reading.notes()
                entry["seconds"] = round(perf_counter() - started, 1)
                entry["steps_per_second"] = round((self.step - first) / (perf_counter() - started), 3)
                with (self.run / "log.jsonl").open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                print(json.dumps(entry), flush=True)
                better = entry["loss"] < self.best
                self.best, self.worse = (entry["loss"], 0) if better else (self.best, self.worse + 1)
                self.save(export=better)

    def resume(self, training: list[Group]) -> None:
        """Go on from the last checkpoint of this run."""
        path = self.run / "state.pt"
        if not path.exists():
            self.reading.start(training[:64])
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.reading.load_state_dict(state["trained"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.reading.random.setstate(state["random"])
        self.step, self.best, self.worse = state["step"], state["best"], state["worse"]

    def save(self, export: bool) -> None:
        """Keep the run's state and, where it is the best so far, export the checkpoint in fp16 to `<run>/export`.

        An export appears whole: its files belong to one step. It comes before the state, so that a run stopped between
        the two makes it again.
        """
        if export:
            part, whole = self.run / "export.part", self.run / "export"
            shutil.rmtree(part, ignore_errors=True)
            self.reading.export(part)
            shutil.rmtree(whole, ignore_errors=True)
            part.replace(whole)
        trained = {n: p.detach() for n, p in self.reading.named_parameters() if p.requires_grad}
        state = {
            "trained": trained,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": self.reading.random.getstate(),
            "step": self.step,
            "best": self.best,
            "worse": self.worse,
        }
        part = self.run / "state.part"
        torch.save(state, part)
        part.replace(self.run / "state.pt")


def compiler_available() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    return torch.cuda.is_available() or shutil.which("g++") is not None


def read_config(path: Path) -> dict:
    """A model's config, with the pairs that it names."""
    config = tomllib.loads(path.read_text(encoding="utf-8"))
    config["pairs"] = tomllib.loads((path.parent / config["pairs"]).read_text(encoding="utf-8"))
    return config


def main(arguments: list[str] | None = None) -> int:
    """Train by a config file; an error of the lab ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--steps", type=int, help="fewer steps than the config says, for a try")
    options = parser.parse_args(arguments)
    config = read_config(options.config)
    if options.steps:
        config["steps"] = options.steps
    run = options.run or Path("runs") / config["name"]
    try:
        Trainer(config, run).train()
    except RerankLabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"checkpoint written to {run / 'export'}; copy it to rerank_lab/weights/{config['name']} to bundle it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
