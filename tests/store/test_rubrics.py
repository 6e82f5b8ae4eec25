"""Rubrics: versions on the store, and which labels were made under an earlier one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource

import workbench
from workbench.errors import ArgumentError
from workbench.store.labels import RUBRIC_KEY, Label
from workbench.store.schemas import Rubric, RubricHistory

NAME = "Is the answer correct?"


@pytest.fixture
def trace_ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": ["a", "b"], "a": ["1", "2"]})
    return list(workbench.import_traces(table, inputs=["q"], outputs="a").trace_ids)


def test_each_change_is_a_version_and_nothing_is_overwritten(store: str) -> None:
    assert workbench.rubric(NAME) is None
    assert workbench.rubric_history(NAME).table.empty
    workbench.set_rubric(NAME, "Says the fact.", by="ana", note="first thoughts")
    second = workbench.set_rubric(NAME, "Says the fact {{ inputs }} *first*.\n\n- é 漢", by="ben")
    assert workbench.rubric(NAME) == second
    assert (second.version, second.by) == (2, "ben")
    assert workbench.rubric(NAME, 1).text == "Says the fact."
    table = workbench.rubric_history(NAME).table
    assert table[["version", "by", "note"]].values.tolist() == [
        [1, "ana", "first thoughts"],
        [2, "ben", ""],
    ]
    with pytest.raises(ArgumentError, match=r"version=7 is not known. Use one of: 1, 2\."):
        workbench.rubric(NAME, 7)


def test_the_same_text_again_makes_no_version_unless_another_came_between(store: str) -> None:
    first = workbench.set_rubric(NAME, "one", by="ana")
    assert workbench.set_rubric(NAME, "  one\n", by="ben") == first
    for text in ("two", "one"):
        workbench.set_rubric(NAME, text)
    assert [v.text for v in workbench.rubric_history(NAME)] == ["one", "two", "one"]


def test_questions_and_experiments_have_rubrics_of_their_own(store: str) -> None:
    workbench.set_rubric("a b", "one")
    workbench.set_rubric("a-b", "two")
    workbench.set_rubric("a b", "three", experiment="other")
    assert workbench.rubric("a b").text == "one"
    assert workbench.rubric("a-b").text == "two"
    assert workbench.rubric("a b", experiment="other").text == "three"


def test_two_people_at_once_lose_nothing(store: str) -> None:
    """Each text that was set is a version, and a text set twice at once is one."""
    texts = ["same", "same", "other"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda text: workbench.set_rubric(NAME, text), texts))
    history = [v.text for v in workbench.rubric_history(NAME)]
    assert set(history) == {"same", "other"}
    assert all(a != b for a, b in pairwise(history))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "non-empty"),
        ("x" * 100_001, "at most 100,000"),
        ("\ud800", "cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_said(store: str, text: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        workbench.set_rubric(NAME, text)


HISTORY = RubricHistory(
    NAME,
    tuple(Rubric(NAME, text, n, created_ms=10 * n) for n, text in enumerate(["a", "b", "a"], 1)),
)


@pytest.mark.parametrize(
    ("at", "under", "version", "earlier"),
    [
        # The version that the label records counts, whenever it was given ...
        (5, 0, 0, True),
        (35, 1, 1, False),  # the text was changed and changed back
        (35, 2, 2, True),
        (5, 3, 3, False),
        # ... else the one in force when it was given.
        (9, None, 0, True),
        (20, None, 2, True),
        (29, None, 2, True),
        (30, None, 3, False),
    ],
)
def test_a_label_is_of_one_version(at: int, under: int | None, version: int, earlier: bool) -> None:
    label = Label("tr-1", "ana", "good", None, at, False, under)
    assert (HISTORY.version_of(label), HISTORY.is_earlier(label)) == (version, earlier)
    assert not RubricHistory(NAME).is_earlier(label)


def test_labels_under_an_earlier_rubric_are_told(trace_ids: list[str]) -> None:
    first, second = trace_ids
    workbench.set_rubric(NAME, "one")

    def say(trace_id: str, value: str, by: str, version: int) -> None:
        source = AssessmentSource(source_type="HUMAN", source_id=by)
        metadata = {RUBRIC_KEY: str(version)}
        mlflow.log_feedback(
            trace_id=trace_id, name=NAME, value=value, source=source, metadata=metadata
        )

    say(first, "good", "ana", 1)
    say(second, "poor", "ben", 1)
    assert workbench.earlier_labels(NAME).empty
    workbench.set_rubric(NAME, "two")
    say(first, "fair", "ana", 2)
    told = workbench.earlier_labels(NAME)
    assert told[["trace_id", "annotator", "value", "rubric_version"]].values.tolist() == [
        [second, "ben", "poor", 1]
    ]
    assert len(workbench.earlier_labels(NAME, annotator="Ben")) == 1
    assert workbench.earlier_labels(NAME, annotator="ana").empty
    assert workbench.earlier_labels(NAME, annotator="ana").empty
