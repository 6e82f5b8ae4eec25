"""Whatever happens to panels, kernel and store: what is told as saved is in the store, once.

Hypothesis makes up sequences of what two panels of one annotator do, what gets lost on the way,
restarts of the kernel and failures of the store, and checks after each step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow.entities import AssessmentSource, Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from workbench import LabelQuestion, Scale, import_traces, log_verdicts
from workbench.labeling.queue import ACTION_KEY, UNDONE
from workbench.labeling.session import LabelSession
from workbench.store.assessments import AFTER_VERDICT_KEY, now_ms
from workbench.store.labels import label_records
from workbench.store.traces import fetch_traces

SCALE = Scale.of(["no", "yes"])
TRACES = 3
PANELS = st.integers(0, 1)
PLACES = st.integers(0, TRACES - 1)
VALUES = st.sampled_from(["yes", "no", None])
COMMENTS = st.sampled_from([None, "so", "or so"])
QUESTIONS = (LabelQuestion("quality", SCALE), LabelQuestion("comment", None, required=False))


class Store:
    """MLflow's own store, which can be made to fail at the seam that the workbench uses.

    ``fails_after`` is how many writes it takes until it is down.
    """

    WRITES = ("create_assessment", "set_trace_tag", "delete_assessment")
    READS = ("get_trace_info", "search_traces")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mend()
        self._mine = threading.local()
        for name in (*self.WRITES, *self.READS):
            monkeypatch.setattr(SqlAlchemyStore, name, self._failing(name))

    def mend(self) -> None:
        self.down, self.lose_answers, self.fails_after = False, 0, math.inf

    def settle(self, session: LabelSession) -> None:
        """Wait until all is written, or the store is down."""
        deadline = time.monotonic() + 30
        while not self.down and not session.flush(0.1):
            assert time.monotonic() < deadline

    def _failing(self, name: str) -> Callable[..., Any]:
        real = getattr(SqlAlchemyStore, name)

        def method(*arguments: Any, **named: Any) -> Any:
            if getattr(self._mine, "open", False):
                return real(*arguments, **named)
            if name in self.WRITES:
                self.down = self.down or self.fails_after <= 0
                self.fails_after -= 1
            if self.down:
                raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
            result = real(*arguments, **named)
            if name in self.WRITES and self.lose_answers:
                self.lose_answers -= 1
                raise ConnectionError("the answer was lost")
            return result

        return method

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """For what the test itself does: nothing fails."""
        self._mine.open = True
        try:
            yield
        finally:
            self._mine.open = False


class Browser:
    """One panel: what it holds survives the kernel, as a browser's local storage does."""

    def __init__(
        self, make: Callable[[], LabelSession], told: set[str], revealed: set[str]
    ) -> None:
        self._make = make
        self.told, self.revealed = told, revealed
        self.pending: dict[str, dict[str, Any]] = {}
        self.start()

    def start(self) -> None:
        self.session = self._make()
        self.session.on_message = self.hear
        self.send({"type": "hello", "epoch_seen": None, "pending": list(self.pending.values())})

    def kill(self) -> None:
        """The kernel dies: what its thread has not written yet, it never will."""
        self.session.on_message = None
        saver = self.session._saver
        with saver._change:
            for jobs in saver._waiting.values():
                # What is being written just now may still get through.
                while len(jobs) > 1:
                    jobs.pop()
        saver.put = lambda job: None  # type: ignore[method-assign]
        dead = self.session._recorder
        dead._client = None

    def send(self, message: dict[str, Any]) -> None:
        for answer in self.session.receive(json.loads(json.dumps(message))):
            self.hear(answer)

    def hear(self, message: dict[str, Any]) -> None:
        message = json.loads(json.dumps(message, allow_nan=False))
        if message["type"] == "saved":
            self.told.update(message["ids"])
        elif message["type"] == "revealed":
            self.revealed.add(message["trace_id"])
        if message["type"] == "saved" or not message.get("retry", True):
            for key in message["ids"]:
                self.pending.pop(key, None)


def machine(store: Store, monkeypatch: pytest.MonkeyPatch) -> type[RuleBasedStateMachine]:
    numbers = itertools.count()

    class Labelling(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            store.mend()
            self.number = next(numbers)
            self.skew = 0
            monkeypatch.setattr("workbench.store.assessments.now_ms", lambda: now_ms() + self.skew)
            self.sent: dict[str, dict[str, Any]] = {}
            self.order: list[str] = []
            self.seen_before: set[str] = set()
            self.mixed: set[str] = set()
            self.deleted: set[str] = set()
            self.elsewhere: set[str] = set()
            self.told: set[str] = set()
            self.revealed: set[str] = set()

        @initialize()
        def begin(self) -> None:
            with store.open():
                mlflow.set_experiment(f"machine {self.number}")
                table = pd.DataFrame({"q": list("abc")[:TRACES], "a": "x"})
                self.ids = import_traces(table, inputs="q", outputs="a", progress=False).trace_ids
                verdicts = pd.DataFrame({"trace_id": self.ids, "v": "yes"})
                log_verdicts(verdicts, name="quality", source="m", value="v", progress=False)
            self.panels = [self.browser(), self.browser()]

        def browser(self) -> Browser:
            def make() -> LabelSession:
                with store.open():
                    return LabelSession(
                        annotator="ana", questions=QUESTIONS, reveal=True, seed=self.number
                    )

            return Browser(make, self.told, self.revealed)

        # -- what the annotator does ----------------------------------------------------

        def act(self, panel: int, action: dict[str, Any]) -> None:
            browser = self.panels[panel]
            other = self.panels[1 - panel]
            key, trace_id = action["id"], action["trace_id"]
            if any(a["trace_id"] == trace_id for a in other.pending.values()):
                # Both write to it when the store is back; who is first is open.
                self.mixed.add(trace_id)
            if key not in self.sent:
                self.sent[key] = action
                self.order.append(key)
                if trace_id in self.revealed:
                    self.seen_before.add(key)
            browser.pending[key] = action
            browser.send({"type": "act", "actions": [action]})
            store.settle(browser.session)

        def action(self, kind: str, place: int, **more: Any) -> dict[str, Any]:
            key = f"action-{self.number}-{len(self.sent)}"
            made = {"id": key, "kind": kind, "position": place, "trace_id": self.ids[place]}
            return {**made, "seconds": 1.5, "at": 10**12 + self.skew, **more}

        @rule(panel=PANELS, place=PLACES, value=VALUES, comment=COMMENTS)
        def save(
            self, panel: int, place: int, value: str | None, comment: str | None = "so"
        ) -> None:
            answers = {"quality": {"value": value, "abstain": value is None}}
            if comment is not None:
                answers["comment"] = {"value": comment, "abstain": False}
            self.act(panel, self.action("save", place, answers=answers, rationale={}))

        @rule(panel=PANELS, place=PLACES)
        def skip(self, panel: int, place: int) -> None:
            self.act(panel, self.action("skip", place))

        @rule(panel=PANELS, place=PLACES, skew=st.sampled_from([-3_600_000, 0]))
        def correct(self, panel: int, place: int, skew: int) -> None:
            """Perhaps while the kernel's clock is set back."""
            self.save(panel, place, "yes")
            self.skew += skew
            self.save(panel, place, "no")

        @rule(panel=PANELS, place=PLACES, value=VALUES)
        def take_back_what_the_other_panel_sends_again(
            self, panel: int, place: int, value: str | None
        ) -> None:
            """A message that was on its way all the time, to a kernel that has not heard of it."""
            self.save(panel, place, value)
            action = self.sent[self.order[-1]]
            undo = self.action("undo", place, undoes=action["id"])
            self.act(panel, undo)
            self.act(1 - panel, action)

        @rule(panel=PANELS)
        def undo_the_last(self, panel: int) -> None:
            self.act(panel, self.action("undo", 0, undoes=None) | {"trace_id": ""})

        @precondition(lambda self: self.order)
        @rule(panel=PANELS, data=st.data())
        def undo_one(self, panel: int, data: st.DataObject) -> None:
            target = self.sent[data.draw(st.sampled_from(self.order))]
            if target["kind"] != "undo":
                undo = self.action("undo", self.ids.index(target["trace_id"]))
                self.act(panel, undo | {"undoes": target["id"]})

        @rule(panel=PANELS, place=PLACES)
        def reveal(self, panel: int, place: int) -> None:
            browser = self.panels[panel]
            browser.send({"type": "reveal", "trace_id": self.ids[place]})
            store.settle(browser.session)

        # -- what goes wrong ------------------------------------------------------------

        @precondition(lambda self: self.order)
        @rule(panel=PANELS, data=st.data())
        def send_again(self, panel: int, data: st.DataObject) -> None:
            """A message is doubled, or an acknowledgement was lost; perhaps the other panel's.

            Mostly what has been taken back since, which must not come to life again.
            """
            undone = [a["undoes"] for a in self.sent.values() if a.get("undoes") in self.sent]
            self.act(panel, self.sent[data.draw(st.sampled_from(undone or self.order))])

        @rule(panel=PANELS)
        def restart(self, panel: int) -> None:
            self.panels[panel].kill()
            self.panels[panel].start()
            store.settle(self.panels[panel].session)

        @precondition(lambda self: not store.down)
        @rule()
        def store_fails(self) -> None:
            store.down = True

        @precondition(lambda self: store.down)
        @rule()
        def store_is_back(self) -> None:
            store.mend()
            for browser in self.panels:
                assert browser.session.flush(30)

        @precondition(lambda self: not store.down)
        @rule(panel=PANELS, place=PLACES, undone=st.booleans(), count=st.integers(1, 2))
        def the_store_fails_between_two_writes(
            self, panel: int, place: int, undone: bool, count: int
        ) -> None:
            """Of one action, and the kernel is restarted before the store is back."""
            if undone:
                self.save(panel, place, "yes")
            store.fails_after = count
            if undone:
                target = self.order[-1]
                self.act(panel, self.action("undo", place, undoes=target))
            else:
                self.save(panel, place, "no")
            self.restart(panel)
            self.what_is_told_as_saved_is_in_the_store_once()
            self.store_is_back()

        @precondition(lambda self: not store.down)
        @rule(count=st.integers(1, 3))
        def answers_get_lost(self, count: int) -> None:
            store.lose_answers = count

        @rule(skew=st.sampled_from([-3_600_000, 0, 3_600_000]))
        def clock_jumps(self, skew: int) -> None:
            self.skew = skew

        @precondition(lambda self: not self.deleted)
        @rule(place=PLACES)
        def delete(self, place: int) -> None:
            self.deleted.add(self.ids[place])
            with store.open():
                experiment = mlflow.get_experiment_by_name(f"machine {self.number}")
                client = mlflow.MlflowClient()
                client.delete_traces(experiment.experiment_id, trace_ids=[self.ids[place]])

        @rule(place=PLACES, value=st.sampled_from(["yes", "no"]))
        def label_in_mlflow(self, place: int, value: str) -> None:
            trace_id = self.ids[place]
            if trace_id not in self.deleted:
                self.elsewhere.add(trace_id)
                with store.open():
                    mlflow.log_feedback(
                        trace_id=trace_id,
                        name="quality",
                        value=value,
                        source=AssessmentSource("HUMAN", "ana"),
                    )

        @precondition(lambda self: not store.down)
        @rule(panel=PANELS)
        def look(self, panel: int) -> None:
            """Only now and then: until then a panel does not know what the other one did."""
            self.compare(self.panels[panel])

        # -- what must hold -------------------------------------------------------------

        def infos(self) -> dict[str, TraceInfo]:
            with store.open():
                traces = fetch_traces("trace.status = 'OK'", spans=False)
            return {trace.info.trace_id: trace.info for trace in traces}

        @invariant()
        def what_is_told_as_saved_is_in_the_store_once(self) -> None:
            if not hasattr(self, "panels"):
                return
            told = set(self.told)
            infos = self.infos()
            made = Counter(
                (key, a.name)
                for info in infos.values()
                for a in info.assessments
                if (key := (a.metadata or {}).get(ACTION_KEY))
            )
            assert all(count == 1 for count in made.values()), made
            taken_back = {
                tag[len(UNDONE) :] for info in infos.values() for tag in info.tags
                if tag.startswith(UNDONE)
            }  # fmt: skip
            undone_by = {
                by for info in infos.values() for tag, by in info.tags.items()
                if tag.startswith(UNDONE)
            }  # fmt: skip
            for key in told:
                action = self.sent[key]
                if action["trace_id"] in self.deleted:
                    continue
                if action["kind"] == "save":
                    lacking = [name for name in action["answers"] if (key, name) not in made]
                    assert not lacking or key in taken_back, f"{lacking} of {key} is lost"
                elif action["kind"] == "undo" and action["trace_id"]:
                    assert key in undone_by or action["undoes"] in taken_back

        @invariant()
        def what_counts_is_the_last_word(self) -> None:
            if not hasattr(self, "panels") or store.down:
                return
            infos = self.infos()
            for trace_id, info in infos.items():
                tags = {t[len(UNDONE) :] for t in info.tags if t.startswith(UNDONE)}
                alive = [a for a in info.assessments if ACTION_KEY in (a.metadata or {})]
                assert not [a for a in alive if a.metadata[ACTION_KEY] in tags]
                for a in alive:
                    if a.metadata[ACTION_KEY] in self.seen_before:
                        assert a.metadata.get(AFTER_VERDICT_KEY) == "true"
                if trace_id in self.elsewhere or trace_id in self.mixed:
                    continue
                alive.sort(key=lambda a: self.order.index(a.metadata[ACTION_KEY]))
                for name in ("quality", "comment"):
                    said = [a for a in alive if a.name == name]
                    blind = [a for a in said if AFTER_VERDICT_KEY not in a.metadata]
                    expected = [a.value for a in (blind or said)[-1:]]
                    assert self.counting(info, name) == expected

        def counting(self, info: TraceInfo, name: str) -> list[Any]:
            records = label_records([Trace(info, TraceData(spans=[]))], name)
            return [r.value for r in records if r.annotator == "ana"]

        def compare(self, browser: Browser) -> None:
            """A session shows what the store holds."""
            assert browser.session.flush(30)
            browser.session.refresh()
            infos = self.infos()
            table = browser.session.labels
            assert table["saved"].all()
            keys = zip(table["trace_id"], table["question"], strict=True)
            shown = dict(zip(keys, table["value"], strict=True))
            for trace_id, info in infos.items():
                for name in ("quality", "comment"):
                    counting = [None if v == "N/A" else v for v in self.counting(info, name)]
                    assert [shown[k] for k in [(trace_id, name)] if k in shown] == counting
            progress = browser.session.progress
            assert progress["waiting"] == 0
            assert progress["labelled"] >= len(
                [i for i in infos if self.counting(infos[i], "quality")]
            )
            balances = [sum(counts.values()) for counts in progress["balances"].values()]
            assert sum(balances) == len(table)

        def teardown(self) -> None:
            store.mend()
            if hasattr(self, "panels"):
                for browser in self.panels:
                    assert browser.session.flush(30)
                for browser in self.panels:
                    # Nothing is left in a browser that was neither saved nor refused.
                    assert not browser.pending
                    self.compare(browser)
                self.what_is_told_as_saved_is_in_the_store_once()
                self.what_counts_is_the_last_word()

    return Labelling


def test_nothing_is_lost_and_nothing_doubled(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sequence of actions, failures and restarts."""
    run_state_machine_as_test(
        machine(Store(monkeypatch), monkeypatch),
        settings=settings(
            max_examples=12,
            stateful_step_count=14,
            deadline=None,
            # Making a failure smaller would take minutes; its steps are told anyway.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
