"""Judges by name and version: MLflow's scorer registry, with every option and what made them.

MLflow's own `get_scorer` reads the same versions, without base URL and headers. What MLflow's form
has no place for lies in it under a key that MLflow ignores.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, cast

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import ScorerVersion
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import Scorer, get_scorer
from mlflow.tracing.client import TracingClient

from workbench.alignment.result import Alignment
from workbench.compat import base_judge, copy_registration, options
from workbench.credentials import Withheld, restore, withhold
from workbench.errors import ArgumentError, RegistryError
from workbench.formatting import html_text, plain
from workbench.judging.judge import fingerprint, from_options
from workbench.store.database import address, check_not_deleted, find_experiment_id, store_errors

# Key of what MLflow's form has no place for: options, names of withheld secrets, provenance.
BESIDE: Final = "workbench"

_LEFT_OUT: Final = (
    "base_url", "include_timing_in_conversation", "include_tool_calls_in_conversation", "timeout",
)  # fmt: skip

_WARNING: Final = (
    "MLflow's registry stores neither base URL nor headers: loaded by MLflow's own get_scorer, "
    "this judge talks to its provider's public address. workbench.load_judge gives it as it is."
)


@dataclass(frozen=True, repr=False)
class Registered:
    """A judge's version in the registry.

    ``new`` is False where the latest version was this very judge already. ``status`` and
    ``headline`` are the alignment's ("" without one); ``warning`` is what to know before MLflow's
    own `get_scorer` is used.
    """

    name: str
    version: int
    experiment_id: str
    fingerprint: str
    status: str = ""
    new: bool = True
    headline: str = ""
    warning: str = ""
    _judge: Judge | None = field(default=None, compare=False)

    @property
    def judge(self) -> Judge:
        """The judge under its registered name; loaded when it is not at hand."""
        return self._judge or load_judge(self.name, self.version, experiment=self.experiment_id)

    def __repr__(self) -> str:
        state = "new" if self.new else "was there already"
        status = f", alignment {self.headline or self.status}" if self.status else ""
        text = f"{self.name!r} version {self.version} ({state}{status}). {self.warning}".rstrip()
        return f"<Registered {text}>"

    def _repr_html_(self) -> str:
        return f"<div>{html_text(self)}</div>"


@store_errors()
def register(
    alignment_or_judge: Alignment | Judge,
    *,
    name: str | None = None,
    experiment: str | None = None,
) -> Registered:
    """Register a judge as the newest version under its name.

    A judge that equals the latest version makes no new one. Of an alignment its ``.judge`` is
    registered, which is the original one unless it improved, with what made it (see `history`).

    Parameters
    ----------
    name
        The name that a loaded judge bears, and its labels have; the judge's own by default.
    experiment
        Name or id of the experiment, made when missing; the active one by default.

    Raises
    ------
    RegistryError
        When an option would not come back or a secret would be stored.
    """
    given: Any = alignment_or_judge
    judge = given if isinstance(given, Judge) else getattr(given, "judge", None)
    if not isinstance(judge, Judge):
        raise ArgumentError(
            f"register takes an Alignment or an MLflow judge, got {type(given).__name__}."
        )
    named, own = name or judge.name, fingerprint(judge)
    made: dict[str, Any] = {"fingerprint": own, "model": getattr(judge, "model", None)}
    made |= {} if judge is given else _provenance(given, own)
    stored = _to_store(judge, named)
    where = find_experiment_id(experiment)
    with suppress(MlflowException):  # what does not exist is told where it is written to
        check_not_deleted(where)
    at_hand = judge if judge.name == named else None
    return replace(_write(where, named, stored, made), _judge=at_hand)


_SCORES: Final = ("n", "accuracy", "accuracy_interval", "kappa", "kappa_interval")
_OF_ALIGNMENT: Final = (
    "status", "headline", "seed", "optimizer", "dataset_digest", "calls", "reflection_calls",
    "tokens", "cost", "run_id",
)  # fmt: skip


def _provenance(alignment: Any, aligned: str) -> dict[str, Any]:
    """Return what made the judge of an alignment; a judge that did not change has no parent."""
    parent, split = alignment.fingerprints["original"], alignment.split
    known: dict[str, Any] = {name: getattr(alignment, name) for name in _OF_ALIGNMENT}
    known |= {"split_digest": split.digest, "split_seed": split.seed}
    known["parent"] = None if parent == aligned else parent
    for when in ("before", "after"):
        known[when] = {score: getattr(getattr(alignment, when), score) for score in _SCORES}
    return {key: value for key, value in plain(known).items() if value is not None}


@store_errors()
def roll_back(name: str, version: int, *, experiment: str | None = None) -> Registered:
    """Register an older version's content as the newest version; needs no credentials.

    What came between stays in the registry, and `history` has the version in
    ``rolled_back_from``. Raises `RegistryError` for an unknown name or version.
    """
    where = find_experiment_id(experiment, create=False)
    stored = _Stored.of(_version(where, name, version))
    return _write(where, name, stored, {**stored.made, "rolled_back_from": version})


def _write(where: str, name: str, stored: _Stored, made: dict[str, Any]) -> Registered:
    """Write a version unless the latest one is this very judge."""
    versions = _versions(where, name, or_none=True)
    new = not versions or _Stored.of(versions[-1]).identity != stored.identity
    if new:
        # judge.register() writes the same row, but has no place for what MLflow leaves out.
        written = json.dumps(stored.with_provenance(made))
        versions.append(TracingClient().store.register_scorer(where, name, written))
    kept = {**stored.beside.get("options", {}), **stored.withheld}
    return Registered(
        name=name,
        version=int(versions[-1].scorer_version),
        experiment_id=where,
        fingerprint=made.get("fingerprint", ""),
        status=made.get("status", ""),
        new=new,
        headline=made.get("headline", ""),
        warning=_WARNING if kept.get("base_url") or kept.get("headers") else "",
    )


@store_errors()
def load_judge(
    name: str,
    version: int | None = None,
    *,
    experiment: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Judge:
    """The judge of a version, the newest by default, with every option it was registered with.

    Parameters
    ----------
    headers
        Values of extra headers. Those that are not given, and all other credentials, come from
        the environment (see `workbench.credentials`).

    Raises
    ------
    RegistryError
        For an unknown name or version; names those that exist.
    CredentialError
        When a header value or another credential is missing; names the variables to set.
    """
    where = find_experiment_id(experiment, create=False)
    found = _version(where, name, version)
    bare = get_scorer(name=name, experiment_id=where, version=found.scorer_version)
    if not isinstance(bare, InstructionsJudge):
        return cast("Judge", bare)
    stored, who = _Stored.of(found), f"Judge {name!r} version {found.scorer_version}"
    withheld = Withheld.model_validate(stored.withheld)
    judge = from_options(restore(stored.options, withheld, headers=headers, who=who))
    copy_registration(bare, judge)
    return judge


@store_errors()
def history(name: str, *, experiment: str | None = None) -> pd.DataFrame:
    """What is known of each version of a judge, the oldest first.

    Returns
    -------
    DataFrame
        ``version``; ``registered_at`` (UTC); ``fingerprint`` and that of the ``parent`` it was
        aligned from; ``status`` and ``headline`` of the alignment; on its ``n`` held-out pairs,
        accuracy and kappa of the original (``accuracy_before``) and of the proposed judge
        (``accuracy_after``), each with its interval; ``optimizer``, ``seed``, ``dataset_digest``,
        ``split_digest``, ``model``, ``calls``, ``reflection_calls``, ``tokens``, ``cost``, the
        MLflow ``run_id``, and ``rolled_back_from``. What is not known is None, and an undefined
        statistic nan.

    Raises `RegistryError` for an unknown name.
    """
    where = find_experiment_id(experiment, create=False)
    return pd.DataFrame(map(_row, _versions(where, name)), columns=list(_COLUMNS))


_COLUMNS: Final = (
    "version", "registered_at", "fingerprint", "parent", "status", "headline", "n",
    "accuracy_before", "accuracy_before_interval", "accuracy_after", "accuracy_after_interval",
    "kappa_before", "kappa_before_interval", "kappa_after", "kappa_after_interval",
    "optimizer", "seed", "dataset_digest", "split_digest", "model", "calls", "reflection_calls",
    "tokens", "cost", "run_id", "rolled_back_from",
)  # fmt: skip


def _row(version: ScorerVersion) -> dict[str, Any]:
    stored = _Stored.of(version)
    row: dict[str, Any] = {column: stored.made.get(column) for column in _COLUMNS}
    row["version"] = version.scorer_version
    row["registered_at"] = pd.Timestamp(version.creation_time, unit="ms", tz="UTC")
    if row["fingerprint"] is None and isinstance(stored.judge, InstructionsJudge):
        row["fingerprint"] = fingerprint(from_options(stored.options))  # registered by MLflow alone
    for when in ("before", "after"):
        scores = stored.made.get(when) or {}
        row["n"] = scores.get("n", row["n"])
        for figure in ("accuracy", "kappa") if scores else ():
            numbers = [scores[figure], *scores[f"{figure}_interval"]]
            value, *ends = np.array(numbers, dtype=float).tolist()  # JSON has None for nan
            row[f"{figure}_{when}"], row[f"{figure}_{when}_interval"] = value, tuple(ends)
    return row


@store_errors()
def diff(name: str, a: int, b: int, *, experiment: str | None = None) -> str:
    """The instructions of version ``b`` against those of version ``a``, as a unified diff.

    Those of MLflow's `Guidelines` are the guidelines. Empty where they are the same. Raises
    `RegistryError` for an unknown name or version.
    """
    where = find_experiment_id(experiment, create=False)
    found = [_Stored.of(_version(where, name, each)).judge for each in (a, b)]
    told = (getattr(judge, "guidelines", None) or judge.instructions for judge in found)
    first, second = (text if isinstance(text, list) else text.splitlines() for text in told)
    headings = f"{name} version {a}", f"{name} version {b}"
    return "\n".join(difflib.unified_diff(first, second, *headings, lineterm=""))


# -- what is stored -------------------------------------------------------------------------


class _Stored:
    """MLflow's form of a judge, and what lies beside: options, names of secrets, provenance."""

    def __init__(self, form: dict[str, Any]) -> None:
        self.form = form
        # The part that keeps more keys than MLflow reads; built-in judges' forms have none.
        kinds = ("instructions_judge_pydantic_data", "memory_augmented_judge_data")
        self._inner: dict[str, Any] = next((form[kind] for kind in kinds if form.get(kind)), {})
        self.beside: dict[str, Any] = self._inner.pop(BESIDE, None) or {}
        self.made: dict[str, Any] = self.beside.get("provenance") or {}
        self.withheld: dict[str, Any] = self.beside.get("withheld", {})

    @classmethod
    def of(cls, version: ScorerVersion) -> _Stored:
        return cls(asdict(version.serialized_scorer))

    @property
    def judge(self) -> Any:
        return Scorer.model_validate(self.form)

    @property
    def options(self) -> dict[str, Any]:
        """The options of an instructions judge, without what is withheld."""
        found = {**options(self.judge), **self.beside.get("options", {})}
        return found if self.beside.get("typed", True) else found | {"feedback_value_type": None}

    @property
    def identity(self) -> Any:
        """What is equal for the same judge, whatever made it and wherever it came from."""
        if isinstance(self.judge, InstructionsJudge):
            return self.options, self.withheld
        versions = ("mlflow_version", "serialization_version")
        return {key: value for key, value in self.form.items() if key not in versions}

    def with_provenance(self, made: dict[str, Any]) -> dict[str, Any]:
        self._inner[BESIDE] = {**self.beside, "provenance": made}
        return self.form


def _to_store(judge: Judge, name: str) -> _Stored:
    """Return what is stored of a judge; raise where it would not come back, or hold a secret."""
    if not isinstance(judge, InstructionsJudge):
        stored = _Stored(json.loads(json.dumps({**judge.model_dump(), "name": name})))
        # MLflow loses options of a judge within another one (MemAlign's).
        if (base := base_judge(judge)) is not None:
            kept = options(base_judge(stored.judge))
            _refuse_lost(judge, [k for k, v in options(base).items() if v != kept.get(k)])
        return stored
    clean, withheld, secrets = withhold({**options(judge), "name": name})
    data = {key: value for key, value in clean.items() if key != "feedback_value_type"}
    _refuse_lost(judge, [k for k, v in data.items() if json.loads(json.dumps(v, default=str)) != v])
    form = from_options(clean).model_dump()
    form["instructions_judge_pydantic_data"][BESIDE] = {
        "options": {key: clean[key] for key in _LEFT_OUT if key in clean},
        "typed": clean["feedback_value_type"] is not None,
        "withheld": withheld.to_dict(),
    }
    text = json.dumps(form, ensure_ascii=False)
    # Shorter secrets occur in ordinary words.
    written = [json.dumps(s, ensure_ascii=False)[1:-1] for s in secrets if len(s) >= 6]
    if any(secret in text for secret in written):
        raise RegistryError(
            f"Judge {judge.name!r} is not registered: a credential of its headers, base URL or "
            "inference parameters also stands in another option, where it would be stored. "
            "Look at its instructions, description, model and base URL."
        )
    return _Stored(json.loads(text))


def _refuse_lost(judge: Judge, lost: list[str]) -> None:
    if lost:
        raise RegistryError(
            f"Judge {judge.name!r} is not registered, since it would not come back as it is: "
            f"{', '.join(lost)}. A judge made from instructions keeps all options that are plain "
            "JSON (names, numbers, text); MLflow's other judges do not keep these."
        )


def _versions(where: str, name: str, *, or_none: bool = False) -> list[ScorerVersion]:
    """All versions, the oldest first; `RegistryError` for no version, unless ``or_none``."""
    versions: list[ScorerVersion] = []
    try:
        versions = TracingClient().store.list_scorer_versions(where, name)
    except NotImplementedError:
        raise RegistryError(
            f"The store {address()} has no registry of judges. Use a database "
            "(mlflow.set_tracking_uri('sqlite:///mlflow.db')) or an MLflow server."
        ) from None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    if versions or or_none:
        return sorted(versions, key=lambda version: int(version.scorer_version))
    known = sorted(each.scorer_name for each in TracingClient().store.list_scorers(where))
    raise RegistryError(
        f"No judge {name!r} is registered in experiment {mlflow.get_experiment(where).name!r} of "
        f"{address()}. Registered there: {', '.join(map(repr, known)) or 'none'}."
    )


def _version(where: str, name: str, version: int | None) -> ScorerVersion:
    versions = _versions(where, name)
    by_number = {each.scorer_version: each for each in versions}
    if version is not None and version not in by_number:
        numbers = ", ".join(map(str, by_number))
        raise RegistryError(f"Judge {name!r} has no version {version!r}. It has: {numbers}.")
    return versions[-1] if version is None else by_number[version]
