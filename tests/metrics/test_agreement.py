"""A judge against people: values by hand, laws, and other implementations as second source."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import COLOURS, GRADES, YES_NO, from_confusion, make_pairs
from scipy.stats import bootstrap, pearsonr, spearmanr
from sklearn.metrics import (
    cohen_kappa_score,
    matthews_corrcoef,
    mean_absolute_error,
    precision_recall_fscore_support,
)
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

import workbench
from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.comparison import compare
from workbench.scale import Scale
from workbench.store.traces import contents


def test_two_by_two_example_by_hand() -> None:
    """20 + 15 of 50 agree; chance gives 0.5, so kappa is (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    found = agreement(from_confusion([[20, 5], [10, 15]]))
    assert (found.n, found.baseline) == (50, 0.5)
    assert (found.accuracy, found.kappa) == pytest.approx((0.7, 0.4))
    assert found.mean_distance == pytest.approx(0.3)
    low, high = found.accuracy_interval
    assert found.mean_distance_interval == pytest.approx((1 - high, 1 - low))
    assert (found.confusion.loc["no", "yes"], found.confusion.loc["yes", "no"]) == (5, 10)
    assert found.confusion_shares.loc["no"].tolist() == [0.8, 0.2]
    assert found.class_shares["judge"].tolist() == [0.6, 0.4]
    assert (found.false_positives, found.false_negatives) == (5, 10)
    rates = (found.false_positive_rate, found.false_negative_rate)
    assert rates == pytest.approx((0.2, 0.4))
    assert found.per_class is not None
    figures = found.per_class.loc["yes", ["precision", "recall", "f1", "support"]]
    assert figures.tolist() == pytest.approx([0.75, 0.6, 2 / 3, 25])


def test_numbers_with_gaps_are_as_far_apart_as_their_difference() -> None:
    """As scikit-learn has it of the numbers 1 to 5; the confusion matrix shows those in use."""
    human, judge = [5, 5, 5, 1, 2], [2, 2, 2, 1, 1]
    found = agreement(make_pairs(human, judge, Scale.from_values([1, 2, 5])), weights="quadratic")
    assert (found.mae, found.within_one) == (2.0, 0.4)
    assert found.bias == pytest.approx(-2.0)
    known = cohen_kappa_score(human, judge, labels=[1, 2, 3, 4, 5], weights="quadratic")
    assert found.weighted_kappa == pytest.approx(known)
    assert list(found.confusion.index) == [1, 2, 5]


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
    assert math.isnan(empty.coverage)
    same = agreement(make_pairs(["yes"] * 5, ["yes"] * 5))
    assert same.accuracy == 1
    assert math.isnan(same.kappa)
    assert math.isnan(same.kappa_interval.low)
    assert math.isnan(same.false_positive_rate or 0)
    assert same.per_class is not None
    assert same.per_class.loc["no", ["precision", "recall", "f1"]].isna().all()
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
    assert (found.mae, found.bias, found.pearson, found.spearman) == pytest.approx((1, 1, 1, 1))
    assert found.ac1 is None
    assert found.accuracy == 0
    assert repr(found).endswith("mean distance 0.091 [0.084, 0.156], Pearson correlation 1.000>")
    assert found.confusion.shape == (10, 10)
    assert found.confusion.to_numpy().sum() == 50
    assert found.per_class is None
    few = agreement(make_pairs([1, 2, 3], [1, 2, 2], Scale("numeric", integer=True)))
    assert few.confusion.loc[3, 2] == 1
    constant = agreement(make_pairs([1, 2, 3], [2, 2, 2], Scale("numeric")))
    assert math.isnan(constant.pearson or 0)
    assert constant.mae == pytest.approx(2 / 3)


@pytest.mark.parametrize(("name", "function"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_few_but_large_errors_leave_a_correlation_uncertain(name: str, function: Any) -> None:
    """By about as much as a bootstrap says."""
    rng = np.random.default_rng(0)
    human = rng.integers(0, 11, 400)
    judge = np.where(rng.random(400) < 0.9, human, rng.integers(0, 11, 400))
    found = agreement(make_pairs(human.tolist(), judge.tolist(), Scale("numeric", low=0, high=10)))
    drawn = bootstrap(
        (human, judge), lambda *both: function(*both).statistic, paired=True, vectorized=False,
        n_resamples=500, rng=1,
    )  # fmt: skip
    ends = drawn.confidence_interval
    assert getattr(found, f"{name}_interval") == pytest.approx((ends.low, ends.high), abs=0.02)


def test_intervals_contain_the_estimate_and_follow_the_seed() -> None:
    pairs = from_confusion([[20, 5], [10, 15]])
    found = agreement(pairs, seed=3)
    assert found.kappa in found.kappa_interval
    assert found.accuracy in found.accuracy_interval
    assert agreement(pairs, seed=3).kappa_interval == found.kappa_interval
    assert agreement(pairs, seed=4).kappa_interval != found.kappa_interval
    assert agreement(pairs, confidence=0.99).kappa_interval.low < found.kappa_interval.low
    wrong: Any
    for wrong, said in (
        ({"confidence": 95}, "confidence=95"),
        ({"confidence": "0.95"}, "confidence='0.95'"),
        ({"seed": None}, "seed=None"),
    ):
        with pytest.raises(ArgumentError, match=said):
            agreement(pairs, **wrong)
    for wrong in (pairs.table, None):
        with pytest.raises(ArgumentError, match="agreement takes what"):
            agreement(wrong)


def test_kappa_interval_agrees_with_the_asymptotic_one_on_many_items() -> None:
    """On 1,487 pairs the bootstrap is near Fleiss' large-sample standard error."""
    pairs = from_confusion([[582, 89], [137, 679]])
    reference = cohens_kappa(np.array([[582, 89], [137, 679]]))
    found = agreement(pairs)
    expected = (reference.kappa_low, reference.kappa_upp)
    assert found.kappa_interval == pytest.approx(expected, abs=0.005)


def test_full_agreement_on_few_items_is_not_certainty() -> None:
    found = agreement(make_pairs(["yes", "no"] * 5, ["yes", "no"] * 5))
    assert (found.kappa, found.kappa_interval.high) == (1, 1)
    assert 0.2 < found.kappa_interval.low < 0.6
    assert found.mean_distance_interval.high > 0.2


def test_results_are_json_on_a_line() -> None:
    for pairs in (from_confusion([[2, 1], [0, 3]]), make_pairs([], [])):
        found = agreement(pairs)
        json.dumps(found.to_dict(), allow_nan=False)
        assert "\n" not in repr(found)
        assert found._repr_html_().count("<table") == 3


def test_metrics_load_no_heavy_package() -> None:
    """Statsmodels and its like take seconds, and are loaded where they are used."""
    code = (
        "import sys, workbench.metrics.comparison, workbench.metrics.annotators; "
        "print([m for m in ('statsmodels', 'matplotlib', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert workbench.agreement is agreement


def test_kappa_collapses_where_one_class_is_rare_and_that_is_said() -> None:
    """Feinstein and Cicchetti's paradox: 118, 5, 2, 0 agree on 94 %, with kappa -0.02, AC1 0.94."""
    found = agreement(from_confusion([[118, 5], [2, 0]]))
    assert found.accuracy == pytest.approx(0.944)
    assert found.kappa == pytest.approx(-0.0234, abs=5e-5)
    assert found.ac1 == pytest.approx(0.9408, abs=5e-5)
    assert "Kappa is only -0.02" in found.notes[0]
    assert "98% of the labels are 'no'" in found.notes[0]
    assert found.notes[0] in found._repr_html_().replace("&#x27;", "'")
    assert agreement(from_confusion([[50, 3], [4, 50]])).notes == ()
    assert found.notes[0] in str(found)
    whole = Scale.from_type(int)
    ratings = agreement(make_pairs([5] * 95 + [1, 2, 3, 4, 1], [5] * 92 + [4] * 3 + [5] * 5, whole))
    assert "Kappa is only" in ratings.notes[0]
    assert ratings.ac2 > ratings.ac1 > 0.9
    assert math.isnan(agreement(make_pairs([3] * 30, [3] * 30, whole)).ac1)
    nothing_rare = agreement(make_pairs(["yes"] * 30, ["yes"] * 30))
    assert "Kappa is undefined although" in nothing_rare.notes[0]


def test_errors_on_a_scale_with_an_order_have_a_sign() -> None:
    """Errors of 1, 1, 2 and 0 steps upwards and one of 1 downwards."""
    found = agreement(
        make_pairs(
            ["poor", "fair", "poor", "good", "good"],
            ["fair", "good", "good", "good", "fair"],
            GRADES,
        )
    )
    assert (found.mae, found.bias, found.within_one) == pytest.approx((1, 0.6, 0.8))
    assert found.within_one_interval == pytest.approx(proportion_confint(4, 5, method="wilson"))
    assert found.bias_interval is not None
    assert found.bias in found.bias_interval
    assert agreement(from_confusion([[5, 1], [1, 5]])).bias is None
    unit = agreement(make_pairs([0.2, 0.4], [0.3, 0.3], Scale("numeric", low=0, high=1)))
    assert unit.undefined["within one"] == "the scale spans no more than one"


def test_every_figure_that_is_undefined_has_its_reason() -> None:
    same = agreement(make_pairs(["yes"] * 5, ["yes"] * 5))
    assert same.undefined["kappa"] == "people or the judge say the same throughout"
    assert same.undefined["false positive rate"] == "no human label is 'no'"
    assert same.ac1 == 1
    assert same.table.loc["kappa", "note"] == same.undefined["kappa"]
    counts = agreement(from_confusion([[5, 2], [1, 3]])).table["n"]
    rates = ["accuracy", "false positive rate", "false negative rate", "coverage"]
    assert counts[rates].tolist() == [11, 7, 4, 11]
    constant = agreement(make_pairs(["yes", "no"], ["no", "no"]))
    assert constant.undefined["Matthews correlation"] == same.undefined["kappa"]
    empty = agreement(make_pairs([], [], GRADES))
    assert set(empty.undefined.values()) == {"there are no pairs"}
    assert set(empty.figures) <= set(empty.undefined)
    exact = agreement(make_pairs([3.0] * 4, [3.0] * 4, Scale("numeric")))
    assert exact.undefined["bias"].startswith("no interval")
    offset = agreement(make_pairs([1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0], Scale("numeric")))
    assert (offset.bias, offset.pearson) == pytest.approx((1, 1))
    assert "Pearson correlation" in offset.undefined
    assert offset.bias_interval == pytest.approx((1 - 0.49 * 5, 1 + 0.49 * 3), abs=0.001)
    one = agreement(make_pairs(["fair"], ["good"], GRADES))
    assert (one.n, one.accuracy, one.mae) == (1, 0, 1)
    for found in (same, constant, empty, exact, offset, one):
        unsaid = found.table[found.table["note"] == ""]
        assert unsaid[["value", "low", "high"]].notna().all(axis=None)
        json.dumps(found.to_dict(), allow_nan=False)


def test_coverage_counts_what_the_judge_left_open_and_not_what_people_did() -> None:
    reasons = ["the judge abstained", "the judge failed: no answer", "no verdict",
               "verdict outside the scale: 'maybe'", "no label", "annotators tie"]  # fmt: skip
    excluded = pd.DataFrame({"trace_id": list("abcdef"), "reason": reasons})
    found = agreement(replace(from_confusion([[6, 0], [0, 6]]), excluded=excluded))
    assert (found.abstentions, found.failures) == (1, 2)
    assert found.notes[0].startswith("Left out: 1 item on which annotators differ.")
    assert (found.labelled, found.coverage) == (16, 12 / 16)
    assert found.coverage_interval == pytest.approx(proportion_confint(12, 16, method="wilson"))
    # Four copies each of four items, one of which the judge left open.
    pairs, lost = from_confusion([[6, 0], [0, 6]]), excluded.iloc[:4]
    ids = [*pairs.trace_ids, *lost["trace_id"]]
    copies = {i: (str(k // 4), "") for k, i in enumerate(ids)}
    found = agreement(replace(pairs, excluded=lost, content=copies))
    assert found.coverage_interval == pytest.approx(proportion_confint(3, 4, method="wilson"))


def test_intervals_of_a_class_are_wilsons() -> None:
    found = agreement(from_confusion([[20, 5], [10, 15]]))
    assert found.per_class is not None
    row, jaccard = found.per_class.loc["yes"], proportion_confint(15, 30, method="wilson")
    for name, ends in (
        ("precision", proportion_confint(15, 20, method="wilson")),
        ("recall", proportion_confint(15, 25, method="wilson")),
        ("f1", [2 * j / (1 + j) for j in jaccard]),
    ):
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(ends))


def test_groups_widen_the_intervals() -> None:
    """Answers to one question stand or fall together: forty rows are ten questions."""
    human = [v for v in ["yes", "no"] * 5 for _ in range(4)]
    pairs = make_pairs(human, ["no"] * 12 + human[12:])
    groups = {i: k // 4 for k, i in enumerate(pairs.trace_ids)}
    loose, tied = agreement(pairs), agreement(pairs, groups=groups)
    assert tied.accuracy == loose.accuracy == pytest.approx(32 / 40)
    assert tied.accuracy_interval == pytest.approx(proportion_confint(8, 10, method="wilson"))
    for name in ("kappa", "AC1", "Matthews correlation"):
        (_, one), (_, two) = loose.figures[name], tied.figures[name]
        assert two.high - two.low > 1.5 * (one.high - one.low)


def test_one_away_is_one_away_whatever_the_rounding() -> None:
    """0.1 + 1 is no number that a computer holds."""
    human = [round(1 + k / 10, 1) for k in range(60)]
    found = agreement(make_pairs(human, [round(v + 1, 1) for v in human], Scale("numeric")))
    assert found.within_one == 1.0


def test_numbers_without_end_are_measured_without_comparing_each_value() -> None:
    rng = np.random.default_rng(0)
    human = rng.normal(size=6000)
    judge = human + rng.normal(size=6000)
    found = agreement(make_pairs(list(human), list(judge), Scale("numeric")), resamples=200)
    assert math.isnan(found.kappa)
    assert "see the quadratic one" in found.undefined["kappa"]
    expected = ((human[:, None] - judge[None, :]) ** 2).mean()
    assert found.weighted_kappa == pytest.approx(1 - ((human - judge) ** 2).mean() / expected)
    assert found.weighted_kappa_interval is not None
    assert found.weighted_kappa in found.weighted_kappa_interval


# -- laws ---------------------------------------------------------------------------------------

ratings = st.lists(st.tuples(*[st.sampled_from(GRADES.values)] * 2), min_size=1, max_size=40)
Rows = list[tuple[str, str]]


def measured(rows: Rows) -> Any:
    return agreement(make_pairs([h for h, _ in rows], [j for _, j in rows], GRADES), resamples=10)


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


@pytest.mark.parametrize(
    "scale",
    [
        GRADES,
        Scale.of([6, 4, 1], ordered=True),
        Scale.of(["red", "blue", "green"]),
        Scale("numeric", low=0, high=10),
        Scale("numeric"),
    ],
)
def test_the_mean_distance_is_that_of_the_scale(scale: Scale) -> None:
    values = scale.values or (0.0, 2.5, 4.0, 12.0)
    human, judge = zip(*itertools.product(values, values), strict=True)
    found = agreement(make_pairs(human, judge, scale), resamples=10)
    measure = scale.with_range(values).distance
    assert found.mean_distance == pytest.approx(np.mean([*map(measure, human, judge)]))


def test_weighted_coefficients_are_those_of_irrcac() -> None:
    """Two raters on five grades: what the package irrCAC 0.4.4 gives, weights quadratic."""
    human = [1, 2, 3, 4, 5, 3, 3, 2, 4, 4, 5, 1, 2, 2, 3, 5, 4, 1, 3, 2, 4, 5, 5, 1]
    judge = [1, 2, 2, 4, 4, 3, 5, 2, 4, 3, 5, 1, 1, 2, 3, 5, 4, 2, 3, 4, 4, 5, 4, 3]
    found = agreement(make_pairs(human, judge, Scale.of([1, 2, 3, 4, 5], ordered=True)))
    expected = {"ac1": 0.5320877335, "ac2": 0.8164435946}
    expected |= {"kappa": 0.5294117647, "weighted_kappa": 0.7890625}
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, abs=1e-9)


def gwet_by_items(rows: Rows, *, quadratic: bool) -> float:
    """AC1 or AC2 from the items' own sums, as Gwet's handbook has them for any raters."""
    size, items = len(GRADES.values), [[GRADES.values.index(v) for v in row] for row in rows]
    weights = [
        [1 - (k - m) ** 2 / (size - 1) ** 2 if quadratic else float(k == m) for m in range(size)]
        for k in range(size)
    ]
    agreed = sum(weights[h][j] for h, j in items) / len(items)
    shares = [sum(row.count(k) for row in items) / (2 * len(items)) for k in range(size)]
    total = sum(map(sum, weights))
    chance = total / (size * (size - 1)) * sum(p * (1 - p) for p in shares)
    return (agreed - chance) / (1 - chance)


@given(ratings)
def test_gwets_coefficients_are_those_of_the_handbook_and_symmetric(rows: Rows) -> None:
    found, swapped = measured(rows), measured([(j, h) for h, j in rows])
    both = (found.ac1, found.ac2)
    assert both == pytest.approx((swapped.ac1, swapped.ac2))
    assert both == pytest.approx([gwet_by_items(rows, quadratic=q) for q in (False, True)])
    assert max(both) <= 1 + 1e-9
    assert found.ac1 >= -1  # chance may agree nearly always where near misses count
    assert found.bias == pytest.approx(-swapped.bias)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_binary_figures_equal_sklearns(rows: list[tuple[int, int]]) -> None:
    truth, judge = [row[0] for row in rows], [row[1] for row in rows]
    words = [[YES_NO.values[v] for v in side] for side in (truth, judge)]
    found = agreement(make_pairs(*words), resamples=10)
    assert found.per_class is not None
    assert found.matthews is not None
    if not math.isnan(found.matthews):
        assert found.matthews == pytest.approx(matthews_corrcoef(truth, judge))
    reference = precision_recall_fscore_support(truth, judge, labels=[0, 1], zero_division=np.nan)
    ours = found.per_class[["precision", "recall", "f1"]].to_numpy().T
    assert ours == pytest.approx(np.array(reference[:3]), nan_ok=True)
    for name, (value, interval) in found.figures.items():
        inside = math.isnan(value) or math.isnan(interval.low) or value in interval
        assert inside, name
    ranks = agreement(make_pairs(truth, judge, Scale("ordinal", (0, 1))), resamples=10)
    assert ranks.mae == pytest.approx(mean_absolute_error(truth, judge))


def test_repetitions_of_an_item_are_no_more_evidence() -> None:
    """Each item ten times over gives the interval of the items, and not of the rows."""
    once = make_pairs(["yes", "no", "yes", "no", "yes"] * 4, ["yes", "no", "no", "no", "yes"] * 4)
    rows = pd.concat([once.table] * 10, ignore_index=True)
    rows["trace_id"] = [f"t{i:03}" for i in range(len(rows))]
    texts = {i: (f'{{"question": {k % 20}}}', "answer") for k, i in enumerate(rows["trace_id"])}
    repeated = replace(once, table=rows, content=contents(texts))
    one, ten = agreement(once), agreement(repeated)
    assert (ten.n, ten.accuracy) == (200, one.accuracy)
    assert ten.accuracy_interval == pytest.approx(one.accuracy_interval)
    assert ten.kappa_interval.low < ten.kappa - 0.1
    # Of a conversation MLflow keeps the last message, of a long text the beginning.
    for cut in (
        ("thanks", "You're welcome!"),
        ('{"text": "Once upon a ...', "yes"),
        ("{}", "a..."),
    ):
        assert not contents({"t1": cut})
    worse = replace(repeated, table=rows.assign(judge="yes"))
    assert compare(worse, repeated).p_value == pytest.approx(
        compare(replace(once, table=once.table.assign(judge="yes")), once).p_value
    )


def test_a_mean_of_distances_is_never_negative() -> None:
    """Student's interval of few errors would begin below 0."""
    found = agreement(make_pairs(["good"] * 30, ["good"] * 29 + ["fair"], GRADES))
    low, high = found.figures["mean absolute error"][1]
    assert low == 0 < 1 / 30 < high
    assert found.figures["bias"][1].low < -1 / 30
