"""What tools for labelling export: their documented JSON and JSONL.

Label Studio (JSON), Argilla (records of 1.x and 2.x, also as rows of a dataset), LangSmith (runs
with feedback), Langfuse (traces and observations with scores), Prodigy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, TypeAlias

from workbench.errors import TableError
from workbench.store.tables import digest

Record: TypeAlias = Mapping[str, Any]


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
    single = ("choices", "rating", "number", "taxonomy", "pairwise")
    for number, record in enumerate(records):
        key = str(record.get("id", number))
        items[key] = Item(dict(record["data"]))
        for given in record.get("annotations") or record.get("completions") or []:
            who, results = given.get("completed_by"), given.get("result") or []
            who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
            if given.get("was_cancelled") or not results:
                fault = "skipped by the annotator" if given.get("was_cancelled") else "no value"
                yield _answer(number, key, who, "", fault=fault)
                continue
            texts = [r["value"]["text"] for r in results if r.get("type") == "textarea"]
            why = "\n".join(t if isinstance(t, str) else "\n".join(t) for t in texts)
            for result in results:
                kind, value = str(result.get("type")), result.get("value") or {}
                fault = f"an answer of type {kind!r} holds no single rating" * (kind not in single)
                if kind != "textarea":
                    rating = value.get("selected" if kind == "pairwise" else kind)
                    yield _answer(number, key, who, result.get("from_name"), rating, why, fault)


def _is_argilla(record: Record) -> bool:
    return {"fields", "responses"} <= {*record} or any(
        name.endswith(".responses") or _responses(cell) for name, cell in record.items()
    )


def _responses(cell: Any) -> list[Record]:
    """Return the responses that a row of a 1.x dataset holds in a cell; none of other cells."""
    if isinstance(cell, dict) and all(isinstance(each, list) for each in cell.values()):
        # As versions to 1.12 wrote them: a list of each key.
        cell = [dict(zip(cell, row, strict=True)) for row in zip_longest(*cell.values())]
    is_first = isinstance(cell, list) and cell and isinstance(cell[0], dict)
    return list(cell) if is_first and {"user_id", "value"} <= {*cell[0]} else []


def _argilla(records: Sequence[Record], items: dict[str, Item], _: object) -> Iterator[Answer]:
    # A question that nobody answered in a row is an empty cell there.
    asked = {n for r in records for n, c in r.items() if f"{n}-suggestion" in r or _responses(c)}
    for number, record in enumerate(records):
        key = str(record.get("id") or record.get("external_id") or number)
        fields, responses = _argilla_parts(record, asked)
        items[key] = Item(dict(fields))
        for name, r in responses:
            state = str(r.get("status") or "submitted").lower().rsplit(".", 1)[-1]
            fault = "" if state == "submitted" else f"a response that is {state}"
            yield _answer(number, key, r.get("user_id"), name, r.get("value"), fault=fault)


def _argilla_parts(record: Record, asked: set[str]) -> tuple[Record, list[tuple[str, Record]]]:
    """Return the fields, and each response with its question, of a record or a dataset's row."""
    given, known = record.get("responses"), record.get("fields")
    if isinstance(given, list):  # 1.x: one for each person, with all their answers
        values = [(one, one.get("values") or {}) for one in given]
        return known or {}, [(name, one | each[name]) for one, each in values for name in each]
    if isinstance(known, dict):
        return known, [(name, one) for name, several in (given or {}).items() for one in several]
    about = {"id", "_server_id", "external_id", "status", "metadata", "vectors"}
    fields: dict[str, Any] = {}
    responses: list[tuple[str, Record]] = []
    for name, value in record.items():
        if name.endswith(".responses"):  # 2.x
            who, states = (record.get(f"{name}.{k}") or [] for k in ("users", "status"))
            rows = zip_longest(value or [], who, states)
            question, keys = name.removesuffix(".responses"), ("value", "user_id", "status")
            responses += [(question, dict(zip(keys, row, strict=True))) for row in rows]
        elif name in asked:
            responses += [(name, one) for one in _responses(value)]
        elif name not in about and "." not in name and "-suggestion" not in name:
            fields[name] = value
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
    if not any(record.get("feedback") or "key" in record for record in records):
        fault = "feedback_stats holds averages and not who gave what; export the feedback"
        yield _answer(0, "", "", "", fault=fault)


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


def _item(inputs: Any, outputs: Any, *names: str) -> Item:
    """Return an item of both sides, each a dict or one value; names that both have say which."""
    one, two = names or ("inputs", "outputs")
    asked = dict(inputs) if isinstance(inputs, dict) and inputs else {one: inputs}
    answer = dict(outputs) if isinstance(outputs, dict) and outputs else {two: outputs}
    answer = {f"{two}.{k}" if k in asked else k: v for k, v in answer.items()}
    return Item(asked | answer, tuple(answer))


TOOLS: dict[str, tuple[Callable[[Record], bool], Callable[..., Iterator[Answer]]]] = {
    "Label Studio": (
        lambda r: isinstance(r.get("data"), dict) and ("annotations" in r or "completions" in r),
        _label_studio,
    ),
    "Argilla": (_is_argilla, _argilla),
    "Langfuse": (lambda r: isinstance(r.get("scores"), list) or {*_snake(r)} >= _SCORE, _langfuse),
    "LangSmith": (
        lambda r: (
            isinstance(r.get("feedback"), list)
            or "feedback_stats" in r
            or {"run_id", "key"} <= {*r}
        ),
        _langsmith,
    ),
    "Prodigy": (lambda r: r.get("answer") in ("accept", "reject", "ignore"), _prodigy),
}
"""How a record of each tool is told, and read."""


def tool_of(records: Sequence[Record], file: str) -> str:
    """Return the name of the tool; a `TableError` where the records come from none of them."""
    if any("_task_hash" in r for r in records):
        return "Prodigy"  # whose records may have any fields
    told = (tool for r in records for tool, (is_one, _) in TOOLS.items() if is_one(r))
    if tool := next(told, ""):
        return tool
    found = ", ".join(map(repr, list(records[0])[:12]))
    raise TableError(
        f"{file!r} looks like no export of {', '.join(TOOLS)}: its records have the fields "
        f"{found}. workbench.read_dataset reads tables with columns of ratings, or one row a label."
    )
