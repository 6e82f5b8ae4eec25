"""What a judge learned from and was tested on before, read from the runs of its alignments."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from workbench.alignment.runs import ALIGNED_TAG, ORIGINAL_TAG, RunLocation
from workbench.compat import options
from workbench.judging.judge import fingerprint
from workbench.pairing.pairs import Pairs, Split
from workbench.simba.candidate import Candidate
from workbench.store.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

LABELS_FILE = "labels.json"
"""In a run: trace id -> digest of its label, from which the label cannot be read."""

CONTENT_FILE = "content.json"
"""In a run: trace id -> digest of its item, by which a re-imported item is recognised."""


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
            parts, digests, content = _read(run_id, location)
            for part, logged in ((part, i) for part, ids in parts.items() for i in ids):
                for trace_id in {logged, *same_content.get(content.get(logged, ""), ())}:
                    (tested if part == "test" else learned).add(trace_id)
                    if trace_id in labels:
                        now = _label_digest(logged, labels[trace_id])
                        unchanged[trace_id] = digests.get(logged) == now
        return cls(
            frozenset(learned),
            frozenset(tested),
            frozenset(trace_id for trace_id, same in unchanged.items() if same),
        )


def lineage_files(split: Split, by_id: Mapping[str, Example]) -> dict[str, Any]:
    """Return the files of a run from which `Lineage.of` reads, by path."""
    parts = (split.train, split.dev, split.test)
    labels = {
        str(trace_id): _label_digest(trace_id, label)
        for part in parts
        for trace_id, label in zip(part.table["trace_id"], part.table["human"], strict=True)
    }
    return {
        "split.json": split.to_dict(),
        LABELS_FILE: labels,
        CONTENT_FILE: {i: item_digest(by_id[i]) for part in parts for i in part.trace_ids},
    }


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
    by_judge: dict[str, list[Any]] = defaultdict(list)
    for run in location.runs(f"tags.`{ALIGNED_TAG}` LIKE '%'"):
        by_judge[run.data.tags[ALIGNED_TAG]].append(run)
    found: list[Any] = []
    pending, seen = [fingerprint(judge)], set[str]()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for run in by_judge[current]:
            parent = run.data.tags.get(ORIGINAL_TAG, current)
            if parent != current:  # otherwise that alignment found nothing
                found.append(run)
                pending.append(parent)
    return [run.info.run_id for run in sorted(found, key=lambda run: int(run.info.start_time))]


def _read(
    run_id: str, location: RunLocation
) -> tuple[dict[str, list[str]], dict[str, str], dict[str, str]]:
    """Return trace ids by part, and the digests of their labels and content."""

    def load(name: str) -> dict[str, Any]:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, tracking_uri=location.tracking_uri
        )
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))

    digests: dict[str, str] = {}
    content: dict[str, str] = {}
    with suppress(MlflowException, OSError):  # runs of early versions lack these files
        digests, content = load(LABELS_FILE), load(CONTENT_FILE)
    return load("split.json")["traces"], digests, content


def _label_digest(trace_id: str, label: Any) -> str:
    text = json.dumps([trace_id, label], default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
