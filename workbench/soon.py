"""`Soon`: what a store answers soon, or else a word that it will come, and the answer later.

MLflow tries for minutes before it says that a server is down, and the kernel must go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from workbench import store
from workbench.protocol import problem
from workbench.showing import Message

_PATIENCE = 2.0
"""Seconds that an answer is waited for."""

_HURRIED = 0.05
"""The same while others are still waited for."""

_LATER = {
    "want": "the items come when it does",
    "refresh": "the queue is read again when it does",
    "offer_again": "they are offered again when it does",
}


class Soon:
    """Does work that reads the store; ``tell`` gets what is answered too late to wait for."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell
        self._late = 0

    def __call__(self, work: Callable[[], list[Message]], about: str) -> list[Message]:
        """What ``work`` answers, or a problem, and the answer later.

        ``about`` is the type of the message that asks for it. Raises what ``work`` raises, where
        that is soon.
        """
        answer: Future[list[Message]] = Future()

        def run() -> None:
            try:
                answer.set_result(work())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=run, name=about, daemon=True).start()
        try:
            return answer.result(_HURRIED if self._late else _PATIENCE)
        except FutureTimeoutError:
            if answer.done():
                # The store's own error, which bears the same name.
                raise
        self._late += 1
        answer.add_done_callback(lambda done: self._arrived(done, about))
        return [problem(f"The store has not answered yet; {_LATER[about]}.", about)]

    def _arrived(self, answer: Future[list[Message]], about: str) -> None:
        self._late -= 1
        error = answer.exception()
        if error is None:
            for message in answer.result():
                self._tell(message)
        else:
            self._tell(problem(f"The store cannot be read: {store.told(error)}", about))
