"""The store: traces are read fresh and whole, assessments arrive whatever happens."""

from __future__ import annotations

import sqlite3
import threading
import time
import traceback
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Feedback
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.alignment.registry import history
from workbench.errors import ArgumentError, StoreError
from workbench.store.assessments import AssessmentWriter, log_assessments, make_feedback
from workbench.store.importing import import_traces
from workbench.store.traces import fetch_traces
from workbench.store.traces import find_experiment_id as experiment_id


def imported(count: int) -> list[str]:
    table = pd.DataFrame({"q": [f"q{i}" for i in range(count)], "o": "x"})
    return import_traces(table, inputs="q", outputs="o").trace_ids


def rating(trace_id: str, value: Any = "good", source: str = "ana") -> Feedback:
    return make_feedback(trace_id, "quality", value, source_type="HUMAN", source_id=source)


def test_an_experiment_is_found_by_name_or_id(store: str) -> None:
    """None is the active experiment; a new name is created, but not by reading."""
    active = experiment_id()
    assert experiment_id("test") == experiment_id(active) == active
    with pytest.raises(StoreError, match="no experiment 'new'"):
        fetch_traces(experiment="new")
    assert experiment_id("new") == mlflow.get_experiment_by_name("new").experiment_id
    with pytest.raises(StoreError, match="no experiment '999'"):
        experiment_id("999")
    mlflow.delete_experiment(experiment_id("new"))
    with pytest.raises(StoreError, match="was deleted"):
        experiment_id("new")


def test_an_experiment_may_be_created_by_two_at_once(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process creates the experiment first, that one is used."""
    look_up = mlflow.get_experiment_by_name

    def late(name: str) -> Any:
        monkeypatch.setattr(mlflow, "get_experiment_by_name", look_up)
        mlflow.create_experiment(name)

    monkeypatch.setattr(mlflow, "get_experiment_by_name", late)
    assert experiment_id("new") == look_up("new").experiment_id


def test_traces_are_named_in_many_ways(store: str) -> None:
    """Ids, traces, a table, an import's result and a filter string all give the traces."""
    ids = imported(3)
    whole = fetch_traces()
    assert [t.info.trace_id for t in whole] == ids
    assert whole[0].data.spans[0].inputs == {"q": "q0"}
    backwards = ids[::-1]
    for given in (
        backwards,
        tuple(backwards),
        whole[::-1],
        [whole[2], ids[1], whole[0]],
        pd.DataFrame({"trace_id": backwards}),
        mlflow.search_traces(),
        SimpleNamespace(trace_ids=backwards),
        [*backwards, ids[0]],
    ):
        found = fetch_traces(given)
        assert [t.info.trace_id for t in found] == backwards
        assert [t.data.spans[0].inputs["q"] for t in found] == ["q2", "q1", "q0"]
    assert [t.info.trace_id for t in fetch_traces(ids[1])] == [ids[1]]
    assert [t.info.trace_id for t in fetch_traces(whole[1])] == [ids[1]]
    assert fetch_traces([]) == []
    mlflow.set_trace_tag(ids[1], "group", "b")
    assert [t.info.trace_id for t in fetch_traces("tags.group = 'b'")] == [ids[1]]


def test_all_pages_are_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit of a page or batch leaves traces out, with and without spans."""
    ids = imported(11)
    monkeypatch.setattr("workbench.store.traces.PAGE", 3)
    monkeypatch.setattr("workbench.store.traces._SPAN_BATCH", 4)
    for given in (None, ids, "trace.status = 'OK'"):
        for spans in (True, False):
            found = fetch_traces(given, spans=spans)
            assert [t.info.trace_id for t in found] == ids
            assert all(len(t.data.spans) == spans for t in found)


def test_assessments_are_read_again(store: str) -> None:
    """A trace object read earlier comes back with the assessments that it has now."""
    ids = imported(1)
    old = fetch_traces()
    log_assessments([rating(ids[0])])
    assert old[0].info.assessments == []
    for spans in (True, False):
        assert [a.value for a in fetch_traces(old, spans=spans)[0].info.assessments] == ["good"]


def test_traces_of_other_experiments_are_found_by_id(store: str) -> None:
    """Ids are looked up everywhere, not only in the active experiment."""
    here = imported(1)
    mlflow.set_experiment("elsewhere")
    there = imported(1)
    for spans in (True, False):
        found = fetch_traces([*here, *there], spans=spans)
        assert [t.info.trace_id for t in found] == [*here, *there]
    assert [t.info.trace_id for t in fetch_traces()] == there
    assert [t.info.trace_id for t in fetch_traces(experiment="test")] == here


def test_a_trace_that_just_ended_is_there(store: str) -> None:
    """Traces that MLflow still exports in the background are waited for."""
    with mlflow.start_span("app") as span:
        span.set_inputs({"q": 1})
    assert [t.info.trace_id for t in fetch_traces()] == [span.trace_id]


def test_a_trace_of_another_store_is_taken_as_it_is(store: str) -> None:
    """A trace object that this store does not hold is used as given."""
    imported(1)
    trace = fetch_traces()[0]
    TracingClient().delete_traces(experiment_id(), trace_ids=[trace.info.trace_id])
    assert fetch_traces([trace])[0].data.spans[0].inputs == {"q": "q0"}


def test_unknown_traces_are_counted_and_named(store: str) -> None:
    """What cannot be found is an error, as is what names no traces."""
    ids = imported(1)
    gone = [f"tr-{n}'x" for n in range(7)]
    with pytest.raises(StoreError, match=r"7 of 8 trace ids are not in .*tr-0'x.*tr-4'x, \.\.\."):
        fetch_traces([*ids, *gone])
    with pytest.raises(ArgumentError, match="traces is a int"):
        fetch_traces(3)
    with pytest.raises(ArgumentError, match="traces holds a int"):
        fetch_traces([3])
    with pytest.raises(ArgumentError, match="no column 'trace_id'"):
        fetch_traces(pd.DataFrame({"id": ids}))


def test_an_assessment_is_written_once(store: str) -> None:
    """An assessment whose id is there is not written again, and is not counted."""
    ids = imported(2)
    assert log_assessments([rating(i) for i in ids]) == 2
    assert log_assessments([rating(ids[0]), rating(ids[0], "bad")]) == 1
    assert sum(len(t.info.assessments) for t in fetch_traces(spans=False)) == 3


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
    plain = rating(ids[0])
    plain.assessment_id = None
    log_assessments([plain])
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


def test_credentials_of_the_store_are_in_no_message(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its password nor what its driver repeats of it, also not in the traceback."""
    ids = imported(1)
    secret = "postgresql://me:pw-4711@db.example/mlflow"

    def failing(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        raise MlflowException(f"cannot reach {secret} with pw-4711")

    def message(step: Any) -> str:
        with pytest.raises(StoreError) as caught:
            step()
        return "".join(traceback.format_exception(caught.value))

    def put() -> None:
        with AssessmentWriter() as writer:
            writer.put(rating(ids[0], "bad"))

    def broken(*_: Any) -> Any:
        raise ValueError(f"no way to {secret}")

    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: secret)
    monkeypatch.setattr(TracingClient, "log_assessment", failing)
    steps = [
        lambda: experiment_id("gone", create=False),
        lambda: fetch_traces(["tr-gone"]),
        lambda: log_assessments([rating(ids[0])]),
        put,
    ]
    said = [message(step) for step in steps]
    monkeypatch.setattr("workbench.store.assessments._write_all", broken)
    said.append(message(put))
    assert all("4711" not in text for text in said)
    assert all("postgresql://db.example/mlflow" in text for text in said)


def test_a_server_that_cannot_be_reached_is_named_without_credentials(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own message holds the whole address; other errors of MLflow stay what they are."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException):
        fetch_traces("nonsense = 1")
    try:
        mlflow.set_tracking_uri("http://me:pw-4711@127.0.0.1:9")
        for step in (
            lambda: experiment_id("test"),
            lambda: fetch_traces(["tr-1"]),
            lambda: history("q", experiment="test"),
        ):
            with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9") as caught:
                step()
            assert "4711" not in "".join(traceback.format_exception(caught.value))
    finally:
        mlflow.set_tracking_uri(store)


def test_the_writer_writes_all_that_is_put(store: str) -> None:
    """Leaving the block waits for the last assessment, whichever threads put them."""
    ids = imported(20)
    with AssessmentWriter() as writer:
        threads = [
            threading.Thread(target=lambda i=i: writer.put(rating(i)))  # type: ignore[misc]
            for i in ids
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert writer.written == 20
    assert all(len(t.info.assessments) == 1 for t in fetch_traces(spans=False))
    with pytest.raises(StoreError, match="closed"):
        writer.put(rating(ids[0]))


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


def test_the_writer_surfaces_the_first_failure(store: str) -> None:
    """A failed write is raised on put or close, and does not hide the block's own error."""
    ids = imported(1)
    with pytest.raises(StoreError, match="tr-gone"), AssessmentWriter() as writer:
        writer.put(rating("tr-gone"))
    writer = AssessmentWriter()
    writer.put(rating("tr-gone"))
    while writer._error is None:
        time.sleep(0.01)
    with pytest.raises(StoreError, match="tr-gone"):
        writer.put(rating(ids[0]))
    with pytest.raises(StoreError, match="tr-gone"):
        writer.close()

    def failing() -> None:
        with AssessmentWriter() as failed:
            failed.put(rating("tr-gone"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
