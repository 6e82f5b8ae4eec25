"""What a run shows: stages, output, and rewritten lines live on a terminal."""

from __future__ import annotations

import io

from workbench.experiments.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_for_each_stage_and_the_output_as_it_comes() -> None:
    log = io.StringIO()
    view = Progress(["Import", "Import", "Align"], stream=log)
    view.start(0)
    view.output("one\ntw")
    view.output("o\n")
    view.start(1)
    view.start(2)
    view.output("no end of line")
    view.close()
    assert log.getvalue().splitlines() == [
        "[1/3] Import", "one", "two", "[3/3] Align", "no end of line",
    ]  # fmt: skip


def test_a_log_shows_a_rewritten_line_now_and_then_and_its_last_state() -> None:
    log, seconds = io.StringIO(), [0.0]
    view = Progress(["Judge"], stream=log, clock=lambda: seconds[0])
    view.start(0)
    for done in range(4):
        seconds[0] += 2
        view.output(f"\rjudging: {done}/4")
    view.output("\rjudging: 4/4\n")
    view.close()
    assert log.getvalue().splitlines() == ["[1/1] Judge", "judging: 2/4", "judging: 4/4"]


def test_a_terminal_shows_every_state_of_a_rewritten_line() -> None:
    terminal = Terminal()
    view = Progress(["Judge", "Judge"], stream=terminal)
    view.start(0)
    view.output("\rjudging:  5/10")
    view.output("\rjudging: 10/10")
    view.start(1)
    view.output("a line\n")
    view.close()
    shown = terminal.getvalue().replace("\r\x1b[K", "|")
    assert shown == "|[1/2] Judge\n|judging:  5/10|judging: 10/10|judging: 10/10\n|a line\n"
