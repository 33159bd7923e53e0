"""A language model behind an OpenAI-compatible endpoint: `POST {base URL}/chat/completions`.

OpenAI, Anthropic, Gemini, Ollama, vLLM and llama.cpp all offer one; base URL, model and key come from
RERANK_LAB_LLM_URL, RERANK_LAB_LLM_MODEL and RERANK_LAB_LLM_KEY. https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from rerank_lab.core import InputError, RerankLabError
from rerank_lab.llm import Message, Reply, estimated_tokens
from rerank_lab.prices import cost
from rerank_lab.transport import APIError, Vendor, http_client, post, with_retries

__all__ = ["Budget", "BudgetSpentError", "Endpoint"]

VENDOR = Vendor("the LLM endpoint", "RERANK_LAB_LLM_KEY", "RERANK_LAB_LLM_URL", "", needs_key=False)


class BudgetSpentError(RerankLabError):
    """The next question could cost more than what is left; what was answered is kept."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: tokens read and written, and US dollars; None is no limit."""

    tokens: int | None = None
    dollars: float | None = None


class Endpoint:
    """A chat over HTTP, with time-outs, retries and a budget.

    Args:
        model: the name that the endpoint knows it by.
        client: holds base URL and key; its representation shows neither.
        concurrency: questions under way at once.
        timeout: seconds to wait for each part of an answer.
        attempts: how often a question is asked when no answer comes, or one with status 408, 409, 425, 429 or 5xx.
        backoff: seconds; the pauses between attempts double from there, with jitter, unless the server names one.
        budget: what may be spent in the life of this object; a question that could exceed it is not asked.
        body: fields that this endpoint wants otherwise, for example {"max_tokens": None, "max_completion_tokens": 500};
            None leaves a field out.

    Raises:
        InputError: a budget in dollars for a model without a known price.
    """

    def __init__(
        self,
        model: str,
        client: httpx.Client,
        *,
        concurrency: int = 4,
        timeout: float = 60.0,
        attempts: int = 5,
        backoff: float = 1.0,
        budget: Budget | None = None,
        body: Mapping[str, object] | None = None,
    ):
        self.model, self.client, self.concurrency, self.timeout = model, client, concurrency, timeout
        self.attempts, self.backoff, self.budget, self.body = attempts, backoff, budget or Budget(), dict(body or {})
        self.tokens, self.dollars, self.retries = 0, 0.0, 0  # spent so far, those of questions under way included
        self._lock = threading.Lock()
        if self.budget.dollars is not None:
            cost(model)

    @classmethod
    def from_environment(cls, *, model: str | None = None, base_url: str | None = None, **options) -> Endpoint:
        """Base URL, model and key from the environment; options as of the class.

        Raises:
            InputError: no base URL or no model is given.
        """
        model = model or os.environ.get("RERANK_LAB_LLM_MODEL")
        if not model:
            raise InputError("no model is named: set RERANK_LAB_LLM_MODEL, for example to gpt-4o-mini or llama3.2")
        return cls(model, http_client(VENDOR, base_url), **options)

    def ask(self, messages: Sequence[Message], *, max_tokens: int) -> Reply:
        """The answer to a conversation, at temperature 0.

        Raises:
            APIError: no usable answer after all attempts.
            BudgetSpentError: the question could cost more than is left.
        """
        expected = estimated_tokens(*(m["content"] for m in messages))
        held = self._hold(expected, max_tokens)
        try:
            reply = with_retries(
                lambda: self._send(messages, max_tokens),
                attempts=self.attempts,
                backoff=self.backoff,
                on_retry=self._count_retry,
            )
        except Exception:
            self._settle(held, (0, 0.0))
            raise
        self._settle(held, (reply.input_tokens + reply.output_tokens, reply.dollars))
        return reply

    def _send(self, messages: Sequence[Message], max_tokens: int) -> Reply:
        body = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens} | self.body
        answer = post(
            self.client, VENDOR, "/chat/completions", {k: v for k, v in body.items() if v is not None}, self.timeout
        )
        try:
            text = answer["choices"][0]["message"]["content"] or ""
            used = answer.get("usage") or {}
            read = int(used.get("prompt_tokens", estimated_tokens(*(m["content"] for m in messages))))
            written = int(used.get("completion_tokens", estimated_tokens(text)))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise APIError(VENDOR, "answered without choices[0].message.content", status=200) from None
        return Reply(text, read, written, self._price(read, written))

    def _price(self, read: int, written: int) -> float:
        """Dollars by `prices.toml`; 0 for a model that is not in it, such as a local one."""
        try:
            return cost(self.model, input_tokens=read, output_tokens=written)
        except InputError:
            return 0.0

    def _hold(self, read: int, written: int) -> tuple[int, float]:
        """Set aside what a question may cost, before it is asked."""
        tokens, dollars = read + written, self._price(read, written)
        with self._lock:
            for name, spent, more, limit in (
                ("tokens", self.tokens, tokens, self.budget.tokens),
                ("dollars", self.dollars, dollars, self.budget.dollars),
            ):
                if limit is not None and spent + more > limit:
                    raise BudgetSpentError(
                        f"the budget of {limit:g} {name} does not cover the next question: {spent:g} are spent or in "
                        f"use and it may take {more:g}; raise the budget and run again, recorded answers are kept"
                    )
            self.tokens, self.dollars = self.tokens + tokens, self.dollars + dollars
        return tokens, dollars

    def _settle(self, held: tuple[int, float], spent: tuple[int, float]) -> None:
        with self._lock:
            self.tokens += spent[0] - held[0]
            self.dollars += spent[1] - held[1]

    def _count_retry(self) -> None:
        with self._lock:
            self.retries += 1
