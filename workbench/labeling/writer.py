"""The thread that writes what an annotator does, once, however often it is tried.

Each function that writes reads the trace, writes what is missing and reads it again. So it may be
repeated after a failure at any point, and run at the same time as another session of the
annotator's.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow.entities import Assessment, AssessmentSource, Feedback, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.errors import StoreError, WorkbenchError
from workbench.labeling.annotations import (
    ACTION_KEY,
    CLOCK_KEY,
    SECONDS_KEY,
    SKIPPED,
    UNDONE,
    Action,
    Draw,
    annotator_key,
    read_annotations,
    revealed_tag,
    undone_actions,
)
from workbench.labeling.questions import LabelQuestion
from workbench.store.assessments import assessment_id, make_feedback, now_ms
from workbench.store.database import address, find_experiment_id
from workbench.store.labels import AFTER_VERDICT_KEY, RUBRIC_KEY, has_mark
from workbench.store.schemas import RubricHistory, rubric_history
from workbench.store.traces import fetch_traces, load_spans

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One thing to write: ``done`` hears of what ``write`` returned, ``failed`` of each error and
    whether it is final. Jobs of one ``lane`` keep their order. ``tries`` limits those of one that
    is asked for again anyway: they would pile up."""

    lane: str
    write: Callable[[], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception, bool], None]
    attempts: int = 0
    tries: float = math.inf


class Writer:
    """Does jobs in one thread, which ends when there is nothing to do, and with the process.

    A job that fails is tried again until it returns, is refused (`is_refusal`) or has had its
    ``tries``; jobs of other lanes go first meanwhile. ``busy`` is held while a job is done; whoever
    reads the store holds it too, so that nothing that was read is older than what was written.
    """

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._failures = 0

    def put(self, job: Job) -> None:
        """Hand over a job; returns at once."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()  # what fails over and over holds nothing else up
            if len(self._jobs) == 1:
                threading.Thread(target=self._work, name="labels", daemon=True).start()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all jobs are done, ``seconds`` at most; return whether they are."""
        with self._changed:
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._jobs, seconds)

    def _work(self) -> None:
        is_done = False
        while not is_done:
            job = self._jobs[0]
            is_final = self._try(job)
            # Only now: what was flushed has been told, too.
            with self._changed:
                if is_final:
                    self._jobs.popleft()
                    self._changed.notify_all()
                else:
                    self._jobs = deque(sorted(self._jobs, key=lambda one: one.lane == job.lane))
                    self._changed.wait(min(0.1 * 2 ** min(self._failures, 6), 5.0))
                    self._failures += 1
                is_done = not self._jobs

    def _try(self, job: Job) -> bool:
        """Do a job, tell how it ended, and return whether that is final."""
        job.attempts += 1
        with self.busy:
            try:
                result = job.write()
            except Exception as error:
                is_final = job.attempts >= job.tries or is_refusal(error, job.attempts)
                outcome = partial(job.failed, error, is_final)
            else:
                is_final, self._failures = True, 0
                outcome = partial(job.done, result)
            try:
                outcome()
            except Exception:
                _log.exception("The outcome of a write could not be handled")
        return is_final


def is_refusal(error: BaseException, attempts: int = 1) -> bool:
    """Return whether trying again is of no use.

    A lost connection, a lock or a server's own error may always pass; what the store does not take
    is final at the eighth attempt, since another write may have come between.
    """
    if isinstance(error, MlflowException):
        is_final = error.error_code == "INVALID_PARAMETER_VALUE"
        is_refused = error.get_http_status_code() in (400, 403, 404, 409)
    else:
        is_final = isinstance(error, WorkbenchError)
        is_refused = isinstance(error, (TypeError, ValueError))
    return is_final or (is_refused and attempts >= 8)


class TraceDeletedError(WorkbenchError):
    """The trace was deleted, so that nothing can be written to it any more."""


class TraceStore:
    """The experiment that a session reads from and writes to, whatever is active later."""

    def __init__(self, experiment: str | None = None) -> None:
        self.client = TracingClient()
        self.address = address()
        self.experiment = find_experiment_id(experiment, create=False)

    @property
    def is_active(self) -> bool:
        return address() == self.address

    def infos(self, traces: Any, *, missing_ok: bool = False) -> dict[str, TraceInfo]:
        found = fetch_traces(traces, spans=False, experiment=self.experiment, missing_ok=missing_ok)
        return {trace.info.trace_id: trace.info for trace in found}

    def rubrics(self, question: str) -> RubricHistory:
        return rubric_history(question, experiment=self.experiment)

    def spans(self, infos: Sequence[TraceInfo]) -> dict[str, TraceData]:
        return load_spans(self.client, infos)

    def get(self, trace_id: str) -> TraceInfo:
        """Return the trace as it is now, or raise `TraceDeletedError`."""
        try:
            return self.client.store.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise TraceDeletedError(f"Trace {trace_id} was deleted.") from None
            raise

    def record_look(
        self, info: TraceInfo, questions: Iterable[LabelQuestion], annotator: str
    ) -> None:
        """Record that the annotator has seen the verdicts: a label given later is not blind."""
        for tag in [revealed_tag(annotator, question) for question in questions]:
            if tag not in info.tags:
                self.client.set_trace_tag(info.trace_id, tag, str(now_ms()))


def write_once(
    store: TraceStore, action: Action, make: Callable[[TraceInfo], Iterable[Feedback]]
) -> TraceInfo:
    """Write what is missing of what ``make`` returns; delete it if it was taken back."""
    info = store.get(action.trace_id)
    if action.id not in undone_actions(info):
        there = {one.name for one in _made_by(action.id, info)}
        for made in make(info):
            if made.name not in there:
                # The same in every attempt, so that two at the same time write one.
                made.assessment_id = assessment_id(action.id, action.trace_id, made.name)
                made.metadata = {**(made.metadata or {}), ACTION_KEY: action.id}
                store.client.log_assessment(action.trace_id, made)
        info = store.get(action.trace_id)
    if action.id in undone_actions(info):
        # Taken back, perhaps by another session while it was being written.
        info = _without(store, action.id, info)
    return info


def take_back(
    store: TraceStore, undo: Action, questions: Sequence[LabelQuestion], annotator: str
) -> TraceInfo:
    """Take an action back, for good: delete what it made, and mark it as undone; what its labels
    had replaced holds again."""
    target, info = str(undo.undoes), store.get(undo.trace_id)
    if target not in undone_actions(info):
        seen = read_annotations(info, questions, annotator).revealed
        made = [one for one in _made_by(target, info) if one.name in seen]
        if not all(has_mark(one, AFTER_VERDICT_KEY) for one in made):
            raise StoreError(
                "This label was given before the verdict was shown, so it stays: it is what "
                "agreement is measured on. Give another answer, and it is recorded beside it."
            )
        store.client.set_trace_tag(undo.trace_id, f"{UNDONE}{target}", undo.id)
        info = store.get(undo.trace_id)
    return _without(store, target, info)


def _made_by(action: str, info: TraceInfo) -> list[Assessment]:
    return [a for a in info.assessments or [] if (a.metadata or {}).get(ACTION_KEY) == action]


def _without(store: TraceStore, action: str, info: TraceInfo) -> TraceInfo:
    for made in _made_by(action, info):
        store.client.delete_assessment(info.trace_id, made.assessment_id)
    return store.get(info.trace_id)


def save(
    store: TraceStore,
    action: Action,
    answers: Sequence[tuple[LabelQuestion, Any]],
    annotator: str,
    draw: Draw,
) -> TraceInfo:
    """Write answers, canonical values, as labels, which override the annotator's former ones; one
    given after a look at the verdict stands beside the one given blind, if it differs."""

    def made(info: TraceInfo) -> Iterable[Feedback]:
        return filter(None, (_label(info, action, *one, annotator, draw) for one in answers))

    return write_once(store, action, made)


def _label(
    info: TraceInfo, action: Action, question: LabelQuestion, value: Any, annotator: str, draw: Draw
) -> Feedback | None:
    name = question.name
    stored = read_annotations(info, [question], annotator)
    after = action.after_reveal or name in stored.revealed
    version = action.rubrics.get(name, question.rubric_version)
    if after and (last := stored.latest.get(name)):
        said = (last.value, (last.rationale or "").strip(), last.rubric_version or 0)
        if said == (value, action.reason(name), version or 0):
            return None  # what is said again is no change of mind
    former = stored.answers.get(name)
    if former and former.after_verdict != after:
        former = stored.changed.get(name) if after else None
    # Clocks differ: what is said later must be the later one to whoever reads.
    at = max(now_ms(), stored.labelled_ms + 1)
    recorded = {SECONDS_KEY: action.seconds, CLOCK_KEY: action.at, RUBRIC_KEY: version}
    numbers = {key: f"{n:.15g}" for key, n in recorded.items() if n is not None}
    metadata = {**draw.to_metadata(), **numbers, **({AFTER_VERDICT_KEY: "true"} if after else {})}
    source, why = AssessmentSource("HUMAN", annotator), action.reason(name)
    given = question.stored(value)
    made = make_feedback(action.trace_id, name, given, source, why, metadata=metadata, at_ms=at)
    made.overrides = former.assessment_id if former else None
    return made


def skip(
    store: TraceStore,
    action: Action,
    questions: Sequence[LabelQuestion],
    annotator: str,
    draw: Draw,
) -> TraceInfo:
    """Record that the item was put off."""
    info = store.get(action.trace_id)
    tag = f"{SKIPPED}{action.id}"
    if tag not in (info.tags or {}):
        key = annotator_key(annotator, questions)
        text = json.dumps({"key": key, "at": now_ms(), **draw.to_metadata()})
        store.client.set_trace_tag(action.trace_id, tag, text)
        info = store.get(action.trace_id)
    return info
