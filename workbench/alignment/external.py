"""Optimizers that are not the workbench's own: what they propose, and what it cost to find."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.alignment.metering import UNMETERED, Meter, metering
from workbench.alignment.runs import AlignmentData, Learned
from workbench.compat import (
    candidates_made_by,
    embedding_dimensions,
    models_of_optimizer,
    reached_elsewhere,
    rename_models,
)
from workbench.credentials import redact
from workbench.judging.judge import judge_credentials, with_instructions
from workbench.models import recording
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs
from workbench.simba.search import Settings
from workbench.store.traces import fetch_traces


def propose(
    data: AlignmentData,
    optimizer: AlignmentOptimizer,
    budget: Budget,
    max_failure_share: float | None = None,
    stop: threading.Event | None = None,
) -> Learned:
    """Return what the optimizer proposes; raises as `Meter.raise_for_losses` does."""
    share = Settings.max_failure_share if max_failure_share is None else max_failure_share
    who, judge, split = type(optimizer).__name__, data.judge, data.split
    if (player := recording.replayed()) is not None:
        raise player.missing(f"What {who} asks (of optimizers only SIMBA is recorded)")
    budget.check(str(judge.model))
    with metering(
        judge,
        budget,
        stop=stop,
        scale=split.train.scale,
        max_failure_share=share,
        dimensions=embedding_dimensions(optimizer),
    ) as meter:
        traces = [*_with_consensus(split.train), *_with_consensus(split.dev)]
        try:
            proposed = _run(judge, optimizer, traces, meter)
        finally:
            meter.raise_for_losses(who)
    return Learned(
        proposed,
        calls=meter.requests["judge"],
        reflection_calls=meter.requests["reflection"],
        embedding_calls=meter.requests["embedding"],
        known=meter.cached,
        usage=meter.usage,
        notes=tuple(_notes(judge, optimizer, meter)),
    )


def _run(judge: Judge, optimizer: AlignmentOptimizer, traces: list[Trace], meter: Meter) -> Judge:
    """Return what the optimizer proposes, with models, endpoint and options of the judge.

    In between, the judge that it is given, and the optimizer itself, use metered names.
    """
    name = meter.model("judge", str(judge.model))
    metered = judge if name == judge.model else reached_elsewhere(judge, name)
    kinds = models_of_optimizer(optimizer)
    own = {attribute: getattr(optimizer, attribute) for attribute in kinds}
    try:
        for attribute, kind in kinds.items():
            setattr(optimizer, attribute, meter.model(kind, own[attribute]))
        # MLflow's dspy optimizers rebuild the judge from name, instructions, model and type alone.
        with candidates_made_by(optimizer, lambda text: with_instructions(metered, text)):
            proposed = metered.align(traces, optimizer)
    finally:
        for attribute, model in own.items():
            setattr(optimizer, attribute, model)
    if type(proposed) is InstructionsJudge:
        # It is shown, logged and registered; a gateway may put into it what it was sent.
        text = redact(proposed.instructions, judge_credentials(judge))
        return with_instructions(judge, text)
    return rename_models(proposed, meter.real, like=judge)


def _notes(judge: Judge, optimizer: AlignmentOptimizer, meter: Meter) -> Iterator[str]:
    """Yield which answers were lost and tolerated, and what could not be metered."""
    who = type(optimizer).__name__
    for kind in meter.faults:
        if lost := meter.lost(kind):
            wanted = lost + meter.answers[kind]
            yield f"{who}: {lost} of {wanted} {kind} answers were lost or could not be used."
    models = {judge.model, *(getattr(optimizer, name) for name in models_of_optimizer(optimizer))}
    for model in sorted(map(str, models)):
        if model.partition(":/")[0] in UNMETERED:
            yield f"{who}: requests to {model} were neither counted nor held to the budget."


def _with_consensus(pairs: Pairs) -> Iterator[Trace]:
    """Yield the traces with one human label: the consensus that the judge is tested on as well.

    MLflow's optimizers would choose one of several annotators' labels by a rule of their own.
    """
    rows = pairs.table.set_index("trace_id")
    for trace in fetch_traces(pairs.trace_ids) if len(pairs) else ():
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
        yield Trace(info, trace.data)
