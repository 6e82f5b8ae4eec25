"""What the reflection model is shown, and which rules its answer states."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.judging.verdicts import Verdict
from workbench.scale import Scale
from workbench.simba.candidate import Case, Item
from workbench.simba.reflection import TASK, Request, allowed_values, rules_in, tokens_in
from workbench.store.traces import Example

SCALE = Scale.of(["poor", "fair", "good"])


def case(i: int, outputs: str, verdict: str, label: str) -> Case:
    item = Item(Example(f"tr-{i}", {"q": i}, outputs, {"gold": "x"}), label, f"because {i}")
    return Case(item, Verdict(f"tr-{i}", verdict, f"seems {verdict}"))


def request(fields: tuple[str, ...] = ("inputs", "outputs"), n: int = 8) -> Request:
    wrong = tuple(case(i, f"it is {i} cm", "poor", "good") for i in range(n))
    right = tuple(case(i, "it is nice", "poor", "poor") for i in range(n, 2 * n))
    return Request("Rate {{ outputs }}.", wrong, right, fields, "the judge rates too low")


def test_a_case_shows_both_sides_with_their_reasons() -> None:
    """Verdict and rationale of the judge stand beside label and rationale of people."""
    shown = json.loads(request().as_inputs(SCALE)["disagreements"].splitlines()[0])
    assert shown["judge_verdict"] == "poor"
    assert shown["judge_rationale"] == "seems poor"
    assert shown["human_label"] == "good"
    assert shown["human_rationale"] == "because 0"
    assert shown["outputs"] == "it is 0 cm"


def test_a_blind_request_leaves_out_what_the_judge_said() -> None:
    """Labels and people's reasons alone, and it is another question to the cache."""
    blind = replace(request(), blind=True).as_inputs(SCALE)
    for line in [*blind["disagreements"].splitlines(), *blind["agreements"].splitlines()]:
        assert {"human_label", "human_rationale", "outputs"} <= set(json.loads(line))
        assert "judge" not in line
    assert blind != request().as_inputs(SCALE)


def test_only_what_the_judge_sees_is_shown() -> None:
    """A judge of outputs alone is not explained by inputs or gold answers."""
    shown = json.loads(
        request(fields=("outputs",)).as_inputs(SCALE)["disagreements"].splitlines()[0]
    )
    assert "inputs" not in shown
    assert "expectations" not in shown


def test_a_case_is_one_line_whatever_it_holds() -> None:
    """Line separators of any alphabet in a text or a rationale do not break a case in two."""
    odd = tuple(case(i, f"a\u2028b\x85c\u2029d\x0be {i}", "poor", "good") for i in range(3))
    inputs = Request("r", odd, (), ("outputs",)).as_inputs(SCALE)
    assert len(inputs["disagreements"].splitlines()) == 3


def test_long_fields_are_cut_and_say_so() -> None:
    """A text of megabytes does not fill the prompt."""
    huge = Request("r", (case(0, "x" * 5_000_000, "poor", "good"),), (), ("outputs",))
    line = huge.as_inputs(SCALE)["disagreements"]
    assert len(line) < 4000
    assert "more characters" in json.loads(line)["outputs"]


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (SCALE, {"values": ["poor", "fair", "good"], "ordered": True}),
        (
            Scale.of(["red", "green", "blue"]),
            {"values": ["red", "green", "blue"], "ordered": False},
        ),
        (
            Scale("numeric", low=1, high=5, integer=True),
            {"range": [1, 5], "whole_numbers": True, "ordered": True},
        ),
    ],
)
def test_the_scale_is_told(scale: Scale, told: dict[str, object]) -> None:
    """The reflection model knows the values and whether they have an order."""
    assert allowed_values(scale) == told


def shown(request: Request, context: int | None = None) -> list[dict[str, str]]:
    """The cases in a request's prompt."""
    inputs = request.as_inputs(SCALE, context)
    lines = [*inputs["disagreements"].splitlines(), *inputs["agreements"].splitlines()]
    return [json.loads(line) for line in lines]


@given(st.integers(2000, 50_000), st.integers(2, 60), st.integers(0, 60), st.integers(0, 900))
def test_a_prompt_fits_into_the_context(context: int, n: int, m: int, size: int) -> None:
    """Disagreements and agreements are kept as far as they fit, and all of them if they do."""
    wrong = tuple(case(i, f"{i} " + "x" * size, "poor", "good") for i in range(n))
    right = tuple(case(i, f"{i} " + "y" * size, "poor", "poor") for i in range(m))
    one = Request("Rate {{ outputs }}.", wrong, right, ("outputs",))
    prompt = sum(map(tokens_in, (TASK, *one.as_inputs(SCALE, context).values())))
    kept = shown(one, context)
    assert sum(c["human_label"] == "good" for c in kept) >= 2
    assert prompt <= context or len(kept) <= 4
    whole = one.as_inputs(SCALE)
    if sum(map(tokens_in, (TASK, *whole.values()))) + 1600 <= context:
        assert one.as_inputs(SCALE, context) == whole


def test_the_most_telling_cases_are_kept() -> None:
    """Those with a rationale come first; texts are shortened in the middle before."""
    cases = [case(i, f"begin {'x' * 900} end", "poor", "good") for i in range(40)]
    silent = [replace(c, item=replace(c.item, rationale="")) for c in cases[::2]]
    one = Request("r", (*silent, *cases[1::2]), (), ("outputs",))
    kept = shown(one, 3200)
    assert 12 <= len(kept) < 40
    assert sum(bool(c["human_rationale"]) for c in kept) == min(20, len(kept))
    assert all(c["outputs"].startswith("begin") and c["outputs"].endswith("end") for c in kept)
    assert "more characters" in kept[0]["outputs"]


def test_rules_that_say_nothing_new_are_dropped() -> None:
    """Empty and repeated ones, and what was copied from the prompt."""
    one = Request("Rate {{ outputs }}. Be strict on prices.", (), (), ("outputs",))
    copied = "A rule must not change the rating of the agreements."
    stated = ["", "Be kind to jokes.", copied, "be kind, to jokes", "...", "Be strict on prices"]
    assert one.usable_rules(stated) == ["Be kind to jokes."]


@pytest.mark.parametrize(
    "useless",
    [
        "If the human label is good, the judge should explain why the answer is good.",
        "Rate good what is rated good by the annotators.",
        "The judge's verdict must be changed where it is poor.",
        "Follow the disagreements.",
        "When the judge and the human disagree, rate good.",
        "If the label is good, rate it good.",
        "The judge does not agree with the cases labeled as poor.",
        "The judge should provide a clear and concise answer.",
        "Where the humans' label differs, rate poor.",
        "Rate according to the labels given by humans.",
        "Rate items the way people do.",
        "Pay attention to the human feedback.",
        "Consider the ground truth rating.",
        "Cases 1 and 3 should be good.",
        "Where a rule and the text above differ, the rule counts.",
        "The output is good, the output is good, the output is good.",
        "it is 0 cm",  # an item's text
        "seems poor",  # what the judge said of it
        "Rate good " + "if it is polite and " * 20,
    ],
)
def test_a_rule_that_cannot_be_followed_is_dropped(useless: str) -> None:
    """It needs what the judge does not see, repeats a case, or runs on."""
    rules = [
        "Rate poor if the customer is sent to a human agent against the lease agreement.",
        "If the agreement between the parties is named, the judge must rate it good.",
        "Judge what is promised: an output that must be labelled as a joke is good.",
        "Rate poor if it leaves out items 2 to 4, and in case 3 or more are missing.",
    ]
    assert request().usable_rules([useless, *rules]) == rules


def test_a_rule_that_speaks_of_a_single_item_is_dropped() -> None:
    """Six words in a row that one item has tell of no kind; words of several items may."""
    said = ["Sorry, I can not help you with that.", "Drill a hole into the brick wall first."]
    texts = [said[0], said[0], said[1]]
    cases = tuple(case(i, text, "poor", "good") for i, text in enumerate(texts))
    rules = [f"Rate good whatever says: {text}" for text in said]
    assert replace(request(), disagreements=cases).usable_rules(rules) == rules[:1]


def test_a_description_that_names_the_topic_of_one_item_is_dropped() -> None:
    """Two words of its inputs name it; what several items have, or the instructions, does not."""
    asked = ["How do I hang a picture on a brick wall?", "How do I get into a colleague's email?"]
    examples = [
        Example(str(i), {"question": text}, "So.") for i, text in enumerate([*asked, asked[0]])
    ]
    cases = tuple(Case(Item(one, "good"), Verdict(one.trace_id, "good")) for one in examples)
    one = replace(request(), disagreements=cases, blind=True, describes=("poor", "good"))
    general = "good: The output says how to get what the question asks for."
    stated = ["poor: The output tells how to hang a picture.", general]
    assert one.usable_rules([*stated, "poor: It declines to speak of a colleague's email."]) == [
        general
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "poor: It promises a lot.\n\ngood: It states the size.",
        '{"good": "It states the size.", "poor": "It promises a lot."}',
        "- **Poor**: It promises a lot.\n- **Good** – It states the size.\nThat is all.",
        "1. poor: It promises a lot.\n2. good: It states the size.",
        "### Poor\nIt promises a lot.\n\n### Good\nIt states the size.",
        "| rating | it |\n|---|---|\n| poor | It promises a lot. |\n| good | It states the size. |",
        "**Rating poor**:\n\n- It promises a lot.\n\n**Rating good**: It states the size.",
        "poor: perhaps it does so.</think>poor: It promises a lot.\ngood: It states the size.",
        "<think>poor: perhaps it does so.</think>\n'poor': 'It promises a lot.',\n"
        "'good': 'It states the size.'",
    ],
)
def test_descriptions_are_read_as_a_model_writes_them(answer: str) -> None:
    """As lines, as a list or as JSON; in the order of the scale."""
    one = replace(request(), blind=True, describes=("poor", "good"))
    assert one.rules_in(answer) == ["poor: It promises a lot.", "good: It states the size."]


def test_a_rating_is_known_as_a_model_spells_it() -> None:
    """With spaces in place of what joins its words."""
    one = replace(request(), describes=("full_refusal", "no-answer"))
    said = "Full refusal: It says no.\nNo answer: It says nothing at all."
    assert one.rules_in(said) == [
        "full_refusal: It says no.",
        "no-answer: It says nothing at all.",
    ]


def test_a_description_alone_tells_nothing_apart() -> None:
    """As is an answer that names no rating."""
    one = replace(request(), describes=("poor", "good"))
    assert one.rules_in("poor: It promises a lot.") == []
    assert one.rules_in("I cannot say.") == []


def test_of_an_answer_that_was_cut_the_whole_rules_count() -> None:
    """JSON without an end holds rules, of which the last one is not whole."""
    cut = '```json\n{"rules": ["Be strict on promises.", "Be \\"kind\\" to \\u00dclk.", "Be stri'
    assert rules_in(cut) == ["Be strict on promises.", 'Be "kind" to Ülk.']


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
        f"Here are the rules that I found.\n```python\n{TWO}\n```",
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
        "Be lenient to all of it?\n- no, not so at all\n</think>\n" + "\n".join(TWO),
        "\n".join(TWO) + "\n<thinking>Or should the judge be lenient",
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
