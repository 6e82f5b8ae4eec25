"""How a statistic is shown and stored: text with its interval, a small table, plain data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from workbench.coefficients import UNDEFINED, Interval


def figure(value: float, interval: Interval = UNDEFINED, *, sign: bool = False) -> str:
    """A figure with its interval as text: ``0.848 [0.829, 0.865]``; "undefined" for nan."""
    if math.isnan(value):
        return "undefined"
    if not sign:
        return f"{value:.3f} {interval}".strip()
    ends = "" if math.isnan(interval.low) else f"[{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{value:+.3f} {ends}".strip()


def html_table(table: pd.DataFrame, *, index: bool = True) -> str:
    """A small HTML table with everything escaped."""
    return str(
        table.to_html(index=index, border=0, escape=True, na_rep="", float_format="{:.3f}".format)
    )


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """Data that JSON takes, from tables, intervals and numpy numbers; nan becomes None."""
    return {str(key): _plain(value) for key, value in data.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
