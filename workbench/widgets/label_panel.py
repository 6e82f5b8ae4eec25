"""Label traces in the notebook, on the keyboard: `LabelPanel`, a view of `LabelSession`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.labeling.assignment import Assignment
from workbench.labeling.label_session import LabelSession
from workbench.labeling.questions import LabelQuestion
from workbench.scale import Scale
from workbench.widgets.session_panel import PANEL, SessionPanel


class LabelPanel(SessionPanel):
    """Label traces one at a time, with the keyboard; labels are MLflow feedback.

    What the panel shows as saved is in the store. While the kernel is busy, ratings wait in the
    browser and are shown as not saved yet; a reload of the page or a restart of the kernel (run
    the cell again) loses none and writes none twice.

    Parameters
    ----------
    judge_or_name
        The judge whose question is answered, or its name; None when ``questions`` are given.
    traces
        What to label: None (the active experiment), MLflow traces, trace ids or a filter string;
        or a `workbench.review_queue`, of which the annotator's share is labelled, batch by batch,
        whose questions are asked where none are given, and whose status in MLflow's page is kept
        in step.
    annotator
        Who labels. "Ben" and "ben" are one person.
    questions
        Instead of the judge's own one or several `LabelQuestion`, MLflow label schemas or names
        of these.
    order, seed
        What comes next: "random", "disagreement", "balance", "unlike" or "mix".
    random_share
        The share of items drawn at random, in [0, 1], where the order mixes them in.
    assign
        Whose share of the traces this is, see `workbench.assign`; or a function from all trace
        ids to those that this annotator is to label.
    reveal
        Whether the judge's verdict and other people's labels are shown after one's own label is
        saved. A change of mind is then recorded beside the first label, which is kept.
    title
        Stands above the items; the judge's name by default.
    scale
        The rating scale where neither the judge, a label schema nor the values observed tell it.
    experiment
        Name or id; the active one by default.
    refresh_every
        Seconds between two looks at the store for what was done elsewhere while the panel is open;
        None: only when `refresh` is called, or the panel's button pressed.

    Raises
    ------
    ArgumentError
        For an annotator without a name, unknown orders, or no scale to rate on.
    StoreError
        When the traces cannot be read.

    Examples
    --------
    >>> panel = workbench.LabelPanel(judge, annotator="ana")  # doctest: +SKIP
    >>> panel.labels  # doctest: +SKIP
    """

    _esm = f"{PANEL}\nexport default viewOf(Panel);"
    session: LabelSession

    def __init__(
        self,
        judge_or_name: Judge | str | None = None,
        traces: Any = None,
        *,
        annotator: str,
        questions: Sequence[LabelQuestion | LabelSchema | str] | None = None,
        order: str = "random",
        seed: int = 0,
        random_share: float | None = None,
        assign: Assignment | Callable[[list[str]], Iterable[str]] | None = None,
        reveal: bool = False,
        title: str = "",
        scale: Scale | None = None,
        experiment: str | None = None,
        refresh_every: float | None = 30.0,
    ) -> None:
        session = LabelSession(
            judge_or_name,
            traces,
            annotator=annotator,
            questions=questions,
            order=order,
            seed=seed,
            random_share=random_share,
            assign=assign,
            reveal=reveal,
            title=title,
            scale=scale,
            experiment=experiment,
            refresh_every=refresh_every,
        )
        self._begin(session, annotator, "labelled")

    @property
    def labels(self) -> pd.DataFrame:
        """The annotator's labels, see `LabelSession.labels`."""
        return self.session.labels

    def summary(self) -> pd.DataFrame:
        """How many labels there are of each value, see `LabelSession.summary`."""
        return self.session.summary()

    def offer_again(self, trace_ids: Iterable[str] | None = None) -> None:
        """Open labelled items again; by default those labelled under an earlier rubric.

        Where the verdict was not seen yet, the new label replaces the first. One that is given
        after the verdict was seen stays beside the first, which agreement is measured on, and is
        kept as a change of it (``changed_to`` in `labels`); the item counts as labelled again.
        """
        self._send_all(*self.session.offer_again(trace_ids))

    def _tables(self) -> list[pd.DataFrame]:
        labels = self.labels[["trace_id", "question", "value", "rationale", "saved"]]
        # A mark of its own: an empty cell reads as if something were missing.
        values = labels["value"].map(lambda value: "can't judge" if value is None else value)
        return [self.summary(), labels.assign(value=values)]
