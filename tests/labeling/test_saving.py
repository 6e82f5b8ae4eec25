"""What must be written is written in the end, whatever the store does meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from workbench import Scale, import_traces
from workbench.errors import StoreError
from workbench.labeling.queue import ACTION_KEY
from workbench.labeling.session import LabelSession
from workbench.labeling.writer import Job, Saver, TraceGone, is_refusal
from workbench.store.labels import label_records
from workbench.store.traces import fetch_traces

SCALE = Scale.of(["no", "yes"])


class Told:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def written(self, job: Job, result: Any) -> None:
        self.events.append(("written", job.key))

    def delayed(self, error: str) -> None:
        self.events.append(("delayed", error))

    def refused(self, job: Job, error: str) -> None:
        self.events.append(("refused", job.key))

    def kinds(self, kind: str) -> list[str]:
        return [what for told, what in self.events if told == kind]


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


# -- the thread -----------------------------------------------------------------------------


def test_jobs_of_one_trace_keep_their_order_and_others_go_on() -> None:
    """A trace that fails holds up its own jobs and nobody else's."""
    told, failing = Told(), threading.Event()
    failing.set()

    def run(key: str) -> None:
        if key.startswith("ill") and failing.is_set():
            raise ConnectionError("refused")

    saver = Saver(told)
    for number in range(3):
        for trace in ("ill", "well"):
            key = f"{trace}{number}"
            saver.put(Job(key, trace, lambda key=key: run(key)))
    wait_until(lambda: len(told.kinds("written")) == 3)
    assert told.kinds("written") == ["well0", "well1", "well2"]
    assert len(saver) == 3
    assert not saver.flush(0.2)
    failing.clear()
    assert saver.flush(10)
    assert told.kinds("written")[3:] == ["ill0", "ill1", "ill2"]


def test_a_failure_is_told_and_tried_again_until_it_works() -> None:
    """The wait grows, and flushing does not wait for it."""
    told, tries = Told(), []

    def run() -> None:
        tries.append(time.monotonic())
        if len(tries) < 6:
            raise MlflowException("database is locked", codes.TEMPORARILY_UNAVAILABLE)

    saver = Saver(told)
    saver.put(Job("a", "t", run))
    wait_until(lambda: len(tries) == 4)
    assert tries[3] - tries[2] > tries[1] - tries[0]
    wait_until(lambda: not len(saver))
    assert told.kinds("delayed") == ["database is locked"] * 5


def test_what_is_slow_is_told_before_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself may try for minutes before it says anything."""
    monkeypatch.setattr("workbench.labeling.writer._PATIENCE", 0.05)
    told, go = Told(), threading.Event()
    saver = Saver(told)
    saver.put(Job("a", "t", lambda: go.wait(20)))
    wait_until(lambda: bool(told.kinds("delayed")))
    assert told.kinds("written") == []
    go.set()
    assert saver.flush(10)
    assert told.kinds("written") == ["a"]


def test_the_thread_ends_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a new one does what comes later."""
    monkeypatch.setattr("workbench.labeling.writer._IDLE", 0.05)
    told = Told()
    saver = Saver(told)
    saver.put(Job("a", "t", lambda: None))
    wait_until(lambda: saver._thread is None)
    saver.put(Job("b", "t", lambda: None))
    assert saver.flush(10)
    assert told.kinds("written") == ["a", "b"]


def test_the_next_job_of_a_trace_is_done_when_one_is_refused() -> None:
    """A refusal is told once."""
    told = Told()

    def refuse() -> None:
        raise TraceGone("Trace t was deleted.")

    saver = Saver(told)
    saver.put(Job("a", "t", refuse))
    saver.put(Job("b", "t", lambda: None))
    assert saver.flush(10)
    assert told.events == [("refused", "a"), ("written", "b")]


@pytest.mark.parametrize(
    ("error", "first", "at_last"),
    [
        (TraceGone("gone"), True, True),
        (StoreError("no"), True, True),
        (MlflowException("bad", codes.INVALID_PARAMETER_VALUE), True, True),
        (MlflowException("overtaken", codes.BAD_REQUEST), False, True),
        (MlflowException("rights", codes.PERMISSION_DENIED), False, True),
        (MlflowException("locked", codes.TEMPORARILY_UNAVAILABLE), False, False),
        (MlflowException("refused", codes.INTERNAL_ERROR), False, False),
        (MlflowException("expired", codes.UNAUTHENTICATED), False, False),
        (ConnectionError("refused"), False, False),
        (TypeError("a bug"), False, True),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, first: bool, at_last: bool) -> None:
    """A label is given up only where no later try can work."""
    assert (is_refusal(error, 1), is_refusal(error, 50)) == (first, at_last)


# -- a session whose store fails ------------------------------------------------------------


def session_on(count: int = 4) -> tuple[LabelSession, list[dict[str, Any]]]:
    table = pd.DataFrame({"q": [f"q{n}" for n in range(count)], "a": ["a"] * count})
    import_traces(table, inputs="q", outputs="a", progress=False)
    told: list[dict[str, Any]] = []
    made = LabelSession("quality", annotator="ana", scale=SCALE, on_message=told.append)
    return made, told


def save(session: LabelSession, position: int, value: str) -> list[dict[str, Any]]:
    action = {
        "id": f"x{position}",
        "kind": "save",
        "trace_id": session.trace_ids[position],
        "answers": {"quality": {"value": value, "abstain": False}},
    }
    return session.receive({"type": "act", "actions": [action]})


def kinds(told: list[dict[str, Any]]) -> list[tuple[str, bool | None]]:
    return [(message["type"], message.get("retry")) for message in told]


def stored() -> dict[str, Any]:
    return {r.trace_id: r.value for r in label_records(fetch_traces(spans=False), "quality")}


def test_a_locked_database_delays_and_loses_nothing(store: str) -> None:
    """The labels are not saved yet, the session goes on, and all is written after the lock."""
    session, told = session_on()
    lock = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    assert [save(session, position, "yes") for position in range(3)] == [[], [], []]
    wait_until(lambda: bool(told))
    assert kinds(told)[0] == ("unsaved", True)
    assert set(told[0]["ids"]) == {"x0", "x1", "x2"}
    state = session.state()
    assert (state["position"], state["store_ok"]) == (3, False)
    assert "Not saved yet" in state["message"]
    assert session.progress["waiting"] == 3
    assert session.labels["saved"].tolist() == [False] * 3
    lock.execute("ROLLBACK")
    lock.close()
    assert session.flush(60)
    assert len(stored()) == 3
    assert session.state()["store_ok"]
    assert session.labels["saved"].tolist() == [True] * 3
    assert session.unsaved.empty


def test_reading_does_not_hold_up_the_kernel(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is told soon, and the items come when it does."""
    monkeypatch.setattr("workbench.labeling.session._PATIENCE", 0.2)
    session, told = session_on()
    lock = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for _ in range(2):
        (problem,) = session.receive({"type": "want", "start": 0, "count": 4})
        assert problem["type"] == "problem"
    assert told == []
    lock.execute("ROLLBACK")
    lock.close()
    wait_until(lambda: len(told) == 2)
    assert [len(message["items"]) for message in told] == [4, 4]
    (items,) = session.receive({"type": "want", "start": 0, "count": 4})
    assert items["items"] == told[0]["items"]


def test_a_deleted_trace_is_listed(store: str) -> None:
    """Its label is told as never to be saved; the others are saved."""
    session, told = session_on()
    experiment = mlflow.get_experiment_by_name("test")
    gone = session.trace_ids[1]
    mlflow.MlflowClient().delete_traces(experiment.experiment_id, trace_ids=[gone])
    for position in range(3):
        save(session, position, "no")
    assert session.flush(30)
    assert sorted(kinds(told), key=str) == [("saved", None), ("saved", None), ("unsaved", False)]
    assert session.unsaved[["id", "trace_id"]].to_numpy().tolist() == [["x1", gone]]
    assert "deleted" in session.unsaved["error"][0]
    (items,) = session.receive({"type": "want", "start": 0, "count": 4})
    assert [item["gone"] for item in items["items"]] == [False, True, False, False]
    assert session.state()["position"] == 3
    assert save(session, 1, "no")[0]["retry"] is False


def test_after_a_refusal_nothing_is_said_to_be_tried_again(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is done elsewhere is looked for again."""
    session, told = session_on()
    experiment = mlflow.get_experiment_by_name("test")
    gone, other = session.trace_ids[:2]
    mlflow.MlflowClient().delete_traces(experiment.experiment_id, trace_ids=[gone])
    real, failures = SqlAlchemyStore.get_trace_info, [ConnectionError("down")]

    def failing(self: SqlAlchemyStore, trace_id: str) -> Any:
        if failures:
            raise failures.pop()
        return real(self, trace_id)

    monkeypatch.setattr(SqlAlchemyStore, "get_trace_info", failing)
    save(session, 0, "no")
    assert session.flush(30)
    assert (kinds(told)[0], kinds(told)[-1]) == (("unsaved", True), ("unsaved", False))
    assert session.state()["store_ok"]
    assert session.state()["message"] == ""
    source = mlflow.entities.AssessmentSource("HUMAN", session.annotator)
    mlflow.log_feedback(trace_id=other, name="quality", value="no", source=source)
    session.reread()
    assert session.progress["labelled"] == 1


class Road:
    """A way to the server that can be closed: connections are refused meanwhile."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener: socket.socket | None = None
        self._ends: list[socket.socket] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            # A thread that waits in accept would keep the port open.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        while self._ends:
            with contextlib.suppress(OSError):
                self._ends.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def road(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Road]:
    made = Road(int(server.rpartition(":")[2]))
    # MLflow's own retries take two minutes before it tells of anything.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{made.port}")
    yield made
    made.close()
    mlflow.set_tracking_uri(server)


def test_a_server_that_is_down_for_a_while(road: Road) -> None:
    """Labels wait, reading says so, and both work when it is back."""
    session, told = session_on()
    save(session, 0, "yes")
    assert session.flush(30)
    assert kinds(told) == [("saved", None)]
    road.close()
    save(session, 1, "yes")
    save(session, 2, "no")
    wait_until(lambda: ("unsaved", True) in kinds(told))
    assert not session.state()["store_ok"]
    assert not any(m["type"] == "saved" for m in told[1:])
    (problem,) = session.receive({"type": "want", "start": 0, "count": 4})
    assert problem["type"] == "problem"
    assert "127.0.0.1" in problem["error"]
    road.open()
    assert session.flush(60)
    assert len(stored()) == 3
    assert sorted(i for m in told if m["type"] == "saved" for i in m["ids"]) == ["x0", "x1", "x2"]
    assert session.state()["store_ok"]
    assert session.unsaved.empty


class Server:
    """A real MLflow server that can be killed, and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.database, self._log = folder / "killed.db", folder / "killed.log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self.database}"),
                    *("--host", "127.0.0.1", "--port", str(self._port)),
                ],
                stdout=log,
                stderr=log,
                cwd=self.database.parent,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        wait_until(self.is_up, 90)

    def is_up(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/health", timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """At once, whatever it is doing; so are its workers, which are in its session."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def mortal(
    tmp_path: Path, store: str, _empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server that may be killed, active for the test, and MLflow's own settings for retries."""
    for name in list(os.environ):
        if name.startswith("MLFLOW_HTTP_REQUEST"):
            monkeypatch.delenv(name)
    made = Server(tmp_path)
    shutil.copy(_empty_store, made.database)
    try:
        made.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.address)
        mlflow.set_tracking_uri(made.address)
        mlflow.set_experiment("remote")
        yield made
    finally:
        mlflow.set_tracking_uri(store)
        made.kill()


def test_a_server_that_is_killed_and_is_away_for_a_minute(mortal: Server) -> None:
    """Labels are told as not saved yet all the while, and are in once when it is back.

    MLflow's settings are its own: a call tries again at once and after 4, 8, 16 and 32 seconds
    more, so it hangs and fails for nobody. The server is away for 40 seconds, which four tries
    do not survive, and it is the one after a minute that finds it again. Most of the time this
    test sleeps while others run.
    """
    session, told = session_on(30)
    for position in range(12):
        save(session, position, "yes")
    wait_until(lambda: any(message["type"] == "saved" for message in told))
    mortal.kill()  # in the middle of it: some answers are lost, perhaps that of one it has written
    away = time.monotonic()
    begun = saved(told)
    assert 0 < len(begun) < 12
    for position in range(12, 20):
        assert not any(m["type"] == "saved" for m in save(session, position, "no"))
    wait_until(lambda: ("unsaved", True) in kinds(told))
    waiting = {f"x{position}" for position in range(20)} - set(begun)
    assert set(told[-1]["ids"]) == waiting
    state = session.state()
    assert (state["position"], state["store_ok"]) == (20, False)
    assert "Not saved yet" in state["message"]
    # What is read meanwhile does not hold up the kernel.
    (problem,) = session.receive({"type": "want", "start": 0, "count": 30})
    assert problem["type"] == "problem"
    assert "has not answered" in problem["error"]
    while time.monotonic() - away < 40:
        time.sleep(0.5)
        assert saved(told) == begun
        assert session.progress["waiting"] == len(waiting)
    assert (~session.labels["saved"]).sum() == len(waiting)

    mortal.start()
    wait_until(lambda: session.progress["waiting"] == 0, 240)
    assert Counter(saved(told)) == Counter(f"x{position}" for position in range(20))
    assert session.labels["saved"].all()
    assert session.unsaved.empty
    assert session.state()["store_ok"]
    made = Counter(
        assessment.metadata[ACTION_KEY]
        for trace in mlflow.search_traces(return_type="list", include_spans=False)
        for assessment in trace.info.assessments
    )
    assert made == Counter(f"x{position}" for position in range(20))
    assert Counter(stored().values()) == {"yes": 12, "no": 8}


def saved(told: list[dict[str, Any]]) -> list[str]:
    """What was told as saved, as often as it was told."""
    return [key for message in told if message["type"] == "saved" for key in message["ids"]]
