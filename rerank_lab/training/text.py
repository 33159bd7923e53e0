"""Texts cut to pieces, rankings woven together: what groups are made with."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["crop", "interleave", "subject_of", "tiles"]


def crop(text: str, start: int, end: int) -> str:
    """Words `start` to `end` of a text.

    >>> crop("the ferry leaves at nine", 1, 3)
    'ferry leaves'
    """
    return " ".join(text.split()[start:end])


def tiles(text: str, words: int = 60) -> list[tuple[int, int]]:
    """Cut a text into crops of equal size; a tail shorter than a third is left off.

    >>> tiles("w " * 130)
    [(0, 60), (60, 120)]
    """
    n = len(text.split())
    return [(s, min(n, s + words)) for s in range(0, max(1, n - words // 3), words)]


def interleave(*orders: Sequence[int]) -> list[int]:
    """Several rankings as one: first all firsts, then all seconds; each index once.

    >>> interleave([3, 1, 2], [1, 5, 3])
    [3, 1, 5, 2]
    """
    longest = max(map(len, orders))
    return list(dict.fromkeys(order[i] for i in range(longest) for order in orders if i < len(order)))


def subject_of(question: str) -> str | None:
    """What a MedQuAD question is about, in lower case; its questions are made from a few patterns.

    >>> subject_of("What is (are) Age-related Macular Degeneration ?")
    'age-related macular degeneration'
    """
    for opening in ("what is (are) ", "what are the treatments for ", "what are the symptoms of ", "what causes "):
        if question.lower().startswith(opening):
            return question[len(opening) :].strip(" ?").lower()
    return None
