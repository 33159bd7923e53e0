"""How sure are we? Intervals by resampling queries, paired tests by swapping systems, corrected for asking often.

Smucker, Allan and Carterette, CIKM 2007 (the randomisation test). https://doi.org/10.1145/1321440.1321528
Holm, Scandinavian Journal of Statistics, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["bootstrap_interval", "holm", "randomisation_test"]


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over queries.

    Args:
        values: one number a query; at least one.
        level: share of resampled means inside.
        samples: how often queries are drawn, in whole thousands.

    >>> low, high = bootstrap_interval([0.0, 1.0] * 50)
    >>> round(low, 2), round(high, 2)
    (0.4, 0.6)
    """
    data = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [data[random.integers(0, len(data), (1000, len(data)))].mean(axis=1) for _ in range(max(1, samples // 1000))]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def randomisation_test(a: Sequence[float], b: Sequence[float], *, samples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p: how often a random swap of the systems' names, query by query, gives a mean difference as large.

    Args:
        a, b: one number a query, in the same order.
        samples: how often names are swapped, in whole thousands.

    >>> randomisation_test([1.0] * 12, [0.0] * 12) < 0.001
    True
    >>> randomisation_test([0.5, 0.5], [0.5, 0.5])
    1.0
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    observed = abs(difference.mean()) - 1e-12
    random = np.random.default_rng(seed)
    at_least = 0
    for _ in range(max(1, samples // 1000)):
        signs = random.integers(0, 2, (1000, len(difference))) * 2 - 1
        at_least += int((np.abs((signs * difference).mean(axis=1)) >= observed).sum())
    return (at_least + 1) / (max(1, samples // 1000) * 1000 + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down correction: the smallest p times m, the next times m - 1, never falling.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[index]))
        corrected[index] = highest
    return corrected
