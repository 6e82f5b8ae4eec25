"""What is held out: the split, the test of both judges on it, and the gate that it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from mlflow.genai.judges import Judge

from workbench.alignment.external import metered_embeddings
from workbench.alignment.runs import AlignmentData, Gate, Lineage, Status, read_lineage
from workbench.compat import options
from workbench.errors import (
    ArgumentError,
    BudgetError,
    PairingError,
    TooFewPairsError,
    check_whole,
)
from workbench.formatting import counted
from workbench.judging.assessment import check_single
from workbench.judging.judge import fingerprint, fingerprints_of
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.metrics.agreement import agreement
from workbench.metrics.comparison import Comparison, compare
from workbench.metrics.figures import ROUNDING
from workbench.models.budget import UNPAID, Budget, Usage
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.joining import pair
from workbench.pairing.pairs import (
    Groups,
    Pairs,
    Split,
    default_groups,
    groups_of,
    stratified_order,
)
from workbench.simba.candidate import Candidate
from workbench.simba.selection import usable
from workbench.simba.settings import MINIMUM_LABELS
from workbench.store.traces import Example, examples

MOST_LOST = 0.05  # share without a usable verdict above which a judge is not better for the others


def read_data(
    judge: Judge,
    pairs_or_traces: Any,
    groups: Groups,
    size: float,
    seed: int,
    n_labels: int | None = None,
) -> AlignmentData:
    """Read and split the pairs of a judge that is made from instructions."""
    check_single(judge)
    options(judge)  # raises for judges that are not made from instructions
    if n_labels is not None:
        check_whole("n_labels", n_labels, MINIMUM_LABELS)
    if not isinstance(size, Real) or not 0 < size < 1:
        raise ArgumentError(f"test_size={size!r} must lie in (0, 1).")
    pairs = pairs_or_traces
    if not isinstance(pairs, Pairs):
        pairs = pair(judge, pairs_or_traces)
    elif pairs.fingerprint != fingerprint(judge):
        raise PairingError(
            f"These pairs hold verdicts of another judge than {judge.name!r} as it is now. Run "
            "workbench.assess(judge, traces) and workbench.pair(judge, traces) with this one."
        )
    if len(pairs) < MINIMUM_LABELS:
        reasons = pairs.reasons.itertuples(index=False)
        lost = "; ".join(f"{counted(many, 'trace')}: {why.rstrip('.')}" for why, many in reasons)
        raise TooFewPairsError(
            f"{len(pairs)} usable pairs under {pairs.name!r}; alignment needs at least "
            f"{MINIMUM_LABELS}, and 50 to 100 make a difference that can be trusted. Left out: "
            f"{lost or 'none'}. Label more traces, or mend these reasons."
        )
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    label_of = dict(zip(pairs.trace_ids, pairs.table["human"], strict=True))
    lineage = read_lineage(fingerprints_of(judge), label_of, by_id)
    split = limited(split_pairs(pairs, by_id, lineage, groups, size, seed), n_labels)
    return AlignmentData(judge, pairs, by_id, split, lineage)


def split_pairs(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    lineage: Lineage,
    groups: Groups,
    size: float,
    seed: int,
) -> Split:
    """Split into train, dev and test, without what the judge learned from before in test."""
    items = [by_id[i] for i in pairs.trace_ids]
    group_of = default_groups(items) if groups is None else groups_of(pairs.table, groups)
    here = set(pairs.trace_ids)
    # Nor is it tested again where it was chosen for doing well, if enough traces are fresh.
    barred = here & (lineage.seen if len(here - lineage.seen) >= 10 else lineage.learned)
    # Of the traces that may be tested on, so that some of these are left to learn from.
    share = size * (1 - len(barred) / len(pairs)) or size
    split = pairs.split(test_size=share, seed=seed, groups=group_of, never_test=barred)
    return replace(split, groups=groups if isinstance(groups, str) else None)


def origin_note(judge: Judge, lineage: Lineage) -> str:
    """Return a warning about rules of unknown origin, as of a judge aligned in another store."""
    candidate = Candidate.from_instructions(str(getattr(judge, "instructions", "")))
    if lineage.seen or not (candidate.rules or candidate.examples):
        return ""
    return (
        "This judge's instructions hold learned rules or examples, but no run in this store tells "
        "from which traces. These may be among the held-out ones: test on traces new to it."
    )


def limited(split: Split, n_labels: int | None) -> Split:
    """Return the split with so many labels to learn from at most; more include the fewer."""
    if n_labels is None:
        return split
    stratum_of = {
        trace_id: (part, str(label))
        for part, pairs in (("train", split.train), ("dev", split.dev))
        for trace_id, label in zip(pairs.trace_ids, pairs.table["human"], strict=True)
    }
    chosen = stratified_order(stratum_of, split.seed)[:n_labels]
    used = f"{len(chosen)} of {len(stratum_of)} labels that could be learned from were used"
    notes = (*split.notes, f"{used} (n_labels={n_labels}).")
    train, dev = split.train.subset(chosen), split.dev.subset(chosen)
    return replace(split, train=train, dev=dev, notes=notes)


@dataclass(frozen=True)
class HeldOutTest:
    """Held-out pairs with the verdicts of both judges, on the items that both rated."""

    before: Pairs
    after: Pairs
    comparison: Comparison
    verdicts: Sequence[Verdict] = ()  # all of the proposed judge
    lost: float = 0.0  # share of the test without a usable one
    paid: Usage = UNPAID
    embeddings: Usage = UNPAID  # of a judge with a memory
    notes: Sequence[str] = ()


def score_held_out(
    data: AlignmentData,
    proposed: Judge,
    budget: Budget | None = None,
    *,
    concurrency: int = 64,
    progress: bool = False,
) -> HeldOutTest:
    """Score both judges once on test; the original's verdicts are those of the pairs."""
    test, seed = data.split.test, data.split.seed
    if fingerprint(proposed) == test.fingerprint:
        return HeldOutTest(test, test, compare(test, test, seed=seed))
    verdicts: list[Verdict] = []
    with (
        AnswerCache() as cache,
        Runner(cache=cache, budget=budget, concurrency=concurrency, answered=1) as runner,
        metered_embeddings(proposed, budget) as embedding,
        # Where more is used than was reserved for it, what was answered is a test all the same.
        suppress(BudgetError),
    ):
        items = [data.by_id[i] for i in test.trace_ids]
        bar = "testing on held-out traces" if progress else None
        judge_examples(
            proposed, items, runner, scale=test.scale, progress=bar, on_verdict=verdicts.append
        )
    answers = {v.trace_id: (v.value, v.rationale) for v in verdicts if usable(v, test.scale)}
    after = test.with_verdicts(answers, fingerprint(proposed))
    before, lost = test.subset(after.trace_ids), len(test) - len(after)
    spent = ", since the budget was spent" * (len(verdicts) < len(test))
    note = (
        f"The proposed judge gave no usable verdict on {lost} of {len(test)} held-out traces"
        f"{spent}; both judges are compared on the others."
    )
    return HeldOutTest(
        before,
        after,
        compare(before, after, seed=seed),
        verdicts,
        lost=lost / len(test),
        paid=runner.used,
        embeddings=embedding.used if embedding else UNPAID,
        notes=(note,) if lost else (),
    )


def decide(gate: Gate, test: HeldOutTest, train: Pairs, stopped: str = "") -> tuple[Status, str]:
    """Return whether the proposed judge is taken, and why; ``stopped`` is why learning ended."""
    comparison, summary = test.comparison, test.comparison.summary
    if test.after is test.before:
        why = f" ({stopped})" if stopped else ""
        return "unchanged", f"No better instructions were found{why}; the judge stays as it was."
    if comparison.n == 0:
        return "rejected", "The proposed judge gave no usable verdict; the original judge stays."
    if gate == "none":
        return "improved", f"{summary} The gate is off, so the judge is taken as it is."
    if test.lost > MOST_LOST:
        # A judge that answers only where it is sure would look better than it is.
        why = f"But it gave no usable verdict on {test.lost:.0%} of the held-out traces."
    elif not comparison.improved:
        why = "Not better on held-out pairs."
    elif gate == "significant" and not comparison.certain:
        why = "Not significant."
    else:
        why = _no_better_than_a_constant(train, test.after)
    if why:
        return "rejected", f"{summary} {why} The original judge stays."
    return "improved", " ".join([summary, *comparison.notes])


def majority(train: Pairs) -> Any:
    """Return the most frequent label; of several the first by its text."""
    return min(train.table["human"].mode(), key=str)


def _no_better_than_a_constant(train: Pairs, after: Pairs) -> str:
    """Return why the verdicts of ``after`` tell no more than a constant would; "" where they do."""
    # It must be right more often than the most frequent label, or nearer (than the median of
    # numbers); on scales that know no nearness it may agree with people more than by chance.
    if after.table["human"].nunique() < 2:  # nothing to tell apart
        return ""
    if after.table["judge"].nunique() < 2:
        return f"But it gives one and the same verdict on all {len(after)} held-out items."
    ordered, numeric = after.scale.ordered, after.scale.kind == "numeric"
    constant = float(train.table["human"].median()) if numeric else majority(train)
    judge = agreement(after, resamples=2)
    same = dict.fromkeys(after.trace_ids, (constant, ""))
    other = agreement(after.with_verdicts(same, "constant"), resamples=2)
    nearer = judge.mean_distance < other.mean_distance - ROUNDING
    right = not numeric and judge.accuracy > other.accuracy
    if right or (nearer if ordered else judge.kappa > 0):
        return ""
    return f"But always giving {constant!r} is as near to people on every measure."
