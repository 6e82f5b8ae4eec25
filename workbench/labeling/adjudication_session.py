"""`AdjudicationSession`: one person decides where annotators differ, without a widget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
from mlflow.entities import Feedback, TraceInfo
from mlflow.genai.judges import Judge

from workbench.errors import ArgumentError
from workbench.labeling.annotations import Action, Annotations, Item, canonical, without_spans
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.session import Message, Session
from workbench.labeling.writer import TraceStore, take_back, write_once
from workbench.pairing.adjudication import (
    differences,
    disagreements,
    new_decision,
)
from workbench.pairing.consensus import known_scale
from workbench.scale import Scale
from workbench.store.assessments import now_ms
from workbench.store.labels import Label, decision_records
from workbench.store.tables import check_text


class AdjudicationSession(Session):
    """The adjudication of one question by one person (see `workbench.AdjudicationPanel`).

    The messages between session and view, and the last three arguments, are described in
    `workbench.labeling.session`.
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
        patience: float = 2.0,
    ) -> None:
        check_text("by", by)
        super().__init__(by, store or TraceStore(experiment), on_message, patience)
        self.by = by
        self._judge, self._traces, self._scale = judge_or_name, traces, scale
        self._name = judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)
        self._skipped: dict[str, float] = {}
        self.reload()
        self.title = title or self.questions[0].title or self._name

    def reload(self) -> None:
        infos = self.store.infos(self._traces, missing_ok=bool(self.items))
        traces = [without_spans(info) for info in infos.values()]
        scale = self._scale or known_scale(self._judge, traces)
        found = {one.trace_id: one for one in differences(self._judge, traces, scale=scale)}
        question = LabelQuestion(self._name, scale)
        if not isinstance(self._judge, str):
            question = LabelQuestion.of_judge(self._judge, scale=scale)
        self.ask([question])
        with self.lock:
            # What is on the screen keeps its place; what has come to differ since comes after it.
            items = {i: item for i, item in self.items.items() if i in found}
            for trace_id in found:
                items.setdefault(trace_id, Item(infos[trace_id], how="disagreement"))
            self.items = items
            for trace_id, item in items.items():
                item.voices = [self._voice(label) for label in found[trace_id].labels]
                self.learn(infos[trace_id])

    def _voice(self, label: Label) -> Message:
        question = self.questions[0]
        return {
            "annotator": label.annotator,
            "value": question.shown(canonical(question, label.value)),
            "rationale": label.rationale or "",
            "earlier_rubric": self.rubrics[self._name].is_earlier(label),
        }

    def learn(self, info: TraceInfo) -> None:
        answers = {}
        for made in decision_records([without_spans(info)], self._name):
            answers[self._name] = replace(made, value=canonical(self.questions[0], made.value))
        metadata = {one.assessment_id: one.metadata or {} for one in info.assessments}
        # That one is skipped lasts as long as the session.
        skipped_ms = self._skipped.get(info.trace_id, 0.0)
        now = Annotations(answers, {}, metadata, skipped_ms, done=bool(answers))
        self.items[info.trace_id].learn(info, now)

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
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

        def make(info: TraceInfo) -> list[Feedback]:
            made = new_decision(
                without_spans(info),
                value,
                name=name,
                by=self.by,
                rationale=action.reason(name),
                rubric_version=version,
            )
            return [made] if made else []

        self._skipped.pop(action.trace_id, None)
        return lambda: write_once(store, action, make)

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, as the store holds them now; see
        `workbench.disagreements`."""
        return disagreements(self._judge, self.trace_ids, scale=self.questions[0].scale)
