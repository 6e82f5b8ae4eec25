"""Fixtures shared by all tests: a fresh MLflow store each, no network but loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from loopback import Loopback

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Enough to find what is wrong over many runs, and little enough for each of them.
settings.register_profile("suite", max_examples=30)
settings.load_profile("suite")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest of all files comes first, so that no process is left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Figures that tests have measured are told, and never held to a limit: machines differ."""
    told = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "figure" and report.when == "call"
    ]
    if told:
        terminalreporter.section("figures")
        for line in sorted(told):
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave loopback only by mistake, so they are an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty store, copied for each test since migrations take seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, _empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The tracking URI of a fresh MLflow store with the active experiment ``test``."""
    import mlflow

    database = tmp_path / "mlflow.db"
    shutil.copy(_empty_store, database)
    uri = f"sqlite:///{database}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WORKBENCH_MODEL", raising=False)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.set_experiment("test")
    yield uri
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def server(
    tmp_path: Path, store: str, _empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a real MLflow server with a fresh store, active for the test."""
    import mlflow

    database = tmp_path / "server.db"
    shutil.copy(_empty_store, database)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server"),
                *("--backend-store-uri", f"sqlite:///{database}"),
                *("--default-artifact-root", str(tmp_path / "artifacts")),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            ],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _await_answer(f"{address}/health", process, tmp_path / "server.log")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow.set_tracking_uri(address)
        mlflow.set_registry_uri(address)
        mlflow.set_experiment("remote")
        yield address
    finally:
        mlflow.set_tracking_uri(store)
        mlflow.set_registry_uri(store)
        # The server's own children are in its session and end with it.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)
        else:
            return


@pytest.fixture
def openqa() -> Path:
    """The real data set; tests that use it skip, saying so, only where it is absent."""
    path = SHARED_DATA / "openqa-eval" / "openqa.csv"
    if not path.exists():
        pytest.skip(f"shared data is absent: {path}")
    return path


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Loopback]]:
    """Starts simulated model servers, and stops them after the test."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-0123456789")
    with contextlib.ExitStack() as running:
        yield lambda **options: running.enter_context(Loopback(**options))
