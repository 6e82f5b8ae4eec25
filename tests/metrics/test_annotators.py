"""People among themselves."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from typing import Any

import krippendorff
import numpy as np
import pandas as pd
import pytest
from made_pairs import COLOURS, GRADES, YES_NO, make_pairs

from workbench.errors import ArgumentError, ScaleError
from workbench.metrics.alternative import alternative_annotator_test
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.intervals import wilson
from workbench.scale import ABSTAIN, Scale

nan = math.nan


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
    both = pairwise.loc[("ana", "ben")]
    assert both[["n", "accuracy", "kappa"]].tolist() == pytest.approx([4, 0.75, 0.5])
    assert both["accuracy_low"] < 0.75 < both["accuracy_high"]
    assert both["kappa_low"] < 0.5 < both["kappa_high"]
    assert pairwise.loc[("ana", "cid"), "kappa"] == pytest.approx(1)
    # Against the others: item 2 is a tie for ana and for cid (half each) and wrong for ben.
    by = found.by_annotator.set_index("annotator")["accuracy"]
    assert by.to_dict() == pytest.approx({"ana": 3.5 / 4, "ben": 3 / 4, "cid": 2.5 / 3})
    assert found.ceiling == pytest.approx((3.5 + 3 + 2.5) / 11)
    assert found.ceiling in found.ceiling_interval
    matrix = found.matrix()
    assert matrix.loc["ana", "ben"] == matrix.loc["ben", "ana"] == pytest.approx(0.5)
    assert math.isnan(matrix.loc["ana", "ana"])
    assert math.isnan(found.fleiss)  # cid has no label on the last item
    assert "same number of labels on each item" in found.notes[0]
    assert found.table["n"].tolist() == [4, 4, 4]
    json.dumps(found.to_dict(), allow_nan=False)
    assert "\n" not in repr(found)


def test_bias_is_signed_and_the_most_contested_items_come_first() -> None:
    """Against the others' mean: ana 0.5 and 1 and 0 steps higher."""
    votes = pd.DataFrame(
        {
            "ana": ["fair", "excellent", "poor", "good"],
            "ben": ["fair", "poor", "poor", None],
            "cid": ["poor", None, "poor", None],
        },
        index=["t1", "t2", "t3", "t4"],
    )
    found = annotator_agreement(votes, scale=GRADES)
    by = found.by_annotator.set_index("annotator")
    assert by["bias"].to_dict() == pytest.approx(
        {"ana": (0.5 + 3 + 0) / 3, "ben": (0.5 - 3 + 0) / 3, "cid": (-1 + 0) / 2}
    )
    assert by.loc["ana", "bias_low"] < by.loc["ana", "bias"] < by.loc["ana", "bias_high"]
    assert by.loc["ana", "accuracy_low"] < by.loc["ana", "accuracy"]
    assert found.contested.to_dict("list") == {
        "item": ["t2", "t1"],
        "labels": [2, 3],
        "disagreement": pytest.approx([1, 2 / 9]),
        "votes": ["poor: 1, excellent: 1", "poor: 1, fair: 2"],
    }
    binary = annotator_agreement(pd.DataFrame({"a": ["yes", "yes"], "b": ["no", "yes"]}))
    assert binary.by_annotator["bias"].tolist() == [0.5, -0.5]
    same = annotator_agreement(pd.DataFrame({"ana": ["no", "yes"] * 5, "bo": ["no", "yes"] * 5}))
    most = wilson(0, 10).high
    assert same.by_annotator.loc[0, ["bias", "bias_low", "bias_high"]].tolist() == pytest.approx(
        [0, -most, most]
    )
    colours = pd.DataFrame({"a": ["red", "blue"], "b": ["red", "green"]})
    assert "bias" not in annotator_agreement(colours, scale=COLOURS).by_annotator


def test_the_level_of_alpha_is_that_of_the_scale() -> None:
    """Krippendorff 2011, four observers on twelve units: 0.815 on an ordinal scale."""
    observers = {
        "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        "C": [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    }
    found = annotator_agreement(pd.DataFrame(observers))
    assert found.level == "ordinal"
    assert found.alpha == pytest.approx(0.815, abs=5e-4)
    assert found.alpha in found.alpha_interval
    assert "weighted_kappa" in found.pairwise


def test_abstentions_are_neither_right_nor_wrong() -> None:
    votes: list[dict[str, Any]] = [
        {"a": "yes", "b": "yes"}, {"a": "no", "b": ABSTAIN}, {"a": "no", "b": "no"},
    ]  # fmt: skip
    found = annotator_agreement(make_pairs(["yes", "no", "no"], ["yes"] * 3, votes=votes))
    assert found.pairwise.iloc[0][["n", "accuracy"]].tolist() == [2, 1.0]
    table = pd.DataFrame({"a": ["yes", "no", "no"], "b": ["yes", "N/A", "no"]})
    assert annotator_agreement(table, scale=YES_NO).pairwise.iloc[0]["n"] == 2


def test_a_word_for_none_is_a_label_unless_it_stands_among_numbers() -> None:
    """Nobody says that it is none; the figures are those of any other word."""
    words = pd.DataFrame({"a": ["yes", "no", "unknown"] * 9, "b": ["yes", "unknown", "no"] * 9})
    found, other = (
        annotator_agreement(words.replace("unknown", to)) for to in ("unknown", "maybe")
    )
    assert (found.shared_items, found.alpha) == (27, pytest.approx(other.alpha))
    single = annotator_agreement(pd.DataFrame({"a": ["x", "unknown"] * 5, "b": ["x"] * 10}))
    assert single.pairwise["accuracy"].item() == 0.5
    numbers = annotator_agreement(pd.DataFrame({"a": [1, 2, "N/A"] * 5, "b": [1, 2, 3] * 5}))
    assert (numbers.shared_items, numbers.level) == (10, "ordinal")
    assert numbers.notes == ("Left out, since they are no labels: 'n/a' (5).",)


def test_items_with_a_single_label_change_no_interval() -> None:
    """They say nothing of agreement; nor does an interval leave the range."""
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 8)
    few = pd.DataFrame({"a": truth, "b": np.where(rng.random(8) < 0.6, truth, 3)}, dtype=float)
    more = few.reindex(range(68)).fillna({"a": 4})
    scale = Scale.of([1, 2, 3, 4, 5])
    one, two = (annotator_agreement(table, scale=scale) for table in (few, more))
    assert two.alpha_interval == one.alpha_interval
    assert two.alpha_interval.high <= 1


def test_items_without_a_verdict_count_for_annotators() -> None:
    all_votes = {"t000": {"a": "yes", "b": "yes"}, "t001": {"a": "no", "b": "yes"}}
    pairs = replace(make_pairs(["yes"], ["yes"]), all_votes=all_votes)
    assert annotator_agreement(pairs).shared_items == 2


def test_one_annotator_or_one_value_leaves_agreement_undefined() -> None:
    single = annotator_agreement(pd.DataFrame({"a": ["yes", "no"]}))
    assert len(single.pairwise) == 0
    assert all(map(math.isnan, (single.alpha, single.ceiling)))
    assert "items with two labels, not all equal" in single.notes[0]
    same = annotator_agreement(pd.DataFrame({"a": ["yes", "yes"], "b": ["yes", "yes"]}))
    assert math.isnan(same.alpha)
    assert "not all equal" in same._repr_html_()
    assert same.ceiling == 1
    assert same.ceiling_interval.low < 0.5
    empty = annotator_agreement(pd.DataFrame())
    assert empty.items == 0
    assert math.isnan(empty.alpha)
    with pytest.raises(ArgumentError, match="as Pairs or a table"):
        annotator_agreement(["yes"])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="confidence"):
        annotator_agreement(pd.DataFrame(), confidence=2)


def test_an_item_that_repeats_itself_is_one() -> None:
    """Copies of three items tell of three, whose ids are no annotator."""
    votes = [{"ana": a, "ben": b} for a, b in [("yes", "yes"), ("no", "no"), ("yes", "no")] * 10]
    pairs = make_pairs(["yes"] * 30, ["yes"] * 30, votes=votes)
    same = {i: (str(k % 3), "") for k, i in enumerate(pairs.trace_ids)}
    loose, tied = (annotator_agreement(p) for p in (pairs, replace(pairs, content=same)))
    assert (tied.alpha, tied.ceiling) == (loose.alpha, loose.ceiling)
    for name in ("alpha_interval", "ceiling_interval"):
        wide, narrow = getattr(tied, name), getattr(loose, name)
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low), name
    table = annotator_agreement(pairs.votes.reset_index(), scale=YES_NO)
    assert (table.annotators, table.alpha) == (("ana", "ben"), loose.alpha)
    # By groups as well, contested items and a table alike.
    groups = {i: str(k % 3) for k, i in enumerate(pairs.trace_ids)}
    every = dict(zip(pairs.trace_ids, votes, strict=True))
    few = replace(pairs.subset(pairs.trace_ids[:9]), all_votes=every)
    for given in (pairs, few, pairs.votes):
        assert annotator_agreement(given, groups=groups).alpha_interval == tied.alpha_interval
    with pytest.raises(ArgumentError, match="maps items"):
        annotator_agreement(pairs.votes, groups="query")


def test_full_disagreement_is_no_certainty() -> None:
    """Nor is an alpha ever outside its interval; words for nothing are no labels."""
    found = annotator_agreement(pd.DataFrame({"a": ["x", "y"] * 5, "b": ["y", "x"] * 5}))
    assert (found.ceiling, found.ceiling_interval.low) == (0, 0)
    assert found.ceiling_interval.high == pytest.approx(0.2775, abs=1e-4)
    for value, interval in (
        (found.alpha, found.alpha_interval),
        (found.fleiss, found.fleiss_interval),
    ):
        assert math.isnan(interval.low) or (value in interval and interval.high > interval.low)
    missing = pd.DataFrame({"a": ["x", "y", "nan"] * 5, "b": ["x", "y", "x"] * 5})
    assert annotator_agreement(missing).shared_items == 10


@pytest.mark.parametrize("votes", [["Yes", "yes", "true"], ["good", "Good ", "GOOD"]])
def test_one_value_in_several_writings_is_full_agreement(votes: list[str]) -> None:
    table = pd.DataFrame({"ana": [*votes, None], "ben": [*votes[::-1], votes[0]]})
    found = annotator_agreement(table)
    assert (found.shared_items, found.ceiling, found.pairwise["accuracy"].item()) == (3, 1.0, 1.0)
    assert (math.isnan(found.alpha), len(found.contested)) == (True, 0)


def test_a_list_is_no_vote() -> None:
    for votes in ([["a"], ["b"]], [["a"], "b"]):
        table = pd.DataFrame({"ana": votes, "ben": ["a", "b"]})
        for scale in (None, YES_NO):
            with pytest.raises(ScaleError, match="this is a list"):
                annotator_agreement(table, scale=scale)
        with pytest.raises(ScaleError, match="this is a list"):
            alternative_annotator_test(table, ["a", "b"])


def test_two_columns_of_one_person_are_refused() -> None:
    table = pd.DataFrame({"Ana": ["a", "b"], "ana": ["a", "a"], "ben": ["b", "b"]})
    with pytest.raises(ArgumentError, match="one person twice: 'Ana' and 'ana'"):
        annotator_agreement(table)
    with pytest.raises(ArgumentError, match="one person twice: 'Ana' and 'ana'"):
        alternative_annotator_test(table, ["a", "b"])


def test_numbers_that_all_differ_cost_no_more_than_their_number() -> None:
    """9,000 different labels: nothing is made that is as large as items times values."""
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 20, 3_000)
    table = pd.DataFrame({who: truth + rng.normal(0, 5, len(truth)) for who in "abc"})
    few = table.head(100)
    small = annotator_agreement(few)  # and what it needs is imported
    tracemalloc.start()
    found = annotator_agreement(table, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    reference = krippendorff.alpha(few.to_numpy().T, level_of_measurement="interval")
    assert small.alpha == pytest.approx(reference)
    assert small.alpha in small.alpha_interval
    assert found.alpha == pytest.approx(400 / 425, abs=0.01)  # the share of the truth's variance
    assert found.pairwise["weighted_kappa"].tolist() == pytest.approx([400 / 425] * 3, abs=0.02)


def test_fleiss_by_hand() -> None:
    votes = pd.DataFrame([[1, 2, 2], [3, 3, 3], [1, 1, 2]])
    found = annotator_agreement(votes, scale=Scale.of([1, 2, 3]))
    assert found.fleiss == pytest.approx(1 - (4 / 9) / (1 - np.sum([1 / 9] * 3)))
    assert found.fleiss in found.fleiss_interval


def test_full_agreement_on_few_items_is_no_certainty() -> None:
    """Ten items without a disagreement leave 28 % open, of the half that chance explains."""
    found = annotator_agreement(pd.DataFrame({"a": ["x", "y"] * 5, "b": ["x", "y"] * 5}))
    for value, interval in (
        (found.alpha, found.alpha_interval),
        (found.fleiss, found.fleiss_interval),
    ):
        assert value == pytest.approx(1)
        assert interval == pytest.approx((1 - wilson(0, 10).high / 0.5, 1))
