"""MLflow's label schemas: the questions that MLflow's own page asks, as rating scales and back.

A schema belongs to an experiment and bears the name under which its answers are stored, which is
the judge's name. MLflow calls them experimental.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import mlflow
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas
from mlflow.genai.judges import Judge
from mlflow.genai.label_schemas import LabelSchema

from workbench.errors import ArgumentError, ScaleError, StoreError
from workbench.scale import Scale, scale_of
from workbench.store.database import (
    ExperimentId,
    address,
    all_pages,
    find_experiment_id,
    store_errors,
)
from workbench.store.labels import decision_records, label_records
from workbench.vocabulary import fold, is_several

_CUT = " … (cut: MLflow's page takes 1,000 characters)"


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

    ``instruction`` is what MLflow's page shows beside the question, cut to the 1,000 characters
    that it takes; "" leaves what is there. A schema of that name with another scale, and a scale
    that no schema holds, are an `ArgumentError`.
    """
    where = find_experiment_id(experiment)
    text = instruction.strip()
    if len(text) > 1000:
        text = text[: 1000 - len(_CUT)] + _CUT
    schema = find_schema(name, experiment=where)
    with supported("label schemas"):
        if schema is None:
            return label_schemas.create_label_schema(
                name,
                type="feedback",
                input=_input_of(name, scale),
                instruction=text or None,
                enable_comment=True,
                experiment_id=where,
            )
        old = Scale.from_schema(schema)
        there, wanted = (one and sorted(map(fold, one.values)) for one in (old, scale))
        found = f"with another scale: {old.describe() if old else 'free text'}"
        if not asks_for_feedback(schema):
            found, there = "and asks for an expectation", ["no rating"]
        if there != wanted:  # none for free text, no values for numbers
            raise ArgumentError(
                f"The label schema {name!r} is there already, {found}. Use another "
                "name, or delete it with "
                f"mlflow.genai.label_schemas.delete_label_schema(schema_id={schema.schema_id!r})."
            )
        if text and text != (schema.instruction or ""):
            schema = label_schemas.update_label_schema(schema.schema_id, instruction=text)
    return schema


def _input_of(name: str, scale: Scale | None) -> Any:
    """Return what MLflow's page shows for a scale."""
    if scale is None:
        return label_schemas.InputText()
    if scale.kind == "numeric":
        low, high = scale.limits
        return label_schemas.InputNumeric(min_value=low, max_value=high)
    if scale.values == (False, True) and isinstance(scale.values[0], bool):
        return label_schemas.InputPassFail(positive_label="Yes", negative_label="No")
    options = [str(value) for value in scale.values]
    if len(options) > 10 or max(map(len, options)) > 64:
        raise ArgumentError(
            f"The scale of {name!r} has {len(options)} values. A label schema of MLflow takes at "
            "most 10, of at most 64 characters."
        )
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


def name_of(judge_or_name: Judge | str) -> str:
    """Return the name under which verdicts and labels are stored."""
    return judge_or_name if isinstance(judge_or_name, str) else str(judge_or_name.name)


def known_scale(
    judge_or_name: Judge | str, traces: Sequence[Trace], verdicts: Iterable[Any] = ()
) -> Scale | None:
    """Return the scale of the judge's type, else of its label schema, else of the values seen."""
    name = name_of(judge_or_name)
    experiments = {ExperimentId(trace.info.experiment_id) for trace in traces}
    where = experiments.pop() if len(experiments) == 1 else None
    typed = None if isinstance(judge_or_name, str) else scale_of(judge_or_name)
    known = typed or schema_scale(name, experiment=where)
    return known or observed_scale(name, traces, verdicts)


def observed_scale(
    name: str, traces: Sequence[Trace], verdicts: Iterable[Any] = ()
) -> Scale | None:
    """Return the scale of the single values of labels and decisions on the traces, and of the given
    ``verdicts`` unless these would blur it. None where they make no scale.
    """
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
