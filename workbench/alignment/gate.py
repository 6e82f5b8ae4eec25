"""The gate: whether a proposed judge is taken, from what it did on held-out pairs.

Better than the original is not enough. Against a bad judge, giving one and the same verdict to
everything looks like a gain: on a scale of numbers it is nearer to most labels than a biased
judge is, and on an unbalanced one it is right as often as its favourite label occurs. So the
proposed judge is also held against the best constant, chosen by the labels of train.
"""

from __future__ import annotations

from collections import Counter
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
    """Return whether the proposed judge is taken, and why.

    ``same`` tells that nothing was found, ``stopped`` why; ``lost`` is the share of held-out
    traces without a usable verdict of the proposed judge. ``after`` are the held-out pairs with
    its verdicts, and the constant that it must beat is chosen by the labels of ``train``.
    """
    if same:
        why = f" ({stopped})" if stopped else ""
        return "unchanged", f"No better instructions were found{why}; the judge stays as it was."
    summary = comparison.summary
    if comparison.n == 0:
        return "rejected", "The proposed judge gave no usable verdict; the original judge stays."
    if gate == "none":
        return "improved", f"{summary} The gate is off, so the judge is taken as it is."
    if lost > MOST_LOST:
        # A judge that answers only where it is sure would look better than it is.
        return "rejected", (
            f"The proposed judge gave no usable verdict on {lost:.0%} of the held-out traces, more "
            f"than {MOST_LOST:.0%}; the original judge stays. {summary}"
        )
    if not comparison.improved:
        return "rejected", f"{summary} Not better on held-out pairs; the original judge stays."
    upwards = len(comparison.fixed) > len(comparison.broken)
    if gate == "significant" and not (comparison.significant and upwards):
        return "rejected", f"{summary} Not significant; the original judge stays."
    if constant := _no_better_than_a_constant(train, after):
        return "rejected", f"{summary} {constant} The original judge stays."
    return "improved", " ".join([summary, *comparison.notes])


def _no_better_than_a_constant(train: Pairs, after: Pairs) -> str:
    """Return why the verdicts of ``after`` tell no more than a constant would; "" where they do.

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
    is_numeric = after.scale.kind == "numeric"
    ranked = sorted(train.table["human"], key=train.scale.rank)
    constants = [ranked[(len(ranked) - 1) // 2]]
    if is_numeric:
        constants.append(sum(map(float, ranked)) / len(ranked))
    distance, accuracy = _fit(after, verdicts)
    for constant in constants:
        other_distance, other_accuracy = _fit(after, [constant] * len(labels))
        if distance >= other_distance and (is_numeric or accuracy <= other_accuracy):
            shown = f"{constant:.3g}" if isinstance(constant, float) else repr(constant)
            return (
                f"But always giving {shown} comes as near to people's labels: its mean "
                f"distance is {other_distance:.3f}, the judge's {distance:.3f}."
            )
    return ""


def majority_note(train: Pairs, after: Pairs) -> str:
    """Return a note on a judge that is right no more often than train's most frequent label.

    On binary and nominal scales; "" where it is, and on others.
    """
    if not len(after) or after.scale.kind not in ("binary", "nominal"):
        return ""
    counts = Counter(train.table["human"])
    top = min(counts, key=lambda value: (-counts[value], str(value)))
    own = _fit(after, list(after.table["judge"]))[1]
    other = _fit(after, [top] * len(after))[1]
    if own > other:
        return ""
    return (
        f"Always giving {top!r}, the most frequent label of train, would be right on "
        f"{other:.0%} of the held-out items, the proposed judge is on {own:.0%}: "
        "look at kappa and at both kinds of error, and not at accuracy."
    )


def _fit(pairs: Pairs, verdicts: list[Any]) -> tuple[float, float]:
    """Return the mean distance from verdicts to labels and the share of equal ones, in [0, 1]."""
    labels = list(pairs.table["human"])
    # The same range for all that is compared, and so none that a verdict stretches.
    scale = pairs.scale.with_range([*labels, *pairs.table["judge"]])
    both = list(zip(verdicts, labels, strict=True))
    distance = sum(scale.distance(*each) for each in both) / len(both)
    return distance, sum(verdict == label for verdict, label in both) / len(both)
