"""SIMBA: align a judge with human labels by stochastic introspective mini-batch ascent.

SIMBA adds rules and worked examples to a judge's instructions, so that the judge agrees better with
people. It reads back what an earlier alignment has added, so an aligned judge can be aligned again.

Algorithm
---------
Candidates are scored on the *selection items*: dev, and train items as well if dev has fewer than
``max_dev``. Each step

1. judges a minibatch of train items and collects the best candidate's disagreements with the
   labels,
2. shows them to the reflection model with the rationales of judge and people, beside cases that
   are right. Up to seven *candidates* are made from its answers: new rules, the stronger half of
   them, the criteria that people name; after a step without improvement also a rewritten list,
   worked examples, and the rationale before the rating. For a judge that is right on less than
   80 %, a sentence on each rating is asked for as well, from three draws of items, and tried with
   the rationale first beside two examples of each rating,
3. races the candidates by successive halving in three rungs of 15 %, 30 % and the rest of the
   selection items. After a rung the worse half drops out, and those that cannot win any more. The
   winner becomes the best candidate if it scores higher by 0.75 standard errors.

At the end, and for a judge that was aligned before also at first, each rule is left out on up to
six items that it may matter for. Harmful and idle rules are dropped if that scores higher.

The score is the mean credit minus 0.01 for each 100 added words, on items that no candidate in
question shows as an example. A verdict earns 1 if it equals the label, else (1 - d) / 2 on ordered
scales, where d is the scale's distance, else 0. Failed calls do not count; abstaining, answers
that are not usable and requests that are refused, as for their length, earn 0 where the original
judge had an opinion. Train items may be selected on, so the score is no estimate of accuracy:
`workbench.align` tests the result on held-out items.

About 180 judge calls and 3 reflections are made for 50 labels, 500 and 5 for 200.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from mlflow.entities import Trace
from mlflow.genai.judges.base import AlignmentOptimizer, Judge

from workbench.compat import options
from workbench.errors import ArgumentError, NoLabelsError, TooFewPairsError, check_whole
from workbench.formatting import bar, say
from workbench.judging.judge import checked_url, with_instructions
from workbench.judging.requests import judge_many, say_where
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.consensus import read_label
from workbench.pairing.joining import labels_and_decisions
from workbench.pairing.pairs import default_groups, stratified
from workbench.scale import Scale
from workbench.simba.candidate import Candidate, Case, Item, Learned, judge_fields
from workbench.simba.reflector import Reflector
from workbench.simba.search import Search
from workbench.simba.settings import MINIMUM_LABELS, Settings, forecast
from workbench.store.schemas import known_scale
from workbench.store.traces import as_example, fetch_traces, item_digest


class SIMBA(AlignmentOptimizer):
    """Aligns a judge with human labels; see the module's docstring for the algorithm.

    It is an MLflow alignment optimizer, so MLflow's own call works as well::

        aligned = judge.align(traces, optimizer=workbench.SIMBA())

    but `workbench.align` also holds out a test set and says whether the judge got better.

    Parameters
    ----------
    model
        URI of the model that reflects; the judge's own, with its base URL, when None.
    base_url
        Root of the OpenAI-compatible server on which it is reached. None: the judge's base URL for
        the judge's own model, the provider's public address for another one.
    inference_params
        Parameters of the reflection's requests: ``max_tokens`` (600 unless given, for sentences on
        the ratings 400), ``timeout`` in seconds, ``temperature`` and whatever else the model takes.
    reflection_context
        Tokens that a reflection's prompt and answer may have; those of litellm's or MLflow's
        list of models, or 6,000, when None. Longer texts are shortened and cases left out.
    max_steps, batch_size, patience
        Steps at most, train items looked at in a step, steps without a better dev score
        before it stops.
    max_examples
        Worked examples in the instructions at most; 0 for none.
    max_dev
        Dev items that candidates are scored on at most.
    budget
        Model calls at most, of judge and reflection together, retries included; or a
        `workbench.Budget`, which also limits tokens and money. None: no limit but ``max_steps``.
    seed
        Any int; 0 is a seed like any other.
    concurrency
        Calls under way at the same time.
    cache
        Whether answers are kept in the disk cache, by which an interrupted alignment resumes.
    dev_size
        Share of the labels that `align` (MLflow's call) selects on, in (0, 1).
    max_failure_share
        Share of failed judge calls, in [0, 1], above which it gives up, and so of failed
        reflections. A candidate with many unusable answers, or too long for the judge's context,
        only drops out.
    class_weight
        ``"balanced"`` lets every label count the same in the score; None every item.
    progress
        Show a progress bar.

    Attributes
    ----------
    last
        What the last run found, see `workbench.simba.candidate.Learned`; None before.
    on_step
        Called after each step with a dict: ``step``, ``best_score``, ``calls``,
        ``reflections``, ``failures``, ``best`` (instructions). None for nothing.
    stop
        A `threading.Event`; once set no call is begun, and learning ends with what is best so far.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        inference_params: Mapping[str, Any] | None = None,
        reflection_context: int | None = None,
        max_steps: int = Settings.max_steps,
        batch_size: int = Settings.batch_size,
        patience: int = Settings.patience,
        max_examples: int = Settings.max_examples,
        max_dev: int = Settings.max_dev,
        budget: Budget | int | None = None,
        seed: int = 0,
        concurrency: int = 64,
        cache: bool = True,
        dev_size: float = 0.2,
        max_failure_share: float = Settings.max_failure_share,
        class_weight: Literal["balanced"] | None = None,
        progress: bool = True,
    ) -> None:
        if not 0 < dev_size < 1:
            raise ArgumentError(f"dev_size={dev_size} must lie in (0, 1).")
        if reflection_context is not None:
            check_whole("reflection_context", reflection_context)
        if model is not None and ":/" not in str(model):
            raise ArgumentError(f"model={model!r} must be a URI such as openai:/gpt-4.1-mini.")
        self.model, self.budget = model, budget
        self.seed = check_whole("seed", seed, None)
        self.base_url = checked_url(str(base_url)) if base_url else None
        self.inference_params = dict(inference_params or {})
        self.reflection_context = reflection_context
        self.concurrency, self.cache, self.dev_size = concurrency, cache, dev_size
        self.progress = progress
        self.on_step: Callable[[dict[str, Any]], None] | None = None
        self.stop = threading.Event()
        self.settings = Settings(
            max_steps, batch_size, patience, max_examples, max_dev, class_weight, max_failure_share
        )
        self.last: Learned | None = None

    def align(self, judge: Judge, traces: list[Trace]) -> Judge:
        """MLflow's entry: learn from all human labels on the traces and return a new judge.

        Labels are those of people under exactly the judge's name, by majority.

        Raises
        ------
        NoLabelsError, TooFewPairsError
            Without labels, or with fewer than ten labelled traces.
        ArgumentError
            When the judge is not made from instructions.
        """
        items, scale = labelled_items(judge, fetch_traces(traces))
        parts = stratified(
            {item.trace_id: str(item.label) for item in items},
            default_groups([item.example for item in items]),
            {"dev": self.dev_size, "train": 1 - self.dev_size},
            self.seed,
        )
        train, dev = ([i for i in items if i.trace_id in parts[p]] for p in ("train", "dev"))
        budget = Budget.of(self.budget)
        if self.progress:
            cases = [Case(item, Verdict(item.trace_id)) for item in items]
            most = forecast(judge, cases, len(dev), self.settings, scale, self.model)
            say(f"SIMBA: {most.told(budget)}")
            say_where(judge, (self.model, self.base_url))
        self.last = self.learn(judge, train, dev, scale=scale, budget=budget)
        return self.last.judge

    def learn(
        self,
        judge: Judge,
        train: Sequence[Item],
        dev: Sequence[Item],
        *,
        scale: Scale,
        known: Sequence[Verdict] = (),
        budget: Budget,
    ) -> Learned:
        """Learn from given items; ``known`` verdicts of the judge are not paid for again."""
        # By content, since trace ids, and so their order, differ from store to store.
        train, dev = (sorted(part, key=_content) for part in (train, dev))
        original, model = _original(judge, [*train, *dev]), str(judge.model)
        budget.check(model, self.model or model)
        with ExitStack() as stack:
            steps, off = self.settings.max_steps, not self.progress
            shown = stack.enter_context(bar(total=steps, desc="aligning with SIMBA", disable=off))
            cache = stack.enter_context(AnswerCache()) if self.cache else None
            shared: dict[str, Any] = {"cache": cache, "budget": budget, "stop": self.stop}
            # Where verdicts are known, reflections or the first call of `align` come before.
            runner = Runner(concurrency=self.concurrency, answered=len(known), **shared)
            judges = _Judges(judge, original, scale, known, stack.enter_context(runner))
            reflecting = Runner(concurrency=min(8, self.concurrency), **shared)
            reflector = Reflector(
                judge,
                scale,
                stack.enter_context(reflecting),
                model=self.model,
                base_url=self.base_url,
                inference_params=self.inference_params,
                context=self.reflection_context,
                max_failure_share=self.settings.max_failure_share,
            )
            stack.callback(reflector.close)
            found = Search(
                original, train, dev, scale, judge_fields(judge), judges.ask, reflector.propose,
                seed=self.seed, settings=self.settings, on_step=partial(self._tell, shown),
                calls_left=lambda: budget.left,
            ).run()  # fmt: skip
            steps_made = shown.n
            shown.reset(total=steps_made)  # done before the last step is done, and green
            shown.update(steps_made)
        return replace(
            found,
            judge=judges.of(found.best),
            judge_calls=runner.used.requests,
            reflection_calls=reflecting.used.requests,
            usage=runner.used + reflecting.used,
        )

    def _tell(self, shown: Any, state: dict[str, Any]) -> None:
        counts = "dev {best_score:.3f}, {calls} calls, {failures} failed".format(**state)
        shown.set_postfix_str(counts, refresh=False)
        shown.update()
        if self.on_step is not None:
            self.on_step(state)


class _Judges:
    """The judge with the instructions of each candidate, as the search asks it."""

    def __init__(
        self,
        judge: Judge,
        original: Candidate,
        scale: Scale,
        known: Sequence[Verdict],
        runner: Runner,
    ) -> None:
        self.judge, self.scale, self.runner = judge, scale, runner
        self.made = {original.key: judge}
        self.known = {(original.key, verdict.trace_id): verdict for verdict in known}

    def of(self, candidate: Candidate) -> Judge:
        if candidate.key not in self.made:
            self.made[candidate.key] = with_instructions(
                self.judge, candidate.text, generate_rationale_first=candidate.rationale_first
            )
        return self.made[candidate.key]

    def ask(self, wanted: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        """Verdicts of the candidates; those of the original may be known."""
        known = [self.known.get((candidate.key, item.trace_id)) for candidate, item in wanted]
        asked = [
            (self.of(candidate), item.example, 0)
            for (candidate, item), verdict in zip(wanted, known, strict=True)
            if verdict is None
        ]
        fresh = iter(judge_many(asked, self.runner, scale=self.scale))
        return [next(fresh) if verdict is None else verdict for verdict in known]


def _original(judge: Judge, items: Sequence[Item]) -> Candidate:
    """The judge's instructions; what they show of the items is not selected on either."""
    told = options(judge)
    read = Candidate.from_instructions(told["instructions"]).with_ids(items, judge_fields(judge))
    return replace(read, rationale_first=bool(told["generate_rationale_first"]))


def _content(item: Item) -> tuple[str, str, str]:
    return item_digest(item.example), str(item.label), item.trace_id


def labelled_items(
    judge: Judge, traces: Sequence[Trace], *, least: int = MINIMUM_LABELS
) -> tuple[list[Item], Scale]:
    """Return the traces with a human label under the judge's name, and the rating scale.

    Raises `NoLabelsError` without labels, `TooFewPairsError` with fewer than ``least`` usable ones.
    """
    name = judge.name
    labels, decisions = labels_and_decisions(traces, name)
    if not labels and not decisions:
        raise NoLabelsError(
            f"None of {len(traces)} traces has a human label under {name!r}. Log labels with "
            f"workbench.log_labels(table, name={name!r}, ...) or mlflow.log_feedback."
        )
    given = (label.value for of_trace in labels.values() for label in of_trace)
    scale = known_scale(judge, traces) or Scale.from_values(given)
    items, unused = [], Counter[str]()
    for trace in traces:
        i = trace.info.trace_id
        label = read_label(labels.get(i, []), scale, "majority", "drop", decisions.get(i))
        if label.fault is None:
            items.append(Item(as_example(trace), label.value, label.rationale))
        elif label.fault != "no label":
            unused[label.fault] += 1
    if unused:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in unused.most_common())
        warnings.warn(f"{unused.total()} labelled traces are not used ({reasons}).", stacklevel=3)
    if len(items) < least:
        raise TooFewPairsError(
            f"{len(items)} of {len(traces)} traces have a usable human label under "
            f"{name!r}; at least {least} are needed, and 50 to 100 make a "
            "difference that can be trusted. Label more traces."
        )
    return items, scale.with_range(item.label for item in items)
