"""Rules are read from an answer whatever its form."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.simba.reflection import rules_in

TWO = ["Be strict on promises.", "Be kind to jokes."]
WORDS = ["rate", "it", "poor", "when", "people", "promise", "{so}", "[sic]"]
SENTENCES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=3).map(lambda said: f"A rule: {' '.join(said)}."),
    min_size=1,
    max_size=6,
    unique=True,
)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TWO),
        json.dumps({"rules": TWO}),
        json.dumps({"reasoning": "They all promise too much.", "rules": TWO}),
        json.dumps([{"rule": one, "strength": 3} for one in TWO]),
        json.dumps([{"rule": one, "why": "people said so often"} for one in TWO]),
        json.dumps(dict(zip("12", TWO, strict=True))),
        str(TWO),
        f"```json\n{json.dumps(TWO, indent=2)}\n```",
        f"Here are the rules that I found.\n```json\n{json.dumps(TWO)}\n```\nI hope it helps.",
        f"Here they are:\n{json.dumps({'rules': TWO}, indent=2)}",
        "\n".join(f"- {one}" for one in TWO),
        "These explain all cases.\n\n" + "\n".join(f"* {one}" for one in TWO) + "\n\nGood luck!",
        "\n".join(f"{n}. {one}" for n, one in enumerate(TWO, 1)),
        "\n".join(f"{n}) {one}" for n, one in enumerate(TWO, 1)),
        "\n\n".join(TWO),
        f"The rules are {json.dumps(TWO)}, as far as I can see.",
        "# Rules\nHere they are, strongest first:\n" + "\n".join(TWO),
        "<think>Be lenient to all of it?\n- no, not so</think>\n" + "\n".join(TWO),
        "Let me see what they share.\n[[ ## rules ## ]]\n- "
        + "\n- ".join(TWO)
        + "\n\n[[ ## completed ## ]]",
    ],
)
def test_rules_are_read_from_any_form(text: str) -> None:
    """The same two rules come out, without openings, titles and reasons."""
    assert rules_in(text) == TWO


@pytest.mark.parametrize("text", ["[]", '{"rules": []}', "[[ ## rules ## ]]\n[]"])
def test_an_empty_list_is_an_answer(text: str) -> None:
    """A model that found no rule said so."""
    assert rules_in(text) == []


@pytest.mark.parametrize(
    "text", ["", " \n", "None", "{}x", "No rules.", "I cannot help with that.", "[1, 2]", "Rules:"]
)
def test_what_is_no_sentence_is_no_rule(text: str) -> None:
    """Nothing is made up from a title, a number or a refusal."""
    assert rules_in(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.\nThese texts go against my guidelines.",
        "Unfortunately, I cannot assist with that request.",
        "Sorry, this is nothing that I may write about.\nPlease ask for something else.",
        "[[ ## rules ## ]]\nI am unable to write such rules for you.",
        "As an AI I have no opinion.\nPeople may differ on these items.",
    ],
)
def test_a_refusal_is_no_rule_and_neither_is_its_reason(text: str) -> None:
    """What a model says instead of rules never gets into a judge's instructions."""
    assert rules_in(text) is None


def test_a_rule_about_refusals_is_one() -> None:
    """Whom the rule is about is not the model itself."""
    rule = "Rate answers that say 'I cannot help with that' as bad."
    assert rules_in(rule) == [rule]
    assert rules_in(f"Sorry for the delay.\n- {rule}") == [rule]


@given(SENTENCES)
def test_every_form_gives_the_same_rules(rules: list[str]) -> None:
    """However a list of sentences is written down, it is read back in its order."""
    assert rules_in(json.dumps(rules)) == rules
    assert rules_in(json.dumps({"rules": rules}, indent=1)) == rules
    assert rules_in("\n".join(f"- {one}" for one in rules)) == rules
    assert rules_in("\n".join(f"{n}. {one}" for n, one in enumerate(rules, 1))) == rules
    assert rules_in("\n".join(rules)) == rules


@given(st.text() | st.recursive(st.text() | st.integers(), st.lists).map(json.dumps))
def test_no_answer_breaks_the_reading(text: str) -> None:
    """Whatever comes back is read or refused; a rule never has two lines."""
    assert all(len(rule.splitlines()) == 1 and rule.strip() for rule in rules_in(text) or ())
