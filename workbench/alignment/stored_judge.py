"""The form in which the registry stores a judge: MLflow's own, with a key that MLflow ignores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

from mlflow.entities import ScorerVersion
from mlflow.genai.judges import Judge
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import Scorer

from workbench.compat import base_judge, options
from workbench.credentials import withhold
from workbench.errors import RegistryError
from workbench.judging.judge import from_options

BESIDE: Final = "workbench"
"""What MLflow's form has no place for, names of withheld secrets, and what made the version."""

INSTRUCTIONS: Final = "instructions_judge_pydantic_data"

_LEFT_OUT: Final = (
    "base_url",
    "include_timing_in_conversation",
    "include_tool_calls_in_conversation",
    "timeout",
)
"""Options that MLflow's form has no place for; header names are among what is withheld."""


@dataclass(frozen=True)
class StoredJudge:
    """MLflow's form of a judge, and what lies beside: options, names of secrets, provenance."""

    form: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, version: ScorerVersion) -> StoredJudge:
        form = asdict(version.serialized_scorer)
        return cls(form, inner_form(form).pop(BESIDE, None) or {})

    @property
    def options(self) -> dict[str, Any]:
        """The options of an instructions judge, without what is withheld."""
        found = options(cast("Judge", Scorer.model_validate(self.form)))
        found.update(self.beside.get("options", {}))
        if self.beside.get("typed") is False:
            found["feedback_value_type"] = None
        return found

    @property
    def identity(self) -> Any:
        """What is equal for the same judge, whatever made it and wherever it came from."""
        if self.form.get(INSTRUCTIONS):
            return self.options, self.beside.get("withheld", {})
        versions = ("mlflow_version", "serialization_version")
        return {key: value for key, value in self.form.items() if key not in versions}


def inner_form(form: dict[str, Any]) -> dict[str, Any]:
    """Return the part of MLflow's form that keeps more keys than MLflow reads; built-in judges'
    forms have none.
    """
    inner = form.get(INSTRUCTIONS) or form.get("memory_augmented_judge_data")
    return cast("dict[str, Any]", inner or {})


def instructions_of(form: dict[str, Any]) -> str:
    """Return the instructions, or those of the judge within; "" where there are none."""
    inner = inner_form(form)
    within = inner.get("base_judge")
    return str(inner.get("instructions") or (instructions_of(within) if within else ""))


def stored_form(judge: Judge, name: str) -> StoredJudge:
    """Return what is stored of a judge; raise where it would not come back, or hold a secret."""
    if not isinstance(judge, InstructionsJudge):
        stored = StoredJudge(json.loads(json.dumps({**judge.model_dump(), "name": name})))
        # MLflow loses options of a judge within another one (MemAlign's).
        if (base := base_judge(judge)) is not None:
            back = base_judge(cast("Judge", Scorer.model_validate(stored.form)))
            kept = options(cast("Judge", back))
            _refuse_lost(judge, [k for k, v in options(base).items() if v != kept.get(k)])
        return stored
    clean, withheld, secrets = withhold({**options(judge), "name": name})
    data = {key: value for key, value in clean.items() if key != "feedback_value_type"}
    _refuse_lost(judge, [k for k, v in data.items() if json.loads(json.dumps(v, default=str)) != v])
    beside = {
        "options": {key: clean[key] for key in _LEFT_OUT if key in clean},
        "typed": clean["feedback_value_type"] is not None,
        "withheld": withheld.to_dict(),
    }
    text = json.dumps([from_options(clean).model_dump(), beside], ensure_ascii=False)
    # Shorter secrets occur in ordinary words.
    written = [json.dumps(s, ensure_ascii=False)[1:-1] for s in secrets if len(s) >= 6]
    if any(secret in text for secret in written):
        raise RegistryError(
            f"Judge {judge.name!r} is not registered: a credential of its headers, base URL or "
            "inference parameters also stands in another option, where it would be stored. "
            "Look at its instructions, description, model and base URL."
        )
    return StoredJudge(*json.loads(text))


def _refuse_lost(judge: Judge, lost: list[str]) -> None:
    if lost:
        raise RegistryError(
            f"Judge {judge.name!r} is not registered, since it would not come back as it is: "
            f"{', '.join(lost)}. A judge made from instructions keeps all options that are plain "
            "JSON (names, numbers, text); MLflow's other judges do not keep these."
        )
