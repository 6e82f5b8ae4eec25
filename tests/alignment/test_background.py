"""Alignment in the background: its state, cancelling, taking up again, and what a kill leaves."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from clarity import NAME, TEXT, biased_judge, labelled
from embedded import Embedded, embedded
from mlflow.genai.judges.base import AlignmentOptimizer

import workbench
from workbench.errors import ArgumentError, CancelledError, NoLabelsError, UnreachableModelError
from workbench.formatting import html_text
from workbench.models.cache import AnswerCache

HOSTILE = "<script>alert(1)</script>"


def judge_at(url: str) -> Any:
    return biased_judge(model="openai:/any", base_url=url)


@pytest.fixture
def judge(store: str) -> Any:
    made = biased_judge()
    labelled(60, made)
    return made


@pytest.fixture
def model(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-background-123456")
    with embedded() as server:
        yield server


def until(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs() -> list[Any]:
    return list(mlflow.search_runs(output_format="list"))


# -- its course -----------------------------------------------------------------------------


def test_it_ends_as_in_the_foreground(judge: Any) -> None:
    """The same judge, status and logged run as `align` gives, with the figures told on the way."""
    running = workbench.align_in_background(judge)
    alignment = running.result(120)
    state = running.state
    assert running.done
    assert (state.stage, state.message) == ("done", alignment.reason)
    assert state.step is not None
    assert state.step >= 1
    assert state.max_steps == workbench.SIMBA().settings.max_steps
    assert state.best_score is not None
    assert 0.9 < state.best_score <= 1
    assert state.failures == 0
    assert state.instructions == alignment.proposed.instructions
    assert running.preflight is not None
    assert "usable pairs" in set(running.preflight["check"])
    assert [run.info.run_id for run in runs()] == [alignment.run_id]
    assert state.seconds == running.state.seconds
    assert not running.cancel()
    same = workbench.align(judge, progress=False)
    assert same.judge.instructions == alignment.judge.instructions
    assert same.status == alignment.status == "improved"


def test_the_state_goes_on_while_it_learns(model: Embedded) -> None:
    """Calls are told while they are under way, and the learned lines are those that are new."""
    judge = judge_at(model.url)
    labelled(60, judge)
    model.hold_after(10)
    running = workbench.align_in_background(judge, optimizer=workbench.SIMBA(budget=500))
    model.wait_until_held()
    state = running.state
    assert state.stage == "learning"
    assert (state.step, state.best_score) == (0, None)
    assert state.calls is not None
    assert state.calls >= 9
    assert state.spent == f"{state.calls} of 500 calls"
    assert "learning" in repr(running)
    assert "<ins" not in running.view.parts[1]
    with pytest.raises(concurrent.futures.TimeoutError):
        running.result(timeout=0.05)
    model.release()
    alignment = running.result(120)
    assert running.state.calls is not None
    assert state.calls < running.state.calls
    assert running.state.calls == alignment.calls + alignment.reflection_calls
    until(lambda: running.view.state["stage"] == "done")
    assert "of at most" not in running.view.parts[0]
    lines = running.view.parts[1]
    assert f'<div class="wbp-line" dir="auto">{html_text(TEXT)}</div>' in lines
    for rule in alignment.evidence:
        assert f'<ins class="wbp-line" dir="auto">{html_text(f"- {rule}")}</ins>' in lines


def test_an_optimizer_is_given_back_as_it_was(judge: Any) -> None:
    optimizer = workbench.SIMBA()
    told: list[int] = []
    own = optimizer.on_step = lambda state: told.append(state["step"])
    stop = optimizer.stop
    workbench.align_in_background(judge, optimizer=optimizer).result(120)
    assert told[:1] == [1]
    assert (optimizer.on_step, optimizer.stop, optimizer.progress) == (own, stop, True)


def test_it_is_logged_where_it_was_begun(judge: Any) -> None:
    """Under the run that was open then, whatever experiment is active when it ends."""
    with mlflow.start_run() as above:
        running = workbench.align_in_background(judge)
    mlflow.set_experiment("another")
    found = mlflow.get_run(running.result(120).run_id)
    assert found.info.experiment_id == above.info.experiment_id
    assert found.data.tags["mlflow.parentRunId"] == above.info.run_id
    assert found.info.status == "FINISHED"
    assert runs() == []


# -- errors ---------------------------------------------------------------------------------


def test_what_align_raises_is_raised_by_the_result(store: str) -> None:
    """Each time that it is asked for; the state says it in words."""
    judge = biased_judge()
    workbench.import_traces(
        pd.DataFrame({"q": ["a"], "a": ["b"]}), inputs="q", outputs="a", progress=False
    )
    running = workbench.align_in_background(judge)
    for _ in range(2):
        with pytest.raises(NoLabelsError, match=NAME):
            running.result(60)
    assert running.state.stage == "failed"
    assert running.state.message.startswith("NoLabelsError: ")
    assert not running.cancel()


def test_a_server_that_is_gone_is_told_and_leaves_no_run(model: Embedded) -> None:
    judge = judge_at(model.url)
    labelled(20, judge)
    model.shutdown()
    model.server_close()
    running = workbench.align_in_background(judge)
    with pytest.raises(UnreachableModelError):
        running.result(120)
    assert running.state.stage == "failed"
    assert runs() == []


def test_an_unknown_option_is_named_at_once(judge: Any) -> None:
    with pytest.raises(ArgumentError, match=r"sede.*seed"):
        workbench.align_in_background(judge, sede=1)


# -- the end before the end -------------------------------------------------------------------


def test_a_cancelled_alignment_is_taken_up_by_the_same_call(model: Embedded) -> None:
    """It ends with the calls under way, tests and logs nothing; the same call pays the rest."""
    judge = judge_at(model.url)
    labelled(60, judge)
    model.hold_after(30)
    running = workbench.align_in_background(judge)
    model.wait_until_held()
    assert running.cancel()
    assert running.state.cancelling
    assert not running.done
    model.release()
    with pytest.raises(CancelledError, match="same call"):
        running.result(120)
    state = running.state
    assert (state.stage, state.cancelling) == ("cancelled", False)
    assert running.cancel()
    assert runs() == []
    paid = model.answered.total()
    alignment = workbench.align_in_background(judge).result(120)
    assert alignment.status == "improved"
    assert model.answered.total() > paid
    assert not model.repeated()


def test_it_can_be_cancelled_before_it_learns(model: Embedded) -> None:
    """Cancelled in the preflight, it makes no call after that."""
    judge = judge_at(model.url)
    labelled(20, judge)
    model.hold_after(0)
    running = workbench.align_in_background(judge)
    model.wait_until_held()
    assert running.state.stage == "preflight"
    assert running.cancel()
    model.release()
    with pytest.raises(CancelledError):
        running.result(120)
    assert model.answered.total() == 1
    assert running.state.step is None


class Stubborn(AlignmentOptimizer):
    """Asks the judge again and again, whatever comes back, and then proposes it."""

    settings = "what another library keeps under this name"

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.refused: list[BaseException] = []

    def align(self, judge: Any, traces: list[Any]) -> Any:
        for i in range(20_000):
            try:
                judge(inputs={"question": "How wide?"}, outputs=f"It is {i} cm wide.")
            except Exception as error:
                self.refused.append(error)
                if len(self.refused) == 3:
                    return judge
            if i == 5:
                self.asked.set()
        raise AssertionError("it was not cancelled")


def test_other_optimizers_are_cancelled_at_their_next_call(judge: Any) -> None:
    """Even one that takes no notice of calls that fail."""
    optimizer = Stubborn()
    running = workbench.align_in_background(judge, optimizer=optimizer)
    assert optimizer.asked.wait(60)
    state = running.state
    assert (state.stage, state.step, state.calls) == ("learning", None, None)
    assert running.cancel()
    with pytest.raises(CancelledError):
        running.result(60)
    assert all("no further request is sent" in str(error) for error in optimizer.refused)
    assert running.state.stage == "cancelled"
    assert runs() == []


def test_a_replay_holds_in_the_thread(judge: Any, tmp_path: Path) -> None:
    """What is recorded or replayed where it is begun is so in the thread, and no model is asked."""
    path = tmp_path / "answers.jsonl.gz"
    optimizer = workbench.SIMBA(max_steps=1, progress=False)
    with workbench.recording(path) as recorder:
        first = workbench.align_in_background(judge, optimizer=optimizer).result(120)
    assert len(recorder) >= first.calls > 0
    with workbench.replaying(path):
        second = workbench.align_in_background(judge, optimizer=optimizer).result(120)
    assert second.proposed.instructions == first.proposed.instructions


KILLED = """
import sys
from typing import Literal
import mlflow, workbench
store, url, name, text = sys.argv[1:]
mlflow.set_tracking_uri(store)
mlflow.set_experiment("test")
judge = workbench.make_judge(
    name, text, feedback_value_type=Literal["yes", "no"], model="openai:/any", base_url=url
)
workbench.align(judge, progress=False)
"""


def test_an_alignment_that_was_killed_is_taken_up(
    model: Embedded, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 no question is answered twice, and the judge is that of a run in one go."""
    judge = judge_at(model.url)
    labelled(60, judge)
    with AnswerCache() as answers:
        known = len(answers)
    model.hold_after(20)
    process = subprocess.Popen([sys.executable, "-c", KILLED, store, model.url, NAME, TEXT])
    try:
        model.wait_until_held()
        # All answers that came must be on disk before the end.
        with AnswerCache() as answers:
            until(lambda: len(answers) == known + 20 or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
    finally:
        process.kill()
    model.release(answering=False)
    alignment = workbench.align(judge, progress=False)
    assert alignment.status == "improved"
    assert not model.repeated()
    asked = set(model.answered)

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "fresh"))
    model.answered.clear()
    whole = workbench.align(judge, progress=False)
    assert whole.judge.instructions == alignment.judge.instructions
    assert whole.comparison.to_dict() == alignment.comparison.to_dict()
    assert set(model.answered) == asked
    assert not model.repeated()


# -- the view, without a browser ----------------------------------------------------------------


def test_what_stands_in_place_of_the_view_holds_no_html_of_others(store: str) -> None:
    """Names and messages are escaped; without a front end there is no widget."""
    judge = biased_judge()
    object.__setattr__(judge, "name", f"x{HOSTILE}")
    running = workbench.align_in_background(judge)
    running.wait(60)
    bundle = running._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert HOSTILE not in bundle["text/html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in bundle["text/html"]


def test_the_view_tells_the_outcome(judge: Any) -> None:
    """The browser gets figures, the lines that were learned and the result's own table."""
    running = workbench.align_in_background(judge)
    view = running.view
    assert running.view is view
    alignment = running.result(120)
    until(lambda: view.state["stage"] == "done")
    figures, lines, before = view.parts
    assert alignment._repr_html_() in figures
    assert "<ins" in lines
    assert "<table" in before
    assert [line for line, learned in running.learned() if not learned and line] == [TEXT]
    assert alignment._repr_html_() in running._repr_mimebundle_()["text/html"]


def test_the_view_cancels(model: Embedded) -> None:
    judge = judge_at(model.url)
    labelled(20, judge)
    model.hold_after(3)
    running = workbench.align_in_background(judge)
    model.wait_until_held()
    running.view._handle_custom_msg({"type": "cancel"}, [])
    assert running.view.state["cancelling"]
    model.release()
    with pytest.raises(CancelledError):
        running.result(120)
    until(lambda: running.view.state["ended"])
    assert "nothing was tested" in running.view.state["message"]
