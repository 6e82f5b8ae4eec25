"""Assessments are written once each, together or not at all, whatever happens in between."""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource, Feedback
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.compat import one_transaction
from workbench.errors import StoreError
from workbench.store.assessments import (
    AssessmentWriter,
    log_assessments,
    make_feedback,
    signature,
    verdict_id,
)
from workbench.store.database import find_experiment_id
from workbench.store.importing import import_traces
from workbench.store.traces import fetch_traces


def rating(trace_id: str, value: Any = "good", **more: Any) -> Feedback:
    source = more.pop("source", AssessmentSource("HUMAN", "ana"))
    return make_feedback(trace_id, "quality", value, source, **more)


def without_id(trace_id: str) -> Feedback:
    """Feedback as MLflow makes it."""
    return Feedback(
        name="quality", value="good", trace_id=trace_id, source=AssessmentSource("HUMAN", "ana")
    )


@pytest.fixture
def ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": [f"q{i}" for i in range(60)], "o": "x"})
    return import_traces(table, inputs="q", outputs="o", progress=False).trace_ids


def count() -> int:
    return sum(len(trace.info.assessments) for trace in fetch_traces(spans=False))


def test_what_feedback_says_makes_its_id() -> None:
    """Equal feedback has equal ids; a part moved from one field to the next changes it."""
    one = rating("tr-1", "a")
    assert rating("tr-1", "a", metadata={"x": "y"}).assessment_id == one.assessment_id
    assert rating("tr-1", "a", rationale="").assessment_id == one.assessment_id
    different = [one, *(rating("tr-1", value) for value in ("b", ["a"], 1, True))]
    different += [rating("tr-1", "a", rationale="b"), rating("tr-2", "a")]
    assert len({feedback.assessment_id for feedback in different}) == len(different)
    assert signature(rating("tr-1", 4)) == signature(rating("tr-1", 4.0))


def test_a_transaction_is_seen_at_its_end_or_never(ids: list[str]) -> None:
    """Also when it is Ctrl-C that ends it; the next write is by itself, and the store as it was."""
    client = TracingClient()
    maker = client.store.ManagedSessionMaker
    with one_transaction(client.store), ThreadPoolExecutor() as other:
        for trace_id in ids[:5]:
            client.log_assessment(trace_id, rating(trace_id))
        assert other.submit(count).result() == 0
    assert count() == 5

    def write(error: type[BaseException]) -> None:
        with one_transaction(client.store):
            client.log_assessment(ids[5], rating(ids[5]))
            raise error("stop")

    for error in (ValueError, KeyboardInterrupt):
        # MLflow makes its own exception of any other; Ctrl-C stays what it is.
        with pytest.raises((error, MlflowException), match="stop"):
            write(error)
    assert count() == 5
    client.log_assessment(ids[5], rating(ids[5]))
    assert count() == 6
    assert client.store.ManagedSessionMaker is maker


def test_many_are_written_once(ids: list[str]) -> None:
    """More than a batch holds, and a second time none of them."""
    ratings = [without_id(i) for i in ids]
    assert log_assessments(ratings, progress=False) == 60
    assert log_assessments(ratings, progress=False) == 0
    assert count() == 60


def test_one_that_cannot_be_written_does_not_take_others_along(ids: list[str]) -> None:
    """Those before it in its batch are written, and the error names it."""
    ratings = [*map(rating, ids[:3]), rating("tr-gone"), *map(rating, ids[3:6])]
    with pytest.raises(StoreError, match="tr-gone"):
        log_assessments(ratings, progress=False)
    assert count() == 3
    assert log_assessments([r for r in ratings if r.trace_id != "tr-gone"]) == 3


def test_two_writers_leave_one_verdict_of_a_version_on_a_trace(ids: list[str]) -> None:
    """The first that arrives counts; a failure keeps no verdict out, nor does an older verdict."""

    def verdicts(value: str, failed: bool = False) -> list[Feedback]:
        made = []
        for trace in fetch_traces(spans=False):
            one = rating(trace.info.trace_id, value, source=AssessmentSource("LLM_JUDGE", "m"))
            one.assessment_id = verdict_id(trace.info, "quality", "f1", failed=failed)
            made.append(one)
        return made

    assert log_assessments(verdicts("no answer", failed=True)) == 60
    both = [verdicts("good"), verdicts("bad")]
    with ThreadPoolExecutor() as threads:
        assert sum(threads.map(log_assessments, both)) == 60
    assert count() == 120
    assert log_assessments(verdicts("fair")) == 60


def test_passing_failures_are_retried_and_nothing_is_doubled(
    ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked database and an answer that got lost are tried again; other errors are not."""
    log = TracingClient.log_assessment
    before: list[Exception] = [MlflowException("(sqlite3.OperationalError) database is locked")] * 2
    after: list[Exception] = [ConnectionError("connection reset")]

    def failing(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        if before:
            raise before.pop()
        log(self, trace_id, assessment)
        if after:
            raise after.pop()

    monkeypatch.setattr(TracingClient, "log_assessment", failing)
    log_assessments([without_id(ids[0])])
    assert (before, after, count()) == ([], [], 1)
    before.append(MlflowException("no such judge"))
    with pytest.raises(StoreError, match=r"'quality' of trace .*no such.*run the same call again"):
        log_assessments([rating(ids[1])])


def test_the_writer_keeps_what_was_put_before_an_interrupt(ids: list[str]) -> None:
    """Ctrl-C ends the block, but not before all that was put is written."""

    def put() -> None:
        with AssessmentWriter() as writer:
            for number, i in enumerate(ids):
                if number == 30:
                    raise KeyboardInterrupt
                writer.put(rating(i))

    with pytest.raises(KeyboardInterrupt):
        put()
    assert count() == 30


def test_the_writer_raises_a_failure(ids: list[str]) -> None:
    """But does not hide the block's own error by it."""

    def put(error: type[Exception] | None = None) -> None:
        with AssessmentWriter() as writer:
            writer.put(rating("tr-gone"))
            if error:
                raise error

    with pytest.raises(StoreError, match="tr-gone"):
        put()
    with pytest.raises(ZeroDivisionError):
        put(ZeroDivisionError)


def test_credentials_of_the_store_are_in_no_message(
    ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its password nor what its driver repeats of it, also not in the traceback."""
    secret = "postgresql://me:pw-4711@db.example/mlflow"

    def failing(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        raise MlflowException(f"cannot reach {secret} with pw-4711")

    def put() -> None:
        with AssessmentWriter() as writer:
            writer.put(rating(ids[0]))

    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: secret)
    monkeypatch.setattr(TracingClient, "log_assessment", failing)
    for step in (
        lambda: find_experiment_id("gone", create=False),
        lambda: fetch_traces(["tr-gone"]),
        lambda: log_assessments([rating(ids[0])]),
        put,
    ):
        with pytest.raises(StoreError, match=r"postgresql://db\.example/mlflow") as caught:
            step()
        assert "4711" not in "".join(traceback.format_exception(caught.value))
