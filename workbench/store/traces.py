"""The MLflow store: its database and experiments, what it says when it fails, and its traces.

Paging, batches, retries and messages are settled here for the whole package.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import requests
import tenacity
from mlflow.entities import Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.genai.utils.trace_utils import (
    resolve_expectations_from_trace,
    resolve_inputs_from_trace,
    resolve_outputs_from_trace,
)
from mlflow.tracing.client import TracingClient
from sqlalchemy.engine import make_url

from workbench import compat
from workbench.credentials import refusal, scrubbed, without_credentials
from workbench.errors import ArgumentError, StoreError, WorkbenchError
from workbench.store.bulk import collector_paused
from workbench.store.tables import digest, has_lone_surrogate, require_columns

PAGE = 500
"""Traces a search page; MLflow servers allow no more."""

_BATCH = 100
_SPANS_LOCATION = "mlflow.trace.spansLocation"
_TRACE_ID = re.compile(r"tr-[0-9a-f]{32}|trace:/\S+")

_log = logging.getLogger(__name__)


def address() -> str:
    """Return where the store is, without user, password and query."""
    return without_credentials(mlflow.get_tracking_uri())


_SQL = re.compile(r"\[SQL:|sqlalche\.me|\((sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)\S*\.\w+\)")


def store_message(error: BaseException) -> str:
    """Return what a failure of the store means, without SQL and without credentials.

    The whole of what a database says goes to the log, as it repeats statements and their values.
    """
    text = scrubbed(str(error), mlflow.get_tracking_uri())
    if told := refusal(text):
        return told
    if not (found := _SQL.search(text)):
        return text
    _log.info("the MLflow store failed: %s", text)
    reason = re.split(r"\[SQL:|\n", text[found.start() :])[0]
    reason = _SQL.sub("", reason).strip() or type(error).__name__
    return f"the database reported an error ({reason}); logger {__name__!r} has it at INFO"


def not_written(what: str, error: BaseException) -> StoreError:
    """Return the error for what the store did not take."""
    return StoreError(
        f"{what} could not be written to {address()}: {store_message(error)}. What was written "
        "before stays; run the same call again to write the rest."
    )


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise a failure of the store as a `StoreError` without SQL and without credentials.

    MLflow's own exception is passed on where it holds neither.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        message = store_message(error)
        if message == str(error):
            raise
        raise StoreError(f"The MLflow store {address()} failed: {message}") from None


def _may_pass(error: BaseException) -> bool:
    """Whether trying again may help: a locked database, a lost connection."""
    if isinstance(error, MlflowException):
        text = str(error).lower()
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or "database is locked" in text
    return isinstance(error, (ConnectionError, requests.ConnectionError))


retrying = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_may_pass),
    # MLflow itself waits 20 s for a lock, and retries what fails on the way to a server.
    stop=tenacity.stop_after_delay(90) | tenacity.stop_after_attempt(8),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    reraise=True,
)
"""Call a function of MLflow's store again while its failure may pass."""


def prepare_database(uri: str, *, create: Callable[[Path], None] = compat.create_tables) -> None:
    """Make the SQLite database of a store where it is missing or was left half-made.

    MLflow makes its tables in place, which takes ten seconds and more, and a process that is
    stopped meanwhile leaves a file that neither MLflow nor its upgrade can use. Here it is made
    beside and then given its name. A half-made file that holds nobody's runs, traces or
    experiments is set aside as ``NAME.incomplete`` and made again. Stores that are no SQLite file,
    and databases that hold data, are left to MLflow. A file that is no database is a `StoreError`.
    """
    database = (make_url(uri).database or ":memory:") if uri.startswith("sqlite") else ":memory:"
    if database == ":memory:" or database.startswith("file:"):
        return
    path = Path(database)
    while _is_half_made(path) and time.time() - path.stat().st_mtime < 5:
        time.sleep(0.2)  # another process may still be making its tables
    if path.exists() and not _is_half_made(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        create(made)
        if _is_half_made(path):
            aside = path.with_name(f"{path.name}.incomplete")
            _log.warning("%s was left half-made and holds no data; now %s", path, aside.name)
            path.replace(aside)
        if not path.exists():  # unless another process was faster
            made.rename(path)


def _is_half_made(path: Path) -> bool:
    """Whether the file holds only some of MLflow's tables, or none, and nobody's data."""
    if not path.exists():
        return False
    try:
        # Opening it also rolls back what a killed process had not committed.
        with closing(sqlite3.connect(path, timeout=20)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in names}
            if tables and "experiments" not in tables:
                return False  # somebody else's database
            version = None
            if "alembic_version" in tables:
                version = database.execute("SELECT version_num FROM alembic_version").fetchone()
            work = {"runs", "trace_info", "registered_models", "assessments", "logged_models"}
            data = [f"SELECT 1 FROM {table}" for table in work & tables]
            # MLflow makes the experiment 0 itself.
            data += ["SELECT 1 FROM experiments WHERE experiment_id <> 0"] if tables else []
            holds_data = any(database.execute(query).fetchone() for query in data)
            return version != (compat.latest_schema(),) and not holds_data
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} cannot be read as an SQLite database: {error}. Give another folder or "
            "tracking URI, or move the file away."
        ) from None


@store_errors()
def find_experiment_id(experiment: str | None = None, *, create: bool = True) -> str:
    """Return the id of an experiment: the active one for None, else by its name or id.

    A name that does not exist is created, or with ``create=False`` a `StoreError`.
    """
    if experiment is None:
        return compat.active_experiment_id()
    name = str(experiment)
    found = mlflow.get_experiment_by_name(name)
    if found is None and name.isdigit():
        with suppress(MlflowException):  # there is no such id
            found = mlflow.get_experiment(name)
    elif found is None and create:
        with suppress(MlflowException):  # another process was faster to create it
            return str(mlflow.create_experiment(name))
        found = mlflow.get_experiment_by_name(name)
    if found is None:
        raise StoreError(
            f"There is no experiment {name!r} in {address()}. Check the name "
            "and the tracking URI (mlflow.set_tracking_uri)."
        )
    return check_not_deleted(found.experiment_id)


@store_errors()
def check_not_deleted(experiment_id: Any) -> str:
    """Return the id of an experiment; raise `StoreError` where it was deleted."""
    found = mlflow.get_experiment(str(experiment_id))
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"Experiment {found.name!r} was deleted. Restore it "
            f"(mlflow.MlflowClient().restore_experiment({found.experiment_id!r})) or use another."
        )
    return str(found.experiment_id)


@store_errors()
@collector_paused()
def fetch_traces(
    traces: Any = None,
    *,
    spans: bool = True,
    experiment: str | None = None,
    missing_ok: bool = False,
) -> list[Trace]:
    """Read traces with their assessments as they are in the store now.

    They come in the order given, each once; else by request time and trace id.

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
        Whether unknown trace ids are left out instead of a `StoreError`.
    """
    _await_pending_traces()
    given: dict[str, Trace | None] = {}
    if traces is None or (isinstance(traces, str) and not _TRACE_ID.fullmatch(traces)):
        infos = _search(find_experiment_id(experiment, create=False), traces)
    else:
        given = _by_id(traces)
        found = {i: one.info for i, one in given.items() if one is not None}
        found |= trace_infos(list(given), experiment=experiment)
        unknown = [i for i in given if i not in found]
        if unknown and not missing_ok:
            raise StoreError(
                f"{len(unknown)} of {len(given)} trace ids are not in the store at "
                f"{address()}: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}. "
                "Check the ids and the tracking URI."
            )
        infos = [found[i] for i in given if i in found]
    loaded: dict[str, TraceData] = {}
    if spans:
        loaded = {i: one.data for i, one in given.items() if one is not None and one.data.spans}
        loaded |= load_spans(TracingClient(), [i for i in infos if i.trace_id not in loaded])
    return [Trace(info, loaded.get(info.trace_id) or TraceData(spans=[])) for info in infos]


_last_awaited: str | None = None


def _await_pending_traces() -> None:
    """Wait for traces of this process that are still on their way to the store."""
    global _last_awaited
    last = mlflow.get_last_active_trace_id()
    if last != _last_awaited:  # a flush takes two seconds even where there is nothing to do
        mlflow.flush_trace_async_logging()
        _last_awaited = last


@store_errors()
def trace_infos(
    ids: Sequence[str], *, experiment: str | None = None, elsewhere: bool = True
) -> dict[str, TraceInfo]:
    """Read the infos (tags, assessments) of those of the given traces that the store holds.

    With ``elsewhere=False`` only the experiment is searched.
    """
    found: dict[str, TraceInfo] = {}
    where = find_experiment_id(experiment, create=False)
    # A search for ids is ten times faster than MLflow's batch call, but needs the experiment,
    # so it goes first and the batch call finds what lies elsewhere.
    for chunk in _chunks([i for i in ids if re.fullmatch(r"[\w:./-]+", i)], PAGE):
        quoted = ",".join(f"'{i}'" for i in chunk)
        found |= {i.trace_id: i for i in _search(where, f"request_id IN ({quoted})")}
    others = [i for i in ids if elsewhere and i not in found and not has_lone_surrogate(i)]
    for chunk in _chunks(others, _BATCH):
        infos = TracingClient().store.batch_get_trace_infos(chunk)
        found |= {info.trace_id: info for info in infos}
    return found


def _search(where: str, filter_string: str | None) -> list[TraceInfo]:
    client = TracingClient()
    traces = all_pages(
        lambda token: client.search_traces(
            locations=[where],
            filter_string=filter_string,
            max_results=PAGE,
            # New traces come last, so that pages do not shift while others write.
            order_by=["timestamp_ms ASC", "request_id ASC"],
            include_spans=False,
            page_token=token,
        )
    )
    return [trace.info for trace in traces]


def all_pages(read: Callable[[str | None], Any]) -> list[Any]:
    """Return the items of all pages; ``read`` takes the token of a page, None for the first."""
    page = read(None)
    found = list(page)
    while page.token:
        page = read(page.token)
        found += page
    return found


def has_spans(info: TraceInfo) -> bool:
    """Whether the spans of a trace have arrived in the tracking store."""
    return bool(info.tags.get(_SPANS_LOCATION) == "TRACKING_STORE")


def load_spans(client: TracingClient, infos: Sequence[TraceInfo]) -> dict[str, TraceData]:
    """Read the spans of the given traces, by trace id; those without spans are left out."""
    here = [i.trace_id for i in infos if has_spans(i)]
    # Spans in an artifact or archive repository; the client knows the way to each.
    elsewhere = [i.trace_id for i in infos if not has_spans(i) and i.tags.get(_SPANS_LOCATION)]
    batches = [
        *map(client.store.batch_get_traces, _chunks(here, _BATCH)),
        *map(client.batch_get_traces, _chunks(elsewhere, _BATCH)),
    ]
    return {trace.info.trace_id: trace.data for batch in batches for trace in batch}


def _by_id(traces: Any) -> dict[str, Trace | None]:
    """Return the distinct traces by id in the order given, None where only the id is given."""
    if isinstance(traces, pd.DataFrame):
        require_columns(traces, "traces", ["trace_id"])
        traces = traces["trace_id"].tolist()
    traces = [traces] if isinstance(traces, (str, Trace)) else getattr(traces, "trace_ids", traces)
    given: dict[str, Trace | None] = {}
    for item in traces if isinstance(traces, Iterable) else [traces]:
        if isinstance(item, Trace):
            given[item.info.trace_id] = item
        elif isinstance(item, str):
            given.setdefault(item, None)
        else:
            raise ArgumentError(
                f"traces holds a {type(item).__name__}: {str(item)[:80]!r}. Give None, a list of "
                "MLflow traces or of trace ids, a DataFrame with a trace_id column, or an MLflow "
                "filter string."
            )
    return given


def _chunks(items: Sequence[str], size: int) -> Iterable[list[str]]:
    return (list(items[k : k + size]) for k in range(0, len(items), size))


@dataclass(frozen=True)
class Example:
    """What a judge sees of one trace.

    ``inputs`` and ``outputs`` are those of the root span, ``expectations`` the values of the
    valid human expectations by name; what there is not is None. ``tags`` are without MLflow's own.
    """

    trace_id: str
    inputs: Any
    outputs: Any
    expectations: dict[str, Any] | None = None
    tags: dict[str, str] = field(default_factory=dict)


def examples(traces: Any = None) -> list[Example]:
    """Return traces as examples; ``traces`` is anything that `fetch_traces` takes."""
    return [as_example(trace) for trace in fetch_traces(traces)]


def as_example(trace: Trace) -> Example:
    """Return one MLflow trace as MLflow's own judges read it."""
    return Example(
        trace_id=trace.info.trace_id,
        inputs=resolve_inputs_from_trace(None, trace),
        outputs=resolve_outputs_from_trace(None, trace),
        expectations=resolve_expectations_from_trace(None, trace),
        tags={k: v for k, v in trace.info.tags.items() if not k.startswith("mlflow.")},
    )


def previews(traces: Iterable[Trace]) -> dict[str, tuple[str, str]]:
    """Return the beginnings of inputs and outputs by trace id, which MLflow keeps with the info."""
    infos = [trace.info for trace in traces]
    return {i.trace_id: (i.request_preview or "", i.response_preview or "") for i in infos}


def item_digest(
    example: Example, fields: Iterable[str] = ("inputs", "outputs", "expectations")
) -> str:
    """Return the SHA-256 of the example's content, the same in every process."""
    return digest({name: getattr(example, name) for name in fields})
