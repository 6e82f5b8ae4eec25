"""The model answers of a run in one file, and runs that take their answers from such a file.

`recording` writes every answer that a run uses, be it fresh, from the cache or from the store.
`replaying` takes them from that file and calls no model, so that someone without a key, or CI,
gets the same result; what is not in the file is an error.

The file is text, one JSON object a line (gzip where its name ends in ``.gz``). The first line says
what it is; every other one is an `Entry`: its key follows from the judge and the content that was
judged, and neither from servers, stores and trace ids nor from the machine. Lines are sorted and
hold no times, so that the same run gives the same bytes.
"""

from __future__ import annotations

import atexit
import gzip
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, Final, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from workbench.compat import intercepted
from workbench.errors import ArgumentError, ReplayError
from workbench.models.cache import cache_directory
from workbench.models.faults import Kind

RECORD_VARIABLE: Final = "WORKBENCH_RECORD"

REPLAY_VARIABLE: Final = "WORKBENCH_REPLAY"

MODEL_VARIABLE: Final = "WORKBENCH_MODEL"

LONGEST_LINE: Final = 2**24
"""Bytes of a line beyond which it is no answer."""

LARGEST_FILE: Final = 2**28
"""Bytes, after expansion, beyond which a file is not read."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Head(_Line):
    """The first line."""

    file: Literal["workbench answers"]
    format: Literal[2]
    default_model: str | None = None


class Paid(_Line):
    """What an answer cost in the recorded run: all 0 where it was known before."""

    requests: int = Field(default=0, ge=0, lt=2**53)
    read: int | None = Field(default=None, ge=0, lt=2**53)
    written: int | None = Field(default=None, ge=0, lt=2**53)
    cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Failed(_Line):
    """Why there is no answer."""

    kind: Kind
    message: str = ""


class Entry(_Line):
    """The answer to one question, or why there is none."""

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    about: str = ""
    answer: dict[str, Any] | None = None
    failed: Failed | None = None
    paid: Paid = Field(default_factory=Paid)

    @model_validator(mode="after")
    def _either(self) -> Entry:
        if (self.answer is None) == (self.failed is None):
            raise ValueError("an entry has either an answer or a failure")
        return self


# -- the file -------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[Head, dict[str, Entry]]:
    """Head and entries of a file of answers. The file may come from anywhere: it is only data.

    Raises
    ------
    ReplayError
        Where the file cannot be read or a line is not as it must be; the line is named.
    """
    head: Head | None = None
    entries: dict[str, Entry] = {}
    number = 0
    try:
        with _opened(path) as stream:
            for line in _lines(stream):
                number += 1
                found = json.loads(line)
                if head is None:
                    head = Head.model_validate(found)
                else:
                    entry = Entry.model_validate(found)
                    entries[entry.key] = entry
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ReplayError(
            f"Line {number} of {path} is not as a file of answers has it: "
            f"{where}{': ' if where else ''}{first['msg'][:300]}. Get the file again as it was "
            "recorded, or record it anew: files of earlier versions cannot be read."
        ) from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ReplayError(
            f"The file of answers {path} cannot be read after line {number}: {error}. Name a file "
            "that was written by workbench.recording(path) or `workbench run --record FILE`."
        ) from None
    if head is None:
        raise ReplayError(f"The file of answers {path} is empty. Record it again.")
    return head, entries


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream  # type: ignore[misc]  # read like any other stream
        else:
            yield raw


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a stream, which is read no further than it may be long."""
    size = 0
    while line := stream.readline(LONGEST_LINE + 1):
        size += len(line)
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE:,} bytes")
        if size > LARGEST_FILE:
            raise ValueError(f"it expands to more than {LARGEST_FILE:,} bytes")
        yield line


def _write_file(path: Path, head: Head, entries: dict[str, Entry]) -> None:
    """Write the file, whole or not at all."""
    records = [head.model_dump()]
    records += [entries[key].model_dump(exclude_defaults=True) for key in sorted(entries)]
    data = "".join(f"{json.dumps(record, sort_keys=True)}\n" for record in records).encode("ascii")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


class _File:
    """What recorder and player share."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().resolve()
        self._lock = threading.RLock()
        self._traces: dict[str, dict[str, int]] = {}

    def occurrence(self, content: str, trace_id: str) -> int:
        """The number of a trace among those of equal content, in the order of asking."""
        with self._lock:
            known = self._traces.setdefault(content, {})
            return known.setdefault(trace_id, len(known))


class Recorder(_File):
    """Notes the answers of a run, and writes them to a file.

    A file of answers that is there already is added to, so that a run that was interrupted is
    completed by running it again, and processes that are started within it add theirs.

    Raises
    ------
    ArgumentError
        Where the file cannot be written.
    ReplayError
        Where something lies there that is no file of answers.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK):
            raise ArgumentError(
                f"The answers cannot be written to {self.path}: there is no folder "
                f"{self.path.parent} that can be written to. Make it, or name another file."
            )
        self.head = Head(
            file="workbench answers", format=2, default_model=os.environ.get(MODEL_VARIABLE) or None
        )
        self._entries: dict[str, Entry] = {}
        self._changed = False
        if self.path.exists():
            read_file(self.path)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Note an answer."""
        with self._lock:
            kept = _kept(self._entries.get(entry.key), entry)
            if kept is entry:
                self._entries[entry.key] = entry
                self._changed = True

    def save(self) -> None:
        """Write the file, with what other processes have added to it meanwhile."""
        with self._lock:
            if not self._changed and self.path.exists():
                return
            try:
                with self._alone():
                    entries = read_file(self.path)[1] if self.path.exists() else {}
                    for key, entry in self._entries.items():
                        entries[key] = _kept(entries.get(key), entry)
                    _write_file(self.path, self.head, entries)
            except (OSError, filelock.Timeout) as error:
                raise ReplayError(
                    f"The answers could not be written to {self.path}: {error}. Name another file; "
                    "the same run again pays nothing twice."
                ) from None
            self._changed = False

    def _alone(self) -> filelock.BaseFileLock:
        """Held while the file is changed; the lock lies with the cache, which leaves no trace."""
        folder = cache_directory() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(str(self.path).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return filelock.FileLock(folder / f"{name}.lock", timeout=60)

    def __repr__(self) -> str:
        return f"<Recorder of {len(self)} answers in {self.path}>"


def _kept(before: Entry | None, now: Entry) -> Entry:
    """Which of two entries of a question is kept: what was paid, not what was found again."""
    if before is None or (before.failed and not now.failed):
        return now
    return now if now.answer is not None and now.paid.requests else before


class Player(_File):
    """The answers of a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.head, self._entries = read_file(self.path)
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """The answer; what it cost is part of it the first time only."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        with self._lock:
            again = key in self._used
            self._used.add(key)
        return entry.model_copy(update={"paid": Paid()}) if again and entry.answer else entry

    def missing(self, who: str) -> ReplayError:
        """The error for a question that has no answer in the file."""
        return ReplayError(
            f"{who} has no answer in {self.path}, which is replayed, so that no model is called. "
            "This run is not the recorded one: judge, instructions, data, parameters, seed or the "
            "version of the workbench differ. Run with those of the recording, or record anew "
            "with workbench.recording(path) or `workbench run --record FILE` and a model that can "
            "be reached."
        )

    def __repr__(self) -> str:
        return f"<Player of {len(self)} answers from {self.path}>"


# -- what is recorded or replayed now -------------------------------------------------------


_current: ContextVar[Recorder | Player | None] = ContextVar("workbench_recording", default=None)

_from_environment: dict[tuple[str, str], Recorder | Player] = {}

_for_children: list[str] = []
"""Files that `recording` and `replaying` name in the environment for processes to be started."""

_choosing = threading.Lock()


def current() -> Recorder | Player | None:
    """What the innermost `recording` or `replaying` uses, else the file of the environment.

    Threads that run in a copy of the context (`contextvars.copy_context`) have the same.
    """
    found = _current.get()
    return _of_environment() if found is None else found


def _of_environment() -> Recorder | Player | None:
    named = [
        (variable, path)
        for variable in (RECORD_VARIABLE, REPLAY_VARIABLE)
        if (path := os.environ.get(variable)) and path not in _for_children
    ]
    if not named:
        return None
    if len(named) > 1:
        raise ArgumentError(
            f"{RECORD_VARIABLE} and {REPLAY_VARIABLE} are both set. A run is either recorded or "
            "replayed: unset one of them."
        )
    with _choosing:
        chosen = named[0]
        if chosen not in _from_environment:
            variable, path = chosen
            if variable == REPLAY_VARIABLE:
                _from_environment[chosen] = Player(path)
                intercepted.always(lambda: None if replayed() is None else _Refusal())
            else:
                recorder = _from_environment[chosen] = Recorder(path)
                atexit.register(_save_at_exit, recorder)
        return _from_environment[chosen]


def _save_at_exit(recorder: Recorder) -> None:
    if recorder.path.parent.is_dir():  # a test's folder may be gone
        recorder.save()


def replayed() -> Player | None:
    """The file that is replayed; None where models are called."""
    found = current()
    return found if isinstance(found, Player) else None


def recorder() -> Recorder | None:
    """Where answers are noted; None where they are not."""
    found = current()
    return found if isinstance(found, Recorder) else None


def refuse_calls(who: str) -> None:
    """Raise `ReplayError` where a run is replayed, in which no model is ever called."""
    player = replayed()
    if player is not None:
        raise ReplayError(
            f"{who} was about to call a model while {player.path} is replayed, where no model is "
            "called. Only what workbench.assess, align and compare_optimizers do can be replayed; "
            "run the rest outside workbench.replaying(...)."
        )


@contextmanager
def recording(path: str | os.PathLike[str]) -> Iterator[Recorder]:
    """Write every model answer that is used within this context to one file.

    Parameters
    ----------
    path
        The file, gzip-compressed where the name ends in ``.gz``. One that is there is added to.

    Answers of judges and of the reflection model are noted, whether they are fresh, from the cache
    or verdicts that the traces in the store bear already; failures as well, since they decide
    results like answers do. No prompt, key, header or address is written; what models answered
    may quote what they were shown. The file is written after each batch of calls and at the end, an
    end by an error or Ctrl-C included. Alignments in the background and processes that are started
    within the context are recorded too.

    Of an optimizer that is not the workbench's what it came to is noted and not what it asked; not
    noted is one whose judges hold more than instructions, as MemAlign's do.

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

    No model is called, no key is needed, and neither cache nor servers matter, nor which store the
    traces lie in, as long as their content is the same. Calls, tokens and cost are reported as
    the recorded run paid them, so that figures and budgets come out the same; nothing is paid.
    A judge that names no model has the one that it had when the run was recorded.

    Raises
    ------
    ReplayError
        When the file cannot be read; and from whatever asks for an answer that it does not hold.

    >>> with workbench.replaying("answers.jsonl.gz"):  # doctest: +SKIP
    ...     workbench.assess(judge, traces)
    ...     alignment = workbench.align(judge, traces)
    """
    player = Player(path)
    with _in_use(player, REPLAY_VARIABLE), intercepted(_Refusal()):
        yield player


class _Refusal:
    """Refuses requests of judges that are called directly."""

    def post(self, endpoint: str, headers: Any, payload: Any) -> Any:
        refuse_calls("A judge that was called directly")

    def ask(self, payload: Any, send: Any) -> Any:
        refuse_calls("A judge that was called directly")


@contextmanager
def _in_use(used: Recorder | Player, variable: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (RECORD_VARIABLE, REPLAY_VARIABLE)}
    token = _current.set(used)
    # Processes that are started within find it there; this one heeds its own context only.
    _for_children.append(str(used.path))
    for name in before:
        os.environ.pop(name, None)
    os.environ[variable] = str(used.path)
    try:
        yield
    finally:
        _current.reset(token)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _for_children.remove(str(used.path))


def variables(
    record: str | os.PathLike[str] | None, replay: str | os.PathLike[str] | None
) -> dict[str, str]:
    """Environment of a process that is to record or replay; checks that it can.

    Raises
    ------
    ArgumentError
        For both at once, or a file that cannot be written to.
    ReplayError
        For a file that cannot be read.
    """
    if record is not None and replay is not None:
        raise ArgumentError("record= and replay= exclude each other: give one of them.")
    if record is not None:
        return {RECORD_VARIABLE: str(Recorder(record).path), REPLAY_VARIABLE: ""}
    if replay is not None:
        return {REPLAY_VARIABLE: str(Player(replay).path), RECORD_VARIABLE: ""}
    return {}
