"""How far a report says that its judge can be trusted: certificate, slices, and the test whether it
may stand in for an annotator. All of it is about held-out items.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.agreement import agreement
from workbench.metrics.alternative import alternative_annotator_test
from workbench.metrics.intervals import Interval, figure
from workbench.metrics.slices import SMALLEST, Slices, short_fields
from workbench.reporting.breakdowns import plot_slices
from workbench.reporting.content import grid, without_secrets
from workbench.reporting.drawing import as_svg

if TYPE_CHECKING:
    from workbench.alignment.certificate import Certificate
    from workbench.alignment.result import Alignment

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
    found = _divisions(alignment)
    shown = []
    for one in found[:MOST_DIVISIONS]:
        metric = "mean_distance" if "mean_distance" in one.table else "accuracy"
        measures = [metric] if metric == "mean_distance" else [metric, "kappa"]
        table = _ranges(one.table, *measures)
        table["p_adjusted"] = [_p_value(p) for p in table["p_adjusted"]]
        table = table[["n", *measures, "difference", "p_adjusted", "note"]]
        picture = as_svg(
            partial(plot_slices, one),
            width=6.2,
            height=1.3 + 0.34 * len(table),
            description=f"Agreement by {one.by}, with intervals",
        )
        shown.append({"by": one.by, "picture": Markup(picture), "table": _grid(table)})
    held_out = counted(alignment.comparison.n, "held-out item")
    return {
        "shown": shown,
        "others": [one.by for one in found[MOST_DIVISIONS:]],
        "why": f"No tag, input, length, week or annotator divides the {held_out} into several "
        f"slices of {SMALLEST} or more.",
    }


def _divisions(alignment: Alignment) -> list[Slices]:
    """Agreement on the held-out items by all that divides these into several slices."""
    pairs, known = alignment.held_out, alignment.examples
    ids = pairs.trace_ids
    fields = short_fields(known[i] for i in ids if i in known)
    names = [name for name in fields if name not in (*pairs.table.columns, "annotator")]
    columns: dict[str, Any] = {
        name: [fields[name].get(i) for i in pairs.trace_ids] for name in names
    }
    divided = replace(pairs, table=pairs.table.assign(**columns))
    if len({who for votes in pairs.table["votes"] for who in votes}) > 1:
        names.append("annotator")
    found = [agreement(divided, by=name) for name in names]
    return [one for one in found if len(one.table) > 1]


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
