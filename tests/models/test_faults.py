"""What a failed call means: wait, try again, leave the item, or give up."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
from loopback import LOST, Loopback
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.adapters.utils import ChatCompletionError

from workbench.errors import UnreachableModelError
from workbench.models.faults import (
    LONGEST_WAIT,
    cause_of_type,
    classify,
    seconds_to_wait,
    was_refused,
)


def wrapped(inner: BaseException) -> MlflowException:
    """The error as MLflow's adapters hand it on."""
    outer = MlflowException(f"Failed to invoke judge model: {inner}")
    outer.__cause__ = inner
    return outer


def refused(status: int, message: str = "no", wait: float | None = None) -> MlflowException:
    error = ChatCompletionError(status, message)
    error.retry_after = wait
    return wrapped(error)


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (400, "request"),
        (401, "credential"),
        (403, "credential"),
        (404, "refused"),
        (402, "refused"),
        (405, "refused"),
        (407, "credential"),
        (408, "timeout"),
        (409, "transient"),
        (413, "request"),
        (422, "request"),
        (429, "rate_limit"),
        (500, "transient"),
        (502, "transient"),
        (504, "timeout"),
        (503, "transient"),
        (529, "transient"),
    ],
)
def test_the_status_decides(status: int, fault: str) -> None:
    """Each status has its fault, however deep in the chain it lies and whatever was said."""
    failure = classify(wrapped(refused(status, "connection unauthorized api_key")))
    assert failure.kind == fault
    assert "unauthorized" in failure.message


def test_a_wait_that_is_asked_for_is_kept() -> None:
    """Retry-After counts for 429 and 503; one that is too long is a refusal."""
    assert classify(refused(429, wait=7.5)).retry_after == 7.5
    assert (classify(refused(503, wait=2.0)).kind, classify(refused(503)).kind) == (
        "rate_limit",
        "transient",
    )
    too_long = classify(refused(429, wait=LONGEST_WAIT + 1))
    assert (too_long.kind, too_long.permanent) == ("refused", True)
    lost = classify(refused(500, wait=LONGEST_WAIT + 1))
    assert (lost.kind, lost.retry_after) == ("transient", None)


def test_a_spent_quota_is_no_rate_limit() -> None:
    """429 for an account without credit would never pass, and 400 is not for what was sent."""
    assert classify(refused(400, "Your credit balance is too low to go on")).kind == "refused"
    assert classify(refused(400, "Billing hard limit has been reached")).kind == "refused"
    assert classify(refused(429, "You exceeded your current quota")).kind == "refused"
    gemini = "You exceeded your current quota, please check your plan. Please retry in 34.07s."
    fault = classify(refused(429, gemini))
    assert fault.kind == "rate_limit"
    assert classify(refused(400, "API key not valid. Please pass one")).kind == "credential"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("0", 0.0), ("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("nan", None), ("soon", None), ("", None)],
)
def test_retry_after_in_seconds(given: str, seconds: float | None) -> None:
    """A number of seconds, never negative; what is none is as if it were absent."""
    assert seconds_to_wait(given) == seconds


def test_retry_after_as_a_date() -> None:
    """A date counts from now, and one that has passed is no wait."""
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert seconds_to_wait(later) == pytest.approx(30, abs=2)
    assert seconds_to_wait(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0.0


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/v1", "http://[::bad/", "nonsense", "ftp://127.0.0.1/"],
)
def test_an_address_that_cannot_be_reached(url: str) -> None:
    """A port where nothing listens and a URL that is none are not tried again."""
    with pytest.raises(requests.RequestException) as caught:
        requests.post(url, json={}, timeout=5)
    assert classify(wrapped(caught.value)).kind == "unreachable"


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError("('Connection aborted.', RemoteDisconnected('closed'))"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_a_connection_that_broke_is_tried_again(error: Exception) -> None:
    """What broke once may hold the next time."""
    assert classify(wrapped(error)).kind == "transient"


@pytest.mark.parametrize(
    "error",
    [
        requests.ReadTimeout("read timed out"),
        TimeoutError(),
    ],
)
def test_a_timeout_is_told_apart(error: Exception) -> None:
    """It is repeated less often than what broke."""
    assert classify(wrapped(error)).kind == "timeout"


def test_a_host_that_takes_no_connection_is_out_of_reach() -> None:
    """Told as an address: a longer timeout would change nothing."""
    inner = requests.ConnectTimeout("connection to host timed out")
    inner.__cause__ = TimeoutError("timed out")  # of the socket
    fault = classify(wrapped(inner))
    assert (fault.kind, fault.error) == ("unreachable", UnreachableModelError)
    assert was_refused(requests.ConnectTimeout("connection to host timed out"))


def test_a_missing_key_is_a_matter_of_credentials() -> None:
    """MLflow finds it out before it sends anything."""
    error = MlflowException("OPENAI_API_KEY environment variable must be set to use openai.")
    assert classify(error).kind == "credential"


@pytest.mark.parametrize(
    "text",
    ["the api key is in the docs", "connection refused, says the log", "401 unauthorized"],
)
def test_what_a_model_says_is_no_fault_of_the_provider(text: str) -> None:
    """An unreadable answer about keys and connections is an unreadable answer."""
    error = MlflowException(f"Failed to parse response from judge model. Response: {text}")
    assert classify(error).kind == "answer"


def test_a_bare_error_is_told_with_its_type() -> None:
    """KeyError('result') alone would read as 'result'."""
    failure = classify(KeyError("result"))
    assert (failure.kind, failure.message) == ("answer", "unusable answer (KeyError: 'result')")


def test_litellm_gives_500_to_what_never_left() -> None:
    """Its own errors carry a status too; their text tells a dead endpoint apart."""
    from litellm.exceptions import APIConnectionError, InternalServerError, RateLimitError

    def made(kind: Any, message: str) -> str:
        return classify(wrapped(kind(message, llm_provider="x", model="m"))).kind

    assert made(APIConnectionError, "Connection error.") == "unreachable"
    assert made(InternalServerError, "overloaded") == "transient"
    assert made(RateLimitError, "slow down") == "rate_limit"


def test_a_connection_that_is_broken_off_is_tried_again(loopback: Callable[..., Loopback]) -> None:
    """Though litellm calls it, as it calls a dead endpoint, an error of the connection."""
    import litellm

    server = loopback(script=f"{LOST}x1")
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(litellm.InternalServerError, match="Connection error") as caught:
        litellm.completion("openai/any", messages, base_url=server.url, max_retries=0)
    assert classify(caught.value).kind == "transient"


def test_the_cause_is_found_by_type() -> None:
    """However often an adapter wrapped it."""
    inner = json.JSONDecodeError("no", "doc", 0)
    assert cause_of_type(wrapped(wrapped(inner)), ValueError) is inner
    assert cause_of_type(wrapped(inner), KeyError) is None
