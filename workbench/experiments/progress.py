"""What a run of a notebook shows while it goes on: where it is, and what its cells print."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import TextIO

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def without_escapes(text: str) -> str:
    """Return text without what colours and moves the cursor of a terminal."""
    return _ESCAPES.sub("", text)


class Progress:
    """Shows the heading above the running cell, and what the cell prints as it comes.

    Of a line that is rewritten, such as a progress bar, a terminal shows every state and a log
    one in five seconds.
    """

    def __init__(
        self,
        stages: list[str],
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages, self._stream, self._clock = stages, stream or sys.stderr, clock
        self._stage, self._line, self._last = "", "", clock()

    def start(self, index: int) -> None:
        """Show that the cell at ``index`` begins."""
        self.close()
        before, self._stage = self._stage, self._stages[index]
        if self._stage != before:
            self.output(f"[{index + 1}/{len(self._stages)}] {self._stage}\n")

    def output(self, text: str) -> None:
        """Show what a cell writes."""
        *lines, rest = (self._line + without_escapes(text)).split("\n")
        for line in lines:
            self._show(line, "\n")
        self._line = rest
        if "\r" in rest:
            self._line = f"\r{_last_state(rest)}"
            live = self._stream.isatty()
            if live or self._clock() - self._last >= 5.0:
                self._show(rest, "" if live else "\n")

    def close(self) -> None:
        """End an unfinished line."""
        self.output("\n" if self._line else "")

    def _show(self, line: str, end: str) -> None:
        if state := _last_state(line):
            self._last = self._clock()
            clear = "\r\x1b[K" if self._stream.isatty() else ""
            self._stream.write(f"{clear}{state}{end}")
            self._stream.flush()


def _last_state(line: str) -> str:
    """What is left on the screen of a line with carriage returns."""
    return next((state.rstrip() for state in reversed(line.split("\r")) if state.strip()), "")
