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
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from tqdm.std import tqdm

ENGINE: Final = "workbench"

STARTS: Final = 3
"""Times that a kernel is started: kernels that start together may choose the same port."""

MOST_TEXT: Final = 250_000
"""Characters of what a cell prints that the executed copy keeps."""


class Console:
    """A tqdm bar over the cells, named by the heading above the running one.

    What a cell prints is written above the bar, the line that it has not ended yet stands beside
    it. A log has the headings of what printed something, and each state of a rewritten line.
    """

    def __init__(self, headings: list[str], *, show: bool) -> None:
        self._headings, self._show, self.begun = headings, show, False
        self._line, self._told = "", ""
        form = "[{n_fmt}/{total_fmt}] {desc} [{elapsed}]{postfix}"
        off = not (show and sys.stderr.isatty())
        self._bar = tqdm(
            total=len(headings), bar_format=form, leave=False, disable=off, file=sys.stderr
        )

    def start(self, index: int) -> None:
        """Show that the cell at ``index`` begins."""
        self.begun = True
        self._end_line()
        self._bar.n = index + 1
        self._bar.set_description_str(self._headings[index])

    def output(self, text: str) -> None:
        """Show what a cell writes."""
        # A bar within a bar moves the cursor, which is the bar's of the cells here.
        text = re.sub(r"\x1b\[\d*[A-HJKSTfsu]", "", text)
        *ended, self._line = re.split(r"(?<=\n)|(?<=\r)(?!\n|$)", self._line + text)
        for line in ended:
            if line.endswith("\n") or (self._bar.disable and line.strip()):
                self._write(line.rstrip())
        self._bar.set_postfix_str(self._line.strip())

    def close(self) -> None:
        """Take back the bar."""
        self._end_line()
        self._bar.close()

    def _end_line(self) -> None:
        if self._line:
            self.output("\n")

    def _write(self, line: str) -> None:
        if not self._show:
            return
        if self._bar.desc != self._told:
            self._told = self._bar.desc
            tqdm.write(f"[{self._bar.n}/{self._bar.total}] {self._told}", file=sys.stderr)
        tqdm.write(line, file=sys.stderr)


class _Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    """Runs the cells in this Python and passes on what they print."""

    console: Console
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
            self.console.output(text)
            left = MOST_TEXT - self.printed[cell_index]
            self.printed[cell_index] += len(text)
            if left < 0:
                return None
            if left < len(text):
                msg["content"]["text"] = f"{text[:left]}\n[Further output is omitted.]\n"
        return super().process_message(msg, cell, cell_index)


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    """Saves the copy after each cell, and shows progress."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, copy: Any, show: bool, **options: Any
    ) -> None:
        copy.notebook, nb_man.save = nb_man.nb, copy.save
        for again in reversed(range(STARTS)):
            console = Console(headings(nb_man.nb), show=show)
            client = _Client(
                nb_man,
                kernel_name=kernel_name,
                # Its warnings, such as that of a local TCP port, say nothing to who runs it.
                extra_arguments=["--log-level=ERROR"],
                timeout=options["cell_timeout"],
                startup_timeout=120,
                iopub_timeout=120,  # a busy machine is no reason to end a run
                coalesce_streams=True,
                on_cell_start=lambda cell, cell_index, to=console: to.start(cell_index),
            )
            client.console, client.printed = console, Counter()
            try:
                with _ended(client, options["ends"]):
                    client.execute(env=options["environment"], cwd=options["folder"])
                break
            except (RuntimeError, TimeoutError):
                if console.begun or not again or options["ends"]():
                    raise
            finally:
                console.close()


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
