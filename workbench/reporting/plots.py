"""Pictures of agreement. Every function takes ``ax=None``, returns the Axes and never shows.

Figures come from `workbench.metrics`; nothing is computed here. Colours are safe for
colour-blind readers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.agreement import Agreement, agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.metrics.intervals import Interval, figure
from workbench.reporting.drawing import (
    AFTER,
    BEFORE,
    BELOW,
    MOST_ROWS_WITH_TEXT,
    TINT,
    bare_rows,
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
    write,
    write_cell,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from workbench.alignment.result import OptimizerComparison
    from workbench.pairing.pairs import Pairs


@styled
def plot_confusion(
    agreement_or_pairs: Agreement | Pairs,
    *,
    ax: Axes | None = None,
    normalise: bool = False,
    title: str | None = None,
) -> Axes:
    """Confusion matrix: human labels on rows, the judge's verdicts on columns.

    Each cell holds the count and its share of the row; the tint is the share, so that a rare
    class shows as well as a frequent one. Agreement lies on the outlined diagonal. With more
    than 20 classes the cells have a tint only.

    Parameters
    ----------
    agreement_or_pairs
        What `workbench.agreement` gave, or pairs.
    ax
        Axes to draw on; new ones by default.
    normalise
        Write the share large and the count small instead of the other way round.
    title
        Above the matrix; name, accuracy and kappa by default.
    """
    found = agreement_of(agreement_or_pairs)
    ax = ax or new_axes(*matrix_size(len(found.confusion)))[0]
    if title is None:
        figures = f"accuracy {figure(found.accuracy)}, kappa {figure(found.kappa)}"
        title = f"{literal(found.name, width=60)}\n{figures}"
    _draw_confusion(found, ax, normalise=normalise)
    ax.set_title(title)
    return ax


@styled
def plot_before_after(
    comparison_or_before: Comparison | Agreement | Pairs,
    after: Agreement | Pairs | None = None,
    *,
    axes: Iterable[Axes] | None = None,
    ax: Iterable[Axes] | None = None,
    normalise: bool = False,
) -> npt.NDArray[Any]:
    """Two confusion matrices side by side, with accuracy and kappa and their intervals.

    Parameters
    ----------
    comparison_or_before
        What `workbench.compare` gave, or the agreement (or pairs) before.
    after
        The agreement (or pairs) after, unless a comparison is given.
    axes, ax
        Two Axes to draw on; new ones by default. Both names mean the same.
    normalise
        As in `plot_confusion`.

    Returns
    -------
    Array of the two Axes.

    Raises
    ------
    ArgumentError
        When ``after`` is missing, or not two Axes are given.
    """
    both = both_agreements("plot_before_after", comparison_or_before, after)
    given = axes if axes is not None else ax
    if given is None:
        width, height = matrix_size(len(both[0].confusion))
        given = new_axes(2 * width + 0.3, height + 0.3, count=2)
    drawn = np.asarray(list(given), dtype=object)
    if len(drawn) != 2:
        raise ArgumentError(f"plot_before_after draws on two Axes, got {len(drawn)}.")
    for one, found, name in zip(drawn, both, ("before", "after"), strict=True):
        _draw_confusion(found, one, normalise=normalise)
        one.set_title(title_with_intervals(found, name))
    return drawn


def both_agreements(
    name: str, given: Comparison | Agreement | Pairs, after: Agreement | Pairs | None
) -> list[Agreement]:
    """Return the agreement before and after from the arguments of the picture ``name``."""
    if isinstance(given, Comparison):
        return [given.before, given.after]
    if after is None:
        raise ArgumentError(
            f"{name} needs a comparison, or two agreements: "
            f"{name}(workbench.compare(before, after)) or {name}(a, b)."
        )
    return [agreement_of(given), agreement_of(after)]


def title_with_intervals(found: Agreement, name: str) -> str:
    """Return a title of three lines: name, accuracy and kappa with their intervals."""
    accuracy = figure(found.accuracy, found.accuracy_interval)
    kappa = figure(found.kappa, found.kappa_interval)
    return f"{name}\naccuracy {accuracy}\nkappa {kappa}"


def _draw_confusion(found: Agreement, ax: Axes, *, normalise: bool) -> None:
    order = order_of(found)
    table = found.confusion.loc[order, order]
    shares = found.confusion_shares.loc[order, order].to_numpy()
    with_text = len(table) <= MOST_ROWS_WITH_TEXT
    between = "\n" if with_text else " "
    totals = table.sum(axis=1)
    matrix_axes(
        ax,
        [f"{literal(value, width=18)}{between}({n})" for value, n in totals.items()],
        [literal(value, width=14) for value in table.columns],
    )
    draw_cells(ax, shares)
    if with_text:
        for at, count in np.ndenumerate(table.to_numpy()):
            texts = [str(count), f"{shares[at]:.0%}" if count else ""]
            if normalise and count:
                texts.reverse()
            write_cell(ax, at, *texts, opacity=float(shares[at]))
    outline_diagonal(ax, len(table))
    ax.set_xlabel("judge")
    ax.set_ylabel("human")


def order_of(found: Agreement) -> list[Any]:
    """Return the rows of the confusion matrix in the order in which they are shown."""
    return list(found.scale.shown or found.confusion.index)


@styled
def plot_metrics(
    comparison_or_agreement: Comparison | Agreement,
    *,
    ax: Axes | None = None,
    ceiling: float | AnnotatorAgreement | None = None,
) -> Axes:
    """Accuracy and kappa with their intervals, before and after.

    The accuracy of always answering the most frequent label is marked, and, where given, the
    agreement of people among themselves.

    Parameters
    ----------
    comparison_or_agreement
        What `workbench.compare` or `workbench.agreement` gave.
    ax
        Axes to draw on; new ones by default.
    ceiling
        What `workbench.annotator_agreement` gave, or its ceiling.
    """
    if isinstance(comparison_or_agreement, Comparison):
        judges = {
            "before": (comparison_or_agreement.before, BEFORE, "o", -0.16),
            "after": (comparison_or_agreement.after, AFTER, "D", 0.16),
        }
    else:
        judges = {"judge": (comparison_or_agreement, AFTER, "D", 0.0)}
    first = next(iter(judges.values()))[0]
    names = [n for n in first.figures if n == "accuracy" or n.startswith("kappa")]
    ax = ax or new_axes(6.4, 1.1 + 0.62 * len(names))[0]
    lowest = 0.0
    for label, (found, colour, marker, offset) in judges.items():
        for row, name in enumerate(names):
            value, interval = found.figures[name]
            if math.isnan(value):
                write(ax, 0.02, row + offset, "undefined", color=colour, ha="left")
                continue
            _draw_interval(ax, interval, row + offset, color=colour, lw=2.2)
            ax.plot(value, row + offset, marker, color=colour, ms=6.5, label=label)
            lowest = min(lowest, value, interval.low)
    ceiling = ceiling.ceiling if isinstance(ceiling, AnnotatorAgreement) else ceiling
    levels = {"always the majority label": (first.baseline, ":"), "people": (ceiling, "--")}
    row = names.index("accuracy")
    for label, (level, style) in levels.items():
        if level is not None and not math.isnan(level):
            ax.plot([level] * 2, [row - 0.42, row + 0.42], style, color=ink(), label=label)
    ax.axvline(0, color=ink(), lw=0.6, alpha=0.5)
    bare_rows(ax, names)
    ax.set_xlim(max(-1.0, lowest - 0.03) if lowest < 0 else 0, 1.01)
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    shown = {name: unique[name] for name in (*judges, *levels) if name in unique}
    legend_above(ax, shown, handlelength=1.4, columnspacing=1.4)
    return ax


def _draw_interval(ax: Axes, interval: Interval, row: float, **look: Any) -> None:
    if not math.isnan(interval.low):
        ax.plot(interval, [row] * 2, solid_capstyle="butt", **look)


@styled
def plot_comparison(comparison: OptimizerComparison, *, ax: Axes | None = None) -> Axes:
    """Held-out accuracy of each judge with its interval, and the cost of learning it.

    A row a judge, in the order of the comparison. The dashed line is the original judge's
    accuracy. Judges that differ from it by McNemar's test, adjusted for the number of judges, are
    drawn filled, the others hollow; those that failed say so.

    Parameters
    ----------
    comparison
        What `workbench.compare_optimizers` gave.
    ax
        Axes to draw on; new ones by default.
    """
    table = comparison.table
    ax = ax or new_axes(7.6, 1.2 + 0.5 * len(table))[0]
    rows = list(table.to_dict("index").values())
    for place, row in enumerate(rows):
        if math.isnan(row["accuracy"]):
            text = "failed" if row["status"] == "failed" else "undefined"
            write(ax, 0.01, place, text, color=BELOW, ha="left")
            continue
        colour = ink() if row["status"] == "reference" else AFTER
        _draw_interval(ax, Interval(row["low"], row["high"]), place, color=colour, lw=2)
        # The original itself and the majority label are not tested, so they are filled.
        face = paper() if row["p adjusted"] >= 0.05 else colour
        ax.plot(row["accuracy"], place, "o", color=colour, mfc=face, mew=1.6, ms=7)
    first = rows[0]["accuracy"]
    if not math.isnan(first):
        (filled,) = ax.plot([], [], "o", color=AFTER, ms=7)
        (hollow,) = ax.plot([], [], "o", color=AFTER, mfc=paper(), mew=1.6, ms=7)
        handles = {
            "original judge": ax.axvline(first, color=ink(), lw=1, ls="--", zorder=0),
            "differs from it (p < 0.05, adjusted)": filled,
            "the difference may be luck": hollow,
        }
        legend_above(ax, handles, ncols=3, handlelength=1.4, columnspacing=1.2)
    names = [
        [literal(str(name), 30), literal(_effort(row), 60)]
        for name, row in zip(table.index, rows, strict=True)
    ]
    bare_rows(ax, ["\n".join(filter(None, lines)) for lines in names])
    ax.set_xlim(0, 1.01)
    ax.set_xlabel(f"accuracy on {len(comparison.split.test)} held-out pairs, 95 % interval")
    return ax


def _effort(row: Mapping[Any, Any]) -> str:
    """The cost of learning in a few words."""
    if row["status"] == "reference":
        return str(row["reason"])
    parts = []
    calls = [row[f"{kind} calls"] for kind in ("judge", "reflection", "embedding")]
    if isinstance(calls[0], int):  # else none are known
        known = f" (+ {row['known']} known)" if row["known"] else ""
        parts.append(f"{sum(calls)} calls{known}")
    if (seconds := row["seconds"]) == seconds:
        parts.append(f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s")
    return ", ".join(parts)


@styled
def plot_balance(pairs: Pairs, *, ax: Axes | None = None) -> Axes:
    """How often people gave each label, beside how often the judge did.

    Of two classes at least 30 % each are advised; of more, as much of an even share (60 % of it).
    Classes below that are drawn in another colour.

    Parameters
    ----------
    pairs
        Verdicts and labels.
    ax
        Axes to draw on; new ones by default.
    """
    from matplotlib.patches import Rectangle

    found = agreement(pairs, resamples=2)
    table, shares = found.confusion.loc[order_of(found)], found.class_shares.loc[order_of(found)]
    ax = ax or new_axes(6.4, 1.3 + 0.42 * len(table))[0]
    advised, rows = 0.6 / len(table), np.arange(len(table))
    colours = [BELOW if share < advised else AFTER for share in shares["human"]]
    ax.barh(rows, shares["human"], height=0.62, color=colours)
    (dots,) = ax.plot(
        shares["judge"], rows, "o", mfc="none", mec=ink(), mew=1.3, ms=7, clip_on=False
    )
    handles = {
        "human labels": Rectangle((0, 0), 1, 1, color=AFTER),
        "judge's verdicts": dots,
        f"{advised:.0%} of labels advised": ax.axvline(advised, color=ink(), lw=1, ls="--"),
    }
    counts = table.sum(axis=1)
    ax.set_yticks(rows, [f"{literal(v, 22)} ({c})" for v, c in counts.items()])
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(0, min(1.0, max(0.5, 1.1 * float(shares.to_numpy().max(initial=0)))))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.tick_params(left=False)
    ax.set_xlabel(f"share of {counted(found.n, 'pair')}")
    legend_above(ax, handles, handlelength=1.6)
    return ax


@styled
def plot_annotators(annotators: AnnotatorAgreement, *, ax: Axes | None = None) -> Axes:
    """Cohen's kappa between each two annotators, with the number of items both labelled.

    Values below 0, worse than chance, are tinted in another colour.

    Parameters
    ----------
    annotators
        What `workbench.annotator_agreement` gave.
    ax
        Axes to draw on; new ones by default.
    """
    kappa, n = annotators.matrix("kappa").to_numpy(), annotators.matrix("n").to_numpy()
    size = len(kappa)
    ax = ax or new_axes(*matrix_size(size))[0]
    opacity = np.clip(np.abs(np.nan_to_num(kappa)), 0, 1)
    names = annotators.annotators
    matrix_axes(ax, [literal(v, width=18) for v in names], [literal(v, width=14) for v in names])
    draw_cells(ax, opacity, np.where(kappa < 0, BELOW, TINT))
    for at, value in np.ndenumerate(kappa):
        if at[0] != at[1] and size <= MOST_ROWS_WITH_TEXT:
            large = "undefined" if math.isnan(value) else f"{value:.2f}"
            tint = BELOW if value < 0 else TINT
            write_cell(ax, at, large, f"n = {int(n[at])}", opacity=float(opacity[at]), tint=tint)
    if size < 2:
        write(ax, 0, 0, "needs two annotators")
    ax.set_title(
        f"Cohen's kappa of annotators\nKrippendorff's alpha {figure(annotators.alpha)}, "
        f"ceiling {figure(annotators.ceiling)}"
    )
    return ax


def agreement_of(given: Agreement | Pairs) -> Agreement:
    """Return an agreement as it is, and that of pairs."""
    if isinstance(given, Agreement):
        return given
    if hasattr(given, "table") and hasattr(given, "scale"):
        return agreement(given)
    raise ArgumentError(
        f"Got {type(given).__name__} where an agreement or pairs are drawn. "
        "workbench.pair(judge) gives pairs, workbench.agreement(pairs) an agreement."
    )
