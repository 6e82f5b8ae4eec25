"""A judge asked about examples: the requests that it makes, and its answers as verdicts."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import mlflow
from mlflow.entities import Feedback
from mlflow.genai.judges import Judge
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.judges.utils import get_default_model

from workbench.compat import endpoint, prepared
from workbench.credentials import credentials_of, public_query, without_credentials
from workbench.errors import BudgetError, ScaleError
from workbench.formatting import say, storable
from workbench.judging.judge import fingerprint, is_cacheable
from workbench.judging.verdicts import Verdict
from workbench.models.answers import AnswerError
from workbench.models.budget import FREE, Budget
from workbench.models.cache import question_key
from workbench.models.client import Outcome, Request
from workbench.models.offline import VERSION
from workbench.models.recording import replayed
from workbench.models.runner import Runner
from workbench.scale import ABSTAIN, Scale, scale_of
from workbench.store.tables import plain
from workbench.store.traces import Example, item_digest
from workbench.vocabulary import is_missing


def judge_examples(
    judge: Judge, items: Sequence[Example], runner: Runner, *, sample: int = 0, **options: Any
) -> list[Verdict]:
    """Return the judge's verdicts on the items, asked in parallel; ``options`` of `judge_many`."""
    return judge_many([(judge, item, sample) for item in items], runner, **options)


def judge_many(
    questions: Sequence[tuple[Judge, Example, int]],
    runner: Runner,
    *,
    scale: Scale | None = None,
    on_verdict: Callable[[Verdict], object] = lambda verdict: None,
    progress: str | None = None,
) -> list[Verdict]:
    """Answer (judge, item, sample number) triples; raise as `Runner.run` does.

    Values off ``scale``, the judge's own when None, are failures. ``on_verdict`` is called in this
    thread with each verdict as it comes, cached ones first.
    """
    judges = {id(judge): judge for judge, _, _ in questions}
    for judge in judges.values():
        check_budget(judge, runner.budget)
    askers = {key: Asker(judge, scale) for key, judge in judges.items()}
    verdicts: dict[int, Verdict] = {}

    def settle(index: int, outcome: Outcome) -> None:
        judge, item, sample = questions[index]
        verdicts[index] = replace(askers[id(judge)].verdict(item, outcome), sample=sample)
        on_verdict(verdicts[index])

    requests = [askers[id(judge)].request(item, sample) for judge, item, sample in questions]
    runner.run(requests, on_outcome=settle, progress=progress)
    return [verdicts[index] for index in range(len(questions))]


class Asker:
    """One judge, made ready to be asked many times; the scale is its own when None."""

    def __init__(self, judge: Judge, scale: Scale | None = None) -> None:
        base_url, headers, params = endpoint(judge)
        model = getattr(judge, "model", None)
        made = isinstance(judge, InstructionsJudge)
        self.scale, self.call = scale or scale_of(judge), prepared(judge)
        self.fingerprint = fingerprint(judge)
        self.portable_fingerprint = fingerprint(judge, place=False)
        self.fields = tuple(sorted(judge.template_variables)) if made else _accepted_fields(judge)
        # What else decides its answers; None where they are not kept.
        origin = question_key(answers_from(model, base_url)) if is_cacheable(judge) else None
        self._question = functools.partial(
            Request,
            model=str(model or ""),
            read=self._read,
            check=lambda answer: self.canonical(answer.get("value")),
            sender=f"Judge {judge.name!r}",
            place=without_credentials(base_url or ""),
            origin=origin,
            credentials=credentials_of(base_url, headers, params),
            metered=not why_unmeasurable(judge),
        )

    def request(self, item: Example, sample: int = 0) -> Request:
        """The judge asked about an item; ``sample`` counts repeated questions from 0."""
        digest = item_digest(item, [name for name in self.fields if name != "trace"])
        if "trace" in self.fields:
            digest += item.trace_id
        key = question_key("judge", self.portable_fingerprint, digest, sample)
        return self._question(key, call=lambda: self._ask(item), about=f"trace {item.trace_id}")

    def _ask(self, item: Example) -> Any:
        arguments = {name: getattr(item, name) for name in self.fields if name != "trace"}
        if "trace" in self.fields:
            arguments["trace"] = mlflow.get_trace(item.trace_id)
        return self.call(**arguments)

    def _read(self, given: Any) -> dict[str, Any]:
        # Some of MLflow's judges give a list.
        feedback = given[0] if isinstance(given, list) and len(given) == 1 else given
        if not isinstance(feedback, Feedback):
            raise AnswerError(f"the judge gave {given!r:.200}, where one Feedback is needed")
        if feedback.error is not None:
            raise AnswerError(feedback.error.error_message or feedback.error.error_code)
        try:
            value = plain(feedback.value)  # numpy's numbers, say, are not stored by MLflow
        except ValueError as error:
            raise AnswerError(f"the judge gave {error}") from None
        value = storable(value) if isinstance(value, str) else value
        return {"value": value, "rationale": storable(feedback.rationale or "")}

    def canonical(self, value: Any) -> Any:
        """A value as the scale has it; "N/A" for an abstention; `AnswerError` if it has none."""
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
        answer = outcome.answer or {}
        return Verdict(
            trace_id=item.trace_id,
            value=None if outcome.answer is None else self.canonical(answer.get("value")),
            rationale=str(answer.get("rationale") or ""),
            error=None if outcome.fault is None else outcome.fault.message,
            unusable=outcome.fault is not None and outcome.fault.kind in ("answer", "request"),
            fingerprint=self.fingerprint,
            cached=outcome.cached,
            calls=outcome.paid.requests,
            usage=outcome.usage,
        )


def check_budget(judge: Judge, budget: Budget) -> None:
    """Raise `BudgetError` where its limit of tokens or money cannot be kept for the judge."""
    budget.check(str(getattr(judge, "model", None) or ""))
    if budget.measures and (why := why_unmeasurable(judge)):
        raise BudgetError(
            f"A budget in tokens or money cannot be kept for judge {judge.name!r}: {why}. Nothing "
            "was spent. Set the budget in calls instead."
        )


def why_unmeasurable(judge: Judge) -> str:
    """Why the judge's requests do not all pass the client; "" where they do."""
    model = str(getattr(judge, "model", None) or "")
    if not type(judge).__module__.startswith(("mlflow.", "workbench.")):
        return f"the requests of a {type(judge).__name__} to its model cannot be seen"
    if model.partition(":/")[0] in ("databricks", "endpoints"):
        return f"requests to {model} are made by Databricks' own client"
    return ""


# -- where answers come from ----------------------------------------------------------------

# How the variables that name a provider's place end, and begin where that is not its name.
_PLACES: Final = (
    r"(?:\w+_)?(?:API_BASE|BASE_URL|API_VERSION|ENDPOINT\w*|HOST|LOCATION|REGION\w*|TARGET)"
)
_PREFIXES: Final = {
    "amazon-bedrock": "AWS|BEDROCK",
    "bedrock": "AWS|BEDROCK",
    "databricks": "DATABRICKS|MLFLOW_DEPLOYMENTS",
    "endpoints": "DATABRICKS|MLFLOW_DEPLOYMENTS",
    "huggingface": "HF|HUGGINGFACE",
    "sap-ai-core": "MLFLOW_GENAI_JUDGE|SAP_AI_CORE",
    "togetherai": "TOGETHERAI|TOGETHER_AI",
    "vertex_ai": "VERTEX|VERTEXAI",
}


def reached_by(
    base_url: str | None, headers: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Options by which dspy reaches a judge's model, without what its verdicts are sampled with."""
    options: dict[str, Any] = {}
    if base_url:
        parts = urlsplit(base_url)
        root = parts.path.rstrip("/").removesuffix("/chat/completions")
        options["api_base"] = urlunsplit(parts._replace(path=root, query="", fragment=""))
        if parts.query:
            options["extra_query"] = dict(parse_qsl(parts.query))
    if headers:
        options["extra_headers"] = dict(headers)
    return options | {k: params[k] for k in ("api_key", "timeout") if k in params}


def answers_from(model: str | None, base_url: str | None = None) -> dict[str, Any]:
    """Where a model's answers come from, for which alone they are kept; without credentials."""
    model = model or get_default_model()
    provider = model.partition(":")[0]
    if model.startswith(FREE):
        return {"model": model, "version": VERSION}
    if base_url:
        return {"model": model, "server": _address(base_url)}
    if provider == "gateway":
        server = os.environ.get("MLFLOW_GATEWAY_URI") or mlflow.get_tracking_uri()
        return {"model": model, "server": _address(server)}
    # Clients differ in which of several variables they heed, so that each counts.
    prefixes = _PREFIXES.get(provider, provider.upper().replace("-", "_"))
    place = re.compile(rf"(?:{prefixes})_{_PLACES}")
    named = {n: _address(v) for n, v in os.environ.items() if v and place.fullmatch(n)}
    return {"model": model, "server": named}


def reached_at(model: str | None, base_url: str | None = None) -> str:
    """Say where a model is reached, without credentials; "" for one in this process."""
    server = answers_from(model, base_url).get("server", "")
    if isinstance(server, str):
        return server.partition("?")[0]
    named = {place.partition("?")[0] for place in server.values() if "://" in place}
    return " or ".join(sorted(named)) or "its provider's public address"


def say_where(judge: Judge, *others: tuple[str | None, str | None], wanted: bool = True) -> None:
    """Print where judge and reflection model are reached, where anything leaves this process."""
    model = getattr(judge, "model", None)
    reached = [(f"Judge {judge.name!r}", model, endpoint(judge)[0] if model else None)]
    differing = [one for one in others if one[1] or one[0] not in (None, model)]
    reached += [("Reflection model", name or model, base_url) for name, base_url in differing]
    for who, name, base_url in reached:
        place = reached_at(name, base_url) if name else ""
        if wanted and place and replayed() is None:
            say(f"{who}: {name} at {place}")


def _address(named: str) -> str:
    try:
        return f"{without_credentials(named)}?{public_query(named)}"
    except ValueError:  # no URL, and nothing will be reached by it
        return ""


# -- what a judge is given ------------------------------------------------------------------


def _accepted_fields(judge: Judge) -> tuple[str, ...]:
    """What other judges are given: a whole trace, of which few are equal, only if needed."""
    accepted = inspect.signature(type(judge).__call__).parameters
    fields = [f for f in ("inputs", "outputs", "expectations") if f in accepted]
    required = "trace" in accepted and accepted["trace"].default is inspect.Parameter.empty
    if required or not {"inputs", "outputs"} & set(fields):
        fields.append("trace")
    return tuple(fields)
