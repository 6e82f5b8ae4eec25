"""Pictures of matrices: confusion, its change, and annotators among themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.patches import Rectangle

from workbench.errors import ArgumentError
from workbench.formatting import counted, written
from workbench.metrics.agreement import Agreement, agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.metrics.intervals import figure
from workbench.pairing.pairs import Pairs
from workbench.reporting.drawing import (
    BELOW,
    TINT,
    ink,
    literal,
    name_columns,
    new_axes,
    order_of,
    styled,
)

WIDEST: Final = 12.0  # inches of a picture that can be read in a notebook


@styled()
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
    normalise
        Write the share large and the count small instead of the other way round.
    title
        Above the matrix; name, accuracy and kappa by default, or on numeric scales mean distance
        and Pearson's correlation.
    """
    found = agreement_of(agreement_or_pairs)
    order = order_of(found)
    if title is None:
        figures = [f"{name} {figure(value)}" for name, (value, _) in found.headline.items()]
        title = _title(order, found.name, ", ".join(figures))
    table = found.confusion.reindex(index=order, columns=order)
    counts = table.to_numpy()
    shares = found.confusion_shares.reindex(index=order, columns=order).to_numpy()

    def text(at: tuple[int, ...]) -> tuple[str, str]:
        count, share = f"{counts[at]:,}", f"{shares[at]:.0%}" if counts[at] else ""
        return (share, count) if normalise and share else (count, share)

    ax = _draw_matrix(ax, order, shares, text, totals=table.sum(axis=1).tolist())
    ax.set(xlabel="judge", ylabel="human", title=title)
    return ax


@styled()
def plot_before_after(
    comparison_or_before: Comparison | Agreement | Pairs,
    after: Agreement | Pairs | None = None,
    *,
    axes: Iterable[Axes] | None = None,
    ax: Iterable[Axes] | None = None,
    normalise: bool = False,
) -> npt.NDArray[Any]:
    """Two confusion matrices, with two figures and their intervals above each.

    Returns an array of the two Axes, side by side, or one above the other where a notebook is not
    wide enough.

    Parameters
    ----------
    comparison_or_before, after
        A comparison alone, or agreements (or pairs) before and after.
    axes, ax
        Two Axes to draw on; new ones by default. Both names mean the same.
    normalise
        As in `plot_confusion`.
    """
    both = _both("plot_before_after", comparison_or_before, after)
    given = axes if axes is not None else ax
    if given is None:
        width, height = matrix_size(both[0].confusion.index)
        wide = 2 * width + 0.3
        if wide <= WIDEST:
            given = new_axes(wide, height + 0.3, columns=2)
        else:
            given = new_axes(width, 2 * height + 0.6, rows=2)
    drawn = np.asarray(list(given), dtype=object)
    for one, found, name in zip(drawn, both, ("before", "after"), strict=True):
        title = title_with_intervals(found, name)
        plot_confusion(found, ax=one, normalise=normalise, title=title)
    return drawn


@styled()
def plot_difference(
    comparison_or_before: Comparison | Agreement | Pairs,
    after: Agreement | Pairs | None = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Confusion matrix after minus before: which verdicts there are more of, and which fewer.

    Each cell holds the change of its count and of its share of the row; blue cells grew, orange
    ones shrank, and the cell that changed most (by share of its row) is the most opaque. The
    labels must be the same before and after, and numbers in the same bins.

    Parameters
    ----------
    comparison_or_before, after
        As in `plot_before_after`.
    title
        Above the matrix; name and number of pairs by default.
    """
    old, new = _both("plot_difference", comparison_or_before, after)
    order = list(dict.fromkeys([*order_of(old), *order_of(new)]))
    if old.scale.kind == "numeric" and not any(isinstance(value, str) for value in order):
        order = sorted(order)
    tables = [one.confusion.reindex(index=order, columns=order, fill_value=0) for one in (old, new)]
    totals = tables[0].sum(axis=1)
    if not totals.equals(tables[1].sum(axis=1)):
        raise ArgumentError(
            "The labels before and after are not the same, or numbers are in other bins. Compare "
            "on the same traces: plot_difference(workbench.compare(before, after)); "
            "workbench.plot_ratings(pairs) shows numbers."
        )
    change = (tables[1] - tables[0]).to_numpy()
    shares = change / np.maximum(totals.to_numpy(), 1)[:, None]
    tinted = 0.85 * shares / max(np.abs(shares).max(initial=0), 1e-9)

    def text(at: tuple[int, ...]) -> tuple[str, str]:
        return (f"{change[at]:+,d}", f"{shares[at]:+.0%}") if change[at] else ("0", "")

    ax = _draw_matrix(ax, order, tinted, text, totals=totals.tolist())
    if title is None:
        what = (f"after minus before, {counted(old.n, 'pair')}", "blue: more, orange: fewer")
        title = _title(order, old.name, *what)
    ax.set(xlabel="judge", ylabel="human", title=title)
    return ax


@styled()
def plot_annotators(annotators: AnnotatorAgreement, *, ax: Axes | None = None) -> Axes:
    """Cohen's kappa between each two annotators, with the number of items both labelled.

    Values below 0, worse than chance, are tinted in another colour.
    """
    kappa, n = annotators.matrix("kappa").to_numpy(), annotators.matrix("n").to_numpy()

    def text(at: tuple[int, ...]) -> tuple[str, str]:
        large = "undefined" if math.isnan(kappa[at]) else f"{kappa[at]:.2f}"
        return ("", "") if at[0] == at[1] else (large, f"n = {int(n[at])}")

    tinted = np.clip(np.nan_to_num(kappa), -1, 1)
    ax = _draw_matrix(ax, annotators.annotators, tinted, text)
    if len(kappa) < 2:
        ax.text(0, 0, "needs two annotators", ha="center", va="center")
    ax.set_title(
        f"Cohen's kappa of annotators\nKrippendorff's alpha {figure(annotators.alpha)}\n"
        f"ceiling {figure(annotators.ceiling)}"
    )
    return ax


def title_with_intervals(found: Agreement, name: str) -> str:
    """Return a title of three lines: the name, and two figures with their intervals."""
    return "\n".join([name, *(f"{what} {figure(*one)}" for what, one in found.headline.items())])


def _title(order: Sequence[Any], *parts: str) -> str:
    """Put each part of a title on its own line, or on two where the matrix is narrow."""
    return "\n".join(literal(part, 32 if len(order) < 4 else 60) for part in parts)


def _both(
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


def agreement_of(given: Agreement | Pairs) -> Agreement:
    """Return the agreement of what is to be drawn."""
    return given if isinstance(given, Agreement) else agreement(given)


# -- drawing --------------------------------------------------------------------------------


def matrix_size(names: Collection[Any]) -> tuple[float, float]:
    """Return width and height in inches of a picture of a square matrix with these rows."""
    size, longest = len(names), max((len(written(name)) for name in names), default=0)
    # Below a small matrix long names, which are tilted, take more room than its columns leave.
    cells = 0.85 * size + 0.1 * max(0, min(longest, 28) - 16)
    side = max(2.5, min(6.5, cells), min(14.0, 0.16 * size))
    return side + 1.4, side + 1.2


def _draw_matrix(
    ax: Axes | None,
    names: Sequence[Any],
    shares: npt.NDArray[Any],
    text: Callable[[tuple[int, ...]], tuple[str, str]],
    *,
    totals: Sequence[int] | None = None,
) -> Axes:
    """Draw a square matrix: cells tinted by their share, in another colour where it is below 0.

    ``text`` returns the large and the small text of the cell at a row and column; of more than 20
    rows the cells have none. ``totals`` stand behind the labels of rows whose diagonal is framed.
    """
    size, is_small = len(names), len(names) <= 20
    ax = ax or new_axes(*matrix_size(names))[0]
    # In two lines where there is room for them.
    rows = [literal(name, *((18, 2) if size <= 14 else (30, 1))) for name in names]
    if totals is not None:
        between = "\n" if size <= 7 else " "
        rows = [f"{row}{between}({n:,})" for row, n in zip(rows, totals, strict=True)]
    step = math.ceil(size / 60) or 1
    ax.set(xlim=(-0.52, size - 0.48), ylim=(size - 0.48, -0.52), aspect="equal")
    ax.set_yticks(range(0, size, step), rows[::step])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    faces = to_rgba_array(np.where(shares < 0, BELOW, TINT).ravel())
    faces[:, 3] = np.abs(shares).ravel()
    if is_small:
        name_columns(ax, range(size), names, width=14)
        for at in np.ndindex(size, size):
            # Above 0.78 white has more contrast on the tint than black, by WCAG 2.2.
            look = {"color": "white" if shares[at] > 0.78 else ink()}
            look |= {} if shares[at] else {"alpha": 0.6}
            _write_cell(ax, at, *text(at), size=size, **look)
    else:
        columns = [literal(name, 28, lines=1) for name in names[::step]]
        ax.set_xticks(range(0, size, step), columns, rotation=90)
        ax.tick_params(labelsize=7)
    # A hairline keeps empty cells visible on any background.
    grid: Any = np.arange(size + 1) - 0.5
    edges = to_rgba(ink(), 0.25) if is_small else "none"
    ax.pcolormesh(grid, grid, faces.reshape(size, size, 4), edgecolors=edges, lw=0.5)
    for i in range(size if totals is not None else 0):
        frame = Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, ec=ink(), lw=1.1, zorder=3)
        ax.add_patch(frame)
    return ax


def _write_cell(
    ax: Axes, at: tuple[int, ...], large: str, small: str, *, size: int, **look: Any
) -> None:
    points = 13 if size <= 4 else 10.5 if size <= 7 else 8
    points = min(0.8 * points, 10.5) if len(large) > 6 else points
    look |= {"xy": at[::-1], "textcoords": "offset points", "ha": "center"}
    ax.annotate(large, xytext=(0, 0), va="bottom" if small else "center", size=points, **look)
    if small:
        ax.annotate(small, xytext=(0, -3), va="top", size=max(6.5, points * 0.7), **look)
