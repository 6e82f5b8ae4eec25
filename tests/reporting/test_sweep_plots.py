"""Pictures of sweeps say what their tables hold, and refuse what would mislead."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import ArgumentError
from workbench.metrics.annotators import annotator_agreement
from workbench.reporting.sweep_plots import plot_frontier, plot_learning_curve, plot_sweep

RUNS = pd.DataFrame({"n_labels": [10, 10, 10, 40, 40], "value": [0.5, 0.7, math.nan, 0.8, 0.9]})
SWEEP = pd.DataFrame(
    [
        {
            "seed": seed, "n_labels": n_labels, "model": model, "status": "complete",
            "after": after + seed / 10, "labels": n_labels or 90, "ceiling": 0.95, "baseline": 0.3,
            "usd_per_1000": price,
        }
        for seed in (0, 1)
        for n_labels, gain in ((10, 0.0), (None, 0.2))
        for model, after, price in (("a", 0.4 + gain, 1.0), ("b", 0.5 + gain, 3.0), ("c", 0.3, 2.0))
    ]
)  # fmt: skip


def axes() -> Axes:
    return Figure().subplots()


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_learning_curve_shows_mean_range_ceiling_and_baseline() -> None:
    """Runs without a value are counted; several seeds have a band."""
    people = annotator_agreement(
        pd.DataFrame({"a": ["x", "y"] * 5, "b": ["x", "y"] * 4 + ["x"] * 2})
    )
    ax = plot_learning_curve(RUNS, ceiling=people, baseline=0.55, ax=axes())
    mean = next(line for line in ax.lines if line.get_linestyle() == "-")
    assert np.array(mean.get_xydata()) == pytest.approx(np.array([[10, 0.6], [40, 0.85]]))
    assert legend(ax) == [
        "aligned judge, mean", "range over 2 seeds", "people", "always the majority label",
    ]  # fmt: skip
    levels = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() in ("--", ":")]
    assert levels == [people.ceiling, 0.55]
    assert ax.get_xlabel() == "labels (1 run without a value left out)"
    alone = plot_learning_curve(RUNS.dropna().drop_duplicates("n_labels"), ax=axes())
    assert legend(alone) == ["aligned judge"]
    with pytest.raises(ArgumentError, match="n_labels"):
        plot_learning_curve(pd.DataFrame({"labels": [1], "value": [1.0]}))
    with pytest.raises(ArgumentError, match="holds no value"):
        plot_learning_curve(RUNS.assign(value=math.nan))


def test_a_sweep_has_its_own_ceiling_and_baseline() -> None:
    """All labels are as many as were used."""
    ax = plot_learning_curve(SWEEP[SWEEP["model"] == "a"], ax=axes())
    mean = next(line for line in ax.lines if line.get_linestyle() == "-")
    assert np.array(mean.get_xydata()) == pytest.approx(np.array([[10, 0.45], [90, 0.65]]))
    levels = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() in ("--", ":")]
    assert levels == pytest.approx([0.95, 0.3])
    assert ax.get_ylabel() == "held-out accuracy"
    unknown = SWEEP[SWEEP["model"] == "a"].assign(ceiling=pd.NA, baseline=None)
    assert legend(plot_learning_curve(unknown, ax=axes())) == [
        "aligned judge, mean", "range over 2 seeds",
    ]  # fmt: skip


def test_more_labels_than_there_are_are_drawn_at_those() -> None:
    """Whether 50 were asked for or 100; the same two seeds are behind both."""
    runs = [
        {"seed": seed, "n_labels": n, "status": "complete", "after": n / 200, "labels": labels}
        for n, used in ((20, (20, 20)), (50, (33, 34)), (100, (33, 34)))
        for seed, labels in enumerate(used)
    ]
    table = pd.DataFrame(runs)
    ax = plot_learning_curve(table, ax=axes())
    assert ax.lines[0].get_xdata().tolist() == [20, 34]
    assert "range over 2 seeds" in legend(ax)
    numbers = plot_learning_curve(table.assign(after_mean_distance=0.2), ax=axes())
    assert set(numbers.lines[0].get_ydata()) == {0.2}
    assert numbers.get_ylabel() == "held-out mean distance"


def test_a_metric_is_drawn_under_its_own_name_or_refused() -> None:
    """One that the table lacks is not another one under its label."""
    one = SWEEP[SWEEP["model"] == "a"]
    with pytest.raises(ArgumentError, match="no column 'after_kapa'"):
        plot_learning_curve(one, metric="after_kapa")
    with pytest.raises(ArgumentError, match="'after' holds no numbers: 'x'"):
        plot_learning_curve(one.assign(after="x"))
    passed = one.assign(passed=[True, None, False, True])
    ax = plot_learning_curve(passed, metric="passed", ax=axes())
    assert ax.get_ylabel() == "passed"
    both = plot_learning_curve(RUNS.assign(kappa=0.25), metric="kappa", ax=axes())
    assert set(both.lines[0].get_ydata()) == {0.25}
    lists = one.assign(n_labels=[["x"], ["x", "y"]] * 2)
    drawn = plot_sweep(lists, "after", "n_labels", ax=axes())
    assert [label.get_text() for label in drawn.get_xticklabels()] == ["['x', 'y']", "['x']"]


def test_other_parameters_are_no_repetitions() -> None:
    for draw in (plot_learning_curve, plot_frontier, lambda table: plot_sweep(table, by="model")):
        with pytest.raises(ArgumentError, match=r"parameter '(model|n_labels)' varies as well"):
            draw(SWEEP)


def test_a_metric_is_drawn_against_one_or_two_parameters() -> None:
    """Of two, the values of the second are lines; what is not given is the default."""
    ax = plot_sweep(SWEEP, "after", ("n_labels", "model"), ax=axes())
    assert legend(ax) == ["model = a", "model = b", "model = c"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "default"]
    one = plot_sweep(SWEEP[SWEEP["n_labels"] == 10], "after", "model", ax=axes())
    assert [label.get_text() for label in one.get_xticklabels()] == ["a", "b", "c"]
    assert one.lines[0].get_ydata() == pytest.approx([0.45, 0.55, 0.35])
    many = SWEEP.assign(model=range(len(SWEEP)))
    with pytest.raises(ArgumentError, match="too many"):
        plot_sweep(many, "after", ("n_labels", "model"))
    with pytest.raises(ArgumentError, match="one parameter, the axis, or two"):
        plot_sweep(many, "after", ("n_labels", "model", "seed"))


def test_the_frontier_joins_what_nothing_cheaper_excels() -> None:
    """A point a model; runs without a price are counted."""
    known = SWEEP[SWEEP["n_labels"] == 10]
    lost = known.iloc[:1].assign(model="d", usd_per_1000=math.nan)
    ax = plot_frontier(pd.concat([known, lost]), ax=axes())
    step = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert np.array(step.get_xydata()) == pytest.approx(np.array([[1.0, 0.45], [3.0, 0.55]]))
    assert [text.get_text() for text in ax.texts] == ["a", "c", "b"]
    assert [text.get_ha() for text in ax.texts] == ["left", "left", "right"]
    assert "1 run without a value left out" in ax.get_xlabel()
    never = known.assign(after=[1.0, math.nan] * 3, usd_per_1000=[math.nan, 1.0] * 3)
    with pytest.raises(ArgumentError, match="no value of 'after' beside 'usd_per_1000'"):
        plot_frontier(never)


ONE_MODEL = SWEEP[SWEEP["model"] == "a"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda **on: plot_learning_curve(RUNS, **on),
        lambda **on: plot_learning_curve(RUNS.iloc[:1], **on),
        lambda **on: plot_learning_curve(ONE_MODEL, **on),
        lambda **on: plot_sweep(SWEEP, "after", ("n_labels", "model"), **on),
        lambda **on: plot_sweep(ONE_MODEL.iloc[:1], "after", **on),
        lambda **on: plot_frontier(SWEEP[SWEEP["n_labels"] == 10], **on),
    ],
)
def test_pictures_draw_on_given_axes_or_new_ones(draw: Callable[..., Axes]) -> None:
    given = axes()
    assert draw(ax=given) is given
    given.figure.canvas.draw()
    draw().figure.canvas.draw()
