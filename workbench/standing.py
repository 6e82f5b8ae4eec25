"""Where one annotator stands on one trace, read from what the store holds of it.

Labels are assessments. What is no label is kept in tags of the trace, one tag for each thing
that happened, so that writing it again changes nothing and two writers never overwrite each other:

- ``workbench.skipped.<action>``: the item was put off;
- ``workbench.undone.<action>``: the action was taken back, which holds for good: written again,
  it has no effect;
- ``workbench.revealed.<annotator and question>``: the annotator has seen the verdict.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mlflow.entities import Feedback, Trace, TraceData, TraceInfo

from workbench.actions import Action
from workbench.answers import LabelQuestion
from workbench.draws import Draw
from workbench.errors import ScaleError
from workbench.feedback import AFTER_VERDICT_KEY
from workbench.labels import Label, decision_feedback, label_records
from workbench.labels import folded as folded
from workbench.scale import is_missing

ACTION_KEY: Final = "workbench.action"
SECONDS_KEY: Final = "workbench.seconds"
CLOCK_KEY: Final = "workbench.at"
"""The browser's clock when the label was given, milliseconds since the epoch."""

SKIPPED: Final = "workbench.skipped."
UNDONE: Final = "workbench.undone."
REVEALED: Final = "workbench.revealed."


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's: "Ben" and "ben" are.

    A team cannot hold both (`workbench.review_queue`), so whoever is "Ben" in the notebook and
    "ben" in MLflow's page has one standing, and labels a trace once. `workbench.pair` counts names
    as they are written; a label that is given again in a panel replaces the one it finds.
    """
    return folded(one) == folded(other)


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
