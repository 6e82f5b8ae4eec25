"""Several optimizers on the same split, beside what each must beat.

All learn from the same train and dev pairs and are scored once on the same held-out pairs, in
the harness that `workbench.align` uses. Beside them stand the original judge, always giving the
majority label of train, and plain few-shot: labelled items in the instructions, nothing else, as
many as the SIMBA among them shows at most (`workbench.lineup.examples_shown`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from workbench.alignment.external import metering, requests_of_a_verdict, without_dspy_answers
from workbench.alignment.gate import Gate, decide
from workbench.alignment.heldout import TestSetUse, score_held_out, test_set_tags
from workbench.alignment.learning import (
    Learned,
    check_one_budget,
    learn,
    own_pairs,
    split_pairs,
)
from workbench.alignment.lineage import Lineage, lineage_files
from workbench.alignment.preflight import check_pairs, forecast_of, probed, to_keep
from workbench.alignment.runs import (
    AlignmentRun,
    RunLocation,
    instruction_files,
    params_before_test,
    tags_before_test,
)
from workbench.compat import options
from workbench.credentials import scrub
from workbench.errors import ArgumentError, ReplayError, one_of
from workbench.formatting import html_table, html_text, plain, say
from workbench.judging.judge import fingerprint, is_cacheable, with_instructions
from workbench.judging.requests import answers_from
from workbench.judging.runner import run
from workbench.judging.verdicts import Verdict
from workbench.metrics.agreement import Agreement
from workbench.metrics.comparison import Comparison, compare
from workbench.models.budget import Budget, Receipt
from workbench.models.cache import AnswerCache, question_key
from workbench.models.recording import Line, Player, Recorder, active, charged
from workbench.pairing.pairs import Groups, Pairs, Split, dataset_digest
from workbench.simba.candidate import Candidate, WorkedExample
from workbench.simba.forecast import announcement
from workbench.simba.items import judge_fields
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import Settings
from workbench.store.traces import Example, examples, item_digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mlflow.genai.judges import Judge


NAMES: Final = ("workbench SIMBA", "MLflow SIMBA", "MLflow GEPA", "MLflow MemAlign")
"""Optimizers that can be asked for by name; all of them by default."""


REFERENCES: Final = ("original", "majority label", "few-shot")
"""What every comparison shows beside the optimizers."""


NEEDS: Final = {
    "MLflow SIMBA": ("dspy",),
    "MLflow GEPA": ("dspy", "gepa"),
    "MLflow MemAlign": ("dspy", "litellm", "jinja2"),
}


def lineup(
    judge: Judge,
    wanted: Mapping[str, Any] | Sequence[Any] | str | None,
    *,
    seed: int,
    embedding_model: str | None,
) -> tuple[dict[str, AlignmentOptimizer], dict[str, str]]:
    """Optimizers by the name that they are shown under, and name -> why it was left out.

    ``wanted`` holds optimizers, or names of `NAMES`; a text holds names with commas between
    them, and a mapping gives names of one's own.
    MLflow's optimizers reflect with the judge's own model. What is wanted by name and cannot be
    had is an error; of the default ones it is left out.

    Raises
    ------
    ArgumentError
        For an unknown name, one of `REFERENCES`, an object that is no optimizer, or nothing at all.
    """
    if wanted is None:
        found: dict[str, AlignmentOptimizer] = {}
        left_out: dict[str, str] = {}
        for name in NAMES:
            if why := _missing(name, embedding_model):
                left_out[name] = why
            else:
                found[name] = _made(name, judge, seed, embedding_model)
        return found, left_out
    named = wanted if isinstance(wanted, Mapping) else dict(_with_names(wanted))
    if not named:
        raise ArgumentError("optimizers is empty. Give optimizers, or None for the known ones.")
    if taken := sorted(set(named) & set(REFERENCES)):
        raise ArgumentError(
            f"optimizers names one {taken[0]!r}, which every comparison shows as it is. Give it "
            "another name."
        )
    found = {}
    for shown, one in named.items():
        if isinstance(one, str):
            if one not in NAMES:
                raise ArgumentError(
                    f"optimizers names {one!r}. Known by name are {', '.join(map(repr, NAMES))}; "
                    "give any other as an object."
                )
            if why := _missing(one, embedding_model):
                raise ArgumentError(f"optimizers names {one!r}, but {why}")
            found[shown] = _made(one, judge, seed, embedding_model)
        elif isinstance(one, AlignmentOptimizer):
            found[shown] = one
        else:
            raise ArgumentError(
                f"optimizers holds {shown!r}, a {type(one).__name__}, which is no MLflow "
                f"AlignmentOptimizer and no name. Known by name: {', '.join(map(repr, NAMES))}."
            )
    return found, {}


def _with_names(wanted: Any) -> list[tuple[str, Any]]:
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    elif isinstance(wanted, AlignmentOptimizer):
        wanted = [wanted]
    seen: Counter[str] = Counter()
    named = []
    for one in wanted:
        name = one if isinstance(one, str) else _name_of(one)
        seen[name] += 1
        named.append((name if seen[name] == 1 else f"{name} ({seen[name]})", one))
    return named


def _name_of(optimizer: Any) -> str:
    kind = type(optimizer).__name__
    short = kind.removesuffix("Optimizer").removesuffix("Alignment") or kind
    home = type(optimizer).__module__.partition(".")[0]
    return {"workbench": f"workbench {short}", "mlflow": f"MLflow {short}"}.get(home, kind)


def _missing(name: str, embedding_model: str | None) -> str:
    """Why the optimizer cannot be had here; "" where it can."""
    absent = [one for one in NEEDS.get(name, ()) if importlib.util.find_spec(one) is None]
    if absent:
        return f"it needs {' and '.join(absent)}, which is not installed."
    if name == "MLflow MemAlign" and not embedding_model:
        return (
            "it needs an embedding model. Name one, for instance "
            "embedding_model='openai:/text-embedding-3-small'."
        )
    return ""


def _made(name: str, judge: Judge, seed: int, embedding_model: str | None) -> AlignmentOptimizer:
    if name == "workbench SIMBA":
        return SIMBA(seed=seed, progress=False)
    from mlflow.genai.judges import optimizers

    if name == "MLflow SIMBA":
        # MLflow takes a seed of 0 for none, and 42 in its place.
        return optimizers.SIMBAAlignmentOptimizer(model=judge.model, seed=seed)
    if name == "MLflow GEPA":
        return optimizers.GEPAAlignmentOptimizer(model=judge.model)
    return optimizers.MemAlignOptimizer(reflection_lm=judge.model, embedding_model=embedding_model)


def examples_shown(optimizers: Iterable[AlignmentOptimizer]) -> int:
    """How many labelled items plain few-shot shows beside these.

    As many as the `SIMBA` among them shows at most, of several the one that shows most, so that
    what it gains beyond few-shot is not owed to more examples; its default where there is none,
    or none of them shows any.
    """
    shown = [one.settings.max_examples for one in optimizers if isinstance(one, SIMBA)]
    return max(shown, default=0) or Settings.max_examples


def few_shot(
    judge: Judge,
    train: Pairs,
    by_id: Mapping[str, Example],
    *,
    seed: int,
    count: int = Settings.max_examples,
) -> Judge:
    """The judge with ``count`` labelled items of train, with their rationales, as examples.

    Labels take turns, the rarest first, and items with a rationale come before those without;
    the rest is drawn by ``seed``.
    """
    rows: list[Any] = train.table.to_dict("records")
    frequency = Counter(row["human"] for row in rows)
    queues: dict[Any, list[dict[str, Any]]] = {
        label: [] for label in sorted(frequency, key=lambda one: (frequency[one], str(one)))
    }

    def drawn(row: dict[str, Any]) -> tuple[bool, str, str]:
        # By content, so that the same items are shown in every store.
        of_item = f"{seed}:{item_digest(by_id[row['trace_id']])}"
        place = hashlib.sha256(of_item.encode()).hexdigest()
        return not row["human_rationale"], place, row["trace_id"]

    for row in sorted(rows, key=drawn):
        queues[row["human"]].append(row)
    picked: list[dict[str, Any]] = []
    while len(picked) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(picked) < count:
                picked.append(queue.pop(0))
    fields = judge_fields(judge)
    shown = [
        WorkedExample(
            row["trace_id"],
            tuple((name, getattr(by_id[row["trace_id"]], name)) for name in fields),
            str(row["human"]),
            row["human_rationale"] or "",
        )
        for row in picked
    ]
    base = Candidate(options(judge)["instructions"])
    return with_instructions(judge, base.with_examples(shown, len(shown)).text)


def majority(train: Pairs, test: Pairs) -> tuple[Any, Pairs]:
    """The most frequent human label of train, and test as if all had been rated so."""
    counts = Counter(train.table["human"])
    most = max(counts, key=lambda value: (counts[value], str(value)))
    verdicts = dict.fromkeys(test.trace_ids, (most, ""))
    return most, test.with_verdicts(verdicts, "majority")


Status = Literal["reference", "improved", "unchanged", "rejected", "failed"]


@dataclass(frozen=True)
class Later:
    """What one more judgement takes: model calls, words and tokens of the prompt.

    None where it is not known.
    """

    calls: int | None = None
    words: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Entry:
    """One judge of the comparison.

    ``judge`` and ``agreement`` are None where it failed, ``judge`` also for the majority label;
    ``comparison`` with the original on held-out pairs is None for the original itself. Calls are
    requests while learning, repeated ones included; ``known`` answers more were known from
    before and cost nothing. ``run_id`` is the MLflow run that counts the look at held-out pairs.
    """

    name: str
    status: Status
    reason: str = ""
    judge: Judge | None = None
    agreement: Agreement | None = None
    comparison: Comparison | None = None
    p_adjusted: float = float("nan")
    calls: int | None = None
    reflection_calls: int | None = None
    embedding_calls: int | None = None
    known: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None
    later: Later = field(default_factory=Later)
    notes: tuple[str, ...] = ()
    run_id: str | None = None


@dataclass(frozen=True, repr=False)
class OptimizerComparison:
    """Optimizers beside each other on the same held-out pairs.

    Attributes
    ----------
    entries
        `Entry` of the original judge, the majority label, few-shot and each optimizer, in
        this order; failed ones as well.
    left_out
        Optimizer -> why it did not take part.
    pairs, split
        What was learned from, and its parts.
    notes
        What must be known to read the figures.
    run_id
        The MLflow run that holds table, split and instructions; None where logging failed.
    """

    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]
    pairs: Pairs
    split: Split
    seed: int
    seconds: float
    notes: tuple[str, ...]
    run_id: str | None = None

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(f"{name!r} is none of {', '.join(repr(e.name) for e in self.entries)}")

    @property
    def judges(self) -> dict[str, Judge]:
        """Name -> the judge that was put to the test, of those that have one."""
        return {entry.name: entry.judge for entry in self.entries if entry.judge is not None}

    @property
    def table(self) -> pd.DataFrame:
        """A row an entry, index its name.

        ``status``; ``accuracy`` with ``low`` and ``high``, its Wilson interval; ``kappa``;
        ``mean distance`` on ordered scales; ``n`` held-out items rated; against the original
        ``fixed`` and ``broken`` items, ``p`` (McNemar's exact test) and ``p adjusted`` for the
        number of judges tested (Holm); what learning took: ``judge calls``, ``reflection
        calls``, ``embedding calls``, ``known`` answers, ``seconds``, ``tokens``, ``cost`` in US
        dollars; what a later judgement takes: ``later calls``, and ``words more`` and ``tokens
        more`` of prompt than the original's; ``reason``. nan where unknown or undefined.
        """
        original = self.entries[0]
        rows = [_row(entry, original) for entry in self.entries]
        table = pd.DataFrame(rows, index=pd.Index([e.name for e in self.entries], name="judge"))
        counts = [name for name in _COUNTS if name in table]
        table[counts] = table[counts].astype("Int64")
        if not self.split.test.scale.ordered:
            table = table.drop(columns="mean distance")
        return table

    @property
    def conclusion(self) -> str:
        """What the held-out pairs can tell about who is best, in a sentence or two."""
        return _conclusion(self.entries)

    def plot(self, ax: Axes | None = None) -> Axes:
        """`workbench.plot_comparison` of this."""
        from workbench.reporting.plots import plot_comparison

        return plot_comparison(self, ax=ax)

    def __repr__(self) -> str:
        shown = self.table[[name for name in _SHOWN if name in self.table]]
        text = shown.to_string(na_rep="", formatters=_formats(shown))
        failed = [f"{e.name}: {e.reason}" for e in self.entries if e.status == "failed"]
        return "\n".join([text, self.conclusion, *failed, *self._remarks])

    def _repr_html_(self) -> str:
        shown = self.table[[name for name in _SHOWN if name in self.table]]
        table = html_table(shown, formatters=_formats(shown))
        failed = [f"{e.name}: {e.reason}" for e in self.entries if e.status == "failed"]
        lines = [self.conclusion, *failed, *self._remarks]
        return table + "".join(f"<div>{html_text(line)}</div>" for line in lines)

    @property
    def _remarks(self) -> tuple[str, ...]:
        out = (f"{name} did not take part: {why}" for name, why in self.left_out.items())
        return (*out, *self.notes)


# -- what is said of it -----------------------------------------------------------------------

_COUNTS = (
    "n", "fixed", "broken", "judge calls", "reflection calls", "embedding calls", "known",
    "tokens", "later calls", "words more", "tokens more",
)  # fmt: skip


_SHOWN = (
    "status", "accuracy", "low", "high", "kappa", "mean distance", "n", "fixed", "broken", "p",
    "p adjusted", "judge calls", "reflection calls", "embedding calls", "known", "seconds",
    "later calls", "words more",
)  # fmt: skip


def _row(entry: Entry, original: Entry) -> dict[str, Any]:
    found, compared = entry.agreement, entry.comparison
    nan = float("nan")
    interval = found.accuracy_interval if found else (nan, nan)
    return {
        "status": entry.status,
        "accuracy": found.accuracy if found else nan,
        "low": interval[0],
        "high": interval[1],
        "kappa": found.kappa if found else nan,
        "mean distance": found.mean_distance if found else nan,
        "n": found.n if found else None,
        "fixed": len(compared.fixed) if compared else None,
        "broken": len(compared.broken) if compared else None,
        "p": compared.p_value if compared else nan,
        "p adjusted": entry.p_adjusted,
        "judge calls": entry.calls,
        "reflection calls": entry.reflection_calls,
        "embedding calls": entry.embedding_calls,
        "known": entry.known,
        "seconds": nan if entry.seconds is None else entry.seconds,
        "tokens": entry.tokens,
        "cost": nan if entry.cost is None else entry.cost,
        "later calls": entry.later.calls,
        "words more": _more(entry.later.words, original.later.words),
        "tokens more": _more(entry.later.tokens, original.later.tokens),
        "reason": entry.reason,
    }


def _more(amount: int | None, than: int | None) -> int | None:
    return None if amount is None or than is None else amount - than


def _formats(table: pd.DataFrame) -> dict[str, Any]:
    def by(form: str) -> Any:
        return lambda value: "" if pd.isna(value) else form.format(value)

    forms = {"p": "{:.3g}", "p adjusted": "{:.3g}", "seconds": "{:.1f}", "kappa": "{:.2f}"}
    three = dict.fromkeys(("accuracy", "low", "high", "mean distance"), "{:.3f}")
    return {
        name: by({**three, **forms}.get(name, "{}")) for name in table.columns if name != "status"
    }


def told(entry: Entry) -> str:
    """The entry in a few words."""
    if entry.agreement is None:
        return f"failed. {entry.reason}"
    return f"{entry.status}, accuracy {entry.agreement.accuracy:.3f}, {entry.seconds:.1f} s"


def adjusted(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries with the p values of judges that were tested adjusted after Holm (1979)."""
    tested = [e for e in entries if e.comparison is not None and e.judge is not None]
    order = sorted(tested, key=lambda e: e.comparison.p_value if e.comparison else 1.0)
    highest, found = 0.0, {}
    for rank, entry in enumerate(order):
        assert entry.comparison is not None
        highest = max(highest, min(1.0, (len(order) - rank) * entry.comparison.p_value))
        found[entry.name] = highest
    return tuple(replace(e, p_adjusted=found[e.name]) if e.name in found else e for e in entries)


def _conclusion(entries: Sequence[Entry]) -> str:
    """Who leads, and whether that can be told from luck."""
    rated = [e for e in entries if e.agreement is not None and e.agreement.n and e.judge]
    if len(rated) < 2:
        return "There is nothing to compare the original judge with."

    def accuracy(entry: Entry) -> float:
        assert entry.agreement is not None
        return entry.agreement.accuracy

    first, *others = sorted(rated, key=accuracy, reverse=True)
    assert first.agreement is not None
    low = first.agreement.accuracy_interval.low
    close = [e.name for e in others if e.agreement and e.agreement.accuracy_interval.high >= low]
    lead = f"{first.name} has the highest accuracy, {accuracy(first):.3f}"
    if close:
        return (
            f"{lead}, but its interval overlaps that of {', '.join(close)}: which of them is "
            "best cannot be told on these pairs."
        )
    return f"{lead}, and its interval lies above all others."


def remarks_on(entries: Sequence[Entry], held_out: int) -> tuple[str, ...]:
    """What must be known to read the figures."""
    tested = [e for e in entries if e.comparison is not None and e.judge is not None]
    notes = [note for entry in entries for note in entry.notes]
    if len(tested) > 1:
        notes.append(
            f"{len(tested)} judges were compared with the original on the same {held_out} "
            "held-out pairs: the more judges, the likelier that one looks better by luck, and "
            "the winner's figure is too high on average. 'p adjusted' takes this into account; "
            "labels that none has seen settle it."
        )
    if any(entry.known for entry in entries):
        notes.append(
            "Calls are those paid now. Answers that were known, from earlier runs or because "
            "another optimizer had asked the same, were not paid again; 'known' counts them."
        )
    return tuple(notes)


def compare_optimizers(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizers: Mapping[str, Any] | Sequence[Any] | str | None = None,
    *,
    seed: int = 0,
    test_size: float = 0.4,
    groups: Groups = None,
    gate: Gate = "better",
    budget: Budget | int | None = None,
    embedding_model: str | None = None,
    max_failure_share: float | None = None,
    progress: bool = True,
) -> OptimizerComparison:
    """Run several optimizers on the same split and score each once on the same held-out pairs.

    Answers of judges are kept, so that the same call resumes after an interrupt. An optimizer
    that fails is a row with its reason. The whole is logged as an MLflow run, each judge that
    came of it as a run within.

    Parameters
    ----------
    judge
        A judge made from instructions, which has judged the labelled traces (`assess`).
    pairs_or_traces
        `Pairs`, or what `pair` takes as traces.
    optimizers
        MLflow alignment optimizers or names: ``"workbench SIMBA"``, ``"MLflow SIMBA"``,
        ``"MLflow GEPA"``, ``"MLflow MemAlign"``, also as one text with commas; a mapping shows
        them under names of one's own.
        None: those of the four whose packages are installed, each with its defaults and the
        judge's own model for reflection.
    seed
        Of the split, the few-shot examples and the optimizers that are asked for by name.
    test_size, groups
        As in `align`.
    gate
        What makes a judge ``improved``, as in `align`.
    budget
        Model calls at most, or a `workbench.Budget`, of *each* optimizer: what it learns with and
        the held-out test of its judge, for which its calls are kept back. One that wants more is
        a row with its reason, `SIMBA` ends with what is best until then. The original judge and
        few-shot, which are tested as well, take none of it.
    embedding_model
        Of MemAlign, which takes part by default only where this is given.
    max_failure_share
        Share of lost answers above which an optimizer fails, as in `align`.
    progress
        Say what is being run.

    Raises
    ------
    TooFewPairsError, NoLabelsError, NoVerdictsError, PairingError, ArgumentError
        As `align`.
    ModelError
        When the original judge does not answer.
    """
    one_of("gate", gate, ["better", "significant", "none"])
    started = time.monotonic()
    entrants, left_out = lineup(judge, optimizers, seed=seed, embedding_model=embedding_model)
    for optimizer in entrants.values():
        check_one_budget(optimizer, budget)
    pairs = own_pairs(judge, pairs_or_traces)
    options(judge)  # raises for judges that are not made from instructions
    check_pairs(pairs)
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    lineage = Lineage.of(judge, pairs, by_id, RunLocation.active())
    split = split_pairs(pairs, by_id, groups, lineage, test_size, seed)
    field_ = _Field(judge, pairs, split, by_id, gate, seed, max_failure_share, lineage.unchanged)
    field_.budget, field_.examples = Budget.of(budget), examples_shown(entrants.values())
    if progress:
        say(f"{split!r}: {', '.join(entrants)}, beside the original, the majority, few-shot")
    entries = [field_.original(), field_.majority(), field_.few_shot()]
    for name, optimizer in entrants.items():
        if progress:
            say(f"{name}: {field_.announced(optimizer)}")
        entry = field_.optimizer(name, optimizer)
        if progress:
            say(f"{name}: {told(entry)}")
        entries.append(entry)
    found = OptimizerComparison(
        entries=adjusted(entries),
        left_out=left_out,
        pairs=pairs,
        split=split,
        seed=seed,
        seconds=time.monotonic() - started,
        notes=tuple(
            filter(
                None,
                (
                    *pairs.notes,
                    *remarks_on(entries, len(split.test)),
                    field_.looked(entries),
                ),
            )
        ),
    )
    return _logged(found)


class _Field:
    """The split that all are run on, and the original judge that all are compared with."""

    def __init__(
        self,
        judge: Judge,
        pairs: Pairs,
        split: Split,
        by_id: Mapping[str, Example],
        gate: Gate,
        seed: int,
        max_failure_share: float | None,
        earlier: Collection[str] = (),
    ) -> None:
        self.earlier = earlier
        self.judge, self.pairs, self.split, self.by_id = judge, pairs, split, by_id
        self.place = RunLocation.active()
        self.gate, self.seed, self.max_failure_share = gate, seed, max_failure_share
        self.budget, self.probe = Budget(), Verdict("")
        self.examples = Settings.max_examples
        # By content, so that it is the same item in every store.
        self.first = min((by_id[i] for i in split.test.trace_ids), key=item_digest)

    def original(self) -> Entry:
        """The judge as it is; raises where it does not answer."""
        self.probe = probed(self.judge, self.first, self.split.train)
        return Entry(
            "original",
            "reference",
            judge=self.judge,
            agreement=compare(self.split.test, self.split.test, seed=self.seed).before,
            later=self._later(self.judge),
        )

    def announced(self, optimizer: AlignmentOptimizer) -> str:
        """What it takes at most, where that is known."""
        if not isinstance(optimizer, SIMBA):
            limit = f"the budget, {self.budget.told()}" if self.budget.is_limited else "no limit"
            return f"how many calls it makes is not known beforehand; {limit} ..."
        settings, model = optimizer.settings, optimizer.model
        most = forecast_of(self.judge, self.split, self.by_id, settings, model, self.probe)
        return f"{announcement(most, self.budget)} ..."

    def majority(self) -> Entry:
        value, rated = majority(self.split.train, self.split.test)
        comparison = compare(self.split.test, rated, seed=self.seed)
        return Entry(
            "majority label",
            "reference",
            f"always {value!r}",
            agreement=comparison.after,
            comparison=comparison,
            later=Later(0),
        )

    def few_shot(self) -> Entry:
        shown = few_shot(
            self.judge, self.split.train, self.by_id, seed=self.seed, count=self.examples
        )
        return self._tested(Entry("few-shot", "reference", judge=shown))

    def optimizer(self, name: str, optimizer: AlignmentOptimizer) -> Entry:
        """Let it learn, and put what it proposes to the test; what goes wrong is its reason."""
        started = time.monotonic()
        # Without limits of its own where none are given, since SIMBA may bring some.
        brought = optimizer.budget if isinstance(optimizer, SIMBA) else None
        purse = self.budget.afresh() if self.budget.is_limited else Budget.of(brought)
        try:
            learned = self._learned(
                optimizer,
                purse,
                earlier=self.earlier,
                max_failure_share=self.max_failure_share,
                progress=False,
            )
        except ReplayError:
            raise
        except Exception as error:
            return self._failed(Entry(name, "failed", seconds=time.monotonic() - started), error)
        entry = Entry(
            name,
            "unchanged",
            judge=learned.judge,
            calls=learned.calls,
            reflection_calls=learned.reflection_calls,
            embedding_calls=learned.embedding_calls,
            known=learned.known,
            tokens=learned.tokens,
            cost=learned.cost,
            seconds=time.monotonic() - started,
            notes=learned.notes,
        )
        return self._tested(entry, learned.stopped, purse if self.budget.is_limited else None)

    def _learned(self, optimizer: AlignmentOptimizer, purse: Budget, **options: Any) -> Learned:
        """What it finds with what is left of its budget beside its test."""
        kept: dict[str, Any] = {}
        if self.budget.is_limited:
            # One call more, since it is measured what a later judgement takes.
            tested, each = len(self.split.test) + 1, requests_of_a_verdict(optimizer)
            kept = to_keep(self.judge, tested, self.probe, purse, requests=each)
        with purse.keeping(**kept) if kept else nullcontext():
            return learn(self.judge, optimizer, self.split, self.by_id, purse, **options)

    def _tested(self, entry: Entry, stopped: str = "", purse: Budget | None = None) -> Entry:
        assert entry.judge is not None
        try:
            later = self._later(entry.judge, purse)
            entry = replace(entry, run_id=self._mark(entry))
            tested = score_held_out(
                self.judge, entry.judge, self.split.test, self.by_id, False, purse
            )
        except ReplayError:
            raise
        except Exception as error:
            return self._failed(entry, error)
        comparison = compare(tested.before, tested.after, seed=self.seed)
        entry = replace(
            entry,
            agreement=comparison.after,
            comparison=comparison,
            later=later,
            notes=(*entry.notes, *(f"{entry.name}: {note}" for note in tested.notes)),
        )
        if entry.status == "reference":
            return entry
        same = fingerprint(entry.judge) == fingerprint(self.judge)
        status, reason = decide(
            comparison, self.gate, same, stopped, tested.lost,
            train=self.split.train, after=tested.after,
        )  # fmt: skip
        return replace(entry, status=status, reason=reason)

    def _mark(self, entry: Entry) -> str | None:
        """The run that tells of the test before it is made, so that the look counts in any case."""
        assert entry.judge is not None
        if fingerprint(entry.judge) == fingerprint(self.judge):
            return None
        test = self.split.test
        run = AlignmentRun(self.place, entry.name)
        run.begin(
            tags_before_test(self.judge, entry.judge, self.pairs, self.split)
            | test_set_tags(test, self.by_id),
            params_before_test(self.judge, self.split, optimizer=entry.name, seed=self.seed),
            lineage_files(self.split, self.by_id) | instruction_files(self.judge, entry.judge),
        )
        run.finish({}, {})
        if run.fault:
            message = f"The look at held-out pairs could not be logged: {run.fault}"
            warnings.warn(message, stacklevel=2)
            return None
        return run.run_id

    def looked(self, entries: Sequence[Entry]) -> str:
        """What is to be said of judges that were scored on the held-out pairs before these."""
        tested = [fingerprint(e.judge) for e in entries if e.run_id and e.judge is not None]
        return TestSetUse.of(self.split.test, self.by_id, *tested, location=self.place).note

    def _failed(self, entry: Entry, error: Exception) -> Entry:
        said = " ".join(scrub(str(error), self.judge).split()) or type(error).__name__
        return replace(entry, status="failed", reason=said[:600], judge=None)

    def _later(self, judge: Judge, budget: Budget | None = None) -> Later:
        """What one judgement of a new item takes, measured on one that none learned from.

        It is measured once, so that a comparison that is resumed does not pay for it again.
        """
        tape, tape_key = active(), self._later_key(fingerprint(judge, place=False))
        if isinstance(tape, Player):
            return _replayed(tape, tape_key, judge, budget)
        source = answers_from(judge.model, getattr(judge, "_base_url", None))
        key = self._later_key(fingerprint(judge), source)
        with AnswerCache() as cache:
            known = cache.get(key) if is_cacheable(judge) else None
            later, paid, made = Later(), Receipt(0), 0
            if known is not None:
                later = Later(known.get("calls"), known.get("words"), known.get("tokens"))
                paid = Receipt.of(known.get("paid"))
                if budget is not None:
                    budget.charge(paid, str(judge.model))
            else:
                with metering(budget=budget) as meter, without_dspy_answers():
                    scale = self.split.test.scale
                    verdict = run(judge, [self.first], cache=None, scale=scale, budget=budget)[0]
                others = meter.embedding.requests + meter.reflection.requests
                paid = verdict.receipt or Receipt()
                paid = replace(paid, calls=paid.calls + others)
                made = paid.calls
                if verdict.error is None:
                    calls = verdict.calls + others
                    later = Later(calls, meter.words or None, verdict.input_tokens)
                    if is_cacheable(judge):
                        cache.put(key, {**asdict(later), "paid": paid.to_dict()})
        if isinstance(tape, Recorder):
            told = {name: n for name, n in asdict(later).items() if n is not None}
            spent = {"calls": made, "charged": paid.to_dict()}
            tape.keep(Line(tape_key, 0, "measured", {}, told, spent), repeated=not made)
        return later

    def _later_key(self, *about: Any) -> str:
        return question_key("later", *about, item_digest(self.first))


def _replayed(player: Player, key: str, judge: Judge, budget: Budget | None) -> Later:
    """What one more judgement took when the run was recorded."""
    line = player.find(key, 0, "measured")
    if line is None:
        raise ReplayError(
            f"What a judgement of {judge.name!r} takes is not in {player.path}, which is replayed, "
            "so that no model is called. This run is not the recorded one: record it anew."
        )
    if budget is not None:
        made = int(line.paid.get("calls") or 0)
        budget.charge(charged(line.paid), str(judge.model), made=made)
    return Later(**{name: line.answer.get(name) for name in ("calls", "words", "tokens")})


# -- what is logged ---------------------------------------------------------------------------


def _logged(found: OptimizerComparison) -> OptimizerComparison:
    """Log the comparison as an MLflow run; where that fails the result is kept and says so."""
    try:
        run_id = _log_run(found)
    except (MlflowException, OSError) as error:
        message = f"The comparison could not be logged as an MLflow run: {error}"
        warnings.warn(message, stacklevel=3)
        return replace(found, notes=(*found.notes, message))
    return replace(found, run_id=run_id)


def _log_run(found: OptimizerComparison) -> str:
    judge = found.entries[0].judge
    assert judge is not None
    table = found.table
    with mlflow.start_run(
        run_name=f"compare optimizers of {judge.name}", nested=mlflow.active_run() is not None
    ) as active:
        mlflow.log_params(
            {
                "judge": judge.name,
                "model": judge.model,
                "optimizers": ", ".join(e.name for e in found.entries if e.status != "reference"),
                "seed": found.seed,
                "pairs": len(found.pairs),
                "train": len(found.split.train),
                "dev": len(found.split.dev),
                "test": len(found.split.test),
            }
        )
        mlflow.set_tags(
            {
                "workbench.fingerprint.original": fingerprint(judge),
                "workbench.dataset_digest": dataset_digest(found.pairs),
                "workbench.split_digest": found.split.digest,
                "mlflow.note.content": found.conclusion,
            }
        )
        mlflow.log_metrics({"seconds": found.seconds})
        mlflow.log_text(table.to_csv(), "comparison.csv")
        mlflow.log_dict(
            plain({"table": table.reset_index().astype(object), "notes": list(found.notes)}),
            "comparison.json",
        )
        mlflow.log_dict(found.split.to_dict(), "split.json")
        for entry in found.entries[1:]:
            if entry.judge is not None:
                _log_entry(found, entry, fingerprint(judge))
        return str(active.info.run_id)


def _log_entry(found: OptimizerComparison, entry: Entry, original: str) -> None:
    """A run for each judge, so that what it learned on is known when it is aligned again."""
    assert entry.judge is not None
    above = mlflow.active_run()
    with mlflow.start_run(run_id=entry.run_id, run_name=entry.name, nested=True):
        mlflow.set_tags(
            {
                MLFLOW_PARENT_RUN_ID: above.info.run_id if above else "",
                "workbench.status": entry.status,
                "workbench.fingerprint.original": original,
                "workbench.fingerprint.aligned": fingerprint(entry.judge),
                "workbench.split_digest": found.split.digest,
            }
        )
        row: dict[Any, Any] = found.table.loc[entry.name].to_dict()
        figures = {
            re.sub(r"\W+", "_", str(name)): float(value)
            for name, value in row.items()
            if name not in ("status", "reason") and not pd.isna(value)
        }
        mlflow.log_metrics(figures)
        mlflow.log_dict(found.split.to_dict(), "split.json")
        mlflow.log_text(str(getattr(entry.judge, "instructions", "")), "instructions.txt")
