"""Pairs: subsets, other verdicts, digest."""

from __future__ import annotations

import pandas as pd

from workbench.pairing.pairs import Pairs, dataset_digest
from workbench.scale import Scale

YES_NO = Scale.of(["no", "yes"])


def make_pairs(values: dict[str, str]) -> Pairs:
    table = pd.DataFrame(
        [(i, v, "yes", "", "", {"ana": v}, True) for i, v in sorted(values.items())],
        columns=["trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes",
                 "blind"],
    )  # fmt: skip
    return Pairs("quality", table, pd.DataFrame(columns=["trace_id", "reason"]), YES_NO)


def reasons(pairs: Pairs) -> dict[str, str]:
    return dict(zip(pairs.excluded["trace_id"], pairs.excluded["reason"], strict=True))


def test_a_subset_is_of_the_same_kind() -> None:
    """Rows and votes of the given traces, nothing excluded."""
    pairs = make_pairs({"a": "yes", "b": "no", "c": "no"})
    part = pairs.subset(["c", "a", "unknown"])
    assert (part.trace_ids, list(part.votes.index)) == (["a", "c"], ["a", "c"])


def test_other_verdicts_on_the_same_labels() -> None:
    """Labels stay; a trace without a new verdict is excluded with the reason."""
    pairs = make_pairs({"a": "yes", "b": "no", "c": "no"})
    other = pairs.with_verdicts({"a": ("no", "x"), "c": ("no", "y")}, "mark")
    assert list(other.table["judge"]) == ["no", "no"]
    assert list(other.table["human"]) == ["yes", "no"]
    assert (list(other.table["judge_rationale"]), other.fingerprint) == (["x", "y"], "mark")
    assert reasons(other) == {"b": "the judge gave no usable verdict"}
    assert list(pairs.table["judge"]) == ["yes"] * 3


def test_the_digest_follows_from_items_and_labels() -> None:
    """Not from the judge's verdicts."""
    pairs = make_pairs({"a": "yes", "b": "no"})
    same = pairs.with_verdicts({"a": ("no", ""), "b": ("no", "")}, "")
    assert dataset_digest(pairs) == dataset_digest(same)
    assert dataset_digest(pairs) != dataset_digest(make_pairs({"a": "yes", "b": "yes"}))
