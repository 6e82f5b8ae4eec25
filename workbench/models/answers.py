"""What a chat completion holds: an error in the guise of an answer, or the JSON that was asked for,
among thoughts, prose and fences. What is not unambiguous is an `AnswerError` that says what came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from workbench.compat import status_error
from workbench.formatting import read_literal, storable

RESULT, RATIONALE = "result", "rationale"

_THINK = "(think(?:ing)?|thoughts?|reasoning)"
_THOUGHT = re.compile(rf"[<\[◁]{_THINK}[>\]▷].*?[<\[◁]/\1[>\]▷]", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(rf"^.*[<\[◁]/{_THINK}[>\]▷]", re.DOTALL | re.IGNORECASE)
_CUT_THOUGHT = re.compile(rf"[<\[◁]{_THINK}[>\]▷].*$", re.DOTALL | re.IGNORECASE)

# Words of an error that has no number, and the status that they mean.
_STATUS = {
    r"rate.?limit|too many requests|quota": 429,
    r"api.?key|authenticat|unauthori[sz]ed": 401,
    r"permission|forbidden": 403,
    r"not.?found|does not exist": 404,
}

_CUT = "the answer was cut off at the limit of tokens"
_WITHHELD = "the provider's content filter withheld the answer"

# Why an answer ended, in the words of OpenAI, Anthropic and Gemini.
_FILTERED = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content")
_ENDED = {"length": _CUT, "max_tokens": _CUT} | dict.fromkeys(_FILTERED, _WITHHELD)


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


def check_error(body: Mapping[str, Any]) -> None:
    """Raise a `status_error`, with the code that it holds, for an error of status 200."""
    choice = next(iter(body.get("choices") or []), None)
    if isinstance(choice, Mapping):
        answered = (choice.get("message") or {}).get("content")
        error = None if answered else choice.get("error") or body.get("error")
    else:  # what other providers answer has other fields than these
        bare = {*body} <= {"object", "type", "code", "status", "message", "detail", "param"}
        error = body.get("error") or (body if bare and body else None)
    if not error:
        return
    given = error if isinstance(error, Mapping) else {}
    words = said({"error": error} if error is not body else body)
    numbers = [str(given.get(name)) for name in ("code", "status")]
    status = next((int(n) for n in numbers if n.isdecimal() and 400 <= int(n) < 600), None)
    told = f"{given.get('code')} {given.get('type')} {words}".lower()
    meant = (number for pattern, number in _STATUS.items() if re.search(pattern, told))
    raise status_error(status or next(meant, 502), words or "an error without a message")


def readable(body: dict[str, Any], *, tools: bool = False) -> dict[str, Any]:
    """Return a chat completion with nothing but the JSON object with ``result`` in its content.

    A call of one of the ``tools`` that were offered is returned as it is.
    """
    if body and "choices" not in body:
        return _readable_parts(body)
    choices = body.get("choices")
    if not choices or not isinstance(choices[0], dict):
        raise AnswerError("the provider answered without any choice")
    choice = choices[0]
    message = choice.get("message") or {}
    if message.get("tool_calls") and tools:
        return body
    content = _read_content(message, str(choice.get("finish_reason") or ""))
    cleaned = {"role": "assistant", **message, "content": content, "tool_calls": None}
    # What MLflow looks up, and some servers leave out, or have null for.
    whole = {"id": "", "object": "chat.completion", "created": 0, "model": "", "usage": {}}
    return {
        **whole,
        **{name: value for name, value in body.items() if value is not None},
        "choices": [{"index": 0, "finish_reason": "stop", **choice, "message": cleaned}],
    }


def _readable_parts(body: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of Anthropic or Gemini with the JSON that it holds; others as they are."""
    if blocked := (body.get("promptFeedback") or {}).get("blockReason"):
        raise AnswerError(f"{_WITHHELD} ({blocked})")
    candidate = next(iter(body.get("candidates") or []), None)
    holder, name = (body, "content") if candidate is None else (candidate.get("content"), "parts")
    ended = str(body.get("stop_reason") or (candidate or {}).get("finishReason") or "").lower()
    parts = (holder or {}).get(name) or []
    if not ended or not isinstance(parts, list):  # of another form
        return body
    if not all("text" in part or "thinking" in str(part.get("type")) for part in parts):
        return body  # a call of a tool
    said = _text([part for part in parts if not part.get("thought")])
    text = _read_content({"content": said}, ended if ended in _ENDED else "")
    held = {**(holder or {}), name: [{"type": "text", "text": text}]}
    return held if candidate is None else {**body, "candidates": [{**candidate, "content": held}]}


def without_thoughts(text: str) -> str:
    """Return what a model said after thinking aloud, also where a tag is missing at either end."""
    return _CUT_THOUGHT.sub("", _END_OF_THOUGHT.sub("", _THOUGHT.sub("", text))).strip()


def _read_content(message: Mapping[str, Any], finish_reason: str) -> str:
    """Return the JSON object that a message holds, as text."""
    text = _text(message.get("content"))
    answer = without_thoughts(text)
    places = [answer]
    with suppress(ValueError, RecursionError):
        json.loads(text, strict=False)
        places.insert(0, text)  # all of it is JSON, so that a tag in it is part of the rationale
    refusal = message.get("refusal")
    if not (answer or refusal):  # else what stands there is a draft
        places.append(_text(message.get("reasoning_content") or message.get("reasoning")))
    for place in places:
        if place and (found := _result_in(place)):
            return json.dumps(found)
    if refusal:
        raise AnswerError(f"the model refused: {str(refusal)[:300]}")
    ended = _ENDED.get(finish_reason)
    if ended in (None, _CUT) and (found := _stated(answer, is_cut=ended is _CUT)):
        return json.dumps(found)
    if ended:
        said_so_far = f" after {answer[:100]!r}" if answer else ""
        raise AnswerError(f"{ended} (finish_reason {finish_reason}){said_so_far}")
    if calls := message.get("tool_calls"):
        name = (calls[0].get("function") or {}).get("name")
        raise AnswerError(f"the model called a tool that was not offered: {name}")
    if not answer:
        thoughts = " but for its thoughts" if text else ""
        raise AnswerError(f"the answer is empty{thoughts} (finish_reason {finish_reason!r})")
    raise AnswerError(f"no JSON object with one {RESULT!r} in the answer: {answer[:300]!r}")


_STATED = re.compile(
    r"(?:```\w*\s*)?\{\s*"
    rf'(?i:"{RESULT}")\s*:\s*("(?:[^"\\\n]|\\["\\/bfnrt])*"|-?\d+(?:\.\d+)?|true|false)\s*,\s*'
    rf'(?:(?i:"{RATIONALE}")\s*:\s*"(.*))?',
    re.DOTALL,
)
"""An answer that has stated its result, and what follows, which may run on or hold bare quotes."""


def _stated(answer: str, *, is_cut: bool) -> dict[str, Any] | None:
    """Return the rating that stands whole before a rationale that cannot be read as JSON."""
    found = _STATED.match(answer)
    why = (found and found[2]) or ""
    # After another key there may be another rating.
    if found is None or re.search(r'"\w+"\s*:', why) or not (is_cut or why):
        return None
    why = storable(why.replace('\\"', '"').rstrip('"}`\\ \r\n\t'))
    return {RESULT: json.loads(found[1]), RATIONALE: f"{why} [{_CUT}]".strip() if is_cut else why}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if isinstance(content, dict):  # as some servers give what was asked for by a schema
        return json.dumps(content)
    return content if isinstance(content, str) else ""


def _result_in(text: str) -> dict[str, Any] | None:
    """Return the object with a result in a text; None where there is none, or several differ."""
    found = []
    for value in json_in(text):
        while isinstance(value, (list, dict)) and len(value) == 1:
            inner = value[0] if isinstance(value, list) else next(iter(value.values()))
            if not isinstance(inner, (list, dict)):
                break
            value = inner
        lowered = {str(k).lower(): v for k, v in value.items()} if isinstance(value, dict) else {}
        if isinstance(lowered.get(RESULT), (str, int, float, bool)):
            found.append(lowered)
    if not found or any(one[RESULT] != found[0][RESULT] for one in found):
        return None
    value, why = found[0][RESULT], found[0].get(RATIONALE)
    value = storable(value) if isinstance(value, str) else value
    parts = why if isinstance(why, list) else [] if why is None else [why]
    lines = (part if isinstance(part, str) else json.dumps(part) for part in parts)
    return {**found[0], RESULT: value, RATIONALE: storable("\n".join(lines))}


_OPENING = re.compile(r"[{\[]")


def json_in(text: str) -> Iterator[Any]:
    """Yield the outermost JSON objects and lists in a text, else an object as Python writes it."""
    decoder = json.JSONDecoder(strict=False)
    at, read = 0, False
    while bracket := _OPENING.search(text, at):
        try:
            value, at = decoder.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            at = bracket.end()
        else:
            read = True
            yield value
    begin, end = text.find("{"), text.rfind("}") + 1
    if not read and 0 <= begin < end < 20_000:
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            yield read_literal(text[begin:end])
