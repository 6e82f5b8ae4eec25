"""The report stands by itself, says what happened, and is safe whatever the traces hold."""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import workbench
from workbench.alignment.result import Alignment, Certificate
from workbench.errors import ArgumentError, WorkbenchError
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.models.budget import Usage
from workbench.pairing.pairs import Pairs, Split
from workbench.reporting.report import render, write_report
from workbench.scale import Scale
from workbench.store.traces import Example

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \x00\u202e javascript:x"
BROKEN = f"{HOSTILE} \ud800"
YES_NO = Scale.of(["no", "yes"])


def make(judge: list[Any], *, scale: Scale = YES_NO, human: list[Any] | None = None) -> Pairs:
    human = human or ["yes", "no"] * (len(judge) // 2)
    table = pd.DataFrame(
        {
            "trace_id": [f"t{i:03}" for i in range(len(judge))],
            "human": pd.Series(human, dtype=object),
            "judge": pd.Series(judge, dtype=object),
            "human_rationale": f"people say {HOSTILE}",
            "judge_rationale": f"the judge says {HOSTILE}",
            "votes": [{"ana": v, "<b>ben": human[0], "cid": v} for v in human],
        }
    )
    failure = "the judge failed: http://me:hunter2@gw.example/v1?key=sk-123 said <b>no</b>"
    excluded = pd.DataFrame(
        [("x1", "no label"), ("x2", "no label"), ("x3", failure)], columns=["trace_id", "reason"]
    )
    return Pairs(name="q", table=table, excluded=excluded, scale=scale)


def make_judge(instructions: str) -> Any:
    return workbench.make_judge(
        "q",
        f"Judge {{{{ inputs }}}}.\n{instructions}",
        model="openai:/gpt-x",
        base_url="https://me:hunter2@gw.example/v1?key=sk-123",
        extra_headers={"Authorization": "Bearer hunter2"},
    )


BEFORE, AFTER = make(["yes"] * 40), make(["yes", "no"] * 18 + ["yes", "yes", "no", "no"])


def alignment(before: Pairs = BEFORE, after: Pairs = AFTER, **changes: Any) -> Alignment:
    """An alignment whose held-out pairs are those of ``before`` and ``after``."""
    comparison = compare(before, after)
    aligned = make_judge("- Rude answers fail.")
    example = Example(
        "",
        inputs={"question": f"{BROKEN} " + "long " * 500},
        outputs=[{"role": "assistant", "content": BROKEN}],
        expectations={"gold": ["a"]},
    )
    values: dict[str, Any] = {
        "judge": aligned,
        "proposed": aligned,
        "original": make_judge("Be kind."),
        "status": "improved",
        "reason": "Better on held-out items.",
        "optimizer": "SIMBA",
        "evidence": {HOSTILE: ["t000", "t001"], "Rude answers fail.": []},
        "pairs": before,
        "before": comparison.before,
        "after": comparison.after,
        "test_before": before,
        "test_after": after,
        "comparison": comparison,
        "split": Split(before, before, before, seed=0, groups="topic"),
        "annotators": annotator_agreement(before),
        "calls": 1234,
        "reflection_calls": 7,
        "usage": Usage(1241, 50000, 6789, 0.1234, 40000),
        "seconds": 12.34,
        "seed": 0,
        "history": pd.DataFrame([{"step": 1, "candidate": HOSTILE, "dev_score": 0.75}]),
        "preflight": pd.DataFrame(),
        "run_id": "run-1",
        "fingerprints": {"original": "aaaa1111", "aligned": "bbbb2222"},
        "dataset_digest": "da7a5e7",
        "notes": ("a note",),
        "examples": dict.fromkeys(before.trace_ids, example),
    }
    return Alignment(**(values | changes))


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def divided(after: Pairs, **changes: Any) -> Alignment:
    """An alignment of traces that have a tag with two values and outputs of several lengths."""
    examples = {
        i: Example(i, {"question": f"Q{k}"}, "word " * k, tags={"model": ["a", HOSTILE][k % 2]})
        for k, i in enumerate(after.trace_ids)
    }
    before = replace(after, table=after.table.assign(judge="yes"))
    return alignment(before, after, examples=examples, **changes)


def section(html: str, heading: str) -> Page:
    """What stands below a heading."""
    return Page(html.split(f"<h2>{heading}</h2>")[1].split("<h2>")[0])


@pytest.fixture(scope="module")
def html() -> str:
    return render(alignment())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def learned(html: str) -> str:
    return html[html.index("<h2>Learned rules</h2>") : html.index("<h2>Items</h2>")]


@pytest.mark.parametrize(
    "texts",
    [
        ["improved", "Better on held-out items.", "+0.450 [", "kappa", "false positive rate"],
        ["Accuracy 0.500 before and 0.950 after on 40 items: 19 fixed, 1 broken"],
        ["Fixed: 19", "Broken: 1", "Still wrong: 1", "people say", "the judge says", "a note"],
        ["3 people labelled 40 items"],
        ["1,234", "50,000 read, 6,789 written, 40,000 of those read", "$0.1234", "12.3 s"],
        ["aaaa1111", "bbbb2222", "da7a5e7", "run-1", "Python", "mlflow", "topic kept together"],
        ["more characters)", "1 entry"],
        ["+ - Rude answers fail.", "− Be kind.", "{{ inputs }}", "1 line added, 1 removed"],
        ["Made from 2 cases.", "It is not recorded what it was made from."],
    ],
)
def test_it_says_what_happened_and_how_sure_that_is(page: Page, texts: list[str]) -> None:
    """Outcome, items, people, cost, provenance, instructions, rules; long texts are cut."""
    for text in texts:
        assert text in page.text


def test_it_has_a_picture_of_each_kind_and_counts_what_was_left_out(page: Page) -> None:
    """Two confusion matrices, the intervals, a slicing, the labels and the annotators."""
    assert sum(tag == "svg" for tag, _ in page.tags) == 6
    assert re.search(r"no label\s*2", page.text)
    kinds = [attrs.get("class") for tag, attrs in page.tags if tag == "div"]
    assert kinds.count("added") == kinds.count("removed") == kinds.count("kept") == 1


def test_each_rule_has_cases_that_it_was_made_from() -> None:
    """Of many some are shown, first those whose label has a reason."""
    pairs = make(["yes"] * 40)
    pairs.table["human_rationale"] = [""] * 5 + ["since it is rude"] * 35
    given = alignment(pairs=pairs, evidence={HOSTILE: [f"t{i:03}" for i in range(9)]})
    section = learned(render(given))
    assert "Made from 9 cases, of which 3 are shown." in section
    assert section.count("<article>") == section.count("since it is rude") == 3
    assert section.count("the judge says &lt;script&gt;") == 3
    assert "All: t000, t001, t002" in section


def test_nothing_from_traces_labels_or_judges_is_markup(html: str, page: Page) -> None:
    """It is escaped, not evaluated, and no character of it hides or reorders the page."""
    assert not {"script", "img", "iframe", "object", "embed", "link", "a"} & {
        t for t, _ in page.tags
    }
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
    assert "&lt;script&gt;alert(1)" in html
    assert "<b>ben" not in html
    assert "{{ 7*7 }}" in html
    assert not set("\x00\u202e\ud800") & set(html)
    assert "\\u0000\\u202e javascript" in html
    html.encode("utf-8")


def test_it_is_self_contained(page: Page, html: str) -> None:
    """No address is loaded or linked, a policy forbids it besides, and no id is used twice."""
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith("#")
    assert "url(http" not in html
    assert "@import" not in html
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_no_secret_is_in_it(html: str, page: Page) -> None:
    """The endpoint is shown without credentials and query, headers not at all."""
    for secret in ("hunter2", "sk-123", "Bearer", "Authorization"):
        assert secret not in html
    assert "https://gw.example/v1" in page.text


def test_a_judge_with_memory_can_be_reported() -> None:
    """As MemAlign's, at the endpoint of the judge within."""
    from mlflow.genai.judges.optimizers.memalign.optimizer import MemoryAugmentedJudge

    judge = MemoryAugmentedJudge(
        make_judge("Be kind."), "openai:/m", 3, "openai:/e", _defer_init=True
    )
    assert "https://gw.example/v1" in Page(render(alignment(judge=judge, proposed=judge))).text


def test_many_items_are_cut_and_say_so() -> None:
    page = Page(render(alignment(make(["yes"] * 200), make(["yes", "no"] * 100))))
    assert "Fixed: 100" in page.text
    assert "The first 40 of 100." in page.text


def test_what_limits_the_result_is_said_once() -> None:
    """A small test set, the embedded model, and a reason that says it all."""
    before, after = make(["yes"] * 8), make(["yes", "no"] * 4)
    comparison = compare(before, after)
    embedded = workbench.make_judge("q", "{{ inputs }}", model="offline:/rubric")
    judges = dict.fromkeys(("judge", "original", "proposed"), embedded)
    reason = f"{comparison.summary} {comparison.power_note}"
    page = Page(render(alignment(before, after, reason=reason, **judges)))
    assert "no figure obtained with it is a claim about a language model" in page.text
    assert "They are unchanged." in page.text
    assert page.text.count(comparison.summary) == 1
    assert page.text.count(comparison.power_note) == 1


def test_a_rejected_judge_is_shown_as_not_taken() -> None:
    original = make_judge("Be kind.")
    page = Page(render(alignment(status="rejected", reason="It fell.", judge=original)))
    assert "It fell." in page.text
    assert "(not taken)" in page.text
    assert "Rude answers fail." in page.text


def test_what_an_alignment_lacks_is_left_out() -> None:
    """No pairs, annotators, history, examples, tokens or price."""
    empty = make([])
    nothing = {"history": pd.DataFrame(), "examples": {}, "usage": Usage()}
    page = Page(render(alignment(empty, empty, annotators=None, run_id=None, **nothing)))
    assert "not counted by the model" in page.text
    assert "no price is known" in page.text


def test_hostile_classes_and_numbers_can_be_reported() -> None:
    scale = Scale.of([HOSTILE, "other", "third"], ordered=False)
    human = [scale.values[0], "other"] * 5
    pairs = make(human[::-1], scale=scale, human=human)
    assert "<script" not in render(alignment(pairs, pairs))
    numbers = make([float(i) for i in range(40)], scale=Scale("numeric"), human=[1.5] * 40)
    text = Page(render(alignment(numbers, numbers))).text
    assert "Nearer to people" in text
    assert re.search(r"human 1\.5people .{0,200}before 7the judge", text)  # as they were written


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_report(alignment(), "~/report.html") == tmp_path / "report.html"


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A full disk is an error that says where and why, and leaves an earlier report as it was."""
    path = tmp_path / "deep" / "report.html"
    assert write_report(alignment(), str(path), title="<i>Mine</i>") == path
    text = path.read_text(encoding="utf-8")
    assert "<h1>&lt;i&gt;Mine&lt;/i&gt;</h1>" in text
    assert text.rstrip().endswith("</html>")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(WorkbenchError, match=r"report\.html: File too large.*Make room"):
            write_report(alignment(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(WorkbenchError, match="could not be written"):
        write_report(alignment(), path / "below a file" / "report.html")


def test_doubts_about_the_data_stay_in_the_report(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"q": range(21), "a": "answer", "ana": ["good", "poor"] * 10 + [f"<b>{HOSTILE[:20]}"]}
    )
    checked = workbench.check_data(frame, inputs="q", outputs="a", annotators="ana")
    path = write_report(alignment(), tmp_path / "report.html", checked=checked)
    page = Page(path.read_text(encoding="utf-8"))
    assert "occurs once, row 20" in page.text
    assert "script" not in {name for name, _ in page.tags}


def test_slices_and_the_annotator_test_are_of_the_judge_that_came_out() -> None:
    """Held-out figures by tag, length and annotator, as `agreement` and the test have them."""
    html = render(divided(AFTER))
    found = section(html, "Slices of the held-out items")
    assert sum(tag == "svg" for tag, _ in found.tags) == 3
    for by in ("By model", "By length", "By annotator"):
        assert by in found.text
    models = {i: k % 2 for k, i in enumerate(AFTER.trace_ids)}
    for accuracy in workbench.agreement(AFTER, by=models).table["accuracy"]:
        assert f"{accuracy:.3f} [" in found.text
    assert "question" not in found.text  # of which each item has its own
    tested = section(html, "As good as one more annotator?").text
    expected = workbench.alternative_annotator_test(AFTER)
    assert f"wins over {expected.winning_rate:.0%} of the annotators" in tested
    assert f"probability of {expected.advantage_probability:.3f} [" in tested
    rejected = section(render(divided(AFTER, status="rejected")), "Slices of the held-out items")
    assert "1.000 [0.839, 1.000]" in rejected.text  # the original judge never says no
    assert "1.000 [0.839, 1.000]" not in found.text


def test_what_cannot_be_sliced_or_tested_says_why_or_is_left_out() -> None:
    """No heading stands without anything below it."""
    html = render(alignment())
    assert "divides the 40 held-out items into several slices" not in html  # three annotators do
    votes = [{"ana": label} for label in AFTER.table["human"]]
    one = replace(AFTER, table=AFTER.table.assign(votes=votes))
    alone = render(alignment(one, one, annotators=None))
    assert "No tag, input, length, week or annotator divides the 40 held-out items" in alone
    assert "one more annotator" not in alone
    tie = pd.DataFrame({"trace_id": ["x"], "reason": ["annotators tie"]})
    tied = replace(AFTER, excluded=tie)
    why = section(render(alignment(tied, tied)), "As good as one more annotator?").text
    assert "Not tested. The pairs lack 1 item on which annotators differ" in why
    split = replace(alignment(), pairs=tied)  # held-out pairs are split from what was left
    assert why == section(render(split), "As good as one more annotator?").text
    few = make(["yes", "no"] * 6)
    why = section(render(alignment(few, few)), "As good as one more annotator?").text
    assert "No annotator has enough items" in why
    for text in (html, alone):
        assert not re.search(r"</h2>\s*(<h2|</body)", text)
        assert "Certificate" not in text


def test_a_certificate_stands_in_the_report_of_its_judge() -> None:
    table = pd.DataFrame(
        {"value": [0.9], "low": [0.7], "high": [0.97], "n": [40], "threshold": [0.6]},
        index=pd.Index(["kappa"], name="figure"),
    ).assign(passed=True)
    given = Certificate("q", True, table, 40, 2, "", "d", (f"It is not {HOSTILE}.",))
    html = render(alignment(), certificate=given)
    text = section(html, "Certificate").text
    for said in (given.headline, "kappa 0.900 [0.700, 0.970] 40 0.600 yes", "It is not <script>"):
        assert said in text
    assert "<script" not in html
    with pytest.raises(ArgumentError, match="certificate is one of another judge"):
        render(alignment(), certificate=replace(given, fingerprint="f" * 64))


def test_a_thousand_items_are_below_two_megabytes() -> None:
    """Long texts, many fields, many divisions, and each item wrong before or after."""
    before, after = make(["yes"] * 1000), make(["no", "yes"] * 500)
    examples = {
        i: Example(
            i,
            {f"field {n}": f"{k % 3} {'long ' * (1000 if n else 0)}" for n in range(40)}
            | {"name " * 10_000: "x"},
            {f"part {n}": HOSTILE * 100 for n in range(8)},
            {f"gold {n}": "g" * 1000 for n in range(8)},
            {f"tag {n}": str(k % (n + 2)) for n in range(20)},
        )
        for k, i in enumerate(before.trace_ids)
    }
    rules = {f"Rule {n}: {HOSTILE * 5}": before.trace_ids for n in range(30)}
    html = render(alignment(before, after, examples=examples, evidence=rules))
    assert len(html.encode()) < 2_000_000
    shown = section(html, "Slices of the held-out items").text
    assert "Not shown: by tag 3, tag 4" in shown
