"""The alternative annotator test: may a judge stand in for one of the annotators?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from workbench.errors import ArgumentError, one_of
from workbench.formatting import counted
from workbench.metrics.coefficients import numbered
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Bootstrap,
    Interval,
    Result,
    adjusted,
    figure,
    wilson,
)
from workbench.metrics.votes import Votes, votes_table
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale

Score = Literal["accuracy", "neg_rmse"]

FALSE_DISCOVERIES = 0.05  # the rate that Benjamini and Yekutieli's procedure holds


@dataclass(frozen=True, eq=False, repr=False)
class AlternativeAnnotatorTest(Result):
    """Whether a judge is as good as one more annotator.

    Attributes
    ----------
    winning_rate
        Share of the tested annotators over whom the judge wins, in [0, 1]. From one half on
        (`passed`) the judge may stand in for them, says the paper.
    advantage_probability, advantage_interval
        Probability that the judge is as good as or better than an annotator picked at random: the
        mean of ``judge_advantage``; bootstrap interval over items.
    table
        Index annotator; ``n`` items; ``judge_advantage`` and ``annotator_advantage`` (Wilson):
        shares of them on which the one is at least as near to the remaining annotators as the
        other; ``p_value`` of the hypothesis that the annotator's advantage is greater by
        ``epsilon`` or more; ``p_adjusted`` (Benjamini and Yekutieli); ``rejected``: whether the
        judge wins; ``note``.
    items, left_out
        Items with a verdict and two labels or more; items without.
    """

    shown = ("passed",)

    winning_rate: float
    advantage_probability: float
    advantage_interval: Interval
    table: pd.DataFrame
    items: int
    left_out: int
    score: Score
    epsilon: float
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the judge wins over half of the tested annotators at least."""
        return self.winning_rate >= 0.5

    def __repr__(self) -> str:
        people = counted(int(self.table["p_value"].count()), "annotator")
        advantage = figure(self.advantage_probability, self.advantage_interval)
        return (
            f"<AlternativeAnnotatorTest on {counted(self.items, 'item')}: winning rate "
            f"{figure(self.winning_rate)} of {people}, advantage probability {advantage}>"
        )


def alternative_annotator_test(
    pairs_or_table: Pairs | pd.DataFrame,
    verdicts: Any = None,
    *,
    epsilon: float = 0.2,
    score: Score = "accuracy",
    min_items: int = 30,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> AlternativeAnnotatorTest:
    """Test whether a judge is as good as one more annotator.

    One annotator after the other is left out. On each of their items judge and annotator are
    compared by how near they are to the remaining annotators; a one-sided t-test over the items
    tells whether the annotator's advantage stays below ``epsilon``, which is what the judge's
    lower price is worth. Source: Calderon, Reichart and Dror (2025), arXiv 2501.10970.

    Parameters
    ----------
    pairs_or_table
        Pairs with the annotators' votes; or a table with a row an item and a column an annotator,
        nan where an item is not labelled. Words such as *unknown* are labels there, but not among
        numbers.
    verdicts
        With a table: a verdict for each row, in the rows' order, or a Series or mapping by the
        table's index. Rows without one are left out.
    epsilon
        In [0, 1). The paper advises 0.2 for experts, 0.15 for skilled annotators, 0.1 for a crowd.
    score
        ``"accuracy"``: the share of the remaining labels that equal one's own; ``"neg_rmse"``, for
        numbers: minus the root of the mean squared difference from them. Words in an order count
        by their ranks.
    min_items
        Annotators with fewer items are not tested, since the t-test needs about 30.
    confidence, seed, resamples
        Of the intervals.

    Raises
    ------
    ArgumentError
        For arguments out of range or of another kind, values without an order under
        ``"neg_rmse"``, verdicts that do not fit the table, and for pairs from which items were
        left out because annotators differ: without these the judge's chances are better.
    """
    one_of("score", score, ["accuracy", "neg_rmse"])
    if not 0 <= epsilon < 1:
        raise ArgumentError(f"epsilon={epsilon!r} must lie in [0, 1), for instance 0.2.")
    labels, judged, scale = _read(pairs_or_table, verdicts)
    verdict = pd.Series(judged, index=labels.index, dtype=object, name=("the judge",))
    votes = Votes.of(pd.concat([labels, verdict], axis=1), scale, most_words=math.inf)
    if score == "neg_rmse" and votes.scale.kind == "nominal":
        raise ArgumentError(
            f"score='neg_rmse' needs numbers, and the labels are {votes.scale.describe()}. Use "
            "score='accuracy' for categories."
        )
    values = votes.codes if score == "accuracy" else votes.positions[votes.codes]
    values = np.where(votes.codes < 0, math.nan, values)
    human, judge = values[:, :-1], values[:, -1]
    usable = (np.isfinite(human).sum(axis=1) >= 2) & np.isfinite(judge)
    human, judge, left_out = human[usable], judge[usable], int((~usable).sum())
    wins, losses = _advantages(human, judge, score)
    if isinstance(pairs_or_table, Pairs):  # rows that belong together are one item
        groups = numbered(pairs_or_table.clusters_of(labels.index[usable]))
        wins, losses = (pd.DataFrame(w).groupby(groups).mean().to_numpy() for w in (wins, losses))
    table = _tests(wins, losses, epsilon, min_items, confidence)
    table.index = pd.Index([str(who) for who in labels.columns], name="annotator")
    tested = (table["n"] >= min_items).to_numpy()
    options: Any = {"confidence": confidence, "seed": seed, "resamples": resamples}
    probability, interval = _mean_advantage(wins[:, tested], **options)
    return AlternativeAnnotatorTest(
        winning_rate=float(table.loc[tested, "rejected"].mean()) if tested.any() else math.nan,
        advantage_probability=probability,
        advantage_interval=interval,
        table=table,
        items=len(wins),
        left_out=left_out,
        score=score,
        epsilon=epsilon,
        notes=(*_notes(human, judge, tested, left_out), *votes.notes),
    )


def _read(given: Any, verdicts: Any) -> tuple[pd.DataFrame, list[Any], Scale | None]:
    """Labels (items by annotators), a verdict for each row, and the scale where it is known."""
    if isinstance(given, Pairs):
        if verdicts is not None:
            raise ArgumentError(
                "verdicts= goes with a table of labels; pairs hold verdicts already."
            )
        if left_out := given.contested:
            raise ArgumentError(
                f"The pairs lack {counted(left_out, 'item')} on which annotators differ, and "
                "without these any judge looks better. Keep them: workbench.pair(judge, "
                "ties='latest')."
            )
        judged = given.table.set_index("trace_id")["judge"].reindex(given.votes.index)
        return given.votes, list(judged), given.scale
    table = votes_table(given)
    if isinstance(verdicts, (pd.Series, Mapping)):
        verdicts = pd.Series(verdicts, dtype=object)
        if verdicts.index.has_duplicates or not verdicts.index.isin([*table.index]).any():
            raise ArgumentError(
                "The verdicts' index must hold rows of the table, each once. Give them the table's "
                "index, or verdicts as a list in the rows' order."
            )
        verdicts = verdicts.reindex(table.index)
    elif np.ndim(verdicts) != 1 or len(verdicts) != len(table):
        raise ArgumentError(
            "verdicts must be a list, Series or mapping of one verdict for each of the "
            f"{len(table)} rows, got {type(verdicts).__name__} of shape {np.shape(verdicts)}."
        )
    return table, list(verdicts), None


def _advantages(human: Array, judge: Array, score: Score) -> tuple[Array, Array]:
    """Whether judge and annotator are at least as near to the others, (items, annotators)."""
    wins, losses = np.full(human.shape, math.nan), np.full(human.shape, math.nan)
    for a in range(human.shape[1]):
        items = np.isfinite(human[:, a])
        others = np.delete(human[items], a, axis=1)
        far = [_misfit(side[items], others, score) for side in (judge, human[:, a])]
        tied = np.isclose(far[0], far[1], rtol=1e-9, atol=0)
        wins[items, a], losses[items, a] = (far[0] < far[1]) | tied, (far[1] < far[0]) | tied
    return wins, losses


def _misfit(values: Array, others: Array, score: Score) -> Array:
    """How far values are from others' labels; both have as many labels, so that sums will do."""
    gaps = values[:, None] - others
    misfit = (gaps != 0) & np.isfinite(gaps) if score == "accuracy" else np.nan_to_num(gaps) ** 2
    return np.asarray(misfit.sum(axis=1, dtype=float))


def _tests(
    wins: Array, losses: Array, epsilon: float, min_items: int, confidence: float
) -> pd.DataFrame:
    n = np.isfinite(wins).sum(axis=0)
    table = pd.DataFrame({"n": n})
    for name, shares in (("judge_advantage", wins), ("annotator_advantage", losses)):
        ends = [wilson(*of, confidence) for of in zip(np.nansum(shares, axis=0), n, strict=True)]
        table[name] = pd.DataFrame(shares).mean().to_numpy()
        table[[f"{name}_low", f"{name}_high"]] = np.array(ends).reshape(-1, 2)
    differences = [gap[np.isfinite(gap)] for gap in (losses - wins).T]
    table["p_value"] = [
        _p_value(gap, epsilon) if len(gap) >= min_items else math.nan for gap in differences
    ]
    table["p_adjusted"] = adjusted(table["p_value"], "fdr_by")
    table["rejected"] = table["p_adjusted"] <= FALSE_DISCOVERIES
    table["note"] = np.where(n < min_items, f"fewer than {min_items} items: not tested", "")
    return table


def _p_value(difference: Array, epsilon: float) -> float:
    """One-sided t-test of a mean difference below epsilon; without variance it is certain."""
    if difference.size < 2 or np.ptp(difference) == 0:
        return float(difference.size < 2 or difference[0] >= epsilon)
    return float(ttest_1samp(difference, epsilon, alternative="less").pvalue)


def _mean_advantage(wins: Array, **options: Any) -> tuple[float, Interval]:
    """The mean over annotators of the judge's advantage, with its interval over items."""
    if not wins.size:
        return math.nan, UNDEFINED
    kinds, counts = np.unique(np.nan_to_num(wins, nan=-1), axis=0, return_counts=True)
    there = (kinds >= 0).astype(float)
    won = kinds * there  # a share, where copies of an item differ

    def mean(counts: Array) -> Array:
        return np.asarray(((counts @ won) / (counts @ there)).mean(axis=-1))

    value, interval = float(mean(counts)), Bootstrap(counts, **options).interval(mean)
    if math.isnan(interval.low):  # the same on all items
        interval = wilson(value * len(wins), len(wins), options["confidence"])
    return value, interval


def _notes(human: Array, judge: Array, tested: Array, left_out: int) -> list[str]:
    notes = []
    if len(judge) and not np.isin(judge, human).any():
        notes.append("No verdict equals any label: see whether both are written in the same way.")
    if not tested.any():
        notes.append("No annotator has enough items that others labelled too: no test.")
    elif tested.sum() < 3:
        notes.append("With fewer than three annotators there is no consensus to compare with.")
    if left_out:
        notes.append(f"Left out: {counted(left_out, 'item')} without a verdict or two labels.")
    return notes
