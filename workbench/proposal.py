"""What another optimizer proposes, noted as one answer while a run is recorded, and replayed.

Such an optimizer asks its models in whatever order its threads take, so that the answers alone
would not lead it to the same judge again. Noted is what it came to, under judge, optimizer with
its settings, and labelled items: instructions, or the error that it ended with, and what it spent.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench import foreign
from workbench.budget import Budget
from workbench.cache import question_key
from workbench.credentials import without_secret_params
from workbench.errors import (
    BudgetError,
    CancelledError,
    CredentialError,
    ModelError,
    ReplayError,
    UnreachableModelError,
)
from workbench.judge import fingerprint, scrub, with_instructions
from workbench.metering import Meter
from workbench.pairing import Pairs, Split
from workbench.tape import Line, Player, Recorder, active
from workbench.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

ERRORS: Final = {
    kind.__name__: kind for kind in (BudgetError, CredentialError, UnreachableModelError)
}
"""Errors that are replayed as what they were; any other is a `ModelError`."""

COUNTS: Final = ("calls", "reflection_calls", "embedding_calls", "known")
"""What a `Proposal` counts."""


@dataclass(frozen=True)
class Proposal:
    """The judge that an optimizer proposes, and the requests that it took.

    ``known`` answers more were known from before. ``tokens`` and ``cost`` (US dollars) are None
    where they are not known.
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, judge: Judge, meter: Meter, who: str) -> Proposal:
        """The proposal, and what the meter counted."""
        return cls(
            judge,
            calls=meter.judge.requests,
            reflection_calls=meter.reflection.requests,
            embedding_calls=meter.embedding.requests,
            known=meter.judge.known + meter.reflection.known,
            tokens=meter.tokens,
            cost=meter.cost,
            notes=meter.notes(who),
        )


def propose(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    *,
    budget: Budget,
    max_failure_share: float = 0.05,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Proposal:
    """What the optimizer proposes (see `foreign.learn`), from the file where one is replayed.

    Raises
    ------
    ReplayError
        While a file of answers is replayed that does not hold it.
    """
    noted = _Noted(judge, optimizer, split, by_id)
    if isinstance(noted.tape, Player):
        return noted.replayed(noted.tape, budget)
    before = _spent(budget)
    try:
        found, meter = foreign.learn(
            judge,
            optimizer,
            split,
            budget=budget,
            max_failure_share=max_failure_share,
            progress=progress,
            stop=stop,
        )
    except CancelledError:
        raise
    except Exception as error:
        noted.keep(
            {"error": scrub(str(error), judge), "kind": type(error).__name__}, before, budget
        )
        raise
    proposal = Proposal.of(found, meter, noted.who)
    noted.keep_proposal(proposal, before, budget)
    return proposal


class _Noted:
    """One optimizer at work on one judge and split, as the file of answers has it."""

    def __init__(
        self,
        judge: Judge,
        optimizer: AlignmentOptimizer,
        split: Split,
        by_id: Mapping[str, Example],
    ) -> None:
        self.judge, self.who, self.tape = judge, type(optimizer).__name__, active()
        self.key, self.turn = "", 0
        if self.tape is not None:
            parts = [_content(part, by_id) for part in (split.train, split.dev)]
            mark = fingerprint(judge, place=False)
            self.key = question_key("optimizer", self.who, _settings(optimizer), mark, parts)
            self.turn = self.tape.turn(self.key)

    def replayed(self, player: Player, budget: Budget) -> Proposal:
        """The proposal that the file holds, taken from the budget; its error where it is one."""
        line = player.find(self.key, self.turn, "optimizer")
        if line is None:
            raise ReplayError(
                f"What {self.who} came to is not in {player.path}, which is replayed, so that no "
                "model is called. Either this run is not the recorded one (judge, data, split, "
                "seed or settings differ), or its judges hold more than instructions, as "
                "MemAlign's do, which cannot be recorded. Run it outside workbench.replaying(...)."
            )
        budget.burn(line.paid, known=line.answer.get("known_before", 0))
        answer = line.answer
        if "error" in answer:
            kind = answer.get("kind", "")
            raise ERRORS.get(kind, ModelError)(answer["error"] or kind)
        if budget.is_exceeded:
            raise budget.exhausted()
        return Proposal(
            with_instructions(self.judge, answer["instructions"]),
            **{name: answer.get(name, 0) for name in COUNTS},
            tokens=answer.get("tokens"),
            cost=answer.get("cost"),
            notes=tuple(answer.get("notes", ())),
        )

    def keep_proposal(self, proposal: Proposal, before: dict[str, float], budget: Budget) -> None:
        """Note it where it is a judge of instructions alone; else say that it is not noted."""
        if not isinstance(self.tape, Recorder):
            return
        if type(proposal.judge) is not InstructionsJudge:
            warnings.warn(
                f"{self.who} makes judges that hold more than instructions, which "
                f"{self.tape.path} cannot hold: what it came to cannot be replayed.",
                stacklevel=4,
            )
            return
        answer: dict[str, Any] = {
            "instructions": proposal.judge.instructions,
            "notes": list(proposal.notes),
        }
        answer |= {name: getattr(proposal, name) for name in (*COUNTS, "tokens", "cost")}
        self.keep({k: v for k, v in answer.items() if v is not None}, before, budget)

    def keep(self, answer: dict[str, Any], before: dict[str, float], budget: Budget) -> None:
        """Note the answer with what the budget was charged for it, and write the file."""
        if not isinstance(self.tape, Recorder):
            return
        paid = {name: amount - before[name] for name, amount in _spent(budget).items()}
        known = int(paid.pop("known"))
        paid = {name: amount for name, amount in paid.items() if amount}
        about = {"optimizer": self.who, "model": str(self.judge.model or "")}
        answer |= {"known_before": known} if known else {}
        self.tape.keep(Line(self.key, self.turn, "optimizer", about, answer, paid))
        self.tape.save()


def _spent(budget: Budget) -> dict[str, float]:
    return {**budget.state(), "known": budget.known}


def _content(part: Pairs, by_id: Mapping[str, Example]) -> list[Any]:
    """Items and labels as they are the same in every store."""
    rows = part.table.to_dict("records")
    told = [
        (item_digest(by_id[row["trace_id"]]), row["human"], row["human_rationale"]) for row in rows
    ]
    return sorted(told, key=str)


def _settings(optimizer: AlignmentOptimizer) -> dict[str, Any]:
    """What an optimizer was made with, without secrets; of what is no plain data, what it is."""
    return dict(without_secret_params(_plain(vars(optimizer))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    named = value if isinstance(value, type) or callable(value) else type(value)
    name = getattr(named, "__qualname__", type(value).__qualname__)
    return f"<{type(value).__module__}.{name}>"
