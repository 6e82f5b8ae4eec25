"""Who takes part when optimizers are compared: by name, by default, and what they must beat."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.candidate import Candidate, WorkedExample
from workbench.errors import ArgumentError
from workbench.judge import options, with_instructions
from workbench.labelled import judge_fields
from workbench.optimised import Settings
from workbench.pairing import Pairs
from workbench.simba import SIMBA
from workbench.traces import Example, item_digest

if TYPE_CHECKING:
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
