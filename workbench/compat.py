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


def base_judge(judge: Judge) -> Judge | None:
    """Return the judge that a `MemoryAugmentedJudge` (MemAlign's) asks; None for other judges.

    Seen in mlflow 3.17.2. Without it such a judge is registered though MLflow loses options.
    """
    found: Judge | None = getattr(judge, "_base_judge", None)
    return found


def copy_registration(registered: Any, judge: Judge) -> None:
    """Copy what MLflow notes on a registered scorer, so that monitoring can be started with it.

    Seen in mlflow 3.17.2. Without it ``judge.start()`` says that the judge is not registered.
    """
    for attribute in (
        "_registered_backend",
        "_experiment_id",
        "_sampling_config",
        "_scorer_version",
    ):
        if hasattr(registered, attribute):
            setattr(judge, attribute, getattr(registered, attribute))


def tracking_store() -> Any:
    """Return the active tracking store, which holds the scorer registry.

    Seen in mlflow 3.17.2: `Scorer.register` has no place for what MLflow's form leaves out.
    Without it judges cannot be registered with all options.
    """
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store()
