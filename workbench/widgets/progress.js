// The view of an alignment in the background: figures as the kernel tells them, and Cancel.
//
// It holds nothing but what it shows. Instructions and rules are made from what people and models
// wrote and so are hostile: text reaches the page as text nodes (see `content.js`).

const STAGES = {
  reading: "reading labels",
  preflight: "preflight",
  learning: "learning",
  testing: "testing on held-out traces",
  done: "done",
  cancelled: "cancelled",
  failed: "failed",
};

const DEV_SCORE_HINT = "On the items that candidates are selected on, some of which were learned from: no estimate of how the judge will do. That comes from the held-out test.";

const box = (tag, cls, ...children) => h(tag, { class: cls || null }, children);
const shown = (text) => visible(String(text ?? ""));
const time = (s) => `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;

function table({ head, rows }, cls) {
  const row = (cells, tag) => h("tr", null, cells.map((text) => h(tag, null, shown(text))));
  return box("div", "wbp-scroll", box("table", cls,
    h("thead", null, row(head, "th")), h("tbody", null, rows.map((cells) => row(cells, "td")))));
}

/** A bar with its figure beside it; without an end to go to it has none. */
class Bar {
  constructor(label) {
    this.fill = box("div", "wbp-fill");
    this.track = h("div", { class: "wbp-track", role: "progressbar", "aria-label": label, "aria-valuemin": "0" }, this.fill);
    this.figure = box("span", "wbp-figure");
    this.node = box("div", "wbp-row", box("span", "wbp-label", label), this.track, this.figure);
  }

  show(now, most, text) {
    this.node.hidden = now === null || now === undefined;
    if (this.node.hidden) return;
    this.track.hidden = !most;
    this.figure.textContent = text;
    if (!most) return;
    this.fill.style.width = `${Math.min(100, (100 * now) / most)}%`;
    this.track.setAttribute("aria-valuenow", now);
    this.track.setAttribute("aria-valuemax", most);
  }
}

class AlignmentView {
  constructor(model, el) {
    this.model = model;
    this.title = box("strong", "wbp-title");
    this.stage = h("span", { class: "wbp-stage", role: "status" });
    this.clock = h("span", { class: "wbp-clock", title: "time since it began" });
    this.cancel = h("button", { class: "wbp-cancel", type: "button", onclick: () => this.onCancel() }, "Cancel");
    this.steps = new Bar("Steps");
    this.calls = new Bar("Spent");
    this.figures = box("div", "wbp-figures");
    this.message = box("p", "wbp-message");
    this.outcome = box("div", "wbp-outcome");
    this.rules = h("div", { class: "wbp-rules", tabindex: "0", role: "region", "aria-label": "Best instructions so far" });
    this.rulesHead = box("div", "wbp-head2");
    this.preflight = box("details", "wbp-preflight", h("summary", null, "What was said before it began"));
    this.root = h("section", { class: "wbp", "aria-label": "Alignment in the background" },
      box("header", "wbp-header", this.title, this.stage, box("span", "wbp-space"), this.clock, this.cancel),
      this.steps.node, this.calls.node, this.figures, this.message, this.outcome, this.rulesHead, this.rules, this.preflight);
    el.replaceChildren(this.root);
  }

  onCancel() {
    this.cancel.disabled = true;
    this.cancel.textContent = "Cancelling…";
    this.model.send({ type: "cancel" });
  }

  showState() {
    const state = this.model.get("state");
    this.title.replaceChildren("Aligning ", ...shown(this.model.get("setup").title));
    this.stage.textContent = state.cancelling ? "cancelling: calls are under way" : (STAGES[state.stage] ?? state.stage);
    Object.assign(this.root.dataset, { stage: state.stage, step: state.step ?? "", calls: state.calls ?? "" });
    this.clock.textContent = time(state.seconds ?? 0);
    this.cancel.hidden = Boolean(state.ended) || state.stage === "testing";
    this.cancel.disabled = Boolean(state.cancelling);
    this.cancel.textContent = state.cancelling ? "Cancelling…" : "Cancel";
    this.steps.show(state.step, state.max_steps, `${state.step} of at most ${state.max_steps}`);
    this.calls.show(state.share_spent ?? state.calls, state.share_spent === null ? 0 : 1, state.spent);
    const { best_score: score, failures } = state;
    const figure = (name, value, cls, hint = null) => h("div", { title: hint }, box("div", "wbp-name", name), box("div", `wbp-value ${cls}`, value));
    this.figures.replaceChildren();
    append(this.figures, [
      score === null ? null : figure("Best dev score", score.toFixed(3), "wbp-big", DEV_SCORE_HINT),
      failures === null ? null : figure("Failed calls", number(failures), failures ? "wbp-warn" : "")]);
    this.figures.hidden = !this.figures.children.length;
    this.message.hidden = state.stage === "done" || !state.message;
    this.message.replaceChildren(...shown(state.message));
    this.showRules();
  }

  showRules() {
    const lines = this.model.get("learned");
    const learned = lines.filter(([, isNew]) => isNew).length;
    this.rulesHead.replaceChildren(
      box("span", "", this.model.get("state").stage === "done" ? "Proposed instructions" : "Best instructions so far"),
      box("span", "wbp-quiet", learned ? `${count(learned, "learned line")}, marked +` : "nothing learned yet"));
    const text = (line) => h("span", { class: "wbp-text", dir: "auto" }, shown(line));
    this.rules.replaceChildren(...lines.map(([line, isNew]) => (isNew
      ? box("ins", "wbp-line", h("span", { class: "wbp-plus", "aria-hidden": "true" }, "+"), text(line))
      : box("div", "wbp-line", text(line)))));
    this.rulesHead.hidden = this.rules.hidden = lines.length === 0;
  }

  showOutcome() {
    const found = this.model.get("outcome");
    this.outcome.hidden = !found;
    if (!found) return;
    this.outcome.replaceChildren(
      h("p", null, box("strong", `wbp-status wbp-${found.status}`, found.status), " ", shown(found.reason)),
      table(found.table, "wbp-table wbp-numbers"),
      ...found.notes.map((note) => box("p", "wbp-quiet", shown(note))));
  }

  showPreflight() {
    const facts = this.model.get("setup").table;
    this.preflight.hidden = facts.rows.length === 0;
    while (this.preflight.children.length > 1) this.preflight.lastChild.remove();
    this.preflight.append(table(facts, "wbp-table"));
  }
}

function render({ model, el }) {
  const view = new AlignmentView(model, el);
  const handlers = {
    "change:state": () => view.showState(),
    "change:learned": () => view.showRules(),
    "change:outcome": () => view.showOutcome(),
    "change:setup": () => view.showPreflight(),
  };
  for (const [name, show] of Object.entries(handlers)) {
    model.on(name, show);
    show();
  }
  return () => {
    for (const [name, show] of Object.entries(handlers)) model.off(name, show);
  };
}

export default { render };
