"""Registered judges come back whole, in any process, and hold no secret."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import mlflow
import pytest
from mlflow.genai.judges import Judge
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import Guidelines, get_scorer
from mlflow.tracing.client import TracingClient

from workbench.alignment.registry import diff, history, load_judge, register, roll_back
from workbench.compat import options
from workbench.errors import ArgumentError, CredentialError, RegistryError, StoreError
from workbench.judging.judge import fingerprint, from_options, make_judge, with_instructions

HEADERS = {"Authorization": "Bearer hidden-in-header", "X-Team": "hidden-in-team"}
SECRETS = ["hidden-in-header", "hidden-in-team", "hidden-in-user", "hidden-in-query",
           "hidden-in-param"]  # fmt: skip
ENVIRONMENT = {
    "WORKBENCH_HEADER_AUTHORIZATION": HEADERS["Authorization"],
    "WORKBENCH_HEADER_X_TEAM": HEADERS["X-Team"],
    "WORKBENCH_BASE_URL_CREDENTIALS": "me:hidden-in-user@?key=hidden-in-query",
    "WORKBENCH_PARAM_API_KEY": "hidden-in-param",
}


def whole_judge() -> Judge:
    """A judge none of whose options has its default value."""
    return from_options(
        {
            "name": "quality",
            "instructions": "Rate {{ conversation }}.\nBe “fair”.",
            "model": "openai:/some-model",
            "description": "How good it is.",
            "feedback_value_type": Literal["good", "fair", "poor"],
            "generate_rationale_first": True,
            "include_tool_calls_in_conversation": True,
            "inference_params": {"temperature": 0.5, "max_tokens": 9, "api_key": "hidden-in-param"},
            "base_url": "http://me:hidden-in-user@127.0.0.1:9/v1?key=hidden-in-query",
            "extra_headers": HEADERS,
            "include_timing_in_conversation": True,
            "model_api": "chat_completions",
            "aggregations": ["mean", "p90"],
            "timeout": 7,
        }
    )


def plain_judge(instructions: str = "Rate {{ inputs }} and {{ outputs }}.", **more: Any) -> Judge:
    return make_judge("quality", instructions, model="openai:/m", **more)


def agreement(accuracy: float, kappa: float = math.nan) -> SimpleNamespace:
    return SimpleNamespace(
        n=40,
        accuracy=accuracy,
        accuracy_interval=(accuracy - 0.1, accuracy + 0.1),
        kappa=kappa,
        kappa_interval=(math.nan, math.nan),
    )


def alignment(original: Judge, proposed: Judge, status: str) -> SimpleNamespace:
    judge = proposed if status == "improved" else original
    return SimpleNamespace(
        judge=judge, original=original, proposed=proposed, status=status,
        headline=f"{status} (uncertain)" if status == "improved" else status,
        before=agreement(0.4), after=agreement(0.8, 0.7),
        fingerprints={"original": fingerprint(original), "aligned": fingerprint(proposed)},
        dataset_digest="d" * 16, split=SimpleNamespace(digest="s" * 16, seed=3), seed=3,
        optimizer="SIMBA", calls=120, reflection_calls=4, tokens=None, cost=0.25, run_id="r" * 32,
    )  # fmt: skip


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)


def test_every_option_survives(store: str, credentials: None) -> None:
    judge = whole_judge()
    wanted = options(judge)
    usual = options(InstructionsJudge(name="n", instructions="{{ inputs }}", model="openai:/m"))
    for name in inspect.signature(InstructionsJudge.__init__).parameters:
        if name not in ("self", "kwargs"):
            assert name in wanted, f"options() does not know MLflow's {name}"
            assert wanted[name] != usual[name], f"this test does not tell whether {name} survives"
    register(judge)
    loaded = load_judge("quality")
    assert options(loaded) == wanted
    assert fingerprint(loaded) == fingerprint(judge)


@pytest.mark.parametrize(
    "value_type",
    [str, bool, int, float, Literal["yes", "no"], Literal[1, 2, 3], float | None, list[str],
     dict[str, int]],
)  # fmt: skip
def test_every_value_type_survives(store: str, value_type: Any) -> None:
    judge = plain_judge(feedback_value_type=value_type)
    register(judge)
    assert options(load_judge("quality")) == options(judge)
    assert fingerprint(load_judge("quality")) == fingerprint(judge)


def test_a_judge_without_value_type_survives(store: str) -> None:
    judge = plain_judge(feedback_value_type=None)
    register(judge)
    assert options(load_judge("quality")) == options(judge)


def test_no_secret_is_stored_or_shown(store: str) -> None:
    registered = register(alignment(whole_judge(), whole_judge(), "rejected"))
    roll_back("quality", 1)
    shown = repr(registered) + registered._repr_html_() + history("quality").to_string()
    folder = Path(store.removeprefix("sqlite:///")).parent
    files = [path for path in folder.rglob("*") if path.is_file()]
    stored = b"".join(path.read_bytes() for path in files)
    assert b"Authorization" in stored  # names are kept, so that they can be asked for
    for secret in SECRETS:
        assert secret.encode() not in stored, secret
        assert secret not in shown, secret


def test_a_secret_that_stands_elsewhere_is_refused(store: str) -> None:
    judge = plain_judge(
        "Rate {{ inputs }}. The key is hidden-in-header.",
        extra_headers={"Authorization": "Bearer hidden-in-header"},
    )
    with pytest.raises(RegistryError, match="instructions, description"):
        register(judge)
    with pytest.raises(RegistryError, match="none"):
        history("quality")


def test_missing_credentials_are_asked_for_by_name(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(whole_judge())
    with pytest.raises(CredentialError) as caught:
        load_judge("quality")
    for variable in ENVIRONMENT:
        assert variable in str(caught.value)
    for variable, value in list(ENVIRONMENT.items())[1:]:
        monkeypatch.setenv(variable, value)
    with pytest.raises(CredentialError, match="AUTHORIZATION"):
        load_judge("quality")
    loaded = load_judge("quality", headers={"Authorization": HEADERS["Authorization"]})
    assert options(loaded) == options(whole_judge())


def test_mlflow_reads_the_same_version(store: str) -> None:
    """Without what it has no place for."""
    judge = plain_judge(base_url="http://127.0.0.1:9/v1", description="d")
    registered = register(judge)
    theirs = get_scorer(name="quality", version=registered.version)
    assert theirs.instructions == judge.instructions
    assert theirs.model == judge.model
    assert theirs._base_url is None
    assert load_judge("quality", 1).scorer_version == theirs.scorer_version == 1


def test_a_judge_registered_by_mlflow_is_loaded_and_listed(store: str) -> None:
    judge = plain_judge()
    judge.register()
    assert options(load_judge("quality")) == options(judge)
    row = history("quality").iloc[0]
    assert (row["version"], row["fingerprint"], row["status"]) == (1, fingerprint(judge), None)
    assert not register(judge).new


def test_the_latest_judge_is_not_registered_twice(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(whole_judge())
    again = register(whole_judge())
    assert (first.version, first.new) == (1, True)
    assert (again.version, again.new) == (1, False)
    renewed = from_options({**options(whole_judge()), "extra_headers": {
        "Authorization": "Bearer renewed-token", "X-Team": "blue-blue"}})  # fmt: skip
    assert register(renewed).version == 1
    other = from_options({**options(whole_judge()), "base_url": "http://127.0.0.1:10/v1"})
    assert register(other).version == 2
    timed = from_options({**options(other), "timeout": 8})
    assert register(timed).version == 3
    assert register(other).version == 4  # only the latest counts


def test_an_alignment_is_registered_with_what_made_it(store: str) -> None:
    original = plain_judge()
    aligned = with_instructions(original, "Rate {{ inputs }} and {{ outputs }}.\nBe strict.")
    register(original)
    registered = register(alignment(original, aligned, "improved"))
    assert (registered.version, registered.status, registered.new) == (2, "improved", True)
    assert "alignment improved (uncertain)" in repr(registered)
    table = history("quality")
    assert list(table["version"]) == [1, 2]
    row = table.iloc[1]
    assert row["fingerprint"] == fingerprint(aligned)
    assert row["parent"] == fingerprint(original)
    assert (row["status"], row["headline"]) == ("improved", "improved (uncertain)")
    assert (row["n"], row["seed"], row["optimizer"]) == (40, 3, "SIMBA")
    assert (row["accuracy_before"], row["accuracy_after"]) == (0.4, 0.8)
    assert row["accuracy_after_interval"] == (0.8 - 0.1, 0.8 + 0.1)
    assert math.isnan(row["kappa_before"])
    assert row["kappa_after"] == 0.7
    assert (row["dataset_digest"], row["split_digest"]) == ("d" * 16, "s" * 16)
    assert (row["calls"], row["reflection_calls"], row["cost"]) == (120, 4, 0.25)
    assert (row["run_id"], row["model"]) == ("r" * 32, "openai:/m")
    assert row["registered_at"].tzinfo is not None


@pytest.mark.parametrize("status", ["unchanged", "rejected"])
def test_an_alignment_that_did_not_improve_registers_the_original(store: str, status: str) -> None:
    original = plain_judge()
    proposed = with_instructions(original, "Rate {{ inputs }} and {{ outputs }} somehow.")
    registered = register(alignment(original, proposed, status))
    assert (registered.version, registered.status) == (1, status)
    assert load_judge("quality").instructions == original.instructions
    row = history("quality").iloc[0]
    assert (row["status"], row["parent"]) == (status, None)
    again = register(alignment(original, proposed, status))
    assert (again.version, again.new) == (1, False)


def test_a_deleted_experiment_takes_no_judge(store: str) -> None:
    mlflow.delete_experiment(mlflow.get_experiment_by_name("test").experiment_id)
    with pytest.raises(StoreError, match="was deleted"):
        register(plain_judge())


def test_another_name_is_the_name_of_the_loaded_judge(store: str) -> None:
    registered = register(plain_judge(extra_headers={"X-A": "abc"}), name="strict quality/2")
    assert registered.name == "strict quality/2"
    assert load_judge("strict quality/2", headers={"X-A": "abc"}).name == "strict quality/2"


def test_a_version_can_be_compared_and_taken_back(store: str) -> None:
    first = plain_judge("Rate {{ inputs }}.\nBe kind.", extra_headers={"X-A": "abc"})
    second = with_instructions(first, "Rate {{ inputs }}.\nBe strict.")
    register(first)
    register(alignment(first, second, "improved"))
    assert diff("quality", 1, 2).splitlines() == [
        "--- quality version 1",
        "+++ quality version 2",
        "@@ -1,2 +1,2 @@",
        " Rate {{ inputs }}.",
        "-Be kind.",
        "+Be strict.",
    ]
    assert diff("quality", 1, 1) == ""
    for text in ("Be kind.", ["Be kind.", "Be brief."]):
        register(Guidelines(name="tone", guidelines=text, model="openai:/m"))
    assert diff("tone", 1, 2).splitlines()[-2:] == [" Be kind.", "+Be brief."]
    back = roll_back("quality", 1)  # needs no credentials
    assert (back.version, back.new) == (3, True)
    assert roll_back("quality", 1).version == 3
    assert load_judge("quality", headers={"X-A": "abc"}).instructions == first.instructions
    table = history("quality")
    assert table["rolled_back_from"].iloc[2] == 1
    assert table["fingerprint"].iloc[2] == fingerprint(first)


def test_unknown_names_and_versions_name_what_exists(store: str) -> None:
    with pytest.raises(RegistryError, match="Registered there: none"):
        load_judge("quality")
    register(plain_judge())
    with pytest.raises(RegistryError, match=r"'test'.*Registered there: 'quality'"):
        load_judge("Quality")
    with pytest.raises(RegistryError, match=r"no version 7\. It has: 1"):
        load_judge("quality", 7)
    with pytest.raises(RegistryError, match="no version 7"):
        roll_back("quality", 7)
    with pytest.raises(RegistryError, match="no version 7"):
        diff("quality", 1, 7)
    with pytest.raises(RegistryError, match="No judge 'other'"):
        history("other")
    with pytest.raises(StoreError, match="no experiment 'elsewhere'"):
        load_judge("quality", experiment="elsewhere")


def test_judges_of_experiments_are_apart(store: str) -> None:
    register(plain_judge(), experiment="one")
    register(plain_judge("Other {{ inputs }}."), experiment="two")
    assert load_judge("quality", experiment="two").instructions == "Other {{ inputs }}."
    with pytest.raises(RegistryError, match="'test'"):
        load_judge("quality")


def test_what_would_not_come_back_is_refused(store: str) -> None:
    for changes, named in (
        ({"aggregations": [max]}, "aggregations"),
        ({"inference_params": {"stop": ("a", "b")}}, "inference_params"),
    ):
        judge = from_options({**options(plain_judge()), **changes})
        with pytest.raises(RegistryError, match=named):
            register(judge)
    with pytest.raises(RegistryError, match="none"):
        history("quality")


def test_only_judges_and_alignments_are_registered(store: str) -> None:
    with pytest.raises(ArgumentError, match="got str"):
        register("quality")  # type: ignore[arg-type]


def test_a_judge_with_memory_keeps_its_base_or_is_refused(store: str) -> None:
    from mlflow.genai.judges.optimizers.memalign.optimizer import MemoryAugmentedJudge

    def around(base: Judge) -> Judge:
        return MemoryAugmentedJudge(
            base_judge=base, reflection_lm="openai:/m", retrieval_k=3,
            embedding_model="openai:/e", embedding_dim=8, _defer_init=True,
        )  # fmt: skip

    made = alignment(plain_judge(), around(plain_judge()), "improved")
    assert register(made).version == 1
    loaded = load_judge("quality")
    assert isinstance(loaded, MemoryAugmentedJudge)
    assert history("quality")["accuracy_after"].iloc[0] == 0.8
    assert register(made).version == 1
    for lost in ({"base_url": "http://127.0.0.1:9/v1"}, {"extra_headers": {"X-A": "abc"}}):
        with pytest.raises(RegistryError, match=r"base_url|extra_headers"):
            register(around(plain_judge(**lost)))


def test_a_server_keeps_the_same(server: str, credentials: None) -> None:
    register(whole_judge())
    loaded = load_judge("quality")
    assert options(loaded) == options(whole_judge())
    assert fingerprint(loaded) == fingerprint(whole_judge())


def test_a_version_of_an_earlier_release_is_loaded(store: str) -> None:
    """The stored form is a promise: judges registered before load with every option."""
    beside = {
        "options": {
            "base_url": "http://127.0.0.1:9/v1/chat/completions",
            "include_timing_in_conversation": False,
            "include_tool_calls_in_conversation": False,
            "timeout": None,
        },
        "typed": True,
        "withheld": {"headers": ["X-Team"]},
        "provenance": {"fingerprint": "f", "status": "improved"},
    }
    form = {
        "name": "quality",
        "aggregations": [],
        "mlflow_version": "3.17.2",
        "serialization_version": 1,
        "instructions_judge_pydantic_data": {
            "instructions": "Rate {{ inputs }} and {{ outputs }}.",
            "model": "openai:/m",
            "feedback_value_type": {"enum": ["good", "poor"], "title": "Result", "type": "string"},
            "workbench": beside,
        },
    }
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    TracingClient().store.register_scorer(experiment, "quality", json.dumps(form))
    loaded = options(load_judge("quality", headers={"X-Team": "blue"}))
    assert loaded["base_url"] == "http://127.0.0.1:9/v1/chat/completions"
    assert loaded["extra_headers"] == {"X-Team": "blue"}
    assert loaded["feedback_value_type"] == Literal["good", "poor"]
    assert history("quality")[["fingerprint", "status"]].iloc[0].tolist() == ["f", "improved"]
