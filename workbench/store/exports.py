"""`read_labels`: what people labelled in another tool, as a table that `import_traces` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError, TableError
from workbench.formatting import counted, html_table, html_text
from workbench.store.files import read_records, read_table
from workbench.store.labelling_tools import MIN, TOOLS, Answer, Item, tool_of
from workbench.store.tables import Raters
from workbench.vocabulary import is_missing

_OUTPUTS = ("output", "outputs", "answer", "response", "completion", "generation", "reply")


@dataclass(frozen=True, repr=False)
class ReadLabels:
    """What an export holds.

    Attributes
    ----------
    format, question
        The tool, and the question whose answers are the labels.
    table
        One row an item: its fields, and a column with the ratings of each annotator.
    columns
        ``inputs``, ``outputs`` and ``labels`` as `workbench.import_traces` takes them:
        ``import_traces(read.table, **read.columns, label_name=...)``.
    problems
        What could not be read: ``record`` (counted from 0), ``annotator``, ``reason``.
    """

    format: str
    question: str
    table: pd.DataFrame
    columns: dict[str, Any]
    problems: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        unread = f", {counted(len(self.problems), 'answer')} not read, see .problems"
        people = ", ".join(self.columns["labels"])
        return (
            f"<ReadLabels {self.format}: {counted(len(self), 'item')}, {self.question!r} by "
            f"{people}{unread if len(self.problems) else ''}>"
        )

    def _repr_html_(self) -> str:
        reasons = self.problems.groupby("reason").size().rename("answers").reset_index()
        table = html_table(reasons, index=False) if len(reasons) else ""
        return f"<div>{html_text(repr(self))}</div>{table}"


def read_labels(
    path: str | os.PathLike[str],
    *,
    question: str | None = None,
    rationale: str | None = None,
    outputs: str | Sequence[str] | None = None,
    encoding: str | None = None,
) -> ReadLabels:
    """Read what people labelled in another tool.

    The tool is told by the records themselves. Of several answers of one person to one item the
    last counts.

    Parameters
    ----------
    path
        A JSON, JSONL or CSV file that the tool exported.
    question
        The question whose answers are the labels; may be left out where there is one.
    rationale
        Another question, whose answers are the reasons. Text areas of Label Studio and comments
        are taken without it.
    outputs
        The fields that hold what the application answered; all others are its inputs. None takes
        what the tool itself calls outputs, or a field named answer, response or the like.
    encoding
        Of a file that is not UTF-8, such as ``cp1252``.

    Raises
    ------
    TableError
        When the file is missing, is no JSON, or comes from none of the tools.
    ArgumentError
        When the question or the outputs must be named; the message lists them.
    """
    records = _read(Path(path).expanduser(), encoding)
    tool = tool_of(records, Path(path).name)
    items: dict[str, Item] = {}
    try:
        answers = list(TOOLS[tool][1](records, items))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{str(path)!r} looks like an export of {tool}, and is not in the form that is "
            f"documented for it ({type(error).__name__}: {error})."
        ) from error
    given = [a for a in answers if not a.fault]
    questions = list(dict.fromkeys(a.question for a in given))
    candidates = [q for q in questions if q != rationale]
    if not given:
        reasons = "; ".join(sorted({a.fault for a in answers})) or "there is no answer in it"
        raise TableError(f"No label could be read from {str(path)!r}: {reasons}.")
    if question is None and len(candidates) == 1:
        question = candidates[0]
    if question not in candidates:
        raise ArgumentError(
            f"question={question!r}: the export holds answers to "
            f"{', '.join(map(repr, questions))}. Name the one that is the rating."
        )
    if tool == MIN:  # where texts and answers stand side by side
        for key, (fields, _) in items.items():
            own = {k: v for k, v in fields.items() if k not in (question, rationale)}
            items[key] = Item(own, {})
    table, columns, replaced = _table(items, given, question, rationale, outputs)
    unread = [a for a in answers if a.fault and a.question in ("", question)] + replaced
    problems = pd.DataFrame(
        [(a.record, a.annotator, a.fault) for a in unread],
        columns=["record", "annotator", "reason"],
    )
    return ReadLabels(tool, question, table, columns, problems)


def _read(path: Path, encoding: str | None) -> list[dict[str, Any]]:
    if path.suffix.lower() not in (".csv", ".tsv"):
        return read_records(path, encoding)
    table = read_table(path, encoding)
    # The order of columns means nothing, unlike that of Label Studio's JSON-MIN.
    table = table[sorted(table.columns, key=lambda column: column != "id")]
    rows = table.to_dict("records")
    return [{str(k): _cell(v) for k, v in row.items() if not is_missing(v)} for row in rows]


def _cell(text: str) -> Any:
    """Return what a cell of CSV holds, be it JSON of a list or an object."""
    try:
        return json.loads(text) if text[:1] in ("[", "{") else text
    except ValueError:
        return text


def _table(
    items: Mapping[str, Item],
    given: Iterable[Answer],
    question: str,
    rationale: str | None,
    outputs: str | Sequence[str] | None,
) -> tuple[pd.DataFrame, dict[str, Any], list[Answer]]:
    rows: dict[str, dict[str, Any]] = {key: {} for key in items}
    people: Raters = {}
    replaced = []
    for a in given:
        if a.question not in (question, rationale):
            continue
        people[a.annotator] = columns = (f"label: {a.annotator}", f"rationale: {a.annotator}")
        row = rows[a.item]
        if a.question == rationale:
            row[columns[1]] = a.value
            continue
        if columns[0] in row and row[columns[0]] != a.value:
            fault = f"{row[columns[0]]!r} was replaced by the later answer {a.value!r}"
            replaced.append(a._replace(fault=fault))
        row[columns[0]] = a.value
        row[columns[1]] = a.rationale or row.get(columns[1])
    content, inputs, answered = _content(list(items.values()), outputs)
    table = pd.DataFrame(
        [{"item": k} | fields | rows[k] for k, fields in zip(items, content, strict=True)],
        dtype=object,
    )
    labels = [column for pair in people.values() for column in pair if column]
    table = table.reindex(columns=[*table.columns.difference(labels, sort=False), *labels])
    shown = answered[0] if len(answered) == 1 else answered
    return table, {"inputs": inputs, "outputs": shown, "labels": people}, replaced


def _content(
    items: Sequence[Item], outputs: str | Sequence[str] | None
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Return the items' fields, and which of them are inputs and outputs."""
    clash = any(not set(item.inputs).isdisjoint(item.outputs) for item in items)
    sides = [
        [{f"{side}." * clash + k: v for k, v in getattr(item, side).items()} for item in items]
        for side in ("inputs", "outputs")
    ]
    of_inputs, of_outputs = (
        list(dict.fromkeys(k for each in side for k in each)) for side in sides
    )
    fields = of_inputs + of_outputs
    named = [outputs] if isinstance(outputs, str) else list(outputs or of_outputs)
    if not named:
        named = [f for f in fields if f.lower() in _OUTPUTS][:1] or fields * (len(fields) == 1)
    if not named or not set(named) <= set(fields):
        raise ArgumentError(
            f"outputs={outputs!r}: the items have the fields {', '.join(map(repr, fields))}. Name "
            "the one that holds what the application answered."
        )
    content = [{**a, **b} for a, b in zip(*sides, strict=True)]
    return content, [f for f in fields if f not in named] or ["item"], named
