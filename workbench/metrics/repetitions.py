"""Figures of repeated runs: mean, range and interval over what only chance differs in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.metrics.intervals import check_confidence, mean_interval
from workbench.store.tables import require_columns


def over_seeds(
    table: pd.DataFrame,
    metric: str = "after",
    by: str | Sequence[str] | None = None,
    *,
    over: str = "seed",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Aggregate a metric of `sweep`'s table over seeds.

    Parameters
    ----------
    table
        A row a run.
    metric
        Column with numbers, True being 1; what is missing, as for a run that failed, is left out
        and counted.
    by
        Columns whose values are kept apart, lists by their text; by default the parameters of a
        sweep that vary (see `varying`).
    over
        Column that is aggregated over, the seed.
    confidence
        Of the interval, in (0, 1).

    Returns
    -------
    pandas.DataFrame
        A row for each combination of ``by``, in its order: ``n`` (runs with a value), ``missing``,
        ``mean``, ``min``, ``max``, and ``low`` and ``high``, Student's interval of the mean (nan
        for fewer than two different values): how far it would move with other seeds, and not with
        other items.

    Raises
    ------
    ArgumentError
        For columns that the table lacks, and where another parameter of the sweep varies.

    >>> runs = pd.DataFrame({"seed": [0, 1], "n_labels": 20, "after": [0.6, 0.8]})
    >>> over_seeds(runs, by="n_labels")[["n_labels", "n", "mean"]].to_dict("records")
    [{'n_labels': 20, 'n': 2, 'mean': 0.7}]
    """
    check_confidence(confidence)
    names = varying(table, over)
    by = [by] if isinstance(by, str) else list(names if by is None else by)
    require_columns(table, "table", [metric, *by])
    if others := [name for name in names if name not in by]:
        raise ArgumentError(
            f"by={by!r}: the parameter {others[0]!r} varies as well, and its values are no "
            f"repetitions. Name it in by=, or give the rows of one value of it."
        )
    table = table.assign(**{name: table[name].map(_hashable) for name in by})
    table[metric] = as_numbers(table[metric], metric)
    rows = []
    for key, runs in table.groupby(by, dropna=False) if by else [((), table)]:
        values = runs[metric].dropna()
        figures = (values.mean(), values.min(), values.max())
        ends = mean_interval(values.to_numpy(), confidence)
        rows.append((*key, len(values), len(runs) - len(values), *figures, *ends))
    return pd.DataFrame(rows, columns=[*by, "n", "missing", "mean", "min", "max", "low", "high"])


def varying(table: pd.DataFrame, over: str | None = "seed") -> list[str]:
    """Return the parameters of `sweep`'s table that have several values, but for ``over``.

    >>> varying(pd.DataFrame({"seed": [0, 1], "model": ["a", "b"], "steps": 2, "status": ""}))
    ['model']
    """
    columns = list(table.columns)  # the parameters first
    names = columns[: columns.index("status")] if "status" in columns else []
    values = {name: table[name].map(_hashable) for name in names if name != over}
    return [name for name, each in values.items() if each.nunique(dropna=False) > 1]


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value


def as_numbers(values: pd.Series[Any], name: str) -> pd.Series[float]:
    """Return a column as floats, nan where it is missing; `ArgumentError` for what is no number."""
    known = values.astype(object).where(values.notna(), math.nan)
    for value in known:
        if not (pd.api.types.is_number(value) or pd.api.types.is_bool(value)):
            raise ArgumentError(f"Column {name!r} holds no numbers: {value!r}.")
    return known.astype(float)
