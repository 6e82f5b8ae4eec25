"""Where a judge's own text ends and what was learnt begins: rules, then worked examples.

Whoever adds to instructions writes these headings, each a line of its own, and the embedded
model reads by them. The lines of a worked example are data: text of applications and people,
in which no rule, no allowed value and no end of a scale is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

RULES_HEADING: Final = (
    "People who rated items of this kind go by the rules below. Where a rule and the text above "
    "differ, the rule counts."
)

EXAMPLES_HEADING: Final = "Items that people rated, with their reasons:"


FIELDS: Final = ("inputs", "outputs", "expectations")


_FIELD_LINE = re.compile(rf"\s*(?:{'|'.join(FIELDS)}|why):")

_RATING_LINE = re.compile(r"\s*rating:")


def own_text(instructions: str) -> str:
    """The instructions before anything was learnt.

    >>> own_text(f"Rate it.\\n\\n{RULES_HEADING}\\n- Be strict.")
    'Rate it.'
    """
    own = [line for part, line in _parts(instructions) if part == 0]
    return "\n".join(own).strip()


def taken_apart(instructions: str) -> tuple[str, list[str], list[str]]:
    """(own text, rules, worked examples) of instructions as SIMBA writes them.

    >>> taken_apart(f"Rate it.\\n\\n{RULES_HEADING}\\n- Be strict.")
    ('Rate it.', ['Be strict.'], [])
    """
    base, rules, examples = instructions, "", ""
    base, _, examples = base.partition(f"\n\n{EXAMPLES_HEADING}\n\n")
    base, _, rules = base.partition(f"\n\n{RULES_HEADING}\n")
    stated = [line.removeprefix("- ") for line in rules.split("\n") if line]
    return base, stated, [block for block in examples.split("\n\n") if block]


def rule_lines(instructions: str) -> Iterator[str]:
    """The lines that may state a rule: all but those of worked examples."""
    for paragraph in _paragraphs(instructions, without=EXAMPLES_HEADING):
        # Between its first field and its rating a paragraph is an example, wherever it stands.
        ratings = [n for n, line in enumerate(paragraph) if _RATING_LINE.match(line)]
        last = ratings[-1] if ratings else -1
        within = False
        for number, line in enumerate(paragraph):
            within = (within or _FIELD_LINE.match(line) is not None) and number <= last
            if not within:
                yield line


def example_lines(instructions: str) -> Iterator[str]:
    """The lines that may belong to a worked example: all but those of the rules."""
    for paragraph in _paragraphs(instructions, without=RULES_HEADING):
        yield from paragraph


def _paragraphs(instructions: str, *, without: str) -> Iterator[list[str]]:
    """Lines between blank ones, of the parts that do not stand below a certain heading."""
    paragraph: list[str] = []
    before, left_out = 0, False
    for part, line in _parts(instructions):
        if part != before:
            before, left_out = part, line == without
        if line.strip() and line not in (RULES_HEADING, EXAMPLES_HEADING) and not left_out:
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _parts(instructions: str) -> Iterator[tuple[int, str]]:
    """Each line with the number of headings before it, itself included.

    Only a line feed ends a line: other separators may stand within the text of an example.
    """
    part = 0
    for line in instructions.split("\n"):
        heading = line.strip()
        if heading in (RULES_HEADING, EXAMPLES_HEADING):
            part += 1
            yield part, heading
        else:
            yield part, line
