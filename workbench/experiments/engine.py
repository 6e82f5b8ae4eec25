"""The engine by which papermill runs notebooks, in kernels of this Python."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from workbench.experiments.progress import Progress

if TYPE_CHECKING:
    from nbformat import NotebookNode

ENGINE: Final = "workbench"

STARTS: Final = 3
"""Times that a kernel is started: kernels that start together may choose the same port."""

MOST_TEXT: Final = 250_000
"""Characters of what a cell prints that the executed copy keeps."""


class _ThisPython(KernelSpecManager):
    """Knows one kernel: this interpreter, whatever kernels are registered for the user."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            # Its warnings, such as that of a local TCP port, say nothing to who runs a notebook.
            argv=[
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "--log-level=ERROR",
                "-f",
                "{connection_file}",
            ],
            display_name="Python 3",
            language="python",
            metadata={"debugger": False},
        )


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    """Runs the cells in this Python and passes on what they print."""

    progress: Progress
    printed: Counter[int]

    def create_kernel_manager(self) -> AsyncKernelManager:
        specs = _ThisPython(parent=self)
        self.km = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        return self.km

    def set_widgets_metadata(self) -> None:
        """Let the kernel end by itself after the last cell.

        nbclient would interrupt it first, and a kernel that is interrupted while it ends takes
        seconds.
        """
        super().set_widgets_metadata()
        self.kc.shutdown()
        with suppress(subprocess.TimeoutExpired):
            _process(self).wait(timeout=2)

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            self.progress.output(text)
            left = MOST_TEXT - self.printed[cell_index]
            self.printed[cell_index] += len(text)
            if left < 0:
                return None
            if left < len(text):
                msg["content"]["text"] = f"{text[:left]}\n[What it printed further is left out.]\n"
        return super().process_message(msg, cell, cell_index)


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    """Saves the copy after each cell, and shows progress."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, copy: Any, show: bool, **options: Any
    ) -> None:
        progress = Progress(headings(nb_man.nb), stream=None if show else io.StringIO())
        start, begun = nb_man.cell_start, threading.Event()

        def cell_start(cell: NotebookNode, cell_index: int, **more: Any) -> None:
            begun.set()
            progress.start(cell_index)
            start(cell, cell_index, **more)

        copy.notebook, nb_man.save, nb_man.cell_start = nb_man.nb, copy.save, cell_start
        for again in reversed(range(STARTS)):
            client = _Client(
                nb_man,
                kernel_name=kernel_name,
                timeout=options["cell_timeout"],
                startup_timeout=120,
                iopub_timeout=120,  # a busy machine is no reason to end a run
                coalesce_streams=True,
            )
            client.progress, client.printed = progress, Counter()
            try:
                with _ended(client, options["ends"]):
                    client.execute(env=options["environment"], cwd=options["folder"])
                break
            except (RuntimeError, TimeoutError):
                if begun.is_set() or not again or options["ends"]():
                    raise
            finally:
                progress.close()


@contextmanager
def _ended(client: _Client, ends: Callable[[], object]) -> Iterator[None]:
    """Within it, kill the client's kernel and its children once ``ends`` says so."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            process = _process(client)
            if process is not None and ends():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a kernel leads a group of its own

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _process(client: _Client) -> Any:
    """Return the process of the client's kernel; None where there is none."""
    return getattr(getattr(client.km, "provisioner", None), "process", None)


def headings(notebook: NotebookNode) -> list[str]:
    """Return the heading above each cell; empty above the first one."""
    found, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = re.findall(r"^#+\s+(.+?)\s*#*$", cell.source, flags=re.MULTILINE)
            heading = lines[-1] if lines else heading
        found.append(heading)
    return found


def not_run(notebook: NotebookNode) -> int:
    """Return how many cells with code an executed notebook has that were not run."""
    return sum(
        cell.cell_type == "code"
        and bool(cell.source.strip())
        and cell.execution_count is None
        and "skip-execution" not in cell.metadata.get("tags", [])
        for cell in notebook.cells
    )


papermill_engines.register(ENGINE, _Engine)
