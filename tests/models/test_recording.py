"""The file of answers: the same bytes for the same run, only data when it is read."""

from __future__ import annotations

import contextvars
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from asking import run
from loopback import Loopback
from mlflow.genai.judges import Judge

import workbench
from workbench.errors import ArgumentError, BudgetError, ReplayError
from workbench.models.budget import Budget, Usage
from workbench.models.cache import AnswerCache
from workbench.models.faults import Fault
from workbench.models.recording import (
    LARGEST_FILE,
    Entry,
    Player,
    Recorder,
    current,
    recording,
    replaying,
)
from workbench.store.traces import Example

A, B, C = (letter * 64 for letter in "abc")

Start = Callable[..., Loopback]


def entry(key: str, value: Any = "good", **paid: Any) -> Entry:
    answer = {"value": value, "rationale": "é好\u2028\ud800"}
    return Entry(key=key, about="Judge 'q'", answer=answer, paid=Usage(**paid))


def recorded(path: Path, *entries: Entry) -> Path:
    with recording(path) as recorder:
        for each in entries:
            recorder.put(each)
    return path


def value(player: Player, key: str) -> Any:
    found = player.get(key)
    assert found is not None
    assert found.answer is not None
    return found.answer["value"]


# -- the file -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.jsonl.gz"])
def test_equal_runs_write_equal_bytes(tmp_path: Path, name: str) -> None:
    """Whatever the order in which answers came, and whenever that was."""
    entries = [entry(A, requests=1), entry(B, 4.5), entry(C, True)]
    one = recorded(tmp_path / name, *entries).read_bytes()
    two = recorded(tmp_path / f"again-{name}", *reversed(entries)).read_bytes()
    assert one == two
    player = Player(tmp_path / name)
    assert len(player) == 3
    assert player.get(A) == entries[0]


def test_a_line_can_be_read(tmp_path: Path) -> None:
    """JSON with who was asked, the answer, and what was paid."""
    path = recorded(tmp_path / "answers", entry(A, requests=1, cost=0.5))
    head, first = map(json.loads, path.read_text("ascii").splitlines())
    assert head["file"] == "workbench answers"
    assert first["about"] == "Judge 'q'"
    assert first["answer"]["value"] == "good"
    assert first["paid"] == {"requests": 1, "cost": 0.5}


def test_what_an_answer_cost_is_told_once(tmp_path: Path) -> None:
    """Used again within a run, it is free, as it was when it was recorded."""
    player = Player(recorded(tmp_path / "a", entry(A, requests=2)))
    paid = [found.paid.requests for _ in range(3) if (found := player.get(A))]
    assert paid == [2, 0, 0]
    assert player.get(B) is None


def test_a_file_that_is_there_is_added_to(tmp_path: Path) -> None:
    """A run that was interrupted is completed by the next one.

    What that had to pay for counts, and not that it found the rest in the cache.
    """
    failed = Entry(key=C, failed=Fault("transient", "no"))
    path = recorded(tmp_path / "a", entry(A, "old", requests=1), entry(B, "old"), failed)
    recorded(path, entry(A), entry(B, "new", requests=1), entry(C))
    player = Player(path)
    assert [value(player, key) for key in (A, B, C)] == ["old", "new", "good"]
    found = Player(path).get(A)
    assert found is not None
    assert found.paid.requests == 1


def test_recorders_of_one_file_lose_nothing(tmp_path: Path) -> None:
    """As those of two processes: each reads what the others wrote before it writes."""
    one, two = Recorder(tmp_path / "a"), Recorder(tmp_path / "a")
    for recorder, key in ((one, A), (two, B), (one, C)):
        recorder.put(entry(key))
        recorder.save()
    assert len(Player(tmp_path / "a")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_recording_of_another_run_is_left_alone(tmp_path: Path) -> None:
    """Answers may be added to that of the same notebook and parameters, which it goes on naming."""
    run: dict[str, Any] = {"notebook": "n", "parameters": {"seed": 1}}
    for what in (run, {}, run):
        Recorder(tmp_path / "a", **what).save()
        head = Player(tmp_path / "a").head
        assert (head.notebook, head.parameters) == ("n", {"seed": 1})
    before = (tmp_path / "a").read_bytes()
    for other in ({**run, "notebook": "m"}, {**run, "parameters": {"seed": 2}}):
        with pytest.raises(ArgumentError, match="Name another file"):
            Recorder(tmp_path / "a", **other)
    assert (tmp_path / "a").read_bytes() == before


def test_something_else_is_never_written_over(tmp_path: Path) -> None:
    """Nor is what is no file of answers replayed."""
    path = tmp_path / "thesis.txt"
    path.write_text("Chapter 1\n")
    for use in (recording, replaying):
        with (
            pytest.raises(ReplayError, match=r"thesis\.txt cannot be read at line 1"),
            use(path),
        ):
            pass
    assert path.read_text() == "Chapter 1\n"


GOOD: dict[str, Any] = {"key": A, "answer": {"value": 1}}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("[1]", "valid dictionary"),
        ('{"key": ', "Expecting value"),
        ("[" * 100_000, "recursion"),
        (json.dumps(GOOD | {"key": "../../etc/passwd"}), "key String should match pattern"),
        (json.dumps(GOOD | {"turn": 1}), "turn Extra inputs are not permitted"),
        (json.dumps(GOOD | {"answer": "yes"}), "answer Input should be a valid dictionary"),
        (json.dumps({"key": A, "failed": {"kind": "pickle", "message": ""}}), "failed.kind"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, bad: str, said: str) -> None:
    """A file may come from anywhere; what is not as it must be is not used."""
    path = recorded(tmp_path / "a", entry(A), entry(B))
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(ReplayError, match="line 4") as caught:
        Player(path)
    assert said in str(caught.value)


def test_a_file_that_expands_enormously_is_refused(tmp_path: Path) -> None:
    """Once so much of it was read."""
    path = recorded(tmp_path / "a.gz", entry(A))
    line = json.dumps(GOOD).encode() + b" " * 4_000_000 + b"\n"
    more = gzip.compress(line, compresslevel=1) * (LARGEST_FILE // len(line) + 1)
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(ReplayError, match=r"expands to more than 268,435,456 bytes"):
        Player(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"\x1f\x8b not packed",
        gzip.compress(b'{"file": "workbench answers", "format": 3}\n', mtime=0)[:-9],
        b'{"file": "workbench answers", "format": 99}\n',
        None,
    ],
    ids=["empty", "not text", "not packed", "cut", "another format", "missing"],
)
def test_a_damaged_or_missing_file_is_told(tmp_path: Path, content: bytes | None) -> None:
    """By its name."""
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReplayError, match=str(path)):
        Player(path)


def test_a_folder_that_is_lost_is_told(tmp_path: Path) -> None:
    """Where the answers cannot be written, though they could be when it began."""
    (tmp_path / "lost").mkdir()
    recorder = Recorder(tmp_path / "lost" / "a")
    (tmp_path / "lost").rmdir()
    with pytest.raises(ReplayError, match=r"could not be written.*pays nothing twice"):
        recorder.save()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """Before anything is asked."""
    with pytest.raises(ArgumentError, match="there is no folder"):
        Recorder(tmp_path / "no" / "where")


# -- what is recorded or replayed now -------------------------------------------------------


def of_process(**environment: str) -> list[str]:
    """What is current in a process with this environment, and within a recording of its own."""
    code = (
        "import os\n"
        "from workbench.models.recording import current, recording\n"
        "try:\n"
        "    print(type(current()).__name__, current() is current())\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "with recording('own') as recorder:\n"
        "    print(current() is recorder, os.environ.get('WORKBENCH_REPLAY'))\n"
        "print(os.environ.get('WORKBENCH_REPLAY'))\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, cwd=Path(environment["HOME"]),
        env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_environment_names_a_file_too(tmp_path: Path) -> None:
    """For notebooks and processes that are started; what the program says goes before."""
    path = str(recorded(tmp_path / "a", entry(A)))
    home = {"HOME": str(tmp_path)}
    assert of_process(**home, WORKBENCH_REPLAY=path) == ["Player True", "True None", path]
    assert of_process(**home, WORKBENCH_RECORD=path)[0] == "Recorder True"


def test_a_recording_holds_for_all_threads(tmp_path: Path) -> None:
    """Until it ends; a thread that runs in a copy of its context is recorded after that, too."""
    with ThreadPoolExecutor(1) as threads:
        with recording(tmp_path / "a") as recorder:
            context = contextvars.copy_context()
            assert threads.submit(current).result() is recorder
            with replaying(recorded(tmp_path / "b", entry(A))) as player:
                assert threads.submit(current).result() is player
            assert threads.submit(current).result() is recorder
        assert threads.submit(current).result() is None
        assert threads.submit(context.run, current).result() is recorder


def test_a_model_that_is_not_named_is_that_of_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment of who replays it says."""
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/recorded")
    path = recorded(tmp_path / "a", entry(A))
    monkeypatch.delenv("WORKBENCH_MODEL")
    embedded = recorded(tmp_path / "b", entry(A))
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/another")
    with replaying(path):
        assert workbench.DEFAULT_MODEL == "openai:/recorded"
    with replaying(embedded):
        assert workbench.DEFAULT_MODEL == "offline:/rubric"
    assert workbench.DEFAULT_MODEL == "openai:/another"


# -- judges ---------------------------------------------------------------------------------


def judge_at(url: str | None = None, **options: Any) -> Judge:
    return workbench.make_judge(
        "good",
        "Is {{ outputs }} a good answer to {{ inputs }}?",
        model="openai:/m",
        base_url=url,
        feedback_value_type=Literal["yes", "no"],
        **options,
    )


def asked(many: int) -> list[Example]:
    return [Example(f"tr-{n}", {"q": n}, f"answer {n}") for n in range(many)]


def test_failures_are_replayed_as_failures(tmp_path: Path, loopback: Start) -> None:
    """They decided the recorded run's result, so they decide this one's."""
    judge = judge_at(loopback(junk_share=0.4).url)
    with recording(tmp_path / "a"):
        before = run(judge, asked(12))
    with replaying(tmp_path / "a"):
        assert run(judge, asked(12)) == before
    assert {verdict.error is None for verdict in before} == {True, False}


def test_what_was_known_costs_nothing_in_a_replay_either(tmp_path: Path, loopback: Start) -> None:
    """What it once cost, by which a judgement is priced, is told as in the recorded run."""
    judge = judge_at(loopback().url)
    with AnswerCache(tmp_path / "answers") as cache:
        run(judge, asked(2), cache=cache)
        with recording(tmp_path / "a"):
            before = run(judge, asked(3), cache=cache)
    with replaying(tmp_path / "a"):
        assert run(judge, asked(3)) == before
        again = run(judge, asked(3))
    assert [verdict.paid.requests for verdict in before] == [0, 0, 1]
    assert [verdict.paid.requests for verdict in again] == [0, 0, 0]
    assert {verdict.usage.requests for verdict in (*before, *again)} == {1}


def test_the_same_judge_at_another_address_is_replayed(tmp_path: Path, loopback: Start) -> None:
    """Where a model was reached when the run was recorded is nobody's matter."""
    with recording(tmp_path / "a"):
        before = run(judge_at(loopback().url), asked(1))[0]
    with replaying(tmp_path / "a"):
        for url in (None, "http://127.0.0.1:9/v1"):
            assert run(judge_at(url), asked(1))[0].value == before.value


def test_what_is_missing_is_told(tmp_path: Path, loopback: Start) -> None:
    """With judge, model, trace and file, and what to do; and no model is asked instead."""
    server, path = loopback(), tmp_path / "a"
    judge = judge_at(server.url)
    with recording(path):
        run(judge, asked(3))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with AnswerCache(tmp_path / "answers") as cache, replaying(path):
        for kept in (None, cache):
            with pytest.raises(
                ReplayError,
                match=r"^Judge 'good' \(openai:/m\) on trace tr-\d has no answer in .*--record",
            ):
                run(judge, asked(3), cache=kept)
    assert server.requests == 3


def test_a_judge_that_is_called_directly_is_refused(tmp_path: Path, loopback: Start) -> None:
    """While something is replayed, in other threads too; before and after it answers."""
    server = loopback()
    judge, path = judge_at(server.url), recorded(tmp_path / "a", entry(A))
    embedded = workbench.make_judge("q", "Rate {{ outputs }}.", model="offline:/rubric")
    with replaying(path):
        for one, given in ((judge, {"inputs": {"q": 1}}), (embedded, {})):
            with pytest.raises(Exception, match="where no model is called"):
                one(outputs="b", **given)
            with (
                ThreadPoolExecutor(1) as threads,
                pytest.raises(Exception, match="where no model is called"),
            ):
                threads.submit(one, outputs="b", **given).result()
    assert server.requests == 0
    judge(inputs={"q": 1}, outputs="b")
    assert server.requests == 1


def test_a_value_that_is_none_of_the_judges_is_told(tmp_path: Path, loopback: Start) -> None:
    """A file that someone changed gives no verdict off the scale."""
    judge, path = judge_at(loopback().url), tmp_path / "a"
    with recording(path):
        given = run(judge, asked(1))[0].value
    path.write_text(path.read_text().replace(f'"value": "{given}"', '"value": "purple"'))
    with replaying(path), pytest.raises(ReplayError, match=r"on trace tr-0 has no answer"):
        run(judge, asked(1))


def test_a_budget_ends_a_replayed_run_where_it_ended_the_recorded_one(
    tmp_path: Path, loopback: Start
) -> None:
    """With the same spent."""
    judge, path = judge_at(loopback(junk_share=0.3).url), tmp_path / "a"
    for use in (recording, replaying):
        budget = Budget(9)
        with use(path), pytest.raises(BudgetError, match="9 of 9 calls are used"):
            run(judge, asked(20), budget=budget, concurrency=4)
        assert budget.spent == 9


def test_no_secret_and_no_address_is_in_the_file(
    tmp_path: Path, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, headers, credentials in addresses: neither as such nor where a provider repeats it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment-01")
    server, path = loopback(key="sk-another-key-01"), tmp_path / "a"
    place = server.url.replace("http://", "http://me:pass-word-123@") + "?key=query-secret"
    secrets = ["sk-environment-01", "pass-word-123", "query-secret", "header-secret"]
    with recording(path):
        run(judge_at(loopback().url, extra_headers={"X-Key": "header-secret"}), asked(5))
        for number, url in enumerate((server.url, place, "http://127.0.0.1:9/internal-path")):
            with pytest.raises(workbench.WorkbenchError):
                run(judge_at(url), asked(6 + number)[-1:])
        run(judge_at(loopback(script="400x1").url), asked(12)[10:])
        run(judge_at(loopback(latency=1).url, inference_params={"timeout": 0.1}), asked(13)[12:])
    kinds = {json.loads(line).get("failed", {}).get("kind") for line in path.open()}
    assert kinds == {None, "credential", "refused", "unreachable", "timeout", "request"}
    for word in [*secrets, "X-Key", "127.0.0.1", "internal-path"]:
        assert word not in path.read_text()


def test_an_interrupted_run_is_completed_by_the_next(tmp_path: Path, loopback: Start) -> None:
    """What was answered before Ctrl-C is in the file, and the rest after the same call again."""
    judge, seen = judge_at(loopback().url), list[Any]()

    def stop(verdict: Any) -> None:
        seen.append(verdict)
        if len(seen) == 10:
            raise KeyboardInterrupt

    path = tmp_path / "a"
    with AnswerCache(tmp_path / "answers") as cache:
        with pytest.raises(KeyboardInterrupt), recording(path):
            run(judge, asked(30), cache=cache, concurrency=4, on_verdict=stop)
        assert 9 <= len(Player(path)) < 30
        with recording(path):
            before = run(judge, asked(30), cache=cache)
    with replaying(path), AnswerCache(tmp_path / "other") as other:
        assert [v.value for v in run(judge, asked(30), cache=other)] == [v.value for v in before]
