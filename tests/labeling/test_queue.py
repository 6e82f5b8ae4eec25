"""In which order items come, and that how each was chosen is recorded truly."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from labeling_helpers import SCALE, View, begin, delete, imported, in_memory, info_of, label
from mlflow.entities import AssessmentSource, Feedback

from workbench import assign, make_judge
from workbench.errors import ArgumentError
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.queue import LabelQueue, Workload, read_workload
from workbench.labeling.sessions import LabelSession
from workbench.labeling.writer import TraceStore
from workbench.metrics.prevalence import sampled_prevalence


def drawn(view: View) -> list[tuple[str, float | None, int, int]]:
    """How, probability, number and pool of each label, in the order of the draws."""
    table = view.session.labels.sort_values("draw")
    rows = table[["chosen", "probability", "draw", "pool"]].itertuples(index=False)
    return [(how, None if pd.isna(p) else round(p, 6), n, pool) for how, p, n, pool in rows]


def at_random(numbers: range, pool: int) -> list[tuple[str, float | None, int, int]]:
    return [("random", round(1 / (pool - n + 1), 6), n, pool) for n in numbers]


def queue_of(truth: dict[str, str], seed: int = 0, **more: Any) -> LabelQueue:
    """A queue without a store; people differ on what is a yes."""
    made = LabelQueue([LabelQuestion("quality", SCALE)], "ana", seed=seed, **more)
    infos = {}
    for trace_id, value in truth.items():
        info = infos[trace_id] = info_of(trace_id, f"text {trace_id}")
        info.assessments = [
            Feedback(name="quality", value=one, source=AssessmentSource(kind, who))
            for kind, who, one in [
                ("LLM_JUDGE", "m", value), ("HUMAN", "ben", value), ("HUMAN", "cy", "no")
            ]
        ]  # fmt: skip
    made.take_over(Workload(infos))
    return made


def test_traces_that_join_are_drawn_after_those_that_wait(store: str) -> None:
    """So that nothing moves; then all that were there have been drawn, and the pool is larger."""
    imported(6)
    view = begin()
    view.act(*(view.save(n, "yes") for n in range(3)))
    held = view.session.trace_ids
    imported(6, "new")
    view.session.refresh()
    assert view.session.trace_ids[:6] == held
    for n in range(3, 12):
        view.act(view.save(n, "no"))
    assert drawn(view) == at_random(range(1, 7), 6) + at_random(range(7, 13), 12)


def test_a_rule_goes_by_the_verdicts_on_its_own_question(store: str) -> None:
    """Also where the session was made for a judge of another one."""
    imported(4, yes=2, no=2)
    judge = make_judge("safe", "Rate {{ outputs }}.", feedback_value_type=bool)
    asks = [LabelQuestion("quality", SCALE)]
    session = LabelSession(judge, annotator="ana", questions=asks, order="balance")
    assert session.notes == []


def test_what_is_gone_to_by_hand_is_recorded_as_picked() -> None:
    """Someone who passes by more than one item may look for what it says."""
    view = in_memory(5)
    view.act(view.save(3, "yes"), view.save(0, "yes"), view.save(1, "no"))
    assert drawn(view) == [("picked", None, 1, 5), *at_random(range(2, 4), 5)]


@pytest.mark.parametrize("skipped", [True, False])
def test_an_item_that_is_passed_by_or_skipped_keeps_its_draw(skipped: bool) -> None:
    """Whenever it is rated, and what comes after it keeps its own."""
    view = in_memory(5)
    if skipped:
        view.act(view.action("skip", 0))
    view.act(*(view.save(n, "yes") for n in range(1, 5)))
    assert drawn(view) == at_random(range(2, 6), 5)
    view.act(view.save(0, "yes"))
    assert drawn(view) == at_random(range(1, 6), 5)


@pytest.mark.parametrize("order", ["random", "disagreement"])
def test_estimates_are_unbiased_whatever_is_passed_by_for_what_it_says(order: str) -> None:
    """Someone passes by what looks like a yes, and comes back to it in the end; a rule prefers
    what is a yes, so that the plain share of the labels is far off."""
    truth = {f"t{n}": "yes" if n < 5 else "no" for n in range(16)}
    estimates = []
    for seed in range(300):
        queue = queue_of(truth, seed, order=order, random_share=0.6)
        passed: list[str] = []
        rated: list[str] = []
        before = ""
        for trace_id in [*queue.items][:9]:
            if truth[trace_id] == "yes" and before not in passed:
                passed.append(trace_id)
            else:
                rated.append(trace_id)
            before = trace_id
        rows: list[tuple[Any, ...]] = []
        for trace_id in [*rated, *passed]:
            draw = queue.record_draw(trace_id)
            rows.append((trace_id, draw.number, draw.pool, draw.probability, truth[trace_id]))
        columns = ["trace_id", "draw", "pool", "probability", "value"]
        estimates.append(sampled_prevalence(pd.DataFrame(rows, columns=columns), "yes").value)
    error = statistics.stdev(estimates) / math.sqrt(len(estimates))
    assert error < 0.02
    assert abs(statistics.fmean(estimates) - 5 / 16) < 4 * error


def test_a_label_given_elsewhere_is_not_among_those_that_are_left(store: str) -> None:
    imported(5)
    view = begin()
    label(view.session.trace_ids[3], "ana")
    view.session.reread()
    view.act(view.save(0, "yes"), view.save(1, "yes"), view.save(2, "no"))
    assert drawn(view)[:3] == at_random(range(2, 5), 5)
    assert view.session.labels["draw"].isna().sum() == 1


def test_the_random_share_is_kept_over_sittings(store: str) -> None:
    """Of six times three, three tenths are random, and every rule has its turn."""
    imported(40, yes=20, no=20)
    for _ in range(6):
        view = begin(order="mix")
        at = view.session.position
        view.act(*(view.save(at + n, "yes") for n in range(3)))
    hows = Counter(how for how, *_ in drawn(begin()))
    assert hows["random"] == 5
    assert set(hows) == {"random", "balance", "unlike"}


def test_batches_come_one_after_the_other(store: str) -> None:
    """And each is drawn from by itself."""
    ids = imported(8)
    parts = assign(ids, ["ana"], batch_size=4)
    view = begin(assign=parts)
    assert sorted(view.session.trace_ids[:4]) == sorted(parts.of("ana", batch=0))
    view.act(*(view.save(n, "yes") for n in range(8)))
    assert drawn(view) == at_random(range(1, 5), 4) + at_random(range(5, 9), 8)


def test_a_label_in_a_long_queue_costs_a_few_looks_at_each_item() -> None:
    """Calls are counted and not seconds: the next item has 50 ms, with 10,000 in the queue."""
    view = in_memory(10_000)
    for position in range(3):
        calls = Counter[str]()
        sys.setprofile(lambda frame, event, given, calls=calls: calls.update([event]))
        try:
            view.session.receive({"type": "act", "actions": [view.save(position, "yes")]})
            view.session.state()
        finally:
            sys.setprofile(None)
        assert calls["call"] < 120_000
        assert view.session.flush(20)
        assert view.session.state()["position"] == position + 1


# -- what there is to label -----------------------------------------------------------------


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
    here = TraceStore()
    shares = [
        read_workload(here, who, None, parts, missing_ok=False).infos for who in ("ana", "ben")
    ]
    assert [list(share) for share in shares] == [parts.of("ana"), parts.of("ben")]
    assert (
        len(read_workload(here, "ana", ids, assign(ids[:5], ["ana"]), missing_ok=False).infos) == 20
    )


def test_a_trace_that_was_deleted_leaves_the_rest_of_an_assignment(store: str) -> None:
    ids = imported(3)
    delete(ids[0])
    parts = assign(ids, ["ana"])
    found = read_workload(TraceStore(), "ana", None, parts, missing_ok=False)
    assert list(found.infos) == ids[1:]
