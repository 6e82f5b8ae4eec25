"""What an annotator does, as the view sends it, and what the store holds of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from mlflow.entities import Feedback, Trace, TraceData, TraceInfo
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
)

from workbench.errors import ArgumentError, ScaleError
from workbench.labeling.questions import LabelQuestion
from workbench.scale import is_missing
from workbench.store.assessments import AFTER_VERDICT_KEY
from workbench.store.labels import Label, decision_feedback, folded, label_records, same_person

CHOSEN_KEY: Final = "workbench.chosen"

PROBABILITY_KEY: Final = "workbench.probability"

DRAW_KEY: Final = "workbench.draw"

POOL_KEY: Final = "workbench.pool"


@dataclass(frozen=True)
class Draw:
    """How an item was chosen, as recorded with its label.

    ``how`` is "random", the name of a rule, or "picked" (gone to by hand). ``probability`` is
    that of the item among those that were left, None unless it was drawn at random. ``number``
    counts draws from 1, and ``pool`` is the number of items drawn from, earlier draws included.
    Older versions also wrote "elsewhere" and "not in the queue".
    """

    how: str
    probability: float | None
    number: int
    pool: int

    def to_metadata(self) -> dict[str, str]:
        """Return the draw as it is stored with a label."""
        made = {CHOSEN_KEY: self.how, DRAW_KEY: str(self.number), POOL_KEY: str(self.pool)}
        if self.probability is not None:
            made[PROBABILITY_KEY] = f"{self.probability:.9g}"
        return made

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Draw | None:
        """Read a stored draw; None where there is none."""
        try:
            chance = metadata.get(PROBABILITY_KEY)
            return cls(
                how=str(metadata[CHOSEN_KEY]),
                probability=None if chance is None else float(chance),
                number=int(metadata[DRAW_KEY]),
                pool=int(metadata[POOL_KEY]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def _number(raw: Any) -> float | None:
    """A clock or a duration; nonsense is no reason to lose a label."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        return None
    return max(float(raw), 0.0)


def _text(raw: Any) -> Any:
    # A text field that cuts an emoji in two leaves a half that cannot be stored.
    return raw.encode("utf-8", "replace").decode().strip() if isinstance(raw, str) else raw


def _object(raw: Any) -> Any:
    return {} if raw is None else raw


Name = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
Number = Annotated[float | None, BeforeValidator(_number)]
Rationale = Annotated[StrictStr | None, BeforeValidator(_text), Field(max_length=100_000)]


class Given(BaseModel):
    """One answer as it came, not yet read on the question's scale."""

    model_config = ConfigDict(frozen=True)

    value: Any = None
    abstain: StrictBool = False


class Action(BaseModel):
    """A save, a skip or an undo.

    ``id`` is the same however often the action is sent. ``seconds`` were spent on the item;
    ``at`` is the browser's clock in milliseconds, which may be wrong. ``undoes`` is the action to
    take back, None for the last one.
    ``rubrics`` are the versions of the rubrics that were shown, by question, 0 for none.
    """

    model_config = ConfigDict(frozen=True)

    id: Name
    kind: Literal["save", "skip", "undo"]
    trace_id: StrictStr
    answers: Annotated[dict[str, Given], BeforeValidator(_object)] = {}
    rationale: Annotated[dict[str, Rationale], BeforeValidator(_object)] = {}
    seconds: Number = None
    at: Number = None
    undoes: Name | None = None
    after_reveal: StrictBool = False
    rubrics: Annotated[
        dict[str, Annotated[StrictInt, Field(ge=0, le=10**9)]], BeforeValidator(_object)
    ] = {}

    @classmethod
    def parse(cls, raw: Any) -> Action:
        """Read an action from JSON.

        Raises
        ------
        ArgumentError
            For what is no action.
        """
        try:
            action = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(["action", *map(str, first["loc"])])
            raise ArgumentError(f"{where}={first['input']!r:.80}: {first['msg']}.") from None
        if not action.trace_id and action.kind != "undo":
            raise ArgumentError("action.trace_id must name a trace.")
        answers = action.answers.items() if action.kind == "save" else ()
        given = {name: one for name, one in answers if one.abstain or one.value is not None}
        return action.model_copy(update={"answers": given})

    def reason(self, question: str) -> str:
        """Return the rationale given with the answer to a question."""
        return self.rationale.get(question) or ""


# -- what the store holds -------------------------------------------------------------------

ACTION_KEY: Final = "workbench.action"

SECONDS_KEY: Final = "workbench.seconds"

CLOCK_KEY: Final = "workbench.at"
"""The browser's clock when the label was given, milliseconds since the epoch."""

SKIPPED: Final = "workbench.skipped."

UNDONE: Final = "workbench.undone."

REVEALED: Final = "workbench.revealed."


def annotator_key(annotator: str, questions: Sequence[LabelQuestion]) -> str:
    """Return 16 hexadecimal digits that identify one annotator's work on these questions."""
    names = sorted(question.name for question in questions)
    return hashlib.sha256(json.dumps([annotator, names]).encode()).hexdigest()[:16]


def revealed_tag(annotator: str, question: LabelQuestion) -> str:
    """Return the tag that marks that the annotator has seen the verdict on a question."""
    return f"{REVEALED}{annotator_key(folded(annotator), [question])}"


def assessment_id(action: str, trace_id: str, question: str) -> str:
    """Return the id of the label that an action makes, the same in every attempt."""
    text = json.dumps([action, trace_id, question])
    return f"a-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def undone_actions(info: TraceInfo) -> dict[str, str]:
    """Return the actions on a trace that were taken back, with the undo that did it."""
    tags = info.tags or {}
    return {k.removeprefix(UNDONE): str(v) for k, v in tags.items() if k.startswith(UNDONE)}


def without_spans(info: TraceInfo) -> Trace:
    """Return a trace of which only the info is needed."""
    return Trace(info, TraceData(spans=[]))


@dataclass(frozen=True)
class Answer:
    """A label of the annotator's; ``value`` is canonical or `ABSTAIN`."""

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

    @property
    def seconds(self) -> float | None:
        """How long the annotator took."""
        try:
            return float(self.metadata[SECONDS_KEY])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Annotations:
    """One annotator's labels and skips on a trace.

    ``answers`` count, by question, ``changed`` is what was said otherwise after seeing the
    verdict. ``skips`` hold, by action, when and how the item was chosen; ``undone`` actions were
    taken back by an undo. ``revealed`` are the questions on which the annotator has seen the
    verdict, ``blind`` the actions whose labels were given before that, by question. ``done``:
    every required question has an answer.
    """

    answers: Mapping[str, Answer] = field(default_factory=dict)
    changed: Mapping[str, Answer] = field(default_factory=dict)
    skips: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    undone: Mapping[str, str] = field(default_factory=dict)
    revealed: frozenset[str] = frozenset()
    blind: Mapping[str, frozenset[str]] = field(default_factory=dict)
    done: bool = False

    @property
    def skipped(self) -> bool:
        return bool(self.skips) and not self.done

    @property
    def skipped_ms(self) -> float:
        """When the item was skipped last."""
        return max((float(skip.get("at") or 0) for skip in self.skips.values()), default=0.0)

    @property
    def labelled_ms(self) -> int:
        """When the item was labelled last."""
        return max((answer.created_ms for answer in self.answers.values()), default=0)

    @property
    def is_being_undone(self) -> bool:
        """Whether a label that counts was taken back and is about to be deleted."""
        return any(answer.action in self.undone for answer in self.answers.values())

    def keeps(self, action: str) -> bool:
        """Whether an action can't be taken back: it made a blind label, and the annotator has
        seen the verdict since."""
        return any(action in self.blind.get(name, ()) for name in self.revealed)

    def latest(self, name: str) -> Answer | None:
        """Return the last answer to a question, whether or not it is the one that counts."""
        given = [of[name] for of in (self.answers, self.changed) if name in of]
        return max(given, key=lambda answer: answer.created_ms, default=None)

    def adds_to(self, other: Annotations) -> bool:
        """Whether some question has a later answer than in earlier annotations."""
        for name in self.answers:
            now, then = self.latest(name), other.latest(name)
            if now is not None and (then is None or now.created_ms > then.created_ms):
                return True
        return False

    @property
    def draw(self) -> Draw | None:
        """How the item was chosen when it was first labelled or skipped."""
        recorded = [*(answer.metadata for answer in self.answers.values()), *self.skips.values()]
        draws = [draw for one in recorded if (draw := Draw.of_metadata(one)) is not None]
        return min(draws, key=lambda draw: draw.number, default=None)


def read_annotations(
    info: TraceInfo, questions: Sequence[LabelQuestion], annotator: str
) -> Annotations:
    """Read the annotator's labels and skips on a trace."""
    own = own_feedback(info, annotator)
    answers, changed = _answers(info, own, questions, annotator) if own else ({}, {})
    undone = undone_actions(info)
    tags = info.tags or {}
    return Annotations(
        answers=answers,
        changed=changed,
        skips=_skips(tags, annotator_key(folded(annotator), questions), undone),
        undone=undone,
        revealed=frozenset(q.name for q in questions if revealed_tag(annotator, q) in tags),
        blind={q.name: _blind_actions(own, q.name) for q in questions} if own else {},
        done=all(q.name in answers for q in questions if q.required),
    )


def _answers(
    info: TraceInfo, own: Sequence[Feedback], questions: Sequence[LabelQuestion], annotator: str
) -> tuple[dict[str, Answer], dict[str, Answer]]:
    """The answers that count, and the changes of them; what lies off the scale is no answer."""
    metadata = {f.assessment_id: dict(f.metadata or {}) for f in own}
    answers: dict[str, Answer] = {}
    changed: dict[str, Answer] = {}

    def read(found: dict[str, Answer], trace: TraceInfo, question: LabelQuestion) -> None:
        for label in _counting_labels(trace, question.name, annotator):
            with contextlib.suppress(ScaleError):
                value = question.read(label.value)
                found[question.name] = Answer(value, label, metadata[label.assessment_id])

    for question in questions:
        read(answers, info, question)
        counting = answers.get(question.name)
        if counting is not None and not counting.label.after_verdict:
            later = valid_feedback(own, question.name, after_verdict=True)[-1:]
            # Read by itself, it is the label that counts.
            read(changed, replace(info, assessments=list(later)), question)
    return answers, changed


def _counting_labels(info: TraceInfo, name: str, annotator: str) -> list[Label]:
    """The label that counts, if any; several spellings of a name are one person's."""
    found = label_records([without_spans(info)], name)
    own = [label for label in found if same_person(label.annotator, annotator)]
    own.sort(key=lambda one: (not one.after_verdict, one.created_ms, one.assessment_id))
    return own[-1:]


def _skips(
    tags: Mapping[str, str], key: str, undone: Mapping[str, str]
) -> dict[str, Mapping[str, Any]]:
    skips: dict[str, Mapping[str, Any]] = {}
    for tag, text in tags.items():
        action = tag.removeprefix(SKIPPED)
        if tag.startswith(SKIPPED) and action not in undone:
            try:
                skip = json.loads(text)
            except ValueError:
                continue
            if isinstance(skip, dict) and skip.get("key") == key:
                skips[action] = skip
    return skips


def own_feedback(info: TraceInfo, annotator: str) -> list[Feedback]:
    """Return all labels of one person on a trace, valid or not, decisions excepted."""
    own = [
        a
        for a in info.assessments or []
        if isinstance(a, Feedback)
        and a.source.source_type == "HUMAN"
        and same_person(a.source.source_id or "default", annotator)
    ]
    trace = without_spans(info)
    decided = {
        d.assessment_id for name in {f.name for f in own} for d in decision_feedback(trace, name)
    }
    return [f for f in own if f.assessment_id not in decided]


def valid_feedback(own: Sequence[Feedback], name: str, *, after_verdict: bool) -> list[Feedback]:
    """Return what holds of one person's feedback under a name, the latest last."""
    return sorted(
        (
            f
            for f in own
            if f.name == name
            and f.valid is not False
            and f.feedback.error is None
            and not is_missing(f.value)
            and _is_after_verdict(f) == after_verdict
        ),
        key=lambda f: (f.create_time_ms or 0, f.assessment_id or ""),
    )


def _blind_actions(own: Sequence[Feedback], name: str) -> frozenset[str]:
    return frozenset(
        str(action)
        for f in own
        if f.name == name
        and not _is_after_verdict(f)
        and (action := (f.metadata or {}).get(ACTION_KEY))
    )


def _is_after_verdict(feedback: Feedback) -> bool:
    return str((feedback.metadata or {}).get(AFTER_VERDICT_KEY, "")).lower() == "true"
