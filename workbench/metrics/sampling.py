"""Shares among all items of a queue, estimated from labels that rules and chance have chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, plain
from workbench.metrics.intervals import UNDEFINED, Interval, check_confidence, figure
from workbench.store.tables import require_columns

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs


@dataclass(frozen=True)
class Estimate:
    """A share among all items of a queue at its last random draw, estimated from its labels.

    Attributes
    ----------
    value
        The estimate. Unbiased where every drawn item has an answer, so that it may lie outside
        [0, 1] by a little; nan without a random draw.
    interval
        By Student's t, cut to [0, 1]; nan for fewer than two random draws. With few of them,
        or a rare value, it is rough, and rather too short.
    n, random
        Labels used, and the random draws that the estimate is the mean of: those made since the
        queue last grew.
    """

    value: float
    interval: Interval
    n: int
    random: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(vars(self))

    def __repr__(self) -> str:
        return (
            f"<Estimate {figure(self.value, self.interval)} from {counted(self.n, 'label')}, "
            f"{self.random} of them drawn at random>"
        )


def sampled_share(
    labels: pd.DataFrame, is_so: Mapping[str, bool | float], *, confidence: float = 0.95
) -> Estimate:
    """Estimate the share of items that are so, in the whole queue that labels were drawn from.

    The queue is what the last random draw was from: all batches up to the present one, and all
    traces that had joined. Each random draw estimates the total of that queue: what was labelled
    before it, plus its own outcome divided by its probability. Their mean is unbiased, whatever
    was labelled before the queue grew (Raj 1956, JASA 51, 269-284). Soon after it grew there are
    few draws, and the interval is wide, or nan. Where the queue only got smaller, since others
    took items of it, earlier draws are averaged with the rest: that is right where what left is
    like what stayed, as when the others draw at random too.

    Parameters
    ----------
    labels
        One annotator's labels on one question, as ``session.labels`` gives them: one row a trace
        with ``trace_id``, ``draw``, ``pool``, ``probability`` and ``value``. Rows without a draw,
        which were labelled elsewhere, count as known from when they were (``at``), or from the
        beginning.
    is_so
        0 to 1 for each trace id. Traces that it lacks have no answer: they count neither as so nor
        as not so.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    ArgumentError
        For several labels on one trace (several questions or annotators), or missing columns.

    Examples
    --------
    >>> rows = [("a", 1, 4, 1 / 4), ("b", 2, 4, None), ("c", 3, 4, 1 / 2)]
    >>> names = ["trace_id", "draw", "pool", "probability"]
    >>> sampled_share(pd.DataFrame(rows, columns=names), {"a": 1, "b": 0, "c": 0}).value
    0.625
    """
    check_confidence(confidence)
    require_columns(labels, "labels", ["trace_id", "draw", "pool", "probability"])
    if labels["trace_id"].duplicated().any():
        raise ArgumentError(
            "labels holds several rows of one trace. Give those of one annotator and one "
            "question: labels[labels['question'] == name]."
        )
    table = _in_order_of_draws(labels)
    outcome = table["trace_id"].map(dict(is_so)).astype("float64")
    n, totals = int(outcome.notna().sum()), _totals(table, outcome)
    random = len(totals)
    answered = float(totals["answered"].mean()) if random else 0.0
    if not answered:
        return Estimate(math.nan, UNDEFINED, n, random)
    value = float(totals["so"].mean()) / answered
    if random < 2:
        return Estimate(value, UNDEFINED, n, random)
    from scipy.stats import t

    # The ratio's deviations; where all are answered they are those of the totals themselves.
    spread = float((((totals["so"] - value * totals["answered"]) / answered) ** 2).sum())
    half = float(t.ppf((1 + confidence) / 2, random - 1)) * math.sqrt(
        spread / (random * (random - 1))
    )
    return Estimate(value, Interval(max(0.0, value - half), min(1.0, value + half)), n, random)


def sampled_prevalence(labels: pd.DataFrame, value: Any, *, confidence: float = 0.95) -> Estimate:
    """Estimate the share of items labelled ``value`` in the whole queue (see `sampled_share`).

    Abstentions have no answer.
    """
    require_columns(labels, "labels", ["trace_id", "value"])
    known = labels[labels["value"].notna()]
    is_so = {i: v == value for i, v in zip(known["trace_id"], known["value"], strict=True)}
    return sampled_share(labels, is_so, confidence=confidence)


def sampled_accuracy(pairs: Pairs, labels: pd.DataFrame, *, confidence: float = 0.95) -> Estimate:
    """Estimate how often judge and people agree in the whole queue (see `sampled_share`).

    ``labels`` says how the traces of ``pairs`` were chosen. Traces that make no pair have no
    answer.
    """
    table = pairs.table
    agree = table["human"] == table["judge"]
    outcomes = dict(zip(table["trace_id"], agree.astype(bool), strict=True))
    return sampled_share(labels, outcomes, confidence=confidence)


def _in_order_of_draws(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels in the order of their draws; one from elsewhere after the last draw before it."""
    numbers = labels["draw"].astype("float64")
    if "at" in labels.columns and numbers.notna().any():
        by_time = pd.DataFrame({"at": labels["at"], "draw": numbers}).sort_values("at")
        numbers = numbers.fillna(by_time["draw"].cummax().ffill() + 0.5)
    return labels.assign(number=numbers.fillna(0.0)).sort_values("number", kind="stable")


def _totals(table: pd.DataFrame, outcome: pd.Series[float]) -> pd.DataFrame:
    """Each random draw's estimate of what is so and what has an answer, as shares of the pool.

    Items that joined had no chance in the draws before, so only those since then count.
    """
    probability, pool = table["probability"].astype("float64"), table["pool"].astype("float64")
    drawn = probability.notna() & table["draw"].notna()
    each = pd.DataFrame({"so": outcome.fillna(0.0), "answered": outcome.notna().astype("float64")})
    before = each.cumsum() - each
    totals = (before + each.div(probability, axis=0)).div(pool, axis=0)[drawn]
    batch = (pool[drawn].diff() > 0).cumsum()
    return totals[batch == batch.max()]
