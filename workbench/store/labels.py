"""Labels: tables of ratings written as MLflow feedback, and human labels and decisions read.

A label is MLflow feedback from a HUMAN source under the judge's name, wherever it was given:
by `workbench.log_labels`, by `mlflow.log_feedback`, in a panel or in MLflow's own UI. Recorded
verdicts of a judge (`workbench.log_verdicts`) differ from labels in their source only.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd
from mlflow.entities import Assessment, AssessmentSource, Feedback, Trace

from workbench.formatting import counted, html_result
from workbench.store.assessments import (
    AFTER_VERDICT_KEY,
    DECISION_KEY,
    RUBRIC_KEY,
    has_mark,
    in_order,
    log_assessments,
    make_feedback,
    now_ms,
    signature,
)
from workbench.store.files import read_table
from workbench.store.tables import (
    check_text,
    raise_bad_rows,
    read_rating,
    require_columns,
    warn_of_name,
)
from workbench.store.traces import fetch_traces
from workbench.vocabulary import fold, is_missing, no_ratings, normal_form, revealed, scalar


@dataclass(frozen=True)
class Logged:
    """What became of a table of labels or verdicts.

    ``written`` rows were written now under ``name``, of which ``replaced`` replaced another rating
    by the same source; ``present`` ones were there already; ``skipped`` lists the ``row`` (counted
    from 0) and ``reason`` of those that were not to be written.
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
        return html_result(self, self.skipped)


def log_labels(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    name: str,
    annotator: str,
    value: str,
    rationale: str | None = None,
    encoding: str | None = None,
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
        Who gave the labels: the name itself. Labels of several people take several calls, and
        one that is also the name of a column other than ``value`` is warned of.
    value, rationale
        Columns with the labels and the annotator's reasons. Values are kept as given, also
        abstentions such as ``N/A``; rows without one are skipped and listed, and of several rows
        on one trace all but the last.
    encoding
        Of a file that is not UTF-8, such as ``cp1252``.

    Returns
    -------
    Logged
        A call that was killed, or is repeated, writes what is missing and nothing twice. A label
        that was changed since is changed back. Missing columns and bad values are an error before
        anything is written, and so are trace ids that the store does not hold (`StoreError`).
    """
    frame = read_table(table, encoding)
    warn_of_name(frame, annotator, str(value))
    source = AssessmentSource("HUMAN", annotator)
    return log_feedback_table(
        frame, source, name=name, value=value, rationale=rationale, progress=progress
    )


def log_feedback_table(
    table: pd.DataFrame | str | os.PathLike[str],
    source: AssessmentSource,
    *,
    name: str,
    value: str,
    rationale: str | None = None,
    metadata: dict[str, str] | None = None,
    progress: bool = True,
) -> Logged:
    """Write a table of ratings by one source as feedback, as `log_labels` does."""
    check_text("name", name)
    check_text("source", source.source_id)
    ratings, skipped = _read_ratings(read_table(table), value, rationale)
    start = now_ms()
    new: list[Feedback] = []
    replaced = 0
    for trace in fetch_traces(list(ratings), spans=False):
        info = trace.info
        rating, why = ratings[info.trace_id]
        made = make_feedback(info.trace_id, name, rating, source, why, metadata=metadata)
        stored = [a for a in in_order(info.assessments) if _is_replaced_by(made, a)]
        if stored and signature(stored[-1]) == signature(made):
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
    return Logged(name, written, len(ratings) - written, listed, replaced)


def _read_ratings(
    table: pd.DataFrame, value: str, rationale: str | None
) -> tuple[dict[str, tuple[Any, str | None]], list[tuple[int, str]]]:
    """Return (value, rationale) by trace id, and the rows that are not to be written."""
    roles = {"trace_id": "trace_id", "value": str(value)}
    roles |= {} if rationale is None else {"rationale": str(rationale)}
    for role, column in roles.items():
        require_columns(table, role, [column])
    ratings: dict[str, tuple[Any, str | None]] = {}
    skipped: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    columns = [table[column].tolist() for column in roles.values()]
    words = no_ratings({fold(raw) for raw in columns[1]})
    for row, (trace_id, raw, *why) in reversed(list(enumerate(zip(*columns, strict=True)))):
        if is_missing(trace_id):
            skipped.append((row, "without a trace_id"))
        elif is_missing(raw) or fold(raw) in words:
            skipped.append((row, "without a value"))
        elif str(trace_id) in ratings:
            skipped.append((row, "followed by another on the same trace"))
        else:
            try:
                ratings[str(trace_id)] = read_rating(scalar(raw), *why)
            except ValueError as error:
                bad.append((row, str(error)))
    raise_bad_rows(sorted(bad), len(table), "logged")
    return dict(reversed(ratings.items())), sorted(skipped)


def _is_replaced_by(new: Feedback, stored: Assessment) -> bool:
    """Whether a stored assessment is valid feedback that ``new`` would replace."""
    before = stored.metadata or {}
    return (
        signature(stored)[:4] == signature(new)[:4]
        and stored.valid is not False
        and stored.feedback.error is None
        # A decision of the same person is no label of theirs, and a label given after its author
        # saw the verdict never replaces one given blind.
        and all(has_mark(stored, k) == has_mark(new, k) for k in (DECISION_KEY, AFTER_VERDICT_KEY))
        and all(before.get(key) == value for key, value in (new.metadata or {}).items())
    )


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


class Decision(Label):
    """What an adjudicator decided about one trace; the labels stay beside it."""

    @property
    def by(self) -> str:
        """Who decided."""
        return self.annotator


Kind = TypeVar("Kind", bound=Label)


def folded(name: str) -> str:
    """Return a person's name as it is compared: without case, in one form of Unicode."""
    return normal_form(str(name)).casefold()


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's: "Ben" in the notebook is "ben" in MLflow's page."""
    return folded(one) == folded(other)


def label_records(traces: Iterable[Trace], name: str, *, latest: bool = False) -> list[Label]:
    """Return the labels that count, at most one a trace and annotator, in order of the traces.

    Only feedback under exactly ``name`` counts, unless it was overridden or holds no value. Of
    several by one annotator the latest counts, except that a label given after its author saw the
    verdict never replaces one given blind, not even by overriding it; with ``latest`` it does.
    Writings of a name that are one person's give one annotator, by the most frequent of them.
    """
    records: list[Label] = []
    for trace in traces:
        given = [one for one, decides in _given(trace, name) if not decides]
        labels = [_record(Label, trace, one) for one in given if _counts(one, given)]
        if not latest:
            labels.sort(key=lambda label: not label.after_verdict)  # of equals the later stays last
        chosen = {folded(label.annotator): label for label in labels}
        records += [label for _, label in sorted(chosen.items())]
    writings = sorted(Counter(label.annotator for label in records).items())
    names = {folded(name): name for name, _ in sorted(writings, key=lambda each: each[1])}
    return [replace(label, annotator=names[folded(label.annotator)]) for label in records]


def decision_records(traces: Iterable[Trace], name: str) -> list[Decision]:
    """Return the valid decisions, at most one a trace: the latest, whoever made it."""
    records = []
    for trace in traces:
        valid = [one for one in decision_feedback(trace, name) if one.valid is not False]
        records += [_record(Decision, trace, one) for one in valid[-1:]]
    return records


def decision_feedback(trace: Trace, name: str) -> list[Feedback]:
    """Return all decisions about a trace, overridden ones too, the latest last."""
    return [one for one, decides in _given(trace, name) if decides]


def near_misses(traces: Iterable[Trace], name: str) -> list[str]:
    """Return what to say of valid labels under names that only look like ``name``."""

    def letters(text: str) -> str:
        return re.sub(r"[\s_\-]+", "", folded(text))

    valid = [one for trace in traces for one in _human(trace) if one.valid is not False]
    counts = Counter(one.name for one in valid if one.name != name)
    return [
        f"{counted(count, 'label')} {'is' if count == 1 else 'are'} stored under "
        f"'{revealed(other)}', which is not '{revealed(name)}', and not counted. "
        f"Name the judge so, or log them again: workbench.log_labels(table, name={name!r}, ...)."
        for other, count in counts.most_common()
        if difflib.SequenceMatcher(None, letters(other), letters(name)).ratio() >= 0.75
    ]


def other_kinds(traces: Iterable[Trace], name: str) -> list[str]:
    """Return what to say of assessments under the name that are no labels."""
    under = [one for trace in traces for one in trace.info.assessments if one.name == name]
    counts = Counter(map(_why_no_label, under))
    return [
        f"{count} of {len(under)} assessments under {name!r}: each {why}."
        for why, count in counts.items()
        if why
    ]


def _why_no_label(one: Assessment) -> str:
    if one.expectation is not None:
        return "is an expectation, which says what the application ought to answer"
    if one.source.source_type == "CODE":
        return (
            "has the source CODE, as mlflow.log_feedback gives without a source; a label needs "
            "source=AssessmentSource(source_type='HUMAN', source_id='who')"
        )
    empty = one.feedback.error is not None or is_missing(one.feedback.value)
    is_empty_label = one.source.source_type == "HUMAN" and empty
    return "is by a person and holds an error, or no value" if is_empty_label else ""


def _human(trace: Trace) -> list[Feedback]:
    return [
        one
        for one in trace.info.assessments
        if isinstance(one, Feedback) and one.source.source_type == "HUMAN"
    ]


def _given(trace: Trace, name: str) -> Iterator[tuple[Feedback, bool]]:
    """Yield people's feedback under the name that holds a value, the latest last, and whether it
    is a decision: it is marked as one, or overrides one, as MLflow's own page does."""
    decided: set[str | None] = set()
    for one in in_order([one for one in _human(trace) if one.name == name]):
        decides = has_mark(one, DECISION_KEY) or bool(one.overrides and one.overrides in decided)
        if decides:
            decided.add(one.assessment_id)
        if one.feedback.error is None and not is_missing(one.value):
            yield one, decides


def _record(kind: type[Kind], trace: Trace, given: Feedback) -> Kind:
    version = str((given.metadata or {}).get(RUBRIC_KEY, ""))
    # What overrides a verdict in MLflow's own page is a label given after a look at it.
    others = [one for one in trace.info.assessments if one.source.source_type != "HUMAN"]
    overrides_verdict = given.overrides in {one.assessment_id for one in others}
    return kind(
        trace_id=trace.info.trace_id,
        annotator=given.source.source_id or "default",
        value=given.value,
        rationale=given.rationale or None,
        created_ms=int(given.create_time_ms or 0),
        after_verdict=has_mark(given, AFTER_VERDICT_KEY) or overrides_verdict,
        rubric_version=int(version) if version.isdecimal() else None,
        assessment_id=given.assessment_id,
    )


def _counts(label: Feedback, given: Sequence[Feedback]) -> bool:
    """Whether a label is valid, or was given blind and overridden by its author after seeing the
    verdict."""
    newer = [one for one in given if one.overrides and one.overrides == label.assessment_id]
    changes = {(one.source.source_id, has_mark(one, AFTER_VERDICT_KEY)) for one in newer}
    blind = not has_mark(label, AFTER_VERDICT_KEY)
    return label.valid is not False or (blind and changes == {(label.source.source_id, True)})
