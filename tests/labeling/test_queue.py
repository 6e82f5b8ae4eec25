"""How an item was chosen is recorded truly: when traces join, after a restart, in batches."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from labeling_helpers import SCALE, View, begin, imported, in_memory, info_of, label
from mlflow.entities import AssessmentSource, Feedback

from workbench import assign
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.queue import LabelQueue
from workbench.metrics.prevalence import sampled_prevalence


def drawn(view: View) -> list[tuple[str, float | None, int, int]]:
    """How, probability, number and pool of each label, in the order of the draws."""
    table = view.session.labels.sort_values("draw")
    rows = table[["chosen", "probability", "draw", "pool"]].itertuples(index=False)
    return [(how, None if pd.isna(p) else round(p, 6), n, pool) for how, p, n, pool in rows]


def chance(left: int) -> float:
    return round(1 / left, 6)


def rated(item: dict[str, Any], key: str, value: str = "yes", **more: Any) -> dict[str, Any]:
    answers = {"quality": {"value": value, "abstain": False}}
    made = {"id": key, "kind": "save", "trace_id": item["trace_id"], "answers": answers}
    return {**made, "rationale": {}, "chosen": item["chosen"], **more}


@pytest.mark.parametrize("shown", [True, False])
def test_traces_that_join_are_drawn_with_those_that_wait(store: str, shown: bool) -> None:
    """All have the same chance from then on; what the browser holds already was drawn before."""
    imported(6)
    view = begin()
    if shown:
        view.send(type="hello", pending=[])
    view.act(*(view.save(n, "yes") for n in range(3)))
    imported(6, "new")
    view.session.refresh()
    for n in range(3, 12):
        view.act(view.save(n, "no"))
    first = [("random", chance(6 - n), n + 1, 6) for n in range(6 if shown else 3)]
    rest = [("random", chance(12 - n), n + 1, 12) for n in range(len(first), 12)]
    assert drawn(view) == first + rest


def test_an_item_tells_how_it_is_drawn() -> None:
    """If those before it are drawn first; what was drawn tells how it was."""
    view = in_memory(4)
    view.act(view.save(0, "yes"))
    told = [item["chosen"] for item in view.items()]
    assert told == [
        {"how": "random", "probability": 1 / left, "number": 5 - left, "pool": 4}
        for left in (4, 3, 2, 1)
    ]


@pytest.mark.parametrize("by", ["hello", "act"])
def test_a_rating_from_before_a_restart_is_recorded_as_it_was_chosen(store: str, by: str) -> None:
    """Whatever the order is that the new kernel makes of what is left."""
    imported(14, yes=9, no=5)
    differed = 0
    for seed in range(4):
        who = {"order": "mix", "seed": seed, "random_share": 0.5}
        view = begin(annotator=f"ana{seed}", **who)
        items = view.items()
        actions = [rated(item, f"s{seed}-{n}") for n, item in enumerate(items[:9])]
        view.act(*actions[:3])
        again = begin(annotator=f"ana{seed}", **who)
        differed += again.session.trace_ids[3:9] != [item["trace_id"] for item in items[3:9]]
        if by == "hello":
            again.send(type="hello", pending=actions[3:])
            assert again.session.flush(20)
        else:
            again.act(*actions[3:])
        assert drawn(again) == [
            (c["how"], c["probability"] and round(c["probability"], 6), c["number"], c["pool"])
            for c in (item["chosen"] for item in items[:9])
        ]
    assert differed


def test_what_is_gone_to_by_hand_is_recorded_as_picked() -> None:
    """Whatever is told with it; what comes after it has the chance that is left."""
    view = in_memory(5)
    items = view.items()
    view.act(rated(items[3], "a"), rated(items[0], "b"), rated(items[1], "c"))
    assert drawn(view) == [
        ("picked", None, 1, 5), ("random", chance(4), 2, 5), ("random", chance(3), 3, 5)
    ]  # fmt: skip


def test_an_item_that_is_passed_by_is_drawn_like_one_that_is_skipped() -> None:
    """What comes after it is drawn as it was told; it keeps its own draw, whenever it is rated."""
    view = in_memory(8)
    items = view.items()
    for n in range(1, 8):
        view.act(rated(items[n], f"a{n}"))
    rest = [("random", chance(8 - n), n + 1, 8) for n in range(1, 8)]
    assert drawn(view) == rest
    assert view.session.position == 0
    view.act(rated(view.items()[0], "late"))
    assert drawn(view) == [("random", chance(8), 1, 8), *rest]


def test_after_a_jump_one_goes_on_in_the_order() -> None:
    """The jump alone has no probability: it may have been made for what the item says."""
    view = in_memory(8)
    items = view.items()
    for n in (4, 5, 7, 6, 0, 1):
        view.act(rated(items[n], f"a{n}"))
    # Of the four that were passed by two are rated later, with the draws that they had.
    assert drawn(view) == [
        ("picked", None, 1, 8),
        ("random", chance(7), 2, 8), ("random", chance(6), 3, 8),
        ("random", chance(3), 6, 8), ("random", chance(2), 7, 8), ("random", chance(1), 8, 8),
    ]  # fmt: skip


def test_estimates_are_unbiased_whatever_is_passed_by_for_what_it_says() -> None:
    """Someone passes by what looks like a yes, and comes back to it in the end."""
    truth = {f"t{n}": "yes" if n < 5 else "no" for n in range(12)}
    estimates, random_draws = [], 0
    for seed in range(300):
        queue = queue_of(len(truth), seed)
        passed: list[str] = []
        rows: list[tuple[Any, ...]] = []

        def rate(trace_id: str, to: Any = queue, rows: list[tuple[Any, ...]] = rows) -> None:
            draw = to.record_draw(trace_id, to.send_draw(trace_id))
            to.items[trace_id].status = "done"
            rows.append((trace_id, draw.number, draw.pool, draw.probability, truth[trace_id]))

        before = ""
        for trace_id in list(queue.queue[:9]):
            if truth[trace_id] == "yes" and before not in passed:
                passed.append(trace_id)
            else:
                rate(trace_id)
            before = trace_id
        for trace_id in passed:
            rate(trace_id)
        columns = ["trace_id", "draw", "pool", "probability", "value"]
        estimate = sampled_prevalence(pd.DataFrame(rows, columns=columns), "yes")
        random_draws += estimate.random
        estimates.append(estimate.value)
    assert random_draws > 8 * 300
    error = statistics.stdev(estimates) / math.sqrt(len(estimates))
    assert error < 0.01
    assert abs(statistics.fmean(estimates) - 5 / 12) < 4 * error


def queue_of(count: int, seed: int = 0, **more: Any) -> LabelQueue:
    """A queue of traces that nobody has labelled, without a store."""
    made = LabelQueue([LabelQuestion("quality", SCALE)], "ana", seed=seed, **more)
    made.add({i: info_of(i) for i in (f"t{n}" for n in range(count))}, {})
    plan = made.plan(0)
    made.follow(made.order_of(plan), plan)
    return made


def test_a_label_given_elsewhere_is_counted_before_those_ahead_of_it(store: str) -> None:
    """What is drawn then has the chance that is left, as if it had been drawn first."""
    imported(5)
    view = begin()
    label(view.session.trace_ids[3], "ana")
    view.session.reread()
    view.act(view.save(0, "yes"), view.save(1, "yes"), view.save(2, "no"))
    table = view.session.labels
    assert pd.isna(table.set_index("trace_id").loc[view.session.trace_ids[3], "draw"])
    numbered = table.dropna(subset=["probability"]).sort_values("draw")
    assert numbered["draw"].tolist() == [2, 3, 4]
    assert numbered["probability"].tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2])


def test_the_random_share_is_kept_over_sittings(store: str) -> None:
    """Nobody labels hundreds at once: of ten times three, three tenths are random, and every
    rule has its turn."""
    imported(40, yes=20, no=20)
    for _ in range(10):
        view = begin(order="mix")
        at = view.session.position
        view.act(*(view.save(at + n, "yes") for n in range(3)))
    hows = Counter(how for how, *_ in drawn(begin()))
    assert hows["random"] == 9
    assert set(hows) == {"random", "balance", "unlike"}
    assert min(hows.values()) >= 9


def test_the_order_ahead_follows_what_is_labelled(store: str) -> None:
    """A judge that says "no" too often is found out: more is taken from what it says no of. What
    the view holds stays where it is."""
    ids = imported(400, no=80, yes=320)
    truth = {trace_id: "no" if n % 4 == 0 and n < 80 else "yes" for n, trace_id in enumerate(ids)}
    view = begin(order="balance")
    planned = sum(truth[i] == "no" for i in view.session.trace_ids[:100])
    for at in range(100):
        if at % 20 == 0:
            held = [item["trace_id"] for item in view.items(at, 30)]
            view.session.reread()
            assert view.session.trace_ids[at : at + 30] == held
        view.act(view.save(at, truth[view.session.trace_ids[at]]))
    found = sum(value == "no" for value in view.session.labels["value"])
    assert planned <= 10
    assert found >= planned + 4


def test_batches_come_one_after_the_other(store: str) -> None:
    """And each is drawn from by itself."""
    ids = imported(8)
    parts = assign(ids, ["ana"], batch_size=4)
    view = begin(assign=parts)
    order = view.session.trace_ids
    assert sorted(order[:4]) == sorted(parts.of("ana", batch=0))
    view.act(*(view.save(n, "yes") for n in range(8)))
    pools = [4] * 4 + [8] * 4
    left = [4, 3, 2, 1, 4, 3, 2, 1]
    assert drawn(view) == [
        ("random", chance(left[n]), n + 1, pools[n]) for n in range(8)
    ]  # fmt: skip


def large_queue(order: str) -> LabelQueue:
    """Ten thousand traces with texts and verdicts."""
    queue = LabelQueue([LabelQuestion("quality", SCALE)], "ana", order=order)
    infos = {}
    for n in range(10_000):
        info = info_of(f"t{n}", f"word{n * 7 % 97} word{n * 3 % 89}")
        source = AssessmentSource("LLM_JUDGE", "m")
        verdict = Feedback(name="quality", value="no" if n % 9 == 0 else "yes", source=source)
        info.assessments = [verdict]
        infos[info.trace_id] = info
    queue.add(infos, {})
    queue.consider(infos)
    plan = queue.plan(0)
    queue.follow(queue.order_of(plan), plan)
    return queue


def test_a_queue_of_ten_thousand_is_quick() -> None:
    """What is computed for each label takes a small part of the 50 ms that the next item has;
    making the order anew, in the background, well under a second."""
    queue = large_queue("mix")
    times: dict[str, list[float]] = {"state": [], "plan": []}
    for n in range(5):
        began = time.process_time()
        queue.record_draw(queue.queue[n], queue.send_draw(queue.queue[n]))
        queue.items[queue.queue[n]].status = "done"
        assert queue.position == n + 1
        assert queue.progress["total"] == 10_000
        times["state"].append(time.process_time() - began)
        began = time.process_time()
        plan = queue.plan(60)
        queue.follow(queue.order_of(plan), plan)
        times["plan"].append(time.process_time() - began)
    assert min(times["state"]) < 0.03, times
    assert min(times["plan"]) < 1, times
