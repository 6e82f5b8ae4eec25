"""The MLflow store: its database and experiments, and what it says when it fails."""

from __future__ import annotations

import logging
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import requests
import tenacity
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url

from workbench import compat
from workbench.credentials import scrubbed, without_credentials
from workbench.errors import StoreError, WorkbenchError
from workbench.formatting import check_text

_log = logging.getLogger(__name__)


def address() -> str:
    """Return where the store is, without user, password and query."""
    return without_credentials(mlflow.get_tracking_uri())


_SQL = re.compile(r"\[SQL:|sqlalche\.me|\((sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)\S*\.\w+\)")


def store_message(error: BaseException) -> str:
    """Return what a failure means, without SQL, which goes to the log, and without credentials."""
    text = scrubbed(str(error), mlflow.get_tracking_uri())
    if re.search(r"error code 401 != 200|^UNAUTHENTICATED\b", text):
        return (
            "it does not accept user and password (401). Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if re.search("Max retries exceeded|Connection refused|NameResolutionError", text):
        return (
            f"no server answers at {address()}. Check that it runs and that MLFLOW_TRACKING_URI "
            "names it; what was written before stays"
        )
    if not (found := _SQL.search(text)):
        return text
    _log.info("the MLflow store failed: %s", text)
    reason = re.split(r"\[SQL:|\n", text[found.start() :])[0]
    reason = _SQL.sub("", reason).strip() or type(error).__name__
    return f"the database reported an error ({reason}); logger {__name__!r} has it at INFO"


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise a failure of the store as a `StoreError`, unless MLflow's own words can stand."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        message = store_message(error)
        if message == str(error):
            raise
        raise StoreError(f"The MLflow store {address()} failed: {message}") from None


def _may_pass(error: BaseException) -> bool:
    """Whether trying again may help: a locked database, a lost connection."""
    if isinstance(error, MlflowException):
        text = str(error).lower().partition("[sql:")[0]  # without the values that were written
        if re.search("readonly database|disk is full|no space left|no such (table|column)", text):
            return False  # though MLflow calls all of them temporary
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or "database is locked" in text
    return isinstance(error, (ConnectionError, requests.ConnectionError))


retrying = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_may_pass),
    # MLflow itself waits 20 s for a lock, and retries what fails on the way to a server.
    stop=tenacity.stop_after_delay(90) | tenacity.stop_after_attempt(8),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
    reraise=True,
)
"""Call a function of MLflow's store again while its failure may pass."""


def write(what: str, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function that writes, again while its failure may pass, else raise `StoreError`."""
    try:
        retrying(function, *arguments)
    except Exception as error:
        raise StoreError(
            f"{what} could not be written to {address()}: {store_message(error)}. What was written "
            "before stays; run the same call again to write the rest."
        ) from None


def prepare_database(uri: str, *, create: Callable[[Path], None] = compat.create_tables) -> None:
    """Make the SQLite database of a store where it is missing or was left half-made.

    MLflow makes its tables in place for ten seconds and more; where it is stopped meanwhile, it
    cannot use what is left. Here the file is made beside and then given its name; a half-made one
    without data is set aside as ``NAME.incomplete``. Other files are left to MLflow.
    """
    if (path := file_of(uri)) is None:
        return
    while (half_made := _is_half_made(path)) and time.time() - path.stat().st_mtime < 5:
        time.sleep(0.2)  # another process may still be making its tables
    if path.exists() and not half_made:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        create(made)
        if _is_half_made(path):
            aside = path.with_name(f"{path.name}.incomplete")
            _log.warning("%s was left half-made and holds no data; now %s", path, aside.name)
            path.replace(aside)
        if not path.exists():  # unless another process was faster
            made.rename(path)


def file_of(uri: str) -> Path | None:
    """Return the SQLite file of a store; None where it is no file."""
    database = make_url(uri).database if uri.startswith("sqlite") else None
    in_memory = database in (None, "", ":memory:") or str(database).startswith("file:")
    return None if in_memory else Path(str(database))


def _is_half_made(path: Path) -> bool:
    """Whether the file holds only some of MLflow's tables, or none, and was never used."""
    if not path.exists():
        return False
    try:
        # Opening it also rolls back what a killed process had not committed.
        with closing(sqlite3.connect(path, timeout=20)) as database:
            tables = list(database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
            if ("experiments",) not in tables:
                return not tables  # else it is somebody else's database
            marked = ("alembic_version",) in tables
            found = database.execute("SELECT version_num FROM alembic_version") if marked else ()
            # MLflow makes the first experiment once all tables are there.
            used = database.execute("SELECT 1 FROM experiments").fetchone()
            return list(found) != [(compat.latest_schema(),)] and not used
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} cannot be opened as an SQLite database: {error}. Check that this user may "
            "read and write it and that no other program holds it, or give another tracking URI."
        ) from None


@store_errors()
def find_experiment_id(experiment: str | None = None, *, create: bool = True) -> str:
    """Return the id of the active experiment, or of one by its id or name, created if missing."""
    if experiment is None:
        return compat.active_experiment_id()
    name = str(getattr(experiment, "experiment_id", experiment))
    check_text("experiment", name)
    found = None
    if re.fullmatch("[0-9]{1,18}", name):
        try:
            found = mlflow.get_experiment(name)
        except MlflowException as error:  # there is no such id
            if _may_pass(error):
                raise
    found = found or mlflow.get_experiment_by_name(name)
    if found is None and create:
        with suppress(MlflowException):  # another process was faster to create it
            return str(mlflow.create_experiment(name))
        found = mlflow.get_experiment_by_name(name)
    if found is None:
        raise StoreError(
            f"There is no experiment {name!r} in {address()}. Check the name "
            "and the tracking URI (mlflow.set_tracking_uri)."
        )
    return check_not_deleted(found)


@store_errors()
def check_not_deleted(experiment: str | Experiment) -> str:
    """Return the id of an experiment, given by its id; `StoreError` where it was deleted."""
    found = mlflow.get_experiment(str(experiment)) if isinstance(experiment, str) else experiment
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"Experiment {found.name!r} was deleted. Restore it "
            f"(mlflow.MlflowClient().restore_experiment({found.experiment_id!r})) or use another."
        )
    return str(found.experiment_id)


def all_pages(read: Callable[[str | None], Any]) -> list[Any]:
    """Return the items of all pages; ``read`` takes the token of a page, None for the first."""
    page = read(None)
    found = list(page)
    while page.token:
        page = read(page.token)
        found += page
    return found
