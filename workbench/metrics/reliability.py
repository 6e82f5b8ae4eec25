"""Coefficients of any number of raters, with any labels missing: Fleiss' and Krippendorff's.

Every coefficient states its range, its source, and when it is undefined: then it is nan, not 0.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from workbench.metrics.coefficients import Statistic, disagreement
from workbench.metrics.intervals import Array

Level = Literal["nominal", "ordinal", "interval"]


def fleiss_kappa(counts: Array) -> float:
    """Return Fleiss' kappa of items each rated by the same number of raters.

    ``counts[item, category]`` is how many raters put the item there. At most 1; nan for no
    items, fewer than two raters, or ratings all in one category. Source: Fleiss (1971),
    "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 378-382.
    """
    counts = np.asarray(counts)
    if counts.size == 0 or counts[0].sum() < 2 or (counts.sum(axis=0) > 0).sum() < 2:
        return math.nan
    from statsmodels.stats.inter_rater import fleiss_kappa as kappa

    return float(kappa(counts, method="fleiss"))


def coincidences(counts: Array) -> Array:
    """Return Krippendorff's matrix of coincidences o_ck over all units, shape (K, K).

    ``counts[unit, category]`` is how many raters gave the unit that category. A unit with m
    ratings gives each ordered pair of them the weight 1 / (m - 1); one with fewer than two
    ratings pairs with nothing and drops out.
    """
    counts = np.asarray(counts, dtype=float)
    counts = counts[counts.sum(axis=1) >= 2]
    pairable = counts / (counts.sum(axis=1, keepdims=True) - 1)
    return np.asarray(pairable.T @ counts - np.diag(pairable.sum(axis=0)))


def krippendorff_alpha(together: Array, values: Array, level: Level = "nominal") -> Array:
    """Return Krippendorff's alpha: ``1 - observed / expected`` disagreement.

    ``together`` is what `coincidences` gives, leading axes (resamples, say) are kept; ``values``
    are the categories' numbers, worst first. Any ratings may be missing. At most 1; 0 is what
    chance gives. nan where all ratings are one category or none can be paired. Source:
    Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    margins = together.sum(axis=-1)
    n = margins.sum(axis=-1)
    difference = _squared_difference(margins, values, level)
    observed = (together * difference).sum(axis=(-2, -1))
    expected = (margins[..., :, None] * margins[..., None, :] * difference).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 1e-12, 1 - (n - 1) * observed / expected, np.nan)


def _squared_difference(margins: Array, values: Array, level: Level) -> Array:
    """Krippendorff's delta squared of each two categories."""
    if level == "ordinal":
        # The ratings that lie between two categories, half of each end counted.
        middle = np.cumsum(margins, axis=-1) - margins / 2
        return np.asarray((middle[..., :, None] - middle[..., None, :]) ** 2)
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    return disagreement(values, "quadratic")


def interval_alpha(numbers: Array) -> Statistic:
    """Return `krippendorff_alpha` of numbers, from their moments: times of each unit -> alpha.

    ``numbers`` has a row a unit and a column a rater, nan for none. The squared distances of a
    unit's m ratings, over both orders, sum up to ``2 m sum x^2 - 2 (sum x)^2``, and so do those of
    all ratings together.
    """
    there = np.isfinite(numbers) & (np.isfinite(numbers).sum(axis=1, keepdims=True) >= 2)
    low, high = (function(numbers[there], initial=0) for function in (np.min, np.max))
    x = np.where(there, (numbers - low) / ((high - low) or 1.0), 0.0)
    m, s, squares = there.sum(axis=1), x.sum(axis=1), (x**2).sum(axis=1)
    apart = 2 * (m * squares - s**2) / np.maximum(m - 1, 1)

    def alpha(times: Array) -> Array:
        n, observed, expected = (
            times @ m,
            times @ apart,
            2 * ((times @ m) * (times @ squares) - (times @ s) ** 2),
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(expected > 1e-12, 1 - (n - 1) * observed / expected, np.nan)

    return alpha
