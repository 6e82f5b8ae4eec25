"""How many calls may be under way at the same time: fewer after rate limits, more after answers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

FIRST_CALLS: Final = 8  # under way at most until something was answered
PROMPT: Final = 2.0  # seconds; calls that are answered faster do not wait for each other
FASTEST: Final = 0.5  # seconds; what is answered sooner may come from a cache of the server
MOST_WAIT: Final = 3.0  # times as long as the fastest answer: calls wait at the server
LONG_WAIT: Final = 1 / 3  # of the timeout: fewer calls go out before any is lost


class Throttle:
    """Slots for calls: few at first, one more with each prompt answer, halved by rate limits."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(min(most, FIRST_CALLS))
        self._fastest = math.inf
        self._active = 0
        self._resume_at = self._slowed_at = 0.0
        self.longest_pause = 0.0  # seconds
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return int(self._limit)

    @contextmanager
    def slot(self, is_over: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """Wait for a slot, or until it is over, and hold it; gives the time it was had."""
        with self._changed:
            while not is_over():
                pause = self._resume_at - time.monotonic()
                if self._active < self.limit and pause <= 0:
                    break
                self._changed.wait(min(max(pause, 0.02), 0.5))
            self._active += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def slow_down(self, seconds: float, asked_at: float) -> None:
        """Pause all calls, and halve the slots, once for all that were under way together."""
        with self._changed:
            now = time.monotonic()
            if asked_at >= self._slowed_at:
                self._limit = max(1.0, self._limit / 2)
                self._slowed_at = now
            self._resume_at = max(self._resume_at, now + seconds)
            self.longest_pause = max(self.longest_pause, seconds)

    def speed_up(self, asked_at: float, timeout: float) -> None:
        """Allow one more call at a time after a prompt answer, and fewer after a long wait."""
        seconds = max(FASTEST, time.monotonic() - asked_at)
        if seconds > LONG_WAIT * timeout:
            if self.limit > FIRST_CALLS:  # else it is not their number that makes it slow
                self.slow_down(0.0, asked_at)
            return
        with self._changed:
            self._fastest = min(self._fastest, seconds)
            if seconds <= max(PROMPT, MOST_WAIT * self._fastest):
                # Once slowed down, one more for as many answers as there are slots.
                more = 1.0 / self._limit if self._slowed_at else 1.0
                self._limit = min(float(self.most), self._limit + more)
            self._changed.notify()
