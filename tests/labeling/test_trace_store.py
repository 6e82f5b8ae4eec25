"""What there is to label for one annotator."""

from __future__ import annotations

import pytest
from labeling_helpers import SCALE, delete, imported

from workbench import assign
from workbench.errors import ArgumentError
from workbench.labeling.label_session import LabelSession
from workbench.labeling.trace_store import read_workload


def test_a_name_that_is_not_in_the_assignment_is_said(store: str) -> None:
    """With those that are: a queue without anything in it would look as if all was done."""
    parts = assign(imported(3), ["Ana", "ben"])
    with pytest.raises(ArgumentError, match=r"annotator='anna' is not known.*'Ana', 'ben'"):
        LabelSession("quality", annotator="anna", scale=SCALE, assign=parts)
    assert set(LabelSession("quality", annotator="ana", scale=SCALE, assign=parts).trace_ids) == {
        *parts.of("Ana")
    }


def test_an_assignment_of_some_traces_is_all_there_is_to_do(store: str) -> None:
    """Of the rest of the experiment nobody has anything, unless the traces are named."""
    ids = imported(20)
    parts = assign(ids[:5], ["ana", "ben"])
    shares = [read_workload(who, None, parts, None).infos for who in ("ana", "ben")]
    assert [list(share) for share in shares] == [parts.of("ana"), parts.of("ben")]
    assert len(read_workload("ana", ids, assign(ids[:5], ["ana"]), None).infos) == 20


def test_a_trace_that_was_deleted_leaves_the_rest_of_an_assignment(store: str) -> None:
    ids = imported(3)
    delete(ids[0])
    assert list(read_workload("ana", None, assign(ids, ["ana"]), None).infos) == ids[1:]
