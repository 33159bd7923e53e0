"""Setwise prompting: a language model names the best of a few passages, and a heap with that many children sorts.

One call compares a parent with all its children at once, so a heap for the first k of n passages takes about
n / c + k log_c n calls with c children, fewer than comparisons of two.

Zhuang et al., A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking, SIGIR 2024.
https://arxiv.org/abs/2310.09497
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from time import perf_counter

from rerank_lab.core import Candidate, InputError, Ranking, Repairs, Reranker, Usage, check_request, in_places
from rerank_lab.llm import Chat, LocalModel, Message, ask_all, prompts

__all__ = ["SetwiseReranker", "best_first", "parse_label", "setwise_prompt"]


def parse_label(answer: str, n: int) -> int | None:
    """The index of the letter that an answer names, or None where it names no passage of the set or several.

    >>> parse_label("Passage C", 4), parse_label("b.", 4), parse_label("E", 4)
    (2, 1, None)
    """
    said = re.sub(r"<think>.*?(</think>|\Z)", " ", answer, flags=re.DOTALL)
    named = re.findall(r"passage\s+([a-z])\b", said, flags=re.IGNORECASE) or re.findall(r"^\W*([a-z])\W*$", said, re.I)
    found = {ascii_uppercase.index(letter.upper()) for letter in named}
    return found.pop() if len(found) == 1 and max(found) < n else None


def best_first(n: int, best_of: Callable[[list[int]], int], k: int, children: int) -> list[int]:
    """The best k of 0 .. n - 1 by a heap with several children, in order; the others keep their order behind them.

    Args:
        best_of: gives the position of the best among the indices that it gets.

    >>> best_first(7, lambda some: some.index(max(some)), k=2, children=3)
    [6, 5, 0, 1, 2, 3, 4]
    """
    heap = list(range(n))

    def sink(at: int) -> None:
        while at * children + 1 < len(heap):
            family = [at, *range(at * children + 1, min(at * children + 1 + children, len(heap)))]
            winner = family[best_of([heap[i] for i in family])]
            if winner == at:
                return
            heap[at], heap[winner] = heap[winner], heap[at]
            at = winner

    for at in range((n - 2) // children, -1, -1):
        sink(at)
    best = []
    while heap and len(best) < k:
        best.append(heap[0])
        last = heap.pop()
        if heap:
            heap[0] = last
            sink(0)
    return best + sorted(heap)


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
