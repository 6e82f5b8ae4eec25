"""Selection: scores of candidates, and which of their rules are dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    Abstaining where ``original`` had an opinion earns nothing. An item that a candidate shows as a
    worked example counts as the original judged it. In cross-validation, ``siblings`` has, for a
    candidate's key and a trace id, the candidate that was made without that item and judges it in
    its place.
    """

    items: list[Item]
    original: Candidate
    scale: Scale
    ask: Ask
    class_weight: Literal["balanced"] | None = None
    max_failure_share: float = 0.05
    verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict, init=False)
    siblings: dict[str, Mapping[str, Candidate]] = field(default_factory=dict, init=False)
    calls: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)

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
        missing = {}
        for candidate, item in wanted:
            judge = self._judged_by(candidate, item)
            key = (judge.key, item.trace_id)
            if key not in self.verdicts and not _is_example(candidate, item):
                missing[key] = (judge, item)
        answers = self.ask(list(missing.values())) if missing else []
        for key, verdict in zip(missing, answers, strict=True):
            self.verdicts[key] = verdict
            self.calls += verdict.calls
            self.failures += verdict.error is not None
        asked = len(self.verdicts)
        if self.failures > self.max_failure_share * max(20, asked):
            failed = next(v for v in self.verdicts.values() if v.error is not None)
            raise ModelError(
                f"{self.failures} of {asked} judge calls failed, more than the "
                f"{self.max_failure_share:.0%} allowed. One of them: {failed.error}. "
                "Fix the cause and run again: answers that were paid for are kept. Or allow more "
                "with SIMBA(max_failure_share=...)."
            )

    def remove_failed(self) -> None:
        """Remove items on which a call of the original failed, unless all did.

        Without its verdict there is nothing to compare a candidate with.
        """
        judged = [i for i in self.items if not self._has_failed(self.original, i)]
        self.items = judged or self.items

    def verdict(self, candidate: Candidate, item: Item) -> Verdict | None:
        """The verdict that counts for the candidate, a failed one included; None if missing."""
        return self.verdicts.get((self._judged_by(candidate, item).key, item.trace_id))

    def opinion(self, candidate: Candidate, item: Item) -> Verdict | None:
        """The candidate's verdict; None if it is missing, failed or an abstention."""
        verdict = self.verdict(candidate, item)
        if verdict is None or verdict.error is not None:
            return None
        return None if is_abstention(verdict.value, self.scale) else verdict

    def _judged_by(self, candidate: Candidate, item: Item) -> Candidate:
        if _is_example(candidate, item):
            return self.original
        return self.siblings.get(candidate.key, {}).get(item.trace_id, candidate)

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
        failed = sum(self._has_failed(candidate, item) for item in items)
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


FIRST_RUNG, SECOND_RUNG = 0.15, 0.3
"""Shares of the items that candidates are scored on before some drop out."""

MIN_RUNG: Final = 8


def first_rung(items: int) -> int:
    """Number of items in the first rung of a race on so many items."""
    return min(items, max(MIN_RUNG, math.ceil(items * FIRST_RUNG)))


def rungs(board: Scoreboard, best: Candidate, proposer: Proposer) -> list[list[Item]]:
    """Split the items to select on into rungs, half of the first one wrong by the best."""
    missed = {case.item.trace_id for case in board.cases(best, board.items)[0]}
    size = first_rung(len(board.items))
    wrong = [i for i in board.items if i.trace_id in missed]
    first = proposer.sample(wrong, math.ceil(size / 2))
    right = [i for i in board.items if i.trace_id not in missed]
    first += proposer.sample(right, size - len(first))
    taken = {item.trace_id for item in first}
    rest = [item for item in board.items if item.trace_id not in taken]
    second = proposer.sample(rest, math.ceil(len(board.items) * SECOND_RUNG))
    taken |= {item.trace_id for item in second}
    third = [item for item in board.items if item.trace_id not in taken]
    return [rung for rung in (first, second, third) if rung]


def race(
    board: Scoreboard,
    candidates: Sequence[Candidate],
    rungs: Sequence[Sequence[Item]],
    to_beat: float,
) -> list[Candidate]:
    """Score candidates by successive halving and return those that come through all rungs.

    After each rung the worse half drops out, and those that can't beat the best any more.
    """
    alive, seen = list(candidates), list[Item]()
    for rung in rungs:
        board.judge((candidate, item) for candidate in alive for item in rung)
        seen += rung
        if len(seen) < len(board.items):
            alive.sort(key=lambda c: board.score(c, seen)[0], reverse=True)
            alive = alive[: max(1, len(alive) // 2)]
            alive = [c for c in alive if board.upper_bound(c, seen) > to_beat + 1e-9]
    return alive


MAX_ABLATED: Final = 6
"""Wrong items on which rules of a winner are left out; of right ones twice as many."""


@dataclass(frozen=True)
class Ablation:
    """One rule left out on one item.

    ``gain`` is the credit gained without it on all the items that this one was sampled for; None
    if the call failed.
    """

    rule: int
    item: Item
    gain: float | None


def ablate(
    candidate: Candidate,
    board: Scoreboard,
    proposer: Proposer,
    max_wrong: int = MAX_ABLATED,
    max_right: int = 2 * MAX_ABLATED,
) -> list[Ablation]:
    """Leave out rules on a sample of the items that the candidate gets wrong, and right.

    On each item those rules are left out that its verdict may rest on, `MAX_BLAMED` at most.
    """
    without = [candidate.without_rules({i: "left out"}) for i in range(len(candidate.rules))]
    planned: list[tuple[int, Item, float]] = []
    sides = board.cases(candidate, board.items)
    for side, limit in zip(sides, (max_wrong, max_right), strict=True):
        sample = proposer.sample(side, limit)
        planned += [
            (rule, case.item, len(side) / len(sample))
            for turn, case in enumerate(sample)
            for rule in blamed(candidate.rules, case.verdict.rationale, turn)
        ]
    board.judge((without[rule], item) for rule, item, _ in planned)
    ablations = []
    for rule, item, represents in planned:
        gain = board.gain(without[rule], candidate, item) * represents
        failed = board.earned(without[rule], item) is None
        ablations.append(Ablation(rule, item, None if failed else gain))
    return ablations


def dropped_rules(
    rules: int, ablations: Sequence[Ablation]
) -> tuple[dict[int, str], dict[int, str]]:
    """Which of so many rules are harmful, the worst first, and which idle, with the reasons."""
    gains: dict[int, float] = {}
    felt = set()
    for one in ablations:
        gains[one.rule] = gains.get(one.rule, 0.0) + (one.gain or 0.0)
        if one.gain is None or abs(one.gain) > 1e-9:
            felt.add(one.rule)
    harmful = {
        rule: f"harmful: about {gains[rule]:.3g} more items right without it"
        for rule in sorted(gains, key=lambda rule: (-gains[rule], rule))
        if gains[rule] > 1e-9
    }
    idle = {i: "idle: no score changed without it" for i in range(rules) if i not in felt}
    return harmful, idle


def prune(
    candidate: Candidate, ablations: Sequence[Ablation], *, drop_idle: bool = True
) -> list[Candidate]:
    """Return the candidate without harmful and idle rules, without harmful ones, without the worst.

    `Candidate.dropped` of each says which rules were dropped and why.
    """
    harmful, idle = dropped_rules(len(candidate.rules), ablations)
    choices = [{**harmful, **(idle if drop_idle else {})}, harmful, dict([*harmful.items()][:1])]
    children = [candidate.without_rules(reasons) for reasons in choices if reasons]
    return list({child.key: child for child in children}.values())
