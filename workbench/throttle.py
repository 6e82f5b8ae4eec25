"""How many calls may be under way: as many as the provider bears.

Additive increase, multiplicative decrease, after Chiu and Jain (1989), "Analysis of the
increase and decrease algorithms for congestion avoidance in computer networks".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


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
