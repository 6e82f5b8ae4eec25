"""What a notebook declares as parameters, what may be given for them, and the points of a grid."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook

from workbench.errors import ArgumentError, NotebookError
from workbench.experiments.parameters import (
    UNKNOWN,
    Parameter,
    check_parameters,
    expand,
    find_notebook,
    notebook_parameters,
    parse_grid,
    parse_parameters,
)

CELL = """\
# The model that judges.
# A URI of MLflow.
model = "offline:/rubric"
base_url = None  # its gateway
columns = ["a",
           "b"]  # two of them
query = "a = b # no comment"
share: float = 0.4
home = str(1)
n_labels: int  # of all
first, second = 1, 2
"""


def write(tmp_path: Path, source: str, tags: tuple[str, ...] = ("parameters",)) -> Path:
    cells = [new_code_cell("x = 1"), new_code_cell(source, metadata={"tags": list(tags)})]
    path = tmp_path / "n.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_parameters_have_defaults_and_comments(tmp_path: Path) -> None:
    found = notebook_parameters(write(tmp_path, CELL))
    assert found == [
        Parameter(
            "model", '"offline:/rubric"', "offline:/rubric",
            "The model that judges. A URI of MLflow.",
        ),
        Parameter("base_url", "None", None, "its gateway"),
        Parameter("columns", '["a",\n           "b"]', ["a", "b"], "two of them"),
        Parameter("query", '"a = b # no comment"', "a = b # no comment", ""),
        Parameter("share", "0.4", 0.4, "", "float"),
        Parameter("home", "str(1)", UNKNOWN, ""),
        Parameter("n_labels", "...", UNKNOWN, "of all", "int"),
    ]  # fmt: skip


def test_a_notebook_without_the_cell_takes_none(tmp_path: Path) -> None:
    assert notebook_parameters(write(tmp_path, CELL, tags=())) == []


def test_what_is_no_notebook_or_no_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match="no Python"):
        notebook_parameters(write(tmp_path, "a = ("))
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    with pytest.raises(NotebookError, match=r"broken\.ipynb cannot be read"):
        notebook_parameters(broken)


def known(**defaults: Any) -> list[Parameter]:
    return [Parameter(name, repr(value), value, "") for name, value in defaults.items()]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("007", 7), ("0.5", 0.5), ("1e-3", 1e-3), ("True", True),
        ("false", False), ("None", None), ("text", "text"), ("1e5x", "1e5x"), ("", ""),
        ("openai:/gpt", "openai:/gpt"),
    ],
)  # fmt: skip
def test_values_are_read_by_their_form(text: str, value: Any) -> None:
    parsed = parse_parameters(known(p=None), [("p", text)])["p"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["007", "1e5", "True", "0.5"])
def test_where_the_default_is_text_values_stay_text(text: str) -> None:
    assert parse_parameters(known(p="column"), [("p", text)]) == {"p": text}
    assert parse_parameters(known(p="column"), [("p", "None")]) == {"p": None}


def test_commas_separate_the_values_of_a_list() -> None:
    assert parse_parameters(known(p=["a"]), [("p", "a, b,3")]) == {"p": ["a", "b", 3]}
    assert parse_parameters(known(p=[1]), [("p", "2")]) == {"p": [2]}
    assert parse_parameters(known(p=[1]), [("p", "None")]) == {"p": None}


def test_the_last_of_several_values_counts() -> None:
    assert parse_parameters(known(p=1), [("p", "2"), ("p", "3")]) == {"p": 3}


def test_an_unknown_parameter_names_the_known_ones() -> None:
    with pytest.raises(NotebookError) as caught:
        parse_parameters(known(model="m", seed=0), [("modle", "x")])
    assert "Did you mean 'model'?" in str(caught.value)
    assert "model = 'm'" in str(caught.value)
    assert "seed = 0" in str(caught.value)
    with pytest.raises(NotebookError, match="takes: none"):
        parse_parameters([], [("a", "b")])


@pytest.mark.parametrize(
    ("default", "text", "said"),
    [
        (0, "many", "no whole number"),
        (0, "0.5", "no whole number"),
        (0, "1e999", "no whole number"),
        (0.5, "nan", "no number"),
        (0.4, "True", "no number"),
        (True, "maybe", "neither True"),
        ({"a": 1}, "a", "p='a' is no dict"),
    ],
)
def test_values_that_do_not_fit_the_default_are_refused(default: Any, text: str, said: str) -> None:
    with pytest.raises(NotebookError, match=said):
        parse_parameters(known(p=default), [("p", text)])


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_values_written_as_python_are_read_back(value: Any) -> None:
    assert parse_parameters(known(p=None), [("p", repr(value))]) == {"p": value}


@given(st.text())
def test_any_text_is_a_value_of_a_text_parameter(text: str) -> None:
    wanted = None if text == "None" else text
    assert parse_parameters(known(p=""), [("p", text)]) == {"p": wanted}


@pytest.mark.parametrize(
    ("annotation", "fits", "misfits"),
    [
        ("int | None", [5, 5.0, None], ["twenty", 0.5, True, [1]]),
        ("Optional[float]", [5, 0.5], ["0.5x", False]),
        ("'str | None'", ["x", ["x", "y"]], [5, {"x": 1}, [1]]),
        ("bool", [True], [1, "x"]),
        ("list[str] | None", [["x"], ("x",), 3], ["x", {"a": 1}]),
        ("dict[str, int | None]", [{"a": 1}], ["x", [1]]),
        ("int | str", [5, "x", [1]], []),
        ("Path", [5, "x"], []),
    ],
)
def test_an_annotation_says_what_fits_where_the_default_is_none(
    tmp_path: Path, annotation: str, fits: list[Any], misfits: list[Any]
) -> None:
    declared = notebook_parameters(write(tmp_path, f"p: {annotation} = None"))
    for value in fits:
        check_parameters(declared, {"p": value})
    for value in misfits:
        with pytest.raises(NotebookError, match=r"is (no|neither) .*; the default is None"):
            check_parameters(declared, {"p": value})


def test_an_annotation_says_how_a_text_is_read(tmp_path: Path) -> None:
    declared = notebook_parameters(write(tmp_path, "encoding: str = None\nn: int = None"))
    values = parse_parameters(declared, [("encoding", "437"), ("n", "437")])
    assert values == {"encoding": "437", "n": 437}


def test_a_number_is_no_text() -> None:
    """In Python; on a command line it is the text that was written."""
    with pytest.raises(NotebookError, match="name=5 is no text; the default is 'x'"):
        check_parameters(known(name="x"), {"name": 5})
    check_parameters(known(columns=["a"], name="x"), {"columns": ["b", "c"], "name": None})
    check_parameters(known(inputs="a, b"), {"inputs": ["a", "b"]})  # as `import_traces` takes them


def test_what_names_no_file_is_no_notebook() -> None:
    with pytest.raises(NotebookError, match=r"no notebook '\.'"):
        find_notebook(".")


def test_none_and_unknown_defaults_take_anything() -> None:
    check_parameters(known(a=None, b=3), {"a": "text", "b": None})
    check_parameters([Parameter("c", "f()", UNKNOWN, "")], {"c": ["x"]})


def test_a_whole_number_is_given_as_one(tmp_path: Path) -> None:
    """However it was written: a notebook may pass it on to what takes no other."""
    given = check_parameters(known(n=3, x=0.5, any=None), {"n": 20.0, "x": 2, "any": 4.0})
    assert [*map(repr, given.values())] == ["20", "2", "4.0"]
    declared = notebook_parameters(write(tmp_path, "n: int = None"))
    assert [*map(repr, parse_parameters(declared, [("n", "1e3")]).values())] == ["1000"]
    assert check_parameters(declared, {"n": None}) == {"n": None}


def test_no_number_is_infinite() -> None:
    with pytest.raises(NotebookError, match="no whole number"):
        check_parameters(known(seed=0), {"seed": float("inf")})


def test_words_that_float_would_read_are_text() -> None:
    """A column may be named so."""
    assert parse_parameters(known(groups=None), [("groups", "nan")]) == {"groups": "nan"}


# -- grids ----------------------------------------------------------------------------------

KNOWN = [
    Parameter("seed", "0", 0, ""),
    Parameter("n_labels", "None", None, ""),
    Parameter("columns", '"a, b"', "a, b", ""),
    Parameter("quick", "False", False, ""),
]

floats = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | whole | st.text() | floats
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


@given(st.lists(st.tuples(whole, st.none() | st.text()), min_size=1, max_size=5))
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


@pytest.mark.parametrize(
    "grid",
    [
        [1, 2], "seed", None, 5, pd.Series([1]), [{"seed": 1}, 2],
        pd.DataFrame([[1, 2]], columns=["seed", "seed"]),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_told(grid: Any) -> None:
    with pytest.raises(ArgumentError, match="a list of dicts, or a table"):
        expand(grid)


@pytest.mark.parametrize("value", [object(), float("inf"), float("nan"), [{1, 2}]])
def test_what_no_notebook_can_be_given_is_named(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"grid: seed="):
        expand([{"seed": value}])


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


def test_a_range_that_ends_before_it_begins_is_named() -> None:
    with pytest.raises(NotebookError, match=r"-p 'seed=0,5\.\.1': a range begins at its lower end"):
        parse_grid(KNOWN, ["seed=0,5..1"])


@pytest.mark.parametrize("text", ["seed", "seed=x", "other=1", "quick=0..1", "other=0..1"])
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(NotebookError):
        parse_grid(KNOWN, [text])
