"""How an item was chosen is recorded truly: when traces join, after a restart, in batches."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from mlflow.entities import TraceInfo, TraceLocation, TraceState
from test_labelling import SCALE, View

from workbench import assign, import_traces, log_verdicts
from workbench.errors import ArgumentError
from workbench.labeling.ordering import Draw, Known
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.queue import Agenda
from workbench.labeling.session import LabelSession
from workbench.metrics.prevalence import sampled_prevalence


def imported(count: int, name: str = "question", **verdicts: int) -> list[str]:
    """So many traces; with ``yes=3, no=2`` verdicts on them in this order."""
    table = pd.DataFrame({"q": [f"{name} {n} word{n % 5}" for n in range(count)], "a": "x"})
    made = import_traces(table, inputs="q", outputs="a", progress=False).trace_ids
    said = [value for value, times in verdicts.items() for _ in range(times)]
    if said:
        table = pd.DataFrame({"trace_id": made[: len(said)], "v": said})
        log_verdicts(table, name="quality", source="m", value="v", progress=False)
    return list(made)


def begin(**more: Any) -> View:
    return View(LabelSession("quality", annotator="ana", scale=SCALE, **more))


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


def test_an_item_tells_how_it_is_drawn(store: str) -> None:
    """If those before it are drawn first; what was drawn tells how it was."""
    imported(4)
    view = begin()
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
        view = View(LabelSession("quality", annotator=f"ana{seed}", scale=SCALE, **who))
        items = view.items()
        actions = [rated(item, f"s{seed}-{n}") for n, item in enumerate(items[:9])]
        view.act(*actions[:3])
        again = View(LabelSession("quality", annotator=f"ana{seed}", scale=SCALE, **who))
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


def test_what_is_gone_to_by_hand_is_recorded_as_picked(store: str) -> None:
    """Whatever is told with it; what comes after it has the chance that is left."""
    imported(5)
    view = begin()
    items = view.items()
    view.act(rated(items[3], "a"), rated(items[0], "b"), rated(items[1], "c"))
    assert drawn(view) == [
        ("picked", None, 1, 5), ("random", chance(4), 2, 5), ("random", chance(3), 3, 5)
    ]  # fmt: skip


def test_an_item_that_is_passed_by_is_drawn_like_one_that_is_skipped(store: str) -> None:
    """What comes after it is drawn as it was told; it keeps its own draw, whenever it is rated."""
    imported(8)
    view = begin()
    items = view.items()
    for n in range(1, 8):
        view.act(rated(items[n], f"a{n}"))
    rest = [("random", chance(8 - n), n + 1, 8) for n in range(1, 8)]
    assert drawn(view) == rest
    assert view.session.position == 0
    view.act(rated(view.items()[0], "late"))
    assert drawn(view) == [("random", chance(8), 1, 8), *rest]


def test_after_a_jump_one_goes_on_in_the_order(store: str) -> None:
    """The jump alone has no probability: it may have been made for what the item says."""
    imported(8)
    view = begin()
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
        agenda = agenda_of(len(truth), seed)
        passed: list[str] = []
        rows: list[tuple[Any, ...]] = []

        def rate(trace_id: str, to: Any = agenda, rows: list[tuple[Any, ...]] = rows) -> None:
            item = to.items[trace_id]
            item.draw = draw = to.draw(trace_id, to.tell([to.place[trace_id]])[trace_id])
            item.mark = "done"
            rows.append((trace_id, draw.number, draw.pool, draw.probability, truth[trace_id]))

        before = ""
        for trace_id in agenda.queue[:9]:
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


def agenda_of(count: int, seed: int) -> Agenda:
    """A queue of traces that nobody has labelled, without a store."""
    where = TraceLocation.from_experiment_id("0")
    infos = {
        i: TraceInfo(i, where, request_time=0, state=TraceState.OK)
        for i in (f"t{n}" for n in range(count))
    }
    how = {"order": "random", "seed": seed, "random_share": None, "judge": None}
    made = Agenda([LabelQuestion("quality", SCALE)], "ana", **how)  # type: ignore[arg-type]
    made.add(infos, {})
    outlook = made.outlook(0)
    made.follow(made.drawn_from(outlook), outlook)
    return made


@pytest.mark.parametrize(
    "chosen",
    [
        7, "random", [], {}, {"how": 1, "number": 1, "pool": 1},
        {"how": "x" * 41, "probability": None, "number": 1, "pool": 1},
        {"how": "random", "probability": None, "number": 1, "pool": 1},
        {"how": "balance", "probability": 0.5, "number": 1, "pool": 1},
        {"how": "random", "probability": 1.5, "number": 1, "pool": 1},
        {"how": "random", "probability": 0, "number": 1, "pool": 1},
        {"how": "random", "probability": "1", "number": 1, "pool": 1},
        {"how": "random", "probability": True, "number": 1, "pool": 1},
        {"how": "random", "probability": 0.5, "number": -1, "pool": 1},
        {"how": "random", "probability": 0.5, "number": 1.5, "pool": 1},
        {"how": "random", "probability": 0.5, "number": 1, "pool": "1"},
        {"how": "random", "probability": 0.5, "number": 1, "pool": True},
        {"how": "random", "probability": 0.5, "number": 1, "pool": 10**12},
        {"how": "random", "probability": 0.5, "number": 1},
    ],
)  # fmt: skip
def test_what_says_nothing_of_a_draw_is_refused(chosen: Any) -> None:
    """It is told, and nothing is guessed."""
    with pytest.raises(ArgumentError, match="chosen"):
        Draw.of_json(chosen)


def test_a_draw_is_told_back_as_it_was() -> None:
    """Over JSON, and from views that tell nothing or too little."""
    for draw in (Draw("random", 1 / 3, 1, 3), Draw("balance", None, 2, 3), Draw("x", None, 0, 0)):
        assert Draw.of_json(json.loads(json.dumps(draw.to_json()))) == draw
        assert Draw.of_metadata(draw.to_metadata()).how == draw.how
    assert Draw.of_json(None) is None
    assert Draw.of_json({"how": "random", "probability": 0.5}) is None


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
    """A judge that says "no" too often is found out: more is taken from what it says no of. The
    view holds what the kernel has at each position, and the nearest sixty stay."""
    ids = imported(400, no=80, yes=320)
    truth = {trace_id: "no" if n % 4 == 0 and n < 80 else "yes" for n, trace_id in enumerate(ids)}
    view = begin(order="balance")
    view.send(type="hello", pending=[])
    held: dict[int, str] = {}
    heard = 0

    def hear() -> int:
        nonlocal heard
        fresh = [m for m in view.told[heard:] if m["type"] == "items"]
        heard = len(view.told)
        held.update({i["position"]: i["trace_id"] for m in fresh for i in m["items"]})
        return len(fresh)

    view.send(type="want", start=50, count=200)
    hear()
    planned = sum(truth[view.session.trace_ids[n]] == "no" for n in range(100))
    pushed = 0
    for at in range(100):
        near = [held[n] for n in range(at, at + 60)]
        view.act(view.save(at, truth[held[at]], id=f"a{at}"))
        if at % 20 == 19:
            _wait_for_items()
        pushed += hear()
        assert [held[n] for n in range(at, at + 60)] == near
    assert list(held.values())[:100] == view.session.trace_ids[:100]
    assert [held[n] for n in sorted(held)] == view.session.trace_ids[: len(held)]
    assert pushed
    found = sum(value == "no" for value in view.session.labels["value"])
    assert planned <= 10
    assert found >= planned + 4


def _wait_for_items() -> None:
    import threading

    for thread in threading.enumerate():
        if thread.name == "items":
            thread.join(20)


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


def test_planning_is_quick(store: str) -> None:
    """A few milliseconds a label at ten thousand traces; twenty are planned for at once."""
    import time

    where = TraceLocation.from_experiment_id("0")
    infos = {
        i: TraceInfo(i, where, request_time=0, state=TraceState.OK)
        for i in (f"t{n}" for n in range(10_000))
    }
    made = Agenda(
        [LabelQuestion("quality", SCALE)], "ana", order="mix", seed=0, random_share=None, judge=None
    )
    made.add(infos, {})
    words = [f"word{n * 7 % 97} word{n * 3 % 89}" for n in range(10_000)]
    said = [
        ("no", "yes") if n % 50 == 0 else ("no" if n % 9 == 0 else "yes",) for n in range(10_000)
    ]
    made.consider({i: Known(i, words[n], said[n]) for n, i in enumerate(infos)})
    outlook = made.outlook(0)
    made.follow(made.drawn_from(outlook), outlook)
    times = []
    for _ in range(5):
        began = time.process_time()
        outlook = made.outlook(60)
        made.follow(made.drawn_from(outlook), outlook)
        times.append(time.process_time() - began)
    assert min(times) / 20 < 0.005, times
