"""Ingest: rows reach any store, and a stop at any moment costs nothing but the rest."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path
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
from workbench.store.importing import attribute, import_traces
from workbench.store.labels import label_records
from workbench.store.traces import examples, fetch_traces
from workbench.store.traces import find_experiment_id as experiment_id


def rows(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "q": [f"question {i // 2}" for i in range(count)],  # each twice
            "o": [f'{{"answer": {i // 2}}}' for i in range(count)],
            "ana": ["good" if i % 3 else "bad" for i in range(count)],
            "why": "because",
        }
    )


ONE: dict[str, Any] = {"labels": {"ana": ("ana", "why")}, "label_name": "quality"}
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
    assert len(label_records(fetch_traces(spans=False), "quality")) == labels
    assert sum(len(t.info.assessments) for t in fetch_traces(spans=False)) == labels


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


def test_large_rows_go_in_smaller_batches(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch holds so many characters that a server takes it as one request."""
    sizes = []
    log = TracingClient.log_spans

    def counting(self: TracingClient, location: str, spans: list[Span]) -> Any:
        sizes.append(len(spans))
        return log(self, location, spans)

    monkeypatch.setattr(TracingClient, "log_spans", counting)
    monkeypatch.setattr("workbench.store.importing._BATCH_TRACES", 3)
    monkeypatch.setattr("workbench.store.importing._BATCH_CHARACTERS", 1000)
    table = pd.DataFrame({"q": [f"{i}" for i in range(9)], "o": ["x"] * 4 + ["x" * 600] * 5})
    import_traces(table, inputs="q", outputs="o")
    assert sizes == [3, 3, 2, 1]
    assert len(fetch_traces()) == 9


@pytest.mark.parametrize("more", [ONE, THREE], ids=["one", "three"])
def test_an_import_that_is_killed_can_be_run_again(store: str, more: dict[str, Any]) -> None:
    """After SIGKILL in the middle, the same import adds what is missing and doubles nothing."""
    table = rows(300)
    table.to_csv("rows.csv", index=False)
    script = (
        "import sys, mlflow, workbench.store.importing as ingest, workbench\n"
        "ingest._BATCH_TRACES = 10\n"
        "mlflow.set_experiment('test')\n"
        f"workbench.import_traces('rows.csv', inputs='q', outputs='o', **{more!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(fetch_traces(spans=False)) >= 25:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    before = len(fetch_traces(spans=False))
    assert 25 <= before < 300
    imported = import_traces(table, inputs="q", outputs="o", **more)
    assert (len(imported.skipped), imported.created) == (before, 300 - before)
    check_whole(table, imported.trace_ids, 300 * len(more["labels"]))
    assert [t.info.trace_id for t in fetch_traces(spans=False)] == imported.trace_ids


def test_a_trace_without_its_spans_is_completed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between a trace's labels and its spans is made good by the next import.

    Labels go before spans where the store is a server.
    """
    table = rows(4)
    monkeypatch.setattr("workbench.store.importing.is_possible", lambda _: False)

    def broken(self: TracingClient, location: str, spans: list[Span]) -> Any:
        raise MlflowException("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "log_spans", broken)
        with pytest.raises(StoreError, match=r"disk full.*run the same import again"):
            import_traces(table, inputs="q", outputs="o", **THREE)
    assert [len(t.data.spans) for t in fetch_traces()] == [0] * 4
    times = [t.info.request_time for t in fetch_traces()]
    again = import_traces(table, inputs="q", outputs="o", **THREE)
    assert set(again.skipped["reason"]) == {"was there without its spans, completed"}
    assert [t.info.request_time for t in fetch_traces()] == times
    check_whole(table, again.trace_ids, 12)


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
    """Ctrl-C says how many rows are stored, and the next run adds the others."""
    monkeypatch.setattr("workbench.store.importing._BATCH_TRACES", 4)
    log = TracingClient.log_spans
    calls: list[int] = []

    def interrupted(self: TracingClient, location: str, spans: list[Span]) -> Any:
        calls.append(len(spans))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return log(self, location, spans)

    table = rows(20)
    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "log_spans", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_traces(table, inputs="q", outputs="o")
    assert "8 of 20 new rows, which are stored. Run the same import again" in capfd.readouterr().out
    imported = import_traces(table, inputs="q", outputs="o")
    assert imported.created == 12
    check_whole(table, imported.trace_ids, 0)


def test_two_processes_may_import_the_same_file(store: str) -> None:
    """Imports of one file at the same time leave each row once, with its labels."""
    table = rows(60)
    table.to_csv("rows.csv", index=False)
    script = (
        "import sys, mlflow, workbench.store.importing as ingest, workbench\n"
        "ingest._BATCH_TRACES = 7\n"
        "mlflow.set_experiment('test')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"workbench.import_traces('rows.csv', inputs='q', outputs='o', **{THREE!r})\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.wait(60) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    again = import_traces(table, inputs="q", outputs="o", **THREE)
    assert (again.created, again.labels) == (0, 0)
    check_whole(table, again.trace_ids, 180)


@pytest.fixture
def server(
    store: str, tmp_path: Path, _empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a real MLflow server with a fresh store, active for the test."""
    database = tmp_path / "server.db"
    database.write_bytes(_empty_store.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "--backend-store-uri": f"sqlite:///{database}",
        "--default-artifact-root": str(tmp_path / "artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    command = [sys.executable, "-m", "mlflow", "server"]
    for pair in options.items():
        command += pair
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow.set_tracking_uri(address)
        mlflow.set_experiment("remote")
        yield address
    finally:
        mlflow.set_tracking_uri(store)
        # The server's own children are in its session and end with it.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


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
    assert experiment_id() == imported.experiment_id
