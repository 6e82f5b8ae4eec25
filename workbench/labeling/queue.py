"""The queue of one annotator: its items, their order, and which of them are done."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import TraceInfo

from workbench.labeling.actions import Action, Draw
from workbench.labeling.annotations import Annotations, read_annotations
from workbench.labeling.ordering import Known, Order, Ranking, known_of, put_in_order
from workbench.labeling.questions import LabelQuestion
from workbench.scale import ABSTAIN
from workbench.store.labels import folded

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

Status = Literal["open", "done", "skipped", "taken", "gone"]

_RECENT: Final = 30
"""Items that the annotator's rate is taken from."""


@dataclass
class Item:
    """One trace of the queue.

    Attributes
    ----------
    info, annotations
        The trace and the annotator's labels on it, as last read from the store (``read_at``, by
        the monotonic clock).
    waiting
        Actions that are not in the store yet; ``status`` counts them in.
    again
        Whether it is offered again although it is labelled, until it has a newer answer.
    taken
        Whether others have done it, so that it is passed over.
    gone
        Whether the trace was deleted.
    skip_order
        Which of the skipped items comes first: the one that was skipped first.
    batch, joined, planned
        Its batch, the plan with which it joined the queue, and the plan that drew its place:
        from the items of its batch and those before that had joined by then.
    how, number, left, pool
        Its draw as planned: ``left`` is the number of items that it was drawn from.
    sent
        The draw as it was sent to the view.
    draw
        The draw that is recorded with its labels, once it was labelled, skipped or passed by.
    """

    info: TraceInfo
    annotations: Annotations = field(default_factory=Annotations)
    waiting: list[Action] = field(default_factory=list)
    status: Status = "open"
    again: bool = False
    taken: bool = False
    gone: bool = False
    skip_order: int = 0
    read_at: float = 0.0
    batch: int = 0
    joined: int = 0
    planned: int = 0
    how: str = "random"
    number: int = 1
    left: int = 1
    pool: int = 1
    sent: Draw | None = None
    draw: Draw | None = None

    @property
    def drawn(self) -> bool:
        """Whether it was drawn, or labelled before it could be."""
        return self.status != "open" or self.again or self.draw is not None

    @property
    def untouched(self) -> bool:
        """Whether the annotator has not begun with it."""
        return not self.waiting and not self.annotations.answers and not self.again

    @property
    def planned_draw(self) -> Draw:
        """How it is drawn if those ahead of it are drawn first."""
        chance = 1 / self.left if self.how == "random" else None
        return Draw(self.how, chance, self.number, self.pool)


@dataclass(frozen=True)
class Plan:
    """What the queue is ordered by, so that the order can be computed without a lock."""

    start: int
    number: int
    arguments: Mapping[str, Any]


class LabelQueue:
    """The queue, without threads: whoever shares it between threads holds a lock.

    Parameters
    ----------
    questions, annotator
        What is answered, and by whom.
    order, seed, random_share
        See `workbench.labeling.ordering.put_in_order`.
    judge
        Whose verdicts the order may go by; by default any under the first question's name.
    in_common
        Whether the order is the same for all annotators. Else each has one of their own, since
        people who label the same traces in the same order get in each other's way.
    """

    def __init__(
        self,
        questions: Sequence[LabelQuestion],
        annotator: str,
        *,
        order: str = "random",
        seed: int = 0,
        random_share: float | None = None,
        judge: Judge | str | None = None,
        in_common: bool = False,
    ) -> None:
        self.questions = tuple(questions)
        self.annotator = annotator
        self.items: dict[str, Item] = {}
        self.queue: list[str] = []
        self.place: dict[str, int] = {}
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.notes: tuple[str, ...] = ()
        self.spellings: set[str] = set()
        self._order, self._seed, self._random_share = order, seed, random_share
        self._judge = judge
        self._whose = "" if in_common else folded(annotator)
        self._skips = 0
        self._last: str | None = None
        self._plans = 0
        self._known: dict[str, Known] = {}
        self._rankings: dict[str, Ranking] = {}

    # -- items --------------------------------------------------------------------------

    def add(self, infos: Mapping[str, TraceInfo], batches: Mapping[str, int]) -> None:
        """Append traces: what is done, what was skipped, what is open. `plan` orders the last."""
        if self.items:
            self._plans += 1
        read = {i: read_annotations(t, self.questions, self.annotator) for i, t in infos.items()}
        done = sorted((i for i in read if read[i].done), key=lambda i: read[i].labelled_ms)
        skipped = sorted((i for i in read if read[i].skipped), key=lambda i: read[i].skipped_ms)
        rest = [i for i in read if not read[i].done and not read[i].skipped]
        for trace_id in [*done, *skipped, *rest]:
            self.items[trace_id] = Item(
                infos[trace_id],
                draw=read[trace_id].draw,
                batch=batches.get(trace_id, 0),
                joined=self._plans,
            )
            self.place[trace_id] = len(self.queue)
            self.queue.append(trace_id)
            self.learn(infos[trace_id], read[trace_id])

    def drop(self, trace_ids: Iterable[str]) -> None:
        """Take traces out of the queue."""
        gone = set(trace_ids)
        for trace_id in gone:
            del self.items[trace_id]
        self.queue = [i for i in self.queue if i not in gone]
        self.place = {trace_id: place for place, trace_id in enumerate(self.queue)}

    def news(self, infos: Mapping[str, TraceInfo], *, since: float) -> list[TraceInfo]:
        """Return the traces of the queue that differ from what is known of them.

        ``since`` is when reading them began: what was learned after that is later news.
        """
        return [
            info
            for trace_id, info in infos.items()
            if (item := self.items.get(trace_id)) is not None
            and item.read_at <= since
            and (item.gone or _content(info) != _content(item.info))
        ]

    def learn(self, info: TraceInfo, annotations: Annotations | None = None) -> None:
        """Take over what the store holds of a trace of the queue now."""
        item = self.items[info.trace_id]
        new = annotations or read_annotations(info, self.questions, self.annotator)
        if new.adds_to(item.annotations):
            item.again = False
        item.info, item.annotations, item.gone = info, new, False
        self.spellings |= {answer.label.annotator for answer in new.answers.values()}
        item.read_at = time.monotonic()
        self.update(item)

    def update(self, item: Item) -> None:
        """Set the status of an item after a change, waiting actions included."""
        was = item.status
        status: Status = "open"
        if item.annotations.done and not item.again:
            status = "done"
        elif item.taken:
            status = "taken"
        elif item.annotations.skipped:
            status = "skipped"
        before: dict[str, Status] = {}
        for action in item.waiting:
            if action.kind == "undo":
                status = before.get(str(action.undoes), "open")
                continue
            before[action.id] = status
            if action.kind == "save" or status != "done":
                status = "done" if action.kind == "save" else "skipped"
        item.status = "gone" if item.gone else status
        skips_again = any(action.kind == "skip" for action in item.waiting)
        if item.status == "skipped" and (was != "skipped" or skips_again):
            self._skips += 1
            item.skip_order = self._skips

    # -- order --------------------------------------------------------------------------

    @property
    def adapts(self) -> bool:
        """Whether labels change what is best labelled next."""
        return self._order in ("balance", "mix")

    def consider(self, infos: Mapping[str, TraceInfo]) -> None:
        """Let the order go by the verdicts and labels on these traces."""
        if self._order != "random" and infos:
            self._known |= known_of(infos, self.questions[0], self.annotator, self._judge)
            self._rankings = {}

    def plan(self, start: int) -> Plan:
        """Return what the open items from a position on are ordered by."""
        places = {i: place for place, i in enumerate(self.queue) if not self.items[i].drawn}
        ahead = [i for i, place in places.items() if place < start]
        items = [i for i, place in places.items() if place >= start]
        labels = self._labels() if self._order != "random" else {}
        ids = "".join(sorted(self.items))
        arguments = {
            "items": [self._known.get(i) or Known(i) for i in items],
            "ahead": [self._known.get(i) or Known(i) for i in ahead],
            "before": [self._known.get(i) or Known(i) for i in labels],
            "labelled": {i: value for i, value in labels.items() if value is not ABSTAIN},
            "drawn": len(self.queue) - len(items),
            "pool": hashlib.sha256(ids.encode()).hexdigest()[:16],
            "rankings": self._rankings,
        }
        return Plan(start, self._plans, arguments)

    def order_of(self, plan: Plan) -> Order:
        """Compute the order of a plan; may be called without a lock."""
        return put_in_order(
            order=self._order,
            seed=self._seed,
            whose=self._whose,
            random_share=self._random_share,
            **plan.arguments,
        )

    def follow(self, order: Order, plan: Plan) -> None:
        """Put the open items from the plan's start on in order.

        What was drawn or labelled meanwhile keeps its place.
        """
        chosen = [
            one
            for one in order.queue
            if self.place.get(one.trace_id, -1) >= plan.start and not self.items[one.trace_id].drawn
        ]
        chosen.sort(key=lambda one: self.items[one.trace_id].batch)
        ids = {one.trace_id for one in chosen}
        places = [n for n in range(plan.start, len(self.queue)) if self.queue[n] in ids]
        groups = self._groups(ids)
        drawn = len(self.queue) - len(chosen)
        for number, (place, one) in enumerate(zip(places, chosen, strict=True), 1):
            item = self.items[one.trace_id]
            self.queue[place] = one.trace_id
            self.place[one.trace_id] = place
            item.how, item.number, item.planned = one.how, drawn + number, plan.number
            item.pool, item.left = groups[item.batch]
            item.sent = None
            for batch, (pool, left) in groups.items():
                if batch >= item.batch:
                    groups[batch] = pool, left - 1
        self.notes = order.notes

    def _groups(self, chosen: set[str]) -> dict[int, tuple[int, int]]:
        """By batch: how many items it and those before it hold, and how many are left in them."""
        sizes = Counter(item.batch for item in self.items.values())
        left = Counter(self.items[i].batch for i in chosen)
        batches = sorted(sizes)
        return {
            batch: (
                sum(sizes[b] for b in batches if b <= batch),
                sum(left[b] for b in batches if b <= batch),
            )
            for batch in batches
        }

    def _labels(self) -> dict[str, Any]:
        """The answers to the first question by trace, those that wait to be written included."""
        question = self.questions[0]
        values = {}
        for trace_id, item in self.items.items():
            stored = item.annotations.answers.get(question.name)
            if stored is not None:
                values[trace_id] = stored.value
            for action in item.waiting:
                if action.kind == "save" and (given := action.answers.get(question.name)):
                    values[trace_id] = question.answer(given.value, abstain=given.abstain)
                elif action.kind == "undo":
                    values.pop(trace_id, None)
        return values

    # -- progress -----------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else the one that was skipped first, else the
        length of the queue."""
        skipped = []
        for position, trace_id in enumerate(self.queue):
            item = self.items[trace_id]
            if item.status == "open":
                return position
            if item.status == "skipped":
                skipped.append((item.skip_order, position))
        return min(skipped)[1] if skipped else len(self.queue)

    @property
    def progress(self) -> dict[str, Any]:
        """Counts for the view, see `workbench.LabelSession.progress`."""
        items = self.items.values()
        status = Counter(item.status for item in items)
        seconds = sum(self.recent) / len(self.recent) if self.recent else 0.0
        balances = self.balances
        shown = {
            q.name: {q.shown(value): count for value, count in balances[q.name].items()}
            for q in self.questions
        }
        return {
            "labelled": sum(item.annotations.done for item in items),
            "skipped": status["skipped"],
            "again": sum(item.again for item in items),
            "total": len(self.queue),
            "waiting": sum(len(item.waiting) for item in items),
            "balance": shown[self.questions[0].name],
            "balances": shown,
            "per_hour": round(3600 / seconds, 1) if seconds else None,
            "seconds_left": (
                round((status["open"] + status["skipped"]) * seconds, 1) if seconds else None
            ),
        }

    @property
    def balances(self) -> dict[str, dict[Any, int]]:
        """Stored labels by canonical value, of each question; all values of its scale."""
        balances = {}
        for question in self.questions:
            values = question.scale.values if question.scale else ()
            counts = Counter(
                answer.value
                for item in self.items.values()
                if (answer := item.annotations.answers.get(question.name)) is not None
            )
            balances[question.name] = {**dict.fromkeys(values, 0), **counts}
        return balances

    # -- draws --------------------------------------------------------------------------

    def send_draw(self, trace_id: str) -> Draw:
        """Return how an item is drawn, as the view gets it and sends it back with the rating."""
        item = self.items[trace_id]
        item.sent = item.draw or (self._elsewhere() if item.drawn else item.planned_draw)
        return item.sent

    def record_draw(self, trace_id: str, sent: Draw | None = None) -> Draw:
        """Return how the item that is labelled now was chosen.

        ``sent`` is what the view says. Where it differs from what was sent last, the item was
        rated by an order that was made before, perhaps by a kernel that is gone, and it is right.

        Open items that one has passed by on the way are drawn with it. They keep the draws that
        they had, as skipped ones do: people pass them by for what they say, and estimates would
        be biased if these draws went to other items.
        """
        before, self._last = self._last, trace_id
        item = self.items.get(trace_id)
        if item is None:
            return sent or Draw("not in the queue", None, 0, len(self.queue))
        if item.draw is None:
            if sent is not None and sent != item.sent:
                item.draw = sent
            elif item.status != "open" or item.again:
                item.draw = self._elsewhere()
            else:
                passed = [i for i in self.queue[: self.place[trace_id]] if not self.items[i].drawn]
                if passed and not self._goes_on(before, trace_id):
                    # Gone to by hand, past several open items, perhaps for what it says.
                    before_pick = self.drawn()
                    number = self._count_drawn() + 1
                    item.draw = Draw("picked", None, number, len(self.queue))
                    self.renumber(before_pick)
                else:
                    for one in (*passed, trace_id):
                        self.items[one].draw = self.items[one].planned_draw
        return item.draw  # type: ignore[return-value]  # set in each branch

    def _goes_on(self, before: str | None, trace_id: str) -> bool:
        """Whether someone goes on in order from one item to another.

        One open item between them may be passed by; who passes more looks for something.
        """
        start = self.place.get(before, -1) + 1 if before is not None else 0
        end = self.place[trace_id]
        return start <= end and sum(not self.items[i].drawn for i in self.queue[start:end]) <= 1

    def drawn(self) -> dict[str, bool]:
        """Return which items were drawn already."""
        return {trace_id: item.drawn for trace_id, item in self.items.items()}

    def renumber(self, before: Mapping[str, bool]) -> None:
        """Adapt the planned draws to items that were drawn out of order.

        ``before`` is `drawn` before the change. What was drawn since, as it was labelled
        elsewhere, say, counts as drawn before the open items that stand ahead of it.
        """
        behind: Counter[tuple[int, int]] = Counter()
        for trace_id in reversed(self.queue):
            item = self.items[trace_id]
            if not item.drawn and behind:
                item.number += behind.total()
                item.left -= sum(
                    count
                    for (batch, joined), count in behind.items()
                    if batch <= item.batch and joined <= item.planned
                )
            if item.drawn != before.get(trace_id, item.drawn):
                behind[item.batch, item.joined] += 1 if item.drawn else -1

    def _elsewhere(self) -> Draw:
        return Draw("elsewhere", None, self._count_drawn(), len(self.queue))

    def _count_drawn(self) -> int:
        return sum(item.drawn for item in self.items.values())


def _content(info: TraceInfo) -> tuple[Any, ...]:
    """What may have changed of a trace."""
    return (
        info.tags,
        [
            (a.assessment_id, a.valid, a.last_update_time_ms, a.name, a.source.source_id)
            for a in info.assessments or []
        ],
    )
