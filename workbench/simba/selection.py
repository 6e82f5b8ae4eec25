"""Selection: scores of candidates, and which of their rules are dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from workbench.errors import ModelError
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale, is_abstention
from workbench.simba.candidate import Candidate
from workbench.simba.items import Case, Item
from workbench.simba.proposals import Proposer, blamed

Ask = Callable[[Sequence[tuple[Candidate, Item]]], list[Verdict]]
"""Asks the judge with each candidate's instructions; verdicts come in the same order."""

TOLERANCE: Final = 0.1
"""Distance up to which a verdict on a continuous scale agrees with the label."""

MAX_FAILED: Final = 0.2
"""Share of failed calls above which a candidate has no score."""

LENGTH_PENALTY: Final = 0.01
"""Subtracted from the score for each 100 words that a candidate adds."""


def credit(scale: Scale, verdict: Any, label: Any) -> float:
    """Credit of a verdict, in [0, 1].

    1 for the label itself. With ``d`` the scale's distance, a near miss earns ``(1 - d) / 2`` on
    ordered scales and ``1 - d`` on continuous ones, where verdicts hardly ever equal the label.
    """
    if verdict == label:
        return 1.0
    if not scale.ordered:
        return 0.0
    nearness = 1.0 - scale.distance(verdict, label)
    return nearness if _is_continuous(scale) else nearness / 2


def agrees(scale: Scale, verdict: Any, label: Any) -> bool:
    """Whether a verdict equals the label, or is near enough on a continuous scale."""
    return bool(
        verdict == label or (_is_continuous(scale) and scale.distance(verdict, label) <= TOLERANCE)
    )


def _is_continuous(scale: Scale) -> bool:
    return scale.kind == "numeric" and not scale.integer


@dataclass
class Scoreboard:
    """Verdicts of all candidates, and their scores on the items that they are selected on.

    Parameters
    ----------
    items
        Items to select on.
    original
        The judge's own instructions. Abstaining where the original had an opinion earns nothing.
        An item that a candidate shows as a worked example counts as the original judged it.
    scale
        The rating scale.
    ask
        Asks the judge.
    class_weight
        ``"balanced"`` gives all labels the same total weight.
    max_failure_share
        Share of failed calls, in [0, 1], above which `judge` gives up.
    """

    items: list[Item]
    original: Candidate
    scale: Scale
    ask: Ask
    class_weight: Literal["balanced"] | None = None
    max_failure_share: float = 0.05
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict, init=False)
    calls: int = field(default=0, init=False)
    cached: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)
    tokens: list[int] = field(default_factory=list, init=False)
    costs: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        counts = Counter(item.label for item in self.items)
        self._label_weights = {
            label: len(self.items) / (len(counts) * n) if self.class_weight == "balanced" else 1.0
            for label, n in counts.items()
        }

    def judge(self, wanted: Iterable[tuple[Candidate, Item]]) -> None:
        """Get the verdicts that are not known yet, all in parallel.

        Raises
        ------
        ModelError
            If more calls failed than allowed.
        """
        missing = {
            (candidate.key, item.trace_id): (candidate, item)
            for candidate, item in wanted
            if (candidate.key, item.trace_id) not in self.verdicts
            and not _is_example(candidate, item)
        }
        answers = self.ask(list(missing.values())) if missing else []
        for key, verdict in zip(missing, answers, strict=True):
            self.verdicts[key] = verdict
            self.calls += verdict.calls
            self.cached += verdict.cached
            self.failures += verdict.error is not None
            self.tokens += [n for n in (verdict.input_tokens, verdict.output_tokens) if n]
            self.costs += [verdict.cost] if verdict.cost else []
        asked = len(self.verdicts)
        if self.failures > self.max_failure_share * max(20, asked):
            failed = next(v for v in self.verdicts.values() if v.error is not None)
            raise ModelError(
                f"{self.failures} of {asked} judge calls failed, more than the "
                f"{self.max_failure_share:.0%} allowed. One of them: {failed.error}. "
                "Fix the cause and run again: answers that were paid for are kept. Or allow more "
                "with SIMBA(max_failure_share=...)."
            )

    def remove_failed(self, candidate: Candidate) -> None:
        """Remove items on which a call of the candidate failed, unless all did.

        Without the original's verdict there is nothing to compare a candidate with, and asking
        for others would count one bad item as many failures.
        """
        failed = {
            trace_id
            for (key, trace_id), verdict in self.verdicts.items()
            if key == candidate.key and verdict.error is not None
        }
        self.items = [i for i in self.items if i.trace_id not in failed] or self.items

    # -- verdicts -------------------------------------------------------------------------

    def verdict(self, candidate: Candidate, item: Item) -> Verdict | None:
        """The verdict that counts for the candidate, a failed one included; None if missing."""
        judged_by = self.original if _is_example(candidate, item) else candidate
        return self.verdicts.get((judged_by.key, item.trace_id))

    def opinion(self, candidate: Candidate, item: Item) -> Verdict | None:
        """The candidate's verdict; None if it is missing, failed or an abstention."""
        verdict = self.verdict(candidate, item)
        if verdict is None or verdict.error is not None:
            return None
        return None if is_abstention(verdict.value, self.scale) else verdict

    def cases(self, candidate: Candidate, items: Iterable[Item]) -> tuple[list[Case], list[Case]]:
        """The candidate's opinions that differ from the label, and those that agree."""
        wrong: list[Case] = []
        right: list[Case] = []
        for item in items:
            verdict = self.opinion(candidate, item)
            if verdict is not None:
                agreed = agrees(self.scale, verdict.value, item.label)
                (right if agreed else wrong).append(Case(item, verdict))
        return wrong, right

    # -- scores ---------------------------------------------------------------------------

    def weight(self, item: Item) -> float:
        return item.weight * self._label_weights.get(item.label, 1.0)

    def earned(self, candidate: Candidate, item: Item) -> float | None:
        """Credit on an item, in [0, 1]; None if the item does not count."""
        verdict = self.verdict(candidate, item)
        if verdict is None or verdict.error is not None:
            return None
        opinion = self.opinion(candidate, item)
        if opinion is None:
            # An abstention is neither right nor wrong, but it must not pay.
            return 0.0 if self.opinion(self.original, item) else None
        return credit(self.scale, opinion.value, item.label)

    def gain(self, child: Candidate, parent: Candidate, item: Item) -> float:
        """Weighted credit of the child on an item minus its parent's; 0 if a call failed."""
        mine, before = self.earned(child, item), self.earned(parent, item)
        return 0.0 if mine is None or before is None else self.weight(item) * (mine - before)

    def score(
        self, candidate: Candidate, items: Sequence[Item] | None = None
    ) -> tuple[float, float]:
        """Return (mean credit minus length penalty, accuracy).

        Both are nan without an opinion, or if more than `MAX_FAILED` of the calls failed.
        """
        items = self.items if items is None else items
        weight = earned = 0.0
        right = opinions = 0
        for item in items:
            one = self.earned(candidate, item)
            if one is None:
                continue
            weight += self.weight(item)
            earned += self.weight(item) * one
            opinion = self.opinion(candidate, item)
            if opinion is not None:
                opinions += 1
                right += opinion.value == item.label
        verdicts = [self.verdict(candidate, item) for item in items]
        failed = sum(v is not None and v.error is not None for v in verdicts)
        if not opinions or failed > MAX_FAILED * len(items):
            return math.nan, math.nan
        return earned / weight - length_penalty(candidate), right / opinions

    def upper_bound(self, candidate: Candidate, seen: Sequence[Item]) -> float:
        """The score if all items but ``seen`` came out right; -inf without a score on these."""
        score, _ = self.score(candidate, seen)
        if math.isnan(score):
            return -math.inf
        penalty = length_penalty(candidate)
        total, known = sum(map(self.weight, self.items)), sum(map(self.weight, seen))
        return ((score + penalty) * known + total - known) / total - penalty

    def is_flawless(self, candidate: Candidate) -> bool:
        return self.score(candidate)[0] >= 1.0 - length_penalty(candidate) - 1e-9


def length_penalty(candidate: Candidate) -> float:
    return LENGTH_PENALTY * max(0, candidate.added_words) / 100


def _is_example(candidate: Candidate, item: Item) -> bool:
    return any(example.trace_id == item.trace_id for example in candidate.examples)


# -- which rules are dropped --------------------------------------------------------------------

MAX_ABLATED: Final = 6
"""Wrong items on which rules of a winner are left out; of right ones twice as many."""


@dataclass(frozen=True)
class Ablation:
    """One rule left out on one item.

    ``gain`` is the weighted credit gained without the rule. ``represents`` is the number of items
    (wrong or right ones) that this one was sampled for. ``failed`` calls show nothing.
    """

    rule: int
    item: Item
    gain: float
    represents: float
    failed: bool = False


def ablate(
    candidate: Candidate,
    board: Scoreboard,
    proposer: Proposer,
    max_wrong: int = MAX_ABLATED,
    max_right: int = 2 * MAX_ABLATED,
) -> list[Ablation]:
    """Leave out rules on a sample of the items that the candidate gets wrong, and right.

    On each item the rules are left out that its verdict may rest on, which takes at most
    `MAX_BLAMED` judge calls.
    """
    without = [candidate.without_rules({i: "left out"}) for i in range(len(candidate.rules))]
    planned: list[tuple[int, Item, float]] = []
    sides = board.cases(candidate, board.items)
    for side, limit in zip(sides, (max_wrong, max_right), strict=True):
        rationales = {case.item.trace_id: case.verdict.rationale for case in side}
        sample = proposer.sample([case.item for case in side], limit)
        planned += [
            (rule, item, len(side) / len(sample))
            for turn, item in enumerate(sample)
            for rule in blamed(candidate.rules, rationales[item.trace_id], turn)
        ]
    board.judge((without[rule], item) for rule, item, _ in planned)
    return [
        Ablation(
            rule,
            item,
            board.gain(without[rule], candidate, item),
            represents,
            failed=board.earned(without[rule], item) is None,
        )
        for rule, item, represents in planned
    ]


def harmful_rules(ablations: Sequence[Ablation]) -> dict[int, str]:
    """The rules without which credit is gained, the worst first, with the reason to drop them."""
    gains: dict[int, float] = {}
    for one in ablations:
        gains[one.rule] = gains.get(one.rule, 0.0) + one.gain * one.represents
    worst = sorted(gains, key=lambda rule: (-gains[rule], rule))
    return {
        rule: f"harmful: about {gains[rule]:.3g} more items right without it"
        for rule in worst
        if gains[rule] > 1e-9
    }


def idle_rules(rules: int, ablations: Sequence[Ablation]) -> dict[int, str]:
    """Those of the first ``rules`` rules that changed no credit, with the reason to drop them."""
    tried = Counter(one.rule for one in ablations)
    felt = {one.rule for one in ablations if abs(one.gain) > 1e-9 or one.failed}
    return {
        rule: f"idle: leaving it out changed no score on {tried[rule]} items"
        for rule in range(rules)
        if rule not in felt
    }


def prune(
    candidate: Candidate, ablations: Sequence[Ablation], *, drop_idle: bool = True
) -> list[Candidate]:
    """Return the candidate without harmful and idle rules, without harmful ones, without the worst.

    `Candidate.dropped` of each says which rules were dropped and why.
    """
    harmful = harmful_rules(ablations)
    idle = idle_rules(len(candidate.rules), ablations) if drop_idle else {}
    choices = [{**harmful, **idle}, harmful, dict(list(harmful.items())[:1])]
    children = [candidate.without_rules(reasons) for reasons in choices if reasons]
    return list({child.key: child for child in children}.values())
