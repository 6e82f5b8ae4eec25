"""Write what one annotator does to one trace, once, however often it is tried.

Each function reads the trace, writes what is missing and reads it again. So it may be repeated
after a failure at any point, and run at the same time as another session of the annotator's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow.entities import AssessmentSource, Feedback, Trace, TraceInfo

from workbench.errors import ScaleError, StoreError, WorkbenchError
from workbench.judging.verdicts import choose_version, recorded_verdicts
from workbench.labeling.actions import Action
from workbench.labeling.annotations import (
    ACTION_KEY,
    CLOCK_KEY,
    SECONDS_KEY,
    SKIPPED,
    UNDONE,
    Annotations,
    annotator_key,
    assessment_id,
    own_feedback,
    read_annotations,
    revealed_tag,
    valid_feedback,
    without_spans,
)
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.trace_store import TraceStore
from workbench.scale import ABSTAIN
from workbench.store.assessments import AFTER_VERDICT_KEY, RUBRIC_KEY
from workbench.store.labels import folded, label_records, same_person

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class OvertakenError(Exception):
    """Another writer came in between; the next attempt sees what it did."""


class BlindLabelError(WorkbenchError):
    """A label that was given blind is to be taken back after the verdict was seen."""

    def __init__(self) -> None:
        super().__init__(
            "This label was given before the verdict was shown, so it stays: it is what "
            "agreement is measured on. Give another answer, and it is recorded beside it."
        )


@dataclass(frozen=True)
class Revealed:
    """What an annotator may see of a trace once the own label is saved."""

    info: TraceInfo
    verdicts: Mapping[str, Mapping[str, Any] | None]
    others: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the message to the view."""
        return {
            "type": "revealed",
            "trace_id": self.info.trace_id,
            "judge": next(iter(self.verdicts.values())),
            "judges": dict(self.verdicts),
            "others": [dict(one) for one in self.others],
        }


class Recorder:
    """Writes to the traces of one store what one annotator does."""

    def __init__(
        self, store: TraceStore, questions: Sequence[LabelQuestion], annotator: str
    ) -> None:
        self._store = store
        self.questions = tuple(questions)
        self._annotator = annotator

    def save(
        self, action: Action, answers: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> TraceInfo:
        """Write the answers (question -> canonical value) as labels.

        A label replaces the annotator's former one under the same name by overriding it. One
        that is given after a look at the verdict stands beside the one given blind.
        """
        trace_id = action.trace_id
        info = self._store.get(trace_id)
        ids = {name: assessment_id(action.id, trace_id, name) for name in answers}
        if action.id not in self._annotations(info).undone:
            there = {a.assessment_id for a in info.assessments or []}
            for name, value in answers.items():
                if ids[name] not in there:
                    label = self._label(action, name, value, metadata, info)
                    self._store.log_assessment(trace_id, label)
            info = self._store.get(trace_id)
        there = {a.assessment_id for a in info.assessments or []}
        if action.id in self._annotations(info).undone:
            # Taken back, perhaps by another session while it was being written.
            for key in there & set(ids.values()):
                self._store.delete_assessment(trace_id, key)
            return self._store.get(trace_id)
        if set(ids.values()) - there:
            raise OvertakenError("a label that was written is not in the store")
        return info

    def _label(
        self, action: Action, name: str, value: Any, metadata: Mapping[str, str], info: TraceInfo
    ) -> Feedback:
        question = next(q for q in self.questions if q.name == name)
        after = action.after_reveal or name in self._annotations(info).revealed
        own = own_feedback(info, self._annotator)
        former = valid_feedback(own, name, after_verdict=after)
        # Clocks differ: what is said later must be the later one to whoever reads.
        at = max(
            [self._store.now_ms(), *((f.create_time_ms or 0) + 1 for f in own if f.name == name)]
        )
        recorded = {**metadata, ACTION_KEY: action.id}
        if action.seconds is not None:
            recorded[SECONDS_KEY] = f"{action.seconds:.1f}"
        if action.at is not None:
            recorded[CLOCK_KEY] = str(int(action.at))
        version = action.rubrics.get(name, question.rubric_version)
        if version is not None:
            recorded[RUBRIC_KEY] = str(version)
        if after:
            recorded[AFTER_VERDICT_KEY] = "true"
        label = Feedback(
            name=name,
            value=question.stored(value),
            source=AssessmentSource(source_type="HUMAN", source_id=self._annotator),
            trace_id=action.trace_id,
            rationale=action.reason(name) or None,
            metadata=recorded,
            create_time_ms=at,
            last_update_time_ms=at,
            overrides=former[-1].assessment_id if former else None,
        )
        label.assessment_id = assessment_id(action.id, action.trace_id, name)
        return label

    def skip(self, action: Action, metadata: Mapping[str, str]) -> TraceInfo:
        """Record that the item was put off."""
        info = self._store.get(action.trace_id)
        tag = f"{SKIPPED}{action.id}"
        if tag not in (info.tags or {}):
            key = annotator_key(folded(self._annotator), self.questions)
            text = json.dumps({"key": key, "at": self._store.now_ms(), **metadata})
            self._store.set_trace_tag(action.trace_id, tag, text)
            info = self._store.get(action.trace_id)
        return info

    def undo(self, action: Action) -> TraceInfo:
        """Take a save or a skip back, for good.

        Its labels are deleted, what they had replaced holds again, and the same save, sent once
        more, has no effect.

        Raises
        ------
        BlindLabelError
            For a label that was given before the annotator saw the verdict, once they have.
        """
        trace_id, target = action.trace_id, str(action.undoes)
        info = self._store.get(trace_id)
        annotations = self._annotations(info)
        if target not in annotations.undone:
            if annotations.keeps(target):
                raise BlindLabelError
            self._store.set_trace_tag(trace_id, f"{UNDONE}{target}", action.id)
            info = self._store.get(trace_id)
            if self._annotations(info).keeps(target):
                # Another session of the annotator's has shown the verdict in between.
                self._store.delete_trace_tag(trace_id, f"{UNDONE}{target}")
                raise BlindLabelError
        made = [
            f.assessment_id
            for f in own_feedback(info, self._annotator)
            if (f.metadata or {}).get(ACTION_KEY) == target and f.assessment_id
        ]
        for key in made:
            self._store.delete_assessment(trace_id, key)
        return self._store.get(trace_id) if made else info

    def reveal(self, trace_id: str, judge: Judge | str | None) -> Revealed:
        """Return what the judge and others say of a trace that the annotator has labelled.

        That the annotator has seen it is recorded in the store before anything is shown.

        Raises
        ------
        StoreError
            When the annotator has no label there.
        """
        info = self._store.get(trace_id)
        annotations = self._annotations(info)
        if not annotations.done or annotations.is_being_undone:
            raise StoreError("The verdict is shown once your own label is saved.")
        for question in self.questions:
            if question.name not in annotations.revealed:
                tag = revealed_tag(self._annotator, question)
                self._store.set_trace_tag(trace_id, tag, str(self._store.now_ms()))
        info = self._store.get(trace_id)
        if self._annotations(info).is_being_undone:
            # Another session of the annotator's takes the label back at this moment.
            raise OvertakenError("the label is being taken back")
        trace = without_spans(info)
        verdicts, others = {}, []
        for question in self.questions:
            is_judge = judge is not None and question.name == getattr(judge, "name", judge)
            verdicts[question.name] = _verdict(trace, question, judge if is_judge else None)
            others += [
                {
                    "question": question.name,
                    "annotator": label.annotator,
                    "value": _canonical_or_raw(question, label.value),
                    "rationale": label.rationale or "",
                }
                for label in label_records([trace], question.name)
                if not same_person(label.annotator, self._annotator)
            ]
        return Revealed(info, verdicts, others)

    def _annotations(self, info: TraceInfo) -> Annotations:
        return read_annotations(info, self.questions, self._annotator)


def _verdict(
    trace: Trace, question: LabelQuestion, judge: Judge | str | None
) -> dict[str, Any] | None:
    recorded = {trace.info.trace_id: recorded_verdicts(trace, question.name)}
    chosen, _, _ = choose_version(judge or question.name, recorded)
    usable = [v for v in chosen[trace.info.trace_id] if v.usable]
    if not usable:
        return None
    value = _canonical_or_raw(question, usable[-1].value)
    return {"value": value, "rationale": usable[-1].rationale}


def _canonical_or_raw(question: LabelQuestion, raw: Any) -> Any:
    """The canonical value, None for an abstention; as it is where it lies off the scale."""
    try:
        value = question.read(raw)
    except ScaleError:
        return raw
    return None if value is ABSTAIN else value
