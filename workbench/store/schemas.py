"""What people are asked: MLflow's label schemas, and rubrics, which say what to look at.

A schema belongs to an experiment and bears the name under which its answers are stored, which is
the judge's name. MLflow calls them experimental.

A rubric lies in MLflow's prompt registry, one prompt an experiment and question, so its versions
can be read and compared in MLflow's own page too. Nothing is ever overwritten, and the registry
numbers the versions, so two people who edit at the same moment make two versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.errors import ArgumentError, ScaleError, StoreError, one_of
from workbench.formatting import check_text, counted, html_table
from workbench.scale import Scale, scale_of
from workbench.store.database import (
    address,
    all_pages,
    find_experiment_id,
    retrying,
    store_errors,
)
from workbench.store.labels import Label, decision_records, label_records, name_of, same_person
from workbench.store.traces import fetch_traces
from workbench.vocabulary import fold, folded, is_several

_AUTHOR_TAG = "workbench.by"

# -- label schemas --------------------------------------------------------------------------


@store_errors()
def find_schema(name: str, *, experiment: str | None = None) -> LabelSchema | None:
    """Return the label schema of a name; None where there is none, or the store has no schemas."""
    where = find_experiment_id(experiment, create=False)
    try:
        return label_schemas.get_label_schema(name, experiment_id=where)
    except (NotImplementedError, MlflowException) as error:
        missing = getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
        if missing or _is_unsupported(error):
            return None
        raise


@store_errors()
def every_schema(*, experiment: str | None = None) -> list[LabelSchema]:
    """Return all label schemas of the experiment but MLflow's default question, oldest first."""
    where = find_experiment_id(experiment, create=False)
    with supported("label schemas"):
        found = all_pages(
            lambda token: label_schemas.list_label_schemas(where, max_results=100, page_token=token)
        )
    own = [one for one in found if not one.is_default]
    return sorted(own, key=lambda one: (one.created_at or 0, one.schema_id or ""))


def asks_for_feedback(schema: LabelSchema) -> bool:
    """Whether it asks for a rating or a remark; else for what the application ought to say."""
    return str(schema.type) == "feedback"


def asks_for_one(schema: LabelSchema) -> bool:
    """Whether it asks for feedback that is a single value, which a panel can ask for."""
    return asks_for_feedback(schema) and not getattr(schema.input, "multi_select", False)


def schema_scale(name: str, *, experiment: str | None = None) -> Scale | None:
    """Return the rating scale of the label schema of a name; None where it asks for no rating."""
    schema = find_schema(name, experiment=experiment)
    if schema is None or not asks_for_feedback(schema):
        return None
    with suppress(ArgumentError):  # several values at once: no scale of single ratings
        return Scale.from_schema(schema)
    return None


@store_errors()
def make_schema(
    name: str, scale: Scale | None, *, instruction: str = "", experiment: str | None = None
) -> LabelSchema:
    """Return the label schema of a name, made where there is none; a scale of None is free text.

    ``instruction``, cut to the 1,000 characters that MLflow takes, replaces another one.
    """
    where = find_experiment_id(experiment)
    text = instruction.strip()
    text = text if len(text) <= 1000 else text[:998] + " …"
    schema = find_schema(name, experiment=where)
    with supported("label schemas"):
        if schema is None:
            try:
                return label_schemas.create_label_schema(
                    name,
                    type="feedback",
                    input=_input_of(scale),
                    instruction=text or None,
                    enable_comment=True,
                    experiment_id=where,
                )
            except MlflowException as error:
                schema = find_schema(name, experiment=where)  # which somebody has just made
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or schema is None:
                    raise
        old = Scale.from_schema(schema)
        there, wanted = (one and sorted(map(fold, one.values)) for one in (old, scale))
        if there != wanted or not asks_for_feedback(schema):  # none for free text
            raise ArgumentError(
                f"The label schema {name!r} is there already, for {schema.type!s}: "
                f"{old.describe() if old else 'free text'}. Use another name, or delete it with "
                f"mlflow.genai.label_schemas.delete_label_schema(schema_id={schema.schema_id!r})."
            )
        if text and text != (schema.instruction or ""):
            schema = label_schemas.update_label_schema(schema.schema_id, instruction=text)
    return schema


def _input_of(scale: Scale | None) -> Any:
    """Return what MLflow's page shows for a scale."""
    if scale is None:
        return label_schemas.InputText()
    if scale.kind == "numeric":
        low, high = scale.limits
        return label_schemas.InputNumeric(min_value=low, max_value=high)
    if scale.values == (False, True) and isinstance(scale.values[0], bool):
        return label_schemas.InputPassFail(positive_label="Yes", negative_label="No")
    options = [str(value) for value in scale.values]
    # The positive one of two first, which is how it is read again.
    return label_schemas.InputCategorical(
        options=options[::-1] if scale.kind == "binary" else options
    )


@contextmanager
def supported(what: str) -> Iterator[None]:
    """Raise a `StoreError` where the store, such as an older server, does not have ``what``."""
    try:
        yield
    except (NotImplementedError, MlflowException) as error:
        if not _is_unsupported(error):
            raise
        raise StoreError(
            f"There are no {what} in {address()} with MLflow {mlflow.__version__}. They need "
            "MLflow 3.14 or later, here and on the server, and a database or a server as store."
        ) from None


def _is_unsupported(error: Exception) -> bool:
    code = getattr(error, "error_code", "NOT_IMPLEMENTED")  # NotImplementedError has none
    missing = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
    return code in missing or "failed with error code 404 !=" in str(error)


# -- the scale of a name ----------------------------------------------------------------------


def known_scale(
    judge_or_name: Judge | str, traces: Sequence[Trace], verdicts: Iterable[Any] = ()
) -> Scale | None:
    """Return the scale of the judge's type, else of its label schema, else of the values seen."""
    name = name_of(judge_or_name)
    experiments = {trace.info.experiment_id for trace in traces}
    where = experiments.pop() if len(experiments) == 1 else None
    typed = None if isinstance(judge_or_name, str) else scale_of(judge_or_name)
    return typed or schema_scale(name, experiment=where) or observed_scale(name, traces, verdicts)


def observed_scale(
    name: str, traces: Sequence[Trace], verdicts: Iterable[Any] = ()
) -> Scale | None:
    """Return the scale of labels and decisions, and of ``verdicts`` unless these would blur it."""
    given = (*label_records(traces, name), *decision_records(traces, name))
    labelled = [one.value for one in given if not is_several(one.value)]
    verdicts = [value for value in verdicts if not is_several(value)]
    alone = both = None
    with suppress(ScaleError):
        alone = Scale.from_values(labelled)
    with suppress(ScaleError):
        both = Scale.from_values([*labelled, *verdicts])
    blurred = both is None or (alone is not None and both.kind == "nominal" != alone.kind)
    return alone if blurred else both


# -- rubrics --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rubric:
    """One version, counted from 1, of a question's rubric in Markdown.

    ``name`` is the question, which is the judge's name; ``by``, ``note`` and ``created_ms`` say
    who wrote it, why, and when in milliseconds since the epoch, "" where that is not known.
    """

    name: str
    text: str
    version: int
    by: str = ""
    note: str = ""
    created_ms: int = 0

    def __repr__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return f"<Rubric {self.name!r} version {self.version}{by}: {len(self.text)} characters>"


@dataclass(frozen=True, repr=False)
class RubricHistory:
    """All versions of a question's rubric, the first one first; may be empty."""

    name: str
    versions: tuple[Rubric, ...] = ()

    @property
    def current(self) -> Rubric | None:
        """The latest version; None where no rubric was ever set."""
        return self.versions[-1] if self.versions else None

    def version_of(self, label: Label) -> int:
        """Return the version under which a label was made; 0 if there was none yet.

        It is the one that the label records, else, as for labels given in MLflow's page or by a
        script, the one in force when it was given.
        """
        if label.rubric_version is not None:
            return label.rubric_version
        return max((v.version for v in self if v.created_ms <= label.created_ms), default=0)

    def is_earlier(self, label: Label) -> bool:
        """Whether a label was made under a text that differs from the current one."""
        version, current = self.version_of(label), self.current
        if current is None or version >= current.version:
            return False
        return {one.version: one.text for one in self}.get(version) != current.text

    @property
    def table(self) -> pd.DataFrame:
        """One row a version: ``version``, ``created`` (UTC), ``by``, ``note``, ``text``."""
        rows = [
            (v.version, pd.Timestamp(v.created_ms, unit="ms", tz="UTC"), v.by, v.note, v.text)
            for v in self.versions
        ]
        return pd.DataFrame(rows, columns=["version", "created", "by", "note", "text"])

    def __len__(self) -> int:
        return len(self.versions)

    def __iter__(self) -> Iterator[Rubric]:
        return iter(self.versions)

    def __repr__(self) -> str:
        return f"<RubricHistory {self.name!r}: {counted(len(self), 'version')}>"

    def _repr_html_(self) -> str:
        return html_table(self.table, index=False)


@store_errors()
def set_rubric(
    name: str, text: str, *, by: str = "", note: str = "", experiment: str | None = None
) -> Rubric:
    """Make ``text`` the rubric of a question; every annotator on the store sees it.

    A text that differs from the current one makes a new version, which marks the labels made
    until then as made under an earlier rubric (see `earlier_labels`). The same text again makes
    none. The current version is returned, new or not.

    Parameters
    ----------
    name
        The question, which is the judge's name, exactly.
    text
        Markdown, at most 100,000 characters. White space at its ends does not count. A text that
        is empty, too long or cannot be stored is an `ArgumentError`.
    by, note
        Who wrote it and why; stored with the version.
    experiment
        Name or id; the active experiment by default.
    """
    check_text("name", name)
    check_text("text", text)
    text = text.strip()
    if len(text) > 100_000:
        raise ArgumentError(f"text has {len(text):,} characters; a rubric takes at most 100,000.")
    where = find_experiment_id(experiment)
    current = _history(name, where).current
    if current is not None and current.text == text:
        return current
    tags = {"workbench.rubric": name} | ({_AUTHOR_TAG: by} if by else {})
    given = (_client().register_prompt, _prompt_name(name, where), text, note or None, tags)
    try:
        made = retrying(*given)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        made = retrying(*given)  # someone else made the prompt at the same moment
    # Where someone else wrote the same text at the same moment, the earlier version counts.
    return [one for one in _history(name, where) if one.version <= int(made.version)][-1]


def rubric(
    name: str, version: int | None = None, *, experiment: str | None = None
) -> Rubric | None:
    """Return the rubric of a question, the current version by default; None if there is none.

    A version that does not exist is an `ArgumentError`.
    """
    history = rubric_history(name, experiment=experiment)
    if version is None:
        return history.current
    one_of("version", version, [one.version for one in history])
    return next(one for one in history if one.version == version)


@store_errors()
def rubric_history(name: str, *, experiment: str | None = None) -> RubricHistory:
    """Return all versions of a question's rubric; empty where none was ever set.

    ``experiment`` is a name or id, the active experiment by default.
    """
    check_text("name", name)
    return _history(name, find_experiment_id(experiment, create=False))


def earlier_labels(
    name: str, traces: Any = None, *, annotator: str | None = None, experiment: str | None = None
) -> pd.DataFrame:
    """Return the labels that were made under an earlier rubric than the current one.

    A label counts as such if the rubric's text differs now, and no longer once its annotator has
    answered again under the current one, even after seeing the verdict. ``name`` and ``traces``
    are as for `workbench.pair`; with ``annotator`` only this one's labels are returned.

    The table has one row a label, in the order of the traces: ``trace_id``, ``annotator``,
    ``value``, ``rationale``, ``rubric_version`` (0: before there was one).
    """
    history = rubric_history(name, experiment=experiment)
    fetched = fetch_traces(traces, spans=False, experiment=experiment)
    answered_again = {
        (one.trace_id, folded(one.annotator))
        for one in label_records(fetched, name, latest=True)
        if not history.is_earlier(one)
    }
    rows = [
        (one.trace_id, one.annotator, one.value, one.rationale, history.version_of(one))
        for one in label_records(fetched, name)
        if history.is_earlier(one) and (one.trace_id, folded(one.annotator)) not in answered_again
        if annotator is None or same_person(annotator, one.annotator)
    ]
    columns = ["trace_id", "annotator", "value", "rationale", "rubric_version"]
    return pd.DataFrame(rows, columns=columns).astype({"value": object})


def _client() -> MlflowClient:
    # A rubric belongs with the labels, so it lies where they do, wherever models are registered.
    return MlflowClient(registry_uri=mlflow.get_tracking_uri())


def _prompt_name(name: str, experiment_id: str) -> str:
    """Names of prompts take letters, digits and ``_.-`` only; the hash keeps names apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "question"
    return f"workbench.rubric.{experiment_id}.{plain}.{sha256(name.encode()).hexdigest()[:12]}"


def _history(name: str, experiment_id: str) -> RubricHistory:
    client, prompt = _client(), _prompt_name(name, experiment_id)
    try:
        found = all_pages(
            lambda token: client.search_prompt_versions(prompt, max_results=100, page_token=token)
        )
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return RubricHistory(name)
        raise
    found.sort(key=lambda version: int(version.version))
    versions = list[Rubric]()  # of equal texts in a row the first: the others changed nothing
    for text, same in groupby(found, lambda one: str(one.template)):
        one = next(same)
        by, note = (one.tags or {}).get(_AUTHOR_TAG, ""), one.commit_message or ""
        made = int(one.creation_timestamp or 0)
        versions.append(Rubric(name, text, int(one.version), by, note, made))
    return RubricHistory(name, tuple(versions))
