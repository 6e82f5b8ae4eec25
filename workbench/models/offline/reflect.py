"""The embedded reflection: contrasts the cases it is shown and writes rules.

It gets the rules that the instructions state already, the cases on which verdict and label
differ, and cases on which they agree. It looks for the few sentences that move most verdicts
towards their labels: at each step the one that lowers the total distance most, counted over
disagreements and agreements alike, so that a rule that breaks what was right does not pay.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from workbench.models.offline.features import STOP_WORDS, TONES, Item, as_item
from workbench.models.offline.prompts import FIELDS, Section, number_range, read_cases
from workbench.models.offline.rubric import Ladder, first_impression
from workbench.models.offline.rules import Condition, Rule, condition, read_rules

MOST_RULES = 6
FOLDS = 5

LEAST_CASES = 3
"""A condition must hold, and must fail to hold, on so many cases."""

PRICE = 0.75
"""What a rule must gain, in steps over all cases, to be worth its words."""

PRICE_OF_A_PHRASE = 1.5
"""A phrase found in the cases is more likely to be chance than a general condition."""

_MOVES = ((-1, 1.0), (1, 1.0), (-2, 1.5), (2, 1.5))
"""Steps and what each costs in prices."""


def fill(section: Section) -> dict[str, str]:
    """Return text for every output field that a structured prompt asks for."""
    rules = propose(section.inputs) if "disagreements" in section.inputs else []
    filled = {}
    for name, kind in section.outputs.items():
        if name == "rules":
            filled[name] = json.dumps([str(rule) for rule in rules], ensure_ascii=False)
        elif kind.startswith(("list", "dict")):
            filled[name] = "[]" if kind.startswith("list") else "{}"
        else:
            filled[name] = "I am no language model and have nothing to say on this."
    return filled


def propose(inputs: Mapping[str, str]) -> list[Rule]:
    """Return new rules for the present instructions, best first; none where nothing helps.

    ``inputs``: ``judge_instructions``, ``allowed_values`` (worst to best, JSON),
    ``disagreements`` and ``agreements`` (one JSON case a line with the item's fields,
    ``human_label`` and ``judge_verdict``).
    """
    instructions = inputs.get("judge_instructions", "")
    ladder = _ladder(inputs.get("allowed_values", ""), instructions)
    if ladder is None:
        return []
    stated = read_rules(instructions)
    shown = read_cases(inputs.get("disagreements", "")) + read_cases(inputs.get("agreements", ""))
    cases = _as_numbers(shown, stated, ladder)
    if len(cases.items) < 2 * LEAST_CASES:
        return []
    search = _Search.of(cases.items, len(ladder.values))
    if not search.conditions:
        return []
    if not ladder.ordered:
        return _answers(cases, search, ladder, stated)
    starts: list[int | None] = [None]
    if not any(rule.start is not None for rule in stated):
        starts += list(range(len(ladder.values)))
    bases = [cases.now if s is None else cases.now - cases.own + s for s in starts]
    size = _cross_validated_size(search, bases, cases.labels)
    best, rules = float("inf"), list[Rule]()
    for base, start in zip(bases, starts, strict=True):
        chosen, cost = search.greedy(base, cases.labels, size)
        opening = [] if start is None else [Rule(start=str(ladder.values[start]))]
        cost += PRICE * len(opening)
        if cost < best:
            best, rules = cost, [*opening, *(rule for rule, _ in chosen)]
    return rules


# -- search ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """Stagewise search for the steps that lower the total distance to the labels most.

    ``holds``, shape (conditions, cases), says on which cases a condition holds; ``prices``,
    shape (conditions,), what it costs; ``top`` is the number of values on the ladder.
    """

    conditions: list[Condition]
    holds: np.ndarray
    prices: np.ndarray
    top: int

    @classmethod
    def of(cls, items: Sequence[Item], top: int) -> _Search:
        """Conditions that tell the cases apart, one for each set of cases on which they hold."""
        found: dict[bytes, tuple[Condition, float, np.ndarray]] = {}
        for one, price in [*_general(items), *_phrases(items)]:
            holds = np.array([one.holds(item) for item in items])
            if LEAST_CASES <= holds.sum() <= len(holds) - LEAST_CASES:
                found.setdefault(holds.tobytes(), (one, price, holds))
        holds = np.array([holds for _, _, holds in found.values()], dtype=bool)
        return cls(
            [one for one, _, _ in found.values()],
            holds.reshape(len(found), len(items)),
            np.array([price for _, price, _ in found.values()]),
            top,
        )

    def distance(self, scores: np.ndarray, labels: np.ndarray) -> Any:
        """Steps between the cut scores and the labels; a miss counts half a step more."""
        cut = np.clip(scores, 0, self.top - 1)
        return np.abs(cut - labels).sum(axis=-1) + 0.5 * (cut != labels).sum(axis=-1)

    def greedy(
        self, base: np.ndarray, labels: np.ndarray, size: int, cases: np.ndarray | None = None
    ) -> tuple[list[tuple[Rule, int]], float]:
        """Up to ``size`` rules with their conditions' numbers, and the distance left plus prices.

        Each round adds the (condition, step) that gains most over its price on ``cases``.
        """
        rows = np.arange(len(labels)) if cases is None else cases
        scores, labels, holds = base[rows].astype(float), labels[rows], self.holds[:, rows]
        loss, spent, chosen = self.distance(scores, labels), 0.0, list[tuple[Rule, int]]()
        for _ in range(size):
            gains = np.stack(
                [
                    loss - self.distance(scores + step * holds, labels) - self.prices * cost
                    for step, cost in _MOVES
                ]
            )
            move, which = (int(i) for i in np.unravel_index(np.argmax(gains), gains.shape))
            if gains[move, which] <= 1e-9:
                break
            step, cost = _MOVES[move]
            chosen.append((Rule(step=step, condition=self.conditions[which]), which))
            scores = scores + step * holds[which]
            spent += float(self.prices[which]) * cost
            loss = self.distance(scores, labels)
        return chosen, float(loss) + spent


def _cross_validated_size(search: _Search, bases: list[np.ndarray], labels: np.ndarray) -> int:
    """How many rules carry over to cases that they were not made from, by five folds."""
    folds = np.arange(len(labels)) % FOLDS
    left = np.zeros(MOST_RULES + 1)
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        for size in range(MOST_RULES + 1):
            found = [(*search.greedy(base, labels, size, seen), base) for base in bases]
            chosen, _, base = min(found, key=lambda one: one[1])
            scores = base + sum(rule.step * search.holds[which] for rule, which in chosen)
            left[size] += search.distance(scores[unseen], labels[unseen])
    # The smallest size whose loss is all but the least: a short text is worth a little.
    return int(np.flatnonzero(left <= left.min() + 0.02 * len(labels))[0])


def _answers(cases: _Cases, search: _Search, ladder: Ladder, stated: Sequence[Rule]) -> list[Rule]:
    """For categories without an order: the condition that marks each category best."""
    found = []
    for position, value in enumerate(ladder.values):
        wanted = cases.labels == position
        missed = wanted & (cases.now != position)
        if missed.sum() < 2:
            continue
        right, wrong = (search.holds & missed).sum(axis=1), (search.holds & ~wanted).sum(axis=1)
        gains = right - 1.5 * wrong - search.prices
        which = int(np.argmax(gains))
        if gains[which] > 0:
            rule = Rule(answer=str(value), condition=search.conditions[which])
            found.append((gains[which], rule))
    known = {str(rule) for rule in stated}
    ranked = sorted(found, key=lambda pair: -pair[0])
    return [rule for _, rule in ranked if str(rule) not in known][:MOST_RULES]


# -- conditions that may tell the cases apart -----------------------------------------------


def _general(items: Sequence[Item]) -> list[tuple[Condition, float]]:
    """Conditions of every form, with their prices."""
    fields = [f for f in FIELDS if any(f in item for item in items)]
    found = []
    for field in (f for f in ("outputs", "inputs") if f in fields):
        for present in (True, False):
            found += [
                condition(name, field, present=present)
                for name in ("gives number", "exclaims", "asks")
            ]
            found += [condition("tone", field, tone=tone, present=present) for tone in TONES]
            if field == "outputs":
                found.append(condition("opens with number", field, present=present))
        lengths = sorted(len(item[field].words) for item in items if field in item)
        for quantile in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
            count = lengths[int(quantile * (len(lengths) - 1))]
            found.append(condition("longer", field, count=count))
            found.append(condition("shorter", field, count=count + 1))
    for source in (f for f in ("inputs", "expectations") if f in fields):
        found += [
            condition(name, "outputs", source=source, present=present)
            for name in ("gives number of", "gives number beyond")
            for present in (True, False)
        ]
        found += [
            condition("gives numbers of", "outputs", source=source, count=count) for count in (2, 3)
        ]
        found += [
            condition("overlaps", part, source=whole, count=percent, present=at_least)
            for part, whole in ((source, "outputs"), ("outputs", source))
            for percent in (10, 20, 30, 40, 50, 60, 75, 90, 100)
            for at_least in (True, False)
        ]
    return [
        (one, PRICE_OF_A_PHRASE if str(one).startswith("the inputs") else PRICE) for one in found
    ]


def _phrases(items: Sequence[Item]) -> list[tuple[Condition, float]]:
    """Words and word pairs that occur in several outputs, the most widespread first."""
    counts: Counter[str] = Counter()
    for item in items:
        tokens = item["outputs"].tokens if "outputs" in item else []
        single = {w for w in tokens if w not in STOP_WORDS and len(w) > 2 and not w[0].isdigit()}
        double = {
            f"{a} {b}"
            for a, b in pairwise(tokens)
            if not (a in STOP_WORDS and b in STOP_WORDS) and not re.search(r"\d", a + b)
        }
        counts.update(single | double)
    widespread = [phrase for phrase, count in counts.items() if count >= LEAST_CASES + 1]
    widespread.sort(key=lambda phrase: (-counts[phrase], phrase))
    return [
        (condition("mentions", "outputs", phrase=phrase), PRICE_OF_A_PHRASE)
        for phrase in widespread[:150]
    ]


# -- reading the cases ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Cases:
    """Cases as positions on the ladder, each array of shape (cases,).

    ``labels``: the human label; ``now``: the rating that the present instructions give before it
    is cut to the ladder; ``own``: the rating of the first impression.
    """

    items: Sequence[Item]
    labels: np.ndarray
    now: np.ndarray
    own: np.ndarray


def _ladder(allowed: str, instructions: str) -> Ladder | None:
    try:
        given: Any = json.loads(allowed)
    except ValueError:
        return None
    if not isinstance(given, dict):
        return None
    if given.get("range"):
        # The judge reads the ends of its scale from the instructions, so they count here too.
        kind = "int" if given.get("whole_numbers") else "float"
        return Ladder.of_range(*number_range(instructions, kind), kind)
    values = given.get("values")
    if not isinstance(values, list) or len(values) < 2:
        return None
    return Ladder(tuple(values), ordered=bool(given.get("ordered")) or len(values) == 2)


def _as_numbers(shown: Sequence[dict[str, Any]], stated: Sequence[Rule], ladder: Ladder) -> _Cases:
    items, positions = [], []
    start = ladder.start(stated)
    for case in shown:
        label = ladder.index(case.get("human_label"))
        verdict = ladder.index(case.get("judge_verdict"))
        if label is None or verdict is None:
            continue
        item = as_item({f: case[f] for f in FIELDS if f in case})
        own = ladder.position(first_impression(item)[0])
        uncut = (start[0] if start else own) + sum(r.step for r in stated if r.fires(item))
        # The verdict is what counts; the rules say how far it lies beyond the ladder's ends.
        agrees = min(max(uncut, 0), len(ladder.values) - 1) == verdict
        items.append(item)
        positions.append(
            (label, uncut if agrees and ladder.ordered else verdict, own if agrees else 0)
        )
    labels, now, own_ = np.array(positions, dtype=int).reshape(-1, 3).T
    return _Cases(items, labels, now, own_)
