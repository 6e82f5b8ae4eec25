"""What a run shows: headings, output as it comes, and rewritten lines."""

from __future__ import annotations

import io
import re
import sys

import pytest

from workbench.experiments.engine import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, show: bool = True) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console(["Import", "Import", "Align", "Register"], show=show)
    console.start(0)
    console.output("one\ntw")
    console.output("o\n\n")
    console.start(1)
    console.output("\rjudging:  5/10")
    console.output("\rjudging: 10/10")
    console.output("\x1b[A\r")
    console.output("\n")
    console.start(2)
    console.output("no end of line")
    console.start(3)
    console.close()
    return stream.getvalue()


def test_a_log_has_a_line_for_each_heading_and_each_state_of_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A heading under which nothing was printed is not there."""
    assert [line for line in shown(io.StringIO(), monkeypatch).splitlines() if line] == [
        "[1/4] Import", "one", "two", "judging:  5/10", "judging: 10/10", "[3/4] Align",
        "no end of line",
    ]  # fmt: skip
    assert shown(io.StringIO(), monkeypatch, show=False) == ""


def test_a_terminal_has_a_bar_with_the_line_that_is_rewritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above it stands what was printed, once."""
    states = [state.strip() for state in re.split(r"[\r\n]", shown(Terminal(), monkeypatch))]
    kept = [state for state in states if state and "[00:0" not in state]
    assert kept == ["[1/4] Import", "one", "two", "judging: 10/10", "[3/4] Align", "no end of line"]
    assert any(re.match(r"\[2/4\] Import \[00:0\d\], judging: 10/10", one) for one in states)
    assert states[-1] == ""
