"""MLflow's review queues as the shared work list of a team.

An expert in MLflow's own page and a data scientist in a notebook work on the same queue and see
each other's labels, since both write assessments under the names of the queue's questions (label
schemas).

MLflow's status of an item is shared by the team: one finished reviewer clears it for all. Here
each person's status follows from their own labels, and `ReviewQueue.sync` makes MLflow's status
say whether all labels that are wanted are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from mlflow.entities import TraceInfo
from mlflow.genai import review_queues

from workbench.compat import add_review_queue_items
from workbench.errors import ArgumentError, StoreError, one_of
from workbench.labeling.annotations import without_spans
from workbench.labeling.assignment import Assignment, assign
from workbench.labeling.questions import LabelQuestion, with_rubric
from workbench.scale import Scale
from workbench.store.labels import folded, label_records, same_person
from workbench.store.rubrics import rubric_history
from workbench.store.schemas import asks_for_feedback, every_schema, supported
from workbench.store.traces import all_pages, fetch_traces, store_errors, trace_infos

if TYPE_CHECKING:
    from mlflow.genai.label_schemas import LabelSchema

_PAGE: Final = 500


@dataclass(frozen=True)
class Synced:
    """What `ReviewQueue.sync` changed in MLflow: items ``finished`` and ``reopened``."""

    finished: int
    reopened: int


@dataclass(frozen=True)
class QueueItem:
    """One item of a review queue.

    ``status`` and ``finished_by`` are MLflow's; ``labelled_by`` those who have answered every
    required question, ``asked`` those of the team who are to do so, None without a team.
    """

    trace_id: str
    status: str
    finished_by: str | None
    added_ms: int
    labelled_by: tuple[str, ...]
    wanted: int
    asked: tuple[str, ...] | None

    def is_by(self, annotator: str) -> bool:
        """Whether the annotator has labelled it."""
        return any(same_person(one, annotator) for one in self.labelled_by)

    def is_for(self, annotator: str) -> bool:
        """Whether the annotator is to label it, or has: an item of their share, or, without a
        team, one that fewer than the wanted number of others have labelled or finished."""
        if self.status == "declined":
            return self.is_by(annotator)
        if self.asked is not None:
            return any(same_person(one, annotator) for one in self.asked)
        handled = {folded(one) for one in (*self.labelled_by, self.finished_by) if one}
        return folded(annotator) in handled or len(handled) < self.wanted

    @property
    def done(self) -> bool:
        """Whether the labels that are wanted are there."""
        if self.asked is not None:
            return all(map(self.is_by, self.asked))
        return len(self.labelled_by) >= self.wanted


@dataclass(frozen=True)
class Snapshot:
    """The items of a review queue at one moment, those that were added first first."""

    queue: ReviewQueue
    items: tuple[QueueItem, ...]
    infos: Mapping[str, TraceInfo]
    batches: Mapping[str, int]

    def of(self, annotator: str, *, batch: int | None = None) -> list[QueueItem]:
        """Return the items that one annotator labels, see `ReviewQueue.of`."""
        team = self.queue.annotators
        if team and not any(same_person(one, annotator) for one in team):
            one_of("annotator", annotator, team)
        return [
            item
            for item in self.items
            if item.is_for(annotator) and batch in (None, self.batches[item.trace_id])
        ]


@dataclass(frozen=True, repr=False)
class ReviewQueue:
    """A review queue of MLflow's, and how its items are shared out.

    Everything but the settings is read from the store whenever it is asked for.

    Attributes
    ----------
    name, queue_id, experiment_id
        The queue in MLflow.
    annotators
        The team, in their own writing; empty: whoever comes.
    each
        How many people are to label an item.
    share
        Share of the items that all of the team label, in [0, 1].
    batch_size, seed
        See `workbench.assign`.
    order
        Ids of the label schemas in the order of the questions, which MLflow does not keep.
    """

    name: str
    queue_id: str
    experiment_id: str
    annotators: tuple[str, ...] = ()
    each: int = 1
    share: float = 0.0
    batch_size: int | None = None
    seed: int = 0
    order: tuple[str, ...] = ()

    # -- contents -----------------------------------------------------------------------

    @property
    def trace_ids(self) -> list[str]:
        """The traces in the queue, those that were added first first."""
        return [item.item_id for item in self._entries()]

    @property
    def schemas(self) -> list[LabelSchema]:
        """The label schemas of its questions that ask for feedback."""
        return [one for one in self._schemas() if asks_for_feedback(one)]

    @property
    def left_out(self) -> list[str]:
        """The names of its label schemas that ask for expectations, which no panel takes."""
        return [one.name for one in self._schemas() if not asks_for_feedback(one)]

    def _schemas(self) -> list[LabelSchema]:
        found = every_schema(experiment=self.experiment_id)
        with supported("review queues"):
            queue = review_queues.get_review_queue(self.queue_id)
        if str(queue.queue_type) == "user":  # a person's own list asks all of the experiment's
            return found
        kept = [one for one in found if one.schema_id in queue.schema_ids]
        places = {schema_id: place for place, schema_id in enumerate(self.order)}
        return sorted(kept, key=lambda one: places.get(one.schema_id, len(places)))

    @property
    def questions(self) -> list[LabelQuestion]:
        """Its questions as a panel asks them, each with its current rubric.

        Ratings are required, free text is not unless there is nothing else.
        """
        schemas = self.schemas
        required = _required(schemas)
        return [
            with_rubric(
                LabelQuestion.of_schema(one, required=one.name in required),
                rubric_history(one.name, experiment=self.experiment_id),
            )
            for one in schemas
        ]

    @store_errors()
    def add(self, traces: Any) -> int:
        """Put traces into the queue, and return how many were not in it yet.

        ``traces`` is as in `workbench.pair`; None takes the queue's whole experiment.

        Raises
        ------
        StoreError
            For traces of another experiment, which MLflow's queues do not hold.
        """
        fetched = fetch_traces(traces, spans=False, experiment=self.experiment_id)
        others = [t for t in fetched if str(t.info.experiment_id) != self.experiment_id]
        if others:
            raise StoreError(
                f"{len(others)} of {len(fetched)} traces are not in the queue's experiment "
                f"{self.experiment_id}, for instance {others[0].info.trace_id}. A review queue "
                "holds traces of its own experiment only."
            )
        there = set(self.trace_ids)
        new = [t.info.trace_id for t in fetched if t.info.trace_id not in there]
        with supported("review queues"):
            add_review_queue_items(self.queue_id, new)
        return len(new)

    # -- who has what to do -------------------------------------------------------------

    @property
    def assignment(self) -> Assignment:
        """Who of the team labels what; `ArgumentError` where the queue has no team."""
        return self.assign(self.trace_ids)

    def assign(self, trace_ids: Sequence[str]) -> Assignment:
        """Return who of the team labels which of these traces."""
        if not self.annotators:
            raise ArgumentError(
                f"The queue {self.name!r} has no team. Name it: workbench.review_queue("
                f"{self.name!r}, annotators=[...], each=...)."
            )
        return assign(
            list(trace_ids),
            self.annotators,
            each=self.each,
            share=self.share,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def of(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """Return the traces that one annotator labels, also those that they have labelled.

        With a team these are the annotator's share (`assignment`). Without one they are those
        that the annotator has labelled and those that fewer than ``each`` others have. Items
        that were declined in MLflow are left out. ``batch`` takes those of one batch, from 0.
        """
        return [item.trace_id for item in self.read().of(annotator, batch=batch)]

    def open_for(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """Return those of `of` on which the annotator has not answered every required question."""
        mine = self.read().of(annotator, batch=batch)
        return [item.trace_id for item in mine if not item.is_by(annotator)]

    @property
    def items(self) -> pd.DataFrame:
        """One row a trace: ``trace_id``, ``status`` in MLflow (pending, complete, declined),
        ``finished_by`` there, ``labelled_by`` (tuple), ``wanted`` (labels), ``done`` (whether
        they are there)."""
        columns = ["trace_id", "status", "finished_by", "labelled_by", "wanted", "done"]
        rows = [[getattr(item, column) for column in columns] for item in self.read().items]
        return pd.DataFrame(rows, columns=columns)

    # -- MLflow's status ----------------------------------------------------------------

    @store_errors()
    def sync(self, snapshot: Snapshot | None = None) -> Synced:
        """Make MLflow's status say whether the labels that are wanted are there.

        An item that has them is finished. One that somebody finished before the others had
        labelled it is opened again, so that it reaches them in MLflow's page too. One that was
        declined stays so. ``snapshot`` is what was just read, if anything was.
        """
        return self._set_statuses((snapshot or self.read()).items)

    @store_errors()
    def sync_item(self, trace_id: str, added_ms: int, by: str) -> Synced:
        """Do what `sync` does for the item added at that time, without reading the queue.

        What ``by`` had finished and has no label on any more is opened again, though one person
        is enough.
        """
        # Adding what is there changes nothing, and returns its status.
        (entry,) = review_queues.add_items_to_review_queue(self.queue_id, item_ids=[trace_id])
        if entry.creation_time_ms > added_ms:
            # Someone has taken it out since: it is not to come back.
            review_queues.remove_items_from_review_queue(self.queue_id, item_ids=[trace_id])
            return Synced(0, 0)
        infos = trace_infos([trace_id], experiment=self.experiment_id)
        return self._set_statuses(self._queue_items([entry], infos), by)

    def _set_statuses(self, items: Iterable[QueueItem], by: str | None = None) -> Synced:
        """An item that is wanted once and was finished without a label stays finished: whoever
        did that in MLflow's page decided so. Only ``by`` may take back what was theirs."""
        finished = reopened = 0
        for item in items:
            is_own = by is not None and item.finished_by and same_person(item.finished_by, by)
            if item.done and item.status == "pending":
                review_queues.set_review_queue_item_status(
                    self.queue_id,
                    item_id=item.trace_id,
                    status="complete",
                    completed_by=item.labelled_by[-1],
                )
                finished += 1
            elif not item.done and item.status == "complete" and (item.wanted > 1 or is_own):
                review_queues.set_review_queue_item_status(
                    self.queue_id, item_id=item.trace_id, status="pending"
                )
                reopened += 1
        return Synced(finished, reopened)

    # -- reading ------------------------------------------------------------------------

    @store_errors()
    def read(self) -> Snapshot:
        """Read the queue and its traces from the store."""
        entries = self._entries()
        infos = trace_infos([e.item_id for e in entries], experiment=self.experiment_id)
        size = self.batch_size or len(entries) + 1
        batches = {entry.item_id: place // size for place, entry in enumerate(entries)}
        return Snapshot(self, tuple(self._queue_items(entries, infos)), infos, batches)

    def _entries(self) -> list[Any]:
        with supported("review queues"):
            found = all_pages(
                lambda token: review_queues.list_review_queue_items(
                    self.queue_id, max_results=_PAGE, page_token=token
                )
            )
        # What is added meanwhile comes first and moves the pages: an item may come twice.
        unique = {item.item_id: item for item in found}
        return sorted(unique.values(), key=lambda item: (item.creation_time_ms, item.item_id))

    def _queue_items(
        self, entries: Sequence[Any], infos: Mapping[str, TraceInfo]
    ) -> list[QueueItem]:
        """Join MLflow's entries with the labels on their traces; deleted traces are left out."""
        traces = [without_spans(info) for info in infos.values()]
        required = _required(self.schemas)
        # When, and in which writing, each person answered: by trace, folded name and question.
        answers: dict[str, dict[str, dict[str, tuple[int, str]]]] = {i: {} for i in infos}
        for name in required:
            for label in label_records(traces, name):
                given = answers[label.trace_id].setdefault(folded(label.annotator), {})
                given[name] = (label.created_ms, label.annotator)
        writing = {folded(name): name for name in self.annotators}
        assignment = self.assign([e.item_id for e in entries]) if self.annotators else None
        items = []
        for entry in entries:
            if entry.item_id not in infos:
                continue
            # In the order in which they were done with the last question.
            last = {
                who: max(given.values())
                for who, given in answers[entry.item_id].items()
                if len(given) == len(required)
            }
            by_time = sorted(last, key=lambda who: last[who])
            asked = assignment.annotators_of(entry.item_id) if assignment else None
            items.append(
                QueueItem(
                    trace_id=entry.item_id,
                    status=str(entry.status),
                    finished_by=entry.completed_by,
                    added_ms=entry.creation_time_ms,
                    labelled_by=tuple(writing.get(who, last[who][1]) for who in by_time),
                    wanted=self.each if asked is None else len(asked),
                    asked=asked,
                )
            )
        return items

    def __repr__(self) -> str:
        team = ", ".join(self.annotators) or "whoever comes"
        overlap = f"{self.each} each" + (f", {self.share:.0%} by all" if self.share else "")
        return f"<ReviewQueue {self.name!r}: {team}; {overlap}>"


def _required(schemas: Iterable[LabelSchema]) -> list[str]:
    """The names of the questions without whose answers an item is not labelled."""
    scales = {one.name: Scale.from_schema(one) for one in schemas}
    return [name for name, scale in scales.items() if scale is not None] or list(scales)
