"""How results are shown and stored: HTML that is safe to show, plain data, progress bars."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError

# Control characters but tab and line ends, marks that change the direction of text, surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """Return a text in which what a store refuses (NUL, half a surrogate pair) is U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def unstorable(text: str) -> int:
    """Return how many characters of a text `storable` replaces."""
    return len(_UNSTORABLE.findall(text))


def check_text(argument: str, given: Any) -> None:
    """Raise `ArgumentError` unless an argument is a text that is not blank and can be stored."""
    if not isinstance(given, str) or not given.strip():
        raise ArgumentError(f"{argument}={given!r} must be a non-empty text.")
    if storable(given) != given:
        raise ArgumentError(f"{argument}={given!r} holds characters that cannot be stored.")


def safe_html(markup: str) -> str:
    """Return HTML in which characters that hide or reorder their neighbours are codes."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", markup)


def html_text(value: object) -> str:
    """Return any value as text that is safe within an HTML element."""
    return safe_html(escape(str(value)))


def html_lines(lines: Iterable[object]) -> str:
    """Return lines of text, each a block of its own."""
    return "".join(f"<div>{html_text(line)}</div>" for line in lines)


def html_result(result: object, *tables: pd.DataFrame) -> str:
    """Return the HTML of a result: its repr, and those of the tables that have rows."""
    shown = [html_table(table, index=False, max_rows=10) for table in tables if len(table)]
    return html_lines([repr(result)[1:-1]]) + "".join(shown)


def written(value: object) -> str:
    """Return a rating as people write it: 4, and not 4.0."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def excerpt(value: Any, length: int = 100) -> str:
    """Return the beginning of a value as one line of text, of an object its values."""
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, dict):
        value = " | ".join(str(part) for part in value.values() if part not in (None, ""))
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= length else text[: length - 2] + " …"


def with_content(table: pd.DataFrame, previews: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return a table of traces with the beginnings of inputs and outputs first, a short id last."""
    shown = table.drop(columns="trace_id")
    texts = [previews.get(i, ("", "")) for i in table["trace_id"]]
    if any(map(any, texts)):
        shown.insert(0, "inputs", [excerpt(one) for one, _ in texts])
        shown.insert(1, "outputs", [excerpt(two) for _, two in texts])
    return shown.assign(trace=[i if len(i) <= 12 else i[:11] + "…" for i in table["trace_id"]])


def html_table(table: pd.DataFrame, *, index: bool = True, **options: Any) -> str:
    """Return an HTML table, escaped, with empty cells for nan; ``options`` of ``to_html``."""
    look: dict[str, Any] = {"border": 0, "na_rep": "", "float_format": "{:.3f}".format} | options
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    shown = table.astype(object).map(_cell)
    markup = str(shown.to_html(index=index, escape=True, **look))
    # Notebooks align cells to the right unless each says otherwise.
    styles = ["" if is_number else ' style="text-align: left"' for is_number in numeric] or [""]
    names, cells = itertools.cycle([""] * index + styles), itertools.cycle(styles)
    head, body = markup.split("</thead>", 1)
    head = re.sub("<th>", lambda _: f"<th{next(names)}>", head)
    body = re.sub("<td>", lambda _: f"<td{next(cells)}>", body)
    return safe_html(f"{head}</thead>{body}")


def text_table(table: pd.DataFrame, **options: Any) -> str:
    """Return a table as text, words to the left; ``options`` of ``to_string``."""
    shown = table.copy()
    for column in table.select_dtypes(exclude="number"):
        texts = [excerpt(_cell(value), 40) for value in table[column]]
        width = max(map(len, [str(column), *texts]))
        shown[column] = [text.ljust(width) for text in texts]
    look: dict[str, Any] = {"index": False, "justify": "left"} | options
    return "\n".join(line.rstrip() for line in shown.to_string(**look).splitlines())


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)  # pandas takes no half of a surrogate
    return "" if pd.api.types.is_scalar(value) and pd.isna(value) else value


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all: to a file beside it, which takes its place."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """Return data that JSON takes, from tables, intervals and numpy numbers; nan becomes None."""
    return {str(key): _plain(each) for key, each in data.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def bar(*, total: int | None, desc: str | None, disable: bool = False) -> Any:
    """Return a tqdm bar over ``total`` steps, None where nobody knows how many."""
    look: dict[str, Any] = {}
    if os.environ.get("WORKBENCH_PROGRESS") == "text":
        from tqdm.std import tqdm

        # A log has no cursor: a line now and then rather than one redrawn all the time. On stdout,
        # since saved notebooks show stderr as if something had gone wrong.
        look = {"mininterval": 1.0, "ncols": 90, "file": sys.stdout}
    else:
        from tqdm.auto import tqdm
    return tqdm(total=total, desc=desc, disable=disable or total == 0, **look)


def say(text: str) -> None:
    """Print text where a progress bar may be on the screen."""
    from tqdm.std import tqdm

    tqdm.write(text)


_parsing = threading.Lock()


def read_literal(text: str) -> Any:
    """Return the Python value that a text writes down (`ast.literal_eval`)."""
    # CPython 3.11 counts the depth of all threads' parsers together.
    with _parsing:
        return ast.literal_eval(text)
