"""Several writes to MLflow's database in one transaction.

MLflow commits every assessment by itself and waits for the disk each time, which takes ten times
as long as the writing does. Within `one_transaction` the writes of this thread share a session
and are committed together, or not at all. Stores that are no database, a tracking server for
one, are left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_shared: ContextVar[tuple[Any, Any] | None] = ContextVar("workbench_transaction", default=None)
_installing = threading.Lock()


def is_possible(store: Any) -> bool:
    """Whether writes to this MLflow store can share a transaction."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return isinstance(store, SqlAlchemyStore) and hasattr(store, "ManagedSessionMaker")


@contextmanager
def one_transaction(store: Any) -> Iterator[None]:
    """Commit what this thread writes to ``store`` within the block at its end.

    When the block raises, nothing of it is written.
    """
    _install(store)
    with store.ManagedSessionMaker(read_only=False) as session:
        token = _shared.set((store, session))
        try:
            yield
        finally:
            _shared.reset(token)


def _install(store: Any) -> None:
    """Let the store ask for the shared session; without one it works as ever."""
    with _installing:
        make = store.ManagedSessionMaker
        if getattr(make, "of_workbench", False):
            return

        @contextmanager
        def maker(read_only: bool = True) -> Iterator[Any]:
            current = _shared.get()
            if current is not None and current[0] is store:
                yield current[1]
                return
            with make(read_only=read_only) as session:
                yield session

        maker.of_workbench = True  # type: ignore[attr-defined]  # a mark on a plain function
        store.ManagedSessionMaker = maker
