"""The embedded judge: from a prompt to a verdict with a rationale.

Without rules it rates as an undemanding reader might: long, friendly, confident answers that
take up the words of the question do well. Rules and worked examples in the instructions move
or replace that rating.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ArgumentError
from workbench.models.offline.features import (
    COURTESY,
    HEDGES,
    NEGATIONS,
    PRAISE,
    Item,
    Text,
    as_item,
)
from workbench.models.offline.prompts import (
    JudgePrompt,
    number_range,
    read_examples,
    values_in_text,
)
from workbench.models.offline.rules import Rule, read_rules
from workbench.scale import Scale

ALIKE = 0.8
"""A worked example whose texts are as alike as this decides the rating of an item."""


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
        if not all(type(value) in (int, float) for value in self.values):
            return None
        try:
            gaps = [abs(value - float(folded)) for value in self.values]
        except ValueError:
            return None
        return gaps.index(min(gaps)) if min(gaps) < float("inf") else None

    def position(self, share: float) -> int:
        """Position of a liking in [0, 1]."""
        return min(int(share * len(self.values)), len(self.values) - 1)

    def start(self, rules: Sequence[Rule]) -> tuple[int, str] | None:
        """Position that the last rule with a start on this ladder sets, and as it is written."""
        for rule in reversed(rules):
            if rule.start is not None and (position := self.index(rule.start)) is not None:
                return position, rule.start
        return None


def judge(prompt: JudgePrompt) -> tuple[Any, str]:
    """Return the verdict on the prompt's item: (value, rationale)."""
    ladder, item = Ladder.of(prompt), as_item(prompt.item)
    rules, examples = _learned(prompt.instructions)
    rating = _rating_of_the_like(examples, item)
    if rating is not None and (position := ladder.index(rating)) is not None:
        return ladder.values[position], "A worked example is all but the same as this item."
    position, reasons = rate(rules, ladder, item)
    return ladder.values[position], " ".join(reasons)


@functools.lru_cache(maxsize=64)
def _learned(instructions: str) -> tuple[Sequence[Rule], Sequence[tuple[Item, str]]]:
    """Rules, and worked examples with their ratings; read once for all items."""
    examples = [(as_item(one.item), one.rating) for one in read_examples(instructions)]
    return read_rules(instructions), examples


def rate(rules: Sequence[Rule], ladder: Ladder, item: Item) -> tuple[int, list[str]]:
    """Return the position on the ladder and the sentences that explain it."""
    firing = [r for r in rules if r.start is None and r.fires(item)]
    votes = Counter(p for r in firing if r.answer and (p := ladder.index(r.answer)) is not None)
    stated = ladder.start(rules)
    if votes:
        best = max(votes.values())
        start = next(p for p in reversed(list(votes)) if votes[p] == best)
        reasons = [str(r) for r in firing if r.answer and ladder.index(r.answer) == start]
    elif stated is not None:
        start, reasons = stated[0], [f"The instructions start from {stated[1]}."]
    else:
        liking, why = first_impression(item)
        start, reasons = ladder.position(liking), [why]
    moves = [r for r in firing if r.step and ladder.ordered]
    position = start + sum(r.step for r in moves)
    return min(max(position, 0), len(ladder.values) - 1), reasons + [str(r) for r in moves]


def first_impression(item: Item) -> tuple[float, str]:
    """Return a generic liking in [0, 1] and the sentence that explains it."""
    outputs = item.get("outputs")
    if outputs is None:
        return 0.5, "There are no outputs to look at."
    if not outputs.words and not outputs.numbers:
        return 0.0, "The outputs are empty."
    used = set(outputs.words)
    length = min(1.0, len(outputs.words) / 45)
    warmth = min(1.0, (len(used & PRAISE) + len(used & COURTESY) + ("!" in outputs.raw)) / 2)
    doubt = min(1.0, len(used & (HEDGES | NEGATIONS)) / 2)
    source = item.get("expectations") or item.get("inputs") or Text("")
    relevance = min(1.0, 2 * outputs.share_in(source))
    return 0.4 * length + 0.25 * warmth + 0.2 * (1 - doubt) + 0.15 * relevance, (
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
        likeness = min(known[f].likeness(item[f]) for f in shared)
        if likeness >= ALIKE and likeness > best:
            best, rating = likeness, given
    return rating
