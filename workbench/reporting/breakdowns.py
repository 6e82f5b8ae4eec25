"""Pictures of where agreement comes from: cells, slices, and ratings.

Like those of `workbench.reporting.plots`, every function takes ``ax=None``, returns the Axes and
never shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, one_of
from workbench.formatting import counted
from workbench.metrics.agreement import Agreement
from workbench.metrics.comparison import Comparison
from workbench.metrics.monitoring import Monitored
from workbench.reporting.drawing import (
    BELOW,
    MOST_ROWS_WITH_TEXT,
    TINT,
    bare_rows,
    blue,
    draw_cells,
    ink,
    legend_above,
    literal,
    matrix_axes,
    matrix_size,
    new_axes,
    outline_diagonal,
    paper,
    styled,
    tilt_where_long,
    write,
    write_cell,
)
from workbench.reporting.plots import both_agreements, order_of
from workbench.store.tables import require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from workbench.pairing.pairs import Pairs

MOST_LEVELS, MOST_WITH_COUNTS = 20, 12
"""Of more levels than these pairs are drawn one by one, and circles without their count."""

MOST_POINTS = 500
"""More pairs than this are counted in hexagons."""


@styled
def plot_difference(
    comparison_or_before: Comparison | Agreement | Pairs,
    after: Agreement | Pairs | None = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Confusion matrix after minus before: which verdicts there are more of, and which fewer.

    Each cell holds the change of its count and of its share of the row; blue cells grew, orange
    ones shrank, and the cell that changed most (by share of its row) is the most opaque. Growth on
    the outlined diagonal is agreement won.

    Parameters
    ----------
    comparison_or_before, after
        As in `plot_before_after`.
    ax
        Axes to draw on; new ones by default.
    title
        Above the matrix; name and number of pairs by default.

    Raises
    ------
    ArgumentError
        Without ``after``, for two sets of labels, and for numbers that are in other bins before
        than after.
    """
    old, new = both_agreements("plot_difference", comparison_or_before, after)
    order = list(dict.fromkeys([*order_of(old), *order_of(new)]))
    if old.scale.kind == "numeric":
        in_bins = old.per_class is None or new.per_class is None
        if in_bins and list(old.confusion) != list(new.confusion):
            raise ArgumentError(
                "The numbers are in other bins before than after, so that no cell can be compared. "
                "workbench.plot_ratings(pairs) shows the verdicts of each judge."
            )
        order = order if in_bins else sorted(order)
    tables = [one.confusion.reindex(index=order, columns=order, fill_value=0) for one in (old, new)]
    totals = tables[0].sum(axis=1)
    if not totals.equals(tables[1].sum(axis=1)):
        raise ArgumentError(
            "The labels before and after are not the same. Compare on the same traces: "
            "plot_difference(workbench.compare(before, after))."
        )
    change = (tables[1] - tables[0]).to_numpy()
    shares = change / np.maximum(totals.to_numpy(), 1)[:, None]
    opacity = 0.85 * np.abs(shares) / max(np.abs(shares).max(initial=0), 1e-9)
    ax = ax or new_axes(*matrix_size(len(order)))[0]
    with_text = len(order) <= MOST_ROWS_WITH_TEXT
    between = "\n" if with_text else " "
    rows = [f"{literal(value, width=18)}{between}({n})" for value, n in totals.items()]
    matrix_axes(ax, rows, [literal(value, width=14) for value in order])
    draw_cells(ax, opacity, np.where(change < 0, BELOW, TINT))
    if with_text:
        for at, n in np.ndenumerate(change):
            texts = (f"{n:+,d}", f"{shares[at]:+.0%}") if n else ("0", "")
            tint = BELOW if n < 0 else TINT
            write_cell(ax, at, *texts, opacity=float(opacity[at]), tint=tint)
    outline_diagonal(ax, len(order))
    ax.set_xlabel("judge")
    ax.set_ylabel("human")
    what = f"after minus before, {counted(old.n, 'pair')}\nblue: more, orange: fewer"
    ax.set_title(f"{literal(old.name, width=60)}\n{what}" if title is None else title)
    return ax


@styled
def plot_slices(
    slices: Any, *, metric: str | None = None, overall: float | None = None, ax: Axes | None = None
) -> Axes:
    """Agreement by slice: a row a slice, with its interval and its number of pairs.

    The dashed line is the agreement on all pairs. Where the table tells it (``p_adjusted``),
    slices that differ from the others are drawn filled, and those whose difference may be luck, or
    is not known, hollow.

    Parameters
    ----------
    slices
        What ``workbench.agreement(pairs, by=...)`` gave, or its table: index slice; ``n``, the
        metric, its interval as ``accuracy_low`` and ``accuracy_high``, and where known
        ``p_adjusted`` and ``note``.
    metric
        ``"accuracy"``, ``"kappa"`` or another of the table; by default ``"mean_distance"`` where
        it is there, as on numeric scales, else ``"accuracy"``.
    overall
        The metric on all pairs; that of ``slices`` by default, and no line for a table.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    ArgumentError
        For a table without these columns.
    """
    table = slices if isinstance(slices, pd.DataFrame) else slices.table
    metric = metric or ("mean_distance" if "mean_distance" in table else "accuracy")
    require_columns(table, "slices", ["n", metric, f"{metric}_low", f"{metric}_high"])
    overall = getattr(slices, metric, None) if overall is None and table is not slices else overall
    ax = ax or new_axes(6.8, 1.3 + 0.34 * len(table))[0]
    colour = blue()
    ends = table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy(dtype=float)
    lowest = max(-1.0, float(np.nanmin(ends, initial=0)))
    luck = ~(table["p_adjusted"] < 0.05) if "p_adjusted" in table else np.zeros(len(table), bool)
    for row, ((value, low, high), may_be_luck) in enumerate(zip(ends, luck, strict=True)):
        if math.isnan(value):
            write(ax, lowest + 0.01, row, "undefined", color=BELOW, ha="left", size="small")
            continue
        ax.plot([low, high], [row, row], color=colour, lw=2, solid_capstyle="butt")
        ax.plot(
            value, row, "o", color=colour, mfc=paper() if may_be_luck else colour, mew=1.5, ms=6
        )
    look: dict[str, Any] = {"marker": "o", "ls": "", "color": colour, "ms": 6}
    handles = {}
    if overall is not None and not math.isnan(overall):
        handles["all pairs"] = ax.axvline(overall, color=ink(), lw=1, ls="--", zorder=0)
    if "p_adjusted" in table:
        handles["differs (p < 0.05, adjusted)"] = ax.plot([], [], **look)[0]
        handles["may be luck"] = ax.plot([], [], mfc=paper(), mew=1.5, **look)[0]
    if handles:
        legend_above(ax, handles, ncols=3, handlelength=1.4, columnspacing=1.2)
    bare_rows(ax, [f"{literal(name, 30)} ({n:,})" for name, n in table["n"].items()])
    ax.set_xlim(lowest - 0.02, 1.02)
    by = getattr(slices, "by", None)
    of = f" by {literal(by, 40)}" if by else ""
    ax.set_xlabel(f"{metric.replace('_', ' ')}{of}, with interval")
    return ax


@styled
def plot_monitor(monitored: Monitored, *, ax: Axes | None = None) -> Axes:
    """Agreement with people and the shift of verdicts, week by week.

    Points are accuracy with its interval, filled where the week differs from the others by more
    than luck. Bars are how far the verdicts of the week are from those of all other weeks.

    Parameters
    ----------
    monitored
        What ``workbench.monitor(judge, scored)`` gave.
    ax
        Axes to draw on; new ones by default.
    """
    table = monitored.table
    ax = ax or new_axes(max(4.5, 2.2 + 0.8 * len(table)), 3.4)[0]
    places, colour = np.arange(len(table)), blue()
    shifts = ax.bar(places, table["shift"].fillna(0.0), width=0.5, color=BELOW, alpha=0.45)
    low, high = table["accuracy_low"], table["accuracy_high"]
    ax.vlines(places, low.astype(float), high.astype(float), color=colour, lw=2)
    luck = ~(table["p_adjusted"] < 0.05).to_numpy()
    look: dict[str, Any] = {"ls": "", "marker": "o", "color": colour, "mew": 1.5, "ms": 6}
    (points,) = ax.plot(places[~luck], table["accuracy"][~luck], **look)
    ax.plot(places[luck], table["accuracy"][luck], mfc=paper(), **look)
    handles = {"accuracy": points, "shift of verdicts": shifts}
    if monitored.agreement is not None:
        overall = monitored.agreement.accuracy
        handles["all weeks"] = ax.axhline(overall, color=ink(), lw=1, ls="--", zorder=0)
    names = [f"{week}\n({n:,})" for week, n in table["labelled"].items()]
    ax.set_xticks(places, names)
    tilt_where_long(ax, names)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("week (labels)")
    legend_above(ax, handles, ncols=3, handlelength=1.4, columnspacing=1.2)
    return ax


@styled
def plot_ratings(pairs: Pairs, *, ax: Axes | None = None) -> Axes:
    """Human label against verdict on an ordinal or numeric scale, with the line of equal ratings.

    Up to 20 levels each are circles, whose area is the number of pairs. On finer scales each pair
    is a point, and more than 500 pairs are counted in hexagons. Verdicts above the line are higher
    than people's.

    Parameters
    ----------
    pairs
        Verdicts and labels.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    ArgumentError
        For a scale without an order.
    """
    scale = pairs.scale
    one_of("the scale of pairs", scale.kind, ["ordinal", "numeric"])
    sides = [[float(scale.rank(v)) for v in pairs.table[side]] for side in ("human", "judge")]
    human, judge = np.array(sides)
    levels = np.unique(np.array(sides))
    if scale.kind == "ordinal":
        levels = np.array([float(scale.rank(value)) for value in scale.values])
    are_few = scale.kind == "ordinal" or levels.size < min(MOST_LEVELS + 1, len(pairs))
    side = min(max(4.6, 0.5 * levels.size), 6.5) if are_few else 5.0
    ax = ax or new_axes(side + 0.7, side)[0]
    if scale.kind == "ordinal":
        names = [literal(value, 16) for value in scale.values]
        ax.set_xticks(levels, names)
        ax.set_yticks(levels, names)
        tilt_where_long(ax, names)
    elif are_few and (levels % 1 == 0).all():
        ax.locator_params(integer=True)
    low, high = (levels[0], levels[-1]) if levels.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.5
    if are_few:
        margin = max(margin, 0.55 * (high - low) / max(levels.size - 1, 1))
        _draw_circles(ax, human, judge, len(levels))
    else:
        _draw_density(ax, human, judge)
    ends = (low - margin, high + margin)
    ax.plot(ends, ends, color=ink(), lw=1, ls="--", zorder=0.5)
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="human", ylabel="judge")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"{literal(pairs.name, 60)}, {counted(len(pairs), 'pair')}")
    return ax


def _draw_circles(ax: Axes, human: Any, judge: Any, levels: int) -> None:
    colour = blue()
    places, counts = np.unique(np.stack([human, judge], axis=1), axis=0, return_counts=True)
    most, widest = counts.max(initial=1), 260 / max(levels, 3)  # points: neighbours do not touch
    area = np.maximum(counts / most * widest**2, 5)
    x, y = places.T
    ax.scatter(x, y, s=area, color=colour, alpha=0.4, lw=0, zorder=2)
    if levels > MOST_WITH_COUNTS:
        ax.scatter(
            [], [], s=30, color=colour, alpha=0.4, lw=0, label=f"largest circle: {most:,} pairs"
        )
        ax.legend(loc="upper left")
        return
    for (left, up), n in zip(places, counts, strict=True):
        write(ax, left, up, f"{n:,}", size=9 if levels <= 7 else 7, zorder=3)


def _draw_density(ax: Axes, human: Any, judge: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb

    if len(human) <= MOST_POINTS:
        ax.plot(human, judge, "o", color=blue(), alpha=0.5, ms=5, mew=0)
        return
    faint = 0.75 * np.array(to_rgb(paper())) + 0.25 * np.array(to_rgb(blue()))
    colours = LinearSegmentedColormap.from_list("pairs", [tuple(faint), blue(), ink()])
    drawn = ax.hexbin(human, judge, gridsize=32, mincnt=1, cmap=colours, norm=LogNorm(), lw=0.2)
    drawn.set_clim(vmin=1)
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.7, label="pairs")
    bar.ax.minorticks_off()
