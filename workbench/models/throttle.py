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


class Throttle:
    """Slots for calls, shared by the threads of a run: additive increase, halved by rate limits.

    Until something was answered there are few slots, and the very first call has a head start, so
    that a wrong key or a dead endpoint usually costs one call. A call that meets a rate limit lets
    all calls wait together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(min(most, FIRST_CALLS))
        self._opened = False
        self._sent_at = math.inf
        self._active = 0
        self._resume_at = self._slowed_at = 0.0
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
        """The head start of the first call begins when its request goes out."""
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

    def speed_up(self) -> None:
        """After the first usable answer open all slots, later one for as many as there are."""
        with self._changed:
            more = self._limit + 1.0 / self._limit if self._opened else math.inf
            self._limit, self._opened = min(float(self.most), more), True
            self._changed.notify_all()
