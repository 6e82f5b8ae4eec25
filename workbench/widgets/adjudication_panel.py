"""Decide where annotators differ: `AdjudicationPanel`, a view of `AdjudicationSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.formatting import html_table, html_text
from workbench.labeling.adjudication_session import AdjudicationSession
from workbench.widgets.session_panel import MOST_ROWS, SessionPanel, panel_module, table_cell

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

    from workbench.scale import Scale


class AdjudicationPanel(SessionPanel):
    """Decide on the traces on which annotators differ, their labels side by side.

    A decision is recorded beside the labels, which stay, with who made it (see
    `workbench.adjudicate`); `workbench.pair` takes it for what people say about the trace. What
    the panel shows as saved is in the store, as in `LabelPanel`, and the keys are the same.

    Parameters
    ----------
    judge_or_name
        The judge or its name, under which the labels are stored.
    traces
        None (the active experiment), traces, trace ids or a filter string; of these the ones on
        which annotators differ are shown, open ones first, of these those on which people lie
        farthest apart.
    by
        Who decides.
    scale
        The rating scale where neither the judge, a label schema nor the labels tell it.
    title
        Stands above the items; the judge's name by default.
    experiment
        Name or id; the active one by default.

    Raises
    ------
    ArgumentError
        For a ``by`` without a name.
    StoreError
        When the traces cannot be read.

    Examples
    --------
    >>> panel = workbench.AdjudicationPanel("answer_quality", by="dora")  # doctest: +SKIP
    >>> panel.decisions  # doctest: +SKIP
    """

    _esm = panel_module("Adjudication", "adjudication")
    session: AdjudicationSession

    def __init__(
        self,
        judge_or_name: Judge | str,
        traces: Any = None,
        *,
        by: str,
        scale: Scale | None = None,
        title: str = "",
        experiment: str | None = None,
    ) -> None:
        self._begin(
            AdjudicationSession(
                judge_or_name, traces, by=by, scale=scale, title=title, experiment=experiment
            )
        )

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, see `workbench.disagreements`."""
        return self.session.decisions

    # -- in a notebook ----------------------------------------------------------------------

    def __repr__(self) -> str:
        return self._summary_line("AdjudicationPanel", self.session.by, "decided")

    def _repr_html_(self) -> str:
        """A table of the labels and decisions, shown where no browser can ask the kernel."""
        progress = self.session.progress
        table = self.decisions.head(MOST_ROWS)
        return (
            f"<p><b>{html_text(self.session.title)}</b>, adjudicated by "
            f"{html_text(self.session.by)}: {progress['labelled']} of {progress['total']} "
            "decided.</p>" + (html_table(table.map(table_cell)) if len(table) else "")
        )
