"""What the view sends is read, and what is malformed is refused."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.errors import ArgumentError
from workbench.labeling.annotations import Action, Draw

SAVE = {"id": "a", "kind": "save", "trace_id": "tr", "answers": {"q": {"value": "yes"}}}


def test_half_an_emoji_in_a_reason_does_not_keep_it_from_being_saved() -> None:
    """A text field that is cut at its limit may end so."""
    action = Action.parse({**SAVE, "rationale": {"q": "fine \ud83d"}})
    assert action.reason("q") == "fine ?"


def test_nonsense_of_clocks_is_no_reason_to_lose_a_label() -> None:
    for seconds in (None, "2", float("inf"), True, {}):
        assert Action.parse({**SAVE, "seconds": seconds, "at": seconds}).seconds is None
    assert Action.parse({**SAVE, "seconds": -1}).seconds == 0


def test_only_answers_are_answers() -> None:
    """Neither an empty one, nor that of a skip."""
    given = {"q": {"value": None}, "r": {"value": None, "abstain": True}}
    assert set(Action.parse({**SAVE, "answers": given}).answers) == {"r"}
    assert Action.parse({**SAVE, "kind": "skip"}).answers == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "a b"}, {"id": "x" * 101}, {"kind": "eat"}, {"trace_id": ""}, {"trace_id": 7},
        {"answers": 1}, {"answers": {"q": 1}}, {"rationale": {"q": 1}},
        {"rationale": {"q": "x" * 100_001}}, {"undoes": ""},
        *({"rubrics": one} for one in (
            7, ["q"], {"q": True}, {"q": "1"}, {"q": 1.5}, {"q": -1}, {"q": None}, {"q": 10**30},
        )),
    ],
)  # fmt: skip
def test_a_malformed_action_is_refused(wrong: dict[str, Any]) -> None:
    """The message names the field and what was given."""
    (field,) = wrong
    with pytest.raises(ArgumentError, match=field):
        Action.parse({**SAVE, **wrong})


def test_a_draw_comes_back_as_it_was() -> None:
    """Also one of an older version; what says nothing is none."""
    for draw in (Draw("random", 1 / 3, 1, 3), Draw("balance", None, 2, 3)):
        stored = Draw.of_metadata(draw.to_metadata())
        assert stored is not None
        assert (stored.how, stored.number, stored.pool) == (draw.how, draw.number, draw.pool)
    old = {"workbench.chosen": "elsewhere", "workbench.draw": "0", "workbench.pool": "4"}
    assert Draw.of_metadata(old) == Draw("elsewhere", None, 0, 4)
    assert Draw.of_metadata({}) is None
