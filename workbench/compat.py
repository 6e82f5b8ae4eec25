"""All that is touched of MLflow and litellm though it is not public: of judges, store, requests,
providers and optimizers, in this order, one small function each, with what happens without it. It
was seen in mlflow 3.17.2, litellm 1.110.2 and, at the end, nbclient 0.11, the functions that send
requests in mlflow 3.14."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import wrapt

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


_lock = threading.Lock()
_originals: dict[tuple[int, str], tuple[int, Any]] = {}  # by owner and name, with their users


@contextmanager
def _replaced(owner: Any, name: str, replace: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute by what ``replace`` makes of it, until nobody needs that any more."""
    key = id(owner), name
    with _lock:
        users, original = _originals.get(key) or (0, getattr(owner, name))
        if not users:
            setattr(owner, name, replace(original))
        _originals[key] = users + 1, original
    try:
        yield
    finally:
        with _lock:
            users, original = _originals.pop(key)
            if users > 1:
                _originals[key] = users - 1, original
            else:
                setattr(owner, name, original)


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


Endpoint = tuple[str | None, dict[str, str], dict[str, Any]]
"""Base URL, headers and parameters by which a model is reached."""


def endpoint(judge: Any) -> Endpoint:
    """Base URL, extra headers and inference parameters of a judge, or of the one within it."""
    judge = base_judge(judge) or judge
    names = ("_base_url", "_extra_headers", "_inference_params")
    base_url, headers, params = (getattr(judge, name, None) for name in names)
    return base_url, dict(headers or {}), dict(params or {})


def prepared(judge: Any) -> Any:
    """A copy of an instructions judge that makes its answer schema once: half the CPU time."""
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if type(judge) is not InstructionsJudge or not hasattr(judge, "_create_response_format_model"):
        return judge
    fast, schema = copy.copy(judge), judge._create_response_format_model()
    fast.__dict__["_create_response_format_model"] = lambda: schema
    return fast


def base_judge(judge: Judge) -> Any:
    """The judge within MemAlign's, which is else registered without options; None for others."""
    return getattr(judge, "_base_judge", None)


def copy_registration(registered: Any, judge: Judge) -> None:
    """Copy what MLflow notes on a registered scorer, without which ``judge.start()`` refuses it."""
    for name in ("_registered_backend", "_experiment_id", "_sampling_config", "_scorer_version"):
        if hasattr(registered, name):
            setattr(judge, name, getattr(registered, name))


def active_experiment_id() -> str:
    """The id of the experiment that was set, or that the environment names; not told otherwise."""
    from mlflow.tracking.fluent import _get_experiment_id

    return str(_get_experiment_id())


def create_tables(path: Path) -> None:
    """Make a new SQLite database with MLflow's tables, which it else makes at its first use."""
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


_session: ContextVar[Any] = ContextVar("workbench_session", default=None)


@contextmanager
def one_transaction(store: Any) -> Iterator[None]:
    """Commit all that this thread writes within the block at its end, or nothing of it.

    Raises `AttributeError` where the store is not a database.
    """

    def sharing(original: Any) -> Any:
        def session_for(read_only: bool = True) -> Any:
            session = _session.get()
            return original(read_only=read_only) if session is None else nullcontext(session)

        return session_for

    with (
        _replaced(store, "ManagedSessionMaker", sharing),
        store.ManagedSessionMaker(read_only=False) as session,
    ):
        token = _session.set(session)
        try:
            yield
        finally:
            _session.reset(token)


def add_review_queue_items(queue_id: str, trace_ids: Sequence[str]) -> None:
    """Add traces to a review queue; at once in a database, where MLflow takes 20 ms an item."""
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


class Sender(Protocol):
    """Sends the requests of the judge call that is under way."""

    def post(self, endpoint: str, headers: Mapping[str, str], payload: dict[str, Any]) -> Any:
        """POST a chat request and return the JSON answer; raise `status_error` from 400."""

    def ask(self, payload: Mapping[str, Any], send: Callable[[], Any]) -> Any:
        """Return what ``send()``, which makes the request, returns."""

    def read(self, response: Any, *, tools: bool) -> Any:
        """Return litellm's response with what it answers as the JSON that was asked for."""


def _adapter(name: str) -> Any:
    return importlib.import_module(f"mlflow.genai.judges.adapters.{name}")


def status_error(status: int, message: str, retry_after: float | None = None) -> Any:
    """Return MLflow's error for an answer with a status from 400; ``retry_after`` in seconds."""
    utils = _adapter("utils")
    too_long = status == 400 and utils.is_context_window_error(message)
    error = utils.ChatCompletionError(status, message, is_context_window_error=too_long)
    error.retry_after = retry_after
    return error


_sender: ContextVar[Sender | None] = ContextVar("workbench_sender", default=None)

# Asked where a context has no sender.
senders_of_process: Final[list[Callable[[], Sender | None]]] = []


@contextmanager
def intercepted(sender: Sender | None) -> Iterator[None]:
    """Send the requests of MLflow's judges in this context through ``sender``."""
    litellm = _adapter("litellm_adapter")
    token = _sender.set(sender)
    try:
        with (
            _replaced(_adapter("gateway_adapter"), "send_chat_request", partial(_passing, _send)),
            _replaced(litellm, "_invoke_litellm", partial(_passing, _invoke)),
            _replaced(litellm, "_is_litellm_available", lambda _: _has_litellm),
            _replaced(litellm, "_invoke_litellm_and_handle_tools", partial(_passing, _answer)),
        ):
            yield
    finally:
        _sender.reset(token)


@cache
def _has_litellm() -> bool:
    """Whether litellm is installed; MLflow imports it to find out."""
    return find_spec("litellm") is not None


def current_sender() -> Sender | None:
    """Who sends the request that is under way in this context."""
    found = [_sender.get(), *(sender() for sender in senders_of_process)]
    return next((sender for sender in found if sender is not None), None)


def _passing(send: Callable[..., Any], original: Any) -> Any:
    """MLflow's function, in whose place ``send`` is called where the context has a sender."""
    order = inspect.signature(original)

    @wraps(original)
    def passing(*args: Any, **kwargs: Any) -> Any:
        sender = current_sender()
        if sender is None:
            return original(*args, **kwargs)
        return send(sender, original, order.bind(*args, **kwargs).arguments)

    return passing


def _send(sender: Sender, _: Any, given: Mapping[str, Any]) -> Any:
    """Send what MLflow's own client would."""
    return sender.post(given["endpoint"], given["headers"], given["payload"])


def _invoke(sender: Sender, original: Any, given: Mapping[str, Any]) -> Any:
    """Let litellm send, without retries of its own."""
    payload = {key: given.get(key) for key in ("messages", "tools")}
    if given.get("include_response_format"):
        payload["response_format"] = given.get("response_format")
    payload |= given.get("inference_params") or {}
    response = sender.ask(payload, lambda: original(**{**given, "num_retries": 0}))
    return sender.read(response, tools=bool(payload["tools"]))


Respond = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
"""Answers the messages of a chat as OpenAI's API does."""

_in_process: Final[dict[str, Respond]] = {}  # by provider


def answer_in_process(name: str, respond: Respond) -> None:
    """Answer requests to ``name:/...`` in this process, without which such a model is unknown.

    Where requests are intercepted that needs no litellm, which takes four seconds to import; other
    callers come by litellm, to which the model is made known once that is imported.
    """

    def add(litellm: Any) -> None:
        class InProcess(litellm.CustomLLM):  # type: ignore[misc]  # litellm publishes no types
            def completion(self, model: str, messages: list[Any], **_: Any) -> Any:
                return litellm.ModelResponse(**respond(messages))

        add_provider(name, InProcess())

    if name not in _in_process or "litellm" in sys.modules:
        wrapt.register_post_import_hook(add, "litellm")
    _in_process[name] = respond


def _answer(sender: Sender, original: Any, given: Mapping[str, Any]) -> Any:
    """Answer a judge without tools in this process, and let MLflow ask litellm for others."""
    respond = _in_process.get(given["provider"])
    if respond is None or given.get("trace") is not None:
        return original(**given)
    messages = [{"role": one.role, "content": one.content} for one in given["messages"]]
    payload = {"messages": messages, **(given.get("inference_params") or {})}
    body = sender.ask(payload, lambda: respond(messages))
    used, text = body["usage"], body["choices"][0]["message"]["content"]
    counts = used["prompt_tokens"], used["completion_tokens"]
    return _adapter("litellm_adapter").InvokeLiteLLMOutput(text, None, *counts, None)


def add_provider(name: str, handler: Any) -> None:
    """Let a handler answer requests to ``name/...``, without which no model of ours is reached."""
    import litellm

    others = [one for one in litellm.custom_provider_map if one.get("provider") != name]
    litellm.custom_provider_map = [*others, {"provider": name, "custom_handler": handler}]
    litellm.utils.custom_llm_setup()


_OPTIMIZER_MODELS: Final = {
    "_model": "reflection",
    "_reflection_lm": "reflection",
    "_embedding_model": "embedding",
}


def models_of_optimizer(optimizer: Any) -> dict[str, str]:
    """The attributes in which an optimizer names its models, which are else not metered."""
    named = _OPTIMIZER_MODELS.items()
    return {name: use for name, use in named if isinstance(getattr(optimizer, name, None), str)}


def reached_elsewhere(judge: Any, model: str, way: Endpoint = (None, {}, {})) -> Any:
    """A copy of an instructions judge that asks another model, without which none is metered."""
    moved = judge.model_copy()
    moved._model, (moved._base_url, headers, params) = model, way
    moved._extra_headers, moved._inference_params = headers or None, params or None
    return moved


def rename_models(judge: Any, rename: Callable[[str], str], *, like: Any) -> Any:
    """Rename the models of a judge that an optimizer made: their names end with its run.

    The judge within it is reached as ``like`` is.
    """
    if (base := base_judge(judge)) is not None:
        judge._base_judge = reached_elsewhere(base, rename(base.model), endpoint(like))
    for name in models_of_optimizer(judge):
        setattr(judge, name, rename(getattr(judge, name)))
    if (embedder := embedder_of(judge)) is not None:
        embedder.model = rename(embedder.model)
    return judge


def embedding_dimensions(optimizer: Any) -> Any:
    """The length of MemAlign's vectors, which litellm 1.110.2 drops on the way to our provider."""
    return getattr(optimizer, "_embedding_dim", None)


def embedder_of(judge: Any) -> Any:
    """The ``dspy.Embedder`` of a MemAlign judge, whose embeddings are else not counted."""
    return getattr(judge, "_embedder", None)


def with_models(optimizer: Any, name: Callable[[str, str], str]) -> Any:
    """A copy of an optimizer of MLflow that asks its models by what ``name`` gives them, by use."""
    if not (uses := models_of_optimizer(optimizer)):
        return optimizer
    copied = copy.copy(optimizer)
    for attribute, use in uses.items():
        setattr(copied, attribute, name(use, getattr(optimizer, attribute)))
    return copied


@contextmanager
def fast_carriage_returns() -> Iterator[None]:
    """Let nbclient look for carriage returns once a line: else a long one takes it minutes."""
    client, name = importlib.import_module("nbclient.client"), "_RGX_CARRIAGERETURN"
    once = re.compile(r"^.*\r(?=[^\n])", re.MULTILINE)
    with _replaced(client, name, lambda _: once) if hasattr(client, name) else nullcontext():
        yield
