"""`LabelSession`: one annotator labels a queue of traces, without a widget or a browser."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import TraceInfo
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.errors import ArgumentError, StoreError
from workbench.judging.judge import fingerprint_of
from workbench.judging.verdicts import Recorded, choose_version, recorded_verdicts
from workbench.labeling.annotations import (
    ACTION_KEY,
    SECONDS_KEY,
    Action,
    Item,
    canonical,
    read_annotations,
    revealed_tag,
    undone_actions,
    without_spans,
)
from workbench.labeling.questions import LabelQuestion, read_answers, session_questions
from workbench.labeling.queue import Assign, LabelQueue, Workload, read_workload
from workbench.labeling.review_queue import ReviewQueue
from workbench.labeling.session import Message, Session, problem
from workbench.labeling.writer import Job, TraceStore, save, skip, take_back
from workbench.scale import ABSTAIN, Scale
from workbench.store.assessments import now_ms
from workbench.store.database import store_message
from workbench.store.labels import Label, label_records, same_person
from workbench.store.tables import check_text

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
    on_message, store, patience
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
        patience: float = 2.0,
    ) -> None:
        check_text("annotator", annotator)
        self._judge, self._traces, self._assign = judge_or_name, traces, assign
        self.reveal, self._refresh_every = reveal, refresh_every
        self._closed = threading.Event()
        self._left_out: list[str] = []
        # Where it is settled who labels what, or how many label an item, all have one order, so
        # that what several label can be compared soon. Elsewhere they would do the same items.
        in_common = assign is not None
        if isinstance(traces, ReviewQueue):
            in_common = in_common or bool(traces.annotators) or traces.each > 1
            experiment = experiment or traces.experiment_id
            if judge_or_name is None and questions is None:
                questions = traces.questions
                if names := ", ".join(map(repr, traces.left_out)):
                    told = f"Not asked here, since they ask for expectations: {names}."
                    self._left_out = [f"{told} Use MLflow's page."]
        super().__init__(annotator, store or TraceStore(experiment), on_message, patience)
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

    def answer(self, kind: Any, message: Any) -> list[Message]:
        if kind == "reveal":
            self._reveal(message["trace_id"])
            return []
        if kind == "hello" and self._refresh_every is not None:
            every, self._refresh_every = self._refresh_every, None
            threading.Thread(target=self._keep_reading, args=[every], daemon=True).start()
        return super().answer(kind, message)

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
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
        self._queue.learn(info)
        added = self._added.get(info.trace_id)
        if added is not None:
            queue, who = self._traces, self.annotator
            self._put_status(lambda: queue.sync_item(info.trace_id, added, who))

    def _put_status(self, write: Callable[[], Any]) -> None:
        """Write MLflow's status of items; what fails for good `ReviewQueue.sync` does later."""

        def failed(error: Exception, final: bool) -> None:
            if final:
                text = store_message(error)
                _log.warning(
                    "The queue %r in MLflow's page lags behind: %s", self._traces.name, text
                )

        self.writer.put(Job("status", write, lambda _: None, failed))

    def _reveal(self, trace_id: str) -> None:
        if not self.reveal:
            raise ArgumentError("Verdicts are not shown in this session (reveal=False).")
        with self.lock:
            item = self.items.get(trace_id)
            if item is None or item.status != "done":
                raise ArgumentError("The verdict is shown once your own label is saved.")

        def failed(error: Exception, final: bool) -> None:
            if final:
                self.tell(problem(error, "reveal"))

        self.writer.put(Job(trace_id, lambda: self._revealed(trace_id), self.tell, failed))

    def _revealed(self, trace_id: str) -> Message:
        """Record that the annotator sees them, and return what the judge and others say."""
        info = self.store.get(trace_id)
        stored = read_annotations(info, self.questions, self.annotator)
        if not stored.done or stored.actions & undone_actions(info):
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
            {"question": q.name, "annotator": label.annotator, **_said(q, label)}
            for q in self.questions
            for label in label_records([without_spans(info)], q.name)
            if not same_person(label.annotator, self.annotator)
        ]
        return {"type": "revealed", "trace_id": trace_id, "judges": verdicts, "others": others}

    def _verdict(self, info: TraceInfo, question: LabelQuestion) -> Message | None:
        recorded = {info.trace_id: recorded_verdicts(without_spans(info), question.name)}
        is_judge = question.name == getattr(self._judge, "name", self._judge)
        judge = self._judge if self._judge is not None and is_judge else question.name
        chosen, _, _ = choose_version(judge, recorded, fingerprint_of(judge))
        usable = [verdict for verdict in chosen[info.trace_id] if verdict.usable]
        return _said(question, usable[-1]) if usable else None

    def _read(self, *, missing_ok: bool = False) -> Workload:
        return read_workload(
            self.store, self.annotator, self._traces, self._assign, missing_ok=missing_ok
        )

    def _take_over(self, work: Workload) -> None:
        with self.lock:
            self._queue.take_over(work)
            self.notes = [*self._queue.notes, *self._left_out]
        self._added: dict[str, int] = {}
        if (items := work.queued) is not None:
            self._added = {item.trace_id: item.added_ms for item in items}
            self._put_status(lambda: self._traces.sync(items))

    def reload(self) -> None:
        self.ask(self.questions)
        # Of traces that are named, some may have been deleted since.
        self._take_over(self._read(missing_ok=True))

    def reread(self) -> None:
        """Read the store again in the background, and tell the view what has changed.

        What others have done meanwhile is passed over; nothing moves of what the view holds.
        """
        with self.writer.busy:
            work = self._read(missing_ok=True)
            with self.lock:
                labelled, has_changed = self._queue.take_over(work, in_background=True)
                messages = [self.saved_message([], labelled)] if labelled else []
                messages += [self.queue_message(stay=True)] if has_changed else []
        self.tell(*messages)

    def _keep_reading(self, every: float) -> None:
        wait, store = every, mlflow.get_tracking_uri()
        while not self._closed.wait(wait):
            if mlflow.get_tracking_uri() != store:
                continue  # another store is active now, in which this session has no business
            began = time.monotonic()
            try:
                self.reread()
            except Exception:
                _log.debug("the store could not be read again", exc_info=True)
            # A twentieth of the time at most is spent on reading.
            wait = max(every, 20 * (time.monotonic() - began))

    def close(self) -> None:
        """Stop reading the store again; what waits to be written is written."""
        self._closed.set()

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
            rows = [row for item in self.items.values() for row in self._rows(item)]
        rows.sort(key=lambda row: (not row["saved"], row["at"]))
        # As objects first: pandas would make texts of mixed values, and nan of what is None.
        table = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)
        table = table.astype(object).where(table.notna(), None)
        numbers = dict.fromkeys(["probability", "seconds"], "float64")
        table = table.astype({**numbers, "saved": bool, "after_verdict": bool, "elsewhere": bool})
        return table.assign(at=pd.to_datetime(table["at"], utc=True))

    def _rows(self, item: Item) -> Iterator[dict[str, Any]]:
        stored, last = item.annotations, item.waiting[-1] if item.waiting else None
        waiting = last.answers if last and last.kind == "save" else {}
        draw = dict(zip(_DRAW, astuple(item.draw), strict=True)) if item.draw else {}
        for question in self.questions:
            name = question.name
            answer, changed = stored.answers.get(name), stored.changed.get(name)
            row = {"trace_id": item.info.trace_id, "question": name, **draw}
            row["annotator"] = self.annotator
            # What is said after a look at the verdict does not take the place of the first label.
            if last and name in waiting and not (answer and name in stored.revealed):
                given = waiting[name]
                yield {
                    **row,
                    "value": _cell(question.answer(given.value, abstain=given.abstain)),
                    "rationale": last.reason(name),
                    "seconds": last.seconds,
                    "at": pd.Timestamp(last.at or now_ms(), unit="ms", tz="UTC"),
                    "saved": False,
                    "rubric_version": last.rubrics.get(name, question.rubric_version),
                    "after_verdict": last.after_reveal,
                    "elsewhere": False,
                }
            elif answer:
                metadata = stored.metadata[answer.assessment_id]
                yield {
                    **row,
                    "value": _cell(answer.value),
                    "rationale": answer.rationale or "",
                    "seconds": metadata.get(SECONDS_KEY),
                    "at": pd.Timestamp(answer.created_ms, unit="ms", tz="UTC"),
                    "saved": True,
                    "rubric_version": answer.rubric_version,
                    "after_verdict": answer.after_verdict,
                    "changed_to": _cell(changed.value) if changed else None,
                    "elsewhere": ACTION_KEY not in metadata,
                }

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


def _said(question: LabelQuestion, said: Label | Recorded) -> Message:
    value = _cell(canonical(question, said.value))
    return {"value": value, "rationale": said.rationale or ""}
