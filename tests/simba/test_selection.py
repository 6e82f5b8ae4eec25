"""Scores of candidates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stubs import BASE, RULE, SCALE, Chance, Questions, always_good, answers, items

from workbench.errors import ModelError
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale
from workbench.simba.candidate import Item
from workbench.simba.selection import Scoreboard, agrees, credit

CURED = BASE.with_rules([RULE], "x")


def board(n: int = 10, ask: object = always_good, **options: object) -> Scoreboard:
    return Scoreboard(items(n), BASE, SCALE, ask, **options)  # type: ignore[arg-type]


def test_a_verdict_is_asked_for_once() -> None:
    """Asked again, in one batch or in the next, nothing is paid."""
    asked: list[tuple[str, str]] = []

    def ask(questions: Questions) -> list[Verdict]:
        asked.extend((c.key, i.trace_id) for c, i in questions)
        return always_good(questions)

    one = board(ask=ask)
    for _ in range(2):
        one.judge([(BASE, i) for i in one.items] * 2)
    assert len(asked) == len(set(asked)) == one.calls == 10


def test_a_category_that_reads_like_an_abstention_earns_credit() -> None:
    """On a scale that has the value N/A it is right or wrong like any other; else it is neither."""

    def says(questions: Questions) -> list[Verdict]:
        return [Verdict(item.trace_id, "N/A", calls=1) for _, item in questions]

    for scale, wrong, earned in ((Scale.of(["poor", "good", "N/A"]), 4, 0.0), (SCALE, 0, None)):
        one = Scoreboard(items(4), BASE, scale, says)
        one.judge((BASE, item) for item in one.items)
        assert len(one.cases(BASE, one.items)[0]) == wrong
        assert {one.earned(BASE, item) for item in one.items} == {earned}


def test_a_shown_item_does_not_count() -> None:
    """Having been told the answer is no merit, and no fault: the candidate is not even asked."""
    one = board()
    one.judge((BASE, i) for i in one.items)
    shown = BASE.with_examples(one.items[:1], ["outputs"], 4)
    asked: list[str] = []

    def right(questions: Questions) -> list[Verdict]:
        asked.extend(i.trace_id for _, i in questions)
        return [Verdict(i.trace_id, i.label, calls=1) for _, i in questions]

    one.ask = right
    one.judge((shown, i) for i in one.items)
    assert one.items[0].trace_id not in asked
    assert one.verdict(shown, one.items[0]) is None
    assert one.score(shown)[1] == 1.0
    both = one.items[1:]
    assert one.lead(shown, BASE) == one.score(shown, both)[0] - one.score(BASE, both)[0] > 0
    assert one.is_better(shown, BASE, both[:4])
    assert not one.is_better(BASE, shown, both)


def test_an_item_that_always_fails_is_counted_once() -> None:
    """Where the original's call failed, candidates are neither asked nor scored."""

    def failing(questions: Questions) -> list[Verdict]:
        return [
            Verdict(v.trace_id, error="too long", calls=1) if v.trace_id == "tr-003" else v
            for v in always_good(questions)
        ]

    one = board(ask=failing)
    for _ in range(2):
        one.judge((BASE, i) for i in one.items)
    one.remove_failed()
    one.judge((CURED, i) for i in one.items)
    assert one.failures == 1
    assert one.score(CURED)[1] == 1.0
    assert "tr-003" not in {c.item.trace_id for side in one.cases(BASE, items(10)) for c in side}


def test_too_many_failures_are_told_with_their_cause() -> None:
    """Above the allowed share an error tells one of them; up to it none."""

    def some(questions: Questions) -> list[Verdict]:
        return [
            Verdict(i.trace_id, error="503 busy", calls=1)
            if i.trace_id < "tr-010"
            else Verdict(i.trace_id, "good", calls=1)
            for _, i in questions
        ]

    with pytest.raises(ModelError, match="503 busy"):
        board(100, some, max_failure_share=0.09).judge((BASE, i) for i in items(100))
    board(100, some, max_failure_share=0.1).judge((BASE, i) for i in items(100))


def test_a_candidate_with_unusable_answers_ends_nothing_and_does_not_win_by_them() -> None:
    """They may be due to its instructions; those of the original are due to the judge."""

    def cut(questions: Questions, whole: int = 0) -> list[Verdict]:
        return [
            replace(v, value=None, error="it was cut", unusable=True)
            if c.rules and i.trace_id >= f"tr-{whole:03}"
            else v
            for (c, i), v in zip(questions, always_good(questions), strict=True)
        ]

    one = board(40, lambda questions: cut(questions, 34))
    one.judge((c, i) for c in (BASE, CURED) for i in one.items)
    assert one.failures == 6
    assert one.score(CURED)[1] == 1.0
    assert one.lead(CURED, BASE) == pytest.approx(0.5 - 6 / 40, abs=0.01)
    broken = board(40, cut)
    broken.judge((c, i) for c in (BASE, CURED) for i in broken.items)
    assert math.isnan(broken.score(CURED)[0])
    with pytest.raises(ModelError, match=r"40 of 40 judge calls failed.*it was cut"):
        Scoreboard(items(40), CURED, SCALE, cut).judge((CURED, i) for i in items(40))


def test_length_has_its_price() -> None:
    """Of two candidates that judge alike the shorter one scores higher."""
    one, longer = board(), CURED.with_rules(["Think well before anything is said."], "x")
    one.judge((c, i) for c in (CURED, longer) for i in one.items)
    assert one.score(CURED)[0] > one.score(longer)[0]
    assert one.score(CURED)[1] == one.score(longer)[1] == 1.0


def test_without_an_opinion_there_is_no_score() -> None:
    """Neither missing verdicts nor abstentions are a score of 0."""
    one = board(ask=lambda questions: [Verdict(i.trace_id, "N/A", calls=1) for _, i in questions])
    assert all(map(math.isnan, one.score(BASE)))
    one.judge((BASE, i) for i in one.items)
    assert all(map(math.isnan, one.score(BASE)))
    assert not one.is_better(CURED, BASE, one.items[:3])


@given(st.integers(0, 10**6), st.integers(2, 20), st.data())
def test_no_candidate_drops_out_that_would_win(seed: int, n: int, data: st.DataObject) -> None:
    """What is better in the end may be so after some items; after all of them it is told alike."""

    def opinionated(questions: Questions) -> list[Verdict]:
        return [
            Verdict(v.trace_id, "fair" if v.value == "N/A" else v.value, calls=1)
            for v in Chance(seed).ask(questions)
        ]

    one = board(n, opinionated)
    one.judge((candidate, i) for candidate in (BASE, CURED) for i in one.items)
    seen = one.items[: data.draw(st.integers(1, n))]
    wins = one.is_better(CURED, BASE)
    assert one.is_better(CURED, BASE, seen) or not wins
    assert one.is_better(CURED, BASE, one.items) == wins


@given(st.integers(3, 30))
def test_balanced_labels_weigh_the_same(n: int) -> None:
    """Each label has the same weight in all, and the weights sum to the number of items."""
    one = board(n, class_weight="balanced")
    of = {
        label: sum(one.weight(i) for i in one.items if i.label == label) for label in SCALE.values
    }
    assert of["poor"] == pytest.approx(of["good"])
    assert sum(of.values()) == pytest.approx(n)


def test_near_misses_on_continuous_scales_agree() -> None:
    """Hardly any verdict equals its label there; on whole numbers only the label agrees."""
    continuous, whole = (Scale("numeric", low=0, high=10, integer=way) for way in (False, True))
    assert agrees(continuous, 7.5, 8.0)
    assert not agrees(continuous, 5.0, 8.0)
    assert not agrees(whole, 7, 8)
    assert credit(continuous, 7.5, 8.0) == pytest.approx(0.95)
    assert credit(whole, 7, 8) == pytest.approx(0.45)
    assert credit(Scale.of(["red", "green", "blue"]), "red", "green") == 0.0


@pytest.mark.parametrize(
    ("better", "worse", "is_better"), [(1, 0, True), (5, 4, False), (6, 1, True), (0, 0, False)]
)
def test_a_difference_that_chance_makes_is_no_improvement(
    better: int, worse: int, is_better: bool
) -> None:
    """One item put right is enough where nothing else changed, not where many went either way."""
    one, other = (BASE.with_rules([rule], "x") for rule in ("Be steady.", "Be wavering."))

    def value(candidate: object, item: Item) -> str:
        n = int(item.trace_id[3:])
        right = candidate == one if n < better else candidate == other or n >= better + worse
        return str(item.label) if right else {"poor": "good", "good": "poor"}[item.label]

    both = board(20, answers(value))
    both.judge((c, item) for c in (one, other) for item in both.items)
    assert both.is_better(one, other) == is_better
