"""Judges: make one, tell versions apart by fingerprint, copy one with new instructions."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from workbench.compat import options
from workbench.credentials import public_query, without_credentials, without_secret_params
from workbench.errors import ArgumentError
from workbench.models.offline import MODEL, register
from workbench.models.recording import MODEL_VARIABLE, replayed

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def default_model() -> str:
    """The model of a judge that names none, or in a replay that of the recorded run."""
    player = replayed()
    model = os.environ.get(MODEL_VARIABLE) if player is None else player.head.default_model
    if model:
        return model
    _say_embedded_once()
    return MODEL


@functools.cache
def _say_embedded_once() -> None:
    print(
        f"workbench: no model was named, so the embedded model {MODEL} is used. It is no "
        f"language model. Name one by model='openai:/...' or {MODEL_VARIABLE}.",
        file=sys.stderr,
    )


def make_judge(
    name: str,
    instructions: str,
    *,
    model: str | None = None,
    feedback_value_type: Any = None,
    **mlflow_options: Any,
) -> Judge:
    """Make an MLflow judge.

    Parameters
    ----------
    name
        The judge's name; its verdicts and the human labels are stored under it.
    instructions
        What to judge, with at least one of ``{{ inputs }}``, ``{{ outputs }}``,
        ``{{ expectations }}``, ``{{ trace }}``, ``{{ conversation }}``.
    model
        A model URI such as ``openai:/gpt-4.1-mini``; `default_model` when None.
    feedback_value_type
        Type of the verdict, best a ``Literal`` of the allowed values; str when None.
    mlflow_options
        Everything else that `mlflow.genai.judges.make_judge` takes, such as ``inference_params``,
        ``base_url`` and ``extra_headers``. An OpenAI-style base (``http://localhost:8000/v1``) is
        completed to its chat endpoint, to which MLflow must post.

    Raises
    ------
    mlflow.exceptions.MlflowException
        For instructions without a template variable or with an unknown one, and for an
        unsupported value type.
    ArgumentError
        For a base URL that is not http(s), or is given without a model to be found there.
    """
    from mlflow.genai.judges import make_judge as mlflow_make_judge

    uri = model or default_model()
    register(uri)
    if mlflow_options.get("base_url") is not None:
        api = mlflow_options.get("model_api")
        address = str(mlflow_options["base_url"])
        mlflow_options["base_url"] = chat_endpoint(uri, address, api)
        if uri == MODEL:
            raise ArgumentError(
                f"A base_url was given, but {MODEL} answers within this process. Name the "
                "server's model: model='openai:/...'."
            )
    return mlflow_make_judge(
        name=name,
        instructions=instructions,
        model=uri,
        feedback_value_type=feedback_value_type,
        **mlflow_options,
    )


def chat_endpoint(model: str, base_url: str, model_api: Any = None) -> str:
    """The URL that MLflow's own client, which posts chat requests to it literally, must be given.

    >>> chat_endpoint("openai:/llama", "http://localhost:8000/v1/")
    'http://localhost:8000/v1/chat/completions'
    """
    base_url = checked_url(base_url)
    parts = urlsplit(base_url)
    chat = str(getattr(model_api, "value", model_api)) in ("None", "default", "chat_completions")
    complete = parts.path.rstrip("/").endswith("/completions")
    if not model.startswith("openai:/") or not chat or complete:
        return base_url
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions"))


def checked_url(base_url: str) -> str:
    """Return the address of a server without blanks around it; `ArgumentError` if it is none."""
    address = base_url.strip()
    with suppress(ValueError):  # of an IPv6 address without its end, or no port
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return address
    raise ArgumentError(
        f"base_url={without_credentials(address)!r} is no http(s) URL. Give the root of an "
        "OpenAI-compatible server, for instance http://localhost:8000/v1."
    )


def from_options(judge_options: dict[str, Any]) -> Judge:
    """The judge that `options` describes."""
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    register(str(judge_options.get("model", "")))
    return InstructionsJudge(**judge_options)


def with_instructions(judge: Judge, instructions: str, **changed: Any) -> Judge:
    """A copy of the judge with new instructions and every option kept that is not ``changed``."""
    return from_options({**options(judge), "instructions": instructions, **changed})


_DECIDING = (
    "instructions", "model", "generate_rationale_first", "include_tool_calls_in_conversation",
    "include_timing_in_conversation",
)  # fmt: skip


def fingerprint(judge: Judge, *, place: bool = True, timeout: bool = False) -> str:
    """Hash of all that decides a judge's verdicts: 16 hexadecimal digits.

    Name, description, headers, credentials and aggregations do not count; inference parameter
    ``timeout`` and base URL (``place``) only where asked for. Of a class that is not MLflow's,
    source and public fields count.
    """
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    if isinstance(judge, InstructionsJudge):
        opts = options(judge)
        deciding: dict[str, Any] = {key: opts[key] for key in _DECIDING}
        # A key that is renewed makes no other judge, nor does a longer timeout.
        params = without_secret_params(opts["inference_params"])
        if params and "timeout" in params and not timeout:
            params = {name: value for name, value in params.items() if name != "timeout"} or None
        deciding["inference_params"] = params
        deciding["type"] = judge.model_dump()["instructions_judge_pydantic_data"].get(
            "feedback_value_type"
        )
        base_url = opts["base_url"] if place else None
        deciding["base_url"] = without_credentials(base_url) if base_url else None
        if base_url and (query := public_query(base_url)):
            deciding["query"] = query
        deciding["api"] = str(getattr(opts["model_api"], "value", opts["model_api"]))
        deciding |= _own_code(judge)
    else:
        deciding = _own_code(judge) or _dumped(judge) or {"fields": _fields(judge)}
        deciding["class"] = type(judge).__qualname__
    # What JSON does not take is a text that is the same in every process.
    address = re.compile(" at 0x[0-9a-f]+", re.IGNORECASE)
    text = json.dumps(
        deciding, sort_keys=True, default=lambda v: address.sub("", str(v)), ensure_ascii=False
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprints_of(judge_or_name: Judge | str) -> tuple[str, str]:
    """A judge's fingerprint, and that of earlier versions, with ``timeout``; "" for a name."""
    if isinstance(judge_or_name, str):
        return "", ""
    return fingerprint(judge_or_name), fingerprint(judge_or_name, timeout=True)


def is_cacheable(judge: Judge) -> bool:
    """Whether equal fingerprints mean equal judges: a user's own code may use a hidden state."""
    form = _dumped(judge)
    return form is not None and not form.get("call_source") and not _own_code(judge)


_LIBRARIES = ("mlflow", "workbench", "pydantic", "builtins", "abc", "typing")
_UNDECIDING = ("name", "description", "aggregations", "mlflow_version")


def _own_code(judge: Judge) -> dict[str, Any]:
    """Name, source and fields of a user's own class of judge; empty for the libraries' classes."""
    own = [c for c in type(judge).__mro__ if c.__module__.split(".")[0] not in _LIBRARIES]
    if not own:
        return {}
    return {"classes": [(c.__qualname__, _source(c)) for c in own], "fields": _fields(judge)}


def _fields(judge: Judge) -> Any:
    fields = vars(judge).items()
    public = {k: v for k, v in fields if not k.startswith("_") and k not in _UNDECIDING}
    return without_secret_params(public)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in at a prompt, or compiled
        return ""


def _dumped(judge: Judge) -> dict[str, Any] | None:
    """MLflow's form of a built-in judge; None where MLflow cannot write the judge down."""
    from mlflow.exceptions import MlflowException

    try:
        form = judge.model_dump()
    except MlflowException:
        return None
    return {key: value for key, value in form.items() if key not in _UNDECIDING}
