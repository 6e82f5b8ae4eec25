"""The SQLite file of a store is made whole or not at all."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from running import active_store

import workbench
from workbench.errors import ArgumentError, StoreError
from workbench.store.database import prepare_database


@pytest.fixture
def create(_empty_store: Path) -> Callable[[Path], None]:
    """Makes a database with all tables in no time, where MLflow takes ten seconds."""
    return lambda path: shutil.copy(_empty_store, path)


def never(path: Path) -> None:
    raise AssertionError("nothing was to be made")


def uri(path: Path) -> str:
    return f"sqlite:///{path}"


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {row[0] for row in database.execute("SELECT name FROM sqlite_master")}


def half_made(path: Path, create: Callable[[Path], None], *statements: str) -> None:
    """What is left where MLflow is stopped while it makes its tables."""
    create(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'an earlier one'")
        database.execute("DROP TABLE label_schemas")
        database.execute("DELETE FROM experiments")
        for statement in statements:
            database.execute(statement)
        database.commit()
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))


def test_a_missing_database_is_made_and_left_alone_from_then_on(
    tmp_path: Path, create: Callable[[Path], None]
) -> None:
    path = tmp_path / "new" / "mlflow.db"
    prepare_database(uri(path), create=create)
    assert "experiments" in tables(path)
    prepare_database(uri(path), create=never)
    assert list(path.parent.iterdir()) == [path]


def test_what_is_stopped_leaves_nothing_half_made(tmp_path: Path) -> None:
    """Whatever was made until then is not under the store's name, and goes."""

    def stopped(made: Path) -> None:
        made.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_database(uri(tmp_path / "mlflow.db"), create=stopped)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("empty", [True, False])
def test_a_half_made_database_without_data_is_made_again(
    tmp_path: Path, create: Callable[[Path], None], empty: bool
) -> None:
    """It is set aside, and the store can be used."""
    path = tmp_path / "mlflow.db"
    half_made(path, create)
    if empty:
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    prepare_database(uri(path), create=create)
    assert "label_schemas" in tables(path)
    assert path.with_name("mlflow.db.incomplete").exists()
    mlflow.set_tracking_uri(uri(path))
    assert [e.name for e in mlflow.search_experiments()] == ["Default"]


def test_a_database_with_data_is_left_to_mlflow(
    tmp_path: Path, create: Callable[[Path], None]
) -> None:
    """An older version's database is somebody's work."""
    path = tmp_path / "mlflow.db"
    half_made(path, create, "INSERT INTO experiments (experiment_id, name) VALUES (0, 'Default')")
    before = path.read_bytes()
    prepare_database(uri(path), create=never)
    assert path.read_bytes() == before


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    prepare_database(uri(path), create=never)
    path.write_text("no database at all" * 100)
    with pytest.raises(StoreError, match="cannot be opened as an SQLite database"):
        prepare_database(uri(path), create=never)


def test_a_database_that_another_process_made_meanwhile_is_kept(
    tmp_path: Path, create: Callable[[Path], None]
) -> None:
    path = tmp_path / "mlflow.db"

    def slower(made: Path) -> None:
        create(made)
        create(path)
        mlflow.set_tracking_uri(uri(path))
        mlflow.create_experiment("theirs")

    prepare_database(uri(path), create=slower)
    assert mlflow.get_experiment_by_name("theirs") is not None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("other", ["http://localhost:5000", "sqlite://", "sqlite:///:memory:"])
def test_other_stores_are_left_alone(other: str) -> None:
    prepare_database(other, create=never)


@pytest.mark.parametrize("call", [workbench.pair, workbench.history])
def test_a_server_that_does_not_answer_is_told_as_such(
    call: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its address and what to do, instead of what an HTTP library says."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told = r"no server answers at http://127\.0\.0\.1:9\. Check that it runs"
    with active_store("http://127.0.0.1:9"), pytest.raises(StoreError, match=told):
        call("good")


def test_an_id_is_not_taken_for_the_name_of_another_experiment(store: str) -> None:
    """Experiments may be named by numbers; an id goes before a name."""
    pilot = mlflow.create_experiment("pilot")
    here = mlflow.create_experiment(pilot)
    there = mlflow.create_experiment(here)
    mlflow.set_experiment(experiment_id=here)
    table = pd.DataFrame({"q": ["a"], "a": ["x"], "ana": ["good"], "ben": ["poor"]})
    roles: dict[str, Any] = {"inputs": "q", "outputs": "a", "labels": {"ana": "ana", "ben": "ben"}}
    made = workbench.import_traces(table, label_name="quality", **roles)
    again = workbench.import_traces(table, label_name="quality", **roles)
    assert (again.trace_ids, again.created, again.experiment_id) == (made.trace_ids, 0, here)
    for text in ("Is it right?", "Is it true?"):
        workbench.set_rubric("quality", text)
    workbench.set_rubric("quality", "Is it nice?", experiment=there)
    asked: dict[str, Any] = {"annotator": "cem", "scale": workbench.Scale.of(["poor", "good"])}
    for name, items, rubric in ((here, 1, "Is it true?"), (there, 0, "Is it nice?")):
        with closing(workbench.LabelSession("quality", experiment=name, **asked)) as session:
            assert (len(session.items), session.questions[0].rubric) == (items, rubric)
    decision = workbench.adjudicate(made.trace_ids[0], "good", name="quality", by="dora")
    assert decision.rubric_version == 2
    assert mlflow.get_experiment(there).name == here


def test_an_experiment_is_made_of_a_name_alone(store: str) -> None:
    """Neither of blanks, nor of what Python shows of an experiment."""
    made = mlflow.get_experiment(mlflow.create_experiment("pilot"))
    table = pd.DataFrame({"q": ["a"], "a": ["x"]})
    roles: dict[str, Any] = {"inputs": "q", "outputs": "a"}
    assert (
        workbench.import_traces(table, **roles, experiment=made).experiment_id == made.experiment_id
    )
    with pytest.raises(ArgumentError, match="experiment='  '"):
        workbench.import_traces(table, **roles, experiment="  ")
    assert len(mlflow.search_experiments()) == 3
