"""Labelled traces as the items that are learned from."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Final

from mlflow.entities import Trace
from mlflow.genai.judges import Judge

from workbench.errors import NoLabelsError, TooFewPairsError
from workbench.pairing.consensus import (
    decisions_by_trace,
    known_scale,
    labels_by_trace,
    read_label,
)
from workbench.scale import Scale
from workbench.simba.items import Item
from workbench.store.traces import as_example

MINIMUM_LABELS: Final = 10
"""Labelled traces needed to learn from; MLflow's optimizers ask for as many."""


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
    labelled = (label.value for labels in by_trace.values() for label in labels)
    scale = known_scale(judge, traces) or Scale.from_values(labelled)
    items = []
    unused: Counter[str] = Counter()
    for trace in traces:
        trace_id = trace.info.trace_id
        if trace_id in by_trace:
            labels, decision = by_trace[trace_id], decisions.get(trace_id)
            label = read_label(labels, scale, "majority", "drop", decision)
            if label.fault is None:
                items.append(Item(as_example(trace), label.value, label.rationale))
            unused[label.fault or ""] += 1
    del unused[""]
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
