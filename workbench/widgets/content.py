"""Turn what a session sends into what the view draws: Markdown as tokens, chats as turns.

The texts of a trace are hostile. They are parsed here, without HTML, and within bounds; the view
builds elements of the tokens and reads no markup. What exceeds the bounds is shown as plain text.

A text is prepared as a list of blocks, each a dict with a ``kind`` (see `BLOCKS` in `content.js`).
A block with ``at`` shows the value at this path in the item and not a copy of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import mistune

from workbench.labeling.display import plain
from workbench.widgets.choices import choices

LONGEST_MARKDOWN: Final = 30_000
"""Characters; longer texts are shown as plain text."""

_DEEPEST = 20
_MOST_TOKENS = 10_000
# Patterns of the parser try every split of a run of spaces: their time grows with its cube.
_GAP = re.compile(r"[ \t]{300}")
_parse = mistune.create_markdown(renderer=None, plugins=["table", "strikethrough", "url"])
# Definitions of links would not be shown at all: they stay text.
_parse.block.rules.remove("ref_link")

_LONG = 3_000
_LONGEST_JSON = 200_000
_MOST_FIELDS = 20
_MOST_LISTED = 50
_MOST_TURNS = 100
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Block = dict[str, Any]
Path = tuple[str | int, ...]
Cuts = Mapping[str, int]
Turn = tuple[dict[str, Any], Path | None]


def prepared(message: dict[str, Any]) -> dict[str, Any]:
    """Return a session's message with what the view needs to draw its texts."""
    kind = message.get("type")
    if kind == "items":
        return {**message, "items": [_item(item) for item in message["items"]]}
    if kind == "revealed":
        judges = message.get("judges") or {}
        return {
            **message,
            "judge": _with_reason(message.get("judge")),
            "judges": {name: _with_reason(verdict) for name, verdict in judges.items()} or None,
            "others": [_with_reason(one) for one in message.get("others") or []],
        }
    return message


def prepared_setup(setup: dict[str, Any]) -> dict[str, Any]:
    """Return a session's setup with rubrics as blocks and the buttons of each question."""
    questions = [
        {
            **question,
            "rubric_blocks": text_blocks(question.get("rubric") or ""),
            "choices": choices(question),
        }
        for question in setup["questions"]
    ]
    return {**setup, "questions": questions}


def _item(item: dict[str, Any]) -> dict[str, Any]:
    cuts = item.get("cuts") or {}
    blocks = {
        name: value_blocks(item[name], (name,), cuts)
        for name in ("inputs", "outputs", "expectations")
        if item.get(name) is not None
    }
    made = {**item, "blocks": blocks}
    if "voices" in item:
        made["voices"] = [_with_reason(voice) for voice in item["voices"]]
    return made


def _with_reason(said: Any) -> Any:
    if not isinstance(said, Mapping):
        return said
    reason = said.get("rationale")
    return {**said, "rationale_blocks": text_blocks(str(reason)) if reason else []}


# -- values -----------------------------------------------------------------------------------


def value_blocks(value: Any, at: Path | None, cuts: Cuts | None = None) -> list[Block]:
    """Return the blocks of a value as a person reads it.

    ``at`` is its path in the item; None: it is nowhere in it, and the blocks hold what they show.
    ``cuts`` maps the paths of texts that were cut to their full lengths.
    """
    cuts = cuts or {}
    if isinstance(value, str):
        return _json_blocks(value) or text_blocks(value, at, cuts.get(_name(at)))
    if _is_chat(value):
        return [_chat([(turn, _below(at, n)) for n, turn in enumerate(value)], cuts)]
    if isinstance(value, dict):
        for name in ("choices", "messages"):
            if turns := _turns(value, name, at):
                return [_chat(turns, cuts), *_others(value, name)]
        if 0 < len(value) <= _MOST_FIELDS:
            return [_field(name, one, _below(at, name), cuts) for name, one in value.items()]
    is_short = isinstance(value, list) and 0 < len(value) <= _MOST_LISTED
    if is_short and all(isinstance(one, str) for one in value):
        entries = [_part(one, _below(at, n), cuts) for n, one in enumerate(value)]
        return [{"kind": "list", "entries": entries}]
    return [{"kind": "tree", **_source(value, at)}]


def _below(at: Path | None, *keys: str | int) -> Path | None:
    return None if at is None else (*at, *keys)


def _source(value: Any, at: Path | None) -> Block:
    return {"data": value} if at is None else {"at": at}


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return "content" in value or "tool_calls" in value


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_turn, value))


def _turns(value: dict[str, Any], name: str, at: Path | None) -> list[Turn]:
    """The messages of a request or the choices of a response, if that is what the value is."""
    found = value.get(name)
    if not isinstance(found, list):
        return []
    if name == "messages":
        turns = [(one, _below(at, name, n)) for n, one in enumerate(found)]
        return turns if _is_chat(found) else []
    choices = [one if isinstance(one, dict) else {} for one in found]
    return [
        (choice["message"], _below(at, name, n, "message"))
        for n, choice in enumerate(choices)
        if _is_turn(choice.get("message"))
    ]


def _others(value: dict[str, Any], without: str) -> list[Block]:
    others = {name: one for name, one in value.items() if name != without}
    tree = {"kind": "tree", "data": others, "label": "other fields", "closed": True}
    return [tree] if others else []


def _field(name: str, value: Any, at: Path | None, cuts: Cuts) -> Block:
    if isinstance(value, (str, dict, list)):
        return {"kind": "field", "name": name, **_part(value, at, cuts)}
    return {"kind": "field", "name": name, "blocks": [{"kind": "value", "data": value}]}


def _part(value: Any, at: Path | None, cuts: Cuts) -> Block:
    """A value with the length of a long text, for the line above it."""
    return {"blocks": value_blocks(value, at, cuts), "length": _length(value, at, cuts)}


def _length(value: Any, at: Path | None, cuts: Cuts) -> int | None:
    length = cuts.get(_name(at), len(value) if isinstance(value, str) else 0)
    return length if length > _LONG else None


def _name(at: Path | None) -> str:
    """A path as ``cuts`` names it."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in at or ())[1:]


def _chat(turns: list[Turn], cuts: Cuts) -> Block:
    left = [turn for turn, _ in turns[_MOST_TURNS:]]
    more = {"kind": "tree", "data": left, "label": f"{len(left):,} more turns", "closed": True}
    shown = [_turn(turn, at, cuts) for turn, at in turns[:_MOST_TURNS]]
    return {"kind": "chat", "turns": shown, "more": [more] if left else []}


def _turn(turn: dict[str, Any], at: Path | None, cuts: Cuts) -> Block:
    content = turn.get("content")
    within = _below(at, "content")
    if isinstance(content, list):
        parts = [_turn_part(one, _below(within, n), cuts) for n, one in enumerate(content)]
    else:
        # Its length stands beside the role.
        parts = [] if content is None else [{**_turn_part(content, within, cuts), "length": None}]
    calls = turn.get("tool_calls")
    if isinstance(calls, list) and calls:
        source = _source(calls, _below(at, "tool_calls"))
        parts.append({"blocks": [{"kind": "tree", **source, "label": "tool calls"}]})
    names = [turn["role"], turn.get("name")]
    return {
        "role": turn["role"] if turn["role"] in _ROLES else "other",
        "name": " · ".join(name for name in names if isinstance(name, str) and name),
        "length": _length(content, within, cuts),
        "parts": parts,
    }


def _turn_part(part: Any, at: Path | None, cuts: Cuts) -> Block:
    if isinstance(part, str):
        return _part(part, at, cuts)
    if isinstance(part, dict):
        if isinstance(part.get("text"), str):
            return _part(part["text"], _below(at, "text"), cuts)
        image = part.get("image_url")
        address = image.get("url") if isinstance(image, dict) else image
        if isinstance(address, str):
            return {"blocks": [{"kind": "picture", "address": address[:300]}]}
    return {"blocks": [{"kind": "tree", **_source(part, at)}]}


# -- texts ------------------------------------------------------------------------------------


def text_blocks(text: str, at: Path | None = None, length: int | None = None) -> list[Block]:
    """Return the blocks of a text: Markdown as nodes, or the text as it is.

    ``length`` is that of the whole text where only its beginning is given.
    """
    if not text:
        return [{"kind": "note", "text": "(empty text)"}]
    tokens = markdown(text)
    if tokens is not None:
        return [{"kind": "markdown", "tokens": tokens}]
    is_long = len(text) > LONGEST_MARKDOWN
    why = f"Longer than {LONGEST_MARKDOWN:,} characters" if is_long else "Too deeply nested"
    note = f"{why}: shown as plain text, without Markdown."
    return [
        {"kind": "warning", "text": note},
        {"kind": "text", "length": length, **_source(text, at)},
    ]


def _json_blocks(text: str) -> list[Block]:
    """The blocks of a text that is JSON; none for another."""
    if text.lstrip()[:1] not in ("[", "{") or len(text) > _LONGEST_JSON:
        return []
    try:
        data = plain(json.loads(text))
    except (ValueError, RecursionError):
        return []  # It only begins like JSON.
    return value_blocks(data, None) if _is_chat(data) else [{"kind": "tree", "data": data}]


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
        kind, attrs = token["type"], token.get("attrs") or {}
        if kind == "text":
            made.append(token["raw"])
        elif kind != "blank_line":
            needed: dict[str, Any] = {
                name: token[name] for name in ("raw", "marker") if name in token
            }
            if attrs and (kind != "table_cell" or attrs["head"]):
                needed["attrs"] = attrs
            if "children" in token:
                needed["children"] = _slim(token["children"], levels - 1, budget)
            made.append({"type": kind, **needed})
    return made
