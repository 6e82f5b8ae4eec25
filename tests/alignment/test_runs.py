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
from workbench.alignment.runs import AlignmentData, AlignmentRun, Lineage, count_looks
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


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_an_interrupted_run_says_how_it_ended(
    store: str, error: type[BaseException], status: str
) -> None:
    """What was written before stays, so that an interrupted test counts."""
    run = AlignmentRun()

    def interrupted() -> None:
        with run:
            run.begin("test", data(), judge("ä"), seed=3)
            raise error

    with pytest.raises(error):
        interrupted()
    logged = mlflow.get_run(run.run_id)
    assert logged.info.status == status
    assert (logged.data.params["seed"], logged.data.params["test"]) == ("3", "10")
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.run_id))
    assert len(json.loads((folder / "split.json").read_text())["traces"]["test"]) == 10
    text = (folder / "instructions" / "proposed.txt").read_text(encoding="utf-8")
    assert text == "Be ä with {{ inputs }}."


def test_a_finished_run_holds_defined_metrics_only(store: str) -> None:
    """An undefined statistic is no number, and a plot would show it as one."""
    run = AlignmentRun()
    with run:
        run.begin("test", data())
        run.finish({"status": "improved"}, {"accuracy": 0.5, "kappa": float("nan")}, {})
    logged = mlflow.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"accuracy": 0.5}
    assert logged.data.tags["status"] == "improved"


def test_a_run_is_nested_in_what_was_active_when_it_was_made(store: str) -> None:
    """Another experiment may be active by then."""
    with mlflow.start_run() as parent:
        run = AlignmentRun()
    mlflow.set_experiment("elsewhere")
    run.begin("test", data())
    logged = mlflow.get_run(run.run_id)
    assert logged.info.experiment_id == parent.info.experiment_id
    assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_store_that_refuses_a_run_raises_nothing(store: str) -> None:
    """The fault is kept, and later writes are not tried."""
    run = AlignmentRun()
    run.experiment_id = "no such experiment"
    with run:
        run.begin("test", data())
        run.finish({}, {"a": 1.0}, {})
    assert run.run_id is None
    assert "no such experiment" in run.fault


@pytest.mark.parametrize("refused", ["log_batch", "log_dict"])
def test_a_run_that_is_refused_in_part_has_failed(
    store: str, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Artifact stores have errors of their own, which end no alignment; nor does its run go on."""

    class Refused(Exception):
        """As botocore's, which is no OSError."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Refused

    run = AlignmentRun()
    monkeypatch.setattr(run.client, refused, refuse)
    with run:
        run.begin("test", data())
        run.finish({}, {"a": 1.0}, {})
    assert run.fault_notes("It") == ("It could not be logged as an MLflow run: Refused",)
    assert mlflow.get_run(run.run_id).info.status == "FAILED"


# -- looks at held-out items ----------------------------------------------------------------


def score(numbers: Sequence[int], name: str, labels: str = "q") -> None:
    """Begin the run of a judge that is scored on the items."""
    AlignmentRun().begin("test", data(numbers, name=labels), judge(name))


def looks(numbers: Sequence[int], *names: str, prefix: str = "tr") -> tuple[int, str]:
    judges = [fingerprint(judge(name)) for name in names]
    return count_looks(AlignmentRun(), data(numbers, prefix=prefix), *judges)


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
    assert count_looks(AlignmentRun(), data(answer="42"), fingerprint(judge("b")))[0] == 2


def test_a_search_that_fails_is_told_and_the_run_finished(store: str) -> None:
    """How many judges there were is not known then, and no reason to lose the outcome."""
    run = AlignmentRun()
    with run:
        run.begin("test", data(), judge("a"))
        mlflow.set_tracking_uri("nowhere://")
        assert count_looks(run, data(), fingerprint(judge("a"))) == (1, "")
        run.finish({"status": "improved"}, {"accuracy": 0.5}, {})
    mlflow.set_tracking_uri(store)
    (note,) = run.fault_notes("The alignment")
    assert "have scored before is not known" in note
    logged = mlflow.get_run(run.run_id)
    assert (logged.info.status, logged.data.metrics) == ("FINISHED", {"accuracy": 0.5})


def test_a_large_test_set_is_kept_whole(store: str) -> None:
    """Its items fill several tags, and none is lost."""
    score(range(1201), "a")
    assert [looks([i], "b")[0] for i in (0, 600, 1200)] == [2, 2, 2]
