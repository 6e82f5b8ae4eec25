"""How far a report says that its judge can be trusted: certificate, slices, and the test whether it
may stand in for an annotator. All of it is about held-out items.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.agreement import agreement
from workbench.metrics.alternative import alternative_annotator_test
from workbench.metrics.intervals import Interval, figure
from workbench.metrics.slices import SMALLEST, by_annotator, pooled, short_fields, slice_names
from workbench.reporting.breakdowns import plot_slices
from workbench.reporting.content import grid, without_secrets
from workbench.reporting.drawing import as_svg

if TYPE_CHECKING:
    from workbench.alignment.certificate import Certificate
    from workbench.alignment.result import Alignment
    from workbench.pairing.pairs import Pairs

MOST_DIVISIONS = 4
"""Of more ways to divide the items than this the others are only named."""


def certified(given: Certificate) -> dict[str, Any]:
    """Return what a certificate says."""
    ends = {"low": "value_low", "high": "value_high"}
    table = _ranges(given.table.rename(columns=ends), "value")[["value", "n", "threshold"]]
    table["passed"] = given.table["passed"].map({True: "yes", False: "no"})
    return {
        "headline": given.headline,
        "table": _grid(table),
        "notes": [*map(without_secrets, given.notes)],
    }


def divided(alignment: Alignment) -> dict[str, Any]:
    """Return pictures and tables of the agreement by slice; ``why`` there may be none."""
    pairs, names = _divisions(alignment)
    shown = []
    for name in names[:MOST_DIVISIONS]:
        found = agreement(pairs, by=name)
        metric = "mean_distance" if "mean_distance" in found.table else "accuracy"
        measures = [metric] if metric == "mean_distance" else [metric, "kappa"]
        table = _ranges(found.table, *measures)
        table["p_adjusted"] = [_p_value(p) for p in table["p_adjusted"]]
        table = table[["n", *measures, "difference", "p_adjusted", "note"]]
        picture = as_svg(
            partial(plot_slices, found),
            (6.2, 1.3 + 0.34 * len(table)),
            f"Agreement by {name}, with intervals",
        )
        shown.append({"by": name, "picture": picture, "table": _grid(table)})
    held_out = counted(len(pairs), "held-out item")
    return {
        "shown": shown,
        "others": names[MOST_DIVISIONS:],
        "why": f"No tag, input, length, week or annotator divides the {held_out} into several "
        f"slices of {SMALLEST} or more.",
    }


def _divisions(alignment: Alignment) -> tuple[Pairs, list[str]]:
    """The held-out pairs with a column for all that divides them into several slices, and what."""
    pairs, known = alignment.held_out, alignment.examples
    ids = pairs.trace_ids
    columns: dict[str, Any] = {}
    for name, found in short_fields(known[i] for i in ids if i in known).items():
        if name not in (*pairs.table.columns, "annotator"):
            values = pd.Series(slice_names(map(found.get, ids)), dtype=object)
            if pooled(values).nunique() > 1:
                columns[name] = values.to_numpy()
    names = list(columns)
    if pooled(by_annotator(pairs).table["annotator"]).nunique() > 1:
        names.append("annotator")
    return replace(pairs, table=pairs.table.assign(**columns)), names


def stand_in(alignment: Alignment) -> dict[str, Any] | None:
    """Return the alternative annotator test on held-out items; ``why`` it is not possible."""
    people = alignment.annotators
    if not people or len(people.annotators) < 2:
        return None
    pairs = alignment.held_out
    try:
        found = alternative_annotator_test(
            pairs, score="neg_rmse" if pairs.scale.kind == "numeric" else "accuracy"
        )
    except ArgumentError as error:
        return {"why": str(error)}
    if math.isnan(found.winning_rate):
        return {"why": " ".join(found.notes)}
    table = _ranges(found.table, "judge_advantage")
    table["p_adjusted"] = [_p_value(p) for p in table["p_adjusted"]]
    columns = ["n", "judge_advantage", "annotator_advantage", "p_adjusted", "note"]
    outcome = "may" if found.passed else "may not"
    advantage = figure(found.advantage_probability, found.advantage_interval)
    return {
        "why": "",
        "sentence": f"The judge {outcome} stand in for one of them: it wins over "
        f"{found.winning_rate:.0%} of the annotators, and at least half is needed. It is as near "
        f"to the others as an annotator, or nearer, with a probability of {advantage} "
        f"({counted(found.items, 'held-out item')}, epsilon {found.epsilon:g}).",
        "table": _grid(table[columns]),
        "notes": found.notes,
    }


def _ranges(table: pd.DataFrame, *measures: str) -> pd.DataFrame:
    """The table with each of these measures and its interval as one text."""
    made = table.copy()
    for name in measures:
        columns = [made[name], made[f"{name}_low"], made[f"{name}_high"]]
        made[name] = [
            figure(value, Interval(low, high)) for value, low, high in zip(*columns, strict=True)
        ]
    return made


def _grid(table: pd.DataFrame) -> dict[str, list[Any]]:
    empty = ["note"] if "note" in table and not table["note"].any() else []
    return grid(table.drop(columns=empty).reset_index())


def _p_value(p: float) -> str:
    return "below 0.001" if p < 0.001 else figure(p)
