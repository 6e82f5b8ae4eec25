"""Two judges on the same labelled items: before against after."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, plain
from workbench.metrics.agreement import Agreement, agreement, figures_as_data
from workbench.metrics.coefficients import Statistic, Weights, mcnemar
from workbench.metrics.figures import ROUNDING, Coded, Sample, confusion_of
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    Result,
    effective_share,
    figure,
    mean_interval,
    paired_difference,
)
from workbench.pairing.pairs import Groups, Pairs
from workbench.scale import Scale

ENOUGH_PAIRS = 30  # fewer cannot tell two judges apart by anything but luck


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Two judges on the same labelled items.

    Attributes
    ----------
    n
        Items that both judged; the items of one only are in ``only_before`` and ``only_after``.
    before, after
        `Agreement` of each judge on those items.
    changes
        Name of a figure -> (after minus before, its interval). Items are compared with
        themselves: shares by Newcombe's paired interval, means by Student's, the rest by a
        bootstrap. The latter two have no interval where the judges never differ.
    fixed, broken, still_wrong
        Items that only the judge after, only the judge before, and neither got right:
        ``trace_id``, ``human``, ``before``, ``after``. On a numeric scale, where hardly a verdict
        equals its label, fixed and broken mean nearer to it and farther from it.
    p_value
        McNemar's exact test of fixed against broken (on a numeric scale this is the sign test);
        where items belong together, whole groups are exchanged.
    improved
        Whether more items are right than before; where as many are, whether the mean distance
        fell. On a numeric scale, whether the mean distance fell.
    power_note
        Why there are too few items to tell the two apart; "" where there are enough.
    """

    shown = ("significant", "enough")

    n: int
    before: Agreement
    after: Agreement
    changes: dict[str, tuple[float, Interval]]
    fixed: pd.DataFrame
    broken: pd.DataFrame
    still_wrong: pd.DataFrame
    p_value: float
    improved: bool
    power_note: str
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    confidence: float

    @property
    def enough(self) -> bool:
        """Whether there are enough items to tell the two apart."""
        return not self.power_note

    @property
    def significant(self) -> bool:
        """Whether ``p_value`` is below 1 - confidence, in either direction."""
        return self.p_value < 1 - self.confidence

    @property
    def certain(self) -> bool:
        """Whether the judge after is better, and the gain hardly luck."""
        # Of numbers more may have moved away though the mean distance fell.
        return self.improved and self.significant and len(self.fixed) > len(self.broken)

    @property
    def accuracy_change(self) -> float:
        return self.changes["accuracy"][0]

    @property
    def accuracy_change_interval(self) -> Interval:
        return self.changes["accuracy"][1]

    @property
    def kappa_change(self) -> float:
        return self.changes["kappa"][0]

    @property
    def kappa_change_interval(self) -> Interval:
        return self.changes["kappa"][1]

    @property
    def table(self) -> pd.DataFrame:
        """Index figure; ``before``, ``after`` and ``change`` as text with their intervals."""
        before, after = self.before.figures, self.after.figures
        rows = [
            (figure(*before[name]), figure(*after[name]), figure(*change, sign=True))
            for name, change in self.changes.items()
        ]
        return pd.DataFrame(rows, index=list(self.changes), columns=["before", "after", "change"])

    @property
    def summary(self) -> str:
        """One sentence: what changed, on how many items, and how sure that is."""
        if self.n == 0:
            return "There is no item to compare the two judges on."
        name, fixed, broken, test = "accuracy", "fixed", "broken", "McNemar's test"
        rest = f" Always giving the most frequent label scores {figure(self.after.baseline)}."
        if self.before.scale.kind == "numeric":
            name, fixed, broken, test = "mean distance", "nearer", "farther", "sign test"
            rest = f" Always giving the median label has {figure(self.after.baseline_distance)}."
        before, after = self.before.figures[name][0], self.after.figures[name][0]
        return (
            f"{name.capitalize()} {figure(before)} before and {figure(after)} after on "
            f"{counted(self.n, 'item')}: {len(self.fixed)} {fixed}, {len(self.broken)} {broken} "
            f"({test}: p = {self.p_value:.2g}).{rest}"
        )

    @property
    def notes(self) -> list[str]:
        """What a reader should know beside the figures."""
        found = [self.power_note] if self.power_note else []
        if self.enough and self.improved and not self.certain:
            counts = f"{len(self.fixed)} items are better and {len(self.broken)} worse"
            found.append(f"The gain may be luck: {counts}, p = {self.p_value:.2g}.")
        if left_out := len(self.only_before) + len(self.only_after):
            found.append(f"Left out: {counted(left_out, 'item')} judged by one of the two alone.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return super().to_dict() | plain({"changes": figures_as_data(self.changes)})

    def __repr__(self) -> str:
        return f"<Comparison: {self.summary}>"

    def __str__(self) -> str:
        return "\n".join([self.table.to_string(na_rep=""), self.summary, *self.notes])


def compare(
    before: Pairs,
    after: Pairs,
    *,
    groups: Groups = None,
    weights: Weights | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Comparison:
    """Compare two judges on the same labelled items.

    Parameters
    ----------
    before, after
        Pairs of two judges, joined on ``trace_id``.
    groups, weights, confidence, seed, resamples
        As in `agreement`. What a split kept together is together here as well.

    Raises
    ------
    ArgumentError
        When the two have no trace in common, other scales, or other human labels on a trace.
    """
    ids = [set(each.trace_ids) for each in (before, after)]
    before, after = _same_items(before, after, ids[0] & ids[1])
    before = before.grouped(groups)
    after = replace(after, group_of=before.group_of)
    options: Any = {"confidence": confidence, "seed": seed, "resamples": resamples}
    first, second = (agreement(each, weights=weights, **options) for each in (before, after))
    one, two = Coded.of(before, after), Coded.of(after, before)
    # With the rows of both, so that matrices of numbers can be compared.
    first = replace(first, confusion=confusion_of(one))
    second = replace(second, confusion=confusion_of(two))
    changes = _changes(first, second, one, two, **options)
    gap_before, gap_after = (each.distances(each.human, each.judge) for each in (one, two))
    improved = second.mean_distance < first.mean_distance - ROUNDING
    if one.scale.kind == "numeric":
        fixed, broken = gap_after < gap_before - ROUNDING, gap_after > gap_before + ROUNDING
    else:
        fixed, broken = (gap_before > 0) & (gap_after == 0), (gap_before == 0) & (gap_after > 0)
        gain = fixed.sum() - broken.sum()
        improved = bool(gain > 0 or (gain == 0 and improved))
    gains = np.bincount(one.groups, fixed * 1.0 - broken)
    items = before.table[["trace_id", "human"]].assign(
        before=before.table["judge"], after=after.table["judge"]
    )
    return Comparison(
        n=len(items),
        before=first,
        after=second,
        changes=changes,
        fixed=items[fixed].reset_index(drop=True),
        broken=items[broken].reset_index(drop=True),
        still_wrong=items[(gap_before > 0) & (gap_after > 0)].reset_index(drop=True),
        p_value=mcnemar(gains),
        improved=improved,
        power_note=_power_note(len(gains)),
        only_before=tuple(sorted(ids[0] - ids[1])),
        only_after=tuple(sorted(ids[1] - ids[0])),
        confidence=confidence,
    )


def _same_items(before: Pairs, after: Pairs, common: set[str]) -> list[Pairs]:
    if not common and (len(before) or len(after)):
        raise ArgumentError(
            f"The two sets of pairs ({len(before)} before, {len(after)} after) have no "
            "trace in common. Let both judges judge the same labelled traces."
        )
    scale = _same_scale(before, after)
    one, two = (
        each.table[np.array([i in common for i in each.trace_ids], dtype=bool)].sort_values(
            "trace_id", ignore_index=True
        )  # ten times faster than isin on pandas' strings
        for each in (before, after)
    )
    other = one["human"].to_numpy() != two["human"].to_numpy()
    if other.any():
        row, theirs = one[other].iloc[0], two[other].iloc[0]["human"]
        raise ArgumentError(
            f"{counted(int(other.sum()), 'trace')} with another human label before than after, "
            f"e.g. {row['trace_id']}: {row['human']!r} and {theirs!r}. Pair both judges again, "
            "with the same consensus and the labels of today."
        )
    return [
        replace(pairs, table=table, scale=scale, excluded=pairs.excluded.iloc[0:0])
        for pairs, table in ((before, one), (after, two))
    ]


def _same_scale(before: Pairs, after: Pairs) -> Scale:
    """The scale of both; of observed ranges the wider."""
    one, two = before.scale, after.scale
    if (one.kind, one.values, one.limits) != (two.kind, two.values, two.limits):
        raise ArgumentError(
            f"The two sets of pairs are on different scales: {one} before, {two} after. Pair both "
            "judges with the same scale=."
        )
    ends = [end for end in (one.low, one.high, two.low, two.high) if end is not None]
    seen = [v for each in (before, after) for v in (*each.table["human"], *each.table["judge"])]
    low, high = one.limits
    return replace(one, low=low, high=high).with_range([*ends, *seen])


def _changes(
    first: Agreement, second: Agreement, before: Coded, after: Coded, **options: Any
) -> dict[str, tuple[float, Interval]]:
    sample, groups = Sample(before, after, **options), before.groups
    old, new = (sample.statistics(first.weights, judge) for judge in (0, 1))
    earlier, later = before.measures, after.measures
    changes: dict[str, tuple[float, Interval]] = {}
    for name, (value, _) in first.figures.items():
        if name.startswith("AC") and first.scale.kind == "numeric":
            continue  # each judge's counts the values seen as categories
        change, interval = second.figures[name][0] - value, UNDEFINED
        if name in earlier:
            (rows, one), (_, two) = earlier[name], later[name]
            interval = _change_of_mean(one[rows], two[rows], groups[rows], options["confidence"])
        elif not math.isnan(change):
            interval = sample.bootstrap.interval(_difference(old[name], new[name]))
        changes[name] = (change, interval)
    return changes


def _difference(old: Statistic, new: Statistic) -> Statistic:
    return lambda counts: new(counts) - old(counts)


def _change_of_mean(old: Array, new: Array, groups: Array, confidence: float) -> Interval:
    """Newcombe's interval of the change in a share of hits, Student's in any other mean."""
    if old.dtype != bool:
        return mean_interval(new - old, confidence, groups)
    share = effective_share(new * 1.0 - old, groups, confidence)
    sides = (old & new, old & ~new, ~old & new, ~old & ~new)
    both, only_old, only_new, neither = (float(side.sum()) * share for side in sides)
    return paired_difference(both, only_old, only_new, neither, confidence)


def _power_note(n: int) -> str:
    """Why ``n`` independent pairs tell too little; "" where they are enough."""
    if n >= ENOUGH_PAIRS:
        return ""
    return (
        f"Too few to tell: with fewer than {ENOUGH_PAIRS} independent pairs (there "
        f"are {n}), the size of a gain or a loss is very uncertain, and it may be luck."
    )
