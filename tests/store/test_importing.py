"""Tables become traces without loss, once, in batches, and come back as examples."""

from __future__ import annotations

import json
import math
import traceback
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import AssessmentSource, Span, TraceInfo, TraceState
from mlflow.entities.trace_location import TraceLocation
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from sqlalchemy import event
from sqlalchemy.pool import Pool

from workbench.errors import ArgumentError, StoreError, TableError
from workbench.pairing.adjudication import adjudicate
from workbench.store.assessments import log_labels
from workbench.store.database import find_experiment_id, retrying
from workbench.store.dataset import read_dataset
from workbench.store.files import read_table
from workbench.store.importing import Imported, import_traces
from workbench.store.labels import label_records
from workbench.store.tables import digest
from workbench.store.traces import Example, examples, fetch_traces
from workbench.vocabulary import is_missing

BATCH = 200
"""Traces that are written in one transaction."""

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
cells = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
    | st.sampled_from(['{"a": 1}', "[1]", '"quoted"', "null", "7", "", "\0\x1b\r\n"]),
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


def labelled(table: pd.DataFrame, **more: Any) -> Imported:
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


def say(trace_id: str, value: str, annotator: str) -> None:
    table = pd.DataFrame({"trace_id": [trace_id], "r": [value]})
    log_labels(table, name="quality", annotator=annotator, value="r")


def put(trace_id: str, where: str) -> None:
    """Store a trace without content, under an id of an earlier version."""
    place = TraceLocation.from_experiment_id(where)
    TracingClient().start_trace(TraceInfo(trace_id, place, request_time=0, state=TraceState.OK))


# -- rows become traces ---


def test_each_row_is_a_trace_with_its_labels(store: str, table: pd.DataFrame) -> None:
    """Ids are in row order, and so are the traces by time; empty cells make no label."""
    imported = labelled(table)
    first, second, third = imported.trace_ids
    assert (len(imported), imported.created, imported.labels) == (3, 3, 6)
    assert imported.skipped.empty
    assert examples() == [
        Example(first, {"q": "a"}, "x", {"gold": "g"}, {"id": "1"}),
        Example(second, {"q": "b"}, "y", None, {"id": "1"}),
        Example(third, {"q": "c"}, "z", {"gold": "h"}, {"id": "2"}),
    ]
    assert votes() == [
        (first, "ana", "good", "because"),
        (first, "bo", "good", None),
        (second, "ana", "bad", None),
        (second, "bo", "good", None),
        (third, "bo", "N/A", None),
        (third, "cy", "bad", None),
    ]


def test_a_trace_looks_like_any_other_in_mlflow(store: str, table: pd.DataFrame) -> None:
    """State, name, previews, request and spans are where MLflow's search and UI read them."""
    labelled(table.assign(o=["x", "✓ schön", "z"]))
    found = mlflow.search_traces(order_by=["timestamp_ms ASC"])
    assert found["request"].tolist() == [{"q": "a"}, {"q": "b"}, {"q": "c"}]
    assert found["response"].tolist() == ["x", "✓ schön", "z"]
    assert set(found["state"]) == {"OK"}
    assert len(mlflow.search_traces(filter_string="trace.text LIKE '%✓ schön%'")) == 1
    trace = mlflow.get_trace(found["trace_id"][1])
    assert trace.info.request_preview == '{"q": "b"}'
    assert trace.info.tags["mlflow.traceName"] == "imported"
    assert [(s.name, s.inputs, s.outputs) for s in trace.data.spans] == [
        ("imported", {"q": "b"}, "✓ schön")
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(cells, cells, text), min_size=1, max_size=25))
def test_any_cell_survives(store: str, rows: list[tuple[Any, Any, str]]) -> None:
    """Whatever JSON can hold comes back the same: types, control characters, broken Unicode."""
    columns = {
        "q": [row[0] for row in rows],
        "o": [{"kept": row[1]} for row in rows],
        "text": ["x" if is_missing(row[1]) else row[1] for row in rows],
        "model": ["m" if is_missing(row[2]) else row[2] for row in rows],
    }
    table = pd.DataFrame({name: pd.Series(c, dtype=object) for name, c in columns.items()})
    for outputs in ("o", "text"):
        # Apart from the other examples, whose 0 is the same as 0.0.
        imported = import_traces(
            table, inputs=["q", "model"], outputs=outputs, experiment=uuid4().hex, progress=False
        )
        found = examples(imported)
        for record, example in zip(table.to_dict("records"), found, strict=True):
            expected = [{"q": record["q"], "model": record["model"]}, record[outputs]]
            assert json.dumps([example.inputs, example.outputs]) == json.dumps(expected)


def test_characters_that_cannot_be_stored_are_replaced_and_counted(store: str) -> None:
    """Half a surrogate pair in a text, a tag or a label is no error that every repetition meets."""
    half = "\ud83d cut off"
    imported = import_traces(
        pd.DataFrame({"q": ["a\0"], "o": "b", "t": "\0"}), inputs="q", outputs="o", tags="t"
    )
    assert (examples(imported)[0].inputs, imported.notes[0][:12]) == ({"q": "a\0"}, "1 character ")
    table = pd.DataFrame(
        {
            "q": [[{"content": f"{half} \0"}]],
            "o": [half],
            "g": half,
            "t": half,
            "ana": half,
            "w": half,
        },
        dtype=object,
    )
    roles: Any = {"inputs": "q", "outputs": "o", "expectations": "g", "tags": "t"}
    roles |= {"labels": {"ana": ("ana", "w")}, "label_name": "quality"}
    imported = import_traces(table, **roles)
    assert imported.notes == ("6 characters that cannot be stored replaced by U+FFFD",)
    whole = half.replace("\ud83d", "\ufffd")
    (example,) = examples(imported)
    assert example.inputs == {"q": [{"content": f"{whole} \0"}]}
    assert (example.outputs, example.expectations["g"], example.tags["t"]) == (whole,) * 3
    (label,) = label_records(fetch_traces(imported), "quality")
    assert (label.value, label.rationale) == (whole, whole)
    assert len(import_traces(table, **roles).skipped) == 1


def test_empty_rows_and_cells_without_a_rating_are_left_out_and_told(store: str) -> None:
    table = pd.DataFrame(
        {"q": ["a", "", "b", None], "o": ["x", " ", "y", None], "ana": ["good", None, "NaN", ""]}
    )
    imported = import_traces(table, inputs="q", outputs="o", labels={"ana": "ana"}, label_name="l")
    assert (len(imported.trace_ids), imported.labels) == (2, 1)
    assert imported.notes == (
        "2 empty rows left out: 1, 3",
        "1 cell without a rating: 'NaN' 1 (pass values=..., the ratings that there are, if it is "
        "one)",
    )  # fmt: skip
    assert "2 empty rows left out" in repr(imported)
    for index in (table.index, [7, 3, 5, 1], list("abba")):
        again = import_traces(table.set_index(pd.Index(index)), inputs="q", outputs="o")
        assert again.by_row == [imported.trace_ids[0], None, imported.trace_ids[1], None]
    joined = table.assign(trace_id=imported.by_row)
    assert [t.info.trace_id for t in fetch_traces(joined)] == imported.trace_ids
    assert log_labels(joined, name="m", annotator="ben", value="ana").written == 1


def test_rationales_without_a_rating_are_told(store: str) -> None:
    table = pd.DataFrame(
        {"q": list("abc"), "o": "x", "r": ["good", None, "?"], "w": ["so", "so", ""]}
    )
    made = import_traces(table, inputs="q", outputs="o", labels={"ana": ("r", "w")}, label_name="l")
    assert (made.labels, made.notes[-1]) == (1, "1 rationale without a rating left out")


def test_missing_ratings_are_no_words_and_inputs_stay_as_they_are(store: str) -> None:
    """A cell without anything needs no note, and a word for no rating may be an input."""
    table = pd.DataFrame({"q": list("abc"), "o": "x", "r": ["good", None, math.nan]})
    roles = {"inputs": ["q", "r"], "outputs": "o", "labels": {"ana": "r"}, "label_name": "l"}
    assert import_traces(table, **roles).notes == ()
    imported = import_traces(table.assign(r=["good", "none", "bad"]), **roles)
    assert (imported.labels, len(imported.notes)) == (1, 1)
    assert [e.inputs["r"] for e in examples(imported)] == ["good", "none", "bad"]


def test_words_for_no_rating_are_ratings_where_the_values_say_so(store: str) -> None:
    """Whether a word is one is decided for all columns together, as check_data does it."""
    table = pd.DataFrame({"q": list("abcd"), "o": "x", "r": ["none", "mild", "severe", "-"]})
    roles = {"inputs": "q", "outputs": "o", "labels": {"ana": "r"}}
    assert import_traces(table, **roles, label_name="a").labels == 2
    kept = import_traces(table, **roles, label_name="b", values="none, mild, severe")
    assert (kept.labels, "'-' 1 (pass values" in kept.notes[0]) == (3, True)
    signs = table.assign(r=["+", "-", "+", "-"], s="-")
    roles["labels"] = {"ana": "r", "ben": "s"}
    assert import_traces(signs, **roles, label_name="c").labels == 8
    low = table.assign(r=["none", "low", "high", ""])
    assert import_traces(low, **roles | {"labels": {"ana": "r"}}, label_name="d").labels == 3


def test_ratings_are_translated_where_the_values_say_so(store: str) -> None:
    """As `check_data` has shown them, in the command's writing too."""
    table = pd.DataFrame({"q": list("ab"), "o": "x", "r": ["Good", "bad"]})
    given = {"good": "yes", "bad": "no"}
    made = import_traces(
        table, inputs="q", outputs="o", labels={"ana": "r"}, label_name="a", values=given
    )
    rated = table.assign(trace_id=made.by_row)
    log_labels(rated, name="a", annotator="ben", value="r", values=json.dumps(given))
    records = label_records(fetch_traces(made), "a")
    assert sorted((one.annotator, one.value) for one in records) == [
        ("ana", "no"), ("ana", "yes"), ("ben", "no"), ("ben", "yes"),
    ]  # fmt: skip


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA])
def test_a_word_that_is_translated_is_no_missing_cell(store: str, nothing: object) -> None:
    """Though Python writes None for nothing, a translation of "none" makes no label of it."""
    ratings = pd.Series(["none", "mild", nothing], dtype=object)
    table = pd.DataFrame({"q": list("abc"), "o": "x", "r": ratings})
    roles: dict[str, Any] = {
        "inputs": "q",
        "outputs": "o",
        "values": {"none": 0, "nan": 0, "mild": 1},
    }
    made = import_traces(table, labels={"ana": "r"}, label_name="a", **roles)
    assert sorted(one.value for one in label_records(fetch_traces(made), "a")) == [0, 1]
    data = read_dataset(table, annotators="ana: r", **roles)
    assert data.table["r"].dropna().tolist() == [0, 1]


def test_other_tags_are_given_to_the_trace_that_is_there(store: str) -> None:
    """What the judge sees is what identifies a row; labels stay where they are."""
    table = pd.DataFrame({"q": ["a", "a", "b"], "o": "x", "topic": ["1", "2", "3"]})
    first = import_traces(table, inputs="q", outputs="o", tags="topic")
    again = import_traces(table.assign(source="web"), inputs="q", outputs="o", tags="source")
    assert (again.trace_ids, again.created) == (first.trace_ids, 0)
    assert [e.tags["source"] + e.tags["topic"] for e in examples(first)] == ["web1", "web2", "web3"]


def test_traces_of_version_0_1_are_known_by_their_tags(store: str) -> None:
    table = pd.DataFrame({"q": ["a"], "o": "x", "topic": "1"})
    where = find_experiment_id(None)
    content = digest([where, {"q": "a"}, "x", {}, {"topic": "1"}])
    put(old := f"tr-{digest([content, 0])[:32]}", where)
    assert import_traces(table, inputs="q", outputs="o", tags="topic").trace_ids == [old]


def test_long_texts_survive(store: str) -> None:
    table = pd.DataFrame({"q": ["a", "b"], "o": ["✓ " * 2_500_000, "z"]})
    import_traces(table, inputs="q", outputs="o")
    assert [e.outputs for e in examples()] == table["o"].tolist()


def test_a_number_that_became_a_float_is_the_same_row(store: str) -> None:
    """As pandas makes them of whole numbers where a later row has none."""
    table = pd.DataFrame({"q": ["a", "b"], "n": [1, 2], "o": "x", "gold": [[1], [2]]})
    roles: dict[str, Any] = {"inputs": ["q", "n"], "outputs": "o", "expectations": "gold"}
    first = import_traces(table, **roles)
    longer = pd.concat([table, pd.DataFrame({"q": ["c"], "o": "x"})], ignore_index=True)
    again = import_traces(longer, **roles)
    assert (again.created, again.trace_ids[:2]) == (1, first.trace_ids)
    back = import_traces(longer[2:].assign(n=3.0), **roles).trace_ids
    assert import_traces(longer[2:].assign(n=3), **roles).trace_ids == back
    both = pd.DataFrame({"q": "d", "n": pd.Series([4.0, 4, 4.0], dtype=object), "o": "x"})
    one = import_traces(both[:1], inputs=["q", "n"], outputs="o").trace_ids
    ids = import_traces(both, inputs=["q", "n"], outputs="o").trace_ids
    assert (ids[:1], len(set(ids))) == (one, 3)
    assert import_traces(both, inputs=["q", "n"], outputs="o").trace_ids == ids


def test_floats_are_known_as_they_were_in_earlier_stores(store: str) -> None:
    where, ids = find_experiment_id(None), []
    for n in (3.0, 3):
        content = digest([where, {"n": n}, "x", {}, {}])
        put(f"tr-{digest([content, 0])[:32]}", where)
        ids.append(f"tr-{digest([content, 0])[:32]}")
    table = pd.DataFrame({"n": pd.Series([3.0, 3], dtype=object), "o": "x"})
    assert import_traces(table, inputs="n", outputs="o").trace_ids == ids


def test_tags_keep_their_text(store: str) -> None:
    """A tag that looks like JSON or a number is the text that it was."""
    tags = ['{"a": 1}', "007", "[1]", '"x"', "true", "é ✓\n"]
    table = pd.DataFrame({"q": tags, "o": "x", "t": tags, "n": range(len(tags))})
    import_traces(table, inputs="q", outputs="o", tags={"t": "t", "group id": "n"})
    assert [e.tags for e in examples()] == [
        {"t": tag, "group id": str(n)} for n, tag in enumerate(tags)
    ]


# -- rows that are there already ---


def test_equal_rows_are_different_rows(store: str) -> None:
    """Rows equal to the letter are traces of their own, and found again as such."""
    table = pd.DataFrame({"q": ["a", "a", "b", "a"], "o": "x"})
    imported = import_traces(table, inputs="q", outputs="o")
    assert len(set(imported.trace_ids)) == 4
    longer = import_traces(pd.concat([table, table[:1]]), inputs="q", outputs="o")
    assert longer.trace_ids[:4] == imported.trace_ids
    assert (longer.created, len(fetch_traces())) == (1, 5)


def test_rows_already_there_are_skipped_and_listed(store: str, table: pd.DataFrame) -> None:
    """Importing again writes what is missing and returns the same ids."""
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
    TracingClient().delete_traces(find_experiment_id(), trace_ids=[first.trace_ids[1]])
    assert (labelled(table).created, len(votes())) == (1, 6)
    there = labelled(table, experiment="second")
    assert (there.created, there.experiment_id) == (3, find_experiment_id("second"))
    assert not set(first.trace_ids) & set(there.trace_ids)


def test_annotators_can_be_imported_one_after_another(store: str, table: pd.DataFrame) -> None:
    """Labels and their rationales are added to traces that lack them, and only those."""
    labelled(table, labels={"ana": "ana"})
    added = labelled(table, labels={"ana": "ana", "bo": "bo"})
    assert (added.created, added.labels) == (0, 3)
    assert len(votes()) == 5


def test_an_annotator_is_known_by_any_writing_of_the_name(store: str, table: pd.DataFrame) -> None:
    """Two columns of one person are an error; another import under another writing adds nothing."""
    with pytest.raises(ArgumentError, match="names one person twice: 'ana' and 'Ana '"):
        labelled(table, labels={"ana": "ana", "Ana ": "bo"})
    labelled(table)
    again = labelled(table, labels={"Ana": ("ana", "why"), "BO": "cy"})
    assert (again.labels, again.differing["annotator"].tolist()) == (0, ["BO"])


def test_an_import_never_changes_a_label(store: str, table: pd.DataFrame) -> None:
    """What was logged, edited or overridden since stays, and is listed beside the table's."""
    ids = labelled(table).trace_ids
    say(ids[0], "bad", "ana")

    def stored(trace_id: str, name: str, by: str) -> Any:
        (trace,) = fetch_traces([trace_id], spans=False)
        found = [a for a in trace.info.assessments if a.name == name]
        return next(a for a in found if a.expectation or a.source.source_id == by)

    for trace_id, name, value in ((ids[0], "gold", "better"), (ids[1], "quality", "fair")):
        edited = stored(trace_id, name, "bo")
        edited.value = value
        mlflow.update_assessment(trace_id, edited.assessment_id, edited)
    mlflow.override_feedback(
        trace_id=ids[2],
        assessment_id=stored(ids[2], "quality", "cy").assessment_id,
        value="poor",
        source=AssessmentSource(source_type="HUMAN", source_id="cy"),
    )
    before = votes()
    again = labelled(table)
    assert (again.labels, votes(), examples()[0].expectations) == (0, before, {"gold": "better"})
    assert again.differing[["row", "trace_id", "annotator", "stored"]].values.tolist() == [
        [0, ids[0], "ana", "bad"],
        [1, ids[1], "bo", "fair"],
        [2, ids[2], "cy", "poor"],
    ]
    assert "3 left as they are" in repr(again)
    assert "<td>ana</td>" in again._repr_html_().replace(' style="text-align: left"', "")


def test_another_rationale_is_another_label(store: str, table: pd.DataFrame) -> None:
    """It is listed and not written; without one in the table a label is what it was."""
    ids = labelled(table, labels={"ana": "ana"}).trace_ids
    again = labelled(table, labels={"ana": ("ana", "why")})
    assert (again.labels, again.differing["trace_id"].tolist()) == (0, ids[:1])
    assert labelled(table, labels={"ana": "ana"}).differing.empty


@pytest.mark.parametrize("decided", ["good", "poor"])
def test_a_decision_is_no_label(store: str, table: pd.DataFrame, decided: str) -> None:
    """The label of who decided is written beside the decision, and compared with no decision."""
    (first, *_) = import_traces(table, inputs="q", outputs="o", expectations="gold").trace_ids
    adjudicate(first, decided, name="quality", by="ana", rationale="because")
    again = labelled(table)
    assert (again.labels, len(again.differing)) == (6, 0)
    assert (first, "ana", "good", "because") in votes()
    assert labelled(table).differing.empty


# -- what goes wrong ---


def test_nothing_is_written_when_something_is_wrong(store: str, table: pd.DataFrame) -> None:
    """Bad cells, missing columns, labels without a name, and empty tables are errors."""
    with pytest.raises(ArgumentError, match="did you mean 'gold'"):
        labelled(table, expectations="golt")
    for argument in ("label_name", "labels"):
        with pytest.raises(ArgumentError, match="go together"):
            labelled(table, **{argument: None})
    for name in (" ", "cut \ud83d", 5):
        with pytest.raises(ArgumentError, match="label_name="):
            labelled(table, label_name=name)
    for argument in ("inputs", "outputs"):
        with pytest.raises(ArgumentError, match=f"{argument}=None must be a column"):
            labelled(table, **{argument: None})
    with pytest.raises(TableError, match="no rows"):
        labelled(table[:0])
    table["o"] = pd.Series(["x", b"bytes", None], dtype=object)
    with pytest.raises(TableError, match=r"2 of 3 rows(.|\n)*row 1: (.|\n)*row 2: ") as caught:
        labelled(table)
    assert [row for row, _ in caught.value.rows] == [1, 2]
    assert fetch_traces() == []


def rows(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "q": [f"question {i // 2}" for i in range(count)],  # each twice
            "o": [f'{{"answer": {i // 2}}}' for i in range(count)],
            "ana": ["good" if i % 3 else "bad" for i in range(count)],
        }
    )


LABELS: dict[str, Any] = {"labels": {"ana": "ana", "bo": "ana"}, "label_name": "quality"}


def check_whole(table: pd.DataFrame, trace_ids: list[str], labels: int) -> None:
    """Each row is there once, whole, and the given number of labels with it."""
    by_id = {e.trace_id: (e.inputs["q"], e.outputs) for e in examples()}
    assert sorted(by_id) == sorted(trace_ids)
    assert [by_id[i] for i in trace_ids] == list(zip(table["q"], table["o"], strict=True))
    assert sum(len(t.info.assessments) for t in fetch_traces(spans=False)) == labels


@pytest.mark.parametrize(("step", "last"), [("log_spans", 2), ("log_assessment", 130)])
def test_an_import_that_is_stopped_can_be_run_again(
    store: str, monkeypatch: pytest.MonkeyPatch, step: str, last: int
) -> None:
    """Stopped at any step, the same import adds the rest and doubles nothing."""
    table = rows(BATCH + 20)
    real = getattr(TracingClient, step)
    calls: list[int] = []

    def stopped(self: TracingClient, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, step, stopped)
        with pytest.raises(KeyboardInterrupt):
            import_traces(table, inputs="q", outputs="o", **LABELS)
    before = len(fetch_traces(spans=False))
    assert before >= BATCH
    imported = import_traces(table, inputs="q", outputs="o", progress=False, **LABELS)
    assert (len(imported.skipped), imported.created) == (before, len(table) - before)
    check_whole(table, imported.trace_ids, 2 * len(table))


def test_a_failure_names_what_to_do_and_no_credentials(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "postgresql://me:pw-4711@db.example/mlflow"

    def broken(self: TracingClient, location: str, spans: list[Span]) -> Any:
        raise MlflowException(f"disk full at {secret}")

    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: secret)
    monkeypatch.setattr(TracingClient, "log_spans", broken)
    with pytest.raises(StoreError, match=r"disk full.*run the same call again") as caught:
        import_traces(pd.DataFrame({"q": ["a", "b"], "o": "x"}), inputs="q", outputs="o")
    assert "4711" not in "".join(traceback.format_exception(caught.value))


def test_tags_that_are_not_taken_are_an_error_like_others(store: str) -> None:
    """In words, and without being tried again where that cannot help."""
    table = pd.DataFrame({"q": ["a"], "o": "x", "topic": "1"})
    import_traces(table, inputs="q", outputs="o")

    def read_only(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    def writable(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA query_only=OFF")

    event.listen(Pool, "checkout", read_only)
    event.listen(Pool, "checkin", writable)
    try:
        with pytest.raises(StoreError, match=r"The tags could .*readonly database") as caught:
            import_traces(table, inputs="q", outputs="o", tags="topic")
    finally:
        event.remove(Pool, "checkout", read_only)
        event.remove(Pool, "checkin", writable)
    assert "UPDATE" not in str(caught.value)
    assert retrying.statistics["attempt_number"] == 1


def test_a_server_takes_the_same_import(server: str) -> None:
    """Over HTTP each row arrives whole, with labels, expectations and tags, and once."""
    table = rows(30).assign(
        gold=[["a", {"b": None}]] * 30,
        n=pd.array([k if k % 2 else None for k in range(30)], dtype="Int64"),
        tag=['{"a": 1}', "007"] * 15,
    )
    columns: dict[str, Any] = {"inputs": ["q", "n"], "outputs": "o", "tags": "tag"}
    for more, labels in (({"expectations": "gold", **LABELS}, 60), ({}, 0)):
        imported = import_traces(table, **columns, **more)
        assert (imported.created, imported.labels) == (30, labels)
        for row, example in zip(table.itertuples(), examples(imported), strict=True):
            n = None if row.n is pd.NA else row.n
            assert (example.inputs, example.outputs) == ({"q": row.q, "n": n}, row.o)
            assert example.expectations == ({"gold": row.gold} if more else None)
            assert example.tags == {"tag": row.tag}
        again = import_traces(table, **columns, **more)
        assert (again.created, again.labels, again.trace_ids) == (0, 0, imported.trace_ids)
    assert len(votes()) == 60


def test_the_real_file_comes_in_whole(store: str, openqa: Path) -> None:
    """All rows of the open question data, equal ones too; labels can be added to some later."""
    columns: dict[str, Any] = {"inputs": "question", "outputs": "answer", "progress": False}
    imported = import_traces(openqa, **columns)
    assert len(set(imported.trace_ids)) == imported.created == 1490
    assert [t.info.trace_id for t in fetch_traces(spans=False)] == imported.trace_ids
    table = read_table(openqa)[:100]
    annotators = {f"annotator{k}": f"annotator{k}" for k in (1, 2, 3)}
    added = import_traces(table, labels=annotators, label_name="correct", **columns)
    assert (added.created, added.trace_ids) == (0, imported.trace_ids[:100])
    filled = sum(int((table[column] != "").sum()) for column in annotators)
    assert len(label_records(fetch_traces(spans=False), "correct")) == added.labels == filled


def test_columns_may_have_numbers_for_names(store: str) -> None:
    """As those of a DataFrame that was made without names."""
    table = pd.DataFrame([["q", "o", "good", "why"]])
    imported = import_traces(
        table, inputs=0, outputs=[1], labels={"ana": (2, 3)}, label_name="quality"
    )
    (example,) = examples(imported)
    assert (example.inputs, example.outputs) == ({"0": "q"}, {"1": "o"})
    assert votes() == [(imported.trace_ids[0], "ana", "good", "why")]
    labels = pd.DataFrame({"trace_id": imported.trace_ids, 0: "poor"})
    assert log_labels(labels, name="quality", annotator="ben", value=0).written == 1
