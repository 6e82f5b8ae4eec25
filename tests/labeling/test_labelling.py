"""One annotator's session: what is told as saved is in the store, once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from workbench import (
    LabelQuestion,
    Scale,
    earlier_labels,
    import_traces,
    log_labels,
    log_verdicts,
    pair,
    set_rubric,
)
from workbench.errors import ArgumentError, WorkbenchError
from workbench.labeling.queue import Action
from workbench.labeling.session import LabelSession
from workbench.store.assessments import RUBRIC_KEY
from workbench.store.labels import label_records
from workbench.store.traces import fetch_traces

SCALE = Scale.of(["no", "yes"])


class View:
    """The part of the browser: sends actions, keeps what it is told."""

    def __init__(self, session: LabelSession) -> None:
        self.session = session
        self.told: list[dict[str, Any]] = []
        self.numbers: Iterator[int] = iter(range(10**6))
        session.on_message = self.told.append

    def send(self, **message: Any) -> list[dict[str, Any]]:
        """A message and what is answered at once; both must be JSON."""
        answers = self.session.receive(json.loads(json.dumps(message)))
        self.told += answers
        json.dumps([answers, self.session.state()], allow_nan=False)
        return answers

    def action(self, kind: str, position: int, **more: Any) -> dict[str, Any]:
        trace_id = self.session.trace_ids[position]
        key = more.pop("id", f"{self.session.setup()['epoch']}-{next(self.numbers)}")
        at = int(time.time() * 1000)
        made = {"id": key, "kind": kind, "position": position, "trace_id": trace_id, "at": at}
        return {**made, "seconds": 2.0, **more}

    def save(self, position: int, value: Any, why: str = "", **more: Any) -> dict[str, Any]:
        answer = {"value": value, "abstain": value is None}
        return self.action(
            "save", position, answers={"quality": answer}, rationale={"quality": why}, **more
        )

    def act(self, *actions: dict[str, Any]) -> list[str]:
        """Send actions, wait until they are settled; the ids told as saved since."""
        before = len(self.told)
        self.send(type="act", actions=list(actions))
        assert self.session.flush(20)
        return [i for m in self.told[before:] if m["type"] == "saved" for i in m["ids"]]

    def items(self, start: int = 0, count: int = 100) -> list[dict[str, Any]]:
        (message,) = self.send(type="want", start=start, count=count)
        assert message["type"] == "items"
        return list(message["items"])


@pytest.fixture
def ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": [f"question {n}" for n in range(8)], "a": ["an answer"] * 8})
    return import_traces(table, inputs="q", outputs="a", progress=False).trace_ids


def begin(annotator: str = "ana", **more: Any) -> View:
    return View(LabelSession("quality", annotator=annotator, scale=SCALE, **more))


def stored(annotator: str = "ana") -> dict[str, Any]:
    """What the store says the annotator said, by trace."""
    records = label_records(fetch_traces(spans=False), "quality")
    return {r.trace_id: r.value for r in records if r.annotator == annotator}


def test_a_label_is_saved_and_read_back(ids: list[str]) -> None:
    """As told: in the store, in the item, in the table, and as a vote of `pair`."""
    view = begin()
    action = view.save(0, "yes", "since so")
    assert view.act(action) == [action["id"]]
    trace_id = view.session.trace_ids[0]
    assert stored() == {trace_id: "yes"}
    item = view.items()[0]
    assert item["done"]["answers"] == {"quality": {"value": "yes", "abstain": False}}
    assert item["done"]["rationale"] == {"quality": "since so"}
    assert (item["inputs"], item["outputs"]) == (view.items()[0]["inputs"], "an answer")
    row = view.session.labels.iloc[0]
    assert (row.value, row.rationale, row.saved, row.seconds) == ("yes", "since so", True, 2.0)
    assert (row.chosen, row.probability, row.draw, row["pool"]) == ("random", 1 / 8, 1, 8)
    verdicts = pd.DataFrame({"trace_id": ids, "v": ["yes"] * 8})
    log_verdicts(verdicts, name="quality", source="m", value="v", progress=False)
    assert pair("quality", scale=SCALE).table[["human", "judge"]].values.tolist() == [
        ["yes", "yes"]
    ]


def test_an_abstention_is_an_answer(ids: list[str]) -> None:
    """It finishes the item, is no vote, and reads back as what it is."""
    view = begin()
    view.act(view.save(0, None))
    assert view.session.state()["position"] == 1
    assert view.items()[0]["done"]["answers"] == {"quality": {"value": None, "abstain": True}}
    assert view.session.progress["balance"] == {"no": 0, "yes": 0, "can't judge": 1}
    assert list(stored().values()) == ["N/A"]


def test_a_correction_replaces_the_label(ids: list[str]) -> None:
    """By overriding it, so that one label counts and MLflow shows both."""
    view = begin()
    view.act(view.save(0, "yes"), view.save(0, "no"))
    assert list(stored().values()) == ["no"]
    info = mlflow.get_trace(view.session.trace_ids[0]).info
    assert sorted((a.value, a.valid) for a in info.assessments) == [("no", True), ("yes", False)]
    assert len(view.session.labels) == 1


def test_undo_takes_back_the_last_action(ids: list[str]) -> None:
    """A label is gone and its item open; what it had replaced holds again; a skip is no skip."""
    view = begin()
    view.act(view.save(0, "yes"), view.save(1, "yes"), view.save(1, "no"), view.action("skip", 2))
    assert view.session.state()["position"] == 3
    view.act(view.action("undo", 2))
    assert view.session.state()["position"] == 2
    view.act(view.action("undo", 1))
    assert list(stored().values()) == ["yes", "yes"]
    view.act(view.action("undo", 1), view.action("undo", 0))
    assert stored() == {}
    assert view.session.state()["position"] == 0
    assert "unsaved" not in {m["type"] for m in view.told}
    view.act(view.action("undo", 0))
    assert view.told[-1]["type"] == "unsaved"
    assert "nothing to take back" in view.told[-1]["error"]


def test_it_stands_where_one_left_off(ids: list[str]) -> None:
    """A new session finds labels and skips, and the same order of the rest."""
    view = begin(seed=3)
    view.act(view.save(0, "yes"), view.action("skip", 1), view.save(2, "no"))
    again = begin(seed=3)
    assert again.session.state()["progress"]["labelled"] == 2
    assert again.session.state()["progress"]["skipped"] == 1
    rest = [i for n, i in enumerate(view.session.trace_ids) if n > 2]
    assert again.session.trace_ids[3:] == rest
    assert again.session.state()["position"] == 3
    for position in range(3, 8):
        again.act(again.save(position, "no"))
    # The skipped one comes again at the end.
    position = again.session.state()["position"]
    assert again.session.trace_ids[position] == view.session.trace_ids[1]
    again.act(again.save(position, "no"))
    assert again.session.state()["position"] == 8
    assert len(stored()) == 8


def test_what_is_sent_again_is_not_written_again(ids: list[str]) -> None:
    """Not in the same message, not later, not to another session, and not after an undo."""
    view = begin()
    action = view.save(0, "yes")
    view.act(action, action)
    assert view.act(action) == [action["id"]]
    other = begin()
    assert other.act(action) == [action["id"]]
    undo = view.action("undo", 0, undoes=action["id"])
    assert view.act(undo) == [undo["id"]]
    third = begin()
    assert third.act(action, undo, undo) == [action["id"], undo["id"], undo["id"]]
    # `other` has not heard of the undo.
    other.act(action)
    assert stored() == {}
    assert sum(len(t.info.assessments) for t in fetch_traces(spans=False)) == 0


@pytest.mark.parametrize("kind", ["save", "undo"])
def test_what_is_written_by_half_is_not_told_as_saved(
    kind: str, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel ends between two labels of one action: sent again, the rest of it is done."""
    asks = [LabelQuestion("quality", SCALE), LabelQuestion("comment", None, required=False)]

    def two_questions() -> View:
        return View(LabelSession(annotator="ana", questions=asks))

    def left() -> dict[str, Any]:
        info = mlflow.get_trace(trace_id).info
        return {a.name: a.value for a in info.assessments}

    view = two_questions()
    trace_id = view.session.trace_ids[0]
    said = {"quality": "yes", "comment": "as promised"}
    answers = {name: {"value": value, "abstain": False} for name, value in said.items()}
    save = view.action("save", 0, answers=answers)
    # The view need not know what an undo took back.
    undo = view.action("undo", 0, undoes=None) | {"trace_id": ""}
    if kind == "undo":
        view.act(save)
    name = {"save": "create_assessment", "undo": "delete_assessment"}[kind]
    real, calls, locked = getattr(SqlAlchemyStore, name), [], threading.Event()

    def once(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        if len(calls) > 1:
            locked.set()
            raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        return real(*arguments, **named)

    def ended(*_: Any) -> Any:
        raise WorkbenchError("this kernel is no more")

    monkeypatch.setattr(SqlAlchemyStore, name, once)
    action = {"save": save, "undo": undo}[kind]
    view.send(type="act", actions=[action])
    assert locked.wait(20)
    assert not any(m["type"] == "saved" and action["id"] in m["ids"] for m in view.told)
    # The kernel ends: what its thread has not written yet, it never will.
    monkeypatch.setattr(view.session._recorder, kind, ended)
    assert view.session.flush(20)
    monkeypatch.setattr(SqlAlchemyStore, name, real)
    assert len(left()) == 1

    again = two_questions()
    told = again.send(type="hello", pending=[action])
    assert not any(m["type"] == "saved" for m in told)
    assert again.session.flush(20)
    assert [m["ids"] for m in again.told if m["type"] == "saved"] == [[action["id"]]]
    assert left() == (said if kind == "save" else {})
    assert len(again.session.state()["history"]) == (kind == "save")
    # What is there as a whole is told at once, by a kernel that knows it from the store only.
    third = two_questions()
    assert [m["ids"] for m in third.send(type="act", actions=[action])] == [[action["id"]]]


def test_labels_made_elsewhere_are_done(ids: list[str]) -> None:
    """By `log_labels` and in MLflow's page, before the session and while it runs."""
    table = pd.DataFrame({"trace_id": ids[:1], "v": ["yes"]})
    log_labels(table, name="quality", annotator="ana", value="v", progress=False)
    view = begin()
    assert view.items()[0]["done"]["elsewhere"] is True
    source = mlflow.entities.AssessmentSource("HUMAN", "ana")
    open_id = view.session.trace_ids[1]
    mlflow.log_feedback(trace_id=open_id, name="quality", value="no", source=source)
    assert view.session.state()["position"] == 1
    assert view.session.refresh() == [{"type": "queue", "total": 8, "position": 2}]
    assert view.session.progress["balance"] == {"no": 1, "yes": 1}


def test_blind_until_the_own_label_is_saved(ids: list[str]) -> None:
    """Nothing of the verdict or of others is told before; a change of mind stands beside."""
    verdicts = pd.DataFrame({"trace_id": ids, "v": ["yes"] * 8, "why": ["SECRET judge"] * 8})
    log_verdicts(verdicts, name="quality", source="m", value="v", rationale="why", progress=False)
    others = pd.DataFrame({"trace_id": ids, "v": ["no"] * 8, "why": ["SECRET ben"] * 8})
    log_labels(others, name="quality", annotator="ben", value="v", rationale="why", progress=False)
    view = begin(reveal=True, order="mix")
    trace_id = view.session.trace_ids[0]
    view.send(type="hello", pending=[])
    view.items()
    view.send(type="reveal", trace_id=trace_id)
    assert view.told[-1]["type"] == "problem"
    view.act(view.save(0, "no"))
    assert "SECRET" not in json.dumps(view.told)
    view.send(type="reveal", trace_id=trace_id)
    assert view.session.flush(20)
    assert view.told[-1] | {"judges": None, "others": None} == {
        "type": "revealed",
        "trace_id": trace_id,
        "judge": {"value": "yes", "rationale": "SECRET judge"},
        "judges": None,
        "others": None,
    }
    assert view.told[-1]["others"][0]["annotator"] == "ben"
    # The browser does not say so, but the store knows that the verdict was seen.
    later = begin()
    later.act(later.save(0, "yes"))
    assert later.session.trace_ids[0] == trace_id
    assert stored()[trace_id] == "no"
    row = later.session.labels.iloc[0]
    assert (row.value, row.changed_to, row.after_verdict) == ("no", "yes", False)
    assert pair("quality", consensus="ana").table["blind"].tolist() == [True]


@pytest.mark.parametrize("knows", [True, False])
def test_a_blind_label_is_not_taken_back_after_the_verdict(ids: list[str], knows: bool) -> None:
    """Only what is said after the reveal can be; also by a session that has not heard of it."""
    verdicts = pd.DataFrame({"trace_id": ids, "v": ["yes"] * 8})
    log_verdicts(verdicts, name="quality", source="m", value="v", progress=False)
    view = begin(reveal=True)
    trace_id = view.session.trace_ids[0]
    other = view if knows else None
    first = view.save(0, "no")
    view.act(first)
    other = other or begin(reveal=True)
    position = other.session.trace_ids.index(trace_id)
    view.send(type="reveal", trace_id=trace_id)
    assert view.session.flush(20)
    undo = other.action("undo", position, undoes=first["id"])
    assert other.act(undo) == []
    assert (other.told[-1]["type"], other.told[-1]["retry"]) == ("unsaved", False)
    assert "before the verdict was shown" in other.told[-1]["error"]
    second = other.save(position, "yes", after_reveal=True)
    other.act(second)
    assert stored() == {trace_id: "no"}
    pairs = pair("quality", scale=SCALE).table
    assert pairs[["human", "blind"]].values.tolist() == [["no", True]]
    row = begin().session.labels.iloc[0]
    assert (row.value, row.changed_to, row.after_verdict) == ("no", "yes", False)
    # What was said after the look at the verdict may be taken back.
    back = other.action("undo", position, undoes=second["id"])
    assert other.act(back) == [back["id"]]
    assert stored() == {trace_id: "no"}
    assert begin().session.labels.iloc[0].changed_to is None


def test_a_verdict_is_not_shown_while_the_label_is_taken_back(ids: list[str]) -> None:
    """Else the new label would not be blind, and the blind one gone."""
    view = begin(reveal=True)
    trace_id = view.session.trace_ids[0]
    save = view.save(0, "no")
    view.act(save)
    # As a session leaves it that ends between saying so and deleting the label.
    mlflow.set_trace_tag(trace_id, f"workbench.undone.{save['id']}", "u")
    view.send(type="reveal", trace_id=trace_id)
    assert view.session.flush(20)
    assert view.told[-1]["type"] == "problem"
    assert "workbench.revealed" not in str(fetch_traces([trace_id], spans=False)[0].info.tags)


@pytest.mark.parametrize(
    "message",
    [
        None, 7, [], {}, {"type": "dance"}, {"type": "want"}, {"type": "want", "start": -1},
        {"type": "want", "start": "0", "count": 1}, {"type": "act"}, {"type": "act", "actions": {}},
        {"type": "act", "actions": [None, 1, {"id": {}}, {"id": "a", "kind": "eat"}]},
        {"type": "act", "actions": [{"id": "a", "kind": "save", "trace_id": "x", "answers": 1}]},
        {"type": "act", "actions": [{"id": "a b", "kind": "skip", "trace_id": "x"}]},
        {"type": "reveal"}, {"type": "reveal", "trace_id": ["x"]},
    ],
)  # fmt: skip
def test_a_malformed_message_is_told(ids: list[str], message: Any) -> None:
    """It raises nothing and changes nothing."""
    view = begin(reveal=True)
    answers = view.session.receive(message)
    assert answers
    assert {m["type"] for m in answers} <= {"problem", "unsaved"}
    assert not any(m.get("retry") for m in answers)
    assert view.session.flush(5)
    assert stored() == {}


def test_what_can_not_be_a_label_is_refused(ids: list[str]) -> None:
    """Values off the scale, unknown questions, nothing at all: listed, and told for good."""
    view = begin()
    bad = [view.save(0, "maybe"), view.save(0, {"a": 1}), view.save(0, ["yes"])]
    other = view.save(0, "yes") | {"answers": {"other": {"value": "yes"}}}
    empty = view.save(0, "yes") | {"answers": {}}
    view.act(*bad, other, empty)
    assert stored() == {}
    assert len(view.session.unsaved) == 5
    assert view.session.unsaved["answers"][0] == {"quality": "maybe"}


def test_a_question_without_a_scale_is_an_error(ids: list[str]) -> None:
    """It says what to give."""
    with pytest.raises(ArgumentError, match="Give one, for instance"):
        LabelSession("quality", annotator="ana")
    with pytest.raises(ArgumentError, match="annotator"):
        LabelSession("quality", annotator=" ", scale=SCALE)


def test_half_an_emoji_in_a_reason_does_not_keep_it_from_being_saved() -> None:
    """A text field that is cut at its limit may end so."""
    given = {"id": "a", "kind": "save", "trace_id": "tr", "answers": {"q": {"value": "yes"}}}
    action = Action.parse({**given, "rationale": {"q": "fine \ud83d"}})
    assert action.answers["q"].rationale == "fine ?"


def versions(session: LabelSession) -> list[Any]:
    """The rubric version that each label of the session records, in the order of the queue."""
    infos = [fetch_traces([i], spans=False)[0].info for i in session.trace_ids]
    return [a.metadata.get(RUBRIC_KEY) for info in infos for a in info.assessments]


def test_a_label_is_of_the_rubric_that_was_shown(ids: list[str]) -> None:
    """It waited in the browser while the rubric was changed."""
    view = begin()
    none = view.save(0, "yes", rubrics={"quality": 0})
    set_rubric("quality", "Facts first.")
    view.session.refresh()
    (question,) = view.session.setup()["questions"]
    first = view.save(1, "yes", rubrics={"quality": question["rubric_version"]})
    set_rubric("quality", "Facts first, and no promises.")
    view.session.refresh()
    actions = [none, first, view.save(2, "yes", rubrics={"other": 7}), view.save(3, "no")]
    view.send(type="act", actions=actions)
    assert list(view.session.labels["rubric_version"]) == [0, 1, 2, 2]
    assert view.session.flush(20)
    assert list(view.session.labels["rubric_version"]) == [0, 1, 2, 2]
    assert versions(view.session) == ["0", "1", "2", "2"]
    assert set(earlier_labels("quality").trace_id) == set(view.session.trace_ids[:2])


def test_a_rubric_that_only_the_view_has_heard_of_is_looked_up(ids: list[str]) -> None:
    """Another kernel showed it; one that nobody wrote is refused."""
    set_rubric("quality", "Facts first.")
    view = begin()
    set_rubric("quality", "Facts first, and no promises.")
    unknown = view.save(1, "yes", rubrics={"quality": 3})
    view.act(view.save(0, "yes", rubrics={"quality": 2}), unknown)
    assert versions(view.session) == ["2"]
    assert list(view.session.unsaved["id"]) == [unknown["id"]]
    assert "no version 3" in view.session.unsaved["error"][0]


@pytest.mark.parametrize(
    "rubrics", [7, ["quality"], {"quality": True}, {"quality": "1"}, {"quality": 1.0},
                {"quality": -1}, {"quality": None}, {"quality": 10**30}, {"quality": {}}]
)  # fmt: skip
def test_a_rubric_version_that_is_none_is_refused(ids: list[str], rubrics: Any) -> None:
    view = begin()
    assert view.act(view.save(0, "yes", rubrics=rubrics)) == []
    assert (view.told[-1]["type"], view.told[-1]["retry"]) == ("unsaved", False)
    assert stored() == {}


def test_a_new_rubric_reaches_an_open_session(ids: list[str]) -> None:
    """What was labelled before is offered again under it, and what comes then is recorded so."""
    set_rubric("quality", "Facts first.")
    view = begin()
    view.act(view.save(0, "yes"), view.save(1, "yes"))
    first, second = view.session.trace_ids[:2]
    assert view.session.offer_again()[0]["position"] == 2
    set_rubric("quality", "Facts first, and no promises.")
    assert view.session.offer_again()[0]["position"] == 0
    assert view.session.setup()["questions"][0]["rubric"] == "Facts first, and no promises."
    assert view.items()[0]["done"]["earlier_rubric"]
    view.act(view.save(0, "no"))
    assert stored() == {first: "no", second: "yes"}
    assert view.session.state()["position"] == 1
    assert list(earlier_labels("quality").trace_id) == [second]


def test_after_the_verdict_a_new_answer_ends_that_an_item_is_offered_again(ids: list[str]) -> None:
    """It stays beside the first label, as a change, and the panel and the table say the same."""
    verdicts = pd.DataFrame({"trace_id": ids, "v": ["yes"] * 8})
    log_verdicts(verdicts, name="quality", source="m", value="v", progress=False)
    set_rubric("quality", "Facts first.")
    view = begin(reveal=True)
    first, second = view.session.trace_ids[:2]
    view.act(view.save(0, "yes"), view.save(1, "yes"))
    for trace_id in (first, second):
        view.send(type="reveal", trace_id=trace_id)
    assert view.session.flush(20)
    set_rubric("quality", "Facts first, and no promises.")
    view.send(type="offer_again")
    assert [item["again"] for item in view.items(0, 2)] == [True, True]
    assert (view.session.position, view.session.progress["again"]) == (0, 2)
    view.act(view.save(0, "no"))
    one, other = view.items(0, 2)
    assert (one["again"], one["done"]["earlier_rubric"]) == (False, False)
    assert (other["again"], other["done"]["earlier_rubric"]) == (True, True)
    assert list(earlier_labels("quality").trace_id) == [second]
    view.act(view.save(1, "yes"))
    assert (view.session.position, view.session.progress["again"]) == (2, 0)
    assert earlier_labels("quality").empty
    assert stored() == {first: "yes", second: "yes"}
    assert view.session.labels["changed_to"].tolist() == ["no", "yes"]
    # Asked again, nothing is left to offer; nor has another session anything.
    assert view.session.offer_again()[0]["position"] == 2
    assert not any(item["done"]["earlier_rubric"] for item in begin().items(0, 2))


def test_no_verdict_is_shown_of_what_is_offered_again(ids: list[str]) -> None:
    """What was never revealed is answered blind once more; then the verdict is shown."""
    verdicts = pd.DataFrame({"trace_id": ids, "v": ["yes"] * 8})
    log_verdicts(verdicts, name="quality", source="m", value="v", progress=False)
    set_rubric("quality", "Facts first.")
    view = begin(reveal=True)
    trace_id = view.session.trace_ids[0]
    view.act(view.save(0, "yes"))
    set_rubric("quality", "Facts first, and no promises.")
    view.send(type="offer_again")
    assert [m["type"] for m in view.send(type="reveal", trace_id=trace_id)] == ["problem"]
    view.act(view.save(0, "no"))
    assert stored() == {trace_id: "no"}
    assert view.session.labels["after_verdict"].tolist() == [False]
    view.send(type="reveal", trace_id=trace_id)
    assert view.session.flush(20)
    assert view.told[-1]["type"] == "revealed"


def test_each_question_is_of_the_rubric_of_its_own_latest_answer(ids: list[str]) -> None:
    """One that is answered anew says nothing of the others."""
    asks = [LabelQuestion("quality", SCALE), LabelQuestion("tone", SCALE)]
    for name in ("quality", "tone"):
        set_rubric(name, "As it was.")
    view = View(LabelSession(annotator="ana", questions=asks))
    yes = {"value": "yes", "abstain": False}
    view.act(view.action("save", 0, answers={"quality": yes, "tone": yes}))
    for name in ("quality", "tone"):
        set_rubric(name, "As it is.")
    view.session.refresh()
    view.act(view.action("save", 0, answers={"quality": yes}, after_reveal=True))
    assert view.items()[0]["done"]["earlier_rubric"]
    assert earlier_labels("quality").empty
    assert len(earlier_labels("tone")) == 1
    view.act(view.action("save", 0, answers={"tone": yes}, after_reveal=True))
    assert not view.items()[0]["done"]["earlier_rubric"]
    assert earlier_labels("tone").empty
