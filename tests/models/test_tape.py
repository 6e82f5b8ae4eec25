"""The file of answers: the same bytes for the same run, only data when it is read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import workbench
from workbench.errors import ArgumentError, BudgetError, ReplayError
from workbench.models.budget import Budget
from workbench.models.recording import (
    RECORD_VARIABLE,
    REPLAY_VARIABLE,
    Batch,
    Line,
    Player,
    Recorder,
    active,
    recording,
    replaying,
)

A, B, C = (letter * 64 for letter in "abc")


class JudgeLines(Batch):
    kinds = ("judge",)


def line(key: str, value: Any = "good", *, turn: int = 0, **paid: Any) -> Line:
    return Line(
        key, turn, "judge", {"judge": "q"}, {"value": value, "rationale": "é好\u2028"}, paid
    )


def recorded(path: Path, *lines: Line) -> Path:
    with recording(path) as tape:
        for each in lines:
            tape.keep(each)
    return path


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.jsonl.gz"])
def test_equal_runs_write_equal_bytes(tmp_path: Path, name: str) -> None:
    """Whatever the order in which answers came, and whenever that was."""
    lines = [line(A, calls=1), line(B, 4.5), line(B, True, turn=2)]
    one = recorded(tmp_path / name, *lines).read_bytes()
    two = recorded(tmp_path / f"again-{name}", *reversed(lines)).read_bytes()
    assert one == two
    player = Player(tmp_path / name)
    assert len(player) == 3
    assert player.find(A, 0, "judge") == lines[0]
    assert player.find(B, 2, "judge") == lines[2]


def test_a_line_can_be_read(tmp_path: Path) -> None:
    """JSON with who was asked, the answer, and what was paid."""
    path = recorded(tmp_path / "answers", line(A, calls=1))
    head, first = map(json.loads, path.read_text("ascii").splitlines())
    assert head["file"] == "workbench answers"
    assert first["about"] == {"judge": "q"}
    assert first["answer"]["value"] == "good"
    assert first["paid"] == {"calls": 1}


def test_a_question_has_its_answers_in_turn(tmp_path: Path) -> None:
    """Asked more often than it was, the last one, for which nothing is paid."""
    player = Player(recorded(tmp_path / "a", line(A, "no", calls=2), line(A, "yes", turn=2)))
    answers = [player.find(A, turn, "judge") for turn in range(4)]
    assert [a.answer["value"] for a in answers if a] == ["no", "no", "yes", "yes"]
    assert [a.paid for a in answers if a] == [{"calls": 2}, {}, {}, {}]
    assert player.find(B, 0, "judge") is None
    # An answer of another kind is none, whatever a file says.
    assert player.find(A, 0, "reflection", "stop") is None


def test_a_first_time_that_left_no_answer_is_passed_over(tmp_path: Path) -> None:
    """It was interrupted, say, and what was run again has the second turn."""
    player = Player(recorded(tmp_path / "a", line(A, turn=1, calls=1)))
    found = player.find(A, 0, "judge")
    assert found is not None
    assert (found.answer["value"], found.paid) == ("good", {"calls": 1})


def test_a_repeated_answer_is_written_once(tmp_path: Path) -> None:
    with recording(tmp_path / "a") as tape:
        tape.keep(line(A))
        tape.keep(line(A, turn=1), repeated=True)
        tape.keep(line(A, "other", turn=2), repeated=True)
        assert len(tape) == 2


def test_a_file_that_is_there_is_added_to(tmp_path: Path) -> None:
    """A run that was interrupted is completed by the next one, whose answers count."""
    path = recorded(tmp_path / "a", line(A, "old", calls=1), line(B))
    recorded(path, line(A, "new"), line(C))
    player = Player(path)
    assert len(player) == 3
    found = player.find(A, 0, "judge")
    assert found is not None
    assert found.answer["value"] == "new"


def test_two_processes_write_to_one_file(tmp_path: Path) -> None:
    """One that is started while a run is recorded adds its own answers."""
    code = (
        "from workbench.models.recording import Line, active\n"
        f"active().keep(Line('{B}', 0, 'judge', {{}}, {{'value': 1}}, {{}}))\n"
    )
    with recording(tmp_path / "a") as tape:
        tape.keep(line(A))
        tape.save()
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        tape.keep(line(C))
    assert len(Player(tmp_path / "a")) == 3


def test_what_was_noted_is_written_after_an_interrupt(tmp_path: Path) -> None:
    def interrupted() -> None:
        with recording(tmp_path / "a") as tape:
            tape.keep(line(A))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(Player(tmp_path / "a")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_something_else_is_never_written_over(tmp_path: Path) -> None:
    """Nor is what is no file of answers replayed."""
    path = tmp_path / "thesis.txt"
    path.write_text("Chapter 1\n")
    for use in (recording, replaying):
        with pytest.raises(ReplayError, match=r"Line 1 of .*thesis\.txt.*no JSON"), use(path):
            pass
    assert path.read_text() == "Chapter 1\n"


GOOD = {"key": A, "kind": "judge", "answer": {"value": 1}}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("[1]", "a JSON list, where an object is needed"),
        ('{"key": ', "no JSON"),
        ("[" * 100_000, "no JSON"),
        (json.dumps(GOOD | {"key": "../../etc/passwd"}), "64 hexadecimal digits"),
        (json.dumps(GOOD | {"turn": -1}), "turn=-1 is no count"),
        (json.dumps(GOOD | {"turn": True}), "turn=True is no count"),
        (json.dumps(GOOD | {"kind": "pickle"}), "kind='pickle' is none of"),
        (json.dumps(GOOD | {"answer": "yes"}), "must be objects"),
        (json.dumps(GOOD | {"answer": {"value": 1, "rationale": ["a"]}}), "rationale is no text"),
        (json.dumps(GOOD | {"answer": {"value": 1, "error": 5}}), "error is no text"),
        (json.dumps(GOOD | {"answer": {}}), "either a value or an error"),
        (json.dumps(GOOD | {"paid": {"calls": -5}}), "'calls' is no amount"),
        (json.dumps(GOOD | {"paid": {"cost": float("nan")}}), "'cost' is no amount"),
        (json.dumps(GOOD | {"paid": {"lives": 1}}), "'lives' is no amount"),
        (
            json.dumps({"key": A, "kind": "reflection", "answer": {"rules": [1]}}),
            "'rules' of a reflection is neither text nor texts",
        ),
        (
            json.dumps({"key": A, "kind": "stop", "answer": {"instructions": "x"}}),
            "stopped by its budget or not at all",
        ),
        (
            json.dumps({"key": A, "kind": "measured", "answer": {"calls": "many"}}),
            "what was measured is no count",
        ),
        (
            json.dumps({"key": A, "kind": "optimizer", "answer": {}}),
            "either instructions or an error",
        ),
        (
            json.dumps({"key": A, "kind": "optimizer", "answer": {"error": "", "known": -1}}),
            "'known' of an optimizer is not what it must be",
        ),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, bad: str, said: str) -> None:
    """A file may come from anywhere; what is not as it must be is not used."""
    path = recorded(tmp_path / "a", line(A), line(B))
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(ReplayError, match=r"Line 4 of .*recorded\.$") as caught:
        Player(path)
    assert said in str(caught.value)


def test_a_line_without_an_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However well it was packed, no more than a line's length of it is read."""
    monkeypatch.setattr("workbench.models.recording.LONGEST_LINE", 1000)
    path = recorded(tmp_path / "a.gz", line(A))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b" " * 10_000_000))
    with pytest.raises(ReplayError, match="more than 1000 characters"):
        Player(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"\x1f\x8b not packed",
        b'{"file": "workbench answers", "format": 99}\n',
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ReplayError, match=str(path)):
        Player(path)


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    path = recorded(
        tmp_path / "a.gz", *(line(f"{n:064x}", os.urandom(50).hex()) for n in range(99))
    )
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ReplayError, match="cannot be read after line"):
        Player(path)


def test_a_missing_file_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"nowhere.*recording\(path\)"):
        Player(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="there is no folder"):
        Recorder(tmp_path / "no" / "where")


def test_the_environment_names_a_tape_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For notebooks and processes that are started; both at once make no sense."""
    path = recorded(tmp_path / "a", line(A))
    monkeypatch.setenv(REPLAY_VARIABLE, str(path))
    assert isinstance(active(), Player)
    assert active() is active()
    monkeypatch.setenv(RECORD_VARIABLE, str(tmp_path / "b"))
    with pytest.raises(ArgumentError, match="both set"):
        active()
    with recording(tmp_path / "c") as tape:  # what the program says goes before
        assert active() is tape
        assert REPLAY_VARIABLE not in os.environ
    assert os.environ[REPLAY_VARIABLE] == str(path)


def test_a_model_that_is_not_named_is_that_of_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment of who replays it says."""
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/recorded")
    path = recorded(tmp_path / "a", line(A))
    monkeypatch.delenv("WORKBENCH_MODEL")
    embedded = recorded(tmp_path / "b", line(A))
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/another")
    with replaying(path):
        assert workbench.DEFAULT_MODEL == "openai:/recorded"
    with replaying(embedded):
        assert workbench.DEFAULT_MODEL == "offline:/rubric"
    assert workbench.DEFAULT_MODEL == "openai:/another"


def test_a_budget_ends_a_replayed_run_where_it_ended_the_recorded_one(tmp_path: Path) -> None:
    """Also where calls were paid for whose answers nobody got; without a budget it is an error."""
    path = tmp_path / "a"

    def stopped() -> None:
        with recording(path) as tape:
            batch, budget = JudgeLines([A, B, C], tape), Budget(3)
            with batch.noted(budget):
                budget.take()
                batch.note(0, "judge", {}, {"value": 1}, {"calls": 1})
                for _ in range(3):
                    budget.take()

    with pytest.raises(BudgetError):
        stopped()
    for limit in (3, 30):
        with replaying(path) as player:
            spent = Budget(limit)
            with pytest.raises(BudgetError):
                JudgeLines([A, B, C], player).replayed(spent, str)
            assert spent.spent == 3
    with (
        replaying(path) as player,
        pytest.raises(ReplayError, match=r"1 \(and 1 more of 3\) has no"),
    ):
        JudgeLines([A, B, C], player).replayed(Budget(), str)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each reads what the others wrote before it writes."""
    code = (
        "import sys; from workbench.models.recording import Line, recording\n"
        "with recording(sys.argv[1]) as tape:\n"
        "    for n in range(40):\n"
        "        key = f'{int(sys.argv[2]) * 1000 + n:064x}'\n"
        "        tape.keep(Line(key, 0, 'judge', {}, {'value': n}, {}))\n"
        "        tape.save()\n"
    )
    path = tmp_path / "a"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(which)]) for which in range(3)
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(Player(path)) == 120
