"""Scores of candidates, and which of their rules are dropped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import BASE, RULE, SCALE, Chance, Questions, always_good, case, items, obedient

from workbench.errors import ModelError
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.items import Item
from workbench.simba.proposals import MAX_BLAMED, Proposer
from workbench.simba.selection import (
    Ablation,
    Ask,
    Scoreboard,
    ablate,
    agrees,
    credit,
    dropped_rules,
    prune,
)

CURED = BASE.with_rules([RULE], "x")


HELPS = "Rate it poor when promise is made."
HARMS = "Rate it fair when item is written."
IDLE = "Rate it fair when pigs fly."


def proposer(seed: int = 0) -> Proposer:
    return Proposer(lambda *_: [], SCALE, ("outputs",), seed=seed)


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


def test_a_shown_item_counts_as_the_original_judged_it() -> None:
    """Having been told the answer is no merit: the candidate is not even asked."""
    one = board()
    one.judge((BASE, i) for i in one.items)
    shown = proposer().with_examples(BASE, [case(one.items[0])], 4)
    asked: list[str] = []

    def right(questions: Questions) -> list[Verdict]:
        asked.extend(i.trace_id for _, i in questions)
        return [Verdict(i.trace_id, i.label, calls=1) for _, i in questions]

    one.ask = right
    one.judge((shown, i) for i in one.items)
    assert one.items[0].trace_id not in asked
    assert one.verdict(shown, one.items[0]) == one.verdict(BASE, one.items[0])
    assert one.score(shown)[1] == 0.9


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


def test_length_has_its_price() -> None:
    """Of two candidates that judge alike the shorter one scores higher."""
    one, longer = board(), CURED.with_rules(["Think well before anything is said."], "x")
    one.judge((c, i) for c in (CURED, longer) for i in one.items)
    assert one.score(CURED)[0] > one.score(longer)[0]
    assert one.score(CURED)[1] == one.score(longer)[1] == 1.0
    assert one.is_flawless(longer)


def test_without_an_opinion_there_is_no_score() -> None:
    """Neither missing verdicts nor abstentions are a score of 0."""
    one = board(ask=lambda questions: [Verdict(i.trace_id, "N/A", calls=1) for _, i in questions])
    assert all(map(math.isnan, one.score(BASE)))
    one.judge((BASE, i) for i in one.items)
    assert all(map(math.isnan, one.score(BASE)))
    assert one.upper_bound(BASE, one.items) == -math.inf


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 20), st.data())
def test_no_candidate_does_better_than_it_can(seed: int, n: int, data: st.DataObject) -> None:
    """What is left to a candidate after some items is never less than what it comes to."""

    def opinionated(questions: Questions) -> list[Verdict]:
        return [
            Verdict(v.trace_id, "fair" if v.value == "N/A" else v.value, calls=1)
            for v in Chance(seed).ask(questions)
        ]

    one = board(n, opinionated)
    one.judge((BASE, i) for i in one.items)
    seen = one.items[: data.draw(st.integers(1, n))]
    assert one.upper_bound(BASE, seen) >= one.score(BASE)[0] - 1e-9
    assert one.upper_bound(BASE, one.items) == pytest.approx(one.score(BASE)[0])


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


# -- which rules are dropped ---------------------------------------------------------------------


def ablated(
    candidate: Candidate, ask: Ask, some: list[Item], most: tuple[int, int] = (6, 12), seed: int = 0
) -> list[Ablation]:
    board = Scoreboard(some, BASE, SCALE, ask)
    board.judge((candidate, item) for item in board.items)
    return ablate(candidate, board, proposer(seed), *most)


def test_what_harms_and_what_does_nothing_is_found() -> None:
    """The rule that helps is neither."""
    candidate = BASE.with_rules([HARMS, HELPS, IDLE], "x")
    ablations = ablated(candidate, obedient, items(20))
    assert list(dropped_rules(3, ablations)[0]) == [0]
    assert list(dropped_rules(3, ablations)[1]) == [2]
    assert [child.rules for child in prune(candidate, ablations)] == [(HELPS,), (HELPS, IDLE)]
    dropped = {one.rule: one.reason for one in prune(candidate, ablations)[0].dropped}
    assert dropped[HARMS].startswith("harmful")
    assert dropped[IDLE].startswith("idle")
    kept = prune(candidate, ablations, drop_idle=False)
    assert [child.rules for child in kept] == [(HELPS, IDLE)]


def test_what_weighs_more_has_the_say() -> None:
    """A rule that older labels ask for does harm where newer ones, fewer, speak against it."""
    candidate = BASE.with_rules([HELPS], "x")
    old = [replace(item, weight=0.25) for item in items(12)]
    new = [replace(item, label="good") for item in items(8, start=50)]
    harmful, _ = dropped_rules(1, ablated(candidate, obedient, [*old, *new], (40, 40)))
    assert list(harmful) == [0]
    harmful, _ = dropped_rules(1, ablated(candidate, obedient, old, (40, 40)))
    assert not harmful


def test_nothing_is_pruned_where_nothing_is_wrong() -> None:
    ablations = ablated(BASE.with_rules([HELPS], "x"), obedient, items(20))
    assert prune(BASE.with_rules([HELPS], "x"), ablations) == []


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 30), st.integers(1, 9))
def test_it_costs_two_calls_an_item_at_most(seed: int, rules: int, n: int, most: int) -> None:
    """Whatever verdicts say, and no rule is left out twice on one item."""
    chance = Chance(seed)
    asked = 0

    def ask(questions: Questions) -> list[Verdict]:
        nonlocal asked
        asked += len(questions)
        return chance.ask(questions)

    candidate = BASE.with_rules([f"Rule number {chr(97 + i)}." for i in range(rules)], "x")
    ablations = ablated(candidate, ask, items(n), (most, most), seed)
    assert asked - n <= min(MAX_BLAMED, rules) * min(n, 2 * most)
    pairs = [(one.rule, one.item.trace_id) for one in ablations]
    assert len(set(pairs)) == len(pairs)


def test_a_call_that_failed_speaks_neither_for_a_rule_nor_against_it() -> None:
    """Where every one of a rule failed nobody knows, so it is neither harmful nor idle."""
    candidate = BASE.with_rules([HARMS, HELPS, IDLE], "x")

    def failing(questions: Questions) -> list[Verdict]:
        return [
            Verdict(item.trace_id, None, error="503", calls=1) if len(c.rules) == 2 else verdict
            for verdict, (c, item) in zip(obedient(questions), questions, strict=True)
        ]

    board = Scoreboard(items(20), BASE, SCALE, failing, max_failure_share=1)
    board.judge((candidate, item) for item in board.items)
    ablations = ablate(candidate, board, proposer())
    assert {one.gain for one in ablations} == {None}
    harmful, idle = dropped_rules(3, ablations)
    assert not harmful
    assert not {one.rule for one in ablations} & set(idle)
