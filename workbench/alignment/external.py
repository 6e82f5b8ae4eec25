"""Optimizers that are not the workbench's own: what they propose, and what it cost to find."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.alignment.metering import UNMETERED, Count, Meter, metering
from workbench.alignment.runs import AlignmentData, Learned
from workbench.compat import (
    candidates_made_by,
    embedder_of,
    embedding_dimensions,
    models_of_optimizer,
    reached_elsewhere,
    rename_models,
)
from workbench.credentials import redact, without_secret_params
from workbench.judging.judge import fingerprint, judge_credentials, with_instructions
from workbench.models import recording
from workbench.models.budget import Budget
from workbench.models.cache import question_key
from workbench.pairing.pairs import Pairs
from workbench.store.traces import fetch_traces, item_digest

MAX_FAILURE_SHARE: Final = 0.05
"""Share of lost answers above which an optimizer is stopped, unless given."""


def propose(
    data: AlignmentData,
    optimizer: AlignmentOptimizer,
    budget: Budget,
    max_failure_share: float | None = None,
    stop: threading.Event | None = None,
) -> Learned:
    """Return what the optimizer proposes, from a recording where one is replayed.

    Raises as `Meter.raise_for_losses` does, and a `ReplayError` where a recording lacks it.
    """
    who, judge, split = type(optimizer).__name__, data.judge, data.split
    # Before the run, in which some optimizers change.
    key = "" if recording.current() is None else _key(data, optimizer)
    if (player := recording.replayed()) is not None:
        return _replayed(player, key, judge, who, budget)
    budget.check(str(judge.model))
    with metering(
        judge,
        budget,
        stop=stop,
        scale=split.train.scale,
        max_failure_share=MAX_FAILURE_SHARE if max_failure_share is None else max_failure_share,
        dimensions=embedding_dimensions(optimizer),
    ) as meter:
        traces = [*_with_consensus(split.train), *_with_consensus(split.dev)]
        try:
            proposed = _run(judge, optimizer, traces, meter)
        finally:
            meter.raise_for_losses(who)
    learned = Learned(
        proposed,
        calls=meter.counts["judge"].requests,
        reflection_calls=meter.counts["reflection"].requests,
        embedding_calls=meter.counts["embedding"].requests,
        known=sum(count.cached for count in meter.counts.values()),
        usage=meter.usage,
        notes=tuple(_notes(judge, optimizer, meter)),
    )
    if (recorder := recording.recorder()) is not None and type(proposed) is InstructionsJudge:
        answer = {name: getattr(learned, name) for name in _RECORDED}
        answer["instructions"] = proposed.instructions
        about = f"optimizer {who} ({judge.model})"
        recorder.put(recording.Entry(key=key, about=about, answer=answer, paid=meter.usage))
        recorder.save()
    return learned


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
    for kind, count in meter.counts.items():
        if count.lost:
            wanted = count.lost + count.answers
            yield f"{who}: {count.lost} of {wanted} {kind} answers were lost or could not be used."
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


def requests_of_a_verdict(optimizer: AlignmentOptimizer) -> int:
    """Return how many requests one verdict takes of a judge that the optimizer makes.

    MemAlign's judges look up examples by an embedding before they answer.
    """
    return 2 if "embedding" in models_of_optimizer(optimizer).values() else 1


@contextmanager
def metered_embeddings(judge: Judge, budget: Budget | None) -> Iterator[Count]:
    """Count the embeddings that a judge with a memory (MemAlign's) asks for in this context."""
    embedder = embedder_of(judge)
    if embedder is None:
        yield Count()
        return
    own, dimensions = embedder.model, embedder.default_kwargs.get("dimensions")
    with metering(judge, budget, dimensions=dimensions) as meter:
        metered = meter.model("embedding", own.replace("/", ":/", 1))
        embedder.model = metered.replace(":/", "/", 1)
        try:
            yield meter.counts["embedding"]
        finally:
            embedder.model = own


# -- recordings -------------------------------------------------------------------------------

_RECORDED: Final = (
    "calls", "reflection_calls", "embedding_calls", "known", "notes",
)  # fmt: skip


def _replayed(
    player: recording.Player, key: str, judge: Judge, who: str, budget: Budget
) -> Learned:
    entry = player.get(key)
    if entry is None or entry.answer is None:
        raise player.missing(f"What {who} proposes (only judges made of instructions are recorded)")
    budget.charge(entry.paid)
    found = {name: entry.answer[name] for name in _RECORDED}
    proposed = with_instructions(judge, entry.answer["instructions"])
    return Learned(proposed, usage=entry.paid, **found)


def _key(data: AlignmentData, optimizer: AlignmentOptimizer) -> str:
    """Return the key of what the optimizer proposes: the same in every store."""

    def content(part: Pairs) -> list[Any]:
        rows = part.table[["trace_id", "human", "human_rationale"]].itertuples(index=False)
        return sorted([[item_digest(data.by_id[i]), *label] for i, *label in rows], key=str)

    settings = json.dumps(vars(optimizer), default=lambda one: f"<{type(one).__qualname__}>")
    return question_key(
        "optimizer",
        type(optimizer).__name__,
        without_secret_params(json.loads(settings)),
        fingerprint(data.judge, place=False),
        [content(data.split.train), content(data.split.dev)],
    )
