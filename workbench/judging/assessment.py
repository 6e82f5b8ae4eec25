"""Let judges rate traces in the store, and log the verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from mlflow.entities import AssessmentSource, Feedback, Trace, TraceInfo
from mlflow.entities.assessment_error import AssessmentError
from mlflow.genai.judges import Judge
from mlflow.genai.scorers import Scorer
from mlflow.tracing.constant import AssessmentMetadataKey

from workbench.errors import ArgumentError, check_whole
from workbench.formatting import counted, html_result, with_content
from workbench.judging.judge import fingerprints_of
from workbench.judging.requests import Asker, check_budget, judge_many, say_where
from workbench.judging.verdicts import (
    FINGERPRINT_KEY,
    RECORDED_KEY,
    Verdict,
    recorded_verdicts,
)
from workbench.models import recording
from workbench.models.budget import UNPAID, Budget
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.store.assessments import AssessmentWriter, Logged, log_feedback_table, verdict_id
from workbench.store.database import check_not_deleted
from workbench.store.files import read_table
from workbench.store.tables import Names
from workbench.store.traces import Example, as_example, fetch_traces, previews


@dataclass(frozen=True)
class Assessed:
    """What `assess` did.

    Attributes
    ----------
    table
        One row a trace, in the order of the traces: ``trace_id``, ``value``, ``rationale``,
        ``error`` (None where the judge answered), ``cached`` (True where nothing was paid).
    calls
        Model calls made in this run, failed ones included.
    cost, input_tokens, output_tokens
        US dollars and tokens paid in this run; None where price or count are not known.
    fingerprint
        Of the judge version that gave the verdicts.
    samples
        One row a trace and sample, with a column ``sample`` from 0, which is the verdict.
    """

    name: str
    table: pd.DataFrame
    calls: int
    cost: float | None
    input_tokens: int | None
    output_tokens: int | None
    fingerprint: str
    seconds: float
    previews: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    samples: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    @property
    def failures(self) -> pd.DataFrame:
        """The traces on which the judge gave no usable verdict: ``trace_id``, ``error``."""
        failed = self.table[self.table["error"].notna()]
        return failed[["trace_id", "error"]].reset_index(drop=True)

    def __repr__(self) -> str:
        money = "" if self.cost is None else f", ${self.cost:.4f}"
        return (
            f"<Assessed {self.name!r}: {counted(len(self.table), 'trace')}, "
            f"{counted(self.calls, 'call')}, {counted(len(self.failures), 'failure')}, "
            f"{self.seconds:.1f} s{money}>"
        )

    def _repr_html_(self) -> str:
        tables = [self.table[["trace_id", "value", "rationale"]], self.failures]
        return html_result(self, *(with_content(one.head(10), self.previews) for one in tables))


def assess(
    judge: Judge,
    traces: Any = None,
    *,
    concurrency: int = 64,
    cache: bool = True,
    log: bool = True,
    budget: Budget | int | None = None,
    samples: int = 1,
    progress: bool = True,
) -> Assessed:
    """Let the judge rate traces and log its verdicts to MLflow.

    What this version of the judge has rated is not judged again, so an interrupted or partly
    failed run is completed by running it again. Failed calls are logged as feedback with an error,
    listed in ``.failures``, and never count as a verdict.

    Parameters
    ----------
    judge
        Any MLflow judge of single traces.
    traces
        None (the active experiment), traces, trace ids, or an MLflow filter string.
    concurrency
        Calls under way at the same time, at most. Rate limits lower it for as long as needed.
    cache
        Take answers to equal questions from the disk cache, and put new ones there.
    log
        Log the verdicts to the traces, each with the judge's fingerprint.
    budget
        Model calls at most, or a `workbench.Budget`, which `align` can share; never exceeded.
        Where it ends before all is judged, what was judged is logged. The cache is free.
    samples
        Times that each trace is judged, at least 1 (see `self_agreement`). The first answer is the
        verdict and logged; the others are in ``.samples`` and in the cache.

    Raises
    ------
    ArgumentError
        For fewer samples than 1, and a judge without a name or of whole conversations.
    UnreachableModelError, CredentialError, ModelError
        When the model cannot answer at all. What was judged before is kept.
    BudgetError, ReplayError
        When the budget is too small, or the file that is replayed lacks an answer.
    """
    started = time.monotonic()
    check_whole("samples", samples)
    check_single(judge)
    limit, known_as = Budget.of(budget), fingerprints_of(judge)
    check_budget(judge, limit)
    fetched = fetch_traces(traces, spans=False)
    for experiment in {trace.info.experiment_id for trace in fetched} if log else ():
        check_not_deleted(experiment)
    infos = {trace.info.trace_id: trace.info for trace in fetched}
    earlier = {t.info.trace_id: earlier_verdict(t, judge.name, *known_as) for t in fetched}
    known = {i: v for i, v in earlier.items() if v and v.error is None}
    asked = [(i, sample) for sample in range(samples) for i in earlier if sample or i not in known]
    recorder = recording.recorder()
    items = _items(traces, dict(asked) if recorder is None else earlier)
    if recorder is not None:
        _record(recorder, Asker(judge), known, items)
    verdicts: dict[tuple[str, int], Verdict] = {(i, 0): one for i, one in known.items()}
    # Whatever ends the run, what the judge has answered until then is written.
    with ExitStack() as stack:
        answers = stack.enter_context(AnswerCache()) if cache else None
        writer = stack.enter_context(AssessmentWriter()) if log else None
        shared: dict[str, Any] = {"cache": answers, "budget": limit, "concurrency": concurrency}
        runner = stack.enter_context(Runner(answered=len(known), **shared))

        def keep(verdict: Verdict) -> None:
            verdicts[verdict.trace_id, verdict.sample] = verdict
            before = earlier[verdict.trace_id]
            is_new = before is None or before.error not in (None, verdict.error)
            if writer is not None and is_new and verdict.sample == 0:
                writer.put(as_feedback(verdict, judge, infos[verdict.trace_id]))

        shown = f"judging with {judge.name}" if progress else None
        say_where(judge, wanted=progress and bool(asked))
        questions = [(judge, items[i], sample) for i, sample in asked]
        judge_many(questions, runner, on_verdict=keep, progress=shown)
    rows = [verdicts[i, sample] for sample in range(samples) for i in earlier]
    table, paid = _table(rows), sum((verdict.paid for verdict in rows), UNPAID)
    return Assessed(
        name=judge.name,
        table=table.head(len(earlier)).drop(columns="sample"),
        calls=paid.requests,
        cost=paid.cost,
        input_tokens=paid.read,
        output_tokens=paid.written,
        fingerprint=known_as[0],
        seconds=time.monotonic() - started,
        previews=previews(fetched),
        samples=table,
    )


def check_single(judge: Judge) -> None:
    """Raise `ArgumentError` unless it is a judge that has a name and rates single items."""
    if not isinstance(judge, Scorer):
        raise ArgumentError(
            f"{judge!r:.60} ({type(judge).__name__}) is no judge. Make one with "
            "workbench.make_judge, or load a registered one with workbench.load_judge(name)."
        )
    if not judge.name:
        raise ArgumentError("The judge has no name. Make it with workbench.make_judge(name, ...).")
    if getattr(judge, "is_session_level_scorer", False):
        raise ArgumentError(
            f"Judge {judge.name!r} rates whole conversations; the workbench rates single traces."
        )


def log_verdicts(
    table: Any,
    *,
    name: str,
    source: str,
    value: str,
    rationale: str | None = None,
    values: Names | Mapping[str, Any] = None,
    encoding: str | None = None,
    progress: bool = True,
) -> Logged:
    """Log recorded verdicts of a judge that was run elsewhere, as `log_labels` does labels.

    Parameters
    ----------
    table
        A DataFrame or a file with a ``trace_id`` column; a row without a value is skipped.
    name
        The name under which people label the same traces.
    source
        Who judged, for instance the model's name.
    value, rationale, values, encoding
        As in `log_labels`.
    """
    return log_feedback_table(
        read_table(table, encoding),
        AssessmentSource("LLM_JUDGE", source),
        name=name,
        value=value,
        rationale=rationale,
        values=values,
        metadata={RECORDED_KEY: "true"},
        progress=progress,
    )


def _items(traces: Any, trace_ids: Iterable[str]) -> dict[str, Example]:
    """What is judged, by trace id: given traces as they are, others with the spans in the store."""
    given = traces if isinstance(traces, (list, tuple)) else [traces]
    whole = {one.info.trace_id: one for one in given if isinstance(one, Trace)}
    found = fetch_traces([whole.get(i, i) for i in trace_ids])
    return {trace.info.trace_id: as_example(trace) for trace in found}


def _record(
    recorder: recording.Recorder,
    asker: Asker,
    known: Mapping[str, Verdict],
    items: Mapping[str, Example],
) -> None:
    """Record what the store has, which another one will not have."""
    for trace_id, verdict in known.items():
        request = asker.request(items[trace_id])
        answer = {"value": verdict.value, "rationale": verdict.rationale}
        recorder.put(recording.Entry(key=request.key or "", about=request.asker, answer=answer))
    recorder.save()


# -- verdicts and the store -----------------------------------------------------------------


def as_feedback(verdict: Verdict, judge: Judge, info: TraceInfo) -> Feedback:
    """The verdict as MLflow keeps it: feedback of an LLM judge, marked with the fingerprint."""
    paid = verdict.paid
    figures = {
        FINGERPRINT_KEY: verdict.fingerprint,
        "guideline": getattr(judge, "instructions", None),  # MLflow's page shows it
        AssessmentMetadataKey.JUDGE_COST: paid.cost,
        AssessmentMetadataKey.JUDGE_INPUT_TOKENS: paid.read,
        AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS: paid.written,
    }
    failed = verdict.error is not None
    feedback = Feedback(
        name=judge.name,
        value=verdict.value,
        rationale=verdict.rationale or None,
        error=AssessmentError("JUDGE_FAILED", verdict.error) if failed else None,
        trace_id=verdict.trace_id,
        source=AssessmentSource(
            source_type="LLM_JUDGE", source_id=getattr(judge, "model", None) or type(judge).__name__
        ),
        metadata={key: str(value) for key, value in figures.items() if value not in (None, "")},
    )
    # Of two processes that assess together, one writes the verdict.
    feedback.assessment_id = verdict_id(info, judge.name, verdict.fingerprint, failed=failed)
    return feedback


def earlier_verdict(trace: Trace, name: str, *fingerprints: str) -> Verdict | None:
    """This version's latest verdict on the trace, a usable one before a failed one."""
    own = [one for one in recorded_verdicts(trace, name) if one.fingerprint in fingerprints]
    return next((one for one in reversed(own) if one.usable), own[-1] if own else None)


def _table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    columns = ["trace_id", "sample", "value", "rationale", "error", "cached"]
    rows = [[getattr(verdict, column) for column in columns] for verdict in verdicts]
    return pd.DataFrame(rows, columns=columns, dtype=object).astype({"sample": int, "cached": bool})
