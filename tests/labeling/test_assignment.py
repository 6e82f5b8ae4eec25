"""Who labels what: laws that hold for any traces, annotators and seeds."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench
from workbench.errors import ArgumentError
from workbench.labeling.assignment import Assignment, assign
from workbench.vocabulary import folded

IDS = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)
NAMES = st.lists(
    st.text(min_size=1, max_size=6).filter(str.strip), unique_by=folded, min_size=1, max_size=6
)
SEEDS = st.integers(0, 5)


def who_has(assignment: Assignment) -> dict[str, set[str]]:
    """The annotators of each trace, found from the annotators' own lists."""
    mine = {who: set(assignment.of(who)) for who in assignment.annotators}
    return {i: {who for who in mine if i in mine[who]} for i in assignment.trace_ids}


@given(IDS, NAMES, SEEDS, st.data())
def test_every_trace_goes_to_exactly_so_many(
    ids: list[str], names: list[str], seed: int, data: st.DataObject
) -> None:
    each = data.draw(st.integers(1, len(names)))
    counts = {len(who) for who in who_has(assign(ids, names, each=each, seed=seed)).values()}
    assert counts <= {each}


@given(IDS, NAMES, SEEDS, st.floats(0, 1))
def test_a_share_goes_to_all_and_the_rest_to_one(
    ids: list[str], names: list[str], seed: int, share: float
) -> None:
    counts = {len(who) for who in who_has(assign(ids, names, share=share, seed=seed)).values()}
    assert counts <= {1, len(names)}


@given(IDS, NAMES)
def test_a_share_of_one_is_everything_by_all(ids: list[str], names: list[str]) -> None:
    whole = assign(ids, names, share=1)
    assert all(whole.of(who) == ids for who in names)


@given(IDS, IDS, NAMES, SEEDS, st.floats(0, 1))
def test_new_traces_move_no_other(
    ids: list[str], new: list[str], names: list[str], seed: int, share: float
) -> None:
    before = who_has(assign(ids, names, share=share, seed=seed))
    after = who_has(assign([*ids, *new], names, share=share, seed=seed))
    assert before == {i: after[i] for i in before}


@given(IDS, NAMES, SEEDS, st.data())
def test_a_new_annotator_moves_nothing_between_the_others(
    ids: list[str], names: list[str], seed: int, data: st.DataObject
) -> None:
    each = data.draw(st.integers(1, len(names)))
    before = who_has(assign(ids, names, each=each, seed=seed))
    after = who_has(assign(ids, [*names, "the new one"], each=each, seed=seed))
    for trace_id in before:
        gone, come = before[trace_id] - after[trace_id], after[trace_id] - before[trace_id]
        assert (gone, come) == (set(), set()) or (len(gone) == 1 and come == {"the new one"})


@given(IDS, NAMES, SEEDS)
def test_the_order_of_the_annotators_has_no_influence(
    ids: list[str], names: list[str], seed: int
) -> None:
    there, back = assign(ids, names, seed=seed), assign(ids, names[::-1], seed=seed)
    assert who_has(there) == who_has(back)


@given(IDS, NAMES, st.integers(1, 7))
def test_batches_cut_each_ones_traces_in_order(ids: list[str], names: list[str], size: int) -> None:
    parts = assign(ids, names, batch_size=size)
    for who in names:
        cut = [i for batch in range(parts.batches) for i in parts.of(who, batch=batch)]
        assert cut == parts.of(who)
    assert all(
        sum(map(b.__eq__, map(parts.batch_of, ids))) == size for b in range(parts.batches - 1)
    )


@given(IDS, IDS, NAMES, st.integers(1, 7))
def test_new_traces_change_no_batch_that_is_full(
    ids: list[str], new: list[str], names: list[str], size: int
) -> None:
    before = assign(ids, names, batch_size=size)
    after = assign([*ids, *new], names, batch_size=size)
    for batch in range(len(ids) // size):
        for who in names:
            assert before.of(who, batch=batch) == after.of(who, batch=batch)


@pytest.mark.parametrize(("each", "seed"), [(1, 0), (2, 0), (2, 1), (3, 7)])
def test_the_work_is_shared_evenly(each: int, seed: int) -> None:
    """Within four standard deviations of the mean, for each annotator and each two of them."""
    names = ["ana", "ben", "chloe", "dan", "eve"]
    ids = [f"tr-{number:032x}" for number in range(5000)]
    has = who_has(assign(ids, names, each=each, seed=seed))

    def near(count: int, chance: float) -> bool:
        deviation = math.sqrt(len(ids) * chance * (1 - chance))
        return abs(count - len(ids) * chance) < 4 * deviation

    assert all(near(sum(who in has[i] for i in ids), each / 5) for who in names)
    together = each * (each - 1) / 20
    for two in combinations(names, 2):
        count = sum(set(two) <= has[i] for i in ids)
        assert count == 0 if each == 1 else near(count, together)


def test_the_share_by_all_is_about_as_large_as_asked_for() -> None:
    ids = [f"tr-{number}" for number in range(5000)]
    has = who_has(assign(ids, ["ana", "ben", "chloe"], share=0.2))
    assert 0.17 < sum(len(who) == 3 for who in has.values()) / len(ids) < 0.23


def test_another_seed_gives_other_shares() -> None:
    ids = [f"tr-{number}" for number in range(50)]
    first, second = (assign(ids, ["ana", "ben"], seed=seed).of("ana") for seed in (0, 1))
    assert first != second


def test_shares_never_change_between_releases() -> None:
    """Who has what is kept nowhere, so a change of the hash would hand everything out anew."""
    parts = assign([f"tr-{n}" for n in range(6)], ["ana", "ben", "chloe"], each=2, seed=3)
    assert {who: "".join(i[3:] for i in parts.of(who)) for who in parts.annotators} == {
        "ana": "1345",
        "ben": "025",
        "chloe": "01234",
    }


def test_a_name_is_one_persons_however_it_is_asked_for() -> None:
    """Case tells nobody apart."""
    assignment = assign(["a", "b", "c"], ["Ana", "ben"])
    assert assignment.of("ana") == assignment.of("Ana") != assignment.of("Ben")


def test_the_table_says_the_same_as_the_lists() -> None:
    parts = assign(["a", "b", "c"], ["ana", "ben", "chloe"], each=2, batch_size=2)
    assert {w: list(rows["trace_id"]) for w, rows in parts.table.groupby("annotator")} == {
        who: parts.of(who) for who in parts.annotators if parts.of(who)
    }
    assert list(parts.table.drop_duplicates("trace_id")["batch"]) == [0, 0, 1]
    assert parts.shares["traces"].sum() == 6
    assert parts.shares["with_others"].sum() == 6
    assert "3 annotators, 2 each, 2 batches" in repr(parts)


def test_traces_come_from_the_store(store: str) -> None:
    table = pd.DataFrame({"q": ["a", "b", "c"], "a": ["1", "2", "3"]})
    ids = workbench.import_traces(table, inputs=["q"], outputs="a").trace_ids
    assert set(workbench.assign(None, ["ana"]).of("ana")) == set(ids)


@pytest.mark.parametrize(
    ("annotators", "options", "said"),
    [
        ([], {}, "at least one"),
        ("ana", {}, "one text"),
        (["ana", " "], {}, "must be names"),
        (["ana", "Ana"], {}, "twice"),
        (["ana", "ben"], {"each": 3}, "from 1 to 2"),
        (["ana", "ben"], {"each": 0.5}, "each=0.5 must be a whole number"),
        (["ana"], {"share": 1.5}, r"in \[0, 1\]"),
        (["ana"], {"share": "half"}, r"in \[0, 1\]"),
        (["ana"], {"batch_size": 0}, "of 1 or more"),
        (["ana"], {"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
    ],
)
def test_what_makes_no_sense_is_said(annotators: list[str], options: dict, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        assign(["tr-1"], annotators, **options)


def test_numbers_may_be_of_numpy() -> None:
    """The same shares, whoever counts."""
    ids = [f"tr-{n}" for n in range(20)]
    given = assign(ids, ["ana", "ben"], each=np.int64(1), batch_size=np.int64(5), seed=np.int64(3))
    assert given.table.equals(assign(ids, ["ana", "ben"], batch_size=5, seed=3).table)


def test_who_or_what_there_is_not_is_said() -> None:
    parts = assign(["tr-1", "tr-2"], ["ana"], batch_size=1)
    with pytest.raises(ArgumentError, match="annotator='ben'"):
        parts.of("ben")
    with pytest.raises(ArgumentError, match="the queue has 2 batches"):
        parts.of("ana", batch=2)
