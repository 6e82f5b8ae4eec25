"""Verdicts of several judges under one name: `pair` tells them apart by their source."""

from __future__ import annotations

from typing import Literal

import pandas as pd
import pytest

import workbench
from workbench.errors import ArgumentError

TABLE = pd.DataFrame(
    {
        "question": [f"q{n}" for n in range(12)],
        "answer": [f"a{n}" for n in range(12)],
        "ana": ["good", "poor"] * 6,
        "old": ["good"] * 11 + [""],
        "new": ["poor"] * 12,
    }
)


@pytest.fixture
def recorded(store: str) -> workbench.Imported:
    imported = workbench.import_traces(
        TABLE, inputs="question", outputs="answer", labels={"ana": "ana"}, label_name="quality"
    )
    table = TABLE.assign(trace_id=imported.trace_ids)
    for source in ("old", "new"):
        workbench.log_verdicts(table, name="quality", source=source, value=source)
    return imported


def test_each_source_is_paired_by_itself(recorded: workbench.Imported) -> None:
    old = workbench.pair("quality", recorded, source="old")
    new = workbench.pair("quality", recorded, source="new")
    assert set(old.table["judge"]) == {"good"}
    assert set(new.table["judge"]) == {"poor"}
    assert len(old) == 11
    assert list(old.excluded["reason"]) == ["no verdict"]
    assert len(new) == 12


def test_a_judge_that_judged_later_does_not_take_the_place_of_a_source(
    recorded: workbench.Imported,
) -> None:
    judge = workbench.make_judge(
        "quality", "Rate {{ outputs }}.", feedback_value_type=Literal["good", "poor"]
    )
    workbench.assess(judge, recorded, progress=False)
    assert set(workbench.pair("quality", recorded, source="old").table["judge"]) == {"good"}
    assert len(workbench.pair("quality", recorded, source="offline:/rubric")) == 12


def test_an_unknown_source_names_those_that_there_are(recorded: workbench.Imported) -> None:
    with pytest.raises(ArgumentError, match=r"source='older'.*'new', 'old'"):
        workbench.pair("quality", recorded, source="older")


def test_a_source_beside_a_judge_is_refused(recorded: workbench.Imported) -> None:
    judge = workbench.make_judge("quality", "Rate {{ outputs }}.", model="offline:/rubric")
    with pytest.raises(ArgumentError, match=r"pair\('quality', source='old'\)"):
        workbench.pair(judge, recorded, source="old")
