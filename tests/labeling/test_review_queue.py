"""MLflow's label schemas and review queues as the shared work list of a team."""

from __future__ import annotations

import time
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from mlflow.entities import AssessmentSource
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas, review_queues
from mlflow.genai.label_schemas import InputCategorical, InputNumeric, InputPassFail, InputText
from mlflow.tracing.client import TracingClient

import workbench
from workbench.errors import ArgumentError, StoreError
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.sessions import LabelSession
from workbench.scale import Scale
from workbench.store.schemas import find_schema, make_schema, schema_scale

NAME = "quality"
LADDER = Literal["excellent", "good", "fair", "poor"]


def judge(name: str = NAME, kind: Any = LADDER) -> Any:
    return workbench.make_judge(name, "Rate {{ outputs }}.", feedback_value_type=kind)


def imported(count: int = 4) -> list[str]:
    table = pd.DataFrame({"q": [f"q{n}" for n in range(count)], "a": "x"})
    return list(workbench.import_traces(table, inputs=["q"], outputs="a").trace_ids)


def say(trace_ids: Iterable[str], by: str, name: str = NAME, value: Any = "good") -> None:
    """As MLflow's page says it: an assessment by a human under the question's name."""
    source = AssessmentSource(source_type="HUMAN", source_id=by)
    for trace_id in trace_ids:
        mlflow.log_feedback(trace_id=trace_id, name=name, value=value, source=source)


def finish(queue: workbench.ReviewQueue, trace_id: str, by: str, status: str = "complete") -> None:
    review_queues.set_review_queue_item_status(
        queue.queue_id, item_id=trace_id, status=status, completed_by=by
    )


def statuses(queue: workbench.ReviewQueue) -> dict[str, str]:
    found = review_queues.list_review_queue_items(queue.queue_id)
    return {item.item_id: str(item.status) for item in found}


# -- label schemas --------------------------------------------------------------------------


def test_pairs_are_on_the_scale_of_the_schema(store: str) -> None:
    """Where the judge's type does not tell it; several values at once tell none."""
    ids = imported(2)
    table = pd.DataFrame({"trace_id": ids, "v": ["5", "7"]})
    for name in ("grade", "tags", "free"):
        workbench.log_labels(table, name=name, annotator="ana", value="v")
        workbench.log_verdicts(table, name=name, source="m", value="v")
    label_schemas.create_label_schema(
        "grade", type="feedback", input=InputNumeric(min_value=0, max_value=10)
    )
    label_schemas.create_label_schema(
        "tags", type="feedback", input=InputCategorical(options=["5", "7"], multi_select=True)
    )
    label_schemas.create_label_schema("free", type="feedback", input=InputText())
    assert workbench.pair("grade").scale == Scale("numeric", low=0, high=10)
    assert workbench.pair("tags").scale.values == (5, 7)
    assert workbench.pair("free").scale.values == (5, 7)
    typed = judge("grade", Literal["5", "7"])
    workbench.assess(typed, ids)
    assert workbench.pair(typed).scale.kind == "binary"


# -- queues ---------------------------------------------------------------------------------


def test_a_queue_is_made_once_and_found_by_all(store: str) -> None:
    ids = imported()
    queue = workbench.review_queue("Pilot", [judge()], annotators=["Ana", "ben"], each=2, seed=3)
    assert queue.add(ids[:3]) == 3
    assert queue.add(ids) == 1
    found = workbench.review_queue("pilot")
    assert found == queue
    assert set(found.trace_ids) == set(ids)
    assert (found.annotators, found.each, found.seed) == (("Ana", "ben"), 2, 3)
    in_mlflow = review_queues.get_review_queue(queue.queue_id)
    assert in_mlflow.users == ["ana", "ben"]
    assert [one.name for one in found.schemas] == [NAME]


def test_settings_that_are_not_given_stay(store: str) -> None:
    workbench.review_queue("pilot", [judge()], annotators=["ana", "ben"], each=2)
    assert workbench.review_queue("pilot", annotators=["ana", "ben", "chloe"]).each == 2
    assert workbench.review_queue("pilot", each=1).annotators == ("ana", "ben", "chloe")


def test_a_team_may_be_given_by_an_iterator(store: str) -> None:
    """Which can be read once."""
    queue = workbench.review_queue("pilot", [judge()], annotators=iter(["ana", "ben"]))
    assert queue.annotators == ("ana", "ben")


def test_several_questions_at_once(store: str) -> None:
    label_schemas.create_label_schema(
        "safe", type="feedback", input=InputPassFail("Safe", "Unsafe"), instruction="Harm?"
    )
    label_schemas.create_label_schema("remarks", type="feedback", input=InputText())
    workbench.set_rubric(NAME, "Says the fact *first*.")
    asked = ["safe", judge(), "remarks", LabelQuestion("grade", Scale("numeric", low=0, high=5))]
    queue = workbench.review_queue("pilot", asked)
    told = [(q.name, q.kind, q.rubric, q.rubric_version, q.required) for q in queue.questions]
    assert told == [
        ("safe", "binary", "Harm?", None, True),
        (NAME, "ordinal", "Says the fact *first*.", 1, True),
        ("remarks", "text", "", None, False),
        ("grade", "numeric", "", None, True),
    ]
    assert find_schema(NAME).instruction == "Says the fact *first*."


def test_one_question_needs_no_list(store: str) -> None:
    """A judge, a name or a `LabelQuestion` by itself."""
    question = LabelQuestion("grade", Scale.from_type(LADDER))
    for name, one in (("a", question), ("b", judge()), ("c", "grade"), ("d", iter([question]))):
        assert len(workbench.review_queue(name, one).questions) == 1


def test_an_item_that_one_finished_still_reaches_the_others(store: str) -> None:
    """Where it is to be labelled twice: in the notebook at once, and in MLflow's page after
    `sync`."""
    ids = imported()
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana", "ben"], each=2)
    queue.add(ids)
    say(ids[:1], "ana")
    finish(queue, ids[0], "ana")
    assert ids[0] not in queue.open_for("ana")
    assert ids[0] in queue.open_for("ben")
    synced = queue.sync()
    assert (synced.finished, synced.reopened) == (0, 1)
    assert statuses(queue)[ids[0]] == "pending"
    say(ids[:1], "ben")
    synced = queue.sync()
    assert (synced.finished, synced.reopened) == (1, 0)
    assert statuses(queue)[ids[0]] == "complete"
    assert queue.sync() == type(synced)(0, 0)
    row = queue.items.set_index("trace_id").loc[ids[0]]
    assert (row["labelled_by"], row["wanted"], row["done"]) == (("ana", "ben"), 2, True)
    assert row["finished_by"] == "ben"


def test_a_name_is_the_same_in_mlflows_small_letters(store: str) -> None:
    """MLflow's page keeps users' names in small letters."""
    ids = imported(2)
    queue = workbench.review_queue("pilot", [judge()], annotators=["Ana", "Ben"], each=2)
    queue.add(ids)
    say(ids[:1], "ana")
    assert queue.open_for("Ana") == [i for i in queue.trace_ids if i == ids[1]]
    assert queue.items.set_index("trace_id").loc[ids[0], "labelled_by"] == ("Ana",)


def test_each_of_the_team_has_a_share(store: str) -> None:
    ids = imported(12)
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana", "ben", "chloe"])
    queue.add(ids)
    parts = {who: queue.of(who) for who in queue.annotators}
    assert sorted(i for own in parts.values() for i in own) == sorted(ids)
    assert parts == {who: queue.assignment.of(who) for who in queue.annotators}
    with pytest.raises(ArgumentError, match="annotator='dan' is not known"):
        queue.of("dan")


def test_without_a_team_items_are_for_whoever_comes_first(store: str) -> None:
    ids = imported()
    queue = workbench.review_queue("pilot", [judge()])
    queue.add(ids)
    say(ids[:1], "ana")
    finish(queue, ids[1], "ben")
    assert set(queue.of("ana")) == {ids[0], ids[2], ids[3]}
    assert set(queue.open_for("ben")) == {ids[1], ids[2], ids[3]}
    twice = workbench.review_queue("pilot", each=2)
    assert set(twice.open_for("ben")) == set(ids)
    assert set(twice.open_for("ana")) == set(ids[1:])


def test_what_was_declined_is_offered_to_nobody(store: str) -> None:
    ids = imported()
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana", "ben"], each=2)
    queue.add(ids)
    finish(queue, ids[0], "ana", "declined")
    assert ids[0] not in queue.of("ana") + queue.of("ben")
    assert queue.sync().reopened == 0


def kept(queue: workbench.ReviewQueue, trace_id: str, *kinds: str) -> str:
    """The status of an item after ben has done this with it in a panel."""
    session = LabelSession(traces=queue, annotator="ben", refresh_every=None)
    for number, kind in enumerate(kinds):
        action = {"id": f"{kind}{number}", "kind": kind, "trace_id": trace_id}
        if kind == "save":
            action["answers"] = {NAME: {"value": "good", "abstain": False}}
        if kind == "undo":
            action["undoes"] = f"{kinds[number - 1]}{number - 1}"
        session.receive({"type": "act", "actions": [action]})
        assert session.flush(30)
        session.reread()
        assert session.flush(30)
    return statuses(queue)[trace_id]


def test_what_the_lead_declined_stays_declined_when_it_is_labelled(store: str) -> None:
    """By one who held it already; as where all items are brought in step."""
    ids = imported(1)
    queue = workbench.review_queue("pilot", [judge()], annotators=["ben"])
    queue.add(ids)
    session = LabelSession(traces=queue, annotator="ben", refresh_every=None)
    assert session.flush(30)
    finish(queue, ids[0], "lead", "declined")
    answers = {NAME: {"value": "good", "abstain": False}}
    action = {"id": "a", "kind": "save", "trace_id": ids[0], "answers": answers}
    session.receive({"type": "act", "actions": [action]})
    assert session.flush(30)
    session.reread()
    assert session.flush(30)
    assert statuses(queue) == {ids[0]: "declined"}
    assert queue.sync().finished == 0


def test_a_skip_opens_nothing_that_an_expert_finished(store: str) -> None:
    """Where one is enough; where two are asked for it is still needed."""
    ids = imported(1)
    queue = workbench.review_queue("pilot", [judge()])
    queue.add(ids)
    finish(queue, ids[0], "expert")
    assert kept(queue, ids[0], "skip") == "complete"
    twice = workbench.review_queue("pilot", each=2)
    assert kept(twice, ids[0], "skip") == "pending"


def test_a_label_that_is_taken_back_opens_what_it_finished(store: str) -> None:
    ids = imported(1)
    queue = workbench.review_queue("pilot", [judge()])
    queue.add(ids)
    assert kept(queue, ids[0], "save", "undo") == "pending"


def test_an_item_is_done_when_all_ratings_are_there(store: str) -> None:
    ids = imported(1)
    asked = [judge(), LabelQuestion("safe", Scale.from_type(bool)), LabelQuestion("why", None)]
    queue = workbench.review_queue("pilot", asked, annotators=["ana"])
    queue.add(ids)
    say(ids, "ana")
    assert queue.open_for("ana") == ids
    say(ids, "ana", "safe", True)
    assert queue.open_for("ana") == []
    assert bool(queue.items["done"].all())


def test_batches_are_cut_from_the_queue(store: str) -> None:
    ids = imported(6)
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana", "ben"], batch_size=4)
    queue.add(ids)
    first = [queue.of(who, batch=0) for who in ("ana", "ben")]
    assert sorted(i for own in first for i in own) == sorted(queue.trace_ids[:4])


def test_labels_given_in_mlflows_page_make_pairs(store: str) -> None:
    ids = imported(2)
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana"])
    queue.add(ids)
    say(ids, "ana", value="fair")
    table = pd.DataFrame({"trace_id": ids, "v": ["fair", "good"]})
    workbench.log_verdicts(table, name=NAME, source="m", value="v")
    assert list(workbench.pair(NAME).table["human"]) == ["fair", "fair"]


def test_a_deleted_trace_leaves_the_rest_in_place(store: str) -> None:
    ids = imported()
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana"])
    queue.add(ids)
    where = mlflow.get_experiment_by_name("test").experiment_id
    mlflow.MlflowClient().delete_traces(where, trace_ids=[ids[0]])
    assert set(queue.of("ana")) == set(ids[1:])


def test_a_large_queue_is_built_at_once_and_a_label_does_not_read_it(
    store: str, record_property: Any
) -> None:
    """More items than a page are all there; the status of what is labelled follows."""
    ids = imported(1200)
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana"])
    began = time.monotonic()
    assert queue.add(None) == 1200
    record_property("figure", f"review queue: {(time.monotonic() - began) / 1.2:.1f} s per 1,000")
    assert queue.add(ids[:3]) == 0
    assert sorted(queue.trace_ids) == sorted(ids)
    session = LabelSession(traces=queue, annotator="ana", refresh_every=None)
    assert session.flush(60)
    statements: list[str] = []
    engine = TracingClient().store.engine
    sqlalchemy.event.listen(
        engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )
    answers = {NAME: {"value": "good", "abstain": False}}
    action = {"id": "a", "kind": "save", "trace_id": session.trace_ids[0], "answers": answers}
    session.receive({"type": "act", "actions": [action]})
    assert session.flush(30)
    asked = [text for text in statements if not text.startswith("PRAGMA")]  # of a new connection
    assert 0 < len(asked) < 80, len(asked)
    session.reread()
    assert session.flush(30)
    found = review_queues.list_review_queue_items(queue.queue_id, status="complete")
    assert [item.item_id for item in found] == session.trace_ids[:1]


def test_a_team_larger_than_mlflow_takes_shares_all_the_same(store: str) -> None:
    names = [f"person {n}" for n in range(12)]
    queue = workbench.review_queue("pilot", [judge()], annotators=names)
    ids = imported(3)
    queue.add(ids)
    assert sorted(i for who in names for i in queue.of(who)) == sorted(ids)
    assert workbench.review_queue("pilot").annotators == tuple(names)


def test_a_persons_own_queue_is_found(store: str) -> None:
    ids = imported(2)
    make_schema(NAME, Scale.from_type(LADDER))
    own = review_queues.get_or_create_user_queue("ana")
    review_queues.add_items_to_review_queue(own.queue_id, item_ids=ids)
    queue = workbench.review_queue("ana")
    assert [question.name for question in queue.questions] == [NAME]
    assert set(queue.open_for("ana")) == set(ids)


def test_all_of_it_over_a_server(server: str) -> None:
    ids = imported()
    workbench.set_rubric(NAME, "Says the fact first.")
    queue = workbench.review_queue("pilot", [judge()], annotators=["Ana", "ben"], each=2)
    assert queue.add(ids) == 4
    say(ids[:1], "ana")
    finish(queue, ids[0], "ana")
    assert ids[0] in queue.open_for("ben")
    assert queue.sync().reopened == 1
    say(ids[:1], "ben", value="poor")
    assert workbench.review_queue("pilot").sync().finished == 1
    assert statuses(queue)[ids[0]] == "complete"
    assert [question.rubric for question in queue.questions] == ["Says the fact first."]
    assert list(workbench.disagreements(NAME).index) == [ids[0]]
    assert find_schema("other") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "There is no review queue 'pilot' .*give its questions"),
        ({"questions": ["nothing"]}, "there is no label schema 'nothing'"),
        ({"questions": [NAME], "annotators": ["ana"], "each": 2}, "from 1 to 1"),
        ({"questions": [NAME], "annotators": ["ana", "Ana"]}, "names one person twice"),
        ({"questions": [NAME], "annotators": "ana"}, "one text"),
        ({"questions": [NAME], "each": 0}, "each=0 must be a whole number of 1 or more"),
        ({"questions": [NAME], "batch_size": -1}, "batch_size=-1 must be a whole number"),
        ({"questions": [NAME], "share": 0.5}, "needs annotators"),
    ],
)
def test_what_makes_no_queue_is_said(store: str, options: dict[str, Any], said: str) -> None:
    make_schema(NAME, Scale.from_type(LADDER))
    with pytest.raises(ArgumentError, match=said):
        workbench.review_queue("pilot", **options)


def test_what_is_refused_changes_nothing(store: str) -> None:
    """Neither here nor on MLflow's page, and no queue is left behind."""
    queue = workbench.review_queue("pilot", [judge()], annotators=["ana", "ben"], each=2)
    with pytest.raises(ArgumentError, match="from 1 to 1"):
        workbench.review_queue("pilot", annotators=["ana"])
    assert review_queues.get_review_queue(queue.queue_id).users == ["ana", "ben"]
    assert workbench.review_queue("pilot") == queue
    with pytest.raises(ArgumentError, match="from 1 to 1"):
        workbench.review_queue("other", [judge("other")], annotators=["ana"], each=2)
    assert find_schema("other") is None
    with pytest.raises(ArgumentError, match="existing: 'pilot'"):
        workbench.review_queue("other")


def test_a_queue_takes_what_numpy_and_pandas_hold(store: str) -> None:
    team = pd.Series(["ana", "ben"])
    given = {"annotators": team, "each": np.int64(2), "seed": np.int64(3), "share": np.float32(0.5)}
    queue = workbench.review_queue("pilot", [judge()], **given)
    assert workbench.review_queue("pilot") == queue
    assert (queue.annotators, queue.each, queue.seed) == (("ana", "ben"), 2, 3)
    assert workbench.review_queue("pilot", share=Fraction(1, 4)).share == 0.25
    with pytest.raises(ArgumentError, match="seed='x'"):
        workbench.review_queue("pilot", seed="x")  # type: ignore[arg-type]


def test_a_queue_found_again_is_in_its_own_experiment(store: str) -> None:
    """Whatever another one is called."""
    own = mlflow.set_experiment("own").experiment_id
    mlflow.create_experiment(own)
    workbench.review_queue("pilot", [judge()]).add(ids := imported(2))
    queue = workbench.review_queue("pilot")
    assert (set(queue.trace_ids), [one.name for one in queue.schemas]) == (set(ids), [NAME])


def test_questions_of_a_queue_in_use_are_locked(store: str) -> None:
    queue = workbench.review_queue("pilot", [judge()])
    queue.add(imported(1))
    assert workbench.review_queue("pilot", [judge()]) == queue
    with pytest.raises(MlflowException, match="questions are locked"):
        workbench.review_queue("pilot", [judge(), judge("other")])


def test_a_judge_that_tells_no_scale_is_said(store: str) -> None:
    with pytest.raises(ArgumentError, match="No scale is known"):
        workbench.review_queue("pilot", [judge(kind=str)])


def test_traces_of_another_experiment_are_not_taken(store: str) -> None:
    queue = workbench.review_queue("pilot", [judge()])
    mlflow.set_experiment("another")
    with pytest.raises(StoreError, match="not in the queue's experiment"):
        queue.add(imported(1))


def test_a_store_without_schemas_says_so(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracing.client import TracingClient

    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError

    for name in ("_get_label_schema_by_name", "_create_label_schema", "_get_review_queue_by_name"):
        monkeypatch.setattr(TracingClient, name, missing)
    assert schema_scale(NAME) is None
    with pytest.raises(StoreError, match=r"no label schemas in .*3\.14"):
        make_schema(NAME, Scale.from_type(bool))
    with pytest.raises(StoreError, match=r"no review queues in .*3\.14"):
        workbench.review_queue("pilot")
