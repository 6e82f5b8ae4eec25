"""Orders in which to label traces: by chance, by rules, or both in turn.

Labels chosen by a rule are no sample of all items. The random draws among them are, and
`workbench.sampled_prevalence` uses both for an unbiased estimate; therefore every rule takes a
``random_share``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mlflow.entities import TraceInfo

from workbench.errors import ArgumentError, ScaleError, one_of
from workbench.judging.verdicts import choose_version, recorded_verdicts
from workbench.labeling.annotations import without_spans
from workbench.labeling.questions import LabelQuestion
from workbench.scale import ABSTAIN
from workbench.store.labels import label_records, same_person

if TYPE_CHECKING:
    import numpy as np
    from mlflow.genai.judges import Judge
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]

ORDERS: Final = ("random", "disagreement", "balance", "unlike", "mix")

MIX_SHARE: Final = 0.3
"""The random share of a mix, unless another is asked for."""

_DIMENSIONS: Final = 128

_FEATURES: Final = 2**14

_FARTHEST: Final = 1_000


@dataclass(frozen=True)
class Known:
    """What is known of a trace before it is labelled.

    ``text`` is what a person would read of it, a beginning being enough; ``verdicts`` are the
    canonical verdicts of the judge, one a sample; ``labels`` those of other annotators.
    """

    trace_id: str
    text: str = ""
    verdicts: tuple[Any, ...] = ()
    labels: tuple[Any, ...] = ()

    @cached_property
    def guess(self) -> str | None:
        """Its class by the judge, or by other people where there is no verdict."""
        votes = Counter(map(repr, self.verdicts)) or Counter(map(repr, self.labels))
        return min(votes, key=lambda value: (-votes[value], value)) if votes else None


@dataclass(frozen=True)
class Chosen:
    """One item of an order: ``how`` is "random" or the name of the rule that chose it."""

    trace_id: str
    how: str


@dataclass(frozen=True)
class Order:
    """Items in the order in which to label them.

    ``notes`` name the rules that have nothing to go by. Annotators read them, so they hold no
    verdict and nobody's label.
    """

    queue: tuple[Chosen, ...]
    notes: tuple[str, ...] = ()


def known_of(
    infos: Mapping[str, TraceInfo],
    question: LabelQuestion,
    annotator: str,
    judge: Judge | str | None,
) -> dict[str, Known]:
    """Return what is known of each trace but for the annotator's own labels, by trace id.

    ``judge`` tells whose verdicts count; None: any under the question's name, of one version.
    """
    traces = {i: without_spans(info) for i, info in infos.items()}
    recorded = {i: recorded_verdicts(trace, question.name) for i, trace in traces.items()}
    chosen, _, _ = choose_version(judge or question.name, recorded)
    verdicts: dict[str, list[Any]] = defaultdict(list)
    for trace_id, found in chosen.items():
        verdicts[trace_id] += [one.value for one in found if one.usable]
    known = {}
    for trace_id, info in infos.items():
        others = [
            label.value
            for label in label_records([traces[trace_id]], question.name)
            if not same_person(label.annotator, annotator)
        ]
        known[trace_id] = Known(
            trace_id,
            f"{info.request_preview or ''} {info.response_preview or ''}",
            _on_scale(question, verdicts[trace_id]),
            _on_scale(question, others),
        )
    return known


def _on_scale(question: LabelQuestion, values: Sequence[Any]) -> tuple[Any, ...]:
    found = []
    for raw in values:
        try:
            value = question.read(raw)
        except ScaleError:
            continue
        if value is not ABSTAIN:
            found.append(value)
    return tuple(found)


def put_in_order(
    items: Sequence[Known],
    order: str = "random",
    *,
    seed: int,
    whose: str = "",
    random_share: float | None = None,
    labelled: Mapping[str, Any] | None = None,
    before: Sequence[Known] = (),
    drawn: int = 0,
    pool: int = 0,
) -> Order:
    """Put open items in the order in which to label them.

    Parameters
    ----------
    items
        The open items.
    order
        ``"random"``; ``"disagreement"``: first where the judge's samples or people differ most;
        ``"balance"``: the classes that the judge's verdicts tell in turn, first the one that has
        the fewest labels; ``"unlike"``: what is least like all before; ``"mix"``: the three rules
        in turn.
    seed
        The same seed gives the same order of the same items, whatever the order they come in.
    whose
        Name of the annotator, for an order of their own. Empty: the order common to all.
    random_share
        Share of random draws in [0, 1]; by default 0, for a mix 0.3. What no rule chooses is
        drawn at random as well.
    labelled
        Labels that were given already, trace_id -> canonical value, for `balance`.
    before
        The items that were drawn already, for `unlike`.
    drawn
        How many draws were made already; the random share is kept over all of them.
    pool
        Size of the queue. When it grows, all that wait are shuffled anew: under the old order new
        items would not have the same chance as those that waited.

    Raises
    ------
    ArgumentError
        For an unknown order or a share out of range.
    """
    one_of("order", order, ORDERS)
    share = (MIX_SHARE if order == "mix" else 0.0) if random_share is None else random_share
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise ArgumentError(f"random_share={share!r} must lie in [0, 1].")
    names = ["disagreement", "balance", "unlike"] if order == "mix" else [order]
    if order == "random" or share == 1:
        names = []
    # The order among equals is not the random order, which must tell nothing of it.
    equals = _shuffled(items, f"{seed} rule {whose}")
    rules: list[tuple[str, Iterator[str]]] = []
    lacking: list[tuple[str, str]] = []
    for name in names:
        found: Iterator[str] | str
        if name == "disagreement":
            found = _disagreement(equals)
        elif name == "balance":
            found = _balance(equals, labelled or {})
        else:
            found = _unlike(equals, before)
        if isinstance(found, str):
            lacking.append((name, found))
        else:
            rules.append((name, found))
    otherwise = "so {} chooses no trace." if rules else "so the order is random."
    notes = [f"order={order!r}: {why}, {otherwise.format(repr(name))}" for name, why in lacking]
    by_chance = _shuffled(items, f"{seed} random {pool} {whose}")
    return Order(tuple(_draws(by_chance, rules, share, drawn)), tuple(notes))


def _shuffled(items: Sequence[Known], salt: str) -> list[Known]:
    """Order by hash: within one salt, items that are gone move no others."""
    return sorted(
        items, key=lambda item: hashlib.sha256(f"{salt} {item.trace_id}".encode()).digest()
    )


def _draws(
    by_chance: Sequence[Known], rules: list[tuple[str, Iterator[str]]], share: float, drawn: int
) -> Iterator[Chosen]:
    """Draw all items; ``drawn`` tells whose turn it is."""
    chance = iter([item.trace_id for item in by_chance])
    left = {item.trace_id for item in by_chance}
    for number in range(drawn, drawn + len(left)):
        owed, next_owed = (math.floor(n * share + 1e-9) for n in (number, number + 1))
        choice = None
        while rules and next_owed == owed and choice is None:
            name, rule = rules[(number - owed) % len(rules)]
            trace_id = next((i for i in rule if i in left), None)
            if trace_id is None:
                rules.remove((name, rule))
            else:
                choice = Chosen(trace_id, name)
        if choice is None:
            choice = Chosen(next(i for i in chance if i in left), "random")
        left.remove(choice.trace_id)
        yield choice


# -- rules: each gives trace ids in its order, or says why it has nothing to go by -------------


def _disagreement(items: Sequence[Known]) -> Iterator[str] | str:
    """People or samples that differ among themselves, then people who differ from the judge."""
    scores = {
        item.trace_id: (
            max(_split(item.verdicts), _split(item.labels)),
            bool(item.verdicts and {*item.labels} - {*item.verdicts}),
        )
        for item in items
    }
    scored = [i for i, score in scores.items() if any(score)]
    if not scored:
        return "no trace has verdicts or labels that differ"
    return iter(sorted(scored, key=lambda i: scores[i], reverse=True))


def _split(values: Sequence[Any]) -> float:
    """How divided votes are: 0 where they agree, 1 - sum of squared shares (Gini) else."""
    counts = Counter(map(repr, values))
    total = sum(counts.values())
    return 1 - sum((n / total) ** 2 for n in counts.values()) if total else 0.0


def _balance(items: Sequence[Known], labelled: Mapping[str, Any]) -> Iterator[str] | str:
    by_class: dict[str, deque[str]] = defaultdict(deque)
    for item in items:
        if item.guess:
            by_class[item.guess].append(item.trace_id)
    if not by_class:
        return "no trace has a verdict to guess its class by"
    if len(by_class) == 1:
        # Not which one: whoever reads this has yet to label blind.
        return "the verdicts tell no class from another"
    return _in_turn(by_class, Counter(map(repr, labelled.values())))


def _in_turn(by_class: dict[str, deque[str]], counts: Counter[str]) -> Iterator[str]:
    # With one class left there is nothing to choose.
    while len(by_class) > 1:
        fewest = min(by_class, key=lambda one: (counts[one], one))
        counts[fewest] += 1
        yield by_class[fewest].popleft()
        if not by_class[fewest]:
            del by_class[fewest]


def _unlike(items: Sequence[Known], before: Sequence[Known]) -> Iterator[str] | str:
    if not any(item.text.strip() for item in items):
        return "no trace has a text to compare"
    return _farthest_first(items, before)


def _farthest_first(items: Sequence[Known], before: Sequence[Known]) -> Iterator[str]:
    """Each item the one whose nearest among those before is farthest (Gonzalez 1985).

    Texts are hashed TF-IDF vectors, brought to 128 dimensions by a random projection, and their
    distance is by angle. After 1,000 draws the rest is left to chance.
    """
    import numpy as np

    vectors = _vectors([item.text for item in [*items, *before]])
    own, earlier = vectors[: len(items)], vectors[len(items) :]
    nearest = np.full(len(items), -np.inf, dtype=np.float32)
    for start in range(0, len(earlier), 256):
        np.maximum(nearest, (own @ earlier[start : start + 256].T).max(axis=1), out=nearest)
    # The first of all is the most ordinary one: what comes then is unlike it.
    pick = int(np.argmin(nearest) if len(earlier) else np.argmax(own @ own.mean(axis=0)))
    for _ in range(min(len(items), _FARTHEST)):
        np.maximum(nearest, own @ own[pick], out=nearest)
        nearest[pick] = np.inf
        yield items[pick].trace_id
        pick = int(np.argmin(nearest))


def _vectors(texts: Sequence[str]) -> Vectors:
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    counts = HashingVectorizer(n_features=_FEATURES, alternate_sign=False, norm=None)
    weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counts.transform(texts))
    # The projection is fixed: two calls measure alike.
    projection = np.random.default_rng(0).standard_normal((_FEATURES, _DIMENSIONS))
    vectors = np.asarray(weighted @ projection.astype(np.float32), dtype=np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
    return scaled
