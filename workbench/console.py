"""What a running notebook shows in a terminal or a log: its stage, its progress, its output."""

from __future__ import annotations

import re
import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm.std import tqdm

_QUIET_SECONDS = 15.0
"""A log gets a sign of life after this long without a line."""

_DRAWN = re.compile(r"\|[^|]*\| *")

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Console:
    """A view of a run of ``total`` steps.

    A terminal has one bar at its bottom, with the stage, the time and whatever progress the
    step itself reports; a log, which has no cursor, has a line a stage and a sign of life.
    Both have the output of the steps as it comes.

    Parameters
    ----------
    title
        What runs.
    total
        Number of steps.
    stream
        Where to show it; stderr when None. ``show=False`` shows nothing.
    """

    def __init__(
        self, title: str, total: int, *, stream: TextIO | None = None, show: bool = True
    ) -> None:
        self.title, self.total, self.show = title, total, show
        self.stream = stream or sys.stderr
        self.terminal = show and self.stream.isatty()
        self._stage = ""
        self._step = 0
        self._partial = {"stdout": "", "stderr": ""}
        self._started = self._last_line = time.monotonic()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._bar: Any = None
        if self.terminal:
            self._bar = tqdm(
                total=total,
                file=self.stream,
                dynamic_ncols=True,
                leave=False,
                bar_format=title + " {bar:16} {n_fmt}/{total_fmt} [{elapsed}] {desc}",
            )

    def __enter__(self) -> Console:
        if self.show:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed.set()
        with self._lock:
            self._end_partial()
            if self._bar is not None:
                self._bar.close()

    def start(self, step: int, stage: str) -> None:
        """Step ``step``, counted from 1, begins; ``stage`` is shown when it is a new one."""
        with self._lock:
            self._end_partial()
            new, self._stage, self._step = stage != self._stage, stage, step
            if self._bar is not None:
                self._bar.n, self._bar.total = step, self.total
                self._bar.set_description_str(stage)
            elif new:
                self._line(f"[{step}/{self.total}] {stage}")

    def output(self, name: str, text: str) -> None:
        """Text that a step wrote to its ``stdout`` or ``stderr``.

        Whole lines are shown as they are. Of a line that is rewritten (a progress bar) the
        latest state is shown beside the stage, or now and then as a line of a log.
        """
        with self._lock:
            *lines, rest = (self._partial[name] + _CODES.sub("", text)).split("\n")
            for line in lines:
                shown = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
                if shown:
                    self._line(shown)
            states = [state for state in rest.split("\r") if state.strip()]
            self._partial[name] = rest if "\r" not in rest else "\r" + (states or [""])[-1]
            if "\r" in rest and states:
                self._state(states[-1].strip())

    def _state(self, state: str) -> None:
        if self._bar is not None:
            # There is no room for a drawn bar within the line; its figures suffice.
            self._bar.set_description_str(f"{self._stage}: {_DRAWN.sub(' ', state)}")
        elif time.monotonic() - self._last_line >= 5.0:
            self._line(state)

    def _end_partial(self) -> None:
        for name, text in self._partial.items():
            shown = text.rsplit("\r", 1)[-1].strip()
            if shown:
                self._line(shown)
            self._partial[name] = ""

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if not self.show:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def _tick(self) -> None:
        """Keep the clock going while a step is silent."""
        while not self._closed.wait(1.0):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()
                elif time.monotonic() - self._last_line >= _QUIET_SECONDS:
                    seconds = time.monotonic() - self._started
                    self._line(f"[{self._step}/{self.total}] {self._stage} … {seconds:.0f} s")
