"""Reflector: asks the reflection model for rules by a dspy program.

Requests are sent by dspy's connection and pass the client on their way, so that they are counted,
cached, kept to the budget and never sent while a recording is replayed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from workbench.compat import context_window, endpoint
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
from workbench.models.client import ANSWER_SECONDS, TIMEOUT_VARIABLE, AnswerError, Outcome
from workbench.models.offline import MODEL, SCHEME, register
from workbench.models.recording import replayed
from workbench.models.runner import Runner
from workbench.scale import Scale
from workbench.simba.reflection import (
    ANSWER_TOKENS,
    MAX_RULES,
    TASK,
    TASK_DIGEST,
    Reflection,
    Request,
    is_refusal,
    rules_in,
)

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

DEFAULT_CONTEXT: Final = 8000
"""Tokens of a prompt and its answer where the model's context is not known."""

REASONING_TOKENS: Final = 16_000
"""Length of an answer of OpenAI's reasoning models, for which dspy takes no smaller limit."""

MIN_FAILURES: Final = 3
"""Fewer failed requests are never a reason to give up, as long as others succeed."""

MIN_FAILURE_SHARE: Final = 1 / 3
"""Nor is a smaller share of failed requests."""

_ADVICE: Final = (
    "Check the model, its key and its endpoint, name another with SIMBA(model=...), or give it "
    "more time or room with SIMBA(inference_params={'timeout': seconds, 'max_tokens': ...}), or "
    "shorter requests with SIMBA(reflection_context=tokens). Run again to go on from here: answers "
    "that were paid for are kept."
)


class Reflector:
    """Asks the reflection model, several requests in parallel. A context manager.

    Parameters
    ----------
    judge
        Whose model, base URL and headers are used if ``model`` is None.
    model
        Another model URI.
    inference_params
        Parameters of the requests: ``max_tokens`` (1,024 unless given), ``timeout`` in seconds
        (the judge's, or 300), ``temperature`` and others that the model takes.
    context
        Tokens that prompt and answer may have; what MLflow's catalog says, or 8,000, if None.
    cache, budget, stop
        As in `workbench.models.runner.Runner`.
    max_failure_share
        Share of failed requests, in [0, 1], above which it gives up; at least a third.
    """

    def __init__(
        self,
        judge: Judge,
        scale: Scale,
        *,
        model: str | None = None,
        inference_params: Mapping[str, Any] | None = None,
        context: int | None = None,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        concurrency: int = 8,
        max_failure_share: float = 0.05,
        stop: threading.Event | None = None,
    ) -> None:
        self.scale, self.max_failure_share = scale, max_failure_share
        self.asked = self.failures = 0
        own_model = getattr(judge, "model", None)
        self.model = model or own_model or MODEL
        self.params = dict(inference_params or {})
        # The embedded model reads prompts of any length.
        known = None if self.model.startswith(SCHEME) else context_window(self.model)
        self.context = context or known
        if self.context is None and not self.model.startswith(SCHEME):
            self.context = DEFAULT_CONTEXT
        base_url, headers, params = endpoint(judge)
        if model not in (None, own_model):
            base_url, headers, params = None, {}, {}
        self.base_url = base_url
        self.options = reached_by(base_url, headers, params)
        self.credentials = credentials_of(base_url, headers, {"judge": params, "own": self.params})
        self.runner = Runner(cache=cache, budget=budget, concurrency=concurrency, stop=stop)
        self._lock = threading.Lock()
        self._connected: Any = None
        if replayed() is None:
            # dspy takes seconds to import: they pass while the judge's first calls wait.
            threading.Thread(target=program, name="import dspy", daemon=True).start()

    def propose(self, requests: Sequence[Request], step: int) -> list[Reflection]:
        """Ask for the rules of each request; answers of another step are other answers.

        An answer that is no use has an ``error`` and is not kept, so that another run asks again.

        Raises
        ------
        BudgetError, CancelledError, ReplayError
            As in `workbench.models.runner.Runner.run`.
        ModelError
            If the model can't be reached, none of the first requests had a usable answer, or more
            failed than allowed.
        """
        try:
            outcomes = self.runner.run([self._request(request, step) for request in requests])
        except ModelError as error:
            raise type(error)(f"{error} {_ADVICE}") from None
        self._count(outcomes)
        return [
            Reflection(
                rules=tuple((outcome.answer or {}).get("rules", ())),
                calls=0 if outcome.cached else outcome.usage.requests,
                tokens=None if outcome.cached else outcome.usage.tokens or None,
                cost=None if outcome.cached else outcome.usage.cost,
                error=outcome.fault.message if outcome.fault else "",
            )
            for outcome in outcomes
        ]

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        """Count failures; raise if there are too many."""
        faults = [outcome.fault for outcome in outcomes if outcome.fault]
        all_failed = not self.asked and len(faults) == len(outcomes)
        self.asked += len(outcomes)
        self.failures += len(faults)
        if faults and (all_failed or any(fault.permanent for fault in faults)):
            raise ModelError(
                f"The reflection model {self.model} gave no usable answer: {faults[0].message}. "
                f"{_ADVICE}"
            )
        allowed = max(self.max_failure_share, MIN_FAILURE_SHARE)
        if faults and self.failures >= MIN_FAILURES and self.failures > allowed * self.asked:
            raise ModelError(
                f"{self.failures} of {self.asked} requests to the reflection model {self.model} "
                f"had no usable answer, more than the {allowed:.0%} allowed. One of them: "
                f"{faults[0].message}. {_ADVICE} Or allow more with SIMBA(max_failure_share=...)."
            )

    def _request(self, request: Request, step: int) -> client.Request:
        inputs = request.as_inputs(self.scale, self.context)
        params = without_secret_params(self.params)
        key = (TASK_DIGEST, inputs, step, *([params] if params else []))
        return client.Request(
            key=question_key("reflection", self.model, *key),
            model=self.model,
            call=functools.partial(self._ask, inputs),
            read=functools.partial(self._read, request),
            sender="The reflection model",
            place=without_credentials(self.base_url) if self.base_url else "",
            origin=question_key(answers_from(self.model, self.base_url)),
            credentials=self.credentials,
        )

    def _read(self, request: Request, stated: Sequence[Any]) -> dict[str, Any]:
        # Rules are shown, logged and registered, and a gateway may repeat what it was sent.
        rules = [redact(str(rule), self.credentials) for rule in stated]
        if rules and all(map(is_refusal, rules)):
            raise AnswerError(f"it said {rules[0][:300]!r}")
        return {"rules": request.usable_rules(rules)}

    def _ask(self, inputs: Mapping[str, str]) -> Sequence[Any]:
        """The rules that the model states, in the form that was asked for or in another."""
        import dspy
        from dspy.utils.exceptions import AdapterParseError

        engine = _Engine(self._connection())
        limits = {"max_tokens": ANSWER_TOKENS, **self.params}
        lm = _language_model(engine, {k: limits[k] for k in limits.keys() - _OF_CONNECTION})
        try:
            # Else dspy asks a second time for an answer that can be read as it is.
            with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
                return program()(**inputs, lm=lm).rules or ()
        except AdapterParseError as error:
            said = error.lm_response or ""
            stated = rules_in(said)
            if stated is not None:
                return stated
            why = f"it stated no rule but {said[:300]!r}"
            if engine.was_cut:
                why = (
                    "its answer was cut before it had stated a rule; raise max_tokens with "
                    "SIMBA(inference_params={'max_tokens': ...})"
                )
            raise AnswerError(why) from None

    def _connection(self) -> Any:
        """dspy's language model that sends the requests."""
        import dspy

        provider, _, name = self.model.partition(":/")
        options: dict[str, Any] = {
            "timeout": float(os.environ.get(TIMEOUT_VARIABLE) or ANSWER_SECONDS),
            **self.options,
            **{name: self.params[name] for name in self.params.keys() & _OF_CONNECTION},
        }
        if provider == "openai" and os.environ.get("OPENAI_API_BASE"):
            options.setdefault("api_base", os.environ["OPENAI_API_BASE"])
        with self._lock:
            if self._connected is None:
                if self.model.startswith(SCHEME):
                    register()
                # The runner caches answers and retries, so that each request is counted.
                self._connected = dspy.LM(
                    f"{provider}/{name.lstrip('/')}", cache=False, num_retries=0, **options
                )
            return self._connected

    def close(self) -> None:
        """Close the connections."""
        self.runner.close()
        if self._connected is not None:
            self._connected.close()

    def __enter__(self) -> Reflector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_OF_CONNECTION: Final = {"timeout", "api_key"}


def reached_by(
    base_url: str | None, headers: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Options by which dspy reaches a judge's model.

    Sampling parameters of the judge are left out: verdicts and reflections differ.
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
        response = client.ask(payload, _without_dspys_advice(lambda: self.inner(request)))
        self.was_cut = response.finish_reason == "length"
        return response

    def close(self) -> None:
        """The connection belongs to the reflector."""


def _without_dspys_advice(send: Callable[[], Any]) -> Callable[[], Any]:
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
        rules: list[str] = dspy.OutputField(desc=f"at most {MAX_RULES} rules, the strongest first")

    return dspy.Predict(ProposeRules)
