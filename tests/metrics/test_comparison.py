"""Before against after on the same items."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import GRADES, make_pairs
from scipy.stats import spearmanr

from workbench.errors import ArgumentError
from workbench.metrics.comparison import compare
from workbench.scale import Scale


def test_compare_counts_fixed_and_broken_and_tests_them() -> None:
    human = ["yes"] * 20 + ["no"] * 20
    before = ["no"] * 8 + ["yes"] * 12 + ["no"] * 18 + ["yes"] * 2
    after = ["yes"] * 19 + ["no"] + ["no"] * 19 + ["yes"]
    found = compare(make_pairs(human, before), make_pairs(human, after))
    assert found.n == 40
    assert list(found.fixed.columns) == ["trace_id", "human", "before", "after"]
    assert (len(found.fixed), len(found.broken), len(found.still_wrong)) == (9, 1, 1)
    assert found.broken.iloc[0].tolist() == ["t019", "yes", "yes", "no"]
    assert found.changes["accuracy"][0] == found.accuracy_change == pytest.approx(8 / 40)
    assert found.changes["kappa"] == (found.kappa_change, found.kappa_change_interval)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert (found.improved, found.significant, found.enough) == (True, True, True)
    assert found.power_note == ""
    assert found.changes["false negative rate"][0] == pytest.approx(1 / 20 - 8 / 20)
    for name in ("accuracy", "kappa", "false negative rate"):
        change, interval = found.changes[name]
        assert change in interval
    assert list(found.table.columns) == ["before", "after", "change"]
    assert {"accuracy", "kappa", "false positive rate"} <= set(found.table.index)
    assert "Accuracy 0.750 before and 0.950 after on 40 items" in str(found)
    assert "\n" not in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_interval_of_a_change_is_that_of_a_paired_sample() -> None:
    """Two judges wrong on the same items differ by nothing, and the interval says so tightly."""
    human = ["yes", "no"] * 100
    judge = [v if i % 5 else ("no" if v == "yes" else "yes") for i, v in enumerate(human)]
    found = compare(make_pairs(human, judge), make_pairs(human, judge))
    assert math.isnan(found.changes["kappa"][1].low)  # no resample could show a difference
    low, high = found.changes["accuracy"][1]
    assert low == pytest.approx(-high)
    assert high < 0.03
    assert (found.improved, found.significant) == (False, False)


def test_how_sure_a_change_is_is_said() -> None:
    """Too few pairs, and a gain that may be luck."""
    right = make_pairs(["yes"] * 10, ["yes"] * 10)
    few = compare(make_pairs(["yes"] * 10, ["no"] * 3 + ["yes"] * 7), right)
    assert (few.improved, few.enough) == (True, False)
    assert "than 30 independent pairs (there are 10)" in few.power_note
    assert few.power_note in str(few)
    human = ["yes", "no"] * 50
    before = ["no" if i < 12 else v for i, v in enumerate(human)]  # 6 wrong
    after = ["no" if 50 <= i < 54 else v for i, v in enumerate(human)]  # 2 others wrong
    found = compare(make_pairs(human, before), make_pairs(human, after))
    assert (len(found.fixed), len(found.broken)) == (6, 2)
    assert (found.improved, found.enough, found.significant) == (True, True, False)
    assert "The gain may be luck: 6 items are better and 2 worse, p = 0.29." in str(found)


def test_groups_count_and_not_their_rows() -> None:
    """Five groups can show nothing at p < 0.05, however many rows they have."""
    people = ["yes"] * 40
    before, after = make_pairs(people, ["no"] * 40), make_pairs(people, people)
    groups = {i: n % 5 for n, i in enumerate(before.trace_ids)}
    found = compare(before, after, groups=groups)
    assert (found.p_value, found.enough) == (pytest.approx(0.0625), False)
    assert "there are 5" in found.power_note
    many = {i: n % 35 for n, i in enumerate(before.trace_ids)}
    assert compare(before, after, groups=many).enough


def test_what_belongs_together_is_exchanged_together() -> None:
    """Three of ten questions are mended, and of each all answers: that is a chance of 1 in 4."""
    before, after = (make_pairs(["yes"] * 200, ["yes"] * k + ["no"] * (200 - k)) for k in (0, 60))
    groups = {i: k // 20 for k, i in enumerate(before.trace_ids)}
    loose, tied = compare(before, after), compare(before, after, groups=groups)
    assert loose.p_value < 1e-15
    assert tied.p_value == pytest.approx(0.25)
    (change, wide), (same_change, narrow) = (one.changes["accuracy"] for one in (tied, loose))
    assert change == same_change == pytest.approx(0.3)
    assert wide.low < 0.05 < narrow.low
    again = compare(before.grouped(groups), after)
    assert (again.p_value, str(again.table)) == (tied.p_value, str(tied.table))
    same = dict.fromkeys(before.trace_ids[:60], ("one", "answer"))
    assert compare(replace(before, content=same), after).p_value == 1.0


def test_other_human_labels_scales_or_traces_are_errors() -> None:
    one = make_pairs(["yes", "no"], ["yes", "yes"])
    with pytest.raises(ArgumentError, match="t001: 'no' and 'yes'"):
        compare(one, make_pairs(["yes", "yes"], ["yes", "yes"]))
    with pytest.raises(ArgumentError, match="different scales"):
        compare(one, make_pairs(["good", "poor"], ["good", "good"], GRADES))
    out_of = [make_pairs([1.0], [2.0], Scale("numeric", low=0, high=top)) for top in (5, 10)]
    with pytest.raises(ArgumentError, match=r"high=5.* before, .*high=10.* after"):
        compare(*out_of)
    with pytest.raises(ArgumentError, match="no trace in common"):
        compare(one, replace(one, table=one.table.assign(trace_id=["a", "b"])))


def test_with_no_items_nothing_is_claimed() -> None:
    found = compare(make_pairs([], []), make_pairs([], []))
    assert (found.n, found.improved, found.significant, found.enough) == (0, False, False, False)
    assert "no item" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_on_numbers_nearer_counts_as_fixed() -> None:
    human = [float(i) for i in range(40)]
    far, near = (make_pairs(human, [v + by for v in human], Scale("numeric")) for by in (2, 0.5))
    found = compare(far, near)
    assert (len(found.fixed), found.improved, found.significant) == (40, True, True)
    assert found.changes["mean absolute error"][0] == pytest.approx(-1.5)
    assert "Mean distance 0." in found.summary
    constant = found.after.baseline_distance
    assert f"Always giving the median label has {constant:.3f}." in found.summary
    human = ["poor"] * 4
    before, after = (make_pairs(human, [v] * 4, GRADES) for v in ("excellent", "fair"))
    assert compare(before, after).improved  # as many right, but nearer


def test_numbers_of_both_judges_have_one_unit() -> None:
    """One verdict far off widens the range that is seen, and makes no other distance smaller."""
    human = [1, 2, 3, 4, 5] * 8
    off = [100, *(v % 5 + 1 for v in human[1:])]
    before, after = (
        make_pairs(human, judge, Scale("numeric").with_range([*human, *judge]))
        for judge in ([3] * 40, off)
    )
    found = compare(before, after)
    assert not found.improved
    for judged in (found.before, found.after):
        assert judged.mean_distance == pytest.approx(judged.mae / 99)


def test_a_gain_on_few_numbers_that_most_pay_for_is_not_certain() -> None:
    """The mean falls, and the sign test is sure of the opposite."""
    human, scale = [50.0] * 60, Scale("numeric", low=0, high=100)
    before, after = [90.0] * 6 + [50.1] * 54, [50.0] * 6 + [51.0] * 54
    found = compare(make_pairs(human, before, scale), make_pairs(human, after, scale))
    assert (found.improved, found.significant, found.certain) == (True, True, False)
    assert "6 items are better and 54 worse" in str(found.notes)


@given(st.permutations([0, 1, 1, 1, 2, 3, 0, 0, 2, 1, 0, 0]))
def test_the_same_errors_in_another_order_are_no_gain(steps: list[int]) -> None:
    """Sums of the same distances differ by rounding alone."""
    grades = ["poor", "fair", "good", "excellent"]
    pairs = [
        make_pairs(["poor"] * 12, [grades[k] for k in order], GRADES)
        for order in (sorted(steps), steps)
    ]
    assert not compare(*pairs).improved
    assert not compare(*reversed(pairs)).improved


def test_the_change_of_every_figure_of_numbers_has_an_interval() -> None:
    """Also of the share within one and of the rank correlation, whose values are scipy's."""
    rng = np.random.default_rng(0)
    human = [float(v) for v in rng.integers(0, 10, 80)]
    worse, better = (list(human + rng.normal(0, spread, 80)) for spread in (4, 1))
    found = compare(*(make_pairs(human, judge, Scale("numeric")) for judge in (worse, better)))
    for name in ("within one", "Spearman correlation"):
        change, interval = found.changes[name]
        assert change in interval
        assert interval.low > 0
    gain = spearmanr(human, better).statistic - spearmanr(human, worse).statistic
    assert found.changes["Spearman correlation"][0] == pytest.approx(gain)


def test_items_are_matched_by_trace_and_those_of_one_judge_only_are_listed() -> None:
    pairs = make_pairs(["yes", "no", "no"], ["yes", "yes", "no"])
    turned = replace(pairs, table=pairs.table.iloc[:0:-1])
    found = compare(pairs, turned)
    assert (len(found.fixed), len(found.broken)) == (0, 0)
    assert found.n == found.before.n == found.after.n == 2
    assert found.only_before == ("t000",)
    failed = pd.DataFrame({"trace_id": ["t009"], "reason": ["the judge failed: 500"]})
    found = compare(replace(pairs, excluded=failed), turned)
    assert (found.before.labelled, found.before.failures, found.before.coverage) == (2, 0, 1.0)
    assert "Left out: 1 item judged by one of the two alone." in str(found)
