"""MLflow's label schemas: the questions that MLflow's own page asks, as rating scales and back.

A schema belongs to an experiment and bears the name under which its answers are stored, which is
the judge's name. MLflow calls them experimental.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas

from workbench.errors import ArgumentError, StoreError
from workbench.scale import Scale, scale_of
from workbench.store.traces import address, all_pages, find_experiment_id, store_errors

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema


MAX_INSTRUCTION: Final = 1000
"""Characters of a schema's instruction that MLflow takes."""

_MAX_OPTIONS: Final = 10
_MAX_OPTION: Final = 64
_PAGE: Final = 100


@store_errors()
def find_schema(name: str, *, experiment: str | None = None) -> LabelSchema | None:
    """Return the label schema of a name; None where there is none, or the store has no schemas."""
    where = find_experiment_id(experiment, create=False)
    try:
        return label_schemas.get_label_schema(name, experiment_id=where)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or _is_unsupported(error):
            return None
        raise
    except NotImplementedError:
        return None


def list_schemas(*, experiment: str | None = None) -> list[LabelSchema]:
    """Return the experiment's label schemas that ask for feedback, oldest first."""
    return [one for one in every_schema(experiment=experiment) if asks_for_feedback(one)]


@store_errors()
def every_schema(*, experiment: str | None = None) -> list[LabelSchema]:
    """Return all label schemas of the experiment but MLflow's default question, oldest first."""
    where = find_experiment_id(experiment, create=False)
    with supported("label schemas"):
        found = all_pages(
            lambda token: label_schemas.list_label_schemas(
                where, max_results=_PAGE, page_token=token
            )
        )
    kept = [one for one in found if not one.is_default]
    return sorted(kept, key=lambda one: (one.created_at or 0, one.schema_id or ""))


def asks_for_feedback(schema: LabelSchema) -> bool:
    """Whether it asks for a rating or a remark; else for what the application ought to say."""
    return str(schema.type) == "feedback"


def schema_scale(name: str, *, experiment: str | None = None) -> Scale | None:
    """Return the rating scale of the label schema of a name; None where there is none."""
    schema = find_schema(name, experiment=experiment)
    try:
        return None if schema is None else Scale.from_schema(schema)
    except ArgumentError:  # several values at once: no scale of single ratings
        return None


def scale_of_question(question: Judge | str, *, experiment: str | None = None) -> Scale | None:
    """Return the scale of a judge's value type, else that of the label schema of its name."""
    if isinstance(question, str):
        return schema_scale(question, experiment=experiment)
    return scale_of(question) or schema_scale(question.name, experiment=experiment)


@store_errors()
def make_schema(
    name: str,
    scale: Scale | None,
    *,
    instruction: str = "",
    experiment: str | None = None,
) -> LabelSchema:
    """Return the label schema of a name, made where there is none; a scale of None is free text.

    ``instruction`` is what MLflow's page shows beside the question, cut to the 1,000 characters
    that it takes; "" leaves what is there. A schema of that name with another scale, and a scale
    that no schema holds, are an `ArgumentError`.
    """
    where = find_experiment_id(experiment)
    text = _cut(instruction.strip())
    schema = find_schema(name, experiment=where)
    with supported("label schemas"):
        if schema is None:
            try:
                return label_schemas.create_label_schema(
                    name,
                    type="feedback",
                    input=_input_of(name, scale),
                    instruction=text or None,
                    enable_comment=True,
                    experiment_id=where,
                )
            except MlflowException as error:
                # Someone else may have made it since it was looked for.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            schema = label_schemas.get_label_schema(name, experiment_id=where)
        _check_same(schema, scale)
        if text and text != (schema.instruction or ""):
            schema = label_schemas.update_label_schema(schema.schema_id, instruction=text)
    return schema


def _input_of(name: str, scale: Scale | None) -> Any:
    """Return what MLflow's page shows for a scale."""
    if scale is None:
        return label_schemas.InputText()
    if scale.kind == "numeric":
        return label_schemas.InputNumeric(min_value=scale.low, max_value=scale.high)
    if scale.values == (False, True):
        return label_schemas.InputPassFail(positive_label="Yes", negative_label="No")
    options = [str(value) for value in scale.values]
    if scale.kind == "binary":
        options.reverse()  # the positive one first, which is how it is read again
    longest = max(map(len, options))
    if len(options) > _MAX_OPTIONS or longest > _MAX_OPTION:
        raise ArgumentError(
            f"The scale of {name!r} has {len(options)} values, the longest of {longest} "
            f"characters. A label schema of MLflow takes at most {_MAX_OPTIONS} of at most "
            f"{_MAX_OPTION}."
        )
    return label_schemas.InputCategorical(options=options)


def _check_same(schema: LabelSchema, scale: Scale | None) -> None:
    there = Scale.from_schema(schema)
    if _values(there) == _values(scale):
        return
    raise ArgumentError(
        f"The label schema {schema.name!r} is there already, with another scale: "
        f"{there.describe() if there else 'free text'}, not "
        f"{scale.describe() if scale else 'free text'}. Use another name, or delete it with "
        f"mlflow.genai.label_schemas.delete_label_schema(schema_id={schema.schema_id!r})."
    )


def _values(scale: Scale | None) -> list[str] | None:
    """Return what two schemas must have in common: the values, none for numbers."""
    if scale is None:
        return None
    return sorted(str(value).strip().casefold() for value in scale.values)


def _cut(text: str) -> str:
    if len(text) <= MAX_INSTRUCTION:
        return text
    mark = " … (cut: MLflow's page takes 1,000 characters)"
    return text[: MAX_INSTRUCTION - len(mark)] + mark


@contextmanager
def supported(what: str) -> Iterator[None]:
    """Raise a `StoreError` where the store, such as an older server, does not have ``what``."""
    try:
        yield
    except (NotImplementedError, MlflowException) as error:
        if isinstance(error, MlflowException) and not _is_unsupported(error):
            raise
        raise StoreError(
            f"There are no {what} in {address()} with MLflow {mlflow.__version__}. They need "
            "MLflow 3.14 or later, here and on the server, and a database or a server as store."
        ) from None


def _is_unsupported(error: MlflowException) -> bool:
    return error.error_code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED") or (
        "failed with error code 404 !=" in str(error)
    )
