"""MLflow's review queues as the shared work list of a team.

An expert in MLflow's own page and a data scientist in a notebook work on the same queue and see
each other's labels, since both write assessments under the names of the queue's questions (label
schemas).

MLflow's status of a queue item is shared by the team: one finished reviewer clears it for all. So
here each person's own status follows from their own labels, and `ReviewQueue.sync` makes MLflow's
status say whether all labels that are wanted are there: it finishes items that have them and opens
those again that one person finished where others are to label them too.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import mlflow
import pandas as pd
from mlflow.entities import Trace, TraceData, TraceInfo
from mlflow.exceptions import MlflowException

from workbench.errors import ArgumentError, StoreError, one_of
from workbench.labeling.assignment import Assignment, assign
from workbench.labeling.questions import LabelQuestion, question_of
from workbench.labeling.writer import Job, Saver
from workbench.scale import Scale
from workbench.store.labels import folded, label_records, same_person
from workbench.store.rubrics import rubric
from workbench.store.schemas import (
    asks_for_feedback,
    every_schema,
    find_schema,
    make_schema,
    scale_of_question,
    supported,
)
from workbench.store.traces import (
    fetch_traces,
    find_experiment_id,
    retrying,
    store_errors,
    store_message,
    trace_infos,
)

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema


_log = logging.getLogger(__name__)


MAX_USERS: Final = 10
"""People that MLflow takes as the assigned users of a queue."""


_TAG: Final = "workbench.queue."

_PAGE: Final = 500

_BATCH: Final = 500


@dataclass(frozen=True)
class Synced:
    """What `ReviewQueue.sync` changed in MLflow: items ``finished`` and ``reopened``."""

    finished: int
    reopened: int


@dataclass(frozen=True)
class Share:
    """One annotator's part of a queue: ``trace_ids`` in order; ``infos`` and ``batches`` (from 0)
    are of all of the queue's traces."""

    trace_ids: tuple[str, ...]
    infos: Mapping[str, TraceInfo]
    batches: Mapping[str, int]


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

    # -- what is in it ------------------------------------------------------------------

    @property
    def trace_ids(self) -> list[str]:
        """The traces in the queue, those that were added first first."""
        return [item.item_id for item in self._items()]

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
        queue = _queue(self.queue_id)
        if str(queue.queue_type) == "user":  # a person's own list asks all of the experiment's
            return found
        kept = [one for one in found if one.schema_id in queue.schema_ids]
        places = {schema_id: place for place, schema_id in enumerate(self.order)}
        return sorted(kept, key=lambda one: places.get(one.schema_id, len(places)))

    @property
    def questions(self) -> list[LabelQuestion]:
        """Its questions as a panel asks them, each with its rubric as it reads now.

        Ratings are required, free text is not unless there is nothing else.
        """
        schemas = self.schemas
        needed = set(self._required())
        made = []
        for schema in schemas:
            required = schema.name in needed
            now = rubric(schema.name, experiment=self.experiment_id)
            told: dict[str, Any] = {}
            if now is not None:
                told = {"rubric": now.text, "rubric_version": now.version}
            made.append(question_of(schema, required=required, **told))
        return made

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
        strange = [t for t in fetched if str(t.info.experiment_id) != self.experiment_id]
        if strange:
            raise StoreError(
                f"{len(strange)} of {len(fetched)} traces are not in the queue's experiment "
                f"{self.experiment_id}, for instance {strange[0].info.trace_id}. A review queue "
                "holds traces of its own experiment only."
            )
        there = set(self.trace_ids)
        new = [t.info.trace_id for t in fetched if t.info.trace_id not in there]
        api = _api()
        for start in range(0, len(new), _BATCH):
            with supported("review queues"):
                retrying(
                    api.add_items_to_review_queue,
                    self.queue_id,
                    item_ids=new[start : start + _BATCH],
                )
        return len(new)

    # -- who has what to do -------------------------------------------------------------

    @property
    def assignment(self) -> Assignment:
        """Who of the team labels what; `ArgumentError` where the queue has no team."""
        return self._assignment(self.trace_ids)

    def of(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """The traces that one annotator labels, also those that they have labelled.

        With a team these are the annotator's share (`assignment`). Without one they are those
        that the annotator has labelled and those that fewer than ``each`` others have; the
        shared status in MLflow has no influence but that items which were declined there are
        left out. ``batch`` takes those of one batch, counted from 0.
        """
        return [one.trace_id for one in self._mine(annotator, batch)]

    def share_of(self, annotator: str) -> Share:
        """What `of` says, with the traces and their batches, from one reading of the store."""
        entries = self._entries()
        infos = trace_infos(list(entries), experiment=self.experiment_id)
        every = self._standing(entries, infos)
        size = self.batch_size or len(every) + 1
        return Share(
            trace_ids=tuple(one.trace_id for one in self._mine(annotator, None, every)),
            infos=infos,
            batches={one.trace_id: place // size for place, one in enumerate(every)},
        )

    def open_for(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """Those of `of` on which the annotator has not answered every required question."""
        who = folded(annotator)
        return [
            one.trace_id
            for one in self._mine(annotator, batch)
            if who not in map(folded, one.labelled_by)
        ]

    @property
    def items(self) -> pd.DataFrame:
        """One row a trace: ``trace_id``, ``status`` in MLflow (pending, complete, declined),
        ``finished_by`` there, ``labelled_by`` (tuple), ``wanted`` (labels), ``done`` (whether
        they are there)."""
        rows = [
            (x.trace_id, x.status, x.finished_by, x.labelled_by, x.wanted, x.done)
            for x in self._standing()
        ]
        columns = ["trace_id", "status", "finished_by", "labelled_by", "wanted", "done"]
        return pd.DataFrame(rows, columns=columns)

    @store_errors()
    def sync(self) -> Synced:
        """Make MLflow's status say whether the labels that are wanted are there.

        An item that has them is finished. One that somebody finished before the others had
        labelled it is opened again, so that it reaches them in MLflow's page too. One that was
        declined stays so.
        """
        return self._bring_in_step(self._standing())

    @store_errors()
    def settle(self, trace_ids: Sequence[str], by: str | None = None) -> Synced:
        """What `sync` does, for a few items that have just been labelled or skipped, or whose
        label was taken back, ``by`` someone.

        What that person had finished and has no label on any more is opened again, though one
        person alone is to label it.
        """
        # What MLflow says of them now: what people set there since is theirs.
        entries = self._entries()
        asked = {i: entries[i] for i in trace_ids if i in entries}
        return self._bring_in_step(self._standing(asked), by)

    def _bring_in_step(self, standing: Iterable[_Item], by: str | None = None) -> Synced:
        """Set the statuses that are not as the labels say.

        An item that is wanted once and was finished without a label stays finished: whoever did
        that in MLflow's page has had their say. Only ``by`` may take back what was theirs.
        """
        api = _api()
        finished = reopened = 0
        for one in standing:
            if one.done and one.status == "pending":
                api.set_review_queue_item_status(
                    self.queue_id,
                    item_id=one.trace_id,
                    status="complete",
                    completed_by=one.labelled_by[-1],
                )
                finished += 1
            elif (
                not one.done
                and one.status == "complete"
                and (one.wanted > 1 or (by is not None and one.was_finished_by(by)))
            ):
                api.set_review_queue_item_status(
                    self.queue_id, item_id=one.trace_id, status="pending"
                )
                reopened += 1
        return Synced(finished, reopened)

    # -- reading ------------------------------------------------------------------------

    def _items(self) -> list[Any]:
        api = _api()
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

    def _assignment(self, trace_ids: Sequence[str]) -> Assignment:
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

    def _mine(
        self, annotator: str, batch: int | None, every: list[_Item] | None = None
    ) -> list[_Item]:
        every = self._standing() if every is None else every
        who = folded(annotator)
        if self.annotators:
            names = {folded(name): name for name in self.annotators}
            one_of("annotator", annotator, self.annotators) if who not in names else None
            own = set(self._assignment([x.trace_id for x in every]).of(names[who], batch=batch))
            mine = [x for x in every if x.trace_id in own]
        else:
            if batch is not None:
                size = self.batch_size or max(1, len(every))
                every = every[batch * size : (batch + 1) * size]
            mine = [
                x for x in every if len(x.handled_by - {who}) < self.each or who in x.handled_by
            ]
        return [x for x in mine if x.status != "declined" or who in map(folded, x.labelled_by)]

    def _required(self) -> list[str]:
        """The names of the questions without whose answers an item is not labelled."""
        scales = {one.name: Scale.from_schema(one) for one in self.schemas}
        return [name for name, scale in scales.items() if scale is not None] or list(scales)

    def _entries(self) -> dict[str, tuple[str, str | None]]:
        return {x.item_id: (str(x.status), x.completed_by) for x in self._items()}

    def _standing(
        self,
        entries: Mapping[str, tuple[str, str | None]] | None = None,
        infos: Mapping[str, TraceInfo] | None = None,
    ) -> list[_Item]:
        """Where items stand; ``entries`` are trace id -> (status, who finished it) in MLflow, by
        default those of all; ``infos`` the traces, where they were just read."""
        entries = self._entries() if entries is None else entries
        ids = list(entries)
        if infos is None:
            infos = trace_infos(ids, experiment=self.experiment_id)
        traces = [Trace(info, TraceData(spans=[])) for info in infos.values()]
        required = self._required()
        by_question: list[dict[str, dict[str, tuple[int, str]]]] = []
        for name in required:
            said: dict[str, dict[str, tuple[int, str]]] = {}
            for label in label_records(traces, name):
                when = (label.created_ms, label.annotator)
                said.setdefault(label.trace_id, {})[folded(label.annotator)] = when
            by_question.append(said)
        own_writing = {folded(name): name for name in self.annotators}
        parts = self._assignment(ids) if self.annotators else None
        made = []
        for trace_id, (status, finished_by) in entries.items():
            if trace_id not in infos:  # the trace was deleted
                continue
            given = [said.get(trace_id, {}) for said in by_question]
            everywhere = set.intersection(*map(set, given)) if given else set()
            # In the order in which they were done with the last question.
            last = {who: max(said[who] for said in given) for who in everywhere}
            order = sorted(last, key=lambda who: last[who])
            asked = None if parts is None else parts.annotators_of(trace_id)
            made.append(
                _Item(
                    trace_id=trace_id,
                    status=status,
                    finished_by=finished_by,
                    labelled_by=tuple(own_writing.get(who, last[who][1]) for who in order),
                    wanted=self.each if asked is None else len(asked),
                    asked=asked,
                )
            )
        return made

    def __repr__(self) -> str:
        team = ", ".join(self.annotators) or "whoever comes"
        overlap = f"{self.each} each" + (f", {self.share:.0%} by all" if self.share else "")
        return f"<ReviewQueue {self.name!r}: {team}; {overlap}>"


class QueueKeeper:
    """Keeps MLflow's status of a queue's items in step with what one annotator does.

    It works in a thread of its own and tries again until the store answers, so that nobody who
    labels waits for it. What it could not do, `ReviewQueue.sync` does.

    ``on_change`` is called, from that thread, when ``note_of_trouble`` has changed.
    """

    def __init__(
        self, queue: ReviewQueue, annotator: str, on_change: Callable[[], None] | None = None
    ) -> None:
        self.queue = queue
        self._annotator = annotator
        self.note_of_trouble = ""
        self._on_change = on_change
        self._saver = Saver(self)
        self._syncing = threading.Lock()

    def note(self, trace_ids: Iterable[str]) -> None:
        """These have been labelled, or their labels taken back; returns at once."""
        for trace_id in trace_ids:
            settle = partial(self.queue.settle, [trace_id], self._annotator)
            self._saver.put(Job(trace_id, trace_id, settle))

    def sync(self) -> None:
        """Have the status of all items brought in step; returns at once."""
        # One that waits will see what this one would.
        if self._syncing.acquire(blocking=False):
            self._saver.put(Job("sync", "sync", self.queue.sync))

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until MLflow's status is in step, or so long at most; whether it is."""
        return self._saver.flush(seconds)

    def written(self, job: Job, result: Any) -> None:
        """The status of an item, or of all, is in step."""
        self._settled(job)
        self._say("")

    def delayed(self, error: str) -> None:
        """Nothing is written just now; the labels themselves say so where people look."""
        self._say(f"The queue {self.queue.name!r} in MLflow's page lags behind: {error}")

    def refused(self, job: Job, error: str) -> None:
        """An item's status stays as it is, for instance since it was taken out of the queue."""
        self._settled(job)
        if job.key == "sync":
            self._say(f"The queue {self.queue.name!r} in MLflow's page was not updated: {error}")
        _log.info("the status of %s in queue %r stays: %s", job.trace_id, self.queue.name, error)

    def _settled(self, job: Job) -> None:
        if job.key == "sync":
            self._syncing.release()

    def _say(self, note: str) -> None:
        if note != self.note_of_trouble:
            self.note_of_trouble = note
            if self._on_change is not None:
                self._on_change()


@dataclass(frozen=True)
class _Item:
    """Where an item stands; ``asked`` are those of the team who are to label it."""

    trace_id: str
    status: str
    finished_by: str | None
    labelled_by: tuple[str, ...]
    wanted: int
    asked: tuple[str, ...] | None

    def was_finished_by(self, name: str) -> bool:
        """Whether it was this person who finished it in MLflow."""
        return self.finished_by is not None and same_person(self.finished_by, name)

    @property
    def handled_by(self) -> set[str]:
        """Who labelled it or finished it in MLflow, folded."""
        finished = {folded(self.finished_by)} if self.finished_by else set()
        return {*map(folded, self.labelled_by), *finished}

    @property
    def done(self) -> bool:
        there = set(map(folded, self.labelled_by))
        if self.asked is not None:
            return set(map(folded, self.asked)) <= there
        return len(there) >= self.wanted


@store_errors()
def review_queue(
    name: str,
    questions: Iterable[Judge | LabelQuestion | str] | None = None,
    *,
    annotators: Iterable[str] | None = None,
    each: int | None = None,
    share: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    experiment: str | None = None,
) -> ReviewQueue:
    """The review queue of a name, made where there is none.

    What is given is written to the store, where every annotator finds it; what is not given
    stays as it is there.

    Parameters
    ----------
    name
        The queue's name; MLflow does not tell small from capital letters in it.
    questions
        Needed for a new queue: judges, `LabelQuestion`, or names of label schemas. Each becomes
        a label schema of its name, with the current rubric or the judge's instructions as what
        MLflow's page shows beside it. MLflow locks the questions of a queue that holds traces.
    annotators
        The team; their names are those under which they label. MLflow takes at most 10 as a
        queue's users; a larger team is kept beside the queue and shares it out as well.
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
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError(f"name={name!r} must be a non-empty text.")
    api = _api()
    where = find_experiment_id(experiment)
    team = None if annotators is None else _team(annotators)
    schemas = None
    found = _find(name, where)
    if questions is not None:
        schemas = [_schema(one, where) for one in _several(questions)]
    if found is None:
        if not schemas:
            known = ", ".join(repr(one.name) for one in _every(where)) or "none"
            raise ArgumentError(
                f"There is no review queue {name!r} in experiment {where} (there are: {known}). "
                "To make it, give its questions: judges or names of label schemas."
            )
        with supported("review queues"):
            found = _made(api, name, where, [one.schema_id for one in schemas])
    elif schemas and {one.schema_id for one in schemas} != set(found.schema_ids):
        with supported("review queues"):
            try:
                api.update_review_queue(
                    found.queue_id, schema_ids=[one.schema_id for one in schemas]
                )
            except MlflowException as error:
                raise ArgumentError(
                    f"The questions of the queue {found.name!r} cannot be changed: "
                    f"{store_message(error)} Or make a queue of another name."
                ) from None
    if team is not None and str(found.queue_type) != "user":
        users = list(team) if len(team) <= MAX_USERS else []
        if [folded(one) for one in users] != found.users:
            with supported("review queues"):
                api.update_review_queue(found.queue_id, users=users)
    there = _settings(where, found)
    given: dict[str, Any] = {
        "annotators": team, "each": each, "share": share, "batch_size": batch_size, "seed": seed,
        "order": tuple(one.schema_id for one in schemas) if schemas else None,
    }  # fmt: skip
    queue = replace(there, **{key: value for key, value in given.items() if value is not None})
    if queue.annotators:
        queue._assignment([])  # says what is out of range before anything is written
    elif queue.each < 1 or queue.share:
        raise ArgumentError(
            f"each={queue.each!r} must be at least 1, and share={queue.share!r} needs annotators."
        )
    if queue != there:
        told = {key: getattr(queue, key) for key in given}
        mlflow.MlflowClient().set_experiment_tag(
            where, f"{_TAG}{found.queue_id}", json.dumps(told, sort_keys=True)
        )
    return queue


# -- MLflow's side --------------------------------------------------------------------------


def _api() -> Any:
    try:
        from mlflow.genai import review_queues
    except ImportError:  # pragma: no cover - older than what the workbench asks for
        with supported("review queues"):
            raise NotImplementedError from None
    return review_queues


def _find(name: str, experiment_id: str) -> Any:
    with supported("review queues"):
        try:
            return _api().get_review_queue(name=name, experiment_id=experiment_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _queue(queue_id: str) -> Any:
    with supported("review queues"):
        return _api().get_review_queue(queue_id)


def _every(experiment_id: str) -> list[Any]:
    with supported("review queues"):
        return list(_api().list_review_queues(experiment_id=experiment_id, max_results=100))


def _made(api: Any, name: str, experiment_id: str, schema_ids: list[str]) -> Any:
    try:
        return api.create_review_queue(
            name, queue_type="custom", schema_ids=schema_ids, experiment_id=experiment_id
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # Someone else has made it since it was looked for.
        return _find(name, experiment_id)


def _schema(question: Judge | LabelQuestion | str, experiment_id: str) -> LabelSchema:
    if isinstance(question, str):
        schema = find_schema(question, experiment=experiment_id)
        if schema is None:
            raise ArgumentError(
                f"questions: there is no label schema {question!r} in experiment {experiment_id}. "
                "Give the judge, or a LabelQuestion with a scale, and it is made."
            )
        return schema
    if isinstance(question, LabelQuestion):
        scale, shown = question.scale, question.rubric
    else:
        scale = scale_of_question(question, experiment=experiment_id)
        shown = getattr(question, "instructions", None) or ""
        if scale is None:
            raise ArgumentError(
                f"questions: the type of judge {question.name!r} tells no rating scale. Give it a "
                "feedback_value_type, for instance Literal['yes', 'no'], or give a LabelQuestion."
            )
    now = rubric(question.name, experiment=experiment_id)
    return make_schema(
        question.name, scale, instruction=now.text if now else shown, experiment=experiment_id
    )


def _several(questions: Any) -> list[Any]:
    if isinstance(questions, (list, tuple)):
        return list(questions)
    return [questions]


def _team(annotators: Iterable[str]) -> tuple[str, ...]:
    if isinstance(annotators, str):
        raise ArgumentError(f"annotators={annotators!r} is one text. Give a list of names.")
    team = tuple(annotators)
    if len({folded(name) for name in team}) < len(team):
        raise ArgumentError(
            f"annotators={list(team)!r} names someone twice; MLflow does not tell small from "
            "capital letters in names."
        )
    return team


def _settings(experiment_id: str, found: Any) -> ReviewQueue:
    """The queue with what was set for it; one that was made in MLflow's page is for whoever comes,
    which is what its users are there: a pool."""
    tags = mlflow.MlflowClient().get_experiment(experiment_id).tags or {}
    try:
        told = json.loads(tags.get(f"{_TAG}{found.queue_id}", ""))
    except ValueError:
        told = {}
    queue = ReviewQueue(found.name, found.queue_id, experiment_id)
    if isinstance(told, dict):
        known = {key: told[key] for key in ("each", "share", "batch_size", "seed") if key in told}
        team, order = (tuple(told.get(key, ())) for key in ("annotators", "order"))
        queue = replace(queue, annotators=team, order=order, **known)
    return queue


Assign = Assignment | Callable[[list[str]], Iterable[str]]
"""Who labels what: an assignment, or a function from all trace ids to the annotator's."""


@dataclass(frozen=True)
class Work:
    """The annotator's traces by id, the batch of each, and whether those that are not among them
    are no longer the annotator's."""

    infos: dict[str, TraceInfo]
    batches: Mapping[str, int] = field(default_factory=dict)
    is_share: bool = True


def in_common(traces: Any, assign: Assign | None) -> bool:
    """Whether all annotators label in the same order: where it is settled who labels what, or how
    many label an item. What several of them label then comes to them early, and to all alike, so
    that it can be compared soon. Elsewhere they would all label the same items at the same time.
    """
    if assign is not None:
        return True
    return isinstance(traces, ReviewQueue) and (bool(traces.annotators) or traces.each > 1)


def work_of(
    annotator: str,
    traces: Any,
    assign: Assign | None,
    experiment: str | None,
    *,
    missing_ok: bool = False,
) -> Work:
    """Read from the store what the annotator is to label.

    ``traces`` as `workbench.store.fetch_traces` takes them, or a `workbench.review_queue`, whose
    own shares hold where ``assign`` is None. With an `Assignment` None takes its traces and no
    others of the experiment; those that are no longer in the store are left out, with
    ``missing_ok`` also of traces that are named one by one.

    Raises
    ------
    ArgumentError
        For an annotator whom the assignment or the queue's team does not name.
    StoreError
        When the traces cannot be read.
    """
    if isinstance(assign, Assignment) and not any(
        same_person(annotator, who) for who in assign.annotators
    ):
        # A name with a typing error would have nothing to do, and look as if all was done.
        one_of("annotator", annotator, assign.annotators)
    if isinstance(traces, ReviewQueue) and assign is None:
        share = traces.share_of(annotator)
        return Work({i: share.infos[i] for i in share.trace_ids}, share.batches)
    if traces is None and isinstance(assign, Assignment):
        infos = trace_infos(assign.trace_ids, experiment=experiment)
        infos = {i: infos[i] for i in assign.trace_ids if i in infos}
    else:
        found = fetch_traces(traces, spans=False, experiment=experiment, missing_ok=missing_ok)
        infos = {trace.info.trace_id: trace.info for trace in found}
    if assign is None:
        return Work(infos, is_share=False)
    if not isinstance(assign, Assignment):
        return Work({i: infos[i] for i in assign(list(infos)) if i in infos})
    own = [i for i in infos if any(same_person(annotator, who) for who in assign.annotators_of(i))]
    return Work({i: infos[i] for i in own}, {i: assign.batch_of(i) for i in own})
