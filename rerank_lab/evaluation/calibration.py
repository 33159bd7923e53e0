"""From scores to probabilities.

    Platt:     P(relevant | s) = 1 / (1 + exp(-(a s + b)))
    isotonic:  the rising step function that is nearest to the labels
    ECE      = sum over bins of (share of the pairs in the bin) * |mean probability - share relevant|

A score ranks the passages of one query; how likely a passage is to be relevant is another question, asked here. What
is reported about a fit is measured on queries that it has not seen.

Platt, 1999; Zadrozny and Elkan, KDD 2002, https://doi.org/10.1145/775047.775151; Guo et al., ICML 2017,
https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log

import numpy as np

from rerank_lab.core import InputError

__all__ = [
    "Calibration",
    "Judged",
    "Reliability",
    "expected_calibration_error",
    "fit",
    "folds",
    "held_out",
    "pairs_of",
    "reliability",
    "rounds",
]

FOLDS = 5


@dataclass(frozen=True)
class Judged:
    """The scores of one query's candidates, best first, and whether each is relevant."""

    scores: tuple[float, ...]
    relevant: tuple[bool, ...]


@dataclass(frozen=True)
class Calibration:
    """A map from score to probability that never falls.

    Attributes:
        how: `platt` or `isotonic`.
        x, y: the slope and the intercept of Platt's line as `x[0]` and `y[0]`; the corners of the isotonic function.

    >>> Calibration("isotonic", (0.0, 1.0), (0.1, 0.9)).probability(0.5)
    0.5
    >>> Calibration("platt", (2.0,), (-1.0,)).probability(0.5)
    0.5
    """

    how: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def probability(self, score: float) -> float:
        """The chance that a passage with this score is relevant."""
        if self.how == "isotonic":
            return float(np.interp(score, self.x, self.y))
        z = max(-700.0, min(700.0, self.x[0] * score + self.y[0]))
        return 1 / (1 + exp(-z))


def fit(scores: Sequence[float], relevant: Sequence[bool], how: str = "platt") -> Calibration:
    """Fit a calibration by scikit-learn.

    Args:
        scores: one a pair; higher is better.
        relevant: whether the pair is relevant, in the same order.
        how: `platt` or `isotonic`.

    Raises:
        InputError: another `how`, a score that is not finite, or pairs that are all relevant or all not.
    """
    if how not in {"platt", "isotonic"}:
        raise InputError(f"calibration {how!r} is unknown: give platt or isotonic")
    if not all(map(isfinite, scores)):
        raise InputError("a score is nan or infinite: calibrate the scores of a working model")
    if len(set(map(bool, relevant))) < 2:
        raise InputError(
            f"all {len(relevant)} pairs are {'relevant' if any(relevant) else 'not relevant'}: calibration needs both"
        )
    x, y = np.asarray(scores, dtype=float), np.asarray(relevant, dtype=int)
    if how == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        made = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, y)
        return Calibration(how, tuple(map(float, made.X_thresholds_)), tuple(map(float, made.y_thresholds_)))
    from sklearn.linear_model import LogisticRegression

    spread = float(x.std()) or 1.0
    made = LogisticRegression(C=1e6).fit(((x - x.mean()) / spread)[:, None], y)
    slope = float(made.coef_[0, 0]) / spread
    if slope <= 0:  # a chance that fell with the score would turn the order: everyone gets the share of all pairs
        return Calibration(how, (0.0,), (log(y.mean() / (1 - y.mean())),))
    return Calibration(how, (slope,), (float(made.intercept_[0]) - slope * float(x.mean()),))


def folds(qids: Sequence[str], k: int = FOLDS) -> list[list[str]]:
    """Queries dealt to k folds, so that no query is both fitted and judged.

    >>> folds(["a", "b", "c"], k=2)
    [['c', 'b'], ['a']]
    """
    shuffled = [qids[i] for i in np.random.default_rng(0).permutation(len(qids))]
    return [fold for i in range(k) if (fold := shuffled[i::k])]


def pairs_of(data: Mapping[str, Judged], qids: Sequence[str]) -> tuple[list[float], list[bool]]:
    """Score and relevance of every pair of some queries."""
    return [s for q in qids for s in data[q].scores], [r for q in qids for r in data[q].relevant]


def rounds(data: Mapping[str, Judged]) -> Iterator[tuple[list[str], list[str]]]:
    """Queries to fit and queries held out, five times.

    Raises:
        InputError: fewer than two queries a fold.
    """
    if len(data) < 2 * FOLDS:
        raise InputError(f"{len(data)} queries are too few for {FOLDS} folds: give at least {2 * FOLDS}")
    for fold in folds(list(data)):
        out = set(fold)
        yield [q for q in data if q not in out], fold


def held_out(data: Mapping[str, Judged], how: str = "platt") -> tuple[list[float], list[bool]]:
    """The probability of every pair by a fit that has not seen its query, and whether the pair is relevant.

    Args:
        data: by qid.

    Raises:
        InputError: too few queries, or what `fit` refuses.
    """
    chances: list[float] = []
    labels: list[bool] = []
    for fitted, fold in rounds(data):
        calibration = fit(*pairs_of(data, fitted), how)
        scores, relevant = pairs_of(data, fold)
        chances += [calibration.probability(s) for s in scores]
        labels += relevant
    return chances, labels


@dataclass(frozen=True)
class Reliability:
    """One bin of a reliability diagram: what was promised and what came true."""

    low: float
    high: float
    pairs: int
    promised: float
    came_true: float


def reliability(chances: Sequence[float], relevant: Sequence[bool], bins: int = 10) -> list[Reliability]:
    """Bins of equal width that hold any pair.

    >>> [(b.low, b.pairs, b.promised, b.came_true) for b in reliability([0.1, 0.1, 0.9], [False, True, True], bins=2)]
    [(0.0, 2, 0.1, 0.5), (0.5, 1, 0.9, 1.0)]
    """
    p, y = np.asarray(chances, dtype=float), np.asarray(relevant, dtype=float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    made = []
    for i in range(bins):
        inside = place == i
        if n := int(inside.sum()):
            made.append(Reliability(i / bins, (i + 1) / bins, n, float(p[inside].mean()), float(y[inside].mean())))
    return made


def expected_calibration_error(chances: Sequence[float], relevant: Sequence[bool], bins: int = 10) -> float:
    """How far promises and truth lie apart, averaged over the pairs.

    >>> round(expected_calibration_error([0.1, 0.1, 0.9], [False, True, True], bins=2), 3)
    0.3
    """
    return sum(b.pairs / len(chances) * abs(b.promised - b.came_true) for b in reliability(chances, relevant, bins))
