"""The exceptions that the workbench raises; MLflow's own pass where they are clear."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real


class WorkbenchError(Exception):
    """Base of all errors that the workbench raises on purpose."""


class ArgumentError(WorkbenchError, ValueError):
    """An argument is wrong. The message names it, what was given and what is allowed."""


class ScaleError(ArgumentError):
    """A value does not lie on the rating scale."""


class TableError(WorkbenchError):
    """A table cannot be imported. ``rows`` holds (row number, reason), rows counted from 0."""

    def __init__(self, message: str, rows: Iterable[tuple[int, str]] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


class StoreError(WorkbenchError):
    """The MLflow store did not take or give something."""


class PairingError(WorkbenchError):
    """Verdicts and labels cannot be joined."""


class NoLabelsError(PairingError):
    """No human label exists under the judge's name."""


class NoVerdictsError(PairingError):
    """The judge has no verdict on the labelled traces."""


class TooFewPairsError(PairingError):
    """Fewer usable pairs than alignment needs."""


class ModelError(WorkbenchError):
    """A model did not give a usable answer; the provider's own message is part of the text."""


class UnreachableModelError(ModelError):
    """Nothing answers at the model's endpoint."""


class CredentialError(ModelError):
    """A key or header is missing or was refused."""


class BudgetError(WorkbenchError):
    """The budget does not allow the next step."""


class CancelledError(WorkbenchError):
    """Somebody cancelled what was under way."""


class ReplayError(WorkbenchError):
    """A file of recorded answers lacks what is asked for, or cannot be read or written."""


class RegistryError(WorkbenchError):
    """A judge cannot be registered or loaded."""


class NotebookError(WorkbenchError):
    """A notebook cannot be run as asked."""


def one_of(argument: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `ArgumentError` unless ``value`` is one of ``allowed``."""
    options = list(allowed)
    if value not in options:
        known = ", ".join(map(repr, options))
        raise ArgumentError(f"{argument}={value!r} is not known. Use one of: {known}.")


def check_share(argument: str, value: object) -> float:
    """Return a number in [0, 1] as a float; `ArgumentError` unless it is one."""
    if isinstance(value, Real) and 0 <= float(value) <= 1:
        return float(value)
    raise ArgumentError(f"{argument}={value!r} must lie in [0, 1].")


def check_whole(argument: str, value: object, least: int | None = 1) -> int:
    """Return a whole number as an int; `ArgumentError` unless it is one, ``least`` or more."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is not None and (least is None or number >= least):
        return number
    at_least = "" if least is None else f" of {least} or more"
    raise ArgumentError(f"{argument}={value!r} must be a whole number{at_least}.")
