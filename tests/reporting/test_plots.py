"""Plots say what their tables hold, draw on given Axes, and survive odd labels."""

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
from made_pairs import COLOURS, GRADES, make_pairs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.alignment.certificate import certify
from workbench.errors import ArgumentError
from workbench.metrics.agreement import agreement
from workbench.metrics.alternative import alternative_annotator_test
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.metrics.monitoring import Monitored
from workbench.metrics.prevalence import prevalence
from workbench.metrics.self_agreement import SelfAgreement
from workbench.pairing.pairs import Pairs
from workbench.reporting import drawing
from workbench.reporting.matrices import plot_annotators, plot_confusion, plot_difference
from workbench.reporting.plots import (
    plot_balance,
    plot_comparison,
    plot_metrics,
    plot_monitor,
    plot_ratings,
    plot_slices,
)
from workbench.scale import Scale

ODD = Scale.of(
    ["$x_{1}$ and $", "<script>alert(1)</script>", "a\nb\x00\u202ec", "long " * 30, "e", "f", "g"],
    ordered=False,
)
NUMBERS = Scale("numeric")
BEFORE = make_pairs(["no"] * 10 + ["yes"] * 30, ["yes"] * 8 + ["no"] * 2 + ["yes"] * 30)
AFTER = make_pairs(["no"] * 10 + ["yes"] * 30, ["yes"] * 1 + ["no"] * 9 + ["yes"] * 30)
PEOPLE = annotator_agreement(
    pd.DataFrame({"ana": ["no", "yes"] * 5, "ben": ["no"] * 5 + ["yes"] * 5})
)
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


def texts(ax: Axes) -> list[str]:
    found = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]
    legend = ax.get_legend()
    found += legend.get_texts() if legend else []
    return [*(t.get_text() for t in found), ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]


def axes() -> Axes:
    return Figure().subplots()


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_the_annotator_test_is_drawn_by_annotator() -> None:
    """Filled where the judge wins; who has too few items is hollow."""
    labels = pd.DataFrame(
        {"ana": [0, 1] * 30, "$ben$": [0, 1] * 30, "few": [0.0] * 5 + [None] * 55}
    )
    found = alternative_annotator_test(labels, [0, 1] * 30)
    ax = plot_slices(found, ax=axes())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ana (60)", r"\$ben\$ (60)", "few (5)"]
    points = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [line.get_mfc() == line.get_color() for line in points] == [True, True, False]
    assert "winning rate 1.000" in ax.get_xlabel()


def test_self_agreement_is_drawn_with_what_is_undefined() -> None:
    rows = {
        "all answers agree": (0.8, 0.6, 0.9, 20),
        "accuracy of one answer": (math.nan,) * 3 + (0,),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "n"])
    found = SelfAgreement("good", 5, table.astype({"n": int}), pd.DataFrame(), 0, ())
    ax = plot_metrics(found, ax=axes())
    assert {"all answers agree (20)", "undefined", "good, asked 5 times"} <= set(texts(ax))


def test_a_certificate_is_drawn_beside_its_thresholds_and_prevalence_by_estimate() -> None:
    found = certify(AFTER, kappa=0.5, accuracy=0.9)  # kappa 0.931, accuracy 0.975 from 0.871 on
    ax = plot_metrics(found, ax=axes())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["kappa (40)", "accuracy (40)"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_mfc() == line.get_color() for line in points] == [True, False]
    assert [path[0][0] for path in ax.collections[-1].get_segments()] == [0.5, 0.9]
    assert ax.get_title().startswith("'q': not passed on 40 labelled items")
    worse = make_pairs(["yes", "no"] * 10, ["no", "yes"] * 10)
    drawn = texts(plot_metrics(prevalence(worse, ["yes"] * 6 + ["no"] * 4), ax=axes()))
    assert {"as judged (10)", "undefined", "share of positive items, 10 verdicts"} <= {*drawn}
    left, _ = plot_metrics(certify(worse, kappa=0.5), ax=axes()).get_xlim()
    assert left < -0.9


def test_metrics_of_numbers_mark_the_best_constant() -> None:
    """By hand: the median 4 is 0, 0, 2 and 4 of at most 8 away."""
    scale = Scale("numeric", low=0, high=8)
    found = agreement(make_pairs([4, 4, 6, 8], [4, 5, 6, 7], scale))
    assert found.baseline_distance == pytest.approx((0 + 0 + 0.25 + 0.5) / 4)
    ax = plot_metrics(found, ax=axes())
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["always the median label"].get_xdata()) == [found.baseline_distance] * 2


def test_metrics_mark_the_baseline_and_the_ceiling() -> None:
    ax = plot_metrics(compare(BEFORE, AFTER), ceiling=PEOPLE, ax=axes())
    assert {"before", "after", "always the majority label", "people"} <= set(texts(ax))
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["always the majority label"].get_xdata()) == [0.75, 0.75]
    assert list(lines["people"].get_xdata()) == [PEOPLE.ceiling] * 2
    alone = plot_metrics(agreement(BEFORE), ax=axes())
    assert "judge" in texts(alone)
    assert "people" not in texts(alone)


def test_metrics_of_pairs_are_those_of_their_agreement() -> None:
    drawn = [plot_metrics(each, ax=axes()) for each in (BEFORE, agreement(BEFORE))]
    first, second = ([np.array(line.get_xydata()).tolist() for line in ax.lines] for ax in drawn)
    assert first == second
    with pytest.raises(ArgumentError, match=r"workbench\.pair\(judge\) gives, got DataFrame"):
        plot_metrics(SLICES)  # type: ignore[arg-type]


def test_numbers_are_shown_by_their_mean_distance() -> None:
    """Hardly one equals its label, so that an accuracy near 0 says nothing."""
    people = [float(n) for n in range(40)]
    before, after = (make_pairs(people, [v + off for v in people], NUMBERS) for off in (8.5, 2.5))
    compared = compare(before, after)
    ax = plot_metrics(compared, ceiling=PEOPLE, ax=axes())
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == ["mean distance\n(0 is best)", "kappa (quadratic)", "Pearson correlation"]
    assert not {"people", "always the majority label"} & set(legend(ax))
    figures = {"status": "improved", "p adjusted": 0.01, "judge calls": 1, "reflection calls": 0}
    figures |= {"embedding calls": 0, "known": 0, "seconds": 1.0}
    table = pd.DataFrame([figures] * 2, index=["original", "SIMBA"]).assign(
        **{"mean distance": [0.2, 0.1], "mean distance low": 0.05, "mean distance high": 0.3}
    )
    given = SimpleNamespace(table=table, split=SimpleNamespace(test=range(40)), pairs=before)
    ax = plot_comparison(given, ax=axes())  # type: ignore[arg-type]
    assert ax.get_xlabel().startswith("mean distance on 40 held-out pairs")
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots[:2] == [[0.2], [0.1]]


def test_an_undefined_kappa_is_written_and_not_drawn_as_zero() -> None:
    same = make_pairs(["yes"] * 5, ["yes"] * 5)
    assert texts(plot_metrics(compare(same, same), ax=axes())).count("undefined") == 2


def test_balance_marks_rare_classes() -> None:
    ax = plot_balance(BEFORE, ax=axes())
    bars = [mpl.colors.to_hex(p.get_facecolor()).upper() for p in ax.patches]
    assert bars == [drawing.BELOW, drawing.AFTER]  # 10 of 40 "no" is below 30 %
    assert "30% of labels advised" in texts(ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["no (10)", "yes (30)"]


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
        "idle": row(BEFORE, "unchanged", math.nan, 9),
        "other": row(None, "failed", math.nan, None),
    }
    table = pd.DataFrame.from_dict(rows, orient="index").astype({"judge calls": "Int64"})
    held_out = SimpleNamespace(test=range(40))
    given = SimpleNamespace(table=table, split=held_out, pairs=BEFORE)
    ax = plot_comparison(given, ax=axes())  # type: ignore[arg-type]
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels[:2] == ["original\nas given", "SIMBA\n163 calls, 12.3 s"]
    assert {"failed", "accuracy on 40 held-out pairs, 95 % interval"} <= set(texts(ax))
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"][:4]
    assert faces == ["black", drawing.AFTER, "white", "white"]


@pytest.mark.parametrize(
    "pairs",
    [
        make_pairs([], []),
        make_pairs(["yes"] * 5, ["yes"] * 5),
        make_pairs([*ODD.values[:6]], [*ODD.values[1:]], ODD),
        make_pairs([float(i) for i in range(30)], [i + 0.5 for i in range(30)], NUMBERS),
        make_pairs([True, False], [True, True], Scale.from_type(bool)),
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


def test_a_legend_is_drawn_whole_beside_long_names_of_rows() -> None:
    """In the width that the report has for it."""
    names = pd.Index(["<MODEL_NAME_WITHOUT_ANY_SPACES_THAT_GOES_ON>" * 2] * 3)
    ax = plt.figure(figsize=(6.2, 2.4), layout="constrained").subplots()
    found = plot_slices(SLICES.set_index(names), overall=0.5, ax=ax).get_legend()
    assert found is not None
    ax.figure.canvas.draw()
    box = found.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= ax.figure.bbox.x1


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
    strict = SimpleNamespace(table=SLICES, by="model", confidence=0.99)
    assert legend(plot_slices(strict, ax=axes())) == ["differs (p < 0.01, adjusted)", "may be luck"]
    narrow = SLICES.head(1).assign(accuracy_low=0.899, accuracy_high=0.901)
    left, right = plot_slices(narrow, overall=0.898, ax=axes()).get_xlim()
    assert 0.85 < left < 0.898  # of 100,000 pairs the interval can be seen
    assert 0.901 < right < 0.95
    alone = plot_slices(SLICES.head(1).assign(p_adjusted=math.nan), ax=axes())
    (dot,) = [line for line in alone.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert dot.get_markerfacecolor() == "white"  # a single slice differs from nothing


def test_many_weeks_are_drawn_in_the_width_of_a_page() -> None:
    """Of more than 40 every second one is named, or fewer."""
    weeks = pd.Index([f"2026-W{n:02}" for n in range(1, 53)], name="week")
    table = pd.DataFrame({"verdicts": 90, "labelled": 30, "accuracy": 0.8, "shift": 0.1}, weeks)
    table = table.assign(accuracy_low=0.7, accuracy_high=0.9, p_adjusted=0.5)
    nothing = (None, math.nan, math.nan, math.nan)
    ax = plot_monitor(Monitored("q", "", table, *nothing, "none", "", ()))
    assert ax.figure.bbox.width / mpl.rcParams["figure.dpi"] <= 14
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()][:2] == [
        "2026-W01 (30)", "2026-W03 (30)",
    ]  # fmt: skip
    assert len(ax.patches) == 52


def test_slices_of_numbers_show_how_far_the_verdicts_are() -> None:
    """Hardly a number equals its label, so that accuracy would be 0 throughout."""
    human = [float(i) for i in range(40)]
    pairs = make_pairs(human, [i + 0.5 for i in human], Scale("numeric", low=0, high=50))
    found = agreement(pairs, by={i: k % 2 for k, i in enumerate(pairs.trace_ids)})
    ax = plot_slices(found, ax=axes())
    assert ax.get_xlabel() == "mean distance by group, with interval"
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([0.01, 0.01])
    assert legend(ax)[0] == "all pairs"


def test_ratings_are_circles_with_their_counts_on_few_levels() -> None:
    """Human on x, judge on y; the classes from worst to best; the line of equal ratings."""
    ax = plot_ratings(make_pairs(["poor"] * 3 + ["good"], ["fair"] * 3 + ["good"], GRADES))
    assert {(t.get_position(), t.get_text()) for t in ax.texts} == {((0, 1), "3"), ((2, 2), "1")}
    assert [t.get_text() for t in ax.get_xticklabels()] == list(GRADES.values)
    (line,) = ax.lines
    assert list(line.get_xdata()) == list(line.get_ydata())
    twelve = Scale.of([f"An answer of the kind {k} of all" for k in range(12)], ordered=True)
    long = plot_ratings(make_pairs(twelve.values, twelve.values, twelve))
    for labels in (long.get_xticklabels(), long.get_yticklabels()):
        assert len({label.get_text() for label in labels}) == 12
    with pytest.raises(ArgumentError, match="nominal"):
        plot_ratings(make_pairs(["red"], ["blue"], COLOURS))


@pytest.mark.parametrize("size", [3, 5, 7, 12])
def test_counts_of_ratings_do_not_run_into_each_other_beside_long_names(size: int) -> None:
    scale = Scale.of([f"An answer of the kind {k} of all" for k in range(size)], ordered=True)
    names = np.array(scale.values)
    human, judge = np.divmod(np.arange(size**2), size)
    ax = plot_ratings(make_pairs(names[human].tolist(), names[judge].tolist(), scale))
    for text in ax.texts:
        text.set_text("43,427" if text.get_position()[0] in (0, 1) else "9,999")
    ax.figure.canvas.draw()
    at = {text.get_position(): text.get_window_extent() for text in ax.texts}
    assert len(at) == size**2
    assert all(box.x1 < at[x + 1, y].x0 for (x, y), box in at.items() if x < size - 1)
    widest = ax.collections[0].get_sizes().max() ** 0.5 / 72  # inches
    (here, _), (there, _) = ax.transData.transform([(0, 0), (1, 0)])
    assert widest < (there - here) / ax.figure.dpi


@pytest.mark.parametrize(("n", "kind"), [(400, "Line2D"), (20_000, "PolyCollection")])
def test_fine_numbers_are_points_and_where_they_are_many_hexagons(n: int, kind: str) -> None:
    """The count of every hexagon adds up to all pairs."""
    rng = np.random.default_rng(0)
    human = rng.normal(5, 1, n)
    pairs = make_pairs(human.tolist(), (human + 0.3).tolist(), NUMBERS)
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
        lambda **on: plot_confusion(BEFORE, **on),
        lambda **on: plot_balance(BEFORE, **on),
        lambda **on: plot_balance(make_pairs([], [], NUMBERS), **on),
        lambda **on: plot_metrics(agreement(BEFORE), **on),
        lambda **on: plot_annotators(PEOPLE, **on),
        lambda **on: plot_difference(BEFORE, AFTER, **on),
        lambda **on: plot_difference(EMPTY, EMPTY, **on),
        lambda **on: plot_slices(SLICES, **on),
        lambda **on: plot_slices(SLICES.iloc[:0], **on),
        lambda **on: plot_ratings(ONE, **on),
        lambda **on: plot_ratings(EMPTY, **on),
        lambda **on: plot_ratings(make_pairs([], [], NUMBERS), **on),
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
