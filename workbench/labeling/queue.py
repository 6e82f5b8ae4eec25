"""The queue of one annotator: which traces are theirs, and in which order they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from mlflow.entities import TraceInfo
from mlflow.genai.judges import Judge

from workbench.errors import one_of
from workbench.labeling.annotations import Draw, Item, read_annotations
from workbench.labeling.assignment import Assignment
from workbench.labeling.ordering import Known, known_of, put_in_order
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.review_queue import QueueItem, ReviewQueue
from workbench.labeling.writer import TraceStore
from workbench.scale import ABSTAIN
from workbench.store.labels import same_person
from workbench.vocabulary import folded

Assign = Assignment | Callable[[list[str]], Iterable[str]]
"""Who labels what: an assignment, or a function from all trace ids to the annotator's."""


@dataclass(frozen=True)
class Workload:
    infos: Mapping[str, TraceInfo]  # the annotator's traces, by id
    batches: Mapping[str, int] = field(default_factory=dict)
    is_share: bool = True  # whether other traces are not, or no longer, the annotator's
    queued: Sequence[QueueItem] | None = None  # all items of the review queue they come from


def read_workload(
    store: TraceStore, annotator: str, traces: Any, assign: Assign | None, missing_ok: bool = False
) -> Workload:
    """Read from the store what the annotator is to label.

    ``traces`` as `workbench.pair` takes them, or a `workbench.review_queue`, whose shares hold
    where ``assign`` is None. With an `Assignment`, None takes its traces, but for deleted ones.
    """
    if assign is None and isinstance(traces, ReviewQueue):
        items = traces.read()
        own = {item.trace_id: item for item in traces.share_of(annotator, items)}
        batches = {i: item.batch for i, item in own.items()}
        return Workload({i: item.info for i, item in own.items()}, batches, queued=items)
    if isinstance(assign, Assignment) and traces is None:
        traces, missing_ok = assign.trace_ids, True
    infos = store.infos(traces, missing_ok=missing_ok)
    if assign is None:
        return Workload(infos, is_share=False)
    if not isinstance(assign, Assignment):
        return Workload({i: infos[i] for i in assign(list(infos)) if i in infos})
    if not any(same_person(annotator, who) for who in assign.annotators):
        # A misspelt name would have nothing to do, and look as if all was done.
        one_of("annotator", annotator, assign.annotators)
    mine = [i for i in infos if any(same_person(annotator, who) for who in assign.annotators_of(i))]
    return Workload({i: infos[i] for i in mine}, {i: assign.batch_of(i) for i in mine})


class LabelQueue:
    """The queue, without threads, in an order ``in_common`` or the annotator's own (see
    `workbench.labeling.ordering` for the options)."""

    def __init__(
        self,
        questions: Sequence[LabelQuestion],
        annotator: str,
        *,
        order: str = "random",
        judge: Judge | str | None = None,
        in_common: bool = False,
        **options: Any,
    ) -> None:
        self.questions, self.annotator = tuple(questions), annotator
        self.items: dict[str, Item] = {}  # in order
        self.notes: tuple[str, ...] = ()
        self._judge, self._order = judge, order
        self._options = {"whose": "" if in_common else folded(annotator), **options}

    def take_over(self, work: Workload) -> bool:
        """Take over all traces of the annotator as read from the store; return whether the queue
        or the labels have changed.

        Nothing moves that is there: what joins is drawn after it, and what leaves the share, such
        as what others have done, is passed over. What leaves a filter stays.
        """
        has_changed = False
        for i, info in work.infos.items():
            has_changed |= i in self.items and self.learn(info)
        for i, item in self.items.items():
            is_begun = item.annotations.answers or item.again
            taken = work.is_share and i not in work.infos and not is_begun
            has_changed |= item.taken != taken
            item.taken = taken
        joined = [i for i in work.infos if i not in self.items]
        if joined or not self.items:
            self._add(joined, work)
        return has_changed or bool(joined)

    def _add(self, trace_ids: Sequence[str], work: Workload) -> None:
        """Append traces, first what is done, then what was skipped, then what is to be drawn."""
        block = 1 + max((item.block for item in self.items.values()), default=-1)
        made = {}
        for i in trace_ids:
            stored = read_annotations(work.infos[i], self.questions, self.annotator)
            where = block + work.batches.get(i, 0)
            made[i] = Item(work.infos[i], stored, block=where, draw=stored.draw)
        drawn = sorted(filter(_is_drawn, made.values()), key=_age)
        self.items.update((item.info.trace_id, item) for item in drawn)
        infos = {i: item.info for i, item in {**self.items, **made}.items()}
        known = {i: Known(i) for i in infos}
        if self._order != "random":
            known = known_of(infos, self.questions[0], self.annotator, self._judge)
        name = self.questions[0].name
        answers = {i: item.annotations.answers.get(name) for i, item in self.items.items()}
        found = put_in_order(
            [known[i] for i in made if i not in self.items],
            self._order,
            labelled={i: a.value for i, a in answers.items() if a and a.value is not ABSTAIN},
            before=[known[i] for i in self.items],
            drawn=len(self.items),
            pool=len(known),
            **self._options,
        )
        for trace_id, how in sorted(found.queue, key=lambda one: made[one.trace_id].block):
            made[trace_id].how = how
            self.items[trace_id] = made[trace_id]
        if not block:
            self.notes = found.notes

    def learn(self, info: TraceInfo) -> bool:
        """Take over what the store holds of a trace of the queue now; return whether the
        annotator's labels have changed."""
        item = self.items[info.trace_id]
        if info == item.info and not item.gone:
            return False
        before, now = item.annotations, read_annotations(info, self.questions, self.annotator)
        item.learn(info, now)
        return (before.answers, before.changed) != (now.answers, now.changed)

    def record_draw(self, trace_id: str) -> Draw:
        """Return how the item that is labelled or skipped now was chosen.

        One open item that was passed by is drawn with it: people pass items by for what they say,
        which would bias estimates. Whoever passes by more has picked the item.
        """
        item = self.items.get(trace_id)
        if item is not None and item.draw is not None:
            return item.draw
        before = takewhile(lambda one: one is not item, self.items.values())
        passed = [one for one in before if not _is_drawn(one)]
        if item is None or _is_drawn(item) or len(passed) > 1:
            picked = Draw("picked", None, 1 + self._count_drawn(), len(self.items))
            if item is not None:
                item.draw = picked
            return picked
        for one in passed:
            self._draw(one)
        return self._draw(item)

    def _draw(self, item: Item) -> Draw:
        pool = [one for one in self.items.values() if one.block <= item.block]
        left = sum(not _is_drawn(one) for one in pool)
        chance = 1 / left if item.how == "random" else None
        item.draw = Draw(item.how, chance, 1 + self._count_drawn(), len(pool))
        return item.draw

    def _count_drawn(self) -> int:
        return sum(map(_is_drawn, self.items.values()))


def _is_drawn(item: Item) -> bool:
    """Whether it was drawn, or labelled before it could be."""
    return item.status != "open" or item.again or item.draw is not None


def _age(item: Item) -> tuple[bool, float]:
    """Sorts items: done, then skipped, each by its time."""
    stored = item.annotations
    return not stored.done, stored.labelled_ms if stored.done else stored.skipped_ms
