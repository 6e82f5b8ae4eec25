"""A real MLflow server that is killed while labels are written."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from labeling_helpers import View, begin, imported, stored, wait_until

from workbench.labeling.annotations import ACTION_KEY


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


@pytest.mark.slow
def test_a_server_that_is_killed_and_is_away_for_a_minute(mortal: Server) -> None:
    """Labels are told as not saved yet all the while, and are in once when it is back.

    MLflow's settings are its own: a call tries again at once and after 4, 8, 16 and 32 seconds
    more, so it hangs and fails for nobody. The server is away for 40 seconds, which four tries
    do not survive, and it is the one after a minute that finds it again.
    """
    imported(30)
    view = begin()
    session = view.session
    actions = [view.save(n, "yes" if n < 12 else "no", id=f"x{n}") for n in range(20)]
    view.send(type="act", actions=actions[:12])
    wait_until(lambda: bool(saved(view)))
    mortal.kill()  # in the middle of it: some answers are lost, perhaps that of one it has written
    away = time.monotonic()
    begun = saved(view)
    assert 0 < len(begun) < 12
    view.send(type="act", actions=actions[12:])
    wait_until(lambda: ("unsaved", True) in view.kinds())
    waiting = {action["id"] for action in actions} - set(begun)
    state = session.state()
    assert (state["position"], state["store_ok"]) == (20, False)
    assert "Not saved yet" in state["message"]
    # What is read meanwhile does not hold up the kernel.
    (problem,) = view.send(type="want", start=0, count=30)
    assert "has not answered" in problem["error"]
    while time.monotonic() - away < 40:
        time.sleep(0.5)
        assert saved(view) == begun
        assert session.progress["waiting"] == len(waiting)

    mortal.start()
    wait_until(lambda: session.progress["waiting"] == 0, 240)
    assert session.flush(20)
    assert Counter(saved(view)) == Counter(action["id"] for action in actions)
    assert session.unsaved.empty
    assert session.state()["store_ok"]
    made = Counter(
        assessment.metadata[ACTION_KEY]
        for trace in mlflow.search_traces(return_type="list", include_spans=False)
        for assessment in trace.info.assessments
    )
    assert made == Counter(action["id"] for action in actions)
    assert Counter(stored().values()) == {"yes": 12, "no": 8}


def saved(view: View) -> list[str]:
    """What was told as saved, as often as it was told."""
    return [i for m in view.told if m["type"] == "saved" for i in m["ids"]]
