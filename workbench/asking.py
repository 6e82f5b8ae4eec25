"""What a session asks: the question of a judge or of a name, on the scale that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from mlflow.entities import TraceInfo

from workbench.answers import LabelQuestion, check_questions
from workbench.errors import ArgumentError, ScaleError
from workbench.rubrics import RubricHistory
from workbench.scale import Scale
from workbench.schemas import asks_for_feedback, find_schema

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema


def asked(
    judge_or_name: Judge | str | None,
    given: Sequence[LabelQuestion | LabelSchema | str] | None,
    scale: Scale | None,
    infos: Iterable[TraceInfo],
    experiment: str,
) -> tuple[LabelQuestion, ...]:
    """The questions of a session (see `workbench.labelling.LabelSession` for the arguments)."""
    if given is not None:
        if isinstance(given, str) or not isinstance(given, Iterable):
            given = [given]
        return check_questions(_question(one, experiment) for one in given)
    if judge_or_name is None:
        raise ArgumentError("What is asked is not said. Give a judge, its name, or questions=.")
    schema = find_schema(_name(judge_or_name), experiment=experiment)
    if schema is not None and not asks_for_feedback(schema):
        if isinstance(judge_or_name, str) and scale is None:
            raise ArgumentError(_EXPECTS.format(schema.name))
        schema = None
    if isinstance(judge_or_name, str):
        try:
            question = LabelQuestion(judge_or_name, None) if schema is None else question_of(schema)
        except ArgumentError:
            # It takes several values at once, which are no rating; the scale may be known.
            schema, question = None, LabelQuestion(judge_or_name, None)
        if schema is not None and scale is None and question.scale is None:
            return (question,)
    else:
        question = LabelQuestion.of_judge(judge_or_name)
        question = _in_the_words_of(schema, question)
    found = scale or question.scale or _observed_scale(question.name, infos)
    if question.labels and question.scale is not None and found != question.scale:
        question = replace(question, labels=None)
    return (replace(question, scale=found),)


def question_of(schema: LabelSchema, **more: Any) -> LabelQuestion:
    """The question of an MLflow label schema: its scale and words, its instruction as the rubric
    unless another is given, and whether reasons are asked for.

    Raises
    ------
    ArgumentError
        For a schema that asks for an expectation, or takes several values at once.
    """
    if not asks_for_feedback(schema):
        raise ArgumentError(_EXPECTS.format(schema.name))
    question = LabelQuestion.of_schema(schema, **more)
    if any(one.name == "rationale" for one in fields(question)):
        changed: dict[str, Any] = {"rationale": bool(schema.enable_comment)}
        question = replace(question, **changed)
    return question


_EXPECTS: Final = (
    "The label schema {!r} asks for an expectation, not for a rating. Expectations are given in "
    "MLflow's own page; give the name of a schema that asks for feedback."
)


def _question(given: LabelQuestion | LabelSchema | str, experiment: str) -> LabelQuestion:
    if isinstance(given, LabelQuestion):
        return given
    if isinstance(given, str):
        schema = find_schema(given, experiment=experiment)
        if schema is None:
            raise ArgumentError(
                f"questions: there is no label schema {given!r} in experiment {experiment}. Give "
                "a LabelQuestion with a scale, or the name of a schema that is there."
            )
        return question_of(schema)
    if hasattr(given, "input") and hasattr(given, "enable_comment"):
        return question_of(given)
    if hasattr(given, "feedback_value_type"):
        return LabelQuestion.of_judge(given)
    raise ArgumentError(
        f"questions holds {given!r:.80}. Each must be a LabelQuestion, an MLflow LabelSchema or "
        "the name of one."
    )


def _in_the_words_of(schema: LabelSchema | None, question: LabelQuestion) -> LabelQuestion:
    """A judge's question on the scale of the schema of its name where its own type tells none,
    and in the words of the schema where the scales are the same."""
    if schema is None:
        return question
    try:
        there = question_of(schema)
    except ArgumentError:
        return question
    if question.scale is None:
        return replace(question, scale=there.scale, labels=there.labels)
    if there.labels and there.scale == question.scale:
        return replace(question, labels=there.labels)
    return question


def _name(judge_or_name: Judge | str) -> str:
    return judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)


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
    """The question with the rubric that was set for it, where one was."""
    current = history.current
    if current is None:
        return question
    return replace(question, rubric=current.text, rubric_version=current.version)
