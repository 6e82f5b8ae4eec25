"""The run of an alignment: written before the test, ended with what happened, never in the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

import workbench
from workbench.alignment.runs import (
    AlignmentData,
    Lineage,
    count_looks,
    current_place,
    log_outcome,
    logged_run,
)
from workbench.judging.judge import fingerprint
from workbench.pairing.pairs import Pairs, Split
from workbench.scale import Scale
from workbench.store.traces import Example


def judge(name: str) -> Any:
    return workbench.make_judge("q", f"Be {name} with {{{{ inputs }}}}.", model="offline:/rubric")


def data(
    numbers: Sequence[int] = range(10), *, prefix: str = "tr", name: str = "q", **expected: str
) -> Any:
    """Labelled items of the given numbers; the same number is the same content."""
    items = [Example(f"{prefix}-{i}", {"q": i}, f"answer {i}", expected) for i in numbers]
    table = pd.DataFrame(
        {
            "trace_id": [item.trace_id for item in items],
            "human": "yes",
            "judge": "no",
            "human_rationale": "",
            "judge_rationale": "",
            "votes": [{} for _ in items],
            "blind": True,
        }
    )
    nothing = pd.DataFrame(columns=["trace_id", "reason"])
    pairs = Pairs(name=name, table=table, excluded=nothing, scale=Scale.of(["no", "yes"]))
    split = Split(pairs.subset([]), pairs.subset([]), pairs, seed=0)
    by_id = {item.trace_id: item for item in items}
    return AlignmentData(judge("plain"), pairs, by_id, split, Lineage())


def test_an_interrupted_run_says_how_it_ended(store: str) -> None:
    """What was written before stays, so that an interrupted test counts."""

    def interrupted() -> None:
        with logged_run("test", data(), judge("ä"), seed=3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (logged,) = mlflow.search_runs(output_format="list")
    assert logged.info.status == "FAILED"
    assert (logged.data.params["seed"], logged.data.params["test"]) == ("3", "10")
    folder = Path(mlflow.artifacts.download_artifacts(run_id=logged.info.run_id))
    assert len(json.loads((folder / "split.json").read_text())["traces"]["test"]) == 10
    text = (folder / "instructions" / "proposed.txt").read_text(encoding="utf-8")
    assert text == "Be ä with {{ inputs }}."


def test_a_finished_run_holds_defined_metrics_only(store: str) -> None:
    """An undefined statistic is no number, and a plot would show it as one."""
    with logged_run("test", data()) as run_id:
        log_outcome({"accuracy": 0.5, "kappa": float("nan")}, status="improved")
    logged = mlflow.get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"accuracy": 0.5}
    assert logged.data.tags["workbench.status"] == "improved"


def test_a_run_is_nested_in_what_was_active_when_its_place_was_taken(store: str) -> None:
    """Another experiment may be active by then."""
    with mlflow.start_run() as parent:
        place = current_place()
    mlflow.set_experiment("elsewhere")
    with logged_run("test", data(), place=place) as run_id:
        pass
    logged = mlflow.get_run(run_id)
    assert logged.info.experiment_id == parent.info.experiment_id
    assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id


# -- looks at held-out items ----------------------------------------------------------------


def score(numbers: Sequence[int], name: str, labels: str = "q") -> None:
    """Log the run of a judge that is scored on the items."""
    with logged_run("test", data(numbers, name=labels), judge(name)):
        pass


def looks(numbers: Sequence[int], *names: str, prefix: str = "tr") -> tuple[int, str]:
    judges = [fingerprint(judge(name)) for name in names]
    return count_looks(data(numbers, prefix=prefix), *judges)


def test_items_are_counted_and_not_test_sets(store: str) -> None:
    """A test set counts the judges of all those that it shares an item with."""
    assert looks(range(10), "a") == (1, "")
    score(range(10), "a")
    score(range(8, 18), "b")
    most, note = looks(range(9, 19), "c")
    assert most == 3  # item 9: a, b, c
    assert "some have now been used to score 3 different judges" in note


def test_the_same_judge_on_the_same_items_is_no_new_use(store: str) -> None:
    """However often it is scored: it gives the same verdicts."""
    for _ in range(3):
        score(range(10), "a")
    assert looks(range(10), "a") == (1, "")
    assert looks(range(10), "b")[0] == 2
    assert looks(range(10), "a", "b", "c")[0] == 3


def test_items_count_by_content_in_all_active_experiments(store: str) -> None:
    """Labels under another name are another question."""
    score(range(10), "a")
    score(range(10), "z", labels="tone")
    mlflow.set_experiment("elsewhere")
    assert looks(range(10), "b", prefix="copy")[0] == 2
    mlflow.delete_experiment(mlflow.get_experiment_by_name("test").experiment_id)
    assert looks(range(10), "b")[0] == 1


def test_an_expectation_that_is_added_makes_no_new_item(store: str) -> None:
    """The judge of the first look gave its verdict on the same inputs and outputs."""
    score(range(10), "a")
    assert count_looks(data(answer="42"), fingerprint(judge("b")))[0] == 2


def test_a_large_test_set_is_kept_whole(store: str) -> None:
    """Its items fill several tags, and none is lost."""
    score(range(1201), "a")
    assert [looks([i], "b")[0] for i in (0, 600, 1200)] == [2, 2, 2]
