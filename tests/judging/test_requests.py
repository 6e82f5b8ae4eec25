"""One judge asked about one item: what its answer is kept under."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from asking import OwnJudge, run
from loopback import Loopback
from mlflow.entities import Feedback
from mlflow.genai.judges import Judge

import workbench
from workbench import make_judge
from workbench.judging.judge import fingerprint
from workbench.judging.requests import Asker, answers_from, say_where
from workbench.models.cache import AnswerCache
from workbench.models.offline import MODEL
from workbench.store.traces import Example

ITEM = Example("tr-1", {"q": "question"}, "answer")


class Confused(OwnJudge):
    """Answers off its scale where the output is odd."""

    def __call__(self, *, outputs: Any = None) -> Feedback:
        return Feedback(name=self.name, value="yes" if outputs == "fine" else "perhaps")


def test_a_verdict_says_that_its_answer_came_and_was_unusable() -> None:
    items = [Example(text, {}, text) for text in ("fine", "odd")]
    verdicts = run(Confused(name="q"), items)
    assert [(v.error is None, v.unusable) for v in verdicts] == [(True, False), (False, True)]


def test_a_request_that_is_refused_is_told_apart_from_a_lost_one(loopback: Any) -> None:
    """A prompt may be too long for the server, which is no failure of the server's."""
    items = [Example(text, {}, text) for text in ("short", "long")]
    server = loopback(script="200x1,400x9")
    first, second = run(judge_of("openai:/m", base_url=server.url), items, concurrency=1)
    assert (first.error, first.unusable) == (None, False)
    assert "scripted answer 400" in str(second.error)
    assert second.unusable


def judge_of(model: str, **options: Any) -> Judge:
    return make_judge("quality", "Rate {{ outputs }}.", model=model, **options)


def key(judge: Judge) -> str | None:
    return Asker(judge).request(ITEM).cache_key


@pytest.fixture(autouse=True)
def _no_servers_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL", "AZURE_API_BASE", "MLFLOW_GATEWAY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("openai:/m", "OPENAI_API_BASE"),
        ("openai:/m", "OPENAI_BASE_URL"),
        ("azure:/m", "AZURE_API_BASE"),
        ("azure:/m", "AZURE_API_VERSION"),
        ("gateway:/m", "MLFLOW_GATEWAY_URI"),
        ("ollama:/m", "OLLAMA_API_BASE"),
        ("hosted_vllm:/m", "HOSTED_VLLM_API_BASE"),
        ("bedrock:/m", "AWS_REGION"),
        ("vertex_ai:/m", "VERTEX_LOCATION"),
        ("databricks:/m", "DATABRICKS_HOST"),
        ("huggingface:/m", "HF_ENDPOINT"),
        ("sap-ai-core:/m", "MLFLOW_GENAI_JUDGE_BASE_URL"),
    ],
)
def test_a_server_that_the_environment_names_has_answers_of_its_own(
    model: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the judge, and so its fingerprint, stays the same."""
    judge = judge_of(model)
    mark, keys = fingerprint(judge), {key(judge)}
    for place in ("http://one.example/v1", "http://two.example/v1"):
        monkeypatch.setenv(variable, place)
        keys.add(key(judge))
        assert key(judge) == key(judge)
        assert fingerprint(judge) == mark
    assert len(keys) == 3


def test_the_gateway_of_a_tracking_server_has_answers_of_its_own(store: str) -> None:
    """Without MLFLOW_GATEWAY_URI MLflow asks the gateway of the tracking server."""
    judge = judge_of("gateway:/m")
    keys = set()
    for place in ("http://one.example", "http://two.example"):
        mlflow.set_tracking_uri(place)
        keys.add(key(judge))
    mlflow.set_tracking_uri(store)
    assert len(keys) == 2


def test_another_server_than_the_own_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of other providers count for nothing, nor any where a base URL is given."""
    given = judge_of("openai:/m", base_url="http://given.example/v1")
    keys = key(judge_of("openai:/m")), key(given), key(judge_of(MODEL))
    monkeypatch.setenv("AZURE_API_BASE", "http://one.example")
    monkeypatch.setenv("OLLAMA_HOST", "http://one.example")
    monkeypatch.setenv("OPENAI_LOG", "debug")
    monkeypatch.setenv("OPENAI_PROXY", "http://one.example")
    assert (key(judge_of("openai:/m")), key(given), key(judge_of(MODEL))) == keys
    monkeypatch.setenv("OPENAI_API_BASE", "http://one.example")
    assert (key(given), key(judge_of(MODEL))) == keys[1:]


def test_credentials_are_no_part_of_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that is renewed costs nothing, and none is in what is digested."""
    monkeypatch.setenv("OPENAI_API_BASE", "http://me:secret-1@one.example/v1?key=secret-2")
    before = answers_from("openai:/m")
    assert "secret" not in str(before)
    monkeypatch.setenv("OPENAI_API_BASE", "http://me:secret-3@one.example/v1?key=secret-4")
    assert answers_from("openai:/m") == before
    monkeypatch.setenv("OPENAI_API_BASE", "http://[no-address")
    assert answers_from("openai:/m") != before


def test_a_model_that_is_not_named_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's built-in judges take theirs from the environment at each call."""
    before = answers_from(None)
    monkeypatch.setenv("MLFLOW_GENAI_JUDGE_DEFAULT_MODEL", "openai:/another")
    assert answers_from(None) != before
    assert answers_from(None) == answers_from("openai:/another")


def test_two_servers_do_not_get_each_others_answers(
    loopback: Callable[..., Loopback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same judge asks each of them, and each only once."""
    judge = judge_of("openai:/simulated")
    one, two = loopback(), loopback()
    with AnswerCache(tmp_path / "answers") as cache:
        for server in (one, two, one, two):
            monkeypatch.setenv("OPENAI_API_BASE", server.url)
            assert run(judge, [ITEM], cache=cache)[0].error is None
    assert (one.stats()["requests"], two.stats()["requests"]) == (1, 1)


class Counting(OwnJudge):
    """A judge of a user's own, with a state that nobody sees."""

    asked: list[str] = []  # noqa: RUF012  # a field of pydantic

    @property
    def feedback_value_type(self) -> Any:
        return int

    def __call__(self, *, outputs: Any) -> Feedback:
        self.asked.append(outputs)
        return Feedback(name=self.name, value=len(self.asked))


def test_answers_of_a_judge_that_is_not_known_whole_are_not_kept(tmp_path: Path) -> None:
    """Neither between runs nor for equal items within one."""
    judge = Counting(name="quality")
    with AnswerCache(tmp_path / "answers") as cache:
        values = [v.value for _ in range(2) for v in run(judge, [ITEM, ITEM], cache=cache)]
        assert len(cache) == 0
    assert sorted(values) == [1, 2, 3, 4]


def test_where_a_judges_model_is_reached_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(judge: Judge, *others: tuple[str | None, str | None]) -> str:
        say_where(judge, *others)
        return capsys.readouterr().out

    assert said(judge_of(MODEL)) == ""
    own = said(judge_of("openai:/m", base_url="http://user:secret-of-mine@localhost:8000/v1"))
    assert own == "Judge 'quality': openai:/m at http://localhost:8000/v1/chat/completions\n"
    assert said(judge_of("openai:/m")).endswith("at its provider's public address\n")
    reflects = said(judge_of(MODEL), ("openai:/r", "http://localhost:7000/v1"))
    assert reflects.startswith("Reflection model: openai:/r at http://localhost:7000/v1")
    assert said(judge_of(MODEL), (None, None), (MODEL, None)) == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9000/v1")
    assert said(judge_of("openai:/m")).endswith("openai:/m at http://localhost:9000/v1\n")
    with workbench.recording(tmp_path / "answers.jsonl"):
        run(judge_of(MODEL), [ITEM])
    with workbench.replaying(tmp_path / "answers.jsonl"):
        assert said(judge_of("openai:/m")) == ""
