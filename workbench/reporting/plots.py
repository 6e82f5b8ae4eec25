"""Pictures of agreement and where it comes from: metrics, slices, weeks, balance and ratings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.patches import Rectangle

from workbench.alignment.result import Certificate, OptimizerComparison
from workbench.errors import one_of
from workbench.formatting import counted
from workbench.metrics.agreement import Agreement, agreement
from workbench.metrics.alternative import AlternativeAnnotatorTest
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.metrics.intervals import figure
from workbench.metrics.monitoring import Monitored
from workbench.metrics.prevalence import Prevalence
from workbench.metrics.self_agreement import SelfAgreement
from workbench.pairing.pairs import Pairs
from workbench.reporting.drawing import (
    AFTER,
    BEFORE,
    BELOW,
    bare_rows,
    blue,
    draw_estimate,
    ink,
    legend_above,
    literal,
    name_columns,
    new_axes,
    order_of,
    paper,
    reference_levels,
    styled,
)
from workbench.reporting.matrices import agreement_of
from workbench.store.tables import require_columns

Estimated = SelfAgreement | Certificate | Prevalence


@styled()
def plot_metrics(
    comparison_or_agreement: Comparison | Agreement | Pairs | Estimated,
    *,
    ax: Axes | None = None,
    ceiling: float | AnnotatorAgreement | None = None,
) -> Axes:
    """Accuracy and kappa with their intervals, before and after; or another result's figures.

    The accuracy of always answering the most frequent label is marked, and, where given, the
    agreement of people among themselves, on contested items too. Numeric scales have the mean
    distance, quadratic kappa and Pearson's correlation instead, and the mean distance of always
    answering the median label.

    Parameters
    ----------
    comparison_or_agreement
        What `workbench.compare` or `workbench.agreement` gave, or pairs; or what `self_agreement`,
        `prevalence` or `certify` gave, all of whose figures are drawn: those that are certified
        beside their thresholds, filled where they passed.
    ceiling
        What `workbench.annotator_agreement` gave, or its ceiling.
    """
    given = comparison_or_agreement
    if isinstance(given, Estimated):
        return _draw_figures(given, ax)
    if isinstance(given, Comparison):
        looks = {"before": (BEFORE, "o", -0.16), "after": (AFTER, "D", 0.16)}
        judges = {name: (getattr(given, name), *look) for name, look in looks.items()}
    else:
        judges = {"judge": (agreement_of(given), AFTER, "D", 0.0)}
    first: Agreement = next(iter(judges.values()))[0]
    numeric = first.scale.kind == "numeric"
    kinds = ("mean distance", "kappa (", "Pearson") if numeric else ("accuracy", "kappa")
    names = [name for kind in kinds for name in first.figures if name.startswith(kind)]
    ax = ax or new_axes(6.4, 1.1 + 0.62 * len(names))[0]
    lowest, handles = 0.0, dict[str, Any]()
    for label, (found, colour, marker, offset) in judges.items():
        for row, name in enumerate(names):
            value, interval = found.figures[name]
            drawn = draw_estimate(ax, row + offset, (value, *interval), color=colour, marker=marker)
            handles |= {label: drawn} if drawn else {}
            lowest = float(np.nanmin([lowest, value, interval.low]))
    levels = reference_levels(first.baseline, ceiling)
    if numeric:
        levels = {"always the median label": (first.baseline_distance, ":")}
    for label, (level, style) in levels.items():
        (handles[label],) = ax.plot([level] * 2, [-0.42, 0.42], style, color=ink(), label=label)
    ax.axvline(0, color=ink(), lw=0.6, alpha=0.5)
    bare_rows(ax, [f"{name}\n(0 is best)" if "distance" in name else name for name in names])
    ax.set_xlim(max(-1.0, lowest - 0.03) if lowest < 0 else 0, 1.01)
    legend_above(ax, handles)
    return ax


def _draw_figures(found: Estimated, ax: Axes | None) -> Axes:
    table = found.table
    ax = ax or new_axes(6.4, 1.1 + 0.42 * len(table))[0]
    _draw_rows(ax, table, ["value", "low", "high"], table.get("passed", True))
    if isinstance(found, SelfAgreement):
        title = f"{literal(found.name, 60)}, asked {found.samples} times"
    elif isinstance(found, Certificate):
        title = f"{literal(found.headline, 60)}\n(dashed: threshold, filled: passed)"
        rows = np.arange(len(table))
        ax.vlines(table["threshold"], rows - 0.3, rows + 0.3, color=ink(), ls="--")
    else:
        title = f"share of positive items, {counted(found.n, 'verdict')}"
    lowest = float(np.nanmin([0.0, *table["low"]]))
    ax.set_xlim(lowest - 0.03 if lowest < 0 else 0, 1.01)
    ax.set_title(title)
    return ax


@styled()
def plot_comparison(comparison: OptimizerComparison, *, ax: Axes | None = None) -> Axes:
    """Held-out accuracy of each judge with its interval, and the cost of learning it.

    On numeric scales it is the mean distance. A row a judge, in the order of the comparison. The
    dashed line is the original judge. Judges that differ from it by McNemar's test, adjusted for
    the number of judges, are drawn filled, the others hollow; those that failed say so.
    """
    table, measure, ends = comparison.table, "accuracy", ["low", "high"]
    if comparison.pairs.scale.kind == "numeric":
        measure, ends = "mean distance", ["mean distance low", "mean distance high"]
    ax = ax or new_axes(7.6, 1.2 + 0.5 * len(table))[0]
    labels = []
    for place, (name, row) in enumerate(table.to_dict("index").items()):
        estimate = [row[name] for name in (measure, *ends)]
        colour = ink() if row["status"] == "reference" else blue()
        # The original itself and the majority label are not tested, so they are filled.
        hollow = name not in ("original", "majority label") and not row["p adjusted"] < 0.05
        said = "failed" if row["status"] == "failed" else "undefined"
        draw_estimate(ax, place, estimate, hollow=hollow, color=colour, undefined=said)
        labels.append("\n".join(filter(None, [literal(name, 30), literal(_effort(row), 60)])))
    bare_rows(ax, labels)
    told = ("differs (p < 0.05, adjusted)", "may be luck")
    _add_legend(ax, told, ("original judge", table[measure].iloc[0]))
    ax.set_xlim(0, 1.01)
    ax.set_xlabel(f"{measure} on {len(comparison.split.test)} held-out pairs, 95 % interval")
    return ax


def _draw_rows(ax: Axes, table: pd.DataFrame, columns: list[str], filled: Any = True) -> None:
    """Draw each row of a table as an estimate, named with the number of items that it is of."""
    is_filled = np.broadcast_to(filled, len(table))
    for row, estimate in enumerate(table[columns].to_numpy(float).tolist()):
        draw_estimate(ax, row, estimate, hollow=not is_filled[row], color=blue())
    bare_rows(ax, [f"{literal(name, 30)} ({n:,})" for name, n in table["n"].items()])


def _add_legend(ax: Axes, told: Sequence[str], reference: tuple[str, Any] = ("", None)) -> None:
    """Say what filled and hollow points mean, and draw what rows are compared with, if known."""
    (name, level), handles = reference, dict[str, Any]()
    if level is not None and not math.isnan(level):
        handles[name] = ax.axvline(level, color=ink(), lw=1, ls="--", zorder=0)
    for words, fill in zip(told, (blue(), paper()), strict=False):
        handles[words] = ax.plot([], [], "o", mfc=fill, color=blue(), ms=6, mew=1.5)[0]
    legend_above(ax, handles, ncols=3)


def _effort(row: Mapping[Any, Any]) -> str:
    """The cost of learning in a few words."""
    if row["status"] == "reference":
        return str(row["reason"])
    calls = [row[f"{kind} calls"] for kind in ("judge", "reflection", "embedding")]
    made = f"{sum(calls)} calls, " if isinstance(calls[0], int) else ""  # else not known
    return f"{made}{row['seconds']:,.1f} s"


@styled()
def plot_slices(
    slices: Any, *, metric: str | None = None, overall: float | None = None, ax: Axes | None = None
) -> Axes:
    """Agreement by slice, or how a judge does against each annotator, with intervals.

    The dashed line is the agreement on all pairs. Where the table tells it (``p_adjusted``), slices
    that differ from the others are drawn filled, and those whose difference may be luck, or is not
    known, hollow.

    Parameters
    ----------
    slices
        What ``workbench.agreement(pairs, by=...)`` gave, or its table: index slice; ``n``, the
        metric, its interval as ``accuracy_low`` and ``accuracy_high``, and where known
        ``p_adjusted`` and ``note``. Or what `workbench.alternative_annotator_test` gave: a row an
        annotator, filled where the judge wins.
    metric
        ``"accuracy"``, ``"kappa"`` or another of the table; by default ``"mean_distance"`` where
        it is there, as on numeric scales, else ``"accuracy"``.
    overall
        The metric on all pairs; that of ``slices`` by default, and no line for a table.
    """
    if isinstance(slices, AlternativeAnnotatorTest):
        return _draw_annotators(slices, ax)
    table = slices if isinstance(slices, pd.DataFrame) else slices.table
    metric = metric or ("mean_distance" if "mean_distance" in table else "accuracy")
    columns = [metric, f"{metric}_low", f"{metric}_high"]
    require_columns(table, "slices", ["n", *columns])
    ax = ax or new_axes(6.8, 1.3 + 0.34 * len(table))[0]
    alpha, tested = 1 - getattr(slices, "confidence", 0.95), "p_adjusted" in table
    _draw_rows(ax, table, columns, table["p_adjusted"] < alpha if tested else True)
    if overall is None and table is not slices:
        overall = getattr(slices, metric, None)
    told = (f"differs (p < {alpha:.2g}, adjusted)", "may be luck") if tested else ()
    _add_legend(ax, told, ("all pairs", overall))
    ax.margins(x=0.05)
    of = f" by {literal(slices.by, 40)}" if table is not slices else ""
    ax.set_xlabel(f"{metric.replace('_', ' ')}{of}, with interval")
    return ax


def _draw_annotators(test: AlternativeAnnotatorTest, ax: Axes | None) -> Axes:
    ax = ax or new_axes(6.8, 1.5 + 0.34 * len(test.table))[0]
    columns = ["judge_advantage", "judge_advantage_low", "judge_advantage_high"]
    _draw_rows(ax, test.table, columns, test.table["rejected"])
    _add_legend(ax, ("the judge wins", "it does not, or is not tested"))
    ax.set_xlim(0, 1.01)
    ax.set_xlabel(
        "share of items on which the judge is as near to the others\n"
        f"(winning rate {figure(test.winning_rate)}, epsilon {test.epsilon:g})"
    )
    return ax


@styled()
def plot_monitor(monitored: Monitored, *, ax: Axes | None = None) -> Axes:
    """Agreement with people and the shift of verdicts, week by week.

    Points are accuracy, or the mean distance of numbers, with its interval, filled where the week
    differs from the others by more than luck. Bars are how far the verdicts of the week are from
    those of all other weeks.
    """
    table = monitored.table
    ax = ax or new_axes(min(max(4.5, 2.2 + 0.8 * len(table)), 14.0), 3.4)[0]
    places, colour = np.arange(len(table)), blue()
    shifts = ax.bar(places, table["shift"].fillna(0.0), width=0.5, color=BELOW, alpha=0.45)
    measure = "mean_distance" if "mean_distance" in table else "accuracy"
    values, low, high = (table[f"{measure}{end}"] for end in ("", "_low", "_high"))
    ax.vlines(places, low.astype(float), high.astype(float), color=colour, lw=2)
    luck = ~(table["p_adjusted"] < 1 - monitored.confidence).to_numpy()
    look: dict[str, Any] = {"ls": "", "marker": "o", "color": colour, "mew": 1.5, "ms": 6}
    (points,) = ax.plot(places[~luck], values[~luck], **look)
    ax.plot(places[luck], values[luck], mfc=paper(), **look)
    handles = {measure.replace("_", " "): points, "shift of verdicts": shifts}
    if monitored.agreement is not None and measure == "accuracy":
        overall = monitored.agreement.accuracy
        handles["all weeks"] = ax.axhline(overall, color=ink(), lw=1, ls="--", zorder=0)
    step = math.ceil(len(table) / 40) or 1
    names = [f"{week} ({n:,})" for week, n in table["labelled"].items()]
    name_columns(ax, places[::step], names[::step], width=11)
    ax.set(ylim=(0, 1.02), xlabel="week (labels)")
    legend_above(ax, handles, ncols=3)
    return ax


@styled()
def plot_balance(pairs: Pairs, *, ax: Axes | None = None) -> Axes:
    """How often people gave each label, beside how often the judge did.

    Of two classes at least 30 % each are advised; of more, as much of an even share (60 % of it).
    Classes below that are drawn in another colour.
    """
    found = agreement(pairs, resamples=2)
    counts = found.confusion.reindex(order_of(found)).sum(axis=1)
    shares = found.class_shares.reindex(order_of(found))
    ax = ax or new_axes(6.4, 1.3 + 0.42 * len(counts))[0]
    advised, rows = 0.6 / max(len(counts), 1), np.arange(len(counts))
    colours = [BELOW if share < advised else AFTER for share in shares["human"]]
    ax.barh(rows, shares["human"], height=0.62, color=colours)
    look: dict[str, Any] = {"mfc": "none", "mec": ink(), "mew": 1.3, "ms": 7, "clip_on": False}
    handles = {
        "human labels": Rectangle((0, 0), 1, 1, color=AFTER),
        "judge's verdicts": ax.plot(shares["judge"], rows, "o", **look)[0],
        f"{advised:.0%} of labels advised": ax.axvline(advised, color=ink(), lw=1, ls="--"),
    }
    bare_rows(ax, [f"{literal(v, 22)} ({c})" for v, c in counts.items()])
    ax.spines["left"].set_visible(True)
    ax.set_xlim(0, min(1.0, max(0.5, 1.1 * float(shares.to_numpy().max(initial=0)))))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel(f"share of {counted(found.n, 'pair')}")
    legend_above(ax, handles)
    return ax


@styled()
def plot_ratings(pairs: Pairs, *, ax: Axes | None = None) -> Axes:
    """Human label against verdict on an ordinal or numeric scale, with the line of equal ratings.

    Up to 20 levels each are circles, whose area is the number of pairs. On finer scales each pair
    is a point, and more than 500 pairs are counted in hexagons. Verdicts above the line are higher
    than people's.
    """
    scale = pairs.scale
    one_of("the scale of pairs", scale.kind, ["ordinal", "numeric"])
    is_ordinal = scale.kind == "ordinal"
    both = np.array([[float(scale.rank(v)) for v in pairs.table[s]] for s in ("human", "judge")])
    ranks: Any = [float(scale.rank(v)) for v in scale.values] if is_ordinal else both
    levels = np.unique(ranks)
    are_few = is_ordinal or levels.size < min(21, len(pairs))
    room = (18, 2) if levels.size <= 14 else (30, 1)
    names = [literal(value, *room) for value in scale.values] if is_ordinal else []
    side = min(max(4.6, 0.7 * levels.size), 6.5) if are_few else 5.0
    # Long names have their room beside the circles, whose counts would run into each other.
    longest = max(map(len, "\n".join(names).split("\n")))
    side = min(side + 0.13 * max(0, longest - 6), 7.7)
    ax = ax or new_axes(side + 0.7, side)[0]
    low, high = (levels[0], levels[-1]) if levels.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.5
    if are_few:
        margin = max(margin, 0.55 * (high - low) / max(levels.size - 1, 1))
        _draw_circles(ax, both, len(levels))
    elif len(pairs) <= 500:
        ax.plot(*both, "o", color=blue(), alpha=0.5, ms=5, mew=0)
    else:
        _draw_density(ax, both)
    if is_ordinal:
        name_columns(ax, levels, scale.values, *room)
        ax.set_yticks(levels, names)
    elif are_few:
        ax.locator_params(integer=True)
    ends = (low - margin, high + margin)
    ax.plot(ends, ends, color=ink(), lw=1, ls="--", alpha=0.5, zorder=0.5)
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="human", ylabel="judge")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"{literal(pairs.name, 60)}, {counted(len(pairs), 'pair')}")
    return ax


def _draw_circles(ax: Axes, both: Any, levels: int) -> None:
    places, counts = np.unique(both.T, axis=0, return_counts=True)
    most, widest = counts.max(initial=1), 260 / max(levels, 3)  # points: neighbours do not touch
    look: dict[str, Any] = {"color": blue(), "alpha": 0.4, "lw": 0}
    x_values, y_values = places.T
    ax.scatter(x_values, y_values, s=np.maximum(counts / most * widest**2, 5), zorder=2, **look)
    for (x, y), n in zip(places, counts, strict=True):
        size = 9 if levels <= 7 else 7 if levels <= 12 else 5
        ax.text(x, y, f"{n:,}", size=size, ha="center", va="center", zorder=3)


def _draw_density(ax: Axes, both: Any) -> None:
    faint = 0.75 * np.array(to_rgb(paper())) + 0.25 * np.array(to_rgb(blue()))
    colours = LinearSegmentedColormap.from_list("pairs", [tuple(faint), blue(), ink()])
    drawn = ax.hexbin(*both, gridsize=32, mincnt=1, cmap=colours, norm=LogNorm(), lw=0.2)
    drawn.set_clim(vmin=1)
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.7, label="pairs")
    bar.ax.minorticks_off()
