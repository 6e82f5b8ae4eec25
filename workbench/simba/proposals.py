"""Proposals: what the reflection model is asked, and the candidates made from its answers."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from workbench.models.client import Outcome
from workbench.simba.candidate import Candidate, Case, Item, one_line, words_of
from workbench.simba.reflection import Request

Reflect = Callable[[Sequence[Request], int], list[Outcome]]
"""Asks the reflection model for ``"rules"``; the number is the step."""

DESCRIPTIONS: Final = "describe each rating"
REASONS: Final = "reasons that people gave"
EVERYTHING: Final = "all disagreements"
REWRITE: Final = "rewrite the rules"
CRITERIA: Final = "what people go by"

CRITERIA_TASK: Final = (
    "By which criteria do people go? The cases show labels and reasons of people, whether or not "
    "the judge agrees with them; its verdicts are left out."
)
REWRITE_TASK: Final = (
    "Write the whole list of rules anew, so that it explains all disagreements: keep what holds, "
    "change or leave out what they contradict, put together what says the same. The rules now:"
)

MAX_DESCRIBED: Final = 6  # ratings of a scale that has its ratings described
MAX_DRAWS: Final = 3  # of items from which the ratings are described, each for its own candidate
MAX_SHOWN: Final = 4  # items with each rating in a draw
EACH: Final = 2  # items with each rating that a small judge is shown as worked examples
MAX_REQUESTS: Final = 2 + MAX_DRAWS  # of a step: for rules, for criteria or rules anew, for draws
MAX_REASONS, MAX_REASON = 3, 160  # reasons of people stated for each rating, characters of each
MIN_RATIONALES: Final = 2  # on items the judge gets right, from which criteria are asked for


def requests(
    parent: Candidate,
    wrong: Sequence[Case],
    right: Sequence[Case],
    fields: tuple[str, ...],
    *,
    rewrite: bool,
) -> dict[str, Request]:
    """What to ask, by name: for new rules, for all rules anew, for people's criteria at first."""
    shown = tuple(wrong), tuple(right), fields
    asked = {EVERYTHING: Request(parent.text, *shown, EVERYTHING)}
    if parent.rules and rewrite:
        focus = "\n".join([REWRITE_TASK, *(f"- {rule}" for rule in parent.rules)])
        asked[REWRITE] = Request(replace(parent, rules=()).text, *shown, focus)
    if not parent.rules and sum(bool(case.item.rationale) for case in right) >= MIN_RATIONALES:
        # Where a judge errs by chance, most rationales are on items that it got right.
        asked[CRITERIA] = Request(
            parent.text, (*wrong, *right), (), fields, CRITERIA_TASK, blind=True
        )
    return asked


def by_label(wrong: Sequence[Case], right: Sequence[Case]) -> dict[Any, list[Case]]:
    """Cases of each label, the most telling first: with a rationale, then wrong ones."""
    found: dict[Any, list[Case]] = defaultdict(list)
    for case in sorted([*wrong, *right], key=lambda case: not case.item.rationale):
        found[case.item.label].append(case)
    return found


Draw = Sequence[Sequence[Case]]
"""Some cases of each label."""


def draws(wrong: Sequence[Case], right: Sequence[Case]) -> list[Draw]:
    """As many draws as `MAX_DRAWS`, the most telling cases in the first one."""
    ranked = by_label(wrong, right).values()
    starts = [n * MAX_SHOWN for n in range(MAX_DRAWS)]
    return [
        [[*cases[at % len(cases) :], *cases[: at % len(cases)]][:MAX_SHOWN] for cases in ranked]
        for at in starts
    ]


def descriptions(
    base: Candidate, drawn: Sequence[Draw], values: Sequence[Any], fields: tuple[str, ...]
) -> dict[str, Request]:
    """Ask for a sentence on each of the ratings, once for each draw; nothing if they are many."""
    if not 1 < len(values) <= MAX_DESCRIBED:
        return {}
    asked = Request(base.text, (), (), fields, blind=True, describes=tuple(values))
    shown = enumerate((tuple(itertools.chain(*draw)) for draw in drawn), 1)
    return {f"{DESCRIPTIONS}, draw {n}": replace(asked, disagreements=cases) for n, cases in shown}


def with_reasons(parent: Candidate, wrong: Sequence[Case], right: Sequence[Case]) -> Candidate:
    """State for each rating some short reasons that people gave, in their own words."""
    rules = []
    for label, cases in sorted(by_label(wrong, right).items(), key=lambda one: str(one[0])):
        said = dict.fromkeys(one_line(case.item.rationale).rstrip(".") for case in cases)
        short = [one for one in said if 0 < len(one) <= MAX_REASON][:MAX_REASONS]
        if short:
            rules.append(f"{label}: people said " + ", ".join(f'"{one}"' for one in short))
    return parent.with_rules(rules, REASONS) if len(rules) > 1 else parent


def children(parent: Candidate, answers: Mapping[str, Sequence[str]]) -> list[Candidate]:
    """Make candidates from the rules that were answered under the names of the requests."""
    made = []
    alone = sum(map(bool, answers.values())) == 1
    for name, rules in answers.items():
        if name == REWRITE:
            made.append(parent.rewritten(rules, REWRITE))
            continue
        # Rules come strongest first.
        strongest = rules[: math.ceil(len(rules) / 2)]
        made.append(parent.with_rules(strongest, f"strongest rules: {name}"))
        if name == CRITERIA or alone:
            made.append(parent.with_rules(rules, f"rules: {name}"))
    return [child for child in made if child.rules and child.rules != parent.rules]


def with_examples(
    parent: Candidate,
    wrong: Sequence[Case],
    fields: Sequence[str],
    limit: int,
    rng: random.Random,
) -> Candidate:
    """Show disagreements of different labels, if possible with rationale."""
    ranked = sorted(wrong, key=lambda case: (not case.item.rationale, rng.random()))
    first: dict[Any, Item] = {}
    for case in ranked:
        first.setdefault(case.item.label, case.item)
    return parent.with_examples(list(first.values())[:limit], fields, limit)


def for_small_judges(
    base: Candidate,
    drawn: Sequence[Draw],
    described: Mapping[str, Sequence[str]],
    fields: Sequence[str],
    limit: int,
) -> list[Candidate]:
    """Candidates of descriptions, each with items of its draw, or of examples alone.

    All have the rationale first: a small model that has to rate before it has said why may give
    one rating whatever it is told.
    """
    told = [
        (base.with_rules(rules, name).with_rationale_first(), draw)
        for (name, rules), draw in zip(described.items(), drawn, strict=False)
        # Several ratings, each described by a sentence of its own.
        if len({words_of(rule.partition(": ")[2]) for rule in rules}) == len(rules) > 1
    ]
    alone = [(base.with_rationale_first(), drawn[0])]
    return [with_draw(one, draw, fields, limit) for one, draw in told or alone]


def with_draw(base: Candidate, draw: Draw, fields: Sequence[str], limit: int) -> Candidate:
    """Show up to `EACH` items with each label, the labels in turn."""
    each = min(EACH, max(1, limit // len(draw)))
    turns = (case for i in range(each) for cases in draw for case in cases[i : i + 1])
    items = [case.item for case in itertools.islice(turns, limit)]
    shown = replace(base, examples={}).with_examples(items, fields, limit)
    return replace(shown, origin=f"{base.origin}, examples") if items else base
