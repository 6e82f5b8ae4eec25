"""Run a notebook many times with different parameters, in processes, to its end."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError, BudgetError, NotebookError, StoreError
from workbench.experiments.dispatch import Dispatch
from workbench.experiments.execution import (
    Result,
    Task,
    data_digests,
    notebook_digest,
    read_result,
)
from workbench.experiments.grid import Grid, Point, check_points, expand
from workbench.experiments.notebook import masked, masks_of
from workbench.experiments.parameters import find_notebook, notebook_parameters
from workbench.experiments.records import TAKEN
from workbench.experiments.tracking import SweepRun, table_of
from workbench.formatting import bar, counted
from workbench.models.budget import Budget, Usage
from workbench.store.database import prepare_database
from workbench.store.tables import digest


def sweep(
    notebook: str | Path,
    grid: Grid,
    *,
    executor: Executor | None = None,
    jobs: int | None = None,
    name: str | None = None,
    output: str | Path = "output",
    timeout: float | None = None,
    cell_timeout: int | None = None,
    budget: Budget | int | None = None,
    force: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Run a notebook once for each point of a grid, several runs at a time.

    Each run has a process, a kernel and a folder of its own. One that fails keeps its executed
    notebook, and the others go on. A run that is complete, here or in MLflow, is not run again
    while the notebook's cells, its parameters, the files that these name, ``WORKBENCH_MODEL`` and
    the version of the package are the same; so the same call continues what was interrupted.
    Answers of models are shared through the cache: what runs have in common is paid once.

    The sweep is a run in the active MLflow experiment, and each run a child of it, with its
    parameters, what the notebook recorded (`record`), its executed copy, and its pictures.

    Parameters
    ----------
    notebook
        Path, or name in ``notebooks/``; any notebook with a cell tagged ``parameters``. Where it
        has a parameter ``tracking_uri`` that is not given, each run gets an MLflow store of its
        own in its folder.
    grid
        Parameter -> values, a list of dicts, or a table with a row a run.
    executor
        Any `concurrent.futures.Executor`, such as Dask's ``client.get_executor()``. Its processes
        must reach the notebook and ``output`` by the same paths. None: processes of this machine.
    jobs
        Runs at the same time, where ``executor`` is None; by default as many as there are cores.
    name
        Of the sweep; that of the notebook by default.
    output
        Folder; the runs lie in ``output/NAME/``, one folder each.
    timeout, cell_timeout
        Seconds that a run, and each of its cells, may take.
    budget
        Of the whole sweep: calls, or a `Budget`. It needs a notebook that records ``calls``,
        ``tokens`` or ``cost``. What complete runs have paid counts; once it is spent, no further
        run is begun, and those under way are finished.
    force
        Run what is complete again.
    progress
        Show a bar.

    Returns
    -------
    pandas.DataFrame
        A row a run in the order of the grid: its parameters, ``status`` (``complete``, ``failed``,
        ``timeout`` or ``cancelled``), ``error``, ``seconds``, what the notebook recorded, each
        under its name (figures as paths), and ``folder``.

    Raises
    ------
    ArgumentError, NotebookError
        For a grid that does not fit the notebook, before anything runs; for an output folder that
        takes no more.
    BudgetError
        Where the notebook does not record what is limited.
    StoreError
        Where MLflow took not all of it. What ran is complete all the same.
    KeyboardInterrupt
        If interrupted. The kernels of the sweep are stopped.
    """
    source = find_notebook(notebook)
    points = expand(grid)
    _check(source, points)
    name = _check_name(name or source.stem)
    place = Path(output).resolve() / name
    tasks, identity = _plan(
        source, points, place, force=force, timeout=timeout, cell_timeout=cell_timeout
    )
    with _writable(place):
        (place / ".locks").mkdir(parents=True, exist_ok=True)
    log = SweepRun(name, digest([name, identity]), place / ".locks" / "log")
    status = "KILLED"
    try:
        results = _Sweep(log, Budget.of(budget).afresh(), progress).run(tasks, executor, jobs)
        done = all(result.status == "complete" for result in results)
        status = "FINISHED" if done else "FAILED"
    finally:
        log.end(status)
    return table_of(results, log.run_id)


def _check(source: Path, points: list[Point]) -> None:
    check_points(notebook_parameters(source), points)
    for name in {name for point in points for name in point}:
        if name in TAKEN or name == "output_dir":
            raise ArgumentError(
                f"grid: {name!r} is set by the sweep, a folder for each run. Use output= for the "
                "folder of all." if name == "output_dir" else
                f"grid: the table has a column {name!r} of its own; rename the parameter."
            )  # fmt: skip


def _check_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .-]{0,99}", name):
        raise ArgumentError(
            f"name={name!r} must be the name of a folder: letters, digits, spaces and ._- only."
        )
    return name


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotebookError(
            f"The output folder {place} cannot be written to: {error.strerror}. Name another with "
            "output=."
        ) from None


def _plan(
    source: Path, points: list[Point], place: Path, **options: Any
) -> tuple[list[Task], list[Any]]:
    """Return a task for each point, and what the whole sweep is identified by."""
    content = notebook_digest(source)
    fixed = [content, version("judge-workbench"), os.environ.get("WORKBENCH_MODEL", "")]
    token = secrets.token_hex(8)
    own_store = "tracking_uri" in {p.name for p in notebook_parameters(source)}
    tasks, data = [], set()
    for position, point in enumerate(points):
        files = data_digests(source, point)
        data |= set(files.values())
        shown = json.loads(masked(json.dumps(point), masks_of(point)))
        key = digest([fixed, shown, files])[:16]
        empty = str(place / ".empty.db") if own_store and "tracking_uri" not in point else ""
        tasks.append(
            Task(
                str(source), content, point, key, position, str(place / key),
                cwd=str(Path.cwd()), stop=str(place / f".stop-{token}"), token=token,
                empty_store=empty, **options,
            )
        )  # fmt: skip
    return tasks, [*fixed, sorted(data)]


class _Sweep:
    """The runs of a sweep under way: what is known of them, and what they spent."""

    def __init__(self, log: SweepRun, budget: Budget, progress: bool) -> None:
        self.log, self.budget, self.progress = log, budget, progress
        self.found: dict[str, Result] = {}
        self.full = ""
        self.unmeasured: set[str] = set()

    def run(self, tasks: list[Task], executor: Executor | None, jobs: int | None) -> list[Result]:
        """Execute what is not complete; return the results in the order of the tasks."""
        logged = self.log.logged()
        for task in tasks if not tasks[0].force else []:
            here, there = read_result(Path(task.folder)), logged.get(task.key)
            for known in (here, there):
                if known and known.status == "complete" and task.key not in self.found:
                    self._settle(known)
        missing = [
            r
            for key, r in self.found.items()
            if getattr(logged.get(key), "started", 0) != r.started
        ]
        waiting = [task for task in tasks if task.key not in self.found]
        stop = Path(tasks[0].stop)
        with (
            bar(total=len(tasks), desc=stop.parent.name, disable=not self.progress) as self.shown,
            ThreadPoolExecutor(1) as self.writer,
        ):
            self.shown.update(len(tasks) - len(waiting))
            for result in missing:
                self.writer.submit(self.log.write, result)
            self.dispatch = Dispatch(executor, jobs, stop, self._result, self._show)
            self._check_budget()
            try:
                if waiting:
                    with _writable(stop.parent):
                        _prepare(waiting)
                    self.dispatch.run(waiting)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"Stopped. {self._kept(len(tasks))}") from None
            finally:
                stop.unlink(missing_ok=True)
                self._show(0)
        self._raise_faults(len(tasks))
        return [self.found[task.key] for task in tasks]

    def _result(self, result: Result) -> None:
        self._settle(result)
        if result.started:
            self.writer.submit(self.log.write, result)
        if result.full:
            self.full = self.full or result.error
            self.dispatch.end("the output folder cannot be written to")
        self._check_budget()
        self.shown.update()

    def _settle(self, result: Result) -> None:
        self.found[result.key] = result
        spent = {name: result.recorded.get(name) for name in ("calls", "tokens", "cost")}
        limits = (self.budget.limit, self.budget.tokens, self.budget.usd)
        if result.status == "complete":
            for (name, amount), limit in zip(spent.items(), limits, strict=True):
                if limit is not None and not isinstance(amount, (int, float)):
                    self.unmeasured.add(name)
        known = {n: a for n, a in spent.items() if isinstance(a, (int, float))}
        self.budget.charge(
            Usage(int(known.get("calls", 0)), int(known.get("tokens", 0)), None, known.get("cost"))
        )

    def _check_budget(self) -> None:
        left = (self.budget.left, self.budget.left_tokens, self.budget.left_usd)
        if self.budget.is_limited and (min(left) <= 0 or self.unmeasured):
            self.dispatch.end(f"the budget of the sweep is spent: {self.budget}")

    def _show(self, running: int) -> None:
        failed = sum(r.status in ("failed", "timeout") for r in self.found.values())
        notes = [f"{running} running"] if running else []
        notes += [f"{failed} failed"] if failed else []
        notes += [f"${self.budget.spent_usd:.4f}"] if self.budget.spent_usd else []
        self.shown.set_postfix_str(", ".join(notes), refresh=running > 0)

    def _kept(self, total: int) -> str:
        complete = sum(result.status == "complete" for result in self.found.values())
        return (
            f"{complete} of {counted(total, 'run')} are complete and kept; the same call goes on "
            "with the rest."
        )

    def _raise_faults(self, total: int) -> None:
        kept = self._kept(total)
        if self.full:
            raise NotebookError(f"The output folder cannot be written to: {self.full}. {kept}")
        if self.unmeasured:
            raise BudgetError(
                f"budget={self.budget!r} cannot be kept: the notebook does not record "
                f"{', '.join(sorted(self.unmeasured))} as a number (workbench.record). {kept}"
            )
        if self.log.fault:
            raise StoreError(f"MLflow did not take all of the sweep: {self.log.fault}. {kept}")


def _prepare(tasks: list[Task]) -> None:
    """Make the empty MLflow store that runs copy, which takes seconds, once."""
    for path in {task.empty_store for task in tasks if task.empty_store}:
        prepare_database(f"sqlite:///{path}")
