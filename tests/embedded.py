"""An OpenAI-compatible server on loopback that answers with the embedded model and counts."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.models.offline.provider import answer


class Embedded(http.server.ThreadingHTTPServer):
    """Counts requests by their text, and can hold back the answers after so many.

    Attributes
    ----------
    answered
        Question -> how often it was answered, in order of the first answer.
    url
        The root that a judge takes as ``base_url``.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.answered: Counter[str] = Counter()
        self.waiting = 0
        self._left: float = float("inf")
        self._abandoned = 0
        self._change = threading.Condition()

    def hold_after(self, answers: int) -> None:
        """Answer so many requests, then hold all others."""
        with self._change:
            self.answered.clear()
            self._left = answers
            self._change.notify_all()

    def release(self, *, answering: bool = True) -> None:
        """Answer all requests again; or drop those that wait, whose client is gone."""
        with self._change:
            self._left = float("inf")
            self._abandoned += not answering
            self._change.notify_all()

    def wait_until_held(self) -> None:
        """Wait until all answers that are allowed are sent, and another request waits."""
        deadline = time.monotonic() + 120
        while not (self._left == 0 and self.waiting):
            assert time.monotonic() < deadline, "no further request came"
            time.sleep(0.01)

    def admit(self, question: str) -> bool:
        """Return whether to answer; wait while answers are held back."""
        with self._change:
            before = self._abandoned
            self.waiting += 1
            while self._left <= 0 and before == self._abandoned:
                self._change.wait()
            self.waiting -= 1
            if before != self._abandoned:
                return False
            self._left -= 1
            self.answered[question] += 1
            return True

    def repeated(self) -> dict[str, int]:
        """Return the requests that were answered more than once."""
        return {question: n for question, n in self.answered.items() if n > 1}


@contextmanager
def embedded() -> Iterator[Embedded]:
    """The server, running."""
    server = Embedded()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.release(answering=False)
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Embedded

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(body["messages"], sort_keys=True)
        if not self.server.admit(hashlib.sha256(text.encode()).hexdigest()):
            self.close_connection = True
            return
        message = {"role": "assistant", "content": answer(body["messages"])}
        completion: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
        data = json.dumps(completion).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
