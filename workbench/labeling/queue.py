"""The queue of one annotator: its items, their order, and which of them are done."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import TraceInfo

from workbench.labeling.annotations import Annotations, Draw, read_annotations
from workbench.labeling.ordering import Known, known_of, put_in_order
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.session import SessionItem
from workbench.scale import ABSTAIN
from workbench.store.labels import folded

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

Status = Literal["open", "done", "skipped", "taken", "gone"]

_RECENT: Final = 30
"""Items that the annotator's rate is taken from."""


@dataclass
class Item(SessionItem):
    """One trace of the queue.

    Attributes
    ----------
    annotations
        The annotator's labels on it, as last read from the store (``read_at``, by the monotonic
        clock).
    status
        With the waiting actions.
    again
        Whether it is offered again although it is labelled, until it has a newer answer.
    taken
        Whether others have done it, so that it is passed over.
    skip_order
        Which of the skipped items comes first: the one that was skipped first.
    block
        Items of one block are drawn before those of the next.
    how
        How it is chosen: "random" or the name of a rule.
    draw
        The draw that is recorded with its labels, once it was labelled, skipped or passed by.
    """

    annotations: Annotations = field(default_factory=Annotations)
    status: Status = "open"
    again: bool = False
    taken: bool = False
    skip_order: int = 0
    read_at: float = 0.0
    block: int = 0
    how: str = "random"
    draw: Draw | None = None

    @property
    def drawn(self) -> bool:
        """Whether it was drawn, or labelled before it could be."""
        return self.status != "open" or self.again or self.draw is not None

    @property
    def untouched(self) -> bool:
        """Whether the annotator has not begun with it."""
        return not self.waiting and not self.annotations.answers and not self.again


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
        self._judge = judge
        self._order = order
        self._options: dict[str, Any] = {
            "order": order,
            "seed": seed,
            "random_share": random_share,
            "whose": "" if in_common else folded(annotator),
        }
        self._skips = 0

    # -- items --------------------------------------------------------------------------

    def add(self, infos: Mapping[str, TraceInfo]) -> None:
        """Append traces: what is done, what was skipped, what is open in random order.

        They are drawn after all that were there before, until `plan` mixes them.
        """
        block = 1 + max((item.block for item in self.items.values()), default=-1)
        read = {i: read_annotations(t, self.questions, self.annotator) for i, t in infos.items()}
        done = sorted((i for i in read if read[i].done), key=lambda i: read[i].labelled_ms)
        skipped = sorted((i for i in read if read[i].skipped), key=lambda i: read[i].skipped_ms)
        rest = [i for i in read if not read[i].done and not read[i].skipped]
        for trace_id in [*done, *skipped, *rest]:
            item = Item(infos[trace_id], draw=read[trace_id].draw, block=block)
            self.items[trace_id] = item
            self.queue.append(trace_id)
            self.learn(infos[trace_id], read[trace_id])
        self._arrange({trace_id for trace_id in rest if not self.items[trace_id].drawn}, "random")

    def drop(self, trace_ids: Iterable[str]) -> None:
        """Take traces out of the queue."""
        gone = set(trace_ids)
        for trace_id in gone:
            del self.items[trace_id]
        self.queue = [i for i in self.queue if i not in gone]
        self.place = {trace_id: place for place, trace_id in enumerate(self.queue)}

    def take_over(
        self,
        infos: Mapping[str, TraceInfo],
        batches: Mapping[str, int],
        *,
        since: float,
        is_share: bool,
        in_background: bool,
    ) -> tuple[list[str], bool]:
        """Take over all traces of the annotator as read from the store, ``since`` when.

        In the background nothing moves: what joins comes last, what leaves is passed over. What
        leaves a filter stays, unlike what is no longer in the share. Returns the traces whose
        labels have changed, and whether the queue has.
        """
        labelled = []
        for trace_id, item in self.items.items():
            info = infos.get(trace_id)
            # What was learned after reading began is later news.
            if info is None or item.read_at > since:
                continue
            if item.gone or _content(info) != _content(item.info):
                before = item.annotations
                self.learn(info)
                now = item.annotations
                if (before.answers, before.changed) != (now.answers, now.changed):
                    labelled.append(trace_id)
        joined = {i: info for i, info in infos.items() if i not in self.items}
        left = {
            i for i, item in self.items.items() if is_share and i not in infos and item.untouched
        }
        changed = bool(left)
        if in_background:
            moved = [item for i, item in self.items.items() if item.taken != (i in left)]
            for item in moved:
                item.taken = not item.taken
                self.update(item)
            changed = bool(moved)
        else:
            self.drop(left)
            self.draw_current()
        if joined:
            self.add(joined)
        if not in_background:
            self.plan(batches)
        return labelled, bool(joined) or changed

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

    def plan(self, batches: Mapping[str, int]) -> None:
        """Put all items that were not drawn in order, batch after batch."""
        for trace_id, item in self.items.items():
            item.block = batches.get(trace_id, 0)
        self._arrange({i for i, item in self.items.items() if not item.drawn}, self._order)

    def _arrange(self, trace_ids: set[str], order: str) -> None:
        """Put items that were not drawn in order, within the places that they have."""
        infos = {i: item.info for i, item in self.items.items()}
        if order == "random":
            known = {i: Known(i) for i in infos}
        else:
            known = known_of(infos, self.questions[0], self.annotator, self._judge)
        made = put_in_order(
            [one for i, one in known.items() if i in trace_ids],
            **{**self._options, "order": order},
            labelled=self._labels(),
            before=[one for i, one in known.items() if i not in trace_ids],
            drawn=len(self.items) - len(trace_ids),
            pool=len(self.items),
        )
        chosen = sorted(made.queue, key=lambda one: self.items[one.trace_id].block)
        places = [place for place, i in enumerate(self.queue) if i in trace_ids]
        for place, one in zip(places, chosen, strict=True):
            self.queue[place] = one.trace_id
            self.items[one.trace_id].how = one.how
        self.place = {trace_id: place for place, trace_id in enumerate(self.queue)}
        if order == self._order:
            self.notes = made.notes

    def _labels(self) -> dict[str, Any]:
        """The stored answers to the first question, by trace."""
        name = self.questions[0].name
        answers = {i: item.annotations.answers.get(name) for i, item in self.items.items()}
        return {i: one.value for i, one in answers.items() if one and one.value is not ABSTAIN}

    def actions(self) -> list[tuple[str, str, float | None]]:
        """Return the actions that the store holds, the earliest first: id, trace and seconds."""
        made: list[tuple[float, str, str, float | None]] = []
        for trace_id, item in self.items.items():
            stored = item.annotations
            for answer in [*stored.answers.values(), *stored.changed.values()]:
                if answer.action:
                    made.append((answer.created_ms, answer.action, trace_id, answer.seconds))
            for action, skip in stored.skips.items():
                made.append((float(skip.get("at") or 0), action, trace_id, None))
        return [one[1:] for one in sorted(made, key=lambda one: one[:2])]

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

    def record_draw(self, trace_id: str) -> Draw:
        """Return how the item that is labelled or skipped now was chosen.

        One open item that was passed by on the way is drawn with it, as a skipped one is: people
        pass items by for what they say, and estimates would be biased if their draws went to
        others. Whoever passes by more has picked the item.
        """
        item = self.items.get(trace_id)
        if item is None:
            return Draw("picked", None, 1 + self._count_drawn(), len(self.queue))
        if item.draw is None:
            passed = [i for i in self.queue[: self.place[trace_id]] if not self.items[i].drawn]
            if item.drawn or len(passed) > 1:
                item.draw = Draw("picked", None, 1 + self._count_drawn(), len(self.queue))
                return item.draw
            for one in (*passed, trace_id):
                self._draw(self.items[one])
        assert item.draw is not None
        return item.draw

    def draw_current(self) -> None:
        """Draw the item that is on the page, so that it keeps its place when others join."""
        if self.position < len(self.queue):
            item = self.items[self.queue[self.position]]
            if not item.drawn:
                self._draw(item)

    def _draw(self, item: Item) -> None:
        pool = [one for one in self.items.values() if one.block <= item.block]
        left = sum(not one.drawn for one in pool)
        chance = 1 / left if item.how == "random" else None
        item.draw = Draw(item.how, chance, 1 + self._count_drawn(), len(pool))

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
