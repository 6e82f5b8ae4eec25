"""The optimizers that a comparison knows by name, and the references that each must beat."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.compat import options
from workbench.errors import ArgumentError
from workbench.judging.judge import with_instructions
from workbench.pairing.pairs import Pairs
from workbench.simba.candidate import Candidate, WorkedExample
from workbench.simba.items import judge_fields
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import Settings
from workbench.store.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "workbench SIMBA": (),
    "MLflow SIMBA": ("dspy",),
    "MLflow GEPA": ("dspy", "gepa"),
    "MLflow MemAlign": ("dspy", "litellm", "jinja2"),
}
"""Optimizers that are known by name, all of them by default, and the packages that each needs."""

REFERENCES: Final = ("original", "majority label", "few-shot")
"""What every comparison shows beside the optimizers."""


def named_optimizers(
    judge: Judge,
    wanted: Mapping[str, Any] | Sequence[Any] | str | None,
    *,
    seed: int,
    embedding_model: str | None,
) -> tuple[dict[str, AlignmentOptimizer], dict[str, str]]:
    """Return optimizers by their names in the comparison, and name -> why it was left out.

    MLflow's optimizers reflect with the judge's own model. An optimizer that is wanted by name but
    not available is an error; a default one is left out.

    Raises
    ------
    ArgumentError
        For an unknown name, one of `REFERENCES`, an object that is no optimizer, or nothing at all.
    """
    if wanted is None:
        reasons = {name: _missing(name, embedding_model) for name in NEEDS}
        left_out = {name: why for name, why in reasons.items() if why}
        known = [name for name in NEEDS if name not in left_out]
        return {name: _made(name, judge, seed, embedding_model) for name in known}, left_out
    named = wanted if isinstance(wanted, Mapping) else _with_names(wanted)
    if not named:
        raise ArgumentError("optimizers is empty. Give optimizers, or None for the known ones.")
    if taken := sorted(set(named) & set(REFERENCES)):
        raise ArgumentError(
            f"optimizers names one {taken[0]!r}, which every comparison shows as it is. Give it "
            "another name."
        )
    found = {}
    for shown, one in named.items():
        if isinstance(one, str) and one in NEEDS:
            if why := _missing(one, embedding_model):
                raise ArgumentError(f"optimizers names {one!r}, but {why}")
            found[shown] = _made(one, judge, seed, embedding_model)
        elif isinstance(one, AlignmentOptimizer):
            found[shown] = one
        else:
            raise ArgumentError(
                f"optimizers holds {one!r}, which is no MLflow AlignmentOptimizer and none of the "
                f"known names: {', '.join(map(repr, NEEDS))}."
            )
    return found, {}


def _with_names(wanted: Any) -> dict[str, Any]:
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    elif isinstance(wanted, AlignmentOptimizer):
        wanted = [wanted]
    seen: Counter[str] = Counter()
    named = {}
    for one in wanted:
        name = one if isinstance(one, str) else _name_of(one)
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name} ({seen[name]})"] = one
    return named


def _name_of(optimizer: Any) -> str:
    kind = type(optimizer).__name__
    short = kind.removesuffix("Optimizer").removesuffix("Alignment") or kind
    home = type(optimizer).__module__.partition(".")[0]
    return {"workbench": f"workbench {short}", "mlflow": f"MLflow {short}"}.get(home, kind)


def _missing(name: str, embedding_model: str | None) -> str:
    """Return why the optimizer is not available; "" where it is."""
    absent = [one for one in NEEDS[name] if importlib.util.find_spec(one) is None]
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


def few_shot(
    judge: Judge,
    train: Pairs,
    by_id: Mapping[str, Example],
    *,
    seed: int,
    count: int = Settings.max_examples,
) -> Judge:
    """Return the judge with ``count`` labelled items of train and their rationales as examples.

    Labels take turns, the rarest first, and items with a rationale come first; otherwise the
    order is random by ``seed``.
    """

    def order(row: dict[str, Any]) -> tuple[bool, str, str]:
        # By content, so that the same items are shown in every store.
        of_item = f"{seed}:{item_digest(by_id[row['trace_id']])}"
        digest = hashlib.sha256(of_item.encode()).hexdigest()
        return not row["human_rationale"], digest, row["trace_id"]

    rows: list[Any] = train.table.to_dict("records")
    by_label: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=order):
        by_label[row["human"]].append(row)
    rarest_first = sorted(by_label, key=lambda label: (len(by_label[label]), str(label)))
    turns = itertools.zip_longest(*(by_label[label] for label in rarest_first))
    fields = judge_fields(judge)
    shown = [
        WorkedExample(
            row["trace_id"],
            tuple((name, getattr(by_id[row["trace_id"]], name)) for name in fields),
            str(row["human"]),
            row["human_rationale"] or "",
        )
        for row in [row for turn in turns for row in turn if row is not None][:count]
    ]
    base = Candidate(options(judge)["instructions"])
    return with_instructions(judge, base.with_examples(shown, len(shown)).text)


def majority(train: Pairs, test: Pairs) -> tuple[Any, Pairs]:
    """Return the most frequent human label of train, and test as if all had been rated so."""
    counts = Counter(train.table["human"])
    most = max(counts, key=lambda value: (counts[value], str(value)))
    verdicts = dict.fromkeys(test.trace_ids, (most, ""))
    return most, test.with_verdicts(verdicts, "majority")
