"""The book's figures: one style, and one fixed colour a family across all chapters.

Colours are Okabe and Ito's, told apart by colour-blind readers and on light and dark pages (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "COLOURS",
    "attention_map",
    "bars_with_intervals",
    "places_chart",
    "set_style",
    "shade_tokens",
    "win_matrix",
]

COLOURS = {
    "bm25": "#999999",
    "bi-encoder": "#0072B2",
    "fusion": "#56B4E9",
    "cross-encoder": "#D55E00",
    "monot5": "#009E73",
    "colbert": "#CC79A7",
    "llm": "#E69F00",
    "hosted": "#8C6D1F",
    "cascade": "#5B3A8E",
    "oracle": "#444444",
}


def set_style() -> None:
    """Set matplotlib's defaults: a white card that reads on light and dark pages, no frame, readable sizes."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 4.0),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "axes.titlelocation": "left",
            "font.size": 11,
            "legend.frameon": False,
            "savefig.bbox": "tight",
        }
    )


def bars_with_intervals(values: Mapping[str, tuple[float, float, float]], *, axes=None):
    """Horizontal bars of nDCG@10 with intervals, one a system, coloured by family.

    Args:
        values: mean, low and high by system name.
        axes: to draw on; a new figure without it.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    axes = axes or plt.subplots(figsize=(7.5, 0.55 * len(values) + 1))[1]
    names = list(values)
    means = [values[n][0] for n in names]
    errors = [[values[n][0] - values[n][1] for n in names], [values[n][2] - values[n][0] for n in names]]
    axes.barh(names, means, xerr=errors, color=[COLOURS.get(n, "#888888") for n in names], ecolor="#333333", capsize=3)
    for place, (mean, (_, _, high)) in enumerate(zip(means, values.values(), strict=True)):
        axes.text(high + 0.01, place, f"{mean:.3f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("nDCG@10")
    axes.grid(axis="y", visible=False)
    return axes


def attention_map(
    weights, rows: Sequence[str], columns: Sequence[str], *, title: str = "", label: str = "attention", axes=None
):
    """A heat map of attention weights, or of other weights between tokens.

    Args:
        weights: shape (rows, columns); below 0 they are as pale as 0.
        rows: tokens that look.
        columns: tokens that are looked at.
        label: of the colours.
    """
    import matplotlib.pyplot as plt

    axes = axes or plt.subplots(figsize=(0.32 * len(columns) + 2, 0.32 * len(rows) + 1.2))[1]
    image = axes.imshow(weights, cmap="Oranges", aspect="auto", vmin=0)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes, label=label)
    return axes


def win_matrix(chances, names: Sequence[str], *, axes=None):
    """A heat map of comparisons: green where the row beats the column, brown where it loses.

    Args:
        chances: that the row beats the column, shape (n, n).
        names: of the rows and columns, best first.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    axes = axes or plt.subplots(figsize=(0.5 * len(names) + 2.6, 0.5 * len(names) + 1.4))[1]
    image = axes.imshow(chances, cmap="BrBG", vmin=0, vmax=1)
    for row, others in enumerate(chances):
        for column, chance in enumerate(others):
            if row != column:
                dark = abs(chance - 0.5) > 0.3
                axes.text(
                    column,
                    row,
                    f"{chance:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#ffffff" if dark else "#222222",
                )
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, label="chance that the row beats the column")
    return axes


def places_chart(
    lines: Mapping[str, Sequence[int]],
    steps: Sequence[tuple[str, int, int]],
    marked: Collection[str] = (),
    *,
    axes=None,
):
    """The way of each passage from step to step: a line from place to place, and a bar over the places that were read.

    Args:
        lines: the places of each passage, counted from 1, before the first step and after each.
        steps: label, first place and last place that each step read; counted from 1 to the last, both included.
        marked: the passages whose lines are coloured and named.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    axes = axes or plt.subplots(figsize=(1.6 * len(steps) + 2.6, 4.6))[1]
    for number, (_, first, last) in enumerate(steps, start=1):
        axes.bar(number - 0.5, last - first + 1, bottom=first - 0.5, width=0.3, color="#f0e0b0", zorder=0)
    colours = [colour for name, colour in COLOURS.items() if name not in ("bm25", "oracle")]
    for name, places in lines.items():
        if name not in marked:
            axes.plot(range(len(places)), places, color="#cccccc", linewidth=0.8)
    for name, colour in zip(marked, colours * len(marked), strict=False):
        axes.plot(range(len(lines[name])), lines[name], "o-", color=colour, linewidth=1.8, markersize=4)
        axes.annotate(
            name,
            (len(steps), lines[name][-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
        )
    axes.set_xticks(range(len(steps) + 1), ["as it came", *(label for label, _, _ in steps)])
    axes.set_ylabel("place")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.invert_yaxis()
    axes.grid(axis="x", visible=False)
    return axes


def shade_tokens(words: Sequence[str], weights: Sequence[float]):
    """Words with a background as strong as their weight: orange raises the score, blue lowers it.

    Args:
        words: in reading order.
        weights: one a word, any scale; the largest magnitude gets the full colour.
    """
    from html import escape

    from IPython.display import HTML

    largest = max((abs(w) for w in weights), default=0.0) or 1.0
    spans = []
    for word, weight in zip(words, weights, strict=True):
        rgb = "213,94,0" if weight > 0 else "0,114,178"
        style = f"background:rgba({rgb},{abs(weight) / largest:.2f});padding:1px 3px;border-radius:3px"
        spans.append(f'<span style="{style}" title="{weight:+.3f}">{escape(word)}</span>')
    return HTML('<p style="background:#fff;color:#111;padding:8px;line-height:1.9">' + " ".join(spans) + "</p>")
