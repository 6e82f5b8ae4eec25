// The adjudication panel: what annotators said stands side by side, and one answer is given to it.
// `view.js` comes before this in its module; all that is not about the labels of others is there.

class Adjudication extends Panel {
  get words() {
    return { panel: "Adjudication panel", done: "decided", table: "panel.decisions", holds: "the labels and what was decided", summary: null, nothing: "Annotators differ on none of these traces." };
  }

  build(el) {
    super.build(el);
    this.root.classList.add("wb-adjudication");
    // What people said is read before one decides.
    this.answers.before(this.reveal);
  }

  buildQuestions() {
    super.buildQuestions();
    // The answers stay in view below what people said.
    for (const each of this.answers.querySelectorAll(".wb-rubric")) each.open = false;
  }

  paintReveal() {
    const { item } = this;
    this.reveal.replaceChildren();
    if (!item || this.done) return;
    const question = this.questions[0];
    const offered = choices(question);
    const card = ({ annotator, value, rationale, earlier_rubric: earlier }) => {
      const at = offered.findIndex(({ label }) => label === value);
      return h("div", { class: "wb-voice wb-person", role: "listitem", style: `--wb-hue: ${hue(question, at, offered.length)}` },
        h("div", { class: "wb-voicehead" }, h("span", { class: "wb-who", dir: "auto" }, visible(String(annotator))), " ", h("span", { class: "wb-chip wb-said", dir: "auto" }, visible(String(value)))),
        earlier ? h("div", { class: "wb-quiet wb-earlier" }, "earlier rubric") : null,
        rationale ? h("div", { class: "wb-prose", dir: "auto" }, markdown(String(rationale))) : h("div", { class: "wb-quiet" }, "no reason given"));
    };
    this.reveal.append(
      h("div", { class: "wb-sectionhead", role: "heading", "aria-level": 3 }, "What annotators said"),
      h("div", { class: "wb-voices", role: "list" }, (item.voices ?? []).map(card)));
  }

  paintItemState() {
    super.paintItemState();
    const by = this.item && this.standing(this.item).done?.decided_by;
    if (by) this.where.append(" ", h("span", { class: "wb-chip wb-by", dir: "auto" }, "decided by ", visible(String(by))));
  }
}

export default viewOf(Adjudication);
