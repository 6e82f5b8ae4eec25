"""The share of positives behind a judge's verdicts, by Rogan-Gladen and by PPI."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import GRADES, from_confusion, make_pairs

from workbench.errors import ArgumentError, ScaleError
from workbench.metrics.prevalence import (
    prediction_powered,
    prevalence,
    rogan_gladen,
)


def test_rogan_gladen_by_hand_and_its_limits() -> None:
    cells = np.array([[90, 10], [20, 80]])  # tnr 0.9, tpr 0.8
    found = [rogan_gladen(cells, positive, 100)[0] for positive in (29, 1, 99)]
    assert found == pytest.approx([0.19 / 0.7, 0, 1])
    assert math.isnan(rogan_gladen(np.full((2, 2), 50), 30, 100)[0])
    assert math.isnan(rogan_gladen(np.array([[90, 10], [0, 0]]), 30, 100)[0])


def test_lang_reiczigel_gives_the_published_interval() -> None:
    """Example 1 of Lang and Reiczigel 2014: 0.349 to 0.372."""
    cells = np.array([[358, 1], [1, 178]])
    assert rogan_gladen(cells, 4060, 11284)[1] == pytest.approx((0.349, 0.372), abs=5e-4)


def test_the_corrected_interval_covers_the_truth() -> None:
    """In 400 simulated studies the 95 % interval holds the true prevalence nearly always."""
    rng = np.random.default_rng(0)
    truth, tpr, tnr, hits = 0.3, 0.85, 0.75, 0
    for _ in range(400):
        positive = int(rng.binomial(800, truth * tpr + (1 - truth) * (1 - tnr)))
        found, passed = rng.binomial(60, tpr), rng.binomial(90, tnr)
        cells = np.array([[passed, 90 - passed], [60 - found, found]])
        hits += truth in rogan_gladen(cells, positive, 800)[1]
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


def test_a_rate_that_no_share_of_positives_explains_is_refused() -> None:
    """Labels tell of more false alarms than there are positive verdicts: no certain 0, but why."""
    found = prevalence(from_confusion([[180, 20], [20, 180]]), ["yes"] * 250 + ["no"] * 4750)
    assert math.isnan(found.interval.low)
    assert "contradict" in found.reason
    # By few positives the two add up to just more than 1.
    doubtful = prevalence(from_confusion([[110, 890], [1, 9]]), ["yes"] * 895 + ["no"] * 105)
    assert doubtful.corrected == pytest.approx(0.5)
    assert math.isnan(doubtful.interval.low)
    assert "hardly more than 1" in doubtful.reason
    assert found.reason in repr(found)


# -- prediction-powered inference -------------------------------------------------------------


# What ppi-python 0.2.3 gives: ppi_mean_pointestimate and ppi_mean_ci(alpha=0.05).
@pytest.mark.parametrize(
    ("cells", "positive", "n", "value", "interval"),
    [
        ([[90, 10], [20, 80]], 29, 100, 0.46113097, (0.39855269, 0.52370925)),
        ([[52, 8], [5, 35]], 400, 1000, 0.37983632, (0.31129641, 0.44837622)),
        ([[5, 5], [5, 5]], 30, 100, 0.5, (0.28086936, 0.71913064)),
        ([[20, 30], [30, 20]], 30, 100, 0.5, (0.4020018, 0.5979982)),
    ],
)
def test_prediction_powered_inference_is_that_of_its_authors(
    cells: list[list[int]], positive: int, n: int, value: float, interval: tuple[float, float]
) -> None:
    """Half an item in each cell makes the interval a trifle wider than theirs."""
    found = prediction_powered(np.array(cells), positive, n)
    assert found[0] == pytest.approx(value, abs=1e-8)
    assert found[1] == pytest.approx(interval, abs=2e-3)
    assert found[1].low <= interval[0] + 1e-8
    assert found[1].high >= interval[1] - 1e-8


def test_prediction_powered_inference_by_hand() -> None:
    """2 of 4 labels are positive, the judge says 1 of 4, and 4 of 8 elsewhere."""
    spread = 5 / 12 * 7 / 12 * 12 / 11
    tuning = (1 / 4 - 1 / 2 * 1 / 4) / (1 + 4 / 8) / spread
    assert prediction_powered(np.array([[2, 0], [1, 1]]), 4, 8)[0] == pytest.approx(
        0.5 + tuning * (0.5 - 0.25)
    )


def test_degenerate_samples_claim_no_certainty() -> None:
    """Labels all alike, a judge without error, a single label: intervals keep a width."""
    for cells, positive, n in (([[30, 0], [0, 0]], 0, 10), ([[15, 0], [0, 15]], 500, 1000)):
        value, (low, high) = prediction_powered(np.array(cells), positive, n)
        assert low <= value <= high
        assert high - low > 0.05
    assert prediction_powered(np.array([[1, 0], [0, 0]]), 1, 1)[1].high > 0.9
    assert math.isnan(prediction_powered(np.zeros((2, 2), int), 3, 10)[0])
    assert math.isnan(prediction_powered(np.ones((2, 2), int), 0, 0)[0])


counts = st.integers(0, 40)


@given(st.lists(counts, min_size=4, max_size=4), st.integers(0, 50), st.integers(0, 50))
def test_it_is_the_same_seen_from_the_other_side(
    cells: list[int], positive: int, negative: int
) -> None:
    """Calling positives negatives, and negatives positives, turns the estimate around 1/2."""
    table, n = np.array(cells).reshape(2, 2), positive + negative
    value, (low, high) = prediction_powered(table, positive, n)
    other, (from_above, from_below) = prediction_powered(table[::-1, ::-1], negative, n)
    if n and table.sum():
        assert [value, low, high] == pytest.approx([1 - other, 1 - from_below, 1 - from_above])
        assert 0 <= low <= value <= high <= 1
    else:
        assert math.isnan(value)
        assert math.isnan(other)


def test_repeated_items_are_no_more_evidence_and_no_verdict_is_no_share() -> None:
    """Two items fifty times over are two; words for nothing are left out."""
    once = make_pairs(["yes", "no"] * 50, ["yes", "no"] * 50)
    same = {i: (str(k % 2), "") for k, i in enumerate(once.trace_ids)}
    verdicts = ["yes", "nan", "no"] * 100
    loose, tied = (prevalence(p, verdicts) for p in (once, replace(once, content=same)))
    assert (tied.n, tied.skipped, tied.corrected) == (200, 100, loose.corrected)
    assert tied.interval.high - tied.interval.low > 3 * (loose.interval.high - loose.interval.low)
    assert math.isnan(prevalence(once, []).corrected)


def test_rogan_gladen_is_refused_with_the_reason_and_the_rest_stands() -> None:
    """A judge that tells nothing leaves what the labels alone say."""
    useless = prevalence(from_confusion([[20, 30], [30, 20]]), ["yes"] * 3 + ["no"] * 7)
    assert math.isnan(useless.corrected)
    assert "more than 1, and the pairs tell of 0.400 and 0.400" in useless.reason
    assert useless.reason in repr(useless)
    assert useless.reason in useless._repr_html_()
    assert useless.prediction_powered == pytest.approx(0.5)
    assert useless.table["value"].isna().tolist() == [False, True, False]
    assert useless.table[["n", "labelled"]].to_numpy().tolist() == [[10, 0], [10, 100], [10, 100]]
    one_sided = prevalence(from_confusion([[5, 5], [0, 0]]), ["yes", "no"])
    assert "tell of undefined and 0.500" in one_sided.reason
    json.dumps(one_sided.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labelled", "truth", "tpr", "tnr"),
    [(100, 0.3, 0.85, 0.75), (100, 0.3, 0.95, 0.95), (30, 0.3, 0.9, 0.9), (200, 0.1, 0.9, 0.95),
     (100, 0.3, 0.5, 0.5), (50, 0.1, 0.9, 0.95)],
)  # fmt: skip
def test_the_prediction_powered_interval_covers_the_truth(
    labelled: int, truth: float, tpr: float, tnr: float
) -> None:
    """In 2,000 studies 93 to 97 % of the 95 % intervals hold the true prevalence."""
    rng, held = np.random.default_rng(0), 0
    shares = [(1 - truth) * tnr, (1 - truth) * (1 - tnr), truth * (1 - tpr), truth * tpr]
    for _ in range(2000):
        cells = rng.multinomial(labelled, shares).reshape(2, 2)
        positive = int(rng.binomial(1000, shares[1] + shares[3]))
        held += truth in prediction_powered(cells, positive, 1000)[1]
    assert 0.93 <= held / 2000 <= 0.97
