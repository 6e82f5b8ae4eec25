"""One judge asked about one item: what it is given, and its answer as a verdict."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import mlflow
from mlflow.entities import Feedback
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.judges.utils import get_default_model
from mlflow.tracing.constant import AssessmentMetadataKey

from workbench.credentials import public_query, scrub, without_credentials
from workbench.errors import ReplayError, ScaleError
from workbench.judging.judge import fingerprint, is_cacheable
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Receipt
from workbench.models.cache import AnswerCache, question_key
from workbench.models.client import prepared
from workbench.models.offline import SCHEME, VERSION
from workbench.models.recording import Line, active, charged
from workbench.scale import ABSTAIN, Scale, is_missing, scale_of
from workbench.store.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class AnswerError(Exception):
    """The model answered, but not with a usable verdict."""


@dataclass(frozen=True)
class Plan:
    """One judge, made ready to be called many times.

    ``mark`` is its fingerprint, ``source`` what else decides its answers (`answers_from`) and
    ``lasting`` whether they may be kept for another run. ``anywhere`` is its fingerprint wherever
    its model is reached.
    """

    judge: Judge
    call: Any
    mark: str
    source: dict[str, Any]
    scale: Scale | None
    fields: tuple[str, ...]
    lasting: bool = True

    @cached_property
    def anywhere(self) -> str:
        return fingerprint(self.judge, place=False)

    @classmethod
    def of(cls, judge: Judge, scale: Scale | None) -> Plan:
        own = scale_of(judge)
        if isinstance(judge, InstructionsJudge):
            fields = tuple(sorted(judge.template_variables))
        else:
            fields = _accepted_fields(judge)
        return cls(
            judge,
            prepared(judge),
            fingerprint(judge),
            answers_from(getattr(judge, "model", None), getattr(judge, "_base_url", None)),
            scale or own,
            fields,
            lasting=is_cacheable(judge),
        )


def answers_from(model: str | None, base_url: str | None = None) -> dict[str, Any]:
    """What decides the answers of a model beside the question: where they come from.

    The model that stands behind no name at all; the server, be it named by the base URL or by
    the environment, without credentials; the version of the embedded model. Answers are kept
    for this source alone. What the environment says of it is no part of a judge's fingerprint.
    """
    model = model or get_default_model()
    provider = model.partition(":")[0]
    if model.startswith(SCHEME):
        return {"model": model, "version": VERSION}
    if base_url:
        return {"model": model, "server": _address(base_url)}
    if provider == "gateway":
        server = os.environ.get("MLFLOW_GATEWAY_URI") or mlflow.get_tracking_uri()
        return {"model": model, "server": _address(server)}
    # Clients differ in which of several variables they heed, so that each of them counts.
    prefixes = "|".join(_PREFIXES.get(provider, (provider.upper().replace("-", "_"),)))
    variable = re.compile(rf"(?:{prefixes})_(?:\w+_)?(?:{_PLACES})")
    named = {n: _address(v) for n, v in os.environ.items() if v and variable.fullmatch(n)}
    return {"model": model, "server": named}


_PLACES: Final = (
    "API_BASE|BASE_URL|API_VERSION|ENDPOINT|ENDPOINT_URL|ENDPOINT_NAME|HOST|LOCATION|REGION|"
    "REGION_NAME|TARGET"
)
"""How the variables end that say where a provider is reached, after the provider's name."""


_PREFIXES: Final = {
    "amazon-bedrock": ("AWS", "BEDROCK"),
    "bedrock": ("AWS", "BEDROCK"),
    "databricks": ("DATABRICKS", "MLFLOW_DEPLOYMENTS"),
    "endpoints": ("DATABRICKS", "MLFLOW_DEPLOYMENTS"),
    "huggingface": ("HF", "HUGGINGFACE"),
    "sap-ai-core": ("MLFLOW_GENAI_JUDGE", "SAP_AI_CORE"),
    "togetherai": ("TOGETHERAI", "TOGETHER_AI"),
    "vertex_ai": ("VERTEX", "VERTEXAI"),
}
"""How the variables of providers begin where that is not the provider's name."""


def _address(named: str) -> str:
    try:
        return f"{without_credentials(named)}?{public_query(named)}"
    except ValueError:  # no URL, and nothing will be reached by it
        return ""


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
        return question_key(self.plan.mark, self.plan.source, digest, where, self.sample)

    @property
    def model(self) -> str:
        """URI of the judge's model; "" where it has none."""
        return str(getattr(self.plan.judge, "model", None) or "")

    def tape_key(self, *, kept: bool) -> str:
        """What the answer has in a file of answers: the same on every machine and in every store.

        Where the answers come from is no part of it, and a trace that is read as a whole goes by
        its content. ``kept`` tells whether equal questions have one answer.
        """
        tape = active()
        fields = tuple(f for f in self.plan.fields if f != "trace")
        digest = item_digest(self.item, fields) if fields else ""
        place = 0
        if "trace" in self.plan.fields:
            digest = question_key(item_digest(self.item), _content(self.item.trace_id))
            place = tape.place(digest, self.item.trace_id) if tape is not None else 0
        return question_key("judge", kept, self.plan.anywhere, digest, place, self.sample)

    def told(self) -> dict[str, Any]:
        """What is asked, for those who read a file of answers."""
        judge = self.plan.judge
        about = {"judge": judge.name, "fingerprint": self.plan.anywhere, "sample": self.sample}
        return {**about, "model": getattr(judge, "model", None) or type(judge).__name__}

    def __str__(self) -> str:
        told = self.told()
        return f"Judge {told['judge']!r} ({told['model']}) on trace {self.item.trace_id}"

    def of_line(self, line: Line) -> Verdict:
        """The verdict that a file of answers holds.

        Raises
        ------
        ReplayError
            When its value is none of this judge's.
        """
        verdict = Verdict(
            trace_id=self.item.trace_id,
            rationale=line.answer.get("rationale", ""),
            error=line.answer.get("error"),
            fingerprint=self.plan.mark,
            calls=line.paid.get("calls", 0),
            input_tokens=line.paid.get("input_tokens"),
            output_tokens=line.paid.get("output_tokens"),
            cost=line.paid.get("cost"),
            receipt=charged(line.paid),
        )
        if verdict.error is not None:
            return verdict
        try:
            value = self._canonical(line.answer.get("value"))
        except AnswerError as error:
            raise ReplayError(f"{self} has an answer in the file that is none: {error}.") from None
        return replace(verdict, value=value, cached=verdict.calls == 0)

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
            # A gateway may put into it what it was sent.
            rationale=scrub(feedback.rationale or "", self.plan.judge),
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
        answer = cache.get(self.key) if self.plan.lasting else None
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
            receipt=Receipt.of(answer.get("paid")),
        )

    def keep(self, cache: AnswerCache, value: Any, verdict: Verdict) -> Verdict:
        """Store an answer, its value as the judge gave it, where answers may be kept.

        Returns the verdict that holds: another one's, where that was there first.
        """
        if not self.plan.lasting:
            return verdict
        answer = {"value": value, "rationale": verdict.rationale}
        if verdict.receipt is not None:
            answer["paid"] = verdict.receipt.to_dict()
        if cache.put(self.key, answer) is answer:
            return verdict
        first = self.stored(cache)
        if first is None:
            return verdict
        return replace(verdict, value=first.value, rationale=first.rationale)


def answer_of(verdict: Verdict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answer and price of a verdict as a file of answers holds them."""
    answer: dict[str, Any] = {"rationale": verdict.rationale} if verdict.rationale else {}
    answer |= {"value": verdict.value} if verdict.error is None else {"error": verdict.error}
    paid: dict[str, Any] = {
        "calls": verdict.calls,
        "input_tokens": verdict.input_tokens,
        "output_tokens": verdict.output_tokens,
        "cost": verdict.cost,
    }
    if verdict.receipt is not None:
        paid["charged"] = verdict.receipt.to_dict()
    return answer, paid


def _content(trace_id: str) -> str:
    """Digest of what a trace holds but for ids and times, which differ from store to store."""
    trace = mlflow.get_trace(trace_id)
    spans = list(trace.data.spans) if trace is not None else []
    spans.sort(key=lambda span: span.start_time_ns or 0)
    number = {span.span_id: index for index, span in enumerate(spans)}
    told = [
        {
            "name": span.name,
            "parent": number.get(span.parent_id),
            "status": str(span.status.status_code),
            "attributes": {k: v for k, v in span.attributes.items() if k not in _OF_A_STORE},
            "events": [(event.name, event.attributes) for event in span.events],
        }
        for span in spans
    ]
    return question_key(told)


_OF_A_STORE: Final = ("mlflow.traceRequestId", "mlflow.experimentId")


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
