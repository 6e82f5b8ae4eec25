"""Sends one request to a model and says what came back.

A request's call may be a judge of MLflow's, a dspy program or anything else. Its HTTP requests,
of which one call may make several (tools, a provider that takes no answer schema), go out through
the client: over pooled connections, counted and reserved in the budget before they are sent, and
without retries of their own, so that the runner can decide for all calls together what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import requests

from workbench.compat import HTTPStatusError, intercepted
from workbench.credentials import redact
from workbench.errors import BudgetError, CancelledError, ReplayError, StoreError
from workbench.models import recording
from workbench.models.budget import UNPAID, Budget, Reservation, Usage, cost, tokens_used
from workbench.models.faults import Fault, cause_of_type, classify, seconds_to_wait

CONNECT_SECONDS: Final = 10.0

ANSWER_SECONDS: Final = 300.0
"""Unless ``MLFLOW_GATEWAY_ROUTE_TIMEOUT_SECONDS`` or a request's own ``timeout`` says otherwise."""

TIMEOUT_VARIABLE: Final = "MLFLOW_GATEWAY_ROUTE_TIMEOUT_SECONDS"

ENDINGS: Final = (CancelledError, ReplayError, StoreError)
"""What ends a run and is no fault of a model."""

T = TypeVar("T")


class StoppedError(Exception):
    """The run has ended before this request was made."""


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Parameters
    ----------
    key
        Of the answer in the cache; None where it is not to be kept.
    model
        URI of the model, for prices; "" where there is none.
    call
        Makes the call and returns the raw answer.
    read
        Turns a raw answer into one that JSON takes; raises `AnswerError` where it is unusable.
    check
        Raises `AnswerError` for an answer from the cache that is unusable now.
    sender, about
        Who asks about what, for messages: "Judge 'tone'" and "trace tr-1".
    place
        Where the model is reached, without credentials; "" for the provider's own address.
    portable_key
        Of the answer in recordings: independent of servers, stores and trace ids. "" where
        nothing is recorded.
    credentials
        What is redacted from error messages.
    metered
        Whether all HTTP requests of the call go out through the client. Where they do not, one
        is counted for the call.
    """

    key: str | None
    model: str
    call: Callable[[], Any]
    read: Callable[[Any], dict[str, Any]]
    check: Callable[[dict[str, Any]], object] = lambda _: None
    sender: str = "The model"
    about: str = ""
    place: str = ""
    portable_key: str = ""
    credentials: tuple[str, ...] = ()
    metered: bool = True

    @property
    def recorded_about(self) -> str:
        """Who was asked, for those who read a recording."""
        return f"{self.sender} ({self.model})" if self.model else self.sender

    def __str__(self) -> str:
        about = f" on {self.about}" if self.about else ""
        return f"{self.sender} ({self.model or 'no model'}){about}"


@dataclass(frozen=True)
class Outcome:
    """What came back: an answer or a fault.

    ``usage`` is what the answer has cost, at whatever time; ``cached`` says that it was paid
    before.
    """

    answer: dict[str, Any] | None
    fault: Fault | None = None
    usage: Usage = UNPAID
    cached: bool = False


class Client:
    """Pooled connections for up to ``connections`` simultaneous calls, from any thread."""

    def __init__(self, connections: int = 64) -> None:
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(
            pool_connections=4, pool_maxsize=connections, pool_block=False
        )
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        # Reading proxies and certificate bundles from the environment for every call is slow;
        # they are read once for each endpoint instead.
        self._session.trust_env = False
        self._session.verify = (
            os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        )
        self._proxies: dict[str, dict[str, str]] = {}

    def send(
        self, request: Request, budget: Budget, *, is_over: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Make one call, without retries.

        ``is_over`` says that no further HTTP request is to be sent. Where the budget does not allow
        the next one, the outcome's fault is of the kind ``budget``.

        Raises
        ------
        ReplayError
            While a recording is replayed, in which nothing is sent.
        StoppedError
            When ``is_over`` held before an HTTP request.
        """
        recording.refuse_calls(str(request))
        answer: dict[str, Any] | None = None
        fault = None
        call = _UnderWay(self, request, budget, is_over)
        try:
            with call.active():
                answer = request.read(request.call())
                request.check(answer)
        except Exception as error:
            # Adapters wrap whatever is raised within them.
            if ended := cause_of_type(error, (*ENDINGS, StoppedError)):
                raise ended from None
            if spent := cause_of_type(error, BudgetError):
                return Outcome(None, Fault("budget", str(spent)), call.usage)
            fault = classify(error)
            sent = (*request.credentials, *call.credentials)
            fault = replace(fault, message=redact(fault.message, sent)[:2000])
        return Outcome(None if fault else answer, fault, call.usage)

    def post(
        self, endpoint: str, headers: Mapping[str, str], payload: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """POST a chat request and return the JSON answer.

        Raises
        ------
        HTTPStatusError
            For a status from 400; 502 for an answer that is no JSON.
        requests.RequestException
            Where there was no answer.
        """
        if endpoint not in self._proxies:
            self._proxies[endpoint] = dict(requests.utils.get_environ_proxies(endpoint))
        response = self._session.post(
            endpoint,
            headers={"Content-Type": "application/json", **headers},
            json=payload,
            timeout=(min(CONNECT_SECONDS, seconds), seconds),
            proxies=self._proxies[endpoint],
        )
        if response.status_code >= 400:
            wait = seconds_to_wait(response.headers.get("Retry-After"))
            raise HTTPStatusError(response.status_code, _said(response), wait)
        try:
            answer: dict[str, Any] = response.json()
        except requests.exceptions.JSONDecodeError:
            raise HTTPStatusError(
                502, f"the endpoint did not answer in JSON but with {response.text[:200]!r}"
            ) from None
        return answer

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _said(response: requests.Response) -> str:
    """The provider's own message in an error answer."""
    try:
        error = response.json().get("error")
    except (ValueError, AttributeError):
        error = None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or response.text[:2000] or f"HTTP {response.status_code}")


class _UnderWay:
    """A call under way, whose HTTP requests are counted and paid for here (a `compat.Sender`)."""

    def __init__(
        self, client: Client, request: Request, budget: Budget, is_over: Callable[[], bool]
    ) -> None:
        self.client, self.request, self.budget, self.is_over = client, request, budget, is_over
        self.usage = Usage()
        self.credentials: list[str] = []
        self._unmetered: Reservation | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the HTTP requests of the current thread pass here."""
        if not self.request.metered:
            if self.is_over():
                raise StoppedError
            self._unmetered = self.budget.reserve(self.request.model)
        failed = True
        token = _under_way.set(self)
        try:
            with intercepted(self):
                yield
            failed = False
        finally:
            _under_way.reset(token)
            if self._unmetered is not None:
                self.budget.settle(self._unmetered, failed=failed)
                self.usage += Usage(1)

    def post(
        self, endpoint: str, headers: Mapping[str, str], payload: dict[str, Any]
    ) -> dict[str, Any]:
        """POST one chat request; its own ``timeout``, in seconds, is not sent."""
        seconds = payload.get("timeout") or os.environ.get(TIMEOUT_VARIABLE) or ANSWER_SECONDS
        payload = {name: value for name, value in payload.items() if name != "timeout"}
        for name, value in headers.items():
            if name.lower() not in ("content-type", "accept", "user-agent"):
                self.credentials += [value, value.split(" ")[-1]]
        return self.ask(
            payload, lambda: self.client.post(endpoint, headers, payload, float(seconds))
        )

    def ask(self, payload: Mapping[str, Any], send: Callable[[], T]) -> T:
        """Reserve for one HTTP request, let ``send`` make it, and settle what it used."""
        if self.is_over():
            raise StoppedError
        if self._unmetered is not None:
            self.budget.refund(self._unmetered)
            self._unmetered = None
        reserved = self.budget.reserve(self.request.model, payload, self.is_over)
        try:
            answer = send()
        except BaseException as error:
            # What the provider refused has used nothing; what got lost on its way counts in full.
            used = (0, 0) if _was_refused(error) else (None, None)
            self.budget.settle(reserved, *used, failed=True)
            self.usage += Usage(1)
            raise
        read, written = tokens_used(answer)
        self.budget.settle(reserved, read, written)
        paid = None if read is None or written is None else cost(self.request.model, read, written)
        self.usage += Usage(1, read, written, paid)
        return answer


_under_way: ContextVar[_UnderWay | None] = ContextVar("workbench_call", default=None)


def ask(payload: Mapping[str, Any], send: Callable[[], T]) -> T:
    """Send one request of the call that is under way by ``send``: counted, and within its budget.

    For calls that are no judge's. Outside of `Client.send` it is just sent.
    """
    under_way = _under_way.get()
    return send() if under_way is None else under_way.ask(payload, send)


_LOST: Final = (408, 504)
"""Status of requests that a provider may have worked on before they were given up."""


def _was_refused(error: BaseException) -> bool:
    fault = classify(error)
    if fault.kind == "unreachable":
        return True
    status = getattr(error, "status_code", None) or getattr(error, "status", None)
    return isinstance(status, int) and status >= 400 and status not in _LOST
