"""`LabelSession`: one annotator labels a queue of traces; no widget, no browser.

The session holds the queue, says what stands where, takes what the annotator does and writes it
to MLflow in a thread of its own. It speaks JSON (see `LabelSession.receive`), so that a view in a
browser needs to know nothing else.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import pandas as pd
from mlflow.entities import Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench.errors import ArgumentError, ScaleError, WorkbenchError
from workbench.labeling.contents import Contents, content
from workbench.labeling.ordering import Draw
from workbench.labeling.questions import LabelQuestion, asked, with_rubric
from workbench.labeling.queue import (
    ACTION_KEY,
    CLOCK_KEY,
    RECENT,
    SECONDS_KEY,
    UNDONE,
    Action,
    Agenda,
    Answer,
    Item,
    Standing,
    assessment_id,
    lacks,
    who_and_what,
)
from workbench.labeling.review_queue import (
    Assign,
    QueueKeeper,
    ReviewQueue,
    Work,
    in_common,
    work_of,
)
from workbench.labeling.writer import Job, KeptLabelError, Recorder, Revealed, Saver, TraceGone
from workbench.pairing.adjudication import (
    Difference,
    differences,
    disagreements,
    new_decision,
    scale_of_labels,
)
from workbench.scale import ABSTAIN, Scale
from workbench.store.assessments import now_ms
from workbench.store.labels import Decision, decision_feedback, decision_records, folded
from workbench.store.rubrics import RubricHistory, rubric_history
from workbench.store.traces import (
    address,
    as_example,
    fetch_traces,
    find_experiment_id,
    load_spans,
    store_message,
)

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema


_LABEL_COLUMNS = [
    "trace_id", "question", "value", "rationale", "annotator", "chosen", "probability", "draw",
    "pool", "seconds", "at", "saved", "rubric_version", "after_verdict", "changed_to", "elsewhere",
]  # fmt: skip


def label_table(agenda: Agenda) -> pd.DataFrame:
    """One row a trace and question, those not saved yet last (see `LabelSession.labels`)."""
    rows = [
        {"trace_id": trace_id, "annotator": agenda.annotator, **row}
        for trace_id, item in agenda.items.items()
        for row in _rows(item, agenda.questions)
    ]
    rows.sort(key=lambda row: (not row["saved"], row["at"]))
    # As objects first: pandas would make texts of mixed values, and nan of what is None.
    table = pd.DataFrame(rows, columns=_LABEL_COLUMNS, dtype=object)
    table = table.astype(object).where(table.notna(), None)
    numbers = dict.fromkeys(["probability", "seconds"], "float64")
    table = table.astype({**numbers, "saved": bool, "after_verdict": bool, "elsewhere": bool})
    return table.assign(at=pd.to_datetime(table["at"], utc=True))


def _rows(item: Item, questions: tuple[LabelQuestion, ...]) -> Iterator[dict[str, Any]]:
    waiting: dict[str, Action] = {}
    for action in item.waiting:
        if action.kind == "save":
            waiting |= dict.fromkeys(action.answers, action)
        elif action.kind == "undo":
            waiting = {name: one for name, one in waiting.items() if one.id != action.undoes}
    for question in questions:
        stored = item.standing.answers.get(question.name)
        unsaved = waiting.get(question.name)
        row: dict[str, Any] = {"question": question.name}
        if item.draw is not None:
            row |= {"chosen": item.draw.how, "probability": item.draw.probability}
            row |= {"draw": item.draw.number, "pool": item.draw.pool}
        # What is said after a look at the verdict does not take the place of the first label.
        if unsaved and not (stored and question.name in item.standing.revealed):
            yield {**row, **_of_action(unsaved, question)}
        elif stored:
            yield {**row, **_of_answer(stored, item.standing.changed.get(question.name))}


def _of_action(action: Action, question: LabelQuestion) -> dict[str, Any]:
    given = action.answers[question.name]
    return {
        "value": _plain_cell(question.answer(given.value, abstain=given.abstain)),
        "rationale": given.rationale,
        "seconds": action.seconds,
        "at": _time(action.at_ms or now_ms()),
        "saved": False,
        "rubric_version": action.rubrics.get(question.name),
        "after_verdict": action.after_reveal,
        "elsewhere": False,
    }


def _of_answer(answer: Answer, changed: Answer | None) -> dict[str, Any]:
    return {
        "value": _plain_cell(answer.value),
        "rationale": answer.rationale,
        "seconds": answer.number(SECONDS_KEY),
        "at": _time(answer.created_ms),
        "saved": True,
        "rubric_version": answer.label.rubric_version,
        "after_verdict": answer.label.after_verdict,
        "changed_to": _plain_cell(changed.value) if changed else None,
        "elsewhere": answer.action is None,
    }


def refused_table(refused: Mapping[str, tuple[Action, str]]) -> pd.DataFrame:
    """What will never be written, and why (see `LabelSession.unsaved`)."""
    rows = [
        {
            "id": key,
            "kind": action.kind,
            "trace_id": action.trace_id,
            "answers": {
                n: "N/A" if one.abstain else one.value for n, one in action.answers.items()
            },
            "rationale": {n: one.rationale for n, one in action.answers.items()},
            "error": error,
        }
        for key, (action, error) in refused.items()
    ]
    columns = ["id", "kind", "trace_id", "answers", "rationale", "error"]
    return pd.DataFrame(rows, columns=columns)


def summary_table(agenda: Agenda) -> pd.DataFrame:
    """One row a question and value (see `LabelSession.summary`)."""
    rows = []
    for question in agenda.questions:
        counts = agenda.balance[question.name]
        values = list(question.scale.values) if question.scale else []
        values += [v for v in counts if v is not ABSTAIN and v not in values and counts[v]]
        total = sum(counts[value] for value in values)
        for value in values:
            share = counts[value] / total if total else float("nan")
            rows.append((question.name, question.shown(value), counts[value], share))
        rows.append((question.name, "can't judge", counts[ABSTAIN], float("nan")))
        lacking = sum(
            question.name not in item.standing.answers and not item.gone
            for item in agenda.items.values()
        )
        rows.append((question.name, "not labelled", lacking, float("nan")))
    return pd.DataFrame(rows, columns=["question", "value", "labels", "share"])


def _plain_cell(value: Any) -> Any:
    return None if value is ABSTAIN else value


def _time(at_ms: int) -> pd.Timestamp:
    return pd.Timestamp(at_ms, unit="ms", tz="UTC")


_SHARE: Final = 0.05
"""Of its time that the thread may spend on reading; a large queue is read less often."""


_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What can be read again."""

    def reread(self) -> None:
        """Read again, and tell whom it concerns what has changed."""


class Rereader:
    """Calls ``reread`` of a session every so many seconds, in a thread of its own.

    The thread holds nobody: it ends when the session is no longer used, when it is stopped, and
    with the process. What fails is tried again the next time.
    """

    def __init__(self, reader: Reader, every: float) -> None:
        self._reader = weakref.ref(reader)
        self._every = every
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun or was stopped."""
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._work, name="rereading", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; a call that is under way is not waited for."""
        self._stopped.set()

    def _work(self) -> None:
        wait = self._every
        while not self._stopped.wait(wait):
            reader = self._reader()
            if reader is None:
                return
            began = time.monotonic()
            try:
                reader.reread()
            except Exception:
                _log.debug("the store could not be read again", exc_info=True)
            del reader
            wait = max(self._every, (time.monotonic() - began) / _SHARE)


Message = dict[str, Any]


def item_json(
    position: int,
    item: Item,
    trace: Trace,
    chosen: Draw,
    rubrics: Mapping[str, RubricHistory],
    *,
    full: bool,
) -> Message:
    """An item as `workbench.labelling.LabelSession` describes it; ``full``: nothing is cut."""
    standing = item.standing
    done = done_json(standing, rubrics)
    return {
        "position": position,
        "trace_id": item.info.trace_id,
        **content(as_example(trace), full=full),
        "chosen": chosen.to_json(),
        "done": done if standing.done else None,
        "partial": None if standing.done else done,
        "again": item.again,
        # To a view what others have done is like what was put off: it is not offered.
        "skipped": standing.skipped or item.taken,
        "gone": item.gone,
    }


def done_json(standing: Standing, rubrics: Mapping[str, RubricHistory]) -> Message | None:
    """What the store holds of the annotator's answers to an item; None where it holds none."""
    if not standing.answers:
        return None
    return {
        "answers": {name: _answer_json(one) for name, one in standing.answers.items()},
        "rationale": {name: one.rationale for name, one in standing.answers.items()},
        "changed": {name: _answer_json(one) for name, one in standing.changed.items()},
        "earlier_rubric": any(
            rubrics[name].is_earlier(latest.label)
            for name in standing.answers
            if (latest := standing.latest(name)) is not None
        ),
        "elsewhere": all(one.action is None for one in standing.answers.values()),
        "action": max(standing.answers.values(), key=lambda one: one.created_ms).action,
    }


def _answer_json(answer: Answer) -> Message:
    abstain = answer.value is ABSTAIN
    return {"value": None if abstain else answer.value, "abstain": abstain}


_PATIENCE = 2.0
"""Seconds that an answer is waited for."""


_HURRIED = 0.05
"""The same while others are still waited for."""


_LATER = {
    "want": "the items come when it does",
    "refresh": "the queue is read again when it does",
    "offer_again": "they are offered again when it does",
}


class Soon:
    """Does work that reads the store; ``tell`` gets what is answered too late to wait for."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell
        self._late = 0

    def __call__(self, work: Callable[[], list[Message]], about: str) -> list[Message]:
        """What ``work`` answers, or a problem, and the answer later.

        ``about`` is the type of the message that asks for it. Raises what ``work`` raises, where
        that is soon.
        """
        answer: Future[list[Message]] = Future()

        def run() -> None:
            try:
                answer.set_result(work())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, name=about, daemon=True).start()
        try:
            return answer.result(_HURRIED if self._late else _PATIENCE)
        except FutureTimeoutError:
            if answer.done():
                # The store's own error, which bears the same name.
                raise
        self._late += 1
        answer.add_done_callback(lambda done: self._arrived(done, about))
        return [problem(f"The store has not answered yet; {_LATER[about]}.", about)]

    def _arrived(self, answer: Future[list[Message]], about: str) -> None:
        self._late -= 1
        error = answer.exception()
        if error is None:
            for message in answer.result():
                self._tell(message)
        else:
            self._tell(problem(f"The store cannot be read: {store_message(error)}", about))


PROTOCOL = 1


AROUND = (10, 50)
"""Items behind the position, and from it on, that a view is given when it says hello."""


MOST_WANTED = 500
"""Items that are given in one answer."""


_log = logging.getLogger(__name__)


def answered(
    message: Any, handlers: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]]
) -> list[Message]:
    """What the handler of the message's type answers, or a problem; never raises for what the
    message holds, nor for a store that cannot be read."""
    kind = message.get("type") if isinstance(message, Mapping) else None
    handler = handlers.get(kind) if isinstance(kind, str) else None
    if handler is None:
        return [problem(f"A message of type {kind!r:.80} is not known.", kind)]
    try:
        return handler(message)
    except WorkbenchError as error:
        return [problem(str(error), kind)]
    except Exception as error:
        # A store that cannot be read must not end the session; it is told and tried again.
        _log.debug("a message could not be answered", exc_info=True)
        return [problem(f"This could not be done: {store_message(error)}", kind)]


def wanted(message: Mapping[str, Any]) -> tuple[int, int, bool]:
    """(first position, number of items, whether they are wanted whole) of a ``want``.

    Raises
    ------
    ArgumentError
        When these are no counts.
    """
    start: Any = message.get("start")
    count: Any = message.get("count", 1)
    for given in (start, count):
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise ArgumentError(f"start and count must be counts, not {given!r:.40}.")
    return start, min(count, MOST_WANTED), message.get("full") is True


def read_actions(raw: Any) -> list[Action | Message]:
    """The actions of a message; in place of one that is malformed the answer to it.

    Raises
    ------
    ArgumentError
        When ``raw`` is no list.
    """
    if not isinstance(raw, list):
        raise ArgumentError(f"actions must be a list, not {raw!r:.80}.")
    read: list[Action | Message] = []
    for one in raw:
        try:
            read.append(Action.parse(one))
        except ArgumentError as error:
            key = one.get("id") if isinstance(one, Mapping) else None
            read.append(unsaved([key] if isinstance(key, str) else [], str(error), retry=False))
    return read


def unsaved(ids: Sequence[str], error: str, *, retry: bool) -> Message:
    """``retry``: whether it is tried again, or never will be."""
    return {"type": "unsaved", "ids": list(ids), "error": error, "retry": retry}


def problem(error: str, about: Any) -> Message:
    """``about`` is the type of the message that could not be answered."""
    return {"type": "problem", "error": error, "about": str(about)[:80] if about else None}


_FIXED = 60
"""Items ahead of the annotator that keep their places when the order is made again: as many as
can be rated before the browser hears of it."""


_LABELS_A_PLAN = 20

_NEAR_THE_END = 150

_LATE_MS = 5_000

_TOLD_BACK = 20


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    """What was found when the store was read again: ids of traces that ``joined`` or ``left``
    the queue, the labels that changed, and the positions."""

    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    labelled: Mapping[str, Message | None] = field(default_factory=dict)
    moved: tuple[int, ...] = ()


class LabelSession:
    """The labelling of one annotator on one or several questions.

    Parameters
    ----------
    judge_or_name
        The judge (or its name) whose question is answered; None when ``questions`` are given.
    traces
        What to label, as `workbench.store.fetch_traces` takes it; None: the active experiment, or
        the traces of an `Assignment`.
        Of a `workbench.review_queue` the annotator's share, batch by batch; its questions are
        asked where none are given, and its status in MLflow's page is kept in step.
    annotator
        Who labels. Capital letters do not tell people apart (`workbench.standing.same_person`).
    questions
        Instead of the judge's own question: one or several `LabelQuestion`, MLflow label schemas
        or names of these.
    order, seed, random_share
        See `workbench.ordering.put_in_order`. Each annotator has an order of their own, the same
        whenever they come back; where it is settled who labels what (``assign``, a review queue
        with a team or with ``each`` above 1) it is common to all.
    assign
        Which of the traces this annotator is to label: a `workbench.assignment.Assignment`,
        whose batches come one after the other, or a function from all trace ids to some of them.
        None: all.
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
        thread: "saved", "unsaved", "revealed", "items", "queue", "state" (nothing but that the
        state has changed), "problem". May be set afterwards.
    refresh_every
        Seconds between two readings of the store for what was done elsewhere, once a view has
        said hello; longer where reading takes long. None: only when `refresh` is called.

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
    - ``reveal`` (``trace_id``): later ``revealed``, or at once a ``problem``;
    - ``refresh``: as `refresh`; ``offer_again`` (``trace_ids``, may be left out): as
      `offer_again`. Both answer ``queue``, or a ``problem`` and the ``queue`` later. One that
      nobody asked for bears ``"stay": True``.
    - Anything else, and anything malformed: ``{"type": "problem", "error": ..., "about": ...}``.

    ``items`` and ``saved`` bear a ``stamp``: items of a smaller one than what was told as saved of
    a trace were read before it, however late they come, and do not say what stands there now.

    An item is ``{"position", "trace_id", "inputs", "outputs", "expectations", "cuts"?, "chosen":
    {"how", "probability", "number", "pool"}, "done", "partial", "again", "skipped", "gone"}``. An
    action may carry the ``chosen`` of its item as it was told when it was shown: what is recorded
    is then right whatever became of the order since. So it may carry ``rubrics``, ``{question:
    version}``, the ``rubric_version`` of each question of the setup as it was shown, 0 where there
    was none: the label is recorded with it, though the rubric was changed before the kernel came
    to it. ``done`` is None or
    ``{"answers": {question: {"value", "abstain"}}, "rationale": {question: str}, "changed":
    {question: {"value", "abstain"}}, "earlier_rubric", "elsewhere", "action"}``: what the store
    holds, never what only waits. ``partial`` is the same of an item on which some required
    question is open, else None. ``changed`` is what was said otherwise after the reveal.
    ``earlier_rubric``: whether some question has no answer, ``changed`` included, that was given
    under the rubric as it reads now.

    Raises
    ------
    ArgumentError
        For an annotator without a name, or one whom ``assign`` does not name, unknown orders, or no
        scale to rate on.
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
    ) -> None:
        if not isinstance(annotator, str) or not annotator.strip():
            raise ArgumentError(f"annotator={annotator!r} must be a non-empty text.")
        self.annotator = annotator
        self.on_message = on_message
        self.reveal = reveal
        self._assign, self._traces = assign, traces
        self.keeper: QueueKeeper | None = None
        self._notes: tuple[str, ...] = ()
        if isinstance(traces, ReviewQueue):
            self.keeper = QueueKeeper(traces, annotator, self._say_state)
            experiment = experiment or traces.experiment_id
            if judge_or_name is None and questions is None:
                questions = traces.questions
                self._notes = _left_out(traces)
        # Where the labels go stays what it is now, whatever is made active later.
        self._client = TracingClient()
        self._experiment = find_experiment_id(experiment, create=False)
        fetched = self._fetch()
        self._judge = judge_or_name
        asks = self._asked = asked(
            judge_or_name, questions, scale, fetched.infos.values(), self._experiment
        )
        self._rubrics = {q.name: self._rubric_history(q.name) for q in asks}
        self.questions = tuple(with_rubric(q, self._rubrics[q.name]) for q in asks)
        self.title = title or ", ".join(q.title or q.name for q in self.questions)
        self._lock = threading.RLock()
        self._rereading = threading.Lock()
        self._agenda = Agenda(
            self.questions,
            annotator,
            order=order,
            seed=seed,
            random_share=random_share,
            judge=judge_or_name,
            in_common=in_common(traces, assign),
        )
        self._actions: dict[str, str] = {}
        self._refused: dict[str, tuple[Action, str]] = {}
        self._history: list[tuple[str, str]] = []
        self._contents = Contents(self._client)
        self._trouble = ""
        self._soon = Soon(self._tell)
        self._sent = 0
        self._stamp = 0
        self._acted_at = -1
        self._unplanned = 0
        self._least_delay: int | None = None
        self._recorder = Recorder(self._client, self.questions, annotator)
        self._saver = Saver(self)
        self._rereader = None if refresh_every is None else Rereader(self, refresh_every)
        self._load(fetched)
        if self.keeper is not None:
            self.keeper.sync()

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
        place = json.dumps([address(), self._experiment])
        return f"{who_and_what(place, ())}-{who_and_what(folded(self.annotator), self.questions)}"

    def state(self) -> Message:
        """What changes: position, progress, whether the store answers, how many actions are
        ``lost`` (see `unsaved`), and the ``history``.

        The history is what the annotator did last, here or anywhere, the oldest of it first:
        ``{"id", "trace_id", "kind", "position", "kept"}``, without what was taken back. It may be
        taken back but where it is ``kept``, since the verdict was seen after it.
        """
        with self._lock:
            return {
                "position": self.position,
                "progress": self.progress,
                "message": self._trouble or " ".join(self.notes),
                "store_ok": not self._trouble,
                "lost": len(self._refused),
                "history": self._told_back(),
            }

    def _told_back(self) -> list[Message]:
        told = []
        for key, trace_id in self._history[-_TOLD_BACK:]:
            item = self._agenda.items.get(trace_id)
            if item is None or self._actions.get(key) == "refused":
                continue
            skipped = key in item.standing.skips or any(
                one.id == key and one.kind == "skip" for one in item.waiting
            )
            told.append(
                {
                    "id": key,
                    "trace_id": trace_id,
                    "kind": "skip" if skipped else "save",
                    "position": self._agenda.place[trace_id],
                    "kept": item.standing.keeps(key),
                }
            )
        return told

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else the skipped one that waits longest, else the
        length of the queue."""
        with self._lock:
            return self._agenda.position

    @property
    def progress(self) -> dict[str, Any]:
        """``labelled`` and ``skipped`` of ``total``, ``again`` of the labelled that are offered
        again, ``waiting`` actions not in the store yet,
        ``balance`` (labels by value, of the first question), ``balances`` (of each question),
        ``per_hour`` (own rate over the last items) and ``seconds_left``; None where not known."""
        with self._lock:
            return self._agenda.progress

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say: of a rule that has nothing to go by, of questions that are not
        asked, of labels under another spelling of the annotator's name, of a queue's status."""
        with self._lock:
            spelled = ", ".join(sorted(map(repr, self._agenda.spellings)))
        return (
            *self._notes,
            *self._agenda.notes,
            *([f"Labels by {spelled} count as yours: {self.annotator!r}."] if spelled else []),
            *([self.keeper.note_of_trouble] if self.keeper and self.keeper.note_of_trouble else []),
        )

    def receive(self, message: Any) -> list[Message]:
        """Take one message of the view and answer it (see the class). Never raises for what the
        message holds."""
        return answered(
            message,
            {
                "hello": self._hello,
                "want": lambda m: self._shown(*wanted(m)),
                "act": lambda m: self._act(m.get("actions")),
                "reveal": lambda m: self._reveal(m.get("trace_id")),
                "refresh": lambda _: self._soon(self.refresh, "refresh"),
                "offer_again": self._offered_again,
            },
        )

    def _offered_again(self, message: Mapping[str, Any]) -> list[Message]:
        ids = _trace_ids(message.get("trace_ids"))
        return self._soon(lambda: self.offer_again(ids), "offer_again")

    def _hello(self, message: Mapping[str, Any]) -> list[Message]:
        pending = message.get("pending")
        answers = self._act([] if pending is None else pending)
        if self._rereader is not None:
            self._rereader.start()
        try:
            start = max(0, self.position - AROUND[0])
            return [*self._shown(start, sum(AROUND)), *answers]
        except Exception as error:
            return [*answers, problem(f"Items cannot be read: {store_message(error)}", "hello")]

    def _shown(self, start: int, count: int, full: bool = False) -> list[Message]:
        return self._soon(lambda: [self._items(start, count, full=full)], "want")

    def _items(self, start: int, count: int, *, full: bool = False) -> Message:
        with self._lock:
            places = range(start, min(start + count, len(self._agenda.queue)))
            self._sent = max(self._sent, places.stop)
        return self._items_at(start, places, full=full)

    def _items_at(self, start: int, places: Sequence[int], *, full: bool = False) -> Message:
        with self._lock:
            ids = [self._agenda.queue[place] for place in places]
            infos = [self._agenda.items[i].info for i in ids]
        traces = self._contents.read(infos)
        with self._lock:
            # The queue may have changed meanwhile: each is told where it stands now.
            ids = [i for i in ids if i in self._agenda.items]
            draws = self._agenda.tell([self._agenda.place[i] for i in ids])
            items = [
                item_json(
                    self._agenda.place[trace_id],
                    item := self._agenda.items[trace_id],
                    traces.get(trace_id) or Trace(item.info, TraceData(spans=[])),
                    draws[trace_id],
                    self._rubrics,
                    full=full,
                )
                for trace_id in ids
            ]
            return {"type": "items", "start": start, "items": items, "stamp": self._stamp}

    def _done(self, standing: Standing) -> Message | None:
        return done_json(standing, self._rubrics)

    # -- what the annotator does --------------------------------------------------------

    def _act(self, raw: Any) -> list[Message]:
        with self._lock:
            return [
                answer
                for one in read_actions(raw)
                for answer in (self._take(one) if isinstance(one, Action) else [one])
            ]

    def _take(self, action: Action) -> list[Message]:
        status = self._actions.get(action.id)
        known = status == "seen"
        if known:
            action = self._as_known(action)
            item = self._agenda.items.get(action.trace_id)
            aimless = action.kind == "undo" and action.undoes is None
            if aimless or (item is not None and not lacks(item.info, action)):
                return [self._saved([action])]
        if status == "saved":
            return [self._saved([action])]
        if status == "refused":
            return [unsaved([action.id], self._refused[action.id][1], retry=False)]
        if status == "waiting":
            return []
        try:
            if action.kind == "undo" and not known:
                # What is meant is settled now, so that two in a row take back two actions.
                target, trace_id = self._target(action)
                action = replace(action, undoes=target, trace_id=trace_id)
            action = replace(action, rubrics=self._rubrics_shown(action))
            job = self._job(action)
        except (ArgumentError, ScaleError, KeptLabelError) as error:
            return [self._refuse(action, str(error))]
        self._actions[action.id] = "waiting"
        if action.kind != "undo" and not known:
            self._history.append((action.id, action.trace_id))
        if item := self._agenda.items.get(action.trace_id):
            item.waiting.append(action)
            self._agenda.touch(action.trace_id)
        self._saver.put(Job(action.id, action.trace_id, job))
        self._plan_ahead(action)
        return [unsaved([action.id], self._trouble, retry=True)] if self._trouble else []

    def _as_known(self, action: Action) -> Action:
        """An action that the store knows: an undo takes back what it took back there."""
        if action.kind == "undo":
            for trace_id, item in self._agenda.items.items():
                for target, by in item.standing.undone.items():
                    if by == action.id:
                        return replace(action, undoes=target, trace_id=trace_id)
        return action

    def _job(self, action: Action) -> Callable[[], TraceInfo]:
        """What writes the action."""
        recorder = self._recorder
        if action.kind == "undo":
            return lambda: recorder.undo(action)
        item = self._agenda.items.get(action.trace_id)
        draw = self._agenda.draw(action.trace_id, action.chosen)
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
        return lambda: recorder.save(self._known_rubrics(action), answers, metadata)

    def _rubrics_shown(self, action: Action) -> dict[str, int]:
        """The rubric version that each answer was given under: as the view says, which may have
        waited while the rubric was changed, else the present one."""
        present = {q.name: q.rubric_version for q in self.questions}
        versions = {n: action.rubrics.get(n, present.get(n)) for n in action.answers}
        return {name: version for name, version in versions.items() if version is not None}

    def _known_rubrics(self, action: Action) -> Action:
        """The action, if there are such versions. Another session may have shown one that this
        one has not heard of, so that the store is asked: not to be called by the kernel.

        Raises
        ------
        ArgumentError
            For a version that does not exist.
        """
        own = {q.name: q.rubric_version for q in self._asked}
        for name, version in action.rubrics.items():
            known = {0, own[name], *(one.version for one in self._rubrics[name])}
            if version in known or version in {v.version for v in self._rubric_history(name)}:
                continue
            raise ArgumentError(f"The rubric of {name!r} has no version {version}.")
        return action

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
                item = self._agenda.items.get(trace_id)
                if item is not None and item.standing.keeps(key):
                    raise KeptLabelError
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
                self._refused.pop(job.key, None)
                if action is not None and action.kind == "save" and action.seconds:
                    self._agenda.recent.append(action.seconds)
                self._learn(result)
                self._stamp += 1
                message = self._saved_json([job.key], {job.trace_id: self._done_now(job.trace_id)})
        if self.keeper is not None and message["type"] == "saved":
            self.keeper.note(message["labelled"])
        self._tell(message)

    def delayed(self, error: str) -> None:
        """Nothing is written just now."""
        with self._lock:
            waiting = [action.id for action in self._agenda.waiting]
            self._trouble = f"Not saved yet: {error}. It is tried again."
            message = unsaved(waiting, self._trouble, retry=True)
        self._tell(message)

    def refused(self, job: Job, error: str) -> None:
        """A job will never be done."""
        with self._lock:
            if len(self._saver) <= 1:
                # This was the last: nothing is tried again any more.
                self._trouble = ""
            item = self._agenda.items.get(job.trace_id)
            if item is not None:
                action = next((a for a in item.waiting if a.id == job.key), None)
                if action is not None:
                    item.waiting.remove(action)
                item.gone = item.gone or self._recorder.is_gone(job.trace_id)
            else:
                action = None
            if job.key.startswith("reveal "):
                message = problem(error, "reveal")
            else:
                made = action or Action(job.key, "save", job.trace_id)
                message = self._refuse(made, error)
            if item is not None:
                self._agenda.touch(job.trace_id)
            place = self._agenda.place.get(job.trace_id) if item is not None and item.gone else None
        self._tell(message)
        if place is not None:
            # Else the view would come back to it for ever.
            self._show_moved([place])

    def _refuse(self, action: Action, error: str) -> Message:
        self._actions[action.id] = "refused"
        self._refused[action.id] = (action, error)
        return unsaved([action.id], error, retry=False)

    def _saved(self, actions: Sequence[Action]) -> Message:
        ids = {action.trace_id for action in actions}
        labelled = {i: self._done_now(i) for i in ids if i in self._agenda.items}
        return self._saved_json([action.id for action in actions], labelled)

    def _saved_json(self, ids: list[str], labelled: Mapping[str, Message | None]) -> Message:
        return {"type": "saved", "ids": ids, "labelled": dict(labelled), "stamp": self._stamp}

    def _done_now(self, trace_id: str) -> Message | None:
        item = self._agenda.items.get(trace_id)
        return self._done(item.standing) if item is not None and item.standing.done else None

    def _say_state(self) -> None:
        self._tell({"type": "state"})

    def _tell(self, message: Message) -> None:
        if self.on_message is not None:
            try:
                self.on_message(message)
            except Exception:
                # A view that is gone must not end the writing.
                _log.warning("the panel could not be told what was saved", exc_info=True)

    # -- the queue ----------------------------------------------------------------------

    def refresh(self) -> list[Message]:
        """Read the store again: new traces join the queue, those that are no longer the
        annotator's leave it, labels made elsewhere count as done, the rubric is the latest.
        Returns the messages to send: ``queue``."""
        self._read_rubrics()
        self._reread(in_place=False)
        if self.keeper is not None:
            self.keeper.sync()
        with self._lock:
            return [self._queue_message()]

    def reread(self) -> None:
        """Read the store again in the background, and tell what has changed of what is shown.

        What has changed far ahead is told with the items. Only near the end of the queue, where
        it tells how much there is left, is the view told that there is more, or less, of it. What
        others have done meanwhile is passed over, but nothing moves on the page or right ahead.
        """
        with self._lock:
            if self._trouble or self._agenda.waiting:
                return
        news = self._reread(in_place=True)
        messages: list[Message] = []
        if news.labelled:
            with self._lock:
                self._stamp += 1
                messages.append(self._saved_json([], news.labelled))
        with self._lock:
            near_the_end = len(self._agenda.queue) - self.position < _NEAR_THE_END
            if (news.joined or news.left) and near_the_end:
                # Nobody asked for it, so the view stays where it is.
                messages.append({**self._queue_message(), "stay": True})
        for message in messages:
            self._tell(message)
        if not any(message["type"] == "queue" for message in messages):
            self._show_moved(news.moved)

    def _reread(self, *, in_place: bool) -> _News:
        with self._rereading:
            since = time.monotonic()
            # Of traces that are named, some may have been deleted since.
            fetched = self._fetch(missing_ok=True)
            infos = fetched.infos
            with self._lock:
                agenda = self._agenda
                news = agenda.news(infos, since=since)
                joined = {i: info for i, info in infos.items() if i not in agenda.items}
            known = agenda.known(infos) if news or joined else {}
            with self._lock:
                before = {info.trace_id: self._done_now(info.trace_id) for info in news}
                for info in news:
                    self._learn(info)
                self._add(joined, fetched.batches)
                lacking = set(agenda.items) - set(infos)
                left = {i for i in lacking if fetched.is_share and self._may_leave(i)}
                # Taking an item out would move all behind it, also the one on the page.
                until, at = (self._held_until() if in_place else 0), self._at
                held = {i for i in left if agenda.place[i] < until}
                left -= held
                taken = agenda.take(i for i in held if agenda.place[i] != at)
                places = sorted(agenda.place[i] for i in left)
                agenda.drop(left)
                moved = {*taken, *(range(places[0], self._sent) if places else ())}
                for trace_id in lacking - left:
                    # A filter may no longer match what was labelled; what is deleted is gone.
                    gone = self._recorder.is_gone(trace_id)
                    if gone != agenda.items[trace_id].gone:
                        moved.add(agenda.place[trace_id])
                    agenda.items[trace_id].gone = gone
                    agenda.touch(trace_id)
                labelled = {
                    i: now for i, was in before.items() if (now := self._done_now(i)) != was
                }
                if known:
                    agenda.consider(known)
                outlook = agenda.outlook(self._keep())
            if joined or known:
                # Without the lock: on large queues it takes a while.
                drawn = agenda.drawn_from(outlook)
                with self._lock:
                    moved |= set(agenda.follow(drawn, outlook))
            return _News(tuple(joined), tuple(sorted(left)), labelled, tuple(sorted(moved)))

    def _may_leave(self, trace_id: str) -> bool:
        item = self._agenda.items[trace_id]
        return item.untouched and item.mark in ("open", "skipped", "taken") and not item.again

    def offer_again(self, trace_ids: Iterable[str] | None = None) -> list[Message]:
        """Open labelled items again, until each has a newer answer. By default those that were
        labelled under an earlier rubric. Returns the messages to send: ``queue``.

        A new label replaces the first where the verdict was not shown yet; it is shown again only
        after the new label is saved. A label that is given after the verdict was seen stays
        beside the first: the first is what agreement is measured on, and what is said under the
        new rubric is kept as a change of it (``changed_to`` in `labels`).
        """
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
        # The view forgets what it holds, and asks again from where it is.
        self._sent = min(self._sent, self._keep())
        return {"type": "queue", "total": len(self._agenda.queue), "position": self.position}

    # -- the order ahead ----------------------------------------------------------------

    def _keep(self) -> int:
        """The position from which on the order may be made again."""
        if not self._sent:
            return self.position
        return min(self._held_until(), max(self._sent, self._at))

    @property
    def _at(self) -> int:
        """The position that the view shows, as far as is known here."""
        return max(self.position, self._acted_at + 1)

    def _held_until(self) -> int:
        """The position up to which the view may show an item before it hears of a change."""
        return self._at + _FIXED if self._sent else 0

    def _plan_ahead(self, action: Action) -> None:
        """Make the order ahead again where enough was labelled since, by what it tells."""
        if action.kind != "save" or action.trace_id not in self._agenda.place:
            return
        self._acted_at = self._agenda.place[action.trace_id]
        self._unplanned += 1
        if not self._agenda.adapts or self._unplanned < _LABELS_A_PLAN or self._is_late(action):
            return
        self._unplanned = 0
        outlook = self._agenda.outlook(self._keep())
        moved = self._agenda.follow(self._agenda.drawn_from(outlook), outlook)
        if any(place < self._sent for place in moved):
            threading.Thread(
                target=self._show_moved, args=(tuple(moved),), name="items", daemon=True
            ).start()

    def _is_late(self, action: Action) -> bool:
        """Whether the action has waited for the kernel, so that the browser may be far ahead.

        The clocks of browser and kernel differ: the quickest message tells by how much.
        """
        if action.at_ms is None:
            return False
        delay = now_ms() - action.at_ms
        if self._least_delay is None or delay < self._least_delay:
            self._least_delay = delay
        return delay - self._least_delay > _LATE_MS

    def _show_moved(self, places: Sequence[int]) -> None:
        """Tell the view what stands at positions that it holds and that have changed."""
        with self._lock:
            until = min(self._sent, len(self._agenda.queue))
            shown = [place for place in places if place < until]
        if not shown:
            return
        try:
            message = self._items_at(shown[0], shown)
        except Exception:
            # It shows what it holds, and what is labelled there is recorded as what it is.
            _log.debug("items could not be read", exc_info=True)
            return
        self._tell(message)

    @property
    def trace_ids(self) -> list[str]:
        """The queue, in order."""
        with self._lock:
            return list(self._agenda.queue)

    def _fetch(self, *, missing_ok: bool = False) -> Work:
        return work_of(
            self.annotator, self._traces, self._assign, self._experiment, missing_ok=missing_ok
        )

    def _rubric_history(self, name: str) -> RubricHistory:
        return rubric_history(name, experiment=self._experiment)

    def _learn(self, info: TraceInfo) -> None:
        standing = self._agenda.learn(info)
        if standing is not None:
            self._note(standing)

    def _add(self, infos: Mapping[str, TraceInfo], batches: Mapping[str, int]) -> None:
        self._agenda.add(infos, batches)
        for trace_id in infos:
            self._note(self._agenda.items[trace_id].standing)

    def _note(self, standing: Standing) -> None:
        """Which actions the store knows, whoever has written them, though perhaps not all of
        each: only what was written here is known to be there as a whole."""
        for action in standing.seen:
            if self._actions.get(action) not in ("waiting", "saved"):
                self._actions[action] = "seen"
        if standing.undone:
            self._history = [one for one in self._history if one[0] not in standing.undone]

    def _load(self, fetched: Work) -> None:
        self._epoch = uuid.uuid4().hex
        self._add(fetched.infos, fetched.batches)
        self._agenda.consider(self._agenda.known(fetched.infos))
        outlook = self._agenda.outlook(0)
        self._agenda.follow(self._agenda.drawn_from(outlook), outlook)
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

    def close(self) -> None:
        """Stop reading the store again by itself; what waits to be written is written."""
        if self._rereader is not None:
            self._rereader.stop()

    def __repr__(self) -> str:
        progress = self.progress
        return (
            f"<LabelSession {self.title!r} by {self.annotator}: {progress['labelled']} of "
            f"{progress['total']} labelled, {progress['waiting']} not saved yet>"
        )


# -- small readings -------------------------------------------------------------------------


def _trace_ids(raw: Any) -> list[str] | None:
    if raw is None or (isinstance(raw, list) and all(isinstance(one, str) for one in raw)):
        return raw
    raise ArgumentError(f"trace_ids must be a list of texts, not {raw!r:.80}.")


def _left_out(queue: ReviewQueue) -> tuple[str, ...]:
    names = ", ".join(map(repr, queue.left_out))
    if not names:
        return ()
    return (f"Not asked here, since they ask for expectations: {names}. Use MLflow's page.",)


_log = logging.getLogger(__name__)


@dataclass
class _Item:
    """One trace on which people differ; ``waiting`` are actions not in the store yet."""

    info: TraceInfo
    difference: Difference
    decision: Decision | None
    skipped: bool = False
    gone: bool = False
    waiting: list[Action] = field(default_factory=list)


class DecisionSession:
    """The adjudication of one question by one person.

    Parameters
    ----------
    judge_or_name
        The judge or its name, under which the labels are stored.
    traces
        None (the active experiment), traces, trace ids, or an MLflow filter string. Of these the
        ones on which annotators differ are gone through: open ones first, of these those on
        which people lie farthest apart.
    by
        Who decides.
    scale
        The rating scale; by default the judge's, else that of MLflow's label schema of this
        name, else that of the labels.
    title
        Stands above the items.
    experiment
        Name or id; the active one by default.
    on_message
        Is called with messages that come later than the answer to `receive`, from another thread.

    Raises
    ------
    ArgumentError
        For a ``by`` without a name.
    StoreError
        When the traces cannot be read.
    """

    def __init__(
        self,
        judge_or_name: Judge | str,
        traces: Any = None,
        *,
        by: str,
        scale: Scale | None = None,
        title: str = "",
        experiment: str | None = None,
        on_message: Callable[[Message], None] | None = None,
    ) -> None:
        if not isinstance(by, str) or not by.strip():
            raise ArgumentError(f"by={by!r} must be a non-empty text: who decides.")
        self.by = by
        self.on_message = on_message
        # Where the decisions go stays what it is now, whatever is made active later.
        self._client = TracingClient()
        self._experiment = find_experiment_id(experiment, create=False)
        self._traces = traces
        self._judge = judge_or_name
        fetched = self._fetch()
        self._rubrics = rubric_history(_name(judge_or_name), experiment=self._experiment)
        self.question = self._question(scale or scale_of_labels(judge_or_name, fetched))
        self.title = title or self.question.title or self.question.name
        self._epoch = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._items: dict[str, _Item] = {}
        self._actions: dict[str, str] = {}
        self._refused: dict[str, tuple[Action, str]] = {}
        self._history: list[tuple[str, str]] = []
        self._trouble = ""
        self._soon = Soon(self._tell)
        self._saver = Saver(self)
        self._load(fetched)

    def _question(self, scale: Scale | None) -> LabelQuestion:
        if isinstance(self._judge, str):
            question = LabelQuestion(self._judge, scale)
        else:
            question = LabelQuestion.of_judge(self._judge, scale=scale)
        now = self._rubrics.current
        return replace(question, rubric=now.text, rubric_version=now.version) if now else question

    # -- what the view is told ----------------------------------------------------------

    def setup(self) -> Message:
        """What does not change while one decides."""
        place = json.dumps([address(), self._experiment, "decisions"])
        key = f"{who_and_what(place, ())}-{who_and_what(self.by, [self.question])}"
        return {
            "protocol": PROTOCOL,
            "panel_key": key,
            "epoch": self._epoch,
            "annotator": self.by,
            "title": self.title,
            "questions": [self.question.to_json()],
            "reveal": False,
            "read_only": False,
            "total": len(self._items),
        }

    def state(self) -> Message:
        """What changes: position, progress, whether the store answers, and how many actions are
        ``lost`` (see `unsaved`)."""
        with self._lock:
            return {
                "position": self.position,
                "progress": self.progress,
                "message": self._trouble,
                "store_ok": not self._trouble,
                "lost": len(self._refused),
            }

    @property
    def position(self) -> int:
        """The first open item, else the first that was put off, else the number of items."""
        with self._lock:
            marks = [self._mark(item) for item in self._items.values()]
        for mark in ("open", "skipped"):
            if mark in marks:
                return marks.index(mark)
        return len(marks)

    @property
    def progress(self) -> dict[str, Any]:
        """``labelled`` (decided) and ``skipped`` of ``total``, ``waiting`` actions, and
        ``balance``, the decisions by value."""
        with self._lock:
            items = list(self._items.values())
            made = [item.decision for item in items if item.decision is not None]
            values = self.question.scale.values if self.question.scale else ()
            counts = Counter(self.question.shown(self._canonical(one.value)) for one in made)
            shown = [self.question.shown(value) for value in values]
            return {
                "labelled": len(made),
                "skipped": sum(self._mark(item) == "skipped" for item in items),
                "total": len(items),
                "waiting": sum(len(item.waiting) for item in items),
                "balance": {one: counts[one] for one in [*shown, *(set(counts) - set(shown))]},
                "per_hour": None,
                "seconds_left": None,
            }

    @staticmethod
    def _mark(item: _Item) -> str:
        if item.gone:
            return "gone"
        mark = "done" if item.decision else "skipped" if item.skipped else "open"
        for action in item.waiting:
            mark = {"save": "done", "undo": "open"}.get(action.kind, mark)
        return mark

    def receive(self, message: Any) -> list[Message]:
        """Take one message of the view and answer it, as `LabelSession.receive` does.

        An item has besides ``voices``: ``[{"annotator", "value", "rationale",
        "earlier_rubric"}]``, the labels in words, and ``decided_by``, None while it is open.
        """
        return answered(
            message,
            {
                "hello": self._hello,
                "want": lambda m: self._shown(*wanted(m)),
                "act": lambda m: self._act(m.get("actions")),
                "refresh": lambda _: self._soon(self.refresh, "refresh"),
            },
        )

    def _hello(self, message: Mapping[str, Any]) -> list[Message]:
        answers = self._act(message.get("pending") or [])
        return [*self._shown(max(0, self.position - AROUND[0]), sum(AROUND)), *answers]

    def _shown(self, start: int, count: int, full: bool = False) -> list[Message]:
        return self._soon(lambda: [self._items_at(start, count, full=full)], "want")

    def _items_at(self, start: int, count: int, *, full: bool) -> Message:
        with self._lock:
            items = list(self._items.values())[start : start + count]
        loaded = load_spans(self._client, [item.info for item in items])
        shown = []
        for offset, item in enumerate(items):
            data = loaded.get(item.info.trace_id) or TraceData(spans=[])
            with self._lock:
                shown.append(
                    {
                        "position": start + offset,
                        "trace_id": item.info.trace_id,
                        **content(as_example(Trace(item.info, data)), full=full),
                        "chosen": {"how": "disagreement", "probability": None},
                        "done": self._done(item),
                        "partial": None,
                        "again": False,
                        "skipped": self._mark(item) == "skipped",
                        "gone": item.gone,
                        "voices": self._voices(item),
                    }
                )
        return {"type": "items", "start": start, "items": shown}

    def _voices(self, item: _Item) -> list[Message]:
        return [
            {
                "annotator": label.annotator,
                "value": self.question.shown(self._canonical(label.value)),
                "rationale": label.rationale or "",
                "earlier_rubric": self._rubrics.is_earlier(label),
            }
            for label in item.difference.labels
        ]

    def _done(self, item: _Item) -> Message | None:
        if item.decision is None:
            return None
        value = self._canonical(item.decision.value)
        abstain = value is ABSTAIN
        name = self.question.name
        return {
            "answers": {name: {"value": None if abstain else value, "abstain": abstain}},
            "rationale": {name: item.decision.rationale or ""},
            "changed": {},
            "earlier_rubric": False,
            "elsewhere": False,
            "decided_by": item.decision.by,
        }

    def _canonical(self, raw: Any) -> Any:
        """The value on the scale, and what lies off it as it was given."""
        try:
            return self.question.read(raw)
        except ScaleError:
            return raw

    # -- what is decided ----------------------------------------------------------------

    def _act(self, raw: Any) -> list[Message]:
        with self._lock:
            return [
                answer
                for one in read_actions(raw)
                for answer in (self._take(one) if isinstance(one, Action) else [one])
            ]

    def _take(self, action: Action) -> list[Message]:
        status = self._actions.get(action.id)
        if status == "saved":
            return [self._saved(action.id, action.trace_id)]
        if status == "refused":
            return [unsaved([action.id], self._refused[action.id][1], retry=False)]
        if status == "waiting":
            return []
        try:
            if action.kind == "undo":
                action = self._aimed(action)
            job = self._job(action)
        except (ArgumentError, ScaleError) as error:
            return [self._refuse(action, str(error))]
        item = self._items.get(action.trace_id)
        if action.kind != "undo":
            self._history.append((action.id, action.trace_id))
        if job is None:
            # Putting off changes nothing in the store: it lasts as long as the session.
            if item is not None:
                item.skipped = action.kind == "skip"
            self._actions[action.id] = "saved"
            return [self._saved(action.id, action.trace_id)]
        self._actions[action.id] = "waiting"
        if item is not None:
            item.waiting.append(action)
        self._saver.put(Job(action.id, action.trace_id, job))
        return [unsaved([action.id], self._trouble, retry=True)] if self._trouble else []

    def _aimed(self, action: Action) -> Action:
        """The undo with the action that it takes back, by default the last one."""
        for key, trace_id in reversed(self._history):
            if action.undoes in (None, key) and self._actions.get(key) != "refused":
                self._history.remove((key, trace_id))
                return replace(action, undoes=key, trace_id=trace_id)
        if action.undoes is not None and action.trace_id:
            return action
        raise ArgumentError("There is nothing to take back.")

    def _job(self, action: Action) -> Callable[[], TraceInfo] | None:
        """What writes the action; None for what is not written."""
        if action.kind == "skip":
            return None
        if action.kind == "undo":
            return lambda: self._undo(action)
        name = self.question.name
        if set(action.answers) != {name}:
            raise ArgumentError(f"A decision answers {name!r} and nothing else.")
        given = action.answers[name]
        value = self.question.answer(given.value, abstain=given.abstain)
        return lambda: self._decide(action, self.question.stored(value), given.rationale)

    def _decide(self, action: Action, value: Any, rationale: str) -> TraceInfo:
        """Write the decision, unless it is there or was taken back."""
        info = self._read(action.trace_id)
        name = self.question.name
        key = assessment_id(action.id, action.trace_id, name)
        there = any(a.assessment_id == key for a in info.assessments or [])
        undone = f"{UNDONE}{action.id}" in (info.tags or {})
        if undone and there:
            self._client.delete_assessment(action.trace_id, key)
        if undone or there:
            return self._read(action.trace_id) if undone else info
        made = new_decision(
            Trace(info, TraceData(spans=[])),
            value,
            name=name,
            by=self.by,
            rationale=rationale,
            rubric_version=action.rubrics.get(name, self.question.rubric_version),
        )
        if made is not None:
            made.assessment_id = key
            made.metadata = {**(made.metadata or {}), ACTION_KEY: action.id}
            self._client.log_assessment(action.trace_id, made)
            info = self._read(action.trace_id)
        return info

    def _undo(self, action: Action) -> TraceInfo:
        """Take a decision back, for good: what it had replaced holds again."""
        trace_id, target = action.trace_id, action.undoes
        info = self._read(trace_id)
        if f"{UNDONE}{target}" not in (info.tags or {}):
            self._client.set_trace_tag(trace_id, f"{UNDONE}{target}", action.id)
            info = self._read(trace_id)
        for one in decision_feedback(Trace(info, TraceData(spans=[])), self.question.name):
            if (one.metadata or {}).get(ACTION_KEY) == target:
                self._client.delete_assessment(trace_id, one.assessment_id)
        return self._read(trace_id)

    def _read(self, trace_id: str) -> TraceInfo:
        try:
            return self._client.store.get_trace_info(trace_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise TraceGone(f"Trace {trace_id} was deleted.") from None
            raise

    # -- what became of it (told by the writing thread) -----------------------------------

    def written(self, job: Job, result: Any) -> None:
        """A job is done: what is told as saved is in the store."""
        with self._lock:
            self._trouble = ""
            self._settle(job.key, job.trace_id, "saved")
            item = self._items.get(job.trace_id)
            if item is not None:
                item.info, item.skipped = result, False
                found = decision_records([Trace(result, TraceData(spans=[]))], self.question.name)
                item.decision = found[0] if found else None
            message = self._saved(job.key, job.trace_id)
        self._tell(message)

    def delayed(self, error: str) -> None:
        """Nothing is written just now."""
        with self._lock:
            waiting = [a.id for item in self._items.values() for a in item.waiting]
            self._trouble = f"Not saved yet: {error}. It is tried again."
            message = unsaved(waiting, self._trouble, retry=True)
        self._tell(message)

    def refused(self, job: Job, error: str) -> None:
        """A job will never be done."""
        with self._lock:
            if len(self._saver) <= 1:
                # This was the last: nothing is tried again any more.
                self._trouble = ""
            action = self._settle(job.key, job.trace_id, "refused")
            item = self._items.get(job.trace_id)
            if item is not None and error.endswith("was deleted."):
                item.gone = True
            message = self._refuse(action or Action(job.key, "save", job.trace_id), error)
        self._tell(message)

    def _settle(self, key: str, trace_id: str, status: str) -> Action | None:
        self._actions[key] = status
        item = self._items.get(trace_id)
        action = next((a for a in item.waiting if a.id == key), None) if item else None
        if item is not None and action is not None:
            item.waiting.remove(action)
        return action

    def _refuse(self, action: Action, error: str) -> Message:
        self._actions[action.id] = "refused"
        self._refused[action.id] = (action, error)
        return unsaved([action.id], error, retry=False)

    def _saved(self, key: str, trace_id: str) -> Message:
        item = self._items.get(trace_id)
        return {
            "type": "saved",
            "ids": [key],
            "labelled": {trace_id: self._done(item)} if item is not None else {},
        }

    def _tell(self, message: Message) -> None:
        if self.on_message is not None:
            try:
                self.on_message(message)
            except Exception:
                # A view that is gone must not end the writing.
                _log.warning("the panel could not be told what was saved", exc_info=True)

    # -- the items ----------------------------------------------------------------------

    def refresh(self) -> list[Message]:
        """Read the store again: labels and decisions made elsewhere. Returns what to send."""
        fetched = self._fetch()
        with self._lock:
            self._load(fetched)
            return [{"type": "queue", "total": len(self._items), "position": self.position}]

    def _fetch(self) -> list[Trace]:
        return fetch_traces(self._traces, spans=False, experiment=self._experiment)

    def _load(self, fetched: Sequence[Trace]) -> None:
        infos = {trace.info.trace_id: trace.info for trace in fetched}
        before = self._items
        found = {
            one.trace_id: one
            for one in differences(self._judge, fetched, scale=self.question.scale)
        }
        # What is on the screen keeps its place; what has come to differ since comes after it.
        order = [*(i for i in before if i in found), *(i for i in found if i not in before)]
        self._items = {
            i: _Item(
                infos[i],
                found[i],
                found[i].decision,
                skipped=i in before and before[i].skipped,
                waiting=before[i].waiting if i in before else [],
            )
            for i in order
        }

    # -- tables -------------------------------------------------------------------------

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, as the store holds them now; see
        `workbench.disagreements`."""
        ids = list(self._items)
        return disagreements(self._judge, ids, scale=self.question.scale)

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: ``id``, ``kind``, ``trace_id``, ``value``,
        ``rationale``, ``error``."""
        rows = []
        with self._lock:
            for key, (action, error) in self._refused.items():
                given = action.answers.get(self.question.name)
                value = None if given is None else "N/A" if given.abstain else given.value
                because = given.rationale if given else ""
                rows.append((key, action.kind, action.trace_id, value, because, error))
        columns = ["id", "kind", "trace_id", "value", "rationale", "error"]
        return pd.DataFrame(rows, columns=columns)

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written, or so long at most; whether all is written."""
        return self._saver.flush(seconds)

    def __repr__(self) -> str:
        told = self.progress
        return (
            f"<DecisionSession {self.title!r} by {self.by}: {told['labelled']} of "
            f"{told['total']} decided, {told['waiting']} not saved yet>"
        )


def _name(judge_or_name: Judge | str) -> str:
    return judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)
