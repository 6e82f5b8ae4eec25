"""The formulas of agreement, on counts and arrays; `metrics` applies them to pairs.

Every function says its range, when it is undefined (then it gives nan and not 0) and its
source. Intervals are two-sided. Nothing here knows of judges, labels or tables.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["linear", "quadratic"]


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


def rogan_gladen(rate: float, tpr: float, tnr: float) -> float:
    """Prevalence behind a judge's rate of positive verdicts, given its two kinds of error.

    ``(rate + tnr - 1) / (tpr + tnr - 1)``, cut to [0, 1]. nan where ``tpr + tnr <= 1``: the
    judge then does no better than chance and its rate tells nothing. Source: Rogan and Gladen
    (1978), "Estimating prevalence from the results of a screening test", American Journal of
    Epidemiology 107, 71-76.

    >>> rogan_gladen(0.29, tpr=0.8, tnr=0.9)
    0.27142857142857146
    """
    if not tpr + tnr > 1:  # also where one of them is nan
        return math.nan
    return min(1.0, max(0.0, (rate + tnr - 1) / (tpr + tnr - 1)))


def lang_reiczigel(
    positive: int,
    n: int,
    *,
    true_positives: int,
    human_positives: int,
    true_negatives: int,
    human_negatives: int,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the Rogan-Gladen prevalence that also counts the error of tpr and tnr.

    Within [0, 1]; undefined where the judge does no better than chance or one side has no
    human label. Source: Lang and Reiczigel (2014), "Confidence limits for prevalence of disease
    adjusted for estimated sensitivity and specificity", Preventive Veterinary Medicine 113,
    13-22, equations 6, 7 and 17.
    """
    if n == 0 or not human_positives or not human_negatives:
        return UNDEFINED
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, n_rate = (positive + z * z / 2) / (n + z * z), n + z * z
    tpr, n_tpr = (true_positives + 1) / (human_positives + 2), human_positives + 2
    tnr, n_tnr = (true_negatives + 1) / (human_negatives + 2), human_negatives + 2
    gain = tpr + tnr - 1
    if gain <= 0 or true_positives / human_positives + true_negatives / human_negatives <= 1:
        return UNDEFINED
    prevalence = (rate + tnr - 1) / gain
    of_tpr, of_tnr = tpr * (1 - tpr) / n_tpr, tnr * (1 - tnr) / n_tnr
    centre = prevalence + 2 * z * z * (prevalence * of_tpr - (1 - prevalence) * of_tnr)
    variance = rate * (1 - rate) / n_rate + prevalence**2 * of_tpr + (1 - prevalence) ** 2 * of_tnr
    margin = z * math.sqrt(variance) / gain
    return Interval(
        min(1.0, max(0.0, centre - margin)),
        min(1.0, max(0.0, centre + margin)),
    )


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
