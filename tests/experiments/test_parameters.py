"""What a notebook declares as parameters, and what may be given for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook

from workbench.errors import NotebookError
from workbench.experiments.parameters import (
    UNKNOWN,
    Parameter,
    check_parameters,
    notebook_parameters,
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
        Parameter("share", "0.4", 0.4, ""),
        Parameter("home", "str(1)", UNKNOWN, ""),
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
        (0, "many", "no number"),
        (0, "1e999", "no number"),
        (0.5, "nan", "no number"),
        (0.4, "True", "no number"),
        (True, "maybe", "neither True"),
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


def test_none_and_unknown_defaults_take_anything() -> None:
    check_parameters(known(a=None, b=3), {"a": "text", "b": None})
    check_parameters([Parameter("c", "f()", UNKNOWN, "")], {"c": ["x"]})


def test_no_number_is_infinite() -> None:
    with pytest.raises(NotebookError, match="no number"):
        check_parameters(known(seed=0), {"seed": float("inf")})


def test_words_that_float_would_read_are_text() -> None:
    """A column may be named so."""
    assert parse_parameters(known(groups=None), [("groups", "nan")]) == {"groups": "nan"}
