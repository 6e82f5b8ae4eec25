"""`read_labels`: what people labelled in another tool, as a table that `import_traces` takes.

Read are the documented JSON and JSONL of Label Studio, Argilla (records, and rows of a dataset),
LangSmith (runs with feedback), Langfuse (traces and observations with scores) and Prodigy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pandas as pd

from workbench.errors import ArgumentError, TableError
from workbench.formatting import counted, html_result
from workbench.store.files import file_errors, read_records
from workbench.store.tables import Raters, digest
from workbench.vocabulary import folded

Record: TypeAlias = Mapping[str, Any]

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
    path, encoding
        A JSON or JSONL file that the tool exported; see `workbench.store.files.read_table`.
    question
        The question whose answers are the labels; may be left out where there is one.
    rationale
        Another question, whose answers are the reasons. Text areas of Label Studio, comments, and
        ``user_input`` of Prodigy are taken without it.
    outputs
        The fields that hold what the application answered; all others are its inputs. None takes
        what the tool itself calls outputs, or a field named answer, response or the like.

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
    tool = _tool_of(records, file.name)
    items: dict[str, Item] = {}
    try:
        answers = list(_TOOLS[tool][1](records, items, rationale))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{str(path)!r} looks like an export of {tool}, and is not in the form that is "
            f"documented for it ({type(error).__name__}: {error})."
        ) from error
    given = [a for a in answers if not a.reason]
    if not given:
        reasons = "; ".join(sorted({a.reason for a in answers})) or "there is no answer in it"
        raise TableError(f"No label could be read from {str(path)!r}: {reasons}.")
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
    unread = [a for a in answers if a.reason] + replaced
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
    ratings = [(a.item, folded(a.annotator), a) for a in given if a.question == question]
    reasons = {(a.item, folded(a.annotator)): a.value for a in given if a.question == rationale}
    latest = {(item, person): a for item, person, a in ratings}
    for (item, person), a in latest.items():
        who = names.setdefault(person, a.annotator)
        people[who] = value, why = (f"label: {who}", f"rationale: {who}")
        rows[item] |= {value: a.value, why: a.rationale or reasons.get((item, person))}
    replaced = [
        a._replace(reason=f"{a.value!r} was replaced by the later answer {later.value!r}")
        for item, person, a in ratings
        if (later := latest[item, person]).value != a.value
    ]
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


# -- tools ----------------------------------------------------------------------------------


class Item(NamedTuple):
    fields: dict[str, Any]
    outputs: tuple[str, ...] = ()  # empty where the tool does not tell them apart


class Answer(NamedTuple):
    """What one person said of one item, or the reason why that can't be read."""

    record: int
    item: str
    annotator: str
    question: str
    value: Any
    rationale: str | None
    reason: str


def _answer(
    record: int, item: str, who: Any, question: Any, raw: Any = None, why: Any = "", fault: str = ""
) -> Answer:
    """Return an answer; none, or several at once, are a fault."""
    while isinstance(raw, (list, dict)) and len(raw) == 1:
        raw = next(iter(raw.values() if isinstance(raw, dict) else raw))
    if not fault and raw in (None, [], {}):
        fault = "no value"
    elif not fault and isinstance(raw, (list, dict)):
        fault = f"several values at once: {json.dumps(raw)[:80]}"
    return Answer(record, item, str(who or "annotator"), str(question), raw, why or None, fault)


def _label_studio(records: Sequence[Record], items: dict[str, Item], _: object) -> Iterator[Answer]:
    for number, record in enumerate(records):
        key = str(record.get("id", number))
        items[key] = Item(dict(record["data"]))
        for given in record.get("annotations") or []:
            who, results = given.get("completed_by"), given.get("result") or []
            who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
            if given.get("was_cancelled"):
                yield _answer(number, key, who, "", fault="skipped by the annotator")
            elif not results:
                yield _answer(number, key, who, "")
            else:
                texts = [r["value"]["text"] for r in results if r.get("type") == "textarea"]
                why = "\n".join(t if isinstance(t, str) else "\n".join(t) for t in texts)
                for result in [r for r in results if r.get("type") != "textarea"]:
                    rating = result.get("value")  # such as {"choices": ["good"]}
                    yield _answer(number, key, who, result.get("from_name"), rating, why)


def _is_argilla(record: Record) -> bool:
    return {"fields", "responses"} <= {*record} or any(k.endswith(".responses") for k in record)


def _argilla(records: Sequence[Record], items: dict[str, Item], _: object) -> Iterator[Answer]:
    for number, record in enumerate(records):
        key = str(record.get("id") or record.get("external_id") or number)
        fields, responses = _argilla_parts(record)
        items[key] = Item(dict(fields))
        for name, r in responses:
            state = str(r.get("status") or "submitted").lower().rsplit(".", 1)[-1]
            fault = "" if state == "submitted" else f"a response that is {state}"
            yield _answer(number, key, r.get("user_id"), name, r.get("value"), fault=fault)


def _argilla_parts(record: Record) -> tuple[Record, list[tuple[str, Record]]]:
    """Return the fields, and each response with its question, of a record or a dataset's row."""
    if isinstance(known := record.get("fields"), dict):
        given = record.get("responses") or {}
        return known, [(name, one) for name, several in given.items() for one in several]
    about = {"id", "_server_id", "external_id", "status", "metadata", "vectors"}
    fields = {k: v for k, v in record.items() if k not in about and "." not in k}
    responses: list[tuple[str, Record]] = []
    for name in [k.removesuffix(".responses") for k in record if k.endswith(".responses")]:
        cells = (record.get(f"{name}.responses{k}") or [] for k in ("", ".users", ".status"))
        keys = ("value", "user_id", "status")
        responses += [(name, dict(zip(keys, row, strict=True))) for row in zip_longest(*cells)]
    return fields, responses


_APART = "the {} that it is about is not in the file; put {} into one JSONL file"


def _langsmith(records: Sequence[Record], items: dict[str, Item], _: object) -> Iterator[Answer]:
    keys = [str(r.get("run_id") or r.get("id") or n) for n, r in enumerate(records)]
    for key, record in zip(keys, records, strict=True):
        if record.get("inputs") is not None:
            items[key] = _item(record["inputs"], record.get("outputs"))
    for number, (key, record) in enumerate(zip(keys, records, strict=True)):
        for f in record.get("feedback") or ([record] if "key" in record else []):
            source = f.get("feedback_source") or {}
            who = source.get("user_name") or source.get("user_id") or f.get("created_by")
            fault = "given by a model" * (source.get("type") in ("model", "auto_eval"))
            fault = fault or _APART.format("run", "runs and feedback") * (key not in items)
            value = f.get("value") if f.get("value") is not None else f.get("score")
            yield _answer(number, key, who, f.get("key"), value, f.get("comment"), fault)


_SCORE = {"trace_id", "name", "value"}


def _langfuse(records: Sequence[Record], items: dict[str, Item], _: object) -> Iterator[Answer]:
    records = [_snake(record) for record in records]
    steps = [_snake(o) for r in records for o in r.get("observations") or [] if isinstance(o, dict)]
    found: dict[str, Item] = {}
    for number, record in enumerate([*records, *steps]):
        if "input" in record:
            key = str(record.get("id") or record.get("trace_id") or number)
            found[key] = _item(record["input"], record.get("output"), "input", "output")
            if not record.get("trace_id"):  # observations are items where somebody rated them
                items[key] = found[key]
    for number, record in enumerate(records):
        own = record.get("id") or record.get("trace_id") or number
        given = record.get("scores") or [record] * ({*record} >= _SCORE)
        for score in (_snake(one) for one in given if isinstance(one, dict)):  # and no id
            what = "observation" if score.get("observation_id") else "trace"
            key = str(score.get(f"{what}_id") or own)
            value = score.get("value") if (text := score.get("string_value")) is None else text
            if score.get("data_type") == "BOOLEAN":
                value = str(value).lower() in ("1", "1.0", "true")
            who = score.get("author_user_name") or score.get("author_user_id")
            source = score.get("source") or "ANNOTATION"
            fault = "" if source == "ANNOTATION" else f"given by {source}, not in an annotation"
            fault = fault or _APART.format(what, f"{what}s and scores") * (key not in found)
            if not fault:
                items[key] = found[key]
            yield _answer(number, key, who, score.get("name"), value, score.get("comment"), fault)


def _snake(record: Record) -> Record:
    """Return a record with the names that blob storage has: ``trace_id`` for ``traceId``."""
    return {re.sub("[A-Z]", lambda c: f"_{c[0].lower()}", k): v for k, v in record.items()}


def _prodigy(
    records: Sequence[Record], items: dict[str, Item], rationale: str | None
) -> Iterator[Answer]:
    about = {"label", "answer", "accept", "options", "config", "meta", "spans", "tokens"}
    several = len({str(r.get("label")) for r in records}) > 1
    for number, record in enumerate(records):
        # What a block for free text stores; elsewhere it is a field of the application's.
        is_typed = record.get("_view_id", "blocks") in ("blocks", "text_input")
        reason = rationale or "user_input" * is_typed
        fields = {k: v for k, v in record.items() if k not in (*about, reason) and k[:1] != "_"}
        # Prodigy's own hash does not cover all of them: two answers to a question may share it.
        key = digest(fields)
        items[key] = Item(fields)
        decision, label, fault = record.get("answer"), record.get("label"), ""
        value: Any = label if several else decision
        if "accept" in record or "options" in record:
            value = record.get("accept") or []
            fault = "all options were rejected" * (decision == "reject")
        elif several and decision == "reject":
            fault = f"rejected as {label!r}, which does not say what it is"
        if decision not in ("accept", "reject"):
            fault = "skipped by the annotator"
        who = record.get("_annotator_id") or record.get("_session_id")
        yield _answer(number, key, who, "label", value, record.get(reason), fault)


def _item(inputs: Any, outputs: Any, one: str = "inputs", two: str = "outputs") -> Item:
    """Return an item of both sides, each a dict or one value; names that both have say which."""
    asked = dict(inputs) if isinstance(inputs, dict) and inputs else {one: inputs}
    answer = dict(outputs) if isinstance(outputs, dict) and outputs else {two: outputs}
    answer = {f"{two}.{k}" if k in asked else k: v for k, v in answer.items()}
    return Item(asked | answer, tuple(answer))


_TOOLS: dict[str, tuple[Callable[[Record], bool], Callable[..., Iterator[Answer]]]] = {
    # Records of Prodigy may have any other fields.
    "Prodigy": (
        lambda r: (
            "_task_hash" in r
            or (r.get("answer") in ("accept", "reject", "ignore") and not _is_argilla(r))
        ),
        _prodigy,
    ),
    "Label Studio": (lambda r: {"data", "annotations"} <= {*r}, _label_studio),
    "Argilla": (_is_argilla, _argilla),
    "Langfuse": (lambda r: isinstance(r.get("scores"), list) or {*_snake(r)} >= _SCORE, _langfuse),
    "LangSmith": (
        lambda r: isinstance(r.get("feedback"), list) or {"run_id", "key"} <= {*r},
        _langsmith,
    ),
}
"""How a record of each tool is told, and read."""


def _tool_of(records: Sequence[Record], file: str) -> str:
    """Return the name of the tool; a `TableError` where the records come from none of them."""
    told = (tool for r in records for tool, (is_one, _) in _TOOLS.items() if is_one(r))
    if tool := next(told, ""):
        return tool
    found = ", ".join(map(repr, list(records[0])[:12]))
    raise TableError(
        f"{file!r} looks like no export of {', '.join(_TOOLS)}: its records have the fields "
        f"{found}. workbench.read_dataset reads tables with columns of ratings, or one row a label."
    )
