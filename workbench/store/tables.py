"""Tables: files read by their extension without loss, and their rows in plain values."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from mlflow.exceptions import MlflowException

from workbench import compat
from workbench.errors import ArgumentError, TableError
from workbench.scale import is_missing
from workbench.store.cells import (
    as_text,
    has_lone_surrogate,
    is_null,
    plain_or_reason,
    rating_problem,
    read_rating,
    require_columns,
)

ColumnSpec: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""A column, several, or {key: column}."""

LabelSpec: TypeAlias = Mapping[str, str | tuple[str, str | None]]
"""{annotator: column} or {annotator: (column, rationale column)}."""

Raters: TypeAlias = dict[str, tuple[str, str | None]]
"""{annotator: (column of ratings, column of rationales or None)}."""

MAX_TAG = 8000
"""Characters of a trace tag; MLflow cuts off what is longer."""


def read_table(table: pd.DataFrame | str | os.PathLike[str]) -> pd.DataFrame:
    """Return the table itself, or the file read by its extension.

    ``.csv``: every cell is text as it is, so an answer ``NA`` or ``007`` is kept.
    ``.jsonl`` and ``.ndjson``: one JSON object a line, values keep their types. ``.parquet``:
    needs ``pip install 'judge-workbench[parquet]'``. Text is UTF-8, with or without a byte
    order mark. Rows keep their order.

    Raises
    ------
    ArgumentError
        When it is neither a DataFrame nor the path of a file with a known extension.
    TableError
        When the file is missing, damaged or empty.
    """
    if isinstance(table, pd.DataFrame):
        return table
    if not isinstance(table, (str, os.PathLike)):
        raise ArgumentError(
            f"table is a {type(table).__name__}. Give a pandas DataFrame "
            "(pandas.DataFrame(rows) makes one of a list of dicts) or the path of a file."
        )
    path = Path(table).expanduser()
    readers = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ArgumentError(
            f"table={str(table)!r} has no known extension. Known are {', '.join(readers)}; read "
            "any other file with pandas and give the DataFrame."
        )
    if not path.is_file():
        raise TableError(
            f"There is no file {str(path.absolute())!r}. A relative path starts in the current "
            "folder; `papermill --cwd notebooks` makes that the folder of the notebooks."
        )
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise TableError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start}). Save it as UTF-8, or read it "
            "with pandas.read_csv(path, encoding=..., dtype=str, keep_default_na=False) and give "
            "the DataFrame."
        ) from error


def _read_csv(path: Path) -> pd.DataFrame:
    # pandas would rename columns, take the first for an index where rows are wider than the
    # header, and fill up those that are shorter.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise TableError(f"{str(path)!r} is no well-formed CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    if not lines:
        raise TableError(f"{str(path)!r} is empty.")
    header = lines[0][1]
    bad = [
        (row, f"line {line} has {len(cells)} cells, the header has {len(header)}")
        for row, (line, cells) in enumerate(lines[1:])
        if len(cells) != len(header)
    ]
    if bad:
        raise TableError(f"{str(path)!r} is no well-formed CSV: {bad[0][1]}.", bad)
    return pd.DataFrame([cells for _, cells in lines[1:]], columns=header, dtype=object)


def _read_jsonl(path: Path) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TableError(f"{str(path)!r}, line {number}: {error}.") from error
            if not isinstance(record, dict):
                raise TableError(
                    f"{str(path)!r}, line {number}: a JSON object was expected, this is a "
                    f"{type(record).__name__}."
                )
            records.append(record)
    if not records:
        raise TableError(f"{str(path)!r} is empty.")
    # Without dtype=object a whole number in a column with gaps would become a float.
    return pd.DataFrame(records, dtype=object)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise TableError(
            "Reading Parquet needs pyarrow: pip install 'judge-workbench[parquet]'."
        ) from error
    try:
        return pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
    except (arrow.ArrowInvalid, OSError) as error:
        raise TableError(f"{str(path)!r} is no readable Parquet file: {error}") from error


def raise_bad_rows(bad: list[tuple[int, str]], total: int, what: str) -> None:
    """Raise a `TableError` that lists the rows, if there are any."""
    if not bad:
        return
    rows = len({row for row, _ in bad})
    lines = [f"  row {row}: {reason}" for row, reason in bad[:20]]
    if len(bad) > 20:
        lines.append(f"  ... and {len(bad) - 20} more, all in the error's .rows")
    raise TableError(
        f"{rows} of {total} rows cannot be {what}, and nothing was written. Mend or drop them "
        "(rows are counted from 0):\n" + "\n".join(lines),
        bad,
    )


# -- rows of traces -------------------------------------------------------------------------


def columns_by_key(argument: str, spec: ColumnSpec | None) -> dict[str, str]:
    """Return {key: column} of a column, a list of columns or a dict."""
    if spec is None:
        return {}
    if isinstance(spec, Mapping):
        keyed = dict(spec)
    else:
        columns: list[Any] = list(spec) if isinstance(spec, (list, tuple)) else [spec]
        keyed = {str(column): column for column in columns}
        if len(keyed) < len(columns):
            raise ArgumentError(f"{argument}={spec!r} names a column twice.")
    if not keyed or any(not isinstance(key, str) or not key.strip() for key in keyed):
        raise ArgumentError(
            f"{argument}={spec!r} must be a column, a list of columns or a dict {{key: column}} "
            "with texts for keys."
        )
    return keyed


def columns_by_rater(argument: str, spec: Mapping[str, Any] | None) -> Raters:
    """Return who rated in which columns."""
    if spec is not None and not isinstance(spec, Mapping):
        raise ArgumentError(
            f"{argument}={spec!r} must be a dict: {{annotator: column}} or "
            "{annotator: (column, rationale column)}."
        )
    raters: Raters = {}
    for who, given in (spec or {}).items():
        if not isinstance(who, str) or not who.strip():
            raise ArgumentError(f"{argument}: the annotator {who!r} must be a non-empty text.")
        columns = list(given) if isinstance(given, (tuple, list)) else [given]
        if not 1 <= len(columns) <= 2:
            raise ArgumentError(
                f"{argument}[{who!r}]={given!r} must be a column or a pair "
                "(column, rationale column)."
            )
        raters[who] = (columns[0], columns[1] if len(columns) == 2 else None)
    return raters


@dataclass(frozen=True)
class Row:
    """One row of a table of traces, in plain values."""

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
    """Return the rows of the table in plain values, or raise `TableError` with all bad ones."""
    columns = {
        "inputs": columns_by_key("inputs", inputs),
        "outputs": columns_by_key("outputs", outputs),
        "expectations": columns_by_key("expectations", expectations),
        "tags": columns_by_key("tags", tags),
    }
    raters = columns_by_rater("labels", labels)
    rated = [column for pair in raters.values() for column in pair if column is not None]
    for argument, by_key in columns.items():
        require_columns(table, argument, by_key.values())
    require_columns(table, "labels", rated)
    for key in columns["tags"]:
        _check_tag_key(key)

    used = {column for by_key in columns.values() for column in by_key.values()} | set(rated)
    cells = {column: table[column].tolist() for column in used}
    single_output = not isinstance(outputs, (list, tuple, Mapping))
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    for number in range(len(table)):
        raw = {column: values[number] for column, values in cells.items()}
        row, problems = _read_row(raw, columns, raters, single_output)
        rows.append(row)
        bad += [(number, problem) for problem in problems]
    raise_bad_rows(bad, len(table), "imported")
    return rows


def _read_row(
    raw: dict[str, Any], columns: dict[str, dict[str, str]], raters: Raters, single_output: bool
) -> tuple[Row, list[str]]:
    """Return the row and what is wrong with it."""
    problems: list[str] = []

    def value(column: str) -> Any:
        result, reason = plain_or_reason(raw[column])
        if reason:
            problems.append(f"column {column!r} holds {reason}")
        return result

    given = {key: value(column) for key, column in columns["inputs"].items()}
    answer: Any = {key: value(column) for key, column in columns["outputs"].items()}
    for argument in ("inputs", "outputs"):
        if all(is_null(raw[column]) for column in columns[argument].values()):
            names = ", ".join(map(repr, columns[argument].values()))
            problems.append(f"no {argument} (column {names} is empty)")
    filled = {
        argument: {k: value(c) for k, c in columns[argument].items() if not is_missing(raw[c])}
        for argument in ("expectations", "tags")
    }
    tags = {key: as_text(tag) for key, tag in filled["tags"].items()}
    for key, text in tags.items():
        if len(text) > MAX_TAG:
            problems.append(f"tag {key!r} is longer than {MAX_TAG} characters")
        if has_lone_surrogate(text):
            problems.append(f"tag {key!r} holds half of a surrogate pair")
    labels: dict[str, tuple[Any, str | None]] = {}
    for annotator, (column, rationale) in raters.items():
        if is_missing(raw[column]):
            continue
        because = raw[rationale] if rationale is not None else None
        if problem := rating_problem(raw[column], because):
            problems.append(f"label of {annotator!r}: {problem}")
        else:
            labels[annotator] = read_rating(raw[column], because)
    if single_output:
        answer = next(iter(answer.values()))
    return Row(given, answer, filled["expectations"], tags, labels), problems


def _check_tag_key(key: str) -> None:
    try:
        compat.check_tag_key(key)
    except MlflowException as error:
        raise ArgumentError(f"tags: MLflow does not take {key!r} as a key: {error}") from error
    if key.startswith("mlflow.") or len(key) > 250:
        raise ArgumentError(
            f"tags: the key {key!r} begins with 'mlflow.' or is longer than 250 characters. "
            "Rename it: tags={'key': 'column'}."
        )
