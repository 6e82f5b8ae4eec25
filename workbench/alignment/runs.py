"""What an alignment works on, what an optimizer proposes, and the MLflow run of both."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import mlflow
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from workbench.errors import CancelledError
from workbench.judging.judge import fingerprint
from workbench.models.budget import UNPAID, Budget, Usage
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.store.database import all_pages, find_experiment_id
from workbench.store.tables import digest
from workbench.store.traces import Example, item_digest

ORIGINAL_TAG = "workbench.fingerprint.original"
ALIGNED_TAG = "workbench.fingerprint.aligned"
CERTIFIED_TAG = "workbench.fingerprint.certified"

ITEMS_TAG = "workbench.test_items"
"""Tags of a run, numbered from 0: digests of the held-out items, separated by commas."""

ITEMS_PER_TAG = 500
"""Keeps a tag below 5,000 characters, the least that MLflow's stores accept."""

LABELS_FILE, CONTENT_FILE = "labels.json", "content.json"
"""In a run: trace id -> digest of its label, and of its item, known by it if imported anew."""

Stage = Literal["preflight", "learning", "testing"]
Gate = Literal["better", "significant", "none"]
Status = Literal["improved", "unchanged", "rejected"]


@dataclass(frozen=True)
class Lineage:
    """Traces of the alignments that a judge, or one of its ancestors, came out of.

    ``learned`` were learned or selected on, ``seen`` are these and those tested on; traces with
    equal content count, whatever their id. ``unchanged`` have the label of the latest of these.
    """

    learned: Set[str] = frozenset()
    seen: Set[str] = frozenset()
    unchanged: Set[str] = frozenset()


@dataclass(frozen=True)
class AlignmentData:
    """A judge, its pairs and their split, and what is known before anything is learned."""

    judge: Judge
    pairs: Pairs
    by_id: Mapping[str, Example]
    split: Split
    lineage: Lineage


@dataclass(frozen=True)
class Learned:
    """What an optimizer proposes, and what it cost to find, as `Alignment` has it.

    ``known`` answers came from the cache; ``stopped`` says why it ended.
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    usage: Usage = UNPAID
    stopped: str = ""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    failures: int = 0
    reflection_failures: int = 0
    notes: tuple[str, ...] = ()


class AlignmentRun:
    """The MLflow run of an alignment, in the store, experiment and run that are active now.

    It is created by `begin`. What the store refuses is kept in ``fault`` and raises nothing. As a
    context manager it ends the run as failed on an exception, as killed on an interrupt.
    """

    def __init__(self) -> None:
        active = mlflow.active_run()
        # An open run decides the experiment, as in MLflow.
        self.experiment_id = active.info.experiment_id if active else find_experiment_id()
        self.parent_id = active.info.run_id if active else None
        self.client = mlflow.MlflowClient()
        self.run_id: str | None = None
        self.fault = ""

    def below(self) -> AlignmentRun:
        """Return a run to begin below this one."""
        run = copy(self)
        run.run_id, run.parent_id, run.fault = None, self.run_id or self.parent_id, ""
        return run

    def begin(
        self, name: str, data: AlignmentData, proposed: Judge | None = None, **settings: Any
    ) -> None:
        """Create the run with all that is known before the test of the ``proposed`` judge.

        Without one it is a run above others, and no use of the held-out items.
        """
        pairs, split = data.pairs, data.split
        params = {"judge": data.judge.name, "model": data.judge.model, "pairs": len(pairs)}
        params |= settings | {part: len(getattr(split, part)) for part in ("train", "dev", "test")}
        tags = {
            ORIGINAL_TAG: fingerprint(data.judge),
            "workbench.dataset_digest": dataset_digest(pairs),
            "workbench.split_digest": split.digest,
        }
        files: dict[str, Any] = {"split.json": split.to_dict()}
        if proposed is not None:
            tags[ALIGNED_TAG] = fingerprint(proposed)
            if tags[ALIGNED_TAG] != tags[ORIGINAL_TAG]:
                tags |= item_tags(split.test, data.by_id)
            labels = zip(pairs.trace_ids, pairs.table["human"], strict=True)
            files |= {
                LABELS_FILE: {i: digest([i, label])[:16] for i, label in labels},
                CONTENT_FILE: {i: item_digest(data.by_id[i]) for i in pairs.trace_ids},
                "instructions/original.txt": data.judge.instructions,
                "instructions/proposed.txt": proposed.instructions,
            }
        with self.keeping_fault():
            self.create(name, tags)
            self._log(files, params=[Param(key, str(value)) for key, value in params.items()])

    def create(self, name: str, tags: Mapping[str, str]) -> None:
        """Create the run with these tags."""
        parent = {MLFLOW_PARENT_RUN_ID: self.parent_id} if self.parent_id else {}
        tags = {**resolve_tags(parent), **tags}
        made = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        self.run_id = made.info.run_id

    def finish(
        self, tags: Mapping[str, str], metrics: Mapping[str, float], files: Mapping[str, Any]
    ) -> None:
        """Write the outcome, text or data for JSON as files, and end the run; nan is left out."""
        if self.fault:
            return  # a store that does not answer is not waited for again
        now = get_current_time_millis()
        figures = [Metric(name, v, now, 0) for name, v in metrics.items() if v == v]
        with self.keeping_fault():
            self._log(files, metrics=figures, tags=[RunTag(*tag) for tag in tags.items()])
            self.client.set_terminated(str(self.run_id))

    def runs(self, filter_string: str) -> list[Any]:
        """Return the matching runs of all active experiments of the store, oldest first."""
        experiments = all_pages(lambda token: self.client.search_experiments(page_token=token))
        ids = [experiment.experiment_id for experiment in experiments]
        found = all_pages(lambda t: self.client.search_runs(ids, filter_string, page_token=t))
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    @contextmanager
    def keeping_fault(self) -> Iterator[None]:
        """Keep what the store refuses within this context, the first of several."""
        try:
            yield
        except (MlflowException, OSError) as error:
            self.fault = self.fault or str(error)

    def _log(self, files: Mapping[str, Any], **batch: Any) -> None:
        self.client.log_batch(str(self.run_id), **batch)
        for path, content in files.items():
            is_text = isinstance(content, str)
            text = content if is_text else json.dumps(content, indent=2, default=str)
            self.client.log_text(str(self.run_id), text, path)

    def __enter__(self) -> AlignmentRun:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self.run_id is not None:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            # A store that does not answer must not hide the error that is on its way.
            with suppress(Exception):
                self.client.set_terminated(self.run_id, status)


class Watch:
    """Follows an alignment and can end it. This one only allows cancelling.

    ``run`` is where the alignment is logged. Once ``stop`` is set, no further model is called and
    `align` raises `CancelledError`; a held-out test that has begun runs to its end.
    """

    def __init__(self) -> None:
        self.run = AlignmentRun()
        self.stop = threading.Event()

    def enter(
        self, stage: Stage, *, preflight: pd.DataFrame | None = None, budget: Budget | None = None
    ) -> None:
        """Begin a stage, learning with the table of checks and the budget that is spent."""
        if self.stop.is_set():
            raise CancelledError(
                "The alignment was cancelled: nothing was tested and the judge stays as it was. "
                "Paid answers are in the cache, so running the same call again resumes it."
            )


def fault_notes(what: str, *runs: AlignmentRun) -> tuple[str, ...]:
    """Return a note where the store refused what was logged."""
    faults = [run.fault for run in runs if run.fault]
    return (f"{what} could not be logged as an MLflow run: {faults[0]}",) if faults else ()


def item_tags(test: Pairs, by_id: Mapping[str, Example]) -> dict[str, str]:
    """Return the tags of a run that say which items its judge is scored on."""
    items = sorted(items_tested(test, by_id))
    return {
        f"{ITEMS_TAG}.{number}": ",".join(items[begin : begin + ITEMS_PER_TAG])
        for number, begin in enumerate(range(0, len(items), ITEMS_PER_TAG))
    }


def items_tested(test: Pairs, by_id: Mapping[str, Example]) -> set[str]:
    """Return what identifies the held-out items: their content, and the name of the labels."""
    # A collision of 8 digits within 10,000 items hardly matters.
    return {digest([test.name, item_digest(by_id[i])])[:8] for i in test.trace_ids}
