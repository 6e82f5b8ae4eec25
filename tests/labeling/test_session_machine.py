"""Whatever a team does and whatever gets lost on the way: each label is in the store, once.

Three annotators label overlapping shares of one store, one of them in two panels at the same time.
Hypothesis makes up what they do, restarts of kernels, failures of the store, and what becomes of
the messages between a panel and its kernel: they are late, lost, or come twice, either way. Each
panel keeps what it was not told is saved and sends it again, as the view does.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from labeling_helpers import SCALE, MemoryStore, MemoryTraces
from mlflow.entities import AssessmentSource, Feedback, TraceInfo

from workbench import LabelQuestion, assign
from workbench.labeling.annotations import ACTION_KEY, UNDONE, revealed_tag, without_spans
from workbench.labeling.sessions import LabelSession
from workbench.labeling.writer import TraceStore
from workbench.store.assessments import now_ms
from workbench.store.labels import AFTER_VERDICT_KEY, label_records

TEAM = ("ana", "ben", "cleo")
TRACES = 4
# Ana has two panels open.
OPEN = ("ana", "ana", "ben", "cleo")
PANELS = st.integers(0, len(OPEN) - 1)
PLACES = st.integers(0, TRACES - 1)
VALUES = st.sampled_from(["yes", "no", None])
COMMENTS = st.sampled_from([None, "so", "or so"])
SKEWS = st.sampled_from([-3_600_000, 0, 3_600_000])
FATES = st.sampled_from(["comes", "comes", "is late", "is lost", "comes twice"])
NAMES = ("quality", "comment")
QUESTIONS = (LabelQuestion("quality", SCALE), LabelQuestion("comment", None, required=False))


class Page:
    """A panel as the view keeps it: what waits and what can be undone outlive page and kernel.

    ``to_kernel`` and ``to_page`` are on their way.
    """

    def __init__(self, who: str, store: MemoryStore, parts: Any) -> None:
        self.who, self.store, self.parts = who, store, parts
        self.pending: dict[str, dict[str, Any]] = {}
        self.undoable: list[dict[str, Any]] = []
        self.told: set[str] = set()
        self.refused: dict[str, str] = {}
        self.revealed: set[str] = set()
        self.skew = 0
        self.to_kernel: deque[str] = deque()
        self.to_page: deque[str] = deque()
        self.start()

    def start(self) -> None:
        self.traces = MemoryTraces(self.store)
        self.session = LabelSession(
            annotator=self.who,
            questions=QUESTIONS,
            assign=self.parts,
            reveal=True,
            refresh_every=None,
            store=self.traces,
        )
        self.session.on_message = self.answer
        self.hello()

    def hello(self) -> None:
        self.send({"type": "hello", "pending": list(self.pending.values())})

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

    def answer(self, message: dict[str, Any]) -> None:
        if message["type"] == "revealed":
            self.revealed.add(message["trace_id"])
        # Items are many and change nothing here.
        if message["type"] != "items":
            self.to_page.append(json.dumps(message, allow_nan=False))

    def restart(self) -> None:
        """The kernel dies with what it has not written; the cell is run again."""
        self.session.on_message = None
        self.traces.alive = False
        self.to_kernel.clear()
        self.to_page.clear()
        self.start()

    def carry(self, way: str, fate: str) -> None:
        """What becomes of the next message on one of the ways."""
        queue = self.to_kernel if way == "to the kernel" else self.to_page
        if not queue or fate == "is late":
            return
        text = queue.popleft()
        for _ in range({"is lost": 0, "comes": 1, "comes twice": 2}[fate]):
            if way == "to the kernel":
                for answer in self.session.receive(json.loads(text)):
                    self.answer(answer)
            else:
                self.hear(json.loads(text))

    def carry_all(self) -> None:
        for way, queue in (("to the kernel", self.to_kernel), ("to the page", self.to_page)):
            for _ in range(len(queue)):
                self.carry(way, "comes")


class Team(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        ids = [f"t{n}" for n in range(TRACES)]
        self.store = MemoryStore(ids)
        self.parts = assign(ids, TEAM, each=2)
        self.acted: dict[str, dict[str, Any]] = {}
        self.by: dict[str, Page] = {}
        self.deleted: set[str] = set()
        self.elsewhere: set[str] = set()
        self.seen_before: set[str] = set()
        self.pages = [Page(who, self.store, self.parts) for who in OPEN]
        for page in self.pages:
            page.carry_all()

    # -- what the annotators do ---------------------------------------------------------

    def trace(self, page: Page, place: int) -> str:
        """The one of the page's share at a place."""
        own = self.parts.of(page.who)
        assume(own)
        return own[place % len(own)]

    def act(self, page: Page, kind: str, trace_id: str, fate: str, **more: Any) -> None:
        key = f"action-{len(self.acted)}"
        action = {
            "id": key, "kind": kind, "trace_id": trace_id, "position": 0, "seconds": 1.5,
            "at": max(0, now_ms() + page.skew), "answers": {}, "rationale": {}, "undoes": None,
            **more,
        }  # fmt: skip
        self.acted[key], self.by[key] = action, page
        if any(trace_id in one.revealed for one in self.pages if one.who == page.who):
            self.seen_before.add(key)
        if kind != "undo":
            page.undoable.append(action)
        page.act(action)
        self.carry(page, "to the kernel", fate)

    def carry(self, page: Page, way: str, fate: str) -> None:
        page.carry(way, fate)
        self.settle(page)

    def settle(self, page: Page) -> None:
        """Wait until all is written, or the store is down."""
        deadline = time.monotonic() + 30
        while not self.store.down and not page.session.flush(0.1):
            assert time.monotonic() < deadline

    def save(
        self, page: Page, trace_id: str, value: str | None, fate: str, comment: str | None = "so"
    ) -> None:
        answers = {"quality": {"value": value, "abstain": value is None}}
        if comment is not None:
            answers["comment"] = {"value": comment, "abstain": False}
        self.act(page, "save", trace_id, fate, answers=answers)

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

    @rule(panel=PANELS, place=PLACES)
    def someone_looks_at_the_verdict(self, panel: int, place: int) -> None:
        page = self.pages[panel]
        page.send({"type": "reveal", "trace_id": self.trace(page, place)})
        page.carry_all()
        self.settle(page)

    # -- what happens to them -----------------------------------------------------------

    @rule(panel=PANELS, way=st.sampled_from(["to the kernel", "to the page"]), fate=FATES)
    def a_message_comes(self, panel: int, way: str, fate: str) -> None:
        self.carry(self.pages[panel], way, fate)

    @precondition(lambda self: self.acted)
    @rule(data=st.data(), panel=st.integers(0, 1))
    def a_message_was_on_its_way_all_the_time(self, data: st.DataObject, panel: int) -> None:
        """Perhaps to the other kernel, and of what was taken back since."""
        action = self.acted[data.draw(st.sampled_from(sorted(self.acted)))]
        page = self.by[action["id"]]
        # While the store is down, two kernels write in an order that nobody knows.
        if page.who == "ana" and not self.store.down:
            page = self.pages[panel]
        page.session.receive({"type": "act", "actions": [action]})
        self.settle(page)

    @rule(panel=PANELS)
    def what_was_not_answered_is_sent_again(self, panel: int) -> None:
        self.pages[panel].resend()
        self.carry(self.pages[panel], "to the kernel", "comes")

    @rule(panel=PANELS)
    def the_page_is_loaded_anew(self, panel: int) -> None:
        self.pages[panel].to_page.clear()
        self.pages[panel].hello()

    @rule(panel=PANELS)
    def the_kernel_restarts(self, panel: int) -> None:
        self.pages[panel].restart()
        self.carry(self.pages[panel], "to the kernel", "comes")

    @rule(panel=PANELS)
    def the_panel_is_refreshed(self, panel: int) -> None:
        self.pages[panel].session.refresh()

    @rule()
    def the_store_fails(self) -> None:
        self.store.down = True

    @precondition(lambda self: self.store.down)
    @rule()
    def the_store_is_back(self) -> None:
        self.store.mend()
        for page in self.pages:
            assert page.session.flush(30)

    @precondition(lambda self: not self.store.down)
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
        self.store.fails_after = count
        if undone:
            self.undo(page, "comes")
        else:
            self.save(page, trace_id, "no", "comes")
        page.restart()
        page.carry_all()
        self.what_a_page_was_told_is_saved_is_there_once()
        self.the_store_is_back()

    @rule(count=st.integers(1, 3))
    def the_store_writes_and_does_not_answer(self, count: int) -> None:
        self.store.lose_answers = count

    @precondition(lambda self: not self.deleted)
    @rule(place=PLACES)
    def a_trace_is_deleted(self, place: int) -> None:
        trace_id = self.parts.trace_ids[place]
        self.deleted.add(trace_id)
        with self.store.lock:
            del self.store.infos[trace_id]

    @rule(place=PLACES, value=st.sampled_from(["yes", "no"]), who=st.sampled_from(TEAM))
    def someone_labels_in_mlflow(self, place: int, value: str, who: str) -> None:
        trace_id = self.parts.trace_ids[place]
        if trace_id not in self.deleted and who in self.parts.annotators_of(trace_id):
            self.elsewhere.add(trace_id)
            source = AssessmentSource("HUMAN", who)
            self.store.assess(
                trace_id,
                Feedback(name="quality", value=value, source=source, create_time_ms=now_ms()),
            )

    # -- what must hold -----------------------------------------------------------------

    @invariant()
    def what_a_page_was_told_is_saved_is_there_once(self) -> None:
        told = [set(page.told) for page in self.pages]
        infos = self.store.snapshot().values()
        made = Counter(
            (a.metadata[ACTION_KEY], a.name, a.source.source_id, info.trace_id)
            for info in infos
            for a in info.assessments
            if ACTION_KEY in (a.metadata or {})
        )
        assert all(count == 1 for count in made.values()), made
        keys = {(key, name) for key, name, *_ in made}
        assert len(keys) == len(made)
        for key, name, who, trace_id in made:
            assert name in self.acted[key]["answers"]
            assert who == self.by[key].who
            assert trace_id == self.acted[key]["trace_id"]
        undone = {t.removeprefix(UNDONE) for i in infos for t in i.tags if t.startswith(UNDONE)}
        for key in set().union(*told):
            action = self.acted[key]
            if action["trace_id"] in self.deleted:
                continue
            if action["kind"] == "save":
                # What is said again after the verdict is not written again.
                tags, who = self.store.infos[action["trace_id"]].tags, self.by[key].who
                blind = [one.name for one in QUESTIONS if revealed_tag(who, one) not in tags]
                lacking = [n for n in blind if n in action["answers"] and (key, n) not in keys]
                assert not lacking or key in undone, f"{lacking} of {key} is lost"
            if action["kind"] == "undo":
                assert action["undoes"] in undone

    @invariant()
    def what_was_said_after_the_verdict_is_marked(self) -> None:
        for info in self.store.snapshot().values():
            for a in info.assessments:
                if (a.metadata or {}).get(ACTION_KEY) in self.seen_before:
                    assert a.metadata.get(AFTER_VERDICT_KEY) == "true"

    @invariant()
    def the_last_word_counts(self) -> None:
        """Of one panel it is its own; of two of one person the last word of one of them."""
        if self.store.down:
            return
        for trace_id, info in self.store.snapshot().items():
            if trace_id in self.elsewhere:
                continue
            for who, name in itertools.product(TEAM, NAMES):
                pages = [page for page in self.pages if page.who == who]
                waiting = [a for page in pages for a in page.pending.values()]
                seen = any(trace_id in page.revealed for page in pages)
                if seen or any(a["trace_id"] == trace_id for a in waiting):
                    continue
                words = [self.last_word(page, trace_id, name) for page in pages]
                given = [word for word in words if word is not None]
                counting = self.counting(info, who, name)
                told = trace_id, who, name, counting, given
                assert len(counting) == min(1, len(given)), told
                assert not counting or counting[0] in given, told

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
        records = label_records([without_spans(info)], name)
        return [record.value for record in records if record.annotator == who]

    def teardown(self) -> None:
        self.store.mend()
        # Nothing is lost any more, and what was not answered is sent again.
        for _ in range(3):
            for page in self.pages:
                page.resend()
                page.carry_all()
                assert page.session.flush(30)
                page.carry_all()
        self.what_a_page_was_told_is_saved_is_there_once()
        self.the_last_word_counts()
        infos = self.store.snapshot()
        for key, action in self.acted.items():
            page = self.by[key]
            assert key not in page.pending
            # What was refused is listed with the reason.
            assert key in page.told or page.refused[key]
            assert (
                key in page.told
                or action["trace_id"] in {*self.deleted, *page.revealed}
                or ("before the verdict" in page.refused[key])
            )
        for page in self.pages:
            page.session.refresh()
            table = page.session.labels
            keys = zip(table["trace_id"], table["question"], strict=True)
            shown = dict(zip(keys, table["value"], strict=True))
            there = [i for i in self.parts.of(page.who) if i in infos]
            for trace_id, name in itertools.product(there, NAMES):
                counting = self.counting(infos[trace_id], page.who, name)
                assert [shown[k] or "N/A" for k in [(trace_id, name)] if k in shown] == counting
            state = page.session.state()
            assert (state["progress"]["waiting"], state["message"]) == (0, "")
            page.traces.alive = False


def test_a_team_loses_nothing_and_doubles_nothing() -> None:
    """Whatever they do at the same time, and whatever becomes of the messages."""
    run_state_machine_as_test(
        Team,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            # Making a failure smaller would take minutes; its steps are told anyway.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("kind", ["save", "undo"])
def test_the_store_in_memory_does_as_mlflow(kind: str, store: str) -> None:
    """An assessment that overrides another, and the deletion of it."""
    from labeling_helpers import imported

    (trace_id,) = imported(1)
    real = TraceStore()
    memory = MemoryTraces(MemoryStore([trace_id]))
    found = []
    for traces in (real, memory):
        for number in range(2):
            made = Feedback(
                name="quality",
                value=f"{number}",
                source=AssessmentSource("HUMAN", "ana"),
                trace_id=trace_id,
                overrides=f"a-{number - 1}" if number else None,
            )
            made.assessment_id = f"a-{number}"
            traces.client.log_assessment(trace_id, made)
        traces.client.set_trace_tag(trace_id, "tag", "1")
        if kind == "undo":
            traces.client.delete_assessment(trace_id, "a-1")
            traces.client.delete_assessment(trace_id, "a-1")
        info = traces.get(trace_id)
        marks = {a.assessment_id: a.valid is not False for a in info.assessments}
        found.append((marks, info.tags.get("tag")))
    assert found[0] == found[1]
