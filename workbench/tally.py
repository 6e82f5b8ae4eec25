"""One annotator's labels, what cannot be saved, and how far it is: as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from workbench.actions import Action
from workbench.agenda import Agenda, Item
from workbench.answers import LabelQuestion
from workbench.feedback import now_ms
from workbench.scale import ABSTAIN
from workbench.standing import SECONDS_KEY, Answer

_LABEL_COLUMNS = [
    "trace_id", "question", "value", "rationale", "annotator", "chosen", "probability", "draw",
    "pool", "seconds", "at", "saved", "rubric_version", "after_verdict", "changed_to", "elsewhere",
]  # fmt: skip


def label_table(agenda: Agenda) -> pd.DataFrame:
    """One row a trace and question, those not saved yet last (see `LabelSession.labels`)."""
    rows = [
        {"trace_id": trace_id, "annotator": agenda.annotator, **row}
        for trace_id, item in agenda.items.items()
        for row in _rows(item, agenda.questions)
    ]
    rows.sort(key=lambda row: (not row["saved"], row["at"]))
    # As objects first: pandas would make texts of mixed values, and nan of what is None.
    table = pd.DataFrame(rows, columns=_LABEL_COLUMNS, dtype=object)
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
        stored = item.standing.answers.get(question.name)
        unsaved = waiting.get(question.name)
        row: dict[str, Any] = {"question": question.name}
        if item.draw is not None:
            row |= {"chosen": item.draw.how, "probability": item.draw.probability}
            row |= {"draw": item.draw.number, "pool": item.draw.pool}
        # What is said after a look at the verdict does not take the place of the first label.
        if unsaved and not (stored and question.name in item.standing.revealed):
            yield {**row, **_of_action(unsaved, question)}
        elif stored:
            yield {**row, **_of_answer(stored, item.standing.changed.get(question.name))}


def _of_action(action: Action, question: LabelQuestion) -> dict[str, Any]:
    given = action.answers[question.name]
    return {
        "value": _plain(question.answer(given.value, abstain=given.abstain)),
        "rationale": given.rationale,
        "seconds": action.seconds,
        "at": _time(action.at_ms or now_ms()),
        "saved": False,
        "rubric_version": action.rubrics.get(question.name),
        "after_verdict": action.after_reveal,
        "elsewhere": False,
    }


def _of_answer(answer: Answer, changed: Answer | None) -> dict[str, Any]:
    return {
        "value": _plain(answer.value),
        "rationale": answer.rationale,
        "seconds": answer.number(SECONDS_KEY),
        "at": _time(answer.created_ms),
        "saved": True,
        "rubric_version": answer.label.rubric_version,
        "after_verdict": answer.label.after_verdict,
        "changed_to": _plain(changed.value) if changed else None,
        "elsewhere": answer.action is None,
    }


def refused_table(refused: Mapping[str, tuple[Action, str]]) -> pd.DataFrame:
    """What will never be written, and why (see `LabelSession.unsaved`)."""
    rows = [
        {
            "id": key,
            "kind": action.kind,
            "trace_id": action.trace_id,
            "answers": {
                n: "N/A" if one.abstain else one.value for n, one in action.answers.items()
            },
            "rationale": {n: one.rationale for n, one in action.answers.items()},
            "error": error,
        }
        for key, (action, error) in refused.items()
    ]
    columns = ["id", "kind", "trace_id", "answers", "rationale", "error"]
    return pd.DataFrame(rows, columns=columns)


def summary_table(agenda: Agenda) -> pd.DataFrame:
    """One row a question and value (see `LabelSession.summary`)."""
    rows = []
    for question in agenda.questions:
        counts = agenda.balance[question.name]
        values = list(question.scale.values) if question.scale else []
        values += [v for v in counts if v is not ABSTAIN and v not in values and counts[v]]
        total = sum(counts[value] for value in values)
        for value in values:
            share = counts[value] / total if total else float("nan")
            rows.append((question.name, question.shown(value), counts[value], share))
        rows.append((question.name, "can't judge", counts[ABSTAIN], float("nan")))
        lacking = sum(
            question.name not in item.standing.answers and not item.gone
            for item in agenda.items.values()
        )
        rows.append((question.name, "not labelled", lacking, float("nan")))
    return pd.DataFrame(rows, columns=["question", "value", "labels", "share"])


def _plain(value: Any) -> Any:
    return None if value is ABSTAIN else value


def _time(at_ms: int) -> pd.Timestamp:
    return pd.Timestamp(at_ms, unit="ms", tz="UTC")
