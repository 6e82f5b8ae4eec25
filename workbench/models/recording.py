"""The model answers of a run in one file: noted while it runs, and replayed without a model.

`recording` writes every answer that a run uses, of judges and of the reflection model, be it
fresh, from the cache or from the store, and what other people's optimizers came to (see
`workbench.proposal`). `replaying` takes them from that file and calls no model, so that someone
without a key, or CI, gets the same result; what is not in the file is an error.

The file is text, one JSON object a line (gzip where its name ends in ``.gz``). The first line says
what it is; every other one holds a ``key``, which follows from the judge and the content that was
judged and neither from servers, stores and trace ids nor from the machine, the ``kind`` of
question with the judge's or model's name, the ``answer``, and what was ``paid`` for it. The same
run gives the same bytes: lines are sorted and bear no times.
"""

from __future__ import annotations

import atexit
import contextlib
import gzip
import io
import json
import math
import os
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple

import filelock

from workbench.errors import ArgumentError, BudgetError, ReplayError
from workbench.models.budget import Budget, Receipt, amounts
from workbench.models.cache import cache_directory, question_key

RECORD_VARIABLE: Final = "WORKBENCH_RECORD"

REPLAY_VARIABLE: Final = "WORKBENCH_REPLAY"

MODEL_VARIABLE: Final = "WORKBENCH_MODEL"


FORMAT: Final = 1

LONGEST_LINE: Final = 2**26
"""Characters of a line beyond which it is no answer."""


Kind = Literal["judge", "uncached", "reflection"]


KINDS: Final = ("judge", "uncached", "reflection", "optimizer", "measured", "stop")
"""``uncached``: a judge's answer that was asked for anew; ``optimizer``: what one that is not the
workbench's came to; ``measured``: what a judgement takes; ``stop``: where a budget ended."""


Answer = dict[str, Any]


class Line(NamedTuple):
    """One answer: the ``turn``-th one (from 0) that the run got to the question ``key``."""

    key: str
    turn: int
    kind: str
    about: dict[str, Any]
    answer: Answer
    paid: dict[str, Any]


# -- the file -------------------------------------------------------------------------------


def read_lines(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """Head and lines of a file of answers. The file may come from anywhere: it is only data.

    Raises
    ------
    ReplayError
        Where the file cannot be read or a line is not as it must be; the line is named.
    """
    head: dict[str, Any] | None = None
    lines: list[Line] = []
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            with io.TextIOWrapper(stream, encoding="utf-8", newline="\n") as text:
                while line := text.readline(LONGEST_LINE):
                    number += 1
                    if head is None:
                        head = _head(line)
                    else:
                        lines.append(_line(line))
    except _BadLineError as error:
        raise ReplayError(
            f"Line {number} of {path} is not as a file of answers has it: {error}. "
            "Get the file again as it was recorded."
        ) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ReplayError(
            f"The file of answers {path} cannot be read after line {number}: {error}. Name a file "
            "that was written by workbench.recording(path) or `workbench run --record FILE`."
        ) from None
    if head is None:
        raise ReplayError(f"The file of answers {path} is empty. Record it again.")
    return head, lines


class _BadLineError(Exception):
    """What is wrong with a line."""


def _object(line: str) -> dict[str, Any]:
    if len(line) >= LONGEST_LINE:
        raise _BadLineError(f"it has more than {LONGEST_LINE} characters")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"no JSON ({type(error).__name__}: {str(error)[:200]})") from None
    if not isinstance(found, dict):
        raise _BadLineError(f"a JSON {type(found).__name__}, where an object is needed")
    return found


def _head(line: str) -> dict[str, Any]:
    head = _object(line)
    if head.get("file") != "workbench answers":
        raise _BadLineError('it must begin with {"file": "workbench answers", ...}')
    if head.get("format") != FORMAT:
        raise _BadLineError(f"format {head.get('format')!r} is not {FORMAT}, the one known here")
    model = head.get("default_model")
    if model is not None and not isinstance(model, str):
        raise _BadLineError("default_model is no text")
    return head


_KEY = re.compile(r"[0-9a-f]{64}")


def _line(line: str) -> Line:
    found = _object(line)
    key, turn, kind = found.get("key"), found.get("turn", 0), found.get("kind")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise _BadLineError("key is not 64 hexadecimal digits")
    if not _whole(turn):
        raise _BadLineError(f"turn={turn!r} is no count")
    if kind not in KINDS:
        raise _BadLineError(f"kind={kind!r} is none of {', '.join(KINDS)}")
    answer, paid, about = (found.get(name, {}) for name in ("answer", "paid", "about"))
    if not all(isinstance(part, dict) for part in (answer, paid, about)):
        raise _BadLineError("answer, paid and about must be objects")
    if kind in ("judge", "uncached"):
        if not isinstance(answer.get("rationale", ""), str):
            raise _BadLineError("the rationale is no text")
        if not isinstance(answer.get("error"), (str, type(None))):
            raise _BadLineError("the error is no text")
        if (answer.get("error") is None) == (answer.get("value") is None):
            raise _BadLineError("an answer has either a value or an error")
    elif kind == "reflection":
        _check_texts(answer)
    elif kind == "optimizer":
        _check_proposal(answer)
    elif kind == "measured" and not all(map(_whole, answer.values())):
        raise _BadLineError("what was measured is no count")
    elif kind == "stop" and answer != {"stopped": "budget"}:
        raise _BadLineError("a run was stopped by its budget or not at all")
    for name, amount in paid.items():
        if name == "charged":
            if not isinstance(amount, dict) or not all(map(_whole, amount.values())):
                raise _BadLineError("paid 'charged' is no receipt")
            continue
        fits = _whole(amount) if name in _COUNTS else name == "cost" and _amount(amount)
        if not fits:
            raise _BadLineError(f"paid {str(name)[:40]!r} is no amount")
    return Line(key, turn, kind, about, answer, paid)


def _check_texts(answer: Answer) -> None:
    for name, texts in answer.items():
        fits = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not fits and not isinstance(texts, str):
            raise _BadLineError(f"{str(name)[:40]!r} of a reflection is neither text nor texts")


def _check_proposal(answer: Answer) -> None:
    if isinstance(answer.get("instructions"), str) == isinstance(answer.get("error"), str):
        raise _BadLineError("an optimizer has either instructions or an error")
    for name, told in answer.items():
        if name in ("instructions", "error", "kind"):
            fits = isinstance(told, str)
        elif name == "notes":
            fits = isinstance(told, list) and all(isinstance(note, str) for note in told)
        else:
            fits = _amount(told) if name == "cost" else _whole(told)
        if not fits:
            raise _BadLineError(f"{str(name)[:40]!r} of an optimizer is not what it must be")


_COUNTS = ("calls", "input_tokens", "output_tokens", "tokens")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _amount(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _written(path: Path, head: dict[str, Any], lines: Sequence[Line]) -> bytes:
    records: list[dict[str, Any]] = [head]
    for line in sorted(lines, key=lambda one: (KINDS.index(one.kind), one.key, one.turn)):
        # What is nothing is left out.
        records.append({k: v for k, v in line._asdict().items() if v or k in ("key", "answer")})
    text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    data = text.encode("ascii")
    return gzip.compress(data, mtime=0) if path.suffix == ".gz" else data


# -- writing and reading while a run goes on ------------------------------------------------


class _Tape:
    """What recorder and player share: who asked what how often."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._asked: Counter[str] = Counter()
        self._places: dict[str, dict[str, int]] = {}

    def turn(self, key: str) -> int:
        """How often the question was asked before; counts it."""
        with self._lock:
            self._asked[key] += 1
            return self._asked[key] - 1

    def place(self, content: str, trace_id: str) -> int:
        """The number of a trace among those with the same content, in the order of asking."""
        with self._lock:
            known = self._places.setdefault(content, {})
            return known.setdefault(trace_id, len(known))


class Recorder(_Tape):
    """Notes the answers of a run and writes them to a file.

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
        super().__init__(Path(path).expanduser().resolve())
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK):
            raise ArgumentError(
                f"The answers cannot be written to {self.path}: there is no folder "
                f"{self.path.parent} that can be written to. Make it, or name another file."
            )
        self.head = {
            "file": "workbench answers",
            "format": FORMAT,
            "default_model": os.environ.get(MODEL_VARIABLE) or None,
        }
        self._lines: dict[tuple[str, int], Line] = {}
        self._latest: dict[str, Line] = {}
        self._kept: list[Line] = []
        self._seen: tuple[int, ...] | None = None
        self._changed = False
        self._read()

    def __len__(self) -> int:
        return sum(line.kind != "stop" for line in self._lines.values())

    def keep(self, line: Line, *, repeated: bool = False) -> None:
        """Note an answer. ``repeated``: one that says no more than the one before."""
        with self._lock:
            last = self._latest.get(line.key)
            if repeated and last is not None and last.answer == line.answer:
                return
            self._latest[line.key] = self._lines[line.key, line.turn] = line
            self._changed = True

    def save(self) -> None:
        """Write the file, whole or not at all."""
        with self._lock:
            if not self._changed and self.path.exists():
                return
            beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
            try:
                # Else what another process adds between reading and writing would be lost.
                with self._alone():
                    self._read()
                    own = {line.key for line in self._lines.values()}
                    lines = [line for line in self._kept if line.key not in own]
                    data = _written(self.path, self.head, [*lines, *self._lines.values()])
                    beside.write_bytes(data)
                    beside.replace(self.path)
                    self._seen = self._state()
            except (OSError, filelock.Timeout) as error:
                raise ReplayError(
                    f"The answers could not be written to {self.path}: {error}. Name another file; "
                    "the same run again pays nothing twice."
                ) from None
            finally:
                beside.unlink(missing_ok=True)
            self._changed = False

    def _alone(self) -> filelock.BaseFileLock:
        """Held while the file is changed; the lock lies with the cache, which leaves no trace."""
        folder = cache_directory() / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(folder / f"{question_key(str(self.path))[:16]}.lock", timeout=60)

    def _read(self) -> None:
        """What others wrote to the file."""
        state = self._state()
        if state is not None and state != self._seen:
            self._kept = read_lines(self.path)[1]
        self._seen = state

    def _state(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def __repr__(self) -> str:
        return f"<Recorder of {len(self)} answers in {self.path}>"


class Player(_Tape):
    """The answers of a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(Path(path).expanduser().resolve())
        self.head, lines = read_lines(self.path)
        self._lines: dict[str, dict[int, Line]] = {}
        for line in lines:
            self._lines.setdefault(line.key, {})[line.turn] = line

    def __len__(self) -> int:
        lines = (line for turns in self._lines.values() for line in turns.values())
        return sum(line.kind != "stop" for line in lines)

    def find(self, key: str, turn: int, *kinds: str) -> Line | None:
        """The answer, of one of these kinds, that the recorded run got at that turn.

        Asked more often than it was, a question has its last answer, for which nothing is paid. A
        first time that was interrupted has left none; then the next one's is the first.
        """
        turns = {n: line for n, line in self._lines.get(key, {}).items() if line.kind in kinds}
        if not turns:
            return None
        if turn in turns:
            return turns[turn]
        before = [number for number in turns if number < turn]
        if not before:
            return turns[min(turns)]._replace(turn=turn)
        last = turns[max(before)]
        paid = last.paid if last.kind == "uncached" else _receipt_alone(last.paid)
        return last._replace(turn=turn, paid=paid)

    def __repr__(self) -> str:
        return f"<Player of {len(self)} answers from {self.path}>"


def charged(paid: Mapping[str, Any]) -> Receipt:
    """What a budget is charged with for an answer, whoever paid for it and when."""
    if "charged" in paid:
        return Receipt.of(paid["charged"])
    told = amounts(paid)
    return Receipt(int(told["calls"]), int(told["tokens"]))


def _receipt_alone(paid: Mapping[str, Any]) -> dict[str, Any]:
    return {"charged": paid["charged"]} if "charged" in paid else {}


# -- the tape that is active ----------------------------------------------------------------


_stack: list[Recorder | Player] = []

_from_environment: dict[tuple[str, str], Recorder | Player] = {}

_choosing = threading.Lock()


def active() -> Recorder | Player | None:
    """The tape of the innermost `recording` or `replaying`, else the one the environment names."""
    if _stack:
        return _stack[-1]
    named = [
        (variable, path)
        for variable in (RECORD_VARIABLE, REPLAY_VARIABLE)
        if (path := os.environ.get(variable))
    ]
    if len(named) > 1:
        raise ArgumentError(
            f"{RECORD_VARIABLE} and {REPLAY_VARIABLE} are both set. A run is either recorded or "
            "replayed: unset one of them."
        )
    for chosen in named:
        with _choosing:
            if chosen not in _from_environment:
                variable, path = chosen
                if variable == REPLAY_VARIABLE:
                    _from_environment[chosen] = Player(path)
                else:
                    recorder = _from_environment[chosen] = Recorder(path)
                    atexit.register(_save_at_exit, recorder)
        return _from_environment[chosen]
    return None


def _save_at_exit(recorder: Recorder) -> None:
    if recorder.path.parent.is_dir():  # a test's folder may be gone
        recorder.save()


def replays() -> Player | None:
    """The file that is replayed; None where models are called."""
    tape = active()
    return tape if isinstance(tape, Player) else None


def refuse_calls(who: str) -> None:
    """Raise `ReplayError` where a run is replayed, in which no model is ever called."""
    player = replays()
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
    end by an error or Ctrl-C included. Threads that run within the context are recorded too, and
    processes that are started within it.

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
    traces lie in, as long as their content is the same. Calls, tokens and cost are told as
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
    with _in_use(player, REPLAY_VARIABLE):
        yield player


@contextmanager
def _in_use(tape: Recorder | Player, variable: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (RECORD_VARIABLE, REPLAY_VARIABLE)}
    _stack.append(tape)
    # Processes that are started within find it there.
    for name in before:
        os.environ.pop(name, None)
    os.environ[variable] = str(tape.path)
    try:
        yield
    finally:
        _stack.remove(tape)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def tape_variables(
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


# -- questions that are asked together ------------------------------------------------------


class Batch:
    """Some questions that are asked together, noted or replayed where a tape is active.

    Parameters
    ----------
    keys
        What each is kept under (see `Line`).
    tape
        The active one.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()

    def __init__(self, keys: Sequence[str], tape: Recorder | Player | None) -> None:
        self.tape, self.keys = tape, list(keys)
        self.turns = [tape.turn(key) for key in keys] if tape is not None else []
        self._paid: list[Receipt] = []

    @property
    def key(self) -> str:
        """Of the batch as a whole."""
        return question_key("batch", sorted(zip(self.keys, self.turns, strict=True)))

    def replayed(self, budget: Budget, who: Callable[[int], str]) -> list[Line] | None:
        """All answers from the file that is replayed, charged to the budget; None without one.

        ``who(index)`` tells whom the question was put to, about what.

        Raises
        ------
        BudgetError
            Where the recorded run ended so.
        ReplayError
            For an answer that the file does not hold.
        """
        player = self.tape
        if not isinstance(player, Player):
            return None
        found = [
            player.find(key, turn, *self.kinds)
            for key, turn in zip(self.keys, self.turns, strict=True)
        ]
        for line in found:
            if line is not None:
                made = int(line.paid.get("calls") or 0)
                budget.charge(charged(line.paid), str(line.about.get("model") or ""), made=made)
        missing = [index for index, line in enumerate(found) if line is None]
        if missing:
            stop = player.find(self.key, 0, "stop")
            if stop is not None and budget.is_limited:
                budget.burn(stop.paid)
                raise budget.exhausted()
            more = f" (and {len(missing) - 1} more of {len(found)})" if len(missing) > 1 else ""
            raise ReplayError(
                f"{who(missing[0])}{more} has no answer in {player.path}, which is replayed, so "
                "that no model is called. This run is not the recorded one: judge, instructions, "
                "data, parameters, seed or the version of the workbench differ. Run with those of "
                "the recording, or record anew with workbench.recording(path) or `workbench run "
                "--record FILE` and a model that can be reached."
            )
        return [line for line in found if line is not None]

    def note(
        self,
        index: int,
        kind: Kind,
        about: dict[str, Any],
        answer: Answer,
        paid: dict[str, Any],
        *,
        repeated: bool = False,
    ) -> None:
        """Note the answer to one of the questions."""
        if isinstance(self.tape, Recorder):
            given = {
                name: amount
                for name, amount in paid.items()
                if amount is not None and (amount or name != "calls")
            }
            self._paid.append(charged(paid))
            line = Line(self.keys[index], self.turns[index], kind, about, answer, given)
            self.tape.keep(line, repeated=repeated)

    @contextmanager
    def noted(self, budget: Budget) -> Iterator[None]:
        """Within it the questions are asked; how that ends is noted, and the file written."""
        if not isinstance(self.tape, Recorder):
            yield
            return
        before = budget.state()
        try:
            yield
        except BaseException as error:
            if isinstance(error, BudgetError):
                # What was spent without an answer that anyone got.
                after = budget.state()
                lost = {
                    "calls": after["calls"] - before["calls"] - sum(r.calls for r in self._paid),
                    "tokens": after["tokens"]
                    - before["tokens"]
                    - sum(r.tokens for r in self._paid),
                }
                paid = {name: amount for name, amount in lost.items() if amount > 0}
                self.tape.keep(Line(self.key, 0, "stop", {}, {"stopped": "budget"}, paid))
            with contextlib.suppress(ReplayError):  # what is on its way must not be hidden
                self.tape.save()
            raise
        self.tape.save()
