"""The panels: views of sessions, which forward what the browser sends and return the answers.

Queue, undo, progress and writing belong to the session. Without a front end (papermill, an exported
page) a table stands in a panel's place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import anywidget
import pandas as pd
import traitlets
from IPython import get_ipython
from IPython.display import display
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.formatting import html_table, html_text
from workbench.labeling.assignment import Assignment
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.session import Session
from workbench.labeling.sessions import AdjudicationSession, LabelSession
from workbench.scale import ABSTAIN, Scale
from workbench.widgets.content import prepared, prepared_setup

VIEW: Final = "application/vnd.jupyter.widget-view+json"
HERE: Final = Path(__file__).parent
SECONDS_UNTIL_SHOWN: Final = 5.0
"""Until the table beside a view shows what was labelled."""

_MOST_ROWS = 200


def read_files(kind: str, *names: str) -> str:
    """Return files of this folder as one: a browser gets one, made of those of concepts."""
    return "\n".join((HERE / f"{name}.{kind}").read_text("utf-8") for name in names)


_PANEL: Final = read_files("js", "content", "store", "form", "frame", "panel")


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

    def close(self) -> None:
        """Close the channel; what is shown from then on is the table."""
        super().close()
        self.__dict__.pop("_repr_mimebundle_", None)  # ipywidgets leaves a None there

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_(), **self._view_bundle()}

    def _view_bundle(self) -> dict[str, Any]:
        if self.comm is None:
            return {}
        return {VIEW: {"version_major": 2, "version_minor": 1, "model_id": self.model_id}}


class SessionPanel(View):
    """A view of a session with a table beside it, which the saved notebook holds and the page hides
    as soon as a kernel has sent the view something to show.

    A subclass makes the session and calls `_begin` with it.
    """

    _css: Path | str = HERE / "label.css"
    _live = '[data-trace]:not([data-trace=""])'
    """Selects a view that a kernel has sent something."""

    setup = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    session: Session
    _done = "labelled"
    _table: Any = None  # the handle of the table, once it is shown
    _timer: threading.Timer | None = None

    def _begin(self, session: Session) -> None:
        self.session = session
        self._sending = threading.Lock()
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
        # Comes from the kernel's main thread, which must not wait for a store that is slow.
        kind = message.get("type") if isinstance(message, dict) else None
        if kind in ("act", "page"):
            self._answer(message)
        else:
            threading.Thread(target=self._answer, args=[message], daemon=True).start()

    def _answer(self, message: Any) -> None:
        self._send_all(*self.session.receive(message))

    def _send_all(self, *messages: dict[str, Any]) -> None:
        kinds = {message.get("type") for message in messages}
        for message in messages:
            ready = prepared(message)  # which takes a while for long texts, so not in the lock
            with self._sending:
                if ready.get("type") == "queue":
                    self.setup = prepared_setup(self.session.setup())
                self.send(ready)
        with self._sending:
            self.state = self.session.state()
            if self._table and not self._timer and kinds & {"saved", "queue"}:
                self._timer = threading.Timer(SECONDS_UNTIL_SHOWN, self._renew_table)
                self._timer.daemon = True
                self._timer.start()

    # -- in a notebook ----------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """Put out the view, which is never touched again, and the table beside it."""
        if self.comm is None:
            display(self._repr_mimebundle_(), raw=True)
            return
        bundle = {"text/plain": f"<{type(self).__name__}>", **self._view_bundle()}
        display(bundle, raw=True)
        self._table = display(self._table_bundle(), raw=True, display_id=True)

    def _table_bundle(self) -> dict[str, str]:
        epoch = self.setup["epoch"]
        html = (
            f'<style>body:has(.wb[data-epoch="{epoch}"]{self._live}) '
            f".wb-table-{epoch} {{ display: none; }}</style>"
            f'<div class="wb-table-{epoch}">{self._repr_html_()}</div>'
        )
        return {"text/plain": repr(self), "text/html": html}

    def _renew_table(self) -> None:
        self._timer = None
        if self.session.store.is_active:  # which a table is read from
            self._table.update(self._table_bundle(), raw=True)

    def _tables(self) -> list[pd.DataFrame]:
        raise NotImplementedError

    def __repr__(self) -> str:
        progress = self.session.progress
        skipped = f", {progress['skipped']} skipped" if progress["skipped"] else ""
        waiting = f", {progress['waiting']} not saved yet" if progress["waiting"] else ""
        lost = f", {len(self.unsaved)} could not be saved" if len(self.unsaved) else ""
        return (
            f"<{type(self).__name__} {self.session.title!r} by {self.session.annotator}: "
            f"{progress['labelled']} of {progress['total']} {self._done}{skipped}{waiting}{lost}>"
        )

    def _repr_html_(self) -> str:
        tables = [table.tail(_MOST_ROWS) for table in self._tables() if len(table)]
        shown = "".join(html_table(table, index=False) for table in tables)
        return f"<p>{html_text(repr(self)[1:-1])}</p>{shown}"


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
        whose questions are asked where none are given, and whose status in MLflow's page is
        brought in step whenever the store is read again.
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

    _esm = f"{_PANEL}\nexport default viewOf(Panel);"
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
        self._begin(session)

    @property
    def labels(self) -> pd.DataFrame:
        """The annotator's labels, see `LabelSession.labels`."""
        return self.session.labels

    def summary(self) -> pd.DataFrame:
        """How many labels there are of each value, see `LabelSession.summary`."""
        return self.session.summary()

    def offer_again(self, trace_ids: Iterable[str] | None = None) -> None:
        """Open labelled items of the queue again; by default those of an earlier rubric.

        The new label replaces the first, unless the verdict was seen: then it stays beside the
        first, which agreement is measured on, as a change of it (``changed_to`` in `labels`).
        """
        self._send_all(*self.session.offer_again(trace_ids))

    def _tables(self) -> list[pd.DataFrame]:
        labels = self.labels[["trace_id", "question", "value", "rationale"]]
        shown = {question.name: question.shown for question in self.session.questions}
        values = [
            shown[name](ABSTAIN if value is None else value)
            for name, value in zip(labels["question"], labels["value"], strict=True)
        ]
        return [self.summary(), labels.assign(value=values)]


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

    _esm = f"{_PANEL}\nexport default viewOf(Adjudication);"
    _done = "decided"
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
        self._begin(session)

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, see `workbench.disagreements`."""
        return self.session.decisions

    def _tables(self) -> list[pd.DataFrame]:
        return [self.decisions.reset_index()]
