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
        Columns whose values are kept apart, lists by their text; by default all parameters of a
        sweep but ``over``.
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
    # The parameters of a sweep stand first.
    columns = list(table.columns)
    parameters = columns[: columns.index("status")] if "status" in columns else []
    by = [name for name in parameters if name != over] if by is None else by
    by = [by] if isinstance(by, str) else list(by)
    require_columns(table, "table", [metric, *by])
    table = table.copy()
    for name in {*parameters, *by}:  # lists can neither be counted nor grouped
        if table[name].dtype == object:
            table[name] = [str(v) if isinstance(v, (list, dict)) else v for v in table[name]]
    for name in parameters:
        if name not in (over, *by) and table[name].nunique(dropna=False) > 1:
            raise ArgumentError(
                f"by={by!r}: the parameter {name!r} varies as well, and its values are no "
                f"repetitions. Name it in by=, or give the rows of one value of it."
            )
    table[metric] = as_numbers(table[metric], metric)
    rows = []
    for key, runs in table.groupby(by, dropna=False) if by else [((), table)]:
        values = runs[metric].dropna()
        figures = (values.mean(), values.min(), values.max())
        ends = mean_interval(values.to_numpy(), confidence)
        rows.append((*key, len(values), len(runs) - len(values), *figures, *ends))
    return pd.DataFrame(rows, columns=[*by, "n", "missing", "mean", "min", "max", "low", "high"])


def as_numbers(values: pd.Series[Any], name: str) -> pd.Series[float]:
    """Return a column as floats, nan where it is missing; `ArgumentError` for what is no number."""
    known = values.astype(object).where(values.notna(), math.nan)
    for value in known:
        if not (pd.api.types.is_number(value) or pd.api.types.is_bool(value)):
            raise ArgumentError(f"Column {name!r} holds no numbers: {value!r}.")
    return known.astype(float)
