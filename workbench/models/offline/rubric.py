"""The embedded judge: from a prompt to a verdict with a rationale.

Without rules it rates as an undemanding reader might: long, friendly, confident answers that
take up the words of the question do well. Rules and worked examples in the instructions move
or replace that rating.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ArgumentError
from workbench.models.offline.features import COURTESY, HEDGES, NEGATIONS, PRAISE, Text
from workbench.models.offline.prompts import (
    JudgePrompt,
    number_range,
    read_examples,
    values_in_text,
)
from workbench.models.offline.rules import Item, Rule, read_rules
from workbench.scale import Scale


@dataclass(frozen=True)
class Ladder:
    """The values a rating can take, worst first, and the scale that says so."""

    values: tuple[Any, ...]
    ordered: bool

    @classmethod
    def of(cls, prompt: JudgePrompt) -> Ladder:
        if prompt.type in ("int", "float"):
            return cls.of_range(*number_range(prompt.instructions, prompt.type), prompt.type)
        named = prompt.values or values_in_text(prompt.instructions) or ("no", "yes")
        if len(named) == 1:
            return cls(tuple(named), ordered=False)
        try:
            scale = Scale.of(named)
        except ArgumentError:  # several writings of one value
            return cls(tuple(named), ordered=False)
        return cls(scale.values, ordered=scale.kind != "nominal")

    @classmethod
    def of_range(cls, low: float, high: float, kind: str) -> Ladder:
        """Whole numbers for int, ten equal steps for float."""
        if kind == "int":
            return cls(tuple(range(int(low), int(high) + 1)), ordered=True)
        steps = tuple(round(low + (high - low) * k / 10, 6) for k in range(11))
        return cls(steps, ordered=True)

    def index(self, written: object) -> int | None:
        """Position of a value as it is written in a rule or an example; None if it is none.

        On a ladder of numbers it is the position of the nearest one.
        """
        folded = str(written).strip().casefold()
        for position, value in enumerate(self.values):
            if str(value).casefold() == folded:
                return position
        if all(type(value) in (int, float) for value in self.values):
            try:
                number = float(folded)
            except ValueError:
                return None
            gaps = [abs(value - number) for value in self.values]
            return gaps.index(min(gaps)) if min(gaps) < float("inf") else None
        return None


@dataclass(frozen=True)
class Lesson:
    """What instructions teach: rules, and worked examples as items with their ratings."""

    rules: tuple[Rule, ...]
    examples: tuple[tuple[Item, str], ...]

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, instructions: str) -> Lesson:
        """Read once for all the items that are judged by the same instructions."""
        examples = [(as_item(one.item), one.rating) for one in read_examples(instructions)]
        return cls(tuple(read_rules(instructions)), tuple(examples))


def judge(prompt: JudgePrompt) -> tuple[Any, str]:
    """The verdict on the prompt's item: (value, rationale)."""
    ladder = Ladder.of(prompt)
    item = as_item(prompt.item)
    lesson = Lesson.of(prompt.instructions)
    rating = _rating_of_the_like(lesson.examples, item)
    if rating is not None and (position := ladder.index(rating)) is not None:
        return ladder.values[position], "A worked example is all but the same as this item."
    position, reasons = rate(lesson.rules, ladder, item)
    return ladder.values[position], " ".join(reasons)


def rate(rules: Sequence[Rule], ladder: Ladder, item: Item) -> tuple[int, list[str]]:
    """Position on the ladder and the sentences that tell why."""
    start, reasons = _start(rules, ladder, item)
    firing = [r for r in rules if r.start is None and r.fires(item)]
    votes = Counter(p for r in firing if r.answer and (p := ladder.index(r.answer)) is not None)
    if votes:
        best = max(votes.values())
        start = next(p for p in reversed(list(votes)) if votes[p] == best)
        reasons = [str(r) for r in firing if r.answer and ladder.index(r.answer) == start]
    steps = sum(r.step for r in firing) if ladder.ordered else 0
    reasons += [str(r) for r in firing if r.step and ladder.ordered]
    return min(max(start + steps, 0), len(ladder.values) - 1), reasons


def _start(rules: Sequence[Rule], ladder: Ladder, item: Item) -> tuple[int, list[str]]:
    for rule in reversed(rules):
        if rule.start is not None and (position := ladder.index(rule.start)) is not None:
            return position, [f"The instructions start from {rule.start}."]
    taste, why = first_impression(item)
    return min(int(taste * len(ladder.values)), len(ladder.values) - 1), [why]


def first_impression(item: Item) -> tuple[float, str]:
    """A generic liking in [0, 1] and the sentence that tells why."""
    outputs = item.get("outputs")
    if outputs is None:
        return 0.5, "There are no outputs to look at."
    if not outputs.words and not outputs.numbers:
        return 0.0, "The outputs are empty."
    said = set(outputs.words)
    length = min(1.0, len(outputs.words) / 45)
    warmth = min(1.0, (len(said & PRAISE) + len(said & COURTESY) + ("!" in outputs.raw)) / 2)
    doubt = min(1.0, len(said & (HEDGES | NEGATIONS)) / 2)
    source = item.get("expectations") or item.get("inputs") or Text("")
    relevance = outputs.share_in(source)
    taste = 0.4 * length + 0.25 * warmth + 0.2 * (1 - doubt) + 0.15 * min(1.0, 2 * relevance)
    return taste, (
        f"The outputs have {len(outputs.words)} words and "
        f"{'sound friendly' if warmth else 'sound sober'}."
    )


def _rating_of_the_like(examples: Sequence[tuple[Item, str]], item: Item) -> str | None:
    """The rating of the worked example whose outputs (and inputs) are all but the item's."""
    best, rating = 0.0, None
    for known, given in examples:
        shared = [f for f in ("inputs", "outputs") if f in known and f in item]
        if "outputs" not in shared:
            continue
        likeness = min(_likeness(known[f], item[f]) for f in shared)
        if likeness >= 0.8 and likeness > best:
            best, rating = likeness, given
    return rating


def _likeness(a: Text, b: Text) -> float:
    """Jaccard similarity of the words that two texts begin with, in [0, 1]; 1 for empty ones."""
    either = len(a.beginning | b.beginning)
    return len(a.beginning & b.beginning) / either if either else 1.0


def as_item(values: Mapping[str, Any]) -> dict[str, Text]:
    return {name: Text(value) for name, value in values.items()}
