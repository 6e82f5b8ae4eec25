"""Tables: read by file extension, their columns checked, their cells made plain.

A plain cell is what JSON can hold and MLflow gives back unchanged: None, bool, int, float,
str, and lists and dicts of these.
"""

from __future__ import annotations

import csv
import datetime
import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_tag_name

from workbench.errors import ArgumentError, ScaleError, TableError
from workbench.scale import Scale, is_missing


def rating_problem(raw: Any, rationale: Any, scale: Scale | None = None) -> str | None:
    """Why a rating cannot be stored; None where it can."""
    value, reason = plain_or_reason(raw)
    if reason:
        return f"the value is {reason}"
    for what, text in (("value", value), ("rationale", rationale)):
        if isinstance(text, str) and has_lone_surrogate(text):
            return f"the {what} holds half of a surrogate pair, which MLflow cannot store here"
    if scale is not None:
        try:
            scale.normalise(value)
        except ScaleError as error:
            return str(error)
    return None


_INT64 = 2**63


def read_table(table: pd.DataFrame | str | os.PathLike[str]) -> pd.DataFrame:
    """The table itself, or the file read by its extension.

    ``.csv``: every cell is text just as it stands, so an answer ``NA`` or ``007`` is kept.
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
        raise TableError(f"There is no file {str(path.absolute())!r}.")
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


def require_columns(table: pd.DataFrame, argument: str, names: Iterable[object]) -> None:
    """Raise `ArgumentError` unless the table has each of the columns once.

    The message names the columns that exist and those whose names are close.
    """
    existing = [str(column) for column in table.columns]
    for name in names:
        found = sum(1 for column in table.columns if column == name)
        if found == 1:
            continue
        if found:
            raise ArgumentError(f"{argument}: the table has {found} columns named {name!r}.")
        near = difflib.get_close_matches(str(name).lower(), [c.lower() for c in existing], n=1)
        close = next((c for c in existing if near and c.lower() == near[0]), None)
        raise ArgumentError(
            f"{argument}: the table has no column {name!r}"
            + (f" - did you mean {close!r}?" if close else ".")
            + f" Its columns are: {', '.join(map(repr, existing)) or 'none'}."
        )


def is_null(cell: object) -> bool:
    """Whether a cell holds no value: None, nan, NaT or pandas.NA. Empty text is a value."""
    return (
        cell is None
        or cell is pd.NA
        or cell is pd.NaT
        or (
            isinstance(cell, (float, np.floating, np.datetime64, np.timedelta64))
            and bool(pd.isna(cell))
        )
    )


def plain(cell: Any) -> Any:
    """The cell as a plain value: numpy and pandas types converted, nan as None, dates as ISO text.

    Raises
    ------
    ValueError
        For what JSON cannot hold; the message is the reason, without the value.
    """
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    elif isinstance(cell, np.generic) and not isinstance(cell, (np.datetime64, np.timedelta64)):
        cell = cell.item()
    if is_null(cell):
        return None
    if isinstance(cell, bool):
        return cell
    if isinstance(cell, str):
        return str.__str__(cell)
    if isinstance(cell, int):
        if not -_INT64 <= cell < _INT64:
            raise ValueError("a whole number beyond 64 bits; give it as text")
        return int(cell)
    if isinstance(cell, float):
        if math.isinf(cell):
            raise ValueError("an infinite number")
        return float(cell)
    if isinstance(cell, np.datetime64):
        return pd.Timestamp(cell).isoformat()
    if isinstance(cell, (np.timedelta64, datetime.timedelta)):
        return pd.Timedelta(cell).isoformat()
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    if isinstance(cell, (list, tuple)):
        return [plain(item) for item in cell]
    if isinstance(cell, dict):
        wrong = [type(key).__name__ for key in cell if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"a dict with a key of type {wrong[0]}")
        return {str.__str__(key): plain(value) for key, value in cell.items()}
    raise ValueError(f"a value of type {type(cell).__name__}")


def plain_or_reason(cell: Any) -> tuple[Any, str | None]:
    """The plain value and None, or None and the reason why there is none."""
    try:
        return plain(cell), None
    except ValueError as error:
        return None, str(error)
    except RecursionError:
        return None, "nested too deeply"


def has_lone_surrogate(text: str) -> bool:
    """Whether the text holds half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


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


def as_text(value: Any) -> str:
    """A plain value as text: text as it stands, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
