"""Which item comes next, and what is recorded of how it was chosen."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ArgumentError
from workbench.labeling.ordering import ORDERS, Known, put_in_order

YES_NO = st.lists(st.sampled_from(["yes", "no"]), max_size=4).map(tuple)
ITEMS = st.lists(
    st.builds(Known, st.text("abc123", min_size=1), st.text("ab ", max_size=9), YES_NO, YES_NO),
    max_size=12,
    unique_by=lambda item: item.trace_id,
)


def ids(items: list[Known], order: str = "random", **more: Any) -> list[str]:
    return [one.trace_id for one in put_in_order(items, order, **{"seed": 0, **more}).queue]


@settings(deadline=None, max_examples=60)
@given(ITEMS, st.sampled_from(ORDERS), st.floats(0, 1), st.integers(0, 9))
def test_each_item_comes_once_whatever_the_order_they_come_in(
    items: list[Known], order: str, share: float, seed: int
) -> None:
    drawn = put_in_order(items, order, seed=seed, random_share=share).queue
    assert Counter(one.trace_id for one in drawn) == Counter(i.trace_id for i in items)
    assert put_in_order(items[::-1], order, seed=seed, random_share=share).queue == drawn


def test_items_that_are_added_or_gone_move_no_others() -> None:
    """So that a restart, with some labelled since, goes on as before."""
    items = [Known(f"t{n}") for n in range(30)]
    whole = ids(items)
    gone = set(whole[:7]) | {whole[20]}
    assert ids([i for i in items if i.trace_id not in gone]) == [i for i in whole if i not in gone]


def test_the_share_of_random_draws_is_as_asked() -> None:
    """Evenly spread, from the beginning on."""
    items = [Known(f"t{n}", verdicts=("yes", "no")) for n in range(100)]
    for share in (0.0, 0.25, 0.5, 1.0):
        drawn = put_in_order(items, "disagreement", seed=1, random_share=share).queue
        for end in (20, 60, 100):
            random = sum(one.how == "random" for one in drawn[:end])
            assert random == pytest.approx(share * end, abs=1)


def test_disagreement_first() -> None:
    """An even split comes before an uneven one, that before judge against people, then the rest."""
    items = [
        Known("agree", verdicts=("yes", "yes"), labels=("yes",)),
        Known("third", verdicts=("yes", "yes", "no")),
        Known("half", labels=("yes", "no")),
        Known("judge", verdicts=("yes",), labels=("no",)),
        Known("none"),
    ]
    drawn = put_in_order(items, "disagreement", seed=0).queue
    assert [one.trace_id for one in drawn][:3] == ["half", "third", "judge"]
    assert [one.how for one in drawn] == ["disagreement"] * 3 + ["random"] * 2


def test_balance_takes_the_classes_in_turn() -> None:
    """While they last; then one class is left, and chance draws."""
    items = [Known(f"t{n}", verdicts=("no" if n < 10 else "yes",)) for n in range(100)]
    guess = {item.trace_id: item.verdicts[0] for item in items}
    drawn = put_in_order(items, "balance", seed=0).queue
    assert [guess[one.trace_id] for one in drawn[:20]].count("no") == 10
    assert {one.how for one in drawn[20:]} == {"random"}


def test_balance_counts_what_is_labelled_already() -> None:
    """After ten labels of yes the next ones are a no."""
    items = [Known(f"t{n}", verdicts=("no" if n < 9 else "yes",)) for n in range(30)]
    guess = {item.trace_id: item.verdicts[0] for item in items}
    order = ids(items, "balance", labelled={f"o{n}": "yes" for n in range(10)})
    assert [guess[i] for i in order][:4] == ["no"] * 4


def test_unlike_covers_all_kinds_before_it_repeats_one() -> None:
    """Of five kinds of text the first five are one each, and none is like what was labelled."""
    kinds = ["refund of an order", "weather in spring", "python list sort", "train to Bern",
             "cake with almonds"]  # fmt: skip
    items = [
        Known(f"{kind}{n}", text=f"{text} number {n}")
        for (kind, text), n in itertools.product(enumerate(kinds), range(8))
    ]
    assert {i[0] for i in ids(items, "unlike")[:5]} == set("01234")
    before = [Known("z", text=kinds[0]), Known("y", text=kinds[1])]
    assert {i[0] for i in ids(items, "unlike", before=before)[:3]} == set("234")


def test_a_rule_without_anything_to_go_by_is_said_so() -> None:
    """The order is then random."""
    items = [Known(f"t{n}") for n in range(5)]
    for order in ("disagreement", "balance", "unlike", "mix"):
        drawn = put_in_order(items, order, seed=4)
        assert [one.how for one in drawn.queue] == ["random"] * 5
        assert len(drawn.notes) == (3 if order == "mix" else 1)
        assert "it chooses none" in drawn.notes[0]


def test_wrong_arguments_are_told() -> None:
    """With what is allowed."""
    with pytest.raises(ArgumentError, match="'mix'"):
        put_in_order([], "best", seed=0)
    with pytest.raises(ArgumentError, match=r"\[0, 1\]"):
        put_in_order([], "mix", seed=0, random_share=1.5)


@pytest.mark.parametrize("order", [one for one in ORDERS if one != "random"])
@given(YES_NO, YES_NO)
def test_what_is_told_of_an_order_holds_no_verdict_and_no_label(
    order: str, verdicts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    """They are read before anything is labelled: whatever the values, the words are the same."""
    other = {"yes": "no", "no": "yes"}
    notes = []
    for name in (str, other.__getitem__):
        said = tuple(map(name, verdicts)), tuple(map(name, labels))
        items = [Known(f"t{n}", "", *said) for n in range(3)]
        notes.append(put_in_order(items, order, seed=0).notes)
    assert notes[0] == notes[1]
    assert not any(f"{value!r}" in note for note in notes[0] for value in other)


@pytest.mark.parametrize("order", ORDERS)
def test_each_has_an_order_of_their_own(order: str) -> None:
    """The same again for the same name, also among equals of a rule; shares of chance stay."""
    items = [Known(f"t{n}", verdicts=("yes", "no")) for n in range(20)]
    orders = [put_in_order(items, order, seed=0, whose=who) for who in ("", "ana", "ben", "ana")]
    assert orders[1] == orders[3]
    assert len({tuple(one.trace_id for one in made.queue) for made in orders}) == 3
