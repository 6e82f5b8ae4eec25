"""A store in memory, and the browser's part of a session."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import (
    Assessment,
    AssessmentSource,
    TraceData,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

from workbench import Scale, import_traces, log_verdicts
from workbench.errors import WorkbenchError
from workbench.labeling.sessions import AdjudicationSession, LabelSession
from workbench.labeling.writer import TraceDeletedError, TraceStore
from workbench.store.assessments import now_ms
from workbench.store.labels import label_records
from workbench.store.schemas import RubricHistory
from workbench.store.traces import fetch_traces

SCALE = Scale.of(["no", "yes"])


def info_of(trace_id: str, text: str = "") -> TraceInfo:
    """A trace without labels."""
    where = TraceLocation.from_experiment_id("0")
    return TraceInfo(trace_id, where, 0, TraceState.OK, request_preview=text)


class MemoryStore:
    """Traces in memory, with MLflow's rules for overriding and deleting assessments.

    ``fails_after`` is how many writes it takes until it is ``down``; ``lose_answers`` how many
    writes are done and answered by an error.
    """

    def __init__(self, trace_ids: Sequence[str]) -> None:
        self.infos = {i: info_of(i, f"question {i}") for i in trace_ids}
        self.lock = threading.RLock()
        self.mend()

    def mend(self) -> None:
        self.down, self.lose_answers, self.fails_after = False, 0, math.inf

    def snapshot(self) -> dict[str, TraceInfo]:
        with self.lock:
            return {
                i: replace(
                    one,
                    tags=dict(one.tags),
                    assessments=[copy.copy(a) for a in one.assessments or []],
                )
                for i, one in self.infos.items()
            }

    def assess(self, trace_id: str, made: Assessment) -> None:
        with self.lock:
            there = {a.assessment_id: a for a in self.infos[trace_id].assessments}
            if made.assessment_id in there:
                raise MlflowException("it is there already", error_code=BAD_REQUEST)
            if made.overrides:
                there[made.overrides].valid = False
            made = copy.copy(made)
            made.assessment_id = made.assessment_id or f"a-{len(there)}-{now_ms()}"
            self.infos[trace_id].assessments.append(made)

    def delete(self, trace_id: str, assessment_id: str) -> None:
        with self.lock:
            kept = []
            for one in self.infos[trace_id].assessments:
                if one.assessment_id != assessment_id:
                    kept.append(one)
                    continue
                for other in self.infos[trace_id].assessments:
                    if other.assessment_id == one.overrides:
                        other.valid = True
            self.infos[trace_id].assessments[:] = kept


class MemoryTraces(TraceStore):
    """What one kernel sees of a `MemoryStore`; ``alive`` ends with the kernel."""

    is_active = True

    def __init__(self, store: MemoryStore, rubrics: RubricHistory | None = None) -> None:
        self.store, self.alive = store, True
        self.client = self  # type: ignore[assignment]
        self.experiment, self.address = "0", "memory"
        self._rubrics = rubrics or RubricHistory("quality", ())

    def infos(self, traces: Any, *, missing_ok: bool = False) -> dict[str, TraceInfo]:
        infos = self.store.snapshot()
        return infos if traces is None else {i: infos[i] for i in traces if i in infos}

    def rubrics(self, question: str) -> RubricHistory:
        return self._rubrics

    def spans(self, infos: Sequence[TraceInfo]) -> dict[str, TraceData]:
        return {}

    def get(self, trace_id: str) -> TraceInfo:
        if not self.alive:
            raise WorkbenchError("this kernel is no more")
        if self.store.down:
            raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        found = self.store.snapshot().get(trace_id)
        if found is None:
            raise TraceDeletedError(f"Trace {trace_id} was deleted.")
        return found

    def log_assessment(self, trace_id: str, assessment: Assessment) -> None:
        self._write(trace_id, lambda: self.store.assess(trace_id, assessment))

    def delete_assessment(self, trace_id: str, assessment_id: str) -> None:
        self._write(trace_id, lambda: self.store.delete(trace_id, assessment_id))

    def set_trace_tag(self, trace_id: str, key: str, value: str) -> None:
        self._write(trace_id, lambda: self.store.infos[trace_id].tags.update({key: value}))

    def _write(self, trace_id: str, write: Callable[[], Any]) -> None:
        store = self.store
        with store.lock:
            store.down = store.down or store.fails_after <= 0
            store.fails_after -= 1
            self.get(trace_id)
            write()
            if store.lose_answers:
                store.lose_answers -= 1
                raise ConnectionError("the answer was lost")


class View:
    """The browser's part: sends actions, and keeps what it is told."""

    def __init__(self, session: LabelSession | AdjudicationSession) -> None:
        self.session = session
        self.told: list[dict[str, Any]] = []
        self.numbers: Iterator[int] = iter(range(10**6))
        self.undoable: list[tuple[str, str]] = []
        session.on_message = self.told.append

    def send(self, **message: Any) -> list[dict[str, Any]]:
        """Send a message and return what is answered at once; both must be JSON."""
        answers = self.session.receive(json.loads(json.dumps(message)))
        self.told += answers
        json.dumps([answers, self.session.state(), self.session.setup()], allow_nan=False)
        return answers

    def action(self, kind: str, position: int, **more: Any) -> dict[str, Any]:
        trace_id = more.pop("trace_id", None) or self.session.trace_ids[position]  # type: ignore[union-attr]
        key = more.pop("id", f"{self.session.setup()['epoch']}-{next(self.numbers)}")
        at = int(time.time() * 1000)
        made = {"id": key, "kind": kind, "position": position, "trace_id": trace_id, "at": at}
        if kind != "undo":
            self.undoable.append((trace_id, key))
        elif "undoes" not in more:
            more["undoes"] = next(i for one, i in reversed(self.undoable) if one == trace_id)
            self.undoable.remove((trace_id, more["undoes"]))
        return {**made, "seconds": 2.0, **more}

    def save(self, position: int, value: Any, why: str = "", **more: Any) -> dict[str, Any]:
        answer = {"value": value, "abstain": value is None}
        return self.action(
            "save", position, answers={"quality": answer}, rationale={"quality": why}, **more
        )

    def act(self, *actions: dict[str, Any]) -> list[str]:
        """Send actions, wait until they are settled; return the ids told as saved since."""
        before = len(self.told)
        self.send(type="act", actions=list(actions))
        assert self.session.flush(20)
        return [i for m in self.told[before:] if m["type"] == "saved" for i in m["ids"]]

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message that is answered at once, and return the answer."""
        answers = ("items", "queue", "problem")
        return next(m for m in self.send(**message) if m["type"] in answers)

    def items(self, start: int = 0, count: int = 100) -> list[dict[str, Any]]:
        return list(self.ask(type="want", start=start, count=count)["items"])

    def kinds(self) -> list[tuple[str, bool | None]]:
        return [(message["type"], message.get("retry")) for message in self.told]


def in_memory(count: int, annotator: str = "ana", **more: Any) -> View:
    """A session on a store of its own in memory."""
    store = MemoryTraces(MemoryStore([f"t{n}" for n in range(count)]))
    given = {"store": store, "scale": SCALE, "refresh_every": None, **more}
    return View(LabelSession("quality", annotator=annotator, **given))


def begin(traces: Any = None, *, annotator: str = "ana", **more: Any) -> View:
    """A session on the active store."""
    given = {"scale": SCALE, "refresh_every": None, **more}
    return View(LabelSession("quality", traces, annotator=annotator, **given))


def imported(count: int, name: str = "question", **verdicts: int) -> list[str]:
    """So many traces; with ``yes=3, no=2`` verdicts on them in this order."""
    table = pd.DataFrame({"q": [f"{name} {n} word{n % 5}" for n in range(count)], "a": "x"})
    made = import_traces(table, inputs="q", outputs="a", progress=False).trace_ids
    given = [value for value, times in verdicts.items() for _ in range(times)]
    if given:
        table = pd.DataFrame({"trace_id": made[: len(given)], "v": given})
        log_verdicts(table, name="quality", source="m", value="v", progress=False)
    return list(made)


def label(trace_id: str, by: str, value: Any = "yes", name: str = "quality") -> None:
    """As MLflow's page writes it."""
    source = AssessmentSource("HUMAN", by)
    mlflow.log_feedback(trace_id=trace_id, name=name, value=value, source=source)


def stored(annotator: str = "ana", name: str = "quality") -> dict[str, Any]:
    """What the store says that the annotator said, by trace."""
    records = label_records(fetch_traces(spans=False), name)
    return {r.trace_id: r.value for r in records if r.annotator == annotator}


def delete(trace_id: str) -> None:
    """Delete a trace of the active experiment."""
    where = mlflow.get_experiment_by_name("test").experiment_id
    mlflow.MlflowClient().delete_traces(where, trace_ids=[trace_id])


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
