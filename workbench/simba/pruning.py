"""Pruning: which rules of a candidate do harm or nothing."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Final

from workbench.simba.candidate import Candidate, rules_about
from workbench.simba.items import Item, sample
from workbench.simba.selection import Scoreboard

MAX_TRIED: Final = 3  # items that are wrong, and that are right, on which one rule is left out


def doubtful(
    best: Candidate, board: Scoreboard, rng: random.Random
) -> tuple[dict[int, str], dict[int, str]]:
    """Leave out each rule on some items; return the most harmful one and the idle ones.

    Both say why. A rule is left out where the rationales of judge and people are about it; if there
    is no such item, where they are about no rule.
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
