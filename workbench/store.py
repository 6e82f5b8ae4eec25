"""The MLflow tracking store: traces are read here, assessments are written here.

What the workbench asks of MLflow's store goes through this module, so that paging, batches,
retries and idempotence are settled once.
"""

from __future__ import annotations

import queue
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import mlflow
import pandas as pd
import requests
import tenacity
from mlflow.entities import (
    Assessment,
    Trace,
    TraceData,
    TraceInfo,
)
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from tqdm.auto import tqdm

from workbench.credentials import scrubbed, shown_address
from workbench.errors import ArgumentError, StoreError
from workbench.tables import require_columns
from workbench.transaction import is_possible, one_transaction

PAGE = 500
"""Traces a search page; MLflow servers allow no more."""

_SPAN_BATCH = 100
_WRITE_BATCH = 50
_SPANS_LOCATION = "mlflow.trace.spansLocation"
_IN_TRACKING_STORE = "TRACKING_STORE"


# -- which store ----------------------------------------------------------------------------


def address() -> str:
    """Where the store is, to be shown: without user, password and query."""
    return shown_address(mlflow.get_tracking_uri())


def told(error: BaseException) -> str:
    """What an exception of the store says, without the credentials that it may repeat."""
    return scrubbed(str(error), mlflow.get_tracking_uri())


@contextmanager
def discreet() -> Iterator[None]:
    """Raise what the store says without the credentials of its address, as `StoreError`.

    MLflow names the whole address of a server that it cannot reach. Where there is nothing to
    hide, its own exception stays.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StoreError) or told(error) == str(error) or not _has_credentials():
            raise
        raise StoreError(told(error)) from None


def _has_credentials() -> bool:
    return bool(address() != mlflow.get_tracking_uri())


# -- reading --------------------------------------------------------------------------------


@discreet()
def experiment_id(experiment: str | None = None, *, create: bool = True) -> str:
    """The id of an experiment: the active one for None, else by its name or id.

    A name that does not exist is created, or with ``create=False`` a `StoreError`.
    """
    if experiment is None:
        from mlflow.tracking.fluent import _get_experiment_id

        return str(_get_experiment_id())
    name = str(experiment)
    found = mlflow.get_experiment_by_name(name)
    if found is None and name.isdigit():
        try:
            found = mlflow.get_experiment(name)
        except MlflowException:
            found = None
    if found is None and create and not name.isdigit():
        try:
            return str(mlflow.create_experiment(name))
        except MlflowException:
            # Another process may have been faster.
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                raise
    if found is None:
        raise StoreError(
            f"There is no experiment {name!r} in {address()}. Check the name "
            "and the tracking URI (mlflow.set_tracking_uri)."
        )
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"Experiment {name!r} was deleted. Restore it "
            f"(mlflow.MlflowClient().restore_experiment({found.experiment_id!r})) or use another."
        )
    return str(found.experiment_id)


@discreet()
def fetch_traces(
    traces: Any = None,
    *,
    spans: bool = True,
    experiment: str | None = None,
    missing_ok: bool = False,
) -> list[Trace]:
    """Traces with their assessments as they are in the store now.

    Parameters
    ----------
    traces
        None (all of the experiment), a list of MLflow traces or trace ids, a DataFrame with a
        ``trace_id`` column, an object with ``.trace_ids``, or an MLflow filter string. Given
        traces are read again, since their assessments may have changed; those that this store
        does not hold are taken as they are.
    spans
        Whether spans (inputs and outputs) are needed; without them reading is ten times faster.
    experiment
        Name or id for None and filter strings; the active experiment by default.
    missing_ok
        Whether unknown trace ids are left out: they were there before, and have been deleted.

    Returns
    -------
    list of Trace
        In the order given, each once; else by request time and trace id.

    Raises
    ------
    StoreError
        For unknown trace ids or an unknown experiment.
    ArgumentError
        When ``traces`` is something else.
    """
    _await_pending_traces()
    client = TracingClient()
    given: dict[str, Trace] = {}
    if traces is None or (isinstance(traces, str) and not _is_trace_id(traces)):
        infos = _search(client, experiment_id(experiment, create=False), traces)
    else:
        ids = _trace_ids(traces, given)
        by_id = trace_infos(ids, experiment=experiment)
        unknown = [i for i in ids if i not in by_id and i not in given]
        if unknown and not missing_ok:
            raise StoreError(
                f"{len(unknown)} of {len(ids)} trace ids are not in the store at "
                f"{address()}: {', '.join(unknown[:5])}"
                f"{', ...' if len(unknown) > 5 else ''}. Check the ids and the tracking URI."
            )
        held = {i: one.info for i, one in given.items()} | by_id
        infos = [held[i] for i in ids if i in held]
    if not spans:
        return [Trace(info, TraceData(spans=[])) for info in infos]
    loaded = {i: t.data for i, t in given.items() if t.data.spans}
    loaded.update(load_spans(client, [i for i in infos if i.trace_id not in loaded]))
    return [Trace(info, loaded.get(info.trace_id) or TraceData(spans=[])) for info in infos]


_last_awaited: str | None = None


def _await_pending_traces() -> None:
    """Wait for traces of this process that are still on their way to the store.

    MLflow's flush takes two seconds even when there is nothing to do, so it is called only
    when a trace has ended since the last time.
    """
    global _last_awaited
    last = mlflow.get_last_active_trace_id()
    if last != _last_awaited:
        mlflow.flush_trace_async_logging()
        _last_awaited = last


@discreet()
def trace_infos(
    ids: Sequence[str], *, experiment: str | None = None, elsewhere: bool = True
) -> dict[str, TraceInfo]:
    """The infos (tags, assessments) of those of the given traces that the store holds.

    With ``elsewhere=False`` only those in the experiment are looked for.
    """
    client = TracingClient()
    found: dict[str, TraceInfo] = {}
    where = experiment_id(experiment, create=False)
    # A search for ids is ten times faster than MLflow's batch call, but needs the experiment,
    # so it goes first and the batch call finds what lies elsewhere.
    for chunk in _chunks([i for i in ids if re.fullmatch(r"[\w:./-]+", i)], PAGE):
        quoted = ",".join(f"'{i}'" for i in chunk)
        for info in _search(client, where, f"request_id IN ({quoted})"):
            found[info.trace_id] = info
    missing = [i for i in ids if i not in found] if elsewhere else []
    for chunk in _chunks(missing, _SPAN_BATCH):
        for info in client.store.batch_get_trace_infos(chunk):
            found[info.trace_id] = info
    return found


def has_spans(info: TraceInfo) -> bool:
    """Whether the spans of a trace have arrived in the tracking store."""
    return bool(info.tags.get(_SPANS_LOCATION) == _IN_TRACKING_STORE)


def _search(client: TracingClient, where: str, filter_string: str | None) -> list[TraceInfo]:
    infos: list[TraceInfo] = []
    token = None
    while True:
        page = client.search_traces(
            locations=[where],
            filter_string=filter_string,
            max_results=PAGE,
            # New traces come last, so that pages do not shift while others write.
            order_by=["timestamp_ms ASC", "request_id ASC"],
            include_spans=False,
            page_token=token,
        )
        infos.extend(trace.info for trace in page)
        token = page.token
        if not token:
            return infos


def load_spans(client: TracingClient, infos: Sequence[TraceInfo]) -> dict[str, TraceData]:
    """The spans of the given traces, by trace id; those without spans are left out."""
    loaded: dict[str, TraceData] = {}
    for chunk in _chunks([i.trace_id for i in infos if has_spans(i)], _SPAN_BATCH):
        loaded.update((t.info.trace_id, t.data) for t in client.store.batch_get_traces(chunk))
    # Spans in an artifact or archive repository; the client knows the way to each.
    elsewhere = [i.trace_id for i in infos if not has_spans(i) and i.tags.get(_SPANS_LOCATION)]
    for chunk in _chunks(elsewhere, _SPAN_BATCH):
        loaded.update((t.info.trace_id, t.data) for t in client.batch_get_traces(chunk))
    return loaded


def _is_trace_id(text: str) -> bool:
    return re.fullmatch(r"tr-[0-9a-f]{32}|trace:/\S+", text) is not None


def _trace_ids(traces: Any, given: dict[str, Trace]) -> list[str]:
    """The distinct trace ids in the order given; trace objects are put into ``given``."""
    if isinstance(traces, pd.DataFrame):
        require_columns(traces, "traces", ["trace_id"])
        traces = traces["trace_id"].tolist()
    elif hasattr(traces, "trace_ids"):
        traces = traces.trace_ids
    elif isinstance(traces, (str, Trace)):
        traces = [traces]
    if not isinstance(traces, Iterable):
        raise ArgumentError(
            f"traces is a {type(traces).__name__}. Give None, a list of MLflow traces or of "
            "trace ids, a DataFrame with a trace_id column, or an MLflow filter string."
        )
    ids: dict[str, None] = {}
    for item in traces:
        if isinstance(item, Trace):
            given[item.info.trace_id] = item
            ids[item.info.trace_id] = None
        elif isinstance(item, str):
            ids[item] = None
        else:
            raise ArgumentError(
                f"traces holds a {type(item).__name__}: {str(item)[:80]!r}. Its items may be "
                "MLflow traces or trace ids."
            )
    return list(ids)


def _chunks(items: Sequence[str], size: int) -> Iterable[list[str]]:
    return (list(items[k : k + size]) for k in range(0, len(items), size))


# -- writing --------------------------------------------------------------------------------


def _is_passing(error: BaseException) -> bool:
    """Whether trying again may help: a locked database, a lost connection."""
    if isinstance(error, MlflowException):
        text = str(error).lower()
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or "database is locked" in text
    return isinstance(error, (ConnectionError, requests.ConnectionError))


retrying = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_passing),
    # MLflow itself waits 20 s for a lock, and retries what fails on the way to a server.
    stop=tenacity.stop_after_delay(90) | tenacity.stop_after_attempt(8),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    reraise=True,
)
"""Calls a function of MLflow's store again while the failure may pass."""


def _write(client: TracingClient, assessment: Assessment) -> bool:
    """Write one assessment; False if it was there already."""
    if assessment.trace_id is None:
        raise ArgumentError(f"Assessment {assessment.name!r} has no trace_id.")
    if assessment.assessment_id is None:
        # An id given here makes a repeated attempt fail where the first one did get through.
        assessment.assessment_id = f"a-{uuid.uuid4().hex}"
    try:
        retrying(client.log_assessment, assessment.trace_id, assessment)
    except Exception as error:
        if _is_written(client, assessment):
            return False
        raise StoreError(
            f"Assessment {assessment.name!r} of trace {assessment.trace_id} could not be "
            f"written to {address()}: {told(error)}. What was written before stays; "
            "run the call again to write the rest."
        ) from None
    return True


def _write_all(client: TracingClient, batch: Sequence[Assessment]) -> int:
    """Write several, together where the store can, and return how many were new."""
    for assessment in batch:
        # An id given here shows a second attempt what the first one has written.
        assessment.assessment_id = assessment.assessment_id or f"a-{uuid.uuid4().hex}"
    whole = all(assessment.trace_id is not None for assessment in batch)
    if whole and len(batch) > 1 and is_possible(client.store):
        try:
            with one_transaction(client.store):
                for assessment in batch:
                    client.log_assessment(assessment.trace_id, assessment)
        except Exception:
            # Nothing of it is written. One by one it is found out which cannot be.
            return sum(_write(client, assessment) for assessment in batch)
        return len(batch)
    return sum(_write(client, assessment) for assessment in batch)


def _is_written(client: TracingClient, assessment: Assessment) -> bool:
    try:
        client.get_assessment(assessment.trace_id, assessment.assessment_id)
    except Exception:
        return False
    return True


def log_assessments(
    items: Sequence[Assessment], *, progress: bool = True, desc: str = "assessments"
) -> int:
    """Write assessments, each with its ``trace_id``, and return how many were new.

    One whose ``assessment_id`` is there already is not written again. When interrupted, what
    is written stays.

    Raises
    ------
    StoreError
        When the store does not take one, after retries if the failure may pass.
    """
    client = TracingClient()
    new = 0
    shown = progress and len(items) > 100
    with tqdm(total=len(items), desc=desc, unit="", disable=not shown) as bar:
        for k in range(0, len(items), _WRITE_BATCH):
            batch = items[k : k + _WRITE_BATCH]
            new += _write_all(client, batch)
            bar.update(len(batch))
    return new


class AssessmentWriter:
    """Writes assessments in a thread of its own while the caller goes on.

    Leaving the ``with`` block, also by Ctrl-C, waits until all that was put is written. After
    a failure nothing more is written; `put` and `close` raise it as `StoreError`.

    >>> with AssessmentWriter() as writer:  # doctest: +SKIP
    ...     writer.put(feedback)
    >>> writer.written  # doctest: +SKIP
    1
    """

    def __init__(self) -> None:
        self.written = 0
        self._client = TracingClient()
        self._queue: queue.SimpleQueue[Assessment | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="assessments", daemon=True)
        self._closed = False
        self._thread.start()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch: list[Assessment] = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                # What has come while the last batch was written goes together.
                if len(batch) == _WRITE_BATCH or self._queue.empty():
                    break
                item = self._queue.get()
            ended = item is None
            if self._error is None:
                try:
                    self.written += _write_all(self._client, batch)
                except Exception as error:
                    self._error = error

    def _check(self) -> None:
        if isinstance(self._error, StoreError | ArgumentError):
            raise self._error
        if self._error is not None:
            raise StoreError(f"Assessments could not be written: {told(self._error)}") from None

    def put(self, assessment: Assessment) -> None:
        """Hand over an assessment; returns at once. Raises `StoreError` if writing has failed."""
        self._check()
        if self._closed:
            raise StoreError("This writer is closed.")
        self._queue.put(assessment)

    def close(self) -> None:
        """Wait until all is written, and raise what went wrong. May be called again."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._check()

    def __enter__(self) -> AssessmentWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StoreError:
            # The error that ended the block says more than what followed from it.
            if error is None:
                raise
