"""What models answer is read where it is unambiguous, and told in words where it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.genai.judges.adapters.utils import ChatCompletionError

from workbench.models.answers import AnswerError, check_error, readable

GOOD = '{"result": "good", "rationale": "because"}'


def read(finish_reason: str = "stop", *, tools: bool = False, **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    body = readable({"choices": [choice]}, tools=tools)
    found: dict[str, Any] = json.loads(body["choices"][0]["message"]["content"])
    return found


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        f'<think>Maybe {{"result": "poor"}}?</think>\n\n{GOOD}',
        f'so far {{"result": "poor"}}</think>{GOOD}',
        f"Here you are:\n```json\n{GOOD}\n```\nI hope that helps {{you}}.",
        '{"Result": "good", "RATIONALE": "because"}',
        f"[{GOOD}]",
        f"{GOOD}\n{GOOD}",
        [{"type": "text", "text": GOOD}],
        {"result": "good", "rationale": "because"},
        f'<thought>{{"result": "poor"}}</thought>{GOOD}',
        f'[THINK]{{"result": "poor"}}[/THINK]{GOOD}',
        f'{{"verdict": {GOOD}}}',
        "{'result': 'good', 'rationale': 'because',}",
    ],
)
def test_the_result_is_read_out_of_what_surrounds_it(content: Any) -> None:
    assert read(content=content) == {"result": "good", "rationale": "because"}


@pytest.mark.parametrize(
    ("rationale", "read_as"),
    [
        ("null", ""),
        ('["a", "b"]', "a\nb"),
        ('{"a": 1}', '{"a": 1}'),
        ('"half \\ud83d"', "half \ufffd"),
    ],
)
def test_a_rationale_of_another_type_is_text(rationale: str, read_as: str) -> None:
    assert read(content=f'{{"result": 4, "rationale": {rationale}}}') == {
        "result": 4, "rationale": read_as,
    }  # fmt: skip


@pytest.mark.parametrize("tag", ["<think>", "</think>", "[reasoning]", "<thoughts>a</thoughts>"])
def test_a_tag_that_the_rationale_quotes_is_part_of_it(tag: str) -> None:
    content = json.dumps({"result": "no", "rationale": f"It leaks {tag} tags."})
    assert read(content=content) == {"result": "no", "rationale": f"It leaks {tag} tags."}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": "I'm sorry, I can't rate this."}, "no JSON object"),
        ({"content": None, "refusal": "No."}, "refused: No"),
        ({"content": f'{GOOD} or {{"result": "poor"}}'}, "no JSON object with one"),
    ],
)
def test_a_draft_among_the_thoughts_is_no_answer(message: dict[str, Any], words: str) -> None:
    with pytest.raises(AnswerError, match=words):
        read(reasoning_content=f"perhaps {GOOD}", **message)


def test_an_answer_among_the_thoughts_is_read_where_there_is_no_other() -> None:
    assert read(content="", reasoning_content=f"thinking {GOOD}")["result"] == "good"
    assert read("length", content="", reasoning_content=f"thinking {GOOD}")["result"] == "good"


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        ({"content": None, "refusal": "I cannot assist."}, "stop", "refused: I cannot assist"),
        ({"content": ""}, "length", "cut off at the limit of tokens"),
        ({"content": '{"result": "go'}, "length", r"cut off .* after '{\"result"),
        ({"content": "<think>so"}, "length", "cut off"),
        ({"content": None}, "content_filter", "content filter withheld"),
        ({"content": " "}, "stop", "the answer is empty"),
        ({"content": "<think>so</think>"}, "stop", "empty but for its thoughts"),
        ({"content": ""}, "SAFETY", r"empty \(finish_reason 'SAFETY'\)"),
        ({"content": "I would say good."}, "stop", "no JSON object .*'I would say good"),
        ({"content": f'{GOOD} or {{"result": "poor"}}'}, "stop", "no JSON object with one"),
        (
            {"content": None, "tool_calls": [{"function": {"name": "json_tool_call"}}]},
            "tool_calls", "a tool that was not offered: json_tool_call",
        ),
    ],
)  # fmt: skip
def test_what_is_no_answer_says_what_it_is(
    message: dict[str, Any], reason: str, words: str
) -> None:
    with pytest.raises(AnswerError, match=words):
        read(reason, **message)


@pytest.mark.parametrize(
    ("content", "result", "rationale"),
    [
        ('{\n "result": "good",\n "rationale": "It \\"helps\\", and', "good", 'It "helps", and'),
        ('```json\n{"result": 4.5, "rationale": "so\\', 4.5, "so"),
        ('{"result": true, "ratio', True, ""),
    ],
)
def test_a_rating_before_a_rationale_that_runs_on_is_read(
    content: str, result: Any, rationale: str
) -> None:
    """And the rationale says that it was cut."""
    found = read("length", content=content)
    assert found["result"] == result
    said = "[the answer was cut off at the limit of tokens]"
    assert found["rationale"] == f"{rationale} {said}".strip()


@pytest.mark.parametrize("end", ['"}', '"\n}\n```', ""])
def test_a_rating_before_quotes_that_are_not_escaped_is_read(end: str) -> None:
    """As small models write them; not where more than one rating is stated."""
    content = '{"result": "good", "rationale": "He said "hi" to me.'
    assert read(content=content + end) == {"result": "good", "rationale": 'He said "hi" to me.'}
    upper = content.replace("result", "Result")
    assert read(content=upper + end)["result"] == "good"
    spaces = " \n" * 50_000  # as a model that runs on writes them
    assert read(content=content + spaces + "So." + end)["rationale"].endswith("So.")
    others = [f'{content}", "note": "b "c" d{end}', f'{content}{end} {{"Result": "poor"{end}']
    for other in (*others, '{"result": "good", "poor", "so": "}'):
        with pytest.raises(AnswerError, match="no JSON object"):
            read(content=other)


@pytest.mark.parametrize(
    "content",
    [
        '{"result": "go',
        '{"result": 4',
        '{"rationale": "It hel',
        f'Not {{"result": "go", {GOOD[1:9]}',
    ],
)
def test_a_rating_that_may_be_cut_or_of_a_draft_is_not_read(content: str) -> None:
    with pytest.raises(AnswerError, match="cut off"):
        read("length", content=content)


def anthropic(text: str, ended: str = "end_turn") -> dict[str, Any]:
    thoughts = [{"type": "thinking", "thinking": "hm"}, {"type": "redacted_thinking", "data": "hm"}]
    parts = [*thoughts, {"type": "text", "text": text}]
    return {"content": parts, "stop_reason": ended, "type": "message"}


def gemini(text: str, ended: str = "STOP") -> dict[str, Any]:
    parts = [{"text": "hm", "thought": True}, {"text": text}]
    return {"candidates": [{"content": {"parts": parts}, "finishReason": ended}]}


@pytest.mark.parametrize(
    ("form", "cut", "withheld"),
    [(anthropic, "max_tokens", "refusal"), (gemini, "MAX_TOKENS", "SAFETY")],
)
def test_answers_of_anthropic_and_gemini_are_read_as_others(
    form: Any, cut: str, withheld: str
) -> None:
    body = readable(form(f"Here: ```{GOOD}```"))
    content = body["candidates"][0]["content"]["parts"] if form is gemini else body["content"]
    assert [json.loads(part["text"]) for part in content] == [json.loads(GOOD)]
    for text, ended, words in (("", cut, "cut off"), ("", withheld, "filter"), ("Hm.", "", "no J")):
        with pytest.raises(AnswerError, match=words):
            readable(form(text, ended or "STOP"))


def test_a_prompt_that_gemini_blocks_is_withheld() -> None:
    with pytest.raises(AnswerError, match=r"content filter withheld the answer \(SAFETY\)"):
        readable({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}})
    with pytest.raises(AnswerError, match="cut off"):
        readable({"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]})


def test_other_forms_and_calls_of_tools_that_were_offered_are_left_alone() -> None:
    for other in ({"output": {"message": "hi"}}, {"content": "hi"}, {"content": {"text": "hi"}}):
        assert readable(other) is other
    asked = anthropic("so", "tool_use")
    asked["content"].append({"type": "tool_use", "name": "get_trace", "input": {}})
    assert readable(asked) is asked
    call = {"choices": [{"message": {"tool_calls": [{"function": {"name": "get_trace"}}]}}]}
    assert readable(call, tools=True) is call
    with pytest.raises(AnswerError, match="without any choice"):
        readable({"choices": []})


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ({"message": "Rate limit exceeded", "code": 429}, 429, "Rate limit exceeded"),
        ({"message": "No auth", "code": "401"}, 401, "No auth"),
        ({"message": "Failed", "metadata": {"raw": "upstream"}}, 502, "Failed: upstream"),
        ("overloaded", 502, "overloaded"),
        ({"message": "Slow down", "code": "rate_limit_exceeded"}, 429, "Slow down"),
        ({"message": "Incorrect API key provided", "code": None}, 401, "Incorrect API key"),
        ({"message": "x", "type": "permission_error"}, 403, "x"),
        ("The model `m` does not exist", 404, "does not exist"),
    ],
)
def test_an_error_in_the_body_decides_by_its_own_status(
    error: Any, status: int, words: str
) -> None:
    with pytest.raises(ChatCompletionError, match=words) as caught:
        check_error({"id": None, "choices": None, "error": error})
    assert caught.value.status_code == status
    check_error({"choices": [{}], "error": None})


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": "up", "code": 429},
        {"detail": "up", "status": 429},
        {"choices": [{"error": {"message": "up", "code": 429}, "message": {"content": ""}}]},
        {"choices": [{"message": {"content": ""}}], "error": {"message": "up", "code": 429}},
    ],
)
def test_an_error_without_a_field_of_that_name(body: dict[str, Any]) -> None:
    with pytest.raises(ChatCompletionError, match="up") as caught:
        check_error(body)
    assert caught.value.status_code == 429
