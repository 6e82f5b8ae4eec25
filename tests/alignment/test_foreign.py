"""MLflow's own optimizers under the harness: every call counted, every failure seen."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from simulation import Simulation, items

import workbench
from workbench.alignment.external import learn, metering
from workbench.errors import CredentialError, ModelError, UnreachableModelError
from workbench.judging.judge import with_instructions

NAME = "good_reply"
TEXT = "Is {{ outputs }} a good reply to {{ inputs }}? Answer yes or no"
MODEL = "openai:/simulated"


@pytest.fixture
def simulation(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """The simulated model, reached as OpenAI would be; dspy keeps no answers."""
    import dspy

    monkeypatch.setattr(dspy, "cache", dspy.cache)  # put back afterwards
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    with Simulation() as server:
        for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-simulated-0123456789")
        yield server


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


@pytest.fixture
def judge() -> Any:
    return made()


def made(**options: Any) -> Any:
    return workbench.make_judge(
        NAME, TEXT, model=MODEL, feedback_value_type=Literal["yes", "no"], **options
    )


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
    """Judge, reflection and embedding calls agree with the server's own count, and the total."""
    split = judged(judge)
    simulation.control()
    _, spent = learn(judge, make(), split, progress=False)
    served = simulation.stats()
    counted = {kind: spent.count(kind).requests for kind in ("judge", "reflection", "embedding")}
    assert counted == {kind: served[kind] for kind in counted}
    assert sum(counted.values()) > 0
    assert spent.tokens
    assert spent.notes("it") == ()


def test_answers_that_were_paid_for_are_not_paid_again(simulation: Simulation, judge: Any) -> None:
    """A second run asks as often, and every answer of a judge is known."""
    split = judged(judge)
    _, first = learn(judge, simba(), split, progress=False)
    assert first.judge.requests > 0
    _, second = learn(judge, simba(), split, progress=False)
    assert second.judge.requests == 0
    assert second.judge.known == first.judge.known + first.judge.answers


@pytest.mark.parametrize("make", [simba, gepa, memalign])
def test_a_server_that_fails_all_calls_is_an_error(
    simulation: Simulation, judge: Any, make: Callable[[], AlignmentOptimizer]
) -> None:
    """However the optimizer takes failures, the run raises with what came back, and ends soon."""
    split = judged(judge)
    simulation.control(failures=1.0)
    with pytest.raises(ModelError, match="simulated failure"):
        learn(judge, make(), split, progress=False)
    assert sum(simulation.stats()[kind] for kind in ("judge", "reflection", "embedding")) < 150


def test_few_failures_are_borne_and_told(simulation: Simulation, judge: Any) -> None:
    """With 3 % failing requests the run goes on; each is counted apart, and none is lost."""
    split = judged(judge)
    simulation.control(failures=0.03)
    _, spent = learn(judge, simba(), split, progress=False)
    served = simulation.stats()
    assert spent.judge.requests + spent.reflection.requests == (
        served["judge"] + served["reflection"]
    )
    assert spent.judge.failed + spent.reflection.failed == served["failed"] > 0
    assert spent.judge.lost == 0
    assert any("requests failed" in note for note in spent.notes("SIMBA"))


@pytest.mark.parametrize(("borne", "raises"), [(0.05, True), (0.6, False)])
def test_unusable_answers_count_as_failures(
    store: str, loopback: Any, borne: float, raises: bool
) -> None:
    """Answers that nobody can read are lost ones; how many are borne is a setting."""
    server = loopback(junk_share=0.25)
    judge = workbench.make_judge(
        NAME,
        TEXT,
        model="openai:/any",
        base_url=server.url,
        feedback_value_type=Literal["yes", "no"],
    )
    split = judged(judge, 40)

    def learned() -> Any:
        return learn(judge, Asking(4), split, max_failure_share=borne, progress=False)

    if raises:
        with pytest.raises(ModelError, match=r"judge calls gave no usable answer.*rather not say"):
            learned()
    else:
        _, spent = learned()
        assert 0.1 < spent.judge.share_lost < 0.5
        assert spent.judge.lost + spent.judge.answers + spent.judge.known == 4 * (
            len(split.train) + len(split.dev)
        )


class Asking(AlignmentOptimizer):
    """Asks the judge about every trace, so often, in threads, and swallows what fails."""

    def __init__(self, times: int) -> None:
        self.times = times

    def align(self, judge: Any, traces: list[Any]) -> Any:
        tried = with_instructions(judge, TEXT + ". Be fair.")

        def ask(trace: Any) -> None:
            for _ in range(self.times):
                try:
                    tried(inputs=str(trace.info.trace_id), outputs="it")
                except Exception:
                    continue

        threads = [threading.Thread(target=ask, args=[trace]) for trace in traces]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return judge


def test_a_refused_key_is_one_call_and_an_error_without_the_key(store: str, loopback: Any) -> None:
    """What cannot succeed is not tried a thousand times, and the key is not repeated."""
    server = loopback()
    judge = workbench.make_judge(
        NAME,
        TEXT,
        model="openai:/any",
        base_url=server.url,
        feedback_value_type=Literal["yes", "no"],
    )
    split = judged(judge)
    server.stop()
    strict = loopback(key="sk-another-0123456789")
    moved = workbench.make_judge(
        NAME,
        TEXT,
        model="openai:/any",
        base_url=strict.url,
        feedback_value_type=Literal["yes", "no"],
    )
    with pytest.raises(CredentialError) as caught:
        learn(moved, Asking(5), split, progress=False)
    assert "sk-loopback" not in str(caught.value)
    assert strict.requests <= len(split.train) + len(split.dev)
    with pytest.raises(UnreachableModelError):
        learn(judge, Asking(5), split, progress=False)


def test_everything_is_put_back_afterwards(simulation: Simulation, judge: Any) -> None:
    """Judges, dspy and litellm are what they were, also after an error."""
    import litellm
    from dspy.clients import execution

    def now() -> list[Any]:
        return [
            InstructionsJudge.__call__,
            execution.execute,
            execution._attempt,
            litellm.completion,
            litellm.embedding,
        ]

    before = now()
    with metering():
        assert not set(before) & set(now())
    assert now() == before
    with contextlib.suppress(ZeroDivisionError), metering():
        _ = 1 / 0
    assert now() == before


def test_the_workbenchs_own_calls_are_not_counted(simulation: Simulation, judge: Any) -> None:
    """Judging in another thread while an optimizer is at work is not the optimizer's cost."""
    judged(judge)
    other = with_instructions(judge, TEXT + ". Be strict.")
    with metering() as meter:
        thread = threading.Thread(target=workbench.assess, args=[other], kwargs={"progress": False})
        thread.start()
        thread.join()
        assert meter.judge.requests == 0
        other(inputs={"message": "a"}, outputs="b")
    assert meter.judge.requests == 1


def test_an_error_of_the_optimizer_itself_is_passed_on(simulation: Simulation, judge: Any) -> None:
    """A bug is not told as a model that did not answer."""

    class Broken(AlignmentOptimizer):
        def align(self, judge: Any, traces: list[Any]) -> Any:
            raise ZeroDivisionError("a bug")

    split = judged(judge)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        learn(judge, Broken(), split, progress=False)


def test_reflection_goes_where_the_judge_is(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's optimizers reflect at the judge's base URL, not at the provider's address."""
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name)
    judge = made(base_url=simulation.url)
    split = judged(judge)
    simulation.control()
    proposed, spent = learn(judge, gepa(), split, progress=False)
    assert simulation.stats()["reflection"] == spent.reflection.requests > 0
    assert spent.reflection.failed == 0
    assert proposed._base_url == judge._base_url


def test_an_alignment_tells_what_a_foreign_optimizer_spent(
    simulation: Simulation, judge: Any
) -> None:
    """Alignment.calls and .reflection_calls hold the optimizer's calls, the run as well."""
    judged(judge)
    simulation.control()
    alignment = workbench.align(judge, optimizer=memalign(), gate="none", progress=False)
    served = simulation.stats()
    # One distillation and its embeddings, and those that its judge needs in the held-out test.
    assert alignment.reflection_calls == served["reflection"] + served["embedding"]
    assert served["reflection"] == 1
    assert alignment.calls == served["judge"]
    assert alignment.tokens
