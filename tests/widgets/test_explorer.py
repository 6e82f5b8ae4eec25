"""The explorer without a browser: what it answers, what it writes, and what stands in its place."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from typing import Any

import mlflow
import pandas as pd
import pytest
from clarity import CURED, Proposing, biased_judge, labelled
from made_pairs import GRADES, make_pairs

import workbench
from workbench.errors import ArgumentError
from workbench.labeling.annotations import without_spans
from workbench.labeling.exploration import NOTE, PAGE, Items, Query
from workbench.metrics.slices import fields_of
from workbench.scale import Scale
from workbench.store.labels import AFTER_VERDICT_KEY, label_records
from workbench.store.traces import Example
from workbench.widgets.explorer import Explorer

HOSTILE = "<img src=x onerror=alert(1)>"
HUMAN = ["no", "no", "no", "yes", "yes", "yes"]
BEFORE = ["yes", "yes", "no", "yes", "no", "yes"]
AFTER = ["no", "yes", "no", "yes", "yes", "no"]


@pytest.fixture
def traces(store: str) -> list[str]:
    """Six labelled traces with the verdicts of two judges, `BEFORE` and `AFTER`."""
    table = pd.DataFrame({"question": [f"Q{i} {HOSTILE}" for i in range(6)], "ana": HUMAN})
    table["product"] = ["lamp", "desk"] * 3
    table["answer"] = ["start " + "word " * 400 + f"needle{i}" for i in range(6)]
    table = table.assign(before=BEFORE, after=AFTER, why="the judge's reason", said="ana's reason")
    made = workbench.import_traces(
        table, inputs=["question", "product"], outputs="answer", progress=False
    )
    table["trace_id"] = made.trace_ids
    workbench.log_labels(
        table, name="q", annotator="ana", value="ana", rationale="said", progress=False
    )
    for who in ("before", "after"):
        workbench.log_verdicts(
            table, name="q", source=who, value=who, rationale="why", progress=False
        )
    return list(made.trace_ids)


def explorer(**options: Any) -> tuple[Explorer, list[dict[str, Any]]]:
    """An explorer of both judges, greeted by a view, and the messages that it sends."""
    pairs = [workbench.pair("q", source=source) for source in ("before", "after")]
    made = workbench.Explorer(*pairs, **options)
    told: list[dict[str, Any]] = []
    made.send = told.append
    receive(made, type="hello")
    return made, told


def receive(made: Explorer, **message: Any) -> None:
    """What the browser sends; returns once all is written and told."""
    made._answer(message)
    assert made.session.flush(30)


def page(made: Explorer, told: list[dict[str, Any]], **query: Any) -> dict[str, Any]:
    receive(made, type="page", ask=7, **query)
    assert told[-1]["type"] == "page", told[-1]
    return told[-1]


def test_cells_changes_slices_and_texts_find_items(traces: list[str]) -> None:
    """Filters join, the matrix counts what all but the cell leave, `shown` holds what is found."""
    made, told = explorer()
    assert (made.setup["values"], made.setup["judges"]) == (["no", "yes"], ["before", "after"])
    fixed = {"fixed": 2, "broken": 1, "still wrong": 1, "right before and after": 2}
    assert made.setup["changes"] == fixed

    assert made.shown["distance"].is_monotonic_decreasing  # before the view asks
    every = page(made, told, judge=0)
    assert (every["matrix"], every["total"], every["ask"]) == ([[1, 2], [1, 2]], 6, 7)
    wrong = {row["trace_id"] for row in every["rows"][:3]}  # what this judge got wrong comes first
    assert wrong == {traces[0], traces[1], traces[4]}
    assert page(made, told, judge=1)["matrix"] == [[2, 1], [1, 2]]

    cell = page(made, told, judge=1, cell=[0, 1])
    assert [row["trace_id"] for row in cell["rows"]] == [traces[1]]
    assert cell["matrix"] == [[2, 1], [1, 2]]
    assert made.shown[["trace_id", "change"]].values.tolist() == [[traces[1], "still wrong"]]
    broken = page(made, told, judge=1, change="broken")
    assert ([row["trace_id"] for row in broken["rows"]], broken["left"]) == ([traces[5]], 1)

    sliced = page(made, told, judge=0, field="product", value="lamp")
    assert sliced["matrix"] == [[1, 1], [1, 0]]
    slices = next(message for message in told if message["type"] == "slices")
    assert slices["problem"] == ""
    assert slices["slices"]["product"] == [["desk", 3], ["lamp", 3]]
    # Far behind the beginning that MLflow keeps beside a trace.
    found = page(made, told, search=" NEEDLE3 ", field="product", value="desk")
    assert [row["trace_id"] for row in found["rows"]] == [traces[3]]
    assert page(made, told, search="ana's reason")["total"] == 6
    assert page(made, told, search="nowhere")["total"] == 0


def test_an_item_is_told_with_all_that_was_said_of_it(traces: list[str]) -> None:
    """Text, label, votes, verdicts and the reasons for each; HTML in them is text."""
    made, told = explorer()
    receive(made, type="item", trace_id=traces[0])
    (item,) = told[-1]["items"]
    assert item["outputs"].endswith("needle0")
    assert HOSTILE in str(item["blocks"]["inputs"])
    said = [(one["who"], one["value"], one["rationale"]) for one in item["voices"]]
    assert said == [
        ("people", "no", "ana's reason"),
        ("judge before", "yes", "the judge's reason"),
        ("judge after", "no", "the judge's reason"),
    ]
    assert item["voices"][0]["votes"] == [["ana", "no"]]
    assert item["done"] is None
    (trace,) = {message["trace_id"] for message in [item]}
    assert not [tag for tag in mlflow.get_trace(trace).info.tags if "revealed" in tag]


def act(trace_id: str, name: str, value: str, reason: str = "") -> dict[str, Any]:
    return {
        "type": "act",
        "actions": [
            {
                "id": uuid.uuid4().hex,
                "kind": "save",
                "trace_id": trace_id,
                "answers": {name: {"value": value, "abstain": False}},
                "rationale": {name: reason},
            }
        ],
    }


def test_a_label_is_kept_beside_the_blind_one_and_notes_are_feedback(traces: list[str]) -> None:
    """What is given here was given after the verdict; a note replaces the former one."""
    made, told = explorer(annotator="ana")
    for message in (act(traces[0], "q", "yes", "on a second look"), act(traces[1], "q", "yes")):
        receive(made, **message)
        assert told[-1]["type"] == "saved"
        assert told[-1]["ids"] == [message["actions"][0]["id"]]
    receive(made, **act(traces[0], NOTE, "see the manual"))
    receive(made, **act(traces[0], NOTE, "see page 3"))
    info = mlflow.get_trace(traces[0]).info
    (blind,) = label_records([without_spans(info)], "q")
    (latest,) = label_records([without_spans(info)], "q", latest=True)
    assert (blind.value, blind.after_verdict) == ("no", False)
    assert (latest.value, latest.after_verdict) == ("yes", True)
    assert latest.rationale == "on a second look"
    notes = [one for one in info.assessments if one.name == NOTE and one.valid]
    assert [(one.value, one.source.source_id) for one in notes] == [("see page 3", "ana")]
    given = [one for one in info.assessments if (one.metadata or {}).get(AFTER_VERDICT_KEY)]
    assert {one.metadata["workbench.chosen"] for one in given} == {"picked"}  # no random draw
    receive(made, type="item", trace_id=traces[0])
    (item,) = told[-1]["items"]
    assert item["done"]["answers"][NOTE]["value"] == "see page 3"
    assert item["done"]["changed"]["q"]["value"] == "yes"


def test_who_opened_an_item_gives_no_blind_label_later(traces: list[str]) -> None:
    """What the annotator has seen here is known to the label panel."""
    made, _ = explorer(annotator="ben")
    receive(made, type="item", trace_id=traces[2])
    panel = workbench.LabelPanel("q", annotator="ben", scale=Scale.of(["no", "yes"]))
    for trace_id in traces[2:4]:
        panel._handle_custom_msg(act(trace_id, "q", "no"), [])
    assert panel.session.flush(30)
    after = panel.labels.set_index("trace_id")["after_verdict"]
    assert (bool(after[traces[2]]), bool(after[traces[3]])) == (True, False)


def test_items_are_sent_to_the_label_queue(traces: list[str]) -> None:
    """A queue that is made here, in the experiment of the traces, asks for one label more."""
    pairs = workbench.pair("q", source="before")
    mlflow.set_experiment("another")
    made = workbench.Explorer(pairs)
    told: list[dict[str, Any]] = []
    made.send = told.append
    for expected in ("Now in the queue 'q'.", "Already in the queue 'q'."):
        receive(made, type="send", trace_id=traces[4])
        assert told[-1] == {"type": "sent", "trace_id": traces[4], "text": expected}
    mlflow.set_experiment("test")
    queue = workbench.review_queue("q")
    assert (queue.each, queue.open_for("ben"), queue.of("cleo")) == (2, [traces[4]], [traces[4]])


@pytest.mark.parametrize(("kind", "values", "other"), [(int, [2, 3, 4], 1), (float, [0.2, 0.9], 1)])
def test_numbers_that_were_seen_do_not_limit_those_to_come(
    traces: list[str], kind: type, values: list[Any], other: int
) -> None:
    """Neither a label given here nor the queue's question; the ends of a schema do."""
    table = pd.DataFrame({"trace_id": traces, "v": (values * 3)[:6]})
    workbench.log_labels(table, name="n", annotator="ben", value="v")
    workbench.log_verdicts(table, name="n", source="m", value="v")
    pairs = workbench.pair("n", scale=workbench.Scale.from_type(kind))
    made = workbench.Explorer(pairs, annotator="ana")
    (asked, _) = made.session.setup()["questions"]
    assert (asked["low"], asked["high"]) == (None, None)
    assert made.session.questions[0].answer(other) == other
    receive(made, type="send", trace_id=traces[0])
    schema = workbench.review_queue("n").schemas[0].input
    assert (schema.min_value, schema.max_value) == (None, None)


def test_what_cannot_be_done_is_told(traces: list[str]) -> None:
    """No label without an annotator; malformed queries; deleted traces; a store that is left."""
    made, told = explorer()
    receive(made, **act(traces[0], "q", "yes"))
    assert "annotator='you'" in told[-1]["error"]
    assert len(label_records([without_spans(mlflow.get_trace(traces[0]).info)], "q")) == 1
    receive(made, type="page", start=-1)
    assert told[-1]["type"] == "problem"
    assert "query.start" in told[-1]["error"]
    for query in ({"field": "color", "value": "red"}, {"change": "gone"}):
        assert page(made, told, **query)["total"] == 0
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    mlflow.MlflowClient().delete_traces(experiment, trace_ids=[traces[1]])
    receive(made, type="item", trace_id=traces[1])
    assert "not in the store" in told[-1]["items"][0]["fault"]
    assert told[-1]["items"][0]["voices"][0]["value"] == "no"
    mlflow.set_tracking_uri("sqlite:///other.db")
    receive(made, type="send", trace_id=traces[0])
    assert "another store is active" in told[-1]["error"]
    for wrong in ("q", None):
        with pytest.raises(ArgumentError, match="pairs or an alignment"):
            workbench.Explorer(wrong)


def test_an_alignment_holds_both_judges(store: str) -> None:
    judge = biased_judge()
    labelled(24, judge)
    alignment = workbench.align(judge, None, Proposing(CURED), progress=False)
    assert workbench.Explorer(alignment).session.found.names == ["before", "after"]
    with pytest.raises(ArgumentError, match="after= goes with pairs"):
        workbench.Explorer(alignment, alignment.test_after)


def test_ten_thousand_pairs_go_out_a_page_at_a_time(store: str) -> None:
    """Traces that no store holds are found by what the pairs say of them."""
    pairs = make_pairs(["poor", "fair"] * 5_000, ["good", "fair"] * 5_000, GRADES)
    made = workbench.Explorer(pairs)
    told: list[dict[str, Any]] = []
    made.send = told.append
    receive(made, type="hello")
    assert told[-1]["problem"] == "10,000 traces missing from the store"
    last = page(made, told, judge=0, cell=[0, 2], start=4_980)
    assert (last["total"], len(last["rows"])) == (5_000, 20)
    first = page(made, told, judge=0)
    assert len(first["rows"]) == PAGE
    assert first["rows"][0]["distance"] == pytest.approx(2 / 3)
    assert page(made, told, order="near")["rows"][0]["distance"] == 0


@pytest.mark.parametrize(
    ("values", "scale", "rows"),
    [
        ([f"c{i}" for i in range(40)], Scale.of([f"c{i}" for i in range(40)], ordered=False), 30),
        ([i / 7 for i in range(40)], Scale("numeric"), 10),
        ([True, False], Scale.from_type(bool), 2),
        ([], Scale.of(["no", "yes"]), 2),
    ],
    ids=["many classes", "numbers in bins", "booleans", "no pairs"],
)
def test_each_scale_has_a_matrix(values: list[Any], scale: Scale, rows: int, store: str) -> None:
    """Of many classes the most frequent; what is outside the matrix is still among the items."""
    pairs = make_pairs(values * 2, [*values, *values[1:], *values[:1]], scale)
    made = workbench.Explorer(pairs)
    assert len(made.setup["values"]) == rows
    told: list[dict[str, Any]] = []
    made.send = told.append
    assert page(made, told, change="fixed")["total"] == 0  # there is nothing to compare with
    found = page(made, told)
    assert found["left"] == found["total"] == len(pairs)
    assert sum(map(sum, found["matrix"])) <= len(pairs)
    html = made._repr_html_()
    assert "<table" in html
    assert not re.search(r"<td[^>]*>(True|1\.000)</td>\s*<td[^>]*>(True|1\.000)<", html)


def test_the_table_in_its_place_is_escaped_and_has_both_matrices(traces: list[str]) -> None:
    """Where no browser can ask a kernel there are the matrices, and the worst items."""
    made, _ = explorer()
    html = made._repr_mimebundle_()["text/html"]
    assert html.count("<table") == 3
    assert html.count("human / before") == 1
    assert "still wrong" in html
    assert HOSTILE not in html
    assert "&lt;img src=x" in html
    cells = re.findall(r"<td[^>]*>(\d+)</td>", html)[:8]
    assert [*map(int, cells)] == [1, 2, 1, 2, 2, 1, 1, 2]
    assert repr(made) == "<Explorer 'q': 6 items>"


def test_an_annotators_own_labels_are_compared(traces: list[str]) -> None:
    """Sliced by annotator the matrix, the rows and `shown` have that annotator's own labels."""
    bo = pd.DataFrame({"trace_id": traces[:4], "value": ["no", "yes", "yes", "no"]})
    workbench.log_labels(bo, name="q", annotator="bo", value="value", progress=False)
    pairs = workbench.pair("q", source="before", consensus="ana")
    made = workbench.Explorer(pairs)
    told: list[dict[str, Any]] = []
    made.send = told.append
    receive(made, type="hello")
    slices = next(message for message in told if message["type"] == "slices")["slices"]
    assert slices["annotator"] == [["ana", 6], ["bo", 4]]
    by_annotator = workbench.agreement(pairs, by="annotator").table
    assert by_annotator["n"].sum() == 10
    found = page(made, told, field="annotator", value="bo")
    assert (found["matrix"], found["left"]) == ([[0, 2], [1, 1]], 4)
    assert {row["trace_id"]: row["human"] for row in found["rows"]} == dict(
        zip(traces, bo["value"], strict=False)
    )
    cell = page(made, told, field="annotator", value="bo", cell=[1, 0])
    assert [row["trace_id"] for row in cell["rows"]] == [traces[2]]  # which Ana calls "no"
    assert made.shown[["human", "judge", "distance"]].values.tolist() == [["yes", "no", 1.0]]
    assert page(made, told, field="annotator", value="nobody")["total"] == 0


@pytest.mark.parametrize("people", [["ana"], ["ana", "bo"]])
def test_an_input_named_annotator_is_not_offered(people: list[str]) -> None:
    """Under that name are the annotators of the labels, as in `agreement`."""
    labels = ["no", "yes"] * 2
    votes = [dict.fromkeys(people, label) for label in labels]
    items = Items(make_pairs(labels, labels, votes=votes))
    items.read(
        Example(i, {"annotator": f"crew {k % 2}", "room": k % 2}, "")
        for k, i in enumerate(items.place)
    )
    assert set(items.slices) == {"room"}
    assert items.annotators == dict.fromkeys(people, 4)


def test_a_search_finds_a_text_however_it_is_written() -> None:
    """In Unicode's other form, with spaces of another kind."""
    items = Items(make_pairs(["no", "yes"], ["no", "yes"]))
    texts = ["Cafe\u0301\u00a0Central", "the central café"]
    items.read(Example(i, {"q": text}, "") for i, text in zip(items.place, texts, strict=True))
    assert items.find(Query(search=" caf\u00e9  central"))[2] == 1


def test_lengths_and_weeks_divide_the_items_as_in_agreement() -> None:
    pairs = make_pairs(["no", "yes"] * 20, ["no"] * 40)
    shift = 7 * 24 * 3600 * 1000
    content = [
        Example(i, {"model": "M-1" if k % 2 else "m 1"}, "x" * k, requested=k // 20 * shift)
        for k, i in enumerate(pairs.trace_ids)
    ]
    items = Items(pairs)
    items.read(content)
    assert Counter(items.slices["length"]) == {
        f"{low} to {low + 9} characters": 10 for low in (0, 10, 20, 30)
    }
    assert Counter(items.slices["week"]) == {"1970, week 01": 20, "1970, week 02": 20}
    assert set(items.slices) == {"length", "week"}  # both models are one, written in two ways
    for name, slice_of in fields_of(content).items():
        table = workbench.agreement(pairs, by=slice_of).table
        if name in items.slices:
            assert table["n"].to_dict() == Counter(items.slices[name])
