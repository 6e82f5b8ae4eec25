"""A judge on a server that answers as models do in the wild: read, waited for, or told in words."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest

import workbench
from workbench.judging.assessment import Assessed

REPLIES: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "shared" / "inputs" / "model_replies.json").read_text()
)
GOOD = {"content": '{"result": "good", "rationale": "because"}'}


class Server:
    """Answers each request by the next of ``replies``, and the last one from then on."""

    def __init__(self, *replies: dict[str, Any]) -> None:
        self.payloads: list[dict[str, Any]] = []
        asked, lock = self.payloads, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    asked.append(payload)
                    reply = replies[min(len(asked), len(replies)) - 1]
                message = {"role": "assistant", **reply}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                choice["finish_reason"] = message.pop("finish_reason", "stop")
                body = reply.get("body") or {"choices": [choice], "model": "m", "object": "chat"}
                content = json.dumps(body).encode()
                self.send_response(reply.get("status", 200))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


NUMBERS = itertools.count()


@pytest.fixture
def assess(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    servers = []

    def run(*replies: dict[str, Any], rows: int = 1, **how: Any) -> tuple[Assessed, Server]:
        server = Server(*replies)
        servers.append(server)
        judge = workbench.make_judge(
            # MLflow remembers which model has refused a schema.
            "quality", "Rate {{ outputs }} to {{ inputs }}.", model=f"openai:/m{next(NUMBERS)}",
            base_url=f"  {server.url} ", feedback_value_type=Literal["good", "poor"],
        )  # fmt: skip
        table = pd.DataFrame({"q": [f"q{i}" for i in range(rows)], "a": "x"})
        imported = workbench.import_traces(table, inputs="q", outputs="a")
        return workbench.assess(judge, imported, progress=False, **how), server

    yield run
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("name", "rationale"),
    [
        ("think", "because"), ("think_no_opener", "because"), ("null_rationale", ""),
        ("list_rationale", "a\nb"), ("reasoning_only", "because"), ("emphasis", "r"),
        ("lone_surrogate", "half \ufffd here"),
    ],
)  # fmt: skip
def test_what_is_unambiguous_is_read(assess: Any, name: str, rationale: str) -> None:
    assessed, server = assess(REPLIES[name])
    (row,) = assessed.table.to_dict("records")
    assert (row["value"], row["rationale"], row["error"]) == ("good", rationale, None)
    assert len(server.payloads) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refusal", "the model refused: I cannot assist with that."),
        ("length_empty", "cut off at the limit of tokens"),
        ("content_filter", "content filter withheld the answer"),
        ("tool_call", "called a tool that was not offered: json_tool_call"),
    ],
)
def test_what_is_no_answer_is_one_failure_that_says_which(
    assess: Any, name: str, words: str
) -> None:
    assessed, server = assess(REPLIES[name])
    (failure,) = assessed.failures["error"]
    assert words in failure
    assert "Error(" not in failure
    assert len(server.payloads) == 1


def test_an_error_with_status_200_is_waited_for_or_told(assess: Any) -> None:
    assessed, _ = assess(REPLIES["rate_limit_in_200"], REPLIES["null_choices_in_200"], GOOD)
    assert assessed.table["value"].tolist() == ["good"]
    assessed, _ = assess(REPLIES["error_in_200"])
    assert "Provider returned error" in assessed.failures["error"][0]


def test_json_that_is_no_object_is_waited_for(assess: Any) -> None:
    assessed, _ = assess({"body": [1]}, GOOD)
    assert assessed.table["value"].tolist() == ["good"]


@pytest.mark.parametrize(
    "refusal",
    [
        REPLIES["response_format_422"],
        {"status": 404, "body": {"error": "No endpoints found that support response_format"}},
        {"status": 500, "body": {"error": {"message": "json_schema is not supported"}}},
    ],
)
def test_a_refused_answer_schema_is_left_out_from_then_on(
    assess: Any, refusal: dict[str, Any]
) -> None:
    assessed, server = assess(refusal, GOOD, rows=3, concurrency=1)
    assert assessed.table["value"].tolist() == ["good"] * 3
    assert sum("response_format" in payload for payload in server.payloads) == 1
    assert "response_format" not in server.payloads[-1]
