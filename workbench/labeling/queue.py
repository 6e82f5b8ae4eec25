"""The queue of one annotator: what is in it, in which order, and how each item stands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import Feedback, Trace, TraceData, TraceInfo

from workbench.errors import ArgumentError, ScaleError
from workbench.labeling.ordering import Chosen, Draw, Drawn, Known, Replayed, known_of, put_in_order
from workbench.labeling.questions import LabelQuestion
from workbench.scale import ABSTAIN, is_missing
from workbench.store.assessments import AFTER_VERDICT_KEY
from workbench.store.labels import Label, decision_feedback, folded, label_records, same_person

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


Kind = Literal["save", "skip", "undo"]


_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")

_LONGEST_RATIONALE = 100_000

_LONGEST_SECONDS = 86_400.0

_LARGEST_VERSION = 10**9


@dataclass(frozen=True)
class Given:
    """One answer as it came: not yet read on the question's scale."""

    value: Any
    abstain: bool = False
    rationale: str = ""


@dataclass(frozen=True)
class Action:
    """A save, a skip or an undo. ``id`` is the same however often it is sent.

    ``seconds`` were spent on the item; ``at_ms`` is the clock of the browser, which may be
    wrong. ``undoes`` is the action to take back; None for the last one. ``chosen`` is how the
    item was chosen, as it was told with the item; None where that is not sent. ``rubrics`` are the
    versions of the rubrics that were shown, by question, 0 for none; it may lack any of them.
    """

    id: str
    kind: Kind
    trace_id: str
    answers: Mapping[str, Given] = field(default_factory=dict)
    seconds: float | None = None
    at_ms: int | None = None
    undoes: str | None = None
    after_reveal: bool = False
    chosen: Draw | None = None
    rubrics: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Any) -> Action:
        """An action from JSON.

        Raises
        ------
        ArgumentError
            When it is none.
        """
        if not isinstance(raw, Mapping):
            raise ArgumentError(f"An action must be an object, not {raw!r:.80}.")
        key = raw.get("id")
        if not isinstance(key, str) or not _ID.fullmatch(key):
            raise ArgumentError(f"An action's id must be a short name, not {key!r:.80}.")
        kind = raw.get("kind")
        if kind not in ("save", "skip", "undo"):
            raise ArgumentError(f"An action's kind must be save, skip or undo, not {kind!r:.80}.")
        trace_id, undoes = raw.get("trace_id"), raw.get("undoes")
        if not isinstance(trace_id, str) or not (trace_id or kind == "undo"):
            raise ArgumentError(f"An action's trace_id must be a text, not {trace_id!r:.80}.")
        if undoes is not None and not (isinstance(undoes, str) and _ID.fullmatch(undoes)):
            raise ArgumentError(f"undoes must be an action's id or null, not {undoes!r:.80}.")
        return cls(
            id=key,
            kind=kind,
            trace_id=trace_id,
            answers=_answers(raw) if kind == "save" else {},
            seconds=_number(raw.get("seconds"), _LONGEST_SECONDS),
            at_ms=None if (at := _number(raw.get("at"), 1e15)) is None else int(at),
            undoes=undoes,
            after_reveal=raw.get("after_reveal") is True,
            chosen=Draw.of_json(raw.get("chosen")),
            rubrics=_rubrics(raw.get("rubrics")),
        )


def _answers(raw: Mapping[str, Any]) -> dict[str, Given]:
    answers, rationales = raw.get("answers"), raw.get("rationale")
    rationales = {} if rationales is None else rationales
    if not isinstance(answers, Mapping) or not isinstance(rationales, Mapping):
        raise ArgumentError("A save needs answers and rationale, each an object by question.")
    found = {}
    for name, one in answers.items():
        if not isinstance(one, Mapping):
            raise ArgumentError(f"The answer to {name!r:.80} must be an object.")
        abstain = one.get("abstain") is True
        if one.get("value") is None and not abstain:
            continue
        because = rationales.get(name)
        if because is not None and not isinstance(because, str):
            raise ArgumentError(f"The rationale of {name!r:.80} must be a text.")
        if because and len(because) > _LONGEST_RATIONALE:
            raise ArgumentError(
                f"The rationale of {name!r:.80} has {len(because):,} characters; "
                f"{_LONGEST_RATIONALE:,} are allowed. Shorten it."
            )
        # A text field that cuts an emoji in two leaves a half that cannot be stored.
        because = (because or "").encode("utf-8", "replace").decode()
        found[str(name)] = Given(one.get("value"), abstain, because.strip())
    return found


def _rubrics(raw: Any) -> dict[str, int]:
    versions = {} if raw is None else raw
    if not isinstance(versions, Mapping):
        raise ArgumentError(f"rubrics must be an object by question, not {raw!r:.80}.")
    for name, version in versions.items():
        whole = isinstance(version, int) and not isinstance(version, bool)
        if not whole or not 0 <= version <= _LARGEST_VERSION:
            raise ArgumentError(
                f"The rubric version of {name!r:.80} must be a whole number from 0 on, "
                f"not {version!r:.80}."
            )
    return {str(name): version for name, version in versions.items()}


def _number(raw: Any, most: float) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        return None
    return min(max(float(raw), 0.0), most)


ACTION_KEY: Final = "workbench.action"

SECONDS_KEY: Final = "workbench.seconds"

CLOCK_KEY: Final = "workbench.at"
"""The browser's clock when the label was given, milliseconds since the epoch."""


SKIPPED: Final = "workbench.skipped."

UNDONE: Final = "workbench.undone."

REVEALED: Final = "workbench.revealed."


def who_and_what(annotator: str, questions: Sequence[LabelQuestion]) -> str:
    """What tells one annotator's work on these questions apart: 16 hexadecimal digits."""
    names = sorted(question.name for question in questions)
    return hashlib.sha256(json.dumps([annotator, names]).encode()).hexdigest()[:16]


def revealed_tag(annotator: str, question: LabelQuestion) -> str:
    """The tag that says that the annotator has seen the verdict on a question."""
    return f"{REVEALED}{who_and_what(folded(annotator), [question])}"


def assessment_id(action: str, trace_id: str, question: str) -> str:
    """The id of the label that an action makes: the same however often it is written."""
    said = json.dumps([action, trace_id, question])
    return f"a-{hashlib.sha256(said.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class Answer:
    """A label of the annotator's as it stands; ``value`` is canonical or `ABSTAIN`."""

    value: Any
    label: Label
    metadata: Mapping[str, str]

    @property
    def rationale(self) -> str:
        return self.label.rationale or ""

    @property
    def created_ms(self) -> int:
        return self.label.created_ms

    @property
    def action(self) -> str | None:
        """The action that made it; None for a label that was given elsewhere."""
        return self.metadata.get(ACTION_KEY)

    def number(self, key: str) -> float | None:
        """A number of the metadata."""
        try:
            return float(self.metadata[key])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Standing:
    """Where the annotator stands on one trace.

    ``answers`` and ``changed`` are by question: the labels that count, and what the annotator
    said otherwise after seeing the verdict. ``off_scale`` are labels that no question can read.
    ``skips`` are the skips that hold, by action, with how the item was chosen. ``seen`` are all
    actions that the store knows, ``undone`` those that were taken back, with what took them
    back; an action of several labels is ``seen`` as soon as one of them is there (`lacks`).
    ``revealed`` names the questions on which the annotator has seen the verdict. ``blind``
    are the actions whose labels were given before, by question.
    """

    answers: Mapping[str, Answer] = field(default_factory=dict)
    changed: Mapping[str, Answer] = field(default_factory=dict)
    off_scale: Mapping[str, str] = field(default_factory=dict)
    skips: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    undone: Mapping[str, str] = field(default_factory=dict)
    revealed: frozenset[str] = frozenset()
    blind: Mapping[str, frozenset[str]] = field(default_factory=dict)
    done: bool = False

    @property
    def skipped(self) -> bool:
        return bool(self.skips) and not self.done

    @property
    def going(self) -> bool:
        """Whether a label that counts has been taken back and is about to be deleted."""
        return any(answer.action in self.undone for answer in self.answers.values())

    def keeps(self, action: str) -> bool:
        """Whether an action can no longer be taken back: it made a label blind, and the
        annotator has seen the verdict since."""
        return any(action in self.blind.get(name, ()) for name in self.revealed)

    def latest(self, name: str) -> Answer | None:
        """What was said last to a question, whether or not it is what counts."""
        given = [of[name] for of in (self.answers, self.changed) if name in of]
        return max(given, key=lambda answer: answer.created_ms, default=None)

    def adds_to(self, other: Standing) -> bool:
        """Whether some question has a later answer than in another standing on the trace."""
        for name in self.answers:
            now, then = self.latest(name), other.latest(name)
            if now is not None and (then is None or now.created_ms > then.created_ms):
                return True
        return False

    @property
    def since_ms(self) -> int:
        """When it came to stand so; 0 for an open item."""
        return max((answer.created_ms for answer in self.answers.values()), default=0)


def read_standing(info: TraceInfo, questions: Sequence[LabelQuestion], annotator: str) -> Standing:
    """The annotator's standing on a trace."""
    key = who_and_what(folded(annotator), questions)
    tags = info.tags or {}
    undone = {k[len(UNDONE) :]: str(v) for k, v in tags.items() if k.startswith(UNDONE)}
    skips = {}
    seen = {*undone, *undone.values()}
    for tag, text in tags.items():
        if tag.startswith(SKIPPED):
            told = _json(text)
            if told.get("key") == key:
                action = tag[len(SKIPPED) :]
                seen.add(action)
                if action not in undone:
                    skips[action] = told
    own = own_feedback(info, annotator)
    seen |= {a for f in own if (a := (f.metadata or {}).get(ACTION_KEY))}
    answers: dict[str, Answer] = {}
    changed: dict[str, Answer] = {}
    off_scale: dict[str, str] = {}
    by_id = {f.assessment_id: f for f in own}
    for question in questions if own else ():
        for label in _own_labels(info, question.name, annotator):
            try:
                answers[question.name] = _answer(label, by_id, question)
            except ScaleError as error:
                off_scale[question.name] = str(error)
        counting = answers.get(question.name)
        if counting is not None and not counting.label.after_verdict:
            later = valid_feedback(own, question.name, after_verdict=True)[-1:]
            # Read by itself, it is the label that counts.
            alone = replace(info, assessments=list(later))
            for label in _own_labels(alone, question.name, annotator):
                with contextlib.suppress(ScaleError):
                    changed[question.name] = _answer(label, by_id, question)
    return Standing(
        answers=answers,
        changed=changed,
        off_scale=off_scale,
        skips=skips,
        seen=frozenset(seen),
        undone=undone,
        revealed=frozenset(q.name for q in questions if revealed_tag(annotator, q) in tags),
        blind={q.name: _blind_actions(own, q.name) for q in questions} if own else {},
        done=all(q.name in answers for q in questions if q.required),
    )


def lacks(info: TraceInfo, action: Action) -> bool:
    """Whether something of an action is not in the store yet: a label of a save, the deletion of
    one of an undo. A save that was taken back lacks nothing, nor does a skip.

    Labels are written one by one, so that a kernel may end between two of one action.
    """
    there = {a.assessment_id: a for a in info.assessments or []}
    if action.kind == "undo":
        made = {(a.metadata or {}).get(ACTION_KEY) for a in there.values()}
        return action.undoes in made
    if action.kind == "skip" or f"{UNDONE}{action.id}" in (info.tags or {}):
        return False
    return any(
        assessment_id(action.id, action.trace_id, name) not in there for name in action.answers
    )


def draw_of(standing: Standing) -> Draw | None:
    """How an item was chosen when it was first labelled or skipped."""
    told = [answer.metadata for answer in standing.answers.values()]
    told += list(standing.skips.values())
    draws = [draw for one in told if (draw := Draw.of_metadata(one)) is not None]
    return min(draws, key=lambda draw: draw.number) if draws else None


def own_feedback(info: TraceInfo, annotator: str) -> list[Feedback]:
    """All labels of one person on a trace, valid or not, under whatever name; no decisions.

    Whose they are `same_person` says.
    """
    own = [
        a
        for a in info.assessments or []
        if isinstance(a, Feedback)
        and a.source.source_type == "HUMAN"
        and same_person(a.source.source_id or "default", annotator)
    ]
    trace = Trace(info, TraceData(spans=[]))
    decided = {
        d.assessment_id for name in {f.name for f in own} for d in decision_feedback(trace, name)
    }
    return [f for f in own if f.assessment_id not in decided]


def is_after_verdict(feedback: Feedback) -> bool:
    return str((feedback.metadata or {}).get(AFTER_VERDICT_KEY, "")).lower() == "true"


def _blind_actions(own: Sequence[Feedback], name: str) -> frozenset[str]:
    return frozenset(
        str(action)
        for f in own
        if f.name == name
        and not is_after_verdict(f)
        and (action := (f.metadata or {}).get(ACTION_KEY))
    )


def valid_feedback(own: Sequence[Feedback], name: str, *, after_verdict: bool) -> list[Feedback]:
    """What holds of one person's feedback under a name, the latest last."""
    return sorted(
        (
            f
            for f in own
            if f.name == name
            and f.valid is not False
            and f.feedback.error is None
            and not is_missing(f.value)
            and is_after_verdict(f) == after_verdict
        ),
        key=lambda f: (f.create_time_ms or 0, f.assessment_id or ""),
    )


def _own_labels(info: TraceInfo, name: str, annotator: str) -> list[Label]:
    """The label that counts, or none: of several spellings of one name as of one."""
    found = label_records([Trace(info, TraceData(spans=[]))], name)
    own = [label for label in found if same_person(label.annotator, annotator)]
    own.sort(key=lambda one: (not one.after_verdict, one.created_ms, one.assessment_id))
    return own[-1:]


def _answer(label: Label, by_id: Mapping[str | None, Feedback], question: LabelQuestion) -> Answer:
    feedback = by_id[label.assessment_id]
    return Answer(question.read(label.value), label, dict(feedback.metadata or {}))


def _json(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


Mark = Literal["open", "done", "skipped", "taken", "gone"]


RECENT: Final = 30
"""Items that the own rate is taken from."""


_FORESIGHT: Final = 400
"""Draws that are worked out where the order is made again as labels come in."""


@dataclass
class Item:
    """One trace of the queue.

    ``chosen`` is how the order chose it, ``draw`` how it was chosen when it was first labelled,
    skipped or passed by, ``told`` what the view was told of that. ``batch`` and ``joined`` say
    since when it could be drawn, ``planned`` when its place was drawn: from the items of its batch
    and those before that had joined by then. ``again``: it is offered again although it is
    labelled, until something newer is said of it. ``taken``: others have done it, so that it is
    passed over; it keeps its place.
    ``waiting`` are the actions that are not in the store yet; ``mark`` is how it stands when they
    are counted in. ``learned`` is when the store was last read of it, by the monotonic clock.
    """

    info: TraceInfo
    standing: Standing
    chosen: Chosen
    draw: Draw | None = None
    told: Draw | None = None
    batch: int = 0
    joined: int = 0
    planned: int = 0
    gone: bool = False
    again: bool = False
    taken: bool = False
    mark: Mark = "open"
    waiting: list[Action] = field(default_factory=list)
    learned: float = 0.0

    @property
    def drawn(self) -> bool:
        """Whether it was drawn, or labelled before it could be."""
        return self.mark != "open" or self.again or self.draw is not None

    @property
    def untouched(self) -> bool:
        """Whether nothing was said of it here or elsewhere."""
        return not self.waiting and not self.standing.answers


@dataclass(frozen=True)
class Outlook:
    """What the rest of the queue is drawn from, so that the order can be made without a lock.

    ``keep`` is the position from which on it is made, ``planned`` which plan it is.
    """

    keep: int
    planned: int
    items: tuple[Known, ...]
    ahead: tuple[Known, ...]
    before: tuple[Known, ...]
    labelled: Mapping[str, Any]
    drawn: int
    pool: str
    settled: Mapping[str, Replayed | str]


class Agenda:
    """The queue, without any threads: whoever shares it between threads holds a lock.

    Parameters
    ----------
    questions, annotator
        What is answered, and by whom.
    order, seed, random_share
        See `workbench.ordering.put_in_order`.
    in_common
        Whether the order is the same for all annotators. Else each has one of their own: people
        who label the same traces in the same order get in each other's way.
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
        in_common: bool = False,
    ) -> None:
        self.questions = tuple(questions)
        self.annotator = annotator
        self.items: dict[str, Item] = {}
        self.queue: list[str] = []
        self.place: dict[str, int] = {}
        self.balance: dict[str, Counter[Any]] = {q.name: Counter() for q in self.questions}
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.notes: tuple[str, ...] = ()
        self.spellings: set[str] = set()
        self._order, self._seed, self._random_share = order, seed, random_share
        self._judge = judge
        self._whose = "" if in_common else folded(annotator)
        self._skips: OrderedDict[str, None] = OrderedDict()
        self._last: str | None = None
        self._plans = 0
        self._batched = False
        self._pool = ""
        self._known: dict[str, Known] = {}
        self._settled: Mapping[str, Replayed | str] = {}

    # -- what is in it ------------------------------------------------------------------

    def add(self, infos: Mapping[str, TraceInfo], batches: Mapping[str, int]) -> None:
        """Put traces at the end of the queue: what is done, what was skipped, what is open.

        Where the open ones stand is settled when the order is made next (`outlook`, `follow`).
        """
        if not infos:
            return
        if self.items:
            self._plans += 1
        standings = {i: read_standing(t, self.questions, self.annotator) for i, t in infos.items()}
        done = sorted((i for i in infos if standings[i].done), key=lambda i: standings[i].since_ms)
        skipped = sorted(
            (i for i in infos if standings[i].skipped),
            key=lambda i: max(float(s.get("at") or 0) for s in standings[i].skips.values()),
        )
        rest = [i for i in infos if not standings[i].done and not standings[i].skipped]
        for trace_id in [*done, *skipped, *rest]:
            self.items[trace_id] = Item(
                infos[trace_id],
                Standing(),
                Chosen(trace_id, self._order if trace_id in rest else "elsewhere", None),
                draw=draw_of(standings[trace_id]),
                batch=batches.get(trace_id, 0),
                joined=self._plans,
                planned=self._plans,
            )
            self.place[trace_id] = len(self.queue)
            self.queue.append(trace_id)
            self.learn(infos[trace_id], standings[trace_id])
        self._batched = self._batched or any(batches.get(i, 0) for i in infos)
        self._pool_changed()

    def drop(self, trace_ids: Iterable[str]) -> None:
        """Take traces out of the queue."""
        gone = set(trace_ids)
        if not gone:
            return
        for trace_id in gone:
            for name, answer in self.items.pop(trace_id).standing.answers.items():
                self.balance[name][answer.value] -= 1
            self._skips.pop(trace_id, None)
        self.queue = [i for i in self.queue if i not in gone]
        self.place = {trace_id: place for place, trace_id in enumerate(self.queue)}
        self._pool_changed()

    def take(self, trace_ids: Iterable[str]) -> list[int]:
        """Pass over these, and no others, as done by others; the positions that changed."""
        taken, changed = set(trace_ids), []
        for trace_id, item in self.items.items():
            if item.taken != (trace_id in taken):
                item.taken = not item.taken
                self.touch(trace_id)
                changed.append(self.place[trace_id])
        return sorted(changed)

    def _pool_changed(self) -> None:
        ids = "".join(sorted(self.items))
        self._pool = hashlib.sha256(ids.encode()).hexdigest()[:16]

    def news(self, infos: Mapping[str, TraceInfo], *, since: float) -> list[TraceInfo]:
        """Those of the traces of the queue that differ from what is known of them.

        ``since`` is when reading them began: what was learned after that is later news.
        """
        return [
            info
            for trace_id, info in infos.items()
            if (item := self.items.get(trace_id)) is not None
            and item.learned <= since
            and (item.gone or _said(info) != _said(item.info))
        ]

    def learn(self, info: TraceInfo, standing: Standing | None = None) -> Standing | None:
        """Take in what the store holds of a trace of the queue now; how it stands there."""
        item = self.items.get(info.trace_id)
        if item is None:
            return None
        new = standing or read_standing(info, self.questions, self.annotator)
        for counts, sign in ((item.standing, -1), (new, 1)):
            for name, answer in counts.answers.items():
                self.balance[name][answer.value] += sign
        for answer in new.answers.values():
            if answer.label.annotator != self.annotator:
                self.spellings.add(answer.label.annotator)
        if new.adds_to(item.standing):
            item.again = False
        item.info, item.standing, item.gone = info, new, False
        item.learned = time.monotonic()
        self.touch(info.trace_id)
        return new

    def touch(self, trace_id: str) -> None:
        """Work out how an item stands, what waits to be written counted in."""
        item = self.items[trace_id]
        mark: Mark = "open"
        if item.standing.done and not item.again:
            mark = "done"
        elif item.taken:
            mark = "taken"
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

    # -- in which order -----------------------------------------------------------------

    @property
    def adapts(self) -> bool:
        """Whether labels change what is best labelled next."""
        return self._order in ("balance", "mix")

    def known(self, infos: Mapping[str, TraceInfo]) -> dict[str, Known]:
        """What the order may go by, of these traces; empty where it goes by nothing.

        Reads nothing of the queue, so it may be called without a lock.
        """
        if self._order == "random":
            return {}
        return known_of(infos, self.questions[0], self.annotator, self._judge)

    def consider(self, known: Mapping[str, Known]) -> None:
        """Let the order go by this from now on."""
        self._known.update(known)
        self._settled = {}

    def outlook(self, keep: int) -> Outlook:
        """What the queue from position ``keep`` on is drawn from."""
        ahead: list[str] = []
        items: list[str] = []
        for place, trace_id in enumerate(self.queue):
            if not self.items[trace_id].drawn:
                (items if place >= keep else ahead).append(trace_id)
        labelled = self._labelled() if self._order != "random" else {}
        return Outlook(
            keep=keep,
            planned=self._plans,
            items=tuple(map(self._of, items)),
            ahead=tuple(map(self._of, ahead)),
            before=tuple(map(self._of, labelled)),
            labelled={i: value for i, value in labelled.items() if value is not ABSTAIN},
            drawn=len(self.queue) - len(items),
            pool=self._pool,
            settled=self._settled,
        )

    def drawn_from(self, outlook: Outlook) -> Drawn:
        """The order of what is ahead. May be called without a lock."""
        return put_in_order(
            outlook.items,
            self._order,
            seed=self._seed,
            whose=self._whose,
            random_share=self._random_share,
            labelled=outlook.labelled,
            before=outlook.before,
            ahead=outlook.ahead,
            drawn=outlook.drawn,
            pool=outlook.pool,
            settled=outlook.settled,
            limit=_FORESIGHT if self.adapts and not self._batched else None,
        )

    def follow(self, drawn: Drawn, outlook: Outlook) -> list[int]:
        """Put what is open from a position on in the order drawn; the positions that changed.

        What was drawn or labelled meanwhile, and what stands before, keeps its place; what the
        order does not reach to comes behind it.
        """
        keep, changed = outlook.keep, set()
        order = [
            one
            for one in drawn.queue
            if (place := self.place.get(one.trace_id, -1)) >= keep
            and not self.items[one.trace_id].drawn
        ]
        if self._batched:
            order.sort(key=lambda one: self.items[one.trace_id].batch)
        place = keep - 1
        for one in order:
            place += 1
            while self.items[self.queue[place]].drawn:
                place += 1
            item = self.items[one.trace_id]
            item.chosen, item.planned = one, outlook.planned
            if self.queue[place] == one.trace_id:
                continue
            changed |= {place, self.place[one.trace_id]}
            # What stood here waits where this one comes from, until its turn is drawn anew.
            other = self.items[self.queue[place]]
            other.chosen = Chosen(other.info.trace_id, self._order, None)
            for moved, to in ((other, self.place[one.trace_id]), (item, place)):
                self.queue[to] = moved.info.trace_id
                self.place[moved.info.trace_id] = to
                # Who rates it yet goes by where it stood.
                moved.told = None
        self.notes = drawn.notes
        self._settled = drawn.settled
        return sorted(changed)

    def _of(self, trace_id: str) -> Known:
        return self._known.get(trace_id) or Known(trace_id)

    def _labelled(self) -> dict[str, Any]:
        """What was said to the first question, what waits to be written counted in."""
        question = self.questions[0]
        said = {}
        for trace_id, item in self.items.items():
            stored = item.standing.answers.get(question.name)
            if stored is not None:
                said[trace_id] = stored.value
            for action in item.waiting:
                if action.kind == "save" and (given := action.answers.get(question.name)):
                    said[trace_id] = question.answer(given.value, abstain=given.abstain)
                elif action.kind == "undo":
                    said.pop(trace_id, None)
        return said

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
        """``labelled`` and ``skipped`` of ``total``, ``again`` of the labelled that are offered
        again, ``waiting`` actions not in the store yet,
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
            "again": sum(item.again for item in self.items.values()),
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

    # -- how items are drawn ------------------------------------------------------------

    def draw(self, trace_id: str, told: Draw | None = None) -> Draw:
        """How the item that is labelled now was chosen.

        ``told`` is what the view says of it. Where that is not what the view was last told here,
        the item was rated by an order that was made before, perhaps by a kernel that is gone:
        then it is right, and where the item stands now says nothing.

        Open items that one has passed by on the way are drawn with it: nothing was said of them.
        """
        before, self._last = self._last, trace_id
        item = self.items.get(trace_id)
        if item is not None and item.draw is not None:
            return item.draw
        if told is not None and (item is None or told != item.told):
            return told
        if item is None:
            return Draw("not in the queue", None, 0, len(self.queue))
        if item.mark != "open" or item.again:
            # A label from elsewhere is corrected: it was never drawn here.
            return self._elsewhere()
        passed = [i for i in self.queue[: self.place[trace_id]] if not self.items[i].drawn]
        if passed and not self._goes_on(before, trace_id):
            # Gone to by hand, past items that are open still, perhaps for what it says.
            return Draw("picked", None, self._count_drawn() + 1, len(self.queue))
        # What is passed by has been drawn: people see it, and pass it by for what it says. So it
        # keeps the draw that it had, number and probability, as what is skipped does. Until it is
        # answered it counts neither way; once it is, its draw and the others tell of all items
        # without a bias. Without a draw of its own it would be missing among the draws for what
        # it says, and those that are left would be biased.
        draws = self.tell([self.place[i] for i in (*passed, trace_id)])
        for one in passed:
            self.items[one].draw = draws[one]
        return draws[trace_id]

    def _goes_on(self, before: str | None, trace_id: str) -> bool:
        """Whether someone who was at an item goes on to another in the order drawn.

        One open item between them may be passed by; who goes past more at once looks for something.
        """
        start = self.place.get(before, -1) + 1 if before is not None else 0
        end = self.place[trace_id]
        return start <= end and sum(not self.items[i].drawn for i in self.queue[start:end]) <= 1

    def tell(self, places: Sequence[int]) -> dict[str, Draw]:
        """How the items at some positions are drawn where those before them are drawn first.

        The view is told so, and tells it again with the rating.
        """
        wanted = set(places)
        drawn = self._count_drawn()
        groups: dict[tuple[int, int], list[int]] = {}
        passed: list[Item] = []
        made = {}
        for place, trace_id in enumerate(self.queue[: max(wanted, default=-1) + 1]):
            item = self.items[trace_id]
            if place in wanted:
                if item.draw is not None:
                    made[trace_id] = item.draw
                elif item.drawn:
                    made[trace_id] = self._elsewhere()
                else:
                    key = item.batch, item.planned
                    if key not in groups:
                        pool, gone = self._group(item)
                        ahead = sum(one.batch <= key[0] and one.joined <= key[1] for one in passed)
                        groups[key] = [pool, gone + ahead]
                    made[trace_id] = self._next(item, drawn + len(passed), *groups[key])
                item.told = made[trace_id]
            if not item.drawn:
                passed.append(item)
                for (batch, planned), counts in groups.items():
                    counts[1] += item.batch <= batch and item.joined <= planned
        return made

    @staticmethod
    def _next(item: Item, before: int, pool: int, drawn: int) -> Draw:
        chance = 1 / (pool - drawn) if item.chosen.how == "random" else None
        return Draw(item.chosen.how, chance, before + 1, pool)

    def _elsewhere(self) -> Draw:
        return Draw("elsewhere", None, self._count_drawn(), len(self.queue))

    def _count_drawn(self) -> int:
        return sum(item.drawn for item in self.items.values())

    def _group(self, item: Item) -> tuple[int, int]:
        """How many items one is drawn from, and how many of them were drawn already: those of its
        batch and the batches before that had joined when its place was drawn."""
        pool = drawn = 0
        for other in self.items.values():
            if other.batch <= item.batch and other.joined <= item.planned:
                pool += 1
                drawn += other.drawn
        return pool, drawn


def _said(info: TraceInfo) -> tuple[Any, ...]:
    """What may have changed of a trace."""
    return (
        info.tags,
        [
            (a.assessment_id, a.valid, a.last_update_time_ms, a.name, a.source.source_id)
            for a in info.assessments or []
        ],
    )
