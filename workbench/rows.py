"""Rows of a table as traces to be: which column is what, and what cannot be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_tag_name

from workbench.errors import ArgumentError
from workbench.feedback import rating_problem
from workbench.scale import is_missing
from workbench.tables import (
    as_text,
    has_lone_surrogate,
    is_null,
    plain_or_reason,
    raise_bad_rows,
    require_columns,
)

ColumnSpec: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""A column, several, or {key: column}."""

LabelSpec: TypeAlias = Mapping[str, str | tuple[str, str | None]]
"""{annotator: column} or {annotator: (column, rationale column)}."""

MAX_TAG = 8000
"""Characters of a trace tag; MLflow cuts off what is longer."""


@dataclass(frozen=True)
class Row:
    """One row, in plain values."""

    inputs: dict[str, Any]
    outputs: Any
    expectations: dict[str, Any]
    tags: dict[str, str]
    labels: dict[str, tuple[Any, str | None]]
    """annotator -> (value, rationale)"""


def read_rows(
    table: pd.DataFrame,
    *,
    inputs: ColumnSpec,
    outputs: ColumnSpec,
    expectations: ColumnSpec | None = None,
    tags: ColumnSpec | None = None,
    labels: LabelSpec | None = None,
) -> list[Row]:
    """The rows of the table in plain values.

    Raises
    ------
    ArgumentError
        For columns that do not exist, and keys that MLflow does not take.
    TableError
        With all rows that cannot be imported, each with its reason.
    """
    keyed = {
        "inputs": _keyed("inputs", inputs),
        "outputs": _keyed("outputs", outputs),
        "expectations": _keyed("expectations", expectations),
        "tags": _keyed("tags", tags),
    }
    raters = _raters(labels)
    for argument, columns in keyed.items():
        require_columns(table, argument, columns.values())
    for pair in raters.values():
        require_columns(table, "labels", [column for column in pair if column is not None])
    for key in keyed["tags"]:
        _check_tag_key(key)

    used = {column for columns in keyed.values() for column in columns.values()}
    used |= {column for pair in raters.values() for column in pair if column is not None}
    cells = {column: table[column].tolist() for column in used}
    whole_outputs = not isinstance(outputs, (list, tuple, Mapping))
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    for number in range(len(table)):
        raw = {column: values[number] for column, values in cells.items()}
        row, problems = _read_row(raw, keyed, raters, whole_outputs)
        rows.append(row)
        bad += [(number, problem) for problem in problems]
    raise_bad_rows(bad, len(table), "imported")
    return rows


def _read_row(
    raw: dict[str, Any],
    keyed: dict[str, dict[str, str]],
    raters: dict[str, tuple[str, str | None]],
    whole_outputs: bool,
) -> tuple[Row, list[str]]:
    problems: list[str] = []

    def value(column: str) -> Any:
        result, reason = plain_or_reason(raw[column])
        if reason:
            problems.append(f"column {column!r} holds {reason}")
        return result

    given = {key: value(column) for key, column in keyed["inputs"].items()}
    answer: Any = {key: value(column) for key, column in keyed["outputs"].items()}
    for argument in ("inputs", "outputs"):
        if all(is_null(raw[column]) for column in keyed[argument].values()):
            columns = ", ".join(map(repr, keyed[argument].values()))
            problems.append(f"no {argument} (column {columns} is empty)")
    expected = {
        key: value(column)
        for key, column in keyed["expectations"].items()
        if not is_missing(raw[column])
    }
    marks: dict[str, str] = {}
    for key, column in keyed["tags"].items():
        if not is_missing(raw[column]):
            marks[key] = as_text(value(column))
            if len(marks[key]) > MAX_TAG:
                problems.append(f"tag {key!r} is longer than {MAX_TAG} characters")
            if has_lone_surrogate(marks[key]):
                problems.append(f"tag {key!r} holds half of a surrogate pair")
    ratings: dict[str, tuple[Any, str | None]] = {}
    for annotator, (column, because_column) in raters.items():
        if is_missing(raw[column]):
            continue
        because = raw[because_column] if because_column is not None else None
        problem = rating_problem(raw[column], because)
        if problem:
            problems.append(f"label of {annotator!r}: {problem}")
        text = None if is_missing(because) else str(because)
        ratings[annotator] = (plain_or_reason(raw[column])[0], text)
    if whole_outputs:
        answer = next(iter(answer.values()))
    return Row(given, answer, expected, marks, ratings), problems


def _keyed(argument: str, spec: ColumnSpec | None) -> dict[str, str]:
    """{key: column} of a column specification."""
    if spec is None:
        return {}
    if isinstance(spec, Mapping):
        keyed = dict(spec)
    elif isinstance(spec, (list, tuple)):
        keyed = {str(column): column for column in spec}
        if len(keyed) < len(spec):
            raise ArgumentError(f"{argument}={spec!r} names a column twice.")
    else:
        keyed = {str(spec): spec}  # type: ignore[dict-item]
    wrong = [key for key in keyed if not isinstance(key, str) or not key.strip()]
    if not keyed or wrong:
        raise ArgumentError(
            f"{argument}={spec!r} must be a column, a list of columns or a dict {{key: column}} "
            "with texts for keys."
        )
    return keyed


def _raters(labels: LabelSpec | None) -> dict[str, tuple[str, str | None]]:
    raters: dict[str, tuple[str, str | None]] = {}
    if labels is not None and not isinstance(labels, Mapping):
        raise ArgumentError(
            f"labels={labels!r} must be a dict: {{annotator: column}} or "
            "{annotator: (column, rationale column)}."
        )
    for annotator, columns in (labels or {}).items():
        if not isinstance(annotator, str) or not annotator.strip():
            raise ArgumentError(f"labels: the annotator {annotator!r} must be a non-empty text.")
        if not isinstance(columns, (tuple, list)):
            raters[annotator] = (columns, None)
        elif len(columns) == 2:
            raters[annotator] = (columns[0], columns[1])
        else:
            raise ArgumentError(
                f"labels[{annotator!r}]={columns!r} must be a column or a pair "
                "(column, rationale column)."
            )
    return raters


def _check_tag_key(key: str) -> None:
    try:
        _validate_tag_name(key)
    except MlflowException as error:
        raise ArgumentError(f"tags: MLflow does not take {key!r} as a key: {error}") from error
    if key.startswith("mlflow.") or len(key) > 250:
        raise ArgumentError(
            f"tags: the key {key!r} begins with 'mlflow.' or is longer than 250 characters. "
            "Rename it: tags={'key': 'column'}."
        )
