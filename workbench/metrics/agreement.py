"""How well a judge agrees with the human labels: accuracy, kappa and more, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, one_of
from workbench.formatting import html_table, plain
from workbench.metrics.coefficients import Bootstrap, Coded, Weights, disagreement
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    check_confidence,
    figure,
    ratio,
    wilson,
)
from workbench.scale import Scale

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs


_BINS = 10


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """How well a judge agrees with the human labels.

    Every rate lies in [0, 1], every kappa in [-1, 1]; what is undefined (no items, a class that was
    never predicted, one value throughout) is nan, and what the scale does not have is None.

    Attributes
    ----------
    name, scale, n
        The judge's name, the rating scale, the number of pairs.
    accuracy, accuracy_interval
        Share of pairs with equal values; Wilson interval.
    kappa, kappa_interval
        Cohen's kappa, which corrects accuracy for chance; bootstrap interval. Where judge and
        human agree on every item the bootstrap has no spread; the lower end is then the kappa at
        the lower end of the accuracy's interval. Likewise `mean_distance_interval`.
    weighted_kappa, weighted_kappa_interval, weights
        Kappa that counts near misses less, on ordinal and numeric scales.
    confusion
        ``confusion.loc[human, judge]``: pairs with that human label and that verdict, in the
        scale's order. A numeric scale with more than 20 distinct values is shown in 10 bins of
        equal width.
    per_class
        Index class; ``precision``, ``recall``, ``f1``, ``support`` (human labels of the class).
        None on numeric scales with bins.
    mean_distance, mean_distance_interval
        Mean `Scale.distance` of verdict and label: 0 is full agreement, and a near miss costs
        less than a far one; bootstrap interval. On binary and nominal scales it is 1 - accuracy.
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
        """Every figure that this scale has: name -> (value, interval), best known first."""
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
    def table(self) -> pd.DataFrame:
        """The figures as a table: index statistic; ``value``, ``low``, ``high``."""
        rows = {name: (value, *interval) for name, (value, interval) in self.figures.items()}
        rows["majority baseline"] = (self.baseline, *UNDEFINED)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        found = {
            name: {"value": value, "interval": None if math.isnan(ends.low) else ends}
            for name, (value, ends) in self.figures.items()
        }
        return plain(
            {
                "name": self.name,
                "n": self.n,
                "confidence": self.confidence,
                "baseline": self.baseline,
                "figures": found,
                "values": list(self.confusion.index),
                "confusion": self.confusion.to_numpy().tolist(),
                "per_class": None if self.per_class is None else self.per_class.reset_index(),
                "false_positives": self.false_positives,
                "false_negatives": self.false_negatives,
            }
        )

    def __repr__(self) -> str:
        return (
            f"<Agreement {self.name!r} on {self.n} pairs: accuracy "
            f"{figure(self.accuracy, self.accuracy_interval)}, kappa "
            f"{figure(self.kappa, self.kappa_interval)}>"
        )

    def _repr_html_(self) -> str:
        parts = [html_table(self.table), html_table(self.confusion)]
        if self.per_class is not None:
            parts.append(html_table(self.per_class))
        return "".join(parts)


def agreement(
    pairs: Pairs,
    *,
    weights: Weights | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Agreement:
    """How well the judge agrees with the human labels.

    Parameters
    ----------
    pairs
        Verdicts and labels on the same traces.
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
    coded = Coded.of(pairs)
    human, judge = coded.human, coded.judge
    n = len(human)
    right = int((human == judge).sum())
    bootstrap = Bootstrap.of(coded, seed=seed, resamples=resamples, confidence=confidence)
    kappa, kappa_interval = bootstrap.kappa(disagreement(coded.positions))
    distance, distance_interval = bootstrap.mean(coded.distances)
    found = Agreement(
        name=pairs.name,
        scale=coded.scale,
        n=n,
        accuracy=ratio(right, n),
        accuracy_interval=wilson(right, n, confidence),
        kappa=kappa,
        kappa_interval=kappa_interval,
        confusion=_confusion(coded),
        per_class=None if coded.binned else _per_class(coded),
        mean_distance=distance,
        mean_distance_interval=distance_interval,
        baseline=ratio(int(np.bincount(human).max(initial=0)), n),
        confidence=confidence,
    )
    if coded.scale.ordered:
        weights = weights or "quadratic"
        weighted, interval = bootstrap.kappa(disagreement(coded.positions, weights))
        found = replace(
            found, weights=weights, weighted_kappa=weighted, weighted_kappa_interval=interval
        )
    if coded.scale.kind == "binary":
        found = replace(found, **_binary_rates(human, judge, confidence))
    if coded.scale.kind == "numeric":
        found = replace(found, **_correlations(coded))
    return found


def _confusion(coded: Coded) -> pd.DataFrame:
    values, human, judge = coded.values, coded.human, coded.judge
    if coded.binned:
        edges = np.linspace(coded.positions[0], coded.positions[-1], _BINS + 1)
        bin_of = np.clip(np.digitize(coded.positions, edges) - 1, 0, _BINS - 1)
        human, judge = bin_of[human], bin_of[judge]
        values = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    table = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(table, (human, judge), 1)
    return pd.DataFrame(
        table, index=pd.Index(values, name="human"), columns=pd.Index(values, name="judge")
    )


def _per_class(coded: Coded) -> pd.DataFrame:
    table = _confusion(coded).to_numpy()
    hits, labels, verdicts = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    rows = [
        (ratio(h, v), ratio(h, s), ratio(2 * h, s + v), int(s))
        for h, s, v in zip(hits, labels, verdicts, strict=True)
    ]
    index = pd.Index(coded.values, name="class")
    return pd.DataFrame(rows, columns=["precision", "recall", "f1", "support"], index=index)


def _binary_rates(human: Array, judge: Array, confidence: float) -> dict[str, Any]:
    positives, negatives = int((human == 1).sum()), int((human == 0).sum())
    false_positives = int(((human == 0) & (judge == 1)).sum())
    false_negatives = int(((human == 1) & (judge == 0)).sum())
    return {
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "false_positive_rate": ratio(false_positives, negatives),
        "false_positive_rate_interval": wilson(false_positives, negatives, confidence),
        "false_negative_rate": ratio(false_negatives, positives),
        "false_negative_rate_interval": wilson(false_negatives, positives, confidence),
    }


def _correlations(coded: Coded) -> dict[str, Any]:
    """MAE, Pearson's and Spearman's correlation; a correlation with a constant is nan."""
    if not coded.human.size:
        return dict.fromkeys(("mae", "pearson", "spearman"), math.nan)
    human, judge = coded.positions[coded.human], coded.positions[coded.judge]
    found = {"mae": float(np.abs(human - judge).mean()), "pearson": math.nan, "spearman": math.nan}
    if len(set(human)) > 1 and len(set(judge)) > 1:
        from scipy.stats import spearmanr

        found["pearson"] = float(np.corrcoef(human, judge)[0, 1])
        found["spearman"] = float(spearmanr(human, judge).statistic)
    return found
