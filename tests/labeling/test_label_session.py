"""One annotator's session: what is told as saved is in the store, once."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import pandas as pd
import pytest
from labeling_helpers import (
    SCALE,
    MemoryStore,
    MemoryTraces,
    View,
    begin,
    delete,
    imported,
    in_memory,
    stored,
    wait_until,
)
from mlflow.entities import AssessmentSource, Feedback
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from workbench import LabelQuestion, earlier_labels, log_labels, log_verdicts, pair, set_rubric
from workbench.errors import ArgumentError
from workbench.labeling.annotations import revealed_tag
from workbench.labeling.sessions import LabelSession
from workbench.store.labels import RUBRIC_KEY
from workbench.store.traces import fetch_traces


@pytest.fixture
def ids(store: str) -> list[str]:
    return imported(8)


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
    assert (item["inputs"], item["outputs"]) == (view.items()[0]["inputs"], "x")
    row = view.session.labels.iloc[0]
    assert (row.value, row.rationale, row.seconds, row.saved) == ("yes", "since so", 2.0, True)
    assert (row.chosen, row.probability, row.draw, row["pool"]) == ("random", 1 / 8, 1, 8)
    verdicts = pd.DataFrame({"trace_id": ids, "v": ["yes"] * 8})
    log_verdicts(verdicts, name="quality", source="m", value="v", progress=False)
    assert pair("quality", scale=SCALE).table[["human", "judge"]].values.tolist() == [
        ["yes", "yes"]
    ]


def test_what_is_told_later_goes_where_the_session_was_told_to_send_it(ids: list[str]) -> None:
    told: list[dict[str, Any]] = []
    session = LabelSession("quality", ids, annotator="ana", scale=SCALE, on_message=told.append)
    skip = {"id": "a", "kind": "skip", "trace_id": session.trace_ids[0]}
    assert session.receive({"type": "act", "actions": [skip]}) == []
    wait_until(lambda: [one["ids"] for one in told if one["type"] == "saved"] == [["a"]])


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
    assert third.act(action, undo, undo) == [action["id"], undo["id"]]
    # `other` has not heard of the undo.
    other.act(action)
    assert stored() == {}
    assert sum(len(t.info.assessments) for t in fetch_traces(spans=False)) == 0


@pytest.mark.parametrize("kind", ["save", "undo"])
def test_what_is_half_written_is_not_told_as_saved(kind: str) -> None:
    """The kernel ends between two labels of one action: sent again, the rest of it is done."""
    shared = MemoryStore(["t0"])
    asks = [LabelQuestion("quality", SCALE), LabelQuestion("comment", None, required=False)]

    def kernel() -> View:
        session = LabelSession(
            annotator="ana", questions=asks, refresh_every=None, store=MemoryTraces(shared)
        )
        return View(session)

    def left() -> dict[str, Any]:
        return {a.name: a.value for a in shared.infos["t0"].assessments}

    view = kernel()
    given = {"quality": "yes", "comment": "as promised"}
    answers = {name: {"value": value, "abstain": False} for name, value in given.items()}
    save = view.action("save", 0, answers=answers)
    undo = view.action("undo", 0, undoes=save["id"])
    if kind == "undo":
        view.act(save)
    action = {"save": save, "undo": undo}[kind]
    shared.fails_after = 1 if kind == "save" else 2
    view.send(type="act", actions=[action])
    wait_until(lambda: shared.down)
    assert not any(m["type"] == "saved" and action["id"] in m["ids"] for m in view.told)
    view.session.store.alive = False  # type: ignore[attr-defined]  # the kernel ends
    shared.mend()
    assert view.session.flush(20)
    assert len(left()) == 1

    again = kernel()
    again.send(type="hello", pending=[action])
    assert again.session.flush(20)
    assert [m["ids"] for m in again.told if m["type"] == "saved"] == [[action["id"]]]
    assert left() == (given if kind == "save" else {})


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
    view.ask(type="hello", pending=[])
    view.items()
    view.send(type="reveal", trace_id=trace_id)
    assert view.told[-1]["type"] == "problem"
    view.act(view.save(0, "no"))
    assert "SECRET" not in json.dumps(view.told)
    view.send(type="reveal", trace_id=trace_id)
    assert view.session.flush(20)
    assert view.told[-1] | {"others": None} == {
        "type": "revealed",
        "trace_id": trace_id,
        "judges": {"quality": {"value": "yes", "rationale": "SECRET judge"}},
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
    assert other.session.state()["lost"] == 0
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
        None, 7, [], {}, {"type": "dance"}, {"type": "want"}, {"type": "act"},
        {"type": "act", "actions": 7},
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
    assert view.session.flush(20)
    assert list(view.session.labels["rubric_version"]) == [0, 1, 2, 2]
    assert versions(view.session) == ["0", "1", "2", "2"]
    assert set(earlier_labels("quality").trace_id) == set(view.session.trace_ids[:2])


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
    view.session.offer_again()
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
    view.session.offer_again()
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


def test_what_is_said_again_after_the_verdict_is_no_change_of_mind(ids: list[str]) -> None:
    """Wherever the verdict was seen, and though an item is offered again, which it ends."""
    asks = [LabelQuestion("quality", SCALE), LabelQuestion("tone", SCALE)]
    view = View(LabelSession(annotator="ana", questions=asks, refresh_every=None))
    (yes, no) = ({"value": value, "abstain": False} for value in ("yes", "no"))
    view.act(view.action("save", 0, answers={"quality": yes, "tone": yes}))
    trace_id = view.session.trace_ids[0]
    for question in asks:
        mlflow.set_trace_tag(trace_id, revealed_tag("ana", question), "1")
    again = {"quality": no, "tone": yes}
    for _ in range(2):
        view.act(view.action("save", 0, answers=again))
        changed = view.session.labels.set_index("question")["changed_to"]
        assert changed.to_dict() == {"quality": "no", "tone": None}
        assert len(mlflow.get_trace(trace_id).info.assessments) == 3
        assert view.session.progress["again"] == 0
        view.session.offer_again([trace_id])


def test_the_reason_is_that_of_the_latest_answer(ids: list[str]) -> None:
    """What was said after the verdict is what is shown, and what is said next replaces."""
    view = begin()
    view.act(view.save(0, "no", "too short"))
    view.act(view.save(0, "yes", "I missed it", after_reveal=True))
    done = view.items()[0]["done"]
    assert (done["changed"]["quality"]["value"], done["rationale"]["quality"]) == (
        "yes", "I missed it",
    )  # fmt: skip


def test_free_text_has_no_balance(ids: list[str]) -> None:
    """Each text is another value, and all of them would go out with every message."""
    view = View(LabelSession(annotator="ana", questions=[LabelQuestion("quality", None)]))
    view.act(view.save(0, "something " * 50))
    assert view.session.progress["balance"] == {}
    assert view.session.progress["labelled"] == 1


def test_half_a_character_in_a_value_is_told_as_a_replacement() -> None:
    """One's own as others': no message could be sent with it. One's own is stored so, too."""
    store = MemoryTraces(MemoryStore(["t0"]))
    for kind, who in (("HUMAN", "ben"), ("LLM_JUDGE", "m")):
        source, why = AssessmentSource(kind, who), "since \ud83d"
        made = Feedback(name="quality", value="so \ud83d", source=source, rationale=why)
        store.store.assess("t0", made)
    asks = [LabelQuestion("quality", None)]
    view = View(LabelSession(annotator="ana", questions=asks, reveal=True, store=store))
    view.act(view.save(0, "or \ud83d"))
    assert view.session.labels["value"].tolist() == ["or \ufffd"]
    assert store.get("t0").assessments[-1].value == "or \ufffd"
    view.send(type="reveal", trace_id="t0")
    assert view.session.flush(20)
    assert view.told[-1]["others"][0]["value"] == "so \ufffd"
    json.dumps([*view.told, *view.items()], ensure_ascii=False).encode()


def test_numbers_of_earlier_labels_are_no_limit(ids: list[str]) -> None:
    """Nor do those of verdicts tell their range before a blind label."""
    table = pd.DataFrame({"trace_id": ids, "v": range(8)})
    for source, more in (("m", 12), ("n", 40), ("o", 80)):
        given = table.assign(v=table["v"] + more)
        log_verdicts(given, name="points", source=source, value="v", progress=False)
    view = View(LabelSession("points", annotator="ana"))
    (asked,) = view.session.setup()["questions"]
    assert (asked["kind"], asked["low"], asked["high"]) == ("numeric", None, None)
    answers = {"points": {"value": 100, "abstain": False}}
    view.act(view.action("save", 0, answers=answers))
    assert view.session.progress["labelled"] == 1


def test_a_list_of_values_is_no_scale(ids: list[str]) -> None:
    """It is said at once, and not by a panel that cannot be shown."""
    given: Any = ["no", "yes"]
    with pytest.raises(ArgumentError, match=r"scale=\['no', 'yes'\] must be a Scale"):
        LabelSession("quality", annotator="ana", scale=given)
    with pytest.raises(ArgumentError, match="name=' ' must be a non-empty text"):
        LabelQuestion(" ", SCALE)


# -- a store that fails ---------------------------------------------------------------------


def test_a_store_that_is_down_delays_and_loses_nothing() -> None:
    """The labels are not saved yet, the session goes on, and all is written afterwards."""
    view = in_memory(4)
    shared = view.session.store.store  # type: ignore[attr-defined]
    shared.down = True
    actions = [view.save(position, "yes") for position in range(3)]
    assert view.send(type="act", actions=actions) == []
    wait_until(lambda: bool(view.told))
    assert view.kinds()[0] == ("unsaved", True)
    assert set(view.told[0]["ids"]) <= {action["id"] for action in actions}
    state = view.session.state()
    assert state["position"] == 3
    assert "Not saved yet: database is locked" in state["message"]
    assert view.session.progress["waiting"] == 3
    assert view.session.labels.empty
    shared.mend()
    assert view.session.flush(60)
    assert not view.session.state()["message"]
    assert len(view.session.labels) == 3
    assert view.session.unsaved.empty


def test_sql_text_is_not_shown_to_annotators() -> None:
    """Neither where writing fails nor where reading does."""
    text = (
        "(sqlite3.OperationalError) disk I/O error\n[SQL: INSERT INTO assessments VALUES (?)]\n"
        "[parameters: ('SECRET label',)]\n(Background on this error at: https://sqlalche.me/e/20)"
    )

    class Failing(MemoryTraces):
        failures = 1
        unreadable = False

        def get(self, trace_id: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise MlflowException(text, error_code=TEMPORARILY_UNAVAILABLE)
            return super().get(trace_id)

        def spans(self, infos: Any) -> Any:
            raise MlflowException(text)

    view = in_memory(2, store=Failing(MemoryStore(["t0", "t1"])))
    view.act(view.save(0, "yes"))
    view.ask(type="want", start=0, count=2)
    said = json.dumps(view.told)
    assert said.count("the database reported an error") == 2
    for word in ("SQL", "INSERT", "SECRET", "sqlalche"):
        assert word not in said


def test_a_deleted_trace_is_listed(ids: list[str]) -> None:
    """Its label is told as never to be saved; the others are saved."""
    view = begin()
    gone = view.session.trace_ids[1]
    delete(gone)
    first = view.save(1, "no")
    view.act(view.save(0, "no"), first, view.save(2, "no"))
    assert sorted(view.kinds(), key=str) == [
        ("queue", None), ("saved", None), ("saved", None), ("unsaved", False)
    ]  # fmt: skip
    assert view.session.unsaved[["id", "trace_id"]].to_numpy().tolist() == [[first["id"], gone]]
    assert "deleted" in view.session.unsaved["error"][0]
    assert [item["gone"] for item in view.items(0, 4)] == [False, True, False, False]
    state = view.session.state()
    assert (state["position"], state["message"]) == (3, "")
    assert (state["progress"]["labelled"], state["progress"]["total"]) == (2, 7)
    # One that was labelled before it was deleted still is.
    view.session.offer_again(view.session.trace_ids[:1])
    delete(view.session.trace_ids[0])
    view.act(*(view.save(position, "no") for position in (0, *range(3, 8))))
    progress = view.session.progress
    assert (progress["labelled"], progress["total"], progress["again"]) == (7, 7, 0)
    assert view.session.summary().set_index("value")["labels"]["not labelled"] == 0


@pytest.mark.slow
def test_a_locked_database_delays_and_loses_nothing(ids: list[str], store: str) -> None:
    """As MLflow's own store says it."""
    import sqlite3

    view = begin()
    lock = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    view.send(type="act", actions=[view.save(n, "yes") for n in range(3)])
    wait_until(lambda: ("unsaved", True) in view.kinds())
    lock.execute("ROLLBACK")
    lock.close()
    assert view.session.flush(60)
    assert len(stored()) == 3
