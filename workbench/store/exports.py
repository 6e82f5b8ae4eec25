"""`read_labels`: what people labelled in another tool, as a table that `import_traces` takes.

See `workbench.store.export_formats` for the tools.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError, TableError
from workbench.formatting import counted, html_result
from workbench.store.export_formats import TOOLS, Answer, Item, tool_of
from workbench.store.files import file_errors, read_records
from workbench.store.tables import Raters
from workbench.vocabulary import folded

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
        return html_result(self, self.problems)


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
        A JSON or JSONL file that the tool exported.
    question
        The question whose answers are the labels; may be left out where there is one.
    rationale
        Another question, whose answers are the reasons. Text areas of Label Studio, comments, and
        ``user_input`` of Prodigy are taken without it.
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
    file = Path(path).expanduser()
    with file_errors(file):
        records = read_records(file, encoding)
    tool = tool_of(records, file.name)
    items: dict[str, Item] = {}
    try:
        answers = list(TOOLS[tool][1](records, items, rationale))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{str(path)!r} looks like an export of {tool}, and is not in the form that is "
            f"documented for it ({type(error).__name__}: {error})."
        ) from error
    given = [a for a in answers if not a.reason]
    if not given:
        reasons = "; ".join(sorted({a.reason for a in answers})) or "there is no answer in it"
        raise TableError(f"No label could be read from {str(path)!r}: {reasons}.")
    told = question is None  # answers to others that cannot be read are told, too
    questions = list(dict.fromkeys(a.question for a in given))
    candidates = [q for q in questions if q != rationale]
    if question is None and len(candidates) == 1:
        question = candidates[0]
    if question not in candidates:
        raise ArgumentError(
            f"question={question!r}: the export holds answers to "
            f"{', '.join(map(repr, questions))}. Name the one that is the rating."
        )
    table, columns, replaced = _table(items, given, question, rationale, outputs)
    unread = [a for a in answers if a.reason and (told or a.question in ("", question))] + replaced
    problems = pd.DataFrame(unread, columns=Answer._fields)[["record", "annotator", "reason"]]
    return ReadLabels(tool, question, table, columns, problems)


def _table(
    items: Mapping[str, Item],
    given: Sequence[Answer],
    question: str,
    rationale: str | None,
    outputs: str | Sequence[str] | None,
) -> tuple[pd.DataFrame, dict[str, Any], list[Answer]]:
    """Return a row an item, the roles of the columns, and the answers that a later one replaced."""
    rows: dict[str, dict[str, Any]] = {key: {} for key in items}
    people, names = Raters(), dict[str, str]()
    replaced = []
    reasons: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for a in given:
        reasons[a.item, folded(a.annotator)] += [a.value] * (a.question == rationale)
    times = Counter[tuple[str, str]]()
    for a in given:
        if a.question != question:
            continue
        who = names.setdefault(folded(a.annotator), a.annotator)
        people[who] = value, why = (f"label: {who}", f"rationale: {who}")
        row = rows[a.item]
        if value in row and row[value] != a.value:
            reason = f"{row[value]!r} was replaced by the later answer {a.value!r}"
            replaced.append(a._replace(reason=reason))
            if len(reasons[a.item, folded(who)]) <= times[a.item, who]:
                reasons[a.item, folded(who)].clear()  # it is that of the earlier answer
        times[a.item, who] += 1
        row[value] = a.value
        row[why] = a.rationale or next(reversed(reasons[a.item, folded(who)]), None)
    fields = list(dict.fromkeys(name for item in items.values() for name in item.fields))
    answered = _outputs(items.values(), fields, outputs)
    table = pd.DataFrame(
        [{"item": key} | item.fields | rows[key] for key, item in items.items()],
        columns=[*dict.fromkeys(["item", *fields]), *chain.from_iterable(people.values())],
        dtype=object,
    )
    inputs = [f for f in fields if f not in answered] or ["item"]
    shown = answered[0] if len(answered) == 1 else answered
    return table, {"inputs": inputs, "outputs": shown, "labels": people}, replaced


def _outputs(
    items: Iterable[Item], fields: list[str], given: str | Sequence[str] | None
) -> list[str]:
    """Return which fields hold what the application answered."""
    told = list(dict.fromkeys(name for item in items for name in item.outputs))
    named = [given] if isinstance(given, str) else list(given or told)
    if not named:
        named = [f for f in fields if f.lower() in _OUTPUTS][:1] or fields * (len(fields) == 1)
    if not named or not set(named) <= set(fields):
        raise ArgumentError(
            f"outputs={given!r}: the items have the fields {', '.join(map(repr, fields))}. Name "
            "the one that holds what the application answered."
        )
    return named
