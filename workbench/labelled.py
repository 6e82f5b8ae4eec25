"""What there is to learn from: labelled items of traces, and verdicts that lie on them already."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from mlflow.entities import Trace
from mlflow.genai.judges.base import Judge

from workbench.consensus import decisions_by_trace, labels_by_trace, read_label
from workbench.errors import NoLabelsError, TooFewPairsError
from workbench.judge import Verdict, fingerprint, scale_of
from workbench.reflection import Item
from workbench.scale import Scale
from workbench.traces import as_example
from workbench.verdicts import read_verdict, recorded_verdicts

MINIMUM_LABELS = 10
"""Fewer labelled traces than this cannot be learned from (MLflow asks for as many)."""


def judge_fields(judge: Judge) -> tuple[str, ...]:
    """Which of inputs, outputs and expectations the judge's instructions show it."""
    shown = getattr(judge, "template_variables", {"inputs", "outputs"})
    fields = tuple(f for f in ("inputs", "outputs", "expectations") if f in shown)
    # A judge of whole traces is reflected on by what the trace took in and gave out.
    return fields or ("inputs", "outputs")


def known_verdicts(judge: Judge, traces: Sequence[Trace], scale: Scale) -> list[Verdict]:
    """Verdicts of this very judge that lie on the traces already, so that none is paid again."""
    mark = fingerprint(judge)
    found = []
    for trace in traces:
        own = [v for v in recorded_verdicts(trace, judge.name) if v.fingerprint == mark]
        verdict, _ = read_verdict(own, own, scale)
        if verdict is not None:
            found.append(Verdict(trace.info.trace_id, *verdict, fingerprint=mark))
    return found


def labelled_items(
    judge: Judge, traces: Sequence[Trace], *, least: int = MINIMUM_LABELS
) -> tuple[list[Item], Scale]:
    """The traces that people labelled under the judge's name, and the rating scale."""
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
    left_out: Counter[str] = Counter()
    for example in (as_example(t) for t in traces if t.info.trace_id in by_trace):
        decision = decisions.get(example.trace_id)
        label = read_label(by_trace[example.trace_id], scale, "majority", "drop", decision)
        if label.fault is None:
            items.append(Item(example, label.value, label.rationale))
        else:
            left_out[label.fault] += 1
    if left_out:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in left_out.most_common())
        warnings.warn(f"{left_out.total()} labelled traces are not used ({reasons}).", stacklevel=3)
    if len(items) < least:
        raise TooFewPairsError(
            f"{len(items)} of {len(traces)} traces have a usable human label under "
            f"{judge.name!r}; at least {least} are needed, and 50 to 100 make a "
            "difference that can be trusted. Label more traces."
        )
    return items, scale.with_range(item.label for item in items)
