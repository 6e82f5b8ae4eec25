"""Every figure of a judge against people, by name, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.metrics.coefficients import Coded, Sample, Weights, correlation_interval
from workbench.metrics.intervals import (
    UNDEFINED,
    Interval,
    effective_size,
    mean_interval,
    proportion,
)

Figures = Mapping[str, tuple[float, Interval]]
"""Name of a figure -> (value, interval)."""


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
