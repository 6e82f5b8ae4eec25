"""Human labels: which of them count, wherever they were given."""

from __future__ import annotations

from typing import Any

import mlflow
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

from workbench.store.assessments import AFTER_VERDICT_KEY
from workbench.store.feedback import log_labels
from workbench.store.importing import import_traces
from workbench.store.labels import Label, label_records, near_misses
from workbench.store.traces import fetch_traces

AFTER = {AFTER_VERDICT_KEY: "true"}


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


def values(*assessments: Assessment) -> dict[str, tuple[Any, bool]]:
    records = label_records([trace(*assessments)], "quality")
    return {record.annotator: (record.value, record.after_verdict) for record in records}


@pytest.fixture
def trace_ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": ["a", "b", "c"], "o": ["x", "y", "z"]})
    return import_traces(table, inputs="q", outputs="o").trace_ids


def test_labels_come_back_as_they_were_given(trace_ids: list[str]) -> None:
    """Value, rationale and annotator of each row are read back, abstentions included."""
    table = pd.DataFrame(
        {"trace_id": trace_ids, "r": ["good", "N/A", " Bad "], "why": ["so", None, ""]}
    )
    logged = log_labels(table, name="quality", annotator="ana", value="r", rationale="why")
    assert logged.written == 3
    records = label_records(fetch_traces(spans=False), "quality")
    assert [(r.trace_id, r.annotator, r.value, r.rationale) for r in records] == [
        (trace_ids[0], "ana", "good", "so"),
        (trace_ids[1], "ana", "N/A", None),
        (trace_ids[2], "ana", " Bad ", None),
    ]


def test_a_column_that_is_taken_for_a_name_is_told(trace_ids: list[str]) -> None:
    """``annotator="who"`` makes one person of all in the column ``who``."""
    table = pd.DataFrame({"trace_id": trace_ids, "who": ["ana", "bo", "cy"], "r": "good"})
    with pytest.warns(UserWarning, match=r"'who' is the annotator's name itself.*groupby"):
        log_labels(table, name="quality", annotator="who", value="r")
    # A column of ratings that bears the annotator's name is how tables often are.
    log_labels(table.rename(columns={"r": "dee"}), name="quality", annotator="dee", value="dee")


def test_a_label_changed_back_counts(trace_ids: list[str]) -> None:
    """The last of no, yes, no is what the annotator says."""
    for value in ("no", "yes", "no"):
        table = pd.DataFrame({"trace_id": trace_ids, "r": value})
        assert log_labels(table, name="quality", annotator="ana", value="r").written == 3
    records = label_records(fetch_traces(spans=False), "quality")
    assert [r.value for r in records] == ["no"] * 3


def test_labels_given_in_mlflow_count_just_the_same(trace_ids: list[str]) -> None:
    """A label by `mlflow.log_feedback` is one like any other; other sources are no labels."""
    human = AssessmentSource(source_type="HUMAN", source_id="bo")
    judge = AssessmentSource(source_type="LLM_JUDGE", source_id="m")
    given = mlflow.log_feedback(
        trace_id=trace_ids[1], name="quality", value="bad", rationale="why", source=human
    )
    mlflow.log_feedback(trace_id=trace_ids[1], name="quality", value="good", source=judge)
    mlflow.log_feedback(trace_id=trace_ids[1], name="quality", value="good")
    mlflow.log_expectation(trace_id=trace_ids[1], name="quality", value="good", source=human)
    assert label_records(fetch_traces(spans=False), "quality") == [
        Label(trace_ids[1], "bo", "bad", "why", given.create_time_ms, False)
    ]


def test_an_overridden_label_does_not_count(trace_ids: list[str]) -> None:
    """`mlflow.override_feedback` replaces a label; deleting the new one brings the old back."""
    human = AssessmentSource(source_type="HUMAN", source_id="ana")

    def current() -> list[Any]:
        return [r.value for r in label_records(fetch_traces(spans=False), "quality")]

    first = mlflow.log_feedback(trace_id=trace_ids[0], name="quality", value="good", source=human)
    second = mlflow.override_feedback(
        trace_id=trace_ids[0], assessment_id=first.assessment_id, value="bad", source=human
    )
    assert current() == ["bad"]
    mlflow.delete_assessment(trace_ids[0], second.assessment_id)
    assert current() == ["good"]


def test_the_latest_of_one_annotator_counts() -> None:
    """One label an annotator, the latest by time; equal times are settled by the id."""
    assert values(feedback("b", 2), feedback("a", 1), feedback("c", 1, by="bo")) == {
        "ana": ("b", False),
        "bo": ("c", False),
    }
    assert values(feedback("b", 1, key="1"), feedback("a", 1, key="2")) == {"ana": ("a", False)}


def test_names_match_exactly() -> None:
    """A label under another name is none, however close."""
    assert values(feedback("a", name="Quality"), feedback("a", name="quality ")) == {}


def test_errors_and_empty_values_are_no_labels() -> None:
    """Feedback that holds an error or nothing does not count, nor hide what came before."""
    assert values(
        feedback("a", 1), feedback(None, 2, error="boom"), feedback(None, 3), feedback(" ", 4)
    ) == {"ana": ("a", False)}


def test_a_label_given_after_the_verdict_does_not_replace_a_blind_one() -> None:
    """What was given blind stands; what was only given after the verdict is marked."""
    assert values(feedback("blind", 1), feedback("seen", 2, metadata=AFTER)) == {
        "ana": ("blind", False)
    }
    assert values(feedback("seen", 1, metadata=AFTER), feedback("blind", 2)) == {
        "ana": ("blind", False)
    }
    assert values(feedback("seen", 1, metadata=AFTER), feedback("again", 2, metadata=AFTER)) == {
        "ana": ("again", True)
    }
    # Another annotator's blind label is no reason to drop it.
    assert values(feedback("seen", 1, metadata=AFTER), feedback("blind", 2, by="bo")) == {
        "ana": ("seen", True),
        "bo": ("blind", False),
    }


def test_overriding_after_the_verdict_does_not_replace_a_blind_one_either() -> None:
    """A blind label that its author overrode after seeing the verdict still counts."""
    blind = feedback("blind", 1, key="1", valid=False)
    seen = feedback("seen", 2, key="2", metadata=AFTER, overrides="1", valid=False)
    again = feedback("again", 3, key="3", metadata=AFTER, overrides="2")
    assert values(blind, seen, again) == {"ana": ("blind", False)}
    corrected = feedback("corrected", 4, key="4", overrides="1")
    assert values(blind, corrected) == {"ana": ("corrected", False)}
    # Overridden by somebody else, or by what is gone: no longer its author's word.
    other = feedback("other", 2, by="bo", metadata=AFTER, overrides="1")
    assert values(blind, other) == {"bo": ("other", True)}
    assert values(blind) == {}


@given(st.permutations(range(5)))
def test_the_order_of_arrival_does_not_matter(order: list[int]) -> None:
    """The same feedback in any order gives the same labels."""
    given_ = [
        feedback("a", 1, key="1"),
        feedback("b", 1, key="2"),
        feedback("c", 3, key="3", metadata=AFTER),
        feedback("d", 0, key="4", by="bo", metadata=AFTER),
        feedback("e", 9, key="5", valid=False),
    ]
    assert values(*[given_[k] for k in order]) == {"ana": ("b", False), "bo": ("d", True)}


def test_near_misses_are_counted() -> None:
    """Names that differ by case, space, dash or a letter are found, others are not."""
    traces = [
        trace(*(feedback("a", at, name=name) for at, name in enumerate(names)))
        for names in (
            ["Answer-Quality", "answer quality ", "tone"],
            ["Answer-Quality", "answer_qualty", "answer_quality"],
        )
    ]
    assert near_misses(traces, "answer_quality") == {
        "Answer-Quality": 2,
        "answer quality ": 1,
        "answer_qualty": 1,
    }
    verdict = feedback("a", name="Quality", kind="LLM_JUDGE")
    assert (
        near_misses([trace(verdict, feedback("a", 1, name="Quality", valid=False))], "quality")
        == {}
    )
