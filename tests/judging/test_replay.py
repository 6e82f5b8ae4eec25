"""A recorded run gives the same result elsewhere: without server, key, cache and store."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from loopback import Loopback
from mlflow.entities import Feedback
from mlflow.genai.judges import AlignmentOptimizer, Judge
from mlflow.genai.judges.base import JudgeField
from mlflow.genai.judges.optimizers import GEPAAlignmentOptimizer

import workbench
from workbench.alignment.external import _settings
from workbench.cli import main
from workbench.errors import ModelError, ReplayError
from workbench.judging.judge import with_instructions
from workbench.judging.runner import run
from workbench.models.cache import AnswerCache
from workbench.models.recording import Player, recording, replaying
from workbench.store.traces import Example

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from simulation import Simulation, items

KEY = "sk-recorded-0123456789"
INSTRUCTIONS = (
    "Is {{ outputs }} a good reply of our support to the customer's message in {{ inputs }}? "
    "Answer yes or no"
)
TABLE = pd.DataFrame([vars(item) for item in items(60, seed=1)]).drop(columns="traits")


@pytest.fixture
def elsewhere(
    tmp_path: Path, store: str, _empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Makes this another machine: no key, no server named, an empty cache, a fresh store."""

    def go() -> None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        monkeypatch.delenv("WORKBENCH_MODEL", raising=False)
        monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:9/v1")
        monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "other-cache"))
        shutil.copy(_empty_store, tmp_path / "other.db")
        uri = f"sqlite:///{tmp_path}/other.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        # Experiments have other ids there, and so have traces.
        mlflow.create_experiment("one that was there before")
        mlflow.set_experiment("elsewhere")

    yield go
    mlflow.set_tracking_uri(store)


def judge_of(model: str | None = None, **options: Any) -> Judge:
    return workbench.make_judge(
        "good", INSTRUCTIONS, model=model, feedback_value_type=Literal["yes", "no"], **options
    )


def lifecycle(**options: Any) -> tuple[workbench.Assessed, workbench.Alignment]:
    imported = workbench.import_traces(
        TABLE,
        inputs={"message": "question"},
        outputs="answer",
        labels={"ana": ("label", "rationale")},
        label_name="good",
        progress=False,
    )
    judge = judge_of()
    assessed = workbench.assess(judge, imported, progress=False)
    return assessed, workbench.align(judge, imported, progress=False, **options)


def result(assessed: workbench.Assessed, alignment: workbench.Alignment) -> dict[str, Any]:
    """All that a run finds but for ids of traces and runs, and seconds."""
    compared = alignment.comparison.to_dict()
    for changed in ("fixed", "broken", "still_wrong"):
        compared[changed] = sorted(
            (alignment.examples[row.pop("trace_id")].outputs, *row.values())
            for row in compared[changed]
        )
    return {
        "verdicts": assessed.table.drop(columns="trace_id").to_dict("records"),
        "paid": (assessed.calls, assessed.cost, assessed.input_tokens, assessed.output_tokens),
        "instructions": alignment.proposed.instructions,
        "status": (alignment.status, alignment.reason),
        "comparison": compared,
        "history": alignment.history.to_csv(),
        "preflight": alignment.preflight.to_csv(),
        "spent": (alignment.calls, alignment.reflection_calls, alignment.tokens, alignment.cost),
        "evidence": {
            rule: sorted(str(alignment.examples[i].outputs) for i in ids)
            for rule, ids in alignment.evidence.items()
        },
    }


@pytest.mark.parametrize("budget", [None, 160])
def test_an_alignment_is_replayed_to_the_same_result(
    budget: int | None,
    tmp_path: Path,
    elsewhere: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a judge whose answers vary from call to call, with calls that fail in between."""
    path = tmp_path / "answers.jsonl.gz"
    options: dict[str, Any] = {"budget": budget, "gate": "none"}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/simulated")
    with Simulation(judge="noisy", failures=0.03) as server, recording(path) as tape:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        before = result(*lifecycle(**options))
        assert len(tape) > 100
    elsewhere()
    with replaying(path):
        after = result(*lifecycle(**options))
        assert after == before
        assert json.dumps(after, default=str) == json.dumps(before, default=str)
    assert before["instructions"] != INSTRUCTIONS

    # Another seed asks what was not asked.
    with replaying(path), pytest.raises(ReplayError, match=r"answers\.jsonl\.gz.*not the recorded"):
        lifecycle(seed=1, **options)


def test_answers_that_were_there_before_are_in_the_file(
    tmp_path: Path,
    elsewhere: Callable[[], None],
    loopback: Callable[..., Loopback],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the cache, and verdicts that the traces bear already."""
    server = loopback()
    monkeypatch.setenv("OPENAI_API_BASE", server.url)
    judge = judge_of("openai:/m")

    def imported() -> Any:
        rows = TABLE.head(6)
        return workbench.import_traces(rows, inputs="question", outputs="answer", progress=False)

    first = workbench.assess(judge, imported().trace_ids[:3], progress=False)
    workbench.assess(judge, imported().trace_ids[3:], log=False, progress=False)
    asked = server.requests
    with recording(tmp_path / "a") as tape:
        again = workbench.assess(judge, imported(), progress=False)
        assert (again.calls, len(tape)) == (0, 6)
    assert server.requests == asked
    elsewhere()
    with replaying(tmp_path / "a"):
        replayed = workbench.assess(judge, imported(), progress=False)
    assert list(replayed.table["value"]) == list(again.table["value"])
    assert list(replayed.table["value"])[:3] == list(first.table["value"])
    assert replayed.calls == 0


def test_failures_are_replayed_as_failures(
    tmp_path: Path, loopback: Callable[..., Loopback]
) -> None:
    """They decided the recorded run's result, so they decide this one's."""
    judge = judge_of("openai:/m", base_url=loopback(junk_share=0.4).url)
    asked = [Example(f"tr-{n}", {"q": n}, f"answer {n}") for n in range(12)]
    with recording(tmp_path / "a"):
        before = run(judge, asked)
    with replaying(tmp_path / "a"):
        assert run(judge, asked) == before
    assert {verdict.error is None for verdict in before} == {True, False}


def test_what_is_missing_is_told(tmp_path: Path, loopback: Callable[..., Loopback]) -> None:
    """With judge, model, trace and file, and what to do; and no model is asked instead."""
    server = loopback()
    judge = judge_of("openai:/m", base_url=server.url)
    asked = [Example(f"tr-{n}", {"q": n}, f"answer {n}") for n in range(3)]
    path = tmp_path / "a"
    with recording(path):
        run(judge, asked)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    requests = server.requests
    with AnswerCache(tmp_path / "answers") as cache, replaying(path):
        with pytest.raises(ReplayError) as caught:
            run(judge, asked, cache=None)
        with pytest.raises(ReplayError):
            run(judge, asked, cache=cache)
    said = str(caught.value)
    assert re.search(r"^Judge 'good' \(openai:/m\) on trace tr-\d has no answer in ", said)
    assert str(path) in said
    assert "workbench run --record FILE" in said
    assert server.requests == requests


def test_a_value_that_is_none_of_the_judges_is_told(tmp_path: Path) -> None:
    """A file that someone changed gives no verdict off the scale."""
    judge = judge_of("offline:/rubric")
    item = Example("tr-1", {"q": "is it?"}, "yes")
    path = tmp_path / "a"
    with recording(path):
        value = run(judge, [item])[0].value
    path.write_text(path.read_text().replace(f'"value": "{value}"', '"value": "purple"'))
    with replaying(path), pytest.raises(ReplayError, match=r"on trace tr-1 .*'purple'"):
        run(judge, [item])


class Other(AlignmentOptimizer):
    """An optimizer that asks the judge once and proposes what it is told to."""

    def __init__(self, text: str | None = None, *, wrapped: bool = False) -> None:
        self.text, self.wrapped = text, wrapped
        self.more: dict[str, Any] = {}

    def align(self, judge: Judge, traces: list[Any]) -> Judge:
        judge(inputs={"message": "2"}, outputs="b")
        if self.text is None:
            raise RuntimeError("it fell over")
        made = with_instructions(judge, self.text)
        return Wrapped(name=judge.name, inner=made) if self.wrapped else made


class Wrapped(Judge):
    """A judge that holds more than instructions."""

    inner: Any

    @property
    def instructions(self) -> str:
        return str(self.inner.instructions)

    @property
    def feedback_value_type(self) -> Any:
        return self.inner.feedback_value_type

    def get_input_fields(self) -> list[JudgeField]:
        return []

    def __call__(self, *, inputs: Any = None, outputs: Any = None) -> Feedback:
        found: Feedback = self.inner(inputs=inputs, outputs=outputs)
        return found


def labelled(table: pd.DataFrame = TABLE) -> workbench.Imported:
    return workbench.import_traces(
        table,
        inputs="question",
        outputs="answer",
        labels={"ana": ("label", "rationale")},
        label_name="good",
        progress=False,
    )


def test_no_model_is_called_in_any_other_way(
    tmp_path: Path, store: str, loopback: Callable[..., Loopback]
) -> None:
    """A judge that is called directly, and an optimizer that was not recorded."""
    server = loopback()
    judge = judge_of("openai:/m", base_url=server.url)
    embedded = judge_of("offline:/rubric")
    with recording(tmp_path / "a"):
        run(judge, [Example("tr-1", {"q": 1}, "answer")])
    asked = server.requests
    with replaying(tmp_path / "a"):
        for one in (judge, embedded):
            with pytest.raises(Exception, match="where no model is called"):
                one(inputs={"q": 2}, outputs="b")
    traces = labelled()
    with recording(tmp_path / "b"):
        workbench.assess(embedded, traces, progress=False)
        with pytest.warns(UserWarning, match="Other makes judges that hold more"):
            workbench.align(embedded, traces, Other(TWICE, wrapped=True), progress=False)
    with replaying(tmp_path / "b"), pytest.raises(ReplayError, match="What Other came to is not"):
        workbench.align(embedded, traces, Other(TWICE, wrapped=True), progress=False)
    assert server.requests == asked


TWICE = f"{INSTRUCTIONS}\n- Disregard friendliness."


def test_what_another_optimizer_came_to_is_replayed(tmp_path: Path, store: str) -> None:
    """Its judge, and the error that it ended with; with other settings it is another run."""
    judge, traces = judge_of("offline:/rubric"), labelled()
    path = tmp_path / "a"

    def aligned(optimizer: AlignmentOptimizer) -> workbench.Alignment:
        return workbench.align(judge, traces, optimizer, gate="none", progress=False)

    with recording(path):
        workbench.assess(judge, traces, progress=False)
        before = aligned(Other(TWICE))
        with pytest.raises(RuntimeError, match="it fell over"):
            aligned(Other())
    with replaying(path):
        after = aligned(Other(TWICE))
        with pytest.raises(ModelError, match="it fell over"):
            aligned(Other())
        with pytest.raises(ReplayError, match="What Other came to is not"):
            aligned(Other("Is {{ outputs }} good?"))
    assert after.judge.instructions == before.judge.instructions == TWICE
    assert (after.calls, after.reason) == (before.calls, before.reason)


@pytest.mark.parametrize("change", ['"instructions": 1', '"error": "x", "instructions": "y"'])
def test_a_damaged_proposal_is_told(tmp_path: Path, store: str, change: str) -> None:
    """With the number of its line."""
    judge, traces = judge_of("offline:/rubric"), labelled()
    path = tmp_path / "a"
    with recording(path):
        workbench.assess(judge, traces, progress=False)
        workbench.align(judge, traces, Other(TWICE), progress=False)
    told = json.dumps({"instructions": TWICE})[1:-1]
    assert told in path.read_text()
    path.write_text(path.read_text().replace(told, change))
    with pytest.raises(ReplayError, match=r"Line \d+ of .*an optimizer"), replaying(path):
        pass


def test_settings_tell_runs_apart_whatever_stands_beside_them(tmp_path: Path, store: str) -> None:
    """What is no plain data hides nothing of what is, and a secret is no setting."""
    one, other = Other(TWICE), Other(TWICE)
    for optimizer, size in ((one, 3), (other, 9)):
        optimizer.more = {"size": size, "callbacks": [print, object()], "api_key": KEY}
    assert _settings(one) != _settings(other)
    assert KEY not in str(_settings(one))
    other.more["size"] = 3
    assert _settings(one) == _settings(other)


def test_the_same_judge_at_another_address_is_replayed(
    tmp_path: Path, loopback: Callable[..., Loopback]
) -> None:
    """Where a model was reached when the run was recorded is nobody's matter."""
    server = loopback()
    item = Example("tr-1", {"q": "is it?"}, "yes")
    with recording(tmp_path / "a"):
        told = run(judge_of("openai:/m", base_url=server.url), [item])[0]
    with replaying(tmp_path / "a"):
        for where in ({}, {"base_url": "http://127.0.0.1:9/v1"}):
            assert run(judge_of("openai:/m", **where), [item])[0].value == told.value


def test_what_is_run_again_within_a_recording_is_replayed(tmp_path: Path, store: str) -> None:
    """The first time it failed, so that the answer is the second one."""
    judge, traces = judge_of("offline:/rubric"), labelled()

    class Twice(Other):
        def align(self, judge: Judge, traces: list[Any]) -> Judge:
            if not (tmp_path / "began").exists():
                (tmp_path / "began").touch()
                raise KeyboardInterrupt
            return super().align(judge, traces)

    with recording(tmp_path / "a"):
        workbench.assess(judge, traces, progress=False)
        with pytest.raises(KeyboardInterrupt):
            workbench.align(judge, traces, Twice(TWICE), progress=False)
        workbench.align(judge, traces, Twice(TWICE), gate="none", progress=False)
    with replaying(tmp_path / "a"):
        again = workbench.align(judge, traces, Twice(TWICE), gate="none", progress=False)
    assert again.judge.instructions == TWICE


def test_few_labels_are_replayed_in_another_store(
    tmp_path: Path, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-validation asks the same whatever the ids of traces are."""
    path = tmp_path / "answers.jsonl"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/simulated")

    def few() -> str:
        traces, judge = labelled(TABLE[:24]), judge_of()
        workbench.assess(judge, traces, progress=False)
        return workbench.align(judge, traces, gate="none", progress=False).judge.instructions

    with Simulation() as server, recording(path):
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        before = few()
    assert before != INSTRUCTIONS
    elsewhere()
    with replaying(path):
        assert few() == before


def test_a_comparison_is_replayed_to_the_same_table(
    tmp_path: Path, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an optimizer of MLflow's, whose threads ask in an order of their own."""
    path = tmp_path / "answers.jsonl"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/simulated")

    def compared() -> tuple[pd.DataFrame, dict[str, str]]:
        traces, judge = labelled(), judge_of()
        workbench.assess(judge, traces, progress=False)
        gepa = GEPAAlignmentOptimizer(model="openai:/simulated", max_metric_calls=30)
        found = workbench.compare_optimizers(
            judge,
            traces,
            {"SIMBA": workbench.SIMBA(progress=False), "GEPA": gepa, "other": Other()},
            budget=400,
            progress=False,
        )
        judges = {name: one.instructions for name, one in found.judges.items()}
        return found.table.drop(columns="seconds"), judges

    with Simulation() as server, recording(path):
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        before, judges = compared()
        spent = server.stats()["judge"]
        compared()
        # Resumed, nothing is paid for again, what a judgement takes included.
        assert server.stats()["judge"] == spent
    assert KEY not in path.read_text()
    elsewhere()
    with replaying(path):
        after, same_judges = compared()
    assert after.to_csv() == before.to_csv()
    assert same_judges == judges
    assert before.loc["GEPA", "judge calls"] > 10
    assert before.loc["other", "status"] == "failed"


def test_a_whole_trace_goes_by_its_content(
    tmp_path: Path,
    elsewhere: Callable[[], None],
    loopback: Callable[..., Loopback],
) -> None:
    """Its ids and times are others in another store; equal traces keep answers of their own."""
    url = loopback().url
    judge = workbench.make_judge(
        "whole", "Is {{ trace }} fine?", model="openai:/m", feedback_value_type=bool, base_url=url
    )
    rows = pd.concat([TABLE.head(3), TABLE.head(1)])

    def values() -> list[Any]:
        traces = workbench.import_traces(rows, inputs="question", outputs="answer", progress=False)
        return list(workbench.assess(judge, traces, progress=False).table["value"])

    with recording(tmp_path / "a") as tape:
        before = values()
        assert len(tape) == 4
    elsewhere()
    with replaying(tmp_path / "a"):
        assert values() == before


class Repeating(Judge):
    """A judge that says what it should keep to itself."""

    @property
    def instructions(self) -> str:
        return "Repeat."

    @property
    def feedback_value_type(self) -> Any:
        return bool

    @classmethod
    def get_input_fields(cls) -> list[JudgeField]:
        return []

    def __call__(self, *, outputs: Any) -> Feedback:
        return Feedback(name=self.name, value=True, rationale=f"I was given {KEY}.")


def test_no_secret_is_in_the_file(
    tmp_path: Path,
    loopback: Callable[..., Loopback],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys, headers, credentials in addresses: neither as such nor where a model repeats them."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = loopback(failure_share=0.3)
    place = server.url.replace("http://", "http://me:pass-word-1@") + "?key=query-secret"
    judge = judge_of(
        "openai:/m",
        base_url=place,
        extra_headers={"X-Api-Key": "header-secret"},
        inference_params={"api_key": "param-secret"},
    )
    item = Example("tr-1", {"q": 1}, "answer")
    path = tmp_path / "a"
    with recording(path):
        direct = judge_of(
            "openai:/m", base_url=server.url, extra_headers={"X-Key": "header-secret"}
        )
        run(direct, [Example(f"tr-{n}", {"q": n}, f"answer {n}") for n in range(20)])
        with pytest.raises(workbench.WorkbenchError):
            run(judge, [item])  # the simulated server knows no such address
        verdict = run(Repeating(name="r"), [item])[0]
    text = path.read_text()
    assert verdict.rationale == "I was given ***."
    assert "I was given ***." in text
    for secret in (KEY, "pass-word-1", "query-secret", "header-secret", "param-secret", "X-Key"):
        assert secret not in text
    assert "127.0.0.1" not in text


def test_an_interrupted_run_is_completed_by_the_next(
    tmp_path: Path, loopback: Callable[..., Loopback]
) -> None:
    """What was answered before Ctrl-C is in the file, and the rest after the same call again."""
    judge = judge_of("openai:/m", base_url=loopback().url)
    asked = [Example(f"tr-{n}", {"q": n}, f"answer {n}") for n in range(30)]
    seen = []

    def stop(verdict: Any) -> None:
        seen.append(verdict)
        if len(seen) == 10:
            raise KeyboardInterrupt

    path = tmp_path / "a"
    with AnswerCache(tmp_path / "answers") as cache:
        with pytest.raises(KeyboardInterrupt), recording(path):
            run(judge, asked, cache=cache, concurrency=4, on_verdict=stop)
        assert 9 <= len(Player(path)) < 30
        with recording(path):
            before = run(judge, asked, cache=cache)
    with replaying(path), AnswerCache(tmp_path / "other") as other:
        assert [v.value for v in run(judge, asked, cache=other)] == [v.value for v in before]


# -- the command -------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_with_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text("{}\n")
    runner = CliRunner()
    bad = runner.invoke(main, ["run", "--replay", "bad"])
    assert (bad.exit_code, "Line 1 of" in bad.output) == (1, True)
    both = runner.invoke(main, ["run", "--replay", "bad", "--record", "other"])
    assert (both.exit_code, "exclude each other" in both.output) == (2, True)
    nowhere = runner.invoke(main, ["run", "--record", "no/where"])
    assert (nowhere.exit_code, "there is no folder" in nowhere.output) == (1, True)
