"""A table and the roles of its columns, as the parameters of a notebook name them.

Command lines and notebook parameters are text::

    inputs       question, context
    annotators   ana: rating_ana + rationale_ana, ben: rating_ben

Names that hold a comma, colon or plus are given as a list or dict, or as JSON of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, ScaleError
from workbench.formatting import html_table, html_text
from workbench.scale import Scale, is_missing
from workbench.store.cells import require_columns
from workbench.store.tables import Raters, columns_by_rater, read_table

Names: TypeAlias = str | Sequence[str] | None
RaterText: TypeAlias = str | Mapping[str, "str | Sequence[str]"] | None

_PARAMETERS = "inputs, outputs, expectations, annotators, groups and verdicts"


@dataclass(frozen=True, repr=False)
class Dataset:
    """A table and the roles of its columns, all of which it has.

    Attributes
    ----------
    table, source
        The rows, and the name of the file that they are from ("table" for a DataFrame).
    inputs, outputs, expectations
        Columns that the judge sees. ``outputs`` is one column, or a list of several.
    labels
        Annotator -> (column of ratings, column of rationales or None).
    verdicts
        The same for recorded verdicts of other judges.
    groups
        The column whose equal rows stay on one side of a split; None for none.
    scale
        The rating scale.
    """

    table: pd.DataFrame
    source: str
    inputs: list[str]
    outputs: str | list[str]
    expectations: list[str] | None
    labels: Raters
    verdicts: Raters
    groups: str | None
    scale: Scale

    @property
    def value_type(self) -> Any:
        """The judge's ``feedback_value_type``: a Literal of the values, best first; int or float
        on numeric scales."""
        if self.scale.kind == "numeric":
            return int if self.scale.integer else float
        if self.scale.values == (False, True) and isinstance(self.scale.values[0], bool):
            return bool
        ordered = self.scale.kind in ("binary", "ordinal")
        values = self.scale.values[::-1] if ordered else self.scale.values
        return Literal[tuple(values)]

    @property
    def instructions(self) -> str:
        """Plain instructions to begin with, made of the columns' names. Your own say more."""
        outputs = [self.outputs] if isinstance(self.outputs, str) else self.outputs
        given = f"{_listed(self.inputs)} in {{{{ inputs }}}}"
        if self.expectations:
            given += f" and the {_listed(self.expectations)} in {{{{ expectations }}}}"
        return f"Rate how good the {_listed(outputs)} in {{{{ outputs }}}} is, given the {given}."

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"<Dataset {self.source}: {len(self)} rows, {self.scale.kind} scale>"

    def _repr_html_(self) -> str:
        head = f"{self.source}: {len(self)} rows, rated {self.scale.describe()}"
        roles = {
            "inputs": ", ".join(self.inputs),
            "outputs": self.outputs if isinstance(self.outputs, str) else ", ".join(self.outputs),
            "expectations": ", ".join(self.expectations or []),
            "annotators": _shown(self.labels),
            "recorded verdicts": _shown(self.verdicts),
            "kept together": self.groups or "",
        }
        table = pd.DataFrame([(r, c) for r, c in roles.items() if c], columns=["role", "columns"])
        return f"<div>{html_text(head)}</div>" + html_table(table, index=False)


def read_dataset(
    data: pd.DataFrame | str | os.PathLike[str],
    *,
    inputs: Names,
    outputs: Names,
    expectations: Names = None,
    annotators: RaterText = None,
    verdicts: RaterText = None,
    groups: str | None = None,
    values: Names = None,
) -> Dataset:
    """Read a table whose columns are named as text.

    Parameters
    ----------
    data
        DataFrame, or CSV, JSONL or Parquet file; see `workbench.store.tables.read_table`.
    inputs, outputs, expectations
        Columns that the judge sees, commas between them.
    annotators
        Columns with people's ratings: ``column``, ``who: column`` or ``who: column + rationale``,
        commas between them. None where the labels are given elsewhere, as in MLflow's own page.
    verdicts
        Columns with recorded verdicts of another judge, written the same way.
    groups
        A column; rows that are equal there stay on one side of a split.
    values
        The rating values, commas between them; those of the labels when None.

    Raises
    ------
    ArgumentError
        For a text that cannot be read, and for columns that do not exist.
    TableError
        When the file is missing, damaged or empty.
    """
    table = read_table(data)
    source = "table" if isinstance(data, pd.DataFrame) else Path(data).name
    named = {
        "inputs": parse_names("inputs", inputs),
        "outputs": parse_names("outputs", outputs),
        "expectations": parse_names("expectations", expectations),
        "groups": [groups] if groups else [],
    }
    labels = parse_raters("annotators", annotators)
    recorded = parse_raters("verdicts", verdicts)
    for parameter in ("inputs", "outputs"):
        if not named[parameter]:
            raise ArgumentError(f"{parameter} is empty. Name at least one column of {source}.")
    for parameter, raters in (("annotators", labels), ("verdicts", recorded)):
        named[parameter] = [c for columns in raters.values() for c in columns if c is not None]
    for parameter, columns in named.items():
        try:
            require_columns(table, parameter, columns)
        except ArgumentError as error:
            raise ArgumentError(
                f"{error} Say what the columns of {source} are by {_PARAMETERS}; those that it "
                "lacks are None."
            ) from None
    return Dataset(
        table=table,
        source=source,
        inputs=named["inputs"],
        outputs=named["outputs"][0] if len(named["outputs"]) == 1 else named["outputs"],
        expectations=named["expectations"] or None,
        labels=labels,
        verdicts=recorded,
        groups=groups or None,
        scale=_scale(table, labels, parse_names("values", values)),
    )


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


def _listed(columns: Sequence[str]) -> str:
    names = [column.replace("_", " ").strip() for column in columns]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(raters: Raters) -> str:
    texts = [f"{who}: {' with '.join(filter(None, columns))}" for who, columns in raters.items()]
    return ", ".join(texts)


def _scale(table: pd.DataFrame, labels: Raters, values: Sequence[str]) -> Scale:
    if values:
        return Scale.of(_as_numbers(values))
    if not labels:
        raise ArgumentError(
            "values is None and no annotators are named, so the rating scale is not known. Give "
            "values, for instance 'excellent, good, fair, poor'."
        )
    cells = [value for column, _ in labels.values() for value in table[column].tolist()]
    seen = [value for value in cells if not is_missing(value)]
    if seen and all(isinstance(value, (bool, np.bool_)) for value in seen):
        return Scale("binary", (False, True))
    try:
        found = Scale.from_values(seen)
    except ScaleError as error:
        columns = ", ".join(repr(column) for column, _ in labels.values())
        raise ScaleError(
            f"The ratings in {columns} make no scale: {error} Check annotators, or give values."
        ) from None
    if found.kind == "numeric":
        return Scale("numeric", integer=all(float(value).is_integer() for value in seen))
    return found


def _as_numbers(texts: Sequence[str]) -> list[Any]:
    """Return the texts as numbers where all are numbers, else as they are."""
    for number in (int, float):
        try:
            return [number(text) for text in texts]
        except ValueError:
            continue
    return list(texts)
