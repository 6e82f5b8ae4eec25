"""What a judge has come from: the alignments that made it, and those that made its parents.

What it learned on is never tested on. What people said of it then weighs less than what they say
now; where they have changed their mind since, the label is as new as any.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from workbench import store
from workbench.candidate import Candidate
from workbench.consensus import decisions_by_trace, labels_by_trace
from workbench.judge import fingerprint, options
from workbench.pairing import Pairs, Split
from workbench.traces import Example, item_digest
from workbench.watch import Place

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


@dataclass(frozen=True)
class Earlier:
    """Traces of the alignments that a judge, and those that it was aligned from, came out of.

    On ``learned`` it was learned or selected, on ``tested`` it was put to the test. ``labels``
    has the digest of the label that a trace had in the latest of them, ``times`` when that was
    (milliseconds since 1970) where it tells no label. ``known_as`` tells the id that an item had
    then, of items with the same content as one of theirs that were imported anew since.
    """

    learned: frozenset[str]
    tested: frozenset[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)
    known_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> frozenset[str]:
        return self.learned | self.tested

    def unchanged(self, pairs: Pairs) -> set[str]:
        """The traces of which people say what they said then."""
        now = label_digests(pairs, known_as=self.known_as)
        same = {i for i, digest in now.items() if self.labels.get(i) == digest}
        dated = sorted(self.times.keys() & now.keys())
        if dated:
            traces = store.fetch_traces(dated, spans=False)
            said = labels_by_trace(traces, pairs.name)
            decided = decisions_by_trace(traces, pairs.name)
            for i in dated:
                times = [label.created_ms for label in said.get(i, [])]
                times += [decided[i].created_ms] if i in decided else []
                if max(times, default=0) <= self.times[i]:
                    same.add(i)
        return same


def label_digests(*pairs: Pairs, known_as: Mapping[str, str] | None = None) -> dict[str, str]:
    """Trace -> what identifies the label that it has, without telling it."""
    ids = known_as or {}
    return {
        str(trace_id): _label_digest(ids.get(trace_id, trace_id), label)
        for part in pairs
        for trace_id, label in zip(part.table["trace_id"], part.table["human"], strict=True)
    }


def _label_digest(trace_id: str, label: Any) -> str:
    text = json.dumps([trace_id, label], default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


LABELS_FILE = "labels.json"
"""Of a run: the label digests of all its traces."""


CONTENT_FILE = "content.json"
"""Of a run: trace -> digest of its item, by which it is known when it is imported anew."""


def content_of(split: Split, items: Mapping[str, Example]) -> dict[str, str]:
    """What a run tells of the content of its items."""
    ids = (i for part in (split.train, split.dev, split.test) for i in part.trace_ids)
    return {i: item_digest(items[i]) for i in ids}


def labels_of(split: Split) -> dict[str, str]:
    """What a run tells of the labels that were learned from and tested on."""
    return label_digests(split.train, split.dev, split.test)


def earlier_alignments(
    judge: Judge, items: Mapping[str, Example], place: Place | None = None
) -> Earlier:
    """What this judge has come from, as far as it is logged in the store that is active.

    ``items`` are those at hand: which of them it has come from is told by id and by content.

    Raises
    ------
    mlflow.exceptions.MlflowException
        Where a run cannot tell on what it was learned.
    """
    place = place or Place.active()
    learned: set[str] = set()
    tested: set[str] = set()
    found: list[Any] = []
    todo, seen = [fingerprint(judge)], set[str]()
    while todo:
        mark = todo.pop()
        seen.add(mark)
        for logged in place.runs(f"tags.`workbench.fingerprint.aligned` = '{mark}'"):
            parent = logged.data.tags.get("workbench.fingerprint.original", mark)
            if parent == mark:
                continue  # that alignment found nothing, so nothing of it is in the judge
            found.append(logged)
            if parent not in seen:
                todo.append(parent)
    labels: dict[str, str] = {}
    times: dict[str, int] = {}
    known_as: dict[str, str] = {}
    here: dict[str, list[str]] = defaultdict(list)
    for trace_id, item in items.items():
        here[item_digest(item)].append(trace_id)
    for logged in sorted(found, key=lambda run: int(run.info.start_time)):
        parts = mlflow.artifacts.load_dict(f"runs:/{logged.info.run_id}/split.json")["traces"]
        told = _told(logged.info.run_id, LABELS_FILE)
        content = _told(logged.info.run_id, CONTENT_FILE)
        for part, then in ((part, i) for part, ids in parts.items() for i in ids):
            anew = [i for i in here.get(content.get(then, ""), ()) if i != then]
            known_as |= dict.fromkeys(anew, then)
            for trace_id in (then, *anew):
                (tested if part == "test" else learned).add(trace_id)
                labels.pop(trace_id, None)
                times.pop(trace_id, None)
                if then in told:
                    labels[trace_id] = told[then]
                else:
                    times[trace_id] = logged.info.start_time
    return Earlier(frozenset(learned), frozenset(tested), labels, times, known_as)


def _told(run_id: str, name: str) -> dict[str, str]:
    """A file of a run; empty where it was logged before there was such a file."""
    try:
        return dict(mlflow.artifacts.load_dict(f"runs:/{run_id}/{name}"))
    except (MlflowException, OSError):
        return {}


def origin_note(judge: Judge, earlier: Earlier) -> str:
    """What is to be said of a judge that has learned, nobody knows on what; else empty.

    It was edited since it was aligned, say, or that is logged in another store.
    """
    shown = Candidate.from_instructions(options(judge)["instructions"])
    if earlier.all or not (shown.rules or shown.examples):
        return ""
    return (
        "This judge's instructions hold learned rules or examples, but no run in this store "
        "tells on which traces they were learned. These may be among the held-out ones, so that "
        "both figures may be better than they are: test on traces that are new to it."
    )
