"""The checkpoint of an alignment: written after each step, told of when it is taken up."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from promises import BASE

from workbench.simba.optimizer import Checkpoint
from workbench.simba.search import Optimised


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def ended(stopped: str) -> Optimised:
    return Optimised(BASE, 0.5, 0.5, pd.DataFrame(), stopped)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_what_is_written_is_read() -> None:
    """The last state is there for another process, with whatever is not JSON as text."""
    one = Checkpoint("k" * 64)
    assert one.read() is None
    one.write({"step": 1, "best": "Überaus {{ outputs }}\u2028"})
    one.write({"step": 2, "where": Path("a")})
    read = Checkpoint("k" * 64).read()
    assert read is not None
    assert (read["step"], read["where"], read["finished"]) == (2, "a", False)
    assert [path.name for path in one.path.parent.iterdir()] == [one.path.name]


def test_an_interrupted_run_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    """The same call says how far it came before; another call says nothing."""
    Checkpoint("a" * 64).write({"step": 3})
    assert said(capsys) == ""
    Checkpoint("b" * 64)
    assert said(capsys) == ""
    Checkpoint("a" * 64)
    assert "after step 3" in said(capsys)


def test_a_run_at_its_end_is_not_taken_up(capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps its last state and why it stopped; a cancelled one is still to be taken up."""
    one = Checkpoint("a" * 64)
    one.write({"step": 3})
    one.finish(ended("it was cancelled"))
    Checkpoint("a" * 64)
    assert "after step 3" in said(capsys)
    one.finish(ended("all steps were made"))
    again = Checkpoint("a" * 64)
    assert said(capsys) == ""
    read = again.read()
    assert read is not None
    assert (read["step"], read["stopped"]) == (3, "all steps were made")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_broken_file_is_no_checkpoint(text: str) -> None:
    """What a killed process or a full disk left is not taken for a state, and is replaced."""
    one = Checkpoint("a" * 64)
    one.path.parent.mkdir(parents=True)
    one.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert Checkpoint("a" * 64).read() is None
    one.write({"step": 1})
    assert Checkpoint("a" * 64).read() is not None


def test_what_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the directory is in the way the run goes on, and says so."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "alignments").write_text("in the way")
    one = Checkpoint("a" * 64)
    one.write({"step": 1})
    assert "cannot be written" in said(capsys)
    assert one.read() is None
