"""Assessments are written once each, together or not at all, whatever happens in between."""

from __future__ import annotations

import sqlite3
import threading
import time
import traceback
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource, Feedback
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.compat import has_transactions, one_transaction
from workbench.errors import ArgumentError, StoreError
from workbench.store.assessments import (
    AssessmentWriter,
    content_id,
    log_assessments,
    make_feedback,
    signature,
    verdict_id,
)
from workbench.store.importing import import_traces
from workbench.store.traces import fetch_traces, find_experiment_id


def imported(count: int) -> list[str]:
    table = pd.DataFrame({"q": [f"q{i}" for i in range(count)], "o": "x"})
    return import_traces(table, inputs="q", outputs="o", progress=False).trace_ids


def rating(trace_id: str, value: Any = "good", source: str = "ana") -> Feedback:
    return make_feedback(trace_id, "quality", value, source_type="HUMAN", source_id=source)


def plain(trace_id: str | None) -> Feedback:
    """Feedback without an id, as MLflow makes it."""
    return Feedback(
        name="quality", value="good", trace_id=trace_id, source=AssessmentSource("HUMAN", "ana")
    )


@pytest.fixture
def ids(store: str) -> list[str]:
    return imported(120)


def count() -> int:
    return sum(len(trace.info.assessments) for trace in fetch_traces(spans=False))


def test_what_feedback_says_makes_its_id() -> None:
    """Equal feedback has equal ids; a part moved from one field to the next changes it."""

    def make(value: Any, **more: Any) -> Any:
        return make_feedback("tr-1", "q", value, source_type="HUMAN", source_id="ana", **more)

    assert make("a").assessment_id == make("a", metadata={"x": "y"}).assessment_id
    assert make("a", rationale="").assessment_id == make("a").assessment_id
    different = [
        make("a"),
        make("b"),
        make("a", rationale="b"),
        make(["a"]),
        make(1),
        make(True),
    ]
    assert len({f.assessment_id for f in different}) == len(different)
    assert len({content_id(make("a"), n) for n in range(3)}) == 3
    assert signature(make(4)) == signature(make(4.0))


def test_all_are_written_together(ids: list[str]) -> None:
    """Seen by others at the end of the block, and not before."""
    client = TracingClient()
    assert has_transactions(client.store)
    seen: list[int] = []
    with one_transaction(client.store):
        for trace_id in ids[:5]:
            client.log_assessment(trace_id, rating(trace_id))
        other = threading.Thread(target=lambda: seen.append(count()))
        other.start()
        other.join()
    assert (seen, count()) == ([0], 5)


def test_what_raises_writes_nothing(ids: list[str]) -> None:
    """Also when it is Ctrl-C; the next write is by itself again."""
    client = TracingClient()

    def write(error: type[BaseException]) -> None:
        with one_transaction(client.store):
            client.log_assessment(ids[0], rating(ids[0]))
            raise error("stop")

    for error in (ValueError, KeyboardInterrupt, MlflowException):
        # MLflow makes its own exception of any other; Ctrl-C stays what it is.
        with pytest.raises((error, MlflowException), match="stop"):
            write(error)
    assert count() == 0
    client.log_assessment(ids[0], rating(ids[0]))
    assert count() == 1


def test_many_are_written_and_counted(ids: list[str]) -> None:
    """More than a batch holds, and a second time none of them."""
    ratings = [plain(i) for i in ids]
    assert log_assessments(ratings, progress=False) == 120
    assert log_assessments(ratings, progress=False) == 0
    assert count() == 120


def test_one_that_cannot_be_written_does_not_take_others_along(ids: list[str]) -> None:
    """Those before it in its batch are written, and the error names it."""
    ratings = [*map(rating, ids[:3]), rating("tr-gone"), *map(rating, ids[3:6])]
    with pytest.raises(StoreError, match="tr-gone"):
        log_assessments(ratings, progress=False)
    assert count() == 3
    assert log_assessments([r for r in ratings if r.trace_id != "tr-gone"]) == 3


def test_one_without_a_trace_is_an_error(ids: list[str]) -> None:
    """MLflow would drop it without a word."""
    with pytest.raises(ArgumentError, match="has no trace_id"):
        log_assessments([rating(ids[0]), plain(None)], progress=False)


def test_the_writer_loses_none_of_many(ids: list[str]) -> None:
    """Batches of whatever has come, from several threads."""
    with AssessmentWriter() as writer:
        threads = [
            threading.Thread(target=lambda k=k: [writer.put(rating(i)) for i in ids[k::4]])  # type: ignore[misc]
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (writer.written, count()) == (120, 120)
    with pytest.raises(StoreError, match="closed"):
        writer.put(plain(ids[0]))


def test_two_writers_leave_one_verdict_of_a_version_on_a_trace(store: str) -> None:
    """The first that arrives counts; a failure keeps no verdict out, nor does an older verdict."""
    imported(60)

    def verdicts(value: str, failed: bool = False) -> list[Feedback]:
        made = []
        for trace in fetch_traces(spans=False):
            one = make_feedback(
                trace.info.trace_id, "quality", value, source_type="LLM_JUDGE", source_id="m"
            )
            one.assessment_id = verdict_id(trace.info, "quality", "f1", failed=failed)
            made.append(one)
        return made

    assert log_assessments(verdicts("no answer", failed=True)) == 60
    both = [verdicts("good"), verdicts("bad")]
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda one=one: counts.append(log_assessments(one)))  # type: ignore[misc]
        for one in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(counts), count()) == (60, 120)
    assert log_assessments(verdicts("fair")) == 60


def test_a_lost_answer_does_not_double_what_was_written(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store has written but its answer got lost, the second attempt adds nothing."""
    ids = imported(1)
    log = TracingClient.log_assessment
    calls = []

    def losing(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        calls.append(trace_id)
        log(self, trace_id, assessment)
        if len(calls) == 1:
            raise ConnectionError("connection reset")

    monkeypatch.setattr(TracingClient, "log_assessment", losing)
    log_assessments([plain(ids[0])])
    assert len(calls) == 2
    assert len(fetch_traces(spans=False)[0].info.assessments) == 1


def test_a_locked_database_is_waited_for(store: str) -> None:
    """While another process holds the write lock, writing waits and then succeeds."""
    ids = imported(1)
    other = sqlite3.connect(store.removeprefix("sqlite:///"), check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(2, other.rollback).start()
    start = time.monotonic()
    assert log_assessments([rating(ids[0])]) == 1
    assert time.monotonic() - start > 1


def test_a_passing_failure_is_retried(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own word for a locked database is tried again; other errors are not."""
    ids = imported(1)
    log = TracingClient.log_assessment
    failures = [MlflowException("(sqlite3.OperationalError) database is locked")] * 2

    def failing(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        if failures:
            raise failures.pop()
        return log(self, trace_id, assessment)

    monkeypatch.setattr(TracingClient, "log_assessment", failing)
    assert log_assessments([rating(ids[0])]) == 1
    failures.append(MlflowException("no such column"))
    with pytest.raises(
        StoreError, match=r"'quality' of trace .*no such column.*run the call again"
    ):
        log_assessments([rating(ids[0], "bad")])


def test_the_writer_keeps_what_was_put_before_an_interrupt(store: str) -> None:
    """Ctrl-C ends the block, but not before all that was put is written."""
    ids = imported(20)
    writer = AssessmentWriter()

    def interrupted() -> None:
        with writer:
            for i in ids:
                writer.put(rating(i))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert writer.written == 20


def test_the_writer_raises_the_first_failure(store: str) -> None:
    """A failed write is raised on put or close, and does not hide the block's own error."""
    ids = imported(1)
    writer = AssessmentWriter()
    writer.put(rating("tr-gone"))
    with pytest.raises(StoreError, match="tr-gone"):
        writer.close()
    with pytest.raises(StoreError, match="tr-gone"):
        writer.put(rating(ids[0]))

    def failing() -> None:
        with AssessmentWriter() as failed:
            failed.put(rating("tr-gone"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def test_credentials_of_the_store_are_in_no_message(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its password nor what its driver repeats of it, also not in the traceback."""
    ids = imported(1)
    secret = "postgresql://me:pw-4711@db.example/mlflow"

    def failing(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        raise MlflowException(f"cannot reach {secret} with pw-4711")

    def put() -> None:
        with AssessmentWriter() as writer:
            writer.put(rating(ids[0], "bad"))

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
