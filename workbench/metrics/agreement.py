"""How well a judge agrees with the human labels: accuracy, kappa and more, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, one_of
from workbench.formatting import counted, html_table, plain
from workbench.metrics.coefficients import Coded, Sample, Weights, numbered
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    check_confidence,
    figure,
    proportion,
    ratio,
)
from workbench.metrics.slices import By, Slices, sliced
from workbench.scale import Scale

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs
    from workbench.pairing.splits import Groups

BINS = 10
"""Rows and columns of the confusion matrix of a numeric scale with too many values."""

Figures = Mapping[str, tuple[float, Interval]]
"""Name of a figure -> (value, interval)."""


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
    mae, pearson, spearman
        On numeric scales: mean absolute error in the scale's unit; correlations, which are blind
        to a constant offset.
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
    mae: float | None = None
    pearson: float | None = None
    spearman: float | None = None

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
        found: dict[str, tuple[float | None, Interval | None]] = {
            "accuracy": (self.accuracy, self.accuracy_interval),
            "kappa": (self.kappa, self.kappa_interval),
            f"kappa ({self.weights})": (self.weighted_kappa, self.weighted_kappa_interval),
            "mean distance": (
                # Where no miss is nearer than another it is 1 - accuracy.
                self.mean_distance if self.scale.ordered else None,
                self.mean_distance_interval,
            ),
            "false positive rate": (self.false_positive_rate, self.false_positive_rate_interval),
            "false negative rate": (self.false_negative_rate, self.false_negative_rate_interval),
            "mean absolute error": (self.mae, None),
            "Pearson correlation": (self.pearson, None),
            "Spearman correlation": (self.spearman, None),
        }
        return {k: (v, i or UNDEFINED) for k, (v, i) in found.items() if v is not None}

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
        """The figures as a table: index statistic; ``value``, ``low``, ``high``."""
        rows = {name: (value, *interval) for name, (value, interval) in self.figures.items()}
        rows["majority baseline"] = (self.baseline, *UNDEFINED)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(
            {
                "name": self.name,
                "n": self.n,
                "confidence": self.confidence,
                "baseline": self.baseline,
                "figures": figures_as_data(self.figures),
                "values": list(self.confusion.index),
                "confusion": self.confusion.to_numpy().tolist(),
                "per_class": None if self.per_class is None else self.per_class.reset_index(),
                "false_positives": self.false_positives,
                "false_negatives": self.false_negatives,
            }
        )

    def __repr__(self) -> str:
        return (
            f"<Agreement {self.name!r} on {counted(self.n, 'pair')}: accuracy "
            f"{figure(self.accuracy, self.accuracy_interval)}, kappa "
            f"{figure(self.kappa, self.kappa_interval)}>"
        )

    def _repr_html_(self) -> str:
        tables = [self.table, self.confusion, self.per_class]
        return "".join(html_table(table) for table in tables if table is not None)


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
    sample = Sample.of(coded, **options)
    n, right = len(coded.human), coded.human == coded.judge
    accuracy, accuracy_interval = proportion(right, coded.groups, confidence)
    found = {
        name: sample.figure(name, statistic)
        for name, statistic in sample.statistics(weights).items()
    }
    more: dict[str, Any] = {}
    if coded.scale.ordered:
        more["weighted_kappa"], more["weighted_kappa_interval"] = found[f"kappa ({weights})"]
    if coded.scale.kind == "binary":
        for side, name in ((0, "false_positive"), (1, "false_negative")):
            of_side = coded.human == side
            more[f"{name}s"] = int((of_side & ~right).sum())
            more[f"{name}_rate"], more[f"{name}_rate_interval"] = proportion(
                ~right[of_side], coded.groups[of_side], confidence
            )
    if coded.scale.kind == "numeric":
        more |= _errors_of_numbers(coded)
    confusion = _confusion(coded)
    return Agreement(
        name=pairs.name,
        scale=coded.scale,
        n=n,
        accuracy=accuracy,
        accuracy_interval=accuracy_interval,
        kappa=found["kappa"][0],
        kappa_interval=found["kappa"][1],
        confusion=confusion,
        per_class=None if coded.binned else _per_class(confusion),
        mean_distance=found["mean distance"][0],
        mean_distance_interval=found["mean distance"][1],
        baseline=ratio(np.bincount(coded.human).max(initial=0), n),
        confidence=confidence,
        distinct=pairs.distinct,
        weights=weights,
        **more,
    )


def _groups(pairs: Pairs, groups: Groups) -> Array:
    """The number of each row's group; those that share a row of the same content are one."""
    from workbench.pairing.splits import groups_of, joined

    seen = {i: texts for i, texts in pairs.previews.items() if any(texts)}
    group_of = joined(groups_of(pairs.table, groups), seen)
    return numbered(group_of[i] for i in pairs.trace_ids)


def _confusion(coded: Coded) -> pd.DataFrame:
    values, human, judge = coded.values, coded.human, coded.judge
    if coded.binned:
        edges = np.linspace(coded.positions[0], coded.positions[-1], BINS + 1)
        bin_of = np.clip(np.digitize(coded.positions, edges) - 1, 0, BINS - 1)
        human, judge = bin_of[human], bin_of[judge]
        values = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    table = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(table, (human, judge), 1)
    return pd.DataFrame(
        table, index=pd.Index(values, name="human"), columns=pd.Index(values, name="judge")
    )


def _per_class(confusion: pd.DataFrame) -> pd.DataFrame:
    table = confusion.to_numpy()
    hits, labels, verdicts = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            "precision": hits / verdicts,
            "recall": hits / labels,
            "f1": 2 * hits / (labels + verdicts),
        }
    return pd.DataFrame(shares | {"support": labels}, index=confusion.index.rename("class"))


def _errors_of_numbers(coded: Coded) -> dict[str, float]:
    """Mean absolute error and correlations; a correlation with a constant is nan."""
    if not coded.human.size:
        return dict.fromkeys(("mae", "pearson", "spearman"), math.nan)
    human, judge = coded.positions[coded.human], coded.positions[coded.judge]
    found = {"mae": float(np.abs(human - judge).mean()), "pearson": math.nan, "spearman": math.nan}
    if len(set(human)) > 1 and len(set(judge)) > 1:
        from scipy.stats import spearmanr

        found["pearson"] = float(np.corrcoef(human, judge)[0, 1])
        found["spearman"] = float(spearmanr(human, judge).statistic)
    return found
