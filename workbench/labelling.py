"""`LabelSession`: one annotator labels a queue of traces; no widget, no browser.

The session holds the queue, says what stands where, takes what the annotator does and writes it
to MLflow in a thread of its own. It speaks JSON (see `LabelSession.receive`), so that a view in a
browser needs to know nothing else.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Trace, TraceData, TraceInfo
from mlflow.tracing.client import TracingClient

from workbench import store
from workbench.actions import Action
from workbench.agenda import RECENT, Agenda
from workbench.answers import LabelQuestion
from workbench.asking import asked, with_rubric
from workbench.assignment import Assignment
from workbench.contents import Contents, content
from workbench.errors import ArgumentError, ScaleError, WorkbenchError
from workbench.rubrics import RubricHistory, rubric_history
from workbench.saving import Job, Saver
from workbench.scale import ABSTAIN, Scale
from workbench.standing import (
    CLOCK_KEY,
    SECONDS_KEY,
    Answer,
    Standing,
    who_and_what,
)
from workbench.tally import label_table, refused_table, summary_table
from workbench.traces import as_example
from workbench.writing import KeptLabelError, Recorder, Revealed

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

PROTOCOL = 1

_AROUND = (10, 50)
_MOST_WANTED = 500
_PATIENCE = 2.0
_HURRIED = 0.05

_log = logging.getLogger(__name__)

Message = dict[str, Any]


class LabelSession:
    """The labelling of one annotator on one or several questions.

    Parameters
    ----------
    judge_or_name
        The judge (or its name) whose question is answered; None when ``questions`` are given.
    traces
        What to label, as `workbench.store.fetch_traces` takes it; None: the active experiment.
    annotator
        Who labels.
    questions
        Instead of the judge's own question: one or several `LabelQuestion`.
    order, seed, random_share
        See `workbench.ordering.put_in_order`.
    assign
        Which of the traces this annotator is to label: a `workbench.assignment.Assignment`, or a
        function from all trace ids to some of them. None: all.
    reveal
        Whether the judge's verdict and the others' labels may be seen after one's own is saved.
    title
        Stands above the items.
    scale
        With a judge's name, or a judge whose type is plain str: the rating scale. By default
        that of the values observed.
    experiment
        Name or id; the active one by default.
    on_message
        Is called with each message that comes later than the answer to `receive`, from another
        thread: "saved", "unsaved", "revealed", "items", "problem". May be set afterwards.

    Examples
    --------
    What a view does: ``setup()`` once, ``state()`` after each message, ``receive(message)`` for
    what the browser sends, whose answers go to the browser as do those given to ``on_message``.

    ``receive`` answers, always with a list of messages:

    - ``hello`` (``pending``: actions): ``items`` around the position; ``saved`` or ``unsaved``
      for pending actions that are settled; the others are taken as by ``act``;
    - ``want`` (``start``, ``count`` up to 500, ``full``): ``items``, or a ``problem`` where the
      store does not answer within two seconds, and the ``items`` later;
    - ``act`` (``actions``): ``saved`` at once for those that are in the store already, else
      nothing, and later by ``on_message`` ``saved``, or ``unsaved`` (``retry`` true: it waits and
      is tried again; false: it never will be, see `unsaved`);
    - ``reveal`` (``trace_id``): later ``revealed``, or at once a ``problem``.
    - Anything else, and anything malformed: ``{"type": "problem", "error": ..., "about": ...}``.

    An item is ``{"position", "trace_id", "inputs", "outputs", "expectations", "cuts"?, "chosen":
    {"how", "probability"}, "done", "partial", "skipped", "gone"}``. ``done`` is None or
    ``{"answers": {question: {"value", "abstain"}}, "rationale": {question: str}, "changed":
    {question: {"value", "abstain"}}, "earlier_rubric", "elsewhere", "action"}``: what the store
    holds, never what only waits. ``partial`` is the same of an item on which some required
    question is open, else None. ``changed`` is what was said otherwise after the reveal.

    Raises
    ------
    ArgumentError
        For an annotator without a name, unknown orders, or no scale to rate on.
    StoreError
        When the traces cannot be read.
    """

    def __init__(
        self,
        judge_or_name: Judge | str | None = None,
        traces: Any = None,
        *,
        annotator: str,
        questions: Sequence[LabelQuestion] | None = None,
        order: str = "random",
        seed: int = 0,
        random_share: float | None = None,
        assign: Assignment | Callable[[list[str]], Iterable[str]] | None = None,
        reveal: bool = False,
        title: str = "",
        scale: Scale | None = None,
        experiment: str | None = None,
        on_message: Callable[[Message], None] | None = None,
    ) -> None:
        if not isinstance(annotator, str) or not annotator.strip():
            raise ArgumentError(f"annotator={annotator!r} must be a non-empty text.")
        self.annotator = annotator
        self.on_message = on_message
        self.reveal = reveal
        self._assign, self._traces = assign, traces
        # Where the labels go stays what it is now, whatever is made active later.
        self._client = TracingClient()
        self._experiment = store.experiment_id(experiment, create=False)
        infos = self._fetch()
        self._judge = judge_or_name
        questions = asked(judge_or_name, questions, scale, infos.values(), self._experiment)
        self._rubrics = {q.name: self._rubric_history(q.name) for q in questions}
        self.questions = tuple(with_rubric(q, self._rubrics[q.name]) for q in questions)
        self.title = title or ", ".join(q.title or q.name for q in self.questions)
        self._lock = threading.RLock()
        self._agenda = Agenda(
            self.questions,
            annotator,
            order=order,
            seed=seed,
            random_share=random_share,
            judge=judge_or_name,
        )
        self._actions: dict[str, str] = {}
        self._refused: dict[str, tuple[Action, str]] = {}
        self._history: list[tuple[str, str]] = []
        self._contents = Contents(self._client)
        self._trouble = ""
        self._late = 0
        self._recorder = Recorder(self._client, self.questions, annotator)
        self._saver = Saver(self)
        self._load(infos)

    # -- what the view is told ----------------------------------------------------------

    def setup(self) -> Message:
        """What does not change while one labels."""
        return {
            "protocol": PROTOCOL,
            "panel_key": self.key,
            "epoch": self._epoch,
            "annotator": self.annotator,
            "title": self.title,
            "questions": [question.to_json() for question in self.questions],
            "reveal": self.reveal,
            "read_only": False,
            "total": len(self._agenda.queue),
        }

    @property
    def key(self) -> str:
        """The same for one store, experiment, annotator and questions, also after a restart."""
        place = json.dumps([store.address(), self._experiment])
        return f"{who_and_what(place, ())}-{who_and_what(self.annotator, self.questions)}"

    def state(self) -> Message:
        """What changes: position, progress and whether the store answers."""
        with self._lock:
            return {
                "position": self.position,
                "progress": self.progress,
                "message": self._trouble or " ".join(self.notes),
                "store_ok": not self._trouble,
            }

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else the skipped one that waits longest, else the
        length of the queue."""
        with self._lock:
            return self._agenda.position

    @property
    def progress(self) -> dict[str, Any]:
        """``labelled`` and ``skipped`` of ``total``, ``waiting`` actions not in the store yet,
        ``balance`` (labels by value, of the first question), ``balances`` (of each question),
        ``per_hour`` (own rate over the last items) and ``seconds_left``; None where not known."""
        with self._lock:
            return self._agenda.progress

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of the order: a rule that has nothing to go by, say."""
        return self._agenda.notes

    def receive(self, message: Any) -> list[Message]:
        """Take one message of the view and answer it (see the class). Never raises for what the
        message holds."""
        kind = message.get("type") if isinstance(message, Mapping) else None
        try:
            if kind == "hello":
                return self._hello(message)
            if kind == "want":
                return self._want(message)
            if kind == "act":
                return self._act(message.get("actions"))
            if kind == "reveal":
                return self._reveal(message.get("trace_id"))
        except WorkbenchError as error:
            return [_problem(str(error), kind)]
        except Exception as error:
            # A store that cannot be read must not end the session; it is told and tried again.
            _log.debug("a message could not be answered", exc_info=True)
            return [_problem(f"This could not be done: {store.told(error)}", kind)]
        return [_problem(f"A message of type {kind!r:.80} is not known.", kind)]

    def _hello(self, message: Mapping[str, Any]) -> list[Message]:
        pending = message.get("pending")
        answers = self._act([] if pending is None else pending)
        try:
            start = max(0, self.position - _AROUND[0])
            return [self._shown(start, sum(_AROUND)), *answers]
        except Exception as error:
            return [*answers, _problem(f"Items cannot be read: {store.told(error)}", "hello")]

    def _want(self, message: Mapping[str, Any]) -> list[Message]:
        start: Any = message.get("start")
        count: Any = message.get("count", 1)
        for given in (start, count):
            if not isinstance(given, int) or isinstance(given, bool) or given < 0:
                raise ArgumentError(f"start and count must be counts, not {given!r:.40}.")
        return [self._shown(start, min(count, _MOST_WANTED), full=message.get("full") is True)]

    def _shown(self, start: int, count: int, *, full: bool = False) -> Message:
        """The items; where the store takes its time, a problem, and the items when it answers.

        MLflow tries for minutes before it says that a server is down, and the kernel must go on.
        """
        read: Future[Message] = Future()

        def work() -> None:
            try:
                read.set_result(self._items(start, count, full=full))
            except Exception as error:
                read.set_exception(error)

        threading.Thread(target=work, name="items", daemon=True).start()
        try:
            return read.result(_HURRIED if self._late else _PATIENCE)
        except FutureTimeoutError:
            if read.done():
                # The store's own error, which bears the same name.
                raise
        self._late += 1
        read.add_done_callback(self._arrived)
        return _problem("The store has not answered yet; the items come when it does.", "want")

    def _arrived(self, read: Future[Message]) -> None:
        self._late -= 1
        error = read.exception()
        if error is None:
            self._tell(read.result())
        else:
            self._tell(_problem(f"Items cannot be read: {store.told(error)}", "want"))

    def _items(self, start: int, count: int, *, full: bool) -> Message:
        with self._lock:
            ids = self._agenda.queue[start : start + count]
            infos = [self._agenda.items[i].info for i in ids]
        traces = self._contents.read(infos)
        items = []
        with self._lock:
            for offset, trace_id in enumerate(ids):
                item = self._agenda.items[trace_id]
                trace = traces.get(trace_id) or Trace(item.info, TraceData(spans=[]))
                done = self._done(item.standing)
                items.append(
                    {
                        "position": start + offset,
                        "trace_id": trace_id,
                        **content(as_example(trace), full=full),
                        "chosen": {
                            "how": item.draw.how if item.draw else item.chosen.how,
                            "probability": item.draw.probability
                            if item.draw
                            else item.chosen.probability,
                        },
                        "done": done if item.standing.done else None,
                        "partial": None if item.standing.done else done,
                        "again": item.again,
                        "skipped": item.standing.skipped,
                        "gone": item.gone,
                    }
                )
        return {"type": "items", "start": start, "items": items}

    def _done(self, standing: Standing) -> Message | None:
        if not standing.answers:
            return None
        return {
            "answers": {name: _answer_json(one) for name, one in standing.answers.items()},
            "rationale": {name: one.rationale for name, one in standing.answers.items()},
            "changed": {name: _answer_json(one) for name, one in standing.changed.items()},
            "earlier_rubric": any(
                self._rubrics[name].is_earlier(one.label) for name, one in standing.answers.items()
            ),
            "elsewhere": all(one.action is None for one in standing.answers.values()),
            "action": max(standing.answers.values(), key=lambda one: one.created_ms).action,
        }

    # -- what the annotator does --------------------------------------------------------

    def _act(self, raw: Any) -> list[Message]:
        if not isinstance(raw, list):
            raise ArgumentError(f"actions must be a list, not {raw!r:.80}.")
        answers: list[Message] = []
        with self._lock:
            for one in raw:
                try:
                    action = Action.parse(one)
                except ArgumentError as error:
                    key = one.get("id") if isinstance(one, Mapping) else None
                    ids = [key] if isinstance(key, str) else []
                    answers.append(_unsaved(ids, str(error), retry=False))
                    continue
                answers += self._take(action)
        return answers

    def _take(self, action: Action) -> list[Message]:
        status = self._actions.get(action.id)
        if status == "saved":
            return [self._saved([action])]
        if status == "refused":
            return [_unsaved([action.id], self._refused[action.id][1], retry=False)]
        if status == "waiting":
            return []
        try:
            if action.kind == "undo":
                # What is meant is settled now, so that two in a row take back two actions.
                target, trace_id = self._target(action)
                aimed = self._agenda.items.get(trace_id)
                if aimed is not None and aimed.standing.keeps(target):
                    raise KeptLabelError
                action = replace(action, undoes=target, trace_id=trace_id)
            job = self._job(action)
        except (ArgumentError, ScaleError, KeptLabelError) as error:
            return [self._refuse(action, str(error))]
        self._actions[action.id] = "waiting"
        if action.kind != "undo":
            self._history.append((action.id, action.trace_id))
        if item := self._agenda.items.get(action.trace_id):
            item.waiting.append(action)
            self._agenda.touch(action.trace_id)
        self._saver.put(Job(action.id, action.trace_id, job))
        return [_unsaved([action.id], self._trouble, retry=True)] if self._trouble else []

    def _job(self, action: Action) -> Callable[[], TraceInfo]:
        """What writes the action."""
        recorder = self._recorder
        if action.kind == "undo":
            return lambda: recorder.undo(action)
        item = self._agenda.items.get(action.trace_id)
        draw = self._agenda.draw(action.trace_id)
        if item is not None:
            item.draw = draw
        if action.kind == "skip":
            return lambda: recorder.skip(action, draw.to_metadata())
        answers = self._checked(action)
        metadata = {**draw.to_metadata()}
        if action.seconds is not None:
            metadata[SECONDS_KEY] = f"{action.seconds:.1f}"
        if action.at_ms is not None:
            metadata[CLOCK_KEY] = str(action.at_ms)
        return lambda: recorder.save(action, answers, metadata)

    def _checked(self, action: Action) -> dict[str, Any]:
        """The canonical answers by question."""
        by_name = {question.name: question for question in self.questions}
        unknown = sorted(set(action.answers) - set(by_name))
        if unknown:
            raise ArgumentError(f"No question is named {unknown[0]!r:.80} here.")
        answers = {
            name: by_name[name].answer(one.value, abstain=one.abstain)
            for name, one in action.answers.items()
        }
        item = self._agenda.items.get(action.trace_id)
        there = set(item.standing.answers) if item else set()
        lacking = [q.name for q in self.questions if q.required and q.name not in answers]
        if not answers or set(lacking) - there:
            raise ArgumentError(f"{', '.join(lacking) or 'Every question'} needs an answer.")
        return answers

    def _target(self, action: Action) -> tuple[str, str]:
        """The action that an undo takes back, and its trace."""
        # What is taken back already is no longer there to be taken back once more.
        gone = {u.undoes for u in self._agenda.waiting if u.kind == "undo"}
        for key, trace_id in reversed(self._history):
            if action.undoes in (None, key) and key not in gone:
                if self._actions.get(key) == "refused":
                    continue
                return key, trace_id
        if action.undoes is not None and action.trace_id:
            return action.undoes, action.trace_id
        raise ArgumentError("There is nothing to take back.")

    def _reveal(self, trace_id: Any) -> list[Message]:
        with self._lock:
            item = self._agenda.items.get(trace_id) if isinstance(trace_id, str) else None
            if not self.reveal:
                raise ArgumentError("Verdicts are not shown in this session (reveal=False).")
            if item is None:
                raise ArgumentError(f"Trace {trace_id!r:.80} is not in the queue.")
            if item.mark != "done":
                raise ArgumentError("The verdict is shown once your own label is saved.")
            job = Job(
                f"reveal {trace_id}", trace_id, lambda: self._recorder.reveal(trace_id, self._judge)
            )
        self._saver.put(job)
        return []

    # -- what became of it (told by the writing thread) ------------------------------------

    def written(self, job: Job, result: Any) -> None:
        """A job is done: what is told as saved is in the store."""
        with self._lock:
            self._trouble = ""
            if isinstance(result, Revealed):
                self._learn(result.info)
                message = result.to_json()
            else:
                item = self._agenda.items.get(job.trace_id)
                action = next((a for a in item.waiting if a.id == job.key), None) if item else None
                if item is not None and action is not None:
                    item.waiting.remove(action)
                self._actions[job.key] = "saved"
                if action is not None and action.kind == "save" and action.seconds:
                    self._agenda.recent.append(action.seconds)
                self._learn(result)
                message = {
                    "type": "saved",
                    "ids": [job.key],
                    "labelled": {job.trace_id: self._done_now(job.trace_id)},
                }
        self._tell(message)

    def delayed(self, error: str) -> None:
        """Nothing is written just now."""
        with self._lock:
            waiting = [action.id for action in self._agenda.waiting]
            self._trouble = f"Not saved yet: {error}. It is tried again."
            message = _unsaved(waiting, self._trouble, retry=True)
        self._tell(message)

    def refused(self, job: Job, error: str) -> None:
        """A job will never be done."""
        with self._lock:
            item = self._agenda.items.get(job.trace_id)
            if item is not None:
                action = next((a for a in item.waiting if a.id == job.key), None)
                if action is not None:
                    item.waiting.remove(action)
                item.gone = item.gone or self._recorder.is_gone(job.trace_id)
            else:
                action = None
            if job.key.startswith("reveal "):
                message = _problem(error, "reveal")
            else:
                made = action or Action(job.key, "save", job.trace_id)
                message = self._refuse(made, error)
            if item is not None:
                self._agenda.touch(job.trace_id)
        self._tell(message)

    def _refuse(self, action: Action, error: str) -> Message:
        self._actions[action.id] = "refused"
        self._refused[action.id] = (action, error)
        return _unsaved([action.id], error, retry=False)

    def _saved(self, actions: Sequence[Action]) -> Message:
        ids = {action.trace_id for action in actions}
        return {
            "type": "saved",
            "ids": [action.id for action in actions],
            "labelled": {i: self._done_now(i) for i in ids if i in self._agenda.items},
        }

    def _done_now(self, trace_id: str) -> Message | None:
        item = self._agenda.items.get(trace_id)
        return self._done(item.standing) if item is not None and item.standing.done else None

    def _tell(self, message: Message) -> None:
        if self.on_message is not None:
            try:
                self.on_message(message)
            except Exception:
                # A view that is gone must not end the writing.
                _log.warning("the panel could not be told what was saved", exc_info=True)

    # -- the queue ----------------------------------------------------------------------

    def refresh(self) -> list[Message]:
        """Read the store again: new traces join the queue at its end, labels made elsewhere
        count as done, the rubric is the latest. Returns the messages to send: ``queue``."""
        infos = self._fetch()
        self._read_rubrics()
        with self._lock:
            for trace_id, info in infos.items():
                if trace_id in self._agenda.items:
                    self._learn(info)
            self._add({i: info for i, info in infos.items() if i not in self._agenda.items})
            for trace_id in set(self._agenda.items) - set(infos):
                # A filter may no longer match what was labelled; what is deleted is gone.
                self._agenda.items[trace_id].gone = self._recorder.is_gone(trace_id)
                self._agenda.touch(trace_id)
            return [self._queue_message()]

    def offer_again(self, trace_ids: Iterable[str] | None = None) -> list[Message]:
        """Open labelled items again; a new label replaces the first. By default those that were
        labelled under an earlier rubric. Returns the messages to send: ``queue``."""
        self._read_rubrics()
        with self._lock:
            chosen = set(self._agenda.items) if trace_ids is None else set(trace_ids)
            for trace_id in chosen & set(self._agenda.items):
                item = self._agenda.items[trace_id]
                done = self._done(item.standing)
                if done and (trace_ids is not None or done["earlier_rubric"]):
                    item.again = True
                    self._agenda.touch(trace_id)
            return [self._queue_message()]

    def _read_rubrics(self) -> None:
        """Ask by the latest rubrics: a label is recorded with the one that its annotator saw."""
        histories = {q.name: self._rubric_history(q.name) for q in self.questions}
        with self._lock:
            self._rubrics = histories
            self.questions = tuple(with_rubric(q, histories[q.name]) for q in self.questions)
            self._recorder.ask(self.questions)

    def _queue_message(self) -> Message:
        return {"type": "queue", "total": len(self._agenda.queue), "position": self.position}

    @property
    def trace_ids(self) -> list[str]:
        """The queue, in order."""
        with self._lock:
            return list(self._agenda.queue)

    def _fetch(self) -> dict[str, TraceInfo]:
        found = store.fetch_traces(self._traces, spans=False, experiment=self._experiment)
        infos = {trace.info.trace_id: trace.info for trace in found}
        if self._assign is None:
            return infos
        if isinstance(self._assign, Assignment):
            ids = [i for i in infos if self.annotator in self._assign.annotators_of(i)]
        else:
            ids = list(self._assign(list(infos)))
        return {i: infos[i] for i in ids if i in infos}

    def _rubric_history(self, name: str) -> RubricHistory:
        return rubric_history(name, experiment=self._experiment)

    def _learn(self, info: TraceInfo) -> None:
        standing = self._agenda.learn(info)
        if standing is not None:
            self._note(standing)

    def _add(self, infos: Mapping[str, TraceInfo]) -> None:
        self._agenda.add(infos)
        for trace_id in infos:
            self._note(self._agenda.items[trace_id].standing)

    def _note(self, standing: Standing) -> None:
        """Which actions the store holds, whoever has written them."""
        for action in standing.seen:
            if self._actions.get(action) != "waiting":
                self._actions[action] = "saved"
        if standing.undone:
            self._history = [one for one in self._history if one[0] not in standing.undone]

    def _load(self, infos: Mapping[str, TraceInfo]) -> None:
        self._epoch = uuid.uuid4().hex
        self._add(infos)
        made = [
            (answer.created_ms, answer.action, trace_id, answer)
            for trace_id, item in self._agenda.items.items()
            for answer in [*item.standing.answers.values(), *item.standing.changed.values()]
            if answer.action
        ]
        skips = [
            (int(told.get("at") or 0), action, trace_id)
            for trace_id, item in self._agenda.items.items()
            for action, told in item.standing.skips.items()
        ]
        past = sorted({*((at, key, trace_id) for at, key, trace_id, _ in made), *skips})
        self._history = [(key, trace_id) for _, key, trace_id in past]
        for *_, answer in sorted(made, key=lambda one: one[:2])[-RECENT:]:
            if seconds := answer.number(SECONDS_KEY):
                self._agenda.recent.append(seconds)

    # -- tables -------------------------------------------------------------------------

    @property
    def labels(self) -> pd.DataFrame:
        """The annotator's labels in the order in which they were given, one row a trace and
        question: the label that counts, ``value`` canonical or None for "can't judge".

        ``saved`` is False for what waits to be written. ``chosen``, ``probability``, ``draw`` and
        ``pool`` say how the item was chosen (see `workbench.sampling`). ``after_verdict`` is True
        where the only label was given after a look at the verdict; ``changed_to`` is what was
        said otherwise after the look at it.
        """
        with self._lock:
            return label_table(self._agenda)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: ``id``, ``kind``, ``trace_id``, ``answers`` (dict
        question -> value), ``rationale`` (dict), ``error``."""
        with self._lock:
            return refused_table(self._refused)

    def summary(self) -> pd.DataFrame:
        """How far it is: one row a question and value, with ``labels`` and ``share`` of those
        that are no abstention; below them the counts of abstentions and of open items."""
        with self._lock:
            return summary_table(self._agenda)

    # -- the end ------------------------------------------------------------------------

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written, or so long at most; whether all is written."""
        return self._saver.flush(seconds)

    def __repr__(self) -> str:
        progress = self.progress
        return (
            f"<LabelSession {self.title!r} by {self.annotator}: {progress['labelled']} of "
            f"{progress['total']} labelled, {progress['waiting']} not saved yet>"
        )


# -- small readings -------------------------------------------------------------------------


def _answer_json(answer: Answer) -> Message:
    return {"value": _plain(answer.value), "abstain": answer.value is ABSTAIN}


def _plain(value: Any) -> Any:
    return None if value is ABSTAIN else value


def _time(created_ms: int) -> pd.Timestamp:
    return pd.Timestamp(created_ms, unit="ms", tz="UTC")


def _unsaved(ids: Sequence[str], error: str, *, retry: bool) -> Message:
    return {"type": "unsaved", "ids": list(ids), "error": error, "retry": retry}


def _problem(error: str, about: Any) -> Message:
    return {"type": "problem", "error": error, "about": str(about)[:80] if about else None}
