"""Label traces in the notebook, on the keyboard, and decide where annotators differ.

`LabelPanel` is a view of `LabelSession`, `AdjudicationPanel` one of `DecisionSession`. A widget
forwards what the browser sends and returns what the session answers; queue, undo, progress and
writing are the session's. Without a front end that someone sits at (papermill, an
exported page) a table stands in its place (`workbench.panel.table`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anywidget
import pandas as pd
import traitlets

from workbench.formatting import html_table, html_text
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.session import DecisionSession, LabelSession

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema

    from workbench.labeling.assignment import Assignment
    from workbench.scale import Scale


VIEW: Final = "application/vnd.jupyter.widget-view+json"


_SOONEST: Final = 1.5

_SHARE: Final = 0.05


_log = logging.getLogger(__name__)


class StandingTable:
    """A table in the notebook's output.

    Parameters
    ----------
    table
        Makes the bundle of the table: its ``text/plain`` and ``text/html``.
    epoch
        What the view of this panel is known by in the page: hexadecimal digits.
    """

    def __init__(self, table: Callable[[], dict[str, Any]], epoch: str) -> None:
        self._table = table
        self._hiding = (
            # The view names an item as soon as a kernel has sent it one.
            f'<style>body:has(.wb[data-epoch="{epoch}"][data-trace]:not([data-trace=""])) '
            f".wb-table-{epoch} {{ display: none; }}</style>"
        )
        self._class = f"wb-table-{epoch}"
        self._display_id = f"workbench-{uuid.uuid4().hex}"
        self._shown = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._cost = 0.0

    def show(self) -> None:
        """Put the table out, where the cell stands that is run now."""
        self._shown = True
        self._publish(update=False)

    def changed(self) -> None:
        """Bring it up to date soon; returns at once."""
        if not self._shown:
            return
        with self._lock:
            if self._timer is None:
                wait = max(_SOONEST, self._cost / _SHARE)
                self._timer = threading.Timer(wait, self._renew)
                self._timer.daemon = True
                self._timer.start()

    def _renew(self) -> None:
        with self._lock:
            self._timer = None
        began = time.monotonic()
        try:
            self._publish(update=True)
        except Exception:
            # No front end is left to be told.
            _log.debug("the table could not be brought up to date", exc_info=True)
        self._cost = time.monotonic() - began

    def _publish(self, *, update: bool) -> None:
        bundle = self._table()
        inside = f'{self._hiding}<div class="{self._class}">{bundle["text/html"]}</div>'
        put_out({**bundle, "text/html": inside}, display_id=self._display_id, update=update)


def put_out(bundle: dict[str, Any], **more: Any) -> None:
    """Make a bundle of MIME types an output of the cell that is run."""
    from IPython.display import display

    display(bundle, raw=True, **more)  # type: ignore[no-untyped-call]  # IPython has none


_HERE = Path(__file__).parent

_MOST_ROWS = 200

_LONGEST_TEXT = 200

_SHOWN = ["trace_id", "question", "value", "rationale", "saved"]


def _module(name: str) -> str:
    """A panel's JavaScript: a browser gets one file, so what panels share comes before it."""
    return "\n".join((_HERE / part).read_text("utf-8") for part in ("view.js", name))


class SessionPanel(anywidget.AnyWidget):
    """A view of a session: forwards what the browser sends, and returns what the session answers.

    Whoever is derived from it makes the session and calls `_show` with it.
    """

    _css = _HERE / "label.css"

    setup = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    session: LabelSession | DecisionSession

    def _show(self, session: LabelSession | DecisionSession) -> None:
        self.session = session
        self._telling = threading.Lock()
        setup = session.setup()
        super().__init__(setup=setup, state=session.state())
        self._table = StandingTable(self._bundle, setup["epoch"])
        session.on_message = self._tell
        self.on_msg(self._on_browser)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: one row an action."""
        return self.session.unsaved

    def refresh(self) -> None:
        """Read the store again: new traces join the queue, what was said elsewhere counts."""
        self._tell(*self.session.refresh())

    def open(self) -> None:
        """Open the channel to the browser, where there may be one."""
        # Whatever runs a notebook unwatched would otherwise save the panel's state in it, and an
        # exported page would show that, with scripts from the network, instead of the table.
        if someone_is_there():
            super().open()

    def _on_browser(self, _: object, message: Any, __: object) -> None:
        # Comes from the kernel's main thread, or from a subshell's while that one is busy.
        self._tell(*self.session.receive(message))

    def _tell(self, *messages: dict[str, Any]) -> None:
        with self._telling:
            for message in messages:
                if message.get("type") == "queue":
                    self.setup = self.session.setup()
                if message.get("type") != "state":
                    self.send(message)
            self.state = self.session.state()
        if any(message.get("type") in ("saved", "queue") for message in messages):
            self._table.changed()

    def close(self) -> None:
        """End the view and what goes on behind it; what waits to be written is written."""
        # Also called for one that could not be made.
        if isinstance(session := getattr(self, "session", None), LabelSession):
            session.close()
        super().close()

    # -- in a notebook ----------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        if not self._has_view:
            put_out(self._bundle())
            return
        # Two outputs: the view, which is never touched again, and the table, which is.
        put_out({"text/plain": f"<{type(self).__name__}>", **self._view()})
        self._table.show()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {**self._bundle(), **(self._view() if self._has_view else {})}

    @property
    def _has_view(self) -> bool:
        return self.comm is not None and someone_is_there()

    def _view(self) -> dict[str, Any]:
        return {VIEW: {"version_major": 2, "version_minor": 1, "model_id": self.model_id}}

    def _bundle(self) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        raise NotImplementedError


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
    order
        What comes next: "random", "disagreement", "balance", "unlike" or "mix".
    seed
        Of the order.
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

    _esm = _module("labelling.js")
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
        self._show(
            LabelSession(
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
        )
        self._keeper = self.session.keeper

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
        self._tell(*self.session.offer_again(trace_ids))

    # -- in a notebook ----------------------------------------------------------------------

    def __repr__(self) -> str:
        told = self.session.progress
        waiting = f", {told['waiting']} not saved yet" if told["waiting"] else ""
        lost = len(self.unsaved)
        return (
            f"<LabelPanel {self.session.title!r} by {self.session.annotator}: "
            f"{told['labelled']} of {told['total']} labelled{waiting}"
            f"{f', {lost} could not be saved' if lost else ''}>"
        )

    def _repr_html_(self) -> str:
        """A table of the labels, shown where no browser can ask the kernel."""
        told = self.session.progress
        labels = self.labels
        shown = labels[_SHOWN].tail(_MOST_ROWS)
        shown = shown.assign(
            # A mark of its own: an empty cell reads as if something were missing.
            value=shown["value"].map(lambda value: "can't judge" if value is None else value),
            rationale=shown["rationale"].fillna("").map(_shortened),
            saved=shown["saved"].map({True: "yes", False: "not yet"}),
        )
        left = len(labels) - len(shown)
        skipped = f", {told['skipped']} skipped" if told["skipped"] else ""
        return "\n".join(
            [
                f"<p><b>{html_text(self.session.title)}</b>, labelled by "
                f"{html_text(self.session.annotator)}: {told['labelled']} of {told['total']}"
                f"{skipped}.</p>",
                html_table(self.summary(), index=False),
                html_table(shown, index=False) if len(shown) else "",
                f"<p>{left} earlier labels are not shown.</p>" if left else "",
            ]
        )


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

    _esm = _module("adjudication.js")
    session: DecisionSession

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
        self._show(
            DecisionSession(
                judge_or_name, traces, by=by, scale=scale, title=title, experiment=experiment
            )
        )

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, see `workbench.disagreements`."""
        return self.session.decisions

    # -- in a notebook ----------------------------------------------------------------------

    def __repr__(self) -> str:
        told = self.session.progress
        waiting = f", {told['waiting']} not saved yet" if told["waiting"] else ""
        lost = len(self.unsaved)
        return (
            f"<AdjudicationPanel {self.session.title!r} by {self.session.by}: "
            f"{told['labelled']} of {told['total']} decided{waiting}"
            f"{f', {lost} could not be saved' if lost else ''}>"
        )

    def _repr_html_(self) -> str:
        """A table of the labels and decisions, shown where no browser can ask the kernel."""
        told = self.session.progress
        table = self.decisions.head(_MOST_ROWS)
        return "\n".join(
            [
                f"<p><b>{html_text(self.session.title)}</b>, adjudicated by "
                f"{html_text(self.session.by)}: {told['labelled']} of {told['total']} "
                "decided.</p>",
                html_table(table.map(_brief)) if len(table) else "",
            ]
        )


def someone_is_there() -> bool:
    """Whether what the kernel shows now reaches a front end at which someone may sit.

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


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _brief(cell: Any) -> Any:
    if isinstance(cell, str):
        return _shortened(cell)
    return "" if cell is None else cell
