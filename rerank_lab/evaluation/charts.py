"""Charts of the report as inline SVG, as wide as their place: x in percent, y in pixels, text of one size anywhere.

Colours come from the page's style sheet: an element has the class of its family, `f-colbert`, which sets `--c`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10

from markupsafe import Markup

__all__ = ["bars", "curves", "reliability", "scatter", "strip", "ticks"]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, at least two, from at or below `low` to at or above `high`.

    >>> ticks(0.31, 0.47)
    [0.3, 0.35, 0.4, 0.45, 0.5]
    """
    rough = max(1e-3, (high - low) / 5)
    power = 10 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _tag(name: str, body: str | Markup = "", **attributes: object) -> Markup:
    spelled = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), spelled, body)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _svg(height: int, parts: Sequence[Markup], says: str) -> Markup:
    inside = Markup("").join(parts)
    return _tag("svg", inside, width="100%", height=height, role="img", aria_label=says, overflow="visible")


def strip(
    low: float,
    value: float,
    high: float,
    domain: tuple[float, float],
    *,
    family: str,
    says: str,
    reference: float | None = None,
    ceiling: float | None = None,
) -> Markup:
    """A value with its interval on a line; `reference` is a dashed mark, `ceiling` a tick behind."""

    def at(x: float) -> str:
        return _percent((min(max(x, domain[0]), domain[1]) - domain[0]) / (domain[1] - domain[0]))

    parts = [_tag("line", x1="0", x2="100%", y1=14, y2=14, class_="rail")]
    if reference is not None:
        parts.append(_tag("line", x1=at(reference), x2=at(reference), y1=0, y2=28, class_="reference"))
    if ceiling is not None:
        parts.append(_tag("line", x1=at(ceiling), x2=at(ceiling), y1=6, y2=22, class_="ceiling"))
    parts.append(_tag("line", x1=at(low), x2=at(high), y1=14, y2=14, class_="interval"))
    parts.append(_tag("circle", cx=at(value), cy=14, r=5.5, class_="dot"))
    return _tag("span", _svg(28, parts, says), class_=f"strip f-{family}")


HEIGHT = 260


def _short(value: float) -> str:
    text = f"{value:.3g}"
    return text[1:] if text.startswith("0.") else text


def _frame(
    y_ticks: Sequence[float], x_ticks: Sequence[tuple[float, str]], y_name: str, x_name: str
) -> tuple[list[Markup], object]:
    """Grid, tick labels and axis names; and the function from a value to its pixel."""
    low, high = y_ticks[0], y_ticks[-1]

    def y(value: float) -> float:
        return round(HEIGHT * (1 - (value - low) / (high - low)), 1)

    parts = []
    for tick in y_ticks:
        parts.append(_tag("line", x1="0", x2="100%", y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(_tag("text", _short(tick), x=-8, y=y(tick) + 4, class_="tick end"))
    for x, label in x_ticks:
        parts.append(_tag("text", label, x=_percent(x), y=HEIGHT + 20, class_="tick middle"))
    parts.append(_tag("text", y_name, x=-36, y=-14, class_="axis"))
    parts.append(_tag("text", x_name, x="100%", y=HEIGHT + 40, class_="axis end"))
    return parts, y


def _plot(parts: Sequence[Markup], says: str, extra: str = "") -> Markup:
    return _tag("div", _svg(HEIGHT, parts, says), class_=f"plot {extra}".strip())


def _log_ticks(low: float, high: float) -> list[float]:
    marks = [m * 10**p for p in range(floor(log10(low)) - 1, ceil(log10(high)) + 1) for m in (1, 2, 5)]
    inside = [m for m in marks if low <= m <= high]
    return inside if len(inside) <= 6 else [m for m in inside if f"{m:e}"[0] == "1"]


def scatter(points: Sequence[Mapping], *, x_name: str, spell, says: str) -> Markup:
    """Quality against cost on a logarithmic axis, the Pareto front as a line.

    Args:
        points: `name`, `x`, `y`, `family`, `front` (on it or not), `chosen`; at least one x above 0.
        spell: writes a cost.
    """
    costs = [p["x"] for p in points if p["x"] > 0]
    low, high = min(costs) / 1.6, max(costs) * 1.6
    free = any(p["x"] <= 0 for p in points)  # a logarithm has no 0: what is free stands at the left edge

    def x(cost: float) -> float:
        share = log10(cost / low) / log10(high / low) if cost > 0 else 0.0
        return 0.06 + 0.94 * share if free and cost > 0 else share

    values = [p["y"] for p in points]
    marks = [(x(m), spell(m)) for m in _log_ticks(low, high)]
    parts, y = _frame(ticks(min(values), max(values)), [(0.0, spell(0))] * free + marks, "nDCG@10", x_name)
    front = sorted((p for p in points if p["front"]), key=lambda p: p["x"])
    for a, b in pairwise(front):
        ends = {"x1": _percent(x(a["x"])), "x2": _percent(x(b["x"])), "y1": y(a["y"]), "y2": y(b["y"])}
        parts.append(_tag("line", **ends, class_="front"))
    dots = [(x(p["x"]), y(p["y"])) for p in points]
    taken = [(left - REACH, left + REACH, top) for left, top in dots]
    for p, (left, top) in sorted(zip(points, dots, strict=True), key=lambda pair: pair[1][1]):
        look = f"f-{p['family']}" + (" off" if not p["front"] else "") + (" chosen" if p["chosen"] else "")
        hover = _tag("title", f"{p['name']}: {p['y']:.3f} at {spell(p['x'])}")
        parts.append(
            _tag("circle", hover, cx=_percent(left), cy=top, r=7 if p["chosen"] else 5.5, class_=f"dot {look}")
        )
        if len(points) > CROWD and not (p["front"] or p["chosen"]):
            continue  # its name is there when one points at it
        right, middle = _place(left, top, CHARACTER * len(p["name"]), taken)
        words = {"x": _percent(left), "y": round(middle + 4, 1), "dx": 11 if right else -11}
        parts.append(_tag("text", p["name"], **words, class_=f"label {'' if right else 'end'} {look}"))
    return _plot(parts, says)


CROWD = 8  # dots that can all be named
CHARACTER, REACH = 7 / 360, 9 / 360  # a letter and half a dot, as shares of the narrowest chart


def _place(left: float, top: float, width: float, taken: list[tuple[float, float, float]]) -> tuple[bool, float]:
    """Where the name of a dot stands free of other dots and names: whether to its right, and at which height.

    Args:
        taken: from, to and height of what is there already; the place is added to it.
    """

    def span(right: bool) -> tuple[float, float]:
        return (left + REACH, left + REACH + width) if right else (left - REACH - width, left - REACH)

    able = [(right, top + dy) for dy in (0, -15, 15, -30, 30, 45, 60) for right in (True, False)]
    free = [
        (right, middle)
        for right, middle in able
        if span(right)[0] >= -0.08
        and span(right)[1] <= 1.04
        and all(abs(middle - other) >= 14 or span(right)[1] < a or b < span(right)[0] for a, b, other in taken)
    ]
    right, middle = free[0] if free else (left < 0.5, top)
    taken.append((*span(right), middle))
    return right, middle


def curves(grid: Sequence[int], series: Sequence[Mapping], *, x_name: str, says: str) -> Markup:
    """Values over depth, on a logarithmic axis.

    Args:
        series: `name`, `values`, `family`, `style` (empty, dashed or dotted).
    """
    span = log10(grid[-1]) or 1.0
    values = [v for s in series for v in s["values"]]
    shown = [
        d for d in grid if d in {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000} and (d < 0.7 * grid[-1] or d == grid[-1])
    ]
    shown += [] if grid[-1] in shown else [grid[-1]]
    marks = [(log10(d) / span, str(d)) for d in shown]
    parts, y = _frame(ticks(min(values), max(values)), marks, "nDCG@10, recall", x_name)
    ends: list[float] = []
    for s in sorted(series, key=lambda s: -s["values"][-1]):
        at = [(_percent(log10(d) / span), y(v)) for d, v in zip(grid, s["values"], strict=True)]
        kind = f"curve {s['style']} f-{s['family']}"
        parts += [_tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind) for (x1, y1), (x2, y2) in pairwise(at)]
        parts += [
            _tag(
                "circle",
                _tag("title", f"{s['name']} at {d}: {v:.3f}"),
                cx=cx,
                cy=cy,
                r=3,
                class_=f"dot f-{s['family']}",
            )
            for (cx, cy), d, v in zip(at, grid, s["values"], strict=True)
        ]
        label = at[-1][1] + 4
        while any(abs(label - other) < 15 for other in ends):
            label += 15
        ends.append(label)
        parts.append(_tag("text", s["name"], x="100%", dx=10, y=label, class_=f"label tail f-{s['family']}"))
    return _plot(parts, says, "labelled")


def bars(differences: Sequence[float], *, says: str) -> Markup:
    """One bar a query, largest gain first: gains up, losses down."""
    ordered = sorted(differences, reverse=True)
    most = max(0.05, *(abs(d) for d in ordered))
    above, below = (max(24.0, 90 * max(0.0, d) / most) for d in (ordered[0], -ordered[-1]))
    height, width = above + below, 1 / len(ordered)
    parts = []
    for i, d in enumerate(ordered):
        size = max(0.6, 90 * abs(d) / most)
        top = above - size if d > 0 else above
        kind = "gain" if d > 1e-9 else "loss" if d < -1e-9 else "same"
        rest = {"y": round(top, 1), "height": round(size, 1), "class_": kind}
        parts.append(_tag("rect", x=_percent(i * width), width=_percent(width * 0.82), **rest))
    parts.append(_tag("line", x1="0", x2="100%", y1=above, y2=above, class_="zero"))
    for d in {ordered[0], ordered[-1]}:
        if abs(d) / most * 90 > 12:
            sign, y = ("+", above - 90 * d / most + 10) if d > 0 else ("−", above - 90 * d / most)
            parts.append(_tag("text", sign + _short(round(abs(d), 2)), x=-8, y=round(y, 1), class_="tick end"))
    return _tag("div", _svg(round(height), parts, says), class_="plot low")


def reliability(bins: Sequence[Mapping], family: str, *, says: str) -> Markup:
    """What scores promised against what came true; on the diagonal a promise comes true as often as it says."""
    marks = [(i / 5, f"{i * 20} %") for i in range(6)]
    parts, y = _frame([0, 0.25, 0.5, 0.75, 1], marks, "came true", "promised probability")
    parts.append(_tag("line", x1="0", x2="100%", y1=y(0), y2=y(1), class_="diagonal"))
    most = max(b["pairs"] for b in bins)
    for b in bins:
        hover = _tag("title", f"{b['pairs']:,} pairs: promised {b['promised']:.2f}, came true {b['came_true']:.2f}")
        size = round(3 + 9 * (b["pairs"] / most) ** 0.5, 1)
        parts.append(
            _tag("circle", hover, cx=_percent(b["promised"]), cy=y(b["came_true"]), r=size, class_=f"dot f-{family}")
        )
    return _plot(parts, says, "square")
