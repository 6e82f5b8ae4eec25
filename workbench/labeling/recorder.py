"""Write what one annotator does to one trace, once, however often it is tried.

Each function reads the trace, writes what is missing and reads it again. So it may be repeated
after a failure at any point, and run at the same time as another session of the annotator's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow.entities import AssessmentSource, Feedback, Trace, TraceInfo

from workbench.errors import ScaleError, StoreError, WorkbenchError
from workbench.judging.verdicts import choose_version, recorded_verdicts
from workbench.labeling.annotations import (
    ACTION_KEY,
    CLOCK_KEY,
    SECONDS_KEY,
    SKIPPED,
    UNDONE,
    Action,
    Annotations,
    annotator_key,
    assessment_id,
    own_feedback,
    read_annotations,
    revealed_tag,
    undone_actions,
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
    """The message of what an annotator may see once the own label is saved, and the trace."""

    info: TraceInfo
    message: dict[str, Any]


def write_once(
    store: TraceStore,
    action: Action,
    questions: Iterable[str],
    make: Callable[[str, TraceInfo], Feedback | None],
) -> TraceInfo:
    """Write what is missing of an action's assessments, or delete them if it was taken back.

    ``make`` returns the one for a question, given the trace, or None for nothing to write.
    """
    trace_id = action.trace_id
    info = store.get(trace_id)
    keys = {name: assessment_id(action.id, trace_id, name) for name in questions}
    written = set()
    if action.id not in undone_actions(info):
        there = _ids(info)
        for name, key in keys.items():
            made = None if key in there else make(name, info)
            if made is not None:
                made.assessment_id = key
                made.metadata = {**(made.metadata or {}), ACTION_KEY: action.id}
                store.log_assessment(trace_id, made)
                written.add(key)
        info = store.get(trace_id)
    if action.id in undone_actions(info):
        # Taken back, perhaps by another session while it was being written.
        for undone in set(keys.values()) & _ids(info):
            store.delete_assessment(trace_id, undone)
        return store.get(trace_id)
    if written - _ids(info):
        raise OvertakenError("what was written is not in the store")
    return info


def take_back(
    store: TraceStore,
    undo: Action,
    own: Callable[[TraceInfo], Iterable[Feedback]],
    check: Callable[[TraceInfo], None] = lambda info: None,
) -> TraceInfo:
    """Take an action back, for good: delete what it made of ``own``, and mark it as undone.

    What its labels had replaced holds again, and the same action, sent once more, has no effect.
    ``check`` raises `BlindLabelError` where it must stay.
    """
    trace_id, target = undo.trace_id, str(undo.undoes)
    tag = f"{UNDONE}{target}"
    info = store.get(trace_id)
    if target not in undone_actions(info):
        check(info)
        store.set_trace_tag(trace_id, tag, undo.id)
        info = store.get(trace_id)
        try:
            check(info)
        except BlindLabelError:
            # Another session of the annotator's has shown the verdict in between.
            store.delete_trace_tag(trace_id, tag)
            raise
    for one in own(info):
        if (one.metadata or {}).get(ACTION_KEY) == target and one.assessment_id:
            store.delete_assessment(trace_id, one.assessment_id)
    return store.get(trace_id)


def _ids(info: TraceInfo) -> set[str]:
    return {one.assessment_id for one in info.assessments or [] if one.assessment_id}


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

        def make(name: str, info: TraceInfo) -> Feedback:
            return self._label(action, name, answers[name], metadata, info)

        return write_once(self._store, action, answers, make)

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
        version = action.rubrics.get(name, question.rubric_version)
        recorded = {
            SECONDS_KEY: None if action.seconds is None else f"{action.seconds:.1f}",
            CLOCK_KEY: None if action.at is None else str(int(action.at)),
            RUBRIC_KEY: None if version is None else str(version),
            AFTER_VERDICT_KEY: "true" if after else None,
        }
        return Feedback(
            name=name,
            value=question.stored(value),
            source=AssessmentSource(source_type="HUMAN", source_id=self._annotator),
            trace_id=action.trace_id,
            rationale=action.reason(name) or None,
            metadata={**metadata, **{k: v for k, v in recorded.items() if v is not None}},
            create_time_ms=at,
            last_update_time_ms=at,
            overrides=former[-1].assessment_id if former else None,
        )

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
        """Take a save or a skip back; raises `BlindLabelError` for a label that was given before
        the annotator saw the verdict, once they have."""

        def check(info: TraceInfo) -> None:
            if self._annotations(info).keeps(str(action.undoes)):
                raise BlindLabelError

        return take_back(
            self._store, action, lambda info: own_feedback(info, self._annotator), check
        )

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
        message = {
            "type": "revealed",
            "trace_id": trace_id,
            "judge": next(iter(verdicts.values())),
            "judges": verdicts,
            "others": others,
        }
        return Revealed(info, message)

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
