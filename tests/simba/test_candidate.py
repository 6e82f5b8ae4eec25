"""Candidates: instructions made of original text, rules and worked examples."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.genai.judges import make_judge

from workbench.simba.candidate import (
    Candidate,
    Item,
    one_line_json,
    shortened_json,
    without_variables,
)
from workbench.store.traces import Example
from workbench.vocabulary import EXAMPLES_HEADING, RULES_HEADING

BASE = "Rate {{ outputs }} for {{ inputs }}."


def example(trace_id: str, outputs: object, rating: str = "good", why: str = "") -> Item:
    return Item(Example(trace_id, {"q": "a"}, outputs), rating, why)


def test_the_original_is_the_base_text_to_the_letter() -> None:
    """A candidate without rules and examples is the judge's own text."""
    assert Candidate(BASE).text == BASE
    assert Candidate(BASE).added_words == 0


def test_rules_and_examples_follow_the_base() -> None:
    """Rules and examples stand behind the original text, which is never touched."""
    shown = example("tr-1", "b", why="clear")
    text = (
        Candidate(BASE).with_rules(["Be  strict."], "x").with_examples([shown], ["outputs"], 4).text
    )
    assert text.startswith(BASE)
    assert "- Be strict." in text
    assert 'outputs: "b"' in text
    assert "rating: good" in text
    assert 'why: "clear"' in text


def test_a_repeated_rule_is_left_out() -> None:
    """The same rule is not stated twice, whatever its case."""
    once = Candidate(BASE).with_rules(["Be strict."], "x")
    assert once.with_rules(["be strict.", "Be kind."], "y").rules == ("Be strict.", "Be kind.")


def test_examples_are_bounded_and_not_repeated() -> None:
    """The newest examples stay, each trace once."""
    examples = [example(f"tr-{i}", i) for i in range(5)]
    candidate = (
        Candidate(BASE)
        .with_examples(examples[:3], ["outputs"], 4)
        .with_examples(examples[2:], ["outputs"], 4)
    )
    assert [*candidate.examples] == ["tr-1", "tr-2", "tr-3", "tr-4"]


@given(st.text())
def test_learned_text_adds_no_template_variable(rule: str) -> None:
    """Whatever a model or a person wrote, MLflow takes the judge and sees only its variables."""
    hostile = rule + " {{ evil }} {{{{inputs}}}} {{trace}}"
    shown = example("tr-1", hostile, why=hostile)
    candidate = Candidate(BASE).with_rules([hostile], "x").with_examples([shown], ["outputs"], 4)
    judge = make_judge(name="q", instructions=candidate.text, model="openai:/m")
    assert judge.template_variables == {"inputs", "outputs"}


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists), st.integers(1, 50))
def test_shortened_json_is_one_line_of_json(value: object, longest: int) -> None:
    """A shown field is always valid JSON on one line, and whole unless it says it was cut."""
    text = shortened_json(value, longest)
    assert len(text.splitlines()) == 1
    read = json.loads(text)
    assert read == value or "more characters …]" in read


def test_breaking_braces_keeps_json_readable() -> None:
    """Nested JSON stays JSON when double braces are broken up."""
    value = {"a": {"b": 1}}
    assert json.loads(without_variables(json.dumps(value))) == value


@pytest.mark.parametrize(
    "sign", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\ud800"]
)
def test_no_sign_breaks_a_line_or_cannot_be_sent(sign: str) -> None:
    """Whoever splits the text by lines, and by whichever rule; what is read back is the same."""
    value = {f"ke{sign}y": [f"Überaus{sign}gut", 5]}
    text = one_line_json(value)
    assert len(text.splitlines()) == 1
    assert json.loads(text) == value
    assert "Überaus" in text
    assert text.encode()


@given(st.text(), st.text(), st.text())
def test_a_candidate_has_the_lines_that_it_was_given(rule: str, shown: str, rating: str) -> None:
    """Neither a rule nor the text, rating or reason of an example adds a line."""
    plain = Candidate(BASE).with_rules([f"Be strict. {rule}"], "x")
    text = plain.with_examples(
        [example("tr-1", shown, f"good {rating}", f"why {shown}")], ["outputs"], 4
    ).text
    assert len(text.splitlines()) == len(text.split("\n")) == 10


def test_a_rule_holds_nothing_that_cannot_be_stored() -> None:
    """Halves of surrogate pairs and control characters of a model's answer are left out."""
    rule = Candidate(BASE).with_rules(["- Be\x00strict \ud83d."], "x").rules[0]
    assert rule == "Be strict ."


_WORDS = st.sampled_from(
    ["strict", "-", "- kind", "rating: good", "\n", "\n\n", RULES_HEADING, EXAMPLES_HEADING, "why:"]
)
_TEXTS = st.lists(_WORDS | st.text(max_size=8), max_size=5).map(" ".join)


@given(_TEXTS, st.lists(_TEXTS, max_size=3), st.lists(_TEXTS, max_size=2))
def test_learned_instructions_are_taken_up_to_the_letter(
    base: str, rules: list[str], shown: list[str]
) -> None:
    """Whatever stands in them, headings too, reading instructions back changes no sign."""
    examples = [example(f"tr-{n}", one, why=one) for n, one in enumerate(shown)]
    made = Candidate(base).with_rules(rules, "x").with_examples(examples, ["outputs"], 4)
    read = Candidate.from_instructions(made.text)
    assert read.text == made.text
    assert read.key == made.key
    assert Candidate.from_instructions(read.text) == read


@given(st.lists(st.text("abc ", min_size=1), max_size=4), st.integers(0, 3))
def test_plain_learned_rules_are_read_back_as_rules(rules: list[str], count: int) -> None:
    """An aligned judge is taken up with its rules and examples apart from its own text."""
    examples = [example(f"tr-{n}", n) for n in range(count)]
    made = Candidate(BASE).with_rules(rules, "x").with_examples(examples, ["outputs"], 4)
    read = Candidate.from_instructions(made.text)
    assert (read.base, read.rules) == (BASE, made.rules)
    assert [*read.examples.values()] == [*made.examples.values()]


def test_rewriting_replaces_and_dropping_leaves_the_rest() -> None:
    """A child names its dropped rules; the parent stays as it was."""
    parent = Candidate(BASE).with_rules(["Be strict.", "Be kind.", "Be brief."], "x")
    anew = parent.rewritten(["Be fair.", "be FAIR", "Be kind."], "y")
    assert anew.rules == ("Be fair.", "Be kind.")
    assert list(anew.dropped) == ["Be strict.", "Be brief."]
    fewer = parent.without_rules({0: "harmful", 2: "idle"})
    assert fewer.rules == ("Be kind.",)
    assert fewer.dropped == {"Be strict.": "harmful", "Be brief.": "idle"}
    assert len(parent.rules) == 3


def test_a_rule_that_is_found_again_was_not_dropped() -> None:
    fewer = Candidate(BASE).with_rules(["Be strict."], "x").without_rules({0: "idle"})
    assert fewer.with_rules(["Be kind."], "y").dropped == fewer.dropped
    assert fewer.with_rules(["Be strict."], "y").dropped == {}


@pytest.mark.parametrize("rule", ["", "  ", "- ", "\n", "…", "?!"])
def test_a_rule_without_a_word_is_left_out(rule: str) -> None:
    """Blanks and bullets alone are no rule, beside others or at first."""
    assert Candidate(BASE).with_rules([rule, "Be strict.", rule], "x").rules == ("Be strict.",)
