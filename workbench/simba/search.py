"""Search: mini-batch ascent over candidates, a pure function of items, seed and two callables.

`workbench.simba.optimizer` describes the algorithm. Nothing here knows MLflow or a model: `Ask`
gets verdicts and `Reflect` gets rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pandas as pd

from workbench.errors import ArgumentError, BudgetError, CancelledError, ModelError, one_of
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.items import Item
from workbench.simba.proposals import Proposer, Reflect, newest
from workbench.simba.selection import Ask, Scoreboard, ablate, prune, race, rungs

FEW: Final = 30
"""Labels below which candidates are selected by cross-validation."""

FOLDS: Final = 5

MIN_WRONG: Final = 3
"""Total weight of disagreements from which rules are asked for: fewer may be chance."""

TEMPERATURE: Final = 0.05
"""Temperature, in units of the score, of the softmax that draws another parent than the best."""

STEADY: Final = 0.75
"""Standard errors by which a candidate must be better than another to replace it."""


@dataclass(frozen=True)
class Settings:
    """Settings of the search; see `workbench.SIMBA`."""

    max_steps: int = 4
    batch_size: int = 40
    patience: int = 2
    max_examples: int = 4
    max_dev: int = 80
    class_weight: Literal["balanced"] | None = None
    max_failure_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "patience", "max_dev"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}={getattr(self, name)} must be at least 1.")
        one_of("class_weight", self.class_weight, [None, "balanced"])


@dataclass(frozen=True)
class Problem:
    """What is searched for: better instructions than the original's.

    ``train`` and ``dev`` are disjoint. With `FEW` labels or more, nothing in ``dev`` is shown to
    the reflection model or in a worked example. ``fields`` are those of inputs, outputs and
    expectations that the judge sees.
    """

    original: Candidate
    train: Sequence[Item]
    dev: Sequence[Item]
    scale: Scale
    fields: tuple[str, ...]
    seed: int = 0
    settings: Settings = field(default_factory=Settings)


@dataclass
class Optimised:
    """Result of a search.

    ``best`` is the original if nothing scored higher; ``best.dropped`` lists the rules that were
    dropped, with the reasons. ``history`` has a row for each candidate: its ``dev_score`` is nan
    if it dropped out early, ``best`` says whether it beat all before its step, ``calls`` counts
    judge calls until then. ``stopped`` says why the search ended, ``known`` counts answers from
    the cache and ``evidence`` maps each rule to the trace ids that it was made from.
    """

    best: Candidate
    original_score: float
    best_score: float
    history: pd.DataFrame
    stopped: str
    judge_calls: int = 0
    reflection_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    failures: int = 0
    reflection_failures: int = 0
    evidence: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def optimise(
    problem: Problem,
    ask: Ask,
    reflect: Reflect,
    *,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    calls_left: Callable[[], float] | None = None,
) -> Optimised:
    """Search for better instructions.

    Parameters
    ----------
    problem
        The same problem and answers give the same result.
    ask, reflect
        Ask the judge for verdicts and the reflection model for rules.
    on_step
        Called after each step with ``step``, ``best_score``, ``calls``, ``reflections``,
        ``failures`` and ``best`` (text).
    calls_left
        Returns how many judge calls may still be made, so that no more candidates race than can be
        scored on all items.
    """
    return Search(problem, ask, reflect, on_step, calls_left).run()


def is_steady(total: float, gains: Sequence[float]) -> bool:
    """Whether a total gain exceeds `STEADY` standard errors of the sum of ``gains``."""
    return total > 1e-9 and total >= STEADY * math.sqrt(sum(gain * gain for gain in gains))


class Search:
    """The state of one run."""

    def __init__(
        self,
        problem: Problem,
        ask: Ask,
        reflect: Reflect,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        calls_left: Callable[[], float] | None = None,
    ) -> None:
        self.problem, self.on_step = problem, on_step
        self.original, self.settings = problem.original, problem.settings
        self.calls_left = calls_left or (lambda: math.inf)
        self.proposer = Proposer(reflect, problem.scale, problem.fields, seed=problem.seed)
        self.train = list(problem.train)
        self.board = Scoreboard(
            self.selection_items(),
            self.original,
            problem.scale,
            ask,
            class_weight=self.settings.class_weight,
            max_failure_share=self.settings.max_failure_share,
        )
        self.pool: dict[str, Candidate] = {}
        self.rows: list[dict[str, Any]] = []
        self.notes: tuple[str, ...] = ()

    def selection_items(self) -> list[Item]:
        """The items that candidates are selected on."""
        size = self.settings.max_dev
        items = self.proposer.sample(self.problem.dev, size)
        # A small dev set alone can't tell candidates apart, so train items are added.
        return items + self.proposer.sample(self.train, size - len(items))

    def minibatch(self) -> list[Item]:
        return self.proposer.sample(self.train, self.settings.batch_size)

    def run(self) -> Optimised:
        batch = self.minibatch()
        self.board.judge((self.original, item) for item in [*self.board.items, *batch])
        self.board.remove_failed()
        self.enter([self.original], 0, math.nan)
        if not self.pool:
            raise ModelError(
                "The judge gave no usable verdict on the labelled items, so there is nothing to "
                "improve on. Look at workbench.assess(judge).failures."
            )
        best, stale, stopped = self.original, 0, "all steps were made"
        for step in range(1, self.settings.max_steps + 1):
            if self.board.is_flawless(best):
                stopped = "nothing is left to gain on the items that candidates are selected on"
                break
            before = self.score(best)
            try:
                best = self.step(step, best, batch, stale)
            except BudgetError:
                return self.result(self.leader(), "the budget is spent")
            except CancelledError:
                return self.result(self.leader(), "it was cancelled")
            leader = self.leader()
            improved = self.score(leader) > before + 1e-9
            best, stale = (leader, 0) if improved else (best, stale + 1)
            self.report(step, best)
            if reason := self.stop_reason(best, stale):
                stopped = reason
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
            self.check_winner(leader, step)
        return best

    def stop_reason(self, best: Candidate, stale: int) -> str:
        if stale >= self.settings.patience:
            return f"the score has not risen for {stale} steps"
        # Once something was learned, the same disagreements teach little more.
        if stale and best.rules and len(self.train) <= self.settings.batch_size:
            return "all disagreements were looked at"
        return ""

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
        sides = newest(*self.board.cases(parent, self.train))
        wrong, right = (self.proposer.sample(side, self.settings.batch_size) for side in sides)
        if len(wrong) < 2 or sum(self.board.weight(c.item) for c in wrong) < MIN_WRONG:
            return []
        cured = self.board.cases(self.original, [case.item for case in right])[0]
        asked = self.proposer.requests(parent, wrong, right, cured, criteria=step == 1)
        (answers,) = self.proposer.ask([asked], step)
        made = self.proposer.children(parent, asked, answers).values()
        children = [c for c in made if c.rules and c.rules != parent.rules]
        unexplained = sum(not case.item.rationale for case in wrong) > len(wrong) / 2
        max_examples = self.settings.max_examples
        if max_examples and (stale or unexplained or not children):
            children.append(self.proposer.with_examples(parent, wrong, max_examples))
        if parent.key != best.key and children:
            children.append(best.with_rules(children[0].rules, "merge"))
        return list({c.key: c for c in children if c.key not in self.pool}.values())

    def check_winner(self, winner: Candidate, step: int) -> None:
        """Replace it by one without its harmful and idle rules, if that is better."""
        if len(winner.rules) < 2:
            return
        for child in prune(winner, ablate(winner, self.board, self.proposer)):
            if child.key in self.pool:
                continue
            self.race([child], winner, step)
            if child.key in self.pool and self.is_better(child, winner):
                break
            # A rule that people's rationales ask for stays unless dropping it clearly helps.
            self.pool.pop(child.key, None)

    def revise(self, aligned: Candidate) -> None:
        """Drop rules of an aligned judge that the newest labels contradict.

        Rules that they say nothing about stay. Where people have changed their standards, the
        earlier labels that only an outdated rule gets right are outdated as well and removed.
        """
        if not aligned.rules:
            return
        limit, items = self.settings.batch_size, self.board.items
        recent = [item for item in items if item.weight >= max(i.weight for i in items)]
        ids = {item.trace_id for item in recent}
        ablations = ablate(aligned, self.board, self.proposer, limit, limit)
        ablations = [one for one in ablations if one.item.trace_id in ids]
        for child in prune(aligned, ablations, drop_idle=False):
            self.affordable([child], [len(items)])
            self.board.judge((child, item) for item in items)
            gains = [self.board.gain(child, aligned, item) for item in recent]
            if is_steady(sum(gains), gains):
                outdated = {
                    item.trace_id
                    for item in items
                    if item.trace_id not in ids and self.board.gain(child, aligned, item) < 0
                }
                self.board.items = [i for i in items if i.trace_id not in outdated]
                self.train = [i for i in self.train if i.trace_id not in outdated]
                self.enter([child], 0, self.score(aligned))
                return

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
        """Score candidates and enter those that are not beaten before the last rung."""
        rungs = self.rungs(best)
        runners = self.affordable(candidates, list(map(len, rungs)))
        alive = race(self.board, runners, rungs, self.score(best))
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
        return rungs(self.board, best, self.proposer)

    # -- results --------------------------------------------------------------------------

    def enter(self, candidates: Sequence[Candidate], step: int, to_beat: float) -> None:
        """Add scored candidates to the pool and the history."""
        for candidate in candidates:
            score, accuracy = self.board.score(candidate)
            if not math.isnan(score):
                self.pool[candidate.key] = candidate
            best = step == 0 or score > to_beat + 1e-9
            self.record(step, candidate, score, accuracy, best=best)

    def record(
        self, step: int, candidate: Candidate, score: float, accuracy: float, *, best: bool
    ) -> None:
        """Add a row to the history."""
        self.rows.append(
            {
                "step": step,
                "origin": candidate.origin,
                "rules": len(candidate.rules),
                "examples": len(candidate.examples),
                "dev_score": score,
                "dev_accuracy": accuracy,
                "added_words": candidate.added_words,
                "best": best,
                "calls": self.board.calls,
                "dropped": "; ".join(map(str, candidate.dropped)),
            }
        )

    def report(self, step: int, best: Candidate) -> None:
        if self.on_step is not None:
            self.on_step(
                {
                    "step": step,
                    "best_score": self.score(best),
                    "calls": self.board.calls,
                    "reflections": self.proposer.calls,
                    "failures": self.board.failures,
                    "best": best.text,
                }
            )

    def result(self, best: Candidate, stopped: str) -> Optimised:
        return Optimised(
            best=best,
            original_score=self.score(self.original),
            best_score=self.score(best),
            history=pd.DataFrame(self.rows),
            stopped=stopped,
            judge_calls=self.board.calls,
            reflection_calls=self.proposer.calls,
            failures=self.board.failures,
            reflection_failures=self.proposer.failures,
            evidence={rule: self.proposer.evidence.get(rule, []) for rule in best.rules},
            notes=self.notes,
        )
