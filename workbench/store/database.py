"""The SQLite file of a local MLflow store: made whole, or not at all.

MLflow makes its tables in place, which takes ten seconds and more. A process that is stopped
meanwhile leaves a file that neither MLflow nor its upgrade can use any more.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

from workbench import compat
from workbench.errors import StoreError

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 5.0
"""Another process may still be making the tables of a file that changed later than this."""

_TABLES_WITH_DATA = ("runs", "trace_info", "registered_models", "assessments", "logged_models")


def prepare_database(uri: str, *, create: Callable[[Path], None] = compat.create_tables) -> None:
    """Make the SQLite database of a store where it is missing or was left half-made.

    It is made beside and then given its name, so that a process that is stopped meanwhile leaves
    nothing half-made. A half-made file that holds nobody's runs, traces or experiments is set
    aside as ``NAME.incomplete`` and made again. Stores that are no SQLite file, and databases
    that hold data, are left to MLflow. A file that is no database is a `StoreError`.
    """
    path = _sqlite_file(uri)
    if path is None or not _needs_making(path):
        return
    while path.exists() and time.time() - path.stat().st_mtime < _IDLE_SECONDS:
        time.sleep(0.2)
        if not _needs_making(path):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        create(made)
        if path.exists() and _needs_making(path):
            _set_aside(path)
        _give_name(made, path)


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return Path(database)


def _needs_making(path: Path) -> bool:
    """Whether the file is missing, or holds only some of MLflow's tables and nobody's data."""
    if not path.exists():
        return True
    try:
        # Opening it also rolls back what a killed process had not committed.
        with closing(sqlite3.connect(path, timeout=20)) as database:
            tables = _column(database, "SELECT name FROM sqlite_master WHERE type = 'table'")
            if not tables:
                return True
            if "experiments" not in tables:
                return False  # somebody else's database
            version = _column(database, "SELECT version_num FROM alembic_version")
            return version != [compat.latest_schema()] and not _holds_data(database)
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} cannot be read as an SQLite database: {error}. Give another folder or "
            "tracking URI, or move the file away."
        ) from None


def _holds_data(database: sqlite3.Connection) -> bool:
    queries = [f"SELECT 1 FROM {table} LIMIT 1" for table in _TABLES_WITH_DATA]
    queries.append("SELECT 1 FROM experiments WHERE experiment_id <> 0 LIMIT 1")
    return any(_column(database, query) for query in queries)


def _column(database: sqlite3.Connection, query: str) -> list[object]:
    """Return the first column of a query; empty where the table does not exist."""
    try:
        return [row[0] for row in database.execute(query)]
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return []


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.incomplete")
    _log.warning("%s was left half-made and holds no data; it is now %s", path, aside.name)
    path.replace(aside)
    for ending in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _give_name(made: Path, path: Path) -> None:
    """Name the new database, unless another process was faster."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            made.rename(path)
