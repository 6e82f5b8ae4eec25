"""Optimizers that are not the workbench's own.

Their requests are not counted yet: they are made through MLflow's and dspy's own clients.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.alignment.watch import CANCELLED
from workbench.compat import endpoint
from workbench.credentials import redact, without_secret_params
from workbench.errors import (
    BudgetError,
    CancelledError,
    CredentialError,
    UnreachableModelError,
)
from workbench.judging.judge import fingerprint, judge_credentials, with_instructions
from workbench.models import recording
from workbench.models.budget import Budget
from workbench.models.cache import question_key
from workbench.pairing.pairs import Pairs, Split
from workbench.simba.reflector import reached_by
from workbench.store.traces import Example, fetch_traces, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class StoppedError(Exception):
    """Nothing more is asked: the models have failed, the budget is spent, someone has cancelled."""


@dataclass
class Count:
    """Calls of one kind."""

    requests: int = 0


@dataclass
class Meter:
    """What was asked of models so far."""

    judge: Count = field(default_factory=Count)
    reflection: Count = field(default_factory=Count)
    embedding: Count = field(default_factory=Count)
    words: int = 0


@contextmanager
def metering(**_: Any) -> Iterator[Meter]:
    """Within it calls will be counted."""
    yield Meter()


@contextmanager
def without_dspy_answers() -> Iterator[None]:
    """Within this context dspy asks anew what it was answered before."""
    if importlib.util.find_spec("dspy") is None:
        yield
        return
    dspy: Any = importlib.import_module("dspy")
    kept = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    try:
        yield
    finally:
        dspy.cache = kept


def learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    *,
    budget: Budget | None = None,
    max_failure_share: float = 0.05,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> tuple[Judge, Meter]:
    """The judge that the optimizer proposes, with all options of the original, and the calls."""
    traces = [_with_consensus(part, t) for part in (split.train, split.dev) for t in _traces(part)]
    recording.refuse_calls(type(optimizer).__name__)
    with (
        metering(max_failure_share=max_failure_share, budget=budget) as meter,
        _options_kept(optimizer, judge),
        _endpoint_kept(judge),
        nullcontext() if progress else _silence(),
    ):
        proposed = judge.align(traces, optimizer)
    if stop is not None and stop.is_set():
        raise CancelledError(CANCELLED)
    if type(proposed) is InstructionsJudge:
        # They are shown, logged and registered; a gateway may put into them what it was sent.
        proposed = with_instructions(judge, redact(proposed.instructions, judge_credentials(judge)))
    return proposed, meter


def requests_of_a_verdict(optimizer: AlignmentOptimizer) -> int:
    """Requests that one verdict of a judge takes that the optimizer makes, as far as is known.

    MemAlign's judges look up examples by an embedding before they answer.
    """
    return 2 if getattr(optimizer, "_embedding_model", None) else 1


@contextmanager
def others_counted(judge: Judge, budget: Budget | None = None) -> Iterator[Meter | None]:
    """Within it requests of the judge to other models than its own will be counted as well."""
    yield None


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the optimizer's bars and remarks back; what is logged is logged."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _traces(pairs: Pairs) -> list[Trace]:
    return fetch_traces(pairs.trace_ids) if len(pairs) else []


def _with_consensus(pairs: Pairs, trace: Trace) -> Trace:
    """The trace with one human label: the consensus that the judge is tested on as well.

    MLflow's optimizers would choose one among several annotators' labels by a rule of their own.
    """
    rows = pairs.table.set_index("trace_id")
    row = rows.loc[trace.info.trace_id]
    label = Feedback(
        name=pairs.name,
        value=row["human"],
        rationale=row["human_rationale"] or None,
        source=AssessmentSource(source_type="HUMAN", source_id="consensus"),
        trace_id=trace.info.trace_id,
    )
    info = copy.copy(trace.info)
    others = [a for a in info.assessments if a.name != pairs.name or a.expectation is not None]
    info.assessments = [*others, label]
    return Trace(info, trace.data)


@contextmanager
def _options_kept(optimizer: AlignmentOptimizer, judge: Judge) -> Iterator[None]:
    """Let MLflow's dspy optimizers try candidates with all options of the judge.

    They rebuild the judge from name, instructions, model and type alone, and would so call the
    provider's public address where the judge has a base URL of its own.
    """
    make = getattr(optimizer, "_create_judge_from_dspy_program", None)
    if make is None:
        yield
        return

    def keeping(optimized_program: Any, original_judge: Judge) -> Judge:
        return with_instructions(judge, make(optimized_program, original_judge).instructions)

    optimizer._create_judge_from_dspy_program = keeping
    try:
        yield
    finally:
        del optimizer._create_judge_from_dspy_program


@contextmanager
def _endpoint_kept(judge: Judge) -> Iterator[None]:
    """Let MLflow's optimizers that reflect with the judge's own model reach it where it is.

    They know the model by its name alone, and would send what people wrote to the provider's
    public address where the judge has a base URL of its own.
    """
    options = reached_by(*endpoint(judge)) if isinstance(judge, InstructionsJudge) else {}
    places = [m for name in _MAKERS if (m := sys.modules.get(name)) and hasattr(m, _MAKE_LM)]
    if not options or not places:
        yield
        return
    import dspy

    made = [getattr(place, _MAKE_LM) for place in places]

    def reaching(model: str) -> Any:
        if model != judge.model:
            return made[0](model)
        return dspy.LM(model.replace(":/", "/", 1), **options)

    for place in places:
        setattr(place, _MAKE_LM, reaching)
    try:
        yield
    finally:
        for place, make in zip(places, made, strict=True):
            setattr(place, _MAKE_LM, make)


_MAKE_LM = "construct_dspy_lm"

_MAKERS = (
    "mlflow.genai.judges.optimizers.dspy",
    "mlflow.genai.judges.optimizers.memalign.utils",
)


ERRORS: Final = {
    kind.__name__: kind for kind in (BudgetError, CredentialError, UnreachableModelError)
}
"""Errors that are replayed as what they were; any other is a `ModelError`."""


COUNTS: Final = ("calls", "reflection_calls", "embedding_calls", "known")
"""What a `Proposal` counts."""


@dataclass(frozen=True)
class Proposal:
    """The judge that an optimizer proposes, and the requests that it took.

    ``known`` answers more were known from before. ``tokens`` and ``cost`` (US dollars) are None
    where they are not known.
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, judge: Judge, meter: Meter, who: str) -> Proposal:
        """The proposal, and what the meter counted."""
        return cls(judge, calls=meter.judge.requests)


def propose(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    *,
    budget: Budget,
    max_failure_share: float = 0.05,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Proposal:
    """What the optimizer proposes, from the file where one is replayed.

    Raises
    ------
    ReplayError
        While a file of answers is replayed that does not hold it.
    """
    who, player, recorder = type(optimizer).__name__, recording.replayed(), recording.recorder()
    parts = [_content(part, by_id) for part in (split.train, split.dev)]
    mark = fingerprint(judge, place=False)
    key = question_key("optimizer", who, _settings(optimizer), mark, parts)
    if player is not None:
        entry = player.get(key)
        if entry is None or entry.answer is None:
            raise player.missing(f"Optimizer {who}")
        return Proposal(with_instructions(judge, entry.answer["instructions"]))
    found, meter = learn(
        judge,
        optimizer,
        split,
        budget=budget,
        max_failure_share=max_failure_share,
        progress=progress,
        stop=stop,
    )
    proposal = Proposal.of(found, meter, who)
    if recorder is not None and type(found) is InstructionsJudge:
        answer = {"instructions": found.instructions}
        recorder.put(recording.Entry(key=key, about=f"Optimizer {who}", answer=answer))
        recorder.save()
    elif recorder is not None:
        warnings.warn(
            f"{who} makes judges that hold more than instructions, which {recorder.path} cannot "
            "hold: what it came to cannot be replayed.",
            stacklevel=3,
        )
    return proposal


def _content(part: Pairs, by_id: Mapping[str, Example]) -> list[Any]:
    """Items and labels as they are the same in every store."""
    rows = part.table.to_dict("records")
    told = [
        (item_digest(by_id[row["trace_id"]]), row["human"], row["human_rationale"]) for row in rows
    ]
    return sorted(told, key=str)


def _settings(optimizer: AlignmentOptimizer) -> dict[str, Any]:
    """What an optimizer was made with, without secrets; of what is no plain data, what it is."""
    return dict(without_secret_params(_plain(vars(optimizer))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    named = value if isinstance(value, type) or callable(value) else type(value)
    name = getattr(named, "__qualname__", type(value).__qualname__)
    return f"<{type(value).__module__}.{name}>"
