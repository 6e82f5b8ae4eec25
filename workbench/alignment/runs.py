"""The MLflow runs of alignments: written by each one, and read to find what a judge has seen.

A run begins before the held-out test, so that each use of the test set is counted, even if the
test is interrupted.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from workbench.alignment.result import Alignment
from workbench.errors import CancelledError
from workbench.judging.judge import fingerprint
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.store.tables import digest
from workbench.store.traces import Example, all_pages, find_experiment_id, item_digest

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.genai.judges import Judge

ORIGINAL_TAG = "workbench.fingerprint.original"
ALIGNED_TAG = "workbench.fingerprint.aligned"

ITEMS_TAG = "workbench.test_items"
"""Tags of a run, numbered from 0: digests of the held-out items, separated by commas."""

ITEMS_PER_TAG = 500
"""Keeps a tag below 5,000 characters, the least that MLflow's stores accept."""

LABELS_FILE = "labels.json"
"""In a run: trace id -> digest of its label, from which the label cannot be read."""

CONTENT_FILE = "content.json"
"""In a run: trace id -> digest of its item, by which a re-imported item is recognised."""

CANCELLED = (
    "The alignment was cancelled: nothing was tested and the judge stays as it was. Paid answers "
    "are in the cache, so running the same call again resumes it."
)

Stage = Literal["preflight", "learning", "testing"]


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


class AlignmentRun:
    """The MLflow run of an alignment, in the store, experiment and run that are active now.

    It is created by `begin`. What the store refuses is kept in ``fault`` and raises nothing. As a
    context manager it ends the run as failed on an exception, as killed on an interrupt. A run
    ``above`` takes the active one's place.
    """

    def __init__(self, above: AlignmentRun | None = None) -> None:
        self.client: mlflow.MlflowClient = above.client if above else mlflow.MlflowClient()
        self.experiment_id, self.parent_id = _place(above)
        self.run_id: str | None = None
        self.fault = ""

    def begin(
        self, name: str, data: AlignmentData, proposed: Judge | None = None, **settings: Any
    ) -> None:
        """Create the run with all that is known before the test of the ``proposed`` judge.

        Without one it is a run above others, and no use of the held-out items.
        """
        pairs, split = data.pairs, data.split
        parts = {name: len(getattr(split, name)) for name in ("train", "dev", "test")}
        about = {"judge": data.judge.name, "model": getattr(data.judge, "model", "")}
        params = {**about, **settings, "pairs": len(pairs), **parts}
        tags = {
            ORIGINAL_TAG: fingerprint(data.judge),
            "workbench.dataset_digest": dataset_digest(pairs),
            "workbench.split_digest": split.digest,
        }
        files: dict[str, Any] = {"split.json": split.to_dict()}
        if proposed is not None:
            tags[ALIGNED_TAG] = fingerprint(proposed)
            if tags[ALIGNED_TAG] != tags[ORIGINAL_TAG]:
                tags |= _item_tags(data)
            labels = zip(pairs.trace_ids, pairs.table["human"], strict=True)
            files |= {
                LABELS_FILE: {i: _label_digest(i, label) for i, label in labels},
                CONTENT_FILE: {i: item_digest(data.by_id[i]) for i in pairs.trace_ids},
                "instructions/original.txt": str(getattr(data.judge, "instructions", "")),
                "instructions/proposed.txt": str(getattr(proposed, "instructions", "")),
            }
        parent = {MLFLOW_PARENT_RUN_ID: self.parent_id} if self.parent_id else {}
        tags = {**resolve_tags(parent), **tags}
        with self.keeping_fault():
            made = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
            self.run_id = made.info.run_id
            self._log(files, params=[Param(key, str(value)) for key, value in params.items()])

    def finish(
        self, tags: Mapping[str, str], metrics: Mapping[str, float], files: Mapping[str, Any]
    ) -> None:
        """Write the outcome and end the run. Undefined metrics (nan) are left out.

        ``files`` map paths to text, or to data that is written as JSON.
        """
        now = get_current_time_millis()
        figures = [Metric(name, v, now, 0) for name, v in metrics.items() if v == v]
        with self.keeping_fault():
            self._log(files, metrics=figures, tags=[RunTag(*tag) for tag in tags.items()])
            self.client.set_terminated(str(self.run_id))

    def runs(self, filter_string: str) -> list[Any]:
        """Return the matching runs of all active experiments of the store, oldest first."""
        experiments = all_pages(lambda token: self.client.search_experiments(page_token=token))
        ids = [experiment.experiment_id for experiment in experiments]
        found = all_pages(
            lambda token: self.client.search_runs(ids, filter_string, page_token=token)
        )
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


def _place(above: AlignmentRun | None) -> tuple[str, str | None]:
    """Return the experiment and the parent of a new run."""
    if above is not None:
        return above.experiment_id, above.run_id or above.parent_id
    active = mlflow.active_run()  # it decides the experiment, as in MLflow
    if active is not None:
        return active.info.experiment_id, active.info.run_id
    return find_experiment_id(), None


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
            raise CancelledError(CANCELLED)


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


def fault_notes(what: str, *runs: AlignmentRun) -> tuple[str, ...]:
    """Return a note where the store refused what was logged."""
    faults = [run.fault for run in runs if run.fault]
    return (f"{what} could not be logged as an MLflow run: {faults[0]}",) if faults else ()


# -- how often held-out items were used -------------------------------------------------------


def _item_tags(data: AlignmentData) -> dict[str, str]:
    """Return the tags of a run that say which items its judge is scored on."""
    items = sorted(_items(data))
    return {
        f"{ITEMS_TAG}.{number}": ",".join(items[begin : begin + ITEMS_PER_TAG])
        for number, begin in enumerate(range(0, len(items), ITEMS_PER_TAG))
    }


def count_looks(run: AlignmentRun, data: AlignmentData, *judges: str) -> tuple[int, str]:
    """Return how many judges one held-out item has scored at most, and a note on earlier ones.

    ``judges`` are the fingerprints of those scored in this run; the original does not count. The
    note is "" where no other was scored before. Items with equal content are one.
    """
    here = {*judges} - {data.pairs.fingerprint}
    if not here:
        return 0, ""
    logged: list[Any] = []
    with run.keeping_fault():
        logged = run.runs(f"tags.`{ITEMS_TAG}.0` LIKE '%'")
    scored: dict[str, set[str]] = defaultdict(set)
    for tags in (one.data.tags for one in logged):
        for key, items in tags.items():
            if key.startswith(f"{ITEMS_TAG}.") and ALIGNED_TAG in tags:
                for item in items.split(","):
                    scored[item].add(tags[ALIGNED_TAG])
    used = [scored[item] | here for item in _items(data)]
    most = max(map(len, used))
    if all(judges_of_item == here for judges_of_item in used):
        return most, ""
    return most, (
        f"Held-out items were looked at before: some have now been used to score {most} different "
        "judges, what is scored here included. The best of several looks better than it is: label "
        "new traces to know how good it is."
    )


def _items(data: AlignmentData) -> set[str]:
    """Return what identifies the held-out items: their content, and the name of the labels."""
    test = data.split.test
    # A collision of 8 digits within 10,000 items hardly matters.
    return {digest([test.name, item_digest(data.by_id[i])])[:8] for i in test.trace_ids}


# -- what a judge was made from ---------------------------------------------------------------


def read_lineage(
    run: AlignmentRun, judge: Judge, pairs: Pairs, by_id: Mapping[str, Example]
) -> Lineage:
    """Read the lineage of a judge, as far as it is logged in the store of the run.

    Raises
    ------
    mlflow.exceptions.MlflowException
        When a run does not say what was learned from.
    """
    same_content: dict[str, list[str]] = defaultdict(list)
    for trace_id, example in by_id.items():
        same_content[item_digest(example)].append(trace_id)
    label_of = dict(zip(pairs.trace_ids, pairs.table["human"], strict=True))
    learned: set[str] = set()
    seen: set[str] = set()
    unchanged: dict[str, bool] = {}
    for run_id in _ancestor_runs(run, judge):
        labels: dict[str, str] = {}
        content: dict[str, str] = {}
        with suppress(MlflowException, OSError):  # runs of early versions lack these files
            labels = _load(run_id, LABELS_FILE)
            content = _load(run_id, CONTENT_FILE)
        for part, ids in _load(run_id, "split.json")["traces"].items():
            for logged in ids:
                here = {logged, *same_content.get(content.get(logged, ""), ())}
                seen |= here
                learned |= set() if part == "test" else here
                for i in here & label_of.keys():
                    unchanged[i] = labels.get(logged) == _label_digest(logged, label_of[i])
    return Lineage(learned, seen, {i for i, is_same in unchanged.items() if is_same})


def _ancestor_runs(run: AlignmentRun, judge: Judge) -> list[str]:
    """Return the ids of the runs that led to this judge, oldest first."""
    runs = run.runs(f"tags.`{ALIGNED_TAG}` LIKE '%'")
    judges: set[str] = set()
    more = {fingerprint(judge)}
    while not more <= judges:
        judges |= more
        # A run with equal judges found nothing, so nothing was learned in it.
        found = [
            one
            for one in runs
            if (aligned := one.data.tags[ALIGNED_TAG]) in judges
            and one.data.tags.get(ORIGINAL_TAG, aligned) != aligned
        ]
        more = {one.data.tags[ORIGINAL_TAG] for one in found}
    return [one.info.run_id for one in found]


def _load(run_id: str, file: str) -> dict[str, Any]:
    return dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/{file}"))


def _label_digest(trace_id: str, label: Any) -> str:
    return digest([trace_id, label])[:16]
