from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def options(judge: Judge) -> dict[str, Any]:
    """All options of an instructions judge, by the names of its constructor.

    Raises
    ------
    ArgumentError
        When the judge is not made from instructions (built-in and code scorers).
    """
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if not isinstance(judge, InstructionsJudge):
        raise ArgumentError(
            f"Judge {judge.name!r} is a {type(judge).__name__}, whose instructions cannot be "
            "replaced. Make one from instructions: workbench.make_judge(name, instructions, ...)."
        )
    return {
        "name": judge.name,
        "instructions": judge._instructions,
        "model": judge._model,
        "description": judge.description,
        "feedback_value_type": judge._feedback_value_type,
        "generate_rationale_first": judge._generate_rationale_first,
        "include_tool_calls_in_conversation": judge._include_tool_calls_in_conversation,
        "inference_params": judge._inference_params,
        "base_url": judge._base_url,
        "extra_headers": judge._extra_headers,
        "include_timing_in_conversation": judge._include_timing_in_conversation,
        "model_api": judge._model_api,
        "aggregations": judge.aggregations,
        # Scorers of older versions have no timeout.
        **({"timeout": judge.timeout} if hasattr(judge, "timeout") else {}),
    }
