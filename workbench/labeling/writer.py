"""What one annotator does is written to one trace, once, however often it is tried.

Each function reads the trace, writes what is missing and reads it again, so that it may be
repeated after a failure at any point, and at the same time by another session of the annotator's.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mlflow.entities import AssessmentSource, Feedback, Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.errors import ScaleError, StoreError, WorkbenchError
from workbench.judging.verdicts import choose_version, recorded_verdicts
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.queue import (
    ACTION_KEY,
    SKIPPED,
    UNDONE,
    Action,
    Standing,
    assessment_id,
    own_feedback,
    read_standing,
    revealed_tag,
    valid_feedback,
    who_and_what,
)
from workbench.scale import ABSTAIN
from workbench.store.assessments import AFTER_VERDICT_KEY, RUBRIC_KEY, now_ms
from workbench.store.labels import folded, label_records, same_person
from workbench.store.traces import store_message as told

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


_FIRST_WAIT = 0.1

_LONGEST_WAIT = 5.0

_PATIENCE = 3.0

_IDLE = 2.0

_TRIES_OF_A_REFUSAL = 8


# What MLflow answers to a request that it may refuse the next time, too; but also to a write
# that another one has overtaken, and where rights are being changed.
_DOUBTFUL = {"BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS",
             "PERMISSION_DENIED", "FEATURE_DISABLED"}  # fmt: skip


class TraceGone(WorkbenchError):
    """The trace was deleted, so that nothing can be written to it any more."""


@dataclass
class Job:
    """One thing to write: ``run`` may be called again until it returns."""

    key: str
    trace_id: str
    run: Callable[[], Any]
    tries: int = field(default=0, compare=False)


class Listener(Protocol):
    """Who is told what became of jobs, from the thread that writes."""

    def written(self, job: Job, result: Any) -> None:
        """``job`` has returned ``result``."""

    def delayed(self, error: str) -> None:
        """Nothing is written just now, for the reason given; it is tried again."""

    def refused(self, job: Job, error: str) -> None:
        """``job`` will never be written."""


class Saver:
    """Runs jobs in a thread of its own: those of one trace in the order in which they were put.

    A job that fails is run again after a while, until it returns, the trace is gone or the
    store refuses it for good; the jobs of other traces go on meanwhile. The thread ends when
    there is nothing left to do, and with the process.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._change = threading.Condition()
        self._waiting: dict[str, deque[Job]] = {}
        self._not_before: dict[str, float] = {}
        self._pause_until = 0.0
        self._failures = 0
        self._running: Job | None = None
        self._thread: threading.Thread | None = None
        self._dice = random.Random()  # spreads retries, decides nothing

    def put(self, job: Job) -> None:
        """Hand over a job; returns at once."""
        with self._change:
            self._waiting.setdefault(job.trace_id, deque()).append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="labels", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def __len__(self) -> int:
        """How many jobs are not done."""
        with self._change:
            return sum(map(len, self._waiting.values()))

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is done, or so long at most; whether all is done."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._change:
            # Whoever waits wants it tried now, not after the pause.
            self._pause_until = 0.0
            self._not_before.clear()
            self._change.notify_all()
            while self._waiting:
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self._change.wait(min(left, 1.0))
        return True

    # -- the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            watch = threading.Timer(
                _PATIENCE, self._listener.delayed, ["the store has not answered yet"]
            )
            watch.daemon = True
            watch.start()
            try:
                result = job.run()
            except BaseException as error:
                watch.cancel()
                self._failed(job, error)
            else:
                watch.cancel()
                # Told before it leaves, so that what was flushed was told, too.
                self._listener.written(job, result)
                with self._change:
                    self._failures = 0
                    self._leave(job)

    def _next(self) -> Job | None:
        """The next job whose time has come; None when there was nothing to do for a while."""
        with self._change:
            idle_since = time.monotonic()
            while True:
                now = time.monotonic()
                due = {i: max(self._pause_until, self._not_before.get(i, 0)) for i in self._waiting}
                for trace_id, when in due.items():
                    if when <= now:
                        return self._waiting[trace_id][0]
                if not due and now - idle_since >= _IDLE:
                    self._thread = None
                    return None
                idle_since = now if due else idle_since
                self._change.wait(max(0.001, min(due.values()) - now) if due else _IDLE)

    def _failed(self, job: Job, error: BaseException) -> None:
        job.tries += 1
        if is_refusal(error, job.tries):
            self._listener.refused(job, told(error))
            with self._change:
                self._leave(job)
            return
        self._listener.delayed(told(error))
        with self._change:
            self._failures += 1
            now = time.monotonic()
            self._pause_until = now + self._wait(self._failures)
            self._not_before[job.trace_id] = now + self._wait(job.tries)
            # Another trace is tried first the next time: it may be this one that is ill.
            self._waiting[job.trace_id] = self._waiting.pop(job.trace_id)

    def _leave(self, job: Job) -> None:
        jobs = self._waiting[job.trace_id]
        jobs.popleft()
        self._not_before.pop(job.trace_id, None)
        if not jobs:
            del self._waiting[job.trace_id]
        self._change.notify_all()

    def _wait(self, failures: int) -> float:
        longest: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(failures, 16))
        return longest * self._dice.uniform(0.5, 1.0)


def is_refusal(error: BaseException, tries: int = 1) -> bool:
    """Whether trying again is of no use.

    What the workbench itself raises is final. Of what the store says some is final at once and
    some only when it says it again and again, since a write that was overtaken by another one
    is answered alike. Anything else may pass: a lost connection, a lock, a server's own error.
    """
    if isinstance(error, WorkbenchError):
        return True
    if isinstance(error, MlflowException):
        if error.error_code == "INVALID_PARAMETER_VALUE":
            return True
        return error.error_code in _DOUBTFUL and tries >= _TRIES_OF_A_REFUSAL
    return isinstance(error, (TypeError, ValueError)) and tries >= _TRIES_OF_A_REFUSAL
