"""What notebooks show of results is escaped, and no character hides or reorders its neighbours."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pandas as pd
import pytest

import workbench
from workbench.formatting import html_table, html_text, plain, text_table
from workbench.metrics.agreement import agreement
from workbench.metrics.annotators import annotator_agreement
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale
from workbench.store.dataset import read_dataset

HOSTILE = "<b>a\x00b\u202etxt.exe\u2066\u200f\x1b[31m</b>"


def unsafe(text: str) -> list[str]:
    """Characters that may hide or reorder text, and markup that came from data."""
    marks = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    found = [c for c in text if c in marks or (not c.isprintable() and c not in "\r\n\t ")]
    return found + ["<b>a"] * ("<b>a" in text)


def pairs() -> Pairs:
    scale = Scale.of([HOSTILE, "other", "third"], ordered=False)
    table = pd.DataFrame({"trace_id": ["t1", "t2"], "human": [HOSTILE, "other"]})
    table = table.assign(judge=HOSTILE, human_rationale=HOSTILE, judge_rationale=HOSTILE)
    table["votes"] = [{HOSTILE: HOSTILE, "ben": "other"}, {}]
    excluded = pd.DataFrame({"trace_id": ["t3"], "reason": [HOSTILE]})
    return Pairs(HOSTILE, table, excluded, scale, notes=(HOSTILE,))


RESULTS = {
    "Pairs": pairs,
    "Agreement": lambda: agreement(pairs()),
    "AnnotatorAgreement": lambda: annotator_agreement(pairs()),
    "Dataset": lambda: read_dataset(
        pd.DataFrame({HOSTILE: ["a", "b"], "out": "c", "who": ["yes", "no"]}),
        inputs=HOSTILE,
        outputs="out",
        annotators="who",
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_show_no_hostile_character(name: str) -> None:
    """Control and bidirectional characters appear as their codes."""
    shown = RESULTS[name]()._repr_html_()
    assert unsafe(shown) == []
    assert "\\u202e" in shown
    shown.encode("utf-8")


def test_every_result_goes_through_the_safe_functions() -> None:
    """No ``_repr_html_`` of the package writes a text or a table by itself."""
    seen, careless = 0, []
    for path in Path(workbench.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name == "_repr_html_":
                seen += 1
                code = ast.get_source_segment(source, node) or ""
                careless += [f"{path.name}:{node.lineno}"] * bool(
                    re.search(r"\.to_html\(|\bescape\(", code)
                )
    assert seen > 10
    assert careless == []


def test_text_of_other_scripts_stays_as_it_is() -> None:
    """Accents, Arabic letters, line feeds and tabs are ordinary text."""
    ordinary = "é \u0645\u0631\u062d\u0628\u0627\n\t"
    assert html_text(ordinary + "<") == ordinary + "&lt;"
    assert html_text("\ud800") == "\\ud800"  # half of a surrogate pair cannot be encoded


def test_tables_show_three_digits_and_nothing_for_nan() -> None:
    """Index and column names are escaped like cells."""
    table = pd.DataFrame({HOSTILE: [0.12345, float("nan")]}, index=[HOSTILE, "x"])
    shown = html_table(table)
    assert unsafe(shown) == []
    assert "0.123" in shown
    assert "NaN" not in shown


def test_plain_data_is_what_json_takes() -> None:
    """Numpy numbers become numbers, tables lists of rows, nan None."""
    table = pd.DataFrame({"a": [1, 2]})
    found = plain({"x": float("nan"), "t": table, "n": table["a"].iloc[0], "d": {1: (1.0,)}})
    assert found == {"x": None, "t": [{"a": 1}, {"a": 2}], "n": 1, "d": {"1": [1.0]}}
    assert type(found["n"]) is int


def test_a_table_as_text_has_its_words_at_the_left() -> None:
    """Under their headings, in one line each; numbers stay at the right, as pandas has them."""
    table = pd.DataFrame({"said": ["yes, \n really", "x"], "n": [1, 20], "why": [None, "because"]})
    assert text_table(table).splitlines() == [
        "said         n why",
        "yes, really  1",
        "x           20 because",
    ]
