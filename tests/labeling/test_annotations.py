"""What the view sends is read, and what is malformed is refused."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.errors import ArgumentError
from workbench.labeling.annotations import Action, Draw, parsed

SAVE = {"id": "a", "kind": "save", "trace_id": "tr", "answers": {"q": {"value": "yes"}}}


def test_half_an_emoji_in_a_reason_does_not_keep_it_from_being_saved() -> None:
    """A text field that is cut at its limit may end so."""
    action = parsed(Action, {**SAVE, "rationale": {"q": " fine\0 \ud83d"}})
    assert action.reason("q") == "fine\ufffd \ufffd"


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "a b"}, {"id": "x" * 101}, {"kind": "eat"}, {"trace_id": ""}, {"trace_id": 7},
        {"answers": 1}, {"answers": {"q": 1}}, {"rationale": 1},
        {"undoes": ""}, {"seconds": -1}, {"at": []},
        *({"rubrics": one} for one in (
            7, ["q"], {"q": True}, {"q": "1"}, {"q": 1.5}, {"q": -1}, {"q": None},
        )),
    ],
)  # fmt: skip
def test_a_malformed_action_is_refused(wrong: dict[str, Any]) -> None:
    """The message names the field and what was given."""
    (field,) = wrong
    with pytest.raises(ArgumentError, match=field):
        parsed(Action, {**SAVE, **wrong})


def test_a_draw_comes_back_as_it_was() -> None:
    """Also one of an older version; what says nothing is none."""
    for draw in (Draw("random", 1 / 3, 1, 3), Draw("balance", None, 2, 3)):
        stored = Draw.of_metadata(draw.to_metadata())
        assert stored is not None
        assert (stored.how, stored.number, stored.pool) == (draw.how, draw.number, draw.pool)
    old = {"workbench.chosen": "elsewhere", "workbench.draw": "0", "workbench.pool": "4"}
    assert Draw.of_metadata(old) == Draw("elsewhere", None, 0, 4)
    assert Draw.of_metadata({}) is None
