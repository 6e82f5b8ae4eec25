"""A judge with itself: asked the same again, and with its options in another order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import multimode
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd
from mlflow.genai.judges import Judge
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.compat import options
from workbench.errors import PairingError, ScaleError, check_whole
from workbench.formatting import counted
from workbench.judging.assessment import Assessed, assess
from workbench.judging.judge import from_options
from workbench.metrics.coefficients import numbered
from workbench.metrics.intervals import (
    Bootstrap,
    Result,
    check_confidence,
    figure_table,
    proportion,
)
from workbench.models.budget import Budget
from workbench.pairing.joining import pair
from workbench.pairing.pairs import Pairs
from workbench.scale import ABSTAIN, Scale, scale_of
from workbench.store.traces import contents

FIGURES = ["all answers agree", "two answers agree", "ceiling of one answer"]
FIGURES += ["accuracy of one answer", "accuracy of the majority"]


@dataclass(frozen=True, repr=False)
class SelfAgreement(Result):
    """How well a judge agrees with itself, and what that leaves of its agreement with people.

    Attributes
    ----------
    samples
        Answers to each item.
    table
        Index figure; ``value`` in [0, 1], ``low``, ``high``, ``n`` items. *all answers agree*:
        share of items on which all are equal. *two answers agree*: the probability of that.
        *ceiling of one answer*: mean share of the most frequent answer, the accuracy of one answer
        if the majority were always right; somewhat too high with few samples. *accuracy of one
        answer* and *of the majority*: against people's labels. *changed by reversed options*: share
        of first answers that are another one when the judge's options are listed in reverse; asking
        again changes 1 - *two answers agree* of them by itself. nan where undefined; ``notes`` say
        why.
    flips
        Items on which the answers differ, the most contested first: ``trace_id``, ``answers``
        (value -> count), ``majority``, ``share`` of it, and ``human``, None without a label.
    failures
        Items that are left out, since a call for them failed or an answer is not on the scale.
    """

    name: str
    samples: int
    table: pd.DataFrame
    flips: pd.DataFrame
    failures: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        asked = f"{counted(int(self.table['n'].iloc[0]), 'item')} asked {self.samples} times"
        return (
            f"<SelfAgreement of {self.name!r}: {asked}, {counted(len(self.flips), 'flip')}>\n"
            f"{self.table.to_string(na_rep='')}"
        )


def self_agreement(
    judge_or_assessed: Judge | Assessed,
    pairs_or_traces: Any = None,
    *,
    samples: int = 5,
    reverse: bool = True,
    log: bool = True,
    cache: bool = True,
    budget: Budget | int | None = None,
    progress: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> SelfAgreement:
    """Measure how often a judge gives the same answer to the same question.

    Parameters
    ----------
    judge_or_assessed
        A judge, which is asked ``samples`` times, or what `assess` gave with ``samples``.
    pairs_or_traces
        What to judge: `Pairs`, whose labels are then compared with, or what `assess` takes as
        traces, whose labels are read where there are any. With an `Assessed`, the labels alone.
    samples
        Answers to each item, at least 2.
    reverse
        Ask once more with the options of the judge's Literal in reversed order. The copy's answers
        are not logged. Words in the instructions stay as they are.
    log, cache, budget, progress
        As in `assess`: of all answers only the first is logged.
    confidence, seed, resamples
        Of the intervals; seed and resamples of the bootstrap.

    Raises
    ------
    ArgumentError
        For fewer samples than 2. What `assess` raises is raised here.
    """
    check_confidence(confidence)
    given, notes = judge_or_assessed, list[str]()
    turned: Judge | None = None
    changed: dict[str, float] = {}
    how: Any = {"cache": cache, "budget": Budget.of(budget), "progress": progress}
    if isinstance(given, Assessed):
        assessed, samples = given, given.samples["sample"].nunique()
    check_whole("samples", samples, 2)
    if not isinstance(given, Assessed):
        assessed = assess(given, pairs_or_traces, samples=samples, log=log, **how)
        turned = _reversed(given) if reverse else None
    if turned is None:
        notes.append(
            "The order of options was not reversed: that takes reverse=True and a judge with "
            "instructions and a Literal as feedback_value_type."
        )
    people, scale = _labels(given, pairs_or_traces, notes)
    answers = _complete(assessed.samples, samples, scale)
    if failed := len(assessed.table) - len(answers):
        left_out = counted(failed, "item")
        notes.append(f"Left out, since a call failed or an answer is not on the scale: {left_out}.")
    if turned is not None:
        again = assess(turned, list(assessed.table["trace_id"]), log=False, **how)
        known = _complete(again.samples, 1, scale)
        changed = {i: float(one != answers[i][0]) for i, (one,) in known.items() if i in answers}
    # Repetitions in inputs and outputs are no more evidence.
    seen = contents(assessed.previews)
    known_groups = pairs_or_traces.group_of if isinstance(pairs_or_traces, Pairs) else {}
    groups = {i: known_groups.get(i, seen.get(i, i)) for i in answers}
    rest: Any = {"confidence": confidence, "seed": seed, "resamples": resamples}
    shares = [_shares(given, people.get(i)) for i, given in answers.items()]
    found = pd.DataFrame(shares, index=list(answers), columns=FIGURES, dtype=float)
    found["changed by reversed options"] = pd.Series(changed, dtype=float)
    rows = {str(name): _mean(row.dropna(), groups, **rest) for name, row in found.items()}
    return SelfAgreement(
        name=assessed.name,
        samples=samples,
        table=figure_table(rows, "n").rename_axis("figure").astype({"n": int}),
        flips=_flips(answers, people),
        failures=failed,
        notes=tuple(notes),
    )


def _reversed(judge: Judge) -> Judge | None:
    """The judge with its options in reversed order; None where it has no options."""
    kind = getattr(judge, "feedback_value_type", None)
    if get_origin(kind) is not Literal or not isinstance(judge, InstructionsJudge):
        return None
    turned: Any = Literal.__getitem__(tuple(reversed(get_args(kind))))
    return from_options({**options(judge), "feedback_value_type": turned})


def _labels(given: Any, pairs_or_traces: Any, notes: list[str]) -> tuple[dict[str, Any], Any]:
    """Trace id -> human label, and the scale; notes why there are none."""
    judged = isinstance(given, Assessed)
    found, why = pairs_or_traces, "no labels are given beside what assess returned."
    if not isinstance(found, Pairs) and not (judged and found is None):
        try:
            found = pair(given.name if judged else given, found)
        except (PairingError, ScaleError) as error:
            found, why = None, str(error)
    if found is None:
        notes.append(f"No agreement with people: {why}")
        return {}, None if judged else scale_of(given)
    return dict(zip(found.trace_ids, found.table["human"], strict=True)), found.scale


def _complete(table: pd.DataFrame, samples: int, scale: Scale | None) -> dict[str, list[Any]]:
    """Trace id -> its answers in order, of the items on which all calls gave a usable one."""
    by_item: dict[str, list[Any]] = {}
    for row in table[table["error"].isna()].sort_values("sample", kind="stable").itertuples():
        with suppress(ScaleError):
            value = row.value if scale is None else scale.normalise(row.value)
            by_item.setdefault(str(row.trace_id), []).append(value)
    return {i: given for i, given in by_item.items() if len(given) == samples}


def _shares(given: Sequence[Any], label: Any) -> list[float]:
    """`FIGURES` of one item's answers; nan for those against people without label or rating."""
    counts, k = Counter(given).values(), len(given)
    pairs = sum(count * (count - 1) for count in counts) / (k * (k - 1))
    rated = [value for value in given if value is not ABSTAIN]
    right = [math.nan, math.nan]
    if rated and label is not None:
        most = multimode(rated)  # a tie is half right
        right = [rated.count(label) / len(rated), (label in most) / len(most)]
    return [float(len(counts) == 1), pairs, max(counts) / k, *right]


def _mean(
    shares: pd.Series[float], groups: Mapping[str, Hashable], *, confidence: float, **how: Any
) -> tuple[float, float, float, int]:
    """A mean of shares with its interval: Wilson's for yes and no, else a bootstrap's."""
    values, together = shares.to_numpy(float), numbered(groups[i] for i in shares.index)
    mean, interval = proportion(values, together, confidence)
    levels, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    if not {*levels} <= {0.0, 1.0}:
        sample = Bootstrap(counts, rows=(together, at), confidence=confidence, **how)
        drawn = sample.interval(lambda items: items @ levels / items.sum(axis=-1))
        interval = interval if math.isnan(drawn.low) else drawn
    return (mean, *interval, len(values))


def _flips(answers: Mapping[str, Sequence[Any]], people: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for trace_id, given in answers.items():
        counts = Counter("N/A" if one is ABSTAIN else one for one in given).most_common()
        if len(counts) > 1:
            value, count = counts[0]
            rows.append((trace_id, dict(counts), value, count / len(given), people.get(trace_id)))
    columns = ["trace_id", "answers", "majority", "share", "human"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "share", kind="stable", ignore_index=True
    )
