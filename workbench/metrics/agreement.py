"""How well a judge agrees with the human labels: accuracy, kappa and more, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, one_of
from workbench.formatting import counted, plain
from workbench.judging.verdicts import why_unusable
from workbench.metrics.coefficients import Weights, numbered
from workbench.metrics.figures import (
    ERROR_RATES,
    Coded,
    Figures,
    Sample,
    class_figures,
    confusion_of,
    why_undefined,
)
from workbench.metrics.intervals import (
    UNDEFINED,
    Interval,
    Result,
    check_confidence,
    figure,
    figure_table,
    proportion,
    ratio,
)
from workbench.metrics.slices import By, Slices, sliced
from workbench.pairing.pairs import Groups, Pairs
from workbench.scale import Scale

SKEWED = 0.8  # share of one label, and accuracy, from which on kappa may collapse
ATTRIBUTES = {
    "accuracy": "accuracy",
    "kappa": "kappa",
    "weighted_kappa": "kappa ({})",
    "ac1": "AC1",
    "ac2": "AC2 ({})",
    "matthews": "Matthews correlation",
    "mean_distance": "mean distance",
    "mae": "mean absolute error",
    "bias": "bias",
    "within_one": "within one",
    "false_positive_rate": "false positive rate",
    "false_negative_rate": "false negative rate",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
"""Attribute of `Agreement` -> name of the figure, with its weights; best known first."""


def figures_as_data(figures: Figures) -> dict[str, Any]:
    """Return figures as plain data; an undefined interval is None."""
    return {
        name: {"value": value, "interval": None if math.isnan(interval.low) else interval}
        for name, (value, interval) in figures.items()
    }


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Result):
    """How well a judge agrees with the human labels.

    Every rate lies in [0, 1], every kappa in [-1, 1]; what is undefined is nan, and what the scale
    does not have is None. A name with ``_interval`` is the figure's confidence interval.

    Attributes
    ----------
    name, scale, n
        The judge's name, the rating scale and the number of pairs.
    accuracy, baseline
        Share of pairs with equal values, and that of always answering the most frequent human label
        (Wilson).
    kappa, weighted_kappa, weights
        Cohen's kappa, which corrects accuracy for chance (bootstrap; nan on scales with bins), and
        one that counts near misses less, on ordinal and numeric scales.
    mean_distance
        Mean `Scale.distance` of verdict and label: 0 is full agreement (Student). On binary and
        nominal scales it is 1 - accuracy (Wilson).
    baseline_distance
        That of always answering the median label, or the most frequent one on binary and nominal
        scales.
    false_positives, false_negatives, false_positive_rate, false_negative_rate
        On binary scales: positive verdicts on human negatives, of all human negatives; negative
        verdicts on human positives, of all human positives (Wilson).
    ac1, ac2
        Gwet's coefficients (bootstrap), which do not collapse as kappa does under skewed classes;
        ac2 counts near misses less, on ordinal and numeric scales. None on scales with bins.
    matthews
        On binary scales: Matthews' correlation coefficient, in [-1, 1] (bootstrap).
    mae, bias, within_one
        On ordinal and numeric scales, of words in steps, of numbers in their unit: mean absolute
        error; mean of verdict minus label, positive where the judge rates higher than people
        (Student); share of verdicts at most one off (Wilson).
    pearson, spearman
        On numeric scales: correlations, which are blind to a constant offset (Fisher's interval,
        widened for ranks and for numbers that are not normal).
    confusion
        ``confusion.loc[human, judge]``: counts, in the scale's order. A numeric scale with more
        than 20 distinct values is shown in 10 bins of equal width.
    per_class
        Index class; ``precision``, ``recall`` and ``f1``, each with the ends of its interval
        (``precision_low``, ...; Wilson), and ``support``, the human labels of the class. Precision
        is nan where the judge never says the class, recall without support. None on scales with
        bins.
    labelled, coverage, abstentions, failures
        Items with a label, but for contested ones; share of these on which the judge gave a usable
        verdict (Wilson); how often it abstained, and how often the call or the answer failed.
    undefined
        Name of a figure that is nan, or has no interval -> why; of classes ``"recall of 'no'"``.
    notes
        What a reader should know beside the figures.
    """

    hidden = ("scale", "measured", "weights", "baseline_interval", "coverage_interval")

    name: str
    scale: Scale
    n: int
    measured: Figures = field(repr=False)
    confusion: pd.DataFrame
    per_class: pd.DataFrame | None
    baseline: float
    baseline_interval: Interval
    baseline_distance: float
    confidence: float
    weights: Weights | None
    labelled: int
    coverage: float
    coverage_interval: Interval
    false_positives: int | None
    false_negatives: int | None
    abstentions: int
    failures: int
    undefined: Mapping[str, str]
    notes: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        """Return a figure or its interval by the names above; None where the scale has it not."""
        attribute = name.removesuffix("_interval")
        if attribute not in ATTRIBUTES:
            raise AttributeError(f"'Agreement' object has no attribute {name!r}")
        found = self.measured.get(ATTRIBUTES[attribute].format(self.weights), (None, None))
        return found[attribute != name]

    def __dir__(self) -> Iterator[str]:
        yield from super().__dir__()
        yield from (f"{name}{end}" for name in ATTRIBUTES for end in ("", "_interval"))

    @property
    def figures(self) -> dict[str, tuple[float, Interval]]:
        """Every figure that this scale has, best known first: name -> (value, interval)."""
        names = [name.format(self.weights) for name in ATTRIBUTES.values()]
        if not self.scale.ordered:  # where no miss is nearer than another it is 1 - accuracy
            names.remove("mean distance")
        return {name: self.measured[name] for name in names if name in self.measured}

    @property
    def true_positive_rate(self) -> float | None:
        """Share of human positives that the judge finds (sensitivity); None if not binary."""
        return None if self.false_negative_rate is None else 1 - self.false_negative_rate

    @property
    def true_negative_rate(self) -> float | None:
        """Share of human negatives that the judge finds (specificity); None if not binary."""
        return None if self.false_positive_rate is None else 1 - self.false_positive_rate

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
        """Index statistic; ``value``, ``low``, ``high``, ``n`` (items that it is of), ``note``."""
        figures = self.figures | {
            "majority baseline": (self.baseline, self.baseline_interval),
            "coverage": (self.coverage, self.coverage_interval),
        }
        labels = self.confusion.sum(axis=1).to_list()
        counts = {name: labels[code] for name, code in ERROR_RATES.items() if name in figures}
        counts["coverage"] = self.labelled
        rows = {
            name: (value, *ends, counts.get(name, self.n), self.undefined.get(name, ""))
            for name, (value, ends) in figures.items()
        }
        return figure_table(rows, "n", "note")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        confusion = self.confusion.to_numpy().tolist()
        more = {"figures": figures_as_data(self.figures), "values": list(self.confusion.index)}
        return super().to_dict() | plain({**more, "confusion": confusion})

    @property
    def headline(self) -> dict[str, tuple[float, Interval]]:
        """The two figures that stand for all: numbers are hardly ever equal."""
        numeric = ("mean distance", "Pearson correlation")
        names = numeric if self.scale.kind == "numeric" else ("accuracy", "kappa")
        return {name: self.figures[name] for name in names}

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {figure(*one)}" for name, one in self.headline.items())
        head = f"<Agreement {self.name!r} on {counted(self.n, 'pair')}: {said}>"
        return "\n".join([head, *self.notes])

    def _tables(self) -> list[pd.DataFrame]:
        classes = [] if self.per_class is None else [self.per_class]
        return [self.table, self.confusion, *classes]


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
        or ``"linear"``, nan on scales with bins. Plain kappa is always given.
    confidence
        Of the intervals, in (0, 1).
    seed, resamples
        Of the bootstrap intervals.

    Raises
    ------
    ArgumentError
        For unknown weights, weights on a scale without an order or with ``by``, a confidence out
        of range.
    """
    _check(pairs, by, weights)
    check_confidence(confidence)
    options: Any = {"confidence": confidence, "seed": seed, "resamples": resamples}
    pairs = pairs.grouped(groups)
    if by is not None:
        return sliced(pairs, by, **options)
    coded = Coded.of(pairs)
    weights = (weights or "quadratic") if coded.scale.ordered else None
    found, n = Sample(coded, **options).figures(weights=weights), len(coded.human)
    lost = pairs.excluded.assign(why=pairs.excluded["reason"].map(why_unusable)).dropna()
    labelled = [*pairs.trace_ids, *lost["trace_id"]]
    coverage = proportion(
        np.arange(len(labelled)) < n, numbered(pairs.clusters_of(labelled)), confidence
    )
    most = coded.human == np.bincount(coded.human, minlength=1).argmax()
    baseline = proportion(most, coded.groups, confidence)
    confusion = confusion_of(coded)
    cells = confusion.to_numpy()
    per_class = None if coded.binned else class_figures(coded, confidence)
    whole = {"coverage": coverage, "majority baseline": baseline}
    return Agreement(
        name=pairs.name,
        scale=coded.scale,
        n=n,
        measured=found,
        confusion=confusion,
        per_class=per_class,
        baseline=baseline[0],
        baseline_interval=baseline[1],
        baseline_distance=_baseline_distance(coded) if coded.scale.ordered else 1 - baseline[0],
        confidence=confidence,
        weights=weights,
        labelled=len(labelled),
        coverage=coverage[0],
        coverage_interval=coverage[1],
        false_positives=int(cells[0, 1]) if coded.scale.kind == "binary" else None,
        false_negatives=int(cells[1, 0]) if coded.scale.kind == "binary" else None,
        abstentions=int((lost["why"] == "abstained").sum()),
        failures=int((lost["why"] == "failed").sum()),
        undefined=why_undefined(coded, {**found, **whole}) | _undefined_classes(per_class, n),
        notes=(*_kappa_paradox(coded, found, baseline[0]), *without_contested(pairs)),
    )


def _check(pairs: Pairs, by: By | None, weights: Weights | None) -> None:
    if not isinstance(pairs, Pairs):
        raise ArgumentError(
            f"agreement takes what workbench.pair(judge) gives, got {type(pairs).__name__}."
        )
    one_of("weights", weights, [None, "linear", "quadratic"])
    if weights and (by is not None or not pairs.scale.ordered):
        raise ArgumentError(
            f"weights={weights!r} need a scale with an order, and no slices: the scale of "
            f"{pairs.name!r} is {pairs.scale.kind} ({pairs.scale.describe()}). Leave weights out."
        )


def _baseline_distance(coded: Coded) -> float:
    """Mean distance of the median label from all labels, which no other constant falls below."""
    n = len(coded.human)
    median = np.full(n, np.sort(coded.human)[n // 2] if n else 0)
    return ratio(coded.distances(coded.human, median).sum(), n)


def _undefined_classes(per_class: pd.DataFrame | None, n: int) -> dict[str, str]:
    """Why the figures of a class are nan: name -> reason."""
    reasons = {"precision": "the judge never says {!r}", "recall": "no human label is {!r}"}
    reasons["f1"] = "neither judge nor people say {!r}"
    return {
        f"{name} of {value!r}": reason.format(value) if n else "there are no pairs"
        for value, row in (() if per_class is None else per_class.iterrows())
        for name, reason in reasons.items()
        if math.isnan(row[name])
    }


def without_contested(pairs: Pairs) -> tuple[str, ...]:
    """Return a note on the items that are not among the pairs since their annotators differ."""
    missing = counted(pairs.contested, "item")
    said = f"Left out: {missing} on which annotators differ. Without these any judge looks better."
    return (said,) if pairs.contested else ()


def _kappa_paradox(coded: Coded, figures: Figures, baseline: float) -> tuple[str, ...]:
    """A note where kappa collapses (Feinstein and Cicchetti 1990, J Clin Epidemiol 43, 543-549)."""
    ac1 = figures.get("AC1", (math.nan, UNDEFINED))[0]
    accuracy, kappa = (figures[name][0] for name in ("accuracy", "kappa"))
    collapsed = math.isnan(kappa) or ac1 - kappa >= 0.2
    if math.isnan(ac1) or not (accuracy >= SKEWED and baseline >= SKEWED and collapsed):
        return ()
    most = coded.values[int(np.bincount(coded.human).argmax())]
    low = "undefined" if math.isnan(kappa) else f"only {kappa:.2f}"
    return (
        f"Kappa is {low} although judge and people agree on {accuracy:.0%} of the items: "
        f"{baseline:.0%} of the labels are {most!r}, so that chance alone agrees on nearly as "
        f"many. Gwet's AC1 ({ac1:.2f}) does not collapse so. See the recall of each class as well.",
    )
