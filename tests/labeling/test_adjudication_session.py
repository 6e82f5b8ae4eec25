"""The adjudication of one question by one person, without a browser."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource
from running import active_store

import workbench
from workbench.labeling.annotations import revealed_tag
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.sessions import AdjudicationSession
from workbench.labeling.writer import TraceStore
from workbench.store.labels import decision_feedback, decision_records
from workbench.store.traces import fetch_traces
from workbench.widgets.panels import AdjudicationPanel

NAME = "quality"
HOSTILE = "<img src=x onerror=alert(1)>"
_numbers = itertools.count()


@pytest.fixture
def ids(store: str) -> list[str]:
    """Traces on which Ana and Ben differ by all the scale, by one step and not at all."""
    table = pd.DataFrame({"q": list("abc"), "a": list("123")})
    table["ana"] = ["poor", "fair", "good"]
    table["ben"] = ["fair", "good", "good"]
    table.loc[0, "ben"] = "good"
    table["why"] = "since"
    made = workbench.import_traces(table, inputs=["q"], outputs="a").trace_ids
    table["trace_id"] = made
    workbench.log_labels(table, name=NAME, annotator="ana", value="ana", rationale="why")
    workbench.log_labels(table, name=NAME, annotator="ben", value="ben")
    return list(made)


def session(**options: Any) -> AdjudicationSession:
    made = AdjudicationSession(NAME, **{"by": "dora", **options})
    made.told = []  # type: ignore[attr-defined]
    made.on_message = made.told.append  # type: ignore[attr-defined]
    return made


def action(trace_id: str, value: str | None = "good", why: str = "", **more: Any) -> dict[str, Any]:
    return {
        "id": f"act-{next(_numbers)}",
        "kind": "save",
        "trace_id": trace_id,
        "answers": {NAME: {"value": value, "abstain": value is None}},
        "rationale": {NAME: why},
        **more,
    }


def undo(target: dict[str, Any]) -> dict[str, Any]:
    return action(target["trace_id"], kind="undo", undoes=target["id"])


def send(one: AdjudicationSession, *actions: dict[str, Any]) -> list[dict[str, Any]]:
    """What is answered and told to actions, when all of them are settled."""
    one.told.clear()  # type: ignore[attr-defined]
    answered = one.receive({"type": "act", "actions": list(actions)})
    assert one.flush(30)
    return [*answered, *one.told]  # type: ignore[attr-defined]


def decided(trace_ids: list[str]) -> dict[str, Any]:
    records = decision_records(fetch_traces(trace_ids, spans=False), NAME)
    return {one.trace_id: one.value for one in records}


def items_message(one: AdjudicationSession) -> dict[str, Any]:
    return next(m for m in one.receive({"type": "hello"}) if m["type"] == "items")


def shown(one: AdjudicationSession) -> list[dict[str, Any]]:
    return list(items_message(one)["items"])


def test_items_are_those_on_which_people_differ(ids: list[str]) -> None:
    """The farthest apart first, with what each said and why."""
    items = shown(session())
    assert [item["trace_id"] for item in items] == ids[:2]
    assert items[0]["voices"] == [
        {"annotator": "ana", "value": "poor", "rationale": "since", "earlier_rubric": False},
        {"annotator": "ben", "value": "good", "rationale": "", "earlier_rubric": False},
    ]
    assert (items[0]["inputs"], items[0]["outputs"]) == ({"q": "a"}, "1")
    assert session().setup()["questions"][0]["values"][0] == {"value": "poor", "label": "poor"}


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}])
def test_a_label_of_several_values_is_shown_and_has_no_vote(ids: list[str], value: Any) -> None:
    """As programs log it; the others still differ, and their labels are read."""
    source = AssessmentSource("HUMAN", "cem")
    mlflow.log_feedback(trace_id=ids[0], name=NAME, value=value, source=source)
    voices = shown(session())[0]["voices"]
    assert [voice["value"] for voice in voices] == ["poor", "good", str(value)]
    assert len(workbench.disagreements(NAME)) == 2
    workbench.log_verdicts(
        pd.DataFrame({"trace_id": ids, "v": "good"}), name=NAME, source="m", value="v"
    )
    assert "without a vote: 1 label" in repr(workbench.pair(NAME).notes)


def test_numbers_are_shown_as_people_wrote_them(ids: list[str]) -> None:
    """A whole one as such, whatever the scale."""
    table = pd.DataFrame({"trace_id": ids[:1], "ana": 4, "ben": 2.5})
    for who in ("ana", "ben"):
        workbench.log_labels(table, name="points", annotator=who, value=who)
    made = AdjudicationSession("points", by="dora", scale=workbench.Scale("numeric"))
    (item,) = made.receive({"type": "hello"})[0]["items"]
    assert [voice["value"] for voice in item["voices"]] == ["4", "2.5"]


def test_items_and_decisions_bear_a_stamp(ids: list[str]) -> None:
    """Items that were read before a decision was saved do not take it back."""
    one = session()
    before = items_message(one)
    (saved,) = send(one, action(ids[0]))
    assert before["stamp"] < saved["stamp"]


def test_the_scale_follows_the_labels(ids: list[str]) -> None:
    """Of values that come later, too; unless it was given."""
    one, given = session(), session(scale=workbench.Scale.of(["poor", "fair", "good"]))
    more = pd.DataFrame({"trace_id": ids[:1], "v": ["awful"]})
    workbench.log_labels(more, name=NAME, annotator="chloe", value="v")
    for which in (one, given):
        which.refresh()
    values = [one["value"] for one in one.setup()["questions"][0]["values"]]
    assert "awful" in values
    assert "awful" not in [v["value"] for v in given.setup()["questions"][0]["values"]]
    send(one, action(ids[0], "awful"))
    assert decided(ids) == {ids[0]: "awful"}


def test_a_decision_is_told_as_saved_when_the_store_has_it(ids: list[str]) -> None:
    one = session()
    act = action(ids[0], "fair", "between")
    (saved,) = send(one, act)
    assert (saved["type"], saved["ids"]) == ("saved", [act["id"]])
    assert saved["statuses"][ids[0]]["done"]["decided_by"] == "dora"
    assert decided(ids) == {ids[0]: "fair"}
    assert one.state()["position"] == 1
    assert one.progress["balance"] == {"poor": 0, "fair": 1, "good": 0}
    assert one.decisions.loc[ids[0], "decision"].tolist() == ["fair", "dora", "between"]


def test_an_action_that_comes_again_is_written_once(ids: list[str]) -> None:
    """In this session and in the next one, even when someone else has decided since."""
    act = action(ids[0], "fair")
    send(session(), act, act)
    workbench.adjudicate(ids[0], "poor", name=NAME, by="emil")
    again = session()
    assert send(again, act)[0]["type"] == "saved"
    assert decided(ids) == {ids[0]: "poor"}
    (trace,) = fetch_traces(ids[:1], spans=False)
    assert len(decision_feedback(trace, NAME)) == 2


def test_an_undo_brings_back_what_stood(ids: list[str]) -> None:
    """Nothing, or the decision before; and the same action sent again has no effect."""
    workbench.adjudicate(ids[0], "poor", name=NAME, by="emil")
    one = session()
    first, second = action(ids[0], "good"), action(ids[1], "fair")
    send(one, first, second)
    assert decided(ids) == {ids[0]: "good", ids[1]: "fair"}
    send(one, undo(first), undo(second))
    assert decided(ids) == {ids[0]: "poor"}
    send(session(), first, second)
    assert decided(ids) == {ids[0]: "poor"}


def test_an_abstention_is_a_decision(ids: list[str]) -> None:
    one = session()
    (saved,) = send(one, action(ids[0], None))
    assert saved["statuses"][ids[0]]["done"]["answers"][NAME] == {"value": None, "abstain": True}
    assert decided(ids) == {ids[0]: "N/A"}


def test_what_is_put_off_comes_last_and_writes_nothing(ids: list[str]) -> None:
    one = session()
    send(one, action(ids[0], kind="skip"))
    assert one.position == 1
    assert shown(one)[0]["skipped"]
    send(one, action(ids[1]))
    assert one.position == 0
    assert decided(ids) == {ids[1]: "good"}


def test_what_does_not_lie_on_the_scale_is_refused(ids: list[str]) -> None:
    one = session()
    (told,) = send(one, action(ids[0], "superb"))
    assert (told["type"], told["retry"]) == ("unsaved", False)
    assert one.unsaved["answers"].tolist() == [{NAME: "superb"}]
    assert decided(ids) == {}


@pytest.mark.parametrize(
    "message",
    [None, {}, {"type": "act", "actions": 3}, {"type": "want"}, {"type": "reveal"}, {"type": 7}],
)
def test_nonsense_is_answered_and_ends_nothing(ids: list[str], message: Any) -> None:
    one = session()
    assert [told["type"] for told in one.receive(message)] == ["problem"]
    send(one, action(ids[0]))
    assert decided(ids) == {ids[0]: "good"}


def test_a_store_that_is_down_is_waited_for(ids: list[str]) -> None:
    """Told as not saved yet, and written when it answers again."""

    class Failing(TraceStore):
        failures = 3

        def get(self, trace_id: str) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("down")
            return super().get(trace_id)

    one = session(store=Failing())
    told = send(one, action(ids[0]))
    assert [m["type"] for m in told] == ["unsaved"] * 3 + ["saved"]
    assert all(m["retry"] for m in told[:3])
    assert "down" in told[0]["error"]
    assert one.state()["message"] == ""
    assert decided(ids) == {ids[0]: "good"}


def test_a_deleted_trace_is_listed(ids: list[str]) -> None:
    one = session()
    where = mlflow.get_experiment_by_name("test").experiment_id
    mlflow.MlflowClient().delete_traces(where, trace_ids=[ids[0]])
    told = send(one, action(ids[0]), action(ids[1]))
    assert {m["type"] for m in told} == {"unsaved", "saved", "queue"}
    assert one.unsaved["trace_id"].tolist() == [ids[0]]
    assert shown(one)[0]["gone"]
    assert list(one.decisions.index) == ids[1:2]


def test_decisions_made_elsewhere_are_seen(ids: list[str]) -> None:
    one = session()
    workbench.adjudicate(ids[0], "fair", name=NAME, by="emil")
    more = pd.DataFrame({"trace_id": [ids[2]], "v": ["poor"]})
    workbench.log_labels(more, name=NAME, annotator="chloe", value="v")
    (queue,) = one.refresh()
    assert (queue["total"], queue["position"]) == (3, 1)
    assert [item["trace_id"] for item in shown(one)] == ids  # what is shown keeps its place
    assert shown(one)[0]["done"]["decided_by"] == "emil"


def test_labels_under_an_earlier_rubric_are_marked(ids: list[str]) -> None:
    workbench.set_rubric(NAME, "Says the *fact*.")
    one = session()
    assert one.setup()["questions"][0]["rubric"] == "Says the *fact*."
    assert [voice["earlier_rubric"] for voice in shown(one)[0]["voices"]] == [True, True]


def test_a_decision_is_confirmed_under_a_new_rubric(ids: list[str]) -> None:
    """The same answer is written once more, with the new version, and is not offered again."""
    workbench.set_rubric(NAME, "one")
    one = session()
    send(one, action(ids[0]))
    workbench.set_rubric(NAME, "two")
    (queue,) = one.offer_again()
    assert (queue["position"], one.progress["again"]) == (0, 1)
    send(one, action(ids[0]))
    assert one.progress["again"] == 0
    assert [one.rubric_version for one in decision_records(fetch_traces(ids[:1]), NAME)] == [2]
    assert not any(item["done"] and item["done"]["earlier_rubric"] for item in shown(session()))


def test_who_has_seen_the_verdict_decides_after_it(ids: list[str]) -> None:
    """As it is for labels, wherever the verdict was seen."""
    tag = revealed_tag("Dora", LabelQuestion(NAME, None))
    mlflow.MlflowClient().set_trace_tag(ids[0], tag, "1")
    send(session(), action(ids[0]), action(ids[1]))
    made = decision_records(fetch_traces(ids[:2]), NAME)
    assert {one.trace_id: one.after_verdict for one in made} == {ids[0]: True, ids[1]: False}


def test_a_panel_reads_no_other_store(ids: list[str], tmp_path: Path) -> None:
    """Where another one is active meanwhile, that is said and nothing changes."""
    one = session()
    with active_store(f"sqlite:///{tmp_path}/other.db"):
        (told,) = one.receive({"type": "refresh"})
        assert "another store is active" in told["error"]
    assert len(shown(one)) == 2


def test_the_panel_writes_what_the_browser_sends(ids: list[str]) -> None:
    panel = workbench.AdjudicationPanel(NAME, by="dora")
    assert isinstance(panel, AdjudicationPanel)
    panel._handle_custom_msg({"type": "act", "actions": [action(ids[0], "fair")]}, [])
    assert panel.session.flush(30)
    assert decided(ids) == {ids[0]: "fair"}
    assert panel.state["progress"]["labelled"] == 1
    assert repr(panel) == "<AdjudicationPanel 'quality' by dora: 1 of 2 decided>"
    assert panel.unsaved.empty


def test_the_table_in_its_place_holds_no_html_of_the_labels(ids: list[str]) -> None:
    table = pd.DataFrame({"trace_id": ids, "v": ["poor"] * 3, "why": [HOSTILE] * 3})
    workbench.log_labels(table, name=NAME, annotator=HOSTILE, value="v", rationale="why")
    panel = workbench.AdjudicationPanel(NAME, by=HOSTILE, title=HOSTILE)
    told = panel._repr_mimebundle_()["text/html"]
    assert ids[0] in told
    assert "onerror" in told
    assert "<img" not in told


def test_the_table_is_not_read_from_another_store(ids: list[str], tmp_path: Path) -> None:
    """It stays as it was where another store has become active meanwhile."""
    panel = workbench.AdjudicationPanel(NAME, by="dora")
    panel._table = shown = SimpleNamespace(tables=[])
    shown.update = lambda bundle, raw: shown.tables.append(bundle["text/html"])
    with active_store(f"sqlite:///{tmp_path}/other.db"):
        panel._renew_table()
    assert shown.tables == []
    panel._renew_table()
    assert ids[0] in shown.tables[0]
