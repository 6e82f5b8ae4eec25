"""Splitting the pairs, and letting an optimizer learn on train and dev."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.external import propose
from workbench.alignment.lineage import Lineage
from workbench.alignment.preflight import check_pairs
from workbench.alignment.result import Learned
from workbench.alignment.runs import RunLocation, Watch
from workbench.compat import options
from workbench.errors import ArgumentError, PairingError, TooFewPairsError
from workbench.judging.judge import fingerprint
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split, pair
from workbench.pairing.splits import Groups, default_groups, groups_of, with_equal_items
from workbench.simba.items import Item
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import Optimised
from workbench.store.traces import Example, examples

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

MINIMUM_FRESH = 10
"""With so many traces that are new to a judge, it is tested on these alone."""

EARLIER_WEIGHT = 0.25
"""Weight of a label that the judge learned from before; a newer one has 1."""

MAX_FAILURE_SHARE = 0.05
"""Default share of lost answers above which an optimizer is stopped."""


@dataclass(frozen=True)
class AlignmentData:
    """The pairs and their split, and what is known of them before anything is learned."""

    pairs: Pairs
    by_id: Mapping[str, Example]
    lineage: Lineage
    split: Split

    @classmethod
    def of(
        cls,
        judge: Judge,
        pairs_or_traces: Any,
        groups: Groups,
        test_size: float,
        seed: int,
        location: RunLocation,
    ) -> AlignmentData:
        """Read and split the pairs of a judge that is made from instructions."""
        pairs = own_pairs(judge, pairs_or_traces)
        options(judge)  # raises for other judges
        check_pairs(pairs)
        by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
        lineage = Lineage.of(judge, pairs, by_id, location)
        split = split_pairs(pairs, by_id, groups, lineage, test_size, seed)
        return cls(pairs, by_id, lineage, split)


def own_pairs(judge: Judge, pairs_or_traces: Any) -> Pairs:
    """Return the given pairs, or those of the traces; they must hold this judge's verdicts."""
    if not isinstance(pairs_or_traces, Pairs):
        return pair(judge, pairs_or_traces)
    if pairs_or_traces.fingerprint != fingerprint(judge):
        raise PairingError(
            f"These pairs hold verdicts of another judge than {judge.name!r} as it is now. Run "
            "workbench.assess(judge, traces) and workbench.pair(judge, traces) with this one."
        )
    return pairs_or_traces


def check_one_budget(optimizer: AlignmentOptimizer, budget: Budget | int | None) -> None:
    """Raise `ArgumentError` where a `SIMBA` has a budget of its own and another is given."""
    own = optimizer.budget if isinstance(optimizer, SIMBA) else None
    if budget is not None and own is not None and own is not budget:
        raise ArgumentError(
            f"budget={budget!r} is given, and SIMBA has budget={own!r} of its own. Give one of "
            "them: the former is for learning and the held-out test, SIMBA's for learning alone."
        )


def split_pairs(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    groups: Groups,
    lineage: Lineage,
    test_size: float,
    seed: int,
) -> Split:
    """Split into train, dev and test.

    What the judge learned from before is never in test. What it was tested on before is not
    either where enough traces are fresh, since it was chosen for doing well there.
    """
    items = [by_id[i] for i in pairs.trace_ids]
    named = groups if isinstance(groups, str) else None
    group_of = default_groups(items) if groups is None else groups_of(pairs.table, groups)
    group_of = with_equal_items(group_of, items)
    here = set(pairs.trace_ids)
    enough = len(here - lineage.all) >= MINIMUM_FRESH
    barred = here & (lineage.all if enough else lineage.learned)
    # The share refers to the traces that may be tested on, so that some of these are left to
    # learn from.
    share = test_size * (1 - len(barred) / len(pairs)) or test_size
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
    return replace(split, groups=named)


def training_items(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    earlier: Collection[str] = (),
    group_of: Mapping[str, str] | None = None,
) -> list[Item]:
    """Return the pairs as items to learn from.

    ``earlier`` are traces whose labels the judge learned from before; they weigh less, since
    people's standards drift. ``group_of`` says which items must stay together when they are
    split again.
    """
    return [
        Item(
            by_id[row["trace_id"]],
            row["human"],
            row["human_rationale"],
            weight=EARLIER_WEIGHT if row["trace_id"] in earlier else 1.0,
            group=(group_of or {}).get(row["trace_id"], ""),
        )
        for row in pairs.table.to_dict("records")
    ]


def learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    budget: Budget | int | None = None,
    *,
    earlier: Collection[str] = (),
    max_failure_share: float | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Learned:
    """Let the optimizer learn on train and select on dev.

    ``earlier`` are traces whose labels weigh less (`SIMBA` only). ``max_failure_share`` None
    means a `SIMBA`'s own, and 0.05 for others; ``progress`` applies to others only.
    """
    watch = watch or Watch()
    if isinstance(optimizer, SIMBA):
        return _learn_simba(
            judge, optimizer, split, by_id, Budget.of(budget), earlier, max_failure_share, watch
        )
    share = MAX_FAILURE_SHARE if max_failure_share is None else max_failure_share
    return propose(
        judge, optimizer, split, by_id, Budget.of(budget), max_failure_share=share, stop=watch.stop
    )


def _learn_simba(
    judge: Judge,
    optimizer: SIMBA,
    split: Split,
    by_id: Mapping[str, Example],
    budget: Budget,
    earlier: Collection[str],
    max_failure_share: float | None,
    watch: Watch,
) -> Learned:
    known = [
        Verdict(row["trace_id"], row["judge"], row["judge_rationale"], fingerprint=part.fingerprint)
        for part in (split.train, split.dev)
        for row in part.table.to_dict("records")
    ]
    with watch.learning(optimizer, budget), _failure_share(optimizer, max_failure_share):
        proposed = optimizer.learn(
            judge,
            training_items(split.train, by_id, earlier, split.group_of),
            training_items(split.dev, by_id, earlier, split.group_of),
            scale=split.train.scale,
            known=known,
            budget=budget,
        )
    found = optimizer.last
    assert found is not None
    return Learned(
        judge=proposed,
        calls=found.judge_calls,
        reflection_calls=found.reflection_calls,
        known=found.known,
        tokens=found.tokens,
        cost=found.cost,
        stopped=found.stopped,
        history=found.history,
        evidence=found.evidence,
        failures=found.failures,
        reflection_failures=found.reflection_failures,
        notes=(*found.notes, *_failure_notes(found)),
    )


@contextmanager
def _failure_share(optimizer: SIMBA, max_failure_share: float | None) -> Iterator[None]:
    """Set the share for the time of the run; None leaves the optimizer's own."""
    own = optimizer.settings
    if max_failure_share is not None:
        optimizer.settings = replace(own, max_failure_share=max_failure_share)
    try:
        yield
    finally:
        optimizer.settings = own


def _failure_notes(found: Optimised) -> Iterator[str]:
    if found.failures:
        yield (
            f"While learning, {_counted(found.failures, 'verdict')} failed or could not be read, "
            "and counted neither for nor against any candidate."
        )
    if found.reflection_failures:
        yield (
            f"{_counted(found.reflection_failures, 'reflection')} failed, was refused or could not "
            "be read, and gave no rule. They are not cached: the same call asks again."
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
