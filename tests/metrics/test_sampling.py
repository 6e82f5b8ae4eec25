"""Shares of a whole queue, estimated from labels that rules and chance have chosen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest
from made_pairs import make_pairs

from workbench.errors import ArgumentError
from workbench.labeling.ordering import Known, put_in_order
from workbench.metrics.prevalence import sampled_accuracy, sampled_prevalence


def table(*rows: Sequence[object]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["trace_id", "draw", "pool", "probability", "value"])


def labelled(parts: list[dict[str, str]], counts: list[int], seed: int, **how: Any) -> pd.DataFrame:
    """Labels of a queue that grows: so many of the items of each part, and of those left before.

    The judge's samples differ on each yes, so that rules prefer these.
    """
    samples = {"yes": ("yes", "no", "yes"), "no": ("no", "no", "no")}
    labels: list[Sequence[object]] = []
    waiting: list[Known] = []
    truth: dict[str, str] = {}
    for part, count in zip(parts, counts, strict=True):
        truth |= part
        waiting += [Known(i, verdicts=samples[v]) for i, v in part.items()]
        options = {"seed": seed, "drawn": len(labels), "pool": len(truth), **how}
        drawn = put_in_order(waiting, **options).queue[:count]
        for one in drawn:
            chance = 1 / (len(truth) - len(labels)) if one.how == "random" else None
            labels.append((one.trace_id, len(labels) + 1, len(truth), chance, truth[one.trace_id]))
        done = {one.trace_id for one in drawn}
        waiting = [item for item in waiting if item.trace_id not in done]
    return table(*labels)


def items(size: int, share: float, name: str = "t") -> dict[str, str]:
    """Trace id -> label; the first ones are a yes."""
    return {f"{name}{n}": "yes" if n < share * size else "no" for n in range(size)}


def assert_unbiased(estimate: Callable[[int], float], truth: float, runs: int = 150) -> None:
    """The mean over many seeds is the truth, within four standard errors."""
    found = [estimate(seed) for seed in range(runs)]
    error = statistics.stdev(found) / math.sqrt(runs)
    assert error < 0.03
    assert abs(statistics.fmean(found) - truth) < 4 * error


def test_by_hand() -> None:
    """The first draw estimates 4 (yes) / 4; the third (1 yes before, no / (1/2)) / 4."""
    rows = table(("a", 1, 4, 1 / 4, "yes"), ("b", 2, 4, None, "no"), ("c", 3, 4, 1 / 2, "no"))
    estimate = sampled_prevalence(rows, "yes")
    assert estimate.value == pytest.approx((1 + 1 / 4) / 2)
    assert (estimate.n, estimate.random) == (3, 2)
    half = 12.7062 * math.sqrt(2 * 0.375**2 / 2)  # t of one degree of freedom
    assert estimate.interval == (max(0.0, 0.625 - half), 1.0)
    wide = sampled_prevalence(rows, "yes", confidence=0.1).interval
    assert wide.high - 0.625 == pytest.approx(0.158384 * 0.375, rel=1e-4)


@pytest.mark.parametrize(
    ("at", "chance", "value"),
    [
        ([1, 3, 2], 1 / 4, (0 + 1 / 4) / 2),  # after the first draw
        ([2, 3, 1], 1 / 3, (1 / 4 + 1 / 4) / 2),  # before it
    ],
)
def test_a_label_from_elsewhere_counts_from_when_it_was_made(
    at: list[int], chance: float, value: float
) -> None:
    """The yes of ``c`` is known to the draws that came after it."""
    rows = table(("a", 1, 4, chance, "no"), ("b", 2, 4, 1 / 2, "no"), ("c", None, 4, None, "yes"))
    assert sampled_prevalence(rows.assign(at=at), "yes").value == pytest.approx(value)


@pytest.mark.parametrize("order", ["disagreement", "balance"])
def test_it_is_unbiased_where_the_plain_mean_is_not(order: str) -> None:
    """A fifth is a yes, and the rule prefers these."""
    plain = []

    def estimate(seed: int) -> float:
        rows = labelled([items(40, 0.2)], [16], seed, order=order, random_share=0.5)
        plain.append(float((rows["value"] == "yes").mean()))
        return sampled_prevalence(rows, "yes").value

    assert_unbiased(estimate, 0.2)
    assert abs(statistics.fmean(plain) - 0.2) > 0.05


@pytest.mark.parametrize(
    "counts",
    [
        [20, 12, 9],  # batches: each is labelled to its end before the next one begins
        [7, 6, 12],  # traces that join while most of those before them still wait
    ],
)
def test_it_is_unbiased_where_the_queue_grows(counts: list[int]) -> None:
    """A half of the first part is a yes, 2 of 12 of the second, a quarter of the third."""
    parts = [items(20, 0.5, "a"), items(12, 0.16, "b"), items(20, 0.25, "c")]
    how = {"order": "disagreement", "random_share": 0.7}
    assert_unbiased(
        lambda seed: sampled_prevalence(labelled(parts, counts, seed, **how), "yes").value, 17 / 52
    )


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """With some dozens of random draws."""
    how = {"order": "balance", "random_share": 0.4}
    rows = (labelled([items(300, 0.2)], [120], seed, **how) for seed in range(80))
    held = sum(0.2 in sampled_prevalence(one, "yes").interval for one in rows)
    assert 0.85 <= held / 80 <= 1.0


def test_what_has_no_answer_counts_neither_way() -> None:
    """Skips leave a gap in the draws, abstentions a row without a value."""
    truth = {f"t{n}": "yes" if n % 2 else "no" for n in range(60)}
    silent = {f"t{n}" for n in range(0, 60, 6)}

    def estimate(seed: int) -> float:
        rows = labelled([truth], [30], seed)
        rows["value"] = rows["value"].mask(rows["trace_id"].isin(silent))
        return sampled_prevalence(rows[rows["trace_id"] != "t12"], "yes").value

    assert_unbiased(estimate, 30 / 50)


def test_accuracy_is_that_of_the_pairs() -> None:
    """The judge is right on 3 of 4 items of the queue, whatever was drawn first."""
    truth = {"t000": "yes", "t001": "yes", "t002": "no", "t003": "no"}
    pairs = make_pairs([*truth.values()], ["yes", "yes", "no", "yes"])
    assert_unbiased(
        lambda seed: sampled_accuracy(pairs, labelled([truth], [2], seed)).value, 0.75, runs=200
    )


def test_what_can_not_be_estimated_is_nan_and_not_nothing() -> None:
    """Without a random draw, or an answer, nothing is known of the rest."""
    rule = table(("a", 1, 4, None, "yes"), ("b", 2, 4, None, "no"))
    assert math.isnan(sampled_prevalence(rule, "yes").value)
    assert math.isnan(sampled_prevalence(table(), "yes").value)
    assert math.isnan(sampled_prevalence(table(("a", 1, 4, 0.25, None)), "yes").value)
    single = sampled_prevalence(table(("a", 1, 4, 0.25, "yes")), "yes")
    assert single.value == 1
    assert math.isnan(single.interval.low)
    assert single.to_dict()["interval"] == [None, None]
    with pytest.raises(ArgumentError, match="one question"):
        sampled_prevalence(table(("a", 1, 4, 0.25, "yes"), ("a", 1, 4, 0.25, "no")), "yes")
