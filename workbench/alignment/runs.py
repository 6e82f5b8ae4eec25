"""The MLflow run of an alignment: begun before the held-out test, ended with what came of it.

Which judge is tested on which items is in the store before the first of them is judged, so that
the look counts whatever happens afterwards. Everything else follows when it is known.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import mlflow
import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from workbench.alignment.gate import Status
from workbench.compat import options
from workbench.errors import CancelledError
from workbench.formatting import html_table, html_text
from workbench.judging.judge import fingerprint
from workbench.metrics.agreement import Agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.models.budget import Budget
from workbench.pairing.consensus import decisions_by_trace, labels_by_trace
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.simba.candidate import Candidate
from workbench.store.traces import Example, fetch_traces, find_experiment_id, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


@dataclass(frozen=True, repr=False)
class Alignment:
    """What an alignment did.

    Attributes
    ----------
    judge
        The aligned judge; the original one unless ``status`` is ``"improved"``.
    status
        ``"improved"``, ``"unchanged"`` (nothing better was found) or ``"rejected"`` (what was
        found did not pass the gate on held-out pairs); ``reason`` says it in words.
    original, proposed
        The judge before, and the one that was put to the test.
    pairs, split
        What was learned from, and its parts; ``annotators`` among themselves, None for one.
    test_before, test_after
        Held-out pairs with the verdicts of the original and of the proposed judge.
    before, after, comparison
        Agreement of both on them, and the comparison.
    history
        One row a candidate (see `workbench.simba.Optimised`); empty for other optimizers.
    evidence
        Learned rule -> ids of the train traces whose disagreement it was made from.
    looks
        Judges that have been scored on one and the same held-out item until now, at most, this
        one included; 0 where nothing was put to the test (see `workbench.looks`).
    failures, reflection_failures
        Verdicts while learning, and reflections, that never came or could not be read. They count
        neither for nor against anything (`SIMBA` only).
    calls, reflection_calls, tokens, cost
        What was spent; None where it is not known. Calls count the held-out test as well;
        reflection calls of other optimizers count those of their embedding model. Of calls that
        were made together when the budget ended, tokens and cost are left out, and reflections
        are among ``calls``.
    """

    judge: Judge
    status: Status
    reason: str
    original: Judge
    proposed: Judge
    optimizer: str
    pairs: Pairs
    split: Split
    test_before: Pairs
    test_after: Pairs
    before: Agreement
    after: Agreement
    comparison: Comparison
    preflight: pd.DataFrame
    history: pd.DataFrame
    evidence: Mapping[str, list[str]]
    annotators: AnnotatorAgreement | None
    examples: Mapping[str, Example]
    seed: int
    calls: int
    reflection_calls: int
    tokens: int | None
    cost: float | None
    seconds: float
    fingerprints: Mapping[str, str]
    dataset_digest: str
    looks: int = 0
    failures: int = 0
    reflection_failures: int = 0
    run_id: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        return f"<Alignment of {self.original.name!r}: {self.status}. {self.reason}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<div>{html_text(note)}</div>" for note in self.notes)
        head = f"<div><b>{html_text(self.status)}</b>: {html_text(self.reason)}</div>"
        return head + html_table(self.comparison.table) + notes


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
        where = run.info.experiment_id if run else find_experiment_id()
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


JUDGE = "workbench.fingerprint.aligned"
"""Tag of a run that tells which judge it scored."""


ITEMS = "workbench.test_items"
"""Tags of a run, numbered, that tell on which items: digests with commas between."""


DIGITS = 8
"""Hexadecimal digits of an item's digest; that two of 10,000 items share one hardly matters."""


ITEMS_IN_A_TAG = 500
"""So that a tag stays below 5,000 characters, the least that a store takes."""


@dataclass(frozen=True)
class Looks:
    """How many judges were scored on the items of a test set, the original ones aside.

    Attributes
    ----------
    most, mean
        Judges an item: the largest number and the mean over items, those here included.
    earlier
        The largest number of others, that is of judges that were scored before.
    items
        Items in the test set; those with equal content are one.
    """

    most: int = 0
    mean: float = 0.0
    earlier: int = 0
    items: int = 0

    @property
    def note(self) -> str:
        """What the count means, in words; empty where nobody looked before."""
        if not self.earlier:
            return ""
        return (
            f"Held-out items were looked at before: of these {self.items}, some have now been used "
            f"to score {self.most} different judges (on average {self.mean:.1f}), what is scored "
            "here included. The best of several looks better than it is: label new traces to know "
            "how good it is."
        )


def looks(
    test: Pairs, items: Mapping[str, Example], *fingerprints: str, place: Place | None = None
) -> Looks:
    """The judges that were scored on these held-out pairs, those of ``fingerprints`` included.

    Read from the runs of all experiments in the store that is active, or that ``place`` names.
    """
    digests = test_items(test, items)
    judges: dict[str, set[str]] = defaultdict(set)
    for run in (place or Place.active()).runs(f"tags.`{ITEMS}.0` LIKE '%'"):
        judge = run.data.tags.get(JUDGE)
        if judge:
            for item in digests.intersection(_listed(run.data.tags)):
                judges[item].add(judge)
    here = set(fingerprints)
    counts = [len(judges[item] | here) for item in digests]
    return Looks(
        most=max(counts, default=0),
        mean=sum(counts) / len(counts) if counts else 0.0,
        earlier=max((len(judges[item] - here) for item in digests), default=0),
        items=len(digests),
    )


def marks(test: Pairs, items: Mapping[str, Example], fingerprint: str) -> dict[str, str]:
    """The tags by which a run tells that this judge is scored on these pairs."""
    digests = sorted(test_items(test, items))
    parts = range(0, len(digests), ITEMS_IN_A_TAG)
    listed = {
        f"{ITEMS}.{number}": ",".join(digests[begin : begin + ITEMS_IN_A_TAG])
        for number, begin in enumerate(parts)
    }
    return {JUDGE: fingerprint, **listed}


def test_items(test: Pairs, items: Mapping[str, Example]) -> set[str]:
    """What identifies the held-out items: their content, and the name of what people said."""
    return {_digest(test.name, items[trace_id]) for trace_id in test.trace_ids}


# Else pytest takes it for a test where it is imported.
test_items.__test__ = False  # type: ignore[attr-defined]


def _digest(name: str, item: Example) -> str:
    text = json.dumps([name, item_digest(item)])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _listed(tags: Mapping[str, str]) -> Iterator[str]:
    number = 0
    while (part := tags.get(f"{ITEMS}.{number}")) is not None:
        yield from part.split(",")
        number += 1


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
            traces = fetch_traces(dated, spans=False)
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


class Logbook:
    """One run; where the store does not take it, the result is kept and says so.

    Parameters
    ----------
    place
        Where the run is made.
    name
        Of the run.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.name = place, name
        self.run: Run | None = None
        self.fault = ""

    @contextmanager
    def kept(self, begin: Callable[[Run], None]) -> Iterator[None]:
        """Within it the test is made; ``begin`` writes what must be there before.

        What ends it early ends the run as failed, or as killed where somebody interrupted it.
        """
        try:
            self._try(lambda: self._begin(begin))
            yield
        except BaseException as error:
            # What is on its way must not be hidden by a store that does not answer.
            with suppress(Exception):
                if self.run is not None:
                    self.run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def _begin(self, begin: Callable[[Run], None]) -> None:
        self.run = self.place.begin(self.name)
        begin(self.run)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (MlflowException, OSError) as error:
            self.fault = str(error)

    def finish(self, alignment: Alignment) -> Alignment:
        """Write what came of it and end the run; the alignment with the run's id."""
        if not self.fault:
            self._try(lambda: self._finish(alignment))
        if self.fault or self.run is None:
            message = f"The alignment could not be logged as an MLflow run: {self.fault}"
            warnings.warn(message, stacklevel=3)
            return replace(alignment, notes=(*alignment.notes, message))
        return replace(alignment, run_id=self.run.run_id)

    def _finish(self, alignment: Alignment) -> None:
        assert self.run is not None
        write_outcome(self.run, alignment)
        self.run.end()


def write_before_test(
    run: Run,
    original: Judge,
    proposed: Judge,
    pairs: Pairs,
    split: Split,
    items: Mapping[str, Example],
    marks: Mapping[str, str],
    **settings: Any,
) -> None:
    """What is known before the test: judges, data, split, and by ``marks`` the look itself."""
    run.log_dict(split.to_dict(), "split.json")
    run.log_dict(labels_of(split), LABELS_FILE)
    run.log_dict(content_of(split, items), CONTENT_FILE)
    run.set_tags(
        {
            "workbench.fingerprint.original": fingerprint(original),
            JUDGE: fingerprint(proposed),
            "workbench.dataset_digest": dataset_digest(pairs),
            "workbench.split_digest": split.digest,
            **marks,
        }
    )
    run.log_params(
        {
            "judge": original.name,
            "model": getattr(original, "model", ""),
            **settings,
            "pairs": len(pairs),
            "train": len(split.train),
            "dev": len(split.dev),
            "test": len(split.test),
        }
    )
    run.log_text(str(getattr(original, "instructions", "")), "instructions/original.txt")
    run.log_text(str(getattr(proposed, "instructions", "")), "instructions/proposed.txt")


def write_outcome(run: Run, alignment: Alignment) -> None:
    """What is known after the test: status, figures, evidence, and the items that changed."""
    run.set_tags({"workbench.status": alignment.status})
    figures = {
        "calls": float(alignment.calls),
        "reflection_calls": float(alignment.reflection_calls),
        "failures": float(alignment.failures),
        "reflection_failures": float(alignment.reflection_failures),
        "seconds": alignment.seconds,
        "looks_at_test": float(alignment.looks),
    }
    for when, measured in (("before", alignment.before), ("after", alignment.after)):
        figures[f"{when}_accuracy"] = measured.accuracy
        figures[f"{when}_kappa"] = measured.kappa
    # An undefined statistic is no number, and MLflow plots would show it as one.
    run.log_metrics({k: v for k, v in figures.items() if v == v})
    run.log_dict(alignment.comparison.to_dict(), "comparison.json")
    run.log_dict({rule: list(ids) for rule, ids in alignment.evidence.items()}, "evidence.json")
    for name, table in changed_items(alignment).items():
        run.log_text(table.to_csv(index=False), f"items/{name}.csv")
    run.log_text(alignment.preflight.to_csv(index=False), "preflight.csv")
    run.log_text(alignment.history.to_csv(index=False), "history.csv")


def changed_items(alignment: Alignment) -> dict[str, pd.DataFrame]:
    """The held-out items ``fixed``, ``broken`` and ``still_wrong``, with everybody's reasons."""
    said = pd.DataFrame(
        {
            "trace_id": alignment.test_before.table["trace_id"],
            "human_rationale": alignment.test_before.table["human_rationale"],
            "before_rationale": alignment.test_before.table["judge_rationale"],
        }
    ).merge(
        alignment.test_after.table[["trace_id", "judge_rationale"]].rename(
            columns={"judge_rationale": "after_rationale"}
        ),
        on="trace_id",
    )
    comparison = alignment.comparison
    tables = {
        "fixed": comparison.fixed,
        "broken": comparison.broken,
        "still_wrong": comparison.still_wrong,
    }
    return {name: table.merge(said, on="trace_id", how="left") for name, table in tables.items()}
