"""`DecisionSession`: one person goes through the traces on which annotators differ and decides.

The counterpart of `workbench.labelling.LabelSession` for decisions: it speaks the same messages,
so that the view of one is the view of the other, and it writes in the same way: in a thread, tried
again until the store has it, told as saved only then, each action once.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench import store
from workbench.actions import Action
from workbench.adjudication import Difference, differences, disagreements, new_decision, told_scale
from workbench.answers import LabelQuestion
from workbench.contents import content
from workbench.errors import ArgumentError, ScaleError
from workbench.labels import Decision, decision_feedback, decision_records
from workbench.protocol import AROUND, PROTOCOL, answered, read_actions, unsaved, wanted
from workbench.rubrics import rubric_history
from workbench.saving import Job, Saver, TraceGone
from workbench.scale import ABSTAIN, Scale
from workbench.showing import Message
from workbench.soon import Soon
from workbench.standing import ACTION_KEY, UNDONE, assessment_id, who_and_what
from workbench.traces import as_example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

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
        self._experiment = store.experiment_id(experiment, create=False)
        self._traces = traces
        self._judge = judge_or_name
        fetched = self._fetch()
        self._rubrics = rubric_history(_name(judge_or_name), experiment=self._experiment)
        self.question = self._question(scale or told_scale(judge_or_name, fetched))
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
        place = json.dumps([store.address(), self._experiment, "decisions"])
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
        loaded = store.load_spans(self._client, [item.info for item in items])
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
            Trace(info, TraceData(spans=[])), value, name=name, by=self.by, rationale=rationale
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
        return store.fetch_traces(self._traces, spans=False, experiment=self._experiment)

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
