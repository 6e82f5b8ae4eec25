"""A simulated judge and reflection model behind an OpenAI-compatible server on loopback.

It is a SIMULATION: a few rules in Python, no language model. It serves to compare how
optimizers of judges spend their calls and what they make of the same evidence; no figure
obtained with it is a claim about a language model. Nothing in it knows which optimizer asks:
requests are told apart by their prompts, only so that each is answered in the form it wants.

**Items** (`items`) are questions to a shop and replies. A reply has independent *traits*, each
a sentence of its own: three that people object to (it makes a promise that nobody can be sure
of, asks for what the customer wrote already, blames the customer), four that do not matter
(greeting, thanks for patience, help centre, signature), and gushing enthusiasm.

**People** go by a hidden rubric of four criteria: ``no`` if the reply has any of the three,
else ``yes``; the fourth is that tone does not matter. Most of their rationales name the reason
in words, some say nothing, and some mention in passing what did not decide.

**The judge** applies a criterion only if its prompt names it:

- A rule in its instructions that names a trait counts wherever the judge reads that trait (and
  for one topic only, if the rule says so), whether or not the rule is right. It misreads a
  trait in 2 of 100 cases. Where rules for ``yes`` and for ``no`` meet, ``no`` wins in 2 of 3.
- What no rule decides, the *systematic* judge decides by tone: ``yes`` if gushing, else ``no``.
  It always does so, and replies that people object to gush more often than good ones, so that
  it starts at an accuracy of about 0.31. A rule that tone does not matter makes this ``yes``.
- The *noisy* judge knows the rubric without being told, but flips 30 of 100 verdicts, drawn
  anew for each repetition of a request. The more clearly its prompt names what decides, the
  fewer: 5 of 100 in the end.
- Worked examples have a modest effect: a nearly equal reply is rated as its example; else each
  example that shares a trait with the reply lets the judge apply that trait's criterion with
  probability 0.3 if the example's rationale names it, and 0.1 if it only shows it. This may be
  wrong, too: examples also suggest what does not matter.

**The reflection model** does not know the rubric. It counts evidence in the cases of its prompt:

- 1 for a trait where a human rationale names it (of a case on which judge and people differ, or
  whose verdict is not shown), 1/2 where the label or score tells only that judge and people
  differ, and nobody gives a reason; less 1/2 for each unexplained case with the trait and the
  opposite label.
- It names what has at least 1, the strongest first, at most six in an answer, in varying words.
  What rests on a single case it says of that case's topic only. With no evidence it gives
  advice that changes nothing.

**The embedding** of a text is its hashed bag of words.

Answers follow from the seed, the request's text and how often that text was answered before, so
that a run can be repeated.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import base64
import contextlib
import hashlib
import json
import math
import random
import re
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # it is run as a script as well
from loopback import Behaviour, Loopback, completion, serve

# -- the world: traits, items, people -------------------------------------------------------


@dataclass(frozen=True)
class Trait:
    """Something that a reply may have.

    ``share`` of replies have it; ``says`` are the sentences that it is made of, ``seen`` finds
    it in a reply; ``remarks`` are what people say of it, ``does`` what a rule says of it, and
    ``named`` finds it in either.
    """

    name: str
    share: float
    says: tuple[str, ...]
    seen: str
    remarks: tuple[str, ...]
    does: tuple[str, ...]
    named: str


OBJECTIONS = (
    Trait(
        "promise",
        0.28,
        (
            "You will have it by tomorrow noon, guaranteed.",
            "I give you my word that this is settled by Friday.",
            "Rest assured that it will be done today without fail.",
        ),
        r"guaranteed\.|my word|without fail",
        (
            "It promises what nobody can know.",
            "Nobody can guarantee that, it depends on others.",
            "A promise that we may have to break.",
        ),
        (
            "promises a date or an outcome that nobody can be sure of",
            "gives a guarantee for what the company does not control",
        ),
        r"\bpromis|\bguarantee",
    ),
    Trait(
        "asks again",
        0.22,
        (
            "Please send us your order number so that we can look into it.",
            "Could you tell us the order number?",
            "For this we need the number of your order.",
        ),
        r"order number|number of your order",
        (
            "It asks again for what the customer wrote already.",
            "The customer gave the number, and is asked for it again.",
            "Asks for details that are in the message already.",
        ),
        (
            "asks for details that the customer has given already",
            "makes the customer repeat what is in the message already",
        ),
        r"\b(asks?|asked|repeat)\b.*\b(already|again)\b",
    ),
    Trait(
        "blames",
        0.14,
        (
            "You must have overlooked something when you ordered.",
            "This would not have happened had you read our terms.",
            "It seems that you made a mistake on your side.",
        ),
        r"overlooked something|read our terms|on your side",
        (
            "It blames the customer.",
            "Puts the blame on the customer, who did nothing wrong.",
            "Such blame is uncalled for.",
        ),
        ("blames the customer", "puts the blame on the person who wrote"),
        r"\bblam",
    ),
)

IRRELEVANT = (
    Trait(
        "greeting",
        0.3,
        ("Dear {name},", "Hello {name},"),
        r"^\W*(Dear|Hello) ",
        ("Nice that it greets by name.", "The greeting is a bit stiff."),
        ("opens with a greeting by name",),
        r"\bgreet",
    ),
    Trait(
        "patience",
        0.3,
        ("Thank you for your patience.", "We thank you for bearing with us in patience."),
        r"patience",
        ("Good that it thanks for patience.", "The patience phrase is worn out."),
        ("thanks the customer for patience",),
        r"\bpatience",
    ),
    Trait(
        "help centre",
        0.3,
        ("More is in our help centre.", "Our help centre has a page on this."),
        r"help centre",
        ("Good to point to the help centre.", "The help centre need not be mentioned."),
        ("points to the help centre",),
        r"\bhelp centre",
    ),
    Trait(
        "signature",
        0.3,
        ("Regards, {name} from support", "Yours, {name} of the support team"),
        r"from support|support team",
        ("I like a signature.", "The signature looks automatic."),
        ("ends with a signature",),
        r"\bsignature",
    ),
)

TONE = Trait(
    "tone",
    0.0,  # depends on the label, see `items`
    (
        "What a wonderful question, thank you so much for asking!",
        "We are absolutely delighted to hear from you!",
        "You are amazing, and helping you makes our day!",
    ),
    r"wonderful question|absolutely delighted|makes our day",
    (
        "Plain wording, but all that is needed.",
        "Short and dry in tone, and right.",
        "No frills in tone; it does what it must.",
    ),
    (
        "Go by what a reply says and not by its tone: plain wording is no fault.",
        "The tone of a reply does not count, neither for it nor against it.",
        "Enthusiasm earns nothing, and a plain tone costs nothing.",
    ),
    r"\btone\b|\bplain wording",
)

TRAITS = {trait.name: trait for trait in (*OBJECTIONS, *IRRELEVANT, TONE)}
VALUES = ("yes", "no")
SAYS_NOTHING = {
    "yes": ("Fine.", "Nothing wrong with this one.", "I would send it like this."),
    "no": ("Not good enough.", "I would not send this.", "No."),
}

TOPICS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # topic: (how it is recognised, questions, the matter of replies)
    "delivery": (
        r"parcel|delivered",
        (
            "My parcel of order {n} was due on {day} and has not come. Where is it?",
            "Order {n} with the {thing} should have been delivered on {day}. What happened?",
        ),
        (
            "We have asked the carrier where the {thing} is and write to you once they answer.",
            "The {thing} left us on {day} and is with the carrier now.",
        ),
    ),
    "refund": (
        r"refund|money back",
        (
            "I sent the {thing} of order {n} back on {day} and still wait for the refund.",
            "When do I get my money back for order {n}? The {thing} went back on {day}.",
        ),
        (
            "The {thing} arrived here on {day}; accounting checks the payment next.",
            "Your return is booked, and the amount goes to the card that you paid with.",
        ),
    ),
    "login": (
        r"log in|password",
        (
            "I cannot log in since {day}, so I do not see order {n} any more.",
            "The link for a new password does not work. I want to look up order {n}, a {thing}.",
        ),
        (
            "We have reset the account; choose a new password with the link in our next mail.",
            "Please try the link in another browser, since the old page is kept in yours.",
        ),
    ),
    "invoice": (
        r"invoice",
        (
            "The invoice of order {n} names the wrong company. I need it by {day}.",
            "There is no invoice for the {thing} of order {n}, bought on {day}.",
        ),
        (
            "The invoice is corrected and lies in your account under Documents.",
            "We have sent the invoice for the {thing} to your address by mail.",
        ),
    ),
    "damage": (
        r"broken|cracked",
        (
            "The {thing} of order {n} came broken on {day}. What do I do?",
            "I unpacked order {n} on {day} and the {thing} is cracked.",
        ),
        (
            "A label for its return is attached, and a new {thing} is set aside for you.",
            "Keep the box, please; the carrier looks at it when the {thing} is exchanged.",
        ),
    ),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "the 3rd", "the 14th")
THINGS = ("kettle", "desk lamp", "backpack", "blender", "office chair", "raincoat", "speaker")
NAMES = ("Mia", "Jonas", "Ms Ortega", "Mr Lind", "Ada", "Tomasz", "Ms Okoye", "Priya")


@dataclass(frozen=True)
class Item:
    """A question, its reply, the human label (``yes`` or ``no``) and the human rationale."""

    question: str
    answer: str
    label: str
    rationale: str
    traits: frozenset[str]


REMARKS = 0.15
"""Share of rationales that mention what did not decide, where there is something to mention."""


def items(count: int, seed: int = 0) -> list[Item]:
    """``count`` items with labels by the hidden rubric; equal seeds give equal items."""
    rng = random.Random(f"items-{seed}")
    return [_item(rng) for _ in range(count)]


def _item(rng: random.Random) -> Item:
    traits = {t.name for t in (*OBJECTIONS, *IRRELEVANT) if rng.random() < t.share}
    objections = [t for t in OBJECTIONS if t.name in traits]
    label = "no" if objections else "yes"
    if rng.random() < {"yes": 0.3, "no": 0.68}[label]:
        traits.add(TONE.name)
    topic = rng.choice(sorted(TOPICS))
    _, questions, matters = TOPICS[topic]
    words = {
        "n": str(rng.randrange(10_000, 99_999)),
        "day": rng.choice(DAYS),
        "thing": rng.choice(THINGS),
        "name": rng.choice(NAMES),
    }

    def said(trait: Trait) -> list[str]:
        return [rng.choice(trait.says)] if trait.name in traits else []

    greeting, *middle, signature = IRRELEVANT
    body = [rng.choice(matters), *(s for t in (*objections, *middle) for s in said(t))]
    rng.shuffle(body)
    parts = [*said(greeting), *said(TONE), *body, *said(signature)]
    return Item(
        question=rng.choice(questions).format(**words),
        answer=" ".join(parts).format(**words),
        label=label,
        rationale=_rationale(rng, label, traits, objections),
        traits=frozenset(traits),
    )


def _rationale(
    rng: random.Random,
    label: str,
    traits: set[str],
    objections: Sequence[Trait],
) -> str:
    told = rng.random() < 0.85 if objections else TONE.name not in traits and rng.random() < 0.6
    reason = rng.choice(objections) if objections else TONE
    first = rng.choice(reason.remarks if told else SAYS_NOTHING[label])
    by_the_way = [t for t in IRRELEVANT if t.name in traits]
    if by_the_way and rng.random() < REMARKS:
        praise, complaint = rng.choice(by_the_way).remarks
        return f"{first} {praise if label == 'yes' else complaint}"
    return first


# -- reading --------------------------------------------------------------------------------


def draw(*parts: Any) -> float:
    """A number in [0, 1) that follows from its arguments."""
    digest = hashlib.md5("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def traits_of(reply: str) -> set[str]:
    """The traits of a reply."""
    reply = reply.strip().strip("\"'")
    return {name for name, trait in TRAITS.items() if re.search(trait.seen, reply)}


def named_in(text: str) -> set[str]:
    """The traits that a sentence or a rationale names."""
    return {name for name, trait in TRAITS.items() if re.search(trait.named, text, re.IGNORECASE)}


def topic_of(question: str) -> str | None:
    """The topic of a question."""
    for topic, (seen, _, _) in TOPICS.items():
        if re.search(seen, question, re.IGNORECASE):
            return topic
    return None


@dataclass(frozen=True)
class Rule:
    """That a trait decides for ``value``; that it does not matter, for tone (value ``""``)."""

    trait: str
    value: str
    topic: str | None = None

    def text(self, salt: Any) -> str:
        """The rule in words, which vary with ``salt``."""
        does = TRAITS[self.trait].does
        said = does[int(draw(salt, self.trait, "does") * len(does))]
        if self.value:
            forms = (
                f"Rate a reply {self.value} if it {said}.",
                f"A reply that {said} is to be rated {self.value}.",
                f"The rating is {self.value} where a reply {said}.",
            )
            said = forms[int(draw(salt, self.trait, "form") * len(forms))]
        return f"Where the customer writes about {self.topic}: {said}" if self.topic else said


RUBRIC = (*(Rule(trait.name, "no") for trait in OBJECTIONS), Rule(TONE.name, ""))
ADVICE = "Read question and reply with care and weigh all that matters before you decide."
MOST_NAMED = 6


def rules_in(text: str) -> set[Rule]:
    """The rules that a text states, sentence by sentence."""
    found = set()
    for sentence in re.split(r"(?<=[.!?])\s|\n", text):
        about = re.search(r"writes about (\w+)", sentence)
        value = re.search(r"\brat(?:e|ed|ing)\b[^.]*?\b(yes|no)\b", sentence, re.IGNORECASE)
        for name in named_in(sentence):
            decides = "" if name == TONE.name else value.group(1).lower() if value else "no"
            found.add(Rule(name, decides, about.group(1) if about else None))
    return found


@dataclass(frozen=True)
class Example:
    """A worked example in a judge's prompt."""

    reply: str
    label: str
    named: frozenset[str]


_KEYS = {
    "inputs": "question",
    "outputs": "reply",
    **dict.fromkeys(("result", "rating", "label", "verdict", "human_label"), "label"),
    **dict.fromkeys(("rationale", "why", "reason", "human_rationale"), "rationale"),
}
_KEY_LINE = re.compile(rf"^[\s\-*]*({'|'.join(_KEYS)}):\s*(.*)$")
_RECORD_LINE = re.compile(r"^[\s\-*]*(?:Example \d+:\s*)?(\{.*\})\s*$")


def split_prompt(text: str) -> tuple[str, list[Example]]:
    """A judge's instructions without their worked examples, and these.

    Examples are lines ``outputs: ...``, ``rating: ...``, ``why: ...`` and the like, or a record
    with such keys on one line.
    """
    rest: list[str] = []
    records: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        if one_line := _RECORD_LINE.match(line):
            with contextlib.suppress(ValueError, SyntaxError):
                record = ast.literal_eval(one_line.group(1))
                named = {_KEYS[k]: str(v) for k, v in record.items() if k in _KEYS}
                records += [named, {}]
                continue
        if keyed := _KEY_LINE.match(line):
            key = _KEYS[keyed.group(1)]
            if key in records[-1]:
                records.append({})
            records[-1][key] = keyed.group(2)
            continue
        records.append({})
        rest.append(line)
    examples = [
        Example(r["reply"], label, frozenset(named_in(r.get("rationale", ""))))
        for r in records
        if "reply" in r and (label := _value(r.get("label", ""))) is not None
    ]
    return "\n".join(rest), examples


def _value(text: Any) -> str | None:
    plain = str(text).strip().strip("\"'.,").lower()
    return plain if plain in VALUES else None


# -- the judge ------------------------------------------------------------------------------

JUDGE_PROMPT = "You are an expert judge"
_MISREADS = 0.02
_YES_IF_TORN = 1 / 3
_FLIPS, _FLIPS_IF_CLEAR = 0.30, 0.05
_NAMED_BY_EXAMPLE, _SHOWN_BY_EXAMPLE = 0.3, 0.1


@dataclass(frozen=True)
class Verdict:
    value: str
    rationale: str


def judge(system: str, user: str, *, noisy: bool = False, sample: int = 0) -> Verdict:
    """What the simulated judge says to a prompt; ``sample`` numbers equal requests."""
    told = system.partition("Your task:")[2] or system
    told = told.partition("You *must* format your evaluation rating")[0]
    instructions, examples = split_prompt(told)
    question, reply = _question_and_reply(user)
    traits = {
        name for name in TRAITS if (name in traits_of(reply)) != (draw(reply, name) < _MISREADS)
    }
    for example in examples:
        if _alike(example.reply, reply):
            return Verdict(example.label, "It is like one that was rated before.")
    topic = topic_of(question)
    rules = {rule for rule in rules_in(instructions) if rule.topic in (None, topic)}
    rules |= _from_examples(examples, reply, traits)
    if noisy:
        return _noisy(rules, traits, (system, user, sample))
    applying = sorted((r for r in rules if r.value and r.trait in traits), key=str)
    if applying:
        said = {rule.value for rule in applying}
        value = "yes" if draw(reply, "torn") < _YES_IF_TORN else "no"
        value = value if len(said) > 1 else said.pop()
        reason = next(rule.trait for rule in applying if rule.value == value)
        return Verdict(value, f"The reply {TRAITS[reason].does[0]}.")
    if any(rule.trait == TONE.name for rule in rules):
        return Verdict("yes", "Nothing in what it says speaks against it.")
    if TONE.name in traits:
        return Verdict("yes", "The reply is warm and eager to help.")
    return Verdict("no", "The reply lacks warmth.")


def _noisy(rules: set[Rule], traits: set[str], chance: tuple[Any, ...]) -> Verdict:
    objections = [trait.name for trait in OBJECTIONS if trait.name in traits]
    named = {rule.trait for rule in rules}
    clear = (
        float(any(name in named for name in objections))
        if objections
        else sum(rule.trait in named for rule in RUBRIC) / len(RUBRIC)
    )
    wrong = any(  # a rule about what does not matter misleads this judge as well
        rule.value and rule.trait in traits and rule.trait not in objections for rule in rules
    )
    value = "no" if objections or wrong else "yes"
    flips = _FLIPS + (_FLIPS_IF_CLEAR - _FLIPS) * clear
    if draw("flip", *chance) < flips:
        value = "no" if value == "yes" else "yes"
    return Verdict(value, "On the whole it does." if value == "yes" else "On the whole it fails.")


def _question_and_reply(user: str) -> tuple[str, str]:
    question, mark, reply = user.partition("\noutputs:")
    return (question, reply) if mark else (user, user.partition("outputs:")[2] or user)


def _alike(one: str, other: str) -> bool:
    a, b = set(re.findall(r"\w+", one.lower())), set(re.findall(r"\w+", other.lower()))
    return bool(a & b) and len(a & b) / len(a | b) >= 0.9


def _from_examples(examples: Iterable[Example], reply: str, traits: set[str]) -> set[Rule]:
    """The criteria that examples suggest to the judge for this reply."""
    missed: dict[Rule, float] = defaultdict(lambda: 1.0)
    for example in examples:
        shown = traits_of(example.reply)
        for name in example.named & (shown | {TONE.name}):
            shared = name in traits if name != TONE.name else TONE.name not in traits
            if shared:
                missed[_rule(name, example.label)] *= 1 - _NAMED_BY_EXAMPLE
        if not example.named:
            for name in shown & traits:
                missed[_rule(name, example.label)] *= 1 - _SHOWN_BY_EXAMPLE
    return {rule for rule, chance in missed.items() if draw(reply, rule, "example") < 1 - chance}


def _rule(name: str, value: str, topic: str | None = None) -> Rule:
    return Rule(name, "" if name == TONE.name else value, topic)


# -- the reflection model -------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What a reflection prompt shows of one item; None where it does not show it."""

    question: str
    reply: str
    verdict: str | None = None
    label: str | None = None
    rationale: str = ""


@dataclass
class _Evidence:
    weight: float = 0.0
    cases: list[int] = field(default_factory=list)


def reflect(cases: Sequence[Case], instructions: str = "") -> list[tuple[Rule, list[int]]]:
    """The rules that the cases give reason for, the strongest first, each with its cases.

    Rules that ``instructions`` state already are not repeated.
    """
    found: dict[Rule, _Evidence] = defaultdict(_Evidence)
    for index, case in enumerate(cases):
        if case.label is None or case.verdict == case.label:
            continue
        traits, named = traits_of(case.reply), named_in(case.rationale)
        if named:
            for name in named & (traits | {TONE.name}):
                _add(found, _rule(name, case.label), 1.0, index)
        elif case.verdict is not None:
            for name in traits:
                _add(found, _rule(name, case.label), 0.5, index)
            if TONE.name not in traits and case.label == "yes":
                _add(found, _rule(TONE.name, ""), 0.5, index)
    for rule, evidence in found.items():
        evidence.weight -= 0.5 * sum(_speaks_against(case, rule) for case in cases)
    known = rules_in(split_prompt(instructions)[0])
    told = []
    for rule, evidence in sorted(found.items(), key=lambda one: (-one[1].weight, str(one[0]))):
        if len(evidence.cases) == 1:
            topic = topic_of(cases[evidence.cases[0]].question)
            rule = Rule(rule.trait, rule.value, topic)
        general = Rule(rule.trait, rule.value)
        if evidence.weight >= 1 and rule not in known and general not in known:
            told.append((rule, evidence.cases))
    return told[:MOST_NAMED]


def _add(found: dict[Rule, _Evidence], rule: Rule, weight: float, index: int) -> None:
    found[rule].weight += weight
    found[rule].cases.append(index)


def _speaks_against(case: Case, rule: Rule) -> bool:
    """Whether a case has the trait, the opposite label and no other reason for it."""
    if case.label is None or named_in(case.rationale):
        return False
    gushes = TONE.name in traits_of(case.reply)
    if rule.trait == TONE.name:  # the case is as one would expect if tone did matter
        return case.label == ("yes" if gushes else "no")
    return rule.trait in traits_of(case.reply) and case.label != rule.value


# -- prompts of the optimizers, each answered in its own form ---------------------------------


def _sections(text: str) -> dict[str, str]:
    """The fields of a dspy prompt."""
    _, *parts = re.split(r"\[\[ ## (\w+) ## \]\]", text)
    # The closing request repeats the names of the output fields.
    found: dict[str, str] = {}
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        found.setdefault(name, value.strip())
    return found


def _loads(text: str) -> Any:
    """The JSON value that a text begins with."""
    try:
        return json.JSONDecoder().raw_decode(text.strip())[0]
    except ValueError:
        return None


def _case(record: dict[str, Any], **more: Any) -> Case:
    return Case(str(record.get("inputs", "")), str(record.get("outputs", "")), **more)


def _words(rules: Sequence[tuple[Rule, list[int]]], salt: str) -> list[str]:
    return [rule.text(salt) for rule, _ in rules] or [ADVICE]


def _offer_feedback(fields: dict[str, str], salt: str) -> dict[str, Any]:
    """dspy's SIMBA: advice from one item, a better and a worse trajectory."""
    oracle = _loads(fields["oracle_metadata"]) or {}
    worse = _loads(fields["worse_program_outputs"]) or {}
    case = _case(
        _loads(fields["program_inputs"]) or {},
        verdict=_value(worse.get("result", "")),
        label=_value(oracle.get("result", "")),
        rationale=str(oracle.get("rationale", "")),
    )
    instructions = fields["modules_defn"].partition("Original Instructions:")[2]
    told = " ".join(_words(reflect([case], instructions), salt))
    modules = _loads(fields["module_names"]) or re.findall(r"«(.+?)»", fields["module_names"])
    return {
        "discussion": "Worse and better trajectory differ in the verdict.",
        "module_advice": dict.fromkeys(modules or ["self"], told),
    }


def _propose_instruction(fields: dict[str, str], salt: str) -> dict[str, Any]:
    """dspy's GEPA: a new instruction from the old one and a few examples with feedback."""
    cases = []
    for record in _loads(fields["examples_with_feedback"]) or []:
        outputs = record.get("Generated Outputs")
        verdict = _value(outputs.get("result", "")) if isinstance(outputs, dict) else None
        feedback = str(record.get("Feedback", ""))
        right = re.search(r"score of (True|1)", feedback)
        opposite = {"yes": "no", "no": "yes"}.get(verdict or "")
        cases.append(
            _case(
                record.get("Inputs", {}),
                verdict=verdict,
                label=verdict if right else opposite,
                rationale=re.sub(r"This trajectory got a score of \S+", "", feedback),
            )
        )
    current = fields["current_instruction"]
    told = _words(reflect(cases, current), salt)
    return {"new_instruction": "\n".join([current, *(line for line in told if line != ADVICE)])}


def _propose_rules(fields: dict[str, str], salt: str) -> dict[str, Any]:
    """The workbench's SIMBA: rules from many disagreements and agreements."""
    lines = "\n".join([fields["disagreements"], fields.get("agreements", "")]).splitlines()
    cases = [
        _case(
            record,
            verdict=_value(record["judge_verdict"]) if "judge_verdict" in record else None,
            label=_value(record.get("human_label", "")),
            rationale=str(record.get("human_rationale", "")),
        )
        for line in lines
        if isinstance(record := _loads(line), dict)
    ]
    return {"rules": _words(reflect(cases, fields["judge_instructions"]), salt)}


DESCRIPTION_PROMPT = "Say for each rating, in one sentence, how to recognise"
DISTILLATION_PROMPT = "You are helping improve an LLM judge"


def _distil(prompt: str, salt: str) -> dict[str, Any]:
    """MLflow's MemAlign: guidelines from all labelled records, whose verdicts it does not see."""
    told, _, shown = prompt.partition("Here are the user judgement examples:")
    instructions = told.partition("following instructions:")[2].partition("Given a set of")[0]
    guidelines = told.partition("judgements already:")[2].partition("The new guidelines")[0]
    cases, ids = [], []
    for number, body in re.findall(r'\{\s*"id": (\d+),(.*?)\n\}', shown, re.DOTALL):
        record = dict(re.findall(r'^\s*"(\w+)": "(.*)",\s*$', body, re.MULTILINE))
        label = _value(record.get("result", ""))
        cases.append(_case(record, label=label, rationale=record.get("rationale", "")))
        ids.append(int(number))
    rules = reflect(cases, instructions + guidelines)
    return {
        "guidelines": [
            {"guideline_text": rule.text(salt), "source_trace_ids": [ids[i] for i in sources]}
            for rule, sources in rules
        ]
    }


_PROGRAMS = {
    "worse_program_trajectory": _offer_feedback,
    "examples_with_feedback": _propose_instruction,
    "disagreements": _propose_rules,
}


def answer(messages: Sequence[dict[str, Any]], *, noisy: bool, sample: int) -> tuple[str, str]:
    """(kind of the request, the text of its answer) for a chat.

    Kinds are ``judge``, ``reflection`` and ``other``, which nothing that is compared should
    ask for.
    """
    system = "\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    user = str(next((m["content"] for m in messages[::-1] if m["role"] == "user"), ""))
    if system.startswith(JUDGE_PROMPT):
        verdict = judge(system, user, noisy=noisy, sample=sample)
        return "judge", json.dumps({"result": verdict.value, "rationale": verdict.rationale})
    salt = hashlib.md5(f"{system}{user}{sample}".encode()).hexdigest()
    if user.startswith(DISTILLATION_PROMPT):
        return "reflection", json.dumps(_distil(user, salt))
    if DESCRIPTION_PROMPT in user:
        return "reflection", "OK"  # it writes rules
    fields = _sections(user)
    for name, program in _PROGRAMS.items():
        if name in fields:
            found = program(fields, salt)
            return "reflection", _in_dspy_form(found, chat="[[ ## completed ## ]]" in system)
    return "other", "OK"


def _in_dspy_form(found: dict[str, Any], *, chat: bool) -> str:
    if not chat:
        return json.dumps(found)
    parts = [
        f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}"
        for name, value in found.items()
    ]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def embedding(text: str, dimensions: int) -> list[float]:
    """A hashed bag of words of length 1."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()):
        vector[int(draw(word) * dimensions)] += 1.0
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


# -- the server -----------------------------------------------------------------------------


class _Model(Behaviour):
    """Answers chats and embeddings; fails as often as it is told to."""

    paths = ("/v1/chat/completions", "/v1/embeddings")

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def stats(self) -> dict[str, Any]:
        names = ("judge", "reflection", "embedding", "other", "failed", "words")
        counts = {name: self.counts[name] for name in names}
        return {**counts, "most_at_once": self.most_at_once}

    def control(self, changes: dict[str, Any]) -> None:
        super().control(changes)
        self.counts.clear()

    def answer(
        self, path: str, headers: dict[str, str], body: Any
    ) -> tuple[int, dict[str, str], bytes]:
        # What a client adds to a request, such as the answer's schema, changes no answer.
        question = json.dumps([body.get("messages"), body.get("input")])
        key = hashlib.md5(question.encode()).hexdigest()
        self.asked[key] += 1
        fails = draw(self.options.seed, "fails", key, self.asked[key]) < self.options.failures
        if path.endswith("/embeddings"):
            kind, told = "embedding", _embeddings(body)
        else:
            messages = body.get("messages", [])
            noisy, sample = self.options.judge == "noisy", self.answered[key]
            kind, text = answer(messages, noisy=noisy, sample=sample)
            told = completion(text)
            self.answered[key] += not fails
            self.counts["words"] += sum(len(str(m["content"]).split()) for m in messages)
        self.counts[kind] += 1
        self.counts["failed"] += fails
        if fails:
            error = {"message": "simulated failure", "type": "server_error"}
            return 500, {}, json.dumps({"error": error}).encode()
        return 200, {}, told


def _embeddings(body: dict[str, Any]) -> bytes:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors: list[Any] = [embedding(str(t), body.get("dimensions") or 512) for t in texts]
    if body.get("encoding_format") == "base64":
        packed = (struct.pack(f"<{len(v)}f", *v) for v in vectors)
        vectors = [base64.b64encode(p).decode() for p in packed]
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return json.dumps(
        {"object": "list", "data": data, "model": "simulated", "usage": usage}
    ).encode()


class Simulation(Loopback):
    """The server as a context manager: starts the process, stops it by its id.

    Options are those of `main`, by keyword: ``Simulation(latency=0.3, judge="noisy")``.
    `stats` counts requests by kind (``judge``, ``reflection``, ``embedding``, ``other``), the
    ``failed`` ones among them and the ``words`` of all chats.
    """

    script = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 chooses one; it is printed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an answer takes")
    parser.add_argument("--failures", type=float, default=0.0, help="share of 500s")
    parser.add_argument("--judge", choices=("systematic", "noisy"), default="systematic")
    parser.add_argument("--seed", type=int, default=0, help="of the failures")
    parser.set_defaults(script="")  # of statuses, which loopback's own answers follow
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(_Model(parser.parse_args())))


if __name__ == "__main__":
    main()
