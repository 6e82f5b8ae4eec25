"""The parameters of a notebook: what it declares, and values given for them."""

from __future__ import annotations

import ast
import difflib
import io
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from workbench.errors import NotebookError

if TYPE_CHECKING:
    from nbformat import NotebookNode


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: an assignment in its cell tagged ``parameters``.

    ``source`` is the default as it is written; ``default`` is its value, or `UNKNOWN` where it
    is not a literal. ``help`` is the comment behind the assignment, or the one above it.
    """

    name: str
    source: str
    default: Any
    help: str


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
"""The default of a parameter whose value is computed when the notebook runs."""


def notebook_parameters(notebook: str | Path) -> list[Parameter]:
    """The parameters that a notebook declares, in their order.

    They are read from the syntax tree rather than by papermill's inspection, which skips lines
    with two equal signs and knows only the comment behind an assignment.

    Raises
    ------
    NotebookError
        When the file is no notebook or its parameters cell is no Python.
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


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in a file, or `NotebookError`."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises what its JSON reader and validator raise
        raise NotebookError(f"{path} cannot be read as a notebook: {error}") from error


def _assignments(source: str) -> list[Parameter]:
    comments = {
        token.start[0]: (token.string.lstrip("#").strip(), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
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
        text, alone = comments.get(node.end_lineno or 0, ("", True))
        if alone:
            above, line = [], node.lineno - 1
            while comments.get(line, ("", False))[1]:
                above.append(comments[line][0])
                line -= 1
            text = " ".join(reversed(above))
        written = ast.get_source_segment(source, value) or ""
        found[target.id] = Parameter(target.id, written, default, text)
    return list(found.values())


# -- values ------------------------------------------------------------------------------


def parse_parameters(
    parameters: Iterable[Parameter], given: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Values of texts from a command line, by the rule of papermill's ``-p``.

    ``True``, ``False`` and ``None`` are what they say, whole and decimal numbers are numbers,
    all else is text. Where the default is text, numbers stay text too, so that a column may be
    named ``007``.

    Raises
    ------
    NotebookError
        For unknown names and for values that do not fit the default.
    """
    known = {parameter.name: parameter for parameter in parameters}
    values = {
        name: _parsed(text, keep=isinstance(known[name].default, str) if name in known else False)
        for name, text in given
    }
    check_parameters(known.values(), values)
    return values


def _parsed(text: str, *, keep: bool) -> Any:
    words = {"True": True, "False": False, "None": None, "true": True, "false": False}
    if text == "None" or (not keep and text in words):
        return words[text]
    if not keep:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def check_parameters(parameters: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Raise `NotebookError` unless each value is one of a known parameter and fits its default.

    The message lists the known parameters with their defaults.
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
        default = known[name].default
        if value is None or default is None or default is UNKNOWN:
            continue
        if isinstance(default, bool) and not isinstance(value, bool):
            raise NotebookError(f"{name}={value!r} is neither True nor False.")
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise NotebookError(
                f"{name}={value!r} is no number; the default is {known[name].source}."
            )
