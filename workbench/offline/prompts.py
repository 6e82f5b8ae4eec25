"""Takes a prompt apart: allowed values, rules, worked examples, the item, the cases."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FIELDS = ("inputs", "outputs", "expectations")


@dataclass(frozen=True)
class JudgePrompt:
    """A judge's question: rate one item by the instructions.

    ``values`` are the allowed values in the order in which the prompt lists them; empty for
    numbers and free text, whose ``type`` ("bool", "int", "float", "str") is told.
    """

    instructions: str
    values: tuple[Any, ...]
    type: str
    item: Mapping[str, Any]
    rationale_first: bool = False


@dataclass(frozen=True)
class Example:
    """A worked example: the item's fields and its rating."""

    item: Mapping[str, Any]
    rating: str


@dataclass(frozen=True)
class Section:
    """A structured prompt of dspy: named input sections and the output fields asked for."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)


def read_judge_prompt(system: str, user: str) -> JudgePrompt | None:
    """The judge's question in MLflow's wording; None where the prompt is something else."""
    found = re.search(r"^- result \((.+?)\):", system, re.MULTILINE)
    if found is None:
        return None
    begin = system.find("Your task: ")
    end = system.find("You *must* format your evaluation rating")
    # MLflow ends the instructions with a full stop of its own.
    instructions = system[begin + len("Your task: ") if begin >= 0 else 0 : end].strip()
    instructions = instructions.removesuffix(".")
    values, kind = _read_type(found[1])
    rationale = system.find("- rationale (", end)
    return JudgePrompt(
        instructions=instructions,
        values=values,
        type=kind,
        item=read_item(user),
        rationale_first=0 <= rationale < found.start(),
    )


def read_item(user: str) -> dict[str, Any]:
    """The fields of the item: ``name: JSON`` one after the other."""
    item: dict[str, Any] = {}
    decoder = json.JSONDecoder(strict=False)
    rest = user
    while rest:
        head = re.match(rf"\s*({'|'.join(FIELDS)}): ?", rest)
        if head is None:
            break
        body = rest[head.end() :]
        try:
            item[head[1]], stop = decoder.raw_decode(body)
        except (ValueError, RecursionError):
            # Not JSON: everything up to the next field is its text.
            following = re.search(rf"\n(?:{'|'.join(FIELDS)}): ", body)
            stop = following.start() if following else len(body)
            item[head[1]] = body[:stop]
        rest = body[stop:]
    return item


def _read_type(text: str) -> tuple[tuple[Any, ...], str]:
    if text.startswith("Literal["):
        try:
            return tuple(ast.literal_eval(text[len("Literal") :])), "literal"
        except (ValueError, SyntaxError):
            return (), "str"
    for kind in ("bool", "int", "float"):
        if re.search(rf"\b{kind}\b", text):
            return ((False, True), "bool") if kind == "bool" else ((), kind)
    return (), "str"


def values_in_text(instructions: str) -> tuple[str, ...]:
    """Allowed values that free-text instructions name: 'as one of: excellent, good, fair, poor'.

    >>> values_in_text("Rate it as excellent, good, fair or poor.")
    ('excellent', 'good', 'fair', 'poor')
    >>> values_in_text('Answer "Yes" or "No".')
    ('Yes', 'No')
    """
    word = r"""["']?[^\W\d_][\w/ -]{0,24}?["']?"""
    pattern = rf"{word}(?:\s*,\s*{word})*\s*,?\s*\bor\b\s*{word}(?=[\s.,;:)]|$)"
    best: tuple[str, ...] = ()
    for found in re.findall(pattern, instructions, re.IGNORECASE):
        options = re.split(r"\s*,\s*(?:or\s+)?|\s+or\s+", found)
        # "Rate it as excellent" and "one of: excellent": the last word of the first is the value.
        options[0] = re.split(r"\s", options[0].strip())[-1]
        cleaned = tuple(o.strip(" \"'") for o in options)
        if all(len(o.split()) <= 2 for o in cleaned) and len(cleaned) > len(best):
            best = cleaned
    return best


def number_range(instructions: str, kind: str) -> tuple[float, float]:
    """The ends of a numeric scale that instructions name: '1-5', 'from 0 to 10'; else 1-5, 0-1."""
    number = r"(\d+(?:\.\d+)?)"
    for found in re.finditer(rf"{number}\s*(?:-|–|to|and|through)\s*{number}", instructions):
        low, high = float(found[1]), float(found[2])
        if low < high:
            return low, high
    return (1.0, 5.0) if kind == "int" else (0.0, 1.0)


def read_examples(instructions: str) -> list[Example]:
    """Worked examples: lines ``inputs: JSON``, ``outputs: JSON``, closed by ``rating: VALUE``."""
    found: list[Example] = []
    item: dict[str, Any] = {}
    for line in instructions.splitlines():
        head = re.match(rf"\s*({'|'.join(FIELDS)}|rating): ?(.*)", line)
        if head is None:
            continue
        if head[1] == "rating":
            if item:
                found.append(Example(item, head[2].strip().strip('"')))
            item = {}
            continue
        try:
            item[head[1]] = json.loads(head[2], strict=False)
        except (ValueError, RecursionError):
            item[head[1]] = head[2]
    return found


def read_sections(system: str, user: str) -> Section | None:
    """A structured prompt of dspy; None where the prompt is something else."""
    if "[[ ## " not in user and "[[ ## " not in system:
        return None
    inputs = dict(
        re.findall(
            r"^\[\[ ## (\w+) ## \]\]\n(.*?)(?=^\[\[ ## \w+ ## \]\]|^Respond with|\Z)",
            user,
            re.DOTALL | re.MULTILINE,
        )
    )
    listed = system.partition("Your output fields are:")[2].partition("All interactions")[0]
    outputs = dict(re.findall(r"^\d+\. `(\w+)` \((.+?)\):", listed, re.MULTILINE))
    return Section({name: text.strip() for name, text in inputs.items()}, outputs)


def read_cases(text: str) -> list[dict[str, Any]]:
    """Cases, one JSON object a line; other lines are left out."""
    cases = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                case = json.loads(line, strict=False)
            except (ValueError, RecursionError):
                continue
            if isinstance(case, dict):
                cases.append(case)
    return cases


def last_message(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    """Text of the last message of a role; "" where there is none."""
    for message in reversed(messages):
        if message.get("role") == role:
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "\n".join(str(part.get("text", "")) for part in content)
            return str(content)
    return ""
