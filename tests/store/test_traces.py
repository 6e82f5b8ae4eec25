"""Traces are read fresh and whole, whatever names them, and a store that fails says so plainly."""

from __future__ import annotations

import logging
import traceback
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.errors import ArgumentError, StoreError
from workbench.store.database import find_experiment_id, store_errors
from workbench.store.importing import import_traces
from workbench.store.traces import PAGE, Example, examples, fetch_traces, item_digest


def imported(count: int) -> list[str]:
    table = pd.DataFrame({"q": [f"q{i}" for i in range(count)], "o": "x"})
    return import_traces(table, inputs="q", outputs="o", progress=False).trace_ids


def test_an_experiment_is_found_by_name_or_id(store: str) -> None:
    """None is the active experiment; a new name, be it digits, is created, but not by reading."""
    active = find_experiment_id()
    assert find_experiment_id("test") == find_experiment_id(active) == active
    with pytest.raises(StoreError, match="no experiment 'new'"):
        fetch_traces(experiment="new")
    assert find_experiment_id("new") == mlflow.get_experiment_by_name("new").experiment_id
    with pytest.raises(StoreError, match="no experiment '999'"):
        find_experiment_id("999", create=False)
    for name in ("2024", "1" * 25, "²"):
        assert find_experiment_id(name) == mlflow.get_experiment_by_name(name).experiment_id
    mlflow.delete_experiment(find_experiment_id("new"))
    with pytest.raises(StoreError, match="was deleted"):
        find_experiment_id("new")


def test_an_experiment_may_be_created_by_two_at_once(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process creates the experiment first, that one is used."""
    look_up = mlflow.get_experiment_by_name

    def late(name: str) -> Any:
        monkeypatch.setattr(mlflow, "get_experiment_by_name", look_up)
        mlflow.create_experiment(name)

    monkeypatch.setattr(mlflow, "get_experiment_by_name", late)
    assert find_experiment_id("new") == look_up("new").experiment_id


def test_traces_are_named_in_many_ways(store: str) -> None:
    """Ids, traces, a table, an import's result and a filter string all give the traces."""
    ids = imported(3)
    whole = fetch_traces()
    assert [t.info.trace_id for t in whole] == ids
    assert whole[0].data.spans[0].inputs == {"q": "q0"}
    backwards = ids[::-1]
    for given in (
        tuple(backwards),
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


def test_all_pages_are_read(store: str) -> None:
    """No limit of a page or batch leaves traces out, with and without spans."""
    ids = imported(PAGE + 20)
    for given in (None, ids, "trace.status = 'OK'"):
        assert [t.info.trace_id for t in fetch_traces(given, spans=False)] == ids
    assert all(len(t.data.spans) == 1 for t in fetch_traces(ids))


def test_assessments_are_read_again(store: str) -> None:
    """A trace object read earlier comes back with the assessments that it has now."""
    ids = imported(1)
    old = fetch_traces()
    mlflow.log_feedback(trace_id=ids[0], name="quality", value="good")
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


def test_a_trace_of_an_application_is_read_as_it_is(store: str) -> None:
    """It is waited for where MLflow still exports it; what it lacks is None."""
    with mlflow.start_span("app") as span:
        span.set_inputs("question")
    assert [(e.trace_id, e.inputs, e.outputs) for e in examples()] == [
        (span.trace_id, "question", None)
    ]


def test_a_trace_of_another_store_is_taken_as_it_is(store: str) -> None:
    """A trace object that this store does not hold is used as given."""
    imported(1)
    trace = fetch_traces()[0]
    TracingClient().delete_traces(find_experiment_id(), trace_ids=[trace.info.trace_id])
    assert fetch_traces([trace])[0].data.spans[0].inputs == {"q": "q0"}


def test_unknown_traces_are_counted_and_named(store: str) -> None:
    """What cannot be found is an error, as is what names no traces."""
    ids = imported(1)
    gone = [f"tr-{n}'x" for n in range(7)]
    with pytest.raises(StoreError, match=r"7 of 8 trace ids are not in .*tr-0'x.*tr-4'x, \.\.\."):
        fetch_traces([*ids, *gone])
    with pytest.raises(ArgumentError, match="traces holds a int"):
        fetch_traces(3)
    with pytest.raises(ArgumentError, match="traces holds a int"):
        fetch_traces([3])
    with pytest.raises(ArgumentError, match="no column 'trace_id'"):
        fetch_traces(pd.DataFrame({"id": ids}))


def test_a_server_that_cannot_be_reached_is_named_without_credentials(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own message holds the whole address; other errors of MLflow stay what they are."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException):
        fetch_traces("nonsense = 1")
    try:
        mlflow.set_tracking_uri("http://me:pw-4711@127.0.0.1:9")
        for step in (lambda: find_experiment_id("test"), lambda: fetch_traces(["tr-1"])):
            with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9") as caught:
                step()
            assert "4711" not in "".join(traceback.format_exception(caught.value))
    finally:
        mlflow.set_tracking_uri(store)


def test_the_digest_is_of_the_content() -> None:
    """The key of an example ignores its id and the order of keys, and nothing else."""
    one = Example("tr-1", {"a": 1, "b": "\ud800"}, "x", None, {"t": "1"})
    two = Example("tr-2", {"b": "\ud800", "a": 1}, "x", None)
    assert item_digest(one) == item_digest(two)
    assert len(item_digest(one)) == 64
    other = [
        Example("tr-1", {"a": 1.5, "b": "\ud800"}, "x"),
        Example("tr-1", {"a": 1, "b": "\ud800"}, "y"),
        Example("tr-1", {"a": 1, "b": "\ud800"}, "x", {"g": 1}),
    ]
    assert len({item_digest(e) for e in [one, *other]}) == 4
    assert item_digest(one, fields=["inputs"]) == item_digest(other[1], fields=["inputs"])


def test_sql_is_for_the_log(store: str, caplog: pytest.LogCaptureFixture) -> None:
    """People read what is wrong; statements and their values go to the log."""
    said = {
        "(sqlite3.OperationalError) database is locked": "database is locked",
        "while reading: (psycopg2.errors.Odd) who knows\nDETAIL: of 'a label'": r"\(who knows\)",
    }
    for text, plain in said.items():
        error = MlflowException(f"{text} [SQL: INSERT INTO assessments VALUES ('a label')]")
        caplog.set_level(logging.INFO, logger="workbench")
        with pytest.raises(StoreError, match=plain) as caught, store_errors():
            raise error
        shown = "".join(traceback.format_exception(caught.value))
        assert "INSERT" not in shown
        assert "a label" not in shown
        assert "INSERT INTO" in caplog.text
    with pytest.raises(MlflowException, match="no such judge"), store_errors():
        raise MlflowException("no such judge")
