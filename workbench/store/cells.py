"""Cells and columns of a table, and cells as values that MLflow can store.

Imports, labels, verdicts and datasets all read cells here. A plain value is what JSON can hold and
MLflow gives back unchanged: None, bool, int, float, str, and lists and dicts of these.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, ScaleError
from workbench.scale import Scale, is_missing

_INT64 = 2**63


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


def is_null(cell: Any) -> bool:
    """Whether a cell holds no value: None, nan, NaT or pandas.NA. Empty text is a value."""
    return cell is None or (pd.api.types.is_scalar(cell) and bool(pd.isna(cell)))


def plain(cell: Any) -> Any:
    """Return the cell as a plain value: numpy types converted, nan as None, dates as ISO text.

    Raises
    ------
    ValueError
        For what JSON cannot hold; the message is the reason, without the value.
    """
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    elif isinstance(cell, np.generic) and not isinstance(cell, (np.datetime64, np.timedelta64)):
        cell = cell.item()
    if isinstance(cell, str):
        return str.__str__(cell)
    if is_null(cell):
        return None
    if isinstance(cell, (bool, int, float)):
        return _plain_number(cell)
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


def _plain_number(cell: bool | int | float) -> bool | int | float:
    if isinstance(cell, bool):
        return cell
    if isinstance(cell, int):
        if not -_INT64 <= cell < _INT64:
            raise ValueError("a whole number beyond 64 bits; give it as text")
        return int(cell)
    if math.isinf(cell):
        raise ValueError("an infinite number")
    return float(cell)


def plain_or_reason(cell: Any) -> tuple[Any, str | None]:
    """Return the plain value and None, or None and the reason why there is none."""
    try:
        return plain(cell), None
    except ValueError as error:
        return None, str(error)
    except RecursionError:
        return None, "nested too deeply"


def as_text(value: Any) -> str:
    """Return a plain value as text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def has_lone_surrogate(text: str) -> bool:
    """Whether the text holds half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_text(argument: str, given: Any) -> None:
    """Raise `ArgumentError` unless an argument is a text that is not blank and can be stored."""
    if not isinstance(given, str) or not given.strip():
        raise ArgumentError(f"{argument}={given!r} must be a non-empty text.")
    if has_lone_surrogate(given):
        raise ArgumentError(
            f"{argument}={given!r} holds half of a surrogate pair, which cannot be stored."
        )


def rating_problem(raw: Any, rationale: Any, scale: Scale | None = None) -> str | None:
    """Return why a rating cannot be stored; None where it can."""
    value, reason = plain_or_reason(raw)
    if reason:
        return f"the value is {reason}"
    because = "" if is_null(rationale) else str(rationale)
    for what, text in (("value", as_text(value)), ("rationale", because)):
        if has_lone_surrogate(text):
            return f"the {what} holds half of a surrogate pair, which MLflow cannot store here"
    if scale is not None:
        try:
            scale.normalise(value)
        except ScaleError as error:
            return str(error)
    return None


def read_rating(raw: Any, rationale: Any) -> tuple[Any, str | None]:
    """Return a rating that has no `rating_problem`: its plain value, and its rationale or None."""
    return plain(raw), None if is_missing(rationale) else str(rationale)


def digest(content: Any) -> str:
    """Return the SHA-256 of plain content, the same in every process: 64 hexadecimal digits."""
    # Escaped to ASCII, so that halves of surrogate pairs can be hashed too.
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
