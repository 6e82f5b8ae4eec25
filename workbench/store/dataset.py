"""A table and the roles of its columns, as the parameters of a notebook name them.

Command lines and notebook parameters are text; the last of these is for tables of one row a label,
whose column ``annotator`` says who gave it::

    inputs       question, context
    annotators   ana: rating_ana + rationale_ana, ben: rating_ben
    annotators   each annotator: rating + rationale

Names that hold a comma, colon or plus are given as a list or dict, or as JSON of one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from workbench.errors import ArgumentError, ScaleError, TableError, check_whole
from workbench.formatting import check_text, counted, html_result
from workbench.scale import Scale, is_abstention, no_rating
from workbench.store.files import read_table
from workbench.store.tables import (
    LabelSpec,
    Names,
    Raters,
    columns_by_rater,
    empty_rows,
    parts,
    rater_columns,
    require_columns,
    row_digests,
    translated,
)
from workbench.vocabulary import as_numbers, fold, folded, is_missing, normal_form, number, scalar


@dataclass(frozen=True, repr=False)
class Dataset:
    """A table and the roles of its columns, all of which it has.

    Attributes
    ----------
    table, source, empty
        The rows, the name of their file ("table" for a DataFrame), and the numbers of those that
        were left out since they are empty. Ratings are translated where ``values`` says so. The
        index counts the rows of the source from 0; of several that became one it is the first.
    inputs, outputs, expectations
        Columns that the judge sees. ``outputs`` is one column, or a list of several.
    labels, verdicts
        Annotator -> (column of ratings, column of rationales or None), and the same for recorded
        verdicts of other judges.
    groups
        The column whose equal rows stay on one side of a split; None for none.
    translations
        What people wrote -> rating, as ``values`` says.
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
    empty: tuple[int, ...] = ()
    translations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value_type(self) -> Any:
        """The judge's ``feedback_value_type``: a Literal of the values, best first; int or float
        on numeric scales."""
        if self.scale.kind == "numeric":
            return int if self.scale.integer else float
        if self.scale.values == (False, True) and isinstance(self.scale.values[0], bool):
            return bool
        best_first = self.scale.kind in ("binary", "ordinal")
        return Literal[tuple(self.scale.values[:: -1 if best_first else 1])]

    @property
    def instructions(self) -> str:
        """Plain instructions to begin with, made of the columns' names. Your own say more."""
        given = f"{_listed(self.inputs)} in {{{{ inputs }}}}"
        if self.expectations:
            given += f" and the {_listed(self.expectations)} in {{{{ expectations }}}}"
        answer = _listed(as_list(self.outputs))
        return f"Rate how good the {answer} in {{{{ outputs }}}} is, given the {given}."

    def sample(self, rows: int | None, *, seed: int = 0) -> Dataset:
        """Return so many rows drawn at random, in their order; all where ``rows`` is None."""
        if rows is None or rows >= len(self):
            return self
        check_whole("rows", rows)
        return replace(self, table=self.table.sample(rows, random_state=seed).sort_index())

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"<Dataset {self.source}: {counted(len(self), 'row')}, {self.scale.kind} scale>"

    def _repr_html_(self) -> str:
        return html_result(self, self.table)


def read_dataset(
    data: pd.DataFrame | str | os.PathLike[str],
    *,
    inputs: Names,
    outputs: Names,
    expectations: Names = None,
    annotators: LabelSpec = None,
    verdicts: LabelSpec = None,
    groups: str | None = None,
    values: Names | Mapping[str, Any] = None,
    encoding: str | None = None,
) -> Dataset:
    """Read a table whose columns are named as text.

    Parameters
    ----------
    data, encoding
        DataFrame, or CSV, JSONL or Parquet file; see `workbench.store.files.read_table`.
    inputs, outputs, expectations
        Columns that the judge sees, commas between them.
    annotators, verdicts
        Columns with people's ratings, and with recorded verdicts of other judges: ``column``,
        ``who: column`` or ``who: column + rationale``, commas between them; or ``each column:
        rating`` for a table of one row a label. None where there are none here.
    groups
        A column; rows that are equal there stay on one side of a split.
    values
        The rating values, commas between them; those of the labels when None. A dict (or JSON of
        one) translates what people wrote: ``{"good": "yes", "bad": "no"}``.

    Raises
    ------
    ArgumentError, TableError
        For a text that cannot be read and columns that do not exist; for a file that cannot.
    """
    table = read_table(data, encoding)
    source = "table" if isinstance(data, pd.DataFrame) else Path(data).name
    labels = columns_by_rater("annotators", annotators)
    recorded = columns_by_rater("verdicts", verdicts)
    each = next((who.removeprefix("each ") for who in labels if who.startswith("each ")), None)
    named = {
        "inputs": list(parts("inputs", inputs)),
        "outputs": list(parts("outputs", outputs)),
        "expectations": list(parts("expectations", expectations)),
        "groups": as_list(groups),
        "annotators": [*rater_columns(labels), *([] if each is None else [each])],
        "verdicts": rater_columns(recorded),
    }
    for parameter, columns in named.items():
        if not columns and parameter in ("inputs", "outputs"):
            raise ArgumentError(
                f"{parameter} is not given. Name at least one column of {source}, which has "
                f"{', '.join(map(repr, table.columns))}."
            )
        require_columns(table, parameter, columns)
    empty = empty_rows(table, [column for columns in named.values() for column in columns])
    table = table.set_axis(range(len(table))).loc[[k for k, no in enumerate(empty) if not no]]
    if table.empty:
        raise TableError(f"{source} has no rows: nothing stands in the columns that are named.")
    if each is not None:
        content = [c for role, columns in named.items() if role != "annotators" for c in columns]
        table, labels = _one_row_an_item(table, each, labels, content)
    rated = [column for column, _ in (*labels.values(), *recorded.values())]
    words = parts("values", values)
    table, names = translated(table, rated, values)
    return Dataset(
        table=table,
        source=source,
        inputs=named["inputs"],
        outputs=named["outputs"][0] if len(named["outputs"]) == 1 else named["outputs"],
        expectations=named["expectations"] or None,
        labels=labels,
        verdicts=recorded,
        groups=groups or None,
        scale=_scale(table, labels, names),
        empty=tuple(number for number, blank in enumerate(empty) if blank),
        translations=dict(words) if isinstance(words, Mapping) else {},
    )


def _one_row_an_item(
    table: pd.DataFrame, each: str, labels: Raters, content: Sequence[str]
) -> tuple[pd.DataFrame, Raters]:
    """Join rows of equal content, each a label by one person, whose second one begins a row."""
    if len(labels) > 1 or table[each].map(is_missing).any():
        rows = table.index[table[each].map(is_missing)].tolist()[:10]
        raise ArgumentError(
            f"annotators: 'each {each}' stands alone, and column {each!r} says in every row who "
            f"gave the label; it is empty in rows {rows or 'none'}."
        )
    [(rating, why)] = labels.values()
    people: dict[str, str] = {}
    who = [people.setdefault(folded(name), normal_form(str(name))) for name in table[each]]
    for name in people.values():
        check_text(f"annotators: {each}", name)
    item = pd.Series(row_digests(table, content), table.index)
    times = item.groupby([item, who]).cumcount()
    row = table.index.to_series().groupby([item, times]).transform("first")
    found: list[Any] = [table.loc[row.unique(), list(dict.fromkeys(content))]]
    raters = Raters()
    if not isinstance(table[rating].dtype, pd.CategoricalDtype):  # which may have an order
        table = table.astype({rating: object})  # whole numbers stay so beside missing ones
    for name in people.values():
        own = table.loc[[one == name for one in who]]
        for column in filter(None, (rating, why)):
            cells = own[column].set_axis(row[own.index])
            found.append(cells.rename(f"{column}: {name}"))
        raters[name] = f"{rating}: {name}", f"{why}: {name}" if why else None
    return pd.concat(found, axis=1), raters


def as_list(columns: str | list[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) and columns else list(columns or [])


def _listed(columns: Sequence[str]) -> str:
    *most, last = (column.replace("_", " ").strip() for column in columns)
    return f"{', '.join(most)} and {last}" if most else last


def _scale(table: pd.DataFrame, labels: Raters, values: Sequence[Any]) -> Scale:
    if values:
        given = [number(value) for value in values if not isinstance(value, bool)]
        numbers = [int(size) if size.is_integer() else size for size in given if size is not None]
        return Scale.of(numbers if len(numbers) == len(values) else values)
    if not labels:
        raise ArgumentError(
            "values is None and no annotators are named, so the rating scale is not known. Give "
            "values, for instance 'excellent, good, fair, poor'."
        )
    columns = [column for column, _ in labels.values()]
    cells = [
        (row, scalar(raw, f"Column {column!r}, row {row}: "))
        for column in columns
        for row, raw in table[column].items()
        if not is_missing(raw)
    ]
    kinds: set[Any] = {table[column].dtype for column in columns}
    orders = [kind.categories.tolist() for kind in kinds if getattr(kind, "ordered", False)]
    seen = {fold(raw) for _, raw in cells if not (no_rating(raw, None) or is_abstention(raw))}
    fitting = [order for order in orders if seen <= {*map(fold, order)}]
    if len(fitting) == 1:
        return Scale.of(fitting[0], ordered=True)
    try:
        found = Scale.from_values(raw for _, raw in cells)
    except ScaleError as error:
        raise ScaleError(
            f"The ratings in {', '.join(map(repr, columns))} make no scale: {error} Check "
            "annotators, or give values."
        ) from None
    if found.kind == "numeric":
        sizes = [size for _, raw in cells for size in as_numbers([raw])]
        return replace(found, low=None, integer=all(map(float.is_integer, sizes)))
    return found
