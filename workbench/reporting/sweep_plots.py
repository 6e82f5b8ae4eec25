"""Pictures of sweeps: agreement by the number of labels, by parameters, and against its cost.

Like those of `workbench.reporting.plots`, every function takes ``ax=None``, returns the Axes and
never shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.agreement import Agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.repetitions import over_seeds
from workbench.reporting.drawing import (
    blue,
    ink,
    legend_above,
    literal,
    new_axes,
    styled,
    tilt_where_long,
)
from workbench.store.tables import require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito, after the blue; a line has its own mark as well.
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"


@styled
def plot_learning_curve(
    table: pd.DataFrame,
    *,
    ceiling: float | AnnotatorAgreement | None = None,
    baseline: float | Agreement | None = None,
    metric: str = "held-out accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Held-out agreement by the number of labels: mean, and range, over seeds.

    Parameters
    ----------
    table
        What `workbench.sweep` or `workbench.runs` gave for ``n_labels``; or any table with
        ``n_labels`` and ``value``. Several rows a number where there are several seeds. Rows
        without a value are left out, and counted below the picture.
    ceiling
        The agreement of people among themselves, or what `workbench.annotator_agreement` gave. By
        default the mean of the table's column ``ceiling``, if there is one.
    baseline
        The accuracy of always giving the most frequent label, or an agreement that tells it; by
        default the mean of the column ``baseline``.
    metric
        What the values are; of a sweep the column, by default ``after``.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    ArgumentError
        For a table without these columns, or without a value.
    """
    column = "value" if "value" in table else metric if metric in table else "after"
    require_columns(table, "table", ["n_labels", "value" if column not in table else column])
    known = table.astype({"n_labels": float, column: float})
    if "labels" in table:  # where all were used, so many were
        all_used = known["n_labels"].isna()
        used = table.loc[all_used, "labels"].astype(float).mean()
        known.loc[all_used, "n_labels"] = np.round(used)
    known = known.dropna(subset=["n_labels", column])
    _check_values(known, column)
    over = over_seeds(known, column, "n_labels")
    labels, seeds = over["n_labels"], int(over["n"].max())
    ax = ax or new_axes(6.4, 4.0)[0]
    handles: dict[str, Any] = {}
    colour = blue()
    if seeds > 1:
        band = ax.fill_between(labels, over["min"], over["max"], color=colour, alpha=0.2, lw=0)
        ax.plot(known["n_labels"], known[column], "o", color=colour, ms=3, alpha=0.5, mew=0)
        handles[f"range over {seeds} seeds"] = band
    mean = ax.plot(labels, over["mean"], "-o", color=colour, lw=2, ms=5)[0]
    handles = {"aligned judge" + ", mean" * (seeds > 1): mean, **handles}
    people = ceiling.ceiling if isinstance(ceiling, AnnotatorAgreement) else ceiling
    majority = baseline.baseline if isinstance(baseline, Agreement) else baseline
    levels = {"people": (people, "ceiling", "--"), _MAJORITY: (majority, "baseline", ":")}
    for name, (level, own, style) in levels.items():
        if level is None and column == "after" and own in table:
            level = float(table[own].astype(float).mean())
        if level is not None and not math.isnan(level):
            handles[name] = ax.axhline(level, color=ink(), lw=1.3, ls=style, zorder=1)
    is_wide = labels.max() > 20 * max(labels.min(), 1)
    if is_wide or len(over) == 1:
        ax.set_xscale("log" if is_wide else "linear")
        ax.minorticks_off()
        ax.set_xticks(labels, [f"{n:g}" for n in labels])
    ax.set(xlabel=f"labels{_left_out(len(table) - len(known))}", ylabel=_name(metric))
    ax.spines[["top", "right"]].set_visible(False)
    legend_above(ax, handles, handlelength=1.6)
    return ax


_MAJORITY = "always the majority label"


def _check_values(known: pd.DataFrame, metric: str) -> None:
    if known.empty:
        raise ArgumentError(
            f"table holds no value of {metric!r}: every run of it failed, or there is none."
        )


def _name(metric: str) -> str:
    names = {"after": "held-out accuracy", "before": "held-out accuracy before"}
    return names.get(metric, literal(metric.replace("_", " "), 40))


def _left_out(runs: int) -> str:
    return f" ({counted(runs, 'run')} without a value left out)" if runs else ""


@styled
def plot_sweep(
    table: pd.DataFrame,
    metric: str = "after",
    by: str | tuple[str, str] = "n_labels",
    *,
    over: str = "seed",
    ax: Axes | None = None,
) -> Axes:
    """Any metric of a sweep against one or two parameters: mean, and interval over seeds.

    Parameters
    ----------
    table
        What `workbench.sweep` or `workbench.runs` gave.
    metric
        A recorded number, or ``seconds``.
    by
        The parameter along the axis, and of two the one whose values are lines, six at most.
    over
        The parameter to aggregate over (see `workbench.over_seeds`).
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    ArgumentError
        For columns that the table lacks, more lines, or a table without a value.
    """
    names = [by] if isinstance(by, str) else list(by)
    known = table.dropna(subset=[metric]) if metric in table else table
    found = over_seeds(known, metric, names, over=over)
    _check_values(found, metric)
    lines = dict(list(found.groupby(names[1], dropna=False))) if names[1:] else {"": found}
    if len(lines) > len(_MARKS) or len(names) > 2:
        raise ArgumentError(
            f"by={by!r}: {len(lines)} lines are too many; {len(_MARKS)} of one parameter can be "
            "told apart. Give rows of the table that leave fewer."
        )
    ax = ax or new_axes(6.4, 4.0)[0]
    x_values = list(dict.fromkeys(found[names[0]].astype(object).map(_all)))
    numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in x_values)
    handles = {}
    for (value, line), mark, colour in zip(
        lines.items(), _MARKS, (blue(), *_COLOURS), strict=False
    ):
        x = line[names[0]].astype(object).map(_all)
        places = list(x) if numeric else [x_values.index(one) for one in x]
        ends = [line["mean"] - line["low"], line["high"] - line["mean"]]
        look: dict[str, Any] = {
            "color": colour,
            "ms": 5,
            "lw": 2 if numeric else 0,
            "elinewidth": 1.3,
        }
        drawn = ax.errorbar(places, line["mean"], ends, fmt=f"-{mark}", capsize=3, **look)
        handles[f"{literal(names[-1], 30)} = {literal(_all(value), 40)}"] = drawn
    if not numeric:
        labels = [literal(x, 24) for x in x_values]
        ax.set_xticks(range(len(labels)), labels)
        ax.set_xlim(-0.5, len(labels) - 0.5)
        tilt_where_long(ax, labels)
    lost = _left_out(len(table) - len(known))
    ax.set(xlabel=f"{literal(names[0], 40)}{lost}", ylabel=_name(metric))
    ax.spines[["top", "right"]].set_visible(False)
    if names[1:]:
        legend_above(ax, handles, ncols=2, handlelength=1.6)
    return ax


def _all(value: Any) -> Any:
    """Return a value of a parameter as it is shown; what is not given is the default."""
    return "default" if pd.isna(value) else value


@styled
def plot_frontier(
    table: pd.DataFrame,
    metric: str = "after",
    *,
    cost: str = "usd_per_1000",
    by: str = "model",
    ax: Axes | None = None,
) -> Axes:
    """Agreement against the cost of 1,000 judgements: a point a model, and the frontier.

    The line joins the models that no cheaper one, nor one that costs the same, excels. Each point
    is the mean over the runs of a model, with the interval over them.

    Parameters
    ----------
    table
        What `workbench.sweep` or `workbench.runs` gave.
    metric
        A recorded number, of which more is better.
    cost
        Column with US dollars for 1,000 judgements; runs without are left out and counted.
    by
        The parameter whose values are the points.
    ax
        Axes to draw on; new ones by default.

    Raises
    ------
    ArgumentError
        For columns that the table lacks, or a table without a run that has both numbers.
    """
    require_columns(table, "table", [metric, cost, by])
    known = table.dropna(subset=[metric, cost])
    _check_values(known, metric)
    points = over_seeds(known, metric, by)
    points["cost"] = over_seeds(known, cost, by)["mean"]
    points = points.sort_values(["cost", "mean"], ascending=[True, False], kind="stable")
    best = points[points["mean"] > points["mean"].cummax().shift(fill_value=-math.inf)]
    ax = ax or new_axes(6.4, 4.0)[0]
    ax.step(best["cost"], best["mean"], where="post", color=ink(), lw=1, ls="--", zorder=1)
    ends = [points["mean"] - points["low"], points["high"] - points["mean"]]
    ax.errorbar(points["cost"], points["mean"], ends, fmt="o", color=blue(), ms=6, capsize=3)
    for point in points.to_dict("records"):
        ax.annotate(
            literal(_all(point[by]), 40),
            (point["cost"], point["mean"]),
            xytext=(7, 5),
            textcoords="offset points",
            size="small",
        )
    costs = points["cost"]
    if costs.min() > 0 and costs.max() > 20 * costs.min():
        ax.set_xscale("log")
    ax.margins(x=0.2, y=0.15)
    lost = _left_out(len(table) - len(known))
    ax.set(xlabel=f"US dollars for 1,000 judgements{lost}", ylabel=_name(metric))
    ax.spines[["top", "right"]].set_visible(False)
    return ax
