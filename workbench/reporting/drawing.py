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
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from workbench.formatting import written

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
    return bool(re.search(r'(?im)^[\s{]*"theme"\s*:.*dark', settings))


def paper() -> Any:
    return mpl.rcParams["axes.facecolor"]


def ink() -> Any:
    return mpl.rcParams["text.color"]


def blue() -> str:
    """Return the blue of points and lines: a brighter one of the palette on a dark ground."""
    return "#56B4E9" if sum(to_rgb(paper())) < 1.5 else AFTER


def new_axes(width: float, height: float, rows: int = 1, columns: int = 1) -> npt.NDArray[Any]:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    fig.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return np.ravel(axes)


def literal(value: Any, width: int, lines: int = 2) -> str:
    """Return a label as it is drawn: few lines at most, no control characters, ``$`` as itself."""
    text = "".join(c if c.isprintable() else " " for c in written(value))
    found = textwrap.wrap(text, width)
    if len(found) > lines:
        found = [*found[: lines - 1], f"{found[lines - 1][: width - 2]} …"]
    return "\n".join(found).replace("$", r"\$")


def order_of(found: Any) -> list[Any]:
    """Return the rows of the confusion matrix in the order in which they are shown."""
    return list(found.scale.shown or found.confusion.index)


def name_columns(ax: Axes, places: Any, values: Sequence[Any], width: int, lines: int = 2) -> None:
    """Label columns; tilted, each in one line, where they would run into each other."""
    labels = [literal(value, width, lines) for value in values]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    tilted: dict[str, Any] = {}
    if longest * len(labels) > 38 and len(labels) > 2:
        labels = [literal(value, 2 * longest, lines=1) for value in values]
        tilted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(places, labels, **tilted)


def legend_above(ax: Axes, handles: Mapping[str, Any], ncols: int = 2) -> None:
    """Put the legend, if there is any, above the picture; it may reach over the labels of rows."""
    if handles:
        look: dict[str, Any] = {"handlelength": 1.5, "columnspacing": 1.3, "borderaxespad": 0.2}
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": ncols}
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
    if math.isnan(value):
        at_left = ax.get_yaxis_transform()
        ax.text(0.01, row, undefined, size="small", color=BELOW, va="center", transform=at_left)
        return None
    if not math.isnan(low):
        ax.plot([low, high], [row, row], color=color, lw=2, solid_capstyle="butt")
    face = paper() if hollow else color
    return ax.plot(value, row, marker, ms=6, color=color, mfc=face, mew=1.5)[0]


# -- pictures in pages ----------------------------------------------------------------------


def as_svg(draw: Callable[..., Any], size: tuple[float, float], description: str) -> Markup:
    """Return a picture as an ``<svg>`` element that takes on the theme of the page around it.

    ``draw`` is called with ``ax``; ``size``, width and height, is in inches; ``description`` is
    what screen readers say.
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
