"""Optimizers that are not the workbench's own: what they propose, and what it cost to find.

Their requests are counted, cached and held to the budget where they go to the judge's model, or to
models that MLflow's optimizers name; see `workbench.alignment.metering`.
"""

from __future__ import annotations

import copy
import json
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.alignment.metering import UNMETERED, Count, Meter
from workbench.alignment.result import Learned
from workbench.alignment.runs import CANCELLED
from workbench.compat import (
    candidates_made_by,
    embedder_of,
    embedding_dimensions,
    models_of_optimizer,
    reached_elsewhere,
    rename_models,
)
from workbench.credentials import redact, without_secret_params
from workbench.errors import CancelledError
from workbench.judging.judge import fingerprint, judge_credentials, with_instructions
from workbench.models import recording
from workbench.models.budget import Budget, Usage
from workbench.models.cache import AnswerCache, question_key
from workbench.pairing.pairs import Pairs, Split
from workbench.store.traces import Example, fetch_traces, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def propose(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    budget: Budget,
    *,
    max_failure_share: float = 0.05,
    stop: threading.Event | None = None,
) -> Learned:
    """Return what the optimizer proposes, from a recording where one is replayed.

    Raises
    ------
    BudgetError
        When the budget was exhausted, whatever the optimizer made of that.
    CancelledError
        When ``stop`` was set.
    ModelError
        When more than ``max_failure_share`` of its answers of one kind were lost.
    ReplayError
        While a recording is replayed that does not hold the proposal.
    """
    who = type(optimizer).__name__
    player, recorder = recording.replayed(), recording.recorder()
    if player is None and recorder is None:
        return _learn(judge, optimizer, split, budget, max_failure_share, stop)
    content = [_content(part, by_id) for part in (split.train, split.dev)]
    settings = without_secret_params(_plain(vars(optimizer)))
    key = question_key("optimizer", who, settings, fingerprint(judge, place=False), content)
    if player is not None:
        return _replayed(player, key, judge, who, budget)
    learned = _learn(judge, optimizer, split, budget, max_failure_share, stop)
    if recorder is not None and type(learned.judge) is InstructionsJudge:
        counts = {name: getattr(learned, name) for name in _COUNTS}
        calls = learned.calls + learned.reflection_calls + learned.embedding_calls
        answer = {"instructions": learned.judge.instructions, "notes": learned.notes, **counts}
        paid = Usage(calls, read=learned.tokens, cost=learned.cost)
        about = f"optimizer {who} ({judge.model})"
        recorder.put(recording.Entry(key=key, about=about, answer=answer, paid=paid))
        recorder.save()
    elif recorder is not None:
        warnings.warn(
            f"{who} makes judges that hold more than instructions, which {recorder.path} cannot "
            "hold: what it proposes cannot be replayed.",
            stacklevel=4,
        )
    return learned


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
    with AnswerCache() as cache:
        meter = Meter(judge, cache=cache, budget=budget, dimensions=dimensions)
        name = meter.model("embedding", own.replace("/", ":/", 1))
        with meter.serving():
            embedder.model = name.replace(":/", "/", 1)
            try:
                yield meter.counts["embedding"]
            finally:
                embedder.model = own


def _learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    budget: Budget,
    max_failure_share: float,
    stop: threading.Event | None,
) -> Learned:
    who = type(optimizer).__name__
    traces = [*_with_consensus(split.train), *_with_consensus(split.dev)]
    budget.check(str(judge.model))
    with AnswerCache() as cache:
        meter = Meter(
            judge,
            scale=split.train.scale,
            cache=cache,
            budget=budget,
            stop=stop,
            max_failure_share=max_failure_share,
            dimensions=embedding_dimensions(optimizer),
        )
        error: Exception | None = None
        with meter.serving(), _metered(optimizer, judge, meter) as metered_judge:
            try:
                proposed = metered_judge.align(traces, optimizer)
            except Exception as raised:
                error = raised
        if stop is not None and stop.is_set():
            raise CancelledError(CANCELLED)
        meter.raise_for_failures(who, error)
        if error is not None:
            raise error
    return Learned(
        _restored(proposed, judge, meter),
        calls=meter.counts["judge"].requests,
        reflection_calls=meter.counts["reflection"].requests,
        embedding_calls=meter.counts["embedding"].requests,
        known=sum(count.cached for count in meter.counts.values()),
        tokens=meter.tokens,
        cost=meter.cost,
        notes=(*meter.notes(who), *_unmetered(who, judge, optimizer)),
    )


@contextmanager
def _metered(optimizer: AlignmentOptimizer, judge: Judge, meter: Meter) -> Iterator[Judge]:
    """Return a copy of the judge whose requests are metered, and so let the optimizer's own be."""
    name = meter.model("judge", str(judge.model))
    metered_judge = judge if name == judge.model else reached_elsewhere(judge, name)
    own = models_of_optimizer(optimizer)
    with ExitStack() as undo:
        for attribute, kind in own.items():
            model = getattr(optimizer, attribute)
            undo.callback(setattr, optimizer, attribute, model)
            setattr(optimizer, attribute, meter.model(kind, model))
        # MLflow's dspy optimizers rebuild the judge from name, instructions, model and type alone.
        undo.enter_context(
            candidates_made_by(optimizer, lambda text: with_instructions(metered_judge, text))
        )
        yield metered_judge


def _restored(proposed: Judge, judge: Judge, meter: Meter) -> Judge:
    """Return the proposed judge with models, endpoint and all options of the original."""
    if type(proposed) is InstructionsJudge:
        # It is shown, logged and registered; a gateway may put into it what it was sent.
        text = redact(proposed.instructions, judge_credentials(judge))
        return with_instructions(judge, text)
    return rename_models(proposed, meter.real, like=judge)


def _unmetered(who: str, judge: Judge, optimizer: AlignmentOptimizer) -> Iterator[str]:
    names = [str(judge.model), *(getattr(optimizer, n) for n in models_of_optimizer(optimizer))]
    for model in sorted(set(names)):
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


# -- recordings -------------------------------------------------------------------------------

_COUNTS: Final = ("calls", "reflection_calls", "embedding_calls", "known", "tokens", "cost")


def _replayed(
    player: recording.Player, key: str, judge: Judge, who: str, budget: Budget
) -> Learned:
    entry = player.get(key)
    if entry is None or entry.answer is None:
        raise player.missing(f"What {who} proposes (only judges made of instructions are recorded)")
    budget.charge(entry.paid)
    return Learned(
        with_instructions(judge, entry.answer["instructions"]),
        **{name: entry.answer[name] for name in _COUNTS},
        notes=tuple(entry.answer["notes"]),
    )


def _content(part: Pairs, by_id: Mapping[str, Example]) -> list[Any]:
    """Return items and labels as they are the same in every store."""
    rows = part.table.to_dict("records")
    items = [(item_digest(by_id[r["trace_id"]]), r["human"], r["human_rationale"]) for r in rows]
    return sorted(items, key=str)


def _plain(value: Any) -> Any:
    """Return settings as JSON: what is no plain data by its type."""
    return json.loads(json.dumps(value, default=lambda one: f"<{type(one).__qualname__}>"))
