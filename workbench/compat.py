"""All that is touched of MLflow and litellm though it is not public: one small function each, with
what happens without it. All of it was seen in mlflow 3.17.2."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


# -- judges ---------------------------------------------------------------------------------


def options(judge: Judge) -> dict[str, Any]:
    """All options of an instructions judge by its constructor's names; an error for others."""
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if not isinstance(judge, InstructionsJudge):
        raise ArgumentError(
            f"Judge {judge.name!r} is a {type(judge).__name__}, whose instructions cannot be "
            "replaced. Make one from instructions: workbench.make_judge(name, instructions, ...)."
        )
    # Scorers of older versions have no timeout.
    found = {name: getattr(judge, name) for name in _PUBLIC_OPTIONS if hasattr(judge, name)}
    return found | {name: getattr(judge, f"_{name}") for name in _PRIVATE_OPTIONS}


_PUBLIC_OPTIONS: Final = ("name", "description", "aggregations", "timeout")
_PRIVATE_OPTIONS: Final = (
    "instructions", "model", "feedback_value_type", "generate_rationale_first",
    "include_tool_calls_in_conversation", "include_timing_in_conversation",
    "inference_params", "base_url", "extra_headers", "model_api",
)  # fmt: skip


def endpoint(judge: Any) -> tuple[str | None, dict[str, str], dict[str, Any]]:
    """Base URL, extra headers and inference parameters of a judge, or of the one within it."""
    judge = base_judge(judge) or judge
    return (
        getattr(judge, "_base_url", None),
        dict(getattr(judge, "_extra_headers", None) or {}),
        dict(getattr(judge, "_inference_params", None) or {}),
    )


def prepared(judge: Any) -> Any:
    """A copy of an instructions judge that makes its answer schema once and not in every call.

    Without it a call takes twice the time of the processor, which with 64 under way is what limits
    how many are answered in a second.
    """
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if type(judge) is not InstructionsJudge or not hasattr(judge, "_create_response_format_model"):
        return judge
    fast, schema = copy.copy(judge), judge._create_response_format_model()
    fast.__dict__["_create_response_format_model"] = lambda: schema
    return fast


def base_judge(judge: Judge) -> Any:
    """Return the judge within a `MemoryAugmentedJudge` (MemAlign's); None for other judges.

    Without it such a judge is registered though MLflow loses options.
    """
    return getattr(judge, "_base_judge", None)


def copy_registration(registered: Any, judge: Judge) -> None:
    """Copy what MLflow notes on a registered scorer, without which ``judge.start()`` refuses it."""
    for name in ("_registered_backend", "_experiment_id", "_sampling_config", "_scorer_version"):
        if hasattr(registered, name):
            setattr(judge, name, getattr(registered, name))


# -- MLflow's store -------------------------------------------------------------------------


def active_experiment_id() -> str:
    """The id of the experiment that was set, or that the environment names; not told otherwise."""
    from mlflow.tracking.fluent import _get_experiment_id

    return str(_get_experiment_id())


def create_tables(path: Path) -> None:
    """Make a new SQLite database with all of MLflow's tables.

    Without it, MLflow makes them in place at its first use of the store.
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
    """The revision of a whole database, without which one left half-made is not recognised."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


_session: ContextVar[tuple[Any, Any] | None] = ContextVar("workbench_session", default=None)
_lock = threading.Lock()


@contextmanager
def one_transaction(store: Any) -> Iterator[None]:
    """Commit what this thread writes to ``store`` within the block at its end, or nothing of it.

    The store asks its ``ManagedSessionMaker`` for a session at each write; here it gets the shared
    one. Threads without a transaction of their own are not affected. Without it, as where the store
    is no database, this is an AttributeError before anything is written.
    """
    with _lock:
        maker = store.ManagedSessionMaker
        if not isinstance(maker, _SharingMaker):
            maker = store.ManagedSessionMaker = _SharingMaker(store, maker)
        maker.users += 1
    try:
        with maker(read_only=False) as session:
            token = _session.set((store, session))
            try:
                yield
            finally:
                _session.reset(token)
    finally:
        with _lock:
            maker.users -= 1
            if not maker.users:
                store.ManagedSessionMaker = maker.original


class _SharingMaker:
    """Makes sessions as the original does, but for threads that share one now."""

    def __init__(self, store: Any, original: Any) -> None:
        self.store, self.original, self.users = store, original, 0

    @contextmanager
    def __call__(self, read_only: bool = True) -> Iterator[Any]:
        store, session = _session.get() or (None, None)
        if store is self.store:
            yield session
            return
        with self.original(read_only=read_only) as session:
            yield session


def add_review_queue_items(queue_id: str, trace_ids: Sequence[str]) -> None:
    """Add traces to a review queue, all at once where the store is a database.

    MLflow writes each item within a savepoint of its own, 20 ms each. On a server, and where its
    tables are not as they were, items are added by the public call.
    """
    from mlflow.genai import review_queues
    from mlflow.tracing.client import TracingClient

    try:
        from mlflow.store.tracking.dbmodels.models import SqlReviewQueue, SqlReviewQueueItem

        now = time.time_ns() // 1_000_000
        times = {"creation_time_ms": now, "last_update_time_ms": now}
        rows = [
            {"queue_id": queue_id, "item_type": "trace", "item_id": i, "status": "pending", **times}
            for i in trace_ids
        ]
        with TracingClient().store.ManagedSessionMaker(read_only=False) as session:
            session.query(SqlReviewQueue).filter_by(queue_id=queue_id).one()
            session.bulk_insert_mappings(SqlReviewQueueItem, rows)
    except Exception:
        # Nothing of it was written. Items that someone else has added meanwhile end up here, too.
        for start in range(0, len(trace_ids), 100):
            batch = list(trace_ids[start : start + 100])
            review_queues.add_items_to_review_queue(queue_id, item_ids=batch)


# -- requests of MLflow's judges ------------------------------------------------------------


class Sender(Protocol):
    """Sends the requests of the judge call that is under way."""

    def post(
        self, endpoint: str, headers: Mapping[str, str], payload: dict[str, Any]
    ) -> dict[str, Any]:
        """POST a chat request and return the JSON answer; raise `HTTPStatusError` from 400."""

    def ask(self, payload: Mapping[str, Any], send: Callable[[], Any]) -> Any:
        """Return what ``send()``, which makes the request, returns."""

    def read(self, response: Any, *, tools: bool) -> Any:
        """Return litellm's response with what it answers as the JSON that was asked for."""


class HTTPStatusError(Exception):
    """An answer with a status from 400. ``retry_after`` is in seconds, None where not said."""

    def __init__(self, status_code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status_code, self.retry_after = status_code, retry_after


def _adapter(name: str) -> Any:
    return importlib.import_module(f"mlflow.genai.judges.adapters.{name}")


@functools.cache
def unknown_seams() -> tuple[str, ...]:
    """What this version of MLflow lacks for requests of judges to be counted and measured.

    Without one of them judges are called through MLflow's own client: slower, and with retries
    that are neither counted nor held to a budget.
    """
    seams = {
        ("gateway_adapter", "send_chat_request"): {"endpoint", "headers", "payload"},
        ("utils", "ChatCompletionError"): {"is_context_window_error"},
        ("litellm_adapter", "_invoke_litellm"): {"num_retries"},
    }
    missing = []
    for (module, name), parameters in seams.items():
        with suppress(ImportError, AttributeError):
            if parameters <= set(inspect.signature(getattr(_adapter(module), name)).parameters):
                continue
        missing.append(f"{module}.{name}")
    return tuple(missing)


class _Interception:
    """Replaces MLflow's senders while anybody needs it, counted, and puts them back."""

    def __init__(self) -> None:
        self._sender: ContextVar[Sender | None] = ContextVar("workbench_sender", default=None)
        self.otherwise: Callable[[], Sender | None] = lambda: None  # where a context has no sender
        self._users = 0
        self._undo = ExitStack()

    @contextmanager
    def __call__(self, sender: Sender | None) -> Iterator[None]:
        token = self._sender.set(sender)
        try:
            self.enter()
            yield
        finally:
            self._sender.reset(token)
            with _lock:
                self._users -= 1
                if not self._users:
                    self._undo.close()

    def current(self) -> Sender | None:
        """Who sends the request that is under way in this context."""
        return self._sender.get() or self.otherwise()

    def enter(self) -> None:
        """Replace the senders; for as long as the process lives where nothing puts them back."""
        with _lock:
            self._users += 1
            if self._users > 1:
                return
            if unknown_seams():
                warnings.warn(
                    f"This version of MLflow has no {', '.join(unknown_seams())} as the workbench "
                    "knows it. Judges are called through MLflow's own client: slower, and with "
                    "retries that are neither counted nor held to a budget. Verdicts are the same.",
                    stacklevel=4,
                )
                return
            self._replace(_adapter("gateway_adapter"), "send_chat_request", _send)
            self._replace(_adapter("litellm_adapter"), "_invoke_litellm", _invoke)

    def _replace(self, module: Any, name: str, send: Callable[..., Any]) -> None:
        original = getattr(module, name)
        order = inspect.signature(original)

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            current = self.current()
            if current is None:
                return original(*args, **kwargs)
            return send(current, original, order.bind(*args, **kwargs).arguments)

        setattr(module, name, replaced)
        self._undo.callback(setattr, module, name, original)


intercepted: Final = _Interception()
"""``with intercepted(sender):`` lets requests of MLflow's judges in this context pass ``sender``.
Calls in other contexts pass through untouched."""


def _send(sender: Sender, _: Any, given: Mapping[str, Any]) -> Any:
    """Send what MLflow's own client would."""
    try:
        return sender.post(given["endpoint"], given["headers"], given["payload"])
    except HTTPStatusError as error:
        utils = _adapter("utils")
        too_long = error.status_code == 400 and utils.is_context_window_error(str(error))
        raise utils.ChatCompletionError(
            error.status_code, str(error), is_context_window_error=too_long
        ) from error


def _invoke(sender: Sender, original: Any, given: Mapping[str, Any]) -> Any:
    """Let litellm send, without retries of its own."""
    payload = {key: given.get(key) for key in ("messages", "tools")}
    if given.get("include_response_format"):
        payload["response_format"] = given.get("response_format")
    payload |= given.get("inference_params") or {}
    response = sender.ask(payload, lambda: original(**{**given, "num_retries": 0}))
    return sender.read(response, tools=bool(payload["tools"]))


# -- litellm --------------------------------------------------------------------------------


def add_provider(name: str, handler: Any) -> None:
    """Let a handler answer litellm's requests to ``name/...``, beside the handlers of the user.

    Seen in litellm 1.110.2. Without it neither the embedded model nor optimizers can be asked.
    """
    import litellm

    others = [one for one in litellm.custom_provider_map if one.get("provider") != name]
    litellm.custom_provider_map = [*others, {"provider": name, "custom_handler": handler}]
    litellm.utils.custom_llm_setup()


# -- optimizers of MLflow -------------------------------------------------------------------

_OPTIMIZER_MODELS: Final = {
    "_model": "reflection",
    "_reflection_lm": "reflection",
    "_embedding_model": "embedding",
}


def models_of_optimizer(optimizer: Any) -> dict[str, str]:
    """Return the attributes in which an optimizer of MLflow names its models, with their use.

    Without them requests to models other than the judge's are not metered.
    """
    named = _OPTIMIZER_MODELS.items()
    return {name: use for name, use in named if isinstance(getattr(optimizer, name, None), str)}


def reached_elsewhere(
    judge: Any,
    model: str,
    base_url: str | None = None,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Any:
    """Return a copy of an instructions judge, of the same class, that asks another model.

    Without it an optimizer's requests cannot be metered.
    """
    moved = judge.model_copy()
    moved._model, moved._base_url = model, base_url
    moved._extra_headers = dict(headers) if headers else None
    moved._inference_params = dict(params) if params else None
    return moved


def rename_models(judge: Any, rename: Callable[[str], str], *, like: Any) -> Any:
    """Return a judge that an optimizer made with its models renamed.

    Its judge within (MemAlign's), or itself where it is made from instructions, is reached as
    ``like``. Without it such a judge asks a model that ends with the optimizer's run.
    """
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if isinstance(judge, InstructionsJudge):
        return reached_elsewhere(judge, rename(judge.model), *endpoint(like))
    if (base := base_judge(judge)) is not None:
        judge._base_judge = reached_elsewhere(base, rename(base.model), *endpoint(like))
    for name in models_of_optimizer(judge):
        setattr(judge, name, rename(getattr(judge, name)))
    if (embedder := embedder_of(judge)) is not None:
        embedder.model = rename(embedder.model)
    return judge


def embedding_dimensions(optimizer: Any) -> Any:
    """Return the length of the vectors that MemAlign asks for; None for other optimizers.

    litellm 1.110.2 drops it on the way to a provider of ours: vectors have the model's own length.
    """
    return getattr(optimizer, "_embedding_dim", None)


def embedder_of(judge: Any) -> Any:
    """Return the ``dspy.Embedder`` of a MemAlign judge, whose embeddings are else not counted."""
    return getattr(judge, "_embedder", None)


def with_models(optimizer: Any, name: Callable[[str, str], str], make: Callable[[str], Any]) -> Any:
    """Return a copy of an optimizer of MLflow that asks its models by other names; others as is.

    ``name`` gets a model's use and name. Judges on dspy, which MLflow makes from name, model and
    value type alone, are made from their instructions by ``make``, with all options.
    """
    uses, method = models_of_optimizer(optimizer), "_create_judge_from_dspy_program"
    original = getattr(optimizer, method, None)
    if not uses and original is None:
        return optimizer
    copied = copy.copy(optimizer)
    for attribute, use in uses.items():
        setattr(copied, attribute, name(use, getattr(optimizer, attribute)))

    if original is not None:
        rebuilt: Callable[[Any, Any], Any] = original

        def create(optimized_program: Any, original_judge: Any) -> Any:
            return make(rebuilt(optimized_program, original_judge).instructions)

        setattr(copied, method, create)
    return copied
