"""Chat: one question to a language model, wherever it runs, and a record of every answer.

Three kinds offer `ask`: an OpenAI-compatible endpoint (`rerank_lab.endpoint`), a local transformers model
(`LocalModel`), and recorded replies (`Recorder`), alone or in front of one of the others, so that an answer is never
asked for, or paid for, twice.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase
from typing import Protocol

from rerank_lab.checkpoints import load_model, load_tokenizer, resolve, tomllib
from rerank_lab.core import DataError, RerankLabError, Usage

__all__ = [
    "Chat",
    "LocalModel",
    "MissingReplyError",
    "Recorder",
    "Reply",
    "ask_all",
    "estimated_tokens",
    "parse_label",
    "prompts",
    "spoken",
    "whole_lines",
]

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


class MissingReplyError(RerankLabError):
    """A prompt that the record does not hold, with no model behind it to ask."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, and what that took.

    Attributes:
        text: the answer.
        input_tokens: tokens of the prompt.
        output_tokens: tokens of the answer.
        dollars: US dollars billed; 0 for a local model and for a recorded reply.
        replayed: whether it comes from a record.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    replayed: bool = False


class Chat(Protocol):
    """A language model that answers a conversation.

    Attributes:
        model: its name.
        concurrency: how many questions it takes at once.
    """

    model: str
    concurrency: int

    def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Reply:
        """The answer to a conversation, at temperature 0."""


def ask_all(chat: Chat, conversations: Sequence[Sequence[Message]], usage: Usage, *, max_tokens: int) -> list[str]:
    """Answers to several conversations, in their order, asked `chat.concurrency` at a time.

    Args:
        usage: calls, tokens and dollars are added to, also of the answers that came before one failed.
    """
    with ThreadPoolExecutor(max(1, min(chat.concurrency, len(conversations)))) as pool:
        asked = [pool.submit(chat.ask, c, max_tokens=max_tokens) for c in conversations]
    for future in asked:
        if future.exception() is None:
            reply = future.result()
            usage.calls += 1
            usage.input_tokens += reply.input_tokens
            usage.output_tokens += reply.output_tokens
            usage.dollars += reply.dollars
            usage.replayed += reply.replayed
    return [future.result().text for future in asked]


@cache
def prompts(family: str) -> dict[str, str]:
    """The wording of a family's prompts, from `data/prompts.toml`."""
    return tomllib.loads((files("rerank_lab") / "data" / "prompts.toml").read_text(encoding="utf-8"))[family]


def estimated_tokens(*texts: str) -> int:
    """About how many tokens texts have: a token for four characters, the rule of thumb for English.

    >>> estimated_tokens("when does it leave?")
    5
    """
    return -(-sum(len(t) for t in texts) // 4)


def spoken(answer: str) -> str:
    """An answer without what a reasoning model thought before it, also where the thought was cut off.

    >>> spoken("<think>A? No.</think> Passage B")
    '  Passage B'
    """
    return re.sub(r"<think>.*?(</think>|\Z)", " ", answer, flags=re.DOTALL)


def parse_label(answer: str, n: int) -> int | None:
    """The index of the passage that an answer names by its letter, of n; None where it names none of them or several.

    >>> parse_label("Passage C", 4), parse_label("b.", 4), parse_label("E", 4), parse_label("A and B are good.", 4)
    (2, 1, None, None)
    """
    said = spoken(answer)
    named = re.findall(r"passage\s+([a-z])\b", said, re.IGNORECASE) or re.findall(
        r"^\W*([a-z])\W*$", said, re.IGNORECASE
    )
    found = {ascii_uppercase.index(letter.upper()) for letter in named}
    return found.pop() if len(found) == 1 and max(found) < n else None


def prompt_key(model: str, messages: Sequence[Message]) -> str:
    """What a reply is recorded under: 64 bits of a digest over the model's name and the conversation."""
    return sha256(json.dumps([model, list(messages)], ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


class Recorder:
    """Answers from a file of replies; what the file lacks is asked of `chat` and kept there at once.

    A line of the file is a reply: prompt (its digest), model, date, reply, input_tokens, output_tokens, dollars.

    Args:
        path: the file, JSON lines; made when missing.
        chat: who is asked for what is missing; without it, a missing reply is an error.
        model: whose replies are read where the file holds several models'; `chat.model` with a chat.

    Raises:
        DataError: the file is not a record, or holds several models' replies and none is chosen.
    """

    def __init__(self, path: str | Path, chat: Chat | None = None, model: str | None = None):
        self.path, self.chat = Path(path), chat
        self._lock = threading.Lock()
        rows = _read_record(self.path)
        self.model = chat.model if chat is not None else model or _only_model(rows, self.path)
        self.dates = sorted({row["date"] for row in rows if row["model"] == self.model})
        self._replies = {row["prompt"]: row for row in rows if row["model"] == self.model}
        self.concurrency = chat.concurrency if chat is not None else 1

    def __len__(self) -> int:
        return len(self._replies)

    def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Reply:
        """The recorded answer, or the model's, which is recorded; a replay costs no dollars."""
        key = prompt_key(self.model, messages)
        if key in self._replies:
            row = self._replies[key]
            return Reply(row["reply"], row["input_tokens"], row["output_tokens"], replayed=True)
        if self.chat is None:
            raise MissingReplyError(
                f"{self.path.name} holds no reply of {self.model} to this prompt ({messages[-1]['content'][:80]!r}): "
                "replies were recorded for the lab collection only; for others give an endpoint "
                "(RERANK_LAB_LLM_URL, RERANK_LAB_LLM_MODEL, RERANK_LAB_LLM_KEY)"
            )
        reply = self.chat.ask(messages, max_tokens=max_tokens)
        self.keep(key, reply)
        return reply

    def keep(self, key: str, reply: Reply) -> None:
        """Append a reply to the file, whole, before it is used."""
        row = {"prompt": key, "model": self.model, "date": date.today().isoformat()}
        row |= {k if k != "text" else "reply": v for k, v in asdict(reply).items() if k != "replayed"}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._replies[key] = row


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is only added to; half a last line, left by a process that was killed, is cut off."""
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode("utf-8").split("\n")[:-1]


def _read_record(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "reply": str(row["reply"]), "prompt": row["prompt"], "model": row["model"]})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a recorded reply; delete the line to ask anew") from error
    return rows


def _only_model(rows: list[dict], path: Path) -> str:
    models = sorted({row["model"] for row in rows})
    if len(models) != 1:
        raise DataError(f"{path} holds replies of {', '.join(models) or 'no model'}: say which with model=...")
    return models[0]


class LocalModel:
    """A causal language model of transformers, asked greedily.

    Args:
        model: with a language-model head.
        tokenizer: its fast tokenizer, with a chat template.
        name: what replies are recorded under.
    """

    concurrency = 1

    def __init__(self, model, tokenizer, *, name: str):
        self.causal, self.tokenizer, self.model = model.eval(), tokenizer, name

    @classmethod
    def from_pretrained(cls, name: str, *, dtype: str = "auto", device: str = "auto") -> LocalModel:
        """Load by short name, hub id or folder; `dtype` and `device` as in `checkpoints.load_model`."""
        checkpoint = resolve(name)
        model = load_model("AutoModelForCausalLM", checkpoint, dtype=dtype, device=device)
        return cls(model, load_tokenizer(checkpoint), name=name)

    def _ids(self, messages: Sequence[Message]):
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids.to(self.causal.device)

    def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Reply:
        """The model's answer, greedily."""
        ids = self._ids(messages)  # (1, L)
        made = self.causal.generate(
            ids,
            attention_mask=ids.new_ones(ids.shape),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = made[0, ids.shape[1] :]
        return Reply(self.tokenizer.decode(new, skip_special_tokens=True), ids.shape[1], len(new))

    def label_logits(self, messages: Sequence[Message], labels: Sequence[str]) -> tuple[list[float], int]:
        """The logit of each one-token label as the next token, and the tokens read."""
        import torch

        ids = self._ids(messages)
        with torch.inference_mode():
            logits = self.causal(input_ids=ids).logits[0, -1].float()
        tokens = [self.tokenizer.encode(label, add_special_tokens=False)[0] for label in labels]
        return logits[tokens].tolist(), ids.shape[1]
