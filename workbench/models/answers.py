"""What a chat completion holds: an error in the guise of an answer, or the JSON that was asked for.

Models think aloud, wrap JSON in prose or fences, and write its keys as they like. What is
unambiguous is read; anything else is an `AnswerError` that says what came instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.compat import HTTPStatusError
from workbench.formatting import storable

RESULT, RATIONALE = "result", "rationale"

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"^.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_CUT_THOUGHT = re.compile(r"<(?:think|thinking|reasoning)>.*$", re.DOTALL | re.IGNORECASE)

_ENDED = {
    "length": "the answer was cut off at the limit of tokens",
    "max_tokens": "the answer was cut off at the limit of tokens",
    "content_filter": "the provider's content filter withheld the answer",
}


class AnswerError(Exception):
    """The model answered, but not usably."""


def said(body: Any) -> str:
    """Return the provider's own words in the body of an error; "" where there are none."""
    error = body.get("error") or body.get("detail") or body.get("message") or ""
    if isinstance(error, Mapping):
        more = error.get("metadata")
        raw = more.get("raw") if isinstance(more, Mapping) else None
        return ": ".join(str(part) for part in (error.get("message"), raw) if part)
    return error if isinstance(error, str) else json.dumps(error)


def check_error(body: Any) -> None:
    """Raise for an error that came with status 200; its own code then counts as the status.

    Raises
    ------
    HTTPStatusError
        With that code, and the provider's words.
    """
    if not isinstance(body, Mapping) or not body.get("error") or body.get("choices"):
        return
    error = body["error"]
    code = str(error.get("code") or error.get("status")) if isinstance(error, Mapping) else ""
    status = int(code) if code.isdecimal() and 400 <= int(code) < 600 else 502
    raise HTTPStatusError(status, said(body) or "an error without a message")


def readable(body: dict[str, Any], *, tools: bool = False) -> dict[str, Any]:
    """Return a chat completion whose content is the JSON object with ``result`` that it holds.

    A body in another provider's form is returned as it is, and so is a call of a tool where
    ``tools`` were offered.

    Raises
    ------
    AnswerError
        For a refusal, a cut, filtered or empty answer, a tool call that nobody offered, and text
        without one unambiguous result.
    """
    if "choices" not in body:
        return body
    choices = body["choices"]
    if not choices or not isinstance(choices[0], dict):
        raise AnswerError("the provider answered without any choice")
    choice = choices[0]
    message = choice.get("message") or {}
    if message.get("tool_calls") and tools:
        return body
    content = read_content(message, str(choice.get("finish_reason") or ""))
    cleaned = {"role": "assistant", **message, "content": content, "tool_calls": None}
    # What MLflow looks up, and some servers leave out.
    whole = {"id": "", "object": "chat.completion", "created": 0, "model": "", "usage": {}} | body
    return {
        **whole,
        "choices": [{"index": 0, "finish_reason": "stop", **choice, "message": cleaned}],
    }


def read_content(message: Mapping[str, Any], finish_reason: str) -> str:
    """Return the JSON object that a message holds, as text (see `readable`)."""
    text = _text(message.get("content"))
    answer = _CUT_THOUGHT.sub("", _END_OF_THOUGHT.sub("", _THOUGHT.sub("", text))).strip()
    for place in (answer, _text(message.get("reasoning_content") or message.get("reasoning"))):
        if place and (found := _result_in(place)):
            return json.dumps(found)
    if refusal := message.get("refusal"):
        raise AnswerError(f"the model refused: {str(refusal)[:300]}")
    if finish_reason in _ENDED:
        said_so_far = f" after {answer[:100]!r}" if answer else ""
        raise AnswerError(f"{_ENDED[finish_reason]} (finish_reason {finish_reason}){said_so_far}")
    if message.get("tool_calls"):
        names = [call.get("function", {}).get("name") for call in message["tool_calls"]]
        raise AnswerError(f"the model called a tool that was not offered: {names[0]}")
    if not answer:
        raise AnswerError("the answer is empty" + " but for its thoughts" * bool(text))
    raise AnswerError(f"no JSON object with one {RESULT!r} in the answer: {answer[:300]!r}")


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _result_in(text: str) -> dict[str, Any] | None:
    """Return the object with a result in a text; None where there is none, or several differ."""
    found = []
    for value in _json_in(text):
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        lowered = {str(k).lower(): v for k, v in value.items()} if isinstance(value, dict) else {}
        if isinstance(lowered.get(RESULT), (str, int, float, bool)):
            found.append(lowered)
    if not found or any(one[RESULT] != found[0][RESULT] for one in found):
        return None
    why = found[0].get(RATIONALE)
    if not isinstance(why, str):
        parts = why if isinstance(why, list) else [] if why is None else [why]
        why = "\n".join(p if isinstance(p, str) else json.dumps(p) for p in parts)
    value = found[0][RESULT]
    value = storable(value) if isinstance(value, str) else value
    return {**found[0], RESULT: value, RATIONALE: storable(why)}


def _json_in(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists in a text, outermost ones only."""
    decoder = json.JSONDecoder(strict=False)
    at = 0
    while at < len(text):
        begin = min((i for i in (text.find("{", at), text.find("[", at)) if i >= 0), default=-1)
        if begin < 0:
            return
        try:
            value, at = decoder.raw_decode(text, begin)
            yield value
        except (ValueError, RecursionError):
            at = begin + 1
