"""Other people's optimizers: every request counted, every failure seen, nobody else touched."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from mlflow.genai.judges.base import AlignmentOptimizer
from simulation import Simulation, items

import workbench
from workbench.alignment.external import propose
from workbench.alignment.heldout import score_held_out
from workbench.alignment.runs import AlignmentData, Lineage
from workbench.compat import options
from workbench.errors import (
    ArgumentError,
    BudgetError,
    CancelledError,
    CredentialError,
    ModelError,
    ReplayError,
    UnreachableModelError,
)
from workbench.judging.judge import with_instructions
from workbench.models.budget import Budget
from workbench.simba.candidate import Learned
from workbench.store.traces import examples

NAME = "good_reply"
TEXT = "Is {{ outputs }} a good reply to {{ inputs }}? Answer yes or no"
MODEL = "openai:/simulated"


@pytest.fixture(scope="module")
def served() -> Iterator[Simulation]:
    with Simulation() as server:
        yield server


@pytest.fixture
def simulation(
    served: Simulation, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Simulation:
    """The simulated model, reached as OpenAI would be."""
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, served.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-simulated-0123456789")
    served.control(failures=0.0)
    return served


def made(**more: Any) -> Any:
    given = {"model": MODEL, "feedback_value_type": Literal["yes", "no"], **more}
    return workbench.make_judge(NAME, TEXT, **given)


@pytest.fixture
def judge() -> Any:
    return made()


def judged(judge: Any, n: int = 24) -> Any:
    """A split of ``n`` labelled and judged traces, all but a few to learn from."""
    table = pd.DataFrame([vars(item) for item in items(n, seed=0)])
    workbench.import_traces(
        table,
        inputs={"message": "question"},
        outputs="answer",
        labels={"ana": ("label", "rationale")},
        label_name=NAME,
        progress=False,
    )
    workbench.assess(judge, progress=False)
    return workbench.pair(judge).split(test_size=0.2)


def proposal(judge: Any, optimizer: Any, split: Any, **options: Any) -> Learned:
    by_id = {example.trace_id: example for example in examples()}
    data = AlignmentData(judge, split.train, by_id, split, Lineage())
    options = {"budget": Budget(), "max_failure_share": 0.05, **options}
    return propose(data, optimizer, **options)


def counted(found: Learned) -> dict[str, int]:
    return {
        "judge": found.judge_calls,
        "reflection": found.reflection_calls,
        "embedding": found.embedding_calls,
    }


def simba() -> AlignmentOptimizer:
    from mlflow.genai.judges.optimizers import SIMBAAlignmentOptimizer

    return SIMBAAlignmentOptimizer(model=MODEL, simba_kwargs={"max_steps": 1, "num_candidates": 3})


def gepa() -> AlignmentOptimizer:
    from mlflow.genai.judges.optimizers import GEPAAlignmentOptimizer

    return GEPAAlignmentOptimizer(model=MODEL, max_metric_calls=30)


def memalign() -> AlignmentOptimizer:
    from mlflow.genai.judges.optimizers import MemAlignOptimizer

    return MemAlignOptimizer(reflection_lm=MODEL, embedding_model="openai:/simulated-embedding")


@pytest.mark.parametrize("make", [simba, gepa, memalign])
def test_calls_are_counted_as_the_server_counts_them(
    simulation: Simulation, judge: Any, make: Callable[[], AlignmentOptimizer]
) -> None:
    """Of each kind; a second run pays for none, and the optimizer is given back as it was."""
    split = judged(judge)
    simulation.control()
    optimizer = make()
    before = dict(vars(optimizer))
    first = proposal(judge, optimizer, split)
    served = simulation.stats()
    assert counted(first) == {kind: served[kind] for kind in counted(first)}
    assert sum(counted(first).values()) > 0
    assert first.usage.tokens
    assert first.notes == ()
    assert vars(optimizer) == before
    second = proposal(judge, make(), split)
    assert second.judge_calls == second.embedding_calls == 0
    assert second.known >= first.judge_calls


def test_every_option_of_the_judge_is_kept(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judge and reflection are asked at the judge's base URL, with its headers and parameters."""
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name)
    judge = made(
        base_url=simulation.url,
        description="kept",
        extra_headers={"X-Team": "judges-7"},
        inference_params={"temperature": 0.0},
        generate_rationale_first=True,
    )
    split = judged(judge)
    simulation.control()
    found = proposal(judge, gepa(), split)
    assert simulation.stats()["reflection"] == found.reflection_calls > 0
    kept, original = options(found.judge), options(judge)
    assert {k for k, v in kept.items() if v != original[k]} <= {"instructions"}


def test_a_judge_with_memory_asks_the_real_models_again(simulation: Simulation, judge: Any) -> None:
    """After the run neither its base judge nor its embeddings go by the meter's names."""
    split = judged(judge)
    found = proposal(judge, memalign(), split)
    simulation.control()
    # A text that dspy has not cached in an earlier run of this test.
    feedback = found.judge(inputs={"message": uuid.uuid4().hex}, outputs="b")
    assert feedback.value in ("yes", "no")
    assert feedback.source.source_id == MODEL
    served = simulation.stats()
    assert (served["judge"], served["embedding"]) == (1, 1)


def test_an_alignment_tells_what_an_optimizer_spent(simulation: Simulation, judge: Any) -> None:
    """Embeddings that its judge needs in the held-out test are among the calls."""
    judged(judge)
    simulation.control()
    alignment = workbench.align(judge, optimizer=memalign(), gate="none", progress=False)
    served = simulation.stats()
    assert served["reflection"] == 1
    assert alignment.reflection_calls == served["reflection"] + served["embedding"]
    assert alignment.calls == served["judge"]
    assert alignment.usage.requests == alignment.calls + alignment.reflection_calls
    assert alignment.tokens
    places = alignment.preflight.set_index("check")["finding"]
    assert {"judge model", "reflection model", "embedding model"} <= set(places.index)


def test_embeddings_of_the_held_out_test_are_paid(simulation: Simulation, judge: Any) -> None:
    """With their tokens; once the verdicts are known there are none."""
    split = judged(judge)
    by_id = {example.trace_id: example for example in examples()}
    data = AlignmentData(judge, split.train, by_id, split, Lineage())
    found = proposal(judge, memalign(), split).judge
    simulation.control()
    first, again = score_held_out(data, found), score_held_out(data, found)
    served = simulation.stats()
    assert first.embeddings.requests == served["embedding"] > 0
    assert first.embeddings.tokens
    assert first.paid.requests == served["judge"]
    assert again.paid.requests == again.embeddings.requests == 0


def test_embeddings_stay_on_the_judges_server(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labelled items do not go to the provider's public address: in learning, test and later."""
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name)
    judge = made(base_url=simulation.url)
    split = judged(judge)
    data = AlignmentData(judge, split.train, {e.trace_id: e for e in examples()}, split, Lineage())
    simulation.control()
    found = proposal(judge, memalign(), split)
    tested = score_held_out(data, found.judge)
    found.judge(inputs={"message": uuid.uuid4().hex}, outputs="b")
    assert found.embedding_calls * tested.embeddings.requests > 0
    told = found.embedding_calls + tested.embeddings.requests + 1
    assert simulation.stats()["embedding"] == told


def test_reflection_may_be_reached_elsewhere(simulation: Simulation, judge: Any) -> None:
    """At the address that is given for it, while the judge stays where it is."""
    split = judged(judge)
    simulation.control()
    with Simulation() as other:
        found = proposal(judge, gepa(), split, reflection_base_url=other.url)
        assert other.stats()["reflection"] == found.reflection_calls > 0
    assert (simulation.stats()["judge"], simulation.stats()["reflection"]) == (found.judge_calls, 0)


@pytest.mark.parametrize("make", [simba, gepa, memalign])
def test_a_server_that_fails_all_calls_is_an_error(
    simulation: Simulation, judge: Any, make: Callable[[], AlignmentOptimizer]
) -> None:
    """However the optimizer takes failures, it is told what came back, and soon."""
    split = judged(judge)
    simulation.control(failures=1.0)
    with pytest.raises(ModelError, match="simulated failure"):
        proposal(judge, make(), split)
    assert sum(simulation.stats()[kind] for kind in ("judge", "reflection", "embedding")) < 150


def test_few_failures_are_retried(simulation: Simulation, judge: Any) -> None:
    """With 3 % failing requests the run goes on: they are retried, and none is lost."""
    split = judged(judge)
    simulation.control(failures=0.03)
    found = proposal(judge, simba(), split)
    served = simulation.stats()
    assert found.judge_calls + found.reflection_calls == served["judge"] + served["reflection"]
    assert served["failed"] > 0
    assert found.notes == ()


class Asking(AlignmentOptimizer):
    """Asks the judge about every trace, so often, in threads, and swallows what fails."""

    def __init__(self, times: int = 4, meanwhile: Callable[[], Any] = lambda: None) -> None:
        self.times, self.meanwhile = times, meanwhile

    def align(self, judge: Any, traces: list[Any]) -> Any:
        tried = with_instructions(judge, TEXT + ". Be fair.")

        def ask(trace: Any) -> None:
            for _ in range(self.times):
                with contextlib.suppress(Exception):
                    tried(inputs=str(trace.info.trace_id), outputs="it")

        threads = [threading.Thread(target=ask, args=[trace]) for trace in traces]
        for thread in threads:
            thread.start()
        self.meanwhile()
        for thread in threads:
            thread.join()
        return tried


class Waiting(AlignmentOptimizer):
    """Names its model as MLflow's optimizers do, and waits until another alignment is there."""

    def __init__(self) -> None:
        self._model, self.seen, self.both = MODEL, set[str](), threading.Barrier(2, timeout=60)

    def align(self, judge: Any, traces: list[Any]) -> Any:
        self.seen.add(self._model)
        self.both.wait()
        return judge


def test_one_optimizer_serves_two_alignments_at_once(simulation: Simulation, judge: Any) -> None:
    """Each is metered by itself, and the object is not changed."""
    split, optimizer = judged(judge), Waiting()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: proposal(judge, optimizer, split), range(2)))
    assert len(optimizer.seen) == 2
    assert optimizer._model == MODEL


def test_a_budget_ends_an_optimizer_to_the_call(simulation: Simulation, judge: Any) -> None:
    """Whatever it makes of the refusals, and no request goes beyond."""
    split = judged(judge)
    simulation.control()
    with pytest.raises(BudgetError, match=r"Asking was stopped.*15 of 15 calls are used"):
        proposal(judge, Asking(), split, budget=Budget(15))
    assert simulation.stats()["judge"] == 15


def test_an_optimizer_is_cancelled_at_its_next_call(simulation: Simulation, judge: Any) -> None:
    split = judged(judge)
    stop = threading.Event()
    stop.set()
    simulation.control()
    with pytest.raises(CancelledError, match="judge stays as it was"):
        proposal(judge, Asking(), split, stop=stop)
    assert simulation.stats()["judge"] == 0


@pytest.mark.parametrize(("allowed", "raises"), [(0.05, True), (0.6, False)])
def test_unusable_answers_count_as_failures(
    store: str, loopback: Any, allowed: float, raises: bool
) -> None:
    """Answers that nobody can read are lost; which share is tolerated is a setting."""
    judge = made(model="openai:/any", base_url=loopback(junk_share=0.25).url)
    split = judged(judge, 40)
    expected = (
        pytest.raises(ModelError, match=r"judge calls gave no usable answer.*rather not say")
        if raises
        else contextlib.nullcontext()
    )
    with expected:
        found = proposal(judge, Asking(), split, max_failure_share=allowed)
        assert any("could not be used" in note for note in found.notes)


def test_a_resumed_run_counts_what_it_lost_against_all_answers(store: str, loopback: Any) -> None:
    """Only lost answers are asked for again; those that are known are usable all the same."""
    server = loopback(junk_share=0.25)
    judge = made(model="openai:/any", base_url=server.url)
    split = judged(judge, 40)
    proposal(judge, Asking(1), split, max_failure_share=0.6)
    server.control(junk_share=1.0)
    again = proposal(judge, Asking(1), split, max_failure_share=0.6)
    assert again.known > again.judge_calls > 0


def test_ctrl_c_is_no_lost_answer(store: str, loopback: Any) -> None:
    """Whatever was lost before, an interrupt stays one, so that nothing goes on and pays."""

    class Interrupted(Asking):
        def align(self, judge: Any, traces: list[Any]) -> Any:
            super().align(judge, traces)
            raise KeyboardInterrupt

    judge = made(model="openai:/any", base_url=loopback(junk_share=0.25).url)
    split = judged(judge, 40)
    with pytest.raises(KeyboardInterrupt):
        proposal(judge, Interrupted(), split)


def test_a_model_that_takes_no_schema_is_asked_without_one(store: str, loopback: Any) -> None:
    """Its refusals are no losses, and what it is asked then are judge calls all the same."""
    judge = made(model="openai:/any", base_url=loopback(no_schema=True).url)
    split = judged(judge)
    found = proposal(judge, Asking(1), split)
    assert found.judge_calls >= len(split.train) + len(split.dev)
    assert (found.reflection_calls, found.notes) == (0, ())


def test_prompts_too_long_for_the_model_are_lost(store: str, loopback: Any) -> None:
    """Nobody asks them again without a schema."""
    server = loopback()
    judge = made(model="openai:/any", base_url=server.url)
    split = judged(judge)
    server.control(refuses="This model's maximum context length is 100 tokens.")
    with pytest.raises(ModelError, match=r"gave no usable answer.*maximum context length is 100"):
        proposal(judge, Asking(1), split)


def test_the_time_that_is_set_for_all_calls_is_an_optimizers_as_well(
    store: str, loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = loopback()
    judge = made(model="openai:/any", base_url=server.url)
    split = judged(judge, 12)
    server.control(latency=3)
    monkeypatch.setenv("MLFLOW_GATEWAY_ROUTE_TIMEOUT_SECONDS", "0.3")
    with pytest.raises(ModelError, match=r"no usable answer.*(?i:timed? ?out)"):
        proposal(judge, Asking(1), split)


def test_a_refused_key_is_one_error_without_the_key(store: str, loopback: Any) -> None:
    """What cannot succeed is not tried a thousand times, and the key is not repeated."""
    server = loopback()
    judge = made(model="openai:/any", base_url=server.url)
    split = judged(judge)
    server.stop()
    strict = loopback(key="sk-another-0123456789")
    with pytest.raises(CredentialError) as caught:
        proposal(made(model="openai:/any", base_url=strict.url), Asking(), split)
    assert "sk-loopback" not in str(caught.value)
    assert strict.requests <= len(split.train) + len(split.dev)
    with pytest.raises(UnreachableModelError):
        proposal(judge, Asking(), split)


def test_code_beside_an_optimizer_is_never_touched(simulation: Simulation, judge: Any) -> None:
    """The user's calls are neither counted nor answered from the cache, prints are printed."""
    import litellm

    split = judged(judge)
    other = with_instructions(judge, TEXT + ". Be fair.")
    given: list[Any] = []

    def meanwhile() -> None:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            print("seen")
        given.append(printed.getvalue())
        given.append(other(inputs={"message": "a"}, outputs="b").value)
        answer = litellm.completion(
            "openai/simulated", [{"role": "user", "content": "hi"}], api_base=simulation.url
        )
        given.append(answer.choices[0].message.content)
        with pytest.raises(Exception, match="Connection error"):
            litellm.completion(
                "openai/x", [{"role": "user", "content": "hi"}], api_base="http://127.0.0.1:9/v1"
            )

    simulation.control()
    stdout = sys.stdout
    found = proposal(judge, Asking(1, meanwhile), split)
    assert sys.stdout is stdout
    assert given[0] == "seen\n"
    assert given[1] in ("yes", "no")
    assert given[2] == "OK"
    served = simulation.stats()
    assert found.judge_calls == served["judge"] - 1
    assert (found.reflection_calls, served["other"]) == (0, 1)


def test_an_error_of_the_optimizer_itself_is_passed_on(simulation: Simulation, judge: Any) -> None:
    """A bug is not reported as a model that did not answer."""

    class Broken(AlignmentOptimizer):
        def align(self, judge: Any, traces: list[Any]) -> Any:
            raise ZeroDivisionError("a bug")

    class Forgetful(AlignmentOptimizer):
        def align(self, judge: Any, traces: list[Any]) -> Any:
            pass

    split = judged(judge)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        proposal(judge, Broken(), split)
    with pytest.raises(ArgumentError, match=r"Forgetful\.align gave a NoneType, where a judge"):
        proposal(judge, Forgetful(), split)


def test_only_simba_is_replayed(simulation: Simulation, judge: Any, tmp_path: Path) -> None:
    """What another optimizer asks is not in a recording, and no model is asked."""
    split = judged(judge)
    path = tmp_path / "answers.jsonl.gz"
    with workbench.recording(path):
        proposal(judge, Asking(1), split)
    simulation.control()
    with workbench.replaying(path), pytest.raises(ReplayError, match="What Asking asks"):
        proposal(judge, Asking(1), split)
    assert simulation.stats()["judge"] == 0
