"""What was paid for one answer of a model, kept with the answer.

Who finds the answer later pays nothing, but a budget is charged with what the receipt says, so
that a run takes the same course whether its answers are paid for now or were before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Receipt:
    """Requests made for an answer, repeated ones included, and the tokens that they took.

    ``read`` and ``written`` count tokens; ``spare_read`` and ``spare_written`` those that were
    set aside for its largest request and not used (see `workbench.budget.Budget`). All are at
    least 0.
    """

    calls: int = 1
    read: int = 0
    written: int = 0
    spare_read: int = 0
    spare_written: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.read + self.written

    @property
    def spare(self) -> int:
        """Tokens that were set aside and not used."""
        return self.spare_read + self.spare_written

    def __add__(self, other: Receipt) -> Receipt:
        spare = max(
            (self.spare_read, self.spare_written), (other.spare_read, other.spare_written), key=sum
        )
        return Receipt(
            self.calls + other.calls, self.read + other.read, self.written + other.written, *spare
        )

    def to_dict(self) -> dict[str, int]:
        """As JSON holds it; what is 0 is left out, but for the calls."""
        return {k: v for k, v in asdict(self).items() if v or k == "calls"}

    @classmethod
    def of(cls, stored: Any) -> Receipt:
        """The receipt that `to_dict` wrote.

        An answer that has none, or one that is damaged, cost one call, and nobody knows how many
        tokens.
        """
        if not isinstance(stored, Mapping):
            return cls()
        told = {name: stored.get(name, 0) for name in cls.__dataclass_fields__}
        if not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in told.values()
        ):
            return cls()
        return cls(**told)


class Bill:
    """Adds up what is paid for one answer while it is asked for.

    ``before`` is what an earlier run paid for it without getting it.
    """

    def __init__(self, before: Receipt | None = None) -> None:
        self.before = before or Receipt(0)
        self.calls = self.read = self.written = 0
        self._spare = (0, 0)

    def add(self, most: tuple[int, int], used: tuple[int, int]) -> None:
        """One request: tokens (read, written) that it could use at most, and that it used."""
        self.read += used[0]
        self.written += used[1]
        spare = max(0, most[0] - used[0]), max(0, most[1] - used[1])
        self._spare = max(self._spare, spare, key=sum)

    @property
    def own(self) -> Receipt:
        """What was paid now."""
        return Receipt(self.calls, self.read, self.written, *self._spare)

    @property
    def receipt(self) -> Receipt:
        """What was paid at whatever time."""
        return self.before + self.own
