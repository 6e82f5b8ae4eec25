"""Pictures of agreement. Every function takes ``ax=None``, returns the Axes and never shows.

Colours are safe for colour-blind readers. Text and lines take the colours of the active matplotlib
style and cells are tinted over its background, so that light and dark styles both work. Labels
are drawn to the letter: ``$`` starts no formula.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from workbench.errors import ArgumentError
from workbench.metrics.agreement import Agreement, agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.metrics.intervals import figure

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from matplotlib.axes import Axes

    from workbench.alignment.optimizer_comparison import Entry, OptimizerComparison
    from workbench.pairing.pairs import Pairs


# From the palette of Okabe and Ito, which stays apart for all common kinds of colour blindness.
BEFORE, AFTER, BELOW = "#D55E00", "#0072B2", "#D55E00"

TINT = "#1B5393"
"""Cells are tinted with this, the more opaque the greater their share."""


_WHITE_TEXT_FROM = 0.7
"""From this opacity of the tint on, white text is easier to read than the style's own."""


_STYLE = {
    "axes.titlesize": "medium",
    "axes.titleweight": "normal",
    "axes.grid": False,
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": "small",
}


_P = ParamSpec("_P")

_R = TypeVar("_R")


def _styled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Draw in the module's style and leave the user's as it is."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib as mpl

        settings: Any = mpl.rcParams  # its keys are checked when they are set
        # Not rc_context: it would also undo what a backend sets when the first figure loads it,
        # and Jupyter's would then show that figure and none of the later ones.
        before = {name: settings[name] for name in _STYLE}
        settings.update(_STYLE)
        try:
            return function(*args, **kwargs)
        finally:
            settings.update(before)

    return wrapper


@_styled
def plot_confusion(
    agreement_or_pairs: Agreement | Pairs,
    *,
    ax: Axes | None = None,
    normalise: bool = False,
    title: str | None = None,
) -> Axes:
    """Confusion matrix: human labels on rows, the judge's verdicts on columns.

    Each cell holds the count and its share of the row; the tint is the share, so that a rare
    class shows as well as a frequent one. Agreement lies on the outlined diagonal.

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
    found = _agreement(agreement_or_pairs)
    table = found.confusion
    ax = ax or _new_axes(*_matrix_size(len(table)))
    if title is None:
        figures = f"accuracy {figure(found.accuracy)}, kappa {figure(found.kappa)}"
        title = f"{_literal(found.name, width=60)}\n{figures}"
    _draw_confusion(table, ax, normalise=normalise)
    ax.set_title(title)
    return ax


@_styled
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
    if isinstance(comparison_or_before, Comparison):
        both = [comparison_or_before.before, comparison_or_before.after]
    elif after is None:
        raise ArgumentError(
            "plot_before_after needs a comparison, or two agreements: "
            "plot_before_after(workbench.compare(before, after)) or plot_before_after(a, b)."
        )
    else:
        both = [_agreement(comparison_or_before), _agreement(after)]
    given = axes if axes is not None else ax
    if given is None:
        width, height = _matrix_size(len(both[0].confusion))
        drawn = _new_axes_row(2, 2 * width + 0.3, height + 0.3)
    else:
        drawn = np.asarray(list(given), dtype=object)
    if len(drawn) != 2:
        raise ArgumentError(f"plot_before_after draws on two Axes, got {len(drawn)}.")
    for one, found, name in zip(drawn, both, ("before", "after"), strict=True):
        _draw_confusion(found.confusion, one, normalise=normalise)
        accuracy = figure(found.accuracy, found.accuracy_interval)
        kappa = figure(found.kappa, found.kappa_interval)
        one.set_title(f"{name}\naccuracy {accuracy}\nkappa {kappa}")
    return drawn


@_styled
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
            "before": (comparison_or_agreement.before, BEFORE, "o"),
            "after": (comparison_or_agreement.after, AFTER, "D"),
        }
    else:
        judges = {"judge": (comparison_or_agreement, AFTER, "D")}
    first = next(iter(judges.values()))[0]
    names = [n for n in first.figures if n == "accuracy" or n.startswith("kappa")]
    ax = ax or _new_axes(6.4, 1.1 + 0.62 * len(names))
    ceiling = ceiling.ceiling if isinstance(ceiling, AnnotatorAgreement) else ceiling
    lowest = 0.0
    for k, (label, (found, colour, marker)) in enumerate(judges.items()):
        offset = (k - (len(judges) - 1) / 2) * 0.32
        for row, name in enumerate(names):
            value, interval = found.figures[name]
            if math.isnan(value):
                _say(ax, 0.02, row + offset, "undefined", color=colour, ha="left")
                continue
            if not math.isnan(interval.low):
                ax.plot(interval, [row + offset] * 2, color=colour, lw=2.2, solid_capstyle="butt")
                lowest = min(lowest, interval.low)
            ax.plot(value, row + offset, marker, color=colour, ms=6.5, label=label)
            lowest = min(lowest, value)
    accuracy = names.index("accuracy")
    for level, text, style in ((first.baseline, "majority", ":"), (ceiling, "people", "--")):
        if level is not None and not math.isnan(level):
            line = ax.plot([level] * 2, [accuracy - 0.42, accuracy + 0.42], style, color=_ink())
            line[0].set_label({"majority": "always the majority label", "people": "people"}[text])
    ax.axvline(0, color=_ink(), lw=0.6, alpha=0.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.set_xlim(max(-1.0, lowest - 0.03) if lowest < 0 else 0, 1.01)
    ax.tick_params(left=False)
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    order = [n for n in (*judges, "always the majority label", "people") if n in unique]
    ax.legend(
        [unique[n] for n in order],
        order,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        handlelength=1.4,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    return ax


@_styled
def plot_comparison(comparison: OptimizerComparison, *, ax: Axes | None = None) -> Axes:
    """Held-out accuracy of each judge with its interval, and what learning it took.

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
    entries = comparison.entries
    ax = ax or _new_axes(7.6, 1.2 + 0.5 * len(entries))
    for row, entry in enumerate(entries):
        found = entry.agreement
        if found is None or math.isnan(found.accuracy):
            _say(ax, 0.01, row, "failed" if found is None else "undefined", color=BELOW, ha="left")
            continue
        colour = _ink() if entry.status == "reference" else AFTER
        ax.plot(found.accuracy_interval, [row] * 2, color=colour, lw=2, solid_capstyle="butt")
        # The original itself and the majority label are not put to the test.
        face = _paper() if entry.p_adjusted >= 0.05 else colour
        ax.plot(found.accuracy, row, "o", color=colour, mfc=face, mew=1.6, ms=7)
    first = entries[0].agreement
    if first is not None and not math.isnan(first.accuracy):
        line = ax.axvline(first.accuracy, color=_ink(), lw=1, ls="--", zorder=0)
        (filled,) = ax.plot([], [], "o", color=AFTER, ms=7)
        (hollow,) = ax.plot([], [], "o", color=AFTER, mfc=_paper(), mew=1.6, ms=7)
        ax.legend(
            [line, filled, hollow],
            [
                "original judge",
                "differs from it (p < 0.05, adjusted)",
                "the difference may be luck",
            ],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3,
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
    labels = [
        "\n".join(filter(None, [_literal(entry.name, 30), _literal(_effort(entry), 60)]))
        for entry in entries
    ]
    ax.set_yticks(range(len(entries)), labels)
    ax.set_ylim(len(entries) - 0.45, -0.55)
    ax.set_xlim(0, 1.01)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(left=False)
    held_out = len(comparison.split.test)
    ax.set_xlabel(f"accuracy on {held_out} held-out pairs, 95 % interval")
    return ax


def _effort(entry: Entry) -> str:
    """What learning took, in a few words."""
    if entry.status == "reference":
        return entry.reason
    parts = []
    if entry.calls is not None:
        others = (entry.reflection_calls or 0) + (entry.embedding_calls or 0)
        known = f" (+ {entry.known} known)" if entry.known else ""
        parts.append(f"{entry.calls + others} calls{known}")
    if entry.seconds is not None:
        parts.append(f"{entry.seconds:.0f} s" if entry.seconds >= 10 else f"{entry.seconds:.1f} s")
    return ", ".join(parts)


@_styled
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

    table = agreement(pairs, resamples=2).confusion
    counts, n = table.sum(axis=1).to_numpy(), int(table.to_numpy().sum())
    ax = ax or _new_axes(6.4, 1.3 + 0.42 * len(table))
    shares = counts / n if n else np.zeros(len(table))
    judged = table.sum(axis=0).to_numpy() / n if n else shares
    advised = 0.6 / len(table)
    rows = np.arange(len(table))
    colours = [BELOW if share < advised else AFTER for share in shares]
    ax.barh(rows, shares, height=0.62, color=colours)
    labelled = Rectangle((0, 0), 1, 1, color=AFTER)
    (dots,) = ax.plot(judged, rows, "o", mfc="none", mec=_ink(), mew=1.3, ms=7, clip_on=False)
    line = ax.axvline(advised, color=_ink(), lw=1, ls="--")
    labels = [f"{_literal(v, 22)} ({c})" for v, c in zip(table.index, counts, strict=True)]
    ax.set_yticks(rows, labels)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(0, min(1.0, max(0.5, 1.1 * float(np.max([*shares, *judged], initial=0)))))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.tick_params(left=False)
    ax.set_xlabel(f"share of {n} pairs")
    ax.legend(
        [labelled, dots, line],
        ["human labels", "judge's verdicts", f"{advised:.0%} of labels advised"],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        handlelength=1.6,
        borderaxespad=0.2,
    )
    return ax


@_styled
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
    ax = ax or _new_axes(*_matrix_size(size))
    for i in range(size):
        for j in range(size):
            value, items = float(kappa[i, j]), n[i, j]
            if i == j:
                _tint(ax, i, j, 0.0)
                continue
            defined = not math.isnan(value)
            opacity = min(1.0, abs(value)) if defined else 0.0
            colour = BELOW if defined and value < 0 else TINT
            _tint(ax, i, j, opacity, colour)
            large = f"{value:.2f}" if defined else "undefined"
            _cell_text(ax, i, j, large, f"n = {int(items)}", opacity, size, colour=colour)
    if size < 2:
        _say(ax, 0, 0, "needs two annotators")
    _matrix_axes(ax, list(annotators.annotators), list(annotators.annotators))
    ax.set_title(
        f"Cohen's kappa of annotators\nKrippendorff's alpha {figure(annotators.alpha)}, "
        f"ceiling {figure(annotators.ceiling)}"
    )
    return ax


# -- matrices ---------------------------------------------------------------------------------


def _draw_confusion(table: pd.DataFrame, ax: Axes, *, normalise: bool) -> None:
    from matplotlib.patches import Rectangle

    counts = table.to_numpy()
    size = len(counts)
    for i in range(size):
        total = int(counts[i].sum())
        for j in range(size):
            share = counts[i, j] / total if total else 0.0
            _tint(ax, i, j, share)
            count, percent = str(counts[i, j]), f"{share:.0%}" if counts[i, j] else ""
            large, small = (percent, count) if normalise and percent else (count, percent)
            _cell_text(ax, i, j, large, small, share, size, faint=counts[i, j] == 0)
        ax.add_patch(
            Rectangle((i - 0.48, i - 0.48), 0.96, 0.96, fill=False, ec=_ink(), lw=1.1, zorder=3)
        )
    totals = counts.sum(axis=1)
    _matrix_axes(
        ax,
        [f"{_literal(v, width=18)}\n({t})" for v, t in zip(table.index, totals, strict=True)],
        [_literal(v, width=14) for v in table.columns],
        literal=True,
    )
    ax.set_xlabel("judge")
    ax.set_ylabel("human")


def _tint(ax: Axes, row: int, column: int, opacity: float, colour: str = TINT) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(
        Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fc=colour, alpha=opacity, ec="none")
    )
    # A hairline keeps empty cells visible on any background.
    ax.add_patch(
        Rectangle(
            (column - 0.48, row - 0.48), 0.96, 0.96, fill=False, ec=_ink(), lw=0.5, alpha=0.25
        )
    )


def _cell_text(
    ax: Axes,
    row: int,
    column: int,
    large: str,
    small: str,
    opacity: float,
    size: int,
    *,
    colour: str = TINT,
    faint: bool = False,
) -> None:
    white = opacity >= _WHITE_TEXT_FROM and colour == TINT
    look: dict[str, Any] = {"color": "white" if white else _ink()}
    if faint:
        look["alpha"] = 0.55
    points = 13 if size <= 4 else 10.5 if size <= 7 else 8
    points = min(points, 10.5) if len(large) > 6 else points
    look |= {"xy": (column, row), "textcoords": "offset points", "ha": "center"}
    ax.annotate(large, xytext=(0, 0), va="bottom" if small else "center", size=points, **look)
    ax.annotate(small, xytext=(0, -3), va="top", size=max(6.5, points * 0.7), **look)


def _matrix_axes(ax: Axes, rows: list[Any], columns: list[Any], *, literal: bool = False) -> None:
    if not literal:
        rows = [_literal(v, width=18) for v in rows]
        columns = [_literal(v, width=14) for v in columns]
    ax.set_xlim(-0.52, len(columns) - 0.48)
    ax.set_ylim(len(rows) - 0.48, -0.52)
    ax.set_aspect("equal")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)
    longest = max((len(line) for label in columns for line in label.split("\n")), default=0)
    if longest * len(columns) > 38 and len(columns) > 2:
        ax.tick_params(axis="x", rotation=40)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _matrix_size(size: int) -> tuple[float, float]:
    side = max(2.5, min(6.5, 0.85 * size))
    return side + 1.4, side + 1.2


# -- small things -----------------------------------------------------------------------------


def _agreement(given: Agreement | Pairs) -> Agreement:
    if isinstance(given, Agreement):
        return given
    if hasattr(given, "table") and hasattr(given, "scale"):
        return agreement(given)
    raise ArgumentError(
        f"Got {type(given).__name__} where an agreement or pairs are drawn. "
        "workbench.pair(judge) gives pairs, workbench.agreement(pairs) an agreement."
    )


def _new_axes(width: float, height: float) -> Axes:
    axes: Axes = _new_axes_row(1, width, height)[0]
    return axes


def _new_axes_row(count: int, width: float, height: float) -> npt.NDArray[Any]:
    import matplotlib.pyplot as plt

    layout = {"w_pad": 0.1, "h_pad": 0.1}
    fig, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False)
    fig.set_layout_engine("constrained", **layout)
    return np.asarray(axes[0])


def _paper() -> str:
    """The active style's colour behind a picture."""
    import matplotlib as mpl

    return str(mpl.rcParams["axes.facecolor"])


def _ink() -> str:
    """The active style's colour of text."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def _say(ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
    ax.text(x, y, text, **{"ha": "center", "va": "center", **look})


def _literal(value: Any, width: int) -> str:
    """A label as it is drawn: at most two lines, no control characters, ``$`` as itself."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    lines = textwrap.wrap(text, width, max_lines=2, placeholder=" …")
    return "\n".join(lines).replace("$", r"\$")


def as_svg(draw: Callable[[Axes], Any], *, width: float, height: float, description: str) -> str:
    """A picture as an ``<svg>`` element that takes on the theme of the page it is put into.

    Text and lines have the page's text colour, the background is transparent, all text is
    escaped, and it scales down to the width at hand.

    Parameters
    ----------
    draw
        Called with the Axes to draw on, for instance ``lambda ax: plot_balance(pairs, ax=ax)``.
    width, height
        In inches.
    description
        What screen readers say.
    """
    import io
    import re
    import warnings
    from html import escape

    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink = "#010203"  # stands for the page's text colour until the end
    colours = ("text", "axes.label", "xtick.", "ytick.", "axes.edge")
    style: dict[str, Any] = {
        f"{part}{'.color' if part == 'text' else 'color'}": ink for part in colours
    }
    # Equal pictures are equal files; different ones on a page share no id.
    style |= {"svg.fonttype": "none", "svg.hashsalt": description}
    buffer = io.StringIO()
    with mpl.rc_context(style), warnings.catch_warnings():  # type: ignore[arg-type]  # as above
        # The reader's browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        fig = Figure(figsize=(width, height))
        fig.set_layout_engine("constrained")
        draw(fig.subplots())
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    inside = text[text.index("<svg") :].split(">", 1)[1]
    # Names of groups and lines recur in every picture, and a page may have each but once.
    inside = re.sub(r'(<\w+) id="[\w.]+_\d+"', r"\1", inside).replace("xlink:href", "href")
    return (
        f'<svg role="img" aria-label="{escape(description)}" '
        f'viewBox="0 0 {width * 72:g} {height * 72:g}" '
        f'style="width: 100%; max-width: {width * 96:g}px">{inside}'
    ).replace(ink, "currentColor")
