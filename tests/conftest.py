"""Fixtures shared by all tests: a fresh MLflow store each, no network but loopback."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings
from loopback import Loopback
from postgres import Postgres, installed
from running import SECRET, MainRun, active_store, new_user
from sqlalchemy import event
from sqlalchemy.engine import Engine
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

# Stores in memory: half of the time of many tests would be SQLite waiting for the disk.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))


@event.listens_for(Engine, "connect")
def _without_waiting_for_the_disk(connection: Any, _: object) -> None:
    """No test outlives a power failure, so none needs SQLite to wait for the disk."""
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous=OFF")


# Enough to find what is wrong over many runs, and little enough for each of them, which take long
# where much else is running.
settings.register_profile("suite", max_examples=30, deadline=None)
settings.load_profile("suite")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# The files that take longest come first, so that no process is left alone with one at the end.
_FIRST = (
    "browser", "test_readme.py", "test_alignment.py", "test_sweep_endurance.py",
    "test_notebooks.py", "test_sweep.py",
)  # fmt: skip
_ON_A_SERVER = ("test_registry.py", "test_importing.py", "test_review_queue.py", "test_writer.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: min(order.get(p, len(order)) for p in item.path.parts[-2:]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Let one process run all tests in the browser, and one all tests on an MLflow server.

    Chromium, JupyterLab and the server are then started once.
    """

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, _, file = super()._split_scope(nodeid).rpartition("/")
            if folder.endswith("browser"):
                return folder
            return "server" if file in _ON_A_SERVER else f"{folder}/{file}"

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Exclude what is imported by now, which stays, from all later garbage collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


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
def main_run(tmp_path_factory: pytest.TempPathFactory) -> MainRun:
    """The main job, run once for all tests and worker processes."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = root / "main_run"
    with FileLock(root / "main_run.lock"):
        if not (folder / "done.json").exists():
            folder.mkdir()
            done = subprocess.run(
                ["workbench", "run", "--record", "answers.jsonl.gz"],
                cwd=folder,
                env={**new_user(folder), "OPENAI_API_KEY": SECRET},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, done.stderr
            (folder / "done.json").write_text(json.dumps([done.stdout, done.stderr]))
    return MainRun(folder, *json.loads((folder / "done.json").read_text()))


@pytest.fixture
def main_copy(main_run: MainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the output of `main_run`, with its store active and its cache in use."""
    import mlflow

    folder = tmp_path / "copy"
    shutil.copytree(main_run.output, folder)
    shutil.copytree(main_run.cache, tmp_path / "cache")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    with active_store(f"sqlite:///{folder}/mlflow.db", main_run.summary["experiment"]):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder
    mlflow.end_run()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new user's folder: no model, store, key or cache is chosen, nor anything judged."""
    for name in ("WORKBENCH_MODEL", "MLFLOW_TRACKING_URI", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with active_store(f"sqlite:///{tmp_path}/unused.db"):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty store, copied for each test since migrations take seconds."""
    import mlflow

    from workbench.store.database import prepare_database

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = root / "empty" / "mlflow.db"
    with FileLock(root / "empty.lock"):
        if not path.exists():
            prepare_database(f"sqlite:///{path}")
            mlflow.set_tracking_uri(f"sqlite:///{path}")
            mlflow.search_experiments()
    return path


@pytest.fixture(scope="session")
def _store(tmp_path_factory: pytest.TempPathFactory, _empty_store: Path) -> Path:
    """The store of one test after the other: MLflow compiles its statements once for a store."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(_empty_store, folder / "mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def store(
    tmp_path: Path, _store: Path, _empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The tracking URI of an empty MLflow store with the active experiment ``test``."""
    import mlflow

    uri = f"sqlite:///{_store}"
    _emptied(_store, _empty_store)
    shutil.rmtree(_store.parent / "mlruns", ignore_errors=True)
    monkeypatch.chdir(_store.parent)  # where the store keeps artifacts
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WORKBENCH_MODEL", raising=False)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    mlflow.set_experiment("test")
    monkeypatch.chdir(tmp_path)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()


def _emptied(database: Path, empty: Path) -> None:
    """Give a database that is in use the content of the empty one."""
    with (
        contextlib.closing(sqlite3.connect(empty)) as one,
        contextlib.closing(sqlite3.connect(database)) as used,
    ):
        one.backup(used)


@contextlib.contextmanager
def _serving(folder: Path, uri: str, *options: str, **variables: str) -> Iterator[str]:
    """Run a real MLflow server on a database, and give its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", *options),
                *("--backend-store-uri", uri),
                *("--default-artifact-root", str(folder / "artifacts")),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**new_user(folder), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **variables},
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _await_answer(f"{address}/health", process, folder / "server.log")
        yield address
    finally:
        # The server's own children are in its session and end with it.
        with contextlib.suppress(ProcessLookupError):  # it has told why it ended
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@contextlib.contextmanager
def _active(address: str, store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server is MLflow's store and registry, and ``store`` again afterwards."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    yield
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)


@pytest.fixture(scope="session")
def _mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, _empty_store: Path
) -> Iterator[tuple[str, Path]]:
    """The address and the database of an MLflow server, started once for all tests."""
    database = tmp_path_factory.mktemp("server") / "server.db"
    shutil.copy(_empty_store, database)
    with _serving(database.parent, f"sqlite:///{database}") as address:
        yield address, database


@pytest.fixture
def guarded_server(
    tmp_path: Path, _empty_store: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a server with MLflow's own authentication; the test is its administrator."""

    (tmp_path / "guarded").mkdir()
    database = tmp_path / "guarded" / "server.db"
    shutil.copy(_empty_store, database)
    settings = tmp_path / "guarded" / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"admin_password = {SECRET}\ndatabase_uri = sqlite:///{tmp_path}/guarded/users.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    uri, options = f"sqlite:///{database}", ("--app-name", "basic-auth")
    with (
        _serving(database.parent, uri, *options, **variables) as address,
        _active(address, store, monkeypatch),
    ):
        yield address


@pytest.fixture
def server(
    _mlflow_server: tuple[str, Path],
    _empty_store: Path,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """The address of a real MLflow server, empty and active for the test."""
    import mlflow

    address, database = _mlflow_server
    _emptied(database, _empty_store)
    with _active(address, store, monkeypatch):
        mlflow.set_experiment("remote")
        yield address


@pytest.fixture(scope="session")
def _postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, started once for all tests; with CI set it must be installed."""
    if not installed() and "CI" not in os.environ:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with Postgres() as running:
        yield running


@pytest.fixture
def postgres(_postgres: Postgres) -> str:
    """The URI of an empty PostgreSQL database."""
    return _postgres.new_database()


@pytest.fixture
def postgres_server(
    postgres: str, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of an MLflow server on an empty PostgreSQL database, active for the test."""

    (tmp_path / "server").mkdir()
    with (
        _serving(tmp_path / "server", postgres) as address,
        _active(address, store, monkeypatch),
    ):
        yield address


def _await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
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
