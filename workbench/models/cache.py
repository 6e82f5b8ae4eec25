"""Content-addressed store of model answers: each question to a model is paid once, ever.

Answers lie on disk, safe for several processes at once (SQLite through diskcache), as JSON
and never pickled, so that a cache file from elsewhere can run no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import diskcache
import platformdirs

from workbench.errors import CancelledError, StoreError
from workbench.models.budget import Receipt

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


_CLAIM = "claim:"
"""Before the key of a question, and the tag, of a claim to be asking it."""


_OWED = "owed:"
"""The same for what was paid without an answer."""


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

    def put(self, key: str, answer: dict[str, Any]) -> dict[str, Any]:
        """Keep a JSON-able answer, and return the one that holds.

        The first one stays: equal questions have one answer, in whatever process they were asked.
        """
        with self._told():
            if self._store.add(key, answer):
                return answer
        held = self.get(key)
        if held is None:  # damaged, so that it holds nothing
            with self._told():
                self._store.set(key, answer)
        return held or answer

    def __len__(self) -> int:
        """Answers; claims and debts do not count."""
        with self._told():
            rows = self._store._sql("SELECT COUNT(*) FROM Cache WHERE tag IS NULL")
            return int(rows.fetchone()[0])

    # -- what was paid without an answer ----------------------------------------------------

    def owe(self, key: str, paid: Receipt) -> None:
        """Note what a question has cost that is not answered yet, since its run was ended.

        The budget of a run that takes it up is charged with that as well.
        """
        with self._told(), self._store.transact():
            before = self.owed(key)
            total = paid if before is None else before + paid
            self._store.set(_OWED + key, total.to_dict(), tag=_OWED)

    def owed(self, key: str) -> Receipt | None:
        """What `owe` noted; None where nothing was paid in vain."""
        stored = self.get(_OWED + key)
        return None if stored is None else Receipt.of(stored)

    # -- who asks what now (see `workbench.claims`) -----------------------------------------

    def claim(
        self,
        keys: Sequence[str],
        owner: dict[str, Any],
        seconds: float,
        is_gone: Callable[[dict[str, Any]], bool],
    ) -> set[str]:
        """Claim questions that are neither answered nor claimed; those that were had.

        A claim ends after so many seconds, with `release`, or when ``is_gone`` says so of its
        owner. Claims of one's own are renewed.
        """
        had = set()
        with self._told(), self._store.transact():
            for key in keys:
                if key in self._store and self.get(key) is not None:
                    continue
                before = self._claimed_by(key)
                if before is not None and before != owner and not is_gone(before):
                    continue
                self._store.set(_CLAIM + key, owner, expire=seconds, tag=_CLAIM)
                had.add(key)
        return had

    def release(self, keys: Iterable[str], owner: dict[str, Any]) -> None:
        """Give claims back; those of others stay."""
        with self._told(), self._store.transact():
            for key in keys:
                if self._claimed_by(key) == owner:
                    self._store.delete(_CLAIM + key)

    def is_claimed(self, key: str, is_gone: Callable[[dict[str, Any]], bool]) -> bool:
        """Whether somebody asks it now."""
        with self._told():
            owner = self._claimed_by(key)
        return owner is not None and not is_gone(owner)

    def _claimed_by(self, key: str) -> dict[str, Any] | None:
        try:
            owner = self._store.get(_CLAIM + key)
        except (ValueError, TypeError, zlib.error):
            return None
        return owner if isinstance(owner, dict) else None

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
