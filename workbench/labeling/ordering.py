"""Which trace to label next, how it was chosen and with what probability.

An order is a sequence of draws without replacement from the items that are still open. Where a
draw is random, each item left has the same probability, which is recorded: 1 over the number
of items left. Where a draw follows a rule (the item on which people differ most, say), it has
none: nothing but that item could have been drawn. Labels chosen by a rule say nothing by
themselves about all items; the random draws among them do, and `workbench.sampling` weighs both
together so that the estimate is unbiased. Therefore every rule takes a ``random_share``.

An order may be made again for what is left of it, as labels come in, and when items join. It then
goes on where the former one ended: with the random share that is owed, and with the rule whose
turn it is.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mlflow.entities import Trace, TraceData, TraceInfo

from workbench.errors import ArgumentError, ScaleError, one_of
from workbench.judging.verdicts import choose_version, recorded_verdicts
from workbench.labeling.questions import LabelQuestion
from workbench.scale import ABSTAIN
from workbench.store.labels import label_records, same_person

if TYPE_CHECKING:
    import numpy as np
    from mlflow.genai.judges import Judge
    from numpy.typing import NDArray


CHOSEN_KEY: Final = "workbench.chosen"

PROBABILITY_KEY: Final = "workbench.probability"

DRAW_KEY: Final = "workbench.draw"

POOL_KEY: Final = "workbench.pool"


_LONGEST = 40

_MOST = 10**9


@dataclass(frozen=True)
class Draw:
    """One draw: the ``number`` of it (from 1) out of ``pool`` items, those drawn before counted in.

    ``how`` is "random", the name of a rule, "picked" (gone to by hand, past several open items),
    "elsewhere" (labelled before it was drawn) or "not in the queue". ``probability`` is that of the
    item among those that were left; None unless it was drawn at random.
    """

    how: str
    probability: float | None
    number: int
    pool: int

    def to_metadata(self) -> dict[str, str]:
        """As it is kept with a label."""
        made = {CHOSEN_KEY: self.how, DRAW_KEY: str(self.number), POOL_KEY: str(self.pool)}
        if self.probability is not None:
            made[PROBABILITY_KEY] = f"{self.probability:.9g}"
        return made

    @classmethod
    def of_metadata(cls, told: Mapping[str, Any]) -> Draw | None:
        """As it was kept; None where it was not."""
        try:
            probability = told.get(PROBABILITY_KEY)
            return cls(
                str(told[CHOSEN_KEY]),
                None if probability is None else float(probability),
                int(told[DRAW_KEY]),
                int(told[POOL_KEY]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        """As it is told to the view, which sends it back with a rating."""
        return {
            "how": self.how,
            "probability": self.probability,
            "number": self.number,
            "pool": self.pool,
        }

    @classmethod
    def of_json(cls, raw: Any) -> Draw | None:
        """As the view sends it; None where it sends none, or one without number and pool.

        Raises
        ------
        ArgumentError
            For anything that `to_json` does not make.
        """
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            raise ArgumentError(f"chosen must be an object or null, not {raw!r:.80}.")
        how, probability = raw.get("how"), raw.get("probability")
        if not isinstance(how, str) or not 0 < len(how) <= _LONGEST:
            raise ArgumentError(f"chosen.how must be a short text, not {how!r:.80}.")
        if raw.get("number") is None and raw.get("pool") is None:
            return None
        number, pool = (_count(name, raw.get(name)) for name in ("number", "pool"))
        if (how == "random") != (probability is not None):
            raise ArgumentError(
                f"chosen.probability={probability!r:.40} does not go with how={how!r}: a random "
                "draw has one, and no other has."
            )
        if probability is not None:
            if isinstance(probability, bool) or not isinstance(probability, (int, float)):
                raise ArgumentError(f"chosen.probability is no number: {probability!r:.80}.")
            if not math.isfinite(probability) or not 0 < probability <= 1:
                raise ArgumentError(f"chosen.probability={probability!r} must lie in (0, 1].")
            probability = float(probability)
        return cls(how, probability, number, pool)


def _count(name: str, raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= _MOST:
        raise ArgumentError(f"chosen.{name} must be a count, not {raw!r:.80}.")
    return raw


def known_of(
    infos: Mapping[str, TraceInfo],
    question: LabelQuestion,
    annotator: str,
    judge: Judge | str | None,
) -> dict[str, Known]:
    """What is known of each trace but for the annotator's own labels, by trace id.

    ``judge`` tells whose verdicts count; None: any under the question's name, of one version.
    """
    verdicts = _verdicts(judge or question.name, question, infos)
    return {
        trace_id: Known(
            trace_id,
            f"{info.request_preview or ''} {info.response_preview or ''}",
            verdicts.get(trace_id, ()),
            tuple(_others(info, question, annotator)),
        )
        for trace_id, info in infos.items()
    }


def canonical(question: LabelQuestion, raw: Any) -> Any:
    """The canonical value; None for abstentions and for what lies off the scale."""
    try:
        value = question.read(raw)
    except ScaleError:
        return None
    return None if value is ABSTAIN else value


def _others(info: TraceInfo, question: LabelQuestion, annotator: str) -> list[Any]:
    return [
        value
        for label in label_records([Trace(info, TraceData(spans=[]))], question.name)
        if not same_person(label.annotator, annotator)
        and (value := canonical(question, label.value)) is not None
    ]


def _verdicts(
    judge_or_name: Judge | str, question: LabelQuestion, infos: Mapping[str, TraceInfo]
) -> dict[str, tuple[Any, ...]]:
    """All samples of one version of the judge, canonical, by trace."""
    recorded = {
        i: recorded_verdicts(Trace(info, TraceData(spans=[])), question.name)
        for i, info in infos.items()
    }
    chosen, _, _ = choose_version(judge_or_name, recorded)
    found: dict[str, list[Any]] = defaultdict(list)
    for trace_id, verdicts in chosen.items():
        for verdict in verdicts:
            if verdict.usable and (value := canonical(question, verdict.value)) is not None:
                found[trace_id].append(value)
    return {i: tuple(values) for i, values in found.items()}


Vectors: TypeAlias = "NDArray[np.float32]"


ORDERS: Final = ("random", "disagreement", "balance", "unlike", "mix")


BALANCED_SHARE: Final = 0.3
"""The share of each class that `balance` aims at; less where there are more than three."""


MIX_SHARE: Final = 0.3
"""The random share of a mix, unless another is asked for."""


_TRUST = 4
"""Labels that a verdict is worth as a guess before there are labels to compare it with."""


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

    @cached_property
    def guess(self) -> str | None:
        """Its class by the judge, or by other people where the judge is silent."""
        votes = Counter(map(repr, self.verdicts)) or Counter(map(repr, self.labels))
        return min(votes, key=lambda value: (-votes[value], value)) if votes else None


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
    """The order, and what to tell of it: a rule that had nothing to go by, say.

    ``notes`` are read by who labels, and so hold no verdict and nobody's label.
    ``settled`` are the orders of those rules that what is labelled has no influence on, or why
    there is none; they may be given again to make the rest of the order anew at little cost.
    """

    queue: tuple[Chosen, ...]
    notes: tuple[str, ...] = field(default=())
    settled: Mapping[str, Replayed | str] = field(default_factory=dict, repr=False, compare=False)


class Replayed:
    """An iterator that may be gone through several times; each step is computed once."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._seen: list[str] = []

    def __iter__(self) -> Iterator[str]:
        place = 0
        while True:
            if place == len(self._seen):
                try:
                    self._seen.append(next(self._source))
                except StopIteration:
                    return
            yield self._seen[place]
            place += 1


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
    settled: Mapping[str, Replayed | str] | None = None,
    limit: int | None = None,
) -> Drawn:
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
        Whoever labels in an order of their own; another name gives another order. Empty: the
        order that is common to all.
    random_share
        Share of draws that are random whatever the order, in [0, 1]; by default 0, for a mix 0.3.
        A draw that a rule has nothing to say about is random as well.
    labelled
        Labels that were given already, trace_id -> canonical value, for `balance`.
    before
        The items labelled already, for `unlike`, and for how good the verdicts are as guesses.
    ahead
        Items that are not labelled yet but will be before the first of these.
    drawn
        How many draws were made already, those of ``ahead`` counted in; by default as many as
        there are items in ``before`` and ``ahead``. The random share is owed over all of them.
    pool
        Names what is drawn from. Another name gives another random order: when items join, those
        that waited and those that are new have equal chances only if all are shuffled anew.
        Within a pool, items that are gone move no others.
    settled
        Of an earlier order of the same items, see `Drawn`.
    limit
        Draws that are worked out, where they go by a rule. For an order that is made anew before
        they are used up.

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
    purpose = f"random{pool} {whose}".rstrip()
    among_equals = f"rule {whose}".rstrip()
    shuffled = sorted(items, key=lambda item: _dice(seed, purpose, item.trace_id))
    known = dict(settled or {})
    rules: list[tuple[str, Iterator[str]]] = []
    lacking: list[tuple[str, str]] = []
    if order != "random" and share < 1:
        ranked = sorted(items, key=lambda item: _dice(seed, among_equals, item.trace_id))
        for name in ("disagreement", "balance", "unlike") if order == "mix" else (order,):
            rule: Iterable[str] | str
            if name in known:
                rule = known[name]
            else:
                rule = _RULES[name](ranked, labelled or {}, before, ahead)
                if name != "balance":
                    rule = known[name] = rule if isinstance(rule, str) else Replayed(rule)
            if isinstance(rule, str):
                lacking.append((name, rule))
            else:
                rules.append((name, iter(rule)))
    otherwise = "so {} chooses no trace." if rules else "so the order is random."
    notes = [f"order={order!r}: {why}, {otherwise.format(repr(name))}" for name, why in lacking]
    past = len(before) + len(ahead) if drawn is None else drawn
    made = islice(_draws(shuffled, rules, share, past), limit if rules else None)
    return Drawn(tuple(made), tuple(notes), known)


def _draws(
    shuffled: Sequence[Known], rules: list[tuple[str, Iterator[str]]], share: float, past: int
) -> Iterator[Chosen]:
    left = {item.trace_id for item in shuffled}
    by_chance = iter(shuffled)
    turns = deque(rules)
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
    """The next choice of the rule whose turn it is; rules that have nothing more to say leave."""
    while turns:
        name, rule = turns[0]
        for trace_id in rule:
            if trace_id in left:
                turns.rotate(-1)
                return Chosen(trace_id, name, None)
        turns.popleft()
    return None


@lru_cache(maxsize=2**17)
def _dice(seed: int, purpose: str, trace_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {trace_id}".encode()).digest()


# -- rules: each gives trace ids in its order, or says why it has nothing to go by -------------


def _disagreement(
    items: Sequence[Known],
    labelled: Mapping[str, Any],
    before: Sequence[Known],
    ahead: Sequence[Known],
) -> Iterator[str] | str:
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
    return iter([item.trace_id for item in scored])


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
    """How likely each class is by the verdict, ``likely[verdict][class]``: the shares among what
    is labelled, the verdict itself counting as four labels."""
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


def _unlike(
    items: Sequence[Known],
    labelled: Mapping[str, Any],
    before: Sequence[Known],
    ahead: Sequence[Known],
) -> Iterator[str] | str:
    if not any(item.text.strip() for item in items):
        return "no trace has a text to compare"
    return _farthest_first(items, [*before, *ahead])


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
    [Sequence[Known], Mapping[str, Any], Sequence[Known], Sequence[Known]],
    "Iterator[str] | str",
]


_RULES: Final[dict[str, _Rule]] = {
    "disagreement": _disagreement,
    "balance": _balance,
    "unlike": _unlike,
}
