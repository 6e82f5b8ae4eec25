"""`LabelSession`: one annotator labels a queue of traces, without a widget or a browser."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import TraceInfo

from workbench.errors import ArgumentError, StoreError
from workbench.judging.verdicts import choose_version, recorded_verdicts
from workbench.labeling.annotations import (
    ACTION_KEY,
    SECONDS_KEY,
    Action,
    Answer,
    Item,
    read_annotations,
    revealed_tag,
    undone_actions,
    without_spans,
)
from workbench.labeling.questions import LabelQuestion, read_answers, session_questions
from workbench.labeling.queue import Assign, LabelQueue, Workload, read_workload
from workbench.labeling.review_queue import ReviewQueue
from workbench.labeling.session import Message, Session, canonical, problem
from workbench.labeling.writer import Job, TraceStore, save, skip, take_back
from workbench.scale import ABSTAIN, Scale
from workbench.store.assessments import now_ms
from workbench.store.labels import Label, label_records, same_person
from workbench.store.traces import store_message

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema

_DRAW = ["chosen", "probability", "draw", "pool"]
_COLUMNS = [
    "trace_id", "question", "value", "rationale", "annotator", *_DRAW, "seconds", "at", "saved",
    "rubric_version", "after_verdict", "changed_to", "elsewhere",
]  # fmt: skip

_log = logging.getLogger(__name__)


class LabelSession(Session):
    """The labelling of one annotator on one or several questions.

    The messages between session and view are described in `workbench.labeling.session`.

    Parameters
    ----------
    judge_or_name, traces, annotator, questions, order, seed, random_share, assign, reveal, \
title, scale, experiment
        See `workbench.LabelPanel`.
    on_message, store
        See `workbench.labeling.session.Session`.
    refresh_every
        Seconds between two readings of the store for what was done elsewhere, once a view has
        said hello; longer where reading takes long. None: only when `refresh` is called.

    Raises
    ------
    ArgumentError
        For an annotator without a name, or one whom ``assign`` does not name, unknown orders, or
        no scale to rate on.
    StoreError
        When the traces cannot be read.
    """

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
        assign: Assign | None = None,
        reveal: bool = False,
        title: str = "",
        scale: Scale | None = None,
        experiment: str | None = None,
        on_message: Callable[[Message], None] | None = None,
        refresh_every: float | None = 30.0,
        store: TraceStore | None = None,
    ) -> None:
        if not isinstance(annotator, str) or not annotator.strip():
            raise ArgumentError(f"annotator={annotator!r} must be a non-empty text.")
        self._judge, self._traces, self._assign = judge_or_name, traces, assign
        self.reveal, self._refresh_every = reveal, refresh_every or 0.0
        self._is_reading, self._closed = refresh_every is None, threading.Event()
        self._left_out: list[str] = []
        self._status_note = ""
        # Where it is settled who labels what, or how many label an item, all have one order, so
        # that what several label can be compared soon. Elsewhere they would do the same items.
        in_common = assign is not None
        if isinstance(traces, ReviewQueue):
            in_common = in_common or bool(traces.annotators) or traces.each > 1
            experiment = experiment or traces.experiment_id
            if judge_or_name is None and questions is None:
                questions, self._left_out = traces.questions, traces.left_out
        super().__init__(annotator, store or TraceStore(experiment), on_message)
        work = self._read()
        where = self.store.experiment
        self.ask(session_questions(judge_or_name, questions, scale, work.infos.values(), where))
        self.title = title or ", ".join(q.title or q.name for q in self.questions)
        self._queue = LabelQueue(
            self.questions,
            annotator,
            order=order,
            seed=seed,
            random_share=random_share,
            judge=judge_or_name,
            in_common=in_common,
        )
        self.items = self._queue.items
        self._take_over(work)

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the session: rules that have nothing to go by, questions that are not
        asked, what keeps MLflow's page from being up to date."""
        left_out = ", ".join(map(repr, self._left_out))
        asks = f"Not asked here, since they ask for expectations: {left_out}. Use MLflow's page."
        return list(filter(None, [*self._queue.notes, left_out and asks, self._status_note]))

    def answer(self, kind: Any, message: Any) -> list[Message]:
        """Answer one message of the view, or raise."""
        if kind == "reveal":
            self._reveal(message["trace_id"])
            return []
        if kind == "hello" and not self._is_reading:
            self._is_reading = True
            threading.Thread(target=self._keep_reading, name="rereading", daemon=True).start()
        return super().answer(kind, message)

    # -- actions ------------------------------------------------------------------------

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        """Return what writes an action; raises `WorkbenchError` for one that can't be written."""
        store, questions, annotator = self.store, self.questions, self.annotator
        if action.kind == "undo":
            return lambda: take_back(store, action, questions, annotator)
        if action.kind == "skip":
            draw = self._queue.record_draw(action.trace_id)
            return lambda: skip(store, action, questions, annotator, draw)
        item = self.items.get(action.trace_id)
        answers = read_answers(questions, action.answers, item.annotations.answers if item else ())
        given = [(one, answers[one.name]) for one in questions if one.name in answers]
        draw = self._queue.record_draw(action.trace_id)
        return lambda: save(store, action, given, annotator, draw)

    def learn(self, info: TraceInfo) -> None:
        """Take over what the store holds of a trace after an action was written."""
        self._queue.learn(info)
        added = self._added.get(info.trace_id)
        if added is not None:
            queue, who = self._traces, self.annotator
            self._put_status(lambda: queue.sync_item(info.trace_id, added, who))

    def _put_status(self, write: Callable[[], Any]) -> None:
        """Write MLflow's status of items; what fails for good `ReviewQueue.sync` does later."""

        def done(_: Any) -> None:
            self._status_note = ""

        def failed(error: Exception, _: bool) -> None:
            where = f"The queue {self._traces.name!r} in MLflow's page"
            self._status_note = f"{where} is not up to date: {store_message(error)}"

        self.writer.put(Job("status", write, done, failed))

    def _reveal(self, trace_id: str) -> None:
        if not self.reveal:
            raise ArgumentError("Verdicts are not shown in this session (reveal=False).")
        with self.lock:
            item = self.items.get(trace_id)
            if item is None or item.status != "done":
                raise ArgumentError("The verdict is shown once your own label is saved.")

        def done(revealed: Message) -> None:
            self.tell(revealed)

        def failed(error: Exception, final: bool) -> None:
            if final:
                self.tell(problem(error, "reveal"))

        self.writer.put(Job(trace_id, lambda: self._revealed(trace_id), done, failed))

    def _revealed(self, trace_id: str) -> Message:
        """Record that the annotator sees them, and return what the judge and others say."""
        info = self.store.get(trace_id)
        stored = read_annotations(info, self.questions, self.annotator)
        undone = undone_actions(info)
        if not stored.done or any(one.action in undone for one in stored.answers.values()):
            raise StoreError("The verdict is shown once your own label is saved.")
        for question in self.questions:
            if question.name not in stored.revealed:
                tag = revealed_tag(self.annotator, question)
                self.store.client.set_trace_tag(trace_id, tag, str(now_ms()))
        info = self.store.get(trace_id)
        with self.lock:
            if trace_id in self.items:
                self._queue.learn(info)
        verdicts = {q.name: self._verdict(info, q) for q in self.questions}
        others = [
            {
                "question": question.name,
                "annotator": label.annotator,
                "value": _cell(canonical(question, label.value)),
                "rationale": label.rationale or "",
            }
            for question in self.questions
            for label in label_records([without_spans(info)], question.name)
            if not same_person(label.annotator, self.annotator)
        ]
        return {
            "type": "revealed",
            "trace_id": trace_id,
            "judges": verdicts,
            "others": others,
        }

    def _verdict(self, info: TraceInfo, question: LabelQuestion) -> Message | None:
        recorded = {info.trace_id: recorded_verdicts(without_spans(info), question.name)}
        is_judge = question.name == getattr(self._judge, "name", self._judge)
        judge = self._judge if self._judge is not None and is_judge else question.name
        chosen, _, _ = choose_version(judge, recorded)
        for verdict in reversed(chosen[info.trace_id]):
            if verdict.usable:
                value = _cell(canonical(question, verdict.value))
                return {"value": value, "rationale": verdict.rationale}
        return None

    # -- reading again ------------------------------------------------------------------

    def _read(self, *, missing_ok: bool = False) -> Workload:
        return read_workload(
            self.store, self.annotator, self._traces, self._assign, missing_ok=missing_ok
        )

    def _take_over(self, work: Workload) -> None:
        with self.lock:
            self._queue.take_over(work)
        self._added: dict[str, int] = {}
        if (items := work.queued) is not None:
            self._added = {item.trace_id: item.added_ms for item in items}
            self._put_status(lambda: self._traces.sync(items))

    def reload(self) -> None:
        """Read the store again; nothing is written meanwhile."""
        self.ask(self.questions)
        # Of traces that are named, some may have been deleted since.
        self._take_over(self._read(missing_ok=True))

    def reread(self) -> None:
        """Read the store again in the background, and tell the view what has changed.

        What others have done meanwhile is passed over; nothing moves of what the view holds.
        """
        messages: list[Message] = []
        with self.writer.busy:
            work = self._read(missing_ok=True)
            with self.lock:
                labelled, has_changed = self._queue.take_over(work, in_background=True)
                if labelled:
                    messages.append(self.saved_message([], labelled))
                if has_changed:
                    messages.append(self.queue_message(stay=True))
        self.tell(*messages)

    def _keep_reading(self) -> None:
        wait = self._refresh_every
        while not self._closed.wait(wait):
            began = time.monotonic()
            try:
                self.reread()
            except Exception:
                _log.debug("the store could not be read again", exc_info=True)
            # A twentieth of the time at most is spent on reading.
            wait = max(self._refresh_every, 20 * (time.monotonic() - began))

    def close(self) -> None:
        """Stop reading the store again; what waits to be written is written."""
        self._closed.set()

    # -- tables -------------------------------------------------------------------------

    @property
    def labels(self) -> pd.DataFrame:
        """The annotator's labels in the order in which they were given, one row a trace and
        question: the label that counts, ``value`` canonical or None for "can't judge".

        ``saved`` is False for what waits to be written. ``chosen``, ``probability``, ``draw`` and
        ``pool`` say how the item was chosen (see `workbench.sampled_prevalence`).
        ``after_verdict`` is True where the only label was given after a look at the verdict;
        ``changed_to`` is what was said otherwise after the look at it.
        """
        with self.lock:
            items = list(self.items.values())
            found = [self._row(item, question) for item in items for question in self.questions]
        rows = sorted(filter(None, found), key=lambda row: (not row["saved"], row["at"]))
        # As objects first: pandas would make texts of mixed values, and nan of what is None.
        table = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)
        table = table.astype(object).where(table.notna(), None)
        numbers = dict.fromkeys(["probability", "seconds"], "float64")
        table = table.astype({**numbers, "saved": bool, "after_verdict": bool, "elsewhere": bool})
        return table.assign(at=pd.to_datetime(table["at"], utc=True))

    def _row(self, item: Item, question: LabelQuestion) -> dict[str, Any] | None:
        name, stored = question.name, item.annotations
        draw = dict(zip(_DRAW, astuple(item.draw), strict=True)) if item.draw else {}
        counting, changed = stored.answers.get(name), stored.changed.get(name)
        waiting = self._unsaved_answer(item, question)
        # What is said after a look at the verdict does not take the place of the first label.
        saved = waiting is None or bool(counting and name in stored.revealed)
        answer = counting if saved else waiting
        if answer is None:
            return None
        label = answer.label
        return {
            "trace_id": item.info.trace_id,
            "question": name,
            "value": _cell(answer.value),
            "rationale": label.rationale or "",
            "annotator": self.annotator,
            **draw,
            "seconds": answer.metadata.get(SECONDS_KEY),
            "at": pd.Timestamp(label.created_ms, unit="ms", tz="UTC"),
            "saved": saved,
            "rubric_version": label.rubric_version,
            "after_verdict": label.after_verdict,
            "changed_to": _cell(changed.value) if changed and saved else None,
            "elsewhere": answer.action is None,
        }

    def _unsaved_answer(self, item: Item, question: LabelQuestion) -> Answer | None:
        """The last answer that waits, as it will be stored."""
        name = question.name
        for action in item.waiting[-1:]:
            given = action.answers.get(name)
            if given is None or action.kind != "save":
                continue
            label = Label(
                trace_id=action.trace_id,
                annotator=self.annotator,
                value=given.value,
                rationale=action.reason(name),
                created_ms=int(action.at or now_ms()),
                after_verdict=action.after_reveal,
                rubric_version=action.rubrics.get(name, question.rubric_version),
            )
            value = question.answer(given.value, abstain=given.abstain)
            metadata = {ACTION_KEY: action.id, SECONDS_KEY: str(action.seconds or "nan")}
            return Answer(value, label, metadata)
        return None

    def summary(self) -> pd.DataFrame:
        """Return one row a question and value: ``labels``, and ``share`` of those that are no
        abstention; below them the counts of abstentions and of open items."""
        rows = []
        with self.lock:
            present = sum(not item.gone for item in self.items.values())
            for question in self.questions:
                counts = self.balance(question)
                abstained = counts.pop(ABSTAIN, 0)
                total = sum(counts.values())
                shown = [
                    (question.shown(value), n, n / total if total else None)
                    for value, n in counts.items()
                ]
                shown.append(("can't judge", abstained, None))
                shown.append(("not labelled", present - total - abstained, None))
                rows += [(question.name, *row) for row in shown]
        table = pd.DataFrame(rows, columns=["question", "value", "labels", "share"])
        return table.astype({"share": "float64"})


def _cell(value: Any) -> Any:
    return None if value is ABSTAIN else value
