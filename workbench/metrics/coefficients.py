"""Coefficients of agreement, on counts and arrays.

Every coefficient states its range, its source, and when it is undefined: then it is nan, not 0.
Two raters' items fall into cells with the codes ``rows`` and ``columns`` and so many ``counts``,
several raters' into units that occur so many ``times``; leading axes (resamples, say) are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from workbench.metrics.intervals import Array

Weights = Literal["linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]
Statistic = Callable[[Array], Array]  # counts of cells, shape (..., cells) -> values, shape (...)


def numbered(keys: Iterable[Any]) -> Array:
    """Return a number for each key, the same for equal ones."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=int)


def distinct_rows(codes: Array) -> tuple[Array, Array, Array]:
    """Return the first of the rows of each kind, how many are of it, and the kind of each row."""
    _, first, kind, times = np.unique(
        codes, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    return first, times, kind.ravel()


def mcnemar(gains: Array) -> float:
    """Return the exact two-sided p-value of McNemar's test: are items fixed as often as broken?

    ``gains`` has fixed minus broken of each item, or each group of items that belong together. In
    (0, 1]; 1 where nothing changed. Sources: McNemar (1947), Psychometrika 12, 153-157; for groups
    Fisher (1935), The Design of Experiments, section 21.
    """
    sizes, times = np.unique(np.abs(gains), return_counts=True)
    chances, total = np.ones(1), int(np.abs(gains).sum())
    for size, n in zip(sizes.astype(int), times, strict=True):
        if size:
            step = np.zeros(size * n + 1)
            step[::size] = binom.pmf(np.arange(n + 1), n, 0.5)
            chances = np.convolve(chances, step)
    # chances[k] is that the groups with a gain hold k of the total, so that 2 k - total is gained.
    extreme = np.abs(2 * np.arange(total + 1) - total) >= abs(np.sum(gains))
    return min(1.0, float(chances[extreme].sum()))


def disagreement(values: Array, weights: Weights | None = None) -> Array:
    """Return how much each two categories disagree: by 1, their ranks' distance, or its square."""
    gap = np.abs(np.subtract.outer(values, values)).astype(float)
    if weights is None:
        return (gap > 0).astype(float)
    return gap if weights == "linear" else gap**2


def _shares(counts: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / np.sum(counts, axis=-1, keepdims=True))


def _corrected(observed: Array, expected: Array) -> Array:
    """``1 - observed / expected`` disagreement; nan where none can be expected."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def cohen_kappa(rows: Array, columns: Array, counts: Array, weights: Array) -> Array:
    """Return Cohen's kappa of two raters: ``1 - observed / expected`` disagreement.

    By the K x K matrix w of `disagreement`, observed is ``sum w_ij n_ij / n``, and expected
    ``sum w_ij r_i c_j`` of the raters' shares r and c. In [-1, 1] unweighted; 0 is what chance
    gives. nan for no items, or one category throughout. Sources: Cohen (1960), Educational and
    Psychological Measurement 20, 37-46; weighted: Cohen (1968), Psychological Bulletin 70, 213-220.
    """
    share, categories = _shares(counts), np.eye(len(weights))
    row_share, column_share = share @ categories[rows], share @ categories[columns]
    expected = ((row_share @ weights) * column_share).sum(axis=-1)
    return _corrected(share @ weights[rows, columns], expected)


def quadratic_kappa(rows: Array, columns: Array, counts: Array) -> Array:
    """Return `cohen_kappa` with quadratic weights, of numbers: from their moments alone."""
    both, share = np.concatenate([rows, columns]), _shares(counts)
    rows, columns = ((side - both.mean()) / (np.ptp(both) or 1.0) for side in (rows, columns))
    expected = share @ rows**2 + share @ columns**2 - 2 * (share @ rows) * (share @ columns)
    return _corrected(share @ (rows - columns) ** 2, expected)


def gwet_ac(rows: Array, columns: Array, counts: Array, weights: Array) -> Array:
    """Return Gwet's AC1 of two raters, or AC2 where ``weights`` count near misses less.

    ``(observed - expected) / (1 - expected)`` agreement, where ``expected = T / (K (K - 1)) sum p_k
    (1 - p_k)`` of the mean shares p of the K categories, used or not, and T is the sum of the
    weights of agreement. At most 1; nan for no items and for one category. Sources: Gwet (2008),
    British Journal of Mathematical and Statistical Psychology 61, 29-48; AC2: Gwet (2014), Handbook
    of Inter-Rater Reliability, chapter 5.
    """
    size, share, categories = len(weights), _shares(counts), np.eye(len(weights))
    if size < 2:
        return np.full(counts.shape[:-1], math.nan)
    agreed = 1 - weights / weights.max()
    p = (share @ categories[rows] + share @ categories[columns]) / 2
    expected = agreed.sum() / (size * (size - 1)) * (p * (1 - p)).sum(axis=-1)
    return np.asarray((share @ agreed[rows, columns] - expected) / (1 - expected))


def correlation(rows: Array, columns: Array, counts: Array) -> Array:
    """Return Pearson's correlation of two raters' numbers; of 0 and 1 it is Matthews'.

    In [-1, 1]; nan where one of them does not vary. Source: Matthews (1975), Biochimica et
    Biophysica Acta 405, 442-451.
    """
    rows, columns = ((side - side.mean()) / (np.ptp(side) or 1.0) for side in (rows, columns))
    share = _shares(counts)
    one, two = share @ rows, share @ columns
    spreads = share @ rows**2 - one**2, share @ columns**2 - two**2
    joint = share @ (rows * columns) - one * two
    with np.errstate(invalid="ignore", divide="ignore"):
        vary = np.minimum(*spreads) > 1e-12
        return np.where(vary, joint / np.sqrt(spreads[0] * spreads[1]), np.nan)


def fleiss_kappa(counts: Array, times: Array) -> Array:
    """Return Fleiss' kappa of items each rated by the same number of raters.

    ``counts[item, category]`` is how many raters put the item there. At most 1; nan for no items,
    fewer than two raters, or one category throughout. Source: Fleiss (1971), Psychological Bulletin
    76, 378-382.
    """
    raters = counts.sum(axis=1).max(initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = times / times.sum(axis=-1, keepdims=True)
        same = share @ ((counts**2).sum(axis=1) - raters) / (raters * (raters - 1.0))
        by_chance = ((share @ counts / raters) ** 2).sum(axis=-1)
        return np.where(by_chance < 1 - 1e-12, (same - by_chance) / (1 - by_chance), math.nan)


def coincidences(counts: Array, times: Array) -> Array:
    """Return Krippendorff's matrix of coincidences o_ck over all units, shape (..., K, K).

    ``counts[unit, category]`` is how many raters gave the unit that category.
    """
    ratings = counts.sum(axis=1, keepdims=True)
    pairable = np.where(ratings < 2, 0.0, counts / np.maximum(ratings - 1, 1))
    together = np.einsum("...u,uc,uk->...ck", times, pairable, counts, optimize=True)
    return np.asarray(together - (times @ pairable)[..., None] * np.eye(counts.shape[1]))


def krippendorff_alpha(together: Array, level: Level = "nominal") -> Array:
    """Return Krippendorff's alpha: ``1 - observed / expected`` disagreement.

    ``together`` is what `coincidences` gives, of an ordinal level from worst to best. At most 1; 0
    is what chance gives. nan for one category throughout, and where no ratings can be paired.
    Source: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    margins = together.sum(axis=-1)
    n = margins.sum(axis=-1)
    difference = 1.0 - np.eye(together.shape[-1])
    if level == "ordinal":
        # The ratings that lie between two categories, half of each end counted.
        middle = np.cumsum(margins, axis=-1) - margins / 2
        difference = (middle[..., :, None] - middle[..., None, :]) ** 2
    observed = (together * difference).sum(axis=(-2, -1))
    expected = (margins[..., :, None] * margins[..., None, :] * difference).sum(axis=(-2, -1))
    return _corrected((n - 1) * observed, expected)


def interval_alpha(numbers: Array) -> Statistic:
    """Return `krippendorff_alpha` of numbers, from their moments: times of each unit -> alpha.

    ``numbers`` has a row a unit and a column a rater, nan for none.
    """
    there = np.isfinite(numbers) & (np.isfinite(numbers).sum(axis=1, keepdims=True) >= 2)
    low, high = (function(numbers[there], initial=0) for function in (np.min, np.max))
    x = np.where(there, (numbers - low) / ((high - low) or 1.0), 0.0)
    m, s, squares = there.sum(axis=1), x.sum(axis=1), (x**2).sum(axis=1)
    # Squared distances of m ratings, over both orders, sum up to 2 m sum x^2 - 2 (sum x)^2.
    apart = 2 * (m * squares - s**2) / np.maximum(m - 1, 1)

    def alpha(times: Array) -> Array:
        n, expected = times @ m, 2 * ((times @ m) * (times @ squares) - (times @ s) ** 2)
        return _corrected((n - 1) * (times @ apart), expected)

    return alpha
