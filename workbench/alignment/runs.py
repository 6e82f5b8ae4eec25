"""What an alignment works on, what an optimizer proposes, and the MLflow run of both."""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import mlflow
import pandas as pd
from mlflow.artifacts import load_dict
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge

from workbench.errors import CancelledError, StoreError
from workbench.judging.judge import fingerprint
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.store.database import find_experiment_id, store_errors, store_message
from workbench.store.tables import digest
from workbench.store.traces import Example, item_digest

ORIGINAL_TAG = "workbench.fingerprint.original"
ALIGNED_TAG = "workbench.fingerprint.aligned"
CERTIFIED_TAG = "workbench.fingerprint.certified"

# Of several tags, numbered from 0: digests of the held-out items, separated by commas.
ITEMS_TAG = "workbench.test_items"
ITEMS_PER_TAG = 500  # keeps a tag below 5,000 characters, the least that MLflow's stores accept
# In a run: trace id -> digest of its label, and of its item, by which it is known if imported anew.
LABELS_FILE, CONTENT_FILE = "labels.json", "content.json"
JUDGED = "inputs", "outputs"  # what makes two items the same, whatever is expected of them

Stage = Literal["preflight", "learning", "testing"]
Gate = Literal["better", "significant", "none"]
Status = Literal["improved", "unchanged", "rejected"]


@dataclass(frozen=True)
class Lineage:
    """Traces of the alignments that a judge or its ancestors came out of, by id or content."""

    learned: Set[str] = frozenset()  # learned or selected on
    seen: Set[str] = frozenset()  # or tested on
    unchanged: Set[str] = frozenset()  # with the label that they had in the latest of these


@dataclass(frozen=True)
class AlignmentData:
    """A judge, its pairs and their split, and what is known before anything is learned."""

    judge: Judge
    pairs: Pairs
    by_id: Mapping[str, Example]
    split: Split
    lineage: Lineage


def current_place() -> dict[str, str | None]:
    """Return experiment and parent of a run that is begun now, as `mlflow.start_run` takes them."""
    if active := mlflow.active_run():
        return {"experiment_id": active.info.experiment_id, "parent_run_id": active.info.run_id}
    return {"experiment_id": str(find_experiment_id()), "parent_run_id": None}


@contextmanager
def logged_run(
    name: str,
    data: AlignmentData,
    proposed: Judge | None = None,
    *,
    place: Mapping[str, str | None] | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Log a run, which uses the held-out items where a judge is ``proposed``; yield its id."""
    pairs, split = data.pairs, data.split
    params = {"judge": data.judge.name, "model": data.judge.model, "pairs": len(pairs), **settings}
    params |= {part: len(getattr(split, part)) for part in ("train", "dev", "test")}
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
            CONTENT_FILE: {i: item_digest(data.by_id[i], JUDGED) for i in pairs.trace_ids},
            "instructions/original.txt": data.judge.instructions,
            "instructions/proposed.txt": proposed.instructions,
        }
    with begin_run(name, tags, place) as run:
        with store_errors():
            mlflow.log_params(params)
        log_outcome({}, files)
        yield run.info.run_id


@store_errors()
def begin_run(
    name: str, tags: Mapping[str, str], place: Mapping[str, str | None] | None = None
) -> Any:
    where: Any = place or current_place()
    return mlflow.start_run(run_name=name, tags=tags, nested=True, **where)


@store_errors()
def log_outcome(
    metrics: Mapping[str, float], files: Mapping[str, Any] | None = None, status: str = ""
) -> None:
    """Log in the active run, data that is no text as JSON files; nan is left out.

    An artifact store that refuses the files is warned of: the result is worth more than they.
    """
    if status:
        mlflow.set_tag("workbench.status", status)
    mlflow.log_metrics({name: value for name, value in metrics.items() if value == value})
    try:
        for path, content in (files or {}).items():
            (mlflow.log_text if isinstance(content, str) else mlflow.log_dict)(content, path)
    except Exception as error:  # such stores have errors of any kind
        warnings.warn(
            f"MLflow's artifact store did not take the run's files: {store_message(error)}. The "
            "result is not affected, but a judge that comes of it cannot be aligned again.",
            stacklevel=3,
        )


class Watch:
    """Follows an alignment, and ends it once ``stop`` is set."""

    def __init__(self) -> None:
        self.place = current_place()
        self.stop = threading.Event()
        self.preflight: pd.DataFrame | None = None
        # What a SIMBA may spend.
        self.budget: Budget | None = None
        self.max_steps: int | None = None

    def enter(self, stage: Stage) -> None:
        """Begin a stage."""
        if self.stop.is_set():
            raise CancelledError(
                "The alignment was cancelled: nothing was tested and the judge stays as it was. "
                "Paid answers are in the cache, so running the same call again resumes it."
            )

    def on_step(self, step: dict[str, Any]) -> None:
        """Note a step of a `SIMBA`."""


def item_tags(test: Pairs, by_id: Mapping[str, Example]) -> dict[str, str]:
    """Return the tags of a run that say which items its judge is scored on."""
    items = sorted(set(_marks(test, by_id)))
    return {
        f"{ITEMS_TAG}.{number}": ",".join(items[begin : begin + ITEMS_PER_TAG])
        for number, begin in enumerate(range(0, len(items), ITEMS_PER_TAG))
    }


def _marks(test: Pairs, by_id: Mapping[str, Example], fields: Sequence[str] = JUDGED) -> list[str]:
    """Return what identifies each held-out item: what was judged, and the name of the labels."""
    # A collision of 8 digits within 10,000 items hardly matters.
    contents = [item_digest(by_id[i], fields) for i in test.trace_ids]
    return [digest([test.name, content])[:8] for content in contents]


# -- what was logged --------------------------------------------------------------------------


@store_errors()
def _logged_runs(filter_string: str) -> list[Any]:
    """Return the matching runs of all active experiments of the store, oldest first."""
    found: Any = mlflow.search_runs(
        filter_string=filter_string,
        search_all_experiments=True,
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    return list(found)


def count_looks(data: AlignmentData, *judges: str) -> tuple[int, str]:
    """Return how many judges, but the original, one held-out item has scored at most; and a note.

    ``judges`` are the fingerprints of those scored in this run.
    """
    here = {*judges} - {data.pairs.fingerprint}
    if not here:
        return 0, ""
    known = judges_by_item(data.split.test, data.by_id, original=data.pairs.fingerprint)
    most = max(len(judges_of_item | here) for judges_of_item in known)
    if all(judges_of_item <= here for judges_of_item in known):
        return most, ""
    return most, (
        f"Held-out items were looked at before: some have now been used to score {most} different "
        "judges, what is scored here included. The best of several looks better than it is: label "
        "new traces to know how good it is."
    )


def judges_by_item(
    test: Pairs, by_id: Mapping[str, Example], *, original: str = ""
) -> list[set[str]]:
    """Return the judges that each item has scored; certificates of the ``original`` are none."""
    scored: dict[str, set[str]] = defaultdict(set)
    for tags in (one.data.tags for one in _logged_runs(f"tags.`{ITEMS_TAG}.0` LIKE '%'")):
        judge = tags.get(ALIGNED_TAG) or tags[CERTIFIED_TAG]
        items = [held for key, held in tags.items() if key.startswith(f"{ITEMS_TAG}.")]
        for item in ",".join(items).split(",") if tags.get(CERTIFIED_TAG) != original else ():
            scored[item].add(judge)
    # Earlier versions took expectations for a part of the item.
    earlier = _marks(test, by_id, (*JUDGED, "expectations"))
    marks = zip(_marks(test, by_id), earlier, strict=True)
    return [scored[now] | scored[then] for now, then in marks]


def read_lineage(
    fingerprints: Collection[str], label_of: Mapping[str, Any], by_id: Mapping[str, Example]
) -> Lineage:
    """Read the lineage of a judge by all its fingerprints; ``label_of`` are today's labels."""
    same_content: dict[str, list[str]] = defaultdict(list)
    for trace_id, example in by_id.items():
        for content_of in (item_digest(example, JUDGED), item_digest(example)):  # as it was logged
            same_content[content_of].append(trace_id)
    learned: set[str] = set()
    seen: set[str] = set()
    unchanged: dict[str, bool] = {}
    for run_id in _ancestor_runs(fingerprints):
        labels: dict[str, str] = {}
        content: dict[str, str] = {}
        with suppress(MlflowException, OSError):  # runs of early versions lack these files
            labels = load_dict(f"runs:/{run_id}/{LABELS_FILE}")
            content = load_dict(f"runs:/{run_id}/{CONTENT_FILE}")
        try:
            parts = load_dict(f"runs:/{run_id}/split.json")["traces"]
        except (MlflowException, OSError) as error:
            raise StoreError(
                f"What this judge learned from can't be told: run {run_id}, which aligned it, has "
                f"no split.json ({error}). Align the judge that it came from again."
            ) from error
        for part, ids in parts.items():
            for logged in ids:
                here = {logged, *same_content.get(content.get(logged, ""), ())}
                seen |= here
                learned |= set() if part == "test" else here
                for i in here & label_of.keys():
                    unchanged[i] = labels.get(logged) == digest([logged, label_of[i]])[:16]
    return Lineage(learned, seen, {i for i, is_same in unchanged.items() if is_same})


def _ancestor_runs(fingerprints: Collection[str]) -> list[str]:
    """Return the ids of the runs that led to this judge, oldest first."""
    runs = _logged_runs(f"tags.`{ALIGNED_TAG}` LIKE '%'")
    made = [(one.info.run_id, one.data.tags) for one in runs]
    judges, more = set[str](), {*fingerprints}
    while more - judges:
        judges |= more
        more = {tags.get(ORIGINAL_TAG, "") for _, tags in made if tags[ALIGNED_TAG] in judges}
    # A run with equal judges found nothing, so nothing was learned in it.
    return [
        run_id
        for run_id, tags in made
        if tags[ALIGNED_TAG] in judges - {tags.get(ORIGINAL_TAG, tags[ALIGNED_TAG])}
    ]
