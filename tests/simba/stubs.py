"""Stub judges and reflection models, and items that they rate."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from workbench.judging.verdicts import Verdict
from workbench.models.budget import UNPAID, Usage
from workbench.models.client import Outcome
from workbench.scale import Scale
from workbench.simba.candidate import Candidate, Case, Item
from workbench.simba.reflection import Request
from workbench.store.traces import Example

BASE = Candidate("Rate {{ outputs }}.")
SCALE = Scale.of(["poor", "fair", "good"])
RULE = "Rate it poor when a promise is made."

Questions = Sequence[tuple[Candidate, Item]]


def items(n: int, start: int = 0) -> list[Item]:
    """Every second item makes a promise; people rate those poor, the others good."""
    return [
        Item(
            Example(f"tr-{i:03}", {"q": i}, f"item {i}" + " with a promise" * (i % 2 == 0)),
            "poor" if i % 2 == 0 else "good",
            "no promises" * (i % 2 == 0),
        )
        for i in range(start, start + n)
    ]


def case(item: Item, value: str = "fair", rationale: str = "so be it") -> Case:
    """The item with a verdict on it."""
    return Case(item, Verdict(item.trace_id, value, rationale))


def stated(candidate: Candidate) -> str:
    """The rules of a candidate."""
    return "\n".join(candidate.rules)


def always_good(questions: Questions) -> list[Verdict]:
    """Says good unless a rule names promises and one is made."""
    return [
        Verdict(
            item.trace_id,
            "poor" if "promise" in stated(c) and "promise" in item.example.outputs else "good",
            "so be it",
            calls=1,
        )
        for c, item in questions
    ]


def answers(value: Callable[[Candidate, Item], str]) -> Callable[[Questions], list[Verdict]]:
    """A judge whose verdicts are these values."""
    return lambda questions: [Verdict(i.trace_id, value(c, i), calls=1) for c, i in questions]


def reflection(rules: Sequence[str], paid: Usage = UNPAID) -> Outcome:
    """The answer of a reflection model that states these rules."""
    return Outcome({"rules": list(rules)}, usage=paid)


class Reflecting:
    """Gives the rule if a disagreement that is shown speaks of promises; keeps the requests."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def __call__(self, requests: Sequence[Request], step: int) -> list[Outcome]:
        self.seen += requests
        return [
            reflection(
                (RULE,) if any("promise" in c.item.rationale for c in r.disagreements) else (),
                Usage(1),
            )
            for r in requests
        ]


def obedient(questions: Questions) -> list[Verdict]:
    """Follows each rule to the letter and says so: the last that fires has the say.

    A rule reads "Rate it VALUE when WORD ...": it fires where the item's text has the word.
    """
    found = []
    for candidate, item in questions:
        value, why = "good", "nothing to say"
        for rule in candidate.rules:
            said = rule.strip(".").split()
            if len(said) > 4 and said[4] in item.example.outputs:
                value, why = said[2], f"there is {said[4]}"
        found.append(Verdict(item.trace_id, value, why, calls=1))
    return found


class Chance:
    """A judge and a reflection model that answer anything, and count what they are asked."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.judged = self.reflected = 0

    def ask(self, questions: Questions) -> list[Verdict]:
        self.judged += len(questions)
        values = [*SCALE.values, "good", "N/A"]
        return [Verdict(i.trace_id, self.rng.choice(values), calls=1) for _, i in questions]

    def reflect(self, requests: Sequence[Request], step: int) -> list[Outcome]:
        self.reflected += len(requests)
        return [
            reflection(
                tuple(
                    f"Look at number {self.rng.randrange(1000)}."
                    for _ in range(self.rng.randrange(7))
                ),
                Usage(1),
            )
            for _ in requests
        ]
