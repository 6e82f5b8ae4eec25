"""Optimizers that are not the workbench's own: what they propose, and what it cost to find.

Their requests are counted, cached and budgeted as a litellm provider: an optimizer gets models by
names such as ``metered:/RUN/judge/openai/gpt-x``, and the provider registered here sends requests
to such names to the real model. Code that runs beside it uses other names and is never touched.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import mlflow
from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench import compat
from workbench.alignment.runs import AlignmentData
from workbench.compat import Endpoint
from workbench.credentials import credentials_of
from workbench.errors import ArgumentError, BudgetError, CancelledError, ScaleError
from workbench.judging.judge import with_instructions
from workbench.judging.requests import answers_from, reached_by
from workbench.models import client, recording
from workbench.models.answers import AnswerError, readable
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache, question_key
from workbench.models.client import Outcome, Request, answer_seconds
from workbench.models.faults import Fault, StoppedError
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale
from workbench.simba.candidate import Learned
from workbench.store.traces import fetch_traces

SCHEME: Final = "metered"

# Providers that MLflow resolves by itself, so that litellm cannot reach them by name.
UNMETERED: Final = ("databricks", "endpoints", "gateway")
_TOO_LONG: Final = "ContextWindowExceeded"  # litellm's name of the error, which dspy goes by
FAILURES_TO_STOP: Final = 10  # lost answers, if these are also more than twice the share allowed


def endpoint_of(
    judge: Judge, kind: str, model: str, reflection_base_url: str | None = None
) -> Endpoint:
    """Return how an optimizer reaches a model (``openai:/gpt``) of a kind."""
    if kind == "reflection" and reflection_base_url:
        return reflection_base_url, {}, {}
    own = str(judge.model)
    # Labelled items are embedded: beside a local judge they are not to leave its server.
    alike = kind == "embedding" and model.partition(":/")[0] == own.partition(":/")[0]
    return compat.endpoint(judge) if alike or model == own else (None, {}, {})


def propose(
    data: AlignmentData,
    optimizer: AlignmentOptimizer,
    budget: Budget,
    max_failure_share: float,
    stop: threading.Event | None = None,
    reflection_base_url: str | None = None,
) -> Learned:
    """Return what the optimizer proposes; raises as `Meter.raise_for_losses` does."""
    who, judge, split = type(optimizer).__name__, data.judge, data.split
    if (player := recording.replayed()) is not None:
        raise player.missing(f"What {who} asks (of optimizers only SIMBA is recorded)")
    budget.check(str(judge.model))
    given: Any = {"scale": split.train.scale, "max_failure_share": max_failure_share, "stop": stop}
    given |= {"dimensions": compat.embedding_dimensions(optimizer)}
    with metering(judge, budget, reflection_base_url=reflection_base_url, **given) as meter:
        traces = [*_with_consensus(split.train), *_with_consensus(split.dev)]
        try:
            with mlflow.tracing.context(enabled=False):  # as each request of ours
                proposed = _run(judge, optimizer, traces, meter)
        except Exception:  # an interrupt is passed on as it is
            meter.raise_for_losses(who)
            raise
        meter.raise_for_losses(who)
    notes = []
    for kind, lost in meter.lost.items():
        wanted = lost + meter.answers[kind]
        notes.append(f"{who}: {lost} of {wanted} {kind} answers were lost or could not be used.")
    named = (getattr(optimizer, name) for name in compat.models_of_optimizer(optimizer))
    notes += [
        f"{who}: requests to {model} were neither counted nor held to the budget."
        for model in sorted({str(judge.model), *named})
        if model.partition(":/")[0] in UNMETERED
    ]
    return Learned(
        proposed,
        judge_calls=meter.requests["judge"],
        reflection_calls=meter.requests["reflection"],
        embedding_calls=meter.requests["embedding"],
        known=meter.cached,
        usage=meter.runner.used,
        notes=tuple(notes),
    )


def _run(judge: Judge, optimizer: AlignmentOptimizer, traces: list[Trace], meter: Meter) -> Judge:
    """Let judge and optimizer use metered names, and return the proposed judge with real ones."""
    name = meter.model("judge", str(judge.model))
    metered = judge if name == judge.model else compat.reached_elsewhere(judge, name)
    # A copy of the optimizer, since it may serve several alignments at once.
    proposed = metered.align(traces, compat.with_models(optimizer, meter.model))
    if not isinstance(proposed, Judge):
        given = f"{type(optimizer).__name__}.align gave a {type(proposed).__name__}"
        raise ArgumentError(f"optimizer: {given}, where a judge is needed.")
    if type(proposed) is InstructionsJudge:
        return with_instructions(judge, proposed.instructions)
    found = compat.rename_models(proposed, meter.real, like=judge)
    if (embedder := compat.embedder_of(found)) is not None:
        embedder.default_kwargs |= reached_by(*meter.endpoint("embedding", embedder.model))
    return found


def _with_consensus(pairs: Pairs) -> Iterator[Trace]:
    """Yield the traces with one human label: the consensus that the judge is tested on as well."""
    rows = pairs.table.set_index("trace_id")
    for trace in fetch_traces(pairs.trace_ids) if len(pairs) else ():
        row, info = rows.loc[trace.info.trace_id], trace.info
        label = Feedback(
            name=pairs.name,
            value=row["human"],
            rationale=row["human_rationale"] or None,
            source=AssessmentSource(source_type="HUMAN", source_id="consensus"),
            trace_id=info.trace_id,
        )
        others = [a for a in info.assessments if a.name != pairs.name or a.expectation is not None]
        info.assessments = [*others, label]
        yield trace


@contextmanager
def metered_embeddings(judge: Judge, budget: Budget | None) -> Iterator[Runner | None]:
    """Meter the embeddings of a judge with a memory (MemAlign's), which the runner asks for."""
    embedder = compat.embedder_of(judge)
    if embedder is None:
        yield None
        return
    own, dimensions = embedder.model, embedder.default_kwargs.get("dimensions")
    with metering(judge, budget, dimensions=dimensions) as meter:
        embedder.model = meter.model("embedding", own.replace("/", ":/", 1)).replace(":/", "/", 1)
        try:
            yield meter.runner
        finally:
            embedder.model = own


# -- the meter -------------------------------------------------------------------------------


@contextmanager
def metering(
    judge: Judge, budget: Budget | None, *, stop: threading.Event | None = None, **options: Any
) -> Iterator[Meter]:
    """Answer requests under the names of a new `Meter` within this context."""
    _register_provider()
    with AnswerCache() as cache, Runner(cache=cache, budget=budget, stop=stop) as runner:
        meter = Meter(judge, runner, **options)
        _METERS[meter.id] = meter
        try:
            yield meter
        finally:
            meter.ended.set()  # for threads that the optimizer may have left behind
            del _METERS[meter.id]


@dataclass(eq=False)
class Meter:
    """The requests of one optimizer to models of three kinds: judge, reflection, embedding."""

    judge: Judge
    runner: Runner
    scale: Scale | None = None
    max_failure_share: float = 1.0
    dimensions: int | None = None
    reflection_base_url: str | None = None

    def __post_init__(self) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.requests: Counter[str] = Counter()  # by kind, retries included
        self.answers: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.faults: dict[str, Fault] = {}  # the last of each kind
        self.cached = 0
        self.ended = threading.Event()  # then every request fails at once
        self._exhausted, self._schema_refused = "", False
        self._samples: Counter[str] = Counter()
        self._lock = threading.Lock()

    def lost_more_than(self, share: float, kind: str) -> bool:
        """Return whether more than this share of the answers were lost."""
        return self.lost[kind] > share * (self.lost[kind] + self.answers[kind])

    def model(self, kind: str, model: str) -> str:
        """Return the name under which requests to a model (``openai:/gpt``) are metered."""
        if model.partition(":/")[0] in (*UNMETERED, SCHEME) or ":/" not in model:
            return model
        return f"{SCHEME}:/{self.id}/{kind}/{model.replace(':/', '/', 1)}"

    def real(self, model: str) -> str:
        """Return the model that a metered name stands for, in MLflow's or litellm's form."""
        found = re.fullmatch(rf"{SCHEME}(:?)/{self.id}/\w+/([^/]+)/(.*)", model)
        return f"{found[2]}{found[1]}/{found[3]}" if found else model

    def endpoint(self, kind: str, model: str) -> Endpoint:
        """Return how a model (``openai/gpt``) is reached."""
        return endpoint_of(self.judge, kind, model.replace("/", ":/", 1), self.reflection_base_url)

    def complete(self, kind: str, model: str, messages: Sequence[Any], params: Any) -> Any:
        """Return litellm's answer to a chat, or raise an error that nobody retries."""
        import litellm

        # Optimizers may reflect with the judge's model. MLflow asks for verdicts by a schema.
        schema = json.dumps(params.get("response_format"), default=str)
        verdict = self._schema_refused or ('"result"' in schema and '"rationale"' in schema)
        kind = "judge" if kind == "judge" and verdict else "reflection"
        reached = self.endpoint(kind, model)
        question = {**params, **reached[2]} if kind == "judge" else params
        of_transport = ("api_key", "timeout", "max_retries")
        question = {k: v for k, v in question.items() if k not in of_transport}
        question["messages"] = [m if isinstance(m, dict) else m.model_dump() for m in messages]
        way: dict[str, Any] = {"timeout": answer_seconds(), "max_retries": 0, "num_retries": 0}
        way |= {"drop_params": kind == "judge", **reached_by(*reached)}
        send = functools.partial(litellm.completion, model=model, **question, **way)
        return litellm.ModelResponse(**self._answer(kind, model, question, send))

    def embed(self, model: str, texts: Sequence[str]) -> Any:
        """Return litellm's embeddings, or raise as `complete` does."""
        import litellm

        asked: dict[str, Any] = {"dimensions": self.dimensions} if self.dimensions else {}
        asked["input"] = list(texts)
        way: dict[str, Any] = {"max_retries": 0, "drop_params": True}
        way |= reached_by(*self.endpoint("embedding", model))
        send = functools.partial(litellm.embedding, model=model, **asked, **way)
        question = asked | {"max_tokens": 0}  # an embedding is read and nothing is written
        return litellm.EmbeddingResponse(**self._answer("embedding", model, question, send))

    def _answer(
        self, kind: str, model: str, question: Mapping[str, Any], send: Callable[[], Any]
    ) -> dict[str, Any]:
        import litellm

        uri, reached = model.replace("/", ":/", 1), self.endpoint(kind, model)
        key = question_key(kind, answers_from(uri, reached[0]), model, question)
        with self._lock:
            # The same request again wants another sample; a later run gets the same ones.
            self._samples[key] += 1
            key = question_key("response", key, self._samples[key])
        request = Request(
            key=key,
            model=uri,
            call=lambda: client.ask(question, send),
            read=functools.partial(self._read, kind),
            sender=f"The {kind} model of an optimizer",
            credentials=credentials_of(*reached),
        )
        fault = Fault("refused", "no further request is sent")
        with suppress(StoppedError, CancelledError):
            outcome = self.runner.ask(request, self.ended)
            self._note(kind, outcome, with_schema="response_format" in question)
            if outcome.fault is None:
                return outcome.answer or {}
            fault = outcome.fault
        # Neither is retried by anyone; a bad request may be made in another form.
        error = litellm.BadRequestError if fault.kind == "request" else litellm.NotFoundError
        raise error(fault.message, model=SCHEME, llm_provider=SCHEME)

    def _read(self, kind: str, response: Any) -> dict[str, Any]:
        """Return an answer as plain data; raise `AnswerError` for one that is no use."""
        body: dict[str, Any] = response.model_dump(mode="json")
        message = body["choices"][0]["message"] if kind != "embedding" else {}
        if message.get("tool_calls"):
            return body
        if kind == "reflection" and not message.get("content"):
            raise AnswerError("the model gave an empty answer")
        if kind == "judge":
            body = readable(body)
            result = json.loads(body["choices"][0]["message"]["content"])["result"]
            try:
                if self.scale is not None:
                    self.scale.normalise(result)
            except ScaleError as error:
                raise AnswerError(str(error)) from None
        return body

    def _note(self, kind: str, outcome: Outcome, *, with_schema: bool) -> None:
        fault = outcome.fault
        with self._lock:
            self.cached += outcome.cached
            self.requests[kind] += outcome.paid.requests
            if fault is None:
                # Of an earlier run too: what it lost is no larger share when it is asked again.
                self.answers[kind] += 1
            elif fault.kind == "budget":
                self._exhausted = fault.message
                self.ended.set()
            elif fault.kind == "request" and with_schema and _TOO_LONG not in fault.message:
                self._schema_refused |= kind == "judge"  # it will be asked without
            else:
                self.faults[kind] = fault
                self.lost[kind] += 1
                in_vain = fault.permanent and not self.answers[kind]
                many = self.lost[kind] >= FAILURES_TO_STOP
                if in_vain or (many and self.lost_more_than(2 * self.max_failure_share, kind)):
                    self.ended.set()

    def raise_for_losses(self, who: str) -> None:
        """Raise where the run was cancelled, its budget spent, or too many answers were lost."""
        if self.runner.stop.is_set():
            raise CancelledError(
                "It was cancelled: the judge stays as it was, and the same call resumes it."
            ) from None
        if self._exhausted:
            raise BudgetError(
                f"{who} was stopped, since it needs more than the budget allows; the judge stays "
                f"as it was. {self._exhausted} The same call with more budget resumes it."
            ) from None
        for kind, fault in self.faults.items():
            if self.lost_more_than(self.max_failure_share, kind):
                lost = self.lost[kind]
                raise fault.error(
                    f"{who} was stopped: {lost} of {lost + self.answers[kind]} {kind} calls gave "
                    f"no usable answer; max_failure_share={self.max_failure_share:.0%} are "
                    f"allowed. What came back: {fault.message.rstrip('.')}. Check the model, its "
                    "key, endpoint and quota. The judge stays as it was; paid answers are kept."
                ) from None


_METERS: dict[str, Meter] = {}  # by id


@functools.cache
def _register_provider() -> None:
    """Let litellm give requests to metered names to their meters."""
    import litellm

    class MeteredModel(litellm.CustomLLM):  # type: ignore[misc]  # litellm publishes no types
        def completion(self, model: str, messages: list[Any], **given: Any) -> Any:
            run, kind, real = model.removeprefix(f"{SCHEME}/").split("/", 2)
            return _METERS[run].complete(kind, real, messages, given.get("optional_params") or {})

        async def acompletion(self, model: str, messages: list[Any], **given: Any) -> Any:
            return await asyncio.to_thread(self.completion, model, messages, **given)

        def embedding(self, model: str, input: list[str], **_: Any) -> Any:
            run, _kind, real = model.removeprefix(f"{SCHEME}/").split("/", 2)
            return _METERS[run].embed(real, input)

    compat.add_provider(SCHEME, MeteredModel())
