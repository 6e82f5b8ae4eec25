"""The embedded reflection: contrasts the cases that it is shown and writes rules.

It looks for the few sentences that move most verdicts towards their labels: at each step the one
that lowers the total distance most over disagreements and agreements alike, so that a rule that
breaks what was right does not pay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Final

import numpy as np

from workbench.models.offline.features import (
    FIELDS,
    STOP_WORDS,
    TEMPLATES,
    TONES,
    Item,
    as_item,
    read_condition,
    read_json,
)
from workbench.models.offline.rubric import Ladder, Rule, read_rules, score

MOST_RULES: Final = 6
LEAST_CASES: Final = 3  # on which a condition must hold, and on which it must not
PRICE: Final = 1.5  # what a rule must gain, in steps over all cases, to be worth its words
PRICE_OF_A_PHRASE: Final = 4.0  # which is more likely to be chance than a general condition

# Effects of a rule, their steps, and what each costs in prices.
_MOVES: Final = (
    ("Lower the rating by one step", -1, 1.0),
    ("Raise the rating by one step", 1, 1.0),
    ("Lower the rating by two steps", -2, 1.5),
    ("Raise the rating by two steps", 2, 1.5),
)


def propose(inputs: Mapping[str, str]) -> list[str]:
    """Return new rules, at most six; ``inputs`` are the fields of SIMBA's reflection."""
    instructions = inputs.get("judge_instructions", "")
    ladder = _ladder(read_json(inputs.get("allowed_values", "")), instructions)
    if ladder is None:
        return []
    stated = read_rules(instructions)
    lines = "\n".join(inputs.get(name, "") for name in ("disagreements", "agreements")).split("\n")
    cases = _Cases([case for case in map(read_json, lines) if isinstance(case, dict)], ladder)
    conditions = _Conditions(cases.items)
    if not conditions.words:
        return []
    if ladder.ordered:
        return _steps(cases, conditions, ladder, stated)
    known = {rule.words for rule in stated}
    return [rule for rule in _answers(cases, conditions, ladder) if rule not in known]


def _ladder(given: Any, instructions: str) -> Ladder | None:
    given = given if isinstance(given, dict) else {}
    if given.get("range"):
        # The judge reads the ends of its scale from the instructions, so they count here too.
        return Ladder.of_numbers(instructions, "int" if given.get("whole_numbers") else "float")
    values = tuple(given.get("values") or ())
    ordered = bool(given.get("ordered")) or len(values) == 2
    return Ladder(values, ordered) if len(values) > 1 else None


class _Cases:
    """Items with label and verdict as positions on the ladder, arrays of shape (cases,)."""

    def __init__(self, shown: Sequence[dict[str, Any]], ladder: Ladder) -> None:
        found = [
            (as_item(case), label, verdict)
            for case in shown
            if (label := ladder.index(case.get("human_label"))) is not None
            and (verdict := ladder.index(case.get("judge_verdict"))) is not None
        ]
        self.items = [item for item, _, _ in found]
        rated = np.array([case[1:] for case in found], dtype=int).reshape(-1, 2)
        self.labels, self.verdicts = rated.T


def _steps(
    cases: _Cases, conditions: _Conditions, ladder: Ladder, stated: Sequence[Rule]
) -> list[str]:
    """For ordered values: where to start, and the steps that bring ratings closest to labels."""
    top = len(ladder.values) - 1
    scores = np.array([score(stated, ladder, item)[0] for item in cases.items])
    # The verdict is what counts; the rules say how far it lies beyond the ladder's ends.
    now = np.where(np.clip(scores, 0, top) == cases.verdicts, scores, cases.verdicts)
    found = [_greedy(now, cases.labels, conditions, top)]
    moved = np.array([sum(r.step for r in stated if r.fires(item)) for item in cases.items])
    for start, value in () if any(r.value for r in stated) else enumerate(ladder.values):
        rules, cost = _greedy(start + moved, cases.labels, conditions, top)
        opening = f'Start from "{value}" and disregard length and friendliness.'
        found.append(([opening, *rules], cost + PRICE))
    return min(found, key=lambda one: one[1])[0][:MOST_RULES]


def _greedy(
    base: np.ndarray, labels: np.ndarray, conditions: _Conditions, top: int
) -> tuple[list[str], float]:
    """Rules that lower the distance to the labels most, and the distance left plus their prices."""

    def distance(scores: np.ndarray) -> Any:
        # In steps; a miss counts half a step more.
        cut = np.clip(scores, 0, top)
        return np.abs(cut - labels).sum(axis=-1) + 0.5 * (cut != labels).sum(axis=-1)

    prices = np.outer([cost for _, _, cost in _MOVES], conditions.prices)
    scores, spent, rules = base, 0.0, list[str]()
    for _ in range(MOST_RULES):
        moved = [distance(scores + step * conditions.holds) for _, step, _ in _MOVES]
        gains = distance(scores) - np.stack(moved) - prices
        move, which = np.unravel_index(np.argmax(gains), gains.shape)
        if gains[move, which] <= 1e-9:
            break
        effect, step, _ = _MOVES[move]
        rules.append(f"{effect} when {conditions.words[which]}.")
        scores = scores + step * conditions.holds[which]
        spent += float(prices[move, which])
    return rules, float(distance(scores)) + spent


def _answers(cases: _Cases, conditions: _Conditions, ladder: Ladder) -> list[str]:
    """For categories without an order: the condition that marks each category best."""
    found = []
    for position, value in enumerate(ladder.values):
        wanted = cases.labels == position
        missed = wanted & (cases.verdicts != position)
        wrong = (conditions.holds & ~wanted).sum(axis=1)
        gains = (conditions.holds & missed).sum(axis=1) - 1.5 * wrong - conditions.prices
        which = int(np.argmax(gains))
        if gains[which] > 0:
            found.append((gains[which], f'Answer "{value}" when {conditions.words[which]}.'))
    return [rule for _, rule in sorted(found)[-MOST_RULES:]]  # of several the last one counts


class _Conditions:
    """Conditions that tell the cases apart, one for each set of cases on which they hold."""

    def __init__(self, items: Sequence[Item]) -> None:
        found: dict[bytes, tuple[str, np.ndarray]] = {}
        for words in _candidates(items):
            test = read_condition(words)
            holds = np.array([test is not None and test(item) for item in items])
            if LEAST_CASES <= holds.sum() <= len(holds) - LEAST_CASES:
                found.setdefault(holds.tobytes(), (words, holds))
        self.words = [words for words, _ in found.values()]
        self.holds = np.array([holds for _, holds in found.values()])  # (conditions, cases)
        self.prices = np.array([PRICE_OF_A_PHRASE if '"' in w else PRICE for w in self.words])


def _candidates(items: Sequence[Item]) -> Iterator[str]:
    """Conditions of every form on the outputs, with values that may tell the items apart."""
    lengths = sorted(len(item["outputs"].words) for item in items if "outputs" in item) or [0]
    choices: dict[str, Iterable[Any]] = {
        "field": ["outputs"],
        "source": FIELDS,
        "tone": TONES,
        "percent": (10, 20, 30, 40, 50, 60, 75, 90, 100),
        "words": [lengths[n * (len(lengths) - 1) // 20] for n in (3, 6, 9, 12, 15, 18)],
        "numbers": (2, 3),
        "phrase": _phrases(items),
    }
    for template in TEMPLATES:
        slots = re.findall(r"\{(\w+)\}", template)
        for values in product(*(choices[slot] for slot in slots)):
            yield template.format(**dict(zip(slots, values, strict=True)))


def _phrases(items: Sequence[Item]) -> list[str]:
    """Words and word pairs that occur in several outputs, the most widespread first."""
    counts: Counter[str] = Counter()
    for item in items:
        tokens = item["outputs"].tokens if "outputs" in item else []
        single = {word for word in tokens if word not in STOP_WORDS and len(word) > 2}
        double = {f"{a} {b}" for a, b in pairwise(tokens) if not {a, b} <= STOP_WORDS}
        counts.update(phrase for phrase in single | double if not re.search(r"\d", phrase))
    widespread = [phrase for phrase, count in counts.items() if count > LEAST_CASES]
    return sorted(widespread, key=lambda phrase: (-counts[phrase], phrase))[:150]
