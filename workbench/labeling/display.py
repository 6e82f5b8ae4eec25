"""What a labelling session shows: items as JSON for the view, labels as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import pandas as pd
from mlflow.entities import Trace

from workbench.labeling.annotations import Action, Annotations, Answer
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.queue import Item, LabelQueue
from workbench.scale import ABSTAIN
from workbench.store.assessments import now_ms
from workbench.store.rubrics import RubricHistory
from workbench.store.tables import has_lone_surrogate
from workbench.store.traces import Example, as_example

_COLUMNS: Final = [
    "trace_id", "question", "value", "rationale", "annotator", "chosen", "probability", "draw",
    "pool", "seconds", "at", "saved", "rubric_version", "after_verdict", "changed_to", "elsewhere",
]  # fmt: skip


def label_table(queue: LabelQueue) -> pd.DataFrame:
    """Return one row a trace and question, unsaved ones last (see `LabelSession.labels`)."""
    rows = [
        {"trace_id": trace_id, "annotator": queue.annotator, **row}
        for trace_id, item in queue.items.items()
        for row in _rows(item, queue.questions)
    ]
    rows.sort(key=lambda row: (not row["saved"], row["at"]))
    # As objects first: pandas would make texts of mixed values, and nan of what is None.
    table = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)
    table = table.astype(object).where(table.notna(), None)
    numbers = dict.fromkeys(["probability", "seconds"], "float64")
    table = table.astype({**numbers, "saved": bool, "after_verdict": bool, "elsewhere": bool})
    return table.assign(at=pd.to_datetime(table["at"], utc=True))


def _rows(item: Item, questions: tuple[LabelQuestion, ...]) -> Iterator[dict[str, Any]]:
    waiting: dict[str, Action] = {}
    for action in item.waiting:
        if action.kind == "save":
            waiting |= dict.fromkeys(action.answers, action)
        elif action.kind == "undo":
            waiting = {name: one for name, one in waiting.items() if one.id != action.undoes}
    for question in questions:
        stored = item.annotations.answers.get(question.name)
        unsaved = waiting.get(question.name)
        row: dict[str, Any] = {"question": question.name}
        if item.draw is not None:
            row |= {"chosen": item.draw.how, "probability": item.draw.probability}
            row |= {"draw": item.draw.number, "pool": item.draw.pool}
        # What is said after a look at the verdict does not take the place of the first label.
        if unsaved and not (stored and question.name in item.annotations.revealed):
            yield {**row, **_unsaved_row(unsaved, question)}
        elif stored:
            yield {**row, **_stored_row(stored, item.annotations.changed.get(question.name))}


def _unsaved_row(action: Action, question: LabelQuestion) -> dict[str, Any]:
    given = action.answers[question.name]
    return {
        "value": _cell(question.answer(given.value, abstain=given.abstain)),
        "rationale": action.reason(question.name),
        "seconds": action.seconds,
        "at": _time(int(action.at or now_ms())),
        "saved": False,
        "rubric_version": action.rubrics.get(question.name),
        "after_verdict": action.after_reveal,
        "elsewhere": False,
    }


def _stored_row(answer: Answer, changed: Answer | None) -> dict[str, Any]:
    return {
        "value": _cell(answer.value),
        "rationale": answer.rationale,
        "seconds": answer.seconds,
        "at": _time(answer.created_ms),
        "saved": True,
        "rubric_version": answer.label.rubric_version,
        "after_verdict": answer.label.after_verdict,
        "changed_to": _cell(changed.value) if changed else None,
        "elsewhere": answer.action is None,
    }


def refused_table(refused: Mapping[str, tuple[Action, str]]) -> pd.DataFrame:
    """Return what will never be written, and why (see `LabelSession.unsaved`)."""
    rows = [
        {
            "id": key,
            "kind": action.kind,
            "trace_id": action.trace_id,
            "answers": {
                n: "N/A" if one.abstain else one.value for n, one in action.answers.items()
            },
            "rationale": {name: action.reason(name) for name in action.answers},
            "error": error,
        }
        for key, (action, error) in refused.items()
    ]
    columns = ["id", "kind", "trace_id", "answers", "rationale", "error"]
    return pd.DataFrame(rows, columns=columns)


def summary_table(queue: LabelQueue) -> pd.DataFrame:
    """Return one row a question and value (see `LabelSession.summary`)."""
    rows = []
    for question in queue.questions:
        counts = queue.balances[question.name]
        abstained = counts.pop(ABSTAIN, 0)
        total = sum(counts.values())
        for value, count in counts.items():
            share = count / total if total else float("nan")
            rows.append((question.name, question.shown(value), count, share))
        rows.append((question.name, "can't judge", abstained, float("nan")))
        lacking = sum(
            question.name not in item.annotations.answers and not item.gone
            for item in queue.items.values()
        )
        rows.append((question.name, "not labelled", lacking, float("nan")))
    return pd.DataFrame(rows, columns=["question", "value", "labels", "share"])


def _cell(value: Any) -> Any:
    return None if value is ABSTAIN else value


def _time(at_ms: int) -> pd.Timestamp:
    return pd.Timestamp(at_ms, unit="ms", tz="UTC")


# -- JSON for the view ----------------------------------------------------------------------


def item_json(
    queue: LabelQueue, trace: Trace, rubrics: Mapping[str, RubricHistory], *, full: bool
) -> dict[str, Any]:
    """Return an item as described in `workbench.labeling.session`."""
    trace_id = trace.info.trace_id
    item = queue.items[trace_id]
    answers = answers_json(item.annotations, rubrics)
    return {
        "position": queue.place[trace_id],
        "trace_id": trace_id,
        **content(as_example(trace), full=full),
        "chosen": asdict(item.draw) if item.draw else {"how": item.how, "probability": None},
        "done": answers if item.annotations.done else None,
        "partial": None if item.annotations.done else answers,
        "again": item.again,
        # To a view what others have done is like what was put off: it is not offered.
        "skipped": item.annotations.skipped or item.taken,
        "gone": item.gone,
    }


def answers_json(
    stored: Annotations, rubrics: Mapping[str, RubricHistory]
) -> dict[str, Any] | None:
    """Return what the store holds of an annotator's answers."""
    answers = stored.answers
    if not answers:
        return None
    latest = {name: stored.latest(name) for name in answers}
    return {
        "answers": {name: _answer_json(one) for name, one in answers.items()},
        "rationale": {name: one.rationale for name, one in answers.items()},
        "changed": {name: _answer_json(one) for name, one in stored.changed.items()},
        "earlier_rubric": any(
            one is not None and rubrics[name].is_earlier(one.label) for name, one in latest.items()
        ),
        "elsewhere": all(one.action is None for one in answers.values()),
        "action": max(answers.values(), key=lambda one: one.created_ms).action,
    }


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {"value": _cell(answer.value), "abstain": answer.value is ABSTAIN}


def history_json(queue: LabelQueue, action_id: str, trace_id: str) -> dict[str, Any]:
    """Return one of the annotator's last actions."""
    item = queue.items[trace_id]
    skips = {*item.annotations.skips, *(a.id for a in item.waiting if a.kind == "skip")}
    return {
        "id": action_id,
        "trace_id": trace_id,
        "kind": "skip" if action_id in skips else "save",
        "position": queue.place[trace_id],
        "kept": item.annotations.keeps(action_id),
    }


# -- content of traces ----------------------------------------------------------------------

CUT: Final = 200_000
"""Characters of one text that are sent unless all of it is asked for."""


_DEEPEST = 60


def content(example: Example, *, full: bool = False) -> dict[str, Any]:
    """Return inputs, outputs and expectations as JSON.

    Texts longer than `CUT` are cut unless ``full``; ``cuts`` then maps the path of each to its
    length in characters. A field that is long without holding a long text is cut as JSON text.
    """
    limit = None if full else CUT
    cuts: dict[str, int] = {}
    shown: dict[str, Any] = {}
    for name in ("inputs", "outputs", "expectations"):
        inner: dict[str, int] = {}
        value = plain(getattr(example, name), limit, inner, name)
        if limit is not None and not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False)
            if len(text) > 2 * limit:
                value, inner = text[:limit], {name: len(text)}
        shown[name] = value
        cuts |= inner
    return {**shown, "cuts": cuts} if cuts else shown


def plain(
    value: Any,
    limit: int | None = None,
    cuts: dict[str, int] | None = None,
    path: str = "",
    depth: int = 0,
) -> Any:
    """Return a value as JSON that a browser reads without loss.

    Lone surrogates are replaced, integers beyond 2**53 and floats that are not finite become text,
    and so does what lies deeper than 60 levels. Texts are cut at ``limit``, noted in ``cuts``.
    """
    if isinstance(value, str):
        if has_lone_surrogate(value):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if limit is not None and len(value) > limit:
            if cuts is not None:
                cuts[path] = len(value)
            return value[:limit]
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth >= _DEEPEST:
        return plain(_as_text(value), limit, cuts, path, depth)
    if isinstance(value, dict):
        return {
            plain(str(key), limit): plain(one, limit, cuts, f"{path}.{key}"[:200], depth + 1)
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(one, limit, cuts, f"{path}[{n}]", depth + 1) for n, one in enumerate(value)]
    return plain(str(value), limit, cuts, path, depth)


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return "(too deeply nested to be shown)"
