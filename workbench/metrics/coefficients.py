"""The formulas of agreement, on counts and arrays; `metrics` applies them to pairs.

Every function says its range, when it is undefined (then it gives nan and not 0) and its
source. Intervals are two-sided. Nothing here knows of judges, labels or tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import ArgumentError
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    percentile_interval,
    resample,
    wilson,
)
from workbench.scale import Scale

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs


MOST_CATEGORIES = 20
"""With more distinct numbers than this, a numeric scale is shown in bins."""


@dataclass(frozen=True)
class Coded:
    """Pairs as numbers: each side the position of its value in ``values``."""

    scale: Scale
    values: list[Any]
    human: Array
    judge: Array

    @classmethod
    def of(cls, pairs: Pairs, *more: Pairs) -> Coded:
        """Codes of ``pairs``; ``more`` only adds its values, so that codes can be compared."""
        tables = [p.table for p in (pairs, *more)]
        seen = [v for t in tables for side in ("human", "judge") for v in t[side]]
        scale = pairs.scale.with_range(seen)
        values = list(scale.values) or sorted(
            {v.item() if isinstance(v, np.generic) else v for v in seen}, key=float_or_text
        )
        position = {value: k for k, value in enumerate(values)}

        def codes(side: str) -> Array:
            try:
                return np.array([position[v] for v in pairs.table[side]], dtype=int)
            except KeyError as error:
                raise ArgumentError(
                    f"The pairs of {pairs.name!r} hold the {side} value {error}, which is not on "
                    f"their scale ({scale.describe()}). workbench.pair gives canonical values."
                ) from None

        return cls(scale, values, codes("human"), codes("judge"))

    @property
    def positions(self) -> Array:
        """What each value is worth in worst-to-best order; a number is its own worth."""
        return np.array([self.scale.rank(v) for v in self.values] or [0.0])

    @property
    def binned(self) -> bool:
        return self.scale.kind == "numeric" and len(self.values) > MOST_CATEGORIES

    def distances(self, human: Array, judge: Array) -> Array:
        """`Scale.distance` of each cell."""
        pairs = zip(human, judge, strict=True)
        return np.array(
            [self.scale.distance(self.values[h], self.values[j]) for h, j in pairs], dtype=float
        )


@dataclass(frozen=True)
class Bootstrap:
    """Statistics of one judge with their intervals, from resampled cells (human, judge)."""

    human: Array
    judge: Array
    counts: Array
    draws: Array
    confidence: float

    @classmethod
    def of(cls, coded: Coded, *, seed: int, resamples: int, confidence: float) -> Bootstrap:
        (human, judge), counts = cells(coded.human, coded.judge)
        draws = resample(counts, resamples, seed) if counts.size else counts[None]
        return cls(human, judge, counts, draws, confidence)

    @property
    def _open_share(self) -> float:
        """What Wilson's interval leaves open for disagreements where there is none.

        No resample of items that all agree can disagree, so the bootstrap would claim certainty.
        """
        n = int(self.counts.sum())
        return 1 - wilson(n, n, self.confidence).low

    def kappa(self, weights: Array) -> tuple[float, Interval]:
        value = float(cohen_kappa(self.human, self.judge, self.counts, weights))
        if math.isnan(value):
            return value, UNDEFINED
        if (self.human == self.judge).all():
            shares = np.bincount(self.human, self.counts) / self.counts.sum()
            by_chance = 1 - float(shares @ shares)
            return value, Interval(max(-1.0, 1 - self._open_share / by_chance), 1.0)
        draws = cohen_kappa(self.human, self.judge, self.draws, weights)
        return value, percentile_interval(draws, self.confidence)

    def mean(self, distances: Callable[[Array, Array], Array]) -> tuple[float, Interval]:
        """Mean distance, each at most 1."""
        if not self.counts.size:
            return math.nan, UNDEFINED
        each, n = distances(self.human, self.judge), self.counts.sum()
        if not each.any():
            return 0.0, Interval(0.0, self._open_share)
        interval = percentile_interval(self.draws @ each / n, self.confidence)
        return float(self.counts @ each / n), interval


def float_or_text(value: Any) -> tuple[float, str]:
    """Sort key: numbers by size, all else by its text."""
    return (float(value), "") if isinstance(value, (int, float)) else (math.inf, str(value))


Level = Literal["nominal", "ordinal", "interval", "ratio"]

Weights = Literal["linear", "quadratic"]


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p-value of McNemar's test: are items fixed as often as broken?

    Only items on which the two judges differ in being right count; under the null hypothesis
    each is fixed or broken with probability 1/2. In (0, 1]; 1 where there are none. Source:
    McNemar (1947), Psychometrika 12, 153-157.

    >>> mcnemar(6, 0)
    0.03125
    """
    if fixed + broken == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken, 0.5).pvalue)


# -- two raters -----------------------------------------------------------------------------


def disagreement(values: Array, weights: Weights | None = None) -> Array:
    """Matrix of how much each two categories disagree.

    ``values`` are the categories' positions in worst-to-best order, or their numbers. None: 1
    for any two different ones; ``"linear"``: their distance; ``"quadratic"``: its square.
    """
    gap = np.abs(np.subtract.outer(values, values)).astype(float)
    if weights is None:
        return (gap > 0).astype(float)
    return gap if weights == "linear" else gap**2


def cohen_kappa(rows: Array, columns: Array, counts: Array, weights: Array) -> Array:
    """Cohen's kappa of two raters: ``1 - observed / expected`` disagreement.

    The cells of the two raters' table are given as category numbers ``rows`` and ``columns``
    with their ``counts`` in the last axis; leading axes of ``counts`` (resamples, say) are
    kept. ``weights`` is the K x K matrix of `disagreement`. Observed is
    ``sum w_ij n_ij / n``, expected ``sum w_ij r_i c_j`` of the raters' shares r and c. In
    [-1, 1] unweighted; 1 is full agreement, 0 what chance gives. nan where no disagreement can be
    expected: no items, or both raters use one and the same category throughout. Sources: Cohen
    (1960), Educational and Psychological Measurement 20, 37-46; weighted: Cohen (1968),
    Psychological Bulletin 70, 213-220.
    """
    size = len(weights)
    counts = np.asarray(counts, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
        observed = share @ weights[rows, columns]
        row_share, column_share = share @ np.eye(size)[rows], share @ np.eye(size)[columns]
        expected = ((row_share @ weights) * column_share).sum(axis=-1)
        return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def cells(*codes: Array) -> tuple[list[Array], Array]:
    """The distinct combinations of several raters' category numbers, and how often each occurs."""
    table = np.stack(codes, axis=1) if codes[0].size else np.empty((0, len(codes)), dtype=int)
    unique, counts = np.unique(table, axis=0, return_counts=True)
    return [unique[:, i] for i in range(len(codes))], counts


# -- many raters ----------------------------------------------------------------------------


def fleiss_kappa(counts: Array) -> float:
    """Fleiss' kappa of items each rated by the same number of raters.

    ``counts[item, category]`` is how many raters put the item there. At most 1; nan for no
    items, fewer than two raters, or ratings all in one category. Source: Fleiss (1971),
    "Measuring nominal scale agreement among many raters", Psychological Bulletin 76, 378-382.
    """
    counts = np.asarray(counts)
    if counts.size == 0 or counts[0].sum() < 2 or (counts.sum(axis=0) > 0).sum() < 2:
        return math.nan
    from statsmodels.stats.inter_rater import fleiss_kappa as kappa

    return float(kappa(counts, method="fleiss"))


def krippendorff_alpha(counts: Array, values: Array, level: Level = "nominal") -> float:
    """Krippendorff's alpha: ``1 - observed / expected`` disagreement, for any missing ratings.

    ``counts[unit, category]`` is how many raters gave the unit that category; ``values`` are the
    categories' numbers (used by ``"interval"`` and ``"ratio"``) in worst-to-best order (used by
    ``"ordinal"``). Units with fewer than two ratings pair with nothing and drop out. At most 1;
    0 is what chance gives. nan where all ratings are one category or none can be paired. Source:
    Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    alpha = krippendorff_alphas(*coincidences(counts), values, level)
    return float(alpha)


def coincidences(counts: Array) -> tuple[Array, Array]:
    """Krippendorff's coincidence matrix o_ck of all units together and its margins n_c.

    A unit with m ratings gives each ordered pair of its ratings the weight 1 / (m - 1).
    """
    counts = np.asarray(counts, dtype=float)
    counts = counts[counts.sum(axis=1) >= 2]
    pairable = counts / (counts.sum(axis=1, keepdims=True) - 1)
    together = pairable.T @ counts - np.diag(pairable.sum(axis=0))
    return together, together.sum(axis=1)


def krippendorff_alphas(together: Array, margins: Array, values: Array, level: Level) -> Array:
    """`krippendorff_alpha` from coincidences; leading axes (resamples, say) are kept."""
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
        return np.asarray(1.0 - np.eye(len(values)))
    numbers = np.asarray(values, dtype=float)
    gap = np.subtract.outer(numbers, numbers)
    if level == "interval":
        return np.asarray(gap**2)
    total = np.add.outer(numbers, numbers)
    return np.asarray(np.divide(gap, total, out=np.zeros_like(gap), where=total != 0) ** 2)
