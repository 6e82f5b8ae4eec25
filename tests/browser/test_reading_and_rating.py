"""What a person sees and presses in the panels: keys, room, words, lengths, what is read out."""

from __future__ import annotations

import time
from typing import Any

import mlflow
import pandas as pd
import pytest
from hosts import Desk, Notebook, Panel, connected
from mlflow.entities import AssessmentSource
from playwright.sync_api import Locator, expect

import workbench
from workbench.store.labels import label_records

VALUES = ["poor", "fair", "good", "excellent"]
LONG = "\n\n".join(f"Part {i}: " + "all that there is to say about it. " * 6 for i in range(60))

# What was read out since, by the region that a screen reader follows.
HEARD = """
const live = document.querySelector('.wb-sr');
window.heard = [];
new MutationObserver(() => window.heard.push(live.textContent)).observe(live, {childList: true});
"""


def setup(store: str) -> str:
    return connected(store, VALUES)


def panel_of(*questions: str, **options: Any) -> str:
    """A cell that shows a label panel with these questions, by default that of the quality."""
    asked = ", ".join(questions or ["LabelQuestion('quality', scale)"])
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"panel = workbench.LabelPanel(annotator='ana', questions=[{asked}]{given})\npanel"


def traces(outputs: list[Any], inputs: list[Any] | None = None) -> list[str]:
    table = pd.DataFrame(
        {"q": inputs or [f"Question {i}" for i in range(len(outputs))], "a": outputs}
    )
    made = workbench.import_traces(table, inputs="q", outputs="a", progress=False)
    return made.trace_ids


def labels(trace_id: str) -> dict[str, Any]:
    """What the annotator's labels on a trace say, by question."""
    trace = mlflow.get_trace(trace_id, flush=False)
    names = {a.name for a in trace.info.assessments}
    return {
        name: label.value
        for name in names
        for label in label_records([trace], name)
        if label.annotator == "ana"
    }


def opened(notebook: Notebook, width: int | None = None) -> Panel:
    """The panel of the second cell, as wide as that."""
    if width:
        rule = f".wb-frame {{width: {width}px !important}}"
        notebook.page.add_style_tag(content=rule).evaluate("(style) => { style.id = 'as-wide' }")
    notebook.run(0, 1)
    panel = notebook.new_panel()
    panel.at(0)
    panel.focus()
    return panel


def chosen(question: Locator) -> list[str]:
    """The answers that are pressed, as they are read."""
    pressed = question.locator('.wb-choice[aria-pressed="true"]').all_inner_texts()
    return [" ".join(text.split()) for text in pressed]


def out_of_sight(panel: Panel, what: str) -> list[str]:
    """Those of the elements that are not seen, whole, where they stand once nothing moves."""
    return settled(  # type: ignore[no-any-return]
        panel,
        """(root, what) => [...root.querySelectorAll(what)].filter((each) => {
            const {x, y, width, height} = each.getBoundingClientRect();
            const ends = [[0.5, 0.1], [0.5, 0.9], [0.05, 0.5], [0.95, 0.5]];
            return ends.some(([right, down]) => !each.contains(
                document.elementFromPoint(x + right * width, y + down * height)));
        }).map((each) => each.innerText)""",
        what,
    )


def settled(panel: Panel, script: str, argument: Any = None) -> Any:
    """What a script finds of the panel once the notebook around it has come to rest."""
    found, seen, since = None, object(), time.monotonic()
    while time.monotonic() - since < 10:
        found = panel.root.evaluate(
            f"(root, given) => [({script})(root, given), root.getBoundingClientRect().toJSON()]",
            argument,
        )
        if found == seen:
            break
        seen = found
        panel.page.wait_for_timeout(150)
    return found[0] if found else None


@pytest.mark.parametrize("width", [400, 1000])
def test_the_rating_stays_in_sight_beside_a_long_text(desk: Desk, store: str, width: int) -> None:
    """Narrow or wide, before the verdict is shown and after."""
    ids = traces([LONG] * 4)
    said = pd.DataFrame({"trace_id": ids, "value": "fair", "why": LONG[:3000]})
    workbench.set_rubric("quality", LONG[:1500])
    workbench.log_verdicts(
        said, name="quality", source="judge", value="value", rationale="why", progress=False
    )
    cell = (
        "panel = workbench.LabelPanel('quality', annotator='ana', scale=scale, reveal=True)\npanel"
    )
    shape = {"viewport": {"width": 1500, "height": 700}}
    with desk.shows([setup(store), cell], **shape) as notebook:
        panel = opened(notebook, width)
        expect(panel.root.locator(".wb-choice")).to_have_count(5)
        assert out_of_sight(panel, ".wb-choice, .wb-foot button") == []
        text = panel.root.locator(".wb-reading")
        assert text.evaluate(
            "(text) => text.scrollHeight > text.clientHeight && text.clientHeight > 90"
        )
        panel.press("3")
        assert out_of_sight(panel, ".wb-choice") == []
        panel.press("Enter")
        expect(panel.root.locator(".wb-judge")).to_be_visible()
        assert out_of_sight(panel, '.wb-choice[aria-pressed="true"], .wb-own') == []
        assert panel.root.locator(".wb-own").inner_text() == "You: good"
        panel.all_saved()


def test_what_annotators_said_leaves_room_for_the_answers(desk: Desk, store: str) -> None:
    """At 400 pixels, with long reasons: the answers are in sight, and so is which is chosen."""
    ids = traces([LONG] * 2)
    for n, who in enumerate(["ben", "chloe", "dan", "eva"]):
        table = pd.DataFrame({"trace_id": ids, "value": VALUES[n % 2 * 3], "why": LONG[:900]})
        workbench.log_labels(
            table, name="quality", annotator=who, value="value", rationale="why", progress=False
        )
    cell = "panel = workbench.AdjudicationPanel('quality', by='dora', scale=scale)\npanel"
    shape = {"viewport": {"width": 900, "height": 760}}
    with desk.shows([setup(store), cell], **shape) as notebook:
        panel = opened(notebook, 400)
        expect(panel.root.locator(".wb-voice")).to_have_count(4)
        assert out_of_sight(panel, ".wb-choice") == []
        panel.press("2")
        assert chosen(panel.root)
        assert out_of_sight(panel, ".wb-choice") == []


def test_nothing_moves_when_an_answer_is_chosen(desk: Desk, store: str) -> None:
    """Several questions side by side: words stay whole, and each thing is said once."""
    traces(["It is 4."])
    cell = panel_of(
        "LabelQuestion('quality', scale, title='How good is it?')",
        "LabelQuestion('safe', Scale.from_type(bool))",
        "LabelQuestion('stars', Scale('numeric', low=1, high=5, integer=True))",
    )
    places = """(root) => {
        const first = root.querySelector('.wb-question').getBoundingClientRect();
        return [...root.querySelectorAll('.wb-choice, textarea')].map((each) => {
            const {x, y, width, height} = each.getBoundingClientRect();
            return [x - first.x, y - first.y, width, height].map(Math.round);
        });
    }"""
    for width in (1000, 400):
        shape = {"viewport": {"width": 1500, "height": 1300}}
        with desk.shows([setup(store), cell], **shape) as notebook:
            panel = opened(notebook, width)
            before = settled(panel, places)
            for key in "324":
                panel.press(key)
            assert chosen(panel.root) == ["3 good", "2 yes", "4"]
            assert settled(panel, places) == before
            # One line each.
            assert max(height for *_, height in before[:5]) < 40
            assert panel.root.locator(".wb-title").inner_text() == "3 questions as ana"
            asked = panel.root.locator(".wb-asked").all_inner_texts()
            assert asked == ["How good is it?", "safe", "stars"]


def test_the_summary_follows_what_is_saved(desk: Desk, store: str) -> None:
    """The end says what the line above it says, as soon as the kernel has said it."""
    traces(["It is 4."] * 12)
    with desk.shows([setup(store), panel_of()]) as notebook:
        panel = opened(notebook)
        for position in range(12):
            panel.press("s" if position == 5 else "3")
            if position != 5:
                panel.press("Enter")
        panel.at("done")
        panel.all_saved()
        summary = panel.root.locator(".wb-summary")
        expect(summary.locator("h3")).to_have_text("You are through")
        expect(panel.root.locator(".wb-counts")).to_contain_text("11 of 12 labelled")
        expect(summary.locator("table").first).to_contain_text("labelled11skipped1not saved yet0")
        # The name is said once, above.
        assert panel.root.locator(".wb-asked").count() == 0
        expect(panel.root.locator(".wb-title")).to_have_text("quality as ana")


def test_what_others_said_is_in_words_and_by_question(desk: Desk, store: str) -> None:
    """One's own answer first, then the judge's to each question, and what others could not say."""
    ids = traces(["It is 4."])
    said = pd.DataFrame({"trace_id": ids, "quality": "poor", "safe": True, "none": "N/A"})
    for name, of_ben in (("quality", "none"), ("safe", "safe")):
        workbench.log_verdicts(said, name=name, source="j", value=name, progress=False)
        workbench.log_labels(said, name=name, annotator="ben", value=of_ben, progress=False)
    cell = panel_of(
        "LabelQuestion('quality', scale)", "LabelQuestion('safe', Scale.from_type(bool))",
        "LabelQuestion('short', Scale.from_type(bool))", reveal=True,
    )  # fmt: skip
    with desk.shows([setup(store), cell]) as notebook:
        panel = opened(notebook)
        panel.press("3", "1", "2", "Enter")
        expect(panel.root.locator(".wb-voice")).to_have_count(4)
        groups = panel.root.locator(".wb-heard").all_inner_texts()
        assert [" ".join(text.split()) for text in groups] == [
            "quality You: good Judge poor ben Can't judge",
            "safe You: no Judge yes ben yes",
        ]
        expect(panel.root.locator(".wb-reveal")).to_contain_text("No one else has judged: short.")
        panel.press("2", "Enter")  # another mind
        panel.at("done")
        panel.all_saved()
        panel.press("ArrowLeft")
        expect(panel.root.locator(".wb-own").first).to_have_text("You: good first, now fair")


def test_lengths_are_those_of_the_whole(desk: Desk, store: str) -> None:
    """Of what is cut; and that a long text is shown without Markdown is said."""
    chat = [
        {"role": "user", "content": "Say **something** long"},
        {"role": "user", "content": [{"type": "text", "text": "*again* " * 20_000}]},
    ]
    traces(["x" * 5_000_000, "short"], [{"q": "**Why**?"}, {"messages": chat}])
    with desk.shows([setup(store), panel_of()]) as notebook:
        panel = opened(notebook)
        for _ in range(2):
            output = panel.root.locator(".wb-outputs")
            expect(output).to_be_visible()
            if panel.root.locator(".wb-turn").count():
                roles = panel.root.locator(".wb-turn")
                assert roles.nth(0).locator("strong").inner_text() == "something"
                assert "without Markdown" in roles.nth(1).locator(".wb-note").inner_text()
            else:
                heading = output.locator(".wb-sectionhead").inner_text()
                assert heading.lower() == "output 5,000,000 characters"
                assert "without Markdown" in output.locator(".wb-note").inner_text()
                assert "5,000,000 characters" in output.locator(".wb-cut").inner_text()
                panel.press("t")  # as it is: there is nothing to say of Markdown
                assert output.locator(".wb-note").count() == 0
                assert output.locator(".wb-sectionhead").inner_text() == heading
                panel.press("t")
            panel.press("ArrowRight")


def test_what_happens_is_read_out(desk: Desk, store: str) -> None:
    """Going on, saving, skipping and undoing; and the text is one that can be read."""
    traces(["It is 4."] * 5)
    with desk.shows([setup(store), panel_of()]) as notebook:
        panel = opened(notebook)
        page = notebook.page
        page.evaluate(HEARD)
        for key, heard in {
            "3": "quality: good",
            "Enter": "Saving good. Item 2 of 5",
            "s": "Skipped. Item 3 of 5",
            "ArrowRight": "Item 4 of 5",
            "u": "Undone. Item 2 of 5",
            "ArrowLeft": "Item 1 of 5, labelled: good",
        }.items():
            page.evaluate("heard.length = 0")
            panel.press(key)
            page.wait_for_function("heard.length")
            assert page.evaluate("heard.at(-1)") == heard
        expect(page.get_by_role("document", name="The item to judge")).to_be_visible()


def test_the_keys_are_a_dialog_of_their_own(desk: Desk, store: str) -> None:
    """The focus stays within it, Esc ends it from anywhere, and it goes back where it was."""
    traces(["It is 4."] * 2)
    with desk.shows([setup(store), panel_of()]) as notebook:
        panel, page = opened(notebook), notebook.page
        dialog = panel.root.get_by_role("dialog", name="Keys")
        skip = panel.root.get_by_role("button", name="Skip")
        for place in (panel.root, skip):
            place.focus()
            panel.press("?")
            expect(dialog).to_be_visible()
            for key in ("Tab", "Tab", "Shift+Tab", "3", "ArrowRight"):
                panel.press(key)
                assert dialog.evaluate("(each) => each.contains(document.activeElement)")
            panel.root.locator(".wb-help p").click()
            assert dialog.evaluate("(each) => each.contains(document.activeElement)")
            assert dialog.evaluate("(each) => each.matches(':modal')")
            panel.press("Escape")
            expect(dialog).to_be_hidden()
            expect(place).to_be_focused()
        panel.at(0)
        assert chosen(panel.root) == []
        panel.root.get_by_role("button", name="Keys").click()
        panel.press("Escape")
        panel.press("2")
        assert len(chosen(panel.root)) == 1
        assert page.locator(".jp-Dialog").count() == 0


def test_every_key_has_a_button(desk: Desk, store: str) -> None:
    """A button does what its key does, and tells it."""
    traces([LONG] * 3)
    cell = panel_of(
        "LabelQuestion('quality', scale)", "LabelQuestion('safe', Scale.from_type(bool))"
    )
    with desk.shows([setup(store), cell]) as notebook:
        panel = opened(notebook)
        told = panel.root.evaluate(
            """(root) => [...root.querySelectorAll('button')].filter((b) => b.checkVisibility())
                .flatMap((b) => (b.getAttribute('aria-keyshortcuts') ?? '').split(' '))"""
        )
        assert set(told) >= {
            *"1234xrsut?", "Enter", "Space", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown",
            "Shift+R",
        }  # fmt: skip
        button = panel.root.get_by_role("button", exact=True, name="Scroll the text down")
        text = panel.root.locator(".wb-reading")
        places = []
        for act in (button.click, lambda: panel.press("Space")):
            act()
            places.append(text.evaluate("(each) => each.scrollTop"))
            panel.press("Shift+Space")
        assert places[0] == places[1] > 100
        panel.root.get_by_role("button", name="Next question").click()
        panel.press("1")
        assert chosen(panel.root) == ["1 no"]
        panel.root.get_by_role("button", name="Why?").first.click()
        expect(panel.root.get_by_role("textbox", name="Reason: quality")).to_be_focused()


def test_what_was_said_elsewhere_is_no_change_made_here(desk: Desk, store: str) -> None:
    """A second view of the panel, and a label from elsewhere at an item that one has looked at."""
    ids = traces(["It is 4."] * 4)
    cells = [setup(store), panel_of(), "panel", "panel.refresh()"]
    with desk.shows(cells, viewport={"width": 1280, "height": 2000}) as notebook:
        opened(notebook)
        notebook.run(2)
        views = notebook.page.locator(".wb")
        expect(views).to_have_count(2)
        panel, second = Panel(views.first), Panel(views.last)
        second.at(0)
        panel.focus()
        panel.press("3", "Enter")
        panel.at(1)
        panel.all_saved()
        # The other view stands where it stood, and shows what was said.
        expect(second.root.locator(".wb-where")).to_contain_text("saved")
        expect(second.root.locator(".wb-where")).not_to_contain_text("changed")
        assert len(chosen(second.root)) == 1
        second.focus()
        second.press("Enter")
        second.at(1)
        expect(second.root.locator(".wb-hint")).to_have_text("")

        trace_id = panel.trace_id
        assert trace_id in ids
        mlflow.log_feedback(
            trace_id=trace_id, name="quality", value="fair", source=AssessmentSource("HUMAN", "ana")
        )
        notebook.run(3)
        expect(panel.root.locator(".wb-counts")).to_contain_text("2 of 4 labelled")
        panel.focus()
        while panel.trace_id != trace_id:
            panel.press("ArrowLeft" if int(panel.position) > 1 else "ArrowRight")
        expect(panel.root.locator(".wb-where")).to_contain_text("labelled elsewhere")
        expect(panel.root.locator(".wb-where")).not_to_contain_text("changed")
        panel.press("Enter")
        expect(panel.root.locator(".wb-hint")).to_have_text("")
        panel.at(2)
        panel.all_saved()
    assert labels(trace_id) == {"quality": "fair"}


def test_labels_of_an_earlier_rubric_are_gone_through_again(desk: Desk, store: str) -> None:
    """From the end: each comes once more, and is confirmed or changed."""
    ids = traces(["It is 4."] * 3)
    workbench.set_rubric("quality", "First.")
    table = pd.DataFrame({"trace_id": ids[:2], "value": "good"})
    workbench.log_labels(table, name="quality", annotator="ana", value="value", progress=False)
    workbench.set_rubric("quality", "Second, and stricter.")
    with desk.shows([setup(store), panel_of(), "panel.offer_again()"]) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        expect(panel.root).to_have_attribute("data-trace", ids[2])
        panel.focus()
        panel.press("1", "Enter")
        panel.at("done")
        panel.all_saved()
        notebook.run(2)
        panel.focus()
        expect(panel.root.locator(".wb-where")).to_contain_text("offered again")
        seen = [panel.trace_id]
        panel.press("Enter")  # confirmed
        expect(panel.root).not_to_have_attribute("data-trace", seen[0])
        seen.append(panel.trace_id)
        panel.press("2", "Enter")
        panel.at("done")
        panel.all_saved()
    assert sorted(seen) == sorted(ids[:2])
    assert [labels(trace_id)["quality"] for trace_id in (*seen, ids[2])] == ["good", "fair", "poor"]


def test_what_is_offered_again_is_answered_before_the_verdict_is_shown(
    desk: Desk, store: str
) -> None:
    """Where it was never shown, the new answer is as blind as the first one; then it is shown."""
    (trace_id,) = traces(["It is 4."])
    workbench.set_rubric("quality", "First.")
    table = pd.DataFrame({"trace_id": [trace_id], "value": "good"})
    workbench.log_labels(table, name="quality", annotator="ana", value="value", progress=False)
    workbench.log_verdicts(table, name="quality", source="m", value="value", progress=False)
    workbench.set_rubric("quality", "Second, and stricter.")
    with desk.shows([setup(store), panel_of(reveal=True), "panel.offer_again()"]) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at("done")
        notebook.run(2)
        panel.focus()
        expect(panel.root.locator(".wb-where")).to_contain_text("offered again")
        expect(panel.root.locator(".wb-reveal")).to_be_empty()
        panel.press("2", "Enter")
        expect(panel.root.locator(".wb-reveal")).to_contain_text("Judge")
        panel.all_saved()
    (made,) = [
        a
        for a in mlflow.get_trace(trace_id, flush=False).info.assessments
        if "workbench.action" in (a.metadata or {})
    ]
    assert (made.value, made.metadata.get("workbench.after_verdict")) == ("fair", None)
    assert made.metadata["workbench.rubric_version"] == "2"
