"""What a hosted model's work costs, from the dated list in `data/prices.toml`.

dollars = searches / 1,000 * price + input tokens / 1,000,000 * price + output tokens / 1,000,000 * price
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from rerank_lab.checkpoints import tomllib
from rerank_lab.core import InputError

__all__ = ["cost", "price"]

PER = {"searches": 1_000, "input": 1_000_000, "output": 1_000_000}  # how many of a unit its price is for


@cache
def _prices() -> dict[str, dict]:
    text = (files("rerank_lab") / "data" / "prices.toml").read_text(encoding="utf-8")
    return {name: entry for name, entry in tomllib.loads(text).items() if name != "as_of"}


def price(name: str) -> dict:
    """The entry of a model: `vendor`, dollars for the units that it is billed by, `source` and `as_of`.

    Args:
        name: as the vendor calls it.

    Raises:
        InputError: the list has no such model.

    >>> price("rerank-2.5-lite")["input"]
    0.02
    """
    if name not in _prices():
        raise InputError(f"no price of {name!r} is known: give one of {', '.join(sorted(_prices()))}")
    return dict(_prices()[name])


def cost(name: str, *, searches: float = 0, input_tokens: int = 0, output_tokens: int = 0) -> float:
    """US dollars for what a model did; a unit that the model is not billed by costs nothing.

    Args:
        name: as the vendor calls it.
        searches: Cohere's unit, one for each query and 100 passages begun.
        input_tokens: read by the model.
        output_tokens: written by the model.

    Raises:
        InputError: the list has no such model.

    >>> cost("rerank-v3.5", searches=10)
    0.02
    >>> cost("gpt-4o-mini", input_tokens=2_000_000, output_tokens=500_000)
    0.6
    """
    entry = price(name)
    counts = {"searches": searches, "input": input_tokens, "output": output_tokens}
    return sum(count / PER[unit] * entry.get(unit, 0.0) for unit, count in counts.items())
