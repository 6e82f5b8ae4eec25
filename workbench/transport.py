"""How a judge's request travels while the workbench calls it.

MLflow's client opens a connection a call, sleeps through rate limits on its own, up to ten
times for minutes, and builds the same answer schema anew each time. Called by the workbench,
judges share pooled connections, and every failure comes back at once with the status and
``Retry-After`` of the provider, so that `workbench.assessment` can decide for all calls
together what to do. Nothing changes for judges that are called in any other way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Literal

import requests
from mlflow.genai.judges.adapters import gateway_adapter, litellm_adapter
from mlflow.genai.judges.adapters.utils import (
    ChatCompletionError,
    _safe_parse_error,
    is_context_window_error,
)
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from pydantic import PrivateAttr

from workbench.judge import options

Fault = Literal["permanent", "rate", "transient", "answer", "request"]
"""permanent: no call will succeed; rate: slow down; transient: try again; answer: the model
answered, but not usably; request: the provider refuses this very item."""


class Transport:
    """Pooled connections for up to ``concurrency`` simultaneous calls."""

    def __init__(self, concurrency: int, timeout: float = 300.0) -> None:
        self.timeout = timeout
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(
            pool_connections=4, pool_maxsize=concurrency, pool_block=False
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

    def post(self, endpoint: str, headers: dict[str, str], payload: dict[str, Any]) -> Any:
        """POST a chat request.

        Raises
        ------
        ChatCompletionError
            For any status from 400, with ``retry_after`` in seconds where the provider said so.
        requests.RequestException
            Where there was no answer.
        """
        if endpoint not in self._proxies:
            self._proxies[endpoint] = dict(requests.utils.get_environ_proxies(endpoint))
        response = self._session.post(
            endpoint,
            headers={"Content-Type": "application/json", **headers},
            json=payload,
            timeout=self.timeout,
            proxies=self._proxies[endpoint],
        )
        if response.status_code >= 400:
            message = _safe_parse_error(response) or f"HTTP {response.status_code}"
            error = ChatCompletionError(
                response.status_code,
                message,
                is_context_window_error=response.status_code == 400
                and is_context_window_error(message),
            )
            error.retry_after = _retry_after(response.headers.get("Retry-After"))
            raise error
        return response.json()

    def close(self) -> None:
        self._session.close()

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """Within this context, judge calls of the current thread travel by this transport."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Transport | None] = ContextVar("workbench_transport", default=None)


class PreparedJudge(InstructionsJudge):
    """A judge that builds its answer schema once rather than at every call."""

    _schema: Any = PrivateAttr(default=None)

    def _create_response_format_model(self) -> Any:
        return self._schema or super()._create_response_format_model()


def prepared(judge: Any) -> Any:
    """The judge in the form in which it is cheapest to call many times."""
    if type(judge) is not InstructionsJudge:
        return judge
    fast = PreparedJudge(**options(judge))
    fast._schema = fast._create_response_format_model()
    return fast


def _install() -> None:
    """Let MLflow's adapters ask for the current transport; without one they work as ever."""
    send, policy = gateway_adapter.send_chat_request, litellm_adapter._get_litellm_retry_policy
    to_format = gateway_adapter.pydantic_to_response_format

    @functools.wraps(send)
    def send_chat_request(
        endpoint: str, headers: dict[str, str], payload: dict[str, Any], num_retries: int
    ) -> Any:
        transport = _current.get()
        if transport is None:
            return send(endpoint, headers, payload, num_retries)
        return transport.post(endpoint, headers, payload)

    @functools.wraps(policy)
    def retry_policy(num_retries: int) -> Any:
        return policy(num_retries if _current.get() is None else 0)

    gateway_adapter.send_chat_request = send_chat_request
    gateway_adapter.pydantic_to_response_format = functools.lru_cache(maxsize=64)(to_format)
    litellm_adapter._get_litellm_retry_policy = retry_policy


_install()


# -- what a failure means -------------------------------------------------------------------


def classify(error: BaseException) -> tuple[Fault, float | None, str]:
    """What a failed judge call means: (fault, seconds to wait if the provider said, message)."""
    chain = _chain(error)
    message = str(error).strip() or type(error).__name__
    for link in chain:
        status = getattr(link, "status_code", None)
        if isinstance(status, int):
            wait = getattr(link, "retry_after", None) or _header_wait(link)
            return _fault_of_status(status, message), wait, message
        if isinstance(link, (requests.ConnectionError, ConnectionRefusedError)) and _refused(link):
            return "permanent", None, message
        if isinstance(link, (requests.RequestException, ConnectionError, TimeoutError)):
            return "transient", None, message
    lower = message.lower()
    if "environment variable must be set" in lower or "api_key" in lower or "api key" in lower:
        return "permanent", None, message
    if "cannot connect" in lower or "connection error" in lower or "connection refused" in lower:
        return "permanent", None, message
    return "answer", None, message


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        current = current.__cause__ or current.__context__
    # The innermost link knows best what happened.
    return links[::-1]


def _fault_of_status(status: int, message: str) -> Fault:
    lower = message.lower()
    if status == 429:
        return "permanent" if "insufficient_quota" in lower else "rate"
    if status in (401, 403, 404, 405, 407):
        return "permanent"
    if status in (408, 409, 425) or status >= 500:
        refused = "connection refused" in lower or "cannot connect" in lower
        return "permanent" if refused or "connection error" in lower else "transient"
    return "request"


def _refused(error: BaseException) -> bool:
    text = str(error)
    signs = ("Connection refused", "Name or service not known", "nodename nor servname")
    return any(s in text for s in (*signs, "getaddrinfo failed", "NameResolutionError"))


def _header_wait(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return _retry_after(headers.get("retry-after")) if headers is not None else None


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number or a date); None without one."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return None
