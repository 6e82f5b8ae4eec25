"""What is held out: the split, the test of both judges on it, and the gate that it decides.

Better than the original is not enough to pass. Against a bad judge, giving one and the same
verdict to everything looks like a gain: on a scale of numbers it is nearer to most labels than a
biased judge is, and on an unbalanced one it is right as often as its favourite label occurs. So
the proposed judge is also held against the best constant, chosen by the labels of train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.alignment.external import metered_embeddings
from workbench.alignment.result import Gate, Status
from workbench.alignment.runs import AlignmentData, AlignmentRun, Lineage, read_lineage
from workbench.compat import options
from workbench.errors import ArgumentError, BudgetError, PairingError, TooFewPairsError
from workbench.judging.judge import fingerprint
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.metrics.comparison import Comparison, compare
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs, Split, pair
from workbench.pairing.splits import Groups, default_groups, groups_of, with_equal_items
from workbench.scale import Scale, is_abstention
from workbench.simba.items import MINIMUM_LABELS
from workbench.store.traces import Example, examples

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

MINIMUM_FRESH = 10
"""With so many traces that are new to a judge, it is tested on these alone."""

MOST_LOST = 0.05
"""Share of held-out traces without a usable verdict above which a judge is not taken."""


# -- the split --------------------------------------------------------------------------------


def read_data(
    run: AlignmentRun, judge: Judge, pairs_or_traces: Any, groups: Groups, size: float, seed: int
) -> AlignmentData:
    """Read and split the pairs of a judge that is made from instructions."""
    pairs = pairs_or_traces
    if not isinstance(pairs, Pairs):
        pairs = pair(judge, pairs_or_traces)
    elif pairs.fingerprint != fingerprint(judge):
        raise PairingError(
            f"These pairs hold verdicts of another judge than {judge.name!r} as it is now. Run "
            "workbench.assess(judge, traces) and workbench.pair(judge, traces) with this one."
        )
    options(judge)  # raises for other judges
    if len(pairs) < MINIMUM_LABELS:
        lost = "; ".join(f"{row.traces} traces: {row.reason}" for row in pairs.reasons.itertuples())
        raise TooFewPairsError(
            f"{len(pairs)} usable pairs under {pairs.name!r}; alignment needs at least "
            f"{MINIMUM_LABELS}, and 50 to 100 make a difference that can be trusted. "
            + (f"Left out: {lost}. " if lost else "")
            + "Label more traces, or mend the reasons above."
        )
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    lineage = read_lineage(run, judge, pairs, by_id)
    split = split_pairs(pairs, by_id, lineage, groups, size, seed)
    return AlignmentData(judge, pairs, by_id, split, lineage)


def split_pairs(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    lineage: Lineage,
    groups: Groups,
    size: float,
    seed: int,
) -> Split:
    """Split into train, dev and test.

    What the judge learned from before is never in test. What it was tested on before is not
    either where enough traces are fresh, since it was chosen for doing well there.
    """
    items = [by_id[i] for i in pairs.trace_ids]
    group_of = default_groups(items) if groups is None else groups_of(pairs.table, groups)
    group_of = with_equal_items(group_of, items)
    here = set(pairs.trace_ids)
    enough = len(here - lineage.seen) >= MINIMUM_FRESH
    barred = here & (lineage.seen if enough else lineage.learned)
    # The share refers to the traces that may be tested on, so that some of these are left to
    # learn from.
    share = size * (1 - len(barred) / len(pairs)) or size
    try:
        split = pairs.split(test_size=share, seed=seed, groups=group_of, never_test=barred)
    except ArgumentError:
        if not barred:
            raise
        raise TooFewPairsError(
            "This judge was aligned on these traces before, and what a judge learned on is never "
            "tested on. Label new traces and align with those as well, or align the judge that "
            "it came from."
        ) from None
    return replace(split, groups=groups if isinstance(groups, str) else None)


# -- the test ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOutTest:
    """Held-out pairs with the verdicts of both judges, on the items that both rated.

    ``verdicts`` are all of the proposed judge, and ``lost`` is the share of unusable ones;
    ``other_calls`` are its requests to models other than its own.
    """

    before: Pairs
    after: Pairs
    comparison: Comparison
    verdicts: Sequence[Verdict] = ()
    other_calls: int = 0
    lost: float = 0.0
    notes: Sequence[str] = ()


def score_held_out(
    data: AlignmentData, proposed: Judge, budget: Budget | None = None, *, progress: bool = False
) -> HeldOutTest:
    """Score both judges once on test; the original's verdicts are those of the pairs."""
    test, seed = data.split.test, data.split.seed
    if fingerprint(proposed) == test.fingerprint:
        return HeldOutTest(test, test, compare(test, test, seed=seed))
    verdicts: list[Verdict] = []
    notes = []
    with (
        AnswerCache() as cache,
        Runner(cache=cache, budget=budget, proven=True) as runner,
        metered_embeddings(proposed, budget) as embeddings,
    ):
        try:
            judge_examples(
                proposed,
                [data.by_id[i] for i in test.trace_ids],
                runner,
                scale=test.scale,
                progress="testing on held-out traces" if progress else None,
                on_verdict=verdicts.append,
            )
        except BudgetError as error:
            # More calls failed than were reserved for; what was answered is a test all the same.
            notes.append(f"The held-out test was not finished. {error}")
    answers = {v.trace_id: (v.value, v.rationale) for v in verdicts if usable(v, test.scale)}
    after = test.with_verdicts(answers, fingerprint(proposed))
    before, lost = test.subset(after.trace_ids), len(test) - len(after)
    if lost:
        notes.append(
            f"The proposed judge gave no usable verdict on {lost} of {len(test)} held-out traces; "
            "both judges are compared on the others."
        )
    comparison = compare(before, after, seed=seed)
    share = lost / len(test)
    return HeldOutTest(before, after, comparison, verdicts, embeddings.requests, share, notes)


def usable(verdict: Verdict, scale: Scale | None) -> bool:
    """Return whether the verdict is a rating, and neither a failure nor an abstention."""
    return verdict.error is None and not is_abstention(verdict.value, scale)


# -- the gate ---------------------------------------------------------------------------------


def decide(gate: Gate, test: HeldOutTest, train: Pairs, stopped: str = "") -> tuple[Status, str]:
    """Return whether the proposed judge is taken, and why.

    The constant that it must beat is chosen by the labels of ``train``; ``stopped`` is why
    learning ended.
    """
    comparison = test.comparison
    if test.after is test.before:
        why = f" ({stopped})" if stopped else ""
        return "unchanged", f"No better instructions were found{why}; the judge stays as it was."
    summary = comparison.summary
    if comparison.n == 0:
        return "rejected", "The proposed judge gave no usable verdict; the original judge stays."
    if gate == "none":
        return "improved", f"{summary} The gate is off, so the judge is taken as it is."
    upwards = len(comparison.fixed) > len(comparison.broken)
    if test.lost > MOST_LOST:
        # A judge that answers only where it is sure would look better than it is.
        why = f"But it gave no usable verdict on {test.lost:.0%} of the held-out traces."
    elif not comparison.improved:
        why = "Not better on held-out pairs."
    elif gate == "significant" and not (comparison.significant and upwards):
        why = "Not significant."
    else:
        why = _no_better_than_a_constant(train, test.after)
    if why:
        return "rejected", f"{summary} {why} The original judge stays."
    return "improved", " ".join([summary, *comparison.notes])


def _no_better_than_a_constant(train: Pairs, after: Pairs) -> str:
    """Return why the verdicts of ``after`` tell no more than a constant would; "" where they do.

    On ordered scales a judge must lie nearer to the labels than train's median, or, where there
    are steps, be right more often.
    """
    kind, verdicts, labels = after.scale.kind, list(after.table["judge"]), after.table["human"]
    if len(set(verdicts)) == 1 and len(set(labels)) > 1:
        return (
            f"But it gives one and the same verdict, {verdicts[0]!r}, on all {len(verdicts)} "
            "held-out items, whatever people say of them."
        )
    if kind in ("binary", "nominal"):
        return ""
    ranked = sorted(train.table["human"], key=train.scale.rank)
    median = ranked[(len(ranked) - 1) // 2]
    distance, accuracy = _fit(after, verdicts)
    nearness, hits = _fit(after, [median] * len(labels))
    if distance < nearness or (kind == "ordinal" and accuracy > hits):
        return ""
    return (
        f"But always giving {median!r} comes as near to people's labels: its mean distance is "
        f"{nearness:.3f}, the judge's {distance:.3f}."
    )


def _fit(pairs: Pairs, verdicts: list[Any]) -> tuple[float, float]:
    """Return the mean distance from verdicts to labels and the share of equal ones, in [0, 1]."""
    labels = list(pairs.table["human"])
    # The same range for all that is compared, and so none that a verdict stretches.
    scale = pairs.scale.with_range([*labels, *pairs.table["judge"]])
    both = list(zip(verdicts, labels, strict=True))
    distance = sum(scale.distance(*each) for each in both) / len(both)
    return distance, sum(verdict == label for verdict, label in both) / len(both)
