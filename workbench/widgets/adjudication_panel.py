"""Decide where annotators differ: `AdjudicationPanel`, a view of `AdjudicationSession`."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.genai.judges import Judge

from workbench.labeling.adjudication_session import AdjudicationSession
from workbench.scale import Scale
from workbench.widgets.session_panel import PANEL, SessionPanel


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
    title, experiment
        The judge's name and the active experiment by default.

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

    _esm = f"{PANEL}\nexport default viewOf(Adjudication);"
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
        session = AdjudicationSession(
            judge_or_name, traces, by=by, scale=scale, title=title, experiment=experiment
        )
        self._begin(session, by, "decided")

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, see `workbench.disagreements`."""
        return self.session.decisions

    def _tables(self) -> list[pd.DataFrame]:
        return [self.decisions.reset_index()]
