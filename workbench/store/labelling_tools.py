"""The exports of tools that people label in, read as answers of people about items.

The tools' documented JSON and JSONL: Label Studio (JSON and JSON-MIN), Argilla (records of 1.x and
2.x, also as rows of a dataset), LangSmith (runs with feedback), Langfuse (traces with scores) and
Prodigy (``db-out``). CSV with the same fields is read as well.
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

ANNOTATOR = "annotator"
"""The name of a person whom the export does not name."""


class Answer(NamedTuple):
    """What one person said of one item, or why that can't be read."""

    record: int
    item: str
    annotator: str
    question: str
    value: Any
    rationale: str | None
    fault: str


class Item(NamedTuple):
    inputs: dict[str, Any]
    outputs: dict[str, Any]  # empty where the tool does not tell the two apart


Reader: TypeAlias = Callable[[Sequence[Record], dict[str, Item]], Iterator[Answer]]


def tool_of(records: Sequence[Record], file: str) -> str:
    for record in records[:50]:
        for tool, (is_one, _) in TOOLS.items():
            if is_one(record):
                return tool
    found = ", ".join(map(repr, list(records[0])[:12]))
    raise TableError(
        f"{file!r} looks like no export of {', '.join(TOOLS)}: its records have the fields "
        f"{found}. A table with columns of ratings is read by workbench.read_dataset."
    )


def _answer(
    record: int, item: str, who: Any, question: Any, raw: Any = None, why: Any = "", fault: str = ""
) -> Answer:
    """Return an answer; none, or several at once, are a fault."""
    value = raw
    while isinstance(value, (list, dict)) and len(value) == 1:
        value = next(iter(value.values() if isinstance(value, dict) else value))
    if value is None and not fault:
        fault = "no value"
    if isinstance(value, (list, dict)) and not fault:
        fault = f"several values at once: {json.dumps(value)[:80]}" if value else "no value"
    return Answer(record, item, str(who or ANNOTATOR), str(question), value, why or None, fault)


def _label_studio(records: Sequence[Record], items: dict[str, Item]) -> Iterator[Answer]:
    for number, record in enumerate(records):
        key = str(record.get("id", number))
        items[key] = Item(dict(record["data"]), {})
        for given in record.get("annotations") or record.get("completions") or []:
            who, results = given.get("completed_by"), given.get("result") or []
            who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
            if given.get("was_cancelled"):
                yield _answer(number, key, who, "", fault="skipped by the annotator")
                continue
            texts = [r["value"]["text"] for r in results if r.get("type") == "textarea"]
            why = "\n".join(
                t for text in texts for t in ([text] if isinstance(text, str) else text)
            )
            for result in results:
                kind, value = str(result.get("type")), result.get("value") or {}
                name = "selected" if kind == "pairwise" else kind
                known = kind in ("choices", "rating", "number", "taxonomy", "pairwise")
                fault = "" if known else f"an answer of type {kind!r} holds no single rating"
                if kind != "textarea":
                    about = result.get("from_name")
                    yield _answer(number, key, who, about, value.get(name), why, fault)


def _label_studio_min(records: Sequence[Record], items: dict[str, Item]) -> Iterator[Answer]:
    """Read JSON-MIN: the texts, the task's id, the answers by name, and about the annotation.

    Where nothing stands before the id, as in CSV, any field may be an answer.
    """
    about = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
    for number, record in enumerate(records):
        key = str(record.get("id", number))
        names = list(record)
        before = names[: names.index("id")] if "id" in names else []
        fields = {n: record[n] for n in before or names if n not in about | {"agreement"}}
        items[key] = Item({**items.get(key, Item({}, {})).inputs, **fields}, {})
        for name in names:
            if name not in about | {*before, "agreement"}:
                yield _answer(number, key, record.get("annotator"), name, record[name])


def _is_argilla(record: Record) -> bool:
    lists = [v[0] for v in record.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return (
        {"fields", "responses"} <= {*record}
        or any(k.endswith(".responses") for k in record)
        or any({"user_id", "value"} <= {*first} for first in lists)
    )


def _argilla(records: Sequence[Record], items: dict[str, Item]) -> Iterator[Answer]:
    for number, record in enumerate(records):
        key = str(record.get("id") or record.get("external_id") or number)
        fields, responses = record.get("fields"), record.get("responses")
        if isinstance(responses, list):  # 1.x: one for each person, with all their answers
            asked: dict[str, list[Any]] = {}
            for one in responses:
                for name, value in (one.get("values") or {}).items():
                    asked.setdefault(name, []).append({**one, **value})
        elif isinstance(fields, dict):
            asked = dict(responses or {})
        else:
            fields, asked = _argilla_row(record)
        items[key] = Item(dict(fields or {}), {})
        for name, given in asked.items():
            for r in given:
                state = str(r.get("status") or "submitted").lower().rsplit(".", 1)[-1]
                fault = "" if state == "submitted" else f"a response that is {state}"
                yield _answer(number, key, r.get("user_id"), name, r.get("value"), fault=fault)


def _argilla_row(record: Record) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return fields and responses of a row of a dataset, of 2.x (``label.responses``) or 1.x."""
    about = {"id", "_server_id", "external_id", "status", "metadata", "vectors"}
    fields: dict[str, Any] = {}
    asked: dict[str, list[Any]] = {}
    for name, value in record.items():
        question, _, rest = name.partition(".responses")
        if name.endswith(".responses"):
            who, states = (record.get(f"{name}.{k}") or [] for k in ("users", "status"))
            rows = zip_longest(value or [], who, states)
            asked[question] = [{"value": v, "user_id": w, "status": s} for v, w, s in rows]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            asked[name] = value
        elif name not in about and not rest and "." not in name and "-suggestion" not in name:
            fields[name] = value
    return fields, asked


def _langsmith(records: Sequence[Record], items: dict[str, Item]) -> Iterator[Answer]:
    apart = any("key" in record for record in records)
    keys = [str(r.get("run_id") or r.get("id") or n) for n, r in enumerate(records)]
    for key, record in zip(keys, records, strict=True):
        if record.get("inputs") is not None:
            items[key] = _item(record["inputs"], record.get("outputs"))
    for number, (key, record) in enumerate(zip(keys, records, strict=True)):
        given = record.get("feedback") or ([record] if "key" in record else [])
        for f in given:
            source = f.get("feedback_source") or {}
            who = source.get("user_name") or source.get("user_id") or f.get("created_by")
            fault = "given by a model" * (source.get("type") in ("model", "auto_eval"))
            fault = fault or _APART.format("run", "runs and feedback") * (key not in items)
            value = f.get("value") if f.get("value") is not None else f.get("score")
            yield _answer(number, key, who, f.get("key"), value, f.get("comment"), fault)
        # The averages tell nothing that the feedback does not, where this is in the file.
        for name, stats in ({} if given or apart else record.get("feedback_stats") or {}).items():
            fault = "feedback_stats holds averages and not who gave what; export the feedback"
            yield _answer(number, key, "", name, stats, fault=fault)


def _langfuse(records: Sequence[Record], items: dict[str, Item]) -> Iterator[Answer]:
    records = [_snake(record) for record in records]
    for number, record in enumerate(records):
        if "input" in record:
            key = str(record.get("trace_id") or record.get("id") or number)
            items[key] = _item(record["input"], record.get("output"), "input", "output")
    for number, record in enumerate(records):
        alone = [record] if {*record} >= _SCORE else []
        for score in map(_snake, record.get("scores") or alone):
            key = str(score.get("trace_id") or record.get("id") or number)
            value, text = score.get("value"), score.get("string_value")
            value = value if text is None else text
            if score.get("data_type") == "BOOLEAN":
                value = str(value).lower() in ("1", "1.0", "true")
            who = score.get("author_user_name") or score.get("author_user_id")
            source = score.get("source") or "ANNOTATION"
            fault = "" if source == "ANNOTATION" else f"given by {source}, not in an annotation"
            fault = fault or _APART.format("trace", "traces and scores") * (key not in items)
            yield _answer(number, key, who, score.get("name"), value, score.get("comment"), fault)


def _snake(record: Record) -> Record:
    """Return a record with the names that blob storage has: ``trace_id`` for ``traceId``."""
    return {re.sub("[A-Z]", lambda c: f"_{c[0].lower()}", k): v for k, v in record.items()}


def _prodigy(records: Sequence[Record], items: dict[str, Item]) -> Iterator[Answer]:
    about = {"label", "answer", "accept", "options", "config", "meta", "spans", "tokens"}
    several = len({str(r.get("label")) for r in records}) > 1
    for number, record in enumerate(records):
        fields = {k: v for k, v in record.items() if k not in about and not k.startswith("_")}
        key = str(record.get("_input_hash") or digest(fields))
        items[key] = Item(fields, {})
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
        yield _answer(number, key, who, "label", value, fault=fault)


def _item(inputs: Any, outputs: Any, *names: str) -> Item:
    sides = zip((inputs, outputs), names or ("inputs", "outputs"), strict=True)
    return Item(*(dict(v) if isinstance(v, dict) and v else {name: v} for v, name in sides))


_APART = "the {} that it is about is not in the file; put {} into one JSONL file"
_SCORE = {"trace_id", "name", "value"}
MIN = "Label Studio JSON-MIN"

TOOLS: dict[str, tuple[Callable[[Record], bool], Reader]] = {
    "Label Studio": (
        lambda r: isinstance(r.get("data"), dict) and ("annotations" in r or "completions" in r),
        _label_studio,
    ),
    "Argilla": (_is_argilla, _argilla),
    "Langfuse": (
        lambda r: isinstance(r.get("scores"), list) or {*_snake(r)} >= _SCORE,
        _langfuse,
    ),
    "LangSmith": (
        lambda r: bool({"feedback", "feedback_stats"} & {*r}) or {"run_id", "key"} <= {*r},
        _langsmith,
    ),
    "Prodigy": (
        lambda r: "_task_hash" in r or r.get("answer") in ("accept", "reject", "ignore"),
        _prodigy,
    ),
    MIN: (lambda r: "annotation_id" in r, _label_studio_min),
}
