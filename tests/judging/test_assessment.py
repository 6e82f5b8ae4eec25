"""`assess` and `log_verdicts`: what is judged, logged, and kept when a run is cut short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
import pytest
from asking import OwnJudge
from loopback import Loopback
from mlflow.entities import AssessmentSource, Feedback
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.genai.scorers import Correctness, RelevanceToQuery, RetrievalGroundedness
from mlflow.tracing.client import TracingClient

import workbench
from workbench import (
    alignment_improvement,
    assess,
    import_traces,
    log_labels,
    log_verdicts,
    make_judge,
    pair,
)
from workbench.errors import (
    ArgumentError,
    CredentialError,
    NoVerdictsError,
    StoreError,
)
from workbench.judging.judge import fingerprint
from workbench.judging.verdicts import FINGERPRINT_KEY, RECORDED_KEY
from workbench.models.throttle import FIRST_CALLS

Start = Callable[..., Loopback]
GRADES = Literal["excellent", "good", "fair", "poor"]


def judge_at(url: str, **options: Any) -> Judge:
    given = {"model": "openai:/simulated", "feedback_value_type": GRADES, **options}
    text = given.pop("instructions", "Does {{ outputs }} answer {{ inputs }}?")
    return make_judge("quality", text, base_url=url, **given)


def traces(count: int, **more: Any) -> list[str]:
    table = pd.DataFrame(
        {
            "q": [f"question {n}" for n in range(count)],
            "a": [f"answer {n}" for n in range(count)],
            "gold": [f"gold {n}" for n in range(count)],
        }
    )
    return import_traces(table, inputs="q", outputs="a", progress=False, **more).trace_ids


def logged(name: str = "quality") -> list[Feedback]:
    """What the store holds under the name, read by MLflow alone."""
    found = mlflow.search_traces(return_type="list", include_spans=False, max_results=5000)
    return [a for trace in found for a in trace.info.assessments if a.name == name]


class Counting(OwnJudge):
    """A judge of a user's own class, with a state that nobody sees."""

    def __call__(self, *, outputs: Any = None) -> Feedback:
        _COUNTED.append(str(outputs))
        return Feedback(name=self.name, value="yes" if str(outputs).endswith("0") else "no")


_COUNTED: list[str] = []


def run(judge: Judge, chosen: Any = None, **options: Any) -> Any:
    return assess(judge, chosen, progress=False, **options)


# -- any judge ------------------------------------------------------------------------------


def test_a_judge_of_a_user_s_own_class_is_assessed_and_paired(store: str) -> None:
    """Its answers are logged like all others, but never taken from the disk cache."""
    _COUNTED.clear()
    ids, judge = traces(4), Counting(name="quality")
    for _ in range(2):
        assert list(run(judge, log=False).table["value"]) == ["yes", "no", "no", "no"]
    assert len(_COUNTED) == 8
    assert run(judge).calls == 4
    assert run(judge).calls == 0
    labels = pd.DataFrame({"trace_id": ids, "r": ["yes", "no", "no", "yes"]})
    log_labels(labels, name="quality", annotator="ana", value="r")
    pairs = pair(judge)
    assert (len(pairs), pairs.fingerprint) == (4, fingerprint(judge))
    improvement = alignment_improvement(judge, judge, ids, progress=False)
    assert improvement["original_accuracy"] == 0.75


def test_a_value_of_numpy_is_stored_as_what_it_is(store: str) -> None:
    """And one that no store takes is a failure, of which all other verdicts know nothing."""

    class Measuring(OwnJudge):
        @property
        def feedback_value_type(self) -> Any:
            return str

        def __call__(self, *, outputs: Any = None, **_: Any) -> Feedback:
            value = {0: np.bool_(True), 1: np.int64(7)}.get(int(outputs[-1]), 1j)
            return Feedback(name=self.name, value=value)

    traces(3)
    table = run(Measuring(name="measured")).table
    assert [*map(repr, table["value"])] == ["True", "7", "None"]
    assert table["error"][2] == "the judge gave a value of type complex"


def test_what_a_judge_asks_is_no_trace_to_be_labelled(store: str) -> None:
    """Though it is traced, as by MLflow's autologging; what others do meanwhile is a trace."""

    class Traced(OwnJudge):
        def __call__(self, *, outputs: Any = None) -> Feedback:
            with mlflow.start_span("a call of a model"):
                return Feedback(name=self.name, value="yes")

    ids = traces(3)
    assert run(Traced(name="traced")).calls == 3
    with mlflow.start_span("an answer of the application"):
        pass
    mlflow.flush_trace_async_logging()
    found = mlflow.search_traces(return_type="list")
    assert len(found) == 1 + len(ids)


def test_what_is_no_judge_is_told_as_such(store: str) -> None:
    with pytest.raises(ArgumentError, match=r"'quality' \(str\) is no judge.*load_judge"):
        run("quality")  # type: ignore[arg-type]


def test_known_verdicts_are_recorded_and_not_asked_for_again(store: str, tmp_path: Path) -> None:
    """Another store has none of them."""
    _COUNTED.clear()
    traces(3)
    judge = Counting(name="quality")
    before = run(judge)
    with workbench.recording(tmp_path / "answers"):
        traces(4)
        recorded = run(judge)
    assert (recorded.calls, len(_COUNTED)) == (1, 4)
    mlflow.set_experiment("another")
    with workbench.replaying(tmp_path / "answers"):
        traces(4)
        replayed = run(judge)
    assert len(_COUNTED) == 4
    assert [*replayed.table["value"]] == [*before.table["value"], "no"]


# -- what is logged -------------------------------------------------------------------------


def test_every_verdict_is_logged_with_its_version(store: str, loopback: Start) -> None:
    """Value, rationale, judge, tokens and fingerprint of each, and the table in order."""
    ids, judge = traces(20), judge_at(loopback().url)
    done = run(judge)
    assert list(done.table["trace_id"]) == ids
    assert list(done.table.columns) == ["trace_id", "value", "rationale", "error", "cached"]
    assert (done.calls, len(done.failures), done.fingerprint) == (20, 0, fingerprint(judge))
    assert (done.input_tokens, done.output_tokens) == (2000, 200)
    assert repr(done).startswith("<Assessed 'quality': 20 traces, 20 calls, 0 failures")
    assert "<table" in done._repr_html_()
    by_trace = {a.trace_id: a for a in logged()}
    assert len(logged()) == 20
    for row in done.table.itertuples():
        one = by_trace[row.trace_id]
        assert (one.feedback.value, one.rationale) == (row.value, row.rationale)
        assert one.source.source_type == "LLM_JUDGE"
        assert one.source.source_id == "openai:/simulated"
        assert one.metadata[FINGERPRINT_KEY] == fingerprint(judge)
        assert one.metadata["guideline"] == judge.instructions


def test_a_verdict_from_when_a_timeout_counted_is_not_paid_again(
    store: str, loopback: Start
) -> None:
    """Earlier versions of the workbench gave such a judge another fingerprint."""
    (trace_id,), judge = traces(1), judge_at(loopback().url, inference_params={"timeout": 60})
    mlflow.log_feedback(
        trace_id=trace_id,
        name="quality",
        value="good",
        source=AssessmentSource("LLM_JUDGE", "openai:/simulated"),
        metadata={FINGERPRINT_KEY: fingerprint(judge, timeout=True)},
    )
    assert run(judge).calls == 0


@pytest.mark.parametrize(
    "kind", [bool, int, float, str, Literal["yes", "no"], Literal[1, 2, 3]], ids=str
)
def test_verdicts_of_every_type_survive(store: str, loopback: Start, kind: Any) -> None:
    """What the table says is what the store gives back on the next run."""
    traces(8)
    judge = judge_at(loopback().url, feedback_value_type=kind)
    first, second = run(judge), run(judge)
    assert list(first.table["value"]) == list(second.table["value"])
    assert first.table["error"].isna().all()
    assert {type(v) for v in second.table["value"]} == {type(v) for v in first.table["value"]}


def test_what_is_judged_is_not_judged_again(store: str, loopback: Start) -> None:
    """A second run makes no call and logs nothing, with and without the cache."""
    traces(12)
    server = loopback()
    judge = judge_at(server.url)
    first = run(judge)
    for cache in (True, False):
        again = run(judge, cache=cache)
        assert (again.calls, again.cost, again.input_tokens) == (0, None, None)
        assert again.table["cached"].all()
        assert list(again.table["value"]) == list(first.table["value"])
    assert (server.requests, len(logged())) == (12, 12)


def test_without_logging_nothing_is_written(store: str, loopback: Start) -> None:
    """The table has it all the same."""
    traces(6)
    done = run(judge_at(loopback().url), log=False)
    assert (len(done.table), done.table["value"].isna().sum(), logged()) == (6, 0, [])


def test_chosen_traces_alone_are_judged(store: str, loopback: Start) -> None:
    """By ids, by traces with their spans, by a filter, by one id and by what import returned."""
    ids = traces(10)
    judge = judge_at(loopback().url)
    assert list(run(judge, ids[:2], log=False).table["trace_id"]) == ids[:2]
    chosen = [mlflow.get_trace(i) for i in ids[2:4]]
    assert list(run(judge, chosen, log=False).table["trace_id"]) == ids[2:4]
    assert list(run(judge, iter(chosen), log=False).table["trace_id"]) == ids[2:4]
    assert list(run(judge, ids[4], log=False).table["trace_id"]) == [ids[4]]
    assert list(run(judge, mlflow.get_trace(ids[5]), log=False).table["trace_id"]) == [ids[5]]
    some = f"request_id IN ('{ids[6]}', '{ids[7]}')"
    assert list(run(judge, some, log=False).table["trace_id"]) == ids[6:8]
    assert len(run(judge, pd.DataFrame({"trace_id": ids}), log=False).table) == 10


def test_no_traces_is_an_empty_table(store: str, loopback: Start) -> None:
    """And no call."""
    server = loopback()
    done = run(judge_at(server.url))
    assert (len(done.table), done.calls, server.requests) == (0, 0, 0)


def test_items_that_are_equal_are_paid_once(store: str, loopback: Start) -> None:
    """Each trace gets its verdict; the second of equals is marked as not paid."""
    table = pd.DataFrame({"q": ["same"] * 3 + ["other"], "a": ["text"] * 4})
    import_traces(table, inputs="q", outputs="a", progress=False)
    server = loopback()
    done = run(judge_at(server.url))
    assert (server.requests, done.calls, len(logged())) == (2, 2, 4)
    assert done.table["cached"].sum() == 2
    assert done.table["value"][:3].nunique() == 1


# -- failures -------------------------------------------------------------------------------


def test_a_failure_is_logged_and_never_a_label(store: str, loopback: Start) -> None:
    """Junk: a verdict with an error, listed, and excluded from pairs with the reason."""
    ids = traces(30)
    server = loopback(junk_share=0.3, seed=5)
    judge = judge_at(server.url)
    done = run(judge)
    failed = set(done.failures["trace_id"])
    assert 3 <= len(failed) <= 20
    assert done.failures["error"].str.contains("rather not say").all()
    errors = {a.trace_id for a in logged() if a.error is not None}
    assert (errors, len(logged())) == (failed, 30)
    assert all(a.feedback.value is None for a in logged() if a.error is not None)

    labels = pd.DataFrame({"trace_id": ids, "r": ["good", "poor"] * 15})
    log_labels(labels, name="quality", annotator="ana", value="r", progress=False)
    pairs = pair(judge)
    assert set(pairs.table["trace_id"]) == set(ids) - failed
    assert set(pairs.excluded["trace_id"]) == failed
    assert pairs.excluded["reason"].str.startswith("the judge failed: ").all()


def test_the_same_failure_is_logged_once(store: str, loopback: Start) -> None:
    """Running again asks again, logs no failure twice, and a success then counts."""
    ids = traces(3)
    server = loopback(junk_share=1.0)
    judge = judge_at(server.url)
    run(judge)
    run(judge)
    assert (server.requests, len(logged())) == (6, 3)
    server.stop()
    with Loopback(port=server.port) as mended:
        done = run(judge)
        assert (mended.requests, len(done.failures), len(logged())) == (3, 0, 6)
        assert run(judge).calls == 0
    labels = pd.DataFrame({"trace_id": ids, "r": ["good", "poor", "fair"]})
    log_labels(labels, name="quality", annotator="ana", value="r", progress=False)
    assert len(pair(judge)) == 3


@pytest.mark.parametrize(("refused", "count"), [(403, 1), (400, 12)])
def test_what_is_always_refused_ends_no_later_run(
    store: str, loopback: Start, refused: int, count: int
) -> None:
    """The verdicts in the store show that the model answers, without a cache as well."""
    script = f"200x4,{refused}x{count},200x{16 - count},{refused}x{count}"
    traces(20)
    judge = judge_at(loopback(script=script).url)
    for paid in (20, count):
        done = run(judge, concurrency=1, cache=False)
        assert (done.calls, len(done.failures)) == (paid, count)


def test_a_value_off_the_scale_is_a_failure(store: str, loopback: Start) -> None:
    """The error names the value and what is allowed."""
    traces(3)
    done = run(judge_at(loopback(off_scale_share=1.0).url))
    assert len(done.failures) == 3
    assert done.failures["error"].str.contains("'purple' is not on the scale").all()
    assert done.failures["error"].str.contains("'excellent'").all()


def test_a_wrong_key_leaves_nothing_behind(
    store: str, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few requests, the provider's words without the key, nothing logged, and then it works."""
    traces(20)
    server = loopback(key="sk-right-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-9876543210")
    with pytest.raises(CredentialError, match="Incorrect API key provided") as caught:
        run(judge_at(server.url))
    assert "sk-wrong" not in str(caught.value)
    assert server.requests <= FIRST_CALLS
    assert logged() == []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right-0123456789")
    assert len(run(judge_at(server.url)).failures) == 0


def test_secrets_are_in_no_log(
    store: str, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that repeats key and headers in its message: neither is stored or shown."""
    traces(6)
    server = loopback(key="never-this-one", script="")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment-1234")
    secrets = ["header-secret-5678", "sk-environment-1234"]
    judge = judge_at(
        server.url, extra_headers={"Authorization": f"Bearer {secrets[0]}", "X-Team": "shop-77"}
    )
    with pytest.raises(CredentialError) as caught:
        run(judge)
    assert "Incorrect API key provided: ***" in str(caught.value)
    assert server.stats()["headers"]["x-team"] == "shop-77"

    open_server = loopback()
    done = run(judge_at(open_server.url, extra_headers=judge._extra_headers))
    everything = repr([a.to_dictionary() for a in logged()]) + done._repr_html_()
    for secret in [*secrets, "shop-77"]:
        assert secret not in everything + str(caught.value)


def test_a_store_that_fails_is_told(
    store: str, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread hangs, the error says so, and the answers are not paid for again."""
    traces(40)
    server = loopback(latency=0.02)
    judge = judge_at(server.url)
    write, count = TracingClient.log_assessment, iter(range(1000))

    def broken(self: TracingClient, trace_id: str, assessment: Any) -> Any:
        if next(count) >= 10:
            raise MlflowException("the disk is full")
        return write(self, trace_id, assessment)

    with monkeypatch.context() as patched:
        patched.setattr(TracingClient, "log_assessment", broken)
        with pytest.raises(StoreError, match="the disk is full"):
            run(judge, concurrency=4)
    asked = server.requests
    assert len(logged()) < 40
    assert len(run(judge).failures) == 0
    assert (server.requests, len(logged())) == (40, 40)
    assert asked <= 40


# -- judges of other kinds ------------------------------------------------------------------


def test_built_in_judges_are_judges(
    store: str, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own, with and without expectations; a verdict each and no call twice."""
    traces(5, expectations={"expected_response": "gold"})
    server = loopback()
    monkeypatch.setenv("OPENAI_API_BASE", server.url)
    for count, judge in enumerate(
        [
            RelevanceToQuery(name="quality", model="openai:/simulated"),
            Correctness(name="quality", model="openai:/simulated"),
        ],
        start=1,
    ):
        done = run(judge)
        assert done.failures.empty, done.failures
        assert set(done.table["value"]) <= {"yes", "no"}
        assert run(judge).calls == 0
        assert (server.requests, len(logged())) == (5 * count, 5 * count)


def test_a_judge_that_needs_the_whole_trace_gets_it(
    store: str, loopback: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that wants retrieved documents finds them in the spans, or says that it does not."""
    traces(1)
    with mlflow.start_span("answer") as root:
        root.set_inputs({"q": "Do you ship to Malta?"})
        with mlflow.start_span("search", span_type="RETRIEVER") as span:
            span.set_outputs([{"page_content": "We ship to Malta.", "metadata": {}}])
        root.set_outputs("Yes.")
    monkeypatch.setenv("OPENAI_API_BASE", loopback().url)
    done = run(RetrievalGroundedness(name="quality", model="openai:/simulated"))
    told = done.table.set_index("trace_id")
    assert told.loc[root.trace_id, "value"] in ("yes", "no")
    assert list(told["error"].notna().sort_values()) == [False, True]


def test_a_judge_of_traces_uses_its_tools(store: str, loopback: Start) -> None:
    """A {{ trace }} judge is answered over several requests, which all count as calls."""
    traces(3)
    server = loopback(use_tools=True)
    judge = judge_at(server.url, instructions="Look at {{ trace }} and rate it.")
    done = run(judge)
    assert done.failures.empty, done.failures
    assert (done.calls, server.requests) == (6, 6)
    assert run(judge).calls == 0


def test_a_judge_reads_expectations(store: str, loopback: Start) -> None:
    """They reach the model; a trace without any is a failure that says so."""
    traces(2, expectations={"gold": "gold"})
    with mlflow.start_span("answer") as root:
        root.set_inputs({"q": "?"})
        root.set_outputs("!")
    server = loopback()
    done = run(judge_at(server.url, instructions="{{ outputs }} against {{ expectations }}?"))
    assert "gold" in str(server.stats()["body"]["messages"])
    assert list(done.failures["trace_id"]) == [root.trace_id]
    assert "expectations" in done.failures["error"][0]


def test_a_judge_of_conversations_is_refused(store: str) -> None:
    """The workbench rates single traces."""
    judge = make_judge("quality", "Is the {{ conversation }} kind?", model="openai:/m")
    with pytest.raises(ArgumentError, match="whole conversations"):
        run(judge)


# -- cut short ------------------------------------------------------------------------------

SCRIPT = """
import sys, workbench
from typing import Literal
judge = workbench.make_judge("quality", "Does {{ outputs }} answer {{ inputs }}?",
    model="openai:/simulated", base_url=sys.argv[1],
    feedback_value_type=Literal["excellent", "good", "fair", "poor"])
import mlflow
mlflow.set_experiment("test")
print("ready", flush=True)
workbench.assess(judge, concurrency=4, progress=False, cache=sys.argv[2] == "cache")
print("done", flush=True)
"""


def in_another_process(url: str, cache: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, url, cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read()  # type: ignore[union-attr]
    return process


def wait_for(server: Loopback, requests: int) -> None:
    until = time.monotonic() + 60
    while server.requests < requests:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("cache", ["cache", "no cache"])
def test_an_interrupt_keeps_what_is_done(store: str, loopback: Start, cache: str) -> None:
    """Ctrl-C midway: every answer that was paid for is logged, and the rest is paid later."""
    traces(60)
    server = loopback(latency=0.1)
    process = in_another_process(server.url, cache)
    wait_for(server, 15)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    paid = server.requests
    assert 15 <= paid < 60
    assert len(logged()) == paid
    done = run(judge_at(server.url), cache=cache == "cache")
    assert (server.requests, len(logged()), len(done.failures)) == (60, 60, 0)


def test_a_kill_costs_at_most_what_was_under_way(store: str, loopback: Start) -> None:
    """After SIGKILL answers are in the cache or in the store, and nothing is logged twice."""
    traces(60)
    server = loopback(latency=0.1)
    process = in_another_process(server.url, "cache")
    wait_for(server, 20)
    process.kill()
    process.communicate(timeout=60)
    paid = server.requests
    done = run(judge_at(server.url))
    assert server.requests <= 60 + 4
    assert server.requests - paid < 60
    found = [a.trace_id for a in logged()]
    assert (len(found), len(set(found)), len(done.failures)) == (60, 60, 0)


# -- verdicts from elsewhere ----------------------------------------------------------------


def test_recorded_verdicts_are_verdicts(store: str) -> None:
    """Logged once under the name, from the source given, marked as recorded."""
    ids = traces(4)
    table = pd.DataFrame({"trace_id": ids, "v": ["yes", "no", None, "yes"], "why": "so"})
    first = log_verdicts(
        table, name="quality", source="gpt-4", value="v", rationale="why", progress=False
    )
    assert (first.written, list(first.skipped["row"])) == (3, [2])
    again = log_verdicts(
        table, name="quality", source="gpt-4", value="v", rationale="why", progress=False
    )
    assert (again.written, again.present) == (0, 3)
    assert {a.source.source_id for a in logged()} == {"gpt-4"}
    assert all(a.source.source_type == "LLM_JUDGE" for a in logged())
    assert all(a.metadata[RECORDED_KEY] == "true" for a in logged())


def test_recorded_verdicts_are_none_of_the_judge(store: str, loopback: Start) -> None:
    """A judge of the same name still judges, and is paired with its own verdicts only."""
    ids = traces(3)
    table = pd.DataFrame({"trace_id": ids, "v": ["good"] * 3})
    log_verdicts(table, name="quality", source="gpt-4", value="v", progress=False)
    log_labels(table, name="quality", annotator="ana", value="v", progress=False)
    judge = judge_at(loopback().url)
    with pytest.raises(NoVerdictsError, match=r"on 3 traces there are verdicts of another version"):
        pair(judge)
    assert run(judge).calls == 3
    assert len(pair(judge)) == 3


def test_one_verdict_of_a_version_on_a_trace(store: str, loopback: Start) -> None:
    """Two runs that assess the same traces at once leave one on each."""
    traces(30)
    server = loopback(latency=0.3)
    judge = judge_at(server.url)
    failures: list[Exception] = []

    def work() -> None:
        try:
            assert len(assess(judge, cache=False, progress=False).failures) == 0
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = mlflow.search_traces(return_type="list", include_spans=False)
    assert [len(trace.info.assessments) for trace in found] == [1] * 30


def test_a_deleted_experiment_is_told_before_anything_is_paid_for(store: str) -> None:
    where = mlflow.set_experiment("gone").experiment_id
    table = pd.DataFrame({"q": ["a"], "o": "x"})
    imported = workbench.import_traces(table, inputs="q", outputs="o")
    mlflow.delete_experiment(where)
    judge = workbench.make_judge("q", "Rate {{ outputs }}.", feedback_value_type=bool)
    for traces in (None, imported):
        with pytest.raises(StoreError, match="was deleted"):
            workbench.assess(judge, traces, progress=False)
