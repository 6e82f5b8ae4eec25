"""Counts the requests of other optimizers to models, as a provider of litellm.

The optimizer gets a copy of the judge whose model is called ``metered:/RUN/judge/openai/gpt-x``.
Judges that it builds from this copy keep the model, so their requests come here. They are looked
up in the cache, reserved in the budget, and sent to the real model where the judge reaches it.
Code that runs beside the optimizer uses other names and is never touched.
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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from workbench.compat import endpoint
from workbench.errors import (
    BudgetError,
    CancelledError,
    CredentialError,
    ModelError,
    ScaleError,
    UnreachableModelError,
)
from workbench.judging.judge import judge_credentials
from workbench.judging.requests import answers_from
from workbench.models import client
from workbench.models.budget import Budget, total
from workbench.models.cache import AnswerCache, question_key
from workbench.models.client import Outcome, Request, StoppedError
from workbench.models.faults import AnswerError, Fault, causes
from workbench.models.runner import Runner
from workbench.scale import Scale, is_missing
from workbench.simba.reflector import reached_by

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

SCHEME: Final = "metered"

UNMETERED: Final = ("databricks", "endpoints", "gateway")
"""Providers that MLflow resolves by itself, so that litellm cannot reach them by name."""

PERMANENT_FAILURES_TO_STOP = 3
"""Since the last answer; one is enough where nothing was answered yet."""

FAILURES_TO_STOP = 10
"""In all, where they are more than twice the share that is allowed."""

ANSWER_SECONDS = 300.0


@dataclass
class Count:
    """Requests sent, retries included, and what came of them.

    ``cached`` answers were free, ``lost`` ones never came or were unusable, ``refused`` ones were
    wanted in a form that the model does not take. ``permanent`` failures came since the last
    answer.
    """

    requests: int = 0
    answers: int = 0
    cached: int = 0
    lost: int = 0
    refused: int = 0
    permanent: int = 0

    @property
    def share_lost(self) -> float:
        """Share of the wanted answers that were lost, in [0, 1]."""
        # After a refusal another form is tried; it is a loss where none was ever taken.
        lost = self.lost + (0 if self.answers else self.refused)
        return lost / (lost + self.answers) if lost else 0.0


class Meter:
    """The requests of one optimizer to models of three kinds: judge, reflection, embedding.

    Answers of the judge off ``scale`` count as lost. Once ``stop`` is set, the budget is spent,
    or far more than ``max_failure_share`` of the answers are lost, every request fails at once.
    ``dimensions`` is the length of embeddings; None for the model's own.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        cache: AnswerCache,
        budget: Budget | None,
        scale: Scale | None = None,
        stop: threading.Event | None = None,
        max_failure_share: float = 1.0,
        dimensions: int | None = None,
    ) -> None:
        self.judge, self.scale, self.dimensions = judge, scale, dimensions
        self.max_failure_share = max_failure_share
        self.id = uuid.uuid4().hex[:12]
        self.counts = {kind: Count() for kind in ("judge", "reflection", "embedding")}
        self.tokens: int | None = None
        self.cost: float | None = None
        self._runner = Runner(cache=cache, budget=budget, stop=stop)
        self._ended = threading.Event()
        self._exhausted = ""
        self._last: dict[str, Fault] = {}
        self._samples: Counter[str] = Counter()
        self._without_schema = False
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[Meter]:
        """Answer requests under this meter's names within this context."""
        _register_provider()
        _METERS[self.id] = self
        try:
            yield self
        finally:
            self._ended.set()  # for threads that the optimizer may have left behind
            self._runner.close()
            del _METERS[self.id]

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

    def complete(
        self, kind: str, model: str, messages: Sequence[Any], params: dict[str, Any]
    ) -> Outcome:
        """Answer a chat of litellm's; an error is one that nobody retries."""
        import litellm

        if kind == "judge" and not self._is_judgement(params):
            kind = "reflection"
        own = model == str(self.judge.model).replace(":/", "/", 1)
        base_url, headers, judge_params = endpoint(self.judge) if own else (None, {}, {})
        question = {**params, **judge_params} if kind == "judge" else params
        question = {k: v for k, v in question.items() if k not in _TRANSPORT}
        question["messages"] = [m if isinstance(m, dict) else m.model_dump() for m in messages]
        way = {"timeout": ANSWER_SECONDS, **reached_by(base_url, headers, judge_params)}

        def send() -> Any:
            drop = {"drop_params": True} if kind == "judge" else {}
            return litellm.completion(
                model=model, max_retries=0, num_retries=0, **question, **way, **drop
            )

        check = self._check_rating if kind == "judge" else _check_text
        return self._ask(kind, model, question, send, _message_of, check)

    def embed(self, model: str, texts: Sequence[str]) -> Outcome:
        """Answer with embeddings, or raise as `complete` does."""
        import litellm

        params = {"dimensions": self.dimensions} if self.dimensions else {}

        def send() -> Any:
            return litellm.embedding(
                model=model, input=list(texts), max_retries=0, drop_params=True, **params
            )

        # An embedding is read and nothing is written.
        question = {"input": list(texts), "max_tokens": 0, **params}
        return self._ask("embedding", model, question, send, _vectors_of, lambda _: None)

    def _ask(
        self,
        kind: str,
        model: str,
        question: Mapping[str, Any],
        send: Callable[[], Any],
        read: Callable[[Any], dict[str, Any]],
        check: Callable[[dict[str, Any]], object],
    ) -> Outcome:
        import litellm

        uri = model.replace("/", ":/", 1)
        key = question_key(kind, answers_from(uri, endpoint(self.judge)[0]), model, question)
        with self._lock:
            # The same request again wants another sample; a later run gets the same ones.
            self._samples[key] += 1
            key = question_key(SCHEME, key, self._samples[key])
        request = Request(
            key=key,
            model=uri,
            call=lambda: client.ask(question, send),
            read=read,
            check=check,
            sender=f"The {kind} model of an optimizer",
            credentials=judge_credentials(self.judge),
        )
        message, error = "no further request is sent", litellm.NotFoundError
        if not self._ended.is_set():
            try:
                outcome = self._runner.ask(request, self._ended)
            except (StoppedError, CancelledError):
                pass
            else:
                self._note(kind, outcome)
                if outcome.fault is None:
                    return outcome
                message = outcome.fault.message
                if outcome.fault.kind == "request":  # another form may be taken
                    error = litellm.BadRequestError
        raise error(f"{message} {self._marker}", model=SCHEME, llm_provider=SCHEME)

    @property
    def _marker(self) -> str:
        return f"(metered run {self.id})"

    def _is_judgement(self, params: Mapping[str, Any]) -> bool:
        """Return whether a verdict is wanted of the judge's model: optimizers may reflect with it.

        MLflow asks for verdicts by a schema, until the model has refused one.
        """
        schema = json.dumps(params.get("response_format"), default=str)
        return self._without_schema or ('"result"' in schema and '"rationale"' in schema)

    def _check_rating(self, answer: dict[str, Any]) -> None:
        message = answer["message"]
        if message.get("tool_calls"):
            return
        text = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", message.get("content") or "")
        try:
            value = json.loads(text, strict=False)["result"]
        except (ValueError, KeyError, TypeError):
            raise AnswerError(f"the judge did not give a verdict but {text[:200]!r}") from None
        if is_missing(value):
            raise AnswerError("the judge gave an empty answer")
        try:
            if self.scale is not None:
                self.scale.normalise(value)
        except ScaleError as error:
            raise AnswerError(str(error)) from None

    def _note(self, kind: str, outcome: Outcome) -> None:
        count, fault = self.counts[kind], outcome.fault
        with self._lock:
            if outcome.cached:
                count.cached += 1
                return
            count.requests += outcome.usage.requests
            self.tokens = total(self.tokens, outcome.usage.read, outcome.usage.written)
            self.cost = total(self.cost, outcome.usage.cost)
            if fault is None:
                count.answers += 1
                count.permanent = 0
                return
            if fault.kind == "budget":
                self._exhausted = self._exhausted or fault.message
                self._ended.set()
                return
            self._last[kind] = fault
            count.permanent += fault.permanent
            if fault.kind == "request" and (kind != "judge" or not self._without_schema):
                self._without_schema |= kind == "judge"
                count.refused += 1
                return
            count.lost += 1
            allowed = 2 * self.max_failure_share * (count.lost + count.answers)
            if count.permanent >= (PERMANENT_FAILURES_TO_STOP if count.answers else 1) or (
                count.lost >= FAILURES_TO_STOP and count.lost > allowed
            ):
                self._ended.set()

    # -- what came of them ------------------------------------------------------------------

    def raise_for_failures(self, who: str, error: Exception | None) -> None:
        """Raise where the budget was spent or too many answers were lost.

        ``error`` is what the optimizer raised; it is replaced where a lost answer has caused it.
        """
        if self._exhausted:
            sent = ", ".join(f"{c.requests} {k}" for k, c in self.counts.items() if c.requests)
            raise BudgetError(
                f"{who} was stopped, since it needs more than the budget allows; it cannot say "
                f"what is best until then, so the judge stays as it was. {self._exhausted} "
                f"Requests made now: {sent or 'none'}. The same call with more budget resumes it."
            ) from None
        caused = error is not None and any(self._marker in str(link) for link in causes(error))
        for kind, count in self.counts.items():
            lost = count.share_lost > self.max_failure_share
            if lost or (caused and kind in self._last):
                fault, missing = self._last[kind], count.lost or count.refused
                default = ("Check the model, its endpoint and its quota.", ModelError)
                remedy, kind_of_error = _REMEDIES.get(fault.kind, default)
                raise kind_of_error(
                    f"{who} was stopped: {missing} of {missing + count.answers} {kind} calls gave "
                    f"no usable answer; max_failure_share={self.max_failure_share:.0%} are "
                    f"allowed. What came back: {fault.message.rstrip('.')}. {remedy} The judge "
                    "stays as it was; paid answers are in the cache."
                ) from None

    def notes(self, who: str) -> tuple[str, ...]:
        """Return which answers were lost and tolerated, in words."""
        return tuple(
            f"{who}: {count.lost} of {count.answers + count.lost} {kind} answers never came or "
            "could not be used."
            for kind, count in self.counts.items()
            if count.lost
        )


_REMEDIES: Final[dict[str, tuple[str, type[ModelError]]]] = {
    "credential": ("Check the key of the model.", CredentialError),
    "unreachable": ("Check that the server runs.", UnreachableModelError),
}

_TRANSPORT: Final = ("api_key", "timeout", "max_retries")
"""Parameters that do not belong to the question."""


def _message_of(response: Any) -> dict[str, Any]:
    choice = response.choices[0]
    message = choice.message.model_dump(exclude_none=True)
    return {"message": {"content": None, **message}, "finish_reason": choice.finish_reason}


def _check_text(answer: dict[str, Any]) -> None:
    if not answer["message"].get("content") and not answer["message"].get("tool_calls"):
        raise AnswerError("the model gave an empty answer")


def _vectors_of(response: Any) -> dict[str, Any]:
    return {"vectors": [each["embedding"] for each in response.data]}


# -- the provider -----------------------------------------------------------------------------

_METERS: dict[str, Meter] = {}
"""Meters by the id of their run."""


@functools.cache
def _register_provider() -> None:
    """Put the handler into litellm's list of providers, beside those of the user."""
    import litellm

    class MeteredModel(litellm.CustomLLM):  # type: ignore[misc]  # litellm publishes no types
        def completion(self, model: str, messages: list[Any], **given: Any) -> Any:
            meter, kind, real = _named(model)
            outcome = meter.complete(kind, real, messages, given.get("optional_params") or {})
            choice = {"index": 0, **(outcome.answer or {})}
            return litellm.ModelResponse(model=model, choices=[choice], usage=_usage(outcome))

        async def acompletion(self, model: str, messages: list[Any], **given: Any) -> Any:
            return await asyncio.to_thread(self.completion, model, messages, **given)

        def embedding(self, model: str, input: list[str], **_: Any) -> Any:
            meter, _kind, real = _named(model)
            outcome = meter.embed(real, input)
            vectors = enumerate((outcome.answer or {})["vectors"])
            data = [{"object": "embedding", "index": i, "embedding": v} for i, v in vectors]
            return litellm.EmbeddingResponse(model=model, data=data, usage=_usage(outcome))

    mine = {"provider": SCHEME, "custom_handler": MeteredModel()}
    litellm.custom_provider_map = [*litellm.custom_provider_map, mine]
    litellm.utils.custom_llm_setup()


def _named(model: str) -> tuple[Meter, str, str]:
    """Return the meter, the kind of request, and the real model in litellm's form."""
    run, kind, real = model.removeprefix(f"{SCHEME}/").split("/", 2)
    return _METERS[run], kind, real


def _usage(outcome: Outcome) -> dict[str, int]:
    read, written = outcome.usage.read or 0, outcome.usage.written or 0
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
