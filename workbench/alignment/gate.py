"""The gate: whether a proposed judge is taken, from what it did on held-out pairs.

Better than the original is not enough. Against a bad judge, giving one and the same verdict to
everything looks like a gain: on a scale of numbers it is nearer to most labels than a biased
judge is, and on an unbalanced one it is right as often as its favourite label occurs. So the
proposed judge is also held against the best constant, chosen by the labels of train.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from workbench.metrics.comparison import Comparison
from workbench.pairing.pairs import Pairs

Gate = Literal["better", "significant", "none"]

Status = Literal["improved", "unchanged", "rejected"]


MOST_LOST = 0.05
"""Share of held-out traces without a usable verdict above which a judge is not taken."""


def decide(
    comparison: Comparison,
    gate: Gate,
    same: bool,
    stopped: str,
    lost: float,
    *,
    train: Pairs,
    after: Pairs,
) -> tuple[Status, str]:
    """Whether the proposed judge is taken, and why.

    ``same`` tells that nothing was found, ``stopped`` why; ``lost`` is the share of held-out
    traces on which the proposed judge gave no usable verdict. ``after`` are the held-out pairs
    with its verdicts, and the constant that it must beat is chosen by the labels of ``train``.
    """
    if same:
        why = f" ({stopped})" if stopped else ""
        return "unchanged", f"No better instructions were found{why}; the judge stays as it was."
    said = comparison.summary
    if comparison.n == 0:
        return "rejected", "The proposed judge gave no usable verdict; the original judge stays."
    if gate == "none":
        return "improved", f"{said} The gate is off, so the judge is taken as it is."
    if lost > MOST_LOST:
        # A judge that answers only where it is sure would look better than it is.
        return "rejected", (
            f"The proposed judge gave no usable verdict on {lost:.0%} of the held-out traces, more "
            f"than {MOST_LOST:.0%}; the original judge stays. {said}"
        )
    if not comparison.improved:
        return "rejected", f"{said} Not better on held-out pairs; the original judge stays."
    upwards = len(comparison.fixed) > len(comparison.broken)
    if gate == "significant" and not (comparison.significant and upwards):
        return "rejected", f"{said} Not significant; the original judge stays."
    told_apart = tells_apart(train, after)
    if told_apart:
        return "rejected", f"{said} {told_apart} The original judge stays."
    return "improved", " ".join([said, *comparison.notes])


def tells_apart(train: Pairs, after: Pairs) -> str:
    """Why the verdicts of ``after`` tell no more than a constant would; "" where they do.

    On ordered scales a judge must lie nearer to the labels, or, where there are steps, be right
    more often, than the best of always giving train's median and (of numbers) its mean.
    """
    verdicts, labels = list(after.table["judge"]), list(after.table["human"])
    if len(set(verdicts)) == 1 and len(set(labels)) > 1:
        return (
            f"But it gives one and the same verdict, {verdicts[0]!r}, on all {len(verdicts)} "
            "held-out items, whatever people say of them."
        )
    if not after.scale.ordered or after.scale.kind == "binary":
        return ""
    own = _Fit.of(after, verdicts)
    for constant in _constants(train):
        other = _Fit.of(after, [constant] * len(labels))
        if own.distance >= other.distance and (
            after.scale.kind == "numeric" or own.accuracy <= other.accuracy
        ):
            return (
                f"But always giving {_shown(constant)} comes as near to people's labels: its mean "
                f"distance is {other.distance:.3f}, the judge's {own.distance:.3f}."
            )
    return ""


def majority_note(train: Pairs, after: Pairs) -> str:
    """Said of a judge that is right no more often than train's most frequent label would be.

    On binary and nominal scales; "" where it is, and on others.
    """
    if not len(after) or after.scale.kind not in ("binary", "nominal"):
        return ""
    counts = Counter(train.table["human"])
    top = min(counts, key=lambda value: (-counts[value], str(value)))
    labels = list(after.table["human"])
    own, other = _Fit.of(after, list(after.table["judge"])), _Fit.of(after, [top] * len(labels))
    if own.accuracy > other.accuracy:
        return ""
    return (
        f"Always giving {top!r}, the most frequent label of train, would be right on "
        f"{other.accuracy:.0%} of the held-out items, the proposed judge is on {own.accuracy:.0%}: "
        "look at kappa and at both kinds of error, and not at accuracy."
    )


@dataclass(frozen=True)
class _Fit:
    """How well verdicts go with labels: mean distance and share of equal ones, both in [0, 1]."""

    distance: float
    accuracy: float

    @classmethod
    def of(cls, pairs: Pairs, verdicts: list[Any]) -> _Fit:
        labels = list(pairs.table["human"])
        # The same range for all that is compared, and so none that a verdict stretches.
        scale = pairs.scale.with_range([*labels, *pairs.table["judge"]])
        both = list(zip(verdicts, labels, strict=True))
        return cls(
            distance=sum(scale.distance(*each) for each in both) / len(both),
            accuracy=sum(verdict == label for verdict, label in both) / len(both),
        )


def _constants(train: Pairs) -> list[Any]:
    labels = sorted(train.table["human"], key=train.scale.rank)
    if not labels:
        return []
    median = labels[(len(labels) - 1) // 2]
    if train.scale.kind != "numeric":
        return [median]
    return [median, sum(map(float, labels)) / len(labels)]


def _shown(constant: Any) -> str:
    return f"{constant:.3g}" if isinstance(constant, float) else repr(constant)
