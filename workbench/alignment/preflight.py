"""The checks before an alignment: what it will do, and what it takes at most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer, Judge

from workbench.alignment.external import endpoint_of
from workbench.alignment.runs import AlignmentData
from workbench.compat import endpoint, models_of_optimizer
from workbench.errors import ModelError
from workbench.formatting import counted
from workbench.judging.requests import judge_examples, reached_at
from workbench.judging.verdicts import Verdict
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.sample_size import smallest_improvement
from workbench.models.budget import ASSUMED_OUTPUT, Budget, cost
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs, Split
from workbench.simba.candidate import Case, Item
from workbench.simba.settings import Settings, forecast
from workbench.store.traces import item_digest

PROBE = -1  # number of the sample that only a probe asks for: no other answer stands in for it

Row = tuple[str, str, str]  # check, finding, advice


def probed(data: AlignmentData, budget: Budget | None = None) -> Verdict:
    """Return the judge's verdict on an item of train; raise `ModelError` where there is none."""
    # Chosen by content, so that it is the same item in every store.
    judge, train = data.judge, data.split.train
    example = min((data.by_id[i] for i in train.trace_ids), key=item_digest)
    with AnswerCache() as cache, Runner(cache=cache, budget=budget) as runner:
        verdict = judge_examples(judge, [example], runner, sample=PROBE, scale=train.scale)[0]
    if verdict.error is not None:
        raise ModelError(
            f"A first call of judge {judge.name!r} failed on trace {example.trace_id}: "
            f"{verdict.error}. Mend this before aligning; nothing was changed."
        )
    return verdict


def preflight(
    data: AlignmentData,
    probe: Verdict,
    annotators: AnnotatorAgreement | None,
    optimizer: AlignmentOptimizer,
    budget: Budget,
) -> pd.DataFrame:
    split, learning = data.split, "not known: the optimizer does not say"
    if _is_simba(optimizer):
        cases = [case for part in (split.train, split.dev) for case in labelled_cases(part, data)]
        given = len(split.dev), optimizer.settings, split.train.scale, optimizer.model, probe
        learning = forecast(data.judge, cases, *given).told(budget)
    rows = [
        *_of_pairs(data.pairs, annotators),
        *_of_split(split),
        ("judge answers", f"yes: {probe.value!r}", ""),
        *((role, reached, "") for role, reached in reached_models(data.judge, optimizer)),
        ("learning takes", learning, "" if budget.is_limited else "budget= sets a limit"),
        ("the test takes", counted(len(split.test), "call"), ""),
    ]
    return pd.DataFrame(rows, columns=["check", "finding", "advice"])


def _of_pairs(pairs: Pairs, annotators: AnnotatorAgreement | None) -> Iterator[Row]:
    few = "" if len(pairs) >= 50 else "50 to 100 are advised"
    yield "usable pairs", str(len(pairs)), few
    for reason, traces in pairs.reasons.itertuples(index=False):
        yield f"left out: {reason}", counted(traces, "trace"), ""

    counts = Counter(sorted(map(str, pairs.table["human"])))
    advice = ""
    if len(counts) == 1:
        advice = "only one value is labelled: there is nothing to tell apart"
    elif pairs.scale.kind == "binary" and min(counts.values()) / len(pairs) < 0.3:
        advice = "at least 30% of each side is advised"
    shown = (f"{value} {count / len(pairs):.0%}" for value, count in counts.most_common(6))
    yield "balance of labels", ", ".join(shown), advice

    if annotators is not None and len(annotators.annotators) > 1:
        found = f"alpha {annotators.alpha:.2f}, ceiling {annotators.ceiling:.2f}"
        low = "people hardly agree: settle the rubric first" if annotators.alpha < 0.4 else ""
        yield "annotators among themselves", found, low


def _of_split(split: Split) -> Iterator[Row]:
    """Yield what the held-out test can show at best; items that belong together are one."""
    sizes = f"train {len(split.train)}, dev {len(split.dev)}, test {len(split.test)}"
    yield "split", sizes, "too few held-out pairs to prove much" if len(split.test) < 30 else ""
    n, learn = len(set(split.test.clusters_of(split.test.trace_ids))), split.train.table
    those = counted(n, "independent item")
    least, wrong = smallest_improvement(n), float((learn["human"] != learn["judge"]).mean())
    if math.isnan(least):
        yield "improvement that test can show", f"none with {those}", "label more"
        return
    found = f"{least:.0%} of {those} or more, if none gets worse (80% power)"
    advice = "" if least <= wrong else f"the judge errs on {wrong:.0%} of train: label more traces"
    yield "improvement that test can show", found, advice


def _is_simba(optimizer: AlignmentOptimizer) -> bool:
    return isinstance(getattr(optimizer, "settings", None), Settings)


def reached_models(
    judge: Judge, optimizer: AlignmentOptimizer, reflection_base_url: str | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the role of each model, and where it is reached; one in this process has no address."""
    judge_model, (base_url, _, _) = str(judge.model), endpoint(judge)
    reached = {"judge model": (judge_model, base_url)}
    if _is_simba(optimizer):
        model = optimizer.model or judge_model
        url = optimizer.base_url or (base_url if model == judge_model else None)
        reached["reflection model"] = model, url
    for attribute, use in models_of_optimizer(optimizer).items():
        model = str(getattr(optimizer, attribute))
        reached[f"{use} model"] = model, endpoint_of(judge, use, model, reflection_base_url)[0]
    for role, (model, url) in reached.items():
        place = reached_at(model, url)
        yield role, f"{model} at {place}" if place else model


def labelled_cases(part: Pairs, data: AlignmentData) -> list[Case]:
    """Return the items to learn from with the original judge's verdicts."""
    cases = []
    for row in part.table.to_dict("records"):
        trace_id = row["trace_id"]
        # Labels that it learned from before weigh less, since people's standards drift.
        weight = 0.25 if trace_id in data.lineage.unchanged else 1.0
        item = Item(data.by_id[trace_id], row["human"], row["human_rationale"], weight)
        given = row["judge"], row["judge_rationale"]
        cases.append(Case(item, Verdict(trace_id, *given, fingerprint=part.fingerprint)))
    return cases


def to_keep(data: AlignmentData, probe: Verdict, optimizer: AlignmentOptimizer) -> dict[str, Any]:
    """Return what the held-out test may use, as `Budget.keeping` takes it.

    A tenth more than one call a pair, with instructions half as long again as those of the probe.
    """
    # MemAlign's judges also look up examples by an embedding.
    requests = 2 if "embedding" in models_of_optimizer(optimizer).values() else 1
    calls = math.ceil(1.1 * len(data.split.test)) * requests
    paid = probe.usage
    used, written = ((n or 0) // max(1, paid.requests) for n in (paid.read, paid.written))
    # The last request is reserved at the most that it can use, which is far more than it does.
    read, last, model = math.ceil(1.5 * used), 6 * used, str(data.judge.model)
    usd = calls * (cost(model, read, written) or 0.0) + (cost(model, last, ASSUMED_OUTPUT) or 0.0)
    return {"calls": calls, "tokens": calls * (read + written) + last + ASSUMED_OUTPUT, "usd": usd}
