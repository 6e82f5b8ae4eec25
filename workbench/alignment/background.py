"""Alignment in a thread, so that the notebook stays usable."""

from __future__ import annotations

import contextvars
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.align import align
from workbench.alignment.result import Alignment
from workbench.alignment.runs import Stage, Watch
from workbench.errors import CancelledError
from workbench.judging.assessment import check_single


@dataclass(frozen=True)
class AlignmentState:
    """What an alignment is doing.

    Figures are None before learning, and for optimizers other than `SIMBA`. ``best_score`` is the
    mean credit of the best instructions so far on the selection items, minus a small penalty
    for length; ``calls`` and ``spent`` (in words) are charged to the budget by whatever shares it,
    ``share_spent`` in [0, 1] is the largest share of one of its limits; ``failures`` are judge
    calls without a usable answer. ``message`` says how it ended.
    """

    stage: Literal["reading", Stage, "done", "cancelled", "failed"] = "reading"
    cancelling: bool = False
    step: int | None = None
    max_steps: int | None = None
    best_score: float | None = None
    calls: int | None = None
    spent: str = ""
    share_spent: float | None = None
    failures: int | None = None
    instructions: str = ""
    seconds: float = 0.0
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.stage in ("done", "cancelled", "failed")


class RunningAlignment(Watch):
    """What `workbench.BackgroundAlignment` is but for its view."""

    def __init__(
        self,
        judge: Judge,
        pairs_or_traces: Any,
        optimizer: AlignmentOptimizer | None,
        options: dict[str, Any],
    ) -> None:
        check_single(judge)
        super().__init__()
        self.judge = judge
        self._options = {"progress": False, **options}
        self._began = time.monotonic()
        self._state = AlignmentState(instructions=str(getattr(judge, "instructions", "")))
        self._lock = threading.RLock()
        self._read = threading.Event()
        self._outcome: Future[Alignment] = Future()
        run, given = contextvars.copy_context().run, (self._run, pairs_or_traces, optimizer)
        threading.Thread(target=run, args=given, name=f"align {judge.name}", daemon=True).start()
        try:
            self._read.wait()
        except BaseException:
            self.cancel()  # interrupted while it read, so nobody holds what could cancel it
            raise

    @property
    def state(self) -> AlignmentState:
        """What the alignment is doing now."""
        with self._lock:
            state, budget = self._state, self.budget
        if state.ended:
            return state
        known: dict[str, Any] = {"seconds": time.monotonic() - self._began}
        if budget is not None:
            limits = (
                (budget.spent, budget.limit),
                (budget.spent_tokens, budget.tokens),
                (budget.spent_usd, budget.usd),
            )
            shares = (min(1.0, spent / limit) for spent, limit in limits if limit)
            known |= {"calls": budget.spent, "spent": str(budget)}
            known["share_spent"] = max(shares, default=None)
        return replace(state, **known)

    @property
    def done(self) -> bool:
        """Whether it has ended, successfully or not."""
        return self._outcome.done()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end for at most so many seconds; return whether it has come."""
        return bool(wait([self._outcome], seconds).done)

    def cancel(self) -> bool:
        """End the alignment after the calls that are under way; return False where it is too late.

        What was learned is not tested, and so not taken, since each test uses up held-out labels;
        one that has begun runs to its end. Optimizers other than `SIMBA` end at their next call.
        """
        with self._lock:
            if self._state.ended or self._state.stage == "testing":
                return self._state.stage == "cancelled"
            self.stop.set()
            self._update(cancelling=True)
            return True

    def result(self, timeout: float | None = None) -> Alignment:
        """Wait for the end, ``timeout`` seconds at most, and return what `align` returned.

        Raises what `align` raised, `CancelledError` when it was cancelled, and
        `concurrent.futures.TimeoutError` when it has not ended by then. An interrupt ends the
        waiting and not the alignment.
        """
        return self._outcome.result(timeout)

    def enter(self, stage: Stage) -> None:
        with self._lock:
            super().enter(stage)
            self._update(stage=stage)
            if stage == "learning" and self.max_steps is not None:
                self._update(step=0, max_steps=self.max_steps, failures=0)
        self._read.set()

    def on_step(self, step: dict[str, Any]) -> None:
        figures = {name: step[name] for name in ("step", "best_score", "failures")}
        self._update(instructions=step["best"], **figures)

    def _run(self, pairs_or_traces: Any, optimizer: AlignmentOptimizer | None) -> None:
        """Align, and hand what it returns or raises to whoever waits for the result."""
        end = partial(self._update, cancelling=False)
        try:
            found = align(self.judge, pairs_or_traces, optimizer, watch=self, **self._options)
            end(stage="done", message=found.reason, instructions=found.proposed.instructions)
            self._outcome.set_result(found)
        except BaseException as error:
            if isinstance(error, CancelledError):
                end(stage="cancelled", message=str(error))
            else:
                end(stage="failed", message=f"{type(error).__name__}: {error}")
            self._outcome.set_exception(error)
        self._read.set()

    def _update(self, **changes: Any) -> None:
        with self._lock:
            # With what was spent and how long it took until now, which stays when it ends.
            self._state = replace(self.state, **changes)

    def __repr__(self) -> str:
        state = self.state
        step = "" if state.step is None else f"step {state.step} of {state.max_steps}"
        told = [state.stage, step, state.spent, f"{state.seconds:.0f} s", state.message]
        return f"<BackgroundAlignment of {self.judge.name!r}: {', '.join(filter(None, told))}>"
