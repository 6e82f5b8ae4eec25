"""A number of model calls that is never exceeded."""

from __future__ import annotations

import threading

from workbench.errors import ArgumentError, BudgetError


class Budget:
    """A number of model calls that is never exceeded, shared by all threads of a run.

    ``limit`` is the most calls, retries included; None for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ArgumentError(f"budget={limit} must not be negative.")
        self.limit = limit
        self.spent = 0
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        return float("inf") if self.limit is None else self.limit - self.spent

    def take(self) -> None:
        """Count one call before it is made.

        Raises
        ------
        BudgetError
            When nothing is left.
        """
        with self._lock:
            if self.limit is not None and self.spent >= self.limit:
                raise BudgetError(
                    f"The budget of {self.limit} calls is spent. Raise budget= to go on; answers "
                    "that were paid for are kept."
                )
            self.spent += 1
