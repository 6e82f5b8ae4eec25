"""Coefficients against published values and other implementations."""

from __future__ import annotations

import math
from typing import Literal

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from workbench.metrics.coefficients import (
    coincidences,
    correlation,
    fleiss_kappa,
    interval_alpha,
    krippendorff_alpha,
    mcnemar,
    quadratic_kappa,
)
from workbench.metrics.intervals import correlation_interval

Level = Literal["nominal", "ordinal", "interval"]


def alpha(counts: np.ndarray, level: Level) -> float:
    """Alpha of the categories 1, 2, ..., of which each unit has so many."""
    times = np.ones(len(counts), dtype=int)
    if level != "interval":
        return float(krippendorff_alpha(coincidences(counts, times), level))
    rows = [np.repeat(np.arange(counts.shape[1]) + 1.0, unit) for unit in counts]
    width = max(map(len, rows))
    numbers = np.array([np.append(row, [math.nan] * (width - len(row))) for row in rows])
    return float(interval_alpha(numbers)(times))


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_statsmodels_and_is_symmetric(fixed: int, broken: int) -> None:
    gains = np.repeat([1, -1], [fixed, broken])
    p = mcnemar(gains)
    assert p == pytest.approx(mcnemar(-gains))
    reference = statsmodels_mcnemar([[10, fixed], [broken, 10]], exact=True).pvalue
    assert p == pytest.approx(reference if fixed + broken else 1)


@pytest.mark.parametrize(
    ("level", "published"),
    [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)],
)
def test_krippendorffs_published_example(level: Level, published: float) -> None:
    """Krippendorff 2011: four observers on twelve units, with missing values."""
    observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    counts = np.array(
        [[sum(o[u] == str(k) for o in observers) for k in range(1, 6)] for u in range(12)]
    )
    assert alpha(counts, level) == pytest.approx(published, abs=5e-4)


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, 2, 3]), min_size=4, max_size=4), min_size=2, max_size=15
    ),
    st.sampled_from(["nominal", "ordinal", "interval"]),
)
def test_alpha_equals_the_reference_implementation(rows: list[list[int]], level: Level) -> None:
    """``rows`` are how many raters gave a unit each of four categories."""
    counts, values = np.array(rows), np.arange(1.0, 5.0)
    ours = alpha(counts, level)
    paired = counts[counts.sum(axis=1) >= 2]
    if (paired.sum(axis=0) > 0).sum() < 2:
        assert math.isnan(ours)
        return
    theirs = krippendorff.alpha(
        value_counts=counts, value_domain=values.tolist(), level_of_measurement=level
    )
    assert ours == pytest.approx(theirs)


FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


def test_fleiss_published_example() -> None:
    """Ten subjects, fourteen raters, five categories: kappa 0.210."""
    assert fleiss_kappa(FLEISS, np.ones(len(FLEISS))) == pytest.approx(0.210, abs=5e-4)
    often = np.array([[1] * 10, [2, 0] * 5])
    for times, kappa in zip(often, fleiss_kappa(FLEISS, often), strict=True):
        assert kappa == pytest.approx(inter_rater.fleiss_kappa(np.repeat(FLEISS, times, axis=0)))
    assert math.isnan(fleiss_kappa(np.array([[2, 0], [2, 0]]), np.ones(2)))
    assert math.isnan(fleiss_kappa(np.empty((0, 2)), np.ones(0)))


numbers = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=5, max_size=30)


@given(numbers)
def test_numbers_are_correlated_as_scipy_does_and_weighed_as_sklearn_does(
    rows: list[tuple[int, int]],
) -> None:
    human, judge = np.array(rows, dtype=float).T
    ones = np.ones(len(rows))
    if np.ptp(human) == 0 or np.ptp(judge) == 0:
        assert math.isnan(correlation(human, judge, ones))
        return
    value, reference = correlation(human, judge, ones), pearsonr(human, judge)
    assert value == pytest.approx(reference.statistic)
    interval = correlation_interval(float(value), len(rows), 0.95, 1.0)
    if abs(value) < 1 - 1e-9:
        assert interval == pytest.approx(tuple(reference.confidence_interval()))
    small = correlation(human * 1e-9 + 5, judge * 1e9, ones)
    assert small == pytest.approx(reference.statistic, abs=1e-5)
    weighted = cohen_kappa_score(
        human.astype(int), judge.astype(int), labels=range(10), weights="quadratic"
    )
    assert quadratic_kappa(human, judge, ones) == pytest.approx(weighted)


def test_the_interval_of_a_correlation_by_hand() -> None:
    """r = 0.5 on 5 items: tanh(atanh 0.5 -+ 1.96 sqrt(1.125 / 2))."""
    half = 1.959964 * math.sqrt(1.125 / 2)
    ends = [math.tanh(math.atanh(0.5) + side * half) for side in (-1, 1)]
    interval = correlation_interval(0.5, 5, 0.95, math.sqrt(1.125))
    assert interval == pytest.approx(ends, abs=1e-6)
    assert math.isnan(correlation_interval(0.5, 3, 0.95, 1.0).low)
    assert math.isnan(correlation_interval(1.0, 9, 0.95, 1.0).low)
