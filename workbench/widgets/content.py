"""Turn what a session sends into what the view draws: Markdown as tokens, chats as turns, answers
as buttons with their keys.

The texts of a trace are hostile. They are parsed here, without HTML, and within bounds; the view
builds elements of the tokens and reads no markup. What exceeds the bounds is shown as plain text.

A text is prepared as a list of blocks, each a dict with a ``kind`` (see `BLOCKS` in `content.js`).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import string
from collections.abc import Sequence
from typing import Any, Final

import mistune

from workbench.labeling.annotations import plain

LONGEST_MARKDOWN: Final = 30_000
"""Characters; longer texts are shown as plain text."""

_DEEPEST = 20
_MOST_TOKENS = 10_000
# Patterns of the parser try every split of a run of spaces: their time grows with its cube.
_GAP = re.compile(r"[ \t]{300}")
_parse = mistune.create_markdown(renderer=None, plugins=["table", "strikethrough", "url"])
# Definitions of links would not be shown at all: they stay text.
_parse.block.rules.remove("ref_link")

_NEEDED = ("type", "raw", "marker", "attrs")

_LONGEST_JSON = 200_000
_DEEPEST_JSON = 100
_MOST_FIELDS = 20
_MOST_LISTED = 100
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SHOWN = ("role", "name", "content", "tool_calls")

RESERVED: Final = frozenset("usrxt")
"""Letters that are commands at an item (see `KEYMAP` in the view) and so choose no answer."""

_FIGURE = re.compile(r"(\d)(?!\d|[.,]\d)")
_HUES = (215, 35, 170, 280, 330, 95, 250, 10, 190)

Block = dict[str, Any]


def prepared(message: dict[str, Any]) -> dict[str, Any]:
    """Return a session's message with what the view needs to draw its texts."""
    kind = message.get("type")
    if kind == "items":
        return {**message, "items": [_item(item) for item in message["items"]]}
    if kind == "revealed":
        judges = {name: _with_reason(said) for name, said in message["judges"].items() if said}
        others = [_with_reason(one) for one in message["others"]]
        return {**message, "judges": judges, "others": others}
    return message


def prepared_setup(setup: dict[str, Any]) -> dict[str, Any]:
    """Return a session's setup with rubrics as blocks and the buttons of each question."""
    questions = [
        {**one, "rubric_blocks": text_blocks(one.get("rubric") or ""), "choices": choices(one)}
        for one in setup["questions"]
    ]
    return {**setup, "questions": questions}


def _item(item: dict[str, Any]) -> dict[str, Any]:
    fields = [name for name in ("inputs", "outputs", "expectations") if item.get(name) is not None]
    blocks = {name: value_blocks(item[name]) for name in fields}
    voices = [_with_reason(voice) for voice in item.get("voices", ())]
    return {**item, "blocks": blocks, "voices": voices}


def _with_reason(said: dict[str, Any]) -> dict[str, Any]:
    reason = said.get("rationale")
    return {**said, "rationale_blocks": text_blocks(str(reason)) if reason else []}


# -- values -----------------------------------------------------------------------------------


def value_blocks(value: Any, levels: int = _DEEPEST) -> list[Block]:
    """Return the blocks of a value as a person reads it; below ``levels`` as a tree or a text."""
    if isinstance(value, str):
        data = _json_in(value) if levels else None
        return text_blocks(value) if data is None else value_blocks(data, levels - 1)
    if not isinstance(value, (dict, list)):
        return [{"kind": "value", "value": value}]
    blocks = _blocks_within(value, levels - 1) if levels else []
    return blocks or [{"kind": "tree", "value": value}]


def _blocks_within(value: dict[str, Any] | list[Any], levels: int) -> list[Block]:
    """The blocks of what is within a value; none where it is to be a tree."""
    messages = value if isinstance(value, list) else [value]  # an answer is often one message
    if _is_chat(messages):
        return [{"kind": "chat", "turns": [_turn(message, levels) for message in messages]}]
    if isinstance(value, list):
        if 0 < len(value) <= _MOST_LISTED and all(isinstance(one, str) for one in value):
            return [{"kind": "list", "entries": [value_blocks(one, levels) for one in value]}]
    else:
        for name in ("choices", "messages"):
            turns = value.get(name)
            if name == "choices" and isinstance(turns, list):
                turns = [one.get("message") if isinstance(one, dict) else None for one in turns]
            if _is_chat(turns):
                rest = {key: one for key, one in value.items() if key != name}
                others = {"kind": "tree", "value": rest, "label": "other fields", "closed": True}
                return value_blocks(turns, levels) + ([others] if rest else [])
        if 0 < len(value) <= _MOST_FIELDS:
            return [
                {"kind": "field", "name": name, "blocks": value_blocks(one, levels)}
                for name, one in value.items()
            ]
    return []


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_LISTED
        and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value)
        and all("content" in one or "tool_calls" in one for one in value)
    )


def _turn(turn: dict[str, Any], levels: int) -> Block:
    content, calls = turn.get("content"), turn.get("tool_calls")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    blocks = [block for part in parts for block in _turn_part(part, levels)]
    if calls:
        blocks.append({"kind": "tree", "value": calls, "label": "tool calls"})
    rest = {
        name: one for name, one in turn.items() if name not in _SHOWN and one not in (None, [], {})
    }
    if rest:  # open where it is all that the message says, such as a refusal
        blocks += [{"kind": "tree", "value": rest, "label": "other fields", "closed": bool(blocks)}]
    names = [turn["role"], turn.get("name")]
    return {
        "role": turn["role"] if turn["role"] in _ROLES else "other",
        "name": " · ".join(name for name in names if isinstance(name, str) and name),
        "blocks": blocks,
    }


def _turn_part(part: Any, levels: int) -> list[Block]:
    if isinstance(part, str):
        return value_blocks(part, levels)
    if isinstance(part, dict):
        if isinstance(part.get("text"), str):
            return value_blocks(part["text"], levels)
        image = part.get("image_url")
        address = image.get("url") if isinstance(image, dict) else image
        if isinstance(address, str):
            return [{"kind": "picture", "address": address[:300]}]
    return [{"kind": "tree", "value": part}]


# -- texts ------------------------------------------------------------------------------------


def text_blocks(text: str) -> list[Block]:
    """Return the blocks of a text: Markdown as nodes, or the text as it is."""
    if not text:
        return [{"kind": "note", "text": "(empty text)"}]
    tokens = markdown(text)
    if tokens is not None:
        return [{"kind": "markdown", "tokens": tokens}]
    is_long = len(text) > LONGEST_MARKDOWN
    why = f"Longer than {LONGEST_MARKDOWN:,} characters" if is_long else "Too deeply nested"
    note = f"{why}: shown as plain text, without Markdown."
    return [{"kind": "warning", "text": note}, {"kind": "text", "value": text}]


def _json_in(text: str) -> dict[str, Any] | list[Any] | None:
    """What a text holds that is JSON; None for another."""
    if text.lstrip()[:1] not in ("[", "{") or len(text) > _LONGEST_JSON:
        return None
    try:
        found: dict[str, Any] | list[Any] = plain(json.loads(text))
    except (ValueError, RecursionError):
        return None  # It only begins like JSON.
    return None if _is_deeper(found, _DEEPEST_JSON) else found


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels < 2 or _is_deeper(one, levels - 1) for one in inner)


def markdown(text: str) -> list[Any] | None:
    """Parse Markdown into mistune's tokens, of which texts are strings; HTML in it is text.

    Returns None for a text that is too long, too deeply nested or made to hold up the parser,
    which is to be shown as plain text.
    """
    if len(text) > LONGEST_MARKDOWN or _GAP.search(text):
        return None
    try:
        tokens: Any = _parse(text)
        return _slim(tokens, _DEEPEST, [_MOST_TOKENS])
    except RecursionError:
        return None


def _slim(tokens: list[dict[str, Any]], levels: int, budget: list[int]) -> list[Any]:
    """The tokens with what the view needs, unless they are too many or have too many levels."""
    budget[0] -= len(tokens)
    if not levels or budget[0] < 0:
        raise RecursionError
    made: list[Any] = []
    for token in tokens:
        if token["type"] == "text":
            made.append(token["raw"])
        elif token["type"] != "blank_line":
            needed = {key: one for key, one in token.items() if key in _NEEDED}
            if "children" in token:
                needed["children"] = _slim(token["children"], levels - 1, budget)
            made.append(needed)
    return made


# -- answers ----------------------------------------------------------------------------------


def choices(question: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers of a question (`LabelQuestion.to_json`) that have a button.

    Each has a ``value``, a ``label``, its ``keys`` (the first one is shown) and a ``hue`` in
    degrees: worst to best on an ordered scale, apart on others.
    """
    values = _numbers(question) if question["kind"] == "numeric" else question["values"]
    keys = _keys([str(one["label"]) for one in values])
    is_ordered = question["kind"] != "nominal" and len(values) > 1
    return [
        {
            "value": one["value"],
            "label": str(one["label"]),
            "keys": keys[n],
            "hue": round(25 + 150 * n / (len(values) - 1)) if is_ordered else _HUES[n % len(_HUES)],
        }
        for n, one in enumerate(values)
    ]


def _numbers(question: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole numbers of a scale where each has a digit of its own; 10 is the only longer one."""
    low, high = question["low"], question["high"]
    if not question["integer"] or low is None or high is None:
        return []
    numbers = range(math.ceil(low), math.floor(high) + 1)
    is_short = 0 <= high <= 10 and len(numbers) <= 11
    return [{"value": n, "label": str(n)} for n in numbers] if is_short else []


def _keys(labels: Sequence[str]) -> list[list[str]]:
    """The keys of each answer: the digit that it shows, else that of its place; its initial where
    no other has it; without either a letter that nothing else has."""
    digits = list("1234567890"[: len(labels)].ljust(len(labels)))
    if any(re.match(r"[-+]?\d", label) for label in labels):
        digits = [match[1] if (match := _FIGURE.match(label)) else "" for label in labels]
        digits = [digit if digits.count(digit) == 1 else "" for digit in digits]
        if "10" in labels and "1" in digits and "0" not in digits:
            digits[labels.index("10")] = "0"  # as on the keyboard
    letters = [letter for letter in string.ascii_lowercase if letter not in RESERVED]
    initials = [label[:1].lower() for label in labels]
    spare = iter(letter for letter in letters if letter not in initials)
    keys = []
    for digit, initial in zip(digits, initials, strict=True):
        is_own = initial in letters and initials.count(initial) == 1
        own = [key for key in (digit.strip(), initial if is_own else "") if key]
        keys.append(own or list(itertools.islice(spare, 1)))
    return keys
