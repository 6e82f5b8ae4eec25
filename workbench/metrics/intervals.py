"""Confidence intervals and how they are written."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.errors import ArgumentError

Array = npt.NDArray[Any]


class Interval(NamedTuple):
    """A confidence interval; both ends are nan where it is undefined."""

    low: float
    high: float

    def __str__(self) -> str:
        return "" if math.isnan(self.low) else f"[{self.low:.3f}, {self.high:.3f}]"

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


UNDEFINED = Interval(math.nan, math.nan)


def ratio(part: float, whole: float) -> float:
    """``part / whole``; nan where ``whole`` is 0."""
    return float(part) / float(whole) if whole else math.nan


# -- proportions ----------------------------------------------------------------------------


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, within [0, 1]; undefined for n = 0.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical
    inference", JASA 22, 209-212.

    >>> str(wilson(8, 10))
    '[0.490, 0.943]'
    """
    if n == 0:
        return UNDEFINED
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95
) -> Interval:
    """Interval of the second proportion minus the first, both observed on the same items.

    Joins the Wilson intervals of the two proportions by their correlation phi, so that it
    holds its level on small samples and does not collapse when the two differ on no item.
    Within [-1, 1]; undefined for no items. Source: Newcombe (1998), "Improved confidence
    intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17, 2635-2650, method 10.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return UNDEFINED
    p1, p2 = (both + only_first) / n, (both + only_second) / n
    low1, high1 = wilson(both + only_first, n, confidence)
    low2, high2 = wilson(both + only_second, n, confidence)
    margins = (
        (both + only_first)
        * (only_second + neither)
        * (both + only_second)
        * (only_first + neither)
    )
    joint = float(both * neither - only_first * only_second)
    if joint > 0:
        joint = max(joint - n / 2, 0.0)  # the paper's continuity correction
    phi = joint / math.sqrt(margins) if margins else 0.0

    def spread(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    change = p2 - p1
    return Interval(
        max(change - spread(high1 - p1, p2 - low2), -1.0),
        min(change + spread(p1 - low1, high2 - p2), 1.0),
    )


def resample(counts: Array, resamples: int, seed: int) -> Array:
    """Bootstrap counts of cells, one row a resample: drawing n items with replacement.

    Drawing items is drawing their cells from a multinomial distribution, which needs no loop.
    """
    n = int(counts.sum())
    # numpy takes no negative seed, which is one like any other here.
    own = seed if seed >= 0 else [-seed, 1]
    return np.random.default_rng(own).multinomial(n, counts / n, size=resamples)


def percentile_interval(draws: Array, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval; undefined where half of the draws or more are undefined.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    defined = draws[~np.isnan(draws)]
    if defined.size * 2 <= draws.size:
        return UNDEFINED
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))


def check_confidence(confidence: float) -> None:
    """Raise `ArgumentError` unless ``confidence`` lies in (0, 1)."""
    if not 0 < confidence < 1:
        raise ArgumentError(
            f"confidence={confidence!r} must lie between 0 and 1, for instance 0.95."
        )


def figure(value: float, interval: Interval = UNDEFINED, *, sign: bool = False) -> str:
    """A figure with its interval as text: ``0.848 [0.829, 0.865]``; "undefined" for nan."""
    if math.isnan(value):
        return "undefined"
    if not sign:
        return f"{value:.3f} {interval}".strip()
    ends = "" if math.isnan(interval.low) else f"[{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{value:+.3f} {ends}".strip()
