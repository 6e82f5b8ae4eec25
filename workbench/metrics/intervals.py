"""Figures with confidence intervals, all two-sided, and what every result of this wing can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.stats import t

from workbench.errors import ArgumentError, check_whole
from workbench.formatting import html_lines, html_table, plain

Array = npt.NDArray[Any]


class Interval(NamedTuple):
    """A confidence interval; both ends are nan where it is undefined."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


UNDEFINED = Interval(math.nan, math.nan)


class Result:
    """A table of figures with notes: plain data, and HTML for notebooks."""

    shown: ClassVar[tuple[str, ...]] = ()  # properties that are part of the data
    hidden: ClassVar[tuple[str, ...]] = ()  # fields that are not

    if TYPE_CHECKING:  # a field or a property

        @property
        def table(self) -> pd.DataFrame: ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        names = (name for name in (*vars(self), *self.shown) if name not in self.hidden)
        data = {name: getattr(self, name) for name in names}
        for name, value in data.items():
            if isinstance(value, Result):
                data[name] = value.to_dict()
            elif isinstance(value, pd.DataFrame) and value.index.name:
                data[name] = value.reset_index()
        return plain(data)

    def _tables(self) -> list[pd.DataFrame]:
        """What notebooks show."""
        return [self.table]

    def _repr_html_(self) -> str:
        head = repr(self).splitlines()[0].strip("<>")
        tables = [
            html_table(t, index=not isinstance(t.index, pd.RangeIndex)) for t in self._tables()
        ]
        return "".join([html_lines([head]), *tables, html_lines(getattr(self, "notes", ()))])


def check_confidence(confidence: float, name: str = "confidence") -> None:
    """Raise `ArgumentError` unless ``confidence`` lies in (0, 1)."""
    if not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise ArgumentError(f"{name}={confidence!r} must lie in (0, 1), for instance 0.95.")


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``; nan where ``whole`` is 0."""
    return float(part) / float(whole) if whole else math.nan


def figure(value: float, interval: Interval = UNDEFINED, *, sign: bool = False) -> str:
    """Return a figure with its interval as text: ``0.848 [0.829, 0.865]``; "undefined" for nan."""
    if math.isnan(value):
        return "undefined"
    form = "{:+.3f}" if sign else "{:.3f}"
    if math.isnan(interval.low):
        return form.format(value)
    return f"{form} [{form}, {form}]".format(value, *interval)


def with_ends(name: str, value: float, interval: Interval) -> dict[str, float]:
    """Return the columns of a figure: ``name``, ``name_low`` and ``name_high``."""
    return {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def figure_table(rows: Mapping[str, Iterable[Any]], *more: str) -> pd.DataFrame:
    """Return a table with a row a figure: ``value``, ``low``, ``high``, and ``more`` columns."""
    columns = ["value", "low", "high", *more]
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=columns)


def adjusted(p_values: pd.Series[float], method: str) -> pd.Series[float]:
    """Return p-values that hold for all tests together, by statsmodels' name; nan stays nan."""
    tested, found = p_values.notna(), pd.Series(math.nan, index=p_values.index)
    if tested.any():
        from statsmodels.stats.multitest import multipletests  # takes a second to import

        found[tested] = multipletests(p_values[tested], method=method)[1]
    return found


def normal_quantile(confidence: float) -> float:
    """Return the z of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion, within [0, 1]; undefined for n = 0.

    Source: Wilson (1927), JASA 22, 209-212.
    """
    if n == 0:
        return UNDEFINED
    # By the formula: statsmodels', which tests compare it with, takes a second to import.
    z, p = normal_quantile(confidence), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, high)


def proportion(hits: Array, groups: Array, confidence: float) -> tuple[float, Interval]:
    """Return the mean of hits, or shares, with Wilson's interval of as many as they are worth."""
    if not len(hits):
        return math.nan, UNDEFINED
    share, spread = float(hits.mean()), float(hits.var())
    size = len(hits) * effective_share(hits, groups, confidence)
    # Shares between 0 and 1 vary less than hits.
    size *= share * (1 - share) / spread if spread else 1
    return share, wilson(share * size, size, confidence)


def effective_share(values: Array, groups: Array, confidence: float) -> float:
    """Return the share of the values that independent ones would be worth as much as.

    That is one over the design effect of their mean (Rao and Scott 1992, Biometrics 48, 577-585),
    less what few groups leave uncertain: a variance estimated from G groups is G / (G - 1) times as
    large, and known no better than by Student's distribution. It is no less than if all values of a
    group were one (Kish 1965, Survey Sampling, section 11.7).
    """
    n, members = len(values), np.unique(groups, return_counts=True)[1]
    free = len(members) - 1
    if len(members) == n:
        return 1.0
    if not free:
        return 1 / n
    apart, together = _spreads(values, groups)
    share = apart / together if apart > 1e-12 else len(members) / n
    wider = float(t.ppf((1 + confidence) / 2, free)) / normal_quantile(confidence)
    return max(share * free / (free + 1) / wider**2, n / float((members**2).sum()))


def _spreads(values: Array, groups: Array) -> tuple[float, float]:
    """Sums of squared deviations from the mean: of the values, and of groups if that is more."""
    away = values - values.mean()
    apart = float(away @ away)
    return apart, max(apart, float((np.bincount(groups, away) ** 2).sum()))


def mean_interval(
    values: Array,
    confidence: float,
    groups: Array | None = None,
    within: tuple[float, float] = UNDEFINED,
) -> Interval:
    """Return Student's interval of a mean; values of the same group belong together.

    Where all are equal, it is as far as the mean moves if as many others as Wilson's interval
    leaves possible are at an end of the range ``within``, and undefined without that. Undefined
    too for no values, and for different ones in one group.
    """
    groups = np.arange(len(values)) if groups is None else groups
    among = len(np.unique(groups))
    if among and np.ptp(values) <= 1e-12 * np.abs(values).max():
        others = wilson(0, among, confidence).high
        low, high = (float(values[0] + others * (end - values[0])) for end in within)
        return Interval(low, high)
    if among < 2:
        return UNDEFINED
    error = math.sqrt(among / (among - 1) * _spreads(values, groups)[1]) / len(values)
    half = t.ppf((1 + confidence) / 2, among - 1) * error
    return Interval(float(values.mean() - half), float(values.mean() + half))


def paired_difference(
    both: float, only_first: float, only_second: float, neither: float, confidence: float = 0.95
) -> Interval:
    """Return the interval of the second proportion minus the first, observed on the same items.

    Within [-1, 1]; undefined for no items; it does not collapse where the two differ on none.
    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return UNDEFINED
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    low1, high1 = wilson(first, n, confidence)
    low2, high2 = wilson(second, n, confidence)
    margins = first * (n - first) * second * (n - second)
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


def correlation_interval(value: float, n: float, confidence: float, factor: float) -> Interval:
    """Return Fisher's interval of a correlation of ``n`` items, ``factor`` times as wide.

    Undefined for fewer than four items, and where all are in one order. Source: Fisher (1921),
    Metron 1, 3-32.
    """
    if n < 4 or not abs(value) < 1 - 1e-12:
        return UNDEFINED
    half = normal_quantile(confidence) * factor / math.sqrt(n - 3)
    return Interval(math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))


MOST_DRAWN = 20_000_000  # counts of cells, in all resamples together


class Bootstrap:
    """Bayesian bootstrap over items that fall into cells, with ``counts`` items in each.

    Shares of the cells follow a Dirichlet distribution: Rubin (1981), "The Bayesian bootstrap",
    Annals of Statistics 9, 130-134. ``prior`` is added to every cell, so that what few items do not
    show is not taken as impossible. ``rows`` are the group and the cell of each item.
    """

    def __init__(
        self,
        counts: Array,
        *,
        resamples: int,
        seed: int,
        confidence: float,
        rows: tuple[Array, Array] | None = None,
        prior: float = 0.0,
    ) -> None:
        self.confidence = confidence
        self.n = int(counts.sum()) if rows is None else len(np.unique(rows[0]))
        self.draws: Array = np.empty((0, len(counts)))
        if not counts.sum():
            return
        resamples = min(resamples, max(200, MOST_DRAWN // max(len(counts), 1)))
        rng = np.random.default_rng(abs(check_whole("seed", seed, None)))
        if rows is None or self.n == len(rows[0]):
            self.draws = self.n * rng.dirichlet(counts + prior, size=resamples)
            return
        group, place = np.unique(rows[0], return_inverse=True)[1], (self.n, len(counts))
        members = coo_array((np.ones_like(group), (group, rows[1])), place).tocsr()
        # Groups with the same counts are drawn together; random numbers tell them apart.
        marks = members @ np.random.default_rng(0).integers(1 << 48, size=len(counts))
        _, first, times = np.unique(marks, return_index=True, return_counts=True)
        weights = np.concatenate([times, np.full(len(counts) if prior else 0, prior)])
        drawn = self.n * rng.dirichlet(weights, size=resamples)
        self.draws = drawn[:, : len(first)] @ members[first]
        if prior:
            self.draws += drawn[:, len(first) :]

    def interval(self, statistic: Callable[[Array], Array]) -> Interval:
        """Return the interval of a statistic of counts: (resamples, cells) -> (resamples,).

        Undefined without items, where half of the resamples or more leave the statistic
        undefined, and where all give the same value.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            values = statistic(self.draws)
        defined = values[~np.isnan(values)]
        if defined.size * 2 <= values.size or np.ptp(defined) < 1e-12:
            return UNDEFINED
        # As much wider as Student's t is than the normal distribution, and as the weights vary less
        # than a sample's mean does (Hesterberg 2015, The American Statistician 69, 371-386).
        z, n = normal_quantile(self.confidence), max(self.n, 2)
        wider = z * math.sqrt((n + 1) / (n - 1)) + (z**3 + z) / (4 * (n - 1))
        tail = NormalDist().cdf(-wider)
        low, high = np.quantile(defined, [tail, 1 - tail])
        return Interval(float(low), float(high))

    def around(self, value: float, statistic: Callable[[Array], Array]) -> Interval:
        """Return the interval of a statistic, so that it holds the ``value`` seen."""
        low, high = self.interval(statistic)
        return Interval(min(low, value), max(high, value)) if low <= high else UNDEFINED
