"""The queue of one annotator: what is in it, in which order, and how each item stands."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import Trace, TraceData, TraceInfo

from workbench.actions import Action
from workbench.answers import LabelQuestion
from workbench.errors import ScaleError
from workbench.labels import label_records
from workbench.ordering import Chosen, Known, put_in_order
from workbench.scale import ABSTAIN
from workbench.standing import Draw, Standing, draw_of, read_standing
from workbench.verdicts import choose_version, recorded_verdicts

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

Mark = Literal["open", "done", "skipped", "gone"]

RECENT: Final = 30
"""Items that the own rate is taken from."""


@dataclass
class Item:
    """One trace of the queue.

    ``chosen`` is how the order chose it, ``draw`` how it was chosen when it was first labelled or
    skipped. ``again``: it is offered again although it is labelled. ``waiting`` are the actions
    that are not in the store yet; ``mark`` is how it stands when they are counted in.
    """

    info: TraceInfo
    standing: Standing
    chosen: Chosen
    draw: Draw | None = None
    gone: bool = False
    again: bool = False
    mark: Mark = "open"
    waiting: list[Action] = field(default_factory=list)


class Agenda:
    """The queue, without any threads: whoever shares it between threads holds a lock.

    Parameters
    ----------
    questions, annotator
        What is answered, and by whom.
    order, seed, random_share
        See `workbench.ordering.put_in_order`.
    judge
        Whose verdicts the order may go by; by default any under the first question's name.
    """

    def __init__(
        self,
        questions: Sequence[LabelQuestion],
        annotator: str,
        *,
        order: str,
        seed: int,
        random_share: float | None,
        judge: Judge | str | None,
    ) -> None:
        self.questions = tuple(questions)
        self.annotator = annotator
        self.items: dict[str, Item] = {}
        self.queue: list[str] = []
        self.place: dict[str, int] = {}
        self.balance: dict[str, Counter[Any]] = {q.name: Counter() for q in self.questions}
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.notes: tuple[str, ...] = ()
        self._order, self._seed, self._random_share = order, seed, random_share
        self._judge = judge
        self._skips: OrderedDict[str, None] = OrderedDict()

    # -- what is in it ------------------------------------------------------------------

    def add(self, infos: Mapping[str, TraceInfo]) -> None:
        """Put traces at the end of the queue: what is done, what was skipped, what is open."""
        standings = {i: read_standing(t, self.questions, self.annotator) for i, t in infos.items()}
        done = sorted((i for i in infos if standings[i].done), key=lambda i: standings[i].since_ms)
        skipped = sorted(
            (i for i in infos if standings[i].skipped),
            key=lambda i: max(float(s.get("at") or 0) for s in standings[i].skips.values()),
        )
        rest = [i for i in infos if not standings[i].done and not standings[i].skipped]
        first = self.questions[0].name
        drawn = put_in_order(
            self._known(rest, infos),
            self._order,
            seed=self._seed,
            random_share=self._random_share,
            labelled={
                i: standings[i].answers[first].value for i in done if first in standings[i].answers
            },
            before=[Known(i, _text(infos[i])) for i in done],
        )
        self.notes = drawn.notes
        elsewhere = {i: Chosen(i, "elsewhere", None) for i in [*done, *skipped]}
        by_id = {**elsewhere, **{one.trace_id: one for one in drawn.queue}}
        for trace_id in [*done, *skipped, *(one.trace_id for one in drawn.queue)]:
            standing = standings[trace_id]
            self.items[trace_id] = Item(
                infos[trace_id], Standing(), by_id[trace_id], draw=draw_of(standing)
            )
            self.place[trace_id] = len(self.queue)
            self.queue.append(trace_id)
            self.learn(infos[trace_id], standing)

    def _known(self, ids: Sequence[str], infos: Mapping[str, TraceInfo]) -> list[Known]:
        """What orders may go by. Nothing of it is ever shown."""
        if self._order == "random":
            return [Known(i) for i in ids]
        question = self.questions[0]
        verdicts = _verdicts(self._judge or question.name, question, infos)
        known = []
        for trace_id in ids:
            trace = Trace(infos[trace_id], TraceData(spans=[]))
            others = [
                value
                for label in label_records([trace], question.name)
                if label.annotator != self.annotator
                and (value := canonical(question, label.value)) is not None
            ]
            known.append(
                Known(trace_id, _text(infos[trace_id]), verdicts.get(trace_id, ()), tuple(others))
            )
        return known

    def learn(self, info: TraceInfo, standing: Standing | None = None) -> Standing | None:
        """Take in what the store holds of a trace of the queue now; how it stands there."""
        item = self.items.get(info.trace_id)
        if item is None:
            return None
        new = standing or read_standing(info, self.questions, self.annotator)
        for counts, sign in ((item.standing, -1), (new, 1)):
            for name, answer in counts.answers.items():
                self.balance[name][answer.value] += sign
        if new.answers and new.since_ms > item.standing.since_ms:
            item.again = False
        item.info, item.standing, item.gone = info, new, False
        self.touch(info.trace_id)
        return new

    def touch(self, trace_id: str) -> None:
        """Work out how an item stands, what waits to be written counted in."""
        item = self.items[trace_id]
        mark: Mark = "open"
        if item.standing.done and not item.again:
            mark = "done"
        elif item.standing.skipped:
            mark = "skipped"
        before: list[tuple[str, Mark]] = []
        for action in item.waiting:
            if action.kind == "undo":
                earlier = [b for b in before if b[0] == action.undoes]
                mark = earlier[-1][1] if earlier else "open"
                continue
            before.append((action.id, mark))
            mark = "done" if action.kind == "save" else ("done" if mark == "done" else "skipped")
        if item.gone:
            mark = "gone"
        if mark != "skipped":
            self._skips.pop(trace_id, None)
        elif item.mark != "skipped" or any(a.kind == "skip" for a in item.waiting):
            # Put off once more, it goes behind the others that were.
            self._skips[trace_id] = None
            self._skips.move_to_end(trace_id)
        item.mark = mark

    # -- how far it is ------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Where to go on: the first open item, else the skipped one that waits longest, else the
        length of the queue."""
        for position, trace_id in enumerate(self.queue):
            if self.items[trace_id].mark == "open":
                return position
        for trace_id in self._skips:
            return self.place[trace_id]
        return len(self.queue)

    @property
    def progress(self) -> dict[str, Any]:
        """``labelled`` and ``skipped`` of ``total``, ``waiting`` actions not in the store yet,
        ``balance`` (labels by value, of the first question), ``balances`` (of each question),
        ``per_hour`` (own rate over the last items) and ``seconds_left``; None where not known."""
        labelled = sum(item.standing.done for item in self.items.values())
        open_items = sum(one.mark in ("open", "skipped") for one in self.items.values())
        each = sum(self.recent) / len(self.recent) if self.recent else 0.0
        balances = {
            q.name: {
                q.shown(value): self.balance[q.name][value]
                for value in [*(q.scale.values if q.scale else ()), *self.balance[q.name]]
                if self.balance[q.name][value] or (q.scale and value in q.scale.values)
            }
            for q in self.questions
        }
        return {
            "labelled": labelled,
            "skipped": len(self._skips),
            "total": len(self.queue),
            "waiting": sum(len(item.waiting) for item in self.items.values()),
            "balance": balances[self.questions[0].name],
            "balances": balances,
            "per_hour": round(3600 / each, 1) if each else None,
            "seconds_left": round(open_items * each, 1) if each else None,
        }

    @property
    def waiting(self) -> list[Action]:
        """The actions that are not in the store yet."""
        return [action for item in self.items.values() for action in item.waiting]

    def draw(self, trace_id: str) -> Draw:
        """How the item that is labelled now was chosen."""
        item = self.items.get(trace_id)
        if item is None:
            return Draw("not in the queue", None, 0, len(self.queue))
        if item.draw is not None:
            return item.draw
        drawn = sum(one.mark != "open" or one.again for one in self.items.values())
        pool = len(self.queue)
        if item.mark != "open":
            # A label from elsewhere is corrected: it was never drawn here.
            return Draw("elsewhere", None, drawn, pool)
        if self.place[trace_id] != self.position:
            # Gone to by hand, past items that are open still.
            return Draw("picked", None, drawn + 1, pool)
        how = item.chosen.how
        return Draw(how, 1 / (pool - drawn) if how == "random" else None, drawn + 1, pool)


# -- what orders may go by ------------------------------------------------------------------


def _verdicts(
    judge_or_name: Judge | str, question: LabelQuestion, infos: Mapping[str, TraceInfo]
) -> dict[str, tuple[Any, ...]]:
    """All samples of one version of the judge, canonical, by trace."""
    recorded = {
        i: recorded_verdicts(Trace(info, TraceData(spans=[])), question.name)
        for i, info in infos.items()
    }
    chosen, _, _ = choose_version(judge_or_name, recorded)
    found: dict[str, list[Any]] = defaultdict(list)
    for trace_id, verdicts in chosen.items():
        for verdict in verdicts:
            if verdict.usable and (value := canonical(question, verdict.value)) is not None:
                found[trace_id].append(value)
    return {i: tuple(values) for i, values in found.items()}


def canonical(question: LabelQuestion, raw: Any) -> Any:
    """The canonical value; None for abstentions and for what lies off the scale."""
    try:
        value = question.read(raw)
    except ScaleError:
        return None
    return None if value is ABSTAIN else value


def _text(info: TraceInfo) -> str:
    return f"{info.request_preview or ''} {info.response_preview or ''}"
