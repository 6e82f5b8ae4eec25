"""New candidates: what is sampled, what is shown and which rules a verdict rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from stubs import BASE, RULE, SCALE, case, items

from workbench.scale import Scale
from workbench.simba.proposals import (
    CRITERIA,
    MAX_BLAMED,
    REWRITE,
    Proposer,
    blamed,
    by_direction,
    mentioned,
    newest,
    strongest,
)
from workbench.simba.reflection import Reflection, Request

RULES = [
    "Rate it poor when a promise is made.",
    "Rate it good when the joke is kind.",
    "Rate it poor when numbers are missing.",
]


def proposer(seed: int = 0, *, answers: Sequence[str] = (RULE,)) -> Proposer:
    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        return [Reflection(tuple(answers), 1) for _ in requests]

    return Proposer(reflect, SCALE, ("outputs",), seed=seed)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 99))
def test_a_draw_is_stratified(n: int, size: int, seed: int) -> None:
    """Each item at most once, as many as asked for, labels in equal numbers as far as they go."""
    given_items = items(n)
    drawn = proposer(seed).sample(given_items, size)
    assert len(drawn) == len({item.trace_id for item in drawn}) == min(size, n)
    assert drawn == proposer(seed).sample(given_items, size)
    have, got = (Counter(item.label for item in some) for some in (given_items, drawn))
    for label in have:
        assert got[label] >= min(have[label], size // 2)


def test_what_weighs_less_is_drawn_later() -> None:
    """Items that were learned from before come after new ones of their label."""
    mixed = [replace(item, weight=0.25) for item in items(10)] + items(4, start=50)
    assert {i.weight for i in proposer().sample(mixed, 4)} == {1.0}


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
    assert blamed(RULES, "It makes a promise.", 0)[0] == 0
    assert blamed(RULES, "The joke is rather kind.", 0)[0] == 1
    assert blamed(RULES, "NUMBERS are missing!", 5)[0] == 2


@given(st.lists(st.text(min_size=1), min_size=1, max_size=9), st.text(), st.integers(0, 50))
def test_suspects_are_few_and_exist(rules: list[str], said: str, turn: int) -> None:
    """At most two rules are left out of a verdict, whatever is written."""
    found = blamed(rules, said, turn)
    assert 1 <= len(found) <= MAX_BLAMED
    assert set(found) <= set(range(len(rules)))


@given(st.integers(1, 8))
def test_rules_that_no_verdict_speaks_of_take_turns(n: int) -> None:
    """Over as many verdicts as there are rules each is tried, at most two a verdict."""
    rules = [f"rule{chr(97 + i)}" for i in range(n)]
    tried = [blamed(rules, "so be it", turn) for turn in range(n)]
    assert {i for some in tried for i in some} == set(range(n))
    assert all(1 <= len(set(some)) == len(some) <= MAX_BLAMED for some in tried)


def test_examples_are_two_of_different_labels_with_reasons_first() -> None:
    """What people gave a reason for tells more, and two labels tell more than one."""
    wrong = [case(item, "fair") for item in items(10)]
    silent = [case(replace(item, rationale="")) for item in items(6, start=50)]
    shown = proposer().with_examples(BASE, [*silent, *wrong], 4).examples
    assert sorted(example.rating for example in shown) == ["good", "poor"]
    assert next(e for e in shown if e.rating == "poor").rationale == "no promises"


def test_a_rule_keeps_the_evidence_that_it_was_first_made_from() -> None:
    """Found again from other cases, a rule still names its first ones."""
    one = proposer()
    one.record_evidence([RULE], [case(item) for item in items(2)])
    one.record_evidence([RULE, "Another."], [case(item) for item in items(2, start=50)])
    assert one.evidence == {RULE: ["tr-000", "tr-001"], "Another.": ["tr-050", "tr-051"]}


def test_the_evidence_of_a_rule_is_what_people_said_of_it() -> None:
    """Of the cases that were shown with it, those whose reason speaks of the rule."""
    about = [
        case(replace(item, rationale=reason))
        for item, reason in zip(
            items(4), ["No promise, please.", "A kind joke.", "", "Such a promise!"], strict=True
        )
    ]
    one = proposer()
    one.record_evidence(RULES, about)
    assert one.evidence[RULES[0]] == ["tr-000", "tr-003"]
    assert one.evidence[RULES[1]] == ["tr-001"]
    assert one.evidence[RULES[2]] == [f"tr-00{i}" for i in range(4)]  # no reason speaks of it


@given(st.lists(st.text(min_size=1), max_size=9), st.text())
def test_a_reason_speaks_of_rules_that_exist(rules: list[str], reason: str) -> None:
    """And of none where it shares no word with any."""
    found = mentioned(rules, reason)
    assert set(found) <= set(range(len(rules)))
    assert mentioned(rules, "") == []


def test_people_are_asked_for_their_criteria_where_they_gave_reasons() -> None:
    """Blind, on all cases; not where no reason is given on those that the judge gets right."""
    wrong = [case(item, "fair") for item in items(4)]
    silent = [case(item, item.label) for item in items(9, start=50) if not item.rationale]
    telling = [case(item, item.label) for item in items(9, start=50) if item.rationale]
    one = proposer()
    assert CRITERIA not in one.requests(BASE, wrong, silent, criteria=True)
    asked = one.requests(BASE, wrong, [*silent, *telling], criteria=True)
    assert [name for name, request in asked.items() if request.blind] == [CRITERIA]
    assert len(asked[CRITERIA].disagreements) == len([*wrong, *silent, *telling])
    (answers,) = one.ask([asked], 1)
    assert one.children(BASE, asked, answers)[f"rules: {CRITERIA}"].rules == (RULE,)


def test_a_rewrite_settles_no_case_both_ways() -> None:
    """What the new list must explain is not shown as what must stay as it is as well."""
    right = [case(item, item.label) for item in items(6)]
    parent = BASE.with_rules([RULE], "x")
    request = proposer().requests(parent, right[:2], right)[REWRITE]
    assert request.agreements == tuple(right[2:])
    assert RULE in request.focus
    assert request.instructions == BASE.text


def test_children_add_rules_and_requests_are_counted() -> None:
    """All rules or the strongest half, in one batch; a request that failed gives none."""
    batches = []

    def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
        batches.append(len(requests))
        failed = [Reflection((), 1, error="cut") for _ in requests[1:]]
        return [Reflection(tuple(RULES), 1), *failed]

    one = Proposer(reflect, SCALE, ("outputs",), seed=0)
    asked = one.requests(BASE, [case(item, "fair") for item in items(6)], [])
    (answers,) = one.ask([asked], 1)
    children = list(one.children(BASE, asked, answers).values())
    assert [child.rules for child in children][:2] == [tuple(RULES), tuple(RULES[:2])]
    assert all(child.parent == BASE.key for child in children)
    assert batches == [3]
    assert (one.calls, one.failures) == (3, 2)


def test_disagreements_are_grouped_by_direction() -> None:
    """On scales with an order by how the judge errs, else by what people say; none alone."""
    four = items(4)  # labelled poor and good
    ordered = by_direction([case(item, "fair") for item in four], SCALE)
    assert {k: [c.item for c in v] for k, v in ordered.items()} == {
        "the judge rates too high": four[::2],
        "the judge rates too low": four[1::2],
    }
    assert set(by_direction([case(item, "fair") for item in four[:3]], SCALE)) == {
        "the judge rates too high"
    }
    colours = Scale.of(["red", "green", "blue"])
    red = [case(replace(item, label="red"), "blue") for item in four]
    assert set(by_direction(red, colours)) == {"people say red"}
