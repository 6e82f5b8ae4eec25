"""Label schemas: scales become what MLflow's page asks, and are read back."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas
from mlflow.genai.label_schemas import InputCategorical, InputText
from mlflow.tracing.client import TracingClient

from workbench.errors import ArgumentError, StoreError
from workbench.scale import Scale
from workbench.store.schemas import every_schema, find_schema, make_schema, schema_scale

SCALES = [
    Scale.from_type(bool),
    Scale.from_type(Literal["excellent", "good", "fair", "poor"]),
    Scale.from_type(Literal["yes", "no"]),
    Scale.from_type(Literal["yes", "no", "N/A"]),
    Scale.of(["spam", "ham"]),
    Scale.of(["red", "green", "blue"]),
    Scale.of(["1", "2", "3", "4", "5"]),
    Scale("numeric", low=0.0, high=10.0),
    None,
]


def test_a_scale_comes_back_from_its_schema(store: str) -> None:
    for number, scale in enumerate(SCALES):
        name = f"Is it right? ({number})"
        make_schema(name, scale, instruction="Look.")
        assert schema_scale(name) == scale
        assert find_schema(name).instruction == "Look."
    assert schema_scale("another") is None
    assert len(every_schema()) == len(SCALES)


def test_a_schema_is_made_once_and_its_instruction_follows(store: str) -> None:
    scale = Scale.from_type(bool)
    first = make_schema("quality", scale, instruction="one")
    again = make_schema("quality", scale)
    assert (again.schema_id, again.instruction) == (first.schema_id, "one")
    long = make_schema("quality", scale, instruction="x" * 2000)
    assert long.schema_id == first.schema_id
    assert len(long.instruction) == 1000
    assert long.instruction.endswith("x …")
    assert [one.name for one in every_schema()] == ["quality"]


def test_a_schema_that_somebody_else_just_made_is_taken(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, create = Scale.from_type(bool), label_schemas.create_label_schema

    def late(*args: Any, **given: Any) -> Any:
        create(*args, **given)
        return create(*args, **given)

    monkeypatch.setattr(label_schemas, "create_label_schema", late)
    assert make_schema("quality", scale, instruction="one").instruction == "one"
    assert [one.name for one in every_schema()] == ["quality"]


def test_zero_and_one_are_numbers_and_not_pass_and_fail(store: str) -> None:
    scale = Scale.from_type(Literal[0, 1])
    first = make_schema("quality", scale)
    assert make_schema("quality", scale).schema_id == first.schema_id
    assert schema_scale("quality").shown == ("1", "0")


def test_what_no_schema_can_be_is_refused(store: str) -> None:
    """Another scale under the same name, and more values than MLflow takes."""
    make_schema("quality", Scale.from_type(bool))
    with pytest.raises(ArgumentError, match="is there already, for feedback: False, True"):
        make_schema("quality", SCALES[1])
    with pytest.raises(MlflowException, match="at most 10"):
        make_schema("other", Scale.of([f"class {n}" for n in range(11)]))
    label_schemas.create_label_schema("answer", type="expectation", input=InputText())
    with pytest.raises(ArgumentError, match=r"'answer' is there already.*expectation"):
        make_schema("answer", None)
    due = InputCategorical(options=["low", "mid", "high"])
    label_schemas.create_label_schema("due", type="expectation", input=due)
    assert schema_scale("due") is None


def test_a_store_without_schemas_says_so(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError

    for name in ("_get_label_schema_by_name", "_create_label_schema"):
        monkeypatch.setattr(TracingClient, name, missing)
    assert schema_scale("quality") is None
    with pytest.raises(StoreError, match=r"no label schemas in .*3\.14"):
        make_schema("quality", Scale.from_type(bool))
