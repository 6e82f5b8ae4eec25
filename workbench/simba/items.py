"""What is searched with: the items that people labelled, and the judge's verdicts on them."""

from __future__ import annotations

import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from mlflow.entities import Trace
from mlflow.genai.judges import Judge

from workbench.errors import NoLabelsError, TooFewPairsError
from workbench.judging.verdicts import Verdict
from workbench.pairing.consensus import (
    decisions_by_trace,
    known_scale,
    labels_by_trace,
    read_label,
)
from workbench.scale import Scale
from workbench.store.traces import Example, as_example

MINIMUM_LABELS: Final = 10  # labelled traces needed; MLflow's optimizers ask for as many


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


def labelled_items(
    judge: Judge, traces: Sequence[Trace], *, least: int = MINIMUM_LABELS
) -> tuple[list[Item], Scale]:
    """Return the traces with a human label under the judge's name, and the rating scale.

    Raises `NoLabelsError` without labels, `TooFewPairsError` with fewer than ``least`` usable ones.
    """
    name = judge.name
    labels, decisions = labels_by_trace(traces, name), decisions_by_trace(traces, name)
    if not labels and not decisions:
        raise NoLabelsError(
            f"None of {len(traces)} traces has a human label under {name!r}. Log labels with "
            f"workbench.log_labels(table, name={name!r}, ...) or mlflow.log_feedback."
        )
    given = (label.value for of_trace in labels.values() for label in of_trace)
    scale = known_scale(judge, traces) or Scale.from_values(given)
    items, unused = [], Counter[str]()
    for trace in traces:
        i = trace.info.trace_id
        label = read_label(labels.get(i, []), scale, "majority", "drop", decisions.get(i))
        if label.fault is None:
            items.append(Item(as_example(trace), label.value, label.rationale))
        elif label.fault != "no label":
            unused[label.fault] += 1
    if unused:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in unused.most_common())
        warnings.warn(f"{unused.total()} labelled traces are not used ({reasons}).", stacklevel=3)
    if len(items) < least:
        raise TooFewPairsError(
            f"{len(items)} of {len(traces)} traces have a usable human label under "
            f"{name!r}; at least {least} are needed, and 50 to 100 make a "
            "difference that can be trusted. Label more traces."
        )
    return items, scale.with_range(item.label for item in items)
