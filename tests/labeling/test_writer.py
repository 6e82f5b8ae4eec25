"""What must be written is written in the end, whatever the store does meanwhile."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from labeling_helpers import begin, imported, stored, wait_until
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from workbench.errors import StoreError
from workbench.labeling.writer import Job, TraceDeletedError, Writer, is_refusal


class Told:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.broken = False

    def job(self, key: str, lane: str, write: Callable[[], Any]) -> Job:
        return Job(
            lane,
            write,
            lambda _: self.hear("written", key),
            lambda error, final: self.hear("refused" if final else "delayed", key),
        )

    def hear(self, kind: str, key: str) -> None:
        self.events.append((kind, key))
        if self.broken:
            raise RuntimeError("no view")

    def kinds(self, kind: str) -> list[str]:
        return [what for told, what in self.events if told == kind]


# -- the thread -----------------------------------------------------------------------------


def test_jobs_of_one_trace_keep_their_order_and_others_go_on() -> None:
    """A trace that fails holds up its own jobs and nobody else's."""
    told, failing = Told(), threading.Event()
    failing.set()

    def run(key: str) -> None:
        if key.startswith("ill") and failing.is_set():
            raise ConnectionError("refused")

    writer = Writer()
    for number in range(3):
        for trace in ("ill", "well"):
            key = f"{trace}{number}"
            writer.put(told.job(key, trace, lambda key=key: run(key)))
    wait_until(lambda: len(told.kinds("written")) == 3)
    assert told.kinds("written") == ["well0", "well1", "well2"]
    assert not writer.flush(0.2)
    failing.clear()
    assert writer.flush(10)
    assert told.kinds("written")[3:] == ["ill0", "ill1", "ill2"]


def test_a_failure_is_told_and_tried_again_until_it_works() -> None:
    """The wait grows, and flushing does not wait for it."""
    told, tries = Told(), []

    def run() -> None:
        tries.append(time.monotonic())
        if len(tries) < 6:
            raise MlflowException("database is locked", codes.TEMPORARILY_UNAVAILABLE)

    writer = Writer()
    writer.put(told.job("a", "t", run))
    wait_until(lambda: len(tries) == 4)
    assert tries[3] - tries[2] > tries[1] - tries[0]
    assert writer.flush(20)
    assert told.events == [("delayed", "a")] * 5 + [("written", "a")]


def test_a_listener_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is told: the rest is written, flushing returns, and the error is logged."""
    told, failures = Told(), [ConnectionError("down"), StoreError("never")]
    told.broken = True

    def fail() -> None:
        if failures:
            raise failures.pop(0)

    writer = Writer()
    writer.put(told.job("a", "t", fail))
    writer.put(told.job("b", "t", lambda: None))
    assert writer.flush(10)
    assert told.events == [("delayed", "a"), ("refused", "a"), ("written", "b")]
    assert caplog.text.count("no view") >= 3


@pytest.mark.parametrize(
    ("error", "first", "at_last"),
    [
        (TraceDeletedError("gone"), True, True),
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


# -- a session whose server fails -----------------------------------------------------------


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
    imported(4)
    view = begin()
    first = view.save(0, "yes")
    assert view.act(first) == [first["id"]]
    road.close()
    view.send(type="act", actions=[view.save(1, "yes"), view.save(2, "no")])
    wait_until(lambda: ("unsaved", True) in view.kinds())
    assert view.session.state()["message"]
    problem = view.ask(type="want", start=0, count=4)
    assert problem["type"] == "problem"
    assert "127.0.0.1" in problem["error"]
    road.open()
    assert view.session.flush(60)
    assert len(stored()) == 3
    assert view.kinds().count(("saved", None)) == 3
    assert not view.session.state()["message"]
    assert view.session.unsaved.empty
