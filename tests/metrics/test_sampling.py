"""Estimates for all items from labels that rules and chance have chosen together."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pandas as pd
import pytest

from workbench import Scale
from workbench.errors import ArgumentError
from workbench.labeling.ordering import Known, put_in_order
from workbench.metrics.prevalence import sampled_accuracy, sampled_prevalence, sampled_share
from workbench.pairing.pairs import Pairs

COLUMNS = ["trace_id", "draw", "pool", "probability", "value"]


def table(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def labelled(items: list[Known], truth: dict[str, str], count: int, **how: object) -> pd.DataFrame:
    """The first ``count`` labels of a queue."""
    drawn = put_in_order(items, **how).queue[:count]  # type: ignore[arg-type]
    return table(
        *(
            (one.trace_id, n + 1, len(items), one.probability, truth[one.trace_id])
            for n, one in enumerate(drawn)
        )
    )


def test_by_hand() -> None:
    """z of the first draw is 4 (yes) / 4; of the third (1 yes before, no / (1/2)) / 4."""
    rows = table(("a", 1, 4, 1 / 4, "yes"), ("b", 2, 4, None, "no"), ("c", 3, 4, 1 / 2, "no"))
    estimate = sampled_prevalence(rows, "yes")
    assert estimate.value == pytest.approx((1 + 1 / 4) / 2)
    assert (estimate.n, estimate.random) == (3, 2)
    half = 12.7062 * math.sqrt(2 * 0.375**2 / 2)  # t of one degree of freedom
    assert tuple(estimate.interval) == (max(0.0, 0.625 - half), 1.0)
    wide = sampled_prevalence(rows, "yes", confidence=0.1).interval
    assert wide.high - 0.625 == pytest.approx(0.158384 * 0.375, rel=1e-4)


def test_a_simple_random_sample_is_its_mean_when_all_is_drawn() -> None:
    """With all items labelled the last draws know everything."""
    truth = {f"t{n}": "yes" if n % 4 == 0 else "no" for n in range(8)}
    rows = labelled([Known(i) for i in truth], truth, 8, seed=1)
    assert rows["probability"].tolist() == [1 / n for n in range(8, 0, -1)]
    assert 0 <= sampled_prevalence(rows, "yes").value <= 1


def mixed(count: int) -> tuple[dict[str, str], list[Known]]:
    """A fifth is a yes; the judge's samples differ on each yes, and its verdicts guess well."""
    truth = {f"t{n}": "yes" if n % 5 == 0 else "no" for n in range(count)}
    samples = {"yes": ("yes", "no", "yes"), "no": ("no", "no", "no")}
    return truth, [Known(i, verdicts=samples[v]) for i, v in truth.items()]


@pytest.mark.parametrize("order", ["disagreement", "balance"])
def test_it_is_unbiased_where_the_plain_mean_is_not(order: str) -> None:
    """Over many seeds the mean of the estimates is the truth; that of the labels is not."""
    truth, items = mixed(40)
    estimates, plain = [], []
    for seed in range(400):
        rows = labelled(items, truth, 16, order=order, seed=seed, random_share=0.5)
        estimates.append(sampled_prevalence(rows, "yes").value)
        plain.append(float((rows["value"] == "yes").mean()))
    error = statistics.stdev(estimates) / math.sqrt(len(estimates))
    assert error < 0.01
    assert abs(statistics.fmean(estimates) - 0.2) < 4 * error
    assert abs(statistics.fmean(plain) - 0.2) > 0.05


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """With some dozens of random draws."""
    truth, items = mixed(300)
    rows = (
        labelled(items, truth, 120, order="balance", seed=seed, random_share=0.4)
        for seed in range(200)
    )
    held = sum(0.2 in sampled_prevalence(one, "yes").interval for one in rows)
    assert 0.85 <= held / 200 <= 1.0


def test_by_hand_in_two_batches() -> None:
    """All of the first batch is a yes, all of the second a no, and all are labelled: a half is."""
    rows = [(f"a{n}", n + 1, 100, 1 / (100 - n), "yes") for n in range(100)]
    rows += [(f"b{n}", n + 101, 200, 1 / (100 - n), "no") for n in range(100)]
    assert sampled_prevalence(table(*rows[:60]), "yes").value == 1.0
    estimate = sampled_prevalence(table(*rows), "yes")
    assert estimate.value == pytest.approx(0.5)
    assert tuple(estimate.interval) == pytest.approx((0.5, 0.5))
    assert (estimate.n, estimate.random) == (200, 100)


def in_parts(parts: list[list[Known]], counts: list[int], truth: dict[str, str], seed: int) -> Any:
    """Labels of a queue that grows: so many of the items of each part and those before it that
    are left, some of them by a rule."""
    labels: list[tuple[object, ...]] = []
    waiting: list[Known] = []
    pool = 0
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        waiting, pool = [*waiting, *part], pool + len(part)
        how = {"order": "disagreement", "random_share": 0.7, "seed": seed, "pool": str(number)}
        drawn = put_in_order(waiting, drawn=len(labels), **how).queue[:count]  # type: ignore[arg-type]
        for one in drawn:
            labels.append(
                (one.trace_id, len(labels) + 1, pool, one.probability, truth[one.trace_id])
            )
        done = {one.trace_id for one in drawn}
        waiting = [item for item in waiting if item.trace_id not in done]
    return table(*labels)


@pytest.mark.parametrize(
    "counts",
    [
        [20, 12, 9],  # batches: each is labelled to its end before the next one begins
        [7, 6, 12],  # traces that join while most of those before them still wait
    ],
)
def test_it_is_unbiased_where_the_queue_grows(counts: list[int]) -> None:
    """A half of the first part is a yes, 2 of 12 of the second, a quarter of the third."""
    share = [0.5, 0.16, 0.25]
    parts, truth = [], {}
    for part, size in enumerate([20, 12, 20]):
        names = [f"{part}-{n}" for n in range(size)]
        truth.update({i: "yes" if n < share[part] * size else "no" for n, i in enumerate(names)})
        verdicts = {"yes": ("yes", "no"), "no": ("no", "no")}
        parts.append([Known(i, verdicts=verdicts[truth[i]]) for i in names])
    yes = sum(value == "yes" for value in truth.values())
    assert (yes, len(truth)) == (17, 52)
    found = [
        sampled_prevalence(in_parts(parts, counts, truth, seed), "yes").value for seed in range(400)
    ]
    error = statistics.stdev(found) / math.sqrt(len(found))
    assert error < 0.02
    assert abs(statistics.fmean(found) - yes / 52) < 4 * error


def test_items_that_others_have_taken_cost_no_draws() -> None:
    """Where they leave the queue at random the draws from before still tell of it."""
    truth = {f"t{n}": "yes" if n % 4 == 0 else "no" for n in range(60)}
    found = []
    for seed in range(500):
        chance = random.Random(seed)
        left = list(truth)
        rows: list[tuple[object, ...]] = []
        for number in range(20):
            taken = chance.choice(left)
            left.remove(taken)
            pool = len(left) + len(rows)
            drawn = chance.choice(left)
            left.remove(drawn)
            rows.append((drawn, number + 1, pool, 1 / (len(left) + 1), truth[drawn]))
        estimate = sampled_prevalence(table(*rows), "yes")
        assert estimate.random == 20
        found.append(estimate.value)
    assert abs(statistics.fmean(found) - 0.25) < 4 * statistics.stdev(found) / math.sqrt(500)


def test_what_has_no_answer_counts_neither_way() -> None:
    """Skips leave a gap in the draws, abstentions a row without a value."""
    truth = {f"t{n}": "yes" if n % 2 else "no" for n in range(60)}
    means = []
    for seed in range(400):
        rows = labelled([Known(i) for i in truth], truth, 30, seed=seed)
        silent = {f"t{n}" for n in range(0, 60, 6)}
        rows["value"] = [
            None if i in silent else v for i, v in zip(rows["trace_id"], rows["value"], strict=True)
        ]
        rows = rows[rows["trace_id"] != "t12"]
        means.append(sampled_prevalence(rows, "yes").value)
    # 30 yes among the 50 that have an answer.
    assert statistics.fmean(means) == pytest.approx(0.6, abs=0.02)


def test_accuracy_is_that_of_the_pairs() -> None:
    """The judge is right on 3 of 4 items of the queue, whatever was drawn first."""
    truth = {"a": "yes", "b": "yes", "c": "no", "d": "no"}
    judge = {"a": "yes", "b": "yes", "c": "no", "d": "yes"}
    pairs = Pairs(
        name="quality",
        table=pd.DataFrame(
            {"trace_id": list(truth), "human": truth.values(), "judge": judge.values()}
        ),
        excluded=pd.DataFrame(columns=["trace_id", "reason"]),
        scale=Scale.of(["no", "yes"]),
    )
    found = [
        sampled_accuracy(pairs, labelled([Known(i) for i in truth], truth, 2, seed=seed)).value
        for seed in range(600)
    ]
    assert statistics.fmean(found) == pytest.approx(0.75, abs=0.04)


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


def test_several_rows_of_one_trace_are_an_error() -> None:
    """Labels of two questions or two annotators are not one sample."""
    rows = table(("a", 1, 4, 0.25, "yes"), ("a", 1, 4, 0.25, "no"))
    with pytest.raises(ArgumentError, match="one question"):
        sampled_prevalence(rows, "yes")
