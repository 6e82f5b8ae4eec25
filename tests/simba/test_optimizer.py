"""The forecast: what learning takes at most, as it is announced."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from stubs import BASE, SCALE, case, items

import workbench
from workbench.errors import ArgumentError
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget, Usage
from workbench.simba.candidate import Case
from workbench.simba.settings import Forecast, Settings, forecast, most_calls


@pytest.mark.parametrize("n", [20, 50])
def test_a_probe_makes_the_forecast_closer(n: int) -> None:
    """Tokens of a real call are used; more items and larger ones cost more."""
    judge = workbench.make_judge("q", BASE.text, feedback_value_type=str)
    cases = [case(item) for item in items(n)]

    def tokens(probe: Verdict | None = None, some: list[Case] = cases) -> int:
        found = forecast(judge, some, 0, Settings(), SCALE, probe=probe)
        assert found.calls == sum(most_calls(len(some), 0, Settings()))
        return found.tokens

    short = tokens(Verdict("tr-000", "good", usage=Usage(1, 100, 10)))
    long = tokens(Verdict("tr-000", "good", usage=Usage(1, 5000, 10)))
    assert short < long
    large = [replace(c, item=replace(c.item, rationale="x" * 3000)) for c in cases]
    assert tokens(some=large) > tokens()


def test_the_announcement_is_limited_by_the_budget() -> None:
    found = Forecast(1000, 5_000_000, 12.0)
    assert found.told(Budget()).startswith("at most 1,000 calls")
    limited = found.told(Budget(calls=50))
    assert limited.startswith("at most 50 calls")
    assert "never exceeded" in limited
    assert found.told(Budget()).endswith("$12.00. Usually it is about a fifth of that.")
    assert "which cost nothing" in replace(found, usd=0.0).told(Budget())


def test_a_setting_out_of_range_is_named() -> None:
    """When the optimizer is made."""
    for wrong, said in (
        ({"max_examples": -1}, "max_examples=-1 must be a whole number of 0 or more"),
        ({"max_failure_share": -1}, "max_failure_share=-1 must lie in"),
        ({"max_failure_share": None}, "max_failure_share=None must lie in"),
        ({"model": "gpt-4.1"}, "model='gpt-4.1' must be a URI such as openai:/"),
        ({"model": 3}, "model=3 must be a URI"),
        ({"base_url": 3}, "base_url='3' is no"),
    ):
        with pytest.raises(ArgumentError, match=said):
            workbench.SIMBA(**wrong)


def test_what_an_aligned_judge_shows_is_not_selected_on() -> None:
    """The answers stand in its prompt, also where people have changed them since."""
    train, dev = items(20), items(10, start=20)
    then = [train[0], dev[0], replace(train[1], label="fair", rationale="It was fair then.")]
    shown = BASE.with_examples(then, ["outputs"], 8)
    judge = workbench.make_judge(
        "q",
        shown.text,
        feedback_value_type=Literal["poor", "fair", "good"],
        model="offline:/rubric",
    )
    simba = workbench.SIMBA(max_steps=1, cache=False, progress=False)
    found = simba.learn(judge, train, dev, scale=SCALE, budget=Budget())
    assert found.history["calls"].iloc[0] == 30 - len(then)
