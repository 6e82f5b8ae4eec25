"""Search: mini-batch ascent over candidates, a pure function of items, seed and two callables.

`workbench.simba.optimizer` describes the algorithm. Nothing here knows MLflow or a model: `Ask`
gets verdicts and `Reflect` gets rules.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

import pandas as pd

from workbench.errors import BudgetError, CancelledError, ModelError
from workbench.formatting import counted
from workbench.scale import Scale
from workbench.simba.candidate import Candidate, Case, Item, Learned, sample
from workbench.simba.proposals import (
    Reflect,
    children,
    descriptions,
    draws,
    for_small_judges,
    requests,
    with_examples,
    with_reasons,
)
from workbench.simba.reflection import Request
from workbench.simba.selection import Ask, Scoreboard, doubtful, length_penalty
from workbench.simba.settings import FEW, MAX_PRUNED, MAX_RACING, Settings, rung_sizes

ORDER_NOTE: Final = (
    "The aligned judge writes its rationale before the rating (generate_rationale_first=True)."
)

MIN_WRONG: Final = 2  # total weight of disagreements that are asked about: one may be chance
GOOD: Final = 0.8  # accuracy from which no other order of rationale and rating is tried
MAX_REORDERED: Final = 2  # candidates of a step in vain that are tried with the rationale first


@dataclass(eq=False)
class Search:
    """A search for better instructions; the same arguments and answers give the same result.

    ``calls_left`` tells how many judge calls may still be made.
    """

    original: Candidate
    train: Sequence[Item]
    dev: Sequence[Item]
    scale: Scale
    fields: tuple[str, ...]
    ask: Ask
    reflect: Reflect
    _: KW_ONLY
    seed: int = 0
    settings: Settings = field(default_factory=Settings)
    on_step: Callable[[dict[str, Any]], None] = lambda state: None
    calls_left: Callable[[], float] = lambda: math.inf

    def __post_init__(self) -> None:
        self.best = self.original
        self.rng = random.Random(f"simba-{self.seed}")
        size, selected = self.settings.max_dev, list[Item]()
        if len(self.train) + len(self.dev) < FEW:  # so few that none is kept apart
            self.train = [*self.train, *self.dev]
            size = len(self.train)
        else:  # dev items are never shown to a model
            selected = sample(self.dev, size, self.rng)
        # A small dev set alone can't tell candidates apart, so train items are added.
        selected += sample(self.train, size - len(selected), self.rng)
        limits = self.settings.class_weight, self.settings.max_failure_share
        self.board = Scoreboard(selected, self.original, self.scale, self.ask, *limits)
        self.tried: set[str] = set()
        self.latest: list[Candidate] = []
        self.rows: list[dict[str, Any]] = []
        self.evidence: dict[str, list[str]] = {}
        self.reflections = self.cached_reflections = self.reflection_failures = 0

    def run(self) -> Learned:
        batch = sample(self.train, self.settings.batch_size, self.rng)
        self.board.judge((self.original, item) for item in [*self.board.items, *batch])
        self.board.remove_failed()
        self.record(0, self.original, scored=True)
        if math.isnan(self.board.score(self.original)[0]):
            raise ModelError(
                "The judge gave no usable verdict on the labelled items, so there is nothing to "
                "improve on. Look at workbench.assess(judge).failures."
            )
        try:
            self.prune()
            stopped = self.climb(batch)
            self.prune()
        except BudgetError:
            stopped = "the budget is spent"
        except CancelledError:
            stopped = "it was cancelled"
        return Learned(
            best=self.best,
            history=pd.DataFrame(self.rows),
            stopped=stopped,
            known=self.board.cached + self.cached_reflections,
            failures=self.board.failures,
            reflection_failures=self.reflection_failures,
            evidence={rule: self.evidence.get(rule, []) for rule in self.best.rules},
            notes=self.notes(),
        )

    def notes(self) -> tuple[str, ...]:
        notes = [ORDER_NOTE] * (self.best.rationale_first != self.original.rationale_first)
        if self.board.failures or self.reflection_failures:
            verdicts = counted(self.board.failures, "verdict")
            reflections = counted(self.reflection_failures, "reflection")
            notes.append(
                f"While learning, {verdicts} and {reflections} failed or could not be read. Lost "
                "calls count neither for nor against a candidate; unusable answers and refused "
                "requests, as of prompts too long for the model, count against it."
            )
        return tuple(notes)

    def climb(self, batch: Sequence[Item]) -> str:
        """Make steps until one of them says why the search is over."""
        stale = 0
        for step in range(1, self.settings.max_steps + 1):
            if self.board.score(self.best)[0] >= 1.0 - length_penalty(self.best) - 1e-9:
                return "nothing is left to gain on the items that candidates are selected on"
            improved = self.race(step, self.children(step, batch, stale))
            stale = 0 if improved else stale + 1
            self.on_step(
                {
                    "step": step,
                    "best_score": self.board.score(self.best)[0],
                    "calls": self.board.calls,
                    "reflections": self.reflections,
                    "failures": self.board.failures,
                    "best": self.best.text,
                }
            )
            if stale >= self.settings.patience:
                return f"the score has not risen for {stale} steps"
            # Once something was learned, the same disagreements teach little more.
            if stale and self.best.rules and len(self.train) <= self.settings.batch_size:
                return "all disagreements were looked at"
            batch = sample(self.train, self.settings.batch_size, self.rng)
        return "all steps were made"

    # -- proposals ------------------------------------------------------------------------

    def children(self, step: int, batch: Sequence[Item], stale: int) -> list[Candidate]:
        """New candidates from the best one's disagreements on train items."""
        parent = self.best
        self.board.judge((parent, item) for item in batch)
        # Train items that were judged for selection count as well as those of the batch.
        sides = self.board.cases(parent, self.train)
        top = max((case.item.weight for case in sides[0]), default=0.0)
        newest = [[case for case in side if case.item.weight >= top] for side in sides]
        if len(newest[0]) > 1:
            # Where people have changed their standards, earlier labels contradict newer ones.
            sides = newest[0], newest[1]
        wrong, right = (sample(side, self.settings.batch_size, self.rng) for side in sides)
        if len(wrong) < 2 or sum(self.board.weight(case.item) for case in wrong) < MIN_WRONG:
            return []
        # The rules of an earlier alignment may be outdated.
        asked = requests(parent, wrong, right, self.fields, rewrite=stale > 0 or step == 1)
        poor = stale > 0 or self.board.score(parent)[1] < GOOD
        # Of two ratings a rule says as much, if the judge can follow it.
        plain = poor and (stale > 0 or len(self.scale.values) > 2)
        drawn = draws(wrong, right) if plain else []
        described = descriptions(self.original, drawn, self.scale.values, self.fields)
        rules = self.ask_for_rules(asked | described, step)
        made = children(parent, {name: rules[name] for name in asked})
        limit = self.settings.max_examples
        if plain:
            found = {name: rules[name] for name in described}
            shown = for_small_judges(self.original, drawn, found, self.fields, limit)
            if step == 1 and (told := with_reasons(self.original, wrong, right)).rules:
                self.record_evidence(told.rules, [*wrong, *right])
                shown = [told.with_rationale_first(), *shown]
            made = [*made[:1], *shown, *made[1:]]
        if step > 1 and poor and not parent.rationale_first:
            # What was learned may be followed only where the rationale comes before the rating.
            # Where nothing was, the judge itself comes first: a very small one may follow no rule.
            learned = [parent] if parent.rules else [parent, *self.latest[:MAX_REORDERED]]
            made = [*(one.with_rationale_first() for one in learned), *made]
        unexplained = sum(not case.item.rationale for case in wrong) > len(wrong) / 2
        if limit and (stale or unexplained or parent.examples or not made):
            made.append(with_examples(parent, wrong, self.fields, limit, self.rng))
        self.latest = [one for one in made if one.rules and not one.rationale_first]
        return made[:MAX_RACING]

    def ask_for_rules(self, asked: Mapping[str, Request], step: int) -> dict[str, tuple[str, ...]]:
        """The rules that the reflection model states, by the names of the requests."""
        answers = self.reflect(list(asked.values()), step)
        for answer in answers:
            self.reflections += answer.paid.requests
            self.reflection_failures += answer.fault is not None
            self.cached_reflections += answer.cached
        stated = (tuple((answer.answer or {}).get("rules", ())) for answer in answers)
        rules = dict(zip(asked, stated, strict=True))
        for name, request in asked.items():
            self.record_evidence(rules[name], request.disagreements)
        return rules

    def record_evidence(self, rules: Sequence[str], cases: Sequence[Case]) -> None:
        """Keep which cases each rule was made from, those of its rating if it describes one."""
        items = [case.item for case in cases]
        for rule in Candidate("").with_rules(rules, "").rules:
            rated = [item for item in items if rule.startswith(f"{item.label}: ")]
            self.evidence.setdefault(rule, [item.trace_id for item in rated or items])

    # -- selection ------------------------------------------------------------------------

    def race(self, step: int, candidates: Sequence[Candidate]) -> bool:
        """Score candidates by successive halving; return whether one of them replaces the best."""
        best = self.best
        candidates = list({c.key: c for c in candidates if c.key not in self.tried}.values())
        if not candidates:
            return False
        # What won was not judged on the items that the one before it showed.
        self.board.judge((best, item) for item in self.board.items)
        rungs = self.rungs()
        alive = self.affordable(candidates, [len(rung) for rung in rungs])
        seen: list[Item] = []
        while alive and rungs:
            leads = len(alive) == 1 and sum(self.board.gain(alive[0], best, i) for i in seen) > 0
            # What is ahead alone is judged on all the rest at once, which takes less time.
            rung = [item for one in rungs for item in one] if leads else rungs[0]
            rungs = [] if leads else rungs[1:]
            self.board.judge((candidate, item) for candidate in alive for item in rung)
            seen += rung
            if rungs:
                alive.sort(key=lambda c: self.board.lead(c, best, seen), reverse=True)
                alive = alive[: max(1, len(alive) // 2)]
                alive = [c for c in alive if self.board.is_better(c, best, seen)]
        top = max(alive, key=lambda c: (self.board.lead(c, best), -len(c.text)), default=best)
        if self.board.is_better(top, best):
            self.best = top
        for candidate in candidates:
            self.record(step, candidate, scored=candidate in alive)
        return self.best is not best

    def affordable(self, candidates: Sequence[Candidate], rungs: Sequence[int]) -> list[Candidate]:
        """The first candidates that the calls left can score on all rungs, else a `BudgetError`."""
        left = self.calls_left()
        for n in range(len(candidates), 0, -1):
            # After each rung half of them go on, as in `race`.
            if sum(max(1, n >> i) * size for i, size in enumerate(rungs)) <= left:
                return list(candidates[:n])
        raise BudgetError("What is left of the budget is not enough to score one candidate.")

    def rungs(self) -> list[list[Item]]:
        """Split the items to select on into rungs, half of the first one wrong by the best."""
        items = self.board.hidden_from([self.best])  # on the others nothing is compared
        size, next_size, _ = rung_sizes(len(items))
        wrong = [case.item for case in self.board.cases(self.best, items)[0]]
        first = sample(wrong, math.ceil(size / 2), self.rng)
        right = [item for item in items if item not in wrong]
        first += sample(right, size - len(first), self.rng)
        rest = [item for item in items if item not in first]
        second = sample(rest, next_size, self.rng)
        third = [item for item in rest if item not in second]
        return [rung for rung in (first, second, third) if rung]

    # -- dropping rules -------------------------------------------------------------------

    def prune(self) -> None:
        """Drop the most harmful rule of the best candidate, else its idle ones, while it helps."""
        step = self.rows[-1]["step"]
        for _ in range(MAX_PRUNED):
            rules = self.best.rules
            learned = [rule for rule in rules if rule not in self.original.rules]
            if not rules or rules == tuple(learned[:1]):
                return
            harmful, idle = doubtful(self.best, self.board, self.rng)
            # Rules of an earlier alignment may be for cases that no label shows.
            dropped = harmful or {i: why for i, why in idle.items() if rules[i] in learned}
            if not dropped or not self.race(step, [self.best.without_rules(dropped)]):
                return

    # -- results --------------------------------------------------------------------------

    def record(self, step: int, candidate: Candidate, *, scored: bool) -> None:
        score, accuracy = self.board.score(candidate) if scored else (math.nan, math.nan)
        if scored:
            self.tried.add(candidate.key)
        self.rows.append(
            {
                "step": step,
                "origin": candidate.origin,
                "rules": len(candidate.rules),
                "examples": len(candidate.examples),
                "dev_score": score,
                "dev_accuracy": accuracy,
                "added_words": candidate.added_words,
                "best": candidate is self.best,
                "calls": self.board.calls,
                "dropped": "; ".join(f"{rule!r}: {why}" for rule, why in candidate.dropped.items()),
            }
        )
