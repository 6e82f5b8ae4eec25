"""What a failed model call means: wait, try again, leave this item, or give up the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Literal

import requests

Fault = Literal["credential", "unreachable", "refused", "rate", "transient", "request", "answer"]
"""
=============  ==============================================================================
credential     a key or header is missing or was refused
unreachable    nothing answers at the endpoint
refused        no such model, quota used up: no other call will fare better
rate           slow down, then try again
transient      try again
request        the provider does not take this very request
answer         the model answered, but not usably
=============  ==============================================================================
"""


PERMANENT = frozenset({"credential", "unreachable", "refused"})


LONGEST_WAIT = 600.0
"""Seconds; a provider that asks for more has, for this run, refused."""


@dataclass(frozen=True)
class Failure:
    """A failed call: its fault, the provider's message, and how many seconds it asks to wait."""

    fault: Fault
    message: str
    wait: float | None = None

    @property
    def permanent(self) -> bool:
        """Whether no other call of the run can be expected to succeed."""
        return self.fault in PERMANENT


def classify(error: BaseException) -> Failure:
    """What the exception of a judge call means.

    The innermost of the exceptions that led to it decides, since it knows best what happened.
    """
    message = str(error).strip() or type(error).__name__
    for link in _innermost_first(error):
        # litellm's name for it, and dspy's.
        status = getattr(link, "status_code", None) or getattr(link, "status", None)
        if isinstance(status, int):
            return _of_status(status, message, _wait_of(link))
        if isinstance(link, (requests.RequestException, ConnectionError, TimeoutError)):
            fault: Fault = "unreachable" if _never_connected(link) else "transient"
            return Failure(fault, message)
    if _wants_key(message):
        return Failure("credential", message)
    if type(error).__module__.split(".")[0] != "mlflow":
        # A bare KeyError or TypeError says what went wrong only together with its type.
        message = f"unusable answer ({type(error).__name__}: {message})"
    return Failure("answer", message)


def _innermost_first(error: BaseException) -> Iterator[BaseException]:
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        current = current.__cause__ or current.__context__
    return reversed(links)


def cause_of_type(
    error: BaseException, kind: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """The exception of the given type among those that led to ``error``; None without one."""
    return next((link for link in _innermost_first(error) if isinstance(link, kind)), None)


def _of_status(status: int, message: str, wait: float | None) -> Failure:
    lower = message.lower()
    if status == 429 or (status == 503 and wait is not None):
        spent = "insufficient_quota" in lower or "exceeded your current quota" in lower
        too_long = wait is not None and wait > LONGEST_WAIT
        return Failure("refused" if spent or too_long else "rate", message, wait)
    if status in (401, 403, 407):
        return Failure("credential", message)
    if status in (404, 405):
        return Failure("refused", message)
    if status in (408, 409, 425) or status >= 500:
        # litellm gives 500 to calls that never reached a server.
        signs = ("connection refused", "cannot connect", "connection error")
        return Failure("unreachable" if any(s in lower for s in signs) else "transient", message)
    return Failure("request", message)


def _never_connected(error: BaseException) -> bool:
    """Whether no connection came about, for a reason that will not pass by itself."""
    if isinstance(error, (ConnectionRefusedError, requests.exceptions.SSLError)):
        return True
    if isinstance(error, requests.RequestException) and isinstance(error, ValueError):
        return not isinstance(error, requests.exceptions.InvalidJSONError)  # bad URLs
    signs = ("failed to establish a new connection", "failed to resolve", "unable to connect to")
    return any(sign in str(error).lower() for sign in signs)


def _wants_key(message: str) -> bool:
    lower = message.lower()
    if lower.startswith("failed to parse response"):
        return False  # what follows is the model's own text
    return any(s in lower for s in ("environment variable must be set", "api_key", "api key"))


def _wait_of(error: BaseException) -> float | None:
    wait = getattr(error, "retry_after", None)
    if wait is None:
        headers = getattr(getattr(error, "response", None), "headers", None)
        wait = seconds_to_wait(headers.get("retry-after")) if headers is not None else None
    return wait


def seconds_to_wait(retry_after: Any) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or a date); None without one.

    >>> seconds_to_wait("1.5"), seconds_to_wait("soon"), seconds_to_wait(None)
    (1.5, None, None)
    """
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # nan is no time
