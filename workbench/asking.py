"""What a session asks: the question of a judge or of a name, on the scale that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow.entities import TraceInfo

from workbench.answers import LabelQuestion, check_questions
from workbench.errors import ArgumentError, ScaleError
from workbench.rubrics import RubricHistory
from workbench.scale import Scale
from workbench.schemas import scale_of_question

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def asked(
    judge_or_name: Judge | str | None,
    given: Sequence[LabelQuestion] | None,
    scale: Scale | None,
    infos: Iterable[TraceInfo],
    experiment: str,
) -> tuple[LabelQuestion, ...]:
    """The questions of a session (see `workbench.labelling.LabelSession` for the arguments)."""
    if given is not None:
        return check_questions(given)
    if judge_or_name is None:
        raise ArgumentError("What is asked is not said. Give a judge, its name, or questions=.")
    if isinstance(judge_or_name, str):
        question = LabelQuestion(judge_or_name, scale)
    else:
        question = LabelQuestion.of_judge(judge_or_name)
    found = scale or scale_of_question(judge_or_name, experiment=experiment)
    return (replace(question, scale=found or _observed_scale(question.name, infos)),)


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
