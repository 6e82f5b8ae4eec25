"""Selection: verdicts of all candidates, their scores, and which rules do harm or nothing."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from workbench.errors import ModelError
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale, is_abstention
from workbench.simba.candidate import Candidate, Case, Item, rules_about, sample

Ask = Callable[[Sequence[tuple[Candidate, Item]]], list[Verdict]]
"""Asks the judge with each candidate's instructions; verdicts come in the same order."""

TOLERANCE: Final = 0.1  # distance up to which a verdict on a continuous scale agrees with the label
MAX_FAILED: Final = 0.2  # share of failed calls above which a candidate has no score
LENGTH_PENALTY: Final = 0.01  # subtracted from the score for each 100 words that a candidate adds
STEADY: Final = 0.75  # standard errors by which a candidate must be better to replace another
MAX_TRIED: Final = 3  # items that are wrong, and that are right, on which one rule is left out


def credit(scale: Scale, verdict: Any, label: Any) -> float:
    """Credit of a verdict, in [0, 1]: 1 for the label itself, less for a near miss."""
    if verdict == label:
        return 1.0
    if not scale.ordered:
        return 0.0
    nearness = 1.0 - scale.distance(verdict, label)
    # Verdicts on continuous scales hardly ever equal the label.
    return nearness if _is_continuous(scale) else nearness / 2


def agrees(scale: Scale, verdict: Any, label: Any) -> bool:
    """Whether a verdict equals the label, or is near enough on a continuous scale."""
    near = _is_continuous(scale) and scale.distance(verdict, label) <= TOLERANCE
    return bool(verdict == label or near)


def usable(verdict: Verdict, scale: Scale | None) -> bool:
    """Whether the verdict is a rating, and neither a failure nor an abstention."""
    return verdict.error is None and not is_abstention(verdict.value, scale)


def _is_continuous(scale: Scale) -> bool:
    return scale.kind == "numeric" and not scale.integer


@dataclass
class Scoreboard:
    """Verdicts of all candidates, and their scores on the items that they are selected on.

    An item that a candidate shows as a worked example does not count for it.
    """

    items: list[Item]
    original: Candidate
    scale: Scale
    ask: Ask
    class_weight: Literal["balanced"] | None = None
    max_failure_share: float = 0.05

    def __post_init__(self) -> None:
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.calls = self.cached = self.failures = 0
        self.lost: list[Verdict] = []
        labels = [item.label for item in self.items] if self.class_weight == "balanced" else []
        counts = Counter(labels)
        self._label_weights = {v: len(labels) / (len(counts) * n) for v, n in counts.items()}

    def judge(self, wanted: Iterable[tuple[Candidate, Item]]) -> None:
        """Get the verdicts not known yet, in parallel; `ModelError` if too many calls failed.

        A candidate whose answers are unusable or whose requests are refused, as they may be for
        their length, ends nothing.
        """
        missing = {
            (candidate.key, item.trace_id): (candidate, item)
            for candidate, item in wanted
            if not candidate.shows(item) and (candidate.key, item.trace_id) not in self.verdicts
        }
        answers = self.ask(list(missing.values())) if missing else []
        for key, verdict in zip(missing, answers, strict=True):
            self.verdicts[key] = verdict
            self.calls += verdict.calls
            self.cached += verdict.cached
            self.failures += verdict.error is not None
            if verdict.error is not None and not (verdict.unusable and key[0] != self.original.key):
                self.lost.append(verdict)
        asked = len(self.verdicts)
        if len(self.lost) > self.max_failure_share * max(20, asked):
            raise ModelError(
                f"{len(self.lost)} of {asked} judge calls failed, more than the "
                f"{self.max_failure_share:.0%} allowed. One of them: {self.lost[0].error}. "
                "Fix the cause and run again: answers that were paid for are kept. Or allow more "
                "with SIMBA(max_failure_share=...)."
            )

    def hidden_from(
        self, candidates: Iterable[Candidate], items: Sequence[Item] | None = None
    ) -> list[Item]:
        """The items, all unless given, that none of the candidates shows as a worked example."""
        shown = {trace_id for one in candidates for trace_id in one.examples}
        items = self.items if items is None else items
        return [item for item in items if item.trace_id not in shown]

    def remove_failed(self) -> None:
        """Remove items on which the original failed, unless all did: nothing compares with it."""
        judged = [item for item in self.items if not self._has_failed(self.original, item)]
        self.items = judged or self.items

    def verdict(self, candidate: Candidate, item: Item) -> Verdict | None:
        return self.verdicts.get((candidate.key, item.trace_id))

    def opinion(self, candidate: Candidate, item: Item) -> Verdict | None:
        """The candidate's verdict; None if it is missing, failed or an abstention."""
        verdict = self.verdict(candidate, item)
        return verdict if verdict is not None and usable(verdict, self.scale) else None

    def _has_failed(self, candidate: Candidate, item: Item) -> bool:
        verdict = self.verdict(candidate, item)
        return verdict is not None and verdict.error is not None

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

    def weight(self, item: Item) -> float:
        return item.weight * self._label_weights.get(item.label, 1.0)

    def earned(self, candidate: Candidate, item: Item) -> float | None:
        """Credit on an item, in [0, 1]; None if the item does not count."""
        verdict = self.verdict(candidate, item)
        if verdict is None or (verdict.error is not None and not verdict.unusable):
            return None
        if usable(verdict, self.scale):
            return credit(self.scale, verdict.value, item.label)
        # To abstain, or to answer unusably, is neither right nor wrong, but it must not pay.
        return 0.0 if self.opinion(self.original, item) else None

    def gain(self, one: Candidate, other: Candidate, item: Item) -> float:
        """Weighted credit of one on an item minus the other's; 0 if a call failed."""
        mine, its = self.earned(one, item), self.earned(other, item)
        return 0.0 if mine is None or its is None else self.weight(item) * (mine - its)

    def score(
        self, candidate: Candidate, items: Sequence[Item] | None = None
    ) -> tuple[float, float]:
        """Return (mean credit minus length penalty, accuracy).

        Both are nan without an opinion, or if more than `MAX_FAILED` of the calls failed.
        """
        items = self.items if items is None else items
        earned = ((self.weight(item), self.earned(candidate, item)) for item in items)
        credits = [(weight, one) for weight, one in earned if one is not None]
        opinions = ((self.opinion(candidate, item), item.label) for item in items)
        right = [verdict.value == label for verdict, label in opinions if verdict]
        failed = sum(self._has_failed(candidate, item) for item in items)
        if not right or failed > MAX_FAILED * len(items):
            return math.nan, math.nan
        credit = sum(weight * one for weight, one in credits) / sum(weight for weight, _ in credits)
        return credit - length_penalty(candidate), sum(right) / len(right)

    def lead(self, one: Candidate, other: Candidate, items: Sequence[Item] | None = None) -> float:
        """Score of one minus the other's, on items that neither shows; -inf without a score."""
        both = self.hidden_from([one, other], items)
        lead = self.score(one, both)[0] - self.score(other, both)[0]
        return -math.inf if math.isnan(lead) else lead

    def is_better(
        self, one: Candidate, other: Candidate, seen: Sequence[Item] | None = None
    ) -> bool:
        """Whether one scores higher than the other by `STEADY` standard errors of its gains.

        If it was judged on the items ``seen`` only: whether it may still, all others being right.
        """
        both = self.hidden_from([one, other])
        judged = self.hidden_from([one, other], seen)
        ids = {item.trace_id for item in judged}
        if math.isnan(self.score(one, judged)[0]):
            return False
        gains = [self.gain(one, other, item) for item in judged]
        unseen = ((item, self.earned(other, item)) for item in both if item.trace_id not in ids)
        gains += [self.weight(item) * (1.0 - known) for item, known in unseen if known is not None]
        longer = length_penalty(one) - length_penalty(other)
        gain = sum(gains) - longer * sum(map(self.weight, both))
        return gain > 1e-9 and gain >= STEADY * math.sqrt(sum(g * g for g in gains))


def length_penalty(candidate: Candidate) -> float:
    return LENGTH_PENALTY * max(0, candidate.added_words) / 100


def doubtful(
    best: Candidate, board: Scoreboard, rng: random.Random
) -> tuple[dict[int, str], dict[int, str]]:
    """Leave out each rule on some items; return why the worst is harmful, and others are idle.

    It is done on items whose rationales are about the rule, or else about none.
    """
    without = [best.without_rules({i: ""}) for i in range(len(best.rules))]
    planned: dict[int, list[tuple[Item, float]]] = defaultdict(list)
    for side in board.cases(best, board.items):
        about: dict[int | None, list[Item]] = defaultdict(list)
        for case in side:
            said = f"{case.verdict.rationale} {case.item.rationale}"
            about[next(iter(rules_about(best.rules, said)), None)].append(case.item)
        for rule in range(len(best.rules)):
            concerned = about[rule] or about[None]
            drawn = sample(concerned, MAX_TRIED, rng)
            planned[rule] += [(item, len(concerned) / len(drawn)) for item in drawn]
    board.judge((without[rule], item) for rule in planned for item, _ in planned[rule])
    gains, idle = {}, {}
    for rule, tried in planned.items():
        found = [(board.gain(without[rule], best, item), times) for item, times in tried]
        gains[rule] = sum(gain * times for gain, times in found)
        answered = all(board.earned(without[rule], item) is not None for item, _ in tried)
        if tried and answered and not any(gain for gain, _ in found):
            idle[rule] = "idle: no score changed without it"
    worst = max(gains, key=lambda rule: gains[rule])
    if gains[worst] <= 1e-9:
        return {}, idle
    return {worst: f"harmful: about {gains[worst]:.3g} more items right without it"}, idle
