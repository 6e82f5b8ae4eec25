"""Looks at held-out items are counted by item and judge, wherever in the store they were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlflow
import pandas as pd
import pytest

from workbench.alignment.runs import Place, looks, marks
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale
from workbench.store.traces import Example


def examples(numbers: Sequence[int], prefix: str = "tr") -> dict[str, Example]:
    """Items of the given numbers; the same number is the same content."""
    made = [Example(f"{prefix}-{i}", {"q": i}, f"answer {i}", {}) for i in numbers]
    return {example.trace_id: example for example in made}


def held_out(items: dict[str, Example], name: str = "q") -> Pairs:
    table = pd.DataFrame(
        {
            "trace_id": list(items),
            "human": "yes",
            "judge": "no",
            "human_rationale": "",
            "judge_rationale": "",
            "votes": [{} for _ in items],
            "blind": True,
        }
    )
    nothing = pd.DataFrame(columns=["trace_id", "reason"])
    return Pairs(name=name, table=table, excluded=nothing, scale=Scale.of(["no", "yes"]))


def score(items: dict[str, Example], judge: str, name: str = "q") -> None:
    """Leave the marks of a judge that is scored on the items."""
    run = Place.active().begin("test")
    run.set_tags(marks(held_out(items, name), items, judge))


def counted(items: dict[str, Example], *judges: str, name: str = "q") -> Any:
    return looks(held_out(items, name), items, *judges)


def test_the_first_look_is_one(store: str) -> None:
    """The judge at hand counts before it is scored, and nothing is said."""
    seen = counted(examples(range(10)), "a")
    assert (seen.most, seen.mean, seen.earlier, seen.items) == (1, 1.0, 0, 10)
    assert seen.note == ""


def test_items_count_and_not_test_sets(store: str) -> None:
    """Another test set that shares some items with those before was looked at in these."""
    score(examples(range(10)), "a")
    score(examples(range(8, 18)), "b")
    seen = counted(examples(range(9, 19)), "c")
    assert seen.most == 3  # item 9: a, b, c
    assert seen.mean == pytest.approx((3 + 8 * 2 + 1) / 10)
    assert "some have now been used to score 3 different judges (on average 2.0)" in seen.note


def test_the_same_judge_on_the_same_items_is_no_new_look(store: str) -> None:
    """However often it is scored: it gives the same verdicts."""
    items = examples(range(10))
    for _ in range(3):
        score(items, "a")
    assert counted(items, "a").most == 1
    assert counted(items, "a").note == ""
    assert counted(items, "b").most == 2
    assert counted(items, "a", "b", "c").most == 3


def test_another_experiment_is_no_other_world(store: str) -> None:
    """The items count by their content in all experiments that are not deleted."""
    score(examples(range(10)), "a")
    mlflow.set_experiment("elsewhere")
    assert counted(examples(range(10), prefix="copy"), "b").most == 2
    mlflow.delete_experiment(mlflow.get_experiment_by_name("test").experiment_id)
    assert counted(examples(range(10)), "b").most == 1


def test_labels_under_another_name_are_not_seen(store: str) -> None:
    """A judge of another question tells nothing of what people said to this one."""
    score(examples(range(10)), "a", name="tone")
    assert counted(examples(range(10)), "b").most == 1


def test_a_large_test_set_is_kept_whole(store: str) -> None:
    """Its items fill several tags, and none is lost."""
    items = examples(range(1201))
    score(items, "a")
    seen = counted(items, "b")
    assert (seen.items, seen.most, seen.mean) == (1201, 2, 2.0)


def test_many_runs_are_all_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on over pages and over groups of experiments."""
    monkeypatch.setattr("workbench.alignment.runs.EXPERIMENTS_AT_ONCE", 1)
    items = examples(range(3))
    for experiment in ("one", "two", "three"):
        mlflow.set_experiment(experiment)
        score(items, f"judge of {experiment}")
    assert counted(items, "here").most == 4
