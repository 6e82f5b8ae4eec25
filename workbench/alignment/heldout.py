"""The held-out test: both judges on the test pairs, and how often these were used before."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.alignment.external import metered_embeddings
from workbench.alignment.runs import ALIGNED_TAG, RunLocation
from workbench.errors import BudgetError
from workbench.judging.judge import fingerprint
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale, is_abstention
from workbench.store.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


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


def total(*amounts: Any) -> Any:
    """Return the sum of the known amounts; None where none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


# -- how often held-out items were used -------------------------------------------------------

ITEMS_TAG = "workbench.test_items"
"""Tags of a run, numbered from 0: digests of the held-out items, separated by commas."""

ITEMS_PER_TAG = 500
"""Keeps a tag below 5,000 characters, the least that MLflow's stores accept."""

DIGEST_LENGTH = 8
"""Hexadecimal digits of an item's digest; a collision within 10,000 items hardly matters."""


@dataclass(frozen=True)
class TestSetUse:
    """How many judges were scored on the items of a test set, the original ones aside.

    Attributes
    ----------
    most, mean
        Judges per item, those at hand included: the largest number, and the mean over items.
    earlier
        The largest number of judges per item that were scored before.
    items
        Items in the test set; items with equal content are one.
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
        digests = item_digests(test, by_id)
        scored: dict[str, set[str]] = defaultdict(set)
        for logged in location.runs(f"tags.`{ITEMS_TAG}.0` LIKE '%'"):
            judge = logged.data.tags.get(ALIGNED_TAG)
            if judge:
                for item in digests.intersection(_logged_items(logged.data.tags)):
                    scored[item].add(judge)
        here = set(judges)
        counts = [len(scored[item] | here) for item in digests]
        return cls(
            most=max(counts, default=0),
            mean=sum(counts) / len(counts) if counts else 0.0,
            earlier=max((len(scored[item] - here) for item in digests), default=0),
            items=len(digests),
        )

    @property
    def note(self) -> str:
        """What the count means, in words; "" where no judge was scored before."""
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
    digests = sorted(item_digests(test, by_id))
    return {
        f"{ITEMS_TAG}.{number}": ",".join(digests[begin : begin + ITEMS_PER_TAG])
        for number, begin in enumerate(range(0, len(digests), ITEMS_PER_TAG))
    }


test_set_tags.__test__ = False  # type: ignore[attr-defined]


def item_digests(test: Pairs, by_id: Mapping[str, Example]) -> set[str]:
    """Return what identifies the items: their content, and the name of the labels."""
    texts = (json.dumps([test.name, item_digest(by_id[i])]) for i in test.trace_ids)
    return {hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH] for text in texts}


def _logged_items(tags: Mapping[str, str]) -> Iterator[str]:
    number = 0
    while (part := tags.get(f"{ITEMS_TAG}.{number}")) is not None:
        yield from part.split(",")
        number += 1
