"""The embedded reflection: contrasts the cases it is shown and writes rules.

It has the rules that the instructions state already, the cases on which verdict and label
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

from workbench.models.offline.features import STOP_WORDS, TONES, Text
from workbench.models.offline.prompts import Section, number_range, read_cases
from workbench.models.offline.rubric import Ladder, as_item, first_impression
from workbench.models.offline.rules import (
    Condition,
    Rule,
    gives_number,
    has_length,
    has_tone,
    mentions,
    number_from,
    numbers_shared,
    opens_with_number,
    overlaps,
    read_rules,
    uses_mark,
)

MOST_RULES = 6

FOLDS = 5

LEAST_CASES = 3
"""A condition must hold, and must fail to hold, on so many cases."""

PRICE = 0.75
"""What a rule must gain, in steps over all cases, to be worth its words."""

PRICE_OF_A_PHRASE = 1.5
"""A phrase found in the cases is more likely to be chance than a general condition."""


def fill(section: Section) -> dict[str, str]:
    """Text for every output field that a structured prompt asks for."""
    rules = []
    if "disagreements" in section.inputs:
        rules = [str(rule) for rule in propose(section.inputs)]
    filled = {}
    for name, kind in section.outputs.items():
        if name == "rules":
            filled[name] = json.dumps(rules, ensure_ascii=False)
        elif kind.startswith("list"):
            filled[name] = "[]"
        elif kind.startswith("dict"):
            filled[name] = "{}"
        else:
            filled[name] = "I am no language model and have nothing to say on this."
    return filled


@dataclass(frozen=True)
class Cases:
    """Cases as numbers.

    ``labels`` and ``now``: positions on the ladder, shape (n,), of the human label and of the
    rating that the present instructions give before it is cut to the ladder. ``own``: the
    position that the model's own taste gives, shape (n,).
    """

    items: list[dict[str, Text]]
    labels: np.ndarray
    now: np.ndarray
    own: np.ndarray


def propose(inputs: Mapping[str, str]) -> list[Rule]:
    """New rules for the present instructions, best first; empty where nothing helps.

    ``inputs``: ``judge_instructions``, ``allowed_values`` (worst to best, JSON),
    ``disagreements`` and ``agreements`` (one JSON case a line with the item's fields,
    ``human_label`` and ``judge_verdict``).
    """
    ladder = _ladder(inputs.get("allowed_values", ""), inputs.get("judge_instructions", ""))
    if ladder is None:
        return []
    stated = read_rules(inputs.get("judge_instructions", ""))
    shown = read_cases(inputs.get("disagreements", "")) + read_cases(inputs.get("agreements", ""))
    cases = _as_numbers(shown, stated, ladder)
    if len(cases.items) < 2 * LEAST_CASES:
        return []
    conditions = _conditions(cases)
    if not conditions.conditions:
        return []
    if not ladder.ordered:
        return _answers(cases, conditions, ladder, stated)
    starts: list[int | None] = [None]
    if not any(rule.start is not None for rule in stated):
        starts += list(range(len(ladder.values)))
    search = _Search(conditions, len(ladder.values))
    bases = [cases.now if s is None else cases.now - cases.own + s for s in starts]
    size = _cross_validated_size(search, bases, cases.labels)
    found = [
        (search.greedy(base, cases.labels, size), start)
        for base, start in zip(bases, starts, strict=True)
    ]
    (chosen, _), start = min(
        found, key=lambda one: one[0][1] + (0.0 if one[1] is None else search.price_of_start)
    )
    if start is not None:
        return [Rule(start=str(ladder.values[start])), *chosen]
    return chosen


@dataclass(frozen=True)
class _Choice:
    """Conditions as arrays: ``holds`` of shape (conditions, cases), ``prices`` (conditions,)."""

    conditions: list[Condition]
    holds: np.ndarray
    prices: np.ndarray


class _Search:
    """Stagewise search for the steps that lower the total distance to the labels most."""

    price_of_start = PRICE

    def __init__(self, choice: _Choice, top: int) -> None:
        self.choice, self.top = choice, top

    def greedy(
        self, base: np.ndarray, labels: np.ndarray, size: int, cases: np.ndarray | None = None
    ) -> tuple[list[Rule], float]:
        """Up to ``size`` rules, and the distance left plus what the rules cost.

        Each round adds the (condition, step) that gains most over its price on ``cases``.
        """
        rows = np.arange(len(labels)) if cases is None else cases
        scores, aim = base[rows].astype(float), labels[rows]
        holds = self.choice.holds[:, rows]
        loss, spent, chosen = self.distance(scores, aim), 0.0, []
        for _ in range(size):
            gains = np.stack(
                [
                    loss - self.distance(scores + step * holds, aim) - self.choice.prices * cost
                    for step, cost in _MOVES
                ]
            )
            move, which = np.unravel_index(int(np.argmax(gains)), gains.shape)
            if gains[move, which] <= 1e-9:
                break
            step, cost = _MOVES[int(move)]
            chosen.append(Rule(step=step, condition=self.choice.conditions[int(which)]))
            scores = scores + step * holds[which]
            spent += float(self.choice.prices[which]) * cost
            loss = self.distance(scores, aim)
        return chosen, float(loss) + spent

    def distance(self, scores: np.ndarray, labels: np.ndarray) -> Any:
        """Steps between the cut scores and the labels, a miss counting half a step more."""
        cut = np.clip(scores, 0, self.top - 1)
        return np.abs(cut - labels).sum(axis=-1) + 0.5 * (cut != labels).sum(axis=-1)

    def apply(self, rules: Sequence[Rule], base: np.ndarray) -> np.ndarray:
        scores = base.astype(float)
        for rule in rules:
            which = next(i for i, c in enumerate(self.choice.conditions) if c is rule.condition)
            scores = scores + rule.step * self.choice.holds[which]
        return scores


_MOVES = ((-1, 1.0), (1, 1.0), (-2, 1.5), (2, 1.5))
"""Steps and what each costs in prices."""


def _cross_validated_size(search: _Search, bases: list[np.ndarray], labels: np.ndarray) -> int:
    """How many rules carry over to cases that they were not made from, by five folds."""
    folds = np.arange(len(labels)) % FOLDS
    left = np.zeros(MOST_RULES + 1)
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if not len(unseen):
            continue
        for size in range(MOST_RULES + 1):
            best = min(
                ((*search.greedy(base, labels, size, seen), base) for base in bases),
                key=lambda one: one[1],
            )
            scores = search.apply(best[0], best[2])
            left[size] += search.distance(scores[unseen], labels[unseen])
    # The smallest size whose loss is all but the least: a short text is worth a little.
    return int(np.flatnonzero(left <= left.min() + 0.02 * len(labels))[0])


def _answers(
    cases: Cases,
    choice: _Choice,
    ladder: Ladder,
    stated: Sequence[Rule],
) -> list[Rule]:
    """For categories without an order: the conditions that mark one category best."""
    found = []
    for position, value in enumerate(ladder.values):
        wanted = cases.labels == position
        missed = wanted & (cases.now != position)
        if missed.sum() < 2:
            continue
        best: tuple[float, Condition] | None = None
        for condition, holds, price in zip(
            choice.conditions, choice.holds, choice.prices, strict=True
        ):
            gain = float((holds & missed).sum() - 1.5 * (holds & ~wanted).sum()) - price
            if gain > 0 and (best is None or gain > best[0]):
                best = gain, condition
        if best is not None:
            found.append((best[0], Rule(answer=str(value), condition=best[1])))
    known = {str(rule) for rule in stated}
    ranked = sorted(found, key=lambda pair: -pair[0])
    return [rule for _, rule in ranked if str(rule) not in known][:MOST_RULES]


# -- what may tell the cases apart ----------------------------------------------------------


def _conditions(cases: Cases) -> _Choice:
    """What may tell the cases apart, each only once where several hold on the same cases."""
    candidates = [
        (c, PRICE_OF_A_PHRASE if str(c).startswith("the inputs") else PRICE)
        for c in _general(cases.items)
    ]
    candidates += [(c, PRICE_OF_A_PHRASE) for c in _phrases(cases.items)]
    found, prices, rows, seen = [], [], [], set()
    for condition, price in candidates:
        holds = np.array([condition.holds(item) for item in cases.items])
        if not LEAST_CASES <= holds.sum() <= len(holds) - LEAST_CASES:
            continue
        mark = holds.tobytes()
        if mark not in seen:
            seen.add(mark)
            found.append(condition)
            prices.append(price)
            rows.append(holds)
    shape = (len(found), len(cases.items))
    return _Choice(found, np.array(rows, dtype=bool).reshape(shape), np.array(prices))


def _general(items: Sequence[dict[str, Text]]) -> list[Condition]:
    fields = [f for f in ("inputs", "outputs", "expectations") if any(f in item for item in items)]
    found: list[Condition] = []
    for field in (f for f in ("outputs", "inputs") if f in fields):
        for present in (True, False):
            found.append(gives_number(field, present=present))
            found += [uses_mark(field, m, present=present) for m in ("exclamation", "question")]
            found += [has_tone(field, tone, present=present) for tone in TONES]
            if field == "outputs":
                found.append(opens_with_number(field, present=present))
        lengths = sorted(len(item[field].words) for item in items if field in item)
        for quantile in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
            count = lengths[int(quantile * (len(lengths) - 1))]
            found.append(has_length(field, "more", count))
            found.append(has_length(field, "fewer", count + 1))
    for source in (f for f in ("inputs", "expectations") if f in fields):
        for inside in (True, False):
            for present in (True, False):
                found.append(number_from("outputs", source, inside=inside, present=present))
        found += [numbers_shared("outputs", source, count) for count in (2, 3)]
        for part, whole in ((source, "outputs"), ("outputs", source)):
            for percent in (10, 20, 30, 40, 50, 60, 75, 90, 100):
                found.append(overlaps(part, whole, percent))
                found.append(overlaps(part, whole, percent, at_least=False))
    return found


def _phrases(items: Sequence[dict[str, Text]]) -> list[Condition]:
    """Words and word pairs that occur in several outputs, the most widespread first."""
    counts: Counter[str] = Counter()
    for item in items:
        said = item["outputs"].tokens if "outputs" in item else []
        single = {w for w in said if w not in STOP_WORDS and len(w) > 2 and not w[0].isdigit()}
        double = {
            f"{a} {b}"
            for a, b in pairwise(said)
            if not (a in STOP_WORDS and b in STOP_WORDS) and not re.search(r"\d", a + b)
        }
        counts.update(single | double)
    widespread = [phrase for phrase, count in counts.items() if count >= LEAST_CASES + 1]
    widespread.sort(key=lambda phrase: (-counts[phrase], phrase))
    return [mentions("outputs", phrase) for phrase in widespread[:150]]


# -- reading the cases ----------------------------------------------------------------------


def _ladder(allowed: str, instructions: str) -> Ladder | None:
    try:
        told: Any = json.loads(allowed)
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    if told.get("range"):
        # The judge reads the ends of its scale from the instructions, so they count here too.
        kind = "int" if told.get("whole_numbers") else "float"
        return Ladder.of_range(*number_range(instructions, kind), kind)
    values = told.get("values")
    if not isinstance(values, list) or len(values) < 2:
        return None
    return Ladder(tuple(values), ordered=bool(told.get("ordered")) or len(values) == 2)


def _as_numbers(shown: Sequence[dict[str, Any]], stated: Sequence[Rule], ladder: Ladder) -> Cases:
    items, labels, now, own = [], [], [], []
    steps = [r for r in stated if r.step]
    for case in shown:
        label = ladder.index(case.get("human_label"))
        verdict = ladder.index(case.get("judge_verdict"))
        if label is None or verdict is None:
            continue
        item = as_item({f: case[f] for f in ("inputs", "outputs", "expectations") if f in case})
        taste = min(int(first_impression(item)[0] * len(ladder.values)), len(ladder.values) - 1)
        start = next(
            (p for r in reversed(stated) if r.start and (p := ladder.index(r.start)) is not None),
            taste,
        )
        moved = sum(r.step for r in steps if r.fires(item))
        # The verdict is what counts; the rules tell how far it lies beyond the ladder's ends.
        uncut = start + moved
        agrees = min(max(uncut, 0), len(ladder.values) - 1) == verdict
        items.append(item)
        labels.append(label)
        now.append(uncut if agrees and ladder.ordered else verdict)
        own.append(taste if agrees else 0)
    return Cases(items, np.array(labels), np.array(now), np.array(own))
