"""Ratings as MLflow feedback: what one says, and whole tables of them written once.

Human labels and recorded verdicts of a judge are the same to the store; they differ in their
source. `workbench.log_labels` and `workbench.log_verdicts` call this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import pandas as pd
import requests
import tenacity
from mlflow.entities import Assessment, AssessmentSource, Feedback, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from tqdm.auto import tqdm

from workbench.errors import ArgumentError, StoreError
from workbench.formatting import html_table
from workbench.scale import Scale, is_missing
from workbench.store.tables import (
    plain_or_reason,
    raise_bad_rows,
    rating_problem,
    read_table,
    require_columns,
)
from workbench.store.traces import address, fetch_traces, store_message

_WRITE_BATCH = 50


# -- writing --------------------------------------------------------------------------------


def _is_passing(error: BaseException) -> bool:
    """Whether trying again may help: a locked database, a lost connection."""
    if isinstance(error, MlflowException):
        text = str(error).lower()
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or "database is locked" in text
    return isinstance(error, (ConnectionError, requests.ConnectionError))


retrying = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_passing),
    # MLflow itself waits 20 s for a lock, and retries what fails on the way to a server.
    stop=tenacity.stop_after_delay(90) | tenacity.stop_after_attempt(8),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    reraise=True,
)
"""Calls a function of MLflow's store again while the failure may pass."""


def _write(client: TracingClient, assessment: Assessment) -> bool:
    """Write one assessment; False if it was there already."""
    if assessment.trace_id is None:
        raise ArgumentError(f"Assessment {assessment.name!r} has no trace_id.")
    if assessment.assessment_id is None:
        # An id given here makes a repeated attempt fail where the first one did get through.
        assessment.assessment_id = f"a-{uuid.uuid4().hex}"
    try:
        retrying(client.log_assessment, assessment.trace_id, assessment)
    except Exception as error:
        if _is_written(client, assessment):
            return False
        raise StoreError(
            f"Assessment {assessment.name!r} of trace {assessment.trace_id} could not be "
            f"written to {address()}: {store_message(error)}. What was written before stays; "
            "run the call again to write the rest."
        ) from None
    return True


def _write_all(client: TracingClient, batch: Sequence[Assessment]) -> int:
    """Write several, together where the store can, and return how many were new."""
    for assessment in batch:
        # An id given here shows a second attempt what the first one has written.
        assessment.assessment_id = assessment.assessment_id or f"a-{uuid.uuid4().hex}"
    whole = all(assessment.trace_id is not None for assessment in batch)
    if whole and len(batch) > 1 and is_possible(client.store):
        try:
            with one_transaction(client.store):
                for assessment in batch:
                    client.log_assessment(assessment.trace_id, assessment)
        except Exception:
            # Nothing of it is written. One by one it is found out which cannot be.
            return sum(_write(client, assessment) for assessment in batch)
        return len(batch)
    return sum(_write(client, assessment) for assessment in batch)


def _is_written(client: TracingClient, assessment: Assessment) -> bool:
    try:
        client.get_assessment(assessment.trace_id, assessment.assessment_id)
    except Exception:
        return False
    return True


def log_assessments(
    items: Sequence[Assessment], *, progress: bool = True, desc: str = "assessments"
) -> int:
    """Write assessments, each with its ``trace_id``, and return how many were new.

    One whose ``assessment_id`` is there already is not written again. When interrupted, what
    is written stays.

    Raises
    ------
    StoreError
        When the store does not take one, after retries if the failure may pass.
    """
    client = TracingClient()
    new = 0
    shown = progress and len(items) > 100
    with tqdm(total=len(items), desc=desc, unit="", disable=not shown) as bar:
        for k in range(0, len(items), _WRITE_BATCH):
            batch = items[k : k + _WRITE_BATCH]
            new += _write_all(client, batch)
            bar.update(len(batch))
    return new


class AssessmentWriter:
    """Writes assessments in a thread of its own while the caller goes on.

    Leaving the ``with`` block, also by Ctrl-C, waits until all that was put is written. After
    a failure nothing more is written; `put` and `close` raise it as `StoreError`.

    >>> with AssessmentWriter() as writer:  # doctest: +SKIP
    ...     writer.put(feedback)
    >>> writer.written  # doctest: +SKIP
    1
    """

    def __init__(self) -> None:
        self.written = 0
        self._client = TracingClient()
        self._queue: queue.SimpleQueue[Assessment | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="assessments", daemon=True)
        self._closed = False
        self._thread.start()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch: list[Assessment] = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                # What has come while the last batch was written goes together.
                if len(batch) == _WRITE_BATCH or self._queue.empty():
                    break
                item = self._queue.get()
            ended = item is None
            if self._error is None:
                try:
                    self.written += _write_all(self._client, batch)
                except Exception as error:
                    self._error = error

    def _check(self) -> None:
        if isinstance(self._error, StoreError | ArgumentError):
            raise self._error
        if self._error is not None:
            raise StoreError(
                f"Assessments could not be written: {store_message(self._error)}"
            ) from None

    def put(self, assessment: Assessment) -> None:
        """Hand over an assessment; returns at once. Raises `StoreError` if writing has failed."""
        self._check()
        if self._closed:
            raise StoreError("This writer is closed.")
        self._queue.put(assessment)

    def close(self) -> None:
        """Wait until all is written, and raise what went wrong. May be called again."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._check()

    def __enter__(self) -> AssessmentWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StoreError:
            # The error that ended the block says more than what followed from it.
            if error is None:
                raise


_shared: ContextVar[tuple[Any, Any] | None] = ContextVar("workbench_transaction", default=None)

_installing = threading.Lock()


def is_possible(store: Any) -> bool:
    """Whether writes to this MLflow store can share a transaction."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return isinstance(store, SqlAlchemyStore) and hasattr(store, "ManagedSessionMaker")


@contextmanager
def one_transaction(store: Any) -> Iterator[None]:
    """Commit what this thread writes to ``store`` within the block at its end.

    When the block raises, nothing of it is written.
    """
    _install(store)
    with store.ManagedSessionMaker(read_only=False) as session:
        token = _shared.set((store, session))
        try:
            yield
        finally:
            _shared.reset(token)


def _install(store: Any) -> None:
    """Let the store ask for the shared session; without one it works as ever."""
    with _installing:
        make = store.ManagedSessionMaker
        if getattr(make, "of_workbench", False):
            return

        @contextmanager
        def maker(read_only: bool = True) -> Iterator[Any]:
            current = _shared.get()
            if current is not None and current[0] is store:
                yield current[1]
                return
            with make(read_only=read_only) as session:
                yield session

        maker.of_workbench = True  # type: ignore[attr-defined]  # a mark on a plain function
        store.ManagedSessionMaker = maker


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
        html = html_table(counts)
        if len(self.skipped):
            html += html_table(self.skipped, index=False, max_rows=10)
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


def now_ms() -> int:
    """The time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
