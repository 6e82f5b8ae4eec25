"""What a run shows: a bar on a terminal, lines in a log."""

from __future__ import annotations

import io

from workbench.experiments.notebook import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_for_each_stage_and_the_output_as_it_comes() -> None:
    log = io.StringIO()
    view = Progress("4_align", ["Import", "Import", "Align"], stream=log)
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
    view = Progress("n", ["Judge"], stream=log, clock=lambda: seconds[0])
    view.start(0)
    for done in range(4):
        seconds[0] += 2
        view.output(f"\rjudging: {done}/4")
    view.output("\rjudging: 4/4\n")
    view.close()
    assert log.getvalue().splitlines() == ["[1/1] Judge", "judging: 2/4", "judging: 4/4"]


def test_a_terminal_shows_stage_and_progress_in_one_line() -> None:
    terminal = Terminal()
    view = Progress("4_align", ["Judge", "Judge"], stream=terminal)
    view.start(0)
    view.output("\rjudging:  50%|█████     | 5/10 [00:01<00:01, 5.0it/s]")
    view.output("\ra line\n")
    view.close()
    shown = terminal.getvalue()
    assert "4_align" in shown
    assert "1/2" in shown
    assert "Judge: judging:  50% 5/10 [00:01<00:01, 5.0it/s]" in shown
    assert "\na line\n" in shown.replace("\r", "\n")


def test_nothing_is_shown_where_none_is_wanted() -> None:
    log = Terminal()
    view = Progress("n", ["Judge"], stream=log, show=False)
    view.start(0)
    view.output("line\n")
    view.output("\r1/2")
    view.close()
    assert log.getvalue() == ""
