"""Agreement by slice: where judge and people differ more than elsewhere."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, html_table, plain
from workbench.metrics.coefficients import Coded, Sample
from workbench.metrics.intervals import Array, Interval, effective_size, figure, proportion
from workbench.scale import ABSTAIN
from workbench.vocabulary import fold, is_missing

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs
    from workbench.store.traces import Example

By = str | Mapping[str, Hashable]

SMALLEST = 10
"""Slices with fewer pairs than this are pooled."""

FEW = 30
"""Slices with fewer pairs than this are marked."""

BANDS = 4
"""Bands of length, with about as many items in each."""

LONGEST = 80
"""A field with longer texts than this is no division of the items that anybody made."""

OTHER = "other"
"""The slice of what is in slices too small."""

NOTHING = "(none)"
"""The slice of the items that have no value."""

COLUMNS = [
    "n", "accuracy", "accuracy_low", "accuracy_high", "kappa", "kappa_low", "kappa_high",
    "difference", "p_value", "note",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Slices:
    """How well a judge agrees with people on each part of the items.

    Attributes
    ----------
    name, by, n
        The judge's name, what the items are divided by, and the number of pairs.
    table
        Index slice; ``n``, ``accuracy`` and ``kappa`` with the ends of their intervals
        (``accuracy_low``, ...), ``difference`` (accuracy here minus accuracy on all other pairs),
        ``p_value`` of that difference, ``p_adjusted`` (Holm, since many slices are looked at) and
        ``note``. Slices of fewer than 10 pairs are pooled in one row, ``other (k slices)``. On a
        numeric scale, where hardly a verdict equals its label, ``mean_distance`` is there as well,
        and the difference and its test are in that.
    accuracy, accuracy_interval, kappa, kappa_interval
        Over all pairs.
    """

    name: str
    by: str
    n: int
    table: pd.DataFrame
    accuracy: float
    accuracy_interval: Interval
    kappa: float
    kappa_interval: Interval
    confidence: float = 0.95

    @property
    def differing(self) -> pd.DataFrame:
        """Rows of `table` that differ from the rest, with all slices looked at counted in."""
        return self.table[self.table["p_adjusted"] < 1 - self.confidence]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain({**vars(self), "table": self.table.reset_index()})

    def __repr__(self) -> str:
        return (
            f"<Slices of {self.name!r} by {self.by}: {counted(len(self.table), 'slice')}, "
            f"{counted(self.n, 'pair')}, accuracy {figure(self.accuracy, self.accuracy_interval)}, "
            f"{len(self.differing)} differing from the rest>"
        )

    def _repr_html_(self) -> str:
        return html_table(self.table)


def sliced(
    pairs: Pairs, by: By, *, groups: Array | None, confidence: float, seed: int, resamples: int
) -> Slices:
    """Return the agreement by slice; see `workbench.agreement` for the arguments."""
    rows = by_annotator(pairs) if by == "annotator" else pairs
    if by == "annotator" and not len(rows):
        raise ArgumentError(
            "by='annotator' needs the votes of the annotators, which these pairs do not hold. "
            "workbench.pair(judge) keeps them."
        )
    coded = Coded.of(rows)
    if groups is not None:
        number = dict(zip(pairs.trace_ids, groups.tolist(), strict=True))
        coded = replace(coded, groups=np.array([number[i] for i in rows.trace_ids], dtype=int))
    names = pooled(_names(rows, by))
    options: dict[str, Any] = {"confidence": confidence, "seed": seed, "resamples": resamples}
    gaps = coded.distances(coded.human, coded.judge) if coded.scale.kind == "numeric" else None
    found = {
        name: _row(coded, (names == name).to_numpy(), gaps, options)
        for name in _in_order(names, natural=by in ("length", "week"))
    }
    table = pd.DataFrame.from_dict(found, orient="index", columns=None if found else COLUMNS)
    table = table.rename_axis("slice")
    if by == "annotator" and (left_out := pairs.contested):
        lacking = f"without {counted(left_out, 'item')} on which annotators differ"
        table["note"] = [f"{note}; {lacking}" if note else lacking for note in table["note"]]
    whole = _figures(Coded.of(pairs), options)
    return Slices(
        name=pairs.name,
        by=by if isinstance(by, str) else "group",
        n=len(pairs),
        table=_adjusted(table),
        accuracy=whole["accuracy"][0],
        accuracy_interval=whole["accuracy"][1],
        kappa=whole["kappa"][0],
        kappa_interval=whole["kappa"][1],
        confidence=confidence,
    )


# -- which slice a pair belongs to ----------------------------------------------------------


def by_annotator(pairs: Pairs) -> Pairs:
    """Return the verdicts with each annotator's own label: one row an item and ``annotator``."""
    table = pairs.table
    rows = [
        (trace_id, vote, verdict, who)
        for trace_id, verdict, votes in zip(
            table["trace_id"], table["judge"], table["votes"], strict=True
        )
        for who, vote in votes.items()
        if vote is not ABSTAIN
    ]
    made = pd.DataFrame(rows, columns=["trace_id", "human", "judge", "annotator"], dtype=object)
    return replace(pairs, table=made)


def _names(pairs: Pairs, by: By) -> pd.Series[Any]:
    """The name of each row's slice."""
    ids = pairs.trace_ids
    if isinstance(by, Mapping):
        found: Mapping[str, Any] = {i: by[i] for i in ids if i in by}
    elif by in pairs.table.columns:
        return _written(pairs.table[by])
    else:
        found = _of_traces(ids, by)
    return _written([found.get(i) for i in ids])


def _written(values: Iterable[Any]) -> pd.Series[Any]:
    """Values as text; those that are written alike share the first writing."""
    return pd.Series(slice_names(values), dtype=object)


def slice_names(values: Iterable[Any], *, nothing: str = NOTHING) -> list[str]:
    """Return the name of each value's slice; those that are written alike share the first one."""
    first: dict[str, str] = {}
    texts = [nothing if is_missing(value) else _as_text(value) for value in values]
    return [first.setdefault(fold(text), text) for text in texts]


def _of_traces(ids: list[str], by: str) -> Mapping[str, Any]:
    """What the traces have under a name."""
    from workbench.store.traces import examples, fetch_traces

    infos = [trace.info for trace in fetch_traces(ids, spans=False)]
    if tagged := {info.trace_id: info.tags[by] for info in infos if by in info.tags}:
        return tagged
    if by == "week":
        return {info.trace_id: week_of(info.request_time) for info in infos}
    fields = fields_of(examples(ids))  # with their spans, which takes longer
    if by not in fields:
        known = ", ".join(map(repr, sorted(fields.keys() - {"length", "week"}))) or "none"
        raise ArgumentError(
            f"by={by!r} is neither a tag nor an input of these traces. There are: {known}; besides "
            "'annotator', 'length' and 'week'."
        )
    return fields[by]


def fields_of(examples: Iterable[Example]) -> dict[str, dict[str, Any]]:
    """Return what items can be divided by: name -> trace id -> value.

    These are the keys of the inputs, the band of ``"length"`` of the outputs, the ``"week"`` of
    the requests, and tags, of which the last counts where names are equal.
    """
    inputs: dict[str, dict[str, Any]] = defaultdict(dict)
    tags: dict[str, dict[str, Any]] = defaultdict(dict)
    lengths, weeks = {}, {}
    for one in examples:
        lengths[one.trace_id] = len(_as_text(one.outputs))
        if one.requested is not None:
            weeks[one.trace_id] = week_of(one.requested)
        for name, value in one.inputs.items() if isinstance(one.inputs, dict) else ():
            inputs[str(name)][one.trace_id] = value
        for name, value in one.tags.items():
            if not name.startswith("workbench."):
                tags[name][one.trace_id] = value
    return {**inputs, "length": _bands(lengths), "week": weeks, **tags}


def short_fields(examples: Iterable[Example]) -> dict[str, dict[str, Any]]:
    """Return those of `fields_of` that have a short name and hold short texts and numbers alone."""

    def is_short(value: Any) -> bool:
        return isinstance(value, (str, int, float)) and len(str(value)) <= LONGEST

    fields = fields_of(examples)
    return {k: found for k, found in fields.items() if all(map(is_short, [k, *found.values()]))}


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def week_of(ms: float) -> str:
    """Return the ISO week of a time in milliseconds since 1970, UTC: ``"2025, week 07"``."""
    year, week, _ = datetime.fromtimestamp(ms / 1000, timezone.utc).isocalendar()
    return f"{year}, week {week:02}"


def _bands(lengths: dict[str, int]) -> dict[str, str]:
    """The band of each length: quarters of the items, named by the lengths that they hold."""
    series = pd.Series(lengths, dtype=float)
    band = pd.qcut(series, BANDS, labels=False, duplicates="drop").fillna(0)
    ends = series.groupby(band).agg(["min", "max"])
    names = {k: f"{low:,.0f} to {high:,.0f} characters" for k, low, high in ends.itertuples()}
    return {str(trace_id): names[k] for trace_id, k in band.items()}


def pooled(names: pd.Series[Any]) -> pd.Series[Any]:
    """Return the names of slices, with one for all of those that are too small.

    A single small slice keeps its own.
    """
    sizes = names.value_counts()
    small = sizes.index[sizes < SMALLEST]
    if len(small) < 2:
        return names
    return names.where(~names.isin(small), f"{OTHER} ({counted(len(small), 'slice')})")


def _in_order(names: pd.Series[Any], *, natural: bool) -> list[str]:
    """Slices by their first number (years, lengths), else the largest first; the pooled last."""
    sizes = names.value_counts()

    def place(name: str) -> tuple[bool, float, str]:
        head = name.split(" ", 1)[0].replace(",", "")
        number = float(head) if head.isdigit() else math.inf
        return name.startswith(f"{OTHER} ("), number if natural else -float(sizes[name]), name

    return sorted(sizes.index, key=place)


# -- figures --------------------------------------------------------------------------------


def _figures(coded: Coded, options: dict[str, Any]) -> dict[str, tuple[float, Interval]]:
    sample = Sample.of(coded, **options)
    right = proportion(coded.human == coded.judge, coded.groups, options["confidence"])
    statistics = sample.statistics("quadratic" if coded.scale.ordered else None)
    kept = {name: statistics[name] for name in ("kappa", "mean distance")}
    return {"accuracy": right} | {k: sample.figure(k, one) for k, one in kept.items()}


def _row(coded: Coded, here: Array, gaps: Array | None, options: dict[str, Any]) -> dict[str, Any]:
    n, found = int(here.sum()), _figures(coded.where(here), options)
    row: dict[str, Any] = {"n": n}
    for name in ("accuracy", "kappa", *(["mean distance"] if gaps is not None else [])):
        value, interval = found[name]
        column = name.replace(" ", "_")
        row |= {column: value, f"{column}_low": interval.low, f"{column}_high": interval.high}
    notes = [f"fewer than {FEW} pairs"] * (n < FEW)
    notes += ["kappa undefined: one value throughout"] * math.isnan(row["kappa"])
    right = (coded.human == coded.judge).astype(float)
    sides = [
        (values[part], effective_size(values[part], coded.groups[part]))
        for values, part in [(right if gaps is None else gaps, part) for part in (here, ~here)]
        if part.any()
    ]
    difference = p_value = math.nan
    if len(sides) == 2:
        difference = float(sides[0][0].mean() - sides[1][0].mean())
        p_value = _p_of_shares(sides) if gaps is None else _p_of_means(sides)
    return row | {"difference": difference, "p_value": p_value, "note": "; ".join(notes)}


Sides = list[tuple[Array, float]]
"""Values of a slice and of the rest, each with how many independent ones they are worth."""


def _p_of_shares(sides: Sides) -> float:
    from scipy.stats import fisher_exact

    right = [(round(values.mean() * size), round(size)) for values, size in sides]
    return float(fisher_exact([[hits, size - hits] for hits, size in right]).pvalue)


def _p_of_means(sides: Sides) -> float:
    """Welch's t-test; nan where one side has a single value or neither varies."""
    from scipy.stats import ttest_ind_from_stats

    if any(size < 2 for _, size in sides) or not any(np.ptp(values) for values, _ in sides):
        return math.nan
    one, two = ((values.mean(), values.std(ddof=1), size) for values, size in sides)
    return float(ttest_ind_from_stats(*one, *two, equal_var=False).pvalue)


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p-values that hold for all slices together (Holm 1979)."""
    tested = table["p_value"].notna()
    adjusted = pd.Series(math.nan, index=table.index)
    if tested.any():
        from statsmodels.stats.multitest import multipletests

        adjusted[tested] = multipletests(table.loc[tested, "p_value"], method="holm")[1]
    return table.assign(p_adjusted=adjusted, note=table.pop("note"))
