"""The live view of an alignment in the background: where it stands, what it learned, Cancel."""

from __future__ import annotations

import difflib
import threading
from dataclasses import asdict
from typing import Any, Final

import pandas as pd
import traitlets

from workbench.alignment.background import BackgroundAlignment
from workbench.formatting import html_text
from workbench.widgets.panels import HERE, View, read_files

SECONDS_BETWEEN: Final = 0.3
"""At least, between two updates of the view."""


class AlignmentView(View):
    """Shows a `BackgroundAlignment` and lets it be cancelled; without a kernel a static table.

    It reads the state a few times a second while the alignment goes on, and holds none itself.
    """

    _esm = read_files("js", "content", "progress")
    _css = HERE / "progress.css"

    setup = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    learned: Any = traitlets.List().tag(sync=True)
    outcome = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    def __init__(self, alignment: BackgroundAlignment) -> None:
        self.alignment = alignment
        super().__init__()
        self.update()
        self.on_msg(self._on_browser)
        threading.Thread(target=self._follow, name="alignment view", daemon=True).start()

    def _follow(self) -> None:
        while not self.alignment.wait(SECONDS_BETWEEN):
            self.update()
        self.update()

    def update(self) -> None:
        """Tell the browser what has changed."""
        alignment = self.alignment
        state = alignment.state
        with self.hold_sync():
            self.setup = {"title": alignment.judge.name, "table": _cells(alignment.preflight)}
            self.learned = _learned(alignment)
            # Tenths would change with each look, and nobody reads them.
            self.state = {**asdict(state), "seconds": int(state.seconds), "ended": state.ended}
            if state.stage == "done":
                found = alignment.result()
                # As plain text in cells: the browser never reads HTML.
                self.outcome = {
                    "status": found.status if found.headline == found.status else "uncertain",
                    "headline": found.headline,
                    "reason": found.reason,
                    "table": _cells(found.comparison.table, index=True),
                    "notes": list(found.notes),
                }

    def _on_browser(self, _: object, message: Any, __: object) -> None:
        if isinstance(message, dict) and message.get("type") == "cancel":
            self.alignment.cancel()
            self.update()

    def __repr__(self) -> str:
        return repr(self.alignment)

    def _repr_html_(self) -> str:
        """Where it stands now, shown where no browser can ask the kernel."""
        done = self.alignment.state.stage == "done"
        lines = "\n".join(
            f"<ins>{html_text(line)}</ins>" if new else html_text(line)
            for line, new in _learned(self.alignment)
        )
        return (
            f"<p>{html_text(repr(self)[1:-1])}</p>"
            f"{self.alignment.result()._repr_html_() if done else ''}"
            f'<p>Best instructions:</p><pre style="white-space: pre-wrap">{lines}</pre>'
        )


def _learned(alignment: BackgroundAlignment) -> list[list[Any]]:
    """The lines of the best instructions, each with whether it was learned."""
    before = str(getattr(alignment.judge, "instructions", "")).splitlines()
    after = alignment.state.instructions.splitlines()
    same = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    known = {block.b + i for block in same for i in range(block.size)}
    return [[line, i not in known and bool(line.strip())] for i, line in enumerate(after)]


def _cells(table: pd.DataFrame | None, *, index: bool = False) -> dict[str, Any]:
    """A small table as text: ``head`` and ``rows``."""
    if table is None:
        return {"head": [], "rows": []}
    cells = (table.reset_index(names="") if index else table).astype(object)
    shown = cells.map(lambda one: f"{one:.3f}" if isinstance(one, float) else str(one))
    return {
        "head": [str(column) for column in cells.columns],
        "rows": shown.where(cells.notna(), "").to_numpy().tolist(),
    }
