// The adjudication panel: what annotators said stands side by side, and one answer is given to it.

class Adjudication extends Panel {
  get words() {
    return { panel: "Adjudication panel", done: "decided", table: "panel.decisions", holds: "the labels and what was decided", summary: null, nothing: "Annotators differ on none of these traces." };
  }

  build(el) {
    super.build(el);
    this.root.classList.add("wb-adjudication");
    // What people said is read before one decides.
    this.form.box.before(this.reveal);
  }

  /** The answers stay in view below what people said. */
  get opensRubric() {
    return false;
  }

  paintReveal() {
    const { item } = this;
    this.reveal.replaceChildren();
    if (!item || this.done) return;
    this.reveal.append(
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 3 }, "What annotators said"),
      h("div", { class: "wb-voices", role: "list" }, (item.voices ?? []).map((voice) => this.card(voice))));
  }

  card({ annotator, value, rationale, rationale_blocks: blocks, earlier_rubric: earlier }) {
    const choice = this.questions[0].choices.find(({ label }) => label === value);
    return h("div", { class: "wb-voice wb-person", role: "listitem", style: hueStyle(choice) },
      h("div", { class: "wb-voicehead" }, h("span", { class: "wb-who", dir: "auto" }, visible(String(annotator))), " ", h("span", { class: "wb-chip wb-said", dir: "auto" }, visible(String(value)))),
      earlier ? h("div", { class: "wb-quiet wb-earlier" }, "earlier rubric") : null,
      rationale ? drawn(blocks) : h("div", { class: "wb-quiet" }, "no reason given"));
  }

  paintItemState() {
    super.paintItemState();
    const by = this.item && this.statusOf(this.item).done?.decided_by;
    if (by) this.where.append(" ", h("span", { class: "wb-chip wb-by", dir: "auto" }, "decided by ", visible(String(by))));
  }
}
