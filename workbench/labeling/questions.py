"""Questions that an annotator answers about each trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from mlflow.entities import Trace
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.errors import ArgumentError, ScaleError
from workbench.formatting import check_text, storable, written
from workbench.judging.verdicts import recorded_verdicts
from workbench.scale import ABSTAIN, Scale, is_abstention, scale_of
from workbench.store.schemas import RubricHistory, asks_for_feedback, find_schema, observed_scale
from workbench.vocabulary import as_text, is_missing, is_several

_ABSTENTIONS = ("N/A", "can't judge", "not applicable", "abstain")


@dataclass(frozen=True)
class LabelQuestion:
    """One question that an annotator answers about each trace.

    Attributes
    ----------
    name
        The name under which the labels are stored: the judge's name, exactly.
    scale
        The rating scale; None for an answer in free text.
    title
        What stands above the control; the name where it is empty.
    rubric
        Markdown, shown beside the control.
    rubric_version
        Version of the rubric, which is recorded with each label; None where it has none.
    required
        Whether a trace counts as labelled only with an answer to this question.
    labels
        How single values are shown, by value; values that it lacks are shown as they are.
    """

    name: str
    scale: Scale | None
    title: str = ""
    rubric: str = ""
    rubric_version: int | None = None
    required: bool = True
    labels: Mapping[Any, str] | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not isinstance(self.scale, Scale | None):
            raise ArgumentError(
                f"scale={self.scale!r:.80} must be a Scale, for instance "
                "workbench.Scale.of(['no', 'yes']), or None for an answer in free text."
            )

    @classmethod
    def of_judge(cls, judge: Judge, **more: Any) -> LabelQuestion:
        """Return the question that a judge answers; its instructions are the default rubric."""
        more.setdefault("rubric", getattr(judge, "instructions", None) or "")
        more.setdefault("scale", scale_of(judge))
        return cls(name=judge.name, **more)

    @classmethod
    def of_schema(cls, schema: LabelSchema, **more: Any) -> LabelQuestion:
        """Return the question of an MLflow label schema; its instruction is the default rubric.

        An `ArgumentError` for one that asks for an expectation, or takes several values at once.
        """
        if not asks_for_feedback(schema):
            raise ArgumentError(
                f"The label schema {schema.name!r} asks for an expectation, not for a rating. "
                "Give expectations in MLflow's own page, or name a schema that asks for feedback."
            )
        positive, negative = (
            getattr(schema.input, f"{side}_label", None) for side in ("positive", "negative")
        )
        if positive and negative:
            more.setdefault("labels", {True: positive, False: negative})
        more.setdefault("rubric", schema.instruction or "")
        return cls(name=schema.name, scale=Scale.from_schema(schema), **more)

    @property
    def kind(self) -> str:
        """``"text"`` or the kind of the scale."""
        return "text" if self.scale is None else self.scale.kind

    @property
    def abstention(self) -> str:
        """The word that is stored for "can't judge", and reads back as an abstention."""
        return next(word for word in _ABSTENTIONS if is_abstention(word, self.scale))

    def shown(self, value: Any) -> str:
        """Return the words for a canonical value."""
        if value is ABSTAIN:
            return "can't judge"
        if is_several(value):
            return as_text(value)
        words = {True: "yes", False: "no"} if isinstance(value, bool) else {}
        return written({**words, **(self.labels or {})}.get(value, value))

    def to_json(self) -> dict[str, Any]:
        """Return the question as the view needs it."""
        scale = self.scale
        values = scale.values if scale else ()
        low, high = scale.limits if scale else (None, None)
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title or self.name,
            "rubric": self.rubric,
            "rubric_version": self.rubric_version,
            "values": [{"value": value, "label": self.shown(value)} for value in values],
            "low": low,
            "high": high,
            "integer": bool(scale and scale.integer),
            "required": self.required,
        }

    def read(self, stored: Any) -> Any:
        """Return the canonical value of a stored label, or `ABSTAIN`; a `ScaleError` where it is
        missing or lies off the scale."""
        if self.scale is not None:
            return self.scale.normalise(stored)
        if is_missing(stored):
            raise ScaleError("The value is missing. Allowed: any text.")
        return ABSTAIN if stored == self.abstention else storable(str(stored))

    def answer(self, value: Any, *, abstain: bool = False) -> Any:
        """Return the canonical value of an answer, or `ABSTAIN`; a `ScaleError` where it cannot be
        stored as a label of this question."""
        if abstain:
            return ABSTAIN
        if isinstance(value, (dict, list)):
            raise ScaleError(f"{self.name}: {value!r:.80} is no single value.")
        canonical = self.read(value)
        if self.scale is not None and self.kind == "numeric" and canonical is not ABSTAIN:
            low, high = self.scale.limits
            low, high = -math.inf if low is None else low, math.inf if high is None else high
            if not low <= canonical <= high:
                raise ScaleError(f"{self.name}: {canonical} does not lie in [{low}, {high}].")
        return canonical

    def stored(self, canonical: Any) -> Any:
        """Return what is stored for a canonical value."""
        return self.abstention if canonical is ABSTAIN else canonical


def read_answers(
    questions: Sequence[LabelQuestion], given: Mapping[str, Any], stored: Iterable[str]
) -> list[tuple[LabelQuestion, Any]]:
    """Return the canonical answers; ``stored`` are the questions that have one already."""
    by_name = {question.name: question for question in questions}
    if unknown := sorted(set(given) - set(by_name)):
        raise ArgumentError(f"No question is named {unknown[0]!r:.80} here.")
    answers = {n: by_name[n].answer(one.value, abstain=one.abstain) for n, one in given.items()}
    lacking = [q.name for q in questions if q.required and q.name not in answers]
    if not answers or set(lacking) - set(stored):
        raise ArgumentError(f"{', '.join(lacking) or 'Every question'} needs an answer.")
    return [(one, answers[one.name]) for one in questions if one.name in answers]


def session_questions(
    judge_or_name: Judge | str | None,
    questions: Sequence[LabelQuestion | LabelSchema | str] | None,
    scale: Scale | None,
    traces: Sequence[Trace],
    experiment: str,
) -> tuple[LabelQuestion, ...]:
    """Return the questions of a session from its arguments (see `workbench.LabelPanel`)."""
    if questions is None and judge_or_name is None:
        raise ArgumentError("There is nothing to ask. Give a judge, its name, or questions=.")
    if questions is None:
        return (as_question(judge_or_name, experiment, scale=scale, traces=traces),)
    several = questions if isinstance(questions, (list, tuple)) else [questions]
    asked = tuple(as_question(one, experiment, traces=traces) for one in several)
    names = [question.name for question in asked]
    if len(set(names)) < len(names) or not any(question.required for question in asked):
        raise ArgumentError(
            f"questions={names!r} must have different names, and one of them at least must be "
            "required=True: without it no trace would ever be labelled."
        )
    return asked


def as_question(
    given: Any, experiment: str, *, scale: Scale | None = None, traces: Sequence[Trace] = ()
) -> LabelQuestion:
    """Return the question of a judge, of a label schema, or of the name of either.

    Its scale is ``scale``, else that of the judge's type, of the label schema of its name, or of
    the values on the traces.
    """
    if isinstance(given, LabelQuestion):
        return given
    if hasattr(given, "enable_comment"):
        return LabelQuestion.of_schema(given)
    if not isinstance(given, str) and not hasattr(given, "feedback_value_type"):
        raise ArgumentError(
            f"questions holds {given!r:.80}. Each must be a LabelQuestion, an MLflow LabelSchema, "
            "a judge, or the name of one."
        )
    by_name = isinstance(given, str)
    asked = LabelQuestion(given, None) if by_name else LabelQuestion.of_judge(given)
    schema = None if scale else find_schema(asked.name, experiment=experiment)
    if by_name and schema is not None:
        return LabelQuestion.of_schema(schema)
    if schema is not None:
        with suppress(ArgumentError):  # it asks for an expectation, or takes several values at once
            in_schema = LabelQuestion.of_schema(schema)
            if asked.scale in (None, in_schema.scale):
                asked = replace(asked, scale=in_schema.scale, labels=in_schema.labels)
    return replace(asked, scale=scale or asked.scale or _observed_scale(asked.name, traces))


def _observed_scale(name: str, traces: Sequence[Trace]) -> Scale:
    verdicts = [v.value for trace in traces for v in recorded_verdicts(trace, name) if v.usable]
    if found := observed_scale(name, traces, verdicts):
        return found
    raise ArgumentError(
        f"No scale is known for {name!r}: there is no label schema {name!r} that tells it. "
        "Give one, for instance workbench.Scale.of(['no', 'yes']), as scale= or in a "
        "LabelQuestion, or a judge with a feedback_value_type such as Literal['yes', 'no']."
    )


def with_rubric(question: LabelQuestion, history: RubricHistory) -> LabelQuestion:
    """Return the question with the rubric that was set for it, where one was."""
    current = history.current
    if current is None:
        return question
    return replace(question, rubric=current.text, rubric_version=current.version)
