"""JupyterLab and Notebook 7 with real kernels, and a notebook in them as a test drives it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
from playwright.sync_api import Browser, Dialog, Locator, Page, Request, expect

expect.set_options(timeout=90_000)

_APPS = {
    "lab": ("jupyterlab", "LabApp", "lab/tree"),
    "notebook": ("notebook", "JupyterNotebookApp", "notebooks"),
}

# Nothing asks for news, and nothing is between a test and its notebook.
_SETTINGS = {
    "apputils-extension/notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
    "docmanager-extension/plugin": {"autosave": False},
}  # fmt: skip

# Measures in the page: from the time that the browser gives the Enter key to the end of the frame
# in which the next item stands there. After a frame is drawn tasks run again: a message posted
# within its callback is one of them.
STOPWATCH = """
window.taken = [];
document.addEventListener('keydown', (event) => {
    const root = event.target.closest?.('.wb');
    if (event.key !== 'Enter' || !root) return;
    const from = root.dataset.position;
    const look = () => {
        const {position, trace} = root.dataset;
        if (position === from || !trace || !root.querySelector('.wb-section')) {
            requestAnimationFrame(look);
            return;
        }
        const {port1, port2} = new MessageChannel();
        port1.onmessage = () => window.taken.push(performance.now() - event.timeStamp);
        port2.postMessage(0);
    };
    requestAnimationFrame(look);
}, true);
"""


class Host:
    """A running JupyterLab or Notebook 7 with a folder of its own."""

    def __init__(self, app: str, address: str, folder: Path) -> None:
        self.app, self.address, self.folder = app, address, folder
        self._made = 0

    @contextlib.contextmanager
    def notebook(
        self, browser: Browser, cells: Sequence[str], *, script: str = "", **context: Any
    ) -> Iterator[Notebook]:
        """A new notebook with these cells, open in a browser of its own; its kernel ends with it.

        ``script`` runs in the page before any other. ``context``: options of the browser's
        context, such as ``viewport``.
        """
        self._made += 1
        path = self.folder / f"labels_{self._made}.ipynb"
        made = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(made, path)
        shown = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
        shown.set_default_timeout(90_000)
        if script:
            shown.add_init_script(script)
        address = f"{self.address}/{_APPS[self.app][2]}/{path.name}?reset"
        opened = Notebook(shown.new_page(), address)
        try:
            opened.load()
            yield opened
        finally:
            with contextlib.suppress(Exception):
                opened.app("await panel.sessionContext.shutdown()")
            shown.close()


@contextlib.contextmanager
def running(app: str, folder: Path, settings: dict[str, Any] | None = None) -> Iterator[Host]:
    """JupyterLab ("lab") or Notebook 7 ("notebook"), ended with all its kernels."""
    module, options, _ = _APPS[app]
    root, config = folder / "notebooks", folder / "config"
    root.mkdir(parents=True)
    for name, said in {**_SETTINGS, **(settings or {})}.items():
        path = config / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "JUPYTER_CONFIG_DIR": config / "jupyter",
        "JUPYTER_DATA_DIR": config / "data",
        "JUPYTER_RUNTIME_DIR": config / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": config / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": config / "workspaces",
        "IPYTHONDIR": config / "ipython",
        "WORKBENCH_CACHE": folder / "cache",
    }
    log = folder / "server.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", module, "--no-browser", "--allow-root"),
                *(f"--port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"),
                *(f"--ServerApp.root_dir={root}", "--IdentityProvider.token="),
                # What a user does through menus a test does through the app's own commands.
                f"--{options}.expose_app_in_browser=True",
            ],
            stdout=written,
            stderr=written,
            cwd=root,
            env={**os.environ, **{name: str(path) for name, path in own.items()}},
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"{app} did not start:\n{log.read_text()}"
                time.sleep(0.2)
        yield Host(app, address, root)
    finally:
        # The server's kernels are told to end by the server.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


class Notebook:
    """A notebook in the browser. ``outside`` are requests that would have left this machine, for
    which the browser finds no host, ``dialogs`` what scripts have put up, which are refused."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.outside: list[str] = []
        self.dialogs: list[str] = []
        page.on("request", self._note)
        page.on("dialog", self._answer)

    def _answer(self, dialog: Dialog) -> None:
        # The app asks before a notebook is left whose outputs have changed since it was saved, as
        # they do when the table beside a panel follows what is labelled.
        if dialog.type == "beforeunload":
            dialog.accept()
        else:
            self.dialogs.append(dialog.message)
            dialog.dismiss()

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.outside.append(request.url)

    def load(self) -> None:
        """Open the page, or open it again, and wait until its kernel is there."""
        self.page.goto(self.address)
        name = urlsplit(self.address).path.rsplit("/", 1)[-1]
        self.page.wait_for_function(
            "(name) => window.jupyterapp?.shell?.currentWidget?.context?.path === name", arg=name
        )
        self.app(
            "await panel.context.ready; await panel.sessionContext.ready;"
            "await panel.sessionContext.session.kernel.info"
        )
        self.page.wait_for_function("jupyterapp.shell.currentWidget.content.widgets?.length > 0")

    def app(self, script: str, argument: Any = None) -> Any:
        """Run a script in the page: ``panel`` is the notebook's, ``commands`` the app's."""
        return self.page.evaluate(
            "async (argument) => { const panel = jupyterapp.shell.currentWidget;"
            f" const commands = jupyterapp.commands; {script} }}",
            argument,
        )

    def run(self, *cells: int, wait: bool = True) -> None:
        """Run cells by number, each to its end unless told not to wait."""
        for cell in cells:
            self.app(
                "panel.content.deselectAll(); panel.content.activeCellIndex = argument.cell;"
                "const done = commands.execute('notebook:run-cell');"
                "if (argument.wait) await done;",
                {"cell": cell, "wait": wait},
            )
            if wait:
                ran = self.app("return panel.content.widgets[argument].model.executionCount", cell)
                assert ran, f"cell {cell} was not run"

    def restart(self) -> None:
        """Restart the kernel, as its menu does."""
        self.app("await panel.sessionContext.session.kernel.restart()")
        self.page.wait_for_function(
            "jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        )

    def save(self) -> None:
        """Save the notebook, so that a reload shows what its cells have put out."""
        self.app("await panel.context.save()")

    def new_panel(self, than: str = "") -> Panel:
        """The panel once the kernel has made another one than that of this epoch."""
        known = self.page.locator(f'.wb:not([data-epoch="{than}"])').last
        expect(known).to_have_attribute("data-epoch", re.compile("."))
        return self.panel

    def shape(self) -> dict[str, Any]:
        """What keys of the notebook's command mode would change."""
        return self.app(  # type: ignore[no-any-return]
            "const {content} = panel; return {active: content.activeCellIndex, mode: content.mode,"
            "cells: content.model.cells.length,"
            "types: content.widgets.map((each) => each.model.type),"
            "sources: content.widgets.map((each) => each.model.sharedModel.getSource())}"
        )

    def output(self, cell: int) -> str:
        """The text that a cell has printed."""
        return self.app(  # type: ignore[no-any-return]
            "return panel.content.widgets[argument].model.outputs.toJSON()"
            ".map((each) => [each.text, each.evalue].flat().join('')).join('')",
            cell,
        )

    @property
    def panel(self) -> Panel:
        """The label panel in the notebook, the last one where there are several."""
        return Panel(self.page.locator(".wb").last)


class Panel:
    """The label panel, by what a person sees and presses."""

    def __init__(self, root: Locator) -> None:
        self.root, self.page = root, root.page

    def focus(self) -> None:
        self.root.focus()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def at(self, position: int | str) -> None:
        """Wait until the item at this position is shown; "done" is the summary."""
        expect(self.root).to_have_attribute("data-position", str(position))
        if position != "done":
            expect(self.root).to_have_attribute("data-trace", re.compile("."))

    @property
    def position(self) -> str:
        return self.root.get_attribute("data-position") or ""

    @property
    def trace_id(self) -> str:
        return self.root.get_attribute("data-trace") or ""

    @property
    def epoch(self) -> str:
        """Another one for each panel that the kernel has made."""
        return self.root.get_attribute("data-epoch") or ""

    @property
    def said(self) -> str:
        """What it says about saving; why it takes so long, where it does, is left out."""
        return self.root.locator(".wb-saving").inner_text().partition("\n")[0]

    def all_saved(self) -> None:
        """Wait until the kernel has said that the store has everything."""
        expect(self.root).to_have_attribute("data-unsaved", "0")

    def holds(self, ahead: int) -> None:
        """Wait until the browser holds so many items after the one shown."""
        self.page.wait_for_function(
            "([root, ahead]) => Number(root.dataset.ahead) >= ahead",
            arg=[self.root.element_handle(), ahead],
        )


class Desk:
    """A notebook with a running kernel, in which one test after the other shows what it needs."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    @contextlib.contextmanager
    def shows(self, cells: list[str], viewport: Any = None) -> Iterator[Notebook]:
        """The notebook with these cells, not run yet, as if nothing had been shown before."""
        page = self.notebook.page
        page.set_viewport_size(viewport or {"width": 1280, "height": 900})
        page.evaluate("localStorage.clear(); document.querySelector('#as-wide')?.remove()")
        self.notebook.app(
            "await commands.execute('notebook:clear-all-cell-outputs');"
            "panel.content.widgets.forEach((each, n) =>"
            " each.model.sharedModel.setSource(argument[n] ?? ''))",
            cells,
        )
        yield self.notebook


def connected(store: str, values: Sequence[str] = (), experiment: str = "test") -> str:
    """A cell that connects to a store, and makes a scale of the values if there are any."""
    scale = f"scale = Scale.of({list(values)!r})" if values else ""
    return (
        "if 'panel' in globals(): panel.close()\n"
        "import mlflow, workbench\n"
        "from workbench import LabelQuestion, Scale\n"
        f"mlflow.set_tracking_uri({store!r})\n"
        f"mlflow.set_experiment({experiment!r})\n"
        f"{scale}"
    )
