"""How well a judge agrees with the human labels: accuracy, kappa and more, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, one_of
from workbench.formatting import counted, html_lines, html_table, plain
from workbench.judging.verdicts import why_unusable
from workbench.metrics.coefficients import Coded, Weights, numbered
from workbench.metrics.figures import (
    Figures,
    class_intervals,
    confusion_of,
    figure_names,
    figures_of,
    kappa_paradox,
    per_class,
    undefined,
)
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    check_confidence,
    figure,
    ratio,
    wilson,
)
from workbench.metrics.slices import By, Slices, sliced
from workbench.scale import Scale

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs
    from workbench.pairing.splits import Groups


def figures_as_data(figures: Figures) -> dict[str, Any]:
    """Return figures as plain data; an undefined interval is None."""
    return {
        name: {"value": value, "interval": None if math.isnan(interval.low) else interval}
        for name, (value, interval) in figures.items()
    }


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """How well a judge agrees with the human labels.

    Every rate lies in [0, 1], every kappa in [-1, 1]; what is undefined (no items, a class that was
    never predicted, one value throughout) is nan, and what the scale does not have is None.

    Attributes
    ----------
    name, scale, n, distinct
        The judge's name, the rating scale, the number of pairs, and of these the number that
        differ in inputs or outputs, by which intervals are made: repetitions are no more evidence.
    accuracy, accuracy_interval
        Share of pairs with equal values; Wilson interval.
    kappa, kappa_interval
        Cohen's kappa, which corrects accuracy for chance; bootstrap interval. Where judge and
        human agree on every item the bootstrap has no spread; the lower end is then the kappa at
        the lower end of the accuracy's interval. Likewise `mean_distance_interval`.
    weighted_kappa, weighted_kappa_interval, weights
        Kappa that counts near misses less, on ordinal and numeric scales.
    confusion
        ``confusion.loc[human, judge]``: counts, in the scale's order. A numeric scale with more
        than 20 distinct values is shown in 10 bins of equal width.
    per_class
        Index class; ``precision``, ``recall``, ``f1``, ``support`` (human labels of the class).
        None on numeric scales with bins.
    mean_distance, mean_distance_interval
        Mean `Scale.distance` of verdict and label: 0 is full agreement; bootstrap interval. On
        binary and nominal scales it is 1 - accuracy.
    baseline
        Accuracy of always answering the most frequent human label.
    false_positives, false_negatives, false_positive_rate, false_negative_rate (and _interval)
        On binary scales: positive verdicts on human negatives, of all human negatives; negative
        verdicts on human positives, of all human positives; Wilson intervals.
    ac1, ac2 (and _interval)
        Gwet's coefficients, which kappa's collapse under skewed classes does not touch; ac2 counts
        near misses less, on ordinal scales. Bootstrap intervals. None on numeric scales, since
        they depend on how many categories there are.
    matthews, matthews_interval
        On binary scales: Matthews' correlation coefficient, in [-1, 1]; bootstrap interval.
    mae, bias, within_one (and _interval)
        On ordinal (in steps) and numeric scales (in their unit): mean absolute error; mean of
        verdict minus label, positive where the judge rates higher than people; share of verdicts
        at most one off. Student's intervals, Wilson's for the last.
    pearson, spearman (and _interval)
        On numeric scales: correlations, which are blind to a constant offset. Fisher's interval,
        widened for ranks and for numbers that are not normal.
    class_intervals
        Index class; ``precision_low``, ``precision_high`` and so on for recall and f1; Wilson
        intervals, for f1 of the share of hits among all items with the class on either side.
    coverage, coverage_interval, abstentions, failures
        Share of the items with a label on which the judge gave a usable verdict; how often it
        abstained, and how often the call or the answer failed. Wilson interval. Known where
        the pairs hold what they leave out, as those of `workbench.pair` do.
    undefined
        Name of a figure that is nan, or has no interval -> why.
    notes
        What a reader should know beside the figures.
    """

    name: str
    scale: Scale
    n: int
    accuracy: float
    accuracy_interval: Interval
    kappa: float
    kappa_interval: Interval
    confusion: pd.DataFrame
    per_class: pd.DataFrame | None
    mean_distance: float
    mean_distance_interval: Interval
    baseline: float
    confidence: float = 0.95
    distinct: int | None = None
    weights: Weights | None = None
    weighted_kappa: float | None = None
    weighted_kappa_interval: Interval | None = None
    false_positives: int | None = None
    false_negatives: int | None = None
    false_positive_rate: float | None = None
    false_positive_rate_interval: Interval | None = None
    false_negative_rate: float | None = None
    false_negative_rate_interval: Interval | None = None
    ac1: float | None = None
    ac1_interval: Interval | None = None
    ac2: float | None = None
    ac2_interval: Interval | None = None
    matthews: float | None = None
    matthews_interval: Interval | None = None
    mae: float | None = None
    mae_interval: Interval | None = None
    bias: float | None = None
    bias_interval: Interval | None = None
    within_one: float | None = None
    within_one_interval: Interval | None = None
    pearson: float | None = None
    pearson_interval: Interval | None = None
    spearman: float | None = None
    spearman_interval: Interval | None = None
    class_intervals: pd.DataFrame | None = None
    coverage: float = math.nan
    coverage_interval: Interval = UNDEFINED
    abstentions: int = 0
    failures: int = 0
    undefined: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def true_positive_rate(self) -> float | None:
        """Share of human positives that the judge finds (sensitivity); None if not binary."""
        return None if self.false_negative_rate is None else 1 - self.false_negative_rate

    @property
    def true_negative_rate(self) -> float | None:
        """Share of human negatives that the judge finds (specificity); None if not binary."""
        return None if self.false_positive_rate is None else 1 - self.false_positive_rate

    @property
    def figures(self) -> dict[str, tuple[float, Interval]]:
        """Every figure that this scale has, best known first: name -> (value, interval)."""
        names = figure_names(self.weights)
        if not self.scale.ordered:  # where no miss is nearer than another it is 1 - accuracy
            del names["mean_distance"]
        every = {
            name: (getattr(self, a), getattr(self, f"{a}_interval")) for a, name in names.items()
        }
        return {k: (v, i or UNDEFINED) for k, (v, i) in every.items() if v is not None}

    @property
    def confusion_shares(self) -> pd.DataFrame:
        """`confusion` as shares of its rows: of the items with a label, those with a verdict."""
        return self.confusion.div(self.confusion.sum(axis=1).replace(0, 1), axis=0)

    @property
    def class_shares(self) -> pd.DataFrame:
        """Index class; ``human`` and ``judge``: its share of all labels and of all verdicts."""
        human, judge = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return pd.DataFrame({"human": human, "judge": judge}, index=human.index) / max(self.n, 1)

    @property
    def table(self) -> pd.DataFrame:
        """The figures as a table: index statistic; ``value``, ``low``, ``high``, ``note``."""
        rows = {name: (value, *interval) for name, (value, interval) in self.figures.items()}
        rows["majority baseline"] = (self.baseline, *UNDEFINED)
        rows["coverage"] = (self.coverage, *self.coverage_interval)
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
        return table.assign(note=[self.undefined.get(name, "") for name in table.index])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        names = (
            "name", "n", "confidence", "baseline", "false_positives", "false_negatives", "coverage",
            "abstentions", "failures", "undefined", "notes",
        )  # fmt: skip
        return plain(
            {
                **{name: getattr(self, name) for name in names},
                "figures": figures_as_data(self.figures),
                "values": list(self.confusion.index),
                "confusion": self.confusion.to_numpy().tolist(),
                "per_class": None if self.per_class is None else self.per_class.reset_index(),
            }
        )

    def __repr__(self) -> str:
        return (
            f"<Agreement {self.name!r} on {counted(self.n, 'pair')}: accuracy "
            f"{figure(self.accuracy, self.accuracy_interval)}, kappa "
            f"{figure(self.kappa, self.kappa_interval)}>"
        )

    def _repr_html_(self) -> str:
        classes = self.per_class
        if classes is not None and self.class_intervals is not None:
            classes = classes.join(self.class_intervals)
        tables = [html_table(t) for t in (self.table, self.confusion, classes) if t is not None]
        return "".join([*tables, html_lines(self.notes)])


@overload
def agreement(
    pairs: Pairs,
    *,
    by: None = None,
    groups: Groups = None,
    weights: Weights | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Agreement: ...


@overload
def agreement(
    pairs: Pairs,
    *,
    by: By,
    groups: Groups = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Slices: ...


def agreement(
    pairs: Pairs,
    *,
    by: By | None = None,
    groups: Groups = None,
    weights: Weights | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Agreement | Slices:
    """Measure how well the judge agrees with the human labels.

    Parameters
    ----------
    pairs
        Verdicts and labels on the same traces.
    by
        Divide the items and return `Slices`: a tag, a key of the traces' inputs, a column of the
        table, a mapping trace_id -> slice, ``"annotator"`` (verdicts against each annotator's own
        labels), ``"length"`` (of the outputs, in four bands) or ``"week"`` (ISO, of the requests).
    groups
        What belongs together, so that its rows are not as many independent ones: see
        `Pairs.split`. Traces with the same inputs and outputs always do.
    weights
        Of the weighted kappa on ordinal and numeric scales: ``"quadratic"`` (the default there)
        or ``"linear"``. Plain kappa is always given.
    confidence
        Of the intervals, in (0, 1).
    seed, resamples
        Of the bootstrap intervals.

    Raises
    ------
    ArgumentError
        For unknown weights, weights on a scale without an order, a confidence out of range.
    """
    one_of("weights", weights, [None, "linear", "quadratic"])
    check_confidence(confidence)
    if weights and not pairs.scale.ordered:
        raise ArgumentError(
            f"weights={weights!r} need a scale with an order; {pairs.name!r} has a "
            f"{pairs.scale.kind} one ({pairs.scale.describe()}), on which no miss is nearer than "
            "another. Leave weights out."
        )
    options: Any = {"confidence": confidence, "seed": seed, "resamples": resamples}
    coded = Coded.of(pairs)
    if groups is not None:
        coded = replace(coded, groups=_groups(pairs, groups))
    if by is not None:
        return sliced(pairs, by, groups=None if groups is None else coded.groups, **options)
    weights = (weights or "quadratic") if coded.scale.ordered else None
    found = figures_of(coded, weights, options)
    more: dict[str, Any] = {}
    for attribute, name in figure_names(weights).items():
        if name in found:
            more[attribute], more[f"{attribute}_interval"] = found[name]
    n, wrong = len(coded.human), coded.human != coded.judge
    if coded.scale.kind == "binary":
        more["false_positives"] = int((wrong & (coded.human == 0)).sum())
        more["false_negatives"] = int((wrong & (coded.human == 1)).sum())
    if not coded.binned:
        more["class_intervals"] = class_intervals(coded, confidence)
    left_out = Counter(map(why_unusable, pairs.excluded["reason"]))
    labelled = n + sum(left_out.values()) - left_out[None]
    confusion, baseline = confusion_of(coded), ratio(np.bincount(coded.human).max(initial=0), n)
    return Agreement(
        name=pairs.name,
        scale=coded.scale,
        n=n,
        confusion=confusion,
        per_class=None if coded.binned else per_class(confusion),
        baseline=baseline,
        confidence=confidence,
        distinct=pairs.distinct,
        weights=weights,
        coverage=ratio(n, labelled),
        coverage_interval=wilson(n, labelled, confidence),
        abstentions=left_out["abstained"],
        failures=left_out["failed"],
        undefined=undefined(coded, found),
        notes=tuple(kappa_paradox(coded, found, baseline)),
        **more,
    )


def _groups(pairs: Pairs, groups: Groups) -> Array:
    """The number of each row's group; those that share a row of the same content are one."""
    from workbench.pairing.splits import groups_of, joined

    group_of = joined(groups_of(pairs.table, groups), pairs.content)
    return numbered(group_of[i] for i in pairs.trace_ids)
