"""Pairs coded as numbers, and every figure of a judge against people with its interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.coefficients import (
    MOST_COMPARED,
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
    full_agreement,
    mean_interval,
    proportion,
    wilson,
)
from workbench.scale import MOST_CATEGORIES, Scale

Figures = Mapping[str, tuple[float, Interval]]
"""Name of a figure -> (value, interval)."""

ROUNDING = 1e-9  # what sums of the same numbers in another order may differ by

# Name of a figure -> code of the human label that it is about.
ERROR_RATES = {"false positive rate": 0, "false negative rate": 1}


class Rated(Protocol):
    """What can be coded, such as `Pairs`; rows that are equal in ``clusters`` belong together."""

    @property
    def scale(self) -> Scale: ...
    @property
    def table(self) -> pd.DataFrame: ...  # with the columns trace_id, human and judge
    @property
    def clusters(self) -> Sequence[Hashable]: ...


@dataclass(frozen=True)
class Coded:
    """Pairs as numbers: each side is the position of its value in ``values``.

    Rows with the same number in ``groups`` belong together: repetitions are no more evidence.
    ``positions`` is the rank of each value from worst to best; a number is its own rank.
    """

    scale: Scale
    values: list[Any]
    human: Array
    judge: Array
    groups: Array
    positions: Array

    @classmethod
    def of(cls, pairs: Rated, *more: Rated) -> Coded:
        """Code ``pairs``; the values of ``more`` are included, so that codes can be compared."""
        sides = ("human", "judge")
        seen = [value for p in (pairs, *more) for side in sides for value in p.table[side]]
        scale = pairs.scale.with_range(seen)
        values = list(scale.values) or sorted(set(seen))
        position = {value: k for k, value in enumerate(values)}
        off = [(side, v) for side in sides for v in pairs.table[side] if v not in position]
        if off:
            raise ArgumentError(
                f"The pairs hold the {off[0][0]} value {off[0][1]!r}, which is "
                f"not on their scale ({scale.describe()}). workbench.pair gives canonical values."
            )
        human, judge = (
            np.array([position[v] for v in pairs.table[side]], dtype=int) for side in sides
        )
        ranks = np.array([scale.rank(v) for v in values] or [0.0])
        return cls(scale, values, human, judge, numbered(pairs.clusters), ranks)

    def where(self, rows: Array) -> Coded:
        """Return some of the rows."""
        return replace(
            self, human=self.human[rows], judge=self.judge[rows], groups=self.groups[rows]
        )

    @property
    def errors(self) -> Array:
        """Verdict minus label of each row, in steps or in the numbers' unit."""
        return np.asarray(self.positions[self.judge] - self.positions[self.human])

    @property
    def shares(self) -> dict[str, tuple[Array, Array]]:
        """Name of each proportion -> masks of the rows that it is about, and of its hits."""
        right = self.human == self.judge
        found: dict[str, tuple[Array, Array]] = {"accuracy": (np.ones(len(right), bool), right)}
        if self.scale.kind == "binary":
            found |= {name: (self.human == side, ~right) for name, side in ERROR_RATES.items()}
        if self.scale.ordered:
            near = np.abs(self.errors) <= 1 + ROUNDING
            found["within one"] = (np.full(len(near), self.span > 1), near)
        else:  # where no miss is nearer than another
            found["mean distance"] = (np.ones(len(right), bool), ~right)
        return found

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
        """Return the rows of a confusion matrix, and the row of each label and of each verdict.

        Numbers that are too many to show each are in ten bins of equal width over the scale, which
        are then the same for two judges on it.
        """
        if not self.binned:
            return self.values, self.human, self.judge
        ends = [self.scale.low, self.scale.high, *self.positions[[0, -1]]]
        known = [end for end in ends if end is not None]
        edges = np.linspace(min(known), max(known), 11)
        bin_of = np.clip(np.digitize(self.positions, edges) - 1, 0, 9)
        names = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        return names, bin_of[self.human], bin_of[self.judge]


class Sample:
    """Labelled items with the verdicts of one judge or several, and the bootstrap over them.

    Items with the same label and verdicts fall into one cell. ``human`` and each of ``judges``
    are the cells' codes, ``counts`` their items, each of shape (cells,).
    """

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
        scale, found = self.coded.scale, dict[str, Statistic]()
        many = len(self.counts) * len(at) > MOST_COMPARED
        kinds: list[tuple[str, Weights | None]] = [("", None)]
        for name, each in kinds + [(f" ({weights})", weights)] * scale.ordered:
            if many:
                found[f"kappa{name}"] = lambda counts: np.full(counts.shape[:-1], math.nan)
                continue
            matrix = disagreement(at, each)
            found[f"kappa{name}"] = partial(cohen_kappa, human, verdict, weights=matrix)
            if not self.coded.binned:  # Gwet's depend on how many categories there are
                ac = f"AC{2 if each else 1}{name}"
                found[ac] = partial(gwet_ac, human, verdict, weights=matrix)
        if "kappa (quadratic)" in found:  # which takes moments alone
            found["kappa (quadratic)"] = partial(quadratic_kappa, at[human], at[verdict])
        if scale.kind in ("binary", "numeric"):
            name = "Matthews" if scale.kind == "binary" else "Pearson"
            found[f"{name} correlation"] = partial(correlation, at[human], at[verdict])
        if scale.kind == "numeric":
            ranks = self._ranks(human), self._ranks(verdict)
            found["Spearman correlation"] = partial(correlation, *ranks)
        means = {}
        if scale.ordered:
            error = at[verdict] - at[human]
            means = {"mean absolute error": np.abs(error), "bias": error}
            means["mean distance"] = self.coded.distances(human, verdict)
        return found | {name: partial(_mean, values) for name, values in means.items()}

    def _ranks(self, side: Array) -> Array:
        """The mean rank of each cell's value among all items."""
        items = np.bincount(side, self.counts, minlength=len(self.coded.values))
        return np.asarray((np.cumsum(items) - (items - 1) / 2)[side])

    def figures(self, *names: str, weights: Weights | None = "quadratic") -> dict[str, Any]:
        """Return figures of the first judge, by default all shares and statistics."""
        found, shares, statistics = {}, self.coded.shares, self.statistics(weights)
        for name in names or dict.fromkeys(["accuracy", *statistics, *shares]):
            if name in shares:
                rows, counts = shares[name]
                groups, confidence = self.coded.groups[rows], self.bootstrap.confidence
                found[name] = proportion(counts[rows], groups, confidence)
            else:
                found[name] = self._figure(name, statistics[name])
        return found

    def _figure(self, name: str, statistic: Statistic) -> tuple[float, Interval]:
        """A statistic with its interval.

        Where all items agree, the interval is made of the largest share of disagreements that
        Wilson's interval leaves plausible.
        """
        n, size, confidence = self.counts.sum(), self.bootstrap.n, self.bootstrap.confidence
        value = float(statistic(self.counts)) if n else math.nan
        if math.isnan(value):
            return value, UNDEFINED
        if self.counts[self.human != self.judges[0]].any():
            return value, self.bootstrap.around(value, statistic)
        shares, worst = self.counts / n, wilson(0, size, confidence).high
        if name.startswith(("kappa", "Matthews")):
            return value, full_agreement(1 - float(shares @ shares), size, confidence)
        if name.startswith("AC"):
            by_chance = 1 - float(shares @ (1 - shares)) / (len(self.coded.values) - 1)
            return value, full_agreement(by_chance, size, confidence)
        unit = 1.0 if name == "mean distance" else self.coded.span
        if name in ("mean distance", "mean absolute error", "bias") and unit:
            return value, Interval(-worst * unit if name == "bias" else 0.0, worst * unit)
        return value, UNDEFINED


def _mean(values: Array, counts: Array) -> Array:
    return np.asarray(counts @ values / counts.sum(axis=-1))


def figures_of(coded: Coded, weights: Weights | None, **options: Any) -> dict[str, Any]:
    """Return every figure that the scale has, by name; ``options`` are those of the bootstrap."""
    sample, confidence = Sample(coded, **options), options["confidence"]
    found = sample.figures(weights=weights)
    if coded.scale.ordered and (coded.human != coded.judge).any():
        for name, values in (("bias", coded.errors), ("mean absolute error", np.abs(coded.errors))):
            low, high = mean_interval(values, confidence, coded.groups)
            low = low if name == "bias" else max(low, 0.0)  # which keeps nan
            found[name] = found[name][0], Interval(low, high)
    if coded.scale.kind == "numeric":
        found |= _of_numbers(coded, found, sample.bootstrap.n, confidence)
    return found


def _of_numbers(coded: Coded, found: Figures, n: int, confidence: float) -> dict[str, Any]:
    """Correlations of numbers.

    Fisher's interval is right for normal numbers. Others vary more (Steiger and Hakstian 1982,
    British Journal of Mathematical and Statistical Psychology 35, 208-215), and so do ranks
    (Bonett and Wright 2000, Psychometrika 65, 23-28).
    """
    more: dict[str, Any] = {}
    if not math.isnan(r := found["Pearson correlation"][0]):
        human, judge = coded.positions[coded.human], coded.positions[coded.judge]
        u, v = ((side - side.mean()) / side.std() for side in (human, judge))
        rank = float(spearmanr(human, judge).statistic)
        spread = float((u * v - r * (u**2 + v**2) / 2).std()) / max(1 - r**2, 1e-12)
        factors = {"Pearson": (r, max(1.0, spread)), "Spearman": (rank, math.sqrt(1 + rank**2 / 2))}
        for name, (value, factor) in factors.items():
            interval = correlation_interval(value, n, confidence, factor)
            more[f"{name} correlation"] = value, interval
    return more


def why_undefined(coded: Coded, figures: Figures) -> dict[str, str]:
    """Return why figures are nan or have no interval: name -> reason."""
    return {
        name: _why(coded, name)
        if math.isnan(value)
        else "no interval: it takes several items, not all of them alike"
        for name, (value, interval) in figures.items()
        if math.isnan(interval.low)
    }


def _why(coded: Coded, name: str) -> str:
    if not coded.human.size:
        return "there are no pairs"
    if name == "within one":
        return "the scale spans no more than one"
    if name in ERROR_RATES:
        return f"no human label is {coded.values[ERROR_RATES[name]]!r}"
    people, judge = (set(side.tolist()) for side in (coded.human, coded.judge))
    for said, codes in (
        ("judge and people say", people | judge), ("people say", people), ("the judge says", judge),
    ):  # fmt: skip
        if len(codes) == 1:
            return f"{said} {coded.values[codes.pop()]!r} throughout"
    return f"more than {counted(MOST_COMPARED, 'comparison')} of values; see the weighted one"


def confusion_of(coded: Coded) -> pd.DataFrame:
    """Return the counts of each label (rows) with each verdict (columns)."""
    values, human, judge = coded.shown()
    table = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(table, (human, judge), 1)
    return pd.DataFrame(
        table, index=pd.Index(values, name="human"), columns=pd.Index(values, name="judge")
    )


def class_figures(coded: Coded, confidence: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return precision, recall, F1 and support of each class, and the ends of their intervals.

    Precision and recall are shares, with Wilson's interval. F1 is ``2 J / (1 + J)`` of the share J
    of hits among the items that have the class on either side, and so are the ends of its interval.
    """
    rows, ends = [], []
    for k in range(len(coded.values)):
        labelled, judged = coded.human == k, coded.judge == k
        shares = (
            proportion((labelled & judged)[among], coded.groups[among], confidence)
            for among in (judged, labelled, labelled | judged)
        )
        precision, recall, jaccard = (np.array([value, *interval]) for value, interval in shares)
        figures = np.stack([precision, recall, 2 * jaccard / (1 + jaccard)])
        rows.append([*figures[:, 0], labelled.sum()])
        ends.append(figures[:, 1:].ravel())
    names, index = ["precision", "recall", "f1"], pd.Index(coded.values, name="class")
    table = pd.DataFrame(rows, columns=[*names, "support"], index=index, dtype=float)
    columns = [f"{name}_{end}" for name in names for end in ("low", "high")]
    return table.astype({"support": int}), pd.DataFrame(ends, columns=columns, index=index)
