"""The model answers of a run in one file, and runs that take their answers from such a file.

Its lines are JSON (gzip where its name ends in ``.gz``): a `Head`, then an `Entry` for each answer.
They are sorted and hold no times, so that the same run gives the same bytes.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import filelock
from pydantic import BaseModel, Field

from workbench.compat import intercepted, senders_of_process
from workbench.errors import ArgumentError, ReplayError
from workbench.formatting import write_whole
from workbench.models.budget import UNPAID, Usage
from workbench.models.cache import cache_directory
from workbench.models.faults import Fault

RECORD_VARIABLE: Final = "WORKBENCH_RECORD"
REPLAY_VARIABLE: Final = "WORKBENCH_REPLAY"
MODEL_VARIABLE: Final = "WORKBENCH_MODEL"

LARGEST_FILE: Final = 2**28  # bytes, after expansion, beyond which a file is not read


class Head(BaseModel, extra="forbid", frozen=True):
    """The first line, which names the notebook that was run, and what that was given."""

    file: Literal["workbench answers"]
    format: Literal[3]
    default_model: str | None = None
    notebook: str | None = None
    parameters: dict[str, Any] = {}


class Entry(BaseModel, extra="forbid", frozen=True):
    """The answer to one question, or why there is none."""

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    about: str = ""
    answer: dict[str, Any] | None = None
    failed: Fault | None = None
    paid: Usage = UNPAID  # by the run
    before: Usage = UNPAID  # what an answer cost that the run had in its cache


def _read_file(path: Path) -> tuple[Head, dict[str, Entry]]:
    """Read head and entries of a file of answers, which may come from anywhere."""
    number, head, entries = 0, None, dict[str, Entry]()
    try:
        for line in _lines(path):
            number += 1
            if head is None:
                head = Head.model_validate(json.loads(line))
            else:
                entry = Entry.model_validate(json.loads(line))
                entries[entry.key] = entry
        return head or Head.model_validate({}), entries
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:300]
        raise ReplayError(
            f"The file of answers {path} cannot be read at line {number}: {what}. Name a file that "
            "was written by workbench.recording(path) or `workbench run --record FILE`, or record "
            "it anew."
        ) from None


def _lines(path: Path) -> list[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        text = stream.read(LARGEST_FILE + 1)
    if len(text) > LARGEST_FILE:
        raise ValueError(f"it expands to more than {LARGEST_FILE:,} bytes")
    return text.splitlines()


class Recorder:
    """Collects the answers of a run, and writes them to a file or adds them to one."""

    def __init__(self, path: str | os.PathLike[str], **run: Any) -> None:
        self.path = Path(path).expanduser().resolve()
        if not os.access(self.path.parent, os.W_OK):
            raise ArgumentError(
                f"The answers cannot be written to {self.path}: there is no folder "
                f"{self.path.parent} that can be written to. Make it, or name another file."
            )
        model = os.environ.get(MODEL_VARIABLE) or None
        self.head = Head(file="workbench answers", format=3, default_model=model, **run)
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        if self.path.exists() and (before := _read_file(self.path)[0]).notebook:
            same = before.model_copy(update={"default_model": model})
            if run and same != self.head:
                raise ArgumentError(
                    f"{self.path} records {same.notebook} with the parameters {same.parameters}, "
                    f"and not {self.head.notebook} with {self.head.parameters}. Name another file."
                )
            self.head = same

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        with self._lock:
            self._entries[entry.key] = _better(self._entries.get(entry.key), entry)

    def save(self) -> None:
        """Write the file, whole or not at all, with what other processes have added to it."""
        try:
            cache_directory().mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(cache_directory() / "recording.lock", timeout=60)
            with self._lock, lock:
                entries = _read_file(self.path)[1] if self.path.exists() else {}
                for key, entry in self._entries.items():
                    entries[key] = _better(entries.get(key), entry)
                lines = [self.head, *(entries[key] for key in sorted(entries))]
                dumped = (one.model_dump(exclude_defaults=True) for one in lines)
                text = "".join(f"{json.dumps(one, sort_keys=True)}\n" for one in dumped).encode()
                packed = self.path.suffix == ".gz"
                write_whole(self.path, gzip.compress(text, mtime=0) if packed else text)
        except (OSError, filelock.Timeout) as error:
            raise ReplayError(
                f"The answers could not be written to {self.path}: {error}. Name another file; "
                "the same run again pays nothing twice."
            ) from None


def _better(before: Entry | None, now: Entry) -> Entry:
    """Prefer an answer to a failure, and what was paid for to what was found again."""
    if before is None or (before.failed and not now.failed):
        return now
    return now if now.answer is not None and now.paid.requests else before


class Player:
    """The answers of a file, and the refusal of all requests (a `compat.Sender`)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().resolve()
        self.head, self._entries = _read_file(self.path)
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """Return the answer, which is paid for the first time only."""
        entry = self._entries.get(key)
        if entry is not None and entry.answer is not None and key in self._used:
            cost = entry.paid + entry.before
            entry = entry.model_copy(update={"paid": UNPAID, "before": cost})
        self._used.add(key)
        return entry

    def missing(self, who: str) -> ReplayError:
        """Return the error for a question that has no answer in the file."""
        return ReplayError(
            f"{who} has no answer in {self.path}, which is replayed, so that no model is called. "
            "This run is not the recorded one: judge, instructions, data, parameters, seed or the "
            "version of the workbench differ. Run with those of the recording, or record anew "
            "with workbench.recording(path) or `workbench run --record FILE`."
        )

    def ask(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse a request that was about to be sent."""
        raise ReplayError(
            f"A model was about to be called while {self.path} is replayed, where no model is "
            "called. Only workbench.assess, align and compare_optimizers can be replayed; run the "
            "rest outside workbench.replaying(...)."
        )

    post = read = ask


_current: ContextVar[Recorder | Player | None] = ContextVar("workbench_recording", default=None)
# For threads that MLflow or a user starts, which have a context of their own.
_in_process: Final[list[Recorder | Player]] = []
# Later the variables name files to processes that this one starts.
_AT_START: Final = (os.environ.get(RECORD_VARIABLE), os.environ.get(REPLAY_VARIABLE))


def current() -> Recorder | Player | None:
    """Return what this context, else what another thread or the environment records or replays."""
    found = _current.get()
    if found is None:
        found = next(reversed(_in_process), None)
    return _of_process() if found is None else found


_held: Final = ExitStack()  # for as long as the process lives


@functools.cache
def _of_process() -> Recorder | Player | None:
    """Open the file that the environment named when this process was started."""
    record, replay = _AT_START
    if replay:
        _held.enter_context(intercepted(None))
        return Player(replay)
    return Recorder(record) if record else None


def replayed() -> Player | None:
    """Return the file that is replayed; None where models are called."""
    found = current()
    return found if isinstance(found, Player) else None


senders_of_process.append(replayed)


def recorder() -> Recorder | None:
    """Return where answers are recorded; None where they are not."""
    found = current()
    return found if isinstance(found, Recorder) else None


@contextmanager
def recording(path: str | os.PathLike[str]) -> Iterator[Recorder]:
    """Write every model answer that is used within this context to one file.

    Parameters
    ----------
    path
        The file, gzip-compressed where the name ends in ``.gz``. One that is there is added to.

    Answers of judges and of the reflection model are recorded, be they fresh, from the cache or
    verdicts in the store; failures as well, since they decide results too. What optimizers other
    than `SIMBA` ask is not recorded. No prompt, key, header or address is written; what models
    answered may quote what they were shown. The file is written after each batch of calls and at
    the end, also after an error or Ctrl-C. Calls in other threads, alignments in the background
    and processes started within the context are recorded too.

    Raises
    ------
    ArgumentError
        Where the file cannot be written to.

    >>> with workbench.recording("answers.jsonl.gz"):  # doctest: +SKIP
    ...     workbench.assess(judge, traces)
    ...     alignment = workbench.align(judge, traces)
    """
    recorder = Recorder(path)
    with _in_use(recorder, RECORD_VARIABLE):
        try:
            yield recorder
        finally:
            recorder.save()


@contextmanager
def replaying(path: str | os.PathLike[str]) -> Iterator[Player]:
    """Within this context, take every model answer from a file that `recording` wrote.

    That holds for all threads of the process. No model is called and no key needed; cache, servers
    and store do not matter, as long as the traces' content is the same. Calls, tokens and cost are
    reported as the recorded run paid them, so that figures and budgets come out the same; nothing
    is paid. A judge that names no model has the one that it had when the run was recorded.

    Raises
    ------
    ReplayError
        When the file cannot be read; and from whatever asks for an answer that it does not hold.

    >>> with workbench.replaying("answers.jsonl.gz"):  # doctest: +SKIP
    ...     workbench.assess(judge, traces)
    ...     alignment = workbench.align(judge, traces)
    """
    player = Player(path)
    with _in_use(player, REPLAY_VARIABLE), intercepted(player):
        yield player


@contextmanager
def _in_use(used: Recorder | Player, variable: str) -> Iterator[None]:
    """Use a file in this context, and name it to processes that are started within."""
    before = {name: os.environ.pop(name, None) for name in (RECORD_VARIABLE, REPLAY_VARIABLE)}
    os.environ[variable] = str(used.path)
    token = _current.set(used)
    _in_process.append(used)
    try:
        yield
    finally:
        _in_process.remove(used)
        _current.reset(token)
        del os.environ[variable]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def variables(
    record: str | os.PathLike[str] | None, replay: str | os.PathLike[str] | None
) -> dict[str, str]:
    """Return the environment of a process that is to record or replay, but not both."""
    if record is not None and replay is not None:
        raise ArgumentError("record= and replay= exclude each other: give one of them.")
    given = {RECORD_VARIABLE: record, REPLAY_VARIABLE: replay}
    if record is None and replay is None:
        return {}
    return {
        name: str(Path(path).expanduser().resolve()) if path else "" for name, path in given.items()
    }
