"""Run a notebook with parameters by papermill, in a kernel of this Python."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from workbench.compat import fast_carriage_returns
from workbench.credentials import redact, secret_params, withhold
from workbench.errors import NotebookError
from workbench.experiments.parameters import (
    FOLDERS,
    Parameter,
    check_parameters,
    find_notebook,
    notebook_parameters,
    read_notebook,
)
from workbench.formatting import counted, write_whole
from workbench.imports import deferred_iri_grammar
from workbench.models.recording import Player, Recorder
from workbench.models.recording import variables as recording_variables

with deferred_iri_grammar():
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.translators import PythonTranslator


@dataclass(frozen=True)
class Ran:
    """A notebook that ran: its executed copy, what it was given, and its ``summary.json``."""

    notebook: Path
    parameters: dict[str, Any]
    seconds: float
    summary: dict[str, Any]


def run_notebook(
    notebook: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path = "output",
    record: str | Path | None = None,
    replay: str | Path | None = None,
    progress: bool = True,
    environment: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    cell_timeout: int | None = None,
    ends: Callable[[], object] = lambda: None,
) -> Ran:
    """Execute a notebook with parameters and keep the executed copy in the folder ``output``.

    A variable that is empty in ``environment`` is not set in the kernel. A ``replay`` of model
    answers takes its parameters from the file where none are given. Once ``ends``, which is asked
    several times a second, returns something true, the kernel is killed. Secrets among the
    parameters reach the cells, but no file. What goes wrong is a `NotebookError`.
    """
    source, folder = find_notebook(notebook), Path(output).expanduser().resolve()
    given = {**(Player(replay).head.parameters if replay else {}), **(parameters or {})}
    passed = resolve_parameters(source, notebook_parameters(source), given, folder)
    copy = _Copy(folder / source.name, {**passed, **(environment or {})})
    if copy.target == source:
        raise NotebookError(
            f"output={str(output)!r} is the folder of the notebook itself, which the executed "
            "copy would replace. Choose another folder."
        )
    recorder = None
    if record:
        # A replay's own folder and store are no part of the recording.
        kept = {k: v for k, v in given.items() if k not in ("output_dir", "tracking_uri")}
        told = without_secrets(kept, given)
        is_named = source.parent in map(Path.resolve, FOLDERS)
        name = source.stem if is_named else os.path.relpath(source)
        recorder = Recorder(record, notebook=name, parameters=told)
    summary = folder / "summary.json"
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        summary.unlink(missing_ok=True)  # one of an earlier run must not pass for one of this run
    own = dict(environment or {})
    variables = _QUIET | os.environ | _INLINE | recording_variables(record, replay) | own
    variables = {k: v for k, v in variables.items() if v or k not in own}
    started = time.monotonic()
    try:
        _execute(
            source, copy, passed, show=progress, cell_timeout=cell_timeout, ends=ends,
            environment=variables, folder=str(cwd or Path.cwd()),
        )  # fmt: skip
    finally:
        if recorder is not None:
            recorder.save()
    found: Any = {}
    with suppress(OSError, ValueError):  # as of another file by this name, which cells wrote
        found = json.loads(summary.read_text("utf-8"))
    seconds = time.monotonic() - started
    return Ran(copy.target, passed, seconds, found if isinstance(found, dict) else {})


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raise what a file system refuses within it as a `NotebookError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise NotebookError(
            f"The output folder {folder} cannot be written to: {error.strerror}. Name another "
            "(output=, --output)."
        ) from error


# -- parameters -----------------------------------------------------------------------------

# Parameters that name columns of the data.
COLUMNS: Final = ("inputs", "outputs", "expectations", "annotators", "verdicts", "groups")
SAMPLE: Final = "shop_answers.csv"

SHORTEST_SECRET: Final = 6  # characters; shorter ones are often words


def resolve_parameters(
    source: Path, declared: Sequence[Parameter], given: Mapping[str, Any], output: Path
) -> dict[str, Any]:
    """Check the values given; add the output folder and files beside the notebook."""
    values = check_parameters(declared, given)
    # Where data are given in place of the sample, defaults that name its columns are None.
    if "data" in given and any(Path(str(p.default)).name == SAMPLE for p in declared):
        values |= {p.name: None for p in declared if p.name in COLUMNS and p.name not in given}
    for name, default in ((p.name, p.default) for p in declared if p.name not in values):
        if name == "output_dir":
            values[name] = str(output)
        elif isinstance(default, str) and not Path(default).is_absolute():
            file = source.parent / default
            with suppress(OSError, ValueError):  # of a text that is too long to be a path
                values |= {name: str(file.resolve())} if file.is_file() else {}
    return values


def without_secrets(data: Any, parameters: Mapping[str, Any]) -> Any:
    """Return plain data, such as a notebook, without the secrets among the parameters."""
    secrets = [str(value) for _, value in secret_params(dict(parameters))]
    urls: dict[str, str] = {}
    for value in parameters.values():
        # A text that quotes a URL, such as instructions, does not begin with one.
        if isinstance(value, str) and re.match(r"\s*[a-z][\w+.-]*://", value, re.IGNORECASE):
            clean, withheld, parts = withhold({"base_url": value})
            if withheld:
                urls[value] = clean["base_url"]
                secrets += parts
    quoted: list[Any] = [PythonTranslator.translate, repr, json.dumps]
    forms = {*secrets, *(quote(secret)[1:-1] for secret in secrets for quote in quoted)}

    def masked(value: Any) -> Any:
        if isinstance(value, dict):
            # A word is a name, such as that of a cell's field, also where it equals a secret.
            return {
                key if str(key).replace("_", "").isalpha() else masked(key): masked(one)
                for key, one in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [masked(one) for one in value]
        if isinstance(value, str):
            for url, clean in urls.items():
                value = value.replace(url, clean)
            return redact(value, forms, shortest=SHORTEST_SECRET)
        return "***" if str(value) in secrets and len(str(value)) >= SHORTEST_SECRET else value

    return masked(data) if forms or urls else data


# -- execution ------------------------------------------------------------------------------

# In the environment of the kernel: less noise, for a reader of text.
_QUIET: Final = {
    "WORKBENCH_PROGRESS": "text",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
_INLINE: Final = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


@dataclass
class _Copy:
    """The executed copy: written whole or not at all, and without secrets."""

    target: Path
    parameters: Mapping[str, Any]
    notebook: Any = None  # set by the engine

    def save(self, **_: Any) -> None:
        shown = nbformat.from_dict(without_secrets(self.notebook, self.parameters))
        with writable(self.target.parent):
            write_whole(self.target, nbformat.writes(shown))


def _execute(source: Path, copy: _Copy, parameters: dict[str, Any], **options: Any) -> None:
    kept = f"The notebook as far as it ran: {copy.target}"
    try:
        papermill.execute_notebook(
            # papermill formats paths: braces in the name of a folder would be fields.
            str(source).replace("{", "{{").replace("}", "}}"),
            None,  # written by `copy`
            parameters,
            engine_name="workbench",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            copy=copy,
            **options,
        )
    except papermill.PapermillExecutionError as error:
        copy.save()  # now with papermill's mark at the cell that failed
        stage = _heading(read_notebook(source).cells[: error.cell_index])
        where = f"{source.name} ({stage})" if stage else source.name
        raise NotebookError(
            f"Cell In [{error.exec_count}] of {where} failed.\n"
            f"{error.ename}: {error.evalue}\n{kept}"
        ) from error
    except (RuntimeError, OSError) as error:  # of jupyter_client, unless it is one of these
        told = f"The kernel of {source.name} did not start: {error}"
        if isinstance(error, DeadKernelError):
            told = f"The kernel of {source.name} died, perhaps for lack of memory."
        elif isinstance(error, CellTimeoutError):
            told = f"A cell of {source.name} ran longer than {options['cell_timeout']} s."
        # Callers take a cause that is an `OSError` for a fault of the output folder.
        raise NotebookError(f"{told}\n{kept}") from None
    except KeyboardInterrupt:
        # nbclient drops the task of the interrupted cell, of which asyncio complains later.
        logging.getLogger("asyncio").addFilter(lambda one: "never retrieved" not in str(one.msg))
        raise KeyboardInterrupt(
            f"Stopped. {kept}\nWhat was judged is kept: the same command again pays only for "
            "the rest."
        ) from None
    left = sum(
        cell.cell_type == "code" and cell.execution_count is None and bool(cell.source.strip())
        for cell in copy.notebook.cells
        if "skip-execution" not in cell.metadata.get("tags", [])
    )
    if left:  # papermill takes an exit without an error for the end
        raise NotebookError(
            f"{counted(left, 'cell')} of {source.name} did not run, since one before ended the "
            f"notebook, as exit() does.\n{kept}"
        )


def _heading(cells: Sequence[Any]) -> str:
    """Return the last heading in some cells; empty where there is none."""
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found: list[str] = re.findall(r"^#+\s+(.+?)\s*#*$", text, flags=re.MULTILINE)
    return found[-1] if found else ""


# -- papermill's engine ---------------------------------------------------------------------

STARTS: Final = 3  # of a kernel, at most
MOST_TEXT: Final = 250_000  # characters of what a cell prints that the executed copy keeps


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    """Runs the cells in this Python, and shows headings and what the cells print."""

    begun = False
    heading = ""  # of the running cell, until it prints something
    is_first: bool  # attempt to start the kernel
    sockets: str  # a folder
    shown: bool
    printed: Counter[int]

    def create_kernel_manager(self) -> AsyncKernelManager:
        # Without folders it knows one kernel: this interpreter's, whatever the user registered.
        specs = KernelSpecManager(kernel_dirs=[])
        self.km = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        # A TCP port that is free when it is chosen may be taken by another kernel before this one
        # opens it, which would then hang. Not every file system can hold sockets.
        socket = f"{self.sockets}/s"
        fits = os.name == "posix" and len(socket) + len("-5") <= zmq.IPC_PATH_MAX_LEN
        if fits and self.is_first:
            self.km.transport, self.km.ip = "ipc", socket
        return self.km

    def set_widgets_metadata(self) -> None:
        super().set_widgets_metadata()
        # Let the kernel end by itself: interrupted first, as nbclient does it, it takes seconds. So
        # does a last look of Python through all that is in memory.
        self.kc.execute("import gc; gc.freeze()", silent=True, store_history=False)
        # Over the control channel one of ten kernels of ipykernel 7.4 would wait for itself.
        end = self.kc.session.msg("shutdown_request", {"restart": False})
        self.kc.shell_channel.send(end)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)

    @property
    def process(self) -> Any:
        return getattr(getattr(self.km, "provisioner", None), "process", None)

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            if self.shown:
                sys.stderr.write(self.heading + text)
                sys.stderr.flush()
                self.heading = ""
            left = MOST_TEXT - self.printed[cell_index]
            self.printed[cell_index] += len(text)
            if left < 0:
                return None
            more = "\n[Further output is omitted.]\n" * (len(text) > left)
            msg["content"]["text"] = text[:left] + more
        return super().process_message(msg, cell, cell_index)

    def start(self, cell: Any, cell_index: int) -> None:
        self.begun = True
        if heading := _heading([cell]):
            self.heading = f"\n[{cell_index + 1}/{len(self.nb.cells)}] {heading}\n"


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    """Saves the copy after each cell, and starts a kernel again that did not start."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, copy: Any, **options: Any
    ) -> None:
        copy.notebook, nb_man.save = nb_man.nb, copy.save
        for again in reversed(range(STARTS)):
            client = _Client(
                nb_man,
                kernel_name=kernel_name,
                # Its log tells a user nothing, such as that it was ended while it answered.
                extra_arguments=["--log-level=CRITICAL"],
                timeout=options["cell_timeout"],
                startup_timeout=120,
                iopub_timeout=120,  # a busy machine is no reason to end a run
                coalesce_streams=True,
            )
            client.shown, client.printed = options["show"], Counter()
            client.is_first = again == STARTS - 1
            client.on_cell_start = client.start
            try:
                with (
                    tempfile.TemporaryDirectory(prefix="kernel-") as client.sockets,
                    fast_carriage_returns(),
                    _ended(client, options["ends"]),
                ):
                    client.execute(env=options["environment"], cwd=options["folder"])
                break
            except (RuntimeError, TimeoutError):
                if client.begun or not again or options["ends"]():
                    raise


@contextmanager
def _ended(client: _Client, ends: Callable[[], object]) -> Iterator[None]:
    """Within it, kill the client's kernel and its children once ``ends`` says so."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            if client.process is not None and ends():
                with suppress(ProcessLookupError, psutil.NoSuchProcess):
                    # It leads a group, and what it started may lead others.
                    for process in psutil.Process(client.process.pid).children(recursive=True):
                        with suppress(psutil.NoSuchProcess):
                            process.kill()
                    os.killpg(client.process.pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


papermill_engines.register("workbench", _Engine)
