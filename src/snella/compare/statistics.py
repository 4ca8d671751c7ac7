"""Means over seeds, and how sure a difference is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean over seeds."""

    mean: float
    std: float | None  # of the sample; None for one value
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its 95 % t-interval; which is None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of at least one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def mean_of_pairs(differences: Sequence[float]) -> Difference:
    """Return the mean of the differences of pairs, at least one, with its interval."""
    paired = spread(differences)
    if paired.std is None:
        return Difference(paired.mean, None, None, paired.count)
    half = t_quantile(paired.count - 1) * paired.std / math.sqrt(paired.count)
    return Difference(paired.mean, paired.mean - half, paired.mean + half, paired.count)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the t with P(|T| <= t) = confidence, for Student's distribution with that many degrees of freedom."""
    low, high = 0.0, math.pi / 2  # of the angle atan(t / sqrt(freedom))
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _probability(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(angle: float, freedom: int) -> float:
    """Return P(|T| <= sqrt(freedom) tan(angle)) by the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
