"""Judges: made, copied without loss, told apart by fingerprint, and free of shown secrets."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from functools import partial
from typing import Any, Literal

import pytest
from asking import OwnJudge
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Feedback
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.judges.model_api import ModelAPI
from mlflow.genai.scorers import Guidelines, scorer
from pydantic import PrivateAttr

import workbench
from workbench.compat import endpoint, options
from workbench.credentials import credentials_of, redact
from workbench.errors import ArgumentError
from workbench.judging.judge import (
    chat_endpoint,
    fingerprint,
    from_options,
    is_cacheable,
    make_judge,
    with_instructions,
)
from workbench.models.offline import MODEL
from workbench.scale import scale_of

# Each option with a value that is not its default.
WHOLE: dict[str, Any] = {
    "name": "quality",
    "instructions": "Rate {{ conversation }}.",
    "model": "openai:/some-model",
    "description": "How good it is.",
    "feedback_value_type": Literal["good", "fair", "poor"],
    "generate_rationale_first": True,
    "include_tool_calls_in_conversation": True,
    "inference_params": {"temperature": 0.5},
    "base_url": "http://127.0.0.1:9/v1",
    "extra_headers": {"Authorization": "Bearer abc"},
    "include_timing_in_conversation": True,
    "model_api": "chat_completions",
    "aggregations": ["mean"],
    "timeout": 7,
}

OTHER: dict[str, Any] = {
    **WHOLE,
    "name": "other",
    "instructions": "Judge {{ conversation }}.",
    "model": "openai:/other-model",
    "description": "Else.",
    "feedback_value_type": Literal["good", "poor", "fair"],
    "generate_rationale_first": False,
    "include_tool_calls_in_conversation": False,
    "inference_params": {"temperature": 0.6},
    "base_url": "http://127.0.0.1:10/v1",
    "extra_headers": {"Authorization": "Bearer xyz"},
    "include_timing_in_conversation": False,
    "model_api": "default",
    "aggregations": ["max"],
    "timeout": 8,
}
NOT_DECIDING = ["name", "description", "extra_headers", "aggregations", "timeout"]
DECIDING = sorted(set(WHOLE) - set(NOT_DECIDING))


def plain(**changes: Any) -> Any:
    given = {"model": "openai:/m", **changes}
    return make_judge("quality", "Rate {{ inputs }} and {{ outputs }}.", **given)


def test_every_option_of_mlflow_is_known() -> None:
    parameters = set(inspect.signature(InstructionsJudge.__init__).parameters)
    assert parameters - {"self", "kwargs"} <= set(options(plain())) == set(WHOLE)


@pytest.mark.parametrize("name", sorted(set(WHOLE) - {"instructions"}))
def test_a_copy_with_new_instructions_keeps(name: str) -> None:
    judge = from_options(WHOLE)
    copy = with_instructions(judge, "Rate {{ conversation }}. Be strict.")
    assert options(copy)[name] == options(judge)[name] == WHOLE[name]
    assert copy.instructions == "Rate {{ conversation }}. Be strict."
    assert judge.instructions == WHOLE["instructions"]


def test_the_options_of_make_judge_are_passed_on() -> None:
    judge = plain(
        feedback_value_type=bool,
        description="d",
        inference_params={"seed": 1},
        extra_headers={"X-A": "b"},
        generate_rationale_first=True,
    )
    found = options(judge)
    assert (found["description"], found["feedback_value_type"]) == ("d", bool)
    assert found["inference_params"] == {"seed": 1}
    assert found["extra_headers"] == {"X-A": "b"}
    assert found["generate_rationale_first"] is True


@pytest.mark.parametrize("name", DECIDING)
def test_the_fingerprint_tells_judges_apart_by(name: str) -> None:
    assert fingerprint(from_options({**WHOLE, name: OTHER[name]})) != fingerprint(
        from_options(WHOLE)
    )


@pytest.mark.parametrize("name", NOT_DECIDING)
def test_the_fingerprint_does_not_depend_on(name: str) -> None:
    assert fingerprint(from_options({**WHOLE, name: OTHER[name]})) == fingerprint(
        from_options(WHOLE)
    )


def test_credentials_do_not_enter_the_fingerprint() -> None:
    known = plain(base_url="https://host/v1", inference_params={"seed": 1})
    secret = plain(
        base_url="https://me:pw@host/v1?key=abc", inference_params={"seed": 1, "api_key": "abc"}
    )
    assert fingerprint(known) == fingerprint(secret)


def test_a_longer_timeout_makes_no_other_judge() -> None:
    """It is never sent, and who allows more time after time-outs keeps what was answered."""
    assert fingerprint(plain(inference_params={"timeout": 900})) == fingerprint(plain())
    assert fingerprint(plain(inference_params={"timeout": 9, "seed": 1})) == fingerprint(
        plain(inference_params={"seed": 1})
    )


def test_the_query_of_a_base_url_makes_another_judge_unless_it_is_a_credential() -> None:
    def at(query: str) -> str:
        return fingerprint(plain(base_url=f"https://host/v1{query}"))

    assert len({at(""), at("?deployment=a"), at("?deployment=b"), at("?api-version=1")}) == 4
    assert at("?deployment=a&code=4711") == at("?sig=1&deployment=a") == at("?deployment=a")
    assert at("?a=1&b=2") == at("?b=2&a=1")
    for name in ("key", "code", "subscription-key", "x-amz-signature", "accessToken", "pwd"):
        assert at(f"?{name}=4711") == at("") == at("?4711")


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    code = (
        "from workbench.judging.judge import make_judge, fingerprint\n"
        "print(fingerprint(make_judge('quality', 'Rate {{ inputs }} and {{ outputs }}.',"
        " model='openai:/m', inference_params={'b': 1, 'a': {'y': 2, 'x': 3}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    judge = plain(inference_params={"a": {"x": 3, "y": 2}, "b": 1})
    assert done.stdout.strip() == fingerprint(judge)
    assert len(fingerprint(judge)) == 16


@given(st.text(min_size=1).filter(lambda text: "{" not in text and "}" not in text))
def test_any_change_of_instructions_changes_the_fingerprint(text: str) -> None:
    judge = plain()
    changed = with_instructions(judge, judge.instructions + text)
    assert fingerprint(changed) != fingerprint(judge)
    assert changed.instructions == judge.instructions + text


def test_built_in_judges_have_a_fingerprint_but_no_instructions_to_replace() -> None:
    first = Guidelines(name="polite", guidelines="Be polite.", model="openai:/m")
    second = Guidelines(name="polite", guidelines="Be brief.", model="openai:/m")
    assert fingerprint(first) != fingerprint(second)
    with pytest.raises(ArgumentError, match=r"Guidelines.*make_judge"):
        options(first)


class Keyword(OwnJudge):
    """A judge of a user's own, which MLflow cannot write down."""

    word: str = "good"
    api_key: str = ""
    _model: str = PrivateAttr(default="openai:/m")

    def __call__(self, *, outputs: Any = None) -> Feedback:
        return Feedback(name=self.name, value="yes" if self.word in str(outputs) else "no")


class Prudent(InstructionsJudge):
    """A judge made from instructions whose calls a user has changed."""

    def __call__(self, **more: Any) -> Feedback:
        return Feedback(name=self.name, value="no")


def test_a_class_of_one_s_own_has_a_fingerprint() -> None:
    """By its source and its fields, of which the name and what is secret say nothing."""
    with pytest.raises(MlflowException, match="Unsupported scorer type"):
        Keyword(name="q").model_dump()
    mark = fingerprint(Keyword(name="q"))
    assert mark == fingerprint(Keyword(name="other", description="d"))
    assert mark == fingerprint(Keyword(name="q", api_key="sk-4711"))
    assert mark != fingerprint(Keyword(name="q", word="bad"))

    def another(**changes: Any) -> Any:
        return type("Keyword", (Keyword,), {"__module__": __name__, **changes})(name="q")

    assert mark != fingerprint(another())
    given = {"name": "q", "instructions": "Rate {{ outputs }}.", "model": "openai:/m"}
    assert fingerprint(Prudent(**given)) != fingerprint(from_options(given))


def test_only_judges_that_are_known_whole_are_cacheable() -> None:
    """Of a user's own class or function nobody knows the state."""

    @scorer
    def short(outputs: Any) -> Feedback:
        return Feedback(value="yes" if len(outputs) < int(os.environ["SHORT"]) else "no")

    assert is_cacheable(plain())
    assert is_cacheable(Guidelines(name="polite", guidelines="Be polite.", model="openai:/m"))
    assert not is_cacheable(Keyword(name="q"))
    assert not is_cacheable(short)
    assert not is_cacheable(
        Prudent(name="q", instructions="Rate {{ outputs }}.", model="openai:/m")
    )


# -- the model ------------------------------------------------------------------------------


def test_without_a_model_the_embedded_one_is_used_and_said_once() -> None:
    code = (
        "from workbench.judging.judge import make_judge\n"
        "for name in ('a', 'b'):\n"
        "    print(make_judge(name, 'Rate {{ inputs }}.').model)"
    )
    environment = {"PATH": "", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [MODEL, MODEL]
    said = [line for line in done.stderr.splitlines() if "workbench:" in line]
    assert len(said) == 1
    assert "no language model" in said[0]
    assert "WORKBENCH_MODEL" in said[0]


def test_the_environment_may_name_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import workbench

    monkeypatch.setenv("WORKBENCH_MODEL", "openai:/named")
    assert make_judge("q", "Rate {{ inputs }}.").model == "openai:/named"
    assert workbench.DEFAULT_MODEL == "openai:/named"
    assert plain().model == "openai:/m"


@pytest.mark.parametrize(
    ("model", "base", "endpoint"),
    [
        ("openai:/m", "http://h:8000/v1", "http://h:8000/v1/chat/completions"),
        ("openai:/m", "http://h:8000/v1/", "http://h:8000/v1/chat/completions"),
        ("openai:/m", "https://h/v1?key=a", "https://h/v1/chat/completions?key=a"),
        ("openai:/m", "https://u:p@h", "https://u:p@h/chat/completions"),
        ("openai:/m", "http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("anthropic:/m", "http://h/v1", "http://h/v1"),
    ],
)
def test_a_base_url_is_completed_to_the_endpoint(model: str, base: str, endpoint: str) -> None:
    assert chat_endpoint(model, base) == endpoint
    assert options(plain(model=model, base_url=base))["base_url"] == endpoint
    assert chat_endpoint(model, endpoint) == endpoint


def test_a_base_url_is_completed_for_chat_alone() -> None:
    """MLflow hands that of other APIs to a client which adds its own path."""
    base = "http://h:8000/v1"

    def completed(api: Any) -> Any:
        judge = plain(base_url=base, model_api=api, feedback_value_type=bool)
        return options(judge)["base_url"]

    for api in ("decisions", ModelAPI.DECISIONS):
        assert completed(api) == base
    for api in ("chat_completions", "default", ModelAPI.CHAT_COMPLETIONS, ModelAPI.DEFAULT, None):
        assert completed(api) == f"{base}/chat/completions"


@pytest.mark.parametrize(
    "base",
    ["localhost:8000/v1", "ftp://h/v1", "h", "http://", "/v1", "http://[::1/v1", "http://h:80000"],
)
def test_a_base_url_that_is_none_is_refused(base: str) -> None:
    """That of the reflection model too, before the judge's calls are paid."""
    for make in (plain, partial(workbench.SIMBA, "openai:/m")):
        with pytest.raises(ArgumentError, match=r"http\(s\) URL"):
            make(base_url=base)


@pytest.mark.parametrize("model", [None, MODEL])
def test_a_base_url_needs_a_model_that_is_there(model: str | None) -> None:
    """Nobody is to take the embedded model's verdicts for those of the server."""
    with pytest.raises(ArgumentError, match="Name the server's model"):
        plain(model=model, base_url="http://localhost:8000/v1")


def test_a_refused_base_url_shows_no_credentials() -> None:
    with pytest.raises(ArgumentError) as caught:
        plain(base_url="ftp://me:hidden@h/v1?key=hidden")
    assert "hidden" not in str(caught.value)


# -- what MLflow says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instructions", "said"),
    [
        ("Rate it.", "at least one variable"),
        ("Rate {{ answer }}.", "answer"),
        ("", "instructions"),
    ],
)
def test_mlflow_says_what_is_wrong_with_instructions(instructions: str, said: str) -> None:
    with pytest.raises(MlflowException, match=said):
        make_judge("q", instructions, model="openai:/m")


def test_expectations_may_be_judged() -> None:
    judge = make_judge("q", "Is {{ outputs }} {{ expectations }}?", model="openai:/m")
    assert judge.template_variables == {"outputs", "expectations"}


def test_an_unsupported_value_type_is_mlflow_s_error() -> None:
    with pytest.raises(MlflowException, match="feedback_value_type"):
        plain(feedback_value_type=set)


def test_the_scale_is_that_of_the_type() -> None:
    scale = scale_of(plain(feedback_value_type=Literal["good", "poor", "fair"]))
    assert scale is not None
    assert scale.values == ("poor", "fair", "good")
    assert scale_of(plain()) is None


# -- secrets --------------------------------------------------------------------------------


def test_credentials_of_a_judge_are_redacted() -> None:
    """Header values, those of the address and of parameters."""
    judge = plain(
        base_url="https://me:pass-word-123@h/v1?key=in-query-1234",
        extra_headers={"Authorization": "Bearer in-header-1234"},
        inference_params={"api_key": "in-params-1234"},
    )
    text = (
        "401 for pass-word-123, in-query-1234, Bearer in-header-1234, in-header-1234, "
        "in-params-1234"
    )
    said = redact(text, credentials_of(*endpoint(judge)))
    assert said == "401 for ***, ***, ***, ***, ***"
