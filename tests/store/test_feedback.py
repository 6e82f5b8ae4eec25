"""Feedback: tables of ratings are written once, whatever happens in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource, Feedback

from workbench.errors import ArgumentError, StoreError, TableError
from workbench.scale import Scale
from workbench.store.assessments import AFTER_VERDICT_KEY
from workbench.store.feedback import log_feedback_table
from workbench.store.importing import import_traces
from workbench.store.traces import fetch_traces


@pytest.fixture
def trace_ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": ["a", "b", "c"], "o": ["x", "y", "z"]})
    return import_traces(table, inputs="q", outputs="o").trace_ids


def log(table: Any, **arguments: Any) -> Any:
    defaults: dict[str, Any] = {
        "name": "quality",
        "source_type": "HUMAN",
        "source_id": "ana",
        "value": "rating",
    }
    return log_feedback_table(table, **{**defaults, **arguments})


def stored() -> list[tuple[Any, str | None]]:
    return [(a.value, a.rationale) for t in fetch_traces(spans=False) for a in t.info.assessments]


def test_rows_without_a_value_or_trace_are_listed(trace_ids: list[str]) -> None:
    """What makes no feedback is counted and listed with its reason."""
    table = pd.DataFrame(
        {"trace_id": [*trace_ids, None], "rating": ["good", None, " ", "bad"], "why": "because"}
    )
    logged = log(table, rationale="why")
    assert (logged.written, logged.present) == (1, 0)
    assert logged.skipped.to_dict("list") == {
        "row": [1, 2, 3],
        "reason": ["without a value", "without a value", "without a trace_id"],
    }
    assert stored() == [("good", "because")]
    assert "2 without a value" in repr(logged)
    assert "without a trace_id" in logged._repr_html_()


def test_a_row_is_written_once(trace_ids: list[str], tmp_path: Path) -> None:
    """Repeating a call writes nothing, also from a file and within one table."""
    table = pd.DataFrame({"trace_id": trace_ids, "rating": ["good", "bad", "good"]})
    assert log(pd.concat([table, table])).written == 3
    path = tmp_path / "labels.csv"
    table.to_csv(path, index=False)
    again = log(path)
    assert (again.written, again.present) == (0, 3)
    assert len(stored()) == 3


def test_another_value_source_or_rationale_is_another_row(trace_ids: list[str]) -> None:
    """Only a row that says exactly the same counts as present."""
    table = pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["good"], "why": ["so"]})
    assert log(table).written == 1
    assert log(table, rationale="why").written == 1
    assert log(table, source_id="bo").written == 1
    assert log(table, name="other").written == 1
    assert log(table.assign(rating="bad")).written == 1
    assert len(stored()) == 5


def ratings(trace_id: str) -> list[Any]:
    """The valid values on a trace, the oldest first."""
    found = fetch_traces([trace_id], spans=False)[0].info.assessments
    valid = [a for a in found if a.valid is not False]
    return [a.value for a in sorted(valid, key=lambda a: a.create_time_ms)]


def test_a_value_can_be_changed_back(trace_ids: list[str]) -> None:
    """No, yes and no again are three words, of which the last is the latest."""
    table = pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["no"]})
    for value, written in (("no", 1), ("yes", 1), ("no", 1), ("no", 0), ("yes", 1), ("no", 1)):
        assert log(table.assign(rating=value)).written == written
    assert ratings(trace_ids[0]) == ["no", "yes", "no", "yes", "no"]
    changed = log(table.assign(rating="yes"))
    assert (changed.written, changed.replaced) == (1, 1)
    assert "1 replaced" in repr(changed)


def test_what_was_overridden_or_edited_is_changed_back(trace_ids: list[str]) -> None:
    """The latest valid word counts, whoever wrote it down; replacing it is said."""
    table = pd.DataFrame({"trace_id": trace_ids[:2], "rating": ["good", "good"]})
    log(table)
    first, second = (t.info.assessments[0] for t in fetch_traces(trace_ids[:2], spans=False))
    source = AssessmentSource(source_type="HUMAN", source_id="ana")
    mlflow.override_feedback(
        trace_id=trace_ids[0], assessment_id=first.assessment_id, value="bad", source=source
    )
    edited = mlflow.get_assessment(trace_ids[1], second.assessment_id)
    edited.value = "fair"
    mlflow.update_assessment(trace_ids[1], second.assessment_id, edited)
    assert log(table.assign(rating=["bad", "fair"])).written == 0
    again = log(table)
    assert (again.written, again.present, again.replaced) == (2, 0, 2)
    assert [ratings(i) for i in trace_ids[:2]] == [["bad", "good"], ["fair", "good"]]
    assert log(table).written == 0


def test_several_rows_on_a_trace_are_written_whole_and_once(trace_ids: list[str]) -> None:
    """A rating that comes again later in the table is written again; the call is repeatable."""
    table = pd.DataFrame({"trace_id": trace_ids[:1] * 4, "rating": ["no", "yes", "no", "yes"]})
    assert log(table).written == 4
    again = log(table)
    assert (again.written, again.present) == (0, 4)
    assert ratings(trace_ids[0]) == ["no", "yes", "no", "yes"]
    # A call that is killed midway is completed by the next.
    other = table.assign(trace_id=trace_ids[1])
    log(other[:3])
    assert log(other).written == 1
    assert ratings(trace_ids[1]) == ["no", "yes", "no", "yes"]


def test_what_cannot_be_encoded_is_refused(trace_ids: list[str]) -> None:
    """Half of a surrogate pair, wherever it is, is found before anything is written."""
    table = pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["no"], "why": ["so"]}, dtype=object)
    with pytest.raises(TableError, match="row 0: the rationale holds half of a surrogate"):
        log(table.assign(why=pd.Series(["cut \ud83d"], dtype=object)), rationale="why")
    for value in ("\ud83d", ["\ud83d"]):
        with pytest.raises(TableError, match="row 0: the value holds half of a surrogate"):
            log(table.assign(rating=pd.Series([value], dtype=object)))
    for argument in ({"source_id": "\ud83d"}, {"name": "\ud83d"}):
        with pytest.raises(ArgumentError, match="half of a surrogate"):
            log(table, **argument)
    with pytest.raises(StoreError, match="not in the store"):
        log(table.assign(trace_id=pd.Series(["tr-\ud83d"], dtype=object)))
    assert stored() == []


def test_a_label_given_blind_is_written_beside_an_equal_one_that_was_not(
    trace_ids: list[str],
) -> None:
    """One that was given after its author saw the verdict does not stand for a blind one."""
    seen = {AFTER_VERDICT_KEY: "true"}
    table = pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["no"]})
    assert log(table, metadata=seen).written == 1
    assert log(table).written == 1
    assert log(table, metadata=seen).written == log(table).written == 0


def test_a_new_word_is_later_than_all_before_it(trace_ids: list[str]) -> None:
    """Also where what is stored was written by a clock that is ahead."""
    source = AssessmentSource(source_type="HUMAN", source_id="ana")
    ahead = Feedback(name="quality", value="no", source=source, create_time_ms=2**42)
    mlflow.log_assessment(trace_ids[0], ahead)
    log(pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["yes"]}))
    assert ratings(trace_ids[0]) == ["no", "yes"]


def test_numpy_values_are_stored_as_plain_ones(trace_ids: list[str]) -> None:
    """Numbers and booleans keep their type; 4 and 4.0 are one value, 1 and True two."""
    log(pd.DataFrame({"trace_id": trace_ids, "rating": [1, 2, 4]}))
    assert [(value, type(value)) for value, _ in stored()] == [(1, int), (2, int), (4, int)]
    assert log(pd.DataFrame({"trace_id": trace_ids, "rating": [1.0, 2.0, 4.0]})).written == 0
    assert log(pd.DataFrame({"trace_id": trace_ids[:1], "rating": [True]})).written == 1


def test_the_last_of_several_rows_is_the_latest(trace_ids: list[str]) -> None:
    """Rows on one trace get rising times, in the order of the table."""
    log(pd.DataFrame({"trace_id": trace_ids[:1] * 3, "rating": ["good", "bad", "fair"]}))
    found = fetch_traces(trace_ids[:1], spans=False)[0].info.assessments
    assert max(found, key=lambda a: a.create_time_ms).value == "fair"


def test_nothing_is_written_when_something_is_wrong(trace_ids: list[str]) -> None:
    """Unknown traces, values off the scale and wrong columns are found before writing."""
    table = pd.DataFrame({"trace_id": [*trace_ids[:2], "tr-gone"], "rating": ["good"] * 3})
    with pytest.raises(StoreError, match=r"1 of 3 trace ids .*tr-gone"):
        log(table)
    with pytest.raises(TableError, match="row 2: 'fine' is not on the scale"):
        log(table.assign(rating=["good", "N/A", "fine"]), scale=Scale("binary", ("bad", "good")))
    with pytest.raises(TableError, match="row 0: the value is a value of type bytes"):
        log(table.assign(rating=b"x"))
    with pytest.raises(ArgumentError, match="did you mean 'rating'"):
        log(table, value="ratng")
    with pytest.raises(ArgumentError, match="no column 'trace_id'"):
        log(table.drop(columns="trace_id"))
    with pytest.raises(ArgumentError, match="source="):
        log(table, source_id=" ")
    assert stored() == []
