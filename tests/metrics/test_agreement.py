"""A judge against people: values by hand, laws, and other implementations as second source."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pairs import COLOURS, GRADES, from_confusion, make_pairs
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

import workbench
from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.comparison import compare
from workbench.scale import Scale


def test_two_by_two_example_by_hand() -> None:
    """20 + 15 of 50 agree; chance gives 0.5, so kappa is (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    found = agreement(from_confusion([[20, 5], [10, 15]]))
    assert (found.n, found.baseline) == (50, 0.5)
    assert (found.accuracy, found.kappa) == pytest.approx((0.7, 0.4))
    assert found.mean_distance == pytest.approx(0.3)
    assert (found.confusion.loc["no", "yes"], found.confusion.loc["yes", "no"]) == (5, 10)
    assert found.confusion_shares.loc["no"].tolist() == [0.8, 0.2]
    assert found.class_shares["judge"].tolist() == [0.6, 0.4]
    assert (found.false_positives, found.false_negatives) == (5, 10)
    rates = (found.false_positive_rate, found.false_negative_rate)
    assert rates == pytest.approx((0.2, 0.4))
    assert (found.true_negative_rate, found.true_positive_rate) == pytest.approx((0.8, 0.6))
    assert found.per_class is not None
    assert found.per_class.loc["yes"].tolist() == pytest.approx([0.75, 0.6, 2 / 3, 25])


def test_confusion_follows_the_scale_from_worst_to_best_and_shows_unused_classes() -> None:
    found = agreement(make_pairs(["good", "poor"], ["excellent", "poor"], GRADES))
    assert list(found.confusion.index) == ["poor", "fair", "good", "excellent"]
    assert list(found.confusion.columns) == list(found.confusion.index)
    assert found.confusion.loc["good", "excellent"] == 1
    assert found.mean_distance == pytest.approx(1 / 6)
    assert found.confusion.to_numpy().sum() == 2
    booleans = agreement(make_pairs([True, False], [True, True], Scale.from_type(bool)))
    assert booleans.confusion.loc[False, True] == booleans.false_positives == 1


def test_undefined_is_nan_and_not_zero() -> None:
    """No pairs, one value throughout, a class never predicted, a class never labelled."""
    empty = agreement(make_pairs([], []))
    values = [empty.accuracy, empty.kappa, empty.mean_distance, empty.baseline]
    assert all(map(math.isnan, [*values, empty.accuracy_interval.low]))
    assert (empty.n, empty.confusion.to_numpy().sum()) == (0, 0)
    same = agreement(make_pairs(["yes"] * 5, ["yes"] * 5))
    assert same.accuracy == 1
    assert math.isnan(same.kappa)
    assert math.isnan(same.kappa_interval.low)
    assert math.isnan(same.false_positive_rate or 0)
    assert same.per_class is not None
    assert same.per_class.loc["no"].isna().tolist() == [True, True, True, False]
    never = agreement(make_pairs(["yes", "no"], ["no", "no"]))
    assert never.per_class is not None
    assert math.isnan(never.per_class.loc["yes", "precision"])
    assert (never.per_class.loc["yes", "recall"], never.kappa) == (0, 0)


def test_weighted_kappa_counts_near_misses_less_and_only_where_there_is_an_order() -> None:
    near = make_pairs(
        ["poor", "fair", "good", "excellent"] * 5, ["fair", "fair", "good", "good"] * 5, GRADES
    )
    found = agreement(near)
    assert found.weights == "quadratic"
    assert (found.weighted_kappa or 0) > found.kappa
    weights: Literal["linear", "quadratic"]
    for weights in ("linear", "quadratic"):
        reference = cohens_kappa(found.confusion.to_numpy(), wt=weights, return_results=False)
        assert agreement(near, weights=weights).weighted_kappa == pytest.approx(reference)
    assert agreement(make_pairs(["yes", "no"], ["yes", "no"])).weighted_kappa is None
    with pytest.raises(ArgumentError, match="need a scale with an order"):
        agreement(make_pairs(["red"], ["red"], COLOURS), weights="linear")
    with pytest.raises(ArgumentError, match="weights"):
        agreement(near, weights="cubic")  # type: ignore[arg-type]


def test_numbers_have_error_and_correlation_and_a_confusion_in_bins() -> None:
    human = [float(v) for v in np.linspace(0, 10, 50)]
    found = agreement(make_pairs(human, [v + 1 for v in human], Scale("numeric")))
    assert (found.mae, found.pearson, found.spearman) == pytest.approx((1, 1, 1))
    assert found.accuracy == 0
    assert found.confusion.shape == (10, 10)
    assert found.confusion.to_numpy().sum() == 50
    assert found.per_class is None
    few = agreement(make_pairs([1, 2, 3], [1, 2, 2], Scale("numeric", integer=True)))
    assert few.confusion.loc[3, 2] == 1
    constant = agreement(make_pairs([1, 2, 3], [2, 2, 2], Scale("numeric")))
    assert math.isnan(constant.pearson or 0)
    assert constant.mae == pytest.approx(2 / 3)


def test_intervals_contain_the_estimate_and_follow_the_seed() -> None:
    pairs = from_confusion([[20, 5], [10, 15]])
    found = agreement(pairs, seed=3)
    assert found.kappa in found.kappa_interval
    assert found.accuracy in found.accuracy_interval
    assert agreement(pairs, seed=3).kappa_interval == found.kappa_interval
    assert agreement(pairs, seed=4).kappa_interval != found.kappa_interval
    assert agreement(pairs, seed=-3).kappa_interval != found.kappa_interval
    assert agreement(pairs, confidence=0.99).kappa_interval.low < found.kappa_interval.low
    with pytest.raises(ArgumentError, match="confidence"):
        agreement(pairs, confidence=95)


def test_kappa_interval_agrees_with_the_asymptotic_one_on_many_items_in_a_moment() -> None:
    """On 1,487 pairs the bootstrap is near Fleiss' large-sample standard error."""
    pairs = from_confusion([[582, 89], [137, 679]])
    reference = cohens_kappa(np.array([[582, 89], [137, 679]]))
    begin = time.perf_counter()
    found = agreement(pairs)
    assert time.perf_counter() - begin < 1
    expected = (reference.kappa_low, reference.kappa_upp)
    assert found.kappa_interval == pytest.approx(expected, abs=0.005)


def test_full_agreement_on_few_items_is_not_certainty() -> None:
    found = agreement(make_pairs(["yes", "no"] * 5, ["yes", "no"] * 5))
    assert (found.kappa, found.kappa_interval.high) == (1, 1)
    assert 0.2 < found.kappa_interval.low < 0.6
    assert found.mean_distance_interval.high > 0.2


def test_a_value_off_the_scale_is_an_error_that_names_it() -> None:
    with pytest.raises(ArgumentError, match="human value 'maybe'"):
        agreement(make_pairs(["maybe"], ["yes"]))


def test_results_are_json_on_a_line() -> None:
    for pairs in (from_confusion([[2, 1], [0, 3]]), make_pairs([], [])):
        found = agreement(pairs)
        json.dumps(found.to_dict(), allow_nan=False)
        assert "\n" not in repr(found)
        assert found._repr_html_().count("<table") == 3


def test_metrics_load_no_heavy_package() -> None:
    """Only numpy and pandas: statistics packages are loaded where they are used."""
    code = (
        "import sys, workbench.metrics.comparison, workbench.metrics.annotators; "
        "print([m for m in ('mlflow', 'scipy', 'statsmodels', 'matplotlib', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert workbench.agreement is agreement


# -- laws ---------------------------------------------------------------------------------------

ratings = st.lists(st.tuples(*[st.sampled_from(GRADES.values)] * 2), min_size=1, max_size=40)
Rows = list[tuple[str, str]]


def measured(rows: Rows) -> Any:
    return agreement(make_pairs([h for h, _ in rows], [j for _, j in rows], GRADES), resamples=10)


@settings(max_examples=30, deadline=None)
@given(ratings)
def test_kappa_is_symmetric_bounded_and_equals_sklearns(rows: Rows) -> None:
    found, swapped = measured(rows), measured([(j, h) for h, j in rows])
    one = (found.kappa, found.weighted_kappa)
    assert one == pytest.approx((swapped.kappa, swapped.weighted_kappa), nan_ok=True)
    if math.isnan(one[0]):
        assert len({value for row in rows for value in row}) == 1
        return
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for value in one)
    ranks = [[GRADES.values.index(row[side]) for row in rows] for side in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = cohen_kappa_score(*ranks)
        weighted = cohen_kappa_score(*ranks, labels=range(4), weights="quadratic")
    assert one == pytest.approx((plain, weighted))
    table = found.confusion.to_numpy()
    assert table.sum() == found.per_class["support"].sum() == len(rows) == found.n
    assert np.trace(table) / len(rows) == pytest.approx(found.accuracy)
    assert 0 <= found.mean_distance <= 1 - found.accuracy + 1e-9


def test_repetitions_of_an_item_are_no_more_evidence() -> None:
    """Each item ten times over gives the interval of the items, and not of the rows."""
    once = make_pairs(["yes", "no", "yes", "no", "yes"] * 4, ["yes", "no", "no", "no", "yes"] * 4)
    rows = pd.concat([once.table] * 10, ignore_index=True)
    rows["trace_id"] = [f"t{i:03}" for i in range(len(rows))]
    texts = {i: (f"question {k % 20}", "answer") for k, i in enumerate(rows["trace_id"])}
    repeated = replace(once, table=rows, previews=texts)
    one, ten = agreement(once), agreement(repeated)
    assert (ten.n, ten.distinct, ten.accuracy) == (200, 20, one.accuracy)
    assert ten.accuracy_interval == pytest.approx(one.accuracy_interval)
    assert ten.kappa_interval.low < ten.kappa - 0.1
    worse = replace(repeated, table=rows.assign(judge="yes"))
    assert compare(worse, repeated).p_value == pytest.approx(
        compare(replace(once, table=once.table.assign(judge="yes")), once).p_value
    )
