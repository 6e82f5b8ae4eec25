"""The traces that one annotator labels, and where they are read from and written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Assessment, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.errors import WorkbenchError, one_of
from workbench.labeling.assignment import Assignment
from workbench.labeling.review_queue import ReviewQueue, Snapshot
from workbench.store.assessments import now_ms
from workbench.store.labels import same_person
from workbench.store.rubrics import RubricHistory, rubric_history
from workbench.store.traces import (
    address,
    fetch_traces,
    find_experiment_id,
    load_spans,
    trace_infos,
)

Assign = Assignment | Callable[[list[str]], Iterable[str]]
"""Who labels what: an assignment, or a function from all trace ids to the annotator's."""


@dataclass(frozen=True)
class Workload:
    """One annotator's traces by id, and the batch of each.

    ``is_share``: whether other traces are not (or no longer) the annotator's. ``snapshot`` is
    that of the review queue, where the traces come from one.
    """

    infos: dict[str, TraceInfo]
    batches: Mapping[str, int] = field(default_factory=dict)
    is_share: bool = True
    snapshot: Snapshot | None = None


def in_common(traces: Any, assign: Assign | None) -> bool:
    """Return whether all annotators label in the same order.

    They do where it is settled who labels what, or how many label an item: what several of them
    label then comes to all of them early, so that it can be compared soon. Elsewhere they would
    all label the same items at the same time.
    """
    if assign is not None:
        return True
    return isinstance(traces, ReviewQueue) and (bool(traces.annotators) or traces.each > 1)


def read_workload(
    annotator: str,
    traces: Any,
    assign: Assign | None,
    experiment: str | None,
    *,
    missing_ok: bool = False,
) -> Workload:
    """Read from the store what the annotator is to label.

    ``traces`` as `workbench.pair` takes them, or a `workbench.review_queue`, whose shares hold
    where ``assign`` is None. With an `Assignment`, None takes its traces and no others of the
    experiment; deleted ones are left out, with ``missing_ok`` also of traces named one by one.

    Raises
    ------
    ArgumentError
        For an annotator whom the assignment or the queue's team does not name.
    StoreError
        When the traces cannot be read.
    """
    if isinstance(assign, Assignment) and not any(
        same_person(annotator, who) for who in assign.annotators
    ):
        # A misspelt name would have nothing to do, and look as if all was done.
        one_of("annotator", annotator, assign.annotators)
    if isinstance(traces, ReviewQueue) and assign is None:
        snapshot = traces.read()
        infos = {i.trace_id: snapshot.infos[i.trace_id] for i in snapshot.of(annotator)}
        return Workload(infos, snapshot.batches, snapshot=snapshot)
    if traces is None and isinstance(assign, Assignment):
        found = trace_infos(assign.trace_ids, experiment=experiment)
        infos = {i: found[i] for i in assign.trace_ids if i in found}
    else:
        fetched = fetch_traces(traces, spans=False, experiment=experiment, missing_ok=missing_ok)
        infos = {trace.info.trace_id: trace.info for trace in fetched}
    if assign is None:
        return Workload(infos, is_share=False)
    if not isinstance(assign, Assignment):
        return Workload({i: infos[i] for i in assign(list(infos)) if i in infos})
    own = [i for i in infos if any(same_person(annotator, who) for who in assign.annotators_of(i))]
    return Workload({i: infos[i] for i in own}, {i: assign.batch_of(i) for i in own})


class TraceDeletedError(WorkbenchError):
    """The trace was deleted, so that nothing can be written to it any more."""


class TraceStore:
    """What a session reads from and writes to: an experiment of the tracking store that is active
    when this is made."""

    def __init__(self, experiment: str | None = None) -> None:
        self._client = TracingClient()
        self.address = address()
        self.experiment = find_experiment_id(experiment, create=False)

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return now_ms()

    def read(
        self, annotator: str, traces: Any, assign: Assign | None, *, missing_ok: bool = False
    ) -> Workload:
        """Return what an annotator is to label (see `read_workload`)."""
        return read_workload(annotator, traces, assign, self.experiment, missing_ok=missing_ok)

    def rubrics(self, question: str) -> RubricHistory:
        """Return the rubrics of a question."""
        return rubric_history(question, experiment=self.experiment)

    def spans(self, infos: Sequence[TraceInfo]) -> dict[str, TraceData]:
        """Return the spans of traces, by trace id."""
        return load_spans(self._client, infos)

    def log_assessment(self, trace_id: str, assessment: Assessment) -> None:
        """Add an assessment, which marks the one that it overrides as invalid."""
        self._client.log_assessment(trace_id, assessment)

    def delete_assessment(self, trace_id: str, assessment_id: str) -> None:
        """Delete an assessment; the one that it overrode holds again."""
        self._client.delete_assessment(trace_id, assessment_id)

    def set_trace_tag(self, trace_id: str, key: str, value: str) -> None:
        """Set a tag."""
        self._client.set_trace_tag(trace_id, key, value)

    def delete_trace_tag(self, trace_id: str, key: str) -> None:
        """Delete a tag."""
        self._client.delete_trace_tag(trace_id, key)

    def get(self, trace_id: str) -> TraceInfo:
        """Return the trace as it is now, or raise `TraceDeletedError`."""
        try:
            return self._client.store.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise TraceDeletedError(f"Trace {trace_id} was deleted.") from None
            raise
