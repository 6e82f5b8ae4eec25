"""Content-addressed store of model answers: each question to a model is paid once, ever.

Threads and processes use it together: of several that want an answer, one asks and others wait.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from workbench.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows, where processes do not wait for each other
    fcntl = None  # type: ignore[assignment]  # else a module

CACHE_VARIABLE = "WORKBENCH_CACHE"

KEY_FORMAT = 3  # of keys; raised when an old answer must not be found


def cache_directory() -> Path:
    """Where answers are kept: ``WORKBENCH_CACHE``, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("judge-workbench")


def question_key(*parts: Any) -> str:
    """Key of a question: sha256 of all that decides the answer but where the model is reached."""
    text = json.dumps([KEY_FORMAT, *parts], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache(AbstractContextManager["AnswerCache"]):
    """Answers by key, on disk; `StoreError` when the folder cannot be read or written."""

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory else cache_directory()
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        with self._database():
            pass

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer under ``key``; None where there is none, or none that can be read."""
        with self._database() as database:
            row = database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        try:
            answer = json.loads(row[0]) if row else None
        except (ValueError, TypeError, RecursionError):  # damaged, or written by something else
            return None
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep a JSON-able answer, in place of another one where that was there before."""
        with self._database() as database:
            database.execute("REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    @contextmanager
    def asking(self, key: str, is_over: Callable[[], bool]) -> Iterator[None]:
        """Wait until no other thread or process asks this question, or it is over, and hold it."""
        # A byte of the file stands for the question.
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        question, held = (self.directory.absolute(), place), False
        while not held and not is_over():
            with self._database():
                held = _hold(*question)
            if not held:
                time.sleep(0.05)
        try:
            yield
        finally:
            if held:
                with _HOLDING:
                    _ASKED.remove(question)
                    if fcntl is not None:
                        fcntl.lockf(_lock_file(question[0]), fcntl.LOCK_UN, 1, place)

    def __len__(self) -> int:
        with self._database() as database:
            return int(database.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the database. It is opened again for what is put later."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        try:
            with self._lock:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"The answer cache in {self.directory} does not work: {error}. Name a folder that "
                f"can be written in {CACHE_VARIABLE}; assess(cache=False) goes without."
            ) from error

    def _open(self) -> sqlite3.Connection:
        self.directory.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.directory / "answers.db", timeout=60, isolation_level=None, check_same_thread=False
        )
        # Readers do not wait for a writer, nor each answer for the disk. SQLite does not wait here
        # where another process does the same to a new file.
        with FileLock(self.directory / "opening.lock"):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
        return connection


# The questions of threads of this process: locks of a file hold between processes alone.
_ASKED: set[tuple[Path, int]] = set()
_HOLDING = threading.Lock()


def _hold(directory: Path, place: int) -> bool:
    """Hold a question; False where another thread or process does."""
    file = _lock_file(directory)
    with _HOLDING, suppress(BlockingIOError, PermissionError):
        if (directory, place) not in _ASKED:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            _ASKED.add((directory, place))
            return True
    return False


@functools.cache
def _lock_file(directory: Path) -> int:
    """Opened once and never closed: closing it would free all locks of this process."""
    return os.open(directory / "asking.lock", os.O_RDWR | os.O_CREAT, 0o666)
