"""Plots return Axes, draw on given ones, say what they should and survive odd labels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import workbench
from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.pairing.pairs import Pairs
from workbench.reporting.plots import (
    plot_annotators,
    plot_balance,
    plot_before_after,
    plot_confusion,
    plot_metrics,
)
from workbench.scale import Scale

NOTHING = pd.DataFrame(columns=["trace_id", "reason"])
YES_NO = Scale.of(["no", "yes"])
ODD = Scale.of(
    ["$x_{1}$ and $", "<script>alert(1)</script>", "a\nb\x00\u202ec", "long " * 30, "e", "f", "g"],
    ordered=False,
)


def make(human: list[Any], judge: list[Any], scale: Scale = YES_NO) -> Pairs:
    table = pd.DataFrame(
        {
            "trace_id": [f"t{i:03}" for i in range(len(human))],
            "human": pd.Series(human, dtype=object),
            "judge": pd.Series(judge, dtype=object),
            "votes": pd.Series([{} for _ in human], dtype=object),
        }
    )
    return Pairs(name="q", table=table, excluded=NOTHING, scale=scale)


BEFORE = make(["no"] * 10 + ["yes"] * 30, ["yes"] * 8 + ["no"] * 2 + ["yes"] * 30)
AFTER = make(["no"] * 10 + ["yes"] * 30, ["yes"] * 1 + ["no"] * 9 + ["yes"] * 30)
VOTES = pd.DataFrame({"ana": ["no", "yes"] * 5, "ben": ["no"] * 5 + ["yes"] * 5})
EDGE_CASES = {
    "no pairs": make([], []),
    "one value throughout": make(["yes"] * 5, ["yes"] * 5),
    "odd labels": make([*ODD.values[:6]], [*ODD.values[1:]], ODD),
    "numbers in bins": make(
        [float(i) for i in range(30)], [i + 0.5 for i in range(30)], Scale("numeric")
    ),
    "booleans": make([True, False], [True, True], Scale.from_type(bool)),
}


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def texts(ax: Axes) -> list[str]:
    found = [t.get_text() for t in ax.texts]
    found += [t.get_text() for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    legend = ax.get_legend()
    found += [t.get_text() for t in legend.get_texts()] if legend else []
    return [*found, ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]


def render(*axes: Axes) -> None:
    axes[0].figure.canvas.draw()


def test_confusion_shows_counts_shares_and_sides() -> None:
    ax = plot_confusion(agreement(BEFORE))
    shown = texts(ax)
    assert {"8", "80%", "2", "20%", "30", "100%"} <= set(shown)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("judge", "human")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["no\n(10)", "yes\n(30)"]
    assert "accuracy 0.800" in ax.get_title()
    where = {t.get_text(): t.xy for t in ax.texts}  # type: ignore[attr-defined]
    assert where["8"] == (1, 0)  # human "no" is row 0, judge "yes" column 1


def test_confusion_takes_pairs_a_title_and_shares_first() -> None:
    ax = plot_confusion(BEFORE, normalise=True, title="mine")
    assert ax.get_title() == "mine"
    sizes = {t.get_text(): t.get_fontsize() for t in ax.texts}
    assert sizes["80%"] > sizes["8"]


def test_text_stays_legible_on_dark_cells() -> None:
    colours = {t.get_text(): t.get_color() for t in plot_confusion(AFTER).texts}
    assert colours["30"] == "white"
    assert colours["1"] == "black"
    with plt.style.context("dark_background"):
        colours = {t.get_text(): t.get_color() for t in plot_confusion(AFTER).texts}
    assert set(colours.values()) == {"white"}


def test_before_after_draws_both_with_intervals() -> None:
    comparison = compare(BEFORE, AFTER)
    axes = plot_before_after(comparison)
    assert isinstance(axes, np.ndarray)
    assert len(axes) == 2
    assert axes[0].get_title().startswith("before\naccuracy 0.800 [")
    assert axes[1].get_title().startswith("after\naccuracy 0.975 [")
    again = plot_before_after(agreement(BEFORE), AFTER)
    assert again[1].get_title() == axes[1].get_title()


def test_before_after_draws_on_given_axes_by_either_name() -> None:
    _, given = plt.subplots(1, 2)
    drawn = plot_before_after(compare(BEFORE, AFTER), axes=given)
    assert list(drawn) == list(given)
    _, given = plt.subplots(1, 2)
    assert list(plot_before_after(BEFORE, AFTER, ax=given)) == list(given)
    _, three = plt.subplots(1, 3)
    with pytest.raises(ArgumentError, match="two Axes"):
        plot_before_after(BEFORE, AFTER, axes=three)
    with pytest.raises(ArgumentError, match="two agreements"):
        plot_before_after(BEFORE)


def test_metrics_mark_the_baseline_and_the_ceiling() -> None:
    annotators = annotator_agreement(VOTES)
    ax = plot_metrics(compare(BEFORE, AFTER), ceiling=annotators)
    assert {"before", "after", "always the majority label", "people"} <= set(texts(ax))
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["always the majority label"].get_xdata()) == [0.75, 0.75]
    assert list(lines["people"].get_xdata()) == [annotators.ceiling] * 2
    alone = plot_metrics(agreement(BEFORE))
    assert "judge" in texts(alone)
    assert "people" not in texts(alone)


def test_an_undefined_kappa_is_written_and_not_drawn_as_zero() -> None:
    same = make(["yes"] * 5, ["yes"] * 5)
    ax = plot_metrics(compare(same, same))
    assert texts(ax).count("undefined") == 2


def test_balance_marks_rare_classes() -> None:
    ax = plot_balance(BEFORE)
    bars = [mpl.colors.to_hex(p.get_facecolor()).upper() for p in ax.patches]
    assert bars == ["#D55E00", "#0072B2"]  # 10 of 40 "no" is below 30 %
    assert "30% of labels advised" in texts(ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["no (10)", "yes (30)"]


def test_annotators_show_kappa_and_shared_items() -> None:
    ax = plot_annotators(annotator_agreement(VOTES))
    assert texts(ax).count("n = 10") == 2
    single = plot_annotators(annotator_agreement(VOTES[["ana"]]))
    assert "needs two annotators" in texts(single)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_odd_data_can_be_drawn(name: str) -> None:
    """Neither formulas in labels, nor control characters, nor empty data stop a picture."""
    pairs = EDGE_CASES[name]
    for ax in (
        plot_confusion(pairs),
        plot_balance(pairs),
        plot_metrics(compare(pairs, pairs)),
        *plot_before_after(pairs, pairs),
    ):
        render(ax)
        assert not any(ord(c) < 32 and c != "\n" for text in texts(ax) for c in text)


def test_dollars_in_labels_are_drawn_to_the_letter() -> None:
    pairs = EDGE_CASES["odd labels"]
    ax = plot_confusion(pairs)
    render(ax)
    assert any(r"\$x_{1}\$" in t for t in texts(ax))  # an escaped $ is drawn as $


def test_plots_draw_on_given_axes_leave_the_style_alone_and_never_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("show was called"))
    before = dict(mpl.rcParams)
    annotators = annotator_agreement(VOTES)
    draw = [
        lambda ax: plot_confusion(BEFORE, ax=ax),
        lambda ax: plot_balance(BEFORE, ax=ax),
        lambda ax: plot_metrics(agreement(BEFORE), ax=ax),
        lambda ax: plot_annotators(annotators, ax=ax),
    ]
    for function in draw:
        ax = Figure().subplots()
        assert function(ax) is ax
    assert plt.get_fignums() == []  # a figure of one's own needs no pyplot
    assert dict(mpl.rcParams) == before


def test_what_cannot_be_drawn_is_an_error_that_says_what_can() -> None:
    with pytest.raises(ArgumentError, match=r"workbench\.agreement"):
        plot_confusion("q")  # type: ignore[arg-type]


def test_importing_plots_does_not_load_pyplot() -> None:
    code = "import sys, workbench.reporting.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_reachable() -> None:
    assert workbench.plot_confusion is plot_confusion
    assert workbench.plot_before_after is plot_before_after
