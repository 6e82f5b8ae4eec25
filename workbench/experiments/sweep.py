"""Run a notebook many times with different parameters, in processes, to its end."""

from __future__ import annotations

import multiprocessing
import os
import re
import secrets
from collections import deque
from concurrent import futures
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any, Final

import mlflow
import pandas as pd

from workbench.errors import ArgumentError, BudgetError, NotebookError, StoreError, check_whole
from workbench.experiments.execution import (
    RESULT,
    Result,
    Task,
    execute,
    lost,
    notebook_digest,
    read_result,
    start_process,
)
from workbench.experiments.notebook import resolve_parameters, without_secrets, writable
from workbench.experiments.parameters import (
    Grid,
    Parameter,
    Point,
    check_parameters,
    expand,
    find_notebook,
    hashes_of,
    notebook_parameters,
)
from workbench.experiments.records import TAKEN
from workbench.experiments.tracking import SweepRun, logged, table_of
from workbench.formatting import bar, counted, write_whole
from workbench.models.budget import Budget, Usage
from workbench.models.cache import CACHE_VARIABLE
from workbench.models.recording import MODEL_VARIABLE
from workbench.store.database import find_experiment_id, prepare_database, store_message
from workbench.store.tables import digest

MOST_GIVEN: Final = 256  # runs that an executor is given at a time
STOP_SECONDS: Final = 10.0  # that runs are waited for when the sweep is stopped


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
    notebook, and the others go on. A run that is complete is not run again while the notebook's
    cells, its parameters, the files that these name, ``WORKBENCH_MODEL``, the version of the
    package are the same; so the same call continues what was interrupted. In the active MLflow
    experiment the sweep is a run, and each of its runs a child.

    Parameters
    ----------
    notebook
        Path, or name in ``notebooks/``, of a notebook with a cell tagged ``parameters``. Its
        parameter ``output_dir`` is the folder of the run. Where it has a parameter
        ``tracking_uri`` that is not given, each run gets an MLflow store of its own there.
    grid
        Parameter -> values, a list of dicts, or a table with a row a run.
    executor
        Any `concurrent.futures.Executor`, such as Dask's ``client.get_executor()``, whose processes
        reach notebook and ``output`` by the same paths. None: processes of this machine.
    jobs
        Runs at the same time, at most; by default the cores, or 256 with an ``executor``.
    name
        Of the sweep; that of the notebook by default.
    output
        Folder; the runs lie in ``output/NAME/``, one folder each.
    timeout, cell_timeout
        Seconds that a run, and each of its cells, may take.
    budget
        Of the whole sweep, earlier calls included: calls, or a `Budget`. The notebook must record
        ``calls``, ``tokens`` or ``cost``. Once it is spent, no further run is begun.
    force
        Run what is complete again.

    Returns
    -------
    pandas.DataFrame
        A row a run in the order of the grid: its parameters, ``status`` (``complete``, ``failed``,
        ``timeout`` or ``cancelled``), ``error``, ``seconds``, what the notebook recorded
        (`record`; figures as paths), and ``folder``.

    Raises
    ------
    ArgumentError, NotebookError
        For a grid that does not fit the notebook, before anything runs.
    NotebookError, BudgetError, StoreError
        At the end, where the output folder or MLflow took not all, or the notebook does not record
        what is limited. What ran is complete all the same.
    """
    if timeout is not None and not (isinstance(timeout, Real) and float(timeout) > 0):
        raise ArgumentError(f"timeout={timeout!r} must be a number of seconds above 0, or None.")
    for limit, value in {"jobs": jobs, "cell_timeout": cell_timeout}.items():
        if value is not None:
            check_whole(limit, value)
    source, given = find_notebook(notebook), expand(grid)
    declared = notebook_parameters(source)
    points = expand([check_parameters(declared, point) for point in given])
    for point in points:
        if taken := point.keys() & {*TAKEN, "output_dir"}:
            raise ArgumentError(
                f"grid: {', '.join(taken)} is set by the sweep itself, for each run. Rename it."
            )
    name = name or source.stem
    if not re.fullmatch(r"\w[\w .-]{0,99}", name):
        raise ArgumentError(
            f"name={name!r} must be the name of a folder: letters, digits, spaces and ._- only."
        )
    place = Path(output).expanduser().resolve() / name
    tasks, identity = _plan(
        source, declared, points, place, force=force, timeout=timeout, cell_timeout=cell_timeout
    )
    with writable(place):
        (place / ".locks").mkdir(parents=True, exist_ok=True)
    log = SweepRun(name, digest([name, identity]), place / ".locks" / "log", source.name)
    status = "KILLED"
    try:
        with bar(total=len(tasks), desc=name, disable=not progress) as shown:
            results = _Sweep(tasks, log, Budget.of(budget).afresh(), shown).run(executor, jobs)
        done = all(result.status == "complete" for result in results)
        status = "FINISHED" if done else "FAILED"
    finally:
        log.end(status)
    return table_of(results, log.run_id)


def _plan(
    source: Path, declared: list[Parameter], points: list[Point], place: Path, **options: Any
) -> tuple[list[Task], list[Any]]:
    """Return a task for each point, and what the whole sweep is identified by."""
    content, defaults = notebook_digest(source), {p.name: p.default for p in declared}
    # Workers of an executor may have another environment.
    shared = {name: os.environ.get(name, "") for name in (MODEL_VARIABLE, CACHE_VARIABLE)}
    fixed = [content, version("judge-workbench"), shared[MODEL_VARIABLE]]
    stop = str(place / f".stop-{secrets.token_hex(8)}")
    here, takes_store = Path.cwd(), "tracking_uri" in defaults
    tasks: dict[str, Task] = {}
    data = set[str]()
    # MLflow tells its processes the active experiment, but not always the store that it is in.
    active = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    # Of no class of this package, whose import would take workers a second.
    active["MLFLOW_EXPERIMENT_ID"] = str(find_experiment_id())
    default = {"MLFLOW_EXPERIMENT_ID": "0"}
    for position, point in enumerate(points):
        values = defaults | resolve_parameters(source, declared, point, place)
        files = {
            f"{name}.{k}" if k else name: known
            for name, value in values.items()
            for k, known in enumerate(hashes_of(value, here))
        }
        data.update(files.values())
        key = digest([fixed, without_secrets(point, point), files])[:16]
        if key in tasks:  # another secret makes no other run, unless points differ in nothing else
            key = digest([key, position])[:16]
        own_store = takes_store and "tracking_uri" not in point
        store = shared | (default if own_store else {} if takes_store else active)
        tasks[key] = Task(
            str(source), content, point, key, position, str(place / key), str(here), stop,
            empty_store=str(place / ".empty.db") if own_store else "", store=store, **options,
        )  # fmt: skip
    return [*tasks.values()], [*fixed, sorted(data)]


def _begin(slot: Executor, task: Task) -> Future[Result]:
    """Give a run to an executor; one that is broken or shut down fails it alone."""
    try:
        return slot.submit(execute, task)
    except Exception as error:
        refused = Future[Result]()
        refused.set_exception(error)
        return refused


class _Sweep:
    """The runs of a sweep. MLflow and the progress bar have a thread of their own."""

    def __init__(self, tasks: list[Task], log: SweepRun, budget: Budget, shown: Any) -> None:
        self.tasks, self.log, self.budget, self.shown = tasks, log, budget, shown
        self.found: dict[str, Result] = {}
        self.under_way: dict[Future[Result], tuple[Task, Executor]] = {}
        self.over = ""  # why no further run is begun
        self.killed = False
        self.fault: BudgetError | NotebookError | StoreError | None = None
        self.pools, self.beside = ExitStack(), ThreadPoolExecutor(1)

    def run(self, executor: Executor | None, jobs: int | None) -> list[Result]:
        """Execute what is not complete; return the results in the order of the tasks."""
        before = logged(self.log.experiment_id, self.log.run_id)
        try:
            with self.beside, self.pools:
                for task in self.tasks:
                    self._recall(task, before.get(task.key, []))
                waiting = [task for task in self.tasks if task.key not in self.found]
                self.beside.submit(self.shown.reset, len(waiting))  # the time left is that of these
                if waiting:
                    self._run_all(waiting, executor, jobs)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Stopped. {self._kept()}") from None
        finally:
            if not self.under_way:  # else a run heeds it yet
                Path(self.tasks[0].stop).unlink(missing_ok=True)
        if self.fault:
            raise type(self.fault)(f"{self.fault}. {self._kept()}")
        return [self.found[task.key] for task in self.tasks]

    def _recall(self, task: Task, earlier: list[Result]) -> None:
        """Charge what a run has paid until now, and take it where it is complete."""
        here, before = read_result(task.folder), {one.started: one for one in earlier}
        for one in (before | ({here.started: here} if here else {})).values():
            self._charge(one)
        if here and here.status == "complete" and not task.force:
            self._take(here, log=here.started not in before)

    def _run_all(self, waiting: list[Task], executor: Executor | None, jobs: int | None) -> None:
        most = min(jobs or (MOST_GIVEN if executor else os.cpu_count() or 1), len(waiting))
        queue, repeated = deque(waiting), set[str]()
        try:
            ready = self.beside.submit(self._prepare, waiting)
            free = [executor] * most if executor else self._processes(most)
            ready.result()
            while queue or self.under_way:
                left = min(self.budget.left, self.budget.left_tokens, self.budget.left_usd)
                if left <= 0 and not self.over:
                    self._end(f"the budget of the sweep is spent: {self.budget}")
                while queue and self.over:
                    self._take(queue.popleft().result("cancelled", self.over))
                while queue and free:
                    task, slot = queue.popleft(), free.pop()
                    self.under_way[_begin(slot, task)] = task, slot
                for future in futures.wait(self.under_way, 1.0, futures.FIRST_COMPLETED).done:
                    task, slot = self.under_way.pop(future)
                    died = not executor and isinstance(future.exception(), BrokenProcessPool)
                    free += self._processes(1) if died else [slot]
                    if died and task.key not in repeated:
                        repeated.add(task.key)
                        queue.append(task)
                    else:
                        self._settle(task, future)
                # Ctrl-C while this thread draws would leave tqdm's lock taken for good.
                self.beside.submit(self._show, waiting)
        except BaseException:
            self._end("the sweep was stopped", kill=True)
            # A cluster that has lost its workers ends none.
            for future in futures.wait(self.under_way, STOP_SECONDS).done:
                self._settle(self.under_way.pop(future)[0], future)
            raise

    def _prepare(self, waiting: list[Task]) -> None:
        """Make the empty store that runs copy, which takes seconds."""
        with writable(Path(self.tasks[0].stop).parent):
            for path in {task.empty_store for task in waiting if task.empty_store}:
                prepare_database(f"sqlite:///{path}")

    def _processes(self, number: int) -> list[Executor]:
        """Start processes, each in a pool of its own: one that dies takes no other run along."""
        # Processes that are forked would share connections and locks of this one.
        spawn, stop = multiprocessing.get_context("spawn"), Path(self.tasks[0].stop)
        pools = [ProcessPoolExecutor(1, spawn, start_process, (stop,)) for _ in range(number)]
        try:
            for started in [self.pools.enter_context(one).submit(os.getpid) for one in pools]:
                started.result()
        except RuntimeError:  # of this one, as it is imported by another, or of the new one
            raise NotebookError(
                "The processes of the sweep died before they began a run. In a script, call "
                "workbench.sweep below `if __name__ == '__main__':`."
            ) from None
        return [*pools]

    def _settle(self, task: Task, future: Future[Result]) -> None:
        """Take a run that has ended, however it did, and charge what it paid."""
        try:
            result = future.result()
        except Exception as error:  # those of the run itself are in its result
            result = self._failed(task, error)
        self._charge(result)
        self._take(result, log=bool(result.started) or not self.killed)

    def _failed(self, task: Task, error: Exception) -> Result:
        """Return the result of a run that left only an error; one of its folder ends the sweep."""
        # Dask's error of a lost connection is an `OSError` without a number.
        if not isinstance(error, OSError) or isinstance(error, ConnectionError) or not error.errno:
            died = "The process that ran it died (killed, or out of memory), or none was available."
            return lost(task, f"{died} ({type(error).__name__}: {error})")
        reason = f"{os.strerror(error.errno)} ({task.folder})"
        self.fault = NotebookError(f"The output folder cannot be written to: {reason}")
        self._end("the output folder cannot be written to")
        return task.result("failed", reason)

    def _end(self, why: str, *, kill: bool = False) -> None:
        """Begin no further run, wherever it is; those under way are finished or killed."""
        self.over, self.killed = self.over or why, self.killed or kill
        with suppress(OSError):
            write_whole(Path(self.tasks[0].stop), "" if self.killed else self.over)

    def _charge(self, result: Result) -> None:
        """Charge the budget with what a run recorded that it paid."""
        known = {k: n for k, n in result.recorded.items() if isinstance(n, (int, float))}
        limits = {"calls": self.budget.limit, "tokens": self.budget.tokens, "cost": self.budget.usd}
        calls, tokens = int(known.get("calls", 0)), int(known.get("tokens", 0))
        self.budget.charge(Usage(calls, tokens, None, known.get("cost")))
        lacking = [n for n, limit in limits.items() if limit is not None and n not in known]
        if lacking and result.status == "complete":
            self.fault = BudgetError(
                f"budget={self.budget!r} cannot be kept: the notebook does not record "
                f"{', '.join(lacking)} as a number (workbench.record)"
            )
            self._end("the budget cannot be kept")

    def _take(self, result: Result, *, log: bool = True) -> None:
        """Keep how a run ended, and log it while others go on."""
        self.found[result.key] = result
        self.beside.submit(self.shown.update)
        if log:
            self.beside.submit(self._log, result)

    def _log(self, result: Result) -> None:
        try:
            # A store that does not answer is not waited for again.
            if not isinstance(self.fault, StoreError):
                self.log.write(result)
        except Exception as error:
            told = f"MLflow did not take all of it: {store_message(error)}"
            self.fault = self.fault or StoreError(told)

    def _show(self, tasks: list[Task]) -> None:
        folders = [Path(task.folder) for task in tasks]
        running = sum(folder.is_dir() and not (folder / RESULT).exists() for folder in folders)
        # A sweep that was killed left folders of runs that are not under way.
        running = min(running, len(self.under_way))
        failed = sum(r.status in ("failed", "timeout") for r in [*self.found.values()])
        notes: dict[str, float] = {f"{running} running": running, f"{failed} failed": failed}
        notes[f"${self.budget.spent_usd:.4f}"] = self.budget.spent_usd
        self.shown.set_postfix_str(", ".join(note for note, n in notes.items() if n))

    def _kept(self) -> str:
        complete = sum(result.status == "complete" for result in self.found.values())
        total = counted(len(self.tasks), "run")
        return f"{complete} of {total} are complete and kept; the same call goes on with the rest."
