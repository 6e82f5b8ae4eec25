"""How a judge's request travels while the workbench calls it.

MLflow's client opens a connection a call, sleeps through rate limits on its own, up to ten
times for minutes, and builds the same answer schema anew each time. Called by the workbench,
judges share pooled connections, every request is counted before it is sent, and every failure
comes back at once with the status and ``Retry-After`` of the provider, so that
`workbench.calls` can decide for all calls together what to do. Nothing changes for judges
that are called in any other way.

MLflow publishes none of the functions that are replaced for this. Where a version of MLflow does
not have them, its own client is used, and a warning says so.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import requests
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from pydantic import PrivateAttr

from workbench.compat import options
from workbench.models.faults import seconds_to_wait
from workbench.models.recording import refuse_calls

CONNECT_SECONDS = 10.0

ANSWER_SECONDS = 300.0


_ADAPTERS = "mlflow.genai.judges.adapters"


def _seam(module: str, name: str) -> Any:
    """What MLflow calls ``name`` there; None in a version that does not have it."""
    try:
        return getattr(importlib.import_module(f"{_ADAPTERS}.{module}"), name, None)
    except ImportError:
        return None


class Transport:
    """Pooled connections for up to ``concurrency`` simultaneous calls."""

    def __init__(self, concurrency: int) -> None:
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
            For any status from 400, with ``retry_after`` in seconds where the provider said so;
            502 for an answer that is no JSON.
        requests.RequestException
            Where there was no answer.
        """
        if endpoint not in self._proxies:
            self._proxies[endpoint] = dict(requests.utils.get_environ_proxies(endpoint))
        response = self._session.post(
            endpoint,
            headers={"Content-Type": "application/json", **headers},
            json=payload,
            timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            proxies=self._proxies[endpoint],
        )
        if response.status_code >= 400:
            parse, is_too_long = (
                _seam("utils", name) for name in ("_safe_parse_error", "is_context_window_error")
            )
            said = parse(response) if parse else response.text[:2000]
            message = str(said or f"HTTP {response.status_code}")
            error = _seam("utils", "ChatCompletionError")(
                response.status_code,
                message,
                is_context_window_error=response.status_code == 400
                and bool(is_too_long and is_too_long(message)),
            )
            error.retry_after = seconds_to_wait(response.headers.get("Retry-After"))
            raise error
        try:
            return response.json()
        except requests.exceptions.JSONDecodeError:
            raise _seam("utils", "ChatCompletionError")(
                502, f"the endpoint did not answer in JSON but with {response.text[:200]!r}"
            ) from None

    def close(self) -> None:
        self._session.close()

    @contextmanager
    def carrying(
        self, before_request: Callable[[], None], measure: Measure | None = None
    ) -> Iterator[None]:
        """Within this context, judge calls of the current thread travel by this transport.

        ``before_request`` is called before each request to a model, of which one judge call
        may make several (tools, a provider that takes no answer schema), and may raise.
        ``measure`` is given what is sent and is told what was used.
        """
        token = _current.set((self, before_request, measure or _unmeasured))
        try:
            yield
        finally:
            _current.reset(token)


Measure = Callable[[Mapping[str, Any]], AbstractContextManager[Callable[[Any], None]]]
"""Called with a request; within its context, which may raise, the request is made.

The context gives a function that takes what the provider answered.
"""


@contextmanager
def _unmeasured(_: Mapping[str, Any]) -> Iterator[Callable[[Any], None]]:
    yield lambda _: None


def _as_sent(given: Mapping[str, Any]) -> dict[str, Any]:
    """The request that litellm is given, in the provider's terms."""
    sent = {key: given.get(key) for key in ("messages", "tools")}
    if given.get("include_response_format"):
        sent["response_format"] = given.get("response_format")
    return sent | dict(given.get("inference_params") or {})


_current: ContextVar[tuple[Transport, Callable[[], None], Measure] | None] = ContextVar(
    "workbench_transport", default=None
)


def is_carrying() -> bool:
    """Whether the current thread's judge calls travel by a transport of the workbench."""
    return _current.get() is not None


class PreparedJudge(InstructionsJudge):
    """A judge that builds its answer schema once rather than at every call."""

    _schema: Any = PrivateAttr(default=None)

    def _create_response_format_model(self) -> Any:
        return self._schema or super()._create_response_format_model()


_MAKE_SCHEMA = "_create_response_format_model"


def prepared(judge: Any) -> Any:
    """The judge in the form in which it is cheapest to call many times."""
    if type(judge) is not InstructionsJudge or not hasattr(judge, _MAKE_SCHEMA):
        return judge
    fast = PreparedJudge(**options(judge))
    fast._schema = fast._create_response_format_model()
    return fast


def _install() -> list[str]:
    """Let MLflow's adapters ask for the current transport; without one they work as ever.

    Returns what of MLflow was not found as it is known, and is left as it is.
    """
    return [*_install_gateway(), *_install_litellm()]


def _unknown(module: str, name: str, parameters: set[str]) -> bool:
    function = _seam(module, name)
    return not callable(function) or not parameters <= set(inspect.signature(function).parameters)


def _install_gateway() -> list[str]:
    wanted = {
        ("gateway_adapter", "send_chat_request"): {"endpoint", "headers", "payload", "num_retries"},
        ("utils", "ChatCompletionError"): {"is_context_window_error"},
    }
    missing = [f"{m}.{name}" for (m, name), needed in wanted.items() if _unknown(m, name, needed)]
    if missing:
        return missing
    gateway_adapter: Any = importlib.import_module(f"{_ADAPTERS}.gateway_adapter")
    send = gateway_adapter.send_chat_request
    order = inspect.signature(send)

    @functools.wraps(send)
    def send_chat_request(*args: Any, **kwargs: Any) -> Any:
        current = _current.get()
        if current is None:
            refuse_calls("A judge that was called directly")
            return send(*args, **kwargs)
        given = order.bind(*args, **kwargs).arguments
        transport, before_request, measure = current
        before_request()
        with measure(given["payload"]) as used:
            answer = transport.post(given["endpoint"], given["headers"], given["payload"])
            used(answer)
        return answer

    gateway_adapter.send_chat_request = send_chat_request

    to_format = _seam("gateway_adapter", "pydantic_to_response_format")
    if to_format is None:  # only time is lost
        return []
    stored_format = functools.lru_cache(maxsize=64)(to_format)

    @functools.wraps(to_format)
    def response_format(cls: Any) -> Any:
        if _current.get() is None:
            return to_format(cls)
        # Providers' adapters may change what they are given.
        return copy.deepcopy(stored_format(cls))

    gateway_adapter.pydantic_to_response_format = response_format
    return []


def _install_litellm() -> list[str]:
    if _unknown("litellm_adapter", "_invoke_litellm", {"num_retries"}):
        return ["litellm_adapter._invoke_litellm"]
    litellm_adapter: Any = importlib.import_module(f"{_ADAPTERS}.litellm_adapter")
    ask = litellm_adapter._invoke_litellm
    order = inspect.signature(ask)

    @functools.wraps(ask)
    def invoke_litellm(*args: Any, num_retries: int, **kwargs: Any) -> Any:
        current = _current.get()
        if current is None:
            refuse_calls("A judge that was called directly")
            return ask(*args, num_retries=num_retries, **kwargs)
        _, before_request, measure = current
        before_request()
        sent = order.bind(*args, num_retries=0, **kwargs).arguments
        with measure(_as_sent(sent)) as used:
            answer = ask(*args, num_retries=0, **kwargs)
            used(answer)
        return answer

    litellm_adapter._invoke_litellm = invoke_litellm
    return []


MISSING = _install()
"""What this version of MLflow lacks, so that requests cannot be measured."""


if MISSING:
    warnings.warn(
        f"This version of MLflow has no {', '.join(MISSING)} as the workbench knows it, so judges "
        "are called through MLflow's own client: slower, and with retries that are neither "
        "counted nor held to a budget. Verdicts are the same.",
        stacklevel=2,
    )
