"""Ratings are written once, and it is settled which human labels count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import (
    Assessment,
    AssessmentSource,
    Feedback,
    Trace,
    TraceData,
    TraceInfo,
    TraceState,
)
from mlflow.entities.trace_location import TraceLocation

import workbench
from workbench.errors import ArgumentError, StoreError, TableError
from workbench.store.assessments import log_feedback_table, log_labels
from workbench.store.importing import import_traces
from workbench.store.labels import (
    AFTER_VERDICT_KEY,
    DECISION_KEY,
    Label,
    decision_records,
    label_records,
    near_misses,
)
from workbench.store.traces import fetch_traces

AFTER = {AFTER_VERDICT_KEY: "true"}
ANA = AssessmentSource(source_type="HUMAN", source_id="ana")


@pytest.fixture
def trace_ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": ["a", "b", "c"], "o": ["x", "y", "z"]})
    return import_traces(table, inputs="q", outputs="o").trace_ids


# -- tables of ratings ---


def log(table: Any, **arguments: Any) -> Any:
    source = AssessmentSource("HUMAN", arguments.pop("source_id", "ana"))
    return log_feedback_table(table, source, **{"name": "quality", "value": "rating", **arguments})


def stored() -> list[tuple[Any, str | None]]:
    return [(a.value, a.rationale) for t in fetch_traces(spans=False) for a in t.info.assessments]


def ratings(trace_id: str) -> list[Any]:
    """The valid values on a trace, the oldest first."""
    found = fetch_traces([trace_id], spans=False)[0].info.assessments
    valid = [a for a in found if a.valid is not False]
    return [a.value for a in sorted(valid, key=lambda a: a.create_time_ms)]


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


def test_words_for_no_rating_are_labels_where_the_values_say_so(trace_ids: list[str]) -> None:
    table = pd.DataFrame({"trace_id": trace_ids, "rating": ["none", "mild", "none"]})
    logged = log(table)
    assert (logged.written, set(logged.skipped["reason"])) == (1, {"without a value"})
    assert log(table, values=["none", "mild", "severe"]).written == 2
    given = {"name": "other", "value": "rating", "values": "none, mild"}
    assert log_labels(table, annotator="ana", **given).written == 3
    assert workbench.log_verdicts(table, source="m", **given).written == 3


def test_characters_that_cannot_be_stored_are_replaced_and_counted(trace_ids: list[str]) -> None:
    row = {"trace_id": trace_ids[0], "rating": "good", "why": "cut \ud83d\0"}
    table = pd.DataFrame([row], dtype=object)
    logged = log(table, rationale="why")
    assert (logged.written, logged.unstorable, stored()) == (1, 2, [("good", "cut \ufffd\ufffd")])
    assert "2 characters that cannot be stored replaced" in repr(logged)
    assert log(table, rationale="why").present == 1


def test_a_row_is_written_once(trace_ids: list[str], tmp_path: Path) -> None:
    """Only a row that says exactly the same is present, also from a file."""
    table = pd.DataFrame({"trace_id": trace_ids, "rating": ["good", "bad", "good"], "why": "so"})
    assert log(table).written == 3
    table.to_csv(tmp_path / "labels.csv", index=False)
    again = log(tmp_path / "labels.csv")
    assert (again.written, again.present) == (0, 3)
    others = ({"rationale": "why"}, {"source_id": "bo"}, {"name": "other"}, {"metadata": AFTER})
    for other in others:
        assert log(table, **other).written == 3
    assert log(table, metadata=AFTER).written == 0


def test_the_same_label_without_a_rationale_takes_none_away(trace_ids: list[str]) -> None:
    table = pd.DataFrame({"trace_id": trace_ids[:2], "rating": ["good", "bad"], "why": "so"})
    log(table, rationale="why")
    for again in (log(table), log(table.assign(why=None), rationale="why")):
        assert (again.written, again.present) == (0, 2)
    assert log(table.assign(why="thus"), rationale="why").replaced == 2
    (first, _) = label_records(fetch_traces(trace_ids[:2], spans=False), "quality")
    assert first.rationale == "thus"


def test_an_array_is_no_label(trace_ids: list[str]) -> None:
    cells = pd.Series([np.array(["good"]), "good", "bad"], dtype=object)
    with pytest.raises(TableError, match="row 0: A rating is one value, and this is a ndarray"):
        log(pd.DataFrame({"trace_id": trace_ids, "rating": cells}))


def test_a_person_is_the_same_in_any_writing(trace_ids: list[str]) -> None:
    """A label under another one replaces the first."""
    log(pd.DataFrame({"trace_id": trace_ids[:2], "rating": ["good", "bad"]}), source_id="Ana")
    table = pd.DataFrame({"trace_id": trace_ids, "rating": ["good", "good", "bad"]})
    logged = log(table, source_id=" ana")
    assert (logged.written, logged.present, logged.replaced) == (2, 1, 1)
    assert len({r.annotator for r in label_records(fetch_traces(spans=False), "quality")}) == 1
    verdicts = {"name": "other", "value": "rating"}
    for source in ("M", "m"):  # models are no people
        assert workbench.log_verdicts(table, source=source, **verdicts).written == 3


def test_numpy_values_are_stored_as_plain_ones(trace_ids: list[str]) -> None:
    """Numbers and booleans keep their type; 4 and 4.0 are one value, 1 and True two."""
    log(pd.DataFrame({"trace_id": trace_ids, "rating": [1, 2, 4]}))
    assert [(value, type(value)) for value, _ in stored()] == [(1, int), (2, int), (4, int)]
    assert log(pd.DataFrame({"trace_id": trace_ids, "rating": [1.0, 2.0, 4.0]})).written == 0
    assert log(pd.DataFrame({"trace_id": trace_ids[:1], "rating": [True]})).written == 1


def test_a_value_can_be_changed_back(trace_ids: list[str]) -> None:
    """The last of no, yes and no is what the annotator says, in call after call."""
    table = pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["no"]})
    for value, written in (("no", 1), ("yes", 1), ("no", 1), ("no", 0), ("yes", 1), ("no", 1)):
        assert log(table.assign(rating=value)).written == written
    assert ratings(trace_ids[0]) == ["no", "yes", "no", "yes", "no"]
    changed = log(table.assign(rating="yes"))
    assert (changed.written, changed.replaced) == (1, 1)
    assert "1 replaced" in repr(changed)


def test_the_last_of_several_rows_on_a_trace_counts(trace_ids: list[str]) -> None:
    """The others are listed."""
    one = trace_ids[0]
    table = pd.DataFrame({"trace_id": [one, one, trace_ids[1], one], "rating": list("abca")})
    logged = log(table)
    assert (logged.written, ratings(one), ratings(trace_ids[1])) == (2, ["a"], ["c"])
    assert logged.skipped.to_dict("list") == {
        "row": [0, 1],
        "reason": ["followed by another on the same trace"] * 2,
    }
    assert (log(table).written, log(table).present) == (0, 2)


def test_what_was_overridden_or_edited_is_changed_back(trace_ids: list[str]) -> None:
    """The latest valid rating counts, whoever wrote it; replacing it is said."""
    table = pd.DataFrame({"trace_id": trace_ids[:2], "rating": ["good", "good"]})
    log(table)
    first, second = (t.info.assessments[0] for t in fetch_traces(trace_ids[:2], spans=False))
    mlflow.override_feedback(
        trace_id=trace_ids[0], assessment_id=first.assessment_id, value="bad", source=ANA
    )
    edited = mlflow.get_assessment(trace_ids[1], second.assessment_id)
    edited.value = "fair"
    mlflow.update_assessment(trace_ids[1], second.assessment_id, edited)
    assert log(table.assign(rating=["bad", "fair"])).written == 0
    again = log(table)
    assert (again.written, again.present, again.replaced) == (2, 0, 2)
    assert [ratings(i) for i in trace_ids[:2]] == [["bad", "good"], ["fair", "good"]]
    assert log(table).written == 0


def test_a_new_rating_is_later_than_all_before_it(trace_ids: list[str]) -> None:
    """Also where what is stored was written by a clock that is ahead."""
    ahead = Feedback(name="quality", value="no", source=ANA, create_time_ms=2**42)
    mlflow.log_assessment(trace_ids[0], ahead)
    log(pd.DataFrame({"trace_id": trace_ids[:1], "rating": ["yes"]}))
    assert ratings(trace_ids[0]) == ["no", "yes"]


def test_nothing_is_written_when_something_is_wrong(trace_ids: list[str]) -> None:
    """Unknown traces, values that cannot be stored and wrong columns are found before writing."""
    table = pd.DataFrame({"trace_id": [*trace_ids[:2], "tr-gone"], "rating": ["good"] * 3})
    half = pd.Series(["cut \ud83d"] * 3, dtype=object)
    with pytest.raises(StoreError, match=r"1 of 3 trace ids .*tr-gone"):
        log(table)
    with pytest.raises(TableError, match="row 0: the value is a value of type bytes"):
        log(table.assign(rating=b"x"))
    with pytest.raises(TableError, match="row 0: A rating is one value, and this is a list"):
        log(table.assign(rating=pd.Series([["good"]] * 3, dtype=object)))
    with pytest.raises(StoreError, match="not in the store"):
        log(table.assign(trace_id=half))
    with pytest.raises(ArgumentError, match="did you mean 'rating'"):
        log(table, value="ratng")
    with pytest.raises(ArgumentError, match="rationale: the table has no column ''"):
        log(table, rationale="")
    with pytest.raises(ArgumentError, match="no column 'trace_id'"):
        log(table.drop(columns="trace_id"))
    for argument in ({"source_id": " "}, {"source_id": "\ud83d"}, {"name": ""}):
        with pytest.raises(ArgumentError, match=r"(annotator|name)="):
            log(table, **argument)
    assert stored() == []


def test_a_column_that_is_taken_for_a_name_is_warned_of(trace_ids: list[str]) -> None:
    """``annotator="who"`` makes one person of all in the column ``who``."""
    table = pd.DataFrame({"trace_id": trace_ids, "who": ["ana", "bo", "cy"], "r": "good"})
    with pytest.warns(UserWarning, match=r"'who' is taken as the one annotator.*groupby"):
        log_labels(table, name="quality", annotator="who", value="r")
    # A column of ratings that bears the annotator's name is how tables often are.
    log_labels(table.rename(columns={"r": "dee"}), name="quality", annotator="dee", value="dee")


# -- labels read ---


def trace(*assessments: Assessment) -> Trace:
    info = TraceInfo(
        trace_id="tr-1",
        trace_location=TraceLocation.from_experiment_id("0"),
        request_time=0,
        state=TraceState.OK,
        assessments=list(assessments),
    )
    return Trace(info, TraceData(spans=[]))


def feedback(
    value: Any, at: int = 0, *, by: str = "ana", key: str = "", kind: str = "HUMAN", **more: Any
) -> Feedback:
    made = Feedback(
        name=more.pop("name", "quality"),
        value=value,
        source=AssessmentSource(source_type=kind, source_id=by),
        create_time_ms=at,
        **more,
    )
    made.assessment_id = key or f"a-{by}-{at}-{value}"
    return made


BLIND = feedback("blind", 1, key="1")
SEEN = feedback("seen", 2, key="2", metadata=AFTER)
OVERRIDDEN = feedback("blind", 1, key="1", valid=False)
OVERRIDING = feedback("seen", 2, key="2", metadata=AFTER, overrides="1", valid=False)


@pytest.mark.parametrize(
    ("given_", "counting"),
    [
        # The latest by time; equal times are settled by the id.
        ([feedback("b", 2), feedback("a", 1)], {"ana": ("b", False)}),
        ([feedback("b", 1, key="1"), feedback("a", 1, key="2")], {"ana": ("a", False)}),
        ([BLIND, feedback("c", by="bo")], {"ana": ("blind", False), "bo": ("c", False)}),
        # Other names and sources, errors and empty values are no labels and hide none.
        ([feedback("a", name="Quality"), feedback("a", kind="LLM_JUDGE")], {}),
        ([BLIND, feedback(None, 2, error="x"), feedback(" ", 3)], {"ana": ("blind", False)}),
        # What was only given after the verdict is marked, and never replaces a blind one.
        ([BLIND, SEEN], {"ana": ("blind", False)}),
        ([feedback("seen", 0, metadata=AFTER), BLIND], {"ana": ("blind", False)}),
        ([feedback("seen", 0, metadata=AFTER), SEEN], {"ana": ("seen", True)}),
        ([SEEN, feedback("b", by="bo")], {"ana": ("seen", True), "bo": ("b", False)}),
        # Not even by overriding it; but a blind correction does.
        (
            [OVERRIDDEN, OVERRIDING, feedback("again", 3, metadata=AFTER, overrides="2")],
            {"ana": ("blind", False)},
        ),
        ([OVERRIDDEN, feedback("new", 4, overrides="1")], {"ana": ("new", False)}),
        (
            [OVERRIDDEN, feedback("b", 2, by="bo", metadata=AFTER, overrides="1")],
            {"bo": ("b", True)},
        ),
        ([OVERRIDDEN], {}),
        # Who overrides a verdict has seen it, and still has when changing that label again.
        (
            [
                feedback("x", kind="LLM_JUDGE", key="1", valid=False),
                feedback("a", 1, key="2", overrides="1", valid=False),
                feedback("b", 2, overrides="2"),
            ],
            {"ana": ("b", True)},
        ),
    ],
)
def test_which_labels_count(given_: list[Feedback], counting: dict[str, tuple[Any, bool]]) -> None:
    """One label an annotator, whatever the order of arrival."""
    for order in (given_, given_[::-1]):
        records = label_records([trace(*order)], "quality")
        assert {r.annotator: (r.value, r.after_verdict) for r in records} == counting


@given(st.permutations(range(4)))
def test_decisions_are_no_labels(order: list[int]) -> None:
    """Nor is what overrides one in MLflow's own page; the latest valid decision counts."""
    decided = {DECISION_KEY: "true", **AFTER}
    made = [
        feedback("a", 1),
        feedback("b", 2, by="bo", key="1", metadata=decided, valid=False),
        feedback("c", 3, by="bo", key="2", overrides="1"),
        feedback("d", 4, by="cy", metadata=decided, error="no value"),
    ]
    traces = [trace(*(made[k] for k in order))]
    assert [(r.annotator, r.value) for r in label_records(traces, "quality")] == [("ana", "a")]
    assert [(d.by, d.value) for d in decision_records(traces, "quality")] == [("bo", "c")]


def test_labels_come_back_as_they_were_given(trace_ids: list[str]) -> None:
    """By `log_labels` or in MLflow, overridden or restored; abstentions are values."""
    table = pd.DataFrame(
        {"trace_id": trace_ids[:2], "r": ["N/A", " Bad "], "why": ["so", ""]}, dtype=object
    )
    log_labels(table, name="quality", annotator="ana", value="r", rationale="why")
    judge = AssessmentSource(source_type="LLM_JUDGE", source_id="m")
    mlflow.log_feedback(trace_id=trace_ids[2], name="quality", value="good", source=judge)
    first = mlflow.log_feedback(
        trace_id=trace_ids[2], name="quality", value="bad", rationale="why", source=ANA
    )
    second = mlflow.override_feedback(
        trace_id=trace_ids[2], assessment_id=first.assessment_id, value="fair", source=ANA
    )
    records = label_records(fetch_traces(spans=False), "quality")
    assert [(r.value, r.rationale) for r in records] == [
        ("N/A", "so"), (" Bad ", None), ("fair", None),
    ]  # fmt: skip
    mlflow.delete_assessment(trace_ids[2], second.assessment_id)
    assert label_records(fetch_traces(spans=False), "quality")[2] == Label(
        trace_ids[2], "ana", "bad", "why", first.create_time_ms, False
    )


def test_near_misses_are_counted() -> None:
    """Names that differ by case, space, dash or a letter are found, others are not."""
    names = ["Answer-Quality", "answer quality ", "tone", "answer_qualty", "answer_quality"]
    traces = [
        trace(*(feedback("a", at, name=name) for at, name in enumerate(names))),
        trace(feedback("a", name="Answer-Quality")),
        trace(feedback("a", name="answer quality", kind="LLM_JUDGE")),
        trace(feedback("a", name="answer quality", valid=False)),
    ]
    said = near_misses(traces, "answer_quality")
    assert [note.split(", which is not")[0] for note in said] == [
        "2 labels are stored under 'Answer-Quality'",
        "1 label is stored under 'answer quality '",
        "1 label is stored under 'answer_qualty'",
    ]
