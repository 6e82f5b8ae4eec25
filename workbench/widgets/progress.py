"""The live view of an alignment in the background: where it stands, what it learned, Cancel."""

from __future__ import annotations

import difflib
import logging
import threading
import weakref
from dataclasses import asdict
from typing import Any, Final

import anywidget
import pandas as pd
import traitlets

from workbench.alignment.background import BackgroundAlignment
from workbench.formatting import html_text
from workbench.widgets.session_panel import HERE, javascript, someone_is_there, view_bundle

SECONDS_BETWEEN: Final = 0.3
"""At least, between two updates of the view."""

_log = logging.getLogger(__name__)


class AlignmentView(anywidget.AnyWidget):
    """Shows a `BackgroundAlignment` and lets it be cancelled; without a kernel a static table.

    It reads the state a few times a second while the alignment goes on, and holds none itself.
    """

    _esm = javascript("content", "progress")
    _css = HERE / "progress.css"

    setup = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    learned: Any = traitlets.List().tag(sync=True)
    outcome = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    def __init__(self, alignment: BackgroundAlignment) -> None:
        self.alignment = alignment
        super().__init__(setup={"title": alignment.judge.name, "table": _cells(None)})
        self.update()
        self.on_msg(self._on_browser)
        threading.Thread(
            target=_follow, args=(weakref.ref(self), alignment), name="alignment view", daemon=True
        ).start()

    def update(self) -> None:
        """Tell the browser what has changed."""
        state = self.alignment.state
        with self.hold_sync():
            self.setup = {
                "title": self.alignment.judge.name,
                "table": _cells(self.alignment.preflight),
            }
            self.learned = _learned(self.alignment)
            # Tenths would change with each look, and nobody reads them.
            self.state = {**asdict(state), "seconds": int(state.seconds), "ended": state.ended}
            if state.stage == "done":
                self.outcome = _outcome(self.alignment)

    def _on_browser(self, _: object, message: Any, __: object) -> None:
        if isinstance(message, dict) and message.get("type") == "cancel":
            self.alignment.cancel()
            self.update()

    # -- in a notebook ----------------------------------------------------------------------

    def open(self) -> None:
        """Open the channel to the browser, where there may be one."""
        if someone_is_there():
            super().open()

    def _repr_html_(self) -> str:
        """Where it stands now, shown where no browser can ask the kernel."""
        state = self.alignment.state
        figures = {
            "stage": state.stage,
            "steps": None if state.step is None else f"{state.step} of {state.max_steps}",
            "best dev score": None if state.best_score is None else f"{state.best_score:.3f}",
            "spent": state.spent or None,
            "failed calls": state.failures,
            "seconds": f"{state.seconds:.0f}",
        }
        rows = "".join(
            f"<tr><th>{html_text(name)}</th><td>{html_text(figure)}</td></tr>"
            for name, figure in figures.items()
            if figure is not None
        )
        lines = "\n".join(
            f"<ins>{html_text(line)}</ins>" if new else html_text(line)
            for line, new in _learned(self.alignment)
        )
        said = f"<p>{html_text(state.message)}</p>" if state.message else ""
        if state.stage == "done":
            said = self.alignment.result()._repr_html_()
        return (
            f"<p><b>Alignment of {html_text(self.alignment.judge.name)}</b></p>"
            f"<table>{rows}</table>{said}"
            f'<p>Best instructions:</p><pre style="white-space: pre-wrap">{lines}</pre>'
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        table = {"text/plain": repr(self.alignment), "text/html": self._repr_html_()}
        is_live = self.comm is not None and someone_is_there()
        return {**table, **(view_bundle(self) if is_live else {})}


def _follow(view: weakref.ref[AlignmentView], alignment: BackgroundAlignment) -> None:
    """Keep the view up to date until the alignment ends or nobody holds the view any more."""
    ended = False
    while not ended:
        ended = alignment.wait(SECONDS_BETWEEN)
        shown = view()
        if shown is None:
            return
        try:
            shown.update()
        except Exception:
            # The front end may be gone for a while; the next update tells all.
            _log.debug("the view could not be brought up to date", exc_info=True)
        del shown


def _learned(alignment: BackgroundAlignment) -> list[list[Any]]:
    """The lines of the best instructions, each with whether it was learned."""
    before = str(getattr(alignment.judge, "instructions", "")).splitlines()
    after = alignment.state.instructions.splitlines()
    same = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    known = {block.b + i for block in same for i in range(block.size)}
    return [[line, i not in known and bool(line.strip())] for i, line in enumerate(after)]


def _outcome(alignment: BackgroundAlignment) -> dict[str, Any]:
    """The result as plain text in cells: the browser never reads HTML."""
    found = alignment.result()
    return {
        "status": found.status,
        "reason": found.reason,
        "table": _cells(found.comparison.table, index=True),
        "notes": list(found.notes),
    }


def _cells(table: pd.DataFrame | None, *, index: bool = False) -> dict[str, Any]:
    """A small table as text: ``head`` and ``rows``."""
    if table is None:
        return {"head": [], "rows": []}
    head = [str(column) for column in table.columns]
    rows = [
        [*([str(name)] if index else []), *(_text(value) for value in row)]
        for name, row in zip(table.index, table.itertuples(index=False, name=None), strict=True)
    ]
    return {"head": ["", *head] if index else head, "rows": rows}


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
