"""Forecast: whatever the models answer, learning takes no more than was announced."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import BASE, SCALE, Chance, case, items

import workbench
from workbench.errors import ModelError
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget
from workbench.simba.crossfit import crossfit
from workbench.simba.forecast import Forecast, announcement, forecast, most_calls
from workbench.simba.search import FEW, Problem, Settings, optimise

SETTINGS = st.builds(
    Settings,
    max_steps=st.integers(1, 4),
    batch_size=st.integers(1, 20),
    max_dev=st.integers(1, 30),
    patience=st.integers(1, 4),
    max_examples=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 20), st.integers(0, 6), SETTINGS)
def test_no_search_makes_more_calls_than_announced(
    seed: int, n: int, k: int, rules: int, chosen: Settings
) -> None:
    """By ascent or cross-validation, with rules to leave out and rationales on right items."""
    chance = Chance(seed)
    original = BASE.with_rules([f"Rule number {chr(97 + i)}." for i in range(rules)], "x")
    train, dev = (
        [replace(i, rationale="because", weight=1.0 if int(i.trace_id[3:]) % 3 else 0.25)
         for i in some]
        for some in (items(n), items(k, 100))
    )  # fmt: skip
    problem = Problem(original, train, dev, SCALE, ("outputs",), seed, chosen)
    search = crossfit if n + k < FEW else optimise
    with contextlib.suppress(ModelError):  # by chance there may be no opinion at all
        search(problem, chance.ask, chance.reflect)
    judge_calls, reflections = most_calls(n, k, chosen, SCALE, rules)
    assert chance.judged <= judge_calls
    assert chance.reflected <= reflections


@pytest.mark.parametrize("n", [20, 50])
def test_a_probe_makes_the_forecast_closer(n: int) -> None:
    """Tokens of a real call are used; more items and larger ones cost more."""
    judge = workbench.make_judge("q", BASE.text, feedback_value_type=str)
    cases = [case(item) for item in items(n)]

    def tokens(probe: Verdict | None = None, some: list[object] = cases) -> int:  # type: ignore[assignment]
        found = forecast(judge, some, 0, Settings(), SCALE, probe=probe)  # type: ignore[arg-type]
        assert found.calls == sum(most_calls(len(some), 0, Settings(), SCALE))
        return found.tokens

    short = tokens(Verdict("tr-000", "good", input_tokens=100, output_tokens=10))
    long = tokens(Verdict("tr-000", "good", input_tokens=5000, output_tokens=10))
    assert short < long
    large = [replace(c, item=replace(c.item, rationale="x" * 3000)) for c in cases]
    assert tokens(some=large) > tokens()  # type: ignore[arg-type]


def test_the_announcement_is_limited_by_the_budget() -> None:
    found = Forecast(900, 100, 5_000_000, 12.0)
    assert announcement(found, Budget()).startswith("at most 1,000 calls")
    limited = announcement(found, Budget(calls=50))
    assert limited.startswith("at most 50 calls")
    assert "never exceeded" in limited
