"""A heap whose families of one parent and its children are compared by somebody else: a language model, for example.

Sorting only the first k of n takes about n / c + k log_c n comparisons of a family with c children.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["best_first"]


def best_first(n: int, best_of: Callable[[list[int]], int], k: int, children: int) -> list[int]:
    """The best k of 0 .. n - 1, in order; the others keep their order behind them.

    Args:
        best_of: gives the position of the best among the indices that it gets, the parent's first.
        children: how many each parent has.

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
