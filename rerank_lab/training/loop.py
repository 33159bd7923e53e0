"""Train a bundled model by its config file. Run: `make train`.

A run lives in a folder: `groups.jsonl` and `finish.jsonl` (made once), `state.pt` (the last checkpoint),
`log.jsonl` (the curve). Started again, it goes on from there. Hu et al., LoRA, ICLR 2022.
https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import argparse
import json
import math
import random
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
        self.optimizer = torch.optim.AdamW(self.reading.parameter_groups(), weight_decay=0.0)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._warm_up_then_cosine)
        self.step = 0

    def _warm_up_then_cosine(self, step: int) -> float:
        warm = max(1, int(self.config["warmup"] * self.config["steps"]))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.config["steps"] - warm)))

    def groups(self) -> tuple[list[Group], list[Group], list[Group]]:
        """Groups for training, for validation (no query is in both), and for the end of the run."""
        groups = self._made("groups", self.config["mix"])
        finish = self._made("finish", self.config["finish"]["mix"])
        queries = sorted({g.query for g in groups})
        random.Random(self.config["seed"]).shuffle(queries)
        held_out = set(queries[: self.config["validation_groups"]])
        validation = list({g.query: g for g in reversed(groups) if g.query in held_out}.values())
        training = [g for g in groups if g.query not in held_out]
        if not training or not validation or len(finish) < self.config["finish"]["groups_per_step"]:
            raise DataError(
                f"{len(training)} groups to train on, {len(validation)} to validate and {len(finish)} for the finish "
                "are too few: raise the counts of the mix or lower validation_groups"
            )
        return training, validation, finish

    def _made(self, name: str, mix: dict[str, int]) -> list[Group]:
        path = self.run / f"{name}.jsonl"
        if not path.exists():
            encoder = BiEncoder.from_pretrained(self.config["base"], max_length=128, dtype="bfloat16")
            save_groups(list(GroupMaker(Path(self.config["data"]), encoder, self.config["seed"]).make(mix)), path)
        return load_groups(path)

    def schedule(self, training: list[Group], finish: list[Group]) -> list[list[Group]]:
        """The groups of each step: passes over the mix; from `finish.from_step` on, some are of the finish."""
        shuffle = random.Random(self.config["seed"]).shuffle
        size, steps = self.config["groups_per_step"], self.config["steps"]
        queue: list[Group] = []
        training = list(training)
        while len(queue) < steps * size:
            shuffle(training)
            queue += training
        plan = [queue[i * size : (i + 1) * size] for i in range(steps)]
        last: list[Group] = []
        few = self.config["finish"]["groups_per_step"]
        for step in range(self.config["finish"]["from_step"], steps):
            if len(last) < few:
                last = list(finish)
                shuffle(last)
            plan[step][:few] = [last.pop() for _ in range(few)]
        return plan

    def loss(self, groups: list[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a batch, and its scores, shape (groups, G)."""
        cosine = torch.tensor([g.cosines for g in groups], device=self.device)
        gain = torch.tensor([g.gains for g in groups], device=self.device)
        target = teacher_target(cosine, gain, self.config["temperature"], self.config["boost"])
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
        training, validation, finish = self.groups()
        plan = self.schedule(training, finish)
        self.resume(training)
        self.reading.train()
        started, first = perf_counter(), self.step
        running = 0.0
        while self.step < self.config["steps"]:
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
                self.save()

    def resume(self, training: list[Group]) -> None:
        """Go on from the last checkpoint of this run; a new run begins with the end of `start`, if it names one."""
        path = self.run / "state.pt"
        if not path.exists():
            if "start" in self.config:
                before = torch.load(self._before(), map_location=self.device, weights_only=True)
                self.reading.load_state_dict(before["trained"], strict=False)
            self.reading.start(training[:64])
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.reading.load_state_dict(state["trained"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.reading.random.setstate(state["random"])
        self.step = state["step"]

    def _before(self) -> Path:
        path = Path(self.config["start"]) / "state.pt"
        if not path.exists():
            raise DataError(f"{path} is missing: run the config that makes {self.config['start']} first")
        return path

    def save(self) -> None:
        """Keep the run's state, and export the checkpoint as fp16 safetensors to `<run>/export`."""
        trained = {n: p.detach() for n, p in self.reading.named_parameters() if p.requires_grad}
        state = {
            "trained": trained,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": self.reading.random.getstate(),
            "step": self.step,
        }
        part = self.run / "state.part"
        torch.save(state, part)
        part.replace(self.run / "state.pt")
        self.reading.export(self.run / "export")


def main(arguments: list[str] | None = None) -> int:
    """Train by a config file; an error of the lab ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--steps", type=int, help="fewer steps than the config says, for a try")
    options = parser.parse_args(arguments)
    config = tomllib.loads(options.config.read_text())
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
