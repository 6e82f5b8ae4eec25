"""Threads that do a run's calls, and that a process can leave behind when it must.

Those of `concurrent.futures` are waited for when Python ends, however long a call hangs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Workers(Generic[T]):
    """Up to ``count`` threads, started as there is work, that end with the process."""

    def __init__(self, count: int, name: str) -> None:
        self.count, self.name = count, name
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[Future[T]] = []
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have ``function(*arguments)`` called in a thread; its outcome is the future's."""
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._waiting.append(future)
        self._tasks.put(task)
        if len(self._threads) < self.count:
            thread = threading.Thread(
                target=self._work, name=f"{self.name}_{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def stop(self, seconds: float | None = None) -> None:
        """Cancel what has not begun, and wait for what has: so long at most, or to its end.

        What still runs then goes on in its thread, as long as the process does.
        """
        for future in self._waiting:
            future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            # Waited for in short turns, so that Ctrl-C is seen in between everywhere.
            while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
                left = 1.0 if deadline is None else deadline - time.monotonic()
                thread.join(max(0.0, min(1.0, left)))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
