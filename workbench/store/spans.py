"""Rows of a table as MLflow traces: one span each, written in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Assessment, Span, TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags
from tqdm.auto import tqdm

from workbench.compat import has_transactions
from workbench.errors import StoreError
from workbench.store.assessments import log_assessments
from workbench.store.tables import Row, has_lone_surrogate
from workbench.store.traces import address, retrying, store_message

TRACE_NAME = "imported"

# A batch is one transaction and, on a server, one request.
BATCH_TRACES = 200
BATCH_CHARACTERS = 4_000_000

_TOGETHER = 3


@dataclass
class Pending:
    """A row on its way into the store."""

    row: Row
    trace_id: str
    assessments: list[Assessment]
    start_ms: int
    has_info: bool = False


def write_traces(
    new: Sequence[Pending],
    where: str,
    *,
    progress: bool,
    client: TracingClient | None = None,
    batch_traces: int = BATCH_TRACES,
    batch_characters: int = BATCH_CHARACTERS,
) -> None:
    """Write traces with their assessments, batch by batch, in the order given."""
    client = client or TracingClient()
    done = 0
    with tqdm(total=len(new), desc="import", disable=not (progress and len(new) > 200)) as bar:
        try:
            for batch in _batches(new, batch_traces, batch_characters):
                _write_batch(client, batch, where)
                done += len(batch)
                bar.update(len(batch))
        except KeyboardInterrupt:
            bar.write(
                f"Interrupted after {done} of {len(new)} new rows, which are stored. Run the "
                "same import again to add the rest."
            )
            raise


def _batches(
    new: Sequence[Pending], most_traces: int, most_characters: int
) -> Iterator[list[Pending]]:
    batch: list[Pending] = []
    size = 0
    for pending in new:
        batch.append(pending)
        size += len(to_json(pending.row.inputs)) + len(to_json(pending.row.outputs))
        if len(batch) >= most_traces or size >= most_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_batch(client: TracingClient, batch: Sequence[Pending], where: str) -> None:
    """Write one batch: all its spans in one transaction, then the assessments that are left."""
    try:
        for pending in batch:
            if not pending.has_info and _needs_info(pending, client):
                retrying(client.start_trace, _info(pending, where))
                pending.has_info = True
        retrying(client.log_spans, where, [_span(pending) for pending in batch])
    except Exception as error:
        raise StoreError(
            f"The traces could not be written to {address()}: {store_message(error)}. What was "
            "written before stays; run the same import again to add the rest."
        ) from None
    left = [a for pending in batch if not pending.has_info for a in pending.assessments]
    log_assessments(left, progress=False)


def _needs_info(pending: Pending, client: TracingClient) -> bool:
    """Whether a trace is made by a call of its own rather than by its spans alone."""
    row = pending.row
    # That call takes the assessments along, which is faster from three of them on where each
    # would be a request of its own. A database takes them faster in one transaction.
    along = len(pending.assessments) >= _TOGETHER and not has_transactions(client.store)
    return along or _is_broken(row.inputs, row.outputs)


def _info(pending: Pending, where: str) -> TraceInfo:
    row = pending.row
    broken = _is_broken(row.inputs, row.outputs)
    return TraceInfo(
        trace_id=pending.trace_id,
        trace_location=TraceLocation.from_experiment_id(where),
        request_time=pending.start_ms,
        execution_duration=0,
        state=TraceState.OK,
        # MLflow takes previews from the span, but could not store one with a broken character.
        request_preview=to_json(row.inputs)[:1000] if broken else None,
        response_preview=to_json(row.outputs)[:1000] if broken else None,
        tags={"mlflow.traceName": TRACE_NAME, **row.tags},
        assessments=pending.assessments,
    )


def _span(pending: Pending) -> Span:
    row = pending.row
    attributes = {
        "mlflow.traceRequestId": json.dumps(pending.trace_id),
        "mlflow.spanType": json.dumps("UNKNOWN"),
        "mlflow.spanInputs": attribute(row.inputs),
        "mlflow.spanOutputs": attribute(row.outputs),
    }
    if not pending.has_info:
        tags = {"mlflow.traceName": TRACE_NAME, **row.tags}
        attributes.update({f"mlflow.traceTag.{k}": attribute(v) for k, v in tags.items()})
    for side in (row.inputs, row.outputs):
        model = side.get("model") if isinstance(side, dict) else None
        if isinstance(model, str) and has_lone_surrogate(model):
            # The same for the model, which MLflow looks for under this key.
            attributes["mlflow.llm.model"] = json.dumps(ascii(model))
    number = int(pending.trace_id.removeprefix("tr-"), 16)
    start = pending.start_ms * 1_000_000
    return Span(
        ReadableSpan(
            name=TRACE_NAME,
            context=SpanContext(number, number >> 64 or 1, False, TraceFlags(1)),
            start_time=start,
            end_time=start,
            attributes=attributes,
            status=Status(StatusCode.OK),
            resource=Resource.get_empty(),
        )
    )


def _is_broken(*values: Any) -> bool:
    """Whether a text in the values holds half of a surrogate pair.

    It is stored escaped and read back whole, but an MLflow server sends ``?`` for it.
    """
    return has_lone_surrogate(json.dumps(values, ensure_ascii=False))


def to_json(value: Any) -> str:
    """Return JSON with readable text for MLflow's text search; escaped where it must be."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if has_lone_surrogate(text) else text


def attribute(value: Any) -> str:
    """Return a span attribute that MLflow stores as the JSON of ``value``.

    When it stores a span, MLflow unwraps each attribute that is JSON in JSON, since those that
    come through a server are wrapped twice. It would take an output that is itself JSON text
    for such a one and turn the text into a dict. Wrapping all texts, lists and dicts twice
    makes it arrive unchanged, directly and through a server.
    """
    text = to_json(value)
    return json.dumps(text, ensure_ascii=False) if isinstance(value, (str, list, dict)) else text
