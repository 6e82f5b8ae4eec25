"""Disagreements in groups: by direction, and large ones by what their reasons share."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.judging.verdicts import Verdict
from workbench.scale import Scale
from workbench.simba.proposals import LARGE, MOST_PARTS, alike, by_direction
from workbench.simba.reflection import Case, Item
from workbench.store.traces import Example

SCALE = Scale.of(["poor", "fair", "good"])
COLOURS = Scale.of(["red", "green", "blue"])
TOPICS = ("too many broken promises", "wrong numbers and sums", "a rude tone of voice")


def case(i: int, label: str, verdict: str, why: str = "") -> Case:
    return Case(Item(Example(f"tr-{i}", {}, f"text {i}"), label, why), Verdict(f"tr-{i}", verdict))


def topical(n: int) -> list[Case]:
    """Cases of one direction on three topics in turn."""
    return [case(i, "poor", "good", f"{TOPICS[i % 3]} of case{i}") for i in range(n)]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([SCALE, COLOURS]))
def test_each_case_is_in_one_group_at_most(seed: int, n: int, scale: Scale) -> None:
    """By direction all cases once; in parts none twice, and never a group of one."""
    rng = random.Random(seed)
    wrong = [
        case(i, *rng.sample(list(scale.values), 2), rng.choice([*TOPICS, ""])) for i in range(n)
    ]
    directions = by_direction(wrong, scale)
    assert Counter(c.item.trace_id for part in directions.values() for c in part) == Counter(
        c.item.trace_id for c in wrong
    )
    groups = alike(wrong, scale, seed)
    counts = Counter(c.item.trace_id for _, part in groups for c in part)
    assert set(counts.values()) <= {1}
    assert all(len(part) > 1 for _, part in groups)
    assert (
        len({focus for focus, _ in groups}) == len(groups) <= MOST_PARTS * max(1, len(directions))
    )
    lonely = sum(len(part) for part in directions.values() if len(part) == 1)
    assert sum(counts.values()) == n - lonely
    assert groups == alike(wrong, scale, seed)


def test_too_high_and_too_low_are_apart() -> None:
    """On scales with an order it counts which way the judge errs, else what people say."""
    ordered = by_direction([case(0, "poor", "fair"), case(1, "good", "fair")], SCALE)
    assert {k: [c.item.trace_id for c in v] for k, v in ordered.items()} == {
        "the judge rates too high": ["tr-0"],
        "the judge rates too low": ["tr-1"],
    }
    assert set(by_direction([case(0, "red", "blue")], COLOURS)) == {"people say red"}


def test_large_groups_are_parted_by_their_reasons() -> None:
    """Reasons on different topics come apart: each topic is whole in one part."""
    groups = alike(topical(8 * 3), SCALE, 0)
    assert 2 <= len(groups) <= MOST_PARTS
    topics = [{int(c.item.trace_id[3:]) % 3 for c in part} for _, part in groups]
    assert sorted(topic for some in topics for topic in some) == [0, 1, 2]


def test_small_or_uniform_groups_stay_whole() -> None:
    """Under the size for parts, or where all reasons are the same, there is one group."""
    assert len(alike(topical(LARGE - 1), SCALE, 0)) == 1
    assert len(alike([case(i, "poor", "good", "the same") for i in range(40)], SCALE, 0)) == 1


def test_a_negative_seed_is_a_seed() -> None:
    """Any int will do."""
    assert alike(topical(24), SCALE, -7) == alike(topical(24), SCALE, -7)
