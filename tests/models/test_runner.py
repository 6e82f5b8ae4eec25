"""Many calls at once: order, retries, limits, budget, stopping; most against a real server."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from asking import run, run_many
from loopback import UNKNOWN_MODEL, Loopback
from mlflow.genai.judges import Judge

from workbench import make_judge
from workbench.compat import status_error
from workbench.errors import (
    ArgumentError,
    BudgetError,
    CredentialError,
    ModelError,
    StoreError,
    UnreachableModelError,
)
from workbench.judging.requests import Asker, judge_examples
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.models.client import Request
from workbench.models.faults import Fault, StoppedError
from workbench.models.runner import Runner
from workbench.models.throttle import FIRST_CALLS, Throttle
from workbench.scale import Scale
from workbench.store.traces import Example

Start = Callable[..., Loopback]
GRADES = Literal["excellent", "good", "fair", "poor"]


def judge_at(url: str, **options: Any) -> Judge:
    given = {"model": "openai:/simulated", "feedback_value_type": GRADES, **options}
    return make_judge("quality", "Does {{ outputs }} answer {{ inputs }}?", base_url=url, **given)


def items(count: int) -> list[Example]:
    return [Example(f"tr-{n}", {"q": f"question {n}"}, f"answer {n}") for n in range(count)]


def found(verdicts: list[Verdict]) -> list[Any]:
    return [verdict.value for verdict in verdicts]


def stub(key: str | None, call: Callable[[], Any], **options: Any) -> Request:
    """A question whose answer is whatever ``call`` gives."""
    return Request(key, "offline:/rubric", call, lambda raw: {"value": raw}, **options)


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path / "answers")


# -- in parallel ----------------------------------------------------------------------------


def test_verdicts_come_in_the_order_of_the_items(loopback: Start) -> None:
    """However the answers come in, and the same each time."""
    judge = judge_at(loopback(latency=0.02).url)
    asked = items(60)
    verdicts = run(judge, asked, concurrency=16)
    assert [v.trace_id for v in verdicts] == [item.trace_id for item in asked]
    assert found(verdicts) == found(run(judge, asked, concurrency=1))
    assert set(found(verdicts)) == {"excellent", "good", "fair", "poor"}
    assert {(v.paid.requests, v.paid.read, v.paid.written) for v in verdicts} == {(1, 100, 10)}


def test_concurrency_is_reached_and_not_exceeded(loopback: Start) -> None:
    """As many calls are under way as were asked for."""
    server = loopback(latency=0.2)
    judge = judge_at(server.url)
    run(judge, items(1))  # what MLflow loads at its first call
    run(judge, items(64), concurrency=16)
    assert server.stats()["most_at_once"] == 16


def test_concurrency_must_be_positive() -> None:
    """Zero would wait for ever."""
    with pytest.raises(ArgumentError, match="concurrency=0"):
        run(judge_at("http://127.0.0.1:9/v1"), items(2), concurrency=0)


def test_several_judges_and_samples_at_once(loopback: Start, cache: AnswerCache) -> None:
    """Each question has its own answer: by judge, by item and by sample number."""
    server = loopback()
    one, other = judge_at(server.url), judge_at(server.url, inference_params={"temperature": 1})
    questions = [(judge, item, n) for judge in (one, other) for item in items(3) for n in (0, 1)]
    verdicts = run_many(questions, cache=cache)
    assert [v.trace_id for v in verdicts] == [item.trace_id for _, item, _ in questions]
    assert len({v.fingerprint for v in verdicts}) == 2
    assert (server.requests, len(cache)) == (12, 12)


# -- failures -------------------------------------------------------------------------------


def test_passing_failures_are_tried_again(loopback: Start) -> None:
    """A server that fails now and then costs retries and no verdict."""
    server = loopback(failure_share=0.15, seed=3)
    verdicts = run(judge_at(server.url), items(40), concurrency=8)
    assert [v.error for v in verdicts] == [None] * 40
    assert sum(v.calls for v in verdicts) == server.requests > 40


def test_a_rate_limit_slows_all_calls_and_loses_none(loopback: Start) -> None:
    """429 with Retry-After: nothing is asked for that long, and in the end all is answered."""
    server = loopback(script="200x1,429x12", retry_after=1, latency=0.1)
    verdicts = run(judge_at(server.url), items(40), concurrency=12)
    assert [v.error for v in verdicts] == [None] * 40
    stats = server.stats()
    assert stats["statuses"] == {"200": 40, "429": 12}
    times = stats["started"]
    assert max(later - one for one, later in pairwise(times)) >= 0.95
    assert sum(v.calls for v in verdicts) == 52


def test_a_pause_longer_than_one_is_patient_is_waited_for(loopback: Start) -> None:
    """Patience begins when the pause ends that the provider asked for."""
    server = loopback(script="200x1,429x3", retry_after=2)
    verdicts = run(judge_at(server.url), items(8), concurrency=4, patience=0.5)
    assert [v.error for v in verdicts] == [None] * 8


def test_a_standing_rate_limit_is_lived_with(loopback: Start) -> None:
    """More threads than the provider bears: slower, but complete, and not by brute force."""
    server = loopback(rate=20, retry_after=0.5)
    verdicts = run(judge_at(server.url), items(60), concurrency=32)
    assert [v.error for v in verdicts] == [None] * 60
    assert server.stats()["statuses"]["429"] < 120


def test_an_endless_wait_is_a_refusal(loopback: Start) -> None:
    """A provider that asks for hours ends the run at once, with its message."""
    server = loopback(script="200x1,429x100", retry_after=7200)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"scripted answer 429.*What was answered before is kept"):
        run(judge_at(server.url), items(30), concurrency=4)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "options", [{"junk_share": 0.3}, {"off_scale_share": 0.3}], ids=["junk", "off the scale"]
)
def test_an_unusable_answer_is_a_failure_of_its_own(
    loopback: Start, cache: AnswerCache, options: dict[str, Any]
) -> None:
    """Text without a verdict and values off the scale: an error each, asked once, not kept."""
    server = loopback(**options)
    verdicts = run(judge_at(server.url), items(40), cache=cache)
    failed = [v for v in verdicts if v.error is not None]
    assert 4 <= len(failed) <= 24
    assert all(v.value is None and v.calls == 1 for v in failed)
    assert all("purple" in str(v.error) or "I would rather" in str(v.error) for v in failed)
    assert server.requests == 40
    assert len(cache) == 40 - len(failed)


def test_a_wrong_key_ends_the_run_at_the_first_calls(
    loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few requests, the provider's message, and not the key that it repeats."""
    server = loopback(key="sk-right-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-9876543210")
    settled: list[Verdict] = []
    with pytest.raises(CredentialError, match="Incorrect API key provided") as caught:
        run(judge_at(server.url), items(50), on_verdict=settled.append)
    assert "sk-wrong-9876543210" not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert server.requests <= FIRST_CALLS
    assert settled == []


def test_a_slow_provider_that_refuses_the_key_is_asked_a_handful_of_times(
    loopback: Start,
) -> None:
    """Until something is answered few calls are under way."""
    server = loopback(script="401x1000", latency=1)
    with pytest.raises(CredentialError):
        run(judge_at(server.url), items(100))
    assert server.requests <= FIRST_CALLS


def test_a_missing_key_is_named(loopback: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent without one."""
    server = loopback()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(CredentialError, match="OPENAI_API_KEY"):
        run(judge_at(server.url), items(5))
    assert server.requests == 0


def test_a_key_that_is_withdrawn_midway(loopback: Start) -> None:
    """What was judged is kept, and the rest is not asked for."""
    server = loopback(script="200x20,401x1000", latency=0.02)
    settled: list[Verdict] = []
    with pytest.raises(CredentialError, match="What was answered before is kept"):
        run(judge_at(server.url), items(200), concurrency=8, on_verdict=settled.append)
    assert [v.error for v in settled] == [None] * 20
    assert server.requests <= 20 + 4 * 8


def test_refusals_of_single_questions_leave_it_to_the_asker_when_to_stop(loopback: Start) -> None:
    """As other people's optimizers ask, whose losses are counted by their kind."""
    asker, stopped = Asker(judge_at(loopback(script="200x1,403x4,200x1").url)), threading.Event()
    with Runner() as runner:
        outcomes = [runner.ask(asker.request(item), stopped) for item in items(6)]
    assert [one.fault is None for one in outcomes] == [True, *[False] * 4, True]
    assert not stopped.is_set()


def test_one_refusal_among_answers_is_of_its_item(loopback: Start) -> None:
    """A provider that forbids one item has not forbidden all."""
    server = loopback(script="200x3,403x1,200x2,403x1")
    verdicts = run(judge_at(server.url), items(12), concurrency=1)
    assert [n for n, v in enumerate(verdicts) if v.error is not None] == [3, 6]


def test_refusals_of_single_items_do_not_end_a_run(loopback: Start) -> None:
    """A filter that refuses many items, several under way together, is no reason to stop."""
    script = ",".join(["200x8,400x1,403x1"] * 8)
    verdicts = run(judge_at(loopback(script=script, latency=0.1).url), items(80), concurrency=20)
    assert sum(v.error is not None for v in verdicts) == 16


def test_a_block_of_refused_items_ends_no_run(loopback: Start) -> None:
    """However many come in a row, they are failures of their items where others were answered."""
    settled: list[Verdict] = []
    verdicts = run(
        judge_at(loopback(script="200x4,400x30").url), items(40), concurrency=1,
        on_verdict=settled.append,
    )  # fmt: skip
    assert [n for n, v in enumerate(verdicts) if v.error is not None] == list(range(4, 34))
    assert settled == verdicts


def test_answers_from_the_cache_count_as_answers(loopback: Start, cache: AnswerCache) -> None:
    """One item is refused each time; a key that was changed meanwhile still ends the run early."""
    server = loopback(script="200x3,403x1,200x8,403x1,401x99", latency=0.2)
    judge = judge_at(server.url)
    for _ in range(2):
        verdicts = run(judge, items(12), concurrency=1, cache=cache)
        assert [n for n, v in enumerate(verdicts) if v.error is not None] == [3]
    with pytest.raises(CredentialError):
        run(judge, items(60), cache=cache)
    assert server.requests <= 13 + 2 * FIRST_CALLS


def test_a_dead_port_is_found_out_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there: said at once, with where it was."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    judge = judge_at("http://user:secret-word@127.0.0.1:9/v1")
    start = time.monotonic()
    with pytest.raises(UnreachableModelError, match=r"at http://127\.0\.0\.1:9/v1") as caught:
        run(judge, items(30))
    assert time.monotonic() - start < 15
    assert "secret-word" not in str(caught.value)


def test_a_model_that_does_not_exist(loopback: Start) -> None:
    """404 ends the run with the provider's message."""
    server = loopback()
    with pytest.raises(ModelError, match=f"`{UNKNOWN_MODEL}` does not exist") as caught:
        run(judge_at(server.url, model=f"openai:/{UNKNOWN_MODEL}"), items(30))
    assert not isinstance(caught.value, (CredentialError, UnreachableModelError))
    assert server.requests <= FIRST_CALLS


def test_a_request_that_is_always_refused_ends_the_run(loopback: Start) -> None:
    """Ten in a row, none answered: the rest would fare no better."""
    server = loopback(script="400x1000")
    with pytest.raises(ModelError, match=r"scripted answer 400.*10 calls in a row"):
        run(judge_at(server.url), items(100), concurrency=4)
    assert server.requests <= 10 + 2 * 4


def test_answers_that_are_never_usable_end_the_run(loopback: Start) -> None:
    """After ten, and not many more have been paid for by then."""
    server = loopback(off_scale_share=1.0)
    with pytest.raises(ModelError, match=r"its first [12]\d req.*'purple' is not on the scale"):
        run(judge_at(server.url), items(60))
    assert 10 <= server.requests <= 10 + FIRST_CALLS


def test_a_rate_limit_without_an_end_ends_the_run(loopback: Start) -> None:
    """With the provider's words, once nothing was answered for as long as one is patient."""
    server = loopback(script="429x9999", retry_after=1)
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"scripted answer 429.*higher rate limit"):
        run(judge_at(server.url), items(120), patience=2.5)
    assert time.monotonic() - start < 15
    assert server.requests <= 3 * FIRST_CALLS


def test_a_timeout_is_tried_again_once() -> None:
    """Waiting long four times over helps nobody."""
    tried: list[int] = []

    def late() -> None:
        tried.append(1)
        raise TimeoutError("no answer within 300 s")

    with Runner() as runner:
        outcome = runner.run([stub(None, late)])[0]
    assert len(tried) == 2
    assert outcome.fault == Fault("timeout", "no answer within 300 s")


def test_failures_that_take_longest_end_no_run() -> None:
    """They come in a row at the end, when nothing is left that a stop would save."""

    class Down(Exception):
        status_code, retry_after = 500, 0.05

    def fail() -> None:
        raise Down("down")

    requests = [stub(None, fail if n % 4 == 0 else lambda: "yes") for n in range(60)]
    with Runner(concurrency=64) as runner:
        outcomes = runner.run(requests)
    assert sum(outcome.fault is not None for outcome in outcomes) == 15
    with Runner(concurrency=4) as runner, pytest.raises(ModelError, match="10 calls in a row"):
        runner.run([stub(None, lambda: "yes"), *(stub(None, fail) for _ in range(40))])


# -- the budget -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 7, 30])
def test_a_budget_is_never_exceeded(loopback: Start, limit: int) -> None:
    """Not by a single request, retries included, in whatever thread."""
    server, budget = loopback(failure_share=0.3, seed=1), Budget(limit)
    settled: list[Verdict] = []
    with pytest.raises(BudgetError, match=f"{limit} of {limit} calls are used"):
        run(
            judge_at(server.url),
            items(100),
            concurrency=16,
            budget=budget,
            on_verdict=settled.append,
        )
    assert server.requests == budget.spent == limit
    assert len(settled) == server.stats()["statuses"].get("200", 0)


def test_requests_that_one_call_repeats_count(
    loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider without answer schemas is asked twice at first: both are calls."""
    from mlflow.genai.judges.adapters import gateway_adapter

    monkeypatch.setattr(gateway_adapter, "_MODEL_RESPONSE_FORMAT_CAPABILITIES", {})
    server, budget = loopback(no_schema=True), Budget(10)
    judge = judge_at(server.url, feedback_value_type=Literal["yes", "no"])
    verdicts = run(judge, items(3), concurrency=1, budget=budget)
    assert [v.calls for v in verdicts] == [2, 1, 1]
    assert server.requests == budget.spent == 4


# -- answers are kept -----------------------------------------------------------------------


def test_equal_questions_are_paid_once(loopback: Start, cache: AnswerCache) -> None:
    """Within a run and from one run to the next; only the first of equals has costs."""
    server = loopback()
    judge = judge_at(server.url)
    twice = [*items(5), *(Example(f"again-{n}", i.inputs, i.outputs) for n, i in
                          enumerate(items(5)))]  # fmt: skip
    first = run(judge, twice, cache=cache)
    assert server.requests == 5
    assert found(first[:5]) == found(first[5:])
    assert [v.cached for v in first] == [False] * 5 + [True] * 5
    assert [v.calls for v in first] == [1] * 5 + [0] * 5
    again = run(judge, twice, cache=cache)
    assert (server.requests, found(again)) == (5, found(first))
    assert all(v.cached and v.calls == 0 for v in again)


def test_a_cache_that_fails_loses_no_answer(tmp_path: Path) -> None:
    """What was paid for reaches the caller; the next run asks for the rest alone."""
    asked: list[int] = []

    class Full(AnswerCache):
        full = True

        def put(self, key: str, answer: dict[str, Any]) -> None:
            if self.full:
                raise StoreError("the disk is full")
            super().put(key, answer)

    def call() -> str:
        asked.append(1)
        time.sleep(0.05)
        return "good"

    cache, settled = Full(tmp_path), list[int]()
    questions = [stub(str(n), call) for n in range(40)]
    with (
        Runner(cache=cache, concurrency=4) as runner,
        pytest.raises(StoreError, match="the disk is full"),
    ):
        runner.run(questions, on_outcome=lambda n, _: settled.append(n))
    assert len(settled) == len(asked) < 40
    cache.full = False
    rest = [question for n, question in enumerate(questions) if n not in settled]
    with Runner(cache=cache, concurrency=4) as runner:
        runner.run(rest)
    assert len(asked) == 40


def test_a_failure_of_equals_is_paid_once(loopback: Start, cache: AnswerCache) -> None:
    """It stands for each of them, and its calls are counted once."""
    item = items(1)[0]
    verdicts = run(judge_at(loopback(junk_share=1.0).url), [item] * 20, cache=cache)
    assert [v.calls for v in verdicts] == [1] + [0] * 19
    assert all(v.error is not None and not v.cached for v in verdicts)


def test_a_refusal_of_equals_does_not_end_the_run(cache: AnswerCache) -> None:
    """However many they are, they say nothing of other questions."""

    def refuse() -> None:
        raise status_error(400, "refused")

    asked = [stub("bad", refuse)] * 10 + [stub(str(n), lambda: "good") for n in range(30)]
    with Runner(cache=cache, concurrency=1) as runner:
        outcomes = runner.run(asked)
    assert [outcome.fault is None for outcome in outcomes] == [False] * 10 + [True] * 30


def test_a_kept_answer_is_read_on_the_scale_of_the_run(loopback: Start, cache: AnswerCache) -> None:
    """What is kept is what the judge said, not how one run wrote it."""
    server = loopback()
    judge = judge_at(server.url, feedback_value_type=str)
    plain = found(run(judge, items(6), cache=cache))
    assert set(plain) == {"yes", "no"}
    capital = run(judge, items(6), cache=cache, scale=Scale.of(["No", "Yes"]))
    assert found(capital) == [value.capitalize() for value in plain]
    assert found(run(judge, items(6), cache=cache)) == plain
    assert server.requests == 6


def test_an_abstention_is_no_failure(loopback: Start, cache: AnswerCache) -> None:
    """It comes back as N/A, from the model and from the cache alike."""
    judge = judge_at(loopback().url, feedback_value_type=Literal["N/A", "unsure"])
    yes_no = Scale.of(["no", "yes"])
    for _ in range(2):
        verdicts = run(judge, items(2), cache=cache, scale=yes_no)
        assert found(verdicts) == ["N/A", "N/A"]


# -- when something breaks ------------------------------------------------------------------


def test_an_error_of_the_callback_ends_the_run(loopback: Start, cache: AnswerCache) -> None:
    """It comes out as it is, no thread hangs, and what was under way is in the cache."""
    server = loopback(latency=0.1)
    seen: list[Verdict] = []

    def fail(verdict: Verdict) -> None:
        seen.append(verdict)
        if len(seen) == 3:
            raise RuntimeError("the disk is full")

    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the disk is full"):
        run(judge_at(server.url), items(300), concurrency=8, cache=cache, on_verdict=fail)
    assert time.monotonic() - start < 15
    assert len(cache) == server.requests <= 3 + 2 * 8


def test_what_ends_a_run_loses_no_answer(loopback: Start) -> None:
    """Even without a cache each answer that was paid for reaches the callback, the one that was
    handed on when Ctrl-C came perhaps twice."""
    server = loopback(latency=0.1)
    settled: list[Verdict] = []

    def interrupt(verdict: Verdict) -> None:
        settled.append(verdict)
        if len(settled) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(judge_at(server.url), items(300), concurrency=8, on_verdict=interrupt)
    assert len(settled) - 1 <= len({v.trace_id for v in settled}) == server.requests


def test_a_stop_does_not_wait_for_a_pause(loopback: Start) -> None:
    """Threads that wait for a rate limit leave when the run ends."""
    server = loopback(script="200x5,429x1000", retry_after=300, latency=0.05)
    settled: list[Verdict] = []

    def interrupt(verdict: Verdict) -> None:
        settled.append(verdict)
        if len(settled) == 5:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(judge_at(server.url), items(50), concurrency=4, on_verdict=interrupt)
    assert time.monotonic() - start < 15


def test_a_single_request_does_not_wait_for_a_pause_either(loopback: Start) -> None:
    """Those of other people's optimizers come one by one, from their own threads."""
    judge, stop = judge_at(loopback(script="429x1000", retry_after=300).url), threading.Event()
    with Runner(stop=stop) as runner:
        threading.Timer(1, stop.set).start()
        start = time.monotonic()
        with pytest.raises(StoppedError):
            runner.ask(Asker(judge).request(items(1)[0]), threading.Event())
    assert time.monotonic() - start < 30


def test_an_interrupt_is_not_held_up_by_calls_that_hang(cache: AnswerCache) -> None:
    """It waits a moment; what comes after that is still kept, though the cache was closed."""
    let_go = threading.Event()

    def asked(n: int) -> Request:
        return stub(str(n), lambda: n == 0 or let_go.wait(60))

    settled: list[int] = []
    main = threading.get_ident()
    timer = threading.Timer(2, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    start = time.monotonic()
    runner = Runner(cache=cache, concurrency=4)
    runner.run([asked(0)])
    with pytest.raises(KeyboardInterrupt), cache, runner:
        runner.run([asked(n) for n in range(8)], on_outcome=lambda n, _: settled.append(n))
    assert 5 < time.monotonic() - start < 15
    assert settled == [0]
    let_go.set()
    deadline = time.monotonic() + 10
    while len(cache) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(cache) == 5  # the first, and those four that had begun


# -- several runs ---------------------------------------------------------------------------


def test_a_runner_that_was_never_answered_stays_careful(loopback: Start) -> None:
    """Each run costs one call at a time until one answers."""
    server = loopback(script="401x2")
    judge = judge_at(server.url)
    with Runner(concurrency=1) as runner:
        for _ in range(2):
            with pytest.raises(CredentialError):
                judge_examples(judge, items(6), runner)
        assert server.requests == 2
        verdicts = judge_examples(judge, items(6), runner)
    assert all(verdict.error is None for verdict in verdicts)


def test_a_damaged_answer_is_asked_for_anew(loopback: Start, cache: AnswerCache) -> None:
    """It is no answer, holds nobody up, and is replaced."""
    server = loopback()
    judge = judge_at(server.url)
    first = run(judge, items(3), cache=cache)
    with sqlite3.connect(cache.directory / "answers.db") as database:
        database.execute("UPDATE answers SET answer = '{'")
    database.close()
    again = run(judge, items(3), cache=cache)
    assert (server.requests, found(again)) == (6, found(first))
    assert run(judge, items(3), cache=cache)[0].cached
    assert server.requests == 6


# -- slots ----------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread], seconds: float) -> bool:
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def opened(most: int) -> Throttle:
    """One of whose calls enough were answered."""
    throttle = Throttle(most)
    answer(throttle, most)
    return throttle


def answer(throttle: Throttle, times: int) -> None:
    """As after so many answers that came at once."""
    for _ in range(times):
        throttle.speed_up(time.monotonic(), 300.0)


def test_no_more_slots_than_the_limit() -> None:
    """Many threads, few slots: never more at once, and all get their turn."""
    throttle, lock = opened(3), threading.Lock()
    active, most, served = 0, 0, 0

    def work() -> None:
        nonlocal active, most, served
        for _ in range(20):
            with throttle.slot():
                with lock:
                    active += 1
                    most = max(most, active)
                time.sleep(0.001)
                with lock:
                    active -= 1
                    served += 1

    assert ended(in_threads(12, work), 20)
    assert (most, served) == (3, 240)


def test_calls_under_way_together_halve_the_slots_once() -> None:
    """64 calls that meet one limit are one sign, not 64."""
    throttle = opened(64)
    asked = time.monotonic()
    for _ in range(64):
        throttle.slow_down(0.0, asked)
    assert throttle.limit == 32
    throttle.slow_down(0.0, time.monotonic())
    assert throttle.limit == 16


def test_slots_come_back_one_by_one_and_no_further() -> None:
    """As many successes as there are slots bring one more."""
    throttle = opened(8)
    throttle.slow_down(0.0, time.monotonic())
    answer(throttle, 5)
    assert throttle.limit == 5
    answer(throttle, 500)
    assert throttle.limit == 8


def after(*seconds: float, timeout: float = 300.0) -> int:
    """Slots after answers that took so long."""
    throttle = Throttle(64)
    for each in seconds:
        throttle.speed_up(time.monotonic() - each, timeout)
    return throttle.limit


def test_a_server_gets_more_calls_one_by_one_and_fewer_where_they_wait() -> None:
    """Waits of a third of the timeout halve them, to a floor."""
    assert after(*[0.3] * 8) == after(*[90.0] * 8) == FIRST_CALLS + 8
    assert after(*[0.3] * 99) == 64
    waited = [6.0] * 8 + [150.0]
    assert after(*waited) == after(*waited, 150.0) == (FIRST_CALLS + 8) // 2
    assert after(6.0, 6.0, timeout=12.0) == FIRST_CALLS
    assert after(1.0, 1.0, 5.0, timeout=12.0) == (FIRST_CALLS + 2) // 2


def test_all_wait_together() -> None:
    """A pause asked for by one holds for all."""
    throttle = opened(4)
    throttle.slow_down(0.4, time.monotonic())
    start, times = time.monotonic(), []

    def work() -> None:
        with throttle.slot() as at:
            times.append(at - start)

    assert ended(in_threads(6, work), 5)
    assert len(times) == 6
    assert min(times) >= 0.4


def test_whoever_waits_leaves_when_it_is_over() -> None:
    """Nobody is left waiting for a slot or for a pause of ten minutes."""
    throttle, over = opened(1), threading.Event()

    def enter() -> None:
        with throttle.slot(over.is_set):
            pass

    with throttle.slot():
        throttle.slow_down(600, time.monotonic())
        threads = in_threads(5, enter)
        time.sleep(0.05)
        over.set()
        assert ended(threads, 5)


# -- threads --------------------------------------------------------------------------------


def test_a_call_that_hangs_holds_up_no_process() -> None:
    """Python ends without it."""
    code = (
        "import threading, time\n"
        "from workbench.models.client import Request\n"
        "from workbench.models.runner import Runner\n"
        "hung = Request(None, '', lambda: time.sleep(100), lambda raw: {})\n"
        "threading.Thread(target=lambda: Runner().run([hung]), daemon=True).start()\n"
        "time.sleep(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
