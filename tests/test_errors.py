"""One tree of errors, whose messages say what to do next."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import errors
from workbench.errors import ArgumentError, TableError, WorkbenchError, check_whole, one_of

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
]


def test_all_errors_are_of_one_tree() -> None:
    assert all(issubclass(kind, WorkbenchError) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_error_says_what_it_is_and_keeps_its_message(
    kind: type[WorkbenchError],
) -> None:
    assert kind.__doc__
    assert str(kind("what to do next")) == "what to do next"


def test_a_wrong_argument_is_a_value_error_too() -> None:
    assert issubclass(ArgumentError, ValueError)


def test_a_table_error_holds_rows_and_reasons() -> None:
    assert TableError("2 rows", [(0, "empty"), (7, "no text")]).rows == [
        (0, "empty"),
        (7, "no text"),
    ]
    assert TableError("no rows").rows == []


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "3", None, True, float("nan")])
def test_a_whole_number_is_checked_by_name(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"jobs=.* must be a whole number of 1 or more"):
        check_whole("jobs", value)
    assert type(check_whole("jobs", np.int64(1))) is int
    assert check_whole("sample", 0, least=0) == 0
    assert check_whole("seed", -7, least=None) == -7
    with pytest.raises(ArgumentError, match=r"seed=None must be a whole number\."):
        check_whole("seed", None, least=None)


def test_a_choice_is_checked_by_name() -> None:
    one_of("ties", "drop", ["drop", "latest"])
    with pytest.raises(ArgumentError) as caught:
        one_of("ties", "keep", iter(["drop", "latest"]))
    assert str(caught.value) == "ties='keep' is not known. Use one of: 'drop', 'latest'."
