"""The loop: what it learns from, what it may not see, and when it stops."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promises import Chance, obedient

import workbench
from workbench.errors import ArgumentError, BudgetError, ModelError
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.reflection import Item, Reflection, Request
from workbench.simba.search import Optimised, Settings, _Ascent, most_calls, optimise
from workbench.simba.selection import credit
from workbench.store.traces import Example

BASE = Candidate("Rate {{ outputs }}.")
SCALE = Scale.of(["poor", "fair", "good"])
RULE = "Rate it poor when a promise is made."
SILENT: dict[str, Any] = {"scale": SCALE, "fields": ("outputs",)}


def items(n: int, start: int = 0) -> list[Item]:
    """Every second item makes a promise; people rate those poor, the others good."""
    made = []
    for i in range(start, start + n):
        promise = i % 2 == 0
        text = f"item {i}" + (" with a promise" if promise else "")
        label = "poor" if promise else "good"
        made.append(Item(Example(f"tr-{i:03}", {"q": i}, text), label, "no promises" * promise))
    return made


def always_good(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
    """A judge with a systematic error: it says good unless its text names the criterion."""
    verdicts = []
    for candidate, item in questions:
        knows = "promise" in candidate.text.split("Items that people rated")[0]
        bad = knows and "promise" in item.example.outputs
        verdicts.append(Verdict(item.trace_id, "poor" if bad else "good", "so be it", calls=1))
    return verdicts


class Reflecting:
    """Names the criterion only where a case that it is shown bears it out."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def __call__(self, requests: Sequence[Request], step: int) -> list[Reflection]:
        self.seen += requests
        return [
            Reflection(
                (RULE,) if any("promise" in c.item.rationale for c in r.disagreements) else (), 1
            )
            for r in requests
        ]


def run(**changes: Any) -> Optimised:
    options = {
        "train": items(20),
        "dev": items(10, start=100),
        "ask": always_good,
        "reflect": Reflecting(),
        **SILENT,
        **changes,
    }
    return optimise(BASE, options.pop("train"), options.pop("dev"), **options)


def test_it_learns_from_what_the_judge_always_gets_wrong() -> None:
    """A judge that is wrong in the same way each time is cured by the rule behind it."""
    found = run()
    assert RULE in found.best.rules
    assert found.best_score > found.original_score
    assert found.history["dev_accuracy"].max() == 1.0


def test_the_evidence_of_a_rule_is_its_disagreements() -> None:
    """Each rule of the winner names the train items that it was made from."""
    found = run()
    by_id = {item.trace_id: item for item in items(20)}
    assert set(found.evidence) == set(found.best.rules)
    assert all(by_id[i].label == "poor" for i in found.evidence[RULE])


def test_dev_items_are_never_shown() -> None:
    """Neither the reflection model nor a worked example sees what candidates are selected on."""
    reflect = Reflecting()
    found = run(reflect=reflect, settings=Settings(max_steps=4, patience=4))
    shown = {c.item.trace_id for r in reflect.seen for c in (*r.disagreements, *r.agreements)}
    shown |= {example.trace_id for example in found.best.examples}
    assert shown
    assert shown <= {item.trace_id for item in items(20)}


def test_a_judge_that_is_right_stays_as_it_is() -> None:
    """Without disagreement there is nothing to learn, and no reflection is paid for."""

    def right(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        return [Verdict(item.trace_id, item.label, calls=1) for _, item in questions]

    reflect = Reflecting()
    found = run(ask=right, reflect=reflect)
    assert found.best == BASE
    assert not reflect.seen
    assert "nothing is left" in found.stopped


def test_useless_rules_change_nothing() -> None:
    """Rules that help no verdict lose against the shorter original."""

    def useless(requests: Sequence[Request], step: int) -> list[Reflection]:
        return [Reflection((f"Think of the number {step}.",), 1) for _ in requests]

    found = run(reflect=useless)
    assert found.best == BASE
    assert found.best_score == found.original_score


@settings(max_examples=8)
@given(st.integers(-3, 10**6))
def test_the_same_seed_gives_the_same_result(seed: int) -> None:
    """The loop is a function of its items, its answers and its seed, and 0 is a seed."""
    one, two = run(seed=seed), run(seed=seed)
    assert one.best.text == two.best.text
    assert one.history.equals(two.history)


def test_seed_zero_is_a_seed_of_its_own() -> None:
    """Seed 0 draws other minibatches than 42, and not the same as None would."""

    def batches(seed: int) -> list[list[str]]:
        reflect = Reflecting()
        run(reflect=reflect, seed=seed, settings=Settings(batch_size=6))
        return [[c.item.trace_id for c in r.disagreements] for r in reflect.seen]

    assert batches(0) == batches(0)
    assert batches(0) != batches(42)


def test_a_failed_call_is_not_a_disagreement() -> None:
    """Failures are counted apart; the reflection model is never shown one."""

    def flaky(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        verdicts = always_good(questions)
        return [
            Verdict(v.trace_id, error="503", calls=1) if v.trace_id == "tr-000" else v
            for v in verdicts
        ]

    reflect = Reflecting()
    found = run(ask=flaky, reflect=reflect)
    assert found.failures >= 1
    assert all(c.item.trace_id != "tr-000" for r in reflect.seen for c in r.disagreements)
    assert RULE in found.best.rules


def test_many_failures_are_an_error() -> None:
    """Above the allowed share of failures nothing is learned and the cause is told."""

    def failing(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        return [Verdict(item.trace_id, error="503 overloaded", calls=1) for _, item in questions]

    with pytest.raises(ModelError, match="503 overloaded"):
        run(ask=failing)


def test_an_abstention_is_neither_right_nor_wrong() -> None:
    """Items on which the judge abstains count in no score and in no disagreement."""

    def shy(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        verdicts = always_good(questions)
        return [
            Verdict(v.trace_id, "N/A", calls=1) if v.trace_id.endswith("1") else v for v in verdicts
        ]

    reflect = Reflecting()
    found = run(ask=shy, reflect=reflect)
    shown = [c.item.trace_id for r in reflect.seen for c in (*r.disagreements, *r.agreements)]
    assert not any(i.endswith("1") for i in shown)
    assert RULE in found.best.rules


def test_a_spent_budget_keeps_the_best_so_far() -> None:
    """When the budget ends in the second step, what the first one found is the result."""
    calls = 0

    def bounded(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        nonlocal calls
        if calls + len(questions) > spent_at:
            raise BudgetError("spent")
        calls += len(questions)
        return always_good(questions)

    spent_at = 10**6
    # Items that no rule puts right, so that the loop does not end for want of errors.
    odd = [Item(Example(f"tr-9{i}", {}, f"odd {i}"), "fair", "odd") for i in range(3)]
    course = {
        "train": [*items(50), *odd],
        "dev": items(10, 100),
        "settings": Settings(patience=10, max_steps=10),
    }
    run(ask=bounded, **course)
    spent_at, calls = calls - 1, 0
    found = run(ask=bounded, **course)
    assert found.stopped == "the budget is spent"
    assert RULE in found.best.rules


@pytest.mark.parametrize("limit", range(0, 120, 5))
def test_no_more_candidates_race_than_can_be_scored(limit: int) -> None:
    """What little is left goes to those that come to the end, or stays unspent."""
    asked = 0

    def ask(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        nonlocal asked
        if len(questions) > left():
            raise BudgetError("spent")
        asked += len(questions)
        return always_good(questions)

    def left() -> float:
        return 50 + limit - asked

    course = {"ask": ask, "reflect": wordy(RULE, IDLE, HARMFUL), "train": items(40)}
    found = run(**course, dev=items(10, 100), left=left)
    raced = found.history[found.history["step"] == 1]
    if limit < 50:  # all 50 items are selected on
        assert raced.empty
        assert asked == 50
        assert found.stopped == "the budget is spent"
    else:
        assert raced["dev_score"].notna().any()
        assert found.best.rules


def test_a_rare_label_is_in_every_minibatch() -> None:
    """Minibatches take labels in turn, so that a class with two items is not missed."""
    rare = [Item(Example(f"tr-9{i}", {}, "rare promise"), "fair", "rare") for i in range(2)]
    reflect = Reflecting()
    run(train=[*items(40), *rare], reflect=reflect, settings=Settings(batch_size=6))
    shown = [{c.item.label for c in (*r.disagreements, *r.agreements)} for r in reflect.seen[:1]]
    assert "fair" in shown[0]


def test_abstaining_does_not_pay() -> None:
    """A candidate that answers only what it is sure of does not beat one that answers all."""

    def shy(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        return [
            Verdict(i.trace_id, "N/A" if c.rules and i.label == "poor" else "good", calls=1)
            for c, i in questions
        ]

    assert run(ask=shy).best == BASE


def test_a_candidate_that_mostly_fails_is_no_winner() -> None:
    """A score over the few calls that came through means nothing."""

    def breaking(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        return [
            Verdict(i.trace_id, error="no JSON", calls=1)
            if c.rules and i.label == "poor"
            else Verdict(i.trace_id, "good", calls=1)
            for c, i in questions
        ]

    found = run(ask=breaking, settings=Settings(max_failure_share=1.0))
    assert found.best == BASE


def test_balanced_weights_keep_a_rare_label() -> None:
    """What helps two rare items and breaks three common ones wins when labels weigh equal."""

    def rare(n: int, start: int) -> list[Item]:
        every = items(n, start)
        return [
            Item(i.example, "poor" if k < 2 else "good", "promise" if k < 2 else "")
            for k, i in enumerate(every)
        ]

    def judge(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        found = []
        for candidate, item in questions:
            strict = "promise" in candidate.text.split("Items that people rated")[0]
            number = int(item.trace_id[3:]) % 100
            found.append(
                Verdict(item.trace_id, "poor" if strict and number < 5 else "good", calls=1)
            )
        return found

    common = {"train": rare(20, 0), "dev": rare(20, 100), "ask": judge}
    assert run(**common).best == BASE
    balanced = run(**common, settings=Settings(class_weight="balanced"))
    assert RULE in balanced.best.rules


def test_a_large_dev_set_is_sampled() -> None:
    """No candidate is scored on more dev items than max_dev."""
    asked: dict[str, set[str]] = {}

    def counting(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        for candidate, item in questions:
            if item.trace_id >= "tr-100":
                asked.setdefault(candidate.key, set()).add(item.trace_id)
        return always_good(questions)

    run(dev=items(80, start=100), ask=counting, settings=Settings(max_dev=12))
    assert max(len(ids) for ids in asked.values()) == 12


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "patience", "max_dev"])
def test_settings_out_of_range_are_named(name: str) -> None:
    """A count below 1 is an error that names the argument."""
    with pytest.raises(ArgumentError, match=name):
        Settings(**{name: 0})


@given(st.sampled_from(SCALE.values), st.sampled_from(SCALE.values))
def test_credit_is_full_only_for_the_label(verdict: str, label: str) -> None:
    """A near miss earns less than half, more than a far miss, and the label itself 1."""
    earned = credit(SCALE, verdict, label)
    assert 0 <= earned <= 1
    assert (earned == 1) == (verdict == label)
    if verdict != label:
        assert earned == (1 - SCALE.distance(verdict, label)) / 2


def test_optimizer_is_mlflows() -> None:
    """workbench.SIMBA is an AlignmentOptimizer, so Judge.align takes it."""
    from mlflow.genai.judges.base import AlignmentOptimizer

    assert isinstance(workbench.SIMBA(), AlignmentOptimizer)
    with pytest.raises(ArgumentError, match="dev_size"):
        workbench.SIMBA(dev_size=1.5)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(3, 40),
    st.integers(1, 20),
    st.builds(
        Settings,
        max_steps=st.integers(1, 4),
        batch_size=st.integers(1, 20),
        max_dev=st.integers(1, 30),
        patience=st.integers(1, 4),
        max_examples=st.integers(0, 3),
    ),
)
def test_no_run_costs_more_than_is_told(seed: int, n: int, k: int, chosen: Settings) -> None:
    """Whatever judge and reflection model answer, the bound on calls holds."""
    chance = Chance(seed)
    with contextlib.suppress(ModelError):  # chance may have no opinion at all
        run(
            train=items(n),
            dev=items(k, 100),
            ask=chance.ask,
            reflect=chance.reflect,
            seed=seed,
            settings=chosen,
        )
    judged, reflected = most_calls(n, k, chosen, SCALE)
    assert chance.judged <= judged
    assert chance.reflected <= reflected


@given(st.integers(0, 10**6), st.integers(3, 50), st.integers(1, 30))
def test_heats_have_each_item_once(seed: int, n: int, k: int) -> None:
    """Whoever comes through all heats has been scored on all items, and on none twice."""
    told = (items(n), items(k, 100), SCALE, ("outputs",), always_good, Reflecting(), seed)
    ascent = _Ascent(BASE, *told, Settings(), None)
    ascent.board.judge((BASE, item) for item in ascent.board.items)
    heats = ascent.heats(BASE)
    assert all(heats)
    assert sorted(i.trace_id for heat in heats for i in heat) == sorted(
        i.trace_id for i in ascent.board.items
    )


HARMFUL, IDLE = "Rate it poor when it comes late.", "Rate it fair when pigs fly."


def wordy(*rules: str) -> Any:
    """A reflection model that gives these rules to whatever it is asked."""

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        return [Reflection(rules, 1) for _ in requests]

    return reflect


def rule_abiding(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
    """Follows each rule to the letter: items whose number ends in 1 or 3 come late."""
    found = []
    for candidate, item in questions:
        late = item.trace_id[-1] in "13" and HARMFUL in candidate.rules
        promise = "promise" in item.example.outputs and RULE in candidate.rules
        said = "it comes late" if late else "a promise is made" if promise else "so be it"
        found.append(Verdict(item.trace_id, "poor" if late or promise else "good", said, calls=1))
    return found


@pytest.mark.parametrize("order", [(RULE, HARMFUL, IDLE), (IDLE, HARMFUL, RULE)])
def test_idle_and_harmful_rules_are_pruned(order: tuple[str, ...]) -> None:
    """Of three rules that are given together only the one that helps stays."""
    for seed in range(3):
        found = run(ask=rule_abiding, reflect=wordy(*order), dev=items(30, 100), seed=seed)
        assert found.best.rules == (RULE,)


def test_a_wavering_judge_does_not_lose_its_rules_by_chance() -> None:
    """Two rules that help both stay where one verdict in ten falls either way."""
    late = "Rate it fair when it comes late."

    def labelled(some: list[Item]) -> list[Item]:
        return [
            Item(i.example, "fair", "comes late") if i.trace_id[-1] in "13" else i for i in some
        ]

    def wavering(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        found = []
        for candidate, item in questions:
            value = "good"
            if RULE in candidate.rules and "promise" in item.example.outputs:
                value = "poor"
            if late in candidate.rules and item.trace_id[-1] in "13":
                value = "fair"
            chance = random.Random(f"{candidate.key}{item.trace_id}")
            if chance.random() < 0.1:
                value = chance.choice(SCALE.values)
            found.append(Verdict(item.trace_id, value, "so be it", calls=1))
        return found

    course = {"train": labelled(items(50)), "dev": labelled(items(30, 100)), "ask": wavering}
    for seed in range(6):
        assert {RULE, late} <= set(run(**course, reflect=wordy(RULE, late), seed=seed).best.rules)


CHANGED = "Rate it good when a promise is made."
ALIGNED = BASE.with_rules(["Rate it poor when promise is made.", IDLE], "earlier")


def changed_their_mind(n: int, start: int) -> list[Item]:
    """People have come to like promises, and say so."""
    return [
        Item(i.example, "good", "a promise is good" * (i.label == "poor")) for i in items(n, start)
    ]


@pytest.mark.parametrize("old", [0, 20])
def test_a_rule_that_newer_labels_speak_against_is_dropped(old: int) -> None:
    """Though more of the earlier labels, of less weight, ask for it; what they do not contradict
    stays, even where none of the labels tells what it is good for."""
    earlier = [Item(i.example, i.label, i.rationale, weight=0.25) for i in items(old, 500)]
    newer = changed_their_mind(20, 0)
    found = optimise(
        ALIGNED, [*earlier, *newer], changed_their_mind(12, 200), ask=obedient,
        reflect=wordy(), **SILENT,
    )  # fmt: skip
    assert found.best.rules == (IDLE,)
    assert found.best_score == pytest.approx(1.0, abs=0.01)  # less the price of its words


def test_a_rule_that_newer_labels_bear_out_stays() -> None:
    found = optimise(
        ALIGNED, items(20), items(12, 200), ask=obedient, reflect=wordy(CHANGED), **SILENT
    )
    assert found.best == ALIGNED


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 20), st.integers(1, 6))
def test_an_aligned_judge_costs_no_more_than_is_told(seed: int, n: int, k: int, rules: int) -> None:
    """With rules to leave out, and reasons where the judge is right, too."""
    chance = Chance(seed)
    aligned = BASE.with_rules([f"Rule number {chr(97 + i)}." for i in range(rules)], "x")

    def told(some: list[Item]) -> list[Item]:
        return [Item(i.example, i.label, "because", 1.0 if int(i.trace_id[3:]) % 3 else 0.25)
                for i in some]  # fmt: skip

    given_items = (told(items(n)), told(items(k, 100)))
    with contextlib.suppress(ModelError):
        optimise(aligned, *given_items, ask=chance.ask, reflect=chance.reflect, seed=seed, **SILENT)
    judged, reflected = most_calls(n, k, Settings(), SCALE, rules)
    assert chance.judged <= judged
    assert chance.reflected <= reflected


@pytest.mark.parametrize(
    ("better", "worse", "is_better"), [(1, 0, True), (5, 4, False), (6, 1, True), (0, 0, False)]
)
def test_a_difference_that_chance_makes_is_no_betterment(
    better: int, worse: int, is_better: bool
) -> None:
    """One item put right is enough where nothing else changed, not where many went either way."""
    one, other = (BASE.with_rules([rule], "x") for rule in ("Be steady.", "Be wavering."))

    def ask(questions: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        found = []
        for candidate, item in questions:
            n = int(item.trace_id[3:]) - 100
            right = candidate == one if n < better else candidate == other or n >= better + worse
            wrong = "good" if item.label == "poor" else "poor"
            found.append(Verdict(item.trace_id, item.label if right else wrong, calls=1))
        return found

    told = (items(4), items(20, 100), SCALE, ("outputs",), ask, Reflecting(), 0)
    ascent = _Ascent(BASE, *told, Settings(max_dev=20), None)
    ascent.board.judge((c, item) for c in (one, other) for item in ascent.board.items)
    assert ascent.is_better(one, other) == is_better
