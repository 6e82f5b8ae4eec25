"""Threads that do a run's calls, and that a process can leave behind when it must.

Those of `concurrent.futures` are waited for when Python ends, however long a call hangs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, TypeVar


class Throttle:
    """Slots for calls, shared by the threads of a run.

    A call that meets a rate limit halves the number of slots and lets all calls wait together,
    so that a limit met by one is not met by every other; calls that succeed bring the slots
    back one by one.

    Parameters
    ----------
    most
        Slots at the start, and never more.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(most)
        self._active = 0
        self._resume_at = 0.0
        self._slowed_at = 0.0
        self._changed = threading.Condition()
        self._released = False

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Wait for a slot and hold it; gives the monotonic time at which it was had."""
        with self._changed:
            while not self._released:
                pause = self._resume_at - time.monotonic()
                if self._active < self.limit and pause <= 0:
                    break
                self._changed.wait(pause if pause > 0 else None)
            self._active += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def slow_down(self, seconds: float, asked_at: float) -> None:
        """Pause all calls, and halve the slots unless that was done since ``asked_at``.

        ``asked_at`` is when the call that met the limit had its slot: all that were under way
        with it meet the same limit, and count once.
        """
        with self._changed:
            now = time.monotonic()
            if asked_at >= self._slowed_at:
                self._limit = max(1.0, self._limit / 2)
                self._slowed_at = now
            self._resume_at = max(self._resume_at, now + seconds)

    def speed_up(self) -> None:
        """A call has succeeded: a slot more for as many successes as there are slots."""
        with self._changed:
            if self._limit < self.most:
                self._limit = min(float(self.most), self._limit + 1.0 / self._limit)
                self._changed.notify()

    def release(self) -> None:
        """Let all who wait go on, to find that the run has stopped."""
        with self._changed:
            self._released = True
            self._changed.notify_all()


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
