"""What the registry holds of a judge's version: MLflow's form of the judge, and beside it what
MLflow leaves out and what made the version.

The form is the JSON that `mlflow.genai.scorers.get_scorer` reads. MLflow passes over keys that
it does not know within the part on the judge, so ours lies there: one row, never half written.
"""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any, Final, cast

from workbench.credentials import Withheld, withhold
from workbench.errors import ArgumentError, RegistryError
from workbench.judge import fingerprint, from_options, options

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

_KEY: Final = "workbench"
"""Under this key of MLflow's form lies what is beside it."""

_LEFT_OUT: Final = (
    "base_url",
    "include_timing_in_conversation",
    "include_tool_calls_in_conversation",
    "timeout",
)
"""Options that MLflow's form has no place for; header names are with what is withheld."""

_WARNING: Final = (
    "MLflow's registry stores neither base URL nor headers: loaded by MLflow's own get_scorer, "
    "this judge talks to its provider's public address. workbench.load_judge gives it as it is."
)

Form = dict[str, Any]


def form_of(judge: Judge, name: str) -> Form:
    """MLflow's form of the judge with what it leaves out, and without secrets."""
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if not isinstance(judge, InstructionsJudge):
        _refuse_lossy(judge)
        return _as_json({**judge.model_dump(), "name": name}, judge)
    clean, withheld, secrets = withhold({**options(judge), "name": name})
    form = from_options(clean).model_dump()
    form["instructions_judge_pydantic_data"][_KEY] = {
        "options": {key: clean[key] for key in _LEFT_OUT if key in clean},
        "typed": clean["feedback_value_type"] is not None,
        "withheld": withheld.to_dict(),
    }
    content = _as_json(form, judge)
    text = json.dumps(content, ensure_ascii=False)
    # Short values would be found in ordinary words.
    if any(json.dumps(s, ensure_ascii=False)[1:-1] in text for s in secrets if len(s) >= 6):
        raise RegistryError(
            f"Judge {judge.name!r} is not registered: a credential of its headers, base URL or "
            "inference parameters also stands in another option, where it would be stored. "
            "Look at its instructions, description, model and base URL."
        )
    back = stored_options(content)
    lost = [key for key, value in clean.items() if value != back.get(key)]
    if lost:
        raise RegistryError(
            f"Judge {judge.name!r} is not registered, since it would not come back as it is: "
            f"{', '.join(lost)}. Values there must be plain JSON."
        )
    return content


def _as_json(form: Form, judge: Judge) -> Form:
    try:
        return cast("Form", json.loads(json.dumps(form)))
    except TypeError as error:
        raise RegistryError(
            f"Judge {judge.name!r} cannot be stored: {error}. Its aggregations and inference "
            "parameters must be names, numbers and text."
        ) from None


def _refuse_lossy(judge: Judge) -> None:
    """Raise for a judge around another one (MemAlign's) of which MLflow would lose options."""
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    base = getattr(judge, "_base_judge", None)
    if not isinstance(base, InstructionsJudge):
        return
    clean, withheld, _ = withhold(options(base))
    usual = options(InstructionsJudge(name=base.name, instructions=base.instructions))
    lost = [key for key in _LEFT_OUT if clean.get(key) != usual.get(key)]
    if lost or withheld:
        raise RegistryError(
            f"Judge {judge.name!r} is a {type(judge).__name__}, of which MLflow would not keep "
            f"{', '.join([*lost, *(['credentials'] if withheld else [])])}. Align with "
            "workbench.SIMBA, whose judges keep all, or make the judge without these."
        )


def stored_options(form: Form) -> dict[str, Any]:
    """The options of a stored instructions judge, without what is withheld."""
    from mlflow.genai.scorers import Scorer

    beside = _beside(form)
    found = options(cast("Judge", Scorer.model_validate(form)))
    found.update(beside.get("options", {}))
    if beside.get("typed") is False:
        found["feedback_value_type"] = None
    return found


def instructions_in(form: Form) -> str:
    """The instructions of a stored judge; empty where it has none."""
    inner = _inner(form) or {}
    base = inner.get("base_judge")
    return str(inner.get("instructions") or (instructions_in(base) if base else ""))


def _inner(form: Form) -> dict[str, Any] | None:
    """The part of MLflow's form that may hold more keys than MLflow reads, where there is one."""
    for key in ("instructions_judge_pydantic_data", "memory_augmented_judge_data"):
        if form.get(key) is not None:
            return cast("dict[str, Any]", form[key])
    return None


def _beside(form: Form) -> dict[str, Any]:
    return cast("dict[str, Any]", (_inner(form) or {}).get(_KEY) or {})


def withheld_of(form: Form) -> Withheld:
    """Which credentials must be put back."""
    return Withheld.from_dict(_beside(form).get("withheld", {}))


def with_provenance(form: Form, made: dict[str, Any]) -> Form:
    """A copy of the form with what made it. MLflow's built-in judges have no place for it."""
    written = copy.deepcopy(form)
    inner = _inner(written)
    if inner is not None:
        inner.setdefault(_KEY, {})["provenance"] = made
    return written


def provenance(form: Form) -> dict[str, Any]:
    """What made the version; empty where it was registered by MLflow alone."""
    return dict(_beside(form).get("provenance") or {})


def comparable(form: Form) -> Any:
    """What two forms share if they are of the same judge: not where it came from."""
    if form.get("instructions_judge_pydantic_data") is not None:
        return stored_options(form), withheld_of(form)
    bare = copy.deepcopy(form)
    for key in ("mlflow_version", "serialization_version"):
        bare.pop(key, None)
    (_inner(bare) or {}).pop(_KEY, None)
    return bare


def warning_of(form: Form) -> str:
    """What to know before MLflow's own `get_scorer` is used; empty where there is nothing."""
    apart = _beside(form).get("options", {}).get("base_url") or withheld_of(form).headers
    return _WARNING if apart else ""


# -- what made it ---------------------------------------------------------------------------


def judge_and_provenance(given: Any) -> tuple[Judge, dict[str, Any]]:
    """The judge of an alignment, or the judge itself, and what made it."""
    from mlflow.genai.judges import Judge as MlflowJudge

    judge = given if isinstance(given, MlflowJudge) else getattr(given, "judge", None)
    if not isinstance(judge, MlflowJudge):
        raise ArgumentError(
            f"register takes an Alignment or an MLflow judge, got {type(given).__name__}."
        )
    made: dict[str, Any] = {
        "fingerprint": fingerprint(judge),
        "model": getattr(judge, "model", None),
    }
    if judge is given:
        return cast("Judge", judge), made
    parent = dict(getattr(given, "fingerprints", None) or {}).get("original")
    split = getattr(given, "split", None)
    made |= {
        # A judge that did not change has no parent.
        "parent": parent if parent != made["fingerprint"] else None,
        "status": given.status,
        "before": _scores(getattr(given, "before", None)),
        "after": _scores(getattr(given, "after", None)),
        "split_digest": getattr(split, "digest", None),
        "split_seed": getattr(split, "seed", None),
    }
    for key in ("seed", "optimizer", "dataset_digest", "calls", "reflection_calls", "tokens",
                "cost", "run_id"):  # fmt: skip
        made[key] = getattr(given, key, None)
    return cast("Judge", judge), {key: value for key, value in made.items() if value is not None}


def _scores(agreement: Any) -> dict[str, Any] | None:
    """Accuracy and kappa with their intervals, as JSON takes them: an undefined one is None."""
    if agreement is None:
        return None
    return {
        "n": int(agreement.n),
        "accuracy": _number(agreement.accuracy),
        "accuracy_interval": [_number(end) for end in agreement.accuracy_interval],
        "kappa": _number(agreement.kappa),
        "kappa_interval": [_number(end) for end in agreement.kappa_interval],
    }


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
