"""Setwise prompting: a language model names the best of a few passages, and a heap with that many children sorts.

One call compares a parent with all its children at once, so a heap for the first k of n passages takes about
n / c + k log_c n calls with c children, fewer than comparisons of two.

Zhuang et al., A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking, SIGIR 2024.
https://arxiv.org/abs/2310.09497
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from time import perf_counter

from rerank_lab.core import Candidate, InputError, Ranking, Repairs, Reranker, Usage, check_request, in_places
from rerank_lab.llm import Chat, LocalModel, Message, ask_all, parse_label, prompts
from rerank_lab.rerankers.heap import best_first

__all__ = ["SetwiseReranker", "setwise_prompt"]


def setwise_prompt(query: str, texts: Sequence[str]) -> list[Message]:
    """The question which of a few passages answers best."""
    say = prompts("setwise")
    shown = "\n\n".join(say["passage"].format(label=a, text=t) for a, t in zip(ascii_uppercase, texts, strict=False))
    return [{"role": "user", "content": say["ask"].format(query=query, passages=shown)}]


class SetwiseReranker(Reranker):
    """Puts the best k of the first candidates in order; the others keep their order behind them.

    Args:
        chat: who is asked.
        k: how many first places are put in order.
        children: passages that a call compares with one other.
        depth: how many candidates take part; all of them without it.
        by_logits: read the likeliest letter off a `LocalModel`'s next-token logits instead of letting it write.

    Raises:
        InputError: children not between 1 and 25, k or depth below 1, or logits asked of a chat that has none.
    """

    name = "setwise"

    def __init__(
        self, chat: Chat, *, k: int = 10, children: int = 3, depth: int | None = None, by_logits: bool = False
    ):
        if not 1 <= children < len(ascii_uppercase):
            raise InputError(f"children is {children}: give 1 to {len(ascii_uppercase) - 1}")
        if k < 1 or (depth is not None and depth < 1):
            raise InputError(f"k is {k} and depth {depth}: give at least 1")
        if by_logits and not isinstance(chat, LocalModel):
            raise InputError("by_logits reads a model's logits: give a LocalModel, or leave it off")
        self.chat, self.k, self.children, self.depth, self.by_logits = chat, k, children, depth, by_logits

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start, usage = perf_counter(), Usage()
        texts = [c.text for c in candidates[: self.depth]]
        places = best_first(len(texts), lambda some: self._best(query, some, texts, usage), self.k, self.children)
        places += range(len(texts), len(candidates))
        usage.seconds = perf_counter() - start
        return in_places(query, candidates, places, top_k, usage)

    def _best(self, query: str, some: list[int], texts: list[str], usage: Usage) -> int:
        """The position of the best; of copies the first one, which also an unusable answer leaves in front."""
        shown: dict[str, int] = {}  # text -> position of its earliest candidate
        for position in sorted(range(len(some)), key=lambda p: some[p]):
            shown.setdefault(texts[some[position]], position)
        positions = sorted(shown.values())
        if len(positions) == 1:
            return positions[0]
        conversation = setwise_prompt(query, [texts[some[p]] for p in positions])
        usage.pairs += len(positions)
        if self.by_logits:
            logits, tokens = self.chat.label_logits(conversation, ascii_uppercase[: len(positions)])
            usage.calls += 1
            usage.input_tokens += tokens
            return positions[logits.index(max(logits))]
        (answer,) = ask_all(self.chat, [conversation], usage, max_tokens=16)
        named = parse_label(answer, len(positions))
        if named is None:
            usage.repairs += Repairs(refused=1)
            return min(range(len(some)), key=lambda p: some[p])
        return positions[named]
