"""`AdjudicationSession`: one person decides where annotators differ, without a widget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Feedback, Trace, TraceInfo

from workbench.errors import ArgumentError, ScaleError
from workbench.labeling.annotations import Action, without_spans
from workbench.labeling.display import content, refused_table
from workbench.labeling.questions import LabelQuestion, with_rubric
from workbench.labeling.recorder import take_back, write_once
from workbench.labeling.session import Message, Session, SessionItem
from workbench.labeling.trace_store import TraceStore
from workbench.pairing.adjudication import (
    Difference,
    differences,
    disagreements,
    new_decision,
)
from workbench.pairing.consensus import known_scale
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import Decision, decision_feedback, decision_records
from workbench.store.traces import as_example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


@dataclass
class DisputedItem(SessionItem):
    """One trace on which people differ."""

    difference: Difference
    decision: Decision | None
    skipped: bool = False

    @property
    def status(self) -> str:
        """open, done, skipped or gone, waiting actions included."""
        if self.gone:
            return "gone"
        status = "done" if self.decision else "skipped" if self.skipped else "open"
        for action in self.waiting:
            status = {"save": "done", "undo": "open", "skip": "skipped"}[action.kind]
        return status


class AdjudicationSession(Session[DisputedItem]):
    """The adjudication of one question by one person.

    The messages between session and view are described in `workbench.labeling.session`. An item
    has besides ``voices``: ``[{"annotator", "value", "rationale", "earlier_rubric"}]``, the labels
    in words, and its ``done`` says ``decided_by`` whom.

    Parameters
    ----------
    judge_or_name, traces, by, scale, title, experiment
        See `workbench.AdjudicationPanel`.
    on_message, store, patience
        See `workbench.LabelSession`.

    Raises
    ------
    ArgumentError
        For a ``by`` without a name.
    StoreError
        When the traces cannot be read.
    """

    def __init__(
        self,
        judge_or_name: Judge | str,
        traces: Any = None,
        *,
        by: str,
        scale: Scale | None = None,
        title: str = "",
        experiment: str | None = None,
        on_message: Callable[[Message], None] | None = None,
        store: TraceStore | None = None,
        patience: float = 2.0,
    ) -> None:
        if not isinstance(by, str) or not by.strip():
            raise ArgumentError(f"by={by!r} must be a non-empty text: who decides.")
        self.by = by
        super().__init__(
            on_message=on_message, store=store or TraceStore(experiment), patience=patience
        )
        self._judge, self._traces, self._scale = judge_or_name, traces, scale
        self._name = judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)
        self._items: dict[str, DisputedItem] = {}
        self._load()
        self.title = title or self.question.title or self.question.name

    def _load(self) -> None:
        """Read the store: the question with its scale and rubric, labels and decisions."""
        infos = self._store.read(self.by, self._traces, None, missing_ok=bool(self._items)).infos
        rubrics = self._store.rubrics(self._name)
        traces = [without_spans(info) for info in infos.values()]
        scale = self._scale or known_scale(self._judge, traces)
        if isinstance(self._judge, str):
            question = LabelQuestion(self._judge, scale)
        else:
            question = LabelQuestion.of_judge(self._judge, scale=scale)
        found = {one.trace_id: one for one in differences(self._judge, traces, scale=scale)}
        with self._lock:
            self._rubrics, self.question = rubrics, with_rubric(question, rubrics)
            before = self._items
            # What is on the screen keeps its place; what has come to differ since comes after it.
            order = [*(i for i in before if i in found), *(i for i in found if i not in before)]
            self._items = {
                i: DisputedItem(
                    infos[i],
                    found[i],
                    found[i].decision,
                    skipped=i in before and before[i].skipped,
                    waiting=before[i].waiting if i in before else [],
                )
                for i in order
            }

    def refresh(self) -> list[Message]:
        """Read the store again: labels and decisions made elsewhere, the scale and the rubric.
        Returns the messages to send: ``queue``."""
        self._load()
        return [{"type": "queue", "total": len(self._items), "position": self.position}]

    # -- the view -----------------------------------------------------------------------

    def setup(self) -> Message:
        """Return what does not change while one decides."""
        return self._setup(self.by, self.by, [self.question], "decisions")

    @property
    def position(self) -> int:
        """The first open item, else the first that was put off, else the number of items."""
        with self._lock:
            statuses = [item.status for item in self._items.values()]
        for status in ("open", "skipped"):
            if status in statuses:
                return statuses.index(status)
        return len(statuses)

    @property
    def progress(self) -> dict[str, Any]:
        """``labelled`` (decided) and ``skipped`` of ``total``, ``waiting`` actions, and
        ``balance``, the decisions by value."""
        with self._lock:
            items = list(self._items.values())
            made = [item.decision for item in items if item.decision is not None]
            values = self.question.scale.values if self.question.scale else ()
            counts = Counter(self.question.shown(self._canonical(one.value)) for one in made)
            return {
                "labelled": len(made),
                "skipped": sum(item.status == "skipped" for item in items),
                "total": len(items),
                "waiting": sum(len(item.waiting) for item in items),
                "balance": {**dict.fromkeys(map(self.question.shown, values), 0), **counts},
                "per_hour": None,
                "seconds_left": None,
            }

    def _history_json(self, action_id: str, trace_id: str) -> Message:
        item = self._items[trace_id]
        return {
            "id": action_id,
            "trace_id": trace_id,
            "kind": "skip" if item.status == "skipped" else "save",
            "position": list(self._items).index(trace_id),
            "kept": False,
        }

    def _item_json(self, trace: Trace, *, full: bool) -> Message:
        trace_id = trace.info.trace_id
        item = self._items[trace_id]
        return {
            "position": list(self._items).index(trace_id),
            "trace_id": trace_id,
            **content(as_example(trace), full=full),
            "chosen": {"how": "disagreement", "probability": None},
            "done": self._done_json(trace_id),
            "partial": None,
            "again": False,
            "skipped": item.status == "skipped",
            "gone": item.gone,
            "voices": [
                {
                    "annotator": label.annotator,
                    "value": self.question.shown(self._canonical(label.value)),
                    "rationale": label.rationale or "",
                    "earlier_rubric": self._rubrics.is_earlier(label),
                }
                for label in item.difference.labels
            ],
        }

    def _done_json(self, trace_id: str) -> Message | None:
        decision = self._items[trace_id].decision
        if decision is None:
            return None
        value = self._canonical(decision.value)
        abstain = value is ABSTAIN
        return {
            "answers": {self._name: {"value": None if abstain else value, "abstain": abstain}},
            "rationale": {self._name: decision.rationale or ""},
            "changed": {},
            "earlier_rubric": False,
            "elsewhere": False,
            "decided_by": decision.by,
        }

    def _canonical(self, raw: Any) -> Any:
        """The value on the scale; what lies off it as it was given."""
        try:
            return self.question.read(raw)
        except ScaleError:
            return raw

    # -- decisions ----------------------------------------------------------------------

    def _find(self, trace_id: str) -> DisputedItem | None:
        return self._items.get(trace_id)

    def _ids(self) -> Sequence[str]:
        return list(self._items)

    def _write(self, action: Action) -> Callable[[], TraceInfo]:
        if action.kind == "skip":
            # It lasts as long as the session, and changes nothing in the store.
            return lambda: self._store.get(action.trace_id)
        if action.kind == "undo":
            return lambda: take_back(
                self._store,
                action,
                lambda info: decision_feedback(without_spans(info), self._name),
            )
        if set(action.answers) != {self._name}:
            raise ArgumentError(f"A decision answers {self._name!r} and nothing else.")
        given = action.answers[self._name]
        value = self.question.answer(given.value, abstain=given.abstain)
        stored = self.question.stored(value)

        def make(name: str, info: TraceInfo) -> Feedback | None:
            return new_decision(
                without_spans(info),
                stored,
                name=name,
                by=self.by,
                rationale=action.reason(name),
                rubric_version=action.rubrics.get(name, self.question.rubric_version),
            )

        return lambda: write_once(self._store, action, [self._name], make)

    def _take(self, action: Action) -> list[Message]:
        answers = super()._take(action)
        if (item := self._find(action.trace_id)) is not None and item.waiting:
            item.skipped = item.waiting[-1].kind == "skip"
        return answers

    def _learn(self, info: TraceInfo) -> None:
        item = self._items[info.trace_id]
        found = decision_records([without_spans(info)], self._name)
        item.info, item.decision = info, found[0] if found else None

    # -- tables -------------------------------------------------------------------------

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, as the store holds them now; see
        `workbench.disagreements`."""
        return disagreements(self._judge, list(self._items), scale=self.question.scale)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: ``id``, ``kind``, ``trace_id``, ``value``,
        ``rationale``, ``error``."""
        with self._lock:
            table = refused_table(self._refused)
        for column in ("answers", "rationale"):
            table[column] = [one.get(self._name) for one in table[column]]
        return table.rename(columns={"answers": "value"})

    def __repr__(self) -> str:
        progress = self.progress
        return (
            f"<AdjudicationSession {self.title!r} by {self.by}: {progress['labelled']} of "
            f"{progress['total']} decided, {progress['waiting']} not saved yet>"
        )
