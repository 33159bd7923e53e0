"""Pairwise ranking prompting (PRP): a language model says which of two passages answers better, asked in both orders.

    s(i beats j) = 1 when both orders name i, 0 when both name j, 1/2 when the answer depends on the order

Three ways to an order of n passages: all pairs (n (n - 1) calls), heapsort for the first k, and a sliding comparison
from the last candidate to the first, K times over (at most 2 K (n - 1) calls).

Qin et al., Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, NAACL Findings 2024.
https://arxiv.org/abs/2306.17563
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from rerank_lab.core import Candidate, InputError, Passage, Ranking, Repairs, Reranker, Usage, check_request, in_places
from rerank_lab.llm import Chat, Message, ask_all, parse_label, prompts
from rerank_lab.rerankers.heap import best_first

__all__ = ["PairwiseReranker", "all_pairs", "heapsort", "pairwise_prompt", "sliding"]

Compare = Callable[[int, int], float]  # 1 where the first passage is better, 0 where the second is, 0.5 undecided


def all_pairs(n: int, compare: Compare) -> list[int]:
    """Places 0 .. n - 1 by how many comparisons each wins; ties keep their order.

    >>> all_pairs(3, lambda i, j: float(i > j))
    [2, 1, 0]
    """
    wins = [sum(compare(i, j) for j in range(n) if j != i) for i in range(n)]
    return sorted(range(n), key=lambda i: -wins[i])


def sliding(n: int, compare: Compare, k: int = 10) -> list[int]:
    """K passes of bubble sort, each from the last place to the first; the first K places are then in order.

    An undecided pair stops a passage at the same place in every later pass, so errors cost more here than in a heap.

    >>> sliding(4, lambda i, j: float(i > j), k=1)
    [3, 0, 1, 2]
    """
    places = list(range(n))
    for done in range(min(k, n - 1)):
        for low in range(n - 2, done - 1, -1):
            if compare(places[low + 1], places[low]) > 0.5:
                places[low], places[low + 1] = places[low + 1], places[low]
    return places


def heapsort(n: int, compare: Compare, k: int = 10) -> list[int]:
    """The best k places by a binary heap, in order; the others keep their order behind them.

    >>> heapsort(5, lambda i, j: float(i > j), k=2)
    [4, 3, 0, 1, 2]
    """

    def best_of(family: list[int]) -> int:
        parent, *children = family
        best = children[0] if len(children) == 1 or _better(children[0], children[1], compare) else children[1]
        return family.index(best if _better(best, parent, compare) else parent)

    return best_first(n, best_of, k, children=2)


def _better(i: int, j: int, compare: Compare) -> bool:
    """Whether i goes before j; where the comparison is undecided the first stage decides."""
    chance = compare(i, j)
    return i < j if chance == 0.5 else chance > 0.5


def pairwise_prompt(query: str, a: str, b: str) -> list[Message]:
    """The question which of two passages answers better."""
    return [{"role": "user", "content": prompts("pairwise")["ask"].format(query=query, a=a, b=b)}]


class PairwiseReranker(Reranker):
    """Orders the first candidates by comparisons of two; the others keep their order behind them.

    Args:
        chat: who is asked.
        method: all-pairs, heapsort or sliding.
        k: how many first places sliding and heapsort put in order.
        depth: how many candidates are compared; all of them without it.

    Raises:
        InputError: an unknown method, or k or depth below 1.
    """

    name = "pairwise"

    def __init__(self, chat: Chat, *, method: str = "sliding", k: int = 10, depth: int | None = None):
        if method not in ("all-pairs", "heapsort", "sliding"):
            raise InputError(f"method {method!r} is unknown: give all-pairs, heapsort or sliding")
        if k < 1 or (depth is not None and depth < 1):
            raise InputError(f"k is {k} and depth {depth}: give at least 1")
        self.chat, self.method, self.k, self.depth = chat, method, k, depth

    def most_calls(self, n: int) -> int | None:
        """Calls that n candidates take at most; for heapsort they depend on the answers, and None is given."""
        n = n if self.depth is None else min(n, self.depth)
        if self.method == "all-pairs":
            return n * (n - 1)
        return None if self.method == "heapsort" else sum(2 * (n - 1 - done) for done in range(min(self.k, n - 1)))

    def rerank(self, query: str, candidates: Sequence[Candidate], *, top_k: int | None = None) -> Ranking:
        check_request(query, candidates, top_k)
        start, usage = perf_counter(), Usage()
        texts = [c.text for c in candidates[: self.depth]]
        compare = self._judge(query, texts, usage)
        if self.method == "all-pairs":
            places = all_pairs(len(texts), compare)
        elif self.method == "heapsort":
            places = heapsort(len(texts), compare, self.k)
        else:
            places = sliding(len(texts), compare, self.k)
        places += range(len(texts), len(candidates))
        usage.seconds = perf_counter() - start
        return in_places(query, candidates, places, top_k, usage)

    def matrix(self, query: str, passages: Sequence[Passage], usage: Usage | None = None) -> list[list[float]]:
        """s[i][j]: 1 where passage i beats passage j in both orders, 0 where j does, else 0.5; shape (n, n)."""
        compare = self._judge(query, [p.text for p in passages], usage if usage is not None else Usage())
        n = len(passages)
        return [[0.5 if i == j else compare(i, j) for j in range(n)] for i in range(n)]

    def _judge(self, query: str, texts: Sequence[str], usage: Usage) -> Compare:
        """A comparison that asks about two texts once, whatever their order."""
        known: dict[tuple[str, str], float] = {}

        def compare(i: int, j: int) -> float:
            a, b = texts[i], texts[j]
            if a == b:
                return 0.5
            if (a, b) not in known:
                known[a, b] = self._ask(query, a, b, usage)
                known[b, a] = 1 - known[a, b]
            return known[a, b]

        return compare

    def _ask(self, query: str, a: str, b: str, usage: Usage) -> float:
        """The share of the two orders in which a is named; an answer that names neither counts for nobody."""
        both = [pairwise_prompt(query, a, b), pairwise_prompt(query, b, a)]
        first, second = (parse_label(answer, 2) for answer in ask_all(self.chat, both, usage, max_tokens=16))
        usage.pairs += 2
        usage.repairs += Repairs(refused=(first is None) + (second is None))
        if first is None or second is None:
            return 0.5
        return ((first == 0) + (second == 1)) / 2
