"""Real answers, three annotators and GPT-4's recorded verdicts, through the documented calls."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from workbench import (
    agreement,
    alternative_annotator_test,
    annotator_agreement,
    import_traces,
    log_verdicts,
    pair,
)
from workbench.pairing.pairs import Pairs

NAME = "acceptable"
ANNOTATORS = ("annotator1", "annotator2", "annotator3")


def imported_pairs(path: Path) -> tuple[pd.DataFrame, Pairs]:
    """All rows with their labels, GPT-4's verdicts beside them, and the pairs."""
    made = import_traces(
        path,
        inputs=["question"],
        outputs="answer",
        expectations={"gold_answers": "gold_answers"},
        labels={who: who for who in ANNOTATORS},
        label_name=NAME,
        tags=["question_id"],
        progress=False,
    )
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).assign(trace_id=made.trace_ids)
    log_verdicts(
        rows, name=NAME, source="gpt-4", value="gpt4", rationale="gpt4_rationale", progress=False
    )
    return rows, pair(NAME)


@pytest.fixture
def rows_and_pairs(store: str, openqa: Path) -> tuple[pd.DataFrame, Pairs]:
    return imported_pairs(openqa)


def test_the_published_figures_come_out(rows_and_pairs: tuple[pd.DataFrame, Pairs]) -> None:
    """Pairs, agreement, kappa and confusion, from the majority of the annotators alone."""
    rows, pairs = rows_and_pairs
    assert (len(rows), len(pairs), len(pairs.excluded)) == (1490, 1487, 3)

    # The final label of the data set is the majority of its annotators on every row.
    final = rows.set_index("trace_id")["human"]
    assert (pairs.table.set_index("trace_id")["human"] == final[pairs.trace_ids]).all()
    assert list(pairs.scale.values) == ["No", "Yes"]

    measured = agreement(pairs)
    assert measured.accuracy == pytest.approx(0.8480, abs=5e-5)
    assert measured.kappa == pytest.approx(0.695, abs=5e-4)
    assert measured.confusion.to_numpy().tolist() == [[582, 89], [137, 679]]

    without = set(rows.loc[rows["gpt4"] == "", "trace_id"])
    assert set(pairs.excluded["trace_id"]) == without
    assert set(pairs.excluded["reason"]) == {"no verdict"}
    assert measured.coverage == pytest.approx(1487 / 1490)
    margins = 671 * 816 * 719 * 768
    assert measured.matthews == pytest.approx((582 * 679 - 89 * 137) / margins**0.5)
    by_question = agreement(pairs, groups="question_id")
    assert by_question.kappa == measured.kappa
    assert by_question.kappa_interval.low < measured.kappa_interval.low
    test = alternative_annotator_test(pairs, epsilon=0.15)
    # One item is there twice.
    assert test.table["n"].tolist() == [1486, 1479, 222]
    assert agreement(pairs, by="annotator").table["n"].sum() > 2 * 1480

    table = annotator_agreement(pairs).pairwise
    row = table[(table.iloc[:, 0] == ANNOTATORS[0]) & (table.iloc[:, 1] == ANNOTATORS[1])].iloc[0]
    assert (row["n"], round(row["kappa"], 3)) == (1483, 0.735)

    question = dict(zip(rows["trace_id"], rows["question_id"], strict=True))
    split = pairs.split(groups="question_id", seed=0)
    parts = [{question[i] for i in part.trace_ids} for part in (split.train, split.dev, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 301
    assert len(split.test) == pytest.approx(0.4 * 1487, abs=8)
    for part in (split.train, split.dev, split.test):
        assert (part.table["human"] == "Yes").mean() == pytest.approx(0.549, abs=0.02)
