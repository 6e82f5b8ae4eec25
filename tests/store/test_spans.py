"""Rows reach any store whole, in batches, and a stop at any moment costs only the rest."""

from __future__ import annotations

import json
import threading
import traceback
from typing import Any

import mlflow
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Span
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.otel.translation import sanitize_attributes

from workbench.errors import StoreError
from workbench.store.importing import import_traces
from workbench.store.labels import label_records
from workbench.store.spans import BATCH_TRACES, Pending, attribute, write_traces
from workbench.store.tables import read_rows
from workbench.store.traces import examples, fetch_traces, find_experiment_id


def rows(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "q": [f"question {i // 2}" for i in range(count)],  # each twice
            "o": [f'{{"answer": {i // 2}}}' for i in range(count)],
            "ana": ["good" if i % 3 else "bad" for i in range(count)],
            "why": "because",
        }
    )


THREE: dict[str, Any] = {
    "labels": {"ana": ("ana", "why"), "bo": "ana", "cy": "ana"},
    "label_name": "quality",
}


def check_whole(table: pd.DataFrame, trace_ids: list[str], labels: int) -> None:
    """Each row is there once, whole, and the given number of labels with it."""
    found = examples()
    assert sorted(e.trace_id for e in found) == sorted(trace_ids)
    by_id = {e.trace_id: (e.inputs["q"], e.outputs) for e in found}
    assert [by_id[i] for i in trace_ids] == list(zip(table["q"], table["o"], strict=True))
    stored = fetch_traces(spans=False)
    assert len(label_records(stored, "quality")) == labels
    assert sum(len(t.info.assessments) for t in stored) == labels


@given(
    st.recursive(
        st.text(st.characters(exclude_categories=())) | st.none() | st.integers() | st.booleans(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    )
    | st.sampled_from(['{"a": 1}', '"x"', '"\\"x\\""', "[]", "null", "1"])
)
def test_an_attribute_is_stored_as_the_json_of_its_value(value: Any) -> None:
    """MLflow's unwrapping of what is wrapped twice leaves each value, JSON texts included."""
    stored = sanitize_attributes({"x": attribute(value)})["x"]
    assert json.dumps(json.loads(stored)) == json.dumps(value)
    stored.encode()


def test_large_rows_go_in_smaller_batches(store: str) -> None:
    """A batch holds so many characters that a server takes it as one request."""
    sizes = []

    class Counting(TracingClient):
        def log_spans(self, location: str, spans: list[Span]) -> Any:
            sizes.append(len(spans))
            return super().log_spans(location, spans)

    table = pd.DataFrame({"q": [f"{i}" for i in range(9)], "o": ["x"] * 4 + ["x" * 600] * 5})
    read = read_rows(table, inputs="q", outputs="o")
    new = [Pending(row, f"tr-{n + 1:032x}", [], n) for n, row in enumerate(read)]
    write_traces(
        new, find_experiment_id(), progress=False, client=Counting(), batch_traces=3,
        batch_characters=1000,
    )  # fmt: skip
    assert sizes == [3, 3, 2, 1]
    assert len(fetch_traces()) == 9


@pytest.mark.parametrize("step", ["log_spans", "log_assessment"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_import_that_is_stopped_can_be_run_again(
    store: str, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    """Stopped at any step, the same import adds what is missing and doubles nothing."""
    table = rows(BATCH_TRACES + 20)
    real = getattr(TracingClient, step)
    calls: list[int] = []
    last = 2 if step == "log_spans" else 130

    def stopped(self: TracingClient, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == last and when == "before":
            raise KeyboardInterrupt
        real(self, *arguments)
        if len(calls) == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, step, stopped)
        with pytest.raises(KeyboardInterrupt):
            import_traces(table, inputs="q", outputs="o", progress=False, **THREE)
    before = len(fetch_traces(spans=False))
    assert before >= BATCH_TRACES
    imported = import_traces(table, inputs="q", outputs="o", progress=False, **THREE)
    assert (len(imported.skipped), imported.created) == (before, len(table) - before)
    check_whole(table, imported.trace_ids, 3 * len(table))


def test_two_imports_of_one_file_at_once(store: str) -> None:
    """They leave each row once, with its labels."""
    table = rows(60)
    failures: list[Exception] = []

    def run() -> None:
        try:
            import_traces(table, inputs="q", outputs="o", progress=False, **THREE)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    again = import_traces(table, inputs="q", outputs="o", **THREE)
    assert (again.created, again.labels) == (0, 0)
    check_whole(table, again.trace_ids, 180)


def test_a_trace_without_its_spans_is_completed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between a trace's info and its spans is made good by the next import."""
    # Half a surrogate pair is what makes a trace's info be written first.
    table = pd.DataFrame({"q": ["a \ud83d", "b \ud83d"], "o": "x"}, dtype=object)

    def broken(self: TracingClient, location: str, spans: list[Span]) -> Any:
        raise MlflowException("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "log_spans", broken)
        with pytest.raises(StoreError, match=r"disk full.*run the same import again"):
            import_traces(table, inputs="q", outputs="o")
    assert [len(t.data.spans) for t in fetch_traces()] == [0] * 2
    times = [t.info.request_time for t in fetch_traces()]
    again = import_traces(table, inputs="q", outputs="o")
    assert set(again.skipped["reason"]) == {"was there without its spans, completed"}
    assert [t.info.request_time for t in fetch_traces()] == times
    check_whole(table, again.trace_ids, 0)


def test_a_failed_import_shows_no_credentials(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its message nor in the traceback below it."""
    secret = "postgresql://me:pw-4711@db.example/mlflow"

    def broken(self: TracingClient, location: str, spans: list[Span]) -> Any:
        raise MlflowException(f"cannot reach {secret}")

    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: secret)
    monkeypatch.setattr(TracingClient, "log_spans", broken)
    with pytest.raises(StoreError, match=r"postgresql://db\.example/mlflow: cannot") as caught:
        import_traces(rows(1), inputs="q", outputs="o")
    assert "4711" not in "".join(traceback.format_exception(caught.value))


def test_an_interrupt_keeps_what_is_written_and_says_so(
    store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C says how many rows are stored, and the next import adds the others."""
    table = rows(BATCH_TRACES * 2 + 5)
    log = TracingClient.log_spans
    calls: list[int] = []

    def interrupted(self: TracingClient, location: str, spans: list[Span]) -> Any:
        calls.append(len(spans))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return log(self, location, spans)

    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "log_spans", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_traces(table, inputs="q", outputs="o")
    assert "200 of 405 new rows, which are stored. Run the same import" in capfd.readouterr().out
    imported = import_traces(table, inputs="q", outputs="o")
    assert imported.created == 205
    check_whole(table, imported.trace_ids, 0)


def test_a_server_takes_the_same_import(server: str) -> None:
    """Over HTTP each row arrives whole, with labels, expectations and tags, and once."""
    table = rows(30).assign(
        gold=[["a", {"b": None}]] * 30,
        n=[k if k % 2 else None for k in range(30)],
        tag=['{"a": 1}', "007"] * 15,
    )
    table["n"] = table["n"].astype("Int64")
    arguments: dict[str, Any] = {
        "inputs": ["q", "n"], "outputs": "o", "tags": "tag", **THREE,
    }  # fmt: skip
    imported = import_traces(table, expectations="gold", **arguments)
    assert (imported.created, imported.labels) == (30, 90)
    found = examples()
    assert [e.trace_id for e in found] == imported.trace_ids
    for row, example in zip(table.itertuples(), found, strict=True):
        n = None if row.n is pd.NA else row.n
        assert (example.inputs, example.outputs) == ({"q": row.q, "n": n}, row.o)
        assert (example.expectations, example.tags) == ({"gold": row.gold}, {"tag": row.tag})
    again = import_traces(table, expectations="gold", **arguments)
    assert (again.created, again.labels, again.trace_ids) == (0, 0, imported.trace_ids)
    without = import_traces(table, **{**arguments, "labels": None, "label_name": None})
    assert without.created == 30
    assert [e.tags["tag"] for e in examples(without)] == table["tag"].tolist()
    assert len(label_records(fetch_traces(spans=False), "quality")) == 90
    assert find_experiment_id() == imported.experiment_id
