"""A sweep in MLflow: a parent run, and below it a child for each of its runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from workbench.errors import ArgumentError, StoreError
from workbench.experiments.execution import Result
from workbench.experiments.records import TAKEN
from workbench.store.database import (
    address,
    check_not_deleted,
    find_experiment_id,
    retrying,
    store_errors,
)

NAME_TAG = "workbench.sweep"
IDENTITY_TAG = "workbench.sweep_identity"
KEY_TAG = "workbench.run_key"
STATUS_TAG = "workbench.status"
ROW_TAG = "workbench.row"  # numbered from 0: a child's `Result` as JSON, in pieces

PIECE = 4500  # characters that every store accepts in a tag
_MLFLOW_STATUS = {"complete": "FINISHED", "cancelled": "KILLED"}
# Files that are logged; not a notebook's own store, nor what it downloads.
_KEPT = {".ipynb", ".html", ".json", ".csv", ".png", ".svg", ".pdf"}


class SweepRun:
    """The run of a sweep in the active store; processes take turns by the file ``lock``."""

    def __init__(self, name: str, identity: str, lock: Path, notebook: str) -> None:
        self.client, self.lock = mlflow.MlflowClient(), lock
        # MLflow's store of files takes nothing but text.
        self.experiment_id = str(check_not_deleted(find_experiment_id()))
        equal = f"tags.`{IDENTITY_TAG}` = '{identity}'"
        with store_errors(), FileLock(lock):
            found = self.client.search_runs([self.experiment_id], equal)
            if found:
                self.run_id = found[0].info.run_id
            else:
                tags = resolve_tags() | {NAME_TAG: name, IDENTITY_TAG: identity}
                made = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
                self.run_id = made.info.run_id
                self.client.log_param(self.run_id, "notebook", notebook)
            self.client.update_run(self.run_id, status="RUNNING")

    def write(self, result: Result) -> None:
        """Log a run below the sweep, unless it is there."""
        with FileLock(self.lock):
            known = logged(self.experiment_id, self.run_id, result.key).get(result.key, [])
            if result.started not in [one.started for one in known]:
                retrying(self._write, result)

    def _write(self, result: Result) -> None:
        tags = {MLFLOW_PARENT_RUN_ID: self.run_id, KEY_TAG: result.key, STATUS_TAG: result.status}
        begun, ended = (int(1000 * (result.started + s)) for s in (0, result.seconds))
        name = ", ".join(f"{k}={v}" for k, v in result.parameters.items())[:250] or None
        made = self.client.create_run(
            self.experiment_id, start_time=begun, run_name=name, tags=resolve_tags(tags)
        )
        run_id, status = made.info.run_id, "FAILED"
        try:
            self._fill(run_id, result, ended)
            status = _MLFLOW_STATUS.get(result.status, "FAILED")
        finally:  # a child that the store did not take whole is none of the sweep's, nor goes on
            self.client.set_terminated(run_id, status, end_time=ended)

    def _fill(self, run_id: str, result: Result, ended: int) -> None:
        """Write what there is of a run, its row last: a child without it does not count."""
        found = {"seconds": result.seconds, **result.recorded}
        numbers = {k: float(n) for k, n in found.items() if isinstance(n, (int, float))}
        own = result.folder + os.sep  # in which figures are
        texts = {k: t for k, t in found.items() if isinstance(t, str) and own not in t}
        self.client.log_batch(
            run_id,
            params=[Param(name, str(value)[:500]) for name, value in result.parameters.items()],
            metrics=[Metric(name, value, ended, 0) for name, value in numbers.items()],
            tags=[RunTag(name, text[:PIECE]) for name, text in texts.items()],
        )
        # The folder of a run that was not begun is of an earlier attempt.
        for file in sorted(Path(result.folder).glob("*")) if result.started else ():
            if file.is_file() and file.suffix in _KEPT:
                self.client.log_artifact(run_id, str(file))
            elif file.name == "figures":
                self.client.log_artifacts(run_id, str(file), file.name)
        row = json.dumps(asdict(result))
        pieces = enumerate(range(0, len(row), PIECE))
        rows = [RunTag(f"{ROW_TAG}.{n}", row[at : at + PIECE]) for n, at in pieces]
        self.client.log_batch(run_id, tags=rows)

    def end(self, status: str) -> None:
        """End the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        with suppress(MlflowException, OSError):  # which a child has told already
            self.client.set_terminated(self.run_id, status)


def logged(experiment_id: str, parent: str, key: str = "") -> dict[str, list[Result]]:
    """Return what was logged of each run of a sweep, or of one, by its key: the latest last."""
    where = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'"
    where += f" AND tags.`{KEY_TAG}` = '{key}'" if key else ""
    children: Any = mlflow.search_runs([experiment_id], where, output_format="list")
    found: dict[str, list[Result]] = {}
    for child in children:
        tags = child.data.tags
        result = Result.read("".join(tags.get(f"{ROW_TAG}.{n}", "") for n in range(len(tags))))
        if result:  # else it was not written to its end
            found.setdefault(result.key, []).append(result)
    return {key: sorted(each, key=lambda one: one.started) for key, each in found.items()}


def table_of(results: Sequence[Result], run_id: str) -> pd.DataFrame:
    """Return the table of `sweep`, a row a run."""
    given = pd.DataFrame([one.parameters for one in results])
    for name in map(str, given):
        values = [one.parameters.get(name) for one in results]
        if None in values and all(type(value) in (int, type(None)) for value in values):
            given[name] = pd.array(values, dtype="Int64")  # stay whole beside what is not given
    ends = [(one.status, one.error, one.seconds or None) for one in results]
    recorded = pd.DataFrame([one.recorded for one in results])
    recorded = recorded.rename(columns={name: f"{name}_recorded" for name in given})
    parts = [given, pd.DataFrame(ends, columns=[*TAKEN[:3]]), recorded]
    table = pd.concat(parts, axis=1).assign(folder=[one.folder for one in results])
    table.attrs["sweep"] = run_id
    return table


@store_errors()
def runs(sweep: str | pd.DataFrame) -> pd.DataFrame:
    """Return the table of a sweep as it stands in MLflow, a row a run (see `sweep`).

    Parameters
    ----------
    sweep
        Name of a sweep in the active experiment, of which the latest counts, or id of its MLflow
        run: all runs that it ever had. Or a table that `sweep` returned: the runs in it.

    Raises
    ------
    ArgumentError
        For a table of something else.
    StoreError
        Where there is no such sweep.
    """
    folders: dict[str, str] = {}
    if isinstance(sweep, pd.DataFrame):
        if "sweep" not in sweep.attrs:
            raise ArgumentError("This table is none that workbench.sweep returned. Give a name.")
        folders = {Path(folder).name: folder for folder in sweep.get("folder", ())}
        sweep = str(sweep.attrs["sweep"])
    named = f"tags.`{NAME_TAG}` = '{str(sweep).replace(chr(39), '')}'"
    found: Any = mlflow.search_runs(filter_string=named, output_format="list")  # the latest first
    with suppress(MlflowException):
        found = found or [mlflow.get_run(sweep)]
    if not found or NAME_TAG not in found[0].data.tags:
        raise StoreError(
            f"There is no sweep {sweep!r} in the active experiment (mlflow.set_experiment) of "
            f"{address()}. Check both."
        )
    parent = found[0].info
    last = {k: each[-1] for k, each in logged(parent.experiment_id, parent.run_id).items()}
    results = sorted(last.values(), key=lambda one: one.position)
    if folders:
        results = [last[key].moved(place) for key, place in folders.items() if key in last]
    return table_of(results, parent.run_id)
