"""Content-addressed store of model answers: each question to a model is paid once, ever.

Answers lie on disk, safe for several processes at once (SQLite through diskcache), as JSON
and never pickled, so that a cache file from elsewhere can run no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diskcache
import platformdirs

from workbench.errors import StoreError

CACHE_VARIABLE = "WORKBENCH_CACHE"

KEY_FORMAT = 2
"""Number of the way in which keys are made. Raised when an old answer must not be found."""


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
        with self._told():
            self._store = diskcache.Cache(
                str(self.directory),
                disk=_JsonOnly,
                disk_compress_level=1,
                eviction_policy="none",
                size_limit=2**40,
            )

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer under ``key``; None where there is none, or none that can be read."""
        try:
            with self._told():
                answer = self._store.get(key)
        except (ValueError, TypeError, zlib.error):  # damaged, or written by something else
            return None
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep a JSON-able answer. The first one stays: equal questions have one answer."""
        with self._told():
            self._store.add(key, answer)

    def __len__(self) -> int:
        return len(self._store)

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            raise StoreError(
                f"The answer cache in {self.directory} does not work: {error}. Name a folder that "
                f"can be written in {CACHE_VARIABLE}, or go without (cache=False)."
            ) from error
