"""The alternative annotator test against a plain reading of the paper, and its edges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_pairs import GRADES, make_pairs
from scipy.stats import t as student
from sklearn.metrics import root_mean_squared_error
from statsmodels.stats.proportion import proportion_confint

from workbench import alternative_annotator_test
from workbench.errors import ArgumentError
from workbench.metrics.alternative import Score
from workbench.scale import ABSTAIN

nan = math.nan


def accuracy(own: Any, others: list[Any]) -> float:
    """Share of the others' labels that equal one's own."""
    return sum(own == other for other in others) / len(others)


def neg_rmse(own: float, others: list[float]) -> float:
    """Minus the root of the mean squared difference."""
    return -float(root_mean_squared_error(others, [own] * len(others)))


def by_the_paper(
    labels: dict[str, dict[int, Any]],
    verdicts: dict[int, Any],
    score: Callable[[Any, list[Any]], float],
    epsilon: float,
) -> tuple[float, float, dict[str, float]]:
    """Winning rate, advantage probability and p-values, item by item as the paper puts it."""
    advantages, p_values = [], {}
    for left_out, own in labels.items():
        judge_wins, annotator_wins = [], []
        for item, label in own.items():
            others = [
                their[item] for who, their in labels.items() if who != left_out and item in their
            ]
            if not others or item not in verdicts:
                continue
            judge, annotator = score(verdicts[item], others), score(label, others)
            judge_wins.append(float(judge >= annotator))
            annotator_wins.append(float(annotator >= judge))
        if len(judge_wins) < 30:
            continue
        d = np.array(annotator_wins) - np.array(judge_wins)
        t = (d.mean() - epsilon) / (d.std(ddof=1) / math.sqrt(len(d)))
        p_values[left_out] = float(student.cdf(t, len(d) - 1))
        advantages.append(np.mean(judge_wins))
    m = len(p_values)
    harmonic = sum(1 / k for k in range(1, m + 1))
    ranked = sorted(p_values.values())
    passed = [k for k, p in enumerate(ranked, 1) if p <= k / m * 0.05 / harmonic]
    return max(passed, default=0) / m, float(np.mean(advantages)), p_values


@pytest.mark.parametrize(("score", "function"), [("accuracy", accuracy), ("neg_rmse", neg_rmse)])
@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_the_paper(
    score: Score, function: Callable[[Any, list[Any]], float], seed: int
) -> None:
    """Five annotators of varied care, a third of the labels missing, one annotator with few."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 6, 150)
    labels: dict[str, dict[int, Any]] = {}
    for k, share in enumerate([0.9, 0.7, 0.6, 0.5, 0.1]):
        given = np.where(rng.random(150) < 0.75 - k * 0.12, truth, rng.integers(1, 6, 150))
        labels[f"a{k}"] = {i: int(given[i]) for i in range(150) if rng.random() < share}
    verdicts = {i: int(truth[i] if rng.random() < 0.5 else rng.integers(1, 6)) for i in range(145)}
    rate, advantage, p_values = by_the_paper(labels, verdicts, function, 0.15)
    table = pd.DataFrame(labels)
    found = alternative_annotator_test(table, verdicts, epsilon=0.15, score=score)
    assert (found.winning_rate, found.advantage_probability) == pytest.approx((rate, advantage))
    tested = found.table["p_value"].dropna()
    assert tested.to_dict() == pytest.approx(p_values)
    assert found.table.loc["a4", "note"] == "fewer than 30 items: not tested"
    assert found.advantage_probability in found.advantage_interval
    assert found.passed == (rate >= 0.5)
    words = table.map(lambda v: v if math.isnan(v) else f"Grade {v:.0f}")
    if score == "accuracy":
        same = alternative_annotator_test(words, {i: f"grade {v}" for i, v in verdicts.items()})
        assert same.advantage_probability == pytest.approx(advantage)


@pytest.mark.parametrize("values", [[0, 1], [0.5, 2.5], ["no", "yes"], [False, True]])
def test_ways_to_give_verdicts_are_the_same(values: list[Any]) -> None:
    """Numbers, which nan turns into floats, as well as words; a missing verdict counts nowhere."""
    rng = np.random.default_rng(1)
    index = pd.Index(range(100, 140), name="item")
    labels = {who: [values[k] for k in rng.integers(0, 2, 40)] for who in "abc"}
    table = pd.DataFrame(labels, index=index)
    table["c"] = table["c"].where(table.index < 135)  # nan where not labelled
    verdicts: list[Any] = [values[k] for k in rng.integers(0, 2, 40)]
    verdicts[3] = None
    given = pd.Series(verdicts, index=index, dtype=object)
    results = [
        alternative_annotator_test(table, verdicts),
        alternative_annotator_test(table, np.array(verdicts, dtype=object)),
        alternative_annotator_test(table, given[::-1]),
        alternative_annotator_test(table, given.dropna()),
        alternative_annotator_test(table, pd.Series(verdicts, index=index)),
        alternative_annotator_test(table, given.dropna().to_dict()),
    ]
    answered = {i: value for i, value in zip(index, verdicts, strict=True) if value is not None}
    by_annotator = {
        who: {i: v for i, v in table[who].items() if not pd.isna(v)} for who in table.columns
    }
    rate, advantage, p_values = by_the_paper(by_annotator, answered, accuracy, 0.2)
    for one in results:
        assert one.items == 39
        assert (one.winning_rate, one.advantage_probability) == pytest.approx((rate, advantage))
        assert one.table["p_value"].dropna().to_dict() == pytest.approx(p_values)


def test_verdicts_that_do_not_fit_the_table_are_refused() -> None:
    table = pd.DataFrame({who: [0, 1] * 20 for who in "abc"}, index=range(100, 140))
    verdicts = [0, 1] * 20
    with pytest.raises(ArgumentError, match="must hold rows of the table"):
        alternative_annotator_test(table, pd.Series(verdicts))
    with pytest.raises(ArgumentError, match="40 rows, got list of shape"):
        alternative_annotator_test(table, [1, 0, 1])
    foreign = alternative_annotator_test(table, ["good"] * 40)
    assert (foreign.winning_rate, foreign.notes[0][:27]) == (0, "No verdict equals any label")
    with pytest.raises(ArgumentError, match="needs numbers"):
        alternative_annotator_test(table, ["good"] * 40, score="neg_rmse")
    with pytest.raises(ArgumentError, match="epsilon"):
        alternative_annotator_test(table, verdicts, epsilon=1)


def test_pairs_are_tested_by_their_votes_and_words_of_an_order_have_ranks() -> None:
    votes = [{"a": "good", "b": "good", "c": "fair"}, {"a": "poor", "b": ABSTAIN, "c": "poor"}] * 30
    pairs = make_pairs(["good", "poor"] * 30, ["poor", "poor"] * 30, GRADES, votes)
    found = alternative_annotator_test(pairs, score="neg_rmse")
    # On the first kind of item each annotator is nearer to the others, on the second all are equal.
    assert found.table["judge_advantage"].to_dict() == pytest.approx({"a": 0.5, "b": 0, "c": 0.5})
    assert found.table["n"].to_dict() == {"a": 60, "b": 30, "c": 60}
    assert found.winning_rate == 0
    json.dumps(found.to_dict(), allow_nan=False)
    assert "\n" not in repr(found)
    assert found._repr_html_().count("<table") == 1
    every = dict(zip(pairs.trace_ids, votes, strict=True)) | {"u0": votes[0], "u1": votes[1]}
    less = alternative_annotator_test(replace(pairs, all_votes=every), score="neg_rmse")
    assert (less.items, less.left_out, less.winning_rate) == (60, 2, 0)
    assert "Left out: 2 items without a verdict" in less.notes[-1]
    left_out = pd.DataFrame({"trace_id": ["x"], "reason": ["annotators tie"]})
    with pytest.raises(ArgumentError, match="ties='latest'"):
        alternative_annotator_test(replace(pairs, excluded=left_out))


def test_what_cannot_be_tested_is_nan_and_said() -> None:
    few = alternative_annotator_test(pd.DataFrame({"a": [1, 0], "b": [1, 0]}), [1, 0])
    assert math.isnan(few.winning_rate)
    assert math.isnan(few.advantage_probability)
    assert not few.passed
    assert "No annotator has enough items" in few.notes[0]
    nothing = alternative_annotator_test(pd.DataFrame({"a": [1, nan], "b": [nan, 0]}), [1, 0])
    assert (nothing.items, nothing.left_out) == (0, 2)
    assert "No annotator has enough items" in nothing.notes[0]
    empty = alternative_annotator_test(pd.DataFrame(), [])
    assert (empty.items, len(empty.table)) == (0, 0)
    assert math.isnan(empty.winning_rate)


def test_copies_of_an_item_are_no_evidence() -> None:
    votes = [{"ana": "yes", "ben": "yes", "cleo": "no"}] * 40
    pairs = make_pairs(["yes"] * 40, ["yes"] * 40, votes=votes)
    copies = replace(pairs, content=dict.fromkeys(pairs.trace_ids, ("one", "answer")))
    assert alternative_annotator_test(pairs).table["n"].tolist() == [40] * 3
    found = alternative_annotator_test(copies)
    assert found.table["n"].tolist() == [1] * 3
    assert math.isnan(found.winning_rate)
    assert found.items == 1
    # Where all say yes and the judge does so for half of the copies, it is as good on half of one.
    agreed = make_pairs(
        ["yes"] * 40, ["yes", "no"] * 20, votes=[dict.fromkeys(votes[0], "yes")] * 40
    )
    half = alternative_annotator_test(replace(agreed, content=copies.content), min_items=1)
    assert half.table["judge_advantage"].tolist() == [0.5] * 3
    assert half.advantage_probability == 0.5
    twice = pd.Series(["yes"] * 2, index=[pairs.votes.index[0]] * 2)
    with pytest.raises(ArgumentError, match="each once"):
        alternative_annotator_test(pairs.votes, twice)


@pytest.mark.parametrize("word", ["unknown", "None", "N/A", "?", "Skip", "not applicable"])
def test_a_word_for_none_is_a_label_unless_it_stands_among_numbers(word: str) -> None:
    """Nobody says that it is none; all that is in the table is counted."""
    rng = np.random.default_rng(2)
    labels = {who: rng.choice(["yes", "no", word], 60) for who in "abc"}
    verdicts = rng.choice(["yes", "no", word], 60)
    found = alternative_annotator_test(pd.DataFrame(labels), verdicts)
    by_item = {who: dict(enumerate(given)) for who, given in labels.items()}
    rate, advantage, _ = by_the_paper(by_item, dict(enumerate(verdicts)), accuracy, 0.2)
    assert (found.items, found.left_out) == (60, 0)
    assert (found.winning_rate, found.advantage_probability) == pytest.approx((rate, advantage))
    numbers = pd.DataFrame({who: [*range(5)] * 8 for who in "abc"}, dtype=object)
    numbers.iloc[0, 0] = word
    left_out = alternative_annotator_test(numbers, [*range(5)] * 8, score="neg_rmse")
    assert left_out.table["n"].tolist() == [39, 40, 40]
    assert f"no labels: {word.lower()!r} (1)" in left_out.notes[-1]


def test_labels_may_be_any_words() -> None:
    """Such as what people see in a picture: only equal ones count."""
    words = [f"a bird, number {k}" for k in range(150)]
    found = alternative_annotator_test(pd.DataFrame(dict.fromkeys("abc", words)), words)
    assert (found.items, found.winning_rate, found.advantage_probability) == (150, 1, 1)
    assert found.advantage_interval == pytest.approx(proportion_confint(150, 150, method="wilson"))


def test_equal_on_every_item_wins_unless_epsilon_is_zero() -> None:
    """Without variance the difference is 0 for certain: below 0.2, and not below 0."""
    table = pd.DataFrame({who: [1, 0] * 20 for who in "abc"})
    found = alternative_annotator_test(table, [1, 0] * 20)
    assert (found.winning_rate, found.advantage_probability) == (1, 1)
    assert found.table["p_value"].tolist() == [0, 0, 0]
    assert alternative_annotator_test(table, [1, 0] * 20, epsilon=0).winning_rate == 0
    assert alternative_annotator_test(table, [0, 1] * 20).winning_rate == 0


def test_an_annotator_may_have_any_name() -> None:
    table = pd.DataFrame({"the judge": ["yes", "no"] * 20, "ben": ["yes", "no"] * 20})
    found = alternative_annotator_test(table, ["yes", "no"] * 20)
    assert list(found.table.index) == ["the judge", "ben"]
