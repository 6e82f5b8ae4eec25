"""`AdjudicationSession`: one person decides where annotators differ, without a widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Feedback, TraceInfo

from workbench.errors import ArgumentError
from workbench.labeling.annotations import Action, Annotations, Answer, Item, without_spans
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.session import Message, Session, canonical
from workbench.labeling.writer import TraceStore, take_back, write_once
from workbench.pairing.adjudication import (
    differences,
    disagreements,
    new_decision,
)
from workbench.pairing.consensus import known_scale
from workbench.scale import Scale
from workbench.store.assessments import now_ms
from workbench.store.labels import decision_records

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class AdjudicationSession(Session):
    """The adjudication of one question by one person.

    The messages between session and view are described in `workbench.labeling.session`. An item
    has besides ``voices``: ``[{"annotator", "value", "rationale", "earlier_rubric"}]``, the labels
    in words, and its ``done`` says ``decided_by`` whom.

    Parameters
    ----------
    judge_or_name, traces, by, scale, title, experiment
        See `workbench.AdjudicationPanel`.
    on_message, store
        See `workbench.labeling.session.Session`.

    Raises
    ------
    ArgumentError
        For a ``by`` without a name.
    StoreError
        When the traces cannot be read.
    """

    scope = ("decisions",)

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
    ) -> None:
        if not isinstance(by, str) or not by.strip():
            raise ArgumentError(f"by={by!r} must be a non-empty text: who decides.")
        super().__init__(by, store or TraceStore(experiment), on_message)
        self.by = by
        self._judge, self._traces, self._scale = judge_or_name, traces, scale
        self._name = judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)
        self._skipped: dict[str, float] = {}
        self.reload()
        self.title = title or self.questions[0].title or self._name

    def reload(self) -> None:
        """Read the store: the question with its scale and rubric, labels and decisions."""
        infos = self.store.infos(self._traces, missing_ok=bool(self.items))
        traces = [without_spans(info) for info in infos.values()]
        scale = self._scale or known_scale(self._judge, traces)
        found = {one.trace_id: one for one in differences(self._judge, traces, scale=scale)}
        question = LabelQuestion(self._name, scale)
        if not isinstance(self._judge, str):
            question = LabelQuestion.of_judge(self._judge, scale=scale)
        self.ask([question])
        with self.lock:
            self._labels = {trace_id: one.labels for trace_id, one in found.items()}
            # What is on the screen keeps its place; what has come to differ since comes after it.
            items = {i: item for i, item in self.items.items() if i in found}
            for trace_id in found:
                items.setdefault(trace_id, Item(infos[trace_id], how="disagreement"))
            self.items = items
            for position, (trace_id, item) in enumerate(items.items()):
                item.position = position
                self.learn(infos[trace_id])

    def learn(self, info: TraceInfo) -> None:
        """Take over what the store holds of a trace."""
        answers = {}
        metadata = {one.assessment_id: one.metadata or {} for one in info.assessments}
        for made in decision_records([without_spans(info)], self._name):
            value = canonical(self.questions[0], made.value)
            answers[self._name] = Answer(value, made, metadata[made.assessment_id])
        # That one is skipped lasts as long as the session.
        skipped_ms = self._skipped.get(info.trace_id, 0.0)
        now = Annotations(answers, skipped_ms=skipped_ms, done=bool(answers))
        self.items[info.trace_id].learn(info, now)

    def more_of(self, trace_id: str) -> Message:
        """Return the labels on an item, side by side, in words."""
        question = self.questions[0]
        voices = [
            {
                "annotator": label.annotator,
                "value": question.shown(canonical(question, label.value)),
                "rationale": label.rationale or "",
                "earlier_rubric": self.rubrics[self._name].is_earlier(label),
            }
            for label in self._labels[trace_id]
        ]
        return {"voices": voices}

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        """Return what writes an action; raises `WorkbenchError` for one that can't be written."""
        store, question, name = self.store, self.questions[0], self._name
        if action.kind == "skip":
            self._skipped[action.trace_id] = now_ms()
            return lambda: store.get(action.trace_id)
        if action.kind == "undo":
            self._skipped.pop(action.trace_id, None)
            return lambda: take_back(store, action, [], self.by)
        if set(action.answers) != {name}:
            raise ArgumentError(f"A decision answers {name!r} and nothing else.")
        given = action.answers[name]
        value = question.stored(question.answer(given.value, abstain=given.abstain))
        version = action.rubrics.get(name, question.rubric_version)

        def make(_: str, info: TraceInfo) -> Feedback | None:
            return new_decision(
                without_spans(info),
                value,
                name=name,
                by=self.by,
                rationale=action.reason(name),
                rubric_version=version,
            )

        self._skipped.pop(action.trace_id, None)
        return lambda: write_once(store, action, [name], make)

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, as the store holds them now; see
        `workbench.disagreements`."""
        return disagreements(self._judge, self.trace_ids, scale=self.questions[0].scale)
