"""What a search for better instructions takes and returns, and what all searches share.

A search is a pure function of a problem (items, settings and seed) and two callables: `Ask` gets
verdicts and `Reflect` gets rules. There are two, `workbench.simba.ascent` and, for few labels,
`workbench.simba.crossfit`; `workbench.simba.optimizer` describes both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from workbench.errors import ArgumentError, BudgetError, CancelledError, ModelError, one_of
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.items import Item
from workbench.simba.proposals import Proposer, Reflect
from workbench.simba.selection import Ask, Scoreboard


@dataclass(frozen=True)
class Settings:
    """Settings of the search; see `workbench.SIMBA`.

    Every count is at least 1, ``max_examples`` at least 0.
    """

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

    ``train`` and ``dev`` are disjoint. Nothing in ``dev`` is shown to the reflection model or in a
    worked example. ``fields`` are those of inputs, outputs and expectations that the judge sees.
    The same items, seed (any int) and answers give the same result.
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

    ``best`` is the original if nothing scored higher. ``best.dropped`` lists the rules that were
    dropped on the way to it, with the reasons.

    ``history`` has a row for each candidate that was scored: ``step``, ``origin``, ``rules``,
    ``examples``, ``dev_score`` (nan if it dropped out early), ``dev_accuracy``, ``added_words``,
    ``best`` (whether it beat all before its step), ``calls`` until then and ``dropped`` (the rules
    that were dropped, with the reasons).

    ``stopped`` says why the search ended, ``known`` counts answers from the cache and ``evidence``
    maps each rule to the trace ids that it was made from.
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


OnStep = Callable[[dict[str, Any]], None]
"""Called after each step with step, best_score, calls, reflections, failures and best (text)."""

CallsLeft = Callable[[], float]
"""Returns how many judge calls the budget still allows."""


class Search:
    """What every search has: proposer, scoreboard and history."""

    def __init__(
        self,
        problem: Problem,
        ask: Ask,
        reflect: Reflect,
        *,
        on_step: OnStep | None = None,
        calls_left: CallsLeft | None = None,
    ) -> None:
        self.problem, self.on_step = problem, on_step
        self.original, self.settings = problem.original, problem.settings
        self.calls_left = calls_left or (lambda: math.inf)
        self.proposer = Proposer(reflect, problem.scale, problem.fields, seed=problem.seed)
        self.board = Scoreboard(
            self.selection_items(),
            self.original,
            problem.scale,
            ask,
            class_weight=self.settings.class_weight,
            max_failure_share=self.settings.max_failure_share,
        )
        self.rows: list[dict[str, Any]] = []

    def selection_items(self) -> list[Item]:
        """The items that candidates are selected on."""
        return [*self.problem.train, *self.problem.dev]

    def judge_original(self, more: Sequence[Item] = ()) -> float:
        """Score the original, and judge more items with it.

        Raises
        ------
        ModelError
            If it has no score.
        """
        self.board.judge((self.original, item) for item in [*self.board.items, *more])
        self.board.remove_failed(self.original)
        score, accuracy = self.board.score(self.original)
        if math.isnan(score):
            raise ModelError(
                "The judge gave no usable verdict on the labelled items, so there is nothing to "
                "improve on. Look at workbench.assess(judge).failures."
            )
        self.record(0, self.original, score, accuracy, best=True)
        return score

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

    def report(self, step: int, best: Candidate, score: float) -> None:
        if self.on_step is not None:
            self.on_step(
                {
                    "step": step,
                    "best_score": score,
                    "calls": self.board.calls,
                    "reflections": self.proposer.calls,
                    "failures": self.board.failures,
                    "best": best.text,
                }
            )

    def result(self, best: Candidate, stopped: str) -> Optimised:
        board, proposer = self.board, self.proposer
        tokens, costs = proposer.tokens + board.tokens, proposer.costs + board.costs
        return Optimised(
            best=best,
            original_score=board.score(self.original)[0],
            best_score=board.score(best)[0],
            history=pd.DataFrame(self.rows),
            stopped=stopped,
            judge_calls=board.calls,
            reflection_calls=proposer.calls,
            known=board.cached + proposer.cached,
            tokens=sum(tokens) if tokens else None,
            cost=sum(costs) if costs else None,
            failures=board.failures,
            reflection_failures=proposer.failures,
            evidence={rule: proposer.evidence.get(rule, []) for rule in best.rules},
        )


def stop_reason(error: BudgetError | CancelledError) -> str:
    return "the budget is spent" if isinstance(error, BudgetError) else "it was cancelled"
