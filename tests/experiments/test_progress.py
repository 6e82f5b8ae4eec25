"""What a run shows: headings, output as it comes, and rewritten lines."""

from __future__ import annotations

import io

from workbench.experiments.engine import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> str:
    view = Progress(["Import", "Import", "Align"], stream)
    view.start(0)
    view.output("one\ntw")
    view.output("o\n")
    view.start(1)
    view.output("\rjudging:  5/10")
    view.output("\rjudging: 10/10")
    view.start(2)
    view.output("no end of line")
    view.close()
    return stream.getvalue()


def test_a_log_has_a_line_for_each_heading_and_each_state_of_a_line() -> None:
    assert [line for line in shown(io.StringIO()).splitlines() if line] == [
        "[1/3] Import", "one", "two", "judging:  5/10", "judging: 10/10", "[3/3] Align",
        "no end of line",
    ]  # fmt: skip


def test_a_terminal_rewrites_lines_itself() -> None:
    assert shown(Terminal()) == (
        "[1/3] Import\none\ntwo\n\rjudging:  5/10\rjudging: 10/10\n[3/3] Align\nno end of line\n"
    )


def test_a_heading_with_nothing_beneath_gives_way() -> None:
    """On a terminal it stands as long as its cells run; a log never has it."""
    found = []
    for stream in (io.StringIO(), Terminal()):
        view = Progress(["Pairs", "Align", "Register"], stream)
        view.start(0)
        view.start(1)
        view.output("rules\n")
        view.start(2)
        view.close()
        found.append(stream.getvalue())
    gone = "\r\x1b[K"
    assert found == [
        "[2/3] Align\nrules\n",
        f"[1/3] Pairs{gone}[2/3] Align\nrules\n[3/3] Register{gone}",
    ]
