"""One run of a sweep, in whatever process that is, and its ``run.json``, which is written last."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError
from workbench.experiments.notebook import run_notebook, without_secrets
from workbench.experiments.parameters import read_notebook
from workbench.experiments.records import read_records
from workbench.formatting import write_whole
from workbench.models.budget import SPENT_VARIABLE, read_spent
from workbench.store.tables import digest

Status = Literal["complete", "failed", "timeout", "cancelled"]

RESULT: Final = "run.json"
SPENT: Final = "spent.jsonl"  # what each request to a model used


@dataclass(frozen=True)
class Result:
    """How a run ended; ``position`` is that of its point in the grid."""

    key: str
    parameters: dict[str, Any]
    status: Status
    error: str = ""
    seconds: float = 0.0
    started: float = 0.0
    recorded: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    position: int = 0

    @classmethod
    def read(cls, text: str) -> Result | None:
        """Return the result that a text holds as JSON; None where it holds none."""
        with suppress(ValueError, TypeError):
            return cls(**json.loads(text))
        return None

    def moved(self, folder: str) -> Result:
        """Return it with its paths as they are where its files lie in ``folder``."""
        was, now = self.folder + os.sep, folder + os.sep
        paths = {k: v for k, v in self.recorded.items() if str(v).startswith(was)}
        moved = {k: v.replace(was, now, 1) for k, v in paths.items()}
        return replace(self, folder=folder, recorded=self.recorded | moved)


@dataclass(frozen=True)
class Task:
    """A run as it is sent to the process that executes it."""

    notebook: str
    content: str
    parameters: dict[str, Any]
    key: str
    position: int
    folder: str
    cwd: str
    stop: str  # a file: once it is there, the run is not begun; where that is empty, it is killed
    force: bool = False
    timeout: float | None = None
    cell_timeout: int | None = None
    empty_store: str = ""  # copied for a run with a store of its own
    store: dict[str, str] = field(default_factory=dict)  # variables of model, cache and MLflow

    def result(self, status: Status, error: str = "", **more: Any) -> Result:
        """Return how this run ended, without secrets, but in its folder as that is."""
        found = Result(
            self.key, self.parameters, status, error.partition("\n")[0],
            folder=self.folder, position=self.position, **more,
        )  # fmt: skip
        secret = {**self.parameters, **self.store}
        return Result(**without_secrets(asdict(found), secret)).moved(self.folder)


def notebook_digest(source: Path) -> str:
    """Return a hash of what a notebook's cells say; their outputs do not count."""
    cells = read_notebook(source).cells
    return digest([[c.cell_type, c.source, c.metadata.get("tags", [])] for c in cells])


def read_result(folder: str) -> Result | None:
    """Return how the run in a folder ended, wherever that was then; None where none did."""
    with suppress(OSError, ValueError):
        found = Result.read((Path(folder) / RESULT).read_text("utf-8"))
        return found and found.moved(folder)
    return None


def execute(task: Task) -> Result:
    """Execute a run, or return how it ended where another process has completed it meanwhile."""
    lock = FileLock(Path(task.folder).parent / ".locks" / task.key)
    while not (stop := Path(task.stop)).exists():
        with suppress(Timeout), lock.acquire(timeout=0.5):
            done = read_result(task.folder)
            if done and done.status == "complete" and not task.force:
                return done
            return _execute(task, Path(task.folder))
    return task.result("cancelled", stop.read_text() or "the sweep was stopped")


def lost(task: Task, why: str) -> Result:
    """Return the result of a run whose process died, with what it had paid until then."""
    folder = Path(task.folder)
    if (folder / RESULT).exists() or not folder.is_dir():  # it was not begun
        return task.result("failed", why)
    spent = read_spent(folder / SPENT)
    result = task.result("failed", why, started=time.time(), recorded=spent)
    with suppress(OSError):
        write_whole(folder / RESULT, json.dumps(asdict(result), indent=2))
    return result


def _execute(task: Task, folder: Path) -> Result:
    is_whole, spent = (folder / RESULT).exists(), folder / SPENT
    paid = spent.read_bytes() if spent.exists() and not is_whole else b""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    if paid:  # by an attempt that was killed
        spent.write_bytes(paid)
    parameters = dict(task.parameters)
    if task.empty_store:
        shutil.copy(task.empty_store, folder / "mlflow.db")
        parameters["tracking_uri"] = f"sqlite:///{folder}/mlflow.db"
    result = _run(task, parameters, folder)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    write_whole(folder / RESULT, json.dumps(asdict(result), indent=2))
    return result


def _run(task: Task, parameters: dict[str, Any], folder: Path) -> Result:
    source, begun, started = Path(task.notebook), time.monotonic(), time.time()
    ending: list[tuple[Status, str]] = []
    before = read_spent(folder / SPENT)

    def ends() -> bool:
        if (stop := Path(task.stop)).exists() and not stop.read_text():
            ending.append(("cancelled", "the sweep was stopped"))
        elif task.timeout and time.monotonic() - begun > task.timeout:
            ending.append(("timeout", f"It ran longer than {task.timeout:g} s and was stopped."))
        return bool(ending)

    outcome: tuple[Status, str] = ("complete", "")
    try:
        if notebook_digest(source) == task.content:
            run_notebook(
                source, parameters=parameters, output=folder, progress=False, cwd=task.cwd,
                environment={
                    **task.store,
                    "TMPDIR": str(folder / "tmp"),
                    SPENT_VARIABLE: str(folder / SPENT),
                },
                cell_timeout=task.cell_timeout, ends=ends,
            )  # fmt: skip
        else:
            outcome = ("failed", f"{source.name} was changed while the sweep went on.")
    except WorkbenchError as error:
        cell: Any = error.__cause__
        if isinstance(cell, OSError):  # of the folder
            raise cell from None
        is_of_cell = hasattr(cell, "ename")
        outcome = ("failed", f"{cell.ename}: {cell.evalue}" if is_of_cell else str(error))
    except KeyboardInterrupt:  # Ctrl-C reaches the processes of a user's pool, too
        outcome = ("cancelled", "the run was interrupted")
    except Exception as error:  # whatever it is, it is this run's alone
        outcome = ("failed", f"{type(error).__name__}: {error}")
    recorded: dict[str, Any] = {}
    with suppress(WorkbenchError):  # there is no copy of a notebook whose kernel never started
        recorded = read_records(read_notebook(folder / source.name), folder / "figures")
    status, why = [*ending, outcome][0]
    spent = read_spent(folder / SPENT)
    if status == "complete":
        own = {k: n for k, n in recorded.items() if isinstance(n, (int, float))}
        both = {k: own[k] + n for k, n in before.items() if n and k in own}
        recorded = spent | recorded | both
    else:  # what it recorded of that may be of its first steps alone
        recorded |= spent
    seconds = time.monotonic() - begun
    return task.result(status, why, seconds=seconds, started=started, recorded=recorded)


def start_process(stop: Path) -> None:
    """Let a process of a pool end with the sweep, though that is killed."""
    # Ctrl-C reaches all processes of a terminal; the sweep itself stops the runs.
    signal.signal(signal.SIGINT, lambda *_: None)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        with suppress(OSError):
            stop.write_text("")
        time.sleep(2.0)  # for the kernel to be stopped
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
