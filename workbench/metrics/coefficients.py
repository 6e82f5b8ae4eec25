"""Coefficients of agreement, on counts and arrays, and pairs coded as numbers.

Every coefficient states its range, its source, and when it is undefined: then it is nan, not 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import ArgumentError
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Bootstrap,
    Interval,
    full_agreement,
    wilson,
)
from workbench.scale import MOST_CATEGORIES, Scale

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs

Weights = Literal["linear", "quadratic"]

MOST_COMPARED = 20_000_000
"""Cells times categories up to which categories are compared one by one."""

Statistic = Callable[[Array], Array]
"""Takes counts of cells, shape (..., cells), returns values of shape (...)."""


@dataclass(frozen=True)
class Coded:
    """Pairs as numbers: each side is the position of its value in ``values``.

    Rows with the same number in ``groups`` belong together: by default those with the same content.
    """

    scale: Scale
    values: list[Any]
    human: Array
    judge: Array
    groups: Array

    @classmethod
    def of(cls, pairs: Pairs, *more: Pairs) -> Coded:
        """Code ``pairs``; the values of ``more`` are included, so that codes can be compared."""
        sides = ("human", "judge")
        seen = [value for p in (pairs, *more) for side in sides for value in p.table[side]]
        scale = pairs.scale.with_range(seen)
        values = list(scale.values) or sorted(set(seen))
        position = {value: k for k, value in enumerate(values)}
        off = [(side, v) for side in sides for v in pairs.table[side] if v not in position]
        if off:
            raise ArgumentError(
                f"The pairs of {pairs.name!r} hold the {off[0][0]} value {off[0][1]!r}, which is "
                f"not on their scale ({scale.describe()}). workbench.pair gives canonical values."
            )
        human, judge = (
            np.array([position[v] for v in pairs.table[side]], dtype=int) for side in sides
        )
        # Repetitions of an item are no more evidence.
        content = pairs.content
        groups = numbered(content.get(i, i) for i in pairs.trace_ids)
        return cls(scale, values, human, judge, groups)

    def where(self, rows: Array) -> Coded:
        """Return some of the rows."""
        return replace(
            self, human=self.human[rows], judge=self.judge[rows], groups=self.groups[rows]
        )

    @property
    def positions(self) -> Array:
        """Rank of each value from worst to best; a number is its own rank."""
        return np.array([self.scale.rank(v) for v in self.values] or [0.0])

    @property
    def span(self) -> float:
        """The farthest that two values can lie apart, in steps or in the numbers' unit."""
        low, high = self.scale.low, self.scale.high
        return float(np.ptp(self.positions)) if low is None or high is None else high - low

    @property
    def binned(self) -> bool:
        """Whether the values are too many to show each."""
        return self.scale.kind == "numeric" and len(self.values) > MOST_CATEGORIES

    def distances(self, human: Array, judge: Array) -> Array:
        """Return `Scale.distance` of each two codes."""
        between = self.scale.distance
        gaps = [between(self.values[h], self.values[j]) for h, j in zip(human, judge, strict=True)]
        return np.array(gaps, dtype=float)

    def shown(self, bins: int = 10) -> tuple[list[Any], Array, Array]:
        """Return the rows of a confusion matrix, numbers too many to show each in ``bins`` of equal
        width, and the row of each label and of each verdict."""
        if not self.binned:
            return self.values, self.human, self.judge
        edges = np.linspace(self.positions[0], self.positions[-1], bins + 1)
        bin_of = np.clip(np.digitize(self.positions, edges) - 1, 0, bins - 1)
        names = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        return names, bin_of[self.human], bin_of[self.judge]


@dataclass(frozen=True)
class Sample:
    """Labelled items with the verdicts of one judge or several, and the bootstrap over them.

    Items with the same label and verdicts fall into one cell. ``human`` and each of ``judges``
    are the cells' codes, ``counts`` their items, each of shape (cells,).
    """

    coded: Coded
    human: Array
    judges: list[Array]
    counts: Array
    bootstrap: Bootstrap

    @classmethod
    def of(
        cls,
        *coded: Coded,
        resamples: int,
        seed: int,
        confidence: float,
    ) -> Sample:
        """Judges coded on the same items and values."""
        one, sides = coded[0], [coded[0].human, *(each.judge for each in coded)]
        (human, *judges), counts, at = cells(*sides)
        prior, size = 0.0, len(one.values)
        if len(judges) == 1 and size <= MOST_CATEGORIES and len(one.human):
            at, (human, verdict) = one.human * size + one.judge, np.divmod(np.arange(size**2), size)
            judges, counts = [verdict], np.bincount(at, minlength=size**2)
            prior = 1 / size**2  # all cells together are worth one item
        members, labels = None, np.unique(one.groups)
        if len(labels) < len(at):
            from scipy.sparse import coo_array

            rows = np.searchsorted(labels, one.groups)
            members = coo_array((np.ones_like(at), (rows, at)), (len(labels), len(counts))).tocsr()
        bootstrap = Bootstrap(
            counts,
            resamples=resamples,
            seed=seed,
            confidence=confidence,
            members=members,
            prior=prior,
        )
        return cls(coded[0], human, judges, counts, bootstrap)

    def statistics(self, weights: Weights | None, judge: int = 0) -> dict[str, Statistic]:
        """Return the statistics of a judge by the names of `Agreement.figures`."""
        human, verdict, at = self.human, self.judges[judge], self.coded.positions
        scale, found = self.coded.scale, dict[str, Statistic]()
        kinds = [("", None), *([(f" ({weights})", weights)] if scale.ordered else [])]
        many = len(self.counts) * len(at) > MOST_COMPARED
        for name, each in kinds if not many else []:
            matrix = disagreement(at, each)
            found[f"kappa{name}"] = partial(cohen_kappa, human, verdict, weights=matrix)
            if scale.kind != "numeric":  # Gwet's depend on how many categories there are
                ac = f"AC{2 if each else 1}{name}"
                found[ac] = partial(gwet_ac, human, verdict, weights=matrix)
        if many:
            found |= {f"kappa{name}": _not_compared for name, _ in kinds}
        if many and weights == "quadratic":
            found["kappa (quadratic)"] = partial(quadratic_kappa, at[human], at[verdict])
        if scale.kind in ("binary", "numeric"):
            name = "Matthews" if scale.kind == "binary" else "Pearson"
            found[f"{name} correlation"] = partial(correlation, at[human], at[verdict])
        means = {"mean distance": self.coded.distances(human, verdict)}
        if scale.ordered:
            error = at[verdict] - at[human]
            means |= {"mean absolute error": np.abs(error), "bias": error}
        return found | {name: partial(_mean, values) for name, values in means.items()}

    def figure(self, name: str, statistic: Statistic) -> tuple[float, Interval]:
        """Return a statistic of the first judge with its interval.

        Where all items agree, the interval is made of the largest share of disagreements that
        Wilson's interval leaves plausible.
        """
        n, confidence = int(self.counts.sum()), self.bootstrap.confidence
        value = float(statistic(self.counts)) if n else math.nan
        if math.isnan(value):
            return value, UNDEFINED
        if self.counts[self.human != self.judges[0]].any():
            low, high = self.bootstrap.interval(statistic, spread=True)
            return value, Interval(min(low, value), max(high, value)) if low <= high else UNDEFINED
        shares, worst = self.counts / n, wilson(0, self.bootstrap.n, confidence).high
        if name.startswith(("kappa", "Matthews")):
            return value, full_agreement(1 - float(shares @ shares), self.bootstrap.n, confidence)
        if name.startswith("AC"):
            by_chance = 1 - float(shares @ (1 - shares)) / max(len(self.coded.values) - 1, 1)
            return value, full_agreement(by_chance, self.bootstrap.n, confidence)
        if name == "mean distance":
            return value, Interval(0.0, worst)
        if name in ("mean absolute error", "bias") and self.coded.span:
            worst *= self.coded.span
            return value, Interval(-worst if name == "bias" else 0.0, worst)
        return value, UNDEFINED


def numbered(keys: Iterable[Any]) -> Array:
    """Return a number for each key, the same for equal ones."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=int)


def _not_compared(counts: Array) -> Array:
    return np.full(counts.shape[:-1], math.nan)


def _mean(values: Array, counts: Array) -> Array:
    return np.asarray(counts @ values / counts.sum(axis=-1))


def mcnemar(fixed: int, broken: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: are items fixed as often as broken?

    Only items on which the two judges differ in being right count; under the null hypothesis
    each is fixed or broken with probability 1/2. In (0, 1]; 1 where there are none. Source:
    McNemar (1947), Psychometrika 12, 153-157.

    >>> mcnemar(6, 0)
    0.03125
    """
    from scipy.stats import binomtest

    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


# -- two raters -----------------------------------------------------------------------------


def disagreement(values: Array, weights: Weights | None = None) -> Array:
    """Return the matrix of how much each two categories disagree.

    ``values`` are the categories' ranks in worst-to-best order, or their numbers. None: 1 for
    any two different ones; ``"linear"``: their distance; ``"quadratic"``: its square.
    """
    gap = np.abs(np.subtract.outer(values, values)).astype(float)
    if weights is None:
        return (gap > 0).astype(float)
    return gap if weights == "linear" else gap**2


def cells(*codes: Array) -> tuple[list[Array], Array, Array]:
    """Return the distinct combinations of several raters' codes, their counts, and each item's."""
    table = np.stack(codes, axis=1) if codes[0].size else np.empty((0, len(codes)), dtype=int)
    unique, at, counts = np.unique(table, axis=0, return_inverse=True, return_counts=True)
    return [unique[:, i] for i in range(len(codes))], counts, at.ravel()


def cohen_kappa(rows: Array, columns: Array, counts: Array, weights: Array) -> Array:
    """Return Cohen's kappa of two raters: ``1 - observed / expected`` disagreement.

    The cells of the two raters' table are given as codes ``rows`` and ``columns`` with their
    ``counts`` in the last axis; leading axes of ``counts`` (resamples, say) are kept. ``weights``
    is the K x K matrix of `disagreement`. Observed is ``sum w_ij n_ij / n``, expected
    ``sum w_ij r_i c_j`` of the raters' shares r and c. In [-1, 1] unweighted; 1 is full
    agreement, 0 what chance gives. nan where no disagreement can be expected: no items, or both
    raters use one and the same category throughout. Sources: Cohen (1960), Educational and
    Psychological Measurement 20, 37-46; weighted: Cohen (1968), Psychological Bulletin 70,
    213-220.
    """
    counts, categories = np.asarray(counts, dtype=float), np.eye(len(weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
        observed = share @ weights[rows, columns]
        row_share, column_share = share @ categories[rows], share @ categories[columns]
        expected = ((row_share @ weights) * column_share).sum(axis=-1)
        return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def quadratic_kappa(rows: Array, columns: Array, counts: Array) -> Array:
    """Return `cohen_kappa` with quadratic weights, of numbers: from their moments alone."""
    both = np.concatenate([rows, columns])
    rows, columns = ((side - both.mean()) / (np.ptp(both) or 1.0) for side in (rows, columns))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
        observed = share @ (rows - columns) ** 2
        expected = share @ rows**2 + share @ columns**2 - 2 * (share @ rows) * (share @ columns)
        return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def gwet_ac(rows: Array, columns: Array, counts: Array, weights: Array) -> Array:
    """Return Gwet's AC1 of two raters, or AC2 where ``weights`` count near misses less.

    The arguments are those of `cohen_kappa`. ``(observed - expected) / (1 - expected)`` agreement,
    where ``expected = T / (K (K - 1)) sum p_k (1 - p_k)`` of the mean shares p of the K categories,
    used or not, and T is the sum of the weights of agreement. At most 1. nan for no items and for
    a single category. Sources: Gwet (2008), "Computing inter-rater reliability and its variance
    in the presence of high agreement", British Journal of Mathematical and Statistical Psychology
    61, 29-48; AC2: Gwet (2014), Handbook of Inter-Rater Reliability, chapter 5.
    """
    size, categories = len(weights), np.eye(len(weights))
    if size < 2:
        return np.full(np.shape(counts)[:-1], math.nan)
    agreed = 1 - weights / weights.max()
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
        p = (share @ categories[rows] + share @ categories[columns]) / 2
        expected = agreed.sum() / (size * (size - 1)) * (p * (1 - p)).sum(axis=-1)
        return np.asarray((share @ agreed[rows, columns] - expected) / (1 - expected))


def correlation(rows: Array, columns: Array, counts: Array) -> Array:
    """Return Pearson's correlation of two raters' numbers; of 0 and 1 it is Matthews'.

    In [-1, 1]; nan where one of them does not vary. Source: Matthews (1975), Biochimica et
    Biophysica Acta 405, 442-451.
    """
    rows, columns = ((side - side.mean()) / (np.ptp(side) or 1.0) for side in (rows, columns))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
        one, two = share @ rows, share @ columns
        spreads = share @ rows**2 - one**2, share @ columns**2 - two**2
        joint = share @ (rows * columns) - one * two
        vary = np.minimum(*spreads) > 1e-12
        return np.where(vary, joint / np.sqrt(spreads[0] * spreads[1]), np.nan)


def correlation_interval(value: float, n: float, confidence: float, factor: float) -> Interval:
    """Return Fisher's interval of a correlation of ``n`` items, ``factor`` times as wide.

    Undefined for fewer than four items, and where all are in one order. Source: Fisher (1921),
    "On the probable error of a coefficient of correlation", Metron 1, 3-32.
    """
    if n < 4 or not abs(value) < 1 - 1e-12:
        return UNDEFINED
    half = NormalDist().inv_cdf((1 + confidence) / 2) * factor / math.sqrt(n - 3)
    return Interval(math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))
