"""The MLflow run of an alignment: begun before the held-out test, ended with its outcome.

Which judge is tested on which items is in the store before the first of them is judged, so the
use of the test set is counted even if the test is interrupted.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import mlflow
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from workbench.errors import CancelledError
from workbench.judging.judge import fingerprint
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.store.traces import find_experiment_id

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.judges.base import AlignmentOptimizer

    from workbench.alignment.result import Alignment

ORIGINAL_TAG = "workbench.fingerprint.original"
ALIGNED_TAG = "workbench.fingerprint.aligned"

Files = Mapping[str, Any]
"""Path within the run -> text, or data to be written as JSON."""


@dataclass(frozen=True)
class RunLocation:
    """A store, an experiment in it, and the parent run, if there is one."""

    tracking_uri: str
    experiment_id: str
    parent_run_id: str | None

    @classmethod
    def active(cls) -> RunLocation:
        """Return what is active in this thread now."""
        run = mlflow.active_run()
        # An open run decides the experiment, as in MLflow.
        experiment = run.info.experiment_id if run else find_experiment_id()
        return cls(mlflow.get_tracking_uri(), experiment, run.info.run_id if run else None)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=self.tracking_uri)

    def runs(self, filter_string: str) -> list[Any]:
        """Return the matching runs of all active experiments, oldest first."""
        experiments = [e.experiment_id for e in _all_pages(self.client.search_experiments)]
        found = _all_pages(
            self.client.search_runs, experiment_ids=experiments, filter_string=filter_string
        )
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _all_pages(search: Callable[..., Any], **query: Any) -> Iterable[Any]:
    page = search(**query)
    yield from page
    while page.token:
        page = search(**query, page_token=page.token)
        yield from page


Stage = Literal["preflight", "learning", "testing"]

CANCELLED = (
    "The alignment was cancelled: nothing was tested and the judge stays as it was. Paid answers "
    "are in the cache, so running the same call again resumes it."
)


class Watch:
    """Receives the stages of an alignment and can end it. This one only allows cancelling.

    Attributes
    ----------
    location
        Where the alignment is logged: what was active when this was made.
    stop
        Once set, no further model is called and `align` raises `CancelledError`. A held-out test
        that has begun runs to its end.
    """

    def __init__(self) -> None:
        self.location = RunLocation.active()
        self.stop = threading.Event()

    def enter(self, stage: Stage, preflight: pd.DataFrame | None = None) -> None:
        """Begin a stage; ``preflight`` is the table of checks, given before learning.

        Raises
        ------
        CancelledError
            When ``stop`` is set.
        """
        if self.stop.is_set():
            raise CancelledError(CANCELLED)

    def learning(
        self, optimizer: AlignmentOptimizer, budget: Budget
    ) -> AbstractContextManager[Any]:
        """Return the context in which the optimizer learns and spends ``budget``."""
        return nullcontext()


class AlignmentRun:
    """A run to log to; what the store refuses is kept in ``fault`` and raises nothing.

    A context manager: an exception ends the run as failed, an interrupt as killed.

    Attributes
    ----------
    run_id
        None until `begin`, and where the store refused the run.
    fault
        What the store said when it refused; "" otherwise.
    """

    def __init__(self, location: RunLocation, name: str) -> None:
        self.location, self.name = location, name
        self.run_id: str | None = None
        self.fault = ""

    def begin(
        self, tags: Mapping[str, str], params: Mapping[str, Any], files: Files | None = None
    ) -> None:
        """Create the run with all that is known before the test."""
        self._write(lambda: self._begin(tags, params, files or {}))

    def finish(
        self,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        files: Files | None = None,
    ) -> None:
        """Write the outcome and end the run. Undefined metrics (nan) are left out."""
        self._write(lambda: self._finish(tags, metrics, files or {}))

    def __enter__(self) -> AlignmentRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if error is None or self.run_id is None:
            return
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        # A store that does not answer must not hide the error that is on its way.
        with suppress(Exception):
            self.location.client.set_terminated(self.run_id, status)

    def _begin(self, tags: Mapping[str, str], params: Mapping[str, Any], files: Files) -> None:
        location = self.location
        parent = {MLFLOW_PARENT_RUN_ID: location.parent_run_id} if location.parent_run_id else {}
        made = location.client.create_run(
            location.experiment_id, run_name=self.name, tags={**resolve_tags(parent), **tags}
        )
        self.run_id = str(made.info.run_id)
        location.client.log_batch(
            self.run_id, params=[Param(key, str(value)) for key, value in params.items()]
        )
        self._log_files(files)

    def _finish(self, tags: Mapping[str, str], metrics: Mapping[str, float], files: Files) -> None:
        if self.run_id is None:
            return
        now = get_current_time_millis()
        self.location.client.log_batch(
            self.run_id,
            metrics=[Metric(key, v, now, 0) for key, v in metrics.items() if v == v],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self._log_files(files)
        self.location.client.set_terminated(self.run_id)

    def _log_files(self, files: Files) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                text = (
                    content
                    if isinstance(content, str)
                    else json.dumps(content, indent=2, default=str)
                )
                path.write_text(text, encoding="utf-8")
            if files:
                self.location.client.log_artifacts(str(self.run_id), folder)

    def _write(self, write: Callable[[], None]) -> None:
        if self.fault:
            return
        try:
            write()
        except (MlflowException, OSError) as error:
            self.fault = str(error)


def tags_before_test(
    original: Judge, proposed: Judge, pairs: Pairs, split: Split
) -> dict[str, str]:
    """Return the tags that identify judges, data and split."""
    return {
        ORIGINAL_TAG: fingerprint(original),
        ALIGNED_TAG: fingerprint(proposed),
        "workbench.dataset_digest": dataset_digest(pairs),
        "workbench.split_digest": split.digest,
    }


def params_before_test(judge: Judge, split: Split, **settings: Any) -> dict[str, Any]:
    """Return the parameters of the run: the judge, ``settings``, and the sizes of the parts."""
    sizes = {"train": len(split.train), "dev": len(split.dev), "test": len(split.test)}
    return {
        "judge": judge.name,
        "model": getattr(judge, "model", ""),
        **settings,
        "pairs": sum(sizes.values()),
        **sizes,
    }


def instruction_files(original: Judge, proposed: Judge) -> dict[str, str]:
    """Return the instructions of both judges, by path."""
    return {
        "instructions/original.txt": str(getattr(original, "instructions", "")),
        "instructions/proposed.txt": str(getattr(proposed, "instructions", "")),
    }


def finish_run(run: AlignmentRun, alignment: Alignment) -> None:
    """Write the outcome of an alignment: status, figures, evidence, and the changed items."""
    metrics = {
        "calls": float(alignment.calls),
        "reflection_calls": float(alignment.reflection_calls),
        "failures": float(alignment.failures),
        "reflection_failures": float(alignment.reflection_failures),
        "seconds": alignment.seconds,
        "looks_at_test": float(alignment.looks),
    }
    for when, measured in (("before", alignment.before), ("after", alignment.after)):
        metrics[f"{when}_accuracy"] = measured.accuracy
        metrics[f"{when}_kappa"] = measured.kappa
    files: dict[str, Any] = {
        "comparison.json": alignment.comparison.to_dict(),
        "evidence.json": {rule: list(ids) for rule, ids in alignment.evidence.items()},
        "preflight.csv": alignment.preflight.to_csv(index=False),
        "history.csv": alignment.history.to_csv(index=False),
    }
    for name, table in changed_items(alignment).items():
        files[f"items/{name}.csv"] = table.to_csv(index=False)
    run.finish({"workbench.status": alignment.status}, metrics, files)


def changed_items(alignment: Alignment) -> dict[str, pd.DataFrame]:
    """Return the held-out items ``fixed``, ``broken`` and ``still_wrong``, with all rationales."""
    before, after = alignment.test_before.table, alignment.test_after.table
    rationales = pd.DataFrame(
        {
            "trace_id": before["trace_id"],
            "human_rationale": before["human_rationale"],
            "before_rationale": before["judge_rationale"],
        }
    ).merge(
        after[["trace_id", "judge_rationale"]].rename(
            columns={"judge_rationale": "after_rationale"}
        ),
        on="trace_id",
    )
    comparison = alignment.comparison
    return {
        name: getattr(comparison, name).merge(rationales, on="trace_id", how="left")
        for name in ("fixed", "broken", "still_wrong")
    }
