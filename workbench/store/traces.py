"""The traces of an MLflow store: read in pages and batches, and as what a judge sees of them."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Trace, TraceData, TraceInfo
from mlflow.genai.utils.trace_utils import (
    resolve_expectations_from_trace,
    resolve_inputs_from_trace,
    resolve_outputs_from_trace,
)
from mlflow.tracing.client import TracingClient

from workbench.errors import ArgumentError, StoreError
from workbench.formatting import storable
from workbench.store.database import address, all_pages, find_experiment_id, store_errors
from workbench.store.tables import digest, require_columns

PAGE = 500  # traces a search page; MLflow servers allow no more
_BATCH = 100
_TRACE_ID = re.compile(r"tr-[0-9a-f]{32}|trace:/\S+")


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector, which doubles the time to read thousands of traces."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    """Read the infos of those of the traces that the experiment, or the store elsewhere, holds."""
    found: dict[str, TraceInfo] = {}
    where = find_experiment_id(experiment, create=False)
    # A search for ids is ten times faster than MLflow's batch call, but needs the experiment,
    # so it goes first and the batch call finds what lies elsewhere.
    for chunk in _chunks([i for i in ids if re.fullmatch(r"[\w:./-]+", i)], PAGE):
        quoted = ",".join(f"'{i}'" for i in chunk)
        found |= {i.trace_id: i for i in _search(where, f"request_id IN ({quoted})")}
    others = [i for i in ids if elsewhere and i not in found and i == storable(i)]
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


def load_spans(client: TracingClient, infos: Sequence[TraceInfo]) -> dict[str, TraceData]:
    """Read the spans of the given traces, by trace id; those without spans are left out."""
    places = {i.trace_id: i.tags.get("mlflow.trace.spansLocation") for i in infos}
    here = [i for i, place in places.items() if place == "TRACKING_STORE"]
    # Spans in an artifact or archive repository; the client knows the way to each.
    elsewhere = [i for i, place in places.items() if place not in (None, "TRACKING_STORE")]
    batches = [
        *map(client.store.batch_get_traces, _chunks(here, _BATCH)),
        *map(client.batch_get_traces, _chunks(elsewhere, _BATCH)),
    ]
    return {trace.info.trace_id: trace.data for batch in batches for trace in batch}


def _by_id(traces: Any) -> dict[str, Trace | None]:
    """Return the distinct traces by id in the order given, None where only the id is given."""
    if isinstance(traces, pd.DataFrame):
        require_columns(traces, "traces", ["trace_id"])
        traces = traces["trace_id"].dropna().tolist()  # of `Imported.by_row`, say
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
    """What a judge sees of one trace; None stands for what there is not."""

    trace_id: str
    inputs: Any  # of the root span, as the outputs
    outputs: Any
    expectations: dict[str, Any] | None = None  # the valid human ones, by name
    tags: dict[str, str] = field(default_factory=dict)  # without MLflow's own
    requested: int | None = field(default=None, compare=False)  # milliseconds since 1970


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
        requested=trace.info.request_time,
    )


def previews(traces: Iterable[Trace]) -> dict[str, tuple[str, str]]:
    """Return the beginnings of inputs and outputs by trace id, which MLflow keeps with the info."""
    infos = [trace.info for trace in traces]
    return {i.trace_id: (i.request_preview or "", i.response_preview or "") for i in infos}


def contents(previews: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return what tells equal inputs, and outputs, by trace id; of traces alike at first sight."""
    # MLflow cuts long ones, and of a conversation it keeps the last message alone, which is no
    # JSON object as the inputs of a function are. Such traces are read if their previews are equal.
    found = {
        i: (inputs, outputs)
        for i, (inputs, outputs) in previews.items()
        if inputs.startswith("{") and inputs.endswith("}") and not outputs.endswith("...")
    }
    times = Counter(preview for i, preview in previews.items() if i not in found)
    alike = [i for i, cut in previews.items() if any(cut) and times[cut] > 1 and i not in found]
    with suppress(StoreError):  # of traces that are in no store it is not known
        for one in examples(alike) if alike else ():
            found[one.trace_id] = digest(one.inputs), digest(one.outputs)
    return found


def item_digest(
    example: Example, fields: Iterable[str] = ("inputs", "outputs", "expectations")
) -> str:
    """Return the SHA-256 of the example's content, the same in every process."""
    return digest({name: getattr(example, name) for name in fields})
