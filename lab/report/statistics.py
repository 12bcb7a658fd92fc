"""Intervals over training runs and test images, the training set held fixed; and those of shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_FOR_INTERVAL = 4


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` nodes with its 95 % interval, NaN where there are too few nodes for one."""

    mean: float
    low: float
    high: float
    n: int


def unsigned(value: Interval) -> Interval:
    """The interval of how far a mean lies from zero, on whichever side."""
    return value if value.mean > 0 else Interval(-value.mean, -value.high, -value.low, value.n)


def less_in_percent(logs: Interval) -> Interval:
    """By how many percent one thing is less than another, from the logarithm of the other over the one."""
    return Interval(*(100 * (1 - np.exp(-end)) for end in (logs.mean, logs.low, logs.high)), logs.n)


def interval(values: np.ndarray) -> Interval:
    """The 95 % interval of the mean of ``values``: (n,) one per node, or (n, m) one per node and test image.

    Student's t over nodes. With images, nodes and images are crossed random effects: the variance of the mean is
    (MS_nodes + MS_images - MS_rest) / (n m), its degrees of freedom Satterthwaite's (1946). Nodes must be independent:
    made of disjoint leaves. Below four nodes there is no interval. Raises ValueError for no or non-finite values.
    """
    values = _checked(values)
    n, mean = len(values), float(values.mean())
    if n < FEWEST_FOR_INTERVAL:
        return Interval(mean, np.nan, np.nan, n)
    variance, freedom = _uncertainty(values)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return Interval(mean, float(mean - half), float(mean + half), n)


def p_value(values: np.ndarray, bound: float) -> float:
    """The two-sided p of the mean of ``values`` being ``bound``, by the variance of ``interval``; NaN below four nodes.

    It is below 0.05 exactly where the interval leaves the bound out.
    """
    values = _checked(values)
    if len(values) < FEWEST_FOR_INTERVAL:
        return np.nan
    variance, freedom = _uncertainty(values)
    distance = abs(float(values.mean()) - bound)
    if variance == 0:
        return float(distance == 0)
    return float(2 * stats.t.sf(distance / np.sqrt(variance), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p corrected for their number (Holm, 1979); one that is NaN stays so, and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    corrected, highest = [np.nan] * len(p_values), 0.0
    for before, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - before)))
        corrected[place] = highest
    return corrected


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, (nodes,) or (nodes, images): got shape {values.shape}")
    return values


def _uncertainty(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of values, (n,) or (n, m), and its degrees of freedom."""
    n = len(values)
    if values.ndim == 1 or values.shape[1] == 1:
        return float(values.reshape(n).var(ddof=1)) / n, n - 1.0
    return _crossed(values)


def share_interval(hits: int, n: int) -> Interval:
    """The share of ``n`` independent trials that hit, with its exact 95 % interval (Clopper and Pearson, 1934).

    Unlike Student's it has a width where all trials came out alike. Raises ValueError for no trial.
    """
    if n < 1:
        raise ValueError("a share needs one trial at least")
    exact = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    return Interval(hits / n, float(exact.low), float(exact.high), n)


def share_p_value(hits: int, n: int, bound: float) -> float:
    """The two-sided exact p of a share being ``bound``."""
    return float(stats.binomtest(hits, n, bound).pvalue)


def _crossed(values: np.ndarray) -> tuple[float, float]:
    """Variance of the grand mean of (nodes, images), both random, and its degrees of freedom."""
    n, m = values.shape
    rows, columns = values.mean(1), values.mean(0)
    rest = values - rows[:, None] - columns[None, :] + values.mean()
    squares = np.array([m * rows.var(ddof=1), n * columns.var(ddof=1), (rest**2).sum() / ((n - 1) * (m - 1))])
    freedoms = np.array([n - 1, m - 1, (n - 1) * (m - 1)])
    signs = np.array([1, 1, -1])
    # Sampling noise can make the combination smaller than one of its two sources alone: then that one counts.
    if signs @ squares <= squares[:2].max():
        larger = int(squares[:2].argmax())
        return float(squares[larger]) / (n * m), float(freedoms[larger])
    total = float(signs @ squares)
    freedom = total**2 / float((squares**2 / freedoms).sum())
    return total / (n * m), freedom
