"""Intervals: published values, laws, and what leaves them undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm
from scipy.stats import t as student
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from workbench.metrics.intervals import (
    Bootstrap,
    Interval,
    figure,
    mean_interval,
    paired_difference,
    proportion,
    wilson,
)


def test_wilson_equals_statsmodels() -> None:
    for successes, n in ((8, 10), (0, 5), (5, 5), (1, 1000)):
        reference = proportion_confint(successes, n, alpha=0.05, method="wilson")
        assert wilson(successes, n) == pytest.approx(reference, abs=1e-12)
    assert math.isnan(wilson(0, 0).low)


@given(st.integers(1, 400), st.data(), st.floats(0.5, 0.999))
def test_wilson_lies_in_the_unit_interval_and_holds_the_estimate(
    n: int, data: st.DataObject, confidence: float
) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n, confidence)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1


def test_paired_difference_gives_newcombes_published_interval() -> None:
    """Newcombe 1998, method 10, cells 36, 12, 2, 0: 0.0569 to 0.3404."""
    assert paired_difference(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert math.isnan(paired_difference(0, 0, 0, 0).low)


@given(*[st.integers(0, 25)] * 4)
def test_paired_difference_is_antisymmetric_and_holds_the_estimate(
    both: int, first: int, second: int, neither: int
) -> None:
    n = both + first + second + neither
    if n == 0:
        return
    low, high = paired_difference(both, first, second, neither)
    assert -1 <= low <= (second - first) / n + 1e-12
    assert (second - first) / n - 1e-12 <= high <= 1
    mirrored = paired_difference(both, second, first, neither)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((low, high))


def test_the_bootstrap_of_a_proportion_is_near_its_standard_error() -> None:
    """300 of 1,000: 0.3 with a standard error of 0.0145."""
    bootstrap = Bootstrap(np.array([700, 300]), resamples=4000, seed=1, confidence=0.95)
    low, high = bootstrap.interval(lambda counts: counts[:, 1] / 1000)
    assert (low, high) == pytest.approx((0.3 - 1.96 * 0.0145, 0.3 + 1.96 * 0.0145), abs=0.002)


def test_the_bootstrap_of_two_cells_is_a_beta_distribution() -> None:
    """Weights of 3 and 17 items, with a prior of one half each."""
    counts = np.array([3, 17])
    bootstrap = Bootstrap(counts, resamples=200_000, seed=1, confidence=0.95, prior=0.5)
    low, high = bootstrap.interval(lambda drawn: drawn[:, 0] / drawn.sum(axis=1))
    half = student.ppf(0.975, 19) * math.sqrt(21 / 19)
    reference = beta(3.5, 17.5).ppf(norm.cdf([-half, half]))
    assert (low, high) == pytest.approx(tuple(reference), abs=0.006)


def test_groups_are_weighed_as_wholes() -> None:
    """Ten groups of four that are all right or all wrong vary as ten items do."""
    rows = np.repeat(np.arange(10), 4), np.repeat([0, 1], [28, 12])
    options = {"resamples": 50_000, "seed": 1, "confidence": 0.95}
    grouped = Bootstrap(np.array([28, 12]), rows=rows, **options)  # type: ignore[arg-type]
    alone = Bootstrap(np.array([7, 3]), **options)  # type: ignore[arg-type]
    ends = [each.interval(lambda d: d[:, 0] / d.sum(axis=1)) for each in (grouped, alone)]
    assert tuple(ends[0]) == pytest.approx(tuple(ends[1]), abs=0.015)
    assert grouped.n == 10


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=40))
def test_the_interval_of_a_mean_follows_from_a_cluster_robust_variance(
    rows: list[tuple[int, int]],
) -> None:
    """It is no shorter than if rows of a group were independent."""
    values = np.array([value for value, _ in rows], dtype=float)
    groups = np.array([group for _, group in rows])
    among = len(set(groups.tolist()))
    if np.ptp(values) == 0 or among < 2:
        assert math.isnan(mean_interval(values, 0.95, groups).low)
        return
    fit = OLS(values, np.ones(len(values)))
    kwargs = {"groups": groups, "use_correction": False}
    clustered = fit.fit(cov_type="cluster", cov_kwds=kwargs).bse[0]
    error = max(clustered, fit.fit(cov_type="HC0").bse[0]) * math.sqrt(among / (among - 1))
    half = student.ppf(0.975, among - 1) * error
    ends = values.mean() - half, values.mean() + half
    assert mean_interval(values, 0.95, groups) == pytest.approx(ends)


@pytest.mark.parametrize(("among", "least"), [(2, 0.9), (4, 0.93), (10, 0.92)])
def test_few_groups_are_covered(among: int, least: float) -> None:
    """Shares that vary from group to group, as answers to a question or labels of a person do."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(among), 20)
    covered = []
    for _ in range(400):
        shares = rng.beta(1.5, 1.5, size=among)
        _, interval = proportion(rng.random(len(groups)) < shares[groups], groups, 0.95)
        covered.append(0.5 in interval)
    assert np.mean(covered) >= least


def test_one_group_is_worth_one_item() -> None:
    hits, group = np.array([True, False] * 50), np.zeros(100, dtype=int)
    assert proportion(hits, group, 0.95)[1] == wilson(0.5, 1)
    assert math.isnan(mean_interval(hits.astype(float), 0.95, group).low)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    reference = DescrStatsW(values).tconfint_mean()
    assert mean_interval(values, 0.95) == pytest.approx(reference)
    together = np.array([0, 0, 1, 2])
    narrow, wide = mean_interval(values, 0.95), mean_interval(values, 0.95, together)
    assert wide.high - wide.low > narrow.high - narrow.low
    copies, of = np.repeat(values, 3), np.repeat(np.arange(4), 3)
    assert mean_interval(copies, 0.95, of) == pytest.approx(reference)
    assert math.isnan(mean_interval(values[:1], 0.95).low)
    assert math.isnan(mean_interval(np.ones(5), 0.95).low)
    assert math.isnan(mean_interval(np.array([0.3 - 0.1, 0.4 - 0.2]), 0.95).low)  # but for rounding


def test_a_bootstrap_is_undefined_where_resamples_say_nothing() -> None:
    """Without items, with half of the resamples undefined, and without spread."""
    options = {"resamples": 100, "seed": 0, "confidence": 0.95}
    empty = Bootstrap(np.array([], dtype=int), **options)  # type: ignore[arg-type]
    assert math.isnan(empty.interval(lambda counts: counts.sum(axis=1)).low)
    bootstrap = Bootstrap(np.array([5, 5]), **options)  # type: ignore[arg-type]
    assert math.isnan(bootstrap.interval(lambda counts: counts[:, 0] * np.nan).low)
    assert math.isnan(bootstrap.interval(lambda counts: counts.sum(axis=1)).low)


def test_figures_are_written_with_three_digits() -> None:
    assert figure(0.84799, Interval(0.8288, 0.8653)) == "0.848 [0.829, 0.865]"
    assert figure(0.1, Interval(-0.2, 0.3), sign=True) == "+0.100 [-0.200, +0.300]"
    assert (figure(0.5), figure(math.nan)) == ("0.500", "undefined")
