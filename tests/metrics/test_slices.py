"""Agreement by slice: what the slices are, their figures, and what is said of looking at many."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_pairs import from_confusion, make_pairs
from scipy.stats import binomtest, fisher_exact, ttest_ind
from statsmodels.stats.proportion import proportion_confint

from workbench import agreement, import_traces, log_verdicts, pair
from workbench.errors import ArgumentError
from workbench.metrics.slices import Slices
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale


def by_position(pairs: Pairs, slice_of: Any, **options: Any) -> Slices:
    """Slices by a function of the row's number."""
    return agreement(pairs, by={i: slice_of(k) for k, i in enumerate(pairs.trace_ids)}, **options)


def test_a_slice_has_the_figures_of_its_pairs_and_is_tested_against_the_rest() -> None:
    """Of 60 pairs the first 40 hold 36 right, the others 10 of 20."""
    human = ["yes", "no"] * 30
    flip = {"yes": "no", "no": "yes"}
    wrong = {*range(4), *range(40, 50)}
    pairs = make_pairs(human, [flip[v] if k in wrong else v for k, v in enumerate(human)])
    found = by_position(pairs, lambda k: "big" if k < 40 else "small")
    assert list(found.table.index) == ["big", "small"]
    assert found.table.index.name == "slice"
    big, small = found.table.loc["big"], found.table.loc["small"]
    assert (big["n"], big["accuracy"], small["accuracy"]) == (40, 0.9, 0.5)
    interval = (big["accuracy_low"], big["accuracy_high"])
    assert interval == pytest.approx(proportion_confint(36, 40, method="wilson"))
    alone = agreement(pairs.subset(pairs.trace_ids[:40]))
    assert (big["kappa"], big["kappa_low"], big["kappa_high"]) == pytest.approx(
        (alone.kappa, *alone.kappa_interval)
    )
    p = fisher_exact([[36, 4], [10, 10]]).pvalue
    assert (big["p_value"], small["p_value"]) == pytest.approx((p, p))
    assert big["p_adjusted"] == pytest.approx(p)  # two slices are one test
    thirds = by_position(pairs, lambda k: "big" if k < 40 else f"small {k % 2}").table
    assert thirds["p_adjusted"].min() == pytest.approx(3 * thirds["p_value"].min())
    assert (big["note"], small["note"]) == ("", "fewer than 30 pairs")
    assert found.accuracy == pytest.approx(46 / 60)
    assert "2 differing from the rest" in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "\n" not in repr(found)
    assert found._repr_html_().count("<table") == 1


def test_small_slices_are_pooled_and_writings_of_a_name_are_one() -> None:
    pairs = from_confusion([[30, 5], [5, 30]])
    names = ["GPT 4"] * 20 + ["gpt-4"] * 20 + ["other model"] * 20 + ["a", "b", "c"] * 3 + [None]
    found = by_position(pairs, lambda k: names[k])
    assert found.table["n"].to_dict() == {"GPT 4": 40, "other model": 20, "other (4 slices)": 10}
    assert len(found.table) == 3
    versions = by_position(pairs, lambda k: ["1.1", "1.10"][k % 2])
    assert versions.table["n"].to_dict() == {"1.1": 35, "1.10": 35}
    numbers = by_position(pairs, lambda k: ["2", "1", " 1", "1.0"][k % 4])
    assert numbers.table["n"].to_dict() == {"1": 52, "2": 18}
    single = by_position(pairs, lambda k: "few" if k < 5 else "many")
    assert single.table["n"].to_dict() == {"many": 65, "few": 5}


def test_what_cannot_be_said_of_a_slice_is_nan_with_a_note() -> None:
    same = by_position(from_confusion([[0, 0], [0, 30]]), lambda k: "all")
    row = same.table.loc["all"]
    assert row["accuracy"] == 1
    assert all(math.isnan(row[name]) for name in ("kappa", "p_value", "p_adjusted"))
    assert row["note"] == "kappa undefined; no test: too little to compare"
    empty = agreement(make_pairs([], []), by={})
    assert (len(empty.table), empty.n) == (0, 0)
    assert list(empty.table.columns) == list(same.table.columns)


def test_numbers_are_compared_by_their_distance() -> None:
    rng = np.random.default_rng(0)
    human = rng.integers(0, 100, 80).astype(float)
    error = np.where(np.arange(80) < 40, rng.normal(0, 2, 80), rng.normal(0, 20, 80)).round()
    scale = Scale("numeric", low=0, high=100)
    pairs = make_pairs(list(human), list(human + error), scale)
    found = by_position(pairs, lambda k: "near" if k < 40 else "far")
    gaps = np.minimum(np.abs(error) / 100, 1)
    near = found.table.loc["near"]
    assert near["mean_distance"] == pytest.approx(gaps[:40].mean())
    reference = ttest_ind(gaps[:40], gaps[40:], equal_var=False)
    assert near["p_value"] == pytest.approx(reference.pvalue)
    assert f"mean distance {gaps.mean():.3f} [" in repr(found)


def test_each_annotator_is_compared_by_their_own_labels() -> None:
    votes = [{"ana": "yes", "bo": "no" if k < 15 else "yes"} for k in range(40)]
    pairs = make_pairs(["yes"] * 40, ["yes"] * 39 + ["no"], votes=votes)
    table = agreement(pairs, by="annotator").table
    assert table["n"].to_dict() == {"ana": 40, "bo": 40}
    assert table["accuracy"].to_dict() == pytest.approx({"ana": 39 / 40, "bo": 24 / 40})
    # On 15 of the same items the judge is with ana alone.
    assert table["p_adjusted"].tolist() == pytest.approx([binomtest(0, 15).pvalue] * 2)
    more = [{**one, "cy": "yes"} for one in votes]
    alone = {"ana": "yes"}
    three = make_pairs(["yes"] * 41, ["yes"] * 39 + ["no"] * 2, votes=[*more, alone])
    found = agreement(three, by="annotator").table
    assert found.loc["bo", "p_value"] == pytest.approx(binomtest(0, 15).pvalue)
    tie = pd.DataFrame({"trace_id": ["x"], "reason": ["annotators tie"]})
    notes = agreement(replace(pairs, excluded=tie), by="annotator").table["note"]
    assert set(notes) == {"without 1 item on which annotators differ"}
    few = replace(pairs.subset(pairs.trace_ids[:20]), excluded=tie)
    note = agreement(few, by="annotator").table.loc["ana", "note"]
    assert "fewer than 30 pairs" in note
    assert note.endswith("without 1 item on which annotators differ")


def test_rows_that_belong_together_are_no_more_evidence() -> None:
    """Each answer ten times over: the slices differ no more than their items do."""
    once = make_pairs(["yes"] * 12, ["yes"] * 6 + ["no"] * 3 + ["yes"] * 3)
    many = make_pairs(
        [v for v in once.table["human"] for _ in range(10)],
        [v for v in once.table["judge"] for _ in range(10)],
    )
    groups = {i: k // 10 for k, i in enumerate(many.trace_ids)}
    loose = by_position(many, lambda k: "left" if k < 60 else "right")
    tied = by_position(many, lambda k: "left" if k < 60 else "right", groups=groups)
    assert loose.table.loc["left", "p_value"] < 1e-6
    assert tied.table.loc["left", "p_value"] == pytest.approx(fisher_exact([[6, 0], [3, 3]]).pvalue)


def test_tags_inputs_lengths_and_weeks_are_slices_of_what_the_store_holds(store: str) -> None:
    rows = pd.DataFrame(
        {
            "question": ["How long?" if k % 2 else "How much?" for k in range(48)],
            "answer": ["word " * (k + 1) for k in range(48)],
            "model": ["small" if k % 3 else "large" for k in range(48)],
            "dora": ["yes" if k % 4 else "no" for k in range(48)],
        }
    )
    made = import_traces(
        rows, inputs=["question"], outputs="answer", labels={"dora": "dora"}, label_name="good",
        tags=["model"], progress=False,
    )  # fmt: skip
    verdicts = pd.DataFrame({"trace_id": made.trace_ids, "judge": rows["dora"]})
    log_verdicts(verdicts, name="good", source="m", value="judge", progress=False)
    pairs = pair("good")
    assert agreement(pairs, by="model").table["n"].to_dict() == {"small": 32, "large": 16}
    assert set(agreement(pairs, by="question").table.index) == {"How long?", "How much?"}
    lengths = agreement(pairs, by="length").table
    assert lengths.index[0] == "5 to 60 characters"
    assert lengths["n"].tolist() == [12] * 4
    weeks = agreement(pairs, by="week").table
    assert weeks["n"].sum() == 48
    assert all(", week " in name for name in weeks.index)
    with pytest.raises(ArgumentError, match="'model', 'question'"):
        agreement(pairs, by="modell")
