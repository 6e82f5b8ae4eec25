"""The stages of an alignment, and the hook that observes and ends them."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from workbench.alignment.runs import RunLocation
from workbench.errors import CancelledError
from workbench.models.budget import Budget

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.genai.judges.base import AlignmentOptimizer

Stage = Literal["preflight", "learning", "testing"]

CANCELLED = (
    "The alignment was cancelled: nothing was tested and the judge stays as it was. Paid answers "
    "are in the cache, so running the same call again resumes it."
)


class Watch:
    """Receives the stages of an alignment and can end it. This one only allows cancelling.

    Attributes
    ----------
    location
        Where the alignment is logged: what was active when this was made.
    stop
        Once set, no further model is called and `align` raises `CancelledError`. A held-out test
        that has begun runs to its end.
    """

    def __init__(self) -> None:
        self.location = RunLocation.active()
        self.stop = threading.Event()

    def enter(self, stage: Stage, preflight: pd.DataFrame | None = None) -> None:
        """Begin a stage; ``preflight`` is the table of checks, given before learning.

        Raises
        ------
        CancelledError
            When ``stop`` is set.
        """
        if self.stop.is_set():
            raise CancelledError(CANCELLED)

    def learning(
        self, optimizer: AlignmentOptimizer, budget: Budget
    ) -> AbstractContextManager[Any]:
        """Return the context in which the optimizer learns and spends ``budget``."""
        return nullcontext()
