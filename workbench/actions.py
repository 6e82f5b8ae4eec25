"""What an annotator does, as the view tells it: read from JSON, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.draws import Draw
from workbench.errors import ArgumentError

Kind = Literal["save", "skip", "undo"]

_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_LONGEST_RATIONALE = 100_000
_LONGEST_SECONDS = 86_400.0
_LARGEST_VERSION = 10**9


@dataclass(frozen=True)
class Given:
    """One answer as it came: not yet read on the question's scale."""

    value: Any
    abstain: bool = False
    rationale: str = ""


@dataclass(frozen=True)
class Action:
    """A save, a skip or an undo. ``id`` is the same however often it is sent.

    ``seconds`` were spent on the item; ``at_ms`` is the clock of the browser, which may be
    wrong. ``undoes`` is the action to take back; None for the last one. ``chosen`` is how the
    item was chosen, as it was told with the item; None where that is not sent. ``rubrics`` are the
    versions of the rubrics that were shown, by question, 0 for none; it may lack any of them.
    """

    id: str
    kind: Kind
    trace_id: str
    answers: Mapping[str, Given] = field(default_factory=dict)
    seconds: float | None = None
    at_ms: int | None = None
    undoes: str | None = None
    after_reveal: bool = False
    chosen: Draw | None = None
    rubrics: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Any) -> Action:
        """An action from JSON.

        Raises
        ------
        ArgumentError
            When it is none.
        """
        if not isinstance(raw, Mapping):
            raise ArgumentError(f"An action must be an object, not {raw!r:.80}.")
        key = raw.get("id")
        if not isinstance(key, str) or not _ID.fullmatch(key):
            raise ArgumentError(f"An action's id must be a short name, not {key!r:.80}.")
        kind = raw.get("kind")
        if kind not in ("save", "skip", "undo"):
            raise ArgumentError(f"An action's kind must be save, skip or undo, not {kind!r:.80}.")
        trace_id, undoes = raw.get("trace_id"), raw.get("undoes")
        if not isinstance(trace_id, str) or not (trace_id or kind == "undo"):
            raise ArgumentError(f"An action's trace_id must be a text, not {trace_id!r:.80}.")
        if undoes is not None and not (isinstance(undoes, str) and _ID.fullmatch(undoes)):
            raise ArgumentError(f"undoes must be an action's id or null, not {undoes!r:.80}.")
        return cls(
            id=key,
            kind=kind,
            trace_id=trace_id,
            answers=_answers(raw) if kind == "save" else {},
            seconds=_number(raw.get("seconds"), _LONGEST_SECONDS),
            at_ms=None if (at := _number(raw.get("at"), 1e15)) is None else int(at),
            undoes=undoes,
            after_reveal=raw.get("after_reveal") is True,
            chosen=Draw.of_json(raw.get("chosen")),
            rubrics=_rubrics(raw.get("rubrics")),
        )


def _answers(raw: Mapping[str, Any]) -> dict[str, Given]:
    answers, rationales = raw.get("answers"), raw.get("rationale")
    rationales = {} if rationales is None else rationales
    if not isinstance(answers, Mapping) or not isinstance(rationales, Mapping):
        raise ArgumentError("A save needs answers and rationale, each an object by question.")
    found = {}
    for name, one in answers.items():
        if not isinstance(one, Mapping):
            raise ArgumentError(f"The answer to {name!r:.80} must be an object.")
        abstain = one.get("abstain") is True
        if one.get("value") is None and not abstain:
            continue
        because = rationales.get(name)
        if because is not None and not isinstance(because, str):
            raise ArgumentError(f"The rationale of {name!r:.80} must be a text.")
        if because and len(because) > _LONGEST_RATIONALE:
            raise ArgumentError(
                f"The rationale of {name!r:.80} has {len(because):,} characters; "
                f"{_LONGEST_RATIONALE:,} are allowed. Shorten it."
            )
        # A text field that cuts an emoji in two leaves a half that cannot be stored.
        because = (because or "").encode("utf-8", "replace").decode()
        found[str(name)] = Given(one.get("value"), abstain, because.strip())
    return found


def _rubrics(raw: Any) -> dict[str, int]:
    versions = {} if raw is None else raw
    if not isinstance(versions, Mapping):
        raise ArgumentError(f"rubrics must be an object by question, not {raw!r:.80}.")
    for name, version in versions.items():
        whole = isinstance(version, int) and not isinstance(version, bool)
        if not whole or not 0 <= version <= _LARGEST_VERSION:
            raise ArgumentError(
                f"The rubric version of {name!r:.80} must be a whole number from 0 on, "
                f"not {version!r:.80}."
            )
    return {str(name): version for name, version in versions.items()}


def _number(raw: Any, most: float) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        return None
    return min(max(float(raw), 0.0), most)
