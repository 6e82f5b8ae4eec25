"""Tables into MLflow traces, losslessly; MLflow traces as the examples that a judge sees."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, Expectation, Span, TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags
from tqdm.auto import tqdm

from workbench.errors import ArgumentError, StoreError, TableError
from workbench.formatting import html_table
from workbench.store.assessments import (
    content_id,
    is_possible,
    log_assessments,
    make_feedback,
    retrying,
    signature,
)
from workbench.store.tables import (
    ColumnSpec,
    LabelSpec,
    Row,
    has_lone_surrogate,
    read_rows,
    read_table,
)
from workbench.store.traces import _digest, address, has_spans, trace_infos
from workbench.store.traces import find_experiment_id as experiment_id
from workbench.store.traces import store_message as told

# -- tables into traces ---------------------------------------------------------------------


_DIFFERING = ["row", "trace_id", "annotator", "label", "stored"]


@dataclass(frozen=True)
class Imported:
    """What became of an imported table.

    Attributes
    ----------
    trace_ids
        One a row, in row order, also for rows that were there already.
    skipped
        The rows that were there already: ``row`` (counted from 0), ``trace_id``, ``reason``.
    created
        Traces written now.
    labels
        Labels written now.
    experiment_id
        Where the traces are.
    differing
        Labels of the table that were left out since the annotator has another one in the store:
        ``row``, ``trace_id``, ``annotator``, ``label`` (the table's), ``stored``.
    """

    trace_ids: list[str]
    skipped: pd.DataFrame
    created: int
    labels: int
    experiment_id: str
    differing: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame([], columns=_DIFFERING), repr=False
    )

    def __len__(self) -> int:
        return len(self.trace_ids)

    def __repr__(self) -> str:
        return (
            f"<Imported {len(self)} rows: {self.created} new, {len(self.skipped)} already there, "
            f"{self.labels} labels added, {self._left_out()}experiment {self.experiment_id}>"
        )

    def _left_out(self) -> str:
        many = len(self.differing)
        return f"{many} left as they are in the store (see .differing), " if many else ""

    def _repr_html_(self) -> str:
        counts = pd.DataFrame(
            [(len(self), self.created, len(self.skipped), self.labels)],
            columns=["rows", "new traces", "already there", "labels added"],
        )
        html = html_table(counts, index=False)
        if len(self.skipped):
            html += html_table(self.skipped, index=False, max_rows=10)
        if len(self.differing):
            html += "<div>Labels that differ from those in the store, which stay:</div>"
            html += html_table(self.differing, index=False, max_rows=10)
        return html


def import_traces(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    inputs: ColumnSpec,
    outputs: ColumnSpec,
    expectations: ColumnSpec | None = None,
    labels: LabelSpec | None = None,
    label_name: str | None = None,
    tags: ColumnSpec | None = None,
    experiment: str | None = None,
    progress: bool = True,
) -> Imported:
    """Store each row of a table as an MLflow trace, once, with its labels.

    Parameters
    ----------
    table
        DataFrame, or CSV, JSONL or Parquet file; see `workbench.tables.read_table`.
    inputs
        A column, a list of columns, or ``{key: column}``. The trace's inputs are a dict.
    outputs
        A column, whose cell is the trace's output as it stands; or a list or
        ``{key: column}`` for a dict.
    expectations
        Columns with what was expected, as ``inputs``. Each filled cell becomes an MLflow
        expectation, so that a judge's ``{{ expectations }}`` is ``{key: cell}``.
    labels
        Annotators' columns: ``{"ana": "rating"}`` or ``{"ana": ("rating", "rationale")}``.
        Each filled rating becomes human feedback by that annotator.
    label_name
        The name that the labels get: the judge's name. Needed with ``labels``.
    tags
        Columns kept as trace tags, such as an id to group by; `Example.tags` has them.
    experiment
        Name (created if missing) or id; the active experiment by default.

    Returns
    -------
    Imported
        ``.trace_ids`` is in row order, so ``table.assign(trace_id=imported.trace_ids)`` joins
        other columns. A row is known by its inputs, outputs, expectations and tags, and by how
        many equal rows precede it. Rows that the experiment has already are not written again,
        but labels that they lack are added: an import that was interrupted can simply be run
        again, and annotators can be imported one after another. An import never changes a
        label: where the annotator has one under that name, given in whatever way, overridden or
        edited, it stays, and a table that says otherwise is told so in ``.differing``. Only a
        rationale is added to an equal label that has none. To change labels, use `log_labels`.
        The order of traces by time is that of the rows.

    Raises
    ------
    ArgumentError
        For columns that do not exist.
    TableError
        For a table without rows, and for cells that cannot be stored, with all row numbers;
        nothing is written then. Missing values (None, nan) are stored as null; a row needs an
        output and at least one input. Dates become ISO text.
    StoreError
        When the store fails; rows written before stay.
    """
    if bool(labels) != (label_name is not None) or (label_name is not None and not label_name):
        raise ArgumentError(
            f"labels={labels!r} and label_name={label_name!r} go together: labels are stored "
            "under the name of the judge that they are compared with."
        )
    frame = read_table(table)
    rows = read_rows(
        frame,
        inputs=inputs,
        outputs=outputs,
        expectations=expectations,
        tags=tags,
        labels=labels,
    )
    if not rows:
        raise TableError("The table has no rows, so there is nothing to import.")

    where = experiment_id(experiment)
    trace_ids = _trace_ids(rows, where)
    there = trace_infos(trace_ids, experiment=where, elsewhere=False)
    now = time.time_ns() // 1_000_000
    new: list[Pending] = []
    late: list[Assessment] = []
    differing: list[tuple[int, str, str, Any, Any]] = []
    skipped: list[tuple[int, str, str]] = []
    for number, (row, trace_id) in enumerate(zip(rows, trace_ids, strict=True)):
        assessments = list(_assessments(row, trace_id, label_name, now))
        info = there.get(trace_id)
        if info is None:
            # A millisecond a row keeps the row order, and is less than a row takes to write.
            new.append(Pending(row, trace_id, assessments, now + len(new)))
            continue
        lacking, others = _lacking(assessments, info)
        late += lacking
        differing += [(number, trace_id, *other) for other in others]
        reason = "already there"
        if not has_spans(info):
            new.append(Pending(row, trace_id, [], int(info.request_time), has_info=True))
            reason = "was there without its spans, completed"
        elif lacking:
            reason = f"already there, {len(lacking)} labels or expectations added"
        if others:
            reason += f", {len(others)} labels differ from those stored, which stay"
        skipped.append((number, trace_id, reason))

    write_traces(new, where, progress=progress)
    log_assessments(late, progress=progress, desc="labels")
    written = [a for pending in new for a in pending.assessments] + late
    return Imported(
        trace_ids=trace_ids,
        skipped=pd.DataFrame(skipped, columns=["row", "trace_id", "reason"]),
        created=len(rows) - len(skipped),
        labels=sum(assessment.feedback is not None for assessment in written),
        experiment_id=where,
        differing=pd.DataFrame(differing, columns=_DIFFERING),
    )


def _trace_ids(rows: Sequence[Row], where: str) -> list[str]:
    """Ids that follow from the experiment, the content, and the count of equal rows before."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        content = _digest([where, row.inputs, row.outputs, row.expectations, row.tags])
        ids.append(f"tr-{_digest([content, seen[content]])[:32]}")
        seen[content] += 1
    return ids


def _assessments(row: Row, trace_id: str, label_name: str | None, now: int) -> Iterator[Assessment]:
    for key, value in row.expectations.items():
        expectation = Expectation(
            name=key, value=value, trace_id=trace_id, create_time_ms=now, last_update_time_ms=now
        )
        expectation.assessment_id = content_id(expectation)
        yield expectation
    for annotator, (value, rationale) in row.labels.items():
        yield make_feedback(
            trace_id,
            str(label_name),
            value,
            source_type="HUMAN",
            source_id=annotator,
            rationale=rationale,
            create_time_ms=now,
        )


def _lacking(
    assessments: Sequence[Assessment], info: TraceInfo
) -> tuple[list[Assessment], list[tuple[str, Any, Any]]]:
    """What must be added to a trace; and where its labels differ: (annotator, label, stored)."""
    lacking: list[Assessment] = []
    differing: list[tuple[str, Any, Any]] = []
    ids = {a.assessment_id for a in info.assessments}
    for one in assessments:
        said = sorted(
            (a for a in info.assessments if _same_place(a) == _same_place(one)),
            key=lambda a: (a.valid is not False, a.create_time_ms or 0, a.assessment_id or ""),
        )
        if not said:
            lacking.append(one)
        elif one.feedback is not None and signature(said[-1]) != signature(one):
            *_, stored_value, stored_rationale = signature(said[-1])
            *_, value, rationale = signature(one)
            current = said[-1]
            if stored_value == value and not stored_rationale and current.valid is not False:
                # Its own time, after the label that it completes.
                one.create_time_ms = max(one.create_time_ms or 0, (current.create_time_ms or 0) + 1)
                lacking.append(one)
            elif value != stored_value or rationale:
                shown = current.feedback.value if current.feedback is not None else None
                differing.append((one.source.source_id, one.feedback.value, shown))
    return [a for a in lacking if a.assessment_id not in ids], differing


def _same_place(assessment: Assessment) -> tuple[str, ...]:
    """What tells whether a label or expectation is there already, whatever it says."""
    if assessment.feedback is None:
        return type(assessment).__name__, assessment.name
    if assessment.feedback.error is not None:
        return "error", assessment.name
    return signature(assessment)[:4]


TRACE_NAME = "imported"


# A batch is one transaction and, on a server, one request.
_BATCH_TRACES = 200

_BATCH_CHARACTERS = 4_000_000


_TOGETHER = 3


@dataclass
class Pending:
    """A row on its way into the store."""

    row: Row
    trace_id: str
    assessments: list[Assessment]
    start_ms: int
    has_info: bool = False


def write_traces(new: Sequence[Pending], where: str, *, progress: bool) -> None:
    """Write traces with their assessments, batch by batch, in the order given.

    Raises
    ------
    StoreError
        When the store fails; batches written before stay.
    """
    client = TracingClient()
    done = 0
    with tqdm(total=len(new), desc="import", disable=not (progress and len(new) > 200)) as bar:
        try:
            for batch in _batches(new):
                _write_batch(client, batch, where)
                done += len(batch)
                bar.update(len(batch))
        except KeyboardInterrupt:
            bar.write(
                f"Interrupted after {done} of {len(new)} new rows, which are stored. Run the "
                "same import again to add the rest."
            )
            raise


def _batches(new: Sequence[Pending]) -> Iterator[list[Pending]]:
    batch: list[Pending] = []
    size = 0
    for pending in new:
        batch.append(pending)
        size += len(to_json(pending.row.inputs)) + len(to_json(pending.row.outputs))
        if len(batch) >= _BATCH_TRACES or size >= _BATCH_CHARACTERS:
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
            f"The traces could not be written to {address()}: {told(error)}. What was "
            "written before stays; run the same import again to add the rest."
        ) from None
    left = [a for pending in batch if not pending.has_info for a in pending.assessments]
    log_assessments(left, progress=False)


def _needs_info(pending: Pending, client: TracingClient) -> bool:
    """Whether a trace is made by a call of its own rather than by its spans alone.

    That call takes the assessments along. It pays from three of them on where each would be
    sent by itself; a database takes them faster after the spans, in one transaction.
    """
    row = pending.row
    along = len(pending.assessments) >= _TOGETHER and not is_possible(client.store)
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
        marks = {"mlflow.traceName": TRACE_NAME, **row.tags}
        attributes.update({f"mlflow.traceTag.{k}": attribute(v) for k, v in marks.items()})
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
    """JSON with readable text, which MLflow's text search finds; escaped where it must be."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if has_lone_surrogate(text) else text


def attribute(value: Any) -> str:
    """A span attribute that MLflow stores as the JSON of ``value``.

    When it stores a span, MLflow unwraps each attribute that is JSON in JSON, since those that
    come through a server are wrapped twice. It would take an output that is itself JSON text
    for such a one and turn the text into a dict. Wrapping all texts, lists and dicts twice
    makes it arrive as it is, both on the direct way and through a server.
    """
    text = to_json(value)
    return json.dumps(text, ensure_ascii=False) if isinstance(value, (str, list, dict)) else text
