"""A simulation of an OpenAI-compatible model server, on loopback, for tests and benchmarks.

It judges nothing: a verdict follows from a hash of the request's text. What it simulates is
how a provider behaves: latency, rate limits, failures, wrong keys, unreadable answers. It runs
in a process of its own, so that it takes no time from the interpreter under test.

>>> with Loopback(latency=0.1) as server:  # doctest: +SKIP
...     judge = make_judge(..., model="openai:/any", base_url=server.url)
...     server.stats()["requests"]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ENDPOINT = "/v1/chat/completions"
UNKNOWN_MODEL = "no-such-model"
LOST = 0
"""A scripted status: the connection is broken off instead."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


# -- the client's side ----------------------------------------------------------------------


class Loopback:
    """The server as a context manager: starts the process, stops it by its id.

    Options are those of `main`, by keyword: ``Loopback(latency=0.3, key="sk-right")``.
    """

    script = Path(__file__).resolve()

    def __init__(self, **options: Any) -> None:
        command = [sys.executable, "-I", str(self.script)]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            command.append(flag if value is True else f"{flag}={value}")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: {command}")
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        """What was asked so far.

        ``requests``, ``most_at_once``, ``connections``, ``statuses`` (status -> how often),
        ``started`` (seconds since the server's start, one a request), ``headers`` and ``body`` of
        the last request.
        """
        return self._request("GET", "/stats")

    def control(self, **changes: float) -> None:
        """Change options, such as ``latency``; a `Simulation` also counts from zero again."""
        self._request("POST", "/control", changes)

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer

    @property
    def requests(self) -> int:
        """Requests to the chat endpoint so far, refused ones included."""
        return int(self.stats()["requests"])

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(timeout=10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# -- the server's side ----------------------------------------------------------------------


class Behaviour:
    """Decides what each request is answered with."""

    paths: tuple[str, ...] = (ENDPOINT,)

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.times: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.active = self.most_at_once = self.connections = 0
        self.headers: dict[str, str] = {}
        self.body: Any = None
        self.script = itertools.chain.from_iterable(
            itertools.repeat(int(status), int(times))
            for status, times in (part.split("x") for part in options.script.split(",") if part)
        )
        self.recent: list[float] = []

    def stats(self) -> dict[str, Any]:
        return {
            "requests": len(self.times),
            "most_at_once": self.most_at_once,
            "connections": self.connections,
            "statuses": dict(self.statuses),
            "started": self.times,
            "headers": self.headers,
            "body": self.body,
        }

    def control(self, changes: dict[str, Any]) -> None:
        """Change options."""
        vars(self.options).update(changes)

    def answer(
        self, path: str, headers: dict[str, str], body: Any
    ) -> tuple[int, dict[str, str], bytes]:
        self.times.append(round(time.monotonic() - self.started, 4))
        self.headers, self.body = headers, body
        number = len(self.times)
        status, message = self._status(number, headers, body)
        self.statuses[status] += 1
        more: dict[str, str] = {}
        if status in (429, 503) and self.options.retry_after is not None:
            more["Retry-After"] = str(self.options.retry_after)
        if status != 200:
            return status, more, json.dumps({"error": {"message": message}}).encode()
        if self.options.page is not None:
            return 200, more, self.options.page.encode()
        if self.options.says is not None:
            return 200, more, completion(self.options.says)
        if self._draw("junk", number) < self.options.junk_share:
            return 200, more, completion("I would rather not say.")
        if self.options.use_tools and body.get("tools") and body["messages"][-1]["role"] != "tool":
            return 200, more, _tool_call(body["tools"][0]["function"]["name"])
        if self._draw("off", number) < self.options.off_scale_share:
            return 200, more, completion(_verdict("purple"))
        return 200, more, completion(_verdict(_value(body)))

    def _status(self, number: int, headers: dict[str, str], body: Any) -> tuple[int, str]:
        options = self.options
        given = headers.get("authorization", "")
        if options.key and given != f"Bearer {options.key}":
            # As some providers do, this one repeats the key.
            return 401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}"
        if body.get("model") == UNKNOWN_MODEL:
            return 404, f"The model `{UNKNOWN_MODEL}` does not exist"
        if options.no_schema and "response_format" in body:
            return 400, "response_format is not supported by this model"
        if options.refuses:
            return 400, options.refuses
        scripted = next(self.script, 200)
        if scripted != 200:
            return scripted, f"scripted answer {scripted}"
        if options.rate:
            now = time.monotonic()
            self.recent = [at for at in self.recent if at > now - 1.0]
            if len(self.recent) >= options.rate:
                return 429, "Rate limit reached"
            self.recent.append(now)
        if self._draw("fail", number) < options.failure_share:
            return 500, "The server had an error"
        return 200, ""

    def _draw(self, what: str, number: int) -> float:
        """A number in [0, 1) that follows from the seed and the count of requests."""
        digest = hashlib.md5(f"{self.options.seed}:{what}:{number}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32


def _value(body: Any) -> Any:
    """A verdict that the request's schema allows, drawn by its last user message."""
    text = next((m["content"] for m in body["messages"][::-1] if m["role"] == "user"), "")
    drawn = int.from_bytes(hashlib.md5(str(text).encode()).digest()[:4], "big")
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    result = schema.get("properties", {}).get("result", {})
    if "$ref" in result:
        result = schema["$defs"][result["$ref"].rsplit("/", 1)[-1]]
    kind = result.get("type")
    allowed = {"boolean": [False, True], "integer": [1, 2, 3, 4, 5], "number": [0.0, 0.5, 1.0]}
    values = result.get("enum") or allowed.get(str(kind)) or ["yes", "no"]
    return values[drawn % len(values)]


def _verdict(value: Any) -> str:
    return json.dumps({"result": value, "rationale": f"The hash says {value}."})


def completion(content: str) -> bytes:
    return _chat({"role": "assistant", "content": content}, "stop")


def _tool_call(name: str) -> bytes:
    call = {"id": "call-1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return _chat({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")


def _chat(message: dict[str, Any], finish: str) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "loopback",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    ).encode()


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as much of it as an HTTP client library sends."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.buffer = bytearray()
        self.asked = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
            fields = (line.split(":", 1) for line in lines)
            headers = {name.strip().lower(): value.strip() for name, value in fields}
            size = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < size:
                return
            body = bytes(self.buffer[end + 4 : size])
            del self.buffer[:size]
            method, path, _ = first.split(" ", 2)
            self._handle(method, path, headers, body)

    def _handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        behaviour = self.behaviour
        if (method, path) == ("GET", "/stats"):
            self._send(200, {}, json.dumps(behaviour.stats()).encode())
            return
        if (method, path) == ("POST", "/control"):
            behaviour.control(json.loads(body))
            self._send(200, {}, b"{}")
            return
        if method != "POST" or path not in behaviour.paths:
            self._send(404, {}, json.dumps({"error": {"message": f"no {path} here"}}).encode())
            return
        behaviour.connections += not self.asked
        self.asked = True
        behaviour.active += 1
        behaviour.most_at_once = max(behaviour.most_at_once, behaviour.active)
        answer = behaviour.answer(path, headers, json.loads(body))
        asyncio.get_running_loop().call_later(behaviour.options.latency, self._finish, answer)

    def _finish(self, answer: tuple[int, dict[str, str], bytes]) -> None:
        self.behaviour.active -= 1
        self._send(*answer)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        assert self.transport is not None
        if status == LOST:
            self.transport.abort()
        if not self.transport.is_closing():
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)


async def serve(behaviour: Behaviour) -> None:
    """Serve until the process ends; the port is printed."""
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(behaviour), "127.0.0.1", behaviour.options.port, backlog=512
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 chooses one; it is printed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an answer takes")
    parser.add_argument("--key", default="", help="401 for any other key")
    parser.add_argument("--script", default="", help="first statuses in order: 429x5,200x3,401x9")
    parser.add_argument("--rate", type=int, default=0, help="429 above so many answers a second")
    parser.add_argument("--retry-after", default=None, help="header of 429 and 503")
    parser.add_argument("--failure-share", type=float, default=0.0, help="share of 500s")
    parser.add_argument("--junk-share", type=float, default=0.0, help="share of unreadable answers")
    parser.add_argument("--off-scale-share", type=float, default=0.0, help="share of odd values")
    parser.add_argument("--says", default=None, help="the text of every answer")
    parser.add_argument("--page", default=None, help="every answer as it stands, no JSON")
    parser.add_argument("--no-schema", action="store_true", help="400 for a response_format")
    parser.add_argument("--refuses", default="", help="400 with these words for every request")
    parser.add_argument("--use-tools", action="store_true", help="call a tool first, if offered")
    parser.add_argument("--seed", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(Behaviour(parser.parse_args())))


if __name__ == "__main__":
    main()
