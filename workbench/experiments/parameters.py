"""Parameters of a notebook: what it declares, and the values given for them."""

from __future__ import annotations

import ast
import difflib
import io
import math
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from workbench.errors import NotebookError

if TYPE_CHECKING:
    from nbformat import NotebookNode


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
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

    Raises
    ------
    NotebookError
        If the file is no notebook, or its parameters cell is not valid Python.
    """
    path = Path(notebook)
    for cell in read_notebook(path).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            try:
                return _assignments(cell.source)
            except (SyntaxError, tokenize.TokenError) as error:
                raise NotebookError(
                    f"The parameters cell of {path} is no Python: {error}."
                ) from error
    return []


def _assignments(source: str) -> list[Parameter]:
    behind, above = _comments(source)
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if not isinstance(target, ast.Name):
            continue
        try:
            default = ast.literal_eval(value)
        except (ValueError, TypeError):
            default = UNKNOWN
        text = behind.get(node.end_lineno or 0) or _block(above, node.lineno - 1)
        written = ast.get_source_segment(source, value) or ""
        found[target.id] = Parameter(target.id, written, default, text)
    return list(found.values())


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those behind code, and those on lines of their own."""
    behind: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines = alone if token.line.lstrip().startswith("#") else behind
            lines[token.start[0]] = token.string.lstrip("#").strip()
    return behind, alone


def _block(comments: Mapping[int, str], last: int) -> str:
    """The comment lines that end in line ``last``, joined."""
    first = last
    while first in comments:
        first -= 1
    return " ".join(comments[line] for line in range(first + 1, last + 1))


def parse_parameters(
    parameters: Iterable[Parameter], given: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Convert texts from a command line into values.

    ``True``, ``False`` and ``None`` mean what they say, whole and decimal numbers are numbers,
    everything else is text. Where the default is text, numbers stay text, so that a column may
    be named ``007``.

    Raises
    ------
    NotebookError
        For unknown names and for values that do not fit the default.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values = {}
    for name, text in given:
        is_text = name in known and isinstance(known[name].default, str)
        values[name] = _text(text) if is_text else _value(text)
    check_parameters(known.values(), values)
    return values


def _text(text: str) -> str | None:
    return None if text == "None" else text


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
        problem = _problem(known[name].default, value)
        if problem:
            raise NotebookError(
                f"{name}={value!r} is {problem}; the default is {known[name].source}."
            )


def _problem(default: Any, value: Any) -> str:
    """What is wrong with a value in place of this default; empty if nothing is."""
    if value is None or default is None or default is UNKNOWN:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "neither True nor False"
    if not isinstance(default, (int, float)):
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "no number"
    return "" if math.isfinite(value) else "no finite number"
