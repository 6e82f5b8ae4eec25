"""Other people's optimizers, MLflow's above all, under the workbench's harness.

They get the traces of train and dev with one human label each, the consensus that the judge is
tested on as well, and try their candidates with all options of the judge. Their calls are
counted, and calls that fail are failures and no disagreements (`workbench.metering`).
"""

from __future__ import annotations

import copy
import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench import store
from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.errors import BudgetError, CancelledError
from workbench.judge import scrub, with_instructions
from workbench.metering import KINDS, Meter, metering
from workbench.pairing import Pairs, Split
from workbench.reflection import _endpoint_options
from workbench.watch import CANCELLED

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


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
    """The judge that the optimizer proposes, with all options of the original, and the calls.

    ``progress`` lets the optimizer write what it writes. Once ``stop`` is set, each further call
    of a model fails at once. Requests of judges, reflection and embedding models are taken from
    ``budget`` before they are made, and what is known already is charged with what it cost.

    Raises
    ------
    BudgetError
        When the budget did not suffice, whatever the optimizer made of that.
    CancelledError
        When ``stop`` was set, whatever the optimizer made of that.
    ModelError
        When more than ``max_failure_share`` of the judge's, the reflection model's or the
        embedding model's answers were lost, whatever the optimizer made of that.
    """
    who = type(optimizer).__name__
    traces = [_with_consensus(part, t) for part in (split.train, split.dev) for t in _traces(part)]
    scale = split.train.scale
    purse = budget or Budget()
    purse.check(str(judge.model))
    cache = AnswerCache()
    try:
        with (
            metering(
                max_failure_share=max_failure_share,
                scale=scale,
                cache=cache,
                stop=stop,
                budget=purse,
            ) as meter,
            _options_kept(optimizer, judge),
            _endpoint_kept(judge),
            nullcontext() if progress else _silence(),
        ):
            proposed = judge.align(traces, optimizer)
    except Exception as error:
        _unless_cancelled(stop)
        _unless_exhausted(meter, who)
        if failure := meter.failure(who, error):
            # Not chained: the provider's own words may repeat a key.
            raise failure from None
        raise
    finally:
        cache.close()
    _unless_cancelled(stop)
    _unless_exhausted(meter, who)
    if failure := meter.failure(who):
        raise failure
    if type(proposed) is InstructionsJudge:
        # They are shown, logged and registered; a gateway may put into them what it was sent.
        proposed = with_instructions(judge, scrub(proposed.instructions, judge))
    return proposed, meter


def _unless_cancelled(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise CancelledError(CANCELLED) from None


def _unless_exhausted(meter: Meter, who: str) -> None:
    """An optimizer that calls on may take the failures for disagreements, so none is heard."""
    if meter.exhausted is None:
        return
    asked = ", ".join(
        f"{meter.count(kind).requests} {kind}" for kind in KINDS if meter.count(kind).requests
    )
    raise BudgetError(
        f"{who} was stopped, since what it wanted to ask goes beyond the budget; it cannot say "
        f"what is best until then, so the judge stays as it was. {meter.exhausted} Requests made "
        f"now: {asked or 'none'}. The same call with a higher budget goes on from what is kept."
    ) from None


def requests_of_a_verdict(optimizer: AlignmentOptimizer) -> int:
    """Requests that one verdict of a judge takes that the optimizer makes, as far as is known.

    MemAlign's judges look up examples by an embedding before they answer.
    """
    return 2 if getattr(optimizer, "_embedding_model", None) else 1


@contextmanager
def others_counted(judge: Judge, budget: Budget | None = None) -> Iterator[Meter | None]:
    """Within it requests of the judge to other models than its own are counted as well.

    Such a judge is none that is made from instructions alone, and came of an optimizer that has
    loaded a library to ask by. None where there is nothing to count.
    """
    loaded = {"dspy", "litellm"} & set(sys.modules)
    if type(judge) is InstructionsJudge or not loaded:
        yield None
        return
    with metering(max_failure_share=1.0, budget=budget) as meter:
        yield meter


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the optimizer's bars and remarks back; what is logged is logged."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _traces(pairs: Pairs) -> list[Trace]:
    return store.fetch_traces(pairs.trace_ids) if len(pairs) else []


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
    options = _endpoint_options(judge) if isinstance(judge, InstructionsJudge) else {}
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
