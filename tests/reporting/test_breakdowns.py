"""Pictures of where agreement comes from say what their tables hold, and refuse what they lack."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_pairs import COLOURS, GRADES, from_confusion, make_pairs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.comparison import compare
from workbench.pairing.pairs import Pairs
from workbench.reporting.breakdowns import plot_difference, plot_ratings, plot_slices
from workbench.scale import Scale

BEFORE = from_confusion([[6, 4], [1, 9]])
AFTER = make_pairs(list(BEFORE.table["human"]), ["no"] * 9 + ["yes"] + ["no"] + ["yes"] * 9)
SLICES = pd.DataFrame(
    {
        "n": [1200, 40, 3],
        "accuracy": [0.9, 0.6, math.nan],
        "accuracy_low": [0.88, 0.45, math.nan],
        "accuracy_high": [0.92, 0.74, math.nan],
        "p_adjusted": [0.001, 0.4, math.nan],
    },
    index=pd.Index(["alpha $x$", "beta", "small"], name="slice"),
)


def axes() -> Axes:
    return Figure().subplots()


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_difference_tells_what_grew_and_what_shrank() -> None:
    """Counts and shares of the row by sign, the largest change the most opaque."""
    ax = plot_difference(compare(BEFORE, AFTER), ax=axes())
    texts = {t.xy: t.get_text() for t in ax.texts if "%" not in t.get_text()}  # type: ignore[attr-defined]
    assert texts == {(0, 0): "+3", (1, 0): "-3", (0, 1): "0", (1, 1): "0"}
    assert sorted(t.get_text() for t in ax.texts if "%" in t.get_text()) == ["+30%", "-30%"]
    faces = np.asarray(ax.collections[0].get_facecolor())
    assert faces[:, 3] == pytest.approx([0.85, 0.85, 0, 0])
    assert faces[0, 2] > faces[0, 0]  # grew: blue
    assert faces[1, 0] > faces[1, 2]  # shrank: orange
    assert "20 pairs" in ax.get_title()
    assert plot_difference(BEFORE, AFTER, ax=axes(), title="mine").get_title() == "mine"


def test_difference_refuses_what_cannot_be_compared() -> None:
    """One agreement alone, other labels, and numbers in other bins."""
    with pytest.raises(ArgumentError, match=r"plot_difference needs a comparison"):
        plot_difference(BEFORE)
    with pytest.raises(ArgumentError, match="labels before and after are not the same"):
        plot_difference(BEFORE, from_confusion([[1, 1], [1, 1]]))
    human = [float(i) for i in range(30)]
    far = make_pairs(human, [i * 2 for i in human], Scale("numeric"))
    with pytest.raises(ArgumentError, match="other bins"):
        plot_difference(make_pairs(human, human, Scale("numeric")), far)


def test_difference_has_the_numbers_of_both_judges() -> None:
    """A number that only one judge gives has a row and a column of its own, in order."""
    scale = Scale("numeric", low=1, high=5)
    ax = plot_difference(make_pairs([1, 3], [1, 5], scale), make_pairs([1, 3], [2, 3], scale))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "3", "5"]


def test_slices_show_n_interval_and_the_overall_line() -> None:
    """What differs is filled, what may be luck hollow, and what is undefined says so."""
    found = SimpleNamespace(table=SLICES, accuracy=0.88, by="model")
    ax = plot_slices(found, ax=axes())
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == [r"alpha \$x\$ (1,200)", "beta (40)", "small (3)"]
    lines = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "None"]
    assert lines == [[0.88, 0.92], [0.45, 0.74], [0.88, 0.88]]
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [line.get_markerfacecolor() for line in dots] == ["#0072B2", "white"]
    assert [t.get_text() for t in ax.texts] == ["undefined"]
    assert legend(ax) == ["all pairs", "differs (p < 0.05, adjusted)", "may be luck"]
    assert ax.get_xlabel() == "accuracy by model, with interval"
    bare = plot_slices(SLICES.drop(columns="p_adjusted"), ax=axes())
    assert (legend(bare), legend(plot_slices(SLICES, overall=0.5, ax=axes()))[0]) == (
        [],
        "all pairs",
    )
    with pytest.raises(ArgumentError, match="kappa"):
        plot_slices(SLICES, metric="kappa")
    alone = plot_slices(SLICES.head(1).assign(p_adjusted=math.nan), ax=axes())
    (dot,) = [line for line in alone.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert dot.get_markerfacecolor() == "white"  # a single slice differs from nothing


def test_slices_of_numbers_show_how_far_the_verdicts_are() -> None:
    """Hardly a number equals its label, so that accuracy would be 0 throughout."""
    human = [float(i) for i in range(40)]
    pairs = make_pairs(human, [i + 0.5 for i in human], Scale("numeric", low=0, high=50))
    found = agreement(pairs, by={i: k % 2 for k, i in enumerate(pairs.trace_ids)})
    ax = plot_slices(found, ax=axes())
    assert ax.get_xlabel() == "mean distance by group, with interval"
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.01, 0.01])


def test_ratings_are_circles_with_their_counts_on_few_levels() -> None:
    """Human on x, judge on y; the classes from worst to best; the line of equal ratings."""
    ax = plot_ratings(make_pairs(["poor"] * 3 + ["good"], ["fair"] * 3 + ["good"], GRADES))
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {((0, 1), "3"), ((2, 2), "1")}
    assert [t.get_text() for t in ax.get_xticklabels()] == list(GRADES.values)
    (line,) = ax.lines
    assert list(line.get_xdata()) == list(line.get_ydata()) == list(ax.get_xlim())
    with pytest.raises(ArgumentError, match="nominal"):
        plot_ratings(make_pairs(["red"], ["blue"], COLOURS))


@pytest.mark.parametrize(("n", "kind"), [(400, "Line2D"), (20_000, "PolyCollection")])
def test_fine_numbers_are_points_and_where_they_are_many_hexagons(n: int, kind: str) -> None:
    """The count of every hexagon adds up to all pairs."""
    rng = np.random.default_rng(0)
    human = rng.normal(5, 1, n)
    pairs = make_pairs(human.tolist(), (human + 0.3).tolist(), Scale("numeric"))
    ax = plot_ratings(pairs)
    drawn = [*ax.lines[:-1], *ax.collections]
    assert [type(one).__name__ for one in drawn] == [kind]
    if kind == "PolyCollection":
        assert ax.collections[0].get_array().sum() == n


EMPTY = make_pairs([], [], GRADES)
ONE = make_pairs(["poor"], ["poor"], GRADES)


@pytest.mark.parametrize(
    "draw",
    [
        lambda **on: plot_difference(BEFORE, AFTER, **on),
        lambda **on: plot_difference(EMPTY, EMPTY, **on),
        lambda **on: plot_slices(SLICES, **on),
        lambda **on: plot_slices(SLICES.iloc[:0], **on),
        lambda **on: plot_ratings(ONE, **on),
        lambda **on: plot_ratings(EMPTY, **on),
        lambda **on: plot_ratings(make_pairs([], [], Scale("numeric")), **on),
    ],
)
def test_pictures_draw_on_given_axes_or_new_ones_in_light_and_dark(
    draw: Callable[..., Axes],
) -> None:
    """Little data and none can be drawn; the style stays as it was; nothing is shown."""
    before, ax = dict(mpl.rcParams), axes()
    assert draw(ax=ax) is ax
    assert plt.get_fignums() == []
    ax.figure.canvas.draw()
    with plt.style.context("dark_background"):
        draw().figure.canvas.draw()
    assert dict(mpl.rcParams) == before


def test_every_picture_of_a_hostile_scale_can_be_drawn() -> None:
    """Formulas, markup and control characters in names of classes are text."""
    odd = Scale.of(["$x_{1}$ and $", "<script>", "a\nb\x00\u202ec", "long " * 30], ordered=True)
    values: list[Any] = list(odd.values)
    pairs: Pairs = make_pairs(values, values[::-1], odd)
    for ax in (plot_ratings(pairs), plot_difference(pairs, make_pairs(values, values, odd))):
        ax.figure.canvas.draw()
        shown = [t.get_text() for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
        assert not any(ord(c) < 32 and c != "\n" for text in shown for c in text)
