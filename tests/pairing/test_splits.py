"""Splits: whole, disjoint by trace and group, stratified, stable for a seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pairs import make_pairs

import workbench
from workbench import import_traces, log_labels, log_verdicts, pair
from workbench.errors import ArgumentError
from workbench.pairing.pairs import Pairs, Split, stratified, stratified_order


def many(count: int = 60, share: float = 0.3) -> Pairs:
    human = ["yes" if n < count * share else "no" for n in range(count)]
    return make_pairs(human, ["yes"] * count)


def parts(split: Split) -> dict[str, list[str]]:
    found: dict[str, list[str]] = split.to_dict()["traces"]
    return found


def test_a_split_is_whole_and_disjoint() -> None:
    """Every pair is in one part, in about the shares asked for, with labels in proportion."""
    split = many().split(test_size=0.4, dev_size=0.5)
    every = [i for ids in parts(split).values() for i in ids]
    assert (sorted(every), len(set(every))) == (many().trace_ids, 60)
    sizes = [len(split.train), len(split.dev), len(split.test)]
    assert sizes == pytest.approx([18, 18, 24], abs=1)
    for part in (split.train, split.dev, split.test):
        assert (part.table["human"] == "yes").mean() == pytest.approx(0.3, abs=0.05)
    assert repr(split) == "<Split train {}, dev {}, test {}>".format(*sizes)


def test_a_split_is_stable_for_its_seed() -> None:
    """The same in every process; 0 is a seed like any other."""
    assert many().split(seed=0).digest == many().split(seed=0).digest
    assert parts(many().split()) == parts(many().split(seed=0))
    assert len({many().split(seed=seed).digest for seed in range(5)}) == 5


def test_a_labelled_copy_that_makes_no_pair_changes_no_split() -> None:
    """Its id differs from store to store."""
    pairs = many()
    content = {i: (i, "") for i in pairs.trace_ids}
    group = {i: f"user {n % 12}" for n, i in enumerate(pairs.trace_ids)}
    alone = parts(replace(pairs, content=content).split(groups=group))
    for copy in ("a", "tr-03", "z"):
        votes = {**pairs.all_votes, copy: {"ana": "yes", "ben": "no"}}
        same = {**content, copy: content[pairs.trace_ids[0]]}
        beside = replace(pairs, content=same, all_votes=votes)
        assert parts(beside.split(groups=group)) == alone


def test_without_a_dev_part() -> None:
    """It is then empty."""
    split = many().split(dev_size=0)
    assert (len(split.dev), len(split.train) + len(split.test)) == (0, 60)


def test_groups_stay_together() -> None:
    """By a mapping, and by a column."""
    group = {i: f"g{n % 12}" for n, i in enumerate(many().trace_ids)}
    split = many().split(groups=group)
    where = [{group[i] for i in ids} for ids in parts(split).values()]
    assert sum(map(len, where)) == len(set.union(*where)) == 12
    assert split.groups == "mapping"
    column = make_pairs(["yes"] * 6, ["yes"] * 6)
    column.table["judge"] = ["a", "a", "b", "b", "c", "c"]
    ids = parts(column.split(groups="judge"))
    assert all(len(part) == 2 for part in ids.values())


def test_groups_by_an_input_and_by_a_tag(store: str) -> None:
    """Which is how rows that answer the same question are kept on one side."""
    table = pd.DataFrame(
        {
            "q": [f"question {n % 5}" for n in range(20)],
            "a": [f"answer {n}" for n in range(20)],
            "who": [f"w{n % 4}" for n in range(20)],
            "v": ["yes", "no"] * 10,
        }
    )
    made = import_traces(table, inputs="q", outputs="a", tags={"writer": "who"}, progress=False)
    table = table.assign(trace_id=made.trace_ids)
    log_labels(table, name="quality", annotator="ana", value="v", progress=False)
    log_verdicts(table, name="quality", source="m", value="v", progress=False)
    pairs = pair("quality")
    for groups, column in (("q", "q"), ("writer", "who")):
        of = dict(zip(table["trace_id"], table[column], strict=True))
        where = [{of[i] for i in ids} for ids in parts(pairs.split(groups=groups)).values()]
        assert sum(map(len, where)) == len(set.union(*where)) == len(set(of.values()))
    with pytest.raises(ArgumentError, match=r"groups='question'.*inputs exist: 'q', 'writer'"):
        pairs.split(groups="question")


def test_a_trace_without_the_tag_is_a_group_of_its_own(store: str) -> None:
    """Where most have it; where most lack it, the tag is another one than was meant."""
    frame = pd.DataFrame({"q": [f"q{i}" for i in range(20)], "o": "x", "v": "yes", "r": "yes"})
    frame["r"] = ["yes", "no"] * 10
    frame["topic"] = [None, None, *(i // 3 for i in range(18))]
    frame["rare"] = [1, *[None] * 19]
    imported = workbench.import_traces(frame, inputs="q", outputs="o", tags=["topic", "rare"])
    frame["trace_id"] = imported.trace_ids
    workbench.log_verdicts(frame, name="l", source="m", value="v")
    workbench.log_labels(frame, name="l", annotator="ana", value="r")
    pairs = workbench.pair("l")
    assert len(set(pairs.grouped("topic").group_of.values())) == 8
    with pytest.raises(ArgumentError, match="names no group for 19 of 20"):
        pairs.split(groups="rare")


def test_long_texts_that_are_equal_stay_on_one_side(store: str) -> None:
    """MLflow keeps the beginning of a text beside the trace, which does not tell."""
    table = pd.DataFrame(
        {
            "q": [f"question {k % 8 // 2}" for k in range(40)],
            "a": ["word " * 400 + str(k % 8) for k in range(40)],
            "r": ["yes", "no"] * 20,
        }
    )
    made = import_traces(
        table, inputs="q", outputs="a", labels={"ana": "r"}, label_name="good", progress=False
    )
    log_verdicts(
        table.assign(trace_id=made.trace_ids), name="good", source="m", value="r", progress=False
    )
    pairs = pair("good")
    assert len(set(pairs.clusters_of(pairs.trace_ids))) == 8
    split = pairs.split(seed=1)
    of = dict(zip(made.trace_ids, table["a"], strict=True))
    parts = [{of[i] for i in part.trace_ids} for part in (split.train, split.dev, split.test)]
    assert sum(map(len, parts)) == 8


def test_words_for_nothing_are_no_group() -> None:
    """In a column, a mapping or a tag; long numbers and versions that differ are two groups."""
    pairs = many(12)
    keys = ["nan", None, "NULL", "", math.nan, "a", " A", "1.1", "1.10", 2**60, 2**60 + 1, "1.0"]
    for groups in (dict(zip(pairs.trace_ids, keys, strict=True)), "key"):
        pairs.table["key"] = keys
        found = pairs.grouped(groups).group_of
        assert len(set(found.values())) == 11
        assert found["t005"] == found["t006"] == "a"
    keys[0] = " 1"
    grouped = pairs.grouped(dict(zip(pairs.trace_ids, keys, strict=True)))
    assert len(set(grouped.group_of.values())) == 10


def test_splits_that_cannot_be_made_are_errors() -> None:
    """Shares out of range, too few groups, a mapping with gaps, no pairs."""
    for shares in ({"test_size": 0}, {"test_size": 1}, {"dev_size": 1}, {"dev_size": -0.1}):
        with pytest.raises(ArgumentError, match="must lie in"):
            many().split(**shares)
    with pytest.raises(ArgumentError, match="60 pairs in 2 groups cannot be split into 3"):
        many().split(groups={i: i[-1] < "5" for i in many().trace_ids})
    with pytest.raises(ArgumentError, match="names no group for 59 of 60"):
        many().split(groups={"t000": 1})
    with pytest.raises(ArgumentError, match="0 pairs in 0 groups"):
        make_pairs([], []).split()


def test_what_divides_the_traces_is_a_name_or_a_mapping() -> None:
    column = pd.Series("a", index=many().trace_ids)  # as tables give it
    votes = pd.DataFrame({"ana": ["yes", "no"], "ben": ["yes", "yes"]})
    calls: list[Callable[[], object]] = [
        lambda: many().split(groups=column),  # type: ignore[arg-type]
        lambda: workbench.agreement(many(), by=column),  # type: ignore[call-overload]
        lambda: workbench.annotator_agreement(votes, groups=column),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match="is a Series"):
            call()


@settings(max_examples=60)
@given(
    labels=st.lists(st.sampled_from(["a", "b", "c"]), min_size=6, max_size=60),
    groups=st.integers(3, 60),
    test=st.floats(0.1, 0.8),
    dev=st.floats(0.0, 0.8),
    seed=st.integers(0, 1000),
)
def test_laws_of_splitting(
    labels: list[str], groups: int, test: float, dev: float, seed: int
) -> None:
    """Whole, disjoint by trace and group, no part empty, and independent of the order."""
    label_of = {f"t{n}": value for n, value in enumerate(labels)}
    group_of = {i: str(n % min(groups, len(labels))) for n, i in enumerate(label_of)}
    shares = {"test": test, "dev": (1 - test) * dev, "train": (1 - test) * (1 - dev)}
    shares = {part: share for part, share in shares.items() if share > 0}
    made = stratified(label_of, group_of, shares, seed)
    assert Counter(i for ids in made.values() for i in ids) == Counter(list(label_of))
    assert all(made[part] for part in shares)
    where = [{group_of[i] for i in ids} for ids in made.values()]
    assert sum(map(len, where)) == len(set(group_of.values()))
    turned = dict(reversed(label_of.items()))
    assert stratified(turned, group_of, shares, seed) == made


@given(
    labels=st.lists(st.sampled_from(["a", "b"]), min_size=20, max_size=200),
    test=st.floats(0.2, 0.6),
    seed=st.integers(0, 1000),
)
def test_single_traces_are_split_in_proportion(labels: list[str], test: float, seed: int) -> None:
    """Without groups each label's count in a part is within two of what its share asks for."""
    label_of = {f"t{n}": value for n, value in enumerate(labels)}
    shares = {"test": test, "train": 1 - test}
    made = stratified(label_of, {i: i for i in label_of}, shares, seed)
    for part, share in shares.items():
        assert abs(len(made[part]) - share * len(labels)) <= 2
        for value, count in Counter(labels).items():
            here = sum(label_of[i] == value for i in made[part])
            assert abs(here - share * count) <= 2


@given(
    st.dictionaries(st.text(min_size=1), st.sampled_from("abc"), min_size=1, max_size=40),
    st.integers(0, 9),
)
def test_every_beginning_of_the_order_is_stratified(label_of: dict[str, str], seed: int) -> None:
    """Each label is off its share by less than one item of each stratum; the order is a seed's."""
    order = stratified_order(label_of, seed)
    assert sorted(order) == sorted(label_of)
    assert order == stratified_order(dict(reversed(label_of.items())), seed)
    totals = Counter(label_of.values())
    for n in range(1, len(order) + 1):
        counts = Counter(label_of[item] for item in order[:n])
        for label, total in totals.items():
            assert abs(counts[label] - n * total / len(order)) <= len(totals)
