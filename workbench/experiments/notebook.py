"""Notebooks as experiments: run one with parameters by papermill, in this Python environment."""

from __future__ import annotations

import ast
import asyncio
import difflib
import io
import json
import os
import re
import sys
import tempfile
import threading
import time
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TextIO

from tqdm.std import tqdm

from workbench import errors
from workbench.credentials import withhold
from workbench.errors import NotebookError, WorkbenchError
from workbench.models.recording import tape_variables

if TYPE_CHECKING:
    from nbformat import NotebookNode


_QUIET_SECONDS = 15.0
"""A log gets a sign of life after this long without a line."""


_DRAWN = re.compile(r"\|[^|]*\| *")


_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Console:
    """A view of a run of ``total`` steps.

    A terminal has one bar at its bottom, with the stage, the time and whatever progress the
    step itself reports; a log, which has no cursor, has a line a stage and a sign of life.
    Both have the output of the steps as it comes.

    Parameters
    ----------
    title
        What runs.
    total
        Number of steps.
    stream
        Where to show it; stderr when None. ``show=False`` shows nothing.
    """

    def __init__(
        self, title: str, total: int, *, stream: TextIO | None = None, show: bool = True
    ) -> None:
        self.title, self.total, self.show = title, total, show
        self.stream = stream or sys.stderr
        self.terminal = show and self.stream.isatty()
        self._stage = ""
        self._step = 0
        self._partial = {"stdout": "", "stderr": ""}
        self._started = self._last_line = time.monotonic()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._bar: Any = None
        if self.terminal:
            self._bar = tqdm(
                total=total,
                file=self.stream,
                dynamic_ncols=True,
                leave=False,
                bar_format=title + " {bar:16} {n_fmt}/{total_fmt} [{elapsed}] {desc}",
            )

    def __enter__(self) -> Console:
        if self.show:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        with self._lock:
            self._end_partial()
            if self._bar is not None:
                self._bar.close()

    def start(self, step: int, stage: str) -> None:
        """Step ``step``, counted from 1, begins; ``stage`` is shown when it is a new one."""
        with self._lock:
            self._end_partial()
            new, self._stage, self._step = stage != self._stage, stage, step
            if self._bar is not None:
                self._bar.n, self._bar.total = step, self.total
                self._bar.set_description_str(stage)
            elif new:
                self._line(f"[{step}/{self.total}] {stage}")

    def output(self, name: str, text: str) -> None:
        """Text that a step wrote to its ``stdout`` or ``stderr``.

        Whole lines are shown as they are. Of a line that is rewritten (a progress bar) the
        latest state is shown beside the stage, or now and then as a line of a log.
        """
        with self._lock:
            *lines, rest = (self._partial[name] + _CODES.sub("", text)).split("\n")
            for line in lines:
                shown = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
                if shown:
                    self._line(shown)
            states = [state for state in rest.split("\r") if state.strip()]
            self._partial[name] = rest if "\r" not in rest else "\r" + (states or [""])[-1]
            if "\r" in rest and states:
                self._state(states[-1].strip())

    def _state(self, state: str) -> None:
        if self._bar is not None:
            # There is no room for a drawn bar within the line; its figures suffice.
            self._bar.set_description_str(f"{self._stage}: {_DRAWN.sub(' ', state)}")
        elif time.monotonic() - self._last_line >= 5.0:
            self._line(state)

    def _end_partial(self) -> None:
        for name, text in self._partial.items():
            shown = text.rsplit("\r", 1)[-1].strip()
            if shown:
                self._line(shown)
            self._partial[name] = ""

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if not self.show:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def _tick(self) -> None:
        """Keep the clock going while a step is silent."""
        while not self._closed.wait(1.0):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()
                elif time.monotonic() - self._last_line >= _QUIET_SECONDS:
                    seconds = time.monotonic() - self._started
                    self._line(f"[{self._step}/{self.total}] {self._stage} … {seconds:.0f} s")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: an assignment in its cell tagged ``parameters``.

    ``source`` is the default as it is written; ``default`` is its value, or `UNKNOWN` where it
    is not a literal. ``help`` is the comment behind the assignment, or the one above it.
    """

    name: str
    source: str
    default: Any
    help: str


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
"""The default of a parameter whose value is computed when the notebook runs."""


def notebook_parameters(notebook: str | Path) -> list[Parameter]:
    """The parameters that a notebook declares, in their order.

    They are read from the syntax tree rather than by papermill's inspection, which skips lines
    with two equal signs and knows only the comment behind an assignment.

    Raises
    ------
    NotebookError
        When the file is no notebook or its parameters cell is no Python.
    """
    path = Path(notebook)
    for cell in read_notebook(path).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                return _assignments(cell.source)
            except (SyntaxError, tokenize.TokenError) as error:
                raise NotebookError(
                    f"The parameters cell of {path} is no Python: {error}."
                ) from error
    return []


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a file, or `NotebookError`."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises what its JSON reader and validator raise
        raise NotebookError(f"{path} cannot be read as a notebook: {error}") from error


def _assignments(source: str) -> list[Parameter]:
    comments = {
        token.start[0]: (token.string.lstrip("#").strip(), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if not isinstance(target, ast.Name):
            continue
        try:
            default = ast.literal_eval(value)
        except (ValueError, TypeError):
            default = UNKNOWN
        text, alone = comments.get(node.end_lineno or 0, ("", True))
        if alone:
            above, line = [], node.lineno - 1
            while comments.get(line, ("", False))[1]:
                above.append(comments[line][0])
                line -= 1
            text = " ".join(reversed(above))
        written = ast.get_source_segment(source, value) or ""
        found[target.id] = Parameter(target.id, written, default, text)
    return list(found.values())


# -- values ------------------------------------------------------------------------------


def parse_parameters(
    parameters: Iterable[Parameter], given: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Values of texts from a command line, by the rule of papermill's ``-p``.

    ``True``, ``False`` and ``None`` are what they say, whole and decimal numbers are numbers,
    all else is text. Where the default is text, numbers stay text too, so that a column may be
    named ``007``.

    Raises
    ------
    NotebookError
        For unknown names and for values that do not fit the default.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values = {
        name: _parsed(text, keep=isinstance(known[name].default, str) if name in known else False)
        for name, text in given
    }
    check_parameters(known.values(), values)
    return values


def _parsed(text: str, *, keep: bool) -> Any:
    words = {"True": True, "False": False, "None": None, "true": True, "false": False}
    if text == "None" or (not keep and text in words):
        return words[text]
    if not keep:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def check_parameters(parameters: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Raise `NotebookError` unless each value is one of a known parameter and fits its default.

    The message lists the known parameters with their defaults.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            listed = "".join(f"\n  {p.name} = {p.source}" for p in known.values())
            raise NotebookError(
                f"Parameter {name!r} is not known.{hint} The notebook takes: {listed or 'none'}"
            )
        default = known[name].default
        if value is None or default is None or default is UNKNOWN:
            continue
        if isinstance(default, bool) and not isinstance(value, bool):
            raise NotebookError(f"{name}={value!r} is neither True nor False.")
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise NotebookError(
                f"{name}={value!r} is no number; the default is {known[name].source}."
            )


def execute(
    source: Path,
    target: Path,
    parameters: dict[str, Any],
    progress: bool,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Execute ``source`` with parameters; the copy at ``target`` is saved after each cell.

    Credentials in URLs among the parameters are passed to the cells, but not saved.
    ``environment`` is the kernel's beside that of this process; an empty value takes one out.

    Raises
    ------
    NotebookError
        When a cell fails or the kernel dies.
    KeyboardInterrupt
        When interrupted, after the kernel was ended.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    stages = _stages(read_notebook(source))
    copy = _Copy(target, _credentials(parameters))
    # What the kernel itself says, not its cells, is of interest only when it dies.
    with tempfile.TemporaryFile() as log:
        try:
            with Console(source.stem, len(stages), show=progress) as console:
                papermill.execute_notebook(
                    _escaped(source),
                    None,  # saved by `copy`
                    parameters,
                    engine_name=_engine(),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    console=console,
                    copy=copy,
                    log=log,
                    environment=_environment(environment or {}),
                )
        except papermill.PapermillExecutionError as error:
            copy.save()  # now with papermill's mark at the cell that failed
            raise NotebookError(_failure(error, stages, target)) from None
        except DeadKernelError as error:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").splitlines()
            last = "".join(f"\n{line}" for line in said[-6:] if "[IPKernelApp]" not in line)
            raise NotebookError(
                f"The kernel of {source.name} died, perhaps for want of memory.{last}\n"
                f"The notebook as far as it ran: {target}"
            ) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Stopped. The notebook as far as it ran: {target}\nWhat was judged is kept: "
                "the same command again pays only for the rest."
            ) from None


class _Copy:
    """The executed copy: written whole or not at all, and without the given secrets."""

    def __init__(self, target: Path, secrets: dict[str, str]) -> None:
        self.target, self.secrets = target, secrets
        self.notebook: NotebookNode | None = None

    def save(self) -> None:
        import nbformat

        if self.notebook is None:
            return
        text = nbformat.writes(self.notebook)
        for secret, instead in self.secrets.items():
            text = text.replace(json.dumps(secret)[1:-1], instead)
        # A name of its own: another run may be writing to the same folder.
        beside = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.target)
        finally:
            beside.unlink(missing_ok=True)


def _credentials(parameters: Mapping[str, Any]) -> dict[str, str]:
    """What must not be saved of URLs among the parameters, the longest first, and its mask."""
    found = {}
    for value in parameters.values():
        if isinstance(value, str) and "://" in value:
            clean, withheld, secrets = withhold({"base_url": value})
            if withheld:
                found[value] = clean["base_url"]
                # Very short values would blot out ordinary words.
                found |= {secret: "***" for secret in secrets if len(secret) >= 6}
    return dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))


def _escaped(path: Path) -> str:
    # papermill formats paths with the parameters, so that braces in a folder's name are fields.
    return str(path).replace("{", "{{").replace("}", "}}")


def _stages(notebook: NotebookNode) -> list[str]:
    """The heading under which each cell stands; empty above the first one."""
    stages, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+\s+(.+?)\s*#*$", cell.source, flags=re.MULTILINE)
            heading = headings[-1] if headings else heading
        stages.append(heading)
    return stages


_OWN_ERRORS: Final = frozenset(
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, WorkbenchError)
)


def _failure(error: Any, stages: list[str], target: Path) -> str:
    """What is told of a failed cell. Errors that explain themselves come without a traceback."""
    code = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
    # papermill puts a cell with the parameters among those of the source.
    place = stages[min(max(error.cell_index - 1, 0), len(stages) - 1)] if stages else ""
    lines = [
        f"Cell In [{error.exec_count}] of {target.name}{f' ({place})' if place else ''} failed.",
        code.sub("", f"{error.ename}: {error.evalue}"),
    ]
    if error.ename not in _OWN_ERRORS and error.ename != "MlflowException":
        traceback = code.sub("", "\n".join(error.traceback)).splitlines()
        lines[1:] = ["", *traceback[-15:], ""]
    return "\n".join([*lines, f"The notebook as far as it ran: {target}"])


def _engine() -> str:
    """Register, and name, the papermill engine that runs a notebook in this Python."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class ThisPython(KernelSpecManager):
        """Knows one kernel: this interpreter, whatever specs lie in the user's home."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
                metadata={"debugger": False},
            )

    class Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
        console: Console

        def create_kernel_manager(self) -> AsyncKernelManager:
            self.km = AsyncKernelManager(
                kernel_name="python3", kernel_spec_manager=ThisPython(parent=self)
            )
            return self.km

        def papermill_execute_cells(self) -> None:
            try:
                super().papermill_execute_cells()
            except KeyboardInterrupt:
                # The cell gets a moment to put away what it has, as it would in Jupyter.
                run_sync(self._interrupt_cell)()
                raise

        async def _interrupt_cell(self, seconds: float = 5.0) -> None:
            running = [
                task
                for task in asyncio.all_tasks()
                if getattr(task.get_coro(), "__name__", "") == "async_execute_cell"
            ]
            await self.km.interrupt_kernel()
            if running:
                ended, _ = await asyncio.wait(running, timeout=seconds)
                for task in ended:
                    task.exception()  # that it was interrupted is known

        def process_message(self, *args: Any, **kwargs: Any) -> Any:
            output = super().process_message(*args, **kwargs)
            if output and output.output_type == "stream":
                self.console.output(output.name, output.text)
            return output

    class Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(
            cls,
            nb_man: Any,
            kernel_name: str,
            *,
            console: Console,
            copy: _Copy,
            log: Any,
            environment: dict[str, str],
            **_: Any,
        ) -> Any:
            copy.notebook, nb_man.save = nb_man.nb, copy.save
            stages = _stages(nb_man.nb)
            console.total = len(stages)
            start = nb_man.cell_start

            def cell_start(cell: NotebookNode, cell_index: int, **more: Any) -> None:
                console.start(cell_index + 1, stages[cell_index])
                start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            client = Client(
                nb_man, kernel_name=kernel_name, startup_timeout=120, coalesce_streams=True
            )
            client.console = console
            return client.execute(env=environment, stderr=log)

    papermill_engines.register("workbench", Engine)
    return "workbench"


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """The kernel's environment: this one and ``more``, with less noise, for a reader of text."""
    quiet = {
        "WORKBENCH_PROGRESS": "text",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    }
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    return {**quiet, **os.environ, **inline, **more}


SUMMARY: Final = "summary.json"
"""What a notebook may write into its ``output_dir`` for the command line to print."""


OUTPUT_PARAMETER: Final = "output_dir"
"""A notebook with a parameter of this name is told where to write."""


@dataclass(frozen=True)
class Ran:
    """A notebook that ran to its end.

    ``summary`` is what the notebook wrote to ``summary.json`` in its output folder; empty where
    it wrote none. ``parameters`` are those that were passed to it.
    """

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    seconds: float
    summary: dict[str, Any]


# -- which notebook -------------------------------------------------------------------------


def find_notebook(name: str | Path) -> Path:
    """The notebook of that path, or of that name in ``notebooks/``.

    ``notebooks/`` is looked for in the current folder and beside the package, where it lies
    when the package is installed from its repository.

    Raises
    ------
    NotebookError
        When there is none; names the known ones.
    """
    given = Path(name)
    file = given if given.suffix == ".ipynb" else given.with_name(given.name + ".ipynb")
    folders = [Path("notebooks"), Path(__file__).resolve().parents[2] / "notebooks"]
    places = [file]
    if given.parent in (Path(), Path("notebooks")):
        places += [folder / file.name for folder in folders]
    for place in places:
        if place.is_file():
            return place.resolve()
    known = sorted({path.stem for folder in folders for path in folder.glob("*.ipynb")})
    raise NotebookError(
        f"There is no notebook {str(name)!r}. Give a path, or one of: "
        f"{', '.join(known) or 'none was found; run from the repository'}."
    )


def _completed(
    notebook: Path, parameters: list[Parameter], values: Mapping[str, Any], output: Path
) -> dict[str, Any]:
    """The values with what the notebook must be told because it does not run in its own folder.

    That is where to write, and where the files are that its defaults name relative to itself.
    """
    complete = dict(values)
    for parameter in parameters:
        name, default = parameter.name, parameter.default
        if name in complete:
            continue
        if name == OUTPUT_PARAMETER:
            complete[name] = str(output)
        elif isinstance(default, str) and ("/" in default or Path(default).suffix):
            file = notebook.parent / default
            if not Path(default).is_absolute() and file.is_file():
                complete[name] = str(file.resolve())
    return complete


# -- running --------------------------------------------------------------------------------


def run_notebook(
    notebook: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path = "output",
    record: str | Path | None = None,
    replay: str | Path | None = None,
    progress: bool = True,
) -> Ran:
    """Execute a notebook with parameters and keep the executed copy.

    It runs in a kernel of this very Python, whatever kernels are registered for the user, and
    in the current folder, so that relative paths among the parameters mean what they say.
    Defaults that name a file relative to the notebook keep their meaning.

    Parameters
    ----------
    notebook
        Path, or name in ``notebooks/``.
    parameters
        Values for the cell tagged ``parameters``. ``output_dir`` is set to ``output`` where the
        notebook has it.
    output
        Folder of the executed copy, which is saved after each cell.
    record, replay
        A file that the run's model answers are written to, or come from (`workbench.recording`,
        `workbench.replaying`); a tape that is active here is the kernel's as well.
    progress
        Show stage, progress and output of the cells on stderr.

    Raises
    ------
    NotebookError
        For an unknown parameter, before anything runs; and for a cell that fails, with the
        cell, its error, and where the notebook lies that ran so far.
    ReplayError
        When the file of answers cannot be read, before anything runs.
    KeyboardInterrupt
        When interrupted; the kernel is ended, and what ran so far is kept.
    """
    source = find_notebook(notebook)
    known = notebook_parameters(source)
    values = dict(parameters or {})
    check_parameters(known, values)
    folder = Path(output).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotebookError(
            f"The output folder {folder} cannot be made: {error.strerror}. Name another with "
            "--output."
        ) from None
    if not os.access(folder, os.W_OK):
        raise NotebookError(
            f"The output folder {folder} cannot be written to. Name another with --output."
        )
    target = folder / source.name
    if target == source:
        raise NotebookError(
            f"output={str(output)!r} is the folder of the notebook itself, which the executed "
            "copy would replace. Choose another folder."
        )
    environment = tape_variables(record, replay)
    # A summary of an earlier run must not pass for one of this run.
    (folder / SUMMARY).unlink(missing_ok=True)
    passed = _completed(source, known, values, folder)
    started = time.monotonic()
    execute(source, target, passed, progress, environment)
    return Ran(
        notebook=target,
        output=folder,
        parameters=passed,
        seconds=time.monotonic() - started,
        summary=_summary(folder / SUMMARY),
    )


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise NotebookError(f"{path}, which the notebook wrote, is no JSON: {error}") from error
    return summary if isinstance(summary, dict) else {}
