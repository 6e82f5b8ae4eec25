"""What all pictures share: style, labels, intervals, tinted matrices, and pictures as SVG.

Text and lines take the colours of the active matplotlib style and cells are tinted over its
background, so that light and dark styles both work. Labels are drawn literally: ``$`` starts no
formula.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from jupyter_core.paths import jupyter_config_dir
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb, to_rgba, to_rgba_array
from matplotlib.figure import Figure

# From the palette of Okabe and Ito, which stays apart for all common kinds of colour blindness.
BEFORE, AFTER, BELOW = "#D55E00", "#0072B2", "#D55E00"

TINT = "#1B5393"
"""Cells are tinted with this, the more opaque the greater their share."""

_STYLE = {
    "axes.titlesize": "medium",
    "axes.titleweight": "normal",
    "axes.grid": False,
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": "small",
}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_DARK = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#111111"),
    **dict.fromkeys(_INKED, "#e6e6e6"),
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the module's style and JupyterLab's theme, and leave the user's style as it is."""
    settings: Any = mpl.rcParams  # its keys are checked when they are set
    # Not rc_context: it would also undo what a backend sets when the first figure loads it,
    # and Jupyter's would then show that figure and none of the later ones.
    chosen = settings["figure.facecolor"] != mpl.rcParamsDefault["figure.facecolor"]
    style = _STYLE | (_DARK if not chosen and _lab_is_dark() else {})
    before = {name: settings[name] for name in style}
    settings.update(style)
    try:
        yield
    finally:
        settings.update(before)


def _lab_is_dark() -> bool:
    """Whether this is a kernel of a JupyterLab whose user has chosen a dark theme."""
    if "ipykernel" not in sys.modules:
        return False
    usual = f"{jupyter_config_dir()}/lab/user-settings"
    folder = Path(os.environ.get("JUPYTERLAB_SETTINGS_DIR") or usual)
    path = folder / "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    settings = path.read_text(encoding="utf-8") if path.is_file() else ""
    # JSON with comments.
    theme = re.search(r'^\s*(?:\{\s*)?"theme"\s*:\s*"([^"]*)"', settings, re.MULTILINE)
    return theme is not None and "dark" in theme[1].lower()


def paper() -> Any:
    """Return the active style's colour behind a picture."""
    return mpl.rcParams["axes.facecolor"]


def ink() -> Any:
    """Return the active style's colour of text."""
    return mpl.rcParams["text.color"]


def blue() -> str:
    """Return the blue of points and lines: a brighter one of the palette on a dark ground."""
    return "#56B4E9" if sum(to_rgb(paper())) < 1.5 else AFTER


def new_axes(width: float, height: float, count: int = 1) -> npt.NDArray[Any]:
    """Return ``count`` new Axes in a row."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False)
    fig.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return np.asarray(axes[0])


def write(ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Write a text in the middle of a point."""
    ax.text(x, y, text, **{"ha": "center", "va": "center", **look})


def literal(value: Any, width: int, lines: int = 2) -> str:
    """Return a label as it is drawn: few lines at most, no control characters, ``$`` as itself."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    found = textwrap.wrap(text, width, max_lines=lines, placeholder=" …")
    return "\n".join(found).replace("$", r"\$")


def order_of(found: Any) -> list[Any]:
    """Return the rows of the confusion matrix in the order in which they are shown."""
    return list(found.scale.shown or found.confusion.index)


def tilt_where_long(ax: Axes, labels: Sequence[str], values: Sequence[Any] = ()) -> None:
    """Tilt the labels of columns that would run into each other, each then in one line.

    ``values`` are what the labels say, where these may break a word into two lines.
    """
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    if longest * len(labels) > 38 and len(labels) > 2:
        for label in ax.get_xticklabels():
            label.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
        whole = [literal(value, 2 * longest, lines=1) for value in values]
        ax.set_xticklabels(whole or [label.replace("\n", " ") for label in labels])


def legend_above(ax: Axes, handles: Mapping[str, Any], ncols: int = 2) -> None:
    """Put the legend, if there is any, above the picture, at its left."""
    if handles:
        look: dict[str, Any] = {"handlelength": 1.5, "columnspacing": 1.3, "borderaxespad": 0.2}
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": ncols}
        ax.legend([*handles.values()], [*handles], **place, **look)


def reference_levels(baseline: float | None, ceiling: Any) -> dict[str, tuple[float, str]]:
    """Return the name, level and line style of what judges are compared with, where it is known."""
    people = getattr(ceiling, "ceiling", ceiling)
    found = {"people": (people, "--"), "always the majority label": (baseline, ":")}
    return {k: (v, style) for k, (v, style) in found.items() if v is not None and not math.isnan(v)}


# -- rows with intervals --------------------------------------------------------------------


def bare_rows(ax: Axes, labels: Sequence[str]) -> None:
    """Label rows from top to bottom, without a frame."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(left=False)


def draw_estimate(
    ax: Axes, row: float, estimate: Sequence[float], *, hollow: bool = False,
    undefined: str = "undefined", color: str, marker: str = "o",
) -> Any:  # fmt: skip
    """Draw a value and the ends of its interval; where it is nan, write so at the left."""
    value, low, high = estimate
    look: dict[str, Any]
    if math.isnan(value):
        look = {"color": BELOW, "ha": "left", "transform": ax.get_yaxis_transform()}
        write(ax, 0.01, row, undefined, size="small", **look)
        return None
    if not math.isnan(low):
        ax.plot([low, high], [row, row], color=color, lw=2, solid_capstyle="butt")
    look = {"color": color, "mfc": paper() if hollow else color, "mew": 1.5}
    return ax.plot(value, row, marker, ms=6, **look)[0]


# -- matrices -------------------------------------------------------------------------------


def matrix_size(size: int) -> tuple[float, float]:
    """Return width and height in inches of a picture of a square matrix."""
    side = max(2.5, min(6.5, 0.85 * size), min(14.0, 0.16 * size))
    return side + 1.4, side + 1.2


def draw_matrix(
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
    ax = ax or new_axes(*matrix_size(size))[0]
    # In two lines where there is room for them.
    rows = [literal(name, *((18, 2) if size <= 14 else (30, 1))) for name in names]
    columns = [literal(name, *((14, 2) if is_small else (28, 1))) for name in names]
    if totals is not None:
        between = "\n" if size <= 7 else " "
        rows = [f"{row}{between}({n:,})" for row, n in zip(rows, totals, strict=True)]
    step = math.ceil(size / 60) or 1
    ax.set(xlim=(-0.52, size - 0.48), ylim=(size - 0.48, -0.52), aspect="equal")
    ax.set_yticks(range(0, size, step), rows[::step])
    ax.set_xticks(range(0, size, step), columns[::step])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    tints, opacity = np.where(shares < 0, BELOW, TINT), np.abs(shares)
    if is_small:
        tilt_where_long(ax, columns, names)
        for at in np.ndindex(size, size):
            # Above 0.78 white has more contrast on the tint than black, by WCAG 2.2.
            colour = "white" if shares[at] > 0.78 else ink()
            alpha = None if opacity[at] else 0.6
            _write_cell(ax, at, *text(at), size=size, color=colour, alpha=alpha)
    else:
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(labelsize=7)
        opacity = np.where(opacity > 0, np.maximum(opacity, 0.08), 0)
    # A hairline keeps empty cells visible on any background; of many only the others are drawn.
    cells = np.nonzero(np.ones_like(opacity) if is_small else opacity)
    edges = to_rgba(ink(), 0.25) if is_small else "none"
    faces = to_rgba_array(tints[cells])
    faces[:, 3] = opacity[cells]
    _add_squares(ax, *cells, facecolors=faces, edgecolors=edges, linewidths=0.5)
    if totals is not None:
        frame: dict[str, Any] = {"facecolors": "none", "edgecolors": ink(), "linewidths": 1.1}
        _add_squares(ax, np.arange(size), np.arange(size), zorder=3, **frame)
    return ax


def _add_squares(ax: Axes, rows: Any, columns: Any, **look: Any) -> None:
    corners = 0.48 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    squares: Any = np.stack([columns, rows], axis=1)[:, None] + corners
    ax.add_collection(PolyCollection(squares, **look))


def _write_cell(
    ax: Axes, at: tuple[int, ...], large: str, small: str, *, size: int, **look: Any
) -> None:
    points = 13 if size <= 4 else 10.5 if size <= 7 else 8
    points = min(points, 10.5) if len(large) > 6 else points
    look |= {"xy": at[::-1], "textcoords": "offset points", "ha": "center"}
    ax.annotate(large, xytext=(0, 0), va="bottom" if small else "center", size=points, **look)
    if small:
        ax.annotate(small, xytext=(0, -3), va="top", size=max(6.5, points * 0.7), **look)


# -- pictures in pages ----------------------------------------------------------------------


def as_svg(draw: Callable[..., Any], size: tuple[float, float], description: str) -> Markup:
    """Return a picture as an ``<svg>`` element that takes on the theme of the page around it.

    ``draw`` is called with ``ax``; ``size``, width and height, is in inches; ``description`` is
    what screen readers say. Text and lines have the page's text colour, the background is
    transparent, all text is escaped, and the picture scales down to the width at hand.
    """
    width, height = size
    page_ink = "#010203"  # stands for the page's text colour until the end
    style: dict[str, Any] = dict.fromkeys(_INKED, page_ink)
    # Equal pictures are equal files; different ones on a page share no id.
    style |= {"svg.fonttype": "none", "svg.hashsalt": description}
    style |= {"figure.facecolor": "#ffffff"}  # the page's theme counts, and not the notebook's
    buffer = io.StringIO()
    with mpl.rc_context(style), warnings.catch_warnings():  # type: ignore[arg-type]  # as above
        # The reader's browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        fig = Figure(figsize=(width, height), layout="constrained")
        draw(ax=fig.subplots())
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), count=1, flags=re.DOTALL)
    inside = text[text.index("<svg") :].split(">", 1)[1]
    # Names of groups and lines recur in every picture, and a page may have each but once.
    inside = re.sub(r'(<\w+) id="[\w.]+_\d+"', r"\1", inside).replace("xlink:href", "href")
    # matplotlib's SVG writer escapes all text.
    head = (
        f'<svg role="img" aria-label="{escape(description)}" '
        f'viewBox="0 0 {width * 72:g} {height * 72:g}" '
        f'style="width: 100%; max-width: {width * 96:g}px">'
    )
    return Markup(f"{head}{inside}".replace(page_ink, "currentColor"))
