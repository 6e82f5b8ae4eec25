"""The run of an alignment: written before the test, ended with what happened, never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from workbench.alignment.runs import AlignmentRun


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_an_interrupted_run_says_how_it_ended(
    store: str, error: type[BaseException], status: str
) -> None:
    """What was written before stays, so that an interrupted test counts."""
    run = AlignmentRun()

    def interrupted() -> None:
        with run:
            run.begin(
                "test", {"tag": "a"}, {"seed": 3}, {"split.json": {"n": 1}, "notes/a.txt": "ä"}
            )
            raise error

    with pytest.raises(error):
        interrupted()
    logged = mlflow.get_run(run.run_id)
    assert logged.info.status == status
    assert (logged.data.tags["tag"], logged.data.params["seed"]) == ("a", "3")
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.run_id))
    assert json.loads((folder / "split.json").read_text()) == {"n": 1}
    assert (folder / "notes" / "a.txt").read_text(encoding="utf-8") == "ä"


def test_a_finished_run_holds_defined_metrics_only(store: str) -> None:
    """An undefined statistic is no number, and a plot would show it as one."""
    run = AlignmentRun()
    with run:
        run.begin("test", {}, {}, {})
        run.finish({"status": "improved"}, {"accuracy": 0.5, "kappa": float("nan")}, {})
    logged = mlflow.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"accuracy": 0.5}


def test_a_run_is_nested_in_what_was_active_when_it_was_located(store: str) -> None:
    """Another experiment may be active by then."""
    with mlflow.start_run() as parent:
        run = AlignmentRun()
    mlflow.set_experiment("elsewhere")
    run.begin("test", {}, {}, {})
    logged = mlflow.get_run(run.run_id)
    assert logged.info.experiment_id == parent.info.experiment_id
    assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_store_that_refuses_a_run_raises_nothing(store: str) -> None:
    """The first fault is kept."""
    run = AlignmentRun()
    run.experiment_id = "no such experiment"
    with run:
        run.begin("test", {}, {}, {})
        run.finish({}, {"a": 1.0}, {})
    assert run.run_id is None
    assert "no such experiment" in run.fault
