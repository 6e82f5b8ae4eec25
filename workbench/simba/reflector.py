"""The reflection model is asked by a dspy program, over connections that pass the client."""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from mlflow.genai.judges import Judge

from workbench.compat import current_sender, endpoint
from workbench.credentials import credentials_of, without_credentials, without_secret_params
from workbench.errors import ModelError
from workbench.imports import deferred_iri_grammar
from workbench.judging.requests import answers_from, reached_by
from workbench.models import client
from workbench.models.answers import AnswerError
from workbench.models.budget import FREE, context_window
from workbench.models.cache import question_key
from workbench.models.client import Outcome, answer_seconds
from workbench.models.offline import MODEL, register
from workbench.models.offline.provider import respond
from workbench.models.runner import Runner
from workbench.scale import Scale
from workbench.simba.reflection import (
    ANSWER_TOKENS,
    DESCRIPTION_TASK,
    DESCRIPTION_TOKENS,
    FORM_TASK,
    MAX_RULES,
    TASK,
    Request,
)

# As long as others succeed, fewer failed requests, or a smaller share, are no reason to give up.
# Nor are answers that are unusable: small models give many, and the next may be a good one.
MIN_FAILURES: Final = 3
MIN_FAILURE_SHARE: Final = 1 / 3

DEFAULT_CONTEXT: Final = 6000  # tokens of prompt and answer where the model's are not known
REASONING_TOKENS: Final = 16_000  # of an answer of OpenAI's reasoning models: dspy takes no fewer

# Part of the cache key: answers to another wording of the task are other answers.
TASK_DIGEST: Final = question_key(TASK + DESCRIPTION_TASK + FORM_TASK)[:16]

_ADVICE: Final = (
    "Check the model, its key and its endpoint, name another with SIMBA(model=...), or give it "
    "more time or room with SIMBA(inference_params={'timeout': seconds, 'max_tokens': ...}), or "
    "shorter requests with SIMBA(reflection_context=tokens). Run again to go on from here: answers "
    "that were paid for are kept."
)

_CUT: Final = (
    "its answer was cut before it had stated a rule; raise max_tokens with "
    "SIMBA(inference_params={'max_tokens': ...})"
)

_OF_CONNECTION: Final = {"timeout", "api_key"}

# The context in tokens that a server names when a prompt is too long for it.
_CONTEXT: Final = re.compile(
    r"(?:(?:context|model|sequence) (?:length|size|window)\D{0,40}|n_ctx\D{0,4}|limit is |> ?|<= ?"
    r"|allowed \D{0,8})(\d[\d,]{2,9})",
    re.IGNORECASE,
)
_TOO_LONG: Final = re.compile(
    r"context|too long|too large|(?:input|prompt|max)\S* .{0,20}(?:length|tokens)"
    r"|length of the (?:input|prompt|messages)",
    re.IGNORECASE,
)
MIN_CONTEXT: Final = 1000  # tokens; smaller requests are of no use


class Reflector:
    """Asks the reflection model by a runner that the caller closes; see `workbench.SIMBA`."""

    def __init__(
        self,
        judge: Judge,
        scale: Scale,
        runner: Runner,
        *,
        model: str | None = None,
        base_url: str | None = None,
        inference_params: Mapping[str, Any] | None = None,
        context: int | None = None,
        max_failure_share: float = 0.05,
    ) -> None:
        self.scale, self.runner, self.max_failure_share = scale, runner, max_failure_share
        self.asked = self.failures = self.lost = 0
        own_model = getattr(judge, "model", None)
        self.model = model or own_model or MODEL
        self.params = dict(inference_params or {})
        self.context = context
        if context is None and not self.model.startswith(FREE):  # which reads any length
            self.context = context_window(self.model) or DEFAULT_CONTEXT
        own_url, headers, params = endpoint(judge)
        if base_url or model not in (None, own_model):
            own_url, headers, params = base_url, {}, {}
        self.base_url = own_url
        self.options = reached_by(own_url, headers, params)
        self.credentials = credentials_of(own_url, headers, {"judge": params, "own": self.params})
        self._lock = threading.Lock()
        self._connected: Any = None

    def propose(self, requests: Sequence[Request], step: int) -> list[Outcome]:
        """Ask for the rules of each request; `ModelError` if too many fail, or all at first.

        Answers of another step are other answers. Unusable ones are not kept in the cache.
        """
        try:
            outcomes = self.runner.run([self._request(request, step) for request in requests])
        except ModelError as error:
            if self._takes_less(str(error)):
                return self.propose(requests, step)
            raise type(error)(f"{error} {_ADVICE}") from None
        refused = [o.fault.message for o in outcomes if o.fault and o.fault.kind != "answer"]
        if any(map(self._takes_less, refused)):
            return self.propose(requests, step)
        self._check(outcomes)
        return outcomes

    def _takes_less(self, message: str) -> bool:
        """Take a smaller context where a server calls a prompt too long; whether that is so."""
        known, named = self.context or DEFAULT_CONTEXT, _CONTEXT.search(message)
        if named is None and not _TOO_LONG.search(message):
            return False
        # Tokens are estimated: what a server names may be more than was thought to be enough.
        told = int(named[1].replace(",", "")) if named else known
        smaller = told if told < known else known // 2
        if smaller < MIN_CONTEXT:
            return False
        self.context = smaller
        return True

    def _check(self, outcomes: Sequence[Outcome]) -> None:
        faults = [outcome.fault for outcome in outcomes if outcome.fault]
        first = not self.asked
        self.asked += len(outcomes)
        self.failures += len(faults)
        self.lost += sum(fault.kind != "answer" for fault in faults)
        allowed = max(self.max_failure_share, MIN_FAILURE_SHARE)
        # A small model may run on in one answer, and answer the next request.
        cut = [fault for fault in faults if fault.message == _CUT]
        in_vain = first and len(faults) == len(outcomes) > len(cut)
        hopeless = in_vain or any(fault.permanent for fault in faults)
        many = self.lost >= MIN_FAILURES and self.lost > allowed * self.asked
        if faults and (hopeless or many):
            raise ModelError(
                f"{self.failures} of {self.asked} requests to the reflection model {self.model} "
                f"had no usable answer. At most {allowed:.0%} may fail, and none for a refused key "
                "or model. "
                f"One of them: {faults[0].message.rstrip('.')}. {_ADVICE} Or allow more with "
                "SIMBA(max_failure_share=...)."
            )

    def _request(self, request: Request, step: int) -> client.Request:
        answer = int(self.params.get("max_tokens", ANSWER_TOKENS))
        inputs = request.as_inputs(self.scale, self.context, answer)
        params = without_secret_params(self.params)
        told = (self.model, TASK_DIGEST, inputs, step, *([params] if params else []))
        return client.Request(
            key=question_key("reflection", *told),
            model=self.model,
            call=functools.partial(self._ask, inputs, request.task),
            read=functools.partial(self._read, request),
            sender="The reflection model",
            place=without_credentials(self.base_url) if self.base_url else "",
            origin=question_key(answers_from(self.model, self.base_url)),
            credentials=self.credentials,
        )

    def _ask(self, inputs: Mapping[str, str], task: str) -> _Engine:
        """Send the program's request; the engine then has what the model said."""
        dspy = load_dspy()
        from dspy.utils.exceptions import AdapterParseError, LMConfigurationError

        engine = _Engine(self._connection())
        plain = task == DESCRIPTION_TASK
        limits = {"max_tokens": DESCRIPTION_TOKENS if plain else ANSWER_TOKENS, **self.params}
        limits = {k: v for k, v in limits.items() if k not in _OF_CONNECTION}
        make = functools.partial(dspy.LM, engine.model, engine=engine, cache=False, num_retries=0)
        try:
            lm = make(**limits)
            engine.limits_twice = bool(self.base_url)
        except LMConfigurationError:  # a reasoning model, which takes neither
            limits["max_tokens"] = max(limits["max_tokens"], REASONING_TOKENS)
            lm = make(**{**limits, "temperature": None})
        if plain:
            lm(plain_prompt(inputs))
            return engine
        # Else dspy asks a second time for an answer that can be read as it is.
        adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
        with suppress(AdapterParseError), dspy.context(adapter=adapter):
            program()(**inputs, lm=lm)
        return engine

    def _read(self, request: Request, engine: _Engine) -> dict[str, Any]:
        said = whole_lines(engine.said) if engine.was_cut else engine.said
        stated = request.rules_in(said)
        if engine.was_cut and not stated:
            raise AnswerError(_CUT)
        if stated is None:
            raise AnswerError(f"it stated no rule but {engine.said[:300]!r}")
        return {"rules": request.usable_rules(stated)}

    def _connection(self) -> Any:
        """dspy's language model that sends the requests."""
        dspy = load_dspy()

        provider, _, name = self.model.partition(":/")
        if self.model.startswith(FREE):
            register(self.model)
            return _InProcess()
        options: dict[str, Any] = {
            "timeout": answer_seconds(),
            **self.options,
            **{name: self.params[name] for name in self.params.keys() & _OF_CONNECTION},
        }
        if provider == "openai" and os.environ.get("OPENAI_API_BASE"):
            options.setdefault("api_base", os.environ["OPENAI_API_BASE"])
        if provider == "openai" and options.keys() <= {"api_base", *_OF_CONNECTION}:
            # Else dspy imports litellm where the variable is set, which takes seconds.
            options["engine"] = "lm15"
        with self._lock:
            if self._connected is None:
                # The runner caches answers and retries, so that each request is counted.
                self._connected = dspy.LM(
                    f"{provider}/{name.lstrip('/')}", cache=False, num_retries=0, **options
                )
            return self._connected

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()


def whole_lines(text: str) -> str:
    """Leave out the line at which an answer was cut, unless it ended a sentence or is JSON."""
    before, _, last = text.rstrip().rpartition("\n")
    return text if '"' in last or last.endswith((".", "!", "?")) else before


@functools.cache
def load_dspy() -> Any:
    """dspy, which takes seconds to import."""
    with deferred_iri_grammar():
        import dspy
    # What becomes of an answer that was cut is told where it is read.
    logging.getLogger("dspy.clients.lm").addFilter(lambda _: current_sender() is None)
    return dspy


class _InProcess:
    """The embedded model as a connection."""

    model = MODEL.replace(":/", "/")

    def __call__(self, request: Any) -> Any:
        dspy = load_dspy()

        said = [("system", request.system), *((one.role, one.text) for one in request.messages)]
        chat = [{"role": role, "content": text} for role, text in said if text]
        return dspy.lm15.response_from_openai_chat(respond(chat), model=self.model)


class _Engine:
    """dspy's interface of an engine: one request, whose sending passes the client."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.model, self.said, self.was_cut = inner, inner.model, "", False
        self.limits_twice = False  # as ``max_tokens`` too, the only name that some servers read

    def complete(self, request: Any) -> Any:
        """Send a ``dspy.lm15.Request`` and return the ``dspy.lm15.Response``."""
        if self.limits_twice:
            told = {**(request.config.extensions or {}), "max_tokens": request.config.max_tokens}
            request = replace(request, config=replace(request.config, extensions=told))
        messages = [str(message) for message in (request.system, *request.messages)]
        payload = {"messages": messages, "max_tokens": request.config.max_tokens}
        response = client.ask(payload, functools.partial(self._send, request))
        self.said, self.was_cut = response.text or "", response.finish_reason == "length"
        return response

    def _send(self, request: Any) -> Any:
        from dspy.utils.exceptions import LMError

        try:
            return self.inner(request)
        except LMError as error:  # without dspy's advice, which is about dspy
            text = re.split(r"\n\n  To fix|; this is lm15's", error.message)[0]
            kept = {name: getattr(error, name) for name in ("model", "status", "retry_after")}
            raise type(error)(text, **kept) from error.__cause__


def plain_prompt(inputs: Mapping[str, str]) -> str:
    """Ask for descriptions in plain words, which small models follow sooner than sections."""
    headings = {
        "judge_instructions": "What those who rate are told:",
        "rated_items": "Items that people rated, a JSON object a line:",
        "form": FORM_TASK,
    }
    shown = (f"{heading}\n{inputs[name]}" for name, heading in headings.items())
    return "\n\n".join([DESCRIPTION_TASK.strip(), *shown])


@functools.cache
def program() -> Any:
    """The dspy program for rules."""
    load_dspy()
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
