"""What is held out: the split, the test of a judge on it, and how often it was used before."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.alignment.external import metered_embeddings
from workbench.alignment.preflight import check_pairs
from workbench.alignment.runs import (
    ALIGNED_TAG,
    AlignmentRun,
    Lineage,
    RunLocation,
    data_tags,
    lineage_files,
    run_params,
)
from workbench.compat import options
from workbench.errors import ArgumentError, BudgetError, PairingError, TooFewPairsError
from workbench.judging.judge import fingerprint
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget, total
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs, Split, pair
from workbench.pairing.splits import Groups, default_groups, groups_of, with_equal_items
from workbench.scale import Scale, is_abstention
from workbench.store.traces import Example, examples, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

MINIMUM_FRESH = 10
"""With so many traces that are new to a judge, it is tested on these alone."""

ITEMS_TAG = "workbench.test_items"
"""Tags of a run, numbered from 0: digests of the held-out items, separated by commas."""

ITEMS_PER_TAG = 500
"""Keeps a tag below 5,000 characters, the least that MLflow's stores accept."""


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
        pairs = pairs_or_traces
        if not isinstance(pairs, Pairs):
            pairs = pair(judge, pairs_or_traces)
        elif pairs.fingerprint != fingerprint(judge):
            raise PairingError(
                f"These pairs hold verdicts of another judge than {judge.name!r} as it is now. "
                "Run workbench.assess(judge, traces) and workbench.pair(judge, traces) with this "
                "one."
            )
        options(judge)  # raises for other judges
        check_pairs(pairs)
        by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
        lineage = Lineage.of(judge, pairs, by_id, location)
        split = split_pairs(pairs, by_id, groups, lineage, test_size, seed)
        return cls(pairs, by_id, lineage, split)


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
    verdicts: tuple[Verdict, ...] = ()
    calls: int = 0
    other_calls: int = 0
    tokens: int | None = None
    cost: float | None = None
    lost: float = 0.0
    notes: tuple[str, ...] = ()


def begin_test(
    run: AlignmentRun, judge: Judge, proposed: Judge, data: AlignmentData, **settings: Any
) -> TestSetUse:
    """Log a test before it is made, and count how often its items were used."""
    test, tested = data.split.test, fingerprint(proposed)
    tags = data_tags(judge, data.pairs, data.split) | {ALIGNED_TAG: tested}
    use = TestSetUse()
    if tested != fingerprint(judge):
        use = TestSetUse.of(test, data.by_id, tested, location=run.location)
        tags |= test_set_tags(test, data.by_id)
    run.begin(
        tags,
        run_params(judge, data.split, **settings),
        lineage_files(judge, proposed, data.split, data.by_id),
    )
    return use


def score_held_out(
    original: Judge,
    proposed: Judge,
    test: Pairs,
    by_id: Mapping[str, Example],
    progress: bool,
    budget: Budget | None = None,
) -> HeldOutTest:
    """Score both judges once on test; the original's verdicts are those of the pairs."""
    if fingerprint(proposed) == fingerprint(original):
        return HeldOutTest(test, test)
    verdicts: list[Verdict] = []
    notes: tuple[str, ...] = ()
    with (
        AnswerCache() as cache,
        Runner(cache=cache, budget=budget, proven=True) as runner,
        metered_embeddings(proposed, budget) as embeddings,
    ):
        try:
            judge_examples(
                proposed,
                [by_id[i] for i in test.trace_ids],
                runner,
                scale=test.scale,
                progress="testing on held-out traces" if progress else None,
                on_verdict=verdicts.append,
            )
        except BudgetError as error:
            # More calls failed than were reserved for; what was answered is a test all the same.
            notes = (f"The held-out test was not finished. {error}",)
    answers = {v.trace_id: (v.value, v.rationale) for v in verdicts if usable(v, test.scale)}
    lost = len(test) - len(answers)
    if lost:
        notes += (
            f"The proposed judge gave no usable verdict on {lost} of {len(test)} held-out traces; "
            "both judges are compared on the others.",
        )
    after = test.with_verdicts(answers, fingerprint(proposed))
    return HeldOutTest(
        test.subset(after.trace_ids),
        after,
        tuple(verdicts),
        calls=sum(v.calls for v in verdicts),
        other_calls=embeddings.requests,
        tokens=total(*(n for v in verdicts for n in (v.input_tokens, v.output_tokens))),
        cost=total(*(v.cost for v in verdicts)),
        lost=lost / len(test),
        notes=notes,
    )


def usable(verdict: Verdict, scale: Scale | None) -> bool:
    """Return whether the verdict is a rating, and neither a failure nor an abstention."""
    return verdict.error is None and not is_abstention(verdict.value, scale)


# -- how often held-out items were used -------------------------------------------------------


@dataclass(frozen=True)
class TestSetUse:
    """How many judges were scored on the items of a test set, the original ones aside.

    ``most`` and ``mean`` are the judges per item, those at hand included; ``earlier`` the largest
    number of other judges per item. Of the ``items``, those with equal content are one.
    """

    __test__ = False  # or pytest collects it where it is imported

    most: int = 0
    mean: float = 0.0
    earlier: int = 0
    items: int = 0

    @classmethod
    def of(
        cls, test: Pairs, by_id: Mapping[str, Example], *judges: str, location: RunLocation
    ) -> TestSetUse:
        """Count the judges by the runs in the store; ``judges`` are fingerprints that count too."""
        scored: dict[str, set[str]] = defaultdict(set)
        for run in location.runs(f"tags.`{ITEMS_TAG}.0` LIKE '%'"):
            tags = run.data.tags
            for key, items in tags.items():
                if key.startswith(f"{ITEMS_TAG}.") and ALIGNED_TAG in tags:
                    for item in items.split(","):
                        scored[item].add(tags[ALIGNED_TAG])
        here, digests = set(judges), _item_digests(test, by_id)
        counts = [len(scored[item] | here) for item in digests]
        return cls(
            most=max(counts, default=0),
            mean=sum(counts) / len(counts) if counts else 0.0,
            earlier=max((len(scored[item] - here) for item in digests), default=0),
            items=len(digests),
        )

    @property
    def note(self) -> str:
        """What the count means, in words; "" where no other judge was scored."""
        if not self.earlier:
            return ""
        return (
            f"Held-out items were looked at before: of these {self.items}, some have now been used "
            f"to score {self.most} different judges (on average {self.mean:.1f}), what is scored "
            "here included. The best of several looks better than it is: label new traces to know "
            "how good it is."
        )


def test_set_tags(test: Pairs, by_id: Mapping[str, Example]) -> dict[str, str]:
    """Return the tags of a run that say which items its judge is scored on."""
    digests = sorted(_item_digests(test, by_id))
    return {
        f"{ITEMS_TAG}.{number}": ",".join(digests[begin : begin + ITEMS_PER_TAG])
        for number, begin in enumerate(range(0, len(digests), ITEMS_PER_TAG))
    }


test_set_tags.__test__ = False  # type: ignore[attr-defined]


def _item_digests(test: Pairs, by_id: Mapping[str, Example]) -> set[str]:
    """Return what identifies the items: their content, and the name of the labels."""
    texts = (json.dumps([test.name, item_digest(by_id[i])]) for i in test.trace_ids)
    # A collision of 8 digits within 10,000 items hardly matters.
    return {hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts}
