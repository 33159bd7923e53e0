"""RankGPT: a language model reads a window of passages at once and answers with their order.

A window of 20 moves from the last candidate to the first in steps of 10, so that a good passage found at the end
is carried to the front: 100 candidates take 9 calls. The last window is clamped to the first candidate.

Sun et al., Is ChatGPT Good at Search?, EMNLP 2023. https://arxiv.org/abs/2304.09542
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from time import perf_counter

from rerank_lab.core import Candidate, InputError, Passage, Ranking, Repairs, Reranker, Usage, check_request, in_places
from rerank_lab.llm import Chat, Message, ask_all, prompts, spoken

__all__ = ["ListwiseReranker", "first_words", "listwise_prompt", "parse_permutation", "windows"]


def windows(n: int, size: int = 20, step: int = 10) -> list[tuple[int, int]]:
    """Where the window stands, from the last candidate to the first, as (start, end).

    >>> windows(25)
    [(5, 25), (0, 15)]
    >>> windows(8)
    [(0, 8)]
    >>> len(windows(100))
    9
    """
    if n < 1:
        return []
    places = [(max(0, n - size), n)]
    while places[-1][0] > 0:
        end = places[-1][1] - step
        places.append((max(0, end - size), end))
    return places


def parse_permutation(answer: str, n: int) -> tuple[list[int], Repairs]:
    """The order that an answer names, always a permutation of 0 .. n - 1, and what had to be mended.

    Reasoning between `<think>` and `</think>` is no answer. Identifiers in brackets count, or all numbers where there
    are no brackets. Of duplicates the first is kept, numbers of no passage are dropped, and passages that are not
    named follow in the order that they had.

    Args:
        answer: the model's, in whatever state.
        n: passages shown, numbered from 1.

    >>> parse_permutation("[2] > [3] > [2] > [9]", 4)
    ([1, 2, 0, 3], Repairs(duplicate=1, out_of_range=1, missing=2, refused=0))
    >>> parse_permutation("I cannot help with that.", 2)
    ([0, 1], Repairs(duplicate=0, out_of_range=0, missing=2, refused=1))
    """
    said = spoken(answer)
    numbers = re.findall(r"\[\s*([0-9]+)\s*\]", said) or re.findall(r"[0-9]+", said)
    # more than nine digits name no passage, and Python refuses to read thousands of them
    named = [int(number) - 1 if len(number) < 10 else -1 for number in numbers]
    known = [i for i in named if 0 <= i < n]
    kept = list(dict.fromkeys(known))
    missing = [i for i in range(n) if i not in set(kept)]
    repairs = Repairs(len(known) - len(kept), len(named) - len(known), len(missing), int(not kept))
    return kept + missing, repairs


def first_words(text: str, words: int) -> tuple[str, bool]:
    """The first words of a text, and whether any were left off.

    >>> first_words("the ferry leaves at nine", 3)
    ('the ferry leaves', True)
    """
    found = list(re.finditer(r"\S+", text))
    return (text, False) if len(found) <= words else (text[: found[words - 1].end()], True)


def listwise_prompt(query: str, texts: Sequence[str]) -> list[Message]:
    """The conversation that shows passages, one a turn, and asks for their order."""
    say = prompts("listwise")
    turns = [
        {"role": "system", "content": say["system"]},
        {"role": "user", "content": say["open"].format(n=len(texts), query=query)},
        {"role": "assistant", "content": say["ready"]},
    ]
    for i, text in enumerate(texts, start=1):
        turns.append({"role": "user", "content": say["passage"].format(i=i, text=text)})
        turns.append({"role": "assistant", "content": say["received"].format(i=i)})
    return [*turns, {"role": "user", "content": say["ask"].format(n=len(texts), query=query)}]


class ListwiseReranker(Reranker):
    """Orders the first candidates by a sliding window; the others keep their order behind them.

    Args:
        chat: who is asked.
        window: passages a call.
        step: how far the window moves.
        depth: how many candidates are ordered; all of them without it.
        words: a longer passage is cut to this many, and counted.

    Raises:
        InputError: a window below 2, a step that is not between 1 and the window, or a depth below 1.
    """

    name = "listwise"

    def __init__(self, chat: Chat, *, window: int = 20, step: int = 10, depth: int | None = None, words: int = 300):
        if window < 2 or not 1 <= step <= window:
            raise InputError(f"window is {window} and step {step}: give a window of at least 2 and a step of 1 to that")
        if depth is not None and depth < 1:
            raise InputError(f"depth is {depth}: give at least 1, or None for all candidates")
        self.chat, self.window, self.step, self.depth, self.words = chat, window, step, depth, words

    def calls(self, n: int) -> int:
        """Questions that n candidates will take."""
        return len(windows(n if self.depth is None else min(n, self.depth), self.window, self.step))

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start, usage = perf_counter(), Usage()
        moves = list(self.moves(query, candidates, usage))
        places = moves[-1][1] if moves else []
        usage.seconds = perf_counter() - start
        return in_places(query, candidates, places, top_k, usage)

    def moves(
        self, query: str, candidates: Sequence[Candidate], usage: Usage
    ) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Where each window stood, and the whole order after its answer, as indices of candidates, best first."""
        places = list(range(len(candidates)))
        shown = [self._cut(c.passage, usage) for c in candidates[: self.depth]]
        for low, high in windows(len(shown), self.window, self.step):
            conversation = listwise_prompt(query, [shown[i] for i in places[low:high]])
            (answer,) = ask_all(self.chat, [conversation], usage, max_tokens=8 * (high - low))
            permutation, repairs = parse_permutation(answer, high - low)
            places[low:high] = [places[low + i] for i in permutation]
            usage.pairs += high - low
            usage.repairs += repairs
            yield (low, high), list(places)

    def cuts(self, query: str, passages: Sequence[Passage]) -> list[bool]:
        return [first_words(p.text, self.words)[1] for p in passages]

    def _cut(self, passage: Passage, usage: Usage) -> str:
        text, cut = first_words(passage.text, self.words)
        usage.truncated += cut
        return text
