"""Which learned rules do harm, and which do nothing: each is left out where verdicts speak of it.

Leaving every rule out on every item would cost as many calls as there are rules times items.
Verdicts give a reason, though, and a reason speaks of what was gone by: so a rule is left out only
on items whose verdict's rationale shares words with it (`workbench.moves.suspects`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from workbench.candidate import Candidate
from workbench.moves import Moves, suspects
from workbench.reflection import Item
from workbench.scoreboard import Scoreboard

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
