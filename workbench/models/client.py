"""Sends one request to a model and says what came back: an answer, or a fault and what it means.

Its call may be a judge of MLflow's, a dspy program or anything else, and make several HTTP
requests: over pooled connections, counted in the budget before they are sent, without retries.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import mlflow
import requests
from requests.exceptions import InvalidHeader

from workbench.compat import current_sender, intercepted, status_error
from workbench.credentials import environment_keys, redact
from workbench.errors import BudgetError, CancelledError, ModelError, ReplayError, StoreError
from workbench.models.answers import AnswerError, check_error, readable, said
from workbench.models.budget import UNPAID, Budget, Reservation, Usage, tokens_used
from workbench.models.faults import (
    ADVICE,
    FAILURES_TO_STOP,
    Fault,
    StoppedError,
    cause_of_type,
    classify,
    seconds_to_wait,
    was_refused,
)

TIMEOUT_VARIABLE: Final = "MLFLOW_GATEWAY_ROUTE_TIMEOUT_SECONDS"
ANSWER_SECONDS: Final = 300.0  # unless that variable or a request's own ``timeout`` says otherwise
CONNECT_SECONDS: Final = 10.0

LONGEST_MESSAGE: Final = 2000  # characters of a provider's message that are kept

_QUERY: Final = re.compile(r"(?<=\S)\?[^\s'\")]+")  # of a URL, or of its path alone

# What ends a run and is no fault of a model.
_ENDINGS: Final = (CancelledError, ReplayError, StoreError, StoppedError)


@dataclass(frozen=True)
class Request:
    """One question to a model."""

    key: str | None  # the same in every store; None: the answer is neither kept nor recorded
    model: str  # its URI, for prices; "" where there is none
    call: Callable[[], Any]
    read: Callable[[Any], dict[str, Any]]  # what it gives as JSON; `AnswerError` if unusable
    check: Callable[[dict[str, Any]], object] = lambda _: None  # the same for a kept answer
    sender: str = "The model"  # who asks, for messages: "Judge 'tone'"
    about: str = ""  # what about: "trace tr-1"
    place: str = ""  # where the model is reached, without credentials; "": the provider's address
    origin: str | None = ""  # what else decides the answer, as the server does; None: not kept
    credentials: tuple[str, ...] = ()  # what is redacted from messages and answers
    metered: bool = True  # whether all its HTTP requests pass the client; else it counts itself

    @property
    def cache_key(self) -> str | None:
        """The key of the answer in the cache; None where it is not kept."""
        if self.key is None or self.origin is None:
            return None
        return f"{self.key} {self.origin}"

    @property
    def asker(self) -> str:
        return f"{self.sender} ({self.model})" if self.model else self.sender

    def is_usable(self, answer: dict[str, Any]) -> bool:
        """Whether a kept or recorded answer is one to this question."""
        try:
            self.check(answer)
        except (AnswerError, KeyError, TypeError):
            return False
        return True

    def unanswered(self, fault: Fault, unusable: int, answered: bool) -> ModelError:
        """Return the error that ends a run in which no call can be expected to succeed."""
        in_vain = f"no usable answer to its first {unusable} requests"
        got = in_vain if fault.kind == "answer" else "no answer"
        where = f" at {self.place}" if self.place else ""
        advice = ADVICE.get(fault.kind, f"{FAILURES_TO_STOP} calls in a row failed.")
        kept = "What was answered before is kept; run again for the rest."
        return fault.error(
            f"{self.sender} got {got} from {self.model}{where}: {fault.message.rstrip('.')}. "
            f"{advice} {kept if answered else 'Nothing was answered.'}"
        )

    def __str__(self) -> str:
        return f"{self.asker} on {self.about}" if self.about else self.asker


@dataclass(frozen=True)
class Outcome:
    """An answer or a fault."""

    answer: dict[str, Any] | None
    fault: Fault | None = None
    usage: Usage = UNPAID  # at whatever time
    cached: bool = False  # paid before

    @property
    def paid(self) -> Usage:
        """What was paid for it now; nothing where it was paid before."""
        return UNPAID if self.cached else self.usage


class Client:
    """Pooled connections for up to ``connections`` simultaneous calls, from any thread."""

    def __init__(self, connections: int = 64) -> None:
        self.timeout = ANSWER_SECONDS  # of the last request
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # Settings of the environment are read once: for every call this takes as long as sending.
        self._session.trust_env = False
        self._proxies = functools.cache(requests.utils.get_environ_proxies)
        self._session.verify = (
            os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        )

    def send(
        self, request: Request, budget: Budget, *, is_over: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Make one call, without retries. Once ``is_over`` the next request is a `StoppedError`."""
        call = _UnderWay(self, request, budget, is_over)
        try:
            return Outcome(call.make(), usage=call.usage)
        except Exception as error:
            # Adapters wrap whatever is raised within them.
            if ended := cause_of_type(error, _ENDINGS):
                raise ended from None
            if spent := cause_of_type(error, BudgetError):
                return Outcome(None, Fault("budget", str(spent)), call.usage)
            fault = classify(error)
            told = _QUERY.sub("?***", fault.message)  # keys there may be short
            # A message may quote anything, and what is redacted in vain there harms nobody.
            told = redact(told, (*call.credentials, *environment_keys()))
            return Outcome(None, replace(fault, message=told[:LONGEST_MESSAGE]), call.usage)

    def post(
        self, endpoint: str, headers: Mapping[str, str], payload: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """POST a chat request and return the JSON answer; `status_error` for any other."""
        try:
            response = self._session.post(
                endpoint,
                data=json.dumps(payload).encode(),
                headers={"Content-Type": "application/json", **headers},
                timeout=(min(CONNECT_SECONDS, seconds), seconds),
                proxies=self._proxies(endpoint),
            )
        except UnicodeEncodeError:
            raise InvalidHeader from None
        if response.status_code >= 400:
            wait = seconds_to_wait(response.headers.get("Retry-After"))
            raise status_error(*_told(response, payload), wait)
        with suppress(ValueError):
            if isinstance(answer := json.loads(response.content), dict):
                check_error(answer)
                return answer
        told = f"the endpoint did not answer in JSON but with {response.text[:200]!r}"
        raise status_error(502, told)

    def close(self) -> None:
        self._session.close()


_NO_SCHEMA: Final = re.compile(
    r"response.?format|json.?schema|structured.?output|json.?mode|json_object|guided|grammar",
    re.IGNORECASE,
)


def _told(response: requests.Response, payload: Mapping[str, Any]) -> tuple[int, str]:
    """The status of an error answer and the provider's own message."""
    status, message = response.status_code, ""
    with suppress(ValueError, AttributeError):
        message = said(response.json())
    message = message or response.text[:LONGEST_MESSAGE] or f"HTTP {status}"
    refused = "response_format" in payload and status not in (401, 403, 429)
    if refused and _NO_SCHEMA.search(message):
        # By this MLflow knows it, asks again without a schema, and remembers that for the model.
        return 400, f"{message} (response_format)"
    return status, message


class _UnderWay:
    """A call under way, whose HTTP requests are counted and paid for here (a `compat.Sender`)."""

    def __init__(
        self, client: Client, request: Request, budget: Budget, is_over: Callable[[], bool]
    ) -> None:
        self.client, self.request, self.budget, self.is_over = client, request, budget, is_over
        self.usage = Usage()
        # A client of a provider, as litellm's is, reads the provider's keys by itself.
        self.credentials = [*request.credentials, *environment_keys(request.model)]
        self._unmetered: Reservation | None = None

    def make(self) -> dict[str, Any]:
        if not self.request.metered:  # it counts as one, which its first request seen here may be
            self._unmetered = self._reserve({})
        try:
            # Autologging would add a trace to those that people label.
            with intercepted(self), mlflow.tracing.context(enabled=False):
                read = self.request.read(self.request.call())
                # An answer is stored and shown, and a gateway may repeat in it what it was sent.
                answer: dict[str, Any] = _redacted(read, self.credentials)
                self.request.check(answer)
                return answer
        finally:
            if self._unmetered is not None:
                self.usage += self.budget.settle(self._unmetered)

    def post(self, endpoint: str, headers: Mapping[str, str], payload: dict[str, Any]) -> Any:
        """POST one chat request; its own ``timeout``, in seconds, is not sent."""
        given = payload.get("timeout") or answer_seconds()
        payload = {name: value for name, value in payload.items() if name != "timeout"}
        self.client.timeout = seconds = float(given)
        for name, value in headers.items():
            if name.lower() not in ("content-type", "accept", "user-agent"):
                self.credentials += [value, value.split(" ")[-1]]
        body = self.ask(payload, lambda: self.client.post(endpoint, headers, payload, seconds))
        return readable(body, tools="tools" in payload)

    def read(self, response: Any, *, tools: bool) -> Any:
        """Return litellm's response with the JSON that its message holds (see `readable`)."""
        read = readable(response.model_dump(), tools=tools)["choices"][0]["message"]
        message = response.choices[0].message
        if not (message.tool_calls and tools):
            message.content, message.tool_calls = read["content"], None
        return response

    def ask(self, payload: Mapping[str, Any], send: Callable[[], Any]) -> Any:
        """Reserve for one HTTP request, let ``send`` make it, and settle what it used."""
        reserved, self._unmetered = self._unmetered or self._reserve(payload), None
        try:
            answer = send()
        except BaseException as error:
            # What the provider refused has used nothing; what got lost on its way counts in full.
            used = (0, 0) if was_refused(error) else ()
            self.usage += self.budget.settle(reserved, *used)
            raise
        self.usage += self.budget.settle(reserved, *tokens_used(answer))
        return answer

    def _reserve(self, payload: Mapping[str, Any]) -> Reservation:
        if self.is_over():
            raise StoppedError
        return self.budget.reserve(self.request.model, payload, self.is_over)


def _redacted(part: Any, credentials: Sequence[str]) -> Any:
    """What JSON takes, with the credentials redacted in its texts."""
    if isinstance(part, dict):
        return {name: _redacted(one, credentials) for name, one in part.items()}
    if isinstance(part, list):
        return [_redacted(one, credentials) for one in part]
    return redact(part, credentials) if isinstance(part, str) else part


def answer_seconds() -> float:
    """Seconds after which a request is given up, unless it has a ``timeout`` of its own."""
    return float(os.environ.get(TIMEOUT_VARIABLE) or ANSWER_SECONDS)


def ask(payload: Mapping[str, Any], send: Callable[[], Any]) -> Any:
    """Let ``send`` send one request of the call that is under way, counted, within its budget."""
    under_way = current_sender()
    return send() if under_way is None else under_way.ask(payload, send)
