"""Several writes in one transaction: together or not at all, and nothing else is touched."""

from __future__ import annotations

import threading

import mlflow
import pandas as pd
import pytest
from mlflow.entities import AssessmentSource, Feedback
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from workbench import import_traces
from workbench.errors import ArgumentError, StoreError
from workbench.store.assessments import (
    AssessmentWriter,
    is_possible,
    log_assessments,
    one_transaction,
)


def rating(trace_id: str | None, value: str = "good") -> Feedback:
    source = AssessmentSource("HUMAN", "ana")
    return Feedback(name="quality", value=value, trace_id=trace_id, source=source)


@pytest.fixture
def ids(store: str) -> list[str]:
    table = pd.DataFrame({"q": [f"q{n}" for n in range(120)], "a": ["a"] * 120})
    return import_traces(table, inputs="q", outputs="a", progress=False).trace_ids


def count() -> int:
    found = mlflow.search_traces(return_type="list", include_spans=False, max_results=500)
    return sum(len(trace.info.assessments) for trace in found)


def test_all_are_written_together(ids: list[str]) -> None:
    """Seen by others at the end of the block, and not before."""
    client = TracingClient()
    assert is_possible(client.store)
    seen: list[int] = []
    with one_transaction(client.store):
        for trace_id in ids[:5]:
            client.log_assessment(trace_id, rating(trace_id))
        other = threading.Thread(target=lambda: seen.append(count()))
        other.start()
        other.join()
    assert (seen, count()) == ([0], 5)


def test_what_raises_writes_nothing(ids: list[str]) -> None:
    """Also when it is Ctrl-C; the next write is by itself again."""
    client = TracingClient()

    def write(error: type[BaseException]) -> None:
        with one_transaction(client.store):
            client.log_assessment(ids[0], rating(ids[0]))
            raise error("stop")

    for error in (ValueError, KeyboardInterrupt, MlflowException):
        # MLflow makes its own exception of any other; Ctrl-C stays what it is.
        with pytest.raises((error, MlflowException), match="stop"):
            write(error)
    assert count() == 0
    client.log_assessment(ids[0], rating(ids[0]))
    assert count() == 1


def test_a_store_that_is_no_database_is_left_alone() -> None:
    """A tracking server has no session to share."""
    assert not is_possible(object())


def test_many_are_written_and_counted(ids: list[str]) -> None:
    """More than a batch holds, and a second time none of them."""
    ratings = [rating(i) for i in ids]
    assert log_assessments(ratings, progress=False) == 120
    assert log_assessments(ratings, progress=False) == 0
    assert count() == 120


def test_one_that_cannot_be_written_does_not_take_others_along(ids: list[str]) -> None:
    """Those before it in its batch are written, and the error names it."""
    ratings = [*map(rating, ids[:3]), rating("tr-gone"), *map(rating, ids[3:6])]
    with pytest.raises(StoreError, match="tr-gone"):
        log_assessments(ratings, progress=False)
    assert count() == 3
    assert log_assessments([r for r in ratings if r.trace_id != "tr-gone"]) == 3


def test_one_without_a_trace_is_an_error(ids: list[str]) -> None:
    """MLflow would drop it without a word."""
    with pytest.raises(ArgumentError, match="has no trace_id"):
        log_assessments([rating(ids[0]), rating(None)], progress=False)


def test_the_writer_loses_none_of_many(ids: list[str]) -> None:
    """Batches of whatever has come, from several threads."""
    with AssessmentWriter() as writer:
        threads = [
            threading.Thread(target=lambda k=k: [writer.put(rating(i)) for i in ids[k::4]])  # type: ignore[misc]
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (writer.written, count()) == (120, 120)
