"""Orders in which to label traces, and the probability with which each was drawn.

An order is a sequence of draws without replacement from the open items. A random draw has the
probability 1 / (number of items left). A draw that follows a rule (the item on which people
differ most, say) has none. Labels chosen by a rule are no sample of all items. The random draws
among them are, and `workbench.sampled_prevalence` weighs both for an unbiased estimate;
therefore every rule takes a ``random_share``.
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

BALANCED_SHARE: Final = 0.3
"""The share of each class that `balance` aims at; less where there are more than three."""

MIX_SHARE: Final = 0.3
"""The random share of a mix, unless another is asked for."""

_TRUST: Final = 4
"""Labels that a verdict is worth as a guess before there are labels to compare it with."""

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
    """One draw: ``how`` is "random" or the name of a rule; only random draws have a
    ``probability``, in (0, 1]."""

    trace_id: str
    how: str
    probability: float | None


@dataclass(frozen=True)
class Order:
    """Items in the order in which to label them.

    ``notes`` tell of rules that have nothing to go by. Annotators read them, so they hold no
    verdict and nobody's label.
    """

    queue: tuple[Chosen, ...]
    notes: tuple[str, ...] = ()


Ranking: TypeAlias = "Sequence[str] | str"
"""Trace ids in the order of a rule that does not depend on labels, or why there is none."""


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
    ahead: Sequence[Known] = (),
    drawn: int | None = None,
    pool: str = "",
    rankings: dict[str, Ranking] | None = None,
) -> Order:
    """Put open items in the order in which to label them.

    Parameters
    ----------
    items
        The open items.
    order
        ``"random"``; ``"disagreement"``: first where the judge's samples or people differ most;
        ``"balance"``: so that each class gets 30 % of the labels, the judge's verdict being the
        guess, and what was labelled telling how good a guess it is; ``"unlike"``: what is least
        like all before; ``"mix"``: the three rules in turn.
    seed
        The same seed gives the same order of the same items, whatever the order they come in.
    whose
        Name of the annotator, for an order of their own. Empty: the order common to all.
    random_share
        Share of random draws in [0, 1]; by default 0, for a mix 0.3. A draw that a rule has
        nothing to say about is random as well.
    labelled
        Labels that were given already, trace_id -> canonical value, for `balance`.
    before
        The items labelled already, for `unlike`, and for how good the verdicts are as guesses.
    ahead
        Items that are not labelled yet but will be before the first of these.
    drawn
        How many draws were made already, those of ``ahead`` included; by default the number of
        items in ``before`` and ``ahead``. The random share is owed over all of them.
    pool
        Names what is drawn from. When items join, another name shuffles all of them anew, so
        that those that waited and those that are new have equal chances.
    rankings
        Filled with the rankings that labels have no influence on. Given again, they save most of
        the work of ordering the same items anew.

    Raises
    ------
    ArgumentError
        For an unknown order or a share out of range.
    """
    one_of("order", order, ORDERS)
    share = (MIX_SHARE if order == "mix" else 0.0) if random_share is None else random_share
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise ArgumentError(f"random_share={share!r} must lie in [0, 1].")
    shuffled = _shuffled(items, f"{seed} random{pool} {whose}".rstrip())
    rules: list[tuple[str, Iterator[str]]] = []
    lacking: list[tuple[str, str]] = []
    if order != "random" and share < 1:
        rankings = {} if rankings is None else rankings
        # The order among equals is not the random order, which must tell nothing of it.
        among_equals = _shuffled(items, f"{seed} rule {whose}".rstrip())
        for name in ("disagreement", "balance", "unlike") if order == "mix" else (order,):
            rule: Iterator[str] | Ranking
            if name == "balance":
                rule = _balance(among_equals, labelled or {}, before, ahead)
            elif name in rankings:
                rule = rankings[name]
            elif name == "disagreement":
                rule = rankings[name] = _disagreement(among_equals)
            else:
                rule = rankings[name] = _unlike(among_equals, [*before, *ahead])
            if isinstance(rule, str):
                lacking.append((name, rule))
            else:
                rules.append((name, iter(rule)))
    otherwise = "so {} chooses no trace." if rules else "so the order is random."
    notes = [f"order={order!r}: {why}, {otherwise.format(repr(name))}" for name, why in lacking]
    past = len(before) + len(ahead) if drawn is None else drawn
    return Order(tuple(_draws(shuffled, rules, share, past)), tuple(notes))


def _shuffled(items: Sequence[Known], salt: str) -> list[Known]:
    """Order by hash: within one salt, items that are gone move no others."""
    return sorted(
        items, key=lambda item: hashlib.sha256(f"{salt} {item.trace_id}".encode()).digest()
    )


def _draws(
    shuffled: Sequence[Known], rules: list[tuple[str, Iterator[str]]], share: float, past: int
) -> Iterator[Chosen]:
    left = {item.trace_id for item in shuffled}
    by_chance = iter(shuffled)
    turns = deque(rules)
    # An order that is made anew goes on where the former ended: with the random share that is
    # owed, and with the rule whose turn it is.
    due = share * past
    owed = max(0.0, due - math.floor(due + 1e-9))
    turns.rotate(-(past - math.floor(due + 1e-9)))
    while left:
        owed += share if turns else 1.0
        choice = None
        if owed < 1 - 1e-9:
            choice = _by_rule(turns, left)
        else:
            owed -= 1
        if choice is None:
            trace_id = next(item.trace_id for item in by_chance if item.trace_id in left)
            choice = Chosen(trace_id, "random", 1 / len(left))
        left.remove(choice.trace_id)
        yield choice


def _by_rule(turns: deque[tuple[str, Iterator[str]]], left: set[str]) -> Chosen | None:
    """The next choice of the rule whose turn it is; rules that have nothing left are dropped."""
    while turns:
        name, rule = turns[0]
        for trace_id in rule:
            if trace_id in left:
                turns.rotate(-1)
                return Chosen(trace_id, name, None)
        turns.popleft()
    return None


# -- rules: each gives trace ids in its order, or says why it has nothing to go by -------------


def _disagreement(items: Sequence[Known]) -> Ranking:
    split = {item.trace_id: max(_split(item.verdicts), _split(item.labels)) for item in items}
    across = {
        item.trace_id: float(bool({*item.verdicts} and {*item.labels} - {*item.verdicts}))
        for item in items
    }
    scored = [i for i in items if split[i.trace_id] or across[i.trace_id]]
    if not scored:
        return "no trace has verdicts or labels that differ"
    # People or samples that differ among themselves, then people who differ from the judge.
    scored.sort(key=lambda i: (split[i.trace_id], across[i.trace_id]), reverse=True)
    return [item.trace_id for item in scored]


def _split(values: Sequence[Any]) -> float:
    """How divided votes are: 0 where they agree, 1 - sum of squared shares (Gini) else."""
    counts = Counter(map(repr, values))
    total = sum(counts.values())
    return 1 - sum((n / total) ** 2 for n in counts.values()) if total else 0.0


def _balance(
    items: Sequence[Known],
    labelled: Mapping[str, Any],
    before: Sequence[Known],
    ahead: Sequence[Known],
) -> Iterator[str] | str:
    by_class: dict[str, deque[str]] = {}
    for item in items:
        if item.guess:
            by_class.setdefault(item.guess, deque()).append(item.trace_id)
    said = {*by_class, *(g for item in [*before, *ahead] if (g := item.guess))}
    if not said:
        return "no trace has a verdict to guess its class by"
    if len(said) == 1:
        # Not which one: whoever reads this has yet to label blind.
        return "the verdicts tell no class from another"
    counts: dict[str, float] = dict(Counter(map(repr, labelled.values())))
    likely = _likely(said, labelled, before)
    for item in ahead:
        for value, chance in likely.get(item.guess or "", {}).items():
            counts[value] = counts.get(value, 0) + chance
    return _balanced(by_class, counts, likely)


def _likely(
    said: set[str], labelled: Mapping[str, Any], before: Sequence[Known]
) -> dict[str, dict[str, float]]:
    """``likely[verdict][class]``: the shares of classes among what is labelled, the verdict itself
    counting as four labels."""
    seen = {guess: Counter({guess: _TRUST}) for guess in said}
    for item in before:
        if item.guess and item.trace_id in labelled:
            seen[item.guess][repr(labelled[item.trace_id])] += 1
    return {
        guess: {value: n / votes.total() for value, n in votes.items()}
        for guess, votes in seen.items()
    }


def _balanced(
    by_class: dict[str, deque[str]],
    counts: dict[str, float],
    likely: Mapping[str, Mapping[str, float]],
) -> Iterator[str]:
    classes = sorted({*by_class, *counts, *(value for one in likely.values() for value in one)})
    share = min(BALANCED_SHARE, 1 / len(classes))
    total = sum(counts.values()) + 1
    # With one kind left there is nothing to choose: chance draws as well, and says how likely.
    while len(by_class) > 1:
        # What lacks most of its share, from where it is likeliest; where none lacks any, what
        # there is most of.
        lacking = [c for c in classes if counts.get(c, 0) < share * total]
        lacking.sort(key=lambda c: share * total - counts.get(c, 0), reverse=True)
        pick = None
        for value in lacking:
            best = max(sorted(by_class), key=lambda guess: likely[guess].get(value, 0))
            if likely[best].get(value, 0) > 0:
                pick = best
                break
        if pick is None:
            pick = max(sorted(by_class), key=lambda guess: len(by_class[guess]))
        yield by_class[pick].popleft()
        for value, chance in likely[pick].items():
            counts[value] = counts.get(value, 0) + chance
        total += 1
        if not by_class[pick]:
            del by_class[pick]


def _unlike(items: Sequence[Known], before: Sequence[Known]) -> Ranking:
    if not any(item.text.strip() for item in items):
        return "no trace has a text to compare"
    return list(_farthest_first(items, before))


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
