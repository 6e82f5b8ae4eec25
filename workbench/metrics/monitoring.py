"""`monitor`: whether a judge still agrees with people, week by week, and still judges alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from mlflow.genai.judges import Judge
from scipy.stats import chi2_contingency, linregress
from scipy.stats.contingency import expected_freq

from workbench.errors import ArgumentError, NoLabelsError, NoVerdictsError
from workbench.formatting import counted
from workbench.judging.judge import fingerprints_of
from workbench.judging.verdict_folder import Scored
from workbench.metrics.agreement import agreement
from workbench.metrics.figures import Coded
from workbench.metrics.intervals import Result, check_confidence
from workbench.metrics.slices import FEW, Slices, adjusted_slices, slice_names, week_of
from workbench.pairing.joining import pair
from workbench.pairing.pairs import Pairs
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import name_of
from workbench.store.schemas import known_scale
from workbench.store.tables import require_columns
from workbench.vocabulary import is_missing

SHIFT = 0.1  # a smaller shift of verdicts is no reason to act, however sure it is


@dataclass(frozen=True, eq=False, repr=False)
class Monitored(Result):
    """How a judge's verdicts, and its agreement with people, went over the weeks.

    Attributes
    ----------
    table
        Index week (ISO, UTC); ``verdicts``, ``labelled`` (pairs of verdict and label),
        ``accuracy`` with its interval, on numeric scales ``mean_distance`` as well, and
        ``p_adjusted`` as in `Slices`; ``shift``, the share of verdicts that would have to be others
        for this week to be like all others, and ``shift_p``, whether that is more than luck
        (chi-square; Holm). Numbers are counted by tenths of all verdicts.
    agreement
        All of that by week, as `workbench.agreement` gives it; None without labels.
    agreement_p, trend, verdict_p
        Whether agreement differs between weeks or has a trend (the smaller p-value, doubled), the
        change of agreement a week by that trend, and whether the verdicts of any week differ; nan
        where no two weeks can be compared.
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
    notes: tuple[str, ...]
    confidence: float = 0.95

    def __repr__(self) -> str:
        verdicts, labelled = map(int, self.table[["verdicts", "labelled"]].sum())
        return (
            f"<Monitored {self.name!r}: {counted(verdicts, 'verdict')} in "
            f"{counted(len(self.table), 'week')}, {counted(labelled, 'label')}. {self.advice}>"
        )


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
        ``trace_id`` and ``value``. None: those in the store under the judge's name. Labels on
        other traces are ignored, and counted in ``.notes``.
    confidence
        Of intervals and tests, in (0, 1).

    Raises
    ------
    ArgumentError
        For verdicts or pairs of another judge, and for several labels of one trace.
    NoVerdictsError
        Where no row has a usable verdict.
    """
    check_confidence(confidence)
    folders = _folders(scored)
    asked, found = fingerprints_of(judge), {one.fingerprint for one in folders}
    name, names = name_of(judge), sorted({one.name for one in folders})
    if names != [name] or len(found) != 1 or (asked[0] and not found & {*asked}):
        raise ArgumentError(
            f"scored: the verdicts are of {names} with fingerprints {sorted(found)}, and {name!r} "
            f"with {asked[0] or 'any one'} is asked for. Monitor each version of a judge by itself."
        )
    verdicts = pd.concat(map(_dated, folders), ignore_index=True)
    if verdicts.empty:
        raise NoVerdictsError(
            "scored holds no usable verdict: each of its rows failed (scored.failures), or the "
            "judge abstained. Mend that and ask again: workbench.score(..., retry_failed=True)."
        )
    # What is equal in several months is one trace.
    sample = verdicts[verdicts["trace_id"].notna()].drop_duplicates("trace_id", keep="last")
    by_week: Slices | None = None
    scale: Scale | None
    trend, trend_p = math.nan, math.nan
    try:
        pairs = _paired(judge, labels, sample, folders[0].fingerprint)
        scale, notes = pairs.scale, pairs.notes
        by_week = agreement(pairs, by="week", confidence=confidence)
        trend, trend_p = _trend(pairs)
    except NoLabelsError as error:
        scale = known_scale(judge, [], verdicts["verdict"])
        notes = (f"No agreement with people: {error}",)
    table = _with_agreement(_shifts(_counts(verdicts, scale)), by_week)
    smallest = pd.Series([trend_p, *table["p_adjusted"]], dtype=float).min()  # nan of none
    agreement_p = float(np.minimum(1.0, 2 * smallest))
    falling = trend if trend < 0 and 2 * trend_p < 1 - confidence else 0.0
    action, advice = _advised(table, by_week, falling, 1 - confidence)
    return Monitored(
        folders[0].name, folders[0].fingerprint, table, by_week, agreement_p, trend,
        float(table["shift_p"].min()), action, advice, notes, confidence,
    )  # fmt: skip


def _folders(scored: Scored | str | Path | Sequence[Scored | str | Path]) -> list[Scored]:
    """The folders, each once."""
    given = [scored] if isinstance(scored, (Scored, str, Path)) else list(scored or ())
    opened = [one if isinstance(one, Scored) else Scored.open(one) for one in given]
    return list({one.folder.resolve(): one for one in opened}.values())


def _dated(scored: Scored) -> pd.DataFrame:
    """The verdicts of a folder with their week, and the trace of those in the sample."""
    table = scored.verdicts
    days = table["time"].dt.floor("D")
    weeks = {day: week_of(day.timestamp() * 1000) for day in set(days)}
    traces = scored.sample.set_index("row")["trace_id"]
    return table.assign(week=days.map(weeks), trace_id=table["row"].map(traces))


def _paired(judge: Judge | str, labels: Any, sample: pd.DataFrame, fingerprint: str) -> Pairs:
    """The labels joined with the verdicts on the sample, with the ``week`` of each."""
    ids = set(sample["trace_id"])
    if not ids:
        raise NoLabelsError("No row was imported as a trace: workbench.score(..., sample=200).")
    if labels is None:
        labels = pair(judge, sorted(ids))
    if isinstance(labels, pd.DataFrame):
        require_columns(labels, "labels", ["trace_id", "value"])
        labels = labels.loc[~labels["value"].map(is_missing).astype(bool), ["trace_id", "value"]]
        pairs, given = _joined(judge, labels, sample), labels["trace_id"]
    else:
        pairs, given = labels, labels.trace_ids
    if fingerprint not in {pairs.fingerprint or fingerprint, pairs.earlier_fingerprint}:
        raise ArgumentError(
            f"labels: the pairs are of the version with fingerprint {pairs.fingerprint!r}, and "
            f"{fingerprint!r} scored. Give the judge that scored in place of its name, which means "
            "the version that judged last, and its pairs: workbench.pair(judge, scored)."
        )
    if outside := set(given) - ids:
        left_out = f"{counted(len(outside), 'trace')} of labels have no verdict in the sample"
        notes = (*pairs.notes, f"{left_out} and are left out.")
        pairs = replace(pairs.subset(ids), notes=notes)
    week = pairs.table["trace_id"].map(sample.set_index("trace_id")["week"])
    return replace(pairs, table=pairs.table.assign(week=week))


def _joined(judge: Judge | str, labels: pd.DataFrame, sample: pd.DataFrame) -> Pairs:
    """One label a trace joined with the verdict on it."""
    if labels["trace_id"].duplicated().any():
        raise ArgumentError(
            "labels holds several labels of one trace. Log them (workbench.log_labels) and give "
            "workbench.pair(judge, scored), which finds their consensus."
        )
    scale = known_scale(judge, []) or Scale.from_values([*labels["value"], *sample["verdict"]])
    table = labels.merge(sample[["trace_id", "verdict"]], on="trace_id")
    for name, column in (("human", "value"), ("judge", "verdict")):
        table[name] = pd.Series(map(scale.normalise, table[column]), dtype=object)
    answered = table["human"].map(lambda value: value is not ABSTAIN).astype(bool)
    table = table[answered].reset_index(drop=True)
    nothing = pd.DataFrame(columns=["trace_id", "reason"])
    return Pairs(name_of(judge), table, nothing, scale)


def _with_agreement(shifts: pd.DataFrame, by_week: Slices | None) -> pd.DataFrame:
    """The agreement of each week, and its shift of verdicts."""
    found = pd.DataFrame(dtype=float) if by_week is None else by_week.table
    figures = ["accuracy", *["mean_distance"] * ("mean_distance" in found)]
    names = [f"{name}{end}" for name in figures for end in ("", "_low", "_high")]
    names += ["p_adjusted"]
    table = shifts.join(found.reindex(columns=["n", *names]))
    table["labelled"] = table["n"].fillna(0).astype(int)
    return table[["verdicts", "labelled", *names, "shift", "shift_p", "note"]]


def _counts(verdicts: pd.DataFrame, scale: Scale | None) -> pd.DataFrame:
    """How often each verdict was given in each week; numbers are counted by tenths."""
    distinct = verdicts["verdict"].unique()
    if scale is None or scale.kind != "numeric":
        kinds = dict(zip(distinct, slice_names(distinct), strict=True))
    else:
        sizes = {value: float(scale.normalise(value)) for value in distinct}
        tenths = verdicts["verdict"].map(sizes).quantile(np.arange(1, 10) / 10)
        kinds = {value: np.searchsorted(tenths, size) for value, size in sizes.items()}
    return pd.crosstab(verdicts["week"], verdicts["verdict"].map(kinds))


def _shifts(counts: pd.DataFrame) -> pd.DataFrame:
    """How far the verdicts of each week are from those of all others, with Holm's p-values."""
    every = counts.sum()
    rows = {week: (own.sum(), *_shift(own, every - own)) for week, own in counts.iterrows()}
    columns = ["verdicts", "shift", "shift_p", "note"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("week")
    return table.assign(shift_p=adjusted_slices(table["shift_p"]))


def _shift(here: pd.Series[int], rest: pd.Series[int]) -> tuple[float, float, str]:
    """Half the sum of differences of shares, and a chi-square test of the values common enough."""
    if not rest.any():
        return math.nan, math.nan, "no other week to compare with"
    counts = np.array([here, rest], dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True)
    shift = float(np.abs(shares[0] - shares[1]).sum() / 2)
    common = counts[:, expected_freq(counts).min(axis=0) >= 5]
    if common.shape[1] < 2:
        return shift, math.nan, "too few verdicts of two values"
    return shift, float(chi2_contingency(common).pvalue), ""


def _trend(pairs: Pairs) -> tuple[float, float]:
    """Change of agreement a week, and its p-value, by regression (Cochran and Armitage's test)."""
    coded = Coded.of(pairs)
    mondays = pd.to_datetime(pairs.table["week"] + " 1", format="%G, week %V %u")
    at = (mondays - mondays.min()).dt.days // 7
    credit = (coded.human == coded.judge).astype(float)
    if coded.scale.kind == "numeric":
        credit = 1.0 - coded.distances(coded.human, coded.judge)
    # Rows of a week that belong together are one.
    means = pd.Series(credit).groupby([at.to_numpy(), coded.groups]).mean()
    weeks = means.index.get_level_values(0)
    if len(means) < 3 or weeks.nunique() < 2 or means.nunique() < 2:
        return math.nan, math.nan
    found = linregress(weeks, means)
    return float(found.slope), float(found.pvalue)


def _advised(
    table: pd.DataFrame, by_week: Slices | None, falling: float, alpha: float
) -> tuple[Literal["realign", "label", "none"], str]:
    last, labelled = table.iloc[-1], int(table["labelled"].iloc[-1])
    worse = by_week is not None and last["accuracy"] < by_week.accuracy
    if by_week is not None and by_week.mean_distance is not None:
        worse = last["mean_distance"] > by_week.mean_distance
    if worse and last["p_adjusted"] < alpha:
        return "realign", (
            f"Agreement with people is worse in {last.name} than in the other weeks (p = "
            f"{last['p_adjusted']:.2g}). Align the judge again on labels of the latest weeks."
        )
    if falling:
        return "realign", (
            f"Agreement with people has fallen by {-falling:.1%} a week. Align the judge again on "
            "labels of the latest weeks."
        )
    if labelled < FEW:
        return "label", (
            f"Label {FEW - labelled} more of {last.name}, which has {counted(labelled, 'label')}: "
            f"with fewer than {FEW} hardly any change would be seen."
        )
    shifted = table[(table["shift_p"] < alpha) & (table["shift"] >= SHIFT)]
    if len(shifted):
        worst = shifted["shift"].idxmax()
        return "label", (
            f"Verdicts of {worst} differ from those of the other weeks by "
            f"{shifted['shift'].max():.0%}, and the labels do not tell why. Label more of that "
            "week: either the answers have changed, or the judge has."
        )
    if table["p_adjusted"].isna().all():
        return "none", "There is nothing to compare with yet: score and label another week."
    return "none", "Neither agreement nor the verdicts have changed enough to act on."
