"""What went wrong with a model call, and whether to wait, to try again, or to stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from socket import gaierror
from time import time
from typing import Any, Final, Literal

import requests
from requests.exceptions import InvalidHeader, InvalidSchema, InvalidURL, MissingSchema, SSLError

from workbench.errors import CredentialError, ModelError, UnreachableModelError
from workbench.models.answers import AnswerError

LONGEST_WAIT: Final = 600.0  # seconds; a provider that asks for more has, for this run, refused


class StoppedError(Exception):
    """The run has ended before this request was made."""


Kind = Literal[
    "credential",  # a key or header is missing or was refused
    "unreachable",  # nothing answers at the endpoint
    "refused",  # no such model, quota used up: no other call will fare better
    "rate_limit",  # slow down, then try again
    "transient",  # try again
    "timeout",  # no answer in time: try again once
    "request",  # the provider does not take this very request
    "answer",  # the model answered, but not usably
    "budget",  # the budget did not allow the next request
]


@dataclass(frozen=True)
class Fault:
    """A failed call, in the provider's words; ``retry_after`` is in seconds."""

    kind: Kind
    message: str
    retry_after: float | None = None
    status: int | None = None  # of HTTP; None where nothing was answered

    @property
    def recorded(self) -> Fault:
        """What recordings hold of it: messages about a connection name the server's address."""
        lost = self.kind == "unreachable" or (self.kind in ATTEMPTS and self.status is None)
        return Fault(self.kind, "There was no answer" if lost else self.message)

    @property
    def permanent(self) -> bool:
        """Whether no other call of the run can be expected to succeed."""
        return self.kind in ("credential", "unreachable", "refused")

    @property
    def error(self) -> type[ModelError]:
        """The exception that a run ends with for its sake."""
        own = {"unreachable": UnreachableModelError, "credential": CredentialError}
        return own.get(self.kind, ModelError)


ADVICE: Final = {
    "credential": "Check the key, which providers read from the environment (for openai:/ models "
    "OPENAI_API_KEY; a local server that asks for none takes any value).",
    "unreachable": "Check that the server runs and that base_url names it.",
    "refused": "Check the model's name, the endpoint and the quota.",
    "rate_limit": "Run again later, or ask for a higher rate limit.",
    "timeout": "Allow a longer timeout among inference_params, or lower the concurrency.",
    "answer": "Check that the model can follow the instructions, that its type fits, and that "
    "max_tokens does not cut its answers.",
}
"""What to do about calls of which none can be expected to succeed, by kind of fault."""

# Attempts at one question, by the kind of fault; any other is not tried again.
ATTEMPTS: Final = {"rate_limit": 12, "transient": 4, "timeout": 2}

# In a row, each after all its attempts, or unusable answers where there was no other.
FAILURES_TO_STOP: Final = 10

_SERVER: Final = range(500, 600)
_NO_CREDIT: Final = ("your current quota", "credit balance is too low", "billing hard limit")
_PER_MINUTE: Final = ("please retry in ", "retrydelay")  # Gemini's, which also names the plan

# Statuses, words of which the message must have one, kind. The first that fits counts. litellm
# gives 500 to calls that never reached a server.
_BY_STATUS: Final[tuple[tuple[Any, tuple[str, ...], Kind], ...]] = (
    ((429,), _PER_MINUTE, "rate_limit"),
    ((400, 429), _NO_CREDIT, "refused"),
    ((400,), ("api key not valid", "api_key_invalid"), "credential"),  # Gemini's
    ((429,), (), "rate_limit"),
    ((401, 403, 407), (), "credential"),
    ((402, 404, 405), (), "refused"),
    ((408, 504), (), "timeout"),
    (_SERVER, ("connection refused", "cannot connect", "connection error"), "unreachable"),
    ((409, 425, *_SERVER), (), "transient"),
)

_NOWHERE: Final = (ConnectionRefusedError, gaierror, InvalidSchema, InvalidURL, MissingSchema)

_NOT_CONNECTED: Final = ("establish a new connection", "failed to resolve", "unable to connect to")

_BROKEN_OFF: Final = ("RemoteProtocolError", "ReadError")  # httpx', of servers that were reached

_NO_HEADER: Final = (
    "the key or another header cannot be sent, since it holds a line break, a space at its "
    "beginning, or a character such as a typographic quote"
)

_NO_KEY: Final = ("environment variable must be set", "api_key", "api key")


def classify(error: BaseException) -> Fault:
    """Return what the exception of a model call means; the innermost of its causes decides."""
    message = str(error).strip() or type(error).__name__
    for link in causes(error):
        if isinstance(link, AnswerError):
            return Fault("answer", str(link))
        if isinstance(link, InvalidHeader):  # whose message quotes it
            return Fault("credential", _NO_HEADER)
        if "Timeout" in type(link).__name__:  # Python's, requests', urllib3's, httpx', dspy's
            names = [type(one).__name__ for one in causes(error)]
            is_connected = not any(name.startswith("ConnectTimeout") for name in names)
            return Fault("timeout" if is_connected else "unreachable", message)
        if type(link).__name__ in _BROKEN_OFF:
            return Fault("transient", message)
        if (status := _status(link)) is not None:
            return _of_status(status, message, _retry_after(link))
        if isinstance(link, requests.RequestException | ConnectionError | gaierror):
            nowhere = isinstance(link, (*_NOWHERE, SSLError)) or _has(str(link), _NOT_CONNECTED)
            return Fault("unreachable" if nowhere else "transient", message)
    # What follows these words of MLflow's is the model's own text.
    if _has(message, _NO_KEY) and not message.lower().startswith("failed to parse response"):
        return Fault("credential", message)
    if type(error).__module__.split(".")[0] != "mlflow":
        # A bare KeyError or TypeError says what went wrong only together with its type.
        message = f"unusable answer ({type(error).__name__}: {message})"
    return Fault("answer", message)


def _status(error: BaseException) -> int | None:
    """The HTTP status: ``status_code`` is litellm's name for it, ``status`` is dspy's."""
    status = getattr(error, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that led to ``error`` and itself, innermost first."""
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        current = current.__cause__ or current.__context__
    return reversed(links)


def cause_of_type(error: BaseException, kind: Any) -> BaseException | None:
    """The exception of the given type or types among those that led to ``error``, if any."""
    return next((link for link in causes(error) if isinstance(link, kind)), None)


def _has(text: str, words: tuple[str, ...]) -> bool:
    """Whether a text has one of the words, or none are asked for."""
    return not words or any(word in text.lower() for word in words)


def _of_status(status: int, message: str, wait: float | None) -> Fault:
    if status == 503 and wait is not None:
        status = 429
    fits = (k for those, words, k in _BY_STATUS if status in those and _has(message, words))
    kind: Kind = next(fits, "request")
    if wait is not None and wait > LONGEST_WAIT:
        kind, wait = "refused" if kind == "rate_limit" else kind, None
    return Fault(kind, message, wait, status)


def _retry_after(error: BaseException) -> float | None:
    wait: float | None = getattr(error, "retry_after", None)
    headers = getattr(getattr(error, "response", None), "headers", None)
    return seconds_to_wait(headers.get("retry-after")) if wait is None and headers else wait


def seconds_to_wait(retry_after: Any) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or a date); None without one."""
    try:
        seconds = float(retry_after)
    except (TypeError, ValueError):
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # nan is no time


def was_refused(error: BaseException) -> bool:
    """Whether a provider can't have worked on a request, as on one given up after 408 or 504."""
    fault = classify(error)
    answered = fault.status is not None and fault.status not in (408, 504)
    return answered or fault.kind == "unreachable"
