"""What the view draws of texts and values: Markdown as tokens, chats as turns, bounded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import workbench.widgets
from workbench.widgets.content import (
    LONGEST_MARKDOWN,
    RESERVED,
    choices,
    markdown,
    prepared,
    text_blocks,
    value_blocks,
)


def outline(tokens: list[dict[str, Any]]) -> list[Any]:
    """The types of tokens and their texts."""
    return [
        token
        if isinstance(token, str)
        else (token["type"], outline(token["children"]))
        if "children" in token
        else token["raw"]
        for token in tokens
    ]


def test_markdown_becomes_tokens() -> None:
    """Emphasis, code and tables are told apart, and HTML is text."""
    tokens = markdown("# Title\n\nOne **two** <b>\n\n| e |\n|---|\n| `<g>` |\n") or []
    assert outline(tokens) == [
        ("heading", ["Title"]),
        ("paragraph", ["One ", ("strong", ["two"]), " ", "<b>"]),
        ("table", [
            ("table_head", [("table_cell", ["e"])]),
            ("table_body", [("table_row", [("table_cell", ["<g>"])])]),
        ]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "<script>secret</script>",
        "a <!-- secret --> b",
        "<div>\nsecret\n</div>",
        "[a]: https://b 'secret'\n\nc",
        "```secret words that name no language\nb\n```",
    ],
)
def test_no_markup_hides_a_text(text: str) -> None:
    assert "secret" in json.dumps(markdown(text))


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
@pytest.mark.parametrize("levels", [50, 500, 985])
def test_json_of_any_depth_can_be_sent(opening: str, closing: str, levels: int) -> None:
    text = f"{opening * levels}4711{closing * levels}"
    items = [{"outputs": text}, {"outputs": json.loads(text) if levels < 900 else None}]
    assert "4711" in json.dumps(prepared({"type": "items", "items": items}))


def test_json_within_json_is_opened_so_far() -> None:
    text = "4711"
    for _ in range(12):
        text = json.dumps({"a": text})
    assert str(value_blocks(text)).count("'field'") == 10
    assert "4711" in str(value_blocks(text))


SPACES = " " * 25_000


@pytest.mark.parametrize(
    "text",
    [
        "[" * 25_000,
        "[a](" * 7_000,
        "![" * 12_000,
        "*" * 12_000 + "a" + "_" * 12_000,
        "> " * 10_000 + "deep",
        "> " * 900 + "deep",
        "*" * 900 + "a" + "*" * 900,
        "\n".join(f"{' ' * (2 * i)}- {i}" for i in range(170)),
        "|" * 10_000 + "\n" + "|-" * 9_000,
        f"## a{SPACES}b",
        f"# a{'#' * 25_000} b",
        f"a|b\n|{SPACES}x",
        f"a | b\n{SPACES}-|x",
        "* a\n" * 7_000,
        "`a" * 15_000,
        "<a href='" * 3_000,
        "line\n" * 6_000,
    ],
)
@pytest.mark.timeout(60)  # a parser that backtracks would take hours
def test_no_text_holds_up_the_kernel(text: str) -> None:
    """It is parsed in moments, or shown whole as plain text, and what is sent stays small."""
    assert len(text) <= LONGEST_MARKDOWN
    blocks = text_blocks(text)
    assert len(json.dumps(blocks)) < 20 * LONGEST_MARKDOWN
    if blocks[0]["kind"] == "warning":
        assert blocks[1]["value"] == text


def test_a_long_text_is_plain_and_says_so() -> None:
    long = "*a* " * LONGEST_MARKDOWN
    note, text = text_blocks(long)
    assert "without Markdown" in note["text"]
    assert text["value"] == long


def test_a_chat_is_shown_as_turns() -> None:
    messages = [
        {"role": "user", "content": "Say **it**"},
        {"role": "<b>", "content": [{"type": "text", "text": "x" * 4_000}, None, {
            "type": "image_url", "image_url": {"url": "https://a/b.png"}}], "tool_calls": [1]},
    ]  # fmt: skip
    for value, rest in (
        ({"messages": messages, "n": 1}, ["other fields"]),
        ({"choices": [{"message": one} for one in messages], "n": 1}, ["other fields"]),
        (json.dumps(messages), []),
    ):
        chat, *others = value_blocks(value)
        first, second = chat["turns"]
        assert (first["role"], second["role"], second["name"]) == ("user", "other", "<b>")
        assert first["blocks"][0]["kind"] == "markdown"
        kinds = [block["kind"] for block in second["blocks"]]
        assert kinds == ["markdown", "tree", "picture", "tree"]
        assert [one["label"] for one in others] == rest


def test_no_part_of_a_message_is_dropped() -> None:
    """A refusal, or a call as it was once written, is open where there is no other content."""
    refusal = {"role": "assistant", "content": None, "refusal": "I can't help", "annotations": []}
    (chat,) = value_blocks([refusal, {**refusal, "content": "No."}])
    alone, beside = (turn["blocks"][-1] for turn in chat["turns"])
    assert alone["value"] == beside["value"] == {"refusal": "I can't help"}
    assert (alone["closed"], beside["closed"]) == (False, True)


def test_fields_are_shown_one_below_the_other() -> None:
    value = {"a.b": [[1]], "a": {"b": {}}, "c": None, "d": ["*e*"]}
    fields = value_blocks(value)
    assert [field["name"] for field in fields] == ["a.b", "a", "c", "d"]
    assert fields[0]["blocks"] == [{"kind": "tree", "value": [[1]]}]
    assert fields[2]["blocks"] == [{"kind": "value", "value": None}]
    assert fields[3]["blocks"][0]["kind"] == "list"


@pytest.mark.parametrize(
    "text", ['{"a": NaN, "b": 1e999}', '["\\ud83d"]', "[" * 990 + "]" * 990, "[" * 25_000, "{a}"]
)
def test_json_in_a_text_can_be_sent(text: str) -> None:
    blocks = value_blocks(text)
    json.dumps(blocks, allow_nan=False, ensure_ascii=False).encode()


def test_reasons_of_others_are_prepared() -> None:
    verdict = {"value": "good", "rationale": "*so*"}
    judges = {"quality": verdict, "safe": None}
    message = prepared({"type": "revealed", "judges": judges, "others": [verdict]})
    (block,) = message["judges"]["quality"]["rationale_blocks"]
    assert outline(block["tokens"]) == [("paragraph", [("emphasis", ["so"])])]
    assert message["others"] == [message["judges"]["quality"]]
    assert "safe" not in message["judges"]


# -- the keys of answers ----------------------------------------------------------------------


def keys(*labels: Any, **question: Any) -> list[str]:
    """The keys of each answer, joined."""
    values = [{"value": label, "label": str(label)} for label in labels]
    asked = {"kind": "ordinal", "values": values, "low": None, "high": None, **question}
    return ["".join(choice["keys"]) for choice in choices(asked)]


def whole(low: float, high: float) -> list[str]:
    return keys(kind="numeric", low=low, high=high, integer=True)


def test_a_digit_means_the_number_that_it_shows() -> None:
    """On whole numbers and on labels that begin with one; what has no key is typed."""
    assert whole(0, 10) == [*"0123456789", "a"]
    assert whole(1, 10) == [*"1234567890"]
    assert keys("0 - none", "1 - some", "2 - much") == ["0", "1", "2"]
    assert keys("10", "20", "30") == ["a", "b", "c"]
    assert whole(-2, 2) == ["a", "b", "0", "1", "2"]
    assert whole(0, 100) == []
    assert keys(kind="numeric", low=0, high=1, integer=False) == []


def test_other_answers_have_the_digit_of_their_place_and_their_initial() -> None:
    """Unless it is a command or another's initial."""
    assert keys("poor", "fair", "good", "excellent") == ["1p", "2f", "3g", "4e"]
    assert keys("yes", "no") == ["1y", "2n"]
    assert keys("safe", "unsafe", "good", "great") == ["1", "2", "3", "4"]
    assert keys(*(f"x{n}" for n in range(12)))[9:] == ["0", "a", "b"]


def test_letters_of_commands_choose_no_answer() -> None:
    """The keymap of the view has the same letters."""
    keymap = (Path(workbench.widgets.__file__).parent / "panel.js").read_text()
    rows = re.findall(r'keys: \["(\w)"\](?!.*at: "end")', keymap)
    assert set(rows) == RESERVED


def test_an_output_that_is_one_message_is_shown_as_one() -> None:
    (chat,) = value_blocks({"role": "assistant", "content": "**Yes**, in stock."})
    (turn,) = chat["turns"]
    assert (turn["role"], turn["blocks"][0]["kind"]) == ("assistant", "markdown")
