"""A recorded run gives the same result elsewhere: without server, key, cache and store."""

from __future__ import annotations

import json
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
from mlflow.genai.judges import Judge

import workbench
from workbench.cli import main
from workbench.errors import ReplayError
from workbench.models.recording import recording, replaying

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
    """All that a run finds but for ids of traces and runs, seconds, and where models are."""
    compared = alignment.comparison.to_dict()
    for changed in ("fixed", "broken", "still_wrong"):
        compared[changed] = sorted(
            (alignment.examples[row.pop("trace_id")].outputs, *row.values())
            for row in compared[changed]
        )
    places = alignment.preflight["check"].isin(["judge model", "reflection model"])
    return {
        "verdicts": assessed.table.drop(columns="trace_id").to_dict("records"),
        "paid": (assessed.calls, assessed.cost, assessed.input_tokens, assessed.output_tokens),
        "instructions": alignment.proposed.instructions,
        "status": (alignment.status, alignment.reason),
        "comparison": compared,
        "history": alignment.history.to_csv(),
        "preflight": alignment.preflight[~places].to_csv(),
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


def labelled(table: pd.DataFrame = TABLE) -> workbench.Imported:
    return workbench.import_traces(
        table,
        inputs="question",
        outputs="answer",
        labels={"ana": ("label", "rationale")},
        label_name="good",
        progress=False,
    )


def test_few_labels_are_replayed_in_another_store(
    tmp_path: Path, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-validation asks the same whatever the ids of traces are, so many at once."""
    path = tmp_path / "answers.jsonl"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/simulated")

    def few() -> str:
        traces, judge = labelled(TABLE[:24]), judge_of()
        workbench.assess(judge, traces, concurrency=3, progress=False)
        simba = workbench.SIMBA(concurrency=3, progress=False)
        return workbench.align(judge, traces, simba, gate="none", progress=False).judge.instructions

    with Simulation() as server, recording(path):
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        before = few()
        assert server.stats()["most_at_once"] <= 3
    assert before != INSTRUCTIONS
    elsewhere()
    with replaying(path):
        assert few() == before


# -- the command ----------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_with_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text("{}\n")
    runner = CliRunner()
    bad = runner.invoke(main, ["run", "--replay", "bad"])
    assert (bad.exit_code, "at line 1:" in bad.output) == (1, True)
    both = runner.invoke(main, ["run", "--replay", "bad", "--record", "other"])
    assert (both.exit_code, "exclude each other" in both.output) == (2, True)
    nowhere = runner.invoke(main, ["run", "--record", "no/where"])
    assert (nowhere.exit_code, "there is no folder" in nowhere.output) == (1, True)
