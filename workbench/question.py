"""One judge asked about one item: what it is given, and its answer as a verdict."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Feedback
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.tracing.constant import AssessmentMetadataKey

from workbench.cache import AnswerCache, question_key
from workbench.errors import ScaleError
from workbench.judge import Verdict, fingerprint, scale_of
from workbench.scale import ABSTAIN, Scale, is_missing
from workbench.traces import Example, item_digest
from workbench.transport import prepared

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class AnswerError(Exception):
    """The model answered, but not with a usable verdict."""


@dataclass(frozen=True)
class Plan:
    """One judge, made ready to be called many times."""

    judge: Judge
    call: Any
    mark: str
    scale: Scale | None
    fields: tuple[str, ...]

    @classmethod
    def of(cls, judge: Judge, scale: Scale | None) -> Plan:
        own = scale_of(judge)
        if isinstance(judge, InstructionsJudge):
            fields = tuple(sorted(judge.template_variables))
        else:
            fields = _accepted_fields(judge)
        return cls(judge, prepared(judge), fingerprint(judge), scale or own, fields)


def _accepted_fields(judge: Judge) -> tuple[str, ...]:
    """What a judge that is not made from instructions is given.

    A whole trace only where it must be, since answers on whole traces cannot be shared.
    """
    accepted = inspect.signature(type(judge).__call__).parameters
    fields = [f for f in ("inputs", "outputs", "expectations") if f in accepted]
    required = "trace" in accepted and accepted["trace"].default is inspect.Parameter.empty
    if required or not {"inputs", "outputs"} & set(fields):
        fields.append("trace")
    return tuple(fields)


@dataclass(frozen=True)
class Question:
    """One judge asked about one item; ``sample`` counts repeated questions from 0."""

    plan: Plan
    item: Example
    sample: int

    @cached_property
    def key(self) -> str:
        fields = tuple(f for f in self.plan.fields if f != "trace")
        digest = item_digest(self.item, fields) if fields else ""
        # What a judge reads from a whole trace has no digest: it belongs to that trace alone.
        where = self.item.trace_id if "trace" in self.plan.fields else ""
        return question_key(self.plan.mark, digest, where, self.sample)

    def ask(self) -> tuple[Verdict, Any]:
        """One call: the verdict, and its value as the judge gave it.

        Raises whatever the judge raises, and `AnswerError` for unusable answers.
        """
        values = {
            "inputs": self.item.inputs,
            "outputs": self.item.outputs,
            "expectations": self.item.expectations,
        }
        arguments = {f: values[f] for f in self.plan.fields if f in values}
        if "trace" in self.plan.fields:
            arguments["trace"] = mlflow.get_trace(self.item.trace_id)
        feedback = _only_feedback(self.plan.call(**arguments))
        if feedback.error is not None:
            raise AnswerError(feedback.error.error_message or feedback.error.error_code)
        metadata = feedback.metadata or {}
        verdict = Verdict(
            trace_id=self.item.trace_id,
            value=self._canonical(feedback.value),
            rationale=feedback.rationale or "",
            fingerprint=self.plan.mark,
            input_tokens=_as(int, metadata.get(AssessmentMetadataKey.JUDGE_INPUT_TOKENS)),
            output_tokens=_as(int, metadata.get(AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS)),
            cost=_as(float, metadata.get(AssessmentMetadataKey.JUDGE_COST)),
        )
        return verdict, feedback.value

    def _canonical(self, value: Any) -> Any:
        if is_missing(value):
            raise AnswerError("the judge gave an empty answer")
        if self.plan.scale is None:
            return value
        try:
            canonical = self.plan.scale.normalise(value)
        except ScaleError as error:
            raise AnswerError(str(error)) from None
        return "N/A" if canonical is ABSTAIN else canonical

    def stored(self, cache: AnswerCache) -> Verdict | None:
        """The verdict of a stored answer; None where there is none on this scale."""
        answer = cache.get(self.key)
        if answer is None:
            return None
        try:
            # As the judge gave it: the same answer may have been read on another scale before.
            value = self._canonical(answer.get("value"))
        except AnswerError:
            return None
        return Verdict(
            trace_id=self.item.trace_id,
            value=value,
            rationale=str(answer.get("rationale") or ""),
            fingerprint=self.plan.mark,
            cached=True,
        )


def _only_feedback(given: Any) -> Feedback:
    """The one rating that a judge gave; some of MLflow's judges give a list."""
    ratings = given if isinstance(given, list) else [given]
    if len(ratings) != 1 or not isinstance(ratings[0], Feedback):
        raise AnswerError(
            f"the judge gave {len(ratings)} ratings of one trace, where one is needed"
            if len(ratings) != 1
            else f"the judge gave a {type(ratings[0]).__name__}, where feedback is needed"
        )
    return ratings[0]


def _as(kind: type, value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None
