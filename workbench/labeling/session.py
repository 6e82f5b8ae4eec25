"""What labelling and adjudication sessions share: actions, undo, writing and the view's messages.

A session speaks JSON. The view calls ``setup()`` once and ``state()`` after each message, and
passes what the browser sends to ``receive(message)``, which answers with a list of messages. What
is written is told later, by ``on_message``, from another thread:

- ``hello`` (``pending``: actions): ``items`` around the position, and what ``act`` brings;
- ``want`` (``start``, ``count``): ``items``;
- ``act`` (``actions``): ``saved`` (``statuses`` by trace id), or ``unsaved`` (``retry``: whether it
  is tried again; see ``session.unsaved`` for what is not);
- ``reveal`` (``trace_id``): ``revealed``;
- ``refresh``: ``queue``. One that nobody asked for has ``"stay": true``;
- ``refresh`` with ``"stay": true``, by the clock: ``read`` (``wait``: seconds until the next one),
  and before it what has changed;
- ``keep`` (``trace_id``): nothing. What is offered again stays as it is;
- what cannot be done: ``problem`` (``error``, ``about``).

Items with a smaller ``stamp`` than the ``saved`` of their trace were read before it. What they have
as ``done`` is in the store (see `status_json`).
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import TraceInfo

from workbench.errors import ArgumentError, StoreError, WorkbenchError
from workbench.labeling.annotations import (
    Action,
    Item,
    annotator_key,
    item_json,
    parsed,
    plain,
    status_json,
)
from workbench.labeling.questions import LabelQuestion, with_rubric
from workbench.labeling.writer import Job, TraceDeletedError, TraceStore, Writer
from workbench.store.database import file_of, store_message

Message = dict[str, Any]

_log = logging.getLogger(__name__)


class Session:
    """Base of the sessions."""

    questions: Sequence[LabelQuestion]
    title: str
    notes: Sequence[str] = ()
    reveal = False
    scope: Sequence[str] = ()
    on_message: Callable[[Message], None] | None = None
    """Is called with each message that comes later than the answer to `receive`."""

    def __init__(self, annotator: str, store: TraceStore) -> None:
        self.annotator, self.store = annotator, store
        self.items: dict[str, Item] = {}
        self.lock = threading.RLock()
        self.writer = Writer()
        self._epoch = uuid.uuid4().hex
        # Two folders may each have a store of the same relative address.
        file = file_of(mlflow.get_tracking_uri())
        self._address = f"sqlite:///{file.absolute()}" if file else store.address
        self.waiting: dict[str, Action] = {}
        self._refused: dict[str, tuple[Action, str]] = {}
        self._trouble = ""
        self._stamp = 0

    def reload(self) -> Any:
        """Read the store again; nothing is written meanwhile."""
        raise NotImplementedError

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        """Return what writes an action; raises `WorkbenchError` for one that can't be written."""
        raise NotImplementedError

    def learn(self, info: TraceInfo) -> None:
        """Take over what the store holds of a trace now, where something is kept of it."""

    @property
    def trace_ids(self) -> list[str]:
        """The traces, in the order of the items."""
        with self.lock:
            return list(self.items)

    @property
    def position(self) -> int:
        """Where to go on: the first open item of which no answer waits, else the one that was
        skipped first, else the number of items."""
        with self.lock:
            items = list(enumerate(self.items.items()))
            waiting = {one.trace_id for one in self.waiting.values() if one.kind != "undo"}
        is_open = (n for n, (i, one) in items if one.status == "open" and i not in waiting)
        skipped = [(o.annotations.skipped_ms, n) for n, (_, o) in items if o.status == "skipped"]
        return next(is_open, min(skipped)[1] if skipped else len(items))

    @property
    def progress(self) -> dict[str, Any]:
        """Counts: ``labelled`` and ``skipped`` of ``total``, ``again`` (offered again), ``waiting``
        (not in the store yet) and ``balance`` (labels of the first question by value)."""
        with self.lock:
            items, first = self.items.values(), self.questions[0]
            status = Counter(item.status for item in items)
            # Of free text each answer is a value of its own.
            balance = self.balance(first) if first.scale else {}
            return {
                "labelled": sum(item.annotations.done for item in items),
                "skipped": status["skipped"],
                "again": sum(item.again for item in items),
                "total": len(items) - status["taken"] - status["gone"],
                "waiting": len(self.waiting),
                "balance": {first.shown(value): n for value, n in balance.items()},
            }

    def balance(self, question: LabelQuestion) -> dict[Any, int]:
        """Return the stored labels by canonical value, with all values of the scale."""
        values = question.scale.values if question.scale else ()
        answers = [item.annotations.answers.get(question.name) for item in self.items.values()]
        counts = Counter(answer.value for answer in answers if answer is not None)
        return {**dict.fromkeys(values, 0), **counts}

    @property
    def unsaved(self) -> pd.DataFrame:
        """The saves and skips that never will be written, and why: ``id``, ``kind``, ``trace_id``,
        ``answers`` (dict question -> value), ``rationale`` (dict), ``error``."""
        rows = []
        with self.lock:
            for one, error in self._refused.values():
                given = {n: "N/A" if a.abstain else a.value for n, a in one.answers.items()}
                rows.append((one.id, one.kind, one.trace_id, given, one.rationale, error))
        columns = ["id", "kind", "trace_id", "answers", "rationale", "error"]
        return pd.DataFrame(rows, columns=columns)

    def setup(self) -> Message:
        """Return what does not change; a browser keeps what is not saved under ``panel_key``."""
        where = [self._address, self.store.experiment, *self.scope, self.annotator]
        return plain(
            {
                "panel_key": annotator_key(json.dumps(where), self.questions),
                "epoch": self._epoch,
                "annotator": self.annotator,
                "title": self.title,
                "questions": [question.to_json() for question in self.questions],
                "reveal": self.reveal,
                "total": len(self.items),
            }
        )

    def state(self) -> Message:
        """Return what changes; ``lost`` counts the actions in ``unsaved``."""
        with self.lock:
            return plain(
                {
                    "position": self.position,
                    "progress": self.progress,
                    "message": self._trouble or " ".join(self.notes),
                    "lost": len(self._refused),
                }
            )

    def receive(self, message: Any) -> list[Message]:
        """Take one message of the view and answer it (see `workbench.labeling.session`)."""
        kind = message.get("type") if isinstance(message, Mapping) else None
        try:
            return plain(self.answer(kind, message))
        except Exception as error:
            _log.debug("a message could not be answered", exc_info=True)
            about = str(kind)[:80]
            return plain([{"type": "problem", "error": store_message(error), "about": about}])

    def answer(self, kind: Any, message: Any) -> list[Message]:
        if kind == "hello":
            answers = self._act(message.get("pending") or [])
            # A few: what takes a while to be prepared must not hold up the first item.
            return [*self._items(max(0, self.position - 2), 12), *answers]
        if kind == "want":
            return self._items(message["start"], message.get("count", 1))
        if kind == "act":
            return self._act(message["actions"])
        if kind == "refresh":
            return self.refresh()
        if kind == "keep":
            with self.lock:
                self.items[message["trace_id"]].again = False
            return []
        raise ArgumentError(f"A message of type {kind!r:.80} is not known.")

    def tell(self, *messages: Message) -> None:
        for message in messages:
            if self.on_message is not None:
                self.on_message(plain(message))

    def refresh(self) -> list[Message]:
        """Read the store again, with the latest rubrics, and return the messages to send."""
        self.check_store()
        with self.writer.busy:
            self.reload()
        return [self.queue_message()]

    def ask(self, questions: Iterable[LabelQuestion]) -> None:
        """Ask questions by their latest rubrics."""
        given = list(questions)
        rubrics = {one.name: self.store.rubrics(one.name) for one in given}
        with self.lock:
            self.rubrics = rubrics
            self.questions = [with_rubric(one, rubrics[one.name]) for one in given]

    def offer_again(self, trace_ids: Iterable[str] | None = None) -> list[Message]:
        """Open labelled items again, until each has a newer answer, by default those that were
        labelled under an earlier rubric; return the messages to send."""
        self.check_store()
        self.ask(self.questions)
        given = [trace_ids] if isinstance(trace_ids, str) else trace_ids
        chosen = None if given is None else set(given)
        with self.lock:
            if unknown := sorted((chosen or set()) - self.items.keys()):
                raise ArgumentError(f"trace_ids: {unknown[0]!r} is not among the items here.")
            for trace_id, item in self.items.items():
                made = item.annotations
                is_asked = made.is_earlier(self.rubrics) if chosen is None else trace_id in chosen
                item.again = item.again or (made.done and is_asked and not item.gone)
            return [self.queue_message()]

    def check_store(self) -> None:
        """Raise `StoreError` where another store is active than the session's."""
        if not self.store.is_active:
            raise StoreError(
                f"This is read from {self.store.address}, and another store is active now. "
                "Activate that one again (mlflow.set_tracking_uri)."
            )

    def queue_message(self, **more: Any) -> Message:
        with self.lock:
            total, position = len(self.items), self.position
        return {"type": "queue", "total": total, "position": position, **more}

    def _items(self, start: int, count: int) -> list[Message]:
        with self.lock:
            wanted = list(enumerate(self.items.values()))[start : start + count]
        spans = self.store.spans([item.info for _, item in wanted])
        with self.lock:
            # The items may have changed meanwhile: they are told as they are now.
            shown = [
                {"position": position, **item_json(item, spans, self.rubrics)}
                for position, item in wanted
            ]
            return [{"type": "items", "start": start, "items": shown, "stamp": self._stamp}]

    def _act(self, raw: Sequence[Any]) -> list[Message]:
        """Take actions, and return the messages about those that never will be saved."""
        answers: list[Message] = []
        for one in raw:
            try:
                action = parsed(Action, one)
            except ArgumentError as error:
                key = one.get("id") if isinstance(one, Mapping) else None
                answers.append(_unsaved(key, str(error)))
                continue
            with self.lock:
                if action.id in self.waiting:
                    continue
                try:
                    write = self.prepare(action)
                except WorkbenchError as error:
                    answers.append(self._refuse(action, str(error)))
                    continue
                self.waiting[action.id] = action
                done, failed = partial(self._written, action), partial(self._failed, action)
                self.writer.put(Job(action.trace_id, write, done, failed))
        return answers

    def _written(self, action: Action, info: TraceInfo) -> None:
        with self.lock:
            del self.waiting[action.id]
            self._refused.pop(action.id, None)
            self._trouble = ""
            if item := self.items.get(action.trace_id):
                # Also by the same answer, of which nothing may have been written.
                item.again = item.again and action.kind != "save"
                self.learn(info)
            self._stamp += 1
            statuses = {action.trace_id: status_json(item, self.rubrics)} if item else {}
            said = {"ids": [action.id], "statuses": statuses, "stamp": self._stamp}
        self.tell({"type": "saved", **said})

    def _failed(self, action: Action, error: Exception, final: bool) -> None:
        text = store_message(error)
        with self.lock:
            if not final:
                self._trouble = f"Not saved yet: {text}. It is tried again."
                messages = [_unsaved(action.id, self._trouble, retry=True)]
            else:
                del self.waiting[action.id]
                self._trouble = self._trouble if self.waiting else ""
                messages = [self._refuse(action, text)]
                item = self.items.get(action.trace_id)
                if item is not None and isinstance(error, TraceDeletedError):
                    # Else the view would come back to it for ever.
                    item.gone, item.again = True, False
                    messages.append(self.queue_message(stay=True))
        self.tell(*messages)

    def _refuse(self, action: Action, error: str) -> Message:
        if action.kind != "undo":  # of which nothing is lost: what it was to take back stays
            self._refused[action.id] = (action, error)
        return _unsaved(action.id, error)

    def close(self) -> None:
        """Nothing goes on behind a session: what waits to be written is written all the same."""

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written, ``seconds`` at most; return whether all is written."""
        return self.writer.flush(seconds)


def _unsaved(key: Any, error: str, *, retry: bool = False) -> Message:
    ids = [key] if isinstance(key, str) else []
    return {"type": "unsaved", "ids": ids, "error": error, "retry": retry}
