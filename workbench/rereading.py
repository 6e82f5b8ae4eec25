"""The store is read again from time to time: what was done elsewhere shows up by itself."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Final, Protocol

_SHARE: Final = 0.05
"""Of its time that the thread may spend on reading; a large queue is read less often."""

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """What can be read again."""

    def reread(self) -> None:
        """Read again, and tell whom it concerns what has changed."""


class Rereader:
    """Calls ``reread`` of a session every so many seconds, in a thread of its own.

    The thread holds nobody: it ends when the session is no longer used, when it is stopped, and
    with the process. What fails is tried again the next time.
    """

    def __init__(self, reader: Reader, every: float) -> None:
        self._reader = weakref.ref(reader)
        self._every = every
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun or was stopped."""
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._work, name="rereading", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; a call that is under way is not waited for."""
        self._stopped.set()

    def _work(self) -> None:
        wait = self._every
        while not self._stopped.wait(wait):
            reader = self._reader()
            if reader is None:
                return
            began = time.monotonic()
            try:
                reader.reread()
            except Exception:
                _log.debug("the store could not be read again", exc_info=True)
            del reader
            wait = max(self._every, (time.monotonic() - began) / _SHARE)
