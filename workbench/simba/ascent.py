"""Mini-batch ascent: propose candidates from disagreements, race them, prune the winner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from workbench.errors import BudgetError, CancelledError
from workbench.simba.candidate import Candidate
from workbench.simba.items import Item
from workbench.simba.proposals import Reflect, newest
from workbench.simba.search import CallsLeft, OnStep, Optimised, Problem, Search, stop_reason
from workbench.simba.selection import Ask, ablate, prune

MIN_WRONG: Final = 3
"""Total weight of disagreements from which rules are asked for: fewer may be chance."""

TEMPERATURE: Final = 0.05
"""Temperature, in units of the score, of the softmax that draws another parent than the best."""

FIRST_RUNG, SECOND_RUNG = 0.15, 0.3
"""Shares of the items that candidates are scored on before some drop out."""

MIN_RUNG: Final = 8

STEADY: Final = 0.75
"""Standard errors by which a candidate must be better than another to replace it."""


def optimise(
    problem: Problem,
    ask: Ask,
    reflect: Reflect,
    *,
    on_step: OnStep | None = None,
    calls_left: CallsLeft | None = None,
) -> Optimised:
    """Search for better instructions by mini-batch ascent.

    With ``calls_left``, no more candidates race than can be scored on all items. For the cost see
    `workbench.simba.forecast.most_calls`.
    """
    return Ascent(problem, ask, reflect, on_step=on_step, calls_left=calls_left).run()


def first_rung(items: int) -> int:
    """Number of items in the first rung of a race on so many items."""
    return min(items, max(MIN_RUNG, math.ceil(items * FIRST_RUNG)))


def is_steady(total: float, gains: Sequence[float]) -> bool:
    """Whether a total gain exceeds `STEADY` standard errors of the sum of ``gains``."""
    return total > 1e-9 and total >= STEADY * math.sqrt(sum(gain * gain for gain in gains))


class Ascent(Search):
    def __init__(self, problem: Problem, *args: Any, **kwargs: Any) -> None:
        self.train = list(problem.train)
        super().__init__(problem, *args, **kwargs)
        self.pool: dict[str, Candidate] = {self.original.key: self.original}

    def selection_items(self) -> list[Item]:
        size = self.settings.max_dev
        items = self.proposer.sample(self.problem.dev, size)
        # A small dev set alone can't tell candidates apart, so train items are added.
        return items + self.proposer.sample(self.train, size - len(items))

    def run(self) -> Optimised:
        batch = self.minibatch()
        self.judge_original(batch)
        best, stale, stopped = self.original, 0, "all steps were made"
        for step in range(1, self.settings.max_steps + 1):
            if self.board.is_flawless(best):
                stopped = "nothing is left to gain on the items that candidates are selected on"
                break
            before = self.score(best)
            try:
                best = self.step(step, best, batch, stale)
            except (BudgetError, CancelledError) as error:
                return self.result(self.leader(), stop_reason(error))
            leader = self.leader()
            improved = self.score(leader) > before + 1e-9
            best, stale = (leader, 0) if improved else (best, stale + 1)
            self.report(step, best, self.score(best))
            if stale >= self.settings.patience:
                stopped = f"the score has not risen for {stale} steps"
                break
            # Once something was learned, the same disagreements teach little more.
            if stale and best.rules and len(self.train) <= self.settings.batch_size:
                stopped = "all disagreements were looked at"
                break
            batch = self.minibatch()
        return self.result(best, stopped)

    def step(self, step: int, best: Candidate, batch: list[Item], stale: int) -> Candidate:
        """Propose, race and prune candidates; return the best one of before them."""
        if step == 1:
            self.revise(self.original)
            best = self.leader()
        parent = self.draw_parent(best, stale)
        self.race(self.children(parent, best, batch, step, stale), best, step)
        leader = self.leader()
        if leader.key != best.key:
            self.prune(leader, step)
        return best

    def minibatch(self) -> list[Item]:
        return self.proposer.sample(self.train, self.settings.batch_size)

    # -- proposals ------------------------------------------------------------------------

    def draw_parent(self, best: Candidate, stale: int) -> Candidate:
        """The best candidate; after a step without improvement one by softmax of the scores."""
        others = [c for c in self.pool.values() if c.key != best.key]
        if not stale or not others:
            return best
        top = self.score(best)
        weights = [math.exp((self.score(c) - top) / TEMPERATURE) for c in others]
        return self.proposer.rng.choices([best, *others], [1.0, *weights])[0]

    def children(
        self, parent: Candidate, best: Candidate, batch: list[Item], step: int, stale: int
    ) -> list[Candidate]:
        """New candidates from the parent's disagreements on train items."""
        self.board.judge((parent, item) for item in batch)
        # Train items that were judged for selection count as well as those of the batch.
        limit, max_examples = self.settings.batch_size, self.settings.max_examples
        sides = newest(*self.board.cases(parent, self.train))
        wrong, right = (self.proposer.sample_cases(side, limit) for side in sides)
        if len(wrong) < 2 or sum(self.board.weight(c.item) for c in wrong) < MIN_WRONG:
            return []
        cured = self.board.cases(self.original, [case.item for case in right])[0]
        children = self.proposer.by_reflection(parent, wrong, right, cured, step)
        unexplained = sum(not case.item.rationale for case in wrong) > len(wrong) / 2
        if max_examples and (stale or unexplained or not children):
            children.append(self.proposer.by_examples(parent, wrong, max_examples))
        if parent.key != best.key and children:
            children.append(best.with_rules(children[0].rules, "merge"))
        new = {c.key: c for c in children if c.key not in self.pool}
        return list(new.values())

    def prune(self, candidate: Candidate, step: int) -> None:
        """Replace a winner by one without its harmful and idle rules, if that is better."""
        if len(candidate.rules) < 2:
            return
        ablations = ablate(candidate, self.board, self.proposer)
        for child in prune(candidate, ablations):
            if child.key in self.pool:
                continue
            self.race([child], candidate, step)
            if child.key in self.pool and self.is_better(child, candidate):
                break
            # A rule that people's rationales ask for stays unless dropping it clearly helps.
            self.pool.pop(child.key, None)

    def revise(self, candidate: Candidate) -> None:
        """Drop rules of an aligned judge that the newest labels contradict.

        Rules that they say nothing about stay. Where people have changed their standards, the
        earlier labels that only an outdated rule gets right are outdated as well and removed.
        """
        if not candidate.rules:
            return
        limit, items = self.settings.batch_size, self.board.items
        recent = [item for item in items if item.weight >= max(i.weight for i in items)]
        ids = {item.trace_id for item in recent}
        ablations = ablate(candidate, self.board, self.proposer, limit, limit)
        ablations = [one for one in ablations if one.item.trace_id in ids]
        for child in prune(candidate, ablations, drop_idle=False):
            self.affordable([child], [len(items)])
            self.board.judge((child, item) for item in items)
            gains = [self.board.gain(child, candidate, item) for item in recent]
            if is_steady(sum(gains), gains):
                self.remove_outdated(child, candidate, ids)
                self.enter([child], 0, self.score(candidate))
                return

    def remove_outdated(self, revised: Candidate, before: Candidate, recent: set[str]) -> None:
        """Remove earlier labels that ``before`` gets right and ``revised`` does not."""
        outdated = {
            item.trace_id
            for item in self.board.items
            if item.trace_id not in recent and self.board.gain(revised, before, item) < 0
        }
        self.board.items = [i for i in self.board.items if i.trace_id not in outdated]
        self.train = [i for i in self.train if i.trace_id not in outdated]

    # -- selection ------------------------------------------------------------------------

    def score(self, candidate: Candidate) -> float:
        return self.board.score(candidate)[0]

    def leader(self) -> Candidate:
        """The candidate with the highest score; of equals the shortest, then the oldest."""
        return max(self.pool.values(), key=lambda c: (self.score(c), -len(c.text)))

    def is_better(self, one: Candidate, other: Candidate) -> bool:
        """Whether one scores higher than the other by `STEADY` standard errors."""
        gains = [self.board.gain(one, other, item) for item in self.board.items]
        total = sum(map(self.board.weight, self.board.items))
        return is_steady((self.score(one) - self.score(other)) * total, gains)

    def race(self, candidates: list[Candidate], best: Candidate, step: int) -> None:
        """Score candidates by successive halving.

        After each rung the worse half drops out, and those that can't beat the best any more.

        Raises
        ------
        BudgetError
            If not even one candidate can be scored with the calls left.
        """
        rungs = self.rungs(best)
        alive, seen = self.affordable(candidates, list(map(len, rungs))), list[Item]()
        for rung in rungs:
            self.board.judge((candidate, item) for candidate in alive for item in rung)
            seen += rung
            if len(seen) < len(self.board.items):
                alive.sort(key=lambda c: self.board.score(c, seen)[0], reverse=True)
                alive = alive[: max(1, len(alive) // 2)]
                top = self.score(best)
                alive = [c for c in alive if self.board.upper_bound(c, seen) > top + 1e-9]
        self.enter(alive, step, self.score(best))
        for candidate in candidates:
            if candidate not in alive:
                self.record(step, candidate, math.nan, math.nan, best=False)

    def affordable(self, candidates: list[Candidate], rungs: Sequence[int]) -> list[Candidate]:
        """As many of the candidates as can be scored on all rungs with the calls left.

        Raises
        ------
        BudgetError
            If that is none.
        """
        left = self.calls_left()
        for n in range(len(candidates), 0, -1):
            # After each rung half of them go on, as in `race`.
            if sum(max(1, n >> i) * size for i, size in enumerate(rungs)) <= left:
                return candidates[:n]
        if candidates:
            raise BudgetError("What is left of the budget is not enough to score one candidate.")
        return []

    def rungs(self, best: Candidate) -> list[list[Item]]:
        """Split the items to select on into rungs, half of the first one wrong by the best."""
        items, sample = self.board.items, self.proposer.sample
        missed = {case.item.trace_id for case in self.board.cases(best, items)[0]}
        size = first_rung(len(items))
        first = sample([i for i in items if i.trace_id in missed], math.ceil(size / 2))
        first += sample([i for i in items if i.trace_id not in missed], size - len(first))
        taken = {item.trace_id for item in first}
        rest = [item for item in items if item.trace_id not in taken]
        second = sample(rest, math.ceil(len(items) * SECOND_RUNG))
        taken |= {item.trace_id for item in second}
        third = [item for item in items if item.trace_id not in taken]
        return [rung for rung in (first, second, third) if rung]

    def enter(self, candidates: Sequence[Candidate], step: int, to_beat: float) -> None:
        """Add scored candidates to the pool and the history."""
        for candidate in candidates:
            score, accuracy = self.board.score(candidate)
            if not math.isnan(score):
                self.pool[candidate.key] = candidate
            best = step == 0 or score > to_beat + 1e-9
            self.record(step, candidate, score, accuracy, best=best)
