"""New candidates: what is sampled, what is shown and which rules a verdict rests on."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from stubs import BASE, RULE, SCALE, case, items

from workbench.simba.candidate import rules_about, sample
from workbench.simba.proposals import (
    CRITERIA,
    EACH,
    EVERYTHING,
    MAX_DRAWS,
    MAX_SHOWN,
    REWRITE,
    children,
    descriptions,
    draws,
    for_small_judges,
    requests,
    with_examples,
    with_reasons,
)

RULES = [
    "Rate it poor when a promise is made.",
    "Rate it good when the joke is kind.",
    "Rate it poor when numbers are missing.",
]


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 99))
def test_a_draw_is_stratified(n: int, size: int, seed: int) -> None:
    """Each item at most once, as many as asked for, labels in equal numbers as far as they go."""
    given_items = items(n)
    drawn = sample(given_items, size, random.Random(seed))
    assert len(drawn) == len({item.trace_id for item in drawn}) == min(size, n)
    assert drawn == sample(given_items, size, random.Random(seed))
    have, got = (Counter(item.label for item in some) for some in (given_items, drawn))
    for label in have:
        assert got[label] >= min(have[label], size // 2)


def test_what_weighs_less_is_drawn_later() -> None:
    """Items that were learned from before come after new ones of their label."""
    mixed = [replace(item, weight=0.25) for item in items(10)] + items(4, start=50)
    assert {i.weight for i in sample(mixed, 4, random.Random(0))} == {1.0}


def test_a_rationale_is_about_the_rules_that_share_its_words() -> None:
    """A word that all rules have tells nothing beside one that only one of them has."""
    assert rules_about(RULES, "It makes a promise.") == [0]
    assert rules_about(RULES, "The joke is rather kind.") == [1]
    assert rules_about(RULES, "NUMBERS are missing!") == [2]
    assert rules_about(RULES, "Rate it!") == rules_about(RULES, "") == []


def test_examples_are_two_of_different_labels_with_reasons_first() -> None:
    """What people gave a reason for tells more, and two labels tell more than one."""
    wrong = [case(item, "fair") for item in items(10)]
    silent = [case(replace(item, rationale="")) for item in items(6, start=50)]
    shown = with_examples(BASE, [*silent, *wrong], ["outputs"], 4, random.Random(0)).examples
    poor, good = sorted(shown.values(), key=lambda text: "rating: good" in text)
    assert poor.endswith("rating: poor")
    assert 'why: "no promises"' in poor
    assert good.endswith("rating: good")


@given(st.lists(st.text(min_size=1), max_size=9), st.text())
def test_a_reason_speaks_of_rules_that_exist(rules: list[str], reason: str) -> None:
    """Whatever is written."""
    assert set(rules_about(rules, reason)) <= set(range(len(rules)))


def test_people_are_asked_for_their_criteria_where_they_gave_reasons() -> None:
    """Blind, on all cases; not where no reason is given on those that the judge gets right."""
    wrong = [case(item, "fair") for item in items(4)]
    silent = [case(item, item.label) for item in items(9, start=50) if not item.rationale]
    telling = [case(item, item.label) for item in items(9, start=50) if item.rationale]
    assert set(requests(BASE, wrong, silent, (), rewrite=True)) == {EVERYTHING}
    asked = requests(BASE, wrong, [*silent, *telling], (), rewrite=True)
    assert [name for name, request in asked.items() if request.blind] == [CRITERIA]
    assert len(asked[CRITERIA].disagreements) == len([*wrong, *silent, *telling])


def test_all_rules_are_asked_for_anew_where_they_may_be_outdated() -> None:
    """The request names the rules, and the judge's own instructions do not hold them any more."""
    wrong = [case(item, "fair") for item in items(4)]
    parent = BASE.with_rules([RULE], "x")
    assert REWRITE not in requests(parent, wrong, [], (), rewrite=False)
    request = requests(parent, wrong, [], (), rewrite=True)[REWRITE]
    assert RULE in request.focus
    assert request.instructions == BASE.text


def test_children_add_all_rules_or_the_stronger_half() -> None:
    """Of people's criteria and of what is asked for alone; else the half. A rewrite replaces."""
    alone = children(BASE, {EVERYTHING: RULES})
    assert [child.rules for child in alone] == [tuple(RULES[:2]), tuple(RULES)]
    both = children(BASE, {EVERYTHING: RULES, CRITERIA: RULES[2:]})
    assert [child.rules for child in both] == [tuple(RULES[:2]), *[tuple(RULES[2:])] * 2]
    parent = BASE.with_rules(RULES[:1], "x")
    anew = children(parent, {EVERYTHING: (), REWRITE: RULES[1:]})
    assert [child.rules for child in anew] == [tuple(RULES[1:])]


def test_ratings_are_described_from_a_few_items_of_each() -> None:
    """What is confused comes first, each draw has other items, and the judge's view is left out."""
    wrong = [case(one, "good") for one in items(30)]  # promises, which people rate poor
    right = [case(one, one.label) for one in items(30, start=50)]
    drawn = draws(wrong, right)
    asked = list(descriptions(BASE, drawn, ("poor", "good"), ("outputs",)).values())
    assert len(asked) == MAX_DRAWS
    for one in asked:
        assert one.describes == ("poor", "good")
        counts = Counter(case.item.label for case in one.disagreements)
        assert counts == {"poor": MAX_SHOWN, "good": MAX_SHOWN}
    assert all(c in wrong for c in asked[0].disagreements if c.item.label == "poor")
    assert not {c.item.trace_id for c in asked[0].disagreements} & {
        c.item.trace_id for c in asked[1].disagreements
    }
    shown = asked[0].as_inputs(SCALE, 8000)
    assert "judge" not in shown["rated_items"]
    assert shown["form"] == "poor: The output ...\ngood: The output ..."
    assert descriptions(BASE, drawn, range(1, 8), ("outputs",)) == {}


def test_descriptions_stand_beside_examples_of_their_draw() -> None:
    """The rationale comes first, which a judge that does so already keeps."""
    drawn = draws([case(one, "good") for one in items(30)], [])
    rules = ("poor: It makes promises.", "good: It states facts.")
    same = ("poor: It is an answer.", "good: It is an answer.")
    for parent in (BASE, replace(BASE, rationale_first=True)):
        answered = {"a": rules[:1], "b": rules, "c": same}
        (shown,) = for_small_judges(parent, drawn, answered, ("outputs",), 8)
        assert shown.rules == rules
        assert shown.rationale_first
        (few,) = for_small_judges(parent, drawn, {"a": (), "b": (), "c": ()}, ("outputs",), 8)
        assert few.rationale_first
        assert not few.rules
        ids = {c.item.trace_id for cases in drawn[1] for c in cases[:EACH]}
        assert {*shown.examples} == ids


def test_reasons_of_people_are_rules_in_their_own_words() -> None:
    """Short ones, up to three a rating, each once; none where only one rating has reasons."""
    cases = [case(replace(one, rationale=f"It is {one.label}.")) for one in items(12)]
    long = case(replace(items(1)[0], rationale="x" * 500), "good")
    made = with_reasons(BASE, [long, *cases], [])
    heads = [rule.partition(": people said ")[0] for rule in made.rules]
    assert heads == ["good", "poor"]
    assert made.rules[0] == 'good: people said "It is good"'
    many = [case(replace(one, rationale=f"reason {i}")) for i, one in enumerate(items(12))]
    assert all(rule.count('"') == 6 for rule in with_reasons(BASE, many, []).rules)
    poor = [one for one in cases if one.item.label == "poor"]
    assert with_reasons(BASE, poor, []) == BASE
