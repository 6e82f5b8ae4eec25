"""What an annotator does: save, skip or undo, as the view sends it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
)

from workbench.errors import ArgumentError

CHOSEN_KEY: Final = "workbench.chosen"

PROBABILITY_KEY: Final = "workbench.probability"

DRAW_KEY: Final = "workbench.draw"

POOL_KEY: Final = "workbench.pool"


@dataclass(frozen=True)
class Draw:
    """How an item was chosen, as recorded with its label.

    ``how`` is "random", the name of a rule, or "picked" (gone to by hand). ``probability`` is
    that of the item among those that were left, None unless it was drawn at random. ``number``
    counts draws from 1, and ``pool`` is the number of items drawn from, earlier draws included.
    Older versions also wrote "elsewhere" and "not in the queue".
    """

    how: str
    probability: float | None
    number: int
    pool: int

    def to_metadata(self) -> dict[str, str]:
        """Return the draw as it is stored with a label."""
        made = {CHOSEN_KEY: self.how, DRAW_KEY: str(self.number), POOL_KEY: str(self.pool)}
        if self.probability is not None:
            made[PROBABILITY_KEY] = f"{self.probability:.9g}"
        return made

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Draw | None:
        """Read a stored draw; None where there is none."""
        try:
            chance = metadata.get(PROBABILITY_KEY)
            return cls(
                how=str(metadata[CHOSEN_KEY]),
                probability=None if chance is None else float(chance),
                number=int(metadata[DRAW_KEY]),
                pool=int(metadata[POOL_KEY]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def _number(raw: Any) -> float | None:
    """A clock or a duration; nonsense is no reason to lose a label."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        return None
    return max(float(raw), 0.0)


def _text(raw: Any) -> Any:
    # A text field that cuts an emoji in two leaves a half that cannot be stored.
    return raw.encode("utf-8", "replace").decode().strip() if isinstance(raw, str) else raw


def _object(raw: Any) -> Any:
    return {} if raw is None else raw


Name = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
Number = Annotated[float | None, BeforeValidator(_number)]
Rationale = Annotated[StrictStr | None, BeforeValidator(_text), Field(max_length=100_000)]


class Given(BaseModel):
    """One answer as it came, not yet read on the question's scale."""

    model_config = ConfigDict(frozen=True)

    value: Any = None
    abstain: StrictBool = False


class Action(BaseModel):
    """A save, a skip or an undo.

    ``id`` is the same however often the action is sent. ``seconds`` were spent on the item;
    ``at`` is the browser's clock in milliseconds, which may be wrong. ``undoes`` is the action to
    take back, None for the last one.
    ``rubrics`` are the versions of the rubrics that were shown, by question, 0 for none.
    """

    model_config = ConfigDict(frozen=True)

    id: Name
    kind: Literal["save", "skip", "undo"]
    trace_id: StrictStr
    answers: Annotated[dict[str, Given], BeforeValidator(_object)] = {}
    rationale: Annotated[dict[str, Rationale], BeforeValidator(_object)] = {}
    seconds: Number = None
    at: Number = None
    undoes: Name | None = None
    after_reveal: StrictBool = False
    rubrics: Annotated[
        dict[str, Annotated[StrictInt, Field(ge=0, le=10**9)]], BeforeValidator(_object)
    ] = {}

    @classmethod
    def parse(cls, raw: Any) -> Action:
        """Read an action from JSON.

        Raises
        ------
        ArgumentError
            For what is no action.
        """
        try:
            action = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(["action", *map(str, first["loc"])])
            raise ArgumentError(f"{where}={first['input']!r:.80}: {first['msg']}.") from None
        if not action.trace_id and action.kind != "undo":
            raise ArgumentError("action.trace_id must name a trace.")
        answers = action.answers.items() if action.kind == "save" else ()
        given = {name: one for name, one in answers if one.abstain or one.value is not None}
        return action.model_copy(update={"answers": given})

    def reason(self, question: str) -> str:
        """Return the rationale given with the answer to a question."""
        return self.rationale.get(question) or ""
