"""`check_data`: what a table holds, and what is doubtful about it, before anything is written."""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from workbench.errors import ScaleError, TableError
from workbench.formatting import counted, html_table
from workbench.scale import ABSTAIN, Scale, no_rating
from workbench.store.dataset import Dataset, as_list, read_dataset
from workbench.store.tables import (
    LabelSpec,
    Names,
    empty_rows,
    name_hint,
    rater_columns,
    row_digests,
)
from workbench.vocabulary import as_text, group_key, is_missing, is_unnamed, revealed

_ENOUGH = 10  # labelled rows that alignment needs
_MANY, _RARE = 20, 0.01  # a rating that occurs once among many, or has a smaller share, is odd
_SHOWN = 6  # row numbers that a finding lists
_REPR = reprlib.Repr()
_REPR.maxstring = 60


class Finding(NamedTuple):
    """One line of the check: ``advice`` is empty where nothing is doubtful."""

    check: str
    finding: str
    advice: str = ""
    is_error: bool = False


@dataclass(frozen=True, repr=False)
class DataCheck:
    """What `check_data` found.

    Attributes
    ----------
    table
        One row a check: ``check``, ``finding``, ``advice``.
    rows
        One row for each cell with a rating that was not taken as it is: ``row`` (counted from 0),
        ``column``, ``cell``, ``reading``; and for each row that is empty or not complete.
    scale
        The rating scale.
    errors, doubts
        What makes an alignment pointless, and what should be looked at, in a line each.
    """

    table: pd.DataFrame
    rows: pd.DataFrame
    scale: Scale
    errors: tuple[str, ...]
    doubts: tuple[str, ...]

    def __repr__(self) -> str:
        width = max(map(len, self.table["check"]))
        lines = self.table.itertuples(index=False, name=None)
        return "\n".join(f"{check:<{width}}  {f}  {advice}".rstrip() for check, f, advice in lines)

    def _repr_html_(self) -> str:
        return html_table(self.table, index=False)


def check_data(
    data: Dataset | pd.DataFrame | str | os.PathLike[str],
    *,
    inputs: Names = None,
    outputs: Names = None,
    expectations: Names = None,
    annotators: LabelSpec = None,
    labels: LabelSpec = None,
    verdicts: LabelSpec = None,
    groups: str | None = None,
    values: Names | Mapping[str, Any] = None,
    encoding: str | None = None,
    strict: bool = True,
) -> DataCheck:
    """Look at a table before a trace is written or a model is asked.

    Parameters
    ----------
    data
        What `workbench.read_dataset` gave; or a DataFrame or a file with the roles of its columns,
        which are then read as `workbench.read_dataset` does.
    inputs, outputs, expectations, annotators, verdicts, groups, values, encoding
        As in `workbench.read_dataset`. ``labels`` is another name for ``annotators``.
    strict
        Whether what makes an alignment pointless is raised; else it is listed in ``.errors``.

    Raises
    ------
    TableError
        For what makes an alignment pointless, such as fewer than 10 rows with a rating on the
        scale.
    ArgumentError, ScaleError
        As in `workbench.read_dataset`.
    """
    if not isinstance(data, Dataset):
        data = read_dataset(
            data, inputs=inputs, outputs=outputs, expectations=expectations,
            annotators=annotators or labels, verdicts=verdicts, groups=groups, values=values,
            encoding=encoding,
        )  # fmt: skip
    content = _content(data)
    cells = _cells(data, content)
    recorded = replace(data, labels=data.verdicts, empty=())
    found = [
        *_about_columns(data),
        *_about_rows(data, content),
        *_about_scale(data, cells),
        *_about_ratings(data, cells),
        *_about_ratings(recorded, _cells(recorded, content), "verdict"),
        *_about_groups(data),
        *_about_enough(data, cells, content),
    ]
    told = ~cells["reading"].isin(["", "empty"])
    rows = cells.loc[told, ["row", "column", "cell", "reading"]].sort_values("row", kind="stable")
    check = DataCheck(
        table=pd.DataFrame(found)[["check", "finding", "advice"]],
        rows=rows.reset_index(drop=True),
        scale=data.scale,
        errors=tuple(f"{f.finding} {f.advice}" for f in found if f.is_error),
        doubts=tuple(f"{f.finding} {f.advice}" for f in found if f.advice and not f.is_error),
    )
    if strict and check.errors:
        lines = [*check.errors, "Nothing was written. All that was found:", repr(check)]
        raise TableError("\n".join(lines))
    return check


def _cells(data: Dataset, content: pd.Series[Any]) -> pd.DataFrame:
    """Read each cell of a rating: ``value`` on the scale or None, and how it was read."""
    blank = [(row, "no inputs or outputs") for row in content.index[content.isna()]]
    blank += [(row, "empty, left out") for row in data.empty]
    found: list[tuple[Any, ...]] = [(row, "", "", "", None, why) for row, why in blank]
    for who, (column, _) in data.labels.items():
        for row, raw in data.table[column].items():
            text = "" if is_missing(raw) else as_text(raw)
            shown = revealed(text if len(text) <= 60 else text[:60] + " …")
            found.append((row, column, shown, who, *_read(raw, data.scale)))
    columns = ["row", "column", "cell", "annotator", "value", "reading"]
    # As objects, since a missing rating would make floats of whole numbers.
    return pd.DataFrame(found, columns=columns, dtype=object).astype({"row": int})


def _read(raw: Any, scale: Scale) -> tuple[Any, str]:
    if is_missing(raw):
        return None, "empty"
    if no_rating(raw, scale):
        return None, "no rating"
    try:
        value = scale.normalise(raw)
    except ScaleError:
        return None, "off the scale"
    if value is ABSTAIN:
        return None, "can't judge"
    same = str(value) == str(raw) or (value == raw and not isinstance(value, bool))
    return value, "" if same else f"read as {value!r}"


def _content(data: Dataset) -> pd.Series[Any]:
    """What the judge sees of each row, as a digest; None where inputs or outputs are missing."""
    missing = [empty_rows(data.table, side) for side in (data.inputs, as_list(data.outputs))]
    digests = row_digests(data.table, _shown(data))
    found = [None if any(blank) else d for d, *blank in zip(digests, *missing, strict=True)]
    return pd.Series(found, data.table.index, dtype=object)


def _shown(data: Dataset) -> list[str]:
    return [*data.inputs, *as_list(data.outputs), *as_list(data.expectations)]


# -- findings -------------------------------------------------------------------------------


def _about_columns(data: Dataset) -> Iterable[Finding]:
    for column in [c for c in dict.fromkeys(rater_columns(data.labels)) if c in _shown(data)]:
        text = f"Column {column!r} holds ratings, and the judge is shown it."
        yield Finding("shown", text, "It could simply repeat the ratings.", True)
    for column in [c for c, n in Counter(c for c, _ in data.labels.values()).items() if n > 1]:
        text = f"Column {column!r} is named for several annotators."
        yield Finding("annotators", text, "Each needs a column, or annotators='each ...'.", True)
    for who, (column, _) in data.labels.items():
        if hint := name_hint(data.table, who, column):
            yield Finding("one row a label", *hint)


def _about_rows(data: Dataset, content: pd.Series[Any]) -> Iterable[Finding]:
    size = counted(len(content), "row")
    yield Finding("rows", f"{size} in {data.source}. They are counted from 0.")
    if data.empty:
        text = f"{counted(len(data.empty), 'row')}, left out: {_listed(data.empty)}."
        yield Finding("empty", text)
    if blank := content.index[content.isna()].tolist():
        text = f"{counted(len(blank), 'row')} without inputs or outputs: {_listed(blank)}."
        yield Finding("incomplete", text, "Mend or drop them.", True)
    if again := int(content.dropna().duplicated().sum()):
        text = f"Rows that repeat another one in all that the judge sees: {again}."
        advice = "They stay on one side of a split, and are less evidence than their number says."
        if not all(column.endswith(f": {who}") for who, (column, _) in data.labels.items()):
            advice += " If a column says whose label a row is: annotators='each COLUMN: RATING'."
        yield Finding("duplicates", text, advice)


def _about_scale(data: Dataset, cells: pd.DataFrame) -> Iterable[Finding]:
    scale, rated = data.scale, cells[cells["value"].notna()]
    counts = Counter(rated["value"])
    texts = [f"{_REPR.repr(value)} {counts[value]}" for value in scale.shown]
    if scale.kind == "numeric" and len(rated):
        low, median, high = rated["value"].astype(float).quantile([0, 0.5, 1])
        texts = [f"lowest {low:g}", f"median {median:g}", f"highest {high:g}"]
    yield Finding("scale", f"{scale.kind}: {', '.join(texts) or 'no rating'}.")
    if scale.kind == "binary":
        other, positive = map(_REPR.repr, scale.values)
        text = f"{positive} is positive; pair(..., positive={other}) takes the other one."
        advice = "Taken, since the words do not tell. values=... names it first."
        yield Finding("positive side", text, advice * (not scale.positive_is_known))
    if data.translations:
        told = [f"{word!r} -> {value!r}" for word, value in data.translations.items()]
        yield Finding("translated", f"As asked for: {', '.join(told)}.")
    typed = Scale.from_type(data.value_type)
    if typed and typed.values != scale.values:
        text = "The order of the ratings is that of the column's categories."
        yield Finding("order", text, "No judge's type holds it: pair(..., scale=dataset.scale).")
    if scale.kind == "numeric" or not len(rated):
        return
    if len(rated) >= _MANY:
        yield from _about_rare_ones(rated, counts)
    advised = 0.6 / len(scale.values)
    if few := [v for v in scale.shown if counts[v] < advised * len(rated)]:
        names = ", ".join(f"{v!r} {100 * counts[v] / len(rated):.2g}%" for v in few)
        yield Finding("balance", f"Few ratings of {names}.", f"{advised:.0%} of each is advised.")


def _about_rare_ones(rated: pd.DataFrame, counts: Counter[Any]) -> Iterable[Finding]:
    advice = "If it is a slip or stands for no rating, mend it, empty the cell, or give values."
    for value, n in sorted(counts.items(), key=lambda each: (each[1], str(each[0]))):
        if n == 1 or n < _RARE * len(rated):
            rows = rated.loc[[v == value for v in rated["value"]], "row"].tolist()
            often = f"once, row {rows[0]}" if n == 1 else f"{n} times, rows {_listed(rows)}"
            yield Finding("odd rating", f"{value!r} occurs {often}.", advice)


def _about_ratings(data: Dataset, cells: pd.DataFrame, what: str = "rating") -> Iterable[Finding]:
    for who, (column, _) in data.labels.items():
        n = int((cells["value"].notna() & (cells["annotator"] == who)).sum())
        yield Finding(f"{what}s of {who}", f"{counted(n, what)} in column {column!r}.")
    advice = {
        "no rating": "They count as missing; values=... names one that is a rating.",
        "off the scale": f"They are left out. On it: {data.scale.describe()}. values names others, "
        "or translates them.",
    }
    read = cells[(cells["reading"] != "") & (cells["column"] != "")]
    kinds = read["reading"].replace(
        {"^read as .*": "written otherwise", "^empty$": "no value"}, regex=True
    )
    for kind, own in read.groupby(kinds):
        texts = []
        alike = own.groupby(["cell", "reading"])["row"]
        for (cell, reading), rows in sorted(alike, key=lambda one: -len(one[1])):
            said = f" {reading}" if str(reading).startswith("read") else ""
            shown = (repr(cell) if cell else "empty") + said
            texts.append(f"{shown} ({len(rows)}: row {_listed(rows.tolist())})")
        listed = ", ".join(texts[:8]) + f" and {len(texts) - 8} more" * (len(texts) > 8)
        columns = ", ".join(map(repr, own["column"].unique()))
        yield Finding(str(kind), f"{listed} in column {columns}.", advice.get(str(kind), ""))


def _about_groups(data: Dataset) -> Iterable[Finding]:
    if not data.groups:
        return
    raw = data.table[data.groups].tolist()
    keys = Counter(group_key(key) for key in raw if not is_unnamed(key))
    largest = max(keys.values(), default=0)
    text = f"{counted(len(keys), 'group')} by {data.groups!r}, the largest of "
    text += f"{counted(largest, 'row')}."
    advice = ""
    if without := data.table.index[[is_unnamed(key) for key in raw]].tolist():
        text += f" {counted(len(without), 'row')} without one: {_listed(without)}."
        advice = "Each of these is a group of its own."
    yield Finding("groups", text, advice)
    by_input = pd.Series(map(group_key, raw), dtype=object).groupby(
        row_digests(data.table, data.inputs)
    )
    if apart := int((by_input.nunique() > 1).sum()):
        text = f"{counted(apart, 'input')} ({', '.join(data.inputs)}) in several groups."
        advice = "The same question may then stand on both sides of the split."
        yield Finding("groups", text, advice)


def _about_enough(data: Dataset, cells: pd.DataFrame, content: pd.Series[Any]) -> Iterable[Finding]:
    if not data.labels:
        return
    complete = cells["row"].isin(content.index[content.notna()])
    rated = cells[cells["value"].notna() & complete]
    n = rated["row"].nunique()
    text = f"{counted(n, 'row')} with a rating on the scale."
    if n < _ENOUGH:
        yield Finding("enough", text, f"Alignment needs at least {_ENOUGH}.", True)
    elif len(set(rated["value"])) < 2:
        yield Finding("enough", text, "All have the same rating: nothing can be learnt.", True)
    else:
        yield Finding("enough", text, "50 to 100 are better." if n < 50 else "")


def _listed(rows: Sequence[int]) -> str:
    rows = list(dict.fromkeys(rows))  # several annotators may stand in one
    more = f" and {len(rows) - _SHOWN} more" * (len(rows) > _SHOWN)
    return ", ".join(map(str, rows[:_SHOWN])) + more
