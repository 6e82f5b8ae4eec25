"""Judges by name and version: MLflow's scorer registry, with every option and what made them.

A version is a row of MLflow's registry, so `mlflow.genai.scorers.get_scorer` reads it too. That
gives a judge without base URL and headers, though, which talks to its provider's public address;
`load_judge` gives the judge as it was registered.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge as MlflowJudge
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import get_scorer

from workbench.alignment.stored_judge import StoredJudge
from workbench.compat import copy_registration, options, tracking_store
from workbench.credentials import restore
from workbench.errors import ArgumentError, RegistryError
from workbench.formatting import html_text
from workbench.judging.judge import fingerprint, from_options
from workbench.store.traces import address, find_experiment_id, store_errors

if TYPE_CHECKING:
    from mlflow.entities import ScorerVersion
    from mlflow.genai.judges import Judge

    from workbench.alignment.result import Alignment


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
        text = f"{self.name!r} version {self.version} ({state}{status}). {self.warning}".rstrip()
        return f"<Registered {text}>"

    def _repr_html_(self) -> str:
        return f"<div>{html_text(self)}</div>"


# -- register -------------------------------------------------------------------------------

_RECORDED: Final = (
    "status", "seed", "optimizer", "dataset_digest", "calls", "reflection_calls", "tokens", "cost",
    "run_id",
)  # fmt: skip


@store_errors()
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
    given: Any = alignment_or_judge
    judge: Any = given if isinstance(given, MlflowJudge) else getattr(given, "judge", None)
    if not isinstance(judge, MlflowJudge):
        raise ArgumentError(
            f"register takes an Alignment or an MLflow judge, got {type(given).__name__}."
        )
    made: dict[str, Any] = {
        "fingerprint": fingerprint(judge),
        "model": getattr(judge, "model", None),
    }
    if judge is not given:
        made |= _provenance(given, made["fingerprint"])
    named = name or judge.name
    stored = StoredJudge.of(judge, named)
    renamed: Judge | None = judge
    if named != judge.name:
        has_options = isinstance(judge, InstructionsJudge)
        renamed = from_options({**options(judge), "name": named}) if has_options else None
    return _write(find_experiment_id(experiment), named, stored, made, renamed)


def _provenance(alignment: Any, aligned: str) -> dict[str, Any]:
    """Return what made the judge of an alignment; a judge that did not change has no parent."""
    parent = alignment.fingerprints["original"]
    known = {
        "parent": None if parent == aligned else parent,
        "before": _scores(alignment.before),
        "after": _scores(alignment.after),
        "split_digest": alignment.split.digest,
        "split_seed": alignment.split.seed,
        **{name: getattr(alignment, name) for name in _RECORDED},
    }
    return {key: value for key, value in known.items() if value is not None}


def _scores(agreement: Any) -> dict[str, Any]:
    """Return accuracy and kappa with their intervals as JSON; an undefined figure is None."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    scores: dict[str, Any] = {"n": int(agreement.n)}
    for name in ("accuracy", "kappa"):
        scores[name] = number(getattr(agreement, name))
        scores[f"{name}_interval"] = [*map(number, getattr(agreement, f"{name}_interval"))]
    return scores


@store_errors()
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
    stored = _stored(_version(where, name, version))
    return _write(where, name, stored, {**stored.provenance, "rolled_back_from": version})


# -- load -----------------------------------------------------------------------------------


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
    stored = _stored(found)
    who = f"Judge {name!r} version {found.scorer_version}"
    judge = from_options(restore(stored.options, stored.withheld, headers=headers, who=who))
    copy_registration(plain, judge)
    return judge


@store_errors()
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
    stored = _stored(version)
    made = stored.provenance
    row: dict[str, Any] = {column: made.get(column) for column in _COLUMNS}
    row["version"] = version.scorer_version
    row["registered_at"] = pd.Timestamp(version.creation_time, unit="ms", tz="UTC")
    if row["fingerprint"] is None and stored.is_instructions_judge:
        row["fingerprint"] = fingerprint(from_options(stored.options))
    for when in ("before", "after"):
        scores = made.get(when)
        if not scores:
            continue
        row["n"] = scores.get("n")
        for figure in ("accuracy", "kappa"):
            interval = scores[f"{figure}_interval"]
            # JSON knows no nan.
            value, *ends = [math.nan if x is None else x for x in (scores[figure], *interval)]
            row[f"{figure}_{when}"], row[f"{figure}_{when}_interval"] = value, tuple(ends)
    return row


@store_errors()
def diff(name: str, a: int, b: int, *, experiment: str | None = None) -> str:
    """The instructions of version ``b`` against those of version ``a``, as a unified diff.

    Empty where they are the same.

    Raises
    ------
    RegistryError
        For an unknown name or version.
    """
    where = find_experiment_id(experiment, create=False)
    texts = [_stored(_version(where, name, version)).instructions for version in (a, b)]
    first, second = (text.splitlines() for text in texts)
    headings = f"{name} version {a}", f"{name} version {b}"
    return "\n".join(difflib.unified_diff(first, second, *headings, lineterm=""))


# -- MLflow's registry ----------------------------------------------------------------------


def _write(
    where: str, name: str, stored: StoredJudge, made: dict[str, Any], judge: Judge | None = None
) -> Registered:
    """Write a version unless the latest one is this very judge."""
    versions = _versions(where, name)
    new = not versions or _stored(versions[-1]).identity != stored.identity
    if new:
        # judge.register() writes the same row, but has no place for what MLflow leaves out.
        form = json.dumps(stored.with_provenance(made).form)
        versions.append(tracking_store().register_scorer(where, name, form))
    return Registered(
        name=name,
        version=int(versions[-1].scorer_version),
        experiment_id=where,
        fingerprint=made.get("fingerprint", ""),
        status=made.get("status", ""),
        new=new,
        warning=stored.warning,
        _judge=judge,
    )


def _stored(version: ScorerVersion) -> StoredJudge:
    return StoredJudge(asdict(version.serialized_scorer))


def _versions(where: str, name: str) -> list[ScorerVersion]:
    """All versions, the oldest first; none for an unknown name."""
    try:
        found = tracking_store().list_scorer_versions(where, name)
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
        known = sorted(each.scorer_name for each in tracking_store().list_scorers(where))
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise RegistryError(
            f"No judge {name!r} is registered in experiment "
            f"{mlflow.get_experiment(where).name!r} of {address()}.{hint} Registered there: "
            f"{', '.join(map(repr, known)) or 'none'}."
        )
    if version is None:
        return versions[-1]
    by_number = {each.scorer_version: each for each in versions}
    if version not in by_number:
        numbers = ", ".join(map(str, by_number))
        raise RegistryError(f"Judge {name!r} has no version {version!r}. It has: {numbers}.")
    return by_number[version]
