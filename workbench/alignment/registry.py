"""Judges by name and version: MLflow's scorer registry, with what MLflow leaves out beside it.

A version is a row of MLflow's registry, so `mlflow.genai.scorers.get_scorer` reads it too. Within
the row also lie the options that MLflow leaves out and what made the version (see
`workbench.record`), so nothing can be half registered.

MLflow's own `get_scorer` gives a judge without base URL and headers. Such a judge talks to its
provider's public address; `load_judge` gives the judge as it was.

Secrets are never stored: see `workbench.credentials` for where they come from at loading.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

from workbench.compat import options
from workbench.credentials import Withheld, restore, withhold
from workbench.errors import ArgumentError, RegistryError
from workbench.formatting import html_text
from workbench.judging.judge import fingerprint, from_options
from workbench.store.traces import address, discreet, find_experiment_id

if TYPE_CHECKING:
    from mlflow.entities import ScorerVersion
    from mlflow.genai.judges import Judge

    from workbench.alignment.result import Alignment


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


@dataclass(frozen=True, repr=False)
class Registered:
    """A judge's version in the registry.

    ``new`` is False where the latest version was this very judge already. ``status`` is that of
    the alignment which gave the judge ("" for a judge registered by itself), ``warning`` what
    to know before MLflow's own `get_scorer` is used.
    """

    name: str
    version: int
    experiment_id: str
    fingerprint: str
    status: str = ""
    new: bool = True
    warning: str = ""
    _judge: Judge | None = field(default=None, compare=False)

    @property
    def judge(self) -> Judge:
        """The judge under its registered name; loaded when it is not at hand."""
        if self._judge is not None:
            return self._judge
        return load_judge(self.name, self.version, experiment=self.experiment_id)

    def __repr__(self) -> str:
        state = "new" if self.new else "was there already"
        status = f", alignment {self.status}" if self.status else ""
        warning = f" {self.warning}" if self.warning else ""
        return f"<Registered {self.name!r} version {self.version} ({state}{status}).{warning}>"

    def _repr_html_(self) -> str:
        state = "new" if self.new else "was there already"
        status = f", alignment <b>{html_text(self.status)}</b>" if self.status else ""
        warning = f"<div>{html_text(self.warning)}</div>" if self.warning else ""
        name = html_text(self.name)
        return f"<div><b>{name}</b> version {self.version} ({state}{status})</div>{warning}"


# -- register -------------------------------------------------------------------------------


@discreet()
def register(
    alignment_or_judge: Alignment | Judge,
    *,
    name: str | None = None,
    experiment: str | None = None,
) -> Registered:
    """Register a judge as the newest version under its name.

    A judge that equals the latest version makes no new one. Of an alignment its ``.judge`` is
    registered, which is the original one unless it improved, with what made it: parent, data
    set, split, seed, optimizer, scores with intervals and cost (see `history`).

    Parameters
    ----------
    alignment_or_judge
        An `Alignment`, or any MLflow judge.
    name
        The name to register under; the judge's own by default. A judge that is loaded bears
        this name, and its labels are looked for under it.
    experiment
        Name or id of the experiment, made when missing; the active one by default.

    Raises
    ------
    RegistryError
        When an option cannot be stored so that it comes back, when a secret would be stored,
        or when the store has no registry.
    """
    judge, made = judge_and_provenance(alignment_or_judge)
    where = find_experiment_id(experiment)
    named = name or judge.name
    content = form_of(judge, named)
    version, new = _write(where, named, content, made)
    return Registered(
        name=named,
        version=version,
        experiment_id=where,
        fingerprint=made["fingerprint"],
        status=made.get("status", ""),
        new=new,
        warning=warning_of(content),
        _judge=judge if named == judge.name else _renamed(judge, named),
    )


def _renamed(judge: Judge, name: str) -> Judge | None:
    try:
        return from_options({**options(judge), "name": name})
    except ArgumentError:  # not made from instructions; it is loaded when it is asked for
        return None


@discreet()
def roll_back(name: str, version: int, *, experiment: str | None = None) -> Registered:
    """Register an older version's content as the newest version.

    What came between stays in the registry. `history` tells in ``rolled_back_from`` which
    version was taken. Needs no credentials.

    Raises
    ------
    RegistryError
        For an unknown name or version.
    """
    where = find_experiment_id(experiment, create=False)
    form = _form(_version(where, name, version))
    made = {**provenance(form), "rolled_back_from": version}
    written, new = _write(where, name, form, made)
    return Registered(
        name=name,
        version=written,
        experiment_id=where,
        fingerprint=made.get("fingerprint", ""),
        status=made.get("status", ""),
        new=new,
        warning=warning_of(form),
    )


# -- load -----------------------------------------------------------------------------------


@discreet()
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
    name, version, experiment
        Which; the active experiment by default.
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
    from mlflow.genai.judges import Judge as MlflowJudge
    from mlflow.genai.judges.instructions_judge import InstructionsJudge
    from mlflow.genai.scorers import get_scorer

    where = find_experiment_id(experiment, create=False)
    found = _version(where, name, version)
    plain = get_scorer(name=name, experiment_id=where, version=found.scorer_version)
    if not isinstance(plain, MlflowJudge):
        raise RegistryError(
            f"{name!r} is registered as a {type(plain).__name__}, which is a scorer and no judge. "
            "Use mlflow.genai.scorers.get_scorer."
        )
    if not isinstance(plain, InstructionsJudge):
        return cast("Judge", plain)
    form = _form(found)
    who = f"Judge {name!r} version {found.scorer_version}"
    judge = from_options(restore(stored_options(form), withheld_of(form), headers=headers, who=who))
    # What MLflow notes on a registered scorer, so that monitoring can be started with it.
    for attribute in ("_registered_backend", "_experiment_id", "_sampling_config",
                      "_scorer_version"):  # fmt: skip
        if hasattr(plain, attribute):
            setattr(judge, attribute, getattr(plain, attribute))
    return judge


@discreet()
def history(name: str, *, experiment: str | None = None) -> pd.DataFrame:
    """What is known of each version of a judge, the oldest first.

    Returns
    -------
    DataFrame
        ``version``; ``registered_at`` (UTC); ``fingerprint`` and that of the ``parent`` it was
        aligned from; ``status`` of the alignment; on its held-out pairs, ``n`` of them,
        accuracy and kappa of the original (``accuracy_before``) and of the proposed judge
        (``accuracy_after``), each with its interval; ``optimizer``, ``seed``,
        ``dataset_digest``, ``split_digest``, ``model``, ``calls``, ``reflection_calls``,
        ``tokens``, ``cost``, the MLflow ``run_id``, and ``rolled_back_from``. What is not known
        is None, and an undefined statistic nan.

    Raises
    ------
    RegistryError
        For an unknown name.
    """
    where = find_experiment_id(experiment, create=False)
    _version(where, name, None)
    return pd.DataFrame([_row(version) for version in _versions(where, name)], columns=_COLUMNS)


_SCORES: Final = [
    f"{figure}_{when}{end}"
    for figure in ("accuracy", "kappa")
    for when in ("before", "after")
    for end in ("", "_interval")
]

_COLUMNS: Final = [
    "version", "registered_at", "fingerprint", "parent", "status", "n", *_SCORES, "optimizer",
    "seed", "dataset_digest", "split_digest", "model", "calls", "reflection_calls", "tokens",
    "cost", "run_id", "rolled_back_from",
]  # fmt: skip


def _row(version: ScorerVersion) -> dict[str, Any]:
    form = _form(version)
    made = provenance(form)
    row: dict[str, Any] = {column: made.get(column) for column in _COLUMNS}
    row["version"] = version.scorer_version
    row["registered_at"] = pd.Timestamp(version.creation_time, unit="ms", tz="UTC")
    if row["fingerprint"] is None and form.get("instructions_judge_pydantic_data"):
        row["fingerprint"] = fingerprint(from_options(stored_options(form)))
    for when in ("before", "after"):
        scores = made.get(when) or {}
        row["n"] = scores.get("n", row["n"])
        for figure in ("accuracy", "kappa") if scores else ():
            row[f"{figure}_{when}"] = _figure(scores[figure])
            low, high = scores[f"{figure}_interval"]
            row[f"{figure}_{when}_interval"] = (_figure(low), _figure(high))
    return row


def _figure(stored: float | None) -> float:
    """JSON knows no nan."""
    return float("nan") if stored is None else stored


@discreet()
def diff(name: str, a: int, b: int, *, experiment: str | None = None) -> str:
    """The instructions of version ``b`` against those of version ``a``, as a unified diff.

    Empty where they are the same.

    Raises
    ------
    RegistryError
        For an unknown name or version.
    """
    where = find_experiment_id(experiment, create=False)
    texts = [instructions_in(_form(_version(where, name, version))) for version in (a, b)]
    lines = difflib.unified_diff(
        texts[0].splitlines(),
        texts[1].splitlines(),
        f"{name} version {a}",
        f"{name} version {b}",
        lineterm="",
    )
    return "\n".join(lines)


# -- MLflow's registry ----------------------------------------------------------------------


def _write(where: str, name: str, form: Form, made: dict[str, Any]) -> tuple[int, bool]:
    """The version that holds this judge, and whether it is new."""
    versions = _versions(where, name)
    if versions and comparable(_form(versions[-1])) == comparable(form):
        return int(versions[-1].scorer_version), False
    # judge.register() writes the same row, but has no place for what MLflow leaves out.
    version = _registry().register_scorer(where, name, json.dumps(with_provenance(form, made)))
    return int(version.scorer_version), True


def _registry() -> Any:
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store()


def _versions(where: str, name: str) -> list[ScorerVersion]:
    """All versions, the oldest first; none for an unknown name."""
    try:
        found = _registry().list_scorer_versions(where, name)
    except NotImplementedError:
        raise RegistryError(
            f"The store {address()} has no registry of judges. Use a database "
            "(mlflow.set_tracking_uri('sqlite:///mlflow.db')) or an MLflow server."
        ) from None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    return sorted(found, key=lambda version: int(version.scorer_version))


def _version(where: str, name: str, version: int | None) -> ScorerVersion:
    versions = _versions(where, name)
    if not versions:
        known = sorted(each.scorer_name for each in _registry().list_scorers(where))
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise RegistryError(
            f"No judge {name!r} is registered in experiment {_experiment_name(where)!r} of "
            f"{address()}.{hint} Registered there: "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    if version is None:
        return versions[-1]
    for each in versions:
        if each.scorer_version == version:
            return each
    numbers = ", ".join(str(each.scorer_version) for each in versions)
    raise RegistryError(f"Judge {name!r} has no version {version!r}. It has: {numbers}.")


def _experiment_name(where: str) -> str:
    return str(mlflow.get_experiment(where).name)


def _form(version: ScorerVersion) -> Form:
    return asdict(version.serialized_scorer)
