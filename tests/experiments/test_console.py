"""What a run shows: a bar on a terminal, lines in a log."""

from __future__ import annotations

import io

from workbench.experiments.notebook import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_for_each_stage_and_the_output_as_it_comes() -> None:
    log = io.StringIO()
    with Console("4_align", 3, stream=log) as view:
        view.start(1, "Import")
        view.output("stdout", "one\ntw")
        view.output("stdout", "o\n")
        view.start(2, "Import")
        view.start(3, "Align")
        view.output("stderr", "no end of line")
    assert log.getvalue().splitlines() == [
        "[1/3] Import", "one", "two", "[3/3] Align", "no end of line",
    ]  # fmt: skip


def test_of_a_rewritten_line_a_log_has_the_last_state_only() -> None:
    log = io.StringIO()
    with Console("n", 1, stream=log) as view:
        view.start(1, "Judge")
        for done in range(4):
            view.output("stderr", f"\rjudging: {done}/3")
        view.output("stderr", "\n")
    assert log.getvalue().splitlines() == ["[1/1] Judge", "judging: 3/3"]


def test_a_silent_step_gives_a_sign_of_life(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("workbench.experiments.notebook._QUIET_SECONDS", 0.0)
    log = io.StringIO()
    with Console("n", 2, stream=log) as view:
        view.start(2, "Think")
        view._closed.wait(1.5)
    assert "[2/2] Think … " in log.getvalue()


def test_a_terminal_shows_stage_and_progress_in_one_line() -> None:
    terminal = Terminal()
    with Console("4_align", 2, stream=terminal) as view:
        view.start(1, "Judge")
        view.output("stderr", "\rjudging:  50%|█████     | 5/10 [00:01<00:01, 5.0it/s]")
        view.output("stdout", "a line\n")
    shown = terminal.getvalue()
    assert "4_align" in shown
    assert "1/2" in shown
    assert "Judge: judging:  50% 5/10 [00:01<00:01, 5.0it/s]" in shown
    assert "\na line\n" in shown.replace("\r", "\n")


def test_nothing_is_shown_where_none_is_wanted() -> None:
    log = Terminal()
    with Console("n", 1, stream=log, show=False) as view:
        view.start(1, "Judge")
        view.output("stdout", "line\n")
        view.output("stderr", "\r1/2")
    assert log.getvalue() == ""
