"""One run of a sweep: what identifies it, and its execution in whatever process that is.

A run has a folder of its own. Its ``run.json`` is written last and as a whole, so that a folder
with it holds a run that ended, and one without it is made anew.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError
from workbench.experiments.notebook import masked, masks_of, run_notebook
from workbench.experiments.parameters import notebook_parameters, read_notebook
from workbench.experiments.records import first_error, read_records
from workbench.formatting import write_whole
from workbench.store.tables import digest

Status = Literal["complete", "failed", "timeout", "cancelled"]

RESULT: Final = "run.json"
STARTED: Final = "started"

_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a file system says when it takes nothing more."""


@dataclass(frozen=True)
class Result:
    """How a run ended; ``full`` says that the output folder takes no more."""

    key: str
    parameters: dict[str, Any]
    status: Status
    error: str = ""
    seconds: float = 0.0
    started: float = 0.0
    recorded: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    token: str = ""
    position: int = 0
    full: bool = False


@dataclass(frozen=True)
class Task:
    """A run as it is sent to the process that executes it; all paths are absolute.

    ``token`` is that of the call of `sweep`, which ``stop``, a file, ends once it is there.
    """

    notebook: str
    source_digest: str
    parameters: dict[str, Any]
    key: str
    position: int
    folder: str
    cwd: str
    stop: str
    token: str
    force: bool = False
    timeout: float | None = None
    cell_timeout: int | None = None
    empty_store: str = ""

    def result(self, status: Status, error: str = "", **more: Any) -> Result:
        """Return how this run ended, without secrets."""
        found = Result(
            self.key, self.parameters, status, error, folder=self.folder, token=self.token,
            position=self.position, **more,
        )  # fmt: skip
        text = masked(json.dumps(asdict(found)), masks_of(self.parameters))
        return Result(**json.loads(text))

    @property
    def is_started(self) -> bool:
        """Whether a process has begun this run in this call and has not ended it."""
        folder = Path(self.folder)
        with suppress(OSError):
            started = (folder / STARTED).read_text() == self.token
            return started and not (folder / RESULT).exists()
        return False

    @property
    def stopped(self) -> str:
        """Why the run must end, or not begin; "" where it may go on."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return "the sweep was killed"
        with suppress(OSError):
            return Path(self.stop).read_text() or "the sweep was stopped"
        return ""


def notebook_digest(source: Path) -> str:
    """Return a hash of what a notebook's cells say; their outputs do not count."""
    cells = read_notebook(source).cells
    return digest([[c.cell_type, c.source, c.metadata.get("tags", [])] for c in cells])


def data_digests(source: Path, point: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each file that a parameter names, the defaults included."""
    defaults = {p.name: p.default for p in notebook_parameters(source)}
    found = {}
    for name, value in {**defaults, **point}.items():
        folder = Path.cwd() if name in point else source.parent
        with suppress(OSError, ValueError, TypeError):
            if (file := folder / value).is_file():
                state = file.stat()
                found[name] = _file_digest(file, state.st_mtime_ns, state.st_size)
    return found


@functools.lru_cache(maxsize=256)
def _file_digest(file: Path, *state: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_result(folder: Path) -> Result | None:
    """Return how the run in a folder ended; None where none did."""
    with suppress(OSError, ValueError, TypeError):
        return Result(**json.loads((folder / RESULT).read_text("utf-8")))
    return None


def execute(task: Task) -> Result:
    """Execute a run, or return how it ended where another process has completed it.

    Two processes never execute the same run at once: the second one waits.
    """
    folder = Path(task.folder)
    try:
        (folder.parent / ".locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / ".locks" / task.key)
        while not lock.is_locked:
            if why := task.stopped:
                return task.result("cancelled", why)
            with suppress(Timeout):
                lock.acquire(timeout=0.5)
        try:
            return _execute(task, folder)
        finally:
            lock.release()
    except OSError as error:
        return _lost(task, error)


def _execute(task: Task, folder: Path) -> Result:
    done = read_result(folder)
    if done and done.status == "complete" and (not task.force or done.token == task.token):
        return done
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    (folder / STARTED).write_text(task.token)
    parameters = dict(task.parameters)
    if task.empty_store:
        shutil.copy(task.empty_store, folder / "mlflow.db")
        parameters["tracking_uri"] = f"sqlite:///{folder}/mlflow.db"
    result = _run(task, parameters, folder, {"TMPDIR": str(temporary)})
    shutil.rmtree(temporary, ignore_errors=True)
    write_whole(folder / RESULT, json.dumps(asdict(result), indent=2))
    (folder / STARTED).unlink()
    return result


def _run(
    task: Task, parameters: dict[str, Any], folder: Path, environment: dict[str, str]
) -> Result:
    begun, started = time.monotonic(), time.time()
    ending: list[tuple[Status, str]] = []

    def ends() -> bool:
        if not ending and task.timeout and time.monotonic() - begun > task.timeout:
            ending.append(("timeout", f"It ran longer than {task.timeout:g} s and was stopped."))
        elif not ending and (why := task.stopped):
            ending.append(("cancelled", why))
        return bool(ending)

    status: Status = "complete"
    error = ""
    source = Path(task.notebook)
    try:
        if notebook_digest(source) != task.source_digest:
            return task.result("failed", f"{source.name} was changed while the sweep went on.")
        run_notebook(
            source, parameters=parameters, output=folder, progress=False, cwd=task.cwd,
            environment=environment, cell_timeout=task.cell_timeout, ends=ends,
        )  # fmt: skip
    except OSError as failure:
        return _lost(task, failure)
    except Exception as failure:  # whatever it is, it is this run's alone and is told
        named = "" if isinstance(failure, WorkbenchError) else f"{type(failure).__name__}: "
        status, error = "failed", f"{named}{failure}"
    if ending:
        status, error = ending[0]
    recorded: dict[str, Any] = {}
    with suppress(WorkbenchError):  # there is no copy of a notebook whose kernel never started
        executed = read_notebook(folder / source.name)
        recorded = read_records(executed, folder / "figures")
        if error.startswith("Cell In"):
            error = first_error(executed) or error
    return task.result(
        status,
        error.partition("\n")[0],
        seconds=time.monotonic() - begun,
        started=started,
        recorded=recorded,
    )


def _lost(task: Task, error: OSError) -> Result:
    """Return the result of a run whose folder cannot be written."""
    what = f"{os.strerror(error.errno) if error.errno else error} ({task.folder})"
    return task.result("failed", what, full=error.errno in _DISK)
