"""What the panels share: the link between a browser and a session, and the table in its place.

A panel forwards what the browser sends and returns what the session answers; queue, undo, progress
and writing belong to the session. Without a front end (papermill, an exported page) a table stands
in its place.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anywidget
import pandas as pd
import traitlets

from workbench.labeling.adjudication_session import AdjudicationSession
from workbench.labeling.label_session import LabelSession
from workbench.widgets.content import prepared, prepared_setup

VIEW: Final = "application/vnd.jupyter.widget-view+json"
HERE: Final = Path(__file__).parent
MOST_ROWS: Final = 200
"""Rows of a table that stands in place of a panel."""

_LONGEST_TEXT = 200

_log = logging.getLogger(__name__)

Display = Callable[..., None]


def javascript(*names: str) -> str:
    """Return files of this folder as one module: a browser gets one, made of those of concepts."""
    return "\n".join((HERE / f"{name}.js").read_text("utf-8") for name in names)


def panel_module(kind: str, *more: str) -> str:
    """Return the JavaScript of a panel, whose class is ``kind``."""
    names = ["content", "keys", "outbox", "store", "form", "frame", "panel", *more]
    return f"{javascript(*names)}\nexport default viewOf({kind});\n"


def someone_is_there() -> bool:
    """Return whether what the kernel shows now reaches a front end at which someone may sit.

    papermill, nbclient and nbconvert say with each cell that no one can be asked for input.
    Voilà runs cells in the same way, but does show them to someone.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return True
    request = kernel.get_parent("shell") or {}
    return bool(request.get("content", {}).get("allow_stdin", True))


def display_bundle(bundle: dict[str, Any], **more: Any) -> None:
    """Make a bundle of MIME types an output of the cell that is run."""
    from IPython.display import display

    display(bundle, raw=True, **more)  # type: ignore[no-untyped-call]  # IPython has none


def view_bundle(widget: anywidget.AnyWidget) -> dict[str, Any]:
    """Return what makes a front end show a widget."""
    return {VIEW: {"version_major": 2, "version_minor": 1, "model_id": widget.model_id}}


class LiveTable:
    """A table in the notebook's output that follows what is labelled.

    It is hidden in the page while the view beside it works.

    Parameters
    ----------
    table
        Makes the bundle of the table: its ``text/plain`` and ``text/html``.
    epoch
        What the view of this panel is known by in the page: hexadecimal digits.
    display, pause
        Puts a bundle out; seconds until a change is shown.
    """

    def __init__(
        self,
        table: Callable[[], dict[str, Any]],
        epoch: str,
        display: Display = display_bundle,
        pause: float = 5.0,
    ) -> None:
        self._table, self._display, self._pause = table, display, pause
        self._class = f"wb-table-{epoch}"
        # The view names an item as soon as a kernel has sent it one.
        self._hiding = (
            f'<style>body:has(.wb[data-epoch="{epoch}"][data-trace]:not([data-trace=""])) '
            f".{self._class} {{ display: none; }}</style>"
        )
        self._display_id = f"workbench-{uuid.uuid4().hex}"
        self._is_shown = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def show(self) -> None:
        """Put the table out in the output of the cell that is run now."""
        self._is_shown = True
        self._publish(update=False)

    def changed(self) -> None:
        """Bring the table up to date soon; returns at once."""
        if not self._is_shown:
            return
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(self._pause, self._renew)
                self._timer.daemon = True
                self._timer.start()

    def _renew(self) -> None:
        with self._lock:
            self._timer = None
        try:
            self._publish(update=True)
        except Exception:
            # No front end is left.
            _log.debug("the table could not be brought up to date", exc_info=True)

    def _publish(self, *, update: bool) -> None:
        bundle = self._table()
        inside = f'{self._hiding}<div class="{self._class}">{bundle["text/html"]}</div>'
        self._display({**bundle, "text/html": inside}, display_id=self._display_id, update=update)


class SessionPanel(anywidget.AnyWidget):
    """A view of a session: forwards what the browser sends, and returns what the session answers.

    A subclass makes the session and calls `_begin` with it.
    """

    _css = HERE / "label.css"

    setup = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    session: LabelSession | AdjudicationSession

    def _begin(self, session: LabelSession | AdjudicationSession) -> None:
        self.session = session
        self._sending = threading.Lock()
        super().__init__(setup=prepared_setup(session.setup()), state=session.state())
        self._table = LiveTable(self.table_bundle, self.setup["epoch"])
        session.on_message = self._send_all
        self.on_msg(self._on_browser)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: one row an action."""
        return self.session.unsaved

    def refresh(self) -> None:
        """Read the store again: new traces join the queue, labels made elsewhere count."""
        self._send_all(*self.session.refresh())

    def open(self) -> None:
        """Open the channel to the browser, where there may be one."""
        # Whatever runs a notebook unwatched would otherwise save the panel's state in it, and an
        # exported page would show that, with scripts from the network, instead of the table.
        if someone_is_there():
            super().open()

    def _on_browser(self, _: object, message: Any, __: object) -> None:
        # Comes from the kernel's main thread, or from a subshell's while that one is busy.
        self._send_all(*self.session.receive(message))

    def _send_all(self, *messages: dict[str, Any]) -> None:
        kinds = {message.get("type") for message in messages}
        made = [prepared(message) for message in messages if message.get("type") != "state"]
        try:
            with self._sending:
                if "queue" in kinds:
                    self.setup = prepared_setup(self.session.setup())
                for message in made:
                    self.send(message)
        finally:
            with self._sending:
                # Also where a message does not get through: the state says what is saved.
                self.state = self.session.state()
        if kinds & {"saved", "queue"}:
            self._table.changed()

    def close(self) -> None:
        """End the view and what goes on behind it; what waits to be written is written."""
        # Also called for one that could not be made.
        if isinstance(session := getattr(self, "session", None), LabelSession):
            session.close()
        super().close()

    # -- in a notebook ----------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        if self.comm is None or not someone_is_there():
            display_bundle(self.table_bundle())
        else:
            self.show_live(self._table)

    def show_live(self, table: LiveTable, display: Display = display_bundle) -> None:
        """Put out the view, which is never touched again, and beside it the table, which is."""
        self._table = table
        display({"text/plain": f"<{type(self).__name__}>", **view_bundle(self)})
        table.show()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        is_live = self.comm is not None and someone_is_there()
        return {**self.table_bundle(), **(view_bundle(self) if is_live else {})}

    def table_bundle(self) -> dict[str, Any]:
        """Return what stands in place of the view: a line of text and a table."""
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def _summary_line(self, name: str, who: str, done: str) -> str:
        """How far it is, in a line."""
        progress = self.session.progress
        waiting = f", {progress['waiting']} not saved yet" if progress["waiting"] else ""
        lost = f", {len(self.unsaved)} could not be saved" if len(self.unsaved) else ""
        return (
            f"<{name} {self.session.title!r} by {who}: {progress['labelled']} of "
            f"{progress['total']} {done}{waiting}{lost}>"
        )


def table_cell(value: Any) -> Any:
    """Return a value as a cell of a table shows it: of a long text the beginning, None as empty."""
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"{value[:_LONGEST_TEXT]}…"
    return "" if value is None else value
