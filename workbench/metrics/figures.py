"""Pairs coded as numbers, and every figure of a judge against people with its interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from workbench.metrics.coefficients import (
    Statistic,
    Weights,
    cohen_kappa,
    correlation,
    disagreement,
    distinct_rows,
    gwet_ac,
    numbered,
    quadratic_kappa,
)
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Bootstrap,
    Interval,
    correlation_interval,
    mean_interval,
    proportion,
    with_ends,
)
from workbench.pairing.pairs import Pairs
from workbench.scale import MOST_CATEGORIES, Scale

Figures = Mapping[str, tuple[float, Interval]]  # by name

ROUNDING = 1e-9  # what sums of the same numbers in another order may differ by

ERROR_RATES = {"false positive rate": 0, "false negative rate": 1}  # code of the label


@dataclass(frozen=True)
class Coded:
    """Pairs as numbers: each side is the position of its value in ``values``."""

    scale: Scale
    values: list[Any]
    human: Array
    judge: Array
    groups: Array  # rows with the same number belong together: they are no more evidence
    positions: Array  # rank of each value from worst to best; a number is its own rank

    @classmethod
    def of(cls, pairs: Pairs, *more: Pairs) -> Coded:
        """Code ``pairs`` by the values that they and ``more`` hold."""
        sides = ("human", "judge")
        seen = [value for p in (pairs, *more) for side in sides for value in p.table[side]]
        scale = pairs.scale.with_range(seen)
        values = list(scale.values) or sorted(set(seen))
        position = {value: k for k, value in enumerate(values)}
        human, judge = (
            np.array([position[v] for v in pairs.table[side]], dtype=int) for side in sides
        )
        ranks = np.array([scale.rank(v) for v in values] or [0.0])
        return cls(scale, values, human, judge, numbered(pairs.clusters_of(pairs.trace_ids)), ranks)

    @property
    def measures(self) -> dict[str, tuple[Array, Array]]:
        """Name of each mean -> the rows that it is about, and of each row whether it is a hit, or
        how far it is off, in steps or in the numbers' unit."""
        right = self.human == self.judge
        every = np.ones(len(right), dtype=bool)
        found: dict[str, tuple[Array, Array]] = {"accuracy": (every, right)}
        if self.scale.kind == "binary":
            found |= {name: (self.human == side, ~right) for name, side in ERROR_RATES.items()}
        if not self.scale.ordered:  # where no miss is nearer than another
            return found | {"mean distance": (every, ~right)}
        errors = self.positions[self.judge] - self.positions[self.human]
        return found | {
            "within one": (every & (self.span > 1), np.abs(errors) <= 1 + ROUNDING),
            "mean absolute error": (every, np.abs(errors)),
            "bias": (every, errors),
            "mean distance": (every, self.distances(self.human, self.judge)),
        }

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
        if not self.scale.ordered:
            return np.asarray(human != judge, dtype=float)
        gaps = np.abs(self.positions[human] - self.positions[judge])
        return np.asarray(np.minimum(gaps / (self.span or 1.0), 1.0))

    def shown(self) -> tuple[list[Any], Array, Array]:
        """Return the rows of a confusion matrix, and the row of each label and of each verdict."""
        if not self.binned:
            return self.values, self.human, self.judge
        ends = [self.scale.low, self.scale.high, *self.positions[[0, -1]]]
        known = [end for end in ends if end is not None]
        edges = np.linspace(min(known), max(known), 11)  # the same for two judges on a scale
        bin_of = np.clip(np.digitize(self.positions, edges) - 1, 0, 9)
        names = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        return names, bin_of[self.human], bin_of[self.judge]


class Sample:
    """Items with the verdicts of one judge or several, counted in cells, and their bootstrap."""

    def __init__(self, *coded: Coded, **options: Any) -> None:
        """Take judges coded on the same items and values; ``options`` are the bootstrap's."""
        self.coded = one = coded[0]
        sides = np.stack([one.human, *(each.judge for each in coded)], axis=1)
        prior, size = 0.0, len(one.values)
        first, self.counts, at = distinct_rows(sides)
        self.human, *self.judges = sides[first].T
        if len(coded) == 1 and size <= MOST_CATEGORIES and len(one.human):
            at, prior = one.human * size + one.judge, 1 / size**2  # all cells are worth one item
            self.human, self.judges[0] = np.divmod(np.arange(size**2), size)
            self.counts = np.bincount(at, minlength=size**2)
        self.bootstrap = Bootstrap(self.counts, rows=(one.groups, at), prior=prior, **options)

    def statistics(self, weights: Weights | None, judge: int = 0) -> dict[str, Statistic]:
        """Return the statistics of a judge by the names of `Agreement.figures`."""
        human, verdict, at = self.human, self.judges[judge], self.coded.positions
        kind, found = self.coded.scale.kind, dict[str, Statistic]()
        for each in [None, weights] if self.coded.scale.ordered else [None]:
            name = f" ({each})" if each else ""
            if self.coded.binned:
                found[f"kappa{name}"] = lambda counts: np.full(counts.shape[:-1], math.nan)
                continue
            matrix, ac = disagreement(at, each), f"AC{2 if each else 1}{name}"
            found[f"kappa{name}"] = partial(cohen_kappa, human, verdict, weights=matrix)
            found[ac] = partial(gwet_ac, human, verdict, weights=matrix)
        if "kappa (quadratic)" in found:  # which takes moments alone
            found["kappa (quadratic)"] = partial(quadratic_kappa, at[human], at[verdict])
        if kind in ("binary", "numeric"):
            name = "Matthews" if kind == "binary" else "Pearson"
            found[f"{name} correlation"] = partial(correlation, at[human], at[verdict])
        if kind == "numeric":
            ranks = self._ranks(human), self._ranks(verdict)
            found["Spearman correlation"] = partial(correlation, *ranks)
        return found

    def _ranks(self, side: Array) -> Array:
        """The mean rank of each cell's value among all items."""
        items = np.bincount(side, self.counts, minlength=len(self.coded.values))
        return np.asarray((np.cumsum(items) - (items - 1) / 2)[side])

    def figures(self, *names: str, weights: Weights | None = "quadratic") -> dict[str, Any]:
        """Return figures of the first judge with their intervals, by default all."""
        measures, statistics = self.coded.measures, self.statistics(weights)
        found: dict[str, tuple[float, Interval]] = {}
        for name in names or [*measures, *statistics]:
            if name in measures:
                found[name] = self._mean(name, *measures[name])
            else:
                found[name] = self._figure(name, statistics[name])
        return found

    def _mean(self, name: str, rows: Array, values: Array) -> tuple[float, Interval]:
        """A share with Wilson's interval, or a mean with Student's."""
        values, groups = values[rows], self.coded.groups[rows]
        if values.dtype == bool:
            return proportion(values, groups, self.bootstrap.confidence)
        if not len(values):
            return math.nan, UNDEFINED
        most = 1.0 if name == "mean distance" else self.coded.span or math.nan
        least = -most if name == "bias" else 0 * most
        low, high = mean_interval(values, self.bootstrap.confidence, groups, (least, most))
        return float(values.mean()), Interval(max(low, least), high)

    def _figure(self, name: str, statistic: Statistic) -> tuple[float, Interval]:
        value = float(statistic(self.counts)) if self.counts.sum() else math.nan
        if math.isnan(value):
            return value, UNDEFINED
        if name in ("Pearson correlation", "Spearman correlation"):
            return value, self._fisher(name, value)
        return value, self.bootstrap.around(value, statistic)

    def _fisher(self, name: str, value: float) -> Interval:
        """Fisher's interval of a correlation, which is right for normal numbers.

        Others vary more (Steiger and Hakstian 1982, British Journal of Mathematical and Statistical
        Psychology 35, 208-215), and so do ranks (Bonett and Wright 2000, Psychometrika 65, 23-28).
        """
        sides: Any = [self.coded.positions[side] for side in (self.coded.human, self.coded.judge)]
        least = 1.0
        if name.startswith("Spearman"):
            sides, least = map(rankdata, sides), math.sqrt(1 + value**2 / 2)
        u, v = ((side - side.mean()) / side.std() for side in sides)
        spread = float((u * v - value * (u**2 + v**2) / 2).std())
        factor = max(least, spread / max(1 - value**2, 1e-12))
        return correlation_interval(value, self.bootstrap.n, self.bootstrap.confidence, factor)


def why_undefined(coded: Coded, figures: Figures) -> dict[str, str]:
    """Return why figures are nan or have no interval: name -> reason."""
    return {
        name: _why(coded, name, value)
        for name, (value, interval) in figures.items()
        if math.isnan(interval.low)
    }


def _why(coded: Coded, name: str, value: float) -> str:
    if not math.isnan(value):
        return "no interval: it takes several items, not all of them alike"
    if not coded.human.size:
        return "there are no pairs"
    if name == "within one":
        return "the scale spans no more than one"
    if name in ERROR_RATES:
        return f"no human label is {coded.values[ERROR_RATES[name]]!r}"
    if np.ptp(coded.human) == 0 or np.ptp(coded.judge) == 0:
        return "people or the judge say the same throughout"
    return f"of more than {MOST_CATEGORIES} numbers hardly two are equal; see the quadratic one"


def confusion_of(coded: Coded) -> pd.DataFrame:
    """Return the counts of each label (rows) with each verdict (columns)."""
    values, human, judge = coded.shown()
    size, names = len(values), pd.Index(values)
    table = np.bincount(human * size + judge, minlength=size**2).reshape(size, size)
    return pd.DataFrame(table, index=names.rename("human"), columns=names.rename("judge"))


def class_figures(coded: Coded, confidence: float) -> pd.DataFrame:
    """Return precision, recall and F1 of each class with their intervals, and its support.

    F1 is ``2 J / (1 + J)`` of the share J of hits among the items that have the class on either
    side, and so are the ends of its interval.
    """
    rows = []
    for k in range(len(coded.values)):
        labelled, judged, row = coded.human == k, coded.judge == k, dict[str, float]()
        for name, among in (("precision", judged), ("recall", labelled), ("f1", labelled | judged)):
            share, ends = proportion((labelled & judged)[among], coded.groups[among], confidence)
            found = [share, *ends]
            if name == "f1":
                found = [2 * each / (1 + each) for each in found]
            row |= with_ends(name, found[0], Interval(*found[1:]))
        rows.append({**row, "support": labelled.sum()})
    return pd.DataFrame(rows, index=pd.Index(coded.values, name="class"))
