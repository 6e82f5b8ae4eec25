"""What a session and its view say to each other, in JSON.

What each message holds is told by `workbench.labelling.LabelSession`; here is what it has in common
with `workbench.deciding.DecisionSession`: how messages are read, and how a bad one is answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench import store
from workbench.actions import Action
from workbench.errors import ArgumentError, WorkbenchError
from workbench.showing import Message

PROTOCOL = 1

AROUND = (10, 50)
"""Items behind the position, and from it on, that a view is given when it says hello."""

MOST_WANTED = 500
"""Items that are given in one answer."""

_log = logging.getLogger(__name__)


def answered(
    message: Any, handlers: Mapping[str, Callable[[Mapping[str, Any]], list[Message]]]
) -> list[Message]:
    """What the handler of the message's type answers, or a problem; never raises for what the
    message holds, nor for a store that cannot be read."""
    kind = message.get("type") if isinstance(message, Mapping) else None
    handler = handlers.get(kind) if isinstance(kind, str) else None
    if handler is None:
        return [problem(f"A message of type {kind!r:.80} is not known.", kind)]
    try:
        return handler(message)
    except WorkbenchError as error:
        return [problem(str(error), kind)]
    except Exception as error:
        # A store that cannot be read must not end the session; it is told and tried again.
        _log.debug("a message could not be answered", exc_info=True)
        return [problem(f"This could not be done: {store.told(error)}", kind)]


def wanted(message: Mapping[str, Any]) -> tuple[int, int, bool]:
    """(first position, number of items, whether they are wanted whole) of a ``want``.

    Raises
    ------
    ArgumentError
        When these are no counts.
    """
    start: Any = message.get("start")
    count: Any = message.get("count", 1)
    for given in (start, count):
        if not isinstance(given, int) or isinstance(given, bool) or given < 0:
            raise ArgumentError(f"start and count must be counts, not {given!r:.40}.")
    return start, min(count, MOST_WANTED), message.get("full") is True


def read_actions(raw: Any) -> list[Action | Message]:
    """The actions of a message; in place of one that is malformed the answer to it.

    Raises
    ------
    ArgumentError
        When ``raw`` is no list.
    """
    if not isinstance(raw, list):
        raise ArgumentError(f"actions must be a list, not {raw!r:.80}.")
    read: list[Action | Message] = []
    for one in raw:
        try:
            read.append(Action.parse(one))
        except ArgumentError as error:
            key = one.get("id") if isinstance(one, Mapping) else None
            read.append(unsaved([key] if isinstance(key, str) else [], str(error), retry=False))
    return read


def unsaved(ids: Sequence[str], error: str, *, retry: bool) -> Message:
    """``retry``: whether it is tried again, or never will be."""
    return {"type": "unsaved", "ids": list(ids), "error": error, "retry": retry}


def problem(error: str, about: Any) -> Message:
    """``about`` is the type of the message that could not be answered."""
    return {"type": "problem", "error": error, "about": str(about)[:80] if about else None}
