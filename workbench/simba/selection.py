"""What candidates are worth: verdicts asked for once, credit, weights and the price of length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import ModelError
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale, is_abstention
from workbench.simba.candidate import Candidate
from workbench.simba.proposals import Moves, suspects
from workbench.simba.reflection import Case, Item

Ask = Callable[[Sequence[tuple[Candidate, Item]]], list[Verdict]]
"""Verdicts of candidates on items, in order."""


TOLERANCE = 0.1
"""Distance up to which a verdict on a continuous scale counts as agreeing with its label."""


MOST_FAILED = 0.2
"""Share of failed calls above which a candidate's score means nothing."""


PRICE_OF_100_WORDS = 0.01
"""Credit that 100 words more in the instructions must earn."""


def credit(scale: Scale, verdict: Any, label: Any) -> float:
    """What a verdict earns, in [0, 1].

    1 for the label itself; a near miss up to 1/2 on scales of steps, and 1 less its distance on
    continuous ones, where hardly any verdict equals its label.
    """
    if verdict == label:
        return 1.0
    if not scale.ordered:
        return 0.0
    nearness = 1.0 - scale.distance(verdict, label)
    return nearness if _is_continuous(scale) else nearness / 2


def agrees(scale: Scale, verdict: Any, label: Any) -> bool:
    """Whether a verdict needs no explanation: equal, or near enough on a continuous scale."""
    return bool(
        verdict == label or (_is_continuous(scale) and scale.distance(verdict, label) <= TOLERANCE)
    )


def _is_continuous(scale: Scale) -> bool:
    return scale.kind == "numeric" and not scale.integer


class Scoreboard:
    """The verdicts of all candidates, and their scores on the items of the board.

    Parameters
    ----------
    items
        What candidates are selected on.
    original
        Where a candidate abstains on an item on which the original had an opinion, that earns
        nothing; an item that a candidate shows as a worked example counts as the original
        judged it, since having been told the answer is no merit.
    class_weight
        ``"balanced"`` lets every label count the same in all.
    """

    def __init__(
        self,
        items: Iterable[Item],
        original: Candidate,
        scale: Scale,
        ask: Ask,
        *,
        class_weight: Literal["balanced"] | None = None,
        max_failure_share: float = 0.05,
    ) -> None:
        self.items, self.original, self.scale, self.ask = list(items), original, scale, ask
        self.max_failure_share = max_failure_share
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.asked = self.calls = self.failures = self.known = 0
        self.tokens: list[int] = []
        self.costs: list[float] = []
        counts = Counter(item.label for item in self.items)
        self._balance = (
            {label: len(self.items) / (len(counts) * n) for label, n in counts.items()}
            if class_weight == "balanced"
            else {}
        )

    def judge(self, wanted: Iterable[tuple[Candidate, Item]]) -> None:
        """Get the verdicts that are not known yet, all in parallel.

        Raises
        ------
        ModelError
            When more calls failed than are allowed.
        """
        missing = {
            (candidate.key, item.trace_id): (candidate, item)
            for candidate, item in wanted
            if (candidate.key, item.trace_id) not in self.verdicts
            and not self._is_shown(candidate, item)
        }
        answers = self.ask(list(missing.values())) if missing else []
        for key, verdict in zip(missing, answers, strict=True):
            self.verdicts[key] = verdict
            self.asked += 1
            self.calls += verdict.calls
            self.known += verdict.cached
            self.failures += verdict.error is not None
            self.tokens += [n for n in (verdict.input_tokens, verdict.output_tokens) if n]
            self.costs += [verdict.cost] if verdict.cost else []
        if self.failures > self.max_failure_share * max(20, self.asked):
            failed = next(v for v in self.verdicts.values() if v.error is not None)
            raise ModelError(
                f"{self.failures} of {self.asked} judge calls failed, more than the "
                f"{self.max_failure_share:.0%} allowed. One of them: {failed.error}. "
                "Mend the cause and run again: answers that were paid for are kept. Or allow more "
                "with SIMBA(max_failure_share=...)."
            )

    def leave_out_failed(self, candidate: Candidate) -> None:
        """Select no longer on items on which a call of this candidate failed.

        Where one judge gives no answer there is nothing to compare another with, and asking
        others of them would count one bad item as many failures.
        """
        failed = {
            trace_id
            for (key, trace_id), verdict in self.verdicts.items()
            if key == candidate.key and verdict.error is not None
        }
        left = [item for item in self.items if item.trace_id not in failed]
        self.items = left or self.items

    def verdict(self, candidate: Candidate, item: Item) -> Verdict | None:
        """What counts as the candidate's verdict; None where there is none yet."""
        judged_by = self.original if self._is_shown(candidate, item) else candidate
        return self.verdicts.get((judged_by.key, item.trace_id))

    def opinion(self, candidate: Candidate, item: Item) -> Verdict | None:
        """Its verdict where it is neither missing nor failed nor an abstention."""
        verdict = self.verdict(candidate, item)
        if verdict is None or verdict.error is not None:
            return None
        if is_abstention(verdict.value, self.scale):
            return None
        return verdict

    def cases(self, candidate: Candidate, items: Iterable[Item]) -> tuple[list[Case], list[Case]]:
        """(wrong, right): its opinions that differ from the label, and those that agree."""
        wrong: list[Case] = []
        right: list[Case] = []
        for item in items:
            verdict = self.opinion(candidate, item)
            if verdict is not None:
                near = agrees(self.scale, verdict.value, item.label)
                (right if near else wrong).append(Case(item, verdict))
        return wrong, right

    def weight(self, item: Item) -> float:
        return item.weight * self._balance.get(item.label, 1.0)

    def earned(self, candidate: Candidate, item: Item) -> float | None:
        """Credit on one item, in [0, 1]; None where the item does not count."""
        verdict = self.verdict(candidate, item)
        if verdict is None or verdict.error is not None:
            return None
        if is_abstention(verdict.value, self.scale):
            # Abstaining is neither right nor wrong, but it must not pay.
            return 0.0 if self.opinion(self.original, item) else None
        return credit(self.scale, verdict.value, item.label)

    def gain(self, child: Candidate, parent: Candidate, item: Item) -> float:
        """Weighted credit that the child earns on the item beyond its parent.

        0 where a call of either failed, which says nothing about the other.
        """
        mine, before = (self.earned(one, item) for one in (child, parent))
        return 0.0 if mine is None or before is None else self.weight(item) * (mine - before)

    def score(
        self, candidate: Candidate, items: Sequence[Item] | None = None
    ) -> tuple[float, float]:
        """(mean credit less the price of length, accuracy); nan where too little is usable."""
        items = self.items if items is None else items
        credits = [(item, self.earned(candidate, item)) for item in items]
        earned = [(item, got) for item, got in credits if got is not None]
        opinions = [
            (verdict.value == item.label)
            for item, _ in earned
            if (verdict := self.opinion(candidate, item)) is not None
        ]
        verdicts = [self.verdict(candidate, item) for item in items]
        failed = sum(v is not None and v.error is not None for v in verdicts)
        if not opinions or failed > MOST_FAILED * len(items):
            return math.nan, math.nan
        total = sum(self.weight(item) for item, _ in earned)
        mean = sum(self.weight(item) * got for item, got in earned) / total
        return mean - self.price(candidate), sum(opinions) / len(opinions)

    def at_most(self, candidate: Candidate, seen: Sequence[Item]) -> float:
        """The score if everything but ``seen`` came out right."""
        here, _ = self.score(candidate, seen)
        if math.isnan(here):
            return -math.inf
        total = sum(map(self.weight, self.items))
        known = sum(map(self.weight, seen))
        return ((here + self.price(candidate)) * known + total - known) / total - self.price(
            candidate
        )

    def price(self, candidate: Candidate) -> float:
        return PRICE_OF_100_WORDS * max(0, candidate.added_words) / 100

    def is_flawless(self, candidate: Candidate) -> bool:
        return self.score(candidate)[0] >= 1.0 - self.price(candidate) - 1e-9

    @staticmethod
    def _is_shown(candidate: Candidate, item: Item) -> bool:
        return any(example.trace_id == item.trace_id for example in candidate.examples)


MOST_PRUNED_ON = 6
"""Wrong items on which rules of a winner are left out; of right ones twice as many."""


@dataclass(frozen=True)
class Trial:
    """A rule left out on an item: the credit that was gained by it, weighted.

    ``stands_for`` is how many items of its side (wrong or right) the item was drawn to speak for;
    ``told`` is False where the call failed, so that nobody knows.
    """

    rule: int
    item: Item
    gain: float
    stands_for: float
    told: bool = True


def left_out(
    candidate: Candidate,
    board: Scoreboard,
    moves: Moves,
    most_wrong: int = MOST_PRUNED_ON,
    most_right: int = 2 * MOST_PRUNED_ON,
) -> list[Trial]:
    """Leave each rule out on some of what the candidate gets wrong, and of what it gets right.

    At most `workbench.moves.SUSPECTS` judge calls for each of these items.
    """
    without = [candidate.without_rules([i]) for i in range(len(candidate.rules))]
    wanted: list[tuple[int, Item, float]] = []
    sides = board.cases(candidate, board.items)
    for side, most in zip(sides, (most_wrong, most_right), strict=True):
        said = {case.item.trace_id: case.verdict.rationale for case in side}
        some = moves.stratified([case.item for case in side], most)
        wanted += [
            (rule, item, len(side) / len(some))
            for turn, item in enumerate(some)
            for rule in suspects(candidate.rules, said[item.trace_id], turn)
        ]
    board.judge((without[rule], item) for rule, item, _ in wanted)
    return [
        Trial(
            rule,
            item,
            board.gain(without[rule], candidate, item),
            stands_for,
            board.earned(without[rule], item) is not None,
        )
        for rule, item, stands_for in wanted
    ]


def harmful(trials: Sequence[Trial]) -> tuple[int, ...]:
    """The rules without which more is gained than lost, the worst first."""
    gains: dict[int, float] = {}
    for trial in trials:
        gains[trial.rule] = gains.get(trial.rule, 0.0) + trial.gain * trial.stands_for
    worst = sorted(gains, key=lambda rule: (-gains[rule], rule))
    return tuple(rule for rule in worst if gains[rule] > 1e-9)


def idle(rules: int, trials: Sequence[Trial]) -> tuple[int, ...]:
    """Those of so many rules without which nothing that was tried came out otherwise."""
    felt = {trial.rule for trial in trials if abs(trial.gain) > 1e-9 or not trial.told}
    return tuple(rule for rule in range(rules) if rule not in felt)


def prunings(
    candidate: Candidate, trials: Sequence[Trial], *, drop_idle: bool = True
) -> list[Candidate]:
    """The candidate without what does harm or nothing, only without harm, without the worst."""
    bad = harmful(trials)
    nothing = idle(len(candidate.rules), trials) if drop_idle else ()
    choices: list[Collection[int]] = [(*bad, *nothing), bad, bad[:1]]
    made = {child.key: child for c in choices if c for child in [candidate.without_rules(c)]}
    return list(made.values())
