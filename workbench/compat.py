from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def options(judge: Judge) -> dict[str, Any]:
    """All options of an instructions judge, by the names of its constructor.

    Raises
    ------
    ArgumentError
        When the judge is not made from instructions (built-in and code scorers).
    """
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if not isinstance(judge, InstructionsJudge):
        raise ArgumentError(
            f"Judge {judge.name!r} is a {type(judge).__name__}, whose instructions cannot be "
            "replaced. Make one from instructions: workbench.make_judge(name, instructions, ...)."
        )
    return {
        "name": judge.name,
        "instructions": judge._instructions,
        "model": judge._model,
        "description": judge.description,
        "feedback_value_type": judge._feedback_value_type,
        "generate_rationale_first": judge._generate_rationale_first,
        "include_tool_calls_in_conversation": judge._include_tool_calls_in_conversation,
        "inference_params": judge._inference_params,
        "base_url": judge._base_url,
        "extra_headers": judge._extra_headers,
        "include_timing_in_conversation": judge._include_timing_in_conversation,
        "model_api": judge._model_api,
        "aggregations": judge.aggregations,
        # Scorers of older versions have no timeout.
        **({"timeout": judge.timeout} if hasattr(judge, "timeout") else {}),
    }


def base_judge(judge: Judge) -> Judge | None:
    """Return the judge that a `MemoryAugmentedJudge` (MemAlign's) asks; None for other judges.

    Seen in mlflow 3.17.2. Without it such a judge is registered though MLflow loses options.
    """
    found: Judge | None = getattr(judge, "_base_judge", None)
    return found


def copy_registration(registered: Any, judge: Judge) -> None:
    """Copy what MLflow notes on a registered scorer, so that monitoring can be started with it.

    Seen in mlflow 3.17.2. Without it ``judge.start()`` says that the judge is not registered.
    """
    for attribute in (
        "_registered_backend",
        "_experiment_id",
        "_sampling_config",
        "_scorer_version",
    ):
        if hasattr(registered, attribute):
            setattr(judge, attribute, getattr(registered, attribute))


def tracking_store() -> Any:
    """Return the active tracking store, which holds the scorer registry.

    Seen in mlflow 3.17.2: `Scorer.register` has no place for what MLflow's form leaves out.
    Without it judges cannot be registered with all options.
    """
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store()


# -- MLflow's store -------------------------------------------------------------------------


def active_experiment_id() -> str:
    """The id of the active experiment, as MLflow's fluent functions find it.

    mlflow 3.17.2. Without it, the experiment that `mlflow.set_experiment` has set, or that the
    environment names, could not be told.
    """
    from mlflow.tracking.fluent import _get_experiment_id

    return str(_get_experiment_id())


def check_tag_key(key: str) -> None:
    """Raise MLflow's exception for a key that it does not take for a tag.

    mlflow 3.17.2. Without it, such a key fails when the first trace is written.
    """
    from mlflow.utils.validation import _validate_tag_name

    _validate_tag_name(key)


def create_tables(path: Path) -> None:
    """Make a new SQLite database with all of MLflow's tables.

    mlflow 3.17.2. Without it, MLflow makes them in place at its first use of the store.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from sqlalchemy import event

    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    # Waiting for the disk once at the end, not after each of forty migrations, saves seconds.
    event.listen(engine, "connect", lambda found, _: found.execute("PRAGMA synchronous=OFF"))
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def latest_schema() -> str:
    """The revision of a database that has all of MLflow's tables.

    mlflow 3.17.2. Without it, a database that was left half-made is not recognised.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


_session: ContextVar[tuple[Any, Any] | None] = ContextVar("workbench_session", default=None)
_installing = threading.Lock()


def has_transactions(store: Any) -> bool:
    """Whether writes to this MLflow store can share a transaction: it is a database.

    mlflow 3.17.2. Without it, assessments are written one by one, which takes longer.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return isinstance(store, SqlAlchemyStore) and hasattr(store, "ManagedSessionMaker")


@contextmanager
def one_transaction(store: Any) -> Iterator[None]:
    """Commit what this thread writes to ``store`` within the block at its end, or nothing of it.

    mlflow 3.17.2: the store asks its ``ManagedSessionMaker`` for a session at each write; here it
    gets the shared one. Threads without a transaction of their own are not affected.
    """
    with _installing:
        if not getattr(store.ManagedSessionMaker, "of_workbench", False):
            store.ManagedSessionMaker = _sharing(store, store.ManagedSessionMaker)
    with store.ManagedSessionMaker(read_only=False) as session:
        token = _session.set((store, session))
        try:
            yield
        finally:
            _session.reset(token)


def _sharing(store: Any, make: Any) -> Any:
    @contextmanager
    def maker(read_only: bool = True) -> Iterator[Any]:
        current = _session.get()
        if current is not None and current[0] is store:
            yield current[1]
            return
        with make(read_only=read_only) as session:
            yield session

    maker.of_workbench = True  # type: ignore[attr-defined]  # a mark on a plain function
    return maker
