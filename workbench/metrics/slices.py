"""Agreement by slice: where judge and people differ more than elsewhere."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact, ttest_ind_from_stats

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.coefficients import mcnemar, numbered
from workbench.metrics.figures import Coded, Figures, Sample
from workbench.metrics.intervals import (
    Array,
    Interval,
    Result,
    adjusted,
    effective_share,
    figure,
    with_ends,
)
from workbench.pairing.pairs import Pairs, field_text, trace_fields
from workbench.scale import ABSTAIN
from workbench.store.tables import check_division
from workbench.store.traces import Example, examples
from workbench.vocabulary import fold, group_key, is_missing, number

By = str | Mapping[str, Hashable]

SMALLEST = 10  # slices with fewer pairs are pooled
FEW = 30  # slices with fewer pairs are marked
LONGEST = 80  # a field with longer texts is no division of the items that anybody made
OTHER = "other"  # the slice of what is in slices too small


@dataclass(frozen=True, eq=False, repr=False)
class Slices(Result):
    """How well a judge agrees with people on each part of the items.

    Attributes
    ----------
    name, by, n
        The judge's name, what the items are divided by, and the number of pairs.
    table
        Index slice; ``n``, ``accuracy`` and ``kappa`` with the ends of their intervals
        (``accuracy_low``, ...), ``p_value`` of the test against all other pairs (Fisher's exact
        test), ``p_adjusted`` (Holm; two slices are one test) and ``note``. Slices of fewer than 10
        pairs are pooled in one row, ``other (k slices)``, but weeks are not. On a numeric scale
        ``mean_distance`` is there as well, and is what is tested (Welch). An annotator is tested
        against the others on the same items (McNemar; numbers are not tested).
    accuracy, accuracy_interval, kappa, kappa_interval, mean_distance, mean_distance_interval
        Over all pairs; the last two are None unless the scale is numeric.
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
    mean_distance: float | None = None
    mean_distance_interval: Interval | None = None

    def __repr__(self) -> str:
        said = f"accuracy {figure(self.accuracy, self.accuracy_interval)}"
        if self.mean_distance is not None and self.mean_distance_interval is not None:
            said = f"mean distance {figure(self.mean_distance, self.mean_distance_interval)}"
        differing = int((self.table["p_adjusted"] < 1 - self.confidence).sum())
        return (
            f"<Slices of {self.name!r} by {self.by}: {counted(len(self.table), 'slice')}, "
            f"{counted(self.n, 'pair')}, {said}, {differing} differing from the rest>"
        )


def sliced(pairs: Pairs, by: By, **options: Any) -> Slices:
    """Return the agreement by slice; see `workbench.agreement` for the arguments."""
    check_division("by", by)
    rows = by_annotator(pairs) if by == "annotator" else pairs
    coded = Coded.of(rows)
    names = pd.Series(slice_names(_values(rows, by)), dtype=object)
    names = names if by == "week" else pooled(names)
    items = numbered(rows.trace_ids) if by == "annotator" else None
    found = {
        name: _row(coded, (names == name).to_numpy(), items, options)
        for name in _in_order(names, natural=by in ("length", "week"))
    }
    empty = None if found else list(_row(coded, np.zeros(0, dtype=bool), items, options))
    table = pd.DataFrame.from_dict(found, orient="index", columns=empty).rename_axis("slice")
    if by == "annotator" and (left_out := pairs.contested):
        lacking = f"without {counted(left_out, 'item')} on which annotators differ"
        table["note"] = [f"{note}; {lacking}" if note else lacking for note in table["note"]]
    table.insert(len(table.columns) - 1, "p_adjusted", adjusted_slices(table["p_value"]))
    whole = _figures(Coded.of(pairs), options)
    return Slices(
        pairs.name, by if isinstance(by, str) else "group", len(pairs), table, *whole["accuracy"],
        *whole["kappa"], options["confidence"], *whole.get("mean distance", (None, None)),
    )  # fmt: skip


def adjusted_slices(p_values: pd.Series[float]) -> pd.Series[float]:
    """Return Holm's p-values; each of two slices against the other is one and the same test."""
    is_one = len(p_values) == 2 and np.ptp(p_values) < 1e-9
    return p_values if is_one else adjusted(p_values, "holm")


def by_annotator(pairs: Pairs) -> Pairs:
    """Return the verdicts with each annotator's own label: one row an item and ``annotator``."""
    rows = [
        (trace_id, vote, verdict, who)
        for trace_id, verdict, votes in pairs.table[["trace_id", "judge", "votes"]].to_numpy()
        for who, vote in votes.items()
        if vote is not ABSTAIN
    ]
    made = pd.DataFrame(rows, columns=["trace_id", "human", "judge", "annotator"], dtype=object)
    return replace(pairs, table=made)


def _values(pairs: Pairs, by: By) -> list[Any]:
    """The value of each pair that tells its slice."""
    if not isinstance(by, str):
        return [by.get(i) for i in pairs.trace_ids]
    if by in pairs.table.columns:
        return list(pairs.table[by])
    fields = fields_of(examples(pairs.trace_ids))
    if by not in fields:
        known = ", ".join(map(repr, sorted(fields.keys() - {"length", "week"}))) or "none"
        raise ArgumentError(
            f"by={by!r} is neither a tag nor an input of these traces. There are: {known}; besides "
            "'annotator', 'length' and 'week'."
        )
    return [fields[by].get(i) for i in pairs.trace_ids]


def slice_names(values: Iterable[Any], *, nothing: str = "(none)") -> list[str]:
    """Return the name of each value's slice; those that are written alike share the first one."""
    first: dict[str, str] = {}
    texts = [nothing if is_missing(value) else field_text(value) for value in values]
    # Versions 1.1 and 1.10 are two.
    keys = [fold(text) if number(text) is None else group_key(text) for text in texts]
    return [first.setdefault(key, text) for key, text in zip(keys, texts, strict=True)]


def fields_of(examples: Iterable[Example]) -> dict[str, dict[str, Any]]:
    """Return what items can be divided by: name -> trace id -> value.

    ``"length"``, ``"week"``, keys of the inputs and tags, of equal names the last of these.
    """
    items = list(examples)
    lengths = {one.trace_id: len(field_text(one.outputs)) for one in items}
    weeks = {one.trace_id: week_of(one.requested) for one in items if one.requested is not None}
    return {"length": _bands(lengths), "week": weeks} | trace_fields(items)


def short_fields(examples: Iterable[Example]) -> dict[str, dict[str, Any]]:
    """Return those of `fields_of` that have a short name and hold short texts and numbers alone."""

    def is_short(value: Any) -> bool:
        return isinstance(value, (str, int, float)) and len(str(value)) <= LONGEST

    fields = fields_of(examples)
    return {k: found for k, found in fields.items() if all(map(is_short, [k, *found.values()]))}


def week_of(ms: float) -> str:
    """Return the ISO week of a time in milliseconds since 1970, UTC: ``"2025, week 07"``."""
    return datetime.fromtimestamp(ms / 1000, timezone.utc).strftime("%G, week %V")


def _bands(lengths: dict[str, int]) -> dict[str, str]:
    """The band of each length: quarters of the items, named by the lengths that they hold."""
    series = pd.Series(lengths, dtype=float)
    band = pd.qcut(series, 4, labels=False, duplicates="drop").fillna(0)
    ends = series.groupby(band).agg(["min", "max"])
    names = {k: f"{low:,.0f} to {high:,.0f} characters" for k, low, high in ends.itertuples()}
    return dict(band.map(names))


def pooled(names: pd.Series[Any]) -> pd.Series[Any]:
    """Return the names of slices, with one for all that are too small if these are several."""
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


def _figures(coded: Coded, options: dict[str, Any]) -> Figures:
    names = ["accuracy", "kappa", *["mean distance"] * (coded.scale.kind == "numeric")]
    return Sample(coded, **options).figures(*names)


def _row(coded: Coded, here: Array, items: Array | None, options: dict[str, Any]) -> dict[str, Any]:
    """A row of `Slices.table`; ``items`` are those of the rows where several rows have the same."""
    n, row = int(here.sum()), dict[str, Any]()
    human, judge, groups = (side[here] for side in (coded.human, coded.judge, coded.groups))
    part = replace(coded, human=human, judge=judge, groups=groups)
    for name, (value, interval) in _figures(part, options).items():
        row |= with_ends(name.replace(" ", "_"), value, interval)
    if items is None:
        p_value = _against_rest(coded, here, options["confidence"])
    else:
        p_value = _against_others(coded, here, items)
    numeric = coded.scale.kind == "numeric"
    notes = [f"fewer than {FEW} pairs"] * (n < FEW)
    notes += ["kappa undefined"] * (math.isnan(row["kappa"]) and not numeric)
    notes += ["no test: too little to compare"] * math.isnan(p_value)
    return {"n": n} | row | {"p_value": p_value, "note": "; ".join(notes)}


def _against_others(coded: Coded, here: Array, items: Array) -> float:
    """McNemar's p-value of an annotator against the others on the same items; nan of numbers."""
    if coded.scale.kind == "numeric":
        return math.nan
    right = (coded.human == coded.judge).astype(float)
    gains = right * np.bincount(items)[items] - np.bincount(items, right)[items]
    return mcnemar(np.rint(np.bincount(coded.groups[here], gains[here])))


def _against_rest(coded: Coded, here: Array, confidence: float) -> float:
    """Fisher's or Welch's p-value of a slice against the rest, of as many as are independent."""
    numeric = coded.scale.kind == "numeric"
    values = coded.distances(coded.human, coded.judge) if numeric else coded.human == coded.judge
    sides = [values[part] * 1.0 for part in (here, ~here)]
    if not all(map(len, sides)):
        return math.nan
    groups = coded.groups[here], coded.groups[~here]
    means = [float(own.mean()) for own in sides]
    sizes = [
        len(own) * effective_share(own, of, confidence)
        for own, of in zip(sides, groups, strict=True)
    ]
    if not numeric:
        hits = [round(mean * n) for mean, n in zip(means, sizes, strict=True)]
        misses = [round(n) - k for k, n in zip(hits, sizes, strict=True)]
        return float(fisher_exact([hits, misses]).pvalue)
    if min(sizes) < 2 or not any(map(np.ptp, sides)):
        return math.nan
    spreads = [float(own.std(ddof=1)) for own in sides]
    one, two = zip(means, spreads, sizes, strict=True)
    return float(ttest_ind_from_stats(*one, *two, equal_var=False).pvalue)
