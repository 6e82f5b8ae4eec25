"""A judge with itself: asked again, held against people, and with its options in reverse."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
import pytest
from asking import OwnJudge
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import COLOURS, make_pairs
from mlflow.entities import Feedback
from mlflow.genai.judges import Judge
from sklearn.metrics import accuracy_score

from workbench import assess, import_traces, make_judge, pair, self_agreement
from workbench.errors import ArgumentError, BudgetError
from workbench.judging.assessment import Assessed
from workbench.judging.verdicts import FINGERPRINT_KEY


class Wavering(OwnJudge):
    """Answers yes and no by turns about what is doubtful, and fails on what is broken."""

    def __call__(self, *, outputs: Any = None) -> Feedback:
        _ASKED.append(str(outputs))
        if "broken" in outputs:
            raise ValueError("no answer")
        doubtful = "doubtful" in outputs and len(_ASKED) % 2
        return Feedback(name=self.name, value="no" if doubtful else "yes")


_ASKED: list[str] = []


def traces(answers: list[str], labels: list[str] | None = None) -> list[str]:
    rows = pd.DataFrame({"q": [f"q{n}" for n in range(len(answers))], "a": answers})
    if labels is not None:
        rows["who"] = labels
    named: Any = {} if labels is None else {"labels": {"who": "who"}, "label_name": "q"}
    return import_traces(rows, inputs="q", outputs="a", progress=False, **named).trace_ids


def yes_or_no(instructions: str, **more: Any) -> Judge:
    given = {"model": "offline:/rubric", "feedback_value_type": Literal["yes", "no"], **more}
    return make_judge("q", instructions, **given)


def assessed(*answers: list[Any]) -> Assessed:
    """What `assess` gives for these answers to items t000, t001, ...; None for a failure."""
    rows = [
        (f"t{i:03}", sample, value, "", "failed" if value is None else None, False)
        for i, given in enumerate(answers)
        for sample, value in enumerate(given)
    ]
    columns = ["trace_id", "sample", "value", "rationale", "error", "cached"]
    table = pd.DataFrame(rows, columns=columns)
    first = table[table["sample"] == 0].drop(columns="sample")
    return Assessed("q", first, 0, None, None, None, "", 0.0, samples=table)


def test_samples_are_asked_and_only_the_first_is_logged(store: str) -> None:
    """A version keeps one verdict a trace, which a later assessment takes as it is."""
    ids = traces([f"doubtful {n}" for n in range(4)])
    judge = Wavering(name="q")
    _ASKED.clear()
    found = assess(judge, ids, samples=3, concurrency=1, progress=False)
    assert (found.calls, len(_ASKED)) == (12, 12)
    assert len(found.table) == 4
    assert len(found.samples) == 12
    assert found.samples["value"].nunique() == 2
    first = found.samples[found.samples["sample"] == 0]
    assert first["value"].tolist() == found.table["value"].tolist()
    stored = mlflow.search_traces(return_type="list", include_spans=False)
    given = [one for trace in stored for one in trace.info.assessments]
    assert len(given) == 4
    assert {one.metadata[FINGERPRINT_KEY] for one in given} == {found.fingerprint}
    again = assess(judge, ids, progress=False)
    assert again.calls == 0
    assert again.table["value"].tolist() == found.table["value"].tolist()


def test_samples_are_kept_and_budgeted(store: str) -> None:
    """Paid answers come from the cache; a small budget says how many calls are missing."""
    ids = traces(["one", "two"])
    judge = yes_or_no("Rate {{ outputs }}.")
    with pytest.raises(BudgetError, match="budget is spent"):
        assess(judge, ids, samples=3, budget=4, progress=False)
    assert assess(judge, ids, samples=3, budget=2, progress=False).calls == 2
    with pytest.raises(ArgumentError, match="samples=0"):
        assess(judge, ids, samples=0)


def test_figures_by_hand() -> None:
    """Of four items one flips and one failed; people say yes, yes, no."""
    given = assessed(
        ["yes"] * 4, ["yes", "yes", "no", "yes"], ["yes"] * 4, ["yes", None, "no", "no"]
    )
    labels = make_pairs(["yes", "yes", "no"], ["yes", "yes", "yes"])
    found = self_agreement(given, labels)
    value = found.table["value"]
    assert value["all answers agree"] == pytest.approx(2 / 3)
    assert value["two answers agree"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert value["ceiling of one answer"] == pytest.approx((1 + 3 / 4 + 1) / 3)
    assert value["accuracy of one answer"] == pytest.approx((1 + 3 / 4 + 0) / 3)
    assert value["accuracy of the majority"] == pytest.approx(2 / 3)
    assert math.isnan(value["changed by reversed options"])
    assert (found.failures, found.table.loc["all answers agree", "n"]) == (1, 3)
    (flip,) = found.flips.to_dict("records")
    assert (flip["trace_id"], flip["answers"], flip["human"]) == (
        "t001",
        {"yes": 3, "no": 1},
        "yes",
    )
    assert any("on the scale: 1 item" in note for note in found.notes)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "3 items asked 4 times, 1 flip>" in repr(found)


def test_figures_are_those_of_other_programs() -> None:
    """Of two answers the share that scikit-learn counts."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 80)
    wavers = rng.random((4, 80)) < 0.3
    codes = np.where(wavers, rng.integers(0, 3, (4, 80)), truth)
    words = np.array(["red", "green", "blue"])[codes]
    labels = make_pairs(words[0].tolist(), words[0].tolist(), COLOURS)
    table = self_agreement(assessed(*words.T.tolist()), labels, resamples=50).table["value"]
    shares = [accuracy_score(one, two) for one, two in itertools.combinations(codes, 2)]
    assert table["two answers agree"] == pytest.approx(np.mean(shares))
    right = [accuracy_score(codes[0], each) for each in codes]
    assert table["accuracy of one answer"] == pytest.approx(np.mean(right))


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=3, max_size=3), min_size=1, max_size=9))
def test_neither_order_nor_names_of_answers_matter(answers: list[list[str]]) -> None:
    """Shares and their intervals are of the answers as sets; none leaves its range."""
    table = self_agreement(assessed(*answers), resamples=50).table
    turned = [[{"a": "b", "b": "a"}[one] for one in reversed(given)] for given in answers]
    other = self_agreement(assessed(*turned), resamples=50).table
    pd.testing.assert_frame_equal(other, table)
    shares = table.dropna()
    assert (shares["low"] >= 0).all()
    assert (shares["high"] <= 1).all()
    assert ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all()
    assert table.loc["all answers agree", "value"] <= table.loc["two answers agree", "value"]
    assert table.loc["two answers agree", "value"] <= table.loc["ceiling of one answer", "value"]


def test_what_is_undefined_is_nan_with_its_reason() -> None:
    """No item, no label, a single sample, a constant judge, abstentions alone."""
    nothing = self_agreement(assessed(["yes", None]))
    assert nothing.table["value"].isna().all()
    assert "no labels are given" in " ".join(nothing.notes)
    with pytest.raises(ArgumentError, match="samples=1 must be a whole number of 2 or more"):
        self_agreement(assessed(["yes"]))
    constant = self_agreement(assessed(["yes", "yes"], ["yes", "yes"])).table
    assert constant.loc["all answers agree", "value"] == 1
    assert constant.loc["all answers agree", "low"] < 0.5
    silent = self_agreement(
        assessed(["N/A", "N/A"], ["N/A", "yes"]), make_pairs(["yes"] * 2, ["yes"] * 2)
    )
    assert silent.table.loc["accuracy of one answer", ["value", "n"]].tolist() == [1, 1]
    assert silent.flips.iloc[0]["answers"] == {"N/A": 1, "yes": 1}
    labels = make_pairs(["yes", "no", "yes"], ["yes"] * 3)
    strange = self_agreement(assessed(["yes"] * 2, ["no", "maybe"], ["no", "no"]), labels)
    assert (strange.failures, len(strange.flips)) == (1, 0)
    json.dumps(silent.to_dict(), allow_nan=False)


def test_a_judge_is_asked_with_its_options_in_both_orders(store: str) -> None:
    """Labels are read where they are; the copy's verdicts are not logged."""
    answers = ["It is good.", "It is bad.", "good", "bad", "none"]
    ids = traces(answers, ["yes", "no", "yes", "no", "no"])
    judge = yes_or_no("Rate {{ outputs }}. Rules:\n- Say yes if it says good.")
    found = self_agreement(judge, ids, samples=2, progress=False)
    assert found.table.loc["all answers agree", "value"] == 1  # the embedded model never wavers
    assert found.table.loc["changed by reversed options", "n"] == 5
    assert 0 <= found.table.loc["changed by reversed options", "value"] <= 1
    assert found.table.loc["accuracy of one answer", "n"] == 5
    assert len(pair(judge, ids)) == 5
    stored = mlflow.search_traces(return_type="list", include_spans=False)
    judged = [a for t in stored for a in t.info.assessments if a.source.source_type != "HUMAN"]
    assert len(judged) == 5
    same = self_agreement(judge, pair(judge, ids), samples=2, progress=False, reverse=False)
    assert same.table.loc["accuracy of one answer", "value"] == pytest.approx(
        found.table.loc["accuracy of one answer", "value"]
    )


def test_the_model_reads_the_options_in_reversed_order(store: str, loopback: Any) -> None:
    """The simulated one takes an option by its place, so that every answer is another one."""
    server = loopback()
    judge = yes_or_no("Rate {{ outputs }}.", model="openai:/simulated", base_url=server.url)
    ids = traces([f"answer {n}" for n in range(20)])
    found = self_agreement(judge, ids, samples=2, progress=False)
    assert server.stats()["requests"] == 60
    assert found.table.loc["changed by reversed options", ["value", "n"]].tolist() == [1, 20]
    assert found.table.loc["all answers agree", "value"] == 1


def test_repetitions_are_no_more_evidence() -> None:
    """Ten items that are one make an interval like that of one item."""
    many = assessed(*[["yes", "yes"]] * 10)
    alike = dict.fromkeys(many.table["trace_id"], ('{"question": "same"}', "text"))
    wide = self_agreement(Assessed(**{**vars(many), "previews": alike})).table
    one = self_agreement(assessed(["yes", "yes"])).table
    row = "all answers agree"
    assert wide.loc[row, "low"] == pytest.approx(one.loc[row, "low"])
    assert wide.loc[row, "low"] < self_agreement(many).table.loc[row, "low"]
    # Of what pairs keep together as well.
    given = assessed(*[["yes", "yes"], ["yes", "no"], ["no", "no"]] * 10)
    pairs = make_pairs(["yes"] * 30, ["yes"] * 30)
    tied = pairs.grouped({i: str(k % 3) for k, i in enumerate(pairs.trace_ids)})
    loose, wide = (self_agreement(given, one).table for one in (pairs, tied))
    for row in ("all answers agree", "accuracy of one answer"):
        assert wide.loc[row, "value"] == pytest.approx(loose.loc[row, "value"])
        width = wide.loc[row, "high"] - wide.loc[row, "low"]
        assert width > 1.5 * (loose.loc[row, "high"] - loose.loc[row, "low"]), row


@pytest.mark.slow
def test_its_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """2,000 judges that waver on a third of 100 items; 93 to 97 % of intervals hold the truth."""
    rng, held = np.random.default_rng(0), np.zeros(3)
    truth = {"all answers agree": 2 / 3 + 1 / 12, "two answers agree": 2 / 3 + 1 / 6}
    truth["accuracy of one answer"] = 2 / 3 * 0.9 + 1 / 6
    for _ in range(2000):
        wavers = rng.random(100) < 1 / 3
        right = np.where(wavers[:, None], rng.random((100, 3)) < 0.5, rng.random((100, 1)) < 0.9)
        given = assessed(*np.where(right, "yes", "no").tolist())
        labels = make_pairs(["yes"] * 100, ["yes"] * 100)
        table = self_agreement(given, labels, resamples=400).table.loc[list(truth)]
        held += (table["low"] <= pd.Series(truth)) & (pd.Series(truth) <= table["high"])
    assert ((held / 2000 > 0.93) & (held / 2000 < 0.97)).all(), held / 2000
