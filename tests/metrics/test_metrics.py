"""The agreement statistics: known values by hand or from papers, and laws that always hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import krippendorff
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

import workbench
from workbench.errors import ArgumentError, ScaleError
from workbench.metrics.agreement import agreement
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.coefficients import coincidences, fleiss_kappa, krippendorff_alpha, mcnemar
from workbench.metrics.comparison import compare
from workbench.metrics.intervals import paired_difference, wilson
from workbench.metrics.prevalence import lang_reiczigel, prevalence, rogan_gladen
from workbench.pairing.pairs import Pairs
from workbench.scale import ABSTAIN, Scale

YES_NO = Scale.of(["no", "yes"])
GRADES = Scale.from_type(Literal["excellent", "good", "fair", "poor"])
NOTHING = pd.DataFrame(columns=["trace_id", "reason"])
nan = math.nan


def make(
    human: list[Any], judge: list[Any], scale: Scale = YES_NO, votes: list[Any] | None = None
) -> Pairs:
    table = pd.DataFrame(
        {
            "trace_id": [f"t{i:04}" for i in range(len(human))],
            "human": pd.Series(human, dtype=object),
            "judge": pd.Series(judge, dtype=object),
            "human_rationale": "",
            "judge_rationale": "",
            "votes": pd.Series(votes or [{} for _ in human], dtype=object),
        }
    )
    return Pairs(name="q", table=table, excluded=NOTHING, scale=scale)


def from_confusion(table: list[list[int]], scale: Scale = YES_NO) -> Pairs:
    human, judge = [], []
    for i, row in enumerate(table):
        for j, count in enumerate(row):
            human += [scale.values[i]] * count
            judge += [scale.values[j]] * count
    return make(human, judge, scale)


# -- a judge against people -------------------------------------------------------------------


def test_two_by_two_example_by_hand() -> None:
    """20 + 15 of 50 agree; chance gives 0.5, so kappa is (0.7 - 0.5) / (1 - 0.5) = 0.4."""
    found = agreement(from_confusion([[20, 5], [10, 15]]))
    assert found.n == 50
    assert found.accuracy == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.confusion.loc["no", "yes"] == 5
    assert found.confusion.loc["yes", "no"] == 10
    assert (found.false_positives, found.false_negatives) == (5, 10)
    assert found.false_positive_rate == pytest.approx(0.2)
    assert found.false_negative_rate == pytest.approx(0.4)
    assert found.true_positive_rate == pytest.approx(0.6)
    assert found.true_negative_rate == pytest.approx(0.8)
    assert found.baseline == 0.5
    assert found.mean_distance == pytest.approx(0.3)
    assert found.per_class is not None
    assert found.per_class.loc["yes"].tolist() == pytest.approx([0.75, 0.6, 2 / 3, 25])


def test_confusion_follows_the_scale_from_worst_to_best_and_shows_unused_classes() -> None:
    found = agreement(make(["good", "poor"], ["excellent", "poor"], GRADES))
    assert list(found.confusion.index) == ["poor", "fair", "good", "excellent"]
    assert list(found.confusion.columns) == list(found.confusion.index)
    assert found.confusion.loc["good", "excellent"] == 1
    assert found.confusion.to_numpy().sum() == 2


def test_boolean_labels_index_the_confusion() -> None:
    found = agreement(make([True, False, True], [True, True, True], Scale.from_type(bool)))
    assert found.confusion.loc[False, True] == 1
    assert found.confusion.loc[True, True] == 2
    assert found.false_positives == 1


def test_undefined_is_nan_and_not_zero() -> None:
    """No pairs, one value throughout, a class never predicted, a class never labelled."""
    empty = agreement(make([], []))
    assert empty.n == 0
    for value in (empty.accuracy, empty.kappa, empty.mean_distance, empty.baseline):
        assert math.isnan(value)
    assert math.isnan(empty.accuracy_interval.low)
    assert empty.confusion.to_numpy().sum() == 0
    same = agreement(make(["yes"] * 5, ["yes"] * 5))
    assert same.accuracy == 1
    assert math.isnan(same.kappa)
    assert math.isnan(same.kappa_interval.low)
    assert math.isnan(same.false_positive_rate or 0)
    assert same.per_class is not None
    assert math.isnan(same.per_class.loc["no", "precision"])
    assert math.isnan(same.per_class.loc["no", "recall"])
    assert math.isnan(same.per_class.loc["no", "f1"])
    never = agreement(make(["yes", "no"], ["no", "no"]))
    assert never.per_class is not None
    assert math.isnan(never.per_class.loc["yes", "precision"])
    assert never.per_class.loc["yes", "recall"] == 0
    assert never.kappa == 0


def test_weighted_kappa_counts_near_misses_less_and_only_where_there_is_an_order() -> None:
    near = make(["poor", "fair", "good", "excellent"] * 5, ["fair", "fair", "good", "good"] * 5)
    near = make(list(near.table["human"]), list(near.table["judge"]), GRADES)
    found = agreement(near)
    assert found.weights == "quadratic"
    assert found.weighted_kappa is not None
    assert found.weighted_kappa > found.kappa
    table = found.confusion.to_numpy()
    for weights, kind in (("linear", "linear"), ("quadratic", "quadratic")):
        ours = agreement(near, weights=weights).weighted_kappa  # type: ignore[arg-type]
        theirs = cohens_kappa(table, wt=kind, return_results=False)
        assert ours == pytest.approx(theirs)
    assert agreement(make(["yes", "no"], ["yes", "no"])).weighted_kappa is None
    colours = Scale.of(["red", "green", "blue"], ordered=False)
    with pytest.raises(ArgumentError, match="need a scale with an order"):
        agreement(make(["red"], ["red"], colours), weights="linear")
    with pytest.raises(ArgumentError, match="weights"):
        agreement(near, weights="cubic")  # type: ignore[arg-type]


def test_mean_distance_gives_graded_credit() -> None:
    found = agreement(make(["poor", "poor"], ["fair", "excellent"], GRADES))
    assert found.mean_distance == pytest.approx((1 / 3 + 1) / 2)


def test_numbers_have_error_and_correlation_and_a_confusion_in_bins() -> None:
    human = [float(v) for v in np.linspace(0, 10, 50)]
    found = agreement(make(human, [v + 1 for v in human], Scale("numeric")))
    assert found.mae == pytest.approx(1)
    assert found.pearson == pytest.approx(1)
    assert found.spearman == pytest.approx(1)
    assert found.accuracy == 0
    assert found.confusion.shape == (10, 10)
    assert found.confusion.to_numpy().sum() == 50
    assert found.per_class is None
    few = agreement(make([1, 2, 3], [1, 2, 2], Scale("numeric", integer=True)))
    assert few.confusion.loc[3, 2] == 1
    constant = agreement(make([1, 2, 3], [2, 2, 2], Scale("numeric")))
    assert math.isnan(constant.pearson or 0)
    assert constant.mae == pytest.approx(2 / 3)


def test_intervals_contain_the_estimate_and_follow_the_seed() -> None:
    pairs = from_confusion([[20, 5], [10, 15]])
    found = agreement(pairs, seed=3)
    assert found.kappa in found.kappa_interval
    assert found.accuracy in found.accuracy_interval
    assert agreement(pairs, seed=3).kappa_interval == found.kappa_interval
    assert agreement(pairs, seed=4).kappa_interval != found.kappa_interval
    assert agreement(pairs, seed=-3).kappa_interval == agreement(pairs, seed=-3).kappa_interval
    assert agreement(pairs, seed=-3).kappa_interval != found.kappa_interval
    wide = agreement(pairs, confidence=0.99)
    assert wide.kappa_interval.low < found.kappa_interval.low
    with pytest.raises(ArgumentError, match="confidence"):
        agreement(pairs, confidence=95)


def test_kappa_interval_agrees_with_the_asymptotic_one_on_many_items() -> None:
    """On 1,487 pairs the bootstrap is near Fleiss' large-sample standard error."""
    table = [[582, 89], [137, 679]]
    found = agreement(from_confusion(table))
    reference = cohens_kappa(np.array(table))
    assert found.kappa_interval.low == pytest.approx(reference.kappa_low, abs=0.005)
    assert found.kappa_interval.high == pytest.approx(reference.kappa_upp, abs=0.005)


def test_full_agreement_on_few_items_is_not_certainty() -> None:
    found = agreement(make(["yes", "no"] * 5, ["yes", "no"] * 5))
    assert found.kappa == 1
    assert found.kappa_interval.high == 1
    assert 0.2 < found.kappa_interval.low < 0.6
    assert found.mean_distance_interval.high > 0.2


def test_agreement_is_fast() -> None:
    """1,487 pairs and 2,000 resamples take well under a second."""
    pairs = from_confusion([[582, 89], [137, 679]])
    agreement(pairs)
    start = time.perf_counter()
    agreement(pairs)
    assert time.perf_counter() - start < 1


def test_a_value_off_the_scale_is_an_error_that_names_it() -> None:
    with pytest.raises(ArgumentError, match="maybe"):
        agreement(make(["maybe"], ["yes"]))


def test_real_judgements_give_the_published_figures(openqa: Path) -> None:
    table = pd.read_csv(openqa)
    table.insert(0, "trace_id", [f"t{i:04}" for i in range(len(table))])
    judged = table[table["gpt4"].notna()]
    pairs = make(list(judged["human"]), list(judged["gpt4"]), Scale.of(["Yes", "No"]))
    found = agreement(pairs)
    assert found.n == 1487
    assert round(found.accuracy, 4) == 0.8480
    assert round(found.kappa, 3) == 0.695
    assert found.confusion.to_numpy().tolist() == [[582, 89], [137, 679]]
    people = annotator_agreement(table[["annotator1", "annotator2", "annotator3"]])
    first = people.pairwise.iloc[0]
    assert (first["n"], round(first["kappa"], 3)) == (1483, 0.735)


# -- before against after -----------------------------------------------------------------------


def test_compare_counts_fixed_and_broken_and_tests_them() -> None:
    human = ["yes"] * 20 + ["no"] * 20
    before = ["no"] * 8 + ["yes"] * 12 + ["no"] * 18 + ["yes"] * 2
    after = ["yes"] * 19 + ["no"] + ["no"] * 19 + ["yes"]
    found = compare(make(human, before), make(human, after))
    assert found.n == 40
    assert list(found.fixed.columns) == ["trace_id", "human", "before", "after"]
    assert (len(found.fixed), len(found.broken), len(found.still_wrong)) == (9, 1, 1)
    assert found.broken.iloc[0].tolist() == ["t0019", "yes", "yes", "no"]
    assert found.accuracy_change == pytest.approx(8 / 40)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert found.improved
    assert found.significant
    assert found.enough
    assert found.power_note == ""
    assert found.accuracy_change in found.accuracy_change_interval
    assert found.kappa_change in found.kappa_change_interval
    assert list(found.table.columns) == ["before", "after", "change"]
    assert {"accuracy", "kappa", "false positive rate"} <= set(found.table.index)
    assert found.changes["false negative rate"][0] == pytest.approx(1 / 20 - 8 / 20)
    assert "accuracy" in str(found)
    assert "rises from" in str(found)


def test_the_interval_of_a_change_is_that_of_a_paired_sample() -> None:
    """Two judges wrong on the same items differ by nothing, and the interval says so tightly."""
    human = ["yes", "no"] * 100
    judge = [v if i % 5 else ("no" if v == "yes" else "yes") for i, v in enumerate(human)]
    found = compare(make(human, judge), make(human, judge))
    assert math.isnan(found.kappa_change_interval.low)  # no resample could show a difference
    low, high = found.accuracy_change_interval
    assert (low, high) == pytest.approx((-high, high))
    assert high < 0.03
    assert not found.improved
    assert not found.significant
    assert "differ on 0 of 200" in found.power_note


def test_too_few_items_are_said_so() -> None:
    few = compare(make(["yes"] * 10, ["no"] * 3 + ["yes"] * 7), make(["yes"] * 10, ["yes"] * 10))
    assert few.improved
    assert not few.enough
    assert "10 pairs are too few" in few.power_note
    assert few.power_note in str(few)
    human = ["yes", "no"] * 50
    five = ["no" if i in range(0, 10, 2) else v for i, v in enumerate(human)]
    found = compare(make(human, five), make(human, human))
    assert len(found.fixed) == 5
    assert not found.significant
    assert not found.enough
    assert "fewer than 6" in found.power_note


def test_few_pairs_that_all_go_one_way_are_not_called_luck() -> None:
    human = ["yes", "no"] * 8
    found = compare(make(human, human[::-1]), make(human, human))
    assert found.significant
    assert not found.enough
    assert "hardly luck" in found.power_note
    assert "may be luck" not in str(found)


def test_a_gain_that_may_be_luck_is_said_so() -> None:
    human = ["yes", "no"] * 30
    before = ["no" if i < 12 else v for i, v in enumerate(human)]  # 6 wrong
    after = ["no" if 50 <= i < 54 else v for i, v in enumerate(human)]  # 2 others wrong
    found = compare(make(human, before), make(human, after))
    assert (len(found.fixed), len(found.broken)) == (6, 2)
    assert found.improved
    assert found.enough
    assert not found.significant
    assert "The gain may be luck: p = 0.29 is not below 0.05." in str(found)


def test_items_that_one_judge_only_judged_are_counted_and_listed() -> None:
    before, after = make(["yes", "no"], ["yes", "yes"]), make(["yes"], ["no"])
    found = compare(before, after)
    assert found.n == 1
    assert found.only_before == ("t0001",)
    assert found.before.n == found.after.n == 1
    assert "1 items were judged only before" in str(found)


def test_the_order_of_rows_does_not_matter() -> None:
    pairs = make(["yes", "no", "no"], ["yes", "yes", "no"])
    shuffled = Pairs("q", pairs.table.iloc[::-1], NOTHING, YES_NO)
    found = compare(pairs, shuffled)
    assert (len(found.fixed), len(found.broken)) == (0, 0)


def test_other_human_labels_scales_or_traces_are_errors() -> None:
    one = make(["yes", "no"], ["yes", "yes"])
    with pytest.raises(ArgumentError, match="t0001: 'no' and 'yes'"):
        compare(one, make(["yes", "yes"], ["yes", "yes"]))
    with pytest.raises(ArgumentError, match="different scales"):
        compare(one, make(["good", "poor"], ["good", "good"], GRADES))
    elsewhere = Pairs("q", one.table.assign(trace_id=["a", "b"]), NOTHING, YES_NO)
    with pytest.raises(ArgumentError, match="no trace in common"):
        compare(one, elsewhere)


def test_with_no_items_nothing_is_claimed() -> None:
    found = compare(make([], []), make([], []))
    assert found.n == 0
    assert not found.improved
    assert not found.significant
    assert not found.enough
    assert "no item" in str(found)


def test_as_many_right_but_nearer_is_an_improvement_on_an_ordinal_scale() -> None:
    human = ["poor"] * 4
    found = compare(make(human, ["excellent"] * 4, GRADES), make(human, ["fair"] * 4, GRADES))
    assert found.accuracy_change == 0
    assert found.improved


def test_on_numbers_nearer_counts_as_fixed() -> None:
    human = [float(i) for i in range(40)]
    far, near = [v + 2 for v in human], [v + 0.5 for v in human]
    found = compare(make(human, far, Scale("numeric")), make(human, near, Scale("numeric")))
    assert len(found.fixed) == 40
    assert found.improved
    assert found.significant
    assert "Mean distance falls" in found.summary


# -- formulas ---------------------------------------------------------------------------------


def test_mcnemar_equals_statsmodels() -> None:
    for fixed, broken in ((6, 0), (5, 0), (9, 1), (30, 12), (1, 1)):
        reference = statsmodels_mcnemar([[10, fixed], [broken, 10]], exact=True).pvalue
        assert mcnemar(fixed, broken) == pytest.approx(reference)
    assert mcnemar(0, 0) == 1


def test_paired_difference_gives_newcombes_published_interval() -> None:
    """Newcombe 1998, method 10, cells 36, 12, 2, 0: 0.0569 to 0.3404."""
    assert paired_difference(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert paired_difference(36, 12, 2, 0) == pytest.approx((-0.3404, -0.0569), abs=5e-5)
    assert math.isnan(paired_difference(0, 0, 0, 0).low)


def test_rogan_gladen_by_hand_and_its_limits() -> None:
    assert rogan_gladen(0.29, tpr=0.8, tnr=0.9) == pytest.approx(0.19 / 0.7)
    assert rogan_gladen(0.01, tpr=0.8, tnr=0.9) == 0
    assert rogan_gladen(0.99, tpr=0.8, tnr=0.9) == 1
    assert math.isnan(rogan_gladen(0.3, tpr=0.5, tnr=0.5))
    assert math.isnan(rogan_gladen(0.3, tpr=nan, tnr=0.9))


def test_lang_reiczigel_gives_the_published_interval() -> None:
    """Example 1 of Lang and Reiczigel 2014: 0.349 to 0.372."""
    found = lang_reiczigel(
        4060,
        11284,
        true_positives=178,
        human_positives=179,
        true_negatives=358,
        human_negatives=359,
    )
    assert found == pytest.approx((0.349, 0.372), abs=5e-4)


def test_the_corrected_interval_covers_the_truth() -> None:
    """In 400 simulated studies the 95 % interval holds the true prevalence nearly always."""
    rng = np.random.default_rng(0)
    truth, tpr, tnr, hits = 0.3, 0.85, 0.75, 0
    for _ in range(400):
        true_positives, true_negatives = rng.binomial(60, tpr), rng.binomial(90, tnr)
        rate = truth * tpr + (1 - truth) * (1 - tnr)
        interval = lang_reiczigel(
            int(rng.binomial(800, rate)),
            800,
            true_positives=int(true_positives),
            human_positives=60,
            true_negatives=int(true_negatives),
            human_negatives=90,
        )
        hits += truth in interval
    assert 0.92 < hits / 400 <= 0.99


def test_prevalence_undoes_the_judges_bias_and_skips_abstentions() -> None:
    pairs = from_confusion([[90, 10], [20, 80]])  # tnr 0.9, tpr 0.8
    found = prevalence(pairs, ["Yes"] * 29 + ["no"] * 71 + ["N/A", None])
    assert (found.n, found.positive, found.skipped) == (100, 29, 2)
    assert found.observed == pytest.approx(0.29)
    assert found.corrected == pytest.approx(0.19 / 0.7)
    assert found.corrected in found.interval
    useless = prevalence(from_confusion([[5, 5], [5, 5]]), ["yes", "no"])
    assert math.isnan(useless.corrected)
    assert math.isnan(useless.interval.low)
    with pytest.raises(ArgumentError, match="binary"):
        prevalence(make(["good"], ["good"], GRADES), ["good"])
    with pytest.raises(ScaleError, match="perhaps"):
        prevalence(pairs, ["perhaps"])
    json.dumps(found.to_dict(), allow_nan=False)


# -- annotators -------------------------------------------------------------------------------

# Krippendorff 2011, the data of four observers on twelve units.
OBSERVERS = pd.DataFrame(
    {
        "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        "C": [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    }
)


def test_krippendorffs_published_example() -> None:
    counts = np.array([[(row == k).sum() for k in range(1, 6)] for row in OBSERVERS.to_numpy()])
    values = np.arange(1, 6)
    published = {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849, "ratio": 0.797}
    for level, alpha in published.items():
        found = krippendorff_alpha(coincidences(counts), values, level)  # type: ignore[arg-type]
        assert found == pytest.approx(alpha, abs=5e-4)
    whole = annotator_agreement(OBSERVERS)
    assert whole.level == "ordinal"
    assert whole.alpha == pytest.approx(0.815, abs=5e-4)
    assert whole.alpha in whole.alpha_interval


def test_fleiss_published_example() -> None:
    """Ten subjects, fourteen raters, five categories: kappa 0.210."""
    counts = np.array(
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
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    votes = pd.DataFrame([np.repeat([1, 2, 3, 4, 5], row) for row in counts])
    found = annotator_agreement(votes, scale=Scale.of([1, 2, 3, 4, 5]))
    assert found.fleiss == pytest.approx(0.210, abs=5e-4)
    assert (found.fleiss_items, found.fleiss_raters) == (10, 14)
    assert math.isnan(fleiss_kappa(np.array([[2, 0], [2, 0]])))
    assert math.isnan(fleiss_kappa(np.empty((0, 2))))


def test_fleiss_does_not_pick_items_by_how_many_labels_they_needed() -> None:
    """A third label is asked for only where two differ; those two must not look unanimous."""
    votes = pd.DataFrame(
        {
            "a": ["yes"] * 10 + ["no"] * 10,
            "b": ["yes"] * 8 + ["no"] * 12,
            "c": [None] * 8 + ["yes", "no"] + [None] * 10,
        }
    )
    found = annotator_agreement(votes)
    assert (found.fleiss_items, found.fleiss_raters) == (20, 2)
    assert found.fleiss < 0.9


def test_pairwise_kappa_and_the_ceiling_by_hand() -> None:
    votes = pd.DataFrame(
        {
            "ana": ["yes", "yes", "no", "no"],
            "ben": ["yes", "no", "no", "no"],
            "cid": ["yes", "yes", "no", None],
        }
    )
    found = annotator_agreement(votes, scale=YES_NO)
    pairwise = found.pairwise.set_index(["annotator_a", "annotator_b"])
    assert pairwise.loc[("ana", "ben"), "n"] == 4
    assert pairwise.loc[("ana", "ben"), "accuracy"] == 0.75
    assert pairwise.loc[("ana", "ben"), "kappa"] == pytest.approx(0.5)
    assert pairwise.loc[("ana", "cid"), "kappa"] == pytest.approx(1)
    # Against the others: item 2 is a tie for ana and for cid (half each) and wrong for ben.
    by = found.by_annotator.set_index("annotator")["accuracy"]
    assert by["ana"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert by["ben"] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert by["cid"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.ceiling == pytest.approx((3.5 + 3 + 2.5) / 11)
    assert found.ceiling in found.ceiling_interval
    matrix = found.matrix()
    assert matrix.loc["ana", "ben"] == matrix.loc["ben", "ana"] == pytest.approx(0.5)
    assert math.isnan(matrix.loc["ana", "ana"])


def test_abstentions_are_neither_right_nor_wrong() -> None:
    votes = [{"a": "yes", "b": "yes"}, {"a": "no", "b": ABSTAIN}, {"a": "no", "b": "no"}]
    found = annotator_agreement(make(["yes", "no", "no"], ["yes"] * 3, votes=votes))
    assert found.pairwise.iloc[0][["n", "accuracy"]].tolist() == [2, 1.0]
    table = pd.DataFrame({"a": ["yes", "no", "no"], "b": ["yes", "N/A", "no"]})
    assert annotator_agreement(table).pairwise.iloc[0]["n"] == 2


def test_items_without_a_verdict_count_for_annotators() -> None:
    pairs = Pairs(
        "q",
        make(["yes"], ["yes"]).table,
        NOTHING,
        YES_NO,
        all_votes={"t0000": {"a": "yes", "b": "yes"}, "t0001": {"a": "no", "b": "yes"}},
    )
    assert annotator_agreement(pairs).shared_items == 2


def test_one_annotator_or_one_value_leaves_agreement_undefined() -> None:
    single = annotator_agreement(pd.DataFrame({"a": ["yes", "no"]}))
    assert len(single.pairwise) == 0
    for value in (single.alpha, single.fleiss, single.ceiling):
        assert math.isnan(value)
    same = annotator_agreement(pd.DataFrame({"a": ["yes", "yes"], "b": ["yes", "yes"]}))
    assert math.isnan(same.alpha)
    assert same.ceiling == 1
    assert same.ceiling_interval.low < 0.5
    empty = annotator_agreement(pd.DataFrame())
    assert empty.items == 0
    assert math.isnan(empty.alpha)
    with pytest.raises(ArgumentError, match="takes Pairs"):
        annotator_agreement(["yes"])  # type: ignore[arg-type]


# -- results ----------------------------------------------------------------------------------


def test_results_are_json_and_escape_what_they_show() -> None:
    nasty = "<script>alert(1)</script>"
    scale = Scale.of([nasty, "other", "third"], ordered=False)
    pairs = make([nasty, "other"], [nasty, nasty], scale, [{"<b>a": nasty, "c": "other"}, {}])
    results = [agreement(pairs), compare(pairs, pairs), annotator_agreement(pairs)]
    results += [agreement(make([], [])), compare(make([], []), make([], []))]
    for result in results:
        json.dumps(result.to_dict(), allow_nan=False)
        assert "<script>" not in result._repr_html_()
        assert "<b>a" not in result._repr_html_()
        assert "\n" not in repr(result)


def test_metrics_load_no_heavy_package() -> None:
    """Only numpy and pandas: the statistics packages are loaded where they are used."""
    code = (
        "import sys, workbench.metrics; "
        "print([m for m in ('mlflow', 'scipy', 'statsmodels', 'matplotlib', 'sklearn') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_reachable() -> None:
    assert workbench.agreement is agreement
    assert workbench.compare is compare
    assert workbench.annotator_agreement is annotator_agreement


# -- laws ---------------------------------------------------------------------------------------

COLOURS = Scale.of(["red", "green", "blue"], ordered=False)
ratings = st.lists(
    st.tuples(st.sampled_from(GRADES.values), st.sampled_from(GRADES.values)),
    min_size=1,
    max_size=40,
)


def kappas(human: list[Any], judge: list[Any], scale: Scale = GRADES) -> tuple[float, float]:
    found = agreement(make(human, judge, scale), resamples=10)
    return found.kappa, nan if found.weighted_kappa is None else found.weighted_kappa


@settings(max_examples=60, deadline=None)
@given(ratings)
def test_kappa_is_symmetric_bounded_and_equals_sklearns(rows: list[tuple[str, str]]) -> None:
    human, judge = [h for h, _ in rows], [j for _, j in rows]
    one, two = kappas(human, judge), kappas(judge, human)
    assert one == pytest.approx(two, nan_ok=True)
    if math.isnan(one[0]):
        assert len(set(human) | set(judge)) == 1
        return
    assert all(-1 - 1e-9 <= value <= 1 + 1e-9 for value in one)
    ranks = [GRADES.values.index(v) for v in human], [GRADES.values.index(v) for v in judge]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert one[0] == pytest.approx(cohen_kappa_score(*ranks))
        assert one[1] == pytest.approx(
            cohen_kappa_score(*ranks, labels=range(4), weights="quadratic")
        )


@settings(max_examples=40, deadline=None)
@given(ratings, st.permutations(GRADES.values))
def test_kappa_is_blind_to_the_names_of_categories(
    rows: list[tuple[str, str]], names: list[str]
) -> None:
    new = dict(zip(GRADES.values, names, strict=True))
    plain = kappas([h for h, _ in rows], [j for _, j in rows])
    renamed = kappas([new[h] for h, _ in rows], [new[j] for _, j in rows])
    assert plain[0] == pytest.approx(renamed[0], nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(ratings)
def test_confusion_holds_every_pair_once(rows: list[tuple[str, str]]) -> None:
    found = agreement(make([h for h, _ in rows], [j for _, j in rows], GRADES), resamples=10)
    table = found.confusion.to_numpy()
    assert table.sum() == len(rows) == found.n
    assert np.trace(table) / len(rows) == pytest.approx(found.accuracy)
    assert found.per_class is not None
    assert found.per_class["support"].sum() == len(rows)
    assert 0 <= found.mean_distance <= 1 - found.accuracy + 1e-9


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_symmetric(fixed: int, broken: int) -> None:
    assert mcnemar(fixed, broken) == pytest.approx(mcnemar(broken, fixed))
    assert 0 < mcnemar(fixed, broken) <= 1


@settings(deadline=None)
@given(st.integers(1, 400), st.data(), st.floats(0.5, 0.999))
def test_wilson_lies_in_the_unit_interval_and_holds_the_estimate(
    n: int, data: st.DataObject, confidence: float
) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n, confidence)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1


@settings(deadline=None)
@given(*[st.integers(0, 25)] * 4)
def test_paired_difference_is_antisymmetric_and_holds_the_estimate(
    both: int, first: int, second: int, neither: int
) -> None:
    n = both + first + second + neither
    low, high = paired_difference(both, first, second, neither)
    if n == 0:
        assert math.isnan(low)
        return
    assert -1 <= low <= (second - first) / n + 1e-12
    assert (second - first) / n - 1e-12 <= high <= 1
    mirrored = paired_difference(both, second, first, neither)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((low, high))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, nan]), min_size=3, max_size=3),
        min_size=2,
        max_size=15,
    ),
    st.sampled_from(["nominal", "ordinal", "interval", "ratio"]),
)
def test_alpha_equals_the_reference_implementation(
    rows: list[list[float]], level: Literal["nominal", "ordinal", "interval", "ratio"]
) -> None:
    votes = np.array(rows)
    counts = np.stack([(votes == k).sum(axis=1) for k in (1, 2, 3, 4)], axis=1)
    ours = float(krippendorff_alpha(coincidences(counts), np.arange(1.0, 5.0), level))
    paired = counts[counts.sum(axis=1) >= 2]
    if (paired.sum(axis=0) > 0).sum() < 2:
        assert math.isnan(ours)
        return
    theirs = krippendorff.alpha(
        value_counts=counts, value_domain=[1.0, 2.0, 3.0, 4.0], level_of_measurement=level
    )
    assert ours == pytest.approx(theirs)
