"""Content-addressed store of model answers: each question to a model is paid once, ever.

Answers lie on disk, safe for several processes at once (SQLite through diskcache), as JSON
and never pickled, so that a cache file from elsewhere can run no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import diskcache
import platformdirs

from workbench.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: two processes may pay for the same answer
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "WORKBENCH_CACHE"

KEY_FORMAT = 2
"""Number of the way in which keys are made. Raised when an old answer must not be found."""

PAUSE: Final = 0.05
"""Seconds between two attempts at a lock that somebody else holds."""


def cache_directory() -> Path:
    """Where answers are kept: ``WORKBENCH_CACHE``, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("judge-workbench")


def question_key(*parts: Any) -> str:
    """Key of a question: sha256 of the canonical JSON of its parts and of `KEY_FORMAT`.

    The parts are all that decides the answer. Answers of a judge are kept under (judge
    fingerprint, source of the answers, item digest, trace, sample number).
    """
    text = json.dumps([KEY_FORMAT, *parts], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _JsonOnly(diskcache.JSONDisk):  # type: ignore[misc]  # diskcache publishes no types
    """Loads nothing that a foreign file marks as pickled, as diskcache itself would."""

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode not in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY):
            raise ValueError("an answer is kept as JSON")
        return super().fetch(mode, filename, value, read)


class AnswerCache:
    """Answers by question key, on disk. A context manager that closes itself.

    Parameters
    ----------
    directory
        Folder of the store, made when missing; `cache_directory` when None.

    Raises
    ------
    StoreError
        From every method, when the folder cannot be read or written.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory else cache_directory()
        with self._reporting():
            self._store = diskcache.Cache(
                str(self.directory),
                disk=_JsonOnly,
                disk_compress_level=1,
                eviction_policy="none",
                size_limit=2**40,
            )
        self._locks = _Locks.of(self.directory / "asking.lock")

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer under ``key``; None where there is none, or none that can be read."""
        try:
            with self._reporting():
                answer = self._store.get(key)
        except (ValueError, TypeError, zlib.error):  # damaged, or written by something else
            return None
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep a JSON-able answer, in place of another one where that was there before."""
        with self._reporting():
            self._store.set(key, answer)

    def __len__(self) -> int:
        with self._reporting():
            return len(self._store)

    @contextmanager
    def locked(self, key: str, is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Let one thread of one process at a time ask a question.

        Who waits finds the answer in the cache afterwards. The lock ends with its process; the
        wait ends, without the lock, when ``is_over`` says so.
        """
        slot = int(hashlib.sha256(key.encode()).hexdigest()[:4], 16)
        held = self._locks.acquire(slot, is_over)
        try:
            yield
        finally:
            if held:
                self._locks.release(slot)

    def close(self) -> None:
        self._store.close()
        self._locks.leave()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            raise StoreError(
                f"The answer cache in {self.directory} does not work: {error}. Name a folder that "
                f"can be written in {CACHE_VARIABLE}, or go without (cache=False)."
            ) from error


class _Locks:
    """Locks on questions: one for the threads of this process, one byte of a file for others.

    Shared by all caches of a folder, since closing one descriptor of a file would give up all
    locks that the process has on it.
    """

    _of_path: ClassVar[dict[Path, _Locks]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path, self.users = path, 0
        self._threads: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._descriptor: int | None = None
        if fcntl is not None:
            with suppress(OSError):  # not worth failing for: an answer may be paid for twice
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    @classmethod
    def of(cls, path: Path) -> _Locks:
        """The locks of a file; `leave` must follow."""
        with cls._guard:
            found = cls._of_path.get(path) or cls(path)
            cls._of_path[path] = found
            found.users += 1
            return found

    def leave(self) -> None:
        with self._guard:
            self.users -= 1
            if self.users == 0:
                del self._of_path[self.path]
                if self._descriptor is not None:
                    os.close(self._descriptor)
                    self._descriptor = None

    def acquire(self, slot: int, is_over: Callable[[], bool]) -> bool:
        """Wait for the lock and return True; False once ``is_over`` holds."""
        with self._guard:
            lock = self._threads[slot]
        while not lock.acquire(timeout=PAUSE):
            if is_over():
                return False
        while not self._lock_byte(slot):
            if is_over():
                lock.release()
                return False
            time.sleep(PAUSE)
        return True

    def _lock_byte(self, slot: int) -> bool:
        if self._descriptor is None:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def release(self, slot: int) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, slot)
        self._threads[slot].release()
