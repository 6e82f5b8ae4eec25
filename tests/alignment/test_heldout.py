"""Uses of held-out items are counted by item and judge, wherever in the store they were made."""

from __future__ import annotations

from collections.abc import Sequence

import mlflow
import pandas as pd
import pytest

from workbench.alignment.heldout import usable
from workbench.alignment.runs import (
    ALIGNED_TAG,
    AlignmentData,
    AlignmentRun,
    Lineage,
    count_looks,
    item_tags,
)
from workbench.judging.verdicts import Verdict
from workbench.pairing.pairs import Pairs, Split
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


def data_of(items: dict[str, Example], name: str = "q") -> AlignmentData:
    pairs = held_out(items, name)
    return AlignmentData(pairs, items, Lineage(), Split(pairs, pairs, pairs, seed=0))


def score(items: dict[str, Example], judge: str, name: str = "q") -> None:
    """Begin the run of a judge that is scored on the items."""
    run = AlignmentRun()
    run.begin("test", {ALIGNED_TAG: judge, **item_tags(data_of(items, name))}, {}, {})
    assert not run.fault


def looks(items: dict[str, Example], *judges: str) -> tuple[int, str]:
    return count_looks(AlignmentRun(), data_of(items), *judges)


def test_items_are_counted_and_not_test_sets(store: str) -> None:
    """A test set counts the judges of all those that it shares an item with."""
    assert looks(examples(range(10)), "a") == (1, "")
    score(examples(range(10)), "a")
    score(examples(range(8, 18)), "b")
    most, note = looks(examples(range(9, 19)), "c")
    assert most == 3  # item 9: a, b, c
    assert "some have now been used to score 3 different judges" in note


def test_the_same_judge_on_the_same_items_is_no_new_use(store: str) -> None:
    """However often it is scored: it gives the same verdicts."""
    items = examples(range(10))
    for _ in range(3):
        score(items, "a")
    assert looks(items, "a") == (1, "")
    assert looks(items, "b")[0] == 2
    assert looks(items, "a", "b", "c")[0] == 3


def test_items_count_by_content_in_all_active_experiments(store: str) -> None:
    """Labels under another name are another question."""
    score(examples(range(10)), "a")
    score(examples(range(10)), "z", name="tone")
    mlflow.set_experiment("elsewhere")
    assert looks(examples(range(10), prefix="copy"), "b")[0] == 2
    mlflow.delete_experiment(mlflow.get_experiment_by_name("test").experiment_id)
    assert looks(examples(range(10)), "b")[0] == 1


def test_a_large_test_set_is_kept_whole(store: str) -> None:
    """Its items fill several tags, and none is lost."""
    score(examples(range(1201)), "a")
    assert [looks(examples([i]), "b")[0] for i in (0, 600, 1200)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(Scale.of(["no", "yes"]), False), (Scale.of(["yes", "no", "N/A"], ordered=False), True)],
)
def test_an_abstention_is_unusable_unless_the_scale_has_it(scale: Scale, expected: bool) -> None:
    """A category "N/A" is a rating like any other."""
    assert usable(Verdict("t", "N/A"), scale) is expected
    assert usable(Verdict("t", "yes"), scale)
    assert not usable(Verdict("t", error="no answer"), scale)
