"""The whole life of a judge on PostgreSQL, behind a tracking server and without one."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import mlflow
import pandas as pd
import pytest
from mlflow.genai.judges import Judge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "labeling"))

from labeling_helpers import View

import workbench

COUNT = 24
PEOPLE = ["ana", "ben", "cem", "dora"]
TABLE = pd.DataFrame(
    {
        "q": [f"question {n}" for n in range(COUNT)],
        "a": ["a long and helpful answer, see page 3" if n % 2 else "no" for n in range(COUNT)],
    }
)


def judge() -> Judge:
    return workbench.make_judge(
        "quality", "Rate {{ outputs }} given {{ inputs }}.",
        feedback_value_type=Literal["good", "poor"], model="offline:/rubric",
    )  # fmt: skip


def label_all(annotator: str, imported: workbench.Imported) -> list[str]:
    """Label every trace in a panel, as one of several people does."""
    panel = workbench.LabelPanel(judge(), imported, annotator=annotator)
    view = View(panel.session)
    for position in range(COUNT):
        trace_id = panel.session.trace_ids[position]
        good = imported.trace_ids.index(trace_id) % 2
        view.act(view.save(position, "good" if good else "poor", f"{annotator}: ünïcode ✓"))
    return list(panel.labels["value"])


def test_the_life_of_a_judge_behind_a_server(postgres_server: str, tmp_path: Path) -> None:
    """Import, judge, label by four people at once, pair, agree, align, register, load, score."""
    workbench.use_workspace(tmp_path / "output", experiment="life", tracking_uri=postgres_server)
    imported = workbench.import_traces(TABLE, inputs="q", outputs="a", progress=False)
    assert workbench.assess(judge(), imported, progress=False).calls == COUNT
    with ThreadPoolExecutor(len(PEOPLE)) as people:
        given = list(people.map(lambda who: label_all(who, imported), PEOPLE))
    assert [len(values) for values in given] == [COUNT] * len(PEOPLE)
    pairs = workbench.pair(judge(), imported)
    assert len(pairs) == COUNT
    assert set(pairs.votes.columns) == set(PEOPLE)
    assert pairs.votes.notna().all(axis=None)
    assert list(pairs.table["human"]).count("good") == COUNT // 2
    assert workbench.annotator_agreement(pairs).shared_items == COUNT
    assert workbench.agreement(pairs).n == COUNT
    alignment = workbench.align(judge(), pairs, workbench.SIMBA(max_steps=1), gate="none")
    assert workbench.register(alignment).version == 1
    loaded = workbench.load_judge("quality")
    assert loaded.instructions == alignment.judge.instructions
    assert len(workbench.history("quality")) == 1
    again = workbench.import_traces(TABLE, inputs="q", outputs="a", progress=False)
    assert (again.created, again.trace_ids) == (0, imported.trace_ids)
    scored = workbench.score(
        loaded, TABLE, inputs="q", outputs="a", to=tmp_path / "v", sample=20, progress=False
    )
    assert len(workbench.pair(loaded, scored)) == 20
    assert workbench.monitor(loaded, scored).table["labelled"].sum() == 20


def test_the_database_itself_is_a_store_as_well(
    postgres: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches in one transaction, a batch with a label that is there already, and no NUL."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    workbench.use_workspace(tmp_path / "output", experiment="direct", tracking_uri=postgres)
    table = TABLE.assign(a=[f"{text}\x00" for text in TABLE["a"]])
    imported = workbench.import_traces(table, inputs="q", outputs="a", progress=False)
    assert workbench.assess(judge(), imported, progress=False).calls == COUNT
    labels = TABLE.assign(trace_id=imported.trace_ids, value=["good", "poor"] * (COUNT // 2))
    few = workbench.log_labels(labels[:5], name="quality", annotator="ana", value="value")
    rest = workbench.log_labels(labels, name="quality", annotator="ana", value="value")
    assert (few.written, rest.written) == (5, COUNT - 5)
    assert len(workbench.pair(judge(), imported)) == COUNT
    assert workbench.register(judge()).version == 1
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
