"""Assessments: what identifies one, and the one writer for labels, verdicts and expectations."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from mlflow.entities import Assessment, AssessmentSource, Feedback, TraceInfo
from mlflow.tracing.client import TracingClient

from workbench.compat import has_transactions, one_transaction
from workbench.errors import StoreError
from workbench.formatting import bar
from workbench.store.database import not_written, retrying
from workbench.store.tables import digest

AFTER_VERDICT_KEY: Final = "workbench.after_verdict"
"""Metadata key, ``"true"`` on a label whose author had seen the judge's verdict."""

RUBRIC_KEY: Final = "workbench.rubric_version"
"""Metadata key: the version of the rubric under which a label or decision was made, as digits."""

DECISION_KEY: Final = "workbench.decision"
"""Metadata key, ``"true"`` on the decision of an adjudicator, which is no annotator's label."""

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
    """Return the id of a judge version's next verdict on a trace, whatever the verdict is.

    Processes that assess the same traces at once get the same ids, so they leave one verdict a
    trace: the first that arrives. Failures have ids of their own, since they must not keep out a
    verdict. Ids that the trace has already are passed over.
    """
    taken = {assessment.assessment_id for assessment in info.assessments}
    key = ("failure" if failed else "verdict", info.trace_id, name, fingerprint)
    return next(i for n in itertools.count() if (i := assessment_id(*key, n)) not in taken)


def signature(assessment: Assessment) -> tuple[str, str, str, str, str, str]:
    """Return kind, name, source type, source id, value and rationale of an assessment.

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


def in_order(assessments: Sequence[Assessment]) -> list[Assessment]:
    """Return assessments in the order in which they were given, whatever that of their arrival."""
    return sorted(assessments, key=lambda one: (one.create_time_ms or 0, one.assessment_id or ""))


def has_mark(assessment: Assessment, key: str) -> bool:
    """Whether the metadata has ``"true"`` under a key such as `AFTER_VERDICT_KEY`."""
    return str((assessment.metadata or {}).get(key, "")).lower() == "true"


def log_assessments(
    items: Sequence[Assessment], *, progress: bool = True, desc: str = "assessments"
) -> int:
    """Write assessments, each with its ``trace_id``, and return how many were new.

    One whose ``assessment_id`` is there already is not written again. A `StoreError` says which
    one the store does not take, after retries where the failure may pass; what is written stays.
    """
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
    if len(batch) > 1 and has_transactions(client.store):
        # If one fails, nothing is written, and writing one by one shows which.
        with suppress(Exception), one_transaction(client.store):
            for assessment in batch:
                client.log_assessment(assessment.trace_id, assessment)
            return len(batch)
    return sum(_write(client, assessment) for assessment in batch)


def _write(client: TracingClient, assessment: Assessment) -> bool:
    """Write one assessment; False if it was there already."""
    try:
        retrying(client.log_assessment, assessment.trace_id, assessment)
    except Exception as error:
        with suppress(Exception):
            client.get_assessment(assessment.trace_id, assessment.assessment_id)
            return False
        what = f"Assessment {assessment.name!r} of trace {assessment.trace_id}"
        raise not_written(what, error) from None
    return True


class AssessmentWriter:
    """Writes assessments in batches as they come.

    Leaving the ``with`` block, also by Ctrl-C, writes those that are left. What the store does
    not take is a `StoreError`, unless another error ends the block, which says more.
    """

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
        with suppress(*([StoreError] if error else [])):
            self._write()
