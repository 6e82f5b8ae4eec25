"""A store with many traces in a second; to import them would take a minute."""

from __future__ import annotations

import base64
import itertools
import sqlite3
import uuid

# Tables with rows of a trace, and the column that names it.
_TABLES = {"trace_info": "request_id", "trace_tags": "request_id", "spans": "trace_id"}


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
