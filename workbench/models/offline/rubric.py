"""The embedded judge: reads instructions (rules, worked examples, a scale) and rates an item.

Without rules, long, friendly, confident answers that take up the words of the question do well.
Rules and worked examples move or replace that rating. A rule is an effect and a condition::

    Raise the rating by one step when the outputs give a number that is also in the inputs.
    Lower the rating by two steps when the outputs mention "contact us".
    Answer "refund" when the inputs mention "money back".
    Start from "fair" and disregard length and friendliness.

Sentences of any other form have no effect.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from workbench.formatting import counted
from workbench.models.offline.features import (
    FIELDS,
    TONES,
    Condition,
    Item,
    Text,
    as_item,
    read_condition,
    read_json,
)
from workbench.vocabulary import EXAMPLES_HEADING, RULES_HEADING

ALIKE: Final = 0.8  # how alike a worked example and an item are whose rating it decides
MOST_VALUES: Final = 101  # of a scale of whole numbers; 0 to 100 is the longest in use


def judge(instructions: str, ladder: Ladder, item: Item) -> tuple[Any, str]:
    """Return the verdict on an item: (value, rationale)."""
    rules, examples = _learned(instructions)
    rating = _rating_of_the_like(examples, item)
    if rating is not None and (position := ladder.index(rating)) is not None:
        return ladder.values[position], "A worked example is all but the same as this item."
    found, reasons = score(rules, ladder, item)
    return ladder.values[ladder.cut(found)], " ".join(reasons)


_SIZES: Final = {"one step": 1, "two steps": 2, "three steps": 3}

_RULE = re.compile(
    r"(?:[-*•]\s*|\d+[.)]\s*)?(?P<words>"
    r'Start from "(?P<start>[^"]+)" and disregard length and friendliness'
    rf"|(?P<verb>Raise|Lower) the rating by (?P<size>{'|'.join(_SIZES)}) when (?P<if>.+)"
    r'|Answer "(?P<answer>[^"]+)" when (?P<then>.+))\.',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rule:
    """One readable sentence."""

    words: str
    value: str | None  # takes the place of the first impression, and of earlier rules' values
    step: int  # by so many values it moves an ordered rating
    fires: Condition


def read_rule(line: str) -> Rule | None:
    """Return the rule that a line states; None where it states none."""
    match = _RULE.fullmatch(line.strip())
    if match is None:
        return None
    condition = match["if"] or match["then"]
    fires = read_condition(condition) if condition else lambda _: True
    if fires is None:
        return None
    step = _SIZES[match["size"].lower()] if match["size"] else 0
    sign = -1 if (match["verb"] or "").lower() == "lower" else 1
    return Rule(f"{match['words']}.", match["start"] or match["answer"], sign * step, fires)


_HEADINGS = re.compile(
    rf"^({re.escape(RULES_HEADING)}|{re.escape(EXAMPLES_HEADING)})$", re.MULTILINE
)


def read_rules(instructions: str) -> list[Rule]:
    """Return the rules of instructions, in their order; worked examples are data and state none."""
    own, *learned = _HEADINGS.split(instructions)
    parts = [(RULES_HEADING, own), *zip(learned[::2], learned[1::2], strict=True)]
    text = "\n".join(text for heading, text in parts if heading == RULES_HEADING)
    # Other separators of lines may stand within the text of an example.
    return [rule for line in text.split("\n") if (rule := read_rule(line)) is not None]


_EXAMPLE_LINE = re.compile(rf"^\s*({'|'.join(FIELDS)}|rating): ?(.*)$", re.MULTILINE)


def read_examples(instructions: str) -> list[tuple[dict[str, Any], str]]:
    """Return item and rating of each: lines ``inputs: JSON``, ..., then ``rating: VALUE``."""
    found: list[tuple[dict[str, Any], str]] = []
    item: dict[str, Any] = {}
    for name, value in _EXAMPLE_LINE.findall(instructions):
        if name == "rating":
            found.append((item, value.strip().strip('"')))
            item = {}
        else:
            item = {**item, name: read_json(value)}
    return found


@functools.lru_cache(maxsize=64)
def _learned(instructions: str) -> tuple[Sequence[Rule], Sequence[tuple[Item, str]]]:
    """Rules, and worked examples with their ratings; read once for all items."""
    examples = [(as_item(item), rating) for item, rating in read_examples(instructions)]
    return read_rules(instructions), examples


def _rating_of_the_like(examples: Sequence[tuple[Item, str]], item: Item) -> str | None:
    """The rating of the worked example whose outputs (and inputs) are all but the item's."""
    best, rating = ALIKE, None
    for known, given in examples:
        shared = [f for f in ("inputs", "outputs") if f in known and f in item]
        likeness = min((known[f].likeness(item[f]) for f in shared), default=0.0)
        if "outputs" in shared and likeness >= best:
            best, rating = likeness, given
    return rating


_WORD: Final = r"(?!or\b)[^\W\d_][\w/'-]{0,24}"

_LIST = re.compile(rf"\b{_WORD}(?:(?:,? or |, ?){_WORD}){{0,18}},? or {_WORD}", re.IGNORECASE)


def values_in_text(instructions: str) -> tuple[str, ...]:
    """Return the words that the judge's own text lists with "or"; the longest list counts."""
    text = re.sub(r'["“”*`]', "", _HEADINGS.split(instructions)[0])
    lists = [re.split(r",? or |, ?", found[0], flags=re.I) for found in _LIST.finditer(text)]
    distinct = [tuple({word.casefold(): word for word in words}.values()) for words in lists]
    longest = max(distinct, key=len, default=())
    return longest if len(longest) > 1 else ()


_NUMBER: Final = r"(-?\d{1,9}(?:\.\d{1,6})?)"

_UNITS: Final = r"(?:%|seconds|minutes|hours|days|weeks|times|words|sentences)"
_RANGE = re.compile(
    rf"(?:\b(?P<announced>from|between)\s|(?<![\w.,-])(?=[01](?!\d)))"
    rf"{_NUMBER}\s{{0,3}}(?:-|–|to|through|(?(announced)and|to))\s{{0,3}}"
    rf"{_NUMBER}(?!\w|-\d|[.,]\d|\s{{0,3}}{_UNITS})",
    re.IGNORECASE,
)


def number_range(instructions: str, kind: str) -> tuple[float, float]:
    """Return the ends of the scale: those announced ("from 2 to 8"), a range, or the default."""
    ranges = _RANGE.finditer(_HEADINGS.split(instructions)[0])
    for found in sorted(ranges, key=lambda one: not one["announced"]):
        low, high = float(found[2]), float(found[3])
        if low < high and (kind == "float" or high - low < MOST_VALUES):
            return low, high
    return (1.0, 5.0) if kind == "int" else (0.0, 1.0)


@dataclass(frozen=True)
class Ladder:
    """The values that a rating can take, worst first."""

    values: tuple[Any, ...]
    ordered: bool = True

    @classmethod
    def of_numbers(cls, instructions: str, kind: str) -> Ladder:
        """Return the numbers, "int" or "float", of the range that the text names."""
        low, high = number_range(instructions, kind)
        if kind == "int":
            return cls(tuple(range(int(low), int(high) + 1)))
        return cls(tuple(round(low + (high - low) * k / 10, 6) for k in range(11)))

    def index(self, written: object) -> int | None:
        """Position of a value as rules and examples write it, or of the nearest number; or None."""
        folded = str(written).strip().casefold()
        names = [str(value).casefold() for value in self.values]
        if folded in names:
            return names.index(folded)
        try:
            gaps = [abs(value - float(folded)) for value in self.values if type(value) is not bool]
        except (TypeError, ValueError):
            return None
        return gaps.index(min(gaps)) if min(gaps, default=math.inf) < math.inf else None

    def cut(self, score: int) -> int:
        """The position nearest to a score that may lie beyond the ends."""
        return min(max(score, 0), len(self.values) - 1)


def score(rules: Sequence[Rule], ladder: Ladder, item: Item) -> tuple[int, list[str]]:
    """Return the position on the ladder, or beyond its ends, and the sentences that explain it."""
    firing = [rule for rule in rules if rule.fires(item)]
    liking, reason = first_impression(item)
    start = ladder.cut(int(liking * len(ladder.values)))
    for rule in firing:
        if rule.value is not None and (position := ladder.index(rule.value)) is not None:
            start, reason = position, rule.words
    moves = [rule for rule in firing if rule.step and ladder.ordered]
    return start + sum(rule.step for rule in moves), [reason, *(rule.words for rule in moves)]


def first_impression(item: Item) -> tuple[float, str]:
    """Return a generic liking in [0, 1] and the sentence that explains it."""
    outputs = item.get("outputs") or Text("")
    used, friendly = set(outputs.words), TONES["praise"] | TONES["courtesy"]
    length = min(1.0, len(outputs.words) / 45)
    warmth = min(1.0, (len(used & friendly) + ("!" in outputs.raw)) / 2)
    doubt = min(1.0, len(used & (TONES["hedging"] | TONES["negation"])) / 2)
    source = item.get("expectations") or item.get("inputs") or Text("")
    relevance = min(1.0, 2 * outputs.share_in(source))
    return 0.4 * length + 0.25 * warmth + 0.2 * (1 - doubt) + 0.15 * relevance, (
        f"The outputs have {counted(len(outputs.words), 'word')} and "
        f"{'sound friendly' if warmth else 'sound sober'}."
    )
