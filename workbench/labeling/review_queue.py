"""MLflow's review queues as the shared work list of a team.

An expert in MLflow's own page and a data scientist in a notebook see each other's labels, since
both write assessments under the names of the queue's questions (label schemas). MLflow's status of
an item is shared by the team: one finished reviewer clears it for all. Here each person's status
follows from their own labels, and `ReviewQueue.sync` makes MLflow's status say whether all labels
that are wanted are there.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import mlflow
import pandas as pd
from mlflow.entities import TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.genai import review_queues
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.compat import add_review_queue_items
from workbench.errors import ArgumentError, StoreError, one_of
from workbench.formatting import check_text
from workbench.labeling.annotations import without_spans
from workbench.labeling.assignment import Assignment, shared_out
from workbench.labeling.questions import LabelQuestion, as_question, with_rubric
from workbench.scale import Scale
from workbench.store.database import all_pages, find_experiment_id, store_errors
from workbench.store.labels import label_records, same_person
from workbench.store.schemas import (
    asks_for_one,
    every_schema,
    make_schema,
    rubric_history,
    supported,
)
from workbench.store.traces import fetch_traces, trace_infos
from workbench.vocabulary import folded

_MAX_USERS: Final = 10  # as users of a queue in MLflow; larger teams are kept beside it only

_TAG: Final = "workbench.queue."  # of an experiment, followed by the id of a queue
_SETTINGS: Final = ("annotators", "each", "share", "batch_size", "seed")


class Synced(NamedTuple):
    """What `ReviewQueue.sync` changed in MLflow: items ``finished`` and ``reopened``."""

    finished: int
    reopened: int


@dataclass(frozen=True)
class QueueItem:
    trace_id: str
    info: TraceInfo
    status: str  # MLflow's, as is ``finished_by``
    finished_by: str | None
    batch: int
    labelled_by: tuple[str, ...]  # who has answered every required question
    wanted: int
    asked: tuple[str, ...]  # who of the team is to do so; () without a team

    def is_by(self, annotator: str) -> bool:
        return any(same_person(one, annotator) for one in self.labelled_by)

    def is_for(self, annotator: str) -> bool:
        """Whether the annotator is to label it, or has (see `ReviewQueue.of`)."""
        if self.status == "declined":
            return self.is_by(annotator)
        if self.asked:
            return any(same_person(one, annotator) for one in self.asked)
        handled = {folded(one) for one in (*self.labelled_by, self.finished_by) if one}
        return folded(annotator) in handled or len(handled) < self.wanted

    @property
    def done(self) -> bool:
        return len(self.labelled_by) >= self.wanted and all(map(self.is_by, self.asked))


@dataclass(frozen=True, repr=False)
class ReviewQueue:
    """A review queue of MLflow's, and how its items are shared out (see `workbench.review_queue`).

    Everything but the settings is read from the store whenever it is asked for. ``order`` holds
    the ids of the label schemas in the order of the questions, which MLflow does not keep.
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

    @property
    def trace_ids(self) -> list[str]:
        """The traces in the queue, those that were added first first."""
        return [item.item_id for item in self._entries()]

    @property
    def schemas(self) -> list[LabelSchema]:
        """The label schemas of its questions that ask for feedback, a single value each."""
        return [one for one in self._every_schema() if asks_for_one(one)]

    @property
    def left_out(self) -> list[str]:
        """The names of its other label schemas, which no panel asks."""
        return [one.name for one in self._every_schema() if not asks_for_one(one)]

    def _every_schema(self) -> list[LabelSchema]:
        found = every_schema(experiment=self.experiment_id)
        queue = review_queues.get_review_queue(self.queue_id)
        if str(queue.queue_type) == "user":  # a person's own list asks all of the experiment's
            return found
        kept = [one for one in found if one.schema_id in queue.schema_ids]
        return sorted(kept, key=lambda one: [*self.order, one.schema_id].index(one.schema_id))

    @property
    def questions(self) -> list[LabelQuestion]:
        """Its questions as a panel asks them, each with its current rubric.

        Ratings are required, free text is not unless there is nothing else.
        """
        schemas, experiment = self.schemas, self.experiment_id
        required = _required(schemas)
        asked = [LabelQuestion.of_schema(one, required=one.name in required) for one in schemas]
        return [with_rubric(one, rubric_history(one.name, experiment=experiment)) for one in asked]

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
        where = {trace.info.trace_id: str(trace.info.experiment_id) for trace in fetched}
        if others := [i for i, experiment in where.items() if experiment != self.experiment_id]:
            raise StoreError(
                f"{len(others)} of {len(where)} traces are not in the queue's experiment "
                f"{self.experiment_id}, for instance {others[0]}. A queue holds no others."
            )
        new = where.keys() - {*self.trace_ids}
        add_review_queue_items(self.queue_id, [i for i in where if i in new])
        return len(new)

    @property
    def assignment(self) -> Assignment:
        """Who of the team labels what; `ArgumentError` where the queue has no team."""
        if not self.annotators:
            raise ArgumentError(f"The queue {self.name!r} has no team: give it annotators=.")
        return self.shares_of(self.trace_ids)

    def shares_of(self, trace_ids: Iterable[str]) -> Assignment:
        options = (self.each, self.share, self.batch_size, self.seed)
        return shared_out(trace_ids, self.annotators, *options)

    def of(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """Return the traces that one annotator labels or has labelled.

        With a team these are the annotator's share (`assignment`), without one also those that
        fewer than ``each`` others have labelled. Items that were declined in MLflow are left out.
        ``batch`` takes those of one batch, from 0.
        """
        return [one.trace_id for one in self.share_of(annotator, self.read(), batch)]

    def open_for(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """Return those of `of` on which the annotator has not answered every required question."""
        mine = self.share_of(annotator, self.read(), batch)
        return [one.trace_id for one in mine if not one.is_by(annotator)]

    def share_of(
        self, annotator: str, items: Sequence[QueueItem], batch: int | None = None
    ) -> list[QueueItem]:
        if self.annotators and not any(same_person(one, annotator) for one in self.annotators):
            one_of("annotator", annotator, self.annotators)
        return [one for one in items if one.is_for(annotator) and batch in (None, one.batch)]

    @property
    def items(self) -> pd.DataFrame:
        """One row a trace: ``trace_id``, ``status`` in MLflow (pending, complete, declined),
        ``finished_by`` there, ``labelled_by`` (tuple), ``wanted`` (labels), ``done`` (whether
        they are there)."""
        columns = ["trace_id", "status", "finished_by", "labelled_by", "wanted", "done"]
        rows = [{**vars(item), "done": item.done} for item in self.read()]
        return pd.DataFrame(rows, columns=columns)

    @store_errors()
    def sync(self, items: Sequence[QueueItem] | None = None, *, by: str = "") -> Synced:
        """Make MLflow's status say whether the labels that are wanted are there.

        An item that has them is finished. One that somebody finished before the others had
        labelled it is opened again, so that it reaches them in MLflow's page too. One that was
        declined stays so, and so does one that is wanted once and was finished without a label,
        unless by ``by``. ``items`` are those that were just read, if any were.
        """
        items = self.read() if items is None else items
        set_status = partial(review_queues.set_review_queue_item_status, self.queue_id)
        finished = [one for one in items if one.done and one.status == "pending"]
        reopened = [
            one
            for one in items
            if not one.done and one.status == "complete"
            if one.wanted > 1 or (by and same_person(one.finished_by or "", by))
        ]
        for one in finished:
            by_whom = one.labelled_by[-1]
            set_status(item_id=one.trace_id, status="complete", completed_by=by_whom)
        for one in reopened:
            set_status(item_id=one.trace_id, status="pending")
        return Synced(len(finished), len(reopened))

    def _entries(self) -> list[Any]:
        read = partial(review_queues.list_review_queue_items, self.queue_id, max_results=500)
        found = all_pages(lambda token: read(page_token=token))
        # What is added meanwhile comes first and moves the pages: an item may come twice.
        unique = {item.item_id: item for item in found}
        return sorted(unique.values(), key=lambda item: (item.creation_time_ms, item.item_id))

    @store_errors()
    def read(self) -> list[QueueItem]:
        """Join MLflow's entries with the labels on their traces; deleted traces are left out."""
        entries = self._entries()
        infos = trace_infos([one.item_id for one in entries], experiment=self.experiment_id)
        done = self._labelled_by(infos)
        shares = self.shares_of(one.item_id for one in entries)
        asked = {i: shares.annotators_of(i) for i in infos}  # () without a team
        return [
            QueueItem(
                trace_id=i,
                info=infos[i],
                status=str(one.status),
                finished_by=one.completed_by,
                batch=shares.batch_of(i),
                labelled_by=tuple(done[i]),
                wanted=len(asked[i]) or self.each,
                asked=asked[i],
            )
            for one in entries
            if (i := one.item_id) in infos
        ]

    def _labelled_by(self, infos: Mapping[str, TraceInfo]) -> dict[str, list[str]]:
        """Who has answered every required question of each trace, in the order of doing so."""
        traces = [without_spans(info) for info in infos.values()]
        required = _required(self.schemas)
        given: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        for name in required:
            for one in label_records(traces, name):
                given[one.trace_id, folded(one.annotator)].append((one.created_ms, one.annotator))
        writing = {folded(name): name for name in self.annotators}
        finished = [(*max(n), *key) for key, n in given.items() if len(n) == len(required)]
        done: dict[str, list[str]] = defaultdict(list)
        for _, annotator, trace_id, who in sorted(finished):
            done[trace_id].append(writing.get(who, annotator))
        return done

    def __repr__(self) -> str:
        team = ", ".join(self.annotators) or "anyone"
        overlap = f"{self.each} each" + (f", {self.share:.0%} by all" if self.share else "")
        return f"<ReviewQueue {self.name!r}: {team}; {overlap}>"


def _required(schemas: Iterable[LabelSchema]) -> list[str]:
    """The names of the questions without whose answers an item is not labelled."""
    scales = {one.name: Scale.from_schema(one) for one in schemas}
    return [name for name, scale in scales.items() if scale is not None] or list(scales)


@store_errors()
def review_queue(
    name: str,
    questions: Iterable[Judge | LabelQuestion | str] | Judge | LabelQuestion | None = None,
    *,
    annotators: Iterable[str] | None = None,
    each: int | None = None,
    share: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    experiment: str | None = None,
) -> ReviewQueue:
    """Return the review queue of a name, and make it where there is none.

    What is given is stored for all annotators; what is not given stays as it is.

    Parameters
    ----------
    name
        The queue's name; MLflow does not tell small from capital letters in it.
    questions
        Needed for a new queue: judges, `LabelQuestion`, or names of label schemas. Each becomes
        a label schema of its name, with the current rubric or the judge's instructions beside it.
        MLflow locks the questions of a queue that holds traces.
    annotators
        The team; their names are those under which they label.
    each, share, batch_size, seed
        How the items are shared out (see `workbench.assign`); 1, 0, none and 0 for a new queue.
        Without a team ``each`` people label an item, whoever they are.
    experiment
        Name or id; the active one by default.

    Raises
    ------
    ArgumentError
        For a new queue without questions, and for numbers out of range.
    StoreError
        Where MLflow or the store has no review queues.

    Examples
    --------
    >>> queue = workbench.review_queue(
    ...     "pilot", [judge], annotators=["ana", "ben"], each=2
    ... )  # doctest: +SKIP
    >>> queue.add(trace_ids)  # doctest: +SKIP
    >>> workbench.LabelPanel(judge, queue, annotator="ana")  # doctest: +SKIP
    """
    check_text("name", name)
    where = find_experiment_id(experiment)
    with supported("review queues"):
        found = _find(name, where)
    stored = _stored(found, where) if found else ReviewQueue(name, "", where)
    options = dict(zip(_SETTINGS, (annotators, each, share, batch_size, seed), strict=True))
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    # All is checked before anything is written.
    shares = replace(stored, **given).shares_of([])
    queue = replace(stored, **{key: getattr(shares, key) for key in _SETTINGS})
    several = [questions] if isinstance(questions, (str, LabelQuestion, Judge)) else questions
    order = tuple(_schema_id(one, where) for one in several or ())
    with supported("review queues"):
        found = found or _make(name, where, order)
        _update(found, order, None if annotators is None else queue.annotators)
    queue = replace(queue, name=found.name, queue_id=found.queue_id, order=order or stored.order)
    if queue != stored:
        settings = {key: getattr(queue, key) for key in (*_SETTINGS, "order")}
        text, tag = json.dumps(settings, sort_keys=True), f"{_TAG}{found.queue_id}"
        mlflow.MlflowClient().set_experiment_tag(where, tag, text)
    return queue


def _find(name: str, experiment_id: str) -> Any:
    """MLflow's queue of a name; None where there is none."""
    try:
        return review_queues.get_review_queue(name=name, experiment_id=experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None


def _stored(queue: Any, experiment_id: str) -> ReviewQueue:
    """MLflow's queue with its settings, which lie in a tag of the experiment."""
    tags = mlflow.MlflowClient().get_experiment(experiment_id).tags
    settings = json.loads(tags.get(f"{_TAG}{queue.queue_id}", "{}"))
    settings |= {key: tuple(settings.get(key, ())) for key in ("annotators", "order")}
    return ReviewQueue(queue.name, queue.queue_id, experiment_id, **settings)


def _make(name: str, experiment_id: str, schema_ids: Sequence[str]) -> Any:
    if not schema_ids:
        every = review_queues.list_review_queues(experiment_id=experiment_id, max_results=100)
        known = ", ".join(repr(one.name) for one in every) or "none"
        raise ArgumentError(
            f"There is no review queue {name!r} in experiment {experiment_id} (existing: "
            f"{known}). To make it, give its questions: judges or names of label schemas."
        )
    return review_queues.create_review_queue(
        name, queue_type="custom", schema_ids=list(schema_ids), experiment_id=experiment_id
    )


def _update(queue: Any, schema_ids: Sequence[str], team: Sequence[str] | None) -> None:
    if schema_ids and set(schema_ids) != set(queue.schema_ids):
        review_queues.update_review_queue(queue.queue_id, schema_ids=list(schema_ids))
    if team is not None and str(queue.queue_type) != "user":
        users = list(team) if len(team) <= _MAX_USERS else []
        if [folded(one) for one in users] != queue.users:
            review_queues.update_review_queue(queue.queue_id, users=users)


def _schema_id(given: Judge | LabelQuestion | str, experiment_id: str) -> str:
    asked = as_question(given, experiment_id)
    asked = with_rubric(asked, rubric_history(asked.name, experiment=experiment_id))
    made = make_schema(asked.name, asked.scale, instruction=asked.rubric, experiment=experiment_id)
    return str(made.schema_id)
