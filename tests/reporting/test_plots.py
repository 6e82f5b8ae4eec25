"""Plots return Axes, draw on given ones, say what they should and survive odd labels."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_pairs import make_pairs as make
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.pairing.pairs import Pairs
from workbench.reporting import drawing
from workbench.reporting.plots import (
    plot_annotators,
    plot_balance,
    plot_before_after,
    plot_comparison,
    plot_confusion,
    plot_metrics,
)
from workbench.scale import Scale

ODD = Scale.of(
    ["$x_{1}$ and $", "<script>alert(1)</script>", "a\nb\x00\u202ec", "long " * 30, "e", "f", "g"],
    ordered=False,
)


BEFORE = make(["no"] * 10 + ["yes"] * 30, ["yes"] * 8 + ["no"] * 2 + ["yes"] * 30)
AFTER = make(["no"] * 10 + ["yes"] * 30, ["yes"] * 1 + ["no"] * 9 + ["yes"] * 30)
PEOPLE = annotator_agreement(
    pd.DataFrame({"ana": ["no", "yes"] * 5, "ben": ["no"] * 5 + ["yes"] * 5})
)


def texts(ax: Axes) -> list[str]:
    found = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]
    legend = ax.get_legend()
    found += legend.get_texts() if legend else []
    return [*(t.get_text() for t in found), ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]


def axes() -> Axes:
    return Figure().subplots()


def test_confusion_shows_counts_shares_and_sides() -> None:
    ax = plot_confusion(agreement(BEFORE), ax=axes())
    assert {"8", "80%", "2", "20%", "30", "100%", "judge", "human"} <= set(texts(ax))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["no\n(10)", "yes\n(30)"]
    assert "accuracy 0.800" in ax.get_title()
    where = {t.get_text(): t.xy for t in ax.texts}  # type: ignore[attr-defined]
    assert where["8"] == (1, 0)  # human "no" is row 0, judge "yes" column 1
    tints = np.asarray(ax.collections[0].get_facecolor())[:, 3]  # row by row, share of the row
    assert tints == pytest.approx([0.2, 0.8, 0.0, 1.0])
    shares = plot_confusion(BEFORE, normalise=True, title="mine", ax=axes())
    sizes = {t.get_text(): t.get_fontsize() for t in shares.texts}
    assert (shares.get_title(), sizes["80%"] > sizes["8"]) == ("mine", True)
    with pytest.raises(ArgumentError, match=r"workbench\.agreement"):
        plot_confusion("q")  # type: ignore[arg-type]


def test_text_stays_legible_on_dark_cells() -> None:
    colours = {t.get_text(): t.get_color() for t in plot_confusion(AFTER, ax=axes()).texts}
    assert (colours["30"], colours["1"]) == ("white", "black")
    with plt.style.context("dark_background"):
        colours = {t.get_text(): t.get_color() for t in plot_confusion(AFTER, ax=axes()).texts}
    assert set(colours.values()) == {"white"}


def test_many_classes_are_drawn_without_texts_in_a_moment() -> None:
    """Cells keep their tint, every fourth of 200 classes its label."""
    size = 200
    scale = Scale.of([f"class {i}" for i in range(size)], ordered=False)
    human = list(scale.values) * 10
    found = agreement(make(human, [*human[3:], *human[:3]], scale), resamples=2)
    begin = time.perf_counter()
    ax = plot_confusion(found)
    ax.figure.canvas.draw()
    assert time.perf_counter() - begin < 5
    assert len(ax.texts) == 0
    assert len(ax.get_yticklabels()) == 50
    assert len(np.asarray(ax.collections[0].get_facecolor())) == size  # empty cells are not drawn


def test_before_after_draws_both_with_intervals() -> None:
    comparison = compare(BEFORE, AFTER)
    drawn = plot_before_after(comparison)
    assert isinstance(drawn, np.ndarray)
    assert [ax.get_title().partition(" [")[0] for ax in drawn] == [
        "before\naccuracy 0.800",
        "after\naccuracy 0.975",
    ]
    again = plot_before_after(agreement(BEFORE), AFTER, axes=(axes(), axes()))
    assert again[1].get_title() == drawn[1].get_title()


@pytest.mark.parametrize("name", ["axes", "ax"])
def test_before_after_draws_on_two_given_axes_by_either_name(name: str) -> None:
    given = Figure().subplots(1, 2)
    assert list(plot_before_after(BEFORE, AFTER, **{name: given})) == list(given)
    with pytest.raises(ArgumentError, match="two Axes"):
        plot_before_after(BEFORE, AFTER, **{name: Figure().subplots(1, 3)})
    with pytest.raises(ArgumentError, match="two agreements"):
        plot_before_after(BEFORE)


def test_metrics_mark_the_baseline_and_the_ceiling() -> None:
    ax = plot_metrics(compare(BEFORE, AFTER), ceiling=PEOPLE, ax=axes())
    assert {"before", "after", "always the majority label", "people"} <= set(texts(ax))
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["always the majority label"].get_xdata()) == [0.75, 0.75]
    assert list(lines["people"].get_xdata()) == [PEOPLE.ceiling] * 2
    alone = plot_metrics(agreement(BEFORE), ax=axes())
    assert "judge" in texts(alone)
    assert "people" not in texts(alone)


def test_an_undefined_kappa_is_written_and_not_drawn_as_zero() -> None:
    same = make(["yes"] * 5, ["yes"] * 5)
    assert texts(plot_metrics(compare(same, same), ax=axes())).count("undefined") == 2


def test_balance_marks_rare_classes() -> None:
    ax = plot_balance(BEFORE, ax=axes())
    bars = [mpl.colors.to_hex(p.get_facecolor()).upper() for p in ax.patches]
    assert bars == [drawing.BELOW, drawing.AFTER]  # 10 of 40 "no" is below 30 %
    assert "30% of labels advised" in texts(ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["no (10)", "yes (30)"]


def test_annotators_show_kappa_and_shared_items() -> None:
    assert texts(plot_annotators(PEOPLE, ax=axes())).count("n = 10") == 2
    alone = annotator_agreement(pd.DataFrame({"ana": ["no", "yes"]}))
    assert "needs two annotators" in texts(plot_annotators(alone, ax=axes()))


def test_comparison_tells_judges_that_differ_from_those_that_may_not() -> None:
    """A row a judge with its cost; what differs is filled, what failed says so."""

    def row(pairs: Pairs | None, status: str, p: float, calls: int | None) -> dict[str, Any]:
        found = None if pairs is None else agreement(pairs)
        low, high = found.accuracy_interval if found else (math.nan, math.nan)
        return {
            "accuracy": found.accuracy if found else math.nan, "low": low, "high": high,
            "status": status, "reason": "as given", "p adjusted": p, "judge calls": calls,
            "reflection calls": 3, "embedding calls": 0, "known": 2, "seconds": 12.3,
        }  # fmt: skip

    rows = {
        "original": row(BEFORE, "reference", math.nan, None),
        "SIMBA": row(AFTER, "improved", 0.001, 160),
        "few-shot": row(BEFORE, "unchanged", 0.6, 0),
        "other": row(None, "failed", math.nan, None),
    }
    table = pd.DataFrame.from_dict(rows, orient="index").astype({"judge calls": "Int64"})
    held_out = SimpleNamespace(test=range(40))
    ax = plot_comparison(SimpleNamespace(table=table, split=held_out), ax=axes())  # type: ignore[arg-type]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels[:2] == ["original\nas given", "SIMBA\n163 calls (+ 2 known), 12 s"]
    assert {"failed", "accuracy on 40 held-out pairs, 95 % interval"} <= set(texts(ax))
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"][:3]
    assert faces == ["black", drawing.AFTER, "white"]


@pytest.mark.parametrize(
    "pairs",
    [
        make([], []),
        make(["yes"] * 5, ["yes"] * 5),
        make([*ODD.values[:6]], [*ODD.values[1:]], ODD),
        make([float(i) for i in range(30)], [i + 0.5 for i in range(30)], Scale("numeric")),
        make([True, False], [True, True], Scale.from_type(bool)),
    ],
    ids=["no pairs", "one value", "odd labels", "numbers in bins", "booleans"],
)
def test_odd_data_can_be_drawn(pairs: Pairs) -> None:
    """Neither formulas in labels, nor control characters, nor empty data stop a picture."""
    for ax in (
        plot_confusion(pairs, ax=axes()),
        plot_balance(pairs, ax=axes()),
        plot_metrics(compare(pairs, pairs), ax=axes()),
    ):
        ax.figure.canvas.draw()
        assert not any(ord(c) < 32 and c != "\n" for text in texts(ax) for c in text)
        # An escaped $ is drawn as $, and starts no formula.
        assert not any("$" in text.replace(r"\$", "") for text in texts(ax))


@pytest.mark.parametrize(
    "draw",
    [
        lambda **on: plot_confusion(BEFORE, **on),
        lambda **on: plot_balance(BEFORE, **on),
        lambda **on: plot_metrics(agreement(BEFORE), **on),
        lambda **on: plot_annotators(PEOPLE, **on),
    ],
)
def test_plots_draw_on_given_axes_or_new_ones_and_leave_the_style_alone(
    draw: Callable[..., Axes],
) -> None:
    """A figure of one's own needs no pyplot; nothing is shown."""
    before, ax = dict(mpl.rcParams), axes()
    assert draw(ax=ax) is ax
    assert plt.get_fignums() == []
    assert draw().figure.number in plt.get_fignums()  # type: ignore[union-attr]
    assert dict(mpl.rcParams) == before


def test_two_classes_are_drawn_in_the_order_in_which_they_were_declared() -> None:
    pairs = make(["Yes", "No"], ["Yes", "Yes"], Scale.of(["Yes", "No"]))
    ax = plot_confusion(pairs)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Yes", "No"]


def test_plots_follow_the_theme_of_jupyterlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('// Theme\n{\n    "theme": "JupyterLab Dark"\n}')
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ipykernel", sys)

    def background() -> str:
        return to_hex(plot_confusion(BEFORE).figure.get_facecolor())

    dark = background()
    with mpl.rc_context({"figure.facecolor": "#fafafa"}):
        chosen = background()
    settings.unlink()
    assert (dark, chosen, background()) == ("#111111", "#fafafa", "#ffffff")
