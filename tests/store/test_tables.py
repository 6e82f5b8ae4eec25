"""Tables: rows in plain values, bad rows with their reasons."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ArgumentError, TableError
from workbench.store.tables import Row, plain, raise_bad_rows, read_rows, require_columns

# -- cells ---

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(json_values)
def test_plain_values_stay_as_they_are(value: Any) -> None:
    """What JSON can hold is unchanged."""
    assert json.dumps(plain(value)) == json.dumps(value)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(["a", None], dtype=object), ["a", None]),
        ((1, "a"), [1, "a"]),
        (pd.Timestamp("2024-01-02 03:04"), "2024-01-02T03:04:00"),
        (np.datetime64("2024-01-02"), "2024-01-02T00:00:00"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.timedelta(hours=1), "P0DT1H0M0S"),
        (np.datetime64("NaT"), None),
        (pd.NA, None),
        (np.float64("nan"), None),
        ([math.nan, {"a": np.int8(1)}], [None, {"a": 1}]),
        (Decimal("1.50"), "1.50"),
        (Decimal("nan"), None),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ],
)
def test_numpy_and_pandas_types_become_plain(cell: Any, expected: Any) -> None:
    """Converted values equal the given ones and have Python's own types."""
    result = plain(cell)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    "cell", [b"x", object(), {1: "a"}, {"a": {None: 1}}, [math.inf], {1, 2}, 2**63, 1j]
)
def test_what_json_cannot_hold_has_a_reason(cell: Any) -> None:
    """Bytes, objects, keys that are no text, infinities and huge numbers are refused."""
    with pytest.raises(ValueError, match=r"^an? "):
        plain(cell)


# -- rows ---


def read(table: pd.DataFrame, labels: Any = None, **roles: Any) -> list[Row]:
    return read_rows(table, {"expectations": None, "tags": None, **roles}, labels)[0]


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


def test_empty_expectations_tags_and_labels_are_left_out(table: pd.DataFrame) -> None:
    """A cell without a value makes no expectation, no tag and no label."""
    rows = read(
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
            "q": ["a", None, b"x", "d", "e", {"n": math.inf}, {datetime.date(2024, 1, 2): 1}],
            "o": ["x", "y", "z", math.nan, " ", "w", {(1, 2): 1}],
            "tag": ["t", "t", "t", "t", "t" * 8001, "\ud800", "t"],
            "ana": ["good", "good", "good", "good", object(), "good", "good"],
            "why": ["", "", "", "", "", "\ud800", ""],
        },
        dtype=object,
    )
    with pytest.raises(TableError, match="6 of 7 rows") as caught:
        read(table, inputs="q", outputs="o", tags="tag", labels={"ana": ("ana", "why")})
    assert caught.value.rows == [
        (1, "no inputs (column 'q' is empty)"),
        (2, "column 'q' holds a value of type bytes"),
        (3, "no outputs (column 'o' is empty)"),
        (4, "no outputs (column 'o' is empty)"),
        (4, "tag 'tag' is longer than 8000 characters"),
        (4, "label of 'ana', column 'ana': the value is a value of type object"),
        (5, "column 'q' holds an infinite number"),
        (6, "column 'q' holds a dict with a key of type date"),
        (6, "column 'o' holds a dict with a key of type tuple"),
    ]


def test_many_bad_rows_are_counted() -> None:
    """The message shows the first rows and counts the rest; ``rows`` has all of them."""
    bad = [(row, "reason") for row in range(30)]
    with pytest.raises(TableError, match=r"30 of 40 rows(.|\n)*10 more") as caught:
        raise_bad_rows(bad, 40, "imported")
    assert caught.value.rows == bad
    raise_bad_rows([], 40, "imported")


def test_a_column_a_list_and_a_dict_say_the_same(table: pd.DataFrame) -> None:
    """Inputs are a dict by key however they are named; a single output is the cell itself."""
    for inputs in ("q", ["q"], {"q": "q"}):
        row = read(table, inputs=inputs, outputs="answer")[0]
        assert (row.inputs, row.outputs) == ({"q": "a"}, "x")
    row = read(table, inputs={"query": "q", "context": "context"}, outputs=["answer"])[1]
    assert (row.inputs, row.outputs) == ({"query": "b", "context": None}, {"answer": "y"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "Q"}, "inputs: .*did you mean 'q'"),
        ({"outputs": ["answer", "gone"]}, "no column 'gone'.* columns are: 'q', 'context'"),
        ({"labels": {"ana": ("ana", "reason")}}, "labels: the table has no column 'reason'"),
        ({"labels": {"ana": ("a", "b", "c")}}, "labels=.* cannot be read. Write 'who: column'"),
        ({"labels": {"ana": (None, "why")}}, "labels=.* cannot be read. Write 'who: column'"),
        ({"labels": "each who: r"}, "read_dataset.* reads one row a label"),
        ({"labels": {" ": "ana"}}, "non-empty"),
        ({"inputs": []}, "must be a column"),
        ({"inputs": {1: "q"}}, "with texts for keys"),
        ({"tags": {"mlflow.user": "id"}}, "does not take 'mlflow.user'"),
        ({"tags": {"a=b": "id"}}, "does not take 'a=b'"),
    ],
)
def test_wrong_columns_are_named(
    table: pd.DataFrame, arguments: dict[str, Any], message: str
) -> None:
    """A column or key that does not do is an error that names the argument."""
    with pytest.raises(ArgumentError, match=message):
        read(table, **{"inputs": "q", "outputs": "answer", **arguments})


def test_a_column_that_is_there_twice_is_named() -> None:
    with pytest.raises(ArgumentError, match="2 columns named 'a'"):
        require_columns(pd.DataFrame([[1, 2]], columns=["a", "a"]), "inputs", ["a"])


def test_what_is_nested_too_deeply_is_told() -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ValueError, match="more than 200 deep"):
        plain(deep)
    with pytest.raises(TableError, match=r"row 0: column 'q' holds lists or dicts"):
        read(pd.DataFrame({"q": [deep], "o": "x"}), inputs="q", outputs="o")
