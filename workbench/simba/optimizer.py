"""SIMBA, stochastic introspective mini-batch ascent, for judges that people disagree with.

What it does
------------
Given a judge with instructions ``I``, labelled items split into train ``T`` and dev ``D``, and a
rating scale with distance ``d`` in [0, 1], it looks for rules ``R`` and worked examples ``E`` so
that the judge with ``I + R + E`` agrees better with people. The unit of learning is the pair
(judge's verdict and rationale, human label and rationale). Rules and examples that an earlier
alignment added to the instructions are read back, so that an aligned judge is taken up where it
stands. ::

    A     <- up to 80 items to select on: D, and where D is smaller, items of T as well
    c0    = (I, no rules, no examples);  pool = {c0};  best = c0;  V(c0) on A and a minibatch B
    if c0 has rules (an aligned judge): leave each out where verdicts speak of it; best = c0 without
        those that the newest labels speak against, if it is better on these by 0.75 standard
        errors. Earlier labels that only such a rule gets right are taken out of A and T
    repeat at most S times:
        c     <- best; after a step in vain one of the pool, by softmax of its score
        X, G  <- judged items of T on which V(c) and the label differ, and agree; the newest
        X_k   <- X by direction: rated too high, too low (by label where values have no order);
                 large ones in up to 3 parts whose rationales look alike (k-means on their words)
        R     <- reflect(c, X, G);  R_k <- reflect(c, X_k, G);  W <- rewrite(rules of c, X, cured)
        P     <- in the first step, where people gave reasons on G: by what do they go on X and G?
                 (the judge's verdicts are not shown)
        N     <- c + R;  c + first half of R;  c + all R_k;  c + P;  c + first half of P;  c with W
                 for its rules;  c + two examples of X;  best + R (merge)
        race N on A in three heats of 15 %, 30 % and the rest of A, what best gets wrong first:
            after a heat the worse half drops out, and who cannot win any more
        prune the winner: each of its rules is left out on up to 18 of its items, those whose
            verdicts speak of the rule; without rules that do harm or nothing it races again and
            is taken if it is better by 0.75 standard errors
        best  <- argmax of the score
        stop when it has not risen for ``patience`` steps, or nothing is wrong on A; also when it
            has not risen once, if something was learned and B is all of T, which would show the
            same again
        B     <- a new minibatch of T, stratified by label
    return the judge with the instructions of best

The score of a candidate is its mean credit on A less 0.01 for each 100 words that it adds. The
credit of a verdict is 1 if it equals the label, else (1 - d) / 2 on ordered scales (1 - d on
continuous ones), else 0; items are weighted by ``class_weight`` and, when an aligned judge is
aligned again, labels that it learned from before by a quarter. Failed calls and abstentions are
left out of the mean and counted apart; abstaining where the original had an opinion earns 0. An
item that a candidate shows as a worked example counts as the original judged it.

Nothing of D is shown to the reflection model or in an example. A may hold items that rules were
made from (of 50 labels most of it does), which favours rules that fit them by heart. The score
on A that is shown while it learns ("best dev score") is therefore no estimate of how the judge
will do; `workbench.align` scores the result on held-out items that no part of this has seen, and
the figure to quote is that one.

P is there for judges that waver: where a verdict is wrong by chance, the disagreements show what
chance picked, while the reasons that people gave on all items still say what they go by. As
evidence of a rule those items are kept whose reason shares words with it.

With fewer than 30 labels there is no dev set: see `workbench.crossfit`.

Complexity
----------
With ``a = |A|``, ``b`` items of a minibatch beyond A, and heats ``h1 + h2 + h3 = a``, at most

    a + b + S (b + 8 h1 + 4 h2 + 2 h3 + 36 + 3 a)  judge calls  and  1 + S (2 + 3 K)  reflections,

and for an aligned judge up to ``5 a`` calls more for the rules that it has, where K is 2, or the
number of values where these have no order (`most_calls`). Usual is a small part of it: about 220
calls for 50 labels and 510 for 200 in the simulation of ``tests/benchmarks/bench_simba.py`` (a
judge that is wrong systematically). All calls of a heat run together, so a step takes about six
times the latency of the model. Verdicts of the original judge that are known already, and answers
in the cache, are not paid again. ``budget=`` ends the loop before the first call that would exceed
it, with the best candidate until then, and no more candidates race than can be scored to the end
with what is left; an answer in the cache is charged with what it cost when it was paid for, so that
a run that is repeated or resumed takes the same course.

How it differs from dspy's SIMBA
--------------------------------
``dspy.SIMBA``, and MLflow's optimizer that wraps it, sample several trajectories an item, learn
from the spread between them and skip items on which all samples agree. A judge that is always
wrong in the same way has no spread, so they learn nothing from just what matters most here.
They also reflect on one item at a time without its human rationale, only ever add to the
instructions, score every candidate on the whole minibatch, and pick the winner on the data that
it learned from.

The loop itself, a pure function of its items, its seed and two callables, is in
`workbench.ascent`, its moves in `workbench.moves`, what is left out of rules in
`workbench.pruning` and its scores in `workbench.scoreboard`; here it is joined with judges, models,
the cache and MLflow.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import Trace
from mlflow.genai.judges.base import AlignmentOptimizer, Judge

from workbench.compat import options
from workbench.errors import ArgumentError, CancelledError, NoLabelsError, TooFewPairsError
from workbench.formatting import bar, say
from workbench.judging.judge import fingerprint, with_instructions
from workbench.judging.runner import Session, check_measurable, run_many
from workbench.judging.verdicts import Verdict, read_verdict, recorded_verdicts
from workbench.models.budget import ASSUMED_OUTPUT, Budget, Receipt, cost
from workbench.models.cache import AnswerCache, cache_directory, question_key
from workbench.pairing.consensus import decisions_by_trace, labels_by_trace, read_label
from workbench.pairing.splits import default_groups, stratified
from workbench.scale import Scale, scale_of
from workbench.simba.candidate import Candidate
from workbench.simba.reflection import MOST_RULES, TASK, Case, Item, Reflection, Reflector, Request
from workbench.simba.search import FEW, Optimised, Settings, crossfit, optimise
from workbench.simba.search import most_calls as ascent_calls
from workbench.simba.search import most_calls_crossfitted as crossfit_calls
from workbench.store.traces import as_example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class Checkpoint:
    """The file ``alignments/<key>.json`` beside the answers.

    Parameters
    ----------
    key
        The same for the same call on the same labels.
    """

    def __init__(self, key: str) -> None:
        self.path: Path = cache_directory() / "alignments" / f"{key[:32]}.json"
        before = self.read()
        if before is not None and not before.get("finished"):
            say(
                f"Taking up an alignment that ended after step {before.get('step')}: what it "
                "paid for is not paid for again."
            )

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where there is nothing that can be read."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, state: dict[str, Any], *, finished: bool = False) -> None:
        """Keep the state after a step. It is no reason to fail where that cannot be written."""
        told = {**state, "finished": finished, "at": time.time(), "process": os.getpid()}
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(told, default=str), encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            say(f"The checkpoint {self.path} cannot be written: {error}. Answers are kept still.")

    def finish(self, found: Optimised) -> None:
        """Mark the last state as that of a run that came to its end."""
        if found.stopped != "it was cancelled":
            self.write({**(self.read() or {}), "stopped": found.stopped}, finished=True)


MINIMUM_LABELS = 10
"""Fewer labelled traces than this cannot be learned from (MLflow asks for as many)."""


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
    decisions = decisions_by_trace(traces, judge.name)
    by_trace = {**{i: [] for i in decisions}, **labels_by_trace(traces, judge.name)}
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
        decision = decisions.get(example.trace_id)
        label = read_label(by_trace[example.trace_id], scale, "majority", "drop", decision)
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


RULE_BYTES: Final = 160
"""Of a learned rule, of which twice `MOST_RULES` are taken to be added at most."""


TOKENS_PER_BYTE: Final = 1 / 3
"""Where no request was made yet; languages and tokenizers differ."""


_FRAME_BYTES: Final = 3000
"""What dspy writes around the fields of a reflection."""


_ANSWER_TOKENS: Final = 200
"""Of a judge's answer where none is known."""


@dataclass(frozen=True)
class Forecast:
    """Upper bounds for learning; ``usd`` is None where no price is known."""

    judge_calls: int
    reflections: int
    tokens: int
    usd: float | None

    @property
    def calls(self) -> int:
        """Of both models."""
        return self.judge_calls + self.reflections


def most_calls(
    train: int, dev: int, settings: Settings, scale: Scale, rules: int = 0
) -> tuple[int, int]:
    """Upper bound of (judge calls, reflections) of `SIMBA.learn` on so many labels.

    ``rules`` is how many the judge has learned before.
    """
    if train + dev < FEW:
        return crossfit_calls(train + dev, rules)
    return ascent_calls(train, dev, settings, scale, rules)


def forecast(
    judge: Judge,
    cases: Sequence[Case],
    dev: int,
    settings: Settings,
    scale: Scale,
    *,
    fields: tuple[str, ...],
    reflection_model: str | None = None,
    probe: Verdict | None = None,
    with_price: bool = True,
) -> Forecast:
    """What learning takes at most.

    Parameters
    ----------
    cases
        All items to learn and select from, with the judge's verdicts; their sizes count.
    dev
        How many of them are to select on.
    fields
        Which of inputs, outputs and expectations the judge sees.
    reflection_model
        Another model than the judge's.
    probe
        A verdict of the judge, from which it is read how many tokens a byte makes.
    with_price
        Whether a price is looked up, for which litellm must be loaded.
    """
    instructions = str(getattr(judge, "instructions", ""))
    rules = len(Candidate.from_instructions(instructions).rules)
    calls, reflections = most_calls(len(cases) - dev, dev, settings, scale, rules)
    sizes = sorted((_bytes_of(case, fields, scale) for case in cases), reverse=True)
    ratio = _tokens_per_byte(probe)
    shown = settings.max_examples * sum(sizes) / max(1, len(sizes))
    added = 2 * MOST_RULES * RULE_BYTES + shown
    told = probe.receipt if probe is not None else None
    if told is not None and told.read:
        read, written = told.read, 2 * told.written
    else:
        read = math.ceil(ratio * (len(instructions.encode()) + max(sizes, default=0) + 1000))
        written = _ANSWER_TOKENS
    read = math.ceil(read + ratio * added)
    most = len(cases) if len(cases) < FEW else min(3 * settings.batch_size, len(cases))
    prompt = len(TASK.encode()) + _FRAME_BYTES + added + sum(sizes[:most])
    prompt += len(instructions.encode())
    prompt = math.ceil(ratio * prompt)
    model = str(getattr(judge, "model", None) or "")
    usd = None
    if with_price:
        judged = cost(model, read, written)
        reflected = cost(reflection_model or model, prompt, ASSUMED_OUTPUT)
        if judged is not None and reflected is not None:
            usd = calls * judged + reflections * reflected
    tokens = calls * (read + written) + reflections * (prompt + ASSUMED_OUTPUT)
    return Forecast(calls, reflections, tokens, usd)


def announcement(found: Forecast, budget: Budget | None = None) -> str:
    """The forecast in a line, held to what is left of the budget."""
    purse = budget or Budget()
    calls = min(found.calls, purse.left)
    tokens = min(found.tokens, purse.left_tokens)
    parts = [f"at most {calls:,.0f} calls of models (repeated ones after failures not counted)"]
    parts.append(f"about {tokens:,.0f} tokens")
    if found.usd is not None:
        parts.append(f"${min(found.usd, purse.left_usd):.2f}")
    kept = "; the budget is kept to the single call" if purse.is_limited else ""
    return ", ".join(parts) + kept + ". Usual is a small part of it."


def _tokens_per_byte(probe: Verdict | None) -> float:
    told = probe.receipt if probe is not None else None
    if told is None or not told.read or not told.spare_read:
        return TOKENS_PER_BYTE
    # What is set aside for a prompt is a token for each of its bytes.
    return min(1.0, max(0.2, 1.25 * told.read / (told.read + told.spare_read)))


def _bytes_of(case: Case, fields: tuple[str, ...], scale: Scale) -> int:
    """Of a case as the reflection model is shown it."""
    line: Any = Request("", (case,), (), fields).as_inputs(scale)["disagreements"]
    return len(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))


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
        Model calls at most, of judge and reflection together, retries included; or a
        `workbench.Budget`, which also limits tokens and money. None: no limit but ``max_steps``.
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
        Share of failed judge calls, in [0, 1], above which it gives up, and so of failed
        reflections.
    class_weight
        ``"balanced"`` lets every label count the same in the score, so that a rare one is not
        ignored; None counts every item the same.
    progress
        Show a progress bar.

    Attributes
    ----------
    last
        `Optimised`, what the last run found; None before.
    on_step
        Called after each step with a dict: ``step``, ``best_score``, ``calls``,
        ``reflections``, ``failures``, ``best`` (instructions). None for nothing.
    stop
        A `threading.Event`; once set no call is begun any more, and learning ends with what is
        best until then as soon as those under way have come in.
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
        self.model, self.budget, self.seed = model, budget, seed
        self.concurrency, self.cache, self.dev_size = concurrency, cache, dev_size
        self.progress = progress
        self.on_step: Callable[[dict[str, Any]], None] | None = None
        self.stop = threading.Event()
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
        known = known_verdicts(judge, traces, scale)
        budget = Budget.of(self.budget)
        if self.progress:
            said = {verdict.trace_id: verdict for verdict in known}
            cases = [Case(i, said.get(i.trace_id, Verdict(i.trace_id))) for i in items]
            most = forecast(
                judge,
                cases,
                len(parts["dev"]),
                self.settings,
                scale,
                fields=judge_fields(judge),
                reflection_model=self.model,
            )
            say(f"SIMBA: {announcement(most, budget)}")
        return self.learn(
            judge,
            [by_id[i] for i in parts["train"]],
            [by_id[i] for i in parts["dev"]],
            scale=scale,
            known=known,
            budget=budget,
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
        # By content, since trace ids, and so their order, differ from store to store.
        train, dev = (sorted(part, key=_content) for part in (train, dev))
        original = Candidate.from_instructions(options(judge)["instructions"])
        budget = Budget.of(self.budget) if budget is None else budget
        spent_before, made_before = budget.spent, budget.made
        model = str(getattr(judge, "model", None) or "")
        budget.check(model, self.model or model)
        if budget.measures:
            check_measurable(judge)
        answers = AnswerCache() if self.cache else None
        started = time.monotonic()
        shown = bar(
            total=self.settings.max_steps, desc="aligning with SIMBA", disable=not self.progress
        )
        checkpoint = Checkpoint(self._run_key(judge, train, dev, budget))

        def on_step(state: dict[str, Any]) -> None:
            limit = "" if budget.limit is None else f" of {budget.limit}"
            shown.set_postfix_str(
                f"dev {state['best_score']:.3f}, {budget.spent - spent_before}{limit} "
                f"calls, {state['failures']} failed",
                refresh=False,
            )
            shown.update()
            checkpoint.write(state)
            if self.on_step is not None:
                self.on_step(state)

        few = len(train) + len(dev) < FEW
        try:
            with shown, Session(self.concurrency, self.stop) as session:
                asking = _Asking(self, judge, original, scale, known, answers, budget, session)
                given: dict[str, Any] = {
                    "scale": scale,
                    "fields": judge_fields(judge),
                    "ask": asking.verdicts,
                    "reflect": asking.rules,
                    "seed": self.seed,
                    "settings": self.settings,
                    "on_step": on_step,
                    "left": asking.left,
                }
                if few:
                    self.last = crossfit(original, [*train, *dev], **given)
                else:
                    self.last = optimise(original, train, dev, **given)
        finally:
            if answers is not None:
                answers.close()
        checkpoint.finish(self.last)
        self.seconds = time.monotonic() - started
        # A batch that the budget cut short was paid for all the same.
        self.last.judge_calls = budget.made - made_before - self.last.reflection_calls
        return asking.judges[self.last.best.key]

    def _run_key(
        self, judge: Judge, train: Sequence[Item], dev: Sequence[Item], budget: Budget
    ) -> str:
        """The same for the same call on the same labels."""
        labels = [[_content(item)[:2] for item in part] for part in (train, dev)]
        asked = [fingerprint(judge), self.model, asdict(self.settings), self.seed, budget.limit]
        return question_key("alignment", asked, labels)


class _Asking:
    """Verdicts and rules for one run of the loop: from what is known, the cache, or the models."""

    def __init__(
        self,
        simba: SIMBA,
        judge: Judge,
        original: Candidate,
        scale: Scale,
        known: Sequence[Verdict],
        cache: AnswerCache | None,
        budget: Budget,
        session: Session,
    ) -> None:
        self.simba, self.judge, self.original, self.scale = simba, judge, original, scale
        self.cache, self.budget, self.session = cache, budget, session
        self.reflector = Reflector(
            judge,
            scale,
            model=simba.model,
            cache=cache,
            max_failure_share=simba.settings.max_failure_share,
            stop=simba.stop,
        )
        self.judges: dict[str, Judge] = {original.key: judge}
        self.known = {verdict.trace_id: verdict for verdict in known if verdict.error is None}
        self.paid = Receipt(0)

    def verdicts(self, wanted: Sequence[tuple[Candidate, Item]]) -> list[Verdict]:
        self._check()
        for candidate, _ in wanted:
            if candidate.key not in self.judges:
                self.judges[candidate.key] = with_instructions(self.judge, candidate.text)
        found: list[Verdict | None] = [
            replace(self.known[item.trace_id], calls=0)
            if candidate.key == self.original.key and item.trace_id in self.known
            else None
            for candidate, item in wanted
        ]
        open_ = [index for index, verdict in enumerate(found) if verdict is None]
        fresh = run_many(
            [(self.judges[wanted[i][0].key], wanted[i][1].example, 0) for i in open_],
            concurrency=self.simba.concurrency,
            cache=self.cache,
            scale=self.scale,
            budget=self.budget,
            session=self.session,
        )
        for index, verdict in zip(open_, fresh, strict=True):
            found[index] = verdict
        for verdict in fresh:
            self.paid += verdict.receipt or Receipt(0)
        return [verdict for verdict in found if verdict is not None]

    def left(self) -> float:
        """Judge calls that the budget still allows, by what those until now have used."""
        left, paid = self.budget.left, self.paid
        if self.budget.tokens is not None and paid.tokens:
            left = min(left, self.budget.left_tokens * paid.calls / paid.tokens)
        if self.budget.usd is not None:
            model = str(getattr(self.judge, "model", None) or "")
            usd = cost(model, paid.read, paid.written)
            left = min(left, self.budget.left_usd * paid.calls / usd) if usd else left
        return left

    def rules(self, requests: Sequence[Request], step: int) -> list[Reflection]:
        self._check()
        return self.reflector.propose([(r, step) for r in requests], budget=self.budget)

    def _check(self) -> None:
        if self.simba.stop.is_set():
            raise CancelledError("The alignment was cancelled. " + ANSWERS_ARE_KEPT)


ANSWERS_ARE_KEPT = "Answers that were paid for are kept; the same call takes it up again."


def _content(item: Item) -> tuple[str, str, str]:
    return item_digest(item.example), str(item.label), item.trace_id
