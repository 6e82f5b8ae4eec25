"""What a failed model call means: wait, try again, give up this item, or give up the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from socket import gaierror
from time import time
from typing import Any, Final, Literal, Protocol

import requests

from workbench.errors import CredentialError, ModelError, UnreachableModelError

Kind = Literal[
    "credential",
    "unreachable",
    "refused",
    "rate_limit",
    "transient",
    "timeout",
    "request",
    "answer",
    "budget",
]
"""
=============  ==============================================================================
credential     a key or header is missing or was refused
unreachable    nothing answers at the endpoint
refused        no such model, quota used up: no other call will fare better
rate_limit     slow down, then try again
transient      try again
timeout        no answer in time: try again once
request        the provider does not take this very request
answer         the model answered, but not usably
budget         the budget did not allow the next request
=============  ==============================================================================
"""

PERMANENT = frozenset({"credential", "unreachable", "refused"})
"""After these no other call of the run can be expected to succeed."""

LONGEST_WAIT = 600.0
"""Seconds; a provider that asks for more has, for this run, refused."""


class AnswerError(Exception):
    """The model answered, but not usably."""


@dataclass(frozen=True)
class Fault:
    """A failed call: its kind, the provider's message, and the seconds that it asks to wait."""

    kind: Kind
    message: str
    retry_after: float | None = None

    @property
    def permanent(self) -> bool:
        """Whether no other call of the run can be expected to succeed."""
        return self.kind in PERMANENT


def classify(error: BaseException) -> Fault:
    """Return what the exception of a model call means.

    The innermost of the exceptions that led to it decides, since it knows best what happened.
    """
    message = str(error).strip() or type(error).__name__
    if isinstance(error, AnswerError):
        return Fault("answer", message)
    for link in causes(error):
        # `status_code` is litellm's name for it, `status` is dspy's.
        status = getattr(link, "status_code", None) or getattr(link, "status", None)
        if "Timeout" in type(link).__name__:  # Python's, requests', httpx', litellm's, dspy's
            return Fault("timeout", message)
        if isinstance(status, int):
            return _of_status(status, message, _retry_after(link))
        if isinstance(link, requests.RequestException | ConnectionError | gaierror):
            return Fault("unreachable" if _never_connected(link) else "transient", message)
    if _wants_key(message):
        return Fault("credential", message)
    if type(error).__module__.split(".")[0] != "mlflow":
        # A bare KeyError or TypeError says what went wrong only together with its type.
        message = f"unusable answer ({type(error).__name__}: {message})"
    return Fault("answer", message)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that led to ``error`` and itself, innermost first."""
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
    return next((link for link in causes(error) if isinstance(link, kind)), None)


def _of_status(status: int, message: str, retry_after: float | None) -> Fault:
    lower = message.lower()
    if status == 429 or (status == 503 and retry_after is not None):
        spent = "insufficient_quota" in lower or "exceeded your current quota" in lower
        too_long = retry_after is not None and retry_after > LONGEST_WAIT
        return Fault("refused" if spent or too_long else "rate_limit", message, retry_after)
    if status in (401, 403, 407):
        return Fault("credential", message)
    if status in (402, 404, 405):
        return Fault("refused", message)
    if status in (408, 504):
        return Fault("timeout", message)
    if status in (409, 425) or status >= 500:
        # litellm gives 500 to calls that never reached a server.
        signs = ("connection refused", "cannot connect", "connection error")
        return Fault("unreachable" if any(s in lower for s in signs) else "transient", message)
    return Fault("request", message)


def _never_connected(error: BaseException) -> bool:
    """Whether no connection came about, for a reason that will not pass by itself."""
    if isinstance(error, ConnectionRefusedError | gaierror | requests.exceptions.SSLError):
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


def _retry_after(error: BaseException) -> float | None:
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


# -- errors that end a run ------------------------------------------------------------------

_ADVICE: Final = {
    "credential": "Check the key: providers read it from the environment (for openai:/ models "
    "OPENAI_API_KEY; a local server that asks for none takes any value).",
    "unreachable": "Check that the server runs and that base_url names it.",
    "refused": "Check the model's name, the endpoint and the quota.",
    "rate_limit": "Nothing was answered for so long that the run was ended. Run again later, or "
    "ask for a higher rate limit.",
    "timeout": "Allow more time with a timeout in seconds among inference_params, limit answers "
    "with max_tokens, or lower the concurrency.",
}


class Asked(Protocol):
    """What an error says of the request that ended a run."""

    @property
    def sender(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def place(self) -> str: ...


def no_answer(request: Asked, fault: Fault, some: bool, failures: int) -> ModelError:
    """Return the error that ends a run in which no call can be expected to succeed."""
    where = f" at {request.place}" if request.place else ""
    kept = "Nothing was answered."
    if some:
        kept = "What was answered before is kept; run again for the rest."
    advice = _ADVICE.get(fault.kind, f"So did {failures} calls in a row.")
    kinds = {"credential": CredentialError, "unreachable": UnreachableModelError}
    return kinds.get(fault.kind, ModelError)(
        f"{request.sender} got no answer from {request.model}{where}: "
        f"{fault.message.rstrip('.')}. {advice} {kept}"
    )


def no_usable_answer(request: Asked, fault: Fault, count: int) -> ModelError:
    """Return the error that ends a run in which no answer was usable."""
    return ModelError(
        f"{request.sender} got no usable answer from {request.model}: none of the first {count}. "
        f"The last one: {fault.message.rstrip('.')}. Check that the model can follow the "
        "instructions, that its value type fits, and that max_tokens does not cut its answers."
    )
