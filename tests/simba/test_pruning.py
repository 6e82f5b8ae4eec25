"""Which rules are found to do harm or nothing, and what it costs to find out."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from promises import BASE, SCALE, Chance, Questions, items, obedient

from workbench.judging.verdicts import Verdict
from workbench.simba.candidate import Candidate
from workbench.simba.proposals import SUSPECTS, Moves
from workbench.simba.reflection import Item, Reflection
from workbench.simba.selection import Ask, Scoreboard, Trial, harmful, idle, left_out, prunings

HELPS = "Rate it poor when promise is made."
HARMS = "Rate it fair when item is written."
IDLE = "Rate it fair when pigs fly."


def tried(
    candidate: Candidate, ask: Ask, some: list[Item], most: tuple[int, int] = (6, 12), seed: int = 0
) -> list[Trial]:
    board = Scoreboard(some, BASE, SCALE, ask)
    board.judge((candidate, item) for item in board.items)
    moves = Moves(lambda requests, step: [Reflection((), 1)] * len(requests), SCALE, (), seed=seed)
    return left_out(candidate, board, moves, *most)


def test_what_harms_and_what_does_nothing_is_found() -> None:
    """The rule that helps is neither."""
    candidate = BASE.with_rules([HARMS, HELPS, IDLE], "x")
    trials = tried(candidate, obedient, items(20))
    assert harmful(trials) == (0,)
    assert idle(3, trials) == (2,)
    assert [child.rules for child in prunings(candidate, trials)] == [(HELPS,), (HELPS, IDLE)]
    kept = prunings(candidate, trials, drop_idle=False)
    assert [child.rules for child in kept] == [(HELPS, IDLE)]


def test_what_weighs_more_has_the_say() -> None:
    """A rule that older labels ask for does harm where newer ones, fewer, speak against it."""
    candidate = BASE.with_rules([HELPS], "x")
    old = [replace(item, weight=0.25) for item in items(12)]
    new = [replace(item, label="good") for item in items(8, start=50)]
    assert harmful(tried(candidate, obedient, [*old, *new], (40, 40))) == (0,)
    assert harmful(tried(candidate, obedient, old, (40, 40))) == ()


def test_nothing_is_pruned_where_nothing_is_wrong() -> None:
    trials = tried(BASE.with_rules([HELPS], "x"), obedient, items(20))
    assert prunings(BASE.with_rules([HELPS], "x"), trials) == []


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
    trials = tried(candidate, ask, items(n), (most, most), seed)
    assert asked - n <= min(SUSPECTS, rules) * min(n, 2 * most)
    pairs = [(trial.rule, trial.item.trace_id) for trial in trials]
    assert len(set(pairs)) == len(pairs)


def test_a_call_that_failed_speaks_neither_for_a_rule_nor_against_it() -> None:
    """Where every trial of a rule failed nobody knows, so it is neither harmful nor idle."""
    candidate = BASE.with_rules([HARMS, HELPS, IDLE], "x")

    def failing(questions: Questions) -> list[Verdict]:
        return [
            Verdict(item.trace_id, None, error="503", calls=1) if len(c.rules) == 2 else verdict
            for verdict, (c, item) in zip(obedient(questions), questions, strict=True)
        ]

    board = Scoreboard(items(20), BASE, SCALE, failing, max_failure_share=1)
    board.judge((candidate, item) for item in board.items)
    moves = Moves(lambda requests, step: [Reflection((), 1)] * len(requests), SCALE, (), seed=0)
    trials = left_out(candidate, board, moves)
    assert {trial.gain for trial in trials} == {0.0}
    assert harmful(trials) == ()
    assert not {trial.rule for trial in trials} & set(idle(3, trials))
