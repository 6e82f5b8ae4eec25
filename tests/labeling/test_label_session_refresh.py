"""What a colleague, or oneself in MLflow's own page, does shows up in an open session."""

from __future__ import annotations

import threading
import time
from pathlib import Path
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
    label,
)
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas, review_queues
from mlflow.genai.label_schemas import InputCategorical, InputPassFail, InputText

import workbench
from workbench import LabelQuestion
from workbench.errors import ArgumentError
from workbench.labeling.sessions import LabelSession
from workbench.store.labels import label_records
from workbench.store.traces import fetch_traces


def queue_of(ids: list[str], **more: Any) -> workbench.ReviewQueue:
    queue = workbench.review_queue("pilot", [LabelQuestion("quality", SCALE)], **more)
    queue.add(ids)
    return queue


def status(queue: workbench.ReviewQueue, trace_id: str) -> str:
    return str(queue.items.set_index("trace_id").loc[trace_id, "status"])


# -- by itself ------------------------------------------------------------------------------


def by_the_clock(view: View) -> list[dict[str, Any]]:
    """What the view is told when it asks for what was done elsewhere."""
    before = len(view.told)
    (answer,) = view.send(type="refresh", stay=True)
    assert answer["type"] == "read"
    return view.told[before:-1]


def test_what_is_done_elsewhere_shows_up_by_itself(store: str) -> None:
    """A label and its withdrawal, and traces that join; nothing that is not new is told."""
    imported(4)
    view = begin()
    first, second = view.session.trace_ids[:2]
    label(first, "ana")
    (told,) = by_the_clock(view)
    assert view.session.position == 1
    assert told == {"type": "queue", "total": 4, "position": 1, "stay": True}
    answers = view.items()[0]["done"]["answers"]
    assert answers["quality"] == {"value": "yes", "abstain": False}
    (made,) = fetch_traces([first], spans=False)[0].info.assessments
    mlflow.delete_assessment(trace_id=first, assessment_id=made.assessment_id)
    by_the_clock(view)
    assert view.session.position == 0
    imported(2, "new")
    (told,) = by_the_clock(view)
    assert told == {"type": "queue", "total": 6, "position": 0, "stay": True}
    assert by_the_clock(view) == []
    assert second in view.session.trace_ids
    workbench.set_rubric("quality", "Facts first.")
    (told,) = by_the_clock(view)
    assert told == {"type": "queue", "total": 6, "position": 0, "stay": True}
    assert view.session.setup()["questions"][0]["rubric"] == "Facts first."


def test_a_store_that_fails_meanwhile_is_read_again() -> None:
    class Failing(MemoryTraces):
        reads = 0

        def infos(self, *given: Any, **how: Any) -> Any:
            self.reads += 1
            if self.reads in (2, 3):
                raise ConnectionError("down")
            return super().infos(*given, **how)

    store = Failing(MemoryStore(["t0"]))
    view = in_memory(1, store=store)
    for _ in range(3):
        assert by_the_clock(view) == []
    assert store.reads == 4


def test_a_store_that_is_not_active_is_not_read(store: str, tmp_path: Path) -> None:
    (trace_id,) = imported(1)
    view = begin()
    label(trace_id, "ana")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
    assert by_the_clock(view) == []
    mlflow.set_tracking_uri(store)
    assert len(by_the_clock(view)) == 1


def test_a_twentieth_of_the_time_at_most_is_spent_on_reading() -> None:
    """The answer says when to ask again; the first time the setup does."""
    slow = in_memory(1, refresh_every=0.01)
    assert slow.session.setup()["refresh_every"] == 0.01
    read = slow.session.reread
    slow.session.reread = lambda: (time.sleep(0.1), read())  # type: ignore[method-assign,assignment,union-attr]
    (answer,) = slow.send(type="refresh", stay=True)
    assert answer["wait"] >= 2
    (answer,) = in_memory(1, refresh_every=30.0).send(type="refresh", stay=True)
    assert answer["wait"] == 30


def test_of_traces_that_were_named_one_may_be_deleted_meanwhile(store: str) -> None:
    """What is done to the others shows up all the same."""
    first, second, third = imported(3)
    view = begin([first, second, third], refresh_every=None)
    delete(first)
    label(second, "ana")
    view.session.reread()
    assert view.session.progress["labelled"] == 1
    assert set(view.session.trace_ids) == {first, second, third}


def test_what_was_read_before_a_label_was_saved_does_not_take_it_back() -> None:
    """Reading takes a while; what is written meanwhile is later news."""
    read, go = threading.Event(), threading.Event()

    class Slow(MemoryTraces):
        reads = 0

        def infos(self, *given: Any, **how: Any) -> Any:
            found = super().infos(*given, **how)
            self.reads += 1
            if self.reads > 1:
                read.set()
                go.wait(20)
            return found

    view = in_memory(3, store=Slow(MemoryStore(["t0", "t1", "t2"])))
    reading = threading.Thread(target=view.session.refresh)
    reading.start()
    read.wait(20)
    view.send(type="act", actions=[view.save(0, "yes")])
    go.set()
    reading.join(20)
    assert view.session.flush(20)
    assert view.session.position == 1
    assert view.session.progress["labelled"] == 1


def test_a_view_may_ask_for_it(store: str) -> None:
    """The message answers as the method does."""
    imported(3)
    view = begin(refresh_every=None)
    label(view.session.trace_ids[0], "ana")
    assert view.ask(type="refresh") == {"type": "queue", "total": 3, "position": 1}
    (answer,) = view.session.offer_again(view.session.trace_ids[:1])
    assert answer == {"type": "queue", "total": 3, "position": 0}
    assert view.items()[0]["again"]
    assert view.send(type="keep", trace_id=view.session.trace_ids[0]) == []
    assert (view.session.progress["again"], view.session.position) == (0, 1)
    view.session.offer_again(view.session.trace_ids[0])
    assert view.session.progress["again"] == 1
    with pytest.raises(ArgumentError, match="'t9' is not among the items"):
        view.session.offer_again([*view.session.trace_ids, "t9"])


def test_a_store_that_fails_while_it_is_read_again_changes_nothing() -> None:
    class Failing(MemoryTraces):
        down = False

        def infos(self, *given: Any, **how: Any) -> Any:
            if self.down:
                raise MlflowException("database is locked")
            return super().infos(*given, **how)

    traces = Failing(MemoryStore(["t0", "t1"]))
    view = in_memory(2, store=traces)
    traces.down = True
    assert view.ask(type="refresh")["type"] == "problem"
    assert view.session.progress["total"] == 2
    assert isinstance(view.session.labels, pd.DataFrame)


# -- teams ----------------------------------------------------------------------------------


def test_what_another_has_done_leaves_the_queue(store: str) -> None:
    """Where whoever comes first labels an item; not what one has begun oneself."""
    ids = imported(6)
    queue = queue_of(ids)
    ana, ben = (begin(queue, annotator=who, refresh_every=None) for who in ("ana", "ben"))
    mine = ben.session.trace_ids[0]
    ben.act(ben.save(0, "no"))
    done = [i for i in ana.session.trace_ids if i != mine]
    ana.act(*(ana.save(ana.session.trace_ids.index(i), "yes") for i in done))
    assert ben.session.position < 6
    assert ben.ask(type="refresh") == {"type": "queue", "total": 6, "position": 6}
    progress = ben.session.progress
    assert (progress["labelled"], progress["total"]) == (1, 1)
    assert progress["balance"] == {"no": 1, "yes": 0}
    assert begin(queue, annotator="ben").session.trace_ids == [mine]
    # What was rated before it was known to be done is kept all the same.
    assert ben.act(ben.save(0, "no", trace_id=done[0], id="late")) == ["late"]
    records = label_records(fetch_traces(spans=False), "quality")
    assert sorted(r.annotator for r in records if r.trace_id == done[0]) == ["ana", "ben"]


def test_what_is_on_the_page_stays_there_whatever_others_do(store: str) -> None:
    """What they have done is passed over by the one who holds it; nothing moves under the hands."""
    ids = imported(6)
    queue = queue_of(ids)
    ana, ben = (begin(queue, annotator=who, refresh_every=None) for who in ("ana", "ben"))
    ben.ask(type="hello", pending=[])
    order = ben.session.trace_ids
    for n in (0, 2, 5):
        ana.act(ana.save(ana.session.trace_ids.index(order[n]), "yes"))
    before = len(ben.told)
    ben.session.reread()
    assert ben.session.trace_ids == order
    (told,) = ben.told[before:]
    assert told == {"type": "queue", "total": 6, "position": 1, "stay": True}
    assert [n for n, item in enumerate(ben.items()) if item["taken"]] == [0, 2, 5]
    assert not any(item["skipped"] for item in ben.items())
    assert ben.session.summary().set_index("value")["labels"]["not labelled"] == 3
    # The one on the page may be rated all the same, and then what is left comes.
    ben.act(ben.save(0, "no"))
    assert ben.session.position == 1
    ben.act(ben.save(1, "no"))
    assert ben.session.position == 3
    ben.session.reread()
    assert ben.session.trace_ids == order
    assert ben.session.progress["skipped"] == 0
    # What is free again is offered again.
    records = fetch_traces([order[2]], spans=False)[0].info.assessments
    mlflow.delete_assessment(trace_id=order[2], assessment_id=records[0].assessment_id)
    queue.sync()
    review_queues.set_review_queue_item_status(queue.queue_id, item_id=order[2], status="pending")
    ben.session.reread()
    assert ben.session.position == 2


def test_people_who_label_the_same_traces_have_orders_of_their_own(store: str) -> None:
    """One person's is always the same, however the name is written; and where it is settled who
    labels what all have the same, so that what they share is compared soon."""
    ids = imported(8)

    def order(who: str, traces: Any = ids, **more: Any) -> list[str]:
        return begin(traces, annotator=who, **more).session.trace_ids

    assert order("ana") == order("Ana ") == order("ana")
    assert order("ana") != order("ben")
    assert order("ana", seed=1) != order("ana")
    queue = queue_of(ids)
    assert order("ana", queue) != order("ben", queue)
    parts = workbench.assign(ids, ["ana", "ben"], each=2)
    assert order("ana", assign=parts) == order("ben", assign=parts)
    assert order("ana", assign=list) == order("ben", assign=list)
    twice = workbench.review_queue("pilot", each=2)
    assert order("ana", twice) == order("ben", twice)
    team = workbench.review_queue("pilot", each=2, annotators=["ana", "ben"])
    assert order("ana", team) == order("ben", team)


def test_an_item_that_one_finished_is_opened_for_the_others(store: str) -> None:
    """When another opens the queue here, and when it is read again."""
    ids = imported(2)
    queue = queue_of(ids, annotators=["ana", "ben"], each=2)

    def finish(trace_id: str) -> None:
        label(trace_id, "ana")
        review_queues.set_review_queue_item_status(
            queue.queue_id, item_id=trace_id, status="complete", completed_by="ana"
        )

    finish(ids[0])
    view = begin(queue, annotator="ben", refresh_every=None)
    assert view.session.flush(30)
    assert status(queue, ids[0]) == "pending"
    finish(ids[1])
    view.ask(type="refresh")
    assert view.session.flush(30)
    assert status(queue, ids[1]) == "pending"


@pytest.mark.parametrize("kind", [ArgumentError, ConnectionError])
def test_a_status_that_cannot_be_written_holds_nothing_up(
    kind: type[Exception],
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, and tried again at the next reading."""
    queue = queue_of(imported(2), annotators=["ana"])

    def refuse(self: object, items: object, *, by: str) -> None:
        raise kind("no rights")

    monkeypatch.setattr(workbench.ReviewQueue, "sync", refuse)
    view = begin(queue)
    assert view.session.flush(20)
    assert "no rights" in caplog.text
    view.act(view.save(0, "yes"))
    assert view.session.progress["labelled"] == 1


def test_batches_of_a_queue_come_one_after_the_other(store: str) -> None:
    ids = imported(9)
    queue = queue_of(ids, annotators=["ana"], batch_size=3)
    order = begin(queue).session.trace_ids
    for batch in range(3):
        assert sorted(order[3 * batch : 3 * batch + 3]) == sorted(queue.of("ana", batch=batch))


def test_a_name_is_one_persons_however_it_is_written(store: str) -> None:
    """MLflow's page keeps small letters: its label counts, and is replaced in place."""
    ids = imported(3)
    queue = queue_of(ids, annotators=["Ben", "ana"], each=2)
    label(ids[1], "ben")
    view = begin(queue, annotator="Ben")
    assert ids[1] not in queue.open_for("Ben")
    assert view.session.trace_ids[0] == ids[1]
    assert view.session.position == 1
    view.act(view.save(0, "no"))
    records = label_records(fetch_traces([ids[1]], spans=False), "quality")
    assert [(r.annotator, r.value) for r in records] == [("Ben", "no")]
    assert begin(queue, annotator="ben").session.position == 1


# -- questions ------------------------------------------------------------------------------


def test_a_label_schema_is_asked_in_its_own_words(store: str) -> None:
    """By its name, as it is, among others, and for a judge of its name and scale."""
    ids = imported(2)
    schema = label_schemas.create_label_schema(
        "safe",
        type="feedback",
        input=InputPassFail(positive_label="Good", negative_label="Bad"),
        instruction="Is it *harmless*?",
        enable_comment=True,
    )
    judge = workbench.make_judge("safe", "Rate {{ outputs }}.", feedback_value_type=bool)
    made = [
        LabelSession("safe", ids, annotator="ana"),
        LabelSession(None, ids, annotator="ana", questions=[schema]),
        LabelSession(None, ids, annotator="ana", questions=["safe"]),
    ]
    for session in made:
        (asked,) = session.setup()["questions"]
        assert [one["label"] for one in asked["values"]] == ["Bad", "Good"]
        assert asked["rubric"] == "Is it *harmless*?"
    (asked,) = LabelSession(judge, ids, annotator="ana").setup()["questions"]
    assert [one["label"] for one in asked["values"]] == ["Bad", "Good"]
    assert asked["rubric"] == "Rate {{ outputs }}."
    # Another scale has other words.
    (asked,) = LabelSession("safe", ids, annotator="ana", scale=SCALE).setup()["questions"]
    assert [one["label"] for one in asked["values"]] == ["no", "yes"]
    both = LabelSession(None, ids, annotator="ana", questions=[LabelQuestion("q", SCALE), schema])
    assert [q.name for q in both.questions] == ["q", "safe"]
    with pytest.raises(ArgumentError, match="no label schema 'nothing'"):
        LabelSession(None, ids, annotator="ana", questions=["nothing"])
    with pytest.raises(ArgumentError, match="questions holds 7"):
        LabelSession(None, ids, annotator="ana", questions=[7])  # type: ignore[list-item]


def test_a_question_of_several_values_leaves_the_others_askable(store: str) -> None:
    """It is asked in MLflow's page only, and that is said."""
    ids = imported(1)
    tags = InputCategorical(["a", "b"], multi_select=True)
    schemas = [
        label_schemas.create_label_schema("safe", type="feedback", input=InputPassFail("A", "B")),
        label_schemas.create_label_schema("tags", type="feedback", input=tags),
    ]
    made = review_queues.create_review_queue(
        "mixed", queue_type="custom", schema_ids=[one.schema_id for one in schemas]
    )
    review_queues.add_items_to_review_queue(made.queue_id, item_ids=ids)
    queue = workbench.review_queue("mixed")
    assert queue.open_for("ana") == ids
    assert queue.left_out == ["tags"]
    session = LabelSession(None, queue, annotator="ana")
    assert [q.name for q in session.questions] == ["safe"]
    assert "'tags'" in session.state()["message"]


def test_expectations_are_not_asked_and_that_is_said(store: str) -> None:
    ids = imported(1)
    schemas = [
        label_schemas.create_label_schema("safe", type="feedback", input=InputPassFail("A", "B")),
        label_schemas.create_label_schema("answer", type="expectation", input=InputText()),
    ]
    made = review_queues.create_review_queue(
        "mixed", queue_type="custom", schema_ids=[one.schema_id for one in schemas]
    )
    review_queues.add_items_to_review_queue(made.queue_id, item_ids=ids)
    session = LabelSession(None, workbench.review_queue("mixed"), annotator="ana")
    assert [q.name for q in session.questions] == ["safe"]
    assert "for expectations or lists: 'answer'" in session.state()["message"]
    for given in ({"judge_or_name": "answer"}, {"questions": [schemas[1]]}):
        with pytest.raises(ArgumentError, match="asks for an expectation"):
            LabelSession(traces=ids, annotator="ana", **given)  # type: ignore[arg-type]
