"""Items long and short, and a store with many in a second; to import them would take a minute."""

from __future__ import annotations

import base64
import itertools
import sqlite3
import uuid

import pandas as pd

# Tables with rows of a trace, and the column that names it.
_TABLES = {"trace_info": "request_id", "trace_tags": "request_id", "spans": "trace_id"}


def long_and_short(n: int) -> pd.DataFrame:
    """Items as they come: most of about 2,000 characters, and one of ten is long."""
    steps = "1. Open *Settings* and choose `Billing`\n2. Pick the **{n}** plan, then confirm\n\n"
    table = "| plan | seats | price |\n|---|---|---|\n| Basic | 1 | 9 |\n| Team | {n} | 29 |\n\n"
    usual = steps + table + "It takes effect on the first day of the month. " * 38
    markdown, plain = (steps + table) * 180, usual * 20  # just short enough to be set, and longer
    answers = [(plain if i % 20 == 3 else markdown if i % 20 == 11 else usual) for i in range(n)]
    return pd.DataFrame(
        {
            "question": [f"Which plan do {i} people need, and how do we get it?" for i in range(n)],
            "answer": [answer.replace("{n}", str(i)) for i, answer in enumerate(answers)],
        }
    )


def multiply(database: str, n: int) -> None:
    """Copy the traces of an SQLite store, each under an id of its own, until there are ``n``."""
    with sqlite3.connect(database) as store:
        rows = {}
        for table, named in _TABLES.items():
            # Columns that the database works out by itself are not listed.
            columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
            found = store.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
            rows[table] = (columns, columns.index(named), found)
        known = [row[rows["trace_info"][1]] for row in rows["trace_info"][2]]
        new = {
            (source, f"tr-{uuid.uuid4().hex}")
            for source in itertools.islice(itertools.cycle(known), n - len(known))
        }
        for table, (columns, at, found) in rows.items():
            by_trace: dict[str, list[tuple[object, ...]]] = {}
            for row in found:
                by_trace.setdefault(row[at], []).append(row)
            values = ", ".join("?" * len(columns))
            store.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})",
                [
                    tuple(_renamed(cell, source, target) for cell in row)
                    for source, target in new
                    for row in by_trace.get(source, [])
                ],
            )


def _renamed(cell: object, source: str, target: str) -> object:
    if not isinstance(cell, str):
        return cell
    return cell.replace(source, target).replace(_encoded(source), _encoded(target))


def _encoded(trace_id: str) -> str:
    return base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode()
