"""Find a notebook, read the parameters that it declares, and check the values given for them."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from workbench.errors import NotebookError

if TYPE_CHECKING:
    from nbformat import NotebookNode

UNKNOWN: Final = ...
"""Default of a parameter whose value is computed when the notebook runs."""


@dataclass(frozen=True)
class Parameter:
    """An assignment in the cell tagged ``parameters``.

    ``source`` is the default as it is written, and ``default`` its value, or `UNKNOWN` where it is
    no literal. ``help`` is the comment behind the assignment, or else the one above it.
    """

    name: str
    source: str
    default: Any
    help: str


def find_notebook(name: str | Path) -> Path:
    """Return the notebook at a path, or of a name in ``notebooks/``.

    That folder is looked for in the current one, and beside a package run from its repository.
    """
    given = Path(name)
    file = given if given.suffix == ".ipynb" else given.with_name(given.name + ".ipynb")
    folders = [Path("notebooks"), Path(__file__).resolve().parents[2] / "notebooks"]
    is_name = given.parent in (Path(), Path("notebooks"))
    for place in [file, *(folder / file.name for folder in folders if is_name)]:
        if place.is_file():
            return place.resolve()
    known = sorted({path.stem for folder in folders for path in folder.glob("*.ipynb")})
    raise NotebookError(
        f"There is no notebook {str(name)!r}. Give a path, or one of: "
        f"{', '.join(known) or 'none was found; run from the repository'}."
    )


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook file; raise `NotebookError` where it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises what its JSON reader and validator raise
        raise NotebookError(f"{path} cannot be read as a notebook: {error}") from error


def notebook_parameters(notebook: str | Path) -> list[Parameter]:
    """Return the parameters that a notebook declares, in their order.

    They are read from the syntax tree: papermill's own inspection skips lines with two equal
    signs and knows only the comment behind an assignment.
    """
    path = Path(notebook)
    for cell in read_notebook(path).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                return _assignments(cell.source)
            except SyntaxError as error:
                raise NotebookError(
                    f"The parameters cell of {path} is no Python: {error}."
                ) from error
    return []


def _assignments(source: str) -> list[Parameter]:
    lines = source.splitlines()
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            default = UNKNOWN
            with suppress(ValueError, TypeError):
                default = ast.literal_eval(node.value)
            written = ast.get_source_segment(source, node.value) or ""
            found[target.id] = Parameter(target.id, written, default, _comment(lines, node))
    return list(found.values())


def _comment(lines: list[str], node: ast.stmt) -> str:
    """The comment behind a statement, or else the one above it."""
    # Offsets count bytes. What follows a statement in its line is a comment.
    last = lines[(node.end_lineno or 0) - 1].encode()
    found = [last[node.end_col_offset or 0 :].decode().strip()]
    if not found[0]:
        above = takewhile(lambda line: line.startswith("#"), reversed(lines[: node.lineno - 1]))
        found = list(above)[::-1]
    return " ".join(line.lstrip("#").strip() for line in found)


def parse_parameters(
    parameters: Iterable[Parameter], given: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Convert texts from a command line into values, and check them (`check_parameters`).

    ``True``, ``False`` and ``None`` mean what they say, whole and decimal numbers are numbers,
    everything else is text. Where the default is text, numbers stay text, so that a column may
    be named ``007``.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    for name, text in given:
        is_text = name in known and isinstance(known[name].default, str)
        values[name] = _value(text) if text == "None" or not is_text else text
    check_parameters(known.values(), values)
    return values


def _value(text: str) -> Any:
    words = {"True": True, "False": False, "None": None, "true": True, "false": False}
    if text in words:
        return words[text]
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        # "nan", "inf" and "1e999" are no numbers that anyone means.
        return value if math.isfinite(value) else text
    return text


def check_parameters(parameters: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Raise `NotebookError` unless each value is one of a known parameter and fits its default.

    A parameter whose default is None, or is computed by the notebook, takes any value, and every
    parameter takes None.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            listed = "".join(f"\n  {p.name} = {p.source}" for p in known.values())
            raise NotebookError(
                f"Parameter {name!r} is not known.{hint} The notebook takes: {listed or 'none'}"
            )
        default, problem = known[name].default, ""
        if value is None or not isinstance(default, (bool, int, float)):
            continue
        if isinstance(default, bool):
            problem = "" if isinstance(value, bool) else "neither True nor False"
        elif type(value) not in (int, float) or not math.isfinite(value):
            problem = "no number"
        if problem:
            raise NotebookError(
                f"{name}={value!r} is {problem}; the default is {known[name].source}."
            )
