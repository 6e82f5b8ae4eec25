"""SIMBA, stochastic introspective mini-batch ascent, for judges that people disagree with.

What it does
------------
Given a judge with instructions ``I``, labelled items split into train ``T`` and dev ``D``, and a
rating scale with distance ``d`` in [0, 1], it looks for rules ``R`` and worked examples ``E`` so
that the judge with ``I + R + E`` agrees better with people. The unit of learning is the pair
(judge's verdict and rationale, human label and rationale). ::

    c0 = (I, no rules, no examples);  pool = [c0];  best = c0
    repeat at most S times:
        c     <- the best candidate, or now and then another one, drawn by softmax of its score
        B     <- minibatch of T, stratified by label; V = verdicts of c on B       (<= |B| calls)
        X, G  <- the items of B on which V and label differ, and agree
        X_k   <- X by direction: rated too high, too low (by label where values have no order)
        R_k   <- reflect(c, X_k, G) for each k, and for X as a whole             (K reflections)
        N     <- c + R_k for each k;  c + all R_k;  c + examples from X;  c - a rule;  best + R(c)
        score each of N on D, together, dropping those that cannot win       (<= |N| |D| calls)
        best  <- argmax of score;  stop when it has not risen for P rounds
    return the judge with the instructions of best

The score of a candidate is the mean credit on D less a small price for each word that it adds;
the credit of a verdict is 1 if it equals the label, else (1 - d) / 2 on ordered scales (1 - d on
continuous ones), else 0.
Failed calls and abstentions are left out of the mean and counted apart.

Cost: at most ``|T| + |D| + S (|B| + |N| |D|)`` judge calls and ``S K`` reflections; verdicts of
the original judge that are known already, and answers in the cache, cost nothing. `SIMBA` with
``budget=`` stops before the first call that would exceed it.

How it differs from dspy's SIMBA (``dspy.SIMBA``, and MLflow's optimizer that wraps it): dspy
samples several trajectories an item, learns from the spread between them and skips items on
which all samples agree. A judge that is always wrong in the same way has no spread, so it
learns nothing from just what matters most here. dspy also reflects on one item at a time
without its human rationale and picks the winner on the data that it learned from.

The loop itself, a pure function of its items, its seed and two callables, is in
`workbench.ascent`; here it is joined with judges, models, the cache and MLflow.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mlflow.entities import Trace
from mlflow.genai.judges.base import AlignmentOptimizer, Judge

from workbench.ascent import Optimised, Settings, optimise
from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.calls import run_many
from workbench.candidate import Candidate
from workbench.consensus import labels_by_trace, read_label
from workbench.errors import ArgumentError, NoLabelsError, TooFewPairsError
from workbench.judge import Verdict, fingerprint, options, scale_of, with_instructions
from workbench.progress import bar
from workbench.reflection import Item, Reflection, Reflector, Request
from workbench.scale import Scale
from workbench.splits import default_groups, stratified
from workbench.traces import as_example
from workbench.verdicts import read_verdict, recorded_verdicts

MINIMUM_LABELS = 10
"""Fewer labelled traces than this cannot be learned from (MLflow asks for as many)."""


class SIMBA(AlignmentOptimizer):
    """Aligns a judge with human labels; see the module's docstring for the algorithm.

    It is an MLflow alignment optimizer, so MLflow's own call works as well::

        aligned = judge.align(traces, optimizer=workbench.SIMBA())

    but `workbench.align` also holds out a test set and says whether the judge got better.

    Parameters
    ----------
    model
        URI of the model that reflects; the judge's own, with its base URL, when None.
    max_steps, batch_size, patience
        Steps at most, train items looked at in a step, steps without a better dev score
        before it stops.
    max_examples
        Worked examples in the instructions at most; 0 for none.
    max_dev
        Dev items that candidates are scored on at most.
    budget
        Model calls at most, of judge and reflection together, retries included. None: no limit
        but ``max_steps``.
    seed
        Any int; 0 is a seed like any other.
    concurrency
        Calls under way at the same time.
    cache
        Whether answers are taken from and kept in the disk cache, which is also what lets an
        interrupted alignment resume.
    dev_size
        Share of the labels that `align` (MLflow's call) selects on, in (0, 1).
    max_failure_share
        Share of failed judge calls, in [0, 1], above which it gives up.
    class_weight
        ``"balanced"`` lets every label count the same in the score, so that a rare one is not
        ignored; None counts every item the same.
    progress
        Show a progress bar.

    Attributes
    ----------
    last
        `Optimised`, what the last run found; None before.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        max_steps: int = Settings.max_steps,
        batch_size: int = Settings.batch_size,
        patience: int = Settings.patience,
        max_examples: int = Settings.max_examples,
        max_dev: int = Settings.max_dev,
        budget: int | None = None,
        seed: int = 0,
        concurrency: int = 64,
        cache: bool = True,
        dev_size: float = 0.3,
        max_failure_share: float = Settings.max_failure_share,
        class_weight: Literal["balanced"] | None = None,
        progress: bool = True,
    ) -> None:
        if not 0 < dev_size < 1:
            raise ArgumentError(f"dev_size={dev_size} must lie in (0, 1).")
        self.model, self.budget, self.seed = model, budget, seed
        self.concurrency, self.cache, self.dev_size = concurrency, cache, dev_size
        self.progress = progress
        self.settings = Settings(
            max_steps=max_steps,
            batch_size=batch_size,
            patience=patience,
            max_examples=max_examples,
            max_dev=max_dev,
            max_failure_share=max_failure_share,
            class_weight=class_weight,
        )
        self.last: Optimised | None = None

    def align(self, judge: Judge, traces: list[Trace]) -> Judge:
        """MLflow's entry: learn from the human labels on the traces and return a new judge.

        Labels are those of people under exactly the judge's name, by majority. All of them are
        used to learn and select; to know whether the judge got better, use `workbench.align`.

        Raises
        ------
        NoLabelsError, TooFewPairsError
            Without labels, or with fewer than ten labelled traces.
        ArgumentError
            When the judge is not made from instructions.
        """
        items, scale = labelled_items(judge, traces)
        parts = stratified(
            {item.trace_id: str(item.label) for item in items},
            default_groups([item.example for item in items]),
            {"dev": self.dev_size, "train": 1 - self.dev_size},
            self.seed,
        )
        by_id = {item.trace_id: item for item in items}
        return self.learn(
            judge,
            [by_id[i] for i in parts["train"]],
            [by_id[i] for i in parts["dev"]],
            scale=scale,
            known=known_verdicts(judge, traces, scale),
        )

    def learn(
        self,
        judge: Judge,
        train: Sequence[Item],
        dev: Sequence[Item],
        *,
        scale: Scale,
        known: Sequence[Verdict] = (),
        budget: Budget | None = None,
    ) -> Judge:
        """Align on given train and dev items.

        ``known`` are verdicts of the original judge, which are not paid for again; ``budget``
        takes the place of the optimizer's own.
        """
        base = options(judge)["instructions"]
        original = Candidate(base)
        budget = budget or Budget(self.budget)
        answers = AnswerCache() if self.cache else None
        reflector = Reflector(judge, scale, model=self.model, cache=answers)
        judges: dict[str, Judge] = {original.key: judge}
        given = {verdict.trace_id: verdict for verdict in known if verdict.error is None}

        def ask(wanted: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
            for candidate, _ in wanted:
                if candidate.key not in judges:
                    judges[candidate.key] = with_instructions(judge, candidate.text)
            found: list[Verdict | None] = [
                replace(given[item.trace_id], calls=0)
                if candidate.key == original.key and item.trace_id in given
                else None
                for candidate, item in wanted
            ]
            open_ = [index for index, verdict in enumerate(found) if verdict is None]
            fresh = run_many(
                [(judges[wanted[i][0].key], wanted[i][1].example, 0) for i in open_],
                concurrency=self.concurrency,
                cache=answers,
                scale=scale,
                budget=budget,
            )
            for index, verdict in zip(open_, fresh, strict=True):
                found[index] = verdict
            return [verdict for verdict in found if verdict is not None]

        def reflect(requests: Sequence[Request], step: int) -> list[Reflection]:
            return reflector.propose([(request, step) for request in requests], budget=budget)

        started = time.monotonic()
        shown = bar(
            total=self.settings.max_steps, desc="aligning with SIMBA", disable=not self.progress
        )

        def on_step(state: dict[str, Any]) -> None:
            limit = "" if budget.limit is None else f" of {budget.limit}"
            shown.set_postfix_str(
                f"dev {state['best_score']:.3f}, {state['calls'] + state['reflections']}{limit} "
                f"calls, {state['failures']} failed",
                refresh=False,
            )
            shown.update()

        try:
            with shown:
                self.last = optimise(
                    original,
                    train,
                    dev,
                    scale=scale,
                    fields=judge_fields(judge),
                    ask=ask,
                    reflect=reflect,
                    seed=self.seed,
                    settings=self.settings,
                    on_step=on_step,
                )
        finally:
            if answers is not None:
                answers.close()
        self.seconds = time.monotonic() - started
        # A batch that the budget cut short was paid for all the same.
        self.last.judge_calls = budget.spent - self.last.reflection_calls
        return judges[self.last.best.key]


def judge_fields(judge: Judge) -> tuple[str, ...]:
    """Which of inputs, outputs and expectations the judge's instructions show it."""
    shown = getattr(judge, "template_variables", {"inputs", "outputs"})
    fields = tuple(f for f in ("inputs", "outputs", "expectations") if f in shown)
    # A judge of whole traces is reflected on by what the trace took in and gave out.
    return fields or ("inputs", "outputs")


def known_verdicts(judge: Judge, traces: Sequence[Trace], scale: Scale) -> list[Verdict]:
    """Verdicts of this very judge that lie on the traces already, so that none is paid again."""
    mark = fingerprint(judge)
    found = []
    for trace in traces:
        own = [v for v in recorded_verdicts(trace, judge.name) if v.fingerprint == mark]
        verdict, _ = read_verdict(own, own, scale)
        if verdict is not None:
            found.append(Verdict(trace.info.trace_id, *verdict, fingerprint=mark))
    return found


def labelled_items(
    judge: Judge, traces: Sequence[Trace], *, least: int = MINIMUM_LABELS
) -> tuple[list[Item], Scale]:
    """The traces that people labelled under the judge's name, and the rating scale."""
    by_trace = labels_by_trace(traces, judge.name)
    if not by_trace:
        raise NoLabelsError(
            f"None of {len(traces)} traces has a human label under {judge.name!r}. Log labels with "
            f"workbench.log_labels(table, name={judge.name!r}, ...) or mlflow.log_feedback."
        )
    scale = scale_of(judge) or Scale.from_values(
        label.value for labels in by_trace.values() for label in labels
    )
    items = []
    left_out: Counter[str] = Counter()
    for example in (as_example(t) for t in traces if t.info.trace_id in by_trace):
        label = read_label(by_trace[example.trace_id], scale, "majority", "drop")
        if label.fault is None:
            items.append(Item(example, label.value, label.rationale))
        else:
            left_out[label.fault] += 1
    if left_out:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in left_out.most_common())
        warnings.warn(f"{left_out.total()} labelled traces are not used ({reasons}).", stacklevel=3)
    if len(items) < least:
        raise TooFewPairsError(
            f"{len(items)} of {len(traces)} traces have a usable human label under "
            f"{judge.name!r}; at least {least} are needed, and 50 to 100 make a "
            "difference that can be trusted. Label more traces."
        )
    return items, scale.with_range(item.label for item in items)
