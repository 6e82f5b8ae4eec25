"""Columns: which is what, given as values or as text, and what they are called."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from workbench.errors import ArgumentError
from workbench.store.columns import parse_names, parse_raters, require_columns
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


def test_a_missing_column_names_those_that_exist() -> None:
    """The error lists the columns and the one that was probably meant."""
    table = pd.DataFrame({"Question": ["q"], "answer": ["a"]})
    with pytest.raises(ArgumentError, match=r"did you mean 'Question'\?.*'Question', 'answer'"):
        require_columns(table, "inputs", ["question"])
    with pytest.raises(ArgumentError, match="2 columns named 'a'"):
        require_columns(pd.DataFrame([[1, 2]], columns=["a", "a"]), "inputs", ["a"])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, []),
        ("", []),
        ("  ", []),
        (" a , b c ", ["a", "b c"]),
        (["a, b", "c"], ["a, b", "c"]),
        ('["a, b", "c"]', ["a, b", "c"]),
        ("[odd] name", ["[odd] name"]),
        (7, ["7"]),
    ],
)
def test_names_are_read_from_text_lists_and_json(given: Any, names: list[str]) -> None:
    assert parse_names("inputs", given) == names


@pytest.mark.parametrize(
    ("given", "raters"),
    [
        (None, {}),
        ("ana", {"ana": ("ana", None)}),
        ("ana + why", {"ana": ("ana", "why")}),
        ("Ana B.: rating + why, ben: r2", {"Ana B.": ("rating", "why"), "ben": ("r2", None)}),
        ({"ana": "a: b", "ben": ["c, d", "e+f"]}, {"ana": ("a: b", None), "ben": ("c, d", "e+f")}),
        ('{"ana": ["a: b", "c"]}', {"ana": ("a: b", "c")}),
    ],
)
def test_raters_are_read_from_text_dicts_and_json(given: Any, raters: dict[str, Any]) -> None:
    assert parse_raters("annotators", given) == raters


@pytest.mark.parametrize(
    "given",
    ["ana:", ": rating", "ana: rating +", "ana, ana: other", "ana: a + b + c", "{broken", ","],
)
def test_raters_that_cannot_be_read_are_named(given: str) -> None:
    with pytest.raises(ArgumentError, match=r"^annotators"):
        parse_raters("annotators", given)
