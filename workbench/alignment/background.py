"""Alignment in a thread, so that the notebook stays usable.

`workbench.widgets.progress` provides the view in a notebook.
"""

from __future__ import annotations

import contextvars
import difflib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from workbench.alignment.align import align
from workbench.alignment.result import Alignment
from workbench.alignment.runs import Stage, Watch
from workbench.errors import ArgumentError, CancelledError
from workbench.models.budget import Budget
from workbench.simba.optimizer import SIMBA

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.genai.judges import Judge
    from mlflow.genai.judges.base import AlignmentOptimizer


def align_in_background(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizer: AlignmentOptimizer | None = None,
    **options: Any,
) -> BackgroundAlignment:
    """Run `workbench.align` in a thread and return at once.

    Labels and verdicts are read before this returns, from the store that is active now. Another
    experiment or tracking URI may be set afterwards; the run is logged where this call was made.
    Only optimizers other than `SIMBA` read traces from the active store once more. A recording
    or replay that is active now (`workbench.recording`) is so in the thread as well.

    The same call, here or with `workbench.align`, resumes an alignment that was cancelled,
    interrupted or killed, and pays for no answer twice.

    Parameters
    ----------
    judge, pairs_or_traces, optimizer
        As `workbench.align` takes them. An optimizer serves one alignment at a time.
    options
        All other arguments of `workbench.align`; ``progress`` is False unless given.

    Raises
    ------
    ArgumentError
        When ``options`` holds an argument that `align` does not take. What `align` raises is
        raised by `BackgroundAlignment.result`.

    Examples
    --------
    >>> running = workbench.align_in_background(judge, pairs)  # doctest: +SKIP
    >>> running  # the live view, in a notebook  # doctest: +SKIP
    >>> running.state.best_score, running.cancel()  # doctest: +SKIP
    >>> alignment = running.result()  # doctest: +SKIP
    """
    allowed = set(align.__kwdefaults__ or ()) - {"watch"}
    if unknown := sorted(set(options) - allowed):
        raise ArgumentError(
            f"align_in_background takes no {', '.join(unknown)}. Beside judge, pairs_or_traces and "
            f"optimizer it takes: {', '.join(sorted(allowed))}."
        )
    options = {"progress": False, **options}
    return BackgroundAlignment(judge, pairs_or_traces, optimizer, options)


@dataclass(frozen=True)
class AlignmentState:
    """What an alignment is doing.

    Attributes
    ----------
    stage
        ``"reading"`` the store, ``"preflight"``, ``"learning"``, ``"testing"``, then one of
        ``"done"``, ``"cancelled"``, ``"failed"``.
    cancelling
        Whether it has been cancelled while calls are still under way.
    step, max_steps
        Steps made, and at most to make. None for optimizers other than `SIMBA`, as are the
        attributes that follow up to ``failures``.
    best_score
        Score of the best instructions so far on the selection items: the mean credit less a small
        price for length. None before the first step.
    calls, budget
        Model calls charged to the budget so far, by whatever shares it, and their limit; None for
        no limit.
    spent, share_spent
        What is spent in calls, tokens and money, in words, and the largest share of a limit, in
        [0, 1]; None without a limit.
    failures
        Judge calls that gave no usable answer.
    instructions
        The best so far.
    seconds
        Since the start.
    message
        How it ended, in words; "" before.
    """

    stage: Literal["reading", Stage, "done", "cancelled", "failed"] = "reading"
    cancelling: bool = False
    step: int | None = None
    max_steps: int | None = None
    best_score: float | None = None
    calls: int | None = None
    budget: int | None = None
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


class BackgroundAlignment(Watch):
    """An alignment in a thread; made by `align_in_background`. In a notebook it shows a live view.

    Attributes
    ----------
    judge
        The judge that is aligned; it is not changed.
    preflight
        The table of checks that `align` makes before it learns; None until then.
    make_view
        Makes the widget that shows this in a notebook; None: a line of text is shown.
    """

    def __init__(
        self,
        judge: Judge,
        pairs_or_traces: Any,
        optimizer: AlignmentOptimizer | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.judge = judge
        self.preflight: pd.DataFrame | None = None
        self.make_view: Callable[[BackgroundAlignment], Any] | None = None
        self._view: Any = None
        self._progress = bool(options["progress"])
        self._began = time.monotonic()
        self._state = AlignmentState(instructions=str(getattr(judge, "instructions", "")))
        self._lock = threading.Lock()
        self._read, self._ended = threading.Event(), threading.Event()
        self._budget: Budget | None = None
        self._alignment: Alignment | None = None
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        threading.Thread(
            target=lambda: context.run(self._run, pairs_or_traces, optimizer, options),
            name=f"align {judge.name}",
            daemon=True,
        ).start()
        try:
            self._read.wait()
        except BaseException:
            self.cancel()  # interrupted while it read, so nobody holds what could cancel it
            raise

    # -- for whoever waits ----------------------------------------------------------------

    @property
    def state(self) -> AlignmentState:
        """What the alignment is doing now."""
        with self._lock:
            return self._state if self._state.ended else self._current

    @property
    def _current(self) -> AlignmentState:
        """The state with time and spending as they are now."""
        state = replace(self._state, seconds=time.monotonic() - self._began)
        budget = self._budget
        if budget is None:
            return state
        limits = (
            (budget.spent, budget.limit),
            (budget.spent_tokens, budget.tokens),
            (budget.spent_usd, budget.usd),
        )
        shares = [spent / limit if limit else 1.0 for spent, limit in limits if limit is not None]
        share = min(1.0, max(shares)) if shares else None
        return replace(state, calls=budget.spent, spent=budget.told(), share_spent=share)

    @property
    def done(self) -> bool:
        """Whether it has ended, successfully or not."""
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end for at most so many seconds; return whether it has come."""
        return self._ended.wait(seconds)

    def cancel(self) -> bool:
        """End the alignment after the calls that are under way.

        What was learned so far is not tested, and so not taken, since each test uses up held-out
        labels. A held-out test that has begun runs to its end. Optimizers other than `SIMBA` end
        when they next call a model.

        Returns
        -------
        bool
            False where it is too late to cancel.
        """
        with self._lock:
            if self._state.ended or self._state.stage == "testing":
                return self._state.stage == "cancelled"
            self.stop.set()
            self._state = replace(self._state, cancelling=True)
            return True

    def result(self, timeout: float | None = None) -> Alignment:
        """Wait for the end, ``timeout`` seconds at most, and return what `align` returned.

        An interrupt ends the waiting and not the alignment.

        Raises
        ------
        CancelledError
            When it was cancelled.
        TimeoutError
            When it has not ended by then.
        Exception
            Whatever `align` raised.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(
                f"The alignment of {self.judge.name!r} has not ended after {timeout} s. Wait "
                "longer with result(timeout=...), look at .state, or .cancel() it."
            )
        if self._error is not None:
            raise self._error
        assert self._alignment is not None
        return self._alignment

    # -- in the thread ----------------------------------------------------------------------

    def enter(self, stage: Stage, preflight: pd.DataFrame | None = None) -> None:
        with self._lock:
            super().enter(stage, preflight)
            self._state = replace(self._state, stage=stage)
            if preflight is not None:
                self.preflight = preflight
        self._read.set()

    @contextmanager
    def learning(self, optimizer: AlignmentOptimizer, budget: Budget) -> Iterator[None]:
        assert isinstance(optimizer, SIMBA)
        # A user's own optimizer is given back as it was.
        before = optimizer.on_step, optimizer.stop, optimizer.progress

        def on_step(step: dict[str, Any]) -> None:
            figures = {name: step[name] for name in ("step", "best_score", "failures")}
            self._update(instructions=step["best"], **figures)
            if before[0] is not None:
                before[0](step)

        optimizer.on_step, optimizer.stop = on_step, self.stop
        optimizer.progress = optimizer.progress and self._progress
        self._budget = budget
        steps = optimizer.settings.max_steps
        self._update(step=0, max_steps=steps, budget=budget.limit, failures=0)
        try:
            yield
        finally:
            optimizer.on_step, optimizer.stop, optimizer.progress = before

    def _run(
        self, pairs_or_traces: Any, optimizer: AlignmentOptimizer | None, options: dict[str, Any]
    ) -> None:
        end: dict[str, Any] = {"cancelling": False}
        try:
            found = align(self.judge, pairs_or_traces, optimizer, watch=self, **options)
            self._alignment = found
            end |= {"stage": "done", "message": found.reason}
            end["instructions"] = found.proposed.instructions
        except BaseException as error:  # raised where someone waits for the result
            self._error = error
            cancelled = isinstance(error, CancelledError)
            end["stage"] = "cancelled" if cancelled else "failed"
            end["message"] = str(error) if cancelled else f"{type(error).__name__}: {error}"
        with self._lock:
            self._state = replace(self._current, **end)
        self._read.set()
        self._ended.set()

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)

    # -- in a notebook ----------------------------------------------------------------------

    def learned(self) -> list[tuple[str, bool]]:
        """Return the lines of the best instructions, each with whether it was learned."""
        before = str(getattr(self.judge, "instructions", "")).splitlines()
        after = self.state.instructions.splitlines()
        same = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        known = {block.b + i for block in same for i in range(block.size)}
        return [(line, i not in known and bool(line.strip())) for i, line in enumerate(after)]

    @property
    def view(self) -> Any:
        """The live view, one for all cells that show this; None where there is none."""
        if self._view is None and self.make_view is not None:
            self._view = self.make_view(self)
        return self._view

    def __repr__(self) -> str:
        state = self.state
        figures: list[str] = [state.stage]
        if state.step is not None:
            figures.append(f"step {state.step} of {state.max_steps}")
        if state.best_score is not None:
            figures.append(f"best dev score {state.best_score:.3f}")
        figures += [*filter(None, [state.spent]), f"{state.seconds:.0f} s"]
        end = f". {state.message}" if state.message else ""
        return f"<BackgroundAlignment of {self.judge.name!r}: {', '.join(figures)}{end}>"

    def _repr_mimebundle_(self, **given: Any) -> dict[str, Any]:
        if self.view is None:
            return {"text/plain": repr(self)}
        bundle: dict[str, Any] = self.view._repr_mimebundle_(**given)
        return bundle
