"""Estimates for all items from labels of which only some were chosen at random.

Labels that a rule has chosen (the cases on which people differ, say) are no sample of all items,
and neither are all labels together. Each random draw however tells something of everything: what
was drawn before it is known, and the item drawn stands for all that were left. Of each such draw
t an estimate of the total is made,

    z_t = sum of what was drawn before t + y_t / p_t

with p_t the probability of the draw, 1 over the number of items left, and these are averaged. That
is unbiased whatever rules chose the others, since given what was drawn before, y_t / p_t has the
total of the rest as its mean (Des Raj, "Some estimators in sampling with varying probabilities
without replacement", Journal of the American Statistical Association 51, 1956). The z_t are
uncorrelated, which gives the variance.

A draw tells of what it was drawn from, and of nothing that joined the queue later: the next batch,
or new traces. So only draws made since the queue last grew are averaged, over the pool as it has
been since. The labels from before are known by then, and count as such in each z_t. A queue gets
smaller when others label what is in it; a draw from before that tells of what has left as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.coding import check_confidence
from workbench.coefficients import Interval
from workbench.errors import ArgumentError
from workbench.rendering import figure, plain
from workbench.tables import require_columns

if TYPE_CHECKING:
    from workbench.pairing import Pairs

_COLUMNS = ["trace_id", "draw", "pool", "probability"]


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
        return plain(dict(vars(self)))

    def __repr__(self) -> str:
        return (
            f"<Estimate {figure(self.value, self.interval)} from {self.n} labels, "
            f"{self.random} of them drawn at random>"
        )


def sampled_share(
    labels: pd.DataFrame,
    is_so: Mapping[str, bool | float] | Callable[[Any], bool | float],
    *,
    confidence: float = 0.95,
) -> Estimate:
    """The share of items that are so, in the whole queue that labels were drawn from.

    The queue is what the last random draw was from: all batches up to the present one, and all
    traces that had joined. It is unbiased for that, whatever was labelled before the queue grew.
    Soon after it grew there are few draws, and the interval is wide, or nan. Where the queue only
    got smaller, since others took items of it, draws from before that are averaged with the rest:
    that is right where what left is like what stayed, as when the others draw at random too.

    Parameters
    ----------
    labels
        One annotator's labels on one question, as ``session.labels`` gives them: one row a trace
        with ``trace_id``, ``draw``, ``pool``, ``probability`` and ``value``. Rows without a draw,
        which were labelled elsewhere, count as known from when they were (``at``), or from the
        beginning.
    is_so
        0 to 1 for each trace id, or a function of a row's ``value``. Rows that it lacks, and
        abstentions, have no answer: they count neither as so nor as not so.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    ArgumentError
        For several labels on one trace (several questions or annotators), or missing columns.

    Examples
    --------
    >>> rows = [("a", 1, 4, 1 / 4, "yes"), ("b", 2, 4, None, "no"), ("c", 3, 4, 1 / 2, "no")]
    >>> names = ["trace_id", "draw", "pool", "probability", "value"]
    >>> sampled_share(pd.DataFrame(rows, columns=names), lambda value: value == "yes").value
    0.625
    """
    check_confidence(confidence)
    require_columns(labels, "labels", _COLUMNS)
    if labels["trace_id"].duplicated().any():
        raise ArgumentError(
            "labels holds several rows of one trace. Give those of one annotator and one "
            "question: labels[labels['question'] == name]."
        )
    if callable(is_so):
        require_columns(labels, "labels", ["value"])
        known = labels[labels["value"].notna()]
        outcomes = {i: is_so(v) for i, v in zip(known["trace_id"], known["value"], strict=True)}
    else:
        outcomes = dict(is_so)
    draws = _draws(labels, outcomes)
    # The totals of what is so and of what has an answer, one of each for each random draw, as
    # shares of the pool.
    totals: list[tuple[float, float]] = []
    before_so = before_all = 0.0
    size = 0
    for so, answered, probability, pool in draws:
        if probability is not None:
            if pool > size:
                # What has joined had no chance in the draws before this one.
                totals.clear()
            size = pool
            rest = 1 / probability
            totals.append(((before_so + so * rest) / pool, (before_all + answered * rest) / pool))
        before_so, before_all = before_so + so, before_all + answered
    random = len(totals)
    n = sum(bool(answered) for _, answered, _, _ in draws)
    undefined = Interval(math.nan, math.nan)
    share_answered = sum(a for _, a in totals) / random if random else 0.0
    if not share_answered:
        return Estimate(math.nan, undefined, n, random)
    value = sum(s for s, _ in totals) / random / share_answered
    if random < 2:
        return Estimate(value, undefined, n, random)
    # The ratio's deviations; where all are answered they are those of z_t itself.
    spread = sum(((s - value * a) / share_answered) ** 2 for s, a in totals)
    half = _quantile(confidence, random - 1) * math.sqrt(spread / (random * (random - 1)))
    return Estimate(value, Interval(max(0.0, value - half), min(1.0, value + half)), n, random)


def sampled_prevalence(labels: pd.DataFrame, value: Any, *, confidence: float = 0.95) -> Estimate:
    """The share of items labelled ``value`` in the whole queue (see `sampled_share`)."""
    return sampled_share(labels, lambda given: given == value, confidence=confidence)


def sampled_accuracy(pairs: Pairs, labels: pd.DataFrame, *, confidence: float = 0.95) -> Estimate:
    """How often judge and people agree in the whole queue that was labelled (see `sampled_share`).

    ``labels`` says how the traces of ``pairs`` were chosen. Traces that make no pair have no
    answer.
    """
    table = pairs.table
    agree = table["human"] == table["judge"]
    outcomes = dict(zip(table["trace_id"], agree.astype(bool), strict=True))
    return sampled_share(labels, outcomes, confidence=confidence)


def _draws(
    labels: pd.DataFrame, outcomes: Mapping[str, bool | float]
) -> list[tuple[float, float, float | None, int]]:
    """In the order of the draws: outcome, whether there is one, probability and pool."""
    table = labels.assign(so=labels["trace_id"].map(outcomes).astype("float64"))
    numbers = table["draw"].astype("float64")
    if "at" in table.columns and numbers.notna().any():
        # Where a label from elsewhere lies among the draws: after the last one before it.
        by_time = pd.DataFrame({"at": table["at"], "draw": numbers}).sort_values("at")
        numbers = numbers.fillna(by_time["draw"].cummax().ffill() + 0.5)
    table = table.assign(number=numbers.fillna(0.0)).sort_values("number", kind="stable")
    return [
        (
            0.0 if pd.isna(so) else float(so),
            float(not pd.isna(so)),
            None if pd.isna(probability) or pd.isna(draw) else float(probability),
            0 if pd.isna(pool) else int(pool),
        )
        for so, probability, draw, pool in zip(
            table["so"], table["probability"], table["draw"], table["pool"], strict=True
        )
    ]


def _quantile(confidence: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))
