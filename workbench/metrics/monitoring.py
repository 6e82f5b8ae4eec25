"""`monitor`: whether a judge still agrees with people, week by week, and still judges alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from mlflow.genai.judges import Judge

from workbench.errors import ArgumentError, NoLabelsError
from workbench.formatting import counted, html_table, html_text, plain
from workbench.judging.judge import fingerprint_of
from workbench.judging.verdict_folder import Scored
from workbench.metrics.agreement import agreement
from workbench.metrics.coefficients import Coded
from workbench.metrics.intervals import Array, check_confidence, figure
from workbench.metrics.slices import FEW, Slices, slice_names, week_of
from workbench.pairing.consensus import known_scale, name_of
from workbench.pairing.joining import pair
from workbench.pairing.pairs import COLUMNS, Pairs
from workbench.scale import ABSTAIN, Scale
from workbench.store.tables import require_columns
from workbench.vocabulary import is_missing

SHIFT = 0.1
"""Verdicts that are shifted by less are no reason to act, however sure the shift is."""


@dataclass(frozen=True, eq=False, repr=False)
class Monitored:
    """How a judge's verdicts, and its agreement with people, went over the weeks.

    Attributes
    ----------
    name, fingerprint
        Of the judge.
    table
        Index week (ISO, UTC); ``verdicts``, ``labelled`` (pairs of verdict and label),
        ``accuracy`` with its interval, ``difference`` to all other weeks and ``p_adjusted``, which
        are those of the ``mean_distance`` on numeric scales,
        ``shift`` and ``shift_p``: how far the verdicts are from those of all other weeks, in
        [0, 1], and whether that is more than luck (chi-square, for numbers Kolmogorov-Smirnov).
        The shift is the share of verdicts that would have to be others for the weeks to be alike;
        for numbers the largest difference of cumulative shares.
    agreement
        All of that by week, as `workbench.agreement` gives it; None without labels.
    agreement_p, trend, verdict_p
        Whether agreement differs between weeks or has a trend (the smaller p-value, doubled), the
        change of agreement a week by that trend, and whether the verdicts of any week differ
        (Holm's adjustment counts in that many weeks were looked at). nan where `undefined` says
        why.
    action, advice
        ``"realign"``, ``"label"`` or ``"none"``, and why.
    """

    name: str
    fingerprint: str
    table: pd.DataFrame
    agreement: Slices | None
    agreement_p: float
    trend: float
    verdict_p: float
    action: Literal["realign", "label", "none"]
    advice: str
    undefined: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        agreed = None if self.agreement is None else self.agreement.to_dict()
        return plain({**vars(self), "table": self.table.reset_index(), "agreement": agreed})

    def __repr__(self) -> str:
        found = "no labels"
        if self.agreement is not None:
            found = (
                f"accuracy {figure(self.agreement.accuracy, self.agreement.accuracy_interval)} on "
                f"{counted(self.agreement.n, 'pair')}"
            )
        return (
            f"<Monitored {self.name!r}: {counted(int(self.table['verdicts'].sum()), 'verdict')} in "
            f"{counted(len(self.table), 'week')}, {found}. {self.advice}>"
        )

    def _repr_html_(self) -> str:
        lines = [self.advice, *(f"{k}: {why}" for k, why in self.undefined.items()), *self.notes]
        return html_table(self.table) + "".join(f"<div>{html_text(one)}</div>" for one in lines)


def monitor(
    judge: Judge | str,
    scored: Scored | str | Path | Sequence[Scored | str | Path],
    labels: Pairs | pd.DataFrame | None = None,
    *,
    confidence: float = 0.95,
) -> Monitored:
    """Tell whether a judge still agrees with people on what it scored, and still judges alike.

    Parameters
    ----------
    judge
        The judge, or its name.
    scored
        What `workbench.score` gave with ``sample=``, its folder, or several of them: of each month
        one, say. Weeks are those of its column ``time``.
    labels
        People's labels on the sample: `workbench.Pairs`, or a table with one row a trace,
        ``trace_id`` and ``value``. None: those in the store under the judge's name.
    confidence
        Of intervals and tests, in (0, 1).

    Raises
    ------
    ArgumentError
        For verdicts of another judge, and for labels on other traces than those of the sample.
    """
    check_confidence(confidence)
    given = [scored] if isinstance(scored, (Scored, str, Path)) else list(scored)
    folders = [one if isinstance(one, Scored) else Scored.open(one) for one in given]
    mark = fingerprint_of(judge)
    marks = {one.fingerprint for one in folders}
    if len(marks) != 1 or (mark and mark not in marks):
        raise ArgumentError(
            f"scored: the verdicts are of judges with fingerprints {sorted(marks)}, and "
            f"{mark or 'one judge'} is asked for. Monitor each version of a judge by itself."
        )
    verdicts = pd.concat([_dated(one) for one in folders], ignore_index=True)
    # What is equal in several months is one trace.
    sample = verdicts[verdicts["trace_id"].notna()].drop_duplicates("trace_id", keep="last")
    name, undefined = folders[0].name, dict[str, str]()
    try:
        pairs = _paired(judge, labels, sample)
        by_week = _by_week(pairs, sample, confidence)
    except NoLabelsError as error:
        pairs, by_week, undefined["agreement"] = None, None, str(error)
    scale = pairs.scale if pairs is not None else known_scale(judge, [], verdicts["verdict"])
    table = _shifts(verdicts, scale)
    found = _accuracies(table, by_week)
    trend, trend_p = math.nan, math.nan
    if pairs is not None:
        trend, trend_p = _trend(pairs, sample, list(table.index))
    tested = [p for p in (trend_p, *found["p_adjusted"]) if not math.isnan(p)]
    agreement_p = min(1.0, 2 * min(tested)) if tested else math.nan
    verdict_p = float(found["shift_p"].min())
    if not tested:
        undefined.setdefault("agreement_p", "fewer than two weeks have labels to be compared")
    if math.isnan(verdict_p):
        undefined["verdict_p"] = "no two weeks have enough different verdicts to be compared"
    action, advice = _advised(found, agreement_p, trend, verdict_p, 1 - confidence)
    return Monitored(
        name, folders[0].fingerprint, found, by_week, agreement_p, trend, verdict_p,
        action, advice, undefined, () if pairs is None else pairs.notes,
    )  # fmt: skip


# -- what is compared -----------------------------------------------------------------------


def _dated(scored: Scored) -> pd.DataFrame:
    """The verdicts of a folder with their week, and the trace of those in the sample."""
    table, sample = scored.verdicts, scored.sample
    weeks = {day: week_of(day.timestamp() * 1000) for day in set(table["time"].dt.floor("D"))}
    traces = dict(zip(sample["row"], sample["trace_id"], strict=True))
    return table.assign(
        week=table["time"].dt.floor("D").map(weeks), trace_id=table["row"].map(traces)
    )


def _paired(judge: Judge | str, labels: Any, sample: pd.DataFrame) -> Pairs:
    """The labels joined with the verdicts on the sample."""
    ids = set(sample["trace_id"])
    if not ids:
        raise NoLabelsError("No row was imported as a trace: workbench.score(..., sample=200).")
    if labels is None:
        return pair(judge, sorted(ids))
    if isinstance(labels, pd.DataFrame):
        labels = _joined(judge, labels, sample)
    if not ids & set(labels.trace_ids):
        raise ArgumentError(
            "labels: none of them is on a trace of the sample. Label scored.trace_ids "
            "(LabelPanel(judge, scored, annotator=...))."
        )
    pairs: Pairs = labels
    return pairs if set(pairs.trace_ids) <= ids else pairs.subset(ids)


def _joined(judge: Judge | str, labels: pd.DataFrame, sample: pd.DataFrame) -> Pairs:
    """One label a trace joined with the verdict on it."""
    require_columns(labels, "labels", ["trace_id", "value"])
    given = labels.loc[~labels["value"].map(is_missing), ["trace_id", "value"]]
    if given["trace_id"].duplicated().any():
        raise ArgumentError(
            "labels holds several labels of one trace. Give one, or log them "
            "(workbench.log_labels) and give workbench.pair(judge, scored), which finds their "
            "consensus."
        )
    table = given.merge(sample[["trace_id", "verdict"]], on="trace_id")
    seen = [*given["value"], *sample["verdict"]]
    scale = known_scale(judge, []) or Scale.from_values(seen)
    for name, column in (("human", "value"), ("judge", "verdict")):
        table[name] = pd.Series(map(scale.normalise, table[column]), dtype=object)
    answered = table["human"].map(lambda value: value is not ABSTAIN).astype(bool)
    table = table[answered].reset_index(drop=True)
    table[["human_rationale", "judge_rationale", "blind"]] = "", "", True
    table["votes"] = pd.Series([{} for _ in table.index], dtype=object)
    nothing = pd.DataFrame(columns=["trace_id", "reason"])
    return Pairs(name_of(judge), table[COLUMNS], nothing, scale)


def _weeks(pairs: Pairs, sample: pd.DataFrame) -> list[Any]:
    week = dict(zip(sample["trace_id"], sample["week"], strict=True))
    return [week.get(trace_id) for trace_id in pairs.trace_ids]


def _by_week(pairs: Pairs, sample: pd.DataFrame, confidence: float) -> Slices:
    dated = replace(pairs, table=pairs.table.assign(week=_weeks(pairs, sample)))
    return agreement(dated, by="week", confidence=confidence)


def _accuracies(table: pd.DataFrame, by_week: Slices | None) -> pd.DataFrame:
    """The table of shifts with the agreement of each week before it."""
    names = ["n", "accuracy", "accuracy_low", "accuracy_high"]
    if by_week is not None and "mean_distance" in by_week.table:
        names += ["mean_distance", "mean_distance_low", "mean_distance_high"]
    names += ["difference", "p_adjusted"]
    found = pd.DataFrame(columns=names, dtype=float) if by_week is None else by_week.table[names]
    found = table.join(found.rename(columns={"n": "labelled"}))
    found["labelled"] = found["labelled"].fillna(0).astype(int)
    return found[["verdicts", "labelled", *names[1:], "shift", "shift_p", "note"]]


# -- drift ----------------------------------------------------------------------------------


def _shifts(verdicts: pd.DataFrame, scale: Scale | None) -> pd.DataFrame:
    """How far the verdicts of each week are from those of all others, with Holm's p-values."""
    from statsmodels.stats.multitest import multipletests

    numeric = scale is not None and scale.kind == "numeric"
    values = verdicts["verdict"]
    distinct = values.unique()
    names = dict(zip(distinct, slice_names(distinct), strict=True))
    values = values.astype(float) if numeric else values.map(names)
    weeks = sorted(set(verdicts["week"]))
    counts = pd.crosstab(verdicts["week"], values) if not numeric else pd.DataFrame()
    rows = []
    for week in weeks:
        here = verdicts["week"] == week
        if here.all():
            shift, p, note = math.nan, math.nan, "no other week to compare with"
        elif numeric:
            shift, p, note = _of_numbers(values[here].to_numpy(), values[~here].to_numpy())
        else:
            shift, p, note = _of_counts(counts.loc[week], counts.drop(week).sum())
        rows.append((int(here.sum()), shift, p, note))
    index = pd.Index(weeks, name="week")
    table = pd.DataFrame(rows, columns=["verdicts", "shift", "shift_p", "note"], index=index)
    tested = table["shift_p"].notna()
    if tested.any():
        adjusted = multipletests(table.loc[tested, "shift_p"], method="holm")[1]
        table.loc[tested, "shift_p"] = adjusted
    return table


def _of_numbers(here: Array, rest: Array) -> tuple[float, float, str]:
    from scipy.stats import ks_2samp

    found = ks_2samp(here, rest)
    return float(found.statistic), float(found.pvalue), ""


def _of_counts(here: pd.Series[int], rest: pd.Series[int]) -> tuple[float, float, str]:
    """Half the sum of differences of shares, and a chi-square test of equal shares.

    Values that are too rare for it, with fewer than 5 expected on a side, are counted together.
    """
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import expected_freq

    counts = np.array([here.to_numpy(), rest.to_numpy()], dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True)
    shift = float(np.abs(shares[0] - shares[1]).sum() / 2)
    rare = expected_freq(counts).min(axis=0) < 5
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    if pooled.shape[1] < 2:
        same = counts.shape[1] == 1
        return shift, math.nan, "one verdict throughout" if same else "too few verdicts"
    if expected_freq(pooled).min() < 5:
        pooled = pooled[:, :-1]
    if pooled.shape[1] < 2:
        return shift, math.nan, "too few verdicts"
    return shift, float(chi2_contingency(pooled).pvalue), ""


def _trend(pairs: Pairs, sample: pd.DataFrame, weeks: list[str]) -> tuple[float, float]:
    """Change of agreement a week, and its p-value, by regression (Cochran and Armitage's test).

    nan where all pairs are of one week, or agreement does not vary.
    """
    from scipy.stats import linregress

    coded = Coded.of(pairs)
    place = {week: number for number, week in enumerate(weeks)}
    at = np.array([place.get(week, math.nan) for week in _weeks(pairs, sample)])
    credit = 1.0 - coded.distances(coded.human, coded.judge)
    if coded.scale.kind != "numeric":
        credit = (coded.human == coded.judge).astype(float)
    known = ~np.isnan(at)
    if len(set(at[known])) < 2 or len(set(credit[known])) < 2:
        return math.nan, math.nan
    found = linregress(at[known], credit[known])
    return float(found.slope), float(found.pvalue)


def _advised(
    table: pd.DataFrame, agreement_p: float, trend: float, verdict_p: float, alpha: float
) -> tuple[Literal["realign", "label", "none"], str]:
    last = table.index[-1]
    labelled = int(table["labelled"].iloc[-1])
    falls = -1 if "mean_distance" in table else 1  # which way the difference of the last week is
    worse = table["p_adjusted"].iloc[-1] < alpha and falls * table["difference"].iloc[-1] < 0
    worse = trend < 0 or worse
    if agreement_p < alpha and worse:
        return "realign", (
            f"Agreement with people has changed for the worse (p = {agreement_p:.2g}; {trend:+.1%} "
            "a week). Align the judge again on labels of the latest weeks."
        )
    if labelled < FEW:
        return "label", (
            f"Label {FEW - labelled} more of {last}, which has {counted(labelled, 'label')}: with "
            f"fewer than {FEW} hardly any change would be seen."
        )
    shifted = table[(table["shift_p"] < alpha) & (table["shift"] >= SHIFT)]
    if verdict_p < alpha and len(shifted):
        worst = shifted["shift"].idxmax()
        return "label", (
            f"Verdicts of {worst} differ from those of the other weeks by "
            f"{shifted['shift'].max():.0%}, and agreement does not tell why. Label more of that "
            "week: either the answers have changed, or the judge judges otherwise."
        )
    if math.isnan(agreement_p):
        return "none", "There is nothing to compare with yet: score and label another week."
    return "none", "Neither agreement nor verdicts have changed by more than luck and a little."
