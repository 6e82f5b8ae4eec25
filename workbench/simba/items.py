"""Labelled items: traces with a human label, and the judge's verdicts on them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from workbench.errors import NoLabelsError, TooFewPairsError
from workbench.judging.judge import fingerprint
from workbench.judging.verdicts import Verdict, read_verdict, recorded_verdicts
from workbench.pairing.consensus import decisions_by_trace, labels_by_trace, read_label
from workbench.scale import Scale, scale_of
from workbench.store.traces import Example, as_example

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.judges import Judge

MINIMUM_LABELS: Final = 10
"""Labelled traces needed to learn from; MLflow's optimizers ask for as many."""


@dataclass(frozen=True)
class Item:
    """A labelled example.

    ``weight`` is above 0 and says how much the item counts in scores. Items of the same ``group``
    stay together wherever items are split.
    """

    example: Example
    label: Any
    rationale: str = ""
    weight: float = 1.0
    group: str = ""

    @property
    def trace_id(self) -> str:
        return self.example.trace_id

    def values(self, fields: Sequence[str]) -> dict[str, Any]:
        """The item's inputs, outputs or expectations by name."""
        return {name: getattr(self.example, name) for name in fields}


@dataclass(frozen=True)
class Case:
    """An item with the judge's verdict on it."""

    item: Item
    verdict: Verdict

    @property
    def label(self) -> Any:
        return self.item.label

    @property
    def weight(self) -> float:
        return self.item.weight


def judge_fields(judge: Judge) -> tuple[str, ...]:
    """Which of inputs, outputs and expectations the judge's instructions refer to."""
    variables = getattr(judge, "template_variables", {"inputs", "outputs"})
    fields = tuple(f for f in ("inputs", "outputs", "expectations") if f in variables)
    # A judge of whole traces is explained by their inputs and outputs.
    return fields or ("inputs", "outputs")


def known_verdicts(judge: Judge, traces: Sequence[Trace], scale: Scale) -> list[Verdict]:
    """Verdicts that this version of the judge has logged on the traces."""
    version = fingerprint(judge)
    found = []
    for trace in traces:
        own = [v for v in recorded_verdicts(trace, judge.name) if v.fingerprint == version]
        verdict, _ = read_verdict(own, own, scale)
        if verdict is not None:
            found.append(Verdict(trace.info.trace_id, *verdict, fingerprint=version))
    return found


def labelled_items(
    judge: Judge, traces: Sequence[Trace], *, least: int = MINIMUM_LABELS
) -> tuple[list[Item], Scale]:
    """Return the traces with a human label under the judge's name, and the rating scale.

    Raises
    ------
    NoLabelsError, TooFewPairsError
        Without labels, or with fewer than ``least`` usable ones.
    """
    decisions = decisions_by_trace(traces, judge.name)
    by_trace = {**{i: [] for i in decisions}, **labels_by_trace(traces, judge.name)}
    if not by_trace:
        raise NoLabelsError(
            f"None of {len(traces)} traces has a human label under {judge.name!r}. Log labels with "
            f"workbench.log_labels(table, name={judge.name!r}, ...) or mlflow.log_feedback."
        )
    scale = scale_of(judge) or Scale.from_values(
        label.value for labels in by_trace.values() for label in labels
    )
    items = []
    unused: Counter[str] = Counter()
    for example in (as_example(t) for t in traces if t.info.trace_id in by_trace):
        decision = decisions.get(example.trace_id)
        label = read_label(by_trace[example.trace_id], scale, "majority", "drop", decision)
        if label.fault is None:
            items.append(Item(example, label.value, label.rationale))
        else:
            unused[label.fault] += 1
    if unused:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in unused.most_common())
        warnings.warn(f"{unused.total()} labelled traces are not used ({reasons}).", stacklevel=3)
    if len(items) < least:
        raise TooFewPairsError(
            f"{len(items)} of {len(traces)} traces have a usable human label under "
            f"{judge.name!r}; at least {least} are needed, and 50 to 100 make a "
            "difference that can be trusted. Label more traces."
        )
    return items, scale.with_range(item.label for item in items)
