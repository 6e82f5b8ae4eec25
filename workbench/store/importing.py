"""`import_traces`: the rows of a table become MLflow traces, each once, with their labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, Expectation, TraceInfo

from workbench.errors import ArgumentError, TableError
from workbench.formatting import html_table
from workbench.store.assessments import (
    content_id,
    log_assessments,
    make_feedback,
    now_ms,
    signature,
)
from workbench.store.spans import Pending, write_traces
from workbench.store.tables import ColumnSpec, LabelSpec, Row, digest, read_rows, read_table
from workbench.store.traces import find_experiment_id, has_spans, trace_infos

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
        DataFrame, or CSV, JSONL or Parquet file; see `workbench.store.tables.read_table`.
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
        edited, it stays, and what the table has instead is listed in ``.differing``. Only a
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
    new: list[Pending] = []
    added: list[Assessment] = []
    skipped: list[tuple[int, str, str]] = []
    differing: list[tuple[Any, ...]] = []
    for number, (row, trace_id) in enumerate(zip(rows, trace_ids, strict=True)):
        assessments = list(_assessments(row, trace_id, label_name, now))
        info = stored.get(trace_id)
        if info is None:
            # A millisecond a row keeps the row order, and is less than a row takes to write.
            new.append(Pending(row, trace_id, assessments, now + len(new)))
            continue
        missing, others = _compare(assessments, info)
        added += missing
        differing += [(number, trace_id, *other) for other in others]
        if not has_spans(info):
            new.append(Pending(row, trace_id, [], int(info.request_time), has_info=True))
        skipped.append((number, trace_id, _reason(info, len(missing), len(others))))
    write_traces(new, where, progress=progress)
    log_assessments(added, progress=progress, desc="labels")
    written = [a for pending in new for a in pending.assessments] + added
    return Imported(
        trace_ids=trace_ids,
        skipped=pd.DataFrame(skipped, columns=["row", "trace_id", "reason"]),
        created=len(rows) - len(skipped),
        labels=sum(assessment.feedback is not None for assessment in written),
        experiment_id=where,
        differing=pd.DataFrame(differing, columns=_DIFFERING),
    )


def _reason(info: TraceInfo, added: int, differing: int) -> str:
    """Return why a row made no new trace."""
    reason = "already there"
    if not has_spans(info):
        reason = "was there without its spans, completed"
    elif added:
        reason += f", {added} labels or expectations added"
    return reason + f", {differing} labels differ from those stored, which stay" * bool(differing)


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


def _compare(
    assessments: Sequence[Assessment], info: TraceInfo
) -> tuple[list[Assessment], list[tuple[str, Any, Any]]]:
    """Return what the trace lacks, and where its labels differ: (annotator, label, stored)."""
    missing: list[Assessment] = []
    differing: list[tuple[str, Any, Any]] = []
    for one in assessments:
        current = _current(one, info)
        if current is None:
            missing.append(one)
        elif one.feedback is not None and signature(current) != signature(one):
            *_, value, rationale = signature(one)
            *_, stored_value, stored_rationale = signature(current)
            if stored_value == value and not stored_rationale and current.valid is not False:
                # It completes the stored label, so it must be the later one.
                one.create_time_ms = max(one.create_time_ms or 0, (current.create_time_ms or 0) + 1)
                missing.append(one)
            elif value != stored_value or rationale:
                shown = current.feedback.value if current.feedback is not None else None
                differing.append((one.source.source_id, one.feedback.value, shown))
    ids = {a.assessment_id for a in info.assessments}
    return [a for a in missing if a.assessment_id not in ids], differing


def _current(one: Assessment, info: TraceInfo) -> Assessment | None:
    """Return what is stored in place of an assessment: a valid one, else the latest."""
    return max(
        (a for a in info.assessments if _place(a) == _place(one)),
        key=lambda a: (a.valid is not False, a.create_time_ms or 0, a.assessment_id or ""),
        default=None,
    )


def _place(assessment: Assessment) -> tuple[str, ...]:
    """Return what tells whether a label or expectation is there already, whatever its value."""
    if assessment.feedback is None:
        return type(assessment).__name__, assessment.name
    if assessment.feedback.error is not None:
        return "error", assessment.name
    return signature(assessment)[:4]
