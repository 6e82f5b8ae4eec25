"""A sweep runs each point once, keeps what fails, and is an MLflow run with a child a run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pandas as pd
import pytest
from mlflow.utils.file_utils import local_file_uri_to_path
from small_notebooks import lives, write
from tqdm import std

import workbench
from workbench.errors import ArgumentError, BudgetError, NotebookError, StoreError

WORK = """
import os, sys
open(f'{log}/ran', 'a').write(f'{seed} {kind}\\n')
if kind == 'raise':
    record('cost', 0.5)
    raise ValueError('no <b>luck</b>')
if kind == 'hang':
    import subprocess, time
    both = [subprocess.Popen(['sleep', '100'], start_new_session=apart) for apart in (0, 1)]
    print(both[0].pid, both[1].pid, flush=True)
    time.sleep(100)
if kind == 'dies':
    os.kill(os.getpid(), 9)
if kind == 'prints':
    for _ in range(1_000_000):
        sys.stdout.write('x' * 99 + '\\n')
if kind == 'missing':
    import no_such_package
if kind == 'exits':
    raise SystemExit(0)
"""
RECORDS = """
import tempfile
record('temporary', tempfile.gettempdir())
record('pid', os.getpid())
record('after', seed / 10)
record('cost', 0.25)
"""
PARAMETERS = "seed = 0\nkind = 'works'\nlog = ''\ndata = 'data.txt'\noutput_dir = 'x'"


@pytest.fixture
def notebook(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook that notes in a file that it ran, in the folder that is the current one."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path.parent / "ipython"))
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "log").mkdir()
    return write(tmp_path / "works.ipynb", WORK, RECORDS, parameters=PARAMETERS)


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    """What runs are given to where it does not matter that each has a process of its own."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def executed(folder: Path) -> list[str]:
    """What ran, in the order of its beginning."""
    log = folder / "log" / "ran"
    return log.read_text().splitlines() if log.exists() else []


def test_runs_are_apart_recorded_and_not_repeated(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    """Each has a kernel, folder and temporary files of its own; more points are added to them."""
    grid = {"seed": range(2), "log": str(tmp_path / "log")}
    table = workbench.sweep(notebook, grid, jobs=2, progress=False)
    assert list(table["status"]) == ["complete"] * 2
    assert list(table["after"]) == [0.0, 0.1]
    assert list(table.columns[:5]) == ["seed", "log", "status", "error", "seconds"]
    for column in ("pid", "temporary", "folder"):
        assert table[column].nunique() == 2
    assert sorted(executed(tmp_path)) == ["0 works", "1 works"]
    for folder, temporary in zip(table["folder"], table["temporary"], strict=True):
        assert Path(temporary).is_relative_to(folder)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["run.json", "works.ipynb"]
    more = workbench.sweep(notebook, {**grid, "seed": range(3)}, executor=threads, progress=False)
    pd.testing.assert_frame_equal(more[:2], table, check_dtype=False)
    assert sorted(executed(tmp_path)) == ["0 works", "1 works", "2 works"]
    pd.testing.assert_frame_equal(workbench.runs(more), more)
    pd.testing.assert_frame_equal(workbench.runs("works"), more)
    workbench.sweep(notebook, {**grid, "seed": 1}, executor=threads, force=True, progress=False)
    assert executed(tmp_path)[3:] == ["1 works"]
    assert len(workbench.runs("works")) == 3


def test_what_a_run_is_identified_by(
    notebook: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, cells and model make another run; outputs of cells do not."""
    grid: dict[str, Any] = {"log": str(tmp_path / "log")}

    def ran(source: Path = notebook) -> int:
        before = len(executed(tmp_path))
        workbench.sweep(source, grid, executor=threads, progress=False)
        return len(executed(tmp_path)) - before

    assert ran() == 1
    content = nbformat.read(notebook, as_version=4)
    content.cells[0].outputs = [nbformat.v4.new_output("stream", text="shown")]
    nbformat.write(content, notebook)
    assert ran() == 0
    (tmp_path / "data.txt").write_text("other data")
    assert ran() == 1
    monkeypatch.setenv("HOME", str(tmp_path / "log"))
    for given, file in (("~/data.txt", "log/data.txt"), (["x", "list.txt"], "list.txt")):
        grid["data"] = [given]
        for content_of_file, runs in (("one", 1), ("one", 0), ("two", 1)):
            (tmp_path / file).write_text(content_of_file)
            assert ran() == runs, (given, content_of_file)
    del grid["data"]
    (tmp_path / "sub").mkdir()
    elsewhere = shutil.copy(notebook, tmp_path / "sub")
    for content_of_file, runs in (("three", 1), ("three", 0), ("four", 1)):
        (tmp_path / "data.txt").write_text(content_of_file)
        assert ran(elsewhere) == runs, "a default that names a file of the current folder"
    content.cells[-1].source += "\n# changed"
    nbformat.write(content, notebook)
    assert ran() == 1
    assert len(workbench.runs("works")) == 1  # the latest


@pytest.mark.parametrize("how", ["killed", "removed", "moved"])
def test_what_is_complete_has_its_files_where_the_table_says(
    notebook: Path, tmp_path: Path, threads: Executor, how: str
) -> None:
    """Whatever became of its folder, else it is run again; MLflow has the latest."""
    grid, output = {"log": str(tmp_path / "log")}, tmp_path / "out"
    table = workbench.sweep(notebook, grid, executor=threads, output=output, progress=False)
    folder = Path(table["folder"][0])
    if how == "killed":  # a run that was forced, before its end
        result = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**result, "status": "cancelled"}))
    elif how == "moved":
        output = output.rename(tmp_path / "out2")
    else:
        shutil.rmtree(folder)
    again = workbench.sweep(notebook, grid, executor=threads, output=output, progress=False)
    assert list(again["status"]) == ["complete"]
    now = Path(again["folder"][0])
    assert now.parent == output / "works"
    assert (now / "works.ipynb").is_file()
    assert len(executed(tmp_path)) == (1 if how == "moved" else 2)
    pd.testing.assert_frame_equal(workbench.runs(again), again)


def test_a_folder_with_a_secret_in_its_path_is_found_again(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    grid = {"kind": "works", "log": str(tmp_path / "log"), "api_key": "output-of"}
    given: dict[str, Any] = {"executor": threads, "output": "output-of-ana", "progress": False}
    content = nbformat.read(notebook, as_version=4)
    content.cells[0].source += "\napi_key = ''"
    nbformat.write(content, notebook)
    table = workbench.sweep(notebook, grid, **given)
    assert (Path(table["folder"][0]) / "works.ipynb").is_file()
    assert Path(table["temporary"][0]).is_relative_to(table["folder"][0])
    pd.testing.assert_frame_equal(workbench.sweep(notebook, grid, **given), table)
    assert len(executed(tmp_path)) == 1


def test_paths_may_begin_in_the_home_folder(
    notebook: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home: dict[str, Any] = {"executor": threads, "output": "~/two", "progress": False}
    table = workbench.sweep("~/works.ipynb", {"log": str(tmp_path / "log")}, **home)
    assert Path(table["folder"][0]).parent == tmp_path / "two" / "works"


def test_the_runs_of_a_table_are_those_in_it(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    """And those of a name all that it ever had, whatever grid each call had."""
    grid = {"log": str(tmp_path / "log")}
    workbench.sweep(notebook, {**grid, "seed": [5, 6]}, executor=threads, progress=False)
    table = workbench.sweep(notebook, {**grid, "seed": [2, 1]}, executor=threads, progress=False)
    pd.testing.assert_frame_equal(workbench.runs(table), table)
    assert sorted(workbench.runs("works")["seed"]) == [1, 2, 5, 6]


def test_mlflow_has_a_parent_and_a_child_for_each_run(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    """With parameters, metrics, tags and the executed notebook; a failed one is failed there."""
    grid = [{"seed": 3}, {"kind": "raise", "log": str(tmp_path / "log")}]
    table = workbench.sweep(notebook, grid, executor=threads, progress=False, name="two runs")
    parent = mlflow.get_run(table.attrs["sweep"])
    assert parent.info.run_name == "two runs"
    assert parent.info.status == "FAILED"
    assert parent.data.params == {"notebook": "works.ipynb"}
    children = mlflow.MlflowClient().search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    status = {child.info.status: child for child in children}
    assert len(children) == len(status) == 2
    done = status["FINISHED"]
    assert done.data.params == {"seed": "3"}
    assert (done.data.metrics["after"], done.data.metrics["cost"]) == (0.3, 0.25)
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(done.info.run_id)}
    assert files == {"run.json", "works.ipynb"}
    assert done.info.end_time - done.info.start_time == pytest.approx(
        table["seconds"][0] * 1000, abs=2
    )


def test_the_time_left_is_that_of_the_runs_to_come(
    notebook: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are complete took no time, and say nothing of the others."""
    grid = {"log": str(tmp_path / "log")}
    workbench.sweep(notebook, {**grid, "seed": [0, 1]}, executor=threads, progress=False)
    close, ends = std.tqdm.close, set[tuple[int, int, int]]()

    def noted(bar: Any) -> None:
        if getattr(bar, "desc", "") == "works":
            ends.add((bar.initial, bar.n, bar.total))
        close(bar)

    with monkeypatch.context() as patched:
        patched.setattr(std.tqdm, "close", noted)
        workbench.sweep(notebook, {**grid, "seed": [0, 1, 2]}, executor=threads)
    assert ends == {(0, 1, 1)}


def test_what_fails_is_told_and_the_others_go_on(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    """A notebook that raises, kills its kernel, prints 100 MB, lacks a package, or exits."""
    kinds = ["raise", "dies", "prints", "missing", "exits", "works"]
    grid = {"kind": kinds, "log": str(tmp_path / "log")}
    table = workbench.sweep(notebook, grid, executor=threads, progress=False).set_index("kind")
    status = dict(table["status"])
    assert status == {
        **dict.fromkeys(kinds, "failed"),
        "prints": "complete",
        "works": "complete",
    }
    errors = dict(table["error"])
    assert errors["raise"] == "ValueError: no <b>luck</b>"
    assert errors["missing"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert "kernel of works.ipynb died" in errors["dies"]
    assert "4 cells" not in errors["exits"]
    assert errors["exits"].startswith("1 cell of works.ipynb did not run")
    assert table["cost"]["raise"] == 0.5
    kept = {kind: Path(table["folder"][kind]) / "works.ipynb" for kind in kinds}
    assert "no <b>luck</b>" in kept["raise"].read_text()
    assert kept["prints"].stat().st_size < 1_000_000
    assert "Further output is omitted" in kept["prints"].read_text()
    again = workbench.sweep(
        notebook, {**grid, "kind": ["raise", "works"]}, executor=threads, progress=False
    )
    assert list(again["status"]) == ["failed", "complete"]
    assert executed(tmp_path).count("0 raise") == 2
    assert executed(tmp_path).count("0 works") == 1
    assert len(workbench.runs("works")) == 6


def test_a_run_has_a_time_limit(notebook: Path, tmp_path: Path, threads: Executor) -> None:
    """The kernel and the processes that it started are killed; what it printed is kept."""
    grid = {"kind": "hang", "log": str(tmp_path / "log")}
    table = workbench.sweep(notebook, grid, executor=threads, timeout=3, progress=False)
    assert list(table["status"]) == ["timeout"]
    assert table["error"][0] == "It ran longer than 3 s and was stopped."
    kept = nbformat.read(Path(table["folder"][0]) / "works.ipynb", as_version=4)
    started = kept.cells[-2].outputs[0].text.split()
    assert [lives(int(process)) for process in started] == [False, False]


def test_nothing_runs_where_the_grid_does_not_fit(notebook: Path, tmp_path: Path) -> None:
    for grid, said in (
        ({"seed": [1, "two"]}, "seed='two' is no whole number"),
        ([{"seed": 1}, {"sead": 1}], "'sead' is not known.*'seed'"),
        ({"output_dir": "x"}, "output_dir is set by the sweep itself"),
        ({"seed": []}, "no point"),
    ):
        with pytest.raises((ArgumentError, NotebookError), match=said):
            workbench.sweep(notebook, grid, progress=False)
    with pytest.raises(NotebookError, match="cannot be written to"):
        workbench.sweep(notebook, {"seed": 1}, output=tmp_path / "data.txt", progress=False)
    with pytest.raises(StoreError, match="no sweep 'works'"):
        workbench.runs("works")
    mlflow.delete_experiment(mlflow.set_experiment("gone").experiment_id)
    with pytest.raises(StoreError, match="'gone' was deleted"):
        workbench.sweep(notebook, {"seed": 1}, progress=False)
    assert executed(tmp_path) == []


def test_a_budget_ends_the_sweep_and_earlier_runs_count(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    """No run is begun once it is spent; what the notebook does not record cannot be limited."""
    grid = {"seed": range(4), "log": str(tmp_path / "log")}
    one: dict[str, Any] = {"jobs": 1, "executor": threads, "progress": False}
    usd = workbench.Budget(usd=0.5)
    table = workbench.sweep(notebook, grid, budget=usd, **one)
    assert list(table["status"]) == ["complete"] * 2 + ["cancelled"] * 2
    assert "the budget of the sweep is spent: $0.5000 of $0.50" in table["error"][3]
    pd.testing.assert_frame_equal(workbench.runs("works"), table)
    again = workbench.sweep(notebook, grid, budget=usd, **one)
    assert list(again["status"]) == list(table["status"])
    assert len(executed(tmp_path)) == 2
    with pytest.raises(BudgetError, match="does not record calls"):
        workbench.sweep(notebook, grid, budget=100, **one)


def test_requests_are_counted_though_the_kernel_is_killed(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    """As they are made, whatever the notebook has recorded until then."""
    source = write(
        tmp_path / "killed.ipynb",
        "import os, pandas, workbench\n"
        "judge = workbench.make_judge('good', 'Is {{ outputs }} right for {{ inputs }}?',\n"
        "    model='offline:/rubric', feedback_value_type=bool)\n"
        "table = pandas.DataFrame({'q': list('abc'), 'a': list('xyz')})\n"
        "workbench.score(judge, table, inputs='q', outputs='a', to=f'{output_dir}/verdicts',\n"
        "    progress=False)\n"
        "record('calls', 1)",
        "os.kill(os.getpid(), 9)",
        parameters="seed = 0\noutput_dir = '.'",
    )
    grid, limit = {"seed": [0, 1]}, workbench.Budget(3)
    table = workbench.sweep(source, grid, budget=limit, jobs=1, executor=threads, progress=False)
    assert list(table["status"]) == ["failed", "cancelled"]
    assert list(table["calls"][:1]) == [3]


def test_a_budget_counts_what_failed_and_was_run_again(
    notebook: Path, tmp_path: Path, threads: Executor
) -> None:
    """Three attempts at a run that fails cost 1.50, and a forced one pays beside the first."""
    kinds = {"kind": "raise", "log": str(tmp_path / "log")}
    usd: dict[str, Any] = {"budget": workbench.Budget(usd=1.2), "executor": threads}
    status = [
        workbench.sweep(notebook, kinds, progress=False, **usd)["status"][0] for _ in range(4)
    ]
    assert status == ["failed"] * 3 + ["cancelled"]
    assert executed(tmp_path) == ["0 raise"] * 3
    works = {"kind": "works", "log": str(tmp_path / "log")}
    usd["budget"] = workbench.Budget(usd=0.4)
    status = [
        workbench.sweep(notebook, works, progress=False, force=True, **usd)["status"][0]
        for _ in range(3)
    ]
    assert status == ["complete", "complete", "cancelled"]


@pytest.mark.parametrize(
    ("limit", "values"),
    [
        ("timeout", ["2", 0, -1, float("nan")]),
        ("cell_timeout", [0, -5, "x", 1.5]),
        ("jobs", [0, -1, "2"]),
    ],
)
def test_limits_are_checked_before_anything_starts(
    notebook: Path, tmp_path: Path, limit: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(ArgumentError, match=f"{limit}="):
            workbench.sweep(notebook, {"seed": 1}, progress=False, **{limit: value})
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["../up", "Ana's"])
def test_a_sweep_has_the_name_of_a_folder(notebook: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="name="):
        workbench.sweep(notebook, {"seed": 1}, name=name, progress=False)
    assert not (tmp_path / "output").exists()


def test_secrets_among_the_parameters_are_not_written(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    source = write(
        tmp_path / "n.ipynb",
        "assert api_key == 'hidden' + '-one'\nprint(api_key)",
        parameters="api_key = None",
    )
    table = workbench.sweep(source, {"api_key": "hidden-one"}, executor=threads, progress=False)
    assert list(table["status"]) == ["complete"]
    assert table["api_key"][0] == "***"
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"hidden-one" not in file.read_bytes(), file


def test_runs_that_only_secrets_tell_apart_are_runs_of_their_own(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    """Numbers too, whose digits say nothing of other numbers."""
    source = write(
        tmp_path / "n.ipynb", "record('half', key // 2 + 0.100000)", parameters="key = 0\nx = 0.0"
    )
    grid = {"key": [100000, 200000], "x": 0.1000001}
    table = workbench.sweep(source, grid, executor=threads, progress=False)
    assert list(table["status"]) == ["complete"] * 2
    assert list(table["half"]) == [50000.1, 100000.1]
    assert list(table["key"]) == ["***"] * 2
    assert list(table["x"]) == [0.1000001] * 2


def test_runs_use_the_active_store(
    store: str, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And experiment, whatever the environment says; no secret of its address is written."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    uri = f"{store}?timeout=1234567"
    active = workbench.use_workspace("output", experiment="shop", tracking_uri=uri)
    source = write(
        tmp_path / "n.ipynb",
        "import mlflow\nrecord('shown', mlflow.get_tracking_uri())",
        "with mlflow.start_run() as run:\n    record('experiment', run.info.experiment_id)",
    )
    table = workbench.sweep(source, {"seed": 0}, executor=threads, progress=False)
    assert list(table["error"]) == [""]
    assert (table["experiment"][0], table["shown"][0]) == (active.experiment_id, store)
    for file in (path for path in Path(table["folder"][0]).rglob("*") if path.is_file()):
        assert b"1234567" not in file.read_bytes(), file


class OtherMachine(Executor):
    """Runs where other variables are set."""

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("WORKBENCH_MODEL", "WORKBENCH_CACHE"):
                patch.setenv(name, "of the worker")
            future = Future[Any]()
            future.set_result(fn(task))
        return future


def test_runs_use_the_model_and_the_cache_of_the_caller(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which the key was made, whatever the variables of a worker say."""
    monkeypatch.delenv("WORKBENCH_MODEL", raising=False)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    source = write(
        tmp_path / "n.ipynb",
        "import os\nfor name in ('WORKBENCH_MODEL', 'WORKBENCH_CACHE'):\n"
        "    record(name, os.environ.get(name, 'not set'))",
    )
    table = workbench.sweep(source, {"seed": 0}, executor=OtherMachine(), progress=False)
    assert table["WORKBENCH_MODEL"][0] == "not set"
    assert table["WORKBENCH_CACHE"][0] == str(tmp_path / "cache")


def test_in_a_store_of_its_own_a_run_begins_with_the_default_experiment(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    """The active one is not there."""
    (tmp_path / "output" / "n").mkdir(parents=True)
    shutil.copy(store.removeprefix("sqlite:///"), tmp_path / "output" / "n" / ".empty.db")
    source = write(
        tmp_path / "n.ipynb",
        "import mlflow\nmlflow.set_tracking_uri(tracking_uri)",
        "with mlflow.start_run() as run:\n    record('experiment', run.info.experiment_id)",
        parameters="tracking_uri = None\nseed = 0",
    )
    table = workbench.sweep(source, {"seed": 1}, executor=threads, progress=False)
    assert list(table["experiment"]) == ["0"]


class BreaksStore(Executor):
    """Takes a table from the store while a run is under way."""

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        path = mlflow.get_tracking_uri().removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("DROP TABLE params")
        future = Future[Any]()
        future.set_result(task.result("complete", started=1.0))
        return future


def test_a_store_that_fails_is_told_without_sql(notebook: Path) -> None:
    with pytest.raises(StoreError, match="MLflow did not take all of it: the database") as told:
        workbench.sweep(notebook, {"seed": 0}, executor=BreaksStore(), progress=False)
    assert "INSERT" not in str(told.value)


class RefusesFiles(Executor):
    """Completes a run as the artifact store can take no files any more."""

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        Path(task.folder).mkdir()
        (Path(task.folder) / "n.html").touch()
        experiment: Any = mlflow.get_experiment_by_name("test")
        place = Path(local_file_uri_to_path(experiment.artifact_location))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()  # where there should be a folder
        future = Future[Any]()
        future.set_result(task.result("complete", started=1.0))
        return future


def test_a_child_that_mlflow_did_not_take_whole_has_failed(notebook: Path) -> None:
    """It would else be under way for ever."""
    with pytest.raises(StoreError, match="MLflow did not take all of it"):
        workbench.sweep(notebook, {"seed": 0}, executor=RefusesFiles(), progress=False)
    children = mlflow.search_runs().dropna(subset="tags.workbench.run_key")
    assert list(children["status"]) == ["FAILED"]
    assert workbench.runs("works").empty


def test_a_notebook_that_is_lost_fails_the_runs_to_come(store: str, tmp_path: Path) -> None:
    """As one that is half saved: what ran is logged, and no error ends the sweep."""
    source = write(
        tmp_path / "n.ipynb", "open(path, 'w').write('{')", parameters="seed = 0\npath = ''"
    )
    with ThreadPoolExecutor(1) as one_at_a_time:
        grid = {"seed": range(3), "path": str(source)}
        table = workbench.sweep(source, grid, executor=one_at_a_time, progress=False)
    assert sorted(table["status"]) == ["complete", "failed", "failed"]
    lost = table["error"][table["status"] == "failed"]
    assert lost.str.contains("cannot be read as a notebook").all()
    assert list(workbench.runs(table)["status"]) == list(table["status"])


class Counting(ThreadPoolExecutor):
    """Completes runs without running them, and counts those under way at the same time."""

    now = most = 0

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        self.now += 1
        self.most = max(self.most, self.now)
        return super().submit(self.complete, task)

    def complete(self, task: Any) -> Any:
        time.sleep(0.1)
        self.now -= 1
        return task.result("complete", started=1.0)


def test_an_executor_has_no_more_runs_than_it_is_to_have(notebook: Path) -> None:
    """Each is waited for by a thread, so that a large grid is not given as a whole."""
    with Counting(6) as executor:
        grid = {"seed": range(6)}
        table = workbench.sweep(notebook, grid, executor=executor, jobs=2, progress=False)
    assert list(table["status"]) == ["complete"] * 6
    assert executor.most <= 2


def test_no_more_runs_are_shown_than_are_under_way(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that was killed leaves the folders of its runs as if they went on."""
    draw, shown = std.tqdm.display, set[str]()

    def noted(bar: Any, *given: Any, **options: Any) -> Any:
        shown.add(str(bar.postfix))
        return draw(bar, *given, **options)

    with Counting(1) as executor:
        given: dict[str, Any] = {"executor": executor, "jobs": 1}
        table = workbench.sweep(notebook, {"seed": range(3)}, progress=False, **given)
        for folder in table["folder"]:
            Path(folder).mkdir()
        monkeypatch.setattr(std.tqdm, "display", noted)
        workbench.sweep(notebook, {"seed": range(3)}, **given)
    assert not shown & {"2 running", "3 running"}, shown


def test_papermills_own_features_keep_working(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    """Tags of cells, time limits of cells, and paths relative to the current folder."""
    (tmp_path / "near.txt").write_text("read")
    source = write(tmp_path / "sub" / "n.ipynb", "record('read', open('near.txt').read())",
                   "1 / 0", "import time\ntime.sleep(seed)")  # fmt: skip
    content: Any = nbformat.read(source, as_version=4)
    content.cells[3].metadata["tags"] = ["skip-execution"]
    nbformat.write(content, source)
    table = workbench.sweep(
        source, {"seed": [0, 50]}, executor=threads, cell_timeout=4, progress=False
    )
    assert list(table["read"]) == ["read", "read"]
    assert list(table["status"]) == ["complete", "failed"]
    assert table["error"][1] == "A cell of n.ipynb ran longer than 4 s."


def test_a_kernel_that_does_not_start_is_started_again(
    notebook: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one fails the first two times, as it may where sockets cannot be files."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "ipykernel_launcher.py").write_text(
        "import json, os, sys\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a+') as log:\n"
        "    log.write(json.load(open(sys.argv[2]))['transport'] + ' ')\n"
        "    log.seek(0)\n    starts = len(log.read().split())\n"
        "if starts < 3:\n    sys.exit(1)\n"
        "from ipykernel import kernelapp\nkernelapp.launch_new_instance()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"), prepend=os.pathsep)
    grid = {"log": str(tmp_path / "log")}
    table = workbench.sweep(notebook, grid, executor=threads, progress=False)
    assert list(table["status"]) == ["complete"], table["error"][0]
    assert (tmp_path / "starts").read_text().split() == ["ipc", "tcp", "tcp"]


def test_values_and_figures_are_recorded(store: str, tmp_path: Path, threads: Executor) -> None:
    """As they are; a figure becomes a file and an artifact, and is shown once."""
    source = write(
        tmp_path / "n.ipynb",
        "import workbench, numpy as np, matplotlib.pyplot as plt",
        "for name, value in {'a': np.int64(3), 'b': float('nan'), 'c': 'text', 'd': True}.items():"
        "\n    workbench.record(name, value)\nworkbench.record('a', 4)",
        "workbench.record('curve', plt.plot([1, 2])[0].axes)\nworkbench.record('seed', 'mine')",
    )
    table = workbench.sweep(source, {"seed": 1}, executor=threads, progress=False)
    (row,) = table.to_dict("records")
    assert (row["a"], row["c"], row["d"]) == (4, "text", True)
    assert pd.isna(row["b"])
    assert (row["seed"], row["seed_recorded"]) == (1, "mine")
    assert Path(row["curve"]).read_bytes().startswith(b"\x89PNG")
    child = mlflow.search_runs(filter_string="attributes.status = 'FINISHED'").dropna(
        subset="tags.mlflow.parentRunId"
    )
    shown = {f.path for f in mlflow.MlflowClient().list_artifacts(child["run_id"][0], "figures")}
    assert shown == {"figures/curve.png"}
    tags = mlflow.get_run(child["run_id"][0]).data.tags
    assert tags["c"] == "text"
    assert "curve" not in tags
    outputs = nbformat.read(Path(row["folder"]) / "n.ipynb", as_version=4).cells[-1].outputs
    assert sum("image/png" in output.data for output in outputs) == 1


def test_a_number_that_no_float_holds_is_missing(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    """And ends no other run, though it is what a budget counts."""
    source = write(tmp_path / "n.ipynb", "record('cost', 10 ** (400 * seed))")
    grid, limit = {"seed": [0, 1]}, workbench.Budget(usd=5)
    with pytest.raises(BudgetError, match="does not record cost as a number"):
        workbench.sweep(source, grid, executor=threads, budget=limit, progress=False)
    table = workbench.sweep(source, grid, executor=threads, progress=False)
    assert list(table["status"]) == ["complete"] * 2
    assert table["cost"][0] == 1
    assert pd.isna(table["cost"][1])


@pytest.mark.parametrize(("name", "value"), [("status", 1), ("a b", 1), ("a/../b", 1), ("a", [1])])
def test_what_cannot_be_recorded_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match="record"):
        workbench.record(name, value)


class InterruptedExecutor(ThreadPoolExecutor):
    """Of two runs the first ends, for lack of disk space, just after Ctrl-C; the second watches."""

    def __init__(self) -> None:
        super().__init__(2)
        self.both, self.ended, self.seen = threading.Event(), threading.Event(), set[str]()

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        return super().submit(self.end, task)

    def end(self, task: Any) -> Any:
        stop = Path(task.stop)
        if task.position == 0:
            assert self.both.wait(10)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            deadline = time.monotonic() + 10
            while not stop.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            self.ended.set()
            raise OSError(errno.ENOSPC, "full")
        self.both.set()
        assert self.ended.wait(20)
        for _ in range(50):
            self.seen.add(stop.read_text())
            time.sleep(0.01)
        return task.result("cancelled")


def test_after_ctrl_c_no_run_is_left_to_finish(notebook: Path) -> None:
    """Though another run ends in a way by which those under way would be finished."""
    executor = InterruptedExecutor()
    with pytest.raises(KeyboardInterrupt, match="0 of 2 runs are complete"):
        workbench.sweep(notebook, {"seed": range(2)}, executor=executor, progress=False)
    assert executor.seen == {""}


class Refuses(Executor):
    """Completes one run, and is then shut down or lost."""

    def __init__(self, error: Exception) -> None:
        self.given, self.error = 0, error

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        self.given += 1
        if self.given > 1:
            raise self.error
        future = Future[Any]()
        future.set_result(task.result("complete", started=1.0))
        return future


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cannot schedule new futures after the end"),
        OSError("Timed out after the end"),  # as Dask's CommClosedError
        ConnectionRefusedError(111, "none after the end"),
    ],
)
def test_an_executor_that_takes_no_more_fails_the_runs_to_come(
    notebook: Path, error: Exception
) -> None:
    """They are told with the reason, and what ran is in the table."""
    executor = Refuses(error)
    table = workbench.sweep(notebook, {"seed": range(3)}, executor=executor, progress=False)
    assert sorted(table["status"]) == ["complete", "failed", "failed"]
    assert table["error"].str.contains("after the end").sum() == 2
    assert sorted(workbench.runs("works")["status"]) == sorted(table["status"])


class LosesRuns(Executor):
    """Is interrupted as it has a run that never ends."""

    def submit(self, fn: Any, /, task: Any, **_: Any) -> Future[Any]:  # type: ignore[override]
        main = threading.main_thread().ident or 0
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        return Future[Any]()


def test_ctrl_c_does_not_wait_for_a_cluster_without_workers(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is given the run later finds that it is not to be begun."""
    monkeypatch.setattr("workbench.experiments.sweep.STOP_SECONDS", 0.2)
    with pytest.raises(KeyboardInterrupt, match="0 of 1 run"):
        workbench.sweep(notebook, {"seed": 0}, executor=LosesRuns(), progress=False)
    assert [file.read_text() for file in tmp_path.glob("output/works/.stop-*")] == [""]


def test_a_process_that_is_interrupted_ends_its_run_alone(
    notebook: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does to those of a user's own pool."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("workbench.experiments.execution.run_notebook", interrupted)
        table = workbench.sweep(notebook, {"seed": 0}, executor=threads, progress=False)
    assert list(table["error"]) == ["the run was interrupted"]
    assert list(workbench.runs(table)["status"]) == ["cancelled"]


def test_ctrl_c_while_the_bar_is_drawn_ends_the_sweep(
    notebook: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tqdm keeps its lock where drawing is interrupted, and runs would wait for it for good."""
    draw, once = std.tqdm.display, [1]

    def interrupted(bar: Any, *given: Any, **options: Any) -> Any:
        if "running" in str(bar.postfix) and once:
            once.pop()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.1)
        return draw(bar, *given, **options)

    monkeypatch.setattr(std.tqdm, "display", interrupted)
    grid = {"kind": "hang", "log": str(tmp_path / "log")}
    with pytest.raises(KeyboardInterrupt, match="0 of 1 run"):
        workbench.sweep(notebook, grid, executor=threads)


def test_the_command_sweeps_and_tells_of_failures(
    notebook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from workbench.cli import main

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["sweep", str(notebook), *words])
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out + said.err

    status, said = run("-p", "seed=0..1", "--jobs", "2")
    assert status == 0, said
    assert said.count("complete") == 2
    assert list(pd.read_csv("output/works/sweep.csv")["seed"]) == [0, 1]
    status, said = run("-p", "kind=works,raise", "--jobs", "1")
    assert status == 1
    assert "ValueError: no <b>luck</b>" in said
    assert "MLflow store:" in said
    status, said = run("-p", "sead=0..1")
    assert status == 2
    assert "Did you mean 'seed'?" in said
    for words in (
        ["-p", "seed=4..0"], ["--timeout", "0"], ["--cell-timeout", "-5"],
    ):  # fmt: skip
        status, said = run(*words)
        assert status == 2, words
        assert "Traceback" not in said
    assert json.loads(next((tmp_path / "output/works").glob("*/run.json")).read_text())["key"]
