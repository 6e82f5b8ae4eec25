"""Labels: tables of ratings written as MLflow feedback, and human labels and decisions read.

A label is MLflow feedback from a HUMAN source under the judge's name, wherever it was given:
by `workbench.log_labels`, by `mlflow.log_feedback`, in a panel or in MLflow's own UI. Recorded
verdicts of a judge (`workbench.log_verdicts`) differ from labels in their source only.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from mlflow.entities import Assessment, Feedback, Trace, TraceInfo

from workbench.formatting import html_table
from workbench.scale import Scale, is_missing
from workbench.store.assessments import (
    DECISION_KEY,
    RUBRIC_KEY,
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

# -- tables of ratings ----------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """What became of a table of labels or verdicts.

    Attributes
    ----------
    name
        The name under which they are stored.
    written, present
        Numbers of rows written now, and of rows that were in the store already.
    skipped
        Rows that hold nothing to write: ``row`` (counted from 0), ``reason``.
    replaced
        Number of traces on which another rating by the same source was replaced.
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
        skipped = html_table(self.skipped, index=False, max_rows=10)
        return html_table(counts) + skipped * bool(len(self.skipped))


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
        DataFrame, or CSV, JSONL or Parquet file, with a ``trace_id`` column, such as
        ``table.assign(trace_id=imported.trace_ids)``.
    name
        The judge's name, exactly.
    annotator
        Who gave the labels: the name itself. Labels of several people take several calls.
    value, rationale
        Columns with the labels and the annotator's reasons. Values are kept as given, also
        abstentions such as ``N/A``; rows without one are skipped and listed.

    Returns
    -------
    Logged
        Counts of labels written, and of those there already: a call that was killed, or is
        repeated, writes what is missing and nothing twice. A label that was changed since is
        changed back.

    Warns
    -----
    UserWarning
        When ``annotator`` is also the name of a column other than ``value``: it is not read.

    Raises
    ------
    ArgumentError, StoreError
        For missing columns, and for trace ids that the store does not hold.
    """
    frame = read_table(table)
    if annotator != value and annotator in frame.columns:
        warnings.warn(
            f"annotator={annotator!r} is the annotator's name itself; the column of this name is "
            "not read. Where it names who gave each label, log each person's rows by themselves: "
            f"for who, rows in table.groupby({annotator!r}): log_labels(rows, annotator=who, ...).",
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

    Rows by one source on one trace follow one another; those that already end what it has stored
    are present. Nothing is written where a column is missing, a value cannot be stored or does
    not lie on ``scale``, or a trace is unknown.
    """
    check_text("name", name)
    check_text("source", source_id)
    rows, skipped = _read_ratings(read_table(table), value, rationale, scale)
    source: dict[str, Any] = {"source_type": source_type, "source_id": source_id}
    given: dict[str, list[Feedback]] = {}
    for trace_id, rating, because in rows:
        feedback = make_feedback(
            trace_id, name, rating, rationale=because, metadata=metadata, **source
        )
        given.setdefault(trace_id, []).append(feedback)
    start = now_ms()
    new: list[Feedback] = []
    replaced = 0
    for trace in fetch_traces(list(given), spans=False):
        feedbacks = given[trace.info.trace_id]
        stored = [a for a in trace.info.assessments if _is_replaced_by(feedbacks[0], a)]
        stored.sort(key=lambda a: (a.create_time_ms or 0, a.assessment_id or ""))
        missing = _not_stored(feedbacks, stored, trace.info, start)
        new += missing
        replaced += bool(missing and stored and signature(stored[-1]) != signature(missing[-1]))
    written = log_assessments(new, progress=progress, desc=f"{name} by {source_id}")
    listed = pd.DataFrame(skipped, columns=["row", "reason"])
    return Logged(name, written, len(rows) - written, listed, replaced)


def _read_ratings(
    table: pd.DataFrame, value: str, rationale: str | None, scale: Scale | None
) -> tuple[list[tuple[str, Any, str | None]], list[tuple[int, str]]]:
    """Return (trace id, value, rationale) of each row that has them, and the rows that do not."""
    require_columns(table, "trace_id", ["trace_id"])
    require_columns(table, "value", [value])
    require_columns(table, "rationale", [] if rationale is None else [rationale])
    rows: list[tuple[str, Any, str | None]] = []
    skipped: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    reasons = [None] * len(table) if rationale is None else table[rationale].tolist()
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


def _is_replaced_by(new: Feedback, stored: Assessment) -> bool:
    """Whether a stored assessment is valid feedback that ``new`` would replace."""
    before, after = stored.metadata or {}, new.metadata or {}
    return (
        signature(stored)[:4] == signature(new)[:4]
        and stored.valid is not False
        and stored.feedback.error is None
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

    They get times after all that is stored, and ids that are not taken.
    """
    wanted = [next(same) for _, same in itertools.groupby(given, signature)]
    there = [said for said, _ in itertools.groupby(map(signature, stored))]
    said = [signature(feedback) for feedback in wanted]
    # What a call wrote before it was killed, or all of it, ends what is stored.
    overlap = max(k for k in range(len(wanted) + 1) if there[len(there) - k :] == said[:k])
    taken = {a.assessment_id for a in info.assessments}
    earliest = max([start, *((a.create_time_ms or 0) + 1 for a in stored)])
    for number, feedback in enumerate(wanted[overlap:]):
        if feedback.assessment_id in taken:
            feedback.assessment_id = None  # said before and changed since: a new one
        taken.add(feedback.assessment_id)
        feedback.create_time_ms = feedback.last_update_time_ms = earliest + number
    return wanted[overlap:]


# -- labels and decisions read --------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """One annotator's label of one trace, the value as it was given."""

    trace_id: str
    annotator: str
    value: Any
    rationale: str | None
    created_ms: int
    after_verdict: bool
    rubric_version: int | None = None  # None where it was not recorded
    assessment_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Decision:
    """What an adjudicator decided about one trace; the labels stay beside it."""

    trace_id: str
    by: str
    value: Any
    rationale: str | None
    created_ms: int
    after_verdict: bool = False
    rubric_version: int | None = None


def folded(name: str) -> str:
    """Return a person's name as it is compared: MLflow's page keeps names in small letters."""
    return str(name).strip().casefold()


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's: "Ben" in the notebook is "ben" in MLflow's page."""
    return folded(one) == folded(other)


def label_records(traces: Iterable[Trace], name: str) -> list[Label]:
    """Return the labels that count, at most one a trace and annotator, in order of the traces.

    Only feedback under exactly ``name`` counts, unless it was overridden or holds no value. Of
    several by one annotator the latest counts, except that a label given after its author saw the
    verdict never replaces one given blind, not even by overriding it.
    """
    return _records(traces, name, lambda label: (not label.after_verdict, label.created_ms))


def latest_records(traces: Iterable[Trace], name: str) -> list[Label]:
    """Return each annotator's latest label of each trace, given blind or after the verdict."""
    return _records(traces, name, lambda label: label.created_ms)


def _records(traces: Iterable[Trace], name: str, rank: Callable[[Label], Any]) -> list[Label]:
    """Return, of each annotator's labels of a trace that count, the one of highest rank."""
    records: list[Label] = []
    for trace in traces:
        given, _ = _labels_and_decisions(trace, name)
        labels = [
            Label(annotator=_annotator(one), assessment_id=one.assessment_id, **_said(trace, one))
            for one in given
            if _counts(one, given)
        ]
        labels.sort(key=lambda label: (rank(label), label.assessment_id))
        chosen = {label.annotator: label for label in labels}
        records += [label for _, label in sorted(chosen.items())]
    return records


def decision_records(traces: Iterable[Trace], name: str) -> list[Decision]:
    """Return the valid decisions, at most one a trace: the latest, whoever made it."""
    valid = [
        [(trace, one) for one in decision_feedback(trace, name) if one.valid is not False]
        for trace in traces
    ]
    return [Decision(by=_annotator(made[-1][1]), **_said(*made[-1])) for made in valid if made]


def _said(trace: Trace, given: Feedback) -> dict[str, Any]:
    """Return what labels and decisions have in common."""
    version = str((given.metadata or {}).get(RUBRIC_KEY, ""))
    return {
        "trace_id": trace.info.trace_id,
        "value": given.value,
        "rationale": given.rationale or None,
        "created_ms": int(given.create_time_ms or 0),
        "after_verdict": is_after_verdict(given),
        "rubric_version": int(version) if version.isdecimal() else None,
    }


def decision_feedback(trace: Trace, name: str) -> list[Feedback]:
    """Return all decisions about a trace, overridden ones too, the latest last."""
    return _labels_and_decisions(trace, name)[1]


def near_misses(traces: Iterable[Trace], name: str) -> dict[str, int]:
    """Return names that look like ``name``, and how much valid human feedback each has."""
    valid = [one for trace in traces for one in _human_feedback(trace) if one.valid is not False]
    counts = Counter(one.name for one in valid if one.name != name)
    wanted = _letters(name)
    return {
        other: count
        for other, count in counts.most_common()
        if difflib.SequenceMatcher(None, _letters(other), wanted).ratio() >= 0.75
    }


def _human_feedback(trace: Trace) -> list[Feedback]:
    return [
        one
        for one in trace.info.assessments
        if isinstance(one, Feedback) and one.source.source_type == "HUMAN"
    ]


def _labels_and_decisions(trace: Trace, name: str) -> tuple[list[Feedback], list[Feedback]]:
    """Return people's feedback under the name that holds a value, both kinds the latest last.

    A decision is marked as one, or overrides one, as MLflow's own page does.
    """
    labels: list[Feedback] = []
    decisions: list[Feedback] = []
    decided: set[str | None] = set()
    given = [one for one in _human_feedback(trace) if one.name == name]
    for one in sorted(given, key=lambda one: (one.create_time_ms or 0, one.assessment_id or "")):
        marked = str((one.metadata or {}).get(DECISION_KEY, "")).lower() == "true"
        if is_decision := marked or bool(one.overrides and one.overrides in decided):
            decided.add(one.assessment_id)
        if one.feedback.error is None and not is_missing(one.value):
            (decisions if is_decision else labels).append(one)
    return labels, decisions


def _counts(label: Feedback, given: Sequence[Feedback]) -> bool:
    if label.valid is not False:
        return True
    # Overridden: it still counts if it was given blind and changed after seeing the verdict.
    newer = [one for one in given if one.overrides and one.overrides == label.assessment_id]
    authors = {(_annotator(one), is_after_verdict(one)) for one in newer}
    return not is_after_verdict(label) and authors == {(_annotator(label), True)}


def _annotator(feedback: Feedback) -> str:
    return feedback.source.source_id or "default"


def _letters(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()
