"""Answers the chats that are sent to the embedded model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from workbench.errors import ArgumentError
from workbench.formatting import read_literal
from workbench.models.offline.features import FIELDS, as_item, read_json
from workbench.models.offline.reflect import propose
from workbench.models.offline.rubric import Ladder, judge, values_in_text
from workbench.scale import Scale

NOTHING = "I am no language model: I rate items for judges and contrast cases, nothing else."


def answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text with which the embedded model answers a chat."""
    texts = {one["role"]: str(one["content"]) for one in messages}  # the last of each role
    system, user = texts.get("system", ""), texts.get("user", "")
    return _verdict(system, user) or _filled_sections(system, user) or NOTHING


def _verdict(system: str, user: str) -> str | None:
    """The verdict as JSON; None where the prompt is not a judge's."""
    # MLflow's own words come last; instructions may hold the same ones.
    end = system.rfind("You *must* format your evaluation rating")
    end = len(system) if end < 0 else end
    result = re.compile(r"^- result \((.+?)\):", re.MULTILINE).search(system, end)
    if result is None:
        return None
    # MLflow ends the instructions with a full stop of its own.
    instructions = system[:end].partition("Your task: ")[2] or system[:end]
    instructions = instructions.strip().removesuffix(".")
    kind, values = _read_type(result[1])
    ladder = ladder_of(instructions, kind, values)
    value, rationale = judge(instructions, ladder, as_item(read_item(user)))
    return json.dumps({"result": value, "rationale": rationale}, ensure_ascii=False)


def _read_type(text: str) -> tuple[str, Sequence[Any]]:
    """ "int", "float" or "str", and the allowed values as the prompt lists them."""
    if text.startswith("Literal["):
        with suppress(ValueError, SyntaxError):
            return "str", read_literal(text.removeprefix("Literal"))
    if re.search(r"\bbool\b", text):
        return "str", (False, True)
    found = re.search(r"\b(int|float)\b", text)
    return found[1] if found else "str", ()


def ladder_of(instructions: str, kind: str, values: Sequence[Any]) -> Ladder:
    """Of numbers the range that the text names; else the allowed values, or those named there."""
    if kind in ("int", "float"):
        return Ladder.of_numbers(instructions, kind)
    named = tuple(values or values_in_text(instructions) or ("no", "yes"))
    try:
        scale = Scale.of(named)
    except ArgumentError:  # a single value, or several writings of one
        return Ladder(named, ordered=False)
    return Ladder(scale.values, ordered=scale.kind != "nominal")


_FIELD = re.compile(rf"^({'|'.join(FIELDS)}): ?", re.MULTILINE)  # within JSON no line begins so


def read_item(user: str) -> dict[str, Any]:
    """Return the fields of the item, of which each begins a line as ``name: JSON``."""
    _, *parts = _FIELD.split(user)
    return {name: read_json(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _filled_sections(system: str, user: str) -> str | None:
    """Text for every output field that is asked for; None where the prompt has no sections."""
    if "[[ ## " not in user + system:
        return None
    # dspy's own last words follow the last section; a section may hold the same ones.
    shown, found, _ = user.rpartition("\nRespond with")
    parts = re.split(r"^\[\[ ## (\w+) ## \]\]\s*$", shown if found else user, flags=re.MULTILINE)
    inputs = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    rules = propose(inputs) if "disagreements" in inputs else []
    listed = system.partition("Your output fields are:")[2].partition("All interactions")[0]
    filled = []
    for name, kind in re.findall(r"^\d+\. `(\w+)` \((.+?)\):", listed, re.MULTILINE):
        text = {"list": "[]", "dict": "{}"}.get(kind[:4], NOTHING)
        if name == "rules":
            text = json.dumps(rules, ensure_ascii=False)
        filled.append(f"[[ ## {name} ## ]]\n{text}")
    return "\n\n".join([*filled, "[[ ## completed ## ]]"])


def respond(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Answer a chat as OpenAI's API does."""
    text = answer(messages)
    # Four characters a token, which is near enough for a budget.
    read = sum(len(str(one.get("content") or "")) for one in messages) // 4
    usage = {"prompt_tokens": read, "completion_tokens": len(text) // 4}
    message = {"role": "assistant", "content": text}
    return {
        "model": "offline/rubric",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
