"""Orders in which to label traces: by chance, by rules, or both in turn.

Labels chosen by a rule are no sample of all items. The random draws among them are, and
`workbench.sampled_prevalence` uses both for an unbiased estimate; therefore every rule takes a
``random_share``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from mlflow.entities import TraceInfo
from mlflow.genai.judges import Judge
from numpy.typing import NDArray

from workbench.errors import ScaleError, check_share, one_of
from workbench.judging.judge import fingerprints_of
from workbench.judging.verdicts import Recorded, choose_version, recorded_verdicts, where
from workbench.labeling.annotations import without_spans
from workbench.labeling.questions import LabelQuestion
from workbench.scale import ABSTAIN
from workbench.store.labels import label_records, same_person

_RULES: Final = ("disagreement", "balance", "unlike")
ORDERS: Final = ("random", *_RULES, "mix")

_FARTHEST: Final = 1_000


@dataclass(frozen=True)
class Known:
    """What is known of a trace before it is labelled; values are canonical."""

    trace_id: str
    text: str = ""  # the beginning of what a person reads
    verdicts: tuple[Any, ...] = ()  # of the judge, one a sample
    labels: tuple[Any, ...] = ()  # of other annotators


class Chosen(NamedTuple):
    trace_id: str
    how: str  # "random", or the name of the rule that chose it


class Order(NamedTuple):
    queue: tuple[Chosen, ...]
    notes: tuple[str, ...]  # on rules that have nothing to go by


def known_of(
    infos: Mapping[str, TraceInfo],
    question: LabelQuestion,
    annotator: str,
    judge: Judge | str | None,
) -> dict[str, Known]:
    """Return what is known of each trace but for the annotator's own labels."""
    verdicts = usable_verdicts(infos, question, judge)
    known = {}
    for i, info in infos.items():
        said = [one.value for one in verdicts[i]]
        labels = label_records([without_spans(info)], question.name)
        others = [one.value for one in labels if not same_person(one.annotator, annotator)]
        text = f"{info.request_preview or ''} {info.response_preview or ''}"
        known[i] = Known(i, text, _on_scale(question, said), _on_scale(question, others))
    return known


def usable_verdicts(
    infos: Mapping[str, TraceInfo], question: LabelQuestion, judge: Judge | str | None
) -> dict[str, list[Recorded]]:
    """Return the verdicts on each trace that hold a value, those of one version: the judge's where
    the question is its own, else any under the question's name."""
    name = question.name
    recorded = {i: recorded_verdicts(without_spans(info), name) for i, info in infos.items()}
    whose = judge if name == getattr(judge, "name", judge) else name
    chosen, _, _ = choose_version(whose, recorded, fingerprints_of(whose))
    return where(chosen, lambda one: one.usable)


def _on_scale(question: LabelQuestion, values: Iterable[Any]) -> tuple[Any, ...]:
    found = []
    for raw in values:
        with suppress(ScaleError):
            found.append(question.read(raw))
    return tuple(value for value in found if value is not ABSTAIN)


def put_in_order(
    items: Sequence[Known],
    order: str = "random",
    *,
    seed: int = 0,
    whose: str = "",
    random_share: float | None = None,
    labelled: Mapping[str, Any] | None = None,
    before: Sequence[Known] = (),
    drawn: int = 0,
    pool: int = 0,
) -> Order:
    """Put open items in order: by chance, by a rule (see below), or by the three rules in turn.

    The order of the same items depends on the seed and the annotator, or on the seed alone if
    ``whose`` is "". The random share is kept over all draws: ``drawn`` were made already, of the
    items ``before``, which are ``labelled`` by trace id. ``pool`` is the size of the queue.
    """
    one_of("order", order, ORDERS)
    usual = 0.3 if order == "mix" else 0.0
    share = check_share("random_share", usual if random_share is None else random_share)
    names = [one for one in _RULES if order in (one, "mix") and share < 1]
    # The order among equals is not the random order, which must tell nothing of it.
    equals = _shuffled(items, f"{seed} rule {whose}")
    find = {
        "disagreement": lambda: _disagreement(equals),
        "balance": lambda: _balance(equals, labelled or {}),
        "unlike": lambda: _farthest_first(equals, before),
    }
    rules = {name: iter(found) for name in names if (found := find[name]())}
    # Annotators read this before they label, so it tells no verdict.
    unused = [name for name in names if name not in rules]
    notes = tuple(f"Nothing tells traces apart by {name!r}: it chooses none." for name in unused)
    by_chance = [item.trace_id for item in _shuffled(items, f"{seed} random {pool} {whose}")]
    return Order(tuple(_draws(by_chance, rules, share, drawn)), notes)


def _shuffled(items: Sequence[Known], salt: str) -> list[Known]:
    """Order by hash: within one salt, items that are gone move no others."""
    return sorted(
        items, key=lambda item: hashlib.sha256(f"{salt} {item.trace_id}".encode()).digest()
    )


def _draws(
    by_chance: Sequence[str], rules: dict[str, Iterator[str]], share: float, drawn: int
) -> Iterator[Chosen]:
    """Draw all items; ``drawn`` tells whose turn it is."""
    chance, left = iter(by_chance), set(by_chance)
    for number in range(drawn, drawn + len(left)):
        owed, next_owed = (math.floor(n * share + 1e-9) for n in (number, number + 1))
        choice = None
        while rules and next_owed == owed and choice is None:
            name = list(rules)[(number - owed) % len(rules)]
            trace_id = next((i for i in rules[name] if i in left), None)
            if trace_id is None:
                del rules[name]
            else:
                choice = Chosen(trace_id, name)
        if choice is None:
            choice = Chosen(next(i for i in chance if i in left), "random")
        left.remove(choice.trace_id)
        yield choice


# -- rules: trace ids in the order of each, none where it has nothing to go by ------------------


def _disagreement(items: Sequence[Known]) -> list[str]:
    """People or samples that differ among themselves, then people who differ from the judge."""
    scores = {
        item.trace_id: (
            max(_split(item.verdicts), _split(item.labels)),
            bool(item.verdicts and {*item.labels} - {*item.verdicts}),
        )
        for item in items
    }
    scored = [i for i, score in scores.items() if any(score)]
    return sorted(scored, key=lambda i: scores[i], reverse=True)


def _split(values: Sequence[Any]) -> float:
    """How divided votes are: 0 where they agree, 1 - sum of squared shares (Gini) else."""
    counts = Counter(map(repr, values))
    return 1 - sum((n / len(values)) ** 2 for n in counts.values()) if values else 0.0


def _balance(items: Sequence[Known], labelled: Mapping[str, Any]) -> list[str]:
    """The classes in turn, first the one with the fewest labels, until one class is left."""
    counts = Counter(map(repr, labelled.values()))
    ranked = []
    for item in items:
        # By the judge, or by other people where there is no verdict.
        if votes := Counter(map(repr, item.verdicts or item.labels)):
            guess = min(votes, key=lambda value: (-votes[value], value))
            ranked.append((counts[guess], guess, item.trace_id))
            counts[guess] += 1
    ranked.sort(key=lambda one: one[:2])
    last = ranked[-1][1] if ranked else ""
    while ranked and ranked[-1][1] == last:
        ranked.pop()
    return [trace_id for *_, trace_id in ranked]


def _farthest_first(items: Sequence[Known], before: Sequence[Known]) -> list[str]:
    """Each item the one whose nearest among those before is farthest (Gonzalez 1985).

    Texts are hashed TF-IDF vectors in a random projection, their distance is by angle. After
    1,000 draws the rest is left to chance.
    """
    if not any(item.text.strip() for item in items):
        return []
    vectors = _vectors([item.text for item in [*items, *before]])
    own, earlier = vectors[: len(items)], vectors[len(items) :]
    nearest = np.full(len(items), -np.inf, dtype=np.float32)
    for start in range(0, len(earlier), 256):
        np.maximum(nearest, (own @ earlier[start : start + 256].T).max(axis=1), out=nearest)
    # The first of all is the most ordinary one: what comes then is unlike it.
    pick = int(np.argmin(nearest) if len(earlier) else np.argmax(own @ own.mean(axis=0)))
    picked = []
    for _ in range(min(len(items), _FARTHEST)):
        picked.append(items[pick].trace_id)
        np.maximum(nearest, own @ own[pick], out=nearest)
        nearest[pick] = np.inf
        pick = int(np.argmin(nearest))
    return picked


def _vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return one vector of length 1 a text."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer
    from sklearn.random_projection import GaussianRandomProjection

    measure = make_pipeline(
        HashingVectorizer(n_features=2**14, alternate_sign=False, norm=None),
        TfidfTransformer(sublinear_tf=True),
        GaussianRandomProjection(128, random_state=0),  # fixed, so that two calls measure alike
        Normalizer(),
    )
    return np.asarray(measure.fit_transform(texts), dtype=np.float32)
