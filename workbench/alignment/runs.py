"""The MLflow runs of alignments: written by each one, and read to find what a judge has seen.

A run begins before the held-out test, so that each use of the test set is counted, even if the
test is interrupted.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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

from workbench.compat import options
from workbench.errors import CancelledError
from workbench.judging.judge import fingerprint
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.simba.candidate import Candidate
from workbench.store.traces import Example, find_experiment_id, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.judges.base import AlignmentOptimizer

    from workbench.alignment.result import Alignment

ORIGINAL_TAG = "workbench.fingerprint.original"
ALIGNED_TAG = "workbench.fingerprint.aligned"

LABELS_FILE = "labels.json"
"""In a run: trace id -> digest of its label, from which the label cannot be read."""

CONTENT_FILE = "content.json"
"""In a run: trace id -> digest of its item, by which a re-imported item is recognised."""

Stage = Literal["preflight", "learning", "testing"]

CANCELLED = (
    "The alignment was cancelled: nothing was tested and the judge stays as it was. Paid answers "
    "are in the cache, so running the same call again resumes it."
)


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

    def load(self, run_id: str, file: str) -> dict[str, Any]:
        """Return a JSON file of a run."""
        uri = f"runs:/{run_id}/{file}"
        path = mlflow.artifacts.download_artifacts(uri, tracking_uri=self.tracking_uri)
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _all_pages(search: Callable[..., Any], **query: Any) -> Iterable[Any]:
    page = search(**query)
    yield from page
    while page.token:
        page = search(**query, page_token=page.token)
        yield from page


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


# -- writing ----------------------------------------------------------------------------------


class AlignmentRun:
    """A run to log to; what the store refuses is kept in ``fault`` and raises nothing.

    As a context manager it ends the run as failed on an exception, as killed on an interrupt.
    ``run_id`` is None until `begin`, and where the store refused the run. ``files`` map paths to
    text, or to data that is written as JSON.
    """

    def __init__(self, location: RunLocation, name: str) -> None:
        self.location, self.name = location, name
        self.run_id: str | None = None
        self.fault = ""

    def begin(
        self, tags: Mapping[str, str], params: Mapping[str, Any], files: Mapping[str, Any]
    ) -> None:
        """Create the run with all that is known before the test."""
        where = self.location
        parent = {MLFLOW_PARENT_RUN_ID: where.parent_run_id} if where.parent_run_id else {}
        tags = {**resolve_tags(parent), **tags}
        with self._keeping_fault():
            made = where.client.create_run(where.experiment_id, run_name=self.name, tags=tags)
            self.run_id = str(made.info.run_id)
            logged = [Param(key, str(value)) for key, value in params.items()]
            where.client.log_batch(self.run_id, params=logged)
            self._log_files(files)

    def finish(
        self, tags: Mapping[str, str], metrics: Mapping[str, float], files: Mapping[str, Any]
    ) -> None:
        """Write the outcome and end the run. Undefined metrics (nan) are left out."""
        if self.run_id is None or self.fault:
            return
        now = get_current_time_millis()
        figures = [Metric(key, v, now, 0) for key, v in metrics.items() if v == v]
        with self._keeping_fault():
            self.location.client.log_batch(
                self.run_id,
                metrics=figures,
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            self._log_files(files)
            self.location.client.set_terminated(self.run_id)

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

    def _log_files(self, files: Mapping[str, Any]) -> None:
        for path, content in files.items():
            is_text = isinstance(content, str)
            text = content if is_text else json.dumps(content, indent=2, default=str)
            self.location.client.log_text(str(self.run_id), text, path)

    @contextmanager
    def _keeping_fault(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            self.fault = str(error)


def warn_of_faults(what: str, *runs: AlignmentRun) -> tuple[str, ...]:
    """Warn, and return a note, where the store refused what was logged."""
    faults = [run.fault for run in runs if run.fault]
    if not faults:
        return ()
    message = f"{what} could not be logged as an MLflow run: {faults[0]}"
    warnings.warn(message, stacklevel=4)
    return (message,)


def data_tags(judge: Judge, pairs: Pairs, split: Split) -> dict[str, str]:
    """Return the tags that identify the original judge, the data and the split."""
    return {
        ORIGINAL_TAG: fingerprint(judge),
        "workbench.dataset_digest": dataset_digest(pairs),
        "workbench.split_digest": split.digest,
    }


def run_params(judge: Judge, split: Split, **settings: Any) -> dict[str, Any]:
    """Return the parameters of the run: the judge, ``settings``, and the sizes of the parts."""
    sizes = {"train": len(split.train), "dev": len(split.dev), "test": len(split.test)}
    total = sum(sizes.values())
    model = getattr(judge, "model", "")
    return {"judge": judge.name, "model": model, **settings, "pairs": total, **sizes}


def lineage_files(
    original: Judge, proposed: Judge, split: Split, by_id: Mapping[str, Example]
) -> dict[str, Any]:
    """Return the instructions of both judges, and what `Lineage.of` reads, by path."""
    parts = (split.train, split.dev, split.test)
    rated = [row for part in parts for row in part.table.to_dict("records")]
    return {
        "split.json": split.to_dict(),
        LABELS_FILE: {r["trace_id"]: _label_digest(r["trace_id"], r["human"]) for r in rated},
        CONTENT_FILE: {i: item_digest(by_id[i]) for part in parts for i in part.trace_ids},
        "instructions/original.txt": str(getattr(original, "instructions", "")),
        "instructions/proposed.txt": str(getattr(proposed, "instructions", "")),
    }


def finish_run(run: AlignmentRun, alignment: Alignment) -> None:
    """Write the outcome of an alignment: status, figures, evidence, and the changed items."""
    counts = ("calls", "reflection_calls", "failures", "reflection_failures", "seconds")
    metrics = {name: float(getattr(alignment, name)) for name in counts}
    metrics["looks_at_test"] = float(alignment.looks)
    for when, measured in (("before", alignment.before), ("after", alignment.after)):
        metrics[f"{when}_accuracy"] = measured.accuracy
        metrics[f"{when}_kappa"] = measured.kappa
    files: dict[str, Any] = {
        "comparison.json": alignment.comparison.to_dict(),
        "evidence.json": {rule: list(ids) for rule, ids in alignment.evidence.items()},
        "preflight.csv": alignment.preflight.to_csv(index=False),
        "history.csv": alignment.history.to_csv(index=False),
    }
    before = alignment.test_before.table.rename(columns={"judge_rationale": "before_rationale"})
    after = alignment.test_after.table.rename(columns={"judge_rationale": "after_rationale"})
    rationales = before[["trace_id", "human_rationale", "before_rationale"]].merge(
        after[["trace_id", "after_rationale"]], on="trace_id"
    )
    for name in ("fixed", "broken", "still_wrong"):
        changed = getattr(alignment.comparison, name).merge(rationales, on="trace_id", how="left")
        files[f"items/{name}.csv"] = changed.to_csv(index=False)
    run.finish({"workbench.status": alignment.status}, metrics, files)


# -- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lineage:
    """Traces of the alignments that a judge, or one of its ancestors, came out of.

    Attributes
    ----------
    learned, tested
        Traces that were learned or selected on, and traces that were tested on. Traces with
        equal content count, whatever their id.
    unchanged
        Traces whose label is the one that they had in the latest of these alignments.
    """

    learned: frozenset[str] = frozenset()
    tested: frozenset[str] = frozenset()
    unchanged: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.learned | self.tested

    @classmethod
    def of(
        cls, judge: Judge, pairs: Pairs, by_id: Mapping[str, Example], location: RunLocation
    ) -> Lineage:
        """Read the lineage of a judge, as far as it is logged in the store.

        Raises
        ------
        mlflow.exceptions.MlflowException
            When a run does not say what was learned from.
        """
        same_content: dict[str, list[str]] = defaultdict(list)
        for trace_id, example in by_id.items():
            same_content[item_digest(example)].append(trace_id)
        labels = dict(zip(pairs.trace_ids, pairs.table["human"], strict=True))
        learned: set[str] = set()
        tested: set[str] = set()
        unchanged: dict[str, bool] = {}
        for run_id in _ancestor_runs(judge, location):
            digests: dict[str, str] = {}
            content: dict[str, str] = {}
            with suppress(MlflowException, OSError):  # runs of early versions lack these files
                digests = location.load(run_id, LABELS_FILE)
                content = location.load(run_id, CONTENT_FILE)
            parts = location.load(run_id, "split.json")["traces"]
            for part, logged in ((part, i) for part, ids in parts.items() for i in ids):
                for trace_id in {logged, *same_content.get(content.get(logged, ""), ())}:
                    (tested if part == "test" else learned).add(trace_id)
                    if trace_id in labels:
                        now = _label_digest(logged, labels[trace_id])
                        unchanged[trace_id] = digests.get(logged) == now
        same = frozenset(trace_id for trace_id, is_same in unchanged.items() if is_same)
        return cls(frozenset(learned), frozenset(tested), same)


def origin_note(judge: Judge, lineage: Lineage) -> str:
    """Return a warning about learned rules of unknown origin; "" where there are none.

    Such a judge was edited after its alignment, say, or aligned in another store.
    """
    candidate = Candidate.from_instructions(options(judge)["instructions"])
    if lineage.all or not (candidate.rules or candidate.examples):
        return ""
    return (
        "This judge's instructions hold learned rules or examples, but no run in this store "
        "tells on which traces they were learned. These may be among the held-out ones, so that "
        "both figures may be better than they are: test on traces that are new to it."
    )


def _ancestor_runs(judge: Judge, location: RunLocation) -> list[str]:
    """Return the ids of the runs that led to this judge, oldest first."""
    runs = location.runs(f"tags.`{ALIGNED_TAG}` LIKE '%'")
    judges, size = {fingerprint(judge)}, 0
    found: list[Any] = []
    while size < len(judges):  # until no further ancestor is found
        size = len(judges)
        # A run with equal judges found nothing, so nothing was learned in it.
        found = [
            run
            for run in runs
            if (aligned := run.data.tags[ALIGNED_TAG]) in judges
            and run.data.tags.get(ORIGINAL_TAG, aligned) != aligned
        ]
        judges |= {run.data.tags[ORIGINAL_TAG] for run in found}
    return [run.info.run_id for run in found]


def _label_digest(trace_id: str, label: Any) -> str:
    text = json.dumps([trace_id, label], default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
