"""Execute a notebook by papermill in a kernel of this Python, and show how far it is."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TextIO

import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from tqdm.std import tqdm

from workbench.errors import NotebookError

if TYPE_CHECKING:
    from nbformat import NotebookNode

ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_DRAWN_BAR = re.compile(r"\|[^|]*\| *")

_STATE_SECONDS: Final = 5.0
"""A log shows the state of a progress bar at most this often."""


class Progress:
    """Shows the stage, the state of progress bars and the output of the running cell.

    A terminal gets one tqdm bar at its bottom; a log gets a line for each stage.
    """

    def __init__(
        self,
        title: str,
        stages: list[str],
        *,
        stream: TextIO | None = None,
        show: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages, self._show, self._clock = stages, show, clock
        self._stream = stream or sys.stderr
        self._terminal = show and self._stream.isatty()
        self._stage, self._pending, self._last = "", "", clock()
        self._bar = tqdm(
            total=len(stages),
            file=self._stream,
            disable=not self._terminal,
            dynamic_ncols=True,
            leave=False,
            bar_format=title + " {bar:16} {n_fmt}/{total_fmt} [{elapsed}] {desc}",
        )

    def start(self, index: int) -> None:
        """Show that the cell at ``index`` begins."""
        self._end_line()
        stage = self.stages[index]
        if self._terminal:
            self._bar.n = index + 1
            self._bar.set_description_str(stage)
        elif stage != self._stage:
            self._print(f"[{index + 1}/{len(self.stages)}] {stage}")
        self._stage = stage

    def output(self, text: str) -> None:
        """Show what a cell writes.

        Whole lines are shown as they are. Of a line that is rewritten, such as a progress bar,
        a terminal shows the latest state beside the heading and a log shows one now and then.
        """
        *lines, rest = (self._pending + ESCAPES.sub("", text)).split("\n")
        for line in lines:
            self._print(_last_state(line))
        self._pending = rest
        state = _last_state(rest)
        if "\r" not in rest or not state:
            return
        self._pending = "\r" + state
        if self._terminal:
            # There is no room for a second bar in the line; its figures suffice.
            self._bar.set_description_str(f"{self._stage}: {_DRAWN_BAR.sub(' ', state)}")
        elif self._clock() - self._last >= _STATE_SECONDS:
            self._print(state)

    def close(self) -> None:
        """Show an unfinished line and remove the bar."""
        self._end_line()
        self._bar.close()

    def _end_line(self) -> None:
        self._print(_last_state(self._pending))
        self._pending = ""

    def _print(self, line: str) -> None:
        if line and self._show:
            self._last = self._clock()
            tqdm.write(line, file=self._stream)
            self._stream.flush()


def _last_state(line: str) -> str:
    """What is left on the screen of a line with carriage returns."""
    return next((state.rstrip() for state in reversed(line.split("\r")) if state.strip()), "")


def headings(notebook: NotebookNode) -> list[str]:
    """Return the heading above each cell; empty above the first one."""
    found, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = re.findall(r"^#+\s+(.+?)\s*#*$", cell.source, flags=re.MULTILINE)
            heading = lines[-1] if lines else heading
        found.append(heading)
    return found


class _ThisPython(KernelSpecManager):
    """Knows one kernel: this interpreter, whatever kernels are registered for the user."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            metadata={"debugger": False},
        )


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    """Runs the cells in this Python and passes on what they print."""

    progress: Progress

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=_ThisPython(parent=self)
        )
        return self.km

    def process_message(self, *args: Any, **kwargs: Any) -> Any:
        output = super().process_message(*args, **kwargs)
        if output and output.output_type == "stream":
            self.progress.output(output.text)
        return output


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    """Saves by the given function after each cell, and shows progress."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        show: Callable[[NotebookNode], Progress],
        save: Callable[[NotebookNode], None],
        log: IO[bytes],
        environment: dict[str, str],
        **_: Any,
    ) -> None:
        progress, start = show(nb_man.nb), nb_man.cell_start

        def cell_start(cell: NotebookNode, cell_index: int, **more: Any) -> None:
            progress.start(cell_index)
            start(cell, cell_index, **more)

        nb_man.save, nb_man.cell_start = lambda **_: save(nb_man.nb), cell_start
        client = _Client(
            nb_man, kernel_name=kernel_name, startup_timeout=120, coalesce_streams=True
        )
        client.progress = progress
        try:
            client.execute(env=environment, stderr=log)
        finally:
            progress.close()


papermill_engines.register("workbench", _Engine)


def execute(
    source: Path,
    parameters: Mapping[str, Any],
    *,
    save: Callable[[NotebookNode], None],
    show: bool = True,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Execute a notebook; ``save`` is called with it after each cell.

    ``environment`` is the kernel's besides that of this process; an empty value hides a variable.
    Raises `NotebookError` if the kernel dies and ``PapermillExecutionError`` if a cell fails.
    """
    # What the kernel writes by itself, not its cells, matters only when it dies.
    with tempfile.TemporaryFile() as log:
        try:
            papermill.execute_notebook(
                # papermill formats paths: braces in the name of a folder would be fields.
                str(source).replace("{", "{{").replace("}", "}}"),
                None,  # `save` writes it
                dict(parameters),
                engine_name="workbench",
                kernel_name="python3",
                language="python",
                progress_bar=False,
                show=lambda made: Progress(source.stem, headings(made), show=show),
                save=save,
                log=log,
                environment=_environment(environment or {}),
            )
        except DeadKernelError as error:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").splitlines()
            last = "".join(f"\n{line}" for line in lines[-6:] if "[IPKernelApp]" not in line)
            raise NotebookError(
                f"The kernel of {source.name} died, perhaps for lack of memory.{last}"
            ) from error


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
