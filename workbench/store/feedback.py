"""Tables of ratings written as MLflow feedback, each row once.

Human labels and recorded verdicts of a judge are the same to the store; they differ in their
source. `workbench.log_labels` and `workbench.log_verdicts` call this module.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, Feedback, TraceInfo

from workbench.formatting import html_table
from workbench.scale import Scale, is_missing
from workbench.store.assessments import (
    DECISION_KEY,
    content_id,
    is_after_verdict,
    log_assessments,
    make_feedback,
    now_ms,
    signature,
)
from workbench.store.tables import (
    check_text,
    raise_bad_rows,
    read_rating,
    read_table,
    require_columns,
)
from workbench.store.traces import fetch_traces


@dataclass(frozen=True)
class Logged:
    """What became of a table of labels or verdicts.

    Attributes
    ----------
    name
        The name under which they are stored.
    written
        Rows written now.
    present
        Rows that were in the store already.
    skipped
        Rows that hold nothing to write: ``row`` (counted from 0), ``reason``.
    replaced
        Traces on which what was written now replaces another rating by the same source.
    """

    name: str
    written: int
    present: int
    skipped: pd.DataFrame
    replaced: int = 0

    def __repr__(self) -> str:
        text = f"{self.name!r}: {self.written} written, {self.present} already there"
        text += f", {self.replaced} replaced" if self.replaced else ""
        reasons = Counter(self.skipped["reason"].tolist())
        return f"<Logged {text}" + "".join(f", {n} {why}" for why, n in reasons.items()) + ">"

    def _repr_html_(self) -> str:
        counts = pd.DataFrame(
            [(self.written, self.replaced, self.present, len(self.skipped))],
            columns=["written", "of these replacing another", "already there", "skipped"],
            index=[self.name],
        )
        html = html_table(counts)
        if len(self.skipped):
            html += html_table(self.skipped, index=False, max_rows=10)
        return html


def log_labels(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    name: str,
    annotator: str,
    value: str,
    rationale: str | None = None,
    progress: bool = True,
) -> Logged:
    """Write one annotator's labels from a table.

    Parameters
    ----------
    table
        DataFrame, or CSV, JSONL or Parquet file, with a ``trace_id`` column; ``.trace_ids`` of
        `import_traces` is in row order, so ``table.assign(trace_id=imported.trace_ids)`` has it.
    name
        The judge's name, exactly.
    annotator
        Who gave the labels: the name itself, the same for all rows. A table that holds several
        people's labels is logged in as many calls.
    value, rationale
        Columns with the labels and the annotator's reasons. Values are kept as given, also
        abstentions such as ``N/A``; rows without one are skipped and listed.

    Returns
    -------
    Logged
        Counts of labels written, and of those there already, which equal the annotator's latest
        label: a call that was killed, or is repeated, writes what is missing and nothing twice,
        and a label that was changed since is changed back.

    Warns
    -----
    UserWarning
        When ``annotator`` is also the name of a column other than ``value``: it is not read.

    Raises
    ------
    ArgumentError
        For missing columns and empty names.
    StoreError
        For trace ids that the store does not hold; nothing is written then.
    """
    frame = read_table(table)
    if annotator != value and annotator in frame.columns:
        warnings.warn(
            f"annotator={annotator!r} is the annotator's name itself, and all rows are logged as "
            "that person's labels; the column of this name is not read. Where it names who gave "
            "each label, log the rows of each person by themselves: for who, rows in "
            f"table.groupby({annotator!r}): log_labels(rows, annotator=who, ...).",
            stacklevel=2,
        )
    return log_feedback_table(
        frame,
        name=name,
        source_type="HUMAN",
        source_id=annotator,
        value=value,
        rationale=rationale,
        progress=progress,
    )


def log_feedback_table(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    name: str,
    source_type: str,
    source_id: str,
    value: str,
    rationale: str | None = None,
    metadata: dict[str, str] | None = None,
    scale: Scale | None = None,
    progress: bool = True,
) -> Logged:
    """Write a table of ratings as feedback, one a row, none twice (see `log_labels`).

    A row that equals the source's latest valid feedback under the name is *present* and not
    written. Several rows by one source on one trace follow one another; those that already end
    what is stored are present. All values must lie on ``scale`` where one is given. Nothing is
    written where a column is missing, a value cannot be stored or a trace is unknown.
    """
    check_text("name", name)
    check_text("source", source_id)
    rows, skipped = _read_ratings(read_table(table), value, rationale, scale)
    given: dict[str, list[Feedback]] = {}
    for trace_id, rating, because in rows:
        feedback = make_feedback(
            trace_id,
            name,
            rating,
            source_type=source_type,
            source_id=source_id,
            rationale=because,
            metadata=metadata,
        )
        given.setdefault(trace_id, []).append(feedback)
    start = now_ms()
    new: list[Feedback] = []
    replaced = 0
    for trace in fetch_traces(list(given), spans=False):
        feedbacks = given[trace.info.trace_id]
        earlier = _valid_by_same_source(feedbacks[0], trace.info)
        missing = _not_stored(feedbacks, earlier, trace.info, start)
        new += missing
        replaced += bool(missing and earlier and not _same(earlier[-1], missing[-1]))
    written = log_assessments(new, progress=progress, desc=f"{name} by {source_id}")
    listed = pd.DataFrame(skipped, columns=["row", "reason"])
    return Logged(name, written, len(rows) - written, listed, replaced)


def _read_ratings(
    table: pd.DataFrame, value: str, rationale: str | None, scale: Scale | None
) -> tuple[list[tuple[str, Any, str | None]], list[tuple[int, str]]]:
    """Return (trace id, value, rationale) of each row that has them, and the rows that do not."""
    require_columns(table, "trace_id", ["trace_id"])
    require_columns(table, "value", [value])
    if rationale is not None:
        require_columns(table, "rationale", [rationale])
    rows: list[tuple[str, Any, str | None]] = []
    skipped: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    reasons = table[rationale].tolist() if rationale is not None else [None] * len(table)
    cells = zip(table["trace_id"].tolist(), table[value].tolist(), reasons, strict=True)
    for row, (trace_id, raw, because) in enumerate(cells):
        if is_missing(trace_id):
            skipped.append((row, "without a trace_id"))
        elif is_missing(raw):
            skipped.append((row, "without a value"))
        else:
            try:
                rows.append((str(trace_id), *read_rating(raw, because, scale)))
            except ValueError as error:
                bad.append((row, str(error)))
    raise_bad_rows(bad, len(table), "logged")
    return rows, skipped


def _valid_by_same_source(new: Feedback, info: TraceInfo) -> list[Assessment]:
    """Return the valid feedback on the trace that ``new`` would replace, the latest last."""
    return sorted(
        (a for a in info.assessments if _is_replaced_by(new, a)),
        key=lambda a: (a.create_time_ms or 0, a.assessment_id or ""),
    )


def _is_replaced_by(new: Feedback, stored: Assessment) -> bool:
    before, after = stored.metadata or {}, new.metadata or {}
    return (
        isinstance(stored, Feedback)
        and stored.name == new.name
        and stored.valid is not False
        and stored.feedback.error is None
        and str(stored.source.source_type) == str(new.source.source_type)
        and stored.source.source_id == new.source.source_id
        # A decision of the same person is no label of theirs.
        and before.get(DECISION_KEY) == after.get(DECISION_KEY)
        # A label given after its author saw the verdict never replaces one given blind.
        and is_after_verdict(stored) == is_after_verdict(new)
        and all(before.get(key) == value for key, value in after.items())
    )


def _not_stored(
    given: Sequence[Feedback], stored: Sequence[Assessment], info: TraceInfo, start: int
) -> list[Feedback]:
    """Return those of one source's successive ratings of a trace that must still be written.

    They get times after all that is stored, and ids of their own.
    """
    wanted = _without_repeats(given)
    there = [signature(a) for a in _without_repeats(stored)]
    signatures = [signature(feedback) for feedback in wanted]
    # What a call wrote before it was killed, or all of it, ends what is stored.
    overlap = max(k for k in range(len(wanted) + 1) if there[len(there) - k :] == signatures[:k])
    times = Counter(signature(a) for a in info.assessments)
    ids = {a.assessment_id for a in info.assessments}
    earliest = max([start, *((a.create_time_ms or 0) + 1 for a in stored)])
    for number, feedback in enumerate(wanted[overlap:]):
        occurrence = times[signature(feedback)]
        # An id is also taken by what was edited since and has another content now.
        while (key := content_id(feedback, occurrence)) in ids:
            occurrence += 1
        feedback.assessment_id = key
        ids.add(key)
        times[signature(feedback)] += 1
        feedback.create_time_ms = feedback.last_update_time_ms = earliest + number
    return wanted[overlap:]


def _without_repeats(items: Sequence[Any]) -> list[Any]:
    """Return of equal ratings in a row the first."""
    return [one for k, one in enumerate(items) if k == 0 or not _same(items[k - 1], one)]


def _same(one: Assessment, other: Assessment) -> bool:
    return signature(one) == signature(other)
