"""How requests travel: pooled, counted, with the headers given, and only for the workbench."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest
import requests
from loopback import Loopback
from mlflow.entities import Feedback
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.genai.judges.adapters import gateway_adapter, litellm_adapter
from mlflow.genai.judges.adapters.utils import ChatCompletionError
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import RelevanceToQuery

from workbench import make_judge
from workbench.compat import options
from workbench.judging.judge import fingerprint
from workbench.models.client import Transport, prepared
from workbench.models.faults import cause_of_type

Start = Callable[..., Loopback]


def judge_at(url: str, **more: Any) -> Judge:
    return make_judge(
        "quality", "Rate {{ outputs }}.", model="openai:/simulated", base_url=url, **more
    )


# -- what of MLflow this rests on -----------------------------------------------------------


def test_mlflow_still_has_the_seams() -> None:
    """The functions that are replaced exist in MLflow, are called by name, and fit.

    When this fails, MLflow has changed: look for what sends a chat request now, and let
    `workbench.transport` replace that.
    """
    original = inspect.unwrap(gateway_adapter.send_chat_request)
    assert original is not gateway_adapter.send_chat_request
    assert list(inspect.signature(original).parameters) == [
        "endpoint", "headers", "payload", "num_retries",
    ]  # fmt: skip
    users = [gateway_adapter.GatewayAdapter._invoke_and_handle_tools]
    assert all("send_chat_request(" in inspect.getsource(user) for user in users)
    assert "pydantic_to_response_format(" in inspect.getsource(gateway_adapter._build_request)

    original = inspect.unwrap(litellm_adapter._invoke_litellm)
    assert original is not litellm_adapter._invoke_litellm
    assert "num_retries" in inspect.signature(original).parameters
    loop = inspect.unwrap(litellm_adapter._invoke_litellm_and_handle_tools)
    assert "_invoke_litellm(" in inspect.getsource(loop)

    assert "self._create_response_format_model()" in inspect.getsource(InstructionsJudge.__call__)
    assert ChatCompletionError(500, "no").status_code == 500


@pytest.mark.parametrize(
    "change",
    [
        "del gateway_adapter.send_chat_request",
        "gateway_adapter.send_chat_request = lambda request: None",
        "del gateway_adapter.ChatCompletionError, utils.ChatCompletionError",
        "del gateway_adapter.pydantic_to_response_format",
        "del litellm_adapter._invoke_litellm",
        "litellm_adapter._invoke_litellm = lambda request: None",
        "sys.modules['mlflow.genai.judges.adapters.litellm_adapter'] = None",
        "del InstructionsJudge._create_response_format_model",
    ],
)
def test_an_mlflow_without_a_seam_is_told_once_and_lived_with(change: str) -> None:
    """Nothing fails at import; what is only slower is not worth a word."""
    code = (
        "import sys, warnings\n"
        "from mlflow.genai.judges.adapters import gateway_adapter, litellm_adapter, utils\n"
        "from mlflow.genai.judges.instructions_judge import InstructionsJudge\n"
        f"{change}\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import workbench.models.client, workbench.judging.assessment\n"
        "print(sum('own client' in str(w.message) for w in caught))\n"
        "judge = InstructionsJudge(name='q', instructions='Rate {{ outputs }}.', model='openai:/m')"
        "\nworkbench.models.client.prepared(judge)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    only_slower = "response_format" in change
    assert (done.returncode, done.stdout.strip()) == (0, "0" if only_slower else "1"), done.stderr


def test_without_the_seams_verdicts_come_through_mlflow_s_own_client(loopback: Start) -> None:
    """MLflow does what it does without the workbench."""
    code = (
        "import sys\n"
        "from mlflow.genai.judges.adapters import gateway_adapter\n"
        "send = gateway_adapter.send_chat_request\n"
        "def renamed(endpoint, headers, body, num_retries):\n"
        "    return send(endpoint, headers, body, num_retries)\n"
        "gateway_adapter.send_chat_request = lambda **k: renamed(body=k.pop('payload'), **k)\n"
        "from workbench.judging.runner import run\n"
        "from workbench import make_judge\n"
        "from workbench.store.traces import Example\n"
        "judge = make_judge('q', 'Rate {{ outputs }}.', model='openai:/m', base_url=sys.argv[1])\n"
        "print([v.error for v in run(judge, [Example(f't{n}', {}, n) for n in range(5)])])\n"
    )
    server = loopback()
    done = subprocess.run(
        [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[None, None, None, None, None]", done.stderr
    assert done.stderr.count("own client") == 1
    assert server.requests == 5


def test_a_prepared_judge_is_the_same_judge() -> None:
    """Every option and the fingerprint; only the schema is made once."""
    judge = make_judge(
        "quality",
        "Rate {{ outputs }}.",
        model="openai:/m",
        base_url="http://127.0.0.1:9/v1",
        feedback_value_type=Literal["good", "bad"],
        description="d",
        extra_headers={"X-A": "b"},
        inference_params={"temperature": 0.5},
        generate_rationale_first=True,
    )
    fast = prepared(judge)
    assert options(fast) == options(judge)
    assert fingerprint(fast) == fingerprint(judge)
    assert fast._create_response_format_model() is fast._create_response_format_model()
    schema = judge._create_response_format_model().model_json_schema()
    assert fast._create_response_format_model().model_json_schema() == schema


def test_other_judges_are_called_as_they_are() -> None:
    """A judge of another class may do anything when it is called."""

    judge = RelevanceToQuery(model="openai:/m")
    assert prepared(judge) is judge


# -- with the workbench and without ---------------------------------------------------------


def test_a_plain_call_is_left_alone(loopback: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the workbench MLflow sends by itself, retries included."""
    monkeypatch.setattr(Transport, "post", None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server = loopback(script="500x2")
    feedback = judge_at(server.url)(outputs="x")
    assert isinstance(feedback, Feedback)
    assert server.requests == 3


def test_within_it_a_failure_comes_back_at_once(loopback: Start) -> None:
    """One request, its status, and how long the provider asks to wait."""
    server = loopback(script="429x1", retry_after=7)
    counted: list[int] = []
    with (
        Transport(4).carrying(lambda: counted.append(1)),
        pytest.raises(MlflowException) as caught,
    ):
        judge_at(server.url)(outputs="x")
    cause = cause_of_type(caught.value, ChatCompletionError)
    assert isinstance(cause, ChatCompletionError)
    assert (cause.status_code, cause.retry_after) == (429, 7.0)
    assert (server.requests, len(counted)) == (1, 1)


def test_it_holds_for_one_thread_only(loopback: Start) -> None:
    """A call in another thread, at the same time, is none of the workbench's."""
    judge, counted = judge_at(loopback().url), []

    def work() -> None:
        assert isinstance(judge(outputs="x"), Feedback)

    with Transport(4).carrying(lambda: counted.append(1)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        judge(outputs="y")
    judge(outputs="z")
    assert len(counted) == 1


def test_what_is_raised_before_a_request_prevents_it(loopback: Start) -> None:
    """So a budget holds even within a call."""
    server = loopback()

    def refuse() -> None:
        raise LookupError("spent")

    with Transport(4).carrying(refuse), pytest.raises(MlflowException) as caught:
        judge_at(server.url)(outputs="x")
    assert isinstance(cause_of_type(caught.value, LookupError), LookupError)
    assert server.requests == 0


def test_litellm_models_are_counted_too() -> None:
    """The embedded model goes through litellm."""
    counted: list[int] = []
    judge = make_judge(
        "quality", "Rate {{ outputs }}.", model="offline:/rubric",
        feedback_value_type=Literal["good", "bad"],
    )  # fmt: skip
    with Transport(4).carrying(lambda: counted.append(1)):
        judge(outputs="x")
    assert len(counted) == 1


def test_the_schema_is_the_same_with_and_without(loopback: Start) -> None:
    """What is kept of it cannot be changed by those who get it."""
    server = loopback()
    judge = judge_at(server.url, feedback_value_type=Literal["good", "bad"])
    judge(outputs="x")
    plain = server.stats()["body"]
    fast = prepared(judge)
    with Transport(4).carrying(lambda: None):
        fast(outputs="x")
        assert server.stats()["body"] == plain
        schema = fast._create_response_format_model()
        gateway_adapter.pydantic_to_response_format(schema)["json_schema"].clear()
        fast(outputs="x")
    assert server.stats()["body"] == plain


def test_connections_are_used_again(loopback: Start) -> None:
    """Many calls, few connections."""
    server, transport = loopback(), Transport(4)
    with transport.carrying(lambda: None):
        for _ in range(5):
            judge_at(server.url)(outputs="x")
    pools = transport._session.get_adapter(server.url).poolmanager.pools
    assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118
    transport.close()


# -- what is sent and what is not -----------------------------------------------------------


def test_the_headers_given_are_sent(loopback: Start) -> None:
    """And go before the key from the environment."""
    server = loopback()
    headers = {"X-Team": "shop-7", "Authorization": "Bearer of-its-own"}
    with Transport(4).carrying(lambda: None):
        judge_at(server.url, extra_headers=headers)(outputs="x")
    sent = server.stats()["headers"]
    assert (sent["x-team"], sent["authorization"]) == ("shop-7", "Bearer of-its-own")


def test_an_answer_that_is_no_json() -> None:
    """A web page where an API was meant is told as such."""
    answer = requests.Response()
    answer.status_code, answer._content = 200, b"<html>Welcome</html>"
    transport = Transport(1)
    transport._session.post = lambda *_, **__: answer  # type: ignore[method-assign, assignment]
    with pytest.raises(ChatCompletionError, match="<html>Welcome") as caught:
        transport.post("http://127.0.0.1/v1", {}, {})
    assert caught.value.status_code == 502


def test_the_first_call_asks_nobody_else(loopback: Start) -> None:
    """MLflow would look for a list of models on the internet and wait for it."""
    code = (
        "import socket, sys\n"
        "seen, connect = [], socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda h, *a, **k: (seen.append(h), connect(h, *a, **k))[1]\n"
        "from workbench.judging.runner import run\n"
        "from workbench import make_judge\n"
        "from workbench.store.traces import Example\n"
        "judge = make_judge('q', 'Rate {{ outputs }}.', model='openai:/m', base_url=sys.argv[1])\n"
        "verdict = run(judge, [Example('t', {}, 'x')])[0]\n"
        "assert verdict.error is None, verdict\n"
        "print(*set(seen) - {'127.0.0.1'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, loopback().url], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
