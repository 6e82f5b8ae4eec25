"""Every figure of a judge against people, with its interval and what to know of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.formatting import counted
from workbench.metrics.coefficients import (
    MOST_COMPARED,
    Coded,
    Sample,
    Weights,
    correlation_interval,
)
from workbench.metrics.intervals import (
    UNDEFINED,
    Interval,
    effective_size,
    mean_interval,
    proportion,
)

Figures = Mapping[str, tuple[float, Interval]]
"""Name of a figure -> (value, interval)."""

SKEWED = 0.8
"""The share of one label, and the accuracy, from which on kappa may collapse."""


def figure_names(weights: Weights | None) -> dict[str, str]:
    """Attribute of `Agreement` -> name of the figure, best known first."""
    return {
        "accuracy": "accuracy",
        "kappa": "kappa",
        "weighted_kappa": f"kappa ({weights})",
        "ac1": "AC1",
        "ac2": f"AC2 ({weights})",
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


def figures_of(coded: Coded, weights: Weights | None, options: Any) -> Figures:
    """Every figure that the scale has, by name."""
    sample, confidence = Sample.of(coded, **options), options["confidence"]
    right = coded.human == coded.judge
    found = {"accuracy": proportion(right, coded.groups, confidence)}
    found |= {k: sample.figure(k, statistic) for k, statistic in sample.statistics(weights).items()}
    if coded.scale.kind == "binary":
        for side, name in ((0, "false positive rate"), (1, "false negative rate")):
            of_side = coded.human == side
            found[name] = proportion(~right[of_side], coded.groups[of_side], confidence)
    if coded.scale.ordered:
        human, judge = coded.positions[coded.human], coded.positions[coded.judge]
        error, near = judge - human, np.abs(human - judge) <= 1
        for name, values in (("bias", error), ("mean absolute error", np.abs(error))):
            if not right.all():
                size = effective_size(values, coded.groups)
                found[name] = found[name][0], mean_interval(values, confidence, size)
        found["within one"] = (math.nan, UNDEFINED)
        if coded.span > 1:
            found["within one"] = proportion(near, coded.groups, confidence)
        if coded.scale.kind == "numeric":
            found |= _of_numbers(coded, found, sample.bootstrap.n, confidence)
    return found


def _of_numbers(coded: Coded, found: Figures, n: int, confidence: float) -> dict[str, Any]:
    """Correlations, and the interval of kappa where its chance agreement hardly varies.

    Fisher's interval is right for normal numbers. Others vary more (Steiger and Hakstian 1982,
    British Journal of Mathematical and Statistical Psychology 35, 208-215), and so do ranks
    (Bonett and Wright 2000, Psychometrika 65, 23-28).
    """
    human, judge = coded.positions[coded.human], coded.positions[coded.judge]
    more: dict[str, Any] = {"Spearman correlation": (math.nan, UNDEFINED)}
    if not math.isnan(r := found["Pearson correlation"][0]):
        from scipy.stats import spearmanr

        u, v = ((side - side.mean()) / side.std() for side in (human, judge))
        spread = float((u * v - r * (u**2 + v**2) / 2).std()) / max(1 - r**2, 1e-12)
        rank = float(spearmanr(human, judge).statistic)
        for name, value, factor in (
            ("Pearson", r, max(1.0, spread)),
            ("Spearman", rank, math.sqrt(1 + rank**2 / 2)),
        ):
            interval = correlation_interval(value, n, confidence, factor)
            more[f"{name} correlation"] = value, interval
    (accuracy, ends), (kappa, _) = found["accuracy"], found["kappa"]
    if coded.binned and accuracy < 1 and not math.isnan(kappa):
        by_chance = (accuracy - kappa) / (1 - kappa)
        more["kappa"] = kappa, Interval(*((end - by_chance) / (1 - by_chance) for end in ends))
    return more


# -- class by class -------------------------------------------------------------------------


def confusion_of(coded: Coded) -> pd.DataFrame:
    """Return the counts of each label (rows) with each verdict (columns)."""
    values, human, judge = coded.shown()
    table = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(table, (human, judge), 1)
    return pd.DataFrame(
        table, index=pd.Index(values, name="human"), columns=pd.Index(values, name="judge")
    )


def per_class(confusion: pd.DataFrame) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class; nan without a verdict or a label."""
    table = confusion.to_numpy()
    hits, labels, verdicts = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            "precision": hits / verdicts,
            "recall": hits / labels,
            "f1": 2 * hits / (labels + verdicts),
        }
    return pd.DataFrame(shares | {"support": labels}, index=confusion.index.rename("class"))


def class_intervals(coded: Coded, confidence: float) -> pd.DataFrame:
    """Return the ends of the intervals of precision, recall and F1 of each class.

    Precision and recall are shares, with Wilson's interval. F1 is ``2 J / (1 + J)`` of the share J
    of hits among the items that have the class on either side, and so are the ends of its interval.
    """
    rows = {}
    for k, value in enumerate(coded.values):
        labelled, judged = coded.human == k, coded.judge == k
        ends = [
            proportion((labelled & judged)[among], coded.groups[among], confidence)[1]
            for among in (judged, labelled, labelled | judged)
        ]
        f1 = [2 * end / (1 + end) for end in ends[2]]
        rows[value] = (*ends[0], *ends[1], *f1)
    names = [f"{name}_{end}" for name in ("precision", "recall", "f1") for end in ("low", "high")]
    table = pd.DataFrame(list(rows.values()), columns=names)
    return table.set_axis(pd.Index(list(rows), name="class"))


# -- what to know of them -------------------------------------------------------------------


def undefined(coded: Coded, figures: Figures) -> dict[str, str]:
    """Return why figures are nan or have no interval: name -> reason."""
    found = {}
    for name, (value, interval) in figures.items():
        if math.isnan(value):
            found[name] = _why(coded, name)
        elif math.isnan(interval.low):
            found[name] = "no interval: what was seen does not vary enough to make one"
    return found


def _why(coded: Coded, name: str) -> str:
    if not coded.human.size:
        return "there are no pairs"
    if name == "within one":
        return "the scale spans no more than one"
    if name in ("false positive rate", "false negative rate"):
        side = coded.values[name == "false negative rate"]
        return f"no human label is {side!r}"
    if len({*coded.human.tolist(), *coded.judge.tolist()}) == 1:
        return f"judge and people say {coded.values[coded.human[0]]!r} throughout"
    for side, codes in (("people say", coded.human), ("the judge says", coded.judge)):
        if (codes == codes[0]).all():
            return f"{side} {coded.values[codes[0]]!r} throughout"
    return f"more than {counted(MOST_COMPARED, 'comparison')} of values; see the weighted one"


def kappa_paradox(coded: Coded, figures: Figures, baseline: float) -> list[str]:
    """Return a note where kappa collapses under skewed classes though raw agreement is high.

    Source: Feinstein and Cicchetti (1990), "High agreement but low kappa", Journal of Clinical
    Epidemiology 43, 543-549.
    """
    if "AC1" not in figures:
        return []
    accuracy, kappa, ac1 = (figures[name][0] for name in ("accuracy", "kappa", "AC1"))
    collapsed = math.isnan(kappa) or ac1 - kappa >= 0.2
    if not (accuracy >= SKEWED and baseline >= SKEWED and collapsed and coded.human.size):
        return []
    most = coded.values[int(np.bincount(coded.human).argmax())]
    low = "undefined" if math.isnan(kappa) else f"only {kappa:.2f}"
    return [
        f"Kappa is {low} although judge and people agree on {accuracy:.0%} of the items: "
        f"{baseline:.0%} of the labels are {most!r}, so that chance alone agrees on nearly as "
        f"many. Gwet's AC1 ({ac1:.2f}) does not collapse so. Look at the recall of each class "
        "as well: whether the judge finds the rare ones neither tells."
    ]
