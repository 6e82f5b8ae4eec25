"""Which column of a table is what: checked against the table, and read from text.

`import_traces` takes columns as Python values. Command lines and notebook parameters are text::

    inputs       question, context
    annotators   ana: rating_ana + rationale_ana, ben: rating_ben

Names that hold a comma, colon or plus are given as a list or dict, or as JSON of one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from workbench.errors import ArgumentError

ColumnSpec: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""A column, several, or {key: column}."""

LabelSpec: TypeAlias = Mapping[str, str | tuple[str, str | None]]
"""{annotator: column} or {annotator: (column, rationale column)}."""

Raters: TypeAlias = dict[str, tuple[str, str | None]]
"""{annotator: (column of ratings, column of rationales or None)}."""

Names: TypeAlias = str | Sequence[str] | None
RaterText: TypeAlias = str | Mapping[str, "str | Sequence[str]"] | None


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


# -- text -----------------------------------------------------------------------------------


def parse_names(parameter: str, given: Names) -> list[str]:
    """Read names from text with commas between them, from a list, or from JSON of one.

    >>> parse_names("inputs", "question, context")
    ['question', 'context']
    """
    given = _from_json(parameter, given)
    if given is None:
        return []
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",")]
    if not isinstance(given, Sequence):
        given = [str(given)]  # the command line reads 1 as a number
    wrong = [name for name in given if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ArgumentError(
            f"{parameter}={given!r} holds {wrong[0]!r}, which is no name. Write names with commas "
            "between them: 'question, context'."
        )
    return list(given)


def parse_raters(parameter: str, given: RaterText) -> Raters:
    """Read who rated in which columns from text, from a dict, or from JSON of one.

    >>> parse_raters("annotators", "ana: rating_ana + why_ana, ben: rating_ben, gold")
    {'ana': ('rating_ana', 'why_ana'), 'ben': ('rating_ben', None), 'gold': ('gold', None)}
    """
    given = _from_json(parameter, given)
    if given is None or isinstance(given, Mapping):
        return columns_by_rater(parameter, given)
    pairs = [_rater(parameter, part) for part in str(given).split(",")]
    if len(dict(pairs)) < len(pairs):
        raise ArgumentError(f"{parameter}={given!r} names an annotator twice.")
    return columns_by_rater(parameter, dict(pairs))


def _rater(parameter: str, part: str) -> tuple[str, list[str]]:
    who, colon, columns = part.rpartition(":")
    names = [name.strip() for name in columns.split("+")]
    who = who.strip() if colon else names[0]
    if not who or not all(names):
        raise ArgumentError(
            f"{parameter}: {part.strip()!r} cannot be read. Write 'who: column', or "
            "'who: column + rationale_column', with commas between the annotators."
        )
    return who, names


def _from_json(parameter: str, given: Any) -> Any:
    """Return JSON of a list or object as such, other text stripped, and blank text as None."""
    if not isinstance(given, str):
        return given
    text = given.strip()
    if not (text.startswith("[") and text.endswith("]")) and not text.startswith("{"):
        return text or None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"{parameter}={given!r} is no JSON list or object: {error}.") from None
