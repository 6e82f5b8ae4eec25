"""What the views share: the link between a browser and a session, and the table in its place.

A panel forwards what the browser sends and returns what the session answers; queue, undo, progress
and writing belong to the session. Without a front end (papermill, an exported page) a table stands
in its place.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import anywidget
import pandas as pd
import traitlets
from IPython import get_ipython
from IPython.display import display

from workbench.formatting import html_table, html_text
from workbench.labeling.label_session import LabelSession
from workbench.labeling.session import Session
from workbench.widgets.content import prepared, prepared_setup

VIEW: Final = "application/vnd.jupyter.widget-view+json"
HERE: Final = Path(__file__).parent
SECONDS_UNTIL_SHOWN: Final = 5.0
"""Until the table beside a view shows what was labelled."""

_MOST_ROWS, _LONGEST = 200, 200


def javascript(*names: str) -> str:
    """Return files of this folder as one module: a browser gets one, made of those of concepts."""
    return "\n".join((HERE / f"{name}.js").read_text("utf-8") for name in names)


PANEL: Final = javascript("content", "store", "form", "frame", "panel")
"""What a panel's module begins with; it ends with the class that is shown."""


class View(anywidget.AnyWidget):
    """A widget that shows a table where no front end can ask a kernel."""

    def open(self) -> None:
        """Open the channel to the browser, where there may be one.

        papermill and nbconvert say with each cell that no one can be asked for input. They would
        save the widget's state in the notebook, and an exported page would show that, with scripts
        from the network, instead of the table.
        """
        kernel = getattr(get_ipython(), "kernel", None)
        request = (kernel.get_parent("shell") if kernel else None) or {}
        if kernel and request.get("content", {}).get("allow_stdin", True):
            super().open()

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_(), **self._view_bundle()}

    def _view_bundle(self) -> dict[str, Any]:
        if self.comm is None:
            return {}
        return {VIEW: {"version_major": 2, "version_minor": 1, "model_id": self.model_id}}


class ViewBesideTable(View):
    """A view with a table beside it, which the saved notebook holds and the page hides as soon as
    a kernel has sent the view something to show."""

    _css: Path | str = HERE / "label.css"
    _live = '[data-trace]:not([data-trace=""])'
    """Selects a view that a kernel has sent something."""

    setup = traitlets.Dict().tag(sync=True)
    _table: Any = None  # the handle of the table, once it is shown

    def _ipython_display_(self) -> None:
        """Put out the view, which is never touched again, and the table beside it."""
        if self.comm is None:
            display(self._repr_mimebundle_(), raw=True)  # type: ignore[no-untyped-call]
            return
        bundle = {"text/plain": f"<{type(self).__name__}>", **self._view_bundle()}
        display(bundle, raw=True)  # type: ignore[no-untyped-call]
        self._table = display(self._table_bundle(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def _table_bundle(self) -> dict[str, str]:
        epoch = self.setup["epoch"]
        html = (
            f'<style>body:has(.wb[data-epoch="{epoch}"]{self._live}) '
            f".wb-table-{epoch} {{ display: none; }}</style>"
            f'<div class="wb-table-{epoch}">{self._repr_html_()}</div>'
        )
        return {"text/plain": repr(self), "text/html": html}


class SessionPanel(ViewBesideTable):
    """A view of a session: forwards what the browser sends, and returns what the session answers.

    A subclass makes the session and calls `_begin` with it.
    """

    state = traitlets.Dict().tag(sync=True)

    session: Session

    def _begin(self, session: Session, who: str, done: str) -> None:
        self.session, self._who, self._done = session, who, done
        self._sending = threading.Lock()
        self._timer: threading.Timer | None = None
        super().__init__(setup=prepared_setup(session.setup()), state=session.state())
        session.on_message = self._send_all
        self.on_msg(self._on_browser)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: one row an action."""
        return self.session.unsaved

    def refresh(self) -> None:
        """Read the store again: new traces join the queue, labels made elsewhere count."""
        self._send_all(*self.session.refresh())

    def _on_browser(self, _: object, message: Any, __: object) -> None:
        # Comes from the kernel's main thread, or from a subshell's while that one is busy.
        self._send_all(*self.session.receive(message))

    def _send_all(self, *messages: dict[str, Any]) -> None:
        kinds = {message.get("type") for message in messages}
        with self._sending:
            if "queue" in kinds:
                self.setup = prepared_setup(self.session.setup())
            for message in messages:
                self.send(prepared(message))
            self.state = self.session.state()
            if self._table and not self._timer and kinds & {"saved", "queue"}:
                self._timer = threading.Timer(SECONDS_UNTIL_SHOWN, self._renew_table)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """End the view and what goes on behind it; what waits to be written is written."""
        # Also called for one that could not be made.
        if isinstance(session := getattr(self, "session", None), LabelSession):
            session.close()
        super().close()

    # -- in a notebook ----------------------------------------------------------------------

    def _renew_table(self) -> None:
        self._timer = None
        self._table.update(self._table_bundle(), raw=True)

    def _tables(self) -> list[pd.DataFrame]:
        raise NotImplementedError

    def __repr__(self) -> str:
        progress = self.session.progress
        skipped = f", {progress['skipped']} skipped" if progress["skipped"] else ""
        waiting = f", {progress['waiting']} not saved yet" if progress["waiting"] else ""
        lost = f", {len(self.unsaved)} could not be saved" if len(self.unsaved) else ""
        return (
            f"<{type(self).__name__} {self.session.title!r} by {self._who}: "
            f"{progress['labelled']} of {progress['total']} {self._done}{skipped}{waiting}{lost}>"
        )

    def _repr_html_(self) -> str:
        """Tables with the beginning of each text, shown where no browser can ask the kernel."""

        def cell(value: Any) -> Any:
            is_long = isinstance(value, str) and len(value) > _LONGEST
            return f"{value[:_LONGEST]}…" if is_long else value

        shown = [table.tail(_MOST_ROWS).map(cell) for table in self._tables() if len(table)]
        tables = "".join(html_table(table, index=False) for table in shown)
        return f"<p>{html_text(repr(self)[1:-1])}</p>{tables}"
