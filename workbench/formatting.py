"""How a statistic is shown and stored: text with its interval, a small table, plain data."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import numpy as np
import pandas as pd


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


def bar(*, total: int, desc: str | None, disable: bool = False) -> Any:
    """A tqdm bar over ``total`` steps; ``disable`` makes one that shows nothing."""
    if os.environ.get("WORKBENCH_PROGRESS") == "text":
        from tqdm.std import tqdm

        # A log has no cursor: a line now and then rather than one redrawn all the time. On stdout,
        # since saved notebooks show stderr as if something had gone wrong.
        return tqdm(
            total=total, desc=desc, disable=disable, mininterval=1.0, ncols=90, file=sys.stdout
        )
    from tqdm.auto import tqdm as auto_tqdm

    return auto_tqdm(total=total, desc=desc, disable=disable)


def say(text: str) -> None:
    """Print text where a progress bar may be on the screen."""
    from tqdm.std import tqdm

    tqdm.write(text)
