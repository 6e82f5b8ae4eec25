"""How candidates are made: what is drawn, what is shown and which rules a verdict speaks of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from promises import BASE, RULE, SCALE, case, items

from workbench.simba.proposals import (
    CRITERIA,
    SUSPECTS,
    Moves,
    newest,
    spoken_of,
    strongest,
    suspects,
)
from workbench.simba.reflection import Reflection, Request

RULES = [
    "Rate it poor when a promise is made.",
    "Rate it good when the joke is kind.",
    "Rate it poor when numbers are missing.",
]


def moves(seed: int = 0, *, answers: Sequence[str] = (RULE,)) -> Moves:
    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        return [Reflection(tuple(answers), 1, tokens=10, cost=0.5) for _ in requests]

    return Moves(reflect, SCALE, ("outputs",), seed=seed)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 99))
def test_a_draw_is_stratified(n: int, size: int, seed: int) -> None:
    """Each item at most once, as many as asked for, labels in equal numbers as far as they go."""
    given_items = items(n)
    drawn = moves(seed).stratified(given_items, size)
    assert len(drawn) == len({item.trace_id for item in drawn}) == min(size, n)
    assert drawn == moves(seed).stratified(given_items, size)
    have, got = (Counter(item.label for item in some) for some in (given_items, drawn))
    for label in have:
        assert got[label] >= min(have[label], size // 2)


def test_what_weighs_less_is_drawn_later() -> None:
    """Items that were learned from before come after new ones of their label."""
    mixed = [replace(item, weight=0.25) for item in items(10)] + items(4, start=50)
    assert {i.weight for i in moves().stratified(mixed, 4)} == {1.0}


def test_older_labels_do_not_speak_against_newer_ones() -> None:
    """With two new disagreements the older cases of both sides stay out; with one they stay in."""
    old = [case(replace(item, weight=0.25)) for item in items(4)]
    new = [case(item) for item in items(4, start=50)]
    assert newest([*old[:2], *new[:2]], [*old[2:], *new[2:]]) == (new[:2], new[2:])
    assert newest([*old[:2], new[0]], old[2:]) == ([*old[:2], new[0]], old[2:])


@given(st.lists(st.text()))
def test_the_strongest_are_the_first_half(rules: list[str]) -> None:
    """Rules come strongest first; of an odd number the middle one is kept."""
    half = strongest(rules)
    assert list(half) == rules[: len(half)]
    assert len(half) == (len(rules) + 1) // 2


def test_a_verdict_speaks_of_the_rules_that_share_its_words() -> None:
    """A word that all rules have tells nothing beside one that only one of them has."""
    assert suspects(RULES, "It makes a promise.", 0)[0] == 0
    assert suspects(RULES, "The joke is rather kind.", 0)[0] == 1
    assert suspects(RULES, "NUMBERS are missing!", 5)[0] == 2


@given(st.lists(st.text(min_size=1), min_size=1, max_size=9), st.text(), st.integers(0, 50))
def test_suspects_are_few_and_exist(rules: list[str], said: str, turn: int) -> None:
    """At most two rules are left out of a verdict, whatever is written."""
    found = suspects(rules, said, turn)
    assert 1 <= len(found) <= SUSPECTS
    assert set(found) <= set(range(len(rules)))


@given(st.integers(1, 8))
def test_rules_that_no_verdict_speaks_of_take_turns(n: int) -> None:
    """Over as many verdicts as there are rules each is tried, at most two a verdict."""
    rules = [f"rule{chr(97 + i)}" for i in range(n)]
    tried = [suspects(rules, "so be it", turn) for turn in range(n)]
    assert {i for some in tried for i in some} == set(range(n))
    assert all(1 <= len(set(some)) == len(some) <= SUSPECTS for some in tried)


def test_examples_are_two_of_different_labels_with_reasons_first() -> None:
    """What people gave a reason for tells more, and two labels tell more than one."""
    wrong = [case(item, "fair") for item in items(10)]
    silent = [case(replace(item, rationale="")) for item in items(6, start=50)]
    shown = moves().with_examples(BASE, [*silent, *wrong], 4).examples
    assert sorted(example.rating for example in shown) == ["good", "poor"]
    assert next(e for e in shown if e.rating == "poor").rationale == "no promises"


def test_a_rule_keeps_the_evidence_that_it_was_first_made_from() -> None:
    """Found again from other cases, a rule still names its first ones."""
    one = moves()
    one.note([RULE], [case(item) for item in items(2)])
    one.note([RULE, "Another."], [case(item) for item in items(2, start=50)])
    assert one.evidence == {RULE: ["tr-000", "tr-001"], "Another.": ["tr-050", "tr-051"]}


def test_the_evidence_of_a_rule_is_what_people_said_of_it() -> None:
    """Of the cases that were shown with it, those whose reason speaks of the rule."""
    about = [
        case(replace(item, rationale=reason))
        for item, reason in zip(
            items(4), ["No promise, please.", "A kind joke.", "", "Such a promise!"], strict=True
        )
    ]
    one = moves()
    one.note(RULES, about)
    assert one.evidence[RULES[0]] == ["tr-000", "tr-003"]
    assert one.evidence[RULES[1]] == ["tr-001"]
    assert one.evidence[RULES[2]] == [f"tr-00{i}" for i in range(4)]  # no reason speaks of it


@given(st.lists(st.text(min_size=1), max_size=9), st.text())
def test_a_reason_speaks_of_rules_that_exist(rules: list[str], reason: str) -> None:
    """And of none where it shares no word with any."""
    found = spoken_of(rules, reason)
    assert set(found) <= set(range(len(rules)))
    assert spoken_of(rules, "") == []


_ORDER = """
from workbench.simba.proposals import suspects
rules = [f"Rate it poor when {' '.join(f'w{(7 * i + j) % 41:03}' for j in range(20))}."
         for i in range(12)]
said = " ".join(f"w{i:03}" for i in range(41))
print([suspects(rules, said[k:], 0) for k in range(0, 160, 4)])
"""


def test_what_a_verdict_speaks_of_is_the_same_in_every_process() -> None:
    """Sets of words come in another order in each process; sums over them do not differ."""
    told = {
        subprocess.run(
            [sys.executable, "-c", _ORDER],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, check=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1


def test_people_are_asked_for_by_where_the_judge_is_right() -> None:
    """In the first step, blind, on all cases; not where no reason is given on those."""
    seen: list[Request] = []

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        seen.extend(requests)
        return [Reflection((f"Rule of {r.focus[:8]}.",), 1) for r in requests]

    one = Moves(reflect, SCALE, ("outputs",), seed=0)
    wrong = [case(item, "fair") for item in items(4)]
    silent = [case(item, item.label) for item in items(9, start=50) if not item.rationale]
    telling = [case(item, item.label) for item in items(9, start=50) if item.rationale]
    one.reflected(BASE, wrong, silent, [], 1)
    one.reflected(BASE, wrong, [*silent, *telling], [], 2)
    assert not any(request.blind for request in seen)
    seen.clear()
    children = one.reflected(BASE, wrong, [*silent, *telling], [], 1)
    (blind,) = [request for request in seen if request.blind]
    assert {c.item.trace_id for c in blind.disagreements} == {
        c.item.trace_id for c in [*wrong, *silent, *telling]
    }
    assert f"rules: {CRITERIA}" in [child.origin for child in children]


def test_a_rewrite_settles_no_case_both_ways() -> None:
    """What the new list must explain is not shown as what must stay as it is as well."""
    right = [case(item, item.label) for item in items(6)]
    parent = BASE.with_rules([RULE], "x")
    request = moves().to_rewrite(parent, right[:2], right)
    assert request.agreements == tuple(right[2:])
    assert RULE in request.focus
    assert request.instructions == BASE.text


def test_children_add_rules_and_the_cost_is_counted() -> None:
    """No child equals its parent, and each request, its tokens and its cost are counted."""
    made = moves(answers=RULES)
    wrong = [case(item, "fair") for item in items(6)]
    children = made.reflected(BASE, wrong, [], [], 1)
    assert [child.rules for child in children][:2] == [tuple(RULES), tuple(RULES[:2])]
    assert all(child.parent == BASE.key for child in children)
    assert made.calls == len(made.tokens) == len(made.costs) >= 1
    assert made.reflected(BASE.with_rules(RULES, "x"), wrong, [], [], 2) == []
