"""Pictures of sweeps: agreement by the number of labels, by parameters, and against its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.repetitions import as_numbers, over_seeds
from workbench.reporting.drawing import (
    blue,
    ink,
    legend_above,
    literal,
    name_columns,
    new_axes,
    reference_levels,
    styled,
)
from workbench.store.tables import require_columns

if TYPE_CHECKING:  # which import MLflow
    from workbench.metrics.agreement import Agreement
    from workbench.metrics.annotators import AnnotatorAgreement

# Of Okabe and Ito, after the blue; a line has its own mark as well.
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"


@styled()
def plot_learning_curve(
    table: pd.DataFrame,
    *,
    ceiling: float | AnnotatorAgreement | None = None,
    baseline: float | Agreement | None = None,
    metric: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Held-out agreement by the number of labels: mean, and range, over seeds.

    Where there were fewer labels than ``n_labels``, it is drawn at those that there were.

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
        What the values are; of a sweep the column, by default ``after``, the held-out accuracy, or
        on numeric scales ``after_mean_distance``.
    """
    wanted = [metric, "value"] if metric else ["value", "after_mean_distance", "after"]
    column = next((name for name in wanted if name in table), metric or "after")
    require_columns(table, "table", ["n_labels", column])
    names = [name for name in ("n_labels", column, "labels") if name in table]
    known = table.assign(**{name: as_numbers(table[name], name) for name in names})
    if "labels" in table:  # what all of them were, for n_labels=None as well
        runs = known.dropna(subset=column).groupby("n_labels", dropna=False)
        known["n_labels"] = runs["labels"].transform("mean").round()
    known = _known(known, column, "n_labels")
    over = over_seeds(known, column, "n_labels")
    times = known.groupby("n_labels")["seed"].nunique() if "seed" in known else over["n"]
    labels, seeds, colour = over["n_labels"], int(times.max()), blue()
    ax = ax or new_axes(6.4, 4.0)[0]
    (mean,) = ax.plot(labels, over["mean"], "-o", color=colour, lw=2, ms=5)
    handles: dict[str, Any] = {"aligned judge" + ", mean" * (seeds > 1): mean}
    if seeds > 1:
        band = ax.fill_between(labels, over["min"], over["max"], color=colour, alpha=0.2, lw=0)
        ax.plot(known["n_labels"], known[column], "o", color=colour, ms=3, alpha=0.5, mew=0)
        handles[f"range over {seeds} seeds"] = band
    levels = table.reindex(columns=["baseline", "ceiling"])
    own = {name: as_numbers(values, str(name)).mean() for name, values in levels.items()}
    if column == "after":  # else they are of another metric
        baseline = own["baseline"] if baseline is None else baseline
        ceiling = own["ceiling"] if ceiling is None else ceiling
    majority: Any = getattr(baseline, "baseline", baseline)
    for name, (level, style) in reference_levels(majority, ceiling).items():
        handles[name] = ax.axhline(level, color=ink(), lw=1.3, ls=style, zorder=1)
    metric = metric or ("after" if column == "value" else column)
    return _finished(ax, "labels", metric, len(table) - len(known), handles)


@styled()
def plot_sweep(
    table: pd.DataFrame,
    metric: str = "after",
    by: str | Sequence[str] = "n_labels",
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
    """
    names = [by] if isinstance(by, str) else list(by)
    if not 1 <= len(names) <= 2:
        raise ArgumentError(f"by={by!r} must name one parameter, the axis, or two, axis and lines.")
    require_columns(table, "table", [metric, *names])
    known = _known(table, metric)
    found = over_seeds(known, metric, names, over=over)
    lines = dict(list(found.groupby(names[1], dropna=False))) if names[1:] else {"": found}
    if len(lines) > len(_MARKS):
        raise ArgumentError(
            f"by={by!r}: {len(lines)} lines are too many. At most {len(_MARKS)} can be told apart: "
            "give fewer rows of the table."
        )
    ax = ax or new_axes(6.4, 4.0)[0]
    x_values = list(dict.fromkeys(found[names[0]].astype(object).map(_all)))
    numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in x_values)
    look: dict[str, Any] = {"ms": 5, "lw": 2 if numeric else 0, "elinewidth": 1.3, "capsize": 3}
    handles = {}
    for (value, line), mark, colour in zip(
        lines.items(), _MARKS, (blue(), *_COLOURS), strict=False
    ):
        x = line[names[0]].astype(object).map(_all)
        places = list(x) if numeric else [x_values.index(one) for one in x]
        ends = [line["mean"] - line["low"], line["high"] - line["mean"]]
        drawn = ax.errorbar(places, line["mean"], ends, fmt=f"-{mark}", color=colour, **look)
        handles[f"{literal(names[-1], 30)} = {literal(_all(value), 40)}"] = drawn
    if not numeric:
        name_columns(ax, range(len(x_values)), x_values, width=24)
        ax.set_xlim(-0.5, len(x_values) - 0.5)
    lost = len(table) - len(known)
    return _finished(ax, literal(names[0], 40), metric, lost, handles if names[1:] else {})


@styled()
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
    """
    require_columns(table, "table", [metric, cost, by])
    known = _known(table, metric, cost)
    points = over_seeds(known, metric, by).assign(cost=over_seeds(known, cost, by)["mean"])
    points = points.sort_values(["cost", "mean"], ascending=[True, False], kind="stable")
    best = points[points["mean"] > points["mean"].cummax().shift(fill_value=-math.inf)]
    ax = ax or new_axes(6.4, 4.0)[0]
    ax.step(best["cost"], best["mean"], where="post", color=ink(), lw=1, ls="--", zorder=1)
    ends = [points["mean"] - points["low"], points["high"] - points["mean"]]
    ax.errorbar(points["cost"], points["mean"], ends, fmt="o", color=blue(), ms=6, capsize=3)
    ax.xaxis.set_major_formatter(lambda usd, _: rf"\${usd:g}")
    middle = (points["cost"].min() + points["cost"].max()) / 2
    look: dict[str, Any] = {"textcoords": "offset points", "size": "small"}
    for name, x, y in zip(points[by], points["cost"], points["mean"], strict=True):
        # A name stands on the side where there is room.
        look |= {"xytext": (-7, 5), "ha": "right"} if x > middle else {"xytext": (7, 5)}
        ax.annotate(literal(_all(name), 40), (x, y), **look)
    ax.margins(x=0.2, y=0.15)
    return _finished(ax, "US dollars for 1,000 judgements", metric, len(table) - len(known), {})


def _known(table: pd.DataFrame, metric: str, *others: str) -> pd.DataFrame:
    """Return the runs that have all these values; raise `ArgumentError` where none has."""
    names = [metric, *others]
    known = table.dropna(subset=names)
    if known.empty:
        raise ArgumentError(
            f"table holds no value of {' beside '.join(map(repr, names))}: every run of it failed, "
            "or there is none."
        )
    return known


def _all(value: Any) -> Any:
    """Return a value of a parameter as it is shown; what is not given is the default."""
    return "default" if pd.isna(value) else value


def _finished(ax: Axes, x: str, metric: str, lost: int, handles: Mapping[str, Any]) -> Axes:
    """Name the axes, with the number of runs that were left out, and add the legend."""
    names = {"after": "held-out accuracy", "before": "held-out accuracy before"}
    names["after_mean_distance"] = "held-out mean distance"
    told = f" ({counted(lost, 'run')} without a value left out)" if lost else ""
    ax.set(xlabel=x + told, ylabel=names.get(metric, literal(metric.replace("_", " "), 40)))
    ax.spines[["top", "right"]].set_visible(False)
    legend_above(ax, handles)
    return ax
