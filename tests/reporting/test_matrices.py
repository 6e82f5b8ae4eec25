"""Matrices hold counts, shares and changes, draw on given Axes, and survive odd labels."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_pairs import from_confusion, make_pairs
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.reporting.matrices import (
    plot_annotators,
    plot_before_after,
    plot_confusion,
    plot_difference,
)
from workbench.reporting.plots import plot_balance
from workbench.scale import Scale

BEFORE = make_pairs(["no"] * 10 + ["yes"] * 30, ["yes"] * 8 + ["no"] * 2 + ["yes"] * 30)
AFTER = make_pairs(["no"] * 10 + ["yes"] * 30, ["yes"] * 1 + ["no"] * 9 + ["yes"] * 30)
PEOPLE = annotator_agreement(
    pd.DataFrame({"ana": ["no", "yes"] * 5, "ben": ["no"] * 5 + ["yes"] * 5})
)
WON_BEFORE = from_confusion([[6, 4], [1, 9]])
WON = make_pairs(list(WON_BEFORE.table["human"]), ["no"] * 9 + ["yes"] + ["no"] + ["yes"] * 9)


def texts(ax: Axes) -> list[str]:
    found = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]
    legend = ax.get_legend()
    found += legend.get_texts() if legend else []
    return [*(t.get_text() for t in found), ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]


def axes() -> Axes:
    return Figure().subplots()


def faces(ax: Axes) -> np.ndarray:
    """The colours of the cells, row by row."""
    return np.asarray(ax.collections[0].get_array()).reshape(-1, 4)


def test_confusion_shows_counts_shares_and_sides() -> None:
    ax = plot_confusion(agreement(BEFORE), ax=axes())
    assert {"8", "80%", "2", "20%", "30", "100%", "judge", "human"} <= set(texts(ax))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["no\n(10)", "yes\n(30)"]
    assert "accuracy 0.800" in ax.get_title()
    where = {t.get_text(): t.xy for t in ax.texts}  # type: ignore[attr-defined]
    assert where["8"] == (1, 0)  # human "no" is row 0, judge "yes" column 1
    assert faces(ax)[:, 3] == pytest.approx([0.2, 0.8, 0.0, 1.0])  # the share of the row
    many = plot_confusion(make_pairs(["no"] * 1200, ["no"] * 1200), ax=axes())
    assert "no\n(1,200)" in texts(many)
    assert "1,200" in texts(many)
    shares = plot_confusion(BEFORE, normalise=True, title="mine", ax=axes())
    sizes = {t.get_text(): t.get_fontsize() for t in shares.texts}
    assert (shares.get_title(), sizes["80%"] > sizes["8"]) == ("mine", True)
    with pytest.raises(ArgumentError, match=r"workbench\.pair"):
        plot_confusion("q")  # type: ignore[arg-type]


def test_text_stays_legible_on_dark_cells() -> None:
    colours = {t.get_text(): t.get_color() for t in plot_confusion(AFTER, ax=axes()).texts}
    assert (colours["30"], colours["1"]) == ("white", "black")
    with plt.style.context("dark_background"):
        colours = {t.get_text(): t.get_color() for t in plot_confusion(AFTER, ax=axes()).texts}
    assert set(colours.values()) == {"white"}


def test_many_classes_are_drawn_without_texts() -> None:
    """Cells keep their tint, every fourth of 200 classes its label."""
    size = 200
    scale = Scale.of([f"class {i}" for i in range(size)], ordered=False)
    human = list(scale.values) * 10
    found = agreement(make_pairs(human, [*human[3:], *human[:3]], scale), resamples=2)
    ax = plot_confusion(found)
    ax.figure.canvas.draw()
    assert len(ax.texts) == 0
    assert len(ax.get_yticklabels()) == 50


@pytest.mark.parametrize("size", [7, 12, 20, 30])
def test_labels_of_rows_do_not_run_into_each_other(size: int) -> None:
    scale = Scale.of([f"class {i} of many with a long name" for i in range(size)], ordered=False)
    ax = plot_confusion(make_pairs(list(scale.values) * 2, list(scale.values) * 2, scale))
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 12])
def test_large_counts_fit_their_cells_beside_long_names(size: int) -> None:
    """Of 100,000 pairs and more; a change has a sign as well."""
    scale = Scale.of([f"class {i} of many with a long name" for i in range(size)], ordered=False)
    cells = 20_000 + np.diag([20_000] * size)
    names = pd.Index(scale.values)
    found = agreement(make_pairs([*scale.values], [*scale.values], scale))
    before, after = (
        replace(found, confusion=pd.DataFrame(table, names, names))
        for table in (cells, np.roll(cells, 1, axis=1))
    )
    for ax in (plot_confusion(before), plot_difference(before, after)):
        ax.figure.canvas.draw()
        cell = ax.get_window_extent().width / (size + 0.04)
        boxes = [text.get_window_extent() for text in ax.texts]
        assert max(box.width for box in boxes) < cell
        rows = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(rows))


def test_whole_numbers_are_drawn_as_such() -> None:
    few = make_pairs([3.0, 2.5, 1e9], [3.0, 2.5, 1e9], Scale("numeric"))
    names = [label.get_text() for label in plot_confusion(few).get_xticklabels()]
    assert names == ["2.5", "3", "1000000000"]


def test_titles_of_small_matrices_are_drawn_whole() -> None:
    """A long name takes two lines, and so do long figures."""
    long = "is_the_answer_grounded_in_the_documents_that_were_retrieved"
    same = make_pairs([3.0] * 5, [3.0] * 5, Scale("numeric"))
    people = annotator_agreement(
        pd.DataFrame({"ana": ["no", "yes"] * 5, "a.person.of.a.long.name@example.com": "no"})
    )
    pairs = replace(BEFORE, name=long)
    drawn = [plot_confusion(pairs), plot_difference(pairs, pairs), plot_confusion(same)]
    for ax in (*drawn, plot_annotators(people)):
        ax.figure.canvas.draw()
        title = ax.title.get_window_extent()
        assert title.x0 >= 0
        assert title.x1 <= ax.figure.bbox.x1
    assert long in drawn[0].get_title().replace("\n", "")


def test_two_classes_are_drawn_in_the_order_in_which_they_were_declared() -> None:
    pairs = make_pairs(["Yes", "No"], ["Yes", "Yes"], Scale.of(["Yes", "No"]))
    ax = plot_confusion(pairs)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Yes", "No"]


def test_both_sides_of_true_and_false_are_drawn() -> None:
    """They are names of rows, and no mask."""
    pairs = make_pairs([True, False], [True, True], Scale.from_type(bool))
    ax = plot_confusion(pairs, ax=axes())
    assert sorted(label.get_text() for label in ax.get_xticklabels()) == ["False", "True"]
    assert sorted(t.get_text() for t in ax.texts) == ["0", "0", "1", "1", "100%", "100%"]
    assert len(plot_balance(pairs, ax=axes()).patches) == 2


def test_tilted_labels_are_not_broken_within_a_word() -> None:
    values = ["full_compliance", "full_refusal", "partial_refusal"]
    pairs = make_pairs(values * 2, values * 2, Scale.of(values))
    ax = plot_confusion(pairs)
    assert [label.get_text() for label in ax.get_xticklabels()] == values


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


@pytest.mark.parametrize(("classes", "rows"), [(3, 1), (12, 2)])
def test_before_after_is_no_wider_than_a_notebook(classes: int, rows: int) -> None:
    """Two large matrices stand one above the other."""
    values = [f"category {i} with a long name" for i in range(classes)]
    drawn = plot_before_after(*[make_pairs(values, values, Scale.of(values))] * 2)
    assert drawn[0].get_gridspec().get_geometry() == (rows, 3 - rows)
    assert drawn[0].figure.get_size_inches()[0] <= 12


@pytest.mark.parametrize("name", ["axes", "ax"])
def test_before_after_draws_on_two_given_axes_by_either_name(name: str) -> None:
    given = Figure().subplots(1, 2)
    assert list(plot_before_after(BEFORE, AFTER, **{name: given})) == list(given)
    with pytest.raises(ArgumentError, match="two agreements"):
        plot_before_after(BEFORE)


def test_difference_tells_what_grew_and_what_shrank() -> None:
    """Counts and shares of the row by sign, the largest change the most opaque."""
    ax = plot_difference(compare(WON_BEFORE, WON), ax=axes())
    texts = {t.xy: t.get_text() for t in ax.texts if "%" not in t.get_text()}  # type: ignore[attr-defined]
    assert texts == {(0, 0): "+3", (1, 0): "-3", (0, 1): "0", (1, 1): "0"}
    assert sorted(t.get_text() for t in ax.texts if "%" in t.get_text()) == ["+30%", "-30%"]
    assert faces(ax)[:, 3] == pytest.approx([0.85, 0.85, 0, 0])
    assert faces(ax)[0, 2] > faces(ax)[0, 0]  # grew: blue
    assert faces(ax)[1, 0] > faces(ax)[1, 2]  # shrank: orange
    assert "20 pairs" in ax.get_title()
    assert plot_difference(WON_BEFORE, WON, ax=axes(), title="mine").get_title() == "mine"


def test_difference_refuses_what_cannot_be_compared() -> None:
    """One agreement alone, other labels, and numbers in other bins."""
    with pytest.raises(ArgumentError, match=r"plot_difference needs a comparison"):
        plot_difference(WON_BEFORE)
    with pytest.raises(ArgumentError, match="labels before and after are not the same"):
        plot_difference(WON_BEFORE, from_confusion([[1, 1], [1, 1]]))
    human = [float(i) for i in range(30)]
    far = make_pairs(human, [i * 2 for i in human], Scale("numeric"))
    with pytest.raises(ArgumentError, match="in other bins"):
        plot_difference(make_pairs(human, human, Scale("numeric")), far)


def test_numbers_of_two_judges_are_in_the_same_bins_and_the_titles_say_how_far_they_are() -> None:
    human = [float(i) for i in range(30)]
    pairs = [make_pairs(human, [i + k for i in human], Scale("numeric")) for k in (9.0, 1.0)]
    comparison = compare(*pairs)
    drawn = plot_before_after(comparison)
    ticks = [[label.get_text() for label in ax.get_xticklabels()] for ax in drawn]
    assert ticks[0] == ticks[1]
    assert ticks[0][-1] == "34.2 to 38"
    assert drawn[1].get_title().splitlines()[1] == "mean distance 0.026 [0.023, 0.137]"
    assert "after minus before, 30 pairs" in plot_difference(comparison).get_title()
    declared = Scale("numeric", low=0, high=30)
    one, two = (make_pairs(human, [far] * 30, declared) for far in (100.0, 0.0))
    assert plot_difference(compare(one, two)).get_yticklabels()[-1].get_text().startswith("90 to")


def test_difference_has_the_numbers_of_both_judges() -> None:
    """A number that only one judge gives has a row and a column of its own, in order."""
    scale = Scale("numeric", low=1, high=5)
    ax = plot_difference(make_pairs([1, 3], [1, 5], scale), make_pairs([1, 3], [2, 3], scale))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "3", "5"]


def test_annotators_show_kappa_and_shared_items() -> None:
    assert texts(plot_annotators(PEOPLE, ax=axes())).count("n = 10") == 2
    alone = annotator_agreement(pd.DataFrame({"ana": ["no", "yes"]}))
    assert "needs two annotators" in texts(plot_annotators(alone, ax=axes()))


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


def test_a_word_longer_than_a_line_is_cut_and_not_left_out() -> None:
    """As names of classes with underscores often are."""
    name = "partially_correct_but_incomplete_answer"
    ax = plot_confusion(make_pairs([name, "no"] * 5, [name, "no"] * 5, Scale.of([name, "no"])))
    names = [[label.get_text() for label in found] for found in
             (ax.get_xticklabels(), ax.get_yticklabels())]  # fmt: skip
    assert any(label.startswith("partially_cor") for label in names[0])
    assert any(label.startswith("partially_correct_\nbut_incomplete") for label in names[1])
    plt.close("all")
