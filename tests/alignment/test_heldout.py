"""Uses of held-out items are counted by item and judge, wherever in the store they were made."""

from __future__ import annotations

from collections.abc import Sequence

import mlflow
import pandas as pd
import pytest

from workbench.alignment.heldout import TestSetUse, test_set_tags, usable
from workbench.alignment.runs import ALIGNED_TAG, AlignmentRun, RunLocation
from workbench.judging.verdicts import Verdict
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
    """Begin the run of a judge that is scored on the items."""
    tags = {ALIGNED_TAG: judge, **test_set_tags(held_out(items, name), items)}
    run = AlignmentRun(RunLocation.active(), "test")
    run.begin(tags, {}, {})
    assert not run.fault


def use(items: dict[str, Example], *judges: str) -> TestSetUse:
    return TestSetUse.of(held_out(items), items, *judges, location=RunLocation.active())


def test_items_are_counted_and_not_test_sets(store: str) -> None:
    """A test set counts the judges of all those that it shares an item with."""
    first = use(examples(range(10)), "a")
    assert (first.most, first.mean, first.earlier, first.items) == (1, 1.0, 0, 10)
    assert first.note == ""
    score(examples(range(10)), "a")
    score(examples(range(8, 18)), "b")
    third = use(examples(range(9, 19)), "c")
    assert third.most == 3  # item 9: a, b, c
    assert third.mean == pytest.approx((3 + 8 * 2 + 1) / 10)
    assert "some have now been used to score 3 different judges (on average 2.0)" in third.note


def test_the_same_judge_on_the_same_items_is_no_new_use(store: str) -> None:
    """However often it is scored: it gives the same verdicts."""
    items = examples(range(10))
    for _ in range(3):
        score(items, "a")
    assert (use(items, "a").most, use(items, "a").note) == (1, "")
    assert use(items, "b").most == 2
    assert use(items, "a", "b", "c").most == 3


def test_items_count_by_content_in_all_active_experiments(store: str) -> None:
    """Labels under another name are another question."""
    score(examples(range(10)), "a")
    score(examples(range(10)), "z", name="tone")
    mlflow.set_experiment("elsewhere")
    assert use(examples(range(10), prefix="copy"), "b").most == 2
    mlflow.delete_experiment(mlflow.get_experiment_by_name("test").experiment_id)
    assert use(examples(range(10)), "b").most == 1


def test_a_large_test_set_is_kept_whole(store: str) -> None:
    """Its items fill several tags, and none is lost."""
    items = examples(range(1201))
    score(items, "a")
    seen = use(items, "b")
    assert (seen.items, seen.most, seen.mean) == (1201, 2, 2.0)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(Scale.of(["no", "yes"]), False), (Scale.of(["yes", "no", "N/A"], ordered=False), True)],
)
def test_an_abstention_is_unusable_unless_the_scale_has_it(scale: Scale, expected: bool) -> None:
    """A category "N/A" is a rating like any other."""
    assert usable(Verdict("t", "N/A"), scale) is expected
    assert usable(Verdict("t", "yes"), scale)
    assert not usable(Verdict("t", error="no answer"), scale)
