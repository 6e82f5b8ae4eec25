"""Which model reflects, how it is reached, and what becomes of its answers."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from loopback import Loopback

import workbench
from workbench.errors import CancelledError, ModelError
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.models.client import Outcome
from workbench.models.offline import MODEL
from workbench.models.runner import Runner
from workbench.scale import Scale
from workbench.simba import reflector
from workbench.simba.candidate import Case, Item
from workbench.simba.reflection import Request
from workbench.store.traces import Example

SCALE = Scale.of(["poor", "fair", "good"])


class Reflector(reflector.Reflector):
    """A reflector with a runner of its own, closed after the test."""

    open: ClassVar[list[Reflector]] = []

    def __init__(self, judge: Any, scale: Scale, **options: Any) -> None:
        names = ("cache", "budget", "stop", "concurrency")
        runner = Runner(**{name: options.pop(name) for name in names if name in options})
        super().__init__(judge, scale, runner, **options)
        self.open.append(self)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while Reflector.open:
        one = Reflector.open.pop()
        one.close()
        one.runner.client.close()


def case(i: int, outputs: str, verdict: str, label: str) -> Case:
    item = Item(Example(f"tr-{i}", {"q": i}, outputs, {"gold": "x"}), label, f"because {i}")
    return Case(item, Verdict(f"tr-{i}", verdict, f"seems {verdict}"))


def request(fields: tuple[str, ...] = ("inputs", "outputs"), n: int = 8) -> Request:
    wrong = tuple(case(i, f"it is {i} cm", "poor", "good") for i in range(n))
    right = tuple(case(i, "it is nice", "poor", "poor") for i in range(n, 2 * n))
    return Request("Rate {{ outputs }}.", wrong, right, fields, "the judge rates too low")


def rules(answer: Outcome) -> list[str]:
    """The rules that an answer states."""
    return list((answer.answer or {}).get("rules", ()))


def judge(model: str = MODEL, **options: object) -> object:
    return workbench.make_judge(
        "q",
        "Rate {{ outputs }}.",
        model=model,
        feedback_value_type=Literal["poor", "fair", "good"],
        **options,
    )


def test_another_server_has_answers_of_its_own(
    tmp_path: Path, loopback: Callable[..., Loopback], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment names the server, its answers are not taken for another's."""
    cache = AnswerCache(tmp_path)
    monkeypatch.setenv("OPENAI_API_BASE", loopback(says='["Be strict on promises."]').url)
    for calls in (1, 0):
        asked = Reflector(judge("openai:/m"), SCALE, cache=cache).propose([request()], 0)
        assert asked[0].paid.requests == calls
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:9/v1")
    with pytest.raises(ModelError):
        Reflector(judge("openai:/m"), SCALE, cache=cache).propose([request()], 0)


def test_the_same_request_is_paid_once(tmp_path: Path) -> None:
    """The second time the answer comes from the cache, also for another reflector."""
    cache = AnswerCache(tmp_path)
    first = Reflector(judge(), SCALE, cache=cache).propose([request()], 0)[0]
    assert first.paid.requests == 1
    assert rules(first)
    again = Reflector(judge(), SCALE, cache=cache)
    second = again.propose([request()], 0)[0]
    assert second.paid.requests == 0
    assert rules(second) == rules(first)
    assert again.propose([request()], 1)[0].paid.requests == 1


def test_answers_keep_the_order_of_the_requests() -> None:
    """Requests run in parallel and come back in order."""
    many = [request(n=n) for n in (8, 2, 9)]
    answers = Reflector(judge(), SCALE).propose(many, 0)
    assert [bool(rules(answer)) for answer in answers] == [True, False, True]


def test_a_dead_reflection_model_says_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is an error with the provider's words, the model's name and a way on."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123456")
    dead = judge("openai:/m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match=r"openai:/m") as caught:
        Reflector(dead, SCALE).propose([request()], 0)
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
    ).propose([request()], 0)[0]
    assert rules(asked) == ["Be strict on promises."]
    assert asked.paid.requests == server.requests == 1
    assert asked.paid.tokens == 110


class Moody(http.server.BaseHTTPRequestHandler):
    """Answers with rules, but refuses (``says``) what is asked with a focus named in ``refused``.

    Where ``status`` is not 200 it fails in this way instead.
    """

    refused: frozenset[str] = frozenset()
    says = "I'm sorry, but I can't assist with that."
    status = 200
    ended = "stop"
    context = 10**9  # tokens, of four characters each
    refusal = "request exceeds the available context size ({} tokens)"
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        type(self).asked += 1
        refuses = any(focus in body for focus in self.refused)
        text = self.says if refuses else '[[ ## rules ## ]]\n["Be strict on promises."]'
        status = self.status if refuses else 200
        told: dict[str, object] = {
            "id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": self.ended,
                         "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }  # fmt: skip
        if len(body) / 4 > self.context:
            status, said = 400, self.refusal.format(self.context)
            told = {"error": {"message": said, "type": "exceed_context_size_error"}}
        elif status != 200:
            told = {"error": {"message": f"the provider says {status}"}}
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[type[Moody], str]]]:
    """Starts a reflection model that refuses some requests; gives its state and its address."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-123456")
    servers = []

    def start(**behaviour: object) -> tuple[type[Moody], str]:
        state = type("State", (Moody,), behaviour)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), state)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return state, f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def focused(*names: str) -> list[Request]:
    return [replace(request(), focus=f"focus {name}") for name in names]


@pytest.mark.parametrize("says", ["I'm sorry, but I can't assist with that.", "", '["I can\'t."]'])
def test_a_refusal_among_several_gives_no_rules_and_is_not_kept(
    says: str, moody: Callable[..., tuple[type[Moody], str]], tmp_path: Path
) -> None:
    """The others' rules are used; the next run asks again for those that are missing."""
    state, url = moody(refused=frozenset({"focus b"}), says=says)
    cache = AnswerCache(tmp_path)
    reflector = Reflector(judge("openai:/m", base_url=url), SCALE, cache=cache)
    asked = focused("a", "b", "c")
    answers = reflector.propose(asked, 0)
    assert [rules(answer) for answer in answers] == [
        ["Be strict on promises."], [], ["Be strict on promises."]
    ]  # fmt: skip
    assert [bool(answer.fault) for answer in answers] == [False, True, False]
    assert answers[1].paid.requests == 1
    assert answers[1].paid.tokens == 110
    assert (reflector.asked, reflector.failures) == (3, 1)
    state.refused = frozenset()
    again = Reflector(judge("openai:/m", base_url=url), SCALE, cache=cache).propose(asked, 0)
    assert [answer.paid.requests for answer in again] == [0, 1, 0]


def test_too_many_failures_end_it(moody: Callable[..., tuple[type[Moody], str]]) -> None:
    """A third of them is borne, and two always; beyond that it says what came back."""
    _, url = moody(refused=frozenset({"focus bad"}), status=422)
    asked = Reflector(judge("openai:/m", base_url=url), SCALE, max_failure_share=0.05)
    asked.propose(focused("good", "bad 1"), 0)
    asked.propose(focused("bad 2"), 0)
    with pytest.raises(ModelError, match=r"3 of 5 requests.*no usable answer. At most 33%"):
        asked.propose(focused("good", "bad 3"), 0)
    patient = Reflector(judge("openai:/m", base_url=url), SCALE, max_failure_share=0.75)
    patient.propose(focused("good", "bad 1"), 0)
    patient.propose(focused("bad 2", "bad 3"), 0)  # no later round must have an answer
    assert patient.failures == 3


def test_unusable_answers_are_borne_as_long_as_one_was_usable(
    moody: Callable[..., tuple[type[Moody], str]],
) -> None:
    """By whatever share of failed judge calls is allowed."""
    _, url = moody(refused=frozenset({"focus bad"}))
    asked = Reflector(judge("openai:/m", base_url=url), SCALE, max_failure_share=0.0)
    answers = asked.propose(focused("bad 1", "bad 2", "bad 3", "good"), 0)
    assert [bool(rules(answer)) for answer in answers] == [False, False, False, True]
    asked.propose(focused("bad 4", "bad 5"), 1)
    assert asked.failures == 5


def test_when_no_first_request_is_answered_it_ends(
    moody: Callable[..., tuple[type[Moody], str]],
) -> None:
    """However much is allowed: a model that never answers is none."""
    _, url = moody(refused=frozenset({"focus"}))
    asked = Reflector(judge("openai:/m", base_url=url), SCALE, max_failure_share=1.0)
    with pytest.raises(ModelError, match=r"(?s)openai:/m had no usable answer.*I'm sorry"):
        asked.propose(focused("a", "b"), 0)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_key_or_model_ends_it_at_once(
    status: int, moody: Callable[..., tuple[type[Moody], str]]
) -> None:
    """Even where other requests were answered: no later one would be."""
    _, url = moody(refused=frozenset({"focus b"}), status=status)
    asked = Reflector(judge("openai:/m", base_url=url), SCALE, max_failure_share=1.0)
    with pytest.raises(ModelError, match=f"the provider says {status}"):
        asked.propose(focused("a", "b", "c"), 0)


def test_a_provider_that_is_out_of_order_is_asked_again(
    loopback: Callable[..., Loopback],
) -> None:
    """Errors that pass are no refusals; each request is counted."""
    server = loopback(script="500x1,503x1", says='["Be strict on promises."]')
    asked = Reflector(judge("openai:/m", base_url=server.url), SCALE)
    answer = asked.propose([request()], 0)[0]
    assert rules(answer) == ["Be strict on promises."]
    assert answer.paid.requests == server.requests == 3


def test_a_refusal_is_replayed_as_one(
    moody: Callable[..., tuple[type[Moody], str]], tmp_path: Path
) -> None:
    """A file of answers holds what had no answer, so that the same comes of it."""
    state, url = moody(refused=frozenset({"focus b"}))
    path = tmp_path / "answers.jsonl"
    with workbench.recording(path):
        first = Reflector(judge("openai:/m", base_url=url), SCALE).propose(focused("a", "b"), 0)
    made = state.asked
    with workbench.replaying(path):
        replayed = Reflector(judge("openai:/m"), SCALE)
        again = replayed.propose(focused("a", "b"), 0)
        assert [(rules(one), one.paid) for one in again] == [(rules(o), o.paid) for o in first]
        assert replayed.failures == 1
    assert state.asked == made


@pytest.mark.parametrize("says", ["", "None.", "I would rather not say."])
def test_an_answer_that_states_nothing_is_an_error(
    says: str, loopback: Callable[..., Loopback], tmp_path: Path
) -> None:
    """What holds no rule is told, after one request, and not kept as an answer."""
    server, cache = loopback(says=says), AnswerCache(tmp_path)
    asking = judge("openai:/m", base_url=server.url)
    for asked in (1, 2):
        with pytest.raises(ModelError, match="no usable answer"):
            Reflector(asking, SCALE, cache=cache).propose([request()], 0)
        assert server.requests == asked


def test_requests_are_sized_to_the_context(loopback: Callable[..., Loopback]) -> None:
    """Of an unknown model 8,000 tokens are taken; the answer is limited as well."""
    server = loopback(says='["Be strict on promises."]')
    asking = judge("openai:/m", base_url=server.url)
    for context, most in ((None, 32_000), (3000, 12_000)):
        Reflector(asking, SCALE, context=context).propose([request(n=200)], 0)
        body = server.stats()["body"]
        assert sum(len(message["content"].encode()) for message in body["messages"]) < most
        assert 600 in (body.get("max_tokens"), body.get("max_completion_tokens"))


def test_no_rule_is_an_answer(loopback: Callable[..., Loopback]) -> None:
    """A model that finds nothing in common may say so."""
    server = loopback(says='{"rules": []}')
    answer = Reflector(judge("openai:/m", base_url=server.url), SCALE).propose([request()], 0)[0]
    assert rules(answer) == []
    assert answer.paid.requests == 1


def test_once_stopped_no_request_is_begun(loopback: Callable[..., Loopback]) -> None:
    """Neither of those that wait for their turn, nor again of one that failed."""
    server = loopback(script="500x99", latency=0.3)
    stop = threading.Event()
    asking = Reflector(
        judge("openai:/m", base_url=server.url),
        SCALE,
        concurrency=2,
        stop=stop,
    )
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(CancelledError):
        asking.propose([request(n=n) for n in range(1, 9)], 0)
    begun = server.requests
    assert begun <= 4
    time.sleep(0.7)
    assert server.requests == begun


def test_an_answer_is_limited_and_the_limit_can_be_set(loopback: Callable[..., Loopback]) -> None:
    """600 tokens unless told otherwise; sampling parameters reach the model as well."""
    server = loopback(says='["Be strict on promises."]')

    def sent(**options: Any) -> dict[str, Any]:
        Reflector(judge("openai:/m", base_url=server.url), SCALE, **options).propose([request()], 0)
        body: dict[str, Any] = server.stats()["body"]
        return body

    # Some servers read one name alone.
    assert sent()["max_completion_tokens"] == sent()["max_tokens"] == 600
    more = sent(inference_params={"max_tokens": 50, "temperature": 0.5})
    assert (more["max_completion_tokens"], more["temperature"]) == (50, 0.5)


def test_a_timeout_is_repeated_once_and_says_how_to_allow_more(
    loopback: Callable[..., Loopback],
) -> None:
    """A model that takes too long is no reason to wait four times."""
    server = loopback(latency=2)
    asked = Reflector(
        judge("openai:/m", base_url=server.url), SCALE, inference_params={"timeout": 0.3}
    )
    # Without the advice of dspy's transport, whose objects nobody has here.
    with pytest.raises(ModelError, match=r"timed out[^;]*\. .*inference_params=\{'timeout'"):
        asked.propose([request()], 0)
    assert server.requests == 2


def test_headers_of_the_judge_are_kept(loopback: Callable[..., Loopback]) -> None:
    """The reflection model is reached as the judge's is."""
    server = loopback(says='["Be strict on promises."]')
    own = judge("openai:/m", base_url=server.url, extra_headers={"X-Team": "shop"})
    Reflector(own, SCALE).propose([request()], 0)
    assert server.stats()["headers"]["x-team"] == "shop"


def test_requests_count_against_the_budget(loopback: Callable[..., Loopback]) -> None:
    """Calls and tokens, once each; what is known is free."""
    server = loopback(says='["Be strict on promises."]')
    budget = Budget(5, tokens=200_000)
    asked = Reflector(judge("openai:/m", base_url=server.url), SCALE, budget=budget)
    asked.propose([request()], 0)
    assert (budget.spent, budget.spent_tokens) == (1, 110)


def test_a_prompt_too_long_for_the_server_is_made_smaller(
    moody: Callable[..., tuple[type[Moody], str]],
) -> None:
    """The context is that of the server's refusal, for later requests as well."""
    state, url = moody(context=3000)
    reflector = Reflector(judge("openai:/m", base_url=url), SCALE)
    assert rules(reflector.propose([request(n=200)], 0)[0]) == ["Be strict on promises."]
    assert (state.asked, reflector.context) == (2, 3000)
    assert rules(reflector.propose([request(n=201)], 1)[0]) == ["Be strict on promises."]
    assert state.asked == 3


@pytest.mark.parametrize(
    ("refusal", "context"),
    [
        ("`inputs` tokens + `max_new_tokens` must be <= {}. Given: 9000", 3000),
        ("decoder prompt is longer than the maximum model length of {}.", 3000),
        ("The input token count (9000) exceeds the maximum number of tokens allowed ({}).", 3000),
        ("Please reduce the length of the prompt.", 3000),
        (
            "gpt-4-1106: maximum context length is {} tokens. However, you requested 6500 tokens "
            "(4500 in the messages, 2000 in the completion)",
            3000,
        ),
        ("The context window is 6,000 tokens.", 3000),  # so it is thought: more than was estimated
    ],
)
def test_whatever_a_server_says_of_a_prompt_too_long(
    refusal: str, context: int, moody: Callable[..., tuple[type[Moody], str]]
) -> None:
    """Its number is taken where there is one that is smaller, else half of what was thought."""
    _, url = moody(context=3000, refusal=refusal)
    reflector = Reflector(judge("openai:/m", base_url=url), SCALE)
    assert rules(reflector.propose([request(n=200)], 0)[0]) == ["Be strict on promises."]
    assert reflector.context == context


def test_a_prompt_that_is_always_too_long_is_an_error(
    moody: Callable[..., tuple[type[Moody], str]],
) -> None:
    """After a few smaller ones, in the server's words."""
    state, url = moody(context=1, refusal="This prompt is too long.")
    with pytest.raises(ModelError, match="This prompt is too long"):
        Reflector(judge("openai:/m", base_url=url), SCALE).propose([request(n=200)], 0)
    assert state.asked <= 4


def test_what_an_answer_that_was_cut_states_is_used_without_a_word_of_dspys(
    moody: Callable[..., tuple[type[Moody], str]], capfd: pytest.CaptureFixture[str]
) -> None:
    says = '["Be strict on promises.", "Be ki'
    state, url = moody(refused=frozenset({"focus"}), says=says, ended="length")
    reflector = Reflector(judge("openai:/m", base_url=url), SCALE)
    assert rules(reflector.propose([request()], 0)[0]) == ["Be strict on promises."]
    state.says = '["Be stri'
    assert "cut before it had stated a rule" in str(reflector.propose(focused("b"), 0)[0].fault)
    assert "truncated" not in capfd.readouterr().err


def test_of_an_answer_that_was_cut_the_half_line_is_left_out() -> None:
    """Unless it ended a sentence, or is of JSON."""
    whole = "1. Be strict on promises.\n2. Be kind to jokes"
    assert reflector.whole_lines(whole) == "1. Be strict on promises."
    assert reflector.whole_lines(whole + ".") == whole + "."
    assert (
        reflector.whole_lines('["Be strict on promises.", "Be ki')
        == '["Be strict on promises.", "Be ki'
    )
