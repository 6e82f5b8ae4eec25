"""A judge asked about examples: the requests that it makes, and its answers as verdicts."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import mlflow
from mlflow.entities import Feedback
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.judges.utils import get_default_model

from workbench.compat import endpoint, unknown_seams
from workbench.credentials import public_query, redact, without_credentials
from workbench.errors import BudgetError, ScaleError
from workbench.judging.judge import fingerprint, is_cacheable, judge_credentials
from workbench.judging.verdicts import Verdict
from workbench.models import recording
from workbench.models.cache import question_key
from workbench.models.client import Outcome, Request
from workbench.models.faults import AnswerError
from workbench.models.offline import SCHEME, VERSION
from workbench.models.runner import Runner
from workbench.scale import ABSTAIN, Scale, is_missing, scale_of
from workbench.store.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def judge_examples(
    judge: Judge,
    items: Sequence[Example],
    runner: Runner,
    *,
    sample: int = 0,
    scale: Scale | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
    progress: str | None = None,
) -> list[Verdict]:
    """Call the judge on every item, in parallel, and return the verdicts in their order.

    Parameters
    ----------
    sample
        Number of the sample, from 0: the same item may be judged several times.
    scale
        Values off this scale are failures; the judge's own scale when None.
    on_verdict
        Called in this thread with each verdict as it comes, cached ones first.
    progress
        Text before the progress bar; None for no bar.

    Raises as `Runner.run` does.
    """
    return judge_many(
        [(judge, item, sample) for item in items],
        runner,
        scale=scale,
        on_verdict=on_verdict,
        progress=progress,
    )


def judge_many(
    questions: Sequence[tuple[Judge, Example, int]],
    runner: Runner,
    *,
    scale: Scale | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
    progress: str | None = None,
) -> list[Verdict]:
    """As `judge_examples`, for (judge, item, sample number) triples of several judges at once."""
    askers: dict[int, Asker] = {}
    asked: list[tuple[Asker, Example]] = []
    requests = []
    for judge, item, sample in questions:
        if id(judge) not in askers:
            askers[id(judge)] = Asker.of(judge, scale)
            if runner.budget.measures:
                check_measurable(judge)
        asker = askers[id(judge)]
        asked.append((asker, item))
        requests.append(asker.request(item, sample))
    verdicts: dict[int, Verdict] = {}

    def settle(index: int, outcome: Outcome) -> None:
        asker, item = asked[index]
        verdicts[index] = asker.verdict(item, outcome)
        if on_verdict is not None:
            on_verdict(verdicts[index])

    runner.run(requests, on_outcome=settle, progress=progress)
    return [verdicts[index] for index in range(len(questions))]


@dataclass(frozen=True)
class Asker:
    """One judge, made ready to be asked many times.

    ``mark`` is its fingerprint, ``source`` what else decides its answers (`answers_from`) and
    ``lasting`` whether they may be kept for another run. ``fields`` are what it is given.
    """

    judge: Judge
    mark: str
    source: dict[str, Any]
    scale: Scale | None
    fields: tuple[str, ...]
    lasting: bool
    credentials: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, judge: Judge, scale: Scale | None = None) -> Asker:
        """Prepare a judge; answers off the scale, its own when None, are unusable."""
        base_url, _, _ = endpoint(judge)
        model = getattr(judge, "model", None)
        if isinstance(judge, InstructionsJudge):
            fields = tuple(sorted(judge.template_variables))
        else:
            fields = _accepted_fields(judge)
        return cls(
            judge,
            fingerprint(judge),
            answers_from(model, base_url),
            scale or scale_of(judge),
            fields,
            is_cacheable(judge),
            judge_credentials(judge),
        )

    @cached_property
    def portable_mark(self) -> str:
        """Fingerprint of the judge wherever its model is reached."""
        return fingerprint(self.judge, place=False)

    @property
    def model(self) -> str:
        """URI of the judge's model; "" where it has none."""
        return str(getattr(self.judge, "model", None) or "")

    def request(self, item: Example, sample: int = 0) -> Request:
        """The judge asked about an item; ``sample`` counts repeated questions from 0."""
        base_url, _, _ = endpoint(self.judge)
        fields = tuple(f for f in self.fields if f != "trace")
        digest = item_digest(item, fields) if fields else ""
        # A judge of whole traces may read ids and times: the answer belongs to that trace alone.
        where = item.trace_id if "trace" in self.fields else ""
        key = question_key(self.mark, self.source, digest, where, sample) if self.lasting else None
        return Request(
            key=key,
            model=self.model,
            call=lambda: self._ask(item),
            read=self._read,
            check=lambda answer: self.canonical(answer.get("value")),
            sender=f"Judge {self.judge.name!r}",
            about=f"trace {item.trace_id}",
            place=without_credentials(base_url) if base_url else "",
            portable_key="" if recording.current() is None else self.portable_key(item, sample),
            credentials=self.credentials,
            metered=not why_unmeasurable(self.judge),
        )

    def portable_key(self, item: Example, sample: int = 0) -> str:
        """Key of the answer in a recording: the same on every machine and in every store."""
        fields = tuple(f for f in self.fields if f != "trace")
        digest = item_digest(item, fields) if fields else ""
        number = 0
        if "trace" in self.fields:
            digest = question_key(item_digest(item), _content(item.trace_id))
            used = recording.current()
            number = used.occurrence(digest, item.trace_id) if used is not None else 0
        return question_key("judge", self.portable_mark, digest, number, sample)

    def _ask(self, item: Example) -> Any:
        values = {
            "inputs": item.inputs,
            "outputs": item.outputs,
            "expectations": item.expectations,
        }
        arguments = {f: values[f] for f in self.fields if f in values}
        if "trace" in self.fields:
            arguments["trace"] = mlflow.get_trace(item.trace_id)
        return self.judge(**arguments)

    def _read(self, given: Any) -> dict[str, Any]:
        feedback = _only_feedback(given)
        if feedback.error is not None:
            raise AnswerError(feedback.error.error_message or feedback.error.error_code)
        return {
            "value": feedback.value,
            # A gateway may put into it what it was sent.
            "rationale": redact(feedback.rationale or "", self.credentials),
        }

    def canonical(self, value: Any) -> Any:
        """A value as the scale has it; "N/A" for an abstention.

        Raises
        ------
        AnswerError
            When it is empty or off the scale.
        """
        if is_missing(value):
            raise AnswerError("the judge gave an empty answer")
        if self.scale is None:
            return value
        try:
            canonical = self.scale.normalise(value)
        except ScaleError as error:
            raise AnswerError(str(error)) from None
        return "N/A" if canonical is ABSTAIN else canonical

    def verdict(self, item: Example, outcome: Outcome) -> Verdict:
        """What came back as a verdict on the item."""
        paid = outcome.usage
        fresh = not outcome.cached
        answer = outcome.answer
        return Verdict(
            trace_id=item.trace_id,
            value=None if answer is None else self.canonical(answer.get("value")),
            rationale="" if answer is None else str(answer.get("rationale") or ""),
            error=None if outcome.fault is None else outcome.fault.message,
            fingerprint=self.mark,
            input_tokens=paid.read if fresh else None,
            output_tokens=paid.written if fresh else None,
            cost=paid.cost if fresh else None,
            cached=outcome.cached,
            calls=paid.requests if fresh else 0,
            usage=paid,
        )


def check_measurable(judge: Judge) -> None:
    """Raise `BudgetError` where tokens of the judge's requests cannot be counted beforehand."""
    why = why_unmeasurable(judge)
    if why:
        raise BudgetError(
            f"A budget in tokens or money cannot be kept for judge {judge.name!r}: {why}. Nothing "
            "was spent. Set the budget in calls instead."
        )


def why_unmeasurable(judge: Judge) -> str:
    """Why the judge's requests do not all pass the client; "" where they do."""
    model = str(getattr(judge, "model", None) or "")
    if unknown_seams():
        return f"this version of MLflow has no {', '.join(unknown_seams())}"
    if not type(judge).__module__.startswith(("mlflow.", "workbench.")):
        return f"how {type(judge).__name__} calls its model is its own affair"
    if model == "databricks" or model.partition(":/")[0] in ("databricks", "endpoints"):
        return f"requests to {model} are made by Databricks' own client"
    return ""


# -- where answers come from ----------------------------------------------------------------


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


# -- what a judge is given and gives --------------------------------------------------------


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


def _content(trace_id: str) -> str:
    """Digest of what a trace holds but for ids and times, which differ from store to store."""
    trace = mlflow.get_trace(trace_id)
    spans = list(trace.data.spans) if trace is not None else []
    spans.sort(key=lambda span: span.start_time_ns or 0)
    number = {span.span_id: index for index, span in enumerate(spans)}
    described = [
        {
            "name": span.name,
            "parent": number.get(span.parent_id),
            "status": str(span.status.status_code),
            "attributes": {k: v for k, v in span.attributes.items() if k not in _OF_A_STORE},
            "events": [(event.name, event.attributes) for event in span.events],
        }
        for span in spans
    ]
    return question_key(described)


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
