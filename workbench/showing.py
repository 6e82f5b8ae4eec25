"""How an item is told to a view: what it holds, how it was chosen and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.entities import Trace

from workbench.agenda import Item
from workbench.contents import content
from workbench.draws import Draw
from workbench.rubrics import RubricHistory
from workbench.scale import ABSTAIN
from workbench.standing import Answer, Standing
from workbench.traces import as_example

Message = dict[str, Any]


def item_json(
    position: int,
    item: Item,
    trace: Trace,
    chosen: Draw,
    rubrics: Mapping[str, RubricHistory],
    *,
    full: bool,
) -> Message:
    """An item as `workbench.labelling.LabelSession` describes it; ``full``: nothing is cut."""
    standing = item.standing
    done = done_json(standing, rubrics)
    return {
        "position": position,
        "trace_id": item.info.trace_id,
        **content(as_example(trace), full=full),
        "chosen": chosen.to_json(),
        "done": done if standing.done else None,
        "partial": None if standing.done else done,
        "again": item.again,
        # To a view what others have done is like what was put off: it is not offered.
        "skipped": standing.skipped or item.taken,
        "gone": item.gone,
    }


def done_json(standing: Standing, rubrics: Mapping[str, RubricHistory]) -> Message | None:
    """What the store holds of the annotator's answers to an item; None where it holds none."""
    if not standing.answers:
        return None
    return {
        "answers": {name: _answer_json(one) for name, one in standing.answers.items()},
        "rationale": {name: one.rationale for name, one in standing.answers.items()},
        "changed": {name: _answer_json(one) for name, one in standing.changed.items()},
        "earlier_rubric": any(
            rubrics[name].is_earlier(latest.label)
            for name in standing.answers
            if (latest := standing.latest(name)) is not None
        ),
        "elsewhere": all(one.action is None for one in standing.answers.values()),
        "action": max(standing.answers.values(), key=lambda one: one.created_ms).action,
    }


def _answer_json(answer: Answer) -> Message:
    abstain = answer.value is ABSTAIN
    return {"value": None if abstain else answer.value, "abstain": abstain}
