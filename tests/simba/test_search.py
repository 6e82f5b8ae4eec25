"""The search: what it learns from, what it may not see, and when it stops."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import (
    BASE,
    RULE,
    SCALE,
    Chance,
    Questions,
    Reflecting,
    always_good,
    answers,
    items,
    obedient,
    reflection,
    stated,
)

from workbench.errors import ArgumentError, BudgetError, CancelledError, ModelError
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Usage
from workbench.models.client import Outcome
from workbench.simba.candidate import Candidate, Item, Learned
from workbench.simba.reflection import Request
from workbench.simba.search import Search
from workbench.simba.selection import Ask
from workbench.simba.settings import FEW, Settings, most_calls
from workbench.store.traces import Example

HARMFUL, IDLE = "Rate it poor when it comes late.", "Rate it fair when pigs fly."


def run(
    train: Sequence[Item] | None = None,
    dev: Sequence[Item] | None = None,
    original: Candidate = BASE,
    *,
    ask: Ask = always_good,
    reflect: Any = None,
    **options: Any,
) -> Learned:
    train = items(20) if train is None else train
    dev = items(10, start=100) if dev is None else dev
    reflect = reflect or Reflecting()
    return Search(original, train, dev, SCALE, ("outputs",), ask, reflect, **options).run()


def test_it_learns_from_what_the_judge_always_gets_wrong() -> None:
    """A judge that is wrong in the same way each time is cured, and the evidence is kept."""
    found = run()
    assert RULE in found.best.rules
    assert found.history["dev_accuracy"].max() == 1.0
    by_id = {item.trace_id: item for item in items(20)}
    assert set(found.evidence) == set(found.best.rules)
    assert all(by_id[i].label == "poor" for i in found.evidence[RULE])


def test_dev_items_are_never_shown() -> None:
    """Neither the reflection model nor a worked example sees a dev item."""
    reflect = Reflecting()
    found = run(reflect=reflect, settings=Settings(max_steps=4, patience=4))
    shown = {c.item.trace_id for r in reflect.seen for c in (*r.disagreements, *r.agreements)}
    shown |= {*found.best.examples}
    assert shown
    assert shown <= {item.trace_id for item in items(20)}


def test_a_judge_that_is_right_stays_as_it_is() -> None:
    """Without disagreement there is nothing to learn, and no reflection is paid for."""
    reflect = Reflecting()
    found = run(ask=answers(lambda _, item: item.label), reflect=reflect)
    assert found.best == BASE
    assert not reflect.seen
    assert "nothing is left" in found.stopped


def test_a_judge_that_follows_rules_only_after_its_rationale_gives_that_first() -> None:
    """Where a step brought nothing, its candidates are tried in the other order."""

    def hasty(questions: Questions) -> list[Verdict]:
        verdicts = always_good(questions)
        return [
            v if candidate.rationale_first else replace(v, value="good")
            for (candidate, _), v in zip(questions, verdicts, strict=True)
        ]

    found = run(ask=hasty, settings=Settings(max_steps=3, patience=3))
    assert found.best.rationale_first
    assert RULE in found.best.rules
    assert any("rationale before the rating" in note for note in found.notes)
    assert not run().best.rationale_first


def test_a_judge_that_is_better_only_for_giving_its_rationale_first_needs_no_rule() -> None:
    """A very small one follows none, and each makes its request longer."""
    ask = answers(lambda c, i: i.label if c.rationale_first and not c.rules else "good")
    found = run(ask=ask, settings=Settings(max_steps=2, max_examples=0))
    assert found.best == BASE.with_rationale_first()


def test_a_description_of_a_rating_has_the_items_of_that_rating_as_evidence() -> None:
    """What a rule was made from is known of it as well."""

    def describing(requests: Sequence[Request], step: int) -> list[Outcome]:
        said = "poor: There is a promise.\ngood: It states facts.\nfair: It does neither."
        stated = [one.rules_in(said) if one.describes else [] for one in requests]
        return [reflection(tuple(rules or ())) for rules in stated]

    found = run(reflect=describing, settings=Settings(max_steps=3, patience=3, max_examples=0))
    rule = "poor: There is a promise."
    assert rule in found.best.rules
    label = {item.trace_id: item.label for item in items(20)}
    assert {label[i] for i in found.evidence[rule]} == {"poor"}


def test_a_small_judge_is_shown_reasons_and_examples_in_the_first_step() -> None:
    """People's own words and an item of each rating, with the rationale first; a good one isn't."""

    def silent(requests: Sequence[Request], step: int) -> list[Outcome]:
        return [reflection(()) for _ in requests]

    told = [replace(item, rationale=f"It is {item.label}.") for item in items(20)]
    origins = set(run(told, reflect=silent, settings=Settings(max_steps=1)).history["origin"])
    assert {"reasons that people gave, rationale first"} < origins
    assert any(origin.endswith("rationale first, examples") for origin in origins)
    half = answers(lambda _, item: "good" if item.trace_id.endswith("0") else item.label)
    origins = set(run(ask=half, reflect=silent, settings=Settings(max_steps=1)).history["origin"])
    assert not any("rationale first" in origin for origin in origins)


def test_all_that_was_asked_for_in_the_first_step_takes_part() -> None:
    """Rules and criteria of a poor judge race beside what is meant for small ones."""

    def telling(requests: Sequence[Request], step: int) -> list[Outcome]:
        said = "poor: There is a promise.\ngood: It states facts.\nfair: It does neither."
        rules = ["Think of pigs.", "Think of hens.", "Think of cows."]
        return [
            reflection(tuple((one.rules_in(said) if one.describes else rules[n:]) or ()))
            for n, one in enumerate(requests)
        ]

    told = [replace(item, rationale=f"It is {item.label}.") for item in items(20)]
    half = answers(lambda _, item: "good" if int(item.trace_id[-1]) < 6 else item.label)
    tried = set(run(told, ask=half, reflect=telling, settings=Settings(max_steps=1)).history.origin)
    assert {origin.partition(",")[0] for origin in tried} == {
        "original", "reasons that people gave", "describe each rating",
        "strongest rules: all disagreements", "strongest rules: what people go by",
        "rules: what people go by",
    }  # fmt: skip


def test_a_candidate_is_asked_only_about_items_that_count_in_its_race() -> None:
    """Those that the best one shows do not; the winner is asked about them before another race."""
    asked: list[tuple[str, str]] = []

    def ask(questions: Questions) -> list[Verdict]:
        asked.extend((candidate.key, item.trace_id) for candidate, item in questions)
        return always_good(questions)

    train, dev = items(20), items(10, start=100)
    search = Search(BASE, train, dev, SCALE, ("outputs",), ask, Reflecting())
    search.best = BASE.with_examples(train[:4], ("outputs",), 4)
    shown = {one.trace_id for one in train[:4]}
    won, lost = BASE.with_rules([RULE], "x"), BASE.with_rules(["Think of pigs."], "x")
    assert search.race(1, [won])
    assert not {i for key, i in asked if key == won.key} & shown
    search.race(2, [lost])
    assert {i for key, i in asked if key == won.key} > shown


def test_useless_rules_change_nothing() -> None:
    """Rules that help no verdict lose against the shorter original."""

    def useless(requests: Sequence[Request], step: int) -> list[Outcome]:
        return [reflection((f"Think of the number {step}.",), Usage(1)) for _ in requests]

    found = run(reflect=useless)
    assert found.best == BASE


@settings(max_examples=8)
@given(st.integers(-3, 10**6))
def test_the_same_seed_gives_the_same_result(seed: int) -> None:
    """The search is a function of its items, its answers and its seed."""
    one, two = run(seed=seed), run(seed=seed)
    assert one.best.text == two.best.text
    assert one.history.equals(two.history)


def test_seed_zero_is_a_seed_of_its_own() -> None:
    """Seed 0 draws other minibatches than 42, which MLflow's optimizer makes of it."""

    def batches(seed: int) -> list[list[str]]:
        reflect = Reflecting()
        run(reflect=reflect, seed=seed, settings=Settings(batch_size=6))
        return [[c.item.trace_id for c in r.disagreements] for r in reflect.seen]

    assert batches(0) == batches(0)
    assert batches(0) != batches(42)


def test_a_failed_call_is_not_a_disagreement() -> None:
    """Failures are counted; the reflection model is never shown one."""

    def flaky(questions: Questions) -> list[Verdict]:
        return [
            Verdict(v.trace_id, error="503", calls=1) if v.trace_id == "tr-000" else v
            for v in always_good(questions)
        ]

    reflect = Reflecting()
    found = run(ask=flaky, reflect=reflect)
    assert found.failures >= 1
    assert all(c.item.trace_id != "tr-000" for r in reflect.seen for c in r.disagreements)
    assert RULE in found.best.rules


def test_many_failures_are_an_error() -> None:
    """Above the allowed share of failures nothing is learned and the cause is shown."""

    def failing(questions: Questions) -> list[Verdict]:
        return [Verdict(item.trace_id, error="503 overloaded", calls=1) for _, item in questions]

    with pytest.raises(ModelError, match="503 overloaded"):
        run(ask=failing)
    with pytest.raises(ModelError, match="no usable verdict"):
        run(ask=answers(lambda *_: "N/A"))


def test_an_abstention_is_neither_right_nor_wrong() -> None:
    """Items on which the judge abstains count in no score and in no disagreement."""

    def shy(questions: Questions) -> list[Verdict]:
        return [
            replace(v, value="N/A") if v.trace_id.endswith("1") else v
            for v in always_good(questions)
        ]

    reflect = Reflecting()
    found = run(ask=shy, reflect=reflect)
    shown = [c.item.trace_id for r in reflect.seen for c in (*r.disagreements, *r.agreements)]
    assert not any(i.endswith("1") for i in shown)
    assert RULE in found.best.rules


def test_abstaining_does_not_pay() -> None:
    """A candidate that answers only what it is sure of does not beat one that answers all."""
    ask = answers(lambda c, i: "N/A" if c.rules and i.label == "poor" else "good")
    assert run(ask=ask).best == BASE


def test_a_candidate_that_mostly_fails_is_no_winner() -> None:
    """A score over the few calls that came through means nothing."""

    def breaking(questions: Questions) -> list[Verdict]:
        return [
            Verdict(i.trace_id, error="no JSON", calls=1)
            if c.rules and i.label == "poor"
            else Verdict(i.trace_id, "good", calls=1)
            for c, i in questions
        ]

    assert run(ask=breaking, settings=Settings(max_failure_share=1.0)).best == BASE


# -- budget ---------------------------------------------------------------------------------------


def test_a_spent_budget_keeps_the_best_so_far() -> None:
    """If the budget ends in a later step, what was found before is the result."""
    calls, limit = 0, 10**6

    def bounded(questions: Questions) -> list[Verdict]:
        nonlocal calls
        if calls + len(questions) > limit:
            raise BudgetError("spent")
        calls += len(questions)
        return always_good(questions)

    # Items that no rule puts right, so that the search does not end for want of errors.
    odd = [Item(Example(f"tr-9{i}", {}, f"odd {i}"), "fair", "odd") for i in range(3)]
    course = {"train": [*items(50), *odd], "settings": Settings(patience=10, max_steps=10)}
    run(ask=bounded, **course)
    limit, calls = calls - 1, 0
    found = run(ask=bounded, **course)
    assert found.stopped == "the budget is spent"
    assert RULE in found.best.rules


@pytest.mark.parametrize("limit", range(0, 120, 10))
def test_no_more_candidates_race_than_can_be_scored(limit: int) -> None:
    """What little is left goes to those that come to the end, or stays unspent."""
    asked = 0

    def left() -> float:
        return 50 + limit - asked

    def ask(questions: Questions) -> list[Verdict]:
        nonlocal asked
        if len(questions) > left():
            raise BudgetError("spent")
        asked += len(questions)
        return always_good(questions)

    reflect = wordy(RULE, IDLE, HARMFUL)
    once = Settings(max_steps=1)
    found = run(items(40), ask=ask, reflect=reflect, calls_left=left, settings=once)
    raced = found.history[found.history["step"] == 1]
    if limit < 50:  # all 50 items are selected on
        assert raced.empty
        assert asked == 50
        assert found.stopped == "the budget is spent"
    else:
        assert raced["dev_score"].notna().any()
        assert found.best.rules


# -- sampling -------------------------------------------------------------------------------------


def test_a_rare_label_is_in_every_minibatch() -> None:
    """Minibatches take labels in turn, so that a class with two items is not missed."""
    rare = [Item(Example(f"tr-9{i}", {}, "rare promise"), "fair", "rare") for i in range(2)]
    reflect = Reflecting()
    run([*items(40), *rare], reflect=reflect, settings=Settings(batch_size=6))
    first = reflect.seen[0]
    assert "fair" in {c.item.label for c in (*first.disagreements, *first.agreements)}


def test_balanced_weights_keep_a_rare_label() -> None:
    """What helps two rare items and breaks three common ones wins when labels weigh equal."""

    def rare(start: int) -> list[Item]:
        return [
            replace(i, label="poor" if k < 2 else "good", rationale="promise" if k < 2 else "")
            for k, i in enumerate(items(20, start))
        ]

    ask = answers(
        lambda c, i: "poor" if "promise" in stated(c) and int(i.trace_id[3:]) % 100 < 5 else "good"
    )
    assert run(rare(0), rare(100), ask=ask).best == BASE
    balanced = run(rare(0), rare(100), ask=ask, settings=Settings(class_weight="balanced"))
    assert RULE in balanced.best.rules


def test_a_large_dev_set_is_sampled() -> None:
    """No candidate is scored on more dev items than max_dev."""
    asked: dict[str, set[str]] = {}

    def counting(questions: Questions) -> list[Verdict]:
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


# -- pruning --------------------------------------------------------------------------------------


def wordy(*rules: str) -> Any:
    """A reflection model that gives these rules to whatever it is asked."""

    def reflect(requests: Sequence[Request], step: int) -> list[Outcome]:
        return [reflection(rules, Usage(1)) for _ in requests]

    return reflect


def rule_abiding(questions: Questions) -> list[Verdict]:
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
    """Of three rules only the one that helps stays; the history says which was dropped and why."""
    for seed in range(3):
        found = run(
            dev=items(30, 100), ask=rule_abiding, reflect=wordy(*order), seed=seed,
            settings=Settings(max_steps=1),
        )  # fmt: skip
        assert found.best.rules == (RULE,)
        dropped = found.best.dropped
        assert dropped[HARMFUL].startswith("harmful")
        assert dropped.get(IDLE, "idle").startswith("idle")
        assert f"'{HARMFUL}': harmful" in found.history["dropped"].str.cat()


def test_a_wavering_judge_does_not_lose_its_rules_by_chance() -> None:
    """Two rules that help both stay where one verdict in ten falls either way."""
    late = "Rate it fair when it comes late."

    def labelled(some: list[Item]) -> list[Item]:
        return [
            replace(i, label="fair", rationale="comes late") if i.trace_id[-1] in "13" else i
            for i in some
        ]

    def wavering(candidate: Candidate, item: Item) -> str:
        value = "good"
        if RULE in candidate.rules and "promise" in item.example.outputs:
            value = "poor"
        if late in candidate.rules and item.trace_id[-1] in "13":
            value = "fair"
        chance = random.Random(f"{candidate.key}{item.trace_id}")
        return chance.choice(SCALE.values) if chance.random() < 0.1 else value

    train, dev = labelled(items(50)), labelled(items(30, 100))
    for seed in range(6):
        found = run(train, dev, ask=answers(wavering), reflect=wordy(RULE, late), seed=seed)
        assert {RULE, late} <= set(found.best.rules)


# -- judges that were aligned before --------------------------------------------------------------

CHANGED = "Rate it good when a promise is made."
ALIGNED = BASE.with_rules(["Rate it poor when promise is made.", IDLE], "earlier")


def changed_their_mind(n: int, start: int) -> list[Item]:
    """People have come to like promises, and say so."""
    return [
        replace(i, label="good", rationale="a promise is good" * (i.label == "poor"))
        for i in items(n, start)
    ]


@pytest.mark.parametrize("old", [0, 20])
def test_a_rule_that_newer_labels_contradict_is_dropped(old: int) -> None:
    """Though more of the earlier labels, of less weight, ask for it; what they do not contradict
    stays, even where none of the labels shows what it is good for."""
    earlier = [replace(item, weight=0.25) for item in items(old, 500)]
    train = [*earlier, *changed_their_mind(20, 0)]
    found = run(train, changed_their_mind(12, 200), ALIGNED, ask=obedient, reflect=wordy())
    assert found.best.rules == (IDLE,)
    assert next(iter(found.best.dropped.values())).startswith("harmful")


def test_a_rule_that_newer_labels_confirm_stays() -> None:
    found = run(dev=items(12, 200), original=ALIGNED, ask=obedient, reflect=wordy(CHANGED))
    assert found.best == ALIGNED


# -- few labels -----------------------------------------------------------------------------------


def test_with_few_labels_all_are_learned_from() -> None:
    """Where a dev set would be too small to tell candidates apart, it is not kept apart."""
    reflect = Reflecting()
    found = run(items(12), items(4, start=100), reflect=reflect)
    shown = {c.item.trace_id for r in reflect.seen for c in (*r.disagreements, *r.agreements)}
    assert {item.trace_id for item in items(4, start=100)} <= shown
    assert RULE in found.best.rules


def test_examples_known_by_heart_earn_nothing() -> None:
    """A judge that only repeats what an example tells it is not taken for a better one."""
    parrot = answers(lambda c, i: i.label if c.shows(i) else "good")
    assert run(items(16), [], ask=parrot, reflect=wordy()).best == BASE


def test_examples_can_be_left_out() -> None:
    """With max_examples=0 no candidate shows any."""
    found = run(reflect=wordy(), settings=Settings(max_examples=0))
    assert found.history["examples"].max() == 0


@pytest.mark.parametrize("error", [BudgetError, CancelledError])
def test_what_ends_early_leaves_the_original(error: type[Exception]) -> None:
    """A spent budget or a cancellation before the scores are in changes nothing."""

    def ending(requests: Sequence[Request], step: int) -> list[Outcome]:
        raise error("over")

    found = run(reflect=ending)
    assert found.best == BASE
    assert found.history["calls"].max() == 30


# -- what it is made from, and what it takes ------------------------------------------------------


def test_what_is_asked_does_not_depend_on_the_ids_of_traces() -> None:
    """The same labels in another store have other ids, and must have the same reflections."""
    asked: list[list[dict[str, str]]] = []

    def reflect(requests: Sequence[Request], step: int) -> list[Outcome]:
        asked.append([request.as_inputs(SCALE) for request in requests])
        return Reflecting()(requests, step)

    learned = items(40)
    for ids in ([i.trace_id for i in learned], [i.trace_id for i in learned][::-1]):
        renamed = [
            replace(item, example=replace(item.example, trace_id=trace_id))
            for item, trace_id in zip(learned, ids, strict=True)
        ]
        run(renamed, reflect=reflect)
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]


SETTINGS = st.builds(
    Settings,
    max_steps=st.integers(1, 4),
    batch_size=st.integers(1, 20),
    max_dev=st.integers(1, 30),
    patience=st.integers(1, 4),
    max_examples=st.integers(0, 3),
)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 20), st.integers(0, 6), SETTINGS)
def test_no_search_makes_more_calls_than_announced(
    seed: int, n: int, k: int, rules: int, chosen: Settings
) -> None:
    """Whatever the models answer, with rules to leave out and rationales on right items."""
    chance = Chance(seed)
    original = BASE.with_rules([f"Rule number {chr(97 + i)}." for i in range(rules)], "x")
    train, dev = (
        [replace(i, rationale="because", weight=1.0 if int(i.trace_id[3:]) % 3 else 0.25)
         for i in some]
        for some in (items(n), items(k, 100))
    )  # fmt: skip
    with contextlib.suppress(ModelError):  # by chance there may be no opinion at all
        run(
            train, dev, original, ask=chance.ask, reflect=chance.reflect, seed=seed, settings=chosen
        )
    judge_calls, reflections = most_calls(n, k, chosen, rules)
    assert chance.judged <= judge_calls
    assert chance.reflected <= reflections
    assert n + k >= FEW or judge_calls >= n + k
