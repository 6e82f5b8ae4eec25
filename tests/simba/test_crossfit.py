"""Learning from few labels: what is scored was not made from what it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from stubs import (
    BASE,
    RULE,
    SCALE,
    Questions,
    Reflecting,
    always_good,
    answers,
    items,
    obedient,
)

from workbench.errors import BudgetError, CancelledError
from workbench.judging.verdicts import Verdict
from workbench.simba.candidate import Candidate
from workbench.simba.crossfit import crossfit
from workbench.simba.items import Item
from workbench.simba.reflection import Reflection, Request
from workbench.simba.search import FOLDS, Optimised, Problem, Settings


def run(
    labelled: Sequence[Item] | None = None,
    original: Candidate = BASE,
    *,
    ask: Any = always_good,
    reflect: Any = None,
    calls_left: Any = None,
    **changes: Any,
) -> Optimised:
    train = items(16) if labelled is None else labelled
    problem = Problem(original, train, [], SCALE, ("outputs",), **changes)
    return crossfit(problem, ask, reflect or Reflecting(), calls_left=calls_left)


def test_it_learns_from_few_labels() -> None:
    """The rule behind a systematic error is found, and what so few labels can tell is told."""
    found = run()
    assert found.best.rules == (RULE,)
    assert found.best_score > found.original_score
    assert "16/16, 95% interval [0.81, 1.00]" in found.notes[0]
    assert "prove nothing" in found.notes[0]


def test_no_item_is_scored_by_what_was_made_from_it() -> None:
    """In cross-validation a candidate meets only items that its rules and examples never saw."""
    shown: dict[str, set[str]] = {}
    batches: list[Questions] = []

    def ask(questions: Questions) -> list[Verdict]:
        batches.append(questions)
        return always_good(questions)

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        rules = [f"Rate it poor when a promise is made, {n}." for n, _ in enumerate(requests)]
        for rule, request in zip(rules, requests, strict=True):
            cases = (*request.disagreements, *request.agreements)
            shown[rule] = {c.item.trace_id for c in cases}
        return [Reflection((rule,), 1) for rule in rules]

    learned = items(16)
    run(learned, ask=ask, reflect=reflect)
    assert len(shown) == FOLDS + 1
    everything = {item.trace_id for item in learned}
    assert [seen == everything for seen in shown.values()] == [True] + [False] * FOLDS
    scored = set()
    for candidate, item in batches[1]:
        assert item.trace_id not in {e.trace_id for e in candidate.examples}
        assert not any(item.trace_id in shown[rule] for rule in candidate.rules)
        scored |= {item.trace_id} if candidate.rules else set()
    assert scored == everything


def test_rules_that_hold_items_by_heart_never_win() -> None:
    """They are right on what they were made from, and on nothing else."""

    def by_heart(requests: Sequence[Request], step: int) -> list[Reflection]:
        return [
            Reflection(tuple(f"Know {c.item.trace_id}." for c in r.disagreements), 1)
            for r in requests
        ]

    remembering = answers(lambda c, i: i.label if f"Know {i.trace_id}." in c.rules else "good")
    found = run(ask=remembering, reflect=by_heart)
    assert found.best == BASE
    assert "nothing did better" in found.stopped


def test_examples_known_by_heart_earn_nothing() -> None:
    """A judge that only repeats what an example tells it is not taken for a better one."""

    parrot = answers(
        lambda c, i: i.label if i.trace_id in {e.trace_id for e in c.examples} else "good"
    )
    found = run(ask=parrot, reflect=lambda requests, _: [Reflection((), 1) for _ in requests])
    assert found.best == BASE


def test_examples_can_be_left_out() -> None:
    """With max_examples=0 no candidate shows any."""
    found = run(settings=Settings(max_examples=0))
    assert found.history["examples"].max() == 0
    assert found.best.rules == (RULE,)


@pytest.mark.parametrize("error", [BudgetError, CancelledError])
def test_what_ends_early_leaves_the_original(error: type[Exception]) -> None:
    """A spent budget or a cancellation before the scores are in changes nothing."""

    def ending(requests: Sequence[Request], step: int) -> list[Reflection]:
        raise error("over")

    found = run(reflect=ending)
    assert found.best == BASE
    assert found.judge_calls == 16


@pytest.mark.parametrize("reasons", [False, True])
def test_where_the_judge_is_right_people_are_asked_for_their_reasons(reasons: bool) -> None:
    """Blind, once a fold and once for all; not where they gave none."""
    seen: list[Request] = []

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        seen.extend(requests)
        return [Reflection((), 1) for _ in requests]

    learned = [replace(i, rationale="because" * reasons) for i in items(16)]
    run(learned, reflect=reflect)
    assert sum(request.blind for request in seen) == (FOLDS + 1) * reasons


def test_items_of_one_group_are_in_one_fold() -> None:
    """What was made from one of them is never scored on another."""
    shown: dict[str, set[str]] = {}

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        rules = [f"Rate it poor when promise is made, {n}." for n, _ in enumerate(requests)]
        for rule, request in zip(rules, requests, strict=True):
            shown[rule] = {c.item.group for c in (*request.disagreements, *request.agreements)}
        return [Reflection((rule,), 1) for rule in rules]

    batches: list[Questions] = []

    def ask(questions: Questions) -> list[Verdict]:
        batches.append(questions)
        return always_good(questions)

    grouped = [replace(item, group=f"conversation {n // 4}") for n, item in enumerate(items(20))]
    run(grouped, ask=ask, reflect=reflect)
    met = [(c, i) for c, i in batches[1] if c.rules]
    assert met
    assert not any(item.group in shown[rule] for c, item in met for rule in c.rules)


def test_a_rule_that_the_labels_speak_against_is_dropped() -> None:
    """What they say nothing of stays."""
    stays = "Rate it fair when pigs fly."
    aligned = BASE.with_rules(["Rate it poor when promise is made.", stays], "earlier")
    learned = [replace(item, label="good", rationale="") for item in items(20)]

    def nothing(requests: Sequence[Request], step: int) -> list[Reflection]:
        return [Reflection((), 1) for _ in requests]

    found = run(learned, aligned, ask=obedient, reflect=nothing)
    assert found.best.rules == (stays,)
    assert set(found.evidence) == {stays}


@pytest.mark.parametrize("limit", [0, 43, 44, 59, 60, 76])
def test_no_more_kinds_are_tried_than_can_be_scored(limit: int) -> None:
    """With too little for one kind and its winner nothing is spent beyond the first verdicts."""
    asked = 0

    def ask(questions: Questions) -> list[Verdict]:
        nonlocal asked
        asked += len(questions)
        return always_good(questions)

    found = run(items(16), ask=ask, calls_left=lambda: 16 + limit - asked)
    assert asked <= 16 + limit
    assert bool(found.best.rules) == (limit >= 44)
    if limit < 44:
        assert (asked, found.reflection_calls) == (16, 0)
        assert found.stopped == "the budget is spent"


def test_what_is_asked_does_not_depend_on_the_ids_of_traces() -> None:
    """The same labels in another store have other ids, and must have the same reflections."""
    asked: list[list[dict[str, str]]] = []

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        asked.append([request.as_inputs(SCALE) for request in requests])
        return reflecting(requests, step)

    reflecting, learned = Reflecting(), items(16)
    ids = [item.trace_id for item in learned]
    for other in (ids, ids[::-1]):
        renamed = [
            replace(item, example=replace(item.example, trace_id=trace_id))
            for item, trace_id in zip(learned, other, strict=True)
        ]
        run(renamed, reflect=reflect)
    assert asked[0] == asked[1]


def test_abstentions_are_neither_right_nor_wrong_in_the_interval() -> None:
    """They are no opinion, so the quoted share leaves them out."""

    def ask(questions: Questions) -> list[Verdict]:
        return [
            replace(verdict, value="N/A")
            if candidate.rules and item.example.inputs["q"] < 4
            else verdict
            for verdict, (candidate, item) in zip(always_good(questions), questions, strict=True)
        ]

    assert "12/12, 95% interval" in run(ask=ask).notes[0]
