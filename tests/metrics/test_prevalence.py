"""Shares among all items: corrected verdicts, and labels that rules and chance have chosen."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_pairs import GRADES, from_confusion, make_pairs

from workbench.errors import ArgumentError, ScaleError
from workbench.labeling.ordering import Known, put_in_order
from workbench.metrics.prevalence import (
    lang_reiczigel,
    prevalence,
    rogan_gladen,
    sampled_accuracy,
    sampled_prevalence,
    sampled_share,
)

# -- correction for the judge's errors --------------------------------------------------------


def test_rogan_gladen_by_hand_and_its_limits() -> None:
    assert rogan_gladen(0.29, tpr=0.8, tnr=0.9) == pytest.approx(0.19 / 0.7)
    assert rogan_gladen(0.01, tpr=0.8, tnr=0.9) == 0
    assert rogan_gladen(0.99, tpr=0.8, tnr=0.9) == 1
    assert math.isnan(rogan_gladen(0.3, tpr=0.5, tnr=0.5))
    assert math.isnan(rogan_gladen(0.3, tpr=math.nan, tnr=0.9))


def test_lang_reiczigel_gives_the_published_interval() -> None:
    """Example 1 of Lang and Reiczigel 2014: 0.349 to 0.372."""
    counts = {"true_positives": 178, "human_positives": 179}
    counts |= {"true_negatives": 358, "human_negatives": 359}
    assert lang_reiczigel(4060, 11284, **counts) == pytest.approx((0.349, 0.372), abs=5e-4)


def test_the_corrected_interval_covers_the_truth() -> None:
    """In 400 simulated studies the 95 % interval holds the true prevalence nearly always."""
    rng = np.random.default_rng(0)
    truth, tpr, tnr, hits = 0.3, 0.85, 0.75, 0
    for _ in range(400):
        positive = int(rng.binomial(800, truth * tpr + (1 - truth) * (1 - tnr)))
        interval = lang_reiczigel(
            positive,
            800,
            true_positives=int(rng.binomial(60, tpr)),
            human_positives=60,
            true_negatives=int(rng.binomial(90, tnr)),
            human_negatives=90,
        )
        hits += truth in interval
    assert 0.92 < hits / 400 <= 0.99


def test_prevalence_undoes_the_judges_bias_and_skips_abstentions() -> None:
    pairs = from_confusion([[90, 10], [20, 80]])  # tnr 0.9, tpr 0.8
    found = prevalence(pairs, ["Yes"] * 29 + ["no"] * 71 + ["N/A", None])
    assert (found.n, found.positive, found.skipped, found.labelled) == (100, 29, 2, 200)
    assert found.observed == pytest.approx(0.29)
    assert found.corrected == pytest.approx(0.19 / 0.7)
    assert found.corrected in found.interval
    json.dumps(found.to_dict(), allow_nan=False)
    useless = prevalence(from_confusion([[5, 5], [5, 5]]), ["yes", "no"])
    assert math.isnan(useless.corrected)
    assert math.isnan(useless.interval.low)
    with pytest.raises(ArgumentError, match="binary"):
        prevalence(make_pairs(["good"], ["good"], GRADES), ["good"])
    with pytest.raises(ScaleError, match="perhaps"):
        prevalence(pairs, ["perhaps"])


# -- estimates from labels that were drawn ----------------------------------------------------


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
    assert math.isnan(sampled_share(table(("a", 1, 4, 0.25, "yes")), {}).value)
    single = sampled_prevalence(table(("a", 1, 4, 0.25, "yes")), "yes")
    assert single.value == 1
    assert math.isnan(single.interval.low)
    assert single.to_dict()["interval"] == [None, None]
    with pytest.raises(ArgumentError, match="one question"):
        sampled_prevalence(table(("a", 1, 4, 0.25, "yes"), ("a", 1, 4, 0.25, "no")), "yes")
