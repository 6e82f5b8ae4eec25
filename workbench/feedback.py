"""Ratings as MLflow feedback: what one says, and whole tables of them written once.

Human labels and recorded verdicts of a judge are the same to the store; they differ in their
source. `workbench.log_labels` and `workbench.log_verdicts` call this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from mlflow.entities import Assessment, AssessmentSource, Feedback, TraceInfo

from workbench.errors import ArgumentError, ScaleError
from workbench.scale import Scale, is_missing
from workbench.store import fetch_traces, log_assessments
from workbench.tables import (
    has_lone_surrogate,
    plain_or_reason,
    raise_bad_rows,
    read_table,
    require_columns,
)

AFTER_VERDICT_KEY: Final = "workbench.after_verdict"
"""Metadata key, ``"true"`` on a label whose author had seen the judge's verdict."""

RUBRIC_KEY: Final = "workbench.rubric_version"
"""Metadata key: the version of the rubric under which a label was made, as digits."""

DECISION_KEY: Final = "workbench.decision"
"""Metadata key, ``"true"`` on the decision of an adjudicator, which is no annotator's label."""


def make_feedback(
    trace_id: str,
    name: str,
    value: Any,
    *,
    source_type: str,
    source_id: str,
    rationale: str | None = None,
    metadata: dict[str, str] | None = None,
    create_time_ms: int | None = None,
    occurrence: int = 0,
) -> Feedback:
    """Feedback whose id follows from what it says, so that writing it twice leaves one.

    ``occurrence`` counts from 0 how often the same was said before, with another word between.
    """
    feedback = Feedback(
        name=name,
        value=value,
        source=AssessmentSource(source_type=source_type, source_id=source_id),
        trace_id=trace_id,
        rationale=rationale or None,
        metadata=metadata,
        create_time_ms=create_time_ms,
        last_update_time_ms=create_time_ms,
    )
    feedback.assessment_id = content_id(feedback, occurrence)
    return feedback


def content_id(assessment: Assessment, occurrence: int = 0) -> str:
    """An assessment id made from the trace, `signature` and how often it was said before."""
    again = [occurrence] if occurrence else []
    said = json.dumps([assessment.trace_id, *signature(assessment), *again])
    return f"a-{hashlib.sha256(said.encode()).hexdigest()[:32]}"


def signature(assessment: Assessment) -> tuple[str, str, str, str, str, str]:
    """Kind, name, source type, source id, value and rationale: what an assessment says.

    Numbers count by their size, since a server gives 4 back as 4.0.
    """
    holder = assessment.feedback or assessment.expectation
    value = holder.value if holder is not None else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return (
        type(assessment).__name__,
        assessment.name,
        str(assessment.source.source_type),
        assessment.source.source_id or "",
        json.dumps(value, sort_keys=True, default=str),
        assessment.rationale or "",
    )


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
        Traces on which what was written now takes the place of another word of the same source.
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
        html = str(counts.to_html())
        if len(self.skipped):
            html += str(self.skipped.to_html(index=False, max_rows=10))
        return html


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
    """Write a table of ratings as feedback, one a row, none twice.

    Parameters
    ----------
    table
        DataFrame or file (see `read_table`) with a ``trace_id`` column.
    name
        Name of the feedback; the judge's name.
    source_type, source_id
        ``"HUMAN"`` or ``"LLM_JUDGE"``, and who.
    value, rationale
        Columns. A row without a value is skipped and listed; the value is kept as given.
    metadata
        Put on each assessment.
    scale
        When given, all values must lie on it.

    Returns
    -------
    Logged
        A row is *present*, and not written, when it says what the source's latest valid
        feedback under that name says, value and rationale; so repeating a call writes nothing,
        and a value that was changed in between is changed back. Several rows by one source on
        one trace are one word after the other, the last being the latest; those that already
        end what is stored are present, so a call that was killed can be run again.

    Raises
    ------
    ArgumentError
        For missing columns and empty names.
    TableError
        For values that cannot be stored or lie off the scale; nothing is written.
    StoreError
        For unknown trace ids (nothing is written), or when the store fails midway.
    """
    for argument, given in (("name", name), ("source", source_id)):
        if not isinstance(given, str) or not given.strip():
            raise ArgumentError(f"{argument}={given!r} must be a non-empty text.")
    frame = read_table(table)
    require_columns(frame, "trace_id", ["trace_id"])
    require_columns(frame, "value", [value])
    if rationale is not None:
        require_columns(frame, "rationale", [rationale])

    rows: list[tuple[str, Any, str | None]] = []
    skipped: list[tuple[int, str]] = []
    bad: list[tuple[int, str]] = []
    reasons_given = frame[rationale].tolist() if rationale is not None else [None] * len(frame)
    cells = zip(frame["trace_id"].tolist(), frame[value].tolist(), reasons_given, strict=True)
    for row, (trace_id, raw, because) in enumerate(cells):
        if is_missing(trace_id):
            skipped.append((row, "without a trace_id"))
        elif is_missing(raw):
            skipped.append((row, "without a value"))
        elif problem := rating_problem(raw, because, scale):
            bad.append((row, problem))
        else:
            text = None if is_missing(because) else str(because)
            rows.append((str(trace_id), plain_or_reason(raw)[0], text))
    raise_bad_rows(bad, len(frame), "logged")

    infos = {t.info.trace_id: t.info for t in fetch_traces([r[0] for r in rows], spans=False)}
    by_trace: dict[str, list[tuple[Any, str | None]]] = {}
    for trace_id, rating, text in rows:
        by_trace.setdefault(trace_id, []).append((rating, text))
    start = now_ms()
    new: list[Assessment] = []
    replaced = 0
    for trace_id, ratings in by_trace.items():
        words = [
            make_feedback(
                trace_id,
                name,
                rating,
                source_type=source_type,
                source_id=source_id,
                rationale=text,
                metadata=metadata,
            )
            for rating, text in ratings
        ]
        earlier = _words_like(words[0], infos[trace_id])
        unsaid = _unsaid(words, earlier, infos[trace_id], start)
        replaced += bool(unsaid and earlier and signature(earlier[-1]) != signature(unsaid[-1]))
        new += unsaid
    written = log_assessments(new, progress=progress, desc=f"{name} by {source_id}")
    listed = pd.DataFrame(skipped, columns=["row", "reason"])
    return Logged(name, written, len(rows) - written, listed, replaced)


def _words_like(word: Feedback, info: TraceInfo) -> list[Assessment]:
    """What the same source validly said on the trace, in the same way, the latest last."""
    return sorted(
        (a for a in info.assessments if _is_of_the_kind_of(a, word)),
        key=lambda a: (a.create_time_ms or 0, a.assessment_id or ""),
    )


def _unsaid(
    words: Sequence[Feedback], stored: Sequence[Assessment], info: TraceInfo, start: int
) -> list[Feedback]:
    """Those of one source's successive words on a trace that must still be written.

    They get times after all that the source has said there, and ids of their own.
    """
    wanted = _without_repeats(words)
    there = [signature(a) for a in _without_repeats(stored)]
    said = [signature(word) for word in wanted]
    # What a call has written before it was killed, or all of it, ends what is stored.
    overlap = max(k for k in range(len(said) + 1) if there[len(there) - k :] == said[:k])
    times = Counter(signature(a) for a in info.assessments)
    ids = {a.assessment_id for a in info.assessments}
    earliest = max([start, *((a.create_time_ms or 0) + 1 for a in stored)])
    for number, word in enumerate(wanted[overlap:]):
        occurrence = times[signature(word)]
        # An id is taken as well by what was edited since and says something else now.
        while (key := content_id(word, occurrence)) in ids:
            occurrence += 1
        word.assessment_id = key
        ids.add(key)
        times[signature(word)] += 1
        word.create_time_ms = word.last_update_time_ms = earliest + number
    return wanted[overlap:]


def _is_of_the_kind_of(stored: Assessment, word: Feedback) -> bool:
    """Whether what is stored is a valid word of the same source, given in the same way."""
    given, new = stored.metadata or {}, word.metadata or {}
    return (
        isinstance(stored, Feedback)
        and stored.name == word.name
        and stored.valid is not False
        and stored.feedback.error is None
        # A decision of the same person is no label of theirs.
        and given.get(DECISION_KEY) == new.get(DECISION_KEY)
        and str(stored.source.source_type) == str(word.source.source_type)
        and stored.source.source_id == word.source.source_id
        # A label given after its author saw the verdict never replaces one given blind.
        and _is_after_verdict(given) == _is_after_verdict(new)
        and all(given.get(key) == value for key, value in new.items())
    )


def _is_after_verdict(metadata: Mapping[str, str]) -> bool:
    return str(metadata.get(AFTER_VERDICT_KEY, "")).lower() == "true"


def _without_repeats(words: Iterable[Any]) -> list[Any]:
    """Of equal words in a row the first."""
    kept: list[Any] = []
    for word in words:
        if not kept or signature(kept[-1]) != signature(word):
            kept.append(word)
    return kept


def rating_problem(raw: Any, rationale: Any, scale: Scale | None = None) -> str | None:
    """Why a rating cannot be stored; None where it can."""
    value, reason = plain_or_reason(raw)
    if reason:
        return f"the value is {reason}"
    for what, text in (("value", value), ("rationale", rationale)):
        if isinstance(text, str) and has_lone_surrogate(text):
            return f"the {what} holds half of a surrogate pair, which MLflow cannot store here"
    if scale is not None:
        try:
            scale.normalise(value)
        except ScaleError as error:
            return str(error)
    return None


def now_ms() -> int:
    """The time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
