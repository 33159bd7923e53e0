"""The book's figures: one style, and one fixed colour a family across all chapters.

Colours are Okabe and Ito's, told apart by colour-blind readers and on light and dark pages (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["COLOURS", "attention_map", "bars_with_intervals", "set_style", "shade_tokens"]

COLOURS = {
    "bm25": "#999999",
    "bi-encoder": "#0072B2",
    "fusion": "#56B4E9",
    "cross-encoder": "#D55E00",
    "monot5": "#009E73",
    "colbert": "#CC79A7",
    "llm": "#E69F00",
    "hosted": "#8C6D1F",
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


def bars_with_intervals(values: Mapping[str, tuple[float, float, float]], *, label: str = "nDCG@10", axes=None):
    """Horizontal bars with intervals, one a system, coloured by family.

    Args:
        values: mean, low and high by system name.
        label: of the value axis.
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
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    return axes


def attention_map(weights, rows: Sequence[str], columns: Sequence[str], *, title: str = "", axes=None):
    """A heat map of attention weights.

    Args:
        weights: shape (rows, columns).
        rows: tokens that look.
        columns: tokens that are looked at.
    """
    import matplotlib.pyplot as plt

    axes = axes or plt.subplots(figsize=(0.32 * len(columns) + 2, 0.32 * len(rows) + 1.2))[1]
    image = axes.imshow(weights, cmap="Oranges", aspect="auto", vmin=0)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes, label="attention")
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
