"""Traces: tables become traces without loss, once, and come back as examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import AssessmentSource
from mlflow.tracing.client import TracingClient

from workbench.errors import ArgumentError, TableError
from workbench.store.importing import Imported, import_traces
from workbench.store.labels import label_records, log_labels
from workbench.store.tables import read_table
from workbench.store.traces import Example, examples, fetch_traces, find_experiment_id

cells = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from(['{"a": 1}', "[1]", '"quoted"', "null", "7", "", "\ud83d", "\0\x1b\r\n"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "q": ["a", "b", "c"],
            "o": ["x", "y", "z"],
            "gold": ["g", None, "h"],
            "id": ["1", "1", "2"],
            "ana": ["good", "bad", None],
            "why": ["because", None, None],
            "bo": ["good", "good", "N/A"],
            "cy": [None, None, "bad"],
        }
    )


def labelled(table: pd.DataFrame | Path, **more: Any) -> Imported:
    arguments: dict[str, Any] = {
        "inputs": "q",
        "outputs": "o",
        "expectations": "gold",
        "tags": "id",
        "labels": {"ana": ("ana", "why"), "bo": "bo", "cy": "cy"},
        "label_name": "quality",
    }
    return import_traces(table, **{**arguments, **more})


def votes() -> list[tuple[str, str, Any, str | None]]:
    return [
        (r.trace_id, r.annotator, r.value, r.rationale)
        for r in label_records(fetch_traces(spans=False), "quality")
    ]


def test_each_row_is_a_trace_in_row_order(store: str, table: pd.DataFrame) -> None:
    """Ids are in row order, and so are the traces of the experiment by time."""
    imported = labelled(table)
    assert (len(imported), imported.created, imported.labels) == (3, 3, 6)
    assert imported.skipped.empty
    assert examples() == [
        Example(imported.trace_ids[0], {"q": "a"}, "x", {"gold": "g"}, {"id": "1"}),
        Example(imported.trace_ids[1], {"q": "b"}, "y", None, {"id": "1"}),
        Example(imported.trace_ids[2], {"q": "c"}, "z", {"gold": "h"}, {"id": "2"}),
    ]
    assert examples(imported)[1].outputs == "y"


def test_several_annotators_come_in_one_go(store: str, table: pd.DataFrame) -> None:
    """Each filled rating is a label by its annotator, with the rationale; gaps are none."""
    first, second, third = labelled(table).trace_ids
    assert votes() == [
        (first, "ana", "good", "because"),
        (first, "bo", "good", None),
        (second, "ana", "bad", None),
        (second, "bo", "good", None),
        (third, "bo", "N/A", None),
        (third, "cy", "bad", None),
    ]


@pytest.mark.parametrize("labels", [None, {"ana": "ana"}])
def test_a_trace_looks_like_any_other_in_mlflow(
    store: str, table: pd.DataFrame, labels: dict[str, str] | None
) -> None:
    """State, name, previews, request and spans are where MLflow's search and UI read them."""
    labelled(table, labels=labels, label_name="quality" if labels else None, expectations=None)
    found = mlflow.search_traces(order_by=["timestamp_ms ASC"])
    assert found["request"].tolist() == [{"q": "a"}, {"q": "b"}, {"q": "c"}]
    assert found["response"].tolist() == ["x", "y", "z"]
    assert set(found["state"]) == {"OK"}
    assert mlflow.search_traces()["request"].tolist() == [{"q": "c"}, {"q": "b"}, {"q": "a"}]
    trace = mlflow.get_trace(found["trace_id"][1])
    assert trace.info.request_preview == '{"q": "b"}'
    assert trace.info.response_preview == '"y"'
    assert trace.info.tags["mlflow.traceName"] == "imported"
    assert trace.info.tags["id"] == "1"
    assert [(s.name, s.inputs, s.outputs) for s in trace.data.spans] == [
        ("imported", {"q": "b"}, "y")
    ]


def test_mlflow_finds_the_text(store: str) -> None:
    """MLflow's full-text search finds words as people type them."""
    table = pd.DataFrame({"q": ["schöne Frage", "other"], "o": ["✓ ja", "no"]})
    import_traces(table, inputs="q", outputs="o")
    for text in ("schöne", "✓ ja"):
        assert len(mlflow.search_traces(filter_string=f"trace.text LIKE '%{text}%'")) == 1


def test_equal_rows_are_different_rows(store: str) -> None:
    """Rows equal to the letter are traces of their own, and found again as such."""
    table = pd.DataFrame({"q": ["a", "a", "b", "a"], "o": "x"})
    imported = import_traces(table, inputs="q", outputs="o")
    assert len(set(imported.trace_ids)) == 4
    longer = import_traces(pd.concat([table, table[:1]]), inputs="q", outputs="o")
    assert longer.trace_ids[:4] == imported.trace_ids
    assert (longer.created, len(fetch_traces())) == (1, 5)


def test_rows_already_there_are_skipped_and_said_so(store: str, table: pd.DataFrame) -> None:
    """Importing again writes nothing and returns the same ids."""
    first = labelled(table)
    again = labelled(table)
    assert again.trace_ids == first.trace_ids
    assert (again.created, again.labels) == (0, 0)
    assert again.skipped.to_dict("list") == {
        "row": [0, 1, 2],
        "trace_id": first.trace_ids,
        "reason": ["already there"] * 3,
    }
    assert "3 already there" in repr(again)
    assert "already there" in again._repr_html_()
    assert (len(fetch_traces()), len(votes())) == (3, 6)
    more = labelled(pd.concat([table, pd.DataFrame({"q": ["d"], "o": ["w"], "id": ["3"]})]))
    assert (more.created, len(more.skipped)) == (1, 3)


def test_annotators_can_be_imported_one_after_another(store: str, table: pd.DataFrame) -> None:
    """Labels and their rationales are added to traces that lack them, and only those."""
    labelled(table, labels={"ana": "ana"})
    added = labelled(table, labels={"ana": "ana", "bo": "bo"})
    assert (added.created, added.labels) == (0, 3)
    assert added.skipped["reason"].tolist() == ["already there, 1 labels or expectations added"] * 3
    assert len(votes()) == 5


def test_another_experiment_has_its_own_traces(store: str, table: pd.DataFrame) -> None:
    """The same rows in another experiment are other traces; it is created if need be."""
    here = labelled(table)
    there = labelled(table, experiment="second")
    assert there.created == 3
    assert not set(here.trace_ids) & set(there.trace_ids)
    assert there.experiment_id == find_experiment_id("second")
    assert len(fetch_traces(experiment="second")) == len(fetch_traces()) == 3


def test_deleted_rows_come_back(store: str, table: pd.DataFrame) -> None:
    """A row that was deleted in MLflow is imported again, with its labels."""
    first = labelled(table)
    TracingClient().delete_traces(find_experiment_id(), trace_ids=[first.trace_ids[1]])
    again = labelled(table)
    assert again.trace_ids == first.trace_ids
    assert (again.created, again.labels) == (1, 2)
    assert len(votes()) == 6


def test_what_people_changed_is_left_alone(store: str, table: pd.DataFrame) -> None:
    """Importing again does not bring back labels that were overridden."""
    imported = labelled(table)
    label = fetch_traces(imported, spans=False)[0].search_assessments(name="quality")[0]
    mlflow.override_feedback(
        trace_id=imported.trace_ids[0],
        assessment_id=label.assessment_id,
        value="bad",
        source=AssessmentSource(source_type="HUMAN", source_id="ana"),
    )
    assert labelled(table).labels == 0
    assert votes()[0][2] == "bad"


def test_an_import_never_changes_a_label(store: str, table: pd.DataFrame) -> None:
    """What was said elsewhere since stays, whatever the table says, and the table is told so."""
    ids = labelled(table).trace_ids
    log_labels(
        pd.DataFrame({"trace_id": ids[:1], "r": ["bad"]}),
        name="quality", annotator="ana", value="r",
    )  # fmt: skip
    label = fetch_traces([ids[1]], spans=False)[0].search_assessments(name="quality")
    edited = next(a for a in label if a.source.source_id == "bo")
    edited.value = "fair"
    mlflow.update_assessment(ids[1], edited.assessment_id, edited)
    again = labelled(table)
    assert again.labels == 0
    assert again.differing.to_dict("records") == [
        {"row": 0, "trace_id": ids[0], "annotator": "ana", "label": "good", "stored": "bad"},
        {"row": 1, "trace_id": ids[1], "annotator": "bo", "label": "good", "stored": "fair"},
    ]
    assert "1 labels differ from those stored, which stay" in again.skipped["reason"][0]
    assert "2 left as they are" in repr(again)
    assert "which stay" in again._repr_html_()
    changed = labelled(table.assign(cy=[None, None, "good"]))
    assert (changed.labels, len(changed.differing)) == (0, 3)
    assert {(r[1], r[2]) for r in votes()} >= {("ana", "bad"), ("bo", "fair"), ("cy", "bad")}


def test_an_import_adds_a_rationale_to_an_equal_label(store: str, table: pd.DataFrame) -> None:
    """But not to one that says something else by now."""
    ids = labelled(table, labels={"ana": "ana"}).trace_ids
    log_labels(
        pd.DataFrame({"trace_id": ids[1:2], "r": ["good"]}),
        name="quality", annotator="ana", value="r",
    )  # fmt: skip
    why = table.assign(why=["because", "since", None])
    again = labelled(why, labels={"ana": ("ana", "why")})
    assert (again.labels, len(again.differing)) == (1, 1)
    assert votes() == [(ids[0], "ana", "good", "because"), (ids[1], "ana", "good", None)]
    assert labelled(why, labels={"ana": ("ana", "why")}).labels == 0
    assert labelled(table, labels={"ana": "ana"}).labels == 0


def test_an_expectation_that_was_changed_stays(store: str, table: pd.DataFrame) -> None:
    """Importing again adds none beside the one that a person edited."""
    trace = fetch_traces(labelled(table), spans=False)[0]
    gold = trace.search_assessments(name="gold", type="expectation")[0]
    gold.value = "better"
    mlflow.update_assessment(trace.info.trace_id, gold.assessment_id, gold)
    labelled(table)
    assert examples()[0].expectations == {"gold": "better"}


def test_other_columns_join_by_row(store: str, table: pd.DataFrame) -> None:
    """``.trace_ids`` makes the trace_id column that `log_labels` needs."""
    imported = import_traces(table, inputs="q", outputs="o")
    logged = log_labels(
        table.assign(trace_id=imported.trace_ids), name="quality", annotator="bo", value="bo"
    )
    assert logged.written == 3
    assert [value for _, _, value, _ in votes()] == ["good", "good", "N/A"]


def test_csv_and_dataframe_of_text_are_the_same(store: str, tmp_path: Path) -> None:
    """A CSV keeps NA and 007 as the answers that they are; an empty answer is a text too."""
    table = pd.DataFrame({"q": ["a", "b", "c"], "o": ["NA", "007", ""]})
    path = tmp_path / "answers.csv"
    table.to_csv(path, index=False)
    imported = import_traces(path, inputs="q", outputs="o")
    assert [e.outputs for e in examples()] == ["NA", "007", ""]
    assert import_traces(table, inputs="q", outputs="o").trace_ids == imported.trace_ids


def test_jsonl_keeps_structure(store: str, tmp_path: Path) -> None:
    """Nested inputs and outputs come from a file as they are."""
    path = tmp_path / "a.jsonl"
    rows = [{"q": {"text": "a", "n": [1, 2.5, None]}, "o": ["x"]}, {"q": {"text": "b"}, "o": {}}]
    path.write_text("\n".join(map(json.dumps, rows)))
    import_traces(path, inputs={"question": "q"}, outputs="o")
    assert [(e.inputs, e.outputs) for e in examples()] == [
        ({"question": row["q"]}, row["o"]) for row in rows
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(cells, cells, st.text(st.characters(exclude_categories=()), max_size=9)),
        min_size=1,
        max_size=25,
    )
)
def test_any_cell_survives(store: str, rows: list[tuple[Any, Any, str]]) -> None:
    """Whatever JSON can hold comes back the same: types, control characters, broken Unicode."""
    table = pd.DataFrame(
        {
            "q": pd.Series([row[0] for row in rows], dtype=object),
            "o": pd.Series([{"kept": row[1]} for row in rows], dtype=object),
            "text": pd.Series(["x" if row[1] is None else row[1] for row in rows], dtype=object),
            "model": pd.Series([row[2] for row in rows], dtype=object),
        }
    )
    for outputs in ("o", "text"):
        imported = import_traces(table, inputs=["q", "model"], outputs=outputs, progress=False)
        found = examples(imported)
        for record, example in zip(table.to_dict("records"), found, strict=True):
            expected = [{"q": record["q"], "model": record["model"]}, record[outputs]]
            assert json.dumps([example.inputs, example.outputs]) == json.dumps(expected)
        assert (
            import_traces(table, inputs=["q", "model"], outputs=outputs, progress=False).trace_ids
            == imported.trace_ids
        )


def test_broken_characters_in_chats_and_expectations_survive(store: str) -> None:
    """Half a surrogate pair is kept also where MLflow makes previews and models of it."""
    messages = [{"role": "user", "content": "\ud83d cut off \0"}]
    table = pd.DataFrame(
        {"messages": [messages], "model": ["\ud83d"], "o": [{"model": "\ud83d"}], "g": ["\ud83d"]},
        dtype=object,
    )
    import_traces(table, inputs=["messages", "model"], outputs="o", expectations="g")
    assert [(e.inputs, e.outputs, e.expectations) for e in examples()] == [
        ({"messages": messages, "model": "\ud83d"}, {"model": "\ud83d"}, {"g": "\ud83d"})
    ]


def test_very_long_texts_survive(store: str) -> None:
    """A text of five megabytes is stored whole."""
    text = "✓ " * 2_500_000
    import_traces(pd.DataFrame({"q": ["a"], "o": [text]}), inputs="q", outputs="o")
    assert examples()[0].outputs == text


def test_tags_keep_their_text(store: str) -> None:
    """A tag that looks like JSON or a number is the text that it was."""
    tags = ['{"a": 1}', "007", "[1]", '"x"', "true", "é ✓\n"]
    table = pd.DataFrame({"q": tags, "o": "x", "t": tags, "n": range(len(tags))})
    for more in ({}, {"expectations": {"g": "q"}}):
        imported = import_traces(
            table, inputs="q", outputs="o", tags={"t": "t", "group id": "n"}, **more
        )
        assert [e.tags for e in examples(imported)] == [
            {"t": tag, "group id": str(n)} for n, tag in enumerate(tags)
        ]


def test_bad_rows_are_reported_and_nothing_is_written(store: str, table: pd.DataFrame) -> None:
    """One cell that cannot be stored stops the import before its first row."""
    table["o"] = pd.Series(["x", b"bytes", None], dtype=object)
    with pytest.raises(TableError, match=r"2 of 3 rows(.|\n)*row 1: (.|\n)*row 2: ") as caught:
        labelled(table)
    assert [row for row, _ in caught.value.rows] == [1, 2]
    assert fetch_traces() == []


def test_arguments_that_cannot_be_meant_are_errors(store: str, table: pd.DataFrame) -> None:
    """Missing columns, labels without a name, and empty tables are said so."""
    with pytest.raises(ArgumentError, match="did you mean 'gold'"):
        labelled(table, expectations="golt")
    with pytest.raises(ArgumentError, match="go together"):
        labelled(table, label_name=None)
    with pytest.raises(ArgumentError, match="go together"):
        labelled(table, labels=None)
    with pytest.raises(TableError, match="no rows"):
        labelled(table[:0])
    assert mlflow.get_experiment_by_name("new") is None


def test_the_real_file_comes_in_whole(store: str, openqa: Path) -> None:
    """All rows of the open question data, equal ones too; labels can be added to some later."""
    arguments: dict[str, Any] = {
        "inputs": "question",
        "outputs": "answer",
        "tags": "question_id",
        "progress": False,
    }
    imported = import_traces(openqa, **arguments)
    assert len(set(imported.trace_ids)) == imported.created == 1490
    assert [e.trace_id for e in examples()] == imported.trace_ids
    table = read_table(openqa)[:100]
    labels = {f"annotator{k}": f"annotator{k}" for k in (1, 2, 3)}
    added = import_traces(table, labels=labels, label_name="correct", **arguments)
    filled = sum(int((table[column] != "").sum()) for column in labels)
    assert (added.created, added.labels, added.trace_ids) == (0, filled, imported.trace_ids[:100])
    assert len(label_records(fetch_traces(spans=False), "correct")) == filled
