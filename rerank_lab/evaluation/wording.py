"""How reports spell figures: signs, intervals, times, money. Pure functions, shared by sentences and pages."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["counted", "interval", "money", "points", "seconds", "share", "signed"]


def points(value: float) -> str:
    """A measure between 0 and 1, three places, without the leading zero.

    >>> points(0.4167), points(1.0)
    ('.417', '1.000')
    """
    text = f"{value:.3f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(0.0713), signed(-0.02), signed(0.0001)
    ('+.071', '−.020', '±.000')
    """
    text = f"{abs(value):.3f}".removeprefix("0")
    return ("±" if text == ".000" else "+" if value > 0 else "−") + text


def interval(row: Mapping) -> str:
    """The interval of a difference.

    >>> interval({"low": -0.011, "high": 0.031})
    '[−.011, +.031]'
    """
    return f"[{signed(row['low'])}, {signed(row['high'])}]"


def seconds(value: float) -> str:
    """A time to two digits, in the unit that suits it.

    >>> seconds(0.0042), seconds(0.314), seconds(1.44), seconds(75)
    ('4.2 ms', '310 ms', '1.4 s', '75 s')
    """
    if value >= 0.995:
        return f"{value:.1f} s" if value < 9.95 else f"{value:,.0f} s"
    ms = 1000 * value
    return f"{ms:.1f} ms" if ms < 9.95 else f"{float(f'{ms:.2g}'):.0f} ms"


def money(dollars: float) -> str:
    """US dollars for 1,000 queries of this price each.

    >>> money(0.002), money(0.0000304), money(0.0)
    ('$2.00', '$0.030', '$0')
    """
    per_thousand = dollars * 1000
    if per_thousand == 0:
        return "$0"
    return f"${per_thousand:,.2f}" if per_thousand >= 0.995 else f"${per_thousand:#.2g}"


def share(value: float) -> str:
    """A share in percent.

    >>> share(0.314), share(0.004), share(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 0.95 else f"{percent:.0f} %"


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "query", "queries"), counted(1200, "pair")
    ('1 query', '1,200 pairs')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"
