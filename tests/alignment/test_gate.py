"""The gate takes a judge that tells items apart, and not one that always says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from made_pairs import YES_NO, make_pairs

from workbench.alignment.heldout import HeldOutTest, decide
from workbench.alignment.runs import Status
from workbench.judging.verdicts import Verdict
from workbench.metrics.comparison import compare
from workbench.scale import Scale
from workbench.simba.selection import usable

STEPS = Scale.of(["poor", "fair", "good", "excellent"], ordered=True)
NUMBERS = Scale("numeric", low=0.0, high=10.0)


def verdict_on(
    scale: Scale, human: Sequence[Any], before: Sequence[Any], after: Sequence[Any], gate: Any
) -> tuple[Status, str]:
    first, second = make_pairs(human, before, scale), make_pairs(human, after, scale)
    return decide(gate, HeldOutTest(first, second, compare(first, second)), first)


@pytest.mark.parametrize("gate", ["better", "significant"])
@pytest.mark.parametrize(
    ("scale", "human", "before", "constant"),
    [
        (NUMBERS, [2.0, 3.0, 4.0, 5.0, 6.0] * 12, 10.0, 4.0),
        (STEPS, ["fair", "good"] * 30, "poor", "good"),
        (YES_NO, ["yes"] * 45 + ["no"] * 15, "no", "yes"),
        (Scale.of(["red", "green", "blue"], ordered=False), ["red", "green"] * 30, "blue", "red"),
    ],
)
def test_one_verdict_for_all_is_no_judge(
    scale: Scale, human: list[Any], before: Any, constant: Any, gate: str
) -> None:
    """Nearer to most labels than a bad judge, it still tells nothing of any item."""
    n = len(human)
    status, reason = verdict_on(scale, human, [before] * n, [constant] * n, gate)
    assert status == "rejected"
    assert f"one and the same verdict on all {n} held-out items" in reason


def test_one_verdict_for_all_is_right_where_people_give_one() -> None:
    """Where all labels are the same there is nothing to tell apart."""
    assert verdict_on(YES_NO, ["yes"] * 40, ["no"] * 40, ["yes"] * 40, "better")[0] == "improved"


def test_numbers_must_lie_nearer_than_the_median_of_train() -> None:
    """A judge that scatters around the middle beats a biased one and no constant."""
    human = [2.0, 3.0, 4.0, 5.0, 6.0] * 12
    scattered = [6.0, 5.0, 4.1, 3.0, 2.0] * 12
    status, reason = verdict_on(NUMBERS, human, [10.0] * 60, scattered, "better")
    assert status == "rejected"
    assert "But always giving 4.0 is as near to people on every measure" in reason
    near = [value + 0.5 for value in human]
    assert verdict_on(NUMBERS, human, [10.0] * 60, near, "better")[0] == "improved"


def test_steps_must_be_nearer_or_more_often_right() -> None:
    """On an ordinal scale a judge that is right more often passes, though it errs far."""
    human = ["fair", "fair", "good", "excellent"] * 15
    before = ["poor"] * 60
    right_but_far = ["fair", "excellent", "good", "excellent"] * 15
    assert verdict_on(STEPS, human, before, right_but_far, "better")[0] == "improved"
    neither = ["fair", "excellent", "poor", "excellent"] * 15
    status, reason = verdict_on(STEPS, human, before, neither, "better")
    assert status == "rejected"
    assert "always giving 'fair'" in reason


def test_without_a_gate_everything_is_taken() -> None:
    """gate="none" asks for nothing."""
    human = [2.0, 6.0] * 30
    assert verdict_on(NUMBERS, human, [10.0] * 60, [4.0] * 60, "none")[0] == "improved"


def test_the_majority_label_is_told_of_and_does_not_reject() -> None:
    """A judge that finds the rare class at the price of accuracy is taken, and it is said so."""
    human = ["yes"] * 48 + ["no"] * 12
    after = ["yes"] * 36 + ["no"] * 24
    status, reason = verdict_on(YES_NO, human, ["no"] * 60, after, "better")
    assert status == "improved"
    assert "Always giving the most frequent label scores 0.800" in reason


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(YES_NO, False), (Scale.of(["yes", "no", "N/A"], ordered=False), True)],
)
def test_an_abstention_is_unusable_unless_the_scale_has_it(scale: Scale, expected: bool) -> None:
    """A category "N/A" is a rating like any other."""
    assert usable(Verdict("t", "N/A"), scale) is expected
    assert usable(Verdict("t", "yes"), scale)
    assert not usable(Verdict("t", error="no answer"), scale)


def test_a_judge_that_a_constant_beats_on_every_measure_is_rejected() -> None:
    """Right less often than always saying 5, and no nearer to people: not an improvement."""
    steps = Scale.of([1, 2, 3, 4, 5])
    human = [5] * 30 + [4] * 15 + [3] * 15
    before, after = [1] * 60, ([5, 3, 2] * 20)
    status, reason = verdict_on(steps, human, before, after, "better")
    assert status == "rejected"
    assert "always giving" in reason
    # Of two classes, a rare one that is found now and then is worth more than accuracy says.
    human = ["yes"] * 50 + ["no"] * 10
    after = ["yes"] * 40 + ["no"] * 18 + ["yes"] * 2
    assert verdict_on(YES_NO, human, ["no"] * 60, after, "better")[0] == "improved"


def test_a_gain_that_may_be_luck_is_called_uncertain() -> None:
    human = ["yes", "no"] * 20
    luck = compare(make_pairs(human, ["yes"] * 40), make_pairs(human, ["yes", "no", *["yes"] * 38]))
    assert (luck.improved, luck.certain) == (True, False)
