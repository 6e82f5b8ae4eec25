"""`LabelSession` and `AdjudicationSession`: labelling and deciding without a widget."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import partial
from typing import Any

import pandas as pd
from mlflow.entities import Feedback, TraceInfo
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.errors import ArgumentError, StoreError
from workbench.formatting import check_text
from workbench.judging.verdicts import Recorded
from workbench.labeling.annotations import (
    ACTION_KEY,
    SECONDS_KEY,
    Action,
    Annotations,
    Item,
    canonical,
    read_annotations,
    revealed_tag,
    undone_actions,
    without_spans,
)
from workbench.labeling.ordering import usable_verdicts
from workbench.labeling.questions import LabelQuestion, read_answers, session_questions
from workbench.labeling.queue import Assign, LabelQueue, Workload, read_workload
from workbench.labeling.review_queue import ReviewQueue
from workbench.labeling.session import Message, Session
from workbench.labeling.writer import Job, TraceStore, save, skip, take_back, write_once
from workbench.pairing.adjudication import differences, disagreements, new_decision
from workbench.scale import ABSTAIN, Scale
from workbench.store.assessments import now_ms
from workbench.store.database import store_message
from workbench.store.labels import Label, decision_records, label_records, name_of, same_person
from workbench.store.schemas import known_scale

_DRAW = ["chosen", "probability", "draw", "pool"]
_COLUMNS = [
    "trace_id", "question", "value", "rationale", "annotator", *_DRAW, "seconds", "at",
    "saved", "rubric_version", "after_verdict", "changed_to", "elsewhere",
]  # fmt: skip

_log = logging.getLogger(__name__)


class LabelSession(Session):
    """The labelling of one annotator on one or several questions (see `workbench.LabelPanel`).

    ``on_message`` is called, from another thread, with each message that a view must get later. A
    view asks for what was done elsewhere every ``refresh_every`` seconds, less often where
    reading takes long.
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
        check_text("annotator", annotator)
        self._judge, self._traces = judge_or_name, traces
        self.reveal, self._refresh_every = reveal, refresh_every
        left_out: list[str] = []
        # Where it is settled who labels what, or how many label an item, all have one order, so
        # that what several label can be compared soon. Elsewhere they would do the same items.
        in_common = assign is not None
        if isinstance(traces, ReviewQueue):
            in_common = in_common or bool(traces.annotators) or traces.each > 1
            experiment = experiment or traces.experiment_id
            if judge_or_name is None and questions is None:
                questions = traces.questions
                left_out = traces.left_out
        super().__init__(annotator, store or TraceStore(experiment))
        self.on_message = on_message
        self._read = partial(read_workload, self.store, annotator, traces, assign)
        work = self._read()
        seen, where = [*map(without_spans, work.infos.values())], self.store.experiment
        self.ask(session_questions(judge_or_name, questions, scale, seen, where))
        titles = [one.title or one.name for one in self.questions]
        self.title = title or (titles[0] if len(titles) == 1 else f"{len(titles)} questions")
        given: dict[str, Any] = {"order": order, "seed": seed, "random_share": random_share}
        self._queue = LabelQueue(
            self.questions, annotator, judge=judge_or_name, in_common=in_common, **given
        )
        self.items = self._queue.items
        self._take_over(work)
        self.notes = list(self._queue.notes)
        if left_out:
            names = ", ".join(map(repr, left_out))
            self.notes.append(f"Asked in MLflow's page only, for expectations or lists: {names}.")

    def answer(self, kind: Any, message: Any) -> list[Message]:
        if kind == "reveal":
            self._reveal(message["trace_id"])
            return []
        if kind == "refresh" and message.get("stay"):
            return [self._read_in_time()]
        return super().answer(kind, message)

    def setup(self) -> Message:
        return {**super().setup(), "refresh_every": self._refresh_every}

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        store, questions, annotator = self.store, self.questions, self.annotator
        if action.kind == "undo":
            return lambda: take_back(store, action, questions, annotator)
        if action.kind == "skip":
            draw = self._queue.record_draw(action.trace_id)
            return lambda: skip(store, action, questions, annotator, draw)
        item = self.items.get(action.trace_id)
        given = read_answers(questions, action.answers, item.annotations.answers if item else ())
        draw = self._queue.record_draw(action.trace_id)
        return lambda: save(store, action, given, annotator, draw)

    def learn(self, info: TraceInfo) -> None:
        self._queue.learn(info)

    def _reveal(self, trace_id: str) -> None:
        if not self.reveal:
            raise ArgumentError("Verdicts are not shown in this session (reveal=False).")
        with self.lock:
            item = self.items.get(trace_id)
            waits = any(action.trace_id == trace_id for action in self.waiting.values())
            if item is None or item.status != "done" or waits:
                raise ArgumentError("The verdict is shown once your own label is saved.")

        def failed(error: Exception, final: bool) -> None:
            if final:
                self.tell({"type": "problem", "error": store_message(error), "about": "reveal"})

        self.writer.put(Job(trace_id, lambda: self._revealed(trace_id), self.tell, failed, tries=3))

    def _revealed(self, trace_id: str) -> Message:
        """Record that the annotator sees them, and return what the judge and others say."""
        info = self.store.get(trace_id)
        stored = read_annotations(info, self.questions, self.annotator)
        if not stored.done or stored.actions & undone_actions(info):
            raise StoreError("The verdict is shown once your own label is saved.")
        self.store.record_look(info, self.questions, self.annotator)
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
        (usable,) = usable_verdicts({info.trace_id: info}, question, self._judge).values()
        return _said(question, usable[-1]) if usable else None

    def _take_over(self, work: Workload) -> bool:
        with self.lock:
            has_changed = self._queue.take_over(work)
        if (items := work.queued) is not None:
            write = partial(self._traces.sync, items, by=self.annotator)
            self.writer.put(Job("status", write, lambda _: None, self._lag, tries=3))
        return has_changed

    def _lag(self, error: Exception, final: bool) -> None:
        """What fails for good is done at the next reading."""
        if final:
            name, text = self._traces.name, store_message(error)
            _log.warning("The queue %r in MLflow's page lags behind: %s", name, text)

    def reload(self) -> bool:
        # Of traces that are named, some may have been deleted since.
        work = self._read(missing_ok=True)
        self.ask(self.questions)
        return self._take_over(work)

    def reread(self) -> None:
        """Read the store again, and tell the view if anything has changed."""
        with self.writer.busy:
            asked = self.questions
            has_changed = self.reload()
        if has_changed or self.questions != asked:  # the setup goes with it
            self.tell(self.queue_message(stay=True))

    def _read_in_time(self) -> Message:
        """Read the store again if that is possible; the answer says when to ask for it again."""
        began = time.monotonic()
        try:
            if self.store.is_active:
                self.reread()
        except Exception:
            _log.debug("the store could not be read again", exc_info=True)
        # A twentieth of the time at most is spent on reading.
        wait = max(self._refresh_every or 0.0, 20 * (time.monotonic() - began))
        return {"type": "read", "wait": wait}

    @property
    def labels(self) -> pd.DataFrame:
        """The annotator's labels in the store, in the order in which they were given, one row a
        trace and question: the label that counts, ``value`` canonical or None for "can't judge".

        ``chosen``, ``probability``, ``draw`` and ``pool`` say how the item was chosen (see
        `workbench.sampled_prevalence`). ``after_verdict`` is True where the only label was given
        after a look at the verdict; ``changed_to`` is what was said otherwise after the look at it.
        ``saved`` is always True, since what waits to be written is not listed.
        """
        rows = []
        with self.lock:
            for item in self.items.values():
                draw = dict(zip(_DRAW, astuple(item.draw), strict=True)) if item.draw else {}
                for name, answer in item.annotations.answers.items():
                    changed = item.annotations.changed.get(name)
                    row = {
                        "question": name,
                        "value": _cell(answer.value),
                        "rationale": answer.rationale or "",
                        "annotator": self.annotator,
                        "seconds": answer.metadata.get(SECONDS_KEY),
                        "at": answer.created_ms,
                        "saved": True,
                        "changed_to": _cell(changed.value) if changed else None,
                        "elsewhere": ACTION_KEY not in answer.metadata,
                    }
                    rows.append({**vars(answer), **draw, **row})
        rows.sort(key=lambda row: row["at"])
        # As objects first: pandas would make texts of mixed values, and nan of what is None.
        table = pd.DataFrame(rows, columns=_COLUMNS, dtype=object)
        table = table.astype(object).where(table.notna(), None)
        numbers = dict.fromkeys(["probability", "seconds"], "float64")
        table = table.astype({**numbers, "saved": bool, "after_verdict": bool, "elsewhere": bool})
        return table.assign(at=pd.to_datetime(table["at"], unit="ms", utc=True))

    def summary(self) -> pd.DataFrame:
        """Return one row a question and value: ``labels``, and ``share`` of those that are no
        abstention; below them the counts of abstentions and of open items."""
        rows = []
        with self.lock:
            items = [one for one in self.items.values() if one.status not in ("gone", "taken")]
            for question in self.questions:
                counts = self.balance(question)
                abstained = counts.pop(ABSTAIN, 0)
                total = sum(counts.values())
                shown = [
                    (question.shown(v), n, n / total if total else None) for v, n in counts.items()
                ]
                shown.append(("can't judge", abstained, None))
                left = sum(question.name not in one.annotations.answers for one in items)
                shown.append(("not labelled", left, None))
                rows += [(question.name, *row) for row in shown]
        table = pd.DataFrame(rows, columns=["question", "value", "labels", "share"])
        return table.astype({"share": "float64"})


class AdjudicationSession(Session):
    """The adjudication of one question by one person (see `workbench.AdjudicationPanel`)."""

    scope = ("decisions",)

    def __init__(
        self,
        judge_or_name: Judge | str,
        traces: Any = None,
        *,
        by: str,
        scale: Scale | None = None,
        title: str = "",
        experiment: str | None = None,
        store: TraceStore | None = None,
    ) -> None:
        check_text("by", by)
        super().__init__(by, store or TraceStore(experiment))
        self._judge, self._traces, self._scale = judge_or_name, traces, scale
        self._name = name_of(judge_or_name)
        self._skipped: dict[str, float] = {}
        self.reload()
        self.title = title or self.questions[0].title or self._name

    def reload(self) -> None:
        infos = self.store.infos(self._traces, missing_ok=bool(self.items))
        traces = [without_spans(info) for info in infos.values()]
        scale = self._scale or known_scale(self._judge, traces)
        found = {one.trace_id: one for one in differences(self._judge, traces, scale=scale)}
        question = LabelQuestion(self._name, scale)
        if not isinstance(self._judge, str):
            question = LabelQuestion.of_judge(self._judge, scale=scale)
        self.ask([question])
        with self.lock:
            # Each keeps its place; what has come to differ since comes after them.
            for item in self.items.values():
                item.taken = item.info.trace_id not in found
            for trace_id, difference in found.items():
                item = self.items.setdefault(trace_id, Item(infos[trace_id], how="disagreement"))
                item.voices = [self._voice(label) for label in difference.labels]
                self.learn(infos[trace_id])

    def _voice(self, label: Label) -> Message:
        question = self.questions[0]
        return {
            "annotator": label.annotator,
            "value": question.shown(canonical(question, label.value)),
            "rationale": label.rationale or "",
            "earlier_rubric": self.rubrics[self._name].is_earlier(label),
        }

    def learn(self, info: TraceInfo) -> None:
        answers = {}
        for made in decision_records([without_spans(info)], self._name):
            answers[self._name] = replace(made, value=canonical(self.questions[0], made.value))
        # That one is skipped lasts as long as the session.
        skipped_ms = self._skipped.get(info.trace_id, 0.0)
        now = Annotations(answers, skipped_ms=skipped_ms, done=bool(answers))
        self.items[info.trace_id].learn(info, now)

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        store, question, name = self.store, self.questions[0], self._name
        self._skipped.pop(action.trace_id, None)
        if action.kind == "skip":
            self._skipped[action.trace_id] = now_ms()
            return lambda: store.get(action.trace_id)
        if action.kind == "undo":
            return lambda: take_back(store, action, [], self.annotator)
        ((_, value),) = read_answers([question], action.answers, ())
        version = action.rubrics.get(name, question.rubric_version)

        def make(info: TraceInfo) -> list[Feedback]:
            made = new_decision(
                without_spans(info),
                question.stored(value),
                name=name,
                by=self.annotator,
                rationale=action.reason(name),
                after_verdict=revealed_tag(self.annotator, question) in info.tags,
                rubric_version=version,
            )
            return [made] if made else []

        return lambda: write_once(store, action, make)

    @property
    def decisions(self) -> pd.DataFrame:
        """The labels side by side and what was decided, as the store holds them now; see
        `workbench.disagreements`."""
        with self.lock:
            trace_ids = [i for i, item in self.items.items() if not item.taken]
        infos = self.store.infos(trace_ids, missing_ok=True)
        traces = [without_spans(info) for info in infos.values()]
        return disagreements(self._judge, traces, scale=self.questions[0].scale)


def _cell(value: Any) -> Any:
    return None if value is ABSTAIN else value


def _said(question: LabelQuestion, said: Label | Recorded) -> Message:
    value = _cell(canonical(question, said.value))
    return {"value": value, "rationale": said.rationale or ""}
