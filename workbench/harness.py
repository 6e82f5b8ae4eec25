"""The stages of an alignment: own pairs, split, learn on train and dev, test once on test.

`workbench.alignment` runs them for one optimizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench import foreign
from workbench.ancestry import Earlier
from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.calls import run
from workbench.errors import ArgumentError, BudgetError, PairingError, TooFewPairsError
from workbench.judge import Verdict, fingerprint
from workbench.metrics import AnnotatorAgreement, annotator_agreement
from workbench.optimised import Optimised
from workbench.pairing import Groups, Pairs, Split, pair
from workbench.proposal import propose
from workbench.reflection import Item
from workbench.scale import ABSTAIN
from workbench.simba import SIMBA
from workbench.splits import default_groups, with_equal_items
from workbench.traces import Example
from workbench.watch import Watch

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


@dataclass(frozen=True)
class Learned:
    """What an optimizer proposes, and what it cost to find.

    Calls count requests, repeated ones included; ``known`` answers more were known from before.
    ``failures`` of the judge and ``reflection_failures`` are answers that never came or could not
    be read, and count for nothing else (`SIMBA` only).
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    stopped: str = ""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    failures: int = 0
    reflection_failures: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tested:
    """Held-out pairs with the verdicts of both judges, on the items that both rated.

    ``lost`` is the share of items without a usable verdict of the proposed judge, and
    ``other_calls`` counts what it asked of other models than its own.
    """

    before: Pairs
    after: Pairs
    calls: int = 0
    other_calls: int = 0
    tokens: int | None = None
    cost: float | None = None
    lost: float = 0.0
    notes: tuple[str, ...] = ()


def own_pairs(judge: Judge, pairs_or_traces: Any) -> Pairs:
    """The pairs given, or those of the traces given; they must be this very judge's."""
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


LEAST_FRESH = 10
"""Fresh pairs from which an aligned judge is tested on these alone."""


def split_pairs(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    groups: Groups,
    earlier: Earlier,
    test_size: float,
    seed: int,
) -> Split:
    """Train, dev and test.

    What the judge learned from before is never in test. What it was tested on before is not
    either where there are fresh pairs enough: it was taken for doing well there.
    """
    items = [by_id[i] for i in pairs.trace_ids]
    named = groups if isinstance(groups, str) else None
    kept = default_groups(items) if groups is None else pairs.group_of(groups)
    kept = with_equal_items(kept, items)
    fresh = set(pairs.trace_ids) - earlier.all
    barred = earlier.all if len(fresh) >= LEAST_FRESH else earlier.learned
    # A share of those that may be tested on, so that there is as much to learn from of these.
    share = test_size * (1 - len(barred & set(pairs.trace_ids)) / len(pairs)) or test_size
    try:
        split = pairs.split(test_size=share, seed=seed, groups=kept, never_test=barred)
    except ArgumentError:
        if not barred & set(pairs.trace_ids):
            raise
        raise TooFewPairsError(
            "This judge was aligned on these traces before, and what a judge learned on is never "
            "tested on. Label new traces and align with those as well, or align the judge that "
            "it came from."
        ) from None
    return replace(split, groups=named)


def annotators_of(pairs: Pairs) -> AnnotatorAgreement | None:
    """How the annotators agree among themselves; None where there is only one."""
    votes = pairs.votes
    return annotator_agreement(pairs) if votes.shape[1] > 1 else None


EARLIER = 0.25
"""Weight of a label that the judge learned from before, where a newer one has 1."""


def items_of(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    earlier: Collection[str] = (),
    group_of: Mapping[str, str] | None = None,
) -> list[Item]:
    """The pairs as what is learned from; people's standards drift, so newer labels weigh more.

    ``earlier`` are traces whose labels are not new. ``group_of`` tells what must stay together
    where the items are parted again.
    """
    rows = pairs.table.to_dict("records")
    weights = dict.fromkeys(earlier, EARLIER)
    groups = group_of or {}
    return [
        Item(
            by_id[i],
            row["human"],
            row["human_rationale"],
            weight=weights.get(i, 1.0),
            group=groups.get(i, ""),
        )
        for row in rows
        for i in [row["trace_id"]]
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

    ``earlier`` are traces with labels that the judge learned from before, which weigh less
    (`SIMBA` only). ``max_failure_share`` None means a `SIMBA`'s own, and 0.05 for others;
    ``progress`` holds for others only.
    """
    watch = watch or Watch()
    if isinstance(optimizer, SIMBA):
        purse = Budget.of(budget)
        known = [
            Verdict(
                row["trace_id"], row["judge"], row["judge_rationale"], fingerprint=part.fingerprint
            )
            for part in (split.train, split.dev)
            for row in part.table.to_dict("records")
        ]
        with watch.learning(optimizer, purse), _bearing(optimizer, max_failure_share):
            proposed = optimizer.learn(
                judge,
                items_of(split.train, by_id, earlier, split.group_of),
                items_of(split.dev, by_id, earlier, split.group_of),
                scale=split.train.scale,
                known=known,
                budget=purse,
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
    proposal = propose(
        judge,
        optimizer,
        split,
        by_id,
        budget=Budget.of(budget),
        max_failure_share=0.05 if max_failure_share is None else max_failure_share,
        progress=progress,
        stop=watch.stop,
    )
    return Learned(**vars(proposal))


@contextmanager
def _bearing(optimizer: SIMBA, max_failure_share: float | None) -> Iterator[None]:
    """Within it the optimizer bears this share of failures; None: its own."""
    own = optimizer.settings
    if max_failure_share is not None:
        optimizer.settings = replace(own, max_failure_share=max_failure_share)
    try:
        yield
    finally:
        optimizer.settings = own


def _failure_notes(found: Optimised) -> Iterator[str]:
    """What was lost while learning, of the judge and of the reflection model."""
    if found.failures:
        yield (
            f"While learning, {_counted(found.failures, 'verdict')} failed or could not be read, "
            "and counted neither for nor against any candidate."
        )
    if found.reflection_failures:
        yield (
            f"{_counted(found.reflection_failures, 'reflection')} failed, was refused or could not "
            "be read, and gave no rule. They are not kept: the same call asks again."
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def put_to_test(
    original: Judge,
    proposed: Judge,
    test: Pairs,
    by_id: Mapping[str, Example],
    progress: bool,
    budget: Budget | None = None,
) -> Tested:
    """Score both judges once on test: the original's verdicts are known from the pairs."""
    if fingerprint(proposed) == fingerprint(original):
        return Tested(test, test)
    verdicts: list[Verdict] = []
    notes: tuple[str, ...] = ()
    with AnswerCache() as cache, foreign.others_counted(proposed, budget) as meter:
        try:
            run(
                proposed,
                [by_id[i] for i in test.trace_ids],
                cache=cache,
                scale=test.scale,
                budget=budget,
                progress="testing on held-out traces" if progress else None,
                on_verdict=verdicts.append,
            )
        except BudgetError as error:
            # More calls failed than were reckoned with; what came is a test all the same.
            notes = (f"The held-out test was not finished. {error}",)
    verdicts.sort(key=lambda verdict: test.trace_ids.index(verdict.trace_id))
    answers = {v.trace_id: (v.value, v.rationale) for v in verdicts if usable(v)}
    lost = len(test) - len(answers)
    if lost:
        notes += (
            f"The proposed judge gave no usable verdict on {lost} of {len(test)} held-out traces; "
            "both judges are compared on the others.",
        )
    after = test.with_verdicts(answers, fingerprint(proposed))
    before = test.subset(after.trace_ids)
    return Tested(
        before,
        after,
        calls=sum(v.calls for v in verdicts),
        other_calls=meter.embedding.requests + meter.reflection.requests if meter else 0,
        tokens=total(*(n for v in verdicts for n in (v.input_tokens, v.output_tokens))),
        cost=total(*(v.cost for v in verdicts)),
        lost=lost / len(test),
        notes=notes,
    )


def usable(verdict: Verdict) -> bool:
    """Whether the verdict is a rating, and neither a failure nor an abstention."""
    return verdict.error is None and verdict.value not in ("N/A", ABSTAIN)


def total(*amounts: Any) -> Any:
    """Sum of the known amounts; None where none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
