"""Assessments: what identifies one, and how labels, verdicts and expectations are written."""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, AssessmentSource, Feedback, TraceInfo
from mlflow.tracing.client import TracingClient

from workbench.compat import one_transaction
from workbench.errors import StoreError
from workbench.formatting import bar, check_text, counted, html_result, unstorable
from workbench.store.database import write
from workbench.store.files import read_table
from workbench.store.labels import AFTER_VERDICT_KEY, DECISION_KEY, has_mark, in_order
from workbench.store.tables import (
    Names,
    digest,
    name_hint,
    raise_bad_rows,
    read_rating,
    require_columns,
    translated,
)
from workbench.store.traces import fetch_traces
from workbench.vocabulary import fold, folded, is_missing, no_ratings

_BATCH = 50


def now_ms() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def make_feedback(
    trace_id: str,
    name: str,
    value: Any,
    source: AssessmentSource,
    rationale: str | None = None,
    *,
    metadata: dict[str, str] | None = None,
    at_ms: int | None = None,
) -> Feedback:
    """Return feedback whose id follows from its content, so that writing it twice leaves one."""
    feedback = Feedback(
        name=name,
        value=value,
        source=source,
        trace_id=trace_id,
        rationale=rationale or None,
        metadata=metadata,
        create_time_ms=at_ms,
        last_update_time_ms=at_ms,
    )
    feedback.assessment_id = content_id(feedback)
    return feedback


def assessment_id(*parts: Any) -> str:
    """Return the assessment id that follows from the parts."""
    return f"a-{digest(parts)[:32]}"


def content_id(assessment: Assessment) -> str:
    """Return the id that follows from trace and `signature`."""
    return assessment_id(assessment.trace_id, *signature(assessment))


def verdict_id(info: TraceInfo, name: str, fingerprint: str, *, failed: bool = False) -> str:
    """Return the id of a judge version's next verdict, of which the first that is written stays."""
    taken = {assessment.assessment_id for assessment in info.assessments}
    # Failures have ids of their own, since they must not keep out a verdict.
    key = ("failure" if failed else "verdict", info.trace_id, name, fingerprint)
    return next(i for n in itertools.count() if (i := assessment_id(*key, n)) not in taken)


def signature(assessment: Assessment) -> tuple[str, str, str, str, str, str]:
    """Return kind, name, source type, source id, value and rationale of an assessment."""
    value = getattr(assessment, "value", None)
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # a server gives 4 back as 4.0
    return (
        type(assessment).__name__,
        assessment.name,
        str(assessment.source.source_type),
        assessment.source.source_id or "",
        json.dumps(value, sort_keys=True, default=str),
        assessment.rationale or "",
    )


def place(assessment: Assessment) -> tuple[str, str, str, str]:
    """Return that of which one assessment counts: a source's ratings, a trace's expectations."""
    kind, name, by, who = signature(assessment)[:4]
    if assessment.expectation is not None:
        return kind, name, "", ""
    return kind, name, by, folded(who) if by == "HUMAN" else who


def in_its_place(new: Assessment, stored: Iterable[Assessment]) -> list[Assessment]:
    """Return what was given before in the place of a new assessment, the latest last."""
    return [
        one
        for one in in_order(stored)
        if place(one) == place(new)
        and (one.feedback is None or one.feedback.error is None)
        and not has_mark(one, DECISION_KEY)  # which is no label
    ]


def says_no_more(new: Assessment, stored: Assessment) -> bool:
    """Whether the value is the stored one, and the rationale too or none is given."""
    (value, why), (before, why_before) = signature(new)[4:], signature(stored)[4:]
    return value == before and why in ("", why_before)


def log_assessments(
    items: Sequence[Assessment], *, progress: bool = True, desc: str = "assessments"
) -> int:
    """Write assessments whose ``assessment_id`` is not there yet; return how many were new."""
    client = TracingClient()
    new = 0
    with bar(total=len(items), desc=desc, disable=not progress or len(items) <= 100) as shown:
        for k in range(0, len(items), _BATCH):
            batch = items[k : k + _BATCH]
            new += _write_batch(client, batch)
            shown.update(len(batch))
    return new


def _write_batch(client: TracingClient, batch: Sequence[Assessment]) -> int:
    """Write several, in one transaction where the store has them; return how many were new."""
    for assessment in batch:
        # An id given here shows a second attempt what the first one has written.
        assessment.assessment_id = assessment.assessment_id or f"a-{uuid.uuid4().hex}"
    if len(batch) > 1:
        # If one fails, or the store has no transactions, nothing is written, and each goes alone.
        with suppress(Exception), one_transaction(client.store):
            for assessment in batch:
                client.log_assessment(assessment.trace_id, assessment)
            return len(batch)
    return sum(_write(client, assessment) for assessment in batch)


def _write(client: TracingClient, assessment: Assessment) -> bool:
    """Write one assessment; False if it was there already."""
    what = f"Assessment {assessment.name!r} of trace {assessment.trace_id}"
    try:
        write(what, client.log_assessment, assessment.trace_id, assessment)
    except StoreError:
        with suppress(Exception):
            client.get_assessment(assessment.trace_id, assessment.assessment_id)
            return False
        raise
    return True


class AssessmentWriter:
    """Writes assessments in batches as they come, and what is left at the end of its block."""

    def __init__(self) -> None:
        self._waiting: list[Assessment] = []

    def put(self, assessment: Assessment) -> None:
        """Take an assessment, and write those that wait once they make a batch."""
        self._waiting.append(assessment)
        if len(self._waiting) >= _BATCH:
            self._write()

    def _write(self) -> None:
        log_assessments(self._waiting, progress=False)
        self._waiting = []

    def __enter__(self) -> AssessmentWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with suppress(*([StoreError] if error else [])):  # the block's own error says more
            self._write()


# -- tables of ratings ----------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """What became of a table of labels or verdicts.

    ``written`` rows were written now under ``name``, of which ``replaced`` replaced another rating
    by the same source; ``present`` ones were there already; ``skipped`` lists the ``row`` (counted
    from 0) and ``reason`` of those that were not to be written. ``unstorable`` counts the
    characters in the table, such as NUL, in place of which U+FFFD is stored.
    """

    name: str
    written: int
    present: int
    skipped: pd.DataFrame
    replaced: int = 0
    unstorable: int = 0

    def __repr__(self) -> str:
        text = f"{self.name!r}: {self.written} written, {self.present} already there"
        text += f", {self.replaced} replaced" if self.replaced else ""
        if self.unstorable:
            text += f", {counted(self.unstorable, 'character')} that cannot be stored replaced"
        reasons = Counter(self.skipped["reason"].tolist())
        return f"<Logged {text}" + "".join(f", {n} {why}" for why, n in reasons.items()) + ">"

    def _repr_html_(self) -> str:
        return html_result(self, self.skipped)


def log_labels(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    name: str,
    annotator: str,
    value: str,
    rationale: str | None = None,
    values: Names | Mapping[str, Any] = None,
    encoding: str | None = None,
    progress: bool = True,
) -> Logged:
    """Write one annotator's labels from a table.

    Parameters
    ----------
    table, encoding
        DataFrame, or CSV, JSONL or Parquet file, with a ``trace_id`` column, such as
        ``table.assign(trace_id=imported.by_row)``; see `workbench.store.files.read_table`.
    name
        The judge's name, exactly.
    annotator
        Who gave the labels: the name itself. Labels of several people take several calls, and
        one that is also the name of a column other than ``value`` is warned of.
    value, rationale
        Columns with the labels and the annotator's reasons. Values are kept as given, also
        abstentions such as ``N/A``; rows without one, or with a word such as ``none`` that is no
        rating, are skipped and listed, and of several rows on one trace all but the last.
    values
        The rating values, or a dict that translates them, as in `import_traces`.

    Returns
    -------
    Logged
        A call that was killed, or is repeated, writes what is missing and nothing twice. A label
        that was changed since is changed back; the same one keeps the rationale that it has in the
        store where the table gives none. Missing columns and bad values are an error before
        anything is written, and so are trace ids that the store does not hold (`StoreError`).
    """
    frame = read_table(table, encoding)
    if hint := name_hint(frame, annotator, str(value)):
        warnings.warn(" ".join(hint), stacklevel=2)
    source = AssessmentSource("HUMAN", annotator)
    return log_feedback_table(
        frame, source, name=name, value=value, rationale=rationale, values=values, progress=progress
    )


def log_feedback_table(
    table: pd.DataFrame | str | os.PathLike[str],
    source: AssessmentSource,
    *,
    name: str,
    value: str,
    rationale: str | None = None,
    values: Names | Mapping[str, Any] = None,
    metadata: dict[str, str] | None = None,
    progress: bool = True,
) -> Logged:
    """Write a table of ratings by one source as feedback, as `log_labels` does."""
    check_text("name", name)
    check_text("annotator" if source.source_type == "HUMAN" else "source", source.source_id)
    frame, keep = translated(read_table(table), [str(value)], values)
    ratings, skipped = _read_ratings(frame, value, rationale, keep)
    start = now_ms()
    new: list[Feedback] = []
    replaced = 0
    for info in [trace.info for trace in fetch_traces(list(ratings), spans=False)]:
        rating, why = ratings[info.trace_id]
        made = make_feedback(info.trace_id, name, rating, source, why, metadata=metadata)
        stored = [a for a in in_its_place(made, info.assessments) if _is_replaced_by(made, a)]
        if stored and says_no_more(made, stored[-1]):
            continue
        if made.assessment_id in {a.assessment_id for a in info.assessments}:
            made.assessment_id = None  # said before and changed since: a new one
        # Later than all before it, whatever the clocks say.
        made.create_time_ms = max([start, *((a.create_time_ms or 0) + 1 for a in stored)])
        made.last_update_time_ms = made.create_time_ms
        new.append(made)
        replaced += bool(stored)
    written = log_assessments(new, progress=progress, desc=f"{name} by {source.source_id}")
    listed = pd.DataFrame(skipped, columns=["row", "reason"])
    texts = frame[[str(column) for column in (value, rationale) if column is not None]].to_numpy()
    lost = sum(unstorable(cell) for cell in texts.flat if isinstance(cell, str))
    return Logged(name, written, len(ratings) - written, listed, replaced, lost)


def _read_ratings(
    table: pd.DataFrame, value: str, rationale: str | None, values: Iterable[Any]
) -> tuple[dict[str, tuple[Any, str | None]], list[tuple[int, str]]]:
    """Return (value, rationale) by trace id, and the rows that are not to be written."""
    roles = {"trace_id": "trace_id", "value": value, "rationale": rationale}
    given = {role: str(column) for role, column in roles.items() if column is not None}
    for role, column in given.items():
        require_columns(table, role, [column])
    ratings: dict[str, tuple[Any, str | None]] = {}
    skipped: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    columns = [table[column].tolist() for column in given.values()]
    words = no_ratings({fold(raw) for raw in columns[1]}) - set(map(fold, values))
    for row, (trace_id, raw, *why) in reversed(list(enumerate(zip(*columns, strict=True)))):
        if is_missing(trace_id):
            skipped.append((row, "without a trace_id"))
        elif is_missing(raw) or fold(raw) in words:
            skipped.append((row, "without a value"))
        elif str(trace_id) in ratings:
            skipped.append((row, "followed by another on the same trace"))
        else:
            try:
                ratings[str(trace_id)] = read_rating(raw, *why)
            except ValueError as error:
                bad.append((row, str(error)))
    raise_bad_rows(sorted(bad), len(table), "logged")
    return dict(reversed(ratings.items())), sorted(skipped)


def _is_replaced_by(new: Feedback, stored: Assessment) -> bool:
    """Whether an assessment in the same place is one that ``new`` replaces."""
    before = stored.metadata or {}
    return (
        stored.valid is not False
        # A label given after its author saw the verdict never replaces one given blind.
        and has_mark(stored, AFTER_VERDICT_KEY) == has_mark(new, AFTER_VERDICT_KEY)
        and all(before.get(key) == value for key, value in (new.metadata or {}).items())
    )
