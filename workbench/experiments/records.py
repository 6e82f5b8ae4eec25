"""What a notebook hands back: named values and figures, kept in the outputs of its cells."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from workbench.errors import ArgumentError

MIME: Final = "application/vnd.judge-workbench.record+json"

TAKEN: Final = ("status", "error", "seconds", "folder")  # columns that a sweep fills itself

_NAME = re.compile(rf"(?!(?:{'|'.join(TAKEN)})$)[A-Za-z][\w-]{{0,99}}", re.ASCII)


def record(name: str, value: Any) -> None:
    """Record a value or a figure of this notebook, for the sweep that runs it.

    It becomes a column of `sweep`'s table, and of the MLflow run a metric, a tag (of a text) or a
    picture. Recorded again, the latest counts. It is kept in the executed notebook.

    Parameters
    ----------
    name
        Letters, digits, ``_`` and ``-``, beginning with a letter.
    value
        A number, a text, True, False or None; or a matplotlib figure or its Axes. What is nan,
        infinite or beyond the range of a float is recorded as None, which a table shows as missing.

    Raises
    ------
    ArgumentError
        For another name or kind of value.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display

    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ArgumentError(
            f"record(name={name!r}): a name has letters, digits, _ and -, begins with a letter, "
            f"and is none of {', '.join(TAKEN)}."
        )
    data: dict[str, Any] = {"name": name}
    shown: dict[str, Any] = {MIME: data}
    value = value.item() if isinstance(value, np.generic) else value
    first = next(iter(np.ravel(value)), None)  # of several Axes
    figure: Any = getattr(first, "figure", None)
    if hasattr(figure, "savefig"):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)  # which would show it once more
        encoded = base64.b64encode(picture.getvalue()).decode()
        shown |= {"image/png": encoded, "text/plain": f"{name}: a figure"}
    elif value is None or isinstance(value, (bool, int, float, str)):
        data["value"] = _finite(value)
        shown["text/plain"] = f"{name} = {value!r}"
    else:
        raise ArgumentError(
            f"record({name!r}): a {type(value).__name__} cannot be recorded. Give a number, a "
            "text, True, False, None, or a matplotlib figure."
        )
    if InteractiveShell.initialized():
        display(shown, raw=True)
    else:
        print(shown["text/plain"])


def _finite(value: Any) -> Any:
    is_number = isinstance(value, (int, float))
    return value if not is_number or abs(value) <= sys.float_info.max else None


def read_records(notebook: Any, folder: Path) -> dict[str, Any]:
    """Return what an executed notebook recorded; figures are written to ``folder``, as paths."""
    found: dict[str, Any] = {}
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    for data in (output.get("data", {}) for output in outputs):
        name = data.get(MIME, {}).get("name", "")
        if not _NAME.fullmatch(str(name)):  # which becomes the name of a file
            continue
        found[name] = _finite(data[MIME].get("value"))
        if "image/png" in data:
            file = folder / f"{name}.png"
            folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(data["image/png"]))
            found[name] = str(file)
    return found
