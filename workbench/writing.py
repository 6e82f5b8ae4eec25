"""What one annotator does is written to one trace, once, however often it is tried.

Each function reads the trace, writes what is missing and reads it again, so that it may be
repeated after a failure at any point, and at the same time by another session of the annotator's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow.entities import AssessmentSource, Feedback, Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.actions import Action
from workbench.answers import LabelQuestion
from workbench.errors import ScaleError, StoreError, WorkbenchError
from workbench.feedback import AFTER_VERDICT_KEY, RUBRIC_KEY, now_ms
from workbench.labels import label_records
from workbench.saving import TraceGone
from workbench.scale import ABSTAIN
from workbench.standing import (
    ACTION_KEY,
    SKIPPED,
    UNDONE,
    Standing,
    assessment_id,
    folded,
    own_feedback,
    read_standing,
    revealed_tag,
    same_person,
    valid_feedback,
    who_and_what,
)
from workbench.verdicts import choose_version, recorded_verdicts

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class OvertakenError(Exception):
    """Another writer came in between; the next try will see what it did."""


class KeptLabelError(WorkbenchError):
    """A label that was given blind is to be taken back after the verdict was seen."""

    def __init__(self) -> None:
        super().__init__(
            "This label was given before the verdict was shown, so it stays: it is what "
            "agreement is measured on. Give another answer, and it is recorded beside it."
        )


@dataclass(frozen=True)
class Revealed:
    """What an annotator may see of a trace once the own label is saved: by question."""

    info: TraceInfo
    judge: Mapping[str, Mapping[str, Any] | None]
    others: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "revealed",
            "trace_id": self.info.trace_id,
            "judge": next(iter(self.judge.values())),
            "judges": dict(self.judge),
            "others": [dict(one) for one in self.others],
        }


class Recorder:
    """Writes to the traces of one store what one annotator does."""

    def __init__(
        self, client: TracingClient, questions: Sequence[LabelQuestion], annotator: str
    ) -> None:
        self._client = client
        self._questions = questions
        self._annotator = annotator
        self._gone: set[str] = set()

    def ask(self, questions: Sequence[LabelQuestion]) -> None:
        """Record labels as given to the same questions as they read now."""
        self._questions = questions

    def is_gone(self, trace_id: str) -> bool:
        """Whether the trace was found deleted when something was to be written to it."""
        return trace_id in self._gone

    def save(
        self, action: Action, answers: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> TraceInfo:
        """Write the answers (question -> canonical value) as labels.

        The rubric version recorded is the action's, and where it has none the question's. A label
        replaces the annotator's former one under the same name by overriding it, except
        that one given after a look at the verdict stands beside the one given blind.
        """
        info = self._read(action.trace_id)
        standing = self._standing(info)
        ids = {n: assessment_id(action.id, action.trace_id, n) for n in answers}
        if action.id not in standing.undone:
            there = {a.assessment_id for a in info.assessments or []}
            for name, value in answers.items():
                if ids[name] not in there:
                    self._label(action, name, value, metadata, info, standing)
            info = self._read(action.trace_id)
            standing = self._standing(info)
        there = {a.assessment_id for a in info.assessments or []}
        if action.id in standing.undone:
            # Taken back, perhaps by another session while it was being written.
            for key in there & set(ids.values()):
                self._client.delete_assessment(action.trace_id, key)
            return self._read(action.trace_id)
        if set(ids.values()) - there:
            raise OvertakenError("a label that was written is not in the store")
        return info

    def _label(
        self,
        action: Action,
        name: str,
        value: Any,
        metadata: Mapping[str, str],
        info: TraceInfo,
        standing: Standing,
    ) -> None:
        question = next(q for q in self._questions if q.name == name)
        after = action.after_reveal or name in standing.revealed
        own = own_feedback(info, self._annotator)
        former = valid_feedback(own, name, after_verdict=after)
        # Clocks differ: what is said later must be the later one to whoever reads.
        at = max([now_ms(), *((f.create_time_ms or 0) + 1 for f in own if f.name == name)])
        told = {**metadata, ACTION_KEY: action.id}
        version = action.rubrics.get(name, question.rubric_version)
        if version is not None:
            told[RUBRIC_KEY] = str(version)
        if after:
            told[AFTER_VERDICT_KEY] = "true"
        feedback = Feedback(
            name=name,
            value=question.stored(value),
            source=AssessmentSource(source_type="HUMAN", source_id=self._annotator),
            trace_id=action.trace_id,
            rationale=action.answers[name].rationale or None,
            metadata=told,
            create_time_ms=at,
            last_update_time_ms=at,
            overrides=former[-1].assessment_id if former else None,
        )
        feedback.assessment_id = assessment_id(action.id, action.trace_id, name)
        self._client.log_assessment(action.trace_id, feedback)

    def skip(self, action: Action, metadata: Mapping[str, str]) -> TraceInfo:
        """Note that the item was put off."""
        info = self._read(action.trace_id)
        if action.id not in self._standing(info).seen:
            key = who_and_what(folded(self._annotator), self._questions)
            told = json.dumps({"key": key, "at": now_ms(), **metadata})
            self._client.set_trace_tag(action.trace_id, f"{SKIPPED}{action.id}", told)
            info = self._read(action.trace_id)
        return info

    def undo(self, action: Action) -> TraceInfo:
        """Take a save or a skip back, for good: its labels are deleted, what they had replaced
        holds again, and the same save, sent once more, has no effect.

        Raises
        ------
        KeptLabelError
            For a label that was given before the annotator saw the verdict, once they have.
        """
        trace_id, target = action.trace_id, str(action.undoes)
        info = self._read(trace_id)
        standing = self._standing(info)
        if target not in standing.undone:
            if standing.keeps(target):
                raise KeptLabelError
            self._client.set_trace_tag(trace_id, f"{UNDONE}{target}", action.id)
            info = self._read(trace_id)
            if self._standing(info).keeps(target):
                # Another session of the annotator's has shown the verdict in between.
                self._client.delete_trace_tag(trace_id, f"{UNDONE}{target}")
                raise KeptLabelError
        made = [
            f.assessment_id
            for f in own_feedback(info, self._annotator)
            if (f.metadata or {}).get(ACTION_KEY) == target
        ]
        for key in made:
            self._client.delete_assessment(trace_id, key)
        return self._read(trace_id) if made else info

    def reveal(self, trace_id: str, judge: Judge | str | None) -> Revealed:
        """What the judge and others say of a trace that the annotator has labelled.

        That the annotator has seen it is noted in the store before anything is shown.

        Raises
        ------
        StoreError
            When the annotator has no label there.
        """
        info = self._read(trace_id)
        standing = self._standing(info)
        if not standing.done or standing.going:
            raise StoreError("The verdict is shown once your own label is saved.")
        for question in self._questions:
            if question.name not in standing.revealed:
                tag = revealed_tag(self._annotator, question)
                self._client.set_trace_tag(trace_id, tag, str(now_ms()))
        info = self._read(trace_id)
        if self._standing(info).going:
            # Another session of the annotator's takes the label back at this moment.
            raise OvertakenError("the label is being taken back")
        trace = Trace(info, TraceData(spans=[]))
        verdicts, others = {}, []
        for question in self._questions:
            name = question.name
            of_judge = judge is not None and name == getattr(judge, "name", judge)
            verdicts[name] = _verdict(trace, question, judge if of_judge else name)
            others += [
                {
                    "question": name,
                    "annotator": label.annotator,
                    "value": _shown(question, label.value),
                    "rationale": label.rationale or "",
                }
                for label in label_records([trace], name)
                if not same_person(label.annotator, self._annotator)
            ]
        return Revealed(info, verdicts, others)

    def _standing(self, info: TraceInfo) -> Standing:
        return read_standing(info, self._questions, self._annotator)

    def _read(self, trace_id: str) -> TraceInfo:
        """The trace as it is now.

        Raises
        ------
        TraceGone
            When it is not in the store.
        """
        try:
            info = self._client.store.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                self._gone.add(trace_id)
                raise TraceGone(f"Trace {trace_id} was deleted.") from None
            raise
        self._gone.discard(trace_id)
        return info


def _verdict(
    trace: Trace, question: LabelQuestion, judge: Judge | str | None
) -> dict[str, Any] | None:
    recorded = {trace.info.trace_id: recorded_verdicts(trace, question.name)}
    chosen, _, _ = choose_version(judge if judge is not None else question.name, recorded)
    usable = [v for v in chosen[trace.info.trace_id] if v.usable]
    if not usable:
        return None
    return {"value": _shown(question, usable[-1].value), "rationale": usable[-1].rationale}


def _shown(question: LabelQuestion, raw: Any) -> Any:
    """The canonical value, None for an abstention; as it is where it lies off the scale."""
    try:
        value = question.read(raw)
    except ScaleError:
        return raw
    return None if value is ABSTAIN else value
