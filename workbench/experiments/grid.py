"""The points of a sweep: which parameters each of its runs gets."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, NotebookError
from workbench.experiments.parameters import Parameter, check_parameters, parse_parameters

Grid: TypeAlias = Mapping[str, Any] | Iterable[Mapping[str, Any]] | pd.DataFrame
Point: TypeAlias = dict[str, Any]

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def expand(grid: Grid) -> list[Point]:
    """Return the points of a grid in their order, equal ones once.

    Parameters
    ----------
    grid
        Parameter -> values, of which every combination is taken, the last parameter changing
        fastest; a single value may stand by itself. Or the points themselves: a list of dicts, or
        a table with a row a point, in which an empty cell leaves a parameter at its default.

    Raises
    ------
    ArgumentError
        For no points at all, and values that JSON cannot hold.

    >>> expand({"seed": range(2), "model": "m"})
    [{'seed': 0, 'model': 'm'}, {'seed': 1, 'model': 'm'}]
    """
    points: list[Point]
    if isinstance(grid, pd.DataFrame):
        # Whole numbers beside an empty cell are floats in pandas.
        rows = grid.convert_dtypes().astype(object).to_dict("records")
        points = [{str(k): v for k, v in row.items() if not _is_empty(v)} for row in rows]
    elif isinstance(grid, Mapping):
        values = [_values(value) for value in grid.values()]
        points = [dict(zip(grid, each, strict=True)) for each in itertools.product(*values)]
    else:
        points = [dict(point) for point in grid]
    unique: dict[str, Point] = {}
    for point in points:
        plain = {name: _plain(name, value) for name, value in point.items()}
        unique.setdefault(json.dumps(plain, sort_keys=True), plain)
    if not unique:
        raise ArgumentError(
            f"grid={grid!r} holds no point. Give a value or more for each parameter."
        )
    return list(unique.values())


def _is_empty(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _values(value: Any) -> Sequence[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def _plain(name: str, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"grid: {name}={value!r} cannot be a parameter ({error}). Use numbers, text, True, "
            "False, None, and lists and dicts of these."
        ) from None
    return value


def check_points(parameters: Iterable[Parameter], points: Iterable[Point]) -> None:
    """Raise `NotebookError` unless every point fits the parameters of the notebook."""
    known = list(parameters)
    for number, point in enumerate(points, 1):
        try:
            check_parameters(known, point)
        except NotebookError as error:
            raise NotebookError(f"Point {number} of the grid, {point}: {error}") from None


def parse_grid(parameters: Iterable[Parameter], given: Iterable[str]) -> dict[str, list[Any]]:
    """Return the grid that texts from a command line say, such as ``seed=0..4`` and ``n=10,20``.

    Commas separate values, unless quotes stand around them (``columns='"a, b"'``). Both ends of a
    range belong to it. Values are read and checked as by `parse_parameters`; a name that is given
    twice has the values of both.
    """
    known = list(parameters)
    texts = {p.name for p in known if isinstance(p.default, str)}
    grid: dict[str, list[Any]] = {}
    for one in given:
        name, is_there, text = one.partition("=")
        if not is_there:
            raise NotebookError(f"-p {one!r} gives no value. Write NAME=VALUE or NAME=VALUE,VALUE.")
        values = grid.setdefault(name, [])
        for value in next(csv.reader([text], skipinitialspace=True), [""]):
            span = None if name in texts else _RANGE.fullmatch(value)
            if span:
                values += range(int(span[1]), int(span[2]) + 1)
                check_parameters(known, {name: int(span[1])})
            else:
                values.append(parse_parameters(known, [(name, value)])[name])
    return grid
