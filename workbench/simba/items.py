"""What is searched with: the items that people labelled, and the judge's verdicts on them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mlflow.genai.judges import Judge

from workbench.judging.verdicts import Verdict
from workbench.store.traces import Example


@dataclass(frozen=True)
class Item:
    """A labelled example. ``weight``, above 0, says how much it counts in scores."""

    example: Example
    label: Any
    rationale: str = ""
    weight: float = 1.0

    @property
    def trace_id(self) -> str:
        return self.example.trace_id

    def values(self, fields: Sequence[str]) -> dict[str, Any]:
        """Return the item's inputs, outputs or expectations by name."""
        return {name: getattr(self.example, name) for name in fields}


@dataclass(frozen=True)
class Case:
    """An item with the judge's verdict on it."""

    item: Item
    verdict: Verdict


Labelled = TypeVar("Labelled", Item, Case)


def sample(items: Sequence[Labelled], size: int, rng: random.Random) -> list[Labelled]:
    """Draw up to ``size`` items, the labels in turn; items of more weight come first."""
    by_label: dict[Any, list[Labelled]] = defaultdict(list)
    drawn_from = [(one.item if isinstance(one, Case) else one, one) for one in items]
    for item, one in sorted(drawn_from, key=lambda pair: (pair[0].weight, rng.random())):
        by_label[item.label].append(one)
    queues = [by_label[label] for label in sorted(by_label, key=str)]
    drawn: list[Labelled] = []
    while len(drawn) < min(size, len(items)):
        for queue in queues:
            if queue and len(drawn) < size:
                drawn.append(queue.pop())
    return drawn


def judge_fields(judge: Judge) -> tuple[str, ...]:
    """Which of inputs, outputs and expectations the judge's instructions refer to."""
    variables = getattr(judge, "template_variables", {"inputs", "outputs"})
    fields = tuple(f for f in ("inputs", "outputs", "expectations") if f in variables)
    # A judge of whole traces is explained by their inputs and outputs.
    return fields or ("inputs", "outputs")
