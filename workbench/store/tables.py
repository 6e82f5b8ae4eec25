"""Tables: their columns, and cells as values that MLflow can store.

A plain value is what JSON can hold and MLflow gives back unchanged: None, bool, int, float, str,
and lists and dicts of these.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, TableError
from workbench.formatting import check_text, counted, storable, unstorable
from workbench.vocabulary import check_people, fold, is_missing, no_ratings, scalar

ColumnSpec: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""A column, several, or {key: column}."""

LabelSpec: TypeAlias = str | Mapping[str, str | Sequence[str | None]] | None
"""{annotator: column} or {annotator: (column, rationale column)}; or text, see `read_dataset`."""

Names: TypeAlias = str | Sequence[str] | None
"""Names as text with commas between them, JSON of a list, or a list."""

Raters: TypeAlias = dict[str, tuple[str, str | None]]
"""{annotator: (column of ratings, column of rationales or None)}."""

_MOST_LEVELS = 200  # of lists and dicts in a cell: Python's own JSON ends at a thousand
_SURROGATE = re.compile("[\ud800-\udfff]")


def require_columns(table: pd.DataFrame, argument: str, names: Iterable[object]) -> None:
    """Raise `ArgumentError` unless the table has each of the columns once, naming likely ones."""
    columns: list[object] = list(table.columns)
    for name in names:
        found = columns.count(name)
        if found > 1:
            raise ArgumentError(f"{argument}: the table has {found} columns named {name!r}.")
        if not found:
            lowered = {str(column).lower(): str(column) for column in columns}
            near = difflib.get_close_matches(str(name).lower(), lowered, n=1)
            meant = f" - did you mean {lowered[near[0]]!r}?" if near else "."
            raise ArgumentError(
                f"{argument}: the table has no column {name!r}{meant} Its columns are: "
                f"{', '.join(repr(str(c)) for c in columns) or 'none'}."
            )


def columns_by_key(argument: str, spec: ColumnSpec | None) -> dict[str, str]:
    """Return {key: column} of a column, a list of columns or a dict."""
    if spec is None and argument not in ("inputs", "outputs"):
        return {}
    columns: Sequence[Any] = spec if isinstance(spec, (list, tuple)) else [spec]
    keyed = dict(spec) if isinstance(spec, Mapping) else {str(column): column for column in columns}
    unnamed = [key for key in keyed if not isinstance(key, str) or not key.strip()]
    if spec is None or not keyed or unnamed:
        raise ArgumentError(
            f"{argument}={spec!r} must be a column, a list of columns or a dict {{key: column}} "
            "with texts for keys."
        )
    return {key: str(column) for key, column in keyed.items()}  # as `read_table` names them


def columns_by_rater(argument: str, spec: LabelSpec) -> Raters:
    """Return who rated in which columns, from text, from a dict, or from JSON of one."""
    named = parts(argument, spec)
    pairs: list[tuple[str, Any]] = list(named.items()) if isinstance(named, Mapping) else []
    for part in [] if isinstance(named, Mapping) else named:
        who, colon, text = str(part).rpartition(":")
        columns = [name.strip() for name in text.split("+")]
        pairs.append((who.strip() if colon else columns[0], columns))
    raters: Raters = {}
    for who, given in pairs:
        several = given if isinstance(given, (tuple, list)) else [given]
        columns = [str(column) for column in several if column is not None]
        if len(columns) not in (1, 2) or not all(columns) or several[0] is None:
            raise ArgumentError(
                f"{argument}={spec!r} cannot be read. Write 'who: column' or 'who: column + "
                "rationale_column' with commas between the annotators, or a dict {who: column} or "
                "{who: (column, rationale_column)}."
            )
        check_text(f"{argument}: the annotator", who)
        raters[who] = columns[0], columns[1] if len(columns) > 1 else None
    check_people(argument, [who for who, _ in pairs])
    return raters


def parts(parameter: str, given: Any) -> Mapping[str, Any] | Sequence[Any]:
    """Return a list or dict, be it JSON of one, as it is, and other text split at its commas."""
    if isinstance(given, str):
        text = given.strip()
        if text.startswith("{") or (text.startswith("[") and text.endswith("]")):
            try:
                given = json.loads(text)
            except ValueError as error:
                raise ArgumentError(
                    f"{parameter}={given!r} is no JSON list or object: {error}."
                ) from None
        else:
            given = [part.strip() for part in text.split(",")] if text else None
    given = given.tolist() if hasattr(given, "tolist") else given  # of numpy and pandas
    if isinstance(given, (Mapping, Sequence)):
        return given
    if given is None or isinstance(given, (int, float)):  # the command line reads 1 as a number
        return [] if given is None else [str(given)]
    raise ArgumentError(
        f"{parameter}={given!r} cannot be read. Give text with commas between, a list or a dict."
    )


def translated(
    table: pd.DataFrame, rated: Iterable[str], values: Names | Mapping[str, Any]
) -> tuple[pd.DataFrame, list[Any]]:
    """Return the table with its ratings as ``values`` translates them, and the rating values."""
    given = parts("values", values)
    if any(map(is_missing, given)):
        raise ArgumentError(f"values={values!r} names an empty one, which is no rating.")
    if not isinstance(given, Mapping):
        return table, list(given)
    words = {fold(word): value for word, value in given.items()}
    for column in table.columns.intersection(list(rated)):
        cells = [
            cell if is_missing(cell) else words.get(fold(cell), cell) for cell in table[column]
        ]
        table = table.assign(**{column: pd.Series(cells, table.index, dtype=object)})
    return table, list(dict.fromkeys(given.values()))


def rater_columns(raters: Raters) -> list[str]:
    """Return all columns with ratings or rationales."""
    return [column for pair in raters.values() for column in pair if column is not None]


def empty_rows(table: pd.DataFrame, columns: Iterable[str]) -> list[bool]:
    """Return for each row whether all of the columns are missing or blank."""
    cells = table[list(dict.fromkeys(columns))].itertuples(index=False, name=None)
    return [all(is_missing(cell) for cell in row) for row in cells]


@dataclass(frozen=True)
class Row:
    """One row of a table of traces, in plain values; labels are {annotator: (value, rationale)}."""

    number: int  # see `row_numbers`
    inputs: dict[str, Any]
    outputs: Any
    expectations: dict[str, Any]
    tags: dict[str, str]
    labels: dict[str, tuple[Any, str | None]]


def read_rows(
    table: pd.DataFrame,
    roles: Mapping[str, ColumnSpec | None],
    labels: LabelSpec = None,
    values: Names | Mapping[str, Any] = None,
) -> tuple[list[Row], list[str]]:
    """Return the rows in plain values, and what was left out; bad ones are a `TableError`.

    ``roles`` has the columns of inputs, outputs, expectations and tags.
    """
    sides = {argument: columns_by_key(argument, spec) for argument, spec in roles.items()}
    raters = columns_by_rater("labels", labels)
    if any(who.startswith("each ") for who in raters):
        raise ArgumentError(
            f"labels={labels!r}: data = workbench.read_dataset(table, ..., annotators={labels!r}) "
            "reads one row a label; give data.table, and labels=data.labels."
        )
    named = {argument: list(by_key.values()) for argument, by_key in sides.items()}
    named["labels"] = rater_columns(raters)
    for argument, columns in named.items():
        require_columns(table, argument, columns)
    check_keys(sides["tags"])
    used = list(dict.fromkeys(column for columns in named.values() for column in columns))
    texts = {*named["tags"], *named["labels"]}
    rated = list(dict.fromkeys(column for column, _ in raters.values()))
    table, names = translated(table, rated, values)
    unrated = no_ratings({fold(cell) for column in rated for cell in table[column]})
    unrated -= set(map(fold, names))
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    empty: list[int] = []
    words, replaced, alone = Counter[str](), 0, 0
    for number, cells in zip(row_numbers(table), table[used].itertuples(index=False), strict=True):
        if all(is_missing(cell) for cell in cells):
            empty.append(number)
            continue
        replaced += sum(map(_unstorable_in, cells, [column in texts for column in used]))
        raw = dict(zip(used, cells, strict=True))
        without = [column for column in rated if fold(raw[column]) in unrated]
        words.update(str(raw[column]) for column in without if not is_missing(raw[column]))
        given = {who: pair for who, pair in raters.items() if pair[0] not in without}
        row, problems = read_row(number, raw, sides, given)
        reasons = [why for who, (_, why) in raters.items() if why and who not in row.labels]
        alone += sum(not is_missing(raw[why]) for why in reasons)
        rows.append(row)
        bad += [(number, problem) for problem in problems]
    raise_bad_rows(bad, len(table), "imported")
    if not rows:
        raise TableError("The table has no rows, so there is nothing to import.")
    if not isinstance(roles["outputs"], (list, tuple, Mapping)):
        rows = [replace(row, outputs=next(iter(row.outputs.values()))) for row in rows]
    hints = [name_hint(table, who, column) for who, (column, _) in raters.items()]
    said = [" ".join(hint) for hint in hints if hint]
    return rows, said + _left_out(empty, words, alone, replaced)


def _left_out(empty: list[int], words: Counter[str], alone: int, replaced: int) -> list[str]:
    """What is said of rows, cells, rationales and characters that are not imported."""
    listed = ", ".join(f"{word!r} {n}" for word, n in words.most_common(8))
    keep = " (pass values=..., the ratings that there are, if it is one)"
    notes = {
        f"{counted(len(empty), 'empty row')} left out: {', '.join(map(str, empty[:20]))}": empty,
        f"{counted(words.total(), 'cell')} without a rating: {listed}{keep}": words,
        f"{counted(alone, 'rationale')} without a rating left out": alone,
        f"{counted(replaced, 'character')} that cannot be stored replaced by U+FFFD": replaced,
    }
    return [note for note, found in notes.items() if found]


def row_numbers(table: pd.DataFrame) -> list[int]:
    """Return the number of each row: that of the index where it counts rows, else from 0."""
    is_count = pd.api.types.is_integer_dtype(table.index) and table.index.is_unique
    return [int(number) for number in table.index] if is_count else list(range(len(table)))


def check_keys(tags: Iterable[str]) -> None:
    """Raise `ArgumentError` for a key of a tag that MLflow does not take."""
    for key in tags:
        if key.startswith("mlflow.") or not re.fullmatch(r"[\w.:/ -]{1,250}", key):
            raise ArgumentError(
                f"tags: MLflow does not take {key!r} as a key. A key has at most 250 letters, "
                "digits, spaces and characters of '_.:/-', and never begins with 'mlflow.'."
            )


def name_hint(table: pd.DataFrame, who: str, column: str) -> tuple[str, str] | None:
    """Return what to say where an annotator has the name of a column, which may say who rated."""
    if who == column or who not in table.columns:
        return None
    return (
        f"{who!r} is taken as the one annotator, and there is a column {who!r}.",
        f"If that says who gave each label: annotators='each {who}: {column}' in read_dataset, or "
        f"log_labels for each group of table.groupby({who!r}).",
    )


def _unstorable_in(cell: Any, is_text: bool) -> int:
    with suppress(RecursionError, TypeError, ValueError):  # which `plain` tells
        if isinstance(cell, (list, dict)) or (isinstance(cell, str) and not is_text):
            cell = json.dumps(cell, ensure_ascii=False, default=str)  # where NUL is escaped
        return unstorable(cell) if isinstance(cell, str) else 0
    return 0


def read_row(
    number: int, raw: dict[str, Any], sides: dict[str, dict[str, str]], raters: Raters
) -> tuple[Row, list[str]]:
    """Return the row, with a dict of outputs, and what is wrong with it."""
    problems: list[str] = []
    read: dict[str, dict[str, Any]] = {}
    for argument, by_key in sides.items():
        needed = argument in ("inputs", "outputs")
        cells: dict[str, Any] = {}
        for key, column in by_key.items():
            try:
                cells[key] = plain(raw[column])
            except ValueError as error:
                problems.append(f"column {column!r} holds {error}")
        if needed and len(cells) == len(by_key) and all(map(is_missing, cells.values())):
            names = ", ".join(map(repr, by_key.values()))
            problems.append(f"no {argument} (column {names} is empty)")
        read[argument] = {k: v for k, v in cells.items() if needed or not is_missing(v)}
    tags = {
        key: storable(tag if isinstance(tag, str) else json.dumps(tag, ensure_ascii=False))
        for key, tag in read["tags"].items()
    }
    # MLflow would cut them off.
    long = [key for key, text in tags.items() if len(text) > 8000]
    problems += [f"tag {key!r} is longer than 8000 characters" for key in long]
    labels: dict[str, tuple[Any, str | None]] = {}
    for annotator, (column, why) in raters.items():
        try:
            if not is_missing(raw[column]):
                labels[annotator] = read_rating(raw[column], raw[why] if why else None)
        except ValueError as error:
            problems.append(f"label of {annotator!r}, column {column!r}: {error}")
    return Row(number, **(read | {"tags": tags}), labels=labels), problems


def raise_bad_rows(bad: list[tuple[int, str]], total: int, what: str) -> None:
    """Raise a `TableError` that lists the rows, if there are any."""
    if not bad:
        return
    lines = [f"  row {row}: {reason}" for row, reason in bad[:20]]
    if len(bad) > 20:
        lines.append(f"  ... and {len(bad) - 20} more, all in the error's .rows")
    raise TableError(
        f"{len(dict(bad))} of {total} rows cannot be {what}, and nothing was written. Mend or drop "
        "them (rows are counted from 0):\n" + "\n".join(lines),
        bad,
    )


def plain(cell: Any, depth: int = 0) -> Any:  # noqa: C901, PLR0912  # a line for each type
    """Return a cell as a plain value, dates and decimals as text; a ValueError says why not."""
    if isinstance(cell, np.datetime64):
        cell = pd.Timestamp(cell)
    elif isinstance(cell, (np.timedelta64, datetime.timedelta)):
        cell = pd.Timedelta(cell)
    elif isinstance(cell, (np.generic, np.ndarray)):
        cell = cell.tolist()
    if isinstance(cell, str):
        # Without a subclass that prints itself otherwise. JSON escapes NUL, but no surrogate.
        return _SURROGATE.sub("\ufffd", str.__str__(cell))
    if isinstance(cell, bool):
        return cell
    if cell is None or (pd.api.types.is_scalar(cell) and pd.isna(cell)):
        return None
    if isinstance(cell, int):
        if not -(2**63) <= cell < 2**63:
            raise ValueError("a whole number beyond 64 bits; give it as text")
        return int(cell)
    if isinstance(cell, float):
        if math.isinf(cell):
            raise ValueError("an infinite number")
        return float(cell)
    if isinstance(cell, (Decimal, UUID)):
        return str(cell)
    if isinstance(cell, (datetime.date, datetime.time, pd.Timedelta)):
        return cell.isoformat()
    if depth > _MOST_LEVELS:
        raise ValueError(f"lists or dicts in each other, more than {_MOST_LEVELS} deep")
    if isinstance(cell, (list, tuple)):
        return [plain(item, depth + 1) for item in cell]
    if isinstance(cell, dict):
        if wrong := [type(key).__name__ for key in cell if not isinstance(key, str)]:
            raise ValueError(f"a dict with a key of type {wrong[0]}")
        return {str(plain(key)): plain(value, depth + 1) for key, value in cell.items()}
    raise ValueError(f"a value of type {type(cell).__name__}")


def row_digests(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return a digest of the plain values in the columns of each row."""
    rows = table[list(columns)].itertuples(index=False, name=None)
    return [digest([_comparable(cell) for cell in row]) for row in rows]


def _comparable(cell: Any) -> Any:
    try:
        return plain(cell)
    except ValueError as error:
        return f"{error} {id(cell)}"  # equals no other; the import tells it


def check_division(argument: str, given: object) -> None:
    """Raise `ArgumentError` unless what divides the traces is a name, a mapping or None."""
    if not (given is None or isinstance(given, (str, Mapping))):
        raise ArgumentError(
            f"{argument} is a {type(given).__name__}. Give the name of a column, tag or input, or "
            f"a dict by trace id, such as {argument}=dict(zip(imported.by_row, table['topic']))."
        )


def read_rating(raw: Any, rationale: Any = None) -> tuple[Any, str | None]:
    """Return a rating as a plain value, and its rationale; a ValueError says why it is none."""
    value = scalar(raw)
    try:
        value = plain(value)
    except ValueError as error:
        raise ValueError(f"the value is {error}") from None
    value = storable(value) if isinstance(value, str) else value
    return value, None if is_missing(rationale) else storable(str(rationale))


def digest(content: Any) -> str:
    """Return the SHA-256 of plain content, the same in every process: 64 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, default=str)  # ASCII, halves of surrogates as well
    return hashlib.sha256(text.encode("ascii")).hexdigest()
