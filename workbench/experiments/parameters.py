"""The parameters of a notebook: what it declares, what may be given, and the points of a grid."""

from __future__ import annotations

import ast
import csv
import difflib
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import pandas as pd

from workbench.errors import ArgumentError, NotebookError
from workbench.imports import deferred_iri_grammar
from workbench.store.tables import plain

with deferred_iri_grammar():
    import nbformat

UNKNOWN: Final = ...  # default of a parameter that is computed when the notebook runs


@dataclass(frozen=True)
class Parameter:
    """An assignment in the cell tagged ``parameters``."""

    name: str
    source: str  # the default as it is written
    default: Any
    help: str  # the comment behind the assignment, or else the one above it
    annotation: str = ""

    @property
    def kind(self) -> Any:
        """Type of the values by a simple annotation (``int | None``), else that of the default."""
        if not self.annotation:
            return type(self.default)
        text = re.sub(r"Optional\[|[\s'\"]", "", self.annotation)
        named = {re.split(r"[\[\]]", one)[0] for one in text.split("|")} - {"None"}
        return next((kind for kind in _KINDS if {kind.__name__} == named), None)


def _is_text(value: Any) -> bool:
    several = value if isinstance(value, (list, tuple)) else [value]  # of columns, say
    return all(isinstance(one, str) for one in several)


_KINDS: Final[dict[Any, tuple[str, Callable[[Any], bool]]]] = {
    bool: ("neither True nor False", lambda value: isinstance(value, bool)),
    int: ("no whole number", lambda value: type(value) in (int, float) and value % 1 == 0),
    float: ("no number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    str: ("no text", _is_text),
    list: ("no list", lambda value: not isinstance(value, (str, dict))),
    tuple: ("no list", lambda value: not isinstance(value, (str, dict))),
    dict: ("no dict", lambda value: isinstance(value, dict)),
}
"""What fits a type, and what is said of a value that does not. Others may be anything."""

Grid: TypeAlias = Mapping[str, Any] | Iterable[Mapping[str, Any]] | pd.DataFrame
Point: TypeAlias = dict[str, Any]

# Where notebooks have names: in the current folder, beside a package run from its repository.
FOLDERS: Final = (Path("notebooks"), Path(__file__).resolve().parents[2] / "notebooks")


def find_notebook(name: str | Path) -> Path:
    """Return the notebook at a path, or of a name in one of the `FOLDERS`."""
    given = Path(name).expanduser()
    is_path = given.suffix == ".ipynb" or not given.name
    file = given if is_path else given.with_name(given.name + ".ipynb")
    is_name = given.parent in (Path(), Path("notebooks"))
    for place in [file, *(folder / file.name for folder in FOLDERS if is_name)]:
        if place.is_file():
            return place.resolve()
    known = sorted({path.stem for folder in FOLDERS for path in folder.glob("*.ipynb")})
    raise NotebookError(
        f"There is no notebook {str(name)!r}. Give a path, or one of: "
        f"{', '.join(known) or 'none was found; run from the repository'}."
    )


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook file; raise `NotebookError` where it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises what its JSON reader and validator raise
        raise NotebookError(f"{path} cannot be read as a notebook: {error}") from None


def notebook_parameters(path: Path) -> list[Parameter]:
    """Return the parameters that a notebook declares, in their order."""
    # papermill's own inspection skips lines with two equal signs.
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
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            default, written = UNKNOWN, "..."
            if node.value is not None:
                written = ast.get_source_segment(source, node.value) or ""
                with suppress(ValueError, TypeError):
                    default = ast.literal_eval(node.value)
            kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            found[target.id] = Parameter(target.id, written, default, _comment(lines, node), kind)
    return list(found.values())


def _comment(lines: list[str], node: ast.stmt) -> str:
    # Offsets count bytes. What follows a statement in its line is a comment.
    last = lines[(node.end_lineno or 0) - 1].encode()
    found = [last[node.end_col_offset or 0 :].decode().strip()]
    if not found[0]:
        above = reversed(lines[: node.lineno - 1])
        found = [*itertools.takewhile(lambda line: line.startswith("#"), above)][::-1]
    return " ".join(line.lstrip("#").strip() for line in found)


def check_parameters(parameters: Iterable[Parameter], values: Mapping[str, Any]) -> Point:
    """Return the values, 20 for 20.0 where a whole number is due.

    Raises `NotebookError` unless each is one of a known parameter and of its kind.
    """
    known, checked = {parameter.name: parameter for parameter in parameters}, dict(values)
    for name, value in values.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            listed = "".join(f"\n  {p.name} = {p.source}" for p in known.values())
            raise NotebookError(
                f"Parameter {name!r} is not known.{hint} The notebook takes: {listed or 'none'}"
            )
        problem, fits = _KINDS.get(known[name].kind, ("", lambda _: True))
        if value is not None and not fits(value):
            raise NotebookError(
                f"{name}={value!r} is {problem}; the default is {known[name].source}."
            )
        if known[name].kind is int and value is not None:
            checked[name] = int(value)
    return checked


def hashes_of(value: Any, start: Path) -> list[str]:
    """Return hashes of the files that a value names; not of folders, which a run may write to."""
    found = []
    for each in value if isinstance(value, (list, tuple)) else [value]:
        with suppress(OSError, ValueError, TypeError, RuntimeError):  # as for no home folder
            file = start / Path(each).expanduser()
            found += [_hash(file, file.stat().st_mtime_ns)] if file.is_file() else []
    return found


@functools.lru_cache
def _hash(file: Path, mtime: int) -> str:
    """Return a hash of a file, which may be larger than memory."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# -- texts of a command line ----------------------------------------------------------------

_WORDS: Final = {"True": True, "False": False, "None": None, "true": True, "false": False}
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def parse_parameters(
    parameters: Sequence[Parameter], given: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Convert texts from a command line into values, and check them (`check_parameters`).

    Commas separate the values of a list.
    """
    kinds = {p.name: p.kind for p in parameters}
    values: dict[str, Any] = {}
    for name, text in given:
        kind = kinds.get(name)
        if kind in (list, tuple) and text != "None":
            values[name] = [_value(one.strip(), None) for one in text.split(",")]
        else:
            values[name] = _value(text, kind)
    return check_parameters(parameters, values)


def _value(text: str, kind: type | None) -> Any:
    if kind is str and text != "None":
        return text  # so that a column may be named 007
    if text in _WORDS:
        return _WORDS[text]
    for number in (int, float):
        with suppress(ValueError):
            value = number(text)
            # "nan", "inf" and "1e999" are no numbers that anyone means.
            return value if math.isfinite(value) else text
    return text


def parse_grid(parameters: Sequence[Parameter], given: Iterable[str]) -> dict[str, list[Any]]:
    """Return the grid that texts from a command line say, such as ``seed=0..4`` and ``n=10,20``.

    Commas separate values, unless quotes stand around them (``columns='"a, b"'``). Both ends of a
    range belong to it. A name that is given twice has the values of both.
    """
    kinds = {p.name: p.kind for p in parameters}
    grid: dict[str, list[Any]] = {}
    for one in given:
        name, is_there, text = one.partition("=")
        if not is_there:
            raise NotebookError(f"-p {one!r} gives no value. Write NAME=VALUE or NAME=VALUE,VALUE.")
        kind, values = kinds.get(name), grid.setdefault(name, [])
        for value in next(csv.reader([text], skipinitialspace=True), [""]):
            if kind is not str and (span := _RANGE.fullmatch(value)):
                low, high = map(int, span.groups())
                if low > high:
                    raise NotebookError(f"-p {one!r}: a range begins at its lower end.")
                values += range(low, high + 1)
            else:
                values.append(_value(value, kind))
        for read in values or [None]:
            check_parameters(parameters, {name: read})
    return grid


# -- grids ----------------------------------------------------------------------------------


def expand(grid: Grid) -> list[Point]:
    """Return the points of a grid in their order, equal ones once.

    Of a mapping (parameter -> values, or a single value) every combination is taken, the last
    parameter changing fastest. In a table an empty cell leaves a parameter at its default.

    >>> expand({"seed": range(2), "model": "m"})
    [{'seed': 0, 'model': 'm'}, {'seed': 1, 'model': 'm'}]
    """
    points: list[Any]
    if isinstance(grid, pd.DataFrame) and grid.columns.is_unique:
        # Whole numbers beside an empty cell are floats in pandas.
        table = grid.convert_dtypes().astype(object).rename(columns=str)
        cells = zip(table.to_dict("records"), table.notna().to_numpy(), strict=True)
        points = [dict(itertools.compress(row.items(), given)) for row, given in cells]
    elif isinstance(grid, Mapping):
        values = [
            [v] if isinstance(v, (str, bytes, Mapping)) or not isinstance(v, Iterable) else list(v)
            for v in grid.values()
        ]
        points = [dict(zip(grid, each, strict=True)) for each in itertools.product(*values)]
    else:
        points = list(grid) if isinstance(grid, Iterable) else [grid]
    if not all(isinstance(point, Mapping) for point in points):
        raise ArgumentError(
            f"grid={grid!r} must be a dict {{parameter: values}}, a list of dicts, or a table with "
            "a column of its own for each parameter."
        )
    unique: dict[str, Point] = {}
    for point in points:
        clean: Point = {}
        for name, value in point.items():
            try:
                clean[str(name)] = plain(value)
                json.dumps(value, allow_nan=False, default=plain)
            except ValueError as error:  # NaN, which `plain` takes for None, is none either
                raise ArgumentError(f"grid: {name}={value!r} cannot be given: {error}.") from None
        unique.setdefault(json.dumps(clean, sort_keys=True), clean)
    if not unique:
        raise ArgumentError(
            f"grid={grid!r} holds no point. Give a value or more for each parameter."
        )
    return list(unique.values())
