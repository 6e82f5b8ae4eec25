"""The report stands by itself, says what happened, and is safe whatever the traces hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import workbench
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.pairing.pairs import Pairs
from workbench.reporting.report import render, write_report
from workbench.scale import Scale

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} \x00 javascript:x"
BROKEN = f"{HOSTILE} \ud800"
YES_NO = Scale.of(["no", "yes"])


def make(judge: list[str], *, scale: Scale = YES_NO, human: list[str] | None = None) -> Pairs:
    human = human or ["yes", "no"] * (len(judge) // 2)
    table = pd.DataFrame(
        {
            "trace_id": [f"t{i:03}" for i in range(len(judge))],
            "human": pd.Series(human, dtype=object),
            "judge": pd.Series(judge, dtype=object),
            "human_rationale": f"people say {HOSTILE}",
            "judge_rationale": f"the judge says {HOSTILE}",
            "votes": [{"ana": v, "<b>ben": "yes", "cid": v} for v in human],
        }
    )
    excluded = pd.DataFrame(
        [
            ("x1", "no label"),
            ("x2", "no label"),
            ("x3", "the judge failed: http://me:hunter2@gw.example/v1?key=sk-123 said <b>no</b>"),
        ],
        columns=["trace_id", "reason"],
    )
    return Pairs(name="q", table=table, excluded=excluded, scale=scale, notes=("a note",))


def make_alignment(**changes: Any) -> SimpleNamespace:
    before = make(["yes"] * 40)
    after = make((["yes", "no"] * 18) + ["yes", "yes", "no", "no"])
    comparison = compare(before, after)
    headers = {"Authorization": "Bearer hunter2"}
    judge = {"name": "q", "model": "openai:/gpt-x", "extra_headers": headers}
    judge |= {"_base_url": "https://me:hunter2@gw.example/v1?key=sk-123", "_extra_headers": headers}
    values: dict[str, Any] = {
        "judge": SimpleNamespace(instructions="Judge {{ inputs }}.\n- Rude answers fail.", **judge),
        "original": SimpleNamespace(instructions="Judge {{ inputs }}.\nBe kind.", **judge),
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
        "split": SimpleNamespace(
            train=before, dev=before, test=before, digest="5p117d16e57", seed=0, groups="topic"
        ),
        "annotators": annotator_agreement(before),
        "calls": 1234,
        "reflection_calls": 7,
        "tokens": 56789,
        "cost": 0.1234,
        "seconds": 12.34,
        "seed": 0,
        "history": pd.DataFrame([{"step": 1, "candidate": HOSTILE, "dev_score": 0.75}]),
        "preflight": pd.DataFrame(),
        "run_id": "run-1",
        "fingerprints": {"original": "aaaa1111", "aligned": "bbbb2222"},
        "dataset_digest": "da7a5e7",
        "examples": {
            i: SimpleNamespace(
                inputs={"question": f"{BROKEN} " + "long " * 500},
                outputs=[{"role": "assistant", "content": BROKEN}],
                expectations={"gold": ["a"]},
            )
            for i in before.trace_ids
        },
    }
    return SimpleNamespace(**(values | changes))


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


@pytest.fixture(scope="module")
def html() -> str:
    return render(make_alignment())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_it_says_what_happened_and_how_sure_that_is(page: Page) -> None:
    assert "improved" in page.text
    assert "Better on held-out items." in page.text
    assert "Accuracy rises from 0.500 to 0.950 on 40 items: 19 fixed, 1 broken" in page.text
    for name in ("accuracy", "kappa", "false positive rate", "false negative rate"):
        assert name in page.text
    assert "+0.450 [" in page.text


def test_it_holds_every_section(page: Page) -> None:
    assert sum(tag == "svg" for tag, _ in page.tags) == 5  # 2 matrices, metrics, labels, people
    assert ("Fixed: 19" in page.text, "Broken: 1" in page.text) == (True, True)
    assert "Still wrong: 1" in page.text
    assert "people say" in page.text
    assert "the judge says" in page.text
    assert "a note" in page.text
    assert "3 people labelled 40 items" in page.text
    for figure in ("1,234", "56,789", "$0.1234", "12.3 s"):
        assert figure in page.text
    for origin in ("aaaa1111", "bbbb2222", "5p117d16e57", "da7a5e7", "run-1", "Python", "mlflow"):
        assert origin in page.text
    assert "topic kept together" in page.text


def test_each_rule_stands_with_cases_that_it_was_made_from(html: str, page: Page) -> None:
    """What people and judge said of some of them, and how many there are; all of it escaped."""
    assert "Made from 2 disagreements." in page.text
    assert "It is not recorded what it was made from." in page.text
    section = html[html.index("<h2>Learned rules</h2>") : html.index("<h2>Items</h2>")]
    assert section.count("<article>") == 2
    assert section.count("people say &lt;script&gt;") == 2
    assert section.count("the judge says &lt;script&gt;") == 2
    assert "&lt;script&gt;alert(1)" in section
    assert "<script" not in section


def test_of_many_cases_some_are_shown_first_those_with_a_reason() -> None:
    given = make_alignment(evidence={"Rude answers fail.": [f"t{i:03}" for i in range(9)]})
    given.pairs.table["human_rationale"] = [""] * 5 + ["since it is rude"] * 35
    html = render(given)
    section = html[html.index("<h2>Learned rules</h2>") : html.index("<h2>Items</h2>")]
    assert "Made from 9 disagreements, of which 3 are shown." in section
    assert section.count("since it is rude") == 3
    assert "All: t000, t001, t002" in section


def test_the_change_of_instructions_is_a_readable_diff(html: str, page: Page) -> None:
    kinds = [attrs.get("class") for tag, attrs in page.tags if tag == "div"]
    assert kinds.count("added") == kinds.count("removed") == kinds.count("kept") == 1
    assert "+ - Rude answers fail." in page.text
    assert "− Be kind." in page.text
    assert "{{ inputs }}" in page.text


def test_left_out_traces_are_counted_by_reason(page: Page) -> None:
    assert re.search(r"no label\s*2", page.text)


def test_nothing_from_traces_labels_or_judges_is_markup(html: str, page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "a", "form", "b0"}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
    assert "<b>ben" not in html
    assert "{{ 7*7 }}" in html  # shown to the letter, not evaluated
    assert "49" not in page.text.replace("0.49", "")
    assert "\x00" not in html
    html.encode("utf-8")


def test_it_is_self_contained(page: Page, html: str) -> None:
    """No address is loaded or linked, and a policy forbids it besides."""
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(name) or "#").startswith("#")
    assert "url(http" not in html
    assert "@import" not in html
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_ids_are_unique_among_the_pictures(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_no_secret_is_in_it(html: str, page: Page) -> None:
    for secret in ("hunter2", "sk-123", "Bearer", "Authorization"):
        assert secret not in html
    assert "https://gw.example/v1" in page.text  # the endpoint itself is told


def test_long_texts_are_cut_and_say_so(page: Page) -> None:
    assert "more characters)" in page.text


def test_many_items_are_cut_and_say_so() -> None:
    before, after = make(["yes"] * 200), make(["yes", "no"] * 100)
    changes = {"comparison": compare(before, after), "test_before": before, "test_after": after}
    page = Page(render(make_alignment(**changes)))
    assert "Fixed: 100" in page.text
    assert "The first 40 of 100." in page.text


def test_a_small_test_set_and_the_embedded_model_are_said_so() -> None:
    before, after = make(["yes"] * 8), make(["yes", "no"] * 4)
    embedded = SimpleNamespace(name="q", instructions="{{ inputs }}", model="offline:/rubric")
    page = Page(
        render(make_alignment(comparison=compare(before, after), judge=embedded, original=embedded))
    )
    assert "8 pairs are too few to tell" in page.text
    assert "no figure obtained with it is a claim about a language model" in page.text
    assert "They are unchanged." in page.text


def test_a_rejected_judge_is_shown_as_not_taken() -> None:
    given = make_alignment()
    page = Page(
        render(
            make_alignment(
                status="rejected",
                reason="Held-out accuracy fell.",
                proposed=given.judge,
                judge=given.original,
            )
        )
    )
    assert "Held-out accuracy fell." in page.text
    assert "(not taken)" in page.text
    assert "Rude answers fail." in page.text


def test_what_an_alignment_lacks_is_left_out() -> None:
    """The least there can be: a status and a judge."""
    judge = SimpleNamespace(name="q", instructions="{{ inputs }}", model="openai:/gpt-x")
    page = Page(render(SimpleNamespace(judge=judge, original=judge, status="unchanged")))
    assert "The judge stays as it was." in page.text
    assert "No judge was scored on held-out items." in page.text
    assert "not counted by the model" in page.text
    empty = make([])
    comparison = compare(empty, empty)
    render(
        make_alignment(
            comparison=comparison,
            before=comparison.before,
            after=comparison.after,
            pairs=empty,
            test_before=empty,
            test_after=empty,
            annotators=annotator_agreement(empty),
            history=pd.DataFrame(),
            examples={},
            cost=None,
        )
    )


def test_hostile_classes_and_numbers_can_be_reported() -> None:
    scale = Scale.of([HOSTILE, "other", "third"], ordered=False)
    human = [scale.values[0], "other"] * 5
    pairs = make(human[::-1], scale=scale, human=human)
    html = render(make_alignment(comparison=compare(pairs, pairs), pairs=pairs, test_before=pairs))
    assert "<script" not in html
    numbers = make([float(i) for i in range(40)], scale=Scale("numeric"), human=[1.5] * 40)  # type: ignore[misc, list-item]
    page = Page(render(make_alignment(comparison=compare(numbers, numbers), pairs=numbers)))
    assert "Nearer to people" in page.text


def test_the_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "report.html"
    assert write_report(make_alignment(), str(path), title="<i>Mine</i>") == path
    text = path.read_text(encoding="utf-8")
    assert "<h1>&lt;i&gt;Mine&lt;/i&gt;</h1>" in text
    assert text.rstrip().endswith("</html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(make_alignment(), path)
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_public_name_is_reachable() -> None:
    assert workbench.write_report is write_report


def test_a_reason_that_says_it_all_is_not_said_twice() -> None:
    before, after = make(["yes"] * 8), make(["yes", "no"] * 4)
    comparison = compare(before, after)
    reason = f"{comparison.summary} {comparison.power_note}"
    page = Page(render(make_alignment(comparison=comparison, reason=reason, notes=("own note",))))
    assert page.text.count(comparison.summary) == 1
    assert page.text.count(comparison.power_note) == 1
    assert "own note" in page.text
