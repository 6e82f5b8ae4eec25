"""What all pictures share: style, axes, labels, tinted matrices, and pictures as SVG.

Text and lines take the colours of the active matplotlib style and cells are tinted over its
background, so that light and dark styles both work. Labels are drawn literally: ``$`` starts no
formula.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

# From the palette of Okabe and Ito, which stays apart for all common kinds of colour blindness.
BEFORE, AFTER, BELOW = "#D55E00", "#0072B2", "#D55E00"

TINT = "#1B5393"
"""Cells are tinted with this, the more opaque the greater their share."""

MOST_ROWS_WITH_TEXT = 20
"""A matrix with more rows than this has no text in its cells, nor frames around them."""

FAINTEST = 0.08
"""Least opacity of a cell that is not empty and has no text."""

MOST_TICKS = 60
"""Of more rows than this only some have a label."""

_STYLE = {
    "axes.titlesize": "medium",
    "axes.titleweight": "normal",
    "axes.grid": False,
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": "small",
}

_DARK = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#111111"),
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#e6e6e6"
    ),
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Draw in the module's style and JupyterLab's theme, and leave the user's style as it is."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib as mpl

        settings: Any = mpl.rcParams  # its keys are checked when they are set
        # Not rc_context: it would also undo what a backend sets when the first figure loads it,
        # and Jupyter's would then show that figure and none of the later ones.
        chosen = settings["figure.facecolor"] != mpl.rcParamsDefault["figure.facecolor"]
        style = _STYLE | (_DARK if not chosen and _lab_is_dark() else {})
        before = {name: settings[name] for name in style}
        settings.update(style)
        try:
            return function(*args, **kwargs)
        finally:
            settings.update(before)

    return wrapper


def _lab_is_dark() -> bool:
    """Whether this is a kernel of a JupyterLab whose user has chosen a dark theme."""
    if "ipykernel" not in sys.modules:
        return False
    from jupyter_core.paths import jupyter_config_dir

    folder = (
        os.environ.get("JUPYTERLAB_SETTINGS_DIR") or f"{jupyter_config_dir()}/lab/user-settings"
    )
    path = Path(folder) / "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    try:
        settings = path.read_text(encoding="utf-8")
    except OSError:
        return False
    # JSON with comments.
    theme = re.search(r'^\s*(?:\{\s*)?"theme"\s*:\s*"([^"]*)"', settings, re.MULTILINE)
    return theme is not None and "dark" in theme[1].lower()


def paper() -> str:
    """Return the active style's colour behind a picture."""
    import matplotlib as mpl

    return str(mpl.rcParams["axes.facecolor"])


def ink() -> str:
    """Return the active style's colour of text."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def blue() -> str:
    """Return the blue of points and lines: a brighter one of the palette on a dark ground."""
    return "#56B4E9" if _luminance(paper()) < 0.2 else AFTER


def new_axes(width: float, height: float, count: int = 1) -> npt.NDArray[Any]:
    """Return ``count`` new Axes in a row."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False)
    fig.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return np.asarray(axes[0])


def write(ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Write a text in the middle of a point."""
    ax.text(x, y, text, **{"ha": "center", "va": "center", **look})


def literal(value: Any, width: int) -> str:
    """Return a label as it is drawn: at most two lines, no control characters, ``$`` as itself."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    lines = textwrap.wrap(text, width, max_lines=2, placeholder=" …")
    return "\n".join(lines).replace("$", r"\$")


def bare_rows(ax: Axes, labels: Sequence[str]) -> None:
    """Label rows from top to bottom, without a frame."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(left=False)


def legend_above(ax: Axes, handles: Mapping[str, Any], **look: Any) -> None:
    """Put the legend above the picture, at its left."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "ncols": 2}
    ax.legend([*handles.values()], [*handles], **{**place, **look})


# -- matrices -------------------------------------------------------------------------------


def matrix_size(size: int) -> tuple[float, float]:
    """Return width and height in inches of a picture of a square matrix."""
    side = max(2.5, min(6.5, 0.85 * size), min(14.0, 0.16 * size))
    return side + 1.4, side + 1.2


def draw_cells(ax: Axes, opacity: npt.NDArray[Any], colours: npt.NDArray[Any] | str = TINT) -> None:
    """Tint the cells of a matrix, each by its opacity in [0, 1], in one artist."""
    from matplotlib.colors import to_rgba, to_rgba_array

    framed = len(opacity) <= MOST_ROWS_WITH_TEXT
    # Without frames empty cells show nothing, and large matrices are mostly empty.
    rows, columns = np.nonzero(np.ones_like(opacity) if framed else opacity)
    faces = to_rgba_array(np.broadcast_to(colours, opacity.shape)[rows, columns].ravel())
    faces[:, 3] = np.maximum(opacity[rows, columns], 0.0 if framed else FAINTEST)
    # A hairline keeps empty cells visible on any background.
    edges = to_rgba(ink(), 0.25) if framed else "none"
    _add_squares(ax, rows, columns, facecolors=faces, edgecolors=edges, linewidths=0.5)


def outline_diagonal(ax: Axes, size: int) -> None:
    """Draw a frame around each cell of the diagonal."""
    at = np.arange(size)
    _add_squares(ax, at, at, facecolors="none", edgecolors=ink(), linewidths=1.1, zorder=3)


def _add_squares(ax: Axes, rows: Any, columns: Any, **look: Any) -> None:
    from matplotlib.collections import PolyCollection

    corners = 0.48 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    squares: Any = np.stack([columns, rows], axis=1)[:, None] + corners
    ax.add_collection(PolyCollection(squares, **look))


def write_cell(
    ax: Axes, at: tuple[int, int], large: str, small: str, *, opacity: float, tint: str = TINT
) -> None:
    """Write a large and a small text into a cell at a row and column, in the colour to be read."""
    size = math.ceil(ax.get_ylim()[0])
    points = 13 if size <= 4 else 10.5 if size <= 7 else 8
    points = min(points, 10.5) if len(large) > 6 else points
    look: dict[str, Any] = {"color": _readable_on(tint, opacity), "ha": "center"}
    look |= {"xy": at[::-1], "textcoords": "offset points", "alpha": None if opacity else 0.6}
    ax.annotate(large, xytext=(0, 0), va="bottom" if small else "center", size=points, **look)
    if small:
        ax.annotate(small, xytext=(0, -3), va="top", size=max(6.5, points * 0.7), **look)


def _readable_on(tint: str, opacity: float) -> str:
    """Return the style's colour of text, or white where that has more contrast on the cell.

    Contrast is that of WCAG 2.2: ``(L1 + 0.05) / (L2 + 0.05)`` of the relative luminances.
    """
    from matplotlib.colors import to_rgb

    cell = _luminance(opacity * np.array(to_rgb(tint)) + (1 - opacity) * np.array(to_rgb(paper())))
    text = _luminance(ink())
    return "white" if 1.05 / cell > max(text, cell) / min(text, cell) else ink()


def _luminance(colour: Any) -> float:
    """Relative luminance by WCAG 2.2, plus 0.05."""
    from matplotlib.colors import to_rgb

    parts = np.asarray(to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05


def matrix_axes(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Label rows and columns of a matrix; of very many only some."""
    size = len(columns)
    ax.set_xlim(-0.52, size - 0.48)
    ax.set_ylim(len(rows) - 0.48, -0.52)
    ax.set_aspect("equal")
    shown = range(0, size, math.ceil(size / MOST_TICKS) or 1)
    ax.set_yticks(shown, [rows[k] for k in shown])
    ax.set_xticks(shown, [columns[k] for k in shown])
    if size > MOST_ROWS_WITH_TEXT:
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(labelsize=7)
    else:
        tilt_where_long(ax, columns)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def tilt_where_long(ax: Axes, labels: Sequence[str]) -> None:
    """Tilt the labels of columns that would run into each other, each then in one line."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    if longest * len(labels) > 38 and len(labels) > 2:
        for label in ax.get_xticklabels():
            label.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
        ax.set_xticklabels([label.replace("\n", " ") for label in labels])


# -- pictures in pages ----------------------------------------------------------------------


def as_svg(draw: Callable[..., Any], size: tuple[float, float], description: str) -> Markup:
    """Return a picture as an ``<svg>`` element that takes on the theme of the page around it.

    ``draw`` is called with ``ax``; ``size``, width and height, is in inches; ``description`` is
    what screen readers say. Text and lines have the page's text colour, the background is
    transparent, all text is escaped, and the picture scales down to the width at hand.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width, height = size
    page_ink = "#010203"  # stands for the page's text colour until the end
    style: dict[str, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), page_ink
    )
    # Equal pictures are equal files; different ones on a page share no id.
    style |= {"svg.fonttype": "none", "svg.hashsalt": description}
    style |= {"figure.facecolor": "#ffffff"}  # the page's theme counts, and not the notebook's
    buffer = io.StringIO()
    with mpl.rc_context(style), warnings.catch_warnings():  # type: ignore[arg-type]  # as above
        # The reader's browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        fig = Figure(figsize=(width, height))
        fig.set_layout_engine("constrained")
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
