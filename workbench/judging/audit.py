"""The audit of what was scored: rows drawn at random become traces, which people can label."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from mlflow.genai.judges import Judge

from workbench.judging.assessment import as_feedback, earlier_verdict
from workbench.judging.verdict_folder import VerdictFolder
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Usage
from workbench.store.assessments import log_assessments
from workbench.store.files import Reader
from workbench.store.importing import import_traces
from workbench.store.traces import fetch_traces

# Tag of an imported trace: the probability with which its row was drawn from the table.
PROBABILITY_TAG: Final = "workbench.selection_probability"


def draw(rows: Sequence[int], sample: float, seed: int) -> tuple[list[int], float]:
    """Draw a share or a number of rows by the seed; return them and the probability of each.

    A larger sample by the same seed holds the smaller one.
    """
    places = np.random.default_rng(seed).random(max(rows, default=-1) + 1)[list(rows)]
    number = int((places < sample).sum()) if sample < 1 else int(sample)
    drawn = sorted(rows[k] for k in np.argsort(places)[:number])
    return drawn, sample if sample < 1 else min(1.0, sample / max(len(rows), 1))


def import_sample(
    judge: Judge,
    read: Reader,
    roles: Mapping[str, Any],
    folder: VerdictFolder,
    sample: float,
    seed: int,
) -> None:
    """Import randomly drawn rows as traces, and log their verdicts, each once.

    ``read`` gives the table in partitions of a size, and ``roles`` are inputs, outputs and
    expectations as `import_traces` takes them.
    """
    known = folder.read(columns=["row", "error", "calls"]).to_pandas()
    askable = known["row"][known["error"].isna() | (known["calls"] > 0)]
    drawn, probability = draw(askable.tolist(), sample, seed)
    if not drawn:
        return
    wanted, every = set(drawn), enumerate(itertools.chain.from_iterable(read(1000)))
    table = pd.DataFrame([record for row, record in every if row in wanted], dtype=object)
    imported = import_traces(
        table.assign(**{PROBABILITY_TAG: str(probability)}),
        **roles,
        tags=PROBABILITY_TAG,
        progress=False,
    )
    trace_of = dict(zip(drawn, imported.trace_ids, strict=True))
    traces = {trace.info.trace_id: trace for trace in fetch_traces(imported, spans=False)}
    new = []
    for row in folder.read(ds.field("row").isin(drawn)).to_pylist():
        trace = traces[trace_of[row["row"]]]
        used = Usage(row["calls"], row["input_tokens"], row["output_tokens"], row["cost"])
        abstained = row["verdict"] is None and row["error"] is None
        value = "N/A" if abstained else row["verdict"]
        before = earlier_verdict(trace, judge.name, row["fingerprint"])
        # A row that was asked again may have a verdict in place of an error.
        if before is None or (before.error is not None and before.error != row["error"]):
            said = value, row["rationale"], row["error"], row["fingerprint"]
            verdict = Verdict(trace.info.trace_id, *said, usage=used)
            new.append(as_feedback(verdict, judge, trace.info))
    log_assessments(new, progress=False)
    now = pd.DataFrame(list(trace_of.items()), columns=["row", "trace_id"])
    folder.write_sample(now.assign(probability=probability))
