"""What an annotator does, as the view sends it, and what the store holds of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal, TypeVar

from mlflow.entities import Trace, TraceData, TraceInfo
from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError

from workbench.errors import ArgumentError, ScaleError
from workbench.formatting import storable
from workbench.labeling.questions import LabelQuestion
from workbench.scale import ABSTAIN
from workbench.store.labels import Label, label_records, same_person
from workbench.store.schemas import RubricHistory
from workbench.store.traces import as_example
from workbench.vocabulary import folded

# Metadata of labels: the action that made one, how long it took, the browser's clock in
# milliseconds since the epoch, and how the item was chosen.
ACTION_KEY: Final = "workbench.action"
SECONDS_KEY: Final = "workbench.seconds"
CLOCK_KEY: Final = "workbench.at"
_HOW: Final = "workbench.chosen"
_PROBABILITY: Final = "workbench.probability"
_NUMBER: Final = "workbench.draw"
_POOL: Final = "workbench.pool"
_CUT: Final = 200_000

# Tags of traces, each with the id of an action, or the key of an annotator's work.
SKIPPED: Final = "workbench.skipped."
UNDONE: Final = "workbench.undone."
_REVEALED: Final = "workbench.revealed."

ActionId = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class Given(BaseModel):
    """One answer as it came, not yet read on the question's scale."""

    value: Any = None
    abstain: StrictBool = False


class Action(BaseModel):
    """A save, a skip or an undo."""

    id: ActionId  # the same however often the action is sent
    kind: Literal["save", "skip", "undo"]
    trace_id: Annotated[StrictStr, Field(min_length=1)]
    answers: dict[str, Given] = {}
    rationale: dict[str, Any] = {}
    seconds: Amount | None = None
    at: Amount | None = None  # by the browser's clock, which may be wrong
    undoes: ActionId | None = None
    after_reveal: StrictBool = False
    rubrics: dict[str, Annotated[StrictInt, Field(ge=0)]] = {}  # the versions shown, 0 for none

    def reason(self, question: str) -> str:
        return storable(str(self.rationale.get(question) or "")).strip()


def parsed(model: type[Model], raw: Any) -> Model:
    """Read what a view sent; an `ArgumentError` names the first field that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([model.__name__.lower(), *map(str, first["loc"])])
        raise ArgumentError(f"{where}: {first['msg']}.") from None


@dataclass(frozen=True)
class Draw:
    """How an item was chosen, as recorded with its label."""

    how: str  # "random", the name of a rule, or "picked": gone to by hand
    probability: float | None  # among the items that were left, of one drawn at random
    number: int  # counts draws from 1
    pool: int  # items drawn from, those drawn before included

    def to_metadata(self) -> dict[str, str]:
        made = {_HOW: self.how, _NUMBER: str(self.number), _POOL: str(self.pool)}
        chance = self.probability
        return made if chance is None else {**made, _PROBABILITY: f"{chance:.9g}"}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Draw | None:
        with suppress(KeyError, TypeError, ValueError):
            number, pool = int(metadata[_NUMBER]), int(metadata[_POOL])
            chance = metadata.get(_PROBABILITY)
            return cls(metadata[_HOW], None if chance is None else float(chance), number, pool)
        return None


def annotator_key(annotator: str, questions: Sequence[LabelQuestion]) -> str:
    """Return 16 hexadecimal digits that identify one annotator's work on these questions."""
    names = sorted(question.name for question in questions)
    return hashlib.sha256(json.dumps([folded(annotator), names]).encode()).hexdigest()[:16]


def revealed_tag(annotator: str, question: LabelQuestion) -> str:
    """Return the tag that marks that the annotator has seen the verdict on a question."""
    return f"{_REVEALED}{annotator_key(annotator, [question])}"


def undone_actions(info: TraceInfo) -> set[str]:
    """Return the actions on a trace that were taken back."""
    return {tag.removeprefix(UNDONE) for tag in info.tags or {} if tag.startswith(UNDONE)}


def without_spans(info: TraceInfo) -> Trace:
    """Return a trace of which only the info is needed."""
    return Trace(info, TraceData(spans=[]))


def canonical(question: LabelQuestion, raw: Any) -> Any:
    """Return a stored value on the question's scale; as it is where it lies off it."""
    try:
        return question.read(raw)
    except ScaleError:
        return raw


@dataclass(frozen=True)
class Annotations:
    """One person's labels and skips on a trace; values are canonical or `ABSTAIN`."""

    answers: Mapping[str, Label] = field(default_factory=dict)  # those that count, by question
    changed: Mapping[str, Label] = field(default_factory=dict)  # said otherwise after the verdict
    skipped_ms: float = 0.0  # when it was skipped last, 0 where it was not
    revealed: frozenset[str] = frozenset()  # questions whose verdict was seen
    draw: Draw | None = None
    done: bool = False  # whether every required question has an answer

    @property
    def latest(self) -> dict[str, Label]:
        """The answers as they are now: those of a change of mind where there is one."""
        return {**self.answers, **self.changed}

    def is_earlier(self, rubrics: Mapping[str, RubricHistory]) -> bool:
        """Whether some question has no answer under its current rubric."""
        return any(rubrics[name].is_earlier(one) for name, one in self.latest.items())

    @property
    def labelled_ms(self) -> int:
        """When the last answer was given."""
        return max((one.created_ms for one in self.latest.values()), default=0)

    @property
    def actions(self) -> set[str | None]:
        """The actions that made the answers; None for one that was given elsewhere."""
        return {one.metadata.get(ACTION_KEY) for one in self.answers.values()}


def read_annotations(
    info: TraceInfo, questions: Sequence[LabelQuestion], annotator: str
) -> Annotations:
    answers, latest = (_labels(info, questions, annotator, latest=one) for one in (False, True))
    skips = _skips(info, annotator_key(annotator, questions))
    recorded = [*(one.metadata for one in answers.values()), *skips]
    draws = filter(None, map(Draw.of_metadata, recorded))
    return Annotations(
        answers=answers,
        changed={name: one for name, one in latest.items() if one != answers.get(name)},
        skipped_ms=max((float(skip.get("at") or 1) for skip in skips), default=0.0),
        revealed=frozenset(q.name for q in questions if revealed_tag(annotator, q) in info.tags),
        draw=min(draws, key=lambda draw: draw.number, default=None),
        done=all(q.name in answers for q in questions if q.required),
    )


def _labels(
    info: TraceInfo, questions: Sequence[LabelQuestion], annotator: str, *, latest: bool
) -> dict[str, Label]:
    """The annotator's labels by question; what lies off the scale is none."""
    found = {}
    for question in questions:
        for label in label_records([without_spans(info)], question.name, latest=latest):
            if same_person(label.annotator, annotator):
                with suppress(ScaleError):
                    found[question.name] = replace(label, value=question.read(label.value))
    return found


def _skips(info: TraceInfo, key: str) -> list[dict[str, Any]]:
    """The annotator's skips that hold: when, and how the item was chosen."""
    tags, undone = info.tags or {}, undone_actions(info)
    actions = [tag.removeprefix(SKIPPED) for tag in tags if tag.startswith(SKIPPED)]
    skips = [json.loads(tags[SKIPPED + one]) for one in actions if one not in undone]
    return [skip for skip in skips if skip.get("key") == key]


@dataclass
class Item:
    """One trace of a session, and what was said about it, as last read from the store."""

    info: TraceInfo
    annotations: Annotations = field(default_factory=Annotations)
    gone: bool = False  # the trace was deleted
    taken: bool = False  # others have done it
    again: bool = False  # offered again, until it has a newer answer
    how: str = "random"  # how it is chosen out of its block, as in `Draw`
    block: int = 0  # whose items are drawn before those of the next
    draw: Draw | None = None  # once it was labelled, skipped or passed by
    voices: Sequence[Mapping[str, Any]] = ()

    def learn(self, info: TraceInfo, annotations: Annotations) -> None:
        self.again = self.again and annotations.labelled_ms <= self.annotations.labelled_ms
        self.info, self.annotations, self.gone = info, annotations, False

    @property
    def status(self) -> Literal["open", "done", "skipped", "taken", "gone"]:
        if self.annotations.done:
            return "open" if self.again else "done"
        if self.gone:
            return "gone"
        if self.taken:
            return "taken"
        return "skipped" if self.annotations.skipped_ms else "open"


def item_json(
    item: Item, spans: Mapping[str, TraceData], rubrics: Mapping[str, RubricHistory]
) -> dict[str, Any]:
    """Return an item as the view needs it; ``cuts`` has the lengths of what is cut."""
    trace_id = item.info.trace_id
    example = as_example(Trace(item.info, spans.get(trace_id) or TraceData(spans=[])))
    cuts: dict[str, int] = {}
    shown: dict[str, Any] = {"trace_id": trace_id, "cuts": cuts, "voices": item.voices}
    for name in ("inputs", "outputs", "expectations"):
        shown[name] = value = getattr(example, name)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > _CUT:
            shown[name], cuts[name] = text[:_CUT], len(text)
    return {**shown, **status_json(item, rubrics)}


def status_json(item: Item, rubrics: Mapping[str, RubricHistory]) -> dict[str, Any]:
    """Return what the store holds of the annotator's answers, and what is left to do."""
    made, given = item.annotations, None
    if made.answers:
        given = {
            "answers": {name: _answer(one) for name, one in made.answers.items()},
            "rationale": {name: one.rationale or "" for name, one in made.latest.items()},
            "changed": {name: _answer(one) for name, one in made.changed.items()},
            "earlier_rubric": made.is_earlier(rubrics),
            "elsewhere": made.actions == {None},
            "decided_by": next(iter(made.answers.values())).annotator,
        }
    return {
        "done": given if made.done else None,
        "partial": None if made.done else given,
        "again": item.again,
        "skipped": item.status == "skipped",
        "taken": item.status == "taken",
        "gone": item.gone,
    }


def _answer(label: Label) -> dict[str, Any]:
    abstain = label.value is ABSTAIN
    return {"value": None if abstain else label.value, "abstain": abstain}


def plain(value: Value) -> Value:
    """Return a value as JSON that a browser reads without loss: lone surrogates are replaced,
    integers beyond 2**53 and numbers that are not finite become text."""

    def exact(digits: str) -> int | str:
        return int(digits) if len(digits) < 18 and abs(int(digits)) < 2**53 else digits

    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    made: Value = json.loads(text, parse_int=exact, parse_constant=str)
    return made
