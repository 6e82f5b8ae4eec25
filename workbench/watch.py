"""What is told of an alignment as it goes on, by whom it can be ended, and where it is logged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import mlflow
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from workbench import store
from workbench.budget import Budget
from workbench.errors import CancelledError

Stage = Literal["preflight", "learning", "testing"]

CANCELLED = (
    "The alignment was cancelled: nothing was tested and the judge stays as it was. Answers that "
    "were paid for are kept; the same call takes it up again."
)


class Watch:
    """Told of an alignment's stages and steps. This one is silent; others listen.

    Attributes
    ----------
    place
        Where the alignment is logged: what was active when this was made.
    stop
        Once it is set nothing more is asked of models, and `align` raises `CancelledError`.
        A held-out test that has begun goes to its end.
    """

    def __init__(self) -> None:
        self.place = Place.active()
        self.stop = threading.Event()

    def enter(self, stage: Stage, preflight: pd.DataFrame | None = None) -> None:
        """A stage begins; ``preflight`` is what is known before learning.

        Raises
        ------
        CancelledError
            When it is to end.
        """
        if self.stop.is_set():
            raise CancelledError(CANCELLED)

    def learning(
        self, optimizer: AlignmentOptimizer, budget: Budget
    ) -> AbstractContextManager[Any]:
        """The context in which the optimizer learns and ``budget`` is spent."""
        return nullcontext()


@dataclass(frozen=True)
class Place:
    """A store, an experiment in it and the run under which others are nested, if there is one."""

    tracking_uri: str
    experiment_id: str
    parent_run_id: str | None

    @classmethod
    def active(cls) -> Place:
        """What is active in this thread now."""
        run = mlflow.active_run()
        # A run that is open decides the experiment, as in MLflow.
        where = run.info.experiment_id if run else store.experiment_id()
        return cls(mlflow.get_tracking_uri(), where, run.info.run_id if run else None)

    def runs(self, filter_string: str) -> list[Any]:
        """The runs in all active experiments of the store that the filter finds, oldest first."""
        client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        everywhere = [e.experiment_id for e in _all(client.search_experiments)]
        found: list[Any] = []
        for begin in range(0, len(everywhere), EXPERIMENTS_AT_ONCE):
            some = everywhere[begin : begin + EXPERIMENTS_AT_ONCE]
            found += _all(client.search_runs, some, filter_string)
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def begin(self, name: str) -> Run:
        """A new run here, whatever is active meanwhile in this thread or another."""
        client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        above = {MLFLOW_PARENT_RUN_ID: self.parent_run_id} if self.parent_run_id else {}
        made = client.create_run(self.experiment_id, run_name=name, tags=resolve_tags(above))
        return Run(client, made.info.run_id)


EXPERIMENTS_AT_ONCE = 200
"""Experiments that one search names."""


def _all(search: Callable[..., Any], *given: Any) -> list[Any]:
    """All pages of what a search finds."""
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = search(*given, page_token=token or None)
        found += page
        token = page.token or None
    return found


class Run:
    """A run that is written to, by the names of MLflow's functions for the active run.

    It stays open until `end`; what a process leaves open that is killed stays in the store.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        told = [Param(key, str(value)) for key, value in params.items()]
        self.client.log_batch(self.run_id, params=told)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        told = [RunTag(key, str(value)) for key, value in tags.items()]
        self.client.log_batch(self.run_id, tags=told)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        now = get_current_time_millis()
        told = [Metric(key, value, now, 0) for key, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=told)

    def log_dict(self, data: dict[str, Any], path: str) -> None:
        self.client.log_dict(self.run_id, data, path)

    def log_text(self, text: str, path: str) -> None:
        self.client.log_text(self.run_id, text, path)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        self.client.set_terminated(self.run_id, status)
