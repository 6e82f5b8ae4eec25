"""Questions that an annotator answers about each trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow.entities import TraceInfo

from workbench.errors import ArgumentError, ScaleError
from workbench.scale import ABSTAIN, Scale, is_missing, scale_of
from workbench.store.rubrics import RubricHistory
from workbench.store.schemas import asks_for_feedback, find_schema
from workbench.store.tables import read_rating

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema


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

    @classmethod
    def of_judge(cls, judge: Judge, **more: Any) -> LabelQuestion:
        """Return the question that a judge answers; its instructions are the default rubric."""
        more.setdefault("rubric", getattr(judge, "instructions", None) or "")
        more.setdefault("scale", scale_of(judge))
        return cls(name=judge.name, **more)

    @classmethod
    def of_schema(cls, schema: LabelSchema, **more: Any) -> LabelQuestion:
        """Return the question of an MLflow label schema; its instruction is the default rubric.

        Raises
        ------
        ArgumentError
            For a schema that asks for an expectation, or takes several values at once.
        """
        if not asks_for_feedback(schema):
            raise ArgumentError(
                f"The label schema {schema.name!r} asks for an expectation, not for a rating. "
                "Give expectations in MLflow's own page, or name a schema that asks for feedback."
            )
        words = (
            getattr(schema.input, "positive_label", None),
            getattr(schema.input, "negative_label", None),
        )
        if all(words):
            more.setdefault("labels", {True: words[0], False: words[1]})
        more.setdefault("rubric", schema.instruction or "")
        return cls(name=schema.name, scale=Scale.from_schema(schema), **more)

    @property
    def kind(self) -> str:
        """``"text"`` or the kind of the scale."""
        return "text" if self.scale is None else self.scale.kind

    @property
    def abstention(self) -> str:
        """The word that is stored for "can't judge", and reads back as an abstention."""
        for word in _ABSTENTIONS:
            try:
                if self.scale is None or self.scale.normalise(word) is ABSTAIN:
                    return word
            except ScaleError:  # pragma: no cover - abstentions lie on no scale but their own
                continue
        raise ArgumentError(f"Every word for an abstention is a value of {self.name!r}.")

    def shown(self, value: Any) -> str:
        """Return the words for a canonical value."""
        if value is ABSTAIN:
            return "can't judge"
        own = (self.labels or {}).get(value)
        if own is not None:
            return own
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)

    def to_json(self) -> dict[str, Any]:
        """Return the question as the view needs it."""
        values = self.scale.values if self.scale else ()
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title or self.name,
            "rubric": self.rubric,
            "rubric_version": self.rubric_version,
            "values": [{"value": value, "label": self.shown(value)} for value in values],
            "low": self.scale.low if self.scale else None,
            "high": self.scale.high if self.scale else None,
            "integer": bool(self.scale and self.scale.integer),
            "required": self.required,
        }

    def read(self, stored: Any) -> Any:
        """Return the canonical value of a stored label, or `ABSTAIN`.

        Raises
        ------
        ScaleError
            When it is missing or lies off the scale.
        """
        if self.scale is not None:
            return self.scale.normalise(stored)
        if is_missing(stored):
            raise ScaleError("The value is missing. Allowed: any text.")
        return ABSTAIN if stored == self.abstention else str(stored)

    def answer(self, value: Any, *, abstain: bool = False) -> Any:
        """Return the canonical value of an answer, or `ABSTAIN`.

        Raises
        ------
        ScaleError
            When it cannot be stored as a label of this question.
        """
        if abstain:
            return ABSTAIN
        if isinstance(value, float) and not math.isfinite(value):
            raise ScaleError(f"{self.name}: {value!r} is not a number.")
        if isinstance(value, (dict, list)):
            raise ScaleError(f"{self.name}: one value is needed, not a {type(value).__name__}.")
        try:
            read_rating(value, None)
        except ValueError as error:
            raise ScaleError(f"{self.name}: {error}.") from None
        canonical = self.read(value)
        scale = self.scale
        if scale is not None and scale.kind == "numeric" and canonical is not ABSTAIN:
            low = -math.inf if scale.low is None else scale.low
            high = math.inf if scale.high is None else scale.high
            if not low <= canonical <= high:
                raise ScaleError(f"{self.name}: {canonical} does not lie in [{low}, {high}].")
        return canonical

    def stored(self, canonical: Any) -> Any:
        """Return what is stored for a canonical value."""
        return self.abstention if canonical is ABSTAIN else canonical


def check_questions(questions: Iterable[LabelQuestion]) -> tuple[LabelQuestion, ...]:
    """Return the questions if they can be asked together, else raise `ArgumentError`."""
    given = tuple(questions)
    names = [question.name for question in given]
    if not given or len(set(names)) < len(names):
        raise ArgumentError(f"questions={names!r} must be at least one, each with its own name.")
    if not any(question.required for question in given):
        raise ArgumentError(
            f"None of the questions {names!r} is required, so no trace would ever be labelled. "
            "Make one of them required=True."
        )
    return given


def read_answers(
    questions: Sequence[LabelQuestion], given: Mapping[str, Any], stored: Iterable[str]
) -> dict[str, Any]:
    """Return the canonical answers by question; ``stored`` are those that have one already."""
    by_name = {question.name: question for question in questions}
    unknown = sorted(set(given) - set(by_name))
    if unknown:
        raise ArgumentError(f"No question is named {unknown[0]!r:.80} here.")
    answers = {n: by_name[n].answer(one.value, abstain=one.abstain) for n, one in given.items()}
    lacking = [q.name for q in questions if q.required and q.name not in answers]
    if not answers or set(lacking) - set(stored):
        raise ArgumentError(f"{', '.join(lacking) or 'Every question'} needs an answer.")
    return answers


def session_questions(
    judge_or_name: Judge | str | None,
    questions: Sequence[LabelQuestion | LabelSchema | str] | None,
    scale: Scale | None,
    infos: Iterable[TraceInfo],
    experiment: str,
) -> tuple[LabelQuestion, ...]:
    """Return the questions of a session from its arguments (see `workbench.LabelPanel`).

    ``infos`` are the traces, whose values tell the scale where nothing else does.
    """
    if questions is not None:
        if isinstance(questions, str) or not isinstance(questions, Iterable):
            questions = [questions]
        return check_questions(_question(one, experiment) for one in questions)
    if judge_or_name is None:
        raise ArgumentError("There is nothing to ask. Give a judge, its name, or questions=.")
    is_name = isinstance(judge_or_name, str)
    name = judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)
    schema = find_schema(name, experiment=experiment)
    in_schema = None
    if schema is not None and (asks_for_feedback(schema) or (is_name and scale is None)):
        try:
            in_schema = LabelQuestion.of_schema(schema)
        except ArgumentError:
            if not asks_for_feedback(schema):
                raise
            # It takes several values at once, which are no rating; the scale may be known.
    if isinstance(judge_or_name, str):
        if in_schema is not None and scale is None and in_schema.scale is None:
            return (in_schema,)
        question = in_schema or LabelQuestion(name, None)
    else:
        question = LabelQuestion.of_judge(judge_or_name)
        if in_schema is not None and question.scale in (None, in_schema.scale):
            question = replace(question, scale=in_schema.scale, labels=in_schema.labels)
    found = scale or question.scale or _observed_scale(name, infos)
    if question.scale is not None and found != question.scale:
        question = replace(question, labels=None)  # another scale has other words
    return (replace(question, scale=found),)


def _question(given: LabelQuestion | LabelSchema | str, experiment: str) -> LabelQuestion:
    if isinstance(given, LabelQuestion):
        return given
    if isinstance(given, str):
        schema = find_schema(given, experiment=experiment)
        if schema is None:
            raise ArgumentError(
                f"questions: there is no label schema {given!r} in experiment {experiment}. Give "
                "a LabelQuestion with a scale, or the name of an existing schema."
            )
        return LabelQuestion.of_schema(schema)
    if hasattr(given, "input") and hasattr(given, "enable_comment"):
        return LabelQuestion.of_schema(given)
    if hasattr(given, "feedback_value_type"):
        return LabelQuestion.of_judge(given)
    raise ArgumentError(
        f"questions holds {given!r:.80}. Each must be a LabelQuestion, an MLflow LabelSchema or "
        "the name of one."
    )


def _observed_scale(name: str, infos: Iterable[TraceInfo]) -> Scale:
    seen = [
        a.feedback.value
        for info in infos
        for a in info.assessments or []
        if a.name == name and a.feedback is not None and a.feedback.error is None
    ]
    try:
        return Scale.from_values(v for v in seen if not isinstance(v, (list, dict)))
    except ScaleError:
        raise ArgumentError(
            f"No scale is known for {name!r}. Give one, for instance "
            "scale=workbench.Scale.of(['no', 'yes']), or the judge itself with a "
            "feedback_value_type."
        ) from None


def with_rubric(question: LabelQuestion, history: RubricHistory) -> LabelQuestion:
    """Return the question with the rubric that was set for it, where one was."""
    current = history.current
    if current is None:
        return question
    return replace(question, rubric=current.text, rubric_version=current.version)
