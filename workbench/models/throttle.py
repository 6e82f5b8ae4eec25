"""How many calls may be under way at the same time: fewer after rate limits, more after answers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

FIRST_CALLS: Final = 16  # under way at most until something was answered

HEAD_START: Final = 0.1  # seconds from the first request to the others, if not answered before

PROMPT: Final = 2.0  # seconds; calls that are answered faster do not wait for each other

FASTEST: Final = 0.5  # seconds; what is answered sooner may come from a cache of the server
MOST_WAIT: Final = 3.0  # times as long as the fastest answer: calls wait at the server

LONG_WAIT: Final = 1 / 3  # of the timeout: fewer calls go out before any is lost


class Throttle:
    """Slots for calls, shared by the threads of a run: additive increase, halved by rate limits.

    Until something was answered there are few slots, and the very first call has a head start, so
    that a wrong key or a dead endpoint usually costs one call. Then each answer opens one more,
    unless calls seem to wait for each other at the server: where they wait too long, it gets fewer.
    A call that meets a rate limit lets all calls wait together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(min(most, FIRST_CALLS))
        self._opened = False
        self._sent_at = self._fastest = math.inf
        self._active = 0
        self._resume_at = self._slowed_at = 0.0
        self.longest_pause = 0.0  # seconds
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        alone = not self._opened and time.monotonic() < self._sent_at + HEAD_START
        return 1 if alone else int(self._limit)

    @contextmanager
    def slot(self, is_over: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """Wait for a slot, or until it is over, and hold it; gives the time it was had."""
        with self._changed:
            while not is_over():
                pause = self._resume_at - time.monotonic()
                if self._active < self.limit and pause <= 0:
                    break
                self._changed.wait(min(max(pause, 0.02), 0.5) if self._opened else 0.02)
            self._active += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def sent(self) -> None:
        """Tell that a request goes out: with the first one the head start begins."""
        self._sent_at = min(self._sent_at, time.monotonic())

    def slow_down(self, seconds: float, asked_at: float) -> None:
        """Pause all calls, and halve the slots unless that was done since ``asked_at``.

        All that were under way with the call that met the limit meet the same, and count once.
        """
        with self._changed:
            now = time.monotonic()
            if asked_at >= self._slowed_at:
                self._limit = max(1.0, self._limit / 2)
                self._slowed_at = now
            self._resume_at = max(self._resume_at, now + seconds)
            self.longest_pause = max(self.longest_pause, seconds)

    def speed_up(self, asked_at: float = math.inf, timeout: float = math.inf) -> None:
        """Open a slot after a usable answer to what was asked then; fewer if it took too long.

        Once calls were slowed down, one more for as many answers as there are slots. ``timeout`` is
        the number of seconds after which a call is given up.
        """
        seconds = max(FASTEST, time.monotonic() - asked_at)
        if seconds > LONG_WAIT * timeout and self.limit > FIRST_CALLS:  # fewer are not what is slow
            self.slow_down(0.0, asked_at)
        with self._changed:
            self._fastest = min(self._fastest, seconds)
            if seconds <= min(max(PROMPT, MOST_WAIT * self._fastest), LONG_WAIT * timeout):
                more = 1.0 / self._limit if self._slowed_at else 1.0
                self._limit = min(float(self.most), self._limit + more)
            self._opened = True
            self._changed.notify_all()
