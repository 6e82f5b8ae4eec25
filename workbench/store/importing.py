"""`import_traces`: the rows of a table become MLflow traces, each once, with their labels."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, Expectation, Span, TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from workbench.compat import has_transactions
from workbench.errors import ArgumentError, TableError
from workbench.formatting import bar, html_table, say
from workbench.store.assessments import (
    content_id,
    in_order,
    log_assessments,
    make_feedback,
    now_ms,
    signature,
)
from workbench.store.files import read_table
from workbench.store.tables import (
    ColumnSpec,
    LabelSpec,
    Row,
    digest,
    has_lone_surrogate,
    read_rows,
)
from workbench.store.traces import (
    find_experiment_id,
    has_spans,
    not_written,
    retrying,
    trace_infos,
)

# A batch is one transaction and, on a server, one request.
_BATCH_TRACES = 200
_BATCH_CHARACTERS = 4_000_000

_NAME_TAG = {"mlflow.traceName": "imported"}

New = tuple[TraceInfo, Row]
"""A trace on its way into the store, and the row that it is made of."""


@dataclass(frozen=True)
class Imported:
    """What became of an imported table.

    Attributes
    ----------
    trace_ids
        One a row, in row order, also for rows that were there already.
    skipped
        The rows that were there already: ``row`` (counted from 0), ``trace_id``, ``reason``.
    created, labels
        Numbers of traces and labels written now, in the experiment ``experiment_id``.
    differing
        Labels of the table that were left out since the annotator has another one in the store:
        ``row``, ``trace_id``, ``annotator``, ``label`` (the table's), ``stored``.
    """

    trace_ids: list[str]
    skipped: pd.DataFrame
    created: int
    labels: int
    experiment_id: str
    differing: pd.DataFrame

    def __len__(self) -> int:
        return len(self.trace_ids)

    def __repr__(self) -> str:
        many = len(self.differing)
        stay = f"{many} left as they are in the store (see .differing), " if many else ""
        return (
            f"<Imported {len(self)} rows: {self.created} new, {len(self.skipped)} already there, "
            f"{self.labels} labels added, {stay}experiment {self.experiment_id}>"
        )

    def _repr_html_(self) -> str:
        counts = pd.DataFrame(
            [(len(self), self.created, len(self.skipped), self.labels)],
            columns=["rows", "new traces", "already there", "labels added"],
        )
        html = html_table(counts, index=False)
        differing = "<div>Labels that differ from those in the store, which stay:</div>"
        for title, listed in (("", self.skipped), (differing, self.differing)):
            if len(listed):
                html += title + html_table(listed, index=False, max_rows=10)
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
        DataFrame, or CSV, JSONL or Parquet file; see `workbench.store.files.read_table`.
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
        again, and annotators can be imported one after another. A label in the store is never
        changed: where the table has another one, it is listed in ``.differing``. Only a
        rationale is added to an equal label that has none. To change labels, use `log_labels`.

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
    if bool(labels) != bool(label_name):
        raise ArgumentError(
            f"labels={labels!r} and label_name={label_name!r} go together: labels are stored "
            "under the name of the judge that they are compared with."
        )
    rows = read_rows(
        read_table(table),
        inputs=inputs,
        outputs=outputs,
        expectations=expectations,
        tags=tags,
        labels=labels,
    )
    if not rows:
        raise TableError("The table has no rows, so there is nothing to import.")
    where, now = find_experiment_id(experiment), now_ms()
    trace_ids = _trace_ids(rows, where)
    stored = trace_infos(trace_ids, experiment=where, elsewhere=False)
    new: list[New] = []
    added: list[Assessment] = []
    skipped: list[tuple[int, str, str]] = []
    differing: list[tuple[Any, ...]] = []
    for number, (row, trace_id) in enumerate(zip(rows, trace_ids, strict=True)):
        assessments = list(_assessments(row, trace_id, label_name, now))
        info = stored.get(trace_id)
        if info is None:
            # A millisecond a row keeps the row order, and is less than a row takes to write.
            new.append((_info(row, trace_id, where, now + len(new), assessments), row))
            continue
        missing, others = _compare(assessments, info)
        added += missing
        differing += [(number, trace_id, *other) for other in others]
        reason = "already there"
        if not has_spans(info):
            new.append((info, row))
            reason = "was there without its spans, completed"
        reason += f", {len(missing)} labels or expectations added" if missing else ""
        reason += f", {len(others)} labels differ from those stored, which stay" if others else ""
        skipped.append((number, trace_id, reason))
    _write_traces(new, where, stored, progress=progress)
    log_assessments(added, progress=progress, desc="labels")
    written = [a for info, _ in new if info.trace_id not in stored for a in info.assessments]
    return Imported(
        trace_ids=trace_ids,
        skipped=pd.DataFrame(skipped, columns=["row", "trace_id", "reason"]),
        created=len(rows) - len(skipped),
        labels=sum(assessment.feedback is not None for assessment in written + added),
        experiment_id=where,
        differing=pd.DataFrame(
            differing, columns=["row", "trace_id", "annotator", "label", "stored"]
        ),
    )


def _trace_ids(rows: Sequence[Row], where: str) -> list[str]:
    """Return ids that follow from experiment, content, and the count of equal rows before."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        content = digest([where, row.inputs, row.outputs, row.expectations, row.tags])
        ids.append(f"tr-{digest([content, seen[content]])[:32]}")
        seen[content] += 1
    return ids


def _assessments(row: Row, trace_id: str, label_name: str | None, now: int) -> Iterator[Assessment]:
    for key, value in row.expectations.items():
        expectation = Expectation(key, value, trace_id=trace_id, create_time_ms=now)
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


def _compare(
    assessments: Sequence[Assessment], info: TraceInfo
) -> tuple[list[Assessment], list[tuple[str, Any, Any]]]:
    """Return what the trace lacks, and where its labels differ: (annotator, label, stored)."""
    missing: list[Assessment] = []
    differing: list[tuple[str, Any, Any]] = []
    for one in assessments:
        # An annotator has one label, and a trace one expectation of a name.
        place = slice(0, 4 if one.feedback is not None else 2)
        there = [a for a in info.assessments if signature(a)[place] == signature(one)[place]]
        there = [a for a in in_order(there) if a.feedback is None or a.feedback.error is None]
        if not there:
            missing.append(one)
            continue
        current = ([a for a in there if a.valid is not False] or there)[-1]
        *_, value, rationale = signature(one)
        *_, stored, stored_rationale = signature(current)
        if one.feedback is None or (value == stored and rationale in ("", stored_rationale)):
            continue
        if value == stored and not stored_rationale and current.valid is not False:
            # It completes the stored label, so it must be the later one.
            one.create_time_ms = max(one.create_time_ms, (current.create_time_ms or 0) + 1)
            missing.append(one)
        else:
            differing.append((one.source.source_id, one.feedback.value, current.feedback.value))
    ids = {a.assessment_id for a in info.assessments}
    return [a for a in missing if a.assessment_id not in ids], differing


# -- new traces -----------------------------------------------------------------------------


def _write_traces(
    new: Sequence[New], where: str, stored: Collection[str], *, progress: bool
) -> None:
    """Write traces of one span each, with their assessments, batch by batch."""
    client = TracingClient()
    hidden = not progress or len(new) <= _BATCH_TRACES
    with bar(total=len(new), desc="import", disable=hidden) as shown:
        try:
            for batch in _batches(new):
                _write_batch(client, batch, where, stored)
                shown.update(len(batch))
        except KeyboardInterrupt:
            say("Interrupted. Run the same import again to add the rows that are missing.")
            raise


def _batches(new: Sequence[New]) -> Iterator[list[New]]:
    batch: list[New] = []
    size = 0
    for info, row in new:
        batch.append((info, row))
        size += len(_to_json([row.inputs, row.outputs]))
        if len(batch) >= _BATCH_TRACES or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield from [batch] if batch else []


def _write_batch(
    client: TracingClient, batch: Sequence[New], where: str, stored: Collection[str]
) -> None:
    """Write one batch: all its spans in one transaction, then the assessments that are left."""
    together = has_transactions(client.store)
    spans: list[Span] = []
    left: list[Assessment] = []
    try:
        for info, row in batch:
            is_there = info.trace_id in stored
            if not is_there and (_is_broken(row) or (info.assessments and not together)):
                # This call takes assessments along, which on a server are requests of their own.
                retrying(client.start_trace, info)
                is_there = True
            elif not is_there:
                left += info.assessments
            spans.append(_span(info, row, {} if is_there else info.tags))
        retrying(client.log_spans, where, spans)
    except Exception as error:
        raise not_written("The traces", error) from None
    log_assessments(left, progress=False)


def _info(
    row: Row, trace_id: str, where: str, start_ms: int, assessments: list[Assessment]
) -> TraceInfo:
    # MLflow takes previews from the span, but could not store one with a broken character.
    broken = _is_broken(row)
    return TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(where),
        request_time=start_ms,
        execution_duration=0,
        state=TraceState.OK,
        request_preview=_to_json(row.inputs)[:1000] if broken else None,
        response_preview=_to_json(row.outputs)[:1000] if broken else None,
        tags=_NAME_TAG | row.tags,
        assessments=assessments,
    )


def _span(info: TraceInfo, row: Row, tags: dict[str, str]) -> Span:
    """Return the root span; ``tags`` are those of a trace that it makes."""
    attributes = {
        "mlflow.traceRequestId": json.dumps(info.trace_id),
        "mlflow.spanType": json.dumps("UNKNOWN"),
        "mlflow.spanInputs": _attribute(row.inputs),
        "mlflow.spanOutputs": _attribute(row.outputs),
    }
    attributes |= {f"mlflow.traceTag.{key}": _attribute(tag) for key, tag in tags.items()}
    sides = [side for side in (row.inputs, row.outputs) if isinstance(side, dict)]
    if any(has_lone_surrogate(str(side.get("model"))) for side in sides):
        # MLflow takes a model's name from here, and could not store a broken one.
        attributes["mlflow.llm.model"] = json.dumps("unknown")
    number = int(info.trace_id.removeprefix("tr-"), 16)
    start = int(info.request_time) * 1_000_000
    return Span(
        ReadableSpan(
            name=_NAME_TAG["mlflow.traceName"],
            context=SpanContext(number, number >> 64 or 1, False, TraceFlags(1)),
            start_time=start,
            end_time=start,
            attributes=attributes,
            status=Status(StatusCode.OK),
            resource=Resource.get_empty(),
        )
    )


def _is_broken(row: Row) -> bool:
    """Whether a text holds half of a surrogate pair, which MLflow takes in JSON escapes only."""
    return has_lone_surrogate(json.dumps([row.inputs, row.outputs], ensure_ascii=False))


def _to_json(value: Any) -> str:
    """Return JSON with readable text for MLflow's text search; escaped where it must be."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if has_lone_surrogate(text) else text


def _attribute(value: Any) -> str:
    """Return a span attribute that MLflow stores as the JSON of ``value``.

    MLflow unwraps JSON in JSON once, since attributes that come through a server are wrapped
    twice. Wrapped twice, an output that is itself JSON text stays text.
    """
    text = _to_json(value)
    return json.dumps(text, ensure_ascii=False) if isinstance(value, (str, list, dict)) else text
