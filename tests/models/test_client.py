"""One request: pooled, counted, with the headers given, and only for the workbench."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal

import pytest
from loopback import Loopback
from mlflow.genai.judges import Judge
from mlflow.genai.judges.adapters import gateway_adapter, litellm_adapter
from mlflow.genai.judges.adapters.utils import ChatCompletionError
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench import make_judge
from workbench.judging.requests import Asker
from workbench.models.budget import Budget, Usage
from workbench.models.client import Client, Outcome, Request
from workbench.store.traces import Example

Start = Callable[..., Loopback]

ITEM = Example("tr-1", {"q": "?"}, "x")


def send(judge: Judge, budget: Budget | None = None) -> Outcome:
    with closing(Client()) as client:
        return client.send(Asker(judge).request(ITEM), budget or Budget())


def judge_at(url: str, **more: Any) -> Judge:
    return make_judge(
        "quality", "Rate {{ outputs }}.", model="openai:/simulated", base_url=url, **more
    )


# -- what of MLflow this rests on -----------------------------------------------------------


def test_mlflow_still_has_the_seams() -> None:
    """The functions that are replaced exist in MLflow, are called by name, and fit.

    When this fails, MLflow has changed: look for what sends a chat request now, and let
    `workbench.compat` replace that.
    """
    assert list(inspect.signature(gateway_adapter.send_chat_request).parameters) == [
        "endpoint", "headers", "payload", "num_retries",
    ]  # fmt: skip
    users = [gateway_adapter.GatewayAdapter._invoke_and_handle_tools]
    assert all("send_chat_request(" in inspect.getsource(user) for user in users)
    assert "pydantic_to_response_format(" in inspect.getsource(gateway_adapter._build_request)
    assert "num_retries" in inspect.signature(litellm_adapter._invoke_litellm).parameters
    loop = inspect.unwrap(litellm_adapter._invoke_litellm_and_handle_tools)
    assert "_invoke_litellm(" in inspect.getsource(loop)
    assert "self._create_response_format_model()" in inspect.getsource(InstructionsJudge.__call__)
    assert ChatCompletionError(500, "no").status_code == 500


# -- with the workbench and without ---------------------------------------------------------


def test_nothing_is_replaced_but_while_something_is_asked(loopback: Start) -> None:
    """Afterwards MLflow sends by itself again."""
    before = gateway_adapter.send_chat_request, litellm_adapter._invoke_litellm
    server = loopback()
    assert send(judge_at(server.url)).fault is None
    assert (gateway_adapter.send_chat_request, litellm_adapter._invoke_litellm) == before


def test_within_it_a_failure_comes_back_at_once(loopback: Start) -> None:
    """One request, its status, and how long the provider asks to wait."""
    server = loopback(script="429x1", retry_after=7)
    budget = Budget()
    outcome = send(judge_at(server.url), budget)
    assert outcome.fault is not None
    assert (outcome.fault.kind, outcome.fault.retry_after) == ("rate_limit", 7.0)
    assert (server.requests, budget.spent, outcome.usage) == (1, 1, Usage(1, 0, 0))


def test_a_call_of_the_user_s_own_beside_it_is_left_alone(loopback: Start) -> None:
    """Another thread's judge, while one of the workbench's is asked, is not counted."""
    judge, budget = judge_at(loopback().url), Budget()

    def call() -> Any:
        thread = threading.Thread(target=lambda: judge(outputs="y"))
        thread.start()
        thread.join()
        return judge(outputs="x")

    asked = Request(None, "openai:/simulated", call, lambda given: {"value": given.value})
    with closing(Client()) as client:
        outcome = client.send(asked, budget)
    assert outcome.fault is None
    assert (outcome.usage.requests, budget.spent) == (1, 1)


def test_a_spent_budget_prevents_a_request_within_a_call(loopback: Start) -> None:
    """Also where a call makes several."""
    server = loopback()
    outcome = send(judge_at(server.url), Budget(0))
    assert outcome.fault is not None
    assert (outcome.fault.kind, outcome.usage.requests, server.requests) == ("budget", 0, 0)


def test_litellm_models_are_counted_too() -> None:
    """The embedded model goes through litellm."""
    judge = make_judge(
        "quality", "Rate {{ outputs }}.", model="offline:/rubric",
        feedback_value_type=Literal["good", "bad"],
    )  # fmt: skip
    budget = Budget()
    outcome = send(judge, budget)
    assert budget.spent == outcome.usage.requests == 1
    assert outcome.usage.cost == 0.0
    assert budget.spent_tokens == outcome.usage.tokens > 0


def test_the_schema_is_the_same_with_and_without(loopback: Start) -> None:
    """What is sent does not depend on who sends it."""
    server = loopback()
    judge = judge_at(server.url, feedback_value_type=Literal["good", "bad"])
    judge(outputs="x")
    plain = server.stats()["body"]
    for _ in range(2):
        send(judge)
        assert server.stats()["body"] == plain


def test_connections_are_used_again(loopback: Start) -> None:
    """Many calls, few connections."""
    server = loopback()
    with closing(Client(4)) as client:
        for _ in range(5):
            client.send(Asker(judge_at(server.url)).request(ITEM), Budget())
    assert server.stats()["connections"] == 1


# -- what is sent and what is not -----------------------------------------------------------


def test_the_headers_given_are_sent(loopback: Start) -> None:
    """And go before the key from the environment."""
    server = loopback()
    send(judge_at(server.url, extra_headers={"X-Team": "shop-7", "Authorization": "Bearer own"}))
    sent = server.stats()["headers"]
    assert (sent["x-team"], sent["authorization"]) == ("shop-7", "Bearer own")


def test_a_timeout_is_heeded_and_not_sent(loopback: Start) -> None:
    """Given in seconds among the inference parameters of a judge."""
    server = loopback(latency=0.4)
    late = send(judge_at(server.url, inference_params={"timeout": 0.1, "temperature": 0}))
    assert late.fault is not None
    assert late.fault.kind == "timeout"
    assert "timeout" not in server.stats()["body"]
    assert send(judge_at(server.url, inference_params={"timeout": 5})).fault is None


def test_an_answer_that_is_no_json(loopback: Start) -> None:
    """A web page where an API was meant is told as such."""
    server = loopback(page="<html>Welcome</html>")
    with (
        closing(Client()) as client,
        pytest.raises(ChatCompletionError, match="<html>Welcome") as caught,
    ):
        client.post(f"{server.url}/chat/completions", {}, {"messages": []}, 5)
    assert caught.value.status_code == 502


def test_a_key_that_was_sent_is_in_no_message(
    loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one from the environment, and those in headers; other words of the message stay."""
    server = loopback(key="sk-right-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-9876543210")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "provided")
    fault = send(judge_at(server.url)).fault
    assert fault is not None
    assert "Incorrect API key provided: ***" in fault.message


@pytest.mark.parametrize("key", ["sk-right-0123456789\n", "“sk-right-0123456789”"])
def test_a_key_that_cannot_be_sent_is_told_without_it(
    loopback: Start, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """As one that was read from a file with its line break; nothing is tried again."""
    server = loopback()
    monkeypatch.setenv("OPENAI_API_KEY", key)
    outcome = send(judge_at(server.url))
    assert outcome.fault is not None
    assert outcome.fault.kind == "credential"
    assert "holds a line break" in outcome.fault.message
    assert "0123456789" not in outcome.fault.message
    assert server.requests == 0


def test_a_key_that_a_model_repeats_is_in_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its provider's; a word that is some other program's password stays as it is."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-repeated-0123456")
    monkeypatch.setenv("GRAFANA_ADMIN_PASSWORD", "administrator")
    said = {"rationale": ["You sent sk-repeated-0123456.", "The administrator is told."]}
    request = Request("key", "openai:/m", call=lambda: said, read=lambda given: said)
    with closing(Client()) as client:
        answer = client.send(request, Budget()).answer
    assert answer == {"rationale": ["You sent ***.", "The administrator is told."]}


def test_a_short_key_in_the_address_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the library for HTTP tells the URL with its query."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    fault = send(judge_at("http://127.0.0.1:9/v1?key=abcd1234")).fault
    assert fault is not None
    assert fault.kind == "unreachable"
    assert "/v1/chat/completions?*** (" in fault.message


def test_the_first_call_asks_nobody_else(loopback: Start) -> None:
    """MLflow would look for a list of models on the internet and wait for it."""
    code = (
        "import socket, sys\n"
        "seen, connect = [], socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda h, *a, **k: (seen.append(h), connect(h, *a, **k))[1]\n"
        "from asking import run\n"
        "from workbench import make_judge\n"
        "from workbench.store.traces import Example\n"
        "judge = make_judge('q', 'Rate {{ outputs }}.', model='openai:/m', base_url=sys.argv[1])\n"
        "verdict = run(judge, [Example('t', {}, 'x')])[0]\n"
        "assert verdict.error is None, verdict\n"
        "make_judge('q', 'Rate {{ outputs }}.', model='offline:/rubric')\n"
        "print(*set(seen) - {'127.0.0.1'})\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("LITELLM_LOCAL_MODEL_COST_MAP", "MLFLOW_DISABLE_TELEMETRY"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code, loopback().url],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
