"""Where a notebook puts its store, experiment and summary."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import mlflow
import pytest

import workbench
from workbench.errors import StoreError


@pytest.fixture(autouse=True)
def _restored(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nobody has chosen a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_the_store_is_a_file_in_the_folder(tmp_path: Path) -> None:
    workspace = workbench.use_workspace(tmp_path / "new" / "out", experiment="align")
    assert workspace.tracking_uri == f"sqlite:///{tmp_path}/new/out/mlflow.db"
    assert mlflow.get_tracking_uri() == workspace.tracking_uri
    assert (tmp_path / "new" / "out" / "mlflow.db").is_file()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/out cannot be made: .*Name another"):
        workbench.use_workspace(tmp_path / "file" / "out", experiment="align")


def test_a_folder_that_cannot_be_written_to_is_told() -> None:
    """As /proc, in which nobody makes files."""
    with pytest.raises(StoreError, match=r"/proc cannot be made: .*Name another"):
        workbench.use_workspace("/proc", experiment="align")


def test_artifacts_stay_in_the_folder(tmp_path: Path) -> None:
    workbench.use_workspace("out", experiment="align")
    with mlflow.start_run():
        mlflow.log_text("kept", "note.txt")
    assert list((tmp_path / "out" / "artifacts").rglob("note.txt"))
    assert not (tmp_path / "mlruns").exists()


def test_the_experiment_is_active_and_made_once(tmp_path: Path) -> None:
    first = workbench.use_workspace("out", experiment="align")
    again = workbench.use_workspace("out", experiment="align")
    assert first == again
    with mlflow.start_run() as run:
        assert run.info.experiment_id == first.experiment_id


def test_each_folder_has_its_own_store_within_one_process(tmp_path: Path) -> None:
    first = workbench.use_workspace("one", experiment="align")
    second = workbench.use_workspace("two", experiment="align")
    assert first.tracking_uri != second.tracking_uri
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_environment_names_the_store_unless_the_call_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = f"sqlite:///{tmp_path}/chosen.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", chosen)
    assert workbench.use_workspace("out", experiment="align").tracking_uri == chosen
    other = f"sqlite:///{tmp_path}/other.db"
    given = workbench.use_workspace("out", experiment="align", tracking_uri=other)
    assert given.tracking_uri == other
    assert os.environ["MLFLOW_TRACKING_URI"] == chosen


def test_a_new_store_is_set_up_without_noise(capfd: pytest.CaptureFixture[str]) -> None:
    workbench.use_workspace("out", experiment="align")
    assert capfd.readouterr() == ("", "")


def test_what_a_program_does_not_log_stays_unlogged(tmp_path: Path) -> None:
    logging.disable(logging.WARNING)
    try:
        workbench.use_workspace("out", experiment="align")
        assert not logging.getLogger().isEnabledFor(logging.WARNING)
    finally:
        logging.disable(logging.NOTSET)


def test_the_address_is_kept_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    set_uri = mlflow.set_tracking_uri
    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda _: set_uri(uri))
    secret = "postgresql://me:pw-4711@db.example:5432/mlflow"
    made = workbench.use_workspace(tmp_path, experiment="align", tracking_uri=secret)
    assert made.tracking_uri == "postgresql://db.example:5432/mlflow"
    assert "4711" not in made._repr_html_() + repr(made)
