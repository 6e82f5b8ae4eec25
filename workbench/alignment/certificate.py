"""Certificates: whether a judge is as good as demanded, on labels that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import pandas as pd

from workbench.alignment.heldout import MOST_LOST, origin_note
from workbench.alignment.registry import load_judge
from workbench.alignment.result import Alignment, Certificate
from workbench.alignment.runs import (
    CERTIFIED_TAG,
    begin_run,
    item_tags,
    judges_by_item,
    read_lineage,
)
from workbench.errors import ArgumentError, TooFewPairsError
from workbench.formatting import counted
from workbench.judging.assessment import assess
from workbench.judging.judge import fingerprints_of
from workbench.judging.verdicts import why_unusable
from workbench.metrics.agreement import Agreement, agreement, without_contested
from workbench.metrics.intervals import Interval, check_confidence, figure
from workbench.models.budget import Budget
from workbench.pairing.joining import labels_and_decisions, pair
from workbench.pairing.pairs import Groups, Pairs, dataset_digest
from workbench.scale import Scale, scale_of
from workbench.store.traces import Example, examples, fetch_traces

OF_BINARY = {"sensitivity": "false negative rate", "specificity": "false positive rate"}


def certify(
    alignment_or_pairs: Alignment | Pairs,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    kappa: float | None = None,
    weighted_kappa: float | None = None,
    accuracy: float | None = None,
    groups: Groups = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Certificate:
    """Tell whether a judge agrees with people as well as demanded, beyond the luck of the sample.

    It passes where the lower end of every interval is above its threshold. Of an alignment, the
    held-out test of ``.judge`` counts; of pairs, all but those that an alignment in this store has
    learned from. Items that were used to score several judges flatter the best of these, so uses
    are counted, by content; a new one here is logged as an MLflow run.

    Parameters
    ----------
    sensitivity, specificity
        Least share of people's positives, and of their negatives, that the judge finds, on binary
        scales; both are 0.8 if no threshold is given.
    kappa, weighted_kappa, accuracy
        Least Cohen's kappa, on ordered scales the one with quadratic weights, and least share of
        equal values.
    groups
        What belongs together, as in `agreement`; of an alignment, what its split kept together.
    confidence
        Of the two-sided intervals, in (0, 1).
    seed
        Of the bootstrap interval of kappa.

    Raises
    ------
    ArgumentError
        For a threshold out of range, and for one that the scale does not have.
    TooFewPairsError
        Where no pair is left.
    StoreError
        Where the active store does not hold the traces of the pairs.
    """
    given = alignment_or_pairs
    if not isinstance(given, (Alignment, Pairs)):
        raise ArgumentError(f"certify takes an Alignment or Pairs, got {type(given).__name__}.")
    every = given.pairs if isinstance(given, Alignment) else given
    least = _demands(
        every.scale, sensitivity=sensitivity, specificity=specificity, kappa=kappa,
        weighted_kappa=weighted_kappa, accuracy=accuracy,
    )  # fmt: skip
    notes: list[str] = []
    if isinstance(given, Alignment):
        by_id, pairs = given.examples, given.held_out
        judged = pairs if given.status == "improved" else every
        if given.status != "improved":
            notes.append(f"The alignment was {given.status}: this is about the original judge.")
    else:
        known = examples([*given.trace_ids, *_unusable(given)]) if _judge_of(given) else []
        by_id = {one.trace_id: one for one in known}
        judged, notes = _not_learned(given, by_id)
        pairs = judged
    if not len(pairs):
        raise TooFewPairsError(
            f"No pair is left to certify the judge on. {' '.join(notes)} Label new traces and let "
            "the judge rate them."
        )
    lost = len(_unusable(judged))
    too_many = lost / (len(judged) + lost) > MOST_LOST
    if lost:
        said = "Not passed: the" if too_many else "The"
        notes.append(f"{said} judge gave no usable verdict on {counted(lost, 'other item')}.")
    measured = agreement(pairs, groups=groups, confidence=confidence, seed=seed)
    table = _table(measured, least)
    passed = bool(table["passed"].all()) and not too_many
    why = [_why(name, row) for name, row in table.iterrows() if not row["passed"]]
    looks = _looks(pairs, by_id, passed) if _judge_of(pairs) else None
    return Certificate(
        name=pairs.name,
        passed=passed,
        table=table,
        n=measured.n,
        looks=looks,
        fingerprint=pairs.fingerprint,
        dataset_digest=dataset_digest(pairs),
        notes=(*why, *notes, *without_contested(every), *_limits(measured.n, looks)),
        confidence=confidence,
    )


def _unusable(pairs: Pairs) -> list[str]:
    """Ids of the labelled traces on which the judge gave no usable verdict."""
    lost = pairs.excluded["reason"].map(why_unusable).isin(["abstained", "failed"])
    return list(pairs.excluded["trace_id"][lost])


def check_registered(
    name: str,
    version: int | None = None,
    *,
    groups: Groups = None,
    budget: Budget | int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    **least: float | None,
) -> Certificate:
    """Certify a registered judge on the labelled traces of the active experiment.

    Traces that it learned from are left out; the others are judged first where this version has
    given no verdict on them, within ``budget``. ``least`` are the thresholds, as in `certify`.
    """
    judge = load_judge(name, version)
    _demands(scale_of(judge), **least)  # before anything is paid
    check_confidence(confidence)
    found = fetch_traces(spans=False)
    labels, decisions = labels_and_decisions(found, judge.name)
    labelled = [*{**labels, **decisions}]
    by_id = {one.trace_id: one for one in examples(labelled)}
    lineage = read_lineage(fingerprints_of(judge), {}, by_id)
    fresh = [i for i in labelled if i not in lineage.learned]
    if labelled and not fresh:
        raise TooFewPairsError(f"Judge {name!r} learned from all labelled traces. Label new ones.")
    assess(judge, fresh, budget=budget, progress=False)
    # Without a label, pair says why there is none.
    pairs = pair(judge, fresh or None)
    made = certify(pairs, groups=groups, confidence=confidence, seed=seed, **least)
    note = origin_note(judge, lineage)
    return replace(made, notes=(*[note] * bool(note), *made.notes))


def _demands(scale: Scale | None, **thresholds: float | None) -> dict[str, float]:
    """The thresholds that are given; `ArgumentError` where no judge on the scale can meet them."""
    least = {name: value for name, value in thresholds.items() if value is not None}
    least = least or dict.fromkeys(OF_BINARY, 0.8)
    for name, value in least.items():
        low = -1 if name.endswith("kappa") else 0
        if not isinstance(value, Real) or not low <= value < 1:
            raise ArgumentError(f"{name}={value!r} must lie in [{low}, 1): no interval is above 1.")
    if scale is None:
        return least
    weighted = "weighted_kappa" if scale.ordered else "kappa"
    has = {"kappa", "accuracy", weighted, *(OF_BINARY if scale.kind == "binary" else ())}
    if wrong := sorted(set(least) - has):
        raise ArgumentError(
            f"No {' or '.join(wrong)} is defined on this scale, which is {scale.kind} "
            f"({scale.describe()}). Give {weighted}=0.6, accuracy=0.8, or both."
        )
    return least


def _not_learned(pairs: Pairs, by_id: Mapping[str, Example]) -> tuple[Pairs, list[str]]:
    """The pairs that no alignment on the way to this judge has learned from, and notes."""
    if not pairs.fingerprint:
        used = "this use of them is not counted"
        if pairs.source:
            used = f"all verdicts of {pairs.source!r} count as those of one judge"
        return pairs, [
            "Which judge gave the verdicts is not known, so that items which it learned from may "
            f"be among these, and {used}: of many tries one passes by luck."
        ]
    known_as = (pairs.fingerprint, pairs.earlier_fingerprint)
    learned = read_lineage(known_as, {}, by_id).learned & by_id.keys()
    note = f"Left out, since the judge learned from them: {counted(len(learned), 'trace')}."
    left_out = pairs.excluded[~pairs.excluded["trace_id"].isin(learned)]
    return replace(pairs.subset(by_id.keys() - learned), excluded=left_out), [note] * bool(learned)


def _judge_of(pairs: Pairs) -> str:
    """What tells the judge from others: its fingerprint, or else the source of its verdicts."""
    return pairs.fingerprint or (pairs.source and f"source: {pairs.source}")


def _looks(pairs: Pairs, by_id: Mapping[str, Example], passed: bool) -> int:
    """Count the judges that the items have scored; a use that is new is logged as a run."""
    judge, known = _judge_of(pairs), judges_by_item(pairs, by_id)
    if any(judge not in judges for judges in known):
        tags = {CERTIFIED_TAG: judge, **item_tags(pairs, by_id)}
        tags["workbench.status"] = "passed" if passed else "not passed"
        with begin_run(f"certify {pairs.name}", tags):
            pass
    return max(len(judges | {judge}) for judges in known)


def _table(measured: Agreement, least: Mapping[str, float]) -> pd.DataFrame:
    names = {"weighted_kappa": f"kappa ({measured.weights})", **OF_BINARY}
    columns = ["value", "low", "high", "n"]
    found = measured.table.loc[[names.get(name, name) for name in least], columns].astype(float)
    table = found.set_axis(pd.Index(least, name="figure")).astype({"n": int})
    errors = table.index.isin([*OF_BINARY])
    table.loc[errors, columns[:3]] = 1 - table.loc[errors, ["value", "high", "low"]].to_numpy()
    table["threshold"] = list(least.values())
    return table.assign(passed=table["low"] > table["threshold"])


def _why(name: Any, row: pd.Series[Any]) -> str:
    found = figure(row["value"], Interval(row["low"], row["high"]))
    few = " Label more." if row["value"] > row["threshold"] else ""
    low = f"the lower end of its interval is not above {row['threshold']:g}"
    return f"Not passed: {name} is {found}, and {low}.{few}"


def _limits(n: int, looks: int | None) -> list[str]:
    """What a certificate is not."""
    said = [
        f"It holds for a test set of {counted(n, 'item')} with these labels and for items from "
        "the same population, but not for other applications or later items, and it does not "
        "cover errors of the labels."
    ]
    if looks is not None and looks > 1:
        said.append(
            f"Some of the items have scored {looks} different judges. The best of several looks "
            "better than it is, which the intervals do not allow for: label new traces."
        )
    return said
