"""Answers the requests that litellm hands over for ``offline/...`` models."""

from __future__ import annotations

import json
from typing import Any

import litellm

from workbench.models.offline.prompts import last_message, read_judge_prompt, read_sections
from workbench.models.offline.reflect import fill
from workbench.models.offline.rubric import judge


def answer(messages: list[dict[str, Any]]) -> str:
    """Return the text with which the embedded model answers a chat."""
    system, user = last_message(messages, "system"), last_message(messages, "user")
    question = read_judge_prompt(system, user)
    if question is not None:
        value, rationale = judge(question)
        fields = {"result": value, "rationale": rationale}
        if question.rationale_first:
            fields = {"rationale": rationale, "result": value}
        return json.dumps(fields, ensure_ascii=False)
    section = read_sections(system, user)
    if section is not None:
        parts = [f"[[ ## {name} ## ]]\n{text}" for name, text in fill(section).items()]
        return "\n\n".join([*parts, "[[ ## completed ## ]]"])
    return (
        "I am the embedded model of the workbench and no language model: I rate items for judges "
        "and contrast cases, nothing else."
    )


class OfflineModel(litellm.CustomLLM):  # type: ignore[misc]  # litellm publishes no types
    """The handler that litellm calls."""

    def completion(self, model: str, messages: list[dict[str, Any]], **_: Any) -> Any:
        if model.rsplit("/", 1)[-1] != "rubric":
            raise litellm.NotFoundError(
                f"There is no embedded model {model!r}; the only one is offline:/rubric.",
                model=model,
                llm_provider="offline",
            )
        text = answer(messages)
        message = {"role": "assistant", "content": text}
        # Four characters a token, which is near enough for a budget.
        read = sum(len(str(m.get("content") or "")) for m in messages) // 4
        written = len(text) // 4
        return litellm.ModelResponse(
            model="offline/rubric",
            choices=[{"index": 0, "finish_reason": "stop", "message": message}],
            usage={
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            },
        )

    async def acompletion(self, model: str, messages: list[dict[str, Any]], **more: Any) -> Any:
        return self.completion(model, messages, **more)


_MODEL = OfflineModel()


def register_provider() -> None:
    """Add the handler to litellm's list of providers, beside those of the user."""
    others = [p for p in litellm.custom_provider_map if p.get("provider") != "offline"]
    litellm.custom_provider_map = [*others, {"provider": "offline", "custom_handler": _MODEL}]
    litellm.utils.custom_llm_setup()
