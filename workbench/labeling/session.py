"""What labelling and adjudication sessions share: actions, undo, writing and the view's messages.

A session speaks JSON. The view calls ``setup()`` once and ``state()`` after each message, and
passes what the browser sends to ``receive(message)``. What is known at once is answered by a list
of messages, the rest comes later by ``on_message``. The view sends:

- ``hello`` (``pending``: actions): later ``items`` around the position; the actions are taken as
  by ``act``;
- ``want`` (``start``, ``count`` up to 500, ``full``): later ``items``;
- ``act`` (``actions``): later ``saved``, or ``unsaved`` (``retry`` true: it is tried again; false:
  it never will be saved, see ``session.unsaved``);
- ``reveal`` (``trace_id``): later ``revealed``;
- ``refresh`` and ``offer_again`` (``trace_ids``, optional): later ``queue``. A ``queue`` that
  nobody asked for has ``"stay": true``.

What cannot be done, or is malformed, is answered by ``{"type": "problem", "error", "about"}``.
``items`` and ``saved`` have a ``stamp``: items with a smaller one than the ``saved`` of their trace
were read before it.

An item is ``{"position", "trace_id", "inputs", "outputs", "expectations", "cuts"?, "chosen",
"done", "partial", "again", "skipped", "gone"}``. ``done`` is None or ``{"answers": {question:
{"value", "abstain"}}, "rationale": {question: text}, "changed": {question: {"value", "abstain"}},
"earlier_rubric", "elsewhere", "decided_by"}``: what the store holds, never what waits. ``partial``
is the same of an item on which a required question is open. ``changed`` is what was said otherwise
after the reveal. ``earlier_rubric``: some question has no answer under its current rubric. An
action may carry ``rubrics`` (question -> version shown, 0 for none).
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import pandas as pd
from mlflow.entities import Trace, TraceData, TraceInfo

from workbench.errors import ArgumentError, ScaleError, WorkbenchError
from workbench.labeling.annotations import Action, Item, annotator_key, next_position
from workbench.labeling.questions import LabelQuestion, with_rubric
from workbench.labeling.writer import Job, TraceDeletedError, TraceStore, Writer
from workbench.scale import ABSTAIN
from workbench.store.labels import folded
from workbench.store.tables import has_lone_surrogate
from workbench.store.traces import as_example, store_message

Message = dict[str, Any]

AROUND: Final = (10, 50)
"""Items behind the position, and from it on, that a view is given when it says hello."""

MAX_ITEMS: Final = 500
"""Items that are given in one answer."""

CUT: Final = 200_000
"""Characters of inputs, outputs or expectations that are sent unless all of it is asked for."""

_SLOW, _RECENT, _DEEPEST = 3.0, 30, 60

_log = logging.getLogger(__name__)


class Session:
    """Base of the sessions.

    Parameters
    ----------
    annotator, store
        Who acts, and what is read from and written to.
    on_message
        Called with each message that comes later than the answer to `receive`, from another
        thread. May be set afterwards.
    """

    questions: Sequence[LabelQuestion]
    title: str
    reveal = False
    scope: Sequence[str] = ()

    def __init__(
        self, annotator: str, store: TraceStore, on_message: Callable[[Message], None] | None
    ) -> None:
        self.annotator, self.store = annotator, store
        self.on_message = on_message
        self.items: dict[str, Item] = {}
        self.lock = threading.RLock()
        self.writer = Writer()
        self._epoch = uuid.uuid4().hex
        self._waiting: dict[str, Action] = {}
        self._refused: dict[str, tuple[Action, str]] = {}
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._trouble = ""
        self._stamp = 0

    # -- what the sessions do differently ------------------------------------------------

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the session."""
        return ()

    def reload(self) -> None:
        """Read the store again; nothing is written meanwhile."""
        raise NotImplementedError

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        """Return what writes an action; raises `WorkbenchError` for one that can't be written."""
        raise NotImplementedError

    def learn(self, info: TraceInfo) -> None:
        """Take over what the store holds of a trace after an action was written."""
        raise NotImplementedError

    def more_of(self, trace_id: str) -> Message:
        """Return what an item has besides what all items have."""
        return {}

    # -- how far it is ------------------------------------------------------------------

    @property
    def trace_ids(self) -> list[str]:
        """The traces, in the order of the items."""
        with self.lock:
            return list(self.items)

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else the one that was skipped first, else the
        number of items."""
        with self.lock:
            return next_position(self.items)

    @property
    def progress(self) -> dict[str, Any]:
        """Counts: ``labelled`` and ``skipped`` of ``total``, ``again`` (offered again), ``waiting``
        (not in the store yet), ``balance`` (labels by value, of the first question), ``per_hour``
        and ``seconds_left`` (None where not known)."""
        with self.lock:
            items = self.items.values()
            status = Counter(item.status for item in items)
            first = self.questions[0]
            seconds = sum(self._seconds) / len(self._seconds) if self._seconds else None
            left = status["open"] + status["skipped"]
            return {
                "labelled": sum(item.annotations.done for item in items),
                "skipped": status["skipped"],
                "again": sum(item.again for item in items),
                "total": len(items),
                "waiting": len(self._waiting),
                "balance": {first.shown(v): count for v, count in self.balance(first).items()},
                "per_hour": round(3600 / seconds, 1) if seconds else None,
                "seconds_left": round(left * seconds, 1) if seconds else None,
            }

    def balance(self, question: LabelQuestion) -> dict[Any, int]:
        """Return the stored labels by canonical value, with all values of the scale."""
        values = question.scale.values if question.scale else ()
        answers = [item.annotations.answers.get(question.name) for item in self.items.values()]
        counts = Counter(answer.value for answer in answers if answer is not None)
        return {**dict.fromkeys(values, 0), **counts}

    @property
    def unsaved(self) -> pd.DataFrame:
        """What will never be written, and why: ``id``, ``kind``, ``trace_id``, ``answers`` (dict
        question -> value), ``rationale`` (dict), ``error``."""
        columns = ["id", "kind", "trace_id", "answers", "rationale", "error"]
        rows = []
        with self.lock:
            for one, error in self._refused.values():
                given = {n: "N/A" if a.abstain else a.value for n, a in one.answers.items()}
                reasons = {name: one.reason(name) for name in given}
                rows.append((one.id, one.kind, one.trace_id, given, reasons, error))
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        progress = self.progress
        return (
            f"<{type(self).__name__} {self.title!r} by {self.annotator}: {progress['labelled']} of "
            f"{progress['total']} done, {progress['waiting']} not saved yet>"
        )

    # -- messages -----------------------------------------------------------------------

    def setup(self) -> Message:
        """Return what does not change while one labels.

        ``panel_key`` names the work: a browser keeps under it what is not saved yet.
        """
        place = json.dumps([self.store.address, self.store.experiment, *self.scope])
        who = annotator_key(folded(self.annotator), self.questions)
        return {
            "panel_key": f"{annotator_key(place, ())}-{who}",
            "epoch": self._epoch,
            "annotator": self.annotator,
            "title": self.title,
            "questions": [question.to_json() for question in self.questions],
            "reveal": self.reveal,
            "total": len(self.items),
        }

    def state(self) -> Message:
        """Return what changes: position, progress, whether the store answers, and how many actions
        are ``lost`` (see ``unsaved``)."""
        with self.lock:
            trouble = self._trouble
            if self._waiting and time.monotonic() - self.writer.began > _SLOW:
                trouble = trouble or "Not saved yet: the store has not answered yet."
            return {
                "position": self.position,
                "progress": self.progress,
                "message": trouble or " ".join(self.notes),
                "store_ok": not trouble,
                "lost": len(self._refused),
            }

    def receive(self, message: Any) -> list[Message]:
        """Take one message of the view and answer it (see `workbench.labeling.session`).

        Never raises for what the message holds, nor for a store that can't be read.
        """
        kind = message.get("type") if isinstance(message, Mapping) else None
        try:
            return self.answer(kind, message)
        except Exception as error:
            _log.debug("a message could not be answered", exc_info=True)
            return [problem(error, kind)]

    def answer(self, kind: Any, message: Any) -> list[Message]:
        """Answer one message of the view, or raise."""
        if kind == "hello":
            answers = self._act(message.get("pending") or [])
            start = max(0, self.position - AROUND[0])
            self._later(kind, lambda: self._items(start, sum(AROUND)))
            return answers
        if kind == "want":
            start, count, full = message["start"], message.get("count", 1), message.get("full")
            self._later(kind, lambda: self._items(start, min(count, MAX_ITEMS), full=bool(full)))
        elif kind == "act":
            return self._act(message["actions"])
        elif kind == "refresh":
            self._later(kind, self.refresh)
        elif kind == "offer_again":
            self._later(kind, lambda: self.offer_again(message.get("trace_ids")))
        else:
            raise ArgumentError(f"A message of type {kind!r:.80} is not known.")
        return []

    def _later(self, about: str, read: Callable[[], list[Message]]) -> None:
        """Tell what ``read`` answers: the kernel must not wait for the store."""

        def run() -> None:
            try:
                messages = read()
            except Exception as error:
                messages = [problem(error, about)]
            self.tell(*messages)

        threading.Thread(target=run, name=about, daemon=True).start()

    def tell(self, *messages: Message) -> None:
        """Send messages to the view."""
        for message in messages:
            if self.on_message is not None:
                self.on_message(message)

    def refresh(self) -> list[Message]:
        """Read the store again, and return the messages to send: ``queue``.

        New traces join the items, those that are no longer among them leave, labels and decisions
        made elsewhere count, the rubric is the latest.
        """
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
        """Open labelled items again, until each has a newer answer, and return the messages to
        send: ``queue``. By default those that were labelled under an earlier rubric.

        A new label replaces the first unless the verdict was seen. Then it stays beside the
        first, which agreement is measured on, as a change of it (``changed_to`` in `labels`).
        """
        self.ask(self.questions)
        chosen = None if trace_ids is None else set(trace_ids)
        with self.lock:
            for trace_id, item in self.items.items():
                done = self._done(item)
                if done and (done["earlier_rubric"] if chosen is None else trace_id in chosen):
                    item.again = True
                    item.update()
            return [self.queue_message()]

    def queue_message(self, **more: Any) -> Message:
        """Return the message that the items have changed: the view forgets what it holds and asks
        again."""
        with self.lock:
            total, position = len(self.items), self.position
        return {"type": "queue", "total": total, "position": position, **more}

    def saved_message(self, ids: Iterable[str], trace_ids: Iterable[str]) -> Message:
        """Return the message that actions are saved, and what the store holds of their traces."""
        self._stamp += 1
        items = {i: self.items[i] for i in trace_ids if i in self.items}
        labelled = {
            i: self._answers(one) if one.annotations.done else None for i, one in items.items()
        }
        return {"type": "saved", "ids": [*ids], "labelled": labelled, "stamp": self._stamp}

    def _items(self, start: int, count: int, *, full: bool = False) -> list[Message]:
        with self.lock:
            infos = [item.info for item in [*self.items.values()][start : start + count]]
        spans = self.store.spans(infos)
        with self.lock:
            # The items may have changed meanwhile: they are told as they are now.
            ids = [info.trace_id for info in infos if info.trace_id in self.items]
            shown = [self._item(i, spans.get(i) or TraceData(spans=[]), full=full) for i in ids]
            return [{"type": "items", "start": start, "items": shown, "stamp": self._stamp}]

    def _item(self, trace_id: str, spans: TraceData, *, full: bool) -> Message:
        item = self.items[trace_id]
        answers, draw = self._answers(item), item.draw
        return {
            "position": item.position,
            "trace_id": trace_id,
            **content(Trace(item.info, spans), full=full),
            "chosen": asdict(draw) if draw else {"how": item.how, "probability": None},
            "done": self._done(item),
            "partial": None if item.annotations.done else answers,
            "again": item.again,
            # To a view what others have done is like what was put off: it is not offered.
            "skipped": item.status in ("skipped", "taken"),
            "gone": item.gone,
            **self.more_of(trace_id),
        }

    def _done(self, item: Item) -> Message | None:
        return self._answers(item) if item.annotations.done else None

    def _answers(self, item: Item) -> Message | None:
        """What the store holds of the annotator's answers."""
        answers, changed = item.annotations.answers, item.annotations.changed
        if not answers:
            return None
        return {
            "answers": {name: _answer(one.value) for name, one in answers.items()},
            "rationale": {name: one.label.rationale or "" for name, one in answers.items()},
            "changed": {name: _answer(one.value) for name, one in changed.items()},
            "earlier_rubric": any(
                self.rubrics[name].is_earlier(one.label)
                for name, one in {**answers, **changed}.items()
            ),
            "elsewhere": all(one.action is None for one in answers.values()),
            "decided_by": next(iter(answers.values())).label.annotator,
        }

    # -- actions ------------------------------------------------------------------------

    def _act(self, raw: Sequence[Any]) -> list[Message]:
        """Take actions, and return the messages about those that never will be saved."""
        answers: list[Message] = []
        for one in raw:
            try:
                action = Action.parse(one)
            except ArgumentError as error:
                key = one.get("id") if isinstance(one, Mapping) else None
                answers.append(_unsaved(key, str(error)))
                continue
            with self.lock:
                try:
                    self._take(action)
                except WorkbenchError as error:
                    answers.append(self._refuse(action, str(error)))
        return answers

    def _take(self, action: Action) -> None:
        if action.id in self._waiting:
            return
        write = self.prepare(action)
        self._waiting[action.id] = action
        if (item := self.items.get(action.trace_id)) is not None:
            item.waiting.append(action)
            item.update()
        done, failed = partial(self._written, action), partial(self._failed, action)
        self.writer.put(Job(action.trace_id, write, done, failed))

    def _written(self, action: Action, info: TraceInfo) -> None:
        with self.lock:
            self._settle(action)
            self._refused.pop(action.id, None)
            self._trouble = ""
            if action.kind == "save" and action.seconds:
                self._seconds.append(action.seconds)
            if action.trace_id in self.items:
                self.learn(info)
            message = self.saved_message([action.id], [action.trace_id])
        self.tell(message)

    def _failed(self, action: Action, error: Exception, final: bool) -> None:
        text = store_message(error)
        with self.lock:
            if not final:
                self._trouble = f"Not saved yet: {text}. It is tried again."
                messages = [_unsaved(action.id, self._trouble, retry=True)]
            else:
                item = self.items.get(action.trace_id)
                if item is not None and isinstance(error, TraceDeletedError):
                    item.gone = True
                self._settle(action)
                self._trouble = self._trouble if self._waiting else ""
                messages = [self._refuse(action, text)]
                if item is not None and item.gone:
                    # Else the view would come back to it for ever.
                    messages.append(self.queue_message(stay=True))
        self.tell(*messages)

    def _settle(self, action: Action) -> None:
        """Take an action from those that wait."""
        del self._waiting[action.id]
        if (item := self.items.get(action.trace_id)) is not None:
            item.waiting = [one for one in item.waiting if one.id != action.id]
            item.update()

    def _refuse(self, action: Action, error: str) -> Message:
        self._refused[action.id] = (action, error)
        return _unsaved(action.id, error)

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written, ``seconds`` at most; return whether all is written."""
        return self.writer.flush(seconds)


def _unsaved(key: Any, error: str, *, retry: bool = False) -> Message:
    ids = [key] if isinstance(key, str) else []
    return {"type": "unsaved", "ids": ids, "error": error, "retry": retry}


def problem(error: Exception, about: Any) -> Message:
    """Return the message that a message of type ``about`` could not be answered."""
    text = store_message(error)
    if not isinstance(error, WorkbenchError):
        text = f"This could not be done: {text}"
    return {"type": "problem", "error": text, "about": str(about)[:80] if about else None}


def _answer(value: Any) -> Message:
    abstain = value is ABSTAIN
    return {"value": None if abstain else value, "abstain": abstain}


def canonical(question: LabelQuestion, raw: Any) -> Any:
    """Return a stored value on the question's scale; as it is where it lies off it."""
    try:
        return question.read(raw)
    except ScaleError:
        return raw


def content(trace: Trace, *, full: bool = False) -> Message:
    """Return inputs, outputs and expectations as JSON.

    What is longer than `CUT` is cut unless ``full``, as text, which is JSON where it is no text;
    ``cuts`` then maps its name to its length in characters.
    """
    example = as_example(trace)
    cuts: dict[str, int] = {}
    shown: Message = {}
    for name in ("inputs", "outputs", "expectations"):
        shown[name] = value = plain(getattr(example, name))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > CUT and not full:
            shown[name], cuts[name] = text[:CUT], len(text)
    return {**shown, "cuts": cuts} if cuts else shown


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON that a browser reads without loss.

    Lone surrogates are replaced, integers beyond 2**53 and floats that are not finite become text,
    and so does what lies deeper than 60 levels.
    """
    if isinstance(value, (dict, list, tuple)):
        if depth >= _DEEPEST:
            return plain(json.dumps(value, default=str))
        if isinstance(value, dict):
            return {plain(str(key)): plain(one, depth + 1) for key, one in value.items()}
        return [plain(one, depth + 1) for one in value]
    is_exact = isinstance(value, int) and abs(value) < 2**53
    if value is None or is_exact or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    if has_lone_surrogate(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
