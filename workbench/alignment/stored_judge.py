"""The form in which the registry stores a judge: MLflow's own, with what it leaves out beside it.

MLflow ignores the key under which the rest lies. Secrets are withheld; `workbench.credentials` says
where they come from at loading.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import Scorer

from workbench.compat import base_judge, options
from workbench.credentials import Withheld, withhold
from workbench.errors import RegistryError
from workbench.judging.judge import from_options

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

_KEY: Final = "workbench"
"""Within MLflow's form of a judge: what it has no place for, and what made the version."""

_LEFT_OUT: Final = (
    "base_url",
    "include_timing_in_conversation",
    "include_tool_calls_in_conversation",
    "timeout",
)
"""Options that MLflow's form has no place for; header names are among what is withheld."""

_WARNING: Final = (
    "MLflow's registry stores neither base URL nor headers: loaded by MLflow's own get_scorer, "
    "this judge talks to its provider's public address. workbench.load_judge gives it as it is."
)


@dataclass(frozen=True)
class StoredJudge:
    """A judge as it is stored; ``form`` is plain JSON without secrets."""

    form: dict[str, Any]

    @classmethod
    def of(cls, judge: Judge, name: str) -> StoredJudge:
        """Return the form of a judge; raise where it would not come back, or hold a secret."""
        if not isinstance(judge, InstructionsJudge):
            _refuse_lossy(judge)
            return cls(_as_json({**judge.model_dump(), "name": name}, judge))
        clean, withheld, secrets = withhold({**options(judge), "name": name})
        form = from_options(clean).model_dump()
        form["instructions_judge_pydantic_data"][_KEY] = {
            "options": {key: clean[key] for key in _LEFT_OUT if key in clean},
            "typed": clean["feedback_value_type"] is not None,
            "withheld": withheld.to_dict(),
        }
        stored = cls(_as_json(form, judge))
        _refuse_secrets(stored.form, judge, secrets)
        back = stored.options
        lost = [key for key, value in clean.items() if value != back.get(key)]
        if lost:
            raise RegistryError(
                f"Judge {judge.name!r} is not registered, since it would not come back as it is: "
                f"{', '.join(lost)}. Values there must be plain JSON."
            )
        return stored

    @property
    def is_instructions_judge(self) -> bool:
        return self.form.get("instructions_judge_pydantic_data") is not None

    @property
    def options(self) -> dict[str, Any]:
        """The options of an instructions judge, without what is withheld."""
        found = options(cast("Judge", Scorer.model_validate(self.form)))
        found.update(self._beside.get("options", {}))
        if self._beside.get("typed") is False:
            found["feedback_value_type"] = None
        return found

    @property
    def instructions(self) -> str:
        """The instructions, or those of the judge within; "" where there are none."""
        inner = _inner(self.form) or {}
        base = inner.get("base_judge")
        within = StoredJudge(base).instructions if base else ""
        return str(inner.get("instructions") or within)

    @property
    def withheld(self) -> Withheld:
        """The credentials that must be put back."""
        return Withheld.from_dict(self._beside.get("withheld", {}))

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the version; empty where it was registered by MLflow alone."""
        return dict(self._beside.get("provenance") or {})

    @property
    def warning(self) -> str:
        """What to know before MLflow's own `get_scorer` is used; "" where there is nothing."""
        differs = self._beside.get("options", {}).get("base_url") or self.withheld.headers
        return _WARNING if differs else ""

    def with_provenance(self, provenance: dict[str, Any]) -> StoredJudge:
        """Return a copy with what made it; MLflow's built-in judges have no place for it."""
        form = copy.deepcopy(self.form)
        inner = _inner(form)
        if inner is not None:
            inner.setdefault(_KEY, {})["provenance"] = provenance
        return StoredJudge(form)

    @property
    def identity(self) -> Any:
        """What is equal for the same judge, whatever made it and wherever it came from."""
        if self.is_instructions_judge:
            return self.options, self.withheld
        bare = copy.deepcopy(self.form)
        for key in ("mlflow_version", "serialization_version"):
            bare.pop(key, None)
        (_inner(bare) or {}).pop(_KEY, None)
        return bare

    @property
    def _beside(self) -> dict[str, Any]:
        return cast("dict[str, Any]", (_inner(self.form) or {}).get(_KEY) or {})


def _inner(form: dict[str, Any]) -> dict[str, Any] | None:
    """Return the part of MLflow's form that may hold keys which MLflow does not read."""
    for key in ("instructions_judge_pydantic_data", "memory_augmented_judge_data"):
        if form.get(key) is not None:
            return cast("dict[str, Any]", form[key])
    return None


def _refuse_secrets(form: dict[str, Any], judge: Judge, secrets: list[str]) -> None:
    text = json.dumps(form, ensure_ascii=False)
    # Shorter ones occur in ordinary words.
    written = [json.dumps(s, ensure_ascii=False)[1:-1] for s in secrets if len(s) >= 6]
    if any(secret in text for secret in written):
        raise RegistryError(
            f"Judge {judge.name!r} is not registered: a credential of its headers, base URL or "
            "inference parameters also stands in another option, where it would be stored. "
            "Look at its instructions, description, model and base URL."
        )


def _as_json(form: dict[str, Any], judge: Judge) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(form)))
    except TypeError as error:
        raise RegistryError(
            f"Judge {judge.name!r} cannot be stored: {error}. Its aggregations and inference "
            "parameters must be names, numbers and text."
        ) from None


def _refuse_lossy(judge: Judge) -> None:
    """Raise for a judge around another one (MemAlign's) of which MLflow would lose options."""
    base = base_judge(judge)
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
