"""Figures of repeated runs: mean and interval over seeds, and nothing else mixed in."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from workbench.errors import ArgumentError
from workbench.metrics.repetitions import over_seeds, varying

SWEEP = pd.DataFrame(
    {
        "seed": [0, 1, 2, 0, 1, 0],
        "n_labels": [10, 10, 10, 20, 20, 30],
        "status": "complete",
        "after": [1.0, 2.0, 3.0, 0.5, math.nan, math.nan],
    }
)


def test_what_varies_is_told_by_the_parameters_of_a_table() -> None:
    """Those before the status; lists are values too."""
    assert varying(SWEEP) == ["n_labels"]
    assert varying(SWEEP, None) == ["seed", "n_labels"]
    lists = SWEEP.assign(n_labels=20)
    lists.insert(0, "columns", [["a"], ["b"]] * 3)
    assert varying(lists) == ["columns"]
    assert varying(SWEEP.drop(columns="status")) == []


def test_a_mean_has_students_interval() -> None:
    """Known by hand for 1, 2, 3; undefined for one value and for none, which are counted."""
    found = over_seeds(SWEEP, "after").set_index("n_labels")
    assert list(found.columns) == ["n", "missing", "mean", "min", "max", "low", "high"]
    assert list(found.loc[10]) == pytest.approx([3, 0, 2, 1, 3, -0.484, 4.484], abs=0.001)
    assert list(found.loc[20][:5]) == [1, 1, 0.5, 0.5, 0.5]
    assert list(found.loc[30][:2]) == [0, 1]
    assert found.loc[[20, 30], ["low", "high"]].isna().all(axis=None)
    assert math.isnan(found["mean"][30])


def test_all_parameters_but_the_seed_are_kept_apart() -> None:
    """One that varies beside those that are named is an error, since it is no repetition."""
    two = pd.concat([SWEEP.assign(model="a"), SWEEP.assign(model=None)])
    two = two[["seed", "n_labels", "model", "status", "after"]]
    assert len(over_seeds(two)) == 6
    with pytest.raises(ArgumentError, match="'model' varies"):
        over_seeds(two, by="n_labels")
    assert len(over_seeds(two.drop(columns="status"), by="n_labels")) == 3


def test_truth_values_and_objects_that_are_numbers_are_numbers() -> None:
    """True is 1; what failed is missing; a text of digits is no number."""
    for values in ([True, False, None], pd.array([True, False, None], "boolean"), [1, 0.0, None]):
        table = pd.DataFrame({"seed": [0, 1, 2], "passed": values}).astype({"passed": object})
        found = over_seeds(table, "passed", [])
        assert (found["mean"][0], found["n"][0], found["missing"][0]) == (0.5, 2, 1)
    with pytest.raises(ArgumentError, match="'passed' holds no numbers: '1'"):
        over_seeds(pd.DataFrame({"seed": [0], "passed": ["1"]}), "passed", [])


def test_lists_are_kept_apart_by_their_text() -> None:
    columns = [["a"], ["a"], ["a", "b"]]
    table = pd.DataFrame({"seed": [0, 1, 0], "columns": columns, "status": "", "after": [1, 3, 5]})
    found = over_seeds(table)
    assert list(found["columns"]) == ["['a', 'b']", "['a']"]
    assert list(found["mean"]) == [5, 2]
    assert table["columns"][0] == ["a"]
    with pytest.raises(ArgumentError, match="'columns' varies"):
        over_seeds(table, by=[])


def test_what_is_no_number_or_no_column_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="holds no numbers"):
        over_seeds(SWEEP, "status", "n_labels")
    with pytest.raises(ArgumentError, match="no column 'befor'"):
        over_seeds(SWEEP, "befor")
    with pytest.raises(ArgumentError, match="confidence"):
        over_seeds(SWEEP, confidence=95)
