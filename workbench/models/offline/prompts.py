"""Takes prompts apart: instructions, allowed values, worked examples, the item, the cases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from workbench.formatting import read_literal

FIELDS: Final = ("inputs", "outputs", "expectations")

MOST_VALUES: Final = 101
"""A scale of whole numbers has at most so many; 0 to 100 is the longest in use."""

MOST_NAMED: Final = 20
"""A list of more words than these names no rating scale."""


# -- prompts --------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgePrompt:
    """A judge's question: rate one item by the instructions.

    ``values`` are the allowed values in the order in which the prompt lists them; empty for
    numbers and free text. ``type`` is "literal", "bool", "int", "float" or "str".
    """

    instructions: str
    values: tuple[Any, ...]
    type: str
    item: Mapping[str, Any]
    rationale_first: bool = False


@dataclass(frozen=True)
class Section:
    """A structured prompt of dspy: named input sections, and output fields with their types."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)


def read_judge_prompt(system: str, user: str) -> JudgePrompt | None:
    """Return the judge's question in MLflow's wording; None where the prompt is something else."""
    # MLflow's own words come last; instructions may hold the same ones.
    end = system.rfind("You *must* format your evaluation rating")
    end = len(system) if end < 0 else end
    found = re.compile(r"^- result \((.+?)\):", re.MULTILINE).search(system, end)
    if found is None:
        return None
    begin = system.find("Your task: ")
    # MLflow ends the instructions with a full stop of its own.
    instructions = system[begin + len("Your task: ") if begin >= 0 else 0 : end].strip()
    values, kind = _read_type(found[1])
    rationale = system.find("- rationale (", end)
    return JudgePrompt(
        instructions=instructions.removesuffix("."),
        values=values,
        type=kind,
        item=read_item(user),
        rationale_first=0 <= rationale < found.start(),
    )


def _read_type(text: str) -> tuple[tuple[Any, ...], str]:
    if text.startswith("Literal["):
        try:
            return tuple(read_literal(text[len("Literal") :])), "literal"
        except (ValueError, SyntaxError):
            return (), "str"
    for kind in ("bool", "int", "float"):
        if re.search(rf"\b{kind}\b", text):
            return ((False, True), "bool") if kind == "bool" else ((), kind)
    return (), "str"


def read_item(user: str) -> dict[str, Any]:
    """Return the fields of the item: ``name: JSON`` one after the other, each once."""
    item: dict[str, Any] = {}
    decoder = json.JSONDecoder(strict=False)
    position, names = 0, list(FIELDS)
    while names:
        head = re.compile(rf"\s*({'|'.join(names)}): ?").match(user, position)
        if head is None:
            break
        names.remove(head[1])
        position = head.end()
        try:
            item[head[1]], position = decoder.raw_decode(user, position)
        except (ValueError, RecursionError):
            # Not JSON: everything up to the next field is its text.
            stops = [user.find(f"\n{name}: ", position) for name in names]
            stop = min((s for s in stops if s >= 0), default=len(user))
            item[head[1]] = user[position:stop]
            position = stop
    return item


_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]\s*")


def read_sections(system: str, user: str) -> Section | None:
    """Return a structured prompt of dspy; None where the prompt is something else."""
    if "[[ ## " not in user and "[[ ## " not in system:
        return None
    inputs: dict[str, list[str]] = {}
    section: list[str] = []
    # dspy's own last words follow the last section; a section may hold the same ones.
    before, found, _ = user.rpartition("\nRespond with")
    for line in (before if found else user).split("\n"):
        header = _HEADER.fullmatch(line)
        if header is not None:
            section = inputs[header[1]] = []
        else:
            section.append(line)
    listed = system.partition("Your output fields are:")[2].partition("All interactions")[0]
    outputs = dict(re.findall(r"^\d+\. `(\w+)` \((.+?)\):", listed, re.MULTILINE))
    return Section({name: "\n".join(lines).strip() for name, lines in inputs.items()}, outputs)


def read_cases(text: str) -> list[dict[str, Any]]:
    """Return the cases of a text, one JSON object a line; other lines are left out."""
    found = (_json(line) for line in text.split("\n") if line.startswith("{"))
    return [case for case in found if isinstance(case, dict)]


def _json(text: str) -> Any:
    """The JSON value that a text is; the text itself where it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text


def last_message(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    """Return the text of the last message of a role; "" where there is none."""
    for message in reversed(messages):
        if message.get("role") == role:
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "\n".join(str(part.get("text", "")) for part in content)
            return str(content)
    return ""


# -- instructions: the judge's own text, then what was learned: rules and worked examples ---

# As SIMBA's candidates write them; the models' wing is below SIMBA and cannot import it.
RULES_HEADING: Final = (
    "People who rated items of this kind go by the rules below. Where a rule and the text above "
    "differ, the rule counts."
)
EXAMPLES_HEADING: Final = "Items that people rated, with their reasons:"

_FIELD_LINE = re.compile(rf"\s*(?:{'|'.join(FIELDS)}|why):")
_EXAMPLE_LINE = re.compile(rf"\s*({'|'.join(FIELDS)}|rating): ?(.*)", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A worked example: the item's fields and its rating."""

    item: Mapping[str, Any]
    rating: str


def _parts(instructions: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, lines below it) for each part; the own text has the heading "".

    Only a line feed ends a line: other separators may stand within the text of an example.
    """
    heading, lines = "", list[str]()
    for line in instructions.split("\n"):
        if line.strip() in (RULES_HEADING, EXAMPLES_HEADING):
            yield heading, lines
            heading, lines = line.strip(), []
        else:
            lines.append(line)
    yield heading, lines


def own_text(instructions: str) -> str:
    """Return the instructions before anything was learned.

    >>> own_text(f"Rate it.\\n\\n{RULES_HEADING}\\n- Be strict.")
    'Rate it.'
    """
    return "\n".join(next(_parts(instructions))[1]).strip()


def rule_lines(instructions: str) -> Iterator[str]:
    """Return the lines that may state a rule: all but those of worked examples.

    Worked examples are data, the text of applications and people. Outside their own part too,
    a paragraph is an example from its first field to its rating.
    """
    for heading, lines in _parts(instructions):
        for paragraph in _paragraphs(lines) if heading != EXAMPLES_HEADING else ():
            ratings = [n for n, line in enumerate(paragraph) if re.match(r"\s*rating:", line)]
            last = ratings[-1] if ratings else -1
            within = False
            for number, line in enumerate(paragraph):
                within = (within or _FIELD_LINE.match(line) is not None) and number <= last
                if not within:
                    yield line


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines between blank ones."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def read_examples(instructions: str) -> list[Example]:
    """Return worked examples: lines ``inputs: JSON``, ``outputs: JSON``, then ``rating: VALUE``."""
    found: list[Example] = []
    item: dict[str, Any] = {}
    lines = [x for heading, part in _parts(instructions) if heading != RULES_HEADING for x in part]
    for line in lines:
        match = _EXAMPLE_LINE.match(line)
        if match is None:
            continue
        name, value = match.groups()
        if name == "rating":
            found += [Example(item, value.strip().strip('"'))] if item else []
            item = {}
        else:
            # A field that recurs begins another item; the one before has no rating.
            item = {name: _json(value)} if name in item else {**item, name: _json(value)}
    return found


# -- instructions: allowed values and ranges ------------------------------------------------


def values_in_text(instructions: str) -> tuple[str, ...]:
    """Return the values that free-text instructions name: 'as one of: excellent, good, fair, poor'.

    The longest list counts, the first of several as long; only the judge's own text is read.

    >>> values_in_text("Rate it as excellent, good, fair or poor.")
    ('excellent', 'good', 'fair', 'poor')
    >>> values_in_text('Answer "Yes" or "No".')
    ('Yes', 'No')
    """
    best: tuple[str, ...] = ()
    for clause in re.split(r"[.;:!?(){}\[\]]", own_text(instructions)):
        for named in _lists(clause):
            distinct = tuple({word.casefold(): word for word in named}.values())
            if len(distinct) > max(1, len(best)):
                best = distinct
    return best


def _lists(clause: str) -> Iterator[list[str]]:
    """The lists of words in a clause, separated by commas and by "or" before the last one."""
    pieces = re.split(r"(,|\bor\b)", clause, flags=re.IGNORECASE)
    # "Rate it as excellent" and "one of: excellent": the last word of the first is the value.
    words, closed = _value(pieces[0], "last"), False
    for separator, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        whole = _value(piece, "whole")
        if separator == ",":
            if not piece.strip():
                continue  # "fair, or poor"
            goes_on, closed = bool(whole) and not closed, False
        else:
            last = whole or _value(piece, "first")
            if words and last and len(words) < MOST_NAMED:
                yield words + last
            goes_on, closed = bool(whole), True
        if not goes_on or not words:
            words = _value(piece, "last")
        elif len(words) < MOST_NAMED:
            words = words + whole


_MARKS: Final = "\"'`*“”‘’"

_WORD = re.compile(r"[^\W\d_][\w/'-]{0,24}( [\w/'-]{1,25})?")

_QUOTED: Final = {
    "whole": re.compile(r"[\"“]([^\"“”\n]{1,40})[\"”]\Z"),
    "first": re.compile(r"[\"“]([^\"“”\n]{1,40})[\"”]"),
    "last": re.compile(r".*[\"“]([^\"“”\n]{1,40})[\"”]\Z", re.DOTALL),
}


def _value(piece: str, part: Literal["whole", "first", "last"]) -> list[str]:
    """The one value that a piece of a list is, begins or ends with; empty where it is none."""
    piece = piece.strip()
    quoted = _QUOTED[part].match(piece)
    if quoted is not None:
        return [quoted[1].strip()] if quoted[1].strip() else []
    if part != "whole":
        piece = (piece.split() or [""])[0 if part == "first" else -1]
    word = piece.strip(_MARKS)
    return [word] if _WORD.fullmatch(word) else []


_NUMBER: Final = r"-?\d{1,9}(?:\.\d{1,6})?"

_RANGE = re.compile(
    rf"(?<![\w.,-])({_NUMBER})\s{{0,3}}(-|–|—|to|and|through)\s{{0,3}}({_NUMBER})"
    r"(?!\w|-\d|[.,]\d)"
)

_ANNOUNCED = re.compile(
    r"\b(?:from|between|scale|range|rat(?:e|ing)|scored?|grade|number|integer|value)\b"
    r"[^.;\n\d]{0,12}\Z",
    re.IGNORECASE,
)

_COUNTED = re.compile(
    r"\s{0,3}(?:%|percent\b|per cent\b|(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?|"
    r"times|words|sentences|paragraphs|lines|pages|items|characters|people|[cmk]?m|k?g|euros?|"
    r"dollars?)\b)",
    re.IGNORECASE,
)


def number_range(instructions: str, kind: str) -> tuple[float, float]:
    """Return the ends of a numeric scale that instructions name; without any, 1 to 5 or 0 to 1.

    A range that a word like "scale" or "from" announces comes before one that merely starts at
    0 or 1; others, and ranges of days or words, are no scale. Only the judge's own text is read.

    >>> number_range("Orders take 2-3 days. Rate the answer from 0 to 10.", "int")
    (0.0, 10.0)
    """
    text = own_text(instructions)
    unannounced = []
    for found in _RANGE.finditer(text):
        low, high = float(found[1]), float(found[3])
        before = text[max(0, found.start() - 30) : found.start()]
        if not low < high or (kind == "int" and high - low >= MOST_VALUES):
            continue
        if _COUNTED.match(text, found.end()):
            continue
        if found[2] == "and" and "between" not in before.lower():
            continue
        if _ANNOUNCED.search(before):
            return low, high
        if low in (0.0, 1.0):
            unannounced.append((low, high))
    return unannounced[0] if unannounced else (1.0, 5.0) if kind == "int" else (0.0, 1.0)
