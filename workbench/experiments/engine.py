"""The engine by which papermill runs notebooks, in kernels of this Python, and what it shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

ENGINE: Final = "workbench"

STARTS: Final = 3
"""Times that a kernel is started: kernels that start together may choose the same port."""

MOST_TEXT: Final = 250_000
"""Characters of what a cell prints that the executed copy keeps."""


class Progress:
    """Shows the heading above the running cell, and what the cell prints as it comes.

    A heading under which nothing was printed gives way to the next one. A log, in which no line
    can be taken back, has the headings of what printed something.
    """

    def __init__(self, headings: list[str], stream: TextIO | None) -> None:
        self._headings, self._stream = headings, stream
        self._heading, self._waiting, self._last = "", "", "\n"
        self.begun = False

    def start(self, index: int) -> None:
        """Show that the cell at ``index`` begins."""
        self.begun = True
        if self._headings[index] != self._heading:
            self._heading = self._headings[index]
            self.close()
            self._waiting = f"[{index + 1}/{len(self._headings)}] {self._heading}"
            if self._is_terminal:
                self._write(self._waiting)

    def output(self, text: str) -> None:
        """Show what a cell writes."""
        if self._waiting:
            self._write("\n" if self._is_terminal else f"{self._waiting}\n")
            self._waiting = ""
        if not self._is_terminal:  # a log shows each state of a rewritten line
            text = re.sub(r"\s*\r\s*", "\n", text)
        self._last = text[-1:] or self._last
        self._write(text)

    def close(self) -> None:
        """End an unfinished line, or take back a heading with nothing beneath."""
        if self._waiting:
            self._write("\r\x1b[K" * self._is_terminal)
            self._waiting = ""
        elif self._last != "\n":
            self.output("\n")

    @property
    def _is_terminal(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    """Runs the cells in this Python and passes on what they print."""

    progress: Progress
    printed: Counter[int]

    def create_kernel_manager(self) -> AsyncKernelManager:
        # Without folders it knows one kernel: this interpreter's, whatever the user registered.
        specs = KernelSpecManager(kernel_dirs=[])
        self.km = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        return self.km

    def set_widgets_metadata(self) -> None:
        super().set_widgets_metadata()
        # Let the kernel end by itself: interrupted first, as nbclient does it, it takes seconds. So
        # it does where Python looks through all that is in memory once more before it ends.
        self.kc.execute("import gc; gc.freeze()", silent=True, store_history=False)
        # Over the control channel one of ten kernels of ipykernel 7.4 would wait for itself.
        end = self.kc.session.msg("shutdown_request", {"restart": False})
        self.kc.shell_channel.send(end)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)

    @property
    def process(self) -> Any:
        return getattr(getattr(self.km, "provisioner", None), "process", None)

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
        progress = Progress(headings(nb_man.nb), sys.stderr if show else None)
        copy.notebook, nb_man.save = nb_man.nb, copy.save
        for again in reversed(range(STARTS)):
            client = _Client(
                nb_man,
                kernel_name=kernel_name,
                # Its warnings, such as that of a local TCP port, say nothing to who runs it.
                extra_arguments=["--log-level=ERROR"],
                timeout=options["cell_timeout"],
                startup_timeout=120,
                iopub_timeout=120,  # a busy machine is no reason to end a run
                coalesce_streams=True,
                on_cell_start=lambda cell, cell_index: progress.start(cell_index),
            )
            client.progress, client.printed = progress, Counter()
            try:
                with _ended(client, options["ends"]):
                    client.execute(env=options["environment"], cwd=options["folder"])
                break
            except (RuntimeError, TimeoutError):
                if progress.begun or not again or options["ends"]():
                    raise
            finally:
                progress.close()


@contextmanager
def _ended(client: _Client, ends: Callable[[], object]) -> Iterator[None]:
    """Within it, kill the client's kernel and its children once ``ends`` says so."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            if client.process is not None and ends():
                with suppress(ProcessLookupError):
                    os.killpg(client.process.pid, signal.SIGKILL)  # it leads a group of its own

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def headings(notebook: NotebookNode) -> list[str]:
    """Return the heading above each cell; empty above the first one."""
    found, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = re.findall(r"^#+\s+(.+?)\s*#*$", cell.source, flags=re.MULTILINE)
            heading = lines[-1] if lines else heading
        found.append(heading)
    return found


papermill_engines.register(ENGINE, _Engine)
