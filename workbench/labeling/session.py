"""What labelling and adjudication sessions share: actions, undo, writing and the view's messages.

A session speaks JSON. The view calls ``setup()`` once and ``state()`` after each message, and
passes what the browser sends to ``receive(message)``, which answers with a list of messages. More
of them come later by ``on_message``. The view sends:

- ``hello`` (``pending``: actions): answered by ``items`` around the position; the actions are
  taken as by ``act``;
- ``want`` (``start``, ``count`` up to 500, ``full``): ``items``;
- ``act`` (``actions``): later ``saved``, at once where that is known, or ``unsaved`` (``retry``
  true: it is tried again; false: it never will be saved, see ``session.unsaved``);
- ``reveal`` (``trace_id``): later ``revealed``;
- ``refresh`` and ``offer_again`` (``trace_ids``, optional): ``queue``. A ``queue`` that nobody
  asked for has ``"stay": true``.

What cannot be done, or is malformed, is answered by ``{"type": "problem", "error", "about"}``; so
is what the store has not answered within two seconds, and the answer comes later.
``{"type": "state"}`` says that nothing but the state has changed. ``items`` and ``saved`` have a
``stamp``: items with a smaller one than the ``saved`` of their trace were read before it.

An item is ``{"position", "trace_id", "inputs", "outputs", "expectations", "cuts"?, "chosen",
"done", "partial", "again", "skipped", "gone"}``. ``done`` is None or ``{"answers": {question:
{"value", "abstain"}}, "rationale": {question: text}, "changed": {question: {"value", "abstain"}},
"earlier_rubric", "elsewhere", "action"}``: what the store holds, never what waits. ``partial`` is
the same of an item on which a required question is open. ``changed`` is what was said otherwise
after the reveal. ``earlier_rubric``: some question has no answer under its current rubric. An
action may carry ``rubrics`` (question -> version shown, 0 for none).
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from mlflow.entities import Trace, TraceData, TraceInfo

from workbench.errors import ArgumentError, WorkbenchError
from workbench.labeling.annotations import UNDONE, Action, annotator_key, undone_actions
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.trace_store import TraceDeletedError, TraceStore
from workbench.labeling.writer import Job, Writer
from workbench.store.traces import store_message

Message = dict[str, Any]

PROTOCOL: Final = 1

AROUND: Final = (10, 50)
"""Items behind the position, and from it on, that a view is given when it says hello."""

MAX_ITEMS: Final = 500
"""Items that are given in one answer."""

_HISTORY: Final = 20
"""Last actions that the view can take back though it has not seen them."""

_LATER: Final = {
    "want": "the items come when it does",
    "refresh": "the queue is read again when it does",
    "offer_again": "they are offered again when it does",
}

_log = logging.getLogger(__name__)


@dataclass
class SessionItem:
    """What the items of all sessions have: the trace as last read, the actions that are not in the
    store yet, and whether the trace was deleted."""

    info: TraceInfo
    waiting: list[Action] = field(default_factory=list, kw_only=True)
    gone: bool = field(default=False, kw_only=True)


ItemT = TypeVar("ItemT", bound=SessionItem)


class Session(Generic[ItemT]):
    """Base of the sessions.

    Parameters
    ----------
    on_message
        Called with each message that comes later than the answer to `receive`, from another
        thread. May be set afterwards.
    store
        What is read from and written to.
    patience
        Seconds that a view waits for the store before it is told that there is no answer yet.
    """

    title: str
    reveal = False

    def __init__(
        self,
        *,
        on_message: Callable[[Message], None] | None,
        store: TraceStore,
        patience: float,
    ) -> None:
        self.on_message = on_message
        self._store = store
        self._lock = threading.RLock()
        self._epoch = uuid.uuid4().hex
        self._saved_ids: set[str] = set()
        self._refused: dict[str, tuple[Action, str]] = {}
        self._history: dict[str, str] = {}
        self._unwritten: dict[str, Job] = {}
        self._trouble = ""
        self._stamp = 0
        self._patience = patience
        self._writer = Writer(self)

    # -- what the sessions do differently ------------------------------------------------

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else a skipped one, else the number of items."""
        raise NotImplementedError

    @property
    def progress(self) -> dict[str, Any]:
        """How far it is."""
        raise NotImplementedError

    def refresh(self) -> list[Message]:
        """Read the store again, and return the messages to send."""
        raise NotImplementedError

    def _find(self, trace_id: str) -> ItemT | None:
        raise NotImplementedError

    def _ids(self) -> Sequence[str]:
        """The trace ids in the order of the items."""
        raise NotImplementedError

    def _item_json(self, trace: Trace, *, full: bool) -> Message:
        raise NotImplementedError

    def _done_json(self, trace_id: str) -> Message | None:
        """What the store holds of an item that is done."""
        raise NotImplementedError

    def _write(self, action: Action) -> Callable[[], TraceInfo]:
        """Return what writes an action; raises `WorkbenchError` for one that can't be written."""
        raise NotImplementedError

    def _learn(self, info: TraceInfo) -> None:
        """Take over what the store holds of a trace now."""
        raise NotImplementedError

    def _update(self, item: ItemT) -> None:
        """Set the status of an item whose waiting actions have changed."""

    def _check_undo(self, action_id: str, trace_id: str) -> None:
        """Raise `WorkbenchError` where an action can't be taken back."""

    def _handlers(self) -> dict[str, Callable[[Mapping[str, Any]], list[Message]]]:
        return {
            "hello": self._hello,
            "want": self._want,
            "act": lambda message: self._act(message.get("actions")),
            "refresh": lambda _: self._soon(self.refresh, "refresh"),
        }

    def _setup(
        self, annotator: str, who: str, questions: Sequence[LabelQuestion], *scope: str
    ) -> Message:
        """``panel_key`` names the work: a browser keeps under it what is not saved yet."""
        place = json.dumps([self._store.address, self._store.experiment, *scope])
        return {
            "protocol": PROTOCOL,
            "panel_key": f"{annotator_key(place, ())}-{annotator_key(who, questions)}",
            "epoch": self._epoch,
            "annotator": annotator,
            "title": self.title,
            "questions": [question.to_json() for question in questions],
            "reveal": self.reveal,
            "read_only": False,
            "total": len(self._ids()),
        }

    # -- messages -----------------------------------------------------------------------

    def receive(self, message: Any) -> list[Message]:
        """Take one message of the view and answer it (see `workbench.labeling.session`).

        Never raises for what the message holds, nor for a store that can't be read.
        """
        kind = message.get("type") if isinstance(message, Mapping) else None
        handler = self._handlers().get(kind) if isinstance(kind, str) else None
        if handler is None:
            return [problem(f"A message of type {kind!r:.80} is not known.", kind)]
        try:
            return handler(message)
        except WorkbenchError as error:
            return [problem(str(error), kind)]
        except Exception as error:
            _log.debug("a message could not be answered", exc_info=True)
            return [problem(f"This could not be done: {store_message(error)}", kind)]

    def state(self) -> Message:
        """Return what changes: position, progress, whether the store answers, how many actions
        are ``lost`` (see ``unsaved``), and the ``history``.

        The history is what the annotator did last, here or anywhere, the oldest first:
        ``{"id", "trace_id", "kind", "position", "kept"}``. It can be taken back unless ``kept``.
        """
        with self._lock:
            return {
                "position": self.position,
                "progress": self.progress,
                "message": self._trouble or self._notes_text(),
                "store_ok": not self._trouble,
                "lost": len(self._refused),
                "history": [
                    self._history_json(key, trace_id)
                    for key, trace_id in list(self._history.items())[-_HISTORY:]
                    if self._find(trace_id) and key not in self._refused
                ],
            }

    def _notes_text(self) -> str:
        return ""

    def _history_json(self, action_id: str, trace_id: str) -> Message:
        raise NotImplementedError

    def _hello(self, message: Mapping[str, Any]) -> list[Message]:
        answers = self._act(message.get("pending") or [])
        start = max(0, self.position - AROUND[0])
        return [*self._items_soon(start, sum(AROUND)), *answers]

    def _want(self, message: Mapping[str, Any]) -> list[Message]:
        start: Any = message.get("start")
        count: Any = message.get("count", 1)
        for given in (start, count):
            if not isinstance(given, int) or isinstance(given, bool) or given < 0:
                raise ArgumentError(f"start and count must be counts, not {given!r:.40}.")
        return self._items_soon(start, min(count, MAX_ITEMS), full=message.get("full") is True)

    def _items_soon(self, start: int, count: int, *, full: bool = False) -> list[Message]:
        return self._soon(lambda: [self._items_message(start, count, full=full)], "want")

    def _items_message(self, start: int, count: int, *, full: bool) -> Message:
        with self._lock:
            items = [self._find(i) for i in self._ids()[start : start + count]]
        infos = [item.info for item in items if item is not None]
        spans = self._store.spans(infos)
        with self._lock:
            # The queue may have changed meanwhile: items are told as they are now.
            shown = [
                self._item_json(Trace(item.info, spans.get(i) or TraceData(spans=[])), full=full)
                for i in (info.trace_id for info in infos)
                if (item := self._find(i)) is not None
            ]
            return {"type": "items", "start": start, "items": shown, "stamp": self._stamp}

    def _soon(self, read: Callable[[], list[Message]], about: str) -> list[Message]:
        """Return what ``read`` answers, or a problem, and send the answer later: the kernel must
        not wait for a store that does not answer."""
        answer: Future[list[Message]] = Future()

        def run() -> None:
            try:
                messages = read()
            except Exception as error:
                messages = [problem(f"The store cannot be read: {store_message(error)}", about)]
            if answer.set_running_or_notify_cancel():
                answer.set_result(messages)
            else:
                self._tell(*messages)

        threading.Thread(target=run, name=about, daemon=True).start()
        try:
            return answer.result(self._patience)
        except FutureTimeoutError:
            if not answer.cancel():
                return answer.result()
        return [problem(f"The store has not answered yet; {_LATER[about]}.", about)]

    def _tell(self, *messages: Message) -> None:
        for message in messages:
            if self.on_message is not None:
                try:
                    self.on_message(message)
                except Exception:
                    # A view that is gone must not end the writing.
                    _log.warning("the view could not be told", exc_info=True)

    # -- actions ------------------------------------------------------------------------

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
                    answers.append(unsaved(ids, str(error), retry=False))
                else:
                    answers += self._take(action)
        return answers

    def _take(self, action: Action) -> list[Message]:
        if action.id in self._saved_ids:
            return [self._saved([action.id], [action.trace_id])]
        if action.id in self._refused:
            return [unsaved([action.id], self._refused[action.id][1], retry=False)]
        if action.id in self._unwritten:
            return []
        try:
            if action.kind == "undo":
                # What is meant is settled now, so that two in a row take back two actions.
                action = self._with_target(action)
            write = self._write(action)
        except WorkbenchError as error:
            return [self._refuse(action, str(error))]
        if action.kind != "undo":
            self._history.setdefault(action.id, action.trace_id)
        if (item := self._find(action.trace_id)) is not None:
            item.waiting.append(action)
            self._update(item)
        job = self._unwritten[action.id] = Job(action.id, action.trace_id, write)
        self._writer.put(job)
        return [unsaved([action.id], self._trouble, retry=True)] if self._trouble else []

    def _with_target(self, undo: Action) -> Action:
        """The undo with the action that it takes back and its trace."""
        items = [item for i in self._ids() if (item := self._find(i)) is not None]
        if undo.undoes is None:
            for item in items:
                for target, by in undone_actions(item.info).items():
                    if by == undo.id:  # sent again: the store knows what it took back
                        return _aimed(undo, target, item.info.trace_id)
        taken_back = {a.undoes for item in items for a in item.waiting if a.kind == "undo"}
        for key, trace_id in reversed(self._history.items()):
            if key in taken_back or key in self._refused:
                continue
            if undo.undoes in (None, key):
                self._check_undo(key, trace_id)
                return _aimed(undo, key, trace_id)
        if undo.undoes is not None and undo.trace_id:
            return undo
        raise ArgumentError("There is nothing to take back.")

    def _refuse(self, action: Action, error: str) -> Message:
        self._refused[action.id] = (action, error)
        return unsaved([action.id], error, retry=False)

    def _saved(self, ids: list[str], trace_ids: Iterable[str]) -> Message:
        labelled = {i: self._done_json(i) for i in trace_ids if self._find(i) is not None}
        return {"type": "saved", "ids": ids, "labelled": labelled, "stamp": self._stamp}

    # -- outcome of writing (called by the writer's thread) ------------------------------

    def written(self, job: Job, result: Any) -> None:
        """Record that the store has an action, and tell the view."""
        with self._lock:
            self._settle(job)
            self._saved_ids.add(job.key)
            self._trouble = ""
            if self._find(job.trace_id) is not None:
                self._learn(result)
            self._forget_undone(result)
            self._stamp += 1
            message = self._saved([job.key], [job.trace_id])
        self._tell(message)

    def delayed(self, job: Job, error: str) -> None:
        """Tell the view that nothing is written just now."""
        with self._lock:
            if job.key not in self._unwritten:
                return  # it was written in the meantime
            self._trouble = f"Not saved yet: {error}. It is tried again."
            message = unsaved([*self._unwritten], self._trouble, retry=True)
        self._tell(message)

    def refused(self, job: Job, error: BaseException) -> None:
        """Tell the view that an action will never be written."""
        with self._lock:
            action = self._settle(job) or Action(id=job.key, kind="save", trace_id=job.trace_id)
            if not self._unwritten:
                self._trouble = ""
            item = self._find(job.trace_id)
            if item is not None:
                item.gone = item.gone or isinstance(error, TraceDeletedError)
                self._update(item)
            message = self._refuse(action, store_message(error))
        self._tell(message)

    def _settle(self, job: Job) -> Action | None:
        """Take a job's action from those that wait, and return it."""
        self._unwritten.pop(job.key, None)
        item = self._find(job.trace_id)
        action = next((a for a in item.waiting if a.id == job.key), None) if item else None
        if item is not None and action is not None:
            item.waiting.remove(action)
        return action

    def _forget_undone(self, info: TraceInfo) -> None:
        if any(tag.startswith(UNDONE) for tag in info.tags or {}):
            for action_id in undone_actions(info):
                self._history.pop(action_id, None)

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written, ``seconds`` at most; return whether all is written."""
        return self._writer.flush(seconds)

    def close(self) -> None:
        """End what goes on in the background; what waits to be written is written."""


def _aimed(undo: Action, target: str, trace_id: str) -> Action:
    return undo.model_copy(update={"undoes": target, "trace_id": trace_id})


def unsaved(ids: Sequence[str], error: str, *, retry: bool) -> Message:
    """Return the message that actions are not saved yet (``retry``), or never will be."""
    return {"type": "unsaved", "ids": list(ids), "error": error, "retry": retry}


def problem(error: str, about: Any) -> Message:
    """Return the message that a message of type ``about`` could not be answered."""
    return {"type": "problem", "error": error, "about": str(about)[:80] if about else None}
