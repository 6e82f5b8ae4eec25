"""Intervals hold the true value as often as they say, by simulation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_pairs import COLOURS, GRADES, YES_NO, from_confusion, make_pairs

from workbench import agreement, alternative_annotator_test, annotator_agreement, compare
from workbench.metrics.agreement import Agreement
from workbench.scale import Scale

RUNS = 2000
DRAWS = 500

Figures = dict[str, tuple[float, tuple[float, float]]]
Simulate = Callable[[np.random.Generator, int, int], Figures]
"""Takes a generator, how many items to draw and the resamples; returns value and interval."""

BINARY = [[582, 89], [137, 679]]
SKEWED = [[60, 40], [50, 850]]
GRADED = [[200, 40, 10, 2], [50, 150, 40, 5], [10, 50, 200, 40], [1, 10, 60, 200]]
COLOURED = [[200, 40, 10], [30, 300, 20], [15, 10, 150]]


def figures_of(found: Agreement) -> Figures:
    """The figures, and precision, recall and F1 of the first class."""
    figures: Figures = dict(found.figures)
    if found.per_class is not None:
        row = found.per_class.iloc[0]
        for name in ("precision", "recall", "f1"):
            figures[name] = (row[name], (row[f"{name}_low"], row[f"{name}_high"]))
    return figures


def from_table(table: list[list[int]], scale: Scale) -> Simulate:
    """Items drawn with the shares of a confusion matrix."""
    shares = np.array(table) / np.sum(table)

    def simulate(rng: np.random.Generator, n: int, resamples: int) -> Figures:
        drawn = rng.multinomial(n, shares.ravel()).reshape(shares.shape)
        return figures_of(agreement(from_confusion(drawn.tolist(), scale), resamples=resamples))

    return simulate


def numbers(rng: np.random.Generator, n: int, resamples: int) -> Figures:
    """A judge that rates higher, and is often far off, on a scale from 0 to 100."""
    human = np.clip(rng.normal(55, 15, n).round(), 0, 100)
    judge = np.clip((human + 3 + 4 * rng.standard_t(8, n)).round(), 0, 100)
    pairs = make_pairs(human.tolist(), judge.tolist(), Scale("numeric", low=0, high=100))
    figures = figures_of(agreement(pairs, resamples=resamples))
    return {k: v for k, v in figures.items() if k != "accuracy" and "kappa (" not in k}


def grouped(rng: np.random.Generator, n: int, resamples: int) -> Figures:
    """Groups of one to five answers to a question, on which the judge errs alike."""
    sizes = rng.integers(1, 6, n)
    of = np.repeat(np.arange(n), sizes)
    right = rng.random(len(of)) < rng.beta(4, 1, n)[of]
    human = np.where(rng.random(n)[of] < 0.5, 1, 0)
    judge = np.where(right, human, 1 - human)
    words = np.array(["no", "yes"])
    pairs = make_pairs(words[human].tolist(), words[judge].tolist())
    groups = dict(zip(pairs.trace_ids, of.tolist(), strict=True))
    kept = ("accuracy", "kappa", "AC1", "false negative rate", "recall")
    found = figures_of(agreement(pairs, groups=groups, resamples=resamples))
    return {name: found[name] for name in kept}


def changed(rng: np.random.Generator, n: int, resamples: int) -> Figures:
    """Two judges of the same items, the second better."""
    human = rng.integers(0, 4, n)
    before, after = (
        np.where(rng.random(n) < share, human, rng.integers(0, 4, n)) for share in (0.5, 0.7)
    )
    words = np.array(GRADES.values)
    pairs = [make_pairs(words[human].tolist(), words[j].tolist(), GRADES) for j in (before, after)]
    return dict(compare(*pairs, resamples=resamples).changes)


def people(rng: np.random.Generator, n: int, resamples: int) -> Figures:
    """Three annotators of varied care, with gaps, and a judge."""
    truth = rng.integers(0, 3, n)
    labels, judge = (
        np.where(rng.random((n, k)) < 0.75, truth[:, None], rng.integers(0, 3, (n, k)))
        for k in (3, 1)
    )
    words = np.array(COLOURS.values)
    table = pd.DataFrame(words[labels], columns=list("abc")).astype(object)
    table = table.mask(rng.random((n, 3)) < 0.1)
    among = annotator_agreement(table, scale=COLOURS, resamples=resamples)
    test = alternative_annotator_test(table, words[judge[:, 0]], resamples=resamples)
    one = among.by_annotator.iloc[0]
    return {
        "alpha": (among.alpha, among.alpha_interval),
        "ceiling": (among.ceiling, among.ceiling_interval),
        "accuracy of one": (one["accuracy"], (one["accuracy_low"], one["accuracy_high"])),
        "advantage probability": (test.advantage_probability, test.advantage_interval),
    }


POPULATIONS: dict[str, tuple[Simulate, int]] = {
    "binary": (from_table(BINARY, YES_NO), 100),
    "skewed": (from_table(SKEWED, YES_NO), 200),
    "ordinal": (from_table(GRADED, GRADES), 150),
    "nominal": (from_table(COLOURED, COLOURS), 100),
    "numeric": (numbers, 100),
    "grouped": (grouped, 80),
    "changed": (changed, 100),
    "people": (people, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("population", POPULATIONS)
def test_an_interval_of_95_percent_covers_93_to_97(
    population: str, record_property: Callable[[str, Any], None]
) -> None:
    simulate, n = POPULATIONS[population]
    truth = {k: v for k, (v, _) in simulate(np.random.default_rng(0), 200_000, 2).items()}
    hits: dict[str, list[bool]] = defaultdict(list)
    rng = np.random.default_rng(1)
    for _ in range(RUNS):
        for name, (_, (low, high)) in simulate(rng, n, DRAWS).items():
            if not math.isnan(low):
                hits[name].append(low <= truth[name] <= high)
    covered = {name: float(np.mean(held)) for name, held in hits.items()}
    record_property("figure", f"coverage, {population}: {covered}")
    assert all(len(held) > 0.98 * RUNS for held in hits.values())
    assert {k: v for k, v in covered.items() if not 0.93 <= v <= 0.97} == {}
