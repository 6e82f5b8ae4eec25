"""Which trace to label next, how it was chosen and with what probability.

An order is a sequence of draws without replacement from the items that are still open. Where a
draw is random, each item left has the same probability, which is recorded: 1 over the number
of items left. Where a draw follows a rule (the item on which people differ most, say), it has
none: nothing but that item could have been drawn. Labels chosen by a rule say nothing by
themselves about all items; the random draws among them do, and `workbench.sampling` weighs both
together so that the estimate is unbiased. Therefore every rule takes a ``random_share``.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from workbench.errors import ArgumentError, one_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

ORDERS: Final = ("random", "disagreement", "balance", "unlike", "mix")

BALANCED_SHARE: Final = 0.3
"""The share of each class that `balance` aims at; less where there are more than three."""

MIX_SHARE: Final = 0.3
"""The random share of a mix, unless another is asked for."""

_DIMENSIONS = 128
_FEATURES = 2**14
_FARTHEST = 1_000


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


@dataclass(frozen=True)
class Chosen:
    """One draw: ``how`` it was made, and its ``probability`` (0 to 1), None where it was a rule's.

    ``how`` is "random" or the name of the rule.
    """

    trace_id: str
    how: str
    probability: float | None


@dataclass(frozen=True)
class Drawn:
    """The order, and what to tell of it: a rule that had nothing to go by, say."""

    queue: tuple[Chosen, ...]
    notes: tuple[str, ...] = field(default=())


def put_in_order(
    items: Sequence[Known],
    order: str = "random",
    *,
    seed: int,
    random_share: float | None = None,
    labelled: Mapping[str, Any] | None = None,
    before: Sequence[Known] = (),
) -> Drawn:
    """Put open items in the order in which to label them.

    Parameters
    ----------
    items
        The open items.
    order
        ``"random"``; ``"disagreement"``: first where the judge's samples or people differ most;
        ``"balance"``: so that each class gets 30 % of the labels, the judge's verdict being the
        guess; ``"unlike"``: what is least like all before; ``"mix"``: the three rules in turn.
    seed
        The same seed gives the same order of the same items, whatever the order they come in.
        Items that are added or gone do not change the random order of the others.
    random_share
        Share of draws that are random whatever the order, in [0, 1]; by default 0, for a mix 0.3.
        A draw that a rule has nothing to say about is random as well.
    labelled
        Labels that were given already, trace_id -> canonical value, for `balance`.
    before
        The items labelled already, for `unlike`.

    Raises
    ------
    ArgumentError
        For an unknown order or a share out of range.
    """
    one_of("order", order, ORDERS)
    share = (MIX_SHARE if order == "mix" else 0.0) if random_share is None else random_share
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise ArgumentError(f"random_share={share!r} must lie in [0, 1].")
    # The order of rules among equals is not the random order, which must tell nothing of it.
    shuffled = sorted(items, key=lambda item: _dice(seed, "random", item.trace_id))
    ranked = sorted(items, key=lambda item: _dice(seed, "rule", item.trace_id))
    rules: list[tuple[str, Iterator[str]]] = []
    notes: list[str] = []
    if order != "random" and share < 1:
        for name in ("disagreement", "balance", "unlike") if order == "mix" else (order,):
            made = _RULES[name](ranked, labelled or {}, before)
            if made is None:
                notes.append(f"order={order!r}: {_NOTHING[name]}")
            else:
                rules.append((name, made))
    return Drawn(tuple(_draws(shuffled, rules, share)), tuple(notes))


def _draws(
    shuffled: Sequence[Known], rules: list[tuple[str, Iterator[str]]], share: float
) -> Iterator[Chosen]:
    left = len(shuffled)
    taken: set[str] = set()
    by_chance = iter(shuffled)
    turns = deque(rules)
    owed = 0.0
    while left:
        owed += share if turns else 1.0
        choice = None
        if owed < 1 - 1e-9:
            choice = _by_rule(turns, taken)
        else:
            owed -= 1
        if choice is None:
            trace_id = next(item.trace_id for item in by_chance if item.trace_id not in taken)
            choice = Chosen(trace_id, "random", 1 / left)
        taken.add(choice.trace_id)
        left -= 1
        yield choice


def _by_rule(turns: deque[tuple[str, Iterator[str]]], taken: set[str]) -> Chosen | None:
    """The next choice of the rule whose turn it is; rules that have nothing more to say leave."""
    while turns:
        name, rule = turns[0]
        for trace_id in rule:
            if trace_id not in taken:
                turns.rotate(-1)
                return Chosen(trace_id, name, None)
        turns.popleft()
    return None


def _dice(seed: int, purpose: str, trace_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {trace_id}".encode()).digest()


# -- rules: each gives trace ids in its order, or None where it has nothing to go by -----------


def _disagreement(
    items: Sequence[Known], labelled: Mapping[str, Any], before: Sequence[Known]
) -> Iterator[str] | None:
    split = {item.trace_id: max(_split(item.verdicts), _split(item.labels)) for item in items}
    across = {
        item.trace_id: float(bool({*item.verdicts} and {*item.labels} - {*item.verdicts}))
        for item in items
    }
    scored = [i for i in items if split[i.trace_id] or across[i.trace_id]]
    if not scored:
        return None
    # People or samples that differ among themselves, then people who differ from the judge.
    scored.sort(key=lambda i: (split[i.trace_id], across[i.trace_id]), reverse=True)
    return iter([item.trace_id for item in scored])


def _split(values: Sequence[Any]) -> float:
    """How divided votes are: 0 where they agree, 1 - sum of squared shares (Gini) else."""
    counts = Counter(map(repr, values))
    total = sum(counts.values())
    return 1 - sum((n / total) ** 2 for n in counts.values()) if total else 0.0


def _balance(
    items: Sequence[Known], labelled: Mapping[str, Any], before: Sequence[Known]
) -> Iterator[str] | None:
    by_class: dict[str, deque[str]] = {}
    for item in items:
        if guess := _guess(item):
            by_class.setdefault(guess, deque()).append(item.trace_id)
    if not by_class:
        return None
    counts = Counter(map(repr, labelled.values()))
    return _balanced(by_class, counts)


def _guess(item: Known) -> str | None:
    votes = Counter(map(repr, item.verdicts)) or Counter(map(repr, item.labels))
    return min(votes, key=lambda value: (-votes[value], value)) if votes else None


def _balanced(by_class: dict[str, deque[str]], counts: Counter[str]) -> Iterator[str]:
    classes = sorted({*by_class, *counts})
    share = min(BALANCED_SHARE, 1 / len(classes))
    while by_class:
        total = sum(counts.values()) + 1
        # What lacks most of its share; where none lacks any, what there is most of.
        lacking = [c for c in sorted(by_class) if counts[c] < share * total]
        if lacking:
            pick = max(lacking, key=lambda c: share * total - counts[c])
        else:
            pick = max(sorted(by_class), key=lambda c: len(by_class[c]))
        yield by_class[pick].popleft()
        counts[pick] += 1
        if not by_class[pick]:
            del by_class[pick]


def _unlike(
    items: Sequence[Known], labelled: Mapping[str, Any], before: Sequence[Known]
) -> Iterator[str] | None:
    if not any(item.text.strip() for item in items):
        return None
    return _farthest_first(items, before)


def _farthest_first(items: Sequence[Known], before: Sequence[Known]) -> Iterator[str]:
    """Each item the one whose nearest among those before is farthest (Gonzalez 1985).

    Texts are hashed TF-IDF vectors, brought to 128 dimensions by a random projection, and their
    distance is by angle. After 1,000 draws the rest is left to chance.
    """
    import numpy as np

    count = len(items)
    vectors = _vectors([item.text for item in [*items, *before]])
    own, earlier = vectors[:count], vectors[count:]
    nearest = np.full(count, -np.inf, dtype=np.float32)
    for start in range(0, len(earlier), 256):
        np.maximum(nearest, (own @ earlier[start : start + 256].T).max(axis=1), out=nearest)
    if not len(earlier):
        # The first one is the most ordinary: what comes then is unlike it.
        pick = int(np.argmax(own @ own.mean(axis=0)))
        nearest = own @ own[pick]
        nearest[pick] = np.inf
        yield items[pick].trace_id
    for _ in range(min(count - (not len(earlier)), _FARTHEST)):
        pick = int(np.argmin(nearest))
        np.maximum(nearest, own @ own[pick], out=nearest)
        nearest[pick] = np.inf
        yield items[pick].trace_id


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


_Rule = Callable[
    [Sequence[Known], Mapping[str, Any], Sequence[Known]],
    "Iterator[str] | None",
]

_RULES: Final[dict[str, _Rule]] = {
    "disagreement": _disagreement,
    "balance": _balance,
    "unlike": _unlike,
}

_NOTHING: Final = {
    "disagreement": "no trace has verdicts or labels that differ, so the order is random.",
    "balance": "no trace has a verdict to guess its class by, so the order is random.",
    "unlike": "no trace has a text to compare, so the order is random.",
}
