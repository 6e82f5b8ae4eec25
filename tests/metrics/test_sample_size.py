"""How many labels an aim takes: published values, statsmodels, and the tests' own power."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint, samplesize_confint_proportion

from workbench import labels_needed
from workbench.errors import ArgumentError
from workbench.metrics.coefficients import mcnemar
from workbench.metrics.intervals import wilson
from workbench.metrics.sample_size import (
    labels_for_width,
    mcnemar_power,
    smallest_improvement,
)

shares = st.floats(0.01, 0.99)


@given(st.floats(0.02, 0.9), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_width_is_met_by_n_labels_and_by_no_fewer(
    width: float, share: float, confidence: float
) -> None:
    """Held against Wilson's interval itself, at the share that is assumed."""
    n = labels_for_width(width, share, confidence)

    def found(items: int) -> float:
        low, high = wilson(share * items, items, confidence)
        return high - low

    assert found(n) <= width + 1e-9
    assert n == 1 or found(n - 1) > width - 1e-9


def test_the_width_is_near_that_of_the_normal_interval() -> None:
    """statsmodels knows the normal one: 385 items for 0.05 to each side, Wilson's takes 381."""
    normal = samplesize_confint_proportion(0.5, 0.05)
    assert labels_for_width(0.1) == 381
    assert 0 < normal - labels_for_width(0.1) < 5
    low, high = proportion_confint(190.5, 381, method="wilson")
    assert high - low == pytest.approx(0.1, abs=2e-4)


def test_the_power_is_that_of_all_outcomes_enumerated() -> None:
    """Every count of fixed and broken items, with its probability, put to the test itself."""
    n, fixed, broken = 25, 0.35, 0.1
    power = sum(
        binom.pmf(k, n, fixed + broken) * binom.pmf(b, k, broken / (fixed + broken))
        for k in range(n + 1)
        for b in range(k + 1)
        if k - b > b and mcnemar(np.repeat([1, -1], [k - b, b])) < 0.05
    )
    assert mcnemar_power(n, fixed - broken, fixed + broken) == pytest.approx(power)


def test_connors_approximation_is_near() -> None:
    """Connor (1987): 234 items by the normal approximation; the exact test takes a few more."""
    for differing in (0.12, 0.3, 0.26):
        roots = 1.959964 * math.sqrt(differing) + 0.841621 * math.sqrt(differing - 0.01)
        exact = labels_needed(improvement=0.1, accuracy=0.8, differing=differing).n
        assert 0 <= exact - roots**2 / 0.01 < 20
        assert (
            mcnemar_power(exact, 0.1, differing) >= 0.8 > mcnemar_power(exact - 1, 0.1, differing)
        )


@given(st.integers(6, 400))
def test_the_smallest_improvement_has_the_power_and_falls_with_n(n: int) -> None:
    """At best, with nothing broken; six items are the fewest that can be significant."""
    least = smallest_improvement(n)
    assert mcnemar_power(n, least, least) == pytest.approx(0.8, abs=1e-3)
    assert smallest_improvement(n + 1) < least
    assert math.isnan(smallest_improvement(5))
    assert math.isnan(smallest_improvement(0))


def test_every_aim_has_a_row() -> None:
    """A class needs as many items of it as its recall does, found with 80 % probability."""
    found = labels_needed(width=0.1, improvement=0.1, accuracy=0.8, classes={"yes": 0.1, "no": 0.9})
    assert found.table["n"].tolist() == [245, 215, 2574, 277]
    assert found.n == 2574
    assert binom.sf(244, 2574, 0.1) >= 0.8 > binom.sf(244, 2573, 0.1)
    assert "2,574" in repr(found)
    assert "recall on" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["table"][0]["n"] == 245
    alone = labels_needed(classes=pd.Series({"<b>": 1.0}))
    assert alone.n == labels_for_width(0.2)
    assert "&lt;b&gt;" in alone._repr_html_()
    assert "<b>" not in alone._repr_html_()


@given(shares, shares)
def test_more_labels_for_less_and_worst_where_nothing_is_known(one: float, two: float) -> None:
    """n falls with the width and the improvement, and an accuracy never makes it rise."""
    few, many = sorted((one, two), reverse=True)
    assert labels_needed(width=few).n <= labels_needed(width=many).n
    assert labels_needed(width=one, accuracy=two).n <= labels_needed(width=one).n


def test_wrong_questions_say_what_to_ask() -> None:
    for wrong, message in (
        ({}, "no aim"),
        ({"width": 0}, "width=0 must"),
        ({"width": 0.1, "accuracy": 1.2}, "accuracy=1.2 must"),
        ({"improvement": 0.3, "accuracy": 0.8}, "at most 0.2 can be gained"),
        ({"improvement": 0.2, "differing": 0.1}, "differing=0.1 cannot be"),
        ({"improvement": 0.1, "accuracy": 0.9, "differing": 0.5}, "differing=0.5 cannot be"),
        ({"classes": {"yes": 0}}, "yes=0 must"),
        ({"classes": {"yes": 0.9, "no": 0.8}}, "more than 1"),
        ({"classes": ["yes", "no"]}, "must map each class to its share"),
        ({"width": 0.1, "confidence": 95}, "confidence=95"),
        ({"improvement": 0.1, "power": 80}, "power=80"),
    ):
        with pytest.raises(ArgumentError, match=message):
            labels_needed(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_as_many_labels_show_the_improvement_as_often_as_is_said() -> None:
    """In 2,000 studies of n labels McNemar's test is significant in 80 %."""
    n, rng = labels_needed(improvement=0.1, accuracy=0.8, differing=0.3).n, np.random.default_rng(0)
    changed = rng.multinomial(n, [0.2, 0.1, 0.7], size=2000)
    shown = np.mean(
        [f > b and mcnemar(np.repeat([1, -1], [int(f), int(b)])) < 0.05 for f, b, _ in changed]
    )
    assert 0.775 < shown < 0.83
