"""`import_traces`: the rows of a table become MLflow traces, each once, with their labels."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, AssessmentSource, Expectation, Span, TraceInfo
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from workbench.errors import ArgumentError
from workbench.formatting import bar, check_text, counted, html_result
from workbench.store.assessments import (
    content_id,
    in_its_place,
    log_assessments,
    make_feedback,
    now_ms,
    says_no_more,
)
from workbench.store.database import check_not_deleted, find_experiment_id, write
from workbench.store.files import read_table
from workbench.store.tables import (
    ColumnSpec,
    LabelSpec,
    Names,
    Row,
    digest,
    read_rows,
    row_numbers,
)
from workbench.store.traces import trace_infos

_BATCH = 200  # traces in one transaction and, on a server, one request


@dataclass(frozen=True)
class Imported:
    """What became of an imported table.

    Attributes
    ----------
    trace_ids
        One a row that is not empty, in row order, also for rows that were there already.
    by_row
        One a row of the table, None for empty ones: ``table.assign(trace_id=imported.by_row)``.
    skipped
        The rows that were there already: ``row`` (counted from 0), ``trace_id``, ``reason``.
    created, labels
        Numbers of traces and labels written now, in the experiment ``experiment_id``.
    notes
        What was left out or replaced: empty rows, cells that hold no rating, rationales without
        one, characters that cannot be stored; and annotators named as a column is.
    differing
        Labels that were left out since the annotator has another one, or another rationale, in
        the store: ``row``, ``trace_id``, ``annotator``, ``label`` (the table's), ``stored``.
    """

    trace_ids: list[str]
    skipped: pd.DataFrame
    created: int
    labels: int
    experiment_id: str
    differing: pd.DataFrame
    notes: tuple[str, ...] = ()
    by_row: list[str | None] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.trace_ids)

    def __repr__(self) -> str:
        many = len(self.differing)
        stay = f"{many} left as they are in the store (see .differing), " if many else ""
        return (
            f"<Imported {counted(len(self), 'row')}: {self.created} new, {len(self.skipped)} "
            f"already there, {counted(self.labels, 'label')} added, {stay}experiment "
            f"{self.experiment_id}{''.join('; ' + note for note in self.notes)}>"
        )

    def _repr_html_(self) -> str:
        return html_result(self, self.skipped, self.differing)


def import_traces(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    inputs: ColumnSpec,
    outputs: ColumnSpec,
    expectations: ColumnSpec | None = None,
    labels: LabelSpec = None,
    label_name: str | None = None,
    values: Names | Mapping[str, Any] = None,
    tags: ColumnSpec | None = None,
    experiment: str | None = None,
    encoding: str | None = None,
    progress: bool = True,
) -> Imported:
    """Store each row of a table as an MLflow trace, once, with its labels.

    Parameters
    ----------
    table, encoding
        DataFrame, or CSV, JSONL or Parquet file; see `workbench.store.files.read_table`.
    inputs
        A column, a list of columns, or ``{key: column}``. The trace's inputs are a dict.
    outputs
        A column, whose cell is the trace's output as it stands; or a list or dict, for a dict.
    expectations
        As ``inputs``. Each filled cell becomes an MLflow expectation, so that a judge's
        ``{{ expectations }}`` is ``{key: cell}``.
    labels, label_name
        Annotators' columns: ``{"ana": "rating"}`` or ``{"ana": ("rating", "rationale")}``. Each
        filled rating becomes human feedback under ``label_name``, which is the judge's name.
    values
        The rating values, where one looks like a missing rating: ``"none, mild, severe"`` keeps
        ``none``. Ratings that are not among them are kept as well. A dict translates what people
        wrote, as in `check_data`: ``{"good": "yes", "bad": "no"}``.
    tags
        Columns kept as trace tags, such as an id to group by.
    experiment
        Name (created if missing) or id; the active experiment by default.

    Returns
    -------
    Imported
        A row is known by its inputs, outputs and expectations (4 and 4.0 are equal), and by how
        many equal rows precede it. Rows that the experiment has already are not written again, but
        tags, and labels that they lack, are added: an import that was interrupted can simply be run
        again. A label in the store is never changed, see ``.differing``; `log_labels` does.

    Raises
    ------
    ArgumentError, StoreError
        For columns that do not exist; when the store fails. Rows written before stay.
    TableError
        For a table without rows, and for cells that cannot be stored, with all row numbers;
        nothing is written then. Missing values (None, nan) are stored as null; a row needs an
        output and at least one input that is not blank. Dates become ISO text.
    """
    if bool(labels) != bool(label_name):
        raise ArgumentError(
            f"labels={labels!r} and label_name={label_name!r} go together: labels are stored "
            "under the name of the judge that they are compared with."
        )
    if labels:
        check_text("label_name", label_name)
    frame = read_table(table, encoding)
    roles = {"inputs": inputs, "outputs": outputs, "expectations": expectations, "tags": tags}
    rows, notes = read_rows(frame, roles, labels, values)
    where, now = check_not_deleted(find_experiment_id(experiment)), now_ms()
    found, stored = _find(rows, where)
    absent = [trace_id for trace_id in found if trace_id not in stored]
    # A millisecond a row keeps the row order, and is less than a row takes to write.
    new = [(found[trace_id], trace_id, now + k) for k, trace_id in enumerate(absent)]
    added: list[Assessment] = []
    skipped: list[tuple[int, str, str]] = []
    differing: list[tuple[Any, ...]] = []
    tagged: list[tuple[str, str, str]] = []
    for trace_id, row in found.items():
        info = stored.get(trace_id)
        given = _assessments(row, trace_id, label_name, now)
        missing, others = _compare(given, info.assessments if info else [])
        added += missing
        differing += [(row.number, trace_id, *other) for other in others]
        if info is not None:
            tagged += [(trace_id, k, v) for k, v in row.tags.items() if info.tags.get(k) != v]
            skipped.append((row.number, trace_id, "already there"))
    _write_traces(new, where, progress=progress)
    log_assessments(added, progress=progress, desc="labels")
    for tag in tagged:
        write("The tags", TracingClient().set_trace_tag, *tag)
    id_of = {row.number: trace_id for trace_id, row in found.items()}
    return Imported(
        trace_ids=list(found),
        skipped=pd.DataFrame(skipped, columns=["row", "trace_id", "reason"]),
        created=len(new),
        labels=sum(assessment.feedback is not None for assessment in added),
        experiment_id=where,
        differing=pd.DataFrame(
            differing, columns=["row", "trace_id", "annotator", "label", "stored"]
        ),
        notes=tuple(notes),
        by_row=list(map(id_of.get, row_numbers(frame))),
    )


def _find(rows: Sequence[Row], where: str) -> tuple[dict[str, Row], dict[str, TraceInfo]]:
    """Return the rows by trace id, and the infos of the traces that the experiment holds."""
    # An id follows from the experiment, what the judge sees, and the count of equal rows before.
    ids: list[list[str]] = []
    seen: Counter[tuple[int, str]] = Counter()
    for row in rows:
        parts = [row.inputs, row.outputs, row.expectations]
        contents = [
            digest([where, *parts, row.tags]),  # as in version 0.1
            digest([where, *map(_whole, parts), {}]),  # pandas makes 4.0 of 4 where one is missing
        ]
        ids.append([f"tr-{digest([c, seen[k, c]])[:32]}" for k, c in enumerate(contents)])
        seen.update(enumerate(contents))
    every = list(dict.fromkeys(itertools.chain(*ids)))
    stored = trace_infos(every, experiment=where, elsewhere=False)
    found: dict[str, Row] = {}
    for row, each in zip(rows, ids, strict=True):
        # An id is one row's, though 4 and 4.0 may both have it.
        found[next((i for i in each if i in stored and i not in found), each[1])] = row
    return found, stored


def _whole(value: Any) -> Any:
    """Return cells in which a float that is a whole number is an int."""
    if isinstance(value, dict):
        return {key: _whole(cell) for key, cell in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _assessments(row: Row, trace_id: str, label_name: str | None, now: int) -> Iterator[Assessment]:
    for key, value in row.expectations.items():
        expectation = Expectation(key, value, trace_id=trace_id, create_time_ms=now)
        expectation.assessment_id = content_id(expectation)
        yield expectation
    for annotator, (value, rationale) in row.labels.items():
        source = AssessmentSource("HUMAN", annotator)
        yield make_feedback(trace_id, str(label_name), value, source, rationale, at_ms=now)


def _compare(
    given: Iterable[Assessment], stored: Sequence[Assessment]
) -> tuple[list[Assessment], list[tuple[str, Any, Any]]]:
    """Return what a trace lacks, and where its labels differ: (annotator, label, stored)."""
    missing: list[Assessment] = []
    differing: list[tuple[str, Any, Any]] = []
    for one in given:
        if not (there := in_its_place(one, stored)):
            missing.append(one)
        elif one.feedback is not None:
            current = ([a for a in there if a.valid is not False] or there)[-1]
            if not says_no_more(one, current):
                differing.append((one.source.source_id, one.value, current.value))
    return missing, differing


def _write_traces(new: Sequence[tuple[Row, str, int]], where: str, *, progress: bool) -> None:
    client = TracingClient()
    with bar(total=len(new), desc="import", disable=not progress or len(new) <= _BATCH) as shown:
        for k in range(0, len(new), _BATCH):
            spans = [_span(*one) for one in new[k : k + _BATCH]]
            write("The traces", client.log_spans, where, spans)
            shown.update(len(spans))


def _span(row: Row, trace_id: str, start_ms: int) -> Span:
    name = "imported"
    tags = {"mlflow.traceName": name, **row.tags}
    number = int(trace_id.removeprefix("tr-"), 16)
    return Span(
        ReadableSpan(
            name=name,
            context=SpanContext(number, number >> 64 or 1, False, TraceFlags(1)),
            start_time=start_ms * 1_000_000,
            end_time=start_ms * 1_000_000,
            attributes={
                "mlflow.traceRequestId": json.dumps(trace_id),
                "mlflow.spanType": json.dumps("UNKNOWN"),
                "mlflow.spanInputs": _attribute(row.inputs),
                "mlflow.spanOutputs": _attribute(row.outputs),
                **{f"mlflow.traceTag.{key}": _attribute(tag) for key, tag in tags.items()},
            },
            status=Status(StatusCode.OK),
            resource=Resource.get_empty(),
        )
    )


def _attribute(value: Any) -> str:
    """Return a span attribute that MLflow stores as the JSON of ``value``."""
    text = json.dumps(value, ensure_ascii=False)
    # MLflow unwraps JSON in JSON once, as a server wraps it twice: text that is JSON stays text.
    return json.dumps(text, ensure_ascii=False) if isinstance(value, (str, list, dict)) else text
