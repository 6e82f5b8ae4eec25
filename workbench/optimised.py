"""What learning is told and what it gives, by the loop and by cross-validation alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from workbench.candidate import Candidate
from workbench.errors import ArgumentError, one_of
from workbench.moves import Moves
from workbench.scoreboard import Scoreboard


@dataclass(frozen=True)
class Settings:
    """How learning goes about its work. Every count is at least 1, of ``max_examples`` 0."""

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


@dataclass
class Optimised:
    """What learning found.

    ``best`` is the winner (the original where nothing was better), ``history`` has a row for
    each candidate that was scored: ``step``, ``origin``, ``rules``, ``examples``, ``dev_score``
    (nan where it was dropped early), ``dev_accuracy``, ``added_words``, ``best`` (whether it
    beat all before its step). ``stopped`` says in words why it ended and
    ``known`` counts the answers that were in the cache.
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


def summed_up(
    board: Scoreboard,
    moves: Moves,
    original: Candidate,
    best: Candidate,
    rows: list[dict[str, Any]],
    stopped: str,
) -> Optimised:
    """What a run found and spent."""
    tokens, costs = moves.tokens + board.tokens, moves.costs + board.costs
    return Optimised(
        best=best,
        original_score=board.score(original)[0],
        best_score=board.score(best)[0],
        history=pd.DataFrame(rows),
        stopped=stopped,
        judge_calls=board.calls,
        reflection_calls=moves.calls,
        known=board.known + moves.known,
        tokens=sum(tokens) if tokens else None,
        cost=sum(costs) if costs else None,
        failures=board.failures,
        reflection_failures=moves.failures,
        evidence={rule: moves.evidence.get(rule, []) for rule in best.rules},
    )


def state_after(
    step: int, board: Scoreboard, moves: Moves, best: Candidate, score: float
) -> dict[str, Any]:
    """What is told of a run after each step."""
    return {
        "step": step,
        "best_score": score,
        "calls": board.calls,
        "reflections": moves.calls,
        "failures": board.failures,
        "best": best.text,
    }


def row(
    step: int, candidate: Candidate, score: float, accuracy: float, board: Scoreboard, *, best: bool
) -> dict[str, Any]:
    """A row of the history; ``best``: whether it beat all before its step."""
    return {
        "step": step,
        "origin": candidate.origin,
        "rules": len(candidate.rules),
        "examples": len(candidate.examples),
        "dev_score": score,
        "dev_accuracy": accuracy,
        "added_words": candidate.added_words,
        "best": best,
        "calls": board.calls,
    }
