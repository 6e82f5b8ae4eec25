"""Grids become points: every combination once, checked before anything runs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ArgumentError, NotebookError
from workbench.experiments.grid import check_points, expand, parse_grid
from workbench.experiments.parameters import Parameter

KNOWN = [
    Parameter("seed", "0", 0, ""),
    Parameter("n_labels", "None", None, ""),
    Parameter("columns", '"a, b"', "a, b", ""),
    Parameter("quick", "False", False, ""),
]

floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | st.text() | floats
names = st.text("abcdef_", min_size=1, max_size=4)


@given(st.dictionaries(names, st.lists(scalars, min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_grid_is_every_combination_once_in_its_order(grid: dict[str, list[Any]]) -> None:
    """Equal points stand once; a list of the points is the same grid."""
    points = expand(grid)
    every = [dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())]
    texts = list(dict.fromkeys(json.dumps(point, sort_keys=True) for point in every))
    assert [json.dumps(point, sort_keys=True) for point in points] == texts
    assert expand(every) == points
    assert expand(points) == points


@given(st.lists(st.tuples(st.integers(), st.none() | st.text()), min_size=1, max_size=5))
def test_an_empty_cell_of_a_table_leaves_the_default(rows: list[tuple[int, str | None]]) -> None:
    """Whole numbers stay whole beside it."""
    table = pd.DataFrame(rows, columns=["seed", "model"])
    expected = [{k: v for k, v in (("seed", s), ("model", m)) if v is not None} for s, m in rows]
    assert expand(table) == expand(expected)
    assert all(type(point["seed"]) is int for point in expand(table))


def test_whole_numbers_beside_an_empty_cell_stay_whole() -> None:
    assert expand(pd.DataFrame({"seed": [0, 1], "n_labels": [20, None]})) == [
        {"seed": 0, "n_labels": 20},
        {"seed": 1},
    ]


def test_a_single_value_stands_by_itself() -> None:
    """A text is no list of its letters, and numbers of numpy are numbers."""
    points = expand({"model": "m:/x", "seed": np.arange(2), "n_labels": None})
    assert points == [{"model": "m:/x", "seed": s, "n_labels": None} for s in (0, 1)]
    assert type(points[0]["seed"]) is int


@pytest.mark.parametrize("grid", [{"seed": []}, [], pd.DataFrame({"seed": []})])
def test_no_point_is_an_error(grid: Any) -> None:
    with pytest.raises(ArgumentError, match="no point"):
        expand(grid)


@pytest.mark.parametrize("value", [object(), float("nan"), [{1, 2}]])
def test_what_no_notebook_can_be_given_is_named(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"grid: seed="):
        expand([{"seed": value}])


def test_points_are_checked_by_name_and_type() -> None:
    """The message names the point, the name that was meant, and the default."""
    check_points(KNOWN, [{"seed": 1, "n_labels": 20}, {"seed": 2.5, "quick": True}])
    with pytest.raises(NotebookError, match=r"Point 2 .*'n_label' is not known.*'n_labels'"):
        check_points(KNOWN, [{"seed": 1}, {"n_label": 10}])
    with pytest.raises(NotebookError, match=r"seed='one' is no number"):
        check_points(KNOWN, [{"seed": "one"}])


def test_a_grid_is_read_from_a_command_line() -> None:
    """Ranges have both ends; quotes keep commas; a name may be given twice."""
    given_texts = ["seed=0..2", "n_labels=10,20,None", 'columns="a, b",7', "seed=9", "quick=true"]
    assert parse_grid(KNOWN, given_texts) == {
        "seed": [0, 1, 2, 9],
        "n_labels": [10, 20, None],
        "columns": ["a, b", "7"],
        "quick": [True],
    }
    assert parse_grid(KNOWN, ["columns=1..3"]) == {"columns": ["1..3"]}
    assert expand(parse_grid(KNOWN, [])) == [{}]


@pytest.mark.parametrize("text", ["seed", "seed=x", "other=1", "quick=0..1", "other=0..1"])
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(NotebookError):
        parse_grid(KNOWN, [text])
