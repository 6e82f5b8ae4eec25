"""Asks the reflection model for rules: which model, where it is reached, and what it answered.

The program is dspy's. Its requests go out through dspy's own connection, and pass the client on
their way, so that they are counted, kept to the budget and never sent while a recording is
replayed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from workbench.compat import endpoint, quiet
from workbench.credentials import (
    credentials_of,
    redact,
    without_credentials,
    without_secret_params,
)
from workbench.errors import ModelError
from workbench.judging.requests import answers_from
from workbench.models import client
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache, question_key
from workbench.models.client import ANSWER_SECONDS, TIMEOUT_VARIABLE, Outcome
from workbench.models.faults import AnswerError
from workbench.models.offline import MODEL, SCHEME, register
from workbench.models.runner import Runner
from workbench.scale import Scale
from workbench.simba.reflection import (
    ANSWER_TOKENS,
    MOST_RULES,
    TASK,
    TASK_DIGEST,
    Reflection,
    Request,
    is_refusal,
    rules_in,
)

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

REASONING_TOKENS: Final = 16_000
"""The same for OpenAI's reasoning models, for which dspy takes no smaller limit."""

LEAST_FAILURES: Final = 3
"""Fewer failed requests are never a reason to give up, as long as others succeed."""

LEAST_SHARE: Final = 1 / 3
"""Nor is a smaller share of failed requests."""


class Reflector:
    """Asks the reflection model, several requests in parallel. A context manager.

    Parameters
    ----------
    judge
        Whose model, base URL and headers are used where ``model`` is None.
    model
        Another model URI for the reflection.
    inference_params
        Parameters of the requests: ``max_tokens`` (1,024 unless given), ``timeout`` in seconds
        (the judge's, or 300), ``temperature`` and whatever else the model takes.
    cache
        Where answers are kept; the same request with the same ``sample`` is paid once.
    budget
        Counts every request to the model before it is made, retries included.
    max_failure_share
        Share of failed requests, in [0, 1], above which it gives up; it bears a third at least.
    stop
        Once it is set no request is begun any more.

    Attributes
    ----------
    asked, failures
        Requests so far, known ones included, and those of them without a usable answer.
    """

    def __init__(
        self,
        judge: Judge,
        scale: Scale,
        *,
        model: str | None = None,
        inference_params: Mapping[str, Any] | None = None,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        concurrency: int = 8,
        max_failure_share: float = 0.05,
        stop: threading.Event | None = None,
    ) -> None:
        self.scale, self.max_failure_share = scale, max_failure_share
        self.asked = self.failures = 0
        self.model = model or getattr(judge, "model", None) or MODEL
        self.params = dict(inference_params or {})
        base_url, headers, params = endpoint(judge)
        if model is not None and model != getattr(judge, "model", None):
            base_url, headers, params = None, {}, {}
        self.base_url = base_url
        self.options = reached_by(base_url, headers, params)
        self.credentials = credentials_of(
            self.model, base_url, headers, {"judge": params, "own": self.params}
        )
        self.runner = Runner(cache=cache, budget=budget, concurrency=concurrency, stop=stop)
        self._lock = threading.Lock()
        self._inner: Any = None

    def is_known(self, request: Request, sample: int) -> bool:
        """Whether the answer is in the cache, so that asking costs nothing."""
        return self.runner.known(self._request(request, sample)) is not None

    def propose(self, requests: Sequence[tuple[Request, int]]) -> list[Reflection]:
        """Rules for each (request, sample number), in order.

        A request that the model refuses, or answers with what holds no rule, has an ``error`` and
        is not kept, so that another run asks again.

        Raises
        ------
        BudgetError
            When the budget ends; answers that came before are kept in the cache.
        CancelledError
            When ``stop`` is set; the same holds.
        ModelError
            When the model cannot be reached, refuses the key or does not exist, when none of the
            first requests had a usable answer, or when more failed than are allowed; what the
            model said is part of the message.
        ReplayError
            While a recording is replayed that lacks an answer.
        """
        asked = [self._request(request, sample) for request, sample in requests]
        try:
            outcomes = self.runner.run(asked)
        except ModelError as error:
            raise type(error)(f"{error} {_ADVICE}") from None
        self._count(outcomes)
        return [_reflection(outcome) for outcome in outcomes]

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        """Count answers and failures; raise where there are too many of these."""
        first = not self.asked
        faults = [outcome.fault for outcome in outcomes if outcome.fault]
        said = [fault.message for fault in faults]
        self.asked += len(outcomes)
        self.failures += len(said)
        if any(fault.permanent for fault in faults) or (first and len(said) == len(outcomes) > 0):
            raise ModelError(
                f"The reflection model {self.model} gave no usable answer: {said[0]}. {_ADVICE}"
            )
        borne = max(self.max_failure_share, LEAST_SHARE)
        if self.failures >= LEAST_FAILURES and self.failures > borne * self.asked:
            raise ModelError(
                f"{self.failures} of {self.asked} requests to the reflection model {self.model} "
                f"had no usable answer, more than the {borne:.0%} allowed. One of them: "
                f"{said[0] if said else ''}. {_ADVICE} Or allow more with "
                "SIMBA(max_failure_share=...)."
            )

    # -- one request ------------------------------------------------------------------------

    def _request(self, request: Request, sample: int) -> client.Request:
        inputs = request.as_inputs(self.scale)
        source = answers_from(self.model, self.base_url)
        params = without_secret_params(self.params)
        more = [params] if params else []
        place = without_credentials(self.base_url) if self.base_url else ""
        return client.Request(
            key=question_key("reflection", self.model, source, TASK_DIGEST, inputs, sample, *more),
            model=self.model,
            call=functools.partial(self._ask, inputs),
            read=functools.partial(self._read, request),
            sender="The reflection model",
            place=place,
            portable_key=question_key("reflection", self.model, TASK_DIGEST, inputs, sample, *more),
            credentials=self.credentials,
        )

    def _read(self, request: Request, stated: Any) -> dict[str, Any]:
        # Rules are shown, logged and registered; a gateway may put into them what it was sent.
        rules = [redact(str(rule), self.credentials) for rule in stated]
        if rules and all(map(is_refusal, rules)):
            raise AnswerError(f"it said {rules[0][:300]!r}")
        return {"rules": request.usable_rules(rules)}

    def _ask(self, inputs: Mapping[str, str]) -> Sequence[Any]:
        """The rules that the model states, in the form that was asked for or in another."""
        import dspy
        from dspy.utils.exceptions import AdapterParseError

        engine = _Engine(self._connection())
        lm = _language_model(engine, self._limits())
        try:
            # Else dspy asks a second time for an answer that can be read as it is.
            with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
                return program()(**inputs, lm=lm).rules or ()
        except AdapterParseError as error:
            said = error.lm_response or ""
            stated = rules_in(said)
            if stated is not None:
                return stated
            if engine.was_cut:
                raise AnswerError(
                    "its answer was cut before it had stated a rule; raise max_tokens with "
                    "SIMBA(inference_params={'max_tokens': ...})"
                ) from None
            raise AnswerError(
                f"it stated no rule but {(error.lm_response or '')[:300]!r}"
            ) from None

    def _limits(self) -> dict[str, Any]:
        given = {name: v for name, v in self.params.items() if name not in ("timeout", "api_key")}
        return {"max_tokens": ANSWER_TOKENS, **given}

    def _connection(self) -> Any:
        """dspy's language model that requests are sent by, made once."""
        import dspy

        provider, _, name = self.model.partition(":/")
        options: dict[str, Any] = {
            "timeout": float(os.environ.get(TIMEOUT_VARIABLE) or ANSWER_SECONDS),
            **self.options,
            **{name: self.params[name] for name in ("timeout", "api_key") if name in self.params},
        }
        if provider == "openai" and "api_base" not in options and os.environ.get("OPENAI_API_BASE"):
            options["api_base"] = os.environ["OPENAI_API_BASE"]
        with self._lock:
            if self._inner is None:
                if provider + ":/" == SCHEME:
                    with quiet():
                        register()
                # The runner keeps answers and repeats requests, so that each is counted.
                self._inner = dspy.LM(
                    f"{provider}/{name.lstrip('/')}", cache=False, num_retries=0, **options
                )
            return self._inner

    def close(self) -> None:
        """Close the connections."""
        self.runner.close()
        if self._inner is not None:
            self._inner.close()

    def __enter__(self) -> Reflector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ADVICE: Final = (
    "Check the model, its key and its endpoint, name another with SIMBA(model=...), or give it "
    "more time or room with SIMBA(inference_params={'timeout': seconds, 'max_tokens': ...}). Run "
    "again to go on from here: answers that were paid for are kept."
)


def _reflection(outcome: Outcome) -> Reflection:
    paid = outcome.usage
    fresh = not outcome.cached
    return Reflection(
        rules=tuple((outcome.answer or {}).get("rules", ())),
        calls=paid.requests if fresh else 0,
        tokens=(paid.tokens or None) if fresh else None,
        cost=paid.cost if fresh else None,
        error=outcome.fault.message if outcome.fault else "",
    )


def reached_by(
    base_url: str | None, headers: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Where and as whom a judge's model is reached, in dspy's terms.

    Sampling parameters of the judge are not taken over: a verdict of few words at temperature 0
    and a reflection are asked for differently.
    """
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


class _Engine:
    """dspy's interface of an engine: one request, whose sending passes the client."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.model, self.was_cut = inner, inner.model, False

    def complete(self, request: Any) -> Any:
        """Send a ``dspy.lm15.Request`` and return the ``dspy.lm15.Response``."""
        messages = [str(message) for message in (request.system, *request.messages)]
        payload = {"messages": messages, "max_tokens": request.config.max_tokens}
        response = client.ask(payload, _cleanly(lambda: self.inner(request)))
        self.was_cut = response.finish_reason == "length"
        return response

    def close(self) -> None:
        """The connection belongs to the reflector."""


def _cleanly(send: Callable[[], Any]) -> Callable[[], Any]:
    """Send, and leave out of an error what dspy advises its own users to do."""

    def sent() -> Any:
        from dspy.utils.exceptions import LMError

        try:
            return send()
        except LMError as error:
            text, _, _ = error.message.partition("\n\n  To fix")
            raise type(error)(
                text, model=error.model, status=error.status, retry_after=error.retry_after
            ) from error.__cause__

    return sent


def _language_model(engine: _Engine, limits: dict[str, Any]) -> Any:
    import dspy
    from dspy.utils.exceptions import LMConfigurationError

    try:
        return dspy.LM(engine.model, engine=engine, cache=False, num_retries=0, **limits)
    except LMConfigurationError:  # a reasoning model, which takes neither
        limits = {**limits, "temperature": None}
        limits["max_tokens"] = max(limits["max_tokens"], REASONING_TOKENS)
        return dspy.LM(engine.model, engine=engine, cache=False, num_retries=0, **limits)


@functools.cache
def program() -> Any:
    """The dspy program, made when it is first needed since dspy takes seconds to import."""
    import dspy

    class ProposeRules(dspy.Signature):  # type: ignore[misc]  # dspy publishes no types
        __doc__ = TASK

        judge_instructions: str = dspy.InputField(desc="what the judge is told now")
        allowed_values: str = dspy.InputField(desc="the rating scale; values from worst to best")
        disagreements: str = dspy.InputField(desc="cases to learn from, one JSON object a line")
        agreements: str = dspy.InputField(desc="cases that are right and must stay so")
        focus: str = dspy.InputField(desc="which disagreements to explain")
        rules: list[str] = dspy.OutputField(desc=f"at most {MOST_RULES} rules, the strongest first")

    return dspy.Predict(ProposeRules)
