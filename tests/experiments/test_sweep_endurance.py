"""A sweep survives what is killed, stopped and full, and takes turns with another one."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from running import new_user
from small_notebooks import lives, write

import workbench
from workbench.errors import NotebookError

SOURCE = """
import os, time
open(f'{log}/{seed}-{os.getpid()}', 'w').write(str(os.getppid()))
while seed >= 10 and not os.path.exists(f'{log}/go'):
    time.sleep(0.05)
record('after', seed)
"""
SWEEP = "from workbench.cli import main; main()"


@pytest.fixture
def notebook(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook that notes its process, and waits for a file where the seed is 10 or more."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path.parent / "ipython"))
    (tmp_path / "log").mkdir()
    return write(tmp_path / "n.ipynb", SOURCE, parameters="seed = 0\nlog = 'log'")


def begun(folder: Path) -> dict[int, list[int]]:
    """The kernels that ran each seed."""
    found: dict[int, list[int]] = {}
    for file in (folder / "log").glob("*-*"):
        seed, kernel = map(int, file.name.split("-"))
        found.setdefault(seed, []).append(kernel)
    return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def command(notebook: Path, *words: str) -> subprocess.Popen[str]:
    """The command line, in a process of its own, with the store of the test."""
    environment = new_user(notebook.parent) | {
        "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
        "IPYTHONDIR": os.environ["IPYTHONDIR"],
    }
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, "sweep", str(notebook), "--experiment", "test", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def end_midway(
    sweeping: subprocess.Popen[str], folder: Path, times: int, *signals: signal.Signals
) -> str:
    """Send signals once 10 and 11 run; return what was said when their kernels have ended, too."""
    until(lambda: [len(begun(folder).get(seed, ())) for seed in (0, 10, 11)] == [1, times, times])
    for one in signals:
        os.kill(sweeping.pid, one)
        time.sleep(0.1)
    said, _ = sweeping.communicate(timeout=60)
    until(lambda: not any(lives(kernel) for seed in (10, 11) for kernel in begun(folder)[seed]))
    return said


def test_a_sweep_that_is_killed_and_then_stopped_goes_on(notebook: Path, tmp_path: Path) -> None:
    """Its kernels end with it, also where Ctrl-C is pressed more than once, and what was complete
    is not run again."""
    words = ["-p", "seed=0,10,11", "--jobs", "2"]
    killed = command(notebook, *words)
    end_midway(killed, tmp_path, 1, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    stopped = command(notebook, *words)
    said = end_midway(stopped, tmp_path, 2, *[signal.SIGINT] * 3)
    assert stopped.returncode == 130, said
    assert "Stopped. 1 of 3 runs are complete and kept" in said
    (tmp_path / "log" / "go").touch()
    again = command(notebook, *words)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert {seed: len(kernels) for seed, kernels in begun(tmp_path).items()} == {
        0: 1, 10: 3, 11: 3,
    }  # fmt: skip
    assert sorted(workbench.runs("n")["after"]) == [0, 10, 11]


def kill_one(folder: Path) -> None:
    """Kill the process of the run 10 once it is under way with another, and let the rest go on."""
    until(lambda: {10, 11} <= begun(folder).keys())
    (kernel,) = begun(folder)[10]
    os.kill(int((folder / "log" / f"10-{kernel}").read_text()), signal.SIGKILL)
    until(lambda: len(begun(folder)[10]) == 2)
    (folder / "log" / "go").touch()


def test_a_process_that_is_killed_costs_its_runs_one_more_try(
    notebook: Path, tmp_path: Path
) -> None:
    """The sweep completes, and no run is logged twice."""
    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(
            workbench.sweep, notebook, {"seed": [0, 10, 11]}, jobs=2, progress=False
        )
        kill_one(tmp_path)
        table = sweeping.result(timeout=120)
    assert list(table["status"]) == ["complete"] * 3
    assert len(workbench.runs(table)) == 3
    assert len(begun(tmp_path)[0]) == 1


def test_a_run_that_always_kills_its_process_is_found(store: str, tmp_path: Path) -> None:
    """It fails with the reason and what both attempts paid; those beside it are complete."""
    source = write(
        tmp_path / "n.ipynb",
        "import os\nprint('[2, 10, 5, 0.0]', file=open(os.environ['WORKBENCH_SPENT'], 'a'))\n"
        "if seed == 1:\n    os.kill(os.getppid(), 9)\n",
    )
    table = workbench.sweep(source, {"seed": range(2)}, jobs=2, progress=False)
    assert list(table["status"]) == ["complete", "failed"]
    assert "The process that ran it died" in table["error"][1]
    assert list(table["calls"]) == [2, 4]
    pd.testing.assert_frame_equal(workbench.runs(table), table)
    again = workbench.sweep(source, {"seed": 1}, budget=8, progress=False)
    assert (again["status"][0], again["calls"][0]) == ("failed", 4)
    spent = workbench.sweep(source, {"seed": 1}, budget=8, progress=False)
    assert list(spent["status"]) == ["cancelled"]


def test_what_a_killed_attempt_paid_is_counted_once(store: str, tmp_path: Path) -> None:
    """Beside what the notebook records of the attempt that completes."""
    source = write(
        tmp_path / "n.ipynb",
        "import os\nprint('[2, 10, 5, 0.0]', file=open(os.environ['WORKBENCH_SPENT'], 'a'))\n"
        "if not os.path.exists(flag):\n    open(flag, 'w')\n    os.kill(os.getppid(), 9)\n"
        "record('calls', 3)",
        parameters="flag = ''",
    )
    grid = {"flag": str(tmp_path / "flag")}
    table = workbench.sweep(source, grid, progress=False)
    assert (table["status"][0], table["calls"][0], table["tokens"][0]) == ("complete", 5, 30)
    again = workbench.sweep(source, grid, force=True, progress=False)
    assert (again["calls"][0], again["tokens"][0]) == (3, 15)


def test_two_sweeps_at_once_run_nothing_twice(notebook: Path, tmp_path: Path) -> None:
    """They share a store and a folder; MLflow has each run once."""
    other = command(notebook, "-p", "seed=10..12", "--jobs", "2")
    until(lambda: begun(tmp_path).keys() == {10, 11})
    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(
            workbench.sweep, notebook, {"seed": range(10, 13)}, jobs=3, progress=False
        )
        try:
            until(lambda: 12 in begun(tmp_path))
        finally:  # else the pool would wait for them for ever
            (tmp_path / "log" / "go").touch()
        table, (said, _) = sweeping.result(timeout=120), other.communicate(timeout=120)
    assert other.returncode == 0, said
    assert list(table["status"]) == ["complete"] * 3
    assert {seed: len(kernels) for seed, kernels in begun(tmp_path).items()} == dict.fromkeys(
        (10, 11, 12), 1
    )
    import mlflow

    children = mlflow.search_runs().dropna(subset="tags.workbench.run_key")
    assert sorted(children["params.seed"]) == ["10", "11", "12"]
    assert list(workbench.runs("n")["seed"]) == [10, 11, 12]


def test_a_full_disk_is_told_and_what_was_done_stays(notebook: Path, tmp_path: Path) -> None:
    """As by a limit on the size of the files that the process of a run may write."""
    write(
        notebook,
        "import os, resource\nif seed == 2 and not os.path.exists(f'{log}/go'):\n"
        "    limits = (50_000, resource.RLIM_INFINITY)\n"
        "    resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, limits)\n"
        "    print('x' * 100_000)",
        "record('after', seed)",
        parameters="seed = 0\nlog = 'log'",
    )
    sweep = functools.partial(
        workbench.sweep, notebook, {"seed": range(1, 3)}, jobs=1, progress=False
    )
    with pytest.raises(NotebookError, match="cannot be written to: File too large") as told:
        sweep()
    assert "1 of 2 runs are complete and kept; the same call goes on with the rest" in str(
        told.value
    )
    (tmp_path / "log" / "go").touch()
    assert list(sweep()["status"]) == ["complete"] * 2
    assert list(workbench.runs("n")["after"]) == [1, 2]


def test_a_dask_cluster_completes_a_sweep_when_a_worker_is_killed(
    notebook: Path, tmp_path: Path
) -> None:
    """No run counts twice, and the table is that of processes of this machine."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client, ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(
            workbench.sweep,
            notebook,
            {"seed": [0, 10, 11]},
            executor=client.get_executor(),
            progress=False,
        )
        kill_one(tmp_path)
        table = sweeping.result(timeout=120)
    assert list(table["status"]) == ["complete"] * 3, list(table["error"])
    assert list(table["after"]) == [0, 10, 11]
    assert len(workbench.runs(table)) == 3
    again = workbench.sweep(notebook, {"seed": [0, 10, 11]}, progress=False)
    pd.testing.assert_frame_equal(again, table)
    folders = [json.loads((Path(f) / "run.json").read_text()) for f in table["folder"]]
    assert [one["status"] for one in folders] == ["complete"] * 3
