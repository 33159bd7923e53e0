"""What a model's work costs, from the dated list in `data/prices.toml` and from a file of one's own.

dollars = searches / 1,000 * price + input tokens / 1,000,000 * price + output tokens / 1,000,000 * price
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path

from rerank_lab.checkpoints import tomllib
from rerank_lab.core import DataError, InputError

__all__ = ["cost", "price", "read_prices"]

PER = {"searches": 1_000, "input": 1_000_000, "output": 1_000_000}  # how many of a unit its price is for


@cache
def _prices() -> dict[str, dict]:
    text = (files("rerank_lab") / "data" / "prices.toml").read_text(encoding="utf-8")
    return {name: entry for name, entry in tomllib.loads(text).items() if name != "as_of"}


def read_prices(path: str | Path) -> dict[str, dict]:
    """One's own prices in the layout of `data/prices.toml`; `[machine]` with `hour` is what an hour of one's own
    machine costs, in US dollars.

    Raises:
        DataError: no such file, no TOML, or a price that is no number of dollars.
    """
    path = Path(path)
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    entries = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
    for name, entry in entries.items():
        units = [unit for unit in ("hour", *PER) if unit in entry]
        if not units:
            raise DataError(f"{path}: [{name}] has no price: give dollars for {', '.join(PER)} or hour")
        for unit in units:
            dollars = entry[unit]
            if type(dollars) not in {int, float} or not isfinite(dollars) or dollars < 0:
                raise DataError(f"{path}: [{name}] {unit} is {dollars!r}, expected a number of dollars")
    return entries


def price(name: str, own: Mapping[str, dict] | None = None) -> dict:
    """The entry of a model: dollars for the units that it is billed by, `vendor`, `source`, `as_of`.

    Args:
        name: as the vendor calls it.
        own: entries that go before those of the list.

    Raises:
        InputError: neither has such a model.

    >>> price("rerank-2.5-lite")["input"]
    0.02
    """
    known = _prices() | dict(own or {})
    if name not in known:
        raise InputError(f"no price of {name!r} is known: give one of {', '.join(sorted(known))}")
    return dict(known[name])


def cost(
    name: str,
    *,
    searches: float = 0,
    input_tokens: float = 0,
    output_tokens: float = 0,
    own: Mapping[str, dict] | None = None,
) -> float:
    """US dollars for what a model did; a unit that the model is not billed by costs nothing.

    Args:
        name: as the vendor calls it.
        searches: Cohere's unit, one for each query and 100 passages begun.
        input_tokens: read by the model.
        output_tokens: written by the model.
        own: entries that go before those of the list.

    Raises:
        InputError: no price of the model is known.

    >>> cost("rerank-v3.5", searches=10)
    0.02
    >>> cost("gpt-4o-mini", input_tokens=2_000_000, output_tokens=500_000)
    0.6
    """
    entry = price(name, own)
    counts = {"searches": searches, "input": input_tokens, "output": output_tokens}
    return sum(count / PER[unit] * entry.get(unit, 0.0) for unit, count in counts.items())
