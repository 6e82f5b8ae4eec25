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

_DATA = ("runs", "trace_info", "registered_models", "assessments", "logged_models")
"""Tables in which a row is somebody's work, as is an experiment but for MLflow's default one."""


def prepare_database(uri: str, *, create: Callable[[Path], None] = compat.create_tables) -> None:
    """Make the SQLite database of a store where it is missing or was left half-made.

    It is made beside and then given its name, so that a process that is stopped meanwhile leaves
    nothing half-made. A half-made file that holds nobody's runs, traces or experiments is set
    aside as ``NAME.incomplete`` and made again. Stores that are no SQLite file, and databases
    that hold data, are left to MLflow. A file that is no database is a `StoreError`.
    """
    database = (make_url(uri).database or ":memory:") if uri.startswith("sqlite") else ":memory:"
    if database == ":memory:" or database.startswith("file:"):
        return
    path = Path(database)
    while _is_half_made(path) and time.time() - path.stat().st_mtime < 5:
        time.sleep(0.2)  # another process may still be making its tables
    if path.exists() and not _is_half_made(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        create(made)
        if _is_half_made(path):
            aside = path.with_name(f"{path.name}.incomplete")
            _log.warning("%s was left half-made and holds no data; now %s", path, aside.name)
            path.replace(aside)
        try:
            os.link(made, path)  # fails where another process was faster
        except OSError:
            if not path.exists():  # a file system without links
                made.rename(path)


def _is_half_made(path: Path) -> bool:
    """Whether the file holds only some of MLflow's tables, or none, and nobody's data."""
    if not path.exists():
        return False
    try:
        # Opening it also rolls back what a killed process had not committed.
        with closing(sqlite3.connect(path, timeout=20)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in names}
            if tables and "experiments" not in tables:
                return False  # somebody else's database
            version = None
            if "alembic_version" in tables:
                version = database.execute("SELECT version_num FROM alembic_version").fetchone()
            data = [f"SELECT 1 FROM {table}" for table in _DATA if table in tables]
            data += ["SELECT 1 FROM experiments WHERE experiment_id <> 0"] if tables else []
            holds_data = any(database.execute(query).fetchone() for query in data)
            return version != (compat.latest_schema(),) and not holds_data
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} cannot be read as an SQLite database: {error}. Give another folder or "
            "tracking URI, or move the file away."
        ) from None
