"""Consensus: one label of several annotators, the rule for ties, and what has no vote."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.errors import PairingError
from workbench.pairing.consensus import read_label
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import Label

YES_NO = Scale.of(["no", "yes"])


def label(who: str, value: Any, at: int = 0, why: str = "", seen: bool = False) -> Label:
    return Label("tr-1", who, value, why or None, at, seen)


def consensus(*labels: Label, rule: str = "majority", ties: str = "drop") -> Any:
    read = read_label(labels, YES_NO, rule, ties)
    return read.fault or read.value


THREE = (label("ana", "yes", 3), label("bo", "no", 1), label("cy", "no", 2))
TIED = (label("ana", "yes", 3), label("bo", "no", 1))


def test_majority() -> None:
    """More than any other; abstentions do not vote."""
    assert consensus(*THREE) == "no"
    assert consensus(*TIED, label("cy", "N/A")) == "annotators tie"
    assert consensus(label("ana", "yes"), label("bo", "n/a")) == "yes"
    assert consensus(label("ana", "N/A"), label("bo", "unsure")) == "annotators abstained"
    assert consensus() == "no label"


def test_ties() -> None:
    """Dropped, settled by the latest of those who tie, or an error that names the trace."""
    assert consensus(*TIED) == "annotators tie"
    assert consensus(*TIED, ties="latest") == "yes"
    with pytest.raises(PairingError, match=r"tie on trace tr-1 between.*ties='latest'"):
        consensus(*TIED, ties="error")
    scale = Scale.of([1, 2, 3])
    labels = [label("a", 1, 1), label("b", 1, 2), label("c", 2, 3), label("d", 2, 4)]
    assert read_label([*labels, label("e", 3, 9)], scale, "majority", "latest").value == 2


def test_unanimous_latest_and_a_named_annotator() -> None:
    """Each rule by itself."""
    assert consensus(*THREE, rule="unanimous") == "annotators are not unanimous"
    assert consensus(*THREE[1:], rule="unanimous") == "no"
    assert consensus(*THREE, rule="latest") == "yes"
    assert consensus(*THREE, rule="bo") == "no"
    assert consensus(*THREE, rule="dee") == "no label by dee"
    assert consensus(*TIED, label("cy", "N/A"), rule="cy") == "annotators abstained"
    assert consensus(*TIED, label("cy", "7"), rule="cy").startswith("label outside the scale: '7'")
    assert consensus(label("cy", "7"), rule="dee") == "no label by dee"


def test_votes_of_all_are_kept() -> None:
    """Also of those that the rule passes over."""
    read = read_label((*THREE, label("dee", "N/A")), YES_NO, "ana", "drop")
    assert read.votes == {"ana": "yes", "bo": "no", "cy": "no", "dee": ABSTAIN}
    assert read.value == "yes"


def test_rationales_and_blindness_are_those_of_the_winners() -> None:
    """Of those who voted for the consensus, each text once."""
    labels = [
        label("ana", "yes", 1, "clear"),
        label("bo", "yes", 2, " clear "),
        label("cy", "yes", 3, "cited", seen=True),
        label("dee", "no", 4, "not so"),
    ]
    read = read_label(labels, YES_NO, "majority", "drop")
    assert (read.rationale, read.blind) == ("clear / cited", False)
    assert read_label([*labels[:2], labels[3]], YES_NO, "majority", "drop").blind
