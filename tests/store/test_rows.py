"""Rows: which column is what, and which rows cannot be stored."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from workbench.errors import ArgumentError, TableError
from workbench.store.tables import read_rows


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "q": ["a", "b"],
            "context": ["c", None],
            "answer": ["x", "y"],
            "gold": ["g", None],
            "id": [7, 8],
            "ana": ["good", None],
            "why": ["because", "unrated"],
        }
    )


def test_a_column_a_list_and_a_dict_say_the_same(table: pd.DataFrame) -> None:
    """Inputs are a dict by key however they are named; a single output is the cell itself."""
    for inputs in ("q", ["q"], {"q": "q"}):
        row = read_rows(table, inputs=inputs, outputs="answer")[0]
        assert (row.inputs, row.outputs) == ({"q": "a"}, "x")
    row = read_rows(table, inputs={"query": "q", "context": "context"}, outputs=["answer"])[1]
    assert (row.inputs, row.outputs) == ({"query": "b", "context": None}, {"answer": "y"})


def test_empty_expectations_tags_and_labels_are_left_out(table: pd.DataFrame) -> None:
    """A cell without a value makes no expectation, no tag and no label."""
    rows = read_rows(
        table,
        inputs="q",
        outputs="answer",
        expectations="gold",
        tags={"group": "id"},
        labels={"ana": ("ana", "why"), "bo": "ana"},
    )
    assert [row.expectations for row in rows] == [{"gold": "g"}, {}]
    assert [row.tags for row in rows] == [{"group": "7"}, {"group": "8"}]
    assert rows[0].labels == {"ana": ("good", "because"), "bo": ("good", None)}
    assert rows[1].labels == {}


def test_all_bad_rows_are_listed_with_their_reasons() -> None:
    """Each cell that cannot be stored is named by row and column, all in one error."""
    table = pd.DataFrame(
        {
            "q": ["a", None, b"x", "d", "e", {"n": math.inf}],
            "o": ["x", "y", "z", math.nan, "", "w"],
            "tag": ["t", "t", "t", "t", "t" * 8001, "\ud800"],
            "ana": ["good", "good", "good", "good", object(), "good"],
            "why": ["", "", "", "", "", "\ud800"],
        },
        dtype=object,
    )
    with pytest.raises(TableError, match="5 of 6 rows") as caught:
        read_rows(table, inputs="q", outputs="o", tags="tag", labels={"ana": ("ana", "why")})
    assert caught.value.rows == [
        (1, "no inputs (column 'q' is empty)"),
        (2, "column 'q' holds a value of type bytes"),
        (3, "no outputs (column 'o' is empty)"),
        (4, "tag 'tag' is longer than 8000 characters"),
        (4, "label of 'ana': the value is a value of type object"),
        (5, "column 'q' holds an infinite number"),
        (5, "tag 'tag' holds half of a surrogate pair"),
        (
            5,
            "label of 'ana': the rationale holds half of a surrogate pair, which MLflow cannot "
            "store here",
        ),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "Q"}, "inputs: .*did you mean 'q'"),
        ({"outputs": ["answer", "gone"]}, "outputs: the table has no column 'gone'"),
        ({"labels": {"ana": ("ana", "reason")}}, "labels: the table has no column 'reason'"),
        ({"labels": {"ana": ("a", "b", "c")}}, "must be a column or a pair"),
        ({"labels": ["ana"]}, "must be a dict"),
        ({"labels": {" ": "ana"}}, "non-empty"),
        ({"inputs": []}, "must be a column"),
        ({"inputs": ["q", "q"]}, "twice"),
        ({"inputs": {1: "q"}}, "with texts for keys"),
        ({"tags": {"mlflow.user": "id"}}, "begins with 'mlflow.'"),
        ({"tags": {"a=b": "id"}}, "does not take 'a=b'"),
    ],
)
def test_wrong_columns_are_named(
    table: pd.DataFrame, arguments: dict[str, Any], message: str
) -> None:
    """A column or key that does not do is an error that names the argument."""
    with pytest.raises(ArgumentError, match=message):
        read_rows(table, **{"inputs": "q", "outputs": "answer", **arguments})
