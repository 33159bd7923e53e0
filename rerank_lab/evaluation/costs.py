"""What a system costs a query: seconds, calls, tokens, US dollars, from rankings that were computed and not looked up.

A ranking whose scores came out of a cache took no time worth telling; it is left out of the latency and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np

from rerank_lab.core import InputError, Reranker, Usage
from rerank_lab.llm import LocalModel
from rerank_lab.prices import cost

__all__ = ["billed_as", "costs", "dollars", "latency", "with_search"]

COUNTED = ("pairs", "calls", "input_tokens", "output_tokens")


def latency(seconds: Sequence[float]) -> dict | None:
    """Median, 95th percentile and mean of seconds a query; None without any.

    >>> latency([0.1, 0.2, 0.3, 0.4, 1.5])
    {'p50': 0.3, 'p95': 1.28, 'mean': 0.5, 'queries': 5}
    """
    if not len(seconds):
        return None
    p50, p95 = (round(float(q), 6) for q in np.percentile(seconds, [50, 95]))
    return {"p50": p50, "p95": p95, "mean": round(float(np.mean(seconds)), 6), "queries": len(seconds)}


def billed_as(reranker: Reranker) -> str | None:
    """The name by which a model that others run is billed; None for one that runs on this machine."""
    chat = getattr(reranker, "chat", None)
    if chat is not None:
        behind = getattr(chat, "chat", None) or chat  # a record stands before whom it asks
        return None if isinstance(behind, LocalModel) else chat.model
    model = getattr(reranker, "model", None)
    return model if isinstance(model, str) else None


def dollars(
    usages: Sequence[Usage], seconds: float | None, model: str | None, prices: Mapping[str, dict]
) -> tuple[float | None, str]:
    """US dollars a query, and where the figure comes from.

    Args:
        usages: of queries whose tokens are known; at least one.
        seconds: mean a query on this machine; None where not known.
        model: as `billed_as` gives it.
        prices: the user's own, as `prices.read_prices` gives them.
    """
    if model is not None:
        sums = sum(usages, Usage())
        counts = {"input_tokens": sums.input_tokens, "output_tokens": sums.output_tokens}
        searches = sum(ceil(u.pairs / 100) for u in usages)
        try:
            return cost(model, searches=searches, **counts, own=prices) / len(usages), f"list price of {model}"
        except InputError:
            return None, f"no price of {model} is known: give one in a file of prices"
    billed = sum(u.dollars for u in usages) / len(usages)
    hour = prices.get("machine", {}).get("hour")
    if hour is None:
        return billed, "this machine, whose hour is counted as $0: give [machine] hour in a file of prices"
    if seconds is None:
        return None, f"this machine at ${hour:g} an hour, but no latency was measured"
    return billed + seconds * hour / 3600, f"this machine at ${hour:g} an hour"


def costs(usages: Sequence[Usage], queries: int, model: str | None, prices: Mapping[str, dict]) -> dict:
    """Seconds, calls, tokens and dollars a query of a reranker, without the search before it.

    Args:
        usages: of the queries that were computed; may be empty.
        queries: how many there were in all.
        model: as `billed_as` gives it.
        prices: the user's own.
    """
    timed = [u.seconds for u in usages if not u.replayed]
    took = latency(timed)
    priced, how = dollars(usages, took and took["mean"], model, prices) if usages else (None, "no query was computed")
    mean = {name: sum(getattr(u, name) for u in usages) / len(usages) if usages else None for name in COUNTED}
    return {
        "rerank": took,
        "not_timed": queries - len(timed),
        "replayed": sum(u.replayed > 0 for u in usages),
        **mean,
        "dollars": priced,
        "priced": how,
    }


def with_search(cost: Mapping, prices: Mapping[str, dict]) -> dict:
    """A reranker's costs with those of the search before it: `seconds` (median), `per_second` and `dollars` of both.

    Args:
        cost: as `costs` gives it, and `search`, the `latency` of the first stage: None where not known, as of a run.
        prices: the user's own.
    """
    took, search = cost["rerank"], cost["search"] or {"p50": 0.0, "mean": 0.0}
    hour = prices.get("machine", {}).get("hour", 0.0)
    return {
        **cost,
        "seconds": took and took["p50"] + search["p50"],
        "per_second": took and 1 / max(1e-9, took["mean"] + search["mean"]),
        "dollars": None if cost["dollars"] is None else cost["dollars"] + search["mean"] * hour / 3600,
    }
