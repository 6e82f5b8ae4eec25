"""Make MLflow's review queues, and keep who shares them and how."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.genai import review_queues

from workbench.errors import ArgumentError
from workbench.labeling.questions import LabelQuestion
from workbench.labeling.review_queue import ReviewQueue
from workbench.store.labels import folded
from workbench.store.rubrics import rubric
from workbench.store.schemas import find_schema, make_schema, scale_of_question, supported
from workbench.store.traces import find_experiment_id, store_errors, store_message

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge
    from mlflow.genai.label_schemas import LabelSchema

MAX_USERS: Final = 10
"""People that MLflow takes as the assigned users of a queue."""

_TAG: Final = "workbench.queue."


@store_errors()
def review_queue(
    name: str,
    questions: Iterable[Judge | LabelQuestion | str] | None = None,
    *,
    annotators: Iterable[str] | None = None,
    each: int | None = None,
    share: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    experiment: str | None = None,
) -> ReviewQueue:
    """Return the review queue of a name, and make it where there is none.

    What is given is stored, where every annotator finds it; what is not given stays as it is.

    Parameters
    ----------
    name
        The queue's name; MLflow does not tell small from capital letters in it.
    questions
        Needed for a new queue: judges, `LabelQuestion`, or names of label schemas. Each becomes
        a label schema of its name, with the current rubric or the judge's instructions as what
        MLflow's page shows beside it. MLflow locks the questions of a queue that holds traces.
    annotators
        The team; their names are those under which they label. MLflow takes at most 10 as a
        queue's users; a larger team is kept beside the queue and shares it out as well.
    each, share, batch_size, seed
        How the items are shared out (see `workbench.assign`); 1, 0, none and 0 for a new queue.
        Without a team ``each`` people label an item, whoever they are.
    experiment
        Name or id; the active one by default.

    Raises
    ------
    ArgumentError
        For a new queue without questions, and for numbers out of range.
    StoreError
        Where MLflow or the store has no review queues.

    Examples
    --------
    >>> queue = workbench.review_queue(
    ...     "pilot", [judge], annotators=["ana", "ben"], each=2
    ... )  # doctest: +SKIP
    >>> queue.add(trace_ids)  # doctest: +SKIP
    >>> workbench.LabelPanel(judge, queue, annotator="ana")  # doctest: +SKIP
    """
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError(f"name={name!r} must be a non-empty text.")
    where = find_experiment_id(experiment)
    team = None if annotators is None else _team(annotators)
    schemas = None
    if questions is not None:
        several = questions if isinstance(questions, (list, tuple)) else [questions]
        schemas = [_schema(one, where) for one in several]
    found = _find_or_make(name, where, [one.schema_id for one in schemas or ()])
    if team is not None and str(found.queue_type) != "user":
        users = list(team) if len(team) <= MAX_USERS else []
        if [folded(one) for one in users] != found.users:
            with supported("review queues"):
                review_queues.update_review_queue(found.queue_id, users=users)
    stored = _settings(where, found)
    given: dict[str, Any] = {
        "annotators": team, "each": each, "share": share, "batch_size": batch_size, "seed": seed,
        "order": tuple(one.schema_id for one in schemas) if schemas else None,
    }  # fmt: skip
    queue = replace(stored, **{key: value for key, value in given.items() if value is not None})
    if queue.annotators:
        queue.assign([])  # checks the numbers before anything is written
    elif queue.each < 1 or queue.share:
        raise ArgumentError(
            f"each={queue.each!r} must be at least 1, and share={queue.share!r} needs annotators."
        )
    if queue != stored:
        settings = {key: getattr(queue, key) for key in given}
        mlflow.MlflowClient().set_experiment_tag(
            where, f"{_TAG}{found.queue_id}", json.dumps(settings, sort_keys=True)
        )
    return queue


def _find_or_make(name: str, experiment_id: str, schema_ids: list[str]) -> Any:
    """Return MLflow's queue with these questions, or with those that it has for none."""
    found = _find(name, experiment_id)
    if found is None and not schema_ids:
        with supported("review queues"):
            every = review_queues.list_review_queues(experiment_id=experiment_id, max_results=100)
        known = ", ".join(repr(one.name) for one in every) or "none"
        raise ArgumentError(
            f"There is no review queue {name!r} in experiment {experiment_id} (existing: {known}). "
            "To make it, give its questions: judges or names of label schemas."
        )
    with supported("review queues"):
        if found is None:
            try:
                return review_queues.create_review_queue(
                    name, queue_type="custom", schema_ids=schema_ids, experiment_id=experiment_id
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Someone else has made it since it was looked for.
                return _find(name, experiment_id)
        if schema_ids and set(schema_ids) != set(found.schema_ids):
            try:
                review_queues.update_review_queue(found.queue_id, schema_ids=schema_ids)
            except MlflowException as error:
                raise ArgumentError(
                    f"The questions of the queue {found.name!r} cannot be changed: "
                    f"{store_message(error)} Or make a queue of another name."
                ) from None
    return found


def _find(name: str, experiment_id: str) -> Any:
    with supported("review queues"):
        try:
            return review_queues.get_review_queue(name=name, experiment_id=experiment_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _schema(question: Judge | LabelQuestion | str, experiment_id: str) -> LabelSchema:
    if isinstance(question, str):
        schema = find_schema(question, experiment=experiment_id)
        if schema is None:
            raise ArgumentError(
                f"questions: there is no label schema {question!r} in experiment {experiment_id}. "
                "Give the judge, or a LabelQuestion with a scale, and it is made."
            )
        return schema
    if isinstance(question, LabelQuestion):
        scale, instruction = question.scale, question.rubric
    else:
        scale = scale_of_question(question, experiment=experiment_id)
        instruction = getattr(question, "instructions", None) or ""
        if scale is None:
            raise ArgumentError(
                f"questions: the type of judge {question.name!r} tells no rating scale. Give it a "
                "feedback_value_type, for instance Literal['yes', 'no'], or give a LabelQuestion."
            )
    now = rubric(question.name, experiment=experiment_id)
    return make_schema(
        question.name, scale, instruction=now.text if now else instruction, experiment=experiment_id
    )


def _team(annotators: Iterable[str]) -> tuple[str, ...]:
    if isinstance(annotators, str):
        raise ArgumentError(f"annotators={annotators!r} is one text. Give a list of names.")
    team = tuple(annotators)
    if len({folded(name) for name in team}) < len(team):
        raise ArgumentError(
            f"annotators={list(team)!r} names someone twice; MLflow does not tell small from "
            "capital letters in names."
        )
    return team


def _settings(experiment_id: str, found: Any) -> ReviewQueue:
    """The queue with its stored settings; one made in MLflow's page is for whoever comes."""
    tags = mlflow.MlflowClient().get_experiment(experiment_id).tags or {}
    try:
        stored = json.loads(tags.get(f"{_TAG}{found.queue_id}", ""))
    except ValueError:
        stored = {}
    queue = ReviewQueue(found.name, found.queue_id, experiment_id)
    if isinstance(stored, dict):
        known = {
            key: stored[key] for key in ("each", "share", "batch_size", "seed") if key in stored
        }
        team, order = (tuple(stored.get(key, ())) for key in ("annotators", "order"))
        queue = replace(queue, annotators=team, order=order, **known)
    return queue
