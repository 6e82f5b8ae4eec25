"""Whatever a team does and whatever gets lost on the way: each label is in the store, once.

Three annotators label overlapping shares of one store, one of them in two panels at the same time.
Hypothesis makes up what they do and what becomes of the messages between a panel and its kernel:
they are late, lost, or come twice, in either direction. Each panel keeps what it was not told is
saved and sends it again, as the view does.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import mlflow
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow.entities import Trace, TraceData, TraceInfo
from test_labelling_machine import COMMENTS, QUESTIONS, Store

from workbench import assign, import_traces
from workbench.labeling.queue import ACTION_KEY, UNDONE
from workbench.labeling.session import LabelSession
from workbench.store.assessments import now_ms
from workbench.store.labels import label_records
from workbench.store.traces import fetch_traces

TEAM = ("ana", "ben", "cleo")
EACH = 2
TRACES = 4
# Ana has two panels open.
OPEN = ("ana", "ana", "ben", "cleo")
PANELS = st.integers(0, len(OPEN) - 1)
PLACES = st.integers(0, TRACES - 1)
VALUES = st.sampled_from(["yes", "no", None])
HOUR = 3_600_000
SKEWS = st.sampled_from([-HOUR, 0, HOUR])
FATES = st.sampled_from(["comes", "comes", "is late", "is lost", "comes twice"])


class Page:
    """A panel as the view keeps it: what waits and what can be undone outlive page and kernel.

    ``to_kernel`` and ``to_page`` are on their way.
    """

    def __init__(self, number: int, who: str, make: Callable[[], LabelSession]) -> None:
        self.number, self.who, self._make = number, who, make
        self.pending: dict[str, dict[str, Any]] = {}
        self.undoable: list[dict[str, Any]] = []
        self.told: set[str] = set()
        self.refused: dict[str, str] = {}
        self.skew = 0
        self.to_kernel: deque[str] = deque()
        self.to_page: deque[str] = deque()
        self.session = make()
        self.session.on_message = self.answer
        self.hello()

    # -- the page

    def hello(self) -> None:
        self.send({"type": "hello", "epoch_seen": None, "pending": list(self.pending.values())})

    def act(self, action: dict[str, Any]) -> None:
        """With it goes what waits of the same trace, so that no later word comes before."""
        self.pending[action["id"]] = action
        trace_id = action["trace_id"]
        together = [one for one in self.pending.values() if one["trace_id"] == trace_id]
        self.send({"type": "act", "actions": together})

    def resend(self) -> None:
        if self.pending:
            self.send({"type": "act", "actions": list(self.pending.values())})

    def send(self, message: dict[str, Any]) -> None:
        self.to_kernel.append(json.dumps(message, allow_nan=False))

    def hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "saved":
            self.told.update(message["ids"])
        if message["type"] == "unsaved" and not message["retry"]:
            self.refused.update(dict.fromkeys(message["ids"], message["error"]))
        if message["type"] == "saved" or not message.get("retry", True):
            for key in message["ids"]:
                self.pending.pop(key, None)

    def reload(self) -> None:
        """What was on its way to the page that is gone never comes."""
        self.to_page.clear()
        self.hello()

    # -- the kernel

    def answer(self, message: dict[str, Any]) -> None:
        # Items are many and change nothing here.
        if message["type"] != "items":
            self.to_page.append(json.dumps(message, allow_nan=False))

    def restart(self) -> None:
        """The kernel dies with what it has not written; the cell is run again."""
        self.session.on_message = None
        saver = self.session._saver
        with saver._change:
            for jobs in saver._waiting.values():
                while len(jobs) > 1:  # what is being written just now may still get through
                    jobs.pop()
        saver.put = lambda job: None  # type: ignore[method-assign]
        self.to_kernel.clear()
        self.session = self._make()
        self.session.on_message = self.answer
        self.reload()

    # -- between them

    def carry(self, way: str, fate: str) -> None:
        """What becomes of the next message on one of the ways."""
        queue = self.to_kernel if way == "to the kernel" else self.to_page
        if not queue or fate == "is late":
            return
        said = queue.popleft()
        for _ in range({"is lost": 0, "comes": 1, "comes twice": 2}[fate]):
            if way == "to the kernel":
                for answer in self.session.receive(json.loads(said)):
                    self.answer(answer)
            else:
                self.hear(json.loads(said))

    def carry_all(self) -> None:
        for _ in range(len(self.to_kernel)):
            self.carry("to the kernel", "comes")
        for _ in range(len(self.to_page)):
            self.carry("to the page", "comes")


def machine(store: Store, monkeypatch: pytest.MonkeyPatch) -> type[RuleBasedStateMachine]:
    numbers = itertools.count()

    class Team(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            store.mend()
            self.number = next(numbers)
            self.skew = 0
            monkeypatch.setattr("workbench.store.assessments.now_ms", lambda: now_ms() + self.skew)
            self.acted: dict[str, dict[str, Any]] = {}
            self.by: dict[str, Page] = {}
            self.deleted: set[str] = set()

        @initialize()
        def begin(self) -> None:
            with store.open():
                mlflow.set_experiment(f"team {self.number}")
                table = pd.DataFrame({"q": [f"q{n}" for n in range(TRACES)], "a": "x"})
                made = import_traces(table, inputs="q", outputs="a", progress=False)
            self.parts = assign(made.trace_ids, TEAM, each=EACH, seed=self.number)
            self.pages = [Page(n, who, self.maker(who)) for n, who in enumerate(OPEN)]
            for page in self.pages:
                page.carry_all()

        def maker(self, who: str) -> Callable[[], LabelSession]:
            def make() -> LabelSession:
                with store.open():
                    return LabelSession(
                        annotator=who, questions=QUESTIONS, assign=self.parts, seed=self.number
                    )

            return make

        # -- what the annotators do -----------------------------------------------------

        def trace(self, page: Page, place: int) -> str:
            """The one of the page's share at a place, or of those after it."""
            own = self.parts.of(page.who)
            assume(own)
            return own[place % len(own)]

        def act(self, page: Page, kind: str, trace_id: str, fate: str, **more: Any) -> str:
            key = f"action-{self.number}-{len(self.acted)}"
            action = {
                "id": key, "kind": kind, "trace_id": trace_id, "position": 0, "seconds": 1.5,
                "at": now_ms() + page.skew, "answers": {}, "rationale": {}, "undoes": None, **more,
            }  # fmt: skip
            self.acted[key], self.by[key] = action, page
            if kind != "undo":
                page.undoable.append(action)
            page.act(action)
            self.carry(page, "to the kernel", fate)
            return key

        def carry(self, page: Page, way: str, fate: str) -> None:
            page.carry(way, fate)
            store.settle(page.session)

        def save(
            self,
            page: Page,
            trace_id: str,
            value: str | None,
            fate: str,
            comment: str | None = "so",
        ) -> str:
            answers = {"quality": {"value": value, "abstain": value is None}}
            if comment is not None:
                answers["comment"] = {"value": comment, "abstain": False}
            return self.act(page, "save", trace_id, fate, answers=answers)

        def undo(self, page: Page, fate: str) -> None:
            if page.undoable:
                last = page.undoable.pop()
                self.act(page, "undo", last["trace_id"], fate, undoes=last["id"])

        @rule(panel=PANELS, place=PLACES, value=VALUES, comment=COMMENTS, fate=FATES)
        def someone_rates(
            self, panel: int, place: int, value: str | None, comment: str | None, fate: str
        ) -> None:
            page = self.pages[panel]
            self.save(page, self.trace(page, place), value, fate, comment)

        @rule(panel=PANELS, place=PLACES, fate=FATES)
        def someone_skips(self, panel: int, place: int, fate: str) -> None:
            page = self.pages[panel]
            self.act(page, "skip", self.trace(page, place), fate)

        @rule(panel=PANELS, fate=FATES)
        def someone_undoes(self, panel: int, fate: str) -> None:
            self.undo(self.pages[panel], fate)

        @rule(panel=PANELS, place=PLACES, first=FATES, then=FATES)
        def someone_corrects(self, panel: int, place: int, first: str, then: str) -> None:
            """And the first rating may come after the correction."""
            page = self.pages[panel]
            trace_id = self.trace(page, place)
            self.save(page, trace_id, "yes", first)
            self.save(page, trace_id, "no", then)

        @rule(first=st.integers(0, 1), place=PLACES, fates=st.tuples(FATES, FATES, FATES))
        def both_panels_of_one_person_rate_and_one_undoes(
            self, first: int, place: int, fates: tuple[str, str, str]
        ) -> None:
            one, other = self.pages[first], self.pages[1 - first]
            trace_id = self.trace(one, place)
            self.save(one, trace_id, "yes", fates[0])
            self.save(other, trace_id, "no", fates[1])
            self.undo(one if fates[2] == "comes twice" else other, fates[2])

        @rule(place=PLACES, values=st.tuples(VALUES, VALUES, VALUES))
        def the_whole_team_rates(self, place: int, values: tuple[str | None, ...]) -> None:
            """At the same time, in kernels of their own."""
            trace_id = self.parts.trace_ids[place]
            sending = []
            for page, value in zip(self.pages[1:], values, strict=True):
                if page.who in self.parts.annotators_of(trace_id):
                    self.save(page, trace_id, value, "is late")
                    sending.append(threading.Thread(target=page.carry_all))
            for thread in sending:
                thread.start()
            for thread in sending:
                thread.join(30)
            for page in self.pages:
                store.settle(page.session)

        # -- what happens to them -------------------------------------------------------

        @rule(panel=PANELS, fate=FATES)
        def a_message_goes_to_the_kernel(self, panel: int, fate: str) -> None:
            self.carry(self.pages[panel], "to the kernel", fate)

        @rule(panel=PANELS, fate=FATES)
        def a_message_goes_to_the_page(self, panel: int, fate: str) -> None:
            self.carry(self.pages[panel], "to the page", fate)

        @rule(panel=PANELS)
        def what_was_not_answered_is_sent_again(self, panel: int) -> None:
            self.pages[panel].resend()
            self.carry(self.pages[panel], "to the kernel", "comes")

        @rule(panel=PANELS)
        def the_page_is_loaded_anew(self, panel: int) -> None:
            self.pages[panel].reload()

        @rule(panel=PANELS)
        def the_kernel_restarts(self, panel: int) -> None:
            self.pages[panel].restart()
            self.carry(self.pages[panel], "to the kernel", "comes")

        @precondition(lambda self: not store.down)
        @rule(panel=PANELS)
        def the_panel_is_refreshed(self, panel: int) -> None:
            self.pages[panel].session.refresh()

        @precondition(lambda self: not store.down)
        @rule()
        def the_store_fails(self) -> None:
            store.down = True

        @precondition(lambda self: store.down)
        @rule()
        def the_store_is_back(self) -> None:
            store.mend()
            for page in self.pages:
                assert page.session.flush(30)

        @precondition(lambda self: not store.down)
        @rule(panel=PANELS, place=PLACES, undone=st.booleans(), count=st.integers(1, 2))
        def the_store_fails_between_two_writes(
            self, panel: int, place: int, undone: bool, count: int
        ) -> None:
            """Of one action, and the kernel is restarted before the store is back."""
            page = self.pages[panel]
            trace_id = self.trace(page, place)
            page.carry_all()
            if undone:
                self.save(page, trace_id, "yes", "comes")
            store.fails_after = count
            if undone:
                self.undo(page, "comes")
            else:
                self.save(page, trace_id, "no", "comes")
            page.restart()
            page.carry_all()
            self.what_a_page_was_told_is_saved_is_there_once()
            self.the_store_is_back()

        @precondition(lambda self: not store.down)
        @rule(count=st.integers(1, 3))
        def the_store_writes_and_does_not_answer(self, count: int) -> None:
            store.lose_answers = count

        @rule(panel=PANELS, of_page=SKEWS, of_kernel=SKEWS)
        def clocks_go_wrong(self, panel: int, of_page: int, of_kernel: int) -> None:
            self.pages[panel].skew, self.skew = of_page, of_kernel

        @precondition(lambda self: not self.deleted and not store.down)
        @rule(place=PLACES)
        def a_trace_is_deleted(self, place: int) -> None:
            trace_id = self.parts.trace_ids[place]
            self.deleted.add(trace_id)
            with store.open():
                experiment = mlflow.get_experiment_by_name(f"team {self.number}")
                mlflow.MlflowClient().delete_traces(experiment.experiment_id, trace_ids=[trace_id])

        # -- what must hold -------------------------------------------------------------

        def infos(self) -> dict[str, TraceInfo]:
            with store.open():
                traces = fetch_traces("trace.status = 'OK'", spans=False)
            return {trace.info.trace_id: trace.info for trace in traces}

        @invariant()
        def what_a_page_was_told_is_saved_is_there_once(self) -> None:
            if not hasattr(self, "pages"):
                return
            infos = self.infos().values()
            made = Counter(
                (a.metadata[ACTION_KEY], a.name, a.source.source_id, info.trace_id)
                for info in infos
                for a in info.assessments
            )
            assert all(count == 1 for count in made.values()), made
            keys = {(key, name) for key, name, *_ in made}
            assert len(keys) == len(made)
            for key, name, who, trace_id in made:
                assert name in self.acted[key]["answers"]
                assert who == self.by[key].who
                assert trace_id == self.acted[key]["trace_id"]
                assert who in self.parts.annotators_of(trace_id)
            undone = {t[len(UNDONE) :] for i in infos for t in i.tags if t.startswith(UNDONE)}
            for page in self.pages:
                for key in page.told:
                    action = self.acted[key]
                    if action["trace_id"] in self.deleted:
                        continue
                    if action["kind"] == "save":
                        lacking = [name for name in action["answers"] if (key, name) not in keys]
                        assert not lacking or key in undone, f"{lacking} of {key} is lost"
                    if action["kind"] == "undo":
                        assert action["undoes"] in undone

        @invariant()
        def the_last_word_counts(self) -> None:
            """Of one panel it is its own; of two of one person the last word of one of them."""
            if not hasattr(self, "pages") or store.down:
                return
            for trace_id, info in self.infos().items():
                for who, name in itertools.product(TEAM, ("quality", "comment")):
                    pages = [page for page in self.pages if page.who == who]
                    waiting = [a for page in pages for a in page.pending.values()]
                    if any(a["trace_id"] == trace_id for a in waiting):
                        continue
                    words = [self.last_word(page, trace_id, name) for page in pages]
                    said = [word for word in words if word is not None]
                    counting = self.counting(info, who, name)
                    told = trace_id, who, name, counting, said
                    assert len(counting) == min(1, len(said)), told
                    assert not counting or counting[0] in said, told

        def last_word(self, page: Page, trace_id: str, name: str) -> Any:
            """The value of the last rating on a page that was not taken back there."""
            mine = [a for k, a in self.acted.items() if self.by[k] is page]
            undone = {a["undoes"] for a in mine}
            saves = [
                a["answers"][name]
                for a in mine
                if a["kind"] == "save"
                and a["trace_id"] == trace_id
                and a["id"] not in undone
                and name in a["answers"]
            ]
            if not saves:
                return None
            return "N/A" if saves[-1]["abstain"] else saves[-1]["value"]

        def counting(self, info: TraceInfo, who: str, name: str) -> list[Any]:
            records = label_records([Trace(info, TraceData(spans=[]))], name)
            return [record.value for record in records if record.annotator == who]

        def teardown(self) -> None:
            store.mend()
            if not hasattr(self, "pages"):
                return
            # Nothing is lost any more, and what was not answered is sent again.
            for _ in range(3):
                for page in self.pages:
                    page.resend()
                    page.carry_all()
                    assert page.session.flush(30)
                    page.carry_all()
            self.what_a_page_was_told_is_saved_is_there_once()
            self.the_last_word_counts()
            infos = self.infos()
            for key, action in self.acted.items():
                page = self.by[key]
                assert key not in page.pending
                assert key in page.told or action["trace_id"] in self.deleted
                # What was refused is listed with the reason.
                assert key in page.told or page.refused[key]
            for page in self.pages:
                page.session.refresh()
                there = {i for i in self.parts.of(page.who) if i in infos}
                assert there == set(page.session.trace_ids) - self.deleted
                table = page.session.labels
                assert table["saved"].all()
                keys = zip(table["trace_id"], table["question"], strict=True)
                shown = dict(zip(keys, table["value"], strict=True))
                for trace_id, name in itertools.product(there, ("quality", "comment")):
                    counting = self.counting(infos[trace_id], page.who, name)
                    own = [shown[k] or "N/A" for k in [(trace_id, name)] if k in shown]
                    # What others said of it is neither shown nor in the way.
                    assert own == counting
                assert page.session.progress["waiting"] == 0

    return Team


def test_a_team_loses_nothing_and_doubles_nothing(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they do at the same time, and whatever becomes of the messages."""
    run_state_machine_as_test(
        machine(Store(monkeypatch), monkeypatch),
        settings=settings(
            max_examples=8,
            stateful_step_count=18,
            deadline=None,
            # Making a failure smaller would take minutes; its steps are told anyway.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
