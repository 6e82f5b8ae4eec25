"""What the reflection model is shown, and what becomes of its answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from loopback import Loopback

import workbench
from workbench import offline
from workbench.cache import AnswerCache
from workbench.errors import ModelError
from workbench.judge import Verdict
from workbench.reflection import Case, Item, Reflector, Request, allowed_values
from workbench.scale import Scale
from workbench.traces import Example

SCALE = Scale.of(["poor", "fair", "good"])


def case(i: int, outputs: str, verdict: str, label: str) -> Case:
    item = Item(Example(f"tr-{i}", {"q": i}, outputs, {"gold": "x"}), label, f"because {i}")
    return Case(item, Verdict(f"tr-{i}", verdict, f"seems {verdict}"))


def request(fields: tuple[str, ...] = ("inputs", "outputs"), n: int = 8) -> Request:
    wrong = tuple(case(i, f"it is {i} cm", "poor", "good") for i in range(n))
    right = tuple(case(i, "it is nice", "poor", "poor") for i in range(n, 2 * n))
    return Request("Rate {{ outputs }}.", wrong, right, fields, "the judge rates too low")


def judge(model: str = offline.MODEL, **options: object) -> object:
    return workbench.make_judge(
        "q",
        "Rate {{ outputs }}.",
        model=model,
        feedback_value_type=Literal["poor", "fair", "good"],
        **options,
    )


def test_a_case_shows_both_sides_with_their_reasons() -> None:
    """Verdict and rationale of the judge stand beside label and rationale of people."""
    shown = json.loads(request().as_inputs(SCALE)["disagreements"].splitlines()[0])
    assert shown["judge_verdict"] == "poor"
    assert shown["judge_rationale"] == "seems poor"
    assert shown["human_label"] == "good"
    assert shown["human_rationale"] == "because 0"
    assert shown["outputs"] == "it is 0 cm"


def test_only_what_the_judge_sees_is_shown() -> None:
    """A judge of outputs alone is not explained by inputs or gold answers."""
    shown = json.loads(
        request(fields=("outputs",)).as_inputs(SCALE)["disagreements"].splitlines()[0]
    )
    assert "inputs" not in shown
    assert "expectations" not in shown


def test_a_case_is_one_line_whatever_it_holds() -> None:
    """Line separators of any alphabet in a text or a rationale do not break a case in two."""
    odd = tuple(case(i, f"a\u2028b\x85c\u2029d\x0be {i}", "poor", "good") for i in range(3))
    inputs = Request("r", odd, (), ("outputs",)).as_inputs(SCALE)
    assert len(inputs["disagreements"].splitlines()) == 3


def test_another_server_has_answers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment names the server, its answers are not taken for another's."""
    cache = AnswerCache(tmp_path)
    asked = Reflector(judge("openai:/m"), SCALE, cache=cache)
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")
    cache.put(asked._key(request(), 0), {"rules": ["x"]})
    assert asked.is_known(request(), 0)
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:2/v1")
    assert not asked.is_known(request(), 0)


def test_long_fields_are_cut_and_say_so() -> None:
    """A text of megabytes does not fill the prompt."""
    huge = Request("r", (case(0, "x" * 5_000_000, "poor", "good"),), (), ("outputs",))
    line = huge.as_inputs(SCALE)["disagreements"]
    assert len(line) < 4000
    assert "more characters" in json.loads(line)["outputs"]


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (SCALE, {"values": ["poor", "fair", "good"], "ordered": True}),
        (
            Scale.of(["red", "green", "blue"]),
            {"values": ["red", "green", "blue"], "ordered": False},
        ),
        (
            Scale("numeric", low=1, high=5, integer=True),
            {"range": [1, 5], "whole_numbers": True, "ordered": True},
        ),
    ],
)
def test_the_scale_is_told(scale: Scale, told: dict[str, object]) -> None:
    """The reflection model knows the values and whether they have an order."""
    assert allowed_values(scale) == told


def test_the_same_request_is_paid_once(tmp_path: Path) -> None:
    """The second time the answer comes from the cache, also for another reflector."""
    cache = AnswerCache(tmp_path)
    first = Reflector(judge(), SCALE, cache=cache).propose([(request(), 0)])[0]
    assert first.calls == 1
    assert first.rules
    again = Reflector(judge(), SCALE, cache=cache)
    assert again.is_known(request(), 0)
    assert not again.is_known(request(), 1)
    second = again.propose([(request(), 0)])[0]
    assert second.calls == 0
    assert second.rules == first.rules


def test_another_reflection_model_has_answers_of_its_own(tmp_path: Path) -> None:
    """Answers are kept by model, so that one model's rules are not taken for another's."""
    cache = AnswerCache(tmp_path)
    Reflector(judge(), SCALE, cache=cache).propose([(request(), 0)])
    assert not Reflector(judge(), SCALE, model="openai:/m", cache=cache).is_known(request(), 0)


def test_answers_keep_the_order_of_the_requests() -> None:
    """Requests run in parallel and come back in order."""
    many = [(request(n=n), 0) for n in (8, 2, 9)]
    answers = Reflector(judge(), SCALE).propose(many)
    assert [bool(answer.rules) for answer in answers] == [True, False, True]


def test_a_dead_reflection_model_says_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is an error with the provider's words, the model's name and a way on."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123456")
    dead = judge("openai:/m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match=r"openai:/m") as caught:
        Reflector(dead, SCALE).propose([(request(), 0)])
    assert "sk-secret" not in str(caught.value)
    assert "Run again" in str(caught.value)


@pytest.mark.parametrize(
    "says",
    [
        '[[ ## rules ## ]]\n["Be strict on promises."]\n\n[[ ## completed ## ]]',
        '{"rules": ["Be strict on promises."]}',
        "[[ ## rules ## ]]\n- Be strict on promises.",
        "Be strict on promises.",
    ],
)
def test_an_answer_in_another_form_is_read_and_paid_once(
    says: str, loopback: Callable[..., Loopback], tmp_path: Path
) -> None:
    """JSON, a list or a sentence is taken as it is: no second request asks for another form."""
    server = loopback(says=says)
    asked = Reflector(
        judge("openai:/m", base_url=server.url), SCALE, cache=AnswerCache(tmp_path)
    ).propose([(request(), 0)])[0]
    assert asked.rules == ("Be strict on promises.",)
    assert asked.calls == server.requests == 1
    assert asked.tokens == 110


@pytest.mark.parametrize("says", ["", "None.", "I would rather not say."])
def test_an_answer_that_states_nothing_is_an_error(
    says: str, loopback: Callable[..., Loopback], tmp_path: Path
) -> None:
    """What holds no rule is told, after one request, and not kept as an answer."""
    server, cache = loopback(says=says), AnswerCache(tmp_path)
    reflector = Reflector(judge("openai:/m", base_url=server.url), SCALE, cache=cache)
    with pytest.raises(ModelError, match="no usable answer"):
        reflector.propose([(request(), 0)])
    assert server.requests == 1
    assert not reflector.is_known(request(), 0)


def test_no_rule_is_an_answer(loopback: Callable[..., Loopback]) -> None:
    """A model that finds nothing in common may say so."""
    server = loopback(says='{"rules": []}')
    answer = Reflector(judge("openai:/m", base_url=server.url), SCALE).propose([(request(), 0)])[0]
    assert answer.rules == ()
    assert answer.calls == 1
