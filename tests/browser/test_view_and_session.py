"""The panel's view in a browser and a real session, with nothing but a wire between them.

There is neither Jupyter nor a kernel: the test carries the messages, so it decides which of them
are late and which are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
import pandas as pd
import pytest
from hostile import HARMFUL, HOSTILE, UNSEEN
from hosts import Panel
from made_pairs import make_pairs
from mlflow.entities import AssessmentSource
from playwright.sync_api import Browser, BrowserContext, Page, expect

import workbench
from workbench.labeling.exploration import NOTE, Exploration
from workbench.labeling.sessions import LabelSession
from workbench.widgets.content import prepared, prepared_setup
from workbench.widgets.explorer import Explorer
from workbench.widgets.panels import LabelPanel
from workbench.widgets.progress import AlignmentView

PATIENCE = 16_000  # milliseconds after which the view sends again what was not answered

# What a widget's model is to its view.
STAND_IN = """
async ({code, setup, state}) => {
    const address = URL.createObjectURL(new Blob([code], {type: 'text/javascript'}));
    const handlers = {};
    window.sent = [];
    const held = {setup, state, parts: []};
    const model = {
        get: (name) => held[name],
        on: (name, handler) => (handlers[name] ??= []).push(handler),
        off: () => {},
        send: (message) => sent.push(message),
    };
    window.tell = (messages, news) => {
        for (const message of messages) handlers['msg:custom'].forEach((each) => each(message));
        Object.assign(held, news);
        for (const name of Object.keys(news)) handlers[`change:${name}`].forEach((each) => each());
    };
    const {render} = (await import(address)).default;
    render({model, el: document.body, signal: new AbortController().signal});
}
"""


class Wire:
    """A view and a session, and what is under way between them."""

    def __init__(self, context: BrowserContext, session: LabelSession) -> None:
        self.session = session
        self.to_page: list[dict[str, Any]] = []
        session.on_message = self.to_page.append
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        address = "http://127.0.0.1/panel"
        self.page.route(address, lambda route: route.fulfill(body="", content_type="text/html"))
        self.page.goto(address)
        self.page.add_style_tag(content=str(LabelPanel._css))
        self.page.evaluate(STAND_IN, {"code": str(LabelPanel._esm), **self.news()})
        self.panel = Panel(self.page.locator(".wb"))
        self.carry()
        self.panel.at(session.position)
        self.panel.focus()

    def sent(self) -> list[dict[str, Any]]:
        """What the page has sent since it was asked last."""
        self.page.clock.run_for(50)
        return list(self.page.evaluate("sent.splice(0)"))

    def carry(self) -> None:
        """All that is under way arrives, and what it brings about, until all is written."""
        for _ in range(10):
            messages = self.sent()
            for message in messages:
                self.to_page += self.session.receive(message)
            assert self.session.flush(30)
            if not messages and not self.to_page:
                return
            self.tell()

    def tell(self) -> None:
        """What the session has said arrives in the page."""
        said = self.to_page[:]
        del self.to_page[: len(said)]
        messages = list(map(prepared, said))
        self.page.evaluate("([said, news]) => tell(said, news)", [messages, self.news()])

    def news(self) -> dict[str, Any]:
        """What a widget's model holds for the view."""
        return {"setup": prepared_setup(self.session.setup()), "state": self.session.state()}


SCALE = workbench.Scale.of(["poor", "fair", "good"])


def imported(begin: int, end: int) -> list[str]:
    """Traces of sums, by the numbers that are added."""
    table = pd.DataFrame({"question": [f"What is {i} + {i}?" for i in range(begin, end)]})
    table["answer"] = [f"It is **{2 * i}**." for i in range(begin, end)]
    made = workbench.import_traces(table, inputs="question", outputs="answer", progress=False)
    return made.trace_ids


@contextmanager
def wired(browser: Browser, **options: Any) -> Iterator[Wire]:
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.clock.install()
    try:
        yield Wire(context, LabelSession("quality", annotator="ana", scale=SCALE, **options))
    finally:
        context.close()


@pytest.fixture
def wire(browser: Browser, store: str) -> Iterator[Wire]:
    imported(0, 6)
    with wired(browser) as made:
        yield made


def delete(trace_id: str) -> None:
    experiment = mlflow.get_experiment_by_name("test")
    mlflow.MlflowClient().delete_traces(experiment.experiment_id, trace_ids=[trace_id])


def counting(trace_id: str) -> list[Any]:
    """The labels of a trace that count."""
    found = mlflow.get_trace(trace_id, flush=False).info.assessments
    return [one.value for one in found if one.valid]


def acts(messages: list[dict[str, Any]]) -> list[list[str]]:
    """The ids of the actions in each message that brings some."""
    return [[a["id"] for a in m["actions"]] for m in messages if m["type"] == "act"]


def test_what_is_not_answered_is_sent_again_until_it_is(wire: Wire) -> None:
    """And nothing is sent once the page has heard that all is saved."""
    trace_id = wire.panel.trace_id
    wire.panel.press("2", "Enter")
    ((action,),) = acts(wire.sent())  # lost
    wire.page.clock.run_for(PATIENCE)
    messages = wire.sent()
    assert acts(messages) == [[action]]
    for message in messages:
        wire.session.receive(message)
    assert wire.session.flush(30)
    assert counting(trace_id) == ["fair"]
    wire.to_page.clear()  # the answer is lost
    expect(wire.panel.root).to_have_attribute("data-unsaved", "1")
    wire.page.clock.run_for(3 * PATIENCE)
    wire.carry()
    expect(wire.panel.root).to_have_attribute("data-unsaved", "0")
    wire.page.clock.run_for(20 * PATIENCE)
    assert acts(wire.sent()) == []
    assert counting(trace_id) == ["fair"]
    assert len(mlflow.get_trace(trace_id, flush=False).info.assessments) == 1


def test_a_correction_holds_though_the_first_rating_comes_later(wire: Wire) -> None:
    """The first rating was lost on its way and is sent again after the correction was saved."""
    trace_id = wire.panel.trace_id
    wire.panel.press("1", "Enter")
    wire.sent()  # lost
    wire.panel.press("ArrowLeft", "3", "Enter")
    wire.carry()
    for _ in range(3):
        wire.page.clock.run_for(PATIENCE)
        wire.carry()
    expect(wire.panel.root).to_have_attribute("data-unsaved", "0")
    assert counting(trace_id) == ["good"]
    wire.panel.press("ArrowLeft")
    chosen = wire.panel.root.locator(".wb-choice[aria-pressed=true]")
    expect(chosen).to_contain_text("good")


def test_what_was_undone_stays_so_though_the_rating_comes_later(wire: Wire) -> None:
    """The rating was lost on its way, and is sent again after it was taken back."""
    trace_id = wire.panel.trace_id
    wire.panel.press("1", "Enter")
    wire.sent()  # lost
    wire.panel.press("u")
    wire.carry()
    for _ in range(3):
        wire.page.clock.run_for(PATIENCE)
        wire.carry()
    expect(wire.panel.root).to_have_attribute("data-unsaved", "0")
    assert counting(trace_id) == []


def test_items_that_were_read_before_a_label_was_saved_do_not_hide_it(wire: Wire) -> None:
    """They come after the word that it is saved: the item is shown as saved all the same."""
    trace_id = wire.panel.trace_id
    (late,) = wire.session.receive({"type": "want", "start": 0, "count": 6})
    wire.panel.press("2", "Enter")
    wire.carry()
    wire.to_page.append(late)
    wire.tell()
    wire.panel.press("ArrowLeft")
    wire.panel.at(0)
    assert wire.panel.trace_id == trace_id
    expect(wire.panel.root).to_have_attribute("data-unsaved", "0")
    chosen = wire.panel.root.locator(".wb-choice[aria-pressed=true]")
    expect(chosen).to_contain_text("fair", timeout=5_000)


def test_what_is_on_its_way_is_not_asked_for_again(browser: Browser, store: str) -> None:
    imported(0, 40)
    with wired(browser) as wire:
        wire.to_page += wire.session.refresh()
        wire.tell()
        (want,) = wire.sent()
        wire.panel.press("ArrowRight")
        assert wire.sent() == []
        wire.to_page += wire.session.receive(want)
        wire.tell()
        assert wire.sent() == []


def test_traces_that_join_leave_the_item_where_it_is(wire: Wire) -> None:
    """Someone has gone back to it and is writing a reason, of which no letter is lost."""
    for _ in range(4):
        wire.panel.press("2", "Enter")
    wire.carry()
    wire.panel.press("ArrowLeft", "ArrowLeft", "ArrowLeft", "r")
    wire.panel.at(1)
    trace_id = wire.panel.trace_id
    wire.page.keyboard.type("it is ")
    imported(6, 9)
    wire.session.reread()
    assert [m["type"] for m in wire.to_page].count("queue") == 1
    wire.tell()
    wire.page.keyboard.type("so")  # before the items come again
    wire.carry()
    wire.page.keyboard.type(" then")
    assert (wire.session.progress["total"], wire.panel.trace_id) == (9, trace_id)
    expect(wire.panel.root.locator(".wb-rationale")).to_have_value("it is so then")
    expect(wire.panel.root.locator(".wb-counts")).to_contain_text("4 of 9 labelled")
    wire.panel.press("Control+Enter")
    wire.panel.at(4)


def test_a_view_asks_for_what_is_done_elsewhere_while_it_is_seen(wire: Wire) -> None:
    """Half a minute after the last answer, and once at a time, however busy the kernel is."""

    def asked(seconds: int) -> int:
        wire.page.clock.run_for(1000 * seconds)
        return [m["type"] for m in wire.sent()].count("refresh")

    assert [asked(25), asked(10), asked(600)] == [0, 1, 0]
    source = AssessmentSource("HUMAN", "ana")
    trace_id = str(wire.panel.trace_id)
    mlflow.log_feedback(trace_id=trace_id, name="quality", value="fair", source=source)
    wire.to_page += wire.session.receive({"type": "refresh", "stay": True})
    wire.carry()
    expect(wire.panel.root.locator(".wb-counts")).to_contain_text("1 of 6 labelled")
    wire.panel.at(0)
    wire.page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.isHidden})")
    wire.page.evaluate("window.isHidden = true")
    assert asked(60) == 0
    wire.page.evaluate("window.isHidden = false")
    assert asked(2) == 1


def test_a_view_asks_for_nothing_where_that_is_switched_off(browser: Browser, store: str) -> None:
    imported(0, 1)
    with wired(browser, refresh_every=None) as wire:
        wire.page.clock.run_for(600_000)
        assert wire.sent() == []


def test_a_new_rubric_is_shown_beside_what_is_typed(wire: Wire) -> None:
    """It comes by itself, and no letter of a reason is lost or taken for a key."""
    wire.panel.press("2", "r")
    wire.page.keyboard.type("it is ")
    workbench.set_rubric("quality", "Facts first.")
    wire.session.reread()
    wire.carry()
    wire.page.keyboard.type("so")
    expect(wire.panel.root.locator(".wb-rubric")).to_contain_text("Facts first.")
    expect(wire.panel.root.locator(".wb-rationale")).to_have_value("it is so")
    expect(wire.panel.root.locator(".wb-choice[aria-pressed=true]")).to_contain_text("fair")
    wire.panel.at(0)


def test_a_change_of_mind_is_that_of_its_question(browser: Browser, store: str) -> None:
    """The others are not said again, and each shows the reason that was given last."""
    imported(0, 2)
    asked = [workbench.LabelQuestion(name, SCALE) for name in ("quality", "tone")]
    with wired(browser, questions=asked, reveal=True) as wire:
        reasons = wire.panel.root.locator(".wb-rationale")
        wire.panel.press("1", "1")
        for field in (0, 1):
            reasons.nth(field).fill("too short")
        wire.panel.press("Enter")
        wire.carry()
        wire.panel.press("3")
        reasons.nth(0).fill("I missed it")
        wire.panel.press("Enter")
        for _ in range(2):
            wire.panel.at(1)
            wire.panel.press("ArrowLeft")
            expect(reasons.nth(0)).to_have_value("I missed it")
            expect(reasons.nth(1)).to_have_value("too short")
            wire.panel.press("ArrowRight")
            wire.carry()
        changed = wire.session.labels.set_index("question")["changed_to"]
        assert changed.to_dict() == {"quality": "good", "tone": None}


@pytest.fixture
def points(browser: Browser, store: str) -> Iterator[Wire]:
    """Two items with one question that has to be answered and an optional number."""
    imported(0, 2)
    points = workbench.Scale.from_type(float)
    asked = [
        workbench.LabelQuestion("quality", SCALE),
        workbench.LabelQuestion("points", points, required=False),
    ]
    with wired(browser, questions=asked) as made:
        yield made


def test_what_is_erased_or_no_number_is_not_passed_over(points: Wire) -> None:
    """A saved answer is not taken back by an empty field; 1,000 may be two numbers."""
    field, hint = points.panel.root.locator(".wb-input"), points.panel.root.locator(".wb-hint")
    points.panel.press("1")
    for typed, told in (("1,000", "1,000 cannot be read"), ("1,5", "")):
        field.fill(typed)
        points.panel.press("Enter")
        expect(hint).to_contain_text(told)
    points.carry()
    points.panel.press("ArrowLeft")
    points.panel.at(0)
    for typed, told in (("abc", "abc cannot be read"), ("", "A saved answer is not taken back")):
        field.fill(typed)
        points.panel.press("Enter")
        expect(hint).to_contain_text(told)
    assert list(points.session.labels["value"]) == ["poor", 1.5]


def test_a_number_stands_as_it_is_typed(points: Wire) -> None:
    """Also while another question is answered, until the question is said not to be judgeable."""
    field = points.panel.root.locator(".wb-input")
    for typed in ("1,000", "12."):
        field.fill(typed)
        points.panel.root.get_by_role("button", name="fair").click()
        expect(field).to_have_value(typed)
    field.fill("1,000")
    points.panel.root.get_by_role("button", name="Can't judge").last.click()
    expect(field).to_have_value("")
    points.panel.press("Enter")
    points.panel.at(1)
    points.carry()
    assert list(points.session.labels["value"]) == ["fair", None]


def test_a_field_that_nobody_has_touched_changes_nothing(browser: Browser, store: str) -> None:
    """Neither a reason with other line ends nor a number beyond the limits of the question."""
    ids = imported(0, 2)
    table = pd.DataFrame({"trace_id": ids[:1], "v": "fair", "n": 7.0, "why": "one\r\ntwo"})
    given = {"annotator": "ana", "rationale": "why", "progress": False}
    workbench.log_labels(table, name="quality", value="v", **given)
    workbench.log_labels(table, name="points", value="n", **given)
    points = workbench.Scale("numeric", low=1, high=5)
    asked = [
        workbench.LabelQuestion("quality", SCALE),
        workbench.LabelQuestion("points", points),
    ]
    with wired(browser, questions=asked) as wire:
        wire.panel.at(1)
        wire.panel.press("ArrowLeft", "ArrowRight", "ArrowLeft")
        wire.panel.at(0)
        expect(wire.panel.root.locator(".wb-input")).to_have_value("7")
        expect(wire.panel.root.locator(".wb-where")).to_contain_text("saved")
        wire.panel.press("Enter")
        wire.panel.at(1)
        wire.carry()
        assert len(mlflow.get_trace(ids[0], flush=False).info.assessments) == 2


def test_a_reason_without_an_answer_is_not_passed_over(points: Wire) -> None:
    points.panel.press("1")
    points.panel.root.locator(".wb-rationale").nth(1).fill("too few")
    points.panel.press("Enter")
    expect(points.panel.root.locator(".wb-hint")).to_contain_text("Not rated yet")
    points.panel.at(0)


def test_keys_work_on_where_more_of_a_text_was_shown(browser: Browser, store: str) -> None:
    """Also where the panel is painted anew: it stays open, at the place that was come to."""
    table = pd.DataFrame({"q": ["word " * 9000] * 2, "a": "yes"})
    workbench.import_traces(table, inputs="q", outputs="a", progress=False)
    with wired(browser) as wire:
        wire.panel.press("t")  # plain text, of which the beginning is shown
        wire.page.get_by_role("button", name="more characters").press("Enter")
        wire.page.keyboard.press("2")
        expect(wire.panel.root.locator(".wb-choice[aria-pressed=true]")).to_contain_text("fair")
        reading = wire.panel.root.locator(".wb-reading")
        reading.evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
        place = reading.evaluate("(box) => box.scrollTop")
        wire.tell()  # with a setup, after which all is painted
        assert reading.evaluate("(box) => box.scrollTop") == place


def test_a_rubric_and_what_others_said_scroll_by_key(browser: Browser, store: str) -> None:
    """While they have the focus; elsewhere the keys go to the text and the questions."""
    ids = imported(0, 2)
    long = "\n\n".join(f"line {i}" for i in range(60))
    workbench.set_rubric("quality", long)
    table = pd.DataFrame({"trace_id": ids, "v": "good", "why": long})
    workbench.log_labels(table, name="quality", annotator="ben", value="v", rationale="why")
    with wired(browser, reveal=True) as wire:
        for box in (".wb-rubric .wb-boxed", ".wb-reveal"):
            scrolled = wire.panel.root.locator(box)
            scrolled.evaluate("(box) => { box.onscroll = () => { box.dataset.moved = 'yes'; }; }")
            scrolled.focus()
            wire.page.keyboard.press("PageDown")
            expect(scrolled).to_have_attribute("data-moved", "yes")
            wire.panel.focus()
            wire.panel.press("2", "Enter")
            wire.carry()


def test_why_nothing_is_saved_is_told_in_a_narrow_place(wire: Wire) -> None:
    wire.page.set_viewport_size({"width": 400, "height": 800})
    wire.panel.press("2", "Enter")
    wire.page.clock.run_for(2 * PATIENCE)
    expect(wire.panel.root.locator(".wb-why-not")).to_contain_text("run the cell again")
    # In one step, since it is painted again every second.
    ends = """(root) => [".wb-head", ".wb-why-not"].map((one) => {
        const box = root.querySelector(one).getBoundingClientRect();
        return [box.left, box.right];
    })"""
    head, told = wire.panel.root.evaluate(ends)
    assert head[0] <= told[0] < told[1] <= head[1]


def test_corrections_that_wait_are_no_items_that_are_done(browser: Browser, store: str) -> None:
    """In a queue that is longer than what the page holds, of which the last item is open."""
    imported(0, 300)
    with wired(browser) as wire:
        ids = [i for n, i in enumerate(wire.session.trace_ids) if n not in (5, 299)]
        table = pd.DataFrame({"trace_id": ids, "value": "fair"})
        workbench.log_labels(table, name="quality", annotator="ana", value="value", progress=False)
        wire.session.reread()
        wire.carry()
        wire.panel.press("3", "Enter")
        wire.panel.at(5)
        wire.panel.press("2", "Enter")
        *actions, want = sorted(wire.sent(), key=lambda message: str(message["type"]))
        wire.to_page += wire.session.receive(want)  # before anything is saved
        wire.tell()
        wire.panel.at(299)
        for action in actions:
            wire.session.receive(action)
        wire.carry()
        wire.panel.at(299)


def test_a_label_that_is_offered_again_is_kept_by_a_skip(wire: Wire) -> None:
    """For good: the kernel counts it as done, and tells so when the item is read again."""
    for _ in range(6):
        wire.panel.press("2", "Enter")
    wire.carry()
    wire.to_page += wire.session.offer_again(wire.session.trace_ids[:1])
    wire.carry()
    wire.panel.at(0)
    expect(wire.panel.root.locator(".wb-where")).to_contain_text("offered again")
    wire.panel.press("s")
    wire.carry()
    wire.panel.at("done")
    assert wire.session.progress["again"] == 0
    assert counting(wire.session.trace_ids[0]) == ["fair"]


def test_a_verdict_that_was_lost_is_asked_for_again(browser: Browser, store: str) -> None:
    imported(0, 2)
    with wired(browser, reveal=True) as wire:
        wire.panel.press("2", "Enter")
        for message in wire.sent():
            wire.session.receive(message)
        assert wire.session.flush(30)
        wire.tell()  # saved, so the verdict is asked for
        assert [one["type"] for one in wire.sent()] == ["reveal"]  # lost
        wire.page.clock.run_for(PATIENCE)
        wire.carry()
        expect(wire.panel.root.locator(".wb-reveal")).to_contain_text("No one else has judged")


def test_an_undo_that_is_refused_leaves_all_as_it_was(browser: Browser, store: str) -> None:
    """The verdict is shown again, and nothing is said to be lost."""
    imported(0, 2)
    with wired(browser, reveal=True) as wire:
        wire.panel.press("2", "Enter")
        wire.carry()
        wire.panel.press("u")
        wire.carry()
        expect(wire.panel.root.locator(".wb-hint")).to_contain_text("before the verdict was shown")
        expect(wire.panel.root.locator(".wb-reveal")).to_contain_text("No one else has judged")
        expect(wire.panel.root.locator(".wb-saving")).not_to_contain_text("could not be saved")


def test_the_summary_stays_where_only_skipped_items_are_left(wire: Wire) -> None:
    """Until something is open again."""
    for keys in (["s"], *(["2", "Enter"] for _ in range(5))):
        wire.panel.press(*keys)
        wire.carry()
    wire.panel.at("done")
    table = pd.DataFrame({"trace_id": imported(6, 7), "v": ["good"]})
    workbench.log_labels(table, name="quality", annotator="ana", value="v")
    wire.session.reread()
    assert "queue" in [message["type"] for message in wire.to_page]
    wire.carry()
    assert wire.panel.position == "done"
    imported(7, 8)
    wire.session.reread()
    wire.carry()
    wire.panel.at(7)


def test_the_enter_that_ends_a_composition_saves_nothing(wire: Wire) -> None:
    """Safari tells of it after the composition, with a code of its own."""
    wire.panel.press("2", "r")
    reason = wire.panel.root.locator(".wb-rationale")
    reason.evaluate(
        """(field) => field.dispatchEvent(
            new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))"""
    )
    assert acts(wire.sent()) == []
    wire.panel.at(0)
    reason.press("Enter")
    wire.panel.at(1)


def test_enter_chooses_the_answer_that_has_the_focus_and_saves_the_chosen_one(wire: Wire) -> None:
    """The focus is on no answer any more once another is chosen by key, or another item comes."""
    good = wire.panel.root.get_by_role("button", name="good")
    chosen = wire.panel.root.locator(".wb-choice[aria-pressed=true]")
    wire.panel.press("1")
    good.focus()
    wire.panel.press("Enter")
    expect(chosen).to_contain_text("good")
    wire.panel.press("1", "Enter")
    wire.panel.at(1)
    good.click()
    wire.panel.press("Enter")
    wire.panel.at(2)
    wire.panel.press("Enter")
    expect(wire.panel.root.locator(".wb-hint")).to_contain_text("Not rated yet")
    expect(chosen).to_have_count(0)
    wire.carry()
    assert list(wire.session.labels["value"]) == ["poor", "good"]


def test_an_item_that_comes_late_is_shown_as_it_was_labelled(wire: Wire) -> None:
    """The empty fields that stood in its place are no change of it."""
    second = wire.session.trace_ids[1]
    table = pd.DataFrame({"trace_id": [second], "v": ["good"], "why": ["since so"]})
    workbench.log_labels(table, name="quality", annotator="ana", value="v", rationale="why")
    imported(6, 7)
    wire.session.reread()
    wire.tell()
    wire.panel.press("2", "Enter")  # the items are not here again
    expect(wire.panel.root).to_have_attribute("data-trace", "")
    wire.carry()
    wire.panel.at(2)
    wire.panel.press("ArrowLeft")
    wire.panel.at(1)
    expect(wire.panel.root.locator(".wb-rationale")).to_have_value("since so")
    expect(wire.panel.root.locator(".wb-where")).not_to_contain_text("changed")


def test_what_others_have_done_is_not_what_one_has_skipped(browser: Browser, store: str) -> None:
    queue = workbench.review_queue("pilot", [workbench.LabelQuestion("quality", SCALE)])
    queue.add(imported(0, 3))
    with wired(browser, traces=queue) as wire:
        table = pd.DataFrame({"trace_id": wire.session.trace_ids[1:2], "v": ["good"]})
        workbench.log_labels(table, name="quality", annotator="ben", value="v")
        wire.session.reread()
        wire.carry()
        for position in (2, "done"):
            wire.panel.press("2", "Enter")
            wire.carry()
            wire.panel.at(position)
        expect(wire.panel.root.locator(".wb-counts")).to_have_text("2 of 2 labelled")
        expect(wire.page.get_by_role("button", name="Look at what you skipped")).to_be_hidden()
        wire.panel.press("ArrowLeft", "ArrowLeft")
        expect(wire.panel.root.locator(".wb-where")).to_contain_text("not needed any more")


def test_a_deleted_trace_does_not_keep_one_from_the_end(browser: Browser, store: str) -> None:
    """In a queue that is longer than what the page holds, which is gone through once."""
    ids = imported(0, 800)
    table = pd.DataFrame({"trace_id": ids[1:], "value": "fair"})
    workbench.log_labels(table, name="quality", annotator="ana", value="value", progress=False)
    with wired(browser) as wire:
        assert wire.panel.trace_id == ids[0]
        delete(ids[0])
        wire.panel.press("2", "Enter")
        wire.carry()
        wire.panel.at("done")
        expect(wire.panel.root.locator("h3")).to_contain_text("You are through")


def test_what_could_not_be_saved_is_not_said_to_be(wire: Wire) -> None:
    """Also once the message was read, and once the page was loaded anew."""
    delete(wire.panel.trace_id)
    wire.panel.press("2", "Enter")
    wire.carry()
    hint = wire.panel.root.locator(".wb-hint")
    expect(hint).to_contain_text("The label of item 1 could not be saved")
    wire.panel.press("ArrowLeft")
    expect(wire.panel.root.locator(".wb-page")).to_contain_text("was deleted")
    wire.panel.press("Enter")
    saving = wire.panel.root.locator(".wb-saving")
    expect(saving).to_have_text("1 could not be saved")
    wire.panel.press("2", "Enter")
    wire.carry()
    expect(saving).to_have_text("1 could not be saved")
    assert wire.session.state()["lost"] == 1


def test_no_trace_runs_anything(browser: Browser, store: str) -> None:
    """Whatever a trace holds is shown as text: no script, no dialog, no request to elsewhere."""
    inputs: list[Any] = [{"text": text} for text in HOSTILE]
    roles = [{"role": "<b>user</b>", "content": HOSTILE[0]}, {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://evil.example/seen.png"}},
        {"type": "text", "text": HOSTILE[1]}, {"<i>": HOSTILE[1]}, None, 3]}]  # fmt: skip
    deep: Any = HOSTILE[0]
    for _ in range(50):
        deep = {"<b>": [deep]}
    inputs += [{"messages": roles}, {HOSTILE[0]: {HOSTILE[1]: [deep] * 3}}]
    made = workbench.import_traces(
        pd.DataFrame({"inputs": inputs, "outputs": "word " * 200_000}),
        inputs="inputs", outputs="outputs", progress=False,
    )  # fmt: skip
    workbench.set_rubric("quality", HOSTILE[0] + "\n\n" + HOSTILE[6])
    with wired(browser, title=HOSTILE[1]) as wire:
        harm: list[str] = []
        wire.page.on("dialog", lambda dialog: harm.append(dialog.message))
        wire.page.on("request", lambda request: harm.append(request.url))
        for position in range(len(inputs)):
            wire.panel.at(position)
            shown = wire.panel.root.locator(".wb-reading")
            assert "1,000,000 characters" in shown.inner_text()
            assert wire.panel.root.evaluate(HARMFUL) == []
            # Not as it is: these are shown by their number.
            assert not UNSEEN.search(shown.inner_text())
            wire.panel.press("t")  # as it is
            assert not UNSEEN.search(shown.inner_text())
            wire.panel.press("t", "2", "Enter" if position % 2 else "ArrowRight")
            wire.carry()
        assert wire.page.evaluate("[window.harmed, ({}).harmed, {}.constructor === Object]") == [
            None, None, True,
        ]  # fmt: skip
        assert harm == []
        assert wire.session.progress["labelled"] == len(inputs) // 2 == len(made.trace_ids) // 2


def test_a_link_says_where_it_leads(browser: Browser, store: str) -> None:
    """Unless its text is the host or the whole address, whatever else the text holds of it."""
    said = {
        "[https://bank.example/?evil.example](https://evil.example)": (
            "https://bank.example/?evil.example (evil.example)"
        ),
        "[https://bank.example@evil.example](https://evil.example)": (
            "https://bank.example@evil.example (evil.example)"
        ),
        "[a@bank.example](mailto:a@evil.example)": "a@bank.example (a@evil.example)",
        "[evil.example](https://evil.example/a)": "evil.example",
        "https://evil.example/a": "https://evil.example/a",
        "<a@evil.example>": "a@evil.example",
    }
    table = pd.DataFrame({"q": ["\n\n".join(said)], "a": ["x"]})
    workbench.import_traces(table, inputs="q", outputs="a", progress=False)
    with wired(browser) as wire:
        shown = wire.panel.root.locator(".wb-inputs p").all_inner_texts()
        assert shown == list(said.values())


@pytest.fixture
def explorer(browser: Browser, store: str) -> Iterator[Page]:
    """The explorer's view of two items, where the test answers in place of a session."""
    context = browser.new_context()
    context.clock.install()
    page = context.new_page()
    show(page, Exploration(make_pairs(["no"] * 2, ["yes"] * 2), annotator="ben"))
    yield page
    context.close()


def show(page: Page, session: Exploration) -> None:
    """Make a view of the session; where there is one, it is replaced."""
    setup = prepared_setup(session.setup())
    page.evaluate(STAND_IN, {"code": str(Explorer._esm), "setup": setup, "state": {}})


def tell(page: Page, **message: Any) -> None:
    page.evaluate("(message) => tell([message], {})", message)


def find_one(page: Page) -> dict[str, Any]:
    """Answer the first question of a view, with one item; return the answer."""
    (ask,) = [one["ask"] for one in page.evaluate("sent") if one["type"] == "page"]
    row = {"trace_id": "t000", "human": "no", "judge": "yes", "inputs": "", "outputs": ""}
    found = {"rows": [row], "matrix": [[0, 1], [0, 0]], "total": 1, "left": 1, "start": 0}
    answer = {"type": "page", "ask": ask, **found}
    tell(page, **answer)
    return answer


def test_what_is_typed_while_a_note_is_saved_stays(explorer: Page) -> None:
    """The item is not drawn anew."""
    find_one(explorer)
    explorer.locator(".wbx-row").click()
    tell(explorer, type="items", items=[{"trace_id": "t000", "blocks": {}, "voices": []}])
    note = explorer.get_by_label("Note", exact=True)
    note.fill("first")
    explorer.evaluate("sent.splice(0)")
    for text in ("first and more", None):
        explorer.get_by_role("button", name="Save note").click()
        (act,) = explorer.evaluate("sent.splice(0)")
        (action,) = act["actions"]
        assert action["answers"][NOTE]["value"] == note.input_value()
        if text:
            note.fill(text)
        tell(explorer, type="saved", ids=[action["id"]])
        expect(note).to_have_value("first and more")
        expect(explorer.locator(".wbx-told")).to_have_text("The note is in the store.")
    # What another view of the widget asks for changes nothing here.
    tell(explorer, type="items", items=[{"trace_id": "t000", "blocks": {}, "voices": []}])
    expect(note).to_have_value("first and more")


def test_a_reason_stands_until_it_is_changed(explorer: Page) -> None:
    """It is in its field, so another label does not drop it."""
    find_one(explorer)
    explorer.locator(".wbx-row").click()
    done = {"answers": {"q": {"value": "no"}}, "changed": {}, "rationale": {"q": "since so"}}
    item = {"trace_id": "t000", "blocks": {}, "voices": [], "done": done}
    tell(explorer, type="items", items=[item])
    expect(explorer.get_by_label("Reason for your label")).to_have_value("since so")


def test_why_there_is_no_page_stays_in_sight(explorer: Page) -> None:
    tell(explorer, type="problem", about="page", error="The store is away.")
    explorer.clock.run_for(10_000)
    expect(explorer.locator(".wbx-status")).to_have_text("The store is away.")


def test_a_view_does_not_show_what_another_one_asked_for(explorer: Page, store: str) -> None:
    """Answers go to all views of a widget."""
    answer = find_one(explorer)
    show(explorer, Exploration(make_pairs(["no"] * 2, ["yes"] * 2)))
    tell(explorer, **answer)
    expect(explorer.locator(".wbx-row")).to_have_count(0)
    find_one(explorer)
    expect(explorer.locator(".wbx-row")).to_have_count(1)


def test_no_pairs_on_a_numeric_scale_are_no_items(explorer: Page, store: str) -> None:
    session = Exploration(make_pairs([], [], scale=workbench.Scale("numeric")))
    show(explorer, session)
    for message in explorer.evaluate("sent"):
        for answer in session.receive(message):
            tell(explorer, **answer)
    expect(explorer.locator(".wbx-status")).to_have_text("0 items")
    explorer.get_by_label("Search texts and reasons").press("Escape")


def test_control_s_does_not_save_the_page(explorer: Page) -> None:
    explorer.evaluate(
        """document.querySelector('.wbx').addEventListener('keydown',
           (event) => { window.isPrevented = event.defaultPrevented; })"""
    )
    explorer.get_by_label("Search texts and reasons").press("Control+s")
    assert explorer.evaluate("isPrevented")


def test_an_id_that_is_not_copied_is_not_said_to_be(explorer: Page) -> None:
    """Over plain HTTP there is no clipboard, and a browser may refuse the command."""
    explorer.evaluate("document.execCommand = () => false")
    find_one(explorer)
    explorer.locator(".wbx-row").click()
    tell(explorer, type="items", items=[{"trace_id": "t000", "blocks": {}, "voices": []}])
    explorer.get_by_role("button", name="Copy id").click()
    expect(explorer.locator(".wbx-told")).to_contain_text("could not be copied")


def test_a_note_that_goes_nowhere_is_not_said_to_be_saved(explorer: Page) -> None:
    find_one(explorer)
    explorer.locator(".wbx-row").click()
    tell(explorer, type="items", items=[{"trace_id": "t000", "blocks": {}, "voices": []}])
    explorer.get_by_label("Note", exact=True).fill("a note")
    explorer.evaluate("window.sent = null")  # sending fails, as it does without a kernel
    explorer.get_by_role("button", name="Save note").click()
    expect(explorer.locator(".wbx-told")).to_contain_text("There is no kernel")


def test_a_cancel_that_goes_nowhere_is_not_passed_over(explorer: Page) -> None:
    state = {"stage": "learning", "title": "clarity"}
    view = {"code": str(AlignmentView._esm), "setup": {}, "state": state}
    explorer.evaluate(STAND_IN, view)
    explorer.evaluate("window.sent = null")  # sending fails, as it does without a kernel
    explorer.get_by_role("button", name="Cancel").click()
    expect(explorer.get_by_role("status")).to_contain_text("no kernel")


def test_a_view_of_an_ended_kernel_sees_what_a_new_one_has_saved(wire: Wire) -> None:
    """It says so, and sends nothing any more."""
    trace_id = wire.panel.trace_id
    wire.panel.press("2", "Enter")
    wire.sent()  # nobody is there
    expect(wire.panel.root).to_have_attribute("data-unsaved", "1")
    newer = Wire(wire.page.context, LabelSession("quality", annotator="ana", scale=SCALE))
    assert counting(trace_id) == ["fair"]
    expect(newer.panel.root).to_have_attribute("data-unsaved", "0")
    wire.page.clock.run_for(2 * PATIENCE)
    expect(wire.panel.root).to_have_attribute("data-unsaved", "0")
    expect(wire.panel.root.locator(".wb-saving")).not_to_contain_text("Not saved yet")
    wire.sent()
    wire.page.clock.run_for(20 * PATIENCE)
    assert acts(wire.sent()) == []
