"""Counts, caches and budgets the requests of other people's optimizers, as a litellm provider.

An optimizer gets models by names such as ``metered:/RUN/judge/openai/gpt-x``. litellm gives
requests to such names to the provider registered here, which sends them to the real model where the
judge reaches it. Code that runs beside the optimizer uses other names and is never touched.
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
from typing import Any, Final

from mlflow.genai.judges import Judge

from workbench.compat import embedder_of, endpoint
from workbench.errors import BudgetError, CancelledError, ScaleError
from workbench.judging.judge import judge_credentials
from workbench.judging.requests import answers_from
from workbench.models import client
from workbench.models.answers import AnswerError, readable
from workbench.models.budget import UNPAID, Budget
from workbench.models.cache import AnswerCache, question_key
from workbench.models.client import ANSWER_SECONDS, Outcome, Request
from workbench.models.faults import Fault, StoppedError
from workbench.models.runner import Runner
from workbench.scale import Scale
from workbench.simba.reflector import reached_by

SCHEME: Final = "metered"

UNMETERED: Final = ("databricks", "endpoints", "gateway")
"""Providers that MLflow resolves by itself, so that litellm cannot reach them by name."""

FAILURES_TO_STOP: Final = 10
"""So many lost answers end a run where they are also more than twice the share allowed."""


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


@contextmanager
def metered_embeddings(judge: Judge, budget: Budget | None) -> Iterator[Counter[str]]:
    """Count the embeddings that a judge with a memory (MemAlign's) asks for in this context."""
    embedder = embedder_of(judge)
    if embedder is None:
        yield Counter()
        return
    own, dimensions = embedder.model, embedder.default_kwargs.get("dimensions")
    with metering(judge, budget, dimensions=dimensions) as meter:
        metered = meter.model("embedding", own.replace("/", ":/", 1))
        embedder.model = metered.replace(":/", "/", 1)
        try:
            yield meter.requests
        finally:
            embedder.model = own


class Meter:
    """The requests of one optimizer to models of three kinds: judge, reflection, embedding.

    Once the budget is spent, or far too many answers are lost, every request fails at once.
    Answers of the judge off ``scale`` are lost. ``dimensions`` is the length of embeddings.

    By kind it counts the ``requests`` sent, retries included, and answers that came or failed.
    """

    def __init__(
        self,
        judge: Judge,
        runner: Runner,
        *,
        scale: Scale | None = None,
        max_failure_share: float = 1.0,
        dimensions: int | None = None,
    ) -> None:
        self.judge, self.runner, self.scale, self.dimensions = judge, runner, scale, dimensions
        self.max_failure_share = max_failure_share
        self.id = uuid.uuid4().hex[:12]
        self.requests: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.faults: dict[str, Fault] = {}
        self.cached, self.usage = 0, UNPAID
        self.ended = threading.Event()
        self._exhausted = ""
        self._schema_refused = False
        self._samples: Counter[str] = Counter()
        self._lock = threading.Lock()

    def lost(self, kind: str) -> int:
        """Return how many answers were lost; a form that the model refuses, where it takes none."""
        return self.failed[kind] or int(kind in self.faults and not self.answers[kind])

    def lost_more_than(self, share: float, kind: str) -> bool:
        """Return whether more than this share of the answers were lost."""
        return self.lost(kind) > share * (self.lost(kind) + self.answers[kind])

    def model(self, kind: str, model: str) -> str:
        """Return the name under which requests to a model (``openai:/gpt``) are metered."""
        if model.partition(":/")[0] in (*UNMETERED, SCHEME) or ":/" not in model:
            return model
        return f"{SCHEME}:/{self.id}/{kind}/{model.replace(':/', '/', 1)}"

    def real(self, model: str) -> str:
        """Return the model that a metered name stands for, in MLflow's or litellm's form."""
        found = re.fullmatch(rf"{SCHEME}(:?)/{self.id}/\w+/([^/]+)/(.*)", model)
        return f"{found[2]}{found[1]}/{found[3]}" if found else model

    # -- requests ---------------------------------------------------------------------------

    def complete(self, kind: str, model: str, messages: Sequence[Any], params: Any) -> Any:
        """Return litellm's answer to a chat, or raise an error that nobody retries."""
        import litellm

        # Optimizers may reflect with the judge's model. MLflow asks for verdicts by a schema, until
        # the model has refused one.
        schema = json.dumps(params.get("response_format"), default=str)
        verdict = self._schema_refused or ('"result"' in schema and '"rationale"' in schema)
        kind = "judge" if kind == "judge" and verdict else "reflection"
        own = model == str(self.judge.model).replace(":/", "/", 1)
        base_url, headers, judge_params = endpoint(self.judge) if own else (None, {}, {})
        question = {**params, **judge_params} if kind == "judge" else params
        question = {k: v for k, v in question.items() if k not in _TRANSPORT}
        question["messages"] = [m if isinstance(m, dict) else m.model_dump() for m in messages]
        way: dict[str, Any] = {"timeout": ANSWER_SECONDS, "drop_params": kind == "judge"}
        way |= reached_by(base_url, headers, judge_params)

        def send() -> Any:
            return litellm.completion(model=model, max_retries=0, num_retries=0, **question, **way)

        return litellm.ModelResponse(**self._answer(kind, model, question, send))

    def embed(self, model: str, texts: Sequence[str]) -> Any:
        """Return litellm's embeddings, or raise as `complete` does."""
        import litellm

        # An embedding is read and nothing is written.
        question: dict[str, Any] = {"input": list(texts), "max_tokens": 0}
        params = {"dimensions": self.dimensions} if self.dimensions else {}

        def send() -> Any:
            return litellm.embedding(
                model=model, input=list(texts), max_retries=0, drop_params=True, **params
            )

        answer = self._answer("embedding", model, question | params, send)
        return litellm.EmbeddingResponse(**answer)

    def _answer(
        self, kind: str, model: str, question: Mapping[str, Any], send: Callable[[], Any]
    ) -> dict[str, Any]:
        import litellm

        uri = model.replace("/", ":/", 1)
        key = question_key(kind, answers_from(uri, endpoint(self.judge)[0]), model, question)
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
            credentials=judge_credentials(self.judge),
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
            if outcome.cached:
                return
            self.requests[kind] += outcome.usage.requests
            self.usage += outcome.usage
            if fault is None:
                self.answers[kind] += 1
            elif fault.kind == "budget":
                self._exhausted = fault.message
                self.ended.set()
            elif fault.kind == "request" and with_schema:  # it will be asked without
                self.faults[kind] = fault
                self._schema_refused |= kind == "judge"
            else:
                self.faults[kind] = fault
                self.failed[kind] += 1
                in_vain = fault.permanent and not self.answers[kind]
                many = self.failed[kind] >= FAILURES_TO_STOP
                if in_vain or (many and self.lost_more_than(2 * self.max_failure_share, kind)):
                    self.ended.set()

    def raise_for_losses(self, who: str) -> None:
        """Raise where the run was cancelled, its budget spent, or too many answers were lost."""
        if self.runner.stop.is_set():
            raise CancelledError(
                "It was cancelled: the judge stays as it was, and the same call resumes it."
            ) from None
        if self._exhausted:
            sent = ", ".join(f"{n} {kind}" for kind, n in self.requests.items() if n)
            raise BudgetError(
                f"{who} was stopped, since it needs more than the budget allows; the judge stays "
                f"as it was. {self._exhausted} Requests made now: {sent or 'none'}. The same call "
                "with more budget resumes it."
            ) from None
        for kind, fault in self.faults.items():
            if self.lost_more_than(self.max_failure_share, kind):
                lost = self.lost(kind)
                raise fault.error(
                    f"{who} was stopped: {lost} of {lost + self.answers[kind]} {kind} calls gave "
                    f"no usable answer; max_failure_share={self.max_failure_share:.0%} are "
                    f"allowed. What came back: {fault.message.rstrip('.')}. Check the model, its "
                    "key, endpoint and quota. The judge stays as it was; paid answers are kept."
                ) from None


_TRANSPORT: Final = ("api_key", "timeout", "max_retries")
"""Parameters that do not belong to the question."""

# -- litellm's provider -----------------------------------------------------------------------

_METERS: dict[str, Meter] = {}
"""Meters by the id of their run."""


@functools.cache
def _register_provider() -> None:
    """Put the handler into litellm's list of providers, beside those of the user."""
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

    mine = {"provider": SCHEME, "custom_handler": MeteredModel()}
    litellm.custom_provider_map = [*litellm.custom_provider_map, mine]
    litellm.utils.custom_llm_setup()
