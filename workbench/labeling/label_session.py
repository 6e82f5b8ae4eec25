"""`LabelSession`: one annotator labels a queue of traces, without a widget or a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from mlflow.entities import Trace, TraceInfo

from workbench.errors import ArgumentError
from workbench.labeling.annotations import Action
from workbench.labeling.display import (
    answers_json,
    history_json,
    item_json,
    label_table,
    refused_table,
    summary_table,
)
from workbench.labeling.questions import LabelQuestion, read_answers, session_questions, with_rubric
from workbench.labeling.queue import Item, LabelQueue
from workbench.labeling.recorder import BlindLabelError, Recorder, Revealed
from workbench.labeling.review_queue import ReviewQueue
from workbench.labeling.session import Message, Session, problem
from workbench.labeling.trace_store import Assign, TraceStore, Workload, in_common
from workbench.labeling.writer import Job, QueueSync, Rereader
from workbench.scale import Scale
from workbench.store.labels import folded
from workbench.store.traces import store_message

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema

_REVEAL: Final = "(reveal)"


class LabelSession(Session[Item]):
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
        if not isinstance(annotator, str) or not annotator.strip():
            raise ArgumentError(f"annotator={annotator!r} must be a non-empty text.")
        self.annotator = annotator
        self.reveal = reveal
        self._assign, self._traces, self._judge = assign, traces, judge_or_name
        self.queue_sync: QueueSync | None = None
        self._notes: list[str] = []
        if isinstance(traces, ReviewQueue):
            self.queue_sync = QueueSync(traces, annotator, lambda: self._tell({"type": "state"}))
            experiment = experiment or traces.experiment_id
            if judge_or_name is None and questions is None:
                questions = traces.questions
                self._notes = _note_of_expectations(traces)
        # Where labels go stays what it is now, whatever is made active later.
        super().__init__(
            on_message=on_message, store=store or TraceStore(experiment), patience=patience
        )
        work = self._read()
        asked = session_questions(
            judge_or_name, questions, scale, work.infos.values(), self._store.experiment
        )
        self._rubrics = {q.name: self._store.rubrics(q.name) for q in asked}
        self.questions = tuple(with_rubric(q, self._rubrics[q.name]) for q in asked)
        self.title = title or ", ".join(q.title or q.name for q in self.questions)
        self._reading = threading.Lock()
        self._recorder = Recorder(self._store, self.questions, annotator)
        self._queue = LabelQueue(
            self.questions,
            annotator,
            order=order,
            seed=seed,
            random_share=random_share,
            judge=judge_or_name,
            in_common=in_common(traces, assign),
        )
        self._queue.add(work.infos)
        self._queue.plan(work.batches)
        for action, trace_id, seconds in self._queue.actions():
            self._history[action] = trace_id
            if seconds:
                self._queue.recent.append(seconds)
        self._sync_all(work)
        self._rereader = None if refresh_every is None else Rereader(self, refresh_every)

    def _sync_all(self, work: Workload) -> None:
        if self.queue_sync is not None and work.snapshot is not None:
            self.queue_sync.sync(work.snapshot)

    # -- the view -----------------------------------------------------------------------

    def setup(self) -> Message:
        """Return what does not change while one labels."""
        return self._setup(self.annotator, folded(self.annotator), self.questions)

    @property
    def trace_ids(self) -> list[str]:
        """The queue, in order."""
        with self._lock:
            return list(self._queue.queue)

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else the one that was skipped first, else the
        length of the queue."""
        with self._lock:
            return self._queue.position

    @property
    def progress(self) -> dict[str, Any]:
        """Counts: ``labelled`` and ``skipped`` of ``total``, ``again`` (offered again), ``waiting``
        (not in the store yet), ``balance`` and ``balances`` (labels by value, of the first and of
        each question), ``per_hour`` and ``seconds_left`` (None where not known)."""
        with self._lock:
            return self._queue.progress

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the session: rules that have nothing to go by, questions that are not
        asked, labels under another spelling of the annotator's name, MLflow's queue."""
        with self._lock:
            others = ", ".join(sorted(map(repr, self._queue.spellings - {self.annotator})))
        notes = [*self._notes, *self._queue.notes]
        if others:
            notes.append(f"Labels by {others} count as yours: {self.annotator!r}.")
        if self.queue_sync is not None and self.queue_sync.note:
            notes.append(self.queue_sync.note)
        return tuple(notes)

    def _notes_text(self) -> str:
        return " ".join(self.notes)

    def _history_json(self, action_id: str, trace_id: str) -> Message:
        return history_json(self._queue, action_id, trace_id)

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], list[Message]]]:
        return {
            **super()._handlers(),
            "reveal": lambda message: self._reveal(message.get("trace_id")),
            "offer_again": self._offer_again,
        }

    def _hello(self, message: Mapping[str, Any]) -> list[Message]:
        if self._rereader is not None:
            self._rereader.start()
        return super()._hello(message)

    def _item_json(self, trace: Trace, *, full: bool) -> Message:
        return item_json(self._queue, trace, self._rubrics, full=full)

    def _done_json(self, trace_id: str) -> Message | None:
        annotations = self._queue.items[trace_id].annotations
        return answers_json(annotations, self._rubrics) if annotations.done else None

    # -- actions ------------------------------------------------------------------------

    def _find(self, trace_id: str) -> Item | None:
        return self._queue.items.get(trace_id)

    def _ids(self) -> Sequence[str]:
        return self._queue.queue

    def _update(self, item: Item) -> None:
        self._queue.update(item)

    def _learn(self, info: TraceInfo) -> None:
        self._queue.learn(info)

    def _write(self, action: Action) -> Callable[[], TraceInfo]:
        recorder = self._recorder
        if action.kind == "undo":
            return lambda: recorder.undo(action)
        if action.kind == "skip":
            metadata = self._queue.record_draw(action.trace_id).to_metadata()
            return lambda: recorder.skip(action, metadata)
        item = self._find(action.trace_id)
        stored = item.annotations.answers if item else ()
        answers = read_answers(self.questions, action.answers, stored)
        metadata = self._queue.record_draw(action.trace_id).to_metadata()
        return lambda: recorder.save(action, answers, metadata)

    def _take(self, action: Action) -> list[Message]:
        if action.kind == "save":
            # The version that was shown, which may have been changed since, else the present one.
            present = {q.name: q.rubric_version for q in self.questions}
            versions = {n: action.rubrics.get(n, present.get(n)) for n in action.answers}
            known = {name: version for name, version in versions.items() if version is not None}
            action = action.model_copy(update={"rubrics": known})
        return super()._take(action)

    def _check_undo(self, action_id: str, trace_id: str) -> None:
        item = self._find(trace_id)
        if item is not None and item.annotations.keeps(action_id):
            raise BlindLabelError

    def _reveal(self, trace_id: Any) -> list[Message]:
        with self._lock:
            item = self._find(trace_id) if isinstance(trace_id, str) else None
            if not self.reveal:
                raise ArgumentError("Verdicts are not shown in this session (reveal=False).")
            if item is None:
                raise ArgumentError(f"Trace {trace_id!r:.80} is not in the queue.")
            if item.status != "done":
                raise ArgumentError("The verdict is shown once your own label is saved.")
            recorder, judge = self._recorder, self._judge
            self._writer.put(Job(_REVEAL, trace_id, lambda: recorder.reveal(trace_id, judge)))
        return []

    def written(self, job: Job, result: Any) -> None:
        """Record that the store has an action, or show what was revealed."""
        if isinstance(result, Revealed):
            with self._lock:
                if self._find(job.trace_id) is not None:
                    self._learn(result.info)
            self._tell(result.message)
            return
        with self._lock:
            item = self._find(job.trace_id)
            action = next((a for a in item.waiting if a.id == job.key), None) if item else None
            if action is not None and action.kind == "save" and action.seconds:
                self._queue.recent.append(action.seconds)
        super().written(job, result)
        if self.queue_sync is not None:
            self.queue_sync.labelled(job.trace_id)

    def refused(self, job: Job, error: BaseException) -> None:
        """Tell the view that an action will never be written, or nothing be revealed."""
        if job.key == _REVEAL:
            self._tell(problem(store_message(error), "reveal"))
            return
        super().refused(job, error)
        if (item := self._find(job.trace_id)) is not None and item.gone:
            # Else the view would come back to it for ever.
            self._tell(self._stay_message())

    # -- reading again ------------------------------------------------------------------

    def refresh(self) -> list[Message]:
        """Read the store again, and return the messages to send: ``queue``.

        New traces join the queue, those that are no longer the annotator's leave it, labels made
        elsewhere count as done, the rubric is the latest.
        """
        self._read_rubrics()
        self._read_again(in_background=False)
        with self._lock:
            return [self._queue_message()]

    def reread(self) -> None:
        """Read the store again in the background, and tell the view what has changed.

        What others have done meanwhile is passed over; nothing moves of what the view holds.
        """
        with self._lock:
            if self._unwritten:
                return
        labelled, changed = self._read_again(in_background=True)
        with self._lock:
            messages: list[Message] = []
            if labelled:
                self._stamp += 1
                messages.append(self._saved([], labelled))
            if changed:
                messages.append(self._stay_message())
        self._tell(*messages)

    def _read(self, *, missing_ok: bool = False) -> Workload:
        return self._store.read(self.annotator, self._traces, self._assign, missing_ok=missing_ok)

    def _read_again(self, *, in_background: bool) -> tuple[list[str], bool]:
        with self._reading:
            since = time.monotonic()
            # Of traces that are named, some may have been deleted since.
            work = self._read(missing_ok=True)
            with self._lock:
                news = self._queue.take_over(
                    work.infos,
                    work.batches,
                    since=since,
                    is_share=work.is_share,
                    in_background=in_background,
                )
                for info in work.infos.values():
                    self._forget_undone(info)
            if not in_background:
                self._sync_all(work)
        return news

    def _read_rubrics(self) -> None:
        """Ask by the latest rubrics: a label is recorded with the one that its annotator saw."""
        rubrics = {q.name: self._store.rubrics(q.name) for q in self.questions}
        with self._lock:
            self._rubrics = rubrics
            self.questions = tuple(with_rubric(q, rubrics[q.name]) for q in self.questions)
            self._recorder.questions = self.questions

    def offer_again(self, trace_ids: Iterable[str] | None = None) -> list[Message]:
        """Open labelled items again, until each has a newer answer, and return the messages to
        send: ``queue``. By default those that were labelled under an earlier rubric.

        A new label replaces the first unless the verdict was seen. Then it stays beside the
        first, which agreement is measured on, as a change of it (``changed_to`` in `labels`).
        """
        self._read_rubrics()
        with self._lock:
            chosen = None if trace_ids is None else set(trace_ids)
            for trace_id, item in self._queue.items.items():
                done = self._done_json(trace_id)
                if done and (done["earlier_rubric"] if chosen is None else trace_id in chosen):
                    item.again = True
                    self._queue.update(item)
            return [self._queue_message()]

    def _offer_again(self, message: Mapping[str, Any]) -> list[Message]:
        ids = message.get("trace_ids")
        if ids is not None and not (
            isinstance(ids, list) and all(isinstance(one, str) for one in ids)
        ):
            raise ArgumentError(f"trace_ids must be a list of texts, not {ids!r:.80}.")
        return self._soon(lambda: self.offer_again(ids), "offer_again")

    def _queue_message(self) -> Message:
        # The view forgets what it holds, and asks again from where it is.
        return {"type": "queue", "total": len(self._queue.queue), "position": self.position}

    def _stay_message(self) -> Message:
        """The queue has changed, but nobody asked: the view stays where it is."""
        return {**self._queue_message(), "stay": True}

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
        with self._lock:
            return label_table(self._queue)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: ``id``, ``kind``, ``trace_id``, ``answers`` (dict
        question -> value), ``rationale`` (dict), ``error``."""
        with self._lock:
            return refused_table(self._refused)

    def summary(self) -> pd.DataFrame:
        """Return one row a question and value: ``labels``, and ``share`` of those that are no
        abstention; below them the counts of abstentions and of open items."""
        with self._lock:
            return summary_table(self._queue)

    def close(self) -> None:
        """Stop reading the store again; what waits to be written is written."""
        if self._rereader is not None:
            self._rereader.stop()

    def __repr__(self) -> str:
        progress = self.progress
        return (
            f"<LabelSession {self.title!r} by {self.annotator}: {progress['labelled']} of "
            f"{progress['total']} labelled, {progress['waiting']} not saved yet>"
        )


def _note_of_expectations(queue: ReviewQueue) -> list[str]:
    names = ", ".join(map(repr, queue.left_out))
    if not names:
        return []
    return [f"Not asked here, since they ask for expectations: {names}. Use MLflow's page."]
