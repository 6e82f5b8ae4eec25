"""Cells: what JSON can hold is kept, other types are converted or refused with the reason."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ArgumentError
from workbench.store.cells import plain, require_columns

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
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
        (np.array([1, 2]), [1, 2]),
        (np.array(["a", None], dtype=object), ["a", None]),
        ((1, "a"), [1, "a"]),
        (pd.Timestamp("2024-01-02 03:04"), "2024-01-02T03:04:00"),
        (np.datetime64("2024-01-02"), "2024-01-02T00:00:00"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.timedelta(hours=1), "P0DT1H0M0S"),
        (pd.NaT, None),
        (pd.NA, None),
        (math.nan, None),
        ([math.nan, {"a": np.int8(1)}], [None, {"a": 1}]),
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


def test_a_missing_column_names_those_that_exist() -> None:
    """The error lists the columns and the one that was probably meant."""
    table = pd.DataFrame({"Question": ["q"], "answer": ["a"]})
    with pytest.raises(ArgumentError, match=r"did you mean 'Question'\?.*'Question', 'answer'"):
        require_columns(table, "inputs", ["question"])
    with pytest.raises(ArgumentError, match="2 columns named 'a'"):
        require_columns(pd.DataFrame([[1, 2]], columns=["a", "a"]), "inputs", ["a"])
