"""Content-addressed store of model answers: each question to a model is paid once, ever.

Answers lie on disk, safe for several processes at once (SQLite through diskcache), as JSON
and never pickled, so that a cache file from elsewhere can run no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import diskcache
import platformdirs

CACHE_VARIABLE = "WORKBENCH_CACHE"


def cache_directory() -> Path:
    """Where answers are kept: ``WORKBENCH_CACHE``, else the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("judge-workbench")


def question_key(*parts: Any) -> str:
    """Key of a question: sha256 of the canonical JSON of its parts.

    Answers of a judge are kept under (judge fingerprint, item digest, sample number).
    """
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """Answers by question key, on disk.

    Parameters
    ----------
    directory
        Folder of the store, made when missing; `cache_directory` when None.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory else cache_directory()
        self._store = diskcache.Cache(
            str(self.directory),
            disk=diskcache.JSONDisk,
            disk_compress_level=1,
            eviction_policy="none",
            size_limit=2**40,
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer under ``key``; None where there is none."""
        answer = self._store.get(key)
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep a JSON-able answer. The first one stays: equal questions have one answer."""
        self._store.add(key, answer)

    def __len__(self) -> int:
        return len(self._store)

    def close(self) -> None:
        self._store.close()
