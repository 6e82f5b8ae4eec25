"""What an annotator is asked about a trace, and what may be answered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from mlflow.entities import TraceInfo

from workbench.errors import ArgumentError, ScaleError
from workbench.scale import ABSTAIN, Scale, is_missing
from workbench.store.cells import rating_problem
from workbench.store.rubrics import RubricHistory
from workbench.store.schemas import asks_for_feedback, find_schema

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
        """The question that a judge answers; its instructions are the rubric by default.

        Raises
        ------
        ArgumentError
            For a judge whose value type holds no single verdict.
        """
        from workbench.scale import scale_of

        more.setdefault("rubric", getattr(judge, "instructions", None) or "")
        more.setdefault("scale", scale_of(judge))
        return cls(name=judge.name, **more)

    @classmethod
    def of_schema(cls, schema: Any, **more: Any) -> LabelQuestion:
        """The question of an MLflow label schema.

        Raises
        ------
        ArgumentError
            For a schema that takes several values at once.
        """
        given = schema.input
        shown = getattr(given, "positive_label", None), getattr(given, "negative_label", None)
        if shown[0] and shown[1]:
            more.setdefault("labels", {True: shown[0], False: shown[1]})
        more.setdefault("rubric", schema.instruction or "")
        return cls(name=schema.name, scale=Scale.from_schema(schema), **more)

    @property
    def kind(self) -> str:
        """``"text"`` or the kind of the scale."""
        return "text" if self.scale is None else self.scale.kind

    @property
    def abstention(self) -> str:
        """What is stored for "can't judge": a word that reads back as an abstention."""
        for word in _ABSTENTIONS:
            try:
                if self.scale is None or self.scale.normalise(word) is ABSTAIN:
                    return word
            except ScaleError:  # pragma: no cover - abstentions lie on no scale but their own
                continue
        raise ArgumentError(f"Every word for an abstention is a value of {self.name!r}.")

    def shown(self, value: Any) -> str:
        """How a canonical value is shown."""
        if value is ABSTAIN:
            return "can't judge"
        own = (self.labels or {}).get(value)
        if own is not None:
            return own
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)

    def to_json(self) -> dict[str, Any]:
        """The question as the view needs it."""
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
        """The canonical value of a stored label, or `ABSTAIN`.

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
        """The canonical value of an answer that is given, or `ABSTAIN`.

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
        if problem := rating_problem(value, None):
            raise ScaleError(f"{self.name}: {problem}.")
        canonical = self.read(value)
        scale = self.scale
        if scale is not None and scale.kind == "numeric" and canonical is not ABSTAIN:
            low = -math.inf if scale.low is None else scale.low
            high = math.inf if scale.high is None else scale.high
            if not low <= canonical <= high:
                raise ScaleError(f"{self.name}: {canonical} does not lie in [{low}, {high}].")
        return canonical

    def stored(self, canonical: Any) -> Any:
        """What is written for a canonical value."""
        return self.abstention if canonical is ABSTAIN else canonical


def check_questions(questions: Iterable[LabelQuestion]) -> tuple[LabelQuestion, ...]:
    """The questions, if they are usable together.

    Raises
    ------
    ArgumentError
        For none, for one name twice, and where no question is required.
    """
    given = tuple(questions)
    names = [question.name for question in given]
    if not given or len(set(names)) < len(names):
        raise ArgumentError(
            f"questions={names!r} must be at least one, each with a name of its own."
        )
    if not any(question.required for question in given):
        raise ArgumentError(
            f"None of the questions {names!r} is required, so no trace would ever be labelled. "
            "Make one of them required=True."
        )
    return given


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
