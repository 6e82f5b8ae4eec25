"""Claims to questions: what one run asks now, no other run asks at the same time.

Two runs that begin together on one empty cache, in one process or in several, would else pay for
every answer twice. A claim lies in the answer cache beside the answers. Whoever meets the claim of
another waits for the answer, and takes the question over when the other gives it back, is no more
(its process has ended, be it by ``kill -9``), or has not renewed the claim for `SECONDS_TO_LIVE`.
Where a claim lapses all the same, the answer that came first holds for both (`AnswerCache.put`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from workbench.cache import AnswerCache
from workbench.errors import CancelledError

T = TypeVar("T")

SECONDS_TO_LIVE: Final = 600.0
"""After which a claim ends that was not renewed: longer than any single call takes."""

SECONDS_TO_RENEW: Final = 60.0

PAUSES: Final = (0.02, 0.05, 0.1, 0.2)
"""Seconds between two looks at what others ask; the last one from then on."""

CANCELLED: Final = "This was cancelled. Answers that were paid for are kept."

_here = socket.gethostname()
_alive: set[str] = set()
"""The runs of this process that hold claims."""


class Claims:
    """The claims of one run. A context manager that gives back what is left of them.

    Parameters
    ----------
    cache
        Where they lie; None where answers are not kept, so that there is nothing to claim.
    """

    def __init__(self, cache: AnswerCache | None) -> None:
        self.cache = cache
        self.run = uuid.uuid4().hex
        self.owner: dict[str, Any] = {"host": _here, "pid": os.getpid(), "run": self.run}
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._renewed = time.monotonic()

    def take(self, keys: Sequence[str]) -> set[str]:
        """Those of the questions that nobody has answered and nobody else asks now."""
        if self.cache is None or not keys:
            return set(keys)
        _alive.add(self.run)
        had = self.cache.claim(keys, self.owner, SECONDS_TO_LIVE, _is_gone)
        with self._lock:
            self._held |= had
        return had

    def renew(self) -> None:
        """Say that the questions are still being asked; does nothing when called often."""
        if self.cache is None or time.monotonic() - self._renewed < SECONDS_TO_RENEW:
            return
        self._renewed = time.monotonic()
        with self._lock:
            held = sorted(self._held)
        self.cache.claim(held, self.owner, SECONDS_TO_LIVE, _is_gone)

    def give_back(self, keys: Iterable[str]) -> None:
        """The questions are answered, or not asked after all."""
        with self._lock:
            mine = self._held & set(keys)
            self._held -= mine
        if mine and self.cache is not None:
            self.cache.release(mine, self.owner)

    def wait(self, keys: Sequence[str], stop: threading.Event | None = None) -> None:
        """Until at least one of the questions is answered or free.

        Raises
        ------
        CancelledError
            When ``stop`` is set meanwhile.
        """
        cache, stop, turn = self.cache, stop or threading.Event(), 0
        while cache is not None and all(
            cache.get(key) is None and cache.is_claimed(key, _is_gone) for key in keys
        ):
            self.renew()
            if stop.wait(PAUSES[min(turn, len(PAUSES) - 1)]):
                raise CancelledError(CANCELLED)
            turn += 1

    def known_or_mine(
        self, key: str, read: Callable[[], T | None], stop: threading.Event | None = None
    ) -> T | None:
        """What ``read`` gives once there is an answer; None once the question is claimed.

        ``read`` looks the answer up, and gives None where there is none that it can use.

        Raises
        ------
        CancelledError
            When ``stop`` is set while another run asks it.
        """
        while True:
            found = read()
            if found is not None or self.cache is None:
                return found
            if self.take([key]) or self.cache.get(key) is not None:
                # An answer that is there and cannot be used is asked for anew.
                return read()
            self.wait([key], stop)

    def close(self) -> None:
        """Give everything back."""
        self.give_back(set(self._held))
        _alive.discard(self.run)

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the run that made the claim is known to have ended."""
    pid = owner.get("pid")
    if owner.get("host") != _here or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return owner.get("run") not in _alive
    if os.name != "posix":
        return False  # there, asking for a process by signal 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and its parent has not noticed yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return stat.rpartition(")")[2].split()[:1] == ["Z"]
