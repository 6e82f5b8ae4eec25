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

from workbench.compat import add_review_queue_items
from workbench.errors import ArgumentError, StoreError, one_of
from workbench.labeling.annotations import without_spans
from workbench.labeling.assignment import Assignment, assign
from workbench.labeling.questions import LabelQuestion
from workbench.scale import Scale
from workbench.store.labels import folded, label_records, same_person
from workbench.store.rubrics import rubric
from workbench.store.schemas import (
    asks_for_feedback,
    every_schema,
    supported,
)
from workbench.store.traces import (
    fetch_traces,
    store_errors,
    trace_infos,
)

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

    @property
    def handled_by(self) -> set[str]:
        """Who labelled it or finished it in MLflow, folded."""
        return {folded(one) for one in (*self.labelled_by, self.finished_by) if one}

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

    def of(self, annotator: str, *, batch: int | None = None) -> list[QueueItem]:
        """Return the items that one annotator labels, see `ReviewQueue.of`."""
        who, items = folded(annotator), self.items
        if self.queue.annotators:
            names = {folded(name): name for name in self.queue.annotators}
            if who not in names:
                one_of("annotator", annotator, self.queue.annotators)
            assignment = self.queue.assign([item.trace_id for item in items])
            own = set(assignment.of(names[who], batch=batch))
            mine = [item for item in items if item.trace_id in own]
        else:
            if batch is not None:
                size = self.queue.batch_size or max(1, len(items))
                items = items[batch * size : (batch + 1) * size]
            each = self.queue.each
            mine = [
                item
                for item in items
                if who in item.handled_by or len(item.handled_by - {who}) < each
            ]
        return [item for item in mine if item.status != "declined" or item.is_by(annotator)]

    @property
    def batches(self) -> dict[str, int]:
        """The batch of each trace, counted from 0."""
        size = self.queue.batch_size or len(self.items) + 1
        return {item.trace_id: place // size for place, item in enumerate(self.items)}


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
            queue = review_queues_api().get_review_queue(self.queue_id)
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
        questions = []
        for schema in schemas:
            now = rubric(schema.name, experiment=self.experiment_id)
            current = {} if now is None else {"rubric": now.text, "rubric_version": now.version}
            questions.append(
                LabelQuestion.of_schema(schema, required=schema.name in required, **current)
            )
        return questions

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
    def sync_items(self, added: Mapping[str, int], by: str | None = None) -> Synced:
        """Do what `sync` does for a few items, without reading the queue.

        ``added`` says when each was added, by trace id, in milliseconds. What ``by`` had
        finished and has no label on any more is opened again, though one person is enough.
        """
        api = review_queues_api()
        # Adding what is there changes nothing, and returns its status.
        entries = api.add_items_to_review_queue(self.queue_id, item_ids=list(added))
        removed = [e.item_id for e in entries if e.creation_time_ms > added[e.item_id]]
        if removed:
            # Someone has taken it out since: it is not to come back.
            api.remove_items_from_review_queue(self.queue_id, item_ids=removed)
        kept = [entry for entry in entries if entry.item_id not in removed]
        infos = trace_infos([e.item_id for e in kept], experiment=self.experiment_id)
        return self._set_statuses(self._queue_items(kept, infos), by)

    def _set_statuses(self, items: Iterable[QueueItem], by: str | None = None) -> Synced:
        """An item that is wanted once and was finished without a label stays finished: whoever
        did that in MLflow's page decided so. Only ``by`` may take back what was theirs."""
        api = review_queues_api()
        finished = reopened = 0
        for item in items:
            is_own = by is not None and item.finished_by and same_person(item.finished_by, by)
            if item.done and item.status == "pending":
                api.set_review_queue_item_status(
                    self.queue_id,
                    item_id=item.trace_id,
                    status="complete",
                    completed_by=item.labelled_by[-1],
                )
                finished += 1
            elif not item.done and item.status == "complete" and (item.wanted > 1 or is_own):
                api.set_review_queue_item_status(
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
        return Snapshot(self, tuple(self._queue_items(entries, infos)), infos)

    def _entries(self) -> list[Any]:
        api = review_queues_api()
        found: dict[str, Any] = {}
        token = None
        with supported("review queues"):
            while True:
                page = api.list_review_queue_items(
                    self.queue_id, max_results=_PAGE, page_token=token
                )
                # What is added meanwhile comes first and moves the pages: an item may come twice.
                found.update((item.item_id, item) for item in page)
                token = page.token
                if not token:
                    break
        return sorted(found.values(), key=lambda item: (item.creation_time_ms, item.item_id))

    def _queue_items(
        self, entries: Sequence[Any], infos: Mapping[str, TraceInfo]
    ) -> list[QueueItem]:
        """Join MLflow's entries with the labels on their traces; deleted traces are left out."""
        traces = [without_spans(info) for info in infos.values()]
        # When, and in which writing, each person answered: by question, trace and folded name.
        given: list[dict[str, dict[str, tuple[int, str]]]] = []
        for name in _required(self.schemas):
            answers: dict[str, dict[str, tuple[int, str]]] = {}
            for label in label_records(traces, name):
                when = (label.created_ms, label.annotator)
                answers.setdefault(label.trace_id, {})[folded(label.annotator)] = when
            given.append(answers)
        writing = {folded(name): name for name in self.annotators}
        assignment = self.assign([e.item_id for e in entries]) if self.annotators else None
        items = []
        for entry in entries:
            if entry.item_id not in infos:
                continue
            here = [answers.get(entry.item_id, {}) for answers in given]
            everywhere = set.intersection(*map(set, here)) if here else set()
            # In the order in which they were done with the last question.
            last = {who: max(answers[who] for answers in here) for who in everywhere}
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


def review_queues_api() -> Any:
    """Return MLflow's functions for review queues, or raise `StoreError`."""
    try:
        from mlflow.genai import review_queues
    except ImportError:  # pragma: no cover - older than what the workbench asks for
        with supported("review queues"):
            raise NotImplementedError from None
    return review_queues
